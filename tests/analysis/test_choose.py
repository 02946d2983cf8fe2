"""Picking a design."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.choose import choose
from analysis.confirm import Evidence, Rounds, judge
from analysis.pareto import dominates, front
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
        (BULGING, "best", "must be knee, fastest, most_accurate, weighted or a trial number, but got 'best'"),
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


def test_limits_leave_what_keeps_them() -> None:
    assert choose(BULGING, TWO, "fastest", above={"bbox_mAP": 0.3}).trial.number == 1
    assert choose(BULGING, TWO, "fastest", above={"bbox_mAP": 0.37}).trial.number == 1  # at the limit is within it
    assert choose(BULGING, TWO, "most_accurate", under={"latency_ms": 58}).trial.number == 2
    assert choose(BULGING, TWO, "most_accurate", under={"latency_ms": 99}, above={"bbox_mAP": 0.1}).trial.number == 1
    why = choose(BULGING, TWO, "fastest", above={"bbox_mAP": 0.3}).why
    assert why.startswith("of 5 COMPLETE points 2 have bbox_mAP >= 0.3, and of these trial 1 is the fastest of 2 ")


def small(number: int, ap: float, ms: float, params: float) -> TrialRecord:
    return replace(trial(number, ap, ms), metrics={"bbox_mAP": ap, "latency_ms": ms, "params_m": params})


def test_a_limit_on_no_objective_may_leave_the_front() -> None:
    trials = [small(0, 0.4, 50, 30), small(1, 0.3, 90, 10), small(2, 0.2, 95, 9)]
    choice = choose(trials, TWO, "most_accurate", under={"params_m": 12})
    assert choice.trial.number == 1
    assert choice.notes == ("without the limits it is off the front",)
    assert choice.neighbours[0].words.endswith("it misses params_m <= 12; not confirmed")


# Scaled over the front from 0, the worst, to 1, the best: trial 0 (1, 0), trial 1 (0.9, 0.8), 2 (0.6, 0.9), 3 (0, 1).
@pytest.mark.parametrize(
    ("weights", "number", "mean"),
    [
        ({"bbox_mAP": 1, "latency_ms": 1}, 1, "0.850"),
        ({"bbox_mAP": 3, "latency_ms": 1}, 1, "0.875"),
        ({"bbox_mAP": 8, "latency_ms": 0.5}, 0, "0.941"),
        ({"bbox_mAP": 1}, 0, "1.000"),
        ({"latency_ms": 3, "bbox_mAP": 0}, 3, "1.000"),
    ],
)
def test_weights(weights: dict[str, float], number: int, mean: str) -> None:
    choice = choose(BULGING, TWO, "weighted", weights=weights)
    assert choice.trial.number == number
    assert f"weighted mean, {mean}, of 4 points" in choice.why


def test_neighbours_are_the_next_steps() -> None:
    choice = choose(BULGING, TWO, "knee")
    faster, better = choice.neighbours
    assert (faster.trial.number, faster.better_in) == (2, "latency_ms")
    assert faster.gains == {"latency_ms": 5} and faster.losses == {"bbox_mAP": pytest.approx(0.09)}
    assert faster.words == (
        "next faster: trial 2 (AP 28.0 %, latency 55.0 ms): latency -5.0 ms (-8 %), for AP -9.0 points; not confirmed"
    )
    assert (better.trial.number, better.better_in) == (0, "bbox_mAP")
    assert better.gains == {"bbox_mAP": pytest.approx(0.03)} and better.losses == {"latency_ms": 40}


def test_the_ends_of_the_front_have_one_neighbour() -> None:
    fastest = choose(BULGING, TWO, "fastest")
    assert [item.trial.number for item in fastest.neighbours] == [2]
    assert fastest.notes == ("nothing on the front is faster",)
    best = choose(BULGING, TWO, "most_accurate")
    assert [item.trial.number for item in best.neighbours] == [1]
    assert best.notes == ("nothing on the front is more accurate",)


def test_a_dominated_pick_is_told_of_what_beats_it() -> None:
    # Of those that are better than trial 4 in both, trial 1 is the nearest in latency and trial 2 in accuracy.
    choice = choose(BULGING, TWO, 4)
    assert [item.trial.number for item in choice.neighbours] == [1, 2]
    assert all(not item.losses and "better or equal in every objective" in item.words for item in choice.neighbours)


def test_overlapping_quartiles_are_told() -> None:
    near = [
        replace(item, metrics={**item.metrics, "latency_ratio_q1": low, "latency_ratio_q3": low + 0.1})
        for item, low in ((trial(0, 0.4, 100), 0.95), (trial(1, 0.3, 90), 0.86), (trial(2, 0.2, 50), 0.45))
    ]
    faster, better = choose(near, TWO, 1).neighbours
    assert "overlap" in better.words and "overlap" not in faster.words


def confirmed(spans: dict[int, tuple[list[float], list[float]]]) -> list[TrialRecord]:
    """Trials with accuracies over seeds and paired latency ratios."""
    trials = [trial(n, aps[0], 100 * ratios[0]) for n, (aps, ratios) in spans.items()]
    evidence = {
        str(n): Evidence(
            values={seed: {"bbox_mAP": ap} for seed, ap in enumerate(aps)}, rounds=Rounds(0, ratios, [1.0] * 8)
        )
        for n, (aps, ratios) in spans.items()
    }
    found = judge(front(trials, TWO), trials[0], TWO, evidence)
    return [replace(item, attrs={"confirmed": {item.label: found[item.label]}}) for item in trials]


def test_confirmed_neighbours_tell_whether_they_differ() -> None:
    trials = confirmed(
        {
            0: ([0.40, 0.41, 0.39], [1.0] * 8),
            1: ([0.395, 0.42, 0.40], [0.80 + 0.001 * n for n in range(8)]),
            2: ([0.20, 0.21, 0.19], [0.50 + 0.001 * n for n in range(8)]),
        }
    )
    faster, better = choose(trials, TWO, 1).neighbours
    assert faster.alike == () and "confirmed: they can be told apart" in faster.words
    assert better.alike == ("bbox_mAP",) and better.pick == "1"
    assert "confirmed: they cannot be told apart in AP, and 1 is the better pick" in better.words


def test_a_limit_within_noise_is_told() -> None:
    trials = confirmed({0: ([0.40, 0.41, 0.36], [1.0] * 8), 1: ([0.20, 0.21, 0.19], [0.5] * 8)})
    noisy = choose(trials, TWO, "fastest", above={"bbox_mAP": 0.38})
    assert any("bbox_mAP >= 0.38 is within noise" in note for note in noisy.notes)
    # 0.2 +- 0.025 by Student's t with two degrees of freedom (4.303 * 0.01 / sqrt(3)).
    assert not any("noise" in note for note in choose(trials, TWO, "fastest", above={"bbox_mAP": 0.17}).notes)
    assert any("noise" in note for note in choose(trials, TWO, "fastest", above={"bbox_mAP": 0.18}).notes)


@pytest.mark.parametrize(
    ("pick", "more", "said"),
    [
        ("fastest", {"above": {"bbox_map": 0.4}}, "--above: unknown 'bbox_map'; did you mean 'bbox_mAP'? The choices"),
        ("fastest", {"above": {"bbox_mAP": 40}}, "must lie in [0, 1], but got 40; 40 % is bbox_mAP=0.4"),
        ("fastest", {"above": {"latency_ms": 40}}, "less is better; --under latency_ms=40 may be meant"),
        ("most_accurate", {"under": {"bbox_mAP": 0.4}}, "more is better; --above bbox_mAP=0.4 may be meant"),
        (
            "most_accurate",
            {"under": {"latency_ms": 0.02}},
            "the nearest is trial 3 with latency_ms 50 (latency_ms is in",
        ),
        ("most_accurate", {"under": {"latency_ms": 0}}, "latency_ms must be above 0"),
        ("most_accurate", {"under": {"latency_ms": math.nan}}, "must be a finite number"),
        ("most_accurate", {"under": {"params_m": 3}}, "--under: unknown 'params_m'. The choices are latency_ms"),
        ("fastest", {"above": {"bbox_mAP": 0.9}}, "none of the 5 COMPLETE points has bbox_mAP >= 0.9; the nearest is "),
        # Trial 1 misses one limit by 20 % and the other by 3 %, trial 2 by 10 % and 26 %.
        (
            "knee",
            {"above": {"bbox_mAP": 0.38}, "under": {"latency_ms": 50}},
            "has bbox_mAP >= 0.38 and latency_ms <= 50; the nearest is trial 1 with bbox_mAP 0.37 and latency_ms 60",
        ),
        (1, {"above": {"bbox_mAP": 0.1}}, "--above: goes with --pick knee, fastest, most_accurate or weighted"),
        ("knee", {"weights": {"bbox_mAP": 1}}, "--weight: goes with --pick weighted, but got --pick knee"),
        ("weighted", {}, "'weighted' needs a weight"),
        ("weighted", {"weights": {"bbox_mAP": -1}}, "bbox_mAP must be 0 or more, but got -1"),
        ("weighted", {"weights": {"bbox_mAP": 0}}, "one weight must be above 0"),
        ("weighted", {"weights": {"bbox_AP": 1}}, "--weight: unknown 'bbox_AP'; did you mean 'bbox_mAP'?"),
    ],
)
def test_wrong_limits_and_weights_are_told(pick: str | int, more: dict[str, dict[str, float]], said: str) -> None:
    with pytest.raises(UserError) as error:
        choose(BULGING, TWO, pick, **more)
    assert said in str(error.value)


TRIALS = st.lists(st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.integers(1, 20)), min_size=1, max_size=12).map(
    lambda rows: [trial(number, ap, ms) for number, (ap, ms) in enumerate(rows)]
)


@settings(max_examples=60, deadline=None)
@given(TRIALS, st.sampled_from(["knee", "fastest", "most_accurate"]), st.integers(0, 20), st.integers(1, 20))
def test_whatever_is_picked_keeps_the_limits_and_nothing_that_keeps_them_beats_it(
    trials: list[TrialRecord], pick: str, least: int, most: int
) -> None:
    limits = {"above": {"bbox_mAP": least / 20}, "under": {"latency_ms": float(most)}}
    kept = [t for t in trials if t.metrics["bbox_mAP"] >= least / 20 and t.metrics["latency_ms"] <= most]
    if not kept:
        with pytest.raises(UserError, match="the nearest is trial"):
            choose(trials, TWO, pick, **limits)
        return
    choice = choose(trials, TWO, pick, **limits)
    assert choice.trial in kept
    assert not any(dominates(other, choice.trial, TWO) for other in kept)
    if pick == "fastest":
        assert choice.trial.metrics["latency_ms"] == min(t.metrics["latency_ms"] for t in kept)
    if pick == "most_accurate":
        assert choice.trial.metrics["bbox_mAP"] == max(t.metrics["bbox_mAP"] for t in kept)
    members = front(trials, TWO)
    for near in choice.neighbours:
        assert near.trial in members and near.gains and min(near.gains.values()) > 0
        # Nothing on the front lies between the two in what the neighbour is better in.
        step = near.gains[near.better_in]
        sign = 1 if near.better_in == "bbox_mAP" else -1
        for other in members:
            gain = sign * (other.metrics[near.better_in] - choice.trial.metrics[near.better_in])
            assert not 0 < gain < step


@settings(max_examples=60, deadline=None)
@given(TRIALS, st.integers(1, 9), st.integers(1, 9))
def test_the_weighted_pick_has_the_largest_mean(trials: list[TrialRecord], accuracy: int, speed: int) -> None:
    weights = {"bbox_mAP": float(accuracy), "latency_ms": float(speed)}
    choice = choose(trials, TWO, "weighted", weights=weights)
    assert choice.trial in front(trials, TWO)
    # Weights count by their ratio alone.
    larger = {name: 4 * weight for name, weight in weights.items()}
    assert choose(trials, TWO, "weighted", weights=larger).trial == choice.trial
    best = _mean(choice.trial, front(trials, TWO), weights)
    assert all(_mean(member, front(trials, TWO), weights) <= best + 1e-9 for member in front(trials, TWO))


def _mean(one: TrialRecord, members: list[TrialRecord], weights: dict[str, float]) -> float:
    total = 0.0
    for metric, weight in weights.items():
        column = [member.metrics[metric] for member in members]
        share = (one.metrics[metric] - min(column)) / ((max(column) - min(column)) or 1.0)
        total += weight * (share if metric == "bbox_mAP" else 1 - share)
    return total / sum(weights.values())
