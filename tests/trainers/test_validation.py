"""Early epochs on a part of the validation split: what they see, and that nothing else depends on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers import learning
from trainers.contract import DataRequest, EarlyValidation, TrialReport, TrialRequest
from trainers.detector import build_model, train
from trainers.digits import write_digits
from trainers.sweep import validate
from trainers.validation import part


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> TrialRequest:
    folder = tmp_path_factory.mktemp("data")
    digits = write_digits(folder, train=8, val=9, size=(96, 96))
    data = DataRequest(
        train_annotations=str(digits.train_annotations),
        train_images=str(digits.train_images),
        # Learned by heart, so that there is an accuracy to compare.
        val_annotations=str(digits.train_annotations),
        val_images=str(digits.train_images),
        classes=digits.classes,
        size=(96, 96),
    )
    return TrialRequest(
        number=0, base="headway::gfl_nano", knobs={}, data=data, folder="", epochs=6, batch=1, lr=0.002,
        count_size=(96, 96),
    )  # fmt: skip


def run(request: TrialRequest) -> tuple[list[dict[str, float]], Any]:
    """The figures of the epochs, and the last checkpoint."""
    reports: list[TrialReport] = []
    train(request, reports.append)
    path = Path(request.folder) / f"epoch_{request.epochs}.pth"
    last = torch.load(path, map_location="cpu", weights_only=True)
    return [report.metrics for report in reports if report.phase == "epoch"], last


def test_early_epochs_see_a_part_and_the_rest_is_as_ever(request_: TrialRequest, tmp_path: Path) -> None:
    plain, whole = run(replace(request_, folder=str(tmp_path / "whole")))
    early = replace(request_, folder=str(tmp_path / "early"), early_val=EarlyValidation(images=3, epochs=5))
    figures, checkpoint = run(early)
    assert [epoch["val_images"] for epoch in figures] == [3.0] * 5 + [8.0]
    assert all("val_images" not in epoch for epoch in plain)
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, checkpoint["state_dict"][name]), name
    accuracy = [name for name in plain[-1] if name.startswith("bbox_")]
    assert accuracy and plain[-1]["bbox_mAP"] > 0
    assert {name: figures[-1][name] for name in accuracy} == {name: plain[-1][name] for name in accuracy}

    # The fifth epoch's figures are those of its weights on images 0, 2 and 5 of the eight.
    from trainers.config import trial_config

    config = trial_config(early)
    assert part(config["val_dataloader"], 8, 3)["dataset"]["indices"] == [0, 2, 5]
    fifth = torch.load(Path(early.folder) / "epoch_5.pth", map_location="cpu", weights_only=True)
    model = build_model(config, early.seed)
    model.load_state_dict(fifth["state_dict"])
    measured = validate(config, model, 3)
    assert measured == {name: value for name, value in figures[4].items() if name.startswith("bbox_")}
    assert measured != validate(config, model)


def test_more_images_than_there_are(request_: TrialRequest, tmp_path: Path) -> None:
    early = EarlyValidation(images=50, epochs=1)
    figures, _ = run(replace(request_, folder=str(tmp_path), epochs=1, early_val=early))
    assert figures[0]["val_images"] == 8.0


def test_a_trial_of_two_phases_has_one_last_epoch(request_: TrialRequest) -> None:
    knobs = {
        "pod.mode": "decompose", "pod.stages": [4], "pod.towers": [], "pod.tolerance": 0.0, "pod.round_channels": 1,
        "pod.zero_taps": "centre", "pod.transfer": True, "pod.learn_share": 0.6,
    }  # fmt: skip
    whole = replace(request_, knobs=knobs, epochs=10, early_val=EarlyValidation(images=3, epochs=9))
    assert TrialRequest.from_json(whole.to_json()) == whole
    assert learning.first_phase(whole).epochs == 6
    assert learning.first_phase(whole).early_val == EarlyValidation(images=3, epochs=6)
    learned = learning.Learned(scales={}, images=1, metrics={})
    assert learning.second_phase(whole, learned).early_val == EarlyValidation(images=3, epochs=3)
