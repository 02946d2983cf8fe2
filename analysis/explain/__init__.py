"""Figures that explain a study: why a point is where it is. All are for pages, drawn with plotly.

Each function gives ``None`` where the records have nothing to draw. What is thinned says so in its ``note``.
"""

from __future__ import annotations

from analysis.explain.costs import costs_figure
from analysis.explain.curves import curves_figure
from analysis.explain.dress import Drawn
from analysis.explain.endings import Ending, endings
from analysis.explain.growth import growth_figure
from analysis.explain.parallel import parallel_figure
from analysis.explain.shares import shares_figure, surface_figure
from analysis.explain.sizes import sizes_figure
from analysis.explain.slices import slices_figure
from analysis.explain.times import times_figure

__all__ = [
    "Drawn",
    "Ending",
    "costs_figure",
    "curves_figure",
    "endings",
    "growth_figure",
    "parallel_figure",
    "shares_figure",
    "sizes_figure",
    "slices_figure",
    "surface_figure",
    "times_figure",
]
