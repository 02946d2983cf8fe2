"""The page of a front as it is in a browser, from a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis import pareto, plots
from analysis.record import Objective, TrialRecord, TrialState

sys.path.insert(0, str(Path(__file__).parent))

from made_study import THREE, TWO, study

SHOWN = """() => Object.fromEntries(document.getElementById("plot").data.map(
  (trace) => [trace.name || trace.legendgroup || trace.marker?.symbol || "", trace.x.length]))"""
POINTS = """() => document.getElementById("plot").data.filter((trace) => trace.marker && trace.hoverinfo === "none")
  .map((trace) => [...trace.customdata]).flat().filter((index) => typeof index === "number")"""


@pytest.fixture
def opened(tmp_path: Path, open_page: Callable[..., Any]) -> Callable[..., Any]:
    def opened(trials: list[TrialRecord], objectives: tuple[Objective, ...] = TWO, **more: Any) -> Any:
        file = tmp_path / "pareto.html"
        file.write_text(plots.pareto_html(trials, objectives, title="cells", **more), encoding="utf-8")
        page = open_page(file.as_uri())
        page.wait_for_selector("body[data-drawn]")
        return page

    return opened


def choose(page: Any, control: str, value: str) -> None:
    page.select_option(f"#{control}", value)
    settle(page)


def settle(page: Any) -> None:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")
    page.wait_for_timeout(50)


def spot(page: Any, index: int) -> tuple[float, float]:
    """Where on the screen a point is."""
    x, y = page.evaluate(
        """(index) => {
          const plot = document.getElementById("plot"), {left, top} = plot.getBoundingClientRect();
          const trace = plot.data.find((t) => t.hoverinfo === "none" && t.customdata?.includes(index));
          const at = trace.customdata.indexOf(index), {xaxis, yaxis} = plot._fullLayout;
          return [left + xaxis._offset + xaxis.l2p(trace.x[at]), top + yaxis._offset + yaxis.l2p(trace.y[at])];
        }""",
        index,
    )
    return x, y


def test_the_page_shows_the_front_and_its_words(opened: Callable[..., Any], watch: Any) -> None:
    trials = study(40)
    page = opened(trials, runs=plots.Runs("7", "abc", {"0": "r0", "3": "r3"}, server="http://localhost:1"))
    members = pareto.front(trials, TWO)
    assert f"32 complete, 8 stopped · {len(members)} on the front" in page.inner_text("#note")
    assert sorted(page.evaluate(POINTS)) == [t.number for t in trials if t.state is TrialState.COMPLETE]
    member = next(trial for trial in members if trial.number)
    page.mouse.move(*spot(page, member.number))
    page.wait_for_selector("#tip:visible")
    told = page.inner_text("#tip")
    assert told.startswith(f"trial {member.number}, on the front")
    assert f"slimhead.ratio = {member.knobs['slimhead.ratio']}" in told and "against the baseline: " in told
    assert f"AP {100 * member.metrics['bbox_mAP']:.1f} %" in told and "multiply-adds " in told
    # Plotly looks for the point under the mouse at most every 50 ms: a click before that is one on what was there.
    page.mouse.move(*spot(page, 0))
    page.wait_for_function("() => document.getElementById('tip').innerText.startsWith('trial 0, the baseline')")
    page.mouse.click(*spot(page, 0))
    page.wait_for_selector("#pin:visible")
    assert page.inner_text("#pin").splitlines()[1].startswith("trial 0, the baseline")
    link = page.get_attribute("#pin a", "href")
    assert link == "http://localhost:1/#/experiments/7/runs/r0?workflowType=machine_learning"
    page.keyboard.press("Escape")
    page.wait_for_selector("#pin", state="hidden")
    assert watch.errors == [] and watch.hosts == {""}


def test_axes_looks_and_what_else_there_is(opened: Callable[..., Any], watch: Any) -> None:
    trials = study(40)
    page = opened(trials)
    choose(page, "x", "gmacs")
    assert page.evaluate("() => document.getElementById('plot').layout.xaxis.title.text").startswith(
        "multiply-adds (G)"
    )
    choose(page, "colour", "design")
    shown = page.evaluate(SHOWN)
    assert {"slimhead", "slimhead + dcn", "slimhead + querydet", "slimhead + dcn + querydet", "baseline"} <= set(shown)
    symbols = page.evaluate("""() => document.getElementById("plot").data
      .filter((trace) => trace.x[0] === null && trace.legendgroup)
      .map((trace) => [trace.marker.symbol, trace.marker.color])""")
    assert len(symbols) == len({symbol for symbol, _ in symbols}) == len({colour for _, colour in symbols}) == 4
    # Trials that did not complete come when asked for, marked, and never change the front.
    before = page.inner_text("#note")
    page.check("#others")
    settle(page)
    assert page.evaluate(SHOWN)["stopped: never on the front"] == 1
    assert len(page.evaluate(POINTS)) == 40
    assert page.inner_text("#note") == before
    page.mouse.move(*spot(page, 4))
    page.wait_for_selector("#tip:visible")
    assert page.inner_text("#tip").startswith("trial 4, STOPPED: never on the front\nstopped at epoch 3")
    # The papers' points: by ratio, and it says so.
    assert "published" not in page.inner_text("#said")
    choose(page, "x", "latency_ms")
    choose(page, "published", "slimhead")
    assert "by their ratio to their own paper's baseline" in page.inner_text("#said")
    places = page.evaluate("""() => {
      const t = document.getElementById("plot").data.find((trace) => trace.name === "published: slimhead");
      return t.customdata.map((row, i) => [row.where, row.label, t.x[i], t.y[i]]);
    }""")
    [(x, y)] = [(x, y) for where, label, x, y in places if (where, label) == ("table 2", "K=3")]
    assert (x, y) == pytest.approx((41 * 37.0 / 38.0, 40 * 41.4 / 40.1))
    assert watch.errors == [] and watch.hosts == {""}


def test_the_slider_shows_the_front_as_it_was(opened: Callable[..., Any], watch: Any) -> None:
    trials = study(40)
    page = opened(trials)
    for unit, value in (("trials", "17"), ("hours", "1.75")):
        choose(page, "unit", unit)
        page.evaluate("(value) => { const at = document.getElementById('at'); at.value = value; at.oninput(); }", value)
        settle(page)
        early = trials[:17]
        complete = [t.number for t in early if t.state is TrialState.COMPLETE]
        assert sorted(page.evaluate(POINTS)) == complete
        note = page.inner_text("#note")
        assert f"as it was after 17 of 40 trials · {len(pareto.front(early, TWO))} on the front" in note
    assert watch.errors == []


def test_three_objectives_have_pairs_and_space(opened: Callable[..., Any], watch: Any) -> None:
    page = opened(study(20), THREE)
    choose(page, "x", "params_m")
    assert page.evaluate(SHOWN)["front over these two alone"] >= 1
    choose(page, "tab", "matrix")
    page.wait_for_function("() => document.getElementById('matrix').data?.some((t) => t.type === 'scatter3d')")
    assert watch.errors == []


def test_a_study_from_its_beginning(opened: Callable[..., Any], watch: Any) -> None:
    """News come while the page is open, as in MLflow; what was chosen stays."""
    page = opened([])
    assert "No trial is COMPLETE yet" in page.inner_text("#plot")
    for objectives in (TWO[:1], TWO):
        page.evaluate("(data) => headway(data)", plots.page_data(study(1), objectives, title="cells"))
        settle(page)
        assert "One trial is COMPLETE so far" in page.inner_text("#plot")
    choose(page, "colour", "design")
    page.evaluate("(data) => headway(data)", plots.page_data(study(40), TWO, title="cells"))
    settle(page)
    assert "32 complete" in page.inner_text("#note")
    assert "slimhead + dcn" in page.evaluate(SHOWN)
    assert watch.errors == []


def test_five_thousand_trials(opened: Callable[..., Any], watch: Any, tmp_path: Path) -> None:
    """Only points that lie under others of their look are left out, never the front; zoomed in, all are there."""
    trials = study(5000)
    page = opened(trials)
    assert (tmp_path / "pareto.html").stat().st_size < 7e6
    drawn = set(page.evaluate(POINTS))
    members = {trial.number for trial in pareto.front(trials, TWO)}
    assert members <= drawn and 0 in drawn
    [hidden] = re.findall(r"([\d,]+) dominated points lie under others", page.inner_text("#said"))
    assert int(hidden.replace(",", "")) == 4000 - len(drawn) > 500
    # What is not drawn has a point of the same kind within a marker.
    page.evaluate("() => Plotly.relayout('plot', {'xaxis.range': [36, 38], 'yaxis.range': [37, 38]})")
    settle(page)
    inside = [
        trial.number
        for trial in trials
        if trial.state is TrialState.COMPLETE
        and 36 < trial.metrics["latency_ms"] < 38
        and 0.37 < trial.metrics["bbox_mAP"] < 0.38
    ]
    now = set(page.evaluate(POINTS))
    assert len(inside) > 50
    assert len(set(inside) & now) > 0.9 * len(inside) > len(set(inside) & drawn)
    # Of the page's own CPU time, whatever else the machine does.
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = busy(client)
    page.evaluate("""async () => {
      const at = document.getElementById("at"), frame = () => new Promise((done) => requestAnimationFrame(done));
      for (let step = 1; step <= 5; step++) { at.value = 980 * step; at.oninput(); await frame(); await frame(); }
    }""")
    took = (busy(client) - before) / 5
    print(f"{1000 * took:.0f} ms of CPU a step of the slider")
    assert took < 0.5
    assert watch.errors == []


def busy(client: Any) -> float:
    metrics = client.send("Performance.getMetrics")["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))
