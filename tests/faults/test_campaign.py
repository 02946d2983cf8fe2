"""The campaign itself, at its smallest: make test-faults runs all of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


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


def test_what_does_not_hold_is_found():
    """The rules can be broken: a doubled epoch, a trial without an end, a rung that says nothing."""
    sys.path.insert(0, str(HERE))
    import invariants

    from analysis.record import EpochRecord, TrialRecord, TrialState
    from search.study import Study

    study = Study.model_validate(
        {"name": "x", "base": "b", "data": {"digits": {}, "size": [64, 64]}, "space": {}, "budget": {"epochs": 3}}
    )

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
