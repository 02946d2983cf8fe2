"""What is told of a shared warm start and of what it and others saved: while it runs, afterwards and beforehand."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.record import EpochRecord, TrialRecord, TrialState
from search import engine, tables
from search.eta import Eta
from search.plan import make_plan
from search.progress import Progress
from search.status import document, show
from search.study import Study, load
from trainers import estimate
from trainers.config import BASES
from trainers.contract import TrialRequest

STUDY = """
name: warmed
base: headway::gfl_nano
data: {digits: {train: 8, val: 4}, size: [64, 64]}
space: {slimhead: {}}
budget: {trials: 3, epochs: 4}
weights: {from: baseline, epochs: 6}
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "warmed.yaml").write_text(STUDY)
    return load(tmp_path / "warmed.yaml")


def warming(epoch: int, **attrs: object) -> TrialRecord:
    metrics = {"warm_bbox_mAP": epoch / 20}
    attrs = {"warm_epoch": epoch, "warm_seconds": 90.0 * epoch, **attrs}
    return TrialRecord(number=0, state=TrialState.RUNNING, metrics=metrics, attrs=attrs, started=1.0)


def test_its_epochs_are_told_and_no_trials(study: Study) -> None:
    now = [1000.0]
    stream = io.StringIO()
    told = Progress(study, 0, stream)
    told.eta = Eta(study.budget.trials, clock=lambda: now[0])
    told(TrialRecord(number=0, state=TrialState.RUNNING))
    for epoch in (1, 2):
        now[0] += 90
        told(warming(epoch))
    record = warming(2)
    told(record)  # the same again tells nothing
    for epoch in (1, 2):
        now[0] += 10
        curve = [EpochRecord(number, {"bbox_mAP": 0.3}) for number in range(1, epoch + 1)]
        told(replace(record, curve=curve, metrics={**record.metrics, "bbox_mAP": 0.3}))
    lines = stream.getvalue().splitlines()
    assert [line.partition("] ")[2] for line in lines] == [
        "trial   0  starts: the baseline",
        "trial   0  shared warm start, epoch 1/6  AP 5.0 %",
        "trial   0  shared warm start, epoch 2/6  AP 10.0 %",
        "trial   0  epoch 1/4  AP 30.0 %",
        "trial   0  epoch 2/4  AP 30.0 %",
    ]
    # Two epochs of 10 s each, 10 more to go; the warm start's three minutes come no more.
    assert re.match(r"\[3:20  0/3 trials, about 1:40 left\]", lines[-1])


def test_a_warm_start_that_is_picked_up_continues(study: Study) -> None:
    stream = io.StringIO()
    Progress(study, 0, stream)(warming(2))
    assert stream.getvalue().endswith("trial   0  continues: the baseline\n")


def test_status_tells_where_it_stands(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document([warming(2)], study, tmp_path, None, 0.0)
    assert json.loads(json.dumps(found["warm"])) == {"epochs": 6, "epoch": 2, "hours": 0.05, "bbox_mAP": 0.1}
    assert found["saved"] == {}
    show(found, [warming(2)], study)
    printed = capsys.readouterr().out
    assert "Warm:      shared warm start, epoch 2/6, AP 10.0 %, 0.05 h\n" in printed
    assert "Saved" not in printed


def test_status_tells_what_was_saved(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def curve(epochs: int) -> list[EpochRecord]:
        metrics = {"bbox_mAP": 0.3, "train_seconds": 80.0, "val_seconds": 10.0}
        return [EpochRecord(epoch, metrics, 90.0 * epoch) for epoch in range(1, epochs + 1)]

    base = replace(warming(6, warm_epochs=6), state=TrialState.COMPLETE, curve=curve(4))
    base = replace(base, metrics={"bbox_mAP": 0.3, "latency_ms": 20.0})
    records = [base, TrialRecord(number=1, state=TrialState.STOPPED, reason="at epoch 1: weak", curve=curve(1))]
    found = document(records, study, tmp_path, None, 0.0)
    assert found["saved"]["stopped"] == {
        "count": 1, "unit": "trials stopped at rungs", "epochs": 3, "hours": pytest.approx(0.075),
    }  # fmt: skip
    # 6 epochs more of both, less the 9 minutes that were paid.
    assert (found["saved"]["warm"]["epochs"], found["saved"]["warm"]["hours"]) == (6, pytest.approx(0.15))
    show(found, records, study)
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "Saved (hours are estimates, from what an epoch of the same trial took):",
        "  1 trial stopped at a rung, 3 epochs not trained, about 4.5 min",
        "  2 trials from the shared warm start, 6 epochs not trained, about 9.0 min",
    ]
    without = study.model_copy(
        update={"weights": study.weights.model_copy(update={"from_": "scratch", "epochs": None})}
    )
    assert tables.summary(records, without, tmp_path)["warm"] is None


def test_the_plan_counts_its_time(study: Study) -> None:
    made = make_plan(study)
    assert made.seconds_per_trial is not None and made.warm_seconds is not None and made.hours_at_most is not None
    # Six epochs to the four of a trial, without the start of a process.
    assert made.warm_seconds == pytest.approx((made.seconds_per_trial - 7.0) * 6 / 4)
    trials = made.seconds_per_trial * 3 / made.concurrent
    assert made.hours_at_most == pytest.approx((trials + made.warm_seconds) / 3600)
    assert made.to_json()["warm_seconds"] == made.warm_seconds
    (line,) = [line for line in made.lines(study) if line.startswith("Warm start: ")]
    assert re.fullmatch(r"Warm start: the base is trained once for 6 epochs, about [\d.]+ min; every trial .*", line)


@pytest.mark.parametrize(
    ("hardware", "asked", "gain", "told"),
    [
        (True, None, 2.5, True),
        (True, None, 1.1, False),
        (False, None, 2.5, False),
        (True, "float32", 2.5, False),
        (True, None, 0.0, False),
    ],
)
def test_the_plan_tells_what_mixed_precision_would_gain(
    study: Study, monkeypatch: pytest.MonkeyPatch, hardware: bool, asked: Any, gain: float, told: bool
) -> None:
    """The hardware and the times are given here; that real steps are timed is what the test above sees."""

    def seconds(request: TrialRequest) -> float:
        if request.train_dtype == "bfloat16" and not gain:
            raise NotImplementedError("not implemented for 'BFloat16'")
        return 10.0 / gain if request.train_dtype == "bfloat16" else 10.0

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: hardware)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(estimate, "seconds_per_epoch", seconds)
    training = study.training.model_copy(update={"dtype": asked})
    notes = make_plan(study.model_copy(update={"training": training})).notes
    note = f"Note: epochs would be about {gain:.1f} times as fast in mixed precision (training.dtype: bfloat16)."
    assert (note in notes) == told


def test_a_base_with_an_optimizer_wrapper_of_its_own_is_planned(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Which knows no other type, so nothing is timed in one."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    asked: list[Any] = []
    monkeypatch.setattr(estimate, "seconds_per_epoch", lambda request: asked.append(request.train_dtype) or 10.0)
    base = tmp_path / "base.py"
    base.write_text(f"_base_ = {str(BASES / 'gfl_nano.py')!r}\noptim_wrapper = dict(type='ApexOptimWrapper')\n")
    assert make_plan(study.model_copy(update={"base": str(base)})).seconds_per_trial is not None
    assert asked == [None]


def test_cleaning_up_leaves_it(tmp_path: Path) -> None:
    for folder in ("warm", "trials/0000", "trials/0001"):
        (tmp_path / folder).mkdir(parents=True)
        for epoch in (1, 2):
            torch.save({}, tmp_path / folder / f"epoch_{epoch}.pth")
    ended = [
        TrialRecord(number=0, state=TrialState.COMPLETE, attrs={"checkpoint": "epoch_2.pth"}, folder="trials/0000"),
        TrialRecord(number=1, state=TrialState.STOPPED, folder="trials/0001"),
    ]
    for record in ended:
        engine._clean(tmp_path / record.folder, record)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.pth"))
    assert left == ["trials/0000/epoch_2.pth", "warm/epoch_1.pth", "warm/epoch_2.pth"]
