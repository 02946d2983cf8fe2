"""Draws studies side by side: their fronts in one plot, and a page that says what that means."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from analysis.compare import Comparison, Side
from analysis.compare.comparison import Found
from analysis.labels import axis, figure, knob_value, scaled
from analysis.pareto import points
from analysis.plots.look import BLUE, INK, VERMILION, dress, dress_page, head, png
from analysis.plots.words import confirmation
from analysis.record import Objective, TrialRecord

# Colour (Okabe and Ito), plotly's and matplotlib's symbol, plotly's and matplotlib's dash: a side has its own of each.
_LOOKS = (
    (BLUE, "circle", "o", "solid", "-"),
    (VERMILION, "square", "s", "dash", "--"),
    ("#009E73", "diamond", "D", "dot", ":"),
    ("#CC79A7", "triangle-up", "^", "dashdot", "-."),
    ("#E69F00", "triangle-down", "v", "longdash", (0, (8, 3))),
    ("#56B4E9", "pentagon", "p", "longdashdot", (0, (8, 2, 1, 2))),
    (INK, "hexagon", "h", "solid", "-"),
)
_CONFIG = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": "", "responsive": True}
_STYLE = """
body{margin:0;color:#222;background:#fff;font:17px/1.5 Helvetica,Arial,'DejaVu Sans',sans-serif}
main{max-width:1680px;margin:0 auto;padding:16px 32px 60px}
h1{font-size:30px;margin:8px 0 0}h2{font-size:22px;margin:36px 0 4px}p{max-width:110ch;margin:8px 0}
.plot{height:62vh;min-height:460px}.wide{overflow-x:auto}.verdict{font-weight:bold}
table{border-collapse:collapse;margin:10px 0}th,td{padding:5px 18px 5px 0;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}th{border-bottom:2px solid #222}.faint{color:#555}
@media print{.plot{height:420px}.modebar-container{display:none!important}}
"""


def versus_figure(comparison: Comparison) -> go.Figure:
    """Draws the studies' fronts, the first objective over each of the others.

    Each side has a colour, a symbol and a dash; what is dominated within its own study is faint, baselines are stars.
    Over two objectives a step line runs through each front. Bars are quartiles of the measured latency and, where the
    front was confirmed, intervals of means over seeds.
    """
    accuracy, *costs = comparison.objectives
    page = make_subplots(1, len(costs), shared_yaxes=True, horizontal_spacing=0.04)
    for column, cost in enumerate(costs, 1):
        for side, found, look in _drawn(comparison):
            cell = {"row": 1, "col": column}
            _traces(page, comparison, side, found, look, cost, cell, legend=column == 1 and found is side.found[0])
        page.update_xaxes(title=_label(cost), zeroline=False, automargin=True, row=1, col=column)
    page.update_yaxes(title=_label(accuracy), zeroline=False, automargin=True, row=1, col=1)
    dress_page(page, comparison.title, _note(comparison))
    return page


def versus_html(comparison: Comparison) -> str:
    """Gives the comparison as one HTML page that needs nothing else: plotly.js is inside (5 MB)."""
    drawn = versus_figure(comparison)
    drawn.update_layout(title_text="", margin_t=50)
    plot = drawn.to_html(full_html=False, include_plotlyjs=True, default_height="100%", config=_CONFIG)
    told = "\n".join(_story(comparison))
    title = html.escape(comparison.title)
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<style>{_STYLE}</style></head>\n<body><main><h1>{title}</h1>"
        f"<p class='faint'>{html.escape(_note(comparison))}</p>\n<div class='plot'>{plot}</div>\n{told}\n"
        "</main></body></html>\n"
    )


def versus_png(comparison: Comparison) -> bytes:
    """Draws the same as ``versus_figure`` as a PNG of 1800 x 1012 px."""
    accuracy, *costs = comparison.objectives
    picture = Figure(figsize=(12, 6.75), dpi=150)
    FigureCanvasAgg(picture)
    told = [f"{item.other} against {item.one}: {item.figures}" for item in comparison.differences]
    head(picture, comparison.title, _note(comparison), *(told if len(told) == 1 else []))
    panels = picture.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, cost in zip(panels, costs, strict=True):
        for side, found, look in _drawn(comparison):
            _draw(axes, comparison, side, found, look, cost)
        dress(axes, _label(cost), _label(accuracy) if axes is panels[0] else "", size=13 if len(costs) < 3 else 10)
    panels[0].legend(loc="lower right", fontsize=12, framealpha=0.9)  # where designs are slow and poor
    picture.subplots_adjust(left=0.07, right=0.97, top=0.82, bottom=0.11, wspace=0.06)
    return png(picture)


def _drawn(comparison: Comparison) -> Iterator[tuple[Side, Found, tuple[Any, ...]]]:
    for place, side in enumerate(comparison.sides):
        for found in side.found:
            yield side, found, _LOOKS[place % len(_LOOKS)]


def _groups(comparison: Comparison, found: Found) -> tuple[list[TrialRecord], list[TrialRecord]]:
    """The front and the rest of a study, the baseline in neither."""
    members = {record.label for record in found.members}
    rest = [item for item in points(found.entry.records, comparison.objectives) if item.label not in members]
    return [item for item in found.members if not item.baseline], [item for item in rest if not item.baseline]


def _traces(
    page: go.Figure,
    comparison: Comparison,
    side: Side,
    found: Found,
    look: Sequence[Any],
    cost: Objective,
    cell: dict[str, int],
    *,
    legend: bool,
) -> None:
    colour, symbol, _, dash, _ = look
    accuracy = comparison.objectives[0]

    def add(trials: Sequence[TrialRecord], marker: dict[str, Any], **more: Any) -> None:
        if trials:
            page.add_trace(
                go.Scatter(
                    x=[scaled(cost.metric, item.metrics[cost.metric]) for item in trials],
                    y=[scaled(accuracy.metric, item.metrics[accuracy.metric]) for item in trials],
                    marker={**marker, "color": colour},
                    hovertext=[_hover(item, comparison, found) for item in trials],
                    hoverinfo=more.pop("hoverinfo", "text"),
                    legendgroup=side.name,
                    **{"mode": "markers", "showlegend": False, **more},
                ),
                **cell,
            )

    front, rest = _groups(comparison, found)
    add(rest, {"symbol": symbol, "size": 9, "opacity": 0.3})
    if len(comparison.objectives) == 2 and len(found.members) > 1:
        line = {"color": colour, "width": 2.5, "dash": dash, "shape": "vh" if cost.maximize else "hv"}
        add(found.members, {}, mode="lines", line=line, hoverinfo="skip")
    edge = {"color": "white", "width": 1.2}
    more = {
        name: {"array": above, "arrayminus": below, "thickness": 1.3, "width": 4}
        for name, (above, below) in (("error_y", _intervals(front, accuracy)), ("error_x", _quartiles(front, cost)))
        if any(above) or any(below)
    }
    add(front, {"symbol": symbol, "size": 14, "line": edge}, name=side.name, showlegend=legend, **more)
    star = {"symbol": "star", "size": 22, "line": {"color": INK, "width": 1.2}}
    add([found.entry.baseline], star, name=side.name, showlegend=legend and not front)


def _draw(axes: Any, comparison: Comparison, side: Side, found: Found, look: Sequence[Any], cost: Objective) -> None:
    colour, _, symbol, _, dash = look
    accuracy = comparison.objectives[0]

    def places(trials: Sequence[TrialRecord]) -> tuple[list[float], list[float]]:
        return (
            [scaled(cost.metric, item.metrics[cost.metric]) for item in trials],
            [scaled(accuracy.metric, item.metrics[accuracy.metric]) for item in trials],
        )

    front, rest = _groups(comparison, found)
    axes.scatter(*places(rest), s=36, marker=symbol, color=colour, alpha=0.3, linewidths=0, zorder=2)
    if len(comparison.objectives) == 2 and len(found.members) > 1:
        step = "steps-pre" if cost.maximize else "steps-post"
        axes.plot(*places(found.members), drawstyle=step, color=colour, linestyle=dash, linewidth=2, zorder=3)
    (up, down), (right, left) = _intervals(front, accuracy), _quartiles(front, cost)
    reach = {"yerr": [down, up] if any(up) else None, "xerr": [left, right] if any(right) or any(left) else None}
    axes.errorbar(*places(front), **reach, fmt="none", ecolor=colour, elinewidth=1.2, capsize=3, zorder=3)
    label = side.name if found is side.found[0] else None
    axes.scatter(*places(front), s=90, marker=symbol, color=colour, edgecolors="white", linewidths=1, zorder=4,
                 label=label if front else None)  # fmt: skip
    baseline = places([found.entry.baseline])
    star = {"s": 260, "marker": "*", "color": colour, "edgecolors": INK, "linewidths": 1, "zorder": 5}
    axes.scatter(*baseline, **star, label=None if front else label)


def _intervals(trials: Sequence[TrialRecord], accuracy: Objective) -> tuple[list[float], list[float]]:
    """How far the interval of the mean over seeds reaches above and below each point, 0 where there is none."""
    up, down = [], []
    for item in trials:
        found = (item.confirmed or {}).get("metrics", {}).get(accuracy.metric)
        known = found is not None and found["low"] is not None
        value = item.metrics[accuracy.metric]
        up.append(max(0.0, scaled(accuracy.metric, found["high"] - value)) if known else 0.0)
        down.append(max(0.0, scaled(accuracy.metric, value - found["low"])) if known else 0.0)
    return up, down


def _quartiles(trials: Sequence[TrialRecord], cost: Objective) -> tuple[list[float], list[float]]:
    """How far the quartiles of a measured latency ratio lie above and below each point, 0 where they are not known."""
    up, down = [], []
    for item in trials:
        value = item.metrics[cost.metric]
        low, high = (item.metrics.get(f"{cost.metric}_{end}", value) for end in ("q1", "q3"))
        up.append(max(0.0, high - value))
        down.append(max(0.0, value - low))
    return up, down


def _hover(trial: TrialRecord, comparison: Comparison, found: Found) -> str:
    what = "the baseline" if trial.baseline else f"trial {trial.label}"
    lines = [f"<b>{html.escape(found.entry.name)}: {what}</b>"]
    lines += [html.escape(figure(o.metric, trial.metrics[o.metric])) for o in comparison.objectives]
    lines += [html.escape(line) for line in confirmation(trial)]
    lines += [f"<i>{html.escape(name)}</i> = {html.escape(knob_value(value))}" for name, value in trial.knobs.items()]
    return "<br>".join(lines)


def _label(objective: Objective) -> str:
    against = " to the own baseline's" if objective.metric == "latency_ratio" else ""
    return f"{axis(objective.metric)}{against}, {'more' if objective.maximize else 'less'} is better"


def _note(comparison: Comparison) -> str:
    confirmed = any(item.confirmed for side in comparison.sides for found in side.found for item in found.members)
    timed = any(objective.metric == "latency_ratio" for objective in comparison.objectives)
    bars = [*(["quartiles of latency"] if timed else []), *(["95 % over seeds"] if confirmed else [])]
    return f"Full: fronts; faint: dominated; stars: baselines{'; bars: ' if bars else ''}{', '.join(bars)}"


def _story(comparison: Comparison) -> Iterator[str]:
    """The page below the plot."""
    accuracy, *costs = comparison.objectives
    yield "<h2>Who found more</h2>"
    for item in comparison.differences:
        yield f"<p><span class='verdict'>{_text(item.other)} against {_text(item.one)}: {_text(item.verdict)}.</span> "
        yield f"{_text(item.figures[0].upper() + item.figures[1:])}. {_text(item.coverage)} {_text(item.says)}</p>"
    heads = ["study", f"baseline {axis(accuracy.metric)}", "points on the front", f"best {axis(accuracy.metric)}"]
    heads += [f"least {axis(cost.metric)}" for cost in costs] + ["hypervolume", "95 % interval"]
    rows = []
    for side in comparison.sides:
        for found in side.found:
            best = max(item.metrics[accuracy.metric] for item in found.members)
            least = [min(item.metrics[cost.metric] for item in found.members) for cost in costs]
            rows.append([
                found.entry.name,
                f"{scaled(accuracy.metric, found.entry.baseline.metrics[accuracy.metric]):.1f}",
                str(len(found.members)),
                f"{scaled(accuracy.metric, best):.1f}",
                *(f"{value:.3f}" for value in least),
                f"{found.volume:.4f}",
                side.reach if len(side.found) == 1 else "",
            ])  # fmt: skip
        if len(side.found) > 1:
            rows.append(["mean of these replicas", *[""] * (3 + len(costs)), f"{side.volume:.4f}", side.reach])
    yield _table(heads, rows)
    yield f"<p class='faint'>{_text(comparison.reference_words)}</p>"
    if comparison.levels:
        yield f"<h2>Best {_text(axis(accuracy.metric))} within a latency</h2>"
        heads = ["latency ratio at most", *(f"{bound:.1f}" for bound in comparison.levels)]
        yield _table(heads, [[side.name, *_within(comparison, side, accuracy)] for side in comparison.sides])
    yield f"<h2>The common baseline</h2><p>{_text(comparison.baseline)}</p>"
    if comparison.remarks:
        yield "<h2>What keeps them apart</h2>"
        yield from (f"<p>{_text(text)}</p>" for text in comparison.remarks)


def _within(comparison: Comparison, side: Side, accuracy: Objective) -> list[str]:
    found = [best[side.name] for best in comparison.levels.values()]
    return ["-" if value is None else f"{scaled(accuracy.metric, value):.1f}" for value in found]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<div class='wide'><table><tr>{top}</tr>\n{body}</table></div>"


def _text(text: str) -> str:
    return html.escape(text)
