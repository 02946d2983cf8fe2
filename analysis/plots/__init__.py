"""Draws a study: its front as an interactive page and as a picture, hypervolume over time, and learned scales by depth.

Only COMPLETE trials with finite objectives are on a front. Colours are those of Okabe and Ito, so that the plots
survive colour-blindness; what matters is told by shape and size as well.
"""

from __future__ import annotations

from analysis.plots.front import pareto_figure, pareto_html, pareto_picture, pareto_png, pareto_svg
from analysis.plots.hypervolume import hypervolume_png
from analysis.plots.look import png, svg
from analysis.plots.page import Runs, page_data, page_of_data, script_of_data
from analysis.plots.scales import scales_json, scales_png

__all__ = [
    "Runs",
    "hypervolume_png",
    "page_data",
    "page_of_data",
    "pareto_figure",
    "pareto_html",
    "pareto_picture",
    "pareto_png",
    "pareto_svg",
    "png",
    "scales_json",
    "scales_png",
    "script_of_data",
    "svg",
]
