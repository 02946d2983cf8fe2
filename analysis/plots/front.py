"""Draws the front of a study: over one or two objectives in one plot, over more as a matrix of all pairs as well."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from matplotlib.figure import Figure

from analysis.plots.look import png, svg
from analysis.plots.matrix import matrix_figure, matrix_picture
from analysis.plots.page import Runs, page_data, page_of_data
from analysis.plots.pair import pair_figure, pair_picture
from analysis.record import Objective, TrialRecord


def pareto_figure(trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str) -> go.Figure:
    """Draws the front as one figure, for a notebook or a page of several figures."""
    draw = matrix_figure if len(objectives) > 2 else pair_figure
    return draw(trials, objectives, title=title)


def pareto_html(
    trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str, runs: Runs | None = None
) -> str:
    """Draws the front as one HTML page that needs nothing else: plotly.js is inside (5 MB).

    Any two figures can be its axes. Pointing at a trial shows its knobs and all its figures, a click keeps them and
    leads to the trial's run. Colours and shapes tell the front or the families, sizes the parameters; the baseline is a
    star, and the corner that it dominates is shaded. Bars are the quartiles of the measured latency, and where trials
    were confirmed the interval of the mean over seeds. A slider shows the front as it was; the papers' points can be
    laid over it. With three objectives or more there is a plot of every pair as well, and a view in space of the first
    three.

    Args:
        trials: All records of the study.
        objectives: At least one.
        title: Plain text.
        runs: Where the trials are in MLflow, if they are.
    """
    return page_of_data(page_data(trials, objectives, title=title, runs=runs))


def pareto_picture(trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str) -> Figure:
    """Draws the front as a picture of 12 x 6.75 inches, larger with four objectives or more.

    Front members carry their trial's number; the list beside the plots says what they are, fastest first. Of a long
    front the list keeps the two ends, the knee, and an even choice between them.
    """
    draw = matrix_picture if len(objectives) > 2 else pair_picture
    return draw(trials, objectives, title=title)


def pareto_png(trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str) -> bytes:
    """Gives ``pareto_picture`` as a PNG of 1800 x 1012 px, larger with four objectives or more."""
    return png(pareto_picture(trials, objectives, title=title))


def pareto_svg(trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str) -> str:
    """Gives ``pareto_picture`` as an SVG document."""
    return svg(pareto_picture(trials, objectives, title=title))
