"""Trials of two phases: what they report, what they leave, and that each phase goes on where it was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

import trainers.speed
from trainers import checkpoint, learning, sweep
from trainers.config import trial_config
from trainers.contract import DataRequest, SpeedRequest, StopTrial, TrialFailed, TrialReport, TrialRequest
from trainers.detector import build_model, train

ROOT = Path(__file__).parents[2]
POD = {
    "pod.mode": "decompose",
    "pod.stages": [4, 5],
    "pod.towers": [],
    "pod.tolerance": 0.0,  # so that the little that three epochs learn is decomposed and not rounded away
    "pod.round_channels": 1,
    "pod.zero_taps": "centre",
    "pod.transfer": True,
    "pod.learn_share": 0.6,
}
CLOCKS = ("train_seconds", "val_seconds", "peak_memory_mb", "latency", "measured", "reference")


@pytest.fixture(scope="module", autouse=True)
def _few_images() -> Iterator[None]:
    """The rule is tested by itself; the trials here look at 8 images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "IMAGES", 8)
        yield


def test_which_images_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "IMAGES", 500)
    many = learning.images_to_observe(1_000, flips=False)
    assert len(many) == len(set(many)) == 500 and many == learning.images_to_observe(1_000, flips=True)
    assert sorted(learning.images_to_observe(205, flips=False)) == list(range(205))
    again = learning.images_to_observe(205, flips=True)
    assert len(again) == 500 and sorted(again[:205]) == sorted(again[205:410]) == list(range(205))


def request_in(folder: Path, data: DataRequest, **more: Any) -> TrialRequest:
    usual = {"number": 1, "base": "headway::gfl_nano", "knobs": POD, "data": data, "folder": str(folder)}
    return TrialRequest(**{**usual, "epochs": 3, "batch": 4, "seed": 3, "count_size": (64, 64), **more})


def run(request: TrialRequest, stop_at: tuple[str, int] | None = None) -> list[TrialReport]:
    reports: list[TrialReport] = []

    def report(message: TrialReport) -> None:
        reports.append(message)
        if (message.phase, message.epoch) == stop_at:
            raise StopTrial

    if stop_at is None:
        train(request, report)
    else:
        with pytest.raises(StopTrial):
            train(request, report)
    return reports


def phases(reports: list[TrialReport]) -> list[tuple[str, int]]:
    return [(report.phase, report.epoch) for report in reports]


def weights(request: TrialRequest) -> dict[str, torch.Tensor]:
    _, path = checkpoint.checkpoints(Path(request.folder))[0]
    return dict(torch.load(path, weights_only=True)["state_dict"])


def figures(report: TrialReport) -> dict[str, float]:
    return {name: value for name, value in report.metrics.items() if not any(clock in name for clock in CLOCKS)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: DataRequest) -> tuple[TrialRequest, list[TrialReport]]:
    speed = SpeedRequest(size=(64, 64), pairs=2, seconds=0.0)
    request = request_in(tmp_path_factory.mktemp("undisturbed") / "trial", data, speed=speed)
    measure = trainers.speed.measure

    def watched(candidate: Any, baseline: Any, *args: Any, **more: Any) -> Any:
        given, base = candidate.state_dict(), baseline.state_dict()
        TIMED.append({name for name in given if name not in base or not torch.equal(given[name], base[name])})
        return measure(candidate, baseline, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers.speed, "measure", watched)
        return request, run(request)


TIMED: list[set[str]] = []  # weights in which the two detectors of a measurement differ


Whole = tuple[TrialRequest, list[TrialReport]]


def test_the_phases_in_their_order(undisturbed: Whole) -> None:
    _, reports = undisturbed
    assert phases(reports) == [
        ("epoch", 1), ("epoch", 2), ("learned", 2), ("counted", 0), ("timed", 0), ("epoch", 3), ("done", 3),
    ]  # fmt: skip
    seconds = [report.seconds for report in reports]
    assert seconds == sorted(seconds)
    learned = reports[2]
    assert learned.metrics["learned_bbox_mAP"] == reports[1].metrics["bbox_mAP"]
    assert learned.metrics["learning_latency_ratio"] > 0
    assert learned.attrs["learning_epochs"] == 2 and learned.attrs["scale_images"] == 8
    # R18: two blocks of two convolutions in each of the two stages.
    assert len(learned.attrs["scales"]) == 8
    assert {scale["images"] for scale in learned.attrs["scales"].values()} == {8}
    assert {(scale["channels"], scale["groups"]) for scale in learned.attrs["scales"].values()} == {(32, 1), (64, 1)}
    assert any(scale["d_h"] != 1 for scale in learned.attrs["scales"].values())
    json.dumps([report.attrs for report in reports])


def test_a_trained_network_is_not_timed_against_an_untrained_base(undisturbed: Whole) -> None:
    """The one finds more than the other, and suppresses more."""
    learning_network, settled = TIMED
    assert learning_network and all(".scale." in name for name in learning_network)
    assert not settled


def test_the_time_of_both_phases_counts(undisturbed: Whole) -> None:
    _, reports = undisturbed
    trained = sum(report.metrics["train_seconds"] for report in reports if report.phase == "epoch")
    assert reports[-1].attrs["train_seconds"] == pytest.approx(trained)


def test_what_is_left_is_the_settled_network(undisturbed: Whole) -> None:
    request, reports = undisturbed
    config = Config.fromfile(str(Path(request.folder) / "config.py"))
    assert config["headway"]["knobs"]["pod.mode"] == "fixed"
    scales = reports[2].attrs["scales"]
    for path, d_h, d_w in config["headway"]["knobs"]["pod.scales"]:
        assert (d_h, d_w) == pytest.approx((scales[path]["d_h"], scales[path]["d_w"]), abs=1e-6)
    model = build_model(config, seed=0)
    model.load_state_dict(weights(request))  # strict: no scale is left in it
    assert not any(".scale." in name for name in model.state_dict())
    assert sweep.validate(config, model)["bbox_mAP"] == reports[-2].metrics["bbox_mAP"]
    assert reports[-1].attrs["pictures"] and (Path(request.folder) / "pictures").is_dir()
    assert not (Path(request.folder) / "learning" / "pictures").exists()  # of the network that nobody gets


def test_the_learning_network_is_measured_before_it_is_settled(undisturbed: Whole) -> None:
    request, reports = undisturbed
    first = learning.first_phase(request)
    config = Config.fromfile(str(Path(first.folder) / "config.py"))
    learner = build_model(config, seed=0)
    learner.load_state_dict(weights(first))
    assert sweep.validate(config, learner)["bbox_mAP"] == reports[2].metrics["learned_bbox_mAP"]
    # The settled network with these weights, evaluated on its own.
    second = Config.fromfile(str(Path(request.folder) / "config.py"))
    settled = build_model(second, seed=1)
    settled.load_state_dict({name: value for name, value in weights(first).items() if ".scale." not in name})
    assert sweep.validate(second, settled)["bbox_mAP"] == reports[2].metrics["decomposed_bbox_mAP"]


@pytest.mark.parametrize("stop_at", [("epoch", 1), ("epoch", 2), ("learned", 2), ("counted", 0), ("timed", 0)])
def test_stopped_in_any_phase_and_continued_equals_undisturbed(
    stop_at: tuple[str, int], undisturbed: Whole, data: DataRequest, tmp_path: Path
) -> None:
    request = request_in(tmp_path / "trial", data, speed=undisturbed[0].speed)
    before = run(request, stop_at)
    after = run(request)
    assert phases(after)[-2:] == [("epoch", 3), ("done", 3)]
    learned = ("learned", 2)
    # Epochs that were trained before are not trained again; the last one is told again for the rung's sake.
    trained = [report.epoch for report in after if report.phase == "epoch" and not report.attrs.get("resumed")]
    told = [report.epoch for report in before if report.phase == "epoch"]
    assert trained == [epoch for epoch in (1, 2, 3) if epoch not in told]
    assert learned in phases(after)
    final, expected = weights(request), weights(undisturbed[0])
    assert final.keys() == expected.keys() and all(torch.equal(final[name], expected[name]) for name in final)
    assert figures(after[-2]) == figures(undisturbed[1][-2])
    again = next(report for report in after if report.phase == "learned")
    assert again.attrs["scales"] == undisturbed[1][2].attrs["scales"]


def test_killed_while_it_observes(undisturbed: Whole, data: DataRequest, tmp_path: Path) -> None:
    """A real kill; the images that were looked at are not looked at again."""
    request = request_in(tmp_path / "trial", data)
    script = tmp_path / "trial.py"
    script.write_text(
        "import json, sys\n"
        "from trainers import learning\n"
        "from trainers.contract import TrialRequest\n"
        "from trainers.detector import train\n"
        "learning._ROWS_A_WRITE, learning.IMAGES = 3, 8\n"
        "train(TrialRequest.from_json(json.loads(sys.argv[1])), lambda report: None)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), json.dumps(request.to_json())], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    observed = Path(request.folder) / learning.FOLDER / "observed.jsonl"
    end = time.monotonic() + 120
    while not observed.is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = observed.read_text().splitlines()
    assert len(lines) >= 1 + 3
    kept = lines[1:4]
    # What an image gave is marked, so that a second look at it would show.
    marked = [json.dumps({path: [2.5, 2.5] for path in json.loads(line)}) for line in kept]
    observed.write_text("\n".join([lines[0], *marked]) + "\n")
    (observed.parent / "learned.json").unlink(missing_ok=True)
    reports = run(request)
    assert phases(reports) == [("epoch", 2), ("learned", 2), ("counted", 0), ("epoch", 3), ("done", 3)]
    for path, scale in reports[1].attrs["scales"].items():
        plain = undisturbed[1][2].attrs["scales"][path]
        first = [json.loads(line)[path][0] for line in kept]
        assert scale["d_h"] == pytest.approx(plain["d_h"] + sum(2.5 - value for value in first) / 8)


def test_without_transfer_the_settled_network_starts_from_the_base(
    undisturbed: Whole, data: DataRequest, tmp_path: Path
) -> None:
    knobs = {**POD, "pod.transfer": False}
    reports = run(request_in(tmp_path / "trial", data, knobs=knobs))
    counted = next(report for report in reports if report.phase == "counted")
    assert counted.attrs["copied_from_base"] == 1.0 and "copied_from_learned" not in counted.attrs
    with_transfer = next(report for report in undisturbed[1] if report.phase == "counted")
    assert with_transfer.attrs["copied_from_learned"] == 1.0


def test_another_seed_does_not_take_what_was_learned(undisturbed: Whole) -> None:
    request, _ = undisturbed
    assert learning.read(request) is not None
    assert learning.read(replace(request, seed=4)) is None


def test_one_epoch_is_too_few(data: DataRequest, tmp_path: Path) -> None:
    with pytest.raises(TrialFailed, match="2 epochs or more, but the budget has 1"):
        run(request_in(tmp_path / "trial", data, epochs=1))


@pytest.mark.parametrize(("optimizer", "share"), [("AdamW", 0.1), ("SGD", 1.0)])
def test_scales_get_a_learning_rate_of_their_own(
    optimizer: str, share: float, undisturbed: Whole, data: DataRequest, tmp_path: Path
) -> None:
    base = Config.fromfile(str(ROOT / "trainers/bases/gfl_nano.py"))
    # mmengine takes the longest key that fits, whatever the base says of its whole backbone.
    base["optim_wrapper"] = {
        "type": "OptimWrapper",
        "optimizer": {"type": optimizer, "lr": 0.1, "weight_decay": 0.5},
        "paramwise_cfg": {"custom_keys": {"backbone.layer4": {"lr_mult": 0.5}}},
    }
    base.dump(str(tmp_path / "base.py"))
    request = learning.first_phase(request_in(tmp_path / "trial", data, base=str(tmp_path / "base.py")))
    config = trial_config(request)
    wrapper = build_optim_wrapper(build_model(config, seed=0), config["optim_wrapper"])
    rates = {(round(group["lr"], 6), group["weight_decay"]) for group in wrapper.param_groups}
    assert rates == {(0.1, 0.5), (0.05, 0.5), (round(0.1 * share, 6), 0.0)}
    scales = [group for group in wrapper.param_groups if group["weight_decay"] == 0.0]
    assert len(scales) == 16  # weight and bias of 8 convolutions
