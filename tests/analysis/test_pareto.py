"""Fronts against brute force, hypervolumes against closed forms."""

from __future__ import annotations

import csv
import json
import math
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import pareto
from analysis.record import Objective, TrialRecord, TrialState

AP, MS = Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize")
TWO = (AP, MS)
DONE = TrialState.COMPLETE


def trial(number: int, ap: float, ms: float, state: TrialState = DONE, **more: object) -> TrialRecord:
    return TrialRecord(number, state, metrics={"bbox_mAP": ap, "latency_ms": ms}, **more)  # type: ignore[arg-type]


def numbers(trials: list[TrialRecord]) -> list[int]:
    return [one.number for one in trials]


def test_front_is_ordered_by_the_second_objective_and_keeps_duplicates() -> None:
    trials = [trial(0, 0.3, 100), trial(1, 0.2, 50), trial(2, 0.2, 60), trial(3, 0.2, 50), trial(4, 0.4, 100)]
    assert numbers(pareto.front(trials, TWO)) == [1, 3, 4]


def test_only_complete_trials_with_finite_figures_take_part() -> None:
    others = [state for state in TrialState if state is not DONE]
    trials = [trial(0, 0.3, 100), *(trial(10 + i, 0.9, 1, state) for i, state in enumerate(others))]
    trials += [trial(1, math.nan, 1), trial(2, math.inf, 1), TrialRecord(3, DONE, metrics={"bbox_mAP": 1.0})]
    assert numbers(pareto.front(trials, TWO)) == [0]
    assert not pareto.dominates(trials[-2], trials[0], TWO)
    assert pareto.front([], TWO) == []


@pytest.mark.parametrize("directions", [("maximize", "minimize"), ("minimize", "maximize"), ("minimize", "minimize")])
@given(table=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25))
def test_front_is_what_brute_force_finds(directions: tuple[str, str], table: list[tuple[int, int]]) -> None:
    objectives = (Objective("bbox_mAP", directions[0]), Objective("latency_ms", directions[1]))
    signs = [1 if direction == "maximize" else -1 for direction in directions]
    wins = [tuple(sign * value for sign, value in zip(signs, row, strict=True)) for row in table]
    best = {
        number
        for number, mine in enumerate(wins)
        if not any(all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine for other in wins)
    }
    trials = [trial(number, *row) for number, row in enumerate(table)]
    members = pareto.front(trials, objectives)
    assert set(numbers(members)) == best
    assert [one.metrics["latency_ms"] for one in members] == sorted(one.metrics["latency_ms"] for one in members)
    for one in trials:
        assert (one.number in best) == (not any(pareto.dominates(other, one, objectives) for other in trials))


@given(table=st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=15))
def test_three_objectives(table: list[tuple[int, int, int]]) -> None:
    objectives = (Objective("a", "maximize"), Objective("b", "minimize"), Objective("c", "minimize"))
    trials = [TrialRecord(i, DONE, metrics=dict(zip("abc", row, strict=True))) for i, row in enumerate(table)]
    kept = {one.number for one in trials if not any(pareto.dominates(other, one, objectives) for other in trials)}
    assert set(numbers(pareto.front(trials, objectives))) == kept


@given(table=st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=12))
def test_hypervolume_of_three_objectives_is_what_counting_cells_gives(table: list[tuple[int, int, int]]) -> None:
    objectives = (Objective("a", "maximize"), Objective("b", "minimize"), Objective("c", "minimize"))
    trials = [TrialRecord(i, DONE, metrics=dict(zip("abc", row, strict=True))) for i, row in enumerate(table)]
    cells = product(range(5), repeat=3)  # of edge 1, named by their least corner, between a = 0 and b = c = 5
    inside = sum(any(x < a and b <= y and c <= z for a, b, c in table) for x, y, z in cells)
    assert pareto.hypervolume(trials, objectives, (0.0, 5.0, 5.0)) == pytest.approx(inside)


def test_hypervolume_has_its_closed_form() -> None:
    # Boxes up to AP 0 and 200 ms: 0.5 x 100, and the part of 0.2 x 150 that lies before 100 ms, 0.2 x 50.
    trials = [trial(0, 0.5, 100), trial(1, 0.2, 50)]
    assert pareto.hypervolume(trials, TWO, (0.0, 200.0)) == pytest.approx(0.5 * 100 + 0.2 * 50)
    both_less = (Objective("bbox_mAP", "minimize"), MS)
    assert pareto.hypervolume([trial(0, 1, 2)], both_less, (4.0, 4.0)) == pytest.approx(6.0)


def test_hypervolume_ignores_what_adds_nothing() -> None:
    base = [trial(0, 0.5, 100)]
    more = [trial(1, 0.5, 100), trial(2, 0.4, 120), trial(3, 0.9, 250), trial(4, math.nan, 1)]
    assert pareto.hypervolume(base + more, TWO, (0.0, 200.0)) == pytest.approx(50.0)
    assert pareto.hypervolume([], TWO, (0.0, 200.0)) == 0.0
    assert pareto.hypervolume([trial(0, 0.5, 300)], TWO, (0.0, 200.0)) == 0.0


def test_curves_follow_the_order_of_finish() -> None:
    trials = [
        trial(0, 0.5, 100, finished=30.0, compute_hours=0.5),
        trial(1, 0.2, 50, finished=10.0, compute_hours=0.25),
        trial(2, 0.9, 10, TrialState.STOPPED, finished=20.0, compute_hours=1.0),
        trial(3, 0.9, 10, TrialState.RUNNING, compute_hours=9.0),
    ]
    rows = pareto.hypervolume_curves(trials, TWO, (0.0, 200.0))
    assert [row["finished_trials"] for row in rows] == [1, 2, 3]
    assert [row["compute_hours"] for row in rows] == pytest.approx([0.25, 1.25, 1.75])
    assert [row["hypervolume"] for row in rows] == pytest.approx([30.0, 30.0, 60.0])
    assert pareto.hypervolume_curves([], TWO, (0.0, 200.0)) == []


@pytest.mark.parametrize("count", [2, 3])
@settings(deadline=None)
@given(data=st.data())
def test_curves_are_what_is_measured_anew_after_each_trial(count: int, data: st.DataObject) -> None:
    """With duplicates, points beyond the reference, figures that are missing, and points that drive others out."""
    objectives = (Objective("a", "maximize"), Objective("b", "minimize"), Objective("c", "maximize"))[:count]
    reference = (0.5, 4.5, 0.5)[:count]
    figure = st.one_of(st.integers(0, 5).map(float), st.just(math.nan))
    table = data.draw(st.lists(st.tuples(*[figure] * count), max_size=15))
    trials = [
        TrialRecord(i, DONE, metrics=dict(zip("abc", row, strict=False)), finished=float(i))
        for i, row in enumerate(table)
    ]
    rows = pareto.hypervolume_curves(trials, objectives, reference)
    anew = [pareto.hypervolume(trials[: i + 1], objectives, reference) for i in range(len(trials))]
    assert [row["hypervolume"] for row in rows] == pytest.approx(anew)
    assert all(one["hypervolume"] <= other["hypervolume"] for one, other in pairwise(rows))


def test_reference_is_fixed_by_the_baseline() -> None:
    assert pareto.default_reference(trial(0, 0.3, 80), TWO) == (0.0, 160.0)
    assert pareto.reference_point([trial(0, 0.3, 80), trial(1, 0.9, 900)], TWO) == (0.0, 160.0)
    assert pareto.reference_point([trial(0, 0.3, 80, TrialState.RUNNING)], TWO) is None
    assert pareto.reference_point([], TWO, [0.1, 50]) == (0.1, 50.0)
    with pytest.raises(ValueError, match="must have 2 finite values"):
        pareto.reference_point([], TWO, [0.1])
    with pytest.raises(ValueError, match="FAILED"):
        pareto.default_reference(trial(0, 0.3, 80, TrialState.FAILED), TWO)
    with pytest.raises(ValueError, match="above 0"):
        pareto.default_reference(trial(0, 0.3, 0), TWO)


def test_rows_say_what_the_command_prints(tmp_path: Path) -> None:
    trials = [
        trial(0, 0.3, 100),
        trial(1, 0.35, 90, knobs={"slimhead.levels": [0, 1], "slimhead.mode": "nearest"}),
        trial(2, 0.2, 95),
        trial(3, math.nan, 10),
        trial(4, 0.9, 1, TrialState.STOPPED),
    ]
    rows = pareto.front_rows(trials, TWO)
    assert [row["trial"] for row in rows] == [1, 2, 0, 3]
    assert rows[0] == {
        "trial": 1,
        "point": "1",
        "knobs": {"slimhead.levels": [0, 1], "slimhead.mode": "nearest"},
        "metrics": {"bbox_mAP": 0.35, "latency_ms": 90.0},
        "baseline": False,
        "on_front": True,
        "dominates_baseline": True,
    }
    assert [row["on_front"] for row in rows] == [True, False, False, False]
    assert [row["baseline"] for row in rows] == [False, False, True, False]
    assert rows[-1]["metrics"]["bbox_mAP"] is None

    pareto.write_front_json(rows, tmp_path / "front.json")
    assert json.loads((tmp_path / "front.json").read_text()) == rows
    pareto.write_front_csv(rows, tmp_path / "front.csv")
    with (tmp_path / "front.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [
        "trial", "point", "baseline", "on_front", "dominates_baseline",
        "slimhead.levels", "slimhead.mode", "bbox_mAP", "latency_ms",
    ]  # fmt: skip
    assert table[0]["slimhead.levels"] == "[0, 1]"
    assert table[1]["slimhead.levels"] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["front.csv", "front.json"]
