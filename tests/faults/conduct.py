"""One run of the campaign: starts what it stands on, drives the study, brings its faults about, checks it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import invariants
import psutil
import trainer as analytic
from reference import undisturbed
from ruamel.yaml import YAML
from scenario import ENDS_DRIVER, IN_TRIAL, Fault, Scenario
from services import HERE, Database, Disk, Lock, MlflowServer, Nodes

from search.store import Store
from search.study import Study, load
from search.tracking import default_uri

_SILENT_SECONDS = 240.0
_MOST_STARTS = 12
_POLL = 0.05
# Ray's words where its processes do not come up within 30 s, a limit that it has no setting for.
_OVERLOADED = "The current node timed out during startup"
# Of these one at a time: what is gone cannot be taken away.
_EXCLUSIVE = ({"mlflow_down", "mlflow_gone"}, {"head_restarted", "node_lost", "object_store_full"})


@dataclass
class Result:
    """What came of a run.

    Attributes:
        index: The run's number.
        planned: Kinds of the faults that were drawn.
        injected: Kinds of those that came about.
        starts: Of the driver.
        overloaded: Those of them that came to nothing since this machine was too busy for Ray to start.
        violations: What does not hold.
        states: Trials by end state.
        seconds: How long it took.
        compared: Whether it was compared with an undisturbed run.
        happened: What happened when, in seconds since the first start.
    """

    index: int
    planned: list[str]
    injected: list[str] = field(default_factory=list)
    starts: int = 0
    overloaded: int = 0
    violations: list[str] = field(default_factory=list)
    states: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    compared: bool = False
    happened: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Gives it as plain JSON types."""
        return asdict(self)


def conduct(scenario: Scenario, folder: Path) -> Result:
    """Does one run in a new folder, which is left to whoever wants to look."""
    began = time.monotonic()
    result = Result(scenario.index, sorted(fault.kind for fault in scenario.faults))
    with ExitStack() as stack:
        run = _Run(scenario, folder, result, stack)
        try:
            run.drive()
            run.check()
        except (TimeoutError, OSError, subprocess.SubprocessError) as error:
            result.violations.append(f"the run itself failed: {type(error).__name__}: {error}")
        finally:
            run.end()
    result.seconds = round(time.monotonic() - began, 1)
    return result


class _Run:
    def __init__(self, scenario: Scenario, folder: Path, result: Result, stack: ExitStack) -> None:
        self.scenario, self.folder, self.result = scenario, folder, result
        self.began = time.monotonic()
        folder.mkdir(parents=True)
        self.log = folder / "driver.log"
        self.root = folder / "studies"
        self.temporary = Path(f"/tmp/hfc{os.getpid()}-{scenario.index}")  # short: Ray's sockets lie below it
        self.temporary.mkdir()
        stack.callback(shutil.rmtree, self.temporary, ignore_errors=True)
        self.trials = {
            str(fault.trial): [fault.kind, fault.epoch] for fault in scenario.faults if fault.kind in IN_TRIAL
        }
        self.marker = f"HEADWAY_CAMPAIGN={os.getpid()}-{scenario.index}"
        paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "HEADWAY_CAMPAIGN": self.marker.partition("=")[2],
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            # Another cluster on this machine is none of this run's, nor is this run's cluster anybody else's.
            "RAY_TMPDIR": str(self.temporary),
            # After the head is lost, a driver is to end within seconds.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
            "FAULTS": json.dumps({"trials": self.trials, "epoch_seconds": scenario.epoch_seconds}),
        }
        self.database = self.server = self.disk = self.nodes = None
        if scenario.database == "postgresql":
            self.database = Database(folder / "postgres.log")
            stack.callback(self.database.close)
        if scenario.with_server:
            self.server = MlflowServer(folder / "mlflow")
            stack.callback(self.server.close)
        if "disk_full" in scenario.kinds:
            self.disk = Disk(self.root)
            stack.callback(self.disk.close)
        if scenario.on_cluster:
            self.nodes = Nodes(["0", "1", "1"], self.environment, folder / "nodes.log")
            stack.callback(self.nodes.close)
        self.file = folder / "study.yaml"
        self.study = self._write_study()
        self.studied = self.root / self.study.name
        self.undo: list[tuple[float, str, Callable[[], None]]] = []  # when, of what, how
        self.killed_on_purpose = False

    def _write_study(self) -> Study:
        content = dict(self.scenario.study)
        if self.database is not None:
            content["storage"] = self.database.url
        if self.server is not None:
            content["tracking"] = {"uri": self.server.url}
        with self.file.open("w", encoding="utf-8") as file:
            YAML().dump(content, file)
        return load(self.file)

    # Driving.

    def drive(self) -> None:
        """Starts the driver until the study is complete, while faults come."""
        left = sorted(
            (fault for fault in self.scenario.faults if fault.kind not in IN_TRIAL), key=lambda fault: fault.moment
        )
        while True:
            self.killed_on_purpose = False
            process = self._start()
            status = self._watch(process, left)
            self._say(f"the driver ended with status {status}")
            self._undo(everything=True)
            if status == 0 and self._complete():
                break
            allowed = self.killed_on_purpose or (status in (1, 2) and bool(ENDS_DRIVER & set(self.result.injected)))
            if status in (1, 3) and _OVERLOADED in self._last_words():
                self.result.overloaded += 1
            elif not allowed:
                self.result.violations.append(f"driver: ended with status {status}: {self._last_words()}")
            if self.result.starts >= _MOST_STARTS:
                self.result.violations.append(f"driver: not complete after {self.result.starts} starts")
                return
        if {"mlflow_down", "mlflow_gone", "sqlite_locked", "disk_full"} & set(self.result.injected):
            self._deliver()

    def _deliver(self) -> None:
        """Brings to MLflow what it missed: by one more run, or by the command that is there for it."""
        if any(fault.variant for fault in self.scenario.faults):
            status = self._watch(self._start(), [])
            words = self._last_words()
        else:
            command = [sys.executable, "-m", "search.cli", "sync", str(self.studied)]
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=300, check=False
            )
            status, words = done.returncode, done.stderr.strip()[-500:]
            self._say(f"headway sync: {done.stdout.strip()}")
        if status != 0:
            self.result.violations.append(f"driver: delivering to MLflow ended with status {status}: {words}")

    def _command(self) -> list[str]:
        which = "trainers.detector:train" if self.scenario.trained else "trainer:train"
        command = [sys.executable, str(HERE / "drive.py"), str(self.file), str(self.root), which]
        return [*command, self.nodes.address] if self.nodes is not None else command

    def _start(self) -> subprocess.Popen[bytes]:
        self.result.starts += 1
        self._say(f"start {self.result.starts} of the driver")
        with self.log.open("a") as log:
            return subprocess.Popen(
                self._command(), env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def _watch(self, process: subprocess.Popen[bytes], left: list[Fault]) -> int:
        """Brings faults about as their moments come, until the driver ends; returns its status."""
        told, silent, last = -1, 0.0, time.monotonic()
        due: list[tuple[float, Fault]] = []
        while process.poll() is None:
            now = time.monotonic()
            trained = self._trained()
            # A campaign that was stopped itself has not looked.
            silent, last = silent + min(now - last, 1.0), now
            if self.log.stat().st_size != told:
                told, silent = self.log.stat().st_size, 0.0
            while left and left[0].moment <= trained:
                due.append((now + left[0].delay, left.pop(0)))
            for item in [item for item in due if item[0] <= now]:
                if self._inject(item[1], process):
                    self.result.injected.append(item[1].kind)
                    self._say(f"{item[1].kind}, after {trained} epochs")
                    due.remove(item)
            self._undo()
            if silent > _SILENT_SECONDS:
                self.result.violations.append(f"driver: hangs, after {trained} epochs: {self._last_words()}")
                process.kill()
                self.killed_on_purpose = True
                process.wait()
            time.sleep(_POLL)
        left.extend(fault for _, fault in due)
        left.sort(key=lambda fault: fault.moment)
        return process.wait()

    def _trained(self) -> int:
        """Epochs that all trials have trained."""
        if self.scenario.trained:
            return len(list(self.studied.glob("trials/*/epoch_*.pth")))
        total = 0
        for log in self.studied.glob(f"trials/*/{analytic.TRAINED}"):
            with contextlib.suppress(OSError):
                total += log.read_bytes().count(b"\n")
        return total

    def _undo(self, *, everything: bool = False) -> None:
        for item in list(self.undo):
            if everything and item[0] < math.inf:
                time.sleep(max(0.0, item[0] - time.monotonic()))
            if everything or item[0] <= time.monotonic():
                self.undo.remove(item)
                item[2]()

    def _inject(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        """Brings a fault about; returns whether it could be, which waits while another one of its kind lasts."""
        lasting = {kind for _, kind, _ in self.undo}
        if fault.kind in lasting or any(lasting & group and fault.kind in group for group in _EXCLUSIVE):
            return False
        return bool(getattr(self, f"_{fault.kind}")(fault, process))

    def _worker_killed(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        return self._signal_worker(signal.SIGKILL)

    def _worker_stopped(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        # Before its watchdog stands nothing would notice: README's limits say so.
        return self._signal_worker(signal.SIGSTOP, _watched)

    def _driver_killed(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        self.killed_on_purpose = True
        process.kill()
        return True

    def _driver_terminated(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        self.killed_on_purpose = True
        process.send_signal(signal.SIGINT if fault.variant else signal.SIGTERM)
        return True

    def _second_driver(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        second = subprocess.run(
            self._command(), env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        if process.poll() is not None and not self.undo:
            return True  # the first one had ended meanwhile
        if second.returncode != 2 or "is being run already" not in second.stderr:
            told = second.stderr.strip()[-300:]
            self.result.violations.append(f"second driver: status {second.returncode}, not refused: {told}")
        return True

    def _node_lost(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        assert self.nodes is not None
        number = 1 + sum(kind == "node_lost" for kind in self.result.injected)
        if number > 2:
            return True
        self.nodes.tell(f"kill {number}")
        nodes = self.nodes
        self._later(fault, lambda: nodes.tell("add 1"))
        return True

    def _head_restarted(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        assert self.nodes is not None
        self.nodes.kill()
        self.undo.append((math.inf, fault.kind, self.nodes.start))  # once the driver has ended
        return True

    def _object_store_full(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        assert self.nodes is not None
        nodes = self.nodes
        nodes.tell("fill 256")
        self._later(fault, lambda: nodes.tell("empty"))
        return True

    def _disk_full(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        assert self.disk is not None
        self.disk.fill()
        self._later(fault, self.disk.free)
        return True

    def _mlflow_down(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        assert self.server is not None
        server = self.server
        server.kill()
        self._later(fault, lambda: server.start(wait=False))
        return True

    def _mlflow_gone(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        assert self.server is not None
        server = self.server
        server.kill()
        self.undo.append((math.inf, fault.kind, server.start))  # once the driver has ended
        return True

    def _database_down(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        assert self.database is not None
        self.database.stop(crash=fault.variant)
        self._later(fault, self.database.start)
        return True

    def _sqlite_locked(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        path = self.studied / ("mlflow.db" if fault.variant else "study.db")
        if not path.exists():
            return True
        try:
            lock = Lock(path)
        except sqlite3.OperationalError:
            return False  # the driver holds it at this moment
        self._later(fault, lock.close)
        return True

    def _later(self, fault: Fault, action: Callable[[], None]) -> None:
        self.undo.append((time.monotonic() + fault.seconds, fault.kind, action))

    def _signal_worker(self, which: signal.Signals, fit: Callable[[int], bool] = lambda _: True) -> bool:
        """Sends a signal to the process of a trial that runs now; returns whether there is one that is ``fit``."""
        for number, command in invariants.alive(self.marker).items():
            if ("ImplicitFunc" in command or "run_trial" in command) and fit(number):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, which)
                    return True
        return False

    # Checking.

    def _store(self) -> Store:
        return Store.read(self.studied, self.study)

    def _complete(self) -> bool:
        with contextlib.suppress(Exception):
            records = self._store().records()
            return len(records) >= self.study.budget.trials and all(record.state.finished for record in records)
        return False

    def check(self) -> None:
        """Looks at everything that the run has left."""
        store = self._store()
        records = store.records()
        for record in records:
            self.result.states[record.state.value] = self.result.states.get(record.state.value, 0) + 1
        for kind in sorted({kind for kind, _ in self.trials.values()}):
            marks = list(self.studied.glob(f"trials/*/{kind}.came"))
            self.result.injected += [kind] * len(marks)
        found = [
            *invariants.of_store(self.study, store),
            *invariants.of_training(self.study, self.studied, records, analytic_trainer=not self.scenario.trained),
            *invariants.of_events(self.studied, records),
            *invariants.of_decisions(self.study, self.studied),
            *invariants.of_mlflow(self.study.tracking.uri or default_uri(self.studied), self.study, records),
            *invariants.of_folder(self.studied, [self.log], [self.database.password] if self.database else []),
        ]
        if self.scenario.alone and not self.scenario.trained:
            self.result.compared = True
            found += invariants.of_undisturbed(records, undisturbed(self.study, self.trials))
        self.result.violations += found

    def end(self) -> None:
        """Ends what is left of the run; what outlives its driver is a violation."""
        self._undo(everything=True)
        if self.nodes is not None:
            self.nodes.close()
        if self.server is not None:
            self.server.close()
        if self.database is not None:
            self.database.close()
        deadline = time.monotonic() + 60  # Ray's own agents look for their parent now and then
        while (left := invariants.alive(self.marker)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for number, command in left.items():
            self.result.violations.append(f"processes: {number} is left: {command}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def _say(self, text: str) -> None:
        self.result.happened.append(f"{time.monotonic() - self.began:6.1f} s  {text}")

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])[-500:]


def _watched(number: int) -> bool:
    """Whether the watchdog of a trial's process has started."""
    with contextlib.suppress(psutil.Error):
        return any("watchdog.py" in " ".join(child.cmdline()) for child in psutil.Process(number).children())
    return False
