"""2,000 trials on PostgreSQL, eight side by side, while two other processes read: nothing is lost, nothing locks."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search import engine
from search.conductor import Conductor
from search.events import EVENTS, EventLog, reconstruct
from search.folder import write_study
from search.simulate import Clock, simulate
from search.store import Store
from search.study import parse
from trainers.contract import DataRequest

ROOT = Path(__file__).parents[2]
TRIALS = 2000
DATA = DataRequest(
    train_annotations="", train_images="", val_annotations="", val_images="", classes=("a",), size=(96, 96)
)
READ = """
import json, sys, time
from pathlib import Path
from search.folder import find_study
from search.store import Store
folder, study = find_study(sys.argv[1], Path(sys.argv[2]))
looks = []
while not (folder / "over").exists():
    records = Store.read(folder, study).records()
    assert [record.number for record in records] == list(range(len(records)))
    looks.append([len(records), sum(record.state.finished for record in records)])
    time.sleep(1)
print(json.dumps(looks))
"""
STATUS = """
import contextlib, io, json, sys, time
from pathlib import Path
from search.cli import main
looks = []
while not Path(sys.argv[2], sys.argv[1], "over").exists():
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert main(["status", sys.argv[1], "--studies", sys.argv[2], "--json"]) in (0, None)
    states = json.loads(told.getvalue())["states"]
    looks.append([sum(states.values()), sum(states.values()) - states["RUNNING"] - states["PROPOSED"]])
    time.sleep(1)
print(json.dumps(looks))
"""


def formula():
    """The trainer of the driver's benchmark: it answers at once."""
    spec = importlib.util.spec_from_file_location("driver_benchmark", ROOT / "benchmarks/driver/run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_in(store, study, folder, clock, steps):
    conductor = Conductor(
        study, engine.prepare_space(study), store, folder=folder, data=DATA, device="cpu", speed_device="cpu",
        threads=1, concurrent=8, clock=clock,
    )  # fmt: skip
    simulate(conductor, steps, clock)
    return store.records()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_trials_and_two_readers(postgres, tmp_path):
    driver = formula()
    url = postgres.database()
    raw = driver.study_file(TRIALS, "random").dump()
    studies = [parse({**raw, "storage": storage}, "driver.yaml") for storage in (None, url)]
    clock = Clock()
    expected = run_in(Store.in_memory(studies[0], clock=clock), studies[0], tmp_path, clock, driver.steps)

    folder = tmp_path / "driver"
    folder.mkdir()
    clock, log = Clock(), EventLog(folder / EVENTS)
    store = Store.create(folder, studies[1], clock=clock, journal=log)
    store.propose_baseline(engine.prepare_space(studies[1]))
    write_study(folder, studies[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", code, "driver", str(tmp_path)],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for code in (READ, STATUS)
    ]  # fmt: skip
    began = time.perf_counter()
    try:
        records = run_in(store, studies[1], folder, clock, driver.steps)
        seconds = time.perf_counter() - began
        (folder / "over").touch()
        answers = [reader.communicate(timeout=600) for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
    log.close()
    assert [reader.returncode for reader in readers] == [0, 0], answers
    looks = [json.loads(out.splitlines()[-1]) for out, _ in answers]

    assert records == Store.read(folder, studies[1]).records() == expected
    assert reconstruct(folder / EVENTS) == expected
    assert sum(record.state.value != "INFEASIBLE" for record in records) == TRIALS
    assert [trial.state.is_finished() for trial in store._optuna.get_trials()] == [True] * len(records)
    for seen in looks:  # what was written is never gone again
        assert len(seen) >= 2
        assert seen == sorted(seen) and [ended for _, ended in seen] == sorted(ended for _, ended in seen)
    statistics = "SELECT deadlocks, xact_commit, xact_rollback FROM pg_stat_database WHERE datname = "
    deadlocks, commits, rollbacks = postgres.sql(f"{statistics}'{url.rpartition('/')[2]}'").split("|")
    assert deadlocks == "0"
    writes = sum(1 for _ in (folder / EVENTS).open())
    print(
        f"\n{len(records)} trials, 8 side by side, {writes} events, in {seconds:.0f} s "
        f"({1000 * seconds / TRIALS:.0f} ms a trial); {len(looks[0])} reads and {len(looks[1])} of headway status "
        f"meanwhile; {commits} transactions committed, {rollbacks} rolled back, {deadlocks} deadlocks; "
        "no trial differs from a run in memory"
    )
