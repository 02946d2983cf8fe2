"""The front over one or two objectives. The first is the vertical axis, the second the horizontal one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredText
from matplotlib.transforms import Bbox

from analysis.plots.look import BLUE, GREY, INK, SHADE, VERMILION, dress, dress_page, head
from analysis.plots.sizes import Sizes, sizes_of
from analysis.plots.words import hover, named, tags, write_list
from analysis.record import Objective, TrialRecord
from analysis.view import View, missing, view_of

# Cells of a grid of half the smallest marker, in which one dominated point is drawn.
CELLS = (240, 120)


def pair_figure(trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str) -> go.Figure:
    """Draws the front as a figure for a page of several; ``pareto_html`` is a page of its own."""
    view = view_of(trials, objectives)
    sizes = sizes_of([*view.members, *view.faint])
    faint, note = uncovered(view, sizes)
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
    front = [trial for trial in view.members if not trial.baseline]
    small, large = [_diameters(group, sizes, 9) for group in (faint, front)] if sizes else (11.0, 16.0)
    _scatter(page, view, faint, objectives, "dominated", {"color": GREY, "size": small, "opacity": 0.45})
    _scatter(page, view, front, objectives, "front", {"color": BLUE, "size": large})
    if view.baseline is not None:
        look = {"color": VERMILION, "size": 22, "symbol": "star"}
        _scatter(page, view, [view.baseline], objectives, "baseline", look)
    add_intervals(page, view, confirmed(view))
    said = missing(view)
    if said is not None:
        place = {"x": 0.5, "y": 0.9, "xref": "paper", "yref": "paper", "showarrow": False}
        page.add_annotation(text=said.replace("\n", "<br>"), font={"size": 22, "color": INK}, **place)
    dress_page(page, title, note)
    shown = bool(view.members)
    page.update_xaxes(title=view.xlabel, range=view.xlim, zeroline=False, showticklabels=shown, automargin=True)
    page.update_yaxes(title=view.ylabel, range=view.ylim, zeroline=False, showticklabels=shown, automargin=True)
    return page


def uncovered(view: View, sizes: Sizes | None, cells: tuple[int, int] = CELLS) -> tuple[list[TrialRecord], str]:
    """Gives the dominated points that are drawn, large ones first, and the note below the title.

    Left out are those that lie under another one: of each cell the largest is drawn, never without saying so.
    """
    faint = [trial for trial in view.faint if not trial.baseline]
    if sizes is not None:
        faint = sorted(faint, key=sizes.diameter, reverse=True)
    drawn = view.uncovered(faint, cells)
    hidden = len(faint) - len(drawn)
    parts = [view.note, *([sizes.told] if sizes else [])]
    parts += [f"{hidden:,} dominated points lie under others and are not drawn"] if hidden else []
    return drawn, "; ".join(parts)


def _diameters(trials: Sequence[TrialRecord], sizes: Sizes, unit: float) -> list[float]:
    return [unit * sizes.diameter(trial) for trial in trials]


def add_intervals(page: go.Figure, view: View, trials: Sequence[TrialRecord], **cell: int) -> None:
    """Draws the interval of each trial's mean over seeds as a vertical bar, the mean as a stroke across.

    Args:
        page: The page.
        view: The axes.
        trials: Those that have no interval on them are left out.
        cell: ``row`` and ``col`` of a page of several plots.
    """
    shown = [(trial, found) for trial in trials if (found := view.interval(trial))]
    if shown:
        means = [mean for _, (mean, _, _) in shown]
        reaches = [high - mean for _, (mean, _, high) in shown]
        page.add_trace(
            go.Scatter(
                x=view.xs([trial for trial, _ in shown]),
                y=means,
                mode="markers",
                name="mean over seeds",
                marker={"symbol": "line-ew", "size": 22, "line": {"color": INK, "width": 1.5}},
                error_y={"array": reaches, "thickness": 1.5, "width": 5, "color": INK},
                hoverinfo="skip",
                showlegend=False,
            ),
            **cell,
        )


def draw_intervals(axes: Any, view: View, trials: Sequence[TrialRecord]) -> None:
    """Draws the same as ``add_intervals`` into a picture's axes."""
    for trial in trials:
        found = view.interval(trial)
        if found is not None:
            mean, low, high = found
            look = {"color": INK, "linewidth": 1.2, "capsize": 3, "marker": "_", "markersize": 15, "zorder": 2.5}
            axes.errorbar(view.xs([trial])[0], mean, yerr=[[mean - low], [high - mean]], **look)


def confirmed(view: View) -> list[TrialRecord]:
    """The front and the baseline, as far as they were confirmed."""
    rest = [trial for trial in view.faint if trial.baseline]
    return [trial for trial in (*view.members, *rest) if trial.confirmed]


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
    spoken = name == "front"
    spreads = [view.spread(trial) for trial in trials]
    bars: dict[str, Any] = {}
    if spoken and any(spreads):
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
            mode="markers+text" if spoken else "markers",
            name=name,
            marker={**look, "line": {"color": "white", "width": 1.5}},
            text=tags(view, trials),
            textposition="top left" if view.x is not None and not view.x.maximize else "top right",
            textfont={"size": 15, "color": BLUE},
            hovertext=[hover(trial, objectives, view.baseline, name) for trial in trials],
            hovertemplate="%{hovertext}<extra></extra>",
            **bars,
        )
    )


def pair_picture(trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str) -> Figure:
    """Draws the front as a picture of 12 x 6.75 inches, see ``pareto_png``."""
    view = view_of(trials, objectives)
    picture = Figure(figsize=(12, 6.75), dpi=150)
    canvas = FigureCanvasAgg(picture)
    axes = picture.add_axes((0.07, 0.11, 0.60 if view.members else 0.90, 0.74))
    sizes = sizes_of([*view.members, *view.faint])
    faint, note = uncovered(view, sizes)
    head(picture, title, note)
    corner = view.behind()
    if corner is not None:
        left, right, bottom, top = corner
        axes.fill_between([left, right], bottom, top, color=SHADE, alpha=0.6, linewidth=0, zorder=0)
    if view.stepped and view.x is not None:
        look = "steps-pre" if view.x.maximize else "steps-post"
        axes.plot(view.xs(view.members), view.ys(view.members), drawstyle=look, color=BLUE, linewidth=2, zorder=2)
    front = [trial for trial in view.members if not trial.baseline]
    areas: list[Any] = [[d**2 for d in _diameters(group, sizes, 7)] if sizes else None for group in (faint, front)]
    looks: list[tuple[list[TrialRecord], str, str, Any, str, float]] = [
        (faint, "dominated", GREY, areas[0] or 50, "o", 0.5),
        (front, "front", BLUE, areas[1] or 110, "o", 1.0),
        ([view.baseline] if view.baseline else [], "baseline", VERMILION, 300, "*", 1.0),
    ]
    for order, (group, name, colour, size, symbol, opacity) in enumerate(looks, start=3):
        if not group:
            continue
        axes.scatter(
            view.xs(group),
            view.ys(group),
            s=size,
            marker=symbol,
            alpha=opacity,
            color=colour,
            edgecolors="white",
            linewidths=1,
            zorder=order,
            label=name,
        )
    for trial in front:
        spread = view.spread(trial)
        if spread is not None:
            x, y = view.xs([trial])[0], view.ys([trial])[0]
            axes.errorbar(x, y, xerr=[[spread[0]], [spread[1]]], color=BLUE, linewidth=1.2, capsize=3, zorder=2)
    draw_intervals(axes, view, confirmed(view))
    axes.set_xlim(*view.xlim)
    axes.set_ylim(*view.ylim)
    dress(axes, view.xlabel, view.ylabel)
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
        chosen = named(view.members, objectives)
        write_list(picture, chosen, objectives, len(view.members))
        _tag(axes, canvas, view, chosen)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    return picture


def _tag(axes: Any, canvas: FigureCanvasAgg, view: View, chosen: Sequence[TrialRecord]) -> None:
    """Writes each chosen trial's number beside its point, at the first of eight places that touches nothing."""
    canvas.draw()  # type: ignore[no-untyped-call]
    frame = axes.get_window_extent()
    spots = axes.transData.transform(list(zip(view.xs(view.members), view.ys(view.members), strict=True)))
    taken = [Bbox.from_bounds(x - 11, y - 11, 22, 22) for x, y in spots]
    side = 1 if view.x is not None and view.x.maximize else -1
    places = [(side, 1), (-side, 1), (side, -1), (-side, -1), (0, 1.4), (0, -1.4), (2 * side, 0), (-2 * side, 0)]
    for trial in chosen:
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
