"""Deformable convolution against known answers, brute force and mmcv's operators."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from mmcv.ops import deform_conv2d, modulated_deform_conv2d
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from spaces import products
from spaces.dcn import sampling
from spaces.dcn.modules import TYPES
from spaces.dcn.sampling import deformable_conv2d

DOUBLE = torch.float64
GEOMETRIES = [
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((3, 3), (1, 1), (2, 2), (2, 2)),
    ((3, 5), (1, 2), (0, 3), (2, 1)),
    ((1, 1), (1, 1), (0, 0), (1, 1)),
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def sites(sides: tuple[int, int], kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[int]:
    settings = zip(sides, kernel, stride, padding, dilation, strict=True)
    return [(side + 2 * pad - wide * (size - 1) - 1) // step + 1 for side, size, step, pad, wide in settings]


def inputs(
    geometry: Any, sides: tuple[int, int] = (9, 11), channels: tuple[int, int] = (4, 6), images: int = 2,
    spread: float = 3.0, dtype: torch.dtype = DOUBLE,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Offsets that reach beyond the map."""
    kernel = geometry[0]
    taps, size = math.prod(kernel), sites(sides, *geometry)
    x = torch.randn(images, channels[0], *sides, dtype=dtype)
    offset = spread * torch.randn(images, 2 * taps, *size, dtype=dtype)
    mask = torch.rand(images, taps, *size, dtype=dtype)
    weight = torch.randn(channels[1], channels[0], *kernel, dtype=dtype) / math.sqrt(taps * channels[0])
    return x, offset, mask, weight, torch.randn(channels[1], dtype=dtype)


def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several runs of several tiles."""
    monkeypatch.setattr(sampling, "_SITES", 30)
    monkeypatch.setattr(sampling, "_AHEAD", 2)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("tiles", [False, True])
def test_no_offset_is_a_plain_convolution(geometry: Any, tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if tiles:
        small_tiles(monkeypatch)
    x, offset, mask, weight, bias = inputs(geometry)
    _, stride, padding, dilation = geometry
    wanted = F.conv2d(x, weight, bias, stride, padding, dilation)
    found = deformable_conv2d(x, 0 * offset, torch.ones_like(mask), weight, bias, stride, padding, dilation)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)
    found = deformable_conv2d(x, 0 * offset, None, weight, None, stride, padding, dilation)
    torch.testing.assert_close(found, wanted - bias[:, None, None], rtol=0, atol=1e-13)


@pytest.mark.parametrize("down", [-20, -3, 0, 2, 9, 1000])
@pytest.mark.parametrize("right", [-1, 5, 11])
def test_whole_offsets_shift_the_map(down: int, right: int) -> None:
    """Also beyond the map, where all is zero."""
    x, offset, _, weight, _ = inputs(GEOMETRIES[0])
    offset[:, 0::2], offset[:, 1::2] = down, right
    wide = F.pad(x, (40, 40, 40, 40))
    height, width = (max(-30, min(30, step)) for step in (down, right))
    shifted = wide[:, :, 39 + height : 50 + height, 39 + width : 52 + width]
    wanted = F.conv2d(shifted, weight)
    found = deformable_conv2d(x, offset, None, weight, None, (1, 1), (1, 1), (1, 1))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


def brute(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, geometry: Any) -> Tensor:
    """Number by number, as the papers write it: a sum over the map of max(0, 1 - distance) on both axes."""
    kernel, stride, padding, dilation = geometry
    height, width = x.shape[2:]
    out = x.new_zeros(len(x), len(weight), *offset.shape[2:])
    for image, row, column in itertools.product(*map(range, (len(x), *offset.shape[2:]))):
        for tap, (i, j) in enumerate(itertools.product(*map(range, kernel))):
            dy, dx = offset[image, 2 * tap : 2 * tap + 2, row, column].tolist()
            y = row * stride[0] - padding[0] + i * dilation[0] + dy
            z = column * stride[1] - padding[1] + j * dilation[1] + dx
            read = sum(
                max(0.0, 1 - abs(y - r)) * max(0.0, 1 - abs(z - c)) * x[image, :, r, c]
                for r in range(height)
                for c in range(width)
            )
            out[image, :, row, column] += mask[image, tap, row, column] * (weight[:, :, i, j] @ read)
    return out


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_brute_force(geometry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    x, offset, mask, weight, _ = inputs(geometry, sides=(5, 6), channels=(2, 3), spread=1.5)
    found = deformable_conv2d(x, offset, mask, weight, None, *geometry[1:])
    torch.testing.assert_close(found, brute(x, offset, mask, weight, geometry), rtol=0, atol=1e-13)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_gradients(geometry: Any, version: int, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_SITES", 7)
    monkeypatch.setattr(sampling, "_AHEAD", 3)
    given = list(inputs(geometry, sides=(6, 5), channels=(2, 3), spread=1.5))
    if last:
        given[:3] = [value.contiguous(memory_format=torch.channels_last) for value in given[:3]]
    given = [value.requires_grad_() for value in given]
    if version == 1:
        del given[4], given[2]

    def function(x: Tensor, offset: Tensor, *rest: Tensor) -> Tensor:
        mask, weight, bias = rest if version == 2 else (None, *rest, None)
        return deformable_conv2d(x, offset, mask, weight, bias, *geometry[1:])

    assert torch.autograd.gradcheck(function, given, fast_mode=True)


def by_mmcv(x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    if mask is None:
        return deform_conv2d(x, offset, weight, *rest)
    return modulated_deform_conv2d(x, offset, mask, weight, bias, *rest)


def all_of(function: Any, given: tuple[Tensor | None, ...], *settings: Any) -> list[Tensor]:
    """The output, and the gradients for a given gradient of it."""
    leaves = [None if value is None else value.clone().requires_grad_() for value in given]
    out = function(*leaves, *settings)
    arriving = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out, *torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], arriving)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("spread", [0.0, 5.0])
def test_mmcvs_operators(geometry: Any, version: int, dtype: torch.dtype, tolerance: float, spread: float) -> None:
    """Output and gradients; at no offset at all, taps stand exactly on the border, where a gradient ends."""
    given: Any = inputs(geometry, sides=(40, 50), channels=(32, 16), spread=spread, dtype=dtype)
    if version == 1:
        given = (*given[:2], None, given[3], None)
    wanted, found = (all_of(function, given, *geometry[1:]) for function in (by_mmcv, deformable_conv2d))
    assert found[0].is_contiguous()
    assert found[1].is_contiguous()
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=tolerance * float(one.detach().abs().max() + 1e-3))


@pytest.mark.parametrize("version", [1, 2])
def test_channels_last(version: int) -> None:
    given = inputs(GEOMETRIES[0], dtype=torch.float32)
    x, offset, mask, weight, bias = given if version == 2 else (*given[:2], None, given[3], None)
    plain = all_of(deformable_conv2d, (x, offset, mask, weight, bias), (1, 1), (1, 1), (1, 1))
    turned = tuple(
        value.contiguous(memory_format=torch.channels_last) if value is not None and value.dim() == 4 else value
        for value in (x, offset, mask, weight, bias)
    )
    found = all_of(deformable_conv2d, turned, (1, 1), (1, 1), (1, 1))
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[1].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(plain, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def test_a_map_of_one_site_stays_plain() -> None:
    """Resized, it has plain memory, which mmcv's operators need."""
    x, offset, mask, weight, bias = inputs(GEOMETRIES[0], sides=(1, 1))
    out = deformable_conv2d(x, offset, mask, weight, bias, (1, 1), (1, 1), (1, 1))
    assert F.interpolate(out, size=(3, 4), mode="bilinear").is_contiguous()


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("channels", [1, 6])
def test_the_output_may_be_changed_in_place(images: int, last: bool, channels: int) -> None:
    """By an activation, as where a tower has no norm."""
    x, offset, mask, weight, bias = inputs(GEOMETRIES[0], images=images, channels=(4, channels))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    found = []
    for inplace in (False, True):
        leaves = [value.clone().requires_grad_() for value in (x, offset, mask, weight, bias)]
        out = F.relu(deformable_conv2d(*leaves, (1, 1), (1, 1), (1, 1)), inplace=inplace)
        assert out.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        found.append(torch.autograd.grad((out**2).sum(), leaves))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e30])
def test_offsets_that_are_nowhere_read_zero(wrong: float) -> None:
    x, offset, mask, weight, bias = inputs(GEOMETRIES[0], dtype=torch.float32)
    offset[:, :, 2:4] = wrong
    offset[0, 3] = wrong
    rest = (weight, bias, (1, 1), (1, 1), (1, 1))
    out, *gradients = all_of(deformable_conv2d, (x, offset, mask, *rest[:2]), *rest[2:])
    torch.testing.assert_close(out, by_mmcv(x, offset, mask, *rest), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[:, :, 2:4], bias[:, None, None].expand_as(out[:, :, 2:4]))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[1][:, :, 2:4].any()


def test_only_what_is_asked_for() -> None:
    given = inputs(GEOMETRIES[0])
    whole = all_of(deformable_conv2d, given, (1, 1), (1, 1), (1, 1))[1:]
    for number, wanted in enumerate(whole):
        leaves = [value.clone().requires_grad_(index == number) for index, value in enumerate(given)]
        out = deformable_conv2d(*leaves, (1, 1), (1, 1), (1, 1))
        arriving = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        (found,) = torch.autograd.grad(out, leaves[number], arriving)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("version", [1, 2])
def test_no_image(version: int) -> None:
    layer = TYPES[version](4, 6, 3, padding=1, bias=False)
    out = layer(torch.zeros(0, 4, 5, 7, requires_grad=True))
    assert out.shape == (0, 6, 5, 7)
    out.sum().backward()
    assert not layer.weight.grad.any()


@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_where_mmcvs_operators_compute_it(masked: bool) -> None:
    """They know it on no device: with groups, and so on every GPU, they are asked in single precision."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 9, 11), torch.randn(8, 4, 3, 3)
    offset, mask = torch.randn(2, 18, 9, 11).bfloat16(), torch.rand(2, 9, 9, 11).bfloat16() if masked else None
    settings: dict[str, Any] = {"padding": (1, 1), "groups": 2}
    given = [part.requires_grad_() for part in (x, offset, weight)]
    found = deformable_conv2d(x, offset, mask, weight, **settings)
    wanted = deformable_conv2d(x, offset.float(), mask if mask is None else mask.float(), weight, **settings)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted.bfloat16())
    up = torch.randn_like(wanted).bfloat16()
    for one, other in zip(
        torch.autograd.grad(found, given, up), torch.autograd.grad(wanted, given, up.float()), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(version: int, dtype: torch.dtype) -> None:
    """The places are in single precision: at 300 a step of bfloat16 is 2."""
    given = inputs(GEOMETRIES[0], sides=(3, 300), channels=(8, 8), images=1, spread=1.0, dtype=torch.float32)
    x, offset, mask, weight, _ = (value.to(dtype).float() for value in given)
    half = [None if version == 1 and value is mask else value for value in (x, offset, mask, weight)]
    settings = ((1, 1), (1, 1))
    wanted, found = (
        all_of(deformable_conv2d, tuple(None if value is None else value.to(kind) for value in half), None, *settings)
        for kind in (torch.float32, dtype)
    )
    for one, other in zip(wanted, found, strict=True):
        assert other.dtype == dtype
        assert (other - one).abs().max() < 0.02 * one.abs().max()


@pytest.mark.parametrize("version", [1, 2])
def test_autocast(version: int) -> None:
    layer = TYPES[version](8, 8, 3, padding=1, bias=False)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
    x = torch.randn(2, 8, 9, 11)
    wanted = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()
    found.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("version", [1, 2])
def test_inference_mode(version: int) -> None:
    layer = TYPES[version](4, 6, 3, padding=1, bias=False)
    x = torch.randn(2, 4, 5, 7)
    wanted = layer(x)
    with torch.inference_mode():
        assert torch.equal(layer(x), wanted)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_onednns_products_give_the_same(version: int, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    given = inputs(GEOMETRIES[0], (12, 20), (16, 32), dtype=torch.float32)
    given = tuple(value.requires_grad_(training) for value in given)
    x, offset, mask, weight, bias = given if version == 2 else (*given[:2], None, given[3], None)

    def found() -> list[Tensor]:
        for value in given:
            value.grad = None
        out = deformable_conv2d(x, offset, mask, weight, bias, *GEOMETRIES[0][1:])
        if training:
            out.square().sum().backward()
        return [out.detach(), *(value.grad for value in given if value.grad is not None)]

    ours = found()
    calls: list[int] = []
    monkeypatch.setattr(products, "_past_torch", lambda weight: calls.append(len(weight)))
    # Sums of 144 products of either sign, in another order.
    for value, wanted in zip(ours, found(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-4)
    assert calls == [32]  # one matrix for all tiles


def test_groups_are_mmcvs() -> None:
    x, offset, mask, weight, bias = inputs(GEOMETRIES[0], dtype=torch.float32)
    settings = ((1, 1), (1, 1), (1, 1), 2, 2)
    given = (x, torch.cat((offset, -offset), 1), torch.cat((mask, mask), 1), weight[:, :2].contiguous(), bias)
    assert torch.equal(deformable_conv2d(*given, *settings), by_mmcv(*given, *settings))


def test_shapes_are_checked() -> None:
    x, offset, mask, weight, bias = inputs(GEOMETRIES[0])
    with pytest.raises(ValueError, match=r"^offset: must be of shape \(2, 18, 9, 11\), but is of \(2, 18, 8, 11\)\.$"):
        deformable_conv2d(x, offset[:, :, 1:], mask, weight, bias, (1, 1), (1, 1), (1, 1))
    with pytest.raises(ValueError, match=r"^mask: must be of shape \(2, 9, 9, 11\), but is of \(2, 8, 9, 11\)\.$"):
        deformable_conv2d(x, offset, mask[:, 1:], weight, bias, (1, 1), (1, 1), (1, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("version", [1, 2])
def test_cuda_gives_the_same(version: int) -> None:
    given: Any = inputs(GEOMETRIES[0], channels=(16, 16), dtype=torch.float32)
    if version == 1:
        given = (*given[:2], None, given[3], None)
    settings = ((1, 1), (1, 1), (1, 1))
    wanted = all_of(deformable_conv2d, given, *settings)
    found = all_of(deformable_conv2d, tuple(None if value is None else value.cuda() for value in given), *settings)
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=0, atol=1e-4 * float(one.detach().abs().max()))
