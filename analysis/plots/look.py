"""How every plot looks: colours, axes, and the page around an interactive one."""

from __future__ import annotations

import html
import io
from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure

BLUE, VERMILION, GREY, INK, FAINT_INK = "#0072B2", "#D55E00", "#9A9A9A", "#222222", "#555555"
SHADE = "#F3E3DA"
_UNUSED = ["lasso2d", "select2d"]


def head(picture: Figure, title: str, *notes: str) -> None:
    """Writes the title and the lines below it, at the top left."""
    unit = 6.75 / picture.get_figheight()
    left = 0.07 * 12 / picture.get_figwidth()
    picture.text(left, 1 - 0.06 * unit, plain(title), fontsize=17, weight="bold", color=INK)
    for index, note in enumerate(notes):
        picture.text(left, 1 - (0.11 + 0.035 * index) * unit, plain(note), fontsize=11, color=FAINT_INK)


def dress(axes: Any, xlabel: str, ylabel: str, *, size: float = 13) -> None:
    """Labels a picture's axes and draws their grid."""
    axes.set_xlabel(plain(xlabel), fontsize=size)
    axes.set_ylabel(plain(ylabel), fontsize=size)
    axes.tick_params(labelsize=11)
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def plain(text: str) -> str:
    """Keeps matplotlib from reading a pair of dollars as mathematics."""
    return text.replace("$", r"\$")


def png(picture: Figure) -> bytes:
    """Gives the picture as the bytes of a PNG."""
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def svg(picture: Figure) -> str:
    """Gives the picture as an SVG document, its text as outlines: it looks the same wherever it is opened."""
    buffer = io.StringIO()
    picture.savefig(buffer, format="svg", facecolor="white")
    return buffer.getvalue()


def dress_page(figure: go.Figure, title: str, note: str) -> None:
    """Gives an interactive figure its title, fonts and legend."""
    figure.update_layout(
        title={
            "text": f"{html.escape(title)}<br><span style='font-size:16px;color:#555'>{html.escape(note)}</span>",
            "font": {"size": 26},
            "x": 0.02,
        },
        font={"size": 18, "color": INK, "family": "Helvetica, Arial, DejaVu Sans, sans-serif"},
        template="plotly_white",
        hoverlabel={"align": "left", "font": {"size": 16, "color": INK}, "bgcolor": "white", "bordercolor": GREY},
        # Above the plot, where no point can lie below it.
        legend={
            "orientation": "h",
            "x": 1,
            "xanchor": "right",
            "y": 1,
            "yanchor": "bottom",
            "itemsizing": "trace",
        },
        margin={"l": 90, "r": 40, "t": 100, "b": 80},
        hovermode="closest",
        hoverdistance=30,
    )


def page_of(figure: go.Figure, title: str, *, height: int = 480) -> str:
    """Wraps an interactive figure into a page that needs nothing else: plotly.js is inside (5 MB).

    Args:
        figure: The figure.
        title: Plain text, of the browser's tab.
        height: Least height in px; otherwise the page fills its window.
    """
    # plotly's own "share" button would upload the study to its makers' cloud.
    buttons = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": "", "modeBarButtonsToRemove": _UNUSED}
    body = figure.to_html(
        full_html=False,
        include_plotlyjs=True,
        default_height="100%",
        config={**buttons, "responsive": True},
    )
    style = f"html,body{{height:100%;margin:0;background:white}}body>div{{height:100%;min-height:{height}px}}"
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{style}</style></head>\n<body>{body}</body></html>\n"
    )
