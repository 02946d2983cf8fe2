"""The embedded data set: what is in it, that its labels are right, and that its cache can be relied on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spaces.errors import UserError
from trainers import digits
from trainers.data import Split, check_data
from trainers.digits import MAX_SHARE, MAX_SIDE, MIN_SIDE, MIN_VISIBLE, DigitsPaths, digit_indices, write_digits

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> DigitsPaths:
    return write_digits(tmp_path_factory.mktemp("cache"), train=60, val=20)


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def hashes(folder: Path) -> dict[str, str]:
    """Gives the hash of each file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_set_passes_the_check_of_data(paths: DigitsPaths) -> None:
    report = check_data(
        Split(paths.train_annotations, paths.train_images),
        Split(paths.val_annotations, paths.val_images),
        paths.classes,
        deep=True,
    )
    assert report.classes == paths.classes == tuple("0123456789")
    assert report.findings == ()
    assert (report.train.images, report.val.images) == (60, 20)
    assert min(report.train.classes.values()) >= 10


def test_pycocotools_reads_it(paths: DigitsPaths, capsys: pytest.CaptureFixture[str]) -> None:
    coco = pytest.importorskip("pycocotools.coco").COCO(paths.train_annotations)
    capsys.readouterr()
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(paths.classes)


def test_sizes_are_in_range_and_most_are_small(paths: DigitsPaths) -> None:
    boxes = np.asarray([item["bbox"] for item in read(paths.train_annotations)["annotations"]])
    longer = boxes[:, 2:].max(axis=1)
    assert longer.min() == MIN_SIDE
    assert 90 <= longer.max() <= MAX_SIDE
    assert (longer < 16).mean() > 0.2
    assert 0.5 < (boxes[:, 2] * boxes[:, 3] < 32**2).mean() < 0.8


@pytest.mark.parametrize("size", [(32, 32), (48, 200), (320, 240)])
def test_sizes_follow_the_image(tmp_path: Path, size: tuple[int, int]) -> None:
    paths = write_digits(tmp_path, train=12, val=2, size=size)
    content = read(paths.train_annotations)
    assert {(item["width"], item["height"]) for item in content["images"]} == {size}
    with Image.open(paths.train_images / content["images"][0]["file_name"]) as image:
        assert image.size == size
    boxes = np.asarray([item["bbox"] for item in content["annotations"]])
    assert len({item["image_id"] for item in content["annotations"]}) == 12
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= size).all()
    assert boxes[:, 2:].max(axis=1).min() >= MIN_SIDE
    assert boxes[:, 2:].max() <= min(MAX_SIDE, MAX_SHARE * min(size))


def test_splits_share_no_digit_and_labels_are_those_of_scikit_learn(paths: DigitsPaths) -> None:
    from sklearn.datasets import load_digits

    target = load_digits().target
    used = {}
    for split, path in (("train", paths.train_annotations), ("val", paths.val_annotations)):
        items = read(path)["annotations"]
        used[split] = {item["digit"] for item in items}
        assert used[split] <= set(digit_indices(split).tolist())
        assert all(target[item["digit"]] == item["category_id"] - 1 for item in items)
    assert not used["train"] & used["val"]
    both = np.concatenate([digit_indices("train"), digit_indices("val")])
    assert sorted(both) == list(range(len(target)))
    assert set(target[digit_indices("val")]) == set(range(10))
    with pytest.raises(UserError, match=r"digits\.split: must be train or val, but got 'test'"):
        digit_indices("test")


def test_splits_share_no_photograph_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs whose left side is black and whose right side is white tell the splits' backgrounds apart."""
    marked = np.zeros((427, 640, 3), np.uint8)
    marked[:, int(0.65 * 640) :] = 255
    photos = (Image.fromarray(marked),)
    for split, level in (("train", 0), ("val", 255)):
        for number in range(30):
            background = digits._background((160, 160), split, np.random.default_rng(number), photos)
            assert np.ptp(background) < 1
            assert (float(background.mean()) > 0) == (level > 0)


def test_boxes_are_tight_around_ink_that_is_mostly_in_sight() -> None:
    sources = digits._load_sources()
    overlapped = 0
    for number in range(40):
        scene = digits._compose((160, 160), "train", np.random.default_rng(number), sources)
        labelled = scene.labelled()
        assert len(labelled) == sum(item.label >= 0 for item in scene.items) >= 1
        for item, (x, y, w, h) in labelled:
            index = next(place for place, other in enumerate(scene.items) if other is item)
            rows, columns = np.nonzero(scene.owner == index)
            assert (x, y) == (columns.min(), rows.min())
            assert (x + w, y + h) == (columns.max() + 1, rows.max() + 1)
            assert len(rows) == item.visible >= MIN_VISIBLE * item.ink.sum()
            overlapped += item.visible < item.ink.sum()
    assert overlapped > 10


def test_digits_stand_out_from_what_is_around_them() -> None:
    """Ink and the background around it are far apart in brightness, for nearly every digit."""
    sources = digits._load_sources()
    distances = []
    for number in range(40):
        rng = np.random.default_rng(number)
        scene = digits._compose((160, 160), "val", rng, sources)
        pixels = scene.pixels() @ np.asarray([0.299, 0.587, 0.114])
        for item, (x, y, w, h) in scene.labelled():
            mine = scene.owner == next(place for place, other in enumerate(scene.items) if other is item)
            around = np.zeros_like(mine)
            around[max(0, y - 2) : y + h + 2, max(0, x - 2) : x + w + 2] = True
            around &= scene.owner < 0
            if around.sum() > 20:
                distances.append(abs(pixels[mine].mean() - pixels[around].mean()))
    assert len(distances) > 150
    assert np.median(distances) > 80
    assert np.quantile(distances, 0.05) > 30


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, paths: DigitsPaths) -> None:
    again = write_digits(tmp_path, train=60, val=20)
    assert again.train_annotations.parent.name == paths.train_annotations.parent.name
    assert hashes(again.train_annotations.parent) == hashes(paths.train_annotations.parent)


def test_more_scenes_begin_with_the_same_ones(tmp_path: Path, paths: DigitsPaths) -> None:
    few = write_digits(tmp_path, train=5, val=1)
    assert few.train_annotations.parent.name != paths.train_annotations.parent.name
    assert hashes(few.train_images).items() <= hashes(paths.train_images).items()


def test_seed_and_size_change_the_set(tmp_path: Path) -> None:
    sets = [
        write_digits(tmp_path, train=2, val=1),
        write_digits(tmp_path, train=2, val=1, seed=1),
        write_digits(tmp_path, train=2, val=1, size=(160, 161)),
    ]
    shown = Counter(digest for each in sets for digest in hashes(each.train_annotations.parent).values())
    assert set(shown.values()) == {1}


def test_the_cache_is_read_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "here"))
    first = write_digits(train=2, val=1)
    assert first.train_annotations.is_relative_to(tmp_path / "here")
    monkeypatch.setattr(digits, "_write_set", lambda *_: pytest.fail("written twice"))
    assert write_digits(train=2, val=1) == first
    monkeypatch.delenv("HEADWAY_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert digits._cache_root(None) == tmp_path / ".cache" / "headway"


@pytest.mark.parametrize("lost", ["train.json", "val/000001.png", "empty"])
def test_a_set_with_files_missing_is_written_anew(tmp_path: Path, lost: str) -> None:
    folder = write_digits(tmp_path, train=2, val=1).train_annotations.parent
    whole = hashes(folder)
    if lost == "empty":
        (folder / "train" / "000002.png").write_bytes(b"")
    else:
        (folder / lost).unlink()
    write_digits(tmp_path, train=2, val=1)
    assert hashes(folder) == whole
    assert list(tmp_path.iterdir()) == [folder]


def test_a_writer_that_dies_leaves_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(digits._Scene, "pixels", die)
        with pytest.raises(KeyboardInterrupt):
            write_digits(tmp_path, train=2, val=1)
    assert not list(tmp_path.glob("digits-*"))
    assert write_digits(tmp_path, train=2, val=1).val_annotations.is_file()


def test_processes_may_write_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from trainers.digits import write_digits\n"
        "print(write_digits(pathlib.Path(sys.argv[1]), train=30, val=5).train_annotations.parent)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    (folder,) = {Path(out.strip()) for out, _ in ended}
    assert list(tmp_path.iterdir()) == [folder]
    alone = write_digits(tmp_path / "alone", train=30, val=5)
    assert hashes(folder) == hashes(alone.train_annotations.parent)


def test_a_set_that_another_process_finished_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_digits(tmp_path, train=2, val=1).train_annotations.parent
    kept = (folder / "train.json").stat().st_ino
    digits._write_set(folder, {"train": 2, "val": 1}, (160, 160), 0)
    assert (folder / "train.json").stat().st_ino == kept
    assert list(tmp_path.iterdir()) == [folder]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"digits cache: the folder must be writable, but '.*file/deep' is not"):
        write_digits(tmp_path / "file" / "deep", train=1, val=1)


def test_a_read_only_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(digits.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(UserError, match=r"is not \(Permission denied\); name another one in HEADWAY_CACHE"):
        write_digits(tmp_path, train=1, val=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, r"digits\.train: must be an integer of at least 1, but got 0"),
        ({"val": -1}, r"digits\.val: must be an integer of at least 1, but got -1"),
        ({"seed": -1}, r"digits\.seed: must be an integer of at least 0, but got -1"),
        ({"size": (160, 31)}, r"digits\.size: must be integers in \[32, 2048\], but got 31"),
        ({"size": (2049, 160)}, "but got 2049"),
        ({"size": (160.0, 160)}, r"but got 160\.0"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_digits(tmp_path, **arguments)
