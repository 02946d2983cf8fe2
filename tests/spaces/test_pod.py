"""Learned dilations against known answers (PAPERS.md, POD's checks)."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmcv.ops import deform_conv2d
from mmdet.models import data_preprocessors  # noqa: F401  registers all of mmdet's models
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from spaces import patching
from spaces.base import BackboneFacts, BaseFacts, dense_part, facts
from spaces.dcn import sampling as dcn_sampling
from spaces.errors import HeadwayError, UserError
from spaces.knob import knob_from_json
from spaces.pod.knobs import paths
from spaces.pod.modules import DecomposedConv, DilatedDetector, GlobalScaleConv, Observer, mismatch, translate
from spaces.pod.scales import Split, decompose, depth_name, depth_names, summary
from spaces.registry import family
from spaces.space import build_space, design_hash

DOUBLE = torch.float64


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    """mmengine lists every weight that it initialises."""
    MMLogger.get_instance("tests", log_level="ERROR")


# Decomposition


@pytest.mark.parametrize(
    ("scale", "channels", "split"),
    [
        ((1.7, 2.9), 256, Split((1, 2), (2, 3), 51, 205)),  # figure 3
        ((2.02, 1.7), 256, Split((2, 1), (2, 2), 77, 179)),  # section 3.2
        ((0.65, 0.91), 512, Split((0, 0), (1, 1), 113, 399)),  # table 3, conv5_1 of RetinaNet
        ((0.46, 0.89), 512, Split((0, 0), (1, 1), 166, 346)),
        ((8.49, 9.34), 256, Split((8, 9), (9, 10), 150, 106)),  # conv4_6 of Faster R-CNN C4; alpha .415
        ((1.0, 1.0), 64, Split((1, 1), (1, 1), 64, 0)),
        # Within 0.05 of an integer, up to the rounding of floats.
        ((0.95, 1.05), 64, Split((1, 1), (1, 1), 64, 0)),
        ((0.95, 1.5), 64, Split((1, 1), (1, 2), 32, 32)),
        ((0.949, 1.5), 64, Split((0, 1), (1, 2), 18, 46)),  # alpha .7245
        ((0.05, 0.04), 64, Split((0, 0), (0, 0), 64, 0)),
        ((0.0, 2.6), 10, Split((0, 2), (0, 3), 4, 6)),
        # Half a channel goes up.
        ((1.25, 1.25), 2, Split((1, 1), (2, 2), 1, 1)),
        ((1.7, 1.7), 5, Split((1, 1), (2, 2), 1, 4)),  # 3.5, in floats 3.4999...
        # A part without channels.
        ((1.06, 1.06), 4, Split((1, 1), (2, 2), 4, 0)),
        ((1.94, 1.94), 4, Split((1, 1), (2, 2), 0, 4)),
    ],
)
def test_decompose(scale: tuple[float, float], channels: int, split: Split) -> None:
    assert decompose(*scale, channels) == split


@pytest.mark.parametrize(
    ("alpha", "channels", "groups", "step", "n_up"),
    [
        (0.7, 256, 1, 16, 176),  # 179.2
        (0.7, 64, 1, 16, 48),  # 44.8
        (0.3, 16, 1, 16, 0),  # 4.8
        (0.6, 16, 1, 16, 16),
        (0.85, 40, 1, 16, 32),
        (0.99, 40, 1, 16, 40),  # all, though no multiple
        (0.9, 24, 1, 16, 24),
        (0.99, 8, 1, 16, 8),
        (0.4, 8, 1, 16, 0),
        (0.7, 256, 32, 1, 192),  # 5.6 of 8 in each group
        (0.7, 128, 32, 1, 96),  # 2.8 of 4
        (0.5, 96, 32, 1, 64),  # 1.5 of 3
        (0.7, 256, 32, 16, 192),
        (0.7, 256, 4, 16, 176),  # 44.8 of 64, in steps of 4
    ],
)
def test_split_channels(alpha: float, channels: int, groups: int, step: int, n_up: int) -> None:
    split = decompose(1 + alpha, 1 + alpha, channels, tolerance=0.0, round_channels=step, groups=groups)
    assert (split.n_low, split.n_up) == (channels - n_up, n_up)
    assert split.n_up % groups == split.n_low % groups == 0


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.2, 0.5])
def test_tolerance(tolerance: float) -> None:
    for hundredths in range(250):
        scale = hundredths / 100
        split = decompose(scale, 1.5, 100, tolerance)
        single = min(hundredths % 100, -hundredths % 100) <= round(100 * tolerance)
        assert (split.low[0] == split.up[0]) == single
    assert decompose(1.4, 2.5, 100, 0.5) == Split((1, 3), (1, 3), 100, 0)


def test_share() -> None:
    """Weights that act: 1 but where a dilation is 0 (PAPERS.md, check 4)."""
    split = decompose(0.65, 0.91, 512)
    assert split.share == (399 * 9 + 113) / (512 * 9)
    assert split.share == pytest.approx(0.8038, abs=5e-5)
    assert decompose(0.5, 1.5, 4).share == (2 * 9 + 2 * 3) / 36
    assert decompose(1.7, 2.9, 256).share == decompose(8.49, 9.34, 256).share == 1


def test_summary() -> None:
    rows = [{"a": [1.0, 2.0], "b": [0.5, 0.5]}, {"a": [2.0, 2.0]}, {"a": [3.0, 5.0], "b": [1.0, 0.0]}]
    found = summary(rows)
    assert list(found) == ["a", "b"]
    assert found["a"] == pytest.approx(
        {"d_h": 2, "std_h": (2 / 3) ** 0.5, "min_h": 1, "max_h": 3}
        | {"d_w": 3, "std_w": 2**0.5, "min_w": 2, "max_w": 5, "images": 3}
    )
    assert (found["b"]["images"], found["b"]["d_h"], found["b"]["std_w"]) == (2, 0.75, 0.25)
    assert summary([]) == {} == summary([{}])
    assert summary(iter(rows)) == found


def test_depth_names() -> None:
    bottleneck = ["backbone.layer2.0.conv2", "backbone.layer3.5.conv2", "roi_head.shared_head.layer4.2.conv2"]
    assert list(depth_names(bottleneck).values()) == ["conv3_1", "conv4_6", "conv5_3"]
    basic = ["backbone.layer3.1.conv1", "backbone.layer3.1.conv2"]
    assert list(depth_names(basic).values()) == ["conv4_2.1", "conv4_2.2"]
    towers = ["bbox_head.cls_convs.0.conv", "bbox_head.inter_convs.5.conv", "rpn_head.rpn_conv"]
    assert list(depth_names([*basic, *towers]).values())[2:] == ["cls.0", "inter.5", "rpn.0"]
    assert depth_name("rpn_head.rpn_conv.2.conv") == "rpn.2"
    assert depth_name("backbone.layer3.22.conv2") == "conv4_23"


# The learning convolution


def learner(**settings: Any) -> tuple[GlobalScaleConv, nn.Conv2d]:
    """A learning convolution in double precision and the plain one that it was."""
    torch.manual_seed(0)
    given = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, **settings}
    plain = nn.Conv2d(**given, dtype=DOUBLE)
    conv: Any = copy.deepcopy(plain)
    GlobalScaleConv.replace(conv)
    return conv, plain


def fix(conv: GlobalScaleConv, d_h: float, d_w: float) -> None:
    conv.scale.bias.data = torch.tensor([d_h, d_w], dtype=conv.weight.dtype)


def vary(conv: GlobalScaleConv, d_h: float, d_w: float, spread: float = 0.1) -> None:
    """Scales about (d_h, d_w), another pair for each image."""
    fix(conv, d_h, d_w)
    nn.init.normal_(conv.scale.weight, std=spread)


def maps(*shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def dilated(conv: nn.Conv2d, x: Tensor, down: int, right: int) -> Tensor:
    """The convolution with integer dilations; where one is 0 its three taps fall together."""
    weight = conv.weight
    for axis, step in ((2, down), (3, right)):
        if step == 0:
            weight = weight.sum(axis, keepdim=True)
    steps = (max(down, 1), max(right, 1))
    return F.conv2d(x, weight, conv.bias, conv.stride, (down, right), steps, conv.groups)


def brute(conv: nn.Conv2d, x: Tensor, scales: Tensor) -> Tensor:
    """Section 3.1, site by site: lambda(p, q) = max(0, 1 - |p - q|)."""
    height, width = x.shape[2:]
    step = conv.stride[0]
    rows, columns = (torch.arange(0, side, step, dtype=x.dtype) for side in (height, width))
    out = torch.zeros(len(x), conv.out_channels, len(rows), len(columns), dtype=x.dtype)
    of_group = conv.in_channels // conv.groups
    for image, (d_h, d_w) in enumerate(scales):
        for i, j in itertools.product((-1, 0, 1), repeat=2):
            down = (1 - (rows + i * d_h)[:, None].sub(torch.arange(height)).abs()).clamp(min=0)  # (H', H)
            right = (1 - (columns + j * d_w)[:, None].sub(torch.arange(width)).abs()).clamp(min=0)  # (W', W)
            sampled = torch.einsum("ph,chw,qw->cpq", down, x[image], right)
            for group in range(conv.groups):
                weight = conv.weight.unflatten(0, (conv.groups, -1))[group, :, :, i + 1, j + 1]
                part = sampled[group * of_group : (group + 1) * of_group]
                out.unflatten(1, (conv.groups, -1))[image, group] += torch.einsum("oc,cpq->opq", weight, part)
    return out if conv.bias is None else out + conv.bias[:, None, None]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_starts_as_the_base(stride: int, groups: int, bias: bool) -> None:
    conv, plain = learner(stride=stride, groups=groups, bias=bias)
    x = maps(3, 4, 9, 12)
    assert torch.equal(conv.scale(x), torch.ones(3, 2, dtype=DOUBLE))
    torch.testing.assert_close(conv(x), plain(x), rtol=0, atol=1e-14)
    with torch.no_grad():
        assert torch.equal(conv(x), plain(x))
        assert torch.equal(conv.eval().float()(x.float()), plain.float()(x.float()))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("down", "right"), [(2, 3), (1, 2), (0, 1), (2, 0), (0, 0), (7, 1), (40, 3)])
def test_whole_scales_are_dilations(stride: int, down: int, right: int) -> None:
    """Beyond the map, too."""
    conv, plain = learner(stride=stride)
    fix(conv, down, right)
    x = maps(2, 4, 7, 10)
    expected = dilated(plain, x, down, right)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-14)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-14)
        if down and right:
            assert torch.equal(conv(x), expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("scale", [(1.37, 2.81), (0.46, 0.89), (0.3, 1.6), (2.0, 0.25), (8.49, 9.34)])
def test_fractional_scales_mix_four_dilations(stride: int, scale: tuple[float, float]) -> None:
    conv, plain = learner(stride=stride, groups=2)
    fix(conv, *scale)
    x = maps(2, 4, 8, 11)
    (down, alpha_h), (right, alpha_w) = ((int(side), side - int(side)) for side in scale)
    expected = sum(
        (alpha_h if i else 1 - alpha_h) * (alpha_w if j else 1 - alpha_w) * dilated(plain, x, down + i, right + j)
        for i in (0, 1)
        for j in (0, 1)
    )
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-14)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("train", [True, False])
def test_each_image_has_its_scale(stride: int, groups: int, train: bool) -> None:
    conv, plain = learner(stride=stride, groups=groups)
    vary(conv, 1.2, 2.1, spread=2.0)
    x = maps(5, 4, 6, 9)
    with torch.set_grad_enabled(train):
        scales = conv.scale(x).detach()
        assert len(set(map(tuple, scales.floor().tolist()))) > 1
        torch.testing.assert_close(conv(x), brute(plain, x, scales), rtol=0, atol=1e-13)
        # An image alone gets what it gets among others.
        torch.testing.assert_close(conv(x)[2:3], conv(x[2:3]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scale", [(1.4, 0.6), (2.3, 5.5), (30.5, 0.2)])
def test_gradients(stride: int, groups: int, scale: tuple[float, float]) -> None:
    """Of the map, the weight, the bias and the scale, with another scale for each image."""
    conv, _ = learner(stride=stride, groups=groups, out_channels=2)
    vary(conv, *scale, spread=0.2)
    x = maps(2, 4, 3, 4).requires_grad_()
    assert len(set(conv.scale(x).tolist()[0])) == 2
    assert torch.autograd.gradcheck(lambda x, *_: conv(x), (x, *conv.parameters()))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 0.0), (1.7, 2.9), (0.4, 30.5)])
@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_gathered_rows_equal_shifted_maps(
    stride: int, scale: tuple[float, float], spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, in several tiles, also at whole scales, where training starts."""
    monkeypatch.setattr(dcn_sampling, "_SITES", 25)
    monkeypatch.setattr(dcn_sampling, "_AHEAD", 2)
    conv, _ = learner(stride=stride)
    vary(conv, *scale, spread=spread)
    found = []
    for forward in (conv._sampled, conv._shifted):
        conv.zero_grad()
        x = maps(3, 4, 9, 8).requires_grad_()
        out = forward(x, conv.scale(x))
        out.backward(maps(*out.shape))
        found.append([out, x.grad, *(parameter.grad for parameter in conv.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_scale_is_found() -> None:
    """Descent from the base's dilation to the scale that the targets were made with."""
    conv, plain = learner(bias=False)
    plain.requires_grad_(False)
    conv.weight.requires_grad_(False)
    wanted = torch.tensor([[1.7, 2.4]], dtype=DOUBLE)
    rows, columns = torch.arange(16)[:, None] / 3, torch.arange(20) / 4
    x = torch.stack([torch.sin(rows + phase) * torch.cos(columns - phase) for phase in range(4)])[None].double()
    target = brute(plain, x, wanted)
    optimizer = torch.optim.Adam([conv.scale.bias], lr=0.05)
    for _ in range(120):
        optimizer.zero_grad()
        F.mse_loss(conv(x), target).backward()
        optimizer.step()
    torch.testing.assert_close(conv.scale.bias.data, wanted[0], rtol=0, atol=0.02)


def test_scales_are_clamped() -> None:
    conv, plain = learner()
    fix(conv, -0.3, -7.0)
    x = maps(1, 4, 5, 5)
    torch.testing.assert_close(conv(x), dilated(plain, x, 0, 0), rtol=0, atol=1e-14)


def test_scales_that_are_no_numbers_come_out() -> None:
    """A training that diverges is seen in its loss."""
    conv, _ = learner()
    fix(conv, float("nan"), 1.0)
    assert conv(maps(1, 4, 5, 5)).isnan().any()
    fix(conv, float("inf"), 1.0)
    assert conv(maps(1, 4, 5, 5)).isnan().any()


def by_mmcv(conv: nn.Conv2d, x: Tensor, scales: Tensor) -> Tensor:
    """mmcv's operator with offsets ((d_h - 1) i, (d_w - 1) j)."""
    taps = torch.tensor([-1.0, 0.0, 1.0], dtype=x.dtype)
    down, right = ((scales[:, axis, None, None] - 1) * steps for axis, steps in ((0, taps[:, None]), (1, taps)))
    offset = torch.stack([part.expand(len(x), 3, 3) for part in (down, right)], -1).reshape(len(x), 18, 1, 1)
    size = [(side - 1) // conv.stride[0] + 1 for side in x.shape[2:]]
    return deform_conv2d(x, offset.expand(-1, -1, *size).contiguous(), conv.weight, conv.stride, 1, 1, conv.groups, 1)


@pytest.mark.parametrize(("dtype", "atol"), [(DOUBLE, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_mmcvs_operator(dtype: torch.dtype, atol: float, stride: int, groups: int) -> None:
    conv, _ = learner(stride=stride, bias=False, groups=groups)
    conv.to(dtype)
    found = []
    for forward in (conv, lambda x: by_mmcv(conv, x, conv.scale(x))):
        torch.manual_seed(2)
        vary(conv, 1.4, 2.3)
        conv.zero_grad()
        x = maps(2, 4, 9, 8, dtype=dtype).requires_grad_()
        out = forward(x)
        out.backward(maps(*out.shape, dtype=dtype).contiguous())
        found.append([out, x.grad, *(parameter.grad for parameter in conv.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=atol, atol=atol * max(1, other.abs().max().item()))


def test_channels_last() -> None:
    conv, _ = learner()
    vary(conv, 1.4, 2.3)
    x = maps(2, 4, 9, 8)
    turned = conv(x.to(memory_format=torch.channels_last))
    assert turned.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(turned, conv(x), rtol=0, atol=1e-14)
    assert conv(x).is_contiguous()


def test_no_image() -> None:
    conv, _ = learner(stride=2)
    assert conv(maps(0, 4, 9, 8)).shape == (0, 6, 5, 4)


def test_without_data() -> None:
    """Multiply-adds are counted on the meta device."""
    conv, plain = learner(stride=2)
    x = torch.empty(2, 4, 9, 8, dtype=DOUBLE, device="meta")
    assert conv.to("meta")(x).shape == fast(plain, 1.7, 0.6).to("meta")(x).shape == (2, 6, 5, 4)


def test_half_precision_keeps_its_scales() -> None:
    conv, _ = learner()
    conv.float()
    fix(conv, 9.341, 2.507)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = maps(1, 4, 9, 8, dtype=torch.float32)
        assert conv.scale(x.bfloat16()).tolist() == [pytest.approx([9.341, 2.507])]
        out = conv(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), conv(x), rtol=0.05, atol=0.05)


def test_a_base_with_dilation() -> None:
    """Of a dilated stage: it starts at that dilation."""
    conv, plain = learner(padding=2, dilation=2)
    x = maps(1, 4, 9, 8)
    assert conv.scale(x).tolist() == [[2, 2]]
    torch.testing.assert_close(conv(x), plain(x), rtol=0, atol=1e-14)
    with torch.no_grad():
        assert torch.equal(conv(x), plain(x))


# The decomposed convolution


def fast(plain: nn.Conv2d, d_h: float, d_w: float, zero_taps: str = "centre") -> DecomposedConv:
    conv: Any = copy.deepcopy(plain)
    DecomposedConv.replace(conv, decompose(d_h, d_w, conv.out_channels, groups=conv.groups), zero_taps)
    return conv


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("scale", [(1.7, 2.9), (2.02, 1.7), (0.65, 0.91), (0.3, 2.4), (3.0, 1.0), (0.01, 1.3)])
def test_channels_are_those_of_dilated_convolutions(stride: int, groups: int, scale: tuple[float, float]) -> None:
    """PAPERS.md, check 4; with summed taps a dilation of 0 is exact."""
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 24, 3, stride, padding=1, groups=groups, dtype=DOUBLE)
    conv = fast(plain, *scale, "sum")
    split = conv.split
    x = maps(2, 8, 9, 12)
    out = conv(x).unflatten(1, (groups, -1))
    low, up = (dilated(plain, x, *dilation).unflatten(1, (groups, -1)) for dilation in (split.low, split.up))
    first = split.n_low // groups
    torch.testing.assert_close(out[:, :, :first], low[:, :, :first], rtol=0, atol=1e-14)
    torch.testing.assert_close(out[:, :, first:], up[:, :, first:], rtol=0, atol=1e-14)
    assert out.shape[2] == 24 // groups


def test_middle_taps() -> None:
    """Figure 5: what a zero dilation leaves are the values at that position."""
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 10, 3, padding=1)
    x = maps(1, 8, 6, 7, dtype=torch.float32)
    conv = fast(plain, 0.6, 0.6)
    assert (conv.split.n_low, conv.split.n_up) == (4, 6)
    torch.testing.assert_close(conv(x)[:, :4], F.conv2d(x, plain.weight[:4, :, 1:2, 1:2], plain.bias[:4]))
    torch.testing.assert_close(conv(x)[:, 4:], plain(x)[:, 4:])
    conv = fast(plain, 0.5, 1.0)
    narrow = F.conv2d(x, plain.weight[:5, :, 1:2], plain.bias[:5], padding=(0, 1))
    torch.testing.assert_close(conv(x)[:, :5], narrow)


@pytest.mark.parametrize("groups", [1, 4])
def test_dilation_one_is_the_base(groups: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 12, 3, 2, padding=1, groups=groups)
    x = maps(2, 8, 9, 12, dtype=torch.float32)
    assert torch.equal(fast(plain, 1.0, 0.98)(x), plain(x))


def test_decomposed_channels_last() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 12, 3, padding=1, dtype=DOUBLE)
    conv = fast(plain, 1.7, 0.6)
    x = maps(2, 8, 9, 12)
    expected = conv(x)
    turned = conv.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert turned.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["fast", "learner"])
def test_norms_fold_in(groups: int, kind: str) -> None:
    """Deployed detectors and timed ones have no norms left (trainers/speed.py)."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(12)).double().eval()
    norm: Any = block[1]
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    plain: Any = block[0]
    if kind == "fast":
        DecomposedConv.replace(plain, decompose(0.6, 1.7, 12, groups=groups), "sum")
    else:
        GlobalScaleConv.replace(plain)
        vary(plain, 0.6, 1.7)
    x = maps(1, 8, 6, 7)
    expected = block(x)
    fused = fuse_conv_bn(copy.deepcopy(block))
    assert isinstance(fused[1], nn.Identity)
    torch.testing.assert_close(fused(x), expected)


def test_weights_of_the_base_and_of_the_learning_network_load() -> None:
    conv, plain = learner()
    vary(conv, 1.7, 0.6)
    for source in (conv, plain):
        target = fast(learner()[1], 1.7, 0.6)
        nn.init.zeros_(target.weight)
        target.load_state_dict(source.state_dict())
        assert torch.equal(target.weight, plain.weight)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        target.load_state_dict({**plain.state_dict(), "scaling": plain.bias})


def test_no_random_number_is_drawn() -> None:
    plain = nn.Conv2d(4, 4, 3, padding=1)
    before = torch.get_rng_state()
    GlobalScaleConv.replace(copy.deepcopy(plain))
    DecomposedConv.replace(copy.deepcopy(plain), decompose(1.5, 1.5, 4))
    assert torch.equal(torch.get_rng_state(), before)


# Backbones


BACKBONES: dict[str, dict[str, Any]] = {
    "R18": {"type": "ResNet", "depth": 18, "base_channels": 8},
    "R34-caffe": {"type": "ResNet", "depth": 34, "base_channels": 8, "style": "caffe"},
    "R50": {"type": "ResNet", "depth": 50, "base_channels": 4},
    "R50-caffe": {"type": "ResNet", "depth": 50, "base_channels": 4, "style": "caffe"},
    "V1d-R18": {"type": "ResNetV1d", "depth": 18, "base_channels": 8, "stem_channels": 8},
    "V1d-R50": {"type": "ResNetV1d", "depth": 50, "base_channels": 4, "stem_channels": 4},
    "X50": {"type": "ResNeXt", "depth": 50, "base_channels": 16, "groups": 4, "base_width": 8},
}
CONVS = {"R18": 12, "R34-caffe": 26, "R50": 13, "R50-caffe": 13, "V1d-R18": 12, "V1d-R50": 13, "X50": 13}


def retina(backbone: dict[str, Any], head: str = "retinanet/retinanet_r50_fpn_1x_coco.py", **changes: Any) -> Any:
    """A real detector's config with another backbone and towers of 8 channels."""
    whole = Config.fromfile(str(Path(mmdet.__file__).parent / ".mim" / "configs" / head)).model.to_dict()
    whole["backbone"] = {"out_indices": (0, 1, 2, 3), "num_stages": 4, **backbone}
    base = backbone.get("base_channels", 64)
    widths = [base * 2**stage * (1 if backbone["depth"] < 50 else 4) for stage in range(4)]
    whole["neck"].update({"in_channels": widths, "out_channels": 8})
    norm = {"norm_cfg": {"type": "GN", "num_groups": 2}} if head.startswith("tood") else {}
    whole[dense_part(whole)].update({"in_channels": 8, "feat_channels": 8, **norm, **changes})
    whole.pop("data_preprocessor")
    return whole


def build(model: dict[str, Any], design: dict[str, Any] | None = None) -> Any:
    canonical = space(model).canonicalise(design or {})
    for module in patching.imports(canonical):
        importlib.import_module(module)
    torch.manual_seed(0)
    built = MODELS.build(ConfigDict(patching.apply(model, canonical)))
    patching.check_built(built, canonical)
    return built


def space(model: dict[str, Any]) -> Any:
    base = facts(model)
    names = [name for name in ("pod", "slimhead", "dcn", "querydet", "shallow") if not family(name).refusal(base)]
    return build_space(dict.fromkeys(names), base)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_start_as_the_base(name: str) -> None:
    model = retina(BACKBONES[name])
    plain, learning = build(model), build(model, {"pod.mode": "learn"})
    convs = {path: conv for path, conv in learning.named_modules() if isinstance(conv, GlobalScaleConv)}
    assert len(convs) == CONVS[name]
    # Those that the knobs name, in the order of the network.
    named = [path for path in paths(facts(model)) if path.startswith("backbone.layer")]
    assert list(convs) == [path for path in named if not path.startswith("backbone.layer1")]
    assert type(learning) is type(plain)
    ones = {path: [1.0, 1.0] for path in convs}
    settled = build(model, {"pod.mode": "fixed", "pod.scales": ones})
    # As mmengine initialises them: the same numbers in the same order, and neutral scales.
    for detector in (plain, learning, settled):
        torch.manual_seed(3)
        detector.init_weights()
        detector.eval()
    state = learning.state_dict()
    for key, tensor in plain.state_dict().items():
        assert torch.equal(state.pop(key), tensor), key
        assert torch.equal(settled.state_dict()[key], tensor), key
    assert {key.rsplit(".", 2)[1] for key in state} == {"scale"} and len(state) == 2 * len(convs)
    for path, conv in convs.items():
        assert not state[f"{path}.scale.weight"].any() and (state[f"{path}.scale.bias"] == 1).all()
        assert conv.scale.weight.shape == (2, conv.in_channels)
    assert count(learning) - count(plain) == sum(2 * conv.in_channels + 2 for conv in convs.values())
    assert count(settled) == count(plain)
    x = maps(1, 3, 64, 96, dtype=torch.float32)
    with torch.no_grad():
        for one, other, third in zip(*(detector.backbone(x) for detector in (plain, learning, settled)), strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, third)


@pytest.mark.parametrize(("depth", "convs", "added"), [(50, 13, 7_194), (101, 30, None)])
def test_the_papers_networks(depth: int, convs: int, added: int | None) -> None:
    """PAPERS.md, check 5: parameters that the learning network adds; the decomposed one adds none."""
    model = retina({"type": "ResNet", "depth": depth})
    model["neck"]["in_channels"] = [256, 512, 1024, 2048]
    with torch.device("meta"):
        plain, learning = build(model), build(model, {"pod.mode": "learn"})
        found = [path for path, conv in learning.named_modules() if isinstance(conv, GlobalScaleConv)]
        settled = build(model, {"pod.mode": "fixed", "pod.scales": {path: [1.4, 0.6] for path in found}})
    assert len(found) == convs
    assert added is None or count(learning) - count(plain) == added
    assert count(settled) == count(plain)


@pytest.mark.parametrize("name", ["R18", "R50", "X50"])
def test_settled_backbone(name: str) -> None:
    """With whole scales, the three networks agree; the weights pass from one to the next."""
    model = retina(BACKBONES[name])
    learning = build(model, {"pod.mode": "learn", "pod.stages": [4, 5]})
    learning.init_weights()
    generator = torch.Generator().manual_seed(0)
    scales = {}
    for path, conv in learning.named_modules():
        if isinstance(conv, GlobalScaleConv):
            scales[path] = [float(side) for side in torch.randint(0, 4, (2,), generator=generator)]
            fix(conv, *scales[path])
    assert len({*map(tuple, scales.values())}) > 3
    settled = build(model, {"pod.mode": "fixed", "pod.scales": scales, "pod.zero_taps": "sum"})
    weights = learning.state_dict()
    assert {key for key in weights if key not in translate(weights, settled)} == {
        f"{path}.scale.{part}" for path in scales for part in ("weight", "bias")
    }
    settled.load_state_dict(translate(weights, settled))
    assert translate(weights, learning).keys() == weights.keys()
    settled.load_state_dict(weights)  # a checkpoint of the learning network as it is
    x = maps(2, 3, 64, 96, dtype=torch.float32)
    learning.eval(), settled.eval()
    with torch.no_grad():
        for one, other in zip(learning.backbone(x), settled.backbone(x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_frozen_stage() -> None:
    model = retina({**BACKBONES["R18"], "frozen_stages": 2})
    for design in ({"pod.mode": "learn"}, {"pod.mode": "fixed", "pod.scales": {"backbone.layer2.0.conv1": [1.5, 1.5]}}):
        built = build(model, design)
        for _ in range(2):
            frozen = [name for name, parameter in built.named_parameters() if not parameter.requires_grad]
            assert any(name.startswith("backbone.layer2.") for name in frozen)
            assert {name.split(".")[1] for name in frozen} == {"conv1", "bn1", "layer1", "layer2"}
            assert not [name for name, parameter in built.backbone.layer2.named_parameters() if parameter.requires_grad]
            built.train()


def test_memory_is_saved_by_checkpoints() -> None:
    """``with_cp`` of a backbone runs the blocks again in the backward pass."""
    found = []
    for again in (False, True):
        built = build(retina({**BACKBONES["R50"], "with_cp": again}), {"pod.mode": "learn"})
        for conv in built.modules():
            if isinstance(conv, GlobalScaleConv):
                fix(conv, 1.3, 0.7)
        x = maps(1, 3, 64, 64, dtype=torch.float32).requires_grad_()
        built.backbone(x)[-1].square().mean().backward()
        found.append(built.backbone.layer3[2].conv2.scale.bias.grad)
    assert found[0].abs().min() > 0
    torch.testing.assert_close(*found)


# Detectors


HEADS = {
    "RetinaHead": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "TOODHead": "tood/tood_r50_fpn_1x_coco.py",
    "RPNHead": "rpn/rpn_r50_fpn_1x_coco.py",
}
TOWERS = {"RetinaHead": ["cls.0", "reg.3"], "TOODHead": ["inter.0", "inter.4"], "RPNHead": ["rpn.0"]}
NAMED = {
    "RetinaHead": ["bbox_head.cls_convs.0.conv", "bbox_head.reg_convs.3.conv"],
    "TOODHead": ["bbox_head.inter_convs.0.conv", "bbox_head.inter_convs.4.conv"],
    "RPNHead": ["rpn_head.rpn_conv"],
}


def towers_base(head: str) -> Any:
    if head == "RPNHead":
        model = retina(BACKBONES["R18"], "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")
        model["roi_head"]["bbox_roi_extractor"]["out_channels"] = 8
        model["roi_head"]["bbox_head"].update({"in_channels": 8, "fc_out_channels": 8})
        return model
    return retina(BACKBONES["R18"], HEADS[head])


@pytest.mark.parametrize("head", TOWERS)
@pytest.mark.parametrize("slim", [False, True])
def test_towers(head: str, slim: bool) -> None:
    model = towers_base(head)
    part = dense_part(model)
    with_slim = {"slimhead.levels": [0], "slimhead.ratio": 0.5} if slim else {}
    design = {"pod.mode": "learn", "pod.stages": [], "pod.towers": TOWERS[head], **with_slim}
    plain, learning = build(model, with_slim), build(model, design)
    assert [path for path, conv in learning.named_modules() if isinstance(conv, GlobalScaleConv)] == NAMED[head]
    assert set(NAMED[head]) <= set(paths(facts(model)))
    for detector in (plain, learning):
        torch.manual_seed(3)
        detector.init_weights()
        detector.eval()
    for key, tensor in plain.state_dict().items():
        assert torch.equal(learning.state_dict()[key], tensor), key
    pyramid = tuple(maps(1, 8, *size, dtype=torch.float32) for size in ((24, 40), (12, 20), (6, 10), (3, 5), (2, 3)))

    def outputs(detector: Any) -> list[Tensor]:
        with torch.no_grad():
            return [out for group in getattr(detector, part)(pyramid) for out in group]

    base = outputs(plain)
    assert all(map(torch.equal, base, outputs(learning)))
    for path in NAMED[head]:
        fix(learning.get_submodule(path), 2.0, 1.0)
    moved = outputs(learning)
    assert not any(map(torch.equal, base, moved))
    fixed = {**with_slim, "pod.mode": "fixed", "pod.scales": {path: [2, 1] for path in NAMED[head]}}
    settled = build(model, fixed)
    settled.load_state_dict(learning.state_dict())
    for one, other in zip(moved, outputs(settled.eval()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # Mixins of other families and the replaced layers have found each other in either order.
    assert (type(getattr(learning, part)).__name__.startswith("SlimHead")) == slim


@pytest.mark.parametrize("head", ["TOODHead", "RetinaHead"])
def test_initialisation_of_decomposed_towers(head: str) -> None:
    """mmdet's heads reach for ``conv.weight`` or for layers of the name Conv2d: both find the whole weight."""
    model = towers_base(head)
    plain = build(model)
    settled = build(model, {"pod.mode": "fixed", "pod.scales": {path: [1.6, 0.4] for path in NAMED[head]}})
    for detector in (plain, settled):
        torch.manual_seed(3)
        detector.init_weights()
    for key, tensor in plain.state_dict().items():
        assert torch.equal(settled.state_dict()[key], tensor), key
    weight = settled.get_submodule(NAMED[head][0]).weight
    assert weight.std().item() == pytest.approx(0.01, rel=0.2)


def test_a_stack_in_the_rpn() -> None:
    model = towers_base("RPNHead")
    model["rpn_head"]["num_convs"] = 3
    learning = build(model, {"pod.mode": "learn", "pod.stages": [], "pod.towers": ["rpn.0", "rpn.2"]})
    found = [path for path, conv in learning.named_modules() if isinstance(conv, GlobalScaleConv)]
    assert found == ["rpn_head.rpn_conv.0.conv", "rpn_head.rpn_conv.2.conv"]
    assert set(found) <= set(paths(facts(model)))


def test_with_deformable_neighbours() -> None:
    model = retina(BACKBONES["R18"])
    design = {"pod.mode": "learn", "pod.towers": ["cls.2"], "dcn.placement": ["cls.0", "reg.0"]}
    learning = build(model, design)
    assert isinstance(learning.bbox_head.cls_convs[2].conv, GlobalScaleConv)
    assert len([conv for conv in learning.modules() if isinstance(conv, GlobalScaleConv)]) == 13


def sample(size: tuple[int, int]) -> DetDataSample:
    info = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size)
    return DetDataSample(metainfo={**info, "scale_factor": (1.0, 1.0)})


def test_observer() -> None:
    model = retina(BACKBONES["R18"])
    learning = build(model, {"pod.mode": "learn", "pod.stages": [5], "pod.towers": ["cls.1"]}).eval()
    learning.init_weights()
    convs = {path: conv for path, conv in learning.named_modules() if isinstance(conv, GlobalScaleConv)}
    torch.manual_seed(0)
    for conv in convs.values():
        vary(conv, 1.4, 2.3)
    x = maps(3, 3, 64, 96, dtype=torch.float32)
    observer = Observer(learning)
    with torch.no_grad():
        with observer:
            learning._forward(x[:2])
            first = observer.rows()
            learning.predict(x[2:], [sample((64, 96))])
            # Several passes since the last call.
            learning._forward(x[:1])
        learning._forward(x)  # not observed
    rows = [*first, *observer.rows()]
    assert len(first) == 2 and len(rows) == 4 and observer.rows() == []
    assert all(list(row) == list(convs) for row in rows)
    assert rows[3] == {path: pytest.approx(scale, rel=1e-5) for path, scale in rows[0].items()}
    assert json.loads(json.dumps(rows)) == rows
    # Against the scales themselves.
    with torch.no_grad():
        features = learning.extract_feat(x)
        c4 = learning.backbone(x)[2]
        expected = learning.backbone.layer4[0].conv1.scale(c4)
        first, second = learning.bbox_head.cls_convs[:2]
        towers = [second.conv.scale(first(level)) for level in features]
    for image in range(3):
        assert rows[image]["backbone.layer4.0.conv1"] == pytest.approx(expected[image].tolist(), rel=1e-5)
        mean = torch.stack(towers).mean(0)[image].tolist()  # over the levels
        assert rows[image]["bbox_head.cls_convs.1.conv"] == pytest.approx(mean, rel=1e-5)
    assert len({tuple(row["backbone.layer4.0.conv1"]) for row in rows[:3]}) == 3
    found = summary(rows[:3])["backbone.layer4.0.conv1"]
    assert found["d_h"] == pytest.approx(expected[:, 0].mean().item(), rel=1e-5)
    assert found["std_w"] == pytest.approx(expected[:, 1].std(unbiased=False).item(), rel=1e-3)


def c4() -> Any:
    """A small detector of the C4 kind: its RoI head runs the fifth stage."""
    path = "faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py"
    whole = Config.fromfile(str(Path(mmdet.__file__).parent / ".mim" / "configs" / path)).model.to_dict()
    whole["backbone"].update({"depth": 18, "init_cfg": None})
    whole["roi_head"]["shared_head"].update({"depth": 18, "init_cfg": None})
    whole["roi_head"]["bbox_roi_extractor"].update({"out_channels": 256})
    whole["roi_head"]["bbox_roi_extractor"]["roi_layer"]["output_size"] = 4
    whole["roi_head"]["bbox_head"].update({"in_channels": 512, "roi_feat_size": 2, "num_classes": 3})
    whole["rpn_head"].update({"in_channels": 256, "feat_channels": 8})
    whole["test_cfg"]["rpn"].update({"nms_pre": 10, "max_per_img": 3})
    whole.pop("data_preprocessor")
    return whole


def test_shared_head() -> None:
    model = c4()
    base = facts(model)
    assert base.backbone == BackboneFacts("ResNet", (2, 2, 2, 2), True, (), 5)
    plain, learning = build(model), build(model, {"pod.mode": "learn"})
    names = [path for path, conv in learning.named_modules() if isinstance(conv, GlobalScaleConv)]
    shared = [f"roi_head.shared_head.layer4.{block}.conv{index}" for block in (0, 1) for index in (1, 2)]
    assert names[8:] == shared
    assert names[:3] == ["backbone.layer2.0.conv1", "backbone.layer2.0.conv2", "backbone.layer2.1.conv1"]
    for detector in (plain, learning):
        torch.manual_seed(3)
        detector.init_weights()
        detector.eval()
    x = maps(1, 3, 64, 96, dtype=torch.float32)
    with torch.no_grad():
        ones = [detector.predict(x, [sample((64, 96))])[0].pred_instances for detector in (plain, learning)]
        assert torch.equal(ones[0].bboxes, ones[1].bboxes) and torch.equal(ones[0].scores, ones[1].scores)
        # A scale for each RoI, averaged over them.
        vary(learning.get_submodule(shared[0]), 1.4, 2.3)
        seen = []
        learning.get_submodule(shared[0]).scale.register_forward_hook(lambda *args: seen.append(args[2]))
        with Observer(learning) as observer:
            learning.predict(x, [sample((64, 96))])
    (row,) = observer.rows()
    assert list(row) == names
    assert len(seen) == 1 and seen[0].shape == (3, 2) and seen[0].std(0).min() > 0
    assert row[shared[0]] == pytest.approx(seen[0].mean(0).tolist(), rel=1e-5)
    learned = summary([row])
    pod = family("pod")
    design = space(model).canonicalise({"pod.mode": "decompose"})
    final = patching.settled(design, learned)
    assert patching.learning(design) == {"pod.mode": "learn", "pod.stages": [3, 4, 5], "pod.towers": []}
    assert space(model).canonicalise(final) == final and final["pod.mode"] == "fixed"
    assert [row[0] for row in final["pod.scales"]] == sorted(names)
    settled = build(model, final)
    settled.load_state_dict(learning.state_dict())
    assert settled.get_submodule(shared[0]).split == decompose(*row[shared[0]], 512)
    assert settled.get_submodule(shared[1]).split == Split((1, 1), (1, 1), 512, 0)
    with torch.no_grad():
        settled.eval().predict(x, [sample((64, 96))])
    # The key-part family takes the shared head away.
    reason = pod.clash({"pod": {"mode": "learn", "stages": (3, 5)}, "keyparts": {}}, base)
    assert reason == "stages: must leave out 5 with keyparts, whose heads take the place of conv5."
    fixed = {"mode": "fixed", "scales": ((shared[0], 1.0, 2.0),)}
    assert str(pod.clash({"pod": fixed, "keyparts": {}}, base)).startswith("scales: must leave out conv5 with keyparts")
    assert pod.clash({"pod": {"mode": "learn", "stages": (3, 4)}, "keyparts": {}}, base) is None


def test_what_cannot_be_replaced() -> None:
    model = retina(BACKBONES["R18"])
    options = {"tolerance": 0.05, "round_channels": 1, "zero_taps": "centre"}

    def dilate(**dilations: Any) -> None:
        given = copy.deepcopy({key: value for key, value in model.items() if key != "type"})
        DilatedDetector("RetinaNet", dilations, **ConfigDict(given))

    with pytest.raises(ValueError, match=r"^pod: RetinaNet has no stage 6\.$"):
        dilate(stages=[6], towers=[])
    with pytest.raises(ValueError, match=r"^pod: RetinaNet has no bbox_head\.cls_convs\.4\.conv"):
        dilate(stages=[], towers=["cls.4"])
    with pytest.raises(ValueError, match=r"^pod: backbone\.conv1 must be a plain 3x3 convolution"):
        dilate(scales=[["backbone.conv1", 1.0, 1.0]], **options)
    with pytest.raises(ValueError, match=r"^pod: RetinaNet has no backbone\.layer9"):
        dilate(scales=[["backbone.layer9.0.conv1", 1.0, 1.0]], **options)


# Knobs


@pytest.fixture
def base() -> BaseFacts:
    backbone = BackboneFacts("ResNet", (3, 4, 6, 3), False)
    return BaseFacts("RetinaNet", "RetinaHead", (8, 16, 32, 64, 128), 4, True, backbone=backbone)


def test_paths(base: BaseFacts) -> None:
    found = paths(base)
    assert len(found) == 16 + 8
    assert found[:4] == (*(f"backbone.layer1.{block}.conv2" for block in range(3)), "backbone.layer2.0.conv2")
    assert found[-1] == "bbox_head.reg_convs.3.conv"


def canonical(base: BaseFacts, **values: Any) -> dict[str, Any]:
    names = [name for name in ("pod", "dcn", "querydet", "shallow", "ddod") if not family(name).refusal(base)]
    given = {key.replace("__", "."): value for key, value in values.items()}
    return build_space(dict.fromkeys(names), base).canonicalise(given)


def test_defaults(base: BaseFacts) -> None:
    assert canonical(base, pod__mode="decompose") == {
        "pod.mode": "decompose",
        "pod.stages": [3, 4, 5],
        "pod.towers": [],
        "pod.tolerance": 0.05,
        "pod.round_channels": 1,
        "pod.zero_taps": "centre",
        "pod.transfer": True,
        "pod.learn_share": 0.5,
    }
    assert canonical(base, pod__mode="learn", pod__stages=["conv5", 2]) == {
        "pod.mode": "learn",
        "pod.stages": [2, 5],
        "pod.towers": [],
    }
    for off in ({"pod__mode": "off"}, {"pod__mode": False}, {"pod__stages": []}):
        assert canonical(base, **off) == {}
    assert canonical(base, pod__stages=[], pod__towers="cls")["pod.towers"] == ["cls.0", "cls.1", "cls.2", "cls.3"]


def test_what_is_searched_unasked(base: BaseFacts) -> None:
    alone = build_space({"pod": None}, base)
    assert alone.size() == 7 * 2  # the subsets of conv3 to conv5; channels as they come, or in sixteens
    wide = build_space({"pod": {"tolerance": {"low": 0.0, "high": 0.1, "step": 0.05}, "transfer": [True, False]}}, base)
    assert wide.size() == 7 * 2 * 3 * 2
    assert build_space({"pod": {"towers": {"among": [0]}}}, base).size() == 28 * 2
    assert build_space({"pod": {"mode": ["off", "decompose"], "stages": [[3, 4, 5]]}}, base).size() == 1 + 2
    learners = [space for space in (alone, wide) for corner in space.corners() if not space.learns(corner)]
    assert not learners


def test_given_scales(base: BaseFacts) -> None:
    path, other = "backbone.layer3.5.conv2", "backbone.layer2.0.conv2"
    design = canonical(base, pod__mode="fixed", pod__scales={path: [8.49, 9.34], other: (1, 0)})
    assert design == {
        "pod.mode": "fixed",
        "pod.tolerance": 0.05,
        "pod.round_channels": 1,
        "pod.zero_taps": "centre",
        "pod.scales": [[other, 1.0, 0.0], [path, 8.49, 9.34]],
    }
    # Another spelling is the same design, through JSON too.
    again = json.loads(json.dumps(design))
    assert canonical(base, **{key.replace(".", "__"): value for key, value in again.items()}) == design
    same = canonical(base, pod__mode="fixed", pod__scales=[[path, 8.49, 9.34], [other, 1, 0]], pod__stages=[3])
    assert design_hash(same) == design_hash(design)
    narrowed = build_space(
        {"pod": {"mode": "fixed", "scales": {path: [2, 2]}, "round_channels": 1, "always": True}}, base
    )
    assert narrowed.size() == 1
    assert narrowed.canonicalise({key: knob.default for key, knob in narrowed.knobs.items()})["pod.scales"] == [
        [path, 2.0, 2.0]
    ]


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({}, "design: pod: scales: must name at least one convolution with mode fixed; mode decompose learns them."),
        ({"backbone.layer3.6.conv2": [1, 1]}, "pod.scales: unknown 'backbone.layer3.6.conv2'; did you mean 'backbone."),
        (
            {"backbone.layer3.5.conv2": [1, -1]},
            "pod.scales: backbone.layer3.5.conv2: must be 2 numbers in [0, 64], but",
        ),
        (
            {"backbone.layer3.5.conv2": 2},
            "pod.scales: backbone.layer3.5.conv2: must be 2 numbers in [0, 64], but got [2]",
        ),
        ("twice", "pod.scales: must be a table of 2 numbers in [0, 64] by name"),
    ],
)
def test_wrong_scales(base: BaseFacts, scales: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        canonical(base, pod__mode="fixed", pod__scales=scales)
    assert str(error.value).startswith(message)


def test_what_the_base_deforms() -> None:
    backbone = BackboneFacts("ResNet", (3, 4, 6, 3), False, deformed=(4, 5))
    base = BaseFacts("DDOD", "DDODHead", (8, 16), 4, False, deformed=("cls.0", "reg.0"), backbone=backbone)
    assert canonical(base, pod__mode="learn")["pod.stages"] == [3]
    for key, value, message in (
        (
            "pod__stages",
            [4],
            "pod.stages: must be a list of 2 or 3 (short: conv2 or conv3), but got 4. "
            "The base itself deforms conv4 and conv5.",
        ),
        ("pod__towers", ["cls.0"], "but got 'cls.0'. The base itself deforms cls.0 and reg.0."),
        ("pod__scales", {"backbone.layer3.0.conv2": [1, 1]}, "pod.scales: unknown 'backbone.layer3.0.conv2'"),
    ):
        with pytest.raises(UserError) as error:
            canonical(base, **{key: value})
        assert message in str(error.value)


def test_other_backbones_are_refused(base: BaseFacts) -> None:
    other = BaseFacts("GFL", "GFLHead", (8, 16), 4, False)
    assert family("pod").refusal(other) == (
        "works on the backbones ResNet, ResNetV1d and ResNeXt, but the base GFL has another."
    )
    assert family("pod").refusal(base) is None


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            {"dcn__placement": ["cls.0"]},
            "design: pod: towers: cls.0 cannot be deformable (dcn.placement) and dilated at once.",
        ),
        ({"dcn__placement": ["cls.1"]}, None),
        ({"querydet__threshold": 0.1}, "design: pod: towers: must leave the towers out with querydet, whose sparse"),
        ({"shallow__levels": [0]}, "design: pod: towers: must leave the towers out with shallow, which gives some"),
    ],
)
def test_clashes(base: BaseFacts, others: dict[str, Any], message: str | None) -> None:
    base = BaseFacts(**{**vars(base), "finer": 1})
    towers = {"pod__mode": "learn", "pod__towers": ["cls.0", "reg.2"]}
    given = {"pod__mode": "fixed", "pod__scales": {"bbox_head.cls_convs.0.conv": [2, 2]}}
    for values in (towers, given):
        if message is None:
            assert "dcn.placement" in canonical(base, **values, **others)
            continue
        with pytest.raises(UserError) as error:
            canonical(base, **values, **others)
        assert str(error.value).startswith(message if values is towers else message.replace("towers:", "scales:", 1))
    assert len(canonical(base, pod__mode="learn", **others)) > 3  # the backbone goes with all of them


def test_knobs_survive_json(base: BaseFacts) -> None:
    for knob in family("pod").knobs(base):
        assert knob_from_json(json.loads(json.dumps(knob.to_json()))) == knob


def test_mismatch() -> None:
    model = retina(BACKBONES["R18"])
    plain, learning = build(model), build(model, {"pod.stages": [5]})
    values = {"mode": "decompose", "stages": [5], "towers": [], "tolerance": 0.05, "round_channels": 1}
    values |= {"zero_taps": "centre", "transfer": True, "learn_share": 0.5}
    assert mismatch(learning, values) is None
    assert str(mismatch(plain, values)).startswith("scales are learned at [] instead of ['backbone.layer4.0.conv1'")
    for key, other in (("stages", [4, 5]), ("towers", ["cls.0"]), ("tolerance", 0.1), ("transfer", False)):
        assert mismatch(learning, {**values, key: other}) is not None
    row = ["backbone.layer4.0.conv1", 0.6, 1.5]
    fixed = {"mode": "fixed", "tolerance": 0.05, "round_channels": 1, "zero_taps": "centre", "scales": [row]}
    settled = build(model, {f"pod.{key}": value for key, value in fixed.items()})
    assert mismatch(settled, fixed) is None
    assert str(mismatch(plain, fixed)).startswith("dilations are fixed at [] instead of ['backbone.layer4.0.conv1']")
    assert str(mismatch(settled, values)).startswith("scales are learned at [] instead of")
    for key, other in (("tolerance", 0.5), ("round_channels", 16), ("zero_taps", "sum"), ("scales", [[row[0], 1, 2]])):
        assert mismatch(settled, {**fixed, key: other}) is not None
    with pytest.raises(HeadwayError, match=r"^pod: the patched config did not take effect"):
        patching.check_built(plain, {f"pod.{key}": value for key, value in fixed.items()})


def test_scopes() -> None:
    """A config of another default scope names mmdet's types with theirs."""
    model = retina(BACKBONES["R18"])
    model["type"] = "mmdet.RetinaNet"
    patched = patching.apply(model, canonical_of(model, {"pod.mode": "learn"}))
    assert (patched["type"], patched["base_type"]) == ("mmdet.DilatedDetector", "mmdet.RetinaNet")
    assert type(build(model, {"pod.mode": "learn"})).__name__ == "RetinaNet"


def canonical_of(model: Any, design: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = space(model).canonicalise(design)
    return found
