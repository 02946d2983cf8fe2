"""The shared warm start: one training of the base, from which every design of a study continues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainers import checkpoint
from trainers.contract import TrialFailed, TrialRequest


def request(trial: TrialRequest) -> TrialRequest:
    """Gives the training of the base that a trial starts from: a folder and epochs of its own, no measurements."""
    assert trial.warm is not None
    return replace(
        trial,
        knobs={},
        weights="scratch",
        folder=trial.warm.folder,
        epochs=trial.warm.epochs,
        speed=None,
        sweep=None,
        warm=None,
    )


def weights(trial: TrialRequest) -> Mapping[str, Any]:
    """Reads the weights of the finished warm start.

    Raises:
        TrialFailed: It is not there, or not finished.
    """
    warm = request(trial)
    found = checkpoint.newest(Path(warm.folder), checkpoint.fingerprint(warm))
    if found is None or found[1]["meta"]["epoch"] < warm.epochs:
        raise TrialFailed(
            f"the shared warm start (weights.from: baseline) is gone from {warm.folder}; trial 0 makes it anew when the "
            "study is started in a new folder."
        )
    state: Mapping[str, Any] = found[1]["state_dict"]
    return state
