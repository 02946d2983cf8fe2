"""The driver benchmark: the whole path in small, and what is said about it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parents[2]
PARTS = ["suggest", "decide", "store", "track", "draw", "print"]


def command(*words: object) -> str:
    script = ROOT / "benchmarks/driver/run.py"
    done = subprocess.run([sys.executable, script, *map(str, words)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_trial_has_its_line_and_its_run(tmp_path: Path) -> None:
    result, beside, work = tmp_path / "one.jsonl", tmp_path / "alone.jsonl", tmp_path / "work"
    command("search", "--trials", 14, "--work", work, "--out", result)
    head, *lines, end = [json.loads(line) for line in result.read_text().splitlines()]
    assert (head["kind"], head["trials"], head["sampler"]["name"]) == ("search", 14, "tpe")
    assert sorted(line["trial"] for line in lines) == list(range(14))
    assert sum(end["end"]["states"].values()) == 14
    assert end["end"]["states"]["COMPLETE"] == sum(line["state"] == "COMPLETE" for line in lines)
    for line in lines:
        assert list(line["wall"]) == list(line["cpu"]) == PARTS
        assert line["wall"]["store"] > 0 and line["wall"]["track"] > 0
    # All that passed between the first trial and the last is booked on one of them.
    booked = sum(sum(line["wall"].values()) for line in lines)
    assert 0.8 * lines[-1]["elapsed"] <= booked <= 1.01 * lines[-1]["elapsed"]

    client = MlflowClient(tracking_uri=f"sqlite:///{work / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("driver")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`headway.role` = 'trial'")
    states = {int(run.data.tags["headway.trial"]): run.data.tags["headway.state"] for run in runs}
    assert states == {line["trial"]: line["state"] for line in lines}
    assert (work / "pareto.png").is_file()

    command("alone", "--trials", 14, "--out", beside)
    table = command("table", result, beside).splitlines()
    shown = [row.split(" | ")[:2] for row in table[2:6]]
    assert shown == [["| 10", "wall"], ["| 10", "cpu"], ["| 14", "wall"], ["| 14", "cpu"]]
    command("plot", result, beside, "--out", tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
