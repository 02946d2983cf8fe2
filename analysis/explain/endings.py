"""What was INFEASIBLE or FAILED, and what was STOPPED, grouped by why."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from analysis.record import TrialRecord, TrialState

_VALUE = re.compile(r", but it is (?P<value>[^;,\s]+)")
_RUNG = re.compile(r"^at epoch (?P<epoch>\d+): ")


@dataclass(frozen=True)
class Ending:
    """Trials that ended alike without being COMPLETE.

    Attributes:
        state: How.
        reason: Why: the constraint, the rung, or the first line of a failure.
        trials: Their numbers, ascending.
        values: What the constrained figure was, least and largest; ``None`` where it is not about one.
        hours: Spent in them.
    """

    state: TrialState
    reason: str
    trials: tuple[int, ...]
    values: tuple[float, float] | None
    hours: float


def endings(trials: Iterable[TrialRecord]) -> list[Ending]:
    """Groups the trials that ended without being COMPLETE, FAILED ones first, then by number.

    A trial that breaks several constraints is in the group of them all.
    """
    groups: dict[tuple[TrialState, str], list[TrialRecord]] = {}
    for trial in trials:
        if trial.state.finished and trial.state is not TrialState.COMPLETE:
            groups.setdefault((trial.state, _why(trial)), []).append(trial)
    order = [TrialState.FAILED, TrialState.INFEASIBLE, TrialState.STOPPED]
    found = [
        Ending(
            state,
            reason,
            tuple(sorted(trial.number for trial in group)),
            _values(group) if state is TrialState.INFEASIBLE else None,
            sum(trial.compute_hours for trial in group),
        )
        for (state, reason), group in groups.items()
    ]
    return sorted(found, key=lambda ending: (order.index(ending.state), -len(ending.trials), ending.trials))


def _why(trial: TrialRecord) -> str:
    reason = (trial.reason or "no reason was recorded").strip().splitlines()[0]
    if trial.state is TrialState.STOPPED:
        rung = _RUNG.match(reason)
        return f"weaker than its rivals after epoch {rung['epoch']}" if rung else reason
    if trial.state is TrialState.INFEASIBLE:
        return _VALUE.sub("", reason).removeprefix("must hold: ")
    return reason


def _values(group: Iterable[TrialRecord]) -> tuple[float, float] | None:
    found = [_VALUE.findall(trial.reason or "") for trial in group]
    if any(len(values) != 1 for values in found):
        return None
    try:
        numbers = [float(values[0]) for values in found]
    except ValueError:
        return None
    return min(numbers), max(numbers)
