"""The front over three objectives or more: one plot of every pair, the front over all of them marked in each.

The first objective is the vertical axis of all plots in the first row, where accuracy stays; below it each of the
others meets those after it. The plots lie in the upper right half; the lower left holds the list of designs in the
picture and the view in space on the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from plotly.subplots import make_subplots

from analysis.labels import axis, scaled
from analysis.plots.look import BLUE, GREY, VERMILION, dress, dress_page, head
from analysis.plots.pair import add_intervals, confirmed, draw_intervals
from analysis.plots.words import Room, hover, named, tags, write_list
from analysis.record import Objective, TrialRecord
from analysis.thin import thin
from analysis.view import View, missing, view_of

_OVERALL = "front over all objectives"
_ALONE = "front over these two alone"
_BETTER = "better than the baseline in both"
_GREEN = "#E3F1EB"  # pale enough for all inks upon it
_CELLS = (120, 60)  # of one plot, see ``View.uncovered``
_SPACE_CELLS = 60


@dataclass(frozen=True)
class Panel:
    """One plot of the matrix.

    Attributes:
        row: From the top, 0-based.
        column: From the left, 0-based.
        view: The two objectives alone: its members are the front of the two.
    """

    row: int
    column: int
    view: View

    def better(self) -> tuple[float, float, float, float] | None:
        """The corner where both objectives are better than the baseline's: left, right, bottom, top, as drawn."""
        view = self.view
        if view.baseline is None or view.x is None:
            return None
        x, y = view.xs([view.baseline])[0], view.ys([view.baseline])[0]
        far_x, far_y = 20 * (view.xlim[1] - view.xlim[0]), 20 * (view.ylim[1] - view.ylim[0])
        left, right = (x, x + far_x) if view.x.maximize else (x - far_x, x)
        bottom, top = (y, y + far_y) if view.y.maximize else (y - far_y, y)
        return left, right, bottom, top


def panels(overall: View, objectives: Sequence[Objective]) -> list[Panel]:
    """Gives one plot of every pair of objectives, row by row.

    Args:
        overall: The view over all objectives; only its points are drawn.
        objectives: Three or more.
    """
    drawn = [*overall.members, *overall.faint]
    return [
        Panel(row, column - 1, view_of(drawn, (objectives[row], objectives[column])))
        for row in range(len(objectives))
        for column in range(row + 1, len(objectives))
    ]


# The picture.


def matrix_picture(trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str) -> Figure:
    """Draws the matrix as a picture of 12 x 6.75 inches, larger with four objectives or more, see ``pareto_png``."""
    overall = view_of(trials, objectives)
    side = len(objectives) - 1
    picture = Figure(figsize=(6.0 * side, 3.375 * side), dpi=150)
    height = picture.get_figheight()
    shown = panels(overall, objectives)
    head(picture, title, _note(overall, shown))
    edges = {"left": 0.13 / side, "right": 0.985, "top": 1 - 1.28 / height, "bottom": 0.65 / height}
    grid = picture.add_gridspec(side, side, **edges, wspace=0.21, hspace=0.34)
    plots = [(panel, picture.add_subplot(grid[panel.row, panel.column])) for panel in shown]
    for panel, axes in plots:
        _draw(panel, overall, axes)
    if not overall.members:
        return picture
    handles = _legend(overall, [panel for panel, _ in plots])
    picture.legend(handles=handles, bbox_to_anchor=(0.14 / side, 1 - 0.91 / height), **_LEGEND)
    top = plots[0][1].get_position().y0 - 1.1 / height
    line = 0.152 / height
    room = Room(left=0.03, top=top, line=line, lines=int((top - 0.25 / height) / line), columns=76)
    chosen = named(overall.members, objectives, room)
    write_list(picture, chosen, objectives, len(overall.members), room)
    for panel, axes in plots:
        _number(axes, panel.view, chosen)
    return picture


_LEGEND: dict[str, Any] = {
    "loc": "upper left",
    "ncols": 5,
    "fontsize": 11,
    "frameon": False,
    "borderpad": 0,
    "borderaxespad": 0,
    "handletextpad": 0.4,
    "columnspacing": 1.4,
}


def _draw(panel: Panel, overall: View, axes: Any) -> None:
    view = panel.view
    corner = panel.better()
    if corner is not None:
        left, right, bottom, top = corner
        axes.fill_between([left, right], bottom, top, color=_GREEN, linewidth=0, zorder=0)
    if view.stepped and view.x is not None:
        look = "steps-pre" if view.x.maximize else "steps-post"
        x, y = view.xs(view.members), view.ys(view.members)
        axes.plot(x, y, drawstyle=look, color=BLUE, linewidth=1.2, linestyle=":", zorder=2)
    for order, (group, name) in enumerate(_groups(overall, view), start=3):
        if group:
            colour, size, symbol, opacity = _LOOKS[name]
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
    draw_intervals(axes, view, confirmed(overall))
    axes.set_xlim(*view.xlim)
    axes.set_ylim(*view.ylim)
    dress(axes, view.xlabel, view.ylabel, size=11)
    if not overall.members:
        axes.set_xticks([])
        axes.set_yticks([])


def _number(axes: Any, view: View, chosen: Sequence[TrialRecord]) -> None:
    """Gives the trials of the list their numbers, as their points."""
    for trial in chosen:
        if not trial.baseline:
            look = {"boxstyle": "round,pad=0.25", "facecolor": BLUE, "edgecolor": "white"}
            at = (view.xs([trial])[0], view.ys([trial])[0])
            place = {"ha": "center", "va": "center", "zorder": 6}
            axes.text(*at, trial.label, fontsize=9.5, weight="bold", color="white", bbox=look, **place)


_LOOKS = {
    "dominated": (GREY, 45, "o", 0.5),
    "front": (BLUE, 95, "o", 1.0),
    "baseline": (VERMILION, 280, "*", 1.0),
}
_NAMES = {"front": _OVERALL}


def _groups(view: View, axes: View | None = None) -> list[tuple[list[TrialRecord], str]]:
    """The points by kind, in the order that they are drawn in; of the dominated ones those that ``axes`` can show."""
    faint, front = ([t for t in group if not t.baseline] for group in (view.faint, view.members))
    shown = faint if axes is None else axes.uncovered(faint, _CELLS)
    return [(shown, "dominated"), (front, "front"), ([view.baseline] if view.baseline else [], "baseline")]


def _note(view: View, plots: Sequence[Panel]) -> str:
    said = missing(view)
    if said is not None:
        return f"{view.note}. {' '.join(said.split())}"
    faint = _groups(view)[0][0]
    hidden = len(faint) - min(len(_groups(view, panel.view)[0][0]) for panel in plots)
    rest = f"; up to {hidden:,} dominated points a plot lie under others and are not drawn" if hidden else ""
    return view.note + rest


def _legend(view: View, plots: Sequence[Panel]) -> list[Any]:
    handles: list[Any] = []
    for group, name in _groups(view):
        if group:
            colour, size, symbol, opacity = _LOOKS[name]
            look = {"marker": symbol, "color": colour, "alpha": opacity, "markersize": size**0.5}
            handles.append(Line2D([], [], linestyle="", label=_NAMES.get(name, name), **look))
    if any(panel.view.stepped for panel in plots):
        handles.append(Line2D([], [], color=BLUE, linewidth=1.2, linestyle=":", label=_ALONE))
    if view.baseline is not None:
        look = {"marker": "s", "color": _GREEN, "markeredgecolor": GREY, "markeredgewidth": 0.5, "markersize": 11}
        handles.append(Line2D([], [], linestyle="", label=_BETTER, **look))
    return handles


# The interactive page.


def matrix_figure(trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str) -> go.Figure:
    """Draws the matrix for an interactive page, with the first three objectives in space, see ``pareto_html``."""
    overall = view_of(trials, objectives)
    side = len(objectives) - 1
    cells: list[list[Any]] = [
        [{"type": "xy"} if column >= row else None for column in range(side)] for row in range(side)
    ]
    cells[1][0] = {"type": "scene", "rowspan": side - 1}
    page = make_subplots(side, side, specs=cells, horizontal_spacing=0.16 / side, vertical_spacing=0.24 / side)
    plots = panels(overall, objectives)
    dress_page(page, title, _note(overall, plots))
    page.update_layout(font_size=15, legend_groupclick="togglegroup")
    shown = bool(overall.members)
    for panel in plots:
        cell = {"row": panel.row + 1, "col": panel.column + 1}
        _panel(page, panel, overall, objectives, cell)
        view = panel.view
        look = {"zeroline": False, "showticklabels": shown, "title_font_size": 15, "title_standoff": 8}
        page.update_xaxes(title_text=view.xlabel, range=view.xlim, **look, **cell)
        page.update_yaxes(title_text=view.ylabel, range=view.ylim, **look, **cell)
    _space(page, overall, objectives)
    return page


def _panel(page: go.Figure, panel: Panel, overall: View, objectives: Sequence[Objective], cell: dict[str, int]) -> None:
    view = panel.view
    first = panel.row == 0 and panel.column == 0
    corner = panel.better()
    if corner is not None:
        left, right, bottom, top = corner
        edges = {"x0": left, "x1": right, "y0": bottom, "y1": top}
        told = {"name": _BETTER, "legendgroup": _BETTER, "showlegend": first}
        page.add_shape(type="rect", fillcolor=_GREEN, line_width=0, layer="below", **edges, **told, **cell)
    if view.stepped and view.x is not None:
        look = {"color": BLUE, "width": 2, "shape": "vh" if view.x.maximize else "hv", "dash": "dot"}
        line = {"mode": "lines", "line": look, "hoverinfo": "skip"}
        group = {"name": _ALONE, "legendgroup": _ALONE, "showlegend": first, "legendrank": 1001}
        page.add_trace(go.Scatter(x=view.xs(view.members), y=view.ys(view.members), **line, **group), **cell)
    for trials, name in _groups(overall, view):
        if not trials:
            continue
        colour, size, symbol, opacity = _LOOKS[name]
        look = {"color": colour, "size": 1.4 * size**0.5, "opacity": opacity, "line": {"color": "white", "width": 1}}
        page.add_trace(
            go.Scatter(
                x=view.xs(trials),
                y=view.ys(trials),
                mode="markers+text" if name == "front" else "markers",
                name=_NAMES.get(name, name),
                legendgroup=name,
                showlegend=first,
                cliponaxis=False,
                marker={**look, "symbol": _SYMBOLS[symbol]},
                text=tags(view, trials, wide=0.05, high=0.1),
                textposition="top left" if view.x is not None and not view.x.maximize else "top right",
                textfont={"size": 13, "color": BLUE},
                hovertext=[hover(trial, objectives, overall.baseline, name) for trial in trials],
                hovertemplate="%{hovertext}<extra></extra>",
            ),
            **cell,
        )
    add_intervals(page, view, confirmed(overall), **cell)


_SYMBOLS = {"o": "circle", "*": "star"}


def _space(page: go.Figure, view: View, objectives: Sequence[Objective]) -> None:
    """Draws the first three objectives: the first upwards, and a stem from each front member to the floor."""
    up, right, depth = objectives[:3]
    cell = {"row": 2, "col": 1}

    def places(trials: Sequence[TrialRecord], objective: Objective) -> list[float]:
        return [scaled(objective.metric, trial.metrics[objective.metric]) for trial in trials]

    drawn = [*view.members, *view.faint]
    if drawn:
        low, high = min(places(drawn, up)), max(places(drawn, up))
        floor = low - (0.1 * (high - low) or 0.1 * abs(high) or 1.0)
        marked = [*view.members, *(trial for trial in view.faint if trial.baseline)]
        stems: tuple[list[float | None], ...] = ([], [], [])
        for trial in marked:
            x, y, z = (places([trial], objective)[0] for objective in (right, depth, up))
            for line, numbers in zip(stems, ((x, x), (y, y), (floor, z)), strict=True):
                line += [*numbers, None]
        look = {"mode": "lines", "line": {"color": GREY, "width": 2}, "hoverinfo": "skip", "showlegend": False}
        page.add_trace(go.Scatter3d(x=stems[0], y=stems[1], z=stems[2], legendgroup="front", **look), **cell)
    for trials, name in _groups(view):
        if name == "dominated":
            spots = list(zip(*(places(trials, objective) for objective in (right, depth, up)), strict=True))
            spans = [max(line) - min(line) for line in zip(*spots, strict=True)]
            trials = [trials[index] for index in thin(spots, spans, [_SPACE_CELLS] * 3)]
        if not trials:
            continue
        colour, size, _, opacity = _LOOKS[name]
        # There is no star in space; a diamond is large for its size.
        symbol, part = ("diamond", 0.5) if name == "baseline" else ("circle", 0.7)
        look = {"color": colour, "size": part * size**0.5, "opacity": opacity, "line": {"color": "white", "width": 1}}
        page.add_trace(
            go.Scatter3d(
                x=places(trials, right),
                y=places(trials, depth),
                z=places(trials, up),
                mode="markers",
                name=_NAMES.get(name, name),
                legendgroup=name,
                showlegend=False,
                marker={**look, "symbol": symbol},
                hovertext=[hover(trial, objectives, view.baseline, name) for trial in trials],
                hovertemplate="%{hovertext}<extra></extra>",
            ),
            **cell,
        )

    def edge(objective: Objective) -> dict[str, Any]:
        label = {"text": axis(objective.metric), "font": {"size": 14}}
        return {"title": label, "tickfont": {"size": 11}, "showticklabels": bool(drawn)}

    # With three objectives the cell is low and wide, with more it is square.
    wide = len(objectives) == 3
    ratio = {"x": 1.5, "y": 1.2, "z": 0.75} if wide else {"x": 1, "y": 1, "z": 1}
    eye = {"x": 1.0, "y": -1.85, "z": 0.6} if wide else {"x": 1.3, "y": -1.8, "z": 0.7}
    page.update_scenes(
        xaxis=edge(right),
        yaxis=edge(depth),
        zaxis=edge(up),
        camera={"eye": eye, "center": {"x": 0, "y": 0, "z": -0.18}},
        aspectmode="manual",
        aspectratio=ratio,
        dragmode="orbit",
    )
