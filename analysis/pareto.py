"""The front of a study: which trials nothing beats, how large the space is that they dominate, and their table.

Everything here is a pure function over ``TrialRecord`` and a tuple of ``Objective``. A trial is a *point* when it is
COMPLETE and has a finite figure for every objective; all others (stopped, failed, NaN) never take part. Figures keep
the sign and unit that they are recorded in: nothing is negated for the caller.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import moocore
import numpy as np

from analysis.confirm import flat
from analysis.record import Objective, TrialRecord, TrialState, spread

Row = dict[str, Any]


def values(trial: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Gives the trial's objective values in their own units, NaN where a metric is missing."""
    return tuple(float(trial.metrics.get(objective.metric, math.nan)) for objective in objectives)


def is_point(trial: TrialRecord, objectives: Sequence[Objective]) -> bool:
    """True when the trial is COMPLETE and every objective is finite."""
    return trial.state is TrialState.COMPLETE and all(math.isfinite(value) for value in values(trial, objectives))


def points(trials: Iterable[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Keeps the trials that may be on the front, in the order given, with every setting of a sweep."""
    return [trial for trial in spread(trials) if is_point(trial, objectives)]


def speed_order(trial: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Sort key: the second objective (the first where there is one only), then the others, then the trial's number."""
    figures = values(trial, objectives)
    return (*figures[1:2], *figures, float(trial.number), float(trial.point))


def dominates(one: TrialRecord, other: TrialRecord, objectives: Sequence[Objective]) -> bool:
    """True when ``one`` is nowhere worse than ``other`` and somewhere better.

    Equal trials do not dominate one another. False as soon as one of the two is not a point.
    """
    if not (is_point(one, objectives) and is_point(other, objectives)):
        return False
    gains = [
        mine - theirs if objective.maximize else theirs - mine
        for objective, mine, theirs in zip(objectives, values(one, objectives), values(other, objectives), strict=True)
    ]
    return min(gains) >= 0 and max(gains) > 0


def front(trials: Iterable[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Gives the non-dominated points, ascending in the second objective.

    Trials that are equal in all objectives are all kept: they are different designs, and which of them to take is
    the reader's choice.
    """
    candidates = points(trials, objectives)
    if not candidates:
        return []
    table = np.array([values(trial, objectives) for trial in candidates])  # (points, objectives)
    kept = moocore.is_nondominated(table, maximise=[o.maximize for o in objectives], keep_weakly=True)
    members = [trial for trial, keep in zip(candidates, kept, strict=True) if keep]
    return sorted(members, key=lambda trial: speed_order(trial, objectives))


def default_reference(baseline: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Gives the study's reference point, fixed once from the baseline, in the objectives' own units.

    A maximised objective (accuracy) counts from 0. A minimised one (latency, MACs, parameters) counts from twice the
    baseline's value: a head twice as slow as the one that is there already is worth nothing. Points that are no better
    than the reference in some objective add no hypervolume.

    Raises:
        ValueError: The baseline is not COMPLETE, or a minimised objective of it is not above 0.
    """
    if not is_point(baseline, objectives):
        raise ValueError(f"the reference point needs a COMPLETE baseline, but trial 0 is {baseline.state.value}")
    figures = values(baseline, objectives)
    for objective, figure in zip(objectives, figures, strict=True):
        if not objective.maximize and figure <= 0:
            raise ValueError(f"{objective.metric} of the baseline must be above 0, but is {figure:g}")
    return tuple(0.0 if o.maximize else 2 * figure for o, figure in zip(objectives, figures, strict=True))


def reference_point(
    trials: Iterable[TrialRecord], objectives: Sequence[Objective], fixed: Sequence[float] | None = None
) -> tuple[float, ...] | None:
    """Gives the reference point to measure with: ``fixed`` where the study names one, else the baseline's.

    Returns:
        One value an objective, or ``None`` while there is no baseline to take it from.

    Raises:
        ValueError: ``fixed`` does not have one finite value an objective.
    """
    if fixed is not None:
        if len(fixed) != len(objectives) or not all(math.isfinite(value) for value in fixed):
            raise ValueError(f"reference: must have {len(objectives)} finite values, but got {list(fixed)}")
        return tuple(float(value) for value in fixed)
    baseline = next((trial for trial in trials if trial.baseline and is_point(trial, objectives)), None)
    return None if baseline is None else default_reference(baseline, objectives)


def hypervolume(trials: Iterable[TrialRecord], objectives: Sequence[Objective], reference: Sequence[float]) -> float:
    """Measures the space that the trials dominate up to ``reference``, in the product of the objectives' units.

    Trials that are not points, duplicates, and points beyond the reference add nothing; without points it is 0.
    """
    table = [values(trial, objectives) for trial in points(trials, objectives)]
    if not table:
        return 0.0
    return float(moocore.hypervolume(np.array(table), ref=reference, maximise=[o.maximize for o in objectives]))


def hypervolume_curves(
    trials: Iterable[TrialRecord], objectives: Sequence[Objective], reference: Sequence[float]
) -> list[Row]:
    """Gives the hypervolume after each finished trial, in order of finish (then of number).

    Every finished trial counts, also a stopped, infeasible or failed one: it cost time and added nothing.

    Returns:
        Rows ``{"finished_trials": int, "compute_hours": float, "hypervolume": float}``; hours are those spent in all
        trials finished so far, and hypervolume never falls.
    """
    rows: list[Row] = []
    growing = GrowingHypervolume(objectives, reference)
    hours = 0.0
    for count, trial in enumerate(finish_order(trials), start=1):
        hours += trial.compute_hours
        for point in points([trial], objectives):
            growing.add(values(point, objectives))
        rows.append({"finished_trials": count, "compute_hours": hours, "hypervolume": growing.volume})
    return rows


def finish_order(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Gives the finished trials in order of finish, then of number."""
    done = [trial for trial in trials if trial.state.finished]
    return sorted(done, key=lambda trial: (math.inf if trial.finished is None else trial.finished, trial.number))


def front_times(trials: Iterable[TrialRecord], objectives: Sequence[Objective]) -> dict[str, tuple[int, int | None]]:
    """Tells when each point was on the front, counted in finished trials.

    Returns:
        By label of each point that ever was on it: after which finished trial it came (1-based, in the order of
        ``hypervolume_curves``), and after which one it was beaten, ``None`` for the members of ``front``.
    """
    signs = np.array([-1.0 if objective.maximize else 1.0 for objective in objectives])
    times: dict[str, tuple[int, int | None]] = {}
    labels: list[str] = []
    table = np.empty((0, len(signs)))  # of the front so far: (members, objectives), less is better
    for count, trial in enumerate(finish_order(trials), start=1):
        for point in points([trial], objectives):
            figures = signs * np.array(values(point, objectives))
            below, above = table <= figures, table >= figures
            if (below.all(axis=1) & ~above.all(axis=1)).any():
                continue
            beaten = above.all(axis=1) & ~below.all(axis=1)
            for index in np.flatnonzero(beaten):
                came, _ = times[labels[index]]
                if came == count:  # by a further setting of its own trial
                    del times[labels[index]]
                else:
                    times[labels[index]] = (came, count)
            labels = [label for label, gone in zip(labels, beaten, strict=True) if not gone]
            table = np.vstack([table[~beaten], figures])
            labels.append(point.label)
            times[point.label] = (count, None)
    return times


class GrowingHypervolume:
    """The hypervolume of points that come one by one. It is measured anew only when one reaches the front.

    Args:
        objectives: Of the study.
        reference: Reference point, in the objectives' own units.

    Attributes:
        volume: Of all points so far; it never falls.
    """

    def __init__(self, objectives: Sequence[Objective], reference: Sequence[float]) -> None:
        self._signs = np.array([-1.0 if objective.maximize else 1.0 for objective in objectives])
        self._reference = self._signs * np.array(reference, dtype=float)
        self._front = np.empty((0, len(self._signs)))  # (members, objectives), less is better
        self.volume = 0.0

    def add(self, figures: Sequence[float]) -> None:
        """Adds a point by its objective values."""
        point = self._signs * np.array(figures)
        if (point >= self._reference).any() or (self._front <= point).all(axis=1).any():
            return
        beaten = (point <= self._front).all(axis=1)
        self._front = np.vstack([self._front[~beaten], point])
        # Rounding differs with the set that is summed up; the true value cannot fall.
        self.volume = max(self.volume, float(moocore.hypervolume(self._front, ref=self._reference)))


def front_rows(trials: Iterable[TrialRecord], objectives: Sequence[Objective]) -> list[Row]:
    """Gives the table of all COMPLETE trials, ascending in the second objective.

    Returns:
        Rows of plain JSON types with ``trial``, ``point`` (``7``, or ``7.3`` for a further setting of the inference
        knobs of trial 7; what ``headway export --pick`` takes), ``knobs``, ``metrics`` (``None`` for a figure that is
        not finite), ``baseline``, ``on_front`` and ``dominates_baseline``. A COMPLETE trial with a missing or NaN
        objective is listed last and is not on the front. ``confirmed`` (see ``analysis.confirm.judge``) is there for
        points that were trained again with other seeds.
    """
    complete = spread(trial for trial in trials if trial.state is TrialState.COMPLETE)
    members = {trial.label for trial in front(complete, objectives)}
    baseline = next((trial for trial in complete if trial.baseline), None)

    def order(trial: TrialRecord) -> tuple[bool, tuple[float, ...]]:
        good = is_point(trial, objectives)
        return not good, speed_order(trial, objectives) if good else (float(trial.number), float(trial.point))

    return [
        {
            "trial": trial.number,
            "point": trial.label,
            "knobs": dict(trial.knobs),
            "metrics": {name: _finite(value) for name, value in trial.metrics.items()},
            "baseline": trial.baseline,
            "on_front": trial.label in members,
            "dominates_baseline": baseline is not None and dominates(trial, baseline, objectives),
            **({"confirmed": trial.confirmed} if trial.confirmed else {}),
        }
        for trial in sorted(complete, key=order)
    ]


def front_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes ``front_rows`` as one JSON document."""
    return json.dumps(list(rows), indent=2, allow_nan=False) + "\n"


def front_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes ``front_rows`` as CSV: trial and flags, one column a knob, one a metric, one a figure of a confirmation.

    A knob or figure that a trial lacks is empty; a list knob is written as JSON.
    """
    knobs = sorted({name for row in rows for name in row["knobs"]})
    metrics = sorted({name for row in rows for name in row["metrics"]})
    again = [flat(row.get("confirmed")) for row in rows]
    confirmed = sorted({name for figures in again for name in figures})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    flags = ["trial", "point", "baseline", "on_front", "dominates_baseline"]
    writer.writerow([*flags, *knobs, *metrics, *confirmed])
    for row, figures in zip(rows, again, strict=True):
        cells = [row["knobs"].get(name) for name in knobs] + [row["metrics"].get(name) for name in metrics]
        cells += [figures.get(name) for name in confirmed]
        writer.writerow([*(row[flag] for flag in flags), *map(_cell, cells)])
    return text.getvalue()


def write_front_json(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes ``front_json`` to ``path``; a reader sees the old file or the new one, never half of it."""
    _write(path, front_json(rows))


def write_front_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes ``front_csv`` to ``path``; a reader sees the old file or the new one, never half of it."""
    _write(path, front_csv(rows))


def _finite(value: float) -> float | None:
    # JSON has no NaN.
    return float(value) if math.isfinite(value) else None


def _cell(value: object) -> object:
    if value is None or isinstance(value, (str, int, float)):
        return value
    return json.dumps(value)


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
