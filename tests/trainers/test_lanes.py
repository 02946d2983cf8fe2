"""Trials in legs: what is measured in one lane and trained in the other gives what one start gives, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spaces.base import facts
from spaces.space import build_space
from trainers import checkpoint, learning
from trainers.config import load_base
from trainers.contract import (
    DataRequest,
    Lane,
    LaneNeeded,
    SpeedRequest,
    SweepRequest,
    TrialReport,
    TrialRequest,
    WarmRequest,
)
from trainers.detector import train

CLOCKS = ("train_seconds", "val_seconds", "peak_memory_mb", "latency", "measured", "reference", "aa_ratio")
SPEED = SpeedRequest(size=(64, 64), pairs=2, seconds=0.0, foreign="record")
SLIM = {"slimhead.levels": [0], "slimhead.ratio": 0.5, "slimhead.mode": "nearest"}
POD = {
    "pod.mode": "decompose", "pod.stages": [4, 5], "pod.towers": [], "pod.tolerance": 0.0, "pod.round_channels": 1,
    "pod.zero_taps": "centre", "pod.transfer": True, "pod.learn_share": 0.5,
}  # fmt: skip


def asked(folder: Path, data: DataRequest, **more: Any) -> TrialRequest:
    usual = {"number": 1, "base": "headway::gfl_nano", "knobs": SLIM, "data": data, "folder": str(folder)}
    return TrialRequest(**{**usual, "epochs": 1, "batch": 4, "seed": 3, "count_size": (64, 64), **more})


def in_legs(request: TrialRequest, lane: Lane) -> tuple[list[TrialReport], list[Lane]]:
    """Starts a trial in a lane and goes on in those that it asks for, as a conductor does; gives reports and lanes."""
    reports: list[TrialReport] = []
    went: list[Lane] = []
    while len(went) < 6:
        went.append(lane)
        try:
            train(replace(request, lane=lane), reports.append)
        except LaneNeeded as needed:
            lane = needed.lane
        else:
            return reports, went
        if any(report.phase == "timed" for report in reports):
            request = replace(request, speed=None)
        if request.sweep is not None:
            done = {report.attrs["index"] for report in reports if report.phase == "swept"}
            left = {index: knobs for index, knobs in request.sweep.settings.items() if index not in done}
            request = replace(request, sweep=replace(request.sweep, settings=left))
    raise AssertionError(f"no end: {went}")


def weights(request: TrialRequest) -> dict[str, torch.Tensor]:
    _, path = checkpoint.checkpoints(Path(request.folder))[0]
    return dict(torch.load(path, weights_only=True)["state_dict"])


def results(reports: Sequence[TrialReport]) -> dict[tuple[str, int, int], dict[str, float]]:
    """Of each message the figures that are no times; a message that was sent again must say the same."""
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    for report in reports:
        key = (report.phase, report.epoch, report.attrs.get("index", 0))
        own = {name: value for name, value in report.metrics.items() if not name.startswith(CLOCKS)}
        own = {name: value for name, value in own.items() if "latency" not in name}
        assert found.setdefault(key, own) == own
    return found


def same(one: TrialRequest, other: TrialRequest) -> bool:
    mine, theirs = weights(one), weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


def whole(request: TrialRequest) -> list[TrialReport]:
    reports: list[TrialReport] = []
    train(request, reports.append)
    return reports


def test_a_plain_design_is_timed_and_then_trained(data: DataRequest, tmp_path: Path) -> None:
    one, other = (asked(tmp_path / name, data, speed=SPEED) for name in ("one", "other"))
    reports, went = in_legs(other, "speed")
    assert went == ["speed", "train"]
    expected = whole(one)
    assert results(reports) == results(expected)
    assert same(one, other)
    timed = next(report for report in reports if report.phase == "timed")
    assert isinstance(timed.attrs["speed_alone"], bool)
    alone = next(report for report in expected if report.phase == "timed").attrs
    assert (alone["speed_alone"], alone["speed_beside"]) == (False, "nobody saw to it that nothing else runs")


def test_a_trial_that_begins_in_the_wrong_lane_does_nothing_there(data: DataRequest, tmp_path: Path) -> None:
    request = asked(tmp_path / "trial", data, speed=SPEED)
    reports: list[TrialReport] = []
    for lane, speed in (("train", SPEED), ("speed", None)):
        with pytest.raises(LaneNeeded):
            train(replace(request, lane=lane, speed=speed), reports.append)  # type: ignore[arg-type]
    assert reports == []


def test_the_shared_warm_start_is_trained_before_the_baseline_is_timed(data: DataRequest, tmp_path: Path) -> None:
    one, other = (
        asked(
            tmp_path / name / "0", data, number=0, knobs={}, weights="baseline", speed=SPEED,
            warm=WarmRequest(folder=str(tmp_path / name / "warm"), epochs=1),
        )
        for name in ("one", "other")
    )  # fmt: skip
    reports, went = in_legs(other, "train")
    assert went == ["train", "speed", "train"]
    assert results(reports) == results(whole(one))
    assert same(one, other)


def test_a_learned_design_is_timed_between_its_two_trainings(
    data: DataRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "IMAGES", 8)
    one, other = (asked(tmp_path / name, data, knobs=POD, speed=SPEED, epochs=2) for name in ("one", "other"))
    reports, went = in_legs(other, "train")
    assert went == ["train", "speed", "train"]
    assert results(reports) == results(whole(one))
    assert same(one, other)
    learned = [report for report in reports if report.phase == "learned"]
    assert all("learning_latency_ratio" in report.metrics for report in learned)


def test_a_sweep_validates_where_it_trains_and_times_in_the_speed_lane(data: DataRequest, tmp_path: Path) -> None:
    narrowed = {"threshold": [0.0, 0.5], "beta": ["none"], "always": True}
    space = build_space({"querydet": narrowed}, facts(load_base("headway::retinanet_tiny").model.to_dict()))
    design = space.canonicalise({name: knob.default for name, knob in space.knobs.items()})
    sweep = SweepRequest(settings=dict(enumerate(space.sweep(design))), speed=SPEED, images=2)
    one, other = (
        asked(tmp_path / name, data, base="headway::retinanet_tiny", knobs=design, sweep=sweep)
        for name in ("one", "other")
    )
    reports, went = in_legs(other, "train")
    assert went == ["train", "speed"]
    assert results(reports) == results(whole(one))
    assert same(one, other)
    assert [report.phase for report in reports].count("swept") == len(sweep.settings) == 2
