"""Whether a budget of GPU hours has room for one more trial: pure functions over records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.record import TrialRecord, TrialState


@dataclass(frozen=True)
class Room:
    """What is left for a new trial, in GPU hours.

    Attributes:
        spent: By all trials so far.
        promised: What those that have not ended still need.
        needed: By one more, ``None`` while no trial has trained an epoch.
        budget: All there is.
    """

    spent: float
    promised: float
    needed: float | None
    budget: float

    def enough(self, alone: bool) -> bool:
        """Whether one more fits.

        Args:
            alone: Whether nothing runs; else it is waited for while nothing is known of what a trial needs.
        """
        if self.needed is None:
            return alone and self.spent < self.budget
        return self.spent + self.promised + self.needed <= self.budget

    def __str__(self) -> str:
        needed = "" if self.needed is None else f", and one more trial would need about {self.needed:.3g}"
        return f"of the {self.budget:g} GPU hours of the budget {self.spent:.3g} are spent{needed}"


def room(
    records: Sequence[TrialRecord], running: Mapping[int, float], *, epochs: int, gpus: int, budget: float
) -> Room:
    """Looks ahead: a trial needs what the dearest COMPLETE one took, or what its own epochs say, if that is more.

    Args:
        records: All trials.
        running: Hours of trials that run, up to now, over all their starts.
        epochs: Of a whole trial.
        gpus: Of a trial, all its workers together.
        budget: In GPU hours.
    """
    complete = [_own(record) for record in records if record.state is TrialState.COMPLETE]
    begun = [_projected(record, epochs) for record in records if record.curve]
    dearest = max(complete or begun, default=None)
    spent = promised = 0.0
    for record in records:
        hours = running.get(record.number, record.compute_hours)
        spent += hours
        if not record.state.finished:
            whole = max(dearest or 0.0, _projected(record, epochs) if len(record.curve) > 1 else 0.0)
            promised += max(0.0, whole + _warm(record) - hours)
    return Room(spent * gpus, promised * gpus, None if dearest is None else dearest * gpus, budget)


def _warm(record: TrialRecord) -> float:
    """Hours of the shared warm start, which one trial trains for all."""
    return float(record.attrs.get("warm_seconds", 0.0)) / 3600


def _own(record: TrialRecord) -> float:
    return record.compute_hours - _warm(record)


def _projected(record: TrialRecord, epochs: int) -> float:
    """Hours of a whole trial from its epochs so far; after one, what came before it is taken to come with each."""
    first, last = record.curve[0], record.curve[-1]
    begun = first.seconds / 3600 - _warm(record)
    if last.epoch == first.epoch:
        return begun / first.epoch * epochs
    each = (last.seconds - first.seconds) / 3600 / (last.epoch - first.epoch)
    return begun + each * (epochs - first.epoch)
