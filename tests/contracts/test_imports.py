"""Who may import what, read from the source: the borders of DESIGN.md and STYLE.md."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("spaces", "trainers", "analysis", "search")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
# Network code: the mixins of a family, and what CONTRIBUTING.md lists beside them.
MODULES = (
    "spaces/modules.py",
    "spaces/products.py",
    "spaces/autocast.py",
    "spaces/*/modules.py",
    "spaces/*/backbones.py",
    "spaces/*/detectors.py",
    "spaces/*/neck.py",
    "spaces/*/sparse.py",
    "spaces/*/sampling.py",
)
DETECTORS = ("mmdet", "mmcv", "mmengine", "torch", "torchvision")

# Started as programs of their own with nothing of Headway importable; never imported.
ALONE = ("analysis/bundle/alone.py", "analysis/bundle/served.py")
# What the first of them loads by its path.
GRAPH = "analysis/bundle/graph/*"
# An import, and the files that alone may have it.
ONLY_IN = {
    "ray": ("search/ray_adapter/*",),
    "mlflow": ("search/tracking*",),
    "optuna": ("search/*",),
    "mmdet": ("trainers/*", *ALONE, GRAPH, *MODULES),
    "mmcv": ("trainers/*", GRAPH, *MODULES),
    "mmrotate": ("trainers/rotated.py",),
    "mmengine": ("trainers/*", *ALONE, GRAPH, *MODULES),
}
NEVER_IN = {
    "ray": ("trainers/*", "spaces/*", "analysis/*", "search/sampler.py", "search/rungs.py", "search/store.py"),
    **dict.fromkeys(("mmdet", "mmcv"), ("search/*",)),
    **dict.fromkeys(DETECTORS, ("spaces/*.py",)),
}
# What each package may know of the others: a one-way road.
MAY_KNOW = {
    "spaces": {"spaces"},
    "trainers": {"spaces", "trainers"},
    "analysis": {"spaces", "trainers", "analysis"},
    "search": {"spaces", "trainers", "analysis", "search"},
}


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imports(source: str, file: str) -> Iterator[tuple[str, int]]:
    """All imported modules with their lines, those inside functions and ``import_module("...")`` included."""
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = file.removesuffix(".py").split("/")[: -node.level] if node.level else []
            yield ".".join([*package, *([node.module] if node.module else [])]), node.lineno
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value), node.lineno


def problems(source: str, file: str) -> list[str]:
    found = []
    package = file.partition("/")[0]
    for module, line in imports(source, file):
        top = module.partition(".")[0]
        where = f"{file}:{line} imports {module}"
        if top in ONLY_IN and not any(fnmatch(file, pattern) for pattern in ONLY_IN[top]):
            found.append(f"{where}; only {', '.join(ONLY_IN[top])} may")
        elif any(fnmatch(file, pattern) for pattern in NEVER_IN.get(top, ())) and not is_module(file):
            found.append(f"{where}, which it must not")
        elif top in PACKAGES and top not in MAY_KNOW[package]:
            found.append(f"{where}; {package} may know {', '.join(sorted(MAY_KNOW[package]))}")
        elif package == "spaces" and not is_module(file) and top not in sys.stdlib_module_names | {"spaces"}:
            found.append(f"{where}; spaces is standard library only but for modules.py")
    return found


def is_module(file: str) -> bool:
    return any(fnmatch(file, pattern) for pattern in MODULES)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_borders(file: Path) -> None:
    assert problems(file.read_text(), name_of(file)) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("search/engine.py", "import ray"),
        ("search/cli.py", "def f():\n    from ray import tune"),
        ("search/store.py", "import mlflow"),
        ("search/engine.py", "import mmdet.apis"),
        ("trainers/detector.py", "import importlib\nimportlib.import_module('ray')"),
        ("trainers/detector.py", "import search.engine"),
        ("trainers/config.py", "from mmrotate.registry import MODELS"),
        ("trainers/detector.py", "from analysis import record"),
        ("analysis/plots.py", "from search import store"),
        ("analysis/export.py", "import mmengine"),
        ("spaces/knob.py", "import numpy"),
        ("spaces/slimhead/patch.py", "import torch"),
        ("spaces/slimhead/knobs.py", "import pydantic"),
        ("spaces/slimhead/modules.py", "import trainers.cost"),
    ],
)
def test_the_check_can_fail(file: str, line: str) -> None:
    assert len(problems(line, file)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("search/ray_adapter/tuner.py", "import ray.tune"),
        ("search/ray_adapter/gate.py", "import ray"),
        ("search/tracking.py", "import mlflow"),
        ("search/engine.py", "from analysis import record"),
        ("trainers/detector.py", "import mmdet, torch, spaces.patching"),
        ("spaces/dcn/modules.py", "from mmcv.ops import DeformConv2dPack"),
    ],
)
def test_the_check_can_pass(file: str, line: str) -> None:
    assert problems(line, file) == []


def test_all_packages_were_read() -> None:
    assert {name_of(file).partition("/")[0] for file in FILES} == set(PACKAGES)
