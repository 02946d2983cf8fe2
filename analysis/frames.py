"""Trials as pandas frames, for notebooks.

Every frame says in ``frame.attrs["units"]`` what each of its columns is measured in. Figures are float64 in the unit
that they are recorded in (accuracies 0 to 1), NaN where unknown. Knobs have a column each (``slimhead.ratio``), empty
in designs that do not have them: whole numbers are Int64, switches boolean, words string, and lists are tuples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.confirm import flat
from analysis.pareto import front, front_rows
from analysis.record import Objective, TrialRecord, TrialState

_UNITS = {
    "latency_ms": "ms",
    "measured_ms": "ms",
    "gmacs": "10^9 multiply-adds",
    "head_gmacs": "10^9 multiply-adds",
    "params_m": "10^6 parameters",
    "activations_m": "10^6 values",
    "peak_memory_mb": "MB",
    "hours": "h",
    "started": "time, UTC",
    "finished": "time, UTC",
    "confirmed_seeds": "seeds",
    "latency_pairs": "measured pairs",
}
_FIRST = ("bbox_mAP", "latency_ms", "latency_ratio", "gmacs", "head_gmacs", "params_m", "activations_m")
_ENDINGS = ("_q1", "_q3", "_low", "_high")
_BEGINNINGS = ("learned_", "decomposed_", "learning_", "warm_", "confirmed_")


def unit(column: str) -> str:
    """Names what a column is measured in; empty for words, counts and what has no unit."""
    if column in _UNITS:
        return _UNITS[column]
    for ending in _ENDINGS:
        if column.endswith(ending):
            return unit(column.removesuffix(ending))
    for beginning in _BEGINNINGS:
        if column.startswith(beginning):
            return unit(column.removeprefix(beginning))
    if column.startswith(("bbox_mAP", "bbox_AR")):
        return "share, 0 to 1"
    if column.endswith("_ratio"):
        return "x the baseline's"
    return "s" if column == "seconds" or column.endswith("_seconds") else ""


def trials_frame(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> pd.DataFrame:
    """Gives one row a trial, whatever became of it.

    Returns:
        Indexed by ``trial`` (0 is the baseline): ``state``, ``name`` (of a listed design), ``baseline``, ``on_front``,
        ``epochs`` (finished ones), ``hours`` (spent in the trial), ``started``, ``finished``, ``reason``; then the
        figures, objectives first; then the knobs.
    """
    members = {record.number for record in front(records, objectives)}
    columns: dict[str, Any] = {
        "state": pd.Categorical([record.state.value for record in records], [state.value for state in TrialState]),
        "name": _words(record.attrs.get("name") for record in records),
        "baseline": _flags(record.baseline for record in records),
        "on_front": _flags(record.number in members for record in records),
        "epochs": pd.array([len(record.curve) for record in records], dtype="int64"),
        "hours": _figures(record.compute_hours for record in records),
        "started": _times(record.started for record in records),
        "finished": _times(record.finished for record in records),
        "reason": _words(record.reason for record in records),
        **_metrics([record.metrics for record in records], objectives),
        **_knobs([record.knobs for record in records]),
    }
    return _frame(columns, pd.Index([record.number for record in records], dtype="int64", name="trial"))


def points_frame(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], *, front_only: bool = False
) -> pd.DataFrame:
    """Gives one row a point: a COMPLETE trial, or one setting of the inference knobs of one.

    Args:
        records: All records of the study.
        objectives: The study's.
        front_only: Leaves out what is dominated.

    Returns:
        Ascending in the second objective, indexed by ``point`` (``7``, or ``7.3`` for the third setting of trial 7):
        ``trial``, ``name``, ``baseline``, ``on_front``, ``dominates_baseline``; the figures, objectives first; those of
        a confirmation (``confirmed_...``, and ``alike``, what cannot be told from its neighbours) where there are any;
        then the knobs.
    """
    rows = [row for row in front_rows(records, objectives) if row["on_front"] or not front_only]
    given = {record.number: record.attrs.get("name") for record in records}
    again = [flat(row.get("confirmed")) for row in rows]
    confirmed: dict[str, Any] = {}
    if any(again):
        names = sorted({name for one in again for name in one})
        confirmed = {name: _figures(one.get(name) for one in again) for name in names}
        confirmed["alike"] = _words((row.get("confirmed") or {}).get("mark") for row in rows)
    columns: dict[str, Any] = {
        "trial": pd.array([row["trial"] for row in rows], dtype="int64"),
        "name": _words(given[row["trial"]] for row in rows),
        **{flag: _flags(row[flag] for row in rows) for flag in ("baseline", "on_front", "dominates_baseline")},
        **_metrics([row["metrics"] for row in rows], objectives),
        **confirmed,
        **_knobs([row["knobs"] for row in rows]),
    }
    return _frame(columns, pd.Index(_words(row["point"] for row in rows), name="point"))


def epochs_frame(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """Gives one row a finished epoch of a trial.

    Returns:
        Indexed by ``trial`` and ``epoch`` (1-based): ``seconds`` (time of the trial so far), ``rung`` (the decision
        made at that epoch, empty where there was none), and the epoch's figures.
    """
    found = [(record, item) for record in records for item in record.curve]
    columns: dict[str, Any] = {
        "seconds": _figures(item.seconds for _, item in found),
        "rung": _words(record.rungs.get(item.epoch) for record, item in found),
        **_metrics([item.metrics for _, item in found], ()),
    }
    return _frame(columns, _pairs([(record.number, item.epoch) for record, item in found], ("trial", "epoch")))


def sweeps_frame(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> pd.DataFrame:
    """Gives one row a setting of the inference knobs that a trained detector was measured at.

    Returns:
        Indexed by ``trial`` and ``setting`` (0 is the one that it was validated with while it trained): ``on_front``,
        ``broken`` (a tuple of the constraints that it breaks; it is no point then), the figures at this setting
        (those that it does not change are the trial's), objectives first, then the knobs.
    """
    members = {(record.number, record.point) for record in front(records, objectives)}
    found = [(record, item) for record in records for item in record.sweep]
    columns: dict[str, Any] = {
        "on_front": _flags((record.number, item.index) in members for record, item in found),
        "broken": _objects(tuple(item.broken) for _, item in found),
        **_metrics([{**record.metrics, **item.metrics} for record, item in found], objectives),
        **_knobs([item.knobs for _, item in found]),
    }
    return _frame(columns, _pairs([(record.number, item.index) for record, item in found], ("trial", "setting")))


def _frame(columns: Mapping[str, Any], index: pd.Index) -> pd.DataFrame:
    frame = pd.DataFrame(columns, index=index)
    frame.attrs["units"] = {name: unit(name) for name in columns}
    return frame


def _pairs(found: Sequence[tuple[int, int]], names: tuple[str, str]) -> pd.MultiIndex:
    columns = [pd.array([pair[place] for pair in found], dtype="int64") for place in range(2)]
    return pd.MultiIndex.from_arrays(columns, names=names)


def _metrics(rows: Sequence[Mapping[str, Any]], objectives: Sequence[Objective]) -> dict[str, Any]:
    def order(name: str) -> tuple[int, str]:
        return next((place for place, start in enumerate(_FIRST) if name.startswith(start)), len(_FIRST)), name

    there = sorted({name for row in rows for name in row}, key=order)
    wanted = [objective.metric for objective in objectives]
    return {name: _figures(row.get(name) for row in rows) for name in dict.fromkeys([*wanted, *there])}


def _knobs(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: _knob([row.get(name) for row in rows]) for name in sorted({name for row in rows for name in row})}


def _knob(values: Sequence[Any]) -> Any:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pd.array(values, dtype="boolean")
    if kinds == {int}:
        return pd.array(values, dtype="Int64")
    if kinds <= {int, float}:
        return _figures(values)
    if kinds == {str}:
        return _words(values)
    return _objects(tuple(value) if isinstance(value, (list, tuple)) else value for value in values)


def _figures(values: Iterable[float | None]) -> Any:
    return pd.array([math.nan if value is None else float(value) for value in values], dtype="float64")


def _flags(values: Iterable[bool]) -> Any:
    return pd.array(list(values), dtype="bool")


def _words(values: Iterable[str | None]) -> Any:
    return pd.array([value or None for value in values], dtype="string")


def _objects(values: Iterable[Any]) -> Any:
    kept = list(values)
    column = np.empty(len(kept), dtype=object)
    for place, value in enumerate(kept):  # at once, numpy would take tuples of one length for the rows of a table
        column[place] = value
    return column


def _times(seconds: Iterable[float | None]) -> Any:
    return pd.to_datetime(list(seconds), unit="s", utc=True).astype("datetime64[ns, UTC]")
