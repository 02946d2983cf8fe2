"""Intervals against closed forms, and neighbours that are or are not told apart by construction."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from scipy import stats

from analysis import pareto, plots
from analysis.confirm import (
    Evidence,
    Pair,
    Rounds,
    accuracy_difference,
    flat,
    judge,
    latency_quotient,
    mean_interval,
    median_interval,
    noise_of_builds,
)
from analysis.plots.matrix import matrix_figure
from analysis.plots.pair import pair_figure, pair_picture
from analysis.record import Objective, SweepPoint, TrialRecord, TrialState, spread
from analysis.view import view_of

TWO = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))
THREE = (*TWO, Objective("params_m", "minimize"))
STILL = [0.999, 1.001, 1.0, 1.0, 0.998, 1.002]  # two builds of one detector


def trial(number: int, ap: float, ratio: float, params: float = 30.0) -> TrialRecord:
    metrics = {"bbox_mAP": ap, "latency_ms": 100 * ratio, "latency_ratio": ratio, "params_m": params}
    return TrialRecord(number, TrialState.COMPLETE, metrics=metrics, knobs={"slimhead.ratio": 0.1} if number else {})


def proof(aps: Sequence[float], ratios: Sequence[float], aa: Sequence[float] = STILL, run: int = 0) -> Evidence:
    return Evidence({seed: {"bbox_mAP": ap} for seed, ap in enumerate(aps)}, {}, Rounds(run, ratios, aa))


def around(ratio: float, by: float = 0.002) -> list[float]:
    return [ratio * (1 + by * step) for step in (-2, -1, 0, 0, 1, 2)]


# Intervals.


def test_the_interval_of_a_mean_is_students() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    # t(2) has the closed form: its quantile at p is (2 p - 1) sqrt(2 / (4 p (1 - p))).
    p = 0.975
    reach = (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p))) * 1.0 / math.sqrt(3)
    assert (found.middle, found.count) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - reach, 2 + reach))
    values = [0.31, 0.29, 0.335, 0.30, 0.312]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    got = mean_interval(values)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))


def test_too_few_values_have_no_interval() -> None:
    assert vars(mean_interval([0.3])) == {"middle": 0.3, "low": None, "high": None, "count": 1}
    assert mean_interval([0.3]).excludes(0.0) is None
    found = mean_interval([0.3, 0.3])
    assert (found.low, found.high, found.excludes(0.3), found.excludes(0.31)) == (0.3, 0.3, False, True)
    assert vars(median_interval([1.0, 2.0, 3.0, 4.0, 5.0])) == {"middle": 3.0, "low": None, "high": None, "count": 5}


@pytest.mark.parametrize("count", [6, 7, 9, 12, 20, 100])
def test_the_interval_of_a_median_is_the_sign_tests(count: int) -> None:
    found = median_interval([float(value) for value in range(1, count + 1)])

    def outside(rank: int) -> float:
        """Chance that the median lies outside of the ordered values ``rank`` and ``count + 1 - rank``."""
        return 2 * sum(math.comb(count, below) for below in range(rank)) / 2**count

    rank = max(rank for rank in range(1, count // 2 + 1) if outside(rank) <= 0.05)
    assert (found.low, found.high) == (rank, count + 1 - rank)


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    """Over all 2^9 ways in which nine values may lie on either side of the true median."""
    held = 0
    for signs in product((-1, 1), repeat=9):
        found = median_interval([sign * (1 + place / 10) for place, sign in enumerate(signs)])
        held += not found.excludes(0.0)
    assert held / 2**9 == pytest.approx(1 - 2 * (1 + 9) / 2**9)


# Differences.


def test_differences_are_paired_by_seed() -> None:
    one, other = {0: 0.30, 1: 0.40, 2: 0.50, 7: 0.9}, {0: 0.29, 1: 0.38, 2: 0.49, 5: 0.1}
    found = accuracy_difference(one, other)
    assert found is not None
    expected = stats.ttest_rel([0.30, 0.40, 0.50], [0.29, 0.38, 0.49]).confidence_interval(0.95)
    assert (found.low, found.high, found.count) == pytest.approx((expected.low, expected.high, 3))
    assert accuracy_difference({0: 0.3}, {1: 0.3}) is None


def test_the_baseline_cancels_out_of_rounds_that_are_shared() -> None:
    drift = [1.0, 1.4, 0.8, 1.2, 2.0, 0.9]  # what the baseline's own passes suffered
    one, other = (Rounds(0, [ratio / value for value in drift], STILL) for ratio in (0.80, 0.82))
    found = latency_quotient(one, other)
    assert found is not None
    assert (found.low, found.middle, found.high) == pytest.approx((0.80 / 0.82,) * 3)
    # In two runs nothing cancels: the intervals of both count.
    apart = latency_quotient(one, replace(other, run=1))
    assert apart is not None
    assert (apart.low, apart.high) == pytest.approx((0.80 / 2.0 / (0.82 / 0.8), 0.80 / 0.8 / (0.82 / 2.0)))
    assert latency_quotient(one, None) is None


def test_two_builds_of_one_detector_set_the_least_difference() -> None:
    assert noise_of_builds(Rounds(0, [1.0], [0.98, 0.98]), Rounds(0, [1.0], [1.01])) == pytest.approx(1 / 0.98)


# The front.


def judged(members: Sequence[TrialRecord], evidence: Mapping[str, Evidence], objectives: Any = TWO) -> dict[str, Any]:
    return judge(pareto.front(members, objectives), members[0], objectives, evidence)


def only(found: Mapping[str, Any]) -> Mapping[str, Any]:
    (pair,) = {pair["says"]: pair for item in found.values() for pair in item["neighbours"]}.values()
    return dict(pair)


CASES = {
    "a trade-off": ([0.35, 0.352, 0.351], around(1.2), {"bbox_mAP": "better", "latency_ms": "worse"}, None, ""),
    "accuracy within noise": (
        [0.31, 0.28, 0.33], around(1.2), {"bbox_mAP": "alike", "latency_ms": "worse"}, "0", "≈ {} in AP",
    ),
    "latency within noise": (
        [0.35, 0.352, 0.351], [0.9, 1.2, 0.95, 1.1, 1.05, 1.0], {"bbox_mAP": "better", "latency_ms": "alike"}, "1",
        "≈ {} in latency",
    ),
    "both within noise": (
        [0.31, 0.28, 0.33], [0.9, 1.2, 0.95, 1.1, 1.05, 1.0], {"bbox_mAP": "alike", "latency_ms": "alike"}, None,
        "≈ {}",
    ),
    "worse after all": ([0.25, 0.252, 0.251], around(1.2), {"bbox_mAP": "worse", "latency_ms": "worse"}, "0", None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_neighbours(case: str) -> None:
    aps, ratios, verdicts, pick, mark = CASES[case]
    members = [trial(0, 0.30, 1.0), trial(1, 0.36, 1.2)]
    found = judged(members, {"0": proof([0.30, 0.301, 0.302], [1.0] * 6), "1": proof(aps, ratios)})
    pair = only(found)
    assert (pair["one"], pair["other"]) == ("1", "0")
    assert pair["verdicts"] == verdicts
    assert pair["pick"] == pick
    marks = {label: item["mark"] for label, item in found.items()}
    if mark is None:
        assert marks == {"0": "", "1": "worse than 0"}
    else:
        assert marks == {"0": mark.format("1") if mark else "", "1": mark.format("0") if mark else ""}
    words = {None: "a trade-off that holds" if mark == "" else "take either", "0": "0 is better", "1": "1 is better"}
    assert words[pick] in pair["says"]


def test_a_difference_below_that_of_two_builds_is_none() -> None:
    members = [trial(0, 0.30, 1.0), trial(1, 0.36, 1.02)]
    steady = [1.02] * 6  # the same in each round, so its interval has no width
    for aa, verdict in ((STILL, "worse"), ([1.03] * 6, "alike"), ([0.97] * 6, "alike")):
        evidence = {"0": proof([0.3, 0.3, 0.3], [1.0] * 6, aa), "1": proof([0.4, 0.4, 0.4], steady, aa)}
        assert only(judged(members, evidence))["verdicts"]["latency_ms"] == verdict


def test_points_in_the_middle_have_two_neighbours() -> None:
    members = [trial(0, 0.30, 1.0), trial(1, 0.20, 0.5), trial(2, 0.25, 0.7), trial(3, 0.1, 0.9)]
    evidence = {
        "0": proof([0.30, 0.50, 0.10], [1.0] * 6),
        "1": proof([0.20, 0.40, 0.01], around(0.5)),
        "2": proof([0.25, 0.05, 0.45], around(0.7)),
    }
    found = judged(members, evidence)
    assert [item["mark"] for item in (found["1"], found["2"], found["0"])] == [
        "≈ 2 in AP", "≈ 1 in AP, ≈ 0 in AP", "≈ 2 in AP",
    ]  # fmt: skip
    assert [pair["one"] for pair in found["2"]["neighbours"]] == ["2", "0"]


def test_what_was_measured_too_seldom_is_left_open() -> None:
    members = [trial(0, 0.30, 1.0), trial(1, 0.36, 1.2)]
    once = Evidence({0: {"bbox_mAP": 0.36}}, {1: "not a number: loss = nan (epoch 1)"})
    found = judged(members, {"0": proof([0.30, 0.31], [1.0] * 6), "1": once})
    pair = only(found)
    assert pair["verdicts"] == {"bbox_mAP": "unknown", "latency_ms": "unknown"}
    assert pair["pick"] is None
    assert "too few measurements to tell 1 and 0 apart in AP and latency" in pair["says"]
    own = found["1"]
    assert (own["mark"], own["latency"], own["seeds"]) == ("", None, [0])
    assert own["failed"] == {"1": "not a number: loss = nan (epoch 1)"}
    assert own["metrics"]["bbox_mAP"] == {"mean": 0.36, "std": None, "low": None, "high": None, "values": {"0": 0.36}}


def test_points_without_evidence_are_not_compared() -> None:
    members = [trial(0, 0.30, 1.0), trial(1, 0.2, 0.8), trial(2, 0.1, 0.5)]
    found = judged(members, {"0": proof([0.3, 0.3], [1.0] * 6), "2": proof([0.1, 0.1], around(0.5))})
    assert set(found) == {"0", "2"}
    assert all(not item["neighbours"] for item in found.values())


def test_three_objectives_give_advice_only_where_one_wins() -> None:
    # Alike in AP; 1 is slower and leaner, 2 slower and larger.
    lean, fat = trial(1, 0.302, 1.2, params=20.0), trial(2, 0.303, 1.2, params=30.0)
    for other, params, pick in ((lean, "better", None), (fat, "equal", "0")):
        members = [trial(0, 0.30, 1.0), other]
        evidence = {
            "0": proof([0.30, 0.32, 0.28], [1.0] * 6),
            other.label: proof([0.302, 0.29, 0.31], around(1.2)),
        }
        pair = only(judged(members, evidence, THREE))
        assert pair["verdicts"] == {"bbox_mAP": "alike", "latency_ms": "worse", "params_m": params}
        assert pair["pick"] == pick


def test_a_counted_second_objective_needs_no_rounds() -> None:
    objectives = (TWO[0], Objective("params_m", "minimize"))
    members = [trial(0, 0.30, 1.0, params=30.0), trial(1, 0.2, 1.0, params=20.0)]
    untimed = {label: replace(proof(aps, []), rounds=None) for label, aps in (("0", [0.3, 0.31]), ("1", [0.2, 0.21]))}
    pair = only(judged(members, untimed, objectives))
    assert pair["verdicts"] == {"bbox_mAP": "better", "params_m": "worse"}


def test_the_baselines_ratio_is_one() -> None:
    found = judged([trial(0, 0.30, 1.0)], {"0": proof([0.30, 0.31], [1.0] * 6)})
    assert found["0"]["latency"]["ratio"] == 1.0
    assert found["0"]["latency"]["q1"] < 1.0 < found["0"]["latency"]["q3"]


def test_json_of_a_pair_says_what_the_pair_does() -> None:
    pair = Pair("3", "2", {"bbox_mAP": "alike", "latency_ms": "worse"}, {"bbox_mAP": mean_interval([0.01, 0.03])})
    told = pair.to_json()
    assert told["differences"]["bbox_mAP"]["middle"] == pytest.approx(0.02)
    assert (told["alike"], told["pick"], pair.mark("2")) == (["bbox_mAP"], "2", "≈ 3 in AP")


# What readers see.


def shown(objectives: Any = TWO, seeds: int = 3) -> list[TrialRecord]:
    members = [
        trial(0, 0.30, 1.0, 30.0),
        trial(1, 0.25, 0.6, 31.0),
        trial(2, 0.32, 1.2, 32.0),
        trial(3, 0.1, 0.9, 40.0),
    ]
    steps = [0.0, -0.01, 0.004][:seeds]
    evidence = {
        one.label: proof([one.metrics["bbox_mAP"] + step for step in steps], around(one.metrics["latency_ratio"]))
        for one in members[:3]
    }
    found = judged(members, evidence, objectives)
    return [
        replace(one, attrs={"confirmed": {one.label: found[one.label]}}) if one.label in found else one
        for one in members
    ]


def test_a_point_of_a_sweep_has_its_own() -> None:
    points = [SweepPoint(index, {}, {"bbox_mAP": 0.3 + index / 100}) for index in range(2)]
    record = replace(trial(7, 0.3, 1.0), sweep=points, attrs={"confirmed": {"7.1": {"mark": "≈ 0"}}})
    assert [point.confirmed for point in spread([record])] == [None, {"mark": "≈ 0"}]


def test_rows_and_csv_carry_it() -> None:
    rows = pareto.front_rows(shown(), TWO)
    assert [row["point"] for row in rows if "confirmed" in row] == ["1", "0", "2"]
    table = list(csv.DictReader(io.StringIO(pareto.front_csv(rows))))
    first = rows[0]["confirmed"]["metrics"]["bbox_mAP"]
    assert float(table[0]["confirmed_bbox_mAP"]) == pytest.approx(0.248)
    assert float(table[0]["confirmed_bbox_mAP_low"]) == first["low"]
    assert float(table[0]["confirmed_seeds"]) == 3
    assert next(row for row in table if row["point"] == "3")["confirmed_bbox_mAP"] == ""
    assert flat(None) == {}
    pareto.front_json(rows)  # no NaN in it


def test_bars_are_drawn_at_the_mean() -> None:
    records = shown()
    page = pair_figure(records, TWO, title="cells")
    (bars,) = [trace for trace in page.data if trace.name == "mean over seeds"]
    reach = float(stats.t.ppf(0.975, 2)) * 100 * 0.00721110255 / math.sqrt(3)
    assert list(bars.x) == pytest.approx([60, 100, 120])
    assert list(bars.y) == pytest.approx([24.8, 29.8, 31.8])
    assert list(bars.error_y.array) == pytest.approx([reach] * 3)
    low, high = page.layout.yaxis.range
    assert low < 24.8 - reach and high > 31.8 + reach
    (axes,) = pair_picture(records, TWO, title="cells").axes
    drawn = [container for container in axes.containers if container.has_yerr]
    assert [bar.lines[0].get_ydata()[0] for bar in drawn] == pytest.approx([24.8, 29.8, 31.8])
    assert "95 % interval" in view_of(records, TWO).note
    body = plots.pareto_html(records, TWO, title="cells")
    assert "over 3 seeds: AP 24.8 % ± 1.8 (95 %)" in body


def test_a_wide_interval_does_not_squeeze_the_front() -> None:
    records = shown(seeds=2)
    low, high = view_of(records, TWO).ylim
    assert low >= 10 - 22 - 0.1 * 66 - 1e-9 and high <= 32 + 22 + 0.1 * 66 + 1e-9


def test_three_objectives_have_bars_where_accuracy_is() -> None:
    page = matrix_figure(shown(THREE), THREE, title="cells")
    bars = [trace for trace in page.data if trace.name == "mean over seeds"]
    assert len(bars) == 2  # accuracy against latency and against parameters
    assert all(next(iter(trace.y)) == pytest.approx(24.8) for trace in bars)


def test_without_confirmation_nothing_is_drawn() -> None:
    page = pair_figure([trial(0, 0.3, 1.0)], TWO, title="cells")
    assert not [trace for trace in page.data if trace.name == "mean over seeds"]
