"""Searches in a recorded table with simulated time: what ``headway replay`` does."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from analysis.pareto import GrowingHypervolume, default_reference, hypervolume, points, values
from analysis.record import Objective, TrialRecord, TrialState
from search.conductor import Conductor
from search.recording import table_records
from search.simulate import Clock, simulate
from search.store import Store
from search.study import Study, parse
from spaces.errors import UserError, choices
from spaces.space import Space
from trainers.contract import DataRequest
from trainers.replay import Table

TARGETS = (50, 80, 90, 95, 99)
"""Shares of the best known hypervolume in %, whose compute is reported."""
_HOURS = ("compute_hours", "wall_hours")
METHODS = ("like_speed", "mo_asha", "none")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One search in a table.

    Attributes:
        seed: Of its sampler.
        curve: One entry a finished trial, in order of time: ``trials`` (finished so far), ``compute_hours`` (time of
            all trials so far, those that still run included), ``wall_hours``, ``hypervolume`` of the COMPLETE ones.
        begun: Trials whose work began, INFEASIBLE ones among them.
        states: Trials by state.
        epochs_share: Epochs that were trained, as a share of those of all trials that began to train.
    """

    seed: int
    curve: Sequence[dict[str, float]]
    begun: int
    states: dict[str, int]
    epochs_share: float

    def reached(self, volume: float, key: str = "compute_hours") -> float:
        """Gives the hours until a hypervolume, infinity where it was never reached."""
        return next((row[key] for row in self.curve if row["hypervolume"] >= volume), math.inf)


def replay_study(
    table: Table,
    *,
    sampler: str | None = None,
    rungs: str | None = None,
    first: int | None = None,
    factor: int | None = None,
    trials: int | None = None,
    seed: int = 0,
) -> Study:
    """Gives the study file of a search in a table: the recorded one with other settings of the search.

    Args:
        table: The table.
        sampler: ``sampler.name``, ``None`` for the default's.
        rungs: ``rungs.method`` or ``none``, ``None`` for the default's.
        first: ``rungs.first``, ``None`` for the default.
        factor: ``rungs.factor``, ``None`` for the default.
        trials: ``budget.trials``, ``None`` for the number of recorded designs.
        seed: The study's seed.

    Raises:
        UserError: A setting is illegal, or the recorded study has no space to search.
    """
    raw = dict(table.study)
    if raw.get("designs"):
        raise UserError(f"{table.name}: lists its designs, so there is nothing for a sampler to choose.")
    if rungs is not None and rungs not in METHODS:
        raise UserError(f"--rungs: must be {choices(METHODS)}, but got '{rungs}'.")
    asked = {
        key: value for key, value in (("method", rungs), ("first", first), ("factor", factor)) if value is not None
    }
    if rungs == "none" and len(asked) > 1:
        raise UserError("--rungs: must not be none where --first or --factor is given.")
    raw["rungs"] = None if rungs == "none" else asked
    raw["sampler"] = {} if sampler is None else {"name": sampler}
    raw["budget"] = {**raw["budget"], "trials": len(table.entries) if trials is None else trials, "hours": None}
    raw |= {"storage": None, "tracking": {}, "seed": seed}
    return parse(raw, f"replay of {table.name}")


def search(table: Table, study: Study, space: Space, workers: int) -> list[TrialRecord]:
    """Runs a study on a table in simulated time: the real conductor, store (in memory) and sampler.

    Args:
        table: Answers for the trainer.
        study: What ``replay_study`` gave.
        space: The study's.
        workers: Trials side by side.

    Returns:
        All trials; ``started`` and ``finished`` are in simulated seconds since the start.
    """
    clock = Clock()
    data = DataRequest(
        train_annotations="",
        train_images="",
        val_annotations="",
        val_images="",
        classes=tuple(study.data.classes or ()),
        size=study.data.size,
    )
    store = Store.in_memory(study, clock=clock)
    conductor = Conductor(
        study,
        space,
        store,
        folder=Path(study.name),  # nothing is written there
        data=data,
        device="cpu",
        speed_device=table.about.get("speed_kind") or "cpu",
        threads=1,
        concurrent=workers,
        clock=clock,
    )
    simulate(conductor, partial(Table.steps, table), clock)
    return store.records()


def curve(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], reference: Sequence[float]
) -> list[dict[str, float]]:
    """Gives what was known and what it had cost at the end of each trial, in order of time, then of number.

    Args:
        records: Ended trials with ``started`` and ``finished`` in simulated seconds.
        objectives: Of the study.
        reference: Reference point of the hypervolume.

    Returns:
        See ``Run.curve``.
    """
    spans = [(record.finished or 0.0, record.number, record.started or 0.0, record) for record in records]
    rows: list[dict[str, float]] = []
    growing = GrowingHypervolume(objectives, reference)
    for count, (now, _, _, record) in enumerate(sorted(spans, key=lambda span: span[:2]), 1):
        for point in points([record], objectives):
            growing.add(values(point, objectives))
        spent = sum(min(end, now) - begin for end, _, begin, _ in spans if begin < now)
        row = {"compute_hours": spent / 3600, "wall_hours": now / 3600, "hypervolume": growing.volume}
        rows.append({"trials": count, **row})
    return rows


def replay_seeds(
    table: Table,
    settings: Mapping[str, Any],
    *,
    seeds: int,
    workers: int,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Searches in a table once a seed: what ``headway replay`` does.

    Args:
        table: The table.
        settings: Those of ``replay_study`` but for the seed.
        seeds: Searches, with seeds 0 to ``seeds`` - 1.
        workers: Trials side by side.
        say: Takes a line of progress.

    Returns:
        See ``replay``.

    Raises:
        UserError: A setting is illegal.
    """
    for name, value in (("seeds", seeds), ("workers", workers)):
        if value < 1:
            raise UserError(f"--{name}: must be 1 or more, but got {value}.")
    from search.engine import prepare_space  # late: mmdet

    studies = [replay_study(table, **settings, seed=seed) for seed in range(seeds)]
    return replay(table, studies, prepare_space(studies[0]), workers=workers, say=say)


def replay(
    table: Table,
    studies: Sequence[Study],
    space: Space,
    *,
    workers: int,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Searches in a table once a study, and compares with the best that the table has.

    Args:
        table: The table.
        studies: What ``replay_study`` gave, one a seed.
        space: Theirs.
        workers: Trials side by side.
        say: Takes a line of progress.

    Returns:
        Plain JSON types. ``targets``: for each share of the best known hypervolume the ``compute_hours`` and
        ``wall_hours`` until there over the seeds, and how many seeds ``reached`` it; ``trials_begun``, ``stopped`` and
        ``epochs_share``; each with ``median``, ``q1`` and ``q3``, ``null`` where a seed that never got there is at that
        place. ``runs``: the curve of each seed.
    """
    study = studies[0]
    objectives = study.objective_records
    recorded = table_records(table, study, space)
    reference = default_reference(recorded[0], objectives)
    best = hypervolume(recorded, objectives, reference)
    runs = []
    for place, one in enumerate(studies, 1):
        began = time.monotonic()
        records = search(table, one, space, workers)
        runs.append(_run(one, records, reference))
        hours = runs[-1].reached(0.95 * best)
        found = f"95 % after {hours:.3f} compute hours" if math.isfinite(hours) else "95 % never reached"
        say(f"seed {one.seed} ({place}/{len(studies)}): {_told(runs[-1])}, {found} [{time.monotonic() - began:.1f} s]")
    return {
        "table": table.name,
        "sampler": study.sampler.name,
        "rungs": None if study.rungs is None else study.rungs.model_dump(exclude_none=True),
        "workers": workers,
        "trials": study.budget.trials,
        "seeds": [one.seed for one in studies],
        "designs": len(table.entries),
        "reference": list(reference),
        "best_hypervolume": best,
        "table_hours": sum(record.compute_hours for record in recorded),
        "targets": {
            str(target): {
                **{key: _spread([run.reached(target / 100 * best, key) for run in runs]) for key in _HOURS},
                "reached": sum(math.isfinite(run.reached(target / 100 * best)) for run in runs),
            }
            for target in TARGETS
        },
        "trials_begun": _spread([run.begun for run in runs]),
        "stopped": _spread([run.states.get("STOPPED", 0) for run in runs]),
        "epochs_share": _spread([run.epochs_share for run in runs]),
        "runs": [{**vars(run), "curve": list(run.curve)} for run in runs],
    }


def write_result(found: Mapping[str, Any], path: Path) -> None:
    """Writes what ``replay`` gave, whole or not at all.

    Raises:
        UserError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"--out: must be writable, but {path} gives: {error.strerror}.") from error


def _run(study: Study, records: Sequence[TrialRecord], reference: Sequence[float]) -> Run:
    states = [record.state.value for record in records]
    training = [record for record in records if record.curve]
    trained = sum(len(record.curve) for record in training)
    return Run(
        seed=study.seed,
        curve=curve(records, study.objective_records, reference),
        begun=len(records),
        states={state.value: states.count(state.value) for state in TrialState if state.value in states},
        epochs_share=trained / (len(training) * study.budget.epochs) if training else 0.0,
    )


def _told(run: Run) -> str:
    states = ", ".join(f"{count} {state}" for state, count in run.states.items())
    return f"{run.begun} trials ({states})"


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median and quartiles, linear between neighbours, ``None`` where infinity is in them."""
    ordered = sorted(values)

    def at(share: float) -> float | None:
        below, part = divmod(share * (len(ordered) - 1), 1)
        low, high = ordered[int(below)], ordered[math.ceil(share * (len(ordered) - 1))]
        return low + part * (high - low) if math.isfinite(high) else None

    return {"median": at(0.5), "q1": at(0.25), "q3": at(0.75)}
