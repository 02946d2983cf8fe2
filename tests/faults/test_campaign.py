"""The campaign itself, at its smallest: make test-faults runs all of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.record import EpochRecord, TrialRecord, TrialState
from search.events import EventLog
from search.study import Study

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import invariants  # noqa: E402
from scenario import KINDS, draw  # noqa: E402


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_runs_and_a_start_again(tmp_path):
    out = tmp_path / "results.json"
    command = [sys.executable, str(HERE / "campaign.py"), "--runs", "2", "--out", str(out), "--seed", "7"]
    command += ["--kinds", "driver_killed", "nan"]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    figures = json.loads(out.read_text())
    assert figures["runs"] == 2
    assert figures["violations"] == 0
    assert figures["injected"]["driver_killed"] >= 1
    assert figures["driver_starts"] >= 3
    lines = out.with_suffix(".jsonl").read_text()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert out.with_suffix(".jsonl").read_text() == lines  # nothing was done twice


def make_study():
    return Study.model_validate(
        {
            "name": "x",
            "base": "b",
            "data": {"digits": {}, "size": [64, 64]},
            "space": {},
            "budget": {"trials": 2, "epochs": 3},
            "rungs": {"first": 1, "factor": 2},
        }
    )


def test_what_does_not_hold_is_found():
    """The rules can be broken: a doubled epoch, a trial without an end, a rung that says nothing."""
    study = make_study()

    def found(**changes):
        curve = [EpochRecord(epoch, {"bbox_mAP": 0.1}, float(epoch)) for epoch in changes.pop("epochs", (1, 2, 3))]
        values = {"number": 1, "state": TrialState.COMPLETE, "knobs": {}, "curve": curve, "folder": "none", **changes}
        record = TrialRecord(**values)
        return list(invariants.of_training(study, Path("/none"), [record], analytic_trainer=False))

    assert found() == []
    assert len(found(epochs=(1, 2))) == 1
    assert len(found(epochs=(1, 1, 2))) == 1
    assert len(found(epochs=(1, 3))) == 2
    assert len(found(state=TrialState.STOPPED)) == 1
    assert found(state=TrialState.STOPPED, epochs=(1,), rungs={1: "stop: rank 3 of 3"}) == []
    assert len(found(rungs={1: "stop: rank 3 of 3"})) == 1


def test_a_run_that_went_another_way_is_found():
    def trial(number, **changes):
        values = {"number": number, "state": TrialState.COMPLETE, "knobs": {}, "curve": [], "rungs": {1: "continue"}}
        return TrialRecord(**{**values, **changes})

    whole = [trial(0), trial(1, curve=[EpochRecord(1, {"bbox_mAP": 0.1}, 1.0)])]
    assert list(invariants.of_undisturbed(whole, whole)) == []
    for changes in ({"rungs": {1: "stop"}}, {"state": TrialState.STOPPED}, {"knobs": {"a": 1}}):
        assert len(list(invariants.of_undisturbed([trial(0), trial(1, curve=whole[1].curve, **changes)], whole))) == 1
    later = [EpochRecord(1, {"bbox_mAP": 0.1}, 9.0)]
    assert list(invariants.of_undisturbed([trial(0), trial(1, curve=later)], whole)) == []  # time may differ
    assert len(list(invariants.of_undisturbed([trial(0), trial(1)], whole))) == 1
    assert len(list(invariants.of_undisturbed(whole[:1], whole))) == 1


@pytest.mark.parametrize(("decision", "broken"), [("stop: rank 2 of 2", 0), ("continue: rank 1 of 2", 1)])
def test_a_rung_decision_that_does_not_follow_is_found(tmp_path, decision, broken):
    log = EventLog(tmp_path / "events.jsonl")
    for number, accuracy in ((0, 0.3), (1, 0.2)):
        log.write("proposed", number, knobs={"n": number}, attrs={})
        log.write("started", number, at=1.0)
        log.write("figures", number, metrics={"latency_ms": 20.0}, attrs={}, seconds=1.0)
        log.write("epoch", number, epoch=1, metrics={"bbox_mAP": accuracy}, seconds=2.0)
    words = f"{decision} among designs that are as fast" + (", of which 1 go on" if "stop" in decision else "")
    log.write("rung", 1, epoch=1, decision=words)
    log.close()
    assert len(list(invariants.of_decisions(make_study(), tmp_path))) == broken


def test_all_kinds_lead_and_runs_follow_from_the_seed():
    runs = [draw(0, index, KINDS) for index in range(60)]
    assert runs == [draw(0, index, KINDS) for index in range(60)]
    assert runs != [draw(1, index, KINDS) for index in range(60)]
    assert {fault.kind for run in runs for fault in run.faults} == set(KINDS)
    assert sum(run.alone for run in runs) > 20
    assert sum(len(run.faults) > 1 for run in runs) > 20
