"""How accuracy grew while the trials trained, and where they were compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from analysis.explain.dress import ORANGE, Drawn, dress, thin
from analysis.labels import axis, scaled, short
from analysis.plots.look import BLUE, FAINT_INK, GREY, VERMILION
from analysis.record import Objective, TrialRecord, TrialState
from analysis.view import view_of

_MOST = 150
_MOST_FRONT = 20
_METRIC = "bbox_mAP"

Line = tuple[list[float | None], list[float | None]]


def curves_figure(
    trials: Sequence[TrialRecord], objectives: Sequence[Objective], rungs: Sequence[int] = ()
) -> Drawn | None:
    """Draws AP after each epoch of every trial that trained.

    Args:
        trials: All records.
        objectives: Of the study.
        rungs: Epochs at which trials were first compared, drawn as lines.
    """
    view = view_of(trials, objectives)
    numbers = {member.number for member in view.members}
    trained = [trial for trial in trials if _line(trial)[0]]
    if not trained:
        return None
    front = [trial for trial in trained if trial.number in numbers and not trial.baseline]
    rest = [trial for trial in trained if trial.number not in numbers and not trial.baseline]
    rest.sort(key=lambda trial: (len(trial.curve), _line(trial)[1][-1] or 0.0, trial.number))
    stopped = [trial for trial in rest if trial.state is TrialState.STOPPED]
    others = [trial for trial in rest if trial.state is not TrialState.STOPPED]
    figure = go.Figure()
    for group, name, colour in ((stopped, "stopped at a rung", ORANGE), (others, "dominated or not ended", GREY)):
        _bundle(figure, thin(group, _MOST // 2), name, colour)
    for index, trial in enumerate(thin(front, _MOST_FRONT)):
        _curve(figure, trial, "front", BLUE, 2.5, legend=index == 0)
    for trial in trained:
        if trial.baseline:
            _curve(figure, trial, "baseline", VERMILION, 3.5, legend=True)
    for epoch in rungs:
        figure.add_vline(
            x=epoch, line={"color": FAINT_INK, "width": 1, "dash": "dash"}, annotation={"text": f"rung {epoch}"}
        )
    dress(figure, 400)
    figure.update_xaxes(title="epoch", rangemode="tozero")
    figure.update_yaxes(title=f"{axis(_METRIC)} on the validation split", rangemode="tozero")
    left = sum(len(group) - len(thin(group, _MOST // 2)) for group in (stopped, others))
    left += len(front) - len(thin(front, _MOST_FRONT))
    note = f"{len(trained) - left} of {len(trained)} curves are drawn, evenly chosen by length and AP." if left else ""
    ended = f", {len(stopped)} of them stopped at a rung" if stopped else ""
    return Drawn(figure, f"AP by epoch of {len(trained)} trials{ended}.", note)


def _line(trial: TrialRecord) -> tuple[list[int], list[float]]:
    known = [entry for entry in trial.curve if math.isfinite(entry.metrics.get(_METRIC, math.nan))]
    return [entry.epoch for entry in known], [scaled(_METRIC, entry.metrics[_METRIC]) for entry in known]


def _curve(figure: go.Figure, trial: TrialRecord, name: str, colour: str, width: float, *, legend: bool) -> None:
    epochs, values = _line(trial)
    said = f"trial {trial.number}, {short(trial.knobs, 60)}"
    figure.add_trace(
        go.Scatter(
            x=epochs,
            y=values,
            mode="lines+markers",
            name=name,
            legendgroup=name,
            showlegend=legend,
            line={"color": colour, "width": width},
            marker={"size": 5},
            hovertemplate=f"{said}<br>epoch %{{x}}: %{{y:.1f}} %<extra></extra>",
        )
    )


def _bundle(figure: go.Figure, trials: Sequence[TrialRecord], name: str, colour: str) -> None:
    """Draws curves as one trace, and where each ends."""
    if not trials:
        return
    x: list[float | None] = []
    y: list[float | None] = []
    said: list[str] = []
    for trial in trials:
        epochs, values = _line(trial)
        x += [*epochs, None]
        y += [*values, None]
        said += [f"trial {trial.number}, {short(trial.knobs, 60)}"] * (len(epochs) + 1)
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="lines",
            name=name,
            legendgroup=name,
            line={"color": colour, "width": 1},
            opacity=0.6,
            text=said,
            hovertemplate="%{text}<br>epoch %{x}: %{y:.1f} %<extra></extra>",
        )
    )
    ends = [(epochs[-1], values[-1]) for epochs, values in map(_line, trials)]
    figure.add_trace(
        go.Scatter(
            x=[end[0] for end in ends],
            y=[end[1] for end in ends],
            mode="markers",
            legendgroup=name,
            showlegend=False,
            marker={"symbol": "x-thin", "size": 6, "line": {"color": colour, "width": 1.5}},
            hoverinfo="skip",
        )
    )
