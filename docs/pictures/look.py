"""What all pictures share: colours that the colour-blind can tell apart, sizes, and how a file is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442",
)  # fmt: skip
INK, GREY, PALE = "#24292f", "#9aa0a6", "#eef1f4"
LEVELS = {"P2": PURPLE, "P3": BLUE, "P4": SKY, "P5": GREEN, "P6": YELLOW, "P7": ORANGE, "mixed": GREY}

matplotlib.rcParams.update(
    {
        "font.size": 10,
        "font.family": "DejaVu Sans",
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "path",
        "svg.hashsalt": "headway",
    }
)


def canvas(width: float, height: float, columns: int = 1, **options: object) -> tuple[Figure, list[Axes]]:
    """Gives a figure of these inches with panels side by side."""
    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, layout="constrained", **options)
    return figure, list(axes[0])


def bare(axes: Axes, width: float, height: float) -> None:
    """Makes a panel a sheet of paper of this size, x to the right and y down."""
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")
    axes.axis("off")


def grid(
    axes: Axes,
    x: float,
    y: float,
    side: float,
    cells: int,
    marked: Iterable[tuple[int, int]] = (),
    colour: str = BLUE,
    fill: str = PALE,
) -> None:
    """Draws a map of ``cells`` x ``cells`` with its corner at (x, y); ``marked`` are (row, column)."""
    step = side / cells
    axes.add_patch(Rectangle((x, y), side, side, facecolor=fill, edgecolor="none"))
    for row, column in marked:
        axes.add_patch(Rectangle((x + column * step, y + row * step), step, step, facecolor=colour, edgecolor="none"))
    for index in range(cells + 1):
        axes.plot([x, x + side], [y + index * step] * 2, color=GREY, linewidth=0.6)
        axes.plot([x + index * step] * 2, [y, y + side], color=GREY, linewidth=0.6)


def box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, text: str = "") -> None:
    """Draws a layer."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=INK, linewidth=0.8))
    if text:
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", colour: str = INK) -> None:
    """Draws an arrow with a word above its middle."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=colour, linewidth=1.1))
    if text:
        axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - 0.14, text, ha="center", va="bottom", fontsize=9)


def level_bars(axes: Axes, rows: Sequence[tuple[str, dict[str, float]]], unit: str, scale: float = 1e-9) -> None:
    """Draws one bar a design, stacked by pyramid level, with the sum at its end."""
    names = [name for name, _ in rows]
    levels = [level for level in LEVELS if any(parts.get(level) for _, parts in rows)]
    left = [0.0] * len(rows)
    for level in levels:
        widths = [parts.get(level, 0) * scale for _, parts in rows]
        label = "several" if level == "mixed" else level
        axes.barh(names, widths, left=left, color=LEVELS[level], edgecolor="white", linewidth=0.6, label=label)
        left = [before + width for before, width in zip(left, widths)]
    for index, total in enumerate(left):
        axes.text(total, index, f" {total:.1f}", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_xlim(0, max(left) * 1.12)
    axes.legend(ncols=len(levels), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=9)


def save(figure: Figure, path: Path) -> None:
    """Writes an SVG without a date, so that the same picture is the same file."""
    figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
    plt.close(figure)
