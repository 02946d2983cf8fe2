"""The drawings: self-contained, complete, and drawn for every size of study."""

from __future__ import annotations

import re
import struct

import pytest

from analysis import pareto, plots
from analysis.labels import axis, counts, figure, short
from analysis.record import Objective, TrialRecord, TrialState
from analysis.view import view_of

TWO = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))
THREE = (*TWO, Objective("params_m", "minimize"))


def study(count: int) -> list[TrialRecord]:
    trials = []
    for number in range(count):
        ratio = 1.0 - 0.02 * number
        metrics = {
            "bbox_mAP": 0.4 - 0.001 * number**2,
            "bbox_mAP_s": 0.2,
            "latency_ms": 100 * ratio,
            "latency_ratio": ratio,
            "latency_ratio_q1": ratio - 0.01,
            "latency_ratio_q3": ratio + 0.03,
            "params_m": 32.0,
        }
        knobs = {} if number == 0 else {"slimhead.levels": [0], "slimhead.ratio": 0.5, "dcn.cls": [0, number]}
        trials.append(TrialRecord(number, TrialState.COMPLETE, knobs=knobs, metrics=metrics))
    return trials


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_page_needs_nothing_from_outside() -> None:
    page = plots.pareto_html(study(5), TWO, title="cells <gfl>")
    assert not re.search(r"<(script|link|img|iframe)[^>]*\s(src|href)\s*=", page)
    assert "plotly.js v" in page  # the library is inside
    assert '"showSendToCloud": false' in page  # and nothing is offered to be uploaded
    assert "cells &lt;gfl&gt;" in page
    assert "cells <gfl>" not in page


def test_page_tells_knobs_figures_and_the_baseline() -> None:
    page = plots.pareto_html([*study(5), TrialRecord(9, TrialState.STOPPED)], TWO, title="cells")
    body = page[page.rindex("Plotly.newPlot") :]
    for words in ("slimhead.ratio", "dcn.cls", "AP small", "latency (ms)", "AP (%)", "star", "the baseline", "hv"):
        assert words in body
    assert "5 complete, 1 stopped; 5 on the front" in body
    assert "against the baseline: -0.1 AP, -2 % latency" in body


@pytest.mark.parametrize("objectives", [TWO[:1], TWO, THREE])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_every_size_is_drawn(count: int, objectives: tuple[Objective, ...]) -> None:
    trials = study(count)
    page = plots.pareto_html(trials, objectives, title="cells")
    assert size(plots.pareto_png(trials, objectives, title="cost $ and $")) == (1800, 1012)
    assert ("No trial is COMPLETE yet" in page) == (count == 0)
    assert ("One trial is COMPLETE so far" in page) == (count == 1)


def test_other_directions_are_drawn() -> None:
    objectives = (Objective("latency_ms", "minimize"), Objective("bbox_mAP", "maximize"))
    assert '"shape":"vh"' in plots.pareto_html(study(5), objectives, title="cells").replace(" ", "")
    left, right, bottom, top = view_of(study(5), objectives).behind() or (0, 0, 0, 0)
    assert left < right
    assert bottom < top
    assert (right, bottom) == pytest.approx((40.0, 100.0))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_short_front_is_named_whole(count: int) -> None:
    members = pareto.front(study(count), TWO)
    assert plots._named(members, TWO) == members


def test_named_designs_keep_the_ends_and_fit() -> None:
    members = pareto.front(study(60), TWO)
    named = plots._named(members, TWO)
    assert named[0] is members[0]
    assert named[-1] is members[-1]
    assert 3 <= len(named) <= 12


def test_spread_is_in_milliseconds() -> None:
    view = view_of(study(3), TWO)
    assert view.spread(study(3)[2]) == pytest.approx((1.0, 3.0))
    assert view.spread(TrialRecord(0, TrialState.COMPLETE, metrics={"latency_ms": 3.0})) is None


def test_hypervolume_is_drawn() -> None:
    rows = pareto.hypervolume_curves(study(5), TWO, (0.0, 200.0))
    assert size(plots.hypervolume_png(rows, title="cells")) == (1800, 750)
    assert size(plots.hypervolume_png([], title="cells")) == (1800, 750)


@pytest.mark.parametrize(
    ("knobs", "text"),
    [
        ({}, "baseline"),
        (
            {"slimhead.levels": [0], "slimhead.ratio": 0.5, "slimhead.mode": "max", "dcn.cls": [0, 1], "dcn.reg": []},
            "slimhead levels=0 ratio=0.5 max · dcn cls=0,1",
        ),
        ({"ddod.enable": True, "ddod.topk": 9, "pod.transfer": False}, "ddod enable topk=9 · pod"),
    ],
)
def test_short_words_a_design(knobs: dict[str, object], text: str) -> None:
    assert short(knobs) == text
    assert len(short(knobs, 12)) <= 12


def test_units() -> None:
    assert figure("bbox_mAP", 0.4134) == "AP 41.3 %"
    assert figure("bbox_mAP_50", 0.5) == "AP50 50.0 %"
    assert figure("bbox_mAP_s", float("nan")) == "AP small not measured"
    assert axis("latency_ms") == "latency (ms)"
    assert figure("my_metric", 2.0) == "my metric 2.000"
    assert counts([]) == "no trials"
