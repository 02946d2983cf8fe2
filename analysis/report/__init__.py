"""The report of a study: one page that tells what was searched, what was found, what to pick and what not to trust."""

from __future__ import annotations

from analysis.report.context import Context
from analysis.report.page import report_html

__all__ = ["Context", "report_html"]
