"""A real MLflow server that dies, comes back, answers too late, and stays away."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mlflow.tracking import MlflowClient

from analysis.record import EpochRecord, Objective, TrialRecord, TrialState
from search.store import Store
from search.study import load
from search.tracking import Courier, Tracker, default_uri, tracker, ui_command, ui_environment

HERE = Path(__file__).parent
TWO = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))


class Server:
    """MLflow's server on a port of its own; its store outlives it."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.store, self.url = default_uri(folder), f"http://127.0.0.1:{self.port}"
        self.database, self.log = folder / "mlflow.db", folder / "server.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ui_command(self.store, self.port),
                env=ui_environment(self.store),
                cwd=self.log.parent,  # for its artifacts
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self.answers, 120)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200)
        return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # its worker would serve on
            self.process.wait()
            self.process = None

    def made(self, experiment: str) -> list[str]:
        """The trials of the child runs, in the order in which they were made."""
        with sqlite3.connect(self.database) as database:
            rows = database.execute(
                "select t.value from runs r join tags t on t.run_uuid = r.run_uuid join experiments e "
                "on e.experiment_id = r.experiment_id where t.key = 'headway.trial' and e.name = ? "
                "and r.lifecycle_stage = 'active' order by r.rowid",
                (experiment,),
            )
            return [row[0] for row in rows]

    def epochs(self, experiment: str) -> dict[str, list[tuple[int, int]]]:
        """Step and time in ms of each value of the accuracy's series, by trial."""
        client = MlflowClient(self.store)
        found = client.get_experiment_by_name(experiment)
        assert found is not None
        return {
            run.data.tags["headway.trial"]: [
                (metric.step, metric.timestamp)
                for metric in client.get_metric_history(run.info.run_id, "epoch/bbox_mAP")
            ]
            for run in client.search_runs([found.experiment_id])
            if "headway.trial" in run.data.tags
        }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    served = Server(tmp_path_factory.mktemp("served"))
    served.start()
    yield served
    served.kill()


def wait_for(reached: Callable[[], object], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(number: int, epochs: int) -> TrialRecord:
    curve = [EpochRecord(e, {"bbox_mAP": 0.1 * e}, seconds=10.0 * e) for e in range(1, epochs + 1)]
    knobs = {"slimhead.ratio": 0.5 + number / 100} if number else {}
    return TrialRecord(number, TrialState.RUNNING, knobs=knobs, curve=curve, started=1000.0 + number)


def ended(number: int) -> TrialRecord:
    metrics = {"bbox_mAP": 0.3, "latency_ms": 50.0 - number}
    return replace(running(number, 3), state=TrialState.COMPLETE, metrics=metrics, finished=2000.0 + number)


def carrier(url: str, folder: Path, told: list[str]) -> Courier:
    def opened() -> Tracker:
        return Tracker.open(
            uri=url, experiment=folder.name, study="cells", study_folder=folder, params={}, objectives=TWO
        )

    return Courier(opened, url, lambda kind, reason: told.append(kind))


def each_once(numbers: range) -> dict[str, list[tuple[int, int]]]:
    return {str(n): [(epoch, int(1000 * (1000 + n + 10 * epoch))) for epoch in (1, 2, 3)] for n in numbers}


def test_a_server_that_dies_and_comes_back(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "RETRY_SECONDS", 1.0)
    told: list[str] = []
    carried = carrier(server.url, tmp_path, told)
    carried.begin([])
    for record in (ended(0), running(1, 1)):
        carried.trial(record)
    wait_for(lambda: server.made(tmp_path.name) == ["0", "1"])
    server.kill()
    began = time.monotonic()
    for record in (running(3, 2), running(2, 1), ended(3), running(1, 2), ended(2), ended(1)):
        carried.trial(record)
    assert time.monotonic() - began < 0.5
    wait_for(lambda: carried.state.down_since is not None)
    server.start()
    wait_for(lambda: carried.state.down_since is None)
    carried.close("FINISHED")
    assert told == ["tracking_down", "tracking_back"]
    assert server.made(tmp_path.name) == ["0", "1", "2", "3"]
    assert server.epochs(tmp_path.name) == each_once(range(4))


class Deaf(http.server.BaseHTTPRequestHandler):
    """Passes requests on to a server, but loses the answer to every other one that writes."""

    protocol_version = "HTTP/1.1"
    target = ""
    lost: ClassVar[Counter[str]] = Counter()
    seen: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        request = urllib.request.Request(self.target + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, content, kind = answer.status, answer.read(), answer.headers.get("Content-Type", "")
        except urllib.error.HTTPError as error:
            status, content, kind = error.code, error.read(), error.headers.get("Content-Type", "")
        name = self.path.rpartition("/")[2]
        if name in ("create", "log-batch", "update"):
            self.seen[name] += 1
            if self.seen[name] % 2:
                self.lost[name] += 1
                self.close_connection = True
                return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


def test_answers_that_are_lost_double_nothing(server: Server, tmp_path: Path) -> None:
    """Each write is done, its answer is lost, and the client does it again."""
    Deaf.target = server.url
    between = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Deaf)
    between.daemon_threads = True
    threading.Thread(target=between.serve_forever, daemon=True).start()
    carried = carrier(f"http://127.0.0.1:{between.server_port}", tmp_path, [])
    carried.begin([])
    for number in range(3):
        carried.trial(running(number, 1))
        wait_for(lambda number=number: str(number) in server.made(tmp_path.name))
        carried.trial(ended(number))
    carried.close("FINISHED")
    between.shutdown()
    assert Deaf.lost["create"] >= 3 and Deaf.lost["log-batch"] >= 3
    assert sorted(server.made(tmp_path.name)) == ["0", "1", "2"]
    assert server.epochs(tmp_path.name) == each_once(range(3))


STUDY = """
name: served
base: headway::gfl_tiny
data: {{digits: {{train: 8, val: 4}}, size: [96, 96]}}
space: {{slimhead: {{}}, dcn: {{}}}}
budget: {{trials: 4, epochs: 3}}
rungs: null
sampler: {{name: random}}
resources: {{cpus: 1, concurrent: 2}}
tracking: {{uri: "{url}"}}
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_stays_away_ends_no_search(server: Server, tmp_path: Path) -> None:
    """Away in the middle of a run, still away when it is continued; then all is delivered without a search."""
    file, root, log = tmp_path / "served.yaml", tmp_path / "studies", tmp_path / "log.txt"
    file.write_text(STUDY.format(url=server.url))
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "ANALYTIC": json.dumps({"epoch_seconds": 1.0}),
    }

    def records() -> list[TrialRecord]:
        with contextlib.suppress(Exception):
            return Store.read(root / "served", load(file)).records()
        return []

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as to:
            command = [sys.executable, str(HERE / "drive.py"), str(file), str(root)]
            return subprocess.Popen(command, env=environment, stdout=to, stderr=to)

    def headway(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "search.cli", *words, "--studies", str(root)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)

    driver = start()
    wait_for(lambda: records() and records()[0].state.finished, 200)
    server.kill()  # first: a command takes seconds, in which trials begin
    refused = headway("sync", "served")
    assert (refused.returncode, "is being run already" in refused.stderr) == (2, True)
    wait_for(lambda: len(records()) >= 2 and any(record.curve for record in records()[1:]), 200)
    driver.kill()
    driver.wait()
    assert start().wait(300) == 0, log.read_text()[-3000:]
    told = log.read_text()
    assert "fails; the search goes on: " in told
    assert "'headway sync' adds it once MLflow is back" in told
    assert [record.state for record in records()] == [TrialState.COMPLETE] * 4
    away = headway("sync", "served")
    assert (away.returncode, "cannot reach MLflow" in away.stderr) == (2, True)

    server.start()
    synced = headway("sync", "served", "--json")
    assert synced.returncode == 0, synced.stderr
    added = json.loads(synced.stdout)
    assert added["runs"] >= 2 and set(added["trials"]) >= {2, 3} and added["figures"] > 20
    assert server.made("served") == ["0", "1", "2", "3"]
    series = server.epochs("served")
    for record in records():
        times = [int(1000 * ((record.started or 0.0) + epoch.seconds)) for epoch in record.curve]
        assert series[str(record.number)] == list(zip((1, 2, 3), times))
    again = json.loads(headway("sync", "served", "--json").stdout)
    assert (again["runs"], again["trials"], again["figures"]) == (0, [], 0)
    assert "nothing was missing" in headway("sync", "served").stdout
