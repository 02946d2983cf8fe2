"""Draws the front of a study: over one or two objectives in one plot, over more as a matrix of all pairs."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from analysis.plots.look import page_of, png
from analysis.plots.matrix import matrix_figure, matrix_picture
from analysis.plots.pair import pair_figure, pair_picture
from analysis.record import Objective, TrialRecord


def pareto_figure(trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str) -> go.Figure:
    """Draws what ``pareto_html`` has on its page; a notebook shows it by itself."""
    draw = matrix_figure if len(objectives) > 2 else pair_figure
    return draw(trials, objectives, title=title)


def pareto_html(trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str) -> str:
    """Draws the front as one HTML page that needs nothing else: plotly.js is inside (5 MB), no network is used.

    Pointing at a trial shows its knobs and all its figures. The baseline is a star, the front is blue, dominated trials
    are faint; the bars are the quartiles of the measured latency. With one or two objectives the front is joined by
    its step line and the corner that the baseline dominates is shaded. With three or more there is a plot of every
    pair, the same trials marked in each, and a view in space of the first three.

    Args:
        trials: All records of the study; states other than COMPLETE are only counted.
        objectives: At least one.
        title: Plain text.
    """
    return page_of(pareto_figure(trials, objectives, title=title), title, height=760 if len(objectives) > 2 else 480)


def pareto_png(trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str) -> bytes:
    """Draws the same as ``pareto_html`` as a PNG of 1800 x 1012 px, larger with four objectives or more.

    Front members carry their trial's number; the list beside the plots says what they are, fastest first. Of a long
    front the list keeps the two ends, the knee, and an even choice between them.
    """
    draw = matrix_picture if len(objectives) > 2 else pair_picture
    return png(draw(trials, objectives, title=title))
