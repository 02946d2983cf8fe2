"""What the records of a study come to, worked out once for all sentences, tables and figures of its report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from analysis import pareto
from analysis.choose import Choice, choose
from analysis.explain import Ending, endings
from analysis.explain.settings import varying
from analysis.importance import Importance, importances
from analysis.record import Objective, TrialRecord, TrialState
from analysis.report.context import Context


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The study in figures.

    Attributes:
        trials: All records, ascending in number.
        objectives: Of the study.
        context: See there.
        states: Trials by state.
        points: What may be on the front, every setting of a sweep.
        front: Ascending in the second objective.
        baseline: Trial 0 where it is a point.
        reference: Reference point of the hypervolume, ``None`` without a baseline.
        volume: Hypervolume of all points, ``None`` without a reference point.
        alone: That of the baseline alone.
        growth: ``pareto.hypervolume_curves``.
        importance: By objective.
        knobs: Those that vary, the ones that explain most first.
        endings: What did not come to its end, grouped.
        picks: Choices by the word that ``headway export --pick`` takes.
    """

    trials: Sequence[TrialRecord]
    objectives: Sequence[Objective]
    context: Context
    states: Counter[TrialState]
    points: Sequence[TrialRecord]
    front: Sequence[TrialRecord]
    baseline: TrialRecord | None
    reference: tuple[float, ...] | None
    volume: float | None
    alone: float | None
    growth: Sequence[pareto.Row]
    importance: Sequence[Importance]
    knobs: Sequence[str]
    endings: Sequence[Ending]
    picks: dict[str, Choice]

    @classmethod
    def of(
        cls,
        trials: Sequence[TrialRecord],
        objectives: Sequence[Objective],
        context: Context,
        importance: Sequence[Importance] | None = None,
    ) -> Findings:
        """Works it out; takes some seconds where there are hundreds of trials."""
        trials = sorted(trials, key=lambda trial: trial.number)
        points = pareto.points(trials, objectives)
        baseline = next((point for point in points if point.baseline and not point.point), None)
        reference = volume = alone = None
        growth: Sequence[pareto.Row] = []
        if baseline is not None and all(item.maximize or baseline.metrics[item.metric] > 0 for item in objectives):
            reference = pareto.reference_point(trials, objectives, context.reference)
        if reference is not None and baseline is not None:
            growth = pareto.hypervolume_curves(trials, objectives, reference)
            volume = growth[-1]["hypervolume"] if growth else 0.0
            alone = pareto.hypervolume([baseline], objectives, reference)
        importance = importances(trials, objectives) if importance is None else importance
        weight = {name: max(found.shares.get(name, 0.0) for found in importance) for name in varying(trials)}
        ways = {"knee": True, "fastest": not all(item.maximize for item in objectives)}
        ways["most_accurate"] = any(item.maximize for item in objectives)
        words = [word for word, sensible in ways.items() if sensible and points]
        return cls(
            trials=trials,
            objectives=objectives,
            context=context,
            states=Counter(trial.state for trial in trials),
            points=points,
            front=pareto.front(points, objectives),
            baseline=baseline,
            reference=reference,
            volume=volume,
            alone=alone,
            growth=growth,
            importance=importance,
            knobs=sorted(weight, key=lambda name: -weight[name]),
            endings=endings(trials),
            picks={word: choose(trials, objectives, word) for word in words},
        )

    @property
    def complete(self) -> int:
        """Trials that came to their end."""
        return self.states[TrialState.COMPLETE]

    @property
    def open(self) -> int:
        """Trials that have not ended."""
        return self.states[TrialState.RUNNING] + self.states[TrialState.PROPOSED]

    @property
    def better(self) -> list[TrialRecord]:
        """Front members that are better than the baseline in something and worse in nothing, as measured."""
        if self.baseline is None:
            return []
        return [member for member in self.front if pareto.dominates(member, self.baseline, self.objectives)]

    @property
    def confirmed(self) -> list[TrialRecord]:
        """Front members and the baseline, as far as they were trained with several seeds."""
        labels = {member.label for member in self.front} | {"0"}
        return [point for point in self.points if point.label in labels and point.confirmed]


def quartiles(trial: TrialRecord) -> tuple[float, float] | None:
    """Gives the quartiles of a trial's latency ratio: those of the common measurement where there is one."""
    latency = (trial.confirmed or {}).get("latency")
    if latency:
        return float(latency["q1"]), float(latency["q3"])
    ends = tuple(trial.metrics.get(f"latency_ratio_{end}", math.nan) for end in ("q1", "q3"))
    return (ends[0], ends[1]) if all(math.isfinite(end) for end in ends) else None
