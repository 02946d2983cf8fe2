"""Where trials run, as they say with each message."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Where:
    """A process of a trial.

    Attributes:
        host: Its machine.
        node: Ray's id of its node; one machine may have several.
        pid: Its process.
    """

    host: str
    node: str
    pid: int

    @property
    def name(self) -> str:
        """What the node is called: ``HOST/`` and the beginning of Ray's id."""
        return node_name(self.host, self.node)


def node_name(host: str, node: str) -> str:
    """``gpu-box/3f2a9c1e`` for a machine and Ray's id of a node on it."""
    return f"{host}/{node[:8]}"


@dataclass(frozen=True)
class Place:
    """A trial's last message.

    Attributes:
        where: Of which process.
        starts: Processes of this trial that were heard of.
        heard: Unix time.
    """

    where: Where
    starts: int
    heard: float


class Places:
    """The last message of each trial."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._places: dict[int, Place] = {}

    def heard(self, number: int, where: Where) -> None:
        """Takes a message of a trial."""
        before = self._places.get(number)
        starts = 1 if before is None else before.starts + (before.where != where)
        self._places[number] = Place(where, starts, self._clock())

    def of(self, number: int) -> Place | None:
        """The last message of a trial, ``None`` before the first in this run."""
        return self._places.get(number)
