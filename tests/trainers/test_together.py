"""Many detectors in one interleaved run."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spaces.base import facts
from spaces.space import Space, build_space
from trainers import together
from trainers.config import load_base
from trainers.contract import DataRequest, SpeedRequest, SweepRequest, TrialFailed, TrialReport, TrialRequest
from trainers.detector import train
from trainers.digits import write_digits
from trainers.speed import clock_of
from trainers.together import Member, TogetherRequest, groups, interleaved, measure, order

SLIM = {"slimhead.levels": [0, 1, 2, 3], "slimhead.ratio": 0.1, "slimhead.mode": "nearest", "slimhead.fat": True}
DCN = {"dcn.placement": ["cls.0", "cls.1", "reg.0", "reg.1"], "dcn.version": 2}


@pytest.mark.parametrize("count", [2, 3, 4, 5, 12, 13])
def test_the_order_is_balanced(count: int) -> None:
    """Each at every place, and each after every other one, equally often."""
    rounds = [order(count, turn) for turn in range(count if count % 2 == 0 else 2 * count)]
    times = len(rounds) // count
    assert all(sorted(row) == list(range(count)) for row in rounds)
    assert set(Counter((place, one) for row in rounds for place, one in enumerate(row)).values()) == {times}
    follows = Counter(pair for row in rounds for pair in pairwise(row))
    assert len(follows) == count * (count - 1)
    assert set(follows.values()) == {times}


class Machine:
    """Passes of known cost on a machine that becomes 0.1 % slower with each pass, and its clocks."""

    def __init__(self, costs: list[float]) -> None:
        self.slower, self.time = 1.0, 0.0
        self.passes = [lambda cost=cost: cost for cost in costs]

    def clock(self, function: Any) -> float:
        self.slower *= 1.001
        took = float(function()) * self.slower
        self.time += took / 1e3
        return took

    def now(self) -> float:
        return self.time


@pytest.mark.parametrize("costs", [[10.0, 10.0, 5.0], [10.0, 10.0, 5.0, 20.0]])
def test_drift_cancels_over_the_rounds(costs: list[float]) -> None:
    machine = Machine(costs)
    times = interleaved(machine.passes, rounds=12, seconds=0.0, clock=machine.clock, now=machine.now)
    assert [len(own) for own in times] == [12] * len(costs)
    base, *others = times
    for own, cost in zip(others, costs[1:]):
        ratios = [mine / theirs for mine, theirs in zip(own, base)]
        assert statistics.fmean(ratios) == pytest.approx(cost / 10, rel=1e-4)


def test_rounds_go_on_while_there_is_time_and_end_in_whole_sets() -> None:
    machine = Machine([10.0, 10.0, 10.0])
    times = interleaved(machine.passes, rounds=2, seconds=0.5, clock=machine.clock, now=machine.now)
    assert len(times[0]) == 18  # 3 sets of 6 rounds of 30 ms each: the third begins before half a second is over
    machine = Machine([1.0, 1.0, 1.0])
    times = interleaved(machine.passes, rounds=2, seconds=1e9, clock=machine.clock, now=machine.now)
    assert len(times[0]) == 96 <= together.MOST_ROUNDS < 102


def test_a_larger_module_is_slower() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 16, 32, 32)

    def layers(count: int) -> Any:
        net = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(count))).eval()
        return lambda: net(images)

    with torch.inference_mode():
        times = interleaved([layers(4), layers(4), layers(12)], rounds=30, seconds=0.0, clock=clock_of("cpu"))
    same, larger = (statistics.median(b / a for a, b in zip(times[0], own)) for own in times[1:])
    # Three times the work; how far above one its ratio lies depends on what else the machine does.
    assert larger > 1.5
    assert same < larger


def test_groups_are_few_and_alike() -> None:
    members = [Member(label=str(number), knobs={}) for number in range(23)]
    cut = groups(members, 10)
    assert [len(group) for group in cut] == [8, 7, 8]
    assert [member.label for group in cut for member in group] == [str(number) for number in range(23)]
    assert groups([], 10) == []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataRequest:
    paths = write_digits(tmp_path_factory.mktemp("digits"), train=4, val=3, size=(64, 64), seed=0)
    return DataRequest(
        train_annotations=str(paths.train_annotations),
        train_images=str(paths.train_images),
        val_annotations=str(paths.val_annotations),
        val_images=str(paths.val_images),
        classes=tuple("0123456789"),
        size=(64, 64),
    )


def space_of(families: Mapping[str, Any], base: str) -> Space:
    return build_space(families, facts(load_base(base).model.to_dict()))


def asked(data: DataRequest, folder: Path, members: list[Member], base: str = "headway::gfl_tiny") -> TogetherRequest:
    baseline = TrialRequest(number=0, base=base, knobs={}, data=data, folder=str(folder / "0000"), epochs=1)
    speed = SpeedRequest(size=(64, 64), pairs=6, seconds=0.01, lease=str(folder / "lease"))
    return TogetherRequest(baseline=baseline, members=members, speed=speed, images=2)


def test_real_detectors_on_noise(data: DataRequest, tmp_path: Path) -> None:
    members = [Member(label="1", knobs=SLIM), Member(label="2.1", knobs=DCN)]
    request = asked(data, tmp_path, members)
    assert TogetherRequest.from_json(json.loads(json.dumps(request.to_json()))).to_json() == request.to_json()
    (run,) = json.loads(together.measure_json(json.dumps(request.to_json())))
    assert not run["on_images"]
    assert set(run["ratios"]) == {"1", "2.1"}
    assert [len(own) for own in run["ratios"].values()] == [8, 8] == [len(run["aa"])] * 2  # two sets of 4 rounds
    light, heavy = (statistics.median(own) for own in run["ratios"].values())
    assert light < heavy
    assert heavy > 1.02
    assert run["baseline_ms"] > 0


def test_a_baseline_alone_is_measured_against_itself(data: DataRequest, tmp_path: Path) -> None:
    (run,) = measure(asked(data, tmp_path, []))
    assert (run.ratios, len(run.aa)) == ({}, 6)


def test_detectors_that_depend_on_images_are_trained_ones_on_images(data: DataRequest, tmp_path: Path) -> None:
    base = "headway::retinanet_tiny"
    space = space_of({"querydet": {}}, base)
    (design, *_) = space.corners(1)
    assert space.on_images(design)
    folder = tmp_path / "0001"
    member = Member(label="1", knobs=design, folder=str(folder))
    with pytest.raises(TrialFailed, match="the trained weights of 1 are gone from"):
        measure(asked(data, tmp_path, [member], base))
    further = SweepRequest(settings={1: space.sweep(design)[1]}, speed=None)
    request = TrialRequest(number=1, base=base, knobs=design, data=data, folder=str(folder), epochs=1, batch=2)
    reports: list[TrialReport] = []
    train(replace(request, sweep=further), reports.append)
    (swept,) = [report for report in reports if report.phase == "swept"]
    # Accuracy alone: a confirmation's latencies are measured together.
    assert swept.attrs == {"index": 1}
    assert "bbox_mAP" in swept.metrics and not [name for name in swept.metrics if name.startswith("latency")]
    (run,) = measure(asked(data, tmp_path, [member], base))
    assert run.on_images
    assert list(run.ratios) == ["1"]
    assert len(run.aa) == len(run.ratios["1"]) == 6
