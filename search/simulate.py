"""Runs a study in simulated time: discrete events instead of processes, the conductor as it is."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from search.conductor import Conductor, Pause
from spaces.errors import HeadwayError
from trainers.contract import TrialFailed, TrialReport, TrialRequest
from trainers.replay import Step

Steps = Callable[[TrialRequest], Iterator[Step]]


@dataclass
class Clock:
    """Simulated time.

    Attributes:
        seconds: Now.
    """

    seconds: float = 0.0

    def __call__(self) -> float:
        """Gives the time now."""
        return self.seconds


def simulate(conductor: Conductor, steps: Steps, clock: Clock) -> None:
    """Runs trials side by side until the conductor has none left.

    At each event the trial whose step ends first reports, of several that end at the same moment the one with the
    lowest number; so a run depends on nothing but its conductor and the steps. Each report's ``seconds`` become the
    trial's own simulated time so far. A trial that does not go on leaves its place at that moment.

    Args:
        conductor: Decides what runs and what stops; its clock, and its store's, must be ``clock``.
        steps: Answers a request. Raising ``TrialFailed`` ends that trial as FAILED at the time of its last report.
        clock: Is set to the time of each event.

    Raises:
        HeadwayError: The conductor waits although nothing runs.
    """
    events: list[tuple[float, int, TrialReport]] = []
    # Trial -> its steps, when it began, and its own time at its next report.
    running: dict[int, tuple[Iterator[Step], float, float]] = {}

    def advance(number: int) -> None:
        trial, begin, spent = running.pop(number)
        try:
            step = next(trial, None)
        except TrialFailed as error:
            conductor.died(number, str(error))
            return
        if step is None:
            conductor.died(number, "the trial ended without a result")
            return
        spent += step.seconds
        running[number] = trial, begin, spent
        heapq.heappush(events, (begin + spent, number, replace(step.report, seconds=spent)))

    while True:
        while isinstance(request := conductor.next(), TrialRequest):
            running[request.number] = steps(request), clock.seconds, 0.0
            advance(request.number)
        if not events:
            if request is Pause.FINISHED:
                return
            raise HeadwayError("the simulation stands still: the conductor waits although no trial runs.")
        clock.seconds, number, report = heapq.heappop(events)
        if conductor.report(number, report):
            advance(number)
        else:
            del running[number]
