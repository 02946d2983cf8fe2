"""The tracker against a real SQLite store of MLflow."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import math
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
from mlflow.tracking import MlflowClient
from sqlalchemy import text

from analysis.record import EpochRecord, Objective, SweepPoint, TrialRecord, TrialState
from search.tracking import Tracker, default_uri, find_run, page_url, public_uri, server, ui_command
from search.tracking import tracker as module
from search.tracking.content import content_of, volume_metrics
from search.tracking.views import TAG, view_key, view_url
from spaces.errors import UserError

TWO = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests: making its tables takes two seconds. Each test has its own experiment and folder."""
    return default_uri(tmp_path_factory.mktemp("mlflow"))


class Place:
    """A study's place in the store, and what is seen there."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self.folder, self.client = uri, folder, MlflowClient(tracking_uri=uri)

    def open(self, **params: object) -> Tracker:
        return Tracker.open(
            uri=self.uri,
            experiment=self.folder.name,
            study="cells",
            study_folder=self.folder,
            params=params,
            objectives=TWO,
        )

    def children(self, tracker: Tracker) -> list[Run]:
        wanted = f"tags.`mlflow.parentRunId` = '{tracker.run_id}'"
        runs = self.client.search_runs([tracker.experiment_id], wanted)
        return sorted(runs, key=lambda run: float(run.data.tags["headway.trial"]))

    def series(self, run: Run, name: str) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(run.info.run_id, name)
        return [(metric.step, round(metric.value, 9)) for metric in history]


@pytest.fixture
def place(store: str, tmp_path: Path) -> Place:
    return Place(store, tmp_path)


def running(number: int, epochs: int) -> TrialRecord:
    curve = [EpochRecord(e, {"bbox_mAP": 0.1 * e, "loss": 1 / e}, seconds=10.0 * e) for e in range(1, epochs + 1)]
    knobs = {} if number == 0 else {"slimhead.levels": [0], "slimhead.mode": "nearest", "slimhead.ratio": 0.5}
    return TrialRecord(number, TrialState.RUNNING, knobs=knobs, curve=curve, started=1000.0 + number)


def ended(number: int, state: TrialState = TrialState.COMPLETE, ms: float = 50.0) -> TrialRecord:
    metrics = {"bbox_mAP": 0.3, "latency_ms": ms, "gmacs": math.nan}
    return replace(
        running(number, 3), state=state, metrics=metrics, finished=2000.0 + number, compute_hours=0.02, reason=None
    )


def test_a_trial_grows_and_is_never_doubled(place: Place) -> None:
    tracker = place.open()
    for record in (running(1, 0), running(1, 1), running(1, 1), running(1, 2), ended(1), ended(1)):
        tracker.trial(record)
    [run] = place.children(tracker)
    assert run.info.status == "FINISHED"
    assert run.info.end_time == 2001_000
    assert run.data.params == {"slimhead.levels": "[0]", "slimhead.mode": "nearest", "slimhead.ratio": "0.5"}
    assert place.series(run, "epoch/bbox_mAP") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert place.series(run, "bbox_mAP") == [(0, 0.3)]
    assert "gmacs" not in run.data.metrics
    assert run.data.tags["headway.state"] == "COMPLETE"
    assert run.data.tags["mlflow.parentRunId"] == tracker.run_id
    assert run.data.tags["mlflow.runName"] == "1 slimhead levels=0 nearest ratio=0.5"


@pytest.mark.parametrize(
    ("state", "status"),
    [(TrialState.STOPPED, "FINISHED"), (TrialState.INFEASIBLE, "FINISHED"), (TrialState.FAILED, "FAILED")],
)
def test_other_ends(place: Place, state: TrialState, status: str) -> None:
    tracker = place.open()
    tracker.trial(replace(ended(2, state), reason="why", traceback="Traceback", rungs={1: "continue", 3: "stop"}))
    [run] = place.children(tracker)
    assert run.info.status == status
    assert run.data.tags["headway.state"] == state.value
    assert run.data.tags["headway.reason"] == "why"
    assert run.data.tags["headway.rungs"] == "epoch 1: continue, epoch 3: stop"
    assert "Traceback" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["latency_ms"] == 50.0
    assert "bbox_mAP" not in run.data.metrics  # a half-trained figure is in the series only


def test_each_setting_of_a_sweep_is_a_run(place: Place) -> None:
    """One training, a curve of points: in the charts of the runs, and as a series on the trial's own run."""
    points = [
        SweepPoint(index, {"q.threshold": 0.1 * index}, {"bbox_mAP": 0.3 - 0.01 * index, "latency_ms": 50.0 - index})
        for index in range(7)
    ]
    record = replace(ended(1), knobs=points[0].knobs, sweep=points)
    tracker = place.open()
    tracker.trial(replace(running(1, 3), knobs=points[0].knobs, sweep=points[:3]))
    assert len(place.children(tracker)) == 1  # points once it is COMPLETE
    for _ in range(2):
        tracker.trial(record)
        tracker.study([ended(0), record])
    _, own, *others = place.children(tracker)
    assert [run.data.tags["headway.trial"] for run in others] == ["1.1", "1.2", "1.3", "1.4", "1.5", "1.6"]
    assert [run.data.metrics["latency_ms"] for run in (own, *others)] == [50.0 - index for index in range(7)]
    assert others[2].data.params == {"q.threshold": "0.30000000000000004"}
    assert place.series(others[0], "epoch/bbox_mAP") == []
    assert place.series(own, "sweep/bbox_mAP") == [(index, round(0.3 - 0.01 * index, 9)) for index in range(7)]
    assert place.series(own, "sweep/threshold") == [(index, round(0.1 * index, 9)) for index in range(7)]
    # By latency they trade against accuracy, but for the baseline's equal.
    assert {run.data.tags["headway.front"] for run in others} == {"true"}

    # A reconciled store ends with the same runs.
    again = place.open()
    again.reconcile([ended(0), record])
    assert len(place.children(again)) == 8
    again.reconcile([ended(0), replace(record, sweep=points[:2])])
    assert [run.data.tags["headway.trial"] for run in place.children(again)] == ["0", "1", "1.1"]


SCALE = {
    **{"d_h": 1.7, "std_h": 0.05, "min_h": 1.6, "max_h": 1.8, "d_w": 2.9, "std_w": 0.06, "min_w": 2.8, "max_w": 3.0},
    **{"images": 500, "channels": 256, "groups": 1},
}
LEARNED = {"learned_bbox_mAP": 0.28, "decomposed_bbox_mAP": 0.25, "learning_latency_ratio": 1.7}


def learned(record: TrialRecord) -> TrialRecord:
    """A trial after its report ``learned``, which came at epoch 2; of 30 convolutions, as ResNet-101 has them."""
    scales = {f"backbone.layer3.{index}.conv2": SCALE for index in range(30)}
    times = {name: {"parts": []} for name in ("time", "time.1")}
    attrs = {"learning_epochs": 2, "scale_images": 500, "scales": scales, "seed": 3, **times}
    return replace(record, attrs=attrs, metrics={**record.metrics, **LEARNED})


def test_learned_scales_are_shown_once_they_are_known(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = place.open()
    logged = []
    log_artifacts = tracker._client.log_artifacts

    def count(run_id: str, folder: str, *rest: str) -> None:
        logged.append(sorted(path.name for path in Path(folder).iterdir()))
        log_artifacts(run_id, folder, *rest)

    monkeypatch.setattr(tracker._client, "log_artifacts", count)
    tracker.trial(running(1, 2))
    [run] = place.children(tracker)
    assert place.client.list_artifacts(run.info.run_id) == []
    tracker.trial(learned(running(1, 2)))
    [run] = place.children(tracker)
    assert {item.path for item in place.client.list_artifacts(run.info.run_id)} == {"scales.json", "scales.png"}
    # They are final before the trial is.
    assert run.info.status == "RUNNING"
    assert {name: run.data.metrics[name] for name in LEARNED} == LEARNED
    [metric] = place.client.get_metric_history(run.info.run_id, "learned_bbox_mAP")
    assert (metric.step, metric.timestamp) == (0, 1021_000)  # started at 1001 s, epoch 2 ended 20 s later
    assert f"path=scales.png&run_uuid={run.info.run_id}" in run.data.tags["mlflow.note.content"]

    tracker.trial(learned(running(1, 3)))
    assert len(logged) == 1  # nothing new about the scales
    tracker.trial(learned(ended(1)))
    tracker.trial(learned(ended(1)))
    assert logged == [["scales.json", "scales.png"]] * 2  # with the accuracy after fine-tuning
    [run] = place.children(tracker)
    file = place.client.download_artifacts(run.info.run_id, "scales.json", str(tmp_path))
    document = json.loads(Path(file).read_text())
    assert [item["name"] for item in document["convolutions"]] == [f"conv4_{number}" for number in range(1, 31)]
    assert document["metrics"] == {**LEARNED, "bbox_mAP": 0.3}
    assert place.series(run, "learned_bbox_mAP") == [(0, 0.28)]
    assert place.series(run, "bbox_mAP") == [(0, 0.3)]
    # What else is known of the trial is not crowded out.
    assert json.loads(run.data.tags["headway.attrs"]) == {"learning_epochs": 2, "scale_images": 500, "seed": 3}

    # A restart finds all of it there.
    again = place.open()
    monkeypatch.setattr(again._client, "log_artifacts", count)
    again.reconcile([learned(ended(1))])
    assert len(logged) == 2
    assert [item.info.run_id for item in place.children(again)] == [run.info.run_id]


def test_a_long_parameter_is_cut_and_stays(place: Place) -> None:
    """MLflow takes 6,000 characters of a parameter and may cut it; a run that differed for that would be replaced."""
    scales = [[f"backbone.layer3.{index}.conv2", 1.234567, 2.345678] for index in range(150)]
    record = replace(ended(1), knobs={"pod.mode": "fixed", "pod.scales": scales})
    tracker = place.open(designs=[{"pod.scales": scales}])
    tracker.trial(record)
    [first] = place.children(tracker)
    assert 4000 < len(first.data.params["pod.scales"]) < 6000
    again = place.open(designs=[{"pod.scales": scales}])
    again.reconcile([record])
    again.trial(replace(record, attrs={"seed": 1}))
    assert [run.info.run_id for run in place.children(again)] == [first.info.run_id]
    assert "headway.param.designs" not in place.client.get_run(again.run_id).data.tags
    assert not again.pending


def test_the_pictures_of_a_trial_are_artifacts_of_its_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["1-a b.detections.png", "1-a b.query-P4.png", "2-c.detections.png", "2-c.query-P4.png"]
    folder = place.folder / "trials/0001"
    (folder / "pictures").mkdir(parents=True)
    for name in names:
        (folder / "pictures" / name).write_bytes(name.encode())
    record = replace(ended(1), folder="trials/0001", attrs={"pictures": names})
    tracker = place.open()
    logged = []
    log_artifacts = tracker._client.log_artifacts
    monkeypatch.setattr(tracker._client, "log_artifacts", lambda *what: (logged.append(what), log_artifacts(*what)))
    tracker.trial(replace(running(1, 2), folder="trials/0001"))
    assert logged == []
    tracker.trial(record)
    tracker.trial(replace(record, metrics={**record.metrics, "gmacs": 2.0}))  # written again, but not its pictures
    [run] = place.children(tracker)
    assert len(logged) == 1
    there = place.client.list_artifacts(run.info.run_id, "pictures")
    assert sorted(item.path for item in there) == [f"pictures/{name}" for name in names]
    kept = place.client.download_artifacts(run.info.run_id, f"pictures/{names[1]}", str(place.folder))
    assert Path(kept).read_bytes() == names[1].encode()
    # The description shows the detections first.
    told = run.data.tags["mlflow.note.content"]
    assert told.startswith(f"[All 4 pictures]({page_url('', tracker.experiment_id, run.info.run_id, 'pictures')})")
    assert f"get-artifact?path=pictures/1-a%20b.detections.png&run_uuid={run.info.run_id}" in told
    assert told.index("2-c.detections.png") < told.index("1-a b.query-P4.png")

    # After a restart they are not logged again; a folder that is gone is no failure.
    again = place.open()
    monkeypatch.setattr(again._client, "log_artifacts", lambda *what: logged.append(what))
    again.reconcile([record])
    again.trial(replace(ended(2), folder="trials/0002", attrs={"pictures": names}))
    assert len(logged) == 1
    assert not again.pending


def test_a_proposed_trial_has_no_run(place: Place) -> None:
    tracker = place.open()
    tracker.trial(TrialRecord(3, TrialState.PROPOSED))
    assert place.children(tracker) == []


def test_a_restart_goes_on_in_the_same_runs(place: Place) -> None:
    first = place.open(trials=8)
    first.trial(running(0, 2))
    second = place.open(trials=16, budget={"hours": None})
    assert second.run_id == first.run_id
    second.reconcile([running(0, 2)])
    second.trial(ended(0))
    second.study([ended(0)])
    second.close("FINISHED")
    third = place.open(trials=16)
    parent = place.client.get_run(third.run_id)
    assert parent.info.status == "RUNNING"
    assert parent.data.params == {"trials": "8", "budget.hours": "null"}
    assert parent.data.tags["headway.param.trials"] == "16"
    [run] = place.children(third)
    assert place.series(run, "epoch/loss") == [(1, 1.0), (2, 0.5), (3, 0.333333333)]
    third.reconcile([ended(0)])
    third.study([ended(0)])
    third.close("FINISHED")
    assert place.series(parent, "hypervolume") == [(1, 15.0)]
    assert place.client.get_run(third.run_id).info.status == "FINISHED"


def test_kill_between_creating_and_writing(place: Place) -> None:
    first = place.open()
    # What a driver leaves that died right after the run was made, and one that died after half of the figures.
    first._create(running(0, 1))
    half = first._create(ended(1))
    place.client.log_batch(half.run_id, metrics=[Metric("epoch/loss", 1.0, 5, 1)])
    second = place.open()
    second.reconcile([ended(0), ended(1)])
    runs = place.children(second)
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert runs[1].info.run_id == half.run_id
    assert [len(place.series(run, "epoch/loss")) for run in runs] == [3, 3]


def test_reconcile_removes_doubles_and_strangers(place: Place) -> None:
    first = place.open()
    first.trial(ended(0))
    kept = place.children(first)[0].info.run_id
    first._create(ended(0))
    first._create(running(7, 1))
    foreign = place.client.create_run(first.experiment_id, tags={"mlflow.parentRunId": first.run_id})
    second = place.open()
    second.reconcile([ended(0)])
    active = place.client.search_runs([second.experiment_id], f"tags.`mlflow.parentRunId` = '{second.run_id}'")
    assert {run.info.run_id for run in active} == {kept, foreign.info.run_id}


def test_a_run_that_contradicts_its_record_is_replaced(place: Place) -> None:
    tracker = place.open()
    tracker.trial(running(1, 2))
    old = place.children(tracker)[0].info.run_id
    # Epoch 2 was trained again, and gave another value than the one that MLflow cannot take back.
    again = replace(running(1, 2), curve=[running(1, 1).curve[0], EpochRecord(2, {"bbox_mAP": 0.25}, 20.0)])
    tracker.trial(again)
    [run] = place.children(tracker)
    assert run.info.run_id != old
    assert place.series(run, "epoch/bbox_mAP") == [(1, 0.1), (2, 0.25)]
    other = place.open()
    other.reconcile([replace(again, curve=again.curve[:1])])
    [run] = place.children(other)
    assert place.series(run, "epoch/bbox_mAP") == [(1, 0.1)]


def test_a_trial_that_runs_again_is_running(place: Place) -> None:
    tracker = place.open()
    tracker.trial(replace(ended(1, TrialState.FAILED), metrics={}, curve=(), reason="worker died"))
    tracker.trial(replace(running(1, 0), started=1001.0))
    [run] = place.children(tracker)
    assert run.info.status == "RUNNING"
    assert run.data.tags["headway.reason"] == ""


def test_the_study_is_drawn(place: Place) -> None:
    tracker = place.open()
    records = [ended(0), ended(1, ms=40.0), ended(2, TrialState.STOPPED), ended(3, ms=45.0), running(4, 1)]
    for record in records[:4]:
        tracker.trial(record)
    tracker.study(records)
    tracker.study(records)
    parent = place.client.get_run(tracker.run_id)
    names = {item.path for item in place.client.list_artifacts(tracker.run_id)}
    pages = {"pareto.html", "pareto.mjs", "pareto.png", "pareto.svg"}
    assert names == {*pages, "hypervolume.png", "front.csv", "front.json"}
    assert (place.folder / "artifacts").is_dir()
    assert place.series(parent, "hypervolume") == [(1, 15.0), (2, 18.0), (3, 18.0), (4, 18.0)]
    # The last minute of 0.02 h each is held back until it is over.
    assert place.series(parent, "hypervolume_by_minute") == [(1, 15.0), (2, 18.0), (3, 18.0)]
    tracker.close("FINISHED")
    assert len(place.series(parent, "hypervolume_by_minute")) == 4
    tags = place.client.get_run(tracker.run_id).data.tags
    assert tags["headway.trials.complete"] == "3"
    assert f"run_uuid={tracker.run_id}" in tags["mlflow.note.content"]
    described = place.client.get_experiment(tracker.experiment_id).tags
    for front in (False, True):
        assert described[TAG + view_key(tracker.run_id, front=front)]
        assert view_url(tracker.experiment_id, tracker.run_id, front=front) in described["mlflow.note.content"]
    assert "\n" not in described["mlflow.note.content"]
    fronts = [run.data.tags.get("headway.front") for run in place.children(tracker)]
    assert fronts == ["false", "true", None, "false", None]
    page = page_url("http://127.0.0.1:5000/", *(found := find_run_of(place)))
    assert page == (
        f"http://127.0.0.1:5000/#/experiments/{found[0]}/runs/{tracker.run_id}/artifacts/pareto.html"
        "?workflowType=machine_learning"
    )


def find_run_of(place: Place) -> tuple[str, str]:
    found = find_run(uri=place.uri, experiment=place.folder.name, study_folder=place.folder)
    assert found is not None
    return found


def test_a_study_without_any_point_is_drawn(place: Place) -> None:
    tracker = place.open()
    tracker.study([running(0, 0)])
    assert not tracker.pending
    assert len(place.client.list_artifacts(tracker.run_id)) == 7


def test_two_studies_of_one_name_stay_apart(place: Place, tmp_path: Path) -> None:
    one = place.open()
    folder = tmp_path / place.folder.name  # the same experiment, another folder
    folder.mkdir()
    assert Place(place.uri, folder).open().run_id != one.run_id
    assert find_run(uri=place.uri, experiment="none", study_folder=folder) is None
    assert find_run(uri=place.uri, experiment="none", study_folder=tmp_path / "new") is None


def test_failures_do_not_end_a_search(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    tracker = place.open()
    tracker.trial(ended(0))
    log_batch = tracker._client.log_batch
    calls = []

    def broken(*args: object, **kwargs: object) -> None:
        calls.append(args)
        raise MlflowException("the server is down")

    monkeypatch.setattr(tracker._client, "log_batch", broken)
    with caplog.at_level(logging.WARNING, "headway.tracking"):
        tracker.trial(ended(1))
        tracker.trial(ended(2))
        tracker.study([ended(0), ended(1), ended(2)])
    assert tracker.pending
    assert len(caplog.records) == 1
    monkeypatch.setattr(module, "RETRY_SECONDS", 600.0)
    tracker.trial(ended(3))
    assert len(calls) == 3  # no further try before its time
    monkeypatch.setattr(tracker._client, "log_batch", log_batch)
    tracker.close("FINISHED")
    assert not tracker.pending
    runs = place.children(tracker)
    assert [run.data.tags["headway.trial"] for run in runs] == ["0", "1", "2", "3"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [len(place.series(run, "epoch/loss")) for run in runs] == [3] * 4


def open_at(uri: str, folder: Path) -> Tracker:
    return Tracker.open(uri=uri, experiment="cells", study="cells", study_folder=folder, params={}, objectives=TWO)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://jo:s3cret@127.0.0.1:9", "cannot reach MLflow at http://127.0.0.1:9"),
        ("postgresql://jo:s3cret@127.0.0.1:9/db", "no database answers at postgresql://127.0.0.1:9/db"),
        ("file:///tmp/mlruns", "must be http://HOST:PORT"),
        ("nonsense", "but got 'nonsense'"),
        ("http://", "must be http://HOST:PORT"),
        ("http://h:port", "is no URI"),
        ("sqlite:////proc/none/mlflow.db", "cannot reach MLflow at sqlite:///"),
    ],
)
def test_an_unreachable_store_is_told_in_time(uri: str, said: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        open_at(uri, tmp_path)
    assert time.monotonic() - start < 10
    assert str(error.value).startswith("tracking.uri: ")
    assert said in str(error.value)
    assert "s3cret" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_answers_is_told_in_time(tmp_path: Path) -> None:
    class Silent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(12)

        do_POST = do_GET  # noqa: N815

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    start = time.monotonic()
    with pytest.raises(UserError, match="no answer within 8 s"):
        open_at(f"http://127.0.0.1:{server.server_port}", tmp_path)
    assert time.monotonic() - start < 10
    server.shutdown()


@pytest.mark.parametrize("steps", [0, 3, 12])
def test_a_store_whose_making_was_killed_is_made_again(steps: int, tmp_path: Path) -> None:
    """MLflow has changed a table and not yet noted it, or has only its first tables, or not even these."""
    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    if steps:
        engine = utils.create_sqlalchemy_engine(uri)
        InitialBase.metadata.create_all(engine)
        command.upgrade(utils._get_alembic_config(uri), f"+{steps}")
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM alembic_version"))
        engine.dispose()
    else:
        path.touch()
    client = server.reach(uri)
    made = client.create_experiment("a")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    # One that was made to its end, and any other database, stays.
    assert server.reach(uri).get_experiment(made).name == "a"
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE mine (value)")
    assert server._is_there(other)
    other.write_text("no database")
    assert server._is_there(other)


def test_a_deleted_experiment_is_told(place: Place) -> None:
    tracker = place.open()
    place.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(UserError, match=r"tracking\.experiment: .* was deleted"):
        place.open()


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = open_at(default_uri(tmp_path), tmp_path)
    tracker.trial(ended(0))
    tracker.close("FINISHED")
    seen = capfd.readouterr()
    assert seen.out == ""
    assert seen.err == ""
    assert (tmp_path / "mlflow.db").is_file()


def test_ui_command() -> None:
    command = ui_command("sqlite:////a/mlflow.db", 5050)
    assert command[1:] == [
        "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "5050", "--workers", "1",
        "--backend-store-uri", "sqlite:////a/mlflow.db",
    ]  # fmt: skip
    assert "secret" not in " ".join(ui_command("postgresql://jo:secret@h/db", 5050))
    with pytest.raises(ValueError, match="is a server already"):
        ui_command("http://h:5000", 5050)
    assert public_uri("mysql+pymysql://jo:secret@h:3306/db?password=x") == "mysql+pymysql://h:3306/db"
    assert page_url("", "1", "r", None) == "#/experiments/1/runs/r?workflowType=machine_learning"


def test_content_depends_on_the_record_alone() -> None:
    assert content_of(ended(1)).fingerprint == content_of(ended(1)).fingerprint
    assert content_of(ended(1)).fingerprint != content_of(running(1, 3)).fingerprint
    assert volume_metrics([], [], final=True) == {}


def test_what_a_trial_costs_does_not_grow_with_their_number(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """No search for a run that is new, no reading of series that were written, and as many calls for each trial."""
    tracker = place.open()
    client, calls = tracker._client, []

    def count(name: str) -> None:
        method = getattr(client, name)

        def counted(*what: object, **more: object) -> object:
            calls.append(name)
            return method(*what, **more)

        monkeypatch.setattr(client, name, counted)

    for name in dir(client):
        if name.startswith(("log_", "create_", "search_", "get_", "set_", "update_")):
            count(name)

    def life(number: int) -> list[str]:
        calls.clear()
        for record in (running(number, 0), running(number, 1), running(number, 1), running(number, 2), ended(number)):
            tracker.trial(record)
        return list(calls)

    first, *others = [life(number) for number in range(8)]
    assert first == ["create_run", "log_batch", "log_batch", "log_batch", "log_batch", "set_terminated"]
    assert all(one == first for one in others)
    # A drawing writes only what is new: one trial's place on the front, and one line of the parent's.
    tracker.study([ended(number) for number in range(8)])
    life(8)
    calls.clear()
    tracker.study([ended(number) for number in range(9)])
    assert calls == ["log_batch", "log_artifacts", "log_batch"]
    # A restart reads no series of trials that have ended.
    again = place.open()
    monkeypatch.setattr(again._client, "get_metric_history", lambda *_: pytest.fail("a series is read again"))
    again.reconcile([ended(number) for number in range(9)])
    assert not again.pending
    assert len(place.children(again)) == 9


def test_many_runs_are_read_page_by_page(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where several have begun at the same moment."""
    first = place.open()
    records = [replace(ended(number), started=1000.0 + number // 4) for number in range(11)]
    for record in records:
        first.trial(record)
    before = [run.info.run_id for run in place.children(first)]
    monkeypatch.setattr(server, "_PAGE", 3)
    second = place.open()
    assert sorted(second._children, key=int) == [str(number) for number in range(11)]
    second.reconcile(records)
    assert [run.info.run_id for run in place.children(second)] == before


def test_a_kill_after_a_trial_ran_again_is_repaired(place: Place) -> None:
    """The run still held the mark of an end that is no longer true."""
    failed = replace(ended(1, TrialState.FAILED), metrics={}, curve=running(1, 1).curve, reason="worker died")
    first = place.open()
    first.trial(failed)
    first.trial(running(1, 2))
    second = place.open()
    second.reconcile([failed])  # as a store that was set back would have it
    [run] = place.children(second)
    assert (run.info.status, run.data.tags["headway.state"]) == ("FAILED", "FAILED")
    assert place.series(run, "epoch/bbox_mAP") == [(1, 0.1)]
