"""One training, several points: what becomes of the settings of inference knobs."""

from __future__ import annotations

import json

import pytest

from analysis import pareto
from analysis.choose import choose
from analysis.record import EpochRecord, Objective, SweepPoint, TrialRecord, TrialState, further, spread
from analysis.view import view_of
from spaces.errors import UserError

TWO = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))


def setting(index: int, ap: float, ms: float, *broken: str) -> SweepPoint:
    return SweepPoint(index, {"q.threshold": index / 10}, {"bbox_mAP": ap, "latency_ms": ms}, broken)


BASE = TrialRecord(0, TrialState.COMPLETE, metrics={"bbox_mAP": 0.40, "latency_ms": 100.0, "params_m": 2.0})
SWEPT = TrialRecord(
    3,
    TrialState.COMPLETE,
    knobs={"q.threshold": 0.0},
    metrics={"bbox_mAP": 0.45, "latency_ms": 150.0, "params_m": 3.0},
    curve=[EpochRecord(1, {"bbox_mAP": 0.45})],
    compute_hours=0.5,
    sweep=[setting(0, 0.45, 150), setting(1, 0.44, 90), setting(2, 0.30, 95), setting(3, 0.2, 40, "latency_ms >= 50")],
)


def test_each_setting_that_breaks_nothing_is_a_point() -> None:
    records = spread([BASE, SWEPT])
    assert [record.label for record in records] == ["0", "3", "3.1", "3.2"]
    assert [record.metrics["latency_ms"] for record in records] == [100, 150, 90, 95]
    assert all(record.metrics["params_m"] == 3.0 for record in records[1:])
    assert sum(record.compute_hours for record in records) == 0.5
    assert spread(records) == records
    assert [record.label for record in further(SWEPT)] == ["3.1", "3.2"]


def test_a_trial_that_is_not_complete_has_no_points() -> None:
    running = TrialRecord(3, TrialState.RUNNING, sweep=SWEPT.sweep)
    assert spread([running]) == [running]
    assert pareto.points([running], TWO) == []


def test_the_front_is_that_of_all_settings() -> None:
    assert [record.label for record in pareto.front([BASE, SWEPT], TWO)] == ["3.1", "3"]
    rows = {row["point"]: row for row in json.loads(pareto.front_json(pareto.front_rows([BASE, SWEPT], TWO)))}
    assert {point: row["on_front"] for point, row in rows.items()} == {"3.1": True, "3": True, "0": False, "3.2": False}
    assert rows["3.1"]["dominates_baseline"]
    assert (rows["3.1"]["trial"], rows["3.1"]["knobs"]) == (3, {"q.threshold": 0.1})
    text = pareto.front_csv(pareto.front_rows([BASE, SWEPT], TWO)).splitlines()
    assert text[1].startswith("3,3.1,False,True,True")
    view = view_of([BASE, SWEPT], TWO)
    assert [record.label for record in view.members] == ["3.1", "3"]
    assert [record.label for record in view.faint] == ["3.2", "0"]


def test_a_trial_whose_own_setting_breaks_a_constraint_still_has_its_others() -> None:
    broken = TrialRecord(1, TrialState.COMPLETE, sweep=[setting(0, 0.5, 300, "latency_ms <= 200"), setting(1, 0.4, 50)])
    assert [record.label for record in spread([broken])] == ["1.1"]


def test_hypervolume_counts_every_setting_at_the_trials_end() -> None:
    rows = pareto.hypervolume_curves([BASE, SWEPT], TWO, (0.0, 200.0))
    assert [row["finished_trials"] for row in rows] == [1, 2]
    # Two boxes: 3.1 up to 200 ms, and what trial 3 adds above it.
    assert rows[-1]["hypervolume"] == pytest.approx(0.44 * (200 - 90) + (0.45 - 0.44) * (200 - 150))


@pytest.mark.parametrize(
    ("pick", "label"), [("fastest", "3.1"), ("most_accurate", "3"), ("3.2", "3.2"), ("3", "3"), ("3.0", "3")]
)
def test_picks(pick: str, label: str) -> None:
    choice = choose([BASE, SWEPT], TWO, pick)
    assert choice.trial.label == label
    assert f"trial {label} " in choice.why


@pytest.mark.parametrize("pick", ["3.3", "3.9", "0.1"])
def test_no_such_setting(pick: str) -> None:
    with pytest.raises(UserError, match=rf"no trial {pick}\. The COMPLETE trials are 0, 3, 3\.1 or 3\.2\."):
        choose([BASE, SWEPT], TWO, pick)
