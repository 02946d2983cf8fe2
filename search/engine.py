"""The story of a run."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.pareto import front_rows, write_front_csv, write_front_json
from analysis.record import TrialRecord, TrialState
from search.begun import begun
from search.conductor import Conductor
from search.confirm import confirmed
from search.delivery import open_courier, run_status
from search.designs import listed, study_space
from search.events import EVENTS, EventLog
from search.folder import LEASE, STUDY_FILE, claimed, find_study, room, write_study
from search.live import Live, Seen, UnderWay, time_left
from search.places import Places
from search.progress import Progress, say
from search.proposals import EarlierPoint, check_sampler, earlier_points
from search.report import leave_report
from search.resources import Resources
from search.store import Store, await_database, plainly
from search.study import Study
from search.study_lock import held
from spaces.base import facts
from spaces.errors import CutShort, HeadwayError, UserError, choices
from spaces.space import Space
from trainers import files
from trainers.config import batch_of, load_base
from trainers.contract import DataRequest
from trainers.data import DataReport, Split, check_data
from trainers.digits import write_digits

if TYPE_CHECKING:
    from analysis.plots import Runs


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes:
        records: All trials.
        finished: Whether the budget is spent or the space exhausted; else it was interrupted.
        note: Why it ended before ``budget.trials``, if it did.
    """

    records: Sequence[TrialRecord] = field(repr=False)
    finished: bool
    note: str | None


def prepare(study: Study, *, deep: bool | None = None) -> tuple[DataRequest, DataReport, Space]:
    """Checks data, base and space, before anything is written but the embedded data set's cache.

    Args:
        study: The study.
        deep: Whether every image of the user's own data is opened, see ``check_data``.

    Raises:
        UserError: Whatever is wrong with them.
    """
    for key, value, words in (
        ("weights.from", study.weights.from_, ("scratch", "baseline")),
        ("weights.backbone", study.weights.backbone, ("auto", "none")),
    ):
        if value not in words and not Path(value).is_file():
            raise UserError(f"{key}: must be {choices([*words, 'a checkpoint'])}, but there is no file {value}.")
    space = prepare_space(study)
    _check_batch(study)
    if study.placeholders:
        raise UserError(f"data: {fill_in(study)}")
    if study.data.digits is not None:
        digits = study.data.digits
        paths = write_digits(train=digits.train, val=digits.val, size=study.data.size, seed=digits.seed)
        train = Split(paths.train_annotations, paths.train_images)
        val = Split(paths.val_annotations, paths.val_images)
    else:
        assert study.data.train is not None
        assert study.data.val is not None
        train = Split(Path(study.data.train.annotations), Path(study.data.train.images))
        val = Split(Path(study.data.val.annotations), Path(study.data.val.images))
    deep = deep if study.data.digits is None else False  # what Headway wrote itself
    report = check_data(train, val, study.data.classes, deep=deep)
    _check_sizes(study, report)
    data = DataRequest(
        train_annotations=str(train.annotations),
        train_images=str(train.images),
        val_annotations=str(val.annotations),
        val_images=str(val.images),
        classes=tuple(report.classes),
        size=study.data.size,
    )
    return data, report, space


def prepare_space(study: Study) -> Space:
    """Checks base and space, and the designs where the study file lists them.

    Raises:
        UserError: Whatever is wrong with them.
    """
    space = study_space(study, facts(load_base(study.base, trained=True).model.to_dict(), f"base {study.base}"))
    check_sampler(study, space)
    designs = listed(study, space)
    learns = any(space.learns(named.knobs) for named in designs) if study.designs else space.may_learn()
    if learns and study.budget.epochs < 2:
        raise UserError(
            f"budget.epochs: must be 2 or more, since a part of the network is learned before it is fine-tuned, "
            f"but got {study.budget.epochs}."
        )
    return space


def fill_in(study: Study) -> str:
    """Says which paths of a study file are still placeholders."""
    named = ", ".join(f"{key} ({path})" for key, path in study.placeholders.items())
    return f"must be filled in before a run: {named}."


def _check_batch(study: Study) -> None:
    """Refuses a batch that cannot be divided among the workers of a trial."""
    workers = study.resources.workers
    batch = study.training.batch or batch_of(load_base(study.base, trained=True))
    if batch % workers:
        below = batch // workers * workers
        near = f"{below} or {below + workers}" if below else str(workers)
        got = f"got {batch}" if study.training.batch else f"base {study.base} has {batch}"
        raise UserError(
            f"training.batch: must be divisible by resources.workers ({workers}), such as {near}, but {got}."
        )


def _check_sizes(study: Study, report: DataReport) -> None:
    """Refuses an accuracy of objects of a size that the validation split does not have: it would have no value."""
    for objective in study.objectives:
        for size, count in report.val.sizes.items():
            if objective.metric == f"bbox_mAP_{size[0]}" and not count:
                raise UserError(
                    f"objectives: {objective.metric} needs {size} objects, but the validation split has none "
                    f"(by size: {', '.join(f'{number} {name}' for name, number in report.val.sizes.items())})."
                )


def run(
    study: Study,
    root: Path,
    *,
    address: str | None = None,
    extend: bool = False,
    trainer: str = "trainers.detector:train",
) -> Outcome:
    """Starts a study or continues it.

    Args:
        study: The study file.
        root: Folder of all studies.
        address: A Ray cluster, ``None`` for this machine.
        extend: The budget may have grown since the last start.
        trainer: ``module:function`` of the trials' trainer.

    Raises:
        UserError: The input is wrong; nothing is left behind.
        HeadwayError: The baseline failed.
        CutShort: No trial can go on here.
    """
    from search.ray_adapter import cluster, lanes, preflight
    from search.ray_adapter.view import view
    from search.tracking import is_database

    folder = root / study.name
    data, report, space = prepare(study)
    with ExitStack() as stack:
        stack.enter_context(room(folder))
        stack.enter_context(claimed(folder))
        log = stack.enter_context(closing(EventLog(folder / EVENTS)))
        await_database(study, folder, log, say)
        guard = stack.enter_context(held(study.storage, study.name))
        if study.tracking.uri and not is_database(study.tracking.uri) and not (folder / STUDY_FILE).exists():
            from search.tracking.server import reach

            reach(study.tracking.uri)  # before anything is written; a study that was begun there goes on without it
        told = _earlier(study, space, root)
        store = Store.create(folder, study, extend=extend, journal=log, guard=guard, say=say)
        store.settle()
        if store.earlier is None:
            store.earlier = told
        left = study.budget.trials - sum(_counts(record) for record in store.records())
        live = stack.enter_context(Live(folder))
        tracker = open_courier(study, folder, lambda kind, why: log.write(kind, why=why))
        with ThreadPoolExecutor(1) as beside:
            beside.submit(importlib.import_module, "search.ray_adapter.tuner")  # while Ray's processes start
            ready = cluster.ready(study.resources, left, trainer, folder / LEASE) if address is None else None
            cluster.connect(address, ready)  # late, since it takes long
        from search.ray_adapter import tuner

        if address is not None:
            preflight.check_nodes(preflight.needs(study, data, folder))
        plan = lanes.plan(cluster.nodes(), study.resources, study.speed.device)
        share = plan.share
        check_gpu_hours(study, share)
        records = confirmed(store)
        check_speed_device(store, records, plan.speed_device)
        progress = Progress(study, sum(_counts(record) for record in records), sys.stderr)
        own = study.tracking.uri is None  # in the study's folder
        if own:
            stack.callback(tracker.settled)
        tracker.begin(records, unhurried=own)
        begun(log, study, address, share)
        write_study(folder, study)

        def draw(record: TrialRecord) -> None:
            if record.state.finished and tracker.due:
                tracker.study(confirmed(store))

        places = Places()
        under_way = UnderWay(places)
        conductor = Conductor(
            study,
            space,
            store,
            folder=folder,
            data=data,
            device=share.device,
            speed_device=plan.speed_device,
            threads=share.cpus,
            concurrent=plan.under_way,
            gpus=share.gpus * study.resources.workers,
            listeners=(tracker.trial, progress, draw, under_way),
            places=places,
        )
        live.sources = {
            "nodes": Seen(view, lambda event, name: log.write(event, node=name)).rows,
            "trials": under_way.rows,
            "lanes": lambda: (tuner.snapshot() or {}).get("lanes"),
            "mlflow": lambda: asdict(tracker.state),
            "store": lambda: None if store.away is None else dict(zip(("down_since", "reason"), store.away)),
            "halted": lambda: conductor.halted,
            "seconds_left": lambda: time_left(progress.eta, study.budget.hours, store.seconds_run),
        }
        for line in report.summary():
            progress.say(line)
        progress.say(_plan_line(study, space, share.concurrent))
        progress.say(plan.told)
        with plainly(store):
            tuner.run(
                conductor,
                share,
                folder / "ray",
                trainer,
                lane=plan.lane,
                say=progress.say,
                lease=lambda number, held: log.write("lease", trial=number, held=held),
            )
        records = confirmed(store)
        finished = all(record.state.finished for record in records)
        page = leave_report(study, folder, records, seconds_run=store.seconds_run, data=report, space=space)
        tracker.close(run_status(records), [page] if page else [])
        write_pages(folder, study, records, tracker.runs)
        for record in records:
            _clean(folder / record.folder, record)
        note = None
        if conductor.exhausted and not study.designs:
            note = "every design of the space that could be found was tried"
        elif conductor.out_of_time:
            note = f"the {study.budget.hours:g} hours of the budget are spent"
        elif conductor.out_of_gpu_hours is not None:
            note = str(conductor.out_of_gpu_hours)
        store.settle()
        log.write(
            "finished",
            finished=finished,
            states=Counter(record.state.value for record in records),
            why=conductor.baseline_failure or conductor.halted or note,
        )
        if conductor.baseline_failure:
            raise HeadwayError(
                f"{study.name}: the baseline failed, and every design is compared with it: "
                f"{conductor.baseline_failure}\n"
                f"  its log is in {folder / 'trials/0000'}; mend the cause, remove {folder} and run again."
            )
        if conductor.halted is not None:
            raise CutShort(f"{study.name}: {conductor.halted}; nothing is lost, the same command continues.")
        return Outcome(records, finished, note)


def _earlier(study: Study, space: Space, root: Path) -> list[EarlierPoint]:
    """Reads what earlier studies can tell.

    Raises:
        UserError: One of them was never run, or has nothing to refer to.
    """
    found = []
    for word in study.sampler.earlier:
        folder, other = find_study(word, root)
        found += earlier_points(study, space, other.name, Store.read(folder, other).records())
    return found


def write_pages(folder: Path, study: Study, records: Sequence[TrialRecord], runs: Runs | None = None) -> None:
    """Writes ``pareto.html``, ``.png`` and ``.svg``, ``front.csv`` and ``front.json`` into the study's folder."""
    from analysis import plots

    objectives = study.objective_records
    rows = front_rows(records, objectives)
    page = plots.pareto_html(records, objectives, title=study.name, runs=runs)
    files.write_text(folder / "pareto.html", page)
    picture = plots.pareto_picture(records, objectives, title=study.name)
    files.write_bytes(folder / "pareto.png", plots.png(picture))
    files.write_text(folder / "pareto.svg", plots.svg(picture))
    write_front_csv(rows, folder / "front.csv")
    write_front_json(rows, folder / "front.json")


def check_gpu_hours(study: Study, share: Resources) -> None:
    """Refuses a budget of what is not used."""
    if study.budget.gpu_hours is not None and not share.gpus:
        raise UserError(
            f"budget.gpu_hours: must be null where trials use no GPU, but got {study.budget.gpu_hours:g}; "
            "budget.hours limits the time."
        )


def check_speed_device(store: Store, records: Sequence[TrialRecord], device: str) -> None:
    """Refuses to go on where ratios would refer to a latency of another kind of device."""
    if records and records[0].state.finished and store.reference_ms is not None:
        before = records[0].attrs.get("speed_kind", device)
        if before != device:
            raise UserError(
                f"speed.device: must stay {before}, on which this study's latencies were measured, but here it is "
                f"{device}; continue on such a machine, or give the study another name."
            )


def _counts(record: TrialRecord) -> bool:
    return record.state.finished and record.state is not TrialState.INFEASIBLE


def _plan_line(study: Study, space: Space, concurrent: int) -> str:
    size = float(1 + len(study.designs)) if study.designs else space.size()
    count = "infinitely many" if size == float("inf") else f"{size:,.0f}"
    rungs = f"compared after epochs {', '.join(map(str, study.rung_epochs))}" if study.rung_epochs else "never stopped"
    side = f"{concurrent} side by side" if concurrent > 1 else "one at a time"
    return f"{study.budget.trials} trials of {study.budget.epochs} epochs, {rungs}, {side}, from {count} settings"


def _clean(folder: Path, record: TrialRecord) -> None:
    """Drops the checkpoints that nobody can continue or export: of a COMPLETE trial all but the last."""
    complete = record.state is TrialState.COMPLETE
    keep = Path(record.attrs.get("checkpoint", "")).name if complete else ""
    if not record.state.finished or (complete and not keep):
        return
    for checkpoint in folder.glob("*.pth"):
        if checkpoint.name != keep:
            checkpoint.unlink(missing_ok=True)
