"""Deformable convolutions in the towers of a dense head."""

from mmcv.cnn import ConvModule
from mmcv.ops import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2dPack
from mmdet.registry import MODELS
from torch import Tensor, nn


class DeformableConv(DeformConv2dPack):
    """Version 1, on maps of any size: mmcv's pack refuses those smaller than its kernel (P7 of small images)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H, W)."""
        # The parent's parent pads small maps with the zeros that lie outside of them anyway.
        return DeformConv2d.forward(self, x, self.conv_offset(x))


TYPES = {1: DeformableConv, 2: ModulatedDeformConv2dPack}


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
