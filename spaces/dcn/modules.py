"""Deformable convolutions in the towers of a dense head."""

import math

import torch
from mmcv.cnn import ConvModule
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack, deform_conv2d, modulated_deform_conv2d
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def _with_plain_gradient(out: Tensor) -> Tensor:
    """Lets the operator's backward see a gradient that lies in memory as (N, C, H, W)."""
    if out.requires_grad:
        out.register_hook(lambda gradient: gradient.contiguous())
    return out


class DeformableConv(DeformConv2dPack):
    """Version 1 for maps of any size, any batch and any memory format.

    mmcv's pack refuses maps smaller than its kernel (P7 of small images), and its operator refuses channels-last
    tensors and batches above 32 that are no multiple of 32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H, W)."""
        offset = self.conv_offset(x)
        short = [max(kernel - side, 0) for kernel, side in zip(self.kernel_size, x.shape[2:])]
        if any(short):
            # Zeros lie outside of the map anyway.
            x, offset = (F.pad(tensor, (0, short[1], 0, short[0])) for tensor in (x, offset))
        out = deform_conv2d(
            x.contiguous(),
            offset.contiguous(),
            self.weight.contiguous(),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deform_groups,
            False,
            math.gcd(self.im2col_step, len(x)),
        )
        out = _with_plain_gradient(out)
        return out[:, :, : out.shape[2] - short[0], : out.shape[3] - short[1]]


class ModulatedDeformableConv(ModulatedDeformConv2dPack):
    """Version 2 for any memory format: mmcv's CPU operator reads channels-last tensors as if they were not."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H, W)."""
        first, second, mask = torch.chunk(self.conv_offset(x), 3, dim=1)
        out = modulated_deform_conv2d(
            x.contiguous(),
            torch.cat((first, second), dim=1).contiguous(),
            torch.sigmoid(mask).contiguous(),
            self.weight.contiguous(),
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deform_groups,
        )
        return _with_plain_gradient(out)


TYPES = {1: DeformableConv, 2: ModulatedDeformableConv}


@MODELS.register_module()
class DeformableTower:
    """Mixin for dense heads with towers ``cls_convs`` and ``reg_convs`` of ``ConvModule``.

    A replaced convolution starts with the weight (and bias) of the plain one and with zero offsets. Version 1 then
    equals the plain convolution; version 2 gives half of it, its mask being the sigmoid of zero.

    Args:
        cls: Positions in the classification tower, from 0.
        reg: Positions in the regression tower, from 0.
        version: 1 or 2.
    """

    setup_order = 0

    def setup_mixin(self, cls: list[int], reg: list[int], version: int) -> None:
        """Replaces the convolutions; called once after the base head is built."""
        for tower, positions in ((self.cls_convs, cls), (self.reg_convs, reg)):
            for position in positions:
                make_deformable(tower[position], version)


def make_deformable(module: ConvModule, version: int) -> None:
    """Replaces the convolution of ``module`` in place; norm, activation and parameter names stay."""
    plain = module.conv
    module.conv = TYPES[version](
        plain.in_channels,
        plain.out_channels,
        plain.kernel_size,
        stride=plain.stride,
        padding=plain.padding,
        dilation=plain.dilation,
        groups=plain.groups,
        deform_groups=1,
        bias=plain.bias is not None,
    )
    module.conv.weight.data.copy_(plain.weight.data)
    if plain.bias is not None:
        module.conv.bias.data.copy_(plain.bias.data)


def mismatch(model: nn.Module, values: dict) -> str | None:
    """Says how the built ``model`` differs from the knob ``values``, ``None`` when it follows them."""
    wanted = set(values["placement"])
    kind = TYPES[values["version"]]
    head = model.bbox_head
    built = {
        f"{branch}.{position}"
        for branch, tower in (("cls", head.cls_convs), ("reg", head.reg_convs))
        for position in range(len(tower))
        if isinstance(tower[position].conv, tuple(TYPES.values()))
    }
    if built != wanted:
        return f"deformable at {sorted(built)} instead of {sorted(wanted)}"
    wrong = [
        name
        for name, module in head.named_modules()
        if isinstance(module, tuple(TYPES.values())) and type(module) is not kind
    ]
    return f"not of version {values['version']}: {wrong}" if wrong else None
