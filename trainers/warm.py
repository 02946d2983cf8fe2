"""The shared warm start: one training of the base, from which every trial of a study continues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainers import checkpoint
from trainers.contract import TrialFailed, TrialReport, TrialRequest


def request(trial: TrialRequest) -> TrialRequest:
    """Gives the training of the base that a trial starts from: a folder and epochs of its own, no measurements."""
    assert trial.warm is not None
    return replace(
        trial,
        knobs={},
        weights="scratch",
        folder=trial.warm.folder,
        epochs=trial.warm.epochs,
        seed=trial.seed if trial.warm.seed is None else trial.warm.seed,
        speed=None,
        sweep=None,
        warm=None,
        early_val=None,
    )


def report(trial: TrialRequest, meta: Mapping[str, Any], seconds: float) -> TrialReport:
    """Gives the report of one of its epochs.

    Args:
        trial: The baseline's request.
        meta: ``epoch`` and ``metrics`` of the epoch.
        seconds: Of this start.

    Returns:
        A report of the phase ``warm``; the last epoch's has ``warm_epochs`` and ``warm_metrics`` in ``attrs``.
    """
    assert trial.warm is not None
    metrics = dict(meta["metrics"])
    last = meta["epoch"] >= trial.warm.epochs
    attrs = {"warm_epochs": trial.warm.epochs, "warm_metrics": metrics} if last else {}
    return TrialReport(phase="warm", epoch=meta["epoch"], metrics=metrics, seconds=seconds, attrs=attrs)


def finished(trial: TrialRequest) -> dict[str, Any] | None:
    """Reads the ``meta`` of the finished warm start, ``None`` while it is not finished, damaged or another one's."""
    try:
        found: dict[str, Any] = _last(trial)["meta"]
    except TrialFailed:
        return None
    return found


def weights(trial: TrialRequest) -> Mapping[str, Any]:
    """Reads the weights of the finished warm start. Nothing is changed, since many trials read at once.

    Raises:
        TrialFailed: It is not there, or cannot be used; the message says why.
    """
    found: Mapping[str, Any] = _last(trial)["state_dict"]
    return found


def _last(trial: TrialRequest) -> dict[str, Any]:
    """Reads the checkpoint of its last epoch."""
    warm = request(trial)
    path = Path(warm.folder) / f"epoch_{warm.epochs}.pth"
    who = "the shared warm start (weights.from: baseline)"
    cure = "The baseline trains it; run the study again under another name."
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        mark, epoch = content["meta"].get("fingerprint"), content["meta"]["epoch"]
        whole = "state_dict" in content and epoch == warm.epochs
    except FileNotFoundError as error:
        raise TrialFailed(f"{who} is gone: there is no {path}. {cure}") from error
    except Exception as error:  # torch raises whatever its unpickler met in the damaged file
        first = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise TrialFailed(f"{who} cannot be read: {path} gives {first}. {cure}") from error
    if not whole:
        raise TrialFailed(f"{who} cannot be read: {path} is no checkpoint of epoch {warm.epochs}. {cure}")
    if mark != checkpoint.fingerprint(warm):
        raise TrialFailed(f"{who} is another study's: {path} was trained with other settings. {cure}")
    return content
