"""What only this family promises: known answers."""

import pytest
import torch
from headway_separable.modules import SeparableConv
from mmengine.registry import init_default_scope
from torch import nn

from spaces import patching
from spaces.base import facts
from spaces.errors import UserError
from spaces.space import build_space
from trainers.config import load_base
from trainers.profile import build_named, count_patched, patched_base

BASE = "headway::gfl_tiny"
CHANNELS = 32
SITES = 64**2 + 32**2 + 16**2 + 8**2  # of strides 4 to 32 at 256x256


@pytest.mark.parametrize("kernel", [3, 5])
def test_cost(kernel):
    plain = count_patched(BASE, {}, (256, 256))
    knobs = {"separable.placement": ["cls.0", "cls.1"], "separable.kernel": kernel}
    found = count_patched(BASE, knobs, (256, 256))
    saved = 9 * CHANNELS**2 - (kernel**2 * CHANNELS + CHANNELS**2)
    assert plain.macs - found.macs == 2 * SITES * saved
    assert plain.params - found.params == 2 * saved


def test_it_computes_what_the_equation_says():
    torch.manual_seed(0)
    layer = SeparableConv(nn.Conv2d(4, 6, 3, padding=1, bias=False), 3).double()
    x = torch.randn(1, 4, 5, 7, dtype=torch.double)
    # One convolution with the kernels W[o, c] d[c].
    kernels = layer.pointwise.weight * layer.depthwise.weight[:, 0]
    torch.testing.assert_close(layer(x), nn.functional.conv2d(x, kernels, padding=1))


@pytest.mark.parametrize("kernel", [3, 5])
def test_it_starts_with_the_variance_of_a_plain_convolution(kernel, tmp_path):
    base = "headway::retinanet_r18_half"  # its towers are drawn for a ReLU, too
    knobs = {"separable.placement": ["reg.0"], "separable.kernel": kernel}
    config = tmp_path / "patched.py"
    config.write_text(patched_base(base, knobs).pretty_text)
    init_default_scope("mmdet")
    x = torch.randn(4, 64, 32, 32, generator=torch.Generator().manual_seed(1))
    stds = []
    for name in (base, str(config)):
        head = build_named(name).bbox_head
        stds.append(head.reg_convs[0].conv(x).std().item())
    assert stds[1] == pytest.approx(stds[0], rel=0.2)


def test_a_position_is_separable_or_deformable():
    base = facts(load_base(BASE).model.to_dict())
    space = build_space({"separable": None, "dcn": None}, base)
    apart = {"separable.placement": ["cls.0"], "dcn.placement": ["cls.1"]}
    assert patching.split(space.canonicalise(apart)).keys() == {"separable", "dcn"}
    with pytest.raises(UserError, match=r"separable: placement: cls\.0 cannot be separable and in dcn\.placement"):
        space.canonicalise({"separable.placement": ["cls.0"], "dcn.placement": ["cls.0"]})
