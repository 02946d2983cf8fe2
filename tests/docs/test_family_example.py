"""The worked example of a family in a package of its own (docs/examples/separable): installed, used, tested."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/separable"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes in which the package is installed, and this checkout imported."""
    folder = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "separable"
    shutil.copytree(EXAMPLE, source)  # a build leaves folders beside the source
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--target", folder, source], check=True)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def run(arguments: list[str], environment: Mapping[str, str], cwd: Path) -> str:
    done = subprocess.run(arguments, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def headway(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "search.cli", *arguments]


def test_the_commands_know_it(installed: dict[str, str], tmp_path: Path) -> None:
    listed = json.loads(run(headway("families", "--json"), installed, tmp_path))
    found = next(family for family in listed if family["name"] == "separable")
    assert [knob["name"] for knob in found["knobs"]] == ["placement", "kernel"]
    patch = ["patch", "--base", "headway::gfl_tiny", "--set", "separable.placement=cls", "--out", "separable.py"]
    run(headway(*patch), installed, tmp_path)
    profile = ["profile", "separable.py", "--against", "headway::gfl_tiny", "--size", "256x256", "--json"]
    document = json.loads(run(headway(*profile), installed, tmp_path))
    saved = 2 * 5440 * (9 * 32**2 - 9 * 32 - 32**2)  # two convolutions, 5,440 sites
    assert document["against"]["macs"]["total"] - document["macs"]["total"] == saved


def test_its_own_tests(installed: dict[str, str], tmp_path: Path) -> None:
    run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE)], installed, tmp_path)


def test_a_bundle_takes_its_code_along(installed: dict[str, str], tmp_path: Path) -> None:
    code = """
import json
from analysis.bundle.config import own_modules
from analysis.bundle.heads import copy_heads
config = {"custom_imports": {"imports": ["plain_backbone", "spaces.modules", "headway_separable.modules"]}}
ours, needs = own_modules(config)
heads = copy_heads(ours)
print(json.dumps([needs, sorted(heads.files), heads.files["headway_separable.py"]]))
"""
    needs, files, text = json.loads(run([sys.executable, "-c", code], installed, tmp_path))
    assert needs == ["plain_backbone"]
    assert files == ["__init__.py", "headway_separable.py", "modules.py"]
    assert "from .modules import dense_head" in text
    assert "import spaces" not in text
    assert "from spaces" not in text


@pytest.mark.slow
def test_the_contract_suite_takes_it_in(installed: dict[str, str]) -> None:
    suite = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contracts/test_families.py"]
    told = run([*suite, "-k", "separable"], installed, ROOT)
    assert " passed" in told
