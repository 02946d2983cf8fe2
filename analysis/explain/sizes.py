"""AP by object size along the front."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from analysis.explain.dress import GREEN, ORANGE, SKY, Drawn, dress
from analysis.labels import axis, scaled
from analysis.plots.look import INK
from analysis.record import Objective, TrialRecord
from analysis.view import view_of

_SIZES = (
    ("bbox_mAP", "all sizes", INK, "circle", "solid"),
    ("bbox_mAP_s", "small", ORANGE, "triangle-down", "dot"),
    ("bbox_mAP_m", "medium", SKY, "square", "dash"),
    ("bbox_mAP_l", "large", GREEN, "triangle-up", "dashdot"),
)


def sizes_figure(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> Drawn | None:
    """Draws AP of small, medium and large objects (COCO's, by area) of each front member over the second objective.

    The baseline is the open symbol of the same kind.
    """
    view = view_of(trials, objectives)
    plain = [member for member in view.members if not member.baseline]
    figure = go.Figure()
    drawn = 0
    for metric, name, colour, symbol, dash in _SIZES:
        shown = [member for member in view.members if _has(member, metric)]
        if not shown:
            continue
        drawn += metric != "bbox_mAP"
        figure.add_trace(
            go.Scatter(
                x=view.xs(shown),
                y=[scaled(metric, member.metrics[metric]) for member in shown],
                mode="lines+markers",
                name=name,
                line={"color": colour, "dash": dash, "width": 2},
                marker={"symbol": symbol, "size": 9},
                customdata=[member.label for member in shown],
                hovertemplate=f"trial %{{customdata}}, {name}: %{{y:.1f}} %<extra></extra>",
            )
        )
        if view.baseline is not None and _has(view.baseline, metric):
            figure.add_trace(
                go.Scatter(
                    x=view.xs([view.baseline]),
                    y=[scaled(metric, view.baseline.metrics[metric])],
                    mode="markers",
                    showlegend=False,
                    marker={"symbol": f"{symbol}-open", "size": 15, "color": colour, "line": {"width": 2}},
                    hovertemplate=f"the baseline, {name}: %{{y:.1f}} %<extra></extra>",
                )
            )
    if not drawn:
        return None
    dress(figure, 380)
    figure.update_xaxes(title=view.xlabel)
    figure.update_yaxes(title=axis("bbox_mAP"), rangemode="tozero")
    return Drawn(figure, f"AP by object size of {len(plain)} designs of the front; open symbols are the baseline.")


def _has(trial: TrialRecord, metric: str) -> bool:
    # COCO writes -1 where there is no object of that size.
    return math.isfinite(trial.metrics.get(metric, math.nan)) and trial.metrics[metric] >= 0
