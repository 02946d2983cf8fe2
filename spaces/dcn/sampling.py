"""Deformable convolution; on a CPU as a gather of rows and one plain convolution.

With channels last the four corners that a tap reads are four rows of a table, and their weighted sum is what
``embedding_bag`` computes in one pass. The samples of a site's taps stand side by side in a map of their own, so what
is left is a convolution with as many columns, and as large a step. mmcv's operator for CPUs reads a plain map number by
number.
"""

import math
from collections.abc import Iterator

import torch
from mmcv.ops import deform_conv2d, modulated_deform_conv2d
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

Pair = tuple[int, int]

# Sites sampled at a time. With fewer the product is slower; with more the samples leave the cache.
_SITES = 2016


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
    same = (value if value is None else value.to(offset.dtype) for value in (x, offset, mask, weight, bias))
    out: Tensor = _Sampled.apply(*same, *settings)
    return out


class _Sampled(Function):
    """Computes tile by tile; backward samples again, so that samples are never kept."""

    @staticmethod
    def forward(ctx, x, offset, mask, weight, bias, stride, padding, dilation):
        """As ``deformable_conv2d``, with tensors of one type."""
        ctx.save_for_backward(x, offset, mask, weight)
        ctx.settings = (tuple(weight.shape[2:]), stride, padding, dilation)
        sites = _Sites(x, offset, mask, *ctx.settings)
        kernel = _by_tap(weight).permute(0, 2, 1)[:, :, None]
        out = x.new_empty(*sites.shape, len(weight))
        with torch.autocast("cpu", enabled=False):
            for tile in sites.tiles():
                samples = _read(sites.table, *sites.corners(*sites.given(tile), tile))
                samples = samples.unflatten(0, (1, len(out[tile]), -1)).permute(0, 3, 1, 2)
                out[tile] = F.conv2d(samples, kernel, bias, (1, sites.taps))[0].permute(1, 2, 0)
        return _as_map(out.view(*_last(offset).shape[:3], len(weight)), x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        """Gives the gradients of ``forward``'s arguments."""
        kind = ctx.saved_tensors[0].dtype
        exact = torch.promote_types(kind, torch.float32)
        x, offset, mask, weight = (value if value is None else value.to(exact) for value in ctx.saved_tensors)
        sites = _Sites(x, offset, mask, *ctx.settings)
        rows = _last(gradient.to(exact).contiguous(memory_format=torch.channels_last))
        rows = rows.reshape(*sites.shape, len(weight))
        taps = _by_tap(weight).flatten(1)
        to_x, to_offset, to_mask, to_weight, to_bias = ctx.needs_input_grad[:5]
        of_table, of_taps = torch.zeros_like(sites.table), torch.zeros_like(taps)
        of_offset = torch.empty(sites.offset.shape, dtype=exact)
        of_mask = None if mask is None else torch.empty(sites.mask.shape, dtype=exact)
        with torch.autocast("cpu", enabled=False):
            for tile in sites.tiles():
                arriving = rows[tile].flatten(0, 1)
                of_samples = (arriving @ taps).view(-1, x.shape[1])
                with torch.set_grad_enabled(to_offset or to_mask):
                    given = [value if value is None else value.detach().requires_grad_() for value in sites.given(tile)]
                    index, factor = sites.corners(*given, tile)
                    samples = _read(sites.table, index, factor)
                if to_offset or to_mask:
                    leaves = [value for value in given if value is not None]
                    of_offset[tile], *rest = torch.autograd.grad(samples, leaves, of_samples)
                    if rest:
                        of_mask[tile] = rest[0]
                if to_x:
                    _add_back(of_table, index, factor.detach(), of_samples)
                if to_weight:
                    of_taps.addmm_(arriving.t(), samples.detach().view(len(arriving), -1))
        of_weight = of_taps.unflatten(1, (sites.taps, -1)).permute(0, 2, 1).reshape(weight.shape)
        found = (
            _as_map(of_table.view(_last(x).shape), x) if to_x else None,
            of_offset.view(_last(offset).shape).permute(0, 3, 1, 2) if to_offset else None,
            of_mask.view(_last(mask).shape).permute(0, 3, 1, 2) if to_mask else None,
            of_weight if to_weight else None,
            rows.sum((0, 1)) if to_bias else None,
        )
        return *(value if value is None else value.to(kind) for value in found), None, None, None


class _Sites:
    """The sites of all images as rows of one tall map, and where they read.

    Attributes:
        table: (N * H * W, C), the map's places.
        offset: (rows, columns, taps, 2), the rows being those of all images.
        mask: (rows, columns, taps), or ``None``.
        shape: Rows and columns.
        taps: Of a site.
    """

    def __init__(self, x, offset, mask, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
        images, channels, *self._sides = x.shape
        self.taps = math.prod(kernel)
        settings = zip(self._sides, kernel, stride, padding, dilation, strict=True)
        rows, columns = (
            (side + 2 * pad - wide * (size - 1) - 1) // step + 1 for side, size, step, pad, wide in settings
        )
        for name, value, each in (("offset", offset, 2), ("mask", mask, 1)):
            wanted = (images, each * self.taps, rows, columns)
            if value is not None and value.shape != wanted:
                raise ValueError(f"{name}: must be of shape {wanted}, but is of {tuple(value.shape)}.")
        self.shape = (images * rows, columns)
        self.table = _last(x.contiguous(memory_format=torch.channels_last)).reshape(
            images * math.prod(self._sides), channels
        )
        self.offset = _last(offset).reshape(*self.shape, self.taps, 2)
        self.mask = None if mask is None else _last(mask).reshape(*self.shape, self.taps)
        # Where taps stand without an offset, in their own image; in single precision at least.
        tap = torch.arange(self.taps)
        down, right = tap // kernel[1] * dilation[0] - padding[0], tap % kernel[1] * dilation[1] - padding[1]
        self._top = (torch.arange(rows)[:, None, None] * stride[0] + down).float().repeat(images, 1, 1)
        self._left = (torch.arange(columns)[:, None] * stride[1] + right).float()
        self._first = (torch.arange(images) * math.prod(self._sides)).int().repeat_interleave(rows)[:, None, None]

    def tiles(self) -> Iterator[slice]:
        """Gives runs of rows."""
        rows, columns = self.shape
        step = max(1, _SITES // columns)
        return (slice(first, min(first + step, rows)) for first in range(0, rows, step))

    def given(self, tile: slice) -> tuple[Tensor, Tensor | None]:
        """Gives the offsets (rows, columns, taps, 2) and the masks (rows, columns, taps) of a run of rows."""
        return self.offset[tile], None if self.mask is None else self.mask[tile]

    def corners(self, offset: Tensor, mask: Tensor | None, tile: slice) -> tuple[Tensor, Tensor]:
        """Gives the rows of the table that each tap of a run of rows reads, (taps, 4), and their factors."""
        (upper, lower), (top, bottom) = _between(offset[..., 0] + self._top[tile], self._sides[0])
        (before, after), (left, right) = _between(offset[..., 1] + self._left, self._sides[1])
        if mask is not None:
            upper, lower = upper * mask, lower * mask
        top, bottom = (row * self._sides[1] + self._first[tile] for row in (top, bottom))
        index = torch.stack((top + left, top + right, bottom + left, bottom + right), -1)
        factor = torch.stack((upper * before, upper * after, lower * before, lower * after), -1)
        return index.flatten(0, 2), factor.flatten(0, 2)


def _between(place: Tensor, side: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Gives the factors of the two whole places around each place on an axis, and these places.

    One outside of 0 to ``side - 1`` has the factor 0 and is replaced by one inside.
    """
    # What is no number is not within either.
    place = torch.where((place > -1) & (place < side), place, -1.0)
    low = place.detach().floor()
    fraction = place - low
    factors = (1 - fraction) * (low >= 0), fraction * (low < side - 1)
    return factors, (low.clamp(min=0).int(), (low + 1).clamp(max=side - 1).int())


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


def _as_map(rows: Tensor, like: Tensor) -> Tensor:
    """(N, H, W, C) to (N, C, H, W), in the memory format of ``like``."""
    out = rows.permute(0, 3, 1, 2)
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return out if last else out.contiguous()


def _by_mmcv(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups) -> Tensor:
    """mmcv's operators, which take plain memory only.

    That of version 1 refuses maps smaller than its kernel, and batches above 32 that are no multiple of 32.
    """
    settings = (stride, padding, dilation, groups, deform_groups)
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
