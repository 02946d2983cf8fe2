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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from plotly.subplots import make_subplots

from analysis.labels import axis, scaled
from analysis.plots.look import BLUE, GREY, INK, VERMILION, dress, dress_page, head
from analysis.plots.words import Room, hover, named, tag, tags, write_list
from analysis.record import Objective, TrialRecord
from analysis.view import View, missing, view_of

_ALONE = "front of the two alone"
_BETTER = "better than the baseline in both"
_GREEN = "#E3F1EB"  # pale enough for all inks upon it


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
    canvas = FigureCanvasAgg(picture)
    head(picture, title, overall.note)
    grid = picture.add_gridspec(
        side, side, left=0.14 / side, right=0.985, top=0.85, bottom=0.2 / side, wspace=0.24, hspace=0.36
    )
    said = missing(overall)
    if said is not None:
        picture.text(0.03, 0.35, said, fontsize=14, color=INK)
    plots = [(panel, picture.add_subplot(grid[panel.row, panel.column])) for panel in panels(overall, objectives)]
    for panel, axes in plots:
        _draw(panel, overall, axes)
    if not overall.members:
        return picture
    picture.legend(handles=_legend(overall), loc="upper right", bbox_to_anchor=(0.99, 0.935), ncols=5, **_LEGEND)
    _, beside = plots[0]
    room = Room(
        left=0.03,
        top=beside.get_position().y0 - 0.17 * 2 / side,
        line=0.152 / picture.get_figheight(),
        lines=int((beside.get_position().y0 - 0.2 * 2 / side) * picture.get_figheight() / 0.152),
        columns=76,
    )
    chosen = named(overall.members, objectives, room)
    write_list(picture, chosen, objectives, len(overall.members), room)
    for panel, axes in plots:
        tag(axes, canvas, panel.view, overall.members, chosen)
    return picture


_LEGEND: dict[str, Any] = {"fontsize": 11, "frameon": False, "borderpad": 0, "handletextpad": 0.4, "columnspacing": 1.4}


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
    for order, (group, name) in enumerate(_groups(overall), start=3):
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
    axes.set_xlim(*view.xlim)
    axes.set_ylim(*view.ylim)
    dress(axes, view.xlabel, view.ylabel)
    if not overall.members:
        axes.set_xticks([])
        axes.set_yticks([])


_LOOKS = {
    "dominated": (GREY, 45, "o", 0.5),
    "front": (BLUE, 95, "o", 1.0),
    "baseline": (VERMILION, 280, "*", 1.0),
}


def _groups(view: View) -> list[tuple[list[TrialRecord], str]]:
    """The points by kind, in the order that they are drawn in."""
    plain = [[t for t in group if not t.baseline] for group in (view.faint, view.members)]
    return [(plain[0], "dominated"), (plain[1], "front"), ([view.baseline] if view.baseline else [], "baseline")]


def _legend(view: View) -> list[Any]:
    handles: list[Any] = []
    for group, name in _groups(view):
        if group:
            colour, size, symbol, opacity = _LOOKS[name]
            look = {"marker": symbol, "color": colour, "alpha": opacity, "markersize": size**0.5}
            handles.append(Line2D([], [], linestyle="", label=name, **look))
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
    dress_page(page, title, overall.note)
    page.update_layout(font_size=15, legend_groupclick="togglegroup")
    shown = bool(overall.members)
    for panel in panels(overall, objectives):
        cell = {"row": panel.row + 1, "col": panel.column + 1}
        _panel(page, panel, overall, objectives, cell)
        view = panel.view
        page.update_xaxes(title=view.xlabel, range=view.xlim, zeroline=False, showticklabels=shown, **cell)
        page.update_yaxes(title=view.ylabel, range=view.ylim, zeroline=False, showticklabels=shown, **cell)
    _space(page, overall, objectives)
    said = missing(overall)
    if said is not None:
        place = {"x": 0.0, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False, "align": "left"}
        page.add_annotation(text=said.replace("\n", "<br>"), font={"size": 22, "color": INK}, **place)
    return page


def _panel(
    page: go.Figure, panel: Panel, overall: View, objectives: Sequence[Objective], cell: dict[str, int]
) -> None:
    view = panel.view
    first = panel.row == 0 and panel.column == 0
    corner = panel.better()
    if corner is not None:
        left, right, bottom, top = corner
        page.add_shape(
            type="rect", x0=left, x1=right, y0=bottom, y1=top, fillcolor=_GREEN, line_width=0, layer="below", **cell
        )
    if view.stepped and view.x is not None:
        look = {"color": BLUE, "width": 2, "shape": "vh" if view.x.maximize else "hv", "dash": "dot"}
        line = {"mode": "lines", "line": look, "hoverinfo": "skip"}
        group = {"name": _ALONE, "legendgroup": _ALONE, "showlegend": first}
        page.add_trace(go.Scatter(x=view.xs(view.members), y=view.ys(view.members), **line, **group), **cell)
    for trials, name in _groups(overall):
        if not trials:
            continue
        colour, size, symbol, opacity = _LOOKS[name]
        look = {"color": colour, "size": 1.4 * size**0.5, "opacity": opacity, "line": {"color": "white", "width": 1}}
        page.add_trace(
            go.Scatter(
                x=view.xs(trials),
                y=view.ys(trials),
                mode="markers+text" if name == "front" else "markers",
                name=name,
                legendgroup=name,
                showlegend=first,
                marker={**look, "symbol": _SYMBOLS[symbol]},
                text=tags(view, trials, wide=0.05, high=0.1),
                textposition="top left" if view.x is not None and not view.x.maximize else "top right",
                textfont={"size": 13, "color": BLUE},
                hovertext=[hover(trial, objectives, overall.baseline, name) for trial in trials],
                hovertemplate="%{hovertext}<extra></extra>",
            ),
            **cell,
        )


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
        marked = [*view.members, *([view.baseline] if view.baseline else [])]
        stems: tuple[list[float | None], ...] = ([], [], [])
        for trial in marked:
            x, y, z = (places([trial], objective)[0] for objective in (right, depth, up))
            for line, numbers in zip(stems, ((x, x), (y, y), (floor, z)), strict=True):
                line += [*numbers, None]
        look = {"mode": "lines", "line": {"color": GREY, "width": 2}, "hoverinfo": "skip", "showlegend": False}
        page.add_trace(go.Scatter3d(x=stems[0], y=stems[1], z=stems[2], legendgroup="front", **look), **cell)
    for trials, name in _groups(view):
        if not trials:
            continue
        colour, size, symbol, opacity = _LOOKS[name]
        look = {"color": colour, "size": 0.7 * size**0.5, "opacity": opacity, "line": {"color": "white", "width": 1}}
        page.add_trace(
            go.Scatter3d(
                x=places(trials, right),
                y=places(trials, depth),
                z=places(trials, up),
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=False,
                marker={**look, "symbol": "diamond" if name == "baseline" else "circle"},  # there is no star in space
                hovertext=[hover(trial, objectives, view.baseline, name) for trial in trials],
                hovertemplate="%{hovertext}<extra></extra>",
            ),
            **cell,
        )

    def edge(objective: Objective) -> dict[str, Any]:
        # Turned so that the better end is the nearer one or the right one, as far as the scene's turning allows.
        label = f"{axis(objective.metric)}, {'more' if objective.maximize else 'less'} is better"
        return {"title": {"text": label, "font": {"size": 13}}, "tickfont": {"size": 11}, "showticklabels": bool(drawn)}

    page.update_scenes(
        xaxis=edge(right),
        yaxis=edge(depth),
        zaxis=edge(up),
        camera={"eye": {"x": 1.5, "y": -1.7, "z": 0.8}},
        aspectmode="cube",
        dragmode="orbit",
    )
