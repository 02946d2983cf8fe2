"""Headway in Python: the same acts as the commands, the same errors, the same figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.record import EpochRecord, TrialState
from search import Recording, Study, UserError
from search.cli import main
from search.engine import prepare
from search.folder import claimed, write_study
from search.store import Store
from search.study import load

HERE = Path(__file__).parent
SECTIONS = {
    "base": "headway::gfl_tiny",
    "data": {"digits": {"train": 8, "val": 4}, "size": (96, 96)},
    "space": {"slimhead": {"ratio": (0.25, 0.5)}, "dcn": {}},
    "budget": {"trials": 4, "epochs": 2},
    "sampler": {"name": "random"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of studies with one that was run: three COMPLETE trials, one STOPPED."""
    root = tmp_path_factory.mktemp("api")
    study = Study(name="done", studies=root, **SECTIONS)
    _, _, space = prepare(study.file)
    with claimed(study.folder):
        store = Store.create(study.folder, study.file)
        store.propose_baseline(space)
        store.reference_ms = 20.0
        for number in range(4):
            store.start(number)
            store.update(number, {"latency_ms": 20.0 - number, "latency_ratio": 1 - number / 20, "gmacs": 3.0}, {}, 9.0)
            store.add_epoch(number, EpochRecord(1, {"bbox_mAP": 0.1}, 4.0))
            store.add_epoch(number, EpochRecord(2, {"bbox_mAP": 0.3 - number / 50}, 8.0))
            ends = [(TrialState.COMPLETE, None), (TrialState.STOPPED, "at epoch 1: rank 9 of 9")]
            store.finish(number, ends[number == 2][0], reason=ends[number == 2][1])
            if number < 3:
                store.propose(space)
        write_study(study.folder, study.file)
    return root


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, search; bare = set(sys.modules); from search import Study; "
        "heavy = {'ray', 'mlflow', 'torch', 'mmdet', 'optuna', 'pandas', 'plotly', 'matplotlib'}; "
        "assert 'pydantic' not in bare, bare; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(ImportError, match="Studie"):
        exec("from search import Studie")


def test_a_study_of_python_is_that_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "cells.yaml").write_text(
        "name: cells\nbase: headway::gfl_tiny\nspace: {slimhead: {ratio: [0.25, 0.5]}}\n"
        "data: {size: [96, 96], train: {annotations: t.json, images: i}, val: {annotations: v.json, images: i}}\n"
        "budget: {trials: 8}\n"
    )
    monkeypatch.chdir(tmp_path)
    data = {
        "size": (96, 96),
        "train": {"annotations": Path("t.json"), "images": "i"},
        "val": {"annotations": "v.json", "images": "i"},
    }
    built = Study(
        name="cells", base=SECTIONS["base"], data=data, space={"slimhead": {"ratio": (0.25, 0.5)}}, budget={"trials": 8}
    )
    assert built.file == Study.load("cells.yaml").file == load(tmp_path / "cells.yaml")
    assert built.file.data.train.annotations == str(tmp_path / "t.json")
    assert built.folder == tmp_path / "studies/cells"
    changed = {"budget.trials": 3, "space.slimhead.ratio": (0.5,)}
    told = ["budget.trials=3", "space.slimhead.ratio=[0.5]"]
    assert Study.load("cells.yaml", changed).file == Study.load("cells.yaml", told).file != built.file


def test_errors_are_those_of_the_command(root, tmp_path):
    with pytest.raises(UserError, match="unknown 'trails'; did you mean 'trials'"):
        Study(name="new", **{**SECTIONS, "budget": {"trails": 3}})
    with pytest.raises(UserError, match=r"must be a study that was run.*there are: done"):
        Study.open("dome", studies=root)
    new = Study(name="new", studies=root, **SECTIONS)
    for act in (new.front, new.trials, new.status, new.plot, new.choose, new.confirm):
        with pytest.raises(UserError, match="new: has no trials yet"):
            act()
    done = Study.open("done", studies=root)
    with pytest.raises(UserError, match="--seeds: must be 2 or more"):
        done.confirm(seeds=1)
    with pytest.raises(UserError, match="--pick: must be knee"):
        done.choose("best")
    with pytest.raises(UserError, match=r"--out: must name a \.parquet file"):
        done.record(tmp_path / "table.csv")
    assert not list(tmp_path.iterdir())


def test_frames_have_what_the_commands_print(root, capsys):
    study = Study.open("done", studies=root)
    assert main(["front", "done", "--studies", str(root), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    points = study.points()
    assert list(points.index) == [row["point"] for row in printed] == ["3", "1", "0"]
    assert list(points["latency_ms"]) == [row["metrics"]["latency_ms"] for row in printed] == [17, 19, 20]
    assert list(points["on_front"]) == [row["on_front"] for row in printed]
    assert list(study.front().index) == ["3", "1", "0"]
    for row in printed:
        for knob, value in row["knobs"].items():
            there = points.loc[row["point"], knob]
            assert there == (tuple(value) if isinstance(value, list) else value)

    assert main(["status", "done", "--studies", str(root), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    status = study.status()
    assert status.document == printed and not status.running
    assert status.states == {"COMPLETE": 3, "STOPPED": 1} and (status.trials, status.budget) == (4, 4)
    # (0.3 - 0) over 20 ms, less the corner of each: known from the three points and the reference (0, 40 ms).
    assert study.hypervolume() == pytest.approx(0.24 * 2 + 0.28 * 1 + 0.3 * 20) == pytest.approx(status.hypervolume)

    trials, epochs = study.trials(), study.epochs()
    assert list(trials["state"]) == ["COMPLETE", "COMPLETE", "STOPPED", "COMPLETE"]
    assert trials.loc[2, "reason"] == "at epoch 1: rank 9 of 9"
    assert list(epochs.loc[3, "bbox_mAP"]) == [0.1, 0.24] and len(epochs) == 8 and len(study.sweeps()) == 0
    assert study.choose("fastest").trial.number == 3 and study.choose(1).trial.number == 1


def test_the_report_is_that_of_the_command(root, tmp_path, capsys):
    made = Study.open("done", studies=root).report(tmp_path / "mine.html")
    assert made.path == tmp_path / "mine.html" and "<h1>done</h1>" in made.path.read_text()
    assert main(["report", "done", "--studies", str(root), "--out", str(tmp_path / "theirs.html"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {**printed, "report": str(made.path)} == json.loads(json.dumps(made.document))


PROGRAM = """
import json, sys
from search import Study
study = Study(name="py", studies=sys.argv[1], **json.loads(sys.argv[2]))
def told(outcome):
    return [outcome.finished, len(outcome.records), list(study.trials()["state"].astype(str))]
first = told(study.run(trainer="analytic_trainer:train"))
more = Study.load(study.folder / "study.yaml", {"budget.trials": 4}, studies=sys.argv[1])
second = told(more.run(extend=True, trainer="analytic_trainer:train"))
table = study.record(sys.argv[1] + "/py.parquet")
print(json.dumps([first, second, len(table.table.entries), [list(f) for f in study.front()[["bbox_mAP"]].values]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_study_is_run_and_continued(tmp_path):
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    sections = {**SECTIONS, "budget": {"trials": 3, "epochs": 2}, "rungs": None, "resources": {"cpus": 1}}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(sections)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, designs, front = json.loads(done.stdout)
    assert first == [True, 3, ["COMPLETE"] * 3] and second == [True, 4, ["COMPLETE"] * 4] and designs == 4
    # Those of the analytic trainer, as the command reads them.
    points = Study.open("py", studies=tmp_path).points()
    assert sorted(points[points["on_front"]]["bbox_mAP"]) == sorted(value for (value,) in front)
    assert points.loc["0", "bbox_mAP"] == 0.4
    assert Study.load(tmp_path / "py/study.yaml", studies=tmp_path).file == Study.open("py", studies=tmp_path).file


@pytest.fixture(scope="module")
def table():
    return Recording(HERE.parents[1] / "benchmarks/search/digits_table.parquet")


def test_a_recording_is_looked_at_like_a_study(table):
    trials = table.trials()
    assert len(trials) == len(table.table.entries) and trials.loc[0, "baseline"]
    front = table.front()
    assert front["on_front"].all() and front["latency_ms"].is_monotonic_increasing
    assert front["bbox_mAP"].is_monotonic_increasing  # of two objectives
    best = trials[trials["state"] == "COMPLETE"]["bbox_mAP"].max()
    assert front["bbox_mAP"].iloc[-1] == best == table.choose("most_accurate").trial.metrics["bbox_mAP"]
    assert "Recording(" in repr(table) and table.hypervolume() > 0


def test_replays_as_frames(table):
    found = table.replay(seeds=2, workers=2, sampler="random", trials=12, rungs="none")
    curves, targets = found.curves(), found.targets()
    assert curves.index.names == ["seed", "trials"] and sorted({seed for seed, _ in curves.index}) == [0, 1]
    for seed in (0, 1):
        volumes = curves.loc[seed]["hypervolume"]
        assert volumes.is_monotonic_increasing and len(volumes) >= 12
    assert found.best_hypervolume == pytest.approx(table.hypervolume()) and curves["share"].max() <= 1
    assert list(targets.index) == [50, 80, 90, 95, 99] and targets["reached"].dtype == "int64"
    half = curves[curves["share"] >= 0.5].reset_index().groupby("seed")["compute_hours"].min()
    assert targets.loc[50, "reached"] == len(half)
    if len(half) == 2:
        assert targets.loc[50, "compute_hours"] == pytest.approx(half.median())
    assert isinstance(targets, pd.DataFrame) and targets.attrs["units"]["wall_hours"] == "h"
    with pytest.raises(UserError, match="--seeds: must be 1 or more"):
        table.replay(seeds=0)
    with pytest.raises(UserError, match=r"sampler\.name"):
        table.replay(sampler="anneal")
