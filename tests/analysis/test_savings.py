"""What a study saved, over records made by hand: every number was worked out on paper."""

from __future__ import annotations

import json
from typing import Any

import pytest

from analysis.record import EpochRecord, Objective, SweepPoint, TrialRecord, TrialState
from analysis.savings import Saving, savings

OBJECTIVES = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))
EPOCHS = 8


def trial(number: int, state: TrialState, seconds: list[float], **more: Any) -> TrialRecord:
    """A trial that trained for one epoch of each of ``seconds``, a tenth of them in validation."""
    curve, at = [], 5.0
    for epoch, taken in enumerate(seconds, 1):
        at += taken
        metrics = {"bbox_mAP": 0.3, "train_seconds": 0.9 * taken, "val_seconds": 0.1 * taken}
        curve.append(EpochRecord(epoch, metrics, at))
    metrics = {"bbox_mAP": 0.3, "latency_ms": 20.0 - number, **more.pop("metrics", {})}
    return TrialRecord(number=number, state=state, metrics=metrics, curve=curve, **more)


def found(records: list[TrialRecord], **more: Any) -> dict[str, Saving]:
    return {saving.what: saving for saving in savings(records, OBJECTIVES, epochs=EPOCHS, **more)}


def test_nothing_is_saved_by_trials_that_run_to_their_end() -> None:
    assert savings([], OBJECTIVES, epochs=EPOCHS, warm_epochs=3) == []
    assert found([trial(0, TrialState.COMPLETE, [60.0] * 8), trial(1, TrialState.FAILED, [60.0])]) == {}
    assert found([trial(0, TrialState.RUNNING, [60.0])], warm_epochs=3) == {}


def test_stopped_trials_left_the_rest_of_their_epochs() -> None:
    records = [
        trial(0, TrialState.COMPLETE, [60.0] * 8),
        trial(1, TrialState.STOPPED, [30.0]),  # 7 left, of 30 s
        trial(2, TrialState.STOPPED, [90.0, 36.0, 36.0]),  # 5 left, of 36 s
    ]
    (saving,) = found(records).values()
    assert (saving.what, saving.count, saving.epochs) == ("stopped", 2, 12)
    assert saving.hours == pytest.approx((7 * 30 + 5 * 36) / 3600)
    assert str(saving) == "2 trials stopped at rungs, 12 epochs not trained, about 6.5 min"
    assert str(found(records[:2])["stopped"]) == "1 trial stopped at a rung, 7 epochs not trained, about 3.5 min"


def test_refused_designs_are_priced_like_the_others() -> None:
    records = [
        trial(0, TrialState.COMPLETE, [60.0] * 8),
        trial(1, TrialState.COMPLETE, [30.0] * 7),
        trial(2, TrialState.INFEASIBLE, []),  # 8 epochs at the median of all 15, 60 s
        trial(3, TrialState.INFEASIBLE, [90.0, 90.0]),  # 6 left, of 90 s: refused once it was settled
        trial(4, TrialState.INFEASIBLE, [90.0] * 8),  # refused by its sweep, when it was trained
    ]
    saving = found(records[:4])["refused"]
    # Of 8 epochs of 60 s, 7 of 30 s and 2 of 90 s the ninth of 17.
    assert (saving.count, saving.epochs) == (2, 14)
    assert saving.hours == pytest.approx((8 * 60 + 6 * 90) / 3600)
    assert found(records[4:]) == {}
    # Nobody knows how long an epoch takes.
    assert found([trial(0, TrialState.INFEASIBLE, [])])["refused"].hours is None


def test_further_points_of_the_front_would_have_been_trainings() -> None:
    def point(index: int, accuracy: float, ms: float, broken: tuple[str, ...] = ()) -> SweepPoint:
        return SweepPoint(index, {"t": index}, {"bbox_mAP": accuracy, "latency_ms": ms}, broken)

    sweep = [
        point(0, 0.30, 19.0),
        point(1, 0.28, 15.0),  # on the front
        point(2, 0.27, 15.5),  # dominated by the one before
        point(3, 0.35, 25.0),  # on the front
        point(4, 0.40, 10.0, ("latency_ms >= 12",)),  # no point
    ]
    records = [
        trial(0, TrialState.COMPLETE, [60.0] * 8, metrics={"latency_ms": 20.0}),
        trial(1, TrialState.COMPLETE, [45.0] * 8, sweep=sweep),
    ]
    saving = found(records)["swept"]
    assert (saving.count, saving.epochs) == (2, 16)
    assert saving.hours == pytest.approx(16 * 45 / 3600)
    # The trial's own setting is what was trained.
    assert "swept" not in found([records[0], trial(1, TrialState.COMPLETE, [45.0] * 8, sweep=sweep[:1])])


def test_latencies_that_were_known() -> None:
    known = {"latency_pairs": 25.0, "measured_ms": 16.0, "latency_ratio": 0.8}
    records = [
        trial(0, TrialState.COMPLETE, [60.0] * 8),
        trial(1, TrialState.COMPLETE, [60.0] * 8, metrics=known),
        trial(2, TrialState.COMPLETE, [60.0] * 8, metrics=known, attrs={"speed_from": 1}),
        trial(3, TrialState.FAILED, [], metrics=known, attrs={"speed_from": 1}),
    ]
    saving = found(records)["timed"]
    # 25 pairs of 16 ms for the design and 20 ms for the baseline, twice.
    assert (saving.count, saving.epochs, saving.hours) == (2, None, pytest.approx(2 * 25 * 0.036 / 3600))
    assert str(saving) == "2 latencies known from the same architecture, about 2 s"
    untold = [trial(2, TrialState.COMPLETE, [60.0], attrs={"speed_from": 0})]
    assert found(untold)["timed"].hours is None


def test_the_warm_start_is_paid_once() -> None:
    records = [
        trial(0, TrialState.COMPLETE, [60.0] * 8, attrs={"warm_seconds": 200.0}),
        trial(1, TrialState.COMPLETE, [30.0] * 8),
        trial(2, TrialState.STOPPED, [40.0]),
        trial(3, TrialState.FAILED, [40.0]),
        trial(4, TrialState.RUNNING, [40.0]),
    ]
    saving = found(records, warm_epochs=3)["warm"]
    # Three trials: 3 epochs each of 60, 30 and 40 s, less the 200 s that it took.
    assert (saving.count, saving.epochs) == (3, 6)
    assert saving.hours == pytest.approx((3 * (60 + 30 + 40) - 200) / 3600)
    assert "warm" not in found(records)
    assert "warm" not in found([records[0]], warm_epochs=3)
    # One that took longer than it saved saved no time.
    slow = [trial(0, TrialState.COMPLETE, [60.0] * 8, attrs={"warm_seconds": 9000.0}), records[1]]
    assert found(slow, warm_epochs=3)["warm"].hours == 0


def test_epochs_of_a_trainer_that_tells_no_seconds() -> None:
    """Building and timing come before the first epoch, and a restart begins at 0 again."""
    times = [100.0, 110.0, 122.0, 8.0, 20.0]
    curve = [EpochRecord(epoch, {"bbox_mAP": 0.1}, seconds) for epoch, seconds in enumerate(times, 1)]
    records = [TrialRecord(number=0, state=TrialState.STOPPED, curve=curve)]
    saving = found(records)["stopped"]
    assert (saving.epochs, saving.hours) == (3, pytest.approx(3 * 12 / 3600))
    once = [TrialRecord(number=0, state=TrialState.STOPPED, curve=curve[:1])]
    assert found(once)["stopped"].hours is None
    assert str(found(once)["stopped"]) == "1 trial stopped at a rung, 7 epochs not trained"


def test_json() -> None:
    records = [trial(0, TrialState.COMPLETE, [60.0] * 8), trial(1, TrialState.STOPPED, [3600.0])]
    saving = found(records)["stopped"]
    assert json.loads(json.dumps(saving.to_json())) == {
        "count": 1,
        "unit": "trials stopped at rungs",
        "epochs": 7,
        "hours": 7.0,
    }
    assert str(saving).endswith("7 epochs not trained, about 7.0 h")
