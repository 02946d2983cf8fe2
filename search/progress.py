"""What a running study prints: a line for each event, with the time left."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TextIO

from analysis.record import TrialRecord, TrialState
from search.eta import Eta, clock, left_in_words
from search.study import Study


def say(text: str) -> None:
    """Prints a line for the user at once, on standard error."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Listens to a conductor.

    Args:
        study: The study file.
        done: Trials that had ended before this start.
        stream: Where to print.
    """

    def __init__(self, study: Study, done: int, stream: TextIO) -> None:
        self._study, self._stream = study, stream
        self.eta = Eta(study.budget.trials, done)
        self._last: dict[int, TrialRecord] = {}

    def __call__(self, record: TrialRecord) -> None:
        """Prints the event that made ``record``."""
        before = self._last.get(record.number)
        self._last[record.number] = record
        epochs = len(record.curve)
        if record.state.finished:
            if before is not None and before.state is record.state:
                return
            if record.state is not TrialState.INFEASIBLE:
                self.eta.ended(record.number)
            self.say(f"trial {record.number:>3}  {_ending(record)}")
        elif before is None:
            self.eta.resumed(record.number, epochs / self._study.budget.epochs)
            begun = epochs or record.attrs.get("warm_epoch")
            self.say(f"trial {record.number:>3}  {'continues' if begun else 'starts'}: {describe(record)}")
        elif record.attrs.get("interruptions") != before.attrs.get("interruptions"):
            at = f"epoch {epochs}" if epochs else "its start"
            self.say(f"trial {record.number:>3}  interrupted: {record.attrs['interrupted']}; continues from {at}")
        elif record.attrs.get("warm_epoch") and record.attrs.get("warm_epoch") != before.attrs.get("warm_epoch"):
            self.eta.aside()
            at = f"{record.attrs['warm_epoch']}/{self._study.warm_epochs}"
            reached = f"AP {100 * record.metrics.get('warm_bbox_mAP', 0.0):.1f} %"
            self.say(f"trial {record.number:>3}  shared warm start, epoch {at}  {reached}")
        elif record.sweep:
            self.say(f"trial {record.number:>3}  measured: {_setting(record)}")
        elif epochs > len(before.curve):
            self.eta.reached(record.number, epochs / self._study.budget.epochs)
            self.say(f"trial {record.number:>3}  epoch {epochs}/{self._study.budget.epochs}  {_accuracy(record)}")
        elif "learning_epochs" in record.attrs and "learning_epochs" not in before.attrs:
            self.say(f"trial {record.number:>3}  settled: {_settled(record)}")
        elif "latency_ratio" in record.metrics and "latency_ratio" not in before.metrics:
            self.say(f"trial {record.number:>3}  timed: {_speed(record)}")

    def say(self, text: str) -> None:
        """Prints a line with the time and what is left."""
        eta = self.eta
        where = f"{clock(eta.seconds)}  {eta.done}/{eta.total} trials{left_in_words(eta.left())}"
        with suppress(OSError):  # a line that nobody can take, its disk being full, ends no search
            print(f"[{where}] {text}", file=self._stream, flush=True)


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
