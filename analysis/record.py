"""The record of a trial, as the store keeps it and as everything in ``analysis`` reads it."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


class TrialState(str, enum.Enum):
    """Where a trial stands; only COMPLETE trials are on the front."""

    PROPOSED = "PROPOSED"
    INFEASIBLE = "INFEASIBLE"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"

    @property
    def finished(self) -> bool:
        """True when the trial will not change any more."""
        return self not in (TrialState.PROPOSED, TrialState.RUNNING)


@dataclass(frozen=True)
class EpochRecord:
    """What one finished epoch gave.

    Attributes:
        epoch: 1-based number of finished epochs.
        metrics: Figures of that epoch, ``bbox_mAP`` (0 to 1) and ``loss`` among them.
        seconds: Training and validation time of the trial so far.
    """

    epoch: int
    metrics: Mapping[str, float]
    seconds: float = 0.0


@dataclass(frozen=True)
class SweepPoint:
    """The trained detector of a trial at one setting of its inference knobs.

    Attributes:
        index: 0 is the setting that the trial was validated with while it trained.
        knobs: The whole design, with these inference knobs.
        metrics: Figures measured at this setting; what it does not change (parameters) is the trial's.
        broken: Constraints that it breaks; it is no point of the front then.
    """

    index: int
    knobs: Mapping[str, Any]
    metrics: Mapping[str, float]
    broken: Sequence[str] = ()


@dataclass(frozen=True)
class TrialRecord:
    """One trial, or one further point of it (see ``spread``).

    Attributes:
        number: 0 is the baseline.
        state: See ``TrialState``.
        knobs: Canonical design, ``{"slimhead.ratio": 0.5, ...}``; empty for the baseline.
        metrics: Figures by name. Accuracy (``bbox_mAP``, ``bbox_mAP_s``, ..., 0 to 1) is that of the last epoch;
            ``latency_ms`` (ratio times the baseline's reference latency), ``latency_ratio`` (to the baseline, 1 for
            the baseline itself) with quartiles ``latency_ratio_q1`` and ``latency_ratio_q3``, ``gmacs``,
            ``head_gmacs``, ``params_m``, ``peak_memory_mb`` where known.
        curve: One entry a finished epoch, ascending.
        rungs: Epochs at which the trial was compared, with the decision: ``{1: "continue", 3: "stop"}``.
        reason: Why the trial is INFEASIBLE, STOPPED or FAILED.
        traceback: Of a FAILED trial.
        started: Unix time of the first start, ``None`` before it.
        finished: Unix time of the end, ``None`` before it.
        compute_hours: Wall time spent in this trial over all its starts, in hours.
        folder: Trial folder relative to the study folder.
        attrs: Anything else worth keeping (seed, versions, device, share of copied weights).
        sweep: What the trained detector gave at each setting of its inference knobs, ascending in index.
        point: Index of the sweep's setting that ``knobs`` and ``metrics`` are of; 0 but for what ``spread`` gives.
    """

    number: int
    state: TrialState
    knobs: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[EpochRecord] = ()
    rungs: Mapping[int, str] = field(default_factory=dict)
    reason: str | None = None
    traceback: str | None = None
    started: float | None = None
    finished: float | None = None
    compute_hours: float = 0.0
    folder: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    sweep: Sequence[SweepPoint] = ()
    point: int = 0

    @property
    def label(self) -> str:
        """What names this point for a person: ``7``, or ``7.3`` for the third setting of the sweep of trial 7."""
        return f"{self.number}.{self.point}" if self.point else str(self.number)

    @property
    def confirmed(self) -> Mapping[str, Any] | None:
        """What ``headway confirm`` knows of this point (see ``analysis.confirm.judge``), ``None`` before it."""
        found: Mapping[str, Any] | None = self.attrs.get("confirmed", {}).get(self.label)
        return found

    @property
    def baseline(self) -> bool:
        """True for trial 0, the base with every family off."""
        return self.number == 0


def spread(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Gives each setting of a trained detector's inference knobs as a record of its own: one training, several points.

    A trial without a sweep, or one that is not COMPLETE, stays one record. Of a sweep every setting that breaks no
    constraint becomes one, the trial itself standing for setting 0; further ones have no time of their own, so that
    sums over records stay true. Records that were spread already stay as they are.
    """
    records: list[TrialRecord] = []
    for trial in trials:
        if not trial.sweep or trial.state is not TrialState.COMPLETE:
            records.append(trial)
            continue
        for item in trial.sweep:
            if item.broken:
                continue
            figures = {**trial.metrics, **item.metrics}
            if item.index == 0:
                records.append(replace(trial, knobs=item.knobs, metrics=figures, sweep=()))
            else:
                setting = replace(trial, knobs=item.knobs, metrics=figures, point=item.index)
                records.append(replace(setting, sweep=(), compute_hours=0.0))
    return records


def further(trial: TrialRecord) -> list[TrialRecord]:
    """Gives the further points of a trial's sweep (see ``spread``)."""
    return [record for record in spread([trial]) if record.point]


@dataclass(frozen=True)
class Objective:
    """One objective: a metric's name and ``maximize`` or ``minimize``."""

    metric: str
    direction: str

    @property
    def maximize(self) -> bool:
        """True when larger is better."""
        return self.direction == "maximize"
