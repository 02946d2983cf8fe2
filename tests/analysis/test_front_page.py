"""What the interactive page knows of a study, and that it needs nothing from outside."""

from __future__ import annotations

import json
import random
import re

import pytest

from analysis import pareto, plots
from analysis.published import TABLES
from analysis.published.ratios import relative_rows
from analysis.published.table import Row, Table, figures
from analysis.record import Objective, SweepPoint, TrialRecord, TrialState

TWO = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))
THREE = (*TWO, Objective("params_m", "minimize"))


def trial(number: int, accuracy: float, latency: float, finished: float, **more: object) -> TrialRecord:
    metrics = {"bbox_mAP": accuracy, "latency_ms": latency, "params_m": 2.0, "loss": 1.0}
    knobs = {"slimhead.ratio": 0.5, "dcn.placement": [0, number]} if number else {}
    state = more.pop("state", TrialState.COMPLETE)
    return TrialRecord(number, state, knobs=knobs, metrics=metrics, finished=finished, compute_hours=0.5, **more)  # type: ignore[arg-type]


# Trial 2 ends before 1 and beats it; 3 beats the baseline; 4 is stopped, better than all; 5 is still running.
STORY = [
    trial(0, 0.30, 100, 10),
    trial(1, 0.25, 90, 30),
    trial(2, 0.28, 80, 20),
    trial(3, 0.31, 95, 40),
    trial(4, 0.90, 1, 50, state=TrialState.STOPPED, reason="epoch 3: one <of> four goes on"),
    TrialRecord(5, TrialState.RUNNING, metrics={"latency_ms": 70.0}),
]


def test_times_on_the_front() -> None:
    assert pareto.front_times(STORY, TWO) == {"0": (1, 4), "2": (2, None), "3": (4, None)}


@pytest.mark.parametrize("objectives", [TWO[:1], TWO, THREE])
def test_times_on_the_front_agree_with_the_front_at_each_time(objectives: tuple[Objective, ...]) -> None:
    """Coarse figures make equal points; sweeps come with their trial."""
    dice = random.Random(3)
    trials = []
    for number in range(60):
        figures_of = [
            {"bbox_mAP": dice.randint(0, 9) / 10, "latency_ms": dice.randint(1, 9), "params_m": dice.randint(1, 4)}
            for _ in range(3)
        ]
        sweep = [SweepPoint(index, {"q.t": index}, own) for index, own in enumerate(figures_of)]
        state = TrialState.STOPPED if number % 7 == 3 else TrialState.COMPLETE
        trials.append(TrialRecord(number, state, metrics=figures_of[0], finished=dice.random(), sweep=sweep))
    times = pareto.front_times(trials, objectives)
    done = pareto.finish_order(trials)
    for count in range(1, len(done) + 1):
        members = {record.label for record in pareto.front(done[:count], objectives)}
        assert members == {
            label for label, (came, left) in times.items() if came <= count and (left is None or left > count)
        }


def test_the_data_has_a_row_a_point() -> None:
    data = plots.page_data(STORY, TWO, title="cells")
    points = data["points"]
    assert points["label"] == ["0", "1", "2", "3", "4", "5"]
    assert points["at"] == [1, 3, 2, 4, 5, None]
    assert points["came"] == [1, None, 2, 4, None, None]
    assert points["left"] == [4, None, None, None, None, None]
    assert points["valid"] == [1, 1, 1, 1, 0, 0]
    assert points["metrics"]["latency_ms"] == [100, 90, 80, 95, 1, 70]
    assert points["metrics"]["bbox_mAP"][5] is None
    assert data["designs"] == ["slimhead + dcn"] and points["design"] == [-1, 0, 0, 0, 0, -1]
    assert data["finished"] == {"hours": [0.5, 1.0, 1.5, 2.0, 2.5], "ended": [10, 20, 30, 40, 50]}
    assert data["knobs"]["dcn.placement"] == {"values": ["0,1", "0,2", "0,3", "0,4"], "has": [-1, 0, 1, 2, 3, -1]}
    assert data["metrics"]["latency_ms"] == {"label": "latency", "unit": "ms", "scale": 1, "digits": 1, "more": False}
    assert data["axes"] == ["bbox_mAP", "latency_ms", "params_m"]  # of the loss no direction is known
    assert data["counts"] == "4 complete, 1 stopped, 1 running"
    assert "matrix" not in data


def test_three_objectives_bring_the_matrix() -> None:
    data = plots.page_data(STORY, THREE, title="cells")
    assert {trace["type"] for trace in data["matrix"]["data"]} == {"scatter", "scatter3d"}


@pytest.mark.parametrize("objectives", [TWO[:1], TWO, THREE])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_short_study_has_a_page(count: int, objectives: tuple[Objective, ...]) -> None:
    assert "Only COMPLETE trials are on the front" in plots.pareto_html(STORY[:count], objectives, title="cells")


def test_the_page_needs_nothing_from_outside() -> None:
    page = plots.pareto_html(STORY, TWO, title="cells <gfl>")
    assert not re.search(r"<(script|link|img|iframe)[^>]*\s(src|href)\s*=", page)
    assert "plotly.js v" in page  # the library is inside
    assert page.count("showSendToCloud: false") == 2  # and nothing is offered to be uploaded
    assert "cells &lt;gfl&gt;" in page
    assert "cells <gfl>" not in page and "one <of> four" not in page


def test_the_page_and_its_news_carry_the_same_data() -> None:
    runs = plots.Runs("7", "abc", {"0": "r0"}, server="http://127.0.0.1:5000", live=True)
    data = plots.page_data(STORY, TWO, title="a </script> \u2028 b", runs=runs)
    page = plots.page_of_data(data)
    [inside] = re.findall(r"<script id='data' type='application/json'>(.*?)</script>", page)
    script = plots.script_of_data(data)
    assert script.startswith("headway({") and script.endswith("});\n")
    for text in (inside, script[8:-3]):
        assert "\u2028" not in text
        told = json.loads(text)
        assert told["title"] == "a </script> \u2028 b"
        assert told["runs"]["trials"] == {"0": "r0"}
        assert told["points"] == data["points"]


def test_published_rows_by_ratio() -> None:
    """SlimHead's table 2, K = 3: AP 41.4 and 38.0 images/s, its baseline 40.1 and 37.0."""
    [row] = [r for r in relative_rows(TABLES) if (r.paper, r.where, r.label) == ("slimhead", "table 2", "K=3")]
    assert row.baseline == "baseline"
    assert row.ratios["bbox_mAP"] == pytest.approx(41.4 / 40.1)
    assert row.ratios["latency_ms"] == row.ratios["latency_ratio"] == pytest.approx(37.0 / 38.0)
    assert row.device == "RTX 3090"


def test_published_rows_need_a_baseline_of_their_own_study() -> None:
    def of(label: str, study: str | None, knobs: dict[str, dict[str, object]], *values: float) -> Row:
        reason = None if study else "no"
        return Row(label=label, study=study, knobs=knobs, reason=reason, metrics=figures("AP time", *values))

    knobs: dict[str, dict[str, object]] = {"pod": {}}
    rows = (of("base", "a", {}, 20, 100), of("one", "a", knobs, 30, 50), of("two", "b", knobs, 40, 60))
    table = Table(paper="pod", number=4, title="", data="COCO", rows=(*rows, of("three", None, {}, 50, 70)))
    [row] = relative_rows([table, table])
    assert (row.label, row.where, row.ratios) == (
        "one",
        "table 4",
        {"bbox_mAP": 1.5, "latency_ms": 0.5, "latency_ratio": 0.5},
    )
