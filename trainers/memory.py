"""Channels-last tensors on a CPU: oneDNN is faster with them, and mmcv's operators are wrong."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d, RoIAlign, RoIAlignRotated
from torch import Tensor, nn

_OPERATORS = (DeformConv2d, ModulatedDeformConv2d, RoIAlign, RoIAlignRotated)


def channels_last(model: nn.Module) -> nn.Module:
    """Turns a detector's weights to channels-last, in place, but for mmcv's own operators.

    Those are the deformable convolutions of VFNet and of a base's backbone, and the pooling of RoIs. On a CPU mmcv's
    deformable convolution of version 1 refuses channels-last tensors; that of version 2 and the pooling read them as if
    they were not, which gives wrong numbers without a word. So they keep the plain format, and hooks hand it to them
    and to their gradients. The convolutions of the family ``dcn`` do so by themselves.
    """
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, _OPERATORS) and _is_mmcvs(module):
            module.to(memory_format=torch.contiguous_format)
            if not getattr(module, "_plain_format", False):
                module.register_forward_pre_hook(_plain_inputs)
                module.register_forward_hook(_plain_gradient)
                # A copy has the hooks already.
                module._plain_format = True
    return model


def _is_mmcvs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("mmcv.")


def _plain_inputs(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)


def _plain_gradient(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
    if out.requires_grad:
        out.register_hook(lambda gradient: gradient.contiguous())  # type: ignore[no-untyped-call]
