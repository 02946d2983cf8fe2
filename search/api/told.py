"""What a study's acts give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Status:
    """Where a study stands.

    Attributes:
        running: Whether a run of it is under way.
        states: Trials by state.
        trials: Those that count for the budget.
        budget: ``budget.trials``.
        hours: Run time over all starts.
        compute_hours: Time in trials.
        seconds_left: Estimate of a running study, ``None`` where there is none.
        hypervolume: Of the front, ``None`` before the baseline is COMPLETE.
        failures: Why trials FAILED, with their numbers, the most frequent first.
        document: All of ``headway status --json``.
    """

    running: bool
    states: Mapping[str, int]
    trials: int
    budget: int
    hours: float
    compute_hours: float
    seconds_left: float | None
    hypervolume: float | None
    failures: tuple[tuple[str, tuple[int, ...]], ...]
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Status:
        """Reads the document of ``status --json``."""
        return cls(
            running=document["running"],
            states={state: count for state, count in document["states"].items() if count},
            trials=document["used"]["trials"],
            budget=document["budget"]["trials"],
            hours=document["used"]["hours"],
            compute_hours=document["compute_hours"],
            seconds_left=document["seconds_left"],
            hypervolume=document["hypervolume"],
            failures=tuple((item["reason"], tuple(item["trials"])) for item in document["failures"]),
            document=document,
        )


@dataclass(frozen=True)
class Confirmed:
    """What a confirmation left behind.

    Attributes:
        finished: Whether nothing is missing; else it was interrupted.
        says: What of each pair of neighbours on the front can be told apart, in words.
        document: All of ``headway confirm --json``.
    """

    finished: bool
    says: tuple[str, ...]
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Report:
    """A report on disk.

    Attributes:
        path: The page.
        document: All of ``headway report --json``, importances among it.
    """

    path: Path
    document: Mapping[str, Any] = field(repr=False)
