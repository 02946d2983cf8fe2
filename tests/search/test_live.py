"""What a running study shows of itself, and what ``headway status`` makes of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from analysis.record import EpochRecord, TrialRecord, TrialState
from search.cli import main
from search.eta import Eta
from search.folder import write_study
from search.live import Live, Seen, UnderWay, read_live, time_left
from search.places import Places, Where
from search.status import document, show
from search.store import Store
from search.study import Study, load

STUDY = """
name: told
base: headway::gfl_tiny
data: {digits: {train: 8, val: 4}, size: [96, 96]}
space: {slimhead: {}}
constraints: ["params_m <= 40", "gmacs <= 200"]
budget: {trials: 20, epochs: 4, hours: 2}
"""
NOW = 1_800_000_000.0


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "told.yaml").write_text(STUDY)
    return load(tmp_path / "told.yaml")


def wait_for(reached: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_is_written_again_and_again_whatever_fails(tmp_path: Path) -> None:
    values = iter(range(10**6))

    def broken() -> None:
        raise RuntimeError("the cluster is gone")

    with Live(tmp_path, seconds=0.05) as live:
        wait_for(lambda: read_live(tmp_path))  # before anything is known
        live.sources = {"count": lambda: next(values), "nodes": broken}
        wait_for(lambda: (read_live(tmp_path) or {}).get("count", 0) >= 2)
        found = read_live(tmp_path)
        assert found is not None
        assert (found["pid"], found["host"], found["nodes"]) == (os.getpid(), socket.gethostname(), None)
        assert found["running"] and found["ended"] is None and found["started"] <= found["updated"]
        # The folder is away for a while.
        tmp_path.rename(tmp_path.with_name("away"))
        time.sleep(0.3)
        assert read_live(tmp_path) is None
        tmp_path.with_name("away").rename(tmp_path)
        before = found["count"]
        wait_for(lambda: (read_live(tmp_path) or {}).get("count", 0) > before + 3)
    found = read_live(tmp_path)
    assert found is not None
    assert found["ended"] is not None and not found["running"]
    assert [path.name for path in tmp_path.iterdir()] == ["live.json"]


def test_a_driver_that_was_killed_is_not_running(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    written = {"pid": process.pid, "host": socket.gethostname(), "updated": NOW, "ended": None}

    def running(**changes: Any) -> bool:
        (tmp_path / "live.json").write_text(json.dumps({**written, **changes}))
        found = read_live(tmp_path, clock=lambda: NOW + 10)
        assert found is not None
        return bool(found["running"])

    assert not running()
    assert running(pid=os.getpid())
    assert running(host="elsewhere")  # where its processes cannot be seen
    assert not running(host="elsewhere", updated=NOW - 25)
    assert not running(pid=os.getpid(), ended=NOW)
    (tmp_path / "live.json").write_text("{")
    assert read_live(tmp_path) is None


def test_what_runs_where(tmp_path: Path) -> None:
    times = iter([NOW, NOW + 1, NOW + 2, NOW + 3])
    places = Places(clock=lambda: next(times))
    under_way = UnderWay(places)
    record = TrialRecord(3, TrialState.RUNNING, knobs={}, started=NOW)
    under_way(record)
    assert [(row["trial"], row["node"], row["starts"]) for row in under_way.rows()] == [(3, None, 0)]
    first, second = Where("box", "3f2a9c1e77", 11), Where("box", "99887766aa", 12)
    for where in (first, first, second):
        places.heard(3, where)
    under_way(replace(record, curve=[EpochRecord(1, {}, 1.0)]))
    [row] = under_way.rows()
    assert row == {
        "trial": 3, "epoch": 1, "warm_epoch": None, "started": NOW,
        "node": "box/99887766", "pid": 12, "starts": 2, "heard": NOW + 2,
    }  # fmt: skip
    under_way(replace(record, state=TrialState.STOPPED))
    assert under_way.rows() == []


def test_nodes_that_were_dead_before_are_not_shown() -> None:
    @dataclass(frozen=True)
    class Node:
        id: str
        alive: bool

        @property
        def name(self) -> str:
            return f"box/{self.id}"

    views = iter([[Node("a", True), Node("b", False)], [Node("a", False), Node("b", False), Node("c", True)]])
    told: list[tuple[str, str]] = []
    seen = Seen(lambda: next(views), lambda *what: told.append(what))
    assert seen.rows() == [{"id": "a", "alive": True}]
    assert seen.rows() == [{"id": "a", "alive": False}, {"id": "c", "alive": True}]
    assert told == [("node_joined", "box/a"), ("node_lost", "box/a"), ("node_joined", "box/c")]


def test_the_end_is_the_estimate_or_that_of_the_hours() -> None:
    eta = Eta(10)
    assert time_left(eta, None, 0.0) is None
    assert time_left(eta, 2, 3600.0) == 3600.0
    assert time_left(eta, 2, 9000.0) == 0.0


def records() -> list[TrialRecord]:
    def ended(number: int, state: TrialState, reason: str | None = None, **metrics: float) -> TrialRecord:
        figures = {"params_m": 30.0, "gmacs": 100.0, **metrics}
        return TrialRecord(number, state, knobs={}, metrics=figures, reason=reason, compute_hours=0.25)

    memory = "CUDA out of memory: tried to allocate 2 GiB\nsee the log"
    return [
        ended(0, TrialState.COMPLETE, bbox_mAP=0.3, latency_ms=20.0),
        ended(1, TrialState.FAILED, memory),
        ended(2, TrialState.FAILED, "the loss is NaN at epoch 1"),
        ended(3, TrialState.FAILED, memory),
        ended(4, TrialState.INFEASIBLE, "must hold", params_m=50.0),
        ended(5, TrialState.INFEASIBLE, "must hold", params_m=50.0, gmacs=300.0),
        TrialRecord(6, TrialState.RUNNING, knobs={"slimhead.ratio": 0.5}, started=NOW - 100),
    ]


LIVE: dict[str, Any] = {
    "pid": 4711, "host": "head", "started": NOW - 3700, "updated": NOW - 2, "ended": None, "running": True,
    "halted": None, "seconds_left": 3602.0,
    "nodes": [
        {"id": "a1", "name": "box/a1", "address": "10.0.0.1", "alive": True, "cpus": 8.0, "gpus": 2.0,
         "cpus_used": 4.0, "gpus_used": 1.0, "speed": True},
        {"id": "b2", "name": "box/b2", "address": "10.0.0.2", "alive": False, "cpus": 0.0, "gpus": 0.0,
         "cpus_used": 0.0, "gpus_used": 0.0, "speed": False},
    ],
    "trials": [
        {"trial": 6, "epoch": 2, "warm_epoch": None, "started": NOW - 100, "node": "box/a1", "pid": 9, "starts": 2,
         "heard": NOW - 5},
        {"trial": 7, "epoch": 4, "warm_epoch": None, "started": NOW - 90, "node": "box/a1", "pid": 10, "starts": 1,
         "heard": NOW - 9},
    ],
    "lanes": {
        "train": {"running": [], "waiting": [], "places": 2},
        "speed": {"running": [6], "waiting": [7, 8], "places": 1, "node": "box", "there": True},
    },
    "mlflow": {"where": "http://h:5000", "down_since": NOW - 65, "reason": "Connection refused", "waiting": 3},
}  # fmt: skip


def test_status_says_where_a_running_study_stands(
    study: Study, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = document(records(), study, tmp_path, LIVE, 3600.0)
    assert (found["seconds_left"], found["end"]) == (3602.0, NOW + 3600)
    assert found["failures"] == [
        {"reason": "CUDA out of memory: tried to allocate 2 GiB", "trials": [1, 3]},
        {"reason": "the loss is NaN at epoch 1", "trials": [2]},
    ]
    assert found["infeasible"] == {"params_m <= 40": 2, "gmacs <= 200": 1}
    assert found["used"] == {"trials": 5, "hours": 1.0}
    assert json.loads(json.dumps(found))["live"]["nodes"][0]["gpus_used"] == 1.0
    show(found, records(), study, NOW)
    told = capsys.readouterr().out
    for line in (
        "Driver:    running on head since 1:01:40 (process 4711)",
        "Trials:    2 INFEASIBLE, 1 RUNNING, 1 COMPLETE, 3 FAILED",
        "Budget:    5 of 20 trials, 1.00 of 2 hours, 1.50 hours in trials",
        ", in 1:00:00",
        "FAILED:    2 trials (1, 3): CUDA out of memory: tried to allocate 2 GiB\n",
        "FAILED:    trial 2: the loss is NaN at epoch 1",
        "INFEASIBLE: params_m <= 40 broken by 2, gmacs <= 200 broken by 1",
        "Speed:     box measures trial 6; waiting: 2 trials (7, 8)",
        "MLflow:    away since 1:05 (http://h:5000): Connection refused; 3 trials wait to be delivered",
    ):
        assert line in told, told
    rows = [[cell.strip() for cell in line.strip("│ \n").split("│")] for line in told.splitlines() if "│" in line]
    assert ["box/a1 (speed)", "10.0.0.1", "4 of 8", "1 of 2", "6"] in rows
    assert ["box/b2", "10.0.0.2", "lost", "lost"] in [row[:4] for row in rows]
    assert ["6", "2/4", "box/a1", "5 s ago (start 2)"] in [row[:4] for row in rows]
    assert ["7", "4/4", "waits for the speed node", "9 s ago"] in [row[:4] for row in rows]


@pytest.mark.parametrize(
    ("live", "said"),
    [
        (None, "Driver:    not running\n"),
        ({"updated": NOW - 600}, "not running; last seen 10 min ago on head, it did not end by itself"),
        ({"updated": NOW - 600, "ended": NOW - 600}, "not running; ended 10 min ago on head"),
    ],
)
def test_status_says_that_nothing_runs(
    live: Any, said: str, study: Study, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    live = None if live is None else {**LIVE, **live, "running": False}
    found = document(records(), study, tmp_path, live, 0.0)
    assert (found["running"], found["seconds_left"], found["end"]) == (False, None, None)
    show(found, records(), study, NOW)
    told = capsys.readouterr().out
    assert said in told
    assert "Left:      trial 6; 'headway run' continues" in told
    assert "Ends:" not in told and "Nodes" not in told


def test_the_command(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "studies/told"
    folder.mkdir(parents=True)
    write_study(folder, study)
    Store.create(folder, study).seconds_run = 1800.0
    live = {**LIVE, "host": socket.gethostname(), "pid": os.getpid(), "updated": time.time(), "started": time.time()}
    (folder / "live.json").write_text(json.dumps(live))
    assert main(["status", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["running"] is True
    assert found["used"] == {"trials": 0, "hours": 0.5}
    assert found["live"]["lanes"]["speed"]["waiting"] == [7, 8]
    assert main(["status", str(folder), "--json", "--follow"]) == 2
    (folder / "live.json").unlink()
    assert main(["status", str(folder), "--follow"]) == 0  # nothing to follow
