"""What happens to each trial: proposes, takes reports, decides, ends. Knows neither ray nor mlflow."""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.record import EpochRecord, SweepPoint, TrialRecord, TrialState
from search.folder import LEASE
from search.gpu_hours import Room, room
from search.places import Places, Where
from search.rungs import RungPoint, decide
from search.store import Store
from search.study import Constraint, Study
from spaces.space import Space, design_hash
from trainers.contract import (
    DataRequest,
    EarlyValidation,
    SpeedRequest,
    SweepRequest,
    TrialReport,
    TrialRequest,
    WarmRequest,
)

Listener = Callable[[TrialRecord], None]

# Infeasible designs cost no training, but a space of nothing else must come to an end.
_INFEASIBLE_PER_TRIAL = 10
# Costs that no image changes.
_STATIC = ("params_m",)
# Beside a kept latency: the number of the trial that it was measured in.
_MEASURED_BY = "measured_by"


class Pause(enum.Enum):
    """Why there is no trial to start."""

    WAIT = "wait"
    FINISHED = "finished"


class Conductor:
    """The driver's view of a running study; it begins with the decisions that a kill of an earlier one cut short.

    Args:
        study: The study file.
        space: What may vary.
        store: The trials.
        folder: The study's folder.
        data: The checked data set.
        device: ``cpu`` or ``cuda``, for training.
        speed_device: The same for latency.
        threads: CPU threads a trial.
        concurrent: Most trials under way.
        gpus: Of a trial, all its workers together; only ``budget.gpu_hours`` asks.
        listeners: Called with the record after each change.
        places: Is told where trials run.
        clock: Gives seconds, of which ``budget.hours`` and ``budget.gpu_hours`` are counted.
    """

    def __init__(
        self,
        study: Study,
        space: Space,
        store: Store,
        *,
        folder: Path,
        data: DataRequest,
        device: str,
        speed_device: str,
        threads: int,
        concurrent: int,
        gpus: int = 0,
        listeners: Sequence[Listener] = (),
        places: Places | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.study, self.space, self.store = study, space, store
        self.concurrent = concurrent
        self._folder, self._data = folder, data
        self._device, self._speed_device, self._threads = device, speed_device, threads
        self._listeners = listeners
        self._constraints = [Constraint.parse(text) for text in study.constraints]
        # Of trials that have ended, which no longer change: by rung their points, and how many were INFEASIBLE.
        self._ended: dict[int, list[RungPoint]] = {epoch: [] for epoch in study.rung_epochs}
        self._infeasible = 0
        self._running: dict[int, float] = {}  # trial -> hours of its earlier starts
        self._seconds: dict[int, float] = {}  # trial -> those of this start, at its last report
        self._since: dict[int, float] = {}  # trial -> the clock at this start
        self._gpus = gpus
        self._clock, self._began = clock, clock()
        self._seconds_before = store.seconds_run
        # Trial 0 reports the shared warm start when it is on disk; in a later process once more, as it may have gone.
        records = store.records()
        self._warm_is_there = study.warm_epochs is None or any(record.state.finished for record in records[:1])
        self._places = places or Places()
        self.exhausted = False
        self.out_of_time = False
        self.out_of_gpu_hours: Room | None = None
        self.halted: str | None = None
        for record in records:
            if record.state.finished:
                self._has_ended(record)
        self._open = [record.number for record in records if not record.state.finished]
        self._left = [number for number in list(self._open) if self._settled(number)]

    def next(self) -> TrialRequest | Pause:
        """Gives the next trial to run: first what an earlier process left, then new proposals."""
        if len(self._running) >= self.concurrent:
            return Pause.WAIT
        if self.halted is not None:
            return Pause.WAIT if self._running else Pause.FINISHED
        if self._left and (self._left[0] == 0 or self._warm_is_there):
            return self._begin(self._left.pop(0))
        if not self.store.count:
            return self._begin_new(self.store.propose_baseline(self.space))
        if self.baseline_failure is not None:
            return Pause.WAIT if self._running else Pause.FINISHED
        if self.store.reference_ms is None or not self._warm_is_there:
            return Pause.WAIT  # every ratio refers to the baseline's latency, every trial starts from its weights
        # Asked some ten times a second: a space that was searched in vain is not searched again.
        if self._spent() or self.exhausted:
            return Pause.WAIT if self._running else Pause.FINISHED
        proposed = self.store.propose(self.space)
        if proposed is None:
            self.exhausted = True
            return Pause.WAIT if self._running else Pause.FINISHED
        return self._begin_new(proposed)

    def report(self, number: int, report: TrialReport) -> bool:
        """Takes a report; returns whether the trial goes on."""
        record = self.store.record(number)
        if record.state.finished:
            return False
        if report.seconds < self._seconds.get(number, 0.0):  # its process died and was started again
            self._running[number] = record.compute_hours
            self._since[number] = self._clock() - report.seconds
        self._seconds[number] = report.seconds
        seconds = self._running.get(number, 0.0) * 3600 + report.seconds
        self.store.seconds_run = self._seconds_before + self._clock() - self._began
        bad = sorted(name for name, value in report.metrics.items() if not math.isfinite(value))
        if bad:
            values = ", ".join(f"{name} = {report.metrics[name]}" for name in bad)
            where = f"epoch {report.epoch}{' of the shared warm start' if report.phase == 'warm' else ''}"
            self._end(number, TrialState.FAILED, reason=f"not a number: {values} ({where})")
            return False
        place, nodes = self._places.of(number), record.attrs.get("nodes", [])
        if place is not None and place.where.name not in nodes:
            report = replace(report, attrs={**report.attrs, "nodes": [*nodes, place.where.name]})
        if not number and report.phase != "warm":  # which comes before all others
            self._warm_is_there = True
        handle = {
            "warm": self._warm,
            "counted": self._counted,
            "timed": self._timed,
            "epoch": self._epoch,
            "learned": self._learned,
            "swept": self._swept,
            "done": self._done,
        }[report.phase]
        return handle(number, report, seconds)

    def died(self, number: int, reason: str, traceback: str | None = None) -> None:
        """Takes the news that a trial cannot give a result."""
        if not self.store.record(number).state.finished:
            self._end(number, TrialState.FAILED, reason=reason, traceback=traceback)
        self._running.pop(number, None)

    def placed(self, number: int, where: Where) -> None:
        """Takes the news which process a message comes from; the next report keeps its node in ``attrs["nodes"]``."""
        self._places.heard(number, where)

    def postponed(self, number: int, seconds: float = 0.0) -> None:
        """Takes the news that a trial left its place without an end, after ``seconds`` of this start."""
        if number in self._running:
            if seconds > self._seconds.get(number, 0.0):
                self.store.update(number, {}, {}, self._running[number] * 3600 + seconds)
            del self._running[number]
            self._left.insert(0, number)

    def interrupted(self, number: int, reason: str) -> None:
        """Takes the news that a trial lost its process; the record tells how often, and why the last time."""
        record = self.store.record(number)
        if record.state.finished:
            self._running.pop(number, None)
            return
        self.store.interrupted(number, reason)
        self._tell(self.store.record(number))
        self.postponed(number)

    def halt(self, reason: str) -> None:
        """Starts nothing further."""
        self.halted = self.halted or reason

    @property
    def baseline_failure(self) -> str | None:
        """Why the baseline failed, ``None`` when it did not."""
        if not self.store.count or self.store.record(0).state is not TrialState.FAILED:
            return None
        return self.store.record(0).reason or "unknown"

    def _begin_new(self, record: TrialRecord) -> TrialRequest:
        self._open.append(record.number)
        return self._begin(record.number)

    def _begin(self, number: int) -> TrialRequest:
        record = self.store.start(number)
        self._running[number] = record.compute_hours
        self._since[number] = self._clock()
        self._seconds.pop(number, None)
        study = self.study
        speed = None
        learns = self.space.learns(record.knobs)
        # A network that is learned is like no other's; once it was timed, its own start needs no time again.
        known = record.metrics if learns and "latency_ratio" in record.metrics else None
        if not learns:
            known = self.store.speed(self._speed_key(record.knobs))
        if known is not None and "latency_ratio" not in record.metrics:
            # Measured with another design of the same architecture; a trainer that is not asked to time says nothing.
            figures = {name: value for name, value in known.items() if name != _MEASURED_BY}
            attrs = {"speed_from": int(known[_MEASURED_BY])} if known.get(_MEASURED_BY, number) != number else {}
            self.store.update(number, self._in_ms(figures), attrs, record.compute_hours * 3600)
            record = self.store.record(number)
        self._tell(record)
        how = SpeedRequest(
            size=study.speed_size,
            batch=study.speed.batch,
            postprocess=study.speed.postprocess,
            device=self._speed_device,
            pairs=study.speed.pairs,
            seconds=study.speed.seconds,
            lease=str(self._folder / LEASE),
            foreign=study.speed.foreign,
        )
        on_images = self.space.on_images(record.knobs)
        if not on_images and (known is None or (number == 0 and not self.store.reference_ms)):
            speed = how
        settings = dict(enumerate(self.space.sweep(dict(record.knobs))))
        sweep = None
        if on_images or len(settings) > 1:
            done = {point.index for point in record.sweep}
            sweep = SweepRequest(
                settings={index: knobs for index, knobs in settings.items() if index not in done},
                speed=how,
                images=study.speed.images,
                reference=str(self._folder / "trials/0000"),
            )
        return TrialRequest(
            number=number,
            base=study.base,
            knobs=record.knobs,
            data=self._data,
            folder=str(self._folder / record.folder),
            epochs=study.budget.epochs,
            batch=study.training.batch,
            lr=study.training.lr,
            weights=study.weights.from_,
            backbone=study.weights.backbone,
            seed=study.seed,
            device=self._device,
            dtype=study.speed.dtype,
            train_dtype=study.training.dtype,
            threads=self._threads,
            speed=speed,
            count_size=study.speed_size,
            sweep=sweep,
            warm=self._warm_request(),
            heartbeat=study.heartbeat_seconds,
            early_val=self._early_val(),
        )

    def _early_val(self) -> EarlyValidation | None:
        rungs = self.study.rungs
        if rungs is None or rungs.val_images is None:
            return None
        return EarlyValidation(images=rungs.val_images, epochs=self.study.budget.epochs - 1)

    def _warm_request(self) -> WarmRequest | None:
        epochs = self.study.warm_epochs
        return None if epochs is None else WarmRequest(folder=str(self._folder / "warm"), epochs=epochs)

    def _warm(self, number: int, report: TrialReport, seconds: float) -> bool:
        attrs = {"warm_epoch": report.epoch, **report.attrs}
        if "warm_epochs" not in self.store.record(number).attrs:
            attrs["warm_seconds"] = seconds  # what follows is the trial's own time, also where it is reported again
        metrics = {f"warm_{name}": value for name, value in report.metrics.items() if name.startswith("bbox_mAP")}
        self.store.update(number, metrics, attrs, seconds)
        self._warm_is_there = "warm_epochs" in report.attrs
        self._tell(self.store.record(number))
        return True

    def _counted(self, number: int, report: TrialReport, seconds: float) -> bool:
        self.store.update(number, report.metrics, report.attrs, seconds)
        return self._still_feasible(number)

    def _timed(self, number: int, report: TrialReport, seconds: float) -> bool:
        first = report.metrics["reference_ms"] if number == 0 and self.store.reference_ms is None else None
        attrs = {**report.attrs, "speed_kind": self._speed_device}
        self.store.update(number, self._in_ms(report.metrics, first), attrs, seconds)
        # After the trial's own figures: once the speed is known here, no start of it is asked to time again.
        knobs = self.store.record(number).knobs
        if not self.space.learns(knobs):
            self.store.set_speed(self._speed_key(knobs), {**report.metrics, _MEASURED_BY: float(number)})
        if first is not None:
            # Last, since it lets other trials begin, and they share these figures.
            self.store.reference_ms = first
        return self._still_feasible(number)

    def _epoch(self, number: int, report: TrialReport, seconds: float) -> bool:
        self.store.add_epoch(number, EpochRecord(report.epoch, report.metrics, seconds))
        self.store.update(number, {}, report.attrs, seconds)
        if not self._judge(number, report.epoch):
            return False
        self._tell(self.store.record(number))
        return True

    def _judge(self, number: int, epoch: int) -> bool:
        """Decides at a rung who goes on, once: whoever reports the epoch again hears the same.

        After a rung of ``like_speed`` a trial is judged again at each epoch but the last, by what has been at that rung
        since: who came early passed few rivals.
        """
        rungs = self.study.rungs
        passed = [rung for rung in self.study.rung_epochs if rung <= epoch]
        if rungs is None or not passed or epoch >= self.study.budget.epochs:
            return True
        again = epoch != passed[-1]
        if again and rungs.method != "like_speed":
            return True
        decided = self.store.record(number).rungs.get(epoch)
        if decided is None:
            points = {point.number: point for point in self._points(passed[-1])}
            if number not in points:  # its epochs up to there are not in the store
                return True
            decision = decide(points.pop(number), list(points.values()), rungs.factor, rungs.method)
            decided = f"{'continue' if decision.go_on else 'stop'}: {decision.reason}"
            decided += f", by now, at the rung of epoch {passed[-1]}" if again else ""
            self.store.add_rung(number, epoch, decided)
        if decided.startswith("stop"):
            self._end(number, TrialState.STOPPED, reason=f"at epoch {epoch}: {decided.partition(': ')[2]}")
            return False
        return True

    def _settled(self, number: int) -> bool:
        """Ends a trial that was to end when a kill came, and returns whether there is more of it to run.

        Between a figure and the decision that it means. At a rung the decision rests on what was there then, so it is
        made before anyone else is heard.
        """
        record = self.store.record(number)
        if not self._feasible(record):
            return False
        return not record.curve or self._judge(number, record.curve[-1].epoch)

    def _learned(self, number: int, report: TrialReport, seconds: float) -> bool:
        self.store.update(number, report.metrics, report.attrs, seconds)
        self._tell(self.store.record(number))
        return True

    def _swept(self, number: int, report: TrialReport, seconds: float) -> bool:
        record = self.store.record(number)
        index, rest = report.attrs["index"], {key: value for key, value in report.attrs.items() if key != "index"}
        knobs = self.space.sweep(dict(record.knobs))[index]
        metrics = self._in_ms(report.metrics)
        figures = {**record.metrics, **metrics}
        broken = [str(item) for item in self._constraints if (item.excess(figures) or 0) > 0]
        if index == 0:
            # What was counted before training was for every position of every level.
            self.store.update(number, metrics, {key: value for key, value in rest.items() if key != "time"}, seconds)
        self.store.add_point(number, SweepPoint(index, knobs, metrics, broken))
        # Where its time goes is each setting's own, while the rest is the training's.
        own = {f"time.{index}": rest["time"]} if "time" in rest else {}
        self.store.update(number, {}, own, seconds)
        self._tell(self.store.record(number))
        return True

    def _done(self, number: int, report: TrialReport, seconds: float) -> bool:
        self.store.update(number, report.metrics, report.attrs, seconds)
        record = self.store.record(number)
        metrics = record.metrics
        if record.sweep and all(point.broken for point in record.sweep):
            broken = "; ".join(record.sweep[0].broken)
            self._end(
                number, TrialState.INFEASIBLE, reason=f"must hold at some setting of its inference knobs: {broken}"
            )
            return False
        missing = [item.metric for item in self.study.objectives if item.metric not in metrics]
        if missing:
            why = f"the objective {missing[0]} has no value"
            if missing[0].startswith("bbox_mAP_"):
                why += "; the validation split has no object of that size"
            self._end(number, TrialState.FAILED, reason=why)
        else:
            self._end(number, TrialState.COMPLETE)
        return False

    def _still_feasible(self, number: int) -> bool:
        record = self.store.record(number)
        if not self._feasible(record):
            return False
        self._tell(record)
        return True

    def _feasible(self, record: TrialRecord) -> bool:
        """Ends a trial that breaks a constraint; the baseline may."""
        constraints = self._constraints
        if self.space.on_images(record.knobs):
            # Multiply-adds and latency are known once the trained detector ran on images; the sweep judges them.
            constraints = [item for item in constraints if item.metric in _STATIC]
        broken = [item for item in constraints if (item.excess(record.metrics) or 0) > 0]
        if not broken or record.baseline:
            return True
        values = "; ".join(f"{item}, but it is {record.metrics[item.metric]:.4g}" for item in broken)
        self._end(record.number, TrialState.INFEASIBLE, reason=f"must hold: {values}")
        return False

    def _end(self, number: int, state: TrialState, *, reason: str | None = None, traceback: str | None = None) -> None:
        metrics = self.store.record(number).metrics
        excesses = {str(item): item.excess(metrics) for item in self._constraints}
        known = {name: excess for name, excess in excesses.items() if excess is not None}
        record = self.store.finish(number, state, reason=reason, traceback=traceback, broken=known)
        if number in self._open:
            self._open.remove(number)
            self._has_ended(record)
        self._tell(record)
        self._running.pop(number, None)

    def _in_ms(self, metrics: Mapping[str, float], reference: float | None = None) -> dict[str, float]:
        """Milliseconds are the ratio times the baseline's reference latency, the store's unless given."""
        reference = self.store.reference_ms if reference is None else reference
        named = {key: value for key, value in metrics.items() if key != "reference_ms"}
        if "latency_ratio" in named and reference is not None:
            named["latency_ms"] = named["latency_ratio"] * reference
        return named

    def _points(self, epoch: int) -> list[RungPoint]:
        """All trials at a rung."""
        open_ones = (self._point(self.store.record(number), epoch) for number in self._open)
        return [*self._ended[epoch], *(point for point in open_ones if point is not None)]

    def _has_ended(self, record: TrialRecord) -> None:
        self._infeasible += record.state is TrialState.INFEASIBLE
        for epoch, points in self._ended.items():
            point = self._point(record, epoch)
            if point is not None:
                points.append(point)

    def _point(self, record: TrialRecord, epoch: int) -> RungPoint | None:
        at_rung = next((item.metrics for item in record.curve if item.epoch == epoch), None)
        if at_rung is None:
            return None
        late = self.space.on_images(record.knobs)
        # While a network learns, what it will cost is not known, not even to those that come here later.
        learning = self.space.learns(record.knobs) and epoch <= record.attrs.get("learning_epochs", epoch)
        costs = tuple(
            None if learning or (late and item.metric not in _STATIC) else record.metrics.get(item.metric)
            for item in self.study.objectives[1:]
            if item.direction == "minimize"
        )
        accuracies = [item.metric for item in self.study.objectives if item.direction == "maximize"]
        return RungPoint(record.number, tuple(at_rung.get(metric, 0.0) for metric in accuracies), costs)

    def _speed_key(self, knobs: Mapping[str, Any]) -> str:
        return f"{design_hash(self.space.architecture(knobs))}:{self._speed_device}"

    def _spent(self) -> bool:
        hours = self.study.budget.hours
        elapsed = self._seconds_before + self._clock() - self._began
        self.out_of_time = hours is not None and elapsed >= hours * 3600
        return (
            self.out_of_time
            or self.store.count - self._infeasible >= self.study.budget.trials
            or self._infeasible >= _INFEASIBLE_PER_TRIAL * self.study.budget.trials
            or self._no_gpu_hours()
        )

    def _no_gpu_hours(self) -> bool:
        budget = self.study.budget
        if budget.gpu_hours is None:
            return False
        now = self._clock()
        running = {number: hours + (now - self._since[number]) / 3600 for number, hours in self._running.items()}
        left = room(self.store.records(), running, epochs=budget.epochs, gpus=self._gpus, budget=budget.gpu_hours)
        self.out_of_gpu_hours = None if left.enough(alone=not running) else left
        return self.out_of_gpu_hours is not None

    def _tell(self, record: TrialRecord) -> None:
        for listener in self._listeners:
            listener(record)
