"""The front trained again with other seeds: what is asked for, what becomes of it, and what a kill leaves."""

import json
import math
import os
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from scipy import stats

from analysis.record import EpochRecord, SweepPoint, TrialState
from search import confirm
from search.cli import main
from search.conductor import Pause
from search.confirmation import Confirmation, Training
from search.engine import prepare
from search.folder import claimed, write_study
from search.resources import Resources
from search.store import Store
from search.study import load
from search.tracking import default_uri
from spaces.errors import UserError
from trainers.contract import DataRequest, TrialReport

HERE = Path(__file__).parent
TRAINER = runpy.run_path(str(HERE / "seeded_trainer.py"))
OFFSETS, accuracy, figures = (TRAINER[name] for name in ("OFFSETS", "accuracy", "figures"))
STUDY = """
name: seeded
base: headway::gfl_tiny
data: {digits: {train: 8, val: 4}, size: [96, 96]}
designs:
  - {name: slim, knobs: {slimhead: {levels: [0, 1], ratio: 0.5}}}
  - {name: bent, knobs: {dcn: {placement: [cls.0, reg.0]}}}
  - {name: more, knobs: {dcn: {placement: [cls.0, cls.1, reg.0]}}}
  - {name: stopped, knobs: {slimhead: {levels: [0], ratio: 0.5}}}
budget: {epochs: 2}
rungs: null
resources: {cpus: 1, concurrent: 2}
"""
MEMBERS = (1, 0, 2, 3)  # of the front, fastest first
DATA = DataRequest(
    train_annotations="/t.json", train_images="/t", val_annotations="/v.json", val_images="/v", classes=("a",),
    size=(96, 96),
)  # fmt: skip
SHARE = Resources(cpus=1, gpus=0, concurrent=2)


def searched(folder, text=STUDY, ends=(None,) * 4 + (TrialState.STOPPED,), sweep=()):
    """A study as its search left it; ``sweep`` is of trial 1."""
    file = folder / "seeded.yaml"
    file.write_text(text)
    study, place = load(file), folder / "studies/seeded"
    _, _, space = prepare(study)
    with claimed(place):
        store = Store.create(place, study)
        for number, end in enumerate(ends):
            record = store.propose(space) if number else store.propose_baseline(space)
            ratio = figures(record.knobs)[0]
            store.start(number)
            around = {"latency_ratio_q1": ratio - 0.01, "latency_ratio_q3": ratio + 0.01}
            store.update(number, {"latency_ms": 20 * ratio, "latency_ratio": ratio, **around}, {}, 9.0)
            store.add_epoch(number, EpochRecord(2, {"bbox_mAP": accuracy(record.knobs, number, 0)}, 8.0))
            for point in sweep if number == 1 else ():
                store.add_point(number, point)
            if end is not TrialState.RUNNING:
                store.finish(number, end or TrialState.COMPLETE, reason=end and "at epoch 1: rank 9 of 9")
        store.reference_ms = 20.0
        write_study(place, study)
    return store, place


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Made once: its tables take seconds."""
    return searched(tmp_path_factory.mktemp("confirm"))[1]


@pytest.fixture
def study(finished, tmp_path):
    place = shutil.copytree(finished, tmp_path / "studies/seeded")
    return Store.create(place, load(place / "study.yaml")), place


def director(store, place, seeds=3):
    trainings = confirm.missing(store, confirm.wanted(store.study, store.records()), seeds)
    lines = []
    made = Confirmation(
        store.study, store, trainings, lambda training: confirm._request(store.study, place, DATA, SHARE, training),
        concurrent=2, say=lines.append,
    )  # fmt: skip
    return made, trainings, lines


def tell(made, number, phase, epoch=0, attrs=None, **metrics):
    return made.report(number, TrialReport(phase=phase, epoch=epoch, metrics=metrics, seconds=1.0, attrs=attrs or {}))


# What is asked for.


def test_all_members_and_the_baseline_are_trained_seed_by_seed(study):
    made, trainings, _ = director(*study)
    assert [(training.trial.number, training.seed) for training in trainings] == [
        (number, seed) for seed in (1, 2) for number in MEMBERS
    ]
    request = made.next()
    store, place = study
    assert (request.number, request.seed, request.epochs) == (1, 1, 2)
    assert request.knobs == store.record(1).knobs
    assert request.folder == str(place / "confirm/1/seed1")
    assert (request.speed, request.sweep, request.warm, request.weights) == (None, None, None, "scratch")
    assert made.next().folder == str(place / "confirm/0/seed1")
    assert made.next() is Pause.WAIT


def test_a_shared_warm_start_keeps_the_studys_seed(tmp_path):
    store, place = searched(tmp_path, STUDY + "weights: {from: baseline, epochs: 7}\nseed: 5\n")
    made, trainings, _ = director(store, place)
    assert [training.seed for training in trainings] == [6] * 4 + [7] * 4
    request = made.next()
    assert (request.seed, request.weights) == (6, "baseline")
    assert vars(request.warm) == {"folder": str(place / "warm"), "epochs": 7, "seed": 5}
    from trainers import checkpoint, warm

    # What the search's own trials look for, and none of them is trial 0, which would train it.
    own = replace(request, seed=5, warm=replace(request.warm, seed=None))
    assert checkpoint.fingerprint(warm.request(request)) == checkpoint.fingerprint(warm.request(own))
    assert all(training.number for training in trainings)


def test_settings_of_a_sweep_share_a_training(tmp_path):
    sweep = [
        SweepPoint(0, {"x.t": 0}, {"bbox_mAP": 0.37, "latency_ms": 17.6}),
        SweepPoint(1, {"x.t": 1}, {"bbox_mAP": 0.2, "latency_ms": 30.0}),  # dominated
        SweepPoint(2, {"x.t": 2}, {"bbox_mAP": 0.36, "latency_ms": 10.0}),
    ]
    store, place = searched(tmp_path, sweep=sweep)
    points = confirm.wanted(store.study, store.records())
    assert [point.label for point in points] == ["1.2", "1", "0", "2", "3"]
    made, trainings, _ = director(store, place, seeds=2)
    assert [(training.trial.number, dict(training.labels)) for training in trainings] == [
        (1, {2: "1.2", 0: "1"}), (0, {0: "0"}), (2, {0: "2"}), (3, {0: "3"}),
    ]  # fmt: skip
    request = made.next()
    assert request.knobs == store.record(1).knobs
    assert (dict(request.sweep.settings), request.sweep.speed) == ({2: {"x.t": 2}}, None)
    tell(made, 1, "counted", gmacs=3.0)
    tell(made, 1, "epoch", 2, bbox_mAP=0.38)
    assert tell(made, 1, "swept", 2, {"index": 2}, bbox_mAP=0.35)
    assert not store.notes("confirm:")  # at the end, all at once
    assert not tell(made, 1, "done", 2)
    notes = store.notes("confirm:")
    assert notes["confirm:1:1"]["metrics"] == {"gmacs": 3.0, "bbox_mAP": 0.38}
    assert notes["confirm:1.2:1"]["metrics"] == {"gmacs": 3.0, "bbox_mAP": 0.35}
    found = confirm.confirmed(store)[1].attrs["confirmed"]
    assert found["1.2"]["metrics"]["bbox_mAP"]["values"] == {"0": 0.36, "1": 0.35}
    assert found["1"]["metrics"]["bbox_mAP"]["values"] == {"0": 0.37, "1": 0.38}


def test_what_is_there_is_not_asked_for_again(study):
    store, _ = study
    points = confirm.wanted(store.study, store.records())
    for number in MEMBERS:
        store.note(f"confirm:{number}:1", {"metrics": {"bbox_mAP": 0.3}, "seconds": 1.0})
    store.note("confirm:2:2", {"reason": "not a number", "traceback": None})
    left = confirm.missing(store, points, 3)
    assert [(training.trial.number, training.seed) for training in left] == [(1, 2), (0, 2), (3, 2)]
    assert confirm.missing(store, points, 2) == []


# What becomes of it.


def test_a_training_that_is_not_a_number_fails_alone(study):
    store, place = study
    made, _, lines = director(store, place)
    made.next(), made.next()
    assert tell(made, 1, "epoch", 1, bbox_mAP=0.1)
    assert not tell(made, 1, "epoch", 2, bbox_mAP=math.nan)
    assert not tell(made, 1, "epoch", 2, bbox_mAP=0.1)  # it has ended
    made.died(2, "the trial's process died 3 times", "Traceback")
    made.died(2, "told again")
    assert store.notes("confirm:") == {
        "confirm:1:1": {"reason": "not a number: bbox_mAP = nan (epoch 2)", "traceback": None},
        "confirm:0:1": {"reason": "the trial's process died 3 times", "traceback": "Traceback"},
    }
    assert made.next().seed == 1
    assert any("trial   1 seed 1  FAILED: not a number" in line for line in lines)
    own = confirm.confirmed(store)[1].attrs["confirmed"]["1"]
    assert own["failed"] == {"1": "not a number: bbox_mAP = nan (epoch 2)"}
    assert own["seeds"] == [0]
    assert own["metrics"]["bbox_mAP"]["low"] is None


def test_a_figure_that_the_study_is_about_must_be_there(study):
    made, _, _ = director(*study)
    made.next()
    assert not tell(made, 1, "done", 2, loss=1.0)
    assert study[0].notes("confirm:")["confirm:1:1"]["reason"] == "the objective bbox_mAP has no value"


def test_it_ends_when_all_have(study):
    made, trainings, lines = director(*study, seeds=2)
    for _ in trainings:
        request = made.next()
        tell(made, request.number, "epoch", 1, bbox_mAP=0.1)
        tell(made, request.number, "done", 2, bbox_mAP=0.2)
    assert made.next() is Pause.FINISHED
    assert "4/4 trainings]" in lines[-1]
    assert any("3/4 trainings, about 0:00 left]" in line for line in lines)


def test_records_without_confirmation_stay_as_they_are(study):
    store, _ = study
    assert confirm.confirmed(store) == store.records()


def test_only_finished_fronts_with_their_baseline(study):
    store, _ = study
    baseline, other = store.records()[:2]
    runs = replace(baseline, state=TrialState.RUNNING)
    with pytest.raises(UserError, match="trial 0, the baseline, must be COMPLETE to be confirmed, but it is RUNNING"):
        confirm.wanted(store.study, [runs, other])
    with pytest.raises(UserError, match="must have a COMPLETE trial to be confirmed, but it has none yet"):
        confirm.wanted(store.study, [runs])


def test_a_baseline_off_the_front_is_confirmed_too(study):
    store, _ = study
    records = store.records()
    better = {**records[1].metrics, "bbox_mAP": 0.9}
    points = confirm.wanted(store.study, [records[0], replace(records[1], metrics=better)])
    assert [point.number for point in points] == [0, 1]


# Through Ray.


class Driver:
    """The command over one study."""

    def __init__(self, place, folder, **behaviour):
        self.folder, self.processes = place, []
        self.log, self.gate = folder / "log.txt", folder / "gate"
        paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "SEEDED": json.dumps({"gate": str(self.gate), **behaviour}),
        }

    def start(self, seeds):
        command = [sys.executable, str(HERE / "drive_confirm.py"), str(self.folder), str(seeds)]
        with self.log.open("a") as log:
            self.processes.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))
        return self.processes[-1]

    def wait_for(self, process, text, seconds=400):
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert process.poll() is None, f"ended early: {self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"'{text}' never came: {self.log.read_text()[-3000:]}"
            time.sleep(0.1)
        self.log.write_text("")

    def notes(self):
        return Store.read(self.folder, load(self.folder / "study.yaml")).notes("confirm:")

    def trained(self):
        """By trial and seed the epochs that were trained."""
        logs = sorted(self.folder.glob("confirm/*/*/trained.log"))
        return {f"{log.parts[-3]}/{log.parts[-2]}": log.read_text().split() for log in logs}


def headway(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def driver(study, tmp_path):
    made = Driver(study[1], tmp_path, die="2/seed1", nan="0/seed2")
    yield made
    for process in made.processes:
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_and_continued_nothing_is_trained_twice(driver, capsys):
    process = driver.start(3)
    driver.wait_for(process, "trial   0 seed 1  epoch 1/2")
    status, out, err = headway(capsys, "confirm", driver.folder, "--studies", driver.folder.parent)
    assert (status, out) == (2, "")
    assert err.strip() == f"headway: error: seeded: is being run already, by process {process.pid}."
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=100) == 1, driver.log.read_text()[-3000:]
    assert driver.notes() == {}  # those under way did not fail

    process = driver.start(3)
    driver.wait_for(process, "seed 1  epoch 1/2")
    driver.gate.touch()
    driver.wait_for(process, "seed 1  trained")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= len(driver.notes()) < 8

    assert driver.start(3).wait(timeout=500) == 0, driver.log.read_text()[-3000:]
    seeds = ("seed1", "seed2")
    wanted = {f"{number}/{seed}": ["1", "2"] for number in range(4) for seed in seeds}
    assert driver.trained() == {**wanted, "0/seed2": ["1"]}
    assert (driver.folder / "confirm/2/seed1/died").exists()
    notes = driver.notes()
    assert set(notes) == {f"confirm:{number}:{seed}" for number in range(4) for seed in (1, 2)} | {"confirm:latency"}
    assert notes["confirm:0:2"]["reason"] == "not a number: bbox_mAP = nan (epoch 1)"
    assert (driver.folder / "timed.log").read_text() == "1 2 3\n"
    assert not list(driver.folder.glob("confirm/*/*/*.pth"))
    assert not (driver.folder / "ray").exists()

    # The same command again has nothing to do, and says what there is.
    status, out, err = headway(capsys, "confirm", driver.folder, "--json")
    assert (status, err) == (0, "")
    assert [row["confirmed"]["seeds"] for row in json.loads(out)["points"]] == [[0, 1, 2], [0, 1], [0, 1, 2], [0, 1, 2]]
    # More seeds add to what is there; the latencies stay.
    assert driver.start(4).wait(timeout=500) == 0, driver.log.read_text()[-3000:]
    more = {f"{number}/seed3": ["1", "2"] for number in range(4)}
    assert driver.trained() == {**wanted, "0/seed2": ["1"], **more}
    assert (driver.folder / "timed.log").read_text() == "1 2 3\n"

    check_shown(driver, capsys)


def check_shown(driver, capsys):
    status, out, _ = headway(capsys, "front", driver.folder, "--json")
    rows = {row["trial"]: row for row in json.loads(out)}
    assert status == 0
    own = rows[1]["confirmed"]
    base = figures(rows[1]["knobs"])[1]
    values = [base + offset for offset in OFFSETS]
    reach = stats.t.ppf(0.975, 3) * statistics.stdev(values) / 2
    found = own["metrics"]["bbox_mAP"]
    assert list(found["values"].values()) == pytest.approx(values)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(
        (statistics.fmean(values), statistics.fmean(values) - reach, statistics.fmean(values) + reach)
    )
    assert own["latency"]["ratio"] == pytest.approx(0.88)
    assert rows[0]["confirmed"]["seeds"] == [0, 1, 3]
    # Seeds move trials 0 to 2 alike, so pairs of these are told apart though their intervals overlap; trial 3 is moved
    # the other way.
    assert [rows[number]["confirmed"]["mark"] for number in MEMBERS] == ["", "", "≈ 3 in AP", "≈ 2 in AP"]

    status, out, _ = headway(capsys, "confirm", driver.folder, "--seeds", 4, "--json")
    document = json.loads(out)
    assert status == 0
    assert document == json.loads((driver.folder / "confirm.json").read_text())
    assert [row["trial"] for row in document["points"]] == list(MEMBERS)
    picks = {(pair["one"], pair["other"]): pair["pick"] for pair in document["neighbours"]}
    assert picks == {("0", "1"): None, ("2", "0"): None, ("3", "2"): "2"}
    for command in ("confirm", "front"):
        extra = ("--seeds", 4) if command == "confirm" else ()
        status, out, _ = headway(capsys, command, driver.folder, *extra)
        assert status == 0
        for words in ("37.1 ± 3.9 (4)", "0.880 (0.879-0.880)", "≈ 2 in AP", "(3 of 4)"):
            assert words in out, f"{command}: {out}"
    assert "0: seed 2 FAILED: not a number" in headway(capsys, "confirm", driver.folder, "--seeds", 4)[1]

    client = MlflowClient(default_uri(driver.folder))
    (experiment,) = [item for item in client.search_experiments() if item.name == "seeded"]
    runs = client.search_runs([experiment.experiment_id], "tags.`headway.trial` = '1'")
    assert len(runs) == 1
    history = client.get_metric_history(runs[0].info.run_id, "confirmed_bbox_mAP")
    assert [(item.step, item.value) for item in history] == [
        (count, pytest.approx(statistics.fmean(values[:count]))) for count in (3, 4)
    ]
    metrics = runs[0].data.metrics
    assert metrics["confirmed_bbox_mAP_high"] == pytest.approx(found["high"])
    assert metrics["confirmed_latency_ratio"] == pytest.approx(0.88)
    assert "over 4 seeds: AP" in (driver.folder / "pareto.html").read_text()


def test_wrong_inputs(study, tmp_path, capsys):
    _, folder = study
    status, out, err = headway(capsys, "confirm", folder, "--seeds", 1)
    assert (status, out) == (2, "")
    assert err == "headway: error: --seeds: must be 2 or more, the study's own among them, but got 1.\n"
    status, _, err = headway(capsys, "confirm", "nosuch", "--studies", tmp_path)
    assert status == 2
    assert "STUDY: must be a study that was run" in err


def test_a_training_names_its_folder():
    training = Training(3, replace(searched_record(), number=12), 5, {0: "12"})
    assert training.folder == "confirm/12/seed5"


def searched_record():
    from analysis.record import TrialRecord

    return TrialRecord(1, TrialState.COMPLETE)
