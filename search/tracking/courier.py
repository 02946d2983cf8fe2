"""Carries a study's trials to MLflow beside the search, which never waits for it, however long it is away.

There is no second spool: the study's store holds every figure with its time, and what is in memory here is the newest
record of each trial. What MLflow missed is delivered by ``Tracker.reconcile``, in the order of trial numbers.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from analysis.record import TrialRecord
from spaces.errors import UserError

if TYPE_CHECKING:
    from analysis.plots import Runs
    from search.tracking.tracker import RunStatus, Tracker

# Between two drawings of the plots lie this many seconds, and this many times as long as the last one took: a study of
# thousands of trials is drawn more slowly, and at most about 5 % of the driver's time is to go there.
PLOT_SECONDS = 15.0
PLOT_REST = 20.0
# Between two attempts to reach MLflow.
OPEN_SECONDS = 60.0
# The longest that an unhurried beginning waits for a first epoch.
CALM_SECONDS = 60.0
# Without any call to MLflow coming back for so long, the end of a run leaves it behind.
LOST_SECONDS = 120.0
_LOOK_SECONDS = 1.0
MISSES = "MLflow at %s misses a part of this study; 'headway sync' adds it once MLflow is back."
_log = logging.getLogger("headway.tracking")

Told = Callable[[Literal["tracking_down", "tracking_back"], str], None]


@dataclass(frozen=True)
class TrackingState:
    """How MLflow does.

    Attributes:
        where: Its address, without credentials.
        down_since: Unix time since when it misses something, ``None`` while it has all.
        reason: What it last failed with, "" while it has all.
        waiting: Trials with news that were not written yet.
    """

    where: str
    down_since: float | None = None
    reason: str = ""
    waiting: int = 0


class Pace:
    """How often the study is drawn: after a rest of ``PLOT_SECONDS``, or of ``PLOT_REST`` times what it took."""

    def __init__(self) -> None:
        self._rests_until = -math.inf

    def due(self, now: float) -> bool:
        """Whether the rest is over."""
        return now >= self._rests_until

    def drew(self, began: float, ended: float) -> None:
        """Takes when a drawing began and ended."""
        self._rests_until = ended + max(PLOT_SECONDS, PLOT_REST * (ended - began))


class Courier:
    """A tracker in a thread of its own.

    Args:
        opened: Opens the tracker; raises ``UserError`` where MLflow cannot be reached.
        where: MLflow's address, without credentials.
        told: Takes the news that MLflow went away or is back; called from the thread.
    """

    def __init__(self, opened: Callable[[], Tracker], where: str, told: Told = lambda kind, reason: None) -> None:
        self._open, self._told = opened, told
        self._tracker: Tracker | None = None
        self._opened_at = -math.inf
        self._calm = threading.Event()
        self._reaching = threading.Lock()
        self._known: dict[int, TrialRecord] = {}
        self._missed: set[int] = set()
        self._news: dict[int, TrialRecord] = {}
        self._draw: Sequence[TrialRecord] | None = None
        self._pace = Pace()
        self._closing: RunStatus | None = None
        self._pages: Sequence[Path] = ()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="headway-tracking", daemon=True)
        self._warned = False
        self.state = TrackingState(where)

    def begin(self, records: Sequence[TrialRecord], *, unhurried: bool = False) -> None:
        """Reaches MLflow, and begins to make it agree with the store.

        Args:
            records: All trials so far.
            unhurried: Whether it is reached by the courier's thread, once a trial has trained an epoch, has ended, or
                after ``CALM_SECONDS``: until then the machine is left to what starts with the study. What fails then is
                tried again, and told.

        Raises:
            UserError: MLflow cannot be used, and the study is new: most likely its address is wrong. A study that has
                trials goes on without it, and so does an unhurried one.
        """
        self._known = {record.number: record for record in records}
        try:
            if not unhurried:
                self._calm.set()
                self._reach()
        except UserError as error:
            if not records:
                raise
            self._fails(str(error))
        self._thread.start()

    def settled(self) -> None:
        """Returns once MLflow is not being reached."""
        with self._reaching:
            pass

    def trial(self, record: TrialRecord) -> None:
        """Takes a trial as it stands now; see ``Tracker.trial``."""
        if record.curve or record.state.finished:
            self._calm.set()
        with self._changed:
            self._news[record.number] = record
            self._changed.notify()

    @property
    def due(self) -> bool:
        """Whether the study may be drawn anew."""
        return self._draw is None and self._pace.due(time.monotonic())

    def study(self, records: Sequence[TrialRecord]) -> None:
        """Takes all trials, for a drawing; see ``Tracker.study``."""
        with self._changed:
            self._draw = records
            self._changed.notify()

    @property
    def runs(self) -> Runs | None:
        """Where the trials are in MLflow; ``None`` where it could not be reached."""
        return None if self._tracker is None else self._tracker.runs()

    def close(self, status: RunStatus, pages: Sequence[Path] = ()) -> None:
        """Writes what is missing and ends the parent run, where MLflow answers; warns where it does not.

        Args:
            status: MLflow's word for how the study ended.
            pages: Files to keep as artifacts of the parent run.
        """
        with self._changed:
            self._closing, self._pages = status, pages
            self._changed.notify()
        self._calm.set()
        began = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(_LOOK_SECONDS)
            heard = max(began, self._tracker.heard_at if self._tracker is not None else began)
            if time.monotonic() - heard > LOST_SECONDS:
                self._fails(f"no answer within {LOST_SECONDS:g} s")
                break
        if self.state.down_since is not None:
            _log.warning(MISSES, self.state.where)

    def _work(self) -> None:
        fresh = True
        self._calm.wait(CALM_SECONDS)
        while True:
            news, draw, closing = self._take(wait=not fresh)
            try:
                self._deliver(news, draw, closing, fresh=fresh)
            except UserError as error:  # MLflow could not be reached
                self._fails(str(error))
            except Exception as error:  # whatever is wrong with a picture of the study, the search goes on
                _log.debug("tracking", exc_info=True)
                self._fails(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            fresh = False
            if closing is not None:
                return

    def _take(self, *, wait: bool) -> tuple[list[TrialRecord], Sequence[TrialRecord] | None, RunStatus | None]:
        with self._changed:
            if wait:
                down = self.state.down_since is not None
                self._changed.wait_for(
                    lambda: self._news or self._draw is not None or self._closing is not None,
                    timeout=_LOOK_SECONDS if down else None,
                )
            news, self._news = self._news, {}
            draw, self._draw = self._draw, None
            self._known.update(news)
            return [news[number] for number in sorted(news)], draw, self._closing

    def _deliver(
        self,
        news: Sequence[TrialRecord],
        draw: Sequence[TrialRecord] | None,
        closing: RunStatus | None,
        *,
        fresh: bool,
    ) -> None:
        self._missed |= {record.number for record in news}
        if self._tracker is None and (closing is not None or time.monotonic() - self._opened_at >= OPEN_SECONDS):
            self._reach()
            fresh = True
        tracker = self._tracker
        if tracker is None:
            self.state = replace(self.state, waiting=len(self._missed))
            return
        if fresh:
            tracker.reconcile([self._known[number] for number in sorted(self._known)])
        for record in news:
            tracker.trial(record)
        if draw is not None:
            began = time.monotonic()
            tracker.study(draw)
            self._pace.drew(began, time.monotonic())
        if closing is not None:
            tracker.close(closing, self._pages)
        elif not news and draw is None:
            tracker.retry()
        if tracker.pending:
            self._fails(tracker.failure, warn=False)
        else:
            self._recovers()

    def _reach(self) -> None:
        with self._reaching:
            self._opened_at = time.monotonic()
            self._tracker = self._open()
            self._opened_at = time.monotonic()

    def _fails(self, why: str, *, warn: bool = True) -> None:
        if warn and not self._warned:
            self._warned = True
            _log.warning("MLflow at %s fails; the search goes on: %s", self.state.where, why)
        since = self.state.down_since
        self.state = replace(self.state, down_since=since or time.time(), reason=why, waiting=len(self._missed))
        if since is None:
            self._told("tracking_down", why)

    def _recovers(self) -> None:
        self._missed.clear()
        if self.state.down_since is not None:
            self.state = TrackingState(self.state.where)
            self._told("tracking_back", "")
