"""How the explaining figures look, and how many points they draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import plotly.graph_objects as go

from analysis.plots.look import BLUE, GREY, INK, VERMILION

GREEN, ORANGE, SKY, PURPLE, YELLOW, BLACK = "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#000000"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW, BLACK)
"""Colours of Okabe and Ito for things without an order."""

FRONT = {"color": BLUE, "size": 10, "line": {"color": "white", "width": 1}}
REST = {"color": GREY, "size": 6, "opacity": 0.5}
UNFIT = {"color": ORANGE, "size": 6, "symbol": "x-thin", "line": {"color": ORANGE, "width": 1.5}, "opacity": 0.8}

Item = TypeVar("Item")


@dataclass(frozen=True)
class Drawn:
    """A figure of the report.

    Attributes:
        figure: The figure; its height is set, its width follows the page.
        says: What it shows, for those who cannot see it.
        note: What was left out of it, "" for nothing.
    """

    figure: go.Figure
    says: str
    note: str = ""


def thin(items: Sequence[Item], most: int) -> list[Item]:
    """Keeps at most ``most`` items, evenly chosen from the order given, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    step = (len(items) - 1) / max(1, most - 1)
    return [items[round(index * step)] for index in range(most)]


def dress(figure: go.Figure, height: int) -> None:
    """Gives a figure its fonts, margins and height."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        font={"size": 13, "color": INK, "family": "Helvetica, Arial, DejaVu Sans, sans-serif"},
        margin={"l": 70, "r": 20, "t": 40, "b": 55},
        hoverlabel={"align": "left", "font": {"size": 13, "color": INK}, "bgcolor": "white", "bordercolor": GREY},
        hovermode="closest",
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
