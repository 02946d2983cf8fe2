"""Writes the bundle of a trial: a folder that runs where only mmdet is installed."""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from analysis.bundle.config import bundle_config, detector_type, network_config, own_modules, palette, read_trial_config
from analysis.bundle.data import ValidationData, read_validation, remember, some_images
from analysis.bundle.drawing import draw
from analysis.bundle.heads import copy_heads
from analysis.bundle.latency import BASELINE, latency_section, on_images
from analysis.bundle.onnx_graph import check_kind, write_onnx
from analysis.bundle.process import run_alone
from analysis.bundle.readme import make_readme
from analysis.bundle.receipt import NAME, hash_files, make_receipt
from analysis.record import TrialRecord, TrialState
from spaces.errors import HeadwayError, UserError
from spaces.patching import split
from spaces.registry import families
from trainers.contract import DataRequest

PICTURES = 3
_BASELINE = "# The network that the latency is compared with: the base without any change, untrained.\n"


def export_bundle(
    record: TrialRecord,
    *,
    study_folder: Path,
    study: Mapping[str, Any],
    data: DataRequest,
    fingerprint: str | None,
    out: Path,
    why: str,
    baseline: TrialRecord | None = None,
    onnx: str = "raw",
) -> Path:
    """Writes the bundle of a COMPLETE trial.

    It is written beside ``out``, loaded there in a process without Headway, and renamed when whole; a failure leaves
    nothing behind.

    Args:
        record: The trial.
        study_folder: The study's folder, in which the trial's folder lies.
        study: The dumped study file.
        data: The data set.
        fingerprint: Of the data set, as ``trainers.data`` gives it.
        out: The folder to write; must not exist, or be empty.
        why: Why this trial was picked, in one sentence.
        baseline: Trial 0, whose network goes along as ``baseline.py`` so that the latency can be measured again.
        onnx: Outputs of the ONNX graph: ``raw``, those of the head; ``nms``, detections; ``none``, no graph.

    Returns:
        The bundle's folder, absolute.

    Raises:
        UserError: The trial is not COMPLETE, ``out`` is taken or cannot be written, or the validation data is gone.
        HeadwayError: The trial's checkpoint or config is gone or damaged, the design cannot be bundled, or the bundle
            does not load.
    """
    check_kind(onnx)
    out = out.expanduser().absolute()
    if record.state is not TrialState.COMPLETE:
        reason = f" ({record.reason})" if record.reason else ""
        raise UserError(f"--pick: must be a COMPLETE trial, but trial {record.number} is {record.state.value}{reason}.")
    _check_out(out)
    _check_shippable(record)
    trial_folder = study_folder / record.folder
    # The trained detector is one; the settings of its inference knobs stand in a config each.
    own = trial_folder / f"config.{record.point}.py"
    config = read_trial_config(own if own.is_file() else trial_folder / "config.py")
    weights = _weights(record, trial_folder)
    validation = read_validation(Path(data.val_annotations), Path(data.val_images))
    ours, needs = own_modules(config)
    heads = copy_heads(ours)
    reference = None
    if baseline is not None and not record.baseline and not on_images(record.knobs):
        reference = network_config(read_trial_config(study_folder / baseline.folder / "config.py"), heads)

    with _published(out) as folder:
        text = bundle_config(
            config, heads, data.classes, validation.annotations.name, validation.images.name or "images"
        )
        title = f"# {study.get('name', 'A study')}, trial {record.label}: a bundle made by Headway. See README.md.\n"
        _write(folder / "config.py", title + text)
        for name, source in heads.files.items():
            _write(folder / "heads" / heads.package / name, source)
        if reference is not None:
            _write(folder / BASELINE, _BASELINE + reference)
        _save(weights, data.classes, folder / "weights.pth")
        loaded = _draw(folder, validation, data.classes)
        receipt = make_receipt(
            record,
            study=study,
            data=data,
            fingerprint=fingerprint,
            validation=validation,
            why=why,
            needs=needs,
            versions=loaded["versions"],
            packages=loaded["packages"],
            latency=latency_section(record, baseline, study, has_config=reference is not None),
            onnx=write_onnx(folder, onnx, record.knobs, validation),
        )
        _write(folder / "README.md", make_readme(receipt, detector_type(config), heads.package))
        receipt["files"] = hash_files(folder)
        _write(folder / NAME, json.dumps(receipt, indent=2, allow_nan=False) + "\n")
    remember(validation)
    return out


def _check_out(out: Path) -> None:
    """Refuses a place that is taken, before any work.

    Raises:
        UserError: It is.
    """
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise UserError(f"--out: must be a folder that can be written, but {out} gives: {error.strerror}.") from error
    if taken:
        kind = "a folder with files in it" if out.is_dir() else "a file"
        raise UserError(f"--out: must be a new or empty folder, but {out} is {kind}.")


def _check_shippable(record: TrialRecord) -> None:
    """Refuses a network that is for training only.

    Raises:
        UserError: It is one.
    """
    for name, values in split(record.knobs).items():
        tests = families()[name].kept_back
        if tests and all(test.holds(values) for test in tests):
            knobs = ", ".join(f"{name}.{test.knob} {values[test.knob]}" for test in tests)
            raise UserError(
                f"--pick: must be a network that is made to run, but trial {record.label} has {knobs}, "
                "whose network is for training only."
            )


@contextlib.contextmanager
def _published(out: Path) -> Iterator[Path]:
    """Gives a folder beside ``out`` that gets its name when the block ends, and vanishes when the block fails.

    Raises:
        UserError: Nothing can be written there.
    """
    made = [parent for parent in out.parents if not parent.exists()]
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            part.mkdir()
        except OSError as error:
            raise UserError(f"--out: must be writable, but {out} gives: {error.strerror}.") from error
        yield part
        try:
            part.rename(out)
        except OSError as error:
            raise UserError(f"--out: must be a new or empty folder, but {out} gives: {error.strerror}.") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: must be writable, but {path.parent} gives: {error.strerror}.") from error


def _weights(record: TrialRecord, folder: Path) -> dict[str, Any]:
    """Reads the weights whose accuracy the record tells.

    Raises:
        HeadwayError: The checkpoint is gone, damaged or another one.
    """
    import torch

    who = f"bundle: trial {record.number}"
    path = _checkpoint(record, folder)
    if path is None:
        raise HeadwayError(f"{who} has no checkpoint any more: there is none in {folder}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        weights = {name: value for name, value in content["state_dict"].items() if isinstance(value, torch.Tensor)}
    except Exception as error:  # torch raises whatever its unpickler met in a damaged file
        raise HeadwayError(f"{who}: its checkpoint {path} cannot be read: {type(error).__name__}: {error}") from error
    meta = content.get("meta", {})
    # A trial of two phases keeps the second's epochs; the first has checkpoints of its own.
    learning = record.attrs.get("learning_epochs", 0)
    epochs = max((epoch.epoch - learning for epoch in record.curve), default=meta.get("epoch"))
    if meta.get("epoch") != epochs:
        raise HeadwayError(f"{who} was trained for {epochs} epochs, but {path} is of epoch {meta.get('epoch')}.")
    told, stored = record.metrics.get("bbox_mAP", math.nan), (meta.get("metrics") or {}).get("bbox_mAP")
    if not math.isfinite(told):
        raise HeadwayError(f"{who} has no accuracy (bbox_mAP), so its bundle could not be verified.")
    if not record.point and stored is not None and abs(stored - told) > 1e-6:
        raise HeadwayError(f"{who} has AP {told:.4f}, but {path} is of one with {stored:.4f}.")
    return weights


def _checkpoint(record: TrialRecord, folder: Path) -> Path | None:
    """The checkpoint that the trial named, wherever the study lies now; else the newest of its folder."""
    from trainers.checkpoint import checkpoints

    named = str(record.attrs.get("checkpoint", ""))
    for path in (folder / Path(named).name, Path(named)):
        if named and path.is_file():
            return path
    return next((path for _, path in checkpoints(folder)), None)


def _save(weights: Mapping[str, Any], classes: tuple[str, ...], path: Path) -> None:
    import torch

    # Clones of their own: no views into larger buffers, and the plain memory layout.
    tensors = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
    meta = {"dataset_meta": {"classes": tuple(classes), "palette": palette(len(classes))}}
    try:
        torch.save({"meta": meta, "state_dict": tensors}, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        raise UserError(f"--out: must be writable, but {path.parent} gives: {error}.") from error


def _draw(folder: Path, validation: ValidationData, classes: tuple[str, ...]) -> dict[str, Any]:
    """Loads the unfinished bundle without Headway and draws what it detects.

    Returns:
        What it was loaded with: ``versions`` and ``packages``.
    """
    chosen = some_images(validation.content, PICTURES)
    paths = [validation.images / image["file_name"] for image in chosen]
    found = run_alone(folder, detect=paths)
    (folder / "detections").mkdir()
    known = {item["id"] for item in validation.content["categories"] if item["name"] in classes}
    for number, (image, path, detections) in enumerate(zip(chosen, paths, found["detections"], strict=True), 1):
        truth = [
            item["bbox"]
            for item in validation.content["annotations"]
            if item["image_id"] == image["id"] and item["category_id"] in known
        ]
        draw(path, detections, truth, classes, folder / "detections" / f"{number}.jpg")
    return found
