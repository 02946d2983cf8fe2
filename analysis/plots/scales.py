"""Draws the scales that a trial learned, by depth (POD, figure 6)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.labels import figure
from analysis.plots.blocks import Block, blocks_of
from analysis.plots.look import BLUE, FAINT_INK, GREY, INK, VERMILION, dress, head, png
from analysis.record import TrialRecord, TrialState

# Direction, its words, colour, marker, and how far beside the block's middle it is drawn.
_DIRECTIONS: tuple[tuple[str, str, str, Any, float], ...] = (
    ("height, $d_h$", BLUE, "o", "-", -0.16),
    ("width, $d_w$", VERMILION, "s", "--", 0.16),
)
_GAP = 0.6  # between two stages, in blocks
_LARGE, _UPRIGHT = 8, 13  # with more blocks their names are small, with still more they are turned
_BELOW = (
    "Below each name: what it was decomposed into, whole dilations (height x width; 0 is a kernel of 1) with their "
    "share of the channels."
)
_BARS = "whole dilations, thicker: more channels"
_TOWERS = {"cls": "classification", "reg": "regression", "inter": "shared tower", "rpn": "RPN"}


def scales_json(record: TrialRecord) -> str:
    """Writes what ``scales_png`` draws as one JSON document: of each convolution its scales and whole dilations."""
    document = {
        "trial": record.number,
        "images": record.attrs.get("scale_images"),
        "learning_epochs": record.attrs.get("learning_epochs"),
        "metrics": {name: value if math.isfinite(value) else None for name, value in _figures(record).items()},
        "convolutions": [vars(block) for block in blocks_of(record)],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def scales_png(record: TrialRecord, *, title: str) -> bytes:
    """Draws the learned scales of a trial by depth as a PNG of 1800 x 1012 px.

    Each convolution has its mean scale in both directions, the standard deviation over the images as error bars, the
    range over the images as a band, and the whole dilations that it was decomposed into as bars across: the thicker,
    the more of its channels have that one.

    Args:
        record: With ``scales`` in its attrs.
        title: Plain text.

    Raises:
        ValueError: The trial has learned no scales.
    """
    return png(scales_picture(record, title=title))


def scales_picture(record: TrialRecord, *, title: str) -> Figure:
    """Draws the picture of ``scales_png``."""
    blocks = blocks_of(record)
    if not blocks:
        raise ValueError(f"trial {record.label} has learned no scales")
    picture = Figure(figsize=(12, 6.75), dpi=150)
    FigureCanvasAgg(picture)
    turned = len(blocks) > _UPRIGHT
    bottom = 0.305 if turned else 0.19
    axes = picture.add_axes((0.07, bottom, 0.91, 0.74 - bottom))
    head(picture, title, *_said(record))
    picture.text(0.07, 0.025, _BELOW, fontsize=11, color=FAINT_INK)
    places = _places(blocks)
    highest = max(max(*block.most, *block.up, 1) for block in blocks)
    _stages(axes, blocks, places)
    axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    for side, (label, colour, marker, dashes, beside) in enumerate(_DIRECTIONS):
        look = {"marker": marker, "linestyle": dashes, "color": colour}
        _series(axes, blocks, [place + beside for place in places], side, label, look)
    dress(axes, "", "scale (1: as in the base)")
    axes.grid(visible=False, axis="x")
    axes.set_xlim(places[0] - 0.5 - _GAP / 2, places[-1] + 0.5 + _GAP / 2)
    axes.set_ylim(-0.03 * highest, 1.06 * highest)
    step = next(step for step in (1, 2, 5, 10, 20) if highest / step <= 12)
    axes.set_yticks(range(0, math.floor(1.06 * highest) + 1, step))
    turn: dict[str, Any] = {"rotation": 90, "multialignment": "right"} if turned else {}
    axes.set_xticks(places, [_name(block, turned) for block in blocks], **turn)
    axes.tick_params(axis="x", labelsize=12 if len(blocks) <= _LARGE else 9.5, length=0)
    axes.legend(handles=_legend(), loc="lower right", bbox_to_anchor=(1, 1.06), **_LEGEND)
    return picture


_LEGEND: dict[str, Any] = {
    "ncols": 4,
    "fontsize": 11,
    "frameon": False,
    "borderpad": 0,
    "borderaxespad": 0.2,
    "columnspacing": 1.4,
}


def _series(
    axes: Any, blocks: Sequence[Block], places: Sequence[float], side: int, label: str, look: Mapping[str, Any]
) -> None:
    means = [block.mean[side] for block in blocks]
    colour = look["color"]
    for block, place in zip(blocks, places, strict=True):
        shares: dict[int, float] = {}
        for dilation, share in _parts(block):
            shares[dilation[side]] = shares.get(dilation[side], 0.0) + share
        # The thicker, the more channels have it.
        widths = [1 + 4 * share for share in shares.values()]
        axes.hlines(list(shares), place - 0.14, place + 0.14, color=colour, linewidth=widths, zorder=3)
        axes.vlines(place, block.least[side], block.most[side], color=colour, alpha=0.25, linewidth=10, zorder=2)
    for group in dict.fromkeys(block.group for block in blocks):
        chosen = [index for index, block in enumerate(blocks) if block.group == group]
        axes.errorbar(
            [places[index] for index in chosen],
            [means[index] for index in chosen],
            yerr=[blocks[index].std[side] for index in chosen],
            label=f"{label} {group}",
            capsize=4,
            linewidth=1.5,
            markersize=7,
            markeredgecolor="white",
            elinewidth=1.5,
            zorder=4,
            **look,
        )


def _places(blocks: Sequence[Block]) -> list[float]:
    """Where each block stands: one apart, with a gap between stages."""
    places = [0.0]
    for before, block in pairwise(blocks):
        places.append(places[-1] + (1.0 if block.group == before.group else 1.0 + _GAP))
    return places


def _stages(axes: Any, blocks: Sequence[Block], places: Sequence[float]) -> None:
    for index, group in enumerate(dict.fromkeys(block.group for block in blocks)):
        own = [place for place, block in zip(places, blocks, strict=True) if block.group == group]
        left, right = own[0] - 0.5 - _GAP / 2, own[-1] + 0.5 + _GAP / 2
        if index % 2 == 0:
            axes.axvspan(left, right, color="#F4F4F4", linewidth=0, zorder=0)
        axes.annotate(
            _TOWERS.get(group, group),
            ((own[0] + own[-1]) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=12,
            weight="bold",
            color=FAINT_INK,
        )


def _name(block: Block, turned: bool) -> str:
    """The block and what it was decomposed into: dilations as height x width, and the share of the channels."""
    words = [f"{h}x{w} {100 * share:.0f} %" for (h, w), share in _parts(block)]
    return block.name + "\n" + (" + " if turned else "\n").join(words)


def _parts(block: Block) -> list[tuple[tuple[int, int], float]]:
    """The whole dilations that have channels, with their share."""
    parts = [(block.low, 1 - block.share_up), (block.up, block.share_up)]
    return [(dilation, share) for dilation, share in parts if share > 0]


def _legend() -> list[Any]:
    handles: list[Any] = [
        Line2D([], [], color=colour, marker=marker, linestyle=dashes, markersize=7, label=label)
        for label, colour, marker, dashes, _ in _DIRECTIONS
    ]
    handles.append(Patch(color=GREY, alpha=0.4, linewidth=0, label="least to largest over the images"))
    handles.append(Line2D([], [], color=GREY, marker="_", markersize=12, markeredgewidth=3, linestyle="", label=_BARS))
    return handles


def _figures(record: TrialRecord) -> dict[str, float]:
    """The figures of the learning network, of the decomposed one before further training, and after it."""
    names = ("learned_", "decomposed_", "learning_", *(["bbox_mAP"] if record.state is TrialState.COMPLETE else []))
    return {name: value for name, value in record.metrics.items() if name.startswith(names)}


def _said(record: TrialRecord) -> list[str]:
    """The lines below the title."""
    images = record.attrs.get("scale_images")
    looks = max((scale.get("images", 0) for scale in record.attrs["scales"].values()), default=0)
    over = f"over {images:,} images" if images else "over the images"
    if images and looks > images:  # mirrored ones are looked at as well where a split has few
        over = f"over {looks:,} looks at {images:,} images"
    lines = [f"Each point is the mean {over}, its error bar the standard deviation."]
    steps = [("learned_bbox_mAP", "with learned scales"), ("decomposed_bbox_mAP", "once decomposed")]
    if record.state is TrialState.COMPLETE:
        steps.append(("bbox_mAP", "after fine-tuning"))
    known = [(record.metrics.get(name, math.nan), word) for name, word in steps]
    words = [f"{figure('bbox_mAP', value)} {word}" for value, word in known if math.isfinite(value)]
    told = ", ".join([*words[:1], *(word.removeprefix("AP ") for word in words[1:])])
    ratio = record.metrics.get("learning_latency_ratio", math.nan)
    speed = f"the learning network's latency: {ratio:.2f} x the baseline's" if math.isfinite(ratio) else ""
    second = "; ".join(part for part in (told, speed) if part)
    return [*lines, *([f"{second}."] if second else [])]
