"""What a running study does at the moment: ``live.json`` in its folder, which others read without asking the driver."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from analysis.record import TrialRecord
from search.eta import Eta
from search.places import Places

LIVE = "live.json"
WRITE_SECONDS = 5.0
FRESH_SECONDS = 30.0
_log = logging.getLogger("headway.live")


class Live:
    """Writes ``live.json`` every few seconds while it is entered, from a thread that nothing ends.

    Args:
        folder: The study's.
        seconds: Between two writings.

    Attributes:
        sources: By key of the document, what gives its value; called from the thread. One that fails gives ``null``.
    """

    def __init__(self, folder: Path, *, seconds: float = WRITE_SECONDS) -> None:
        self._path, self._seconds = folder / LIVE, seconds
        self.sources: Mapping[str, Callable[[], Any]] = {}
        self._started = time.time()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="headway-live", daemon=True)

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        # A source that hangs, on a lost cluster say, is left behind.
        self._thread.join(self._seconds)
        if not self._thread.is_alive():
            self._write(ended=True)

    def _work(self) -> None:
        while True:
            self._write()
            if self._over.wait(self._seconds):
                return

    def _write(self, *, ended: bool = False) -> None:
        now = time.time()
        document: dict[str, Any] = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": self._started,
            "updated": now,
            "ended": now if ended else None,
        }
        for key, source in self.sources.items():
            try:
                document[key] = source()
            except Exception:  # of the surroundings, or of a state that is just being changed
                _log.debug("live: %s", key, exc_info=True)
                document[key] = None
        part = self._path.with_name(f".{LIVE}.part")
        with contextlib.suppress(OSError):  # a full disk, a lost mount: the next one may succeed
            part.write_text(json.dumps(document, default=str) + "\n", encoding="utf-8")
            part.replace(self._path)


class UnderWay:
    """The trials that run, for ``live.json``; listens to a conductor.

    Args:
        places: Where they run.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._records: dict[int, TrialRecord] = {}

    def __call__(self, record: TrialRecord) -> None:
        """Takes a trial as it stands now."""
        if record.state.finished:
            self._records.pop(record.number, None)
        else:
            self._records[record.number] = record

    def rows(self) -> list[dict[str, Any]]:
        """Each trial with its ``epoch`` (that of the shared warm start in ``warm_epoch``), when it ``started`` first
        and was ``heard`` of last (Unix time), its ``node`` and ``pid``, and ``starts``, its processes in this run."""
        found = []
        for number, record in sorted(self._records.copy().items()):
            place = self._places.of(number)
            found.append(
                {
                    "trial": number,
                    "epoch": len(record.curve),
                    "warm_epoch": record.attrs.get("warm_epoch"),
                    "started": record.started,
                    "node": None if place is None else place.where.name,
                    "pid": None if place is None else place.where.pid,
                    "starts": 0 if place is None else place.starts,
                    "heard": None if place is None else place.heard,
                }
            )
        return found


class Seen:
    """The nodes that were alive at some time while this looked at them: a cluster may remember many dead ones.

    Args:
        view: Gives all nodes, with ``id``, ``name`` and ``alive``.
        told: Takes the name of each node that ``node_joined`` or ``node_lost``, those of the first look included.
    """

    def __init__(
        self, view: Callable[[], Sequence[Any]], told: Callable[[str, str], None] = lambda event, name: None
    ) -> None:
        self._view, self._told = view, told
        self._known: set[str] = set()
        self._alive: dict[str, str] = {}

    def rows(self) -> list[dict[str, Any]]:
        """The nodes as plain data."""
        nodes = self._view()
        before, self._alive = self._alive, {node.id: node.name for node in nodes if node.alive}
        for event, one, other in (("node_lost", before, self._alive), ("node_joined", self._alive, before)):
            for identity in one.keys() - other.keys():
                self._told(event, one[identity])
        self._known |= self._alive.keys()
        return [asdict(node) for node in nodes if node.id in self._known]


def time_left(eta: Eta, hours: float | None, seconds_run: float) -> float | None:
    """Seconds until the end of a study: the estimate, or when its ``budget.hours`` are spent."""
    left = eta.left()
    spent = None if hours is None else max(0.0, hours * 3600 - seconds_run)
    return min((value for value in (left, spent) if value is not None), default=None)


def read_live(folder: Path, clock: Callable[[], float] = time.time) -> dict[str, Any] | None:
    """Reads ``live.json``, ``None`` where there is none.

    Returns:
        What was written, with ``running``: whether the driver is at work, so far as can be seen from here.
    """
    try:
        document: dict[str, Any] = json.loads((folder / LIVE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    fresh = document["ended"] is None and clock() - document["updated"] < FRESH_SECONDS
    return {**document, "running": fresh and not _gone(document)}


def _gone(document: Mapping[str, Any]) -> bool:
    """Whether the driver was killed on this machine."""
    if document["host"] != socket.gethostname():
        return False
    try:
        os.kill(document["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
