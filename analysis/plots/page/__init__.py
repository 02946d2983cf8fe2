"""The interactive page of a front: one HTML file that needs nothing else, drawn in the browser from plain data."""

from __future__ import annotations

from analysis.plots.page.data import Runs, page_data
from analysis.plots.page.html import page_of_data, script_of_data

__all__ = ["Runs", "page_data", "page_of_data", "script_of_data"]
