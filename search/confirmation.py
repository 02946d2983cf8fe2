"""Trainings that repeat others with other seeds: what becomes of each. Knows neither ray nor mlflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from analysis.labels import figure, short
from analysis.record import TrialRecord
from search.conductor import Pause
from search.eta import Eta, clock, left_in_words
from search.places import Where
from search.store import Store
from search.study import Study
from trainers.contract import TrialReport, TrialRequest

NOTE = "confirm:"
"""What a result is noted under, before the point's label, a colon and the seed."""
FOLDER = "confirm"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """One trial to train again with another seed.

    Attributes:
        number: What its reports go by, 1 or more; trial 0 is the one that makes the shared warm start.
        trial: The trial, as it was trained.
        seed: Of this training.
        labels: The points that this gives: by index of the sweep's setting, 0 for the trial itself.
    """

    number: int
    trial: TrialRecord
    seed: int
    labels: Mapping[int, str]

    @property
    def folder(self) -> str:
        """Relative to the study's."""
        return f"{FOLDER}/{self.trial.number}/seed{self.seed}"


@dataclass
class _Progress:
    """A training that runs: its figures so far, by setting those of the sweep, and its epochs."""

    figures: dict[str, float] = field(default_factory=dict)
    points: dict[int, dict[str, float]] = field(default_factory=dict)


class Confirmation:
    """Directs trainings that are not a search's: nothing is proposed, nothing stopped.

    Args:
        study: The study file.
        store: Takes what comes out.
        trainings: What to train.
        request: Makes the request of a training.
        concurrent: Most side by side.
        say: Takes a line for each event.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        trainings: Sequence[Training],
        request: Callable[[Training], TrialRequest],
        *,
        concurrent: int,
        say: Say,
    ) -> None:
        self.concurrent = concurrent
        self.halted: str | None = None
        self._study, self._store, self._request, self._say = study, store, request, say
        self._waiting = list(trainings)
        self._running: dict[int, tuple[Training, _Progress]] = {}
        self._eta = Eta(len(trainings))

    def next(self) -> TrialRequest | Pause:
        """Gives the next training."""
        if len(self._running) >= self.concurrent:
            return Pause.WAIT
        if not self._waiting or self.halted is not None:
            return Pause.WAIT if self._running else Pause.FINISHED
        training = self._waiting.pop(0)
        self._running[training.number] = (training, _Progress())
        self._line(training, f"starts: {short(training.trial.knobs)}")
        return self._request(training)

    def report(self, number: int, report: TrialReport) -> bool:
        """Takes a report; a figure that is not finite ends the training."""
        if number not in self._running:
            return False
        training, progress = self._running[number]
        bad = sorted(name for name, value in report.metrics.items() if not math.isfinite(value))
        if bad:
            values = ", ".join(f"{name} = {report.metrics[name]}" for name in bad)
            self.died(number, f"not a number: {values} (epoch {report.epoch})")
            return False
        if report.phase == "swept":
            progress.points[report.attrs["index"]] = dict(report.metrics)
            return True
        progress.figures.update(report.metrics)
        if report.phase == "epoch":
            share = report.epoch / self._study.budget.epochs
            if report.attrs.get("resumed"):
                self._eta.resumed(number, share)
            self._eta.reached(number, share)
            self._line(training, f"epoch {report.epoch}/{self._study.budget.epochs}  {self._accuracy(progress)}")
        if report.phase != "done":
            return True
        metric = self._study.objectives[0].metric
        if metric not in progress.figures:
            self.died(number, f"the objective {metric} has no value")
            return False
        for index, label in training.labels.items():
            metrics = {**progress.figures, **progress.points.get(index, {})}
            self._store.note(f"{NOTE}{label}:{training.seed}", {"metrics": metrics, "seconds": report.seconds})
        self._end(training, f"trained  {self._accuracy(progress)}")
        return False

    def died(self, number: int, reason: str, traceback: str | None = None) -> None:
        """Notes why a training has no result."""
        if number not in self._running:
            return
        training, _ = self._running[number]
        for label in training.labels.values():
            self._store.note(f"{NOTE}{label}:{training.seed}", {"reason": reason, "traceback": traceback})
        self._end(training, f"FAILED: {reason}")

    def placed(self, number: int, where: Where) -> None:
        """Takes the news which process a message comes from, which a confirmation does not keep."""

    def postponed(self, number: int, seconds: float = 0.0) -> None:
        """Takes the news that a training left its place without an end."""
        if number in self._running:
            training, _ = self._running.pop(number)
            self._waiting.insert(0, training)

    def interrupted(self, number: int, reason: str) -> None:
        """Takes the news that a training lost its process, which continues it."""
        if number in self._running:
            self._line(self._running[number][0], f"interrupted: {reason}")
            self.postponed(number)

    def halt(self, reason: str) -> None:
        """Starts nothing further."""
        self.halted = self.halted or reason

    def _end(self, training: Training, text: str) -> None:
        del self._running[training.number]
        self._eta.ended(training.number)
        self._line(training, text)

    def _accuracy(self, progress: _Progress) -> str:
        metric = self._study.objectives[0].metric
        return figure(metric, progress.figures.get(metric, math.nan))

    def _line(self, training: Training, text: str) -> None:
        eta = self._eta
        where = f"{clock(eta.seconds)}  {eta.done}/{eta.total} trainings{left_in_words(eta.left())}"
        self._say(f"[{where}] trial {training.trial.number:>3} seed {training.seed}  {text}")
