"""What carries a study to MLflow beside its run: a real store of MLflow, which is away, slow, hangs or fails."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from analysis.record import EpochRecord, Objective, TrialRecord, TrialState
from search.tracking import Courier, Tracker, courier, default_uri
from search.tracking import tracker as tracking
from search.tracking.courier import Pace
from spaces.errors import UserError

TWO = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))


def running(number: int, epochs: int) -> TrialRecord:
    curve = [EpochRecord(e, {"bbox_mAP": 0.1 * e}, seconds=10.0 * e) for e in range(1, epochs + 1)]
    knobs = {"slimhead.ratio": 0.5 + number / 100} if number else {}
    return TrialRecord(number, TrialState.RUNNING, knobs=knobs, curve=curve, started=1000.0 + number)


def ended(number: int) -> TrialRecord:
    metrics = {"bbox_mAP": 0.3, "latency_ms": 50.0 - number}
    return replace(running(number, 3), state=TrialState.COMPLETE, metrics=metrics, finished=2000.0 + number)


class Place:
    """A store of MLflow that can be away; what it holds, and what was said of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.there = folder, True
        self.told: list[str] = []
        self.tracker: Tracker | None = None
        self.prepare: Callable[[Tracker], None] = lambda tracker: None

    def open(self) -> Tracker:
        if not self.there:
            raise UserError("tracking.uri: cannot reach MLflow at http://h: Connection refused.")
        self.tracker = Tracker.open(
            uri=default_uri(self.folder),
            experiment="cells",
            study="cells",
            study_folder=self.folder,
            params={},
            objectives=TWO,
        )
        self.prepare(self.tracker)
        return self.tracker

    def courier(self) -> Courier:
        return Courier(self.open, "http://h", lambda kind, reason: self.told.append(kind))

    def made(self) -> list[str]:
        """The trials of the child runs, in the order in which they were made; none before there is a store."""
        found = f"file:{self.folder / 'mlflow.db'}?mode=ro"
        with contextlib.suppress(sqlite3.OperationalError), sqlite3.connect(found, uri=True) as database:
            rows = database.execute(
                "select t.value from runs r join tags t on t.run_uuid = r.run_uuid "
                "where t.key = 'headway.trial' and r.lifecycle_stage = 'active' order by r.rowid"
            )
            return [row[0] for row in rows]
        return []

    def epochs(self) -> dict[str, list[tuple[int, int]]]:
        """Step and time in ms of each value of the accuracy's series, by trial."""
        client = MlflowClient(default_uri(self.folder))
        experiment = client.get_experiment_by_name("cells")
        assert experiment is not None
        return {
            run.data.tags["headway.trial"]: [
                (metric.step, metric.timestamp)
                for metric in client.get_metric_history(run.info.run_id, "epoch/bbox_mAP")
            ]
            for run in client.search_runs([experiment.experiment_id])
            if "headway.trial" in run.data.tags
        }


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def wait_for(reached: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_new_study_is_refused_where_mlflow_is_not(place: Place) -> None:
    place.there = False
    with pytest.raises(UserError, match="cannot reach MLflow"):
        place.courier().begin([])
    assert place.told == []


@pytest.mark.parametrize("there", [True, False])
def test_an_unhurried_beginning_waits_for_an_epoch(place: Place, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(courier, "OPEN_SECONDS", 0.2)
    place.there = there
    carried = place.courier()
    carried.begin([], unhurried=True)
    carried.trial(running(0, 0))
    time.sleep(0.3)
    assert not (place.folder / "mlflow.db").exists() and place.told == []
    carried.trial(running(0, 1))
    if there:
        wait_for(lambda: place.made() == ["0"])
    else:
        wait_for(lambda: place.told == ["tracking_down"])
        place.there = True
        wait_for(lambda: place.told == ["tracking_down", "tracking_back"])
    carried.trial(ended(0))
    carried.close("FINISHED")
    carried.settled()
    assert place.made() == ["0"]


def test_an_unhurried_beginning_waits_no_longer_than_for_a_minute(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert courier.CALM_SECONDS == 60
    monkeypatch.setattr(courier, "CALM_SECONDS", 0.2)
    carried = place.courier()
    carried.begin([], unhurried=True)
    carried.trial(running(0, 0))
    wait_for(lambda: place.made() == ["0"])
    carried.close("KILLED")


def test_a_study_that_ends_before_its_first_epoch_is_carried(place: Place) -> None:
    carried = place.courier()
    carried.begin([], unhurried=True)
    carried.trial(running(0, 0))
    carried.close("KILLED")
    assert place.made() == ["0"]


def test_a_study_that_goes_on_is_delivered_once_mlflow_is_there(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(courier, "OPEN_SECONDS", 0.2)
    place.there = False
    carried = place.courier()
    with caplog.at_level(logging.WARNING, "headway.tracking"):
        carried.begin([ended(0), running(1, 1)])
        # Heard of in another order than that of their numbers.
        for record in (running(3, 1), running(2, 2), ended(3), running(1, 2), ended(1)):
            carried.trial(record)
        wait_for(lambda: carried.state.waiting == 3)
        state = carried.state
        assert state.down_since is not None and abs(time.time() - state.down_since) < 60
        assert "cannot reach MLflow" in state.reason
        assert not (place.folder / "mlflow.db").exists()
        place.there = True
        wait_for(lambda: carried.state.down_since is None)
        carried.trial(ended(2))
        carried.close("FINISHED")
    assert len(caplog.records) == 1
    assert place.told == ["tracking_down", "tracking_back"]
    assert place.made() == ["0", "1", "2", "3"]
    # The times are those of the epochs, not of the delivery.
    assert place.epochs() == {
        str(number): [(epoch, int(1000 * (1000 + number + 10 * epoch))) for epoch in (1, 2, 3)] for number in range(4)
    }


def test_a_study_that_ends_without_mlflow_says_so(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.there = False
    carried = place.courier()
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "headway.tracking"):
        carried.begin([ended(0)])
        carried.trial(ended(1))
        carried.close("FINISHED")
    assert time.monotonic() - began < 20
    assert "http://h fails; the search goes on: tracking.uri: cannot reach MLflow" in caplog.messages[0]
    assert "'headway sync' adds it" in caplog.messages[-1]
    assert place.told == ["tracking_down"]


def test_a_slow_mlflow_holds_nobody_up(place: Place) -> None:
    def slow(tracker: Tracker) -> None:
        log_batch = tracker._client.log_batch

        def later(*what: object, **more: object) -> None:
            time.sleep(0.2)
            log_batch(*what, **more)

        tracker._client.log_batch = later

    place.prepare = slow
    carried = place.courier()
    carried.begin([])
    began = time.monotonic()
    for number in range(4):
        for record in (running(number, 0), running(number, 1), running(number, 2), ended(number)):
            carried.trial(record)
    carried.study([ended(number) for number in range(4)])
    assert time.monotonic() - began < 0.5  # the writing takes 0.2 s each
    carried.close("FINISHED")
    assert place.made() == ["0", "1", "2", "3"]
    assert [len(epochs) for epochs in place.epochs().values()] == [3] * 4
    assert carried.state == courier.TrackingState("http://h")


def test_an_mlflow_that_hangs_is_left_behind_at_the_end(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(courier, "LOST_SECONDS", 1.0)
    hung = threading.Event()

    def hang(tracker: Tracker) -> None:
        tracker._client.log_artifacts = lambda *_: hung.wait()

    place.prepare = hang
    carried = place.courier()
    carried.begin([ended(0)])
    carried.study([ended(0)])
    wait_for(lambda: place.tracker is not None and place.made() == ["0"])
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "headway.tracking"):
        carried.close("FINISHED")
    assert time.monotonic() - began < 20
    assert "no answer within 1 s" in carried.state.reason
    assert "'headway sync' adds it" in caplog.messages[-1]
    hung.set()


def test_what_nobody_foresaw_ends_no_delivery(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.5)
    front_rows = tracking.pareto.front_rows
    monkeypatch.setattr(tracking.pareto, "front_rows", lambda *_: 1 / 0)
    carried = place.courier()
    carried.begin([ended(0)])
    carried.study([ended(0)])
    wait_for(lambda: carried.state.down_since is not None)
    assert carried.state.reason == "division by zero"
    monkeypatch.setattr(tracking.pareto, "front_rows", front_rows)
    carried.trial(ended(1))
    wait_for(lambda: place.made() == ["0", "1"])
    carried.close("FINISHED")
    assert place.told == ["tracking_down", "tracking_back"]


@pytest.mark.parametrize(("takes", "rests"), [(0.125, 15.0), (0.75, 15.0), (3.0, 60.0)])
def test_drawing_takes_at_most_a_twentieth(takes: float, rests: float) -> None:
    """It rests 15 s, or 20 times as long as it took, counted from its end."""
    now, pace, drawn = 100.0, Pace(), []
    for _ in range(1000):
        if pace.due(now):
            now += takes
            drawn.append(now)
            pace.drew(now - takes, now)
        now += 0.5
    gaps = [later - takes - earlier for earlier, later in itertools.pairwise(drawn)]
    assert len(gaps) >= 6
    assert all(rests <= gap <= rests + 0.5 for gap in gaps)
