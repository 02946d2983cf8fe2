"""Trainings in mixed precision, real ones of a tiny GFL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainers import checkpoint
from trainers.contract import Dtype, StopTrial, TrialReport, TrialRequest
from trainers.detector import train
from trainers.mixed import CPUAmpOptimWrapper


def newest(request: TrialRequest) -> dict[str, Any]:
    found = checkpoint.newest(Path(request.folder), checkpoint.fingerprint(request))
    assert found is not None
    return found[1]


@contextmanager
def seen() -> Iterator[dict[bool, set[torch.dtype]]]:
    """The types that convolutions compute in, by whether they train."""
    kinds: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def look(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(module, nn.Conv2d):
            kinds[torch.is_grad_enabled()].add(out.dtype)

    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        yield kinds
    finally:
        handle.remove()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_trains_in_the_type_and_is_validated_in_its_own(request_: TrialRequest, dtype: Dtype) -> None:
    short = replace(request_, train_dtype=dtype, folder=request_.folder + "_s")
    single: list[TrialReport] = []
    mixed: list[TrialReport] = []
    train(request_, single.append)
    with seen() as kinds:
        train(short, mixed.append)
    assert kinds == {True: {getattr(torch, dtype)}, False: {torch.float32}}
    ours, theirs = newest(short), newest(request_)
    state = ours["state_dict"]
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    assert state.keys() == theirs["state_dict"].keys()
    one, other = (
        next(item for item in reports if item.phase == "epoch").metrics["loss"] for reports in (mixed, single)
    )
    # 8 bits of mantissa; two steps.
    assert one == pytest.approx(other, rel=0.02) and one != other
    assert ours["optimizer"]["loss_scaler"] == {} if dtype == "bfloat16" else ours["optimizer"]["loss_scaler"]["scale"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stopped_and_resumed_equals_undisturbed(request_: TrialRequest, dtype: Dtype) -> None:
    whole = replace(request_, train_dtype=dtype)
    train(whole, lambda message: None)
    broken = replace(whole, folder=whole.folder + "_b")

    def stop(message: TrialReport) -> None:
        if message.phase == "epoch":
            raise StopTrial

    with pytest.raises(StopTrial):
        train(broken, stop)
    train(broken, lambda message: None)
    ours, theirs = newest(broken), newest(whole)
    assert ours["meta"]["epoch"] == 2
    assert all(torch.equal(value, theirs["state_dict"][name]) for name, value in ours["state_dict"].items())
    assert ours["optimizer"]["loss_scaler"] == theirs["optimizer"]["loss_scaler"]


def test_a_checkpoint_is_of_the_type_that_it_was_trained_in(request_: TrialRequest) -> None:
    kinds: list[Dtype | None] = [None, "float32", "bfloat16", "float16"]
    assert len({checkpoint.fingerprint(replace(request_, train_dtype=kind)) for kind in kinds}) == 4


@pytest.mark.parametrize(
    ("scale", "first", "update"), [("dynamic", 2.0**16, None), (512.0, 512.0, 512.0), ({"init_scale": 8.0}, 8.0, None)]
)
def test_losses_are_scaled_as_by_mmengine(scale: Any, first: float, update: float | None) -> None:
    """Gradients too small for float16 are not lost; those of bfloat16 have the range of float32."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    wrapper = CPUAmpOptimWrapper(dtype="float16", loss_scale=scale, optimizer=optimizer)
    assert wrapper.scale_loss(torch.tensor(1.0)) == 1.0
    assert (wrapper.loss_scaler.get_scale(), wrapper._scale_update_param) == (first, update)
    wrapper.update_params((weight * 2.0**-10).sum())
    assert weight.item() == 1 - 2.0**-10
    # One that is infinite moves nothing.
    wrapper.update_params((weight * float("inf")).sum())
    assert weight.item() == 1 - 2.0**-10
    plain = CPUAmpOptimWrapper(dtype="bfloat16", loss_scale=scale, optimizer=optimizer)
    assert not plain.loss_scaler.is_enabled()
