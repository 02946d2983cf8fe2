"""Draws the detections that lie in a bundle, for a person to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers import drawing

_SCORE, _FEW = 0.3, 5
_SIDES = (640, 1600)  # px of the longer side


def draw(
    path: Path,
    found: Mapping[str, Any],
    truth: Sequence[Sequence[float]],
    classes: Sequence[str],
    out: Path,
) -> None:
    """Draws the detections of one image.

    Boxes with a score of 0.3 or more are drawn with class and score in the class's colour; where there are none, the
    five best, which the title says. Annotated boxes are dashed. Small images are enlarged.

    Args:
        path: The image.
        found: ``bboxes`` (x1, y1, x2, y2 in px), ``labels`` and ``scores``, best first.
        truth: Annotated boxes (x, y, width, height in px).
        classes: Class names by label.
        out: JPEG to write.
    """
    image = drawing.open_image(path)
    sure = sum(score >= _SCORE for score in found["scores"])
    seen = {key: found[key][: sure or _FEW] for key in ("bboxes", "labels", "scores")}
    seen.update(size=image.size, found=sure, best=max(found["scores"], default=None))
    pages = drawing.draw(image, seen, classes, name=path.name, score=_SCORE, truth=truth, sides=_SIDES)
    pages["detections"].save(out, quality=90)
