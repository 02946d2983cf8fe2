"""Deformable tower layers against known answers (PAPERS.md, SlimHead's and DDOD's checks)."""

from __future__ import annotations

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn
from torch.nn import functional as F  # noqa: N812

from spaces.dcn.modules import TYPES, make_deformable

NORM = {"type": "GN", "num_groups": 4}


def layer(channels: int = 16, norm: bool = True) -> ConvModule:
    torch.manual_seed(0)
    return ConvModule(channels, channels, 3, padding=1, norm_cfg=NORM if norm else None)


@pytest.mark.parametrize(("version", "share"), [(1, 1.0), (2, 0.5)])
def test_start(version: int, share: float) -> None:
    module = layer()
    weight = module.conv.weight.detach().clone()
    make_deformable(module, version)
    assert type(module.conv) is TYPES[version]
    assert torch.equal(module.conv.weight, weight)
    x = torch.randn(2, 16, 9, 13)
    expected = share * F.conv2d(x, weight, padding=1)
    torch.testing.assert_close(module.conv(x), expected, rtol=1e-4, atol=1e-5)


def test_bias_is_kept() -> None:
    module = layer(norm=False)
    nn.init.normal_(module.conv.bias)
    weight, bias = module.conv.weight.detach().clone(), module.conv.bias.detach().clone()
    make_deformable(module, 2)
    x = torch.randn(1, 16, 6, 5)
    # The mask halves the product, not the bias.
    torch.testing.assert_close(module.conv(x), F.conv2d(x, 0.5 * weight, bias, padding=1), rtol=1e-4, atol=1e-5)


def test_version_2_adds_its_offset_convolution() -> None:
    module = layer(256)
    before = sum(p.numel() for p in module.parameters())
    make_deformable(module, 2)
    assert sum(p.numel() for p in module.parameters()) - before == 62_235


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 7), (5, 2)])
def test_maps_smaller_than_the_kernel(version: int, size: tuple[int, int]) -> None:
    """Equal to a larger map of zeros around the same input, offsets and all."""
    module = layer()
    make_deformable(module, version)
    nn.init.normal_(module.conv.conv_offset.weight, std=0.05)
    nn.init.normal_(module.conv.conv_offset.bias, std=0.5)
    x = torch.randn(2, 16, *size)
    small = module.conv(x)
    assert small.shape == x.shape
    large = module.conv(F.pad(x, (0, 6, 0, 6)))[:, :, : size[0], : size[1]]
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-5)


def test_version_1_refuses_a_bias() -> None:
    with pytest.raises(AssertionError):
        make_deformable(layer(norm=False), 1)
