"""Makes a table of a study that was run, and trial records of a table."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.record import EpochRecord, SweepPoint, TrialRecord, TrialState
from search.store import Store
from search.study import Constraint, Study
from spaces.errors import UserError
from spaces.space import Space
from trainers.replay import Entry, Row, Table

# What a ``timed`` report gives; milliseconds follow from the ratio.
_TIMED = ("latency_ratio", "latency_pairs", "aa_ratio", "measured_ms")
_DERIVED = ("latency_ms",)
# Counted again on images by the sweep.
_COUNTED_AGAIN = ("gmacs", "head_gmacs")


def record(study: Study, store: Store, out: Path) -> Table:
    """Writes the table of a study: what ``headway record`` does.

    Args:
        study: The study file as it was run.
        store: The study's.
        out: The file, ``.parquet``.

    Raises:
        UserError: ``out`` has another ending or cannot be written, or the baseline is not COMPLETE.
    """
    if out.suffix != ".parquet":
        raise UserError(f"--out: must name a .parquet file, but got '{out}'.")
    table = make_table(study, store.records(), store.reference_ms, out.name)
    table.write(out)
    return table


def make_table(study: Study, records: Sequence[TrialRecord], reference_ms: float | None, name: str) -> Table:
    """Makes a table of all trials that have ended.

    The record has the time of a trial at each epoch and at its end, so what building, counting and timing took
    together is the time of its first epoch less what that epoch trained and validated. A trial whose latency came from
    another design of the same architecture did not spend time on timing: building and counting take the median of such
    trials in those that were timed, and the rest is timing, whose median stands in the rows of those that were not
    (``Row.shared``). Where every trial was timed, timing takes the study's ``speed.seconds`` or all there is. The time
    after the last epoch is that of the settings of the inference knobs, in equal parts, or else of the ``done`` row.

    Args:
        study: The study file as it was run.
        records: All its trials.
        reference_ms: The baseline's latency.
        name: What messages call the table.

    Raises:
        UserError: The baseline is not COMPLETE: without it there is nothing to compare with.
    """
    ended = [record for record in records if record.state.finished]
    if reference_ms is None or not ended or not ended[0].baseline or ended[0].state is not TrialState.COMPLETE:
        state = records[0].state.value if records else "not there yet"
        raise UserError(f"{study.name}: must have a COMPLETE baseline to be recorded, but trial 0 is {state}.")
    starts = _Starts.of(ended, study.speed.seconds)
    epochs = study.budget.epochs
    baseline = ended[0]
    warm = _warm(baseline)
    told = study.dump()
    # Addresses may hold credentials, and a replay has its own.
    told["storage"], told["tracking"] = None, {"uri": None, "experiment": None}
    about = {
        "recorded": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "states": dict(Counter(record.state.value for record in ended)),
        "left_out": len(records) - len(ended),
        "partial": sum(0 < len(record.curve) < epochs for record in ended),
        "warm": None if warm is None else {"epochs": warm.epoch, "seconds": warm.seconds},
        **{key: baseline.attrs.get(key) for key in ("versions", "device", "speed_device", "speed_kind")},
    }
    entries = tuple(
        Entry(
            trial=record.number,
            state=record.state.value,
            reason=record.reason,
            knobs=dict(record.knobs),
            rows=tuple(_rows(record, starts, epochs)),
        )
        for record in ended
    )
    return Table(name=name, study=told, reference_ms=reference_ms, entries=entries, about=about)


def table_records(table: Table, study: Study, space: Space) -> list[TrialRecord]:
    """Gives the designs of a table as the records that the study had, each with its own time.

    A trial's time is that of its rows without a timing that another design did.
    """
    constraints = [Constraint.parse(text) for text in study.constraints]
    return [_record(table, entry, space, constraints) for entry in table.entries]


@dataclass(frozen=True)
class _Starts:
    """Seconds before the first epoch.

    Attributes:
        counting: Building and counting, the median of the trials that were not timed; ``None`` when all were.
        timing: Timing, the median of the trials that were timed.
        longest: What timing takes where nothing tells it from counting.
    """

    counting: float | None
    timing: float
    longest: float

    @classmethod
    def of(cls, records: Sequence[TrialRecord], longest: float) -> _Starts:
        usual = [record for record in records if record.state is not TrialState.FAILED and not _learns(record)]
        shared = [_start_seconds(record) for record in usual if _shares(record)]
        counting = statistics.median(shared) if shared else None
        found = cls(counting, longest, longest)
        timed = [found.split(record)[1] for record in usual if _timed_itself(record)]
        return cls(counting, statistics.median(timed) if timed else longest, longest)

    def split(self, record: TrialRecord) -> tuple[float, float]:
        """Gives the seconds of counting and of timing."""
        seconds = _start_seconds(record)
        if not _timed_itself(record):
            return seconds, self.timing
        timing = min(seconds, self.longest) if self.counting is None else max(0.0, seconds - self.counting)
        return seconds - timing, timing


def _rows(record: TrialRecord, starts: _Starts, epochs: int) -> Iterator[Row]:
    """The reports of a trial, as its trainer gave them."""
    before = _known_before(record)
    counted = {name: value for name, value in before.items() if not _is_timed(name) and not _is_learned(name)}
    timed = {name: value for name, value in before.items() if _is_timed(name)}
    learned = {name: value for name, value in before.items() if _is_learned(name)}
    learning = int(record.attrs.get("learning_epochs", 0))
    warm = _warm(record)
    if warm is not None:
        yield warm
    # A network that is learned is counted and timed once it is settled; what that took is part of ``learned``.
    seconds, timing = (0.0, 0.0) if _learns(record) else starts.split(record)
    known = []
    if counted or not record.curve:
        known.append(Row(phase="counted", epoch=0, seconds=seconds, metrics=counted))
    if timed:
        known.append(Row(phase="timed", epoch=0, seconds=timing, shared=not _timed_itself(record), metrics=timed))
    if not _learns(record):
        yield from known
    last = (warm.seconds if warm else 0.0) + (_start_seconds(record) if known and not _learns(record) else 0.0)
    end = record.compute_hours * 3600
    for item in record.curve:
        spent = max(0.0, item.seconds - last)
        last = max(last, item.seconds)
        if learning and item.epoch == learning + 1:
            own = min(spent, _own_seconds(item))
            yield Row(phase="learned", epoch=learning, seconds=spent - own, metrics=learned)
            yield from known
            spent = own
        yield Row(phase="epoch", epoch=item.epoch, seconds=spent, metrics=dict(item.metrics))
    if learning and record.curve and record.curve[-1].epoch == learning:
        yield Row(phase="learned", epoch=learning, seconds=max(0.0, end - last), metrics=learned)
        yield from known
        last = max(last, end)
    after = max(0.0, end - last)
    for point in record.sweep:
        figures = {name: value for name, value in point.metrics.items() if name not in _DERIVED}
        share = after / len(record.sweep)
        yield Row(phase="swept", epoch=epochs, point=point.index, seconds=share, metrics=figures)
    # A sweep that no setting of which meets the constraints ends INFEASIBLE, after the same reports.
    if record.state is TrialState.COMPLETE or (record.state is TrialState.INFEASIBLE and record.sweep):
        yield Row(phase="done", epoch=epochs, seconds=0.0 if record.sweep else after)


def _known_before(record: TrialRecord) -> dict[str, float]:
    """The figures that are not of an epoch, as they were before the sweep put its own in their place."""
    of_epochs = set(record.curve[-1].metrics) if record.curve else set()
    swept = set(record.sweep[0].metrics) if record.sweep else set()
    known = {
        name: value
        for name, value in record.metrics.items()
        if name not in of_epochs | swept and name not in _DERIVED and not name.startswith("warm_")
    }
    if swept & set(_COUNTED_AGAIN) and "cost" in record.attrs:
        macs = record.attrs["cost"]["macs"]
        beyond = sum(value for part, value in macs["parts"].items() if part not in ("backbone", "neck"))
        known |= {"gmacs": macs["total"] / 1e9, "head_gmacs": beyond / 1e9}
    return known


def _warm(record: TrialRecord) -> Row | None:
    """The shared warm start that trial 0 trained."""
    epochs = record.attrs.get("warm_epochs")
    if epochs is None:
        return None
    seconds = float(record.attrs["warm_seconds"])
    if record.curve:
        # A trial that was started again repeats the report later.
        seconds = min(seconds, max(0.0, record.curve[0].seconds - _own_seconds(record.curve[0])))
    return Row(phase="warm", epoch=int(epochs), seconds=seconds, metrics=dict(record.attrs["warm_metrics"]))


def _start_seconds(record: TrialRecord) -> float:
    """What building, counting and timing took."""
    warm = _warm(record)
    before = warm.seconds if warm else 0.0
    if not record.curve:
        return max(0.0, record.compute_hours * 3600 - before)
    first = record.curve[0]
    return max(0.0, first.seconds - _own_seconds(first) - before)


def _own_seconds(epoch: EpochRecord) -> float:
    return epoch.metrics.get("train_seconds", 0.0) + epoch.metrics.get("val_seconds", 0.0)


def _timed_itself(record: TrialRecord) -> bool:
    return "speed_kind" in record.attrs


def _shares(record: TrialRecord) -> bool:
    return not _timed_itself(record) and "latency_ratio" in _known_before(record)


def _learns(record: TrialRecord) -> bool:
    return "learning_epochs" in record.attrs


def _is_timed(name: str) -> bool:
    return name.startswith(_TIMED)


def _is_learned(name: str) -> bool:
    return name.startswith(("learned_", "decomposed_", "learning_latency_ratio"))


def _record(table: Table, entry: Entry, space: Space, constraints: Sequence[Constraint]) -> TrialRecord:
    metrics: dict[str, float] = {}
    curve: list[EpochRecord] = []
    spent = 0.0
    for row in entry.rows:
        spent += 0.0 if row.shared else row.seconds
        if row.phase == "epoch":
            curve.append(EpochRecord(row.epoch, row.metrics, spent))
        elif row.phase in ("counted", "timed", "learned"):
            metrics |= _in_ms(row.metrics, table.reference_ms)
    metrics = {**(curve[-1].metrics if curve else {}), **metrics}
    settings = space.sweep(dict(entry.knobs))
    points = []
    for row in entry.rows:
        if row.phase == "swept" and row.point is not None and row.point < len(settings):
            figures = _in_ms(row.metrics, table.reference_ms)
            excesses = {str(item): item.excess({**metrics, **figures}) for item in constraints}
            broken = [name for name, excess in excesses.items() if (excess or 0) > 0]
            points.append(SweepPoint(row.point, settings[row.point], figures, broken))
    if points and points[0].index == 0:
        metrics |= points[0].metrics
    return TrialRecord(
        number=entry.trial,
        state=TrialState(entry.state),
        knobs=dict(entry.knobs),
        metrics=metrics,
        curve=curve,
        reason=entry.reason,
        compute_hours=spent / 3600,
        sweep=points,
    )


def _in_ms(metrics: Mapping[str, float], reference_ms: float) -> dict[str, float]:
    """Milliseconds are the ratio times the baseline's reference latency."""
    named = dict(metrics)
    if "latency_ratio" in named:
        named["latency_ms"] = named["latency_ratio"] * reference_ms
    return named
