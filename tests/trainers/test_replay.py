"""The replay trainer: a table on disk and back, what each request gets from it, and a trial that is killed."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest
from pyarrow import parquet

from spaces.errors import UserError
from spaces.space import design_hash
from trainers.contract import (
    DataRequest,
    SpeedRequest,
    StopTrial,
    SweepRequest,
    TrialFailed,
    TrialRequest,
    WarmRequest,
)
from trainers.replay import Entry, Row, Table, train

DATA = DataRequest(
    train_annotations="", train_images="", val_annotations="", val_images="", classes=("a",), size=(96, 96)
)
SPEED = SpeedRequest(size=(96, 96))
LATENCY = {"latency_ratio": 0.9, "latency_ratio_q1": 0.88, "latency_ratio_q3": 0.93}
SLIM, QUERY, POD = {"slimhead.levels": [0], "slimhead.ratio": 0.5}, {"querydet.threshold": 0.15}, {"pod.mode": "x"}
STOPPED, FAILED, COUNTED = {"slimhead.ratio": 0.25}, {"slimhead.ratio": 0.75}, {"slimhead.ratio": 0.1}


def row(phase, epoch, seconds, **metrics):
    return Row(phase=phase, epoch=epoch, seconds=seconds, metrics=metrics)


def entry(trial, knobs, *rows, state="COMPLETE", reason=None):
    return Entry(trial=trial, state=state, reason=reason, knobs=knobs, rows=rows)


COUNT, TIME = row("counted", 0, 1.0, gmacs=3.0), row("timed", 0, 2.0, **LATENCY)
EPOCHS = (row("epoch", 1, 10.0, bbox_mAP=0.1, loss=2.0), row("epoch", 2, 11.0, bbox_mAP=1 / 3))
SWEPT = tuple(
    Row(phase="swept", epoch=2, point=index, seconds=4.0, metrics={"bbox_mAP": 0.3 - index / 10, **LATENCY})
    for index in range(3)
)
TABLE = Table(
    name="t.parquet",
    study={"budget": {"epochs": 2, "trials": 8}},
    reference_ms=20.0,
    entries=(
        entry(0, {}, row("warm", 5, 50.0, bbox_mAP=0.05), COUNT, TIME, *EPOCHS, row("done", 2, 0.5)),
        entry(1, SLIM, COUNT, replace(TIME, shared=True), *EPOCHS, row("done", 2, 0.5)),
        entry(2, QUERY, COUNT, *EPOCHS, *SWEPT, row("done", 2, 0.0)),
        entry(
            3, POD, EPOCHS[0], row("learned", 1, 7.0, learned_bbox_mAP=0.1), COUNT, TIME, EPOCHS[1], row("done", 2, 0.5)
        ),
        entry(4, STOPPED, COUNT, TIME, EPOCHS[0], state="STOPPED", reason="at epoch 1: rank 9"),
        entry(5, FAILED, COUNT, TIME, EPOCHS[0], state="FAILED", reason="the loss is NaN"),
        entry(6, COUNTED, COUNT, state="INFEASIBLE", reason="must hold: gmacs <= 2"),
    ),
    about={"warm": {"epochs": 5, "seconds": 50.0}, "states": {"COMPLETE": 4}},
)


def request(knobs, number=1, folder="/nowhere", epochs=2, speed=None, sweep=None, warm=5):
    made = TrialRequest(
        number=number,
        base="headway::gfl_tiny",
        knobs=knobs,
        data=DATA,
        folder=str(folder),
        epochs=epochs,
        speed=speed,
        sweep=sweep,
        warm=WarmRequest(folder="/warm", epochs=warm) if warm else None,
    )
    return TrialRequest.from_json(json.loads(json.dumps(made.to_json())))


def sweep(*indices):
    return SweepRequest(settings={index: {**QUERY, "index": index} for index in indices}, speed=SPEED)


def told(asked, **options):
    return [
        (step.report.phase, step.report.epoch, step.seconds, step.report.seconds)
        for step in TABLE.steps(asked, **options)
    ]


def failure(asked):
    """The steps before a failure, and its reason."""
    phases = []
    try:
        for step in TABLE.steps(asked):
            phases.append(step.report.phase)
    except TrialFailed as error:
        return phases, str(error)
    return phases, None


def test_a_table_comes_back_as_it_was_written(tmp_path):
    TABLE.write(tmp_path / "t.parquet")
    assert Table.read(tmp_path / "t.parquet") == TABLE
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_the_file_is_one_row_a_report_and_a_column_a_metric(tmp_path):
    TABLE.write(tmp_path / "t.parquet")
    rows = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert len(rows) == 6 + 5 + 7 + 6 + 3 + 3 + 1
    assert rows[1] == {
        **{"trial": 0, "state": "COMPLETE", "reason": None, "design": design_hash({}), "knobs": "{}"},
        **{"phase": "counted", "epoch": 0, "point": None, "seconds": 1.0, "shared": False, "gmacs": 3.0},
        **dict.fromkeys(("bbox_mAP", "loss", "learned_bbox_mAP", *LATENCY)),
    }
    assert json.loads(rows[6]["knobs"]) == SLIM


def test_a_table_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(UserError, match=r"table: must be writable, but .*gone/t\.parquet gives: .*No such file"):
        TABLE.write(tmp_path / "gone/t.parquet")


def other(path):
    parquet.write_table(pa.table({"a": [1]}), path)


def newer(path):
    TABLE.write(path)
    found = parquet.read_table(path)
    parquet.write_table(found.replace_schema_metadata({b"headway": b'{"format": 2}'}), path)


def short(path):
    TABLE.write(path)
    parquet.write_table(parquet.read_table(path).drop_columns(["seconds", "phase"]), path)


def unnamed(path):
    TABLE.write(path)
    found = parquet.read_table(path)
    parquet.write_table(found.replace_schema_metadata({b"headway": b'{"format": 1, "reference_ms": 3}'}), path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"must be a file that 'headway record' wrote, but there is no file .*t\.parquet"),
        (
            lambda path: path.write_text("trial,epoch\n1,2\n"),
            r"must be a Parquet file, but .*t\.parquet gives: .*magic",
        ),
        (other, r"must be a file that 'headway record' wrote, but .*t\.parquet is another Parquet file"),
        (newer, r"must have format 1, but .*t\.parquet has 2; a newer Headway wrote it"),
        (short, r"must be whole, but .*t\.parquet lacks phase, seconds; record it again"),
        (unnamed, r"must be whole, but .*t\.parquet lacks its study file"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, make, message):
    path = tmp_path / "t.parquet"
    make(path)
    with pytest.raises(UserError, match=message):
        Table.read(path)


def test_the_baseline_trains_the_shared_warm_start_first():
    assert told(request({}, number=0, speed=SPEED)) == [
        ("warm", 5, 50.0, 50.0),
        ("counted", 0, 1.0, 51.0),
        ("timed", 0, 2.0, 53.0),
        ("epoch", 1, 10.0, 63.0),
        ("epoch", 2, 11.0, 74.0),
        ("done", 2, 0.5, 74.5),
    ]
    reports = [step.report for step in TABLE.steps(request({}, number=0, speed=SPEED))]
    assert reports[0].attrs == {"warm_epochs": 5, "warm_metrics": {"bbox_mAP": 0.05}}
    assert reports[1].metrics == {"gmacs": 3.0} and reports[1].attrs == {"replayed": 0}
    assert reports[2].metrics == {**LATENCY, "reference_ms": 20.0}
    assert [report.metrics for report in reports[3:]] == [{"bbox_mAP": 0.1, "loss": 2.0}, {"bbox_mAP": 1 / 3}, {}]


def test_a_latency_that_is_known_costs_no_time():
    phases = [("counted", 0, 1.0, 1.0), ("epoch", 1, 10.0, 11.0), ("epoch", 2, 11.0, 22.0), ("done", 2, 0.5, 22.5)]
    assert told(request(SLIM)) == phases
    # The recorded trial took it from another design; here this one is the first of its architecture.
    assert told(request(SLIM, speed=SPEED))[1] == ("timed", 0, 2.0, 3.0)


def test_only_the_settings_that_are_asked_for_are_swept():
    steps = list(TABLE.steps(request(QUERY, sweep=sweep(0, 2))))
    assert [step.report.attrs.get("index") for step in steps] == [None, None, None, 0, 2, None]
    assert steps[4].report.metrics == {"bbox_mAP": pytest.approx(0.1), **LATENCY}
    assert steps[-1].report.seconds == 1 + 10 + 11 + 4 + 4
    assert told(request(QUERY))[-2:] == [("epoch", 2, 11.0, 22.0), ("done", 2, 0.0, 22.0)]


def test_a_learned_network_is_counted_and_timed_once_it_is_settled():
    steps = list(TABLE.steps(request(POD, speed=SPEED)))
    assert [step.report.phase for step in steps] == ["epoch", "learned", "counted", "timed", "epoch", "done"]
    assert steps[1].report.attrs == {"learning_epochs": 1}


@pytest.mark.parametrize(
    ("asked", "steps", "reason"),
    [
        (request({"slimhead.ratio": 0.9}), [], 't.parquet has no recording of the design {"slimhead.ratio": 0.9}'),
        (request(SLIM, epochs=3), [], "t.parquet was recorded with 2 epochs, but the trial has 3"),
        (
            request(SLIM, warm=None),
            [],
            "t.parquet was recorded with 5 epochs of a shared warm start, but the trial has no",
        ),
        (
            request(SLIM, warm=4),
            [],
            "t.parquet was recorded with 5 epochs of a shared warm start, but the trial has 4 epochs",
        ),
        (
            request(STOPPED),
            ["counted", "epoch"],
            "t.parquet has this design only up to epoch 1: "
            "trial 4 of the recorded study is STOPPED (at epoch 1: rank 9)",
        ),
        (request(FAILED), ["counted", "epoch"], "the loss is NaN"),
        (
            request(COUNTED, speed=SPEED),
            ["counted"],
            "t.parquet has no latency of this design: "
            "trial 6 of the recorded study is INFEASIBLE (must hold: gmacs <= 2)",
        ),
        (
            request(QUERY, sweep=sweep(0, 7)),
            ["counted", "epoch", "epoch", "swept"],
            "t.parquet has no measurement of setting 7 of the inference knobs: "
            '{"querydet.threshold": 0.15, "index": 7}',
        ),
    ],
)
def test_what_was_not_recorded_fails_with_the_reason(asked, steps, reason):
    assert failure(asked) == (steps, reason)


@pytest.fixture
def table(tmp_path, monkeypatch):
    TABLE.write(tmp_path / "t.parquet")
    monkeypatch.setenv("HEADWAY_TABLE", str(tmp_path / "t.parquet"))
    return tmp_path


def start(asked, kill_at=None):
    """One start of the trainer; ``kill_at`` is the epoch whose report never returns."""
    reports = []

    def report(message):
        reports.append(message)
        if message.phase == "epoch" and message.epoch == kill_at:
            raise StopTrial

    if kill_at:
        with pytest.raises(StopTrial):
            train(asked, report)
    else:
        train(asked, report)
    return reports


def test_the_trainer_answers_from_the_table(table):
    asked = request({}, number=0, folder=table / "trials/0000", speed=SPEED)
    assert start(asked) == [step.report for step in TABLE.steps(asked)]


def test_a_killed_trial_repeats_its_last_report_and_goes_on(table):
    asked = request({}, number=0, folder=table / "trials/0000", speed=SPEED)
    first = start(asked, kill_at=1)
    assert [report.phase for report in first] == ["warm", "counted", "timed", "epoch"]
    known = replace(asked, speed=None)
    again = start(known, kill_at=2)
    # The warm start is there, the latency known: neither is paid for again.
    assert [(report.phase, report.epoch, report.seconds) for report in again] == [
        ("warm", 5, 0.0),
        ("epoch", 1, 0.0),
        ("epoch", 2, 11.0),
    ]
    assert again[1].metrics == first[3].metrics and again[1].attrs == {"resumed": True}
    last = start(known)
    assert [(report.phase, report.epoch, report.seconds) for report in last] == [
        ("warm", 5, 0.0),
        ("epoch", 2, 0.0),
        ("done", 2, 0.5),
    ]


def test_a_latency_is_measured_again_where_it_is_asked_for_again(table):
    asked = request(SLIM, folder=table / "trials/0001", speed=SPEED)
    start(asked, kill_at=2)
    again = [(report.phase, report.seconds) for report in start(asked)]
    assert again == [("counted", 1.0), ("timed", 3.0), ("epoch", 3.0), ("done", 3.5)]


def test_a_learning_trial_goes_on_in_either_phase(table):
    asked = request(POD, folder=table / "trials/0003", speed=SPEED)
    start(asked, kill_at=1)
    again = [(report.phase, report.seconds) for report in start(asked, kill_at=2)]
    assert again == [("epoch", 0.0), ("learned", 7.0), ("counted", 8.0), ("timed", 10.0), ("epoch", 21.0)]
    last = [(report.phase, report.seconds) for report in start(replace(asked, speed=None))]
    assert last == [("learned", 0.0), ("epoch", 0.0), ("done", 0.5)]


def test_another_designs_epoch_is_not_gone_on_from(table):
    start(request(SLIM, folder=table / "trials/0001"), kill_at=2)
    reports = start(request({}, folder=table / "trials/0001"))
    assert [report.phase for report in reports] == ["counted", "epoch", "epoch", "done"]


def test_the_trainer_needs_a_table(tmp_path, monkeypatch):
    monkeypatch.delenv("HEADWAY_TABLE", raising=False)
    with pytest.raises(UserError, match="HEADWAY_TABLE: must name a table that 'headway record' wrote, but it is not"):
        train(request(SLIM, folder=tmp_path), lambda message: None)
