"""Trains the front again with other seeds, measures its latencies in one run, and says what can be told apart.

What is found is noted in the store as it comes, so the same command continues after a kill. Records that are read
through ``confirmed`` carry it in ``attrs["confirmed"]``, by label, as ``analysis.confirm`` works it out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.confirm import LEAST_ROUNDS, LEVEL, Evidence, Rounds, judge
from analysis.pareto import front, is_point
from analysis.record import Objective, TrialRecord, spread
from search import tables
from search.confirmation import NOTE, Confirmation, Training
from search.delivery import open_courier, run_status
from search.events import EVENTS, EventLog
from search.folder import LEASE, claimed, room
from search.progress import say
from search.resources import Resources
from search.store import Store, await_database, plainly
from search.study import Study
from search.study_lock import held
from spaces import patching
from spaces.errors import CutShort, UserError
from spaces.space import Space
from trainers import files
from trainers.contract import DataRequest, SpeedRequest, SweepRequest, TrialRequest, WarmRequest

if TYPE_CHECKING:
    from search.ray_adapter.lanes import Plan
    from trainers.together import Member

_LATENCY = f"{NOTE}latency"


@dataclass(frozen=True)
class Outcome:
    """What a confirmation left behind.

    Attributes:
        records: All trials, with what is known of them.
        finished: Whether nothing is missing; else it was interrupted.
    """

    records: Sequence[TrialRecord]
    finished: bool


def run(
    study: Study,
    folder: Path,
    *,
    seeds: int,
    address: str | None = None,
    trainer: str = "trainers.detector:train",
    timer: str = "trainers.together:measure_json",
) -> Outcome:
    """Confirms the present front of a study, or goes on with it.

    Args:
        study: The study file as it was run.
        folder: The study's folder.
        seeds: How many each point shall have, the study's own among them; 2 or more.
        address: A Ray cluster, ``None`` for this machine.
        trainer: ``module:function`` of the trainings' trainer.
        timer: ``module:function`` that measures a ``TogetherRequest``, from and to JSON text.

    Raises:
        UserError: The input is wrong, another run holds the folder, or there is nothing to confirm.
        HeadwayError: The latencies could not be measured; what was trained is kept.
        CutShort: No training can go on here.
    """
    from search.begun import begun
    from search.engine import check_speed_device, prepare, write_pages
    from search.ray_adapter import cluster, lanes, preflight, trial, tuner
    from search.report import leave_report
    from trainers.together import TogetherRequest

    data, report, space = prepare(study)
    with ExitStack() as stack:
        stack.enter_context(room(folder))
        stack.enter_context(claimed(folder))
        log = stack.enter_context(closing(EventLog(folder / EVENTS)))
        await_database(study, folder, log, say)
        guard = stack.enter_context(held(study.storage, study.name))
        store = Store.create(folder, study, journal=log, guard=guard, say=say)
        store.settle()
        records = store.records()
        points = wanted(study, records)
        trainings = missing(store, points, seeds)
        untimed = {point.label for point in points} - set(_timed(store))
        if trainings or untimed:
            cluster.connect(address)
            if address is not None:
                preflight.check_nodes(preflight.needs(study, data, folder))
            plan = lanes.plan(cluster.nodes(), study.resources, study.speed.device)
            share, speed_device = plan.share, plan.speed_device
            check_speed_device(store, records, speed_device)
            begun(log, study, address, share, "confirm")
        if trainings:
            say(f"{len(trainings)} trainings of {study.budget.epochs} epochs, {share.concurrent} side by side")
            confirmation = Confirmation(
                study,
                store,
                trainings,
                lambda training: _request(study, folder, data, share, training),
                concurrent=share.concurrent,
                say=say,
            )
            with plainly(store):
                tuner.run(confirmation, share, folder / "ray", trainer, lane=plan.lane, say=say)
            if confirmation.halted is not None:
                raise CutShort(f"{study.name}: {confirmation.halted}; nothing is lost, the same command continues.")
        finished = not missing(store, points, seeds)
        if finished and untimed:
            where = f"the speed node {plan.lane.node.name}" if plan.lane else "this machine, which may be shared"
            say(f"measuring the latency of {len(points)} points together, on {speed_device} of {where}")
            base = _request(study, folder, data, share, Training(0, records[0], study.seed, {0: "0"}))
            base = plan.lane.request(base) if plan.lane else base
            asked = TogetherRequest(
                baseline=replace(base, folder=str(folder / records[0].folder)),
                members=[_member(folder, space, point) for point in points if not point.baseline],
                speed=_speed(study, folder, plan),
                images=study.speed.images,
            )
            runs = json.loads(trial.call(timer, json.dumps(asked.to_json()), share, plan.lane))
            store.note(_LATENCY, {"device": speed_device, "threads": base.threads, "runs": runs})
        for training in _all(study, records, points, seeds) if finished else ():
            _clean(folder / training.folder, keep=bool(training.trial.sweep))
        records = confirmed(store)
        page = leave_report(study, folder, records, seconds_run=store.seconds_run, data=report, space=space)
        tracker = open_courier(study, folder, lambda kind, why: log.write(kind, why=why))
        tracker.begin(records)
        tracker.close(run_status(records), [page] if page else [])
        write_pages(folder, study, records, tracker.runs)
        store.settle()
        log.write("finished", finished=finished, states=Counter(record.state.value for record in records), why=None)
        return Outcome(records, finished)


def confirm(
    study: Study, folder: Path, *, seeds: int, address: str | None = None, trainer: str = "trainers.detector:train"
) -> tuple[Outcome, dict[str, Any]]:
    """Confirms the present front and writes what was found: what ``headway confirm`` does.

    Args:
        study: See ``run``.
        folder: See ``run``.
        seeds: See ``run``.
        address: See ``run``.
        trainer: See ``run``.

    Returns:
        The outcome, and the document of ``confirm --json``.

    Raises:
        UserError: Fewer than 2 seeds, and as ``run`` does.
        HeadwayError: As ``run`` does.
        CutShort: As ``run`` does.
    """
    if seeds < 2:
        raise UserError(f"--seeds: must be 2 or more, the study's own among them, but got {seeds}.")
    outcome = run(study, folder, seeds=seeds, address=address, trainer=trainer)
    return outcome, write(study, outcome, tables.rows(outcome.records, study), folder)


def wanted(study: Study, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Gives the points to confirm: the front in its order, and the baseline, first where it is not on the front.

    Raises:
        UserError: No trial is COMPLETE, or the baseline is not.
    """
    objectives = study.objective_records
    baseline = next((record for record in spread(records) if record.baseline), None)
    members = front(records, objectives)
    if not members:
        raise UserError(f"{study.name}: must have a COMPLETE trial to be confirmed, but it has none yet.")
    if baseline is None or not is_point(baseline, objectives):
        state = "absent" if baseline is None else baseline.state.value
        raise UserError(f"{study.name}: trial 0, the baseline, must be COMPLETE to be confirmed, but it is {state}.")
    return members if any(member.baseline for member in members) else [baseline, *members]


def missing(store: Store, points: Sequence[TrialRecord], seeds: int) -> list[Training]:
    """Gives the trainings that neither came to an end nor failed yet, seed by seed, so that all grow alike."""
    there = store.notes(NOTE)
    left: list[Training] = []
    for training in _all(store.study, store.records(), points, seeds):
        labels = {i: label for i, label in training.labels.items() if f"{NOTE}{label}:{training.seed}" not in there}
        if labels:
            left.append(replace(training, number=len(left) + 1, labels=labels))
    return left


def confirmed(store: Store) -> list[TrialRecord]:
    """Reads all trials, with what confirmation knows of them in ``attrs["confirmed"]``, by label."""
    records, notes = store.records(), store.notes(NOTE)
    if not notes:
        return records
    objectives: tuple[Objective, ...] = store.study.objective_records
    evidence = _evidence(store.study, records, notes)
    found = judge(front(records, objectives), records[0], objectives, evidence)
    merged = []
    for record in records:
        own = {label: item for label, item in found.items() if label.partition(".")[0] == str(record.number)}
        merged.append(replace(record, attrs={**record.attrs, "confirmed": own}) if own else record)
    return merged


def write(study: Study, outcome: Outcome, rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Writes ``confirm.json`` into the study's folder, and gives it: it is what ``headway confirm --json`` prints.

    Args:
        study: The study file.
        outcome: Of the confirmation.
        rows: Those of ``front --json``.
        folder: The study's.
    """
    shown = [row for row in rows if row.get("confirmed")]
    # Each pair stands with both of its members.
    pairs = {(pair["one"], pair["other"]): pair for row in shown for pair in row["confirmed"]["neighbours"]}
    document = {
        "study": study.name,
        "folder": str(folder),
        "finished": outcome.finished,
        "level": LEVEL,
        "points": shown,
        "neighbours": list(pairs.values()),
    }
    files.write_text(folder / "confirm.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    return document


def _all(study: Study, records: Sequence[TrialRecord], points: Sequence[TrialRecord], seeds: int) -> Iterator[Training]:
    """Gives every training but the search's own; points of one trial share theirs."""
    trials = {record.number: record for record in records}
    for seed in range(study.seed + 1, study.seed + seeds):
        for number in dict.fromkeys(point.number for point in points):
            own = [point for point in points if point.number == number]
            yield Training(0, trials[number], seed, {point.point: point.label for point in own})


def _evidence(study: Study, records: Sequence[TrialRecord], notes: Mapping[str, Any]) -> dict[str, Evidence]:
    known = {record.label: record for record in spread(records)}
    latency = notes.get(_LATENCY) or {"runs": []}
    rounds = {
        label: Rounds(index, ratios, run["aa"], run["on_images"])
        for index, run in enumerate(latency["runs"])
        for label, ratios in {**run["ratios"], "0": [1.0] * len(run["aa"])}.items()
        if label != "0" or index == 0
    }
    values: dict[str, dict[int, Mapping[str, float]]] = {}
    failed: dict[str, dict[int, str]] = {}
    for key, value in notes.items():
        label, _, seed = key.removeprefix(NOTE).rpartition(":")
        if label in known:
            values.setdefault(label, {})
            if "metrics" in value:
                values[label][int(seed)] = value["metrics"]
            else:
                failed.setdefault(label, {})[int(seed)] = value["reason"]
    return {
        label: Evidence(
            values={study.seed: known[label].metrics, **values.get(label, {})},
            failed=failed.get(label, {}),
            rounds=rounds.get(label),
        )
        for label in known
        if label in values or label in rounds
    }


def _timed(store: Store) -> list[str]:
    """Labels whose latency was measured in the last run of all."""
    latency = store.notes(_LATENCY).get(_LATENCY)
    return ["0", *(label for run in latency["runs"] for label in run["ratios"])] if latency else []


def _request(study: Study, folder: Path, data: DataRequest, share: Resources, training: Training) -> TrialRequest:
    trial, warm = training.trial, study.weights.from_ == "baseline"
    settings = {point.index: point.knobs for point in trial.sweep if point.index in training.labels and point.index}
    return TrialRequest(
        number=training.number,
        base=study.base,
        knobs=trial.knobs,
        data=data,
        folder=str(folder / training.folder),
        epochs=study.budget.epochs,
        batch=study.training.batch,
        lr=study.training.lr,
        weights=study.weights.from_,
        backbone=study.weights.backbone,
        seed=training.seed,
        device=share.device,
        dtype=study.speed.dtype,
        train_dtype=study.training.dtype,
        threads=share.cpus,
        heartbeat=study.heartbeat_seconds,
        count_size=study.speed_size,
        sweep=SweepRequest(settings=settings, speed=None) if settings else None,
        warm=WarmRequest(
            folder=str(folder / "warm"), epochs=study.weights.epochs or study.budget.epochs, seed=study.seed
        )
        if warm
        else None,
    )


def _speed(study: Study, folder: Path, plan: Plan) -> SpeedRequest:
    return SpeedRequest(
        size=study.speed_size,
        batch=study.speed.batch,
        postprocess=study.speed.postprocess,
        device=plan.speed_device,
        pairs=max(study.speed.pairs, LEAST_ROUNDS),
        seconds=study.speed.seconds,
        lease=None if plan.lane else str(folder / LEASE),
        foreign=study.speed.foreign,
    )


def _member(folder: Path, space: Space, point: TrialRecord) -> Member:
    """The network as the study's own training left it: settled where a part was learned, trained where that counts."""
    from trainers.together import Member

    knobs = patching.settled(point.knobs, point.attrs["scales"]) if space.learns(point.knobs) else dict(point.knobs)
    own = str(folder / point.folder) if space.on_images(point.knobs) else None
    return Member(label=point.label, knobs=knobs, folder=own)


def _clean(folder: Path, *, keep: bool) -> None:
    """Drops the checkpoints of a training that came to its end, but for the last of one that may be swept further."""
    checkpoints = sorted(folder.glob("epoch_*.pth"), key=lambda path: int(path.stem.partition("_")[2]))
    for path in [*checkpoints[: len(checkpoints) - keep], *folder.glob("learning/*.pth")]:
        path.unlink(missing_ok=True)
