"""A bundle's own copy of the families' network code, which needs nothing but torch, mmcv and mmdet.

mmdet finds classes by one global name each, and Python modules too. So that several bundles, also of different
versions of Headway, and Headway itself can live in one process, both names end with a digest of the code: equal code
has equal names and is loaded once, different code never meets.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spaces.errors import HeadwayError
from spaces.registry import packages

MAY_IMPORT = frozenset({"torch", "torchvision", "mmcv", "mmdet", "mmengine", "numpy"})


@dataclass(frozen=True)
class Heads:
    """Network code, ready to be written.

    Attributes:
        package: Name of the Python package, ``heads_1a2b3c4d``; empty where a design needs none.
        files: Text by file name within the package.
        names: From the names that types have in Headway to those in the bundle.
    """

    package: str
    files: Mapping[str, str]
    names: Mapping[str, str]

    def rename(self, value: Any) -> Any:
        """Copies a part of a config with the types of the bundle: ``type='ComposedHead_1a2b3c4d'``."""
        if isinstance(value, Mapping):
            return {
                key: self.names.get(item, item)
                if str(key).endswith("type") and isinstance(item, str)
                else self.rename(item)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return type(value)(self.rename(item) for item in value)
        return value


def copy_heads(modules: Iterable[str]) -> Heads:
    """Copies modules of families and those of their packages and of ``spaces`` that they import.

    Args:
        modules: Import paths, ``spaces.slimhead.modules``.

    Raises:
        HeadwayError: A module does not exist, imports what a bundle may not need, or registers a class in a way that
            cannot be renamed.
    """
    sources = _closure(modules)
    if not sources:
        return Heads("", {}, {})
    digest = sha256()
    for name in sorted(sources):
        digest.update(f"{name}\0{sources[name].text}\0".encode())
    tag = digest.hexdigest()[:8]
    registered = {name for source in sources.values() for name in source.registered}
    names = {name: f"{name}_{tag}" for name in sorted(registered)}
    files = {f"{_stem(name)}.py": _copied(name) + source.renamed(names) for name, source in sources.items()}
    stems = ", ".join(sorted(_stem(name) for name in sources))
    files["__init__.py"] = f"{_DOC}\n\nfrom . import {stems}  # noqa: F401\n"
    return Heads(f"heads_{tag}", files, names)


_DOC = '"""Network code of this bundle. Importing it registers its classes in mmdet\'s MODELS."""'


def _copied(module: str) -> str:
    source = f"Headway's {module} (Apache-2.0)" if module.startswith("spaces.") else module
    return f"# Copied from {source}; the names in the registry end with a digest of the code.\n"


def _closure(modules: Iterable[str]) -> dict[str, _Source]:
    found: dict[str, _Source] = {}
    waiting = list(dict.fromkeys(modules))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _Source(name)
            waiting += found[name].imported
    return found


def _stem(module: str) -> str:
    """File name in the package: ``spaces.modules`` is modules, ``spaces.dcn.modules`` dcn, ``spaces.pod.x`` pod_x."""
    parts = module.removeprefix("spaces.").split(".")
    return "_".join(parts[:-1] if len(parts) > 1 and parts[-1] == "modules" else parts)


class _Source:
    """One module: its text, what it imports of families' packages and what it registers."""

    def __init__(self, module: str) -> None:
        self._module = module
        spec = find_spec(module)
        if spec is None or spec.origin is None or Path(spec.origin).name == "__init__.py":
            raise HeadwayError(f"bundle: {module} must be a module with network code, but there is none.")
        self.text = Path(spec.origin).read_text(encoding="utf-8")
        self._tree = ast.parse(self.text)
        self.imported: list[str] = []
        self.registered: set[str] = set()
        self._imports: list[tuple[ast.ImportFrom, str]] = []
        self._decorators: list[tuple[ast.Call, str]] = []
        for node in ast.walk(self._tree):
            self._read(node)
        calls = (node for node in ast.walk(self._tree) if isinstance(node, ast.Call) and _registers(node))
        for call in calls:
            if call not in [known for known, _ in self._decorators]:
                raise self._error(call, "registers a class other than by a decorator with one name")

    def renamed(self, names: Mapping[str, str]) -> str:
        """The text with relative imports and with ``names`` in the place of what is registered."""
        edits: list[tuple[ast.AST, str]] = []
        for imported, target in self._imports:
            text = str(ast.get_source_segment(self.text, imported))
            edits.append((imported, re.sub(r"^from\s+\S+\s+import", f"from .{_stem(target)} import", text)))
        hidden: set[ast.AST] = set()
        for call, name in self._decorators:
            assert isinstance(call.func, ast.Attribute)
            registry = ast.get_source_segment(self.text, call.func.value)
            edits.append((call, f"{registry}.register_module(name={names[name]!r}, force=True)"))
            hidden.update(ast.walk(call))
        for node in ast.walk(self._tree):
            if isinstance(node, ast.JoinedStr):  # its parts have no places of their own before Python 3.12
                hidden.update(ast.walk(node))
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Constant) and node not in hidden and node.value in names:
                edits.append((node, repr(names[str(node.value)])))
        return _edited(self.text, edits)

    def _read(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self._allow(node, alias.name)
        elif isinstance(node, ast.ImportFrom):
            package = self._module.split(".")[: -node.level] if node.level else []
            target = ".".join([*package, *([node.module] if node.module else [])])
            if target.partition(".")[0] in packages() and "." in target:
                self.imported.append(target)
                self._imports.append((node, target))
            else:
                self._allow(node, target)
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and _registers(decorator):
                    name = self._name(decorator, node.name)
                    self.registered.add(name)
                    self._decorators.append((decorator, name))

    def _name(self, call: ast.Call, default: str) -> str:
        given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "name")]
        if not given:
            return default
        if isinstance(given[0], ast.Constant) and isinstance(given[0].value, str):
            return given[0].value
        raise self._error(call, "registers a class under something else than one name")

    def _allow(self, node: ast.Import | ast.ImportFrom, module: str) -> None:
        top = module.partition(".")[0]
        if top not in MAY_IMPORT and top not in sys.stdlib_module_names:
            raise self._error(node, f"imports {module}; a bundle may need {', '.join(sorted(MAY_IMPORT))} only")

    def _error(self, node: ast.expr | ast.stmt, what: str) -> HeadwayError:
        return HeadwayError(f"bundle: {self._module} cannot go into a bundle: line {node.lineno} {what}.")


def _registers(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "register_module"


def _edited(text: str, edits: Iterable[tuple[Any, str]]) -> str:
    """Replaces the text of nodes, which must not overlap."""
    raw = text.encode()
    starts = [0]
    for line in raw.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    places = [
        (starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset, new)
        for node, new in edits
    ]
    for begin, end, new in sorted(places, reverse=True):
        raw = raw[:begin] + new.encode() + raw[end:]
    return raw.decode()
