"""Draws what a detector found in an image, for a person to look at: boxes, key parts, activations, query maps.

One drawing code for three askers: the pictures of a trial (``trainers.pictures``), ``headway draw`` and the pictures
in a bundle (``analysis``). It lies here since ``trainers`` must not know ``analysis``, and it needs no torch: a bundle
is run elsewhere, and what comes back is the plain data of ``trainers.look``.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

SHOWN = 0.1
"""Key parts are drawn where their confidence is above this (the paper's appendix B)."""

Box = Sequence[float]
Colour = tuple[int, int, int]
Values = NDArray[np.floating[Any]]
Pixels = NDArray[np.floating[Any]]

# Wong 2011, readable for the colour-blind; then Tol's muted scheme.
_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (51, 34, 136), (68, 170, 153), (153, 153, 51), (136, 34, 85), (221, 204, 119), (17, 119, 51), (204, 102, 119),
    (136, 204, 238), (170, 68, 153),
)  # fmt: skip
# ColorBrewer's RdYlBu from low to high: blue and red stay apart for the colour-blind.
_HEAT = np.array([(49, 54, 149), (116, 173, 209), (255, 255, 191), (244, 109, 67), (165, 0, 38)], dtype=float)
_OPACITY = 0.6  # of a heat map over the image
_DARK = 0.35  # brightness of what was not computed
_SHARED = "a point of several colours: parts in one cell"
_TILE, _ROW = 200, 3  # px of an enlarged object, and how many stand side by side
_LEAST_WIDTH = 560  # px of a page, so that its title can be read


def open_image(path: Path) -> Image.Image:
    """Opens an image file upright and in colour, as mmdet reads it."""
    with Image.open(path) as file:
        return (ImageOps.exif_transpose(file) or file).convert("RGB")


def colours(count: int) -> list[Colour]:
    """Gives ``count`` colours (red, green, blue; 0 to 255) that differ, also for the colour-blind as far as 7 go."""
    golden = (math.sqrt(5) - 1) / 2
    more = (colorsys.hsv_to_rgb(index * golden % 1, (0.9, 0.5)[index % 2], 0.95) for index in range(count))
    return [*_COLOURS, *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in more)][:count]


def heat(values: Values) -> Pixels:
    """(...) values in 0..1 to (..., 3) colours, 0 to 255: blue is low, red is high."""
    steps = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(values, steps, _HEAT[:, channel]) for channel in range(3)], -1)


def cell_centre(box: Box, index: int, size: Sequence[int]) -> tuple[float, float]:
    """Where in an image the centre of a cell of a RoI map lies.

    Args:
        box: The RoI as x1, y1, x2, y2 in px.
        index: Of the cell, row by row.
        size: Height and width of the map.

    Returns:
        x and y in px.
    """
    row, column = divmod(index, size[1])
    width, height = box[2] - box[0], box[3] - box[1]
    return box[0] + (column + 0.5) / size[1] * width, box[1] + (row + 0.5) / size[0] * height


def draw(
    image: Image.Image,
    seen: Mapping[str, Any],
    classes: Sequence[str],
    *,
    name: str,
    score: float = 0.3,
    truth: Sequence[Box] | None = None,
    sides: tuple[int, int] = (960, 1600),
) -> dict[str, Image.Image]:
    """Draws every kind of picture that there is something for.

    Args:
        image: The image, upright.
        seen: What ``trainers.look`` gave for it.
        classes: Class names by label.
        name: Of the image, for the titles.
        score: The least score that ``seen`` was asked for.
        truth: Annotated boxes (x, y, width, height in px), where they are known.
        sides: Longer side in px that small images are enlarged to about, and that large ones are shrunk to.

    Returns:
        Pictures by kind: ``detections``; with key parts ``parts``, ``activation`` (where the head has a global branch)
        and ``objects``; and ``query-P4`` and the like for each level that asks.

    Raises:
        ValueError: The image has another size than the one that was looked at.
    """
    if list(image.size) != list(seen["size"]):
        raise ValueError(f"{name} has {image.size} px here, but the detector read it with {tuple(seen['size'])} px")
    view = _View(image, zoom(image.size, sides))
    found = _found(seen, score)
    pages = {"detections": _detections(view, seen, classes, f"{name}: {found}", truth)}
    if seen.get("parts"):
        pages.update(_key_parts(view, seen, classes, name, found))
    if seen.get("queries"):
        pages.update(_queries(view, seen, name))
    return pages


def write(pages: Mapping[str, Image.Image], folder: Path, stem: str) -> dict[str, Path]:
    """Writes pictures as ``STEM.KIND.png``.

    Returns:
        Their paths by kind.

    Raises:
        OSError: The folder cannot be written.
    """
    paths = {kind: folder / f"{stem}.{kind}.png" for kind in pages}
    for kind, page in pages.items():
        page.save(paths[kind], compress_level=4)
    return paths


def zoom(size: tuple[int, int], sides: tuple[int, int]) -> float:
    """How much larger than the image its picture is: a whole number for small images, at most 1 for others."""
    longer = max(size)
    return float(max(1, round(sides[0] / longer))) if longer <= sides[0] else min(1.0, sides[1] / longer)


class _View:
    """A part of an image, enlarged or shrunk, with places given in px of the image.

    Args:
        image: The image.
        scale: How much larger the picture is.
        window: What part of it, as x1, y1, x2, y2; all of it by default.
    """

    def __init__(self, image: Image.Image, scale: float, window: tuple[int, int, int, int] | None = None) -> None:
        window = window or (0, 0, *image.size)
        self.image, self.scale, self.window = image, scale, window
        size = (max(1, round(scale * (window[2] - window[0]))), max(1, round(scale * (window[3] - window[1]))))
        self.picture = image.resize(size, Image.Resampling.BICUBIC, box=window)
        self.canvas = ImageDraw.Draw(self.picture)
        self.letters = max(12, max(size) // 60)

    def copy(self) -> _View:
        """The same view without anything drawn."""
        return _View(self.image, self.scale, self.window)

    def grey(self, brightness: float) -> Pixels:
        """The picture in grey, (height, width, 3) values of 0 to 255."""
        grey = np.asarray(self.picture.convert("L"), dtype=np.float32) * brightness
        return np.repeat(grey[..., None], 3, 2)

    def put(self, pixels: Pixels) -> None:
        """Replaces the picture by (height, width, 3) values, 0 to 255."""
        self.picture = Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))
        self.canvas = ImageDraw.Draw(self.picture)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a place of the image is in the picture."""
        return self.scale * (x - self.window[0]), self.scale * (y - self.window[1])

    def box(self, box: Box, colour: Colour | str, pen: int) -> None:
        """Draws a box with a dark rim, so that it stands out on any ground."""
        (x1, y1), (x2, y2) = self.at(*box[:2]), self.at(*box[2:])
        x2, y2 = max(x1, x2), max(y1, y2)
        self.canvas.rectangle([x1 - 1, y1 - 1, x2 + 1, y2 + 1], outline="black", width=1)
        self.canvas.rectangle([x1, y1, x2, y2], outline=colour, width=pen)

    def label(self, box: Box, text: str, colour: Colour) -> None:
        """Writes a text on its colour above a box, or into it where there is no room above."""
        font = _font(self.letters)
        place = self.at(*box[:2])
        width, top = font.getlength(text) + 4, self.canvas.textbbox(place, text, font=font, anchor="lb")[1]
        place = (max(0.0, min(place[0], self.picture.width - width)), place[1] - min(0.0, top - 1))
        left, top, right, bottom = self.canvas.textbbox(place, text, font=font, anchor="lb")
        self.canvas.rectangle([left - 1, top - 1, right + 2, bottom + 1], fill=colour)
        self.canvas.text(place, text, fill=_ink(colour), font=font, anchor="lb")

    def dashed(self, box: Box) -> None:
        """Draws a box in black and white dashes, which stand out on any ground."""
        (x1, y1), (x2, y2) = self.at(*box[:2]), self.at(*box[2:])
        self.canvas.rectangle([x1, y1, max(x1, x2), max(y1, y2)], outline="white", width=1)
        dash = 5
        for left in np.arange(x1, x2, 2 * dash).tolist():
            for y in (y1, y2):
                self.canvas.line([left, y, min(left + dash, x2), y], fill="black")
        for top in np.arange(y1, y2, 2 * dash).tolist():
            for x in (x1, x2):
                self.canvas.line([x, top, x, min(top + dash, y2)], fill="black")

    def cells(
        self, cell: Sequence[float], shape: Sequence[int], corner: Sequence[float] = (0, 0)
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which cell of a map lies under each pixel of the picture.

        Args:
            cell: Width and height of a cell in px of the image.
            shape: Height and width of the map.
            corner: Where in the image its first cell begins.

        Returns:
            The row for each row of pixels and the column for each column of pixels, -1 outside of the map.
        """
        found = []
        for axis in (1, 0):
            centres = (np.arange(self.picture.size[axis]) + 0.5) / self.scale + self.window[axis] - corner[axis]
            index = np.floor(centres / cell[axis]).astype(np.int64)
            found.append(np.where((index >= 0) & (index < shape[1 - axis]), index, -1))
        return found[0], found[1]


def _lay(pixels: Pixels, grey: Pixels, values: Values, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
    """Lays a heat map over a grey picture, in place, dark where a value is NaN.

    Args:
        pixels: (height, width, 3) what is drawn on.
        grey: (height, width, 3) what shines through.
        values: (h, w) in 0..1.
        rows: (height,) as ``_View.cells`` gives them.
        columns: (width,)
    """
    where = np.ix_(rows >= 0, columns >= 0)
    chosen = np.ix_(rows[rows >= 0], columns[columns >= 0])
    warm = _OPACITY * heat(np.nan_to_num(values))[chosen] + (1 - _OPACITY) * grey[where]
    pixels[where] = np.where(np.isnan(values)[chosen][..., None], _DARK * grey[where], warm)


# The kinds of pictures


def _found(seen: Mapping[str, Any], score: float) -> str:
    """Says how many detections there are, and what is drawn instead where there are none."""
    count = seen["found"]
    if count:
        return f"{_count(count, 'detection')} with a score of {score:g} or more"
    if seen["best"] is None:
        return "no detections"
    rest = f"; the {_count(len(seen['scores']), 'best one')} drawn" if seen["scores"] else ""
    return f"no detection with a score of {score:g} or more (the best has {seen['best']:.2f}){rest}"


def _detections(
    view: _View, seen: Mapping[str, Any], classes: Sequence[str], title: str, truth: Sequence[Box] | None
) -> Image.Image:
    """Boxes with class and score, the best on top."""
    view = view.copy()
    for x, y, width, height in truth or ():
        view.dashed((x, y, x + width, y + height))
    palette = colours(len(classes))
    rows = list(zip(seen["bboxes"], seen["labels"], seen["scores"], strict=True))
    for box, label, _ in reversed(rows):
        view.box(box, palette[label], _pen(view, box))
    for box, label, value in reversed(rows):
        view.label(box, f"{classes[label]} {value:.2f}", palette[label])
    if truth is not None:
        title += f". Dashed: the {len(truth)} annotated"
    return _page(view, title)


def _key_parts(
    view: _View, seen: Mapping[str, Any], classes: Sequence[str], name: str, found: str
) -> dict[str, Image.Image]:
    """The discovered parts and the activation of the global branch, over the image and for each object enlarged."""
    parts = seen["parts"]
    looked = len(parts["points"])
    if not looked:
        return {}
    total = len(parts["points"][0])
    which = f"{_count(looked, 'detection')}" if looked == seen["found"] else f"the best {looked} of {found}"
    sure = sum(confidence > SHOWN for row in parts["confidences"] for confidence in row)
    title = f"{name}: the {total} key parts discovered in {which}, drawn where their confidence is above {SHOWN:g} "
    title += f"({sure} of {total * looked}); {_SHARED}"
    marked = view.copy()
    for index in reversed(range(looked)):
        marked.box(seen["bboxes"][index], "white", 1)
    for index in reversed(range(looked)):
        _mark(marked, parts, index, seen["bboxes"][index])
    pages = {"parts": _page(marked, title, _part_legend(total, view.letters, view.picture.width))}
    if parts["activation"] is not None:
        warm = view.copy()
        _warm(warm, parts["activation"][:looked], seen["bboxes"])
        for index in reversed(range(looked)):
            warm.box(seen["bboxes"][index], "white", 1)
        title = f"{name}: activation of the global branch in {which}, each from its own lowest to its highest"
        pages["activation"] = _page(warm, title, _bar(view.letters, [(0, "lowest"), (1, "highest")]))
    pages["objects"] = _objects(view, seen, classes, name, found)
    return pages


def _mark(view: _View, parts: Mapping[str, Any], index: int, box: Box) -> None:
    """Marks the parts of one object; parts that share a cell share its point."""
    palette = colours(len(parts["points"][index]))
    cells: dict[int, list[int]] = {}
    for part, (point, confidence) in enumerate(zip(parts["points"][index], parts["confidences"][index], strict=True)):
        if confidence > SHOWN:
            cells.setdefault(point, []).append(part)
    side = view.scale * min((box[2] - box[0]) / parts["size"][1], (box[3] - box[1]) / parts["size"][0])
    radius = min(max(0.42 * side, 2.5), 11.0)
    for point, shared in cells.items():
        x, y = view.at(*cell_centre(box, point, parts["size"]))
        edges = [x - radius, y - radius, x + radius, y + radius]
        if len(shared) == 1:
            view.canvas.ellipse(edges, fill=palette[shared[0]], outline="black")
            if radius >= 7:
                font = _font(round(1.25 * radius))
                ink = _ink(palette[shared[0]])
                view.canvas.text((x, y), str(shared[0] + 1), fill=ink, font=font, anchor="mm")
            continue
        turn = 360 / len(shared)
        for place, part in enumerate(shared):
            view.canvas.pieslice(edges, place * turn - 90, (place + 1) * turn - 90, fill=palette[part])
        view.canvas.ellipse(edges, outline="black")


def _warm(view: _View, activations: Sequence[Sequence[Sequence[float]]], boxes: Sequence[Box]) -> None:
    """Lays activations over their boxes on the picture in grey; in front of others, the first ones."""
    grey = view.grey(0.8)
    pixels = grey.copy()
    for activation, box in reversed(list(zip(activations, boxes))):
        values = np.asarray(activation, dtype=np.float32)
        cell = ((box[2] - box[0]) / values.shape[1], (box[3] - box[1]) / values.shape[0])
        if min(cell) > 0:
            _lay(pixels, grey, values, *view.cells(cell, values.shape, box[:2]))
    view.put(pixels)


def _objects(view: _View, seen: Mapping[str, Any], classes: Sequence[str], name: str, found: str) -> Image.Image:
    """Each object enlarged: its parts and, beside them, the activation of the global branch."""
    parts, palette = seen["parts"], colours(len(classes))
    letters, gap = 14, 6
    both = parts["activation"] is not None
    tiles = []
    for index in range(len(parts["points"])):
        box = seen["bboxes"][index]
        window = _window(box, view.image.size)
        scale = _TILE / max(window[2] - window[0], window[3] - window[1])
        marked = _View(view.image, scale, window)
        marked.box(box, "white", 1)
        _mark(marked, parts, index, box)
        shown = [marked]
        if both:
            shown.append(marked.copy())
            _warm(shown[1], parts["activation"][index : index + 1], [box])
            shown[1].box(box, "white", 1)
        tile = Image.new("RGB", (len(shown) * (_TILE + gap), _TILE + letters + 3 * gap), "white")
        for place, one in enumerate(shown):
            tile.paste(one.picture, (place * (one.picture.width + gap), letters + 2 * gap))
        label = seen["labels"][index]
        canvas = ImageDraw.Draw(tile)
        canvas.rectangle([0, gap, letters, gap + letters], fill=palette[label], outline="black")
        text = f"{classes[label]} {seen['scores'][index]:.2f}"
        canvas.text((letters + gap, gap), text, fill="black", font=_font(letters))
        tiles.append(tile)
    across = min(_ROW if both else 2 * _ROW, len(tiles))
    width, height = tiles[0].size
    sheet = Image.new("RGB", (across * (width + 2 * gap), -(-len(tiles) // across) * height), "white")
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (gap + place % across * (width + 2 * gap), place // across * height))
    total = len(parts["points"][0])
    of = "" if len(tiles) == seen["found"] else f" (the best {len(tiles)} of {found})"
    title = (
        f"{name}: {_count(len(tiles), 'object')}{of}. {'Left' if both else 'Shown'}: those of its {total} key parts "
    )
    title += f"that have a confidence above {SHOWN:g}; {_SHARED}"
    title += ". Right: activation of the global branch, blue is low and red is high" if both else ""
    legend = _part_legend(total, letters, max(sheet.width, _LEAST_WIDTH))
    return _page(sheet, title, legend, letters=letters)


def _queries(view: _View, seen: Mapping[str, Any], name: str) -> dict[str, Image.Image]:
    """The query probabilities of each level, and which cells asked for the next finer one."""
    threshold = seen["queries"]["threshold"]
    pages = {}
    for level, found in seen["queries"]["levels"].items():
        maps = np.array(found["probabilities"], dtype=np.float32)  # None becomes NaN
        warm = view.copy()
        rows, columns = warm.cells(found["cell"], maps.shape)
        grey = warm.grey(1.0)
        pixels = _DARK * grey
        _lay(pixels, grey, _around(maps, threshold), rows, columns)
        finer = f"P{int(level[1:]) - 1}"
        title = f"{name}: query head on {level}, the probability that a small object is near a cell. "
        computed, asked = int((~np.isnan(maps)).sum()), int((maps > threshold).sum())
        ticks = [(0.0, "0"), (1.0, "1")]
        if threshold:
            outside = np.pad(maps > threshold, (0, 1))  # where rows and columns are -1
            pixels[_rim(outside[rows][:, columns])] = 255
            ticks.insert(1, (0.5, f"threshold {threshold:g}"))
            title += f"Outlined: {asked} of {maps.size} cells above the threshold {threshold:g}, looked at again on "
            title += f"{finer}. "
            if computed < maps.size:
                title += f"Dark: {maps.size - computed} cells that nobody asked for. "
        else:
            title += f"The threshold is 0, so every cell of {finer} is computed. "
        warm.put(pixels)
        for box in seen["bboxes"]:
            warm.box(box, "black", 1)
        pages[f"query-{level}"] = _page(warm, title + "Black boxes: detections", _bar(view.letters, ticks))
    return pages


def _around(values: Values, threshold: float) -> Values:
    """Stretches probabilities so that the threshold has the middle colour: what asks is warm, all else cold."""
    if not threshold:
        return values
    return np.where(values <= threshold, values / threshold / 2, 0.5 + (values - threshold) / (1 - threshold) / 2)


def _rim(mask: NDArray[np.bool_], width: int = 2) -> NDArray[np.bool_]:
    """The inner border of what a mask covers."""
    inner = mask.copy()
    for _ in range(width):
        padded = np.pad(inner, 1)
        inner = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


# What is around a picture


def _page(
    picture: _View | Image.Image, title: str, legend: Image.Image | None = None, letters: int | None = None
) -> Image.Image:
    """A picture under its title and above its legend."""
    if isinstance(picture, _View):
        letters, picture = picture.letters, picture.picture
    font, width = _font(letters or 14), max(picture.width, _LEAST_WIDTH)
    lines = _wrapped(title, font, width - 16)
    line = round(1.35 * font.size)
    head = line * len(lines) + 12
    page = Image.new("RGB", (width, head + picture.height + (legend.height if legend else 0)), "white")
    canvas = ImageDraw.Draw(page)
    for index, text in enumerate(lines):
        canvas.text((8, 6 + index * line), text, fill="black", font=font)
    page.paste(picture, (0, head))
    if legend:
        page.paste(legend, (0, head + picture.height))
    return page


def _part_legend(total: int, letters: int, width: int) -> Image.Image:
    """The colours of the key parts by number, in as many rows as they need."""
    font, side = _font(letters), 2 * letters
    first = round(font.getlength("part ")) + 12
    across = max(1, (max(width, _LEAST_WIDTH) - first) // round(2.1 * side))
    legend = Image.new("RGB", (max(width, _LEAST_WIDTH), side * -(-total // across) + 8), "white")
    canvas = ImageDraw.Draw(legend)
    canvas.text((8, 4 + side / 2), "part", fill="black", font=font, anchor="lm")
    for part, colour in enumerate(colours(total)):
        x, y = first + part % across * round(2.1 * side), 4 + part // across * side + side // 2
        radius = letters * 0.5
        canvas.ellipse([x, y - radius, x + 2 * radius, y + radius], fill=colour, outline="black")
        canvas.text((x + 2 * radius + 4, y), str(part + 1), fill="black", font=font, anchor="lm")
    return legend


def _bar(letters: int, ticks: Sequence[tuple[float, str]]) -> Image.Image:
    """A bar of the heat map's colours with words at some places of it."""
    font, width, height = _font(letters), 400, letters
    legend = Image.new("RGB", (_LEAST_WIDTH, height + round(1.5 * letters) + 14), "white")
    colour = heat(np.tile(np.linspace(0, 1, width), (height, 1))).round().astype(np.uint8)
    legend.paste(Image.fromarray(colour), (8, 6))
    canvas = ImageDraw.Draw(legend)
    for place, text in ticks:
        x = 8 + place * (width - 1)
        canvas.line([x, 6, x, 6 + height + 3], fill="black")
        canvas.text((x, 10 + height), text, fill="black", font=font, anchor="la" if place == 0 else "ma")
    return legend


def _wrapped(text: str, font: Any, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _window(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box with a margin, in whole px inside of the image."""
    margin = 0.12 * max(box[2] - box[0], box[3] - box[1]) + 1
    left, top = max(0, math.floor(box[0] - margin)), max(0, math.floor(box[1] - margin))
    right, bottom = min(size[0], math.ceil(box[2] + margin)), min(size[1], math.ceil(box[3] + margin))
    return min(left, size[0] - 1), min(top, size[1] - 1), max(right, left + 1), max(bottom, top + 1)


def _pen(view: _View, box: Box) -> int:
    """Thin lines for small objects, which thick ones would hide."""
    side = view.scale * min(box[2] - box[0], box[3] - box[1])
    return 1 if side < 24 else 2 if side < 80 else 3


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _ink(colour: Colour) -> str:
    """Black or white, whichever can be read on a colour."""
    red, green, blue = colour
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 110 else "white"


def _font(size: int) -> Any:
    """DejaVu Sans as matplotlib ships it, which has more alphabets than Pillow's own; that one where it is missing."""
    if size not in _FONTS:
        spec = find_spec("matplotlib")
        file = Path(str(spec.origin)).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if spec else None
        _FONTS[size] = ImageFont.truetype(file, size) if file and file.is_file() else ImageFont.load_default(size)
    return _FONTS[size]


_FONTS: dict[int, Any] = {}
