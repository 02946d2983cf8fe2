"""Parallel coordinates: each design a line through its knobs and its objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from analysis.explain.dress import Drawn, dress, thin
from analysis.explain.settings import Ruler, setting, varying
from analysis.labels import axis, scaled, short
from analysis.labels import figure as worded
from analysis.pareto import points
from analysis.plots.look import BLUE, FAINT_INK, GREY, VERMILION
from analysis.record import Objective, TrialRecord
from analysis.view import view_of

_MOST = 200
_MOST_FRONT = 30
_MOST_KNOBS = 8


@dataclass(frozen=True)
class _Axis:
    """One upright axis: heights from 0 to 1 of the trials, and texts at some heights."""

    title: str
    heights: dict[str, float]
    ticks: Sequence[tuple[float, str]]


def parallel_figure(
    trials: Sequence[TrialRecord], objectives: Sequence[Objective], knobs: Sequence[str]
) -> Drawn | None:
    """Draws each design as a line through its knobs (8 at most) and its objectives, of which up is the better end.

    A knob that a design lacks is at the foot of its axis, marked ``–``.
    """
    view = view_of(trials, objectives)
    drawn = points(trials, objectives)
    there = varying(drawn)
    knobs = [knob for knob in knobs if knob in there]
    chosen = knobs[:_MOST_KNOBS]
    if len(drawn) < 2 or not chosen:
        return None
    axes = [*(_knob_axis(drawn, knob) for knob in chosen), *(_objective_axis(drawn, item) for item in objectives)]
    members = {member.label for member in view.members}
    first = objectives[0].metric
    rest = [trial for trial in drawn if trial.label not in members and not trial.baseline]
    rest.sort(key=lambda trial: (trial.metrics[first], trial.number, trial.point))
    front = [trial for trial in view.members if not trial.baseline]
    figure = go.Figure()
    grey = thin(rest, _MOST)
    if grey:
        x: list[float | None] = []
        y: list[float | None] = []
        for trial in grey:
            x += [*range(len(axes)), None]
            y += [*(one.heights[trial.label] for one in axes), None]
        look = {"color": GREY, "width": 1}
        figure.add_trace(
            go.Scatter(x=x, y=y, mode="lines", name="dominated", line=look, opacity=0.35, hoverinfo="skip")
        )
    for index, trial in enumerate(thin(front, _MOST_FRONT)):
        _line(figure, axes, trial, objectives, "front", BLUE, 2, legend=index == 0)
    if view.baseline is not None:
        _line(figure, axes, view.baseline, objectives, "baseline", VERMILION, 3, legend=True)
    for place, one in enumerate(axes):
        figure.add_shape(
            type="line", x0=place, x1=place, y0=-0.02, y1=1.02, line={"color": FAINT_INK, "width": 1}, layer="below"
        )
        words = one.title.replace(".", ".<br>") if place < len(chosen) else one.title.replace(" (", "<br>(")
        figure.add_annotation(x=place, y=1.05, text=f"<b>{words}</b>", showarrow=False, yanchor="bottom")
        for height, text in one.ticks:
            look = {"size": 11, "color": FAINT_INK}
            pale = "rgba(255,255,255,0.75)"
            figure.add_annotation(
                x=place, y=height, text=text, showarrow=False, xanchor="left", xshift=4, font=look, bgcolor=pale
            )
    dress(figure, 460)
    figure.update_layout(legend={"y": -0.02, "yanchor": "top"}, margin={"l": 30, "r": 60, "t": 60, "b": 40})
    figure.update_xaxes(visible=False, range=[-0.15, len(axes) - 0.5], automargin=False)
    figure.update_yaxes(visible=False, range=[-0.06, 1.16], automargin=False)
    notes = []
    if len(rest) > len(grey):
        notes.append(f"{len(grey)} of {len(rest)} dominated designs are drawn, evenly chosen.")
    if len(front) > _MOST_FRONT:
        notes.append(f"{_MOST_FRONT} of {len(front)} front members are drawn, evenly chosen.")
    if len(knobs) > len(chosen):
        notes.append(f"The {len(chosen)} knobs that explain most are drawn, of {len(knobs)}.")
    return Drawn(figure, f"{len(drawn)} designs as lines through their knobs and objectives.", " ".join(notes))


def _knob_axis(drawn: Sequence[TrialRecord], knob: str) -> _Axis:
    ruler = Ruler.of([setting(trial, knob) for trial in drawn])
    places = {trial.label: ruler.place(setting(trial, knob)) for trial in drawn}
    low, high = min(places.values()), max(places.values())
    span = (high - low) or 1.0
    # One value of many designs is spread a little, so that their lines can be told apart.
    heights = {
        label: (place - low) / span + 0.012 * ((index * 0.618034) % 1 - 0.5)
        for index, (label, place) in enumerate(places.items())
    }
    if ruler.numbers:
        ticks = [(share, f"{low + share * span:.3g}") for share in (0.0, 0.5, 1.0)]
    else:
        step = max(1, len(ruler.labels) // 12)
        ticks = [((index - low) / span, text) for index, text in enumerate(ruler.labels) if index % step == 0]
    return _Axis(knob, heights, ticks)


def _objective_axis(drawn: Sequence[TrialRecord], objective: Objective) -> _Axis:
    values = {trial.label: scaled(objective.metric, trial.metrics[objective.metric]) for trial in drawn}
    low, high = min(values.values()), max(values.values())
    worst, best = (low, high) if objective.maximize else (high, low)
    span = (best - worst) or 1.0
    heights = {label: (value - worst) / span for label, value in values.items()}
    ticks = [(share, f"{worst + share * span:.4g}") for share in (0.0, 0.5, 1.0)]
    return _Axis(axis(objective.metric), heights, ticks)


def _line(
    figure: go.Figure,
    axes: Sequence[_Axis],
    trial: TrialRecord,
    objectives: Sequence[Objective],
    name: str,
    colour: str,
    width: float,
    *,
    legend: bool,
) -> None:
    told = ", ".join(worded(item.metric, trial.metrics[item.metric]) for item in objectives)
    figure.add_trace(
        go.Scatter(
            x=list(range(len(axes))),
            y=[one.heights[trial.label] for one in axes],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            showlegend=legend,
            line={"color": colour, "width": width},
            marker={"size": 6},
            hovertemplate=f"trial {trial.label}: {short(trial.knobs, 70)}<br>{told}<extra></extra>",
        )
    )
