"""One panel a knob: an objective over the knob's values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.explain.dress import FRONT, REST, UNFIT, Drawn, dress, thin
from analysis.explain.settings import Ruler, setting
from analysis.importance import proposed
from analysis.labels import axis, scaled
from analysis.plots.look import INK, VERMILION
from analysis.record import Objective, TrialRecord, TrialState, spread
from analysis.view import view_of

_COLUMNS = 3
_MOST_KNOBS = 12
_MOST = 400


def slices_figure(
    trials: Sequence[TrialRecord], objectives: Sequence[Objective], objective: Objective, knobs: Sequence[str]
) -> Drawn | None:
    """Draws an objective over each knob. The front is blue, the baseline a dashed line, medians are black strokes.

    Of cost and latency also designs that were refused or stopped are drawn, as crosses.

    Args:
        trials: All records.
        objectives: Of the study; the front is over all of them.
        objective: The one that is drawn.
        knobs: In the order of the panels; the first 12 are drawn.
    """
    view = view_of(trials, objectives)
    drawn = proposed(spread(trials), objective)
    # Of designs that were refused the accuracy is not known, and with them values of a knob may be gone.
    knobs = [knob for knob in knobs if len({repr(setting(trial, knob)) for trial in drawn}) > 1]
    if not knobs:
        return None
    members = {member.label for member in view.members}
    drawn.sort(key=lambda trial: (trial.metrics[objective.metric], trial.number, trial.point))
    unfit = thin([trial for trial in drawn if trial.state is not TrialState.COMPLETE], _MOST)
    rest = thin([t for t in drawn if t.state is TrialState.COMPLETE and t.label not in members], _MOST)
    front = thin([trial for trial in drawn if trial.label in members], _MOST)
    chosen = list(knobs[:_MOST_KNOBS])
    columns = min(_COLUMNS, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = make_subplots(
        rows, columns, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=75 / (75 * rows + 190 * rows),
        subplot_titles=chosen,
    )  # fmt: skip
    for index, knob in enumerate(chosen):
        cell = {"row": index // columns + 1, "col": index % columns + 1}
        ruler = Ruler.of([setting(trial, knob) for trial in drawn])
        groups = ((unfit, "not COMPLETE", UNFIT), (rest, "dominated", REST), (front, "front", FRONT))
        for group, name, look in groups:
            _cloud(figure, group, name, look, knob, ruler, objective, cell, legend=index == 0)
        if not ruler.numbers:
            _medians(figure, drawn, knob, ruler, objective, cell, legend=index == 0)
            figure.update_xaxes(
                tickvals=list(range(len(ruler.labels))),
                ticktext=list(ruler.labels),
                range=[-0.6, len(ruler.labels) - 0.4],
                **cell,
            )
        if view.baseline is not None:
            level = scaled(objective.metric, view.baseline.metrics[objective.metric])
            figure.add_hline(y=level, line={"color": VERMILION, "width": 1.5, "dash": "dash"}, **cell)
    if view.baseline is not None:
        line = {"color": VERMILION, "width": 1.5, "dash": "dash"}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="lines", name="baseline", line=line))
    dress(figure, 70 + 265 * rows)
    figure.update_layout(legend={"y": 1 + 30 / (265 * rows)}, margin={"t": 70})
    for row in range(1, rows + 1):
        figure.update_yaxes(title=axis(objective.metric), row=row, col=1)
    faint, left = sum(trial.label not in members for trial in drawn), len(rest) + len(unfit)
    note = f"{left} of {faint} designs off the front are drawn, evenly chosen." if faint > left else ""
    if len(drawn) - faint > len(front):
        note += f" Of the front {len(front)} of {len(drawn) - faint} designs are drawn, evenly chosen."
    if len(knobs) > len(chosen):
        note += f" The {len(chosen)} knobs that explain most are drawn, of {len(knobs)}."
    said = f"{axis(objective.metric)} of {len(drawn)} designs over each of {len(chosen)} knobs; the front is marked."
    return Drawn(figure, said, note.strip())


def _cloud(
    figure: go.Figure,
    group: Sequence[TrialRecord],
    name: str,
    look: dict[str, object],
    knob: str,
    ruler: Ruler,
    objective: Objective,
    cell: dict[str, int],
    *,
    legend: bool,
) -> None:
    if not group:
        return
    # Designs of one value stand side by side; the front in the middle.
    shift = 0.0 if ruler.numbers else 0.5
    offsets = [shift * ((index * 0.618034) % 1 - 0.5) for index in range(len(group))]
    places = [ruler.place(setting(trial, knob)) for trial in group]
    figure.add_trace(
        go.Scatter(
            x=[place + offset for place, offset in zip(places, offsets, strict=True)],
            y=[scaled(objective.metric, trial.metrics[objective.metric]) for trial in group],
            mode="markers",
            name=name,
            legendgroup=name,
            showlegend=legend,
            marker=look,
            text=[trial.label for trial in group],
            hovertemplate="trial %{text}: %{y:.4g}<extra></extra>",
        ),
        **cell,
    )


def _medians(
    figure: go.Figure,
    drawn: Sequence[TrialRecord],
    knob: str,
    ruler: Ruler,
    objective: Objective,
    cell: dict[str, int],
    *,
    legend: bool,
) -> None:
    groups: dict[float, list[float]] = {}
    for trial in drawn:
        value = scaled(objective.metric, trial.metrics[objective.metric])
        groups.setdefault(ruler.place(setting(trial, knob)), []).append(value)
    middles = {place: statistics.median(values) for place, values in groups.items()}
    figure.add_trace(
        go.Scatter(
            x=list(middles),
            y=list(middles.values()),
            mode="markers",
            name="median",
            legendgroup="median",
            showlegend=legend,
            marker={"symbol": "line-ew", "size": 26, "line": {"color": INK, "width": 2.5}},
            customdata=[len(groups[place]) for place in middles],
            hovertemplate="median of %{customdata} designs: %{y:.4g}<extra></extra>",
        ),
        **cell,
    )
