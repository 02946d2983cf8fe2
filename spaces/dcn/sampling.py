"""Deformable convolution; on a CPU as a gather of rows and one product of matrices.

With channels last the four corners that a tap reads are four rows of a table, and their weighted sum is what
``embedding_bag`` computes in one pass. The samples of a site's taps stand side by side in a row of their own, so what
is left is a product with the weights. mmcv's operator for CPUs reads a plain map number by number.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from mmcv.ops import deform_conv2d, modulated_deform_conv2d
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from spaces.products import Matrix

Pair = tuple[int, int]
# On one axis, of the whole places before and after a place: their factors, and themselves.
Around = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]

# Sites sampled at a time. With fewer the product is slower; with more their samples leave the cache.
_SITES = 1008
# Tiles of sites whose places are computed at a time: in one tile there is not enough to do for two threads.
_AHEAD = 16


def deformable_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Convolves what is read beside each tap's place by bilinear interpolation, zeros lying outside.

    Equal to mmcv's operators to rounding, first derivatives included, for tensors of any memory format, any batch and
    maps smaller than the kernel. An offset that is no number reads zero. Half precision is sampled at places in single
    precision, and its gradients are summed up in single precision.

    Args:
        x: (N, C, H, W).
        offset: (N, 2 * G * K, H', W') in px, y and x of the K taps in turn, for each of G deformable groups.
        mask: (N, G * K, H', W'), factors of the samples (version 2); ``None`` for version 1.
        weight: (C', C / groups, kernel rows, kernel columns).
        bias: (C',), with version 2 only.
        stride: Of rows and of columns.
        padding: Of rows and of columns.
        dilation: Of rows and of columns.
        groups: Of the convolution; mmcv's operator computes more than one.
        deform_groups: G; mmcv's operator computes more than one.

    Returns:
        (N, C', H', W'), in the memory format of ``x``.

    Raises:
        ValueError: ``offset`` or ``mask`` do not fit the map.
    """
    settings = (tuple(stride), tuple(padding), tuple(dilation))
    if x.device.type != "cpu" or groups * deform_groups > 1 or torch.onnx.is_in_onnx_export():
        return _by_mmcv(x, offset, mask, weight, bias, *settings, groups, deform_groups)
    # The offset decides, as with mmcv: autocast lets it out of its convolution in half precision.
    x, weight = x.to(offset.dtype), weight.to(offset.dtype)
    places = Offsets(x, tuple(weight.shape[2:]), *settings)
    given = []
    for name, value, each in (("offset", offset, 2), ("mask", mask, 1)):
        wanted = (len(x), each * places.taps, *places.size)
        if value is not None and value.shape != wanted:
            raise ValueError(f"{name}: must be of shape {wanted}, but is of {tuple(value.shape)}.")
        given.append(None if value is None else _last(value).flatten(0, 1))
    return sampled_conv2d(places, x, weight, None if bias is None else bias.to(x.dtype), *given)


def sampled_conv2d(places: "Places", x: Tensor, weight: Tensor, bias: Tensor | None, *given: Tensor | None) -> Tensor:
    """Convolves, on a CPU, what is read at ``places``.

    Args:
        places: Where it is read.
        x: (N, C, H, W).
        weight: (C', C, kernel rows, kernel columns), of the type of ``x``.
        bias: (C',), likewise.
        *given: What the places depend on; has gradients as well.

    Returns:
        (N, C', H', W'), in the memory format of ``x``.
    """
    out: Tensor = _Sampled.apply(places, x, weight, bias, *given)
    return out


class Places(ABC):
    """Where the taps of all sites read, the rows of all images' sites being the rows of one tall map.

    Attributes:
        sides: H and W of the map.
        size: H' and W' of the sites.
        taps: Of a site.
        image: (N * H',), the image of each row.
        top: (N * H', 1, taps), where taps stand without an offset; in single precision, like ``left``.
        left: (W', taps).
    """

    def __init__(self, x: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
        images, _, *self.sides = x.shape
        axes = zip(self.sides, kernel, stride, padding, dilation, strict=True)
        rows, columns = ((side + 2 * pad - wide * (size - 1) - 1) // step + 1 for side, size, step, pad, wide in axes)
        self.size = rows, columns
        self.taps = math.prod(kernel)
        self.image = torch.arange(images).repeat_interleave(rows)
        tap = torch.arange(self.taps)
        down, right = tap // kernel[1] * dilation[0] - padding[0], tap % kernel[1] * dilation[1] - padding[1]
        self.top = (torch.arange(rows)[:, None, None] * stride[0] + down).float().repeat(images, 1, 1)
        self.left = (torch.arange(columns)[:, None] * stride[1] + right).float()

    def tiles(self, within: slice | None = None, sites: int | None = None) -> Iterator[slice]:
        """Gives runs of rows, about as long as each other, of all rows or of those ``within`` a run."""
        begin, end = (0, len(self.top)) if within is None else (within.start, within.stop)
        count = math.ceil((end - begin) * self.size[1] / (sites or _SITES))
        step = max(1, math.ceil((end - begin) / max(1, count)))
        return (slice(first, min(first + step, end)) for first in range(begin, end, step))

    def read(self, *given: Tensor | None) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Gives each tile with what ``corners`` gives for it."""
        for run in self.tiles(sites=_AHEAD * _SITES):
            found = self.corners(run, *_parts(self, run, given))
            each = self.size[1] * self.taps
            for tile in self.tiles(run):
                taps = slice((tile.start - run.start) * each, (tile.stop - run.start) * each)
                yield tile, *(value[taps] for value in found)

    @abstractmethod
    def part(self, given: Tensor, tile: slice) -> Tensor:
        """Gives the part of what is given, or of its gradient, that the rows of ``tile`` depend on."""

    @abstractmethod
    def corners(self, tile: slice, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gives the rows of the table (N * H * W, C) that the taps of ``tile`` read, (taps, 4), and their factors.

        Args:
            tile: Rows of sites.
            *given: The parts for them.
        """

    def joined(self, tile: slice, rows: Around, columns: Around) -> tuple[Tensor, Tensor]:
        """Joins what the taps of ``tile`` read on either axis, (rows, columns, taps) or broadcast to it."""
        (upper, lower), (above, below) = rows
        (before, after), (left, right) = columns
        first = (self.image[tile] * math.prod(self.sides)).int()[:, None, None]
        above, below = above * self.sides[1] + first, below * self.sides[1] + first
        index = torch.stack((above + left, above + right, below + left, below + right), -1)
        factor = torch.stack((upper * before, upper * after, lower * before, lower * after), -1)
        return index.flatten(0, 2), factor.flatten(0, 2)


class Offsets(Places):
    """Given an offset of each tap, (N * H', W', 2 * taps), and perhaps a mask, (N * H', W', taps)."""

    def part(self, given: Tensor, tile: slice) -> Tensor:
        """The rows themselves."""
        return given[tile]

    def corners(self, tile: slice, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        """As the base class says."""
        offset, mask = given
        (upper, lower), above_and_below = around(offset[..., 0::2] + self.top[tile], self.sides[0])
        if mask is not None:
            upper, lower = upper * mask, lower * mask
        columns = around(offset[..., 1::2] + self.left, self.sides[1])
        return self.joined(tile, ((upper, lower), above_and_below), columns)


def around(place: Tensor, side: int) -> Around:
    """Gives the factors of the two whole places around each place on an axis, and these places.

    One outside of 0 to ``side - 1`` has the factor 0 and is replaced by one inside.
    """
    # What is no number is not within either.
    place = torch.where((place > -1) & (place < side), place, -1.0)
    low = place.detach().floor()
    fraction = place - low
    factors = (1 - fraction) * (low >= 0), fraction * (low < side - 1)
    return factors, (low.clamp(min=0).int(), (low + 1).clamp(max=side - 1).int())


class _Sampled(Function):
    """Computes tile by tile; backward samples again, so that samples are never kept."""

    @staticmethod
    def forward(ctx, places, x, weight, bias, *given):
        """As ``sampled_conv2d``."""
        ctx.save_for_backward(x, weight, *given)
        ctx.places = places
        table = _table(x)
        # No view of anything, so that an activation may change it in place.
        out = torch.empty(len(x), len(weight), *places.size, dtype=x.dtype, memory_format=torch.channels_last)
        rows = _last(out).flatten(0, 1)
        with torch.autocast("cpu", enabled=False):
            matrix = Matrix(_by_tap(weight).flatten(1), bias, _SITES)
            for tile, index, factor in places.read(*given):
                samples = _read(table, index, factor).view(-1, places.taps * x.shape[1])
                rows[tile] = matrix(samples).view_as(rows[tile])
        return _like(out, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        """Gives the gradients of ``forward``'s arguments."""
        x, weight, *given = ctx.saved_tensors
        places, kind = ctx.places, x.dtype
        _, to_x, to_weight, to_bias, *to_given = ctx.needs_input_grad
        exact = torch.promote_types(kind, torch.float32)
        table, taps = _table(x).to(exact), _by_tap(weight).flatten(1).to(exact)
        rows = _table(gradient).to(exact).view(len(places.top), places.size[1], len(weight))
        of_table, of_taps = torch.zeros_like(table), torch.zeros_like(taps)
        wanted = [number for number, asked in enumerate(to_given) if asked]
        of_given = [torch.zeros_like(value) if asked else None for value, asked in zip(given, to_given)]
        with torch.autocast("cpu", enabled=False):
            for tile in places.tiles():
                arriving = rows[tile].flatten(0, 1)
                of_samples = (arriving @ taps).view(-1, x.shape[1])
                with torch.set_grad_enabled(bool(wanted)):
                    parts = [
                        part if part is None else part.detach().requires_grad_(asked)
                        for part, asked in zip(_parts(places, tile, given), to_given)
                    ]
                    index, factor = places.corners(tile, *parts)
                    samples = _read(table, index, factor)
                if wanted:
                    found = torch.autograd.grad(samples, [parts[number] for number in wanted], of_samples)
                    for number, part in zip(wanted, found):
                        places.part(of_given[number], tile).add_(part)
                if to_x:
                    _add_back(of_table, index, factor.detach(), of_samples)
                if to_weight:
                    of_taps.addmm_(arriving.t(), samples.detach().view(len(arriving), -1))
        of_weight = of_taps.unflatten(1, (places.taps, -1)).permute(0, 2, 1).reshape(weight.shape)
        return (
            None,
            _like(of_table.view(_last(x).shape).permute(0, 3, 1, 2), x).to(kind) if to_x else None,
            of_weight.to(kind) if to_weight else None,
            rows.sum((0, 1)).to(kind) if to_bias else None,
            *of_given,
        )


def _parts(places: Places, tile: slice, given: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if value is None else places.part(value, tile) for value in given]


def _table(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N * H * W, C), without a copy if channels are last."""
    return _last(x.contiguous(memory_format=torch.channels_last)).reshape(-1, x.shape[1])


def _read(table: Tensor, index: Tensor, factor: Tensor) -> Tensor:
    """(Places, C) at (taps, 4) places with their factors to (taps, C)."""
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=factor.to(table.dtype))


def _add_back(table: Tensor, index: Tensor, factor: Tensor, taps: Tensor) -> None:
    """Adds (taps, C) to the (taps, 4) places of the table that they were read from.

    The other way round it is a sum over the taps that read a place, hence a bag as well, once they are sorted by place.
    """
    first, last = index.aminmax()
    place, order = (index - first).flatten().sort()
    readers = place.bincount(minlength=int(last - first) + 1)
    sums = F.embedding_bag(
        order // 4, taps, readers.cumsum(0) - readers, mode="sum", per_sample_weights=factor.flatten()[order]
    )
    table[int(first) : int(last) + 1] += sums


def _by_tap(weight: Tensor) -> Tensor:
    """(C', C, rows, columns) to (C', taps, C)."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1, weight.shape[1])


def _last(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def _like(out: Tensor, x: Tensor) -> Tensor:
    """Gives a map that lies in memory with channels last the memory format of ``x``."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    # A map of one site is contiguous either way, but what is resized from it has the format of its strides.
    return out if last else torch.empty_like(out, memory_format=torch.contiguous_format).copy_(out)


def _by_mmcv(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups) -> Tensor:
    """mmcv's operators, which take plain memory only.

    That of version 1 refuses maps smaller than its kernel, and batches above 32 that are no multiple of 32.
    """
    settings = (stride, padding, dilation, groups, deform_groups)
    if offset.dtype == torch.bfloat16:  # which they do not know, on any device
        single = (value if value is None else value.float() for value in (x, offset, mask, weight, bias))
        return _by_mmcv(*single, *settings).to(torch.bfloat16)
    if mask is not None:
        plain = (value.contiguous() for value in (x, offset, mask, weight))
        return _with_plain_gradient(modulated_deform_conv2d(*plain, bias, *settings))
    short = [max(kernel - side, 0) for kernel, side in zip(weight.shape[2:], x.shape[2:])]
    if any(short):
        # Zeros lie outside of the map anyway.
        x, offset = (F.pad(value, (0, short[1], 0, short[0])) for value in (x, offset))
    plain = (value.contiguous() for value in (x, offset, weight))
    out = _with_plain_gradient(deform_conv2d(*plain, *settings, False, math.gcd(32, len(x))))
    return out[:, :, : out.shape[2] - short[0], : out.shape[3] - short[1]]


def _with_plain_gradient(out: Tensor) -> Tensor:
    """Lets the operator's backward see a gradient that lies in memory as (N, C, H, W)."""
    if out.requires_grad:
        out.register_hook(lambda gradient: gradient.contiguous())
    return out
