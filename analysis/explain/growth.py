"""How the hypervolume grew with compute."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import plotly.graph_objects as go

from analysis.explain.dress import Drawn, dress
from analysis.pareto import Row
from analysis.plots.look import BLUE


def growth_figure(rows: Sequence[Row]) -> Drawn | None:
    """Draws ``pareto.hypervolume_curves`` over compute hours.

    Only trials that changed it, the first and the last are points: the line between them is level.
    """
    if not rows:
        return None
    grew = [row for before, row in pairwise(rows) if row["hypervolume"] > before["hypervolume"]]
    kept = [row for row in rows if row is rows[0] or row is rows[-1] or any(row is one for one in grew)]
    last = kept[-1]["hypervolume"]
    share = [100 * row["hypervolume"] / last if last else 0.0 for row in kept]
    figure = go.Figure(
        go.Scatter(
            x=[row["compute_hours"] for row in kept],
            y=[row["hypervolume"] for row in kept],
            customdata=[[row["finished_trials"], part] for row, part in zip(kept, share, strict=True)],
            mode="lines+markers",
            line={"color": BLUE, "width": 2, "shape": "hv"},
            marker={"size": 6},
            hovertemplate="after %{customdata[0]} trials, %{x:.3f} h: %{y:.4g}, "
            "%{customdata[1]:.1f} % of the last<extra></extra>",
        )
    )
    dress(figure, 320)
    figure.update_xaxes(title="hours spent in trials", rangemode="tozero")
    figure.update_yaxes(title="hypervolume", rangemode="tozero")
    return Drawn(figure, f"Hypervolume over compute hours: {len(grew)} trials let it grow, up to {last:.4g}.")
