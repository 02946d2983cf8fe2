"""The command: wrong inputs give one clear error and status 2 and leave nothing behind; ``--json`` is one document."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from analysis.record import EpochRecord, TrialState
from search.cli import main
from search.engine import prepare
from search.folder import claimed, write_study
from search.store import Store
from search.study import load

STUDY = """
name: {name}
base: headway::gfl_tiny
data: {{digits: {{train: 8, val: 4}}, size: [96, 96]}}
space: {{slimhead: {{}}, dcn: {{}}}}
budget: {{trials: 4, epochs: 2}}
sampler: {{name: random}}
"""
OWN = {
    "data.digits": "null",
    "data.train": "{annotations: train.json, images: images}",
    "data.val": "{annotations: val.json, images: images}",
}


def tree(folder):
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()} | {
        path: None for path in folder.rglob("*") if path.is_dir()
    }


def coco(name="cell", images=2, category=1):
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 96, "height": 96} for i in range(images)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": category, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}
            for i in range(images)
        ],
        "categories": [{"id": 1, "name": name}],
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with data, bases and a study that was run: COMPLETE, STOPPED and PROPOSED trials."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "images").mkdir()
    for number in range(2):
        Image.new("RGB", (96, 96), (number * 50, 90, 30)).save(folder / f"images/{number}.png")
    for name in ("train", "val"):
        (folder / f"{name}.json").write_text(json.dumps(coco()))
    (folder / "empty.json").write_text(json.dumps(coco(images=0)))
    (folder / "unknown_category.json").write_text(json.dumps(coco(category=7)))
    (folder / "missing_image.json").write_text(json.dumps(coco(images=3)))
    (folder / "other_class.json").write_text(json.dumps(coco(name="platelet")))
    (folder / "no.json").write_text("{'images'")
    (folder / "list.json").write_text("[]")
    (folder / "broken.py").write_text("model = dict(type='GFL'")
    (folder / "no_model.py").write_text("x = 1\n")
    (folder / "text.txt").write_text("not a folder")
    (folder / "full").mkdir()
    (folder / "full/precious.txt").write_text("mine")
    (folder / "new.yaml").write_text(STUDY.format(name="new"))
    (folder / "done.yaml").write_text(STUDY.format(name="done"))
    study = load(folder / "done.yaml")
    _, _, space = prepare(study)
    with claimed(folder / "studies/done"):
        store = Store.create(folder / "studies/done", study)
        store.propose_baseline(space)
        for number in range(4):
            store.start(number)
            store.update(number, {"latency_ms": 20.0 - number, "latency_ratio": 1 - number / 20, "gmacs": 3.0}, {}, 9.0)
            store.add_epoch(number, EpochRecord(2, {"bbox_mAP": 0.3 - number / 50}, 8.0))
            ends = [(TrialState.COMPLETE, None), (TrialState.STOPPED, "at epoch 1: rank 9 of 9")]
            store.finish(number, ends[number == 2][0], reason=ends[number == 2][1])
            store.propose(space)
        write_study(folder / "studies/done", study)
    return folder


def run(*arguments, overrides=None, file="new.yaml"):
    sets = [word for key, value in (overrides or {}).items() for word in ("--set", f"{key}={value}")]
    return ["run", file, *sets, *arguments]


FIGURES = "[{metric: bbox_mAP, direction: maximize}, {metric: %s, direction: %s}]"

PATCH = ["patch", "--base", "headway::gfl_tiny"]
WRONG = {
    # The study file.
    "no file": (run(file="none.yaml"), "study file: must exist, but there is no file none.yaml"),
    "a folder": (run(file="images"), "study file: must exist"),
    "not yaml": (run(file="no.json"), "no.json: must be YAML"),
    "a list": (run(file="list.json"), "must be a mapping with name, base, data and space, but got list"),
    "unknown key": (run(overrides={"colour": "red"}), "unknown 'colour'"),
    "misspelt key": (run(overrides={"budget.trails": 3}), "unknown 'trails'; did you mean 'trials'?"),
    "wrong type": (run(overrides={"budget.trials": "many"}), "budget.trials: must be a whole number, but got 'many'"),
    "wrong range": (run(overrides={"budget.epochs": 0}), "budget.epochs: must be greater than or equal to 1"),
    "wrong name": (run(overrides={"name": "a/b"}), "name: must be 1 to 64 letters"),
    "wrong setting": (run("--set", "budget.trials"), "--set: must read like KEY=VALUE"),
    "warm start": (run(overrides={"weights.epochs": 3}), "weights: must have epochs only with from: baseline"),
    "no checkpoint": (run(overrides={"weights.from": "none.pth"}), "weights.from: must be"),
    "no backbone": (run(overrides={"weights.backbone": "none.pth"}), "weights.backbone: must be"),
    # The space.
    "unknown family": (run(overrides={"space.slimhaed": "{}"}), "unknown 'slimhaed'; did you mean 'slimhead'?"),
    "unknown knob": (run(overrides={"space.slimhead.ration": 0.5}), "unknown 'ration'; did you mean 'ratio'?"),
    "illegal value": (run(overrides={"space.slimhead.ratio": 1.7}), "space.slimhead.ratio: must lie in [0.1, 1]"),
    "illegal level": (run(overrides={"space.slimhead.levels": "[9]"}), "space.slimhead.levels: must be a list of"),
    "narrowed to nothing": (
        run(overrides={"space.slimhead.ratio": "{low: 0.9, high: 0.2}"}),
        "low must not lie above high",
    ),
    "narrowed by what is not": (run(overrides={"space.slimhead.ratio": "{min: 0.2}"}), "unknown 'min'"),
    "empty space": (run(overrides={"space": "{}"}), "space: must name at least one family"),
    "always what": (run(overrides={"space.dcn.always": "often"}), "space.dcn.always: must be true or false"),
    # The base.
    "no base": (run(overrides={"base": "none.py"}), "base: must be an existing config"),
    "misspelt base": (
        run(overrides={"base": "mmdet::gfl/gfl_r50_fpn_1x_cocoo.py"}),
        "Near to it: mmdet::gfl/gfl_r50_fpn_1x_coco.py",
    ),
    "unknown package": (run(overrides={"base": "mmyolo::x.py"}), "base: must start with mmdet:: or headway::"),
    "no python": (run(overrides={"base": "broken.py"}), "base: must be a readable mmdet config"),
    "no model": (run(overrides={"base": "no_model.py"}), "base: must hold a detector"),
    "no dense head": (
        run(overrides={"base": "mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py"}),
        "must be a detector with a dense head (model.bbox_head) or an RPN (model.rpn_head), "
        "but got FastRCNN without one",
    ),
    "transformer": (run(overrides={"base": "mmdet::detr/detr_r50_8xb2-150e_coco.py"}), "DETR"),
    "other head": (run(overrides={"base": "mmdet::yolox/yolox_s_8xb8-300e_coco.py"}), "of a known type (GFLHead, "),
    # The data.
    "no annotations": (run(overrides={**OWN, "data.train.annotations": "none.json"}), "none.json'"),
    "no image folder": (run(overrides={**OWN, "data.val.images": "nowhere"}), "must be a folder, but"),
    "annotations not json": (run(overrides={**OWN, "data.val.annotations": "no.json"}), "must be JSON"),
    "annotations a list": (run(overrides={**OWN, "data.val.annotations": "list.json"}), "data.val.annotations '"),
    "missing image": (run(overrides={**OWN, "data.train.annotations": "missing_image.json"}), "2.png"),
    "empty split": (run(overrides={**OWN, "data.val.annotations": "empty.json"}), "data.val"),
    "unknown category": (run(overrides={**OWN, "data.val.annotations": "unknown_category.json"}), "data.val"),
    "splits differ": (run(overrides={**OWN, "data.val.annotations": "other_class.json"}), "1 is in train only: 'cell'"),
    "unknown class": (run(overrides={**OWN, "data.classes": "[cel]"}), "unknown 'cel'; did you mean 'cell'?"),
    "both kinds of data": (run(overrides={**OWN, "data.digits": "{}"}), "data: must have either digits or train"),
    # Objectives and constraints.
    "unknown objective": (run(overrides={"objectives": FIGURES % ("speed", "minimize")}), "unknown metric 'speed'"),
    "objective twice": (run(overrides={"objectives": FIGURES % ("bbox_mAP", "maximize")}), "not name a metric twice"),
    "no object of that size": (
        run(overrides={**OWN, "objectives": FIGURES % ("bbox_mAP_s", "maximize")}),
        "bbox_mAP_s needs small objects, but the validation split has none",
    ),
    "wrong direction": (run(overrides={"objectives": FIGURES % ("gmacs", "maximize")}), "must have direction minimize"),
    "no constraint": (run(overrides={"constraints": "['gmacs < 3']"}), "must read like 'params_m <= 40'"),
    "unknown constraint": (run(overrides={"constraints": "['fps >= 3']"}), "must be about a figure known"),
    # What is there already, and what cannot be written or reached.
    "another space": (run(file="done.yaml", overrides={"space": "{slimhead: {}}"}), "space.dcn: {} -> (absent)"),
    "another budget": (run(file="done.yaml", overrides={"budget.trials": 9}), "budget.trials: 4 -> 9"),
    "below a file": (run("--studies", "text.txt/studies"), "study folder: must be writable, but"),
    "in proc": (run("--studies", "/proc/studies"), "study folder: must be writable, but /proc/studies/new gives"),
    "dead cluster": (run("--address", "127.0.0.1:9"), "--address: must be a running Ray cluster, but 127.0.0.1:9"),
    "dead tracking server": (
        run(overrides={"tracking.uri": "http://127.0.0.1:9"}),
        "tracking.uri: cannot reach MLflow at http://127.0.0.1:9",
    ),
    "wrong tracking scheme": (run(overrides={"tracking.uri": "ftp://h/x"}), "tracking.uri: must be http://"),
    "tracking folder": (run(overrides={"tracking.uri": "./mlruns"}), "tracking.uri: must be http://"),
    "no storage": (run(overrides={"storage": "nonsense"}), "storage: must be an SQLAlchemy URL"),
    "storage nowhere": (run(overrides={"storage": "sqlite:////nowhere/x.db"}), "storage: must be an SQLAlchemy URL"),
    "storage unreachable": (
        run(overrides={"storage": "postgresql://me:hush@127.0.0.1:9/db"}),
        "storage: must be an SQLAlchemy URL",
    ),
    # The dry run.
    "plan no file": (["plan", "none.yaml"], "study file: must exist"),
    "plan unknown knob": (["plan", "new.yaml", "--set", "space.dcn.place=[0]"], "unknown 'place'"),
    "plan too many": (["plan", "new.yaml", "--set", "resources.cpus=4000"], "resources.cpus: must be at most"),
    # Studies that were run.
    "status of nothing": (["status", "nothing"], "STUDY: must be a study that was run"),
    "sync of nothing": (["sync", "nothing"], "STUDY: must be a study that was run"),
    "restarts below 0": (["run", "new.yaml", "--restarts", "-1"], "--restarts: must be 0 or more, but got -1."),
    "status followed as a document": (["status", "done", "--follow"], "--follow: must not go with --json"),
    "front of nothing": (["front", "nothing"], "there are: done"),
    "ui of nothing": (["ui", "nothing"], "STUDY: must be a study that was run"),
    "export of nothing": (["export", "nothing", "--out", "b"], "STUDY: must be a study that was run"),
    "status not run yet": (["status", "new.yaml"], "STUDY: must be a study that was run"),
    "status of a folder": (["status", "images"], "STUDY: must be a study that was run"),
    "ui port": (["ui", "done", "--port", "0"], "--port: must lie in [1, 65535], but got 0"),
    "ui without mlflow": (["ui", "done"], "is not in MLflow"),
    # Bundles.
    "pick a word": (["export", "done", "--pick", "best", "--out", "b"], "--pick: must be knee, fastest"),
    "a limit without a pick": (["choose", "done", "--above", "bbox_mAP=0.1"], "--above: needs --pick"),
    "a limit that is no number": (
        ["choose", "done", "--pick", "fastest", "--above", "bbox_mAP"], "--above: must read METRIC=NUMBER",
    ),
    "a limit in per cent": (
        ["choose", "done", "--pick", "fastest", "--above", "bbox_mAP=40"], "40 % is bbox_mAP=0.4",
    ),
    "a limit twice": (
        ["choose", "done", "--pick", "knee", "--under", "gmacs=1", "--under", "gmacs=2"], "gmacs is there twice",
    ),
    "pick a stopped one": (["export", "done", "--pick", "2", "--out", "b"], "trial 2 is STOPPED"),
    "pick no trial": (["export", "done", "--pick", "77", "--out", "b"], "this study has no trial 77"),
    "export over files": (["export", "done", "--pick", "0", "--out", "full"], "--out: must be a new or empty folder"),
    "export over a file": (["export", "done", "--pick", "0", "--out", "text.txt"], "--out: must be a new or empty"),
    "verify nothing": (["verify", "nowhere"], "nowhere"),
    "verify no bundle": (["verify", "full"], "full"),
    # Configs.
    "patch knob": ([*PATCH, "--set", "slimhead.rati=1", "--out", "o.py"], "unknown 'rati'"),
    "patch family": ([*PATCH, "--set", "slim.ratio=1", "--out", "o.py"], "unknown 'slim'"),
    "patch value": ([*PATCH, "--set", "slimhead.ratio=5", "--out", "o.py"], "must lie in"),
    "patch setting": ([*PATCH, "--set", "slimhead", "--out", "o.py"], "KEY=VALUE"),
    "patch base": (["patch", "--base", "headway::gfl_tinny", "--out", "o.py"], "Near to it: headway::gfl_tiny"),
    "patch out": (["patch", "--base", "headway::gfl_tiny", "--out", "o.txt"], "--out: must name a .py file"),
    "patch nowhere": (["patch", "--base", "headway::gfl_tiny", "--out", "no/where/o.py"], "--out: must be writable"),
    "patch without a dense head": (
        ["patch", "--base", "mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py", "--out", "o.py"],
        "must be a detector with a dense head",
    ),
    "profile size": (["profile", "headway::gfl_tiny", "--size", "big"], "--size: must read like 800x1344"),
    "profile small": (["profile", "headway::gfl_tiny", "--size", "8x8"], "--size: must read like 800x1344"),
    "profile nothing": (["profile", "none.py"], "must be an existing config"),
    "profile against": (["profile", "headway::gfl_tiny", "--size", "64x64", "--against", "none.py"], "existing config"),
    "profile pairs": (["profile", "headway::gfl_tiny", "--pairs", "0"], "--pairs: must be 1 or more, but got 0"),
    "profile no model": (["profile", "no_model.py"], "must hold a detector"),
}  # fmt: skip


def check(status, out, err, words):
    assert status == 2, err
    first, _, rest = err.partition("\n")
    if first.endswith("is a Python config: it will be executed"):  # said before it is, whatever comes of it
        err = rest
    assert err.startswith("headway: error: "), err
    assert err.count("headway: error:") == 1
    assert words in err
    assert "Traceback" not in err
    assert "hush" not in err
    assert out == ""


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_is_one_error_with_status_2(made, monkeypatch, capsys, case):
    arguments, words = WRONG[case]
    monkeypatch.chdir(made)
    monkeypatch.delenv("HEADWAY_STUDIES", raising=False)
    has_json = arguments[0] not in ("ui",)
    before = tree(made)
    began = time.monotonic()
    status = main([*arguments, "--json"] if has_json else arguments)
    seconds = time.monotonic() - began
    captured = capsys.readouterr()
    check(status, captured.out, captured.err, words)
    assert seconds < 60  # nobody waits for minutes to hear of a typo
    assert tree(made) == before


def headway(folder, *arguments, **changes):
    """The command in a process of its own, with the CPU seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "search.cli", *arguments],
        cwd=folder, env={**os.environ, **changes}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (run(overrides={"resources.cpus": 4000}), "resources.cpus: must be at most"),
        (run(overrides={"resources.gpus": 400}), "resources.gpus: must be at most"),
        (
            run(overrides={"base": "mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py"}),
            "must be a detector with a dense head",
        ),
        (run(overrides={"tracking.uri": "http://127.0.0.1:9"}), "tracking.uri: cannot reach MLflow"),
    ],
)
def test_a_wrong_input_in_a_process_of_its_own(made, arguments, words):
    before = tree(made)
    done, seconds = headway(made, *arguments, "--json")
    check(done.returncode, done.stdout, done.stderr, words)
    assert seconds < 60  # nobody waits for minutes to hear of a typo
    assert tree(made) == before


@pytest.mark.parametrize(
    "arguments",
    [[], ["explode"], ["run"], ["run", "new.yaml", "--colour"], ["ui", "done", "--port", "abc"], ["export", "done"],
     ["patch", "--base", "headway::gfl_tiny"]],
)  # fmt: skip
def test_a_wrong_command_line_shows_its_usage(made, monkeypatch, capsys, arguments):
    monkeypatch.chdir(made)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert captured.err.startswith("usage: headway")
    assert "error:" in captured.err
    assert captured.out == ""


def test_debug_shows_the_traceback(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    assert main(["status", "nothing", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_installed_command():
    command = Path(sys.executable).parent / "headway"
    done = subprocess.run([command, "status", "nothing"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("headway: error: STUDY: must be a study that was run")


# --json: one document, and nothing else.


def document(made, monkeypatch, capsys, *arguments):
    monkeypatch.chdir(made)
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_families(made, monkeypatch, capsys):
    found = {family["name"]: family for family in document(made, monkeypatch, capsys, "families")}
    assert {"slimhead", "dcn"} <= set(found)
    assert {"title", "paper", "heads", "conflicts", "knobs"} <= set(found["slimhead"])
    assert [knob["name"] for knob in found["slimhead"]["knobs"]] == ["levels", "ratio", "mode", "fat"]


def test_brackets_in_a_table_are_no_markup(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "240")
    assert main(["families"]) == 0
    assert "scales [d_h, d_w] by convolution" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["done", "done.yaml", "studies/done", "studies/done/study.yaml"])
def test_status(made, monkeypatch, capsys, word):
    found = document(made, monkeypatch, capsys, "status", word)
    assert found["study"] == "done"
    assert found["folder"] == str(made / "studies/done")
    assert found["states"] == {
        "PROPOSED": 1, "INFEASIBLE": 0, "RUNNING": 0, "STOPPED": 1, "COMPLETE": 3, "FAILED": 0,
    }  # fmt: skip
    assert [trial["trial"] for trial in found["trials"]] == [0, 1, 2, 3, 4]
    assert found["hypervolume"] > 0
    assert found["budget"]["trials"] == 4


def test_the_study_file_of_a_study_that_lies_elsewhere_is_enough(made, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["status", str(made / "studies/done/study.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(made / "studies/done")


def test_front(made, monkeypatch, capsys):
    points = document(made, monkeypatch, capsys, "front", "done")
    assert [point["trial"] for point in points if point["baseline"]] == [0]
    assert {point["trial"] for point in points} == {0, 1, 3}
    for point in points:
        assert {"trial", "knobs", "metrics", "baseline", "on_front", "dominates_baseline"} <= set(point)
    assert all(point["on_front"] for point in points)


def test_patch(made, monkeypatch, capsys, tmp_path):
    out = tmp_path / "patched.py"
    sets = ["--set", "slimhead.levels=[0]", "--set", "slimhead.ratio=0.5"]
    found = document(made, monkeypatch, capsys, "patch", "--base", "headway::gfl_tiny", *sets, "--out", str(out))
    assert found["knobs"] == {
        "slimhead.levels": [0],
        "slimhead.ratio": 0.5,
        "slimhead.mode": "nearest",
        "slimhead.fat": True,
    }
    assert found["config"] == str(out)
    assert "ComposedHead" in out.read_text()


def test_profile(made, monkeypatch, capsys):
    arguments = ["profile", "headway::gfl_tiny", "--size", "64x96", "--against", "headway::atss_tiny"]
    found = document(made, monkeypatch, capsys, *arguments)
    assert found["size"] == [64, 96]
    assert {"backbone", "neck", "head"} <= set(found["macs"]["parts"])
    assert sum(found["macs"]["parts"].values()) == found["macs"]["total"]
    assert "P3" in found["macs"]["levels"]
    assert found["params"]["total"] == sum(found["params"]["parts"].values())
    assert set(found["against"]["ratio"]) == {"macs", "params"}
    assert "latency" not in found


def test_plan_in_a_process_of_its_own(made):
    """Builds and trains a little: nothing of what mmdet and torch print may reach the document."""
    before = tree(made)
    done, _ = headway(made, "plan", "new.yaml", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["corners"][0]["knobs"] == {}
    assert len(found["corners"]) > 1
    assert {"gmacs", "head_gmacs", "params_m"} <= set(found["corners"][0]["metrics"])
    assert found["seconds_per_trial"] > 0
    assert found["hours_at_most"] > 0
    assert found["not_exportable"] == {}
    assert "data" in found
    assert tree(made) == before
