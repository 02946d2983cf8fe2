"""Hypervolumes up to a common reference point, and what is known of their noise.

A hypervolume rests on one training a design, so by itself it has no interval. Three sources give one:

- **Replicas** of a study (other seeds) are independent searches; the spread of their hypervolumes holds everything:
  who was proposed, how training went, how latency was measured.
- **Seeds** of a confirmation are independent trainings of the front's designs. The front of each seed has a
  hypervolume. The search's own seed is left out: designs are on the front because of what they scored there, so it
  flatters them. This says how good the found designs are, not how well another search would do.
- **Quartiles** of the measured latency, and how far two builds of one detector lie apart, give the part of latency.
  Alone it is no interval of the whole, since training is the noisier part.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import moocore
import numpy as np

from analysis.confirm import LEVEL, Interval
from analysis.pareto import hypervolume, values
from analysis.record import Objective, TrialRecord

DRAWS = 1000
_MEDIAN = math.sqrt(math.pi / 2)  # standard error of a normal sample's median, in those of its mean
_QUARTILES = 1.3489795003921634  # between the quartiles of a normal distribution, in standard deviations


def common_reference(baselines: Sequence[TrialRecord], objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Gives the point that all hypervolumes are measured up to: accuracy 0, twice the largest baseline's cost."""
    table = [values(baseline, objectives) for baseline in baselines]
    worst = [max(column) for column in zip(*table, strict=True)]
    return tuple(0.0 if o.maximize else 2 * value for o, value in zip(objectives, worst, strict=True))


def seed_volumes(
    members: Sequence[TrialRecord], objectives: Sequence[Objective], reference: Sequence[float], own: int
) -> dict[int, float] | None:
    """Gives the hypervolume of the front's designs by seed of their confirmation, without the search's own.

    Args:
        members: The front.
        objectives: Those compared.
        reference: See ``common_reference``.
        own: The search's own seed.

    Returns:
        By seed that every design has a result with; ``None`` where a design was not confirmed.
    """
    metric = objectives[0].metric
    tables: list[Mapping[str, float]] = []
    for member in members:
        found = (member.confirmed or {}).get("metrics", {}).get(metric)
        if not found:
            return None
        tables.append(found["values"])
    seeds = sorted(int(seed) for seed in set.intersection(*(set(table) for table in tables)) if int(seed) != own)
    volumes = {}
    for seed in seeds:
        trained = [
            replace(member, metrics={**member.metrics, metric: table[str(seed)], "latency_ratio": _ratio(member)})
            for member, table in zip(members, tables, strict=True)
        ]
        volumes[seed] = hypervolume(trained, objectives, reference)
    return volumes


def latency_spread(
    members: Sequence[TrialRecord], objectives: Sequence[Objective], reference: Sequence[float], aa: float | None
) -> float | None:
    """Gives the standard deviation of a hypervolume that comes from measuring latency, by drawing latencies.

    A median of paired ratios is taken to err by its standard error, from the quartiles, and by what two builds of one
    detector differ, which more pairs do not average out. Errors of designs are independent.

    Args:
        members: The front.
        objectives: Those compared.
        reference: See ``common_reference``.
        aa: Ratio of a second build of the baseline to the first, ``None`` where that was not measured.

    Returns:
        ``None`` where latency is no objective, or a design has no quartiles.
    """
    place = next((index for index, item in enumerate(objectives) if item.metric == "latency_ratio"), None)
    if place is None:
        return None
    errors = [_error(member, aa) for member in members]
    if any(error is None for error in errors):
        return None
    if not any(errors):
        return 0.0
    table = np.array([values(member, objectives) for member in members])  # (members, objectives)
    draws = np.random.default_rng(0).standard_normal((DRAWS, len(members)))
    ratios = np.array([_ratio(member) for member in members]) * (1 + np.array(errors, dtype=float) * draws)
    maximise = [objective.maximize for objective in objectives]
    volumes = []
    for row in ratios:
        table[:, place] = row
        volumes.append(moocore.hypervolume(table, ref=reference, maximise=maximise))
    return float(np.std(volumes))


def _ratio(member: TrialRecord) -> float:
    """The latency that a confirmation measured together with the others', else the search's."""
    again = (member.confirmed or {}).get("latency")
    return float(again["ratio"] if again else member.metrics.get("latency_ratio", math.nan))


def _error(member: TrialRecord, aa: float | None) -> float | None:
    """Relative error of a ratio; the baseline's is 1 by definition."""
    if member.baseline:
        return 0.0
    again: Mapping[str, Any] | None = (member.confirmed or {}).get("latency")
    if again:
        low, middle, high, count = (float(again[name]) for name in ("q1", "ratio", "q3", "rounds"))
        aa = again["aa"]
    else:
        names = ("latency_ratio_q1", "latency_ratio", "latency_ratio_q3", "latency_pairs")
        low, middle, high, count = (float(member.metrics.get(name, math.nan)) for name in names)
    if not all(math.isfinite(value) for value in (low, middle, high, count)) or count < 1:
        return None
    pairs = _MEDIAN * (high - low) / _QUARTILES / middle / math.sqrt(count)
    return math.hypot(pairs, math.log(aa) if aa else 0.0)


def mean_with(found: Sequence[float], known: float = 0.0) -> Interval:
    """Gives a mean with Student's interval, widened by a further variance that is known."""
    return _interval(math.fsum(found) / len(found), [found], known)


def difference(one: Sequence[float], other: Sequence[float], known: float = 0.0) -> Interval:
    """Gives the difference of two means, ``other`` less ``one``, with Welch's interval.

    The two need neither be equally many nor spread alike. ``known`` is a further variance of the difference that is
    not in the spread of either; it enters with many degrees of freedom (Satterthwaite's).

    Args:
        one: 2 or more.
        other: 2 or more.
        known: Of latency, say.
    """
    return _interval(math.fsum(other) / len(other) - math.fsum(one) / len(one), [one, other], known)


def _interval(middle: float, groups: Sequence[Sequence[float]], known: float) -> Interval:
    from scipy import stats

    count = min(len(group) for group in groups)
    if count < 2:
        return Interval(middle, None, None, count)
    parts = [(statistics.variance(group) / len(group), len(group) - 1) for group in groups]
    total = sum(part for part, _ in parts) + known
    free = sum(part**2 / degrees for part, degrees in parts)
    if total == 0:
        return Interval(middle, middle, middle, count)
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, total**2 / free) if free else stats.norm.ppf((1 + LEVEL) / 2))
    reach = quantile * math.sqrt(total)
    return Interval(middle, middle - reach, middle + reach, count)
