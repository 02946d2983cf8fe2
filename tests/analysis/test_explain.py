"""The explaining figures: that they show what the records say, and say what they leave out."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis import explain, pareto
from analysis.explain import times
from analysis.explain.dress import thin
from analysis.explain.settings import LACKS, Ruler, brief, setting, varying
from analysis.importance import Importance
from analysis.record import TrialRecord, TrialState

sys.path.insert(0, str(Path(__file__).parent))

from reported import TWO, baseline, many, small, trial


def traces(drawn: explain.Drawn | None, name: str) -> list[Any]:
    assert drawn is not None
    return [trace for trace in drawn.figure.data if trace.name == name]


def test_thin_keeps_the_ends() -> None:
    assert thin(range(5), 9) == [0, 1, 2, 3, 4]
    assert thin(range(101), 3) == [0, 50, 100]
    assert len(set(thin(range(1000), 150))) == 150


def test_varying_knobs_with_switches_of_families() -> None:
    trials = [
        trial(0, 0.4, 1.0),
        trial(1, 0.4, 1.0, knobs={"one.a": 1, "one.b": 2}),
        trial(2, 0.4, 1.0, knobs={"one.a": 3, "one.b": 2, "two.c": [0]}),
    ]
    assert varying(trials) == ["two", "one.a"]
    assert [setting(one, "two") for one in trials] == ["off", "off", "on"]
    assert setting(trials[1], "two.c") is None
    assert brief(trials[2], ["one.a", "two.c"]) == "one a=3 · two c=0"
    assert brief(trials[0], ["one.a"]) == "baseline"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.5, 0.25, None, 1.0], [LACKS, "0.25", "0.5", "1"]),
        ([[0, 1], [2], []], ["none", "2", "0,1"]),
        ([True, False], ["off", "on"]),
        (["b", "a"], ["a", "b"]),
    ],
)
def test_a_ruler_of_few_values(values: list[Any], labels: list[str]) -> None:
    ruler = Ruler.of(values)
    assert list(ruler.labels) == labels
    assert sorted(ruler.place(value) for value in values) == list(range(len(labels)))


def test_a_ruler_of_many_numbers_is_the_numbers() -> None:
    ruler = Ruler.of([0.01 * index for index in range(40)])
    assert ruler.numbers
    assert ruler.place(0.01 * 7) == 0.01 * 7


def test_endings_are_grouped_by_why() -> None:
    found = explain.endings(small())
    assert [(one.state, one.reason, one.trials) for one in found] == [
        (TrialState.FAILED, "the loss became NaN in epoch 2", (8,)),
        (TrialState.INFEASIBLE, "latency_ratio <= 1.2", (5, 6)),
        (TrialState.STOPPED, "weaker than its rivals after epoch 1", (7,)),
    ]
    assert found[1].values == (1.35, 1.5)
    assert found[1].hours == pytest.approx(0.2)


def test_endings_of_two_constraints_and_without_a_reason() -> None:
    both = "must hold: gmacs <= 2, but it is 3; latency_ratio <= 1, but it is 1.5e+03"
    trials = [trial(1, state=TrialState.INFEASIBLE, reason=both), trial(2, state=TrialState.FAILED, reason=None)]
    failed, refused = explain.endings(trials)
    assert refused.reason == "gmacs <= 2; latency_ratio <= 1"
    assert refused.values is None
    assert failed.reason == "no reason was recorded"
    assert explain.endings([trial(3, 0.1, 1.0), trial(4, state=TrialState.RUNNING)]) == []


def test_costs_add_up() -> None:
    drawn = explain.costs_figure(small(), TWO)
    assert drawn is not None
    assert [name.split(" ")[0] for name in drawn.figure.data[0].y] == [f"<b>{label}</b>" for label in "0123"]
    total = {part: traces(drawn, part)[0].x for part in ("backbone", "neck", "head", "P3", "P4")}
    assert list(total["backbone"]) == [3, 3, 3, 3]
    assert list(total["head"]) == pytest.approx([1, 0.7, 0.9, 0.99])
    assert [p3 + p4 for p3, p4 in zip(total["P3"], total["P4"])] == pytest.approx(list(total["head"]))


def test_costs_that_were_not_recorded() -> None:
    bare = [replace(one, attrs={}) for one in small()]
    assert explain.costs_figure(bare, TWO) is None
    some = [one if one.number != 2 else bare[2] for one in small()]
    drawn = explain.costs_figure(some, TWO)
    assert drawn is not None
    assert drawn.note == "Of 1 front members the breakdown was not recorded."


def spent(towers: float) -> dict[str, Any]:
    rows = [
        ("backbone", None, 0.5),
        ("towers", "P3", towers),
        ("towers", "P4", 0.1),
        ("head", "P3", 0.1),
        ("projections", None, 0.05),
        ("nms", None, 0.25 - towers),
    ]
    return {"parts": [{"part": part, "level": level, "share": share} for part, level, share in rows]}


def test_times_are_shares_of_the_latency() -> None:
    records = [replace(one, attrs={**one.attrs, "time": spent(0.2)}) for one in small()]
    # Trained otherwise, computed alike: trial 2 took its latency from trial 1.
    bare = {key: value for key, value in records[2].attrs.items() if key != "time"}
    records[2] = replace(records[2], attrs={**bare, "speed_from": 1})
    records[3] = replace(records[3], attrs={key: value for key, value in records[3].attrs.items() if key != "time"})
    drawn = explain.times_figure(records, TWO)
    assert drawn is not None
    assert [name.split(" ")[0] for name in drawn.figure.data[0].y] == [f"<b>{label}</b>" for label in "012"]
    bars = {trace.name: list(trace.x) for trace in drawn.figure.data}
    assert bars["backbone"] == pytest.approx([20, 14, 18])  # half of 40 ms times the ratio
    assert bars["towers"] == pytest.approx([12, 8.4, 10.8])
    assert bars["P3"] == pytest.approx([12, 8.4, 10.8]) and bars["P4"] == pytest.approx([4, 2.8, 3.6])
    assert bars["several"] == pytest.approx([2, 1.4, 1.8])
    assert {"rest of the head", "projections", "nms"} <= set(bars)
    # So many parts that the names of the levels stand below theirs, not over them.
    assert drawn.figure.layout.legend2.y < drawn.figure.layout.legend.y
    assert drawn.note.endswith("Of 1 front members the breakdown was not recorded.")


def test_each_setting_of_a_sweep_has_its_own_time() -> None:
    record = replace(small()[2], attrs={"time": spent(0.2), "time.0": spent(0.1), "time.2": spent(0.15)})
    assert times.time_of(record, {}) == spent(0.1)
    assert times.time_of(replace(record, point=2), {}) == spent(0.15)
    assert times.time_of(replace(record, point=1), {}) is None


def test_times_that_were_not_recorded() -> None:
    assert explain.times_figure(small(), TWO) is None


def test_sizes_leave_out_what_has_no_object() -> None:
    drawn = explain.sizes_figure(small(), TWO)
    assert list(traces(drawn, "small")[0].y) == pytest.approx([15, 21, 22.5])
    assert traces(drawn, "medium") == []
    bare = [replace(one, metrics={k: v for k, v in one.metrics.items() if "mAP_" not in k}) for one in small()]
    assert explain.sizes_figure(bare, TWO) is None


def test_curves_mark_front_and_stops() -> None:
    drawn = explain.curves_figure(small(), TWO, rungs=(1,))
    assert drawn is not None
    assert len(traces(drawn, "front")) == 3
    assert list(traces(drawn, "baseline")[0].y) == pytest.approx([40 / 3, 80 / 3, 40])
    assert list(traces(drawn, "stopped at a rung")[0].x) == [1, None]
    assert [shape.x0 for shape in drawn.figure.layout.shapes] == [1]
    assert drawn.says == "AP by epoch of 6 trials, 1 of them stopped at a rung."
    assert explain.curves_figure([trial(0, state=TrialState.RUNNING)], TWO) is None


def test_growth_keeps_every_change() -> None:
    trials = many(400)
    rows = pareto.hypervolume_curves(trials, TWO, (0.0, 80.0))
    drawn = explain.growth_figure(rows)
    assert drawn is not None
    x, y = list(drawn.figure.data[0].x), list(drawn.figure.data[0].y)
    assert len(x) < len(rows)

    def held(hours: float) -> float:
        return max(value for time, value in zip(x, y) if time <= hours)

    assert all(held(row["compute_hours"]) == row["hypervolume"] for row in rows)
    assert explain.growth_figure([]) is None


def test_slices_mark_the_front_and_show_refused_designs_where_the_figure_is_known() -> None:
    knobs = varying(small())
    accuracy = explain.slices_figure(small(), TWO, TWO[0], knobs)
    assert sum(len(trace.x) for trace in traces(accuracy, "front")) == 3 * len(knobs)
    assert traces(accuracy, "not COMPLETE") == []
    latency = explain.slices_figure(small(), TWO, TWO[1], knobs)
    assert {label for trace in traces(latency, "not COMPLETE") for label in trace.text} == {"5", "6", "7"}
    assert explain.slices_figure(small()[:1], TWO, TWO[0], knobs) is None
    assert explain.slices_figure(small(), TWO, TWO[0], []) is None


def test_parallel_lines_go_through_the_values() -> None:
    drawn = explain.parallel_figure(small(), TWO, varying(small()))
    front = traces(drawn, "front")
    assert len(front) == 3
    assert drawn is not None
    # AP 0.28 to 0.45 upwards; latency 0.7 to 1.0 downwards.
    best = next(line for line in front if "trial 3" in line.hovertemplate)
    assert best.y[-2:] == pytest.approx((1.0, (1 - 0.99) / 0.3))
    assert list(traces(drawn, "baseline")[0].y)[:2] == pytest.approx([0, 0], abs=0.01)


def test_what_is_thinned_is_said() -> None:
    trials = many(1500)
    drawn = explain.parallel_figure(trials, TWO, varying(trials))
    assert drawn is not None
    assert "200 of" in drawn.note
    slices = explain.slices_figure(trials, TWO, TWO[0], varying(trials))
    assert slices is not None
    assert "designs off the front are drawn, evenly chosen" in slices.note
    curves = explain.curves_figure(trials, TWO)
    assert curves is not None
    assert "curves are drawn" in curves.note
    front = {member.label for member in pareto.front(trials, TWO) if not member.baseline}
    assert {label for trace in traces(slices, "front") for label in trace.text} == front


def test_a_surface_has_the_medians_of_what_was_measured() -> None:
    trials = [baseline()]
    for number, (a, b, ap) in enumerate([(0, 0, 0.1), (0, 0, 0.3), (0, 0, 0.2), (1, 0, 0.4), (1, 1, 0.5)], start=1):
        trials.append(trial(number, ap, 1.0, knobs={"f.a": a, "f.b": b}))
    drawn = explain.surface_figure(trials, TWO[0], ("f.a", "f.b"))
    assert drawn is not None
    heat = drawn.figure.data[0]
    assert [[None if cell is None else pytest.approx(cell) for cell in row] for row in heat.z] == [[20, None], [40, 50]]
    assert heat.customdata[0][0] == 3
    assert explain.surface_figure(trials[:4], TWO[0], ("f.a", "f.b")) is None, "one value of each"


def test_shares_are_drawn_as_they_are() -> None:
    found = [
        Importance("bbox_mAP", 100, None, 0.9, {"f.a": 0.7, "f.b": 0.2}, {("f.a", "f.b"): 0.1}),
        Importance("latency_ms", 100, None, 0.9, {"f.b": 1.0, "f.a": 0.0}, {("f.a", "f.b"): 0.0}),
    ]
    drawn = explain.shares_figure(found)
    alone, together = traces(drawn, "AP")
    assert list(alone.y) == ["f.b", "f.a"]
    assert list(alone.x) == pytest.approx([20, 70])
    assert list(together.x) == pytest.approx([10])
    assert explain.shares_figure([Importance("bbox_mAP", 3)]) is None


def test_records_of_a_sweep_are_points_of_slices() -> None:
    from analysis.record import SweepPoint

    points = [SweepPoint(index, {"q.t": 0.1 * index}, {"bbox_mAP": 0.4 + 0.01 * index}) for index in range(3)]
    swept: TrialRecord = trial(1, 0.4, 0.9, knobs={"q.t": 0.0}, sweep=points)
    drawn = explain.slices_figure([baseline(), swept], TWO, TWO[0], ["q.t"])
    assert {label for trace in traces(drawn, "front") for label in trace.text} == {"1.2"}
    assert {label for trace in traces(drawn, "dominated") for label in trace.text} == {"1", "1.1"}
