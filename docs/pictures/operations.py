"""What each family does, one picture each."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pictures.look import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, SKY, arrow, bare, box, canvas, grid
from spaces.pod.scales import decompose


def slimhead() -> Figure:
    """Equations 2 and 3: two levels of a head, the finer one slimmed to half its side."""
    figure, (axes,) = canvas(9, 3.9)
    bare(axes, 15.2, 6.4)
    for top, name, cells, side, slimmed in ((0.5, "P3", 16, 2.4, True), (4.2, "P4", 8, 1.2, False)):
        middle = top + side / 2
        axes.text(0.0, middle, name, va="center", fontsize=11, weight="bold")
        grid(axes, 0.7, top, side, cells)
        inner = side / 2 if slimmed else side
        if slimmed:
            arrow(axes, (3.2, middle), (4.2, middle), "Slim\nr = 0.5")
            grid(axes, 4.3, middle - inner / 2, inner, cells // 2, fill="#dbeaf5")
        arrow(axes, (5.6 if slimmed else 2.0, middle), (6.2, middle))
        for index in range(4):
            box(axes, 6.3 + 0.55 * index, middle - 0.6, 0.42, 1.2, SKY if slimmed else PALE)
        arrow(axes, (8.5, middle), (9.1 if slimmed else 12.0, middle))
        if slimmed:
            grid(axes, 9.2, middle - inner / 2, inner, cells // 2, fill="#dbeaf5")
            arrow(axes, (10.5, middle), (11.4, middle), "Fat\n1/r")
            grid(axes, 11.5, top, side, cells)
        else:
            grid(axes, 11.5 + 0.6, top, side, cells)
        arrow(axes, (13.95 if slimmed else 13.4, middle), (14.5, middle))
        axes.text(14.6, middle, "cls\nbox", va="center", fontsize=9)
    axes.text(7.4, 6.15, "towers, the same weights on every level", ha="center", fontsize=9)
    axes.plot([7.4, 7.4], [2.4, 4.1], color=GREY, linestyle=":", linewidth=1)
    axes.text(1.9, 3.3, "16x16", ha="center", fontsize=8, color=INK)
    axes.text(4.9, 2.75, "8x8: a quarter of the sites", ha="center", fontsize=8, color=INK)
    return figure


def dcn() -> Figure:
    """The taps of a 3x3 convolution: on the grid, with offsets, with offsets and a mask."""
    figure, panels = canvas(9, 3.2, 3)
    draw = np.random.default_rng(4)
    offsets = draw.normal(0, 0.42, (3, 3, 2))
    mask = draw.uniform(0.15, 1, (3, 3))
    titles = ("plain", "version 1: offsets", "version 2: offsets and a mask")
    for number, (axes, title) in enumerate(zip(panels, titles)):
        bare(axes, 7, 7)
        grid(axes, 0, 0, 7, 7, fill="white")
        axes.set_title(title, fontsize=10)
        for row in range(3):
            for column in range(3):
                x, y = 2.5 + column, 2.5 + row
                dx, dy = offsets[row, column] if number else (0, 0)
                size = 90 * mask[row, column] if number == 2 else 60
                if number:
                    axes.plot(x, y, "o", markersize=3, color=GREY)
                    axes.annotate("", (x + dx, y + dy), (x, y), arrowprops={"arrowstyle": "-", "color": GREY})
                axes.scatter(x + dx, y + dy, s=size, color=RED if number else BLUE, zorder=3)
        axes.add_patch(Rectangle((3, 3), 1, 1, fill=False, edgecolor=INK, linewidth=1.6))
    return figure


def shallow() -> Figure:
    """Figure 7 of SlimHead: towers of the levels as boxes, their height the channels."""
    figure, panels = canvas(9, 2.9, 3)
    full = {"P3": (4, 1.0), "P4": (4, 1.0), "P5": (4, 1.0)}
    designs = (
        ("base: one tower for all", full),
        ("fewer channels on P3, P4", {**full, "P3": (4, 0.5), "P4": (4, 0.5)}),
        ("fewer layers: gradual up to P4", {**full, "P3": (2, 1.0), "P4": (3, 1.0)}),
    )
    for axes, (title, towers) in zip(panels, designs):
        bare(axes, 6.4, 5.2)
        axes.set_title(title, fontsize=10)
        for row, (level, (layers, share)) in enumerate(towers.items()):
            middle = 0.8 + 1.7 * row
            axes.text(0, middle, level, va="center", weight="bold")
            own = towers is not full and level != "P5"
            for index in range(layers):
                # The last layer of a narrow tower gives the full channels.
                height = 1.2 * (share if index < layers - 1 else 1)
                box(axes, 1.1 + 1.1 * index, middle - height / 2, 0.8, height, ORANGE if own else PALE)
    return figure


def ddod() -> Figure:
    """Equation 1 on made-up predictions around one object, and equations 3 and 4 on made-up counts."""
    figure, panels = canvas(9, 3.3, 3, width_ratios=(1, 1, 1.2))
    cells = 9
    centres = np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), -1) + 0.5
    goal = np.array([4.6, 4.3])
    draw = np.random.default_rng(7)
    away = np.linalg.norm(centres - goal, axis=-1)
    # The classifier is surest left of the centre, boxes are best right of it.
    score = np.clip(
        np.exp(-(np.linalg.norm(centres - [3.4, 4.0], axis=-1) ** 2) / 5) + draw.normal(0, 0.02, away.shape), 0.01, 1
    )
    overlap = np.clip(
        np.exp(-(np.linalg.norm(centres - [5.7, 4.8], axis=-1) ** 2) / 9) + draw.normal(0, 0.02, away.shape), 0.01, 1
    )
    nearest = np.argsort(away, axis=None)[:21]
    inside = (np.abs(centres - goal) < [3.1, 2.6]).all(-1)

    def positives(alpha: float) -> np.ndarray:
        quality = np.where(inside, score ** (1 - alpha) * overlap**alpha, 0)
        chosen = quality.ravel()[nearest]
        found = np.zeros(cells * cells, bool)
        found[nearest] = chosen >= chosen.mean() + chosen.std()
        return found.reshape(cells, cells) & inside

    for axes, title, alphas in ((panels[0], "one assigner", (0.65, 0.65)), (panels[1], "two", (0.1, 0.9))):
        bare(axes, cells, cells)
        grid(axes, 0, 0, cells, cells, fill="white")
        axes.add_patch(Rectangle(goal - [3.1, 2.6], 6.2, 5.2, fill=False, edgecolor=INK, linewidth=1.6))
        axes.set_title(title, fontsize=10)
        for marked, style in zip(
            map(positives, alphas),
            ({"color": BLUE, "s": 70}, {"s": 150, "facecolors": "none", "edgecolors": RED, "linewidths": 2}),
        ):
            axes.scatter(centres[marked][:, 0], centres[marked][:, 1], zorder=3, **style)
    counts = {"P3": 900, "P4": 520, "P5": 260, "P6": 90, "P7": 30}
    low, high = min(counts.values()), max(counts.values())
    weights = [2 - (count - low) / (high - low) for count in counts.values()]
    axes = panels[2]
    axes.bar(list(counts), weights, color=GREEN)
    axes.set_ylim(0, 2.5)
    axes.set_ylabel("weight of the loss")
    for index, (count, weight) in enumerate(zip(counts.values(), weights)):
        axes.text(index, weight + 0.04, f"{count}\npositives" if not index else str(count), ha="center", fontsize=8)
    return figure


def querydet() -> Figure:
    """The cascade from P4 to P2, with query cells chosen by hand."""
    figure, (axes,) = canvas(9, 3.6)
    bare(axes, 15.5, 5.6)
    queries = {"P4": {(1, 2), (5, 5)}}
    keys_p3 = {(2 * row + i, 2 * column + j) for row, column in queries["P4"] for i in (0, 1) for j in (0, 1)}
    queries["P3"] = {(3, 4), (10, 11), (11, 11)}
    keys_p2 = {(2 * row + i, 2 * column + j) for row, column in queries["P3"] for i in (0, 1) for j in (0, 1)}
    maps = (
        ("P4: dense", 0.2, 8, queries["P4"], ORANGE, SKY),
        ("P3: 8 of 256 cells", 5.5, 16, keys_p3, SKY, PALE),
        ("P2: 12 of 1,024 cells", 10.8, 32, keys_p2, SKY, PALE),
    )
    for title, x, cells, marked, colour, fill in maps:
        grid(axes, x, 0.7, 4.4, cells, marked, colour, fill)
        axes.text(x + 2.2, 0.45, title, ha="center", fontsize=10)
    step = 4.4 / 16
    for row, column in queries["P3"]:
        axes.add_patch(
            Rectangle(
                (5.5 + column * step, 0.7 + row * step), step, step, facecolor=ORANGE, edgecolor=INK, linewidth=0.4
            )
        )
    for x in (4.65, 9.95):
        arrow(axes, (x, 2.9), (x + 0.8, 2.9))
    axes.text(
        7.7, 5.45, "orange: query score above the threshold    blue: where the head runs", ha="center", fontsize=9
    )
    return figure


def keyparts() -> Figure:
    """What the usual box head reads of a RoI map, and what this one reads."""
    figure, (axes,) = canvas(9, 3.2)
    bare(axes, 15.5, 5.2)
    every = {(row, column) for row in range(7) for column in range(7)}
    parts = {(1, 3), (2, 1), (3, 5), (5, 2), (5, 5), (3, 3)}
    axes.text(1.75, 0.3, "two FC layers", ha="center")
    grid(axes, 0, 0.8, 3.5, 7, every, SKY)
    arrow(axes, (3.6, 2.55), (4.4, 2.55))
    box(axes, 4.5, 0.9, 0.8, 3.3, SKY)
    axes.text(4.9, 4.75, "7·7·256 =\n12,544 numbers", ha="center", fontsize=9)
    axes.text(9.1, 0.3, "K key parts and an LxL view", ha="center")
    grid(axes, 7.4, 0.8, 3.5, 7, parts, ORANGE)
    arrow(axes, (11.0, 1.6), (12.4, 1.6), "K·256")
    grid(axes, 11.15, 3.0, 1.2, 3, {(row, column) for row in range(3) for column in range(3)}, GREEN)
    arrow(axes, (10.95, 3.6), (11.1, 3.6))
    arrow(axes, (12.4, 3.6), (13.2, 3.6), "64·L²")
    box(axes, 13.3, 0.9, 0.8, 1.4, ORANGE)
    box(axes, 13.3, 2.3, 0.8, 0.4, "#F5D9A8")
    box(axes, 13.3, 2.7, 0.8, 1.5, GREEN)
    axes.text(13.7, 4.75, "6,480 numbers\n(K16, L5)", ha="center", fontsize=9)
    axes.text(14.2, 2.5, "confidences", va="center", fontsize=8)
    return figure


def pod() -> Figure:
    """Figure 3 of POD: the decomposition of (1.7, 2.9) over 256 channels, as the code does it."""
    scale = (1.7, 2.9)
    split = decompose(*scale, channels=256)
    figure, panels = canvas(9, 3.4, 4, width_ratios=(1, 1, 1, 0.55))
    kernels = (
        (f"learned {scale}", scale, RED),
        (f"dilation {split.low}", split.low, BLUE),
        (f"dilation {split.up}", split.up, GREEN),
    )
    for axes, (title, (down, across), colour) in zip(panels, kernels):
        bare(axes, 7, 7)
        grid(axes, 0, 0, 7, 7, fill="white")
        axes.set_title(title, fontsize=10)
        for row in (-1, 0, 1):
            for column in (-1, 0, 1):
                axes.scatter(3.5 + column * across, 3.5 + row * down, s=60, color=colour, zorder=3)
        axes.add_patch(Rectangle((3, 3), 1, 1, fill=False, edgecolor=INK, linewidth=1.6))
    axes = panels[3]
    left = 0
    for count, colour in ((split.n_low, BLUE), (split.n_up, GREEN)):
        axes.bar([0], [count], bottom=[left], color=colour, width=0.5)
        axes.text(0, left + count / 2, str(count), ha="center", va="center", color="white", weight="bold")
        left += count
    axes.set_xticks([])
    axes.set_ylabel("output channels")
    return figure


PICTURES = {
    "slimhead": slimhead,
    "dcn": dcn,
    "shallow": shallow,
    "ddod": ddod,
    "querydet": querydet,
    "keyparts": keyparts,
    "pod": pod,
}
