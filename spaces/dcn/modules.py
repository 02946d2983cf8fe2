"""Deformable convolutions in the towers of a dense head."""

import torch
from mmcv.cnn import ConvModule
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmdet.registry import MODELS
from torch import Tensor, nn

from spaces.dcn.sampling import deformable_conv2d
from spaces.modules import dense_head


class DeformableConv(DeformConv2dPack):
    """Version 1 for maps of any size, any batch and any memory format, and fast on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        return _convolve(self, x, self.conv_offset(x), None)


class ModulatedDeformableConv(ModulatedDeformConv2dPack):
    """Version 2 for any memory format, and fast on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        found = self.conv_offset(x)
        offsets = found.shape[1] // 3 * 2
        return _convolve(self, x, found[:, :offsets], torch.sigmoid(found[:, offsets:]))


def _convolve(layer: nn.Module, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
    return deformable_conv2d(
        x,
        offset,
        mask,
        layer.weight,
        getattr(layer, "bias", None),
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.deform_groups,
    )


TYPES = {1: DeformableConv, 2: ModulatedDeformableConv}
# mmdet's name of each tower; the one of an RPN is a single convolution unless the RPN is told to stack several.
TOWERS = {"cls": "cls_convs", "reg": "reg_convs", "inter": "inter_convs", "rpn": "rpn_conv"}


@MODELS.register_module()
class DeformableTower:
    """Mixin for dense heads with towers of ``ConvModule``, and for the RPN with its plain convolution.

    A replaced convolution keeps the weight (and bias) of the plain one, and ``init_weights`` draws them as if it were
    plain; offsets start at zero. Version 1 then equals the plain convolution; version 2 gives half of it, its mask
    being the sigmoid of zero.

    Args:
        placement: Positions in the towers, from 0: ``cls.0``, ``reg.1``, ``inter.2``, ``rpn.0``.
        version: 1 or 2.
    """

    setup_order = 0

    def setup_mixin(self, placement: list[str], version: int) -> None:
        """Replaces the convolutions; called once after the base head is built."""
        for element in placement:
            branch, _, position = element.partition(".")
            tower = getattr(self, TOWERS[branch])
            if isinstance(tower, nn.Conv2d):
                setattr(self, TOWERS[branch], deformable(tower, version))
            else:
                make_deformable(tower[int(position)], version)

    def init_weights(self) -> None:
        """As the base head's, with the same random numbers; offsets become zero.

        mmengine finds the layers to initialise by the name of their class, so the deformable ones are out of sight
        behind plain ones with the same weights meanwhile.
        """
        found = [
            (parent, name, child)
            for parent in self.modules()
            for name, child in parent._modules.items()
            if isinstance(child, tuple(TYPES.values()))
        ]
        for parent, name, child in found:
            parent._modules[name] = _plain(child)
        try:
            super().init_weights()
        finally:
            for parent, name, child in found:
                parent._modules[name] = child
        for _, _, child in found:
            nn.init.zeros_(child.conv_offset.weight)
            nn.init.zeros_(child.conv_offset.bias)


def deformable(plain: nn.Conv2d, version: int) -> nn.Module:
    """Gives the deformable form of a convolution, with its weight and bias and with zero offsets."""
    layer = TYPES[version](
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
    layer.weight.data.copy_(plain.weight.data)
    if plain.bias is not None:
        layer.bias.data.copy_(plain.bias.data)
    return layer


def make_deformable(module: ConvModule, version: int) -> None:
    """Replaces the convolution of ``module`` in place; norm, activation and parameter names stay."""
    module.conv = deformable(module.conv, version)


def _plain(layer: nn.Module) -> nn.Conv2d:
    """Gives a plain convolution that shares the weight and the bias of a deformable one."""
    # On the meta device, so that no random number is drawn for weights that are never used.
    plain = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, groups=layer.groups, bias=False, device="meta"
    )
    plain.weight = layer.weight
    plain.bias = getattr(layer, "bias", None)
    return plain


def preserve(weights: dict, model: nn.Module) -> dict:
    """Doubles the base's trained weights where version 2 halves them, so that it starts as the plain convolution."""
    doubled = {
        f"{name}.weight": 2 * weights[f"{name}.weight"]
        for name, module in model.named_modules()
        if type(module) is ModulatedDeformableConv
        and f"{name}.weight" in weights
        and f"{name}.conv_offset.weight" not in weights
    }
    return {**weights, **doubled}


def mismatch(model: nn.Module, values: dict) -> str | None:
    """Says how the built ``model`` differs from the knob ``values``, ``None`` when it follows them.

    What the base deforms itself is made of mmcv's own classes, and not looked at.
    """
    wanted = set(values["placement"])
    kind = TYPES[values["version"]]
    layers = {
        f"{branch}.{next((part for part in path.split('.') if part.isdigit()), 0)}": module
        for branch, tower in TOWERS.items()
        for path, module in getattr(dense_head(model), tower, nn.Identity()).named_modules()
        if isinstance(module, tuple(TYPES.values()))
    }
    if set(layers) != wanted:
        return f"deformable at {sorted(layers)} instead of {sorted(wanted)}"
    wrong = sorted(element for element, module in layers.items() if type(module) is not kind)
    return f"not of version {values['version']}: {wrong}" if wrong else None
