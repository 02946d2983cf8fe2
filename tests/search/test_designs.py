"""A study file that lists its designs: exactly these are tried, in their order, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.record import TrialState
from search import tables
from search.cli import main
from search.conductor import Conductor, Pause
from search.designs import listed, study_space
from search.store import Store
from search.study import load, parse
from spaces.base import BaseFacts
from spaces.errors import UserError
from trainers.contract import DataRequest, TrialReport

HERE = Path(__file__).parent
FACTS = BaseFacts("GFL", "GFLHead", (8, 16, 32, 64, 128), 4, False)
RETINA = BaseFacts("RetinaNet", "RetinaHead", (8, 16, 32, 64, 128), 4, True, finer=1)
DATA = DataRequest(
    train_annotations="/t.json", train_images="/t", val_annotations="/v.json", val_images="/v", classes=("a",),
    size=(96, 96),
)  # fmt: skip
DESIGNS = [
    {"name": "half", "knobs": {"slimhead": {"levels": "K3", "ratio": 0.5}}},
    {"name": "deformed", "knobs": {"dcn": {"placement": [0, 1]}}},
    {"name": "both", "knobs": {"slimhead": {"levels": [0, 1]}, "dcn": {"placement": ["cls.0"]}}},
]
HALF = {"slimhead.levels": [0], "slimhead.ratio": 0.5, "slimhead.mode": "nearest", "slimhead.fat": True}


def raw(designs=DESIGNS, **changes):
    base = {"name": "listed", "base": "headway::gfl_tiny", "data": {"digits": {}, "size": [96, 96]}, "rungs": None}
    return {**base, "designs": designs, **changes}


def designs_of(study, base=FACTS):
    return listed(study, study_space(study, base))


def refusal(designs=DESIGNS, base=FACTS, **changes):
    with pytest.raises(UserError) as caught:
        designs_of(parse(raw(designs, **changes), "s.yaml"), base)
    return str(caught.value)


def test_designs_are_canonical_and_need_no_space():
    study = parse(raw(), "s.yaml")
    first, second, third = designs_of(study)
    assert (first.name, first.knobs) == ("half", HALF)
    assert second.knobs == {"dcn.placement": ["cls.0", "cls.1", "reg.0", "reg.1"], "dcn.version": 2}
    assert third.knobs["slimhead.levels"] == [0, 1] and third.knobs["slimhead.ratio"] == 0.5
    assert [part.family.name for part in study_space(study, FACTS).families] == ["dcn", "slimhead"]
    assert study.budget.trials == 4


def test_a_family_without_knobs_has_its_defaults():
    (design,) = designs_of(parse(raw([{"name": "a", "knobs": {"slimhead": {}}}]), "s.yaml"))
    assert design.knobs == HALF


def test_a_study_file_survives_its_own_dump():
    study = parse(raw(), "s.yaml")
    assert parse(json.loads(json.dumps(study.dump())), "again") == study
    without = parse(raw([], space={"slimhead": {}}), "s.yaml")
    assert "designs" not in without.dump()


@pytest.mark.parametrize(
    ("third", "words"),
    [
        ({"slimhaed": {}}, "designs[3]: unknown 'slimhaed'; did you mean 'slimhead'?"),
        ({"slimhead": {"ration": 0.5}}, "designs[3]: slimhead: unknown 'ration'; did you mean 'ratio'?"),
        ({"slimhead": {"ratio": 1.7}}, "designs[3]: slimhead.ratio: must lie in [0.1, 1], but got 1.7"),
        ({"querydet": {}}, "designs[3]: knobs.querydet: works on"),
        ({"slimhead": {"ratio": 1.0}}, "designs[3]: must differ from the base, but 'fourth' is the baseline"),
        ({}, "designs[3]: must differ from the base"),
        (
            {"slimhead": {"levels": [0], "ratio": 0.5, "mode": "nearest"}},
            "designs[3]: must differ from the others, but 'fourth' is the design of designs[0] 'half'",
        ),
    ],
)
def test_a_wrong_design_is_named(third, words):
    assert words in refusal([*DESIGNS, {"name": "fourth", "knobs": third}])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"designs": [{"name": "a"}]}, "designs[0].knobs: is required."),
        ({"designs": [{"name": "a", "knob": {}, "knobs": {}}]}, "designs[0]: unknown 'knob'; did you mean 'knobs'?"),
        ({"designs": [*DESIGNS, DESIGNS[0]]}, "designs: must have names of their own, but got half twice"),
        ({"budget": {"trials": 3}}, "budget: must have trials of 4 or more, the baseline and 3 designs, but got 3"),
        ({"space": {"ddod": {}}}, "space.ddod: must be a family that a design names"),
        ({"space": {"slimhead": {"ratio": 0.5}}}, "space.slimhead.ratio: must be a knob that is swept after training"),
    ],
)
def test_what_does_not_fit_a_list_of_designs_is_refused(changes, words):
    assert words in refusal(**{"designs": DESIGNS, **changes})


def test_knobs_of_inference_are_swept_and_no_designs_of_their_own():
    query = {"p2": True, "start": "P4"}
    twice = [{"name": str(value), "knobs": {"querydet": {**query, "threshold": value}}} for value in (0.1, 0.2)]
    words = refusal(twice, RETINA)
    assert "designs[1]: must differ in training from the others, but '0.2' differs from designs[0] '0.1'" in words
    assert "querydet.threshold only, which is swept after training" in words
    study = parse(
        raw(
            [{"name": "QueryDet", "knobs": {"querydet": query}}],
            space={"querydet": {"threshold": [0.0, 0.15], "method": "sparse", "context": [0, 2]}},
        ),
        "s.yaml",
    )
    space = study_space(study, RETINA)
    (design,) = listed(study, space)
    swept = [(point["querydet.threshold"], point.get("querydet.context")) for point in space.sweep(design.knobs)]
    assert swept[0] == (0.15, 2)
    assert sorted(swept, key=str) == [(0.0, None), (0.15, 0), (0.15, 2)]


class Play:
    """One driver process over the study's folder, driven by hand."""

    def __init__(self, folder, *, extend=False, **changes):
        study = parse(raw(**changes), "s.yaml")
        self.space = study_space(study, FACTS)
        self.store = Store.create(folder, study, extend=extend)
        self.conductor = Conductor(
            study, self.space, self.store, folder=folder, data=DATA, device="cpu", speed_device="cpu", threads=1,
            concurrent=1,
        )  # fmt: skip

    def next(self):
        return self.conductor.next()

    def train(self, number):
        epochs = self.conductor.study.budget.epochs
        phases = [
            ("counted", 0, {"gmacs": 1.0, "params_m": 1.0}),
            ("timed", 0, {"latency_ratio": 1.0, "reference_ms": 20.0}),
            ("epoch", epochs, {"bbox_mAP": 0.3}),
            ("done", epochs, {}),
        ]
        for phase, epoch, metrics in phases:
            self.conductor.report(number, TrialReport(phase=phase, epoch=epoch, metrics=metrics, seconds=1.0, attrs={}))


def test_exactly_the_listed_designs_are_tried_in_their_order(tmp_path):
    play, tried = Play(tmp_path), []
    while (request := play.next()) is not Pause.FINISHED:
        tried.append(dict(request.knobs))
        play.train(request.number)
    assert tried == [{}, *(design.knobs for design in designs_of(play.conductor.study))]
    records = play.store.records()
    assert [record.attrs.get("name") for record in records] == [None, "half", "deformed", "both"]
    assert {record.state for record in records} == {TrialState.COMPLETE}
    rows = {row["trial"]: row for row in tables.rows(records, play.conductor.study)}
    assert rows[1]["name"] == "half" and "name" not in rows[0]
    assert tables.summary(records, play.conductor.study, tmp_path)["trials"][2]["name"] == "deformed"
    tables.print_front(list(rows.values()), records, play.conductor.study)


def test_a_process_that_is_gone_is_taken_up_where_it_was(tmp_path):
    play = Play(tmp_path)
    for number in (0, 1):
        assert play.next().number == number
        play.train(number)
    assert play.next().number == 2  # begun, and not ended
    play = Play(tmp_path)
    request = play.next()
    assert request.number == 2 and play.store.record(2).attrs["name"] == "deformed"
    play.train(2)
    assert play.next().number == 3
    play.train(3)
    assert play.next() is Pause.FINISHED
    assert Play(tmp_path).next() is Pause.FINISHED


def test_further_designs_may_be_added_and_others_may_not_change(tmp_path):
    play = Play(tmp_path)
    while (request := play.next()) is not Pause.FINISHED:
        play.train(request.number)
    more = [*DESIGNS, {"name": "coarse", "knobs": {"slimhead": {"levels": "K7"}}}]
    with pytest.raises(UserError, match="was started with another study file"):
        Play(tmp_path, designs=more)
    with pytest.raises(UserError, match="was started with another study file"):
        Play(tmp_path, designs=more[1:], extend=True)
    play = Play(tmp_path, designs=more, extend=True)
    request = play.next()
    assert request.number == 4 and play.store.record(4).attrs["name"] == "coarse"


@pytest.mark.slow
def test_a_driver_that_is_killed_tries_each_design_once(tmp_path):
    file = tmp_path / "listed.yaml"
    file.write_text(json.dumps(raw(data={"digits": {"train": 8, "val": 4}, "size": [96, 96]}, budget={"epochs": 3})))
    environment = {**os.environ, "PYTHONPATH": str(HERE), "ANALYTIC": json.dumps({"epoch_seconds": 0.3})}
    command = [sys.executable, str(HERE / "drive.py"), str(file), str(tmp_path / "studies")]

    def start(log):
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def records():
        try:
            return Store.read(tmp_path / "studies/listed", load(file)).records()
        except Exception:
            return []  # the tables are being made

    with (tmp_path / "log.txt").open("a") as log:
        process = start(log)
        deadline = time.monotonic() + 300
        while not any(record.attrs.get("name") and record.curve for record in records()):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()[-2000:]
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert start(log).wait(timeout=400) == 0, (tmp_path / "log.txt").read_text()[-2000:]
    done = records()
    assert [record.attrs.get("name") for record in done] == [None, "half", "deformed", "both"]
    assert {record.state for record in done} == {TrialState.COMPLETE}
    assert "trial   1  starts: half: slimhead.levels=" in (tmp_path / "log.txt").read_text()
    assert "Ended early" not in (tmp_path / "log.txt").read_text()


# Placeholders: a study file that is made to be filled in.

TO_FILL = raw(
    data={
        "train": {"annotations": "path/to/train.json", "images": "path/to/images"},
        "val": {"annotations": "path/to/val.json", "images": "path/to/images"},
        "classes": ["a", "b"],
        "size": [96, 96],
    },
    constraints=["params_m <= 0.001"],
)


def command(folder, capsys, monkeypatch, *arguments):
    (folder / "fill.yaml").write_text(json.dumps(TO_FILL))
    monkeypatch.chdir(folder)
    status = main([arguments[0], "fill.yaml", *arguments[1:]])
    return status, capsys.readouterr()


def test_a_plan_without_data_counts_every_design(tmp_path, capsys, monkeypatch):
    status, printed = command(tmp_path, capsys, monkeypatch, "plan", "--json")
    assert status == 0, printed.err
    found = json.loads(printed.out)
    assert [corner["name"] for corner in found["corners"]] == [None, "half", "deformed", "both"]
    gmacs = [corner["metrics"]["gmacs"] for corner in found["corners"]]
    assert gmacs[1] < gmacs[0] < gmacs[2]
    assert found["space_size"] == 4
    assert found["data"] is None and found["seconds_per_trial"] is None and found["hours_at_most"] is None
    assert found["corners"][1]["broken"] == ["params_m <= 0.001"]


def test_a_plan_without_data_says_what_must_be_filled_in(tmp_path, capsys, monkeypatch):
    status, printed = command(tmp_path, capsys, monkeypatch, "plan")
    assert status == 0, printed.err
    assert "Data: must be filled in before a run: data.train.annotations (path/to/train.json)" in printed.out
    assert "Designs: 3 listed, and the baseline." in printed.out
    assert "both: " in printed.out


def test_a_run_without_data_is_refused(tmp_path, capsys, monkeypatch):
    status, printed = command(tmp_path, capsys, monkeypatch, "run")
    assert status == 2
    assert "data: must be filled in before a run: data.train.annotations (path/to/train.json), " in printed.err
    assert not (tmp_path / "studies").exists()


def test_data_that_are_missing_and_no_placeholder_are_an_error_of_the_plan(tmp_path, capsys, monkeypatch):
    sets = [f"data.{split}.annotations={split}.json" for split in ("train", "val")]
    sets += [f"data.{split}.images=images" for split in ("train", "val")]
    words = [word for item in sets for word in ("--set", item)]
    status, printed = command(tmp_path, capsys, monkeypatch, "plan", *words)
    assert status == 2
    assert "train.json" in printed.err and "must be filled in" not in printed.err


def test_a_plan_with_data_times_the_baseline(tmp_path, capsys, monkeypatch):
    file = tmp_path / "s.yaml"
    file.write_text(json.dumps(raw(DESIGNS[:1], data={"digits": {"train": 8, "val": 4}, "size": [96, 96]})))
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [corner["name"] for corner in found["corners"]] == [None, "half"]
    assert found["hours_at_most"] == pytest.approx(found["seconds_per_trial"] * 2 / found["concurrent"] / 3600)
