"""Checkpoints that a kill at any moment cannot spoil, each with the report of its epoch inside."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from trainers import files
from trainers.contract import TrialRequest

_NAME = re.compile(r"epoch_(\d+)\.pth")
KEEP = 2


def fingerprint(request: TrialRequest) -> str:
    """Identifies what a checkpoint was trained for.

    A checkpoint of another design, schedule or seed must not be continued. Where data and folder lie, and what the
    trial runs on, may differ: trials move between machines.
    """
    value = request.to_json()
    data = value["data"]
    kept = {key: value[key] for key in ("base", "knobs", "epochs", "batch", "lr", "weights", "backbone", "seed")}
    kept.update(classes=data["classes"], size=data["size"])
    if request.dtype != "float32":
        kept["dtype"] = request.dtype  # the figures inside are of it
    if request.train_dtype is not None:
        kept["train_dtype"] = request.train_dtype
    if request.warm is not None:
        kept["warm_epochs"] = request.warm.epochs
    return sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def publish(folder: Path, epoch: int, checkpoint: Mapping[str, Any]) -> Path:
    """Writes the checkpoint of an epoch so that it is there whole or not at all, and removes the oldest ones.

    mmengine's own hook removes the old file first and writes into the new one's place, so a kill in between leaves
    nothing to continue from.

    Args:
        folder: The trial's folder.
        epoch: Finished epochs.
        checkpoint: What to save; must load with ``weights_only``.

    Returns:
        Path of ``epoch_N.pth``, which is on disk when this returns.

    Raises:
        Exception: It could not be written, the disk being full for instance; those that were there are there.
    """
    path = folder / f"epoch_{epoch}.pth"
    with files.whole(path) as temporary, open(temporary, "wb") as file:
        torch.save(dict(checkpoint), file)
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)
    for _, old in checkpoints(folder)[KEEP:]:
        old.unlink(missing_ok=True)
    return path


def newest(folder: Path, mark: str) -> tuple[Path, dict[str, Any]] | None:
    """Loads the newest good checkpoint of a folder.

    Args:
        folder: The trial's folder.
        mark: ``fingerprint`` of the request.

    Returns:
        Its path and content; ``None`` where there is none. Damaged files are renamed to ``.broken`` and those of
        another request to ``.stale``, so that neither counts as this trial's newest again.
    """
    for epoch, path in checkpoints(folder):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            good = content["meta"]["epoch"] == epoch and "state_dict" in content
        except Exception:  # torch raises whatever its unpickler met in the damaged file
            good = False
        if not good:
            os.replace(path, path.with_suffix(".broken"))
        elif content["meta"].get("fingerprint") != mark:
            os.replace(path, path.with_suffix(".stale"))
        else:
            return path, content
    return None


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Lists the epochs and files of a folder's checkpoints, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("epoch_*.pth") if (match := _NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def _sync(folder: Path) -> None:
    """Makes a rename outlive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
