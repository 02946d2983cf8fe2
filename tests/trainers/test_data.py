"""The check of a user's data: every refusal, every finding, known counts, and the real data where it is there."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spaces.errors import UserError
from trainers.data import DataReport, Split, check_data

ROOT = Path(__file__).parents[2]
BCCD = Path(os.environ.get("HEADWAY_BCCD", ROOT.parent / "shared" / "data" / "bccd"))

Content = dict[str, Any]


def annotation(number: int, image: int, category: int, bbox: list[float], **more: Any) -> Content:
    area = bbox[2] * bbox[3]
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "area": area, "iscrowd": 0} | more


def content(split: str) -> Content:
    """Two images of 100 x 80 px with a small cat, and a medium and a large dog."""
    return {
        "images": [{"id": n, "file_name": f"{split}{n}.png", "width": 100, "height": 80} for n in (1, 2)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            annotation(1, 1, 3, [0, 0, 31, 33]),
            annotation(2, 1, 7, [10, 10, 32, 32]),
            annotation(3, 2, 7, [0, 0, 100, 80], area=96**2),
        ],
    }


class Data:
    """A data set of two splits on disk, to be broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train, self.val = content("train"), content("val")
        (folder / "images").mkdir()
        for name in ("train1", "train2", "val1", "val2"):
            self.draw(f"{name}.png")

    def draw(self, name: str, size: tuple[int, int] = (100, 80), **options: Any) -> Path:
        path = self.folder / "images" / name
        colour = tuple(name.encode()[-7:-4])
        Image.new("RGB", size, colour).save(path, **options)
        return path

    def check(self, classes: list[str] | None = None, **options: Any) -> DataReport:
        for name, value in (("train", self.train), ("val", self.val)):
            (self.folder / f"{name}.json").write_text(json.dumps(value))
        return self.check_files(classes, **options)

    def check_files(self, classes: list[str] | None = None, **options: Any) -> DataReport:
        train, val = (Split(self.folder / f"{name}.json", self.folder / "images") for name in ("train", "val"))
        return check_data(train, val, classes, **options)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


def findings(report: DataReport) -> dict[tuple[str, str], int]:
    return {(finding.split, finding.code): finding.count for finding in report.findings}


@pytest.mark.parametrize("deep", [False, True])
def test_clean_data_is_counted(data: Data, deep: bool) -> None:
    report = data.check(deep=deep)
    assert report.classes == ("cat", "dog")
    assert report.findings == ()
    for split in (report.train, report.val):
        assert (split.images, split.annotations, split.boxes) == (2, 3, 3)
        assert (split.crowd, split.images_without_boxes) == (0, 0)
        assert split.classes == {"cat": 1, "dog": 2}
        assert split.sizes == {"small": 1, "medium": 1, "large": 1}
    assert json.loads(json.dumps(report.to_json())) == report.to_json()
    assert report.to_json()["classes"] == ["cat", "dog"]
    assert "train: 2 images, 3 boxes (1 small, 1 medium, 1 large)" in str(report)
    assert str(report) == "\n".join(report.summary())


def change(*path: Any, to: Any) -> Callable[[Content], None]:
    """Builds a change of one value of a file's content."""

    def apply(value: Content) -> None:
        target: Any = value
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = to

    return apply


def drop(*path: Any) -> Callable[[Content], None]:
    """Builds the removal of one key of a file's content."""

    def apply(value: Content) -> None:
        target: Any = value
        for step in path[:-1]:
            target = target[step]
        del target[path[-1]]

    return apply


NAN, INFINITY = float("nan"), float("inf")
FATAL: dict[str, tuple[Callable[[Content], None], str]] = {
    "no images key": (drop("images"), "COCO's format for detection.*has none under images"),
    "no annotations key": (drop("annotations"), "has none under annotations"),
    "categories no list": (change("categories", to={}), "has none under categories"),
    "image no object": (change("images", 0, to="a.png"), "has none under images"),
    "no images": (change("images", to=[]), "at least one of its images, but lists none"),
    "no categories": (change("categories", to=[]), "at least one of its categories, but lists none"),
    "no annotations": (change("annotations", to=[]), "at least one usable box.*cat, dog.*none among 0"),
    "image id twice": (
        change("images", 1, "id", to=1),
        "ids of images must be unique, but 1 is used more than once: 1",
    ),
    "image id missing": (drop("images", 0, "id"), "ids of images must be all integers or all strings.*None"),
    "image ids mixed": (change("images", 1, "id", to="2"), "must be all integers or all strings, but 1 is not: '2'"),
    "annotation id twice": (change("annotations", 1, "id", to=1), "ids of annotations must be unique.*: 1$"),
    "annotation id no integer": (change("annotations", 1, "id", to=[4]), r"must be all integers, but 1 is not: \[4\]"),
    "category id twice": (change("categories", 1, "id", to=3), "ids of categories must be unique.*: 3$"),
    "category name twice": (change("categories", 1, "name", to="cat"), "names of categories must be unique.*'cat'"),
    "category name missing": (drop("categories", 1, "name"), "names of categories must be words.*None"),
    "file name missing": (drop("images", 1, "file_name"), "must have a file_name, a word, but 1 is without: 2"),
    "file name absolute": (change("images", 1, "file_name", to="/etc/a.png"), "stay in the image folder.*'/etc/a.png'"),
    "file name climbs": (change("images", 1, "file_name", to="a/../../b.png"), "1 is outside: 'a/../../b.png'"),
    "file name on a drive": (change("images", 1, "file_name", to="C:\\b.png"), "1 is outside"),
    "width zero": (
        change("images", 1, "width", to=0),
        "width and height of images must be positive.*2.png with 0 x 80",
    ),
    "height missing": (drop("images", 1, "height"), "must be positive numbers, but 1 is not.*100 x None"),
    "image id unknown": (change("annotations", 1, "image_id", to=9), "the id of an image, but 1 is not: 9 of annot"),
    "image id of another kind": (
        change("annotations", 1, "image_id", to="1"),
        "image, but 1 is not: '1' of annotation 2",
    ),
    "image id a list": (change("annotations", 1, "image_id", to=[1]), r"\[1\] of annotation 2"),
    "category id unknown": (change("annotations", 1, "category_id", to=4), r"a category \(3, 7\), but 1 is not: 4 of"),
    "bbox missing": (drop("annotations", 1, "bbox"), "bbox of annotations must be 4 finite numbers.*None of"),
    "bbox of three": (change("annotations", 1, "bbox", to=[1, 2, 3]), "4 finite numbers.*of annotation 2"),
    "bbox of words": (change("annotations", 1, "bbox", to=["1", 2, 3, 4]), "4 finite numbers"),
    "bbox not a number": (change("annotations", 1, "bbox", to=[NAN, 2, 3, 4]), "4 finite numbers.*nan"),
    "bbox infinite": (change("annotations", 1, "bbox", to=[0, 2, INFINITY, 4]), "4 finite numbers.*inf"),
    "bbox past floats": (change("annotations", 1, "bbox", to=[0, 2, 10**400, 4]), "4 finite numbers"),
    "area missing": (drop("annotations", 1, "area"), "area of annotations must be a number.*None of annotation 2"),
    "file missing": (
        change("images", 1, "file_name", to="b.png"),
        "the 2 images listed must be files.*1 is missing: b",
    ),
    "file a folder": (change("images", 1, "file_name", to="."), "1 is missing"),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("case", FATAL)
def test_what_cannot_be_used_is_refused(data: Data, split: str, case: str) -> None:
    apply, message = FATAL[case]
    apply(getattr(data, split))
    with pytest.raises(UserError, match=message) as caught:
        data.check()
    assert str(caught.value).startswith(f"data.{split}.")
    assert "\n" not in str(caught.value)


def test_only_the_first_three_cases_are_named(data: Data) -> None:
    data.val["images"] = [data.val["images"][0] | {"id": n, "file_name": f"x{n}.png"} for n in range(1, 6)]
    with pytest.raises(UserError, match=r"data\.val\.images: .*5 are missing: x1\.png, x2\.png, x3\.png, \.\.\.$"):
        data.check()


def test_iscrowd_is_needed_only_where_it_is_read(data: Data) -> None:
    for item in data.train["annotations"]:
        del item["iscrowd"]
    assert data.check().train.boxes == 3
    del data.val["annotations"][0]["iscrowd"]
    with pytest.raises(UserError, match=r"data\.val\.annotations.*iscrowd of annotations must be 0 or 1"):
        data.check()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (None, "must be a file that can be read.*No such file"),
        (b"", "must be JSON"),
        (b"{'a': 1}", "must be JSON, but it is not .*line 1 column 2"),
        (b"\xff\xfe{", "must be JSON.*utf-8"),
        (b"\xef\xbb\xbf{}", "must be JSON.*BOM"),
        (b"[" * 200_000, "must be JSON"),
        (b"[]", "COCO's format"),
        (b"null", "COCO's format"),
    ],
)
def test_files_that_are_not_coco_are_refused(data: Data, raw: bytes | None, message: str) -> None:
    data.check()
    path = data.folder / "val.json"
    if raw is None:
        path.unlink()
    else:
        path.write_bytes(raw)
    with pytest.raises(UserError, match=message) as caught:
        data.check_files()
    assert str(path) in str(caught.value)


def test_folders_that_are_not_there_are_refused(data: Data) -> None:
    data.check()
    train = Split(data.folder / "train.json", data.folder / "images")
    with pytest.raises(UserError, match=r"data\.val\.images: must be a folder, but '.*train\.json' is not"):
        check_data(train, Split(data.folder / "val.json", data.folder / "train.json"))
    with pytest.raises(UserError, match=r"data\.train\.annotations '.*images': must be a file"):
        check_data(Split(data.folder / "images", data.folder / "images"), train)


def test_empty_files_are_refused(data: Data) -> None:
    (data.folder / "images" / "val2.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"data\.val\.images: images must not be empty files, but 1 is empty: val2"):
        data.check()


def test_a_split_of_crowds_alone_is_refused(data: Data) -> None:
    for item in data.train["annotations"]:
        item["iscrowd"] = 1
    with pytest.raises(UserError, match=r"at least one usable box.*none among 3 annotations"):
        data.check()


def test_classes_that_differ_are_refused_unless_chosen(data: Data) -> None:
    data.train["categories"].append({"id": 8, "name": "fox"})
    with pytest.raises(UserError, match=r"categories must be those of data\.train.*1 is in train only: 'fox'"):
        data.check()
    assert data.check(["cat", "dog"]).classes == ("cat", "dog")
    with pytest.raises(UserError, match=r"data\.classes \(in data\.val\.annotations\): unknown 'fox'"):
        data.check(["cat", "fox"])
    data.train["categories"].pop()
    data.val["categories"].append({"id": 8, "name": "fox"})
    with pytest.raises(UserError, match="1 is in val only: 'fox'"):
        data.check()


def test_another_order_of_categories_is_refused(data: Data) -> None:
    data.val["categories"].reverse()
    with pytest.raises(
        UserError, match=r"in the order of data\.train\.annotations, but got dog, cat, where train has cat"
    ):
        data.check()
    with pytest.raises(UserError, match="in the order"):
        data.check(["cat", "dog"])
    assert data.check(["dog"]).classes == ("dog",)


def test_other_ids_of_the_same_categories_are_fine(data: Data) -> None:
    for item in data.val["categories"]:
        item["id"] += 10
    for item in data.val["annotations"]:
        item["category_id"] += 10
    assert data.check().val.classes == {"cat": 1, "dog": 2}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "dogs"], "unknown 'dogs'; did you mean 'dog'.* The choices are cat or dog"),
        (["cat", "cat"], r"data\.classes: must name each class once, but 1 is named more often: 'cat'"),
        ([], r"data\.classes: must be a list of at least one class name, but got \[\]"),
        ("cat", "must be a list"),
    ],
)
def test_wrong_classes_are_refused(data: Data, classes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.check(classes)


def test_chosen_classes_keep_the_order_of_the_file(data: Data) -> None:
    report = data.check(["dog", "cat"])
    assert report.classes == ("cat", "dog")
    assert findings(report) == {("train", "class-order"): 2}
    report = data.check(["dog"])
    assert report.train.classes == {"dog": 2}
    assert findings(report) == {("train", "other-classes"): 1, ("val", "other-classes"): 1}


@pytest.mark.parametrize(
    ("code", "changes", "boxes"),
    [
        ("box-partly-outside", {"bbox": [-5, 10, 20, 20]}, 3),
        ("box-partly-outside", {"bbox": [90, 70, 11, 10]}, 3),
        ("box-outside", {"bbox": [100, 10, 20, 20]}, 2),
        ("box-outside", {"bbox": [-20, 10, 20, 20]}, 2),
        ("box-without-area", {"bbox": [10, 10, 0.5, 20]}, 2),
        ("box-without-area", {"bbox": [10, 10, 20, -20]}, 2),
        ("box-without-area", {"area": 0}, 2),
        ("ignored", {"ignore": 1}, 2),
        ("crowd", {"iscrowd": 1}, 2),
    ],
)
def test_boxes_that_are_odd_are_counted(data: Data, code: str, changes: Content, boxes: int) -> None:
    data.train["annotations"][1] |= changes
    report = data.check()
    assert findings(report) == {("train", code): 1}
    assert report.findings[0].examples == ("annotation 2 in train1.png",)
    assert report.train.boxes == boxes
    assert report.train.crowd == (code == "crowd")
    assert f"train: {code} x 1 (annotation 2 in train1.png): " in str(report)


def test_boxes_on_the_border_are_inside(data: Data) -> None:
    data.train["annotations"][1]["bbox"] = [67.3, 47.1, 32.7, 32.9 + 1e-9]
    assert data.check().findings == ()


def test_usable_boxes_are_those_that_mmdet_trains_on(data: Data) -> None:
    """The rules of ``CocoDataset.parse_data_info``, written down a second time."""
    boxes = [
        [x, y, w, h] for x in (-30, -5, 0, 99.5, 100) for y in (-4, 0, 80) for w in (-3, 0, 0.9, 5, 130) for h in (1, 5)
    ]
    data.train["annotations"] = [annotation(n, 1, 3, box) for n, box in enumerate(boxes, start=1)]
    expected = 0
    for x, y, w, h in boxes:
        inside = max(0, min(x + w, 100) - max(x, 0)) * max(0, min(y + h, 80) - max(y, 0))
        expected += inside > 0 and w * h > 0 and w >= 1 and h >= 1
    assert 0 < expected < len(boxes)
    assert data.check().train.boxes == expected


def test_images_that_are_odd_are_counted(data: Data) -> None:
    data.draw("tiny.png", (31, 80))
    data.train["images"] += [
        {"id": 5, "file_name": "tiny.png", "width": 31, "height": 80},
        {"id": 6, "file_name": "./train1.png", "width": 100, "height": 80},
    ]
    report = data.check(deep=True)
    assert findings(report) == {
        ("train", "image-too-small"): 1,
        ("train", "image-listed-twice"): 1,
        ("train", "image-without-boxes"): 2,
    }
    assert report.train.images_without_boxes == 2


def test_a_class_without_examples_is_named(data: Data) -> None:
    del data.val["annotations"][0]
    report = data.check()
    assert findings(report) == {("val", "class-without-examples"): 1}
    assert report.findings[0].examples == ("cat",)
    assert report.val.classes == {"cat": 0, "dog": 2}


def test_the_id_that_pycocotools_mistakes_is_named(data: Data) -> None:
    data.train["annotations"][0]["id"] = data.val["annotations"][0]["id"] = 0
    assert findings(data.check()) == {("val", "annotation-id-0"): 1}


@pytest.mark.parametrize("link", ["same", "hard", "soft"])
def test_images_in_both_splits_are_found(data: Data, link: str) -> None:
    image = data.folder / "images" / "val1.png"
    if link == "same":
        data.val["images"][0]["file_name"] = "train1.png"
    else:
        image.unlink()
        (image.hardlink_to if link == "hard" else image.symlink_to)(data.folder / "images" / "train1.png")
    assert findings(data.check()) == {("both", "image-in-both-splits"): 1}


def test_copies_in_both_splits_are_found_when_opened(data: Data) -> None:
    (data.folder / "images" / "val1.png").write_bytes((data.folder / "images" / "train1.png").read_bytes())
    assert data.check().findings == ()
    report = data.check(deep=True)
    assert findings(report) == {("both", "image-in-both-splits"): 1}
    assert report.findings[0].examples == ("val1.png",)


def test_images_of_another_size_are_refused_when_opened(data: Data) -> None:
    data.draw("val2.png", (80, 100))
    assert data.check().findings == ()
    with pytest.raises(
        UserError, match=r"data\.val\.images.*1 is of another size: val2\.png is 80 x 100, not 100 x 80"
    ):
        data.check(deep=True)


@pytest.mark.parametrize(("suffix", "turns"), [("png", True), ("jpg", True), ("webp", False)])
def test_images_turned_by_exif_have_the_size_they_are_loaded_with(data: Data, suffix: str, turns: bool) -> None:
    cv2 = pytest.importorskip("cv2")
    exif = Image.Exif()
    exif[0x0112] = 6
    path = data.draw(f"turned.{suffix}", (80, 100), exif=exif)
    data.val["images"][0]["file_name"] = path.name
    loaded = cv2.imread(str(path)).shape[:2]
    assert loaded == ((80, 100) if turns else (100, 80))
    data.val["images"][0] |= {"height": loaded[0], "width": loaded[1]}
    assert data.check(deep=True).val.images == 2
    data.val["images"][0] |= {"height": loaded[1], "width": loaded[0]}
    with pytest.raises(UserError, match="of another size"):
        data.check(deep=True)


def test_broken_images_are_refused_when_opened(data: Data) -> None:
    path = data.folder / "images" / "val1.png"
    path.write_bytes(path.read_bytes()[:60])
    (data.folder / "images" / "val2.png").write_text("no image")
    assert data.check().findings == ()
    with pytest.raises(UserError, match=r"must be readable to their end, but 2 are not: val1\.png \(.*val2\.png \("):
        data.check(deep=True)


def test_a_small_data_set_is_opened_where_nothing_is_said(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data.draw("val1.jpg", (80, 100))
    path.write_bytes(path.read_bytes()[:-40])  # OpenCV gives it with a grey end, and says nothing
    data.val["images"][0] |= {"file_name": path.name, "height": 80, "width": 100}
    with pytest.raises(UserError, match=r"must be readable to their end, but 1 is not: val1\.jpg"):
        data.check(deep=None)
    monkeypatch.setattr("trainers.data.OPENED", 3)
    assert not data.check(deep=None).deep


def test_the_fingerprint_follows_the_content_not_the_place(data: Data, tmp_path: Path) -> None:
    first = data.check().fingerprint
    assert len(first) == 64
    assert data.check(["dog"], deep=True).fingerprint == first
    moved = tmp_path / "moved"
    moved.mkdir()
    assert Data(moved).check().fingerprint == first
    data.draw("val1.png", compress_level=0)
    second = data.check().fingerprint
    data.val["annotations"][0]["bbox"] = [0, 0, 30, 33]
    third = data.check().fingerprint
    data.train, data.val = copy.deepcopy(data.val), data.train
    assert len({first, second, third, data.check().fingerprint}) == 4


def test_strings_may_be_image_ids(data: Data) -> None:
    for item in data.val["images"]:
        item["id"] = str(item["id"])
    for item in data.val["annotations"]:
        item["image_id"] = str(item["image_id"])
    assert data.check().val.boxes == 3


def test_a_hundred_thousand_annotations_take_seconds(data: Data) -> None:
    boxes = [annotation(n, 1 + n % 2, 3, [0, 0, 10, 10]) for n in range(1, 100_001)]
    data.train["annotations"] = boxes
    started = time.perf_counter()
    assert data.check().train.boxes == 100_000
    del boxes[-1]["bbox"]
    with pytest.raises(UserError, match="of annotation 100000"):
        data.check()
    assert time.perf_counter() - started < 10


def test_neither_torch_nor_mmdet_is_loaded() -> None:
    code = (
        "import sys, trainers.data, trainers.digits\n"
        "print([name for name in ('torch', 'mmdet', 'mmcv', 'mmengine', 'sklearn') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"the BCCD data set is not in {BCCD}")
@pytest.mark.parametrize(
    ("split", "images", "classes"),
    [
        ("val", 87, {"WBC": 87, "RBC": 967, "Platelets": 83}),
        ("test", 72, {"WBC": 71, "RBC": 805, "Platelets": 69}),
    ],
)
def test_real_data_is_clean(split: str, images: int, classes: dict[str, int]) -> None:
    train, val = (Split(BCCD / f"{name}.json", BCCD / "images") for name in ("train", split))
    report = check_data(train, val, ["WBC", "RBC", "Platelets"], deep=True)
    assert report.findings == ()
    assert (report.train.images, report.train.boxes) == (205, 2804)
    assert report.train.classes == {"WBC": 214, "RBC": 2381, "Platelets": 209}
    assert report.train.sizes == {"small": 23, "medium": 855, "large": 1926}
    assert (report.val.images, report.val.classes) == (images, classes)
    assert report.val.boxes == {"val": 1137, "test": 945}[split]
