"""The neighbours of a picked design on the front: what the next step would gain and lose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.choose.limits import Limit
from analysis.labels import axis, figure, scaled
from analysis.record import Objective, TrialRecord


@dataclass(frozen=True)
class Neighbour:
    """The nearest design of the front that is better than the picked one in one objective.

    Attributes:
        trial: The neighbour.
        better_in: Metric of that objective.
        gains: By objective how much better it is, in the metric's own unit and always above 0.
        losses: By objective how much worse it is, likewise.
        alike: Objectives in which ``headway confirm`` cannot tell the two apart; ``None`` where they were not compared.
        pick: Label of the better pick of the two by ``headway confirm``; ``None`` where neither is, or not compared.
        words: The neighbour in one sentence.
    """

    trial: TrialRecord
    better_in: str
    gains: Mapping[str, float]
    losses: Mapping[str, float]
    alike: tuple[str, ...] | None = None
    pick: str | None = None
    words: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """Gives the neighbour as plain JSON types."""
        return {
            "trial": self.trial.number,
            "point": self.trial.label,
            "better_in": self.better_in,
            "gains": dict(self.gains),
            "losses": dict(self.losses),
            "alike": None if self.alike is None else list(self.alike),
            "pick": self.pick,
            "says": self.words,
        }


def neighbours(
    trial: TrialRecord,
    members: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    limits: Sequence[Limit] = (),
) -> tuple[Neighbour, ...]:
    """Gives the next design of the front in each objective, the speed's first.

    Args:
        trial: The picked design, on the front or off it, with a finite figure for every objective.
        members: The front.
        objectives: The study's.
        limits: What was asked for; a neighbour that misses a limit says so.

    Returns:
        At most one an objective: of the members that are better there, the one that is least so, and of equals the
        best in the other objectives. There is none where the picked design is the best. One design that is next in
        two objectives stands once.
    """
    found: dict[str, Neighbour] = {}
    for objective in sorted(objectives, key=lambda item: (item.maximize, not item.metric.startswith("latency"))):
        better = [member for member in members if _gain(trial, member, objective) > 0]
        if better:
            near = min(better, key=lambda member: (_gain(trial, member, objective), _total(trial, member, objectives)))
            found.setdefault(near.label, _neighbour(trial, near, objective, objectives, limits))
    return tuple(found.values())


def nobody(trial: TrialRecord, members: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[str]:
    """Says in which objectives nothing on the front is better than the picked design."""
    return [
        f"nothing on the front is {_word(objective)}"
        for objective in objectives
        if not any(_gain(trial, member, objective) > 0 for member in members)
    ]


def figures(trial: TrialRecord, objectives: Sequence[Objective]) -> str:
    """Words a point's objectives: ``AP 37.0 %, latency 60.0 ms``."""
    return ", ".join(figure(objective.metric, trial.metrics[objective.metric]) for objective in objectives)


def _neighbour(
    trial: TrialRecord,
    near: TrialRecord,
    objective: Objective,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
) -> Neighbour:
    steps = {item.metric: _gain(trial, near, item) for item in objectives}
    gains = {metric: step for metric, step in steps.items() if step > 0}
    losses = {metric: -step for metric, step in steps.items() if step < 0}
    pairs = (trial.confirmed or {}).get("neighbours", ())
    pair = next((item for item in pairs if {item["one"], item["other"]} == {trial.label, near.label}), None)
    parts = [f"{_name(item)} {_step(trial, near, item)}" for item in objectives if item.metric in losses]
    told = f"next {_word(objective)}: trial {near.label} ({figures(near, objectives)}): "
    told += " and ".join(f"{_name(item)} {_step(trial, near, item)}" for item in objectives if item.metric in gains)
    told += f", for {' and '.join(parts)}" if parts else ", for nothing: it is better or equal in every objective"
    missed = [str(limit) for limit in limits if limit.short_of(near)]
    told += f"; it misses {' and '.join(missed)}" if missed else ""
    return Neighbour(
        near,
        objective.metric,
        gains,
        losses,
        None if pair is None else tuple(pair["alike"]),
        None if pair is None else pair["pick"],
        f"{told}; {_believed(trial, near, pair)}",
    )


def _believed(trial: TrialRecord, near: TrialRecord, pair: Mapping[str, Any] | None) -> str:
    """Says whether the two can be told apart."""
    if pair is not None:
        unknown = [metric for metric, verdict in pair["verdicts"].items() if verdict == "unknown"]
        better = f", and {pair['pick']} is the better pick" if pair["pick"] else ""
        if pair["alike"]:
            return f"confirmed: they cannot be told apart in {_words(pair['alike'])}{better}"
        if unknown:
            return f"confirmed, but measured too seldom to tell them apart in {_words(unknown)}"
        return f"confirmed: they can be told apart{better}"
    ends = [[item.metrics.get(f"latency_ratio_q{end}", math.nan) for end in (1, 3)] for item in (trial, near)]
    (low, high), (other_low, other_high) = ends
    overlap = max(low, other_low) <= min(high, other_high)  # False where one is NaN
    return "not confirmed" + (" (the quartiles of their latencies overlap)" if overlap else "")


def _gain(trial: TrialRecord, other: TrialRecord, objective: Objective) -> float:
    step = other.metrics[objective.metric] - trial.metrics[objective.metric]
    return step if objective.maximize else -step


def _total(trial: TrialRecord, other: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, int, int]:
    """Sort key of members that gain as much: the least relative loss in all, then the oldest."""
    total = sum(_gain(trial, other, item) / (abs(trial.metrics[item.metric]) or 1.0) for item in objectives)
    return -total, other.number, other.point


def _step(trial: TrialRecord, other: TrialRecord, objective: Objective) -> str:
    """Words the difference: ``+1.2 points`` of an accuracy, ``-8.7 ms (-22 %)`` of anything else."""
    metric = objective.metric
    mine, theirs = trial.metrics[metric], other.metrics[metric]
    if scaled(metric, 1.0) == 100:
        return f"{100 * (theirs - mine):+.1f} points"
    digits = figure(metric, abs(theirs - mine)).removeprefix(_name(objective)).strip()
    share = f" ({100 * (theirs / mine - 1):+.0f} %)" if mine else ""
    return f"{'+' if theirs > mine else '-'}{digits}{share}"


def _word(objective: Objective) -> str:
    if objective.metric.startswith("latency") and not objective.maximize:
        return "faster"
    if objective.metric == "bbox_mAP":
        return "more accurate"
    return f"{'higher' if objective.maximize else 'lower'} in {_name(objective)}"


def _name(objective: Objective) -> str:
    return axis(objective.metric).split(" (")[0]


def _words(metrics: Sequence[str]) -> str:
    return " and ".join(axis(metric).split(" (")[0] for metric in metrics)
