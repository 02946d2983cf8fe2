"""Real trainings of a tiny GFL on a few digits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers import checkpoint, speed
from trainers.contract import SpeedRequest, StopTrial, TrialFailed, TrialReport, TrialRequest
from trainers.detector import train
from trainers.process import run_in_fresh_process

ROOT = Path(__file__).parents[2]
SLIM = {"slimhead.levels": [0], "slimhead.ratio": 0.5, "slimhead.mode": "nearest"}
# What differs between two runs of the same trial.
CLOCKS = {"train_seconds", "val_seconds", "peak_memory_mb"}


def run(
    request: TrialRequest, stop: Callable[[TrialReport], bool] = lambda report: False, trainer: Any = train
) -> list[TrialReport]:
    reports: list[TrialReport] = []

    def report(message: TrialReport) -> None:
        reports.append(message)
        if stop(message):
            raise StopTrial

    if any(stop(TrialReport(phase="epoch", epoch=epoch, metrics={})) for epoch in range(1, request.epochs + 1)):
        with pytest.raises(StopTrial):
            trainer(request, report)
    else:
        trainer(request, report)
    return reports


def phases(reports: list[TrialReport]) -> list[tuple[str, int]]:
    return [(report.phase, report.epoch) for report in reports]


def figures(report: TrialReport) -> dict[str, float]:
    return {name: value for name, value in report.metrics.items() if name not in CLOCKS}


def weights(request: TrialRequest) -> dict[str, torch.Tensor]:
    _, path = checkpoint.checkpoints(Path(request.folder))[0]
    content = torch.load(path, weights_only=True)
    return dict(content["state_dict"])


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def stop_after_one(report: TrialReport) -> bool:
    return report.phase == "epoch" and report.epoch == 1


def test_reports_are_complete_and_ordered(request_: TrialRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = []

    @contextmanager
    def lease(path: str | None) -> Iterator[float]:
        leases.append(path)
        yield 0.5

    monkeypatch.setattr(speed, "exclusive", lease)
    request = replace(request_, speed=SpeedRequest(size=(64, 64), pairs=2, seconds=0.0, lease="lease"))
    reports = run(request)
    assert phases(reports) == [("counted", 0), ("timed", 0), ("epoch", 1), ("epoch", 2), ("done", 2)]
    counted, timed, first, second, done = reports
    assert {"gmacs", "head_gmacs", "params_m"} <= counted.metrics.keys()
    assert counted.attrs["copied_from_base"] == 1.0
    # The baseline's ratio is 1 by definition; what two equal detectors gave is told beside it.
    assert timed.metrics["latency_ratio"] == timed.metrics["latency_ratio_q1"] == 1.0
    assert timed.metrics["aa_ratio_q1"] <= timed.metrics["aa_ratio"] <= timed.metrics["aa_ratio_q3"]
    assert timed.metrics["reference_ms"] > 0 and timed.metrics["latency_pairs"] == 2
    # The map of the time is made under the same lease.
    assert (list(filter(None, leases)), timed.attrs["speed_waited"]) == (["lease"], 0.5)
    spent = timed.attrs["time"]["parts"]
    assert sum(row["share"] for row in spent) == pytest.approx(1, abs=1e-3)
    assert {"backbone", "neck", "towers", "projections", "decoding"} <= {row["part"] for row in spent}
    for report in (first, second):
        assert {"bbox_mAP", "loss", "loss_cls", "lr", "train_seconds", "val_seconds"} <= report.metrics.keys()
        assert report.metrics["peak_memory_mb"] > 100
        assert all(value >= 0 for value in report.metrics.values())
    seconds = [report.seconds for report in reports]
    assert seconds == sorted(seconds)
    assert Path(done.attrs["checkpoint"]).name == "epoch_2.pth"
    json.dumps([report.attrs for report in reports])
    folder = Path(request.folder)
    assert (folder / "config.py").is_file() and (folder / "train.log").stat().st_size
    assert not list(folder.glob(".*.tmp"))


def test_a_design_is_trained_from_the_bases_weights(request_: TrialRequest) -> None:
    request = replace(request_, number=1, knobs=SLIM, epochs=1, speed=SpeedRequest(size=(64, 64), pairs=2, seconds=0.0))
    counted, timed, *_ = run(request)
    assert 0.5 < counted.attrs["copied_from_base"] <= 1
    assert timed.metrics["latency_ratio"] > 0
    assert "aa_ratio" not in timed.metrics


def test_stopped_and_resumed_equals_undisturbed(request_: TrialRequest) -> None:
    whole = run(request_)
    broken = replace(request_, folder=request_.folder + "_b")
    before = run(broken, stop_after_one)
    assert phases(before) == [("counted", 0), ("epoch", 1)]
    after = run(broken)
    # Epoch 1 is told again, not trained again.
    assert phases(after) == [("epoch", 1), ("epoch", 2), ("done", 2)]
    assert after[0].metrics == before[-1].metrics
    assert figures(after[1]) == figures(whole[2])
    assert equal(weights(broken), weights(request_))
    # A finished trial only reports, and draws the same pictures from its checkpoint's weights.
    assert phases(again := run(broken)) == [("epoch", 2), ("done", 2)]
    names = whole[-1].attrs["pictures"]
    assert len(names) == 4 and again[-1].attrs["pictures"] == after[-1].attrs["pictures"] == names
    drawn = [Path(request.folder) / "pictures" / name for request in (request_, broken) for name in names]
    assert [file.read_bytes() for file in drawn[:4]] == [file.read_bytes() for file in drawn[4:]]


def test_a_corrupt_checkpoint_falls_back_to_the_one_before(request_: TrialRequest) -> None:
    run(request_)
    final = weights(request_)
    newest = Path(request_.folder) / "epoch_2.pth"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert phases(run(request_)) == [("epoch", 1), ("epoch", 2), ("done", 2)]
    assert equal(weights(request_), final)
    assert (Path(request_.folder) / "epoch_2.broken").exists()


def test_a_checkpoint_of_another_design_is_not_continued(request_: TrialRequest) -> None:
    run(request_)
    assert phases(run(replace(request_, seed=4, epochs=1))) == [("counted", 0), ("epoch", 1), ("done", 1)]
    assert [epoch for epoch, _ in checkpoint.checkpoints(Path(request_.folder))] == [1]


def test_fresh_processes_and_this_one_agree(request_: TrialRequest) -> None:
    folders = [request_.folder + name for name in ("_a", "_b", "_c")]
    # This process has trained others before.
    here = run(replace(request_, folder=folders[0], epochs=1))
    fresh = [run(replace(request_, folder=folder, epochs=1), trainer=run_in_fresh_process) for folder in folders[1:]]
    for reports in fresh:
        assert phases(reports) == phases(here)
        assert figures(reports[1]) == figures(here[1])
        assert reports[0].metrics == here[0].metrics
    one, two, three = (weights(replace(request_, folder=folder)) for folder in folders)
    assert equal(two, three)
    assert equal(one, two)


def test_a_diverging_loss_fails_with_its_name(request_: TrialRequest) -> None:
    with pytest.raises(TrialFailed, match=r"loss\w* became (nan|inf).* in epoch \d, iteration \d"):
        train(replace(request_, lr=1e9, epochs=4), lambda report: None)


def test_loader_processes_change_nothing(request_: TrialRequest) -> None:
    alone = run(replace(request_, epochs=1))
    other = replace(request_, epochs=1, workers=1, folder=request_.folder + "_w")
    assert figures(run(other)[1]) == figures(alone[1])


def test_a_trial_runs_in_any_thread(request_: TrialRequest) -> None:
    reports: list[TrialReport] = []
    thread = threading.Thread(target=train, args=(replace(request_, epochs=1), reports.append))
    thread.start()
    thread.join()
    assert phases(reports)[-1] == ("done", 1)


def test_weights_of_a_checkpoint(request_: TrialRequest) -> None:
    run(replace(request_, epochs=1))
    start = str(Path(request_.folder) / "epoch_1.pth")
    warm = replace(request_, epochs=1, weights=start, folder=request_.folder + "_w")
    assert run(warm)[0].attrs["copied_from_weights"] == 1.0
    with pytest.raises(Exception, match="weights: must be a checkpoint"):
        train(replace(warm, weights="/nowhere.pth", folder=request_.folder + "_n"), lambda report: None)


def test_a_warm_start_is_timed_with_the_bases_own_weights(
    request_: TrialRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is not trained; what finds more suppresses more. Training then starts from the checkpoint."""
    run(replace(request_, epochs=1))
    start = Path(request_.folder) / "epoch_1.pth"
    measure, told = speed.measure, []

    def watched(candidate: Any, baseline: Any, *args: Any, **more: Any) -> Any:
        told.append(equal(candidate.state_dict(), baseline.state_dict()))
        return measure(candidate, baseline, *args, **more)

    monkeypatch.setattr(speed, "measure", watched)
    timed = SpeedRequest(size=(64, 64), pairs=2, seconds=0.0)
    warm = [
        replace(request_, epochs=1, weights=str(start), folder=f"{request_.folder}_{name}", speed=asked)
        for name, asked in (("timed", timed), ("untimed", None))
    ]
    for request in warm:
        run(request)
    assert told == [True]
    assert equal(weights(warm[0]), weights(warm[1]))


def test_a_fresh_process_tells_how_it_failed(request_: TrialRequest) -> None:
    def forget(report: TrialReport) -> None:
        return None

    with pytest.raises(Exception, match="base: must be an existing config"):
        run_in_fresh_process(replace(request_, base="headway::nothing"), forget)
    assert phases(run(replace(request_, folder=request_.folder + "_s"), stop_after_one, run_in_fresh_process)) == [
        ("counted", 0),
        ("epoch", 1),
    ]


def test_the_child_dies_with_its_parent(request_: TrialRequest, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import json, sys\n"
        "from trainers.contract import TrialRequest\n"
        "from trainers.process import run_in_fresh_process\n"
        "request = TrialRequest.from_json(json.loads(sys.argv[1]))\n"
        "run_in_fresh_process(request, lambda report: print(report.phase, flush=True))\n"
    )
    long = replace(request_, epochs=500)
    parent = subprocess.Popen(
        [sys.executable, str(script), json.dumps(long.to_json())],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "counted\n"
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 20
    while any(alive(child) for child in children) and time.monotonic() < end:
        time.sleep(0.1)
    assert children and not any(alive(child) for child in children)


def alive(process: str) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_ray_and_mlflow_are_never_imported() -> None:
    code = (
        "import sys, trainers.detector, trainers.process, trainers.loop, trainers.speed, trainers.config\n"
        "print([name for name in ('ray', 'mlflow', 'optuna', 'search') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == "[]"
