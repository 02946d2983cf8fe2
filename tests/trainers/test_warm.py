"""Real trainings that continue from the shared warm start, of a nano GFL on a few digits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers import checkpoint, learning, warm
from trainers.contract import DataRequest, StopTrial, TrialFailed, TrialReport, TrialRequest, WarmRequest
from trainers.detector import train

SLIM = {"slimhead.levels": [0], "slimhead.ratio": 0.5, "slimhead.mode": "nearest"}
POD = {"pod.mode": "decompose", "pod.stages": [3], "pod.towers": [], "pod.learn_share": 0.5, "pod.transfer": True}
POD |= {"pod.tolerance": 0.05, "pod.round_channels": 1, "pod.zero_taps": "centre"}


def in_study(data: DataRequest, study: Path, number: int = 0, **more: Any) -> TrialRequest:
    """A trial of one epoch after a warm start of two."""
    usual = {
        "number": number,
        "base": "headway::gfl_nano",
        "knobs": {},
        "data": data,
        "folder": str(study / f"trials/{number:04d}"),
        "epochs": 1,
        "batch": 4,
        "weights": "baseline",
        "seed": 3,
        "count_size": (64, 64),
        "warm": WarmRequest(folder=str(study / "warm"), epochs=2),
    }
    return TrialRequest(**{**usual, **more})


def run(request: TrialRequest, stop: Callable[[TrialReport], bool] = lambda report: False) -> list[TrialReport]:
    """Reports up to the end, or to the one that kills the trial."""
    reports: list[TrialReport] = []

    def report(message: TrialReport) -> None:
        reports.append(message)
        if stop(message):
            raise StopTrial

    try:
        train(request, report)
    except StopTrial:
        assert stop(reports[-1])
    return reports


@pytest.fixture(scope="module")
def undisturbed(data: DataRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrialReport]]:
    """A study's folder after its baseline, and what that reported."""
    study = tmp_path_factory.mktemp("study")
    return study, run(in_study(data, study))


@pytest.fixture
def study(undisturbed: tuple[Path, list[TrialReport]], tmp_path: Path) -> Path:
    """A copy of that folder, to be spoiled."""
    return Path(shutil.copytree(undisturbed[0], tmp_path / "study"))


def phases(reports: list[TrialReport]) -> list[tuple[str, int]]:
    return [(report.phase, report.epoch) for report in reports]


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    _, path = checkpoint.checkpoints(Path(folder))[0]
    return dict(torch.load(path, weights_only=True)["state_dict"])


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_baseline_trains_the_warm_start_and_continues_from_it(
    data: DataRequest, undisturbed: tuple[Path, list[TrialReport]], tmp_path: Path
) -> None:
    study, reports = undisturbed
    assert phases(reports) == [("warm", 1), ("warm", 2), ("counted", 0), ("epoch", 1), ("done", 1)]
    first, last, counted, *_ = reports
    assert first.attrs == {}
    assert last.attrs == {"warm_epochs": 2, "warm_metrics": last.metrics}
    assert {"bbox_mAP", "loss"} <= last.metrics.keys()
    assert counted.attrs["copied_from_weights"] == 1.0
    seconds = [report.seconds for report in reports]
    assert seconds == sorted(seconds) and counted.seconds > last.seconds
    # The same as continuing from the checkpoint that it left.
    start = str(study / "warm/epoch_2.pth")
    alike = in_study(data, tmp_path, weights=start, warm=None)
    run(alike)
    assert equal(weights(alike.folder), weights(study / "trials/0000"))
    assert not equal(weights(study / "warm"), weights(study / "trials/0000"))
    # No pictures of a detector that nobody gets.
    assert not (study / "warm/pictures").exists()


def test_another_trial_only_reads_it(data: DataRequest, study: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (study / "warm").rglob("*")}
    reports = run(in_study(data, study, 1, knobs=SLIM))
    assert phases(reports) == [("counted", 0), ("epoch", 1), ("done", 1)]
    assert reports[0].attrs["copied_from_weights"] == 1.0
    assert {path: path.stat().st_mtime_ns for path in (study / "warm").rglob("*")} == before


def test_killed_in_the_warm_start_it_goes_on_there(
    data: DataRequest, undisturbed: tuple[Path, list[TrialReport]], tmp_path: Path
) -> None:
    request = in_study(data, tmp_path)
    assert phases(run(request, lambda report: report.phase == "warm")) == [("warm", 1)]
    with pytest.raises(TrialFailed, match=r"the shared warm start .* is gone: there is no .*epoch_2\.pth"):
        run(in_study(data, tmp_path, 1, knobs=SLIM))
    # Its first epoch is told again, not trained again.
    assert phases(run(request)) == phases(undisturbed[1])
    for folder in ("warm", "trials/0000"):
        assert equal(weights(tmp_path / folder), weights(undisturbed[0] / folder))


def test_killed_after_the_warm_start_it_is_told_and_not_trained_again(data: DataRequest, tmp_path: Path) -> None:
    request = in_study(data, tmp_path, epochs=2)
    before = run(request, lambda report: report.phase == "epoch")
    assert phases(before) == [("warm", 1), ("warm", 2), ("counted", 0), ("epoch", 1)]
    stamp = (tmp_path / "warm/epoch_2.pth").stat().st_mtime_ns
    after = run(request)
    assert phases(after) == [("warm", 2), ("epoch", 1), ("epoch", 2), ("done", 2)]
    assert (after[0].metrics, after[0].attrs) == (before[1].metrics, before[1].attrs)
    assert (tmp_path / "warm/epoch_2.pth").stat().st_mtime_ns == stamp


def spoil(path: Path, how: str) -> None:
    """Damages a checkpoint in one of the ways that it can be damaged."""
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "empty":
        torch.save({"meta": {"epoch": 2}}, path)
    else:
        content = torch.load(path, weights_only=True)
        torch.save({**content, "meta": {**content["meta"], "fingerprint": "another"}}, path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("gone", "is gone: there is no"),
        ("cut", "cannot be read: "),
        ("empty", "is no checkpoint of epoch 2"),
        ("other", "is another study's"),
    ],
)
def test_a_damaged_warm_start_fails_a_trial_with_the_reason(
    data: DataRequest, study: Path, how: str, words: str
) -> None:
    spoil(study / "warm/epoch_2.pth", how)
    there = sorted(path.name for path in (study / "warm").iterdir())
    with pytest.raises(TrialFailed, match=f"^the shared warm start .*{words}.* The baseline trains it; "):
        train(in_study(data, study, 1, knobs=SLIM), lambda report: None)
    # Reading renames nothing: the next one may be on a machine that reads it well.
    assert sorted(path.name for path in (study / "warm").iterdir()) == there


def test_the_baseline_mends_a_damaged_warm_start(data: DataRequest, study: Path) -> None:
    before = weights(study / "warm")
    spoil(study / "warm/epoch_2.pth", "cut")
    assert phases(run(in_study(data, study))) == [("warm", 1), ("warm", 2), ("epoch", 1), ("done", 1)]
    assert equal(weights(study / "warm"), before)


def test_a_warm_start_that_diverges_fails_the_baseline_and_says_where(data: DataRequest, tmp_path: Path) -> None:
    request = in_study(data, tmp_path, lr=1e9, warm=WarmRequest(folder=str(tmp_path / "warm"), epochs=4))
    with pytest.raises(TrialFailed, match=r"^in the shared warm start .*: loss\w* became (nan|inf) in epoch"):
        train(request, lambda report: None)


def test_what_it_was_trained_with_tells_warm_starts_apart(data: DataRequest, study: Path) -> None:
    longer = WarmRequest(folder=str(study / "warm"), epochs=3)
    assert warm.finished(in_study(data, study)) is not None
    for other in ({"warm": longer}, {"lr": 0.5}, {"seed": 4}):
        assert warm.finished(in_study(data, study, **other)) is None
    # Further seeds of a design continue from the study's own.
    own = WarmRequest(folder=str(study / "warm"), epochs=2, seed=3)
    assert warm.finished(in_study(data, study, seed=4, warm=own)) is not None
    # And trials apart that started from different ones.
    marks = {checkpoint.fingerprint(in_study(data, study, warm=one)) for one in (longer, own, None)}
    assert len(marks) == 3


def test_a_network_that_learns_starts_from_it_too(
    data: DataRequest, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "IMAGES", 8)
    reports = run(in_study(data, study, 1, knobs=POD, epochs=2))
    assert [report.phase for report in reports] == ["epoch", "learned", "counted", "epoch", "done"]
    # All but the layers that predict the scales.
    assert 0.95 < reports[0].attrs["copied_from_weights"] < 1
    counted = reports[2].attrs
    assert counted["copied_from_learned"] == 1.0 and "copied_from_weights" not in counted


def test_without_transfer_the_settled_network_starts_from_it(
    data: DataRequest, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "IMAGES", 8)
    reports = run(in_study(data, study, 1, knobs={**POD, "pod.transfer": False}, epochs=2))
    assert reports[2].attrs["copied_from_weights"] == 1.0
