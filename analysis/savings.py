"""What a study did not pay for: trainings cut short, refused, shared or swept, and latencies known already.

Pure functions over ``TrialRecord``. Counts of trials and epochs are exact. Hours are estimates: epochs that were not
trained at the median seconds that an epoch of the same trial took, or of all trials where it trained none.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.pareto import front
from analysis.record import Objective, TrialRecord, TrialState


@dataclass(frozen=True)
class Saving:
    """One way in which a study paid less.

    Attributes:
        what: ``stopped``, ``refused``, ``swept``, ``timed`` or ``warm``.
        count: How often: trials stopped, designs refused, further points of the front, measurements, trials started.
        unit: What is counted, in words, for one and for several.
        epochs: Epochs that were not trained, ``None`` where it is not about training.
        hours: Estimate of their time, ``None`` where no trial tells how long an epoch takes.
    """

    what: str
    count: int
    unit: tuple[str, str]
    epochs: int | None
    hours: float | None

    def to_json(self) -> dict[str, Any]:
        """An entry of ``saved`` in ``status --json``."""
        return {"count": self.count, "unit": self.unit[1], "epochs": self.epochs, "hours": self.hours}

    def __str__(self) -> str:
        """One line for people."""
        told = [f"{self.count} {self.unit[self.count != 1]}"]
        if self.epochs is not None:
            told.append(f"{self.epochs} epoch{'s' if self.epochs != 1 else ''} not trained")
        if self.hours is not None:
            told.append(f"about {_duration(self.hours)}")
        return ", ".join(told)


def savings(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], *, epochs: int, warm_epochs: int | None = None
) -> list[Saving]:
    """Lists what a study has saved so far; ways that saved nothing are left out.

    - ``stopped``: what STOPPED trials had left of their epochs.
    - ``refused``: what INFEASIBLE designs had left of theirs, all of them where it was known before training.
    - ``swept``: points of the front that are further settings of a trained detector; each would have been a training.
    - ``timed``: latencies taken over from a trial of the same architecture.
    - ``warm``: the shared warm start instead of as many epochs more of each trial that came to an end or was stopped.
      Whether each would need them is not known.

    Args:
        records: The trials, not spread.
        objectives: Of the study.
        epochs: Of a trial that is never stopped.
        warm_epochs: Of the shared warm start, ``None`` without one.
    """
    usual = _median([seconds for record in records for seconds in _epoch_seconds(record)])
    own = {record.number: _median(_epoch_seconds(record)) or usual for record in records}

    def left(state: TrialState) -> dict[int, int]:
        rest = {record.number: epochs - len(record.curve) for record in records if record.state is state}
        return {number: count for number, count in rest.items() if count > 0}

    found = []
    for what, state, unit in (
        ("stopped", TrialState.STOPPED, ("trial stopped at a rung", "trials stopped at rungs")),
        ("refused", TrialState.INFEASIBLE, ("design refused for a constraint", "designs refused for a constraint")),
    ):
        rest = left(state)
        found.append(Saving(what, len(rest), unit, sum(rest.values()), _hours(rest, own)))
    found += [_swept(records, objectives, own), _timed(records)]
    if warm_epochs is not None:
        found.append(_warm(records, warm_epochs, own))
    return [saving for saving in found if saving.count]


def _hours(epochs: Mapping[int, int], own: Mapping[int, float | None]) -> float | None:
    """Hours of epochs by trial, at what an epoch of each takes; ``None`` where that is not known of one."""
    parts = [None if (seconds := own[number]) is None else count * seconds for number, count in epochs.items()]
    known = [part for part in parts if part is not None]
    return sum(known) / 3600 if len(known) == len(parts) else None


def _swept(records: Sequence[TrialRecord], objectives: Sequence[Objective], own: Mapping[int, float | None]) -> Saving:
    """Further points of the front: each as many epochs as the trial that gave it."""
    epochs: dict[int, int] = {}
    count = 0
    for point in front(records, objectives):
        if point.point:
            count += 1
            epochs[point.number] = epochs.get(point.number, 0) + len(point.curve)
    unit = ("further point of the front from a sweep", "further points of the front from sweeps")
    return Saving("swept", count, unit, sum(epochs.values()), _hours(epochs, own))


def _timed(records: Sequence[TrialRecord]) -> Saving:
    """Latencies taken over. Their time is that of the pairs alone, without warming up and waiting for the machine."""
    known = [record for record in records if "speed_from" in record.attrs]
    seconds = [value for record in known if (value := _measuring_seconds(record.metrics)) is not None]
    unit = ("latency known from the same architecture", "latencies known from the same architecture")
    hours = sum(seconds) / 3600 if len(seconds) == len(known) else None
    return Saving("timed", len(known), unit, None, hours)


def _measuring_seconds(metrics: Mapping[str, float]) -> float | None:
    """How long the interleaved pairs of a latency took: the design's ms and the baseline's, in each."""
    pairs, ms, ratio = (metrics.get(name) for name in ("latency_pairs", "measured_ms", "latency_ratio"))
    if pairs is None or ms is None or not ratio:
        return None
    return pairs * (ms + ms / ratio) / 1000


def _warm(records: Sequence[TrialRecord], warm_epochs: int, own: Mapping[int, float | None]) -> Saving:
    """The warm start that was trained once, less what it took; nothing before two trials continued from it."""
    used = [record.number for record in records if record.state in (TrialState.COMPLETE, TrialState.STOPPED)]
    used = used if len(used) > 1 else []
    paid = next((record.attrs.get("warm_seconds", 0.0) for record in records if record.baseline), 0.0) / 3600
    hours = _hours(dict.fromkeys(used, warm_epochs), own)
    unit = ("trial from the shared warm start", "trials from the shared warm start")
    return Saving(
        "warm", len(used), unit, max(0, len(used) - 1) * warm_epochs, None if hours is None else max(0.0, hours - paid)
    )


def _epoch_seconds(record: TrialRecord) -> list[float]:
    """Seconds of each epoch of a trial, validation included.

    Where the trainer does not tell them, they are the steps of the trial's time. Its first epoch is left out then, as
    building and timing came before it, and so is what follows a restart, whose clock starts anew.
    """
    told = [epoch.metrics for epoch in record.curve]
    if all("train_seconds" in metrics for metrics in told):
        return [metrics["train_seconds"] + metrics.get("val_seconds", 0.0) for metrics in told]
    steps = [later.seconds - earlier.seconds for earlier, later in itertools.pairwise(record.curve)]
    return [seconds for seconds in steps if seconds > 0]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _duration(hours: float) -> str:
    for unit, size in (("h", 1.0), ("min", 60.0)):
        if hours * size >= 0.95:
            return f"{hours * size:.1f} {unit}"
    return f"{hours * 3600:.0f} s"
