"""A bundle's ``config.py``: the trial's config without training, without the machine, without base files."""

from __future__ import annotations

import colorsys
import keyword
import math
import runpy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.bundle.heads import Heads
from spaces.errors import HeadwayError
from spaces.registry import packages

_WIDTH = 100
_KEPT = ("default_scope", "model", "test_dataloader", "test_evaluator", "test_cfg", "visualizer")

_HEADS = '''\
import sys

# The network code of this bundle, found beside this file wherever both lie (mmengine puts the folder's path in).
if r"""{{ fileDirname }}/heads""" not in sys.path:
    sys.path.append(r"""{{ fileDirname }}/heads""")
'''


def read_trial_config(path: Path) -> dict[str, Any]:
    """Reads the config that a trial was trained with, which is flat and has no imports.

    Raises:
        HeadwayError: It is gone or damaged.
    """
    try:
        values = runpy.run_path(str(path))
    except Exception as error:  # it is a program
        raise HeadwayError(
            f"bundle: the trial's config {path} cannot be read: {type(error).__name__}: {error}"
        ) from error
    config = {key: value for key, value in values.items() if not key.startswith("__")}
    missing = [key for key in ("model", "test_dataloader", "test_evaluator") if key not in config]
    if missing:
        raise HeadwayError(f"bundle: the trial's config {path} must have {missing[0]}, but has not.")
    return config


def own_modules(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Splits what a trial's config imports into network code of families and modules that the base needs."""
    listed = list((config.get("custom_imports") or {}).get("imports", ()))
    ours = [name for name in listed if name.partition(".")[0] in packages()]
    return ours, [name for name in listed if name not in ours]


def bundle_config(trial: Mapping[str, Any], heads: Heads, classes: Sequence[str], annotations: str, images: str) -> str:
    """Makes the text of ``config.py``.

    Args:
        trial: The trial's config.
        heads: The bundle's network code.
        classes: Class names by label.
        annotations: File name of the validation annotations.
        images: Name of the folder of validation images.

    Returns:
        A config of plain mmdet for running and testing.

    Raises:
        HeadwayError: Something in it cannot be written down, or names a file of this machine.
    """
    config: dict[str, Any] = {key: heads.rename(trial[key]) for key in _KEPT if trial.get(key) is not None}
    config["model"] = _without_pretrained(config["model"])
    _, needed = own_modules(trial)
    imports = [*needed, *([heads.package] if heads.package else [])]
    loader = dict(config["test_dataloader"])
    for key in ("persistent_workers", "multiprocessing_context"):
        loader.pop(key, None)
    loader["num_workers"] = 2
    loader["dataset"] = {
        **loader["dataset"],
        "metainfo": {"classes": tuple(classes), "palette": palette(len(classes))},
        "data_root": "data/",
        "ann_file": annotations,
        "data_prefix": {"img": f"{images}/"},
    }
    config["test_dataloader"] = loader
    config["test_evaluator"] = {**config["test_evaluator"], "ann_file": f"data/{annotations}"}
    _check_portable(config)
    parts = [_HEADS] if heads.package else []
    if imports:
        config = {"custom_imports": {"imports": imports, "allow_failed_imports": False}, **config}
    for key, value in config.items():
        if key == "test_dataloader":
            parts.append("# For measuring again: put your data under data/, or override these paths (see README.md).")
        parts.append(f"{key} = {_written(value, key, len(key) + 3, 0)}")
    return "\n".join(parts) + "\n"


def network_config(trial: Mapping[str, Any], heads: Heads) -> str:
    """Makes the text of a config with the network only, without weights or data: what a latency is compared with.

    Args:
        trial: The config of the baseline's trial.
        heads: The network code of the bundle, with all that this network needs.

    Raises:
        HeadwayError: Something in it cannot be written down, or names a file of this machine.
    """
    config = {key: heads.rename(trial[key]) for key in ("default_scope", "model") if trial.get(key) is not None}
    config["model"] = _without_pretrained(config["model"])
    _check_portable(config)
    ours, needed = own_modules(trial)
    imports = [*needed, *([heads.package] if ours else [])]
    if imports:
        config = {"custom_imports": {"imports": imports, "allow_failed_imports": False}, **config}
    lines = (f"{key} = {_written(value, key, len(key) + 3, 0)}\n" for key, value in config.items())
    return "\n".join([*([_HEADS] if ours else []), "".join(lines)])


def detector_type(config: Mapping[str, Any]) -> str:
    """The base's detector by its name in mmdet, whatever a design or the type that it predicts in build around it."""
    model = config["model"]
    return str(next(model[key] for key in ("base_type", "detector_type", "type") if model.get(key)))


def palette(count: int) -> list[tuple[int, int, int]]:
    """Gives a bright colour (red, green, blue; 0 to 255) a class, neighbours far apart."""
    golden = (math.sqrt(5) - 1) / 2
    colours = (colorsys.hsv_to_rgb(index * golden % 1, (0.85, 0.6)[index % 2], 1) for index in range(count))
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colours]


def _check_portable(config: Mapping[str, Any]) -> None:
    for key, value in _texts(config):
        if Path(value).is_absolute() or value.startswith("~"):
            raise HeadwayError(
                f"bundle: must run on any machine, but {key} of the trial's config names a file of this one: {value}."
            )


def _without_pretrained(value: Any) -> Any:
    """Drops the files that weights were initialised from: all weights are in the bundle."""
    if isinstance(value, Mapping):
        kept: dict[str, Any] = {}
        for key, item in value.items():
            if key == "pretrained" and isinstance(item, str):
                kept[key] = None
            elif key == "init_cfg" and isinstance(item, (list, tuple)):
                kept[key] = [one for one in item if one.get("type") != "Pretrained"]
            elif key == "init_cfg" and isinstance(item, Mapping) and item.get("type") == "Pretrained":
                kept[key] = None
            else:
                kept[key] = _without_pretrained(item)
        return kept
    if isinstance(value, (list, tuple)):
        return type(value)(_without_pretrained(item) for item in value)
    return value


def _texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a config with their keys."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _texts(item, f"{where}[{index}]")
    elif isinstance(value, str):
        yield where, value


def _written(value: Any, where: str, column: int, indent: int) -> str:
    """Writes a value as mmdet's configs do: ``dict(type='GFL', ...)``, on one line where it fits.

    Raises:
        HeadwayError: It is no plain value.
    """
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=lambda item: item[0] != "type")  # the type first
        words = all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value)
        begins = [f"{key}=" if words else f"{key!r}: " for key, _ in items]
        opening, closing = ("dict(", ")") if words else ("{", "}")
        parts = [(begin, item, f"{where}.{key}") for begin, (key, item) in zip(begins, items, strict=True)]
    elif isinstance(value, (list, tuple)):
        opening, closing = "[]" if isinstance(value, list) else "()"
        closing = ",)" if isinstance(value, tuple) and len(value) == 1 else closing
        parts = [("", item, f"{where}[{index}]") for index, item in enumerate(value)]
    elif isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    elif value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    else:
        raise HeadwayError(f"bundle: {where} must be a plain value to be written into a config, but is {value!r}.")
    line = opening + ", ".join(begin + _written(item, at, 0, -(10**6)) for begin, item, at in parts) + closing
    if indent < 0 or column + len(line) <= _WIDTH:
        return line
    inner = indent + 4
    rows = [begin + _written(item, at, inner + len(begin) + 1, inner) for begin, item, at in parts]
    return opening + "\n" + "".join(f"{' ' * inner}{row},\n" for row in rows) + " " * indent + closing.lstrip(",")
