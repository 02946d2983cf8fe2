"""What a running study prints: a line for each event, with the time left."""

from __future__ import annotations

import time
from typing import TextIO

from analysis.record import TrialRecord, TrialState
from search.study import Study


class Progress:
    """Listens to a conductor.

    Args:
        study: The study file.
        done: Trials that had ended before this start.
        stream: Where to print.
    """

    def __init__(self, study: Study, done: int, stream: TextIO) -> None:
        self._study, self._stream = study, stream
        self._began = time.monotonic()
        self._done = done
        self._trained: dict[int, float] = {}  # trial -> share of its epochs, a trial that ended counting as 1
        self._before: dict[int, float] = {}
        self._done_here = self._under_way = 0.0  # sums over those that were trained here, in trials
        self._last: dict[int, TrialRecord] = {}
        self._warming = 0.0  # seconds of this start that went into the shared warm start, and into no trial's epochs

    def __call__(self, record: TrialRecord) -> None:
        """Prints the event that made ``record``."""
        before = self._last.get(record.number)
        self._last[record.number] = record
        epochs = len(record.curve)
        if record.state.finished:
            if before is not None and before.state is record.state:
                return
            if record.state is not TrialState.INFEASIBLE:
                self._train(record.number, 1.0)
                self._done += 1
            self.say(f"trial {record.number:>3}  {_ending(record)}")
        elif before is None:
            self._before[record.number] = epochs / self._study.budget.epochs
            begun = epochs or record.attrs.get("warm_epoch")
            self.say(f"trial {record.number:>3}  {'continues' if begun else 'starts'}: {describe(record)}")
        elif record.attrs.get("warm_epoch") and record.attrs.get("warm_epoch") != before.attrs.get("warm_epoch"):
            self._warming = time.monotonic() - self._began
            at = f"{record.attrs['warm_epoch']}/{self._study.warm_epochs}"
            reached = f"AP {100 * record.metrics.get('warm_bbox_mAP', 0.0):.1f} %"
            self.say(f"trial {record.number:>3}  shared warm start, epoch {at}  {reached}")
        elif record.sweep:
            self.say(f"trial {record.number:>3}  measured: {_setting(record)}")
        elif epochs > len(before.curve):
            self._train(record.number, epochs / self._study.budget.epochs)
            self.say(f"trial {record.number:>3}  epoch {epochs}/{self._study.budget.epochs}  {_accuracy(record)}")
        elif "learning_epochs" in record.attrs and "learning_epochs" not in before.attrs:
            self.say(f"trial {record.number:>3}  settled: {_settled(record)}")
        elif "latency_ratio" in record.metrics and "latency_ratio" not in before.metrics:
            self.say(f"trial {record.number:>3}  timed: {_speed(record)}")

    def _train(self, number: int, share: float) -> None:
        before = self._trained.get(number)
        self._trained[number] = share
        self._done_here += share - (self._before.get(number, 0.0) if before is None else before)
        self._under_way += (share if share < 1 else 0.0) - (before if before is not None and before < 1 else 0.0)

    def say(self, text: str) -> None:
        """Prints a line with the time and what is left."""
        seconds = time.monotonic() - self._began
        total = self._study.budget.trials
        left = ""
        if self._done_here >= 0.5 and self._done < total:
            a_trial = (seconds - self._warming) / self._done_here
            left = f", about {clock(a_trial * (total - self._done - self._under_way))} left"
        print(f"[{clock(seconds)}  {self._done}/{total} trials{left}] {text}", file=self._stream, flush=True)


def describe(record: TrialRecord) -> str:
    """The design in one line."""
    if record.baseline:
        return "the baseline"
    design = ", ".join(f"{key}={_value(value)}" for key, value in record.knobs.items())
    return f"{record.attrs['name']}: {design}" if record.attrs.get("name") else design


def _setting(record: TrialRecord) -> str:
    """The setting of inference knobs that was measured last, with its figures."""
    last = record.sweep[-1]
    other = {key: value for key, value in last.knobs.items() if record.knobs.get(key) != value}
    named = ", ".join(f"{key}={_value(value)}" for key, value in other.items()) or "as validated in training"
    ratio = last.metrics.get("latency_ratio")
    speed = "" if ratio is None else f"  latency {ratio:.3f} x baseline"
    return f"{named}  AP {100 * last.metrics.get('bbox_mAP', 0.0):.1f} %{speed}"


def _value(value: object) -> str:
    return "[" + ",".join(str(item) for item in value) + "]" if isinstance(value, list) else str(value)


def _ending(record: TrialRecord) -> str:
    figures = "  ".join(text for text in (_accuracy(record), _speed(record)) if text)
    reason = f": {record.reason}" if record.reason else ""
    return f"{record.state.value}  {figures}{reason}"


def _settled(record: TrialRecord) -> str:
    """What was learned, before and after it became a network without learning."""
    steps = (("learned", "learned_bbox_mAP"), ("settled", "decomposed_bbox_mAP"))
    return ", ".join(f"AP {100 * record.metrics[name]:.1f} % {how}" for how, name in steps if name in record.metrics)


def _accuracy(record: TrialRecord) -> str:
    value = record.metrics.get("bbox_mAP")
    return "" if value is None else f"AP {100 * value:.1f} %"


def _speed(record: TrialRecord) -> str:
    metrics = record.metrics
    if "latency_ms" not in metrics:
        return ""
    return f"latency {metrics['latency_ratio']:.3f} x baseline = {metrics['latency_ms']:.1f} ms"


def clock(seconds: float) -> str:
    """A time in words: ``1:05`` or ``2:01:05``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
