"""Studies side by side: closed forms, brute force, and intervals that cover the truth in simulations."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis.compare import Comparison, Entry, Mark, Terms, compare
from analysis.compare.comparison import dominated
from analysis.compare.volume import difference, latency_spread, mean_with, seed_volumes
from analysis.pareto import hypervolume
from analysis.plots.versus import versus_figure, versus_html, versus_png
from analysis.record import Objective, TrialRecord, TrialState
from spaces.errors import UserError

AP, MS, RATIO = (
    Objective("bbox_mAP", "maximize"),
    Objective("latency_ms", "minimize"),
    Objective("latency_ratio", "minimize"),
)
PARAMS = Objective("params_m", "minimize")
TERMS = Terms(
    validation=Mark("val.json", "a1"),
    training_data=Mark("train.json", "b2"),
    classes="all",
    image="320x240",
    base="headway::gfl_r18_half",
    training="8 epochs from scratch",
    input="256x320, batch 1",
    device="cpu",
)
REFERENCE = (0.0, 2.0)


def trial(number: int, ap: float, ratio: float, reference_ms: float = 100.0, **more: float) -> TrialRecord:
    metrics = {"bbox_mAP": ap, "latency_ratio": ratio, "latency_ms": ratio * reference_ms, **more}
    return TrialRecord(number, TrialState.COMPLETE, metrics=metrics)


def entry(
    name: str,
    points: list[tuple[float, float]],
    *,
    seed: int = 0,
    kind: str = "",
    objectives: tuple[Objective, ...] = (AP, MS),
    reference_ms: float = 100.0,
    **terms: object,
) -> Entry:
    """A study; the first point is the baseline."""
    records = [trial(number, *point, reference_ms) for number, point in enumerate(points)]
    told = replace(TERMS, **terms)  # type: ignore[arg-type]
    return Entry(name, records, objectives, seed, told, kind or name)


def confirmed(record: TrialRecord, values: dict[int, float], latency: dict[str, float] | None = None) -> TrialRecord:
    found = {"mean": 0, "std": 0, "low": None, "high": None, "values": {str(key): v for key, v in values.items()}}
    own = {"metrics": {"bbox_mAP": found}, "latency": latency, "mark": "", "failed": {}, "neighbours": [], "seeds": []}
    return replace(record, attrs={"confirmed": {record.label: own}})


ONE = [(0.5, 1.0), (0.3, 0.5)]
# Up to accuracy 0 and ratio 2: 0.5 (2 - 1) + 0.3 (1 - 0.5).
VOLUME = 0.65


def test_the_difference_in_closed_form_whatever_a_millisecond_is() -> None:
    other = [(0.5, 1.0), (0.4, 0.5), (0.2, 0.25), (0.1, 0.9)]
    found = compare([entry("one", ONE), entry("other", other, reference_ms=7.0)])
    assert found.objectives == (AP, RATIO) and found.reference == REFERENCE
    assert [side.volume for side in found.sides] == pytest.approx([VOLUME, 0.5 + 0.4 * 0.5 + 0.2 * 0.25])
    (gap,) = found.differences
    assert (gap.one, gap.other) == ("one", "other") and gap.gap == pytest.approx(0.1)
    assert (gap.one_dominated, gap.other_dominated) == (
        0.5,
        0.0,
    )  # (0.4, 0.5) beats (0.3, 0.5); the baselines are equal
    assert gap.interval is None and "not trained with two other seeds" in gap.says
    assert gap.verdict == "other has more as searched; whether by chance is not known"
    assert found.levels == {
        0.3: {"one": None, "other": 0.2}, 0.4: {"one": None, "other": 0.2}, 0.5: {"one": 0.3, "other": 0.4},
        0.6: {"one": 0.3, "other": 0.4}, 0.7: {"one": 0.3, "other": 0.4}, 0.8: {"one": 0.3, "other": 0.4},
        0.9: {"one": 0.3, "other": 0.4}, 1.0: {"one": 0.5, "other": 0.5},
    }  # fmt: skip


def test_a_study_and_its_copy_differ_by_nothing() -> None:
    for copy in (entry("copy", ONE, kind="one"), entry("copy", ONE)):
        (gap,) = compare([entry("one", ONE, kind="one"), copy]).differences
        assert gap.gap == gap.one_dominated == gap.other_dominated == 0
        assert gap.verdict == "no difference as searched"


def test_coverage_is_what_brute_force_counts() -> None:
    random = np.random.default_rng(3)
    for _ in range(50):
        one, other = ([trial(i, *map(float, row)) for i, row in enumerate(random.integers(0, 5, (6, 2)))] for _ in "ab")
        beaten = 0
        for mine in one:
            a, b = mine.metrics["bbox_mAP"], mine.metrics["latency_ratio"]
            rivals = [(t.metrics["bbox_mAP"], t.metrics["latency_ratio"]) for t in other]
            beaten += any(x >= a and y <= b and (x, y) != (a, b) for x, y in rivals)
        assert dominated(one, other, (AP, RATIO)) == beaten / 6


def test_the_reference_point_is_common() -> None:
    """Twice the larger baseline's parameters; each alone would have its own."""
    big, small = (
        Entry(name, [trial(0, 0.4, 1.0, params_m=size)], (AP, MS, PARAMS), 0, TERMS, name)
        for name, size in (("big", 30.0), ("small", 10.0))
    )
    found = compare([big, small])
    assert found.reference == (0.0, 2.0, 60.0)
    assert [side.volume for side in found.sides] == pytest.approx([0.4 * 1 * 30, 0.4 * 1 * 50])


def test_objectives_that_only_one_has_are_left_out_and_said() -> None:
    three = Entry("three", [trial(0, 0.4, 1.0, params_m=9.0)], (AP, PARAMS, MS), 0, TERMS, "three")
    found = compare([three, entry("two", ONE)])
    assert found.objectives == (AP, RATIO)
    assert "three also searched for parameters, which is left out here." in found.remarks
    only = Entry("only", [trial(0, 0.4, 1.0, params_m=9.0)], (AP, PARAMS), 0, TERMS, "only")
    with pytest.raises(
        UserError, match=r"share an accuracy and another objective, but only has bbox_mAP or params_m; two"
    ):
        compare([only, entry("two", ONE)])


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="needs two studies or more, but got 1"):
        compare([entry("one", ONE)])
    with pytest.raises(UserError, match="must be different ones, but one is there twice"):
        compare([entry("one", ONE), entry("one", ONE)])
    with pytest.raises(UserError, match=r"same validation data, but one has val\.json and other has my/val\.json"):
        compare([entry("one", ONE), entry("other", ONE, validation=Mark("my/val.json", "c3"))])
    with pytest.raises(UserError, match="same classes, but one has all and other has RBC"):
        compare([entry("one", ONE), entry("other", ONE, classes="RBC")])
    stopped = Entry("stopped", [replace(trial(0, 0.4, 1.0), state=TrialState.STOPPED)], (AP, MS), 0, TERMS, "stopped")
    with pytest.raises(UserError, match=r"COMPLETE baseline.*trial 0 of stopped is STOPPED"):
        compare([entry("one", ONE), stopped])


def remarks(**terms: object) -> tuple[str, ...]:
    return compare([entry("one", ONE), entry("other", ONE, **terms)]).remarks


def test_what_keeps_figures_apart_is_said() -> None:
    assert remarks() == ()
    assert remarks(validation=Mark("moved/val.json", "a1")) == ()  # the same contents in another place
    assert "is not known" in remarks(validation=Mark("moved/val.json"))[0]
    assert "trained on different data" in remarks(training_data=Mark("more.json", "c3"))[0]
    assert remarks(base="headway::gfl_tiny")[0].startswith("The bases differ")
    assert remarks(image="640x480")[0].endswith("320x240 in one; 640x480 in other.")
    assert remarks(device="cuda")[0].startswith("Latency was measured on different devices")


def test_in_what_sense_there_is_one_baseline() -> None:
    one = entry("one", [(0.47, 1.0)])
    seeds = compare([one, entry("other", [(0.49, 1.0)], seed=1)]).baseline
    assert "trained alike with 2 seeds: 2.0 points between its trainings are noise" in seeds
    assert "with one seed: 2.0 points" in compare([one, entry("other", [(0.49, 1.0)])]).baseline
    assert "trained differently" in compare([one, entry("other", ONE, training="3 epochs from scratch")]).baseline
    assert compare([one, entry("other", ONE, base="headway::gfl_tiny")]).baseline.startswith("No common baseline")


def test_welch_is_scipys() -> None:
    one, other = [0.50, 0.52, 0.47, 0.51], [0.55, 0.53, 0.59]
    known = stats.ttest_ind(other, one, equal_var=False).confidence_interval(0.95)
    found = difference(one, other)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.middle == pytest.approx(np.mean(other) - np.mean(one))
    # A further variance that is large and known: the normal quantile of it alone.
    wide = difference(one, other, known=100.0)
    assert wide.high is not None and wide.high - wide.middle == pytest.approx(10 * stats.norm.ppf(0.975), rel=1e-3)
    mean = mean_with(one)
    assert (mean.low, mean.high) == pytest.approx(stats.t.interval(0.95, 3, np.mean(one), stats.sem(one)))
    assert difference([0.5], other).low is None
    assert (difference([0.5, 0.5], [0.6, 0.6]).low, mean_with([0.5, 0.5], known=1e-4).high) == pytest.approx(
        (0.1, 0.5 + 0.01 * stats.norm.ppf(0.975))
    )


def test_the_part_of_latency_in_closed_form() -> None:
    """One design at ratio r has the volume ap (2 - r), which errs by ap times the error of r."""
    quartiles = {"latency_ratio_q1": 0.47, "latency_ratio_q3": 0.53, "latency_pairs": 36.0}
    member = trial(1, 0.3, 0.5, **quartiles)
    error = math.sqrt(math.pi / 2) * 0.06 / (2 * stats.norm.ppf(0.75)) / math.sqrt(36)
    assert latency_spread([member], (AP, RATIO), REFERENCE, None) == pytest.approx(0.3 * error, rel=0.08)
    builds = math.hypot(error, 0.5 * math.log(1.05))
    assert latency_spread([member], (AP, RATIO), REFERENCE, 1.05) == pytest.approx(0.3 * builds, rel=0.08)
    assert latency_spread([trial(0, 0.5, 1.0)], (AP, RATIO), REFERENCE, 1.05) == 0  # the baseline's ratio is 1
    assert latency_spread([trial(1, 0.5, 1.0)], (AP, RATIO), REFERENCE, None) is None
    assert latency_spread([member], (AP, PARAMS), REFERENCE, None) is None
    again = {"ratio": 0.6, "q1": 0.6, "q3": 0.6, "rounds": 20, "aa": 1.0}
    assert latency_spread([confirmed(member, {0: 0.3}, again)], (AP, RATIO), REFERENCE, 1.05) == 0


def test_each_seed_has_a_front_but_the_search_s_own() -> None:
    base = confirmed(trial(0, 0.9, 1.0), {7: 0.9, 8: 0.5, 9: 0.6, 10: 0.1})
    slim = confirmed(trial(1, 0.8, 0.5), {7: 0.8, 8: 0.3, 9: 0.7})
    # At seed 9 the baseline is dominated; seed 10 has no result of the other design.
    found = seed_volumes([slim, base], (AP, RATIO), REFERENCE, own=7)
    assert found == pytest.approx({8: 0.5 * 1 + 0.3 * 0.5, 9: 0.7 * 1.5})
    assert seed_volumes([slim, trial(0, 0.9, 1.0)], (AP, RATIO), REFERENCE, own=7) is None
    timed = confirmed(trial(1, 0.8, 0.5), {8: 0.3}, {"ratio": 0.75})
    assert seed_volumes([timed], (AP, RATIO), REFERENCE, own=7) == pytest.approx({8: 0.3 * 1.25})


def test_seeds_give_the_interval_of_what_was_found() -> None:
    def study(name: str, gain: float) -> Entry:
        values = {0: 0.9, 1: 0.50 + gain, 2: 0.52 + gain, 3: 0.48 + gain}
        return Entry(name, [confirmed(trial(0, 0.5, 1.0), values)], (AP, MS), 0, TERMS, name)

    (gap,) = compare([study("one", 0.0), study("other", 0.3)]).differences
    assert gap.basis == "seeds" and gap.verdict == "other has more" and gap.gap == 0
    known = stats.ttest_ind([0.80, 0.82, 0.78], [0.50, 0.52, 0.48], equal_var=False).confidence_interval(0.95)
    assert gap.interval is not None and (gap.interval.low, gap.interval.high) == pytest.approx((known.low, known.high))
    assert "not for other searches" in gap.says
    (warm,) = compare([replace(study("one", 0.0), warm=True), study("other", 0.3)]).differences
    assert "the noise of a shared warm start is not in it" in warm.says and "warm" not in gap.says
    (gap,) = compare([study("one", 0.0), study("other", 0.005)]).differences
    assert gap.verdict == "not told apart"


def test_replicas_stand_together_and_give_the_interval_of_a_search() -> None:
    ones = [entry(f"one{seed}", [(0.50 + 0.01 * seed, 1.0)], seed=seed, kind="one") for seed in range(3)]
    others = [entry(f"other{seed}", [(0.60 + 0.02 * seed, 1.0)], seed=seed, kind="other") for seed in range(2)]
    found = compare([ones[0], others[0], *ones[1:], others[1]])
    assert [len(side.found) for side in found.sides] == [3, 2]
    assert [side.volume for side in found.sides] == pytest.approx([0.51, 0.61])
    (gap,) = found.differences
    known = stats.ttest_ind([0.60, 0.62], [0.50, 0.51, 0.52], equal_var=False).confidence_interval(0.95)
    assert gap.basis == "replicas" and gap.gap == pytest.approx(0.10) and gap.interval is not None
    assert (gap.interval.low, gap.interval.high) == pytest.approx((known.low, known.high))
    assert gap.one_dominated == 1 and gap.other_dominated == 0

    alone = compare(ones)
    assert alone.differences == () and "replicas of one another" in alone.remarks[-1]
    own = alone.sides[0].interval
    assert own is not None and own.count == 3
    assert (own.low, own.high) == pytest.approx(stats.t.interval(0.95, 2, 0.51, 0.01 / math.sqrt(3)))
    # Only one has replicas: what holds for it is not known of the other.
    (gap,) = compare([*ones, others[0]]).differences
    assert gap.interval is None and "other0" in gap.says and "one0" not in gap.says


def test_the_same_seed_is_no_replica() -> None:
    again = [entry(name, ONE, seed=4, kind="one") for name in ("one", "again")]
    assert len(compare(again).sides) == 2


@pytest.mark.parametrize("count", [2, 4])
def test_seeds_cover_the_truth_though_the_front_was_chosen_by_luck(count: int) -> None:
    """Fronts are the best of eight equal designs at each of three latencies, so the search's own figures flatter them.

    Training noise has a part of its own and one that a seed does to all designs of a study.
    """
    random = np.random.default_rng(count)
    levels = {0.4: 0.2, 0.7: 0.4, 1.0: 0.6}
    truth = 0.2 * 0.3 + 0.4 * 0.3 + 0.6 * 1.0  # levels are far apart, so a volume is linear in the figures
    covered, flattered, tries = 0, [], 250
    for _ in range(tries):
        volumes = []
        for gain in (0.0, 0.01):
            members = []
            shared = random.normal(0, 0.004, count)
            for ratio, mean in levels.items():
                scored = mean + gain + random.normal(0, 0.01, 8)
                fresh = mean + gain + random.normal(0, 0.01, count) + shared
                values = {0: float(scored.max()), **{seed + 1: float(value) for seed, value in enumerate(fresh)}}
                members.append(confirmed(trial(len(members), values[0], ratio), values))
            found = seed_volumes(members, (AP, RATIO), REFERENCE, own=0)
            assert found is not None and len(found) == count
            volumes.append([*found.values()])
            flattered.append(hypervolume(members, (AP, RATIO), REFERENCE) - truth - gain * 1.6)
        interval = difference(*volumes)
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= 0.01 * 1.6 <= interval.high
    assert statistics.fmean(flattered) > 0.01  # why the own seed is left out
    assert 0.91 <= covered / tries <= (1.0 if count == 2 else 0.985)


def test_replicas_cover_the_truth() -> None:
    random = np.random.default_rng(5)
    covered, tries = 0, 250
    for _ in range(tries):
        sides = [
            [
                entry(f"{kind}{seed}", [(float(random.normal(mean, 0.02)), 1.0)], seed=seed, kind=kind)
                for seed in range(n)
            ]
            for kind, mean, n in (("one", 0.5, 4), ("other", 0.55, 3))
        ]
        (gap,) = compare([*sides[0], *sides[1]]).differences
        assert gap.interval is not None and gap.interval.low is not None and gap.interval.high is not None
        covered += gap.interval.low <= 0.05 <= gap.interval.high
    assert 0.91 <= covered / tries <= 0.985


def drawn() -> Comparison:
    quartiles = {"latency_ratio_q1": 0.49, "latency_ratio_q3": 0.52}
    slim = confirmed(trial(1, 0.3, 0.5, **quartiles), {1: 0.3, 2: 0.31})
    slim.attrs["confirmed"]["1"]["metrics"]["bbox_mAP"] |= {"mean": 0.31, "low": 0.28, "high": 0.34}
    records = [trial(0, 0.5, 1.0), slim, trial(2, 0.2, 0.9)]
    return compare([Entry("<b>one", records, (AP, MS), 0, TERMS, "a"), entry("other", [(0.6, 1.0), (0.1, 1.2)])])


def test_the_plot_shows_fronts_baselines_and_bars() -> None:
    figure = versus_figure(drawn())
    fronts = [trace for trace in figure.data if trace.showlegend]
    assert [(trace.name, trace.marker.symbol) for trace in fronts] == [("<b>one", "circle"), ("other", "star")]
    assert list(fronts[0].x) == [0.5] and list(fronts[0].y) == [30]
    assert fronts[0].error_y.array[0] == pytest.approx(4) and fronts[0].error_y.arrayminus[0] == pytest.approx(2)
    assert fronts[0].error_x.array[0] == pytest.approx(0.02) and fronts[0].error_x.arrayminus[0] == pytest.approx(0.01)
    stars = [trace for trace in figure.data if trace.marker.symbol == "star"]
    assert [(*trace.x, *trace.y) for trace in stars] == [(1.0, 50.0), (1.0, 60.0)]
    assert "<b>&lt;b&gt;one: the baseline</b>" in stars[0].hovertext[0]
    faint = [trace for trace in figure.data if trace.marker.opacity]
    assert [list(trace.y) for trace in faint] == [[20], [10]]


def test_the_page_stands_alone_and_the_picture_is_one() -> None:
    found = drawn()
    page = versus_html(found)
    assert "<h1>&lt;b&gt;one and other</h1>" in page and "No interval can be given" in page
    assert "src=" not in page.split("</style>")[1].split("<script")[0] and "<link" not in page
    assert versus_png(found)[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["differences"][0]["gap"] == pytest.approx(
        0.6 * 1 - (0.5 + 0.15)
    )


def test_three_objectives_have_a_plot_for_each_cost() -> None:
    one, other = (
        Entry(
            name, [trial(0, 0.4, 1.0, params_m=9.0), trial(1, 0.3, 0.6, params_m=8.0)], (AP, MS, PARAMS), 0, TERMS, name
        )
        for name in ("one", "other")
    )
    figure = versus_figure(compare([one, other]))
    assert {trace.xaxis for trace in figure.data} == {"x", "x2"} and not any(t.mode == "lines" for t in figure.data)
    assert versus_png(compare([one, other]))[:4] == b"\x89PNG"
