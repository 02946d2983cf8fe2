"""The log of a study: ``events.jsonl`` in its folder, one JSON object a line, from which the run can be reconstructed.

Each line has ``time`` (Unix seconds) and ``event``, and ``trial`` where it is about one. Whoever has something to tell
may add an event; those of the parts that are here:

| event | of | fields |
|---|---|---|
| ``proposed`` | a trial | ``knobs``, ``attrs`` |
| ``started`` | a trial | ``at``: of this start; a trial keeps the first |
| ``figures`` | a trial | ``metrics`` and ``attrs`` that are new, ``seconds``: its wall time over all starts |
| ``epoch`` | a trial | ``epoch``, ``metrics``, ``seconds``; the same epoch again replaces it |
| ``point`` | a trial | ``index``, ``knobs``, ``metrics``, ``broken``: a setting of its inference knobs |
| ``rung`` | a trial | ``epoch``, ``decision`` |
| ``ended`` | a trial | ``state``, ``reason``, ``traceback``, ``broken``, ``at`` |
| ``restored`` | a trial | ``values``: all its attributes, since the log lacked some of them |
| ``dropped`` | a trial | the database does not have it (any more) |
| ``speed`` | the study | ``key``, ``metrics``: the latency of an architecture |
| ``reference`` | the study | ``ms``: the baseline's latency |
| ``noted`` | the study | ``key``, ``value`` |
| ``begun`` | a run | ``command``, ``study``, ``versions``, ``host``, ``pid``, ``address``, ``share`` of a trial |
| ``finished`` | a run | ``finished``, ``states``, ``why``: what ended it before its budget |
| ``store_waits`` | a run | ``why``: the database cannot be used, the run waits |
| ``store_back`` | a run | ``seconds`` that it waited |
| ``interrupted`` | a trial | it left its place without an end, ``why`` |
| ``node_joined``, ``node_lost`` | a run | ``node`` |
| ``lease`` | a trial | ``held`` |
| ``tracking_down``, ``tracking_back`` | a run | ``why`` |

An event of the store is written after the database took it. What a kill leaves between the two, ``settle`` makes good.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from analysis.record import TrialRecord
from search.attributes import changes, record_of

EVENTS = "events.jsonl"
_BLOCK = 65536


class EventLog:
    """Appends to the log; one process writes.

    What cannot be written, on a full disk say, is kept and written before the next event that can be: the log never
    ends a run.

    Args:
        path: The file; made with the first event. A line that a kill left torn is cut off.
        clock: Gives Unix seconds.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._file: int | None = None
        self._waiting: deque[bytes] = deque()
        self._lock = threading.Lock()

    def write(self, event: str, trial: int | None = None, **fields: Any) -> None:
        """Writes an event.

        Args:
            event: What happened.
            trial: Its number, ``None`` where it is about none.
            fields: JSON types, without credentials.
        """
        about = {} if trial is None else {"trial": trial}
        line = json.dumps({"time": self._clock(), "event": event, **about, **fields}, separators=(",", ":"))
        with self._lock:
            self._waiting.append(line.encode() + b"\n")
            with contextlib.suppress(OSError):
                self._deliver()

    def settle(self, trials: Mapping[int, Mapping[str, Any]]) -> int:
        """Makes the log agree with the database.

        Args:
            trials: The attributes of all trials, by number.

        Returns:
            How many trials it did not agree on.
        """
        told = replayed(self.path)
        differ = [number for number in sorted(trials) if _text(trials[number]) != _text(told.get(number, {}))]
        gone = sorted(told.keys() - trials.keys())
        for number in differ:
            self.write("restored", number, values=trials[number])
        for number in gone:
            self.write("dropped", number)
        return len(differ) + len(gone)

    def close(self) -> None:
        """Writes what could not be written before, as far as it can be now."""
        with self._lock, contextlib.suppress(OSError):
            self._deliver()
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _deliver(self) -> None:
        if self._file is None and self._waiting:
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                _cut_torn_line(file)
            except OSError:
                os.close(file)
                raise
            self._file = file
        while self._waiting and self._file is not None:
            line = self._waiting[0]
            written = os.write(self._file, line)
            if written < len(line):  # the disk is full: its rest comes next, whatever else is waiting
                self._waiting[0] = line[written:]
            else:
                self._waiting.popleft()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Gives the events of a log in order; a line that is torn is left out. Without a file there are none."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if line.endswith(b"\n") and isinstance(event, dict):
                    yield event


def replayed(path: Path) -> dict[int, dict[str, Any]]:
    """Gives the attributes of all trials at the end of a log, by number."""
    trials: dict[int, dict[str, Any]] = {}
    for event in read_events(path):
        number, name = event.get("trial"), event.get("event", "")
        if number is None:
            continue
        if name == "proposed":
            trials[number] = {}
        if name == "restored":
            trials[number] = dict(event["values"])
        elif name == "dropped":
            trials.pop(number, None)
        elif number in trials:  # else its proposal is lost, and the next ``settle`` restores it
            trials[number].update(changes(name, event, trials[number]))
    return trials


def reconstruct(path: Path) -> list[TrialRecord]:
    """Gives all trials as the store had them at the end of the log, by number."""
    trials = replayed(path)
    return [record_of(trials[number]) for number in sorted(trials)]


def _text(values: Mapping[str, Any]) -> str:
    # As text, since a figure that is not a number equals nothing.
    return json.dumps(values, sort_keys=True)


def _cut_torn_line(file: int) -> None:
    """Drops what follows the last end of a line."""
    size = os.fstat(file).st_size
    end = size
    while end > 0:
        begin = max(0, end - _BLOCK)
        at = os.pread(file, end - begin, begin).rfind(b"\n")
        if at >= 0:
            end = begin + at + 1
            break
        end = begin
    if end < size:
        os.ftruncate(file, end)
