"""A driver that is killed without grace, again and again: the same command continues, nothing is lost or doubled."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState as OptunaState

from analysis.record import TrialState
from search.events import EVENTS, read_events, reconstruct
from search.store import Store
from search.study import load
from search.tracking import default_uri

HERE = Path(__file__).parent
TRIALS, EPOCHS = 6, 4
STUDY = f"""
name: killed
base: headway::gfl_tiny
data: {{digits: {{train: 8, val: 4}}, size: [96, 96]}}
space: {{slimhead: {{}}, dcn: {{}}}}
budget: {{trials: {TRIALS}, epochs: {EPOCHS}}}
rungs: {{first: 1, factor: 2}}
sampler: {{name: tpe, startup: 3}}
"""


class Driver:
    """The command, and what it has left in the store so far."""

    def __init__(self, folder, study=STUDY, trainer="analytic_trainer:train"):
        folder.mkdir(exist_ok=True)
        self.file, self.root, self.trainer = folder / "killed.yaml", folder / "studies", trainer
        self.file.write_text(study)
        self.folder = self.root / "killed"
        behaviour = {"timing_seconds": 1.0, "epoch_seconds": 0.8}
        self.environment = {**os.environ, "PYTHONPATH": str(HERE), "ANALYTIC": json.dumps(behaviour)}

    def start(self):
        command = [sys.executable, str(HERE / "drive.py"), str(self.file), str(self.root), self.trainer]
        log = (self.root.parent / "log.txt").open("a")
        return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def kill_when(self, reached, seconds=300):
        """Starts the command and kills it as soon as ``reached(records)``."""
        process = self.start()
        deadline = time.monotonic() + seconds
        while not reached(self.records()):
            log = (self.root.parent / "log.txt").read_text()[-3000:]
            assert process.poll() is None, f"the driver ended before the moment came: {log}"
            assert time.monotonic() < deadline, f"the moment never came: {log}"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def records(self):
        if not (self.folder / "study.db").exists():
            return None
        try:
            return Store.read(self.folder, load(self.file)).records()
        except Exception:
            return None  # the tables are being made


MOMENTS = {
    "before the first trial": lambda records: records is not None,
    "during a timing": lambda records: records and any(being_timed(record) for record in records),
    "during training": lambda records: (
        records and any(r.state is TrialState.RUNNING and 2 <= len(r.curve) < EPOCHS for r in records)
    ),
    "after a rung": lambda records: (
        records
        and any(r.state is TrialState.RUNNING and r.rungs and len(r.curve) < EPOCHS and r.number for r in records)
    ),
    # The store is written first, then MLflow, so at this moment MLflow is being written.
    "while writing MLflow": lambda records: records and sum(r.state.finished for r in records) >= 2,
}


@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    "moments",
    [("during training", "while writing MLflow"), pytest.param(tuple(MOMENTS), marks=pytest.mark.slow)],
    ids=["twice", "at every moment"],
)
def test_a_kill_loses_and_doubles_nothing(tmp_path, moments):
    driver = Driver(tmp_path)
    for moment in moments:
        driver.kill_when(MOMENTS[moment])
        assert not all_done(driver.records()), f"{moment}: the run was over already"
    assert driver.start().wait(timeout=200) == 0, (tmp_path / "log.txt").read_text()[-3000:]

    records = driver.records()
    assert [record.number for record in records] == list(range(TRIALS))
    assert all(record.state in (TrialState.COMPLETE, TrialState.STOPPED) for record in records)
    assert len({json.dumps(record.knobs, sort_keys=True) for record in records}) == TRIALS
    for record in records:
        trained = [int(line) for line in (driver.folder / record.folder / "trained.log").read_text().split()]
        last = EPOCHS if record.state is TrialState.COMPLETE else max(record.rungs)
        assert trained == list(range(1, last + 1)), f"trial {record.number} trained epochs {trained}"
        assert [epoch.epoch for epoch in record.curve] == trained
    in_optuna = Store.read(driver.folder, load(driver.file))._optuna.trials
    assert not [trial for trial in in_optuna if trial.state in (OptunaState.RUNNING, OptunaState.WAITING)]
    complete = [trial for trial in in_optuna if trial.state is OptunaState.COMPLETE]
    assert len(complete) == sum(record.state is TrialState.COMPLETE for record in records)
    check_mlflow(driver.folder, records)
    assert reconstruct(driver.folder / EVENTS) == records
    begun = [event for event in read_events(driver.folder / EVENTS) if event["event"] == "begun"]
    assert len(begun) >= len(moments)  # a run that was killed at once may not have come so far


REAL_STUDY = f"""
name: killed
base: headway::gfl_nano
data: {{digits: {{train: 48, val: 8}}, size: [96, 96]}}
space: {{slimhead: {{}}, dcn: {{placement: {{max_size: 1}}}}}}
budget: {{trials: {TRIALS}, epochs: 3}}
rungs: {{first: 1, factor: 2}}
sampler: {{name: tpe, startup: 3}}
speed: {{seconds: 1, pairs: 4}}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_a_search_that_trains_mmdet(tmp_path):
    driver = Driver(tmp_path, REAL_STUDY, "trainers.detector:train")
    driver.kill_when(lambda records: records is not None)
    driver.kill_when(lambda records: records and any(being_timed(record) for record in records))
    driver.kill_when(lambda records: records and any(r.state is TrialState.RUNNING and r.curve for r in records))
    driver.kill_when(lambda records: records and any(r.rungs and r.number > 0 for r in records))
    driver.kill_when(lambda records: records and sum(r.state.finished for r in records) >= 2)
    assert driver.start().wait(timeout=400) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    records = driver.records()
    assert all_done(records)
    assert {record.state for record in records} <= {TrialState.COMPLETE, TrialState.STOPPED}
    for record in records:
        last = 3 if record.state is TrialState.COMPLETE else max(record.rungs)
        assert [epoch.epoch for epoch in record.curve] == list(range(1, last + 1))
    check_mlflow(driver.folder, records)


LEARNING_STUDY = """
name: killed
base: headway::gfl_nano
data: {digits: {train: 48, val: 8}, size: [96, 96]}
designs: [{name: learned dilations, knobs: {pod: {}}}]
budget: {epochs: 4}
rungs: null
speed: {seconds: 1, pairs: 4}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_a_trial_in_each_of_its_phases(tmp_path):
    undisturbed = Driver(tmp_path / "a", LEARNING_STUDY, "trainers.detector:train")
    assert undisturbed.start().wait(timeout=400) == 0
    driver = Driver(tmp_path / "b", LEARNING_STUDY, "trainers.detector:train")
    learning = driver.folder / "trials" / "0001" / "learning"
    observed, left = learning / "observed.jsonl", []

    def observes(_):
        return observed.is_file() and len(observed.read_bytes().splitlines()) > 20

    def trained(epochs):
        return lambda records: records and len(records) == 2 and len(records[1].curve) == epochs

    for phase, reached in {"learn": trained(1), "observe": observes, "fine-tune": trained(3)}.items():
        driver.kill_when(reached)
        left.append((phase, observed.is_file(), (learning / "learned.json").is_file()))
    assert left == [("learn", False, False), ("observe", True, False), ("fine-tune", True, True)]
    looked_at = observed.read_bytes()
    assert driver.start().wait(timeout=400) == 0, (tmp_path / "b" / "log.txt").read_text()[-3000:]

    assert observed.read_bytes() == looked_at  # not looked at again
    (_, whole), (_, killed) = undisturbed.records(), driver.records()
    assert killed.state is TrialState.COMPLETE
    assert [epoch.epoch for epoch in killed.curve] == [1, 2, 3, 4]
    accuracy = [[epoch.metrics["bbox_mAP"] for epoch in record.curve] for record in (whole, killed)]
    assert accuracy[0] == accuracy[1]
    assert [record.metrics["bbox_mAP"] for record in (whole, killed)] == [accuracy[0][-1]] * 2
    assert killed.attrs["scales"] == whole.attrs["scales"]
    for name in ("learned_bbox_mAP", "decomposed_bbox_mAP", "gmacs"):
        assert killed.metrics[name] == whole.metrics[name]
    check_mlflow(driver.folder, driver.records())


def being_timed(record):
    counted, timed = "gmacs" in record.metrics, "latency_ms" in record.metrics
    return record.state is TrialState.RUNNING and counted and not timed


def all_done(records):
    return records is not None and len(records) == TRIALS and all(record.state.finished for record in records)


def check_mlflow(folder, records):
    """One parent, one ended child a trial, every epoch once."""
    client = MlflowClient(default_uri(folder))
    (experiment,) = [item for item in client.search_experiments() if item.name == "killed"]
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if run.data.tags.get("headway.role") == "study"]
    assert len(parents) == 1
    children = [run for run in runs if "headway.trial" in run.data.tags]
    assert len(runs) == 1 + len(children)
    assert Counter(int(run.data.tags["headway.trial"]) for run in children) == Counter(range(len(records)))
    assert {run.info.status for run in runs} == {"FINISHED"}
    by_number = {int(run.data.tags["headway.trial"]): run for run in children}
    for record in records:
        run = by_number[record.number]
        assert run.data.tags["headway.state"] == record.state.value
        history = client.get_metric_history(run.info.run_id, "epoch/bbox_mAP")
        assert [point.step for point in history] == [epoch.epoch for epoch in record.curve]
