"""What must hold after a run, whatever died in it: each rule gives a line for each place where it is broken."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import trainer as analytic
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState as OptunaState

from analysis.record import TrialRecord, TrialState, further
from search.attributes import changes, record_of
from search.events import EVENTS, read_events, reconstruct
from search.rungs import RungPoint, decide
from search.store import Store
from search.study import Study

_TOLD = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.INFEASIBLE: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}


def of_store(study: Study, store: Store) -> Iterator[str]:
    """Every trial in one end state, each number and design once, as many as the budget says; Optuna the same."""
    records = store.records()
    numbers = [record.number for record in records]
    if numbers != list(range(len(records))):
        yield f"store: the trials are numbered {numbers}"
    for record in records:
        if not record.state.finished:
            yield f"store: trial {record.number} is {record.state.value}"
    counted = sum(record.state is not TrialState.INFEASIBLE for record in records)
    if counted != study.budget.trials:
        yield f"store: {counted} trials count, but the budget is {study.budget.trials}"
    designs = Counter(json.dumps(record.knobs, sort_keys=True) for record in records)
    for design, count in designs.items():
        if count > 1:
            yield f"store: {count} trials have the design {design}"
    told = {
        trial.user_attrs["headway:number"]: trial.state
        for trial in store._optuna.get_trials(deepcopy=False)
        if "headway:number" in trial.user_attrs
    }
    for trial in store._optuna.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            yield f"Optuna: row {trial.number} is {trial.state.name}"
    for record in records:
        if told.get(record.number) is not _TOLD.get(record.state):
            yield f"Optuna: trial {record.number} is {told.get(record.number)}, in the store {record.state.value}"


def of_training(study: Study, folder: Path, records: Sequence[TrialRecord], *, analytic_trainer: bool) -> Iterator[str]:
    """Epochs once and in order, in the store and on disk; a stopped trial stopped at a rung that said so."""
    for record in records:
        who = f"trial {record.number} ({record.state.value})"
        epochs = [epoch.epoch for epoch in record.curve]
        if epochs != list(range(1, len(epochs) + 1)):
            yield f"store: {who} has the epochs {epochs}"
        if record.state is TrialState.COMPLETE and len(epochs) != study.budget.epochs:
            yield f"store: {who} has {len(epochs)} of {study.budget.epochs} epochs"
        stops = [epoch for epoch, word in record.rungs.items() if word.startswith("stop")]
        if (record.state is TrialState.STOPPED) != bool(stops) or (stops and stops != epochs[-1:]):
            yield f"store: {who} has {len(epochs)} epochs and the rungs {dict(record.rungs)}"
        seconds = [epoch.seconds for epoch in record.curve]
        if seconds != sorted(seconds):
            yield f"store: {who} has epochs whose times go back: {seconds}"
        if not analytic_trainer:
            continue
        log = folder / record.folder / analytic.TRAINED
        trained = [int(line) for line in log.read_text(encoding="utf-8").split()] if log.exists() else []
        if len(set(trained)) != len(trained) or trained != sorted(trained):
            yield f"disk: {who} trained the epochs {trained}"
        if record.state in (TrialState.COMPLETE, TrialState.STOPPED):
            published = json.loads((folder / record.folder / analytic.CHECKPOINT).read_text(encoding="utf-8"))
            if published != epochs or not set(trained) <= set(epochs):
                yield f"disk: {who} has {epochs} in the store, {published} in its checkpoint, trained {trained}"


def of_undisturbed(records: Sequence[TrialRecord], undisturbed: Sequence[TrialRecord]) -> Iterator[str]:
    """The same designs, states, rung decisions and figures as where nothing happened."""
    if len(records) != len(undisturbed):
        yield f"undisturbed: {len(undisturbed)} trials, here {len(records)}"
    for here, there in zip(records, undisturbed, strict=False):
        for name in ("knobs", "state", "rungs"):
            mine, other = getattr(here, name), getattr(there, name)
            if mine != other:
                yield f"undisturbed: trial {here.number} has {name} {other}, here {mine}"
        curves = [{epoch.epoch: dict(epoch.metrics) for epoch in record.curve} for record in (here, there)]
        if curves[0] != curves[1]:
            yield f"undisturbed: trial {here.number} has the curve {curves[1]}, here {curves[0]}"


def of_events(folder: Path, records: Sequence[TrialRecord]) -> Iterator[str]:
    """The run as its event log tells it is the run in the store; whole lines only."""
    path = folder / EVENTS
    told = reconstruct(path)
    for here, there in zip(records, told, strict=False):
        # As text, since a figure that is not a number equals nothing.
        if repr(here) != repr(there):
            yield f"events: trial {here.number} is {there}, in the store {here}"
    if len(told) != len(records):
        yield f"events: {len(told)} trials, in the store {len(records)}"
    torn = sum(1 for line in path.read_bytes().splitlines() if line.strip()) - sum(1 for _ in read_events(path))
    if torn:
        yield f"events: {torn} lines are torn"


def of_decisions(study: Study, folder: Path) -> Iterator[str]:
    """Each rung decision is what the rule says of the trials that the log knew at that moment."""
    trials: dict[int, dict[str, Any]] = {}
    for event in read_events(folder / EVENTS):
        number, name = event.get("trial"), event["event"]
        if number is None:
            continue
        if name == "restored":
            trials[number] = dict(event["values"])
            continue
        if name == "dropped":
            trials.pop(number, None)
            continue
        if name == "rung" and study.rungs is not None:
            rung = max(epoch for epoch in study.rung_epochs if epoch <= event["epoch"])
            points = {key: _point(study, record_of(values), rung) for key, values in trials.items()}
            there = {key: point for key, point in points.items() if point is not None}
            decision = decide(there.pop(number), list(there.values()), study.rungs.factor, study.rungs.method)
            wanted = f"{'continue' if decision.go_on else 'stop'}: {decision.reason}"
            if not event["decision"].startswith(wanted):
                yield f"rungs: trial {number}, epoch {event['epoch']}: {event['decision']}; by the rule: {wanted}"
        before = trials.setdefault(number, {})
        before.update(changes(name, event, before))


def _point(study: Study, record: TrialRecord, rung: int) -> RungPoint | None:
    metrics = next((epoch.metrics for epoch in record.curve if epoch.epoch == rung), None)
    if metrics is None:
        return None
    costs = tuple(record.metrics.get(item.metric) for item in study.objectives[1:])
    return RungPoint(record.number, (metrics[study.objectives[0].metric],), costs)


def of_mlflow(uri: str, study: Study, records: Sequence[TrialRecord]) -> Iterator[str]:
    """One parent that has ended, each trial once, in the same state and with the same series."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study.tracking.experiment or study.name)
    if experiment is None:
        yield "MLflow: there is no experiment"
        return
    runs: list[Any] = []
    token = None
    while token is None or token:
        page = client.search_runs([experiment.experiment_id], page_token=token or None)
        runs, token = runs + list(page), page.token or ""
    parents = [run for run in runs if run.data.tags.get("headway.role") == "study"]
    if [run.info.status for run in parents] != ["FINISHED"]:
        yield f"MLflow: the parent runs are {[run.info.status for run in parents]}"
    labels = Counter(run.data.tags.get("headway.trial") for run in runs if run not in parents)
    wanted = {item.label for record in records for item in (record, *further(record))}
    if labels != Counter(wanted):
        yield f"MLflow: the trials' runs are {dict(labels)}, but the store has {sorted(wanted)}"
    by_label = {run.data.tags.get("headway.trial"): run for run in runs}
    for record in records:
        run = by_label.get(record.label)
        if run is None:
            continue
        status = "FAILED" if record.state is TrialState.FAILED else "FINISHED"
        if (run.info.status, run.data.tags.get("headway.state")) != (status, record.state.value):
            found = f"{run.info.status}, {run.data.tags.get('headway.state')}"
            yield f"MLflow: trial {record.number} is {found}, in the store {record.state.value}"
        for name in {name for epoch in record.curve for name in epoch.metrics}:
            wanted_series = [
                (epoch.epoch, epoch.metrics[name])
                for epoch in record.curve
                if name in epoch.metrics and math.isfinite(epoch.metrics[name])
            ]
            series = sorted(
                (item.step, item.value) for item in client.get_metric_history(run.info.run_id, f"epoch/{name}")
            )
            if series != wanted_series:
                yield f"MLflow: trial {record.number} has {name} {series}, in the store {wanted_series}"


def of_folder(folder: Path, logs: Sequence[Path], secrets: Sequence[str]) -> Iterator[str]:
    """Nothing half-written is left, and no password where people look."""
    for pattern in ("**/*.part", "**/*.tmp", "**/*.part.*", "ray"):
        for path in folder.glob(pattern):
            yield f"folder: {path.relative_to(folder)} is left"
    public = [*logs, *folder.glob("*.jsonl"), *folder.glob("front.*"), *folder.glob("mlflow.db*")]
    for path in public:
        content = path.read_bytes() if path.is_file() else b""
        for secret in secrets:
            if secret.encode() in content:
                yield f"secrets: the database's password is in {path.name}"


def alive(marker: str, known: Mapping[int, Any] | Sequence[int] = ()) -> dict[int, str]:
    """Gives the processes whose environment holds ``marker``, by id, with their command."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (path / "environ").read_bytes() and int(path.name) not in known:
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
        except OSError:
            continue
    return {number: command for number, command in found.items() if command}
