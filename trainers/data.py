"""Data of the user's own, in COCO format: checked in seconds, before anything is trained on it.

What would stop a training hours in, or bend its accuracy without a word, is refused here with one message. What is
merely worth knowing is counted and reported. The rules follow what mmdet's ``CocoDataset`` and pycocotools do with a
file; neither is loaded.
"""

from __future__ import annotations

import json
import ntpath
import os
import posixpath
import stat
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from spaces.errors import UserError, unknown

SMALL, MEDIUM = 32**2, 96**2
"""COCO's size classes in px squared: small below the first, medium below the second, large from there on."""

OPENED = 1000
"""Images up to which a search opens every one before it trains; more would take minutes at each start."""

_EXAMPLES = 3
_SLACK = 1e-3  # px that a box may stick out before it counts: rounding in the file.
_MIN_IMAGE = 32  # px; mmdet's COCO configs do not train on images with a shorter side below it.
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap width and height.
_TURNED = ("JPEG", "MPO", "PNG")  # Formats that OpenCV, which mmcv loads with, turns by that tag.


@dataclass(frozen=True)
class Split:
    """One split.

    Attributes:
        annotations: COCO json.
        images: Folder that its file names are relative to.
    """

    annotations: Path
    images: Path


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that does not stop a search and is worth knowing.

    Attributes:
        code: Short name that stays the same, like ``box-partly-outside``.
        split: ``train``, ``val`` or ``both``.
        count: How many images, annotations or classes it concerns.
        examples: The first few of them.
        text: What it is, and what mmdet and pycocotools do with it.
    """

    code: str
    split: str
    count: int
    examples: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        """Gives the finding as one line."""
        return f"{self.split}: {self.code} x {self.count} ({_few(self.examples, self.count)}): {self.text}"


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What a split holds. Boxes are counted where they belong to the chosen classes.

    Attributes:
        images: Images listed.
        annotations: Annotations listed, of every class.
        crowd: Boxes marked as a crowd; they are neither trained on nor counted as missed.
        images_without_boxes: Images without a usable box.
        classes: Usable boxes by class: with area, touching the image, no crowd, not marked ``ignore``.
        sizes: Usable boxes by COCO size class of their ``area``: small, medium, large.
    """

    images: int
    annotations: int
    crowd: int
    images_without_boxes: int
    classes: Mapping[str, int]
    sizes: Mapping[str, int]

    @property
    def boxes(self) -> int:
        """Usable boxes."""
        return sum(self.classes.values())


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What ``check_data`` found out.

    Attributes:
        classes: Class names in the order of their labels, which is the file's order.
        train: The training split.
        val: The validation split.
        findings: Worth knowing, none of it fatal.
        fingerprint: SHA-256, in hex, over both annotation files and the names and byte sizes of their images. The
            place of the files does not enter.
        deep: Whether every image was opened.
    """

    classes: tuple[str, ...]
    train: SplitReport
    val: SplitReport
    findings: tuple[Finding, ...]
    fingerprint: str
    deep: bool

    def to_json(self) -> dict[str, Any]:
        """Gives the report as plain JSON types."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return value

    def summary(self) -> list[str]:
        """Gives the report as lines for a person to read."""
        lines = [f"{len(self.classes)} classes: {', '.join(self.classes)}"]
        for name, split in (("train", self.train), ("val", self.val)):
            sizes = ", ".join(f"{count} {size}" for size, count in split.sizes.items())
            counts = ", ".join(f"{label} {count}" for label, count in split.classes.items())
            lines += [f"{name}: {split.images} images, {split.boxes} boxes ({sizes})", f"  by class: {counts}"]
        lines += [str(finding) for finding in self.findings]
        lines.append(f"fingerprint {self.fingerprint[:16]}, images {'opened' if self.deep else 'not opened'}")
        return lines

    def __str__(self) -> str:
        """Gives the summary as one text."""
        return "\n".join(self.summary())


def check_data(
    train: Split, val: Split, classes: Sequence[str] | None = None, *, deep: bool | None = False
) -> DataReport:
    """Checks a data set and tells what is in it.

    Args:
        train: The split that is trained on.
        val: The split that accuracy is measured on.
        classes: The classes to detect, in any order; by default all of the files' categories. Labels follow the
            order of the file's categories, because mmdet's do.
        deep: Also opens every image, compares its size with the file's, and finds copies by content: what reads images
            for training takes one that was cut off for a partly grey one. ``None``: where there are at most
            ``OPENED`` of them.

    Raises:
        UserError: The data cannot be trained on, or measured on, as it is. The message names the study's key, the
            rule, how often it is broken and the first cases.
    """
    parts = [_Part("train", train), _Part("val", val)]
    labels = _labels(parts, classes)
    reports = [part.report(labels) for part in parts]
    deep = sum(report.images for report in reports) <= OPENED if deep is None else deep
    if deep:
        for part in parts:
            part.open_images()
    findings = [finding for part in parts for finding in part.findings.listed()]
    findings += _leak(*parts)
    digest = sha256()
    for part in parts:
        part.enter(digest.update)
    return DataReport(
        classes=labels,
        train=reports[0],
        val=reports[1],
        findings=tuple(findings),
        fingerprint=digest.hexdigest(),
        deep=deep,
    )


# --- Errors and findings ---------------------------------------------------------------------------------------------


def _few(examples: Iterable[object], count: int) -> str:
    shown = [str(example) for example in examples][:_EXAMPLES]
    return ", ".join(shown) + (", ..." if count > len(shown) else "")


def _refuse(who: str, rule: str, broken: Sequence[object], what: str) -> None:
    """Raises where ``broken``, the cases that are ``what`` the rule forbids, is not empty.

    Raises:
        UserError: There are such cases; the message counts them and names the first.
    """
    if broken:
        count = len(broken)
        raise UserError(f"{who}: {rule}, but {count} {'is' if count == 1 else 'are'} {what}: {_few(broken, count)}")


def _repeated(values: Iterable[Any]) -> list[str]:
    return [repr(value) for value, count in Counter(values).items() if count > 1]


class _Findings:
    """Counts what is worth knowing in one split, by code, and keeps the first cases."""

    _TEXTS: Mapping[str, str] = {
        "class-without-examples": "No usable box: train cannot teach the class, val leaves its AP out of the mean.",
        "other-classes": "The class was not asked for; its boxes are background.",
        "class-order": "Asked for in another order than the file's, which is the one that labels follow.",
        "image-without-boxes": "No usable box; mmdet's configs leave images without annotations out of training.",
        "image-too-small": f"A side below {_MIN_IMAGE} px; mmdet's configs leave such images out of training.",
        "image-listed-twice": "The file is listed before under another id; it counts several times.",
        "box-partly-outside": "The box reaches beyond its image; mmdet clips it in training, pycocotools does not.",
        "box-outside": "The box lies beyond its image; mmdet drops it in training, pycocotools counts it as missed.",
        "box-without-area": "No area, or a side below 1 px; mmdet drops it in training, pycocotools can count it as "
        "missed.",
        "ignored": "Marked 'ignore'; mmdet drops it in training, pycocotools counts it all the same.",
        "crowd": "A crowd is not trained on, and detections in it count neither way.",
        "annotation-id-0": "pycocotools takes the detection of an object with the id 0 for a false one.",
    }

    def __init__(self, split: str) -> None:
        self.split = split
        self.counts: Counter[str] = Counter()
        self.examples: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, code: str, case: str) -> None:
        self.counts[code] += 1
        if self.counts[code] <= _EXAMPLES:
            self.examples[code].append(case)

    def listed(self) -> list[Finding]:
        """Gives the findings in a fixed order."""
        return [
            Finding(
                code=code, split=self.split, count=self.counts[code], examples=tuple(self.examples[code]), text=text
            )
            for code, text in self._TEXTS.items()
            if self.counts[code]
        ]


# --- One split -------------------------------------------------------------------------------------------------------


@dataclass
class _File:
    """An image on disk."""

    path: Path
    bytes: int
    identity: object  # The same for links to one file.
    content: str = ""  # SHA-256, once opened.


@dataclass
class _Part:
    """A split while it is checked; what cannot be used is refused as it is read."""

    name: str
    split: Split
    digest: bytes = field(init=False, repr=False)  # Of the annotation file.
    content: dict[str, Any] = field(init=False, repr=False)
    categories: dict[Any, str] = field(init=False)  # Names by id, in the file's order.
    images: dict[Any, dict[str, Any]] = field(init=False, repr=False)  # By id.
    files: dict[str, _File] = field(init=False, repr=False)  # By file name.
    findings: _Findings = field(init=False)

    def __post_init__(self) -> None:
        self.who = f"data.{self.name}.annotations '{self.split.annotations}'"
        self.findings = _Findings(self.name)
        self.content = self._read()
        self.categories = self._categories()
        self.images = self._images()
        self._annotations()
        self.files = self._files()

    def _read(self) -> dict[str, Any]:
        try:
            raw = self.split.annotations.read_bytes()
        except OSError as error:
            raise UserError(f"{self.who}: must be a file that can be read, but it is not ({error.strerror})") from error
        self.digest = sha256(raw).digest()
        try:
            # As pycocotools reads it, which takes no byte order mark.
            content = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.who}: must be JSON, but it is not ({error})") from error
        keys = ("images", "annotations", "categories")
        for key in keys:
            items = content.get(key) if isinstance(content, dict) else None
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise UserError(
                    f"{self.who}: must be in COCO's format for detection, with lists of objects under "
                    f"{', '.join(keys)}, but has none under {key}"
                )
            if not items and key != "annotations":
                raise UserError(f"{self.who}: must list at least one of its {key}, but lists none")
        checked: dict[str, Any] = content
        return checked

    def _ids(self, key: str, kinds: tuple[type, ...] = (int,)) -> list[Any]:
        """Gives the ids under a key, which are unique and of one kind."""
        ids = [item.get("id") for item in self.content[key]]
        words = " or all ".join({int: "integers", str: "strings"}[kind] for kind in kinds)
        # pycocotools sorts ids with numpy, which would turn mixed ones into strings and lose them.
        kind = next((type(value) for value in ids if type(value) in kinds), kinds[0])
        _refuse(self.who, f"ids of {key} must be all {words}", [repr(v) for v in ids if type(v) is not kind], "not")
        _refuse(self.who, f"ids of {key} must be unique", _repeated(ids), "used more than once")
        return ids

    def _categories(self) -> dict[Any, str]:
        ids, names = self._ids("categories"), [item.get("name") for item in self.content["categories"]]
        odd = [repr(name) for name in names if not isinstance(name, str) or not name]
        _refuse(self.who, "names of categories must be words", odd, "not")
        _refuse(self.who, "names of categories must be unique", _repeated(names), "used more than once")
        return dict(zip(ids, names, strict=True))

    def _images(self) -> dict[Any, dict[str, Any]]:
        images = self.content["images"]
        ids = self._ids("images", (int, str))
        names = [item.get("file_name") for item in images]
        odd = [repr(key) for key, name in zip(ids, names, strict=True) if not isinstance(name, str) or not name]
        _refuse(self.who, "every image must have a file_name, a word", odd, "without")
        odd = [f"{item['file_name']!r} of image {item['id']}" for item in images if leaves(item["file_name"])]
        _refuse(self.who, "file names must stay in the image folder", odd, "outside")
        odd = [
            f"{item['file_name']} with {item.get('width')!r} x {item.get('height')!r}"
            for item in images
            if not all(_number(item.get(side)) and item[side] > 0 for side in ("width", "height"))
        ]
        _refuse(self.who, "width and height of images must be positive numbers", odd, "not")
        seen: set[str] = set()
        for item in images:
            name = posixpath.normpath(item["file_name"])
            if name in seen:
                self.findings.add("image-listed-twice", item["file_name"])
            seen.add(name)
            if self.name == "train" and min(item["width"], item["height"]) < _MIN_IMAGE:
                self.findings.add("image-too-small", item["file_name"])
        return dict(zip(ids, images, strict=True))

    def _annotations(self) -> None:
        annotations = self.content["annotations"]
        self._ids("annotations")

        def require(key: str, rule: str, legal: Callable[[Any], bool], what: str = "not") -> None:
            values = ((item["id"], item.get(key)) for item in annotations)
            odd = [f"{value!r} of annotation {number}" for number, value in values if not legal(value)]
            _refuse(self.who, f"{key} of annotations must be {rule}", odd, what)

        ids = _few(self.categories, len(self.categories))
        require("image_id", "the id of an image", lambda value: _known(value, self.images))
        require("category_id", f"the id of a category ({ids})", lambda value: _known(value, self.categories))
        require("bbox", "4 finite numbers", _box)
        # Exporters leave these two out, and a training would end in a KeyError at its first validation.
        require("area", "a number, in px squared; without a mask it is width times height", _number)
        if self.name == "val":
            require("iscrowd", "0 or 1, for pycocotools reads it", lambda value: value in (0, 1))

    def _files(self) -> dict[str, _File]:
        folder, who = self.split.images, f"data.{self.name}.images"
        if not folder.is_dir():
            raise UserError(f"{who}: must be a folder, but '{folder}' is not")
        files: dict[str, _File] = {}
        missing, empty = [], []
        for name in dict.fromkeys(item["file_name"] for item in self.content["images"]):
            path = folder / name
            try:
                status = os.stat(path)
            except (OSError, ValueError):  # A null character in a name is a ValueError.
                missing.append(name)
                continue
            if not stat.S_ISREG(status.st_mode):
                missing.append(name)
            elif not status.st_size:
                empty.append(name)
            # Some network drives number no files.
            identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
            files[name] = _File(path, status.st_size, identity)
        total = len(files) + len(missing)
        _refuse(who, f"the {total} images listed must be files in '{folder}'", missing, "missing")
        _refuse(who, "images must not be empty files", empty, "empty")
        return files

    def open_images(self) -> None:
        """Opens every image once.

        Raises:
            UserError: Some cannot be read to their end, or have another size than listed.
        """
        who = f"data.{self.name}.images"
        # Pillow warns of metadata and of large images; both are read all the same.
        with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            warnings.simplefilter("ignore")
            opened = dict(zip(self.files, pool.map(_open, self.files.values()), strict=True))
        broken = [f"{name} ({size})" for name, size in opened.items() if isinstance(size, str)]
        _refuse(who, "images must be readable to their end", broken, "not")
        odd = []
        for item in self.images.values():
            size = opened[item["file_name"]]
            if size != (item["width"], item["height"]):
                odd.append(f"{item['file_name']} is {size[0]} x {size[1]}, not {item['width']} x {item['height']}")
        _refuse(
            who,
            "images must have the width and height that the annotations give (turned as their EXIF orientation says, "
            "for so they are loaded)",
            odd,
            "of another size",
        )

    def report(self, labels: Sequence[str]) -> SplitReport:
        """Counts the split's boxes of the classes in ``labels``.

        Raises:
            UserError: There is no usable box.
        """
        add = self.findings.add
        wanted = set(labels)
        classes = dict.fromkeys(labels, 0)
        sizes = {"small": 0, "medium": 0, "large": 0}
        bare = dict.fromkeys(self.images)
        crowd = 0
        for item in self.content["annotations"]:
            if item["id"] == 0 and self.name == "val":
                add("annotation-id-0", "annotation 0")
            label = self.categories[item["category_id"]]
            if label not in wanted:
                add("other-classes", f"annotation {item['id']} of '{label}'")
                continue
            image = self.images[item["image_id"]]
            fault = _fault(item, image["width"], image["height"])
            if fault:
                add(fault, f"annotation {item['id']} in {image['file_name']}")
            if fault not in ("", "box-partly-outside"):
                continue
            if item.get("iscrowd"):
                crowd += 1
                add("crowd", f"annotation {item['id']} in {image['file_name']}")
                continue
            classes[label] += 1
            sizes["small" if item["area"] < SMALL else "medium" if item["area"] < MEDIUM else "large"] += 1
            bare.pop(item["image_id"], None)
        if not any(classes.values()):
            raise UserError(
                f"{self.who}: must hold at least one usable box (with area, touching its image, no crowd) of the "
                f"classes {', '.join(labels)}, but has none among "
                f"{len(self.content['annotations'])} annotations"
            )
        for image in bare:
            add("image-without-boxes", self.images[image]["file_name"])
        for label, count in classes.items():
            if not count:
                add("class-without-examples", label)
        return SplitReport(
            images=len(self.images),
            annotations=len(self.content["annotations"]),
            crowd=crowd,
            images_without_boxes=len(bare),
            classes=classes,
            sizes=sizes,
        )

    def enter(self, update: Callable[[bytes], None]) -> None:
        """Adds to the fingerprint what training depends on."""
        update(self.digest)
        for name in sorted(self.files):
            update(f"\0{name}\0{self.files[name].bytes}".encode("utf-8", "surrogatepass"))
        update(b"\0\0")


def _labels(parts: Sequence[_Part], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Gives the class names in the order of mmdet's labels: that of each file's categories, whatever is asked for."""
    listed = [list(part.categories.values()) for part in parts]
    if classes is None:
        rule = "categories must be those of data.train.annotations, or data.classes must name the ones to detect"
        for (here, there), name in ((listed, "train"), (listed[::-1], "val")):
            only = [repr(label) for label in here if label not in there]
            _refuse("data.val.annotations", rule, only, f"in {name} only")
        wanted: Sequence[str] = listed[0]
    else:
        wanted = classes
        if isinstance(classes, str) or not classes:
            raise UserError(f"data.classes: must be a list of at least one class name, but got {classes!r}")
        _refuse("data.classes", "must name each class once", _repeated(classes), "named more often")
        for part, names in zip(parts, listed, strict=True):
            for label in wanted:
                if label not in names:
                    raise unknown(f"data.classes (in data.{part.name}.annotations)", label, names)
    orders = [tuple(label for label in names if label in set(wanted)) for names in listed]
    if orders[0] != orders[1]:
        # mmdet numbers the labels of each file by itself, so accuracy would be measured against wrong classes.
        raise UserError(
            "data.val.annotations: must list its categories in the order of data.train.annotations, but got "
            f"{', '.join(orders[1])}, where train has {', '.join(orders[0])}"
        )
    if tuple(wanted) != orders[0]:
        for label, asked in zip(orders[0], wanted, strict=True):
            if label != asked:
                parts[0].findings.add("class-order", asked)
    return orders[0]


def _leak(train: _Part, val: _Part) -> Iterator[Finding]:
    """Finds images of val that are trained on: the same file, a link to it or, where images were opened, a copy."""
    identities = {file.identity for file in train.files.values()}
    contents = {file.content for file in train.files.values() if file.content}
    shared = [name for name, file in val.files.items() if file.identity in identities or file.content in contents]
    if shared:
        yield Finding(
            code="image-in-both-splits",
            split="both",
            count=len(shared),
            examples=tuple(shared[:_EXAMPLES]),
            text="An image of val is in train too; its accuracy is not that on new images.",
        )


# --- Single values ---------------------------------------------------------------------------------------------------


def _number(value: object) -> bool:
    # By comparison: math.isfinite fails on integers past the range of a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def _known(value: object, table: Mapping[Any, object]) -> bool:
    return isinstance(value, (int, float, str)) and value in table  # A list could not be looked up.


def _box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(_number(side) for side in value)


def leaves(name: str) -> bool:
    """Tells whether a file name is absolute or climbs out of its folder, on any system."""
    path = posixpath.normpath(name.replace("\\", "/"))
    return path.startswith("/") or bool(ntpath.splitdrive(name)[0]) or path.split("/")[0] == ".."


def _fault(item: Mapping[str, Any], width: float, height: float) -> str:
    """Gives the code of what is wrong with a box in its image, by the rules of ``CocoDataset.parse_data_info``."""
    if item.get("ignore"):
        return "ignored"
    x, y, w, h = item["bbox"]
    if w < 1 or h < 1 or item["area"] <= 0:
        return "box-without-area"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "box-outside"
    if x < -_SLACK or y < -_SLACK or x + w > width + _SLACK or y + h > height + _SLACK:
        return "box-partly-outside"
    return ""


def _open(file: _File) -> tuple[int, int] | str:
    """Reads an image to its end; gives the width and height it is loaded with, or why it cannot be."""
    try:
        raw = file.path.read_bytes()
        with Image.open(BytesIO(raw)) as image:
            image.load()
            width, height = image.size
            turned = image.format in _TURNED and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error) or type(error).__name__
    file.content = sha256(raw).hexdigest()
    return (height, width) if turned else (width, height)
