"""Real runs on Ray: trials that crash, fail and die, and a driver that is asked to end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState as OptunaState
from ray._private.utils import get_num_cpus

from analysis.record import TrialState
from search.ray_adapter.cluster import _inherited
from search.store import Store
from search.study import load

HERE = Path(__file__).parent
STUDY = """
name: raying
base: headway::gfl_tiny
data: {{digits: {{train: 8, val: 4}}, size: [96, 96]}}
space: {{slimhead: {{}}, dcn: {{}}}}
budget: {{trials: {trials}, epochs: 3}}
rungs: null
sampler: {{name: random}}
resources: {{cpus: 1, concurrent: {concurrent}, heartbeat: {heartbeat}}}
"""


class Driver:
    """A study, and the command that runs it."""

    def __init__(self, folder, trials, heartbeat=30, concurrent=2, **behaviour):
        self.file, self.root, self.log = folder / "raying.yaml", folder / "studies", folder / "log.txt"
        self.file.write_text(STUDY.format(trials=trials, heartbeat=heartbeat, concurrent=concurrent))
        self.folder = self.root / "raying"
        paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "ANALYTIC": json.dumps(behaviour),
        }

    def start(self):
        command = [sys.executable, str(HERE / "drive.py"), str(self.file), str(self.root)]
        with self.log.open("a") as log:
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def run(self):
        status = self.start().wait(timeout=350)
        assert status == 0, self.log.read_text()[-3000:]

    def store(self):
        return Store.read(self.folder, load(self.file))

    def records(self):
        return self.store().records()

    def wait_for(self, process, text, seconds=150):
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert process.poll() is None, f"ended early: {self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"'{text}' never came: {self.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def events(self):
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    def trained(self, number):
        return self.numbers(number, "trained.log")

    def processes(self, number):
        return self.numbers(number, "processes")

    def numbers(self, number, name):
        return [int(line) for line in (self.folder / f"trials/{number:04d}" / name).read_text().split()]


def test_what_rays_processes_inherit_is_gone_afterwards(monkeypatch):
    monkeypatch.setenv("HEADWAY_ONE", "before")
    seen = {}

    def start():
        with _inherited({"HEADWAY_ONE": "1", "HEADWAY_TWO": "2"}):
            seen.update(os.environ)
            raise OSError("cannot be started")

    with pytest.raises(OSError, match="started"):
        start()
    assert (seen["HEADWAY_ONE"], seen["HEADWAY_TWO"]) == ("1", "2")
    assert os.environ["HEADWAY_ONE"] == "before"
    assert "HEADWAY_TWO" not in os.environ


@pytest.mark.timeout(400)
def test_trials_that_crash_fail_and_die(tmp_path):
    driver = Driver(tmp_path, 7, crash=1, fail=2, nan=3, die=4, always_die=5)
    driver.run()
    records = driver.records()
    assert [record.state.value for record in records] == [
        "COMPLETE", "FAILED", "FAILED", "FAILED", "COMPLETE", "FAILED", "COMPLETE",
    ]  # fmt: skip
    crashed, failed, nan, dying = (records[number] for number in (1, 2, 3, 5))
    assert crashed.reason == "RuntimeError: the analytic trainer was told to crash"
    assert "Traceback" in crashed.traceback
    assert "analytic_trainer.py" in crashed.traceback
    assert failed.reason == "the loss is NaN at epoch 1"
    assert nan.reason == "not a number: bbox_mAP = nan (epoch 2)"
    assert [epoch.epoch for epoch in nan.curve] == [1]
    # Killed by SIGKILL once: it went on from its checkpoint, and no epoch was trained twice.
    assert [epoch.epoch for epoch in records[4].curve] == driver.trained(4) == [1, 2, 3]
    # Killed each time.
    assert dying.reason.startswith("the trial's process died 3 times: ")
    assert (driver.folder / "trials/0005/deaths").read_text() == "xxx"
    # A process in which a trial failed takes no other one.
    for number in (1, 2):
        assert not any(driver.processes(number)[0] in driver.processes(later) for later in range(number + 1, 7))
    # Its allocator is set before its first thread is there, and it imports nothing that the driver alone needs.
    process = json.loads((driver.folder / "trials/0000/process.json").read_text())
    assert process == {"arenas": "1", "drivers": []}
    in_optuna = driver.store()._optuna.trials
    assert not [trial for trial in in_optuna if trial.state is OptunaState.RUNNING]
    assert sum(trial.state is OptunaState.COMPLETE for trial in in_optuna) == 3
    # Tune's own files are gone, and what it says is not ours to print.
    assert not (driver.folder / "ray").exists()
    assert "Traceback" not in driver.log.read_text()
    for name in ("pareto.html", "pareto.png", "front.csv", "front.json", "study.yaml"):
        assert (driver.folder / name).stat().st_size > 0


@pytest.mark.slow
def test_a_process_takes_one_trial_after_another(tmp_path):
    driver = Driver(tmp_path, 6, epoch_seconds=0.5)
    driver.run()
    processes = [driver.processes(number) for number in range(6)]
    assert [len(found) for found in processes] == [1] * 6
    # Of two places; where the second one's process starts later than the first trial ends, one has done all.
    assert len({found[0] for found in processes}) <= 2


@pytest.mark.timeout(400)
def test_processes_get_ready_for_trials_while_ray_starts(tmp_path):
    places = get_num_cpus()
    noted = tmp_path / "preloaded"
    driver = Driver(tmp_path, max(places, 2), concurrent=places, timing_seconds=3, preloaded=str(noted))
    driver.run()
    ready = {int(process): float(when) for process, when in map(str.split, noted.read_text().splitlines())}
    # Once each, and no further process was started.
    assert len(ready) == len(noted.read_text().splitlines()) == places
    (timed,) = (event["time"] for event in driver.events() if event["event"] == "reference")
    taken = {driver.processes(number)[0] for number in range(max(places, 2))}
    assert taken <= set(ready)
    assert all(ready[process] < timed for process in taken)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_driver_that_is_asked_to_end_leaves_its_trials_to_the_next(tmp_path):
    gates = tmp_path / "gates"
    gates.mkdir()
    driver = Driver(tmp_path, 3, gates=str(gates))
    process = driver.start()
    driver.wait_for(process, "trial   0  epoch 1")

    # A second driver at once, through the real command: one clear error, and the first goes on.
    second = subprocess.run(
        [sys.executable, "-m", "search.cli", "run", str(driver.file), "--studies", str(driver.root)],
        env=driver.environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert second.returncode == 2, second.stderr
    assert second.stderr.strip() == f"headway: error: raying: is being run already, by process {process.pid}."
    assert second.stdout == ""
    assert process.poll() is None

    for name, epoch in (("SIGINT", 2), ("SIGTERM", 3)):
        process.send_signal(getattr(signal, name))
        assert process.wait(timeout=60) == 1, driver.log.read_text()[-3000:]
        text = driver.log.read_text()
        for word in ("Traceback", "*** SIGTERM", "PC: @"):
            assert word not in text, f"{name}: {text[-3000:]}"
        records = driver.records()
        assert not [record for record in records if record.state is TrialState.FAILED], name
        assert [record for record in records if record.state is TrialState.RUNNING], name
        driver.log.write_text("")
        (gates / str(epoch)).touch()
        process = driver.start()
        driver.wait_for(process, "epoch 2/3" if name == "SIGINT" else "continues")
    assert process.wait(timeout=150) == 0, driver.log.read_text()[-3000:]
    records = driver.records()
    assert [record.state for record in records] == [TrialState.COMPLETE] * 3
    for record in records:
        # An epoch that was under way is trained again; none that had its checkpoint is.
        assert [epoch.epoch for epoch in record.curve] == driver.trained(record.number) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_trials_that_stand_still_or_are_interrupted(tmp_path):
    driver = Driver(tmp_path, 5, heartbeat=0.1, stop=1, hang=2, always_hang=3, interrupt=4)
    driver.run()
    records = driver.records()
    assert [record.state.value for record in records] == ["COMPLETE", "COMPLETE", "COMPLETE", "FAILED", "COMPLETE"]
    silent = "no step for 0.1 minutes (resources.heartbeat)"
    loader = "a data loader ended: DataLoader worker (pid 7) is killed by signal: 9"
    assert records[3].reason == f"{silent}, 3 times"
    assert "interrupted" not in records[0].attrs
    for number, reason, times in ((1, silent, 1), (2, silent, 1), (3, silent, 2), (4, loader, 1)):
        told = records[number].attrs
        assert (told["interrupted"], told["interruptions"]) == (reason, times), number
    # Each went on from its checkpoint: no epoch was trained twice.
    for number in (1, 2, 4):
        assert [epoch.epoch for epoch in records[number].curve] == driver.trained(number) == [1, 2, 3]
    text = driver.log.read_text()
    assert f"trial   2  interrupted: {silent}; continues from epoch 1" in text
    assert f"trial   4  interrupted: {loader}; continues from epoch 1" in text
    assert "Traceback" not in text
    assert not [trial for trial in driver.store()._optuna.trials if trial.state is OptunaState.RUNNING]


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_full_disk_ends_the_run_and_the_same_command_continues(tmp_path):
    mounted = tmp_path / "small"
    mounted.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(mounted)], capture_output=True)
    if made.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        gates = tmp_path / "gates"
        gates.mkdir()
        driver = Driver(tmp_path, 3, gates=str(gates))
        driver.root, driver.folder = mounted / "studies", mounted / "studies/raying"
        process = driver.start()
        driver.wait_for(process, "trial   0  epoch 1")
        filler = mounted / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        for epoch in (2, 3):
            (gates / str(epoch)).touch()
        assert process.wait(timeout=150) == 1
        *before, last = driver.log.read_text().strip().splitlines()
        # The trial's process finds it full, or the store, which waits for a minute.
        assert last.startswith("spaces.errors.CutShort: "), last
        assert " is full" in last, last
        assert last.endswith("; nothing is lost, the same command continues."), last
        assert not [line for line in before if line.startswith("Exception")]
        filler.unlink()
        driver.log.write_text("")
        driver.run()
        assert [record.state for record in driver.records()] == [TrialState.COMPLETE] * 3
        assert not list(driver.folder.rglob("*.tmp")) and not list(driver.folder.rglob("*.part"))
        for path in driver.folder.rglob("*.json"):
            json.loads(path.read_text())
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=False)
