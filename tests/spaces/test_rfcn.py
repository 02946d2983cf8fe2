"""R-FCN: its pooling against the definition in plain loops, its head against what is printed of it, as a base."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from analysis.bundle.config import own_modules
from analysis.bundle.heads import copy_heads
from spaces.base import RoiFacts, facts
from spaces.keyparts.detectors import (
    PositionSensitiveRoIExtractor,
    ReducedRoIExtractor,
    RFCNBBoxHead,
    ps_roi_align,
    ps_roi_pool,
)
from trainers.config import load_base, plain, set_classes
from trainers.detector import build_model

TINY = "headway::rfcn_tiny"
SIZE = (96, 128)
# The index of the image, x1, y1, x2, y2 in px, for maps of 7 x 9 cells of 16 px.
ODD_ROIS = [
    [0, 20.4, 30.6, 100.2, 90.9],
    [1, 0, 0, 143, 111],  # the whole map
    [0, -30.5, -20.5, 40.5, 60.5],  # begins outside; halves are rounded away from zero
    [1, 100, 80, 400, 300],  # ends outside
    [0, 500, 500, 600, 600],  # lies outside
    [1, -100, 10, -60, 50],
    [0, 50, 60, 50, 60],  # of one px
    [1, 64, 48, 64.2, 100],
    [1, 10.5, 11.5, 12.5, 13.5],
    [0, 16, 16, 111, 111],  # bins end where cells do
    [0, -1000, -1000, 2000, 2000],
]
# mmcv refuses it.
REVERSED = [0, 90, 70, 60, 30]


def maps_of(depth: int, bins: int, images: int = 2, dtype: torch.dtype = torch.double) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(images, depth * bins**2, 7, 9, dtype=dtype)


def many_rois(number: int = 60) -> Tensor:
    torch.manual_seed(1)
    begin = torch.rand(number, 2) * 200 - 50
    drawn = torch.cat((torch.randint(0, 2, (number, 1)), begin, begin + torch.rand(number, 2) ** 3 * 150), dim=1)
    return torch.cat((torch.tensor(ODD_ROIS), drawn)).double()


def by_loops(features: Tensor, rois: Tensor, bins: int, scale: Fraction) -> Tensor:
    """The definition of position-sensitive average pooling, in exact fractions."""

    def whole(value: float) -> int:
        size = math.floor(abs(Fraction(value)) + Fraction(1, 2))
        return size if value >= 0 else -size

    def cells(begin: float, end: float, index: int, side: int) -> range:
        start = whole(begin) * scale
        size = max((whole(end) + 1) * scale - start, Fraction(1, 10)) / bins
        first, behind = math.floor(start + index * size), math.ceil(start + (index + 1) * size)
        return range(min(max(first, 0), side), min(max(behind, 0), side))

    _, channels, height, width = features.shape
    depth = channels // bins**2
    out = torch.zeros(len(rois), depth, bins, bins, dtype=features.dtype)
    for n, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        for i in range(bins):
            for j in range(bins):
                rows, columns = cells(y1, y2, i, height), cells(x1, x2, j, width)
                for d in range(depth):
                    own = features[int(image), (d * bins + i) * bins + j]
                    values = [float(own[row, column]) for row in rows for column in columns]
                    out[n, d, i, j] = math.fsum(values) / len(values) if values else 0.0
    return out


def by_picking(features: Tensor, rois: Tensor, bins: int, scale: float, samples: int = 0) -> Tensor:
    """RoIAlign of all maps to k x k, of which each bin keeps its own."""
    full = RoIAlign(bins, scale, samples)(features, rois).unflatten(1, (-1, bins, bins))
    rows = [torch.stack([full[:, :, i, j, i, j] for j in range(bins)], dim=-1) for i in range(bins)]
    return torch.stack(rows, dim=-2)


# Pooling


@pytest.mark.parametrize(("bins", "stride"), [(1, 16), (2, 8), (3, 16), (7, 16)])
def test_average_by_loops(bins: int, stride: int) -> None:
    features, rois = maps_of(2, bins), torch.cat((many_rois(), torch.tensor([REVERSED]).double()))
    rois[:, 1:] *= stride / 16
    found = ps_roi_pool(features, rois, bins, 1 / stride)
    expected = by_loops(features, rois, bins, Fraction(1, stride))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert (found[4] == 0).all()  # wholly outside: exactly nothing
    assert (found == 0).sum() < found.numel() / 2
    single = ps_roi_pool(features.float(), rois.float(), bins, 1 / stride)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, ps_roi_pool(features, rois.float(), bins, 1 / stride).float())


@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("bins", [1, 3, 7])
def test_align_by_picking(bins: int, samples: int) -> None:
    features, rois = maps_of(3, bins), many_rois()
    # mmcv samples once a cell of a bin, rounded up: a bin of whole cells may fall on either side of that.
    rois = rois[[index for index in range(len(rois)) if index not in (1, 9, 10)]]
    found = ps_roi_align(features, rois, bins, 1 / 16, samples)
    torch.testing.assert_close(found, by_picking(features, rois, bins, 1 / 16, samples), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pool", [ps_roi_pool, ps_roi_align])
def test_each_bin_reads_its_own_maps(pool: Callable[..., Tensor]) -> None:
    """Constant maps: the mean is the constant, whatever the RoI."""
    numbers = torch.arange(2 * 5 * 9.0).reshape(2, 45, 1, 1)
    rois = torch.tensor([[0, 10, 20, 90, 70], [1, 40.5, 3, 130, 60.5]])
    found = pool(numbers.expand(2, 45, 7, 9), rois, 3, 1 / 16)
    torch.testing.assert_close(found, torch.arange(90.0).reshape(2, 5, 3, 3))


def test_linear_maps() -> None:
    """On a plane each bin gives the height over its midst, in cells whose centres are at whole numbers."""
    row, column = torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij")
    plane = (2 * row - 3 * column + 1).double().expand(1, 4, 7, 9)
    # Cells 1 to 4 across, 1 to 2 down; the end in px belongs to the RoI.
    found = ps_roi_pool(plane, torch.tensor([[0, 16, 16, 79, 47]]), 2, 1 / 16)
    middles = [[2 * y - 3 * x + 1 for x in (1.5, 3.5)] for y in (1, 2)]
    torch.testing.assert_close(found, torch.tensor([[middles]]).double())
    # From 20 to 70 px across, 24 to 72 down, in cells that begin at half numbers.
    found = ps_roi_align(plane, torch.tensor([[0, 20, 24, 70, 72]]).double(), 2, 1 / 16)
    middles = [[2 * (y / 16 - 0.5) - 3 * (x / 16 - 0.5) + 1 for x in (32.5, 57.5)] for y in (36, 60)]
    torch.testing.assert_close(found, torch.tensor([[middles]]).double())


@pytest.mark.parametrize("pool", [ps_roi_pool, ps_roi_align])
def test_gradients(pool: Callable[..., Tensor]) -> None:
    features = maps_of(2, 2).requires_grad_()
    rois = many_rois()[[0, 2, 3, 6, 9, 15]]
    assert torch.autograd.gradcheck(lambda x: pool(x, rois, 2, 1 / 16), (features,))


@pytest.mark.parametrize("pool", [ps_roi_pool, ps_roi_align])
@pytest.mark.parametrize("number", [1, 20])
def test_layout_of_the_maps(pool: Callable[..., Tensor], number: int) -> None:
    """mmcv's operator takes channels-last memory on a CPU for plain, without a word."""
    rois = many_rois()[:number]
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        features = maps_of(2, 3).contiguous(memory_format=layout).requires_grad_()
        found = pool(features, rois, 3, 1 / 16)
        (found * torch.arange(found.numel()).reshape(found.shape)).sum().backward()
        results.append((found.detach(), features.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert results[0][1].abs().sum() > 0


@pytest.mark.parametrize("pool", [ps_roi_pool, ps_roi_align])
def test_half_precision(pool: Callable[..., Tensor]) -> None:
    features, rois = maps_of(2, 3).bfloat16(), many_rois().float()
    half = pool(features, rois, 3, 1 / 16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, pool(features.float(), rois, 3, 1 / 16).bfloat16())


def test_large_maps_lose_nothing() -> None:
    """Integral images of 4,200 large values hold a difference of small ones."""
    features = torch.full((1, 4, 50, 84), 1e4)
    features[:, :, 40:, 60:] += 1e-2
    found = ps_roi_pool(features, torch.tensor([[0, 1100.0, 700, 1300, 780]]), 2, 1 / 16)
    assert torch.equal(found, features[0, 0, 45, 70].expand(1, 1, 2, 2))


@pytest.mark.parametrize("pool", [ps_roi_pool, ps_roi_align])
def test_no_rois(pool: Callable[..., Tensor]) -> None:
    features = maps_of(2, 3, dtype=torch.float).requires_grad_()
    found = pool(features, torch.zeros(0, 5), 3, 1 / 16)
    assert found.shape == (0, 2, 3, 3)
    found.sum().backward()
    assert (features.grad == 0).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("pool", [ps_roi_pool, ps_roi_align])
def test_cuda(pool: Callable[..., Tensor]) -> None:
    rois = many_rois()
    results = []
    for device in ("cpu", "cuda"):
        features = maps_of(2, 3).to(device).requires_grad_()
        found = pool(features, rois.to(device), 3, 1 / 16)
        (found**2).sum().backward()
        results.append((found.detach().cpu(), features.grad.cpu()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# Extractors and head


def extractor(**changes: Any) -> PositionSensitiveRoIExtractor:
    torch.manual_seed(0)
    settings = {"in_channels": 6, "num_classes": 3, "featmap_strides": [16], "mid_channels": 5, "bins": 3}
    return PositionSensitiveRoIExtractor(**{**settings, **changes})


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize(("pool", "function"), [("average", ps_roi_pool), ("align", ps_roi_align)])
def test_extractor(pool: str, function: Callable[..., Tensor], agnostic: bool) -> None:
    found = extractor(pool=pool, reg_class_agnostic=agnostic)
    x, rois = torch.randn(2, 6, 7, 9), many_rois().float()
    channels = 4 + (8 if agnostic else 12)
    assert (found.num_inputs, found.out_channels, found.featmap_strides) == (1, channels, [16])
    assert found.roi_layers[0].output_size == (3, 3)
    out = found((x,), rois)
    assert out.shape == (len(rois), channels, 3, 3)
    hidden = found.reduce(x).relu()
    torch.testing.assert_close(out[:, :4], function(found.cls_maps(hidden), rois, 3, 1 / 16))
    torch.testing.assert_close(out[:, 4:], function(found.box_maps(hidden), rois, 3, 1 / 16))
    assert found((x,), rois[:0]).shape == (0, channels, 3, 3)
    # Twice as large about the same centre.
    larger = torch.tensor([[0.0, 20, 30, 60, 90], [0, 0, 0, 80, 120]])
    torch.testing.assert_close(found((x,), larger[:1], 2.0), found((x,), larger[1:]))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in found.parameters())


def test_extractor_starts_as_the_original() -> None:
    found = extractor(in_channels=64, mid_channels=64)
    found.init_weights()
    for layer in (found.reduce, found.cls_maps, found.box_maps):
        assert (layer.bias == 0).all()
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"featmap_strides": [8, 16]}, r"featmap_strides: must be the stride of one map, but got \[8, 16\]"),
        ({"pool": "max"}, "pool: must be one of average, align, but got 'max'"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extractor(**wrong)


@pytest.mark.parametrize("agnostic", [True, False])
def test_the_head_only_votes(agnostic: bool) -> None:
    head = RFCNBBoxHead(num_classes=3, reg_class_agnostic=agnostic)
    head.init_weights()
    assert not list(head.parameters())
    x = torch.arange(2 * 12.0).reshape(2, 12, 1, 1) + torch.tensor([[-4.0, 1], [2, 1]])  # bins of mean 0
    if not agnostic:
        x = torch.cat((x, x[:, :4] + 100), dim=1)
    scores, deltas = head(x)
    torch.testing.assert_close(scores, torch.tensor([[0.0, 1, 2, 3], [12, 13, 14, 15]]))
    if agnostic:  # channels 4 to 7 are the background's
        torch.testing.assert_close(deltas, torch.tensor([[8.0, 9, 10, 11], [20, 21, 22, 23]]))
    else:
        torch.testing.assert_close(deltas[0], torch.tensor([4.0, 5, 6, 7, 8, 9, 10, 11, 100, 101, 102, 103]))
    assert [tuple(out.shape) for out in head(x[:0])] == [(0, 4), (0, 4 if agnostic else 12)]
    with pytest.raises(ValueError, match="must be those of its RoI extractor"):
        head(x[:, :-1])


def test_reduced_maps() -> None:
    settings = {"roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0}, "featmap_strides": [16]}
    found = ReducedRoIExtractor(in_channels=6, out_channels=4, **settings)
    behind = SingleRoIExtractor(out_channels=4, **settings)
    x, rois = torch.randn(2, 6, 7, 9), many_rois().float()
    assert (found.num_inputs, found.out_channels, found.featmap_strides) == (1, 4, [16])
    assert torch.equal(found((x,), rois), behind((found.reduce(x).relu(),), rois))
    assert found((x,), rois[:0]).shape == (0, 4, 7, 7)


def test_reduced_maps_of_a_pyramid() -> None:
    settings = {
        "roi_layer": {"type": "RoIAlign", "output_size": 2, "sampling_ratio": 2},
        "featmap_strides": [8, 16],
        "finest_scale": 16,
    }
    found = ReducedRoIExtractor(in_channels=6, out_channels=4, **settings)
    behind = SingleRoIExtractor(out_channels=4, **settings)
    x, rois = (torch.randn(2, 6, 14, 18), torch.randn(2, 6, 7, 9)), many_rois().float()
    assert torch.equal(found(x, rois), behind([found.reduce(one).relu() for one in x], rois))


def weights(modules: list[nn.Module]) -> tuple[int, int]:
    """Parameters without biases and with them."""
    found = [parameter for module in modules for parameter in module.parameters()]
    return sum(p.numel() for p in found if p.ndim > 1), sum(p.numel() for p in found)


@pytest.mark.parametrize(
    ("classes", "without_biases", "with_biases", "printed"),
    [(20, 3_552_256, 3_554_701, 3.5), (80, 6_562_816, 6_568_201, 6.6)],
)
def test_parameters(classes: int, without_biases: int, with_biases: int, printed: float) -> None:
    """Tables 3 and 4 of the key-part paper; the first is cut off after its first decimal, not rounded.

    With box maps of each class these would be 7.17 and 21.87 million, with four shared ones 3.35 and 6.37.
    """
    model = plain(load_base("headway::rfcn_r50")["model"])
    set_classes(model, classes)
    roi = model["roi_head"]
    found = weights([MODELS.build(ConfigDict(roi[name])) for name in ("bbox_roi_extractor", "bbox_head")])
    assert found == (without_biases, with_biases)
    for number in found:
        assert abs(number / 1e6 - printed) < 0.06
    assert without_biases == 2048 * 1024 + 1024 * 49 * (classes + 1 + 8)


# As a base


def batch(*boxes: int) -> tuple[Tensor, list[DetDataSample]]:
    torch.manual_seed(2)
    samples = []
    for number in boxes:
        shapes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), SIZE)
        sample = DetDataSample(metainfo={**shapes, "scale_factor": (1.0, 1.0), "img_id": 0})
        corners = torch.rand(number, 2) * 60
        bboxes = torch.cat((corners, corners + 8 + torch.rand(number, 2) * 24), dim=1)
        sample.gt_instances = InstanceData(bboxes=bboxes, labels=torch.randint(0, 10, (number,)))
        samples.append(sample)
    return torch.randn(len(boxes), 3, *SIZE), samples


def tiny(**extractor: Any) -> Any:
    base = load_base(TINY)
    base["model"]["roi_head"]["bbox_roi_extractor"].update(extractor)
    base["model"]["roi_head"]["bbox_head"].update(
        {key: value for key, value in extractor.items() if key == "reg_class_agnostic"}
    )
    return build_model(base, seed=0)


def total(losses: dict[str, Any]) -> Tensor:
    parts = [value for name, value in losses.items() if "loss" in name]
    return sum(sum(value) if isinstance(value, list) else value for value in parts)


@pytest.mark.parametrize(
    "changes",
    [{}, {"pool": "average"}, {"reg_class_agnostic": False}, {"bins": 7, "pool": "average"}],
    ids=lambda changes: ", ".join(f"{key} {value}" for key, value in changes.items()) or "as it is",
)
def test_trains_and_predicts(changes: dict[str, Any]) -> None:
    model = tiny(**changes)
    x, samples = batch(3, 2)
    losses = model.loss(x, samples)
    assert {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"} <= set(losses)
    total(losses).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    for name in ("reduce", "cls_maps", "box_maps"):
        assert getattr(model.roi_head.bbox_roi_extractor, name).weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        found = model.predict(x, samples)
    for sample in found:
        boxes = sample.pred_instances.bboxes
        assert boxes.isfinite().all() and boxes.min() >= 0 and boxes.max() <= max(SIZE)
        assert len(boxes) == len(sample.pred_instances.scores) <= 100


def test_background_boxes_are_not_learned() -> None:
    """Half of the shared box maps are there as in the original, and nothing reads them."""
    model = tiny()
    total(model.loss(*batch(3, 2))).backward()
    gradient = model.roi_head.bbox_roi_extractor.box_maps.weight.grad.reshape(8, -1)
    assert (gradient[:4] == 0).all() and (gradient[4:].abs().sum(1) > 0).all()


def test_images_without_objects() -> None:
    losses = tiny().loss(*batch(0, 0))
    assert torch.isfinite(total(losses))
    assert losses["loss_bbox"] == 0


def test_no_proposals() -> None:
    model = tiny().eval()
    _, samples = batch(0, 0)
    nothing = [InstanceData(bboxes=torch.zeros(0, 4), scores=torch.zeros(0)) for _ in range(2)]
    found = model.roi_head.predict((torch.randn(2, 64, 12, 16),), nothing, samples)
    assert [len(result) for result in found] == [0, 0]


@pytest.mark.parametrize(
    ("base", "depth", "channels", "level"),
    [("rfcn_r50", 50, 2048, "P4"), ("rfcn_r101", 101, 2048, "P4"), ("rfcn_tiny", 18, 64, "P3")],
)
def test_bases(base: str, depth: int, channels: int, level: str) -> None:
    model = plain(load_base(f"headway::{base}")["model"])
    known = facts(model)
    assert known.roi == RoiFacts(kind="StandardRoIHead", heads=("RFCNBBoxHead",), channels=channels)
    assert (known.detector, known.head, known.levels) == ("FasterRCNN", "RPNHead", (level,))
    assert model["backbone"]["depth"] == depth
    assert set_classes(model, 7) == 2
    roi = model["roi_head"]
    assert roi["bbox_roi_extractor"]["num_classes"] == roi["bbox_head"]["num_classes"] == 7
    assert roi["bbox_roi_extractor"]["reg_class_agnostic"] is roi["bbox_head"]["reg_class_agnostic"] is True


def test_maps_of_stride_16() -> None:
    model = plain(load_base("headway::rfcn_r50")["model"])
    model["backbone"].update(depth=18, init_cfg=None)
    backbone = MODELS.build(ConfigDict(model["backbone"]))
    [found] = backbone(torch.zeros(1, 3, 64, 96))
    assert found.shape[2:] == (4, 6)


def test_a_bundle_has_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle needs nothing of Headway: what its base imports of ``spaces`` goes into it, too."""
    base = load_base(TINY)
    ours, others = own_modules(base)
    assert (ours, others) == (["spaces.keyparts.detectors"], [])
    heads = copy_heads(ours)
    assert set(heads.names) == {"PositionSensitiveRoIExtractor", "ReducedRoIExtractor", "RFCNBBoxHead"}
    folder = tmp_path / heads.package
    folder.mkdir()
    for name, text in heads.files.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    importlib.import_module(heads.package)

    model = build_model(base, seed=0).eval()
    alone = Config({"default_scope": "mmdet", "model": heads.rename(plain(base["model"]))})
    own = build_model(alone, seed=1).eval()
    assert type(own.roi_head.bbox_head).__module__ == f"{heads.package}.keyparts_detectors"
    own.load_state_dict(copy.deepcopy(model.state_dict()))
    x, samples = batch(1, 1)
    with torch.no_grad():
        pairs = zip(model.predict(x, copy.deepcopy(samples)), own.predict(x, samples), strict=True)
    for one, other in pairs:
        assert torch.equal(one.pred_instances.bboxes, other.pred_instances.bboxes)
        assert torch.equal(one.pred_instances.scores, other.pred_instances.scores)
