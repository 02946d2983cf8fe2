"""What is under way: which Ray trial runs which trial of the study, in which lane, and who waits for a lane."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from search.conductor import Pause
from search.director import Director
from search.ray_adapter.deaths import Deaths
from search.ray_adapter.lanes import Node, Place, SpeedLane, renewed
from search.resources import Resources
from spaces import patching
from spaces.errors import HeadwayError
from trainers.contract import Lane, TrialRequest

_LOOK_SECONDS = 5.0
_LOST_SECONDS = 300.0


@dataclass(frozen=True)
class Leg:
    """One start of a trial: the trial's number and where it runs."""

    number: int
    place: Place


class Desk:
    """Hands out the director's trials, each when there is a place in the lane that it needs next.

    A trial that needs another lane leaves its place at once and holds nothing while it waits.

    Attributes:
        failure: Why nothing can go on, once ``next`` raised it.

    Args:
        conductor: Decides what runs and what stops.
        share: Resources of one training.
        lane: Where latency is measured, ``None`` for beside the trainings.
        nodes: Looks at the cluster, to see whether the speed node is still there.
        say: Takes a line for the user.
        lease: Is told which trial takes the speed lane, and which one leaves it.
        clock: Gives seconds.
    """

    def __init__(
        self,
        conductor: Director,
        share: Resources,
        lane: SpeedLane | None,
        nodes: Callable[[], Sequence[Node]],
        say: Callable[[str], None],
        lease: Callable[[int, bool], None] = lambda number, held: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.conductor, self.share, self.lane = conductor, share, lane
        self.legs: dict[str, Leg] = {}  # Ray trial -> what it runs
        self._waiting: list[TrialRequest] = []
        self._wanted: dict[int, Lane] = {}  # trial -> the lane that it asked for last
        self.deaths = Deaths()
        self._nodes, self._say, self._lease, self._clock = nodes, say, lease, clock
        self._looked = clock()
        self._gone_since: float | None = None
        self.failure: HeadwayError | None = None

    def next(self) -> tuple[TrialRequest, Place] | Pause:
        """Gives the next start and its place.

        Raises:
            HeadwayError: The speed node is gone for minutes, and nothing is left to do without it.
        """
        if self.lane is None:
            request = self.conductor.next()
            return request if isinstance(request, Pause) else (request, "any")
        self._look()
        if self.conductor.halted is not None:
            for request in self._waiting:
                self.conductor.postponed(request.number)
            self._waiting.clear()
        while True:
            for request in self._waiting:
                place = self._place(self.lane, request)
                if place is not None:
                    self._waiting.remove(request)
                    if place == "speed":
                        return self.lane.request(request), place
                    return replace(request, lane="train"), place
            found = self.conductor.next()
            if isinstance(found, Pause):
                return Pause.WAIT if self._waiting else found
            self._waiting.append(found)

    def begin(self, trial_id: str, request: TrialRequest, place: Place) -> None:
        """Notes that a Ray trial runs this start."""
        self.legs[trial_id] = Leg(request.number, place)
        if place == "speed":
            self._lease(request.number, True)

    def number(self, trial_id: str) -> int | None:
        """The trial that a Ray trial runs, ``None`` for one that was taken off it."""
        leg = self.legs.get(trial_id)
        return None if leg is None else leg.number

    def ended(self, trial_id: str) -> int | None:
        """Takes a Ray trial that ended; gives the trial that it ran."""
        leg = self.legs.pop(trial_id, None)
        if leg is not None and leg.place == "speed":
            self._lease(leg.number, False)
        return None if leg is None else leg.number

    def leave(self, trial_id: str, wanted: Lane | None = None, seconds: float = 0.0) -> None:
        """Takes a trial of the study off the Ray trial that ran it; it is to be started again.

        Args:
            trial_id: The Ray trial.
            wanted: The lane that it needs next.
            seconds: Wall time of this start.
        """
        number = self.ended(trial_id)
        assert number is not None
        if wanted is not None:
            self._wanted[number] = wanted
        self.conductor.postponed(number, seconds)

    def snapshot(self) -> dict[str, Any]:
        """What is under way, as plain data.

        Returns:
            ``running``: numbers of the trials that have a place; ``lanes``: ``None`` without a speed node, else of
            ``train`` and ``speed`` each what is ``running`` there, what is ``waiting`` for it (numbers, the first to
            come first) and its ``places``, of ``speed`` also its ``node`` and whether that is ``there``.
        """
        running = list(self.legs.copy().values())  # another thread may begin one meanwhile
        found: dict[str, Any] = {"running": sorted(leg.number for leg in running), "lanes": None}
        if self.lane is not None:
            found["lanes"] = {
                lane: {
                    "running": sorted(leg.number for leg in running if (leg.place == "speed") == (lane == "speed")),
                    "waiting": [request.number for request in self._waiting if self._lane(request) == lane],
                    "places": 1 if lane == "speed" else self.share.concurrent,
                }
                for lane in ("train", "speed")
            }
            found["lanes"]["speed"] |= {"node": self.lane.node.name, "there": self._gone_since is None}
        return found

    def _lane(self, request: TrialRequest) -> Lane:
        """The lane that a start belongs in; a trainer that needs the other one says so."""
        asked = self._wanted.get(request.number)
        if asked is not None:
            return asked
        warms_up = request.number == 0 and request.warm is not None
        first = request.speed is not None and not warms_up and patching.learning(request.knobs) is None
        return "speed" if first else "train"

    def _place(self, lane: SpeedLane, request: TrialRequest) -> Place | None:
        """A free place in the lane of a start, ``None`` where there is none."""
        taken = [leg.place for leg in self.legs.values()]
        if self._lane(request) == "speed":
            return None if "speed" in taken or self._gone_since is not None else "speed"
        if len(taken) - taken.count("speed") >= self.share.concurrent:
            return None
        if taken.count("away") < lane.away:
            return "away"
        return "beside" if taken.count("beside") < lane.beside else None

    def _look(self) -> None:
        """Sees to it now and then that the speed node is there."""
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        assert self.lane is not None
        lane = renewed(self.lane, self._nodes())
        if lane is not None:
            if self._gone_since is not None or lane.node != self.lane.node:
                self._say(f"latency: measured on the speed node {lane.node.name} from now on")
            self.lane, self._gone_since = lane, None
            return
        if self._gone_since is None:
            self._gone_since = now
            self._say(f"latency: the speed node {self.lane.node.name} is gone; trials that need it wait for one")
        if now - self._gone_since > _LOST_SECONDS and not any(leg.place == "away" for leg in self.legs.values()):
            self.failure = HeadwayError(
                f"the speed node {self.lane.node.name} is gone, and no other has come for {_LOST_SECONDS / 60:.0f} "
                "minutes; start one with --resources='{\"speed\": 1}'; nothing is lost, the same command continues"
            )
            raise self.failure
