"""Draws detections on images, for a person to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from analysis.bundle.config import palette

_LEAST_SIDE, _MOST_SIDE = 640, 1600  # px of the longer side
_SCORE = 0.3
_FEW = 5


def draw(
    path: Path,
    found: Mapping[str, Any],
    truth: Sequence[Sequence[float]],
    classes: Sequence[str],
    out: Path,
) -> None:
    """Draws the detections of one image.

    Boxes with a score of 0.3 or more are drawn with class and score in the class's colour; where there are none, the
    five best, which the caption says. Annotated boxes are thin white lines. Small images are enlarged.

    Args:
        path: The image.
        found: ``bboxes`` (x1, y1, x2, y2 in px), ``labels`` and ``scores``, best first.
        truth: Annotated boxes (x, y, width, height in px).
        classes: Class names by label.
        out: JPEG to write.
    """
    with Image.open(path) as file:
        image = (ImageOps.exif_transpose(file) or file).convert("RGB")
    longer = max(image.size)
    scale = max(1, round(_LEAST_SIDE / longer)) if longer <= _LEAST_SIDE else min(1.0, _MOST_SIDE / longer)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    letters = max(12, max(image.size) // 48)
    font = ImageFont.load_default(letters)
    pen = max(2, max(image.size) // 320)
    canvas = ImageDraw.Draw(image)
    for x, y, width, height in truth:
        canvas.rectangle([scale * x, scale * y, scale * (x + width), scale * (y + height)], outline="white")

    rows = list(zip(found["bboxes"], found["labels"], found["scores"], strict=True))
    sure = [row for row in rows if row[2] >= _SCORE]
    colours = palette(len(classes))
    for box, label, score in reversed(sure or rows[:_FEW]):  # the best on top
        canvas.rectangle([scale * side for side in box], outline=colours[label], width=pen)
        text, place = f"{classes[label]} {score:.2f}", (scale * box[0], scale * box[1])
        left, top, right, bottom = canvas.textbbox(place, text, font=font, anchor="lb")
        if top < 0:  # no room above the box
            place = (place[0], place[1] - top)
            left, top, right, bottom = canvas.textbbox(place, text, font=font, anchor="lb")
        canvas.rectangle([left, top, right, bottom], fill=colours[label])
        red, green, blue = colours[label]
        ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 110 else "white"
        canvas.text(place, text, fill=ink, font=font, anchor="lb")

    caption = f"{len(sure)} detections with a score of {_SCORE} or more"
    if not sure:
        caption = f"none with a score of {_SCORE} or more; the best {min(_FEW, len(rows))}" if rows else "no detections"
    caption += f"; thin white: the {len(truth)} annotated"
    strip = 2 * letters
    page = Image.new("RGB", (image.width, image.height + strip), "white")
    page.paste(image)
    ImageDraw.Draw(page).text((strip / 4, image.height + strip / 4), caption, fill="black", font=font)
    page.save(out, quality=90)
