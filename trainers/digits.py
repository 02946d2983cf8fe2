"""The embedded data set: handwritten digits scattered over photographs, in COCO format, made in seconds offline.

Digits (8 x 8, real handwriting) and photographs are the ones that ship with scikit-learn. A scene holds digits of 8 to
120 px, most of them small by COCO's measure, over a crop of a photograph, among clutter that carries no label. The
splits share neither a digit image nor a photograph's pixels.
"""

from __future__ import annotations

import colorsys
import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from spaces.errors import UserError

CLASSES = tuple("0123456789")
MIN_SIDE = 8
"""Shortest longer side of a box, in px."""
MAX_SIDE = 120
"""Longest longer side of a box, in px; never more than ``MAX_SHARE`` of the image's shorter side."""
MAX_SHARE = 0.75
MIN_VISIBLE = 0.8
"""Least share of a digit's ink that later objects leave in sight. What would cover more is put elsewhere."""

_FORMAT = 1  # Part of the cache's name: raise it whenever the same arguments would give other files.
_SIZE_RANGE = (32, 2048)  # px
_VAL_EVERY = 5  # Every fifth digit image belongs to the validation split.
_TRAIN_SHARE = 0.65  # Of a photograph's width; the rest is the validation split's.
_GLYPH = 96  # px; digits are warped at this size and then brought to their own.
_TRIES = 25
_CREDITS = (
    "Digits: Optical Recognition of Handwritten Digits, UCI, CC BY 4.0. "
    "Photographs: china.jpg by danielbuechele and flower.jpg by vultilion, CC BY 2.0. Both as shipped by scikit-learn."
)

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class DigitsPaths:
    """Where the data set lies.

    Attributes:
        train_annotations: COCO json of the training split.
        train_images: Folder of its images.
        val_annotations: COCO json of the validation split.
        val_images: Folder of its images.
        classes: Class names in the order of their labels.
    """

    train_annotations: Path
    train_images: Path
    val_annotations: Path
    val_images: Path
    classes: tuple[str, ...] = CLASSES


def write_digits(
    root: Path | None = None,
    *,
    train: int = 320,
    val: int = 80,
    size: tuple[int, int] = (160, 160),
    seed: int = 0,
) -> DigitsPaths:
    """Gives the data set of these arguments, writing it where it is not in the cache yet.

    The same arguments give the same files, byte for byte, under the same library versions. Scene ``i`` of a split
    does not depend on how many scenes there are. Several processes may ask at once; a set is visible only when whole.

    Args:
        root: Cache folder; ``$HEADWAY_CACHE`` or else ``~/.cache/headway`` by default.
        train: Scenes of the training split, at least 1.
        val: Scenes of the validation split, at least 1.
        size: Width and height in px, 32 to 2048.
        seed: At least 0.

    Raises:
        UserError: An argument is out of its range, or the cache cannot be written.
    """
    _check("digits.train", train, 1)
    _check("digits.val", val, 1)
    _check("digits.seed", seed, 0)
    for side in size:
        _check("digits.size", side, *_SIZE_RANGE)
    key = json.dumps({"format": _FORMAT, "train": train, "val": val, "size": list(size), "seed": seed})
    folder = _cache_root(root) / f"digits-{sha256(key.encode()).hexdigest()[:16]}"
    counts = {"train": train, "val": val}
    if not _complete(folder, counts):
        try:
            _write_set(folder, counts, size, seed)
        except OSError as error:
            raise UserError(
                f"digits cache: the folder must be writable, but '{folder.parent}' is not "
                f"({error.strerror or error}); name another one in HEADWAY_CACHE."
            ) from error
    return DigitsPaths(folder / "train.json", folder / "train", folder / "val.json", folder / "val")


def digit_indices(split: str) -> NDArray[np.int64]:
    """Gives the indices into ``sklearn.datasets.load_digits`` that ``train`` or ``val`` draws from; they are disjoint.

    Raises:
        UserError: There is no such split.
    """
    if split not in ("train", "val"):
        raise UserError(f"digits.split: must be train or val, but got {split!r}")
    every = np.arange(1797)
    held_out = every % _VAL_EVERY == _VAL_EVERY - 1
    chosen: NDArray[np.int64] = every[held_out if split == "val" else ~held_out]
    return chosen


def _check(who: str, value: int, low: int, high: int | None = None) -> None:
    if isinstance(value, int) and value >= low and (high is None or value <= high):
        return
    rule = f"must be an integer of at least {low}" if high is None else f"must be integers in [{low}, {high}]"
    raise UserError(f"{who}: {rule}, but got {value!r}")


# --- The cache -------------------------------------------------------------------------------------------------------


def _cache_root(root: Path | None) -> Path:
    try:
        return Path(root or os.environ.get("HEADWAY_CACHE") or "~/.cache/headway").expanduser().absolute()
    except RuntimeError as error:
        raise UserError("digits cache: there is no home folder; name a folder in HEADWAY_CACHE.") from error


def _names(count: int) -> list[str]:
    return [f"{number:06d}.png" for number in range(1, count + 1)]


def _complete(folder: Path, counts: dict[str, int]) -> bool:
    """Tells whether every file is there and not empty, for cleaners empty caches file by file."""
    try:
        for split, count in counts.items():
            files = [folder / f"{split}.json", *(folder / split / name for name in _names(count))]
            if not all(file.stat().st_size for file in files):
                return False
    except OSError:
        return False
    return True


def _write_set(folder: Path, counts: dict[str, int], size: tuple[int, int], seed: int) -> None:
    """Writes the set beside its place and then moves it there in one step.

    Raises:
        OSError: The cache cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".digits-", dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        # One level deeper: only there do the folder's permissions follow the umask.
        fresh = Path(temporary) / "fresh"
        fresh.mkdir()
        sources = _load_sources()
        for number, (split, count) in enumerate(counts.items()):
            _write_split(fresh, split, _names(count), size, (seed, number), sources)
        try:
            fresh.replace(folder)
        except OSError:
            # Something is there: the same set from another process, or one with files missing.
            if not _complete(folder, counts):
                shutil.rmtree(folder)
                fresh.replace(folder)


def _write_split(
    folder: Path, split: str, names: Sequence[str], size: tuple[int, int], seed: tuple[int, int], sources: _Sources
) -> None:
    width, height = size
    (folder / split).mkdir()
    annotations: list[dict[str, Any]] = []
    for number, name in enumerate(names, start=1):
        scene = _compose(size, split, np.random.default_rng([*seed, number]), sources)
        Image.fromarray(scene.pixels()).save(folder / split / name, compress_level=1)
        for item, box in scene.labelled():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": item.label + 1,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "digit": item.digit,  # Index into load_digits.
                }
            )
    content = {
        "info": {"description": f"Headway's digits, {split} split", "credits": _CREDITS},
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, name in enumerate(names, start=1)
        ],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)],
        "annotations": annotations,
    }
    (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


# --- Scenes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sources:
    digits: FloatArray  # (1797, 8, 8) in [0, 1]
    labels: NDArray[np.int64]  # (1797,) in 0..9
    photos: tuple[Image.Image, ...]


@dataclass
class _Item:
    alpha: FloatArray  # (h, w) in [0, 1]
    label: int = -1  # -1 for clutter.
    digit: int = -1
    colour: Colour = (0, 0, 0)
    ink: BoolArray = field(init=False)  # (h, w)
    visible: int = field(init=False)  # px of ink that nothing later covers.

    def __post_init__(self) -> None:
        self.ink = self.alpha >= 0.5
        self.visible = int(self.ink.sum())


class _Scene:
    """A picture in the making, and which object each of its pixels belongs to."""

    def __init__(self, background: FloatArray) -> None:
        """Starts from a background of shape (H, W, 3) in [0, 255]."""
        self.canvas = background
        self.owner: NDArray[np.int32] = np.full(background.shape[:2], -1, np.int32)  # (H, W), index into items
        self.items: list[_Item] = []

    def pixels(self) -> NDArray[np.uint8]:
        """Gives the picture, (H, W, 3), RGB."""
        return (np.clip(self.canvas, 0, 255) + 0.5).astype(np.uint8)

    def labelled(self) -> list[tuple[_Item, tuple[int, int, int, int]]]:
        """Gives each digit with its box (x, y, width, height) in px, tight around the ink still in sight."""
        found = ((item, self.owner == number) for number, item in enumerate(self.items) if item.label >= 0)
        return [(item, _bounds(mask)) for item, mask in found]

    def place(self, item: _Item, rng: np.random.Generator) -> None:
        """Draws the item where it leaves enough of every digit in sight; where no such place is found, not at all."""
        height, width = item.alpha.shape
        rows, columns = self.owner.shape
        for _ in range(_TRIES):
            y, x = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
            if self._fits(item, y, x):
                self._draw(item, y, x, rng)
                return

    def _fits(self, item: _Item, y: int, x: int) -> bool:
        height, width = item.ink.shape
        covered = self.owner[y : y + height, x : x + width][item.ink]
        for number, count in zip(*np.unique(covered[covered >= 0], return_counts=True), strict=True):
            below = self.items[number]
            if below.label < 0:
                continue
            if below.visible - int(count) < MIN_VISIBLE * int(below.ink.sum()):
                return False
            rest = self.owner == number
            rest[y : y + height, x : x + width] &= ~item.ink
            if max(_bounds(rest)[2:]) < MIN_SIDE:
                return False
        return True

    def _draw(self, item: _Item, y: int, x: int, rng: np.random.Generator) -> None:
        height, width = item.ink.shape
        window = np.s_[y : y + height, x : x + width]
        covered = self.owner[window][item.ink]
        for number, count in zip(*np.unique(covered[covered >= 0], return_counts=True), strict=True):
            self.items[number].visible -= int(count)
        touched = [self.items[number].colour for number in np.unique(self.owner[window]) if number >= 0]
        item.colour = _colour(self.canvas[window], touched, rng)
        alpha = item.alpha[..., None]
        self.canvas[window] += alpha * (np.asarray(item.colour, np.float32) - self.canvas[window])
        self.owner[window][item.ink] = len(self.items)
        self.items.append(item)


def _load_sources() -> _Sources:
    # Imported here: a set that is in the cache needs none of it, and it takes a second.
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    return _Sources(
        digits=np.asarray(digits.images, np.float32) / 16,
        labels=np.asarray(digits.target, np.int64),
        photos=tuple(Image.fromarray(photo) for photo in load_sample_images().images),
    )


def _compose(size: tuple[int, int], split: str, rng: np.random.Generator, sources: _Sources) -> _Scene:
    width, height = size
    scene = _Scene(_background(size, split, rng, sources.photos))
    scale = width * height / 160**2
    digits = int(rng.integers(max(2, round(4 * scale)), max(3, round(9 * scale)) + 1))
    clutter = int(rng.integers(0, max(2, round(3 * scale)) + 1))
    longest = min(MAX_SIDE, int(MAX_SHARE * min(size)))
    kinds = rng.permutation([True] * digits + [False] * clutter)
    pool = digit_indices(split)
    for is_digit in kinds:
        # A little above logarithmic, where each octave of size would be as frequent: about half are small to COCO.
        side = round(MIN_SIDE * (longest / MIN_SIDE) ** (rng.random() ** 0.85))
        if is_digit:
            label = int(rng.integers(10))
            digit = int(rng.choice(pool[sources.labels[pool] == label]))
            scene.place(_digit(sources.digits[digit], side, label, digit, rng), rng)
        else:
            side = min(side, longest // 2)
            scene.place(_clutter(side, sources.digits[int(rng.choice(pool))], rng), rng)
    return scene


def _background(
    size: tuple[int, int], split: str, rng: np.random.Generator, photos: Sequence[Image.Image]
) -> FloatArray:
    """Gives a crop of the split's side of a photograph, (H, W, 3) in [0, 255], dim and pale."""
    width, height = size
    photo = photos[int(rng.integers(len(photos)))]
    border = int(_TRAIN_SHARE * photo.width)
    left, right = (0, border) if split == "train" else (border, photo.width)
    # Cut first: resampling reads a little beyond its box.
    side = photo.crop((left, 0, right, photo.height))
    scale = min(side.width / width, side.height / height) * rng.uniform(0.5, 1)
    x, y = rng.uniform(0, side.width - scale * width), rng.uniform(0, side.height - scale * height)
    box = (x, y, x + scale * width, y + scale * height)
    crop = np.asarray(side.resize(size, Image.Resampling.BICUBIC, box=box), np.float32)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    mean = crop.mean(axis=(0, 1))
    # A dim and pale picture leaves the light to the digits: where ink is always lighter than its ground, a small
    # detector needs fewer epochs than where it is now darker, now lighter.
    pale = rng.uniform(0.3, 0.6) * mean + (crop - mean) * rng.uniform(0.3, 0.55)
    background: FloatArray = np.clip(pale, 0, 255).astype(np.float32)
    return background


def _digit(image: FloatArray, side: int, label: int, number: int, rng: np.random.Generator) -> _Item:
    """Draws one digit of (8, 8) so that the longer side of its ink is about ``side`` px, and not below the least."""
    wide = Image.fromarray(np.pad(image / image.max(), 2)).resize((_GLYPH, _GLYPH), Image.Resampling.BICUBIC)
    turned = wide.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC)
    glyph = np.clip((np.asarray(turned) - 0.38) / 0.3, 0, 1)
    x, y, width, height = _bounds(glyph >= 0.5)
    glyph = glyph[y : y + height, x : x + width]
    aspect = width / height * rng.uniform(0.85, 1.2)
    item = _scaled(glyph, side, aspect)
    while max(item.shape) < MIN_SIDE:  # Thin ends fade when small.
        side += 1
        item = _scaled(glyph, side, aspect)
    return _Item(item, label, number)


def _scaled(glyph: FloatArray, side: int, aspect: float) -> FloatArray:
    """Brings a glyph to ``side`` px and crops it to its ink."""
    width = side if aspect >= 1 else max(2, round(side * aspect))
    height = side if aspect <= 1 else max(2, round(side / aspect))
    small = np.asarray(Image.fromarray(glyph).resize((width, height), Image.Resampling.BICUBIC))
    crisp = np.clip(small * 1.25, 0, 1)
    x, y, width, height = _bounds(crisp >= 0.5)
    return crisp[y : y + height, x : x + width]


def _clutter(side: int, image: FloatArray, rng: np.random.Generator) -> _Item:
    """Draws something that is no digit and that no digit looks like: no rings, no upright strokes."""
    kind = int(rng.integers(5))
    if kind == 0:  # The shuffled 2 x 2 blocks of a digit: its strokes and grey levels without its shape.
        blocks = image.reshape(4, 2, 4, 2).swapaxes(1, 2).reshape(16, 2, 2)
        mixed = blocks[rng.permutation(16)].reshape(4, 4, 2, 2).swapaxes(1, 2).reshape(8, 8)
        alpha = np.asarray(Image.fromarray(mixed / image.max()).resize((side, side), Image.Resampling.BICUBIC))
        return _Item(np.clip((alpha - 0.3) / 0.3, 0, 1))
    top = 4 * side  # Drawn at four times its size, for smooth edges.
    mask = Image.new("L", (top, top))
    draw = ImageDraw.Draw(mask)
    pen = max(4, top // 7)
    if kind == 1:
        draw.ellipse((0, 0, top - 1, round(top * rng.uniform(0.6, 1))), fill=255)
    elif kind == 2:
        left, right = rng.uniform(0.6, 1, 2)
        corners = [(rng.random(), 0.0), (0.0, left), (1.0, right)]
        draw.polygon([(round(top * x), round(top * y)) for x, y in corners], fill=255)
    elif kind == 3:
        draw.line((0, 0, top, top), fill=255, width=pen)
        draw.line((0, top, top, 0), fill=255, width=pen)
    else:
        ends = np.round(top * (0.5 + rng.uniform(-0.25, 0.25, 2)))
        draw.line((0, int(ends[0]), top, int(ends[1])), fill=255, width=pen)
    shrunk = mask.resize((side, side), Image.Resampling.BOX)
    return _Item(np.asarray(shrunk, np.float32) / 255)


def _colour(under: FloatArray, touched: Sequence[Colour], rng: np.random.Generator) -> Colour:
    """Picks a random colour far in brightness from what lies under it, and far from what it touches.

    Far is 90 of 255; where ten colours are all nearer, the farthest is taken.
    """
    ground = _brightness(under.mean(axis=(0, 1)))
    best, distance = (0, 0, 0), -1.0
    for _ in range(10):
        red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.9), rng.uniform(0.8, 1))
        colour = (round(255 * red), round(255 * green), round(255 * blue))
        apart = [abs(_brightness(colour) - ground)]
        apart += [0.6 * math.dist(colour, other) for other in touched]
        if min(apart) > distance:
            best, distance = colour, min(apart)
        if distance >= 90:
            break
    return best


def _brightness(colour: Sequence[float] | FloatArray) -> float:
    """Gives the luma of an RGB colour, in the colour's own unit."""
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


def _bounds(mask: BoolArray) -> tuple[int, int, int, int]:
    """Gives x, y, width and height in px of what is set in a mask of (H, W); all 0 where nothing is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    y, x = int(rows[0]), int(columns[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
