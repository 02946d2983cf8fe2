"""From the experiment's page in MLflow to the plot and to a trial's run, and the plot while a search goes on."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from analysis import pareto
from analysis.labels import short
from search.tracking import Tracker

sys.path.insert(0, str(Path(__file__).parent))

from made_study import TWO, study

MODE = "workflowType=machine_learning"


@pytest.fixture(scope="module")
def tracked(served: Any) -> Iterator[Tracker]:
    """A study of 14 trials that goes on."""
    tracker = Tracker.open(
        uri=served.store,
        experiment="cells",
        study="cells",
        study_folder=served.folder / "study",
        params={},
        objectives=TWO,
    )
    trials = study(14)
    for trial in trials:
        tracker.trial(trial)
    tracker.study(trials)
    assert not tracker.pending, tracker.failure
    yield tracker
    tracker.close("FINISHED")


def experiment_page(served: Any, tracked: Tracker) -> str:
    return f"{served.url}/#/experiments/{tracked.experiment_id}?{MODE}"


def follow(link: Any) -> Any:
    """Clicks a link of a description, which opens a tab of its own."""
    with link.page.context.expect_page() as opened:
        link.click()
    return opened.value


def plot_of(page: Any) -> Any:
    """The page of the front within MLflow's frame, drawn."""
    frame = page.frame_locator("iframe.mlflow-html-iframe")
    frame.locator("body[data-drawn]").wait_for()
    return frame


def test_from_the_experiment_to_the_plot_to_a_run(
    served: Any, tracked: Tracker, open_page: Callable[..., Any], watch: Any
) -> None:
    page = follow(open_page(experiment_page(served, tracked)).get_by_role("link", name="Pareto plot").first)
    plot = plot_of(page)
    trials = study(14)
    count = len(pareto.front(trials, TWO))
    assert f"12 complete, 2 stopped · {count} on the front" in plot.locator("#note").inner_text()
    assert plot.locator("#note").inner_text().endswith("live")
    # Pointing at a member of the front shows its knobs.
    member = next(trial for trial in pareto.front(trials, TWO) if trial.number)
    spot = plot.locator("body").evaluate(
        """(_, index) => {
          const plot = document.getElementById("plot"), {left, top} = plot.getBoundingClientRect();
          const trace = plot.data.find((t) => t.hoverinfo === "none" && t.customdata?.includes(index));
          const at = trace.customdata.indexOf(index), {xaxis, yaxis} = plot._fullLayout;
          return [left + xaxis._offset + xaxis.l2p(trace.x[at]), top + yaxis._offset + yaxis.l2p(trace.y[at])];
        }""",
        member.number,
    )
    frame = page.locator("iframe.mlflow-html-iframe").bounding_box()
    place = frame["x"] + spot[0], frame["y"] + spot[1]
    page.mouse.move(*place)
    plot.locator("#tip").wait_for()
    told = plot.locator("#tip").inner_text()
    assert told.startswith(f"trial {member.number}, on the front")
    assert f"slimhead.ratio = {member.knobs['slimhead.ratio']}" in told
    # A click keeps them, with the address of its run, which a frame of MLflow cannot open by itself.
    page.mouse.click(*place)
    plot.locator("#pin").wait_for()
    where = plot.get_by_label("address of the run").input_value()
    assert where.startswith(served.url)
    page.goto(where)
    page.get_by_text(f"{member.label} {short(member.knobs)}").first.wait_for()
    assert watch.errors == []
    assert watch.hosts <= {served.host, ""}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", "the front"])
def test_the_live_view_leads_to_a_run(
    name: str, served: Any, tracked: Tracker, open_page: Callable[..., Any], watch: Any
) -> None:
    page = follow(open_page(experiment_page(served, tracked)).get_by_role("link", name=name, exact=True).first)
    chart = page.locator(".js-plotly-plot:has(.scatterlayer)").first
    chart.locator(".point").first.wait_for()
    trials = study(14)
    wanted = len(pareto.front(trials, TWO)) if name == "the front" else 12
    assert chart.locator(".point").count() == wanted
    member = next(trial for trial in pareto.front(trials, TWO) if trial.number)
    page.get_by_role("link", name=re.compile(f"^{member.label} ")).first.click()
    page.wait_for_url(re.compile(f"/experiments/{tracked.experiment_id}/runs/[0-9a-f]{{32}}"))
    page.get_by_text(f"{member.label} {short(member.knobs)}").first.wait_for()
    assert watch.errors == []
    assert watch.hosts <= {served.host, ""}


@pytest.mark.slow
def test_an_open_plot_gets_the_news(served: Any, tracked: Tracker, open_page: Callable[..., Any], watch: Any) -> None:
    page = open_page(
        f"{served.url}/#/experiments/{tracked.experiment_id}/runs/{tracked.run_id}/artifacts/pareto.html?{MODE}"
    )
    plot = plot_of(page)
    assert "12 complete, 2 stopped" in plot.locator("#note").inner_text()
    trials = study(16)
    for trial in trials[14:]:
        tracked.trial(trial)
    tracked.study(trials)
    plot.get_by_text("13 complete, 3 stopped").wait_for(timeout=25_000)
    client = MlflowClient(served.store)
    assert "pareto.mjs" in [item.path for item in client.list_artifacts(tracked.run_id)]
    assert watch.errors == []
    assert watch.hosts <= {served.host, ""}
