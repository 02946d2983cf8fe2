"""The comparison: fronts up to one reference point, differences with their intervals, and who dominates whom."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from analysis.compare.entry import Entry, baselines, remarks, shared
from analysis.compare.volume import common_reference, difference, latency_spread, mean_with, seed_volumes
from analysis.confirm import Interval
from analysis.labels import figure
from analysis.pareto import dominates, front, hypervolume
from analysis.record import Objective, TrialRecord
from spaces.errors import UserError, choices

_STEP, _MOST_LEVELS = 0.1, 8


@dataclass(frozen=True)
class Found:
    """What one study found.

    Attributes:
        entry: The study.
        members: Its front over the objectives that are compared, ascending in the second.
        volume: Hypervolume as searched, each design trained once.
        seeds: Hypervolume by seed of the confirmation, ``None`` where the front was not confirmed.
        latency: Standard deviation of the hypervolume from measuring latency, ``None`` where unknown.
    """

    entry: Entry
    members: Sequence[TrialRecord]
    volume: float
    seeds: Mapping[int, float] | None
    latency: float | None


@dataclass(frozen=True)
class Side:
    """A study, or several that are replicas of one another.

    Attributes:
        name: The study's; of replicas the first one's with their number.
        found: Of each study.
        volume: Hypervolume, of replicas the mean.
        interval: Of the mean over replicas, or over seeds; ``None`` without either.
        basis: ``replicas`` or ``seeds``, what the interval rests on; ``None`` without it.
    """

    name: str
    found: tuple[Found, ...]
    volume: float
    interval: Interval | None
    basis: str | None

    @property
    def reach(self) -> str:
        """The interval in words, ``-`` without one."""
        if self.interval is None or self.interval.low is None:
            return "-"
        return f"{self.interval.low:.4f} to {self.interval.high:.4f} ({self.basis})"


@dataclass(frozen=True)
class Difference:
    """Two sides.

    Attributes:
        one: The first one's name.
        other: The second one's.
        gap: Hypervolume of ``other`` less that of ``one``, as searched (of replicas of the means).
        interval: Of the difference, its middle being the estimate that it belongs to; ``None`` where none can be given.
        basis: ``replicas`` or ``seeds``; ``None`` without an interval.
        says: What the difference rests on, or why it has no interval, in a sentence.
        one_dominated: Share of the front of ``one`` that ``other`` dominates, 0 to 1; of replicas the mean over pairs.
        other_dominated: Share of the front of ``other`` that ``one`` dominates.
    """

    one: str
    other: str
    gap: float
    interval: Interval | None
    basis: str | None
    says: str
    one_dominated: float
    other_dominated: float

    @property
    def figures(self) -> str:
        """The difference in numbers."""
        told = f"hypervolume {self.gap:+.4f} as searched"
        if self.interval is None or self.interval.low is None:
            return told
        reach = f"95 % interval {self.interval.low:+.4f} to {self.interval.high:+.4f}"
        again = f", {self.interval.middle:+.4f} with other seeds" if self.basis == "seeds" else ""
        return f"{told}{again} ({reach})"

    @property
    def coverage(self) -> str:
        """Who dominates whom, in words."""
        return (
            f"{self.other} dominates {100 * self.one_dominated:.0f} % of the front of {self.one}, "
            f"{self.one} {100 * self.other_dominated:.0f} % of that of {self.other}."
        )

    @property
    def verdict(self) -> str:
        """Which side has more, as far as that can be told."""
        if self.gap == 0 and self.one_dominated == self.other_dominated == 0 and self.interval is None:
            return "no difference as searched"
        if self.interval is None or self.interval.low is None:
            return f"{self.other if self.gap > 0 else self.one} has more as searched; whether by chance is not known"
        if self.interval.excludes(0):
            return f"{self.other if self.interval.middle > 0 else self.one} has more"
        return "not told apart"


@dataclass(frozen=True)
class Comparison:
    """Studies side by side.

    Attributes:
        objectives: What is compared, latency as a ratio to each study's own baseline.
        reference: Point up to which hypervolumes are measured, in the objectives' order.
        sides: The studies, replicas together, in the order given.
        differences: Each pair of sides; none where all are replicas of one another.
        baseline: In what sense there is one baseline, in a sentence or two.
        remarks: What keeps the figures apart, or is left out.
        levels: For each bound on the second objective the best accuracy of each side within it (of replicas the
            median), ``None`` where it has no design there.
    """

    objectives: tuple[Objective, ...]
    reference: tuple[float, ...]
    sides: tuple[Side, ...]
    differences: tuple[Difference, ...]
    baseline: str
    remarks: tuple[str, ...]
    levels: Mapping[float, Mapping[str, float | None]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What is compared, in words."""
        return choices((side.name for side in self.sides), "and")

    @property
    def reference_words(self) -> str:
        """The reference point in words."""
        told = (figure(o.metric, value) for o, value in zip(self.objectives, self.reference, strict=True))
        return f"Hypervolume is measured up to {choices(told, 'and')}."

    def to_json(self) -> dict[str, Any]:
        """Gives the comparison as plain JSON types."""
        return {
            "objectives": [vars(objective) for objective in self.objectives],
            "reference": list(self.reference),
            "baseline": self.baseline,
            "remarks": list(self.remarks),
            "sides": [self._side(side) for side in self.sides],
            "differences": [
                {**vars(item), "interval": _interval(item.interval), "verdict": item.verdict}
                for item in self.differences
            ],
            "levels": [{"at_most": bound, "best": dict(best)} for bound, best in self.levels.items()],
        }

    def _side(self, side: Side) -> dict[str, Any]:
        return {
            "name": side.name,
            "hypervolume": side.volume,
            "interval": _interval(side.interval),
            "basis": side.basis,
            "studies": [
                {
                    "name": found.entry.name,
                    "seed": found.entry.seed,
                    "hypervolume": found.volume,
                    "by_seed": None if found.seeds is None else {str(key): v for key, v in found.seeds.items()},
                    "latency_std": found.latency,
                    "baseline": self._figures(found.entry.baseline),
                    "front": [{"point": item.label, "metrics": self._figures(item)} for item in found.members],
                }
                for found in side.found
            ],
        }

    def _figures(self, record: TrialRecord) -> dict[str, float]:
        return {objective.metric: float(record.metrics[objective.metric]) for objective in self.objectives}


def compare(entries: Sequence[Entry]) -> Comparison:
    """Compares two or more studies.

    Raises:
        UserError: There are too few, two have one name, they share no objectives, were measured on different data, or
            one has no COMPLETE baseline.
    """
    if len(entries) < 2:
        raise UserError(f"compare: needs two studies or more, but got {len(entries)}.")
    twice = [name for name, count in Counter(entry.name for entry in entries).items() if count > 1]
    if twice:
        raise UserError(f"compare: studies must be different ones, but {choices(twice)} is there twice.")
    objectives, left_out = shared(entries)
    said = [*remarks(entries), *left_out]
    reference = common_reference([entry.baseline for entry in entries], objectives)
    groups: list[list[Found]] = []
    for entry in entries:
        own = next((group for group in groups if _replica(entry, group)), None)
        if own is None:
            groups.append(own := [])
        own.append(_found(entry, objectives, reference))
    sides = tuple(_side(group) for group in groups)
    if len(sides) == 1:
        said.append("All are replicas of one another, so there is nothing to tell apart: they show the search's noise.")
    return Comparison(
        objectives=objectives,
        reference=reference,
        sides=sides,
        differences=tuple(_difference(one, other, objectives) for one, other in combinations(sides, 2)),
        baseline=baselines(entries, objectives[0]),
        remarks=tuple(said),
        levels=_levels(sides, objectives),
    )


def dominated(one: Sequence[TrialRecord], other: Sequence[TrialRecord], objectives: Sequence[Objective]) -> float:
    """Gives the share of ``one`` that some point of ``other`` dominates, 0 to 1: nowhere worse and somewhere better.

    It is Zitzler and Thiele's coverage (IEEE Trans. Evolutionary Computation 3, 1999) without equal points, so that a
    front covers none of itself.
    """
    beaten = sum(any(dominates(theirs, mine, objectives) for theirs in other) for mine in one)
    return beaten / len(one) if one else 0.0


def _replica(entry: Entry, group: Sequence[Found]) -> bool:
    """Whether it is an independent repetition of what is in the group; the same seed would repeat its draws."""
    return group[0].entry.kind == entry.kind and all(found.entry.seed != entry.seed for found in group)


def _found(entry: Entry, objectives: Sequence[Objective], reference: Sequence[float]) -> Found:
    members = front(entry.records, objectives)
    aa = entry.baseline.metrics.get("aa_ratio")
    return Found(
        entry=entry,
        members=members,
        volume=hypervolume(members, objectives, reference),
        seeds=seed_volumes(members, objectives, reference, entry.seed),
        latency=latency_spread(members, objectives, reference, aa),
    )


def _side(group: Sequence[Found]) -> Side:
    volumes = [found.volume for found in group]
    name = group[0].entry.name if len(group) == 1 else f"{group[0].entry.name} ({len(group)} replicas)"
    interval, basis = None, None
    if len(group) > 1:
        interval, basis = mean_with(volumes), "replicas"
    elif group[0].seeds and len(group[0].seeds) > 1:
        interval, basis = mean_with([*group[0].seeds.values()], (group[0].latency or 0.0) ** 2), "seeds"
    return Side(name, tuple(group), math.fsum(volumes) / len(volumes), interval, basis)


def _difference(one: Side, other: Side, objectives: Sequence[Objective]) -> Difference:
    interval, basis = None, None
    if one.basis == other.basis == "replicas":
        interval = difference(*_volumes(one, other))
        counts = " and ".join(str(len(side.found)) for side in (one, other))
        basis, says = "replicas", f"Over {counts} replicas (Welch): it holds for further searches like these."
    elif one.basis == other.basis == "seeds":
        trained = [[*(side.found[0].seeds or {}).values()] for side in (one, other)]
        latency = [side.found[0].latency for side in (one, other)]
        interval = difference(trained[0], trained[1], math.fsum((value or 0.0) ** 2 for value in latency))
        counts = " and ".join(str(len(group)) for group in trained)
        missing = [] if all(value is not None for value in latency) else ["latency"]
        missing += ["a shared warm start"] if any(side.found[0].entry.warm for side in (one, other)) else []
        unknown = f"; the noise of {choices(missing, 'and')} is not in it" if missing else ""
        basis = "seeds"
        says = (
            f"Over {counts} trainings of each front with other seeds (Welch){unknown}: it holds for the designs that "
            "were found, not for other searches like these."
        )
    else:
        says = _why_none(one, other)
    pairs = [(mine.members, theirs.members) for mine in one.found for theirs in other.found]
    return Difference(
        one=one.name,
        other=other.name,
        gap=other.volume - one.volume,
        interval=interval,
        basis=basis,
        says=says,
        one_dominated=math.fsum(dominated(mine, theirs, objectives) for mine, theirs in pairs) / len(pairs),
        other_dominated=math.fsum(dominated(theirs, mine, objectives) for mine, theirs in pairs) / len(pairs),
    )


def _volumes(one: Side, other: Side) -> tuple[list[float], list[float]]:
    return [found.volume for found in one.found], [found.volume for found in other.found]


def _why_none(one: Side, other: Side) -> str:
    single = [side.name for side in (one, other) if side.basis is None]
    measured = [side.found[0].latency for side in (one, other) if len(side.found) == 1]
    known = [value for value in measured if value is not None]
    part = ""
    if len(known) == 2:
        part = f" Measuring latency alone makes it uncertain by {math.hypot(*known):.4f} (one standard deviation)."
    if not single:
        return f"No interval can be given: one side has replicas, the other confirmed seeds.{part}"
    return (
        f"No interval can be given: the designs of {choices(single, 'and')} were not trained with two other seeds. "
        "'headway confirm' does that (--seeds 3 or more), and replicas of a study (another name and seed) repeat its "
        f"search.{part}"
    )


def _levels(sides: Sequence[Side], objectives: Sequence[Objective]) -> dict[float, dict[str, float | None]]:
    """Bounds a tenth apart on the latency ratio, from where any side has a design to where none gains any more."""
    accuracy, cost = objectives[:2]
    if cost.metric != "latency_ratio":
        return {}
    ends = [found.members for side in sides for found in side.found]
    low = min(members[0].metrics[cost.metric] for members in ends)
    high = max(members[-1].metrics[cost.metric] for members in ends)
    first, last = math.ceil(low / _STEP - 1e-9), math.ceil(high / _STEP - 1e-9)
    bounds = [round(number * _STEP, 1) for number in range(first, last + 1)][-_MOST_LEVELS:]
    return {bound: {side.name: _best(side, bound, accuracy, cost) for side in sides} for bound in bounds}


def _best(side: Side, bound: float, accuracy: Objective, cost: Objective) -> float | None:
    best = []
    for found in side.found:
        within = [m.metrics[accuracy.metric] for m in found.members if m.metrics[cost.metric] <= bound]
        best.append(max(within, default=-math.inf))
    best.sort()
    middle = best[len(best) // 2] if len(best) % 2 else (best[len(best) // 2 - 1] + best[len(best) // 2]) / 2
    return middle if math.isfinite(middle) else None


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else vars(interval)
