"""The bundles of a front in an environment that has mmdet and nothing of Headway.

The environment is made once and kept in Headway's cache. ``HEADWAY_SHIP`` may name studies that were run, separated by
colons; their fronts are exported and tried as well.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.bundle.data import read_validation, recall, some_images
from analysis.bundle.receipt import read_receipt
from analysis.verify import TOLERANCE, verify_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("HEADWAY_CACHE") or "~/.cache/headway").expanduser()
_VERSION = re.compile(r"^(\w+_version)=(\S+)$", re.M)


@pytest.fixture(scope="module")
def fresh() -> Path:
    """The interpreter of an environment with torch, mmcv, mmengine and mmdet as deploy/setup.sh installs them."""
    import torch

    pinned = dict(_VERSION.findall((ROOT / "deploy/setup.sh").read_text()))
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    key = f"mmcv-{pinned['mmcv_version']}-torch-{torch.__version__}-{python}".replace("+", "-")
    wheels = CACHE / "wheels" / key
    if not any(wheels.glob("onedl_mmcv-*.whl")):
        pytest.skip(f"no compiled mmcv in {wheels}; 'make setup' makes it")
    folder = CACHE / "fresh" / key
    interpreter = folder / "bin/python"
    if not (folder / "whole").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        mmcv = next(wheels.glob("onedl_mmcv-*.whl"))
        steps = (
            ["setuptools>=80,<81", "wheel", "numpy==2.2.6", "cython", "psutil"],
            [f"torch=={torch.__version__.partition('+')[0]}"],
            [str(mmcv), f"onedl-mmengine=={pinned['mmengine_version']}"],
            ["--no-build-isolation", f"onedl-mmdetection=={pinned['mmdet_version']}"],
        )
        for packages in steps:
            subprocess.run([*pip, *packages], check=True, cwd=folder)
        (folder / "whole").touch()
    return interpreter


def headway(*arguments: str, cwd: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "search.cli", *arguments], cwd=cwd, env=environment, check=True)


@pytest.fixture(scope="module")
def fronts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Exported fronts: that of a short demo, and those of the studies that ``HEADWAY_SHIP`` names."""
    folder = tmp_path_factory.mktemp("fresh")
    studies = [word for word in os.environ.get("HEADWAY_SHIP", "").split(":") if word]
    if not studies:
        sets = [f"--set={item}" for item in ("budget.trials=4", "budget.epochs=4", "data.digits.train=300")]
        headway("demo", *sets, "--studies", str(folder / "studies"), cwd=folder)
        studies = [str(folder / "studies/demo")]
    out = [folder / "bundles" / Path(study).name for study in studies]
    for study, place in zip(studies, out, strict=True):
        headway("export", study, "--all", "--out", str(place), cwd=folder)
    return out


def alone(python: Path, program: str, cwd: Path) -> str:
    done = subprocess.run(
        [str(python), "-I", "-W", "ignore", "-c", program], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_of_headway_is_there(fresh: Path, tmp_path: Path) -> None:
    names = ["search", "spaces", "trainers", "analysis", "ray", "optuna", "mlflow", "pydantic", "moocore", "plotly"]
    program = f"import importlib.util\nprint([n for n in {names!r} if importlib.util.find_spec(n)])"
    assert alone(fresh, program, tmp_path).strip() == "[]"


def test_every_member_of_the_front_gives_the_accuracy_of_its_receipt(fresh: Path, fronts: list[Path]) -> None:
    rows: list[dict[str, Any]] = []
    for front in fronts:
        index = json.loads((front / "index.json").read_text())
        assert index["bundles"] and all(item["state"] == "written" for item in index["bundles"])
        for item in index["bundles"]:
            found = verify_bundle(front / item["folder"], python=fresh, latency=False)
            assert found.ok, str(found)
            assert found.found == pytest.approx(found.expected, abs=TOLERANCE)
            assert found.found is not None
            rows.append({"bundle": f"{front.name}/{item['folder']}", "receipt": found.expected, "fresh": found.found})
            print(json.dumps(rows[-1]), flush=True)
    assert max(row["receipt"] for row in rows) > 0


def test_the_lines_of_the_readme_run(fresh: Path, fronts: list[Path], tmp_path: Path) -> None:
    for front in fronts:
        for item in json.loads((front / "index.json").read_text())["bundles"]:
            bundle = front / item["folder"]
            code = re.search(r"```python\n(.*?)```", (bundle / "README.md").read_text(), re.S)
            place = recall(read_receipt(bundle)["data"]["validation_fingerprint"])
            assert code is not None and place is not None
            image = place[1] / some_images(read_validation(*place).content, 1)[0]["file_name"]
            lines = code[1].replace("PATH/TO/THIS/FOLDER", str(bundle)).replace("PATH/TO/AN/IMAGE.jpg", str(image))
            alone(fresh, f"{lines}\nassert len(found) > 0\n", tmp_path)
