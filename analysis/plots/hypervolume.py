"""Draws how the hypervolume of a study grows."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredText

from analysis.pareto import Row
from analysis.plots.look import BLUE, INK, dress, plain, png


def hypervolume_png(rows: Sequence[Row], *, title: str) -> bytes:
    """Draws ``pareto.hypervolume_curves`` over finished trials and over compute hours as a PNG of 1800 x 750 px.

    Without rows it says that there is nothing to measure yet.
    """
    picture = Figure(figsize=(12, 5), dpi=150)
    FigureCanvasAgg(picture)
    picture.text(0.07, 0.93, plain(title), fontsize=17, weight="bold", color=INK)
    for index, (name, label) in enumerate((("finished_trials", "finished trials"), ("compute_hours", "compute hours"))):
        axes = picture.add_subplot(1, 2, index + 1)
        # Volume is held until the next trial ends.
        x, y = [row[name] for row in rows], [row["hypervolume"] for row in rows]
        axes.step(x, y, where="post", color=BLUE, linewidth=2)
        axes.scatter(x, y, s=18, color=BLUE)
        dress(axes, label, "hypervolume, more is better" if index == 0 else "")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        if not rows:
            text = "Nothing to measure before the\nbaseline is COMPLETE."
            axes.add_artist(AnchoredText(text, loc="center", frameon=False, prop={"size": 13, "color": INK}))
    picture.subplots_adjust(left=0.08, right=0.97, top=0.86, bottom=0.15, wspace=0.18)
    return png(picture)
