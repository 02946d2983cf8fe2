"""The report as it is in a browser: on the screen, on paper, and inside MLflow's frame."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis.record import Objective, TrialRecord
from analysis.report import report_html
from search.tracking import Tracker, page_url

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))

from reported import THREE, TWO, baseline, context, many, small

PAPER = 1039  # px: A4 in landscape without the page's margins
WIDE = """() => [...document.querySelectorAll(".plot, table, pre, .short")].map((item) => {
  const {left, right, width} = item.getBoundingClientRect(); return [left, right, width]; })"""
SVG = """() => [...document.querySelectorAll(".plot")].map((plot) => {
  const drawn = plot.querySelector("svg.main-svg").getBoundingClientRect(), own = plot.getBoundingClientRect();
  return [drawn.width - own.width, drawn.height - own.height, drawn.width]; })"""
LABELS = """() => [...document.querySelectorAll(".plot")].flatMap((plot) => {
  const own = plot.getBoundingClientRect();
  return [...plot.querySelectorAll("svg text")].filter((text) => {
    const {left, right, top, bottom, width} = text.getBoundingClientRect();
    return width && (left < own.left - 1 || right > own.right + 1 || top < own.top - 1 || bottom > own.bottom + 1);
  }).map((text) => `${plot.id}: ${text.textContent}`); })"""


@pytest.fixture
def opened(tmp_path: Path, open_page: Callable[..., Any]) -> Callable[..., Any]:
    def opened(trials: Sequence[TrialRecord], objectives: Sequence[Objective] = TWO, width: int = 1280) -> Any:
        file = tmp_path / "report.html"
        file.write_text(report_html(trials, objectives, context()), encoding="utf-8")
        page = open_page(file.as_uri(), width)
        page.wait_for_selector("html[data-drawn=all]", state="attached")
        return page

    return opened


def in_order(page: Any, width: int) -> None:
    """All is drawn, nothing is cut, and nothing needs a sideways look."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for left, right, own in page.evaluate(WIDE):
        assert left >= 0 and right <= width and own > 0
    drawn = page.evaluate(SVG)
    assert drawn
    for wider, higher, own in drawn:
        assert abs(wider) < 2 and abs(higher) < 2 and own > 300
    assert page.evaluate(LABELS) == []


@pytest.mark.parametrize("width", [1280, 1920])
def test_on_the_screen(opened: Callable[..., Any], watch: Any, width: int) -> None:
    page = opened(small(), width=width)
    in_order(page, width)
    assert watch.errors == []
    assert watch.hosts == {""}, "the page alone is read, from its file"
    page.hover(f"#{page.evaluate('document.querySelector(`.plot`).id')} .nsewdrag")
    page.click("nav a[href='#doubts']")
    assert page.evaluate("document.getElementById('doubts').getBoundingClientRect().top") < 720
    assert page.url.endswith("report.html"), "inside MLflow's frame a link would lead away"
    assert watch.errors == []


def test_on_paper_all_is_there_and_nothing_is_cut(opened: Callable[..., Any], watch: Any) -> None:
    page = opened(small())
    folded = page.locator("details:not([open])").count()
    assert folded == 3
    page.set_viewport_size({"width": PAPER, "height": 720})
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("text=Traceback: NaN").is_visible()
    in_order(page, PAPER)
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == folded
    paper = page.pdf(prefer_css_page_size=True, print_background=True)
    # Points: A4 in landscape.
    assert b"/MediaBox [0 0 842" in paper or b"/MediaBox [0 0 841" in paper
    assert paper.count(b"/Type /Page\n") >= 5
    assert page.locator("details:not([open])").count() == folded
    assert watch.errors == []


@pytest.mark.parametrize(
    "trials", [[], [baseline()], [one for one in small() if one.number > 4]], ids=["none", "baseline", "none complete"]
)
def test_a_study_without_a_front(opened: Callable[..., Any], watch: Any, trials: list[TrialRecord]) -> None:
    page = opened(trials)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert page.evaluate(LABELS) == []
    assert watch.errors == []
    assert watch.hosts == {""}


def test_three_objectives_and_more_designs(opened: Callable[..., Any], watch: Any) -> None:
    page = opened(many(300), THREE)
    in_order(page, 1280)
    assert watch.errors == []
    assert watch.hosts == {""}


@pytest.mark.slow
def test_inside_mlflow(served: Any, open_page: Callable[..., Any], watch: Any, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(report_html(small(), TWO, context()), encoding="utf-8")
    tracker = Tracker.open(
        uri=served.store,
        experiment="cells",
        study="cells",
        study_folder=served.folder / "study",
        params={},
        objectives=TWO,
    )
    tracker.reconcile(small())
    tracker.close("FINISHED", [file])
    assert not tracker.pending, tracker.failure
    page = open_page(page_url(served.url, tracker.experiment_id, tracker.run_id, "report.html"), 1280, 900)
    frame = page.frame_locator("iframe.mlflow-html-iframe")
    frame.locator("html[data-drawn=all]").wait_for(state="attached")
    before = page.url
    frame.locator("nav a[href='#doubts']").click()
    assert frame.locator("#doubts").evaluate("(item) => item.getBoundingClientRect().top") < 900
    assert page.url == before
    assert frame.locator("h1").inner_text() == "cells"
    # What MLflow asks its own server for in vain is none of ours.
    assert [error for error in watch.errors if "/ajax-api/" not in error] == []
    assert watch.hosts <= {served.host, ""}
