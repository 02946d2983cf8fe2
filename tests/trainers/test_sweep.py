"""Settings of inference knobs, measured on a detector that was really trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from spaces.base import facts
from spaces.space import Space, build_space
from trainers import sweep
from trainers.config import load_base, read_facts, trial_config
from trainers.contract import DataRequest, SpeedRequest, SweepRequest, TrialReport, TrialRequest
from trainers.detector import build_model, train
from trainers.speed import measure_on_images

SPEED = SpeedRequest(size=(96, 128), pairs=4, seconds=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, digits_request: Callable[..., DataRequest]) -> DataRequest:
    return digits_request(tmp_path_factory.mktemp("digits"), train=8, val=5)


@pytest.fixture(scope="module")
def space() -> Space:
    narrowed = {"threshold": [0.0, 0.01, 0.5], "beta": ["none"], "always": True}
    return build_space({"querydet": narrowed}, facts(load_base("headway::retinanet_tiny").model.to_dict()))


@pytest.fixture(scope="module")
def trained(
    data: DataRequest, space: Space, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrialRequest, list[TrialReport]]:
    """A trial of one epoch with three thresholds, beside a baseline of which nothing is trained yet."""
    folder = tmp_path_factory.mktemp("study")
    design = space.canonicalise({name: knob.default for name, knob in space.knobs.items()})
    request = TrialRequest(
        number=1,
        base="headway::retinanet_tiny",
        knobs=design,
        data=data,
        folder=str(folder / "trials/0001"),
        epochs=1,
        batch=4,
        seed=3,
        count_size=(64, 64),
        sweep=SweepRequest(
            settings=dict(enumerate(space.sweep(design))),
            speed=SPEED,
            images=3,
            reference=str(folder / "trials/0000"),
        ),
    )
    reports: list[TrialReport] = []
    train(request, reports.append)
    return request, reports


def test_each_setting_is_reported_between_the_last_epoch_and_the_end(trained: Any) -> None:
    request, reports = trained
    assert [report.phase for report in reports] == ["counted", "epoch", "swept", "swept", "swept", "done"]
    settings = [report for report in reports if report.phase == "swept"]
    assert [report.attrs["index"] for report in settings] == [0, 1, 2]
    thresholds = [request.sweep.settings[report.attrs["index"]]["querydet.threshold"] for report in settings]
    assert sorted(thresholds) == [0.0, 0.01, 0.5]
    for report in settings:
        assert report.attrs["images"] == 3
        assert not report.attrs["reference_trained"]
        assert sum(row["share"] for row in report.attrs["time"]["parts"]) == pytest.approx(1, abs=1e-3)
        assert report.metrics["latency_ratio"] > 0
        assert report.metrics["latency_ratio_q1"] <= report.metrics["latency_ratio_q3"]
    # The setting that training validated with gives the same accuracy again.
    own = next(report for report in reports if report.phase == "epoch")
    assert settings[0].metrics["bbox_mAP"] == own.metrics["bbox_mAP"]
    # Fewer queries cannot cost more; none at all costs less than all of them.
    by_threshold = dict(zip(thresholds, settings, strict=True))
    cost = {threshold: report.metrics["gmacs"] for threshold, report in by_threshold.items()}
    assert cost[0.5] <= cost[0.01] <= 1.5 * cost[0.0]
    assert cost[0.5] < cost[0.0]


def test_each_setting_has_a_config_that_builds_with_the_trained_weights(trained: Any) -> None:
    request, _ = trained
    folder = Path(request.folder)
    weights = torch.load(folder / "epoch_1.pth", weights_only=True)["state_dict"]
    for index in request.sweep.settings:
        config = Config.fromfile(str(folder / f"config.{index}.py"))
        loaded = build_model(config, seed=0).load_state_dict(weights)
        assert not loaded.missing_keys
        assert not loaded.unexpected_keys


def test_a_finished_training_is_swept_without_training_again(trained: Any) -> None:
    request, before = trained
    baseline = build_model(trial_config(replace(request, knobs={}), read_facts(request.data)), seed=0)
    reference = Path(request.sweep.reference)
    reference.mkdir(parents=True)
    torch.save({"state_dict": baseline.state_dict()}, reference / "epoch_1.pth")
    left = replace(request.sweep, settings={2: request.sweep.settings[2]})
    reports: list[TrialReport] = []
    train(replace(request, sweep=left), reports.append)
    assert [report.phase for report in reports] == ["epoch", "swept", "done"]
    assert reports[1].metrics["bbox_mAP"] == before[4].metrics["bbox_mAP"]
    assert reports[1].attrs["reference_trained"]


def test_images_are_those_of_the_split_scaled_and_padded(trained: Any, data: DataRequest) -> None:
    request, _ = trained
    config = trial_config(request, read_facts(data))
    model = build_model(config, seed=0)
    batches = sweep.validation_images(config, model, (96, 160), batch=2, count=5)
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(2, 3, 96, 160)] * 2
    samples = [sample for _, group in batches for sample in group]
    assert len({sample.img_path for sample in samples}) == 4
    # 64 x 64 scaled into 96 x 160, and zeros beside it.
    assert all(sample.img_shape == (96, 96) for sample in samples)
    assert all(sample.batch_input_shape == (96, 160) for sample in samples)
    for inputs, _ in batches:
        assert inputs[..., 96:].abs().max() == 0
        assert inputs[..., :96].std() > 0.1
    small = sweep.validation_images(config, model, (64, 64), batch=1, count=100)
    assert len(small) == 5
    ratio = measure_on_images(model, model, small, pairs=20, seconds=0.5)
    assert ratio.pairs >= 20
    assert 0.5 < ratio.ratio < 2


def test_reference_weights_are_the_newest(tmp_path: Path) -> None:
    assert sweep.reference_weights(None) is None
    assert sweep.reference_weights(str(tmp_path / "nowhere")) is None
    for epoch in (1, 2):
        torch.save({"state_dict": {"epoch": torch.tensor(epoch)}}, tmp_path / f"epoch_{epoch}.pth")
    found = sweep.reference_weights(str(tmp_path))
    assert found is not None
    assert found["epoch"] == 2
    (tmp_path / "epoch_3.pth").write_bytes(b"cut")
    again = sweep.reference_weights(str(tmp_path))
    assert again is not None
    assert again["epoch"] == 2
