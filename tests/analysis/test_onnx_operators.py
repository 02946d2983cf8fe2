"""Each operator that is replaced in an ONNX export, run by onnxruntime against the original on random inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from mmcv.ops import batched_nms, deform_conv2d, modulated_deform_conv2d, roi_align
from mmcv.ops.deform_conv import DeformConv2dFunction
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from analysis.bundle.graph.operators import OPSET, exportable
from analysis.bundle.graph.suppress import suppress
from spaces.keyparts.detectors import ps_roi_align, ps_roi_pool


class Wrapped(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def run(function: Any, inputs: tuple[Tensor, ...], folder: Path, other: tuple[Tensor, ...] | None = None) -> list[Any]:
    """Exports a function with a dynamic first axis and runs it with ``other`` inputs, by default the same."""
    names = [f"x{index}" for index in range(len(inputs))]
    with torch.no_grad(), exportable():
        torch.onnx.export(
            Wrapped(function), inputs, str(folder / "graph.onnx"), dynamo=False, opset_version=OPSET,
            input_names=names, dynamic_axes={name: {0: "n"} for name in names},
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(folder / "graph.onnx"), providers=["CPUExecutionProvider"])
    given = dict(zip(names, (value.numpy() for value in other or inputs), strict=True))
    used = {value.name for value in session.get_inputs()}
    return session.run(None, {name: value for name, value in given.items() if name in used})


def same(function: Any, inputs: tuple[Tensor, ...], folder: Path, other: tuple[Tensor, ...] | None = None) -> None:
    with torch.no_grad():
        wanted = function(*(other or inputs))
    [found] = run(function, inputs, folder, other)
    assert found.shape == tuple(wanted.shape)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def inputs_of_deformable(batch: int, groups: int, stride: int) -> tuple[Tensor, ...]:
    side = (7 + stride - 1) // stride, (9 + stride - 1) // stride
    return torch.randn(batch, 4, 7, 9), 3 * torch.randn(batch, 18 * groups, *side), torch.rand(batch, 9 * groups, *side)


@pytest.mark.parametrize(("stride", "dilation", "groups", "offsets"), [(1, 1, 1, 1), (2, 2, 2, 2)])
@pytest.mark.parametrize("kind", ["offsets", "mask", "mask and bias"])
def test_deformable_convolution(
    kind: str, stride: int, dilation: int, groups: int, offsets: int, tmp_path: Path
) -> None:
    """Offsets reach beyond the map; the batch is another one than the traced one."""
    weight, bias = torch.randn(6, 4 // groups, 3, 3), torch.randn(6) if "bias" in kind else None
    settings = (stride, dilation, dilation, groups, offsets)

    def function(x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        if kind == "offsets":
            return deform_conv2d(x, offset, weight, *settings)
        return modulated_deform_conv2d(x, offset, mask, weight, bias, *settings)

    batches = (inputs_of_deformable(batch, offsets, stride) for batch in (2, 3))
    same(function, *[next(batches), tmp_path], next(batches))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling", [0, 2])
def test_roi_align(aligned: bool, sampling: int, tmp_path: Path) -> None:
    x, corner = torch.randn(2, 3, 12, 10), 60 * torch.rand(9, 2) - 10
    rois = torch.cat((torch.randint(0, 2, (9, 1)).float(), corner, corner + 70 * torch.rand(9, 2) + 0.1), 1)

    def function(x: Tensor, rois: Tensor) -> Tensor:
        return roi_align(x, rois, (7, 5), 1 / 8, sampling, "avg", aligned)

    same(function, (x, rois), tmp_path, (x, rois[:4]))


@pytest.mark.parametrize("pool", [ps_roi_pool, ps_roi_align])
def test_position_sensitive_pooling(pool: Any, tmp_path: Path) -> None:
    corner = 60 * torch.rand(9, 2)
    rois = torch.cat((torch.randint(0, 2, (9, 1)).float(), corner, corner + 30 * torch.rand(9, 2) + 1), 1)
    same(lambda x, rois: pool(x, rois, 3, 1 / 8), (torch.randn(2, 18, 12, 10), rois), tmp_path,
         (torch.randn(2, 18, 12, 10), rois[:5]))  # fmt: skip


def test_rois_on_levels_that_the_trace_does_not_use(tmp_path: Path) -> None:
    layer = {"type": "RoIAlign", "output_size": 3, "sampling_ratio": 0}
    extractor = SingleRoIExtractor(layer, 4, [4, 8, 16])
    maps = tuple(torch.randn(2, 4, 64 // stride, 64 // stride) for stride in (4, 8, 16))
    small = torch.tensor([[0.0, 3, 3, 20, 20], [1.0, 5, 5, 30, 21]])
    every = torch.tensor([[1.0, 0, 0, 500, 500], [0.0, 3, 3, 20, 20], [1.0, 0, 0, 130, 130], [0.0, 9, 9, 140, 150]])
    assert set(extractor.map_roi_levels(small, 3).tolist()) == {0}
    assert set(extractor.map_roi_levels(every, 3).tolist()) == {0, 1, 2}
    same(lambda *given: extractor(given[:3], given[3]), (*maps, small), tmp_path, (*maps, every))


@pytest.mark.parametrize("sides", [(13, 20), (12, 16)])
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.3, 0.7])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "maxpool"])
def test_slim_and_fat(mode: str, ratio: float, sides: tuple[int, int], tmp_path: Path) -> None:
    """SlimHead's own operations, there and back."""
    small = tuple(max(1, int(side * ratio)) for side in sides)

    def function(x: Tensor) -> Tensor:
        options = {"mode": mode, **({"align_corners": False} if mode == "bilinear" else {})}
        if mode == "maxpool":
            options, shrunk = {"mode": "nearest"}, F.adaptive_max_pool2d(x, small)
        elif small == tuple(int(side * ratio) for side in sides):
            shrunk = F.interpolate(x, scale_factor=ratio, recompute_scale_factor=False, **options)
        else:
            shrunk = F.interpolate(x, size=small, **options)
        return F.interpolate(shrunk, size=x.shape[2:], **options)

    same(function, (torch.randn(2, 3, *sides),), tmp_path, (torch.randn(3, 3, *sides),))


@pytest.mark.parametrize("grid", [(5, 5), (7, 1), (3, 4)])
def test_adaptive_average(grid: tuple[int, int], tmp_path: Path) -> None:
    same(lambda x: F.adaptive_avg_pool2d(x, grid), (torch.randn(2, 3, 7, 7),), tmp_path, (torch.randn(5, 3, 7, 7),))


def boxes_of(images: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
    corner = 80 * torch.rand(images, number, 2)
    boxes = torch.cat((corner, corner + 5 + 40 * torch.rand(images, number, 2)), 2)
    return boxes, torch.rand(images, number) - 0.2, torch.randint(0, 3, (images, number))


@pytest.mark.parametrize("most", [5, 1000])
def test_suppression_is_that_of_mmcv(most: int, tmp_path: Path) -> None:
    """For one image of three nothing is left to suppress."""
    traced, given = boxes_of(2, 60), boxes_of(3, 60)
    given[1][1] = -1.0
    scores, kept = run(lambda *parts: suppress(*parts, most, 0.4), traced, tmp_path, given)
    assert scores.shape == kept.shape == (3, min(most, 60))
    for image, (boxes, values, groups) in enumerate(zip(*given, strict=True)):
        real = (values > 0).nonzero()[:, 0]
        if image == 1:
            assert (scores[image] <= 0).all()
            continue
        told = batched_nms(boxes[real], values[real], groups[real], {"type": "nms", "iou_threshold": 0.4})[1]
        wanted = real[told[:most]].tolist()
        count = int((scores[image] > 0).sum())
        assert kept[image, :count].tolist() == wanted
        np.testing.assert_allclose(scores[image, :count], values[wanted].numpy())


def test_what_is_repeated_for_each_image(tmp_path: Path) -> None:
    """As TOOD repeats its anchors; two different tensors stay two."""
    weight, rows, other = torch.randn(4, 3, 1, 1), torch.randn(5, 4), torch.randn(5, 4)

    def function(x: Tensor) -> Tensor:
        y = F.conv2d(x, weight).mean((2, 3))  # (N, 4)
        copies = torch.cat([rows for _ in range(len(x))]).reshape(-1, 5, 4)
        return torch.cat([copies + y[:, None], torch.cat([rows, other])[None].expand(x.shape[0], -1, -1)], 1)

    same(function, (torch.randn(2, 3, 4, 4),), tmp_path, (torch.randn(3, 3, 4, 4),))


def test_all_is_as_before_after_an_export() -> None:
    def state() -> list[Any]:
        return [vars(DeformConv2dFunction)["symbolic"], vars(SingleRoIExtractor)["forward"]]

    before, x = state(), torch.randn(1, 1, 5, 5)
    with exportable():
        assert state() != before
    with pytest.raises(ZeroDivisionError), exportable():
        1 / 0  # noqa: B018
    assert state() == before
    assert torch.equal(F.interpolate(x, scale_factor=0.3), F.interpolate(x, scale_factor=0.3, mode="nearest"))
