"""Forms that ONNX knows, for operators that it does not know or knows otherwise; they hold during an export only."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from mmcv.ops.deform_conv import DeformConv2dFunction, deform_conv2d
from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2dFunction
from mmcv.ops.roi_align import RoIAlignFunction
from mmdet.models.dense_heads import TOODHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

OPSET = 20
"""The newest that torch's TorchScript exporter writes; DeformConv came with 19."""


@contextlib.contextmanager
def exportable() -> Iterator[None]:
    """Makes a network exportable inside ``with``; results stay those of the original operators."""
    replaced = [
        (DeformConv2dFunction, "symbolic", staticmethod(_deform_conv)),
        (ModulatedDeformConv2dFunction, "symbolic", staticmethod(_modulated_deform_conv)),
        (RoIAlignFunction, "symbolic", staticmethod(_roi_align)),
        (SingleRoIExtractor, "forward", _extract),
        (TOODHead, "deform_sampling", _sample),
    ]
    originals = [(owner, name, vars(owner)[name]) for owner, name, _ in replaced]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        with ExactResizing():
            yield
    finally:
        for owner, name, value in originals:
            setattr(owner, name, value)


# Graph nodes in place of mmcv's functions


def _deform_conv(
    g: Any, x: Any, offset: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: int, deform_groups: int,
    bias: bool = False, im2col_step: int = 32,
) -> Any:  # fmt: skip
    return _deformable(g, (x, weight, offset), stride, padding, dilation, groups, deform_groups)


def _modulated_deform_conv(
    g: Any, x: Any, offset: Any, mask: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any,
    groups: int, deform_groups: int,
) -> Any:  # fmt: skip
    if bias is None:
        channels = weight.type().sizes()[0]
        bias = g.op("Constant", value_t=torch.zeros(channels))
    return _deformable(g, (x, weight, offset, bias, mask), stride, padding, dilation, groups, deform_groups)


def _deformable(
    g: Any, inputs: tuple[Any, ...], stride: Any, padding: Any, dilation: Any, groups: int, deform_groups: int
) -> Any:
    """mmcv and ONNX order offsets alike: y and x of a tap, tap after tap."""
    top, left = _pair(padding)
    shape = inputs[1].type().sizes()  # none of weights that a head makes as it runs, as TOOD
    return g.op(
        "DeformConv",
        *inputs,
        strides_i=_pair(stride),
        pads_i=[top, left, top, left],
        dilations_i=_pair(dilation),
        group_i=groups,
        offset_group_i=deform_groups,
        **({"kernel_shape_i": shape[2:]} if shape else {}),
    )


def _roi_align(
    g: Any, x: Any, rois: Any, output_size: Any, spatial_scale: float, sampling_ratio: int, pool_mode: str,
    aligned: bool,
) -> Any:  # fmt: skip
    if pool_mode != "avg":
        raise NotImplementedError(f"RoIAlign with pool_mode {pool_mode}, which ONNX defines otherwise")
    height, width = _pair(output_size)
    constant = [g.op("Constant", value_t=torch.tensor(index)) for index in ([0], [1, 2, 3, 4])]
    image, boxes = (g.op("Gather", rois, index, axis_i=1) for index in constant)
    image = g.op("Cast", g.op("Squeeze", image, g.op("Constant", value_t=torch.tensor([1]))), to_i=7)
    return g.op(
        "RoiAlign",
        x,
        boxes,
        image,
        output_height_i=height,
        output_width_i=width,
        spatial_scale_f=spatial_scale,
        sampling_ratio_i=max(0, sampling_ratio),
        mode_s="avg",
        coordinate_transformation_mode_s="half_pixel" if aligned else "output_half_pixel",
    )


def _extract(
    extractor: SingleRoIExtractor, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
) -> Tensor:
    """As mmdet's, which leaves out levels that no RoI of the traced image falls on."""
    rois = rois.type_as(feats[0])
    if len(feats) == 1:
        only: Tensor = extractor.roi_layers[0](feats[0], rois)
        return only
    levels = extractor.map_roi_levels(rois, len(feats))
    if roi_scale_factor is not None:
        rois = extractor.roi_rescale(rois, roi_scale_factor)
    chosen = [(levels == level).nonzero()[:, 0] for level in range(len(feats))]
    pooled = [layer(x, rois[index]) for layer, x, index in zip(extractor.roi_layers, feats, chosen)]
    return torch.cat(pooled)[torch.cat(chosen).argsort()]


def _sample(head: TOODHead, feat: Tensor, offset: Tensor) -> Tensor:
    """As mmdet's, with numbers of channels that a trace takes for numbers."""
    channels = int(feat.shape[1])
    weight = torch.ones(channels, 1, 1, 1, device=feat.device, dtype=feat.dtype)
    found: Tensor = deform_conv2d(feat, offset, weight, 1, 0, 1, channels, channels)
    return found


# Resizing and pooling to sizes that are known: the indices are torch's own


class ExactResizing(TorchFunctionMode):
    """Replaces what ONNX rounds otherwise or lacks, for maps whose height and width are known.

    Nearest neighbours of factors that are no power of two come from torch's own table of indices; ONNX runtimes
    round the source position otherwise. Adaptive pooling becomes two products with averaging matrices, or maxima over
    gathered rows and columns. What is repeated for each image is repeated for as many as there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._batch: Any = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Takes over the functions that it knows."""
        if func is F.conv2d:
            self._batch = args[0].shape[0]
        elif func is torch.cat and self._copies(*args, **(kwargs or {})):
            return args[0][0].repeat(self._batch, *[1] * (args[0][0].dim() - 1))
        replacement = _REPLACED.get(func)
        if replacement is not None:
            found = replacement(*args, **(kwargs or {}))
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))

    def _copies(self, tensors: Any, dim: int = 0) -> bool:
        """Whether one tensor is repeated for each image, as TOOD does with its anchors."""
        same = len(tensors) > 1 and all(tensor is tensors[0] for tensor in tensors)
        return same and dim == 0 and self._batch is not None and len(tensors) == int(self._batch)


def _interpolate(
    x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> Tensor | None:  # fmt: skip
    """(N, C, H, W); ``None`` where ONNX's Resize does the same."""
    if x.dim() != 4 or antialias or mode not in ("nearest", "bilinear"):
        return None
    options = {"scale_factor": scale_factor, "recompute_scale_factor": recompute_scale_factor}
    if size is not None:
        options = {"size": tuple(map(int, _pair(size)))}
    if mode == "bilinear":
        return F.interpolate(x, mode=mode, align_corners=align_corners, **options)
    height, width = _sides(x)
    rows = F.interpolate(torch.arange(height).double()[None, None, :, None].expand(1, 1, -1, width), **options)
    columns = F.interpolate(torch.arange(width).double().expand(1, 1, height, -1), **options)
    # Lists, so that a trace holds the indices and not how they came about.
    down, right = rows[0, 0, :, 0].tolist(), columns[0, 0, 0].tolist()
    if _plain(down, height) and _plain(right, width):
        return F.interpolate(x, size=(len(down), len(right)), mode="nearest")
    for axis, table in ((2, down), (3, right)):
        x = x.index_select(axis, torch.tensor([int(place) for place in table], device=x.device))
    return x


def _plain(table: list[float], side: int) -> bool:
    """Whether ONNX's Resize reads the same places: those of a factor that is a power of two."""
    small, large = sorted((len(table), side))
    exact = large % small == 0 and math.log2(large // small).is_integer()
    return exact and table == [place * side // len(table) for place in range(len(table))]


def _adaptive_average(x: Tensor, output_size: Any) -> Tensor:
    """(..., H, W) to (..., *output_size)."""
    down, right = (
        torch.tensor([_mean_row(side, *window) for window in _windows(side, new)], device=x.device).to(x.dtype)
        for side, new in zip(_sides(x), _wanted(x, output_size))
    )
    return down @ x @ right.t()


def _adaptive_maximum(x: Tensor, output_size: Any, return_indices: bool = False) -> Tensor | None:
    """(N, C, H, W) to (N, C, *output_size)."""
    if return_indices:
        return None
    for axis, side, new in zip((2, 3), _sides(x), _wanted(x, output_size)):
        windows = _windows(side, new)
        longest = max(last - first for first, last in windows)
        # A window that is shorter repeats its last place.
        table = [[min(first + step, last - 1) for first, last in windows] for step in range(longest)]
        x = torch.stack([x.index_select(axis, torch.tensor(row, device=x.device)) for row in table]).amax(0)
    return x


def _windows(side: int, new: int) -> list[tuple[int, int]]:
    """First and one past the last place of each window of torch's adaptive pooling."""
    return [(index * side // new, -(-(index + 1) * side // new)) for index in range(new)]


def _mean_row(side: int, first: int, last: int) -> list[float]:
    return [1 / (last - first) if first <= place < last else 0.0 for place in range(side)]


def _sides(x: Tensor) -> tuple[int, int]:
    height, width = x.shape[-2:]
    return int(height), int(width)


def _wanted(x: Tensor, output_size: Any) -> list[int]:
    return [side if new is None else int(new) for new, side in zip(_pair(output_size), _sides(x))]


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [value, value]


_REPLACED: dict[Any, Any] = {
    F.interpolate: _interpolate,
    F.adaptive_avg_pool2d: _adaptive_average,
    F.adaptive_max_pool2d: _adaptive_maximum,
}
