"""The tutorial, as printed, on a copy of real data with other names, ids and order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPLIT = ROOT / "docs/examples/split_coco.py"
# Blood cells in COCO format (MIT); not part of the repository.
DATA = Path(os.environ.get("HEADWAY_BCCD", ROOT.parent / "shared/data/bccd"))


def coco(folder: Path, names: list[str]) -> Path:
    """One box an image, without what some labelling tools leave out."""
    images = [{"id": 90 - n, "file_name": name, "width": 64, "height": 48} for n, name in enumerate(names)]
    boxes = [{"id": n, "image_id": 90 - n, "category_id": 7, "bbox": [1, 2, 10, 20]} for n in range(len(names))]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "cell"}]}))
    return path


def split(path: Path, *options: str) -> tuple[dict, dict]:
    subprocess.run([sys.executable, str(SPLIT), str(path), *options], check=True, capture_output=True)
    train, val = (json.loads((path.parent / f"{name}.json").read_text()) for name in ("train", "val"))
    return train, val


def test_the_split(tmp_path: Path) -> None:
    names = [f"{number:02d}.jpg" for number in range(20)]
    train, val = split(coco(tmp_path, names), "--val", "0.25")
    assert (len(train["images"]), len(val["images"])) == (15, 5)
    assert sorted(image["file_name"] for part in (train, val) for image in part["images"]) == names
    for part in (train, val):
        assert {box["image_id"] for box in part["annotations"]} == {image["id"] for image in part["images"]}
        assert all(box["area"] == 200 and box["iscrowd"] == 0 for box in part["annotations"])
        assert part["categories"] == [{"id": 7, "name": "cell"}]
    again = split(tmp_path / "annotations.json", "--val", "0.25")
    assert again == (train, val)


def test_groups_stay_together(tmp_path: Path) -> None:
    names = [f"plate{plate}_{shot}.jpg" for plate in range(8) for shot in range(3)]
    train, val = split(coco(tmp_path, names), "--group", "_")
    plates = [{image["file_name"].partition("_")[0] for image in part["images"]} for part in (train, val)]
    assert plates[0].isdisjoint(plates[1])
    assert (len(train["images"]), len(val["images"])) == (18, 6)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the blood cells are not at {DATA}; name them in HEADWAY_BCCD")
def test_every_command_as_printed(tmp_path: Path) -> None:
    """From one COCO file of a labelling tool to a bundle that was verified and run."""
    work = tmp_path / "cells"
    script = [sys.executable, str(Path(__file__).with_name("tutorial.py")), str(DATA), str(work)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Verified: " in done.stdout
    assert (work / "bundles/cells/receipt.json").is_file()
    assert list((work / "pictures").glob("*.png"))
