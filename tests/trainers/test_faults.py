"""Faults around a trial: told apart by what they are, and met in real trainings of a tiny GFL."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers import checkpoint, faults
from trainers.contract import DataRequest, MachineUnfit, TrialFailed, TrialInterrupted, TrialReport, TrialRequest
from trainers.detector import train

_BASE = """
_base_ = {base!r}
custom_imports = dict(imports=["faulty_base"], allow_failed_imports=False)
custom_hooks = [dict(type="FaultyHook", what={what!r})]
"""
# A base's own code, which does what a machine does to it.
_HOOKS = """
import os, signal
import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module(force=True)
class FaultyHook(Hook):
    def __init__(self, what):
        self.what = what

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.what == "memory in training" and runner.epoch == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if self.what == "statistics" and runner.epoch == 1:
            norms = [one for one in runner.model.modules() if isinstance(one, torch.nn.modules.batchnorm._BatchNorm)]
            norms[0].running_mean[0] = float("nan")
        if self.what == "infinite" and runner.epoch == 1:
            outputs["loss_cls"] = torch.tensor(float("inf"))
        if self.what == "loader":
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.what == "memory in validation" and len(data_batch["inputs"]) > 1:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
"""


@pytest.fixture
def request_(request_: TrialRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialRequest:
    """As everywhere, where a base may bring the hooks along."""
    (tmp_path / "faulty_base.py").write_text(_HOOKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return request_


def faulty(request: TrialRequest, what: str) -> TrialRequest:
    """The request with a base that meets a fault."""
    from trainers.config import BASES

    base = Path(request.folder).with_name("base.py")
    base.write_text(_BASE.format(base=str(BASES / "gfl_nano.py"), what=what))
    return replace(request, base=str(base))


def run(request: TrialRequest) -> list[TrialReport]:
    reports: list[TrialReport] = []
    train(request, reports.append)
    return reports


def test_too_little_memory_in_validation_is_met_with_a_smaller_batch(request_: TrialRequest) -> None:
    whole = run(request_)
    short = replace(faulty(request_, "memory in validation"), folder=request_.folder + "_m")
    with pytest.raises(TrialInterrupted, match=r"^CUDA out of memory: .*; it goes on with a validation batch of 1$"):
        run(short)
    after = run(short)
    assert all(report.attrs["val_batch"] == 1 for report in after)
    clocks = {"train_seconds", "val_seconds", "peak_memory_mb"}
    for ours, theirs in zip(after, whole, strict=True):
        assert ours.phase == theirs.phase
        # The size of a validation batch changes no figure.
        same = [{k: v for k, v in report.metrics.items() if k not in clocks} for report in (ours, theirs)]
        assert same[0] == same[1]
    assert "val_batch=1" not in (Path(request_.folder) / "config.py").read_text()


def test_too_little_memory_twice_is_the_end(request_: TrialRequest) -> None:
    request = faulty(request_, "memory in training")
    with pytest.raises(TrialInterrupted, match="CUDA out of memory"):
        run(request)
    assert [epoch for epoch, _ in checkpoint.checkpoints(Path(request.folder))] == [1]
    with pytest.raises(TrialFailed) as told:
        run(request)
    assert str(told.value) == (
        "CUDA out of memory twice, the second time with a validation batch of 1: training broke in epoch 2: "
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.; lower training.batch or data.size."
    )


def test_too_little_memory_where_nothing_can_be_lowered(request_: TrialRequest) -> None:
    with pytest.raises(TrialFailed, match=r"^CUDA out of memory, and the validation batch is 1 already: "):
        run(replace(faulty(request_, "memory in training"), batch=1))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("statistics", r"^backbone\..*running_mean is not finite after epoch 2: the training diverged"),
        ("infinite", r"^loss_cls became inf in epoch 2, iteration 1 of 2: the training diverged"),
    ],
)
def test_what_is_not_finite_fails_the_trial(request_: TrialRequest, what: str, reason: str) -> None:
    request = faulty(request_, what)
    for epochs in ([], [1]):  # at first, and after a continuation
        assert [epoch for epoch, _ in checkpoint.checkpoints(Path(request.folder))] == epochs
        with pytest.raises(TrialFailed, match=reason):
            run(request)


def test_a_killed_data_loader_interrupts(request_: TrialRequest) -> None:
    with pytest.raises(
        TrialInterrupted, match=r"^a data loader ended: RuntimeError: DataLoader worker \(pid 7\) is killed"
    ):
        run(faulty(request_, "loader"))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_unreadable_image_fails_the_trial_and_is_named(request_: TrialRequest, workers: int, split: str) -> None:
    from trainers.digits import write_digits

    paths = write_digits(Path(request_.folder).with_name("own"), train=8, val=4, size=(64, 64), seed=0)
    data = replace(request_.data, **{name: str(getattr(paths, name)) for name in (
        "train_annotations", "train_images", "val_annotations", "val_images")})  # fmt: skip
    listed = json.loads(Path(getattr(data, f"{split}_annotations")).read_text())["images"]
    image = Path(getattr(data, f"{split}_images")) / listed[2]["file_name"]
    image.write_bytes(b"no image at all")
    with pytest.raises(TrialFailed) as told:
        run(replace(request_, data=data, workers=workers))
    assert str(told.value).startswith(f"the image {image} cannot be used: "), told.value
    assert len(str(told.value)) < 450
    image.unlink()  # its storage may be away for a while
    with pytest.raises(TrialInterrupted, match=f"^the image {image} cannot be used: FileNotFoundError"):
        run(replace(request_, data=data, workers=workers))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_loses_nothing(request_: TrialRequest, small_disk: Path) -> None:
    request = replace(request_, folder=str(small_disk / "trial"))
    filler = small_disk / "filler"

    def fill(message: TrialReport) -> None:
        if (message.phase, message.epoch) == ("epoch", 1):
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))

    with pytest.raises(MachineUnfit) as told:
        train(request, fill)
    assert str(told.value).startswith(f"the disk of the study's folder is full ({request.folder}"), told.value
    folder = Path(request.folder)
    assert [epoch for epoch, _ in checkpoint.checkpoints(folder)] == [1]
    assert not list(folder.rglob(".*.tmp"))
    filler.unlink()
    assert [(report.phase, report.epoch) for report in run(request)] == [("epoch", 1), ("epoch", 2), ("done", 2)]


def test_words_and_numbers_that_tell_of_a_full_disk() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert faults.full_disk(OSError(number, os.strerror(number))) is not None
    assert (
        faults.full_disk(RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")) is not None
    )
    assert faults.full_disk(OSError(errno.EIO, "")) is None
    # torch tells of its writer, and the cause lies below.
    writer = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    assert faults.full_disk(writer) is None
    writer.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert faults.full_disk(writer) is writer.__context__
    shared = RuntimeError("unable to write to file </torch_7_1>: No space left on device (28)")
    assert faults.full_disk(shared) is None
    request: Any = replace(_REQUEST, folder="/nowhere")
    for error, kind in (
        (shared, TrialInterrupted),
        (MemoryError(), TrialInterrupted),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
            TrialInterrupted,
        ),
        (sqlite_full(), MachineUnfit),
        (ValueError("a shape does not fit"), ValueError),
    ):
        with pytest.raises(kind), faults.told(request):
            raise error


def sqlite_full() -> Exception:
    import sqlite3

    return sqlite3.OperationalError("database or disk is full")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = checkpoint.publish(tmp_path, 1, {"meta": {"epoch": 1}, "state_dict": {}})
    before = first.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    for epoch in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            checkpoint.publish(tmp_path, epoch, {"meta": {"epoch": epoch}, "state_dict": {"a": torch.zeros(3)}})
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_1.pth"]
    assert first.read_bytes() == before


_REQUEST = TrialRequest(
    number=0,
    base="headway::gfl_nano",
    knobs={},
    data=DataRequest(
        train_annotations="a", train_images="b", val_annotations="c", val_images="d", classes=("x",), size=(64, 64)
    ),
    folder="f",
    epochs=1,
)
