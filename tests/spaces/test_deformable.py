"""Deformable convolutions do not depend on how their tensors lie in memory."""

import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack

from spaces.dcn.modules import DeformableConv, ModulatedDeformableConv

PAIRS = [(DeformableConv, DeformConv2dPack), (ModulatedDeformableConv, ModulatedDeformConv2dPack)]


def run(layer, x, weight):
    """Output, and the gradients of input and parameters for a gradient ``weight`` of the output."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    out = layer(x)
    out.backward(weight)
    gradients = [x.grad, *(parameter.grad for parameter in layer.parameters())]
    return [tensor.detach().contiguous().clone() for tensor in (out, *gradients)]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_channels_last_changes_nothing(ours, theirs):
    torch.manual_seed(0)
    layer = ours(6, 10, 3, padding=1, bias=False)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.3)
    reference = theirs(6, 10, 3, padding=1, bias=False)
    reference.load_state_dict(layer.state_dict())
    x, weight = torch.randn(2, 6, 9, 11), torch.randn(2, 10, 9, 11)
    wanted = run(reference, x, weight)
    plain = run(layer, x, weight)
    last = layer.to(memory_format=torch.channels_last)
    turned = run(last, x.to(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last))
    for one, *others in zip(wanted, plain, turned, strict=True):
        for other in others:
            # Sums over taps and channels are taken in another order than mmcv's.
            assert torch.allclose(one, other, atol=2e-5)


def test_small_maps_and_large_batches():
    torch.manual_seed(0)
    layer = DeformableConv(4, 4, 3, padding=1, bias=False)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.3)
    x = torch.randn(33, 4, 1, 1)
    together = layer(x)
    assert together.shape == x.shape
    assert torch.allclose(together, torch.cat([layer(one[None]) for one in x]), atol=1e-5)
    assert torch.allclose(together, layer(x.to(memory_format=torch.channels_last)), atol=1e-5)
