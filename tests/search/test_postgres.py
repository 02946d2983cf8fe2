"""The store on a real PostgreSQL: the same trials as in SQLite, one driver at a time, and a server that dies."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from analysis.record import TrialState
from search.conductor import Conductor
from search.events import EVENTS, EventLog, read_events, reconstruct
from search.folder import write_study
from search.simulate import Clock, simulate
from search.storage import with_driver
from search.store import Store, await_database
from search.study import parse
from search.study_lock import held
from spaces.base import BaseFacts
from spaces.errors import CutShort, HeadwayError, UserError
from spaces.space import build_space, design_hash
from trainers.contract import DataRequest, TrialReport
from trainers.replay import Step

SPACE = build_space({"slimhead": {}, "dcn": {}}, BaseFacts("GFL", "GFLHead", (8, 16, 32, 64, 128), 4, False))
DATA = DataRequest(
    train_annotations="", train_images="", val_annotations="", val_images="", classes=("a",), size=(96, 96)
)
EPOCHS = 4


def make_study(url=None, trials=12):
    raw = {
        "name": "served",
        "base": "headway::gfl_tiny",
        "data": {"digits": {}, "size": [96, 96]},
        "space": {"slimhead": {}, "dcn": {}},
        "constraints": ["gmacs <= 11"],
        "budget": {"trials": trials, "epochs": EPOCHS},
        "rungs": {"first": 1, "factor": 2, "method": "mo_asha"},
        "sampler": {"name": "tpe", "startup": 4},
        "storage": url,
    }
    return parse(raw, "served.yaml")


def steps(request):
    luck = int(design_hash(dict(request.knobs)), 16) % 1000 / 1000
    yield Step(1.0, TrialReport(phase="counted", epoch=0, metrics={"gmacs": 9 + 2.2 * luck}))
    if request.speed is not None:
        ratio = dict.fromkeys(("latency_ratio", "latency_ratio_q1", "latency_ratio_q3"), 0.5 + luck)
        yield Step(2.0, TrialReport(phase="timed", epoch=0, metrics={**ratio, "reference_ms": 20.0}))
    for epoch in range(1, request.epochs + 1):
        metrics = {"bbox_mAP": 0.3 * luck * epoch / EPOCHS, "loss": 1 / epoch}
        yield Step(10 + luck, TrialReport(phase="epoch", epoch=epoch, metrics=metrics))
    yield Step(1.0, TrialReport(phase="done", epoch=EPOCHS, metrics={}, attrs={"seed": 0}))


def searched(folder, study, at=None, act=None, **options):
    """Runs a study in simulated time, with ``act`` called at its report number ``at``."""
    folder.mkdir(exist_ok=True)
    clock, log, told = Clock(), EventLog(folder / EVENTS), []
    store = Store.create(folder, study, clock=clock, journal=log, say=told.append, **options)
    store.settle()
    conductor = Conductor(
        study, SPACE, store, folder=folder, data=DATA, device="cpu", speed_device="cpu", threads=1, concurrent=2,
        clock=clock,
    )  # fmt: skip
    real, count = conductor.report, [0]

    def report(number, message):
        count[0] += 1
        if count[0] == at:
            act()
        return real(number, message)

    conductor.report = report
    simulate(conductor, steps, clock)
    log.close()
    return store, told


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    store, _ = searched(tmp_path_factory.mktemp("sqlite"), make_study())
    return store.records()


def test_the_trials_are_those_of_sqlite(postgres, tmp_path, undisturbed):
    study = make_study(postgres.database())
    store, told = searched(tmp_path, study)
    assert store.records() == Store.read(tmp_path, study).records() == undisturbed
    assert {record.state for record in undisturbed} >= {
        TrialState.COMPLETE,
        TrialState.STOPPED,
        TrialState.INFEASIBLE,
    }
    assert [trial.state.is_finished() for trial in store._optuna.trials] == [True] * len(undisturbed)
    assert reconstruct(tmp_path / EVENTS) == undisturbed
    assert told == []


def test_a_study_is_continued(postgres, tmp_path):
    url = postgres.database()
    before, _ = searched(tmp_path, make_study(url, trials=4))
    with pytest.raises(UserError, match=r"budget\.trials: 4 -> 6"):
        Store.create(tmp_path, make_study(url, trials=6))
    after, _ = searched(tmp_path, make_study(url, trials=6), extend=True)
    assert after.records()[: len(before.records())] == before.records()
    assert sum(record.state is not TrialState.INFEASIBLE for record in after.records()) == 6
    assert reconstruct(tmp_path / EVENTS) == after.records()


@pytest.mark.parametrize("at", [1, 9, 20])
def test_a_server_that_is_killed_and_started_again_changes_nothing(postgres, tmp_path, undisturbed, at):
    study = make_study(postgres.database())
    away = []

    def die():
        postgres.kill()
        away.append(threading.Timer(1.5, postgres.start))
        away[0].start()

    try:
        store, told = searched(tmp_path, study, at=at, act=die)
    finally:
        away[0].join()
    assert store.records() == Store.read(tmp_path, study).records() == undisturbed
    assert len(store._optuna.get_trials()) == len(undisturbed)
    assert len(told) == 2
    assert "cannot be used" in told[0] and "hush" not in told[0]
    assert told[1].startswith("the database is there again, after ")
    names = [event["event"] for event in read_events(tmp_path / EVENTS)]
    assert names.count("store_waits") == names.count("store_back") == 1
    assert reconstruct(tmp_path / EVENTS) == undisturbed


def test_sessions_that_are_cut_at_any_write_change_nothing(postgres, tmp_path, undisturbed):
    """The server ends all sessions again and again, at moments of its own."""
    url = postgres.database()
    name = url.rpartition("/")[2]
    over = threading.Event()

    def cut():
        for _ in range(25):
            if over.wait(0.15):
                return
            postgres.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    cutter = threading.Thread(target=cut)
    study = make_study(url)
    try:
        store, _ = searched(tmp_path, study, at=1, act=cutter.start)  # a start is refused, it does not wait
    finally:
        over.set()
        cutter.join()
    assert store.records() == Store.read(tmp_path, study).records() == undisturbed
    assert len(store._optuna.get_trials()) == len(undisturbed)


@pytest.mark.parametrize("call", ["_create_new_trial", "set_trial_state_values", "set_trial_user_attr"])
def test_a_write_whose_answer_is_lost_is_done_once(postgres, tmp_path, undisturbed, call, monkeypatch):
    """The server commits and the connection is gone before it can say so."""
    from optuna.storages import RDBStorage
    from optuna.storages._rdb import storage as rdb
    from sqlalchemy.exc import OperationalError

    real, lost = rdb._create_scoped_session, []
    within = []

    def marked(method):
        def wrapped(*arguments, **named):
            within.append(True)
            try:
                return method(*arguments, **named)
            finally:
                within.pop()

        return wrapped

    class Losing:
        def __init__(self, *arguments):
            self._real = real(*arguments)

        def __enter__(self):
            return self._real.__enter__()

        def __exit__(self, *error):
            answer = self._real.__exit__(*error)
            if within and error[0] is None and len(lost) < 40 and (not lost or lost[-1] is False):
                lost.append(True)
                cause = OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))
                raise rdb.optuna.exceptions.StorageInternalError("lost") from cause
            if within:
                lost.append(False)
            return answer

    monkeypatch.setattr(rdb, "_create_scoped_session", Losing)
    monkeypatch.setattr(RDBStorage, call, marked(getattr(RDBStorage, call)))
    monkeypatch.setattr("search.patience._PAUSES", (0.01, 0.02))
    if call == "set_trial_user_attr":  # bound when the module was loaded
        monkeypatch.setattr(
            "search.patience.PatientStorage.set_trial_user_attr",
            marked(__import__("search.patience").patience._patient("set_trial_user_attr", writes=True)),
        )
    study = make_study(postgres.database())
    store, _ = searched(tmp_path, study)
    assert lost.count(True) >= 10
    monkeypatch.undo()
    assert store.records() == Store.read(tmp_path, study).records() == undisturbed
    assert len(store._optuna.get_trials()) == len(undisturbed)


def test_a_server_that_stays_away_ends_the_run_and_loses_nothing(postgres, tmp_path, undisturbed, monkeypatch):
    monkeypatch.setenv("HEADWAY_STORAGE_PATIENCE", "1.5")
    study = make_study(postgres.database())
    began = time.monotonic()
    try:
        with pytest.raises(HeadwayError, match="nothing is lost, the same command continues") as caught:
            searched(tmp_path, study, at=9, act=postgres.kill)
        assert 1.5 < time.monotonic() - began < 30
        assert "hush" not in str(caught.value)
        with pytest.raises(UserError, match="Connection refused"):
            Store.create(tmp_path, study)
    finally:
        postgres.start()
    # Simulated trials cannot go on where they were, but nothing of them is lost or doubled.
    store, _ = searched(tmp_path, study)
    assert [record.number for record in store.records()] == list(range(len(store.records())))
    assert all(record.state.finished for record in store.records())
    assert reconstruct(tmp_path / EVENTS) == store.records()
    assert [record.knobs for record in store.records()[:3]] == [record.knobs for record in undisturbed[:3]]


def test_a_study_that_was_begun_waits_for_its_server_and_a_new_one_does_not(postgres, tmp_path, monkeypatch):
    study, told, log = make_study(postgres.database()), [], EventLog(tmp_path / EVENTS)
    await_database(study, tmp_path, log, told.append)
    postgres.kill()
    starter = threading.Timer(1.0, postgres.start)
    try:
        await_database(study, tmp_path, log, told.append)  # the first start goes on, and is refused
        assert told == []
        write_study(tmp_path, study)
        monkeypatch.setenv("HEADWAY_STORAGE_PATIENCE", "0.3")
        with pytest.raises(CutShort, match=r"could not be used for 0\.3 s"):
            await_database(study, tmp_path, log, told.append)
        monkeypatch.delenv("HEADWAY_STORAGE_PATIENCE")
    finally:
        starter.start()
    await_database(study, tmp_path, log, told.append)
    starter.join()
    assert "waiting up to 600 s" in told[-2] and "is there again" in told[-1]
    assert "hush" not in "".join(told)


HOLD = """
import sys, time
from search.study_lock import held
with held(sys.argv[1], "served"):
    print("held", flush=True)
    time.sleep(600)
"""


def other_driver(url):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_refused_until_the_first_is_dead(postgres):
    url = postgres.database()
    process = other_driver(url)
    try:
        with pytest.raises(UserError, match=rf"served: is being run already, by \S+ process {process.pid}\."):
            held(url, "served").__enter__()
        with held(url, "another"):  # as many studies as a database has
            pass
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 10
    while True:
        try:
            with held(url, "served"):
                break
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def cut_sessions(postgres, url):
    name = url.rpartition("/")[2]
    postgres.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")


def test_a_lock_whose_connection_is_lost_is_taken_again(postgres, monkeypatch):
    monkeypatch.setattr("search.study_lock._CHECK_SECONDS", 0.0)
    url = postgres.database()
    with held(url, "served") as check:
        cut_sessions(postgres, url)
        check()
        check()
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            held(url, "served").__enter__()


def test_a_session_that_the_server_still_holds_is_no_other_driver(postgres, monkeypatch):
    """The network was cut: this side has lost the connection, and the server does not know yet."""
    monkeypatch.setattr("search.study_lock._CHECK_SECONDS", 0.0)
    url = postgres.database()
    with held(url, "served") as check:
        lock = check.__self__
        old, lock._connection = lock._connection, None
        check()
        assert lock._connection is not None
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            held(url, "served").__enter__()
        old.invalidate()


def test_a_driver_whose_study_was_taken_over_ends(postgres, tmp_path, monkeypatch):
    monkeypatch.setattr("search.study_lock._CHECK_SECONDS", 0.0)
    url = postgres.database()
    processes = []

    def take_over():
        cut_sessions(postgres, url)
        processes.append(other_driver(url))

    try:
        with held(url, "served") as guard:
            study = make_study(url)
            with pytest.raises(HeadwayError, match=r"the study was started by .* process") as caught:
                searched(tmp_path, study, at=9, act=take_over, guard=guard)
            assert f"process {processes[0].pid};" in str(caught.value)
            before = Store.read(tmp_path, study).records()
            with pytest.raises(HeadwayError):
                searched(tmp_path, study, guard=guard)
            assert Store.read(tmp_path, study).records() == before
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_url_without_a_driver_takes_the_one_that_is_there(postgres, tmp_path):
    url = postgres.database()
    plain = url.replace("+psycopg", "")
    assert with_driver(plain) == url
    store = Store.create(tmp_path, make_study(plain))
    store.propose_baseline(SPACE)
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM trials")).scalar() == 1
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "extra"),
    [("mysql://u:hush@127.0.0.1/db", "mysql"), ("postgresql+pg8000://u:hush@127.0.0.1/db", "postgres")],
)
def test_a_driver_that_is_missing_is_named_with_its_extra(url, extra):
    with pytest.raises(UserError, match=rf"pip install 'headway\[{extra}\]'") as caught:
        with_driver(url)
    assert "hush" not in str(caught.value)
