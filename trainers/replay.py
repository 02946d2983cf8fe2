"""A trainer that answers from a recorded table, with simulated time.

A table is the log of a study's trials, one row a report of their trainer; ``headway record`` makes it of a study that
was run. Each design has rows in the order of the trainer's phases: ``warm`` (of trial 0, the shared warm start as a
whole), ``counted`` and ``timed`` (both at epoch 0: costs, and the latency ratio with its quartiles), one ``epoch`` an
epoch, ``learned`` where a part of the network is learned first, one ``swept`` a setting of the inference knobs, and
``done``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
from pyarrow import parquet

from spaces.errors import UserError
from spaces.space import design_hash
from trainers.contract import Phase, Report, TrialFailed, TrialReport, TrialRequest

FORMAT = 1
"""Version of the file's layout."""
VARIABLE = "HEADWAY_TABLE"
"""Environment variable with the path of the table that ``train`` answers from."""
_METADATA = b"headway"
_COLUMNS = {
    "trial": pa.int32(),
    "state": pa.string(),
    "reason": pa.string(),
    "design": pa.string(),
    "knobs": pa.string(),
    "phase": pa.string(),
    "epoch": pa.int32(),
    "point": pa.int32(),
    "seconds": pa.float64(),
    "shared": pa.bool_(),
}
_DONE = "replayed.json"


@dataclass(frozen=True)
class Step:
    """One step of a simulated trial.

    Attributes:
        seconds: Simulated time since the step before.
        report: What the trainer reports at its end.
    """

    seconds: float
    report: TrialReport


@dataclass(frozen=True, kw_only=True)
class Row:
    """One report of a recorded trial.

    Attributes:
        phase: That of the report.
        epoch: Finished epochs; of a ``warm`` row those of the warm start.
        point: Index of the setting of a ``swept`` row, else ``None``.
        seconds: Time since the row before.
        shared: The latency of this ``timed`` row was taken from another design of the same architecture; ``seconds``
            is then what timing takes as a rule.
        metrics: As the trainer reported them, but for ``reference_ms``, which the table has once.
    """

    phase: Phase
    epoch: int
    point: int | None = None
    seconds: float = 0.0
    shared: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One recorded design.

    Attributes:
        trial: Its number in the recorded study; 0 is the baseline.
        state: How it ended, by the names of ``TrialState``.
        reason: Why, for all but COMPLETE.
        knobs: Canonical design.
        rows: Its reports, in order.
    """

    trial: int
    state: str
    reason: str | None = None
    knobs: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def epochs(self) -> int:
        """Epochs of its curve."""
        return sum(row.phase == "epoch" for row in self.rows)

    @property
    def seconds(self) -> float:
        """Time of the whole trial, its own timing included also where it took its latency from another design."""
        return sum(row.seconds for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A recorded study.

    Attributes:
        name: What messages call it.
        study: The study file as it was run, with defaults filled in.
        reference_ms: The baseline's latency in ms, to which all ratios refer.
        entries: The recorded designs, by trial.
        about: Where it comes from: ``recorded`` (when), ``states`` (designs by state), ``left_out`` (trials that had
            not ended), ``partial`` (designs whose curve is shorter than the budget), ``warm`` (``epochs`` and
            ``seconds`` of the shared warm start, or ``None``), ``versions``, ``device``, ``speed_device``,
            ``speed_kind``.
    """

    name: str
    study: Mapping[str, Any]
    reference_ms: float
    entries: tuple[Entry, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def by_design(self) -> Mapping[str, Entry]:
        """The entries by ``design_hash``."""
        return {design_hash(entry.knobs): entry for entry in self.entries}

    @property
    def epochs(self) -> int:
        """Epochs of a trial that is never stopped."""
        return int(self.study["budget"]["epochs"])

    def steps(self, request: TrialRequest, *, after: int = 0) -> Iterator[Step]:
        """Answers a request, with the metrics that were recorded and simulated time.

        Gives the steps of the phases that were asked for: latency, and its time, only with ``request.speed``; settings
        of inference knobs only those in ``request.sweep``; the shared warm start, in one step, only for trial 0 and
        with ``request.warm``. A report's ``seconds`` are those of this trial so far.

        Args:
            request: The trial. Its ``seed`` changes nothing: each design was trained once.
            after: Epoch that an earlier start came to. Its report is repeated, and what came before costs no time, but
                for a latency that is asked for again.

        Raises:
            TrialFailed: The design FAILED when it was recorded, with the recorded reason; or it was not recorded, or
                not as far or not in the way that is asked for.
        """
        entry = self._entry(request)
        begin = next((place for place, row in enumerate(entry.rows) if after and _is_epoch(row, after)), -1)
        spent = 0.0
        for place, row in enumerate(entry.rows):
            past = place < begin
            if not _asked(row, request) or (past and row.phase == "epoch"):
                continue
            if past and row.phase == "counted" and request.speed is None:
                continue
            if row.phase == "done":
                self._check_swept(entry, request)
            seconds = 0.0 if place == begin or (past and row.phase in ("warm", "learned")) else row.seconds
            spent += seconds
            yield Step(seconds, self._report(entry, row, spent, resumed=place == begin))
            if row.phase == "counted" and request.speed is not None and not _has(entry, "timed"):
                raise TrialFailed(f"{self.name} has no latency of this design: {_ending(entry)}")
        if entry.state == "FAILED":
            raise TrialFailed(entry.reason or "it failed when it was recorded")
        if not _has(entry, "done"):
            raise TrialFailed(f"{self.name} has this design only up to epoch {entry.epochs}: {_ending(entry)}")

    def _entry(self, request: TrialRequest) -> Entry:
        if request.epochs != self.epochs:
            raise TrialFailed(f"{self.name} was recorded with {self.epochs} epochs, but the trial has {request.epochs}")
        warm, asked = self.about.get("warm"), request.warm
        if (warm["epochs"] if warm else None) != (asked.epochs if asked else None):
            told = [
                f"{epochs} epochs" if epochs else "no" for epochs in (warm and warm["epochs"], asked and asked.epochs)
            ]
            raise TrialFailed(
                f"{self.name} was recorded with {told[0]} of a shared warm start, but the trial has {told[1]}"
            )
        entry = self.by_design.get(design_hash(request.knobs))
        if entry is None:
            raise TrialFailed(f"{self.name} has no recording of the design {json.dumps(dict(request.knobs))}")
        return entry

    def _check_swept(self, entry: Entry, request: TrialRequest) -> None:
        asked = request.sweep.settings if request.sweep else {}
        missing = sorted(set(asked) - {row.point for row in entry.rows if row.phase == "swept"})
        if missing:
            raise TrialFailed(
                f"{self.name} has no measurement of setting {missing[0]} of the inference knobs: "
                f"{json.dumps(dict(asked[missing[0]]))}"
            )

    def _report(self, entry: Entry, row: Row, seconds: float, resumed: bool) -> TrialReport:
        metrics, attrs = dict(row.metrics), dict[str, Any]()
        if row.phase == "warm":
            attrs = {"warm_epochs": row.epoch, "warm_metrics": dict(metrics)}
        elif row.phase == "counted":
            attrs = {"replayed": entry.trial}
        elif row.phase == "timed":
            metrics["reference_ms"] = self.reference_ms
        elif row.phase == "learned":
            attrs = {"learning_epochs": row.epoch}
        elif row.phase == "swept":
            attrs = {"index": row.point}
        if resumed:
            attrs["resumed"] = True
        return TrialReport(phase=row.phase, epoch=row.epoch, metrics=metrics, seconds=seconds, attrs=attrs)

    def write(self, path: Path) -> None:
        """Writes the table as a Parquet file that is there whole or not at all.

        Raises:
            UserError: It cannot be written.
        """
        rows = [(entry, row) for entry in self.entries for row in entry.rows]
        design = {entry.trial: (design_hash(entry.knobs), json.dumps(dict(entry.knobs))) for entry in self.entries}
        fixed = [
            (entry.trial, entry.state, entry.reason, *design[entry.trial], row.phase, row.epoch, row.point,
             row.seconds, row.shared)
            for entry, row in rows
        ]  # fmt: skip
        columns = {
            name: pa.array([values[place] for values in fixed], kind)
            for place, (name, kind) in enumerate(_COLUMNS.items())
        }
        for name in sorted({name for _, row in rows for name in row.metrics}):
            columns[name] = pa.array([row.metrics.get(name) for _, row in rows], pa.float64())
        told = {"format": FORMAT, "study": self.study, "reference_ms": self.reference_ms, **self.about}
        table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(told).encode()})
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            parquet.write_table(table, temporary, compression="zstd", compression_level=19)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(f"table: must be writable, but {path} gives: {error.strerror or error}.") from error

    @classmethod
    def read(cls, path: Path) -> Table:
        """Reads what ``write`` wrote.

        Raises:
            UserError: It is no such file, or a newer Headway wrote it.
        """
        if not path.is_file():
            raise UserError(f"table: must be a file that 'headway record' wrote, but there is no file {path}.")
        try:
            found = parquet.read_table(path)
        except (pa.ArrowException, OSError) as error:
            why = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"table: must be a Parquet file, but {path} gives: {why}.") from error
        try:
            told = json.loads((found.schema.metadata or {})[_METADATA])
            version = told.pop("format")
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"table: must be a file that 'headway record' wrote, but {path} is another Parquet file."
            ) from error
        if version != FORMAT:
            raise UserError(f"table: must have format {FORMAT}, but {path} has {version}; a newer Headway wrote it.")
        missing = [name for name in _COLUMNS if name not in found.column_names]
        if missing or not {"study", "reference_ms"} <= told.keys():
            raise UserError(
                f"table: must be whole, but {path} lacks {', '.join(missing) or 'its study file'}; record it again."
            )
        study, reference_ms = told.pop("study"), float(told.pop("reference_ms"))
        return cls(
            name=path.name, study=study, reference_ms=reference_ms, entries=_entries(found.to_pylist()), about=told
        )


def train(request: TrialRequest, report: Report) -> None:
    """Runs one trial from the table that ``$HEADWAY_TABLE`` names, at once; the ``Trainer`` protocol.

    The variable must be there in the trials' processes, the path be absolute. The epoch that was reported last is kept
    in the trial's folder, so that a trial whose process died goes on from it.

    Raises:
        UserError: There is no table.
        TrialFailed: See ``Table.steps``.
        StopTrial: ``report`` raised it.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        raise UserError(f"{VARIABLE}: must name a table that 'headway record' wrote, but it is not set.")
    table = Table.read(Path(named))
    mark = {"design": design_hash(request.knobs), "epochs": request.epochs}
    folder = Path(request.folder)
    folder.mkdir(parents=True, exist_ok=True)
    done = _last_epoch(folder / _DONE, mark)
    for step in table.steps(request, after=done):
        if step.report.phase == "epoch" and step.report.epoch > done:
            temporary = folder / f".{_DONE}.tmp"
            temporary.write_text(json.dumps({**mark, "epoch": step.report.epoch}), encoding="utf-8")
            os.replace(temporary, folder / _DONE)
        report(step.report)


def _last_epoch(file: Path, mark: Mapping[str, Any]) -> int:
    """The epoch that an earlier start came to, 0 where there was none or it was another design's."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0
    epoch = int(kept.pop("epoch"))
    return epoch if kept == mark else 0


def _entries(rows: list[dict[str, Any]]) -> tuple[Entry, ...]:
    entries: dict[int, tuple[dict[str, Any], list[Row]]] = {}
    for row in rows:
        metrics = {name: value for name, value in row.items() if name not in _COLUMNS and value is not None}
        read = Row(
            phase=_phase(row["phase"]),
            epoch=row["epoch"],
            point=row["point"],
            seconds=row["seconds"],
            shared=row["shared"],
            metrics=metrics,
        )
        entries.setdefault(row["trial"], (row, []))[1].append(read)
    return tuple(
        Entry(
            trial=trial,
            state=row["state"],
            reason=row["reason"],
            knobs=json.loads(row["knobs"]),
            rows=tuple(read),
        )
        for trial, (row, read) in sorted(entries.items())
    )


def _phase(word: str) -> Phase:
    return next(phase for phase in get_args(Phase) if phase == word)


def _asked(row: Row, request: TrialRequest) -> bool:
    if row.phase == "warm":
        return request.warm is not None and request.number == 0
    if row.phase == "timed":
        return request.speed is not None
    if row.phase == "swept":
        return request.sweep is not None and row.point in request.sweep.settings
    return True


def _is_epoch(row: Row, epoch: int) -> bool:
    return row.phase == "epoch" and row.epoch == epoch


def _has(entry: Entry, phase: str) -> bool:
    return any(row.phase == phase for row in entry.rows)


def _ending(entry: Entry) -> str:
    return f"trial {entry.trial} of the recorded study is {entry.state}" + (
        f" ({entry.reason})" if entry.reason else ""
    )
