"""What knobs and pairs of knobs explain."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.explain.dress import SERIES, Drawn, dress
from analysis.explain.settings import Ruler, setting
from analysis.importance import Importance, proposed
from analysis.labels import axis, scaled
from analysis.record import Objective, TrialRecord, spread

_MOST = 15
_MOST_PAIRS = 8
_MOST_STEPS = 10


def shares_figure(found: Sequence[Importance]) -> Drawn | None:
    """Draws what each knob explains of each objective alone, and beside it what pairs explain beyond that."""
    told = [item for item in found if item.shares]
    if not told:
        return None
    most = {name: max(item.shares.get(name, 0.0) for item in told) for item in told for name in item.shares}
    knobs = sorted(most, key=lambda name: -most[name])[:_MOST]
    best = {pair: max(item.pairs.get(pair, 0.0) for item in told) for item in told for pair in item.pairs}
    pairs = sorted(best, key=lambda pair: -best[pair])[:_MOST_PAIRS]
    figure = make_subplots(
        1, 2, horizontal_spacing=0.2, subplot_titles=("each knob alone", "two knobs together, beyond each alone")
    )
    for index, item in enumerate(found):
        if not item.shares:
            continue
        name = axis(item.metric).split(" (")[0]
        look = {"color": SERIES[index % len(SERIES)]}
        shown = (
            ([100 * item.shares.get(knob, 0.0) for knob in knobs], knobs),
            ([100 * item.pairs.get(pair, 0.0) for pair in pairs], [f"{one} × {other}" for one, other in pairs]),
        )
        for column, (values, names) in enumerate(shown, start=1):
            figure.add_trace(
                go.Bar(
                    y=names,
                    x=values,
                    orientation="h",
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    marker=look,
                    hovertemplate=f"%{{y}}: %{{x:.1f}} % of {name}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    dress(figure, 130 + max(len(knobs), len(pairs)) * (10 + 14 * len(told)))
    figure.update_xaxes(title="share of the variance (%)", rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(legend={"y": -0.15, "yanchor": "top", "traceorder": "normal"}, margin={"b": 80})
    note = f"The {len(knobs)} knobs that explain most are drawn, of {len(most)}." if len(most) > len(knobs) else ""
    return Drawn(figure, f"Shares of the variance that {len(knobs)} knobs and {len(pairs)} pairs explain.", note)


def surface_figure(trials: Sequence[TrialRecord], objective: Objective, pair: tuple[str, str]) -> Drawn | None:
    """Draws the median of an objective for each combination of two knobs' values, as it was measured.

    A knob of more than ten numbers is cut into ten equal steps; a combination that nobody tried stays white.
    """
    drawn = proposed(spread(trials), objective)
    ways = [_steps([setting(trial, knob) for trial in drawn]) for knob in pair]
    if min(len(names) for _, names in ways) < 2:
        return None
    cells: dict[tuple[int, int], list[float]] = {}
    for trial, row, column in zip(drawn, ways[0][0], ways[1][0], strict=True):
        cells.setdefault((row, column), []).append(scaled(objective.metric, trial.metrics[objective.metric]))
    rows, columns = ways[0][1], ways[1][1]
    middle = [
        [statistics.median(cells[row, column]) if (row, column) in cells else None for column in range(len(columns))]
        for row in range(len(rows))
    ]
    counts = [[len(cells.get((row, column), ())) for column in range(len(columns))] for row in range(len(rows))]
    figure = go.Figure(
        go.Heatmap(
            z=middle,
            x=columns,
            y=rows,
            customdata=counts,
            colorscale="Cividis",
            reversescale=not objective.maximize,
            texttemplate="%{z:.3g}",
            hovertemplate="%{y}, %{x}: median %{z:.4g} of %{customdata} designs<extra></extra>",
            colorbar={"title": {"text": axis(objective.metric), "side": "right"}},
            xgap=2,
            ygap=2,
        )
    )
    dress(figure, 150 + 32 * max(3, len(rows)))
    figure.update_xaxes(title=pair[1], type="category")
    figure.update_yaxes(title=pair[0], type="category")
    said = f"Median {axis(objective.metric)} for combinations of {pair[0]} and {pair[1]}; bright is better."
    return Drawn(figure, said)


def _steps(values: Sequence[object]) -> tuple[list[int], list[str]]:
    """Gives each value's step and the steps' names."""
    ruler = Ruler.of(values)
    places = [ruler.place(value) for value in values]
    if not ruler.numbers:
        return [int(place) for place in places], list(ruler.labels)
    low, width = min(places), (max(places) - min(places)) / _MOST_STEPS
    names = [f"{low + step * width:.3g} to {low + (step + 1) * width:.3g}" for step in range(_MOST_STEPS)]
    return [min(_MOST_STEPS - 1, int((place - low) / width)) for place in places], names
