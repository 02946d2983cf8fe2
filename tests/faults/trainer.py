"""A trainer with figures in closed form, whose trials fail as they are told to."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from trainers import faults
from trainers.contract import Report, TrialFailed, TrialInterrupted, TrialReport, TrialRequest

CHECKPOINT = "checkpoint.json"
TRAINED = "trained.log"


def train(request: TrialRequest, report: Report) -> None:
    """Reports like a detector, told by ``$FAULTS``: ``{"epoch_seconds": s, "trials": {number: [kind, epoch]}}``.

    Each finished epoch is a line in ``trained.log`` after its checkpoint, a JSON file, has been published.
    """
    given = json.loads(os.environ.get("FAULTS", "{}"))
    with faults.told(request):
        play(request, report, given.get("trials", {}), given.get("epoch_seconds", 0.0))


def play(request: TrialRequest, report: Report, trials: dict[str, list[Any]], epoch_seconds: float) -> None:
    """Trains.

    Args:
        request: The trial.
        report: Takes its reports.
        trials: What some of the trials do, and while training which epoch.
        epoch_seconds: How long an epoch takes.
    """
    began = time.monotonic()
    folder = Path(request.folder)
    folder.mkdir(parents=True, exist_ok=True)
    _train(request, report, began, trials, epoch_seconds)


def figures(knobs: Any) -> tuple[float, float]:
    """Latency ratio and final accuracy of a design."""
    slimmed = len(knobs.get("slimhead.levels", ())) * (1 - knobs.get("slimhead.ratio", 1.0))
    layers = len(knobs.get("dcn.placement", ()))
    own = 0.02 * math.sin(sum(map(ord, json.dumps(knobs, sort_keys=True))))  # designs of a kind differ, too
    return 1 - 0.12 * slimmed + 0.05 * layers, 0.40 - 0.03 * slimmed + 0.008 * layers + own


def _train(
    request: TrialRequest, report: Report, began: float, trials: dict[str, list[Any]], epoch_seconds: float
) -> None:
    folder = Path(request.folder)
    kind, when = trials.get(str(request.number), ("", 0))
    ratio, accuracy = figures(request.knobs)

    def send(phase: Any, epoch: int, metrics: dict[str, float], **attrs: Any) -> None:
        report(TrialReport(phase=phase, epoch=epoch, metrics=metrics, seconds=time.monotonic() - began, attrs=attrs))

    checkpoint = folder / CHECKPOINT
    done = len(json.loads(checkpoint.read_text(encoding="utf-8"))) if checkpoint.exists() else 0
    if not done or request.speed is not None:
        send("counted", 0, {"gmacs": 10 * ratio, "head_gmacs": 5 * ratio, "params_m": 2 + len(request.knobs) / 10})
    if request.speed is not None:
        send("timed", 0, {**dict.fromkeys(("latency_ratio", "latency_ratio_q1", "latency_ratio_q3"), ratio),
                          "reference_ms": 20.0})  # fmt: skip
    if done:
        send("epoch", done, _reached(accuracy, done, request.epochs), resumed=done)
    for epoch in range(done + 1, request.epochs + 1):
        time.sleep(epoch_seconds)
        if kind and epoch == when:
            _suffer(kind, folder)
        _publish(checkpoint, json.dumps([*range(1, epoch + 1)]))
        with (folder / TRAINED).open("a", encoding="utf-8") as log:
            log.write(f"{epoch}\n")
        reached = _reached(accuracy, epoch, request.epochs)
        if kind == "nan" and epoch == when:
            reached["bbox_mAP"] = math.nan
        send("epoch", epoch, reached)
    send("done", request.epochs, {})


def _reached(accuracy: float, epoch: int, epochs: int) -> dict[str, float]:
    return {"bbox_mAP": accuracy * epoch / epochs, "loss": 1 / epoch}


def _suffer(kind: str, folder: Path) -> None:
    """Fails; what passes leaves a mark and comes once."""
    mark = folder / f"{kind}.came"
    first = not mark.exists()
    mark.touch()
    if kind == "trial_raises":
        raise TrialFailed("the loss is NaN at epoch 1")
    if kind == "loader_crash" and first:
        raise TrialInterrupted("a data loader process was killed")
    if kind == "cuda_oom" and first:
        # torch's own words; the next start is to be told to validate with one image at a time.
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if kind == "hung" and first:
        time.sleep(10_000)


def _publish(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
