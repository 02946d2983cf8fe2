"""Reads study files: YAML, overrides from the command line, and paths made absolute."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from search.study.mistakes import problems
from search.study.sections import PLACEHOLDER, Study
from spaces.errors import UserError


def load(path: Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Study:
    """Reads a study file; its paths are relative to its own folder, those of ``overrides`` to the working folder.

    Args:
        path: YAML 1.2.
        overrides: ``budget.trials=8`` and the like, the value being YAML; or by key, ``{"budget.trials": 8}``.

    Raises:
        UserError: Anything wrong with the file or an override.
    """
    if not path.is_file():
        raise UserError(f"study file: must exist, but there is no file {path}.")
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    # A date that does not exist is a ValueError.
    except (YAMLError, ValueError, OSError) as error:
        raise UserError(f"{path}: must be YAML: {_one_line(error)}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must be a mapping with name, base, data and space, but got {type(raw).__name__}.")
    _absolute(raw, path.resolve().parent)
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(parse_assignment, overrides)
    for key, value in pairs:
        _override(raw, key, _plain(value))
    _absolute(raw, Path.cwd())
    return parse(raw, str(path))


def build(sections: Mapping[str, Any]) -> Study:
    """Makes a study of what a study file would hold; paths are relative to the working folder.

    Args:
        sections: By key; values are plain Python ones or paths.

    Raises:
        UserError: Anything wrong with them.
    """
    raw = _plain(sections)
    _absolute(raw, Path.cwd())
    return parse(raw, "study")


def parse(raw: Mapping[str, Any], who: str) -> Study:
    """Turns a mapping into a ``Study``.

    Raises:
        UserError: Names each wrong key, its rule and its value.
    """
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{who}: " + "\n  ".join(problems(error))) from error


def _parse_value(text: str) -> Any:
    """Reads the value of ``KEY=VALUE`` on the command line as YAML.

    Raises:
        UserError: It is not YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:
        raise UserError(f"--set: the value must be YAML, but got '{text}'.") from error


def parse_assignment(text: str) -> tuple[str, Any]:
    """Splits ``KEY=VALUE``.

    Raises:
        UserError: There is no ``=`` or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set: must read like KEY=VALUE, but got '{text}'.")
    return key.strip(), _parse_value(value)


def _plain(value: Any) -> Any:
    """A copy as YAML would give it: mappings and lists of words, numbers and switches."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _override(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    section: Any = raw
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise UserError(f"--set {key}: '{parent}' must be a section, but it is {section!r}.")
    section[last] = value


def _absolute(raw: dict[str, Any], root: Path) -> None:
    def fix(section: Any, key: str, keep: tuple[str, ...] = ()) -> None:
        if isinstance(section, dict) and isinstance(section.get(key), str) and section[key] not in keep:
            if section[key].startswith(PLACEHOLDER) and key in ("annotations", "images"):
                return
            section[key] = _absolute_path(section[key], root)

    data = raw.get("data")
    if isinstance(data, dict):
        for split in ("train", "val"):
            fix(data.get(split), "annotations")
            fix(data.get(split), "images")
    fix(raw.get("weights"), "from", ("scratch", "baseline"))
    fix(raw.get("weights"), "backbone", ("auto", "none"))
    sampler = raw.get("sampler")
    if isinstance(sampler, dict) and isinstance(sampler.get("earlier"), list):
        # A name is looked for among the studies, a path from here.
        sampler["earlier"] = [
            _absolute_path(word, root) if isinstance(word, str) and os.sep in word else word
            for word in sampler["earlier"]
        ]
    if isinstance(raw.get("base"), str) and "::" not in raw["base"]:
        fix(raw, "base")
    # The same command must find them again from wherever it is given.
    for section, key in ((raw, "storage"), (raw.get("tracking"), "uri")):
        if isinstance(section, dict) and isinstance(section.get(key), str):
            scheme, found, path = section[key].partition(":///")
            if found and scheme.split("+")[0] == "sqlite" and path and not path.startswith(("/", ":", "file:")):
                section[key] = f"{scheme}:///{_absolute_path(path, root)}"


def _absolute_path(text: str, root: Path) -> str:
    try:
        return os.path.normpath((root / Path(text).expanduser()).absolute())
    except RuntimeError as error:  # the ~ of a user who does not exist
        raise UserError(f"study file: '{text}' must be a path, but {str(error).rstrip('.').lower()}.") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
