"""Picking a design."""

from __future__ import annotations

import pytest

from analysis.choose import choose
from analysis.record import Objective, TrialRecord, TrialState
from spaces.errors import UserError

TWO = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))


def trial(number: int, ap: float, ms: float, state: TrialState = TrialState.COMPLETE, **more: object) -> TrialRecord:
    return TrialRecord(number, state, metrics={"bbox_mAP": ap, "latency_ms": ms}, **more)  # type: ignore[arg-type]


# Scaled losses: trial 1 (0.1, 0.2) lies farthest from the line, trial 2 (0.4, 0.1) nearer, trial 4 is dominated.
BULGING = [trial(0, 0.40, 100), trial(1, 0.37, 60), trial(2, 0.28, 55), trial(3, 0.10, 50), trial(4, 0.2, 90)]


@pytest.mark.parametrize(
    ("pick", "number"), [("knee", 1), ("fastest", 3), ("most_accurate", 0), (4, 4), ("2", 2), (0, 0)]
)
def test_picks(pick: str | int, number: int) -> None:
    choice = choose(BULGING, TWO, pick)
    assert choice.trial.number == number
    assert f"trial {number}" in choice.why


def test_why_gives_figures_with_units() -> None:
    assert "AP 37.0 %, latency 60.0 ms" in choose(BULGING, TWO, "knee").why
    assert "off the front" in choose(BULGING, TWO, 4).why


def test_knee_of_one_point() -> None:
    choice = choose([trial(0, 0.3, 100)], TWO, "knee")
    assert choice.trial.number == 0
    assert "only point" in choice.why


def test_knee_of_two_points_is_the_better_bargain() -> None:
    # A tenth of the accuracy for half the time, and nearly all of it for a tenth of the time.
    assert choose([trial(0, 0.40, 100), trial(1, 0.36, 50)], TWO, "knee").trial.number == 1
    assert choose([trial(0, 0.40, 100), trial(1, 0.02, 90)], TWO, "knee").trial.number == 0
    assert choose([trial(0, 0.40, 100), trial(1, 0.0, 1)], TWO, "knee").trial.number == 0


def test_knee_of_a_hollow_front_is_no_accident_of_scaling() -> None:
    hollow = [trial(0, 0.40, 100), trial(1, 0.12, 90), trial(2, 0.10, 20)]
    choice = choose(hollow, TWO, "knee")
    assert choice.trial.number == 2
    assert "no bulge" in choice.why


def test_knee_of_equal_points_is_the_oldest() -> None:
    assert choose([trial(3, 0.4, 100), trial(1, 0.4, 100)], TWO, "knee").trial.number == 1


def test_knee_of_three_objectives() -> None:
    objectives = (*TWO, Objective("params_m", "minimize"))
    rows = [(0, 0.4, 100, 30), (1, 0.38, 60, 12), (2, 0.1, 50, 30), (3, 0.1, 100, 10)]
    trials = [
        TrialRecord(n, TrialState.COMPLETE, metrics={"bbox_mAP": ap, "latency_ms": ms, "params_m": params})
        for n, ap, ms, params in rows
    ]
    assert choose(trials, objectives, "knee").trial.number == 1


def test_fastest_means_latency_wherever_it_stands() -> None:
    objectives = (TWO[0], Objective("params_m", "minimize"), TWO[1])
    trials = [
        TrialRecord(0, TrialState.COMPLETE, metrics={"bbox_mAP": 0.4, "latency_ms": 50, "params_m": 30}),
        TrialRecord(1, TrialState.COMPLETE, metrics={"bbox_mAP": 0.4, "latency_ms": 90, "params_m": 10}),
    ]
    assert choose(trials, objectives, "fastest").trial.number == 0


@pytest.mark.parametrize(
    ("trials", "pick", "said"),
    [
        (BULGING, "best", "must be knee, fastest, most_accurate or a trial number, but got 'best'"),
        (BULGING, 9, "has no trial 9. The COMPLETE trials are 0, 1, 2, 3 or 4"),
        (BULGING, "-1", "has no trial -1"),
        ([], "knee", "no trial of this study is COMPLETE"),
        ([trial(0, 0.3, 9, TrialState.FAILED)], 0, "no trial of this study is COMPLETE (1 FAILED)"),
        (
            [trial(0, 0.3, 9), trial(1, 0.3, 9, TrialState.STOPPED, reason="behind at epoch 3")],
            1,
            "trial 1 is STOPPED (behind at epoch 3), and only a COMPLETE trial can be picked. "
            "The COMPLETE trials are 0.",
        ),
        ([trial(0, float("nan"), 9)], "knee", "finite figure for bbox_mAP or latency_ms"),
    ],
)
def test_wrong_picks_are_told(trials: list[TrialRecord], pick: str | int, said: str) -> None:
    with pytest.raises(UserError) as error:
        choose(trials, TWO, pick)
    assert said in str(error.value)


def test_a_study_without_such_an_objective() -> None:
    with pytest.raises(UserError, match="'fastest' needs a minimized objective"):
        choose(BULGING, TWO[:1], "fastest")
