"""Two configs timed against each other in a process of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spaces.errors import HeadwayError
from trainers.config import load_base, read_facts, trial_config
from trainers.contract import DataRequest, TrialRequest
from trainers.detector import build_model
from trainers.digits import write_digits
from trainers.versus import Images, VersusRequest, versus

ASKED = VersusRequest(candidate="", baseline="", size=(96, 96), rounds=6, seconds=0.5)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("versus") / "plain.py"
    path.write_text(load_base("headway::gfl_nano").pretty_text)
    return path


def test_a_deeper_tower_takes_longer(plain: Path) -> None:
    config = load_base("headway::gfl_nano")
    config.model.bbox_head.stacked_convs += 8
    deeper = plain.with_name("deeper.py")
    deeper.write_text(config.pretty_text)
    found = versus(replace(ASKED, candidate=str(deeper), baseline=str(plain)))
    assert found.ratio > 1.2 and found.q1 <= found.ratio <= found.q3
    assert 0.7 < found.aa < 1.4  # the baseline's own second build is as fast, whatever the machine does
    assert found.ratio > 1.1 * found.aa
    assert found.rounds >= 6 and found.rounds % 6 == 0  # three detectors stand at each place equally often in six
    assert found.candidate_ms > found.baseline_ms > 0
    assert found.device


def test_a_config_that_cannot_be_built(plain: Path) -> None:
    broken = plain.with_name("broken.py")
    broken.write_text("model = dict(type='NoSuchDetector')\n")
    with pytest.raises(HeadwayError, match=r"latency: .*broken\.py could not be measured: .*NoSuchDetector"):
        versus(replace(ASKED, candidate=str(broken), baseline=str(plain)))


@pytest.mark.slow
def test_trained_detectors_on_images(tmp_path: Path) -> None:
    digits = write_digits(tmp_path / "data", train=2, val=3, size=(96, 96))
    data = DataRequest(
        train_annotations=str(digits.train_annotations), train_images=str(digits.train_images),
        val_annotations=str(digits.val_annotations), val_images=str(digits.val_images),
        classes=digits.classes, size=(96, 96),
    )  # fmt: skip
    request = TrialRequest(number=0, base="headway::gfl_nano", knobs={}, data=data, folder=str(tmp_path), epochs=1)
    config = trial_config(request, read_facts(data))
    (tmp_path / "config.py").write_text(config.pretty_text)
    torch.save({"state_dict": build_model(config, 0).state_dict()}, tmp_path / "weights.pth")
    weights = str(tmp_path / "weights.pth")
    asked = Images(
        weights=weights, baseline_weights=weights,
        annotations=str(digits.val_annotations), folder=str(digits.val_images), count=2,
    )  # fmt: skip
    own = str(tmp_path / "config.py")
    found = versus(replace(ASKED, candidate=own, baseline=own, images=asked))
    assert 0.6 < found.ratio < 1.6 and found.rounds >= 6
    # Weights that are not the config's are told, not left out.
    torch.save({"state_dict": {"other": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(HeadwayError, match=r"latency: .*config\.py could not be measured"):
        versus(replace(ASKED, candidate=own, baseline=own, images=replace(asked, weights=str(tmp_path / "other.pth"))))
