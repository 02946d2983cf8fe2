"""Where a study stands: ``headway status``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.labels import short
from analysis.record import TrialRecord, TrialState
from search import tables
from search.eta import clock
from search.live import read_live
from search.store import Store
from search.study import Constraint, Study

_SHOWN = 8  # trials named in a line
_WAITS = {"train": "waits for a place to train", "speed": "waits for the speed node"}


def read_status(folder: Path, study: Study, store: Store) -> tuple[dict[str, Any], list[TrialRecord]]:
    """Reads where a study stands: the document of ``status --json``, and all trials.

    Args:
        folder: The study's.
        study: The study file.
        store: The study's, opened to look at it.
    """
    records = store.records()
    return document(records, study, folder, read_live(folder), store.seconds_run), records


def document(
    records: Sequence[TrialRecord],
    study: Study,
    folder: Path,
    live: Mapping[str, Any] | None,
    seconds_run: float,
) -> dict[str, Any]:
    """The document of ``status --json``.

    Args:
        records: All trials.
        study: The study file.
        folder: The study's.
        live: What ``read_live`` gives.
        seconds_run: Run time of all starts.
    """
    found = tables.summary(records, study, folder)
    counted = sum(record.state is not TrialState.INFEASIBLE for record in records)
    left = live.get("seconds_left") if live and live["running"] else None
    return {
        **found,
        "running": bool(live and live["running"]),
        "used": {"trials": counted, "hours": seconds_run / 3600, **_gpu_hours(found["compute_hours"], study)},
        "seconds_left": left,
        "end": None if left is None or live is None else live["updated"] + left,
        "failures": _failures(records),
        "infeasible": _infeasible(records, study),
        "live": None if live is None else {key: value for key, value in live.items() if key != "running"},
    }


def _gpu_hours(hours: float, study: Study) -> dict[str, float]:
    """Those in all trials, where they have a budget; only studies on GPUs do, and ``auto`` is one of them then."""
    if study.budget.gpu_hours is None:
        return {}
    gpus = 1 if study.resources.gpus == "auto" else study.resources.gpus
    return {"gpu_hours": hours * gpus * study.resources.workers}


def _failures(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """The reasons of FAILED trials, the first line of each, the most frequent first."""
    grouped: dict[str, list[int]] = {}
    for record in records:
        if record.state is TrialState.FAILED:
            grouped.setdefault((record.reason or "unknown").strip().splitlines()[0], []).append(record.number)
    found = [{"reason": reason, "trials": numbers} for reason, numbers in grouped.items()]
    return sorted(found, key=lambda item: (-len(item["trials"]), item["trials"]))


def _infeasible(records: Sequence[TrialRecord], study: Study) -> dict[str, int]:
    """How many INFEASIBLE trials break each constraint; one may break several."""
    refused = [record for record in records if record.state is TrialState.INFEASIBLE]
    constraints = [Constraint.parse(text) for text in study.constraints]
    return {str(item): sum((item.excess(record.metrics) or 0) > 0 for record in refused) for item in constraints}


def show(found: Mapping[str, Any], records: Sequence[TrialRecord], study: Study, now: float | None = None) -> None:
    """Prints where a study stands.

    Args:
        found: What ``document`` gives.
        records: All trials.
        study: The study file.
        now: Unix time.
    """
    console = tables.new_console()
    now = time.time() if now is None else now
    live = found["live"]

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"{study.name} in {found['folder']}")
    say(_driver(live, found["running"], now))
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items() if count)
    say(f"Trials:    {states or 'none yet'}")
    say(f"Budget:    {_budget(found)}")
    if found["end"] is not None:
        say(f"Ends:      about {_when(found['end'], now)}, in {clock(max(0.0, found['end'] - now))}")
    warm = found["warm"]
    if warm and warm["epoch"]:
        reached = f", AP {100 * warm['bbox_mAP']:.1f} %" if warm["bbox_mAP"] is not None else ""
        say(f"Warm:      shared warm start, epoch {warm['epoch']}/{warm['epochs']}{reached}, {warm['hours']:.2f} h")
    for reason, numbers in ((item["reason"], item["trials"]) for item in found["failures"]):
        say(f"FAILED:    {_several(numbers)}: {reason}")
    if found["states"]["INFEASIBLE"]:
        broken = ", ".join(f"{text} broken by {count}" for text, count in found["infeasible"].items() if count)
        say(f"INFEASIBLE: {broken}")
    if live is not None and found["running"]:
        _show_live(console, live, records, study, now)
    elif found["states"]["RUNNING"] or found["states"]["PROPOSED"]:
        left = [record.number for record in records if not record.state.finished]
        say(f"Left:      {_several(left)}; 'headway run' continues")
    tables.print_saved(records, study)


def _driver(live: Mapping[str, Any] | None, running: bool, now: float) -> str:
    if live is None:
        return "Driver:    not running"
    if running:
        since = clock(now - live["started"])
        halted = f"; starts nothing further: {live['halted']}" if live.get("halted") else ""
        return f"Driver:    running on {live['host']} since {since} (process {live['pid']}){halted}"
    if live["ended"] is not None:
        return f"Driver:    not running; ended {_ago(live['ended'], now)} on {live['host']}"
    return f"Driver:    not running; last seen {_ago(live['updated'], now)} on {live['host']}, it did not end by itself"


def _budget(found: Mapping[str, Any]) -> str:
    budget, used = found["budget"], found["used"]
    told = [f"{used['trials']} of {budget['trials']} trials"]
    told.append(f"{used['hours']:.2f}" + (f" of {budget['hours']:g} hours" if budget.get("hours") else " hours run"))
    if "gpu_hours" in used:
        told.append(f"{used['gpu_hours']:.2f} of {budget['gpu_hours']:g} GPU hours")
    return ", ".join([*told, f"{found['compute_hours']:.2f} hours in trials"])


def _show_live(
    console: Console, live: Mapping[str, Any], records: Sequence[TrialRecord], study: Study, now: float
) -> None:
    lanes = live.get("lanes")
    trials, known = live.get("trials") or [], {record.number: record for record in records}
    waits = {number: _WAITS[lane] for lane in _WAITS if lanes for number in lanes[lane]["waiting"]}
    if live.get("nodes"):
        table = Table(title="Nodes", title_justify="left")
        for name in ("node", "address"):
            table.add_column(name)
        for name in ("CPUs used", "GPUs used"):
            table.add_column(name, justify="right")
        table.add_column("trials")
        for node in live["nodes"]:
            at = [trial["trial"] for trial in trials if trial["node"] == node["name"]]
            there = [str(number) for number in at if number not in waits]
            name = f"{node['name']}{' (speed)' if node['speed'] else ''}"
            if not node["alive"]:
                table.add_row(escape(name), node["address"], "lost", "lost", "")
                continue
            used = [f"{node[f'{kind}_used']:g} of {node[kind]:g}" for kind in ("cpus", "gpus")]
            table.add_row(escape(name), node["address"], *used, ", ".join(there))
        console.print(table)
    if trials:
        table = Table(title="Running", title_justify="left")
        for name in ("trial", "epoch"):
            table.add_column(name, justify="right")
        for name in ("node", "last report", "design"):
            table.add_column(name, overflow="fold")
        for trial in trials:
            record = known.get(trial["trial"])
            epoch = f"{trial['epoch']}/{study.budget.epochs}"
            if trial["warm_epoch"] is not None and trial["warm_epoch"] < (study.warm_epochs or 0):
                epoch = f"warm start {trial['warm_epoch']}/{study.warm_epochs}"
            heard = "none yet" if trial["heard"] is None else _ago(trial["heard"], now)
            again = f" (start {trial['starts']})" if trial["starts"] > 1 else ""
            design = "" if record is None else tables.named(record.attrs, short(record.knobs))
            where = escape(waits.get(trial["trial"]) or trial["node"] or "starting")
            table.add_row(str(trial["trial"]), epoch, where, heard + again, escape(design))
        console.print(table)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if lanes:
        speed = lanes["speed"]
        doing = f"measures {_several(speed['running'])}" if speed["running"] else "is free"
        waiting = f"; waiting: {_several(speed['waiting'])}" if speed["waiting"] else ""
        say(f"Speed:     {speed['node']} {doing if speed['there'] else 'is lost'}{waiting}")
    mlflow, store = live.get("mlflow"), live.get("store")
    if mlflow and mlflow["down_since"] is not None:
        since = clock(now - mlflow["down_since"])
        waiting = f"; {mlflow['waiting']} trials wait to be delivered" if mlflow["waiting"] else ""
        say(f"MLflow:    away since {since} ({mlflow['where']}): {mlflow['reason']}{waiting}")
    if store and store.get("down_since") is not None:
        say(f"Store:     away since {clock(now - store['down_since'])}: {store['reason']}; the run waits for it")


def _several(numbers: Sequence[int]) -> str:
    """``trial 3`` or ``4 trials (1, 2, 3, 9)``."""
    if len(numbers) == 1:
        return f"trial {numbers[0]}"
    more = ", ..." if len(numbers) > _SHOWN else ""
    return f"{len(numbers)} trials ({', '.join(map(str, numbers[:_SHOWN]))}{more})"


def _ago(then: float, now: float) -> str:
    seconds = max(0.0, now - then)
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.0f} h ago" if seconds < 172800 else f"{seconds / 86400:.0f} days ago"


def _when(then: float, now: float) -> str:
    there = datetime.fromtimestamp(then).astimezone()
    today = datetime.fromtimestamp(now).astimezone().date()
    return there.strftime("%H:%M" if there.date() == today else "%a %d %b %H:%M")
