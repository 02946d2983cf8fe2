"""Writes the page and the script that brings its news."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs


def page_of_data(data: Mapping[str, Any]) -> str:
    """Wraps ``page_data`` into a page that needs nothing else: plotly.js is inside (5 MB)."""
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{html.escape(data['title'])}</title>"
        f"<style>{_own('front.css')}</style></head>\n<body>{_own('front.html')}"
        f"<script>{get_plotlyjs()}</script>\n<script id='data' type='application/json'>{_json(data)}</script>\n"
        f"<script>{_own('front.js')}</script></body></html>\n"
    )


def script_of_data(data: Mapping[str, Any]) -> str:
    """Writes ``page_data`` as a script that hands it to a page that is open."""
    return f"headway({_json(data)});\n"


def _json(data: Mapping[str, Any]) -> str:
    # No text may end the script element that it stands in; the two separators end a line in older JavaScript.
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
