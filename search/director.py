"""What runs trials asks of whoever decides about them."""

from __future__ import annotations

from typing import Protocol

from search.conductor import Pause
from search.places import Where
from trainers.contract import TrialReport, TrialRequest


class Director(Protocol):
    """Decides what runs and what stops: a ``Conductor``, or a ``Confirmation``.

    Attributes:
        concurrent: Most trials side by side.
        halted: Why nothing further is started, ``None`` while all is well.
    """

    concurrent: int
    halted: str | None

    def next(self) -> TrialRequest | Pause:
        """Gives the next trial to run; its ``number`` is what its reports go by."""

    def report(self, number: int, report: TrialReport) -> bool:
        """Takes a report; returns whether the trial goes on."""

    def died(self, number: int, reason: str, traceback: str | None = None) -> None:
        """Takes the news that a trial cannot give a result; ignored where it has ended."""

    def placed(self, number: int, where: Where) -> None:
        """Takes the news which process the next report comes from."""

    def postponed(self, number: int, seconds: float = 0.0) -> None:
        """Takes the news that a trial left its place without an end; ``next`` gives it again, before new ones.

        Args:
            number: The trial.
            seconds: Wall time of the start that it left, 0 for one that never began.
        """

    def interrupted(self, number: int, reason: str) -> None:
        """Takes the news that a trial lost its process, for the reason given; postpones it."""

    def halt(self, reason: str) -> None:
        """Starts nothing further: no trial can go on here. What runs may end, what was postponed stays as it is."""
