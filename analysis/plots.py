"""Draws the front of a study: an interactive page, a picture of the same content, and hypervolume over time.

The first objective is the vertical axis, the second the horizontal one; a third is drawn as colour. Only COMPLETE
trials with finite objectives are drawn. Colours are those of Okabe and Ito and the scale is cividis, so that the
plots survive colour-blindness; what matters is told by shape and size as well.
"""

from __future__ import annotations

import html
import io
import textwrap
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredText
from matplotlib.transforms import Bbox

from analysis.choose import knee
from analysis.labels import axis, figure, knob_value, scaled, short
from analysis.pareto import Row, values
from analysis.record import Objective, TrialRecord
from analysis.view import View, missing, view_of

BLUE, VERMILION, GREY, INK = "#0072B2", "#D55E00", "#9A9A9A", "#222222"
SHADE = "#F3E3DA"
_MOST_NAMED = 12  # designs that the picture spells out
_UNUSED = ["lasso2d", "select2d"]
_LINES = 36  # of text beside the picture


# The interactive page.


def pareto_html(trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str) -> str:
    """Draws the front as one HTML page that needs nothing else: plotly.js is inside (5 MB), no network is used.

    Pointing at a trial shows its knobs and all its figures. The baseline is a star, and the corner that it dominates
    is shaded; the front is blue and joined by its step line, dominated trials are faint; the bars are the quartiles
    of the measured latency. With three or more objectives the third is the colour, and there is no step line.

    Args:
        trials: All records of the study; states other than COMPLETE are only counted.
        objectives: At least one.
        title: Plain text.
    """
    view = view_of(trials, objectives)
    page = go.Figure()
    corner = view.behind()
    if corner is not None:
        left, right, bottom, top = corner
        page.add_shape(
            type="rect", x0=left, x1=right, y0=bottom, y1=top, fillcolor=SHADE, opacity=0.6, line_width=0, layer="below"
        )
    if view.stepped and view.x is not None:
        page.add_trace(
            go.Scatter(
                x=view.xs(view.members),
                y=view.ys(view.members),
                mode="lines",
                line={"color": BLUE, "width": 3, "shape": "vh" if view.x.maximize else "hv"},
                hoverinfo="skip",
                showlegend=False,
            )
        )
    plain = [[t for t in group if not t.baseline] for group in (view.faint, view.members)]
    _scatter(page, view, plain[0], objectives, "dominated", {"color": GREY, "size": 11, "opacity": 0.45})
    _scatter(page, view, plain[1], objectives, "front", {"color": BLUE, "size": 16})
    if view.baseline is not None:
        look = {"color": VERMILION, "size": 22, "symbol": "star"}
        _scatter(page, view, [view.baseline], objectives, "baseline", look)
    said = missing(view)
    if said is not None:
        place = {"x": 0.5, "y": 0.9, "xref": "paper", "yref": "paper", "showarrow": False}
        page.add_annotation(text=said.replace("\n", "<br>"), font={"size": 22, "color": INK}, **place)
    page.update_layout(
        title={
            "text": f"{html.escape(title)}<br><span style='font-size:16px;color:#555'>{html.escape(view.note)}</span>",
            "font": {"size": 26},
            "x": 0.02,
        },
        font={"size": 18, "color": INK, "family": "Helvetica, Arial, DejaVu Sans, sans-serif"},
        template="plotly_white",
        hoverlabel={"align": "left", "font": {"size": 16, "color": INK}, "bgcolor": "white", "bordercolor": GREY},
        # Above the plot, where no point can lie below it.
        legend={
            "orientation": "h",
            "x": 1,
            "xanchor": "right",
            "y": 1,
            "yanchor": "bottom",
            "itemsizing": "trace",
        },
        margin={"l": 90, "r": 40, "t": 100, "b": 80},
        hovermode="closest",
        hoverdistance=30,
    )
    shown = bool(view.members)
    page.update_xaxes(title=view.xlabel, range=view.xlim, zeroline=False, showticklabels=shown, automargin=True)
    page.update_yaxes(title=view.ylabel, range=view.ylim, zeroline=False, showticklabels=shown, automargin=True)
    # plotly's own "share" button would upload the study to its makers' cloud.
    buttons = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": "", "modeBarButtonsToRemove": _UNUSED}
    body = page.to_html(
        full_html=False,
        include_plotlyjs=True,
        default_height="100%",
        config={**buttons, "responsive": True},
    )
    style = "html,body{height:100%;margin:0;background:white}body>div{height:100%;min-height:480px}"
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{style}</style></head>\n<body>{body}</body></html>\n"
    )


def _scatter(
    page: go.Figure,
    view: View,
    trials: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    name: str,
    look: dict[str, Any],
) -> None:
    if not trials:
        return
    marker: dict[str, Any] = {**look, "line": {"color": "white", "width": 1.5}}
    if view.colour is not None:
        # The scale is shared by all traces, so that one colour means one value.
        marker |= {"color": view.colours(trials), "coloraxis": "coloraxis"}
        marker["line"] = {"color": {"front": INK, "baseline": VERMILION}.get(name, "white"), "width": 2}
        page.update_layout(
            coloraxis={"colorscale": "Cividis", "colorbar": {"title": {"text": axis(view.colour.metric)}}}
        )
    named = name == "front"
    spreads = [view.spread(trial) for trial in trials]
    bars: dict[str, Any] = {}
    if named and any(spreads):
        bars["error_x"] = {
            "array": [spread[1] if spread else 0 for spread in spreads],
            "arrayminus": [spread[0] if spread else 0 for spread in spreads],
            "thickness": 1.5,
            "width": 4,
            "color": BLUE,
        }
    page.add_trace(
        go.Scatter(
            x=view.xs(trials),
            y=view.ys(trials),
            mode="markers+text" if named else "markers",
            name=name,
            marker=marker,
            text=_tags(view, trials),
            textposition="top left" if view.x is not None and not view.x.maximize else "top right",
            textfont={"size": 15, "color": BLUE if view.colour is None else INK},
            hovertext=[_hover(trial, objectives, view.baseline, name) for trial in trials],
            hovertemplate="%{hovertext}<extra></extra>",
            **bars,
        )
    )


def _tags(view: View, trials: Sequence[TrialRecord]) -> list[str]:
    """Gives each trial's number, or nothing where it would run into the number of a trial before it."""
    wide, high = (view.xlim[1] - view.xlim[0]) * 0.03, (view.ylim[1] - view.ylim[0]) * 0.045
    taken: list[tuple[float, float]] = []
    tags = []
    for x, y, trial in zip(view.xs(trials), view.ys(trials), trials, strict=True):
        free = all(abs(x - left) > wide or abs(y - low) > high for left, low in taken)
        taken += [(x, y)] if free else []
        tags.append(trial.label if free else "")
    return tags


def _hover(trial: TrialRecord, objectives: Sequence[Objective], baseline: TrialRecord | None, name: str) -> str:
    head = f"<b>trial {trial.label}</b>" + {"front": ", on the front", "baseline": ", the baseline"}.get(name, "")
    lines = [head, *(f"<b>{html.escape(figure(o.metric, trial.metrics[o.metric]))}</b>" for o in objectives)]
    if baseline is not None and baseline.label != trial.label:
        lines.append("against the baseline: " + ", ".join(_against(trial, baseline, o) for o in objectives))
    lines += [f"<i>{html.escape(name)}</i> = {html.escape(knob_value(value))}" for name, value in trial.knobs.items()]
    shown = {objective.metric for objective in objectives}
    rest = ", ".join(figure(name, trial.metrics[name]) for name in sorted(trial.metrics) if name not in shown)
    return "<br>".join([*lines, *(html.escape(line) for line in textwrap.wrap(rest, 56))])


def _against(trial: TrialRecord, baseline: TrialRecord, objective: Objective) -> str:
    ours, theirs = (scaled(objective.metric, t.metrics[objective.metric]) for t in (trial, baseline))
    if objective.maximize or theirs == 0:
        return f"{ours - theirs:+.1f} {axis(objective.metric).split(' (')[0]}"
    return f"{100 * (ours / theirs - 1):+.0f} % {axis(objective.metric).split(' (')[0]}"


# The pictures.


def pareto_png(trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str) -> bytes:
    """Draws the same as ``pareto_html`` as a PNG of 1800 x 1012 px.

    Front members carry their trial's number; the list on the right says what they are, most accurate last. Of a front
    of more than 12 the list keeps the two ends, the knee, and an even choice between them.
    """
    view = view_of(trials, objectives)
    picture = Figure(figsize=(12, 6.75), dpi=150)
    canvas = FigureCanvasAgg(picture)
    wide = (0.60 if view.colour is None else 0.52) if view.members else 0.90
    axes = picture.add_axes((0.07, 0.11, wide, 0.74))
    picture.text(0.07, 0.94, _plain(title), fontsize=17, weight="bold", color=INK)
    picture.text(0.07, 0.89, _plain(view.note), fontsize=11, color="#555555")
    corner = view.behind()
    if corner is not None:
        left, right, bottom, top = corner
        axes.fill_between([left, right], bottom, top, color=SHADE, alpha=0.6, linewidth=0, zorder=0)
    if view.stepped and view.x is not None:
        look = "steps-pre" if view.x.maximize else "steps-post"
        axes.plot(view.xs(view.members), view.ys(view.members), drawstyle=look, color=BLUE, linewidth=2, zorder=2)
    plain = [[t for t in group if not t.baseline] for group in (view.faint, view.members)]
    looks: list[tuple[list[TrialRecord], str, str, float, str, float]] = [
        (plain[0], "dominated", GREY, 50, "o", 0.5),
        (plain[1], "front", BLUE, 110, "o", 1.0),
        ([view.baseline] if view.baseline else [], "baseline", VERMILION, 300, "*", 1.0),
    ]
    scale = None
    if view.colour is not None and view.members:
        every = view.colours([*view.members, *view.faint])
        scale = ScalarMappable(Normalize(min(every), max(every)), "cividis")
        bar = picture.colorbar(scale, cax=picture.add_axes((0.61, 0.11, 0.015, 0.70)))
        bar.ax.set_title(axis(view.colour.metric), fontsize=11)
    for order, (group, name, colour, size, symbol, opacity) in enumerate(looks, start=3):
        if not group:
            continue
        ink: dict[str, Any] = {"color": colour}
        if scale is not None:
            ink = {"c": view.colours(group), "cmap": scale.cmap, "norm": scale.norm}
        # Where colour means a figure, the edge tells the kinds apart.
        edges = {"front": INK, "baseline": VERMILION} if view.colour is not None else {}
        axes.scatter(
            view.xs(group),
            view.ys(group),
            s=size,
            marker=symbol,
            alpha=opacity,
            edgecolors=edges.get(name, "white"),
            linewidths=2 if name in edges else 1,
            zorder=order,
            label=name,
            **ink,
        )
    for trial in plain[1]:
        spread = view.spread(trial)
        if spread is not None:
            x, y = view.xs([trial])[0], view.ys([trial])[0]
            axes.errorbar(x, y, xerr=[[spread[0]], [spread[1]]], color=BLUE, linewidth=1.2, capsize=3, zorder=2)
    axes.set_xlim(*view.xlim)
    axes.set_ylim(*view.ylim)
    _dress(axes, view.xlabel, view.ylabel)
    said = missing(view)
    if said is not None:
        axes.add_artist(AnchoredText(said, loc="upper center", frameon=False, prop={"size": 14, "color": INK}))
    if view.members:
        # Above the plot, where no point can lie below it.
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=3,
            fontsize=11,
            frameon=False,
            borderpad=0,
            borderaxespad=0.2,
        )
        named = _named(view.members, objectives)
        _list(picture, named, objectives, len(view.members))
        _tag(axes, canvas, view, named)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    return _png(picture)


def _named(members: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Picks the members to spell out, as many as there is room for: the two ends, the knee, and evenly between."""
    best = knee(members, objectives).trial.label
    middle = next(index for index, trial in enumerate(members) if trial.label == best)
    for count in range(min(_MOST_NAMED, len(members)), 2, -1):
        step = (len(members) - 1) / (count - 1)
        picked = {round(index * step) for index in range(count)}
        if middle not in picked:
            picked.remove(min(picked - {0, len(members) - 1}, key=lambda index: abs(index - middle)))
            picked.add(middle)
        named = [members[index] for index in sorted(picked)]
        lines = sum(len(part) for trial in named for part in _entry(trial, objectives)) + 0.5 * len(named)
        if lines <= _LINES:
            return named
    return [members[index] for index in sorted({0, middle, len(members) - 1})]


def _entry(trial: TrialRecord, objectives: Sequence[Objective]) -> tuple[list[str], list[str]]:
    design = textwrap.wrap(_plain(short(trial.knobs)), 41, max_lines=2, placeholder=" …")
    words = [figure(o.metric, value) for o, value in zip(objectives, values(trial, objectives), strict=True)]
    return design, textwrap.wrap(_plain(", ".join(words)), 44, max_lines=2, placeholder=" …")


def _list(picture: Figure, named: Sequence[TrialRecord], objectives: Sequence[Objective], total: int) -> None:
    top, line, left = 0.85, 0.0225, 0.71
    indent = 0.012 + 0.008 * max((len(trial.label) for trial in named), default=1)
    heading = "the front, fastest first" if _timed(objectives) else "the front"
    picture.text(left, 0.89, heading, fontsize=11, weight="bold", color=INK)
    used = 0.0
    for trial in named:
        colour = VERMILION if trial.baseline else BLUE
        at = top - used * line
        picture.text(left, at, trial.label, va="top", fontsize=9.5, weight="bold", color=colour)
        design, figures = _entry(trial, objectives)
        for index, text in enumerate([*design, *figures]):
            ink = INK if index < len(design) else "#555555"
            picture.text(left + indent, at - index * line, text, fontsize=9.5, va="top", color=ink)
        used += len(design) + len(figures) + 0.5
    if total > len(named):
        text = f"and {total - len(named)} more, in front.csv"
        picture.text(left, top - used * line, text, fontsize=9.5, va="top", color=INK)


def _timed(objectives: Sequence[Objective]) -> bool:
    return len(objectives) > 1 and objectives[1].metric.startswith("latency") and not objectives[1].maximize


def _tag(axes: Any, canvas: FigureCanvasAgg, view: View, named: Sequence[TrialRecord]) -> None:
    """Writes each named trial's number beside its point, at the first of eight places that touches nothing."""
    canvas.draw()  # type: ignore[no-untyped-call]
    frame = axes.get_window_extent()
    spots = axes.transData.transform(list(zip(view.xs(view.members), view.ys(view.members), strict=True)))
    taken = [Bbox.from_bounds(x - 11, y - 11, 22, 22) for x, y in spots]
    side = 1 if view.x is not None and view.x.maximize else -1
    places = [(side, 1), (-side, 1), (side, -1), (-side, -1), (0, 1.4), (0, -1.4), (2 * side, 0), (-2 * side, 0)]
    for trial in named:
        x, y = axes.transData.transform((view.xs([trial])[0], view.ys([trial])[0]))
        width, height = 13.0 * len(trial.label) + 6, 24.0
        for dx, dy in places:
            middle = (x + dx * (14 + width / 2), y + dy * (14 + height / 2))
            box = Bbox.from_bounds(middle[0] - width / 2, middle[1] - height / 2, width, height)
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                at = axes.transData.inverted().transform(middle)
                colour = VERMILION if trial.baseline else BLUE
                axes.text(*at, trial.label, ha="center", va="center", fontsize=10, weight="bold", color=colour)
                break


def hypervolume_png(rows: Sequence[Row], *, title: str) -> bytes:
    """Draws ``pareto.hypervolume_curves`` over finished trials and over compute hours as a PNG of 1800 x 750 px.

    Without rows it says that there is nothing to measure yet.
    """
    picture = Figure(figsize=(12, 5), dpi=150)
    FigureCanvasAgg(picture)
    picture.text(0.07, 0.93, _plain(title), fontsize=17, weight="bold", color=INK)
    for index, (name, label) in enumerate((("finished_trials", "finished trials"), ("compute_hours", "compute hours"))):
        axes = picture.add_subplot(1, 2, index + 1)
        # Volume is held until the next trial ends.
        x, y = [row[name] for row in rows], [row["hypervolume"] for row in rows]
        axes.step(x, y, where="post", color=BLUE, linewidth=2)
        axes.scatter(x, y, s=18, color=BLUE)
        _dress(axes, label, "hypervolume, more is better" if index == 0 else "")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        if not rows:
            text = "Nothing to measure before the\nbaseline is COMPLETE."
            axes.add_artist(AnchoredText(text, loc="center", frameon=False, prop={"size": 13, "color": INK}))
    picture.subplots_adjust(left=0.08, right=0.97, top=0.86, bottom=0.15, wspace=0.18)
    return _png(picture)


def _dress(axes: Any, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(_plain(xlabel), fontsize=13)
    axes.set_ylabel(_plain(ylabel), fontsize=13)
    axes.tick_params(labelsize=11)
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _plain(text: str) -> str:
    # matplotlib reads a pair of dollars as mathematics.
    return text.replace("$", r"\$")


def _png(picture: Figure) -> bytes:
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()
