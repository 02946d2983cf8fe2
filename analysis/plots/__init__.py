"""Draws a study: its front as an interactive page and as a picture, hypervolume over time, and learned scales by depth.

Only COMPLETE trials with finite objectives are on a front. Colours are those of Okabe and Ito, so that the plots
survive colour-blindness; what matters is told by shape and size as well.
"""

from __future__ import annotations

from analysis.plots.front import pareto_figure, pareto_html, pareto_png
from analysis.plots.hypervolume import hypervolume_png
from analysis.plots.scales import scales_json, scales_png

__all__ = ["hypervolume_png", "pareto_figure", "pareto_html", "pareto_png", "scales_json", "scales_png"]
