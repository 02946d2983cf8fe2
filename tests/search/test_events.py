"""The event log: from it alone the trials are what the store has, whatever was killed and whenever."""

import errno
import json
import os
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.record import EpochRecord, SweepPoint, TrialState
from search.events import EVENTS, EventLog, read_events, reconstruct
from search.store import Store
from search.study import parse
from spaces.base import BaseFacts
from spaces.space import build_space

SPACE = build_space({"slimhead": {}, "dcn": {}}, BaseFacts("GFL", "GFLHead", (8, 16, 32, 64, 128), 4, False))
STUDY = parse(
    {
        "name": "logged",
        "base": "headway::gfl_tiny",
        "data": {"digits": {}, "size": [96, 96]},
        "space": {"slimhead": {}, "dcn": {}},
        "sampler": {"name": "random"},
    },
    "logged.yaml",
)


def logged(folder, clock=time.time):
    log = EventLog(folder / EVENTS)
    return Store.create(folder, STUDY, clock=clock, journal=log), log


def names(folder):
    return [event["event"] for event in read_events(folder / EVENTS)]


def test_each_writer_of_the_store_leaves_an_event(tmp_path):
    store, log = logged(tmp_path, clock=lambda: 100.0)
    store.propose_baseline(SPACE)
    store.start(0)
    store.update(0, {"gmacs": 3.5}, {"seed": 7}, 36.0)
    store.reference_ms = 20.5
    store.set_speed("a:cpu", {"latency_ratio": 0.8})
    store.add_epoch(0, EpochRecord(1, {"bbox_mAP": 0.2}, 30.0))
    store.add_rung(0, 1, "continue: rank 1")
    store.add_point(0, SweepPoint(0, {"a": 1}, {"latency_ms": 20.0}, ["gmacs <= 3"]))
    store.note("x", [1, 2])
    store.finish(0, TrialState.FAILED, reason="why", traceback="T", broken={"gmacs <= 3": 0.5})
    log.close()
    events = list(read_events(tmp_path / EVENTS))
    assert all(abs(event.pop("time") - time.time()) < 60 for event in events)
    assert events == [
        {"event": "proposed", "trial": 0, "knobs": {}, "attrs": {}},
        {"event": "started", "trial": 0, "at": 100.0},
        {"event": "figures", "trial": 0, "metrics": {"gmacs": 3.5}, "attrs": {"seed": 7}, "seconds": 36.0},
        {"event": "reference", "ms": 20.5},
        {"event": "speed", "key": "a:cpu", "metrics": {"latency_ratio": 0.8}},
        {"event": "epoch", "trial": 0, "epoch": 1, "metrics": {"bbox_mAP": 0.2}, "seconds": 30.0},
        {"event": "rung", "trial": 0, "epoch": 1, "decision": "continue: rank 1"},
        {"event": "point", "trial": 0, "index": 0, "knobs": {"a": 1}, "metrics": {"latency_ms": 20.0},
         "broken": ["gmacs <= 3"]},
        {"event": "noted", "key": "x", "value": [1, 2]},
        {"event": "ended", "trial": 0, "state": "FAILED", "reason": "why", "traceback": "T", "at": 100.0,
         "broken": {"gmacs <= 3": 0.5}},
    ]  # fmt: skip
    assert reconstruct(tmp_path / EVENTS) == store.records()
    assert store.records()[0].compute_hours == 0.01


def write_something(store, dice):
    """One call of the store, with any arguments; a trial that has ended is left alone as the conductor does."""
    open_trials = [record.number for record in store.records() if not record.state.finished]
    if not open_trials or dice.random() < 0.2:
        if store.records():
            store.propose(SPACE)
        else:
            store.propose_baseline(SPACE)
        return
    number = dice.choice(open_trials)
    figure = {dice.choice(["gmacs", "latency_ms", "bbox_mAP"]): dice.choice([dice.random(), 1, 0.1 + 0.2])}
    kind = dice.randrange(7)
    if kind == 0:
        store.start(number)
    elif kind == 1:
        store.update(number, figure, {}, dice.uniform(0, 9000))
    elif kind == 2:
        store.update(number, {}, {dice.choice("ab"): [1, {"c": None}, dice.random() < 0.5]}, dice.randrange(9000))
    elif kind == 3:
        store.add_epoch(number, EpochRecord(dice.randint(1, 12), {**figure, "loss": dice.random()}, dice.random()))
    elif kind == 4:
        store.add_rung(number, dice.randint(1, 12), f"stop: über {dice.random()}")
    elif kind == 5:
        store.add_point(number, SweepPoint(dice.randrange(4), {"k": [1]}, figure, dice.sample(["x", "y"], 1)))
    else:
        state = dice.choice([TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED, TrialState.INFEASIBLE])
        store.update(number, {"bbox_mAP": 0.1, "latency_ms": 2.0}, {}, 3.0)
        store.finish(number, state, reason=dice.choice([None, "line\nline"]), broken={"gmacs <= 1": dice.random()})


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_after_any_kill_the_log_gives_what_the_store_has(tmp_path_factory, seed):
    """A kill tears the file anywhere, or comes between the database and the log."""
    folder = tmp_path_factory.mktemp("killed")
    dice = random.Random(seed)
    file = folder / EVENTS
    for _ in range(3):
        store, log = logged(folder)
        store.settle()
        assert reconstruct(file) == store.records()
        for _ in range(dice.randrange(15)):
            write_something(store, dice)
        log.close()
        assert reconstruct(file) == store.records() == Store.read(folder, STUDY).records()
        whole = file.read_bytes() if file.exists() else b""
        lines = whole.splitlines(keepends=True)
        kept = [whole, whole[: len(whole) - dice.randint(0, min(500, len(whole)))], b"".join(lines[:-1])]
        if whole:
            file.write_bytes(dice.choice(kept))
    store, log = logged(folder)
    store.settle()
    assert reconstruct(file) == store.records()
    count = len(names(folder))
    store.settle()  # nothing is left to restore
    assert len(names(folder)) == count


def test_a_log_that_is_gone_is_made_again(tmp_path):
    store, log = logged(tmp_path)
    store.propose_baseline(SPACE)
    store.start(0)
    log.close()
    (tmp_path / EVENTS).unlink()
    store, log = logged(tmp_path)
    store.settle()
    assert names(tmp_path) == ["restored"]
    store.add_epoch(0, EpochRecord(1, {"bbox_mAP": 0.2}, 30.0))
    assert reconstruct(tmp_path / EVENTS) == store.records()


def test_trials_that_the_database_has_lost_are_dropped(tmp_path):
    store, log = logged(tmp_path)
    store.propose_baseline(SPACE)
    log.close()
    (tmp_path / "study.db").unlink()
    store, log = logged(tmp_path)
    store.settle()
    assert names(tmp_path) == ["proposed", "dropped"]
    assert reconstruct(tmp_path / EVENTS) == []


def test_a_full_disk_delays_the_log_and_loses_nothing(tmp_path, monkeypatch):
    store, _ = logged(tmp_path)
    store.propose_baseline(SPACE)
    real, room = os.write, {"bytes": 30}

    def full(file, data):
        taken = min(room["bytes"], len(data))
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        room["bytes"] -= taken
        return real(file, data[:taken])

    with monkeypatch.context() as patched:
        patched.setattr("search.events.os.write", full)
        store.start(0)  # its first 30 bytes come through
        store.update(0, {"gmacs": 1.0}, {}, 5.0)
        store.settle()
        assert [record.state for record in reconstruct(tmp_path / EVENTS)] == [TrialState.PROPOSED]
    store.add_epoch(0, EpochRecord(1, {"bbox_mAP": 0.2}, 30.0))
    assert names(tmp_path)[:3] == ["proposed", "started", "figures"]
    assert reconstruct(tmp_path / EVENTS) == store.records()


def test_a_log_that_cannot_be_opened_at_first_is_written_later(tmp_path):
    log = EventLog(tmp_path / "later" / EVENTS)
    log.write("begun", host="here")
    (tmp_path / "later").mkdir()
    log.write("finished")
    assert names(tmp_path / "later") == ["begun", "finished"]


@pytest.mark.parametrize("torn", [b'{"event":"x', b"\n", b'{"event":"x"}', b'{"event":"x"}\n{"even' + b"t" * 200_000])
def test_a_torn_line_is_cut_off(tmp_path, torn):
    file = tmp_path / EVENTS
    file.write_bytes(b'{"event":"first"}\n' + torn)
    EventLog(file).write("next")
    whole = [json.loads(line) for line in file.read_bytes().splitlines() if line]
    assert [event["event"] for event in whole] == ["first", *(["x"] if torn.count(b"}\n") else []), "next"]


def test_five_thousand_trials_are_reconstructed_within_seconds(tmp_path):
    log = EventLog(tmp_path / EVENTS)
    store = Store.in_memory(STUDY, journal=log)
    cost = {"parts": [{"name": f"layer{index}", "macs": index * 1.5e6} for index in range(40)]}
    store.propose_baseline(SPACE)
    attrs = dict(store._attrs[0])
    began = time.perf_counter()
    for number in range(5000):
        log.write("proposed", number, knobs={}, attrs={})
        log.write("started", number, at=1.0)
        log.write("figures", number, metrics={"gmacs": 3.0}, attrs={"cost": cost}, seconds=1.0)
        for epoch in range(9):
            log.write("epoch", number, epoch=epoch, metrics={"bbox_mAP": 0.1, "loss": 0.2}, seconds=1.0)
        log.write("ended", number, state="COMPLETE", reason=None, traceback=None, at=2.0, broken={})
    written = time.perf_counter() - began
    began = time.perf_counter()
    records = reconstruct(tmp_path / EVENTS)
    took = time.perf_counter() - began
    print(f"65,000 events: written in {written:.2f} s, reconstructed in {took:.2f} s")
    assert attrs["number"] == 0 and len(records) == 5000
    assert {len(record.curve) for record in records} == {9}
    assert took < 20
