"""What trainings with further seeds and latencies measured in one run say of a front.

Accuracy has an interval over seeds. Neighbours on the front are compared objective by objective: accuracy by the paired
differences of the seeds that both have, latency by the paired ratios of the rounds that both were measured in. What is
within noise is no trade-off, so of two neighbours that differ in one objective only, the better one there is the better
pick. All intervals are at the level of 95 %, each for itself: of twenty neighbours that are alike in truth, one is
expected to be told apart.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from analysis.labels import axis, scaled
from analysis.record import Objective, TrialRecord

LEVEL = 0.95
LEAST_ROUNDS = 6
"""Fewer values have no interval of their median at this level."""

Verdict = Literal["better", "worse", "alike", "equal", "unknown"]


@dataclass(frozen=True)
class Interval:
    """An estimate with the interval that holds the truth at ``LEVEL``.

    Attributes:
        middle: Mean or median.
        low: Lower end, ``None`` where there are too few values for an interval.
        high: Upper end, ``None`` likewise.
        count: Number of values.
    """

    middle: float
    low: float | None
    high: float | None
    count: int

    def excludes(self, value: float) -> bool | None:
        """Whether the value lies outside; ``None`` without an interval."""
        if self.low is None or self.high is None:
            return None
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class Rounds:
    """A point's latency in one interleaved run.

    Attributes:
        run: Which run it was; points of one run share their rounds.
        ratios: Latency in each round divided by the baseline's in that round.
        aa: The same of a second build of the baseline: how far two equal detectors lie apart.
        on_images: Whether trained detectors ran on validation images, or untrained ones on noise.
    """

    run: int
    ratios: Sequence[float]
    aa: Sequence[float]
    on_images: bool = False


@dataclass(frozen=True)
class Evidence:
    """What was measured of one point.

    Attributes:
        values: By seed the figures of a training that came to its end.
        failed: By seed why a training did not.
        rounds: Its latency measured together with the others', ``None`` before.
    """

    values: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    rounds: Rounds | None = None

    def of(self, metric: str) -> dict[int, float]:
        """The finite figures of a metric by seed."""
        found = {seed: figures.get(metric, math.nan) for seed, figures in sorted(self.values.items())}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}


def mean_interval(values: Sequence[float]) -> Interval:
    """Gives the mean and Student's interval of it.

    Args:
        values: Independent ones, 1 or more; 2 or more for an interval. Equal values have one of no width.
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Interval(mean, None, None, count)
    from scipy import stats  # takes half a second, which a command that only prints a table need not wait for

    reach = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, mean - reach, mean + reach, count)


def median_interval(values: Sequence[float]) -> Interval:
    """Gives the median and the interval of it that the sign test leaves.

    It takes two of the ordered values as its ends and rests on no shape of their distribution, which latencies, with
    their long upper tail, would not have. It is exact where a bootstrap of a median of some ten values is not, and
    needs no random numbers.

    Args:
        values: Independent ones, 1 or more; ``LEAST_ROUNDS`` or more for an interval.
    """
    middle, count = statistics.median(values), len(values)
    if count < LEAST_ROUNDS:
        return Interval(middle, None, None, count)
    from scipy import stats

    found = stats.quantile_test(list(values), q=middle, p=0.5).confidence_interval(LEVEL)
    return Interval(middle, float(found.low), float(found.high), count)


def accuracy_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Interval | None:
    """Gives the mean of ``one`` less ``other`` over the seeds that both have, ``None`` where there is no such seed.

    One seed means the same order of images, the same flips and, where parts are alike, the same initial weights; what
    they do to both cancels out.
    """
    common = sorted(one.keys() & other.keys())
    return mean_interval([one[seed] - other[seed] for seed in common]) if common else None


def latency_quotient(one: Rounds | None, other: Rounds | None) -> Interval | None:
    """Gives the median of the latency of ``one`` divided by that of ``other``.

    In one run each round gives a quotient, in which the baseline cancels out. Points of two runs are compared by their
    ratios to the baseline, the interval reaching from the least to the largest quotient of the two intervals.

    Returns:
        ``None`` where either was not measured.
    """
    if one is None or other is None:
        return None
    if one.run == other.run:
        return median_interval([mine / theirs for mine, theirs in zip(one.ratios, other.ratios, strict=True)])
    ours, theirs = median_interval(one.ratios), median_interval(other.ratios)
    middle, count = ours.middle / theirs.middle, min(ours.count, theirs.count)
    if ours.low is None or ours.high is None or theirs.low is None or theirs.high is None:
        return Interval(middle, None, None, count)
    return Interval(middle, ours.low / theirs.high, ours.high / theirs.low, count)


def noise_of_builds(one: Rounds, other: Rounds) -> float:
    """Gives the factor, 1 or more, by which two builds of the same detector differed in the runs of two points.

    Where a build's weights come to lie in memory stays the same over all rounds, so their number does not average it
    out; a smaller difference is none.
    """
    return max(math.exp(abs(math.log(statistics.median(rounds.aa)))) for rounds in (one, other))


@dataclass(frozen=True)
class Pair:
    """Two neighbours on the front.

    Attributes:
        one: Label of the one that is worse in the second objective (the slower one).
        other: Label of its neighbour.
        verdicts: By objective what ``one`` is against ``other``; ``alike`` is within noise, ``equal`` exactly the same,
            ``unknown`` measured too seldom to say.
        differences: Of measured objectives: mean difference of an accuracy, quotient of a latency.
    """

    one: str
    other: str
    verdicts: Mapping[str, Verdict]
    differences: Mapping[str, Interval]

    @property
    def alike(self) -> list[str]:
        """Objectives in which the two cannot be told apart."""
        return [metric for metric, verdict in self.verdicts.items() if verdict == "alike"]

    @property
    def pick(self) -> str | None:
        """The better pick: better in every objective that tells the two apart; ``None`` where neither is."""
        told = {verdict for verdict in self.verdicts.values() if verdict not in ("alike", "equal")}
        if told == {"better"}:
            return self.one
        return self.other if told == {"worse"} else None

    def mark(self, label: str) -> str:
        """What the table says of ``label``, one of the two; empty where the two are told apart."""
        mate = self.other if label == self.one else self.one
        if self.alike:
            noisy = [metric for metric, verdict in self.verdicts.items() if verdict != "equal"]
            return f"≈ {mate}" + ("" if self.alike == noisy else f" in {_words(self.alike)}")
        return f"worse than {mate}" if self.pick == mate else ""

    @property
    def says(self) -> str:
        """The comparison in words."""
        figures = ", ".join(_difference(metric, found) for metric, found in self.differences.items())
        unknown = [metric for metric, verdict in self.verdicts.items() if verdict == "unknown"]
        named = f"{self.one} and {self.other}"
        if unknown:
            end = f"too few measurements to tell {named} apart in {_words(unknown)}"
        elif self.alike and self.pick:
            better = [metric for metric, verdict in self.verdicts.items() if verdict in ("better", "worse")]
            end = (
                f"{named} cannot be told apart in {_words(self.alike)}; {self.pick} is better in {_words(better)}, "
                "so it is the better pick"
            )
        elif self.alike:
            told = [metric for metric, verdict in self.verdicts.items() if verdict in ("better", "worse")]
            rest = f"; in {_words(told)} each is better in something" if told else ": take either"
            end = f"{named} cannot be told apart in {_words(self.alike)}{rest}"
        elif self.pick:
            end = f"{self.pick} is better in every objective, so it is the better pick"
        else:
            end = "a trade-off that holds"
        return f"{self.one} against {self.other}: {figures + ': ' if figures else ''}{end}."

    def to_json(self) -> dict[str, Any]:
        """Gives the pair as plain JSON types."""
        return {
            "one": self.one,
            "other": self.other,
            "verdicts": dict(self.verdicts),
            "differences": {metric: vars(found) for metric, found in self.differences.items()},
            "alike": self.alike,
            "pick": self.pick,
            "says": self.says,
        }


def compare(
    one: TrialRecord, other: TrialRecord, objectives: Sequence[Objective], evidence: Mapping[str, Evidence]
) -> Pair:
    """Compares two neighbours.

    Args:
        one: The one that is worse in the second objective.
        other: Its neighbour.
        objectives: The study's.
        evidence: By label; both must have some.
    """
    mine, theirs = evidence[one.label], evidence[other.label]
    verdicts: dict[str, Verdict] = {}
    differences: dict[str, Interval] = {}
    for objective in objectives:
        metric, found, neutral, certain = objective.metric, None, 0.0, True
        if metric.startswith("bbox_mAP"):
            found = accuracy_difference(mine.of(metric), theirs.of(metric))
        elif metric.startswith("latency"):
            found, neutral = latency_quotient(mine.rounds, theirs.rounds), 1.0
            if found is not None and mine.rounds and theirs.rounds:
                certain = math.exp(abs(math.log(found.middle))) > noise_of_builds(mine.rounds, theirs.rounds)
        else:  # counted, not measured
            gap = one.metrics[metric] - other.metrics[metric]
            verdicts[metric] = _verdict(gap, objective) if gap else "equal"
            continue
        outside = None if found is None else found.excludes(neutral)
        if found is None or outside is None:
            verdicts[metric] = "unknown"
        else:
            verdicts[metric] = _verdict(found.middle - neutral, objective) if outside and certain else "alike"
        if found is not None:
            differences[metric] = found
    return Pair(one.label, other.label, verdicts, differences)


def judge(
    members: Sequence[TrialRecord],
    baseline: TrialRecord,
    objectives: Sequence[Objective],
    evidence: Mapping[str, Evidence],
) -> dict[str, dict[str, Any]]:
    """Works out what a study's front is to show.

    Args:
        members: The front, ascending in the second objective.
        baseline: On the front or not.
        objectives: The study's.
        evidence: By label. Points without any are left out, and so are comparisons with them.

    Returns:
        By label, for every point in ``evidence``, plain JSON types: ``seeds`` (those that gave a result), ``failed``
        (by seed, why), ``metrics`` (by accuracy ``mean``, ``std``, ``low``, ``high`` and ``values`` by seed; ``std``,
        ``low`` and ``high`` are ``None`` with fewer than 2 seeds), ``latency`` (``ratio`` to the baseline, the median
        of ``rounds`` paired ratios, with quartiles ``q1`` and ``q3``, and ``aa``, that of a second build of the
        baseline; ``None`` where it was not measured), ``neighbours`` (see ``Pair``) and ``mark``, what the table says.
    """
    minimised = len(objectives) > 1 and not objectives[1].maximize
    pairs = []
    for first, second in pairwise(members):
        if first.label in evidence and second.label in evidence:
            one, other = (second, first) if minimised else (first, second)
            pairs.append(compare(one, other, objectives, evidence))
    names = {objective.metric for objective in objectives if objective.metric.startswith("bbox_mAP")} | {"bbox_mAP"}
    found = {}
    for label, own in evidence.items():
        near = [pair for pair in pairs if label in (pair.one, pair.other)]
        found[label] = {
            "seeds": sorted(own.values),
            "failed": {str(seed): reason for seed, reason in sorted(own.failed.items())},
            "metrics": {name: _figures(own.of(name)) for name in sorted(names) if own.of(name)},
            "latency": _latency(own.rounds, label == baseline.label),
            "neighbours": [pair.to_json() for pair in near],
            "mark": ", ".join(filter(None, (pair.mark(label) for pair in near))),
        }
    return found


def flat(confirmed: Mapping[str, Any] | None) -> dict[str, float]:
    """Gives what ``judge`` found of a point as figures by name, for tables and charts; none without it.

    They are ``confirmed_bbox_mAP`` with ``_low`` and ``_high`` and the same of other accuracies, ``confirmed_seeds``,
    and ``confirmed_latency_ratio`` with ``_q1`` and ``_q3``. What has no value is left out.
    """
    if not confirmed:
        return {}
    figures: dict[str, Any] = {"confirmed_seeds": float(len(confirmed["seeds"]))}
    for metric, found in confirmed["metrics"].items():
        figures |= {f"confirmed_{metric}{end}": found[key] for end, key in _ENDS.items()}
    latency = confirmed["latency"] or {}
    figures |= {f"confirmed_latency_ratio{end}": latency.get(key) for end, key in _QUARTILES.items()}
    return {name: float(value) for name, value in figures.items() if value is not None}


_ENDS = {"": "mean", "_low": "low", "_high": "high"}
_QUARTILES = {"": "ratio", "_q1": "q1", "_q3": "q3"}


def _figures(values: Mapping[int, float]) -> dict[str, Any]:
    numbers = list(values.values())
    found = mean_interval(numbers)
    return {
        "mean": found.middle,
        "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "low": found.low,
        "high": found.high,
        "values": {str(seed): value for seed, value in values.items()},
    }


def _latency(rounds: Rounds | None, baseline: bool) -> dict[str, Any] | None:
    if rounds is None:
        return None
    # The baseline's ratio is 1 by definition; its quartiles are those of its second build.
    spread = list(rounds.aa if baseline else rounds.ratios)
    q1, median, q3 = statistics.quantiles(spread, n=4, method="inclusive") if len(spread) > 1 else spread * 3
    return {
        "ratio": 1.0 if baseline else median,
        "q1": q1,
        "q3": q3,
        "rounds": len(spread),
        "aa": statistics.median(rounds.aa),
        "on_images": rounds.on_images,
    }


def _verdict(gap: float, objective: Objective) -> Verdict:
    return "better" if (gap > 0) == objective.maximize else "worse"


def _words(metrics: Sequence[str]) -> str:
    return " and ".join(axis(metric).split(" (")[0] for metric in metrics)


def _difference(metric: str, found: Interval) -> str:
    name = axis(metric).split(" (")[0]
    latency = metric.startswith("latency")
    middle, low, high = (
        None if value is None else f"{value:.3f}" if latency else f"{scaled(metric, value):+.1f}"
        for value in (found.middle, found.low, found.high)
    )
    told = f"{name} x {middle}" if latency else f"{name} {middle}"
    return told if low is None else f"{told} ({low} to {high})"
