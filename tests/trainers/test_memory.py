"""mmcv's own operators in both memory formats."""

from __future__ import annotations

import copy

import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack, RoIAlign
from torch import Tensor, nn

from spaces.dcn.modules import ModulatedDeformableConv
from trainers.memory import channels_last


@pytest.mark.parametrize("kind", [DeformConv2dPack, ModulatedDeformConv2dPack, ModulatedDeformableConv])
def test_same_numbers_and_gradients(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), kind(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3)).double()
    nn.init.normal_(plain[1].conv_offset.weight, std=0.3)  # at zero, an offset could be misread unnoticed
    turned = channels_last(copy.deepcopy(plain))
    assert turned[0].weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)

    def run(model: nn.Module, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        out = model(image)
        gradients = torch.autograd.grad((out**2).sum(), list(model.parameters()))
        return out, list(gradients)

    out, gradients = run(plain, x)
    for model in (turned, channels_last(copy.deepcopy(turned))):
        found, theirs = run(model, x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found, out)
        for mine, other in zip(gradients, theirs, strict=True):
            torch.testing.assert_close(other, mine)


def test_mmcvs_operator_alone_is_wrong() -> None:
    """Why the guard is there; when this fails, it can go."""
    torch.manual_seed(0)
    layer = ModulatedDeformConv2dPack(8, 8, 3, padding=1)
    x = torch.randn(2, 8, 9, 11)
    with torch.no_grad():
        assert not torch.allclose(layer(x), layer(x.contiguous(memory_format=torch.channels_last)), atol=1e-3)


class Pooled(nn.Module):
    """A convolution, and RoIs pooled from its map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = RoIAlign(3, 1.0, sampling_ratio=2)

    def forward(self, x: Tensor) -> Tensor:
        rois = x.new_tensor([[0, 1.0, 1.0, 8.0, 6.0], [1, 0.5, 2.0, 5.0, 8.5]])
        found: Tensor = self.pool(self.conv(x), rois)
        return found


def test_rois_are_pooled_from_the_right_places() -> None:
    torch.manual_seed(0)
    plain = Pooled()
    turned = channels_last(copy.deepcopy(plain))
    x = torch.randn(2, 3, 9, 11)
    one, other = plain(x), turned(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(other, one)
    for mine, theirs in zip(plain.parameters(), turned.parameters(), strict=True):
        (expected,) = torch.autograd.grad((one**2).sum(), mine, retain_graph=True)
        (found,) = torch.autograd.grad((other**2).sum(), theirs, retain_graph=True)
        torch.testing.assert_close(found, expected)
