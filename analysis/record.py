"""The record of a trial, as the store keeps it and as everything in ``analysis`` reads it."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
class TrialRecord:
    """One trial.

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

    @property
    def baseline(self) -> bool:
        """True for trial 0, the base with every family off."""
        return self.number == 0


@dataclass(frozen=True)
class Objective:
    """One objective: a metric's name and ``maximize`` or ``minimize``."""

    metric: str
    direction: str

    @property
    def maximize(self) -> bool:
        """True when larger is better."""
        return self.direction == "maximize"
