"""A bundle's receipt: what it is, what was measured, on what, and the digest of every file."""

from __future__ import annotations

import json
import math
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from analysis.bundle.data import ValidationData
from analysis.bundle.onnx_graph import excluded_by
from analysis.record import TrialRecord
from spaces.errors import UserError
from trainers.contract import DataRequest

NAME = "receipt.json"
FORMAT = 1

_ROOT = Path(__file__).resolve().parents[2]
_IGNORED = ("__pycache__", ".DS_Store")
_UNITS = {
    "latency_pairs": "pairs of measurements",
    "gmacs": "10^9 multiply-adds",
    "head_gmacs": "10^9 multiply-adds",
    "params_m": "10^6 parameters",
    "activations_m": "10^6 values",
    "lr": "learning rate of the last step",
}
_UNIT_PATTERNS = (
    (r"(bbox|segm)_(mAP|AR).*", "share, 0 to 1"),
    (r".*_ratio(_q\d)?", "times the baseline"),
    (r".*_ms", "ms"),
    (r".*_mb", "10^6 bytes"),
    (r".*seconds", "s"),
    (r".*hours", "h"),
    (r"loss.*|.*_loss", "mean of the last epoch"),
)
# Settings of a study that say how a figure came about; its store and tracking server are nobody else's business.
_TOLD = (
    "name", "base", "space", "objectives", "constraints", "budget", "rungs", "weights", "training", "speed", "seed",
)  # fmt: skip
_FOLDERS = re.compile(r"(?<![\w:/.~])(?:~|[A-Za-z]:)?[/\\](?=\S)(?:[^\s/\\'\"]+[/\\])*")


def make_receipt(
    record: TrialRecord,
    *,
    study: Mapping[str, Any],
    data: DataRequest,
    fingerprint: str | None,
    validation: ValidationData,
    why: str,
    needs: list[str],
    versions: Mapping[str, str],
    packages: Mapping[str, str],
    latency: Mapping[str, Any] | None,
    onnx: Mapping[str, Any],
) -> dict[str, Any]:
    """Makes the receipt as plain JSON types, without a path of this machine and, so far, without ``files``.

    Args:
        record: The trial.
        study: The dumped study file.
        data: The data set.
        fingerprint: Of the data set, both splits, as ``trainers.data`` gives it.
        validation: The validation split.
        why: Why this trial was picked.
        needs: Modules of the base's own that the bundle needs besides mmdet.
        versions: What the bundle was loaded with when it was made.
        packages: Names of the distributions of mmcv, mmengine and mmdet.
        latency: How its latency was measured (see ``analysis.bundle.latency``), ``None`` where it was not.
        onnx: What became of the ONNX graph, as ``write_onnx`` gives it.
    """
    attrs = record.attrs
    receipt = {
        "format": FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "study": {key: study[key] for key in _TOLD if key in study},
        "trial": record.number,
        "point": record.label,
        "baseline": record.baseline,
        "state": record.state.value,
        "why": why,
        "knobs": dict(record.knobs),
        "metrics": {name: {"value": _number(value), "unit": unit(name)} for name, value in record.metrics.items()},
        "epochs": max((epoch.epoch for epoch in record.curve), default=None),
        "seed": attrs.get("seed", study.get("seed")),
        "image_size": {"width": data.size[0], "height": data.size[1]},
        "classes": list(data.classes),
        "data": {
            "fingerprint": fingerprint,
            "validation_fingerprint": validation.fingerprint,
            "validation_images": validation.count,
            "validation_annotations": validation.annotations.name,
        },
        "latency": latency,
        "formats": formats(record.knobs, onnx),
        "needs": needs,
        "environment": {
            "trained": {
                "versions": attrs.get("versions", {}),
                "device": attrs.get("device"),
                "speed_device": attrs.get("speed_device"),
                "speed_threads": attrs.get("speed_threads"),
                "backbone": attrs.get("backbone"),
                # Share of the parameters, 0 to 1, by where they were taken from; the last of them counts.
                "copied": {
                    source: attrs[f"copied_from_{source}"]
                    for source in ("base", "weights", "learned")
                    if f"copied_from_{source}" in attrs
                },
            },
            "exported": {
                "versions": dict(versions),
                "packages": dict(packages),
                "platform": f"{platform.system()} {platform.machine()}",
            },
            "headway": headway_version(),
        },
    }
    portable: dict[str, Any] = _portable(receipt)
    return portable


def formats(knobs: Mapping[str, Any], onnx: Mapping[str, Any]) -> dict[str, Any]:
    """Says in which formats a design can be had, and which knobs forbid which format and why.

    Args:
        knobs: The design.
        onnx: As ``write_onnx`` gives it.
    """
    others = {kind: by for kind, by in excluded_by(knobs).items() if kind != "onnx"}
    return {
        "pytorch": {"available": True, "file": "weights.pth"},
        "onnx": dict(onnx),
        **{kind: {"available": False, "reason": by[0]["reason"], "excluded_by": by} for kind, by in others.items()},
    }


def unit(metric: str) -> str:
    """Words the unit of a metric; empty where it has none."""
    found = (words for pattern, words in _UNIT_PATTERNS if re.fullmatch(pattern, metric))
    return _UNITS.get(metric) or next(found, "")


def hash_files(folder: Path) -> dict[str, str]:
    """Gives the SHA-256, in hex, of every file of a bundle but the receipt itself and what Python leaves behind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and str(name) != NAME and not set(name.parts) & set(_IGNORED):
            digest = sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            found[name.as_posix()] = digest.hexdigest()
    return found


def read_receipt(folder: Path) -> dict[str, Any]:
    """Reads the receipt of a bundle.

    Raises:
        UserError: There is no bundle, or its receipt cannot be understood.
    """
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"bundle: must be a folder that 'headway export' wrote, but {folder} has no {NAME}.")
    try:
        receipt = json.loads(path.read_text(encoding="utf-8"))
        if receipt["format"] != FORMAT:
            raise UserError(f"bundle: must have format {FORMAT}, but {path} has {receipt['format']!r}.")
        float(receipt["metrics"]["bbox_mAP"]["value"])
        if not all(isinstance(value, str) for value in receipt["files"].values()):
            raise TypeError("files must map names to digests")
        str(receipt["data"]["validation_fingerprint"]), dict(receipt["environment"]["exported"]["versions"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"bundle: must have a receipt that can be read, but {path} gives {reason}.") from error
    return dict(receipt)


def headway_version() -> dict[str, Any]:
    """Gives Headway's version and, in a checkout, its commit and whether files differ from it."""
    try:
        found: dict[str, Any] = {"version": version("headway")}
    except PackageNotFoundError:
        found = {"version": None}
    if (_ROOT / ".git").exists():
        commit = _git("rev-parse", "HEAD")
        if commit:
            found.update(commit=commit, modified=bool(_git("status", "--porcelain", "--untracked-files=no")))
    return found


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def _portable(value: Any) -> Any:
    """Copies JSON values with paths of this machine cut down to their last name."""
    if isinstance(value, Mapping):
        return {str(key): _portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(item) for item in value]
    if not isinstance(value, str):
        return value
    return Path(value).name if Path(value).is_absolute() else _FOLDERS.sub("", value)
