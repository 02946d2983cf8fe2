"""Processes of trials that ended without a result: why, and whether the trial is started again."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from trainers import heartbeat
from trainers.contract import TrialInterrupted

MOST = 3
"""Deaths of a trial's processes after which it has FAILED; those of nodes are not among them."""
# Ray's words where a process went down with its machine, whatever the trial did.
_NODE_WORDS = ("node has died", "node was terminated", "node is dead", "node died", "preempted", "drained")


class Deaths:
    """Counts them by trial."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, number: int, trial: Any, folder: Path) -> tuple[str, str, bool]:
        """Takes the death of a trial's process.

        Args:
            number: The trial's.
            trial: Ray's, which has the exception.
            folder: The trial's own.

        Returns:
            Why in one line; all that Ray tells of it; and whether the trial is to be started again. Where it is not,
            the line says how often it died.
        """
        error, text = _error(trial)
        reason, whose = _reason(error, text, folder)
        if whose == "node":
            return reason, text, True
        self._counts[number] += 1
        times = self._counts[number]
        if times < MOST:
            return reason, text, True
        if whose == "process":
            return f"the trial's process died {times} times: {reason}", text, False
        return f"{reason}, {times} times", text, False


def _reason(error: BaseException | None, text: str, folder: Path) -> tuple[str, str]:
    """One line, and whose death it was: the ``node``'s, the ``process``'s, or one that was ``asked`` for."""
    hung = heartbeat.take_note(folder)
    if hung is not None:
        return hung, "asked"
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    if isinstance(cause, TrialInterrupted):
        return " ".join(str(cause).split())[:400], "asked"
    line = " ".join(text.split())[:400]
    if isinstance(cause, OutOfMemoryError):
        return f"out of main memory; Ray's memory monitor killed it: {line}", "process"
    if isinstance(cause, RayActorError) and (cause.preempted or any(words in text for words in _NODE_WORDS)):
        return f"its node was lost: {line}", "node"
    return line, "process"


def _error(trial: Any) -> tuple[BaseException | None, str]:
    """The exception that Tune has of a trial, and its text; the driver's own files."""
    error = None
    with suppress(Exception):  # whatever a file does that was cut short; the text remains
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    try:
        text = Path(trial.error_file).read_text(encoding="utf-8").rpartition("Failure # ")[2].partition("\n")[2].strip()
    except (OSError, TypeError):
        text = str(error or "Ray does not say why")
    return error, text
