"""Slim and Fat against known answers (PAPERS.md, SlimHead)."""

from __future__ import annotations

import copy
import importlib
import io
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
from mmdet.models import data_preprocessors  # noqa: F401  registers all of mmdet's models
from mmdet.models.task_modules.prior_generators import AnchorGenerator, MlvlPointGenerator
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from torch import nn
from torch.nn import functional as F  # noqa: N812

from spaces import patching
from spaces.base import facts
from spaces.errors import UserError
from spaces.slimhead.modules import LevelSlimmer, SlimPriors
from spaces.space import build_space, full_space
from trainers.cost import Cost, count

MODES = ("nearest", "bilinear", "maxpool")


def slimmer(ratio: float, mode: str = "nearest") -> LevelSlimmer:
    made = LevelSlimmer([0], ratio, mode)
    made.next_level()
    return made


def rows(height: int, width: int = 4) -> torch.Tensor:
    """A map whose values are its row numbers."""
    return torch.arange(float(height)).view(1, 1, height, 1).repeat(1, 1, 1, width)


@pytest.mark.parametrize("size", [(4, 6), (25, 42), (13, 21), (7, 11), (2, 2)])
def test_nearest_at_half_takes_every_second(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    height, width = size[0] // 2, size[1] // 2
    # The last row and column of an odd map are dropped.
    assert torch.equal(slimmer(0.5).slim(x), x[:, :, ::2, ::2][:, :, :height, :width])


def test_fat_rows_of_an_odd_map() -> None:
    level = slimmer(0.5)
    small = level.slim(rows(25))
    assert small.shape[2] == 12
    # Fat reads the rows 0,0,0,1,1,2,2,...,11,11 of the small map, which are every second row of the large one.
    source = level.fat(rows(12))[0, 0, :, 0].tolist()
    assert source == [0, 0, 0, *(row for row in range(1, 12) for _ in range(2))]
    assert level.fat(small)[0, 0, :, 0].tolist() == [2 * row for row in source]


def test_fractional_sizes_follow_the_factor() -> None:
    x = rows(25)
    ours = slimmer(0.7).slim(x)[0, 0, :, 0]
    assert torch.equal(ours, F.interpolate(x, scale_factor=0.7, mode="nearest")[0, 0, :, 0])
    by_size = F.interpolate(x, size=[17, 4], mode="nearest")[0, 0, :, 0]
    assert len(ours) == len(by_size) == 17
    assert (ours != by_size).sum() == 5


def test_bilinear_at_half_is_the_mean_of_four() -> None:
    x = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    torch.testing.assert_close(slimmer(0.5, "bilinear").slim(x), F.avg_pool2d(x, 2), rtol=0, atol=1e-14)


def test_maxpool_is_adaptive() -> None:
    x = torch.randn(2, 3, 25, 42)
    level = slimmer(0.5, "maxpool")
    assert torch.equal(level.slim(x), F.adaptive_max_pool2d(x, (12, 21)))
    assert torch.equal(level.fat(level.slim(x)), F.interpolate(level.slim(x), size=(25, 42), mode="nearest"))


@pytest.mark.parametrize("mode", MODES)
def test_sizes(mode: str) -> None:
    for step in range(2, 21):
        ratio = round(0.05 * step, 10)
        for side in (1, 2, 3, 7, 10, 13, 25, 42, 100, 167):
            level = slimmer(ratio, mode)
            x = torch.zeros(1, 1, side, 3)
            small = level.slim(x)
            assert small.shape == (1, 1, max(1, int(side * ratio)), max(1, int(3 * ratio)))
            assert level.fat(small).shape == x.shape


@pytest.mark.parametrize("mode", MODES)
def test_ratio_one_returns_the_input(mode: str) -> None:
    x = torch.randn(1, 2, 5, 7)
    level = slimmer(1.0, mode)
    assert torch.equal(level.slim(x), x)
    assert torch.equal(level.fat(x), x)
    assert not level.active


def test_levels_are_counted_from_the_finest() -> None:
    level = LevelSlimmer([1, 3], 0.5, "nearest")
    active = []
    for _ in range(4):
        level.next_level()
        active.append(level.active)
    assert active == [False, True, False, True]
    level.start()
    assert not level.active


# Costs of detectors in mmdet's own configs, at 80 classes and 800x1344.


def model_config(path: str) -> dict[str, Any]:
    model = Config.fromfile(str(Path(mmdet.__file__).parent / ".mim" / "configs" / path)).model
    model.pop("data_preprocessor", None)
    plain: dict[str, Any] = model.to_dict()
    return plain


def costs(path: str, design: dict[str, Any] | None = None, size: tuple[int, int] = (800, 1344)) -> Cost:
    plain = model_config(path)
    canonical = full_space(facts(plain)).canonicalise(design or {})
    for module in patching.imports(canonical):
        importlib.import_module(module)
    return count(MODELS.build(Config({"model": patching.apply(plain, canonical)}).model), size)


@pytest.mark.parametrize(
    "path",
    [
        "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
        "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
        "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    ],
)
def test_cost_of_rpns(path: str) -> None:
    """PAPERS.md, SlimHead's check 5; level 0 of an RPN is P2."""
    plain, slim = costs(path), costs(path, {"slimhead.levels": [0], "slimhead.ratio": 0.5})
    assert list(plain.macs_levels) == ["P2", "P3", "P4", "P5", "P6"]
    assert round(sum(plain.macs_levels.values()) / 1e9, 2) == 53.15
    assert round(sum(slim.macs_levels.values()) / 1e9, 2) == 23.42
    assert {level for level, macs in slim.macs_levels.items() if macs != plain.macs_levels[level]} == {"P2"}
    assert slim.params == plain.params


def test_cost_of_tood() -> None:
    """PAPERS.md: 57.8 % with Fat after the tower, clearly less with Fat before the 3x3 convolutions."""
    tood, size, sites = "tood/tood_r50_fpn_1x_coco.py", (64, 96), 8 * 12
    plain = costs(tood, size=size)
    slim = costs(tood, {"slimhead.levels": "K3", "slimhead.ratio": 0.5}, size)
    # Two attentions over the layers see a level as one site.
    attention = 2 * (6 * 256 * 32 + 32 * 6)
    whole, thin = ((cost.macs_levels["P3"] - attention) / sites for cost in (plain, slim))
    assert whole == 4_720_704
    tower = 6 * 9 * 256 * 256
    # What stays at full size: 80 classes, 4 sides, 1 alignment and 8 offsets.
    full = 9 * (256 * (80 + 4) + 64 * (1 + 8))
    assert thin == full + (whole - full) / 4
    assert {level for level, macs in slim.macs_levels.items() if macs != plain.macs_levels[level]} == {"P3"}
    assert slim.params == plain.params

    # At 800x1344, three quarters of the sites are on P3.
    assert round(100 * (1 - 0.75 * 0.75 * tower / whole), 1) == 57.8
    assert round(100 * (0.25 + 0.75 * thin / whole), 1) == 46.1


# Heads alone.

STRIDES = [8, 16, 32, 64, 128]
ODD = [(25, 42), (13, 21), (7, 11), (4, 6), (2, 3)]
IMAGE = (200, 336)
ANCHORS = {
    "type": "AnchorGenerator", "ratios": [1.0], "octave_base_scale": 8, "scales_per_octave": 1, "strides": STRIDES,
}  # fmt: skip
NINE = {**ANCHORS, "octave_base_scale": 4, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0]}
DELTAS = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [0.1, 0.1, 0.2, 0.2]}
FOCAL = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}
QUALITY = {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0}
OVERLAP = {"type": "GIoULoss", "loss_weight": 1.0}
BINARY = {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0}
NORM = {"type": "GN", "num_groups": 4}
TEST = {"nms_pre": 100, "score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.6}, "max_per_img": 5}
ATSS = {"assigner": {"type": "ATSSAssigner", "topk": 9}, "allowed_border": -1, "pos_weight": -1}
MAX_IOU = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0, "ignore_iof_thr": -1}
HEADS: dict[str, dict[str, Any]] = {
    "GFLHead": {
        "norm_cfg": NORM,
        "anchor_generator": ANCHORS,
        "train_cfg": ATSS,
        "loss_cls": QUALITY,
        "loss_bbox": OVERLAP,
    },
    "ATSSHead": {
        "norm_cfg": NORM,
        "anchor_generator": ANCHORS,
        "train_cfg": ATSS,
        "bbox_coder": DELTAS,
        "loss_bbox": OVERLAP,
    },
    "RetinaHead": {
        "anchor_generator": NINE,
        "bbox_coder": DELTAS,
        "train_cfg": {"assigner": MAX_IOU, "allowed_border": -1, "pos_weight": -1},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    },
    "FCOSHead": {"norm_cfg": NORM, "strides": STRIDES, "norm_on_bbox": True, "center_sampling": True},
    "TOODHead": {
        "norm_cfg": NORM,
        "anchor_generator": ANCHORS,
        "bbox_coder": DELTAS,
        "loss_cls": {**QUALITY, "activated": True},
    },
    "DDODHead": {"norm_cfg": NORM, "anchor_generator": ANCHORS, "bbox_coder": DELTAS},
    "RPNHead": {"anchor_generator": {**ANCHORS, "ratios": [0.5, 1.0, 2.0]}, "bbox_coder": DELTAS, "loss_cls": BINARY},
}


def build(kind: str, slim: dict[str, Any] | None = None, **changes: Any) -> nn.Module:
    config = {"type": kind, "in_channels": 8, "feat_channels": 8, "test_cfg": TEST, **HEADS[kind], **changes}
    if kind != "RPNHead":
        config = {"num_classes": 3, "stacked_convs": 2, **config}
    if slim is not None:
        importlib.import_module("spaces.modules")
        config = patching.add_mixin({"bbox_head": config}, {"type": "SlimHead", **slim})["bbox_head"]
    torch.manual_seed(0)
    head: nn.Module = MODELS.build(ConfigDict(config))
    for parameter in head.parameters():
        if parameter.dim() > 1:  # well above what the losses' starting points need
            nn.init.normal_(parameter, std=0.1)
    return head.eval()


def pyramid(sizes: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, 8, *size, generator=generator, dtype=dtype) for size in sizes)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_convs", [1, 3])
@torch.no_grad()
def test_rpn_restores_before_its_projections(num_convs: int, mode: str) -> None:
    """They are 1x1, so that projecting at reduced size and restoring the few channels is the same in every mode."""
    head = build("RPNHead", {"levels": [0, 2], "ratio": 0.5, "mode": mode}, num_convs=num_convs).double()
    features = pyramid(ODD, torch.float64)
    found = head(features)
    for level, x in enumerate(features):
        own = slimmer(0.5, mode)
        small = own.slim(x) if level in (0, 2) else x
        hidden = F.relu(head.rpn_conv(small))
        for maps, projection in zip(found, (head.rpn_cls, head.rpn_reg), strict=True):
            before = nn.functional.conv2d(
                own.fat(hidden) if level in (0, 2) else hidden, projection.weight, projection.bias
            )
            after = nn.functional.conv2d(hidden, projection.weight, projection.bias)
            after = own.fat(after) if level in (0, 2) else after
            torch.testing.assert_close(maps[level], before, rtol=0, atol=1e-12)
            torch.testing.assert_close(maps[level], after, rtol=0, atol=1e-12)


@pytest.mark.parametrize("anchor_type", ["anchor_free", "anchor_based"])
@torch.no_grad()
def test_tood_restores_late_or_early_alike(anchor_type: str) -> None:
    """On even maps at r = 0.5, nearest: Fat right after the tower gives the same scores and boxes."""
    slim = build("TOODHead", {"levels": [0], "ratio": 0.5, "mode": "nearest"}, anchor_type=anchor_type)
    plain = build("TOODHead", anchor_type=anchor_type)
    features = pyramid([(24, 42), *ODD[1:]])
    found, without = slim(features), plain(features)

    own, small, restored = slimmer(0.5), None, []
    for conv in plain.inter_convs:
        small = conv(own.slim(features[0]) if small is None else small)
        restored.append(own.fat(small))
    del plain.inter_convs
    plain.inter_convs = [lambda _, x=x: x for x in restored]
    late = plain(features[:1])
    for ours, other, base in zip(found, late, without, strict=True):
        torch.testing.assert_close(ours[0], other[0], rtol=0, atol=1e-5)
        assert not torch.allclose(ours[0], base[0], atol=1e-3)
        assert all(torch.equal(one, two) for one, two in zip(ours[1:], base[1:], strict=True))


@pytest.mark.parametrize("anchor_type", ["anchor_free", "anchor_based"])
@torch.no_grad()
def test_tood_takes_priors_at_full_size(anchor_type: str) -> None:
    """Without shrinking anything by much, the boxes are the base's: they follow the sites of the whole map."""
    slim = build("TOODHead", {"levels": [0], "ratio": 0.5, "mode": "nearest"}, anchor_type=anchor_type)
    for head_part in (slim.reg_offset_module[-1], slim.tood_reg):
        nn.init.zeros_(head_part.weight)
        nn.init.zeros_(head_part.bias)
    boxes = slim(pyramid(ODD))[1][0]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2  # in strides
    down, right = torch.meshgrid(torch.arange(25.0), torch.arange(42.0), indexing="ij")
    torch.testing.assert_close(middle, torch.stack((right, down)).expand_as(middle), rtol=0, atol=1e-4)


def test_mmcv_deformable_convolutions_keep_three_sites() -> None:
    """DDOD's own: they refuse maps that are smaller than their kernel."""
    head = build("DDODHead", {"levels": [0, 1, 2, 3], "ratio": 0.1, "mode": "nearest"}, use_dcn=True)
    sizes = [*ODD[:3], (4, 5), (3, 3)]
    with torch.no_grad():
        for maps in head(pyramid(sizes)):
            assert [tuple(tensor.shape[-2:]) for tensor in maps] == sizes
    assert head.slimmer.small_size((25, 42)) == (3, 4)
    assert head.slimmer.small_size((2, 42)) == (2, 4)


@pytest.mark.parametrize("kind", ["GFLHead", "TOODHead", "RPNHead"])
@pytest.mark.parametrize("fat", [True, False])
@torch.no_grad()
def test_copies_are_their_own(kind: str, fat: bool) -> None:
    head = build(kind, {"levels": [0, 1], "ratio": 0.5, "mode": "nearest", "fat": fat or kind == "TOODHead"})
    features = pyramid(ODD)
    expected = head(features)
    saved = io.BytesIO()
    # A class that was composed cannot be pickled by name; its parts can.
    torch.save([head.slimmer, head.prior_generator, *head.children()], saved)
    twin = copy.deepcopy(head)
    assert twin.slimmer is not head.slimmer
    head.slimmer.levels = frozenset()
    for one, other in zip(expected, twin(features), strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


# Without Fat.


def priors_of(plain: Any, sizes: list[tuple[int, int]], ratio: float, levels: list[int]) -> tuple[SlimPriors, list]:
    own = LevelSlimmer(levels, ratio, "nearest", fat=False)
    own.start()
    small = []
    for size in sizes:
        own.next_level()
        small.append(tuple(own.slim(torch.zeros(1, 1, *size)).shape[-2:]) if own.active else size)
    own.stop()
    return SlimPriors(plain, own), small


@pytest.mark.parametrize(
    "plain",
    [
        AnchorGenerator([8, (8, 16)], [0.5, 1.0], scales=[4.0, 8.0]),
        MlvlPointGenerator([8, 16]),
        MlvlPointGenerator([8, 16], 0),
    ],
    ids=["anchors", "points", "points at corners"],
)
@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_a_prior_without_fat_lies_amid_those_it_stands_for(plain: Any, ratio: float) -> None:
    sizes = [(8, 12), (4, 8)]
    slim, small = priors_of(plain, sizes, ratio, [0, 1])
    share = round(1 / ratio)
    for level, (size, few) in enumerate(zip(sizes, small, strict=True)):
        full = plain.grid_priors(sizes, device="cpu")[level].view(few[0], share, few[1], share, -1)
        found = slim.grid_priors(small, device="cpu")[level].view(*few, -1)
        assert few == (size[0] * ratio, size[1] * ratio)
        torch.testing.assert_close(found, full.mean(dim=(1, 3)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
def test_priors_without_fat_cover_odd_maps(ratio: float) -> None:
    plain = MlvlPointGenerator(STRIDES)
    slim, small = priors_of(plain, ODD, ratio, [0, 1, 3])
    found = slim.grid_priors(small, device="cpu", with_stride=True)
    for level, (points, few) in enumerate(zip(found, small, strict=True)):
        if level not in (0, 1, 3):
            assert torch.equal(points, plain.grid_priors(ODD, device="cpu", with_stride=True)[level])
            continue
        stride, (height, width) = STRIDES[level], ODD[level]
        assert points.shape == (few[0] * few[1], 4)
        assert (points[:, 2:] == stride).all()  # the unit of distances stays
        rows, columns = points[:: few[1], 1], points[: few[1], 0]
        for places, number, length in ((rows, few[0], height * stride), (columns, few[1], width * stride)):
            # Equal shares of the map, each with its point in the middle.
            torch.testing.assert_close(places, (torch.arange(number) + 0.5) * length / number)


def test_valid_flags_without_fat() -> None:
    plain = AnchorGenerator([8, 16], [0.5, 1.0], scales=[8.0])
    slim, small = priors_of(plain, [(25, 42), (13, 21)], 0.5, [0])
    assert small == [(12, 21), (13, 21)]
    flags, coarse = slim.valid_flags(small, (100, 336), device="cpu")
    # 100 px are 12.5 rows of 8 px, and 6 of the rows of 8 * 25 / 12 px begin there.
    assert flags.view(12, 21, 2).all(dim=(1, 2)).tolist() == [True] * 6 + [False] * 6
    assert coarse.view(13, 21, 2).all(dim=(1, 2)).sum() == 7
    assert all(flags.all() for flags in slim.valid_flags(small, (200, 336), device="cpu"))


def test_priors_of_another_map_are_refused() -> None:
    slim, _ = priors_of(MlvlPointGenerator(STRIDES), ODD, 0.5, [0])
    with pytest.raises(RuntimeError, match=r"level 0 are asked for a map of \(25, 42\), but .* gave \(12, 21\)"):
        slim.grid_priors(ODD, device="cpu")


def encode(head: nn.Module, kind: str, level: int, priors: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """What the head would have to predict at each prior to mean ``box``: (N, channels)."""
    boxes = box.expand(len(priors), 4)
    if kind in ("ATSSHead", "RetinaHead"):
        return head.bbox_coder.encode(priors, boxes)
    points = priors if priors.shape[1] == 2 else (priors[:, :2] + priors[:, 2:]) / 2
    distances = torch.cat((points - boxes[:, :2], boxes[:, 2:] - points), dim=1) / STRIDES[level]
    if kind == "FCOSHead":
        # Normalised by the stride; the head multiplies by it in evaluation.
        return distances if head.training else distances * STRIDES[level]
    low = distances.clamp(0, 15.99).floor()  # a distribution over 0..16 with the mean at the distance
    share = (distances.clamp(0, 15.99) - low).clamp(1e-6, 1 - 1e-6)
    logits = distances.new_full((len(priors), 4, 17), -30.0)
    logits.scatter_(2, low.long()[..., None], (1 - share).log()[..., None])
    logits.scatter_(2, low.long()[..., None] + 1, share.log()[..., None])
    return logits.flatten(1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("kind", ["GFLHead", "ATSSHead", "RetinaHead", "FCOSHead"])
@torch.no_grad()
def test_boxes_without_fat_are_decoded_where_they_were_encoded(kind: str, ratio: float, mode: str) -> None:
    head = build(kind, {"levels": [0, 1], "ratio": ratio, "mode": mode, "fat": False})
    box = torch.tensor([100.3, 58.1, 165.7, 130.9])
    metas = [{"img_shape": IMAGE, "pad_shape": IMAGE, "batch_input_shape": IMAGE, "scale_factor": (1.0, 1.0)}]
    truth = [InstanceData(bboxes=box[None], labels=torch.tensor([1]))]
    features = tuple(x[:1] for x in pyramid(ODD))
    for training in (True, False):
        head.train(training)
        outputs = head(features)
        sizes = [tuple(scores.shape[-2:]) for scores in outputs[0]]
        assert sizes[:2] == [(int(height * ratio), int(width * ratio)) for height, width in ODD[:2]]
        assert sizes[2:] == ODD[2:]
        boxes = [
            encode(head, kind, level, priors, box).reshape(1, *size, -1).permute(0, 3, 1, 2)
            for level, (priors, size) in enumerate(
                zip(head.prior_generator.grid_priors(sizes, device="cpu"), sizes, strict=True)
            )
        ]
        if training:
            losses = head.loss_by_feat(outputs[0], boxes, *outputs[2:], truth, metas)
            assert sum(float(part) for part in _parts(losses["loss_bbox"])) < 1e-4
            # The loss can tell: there are positives, and they want this box and no other.
            moved = [maps * 1.2 for maps in boxes]
            losses = head.loss_by_feat(outputs[0], moved, *outputs[2:], truth, metas)
            assert sum(float(part) for part in _parts(losses["loss_bbox"])) > 1e-3
        else:
            # Sure of it at the site of each level whose prior is nearest to the middle of the box.
            scores = [torch.full_like(maps, -9.0) for maps in outputs[0]]
            for level in (0, 1):
                height, width = sizes[level]
                row = int((box[1] + box[3]) / 2 / IMAGE[0] * height)
                column = int((box[0] + box[2]) / 2 / IMAGE[1] * width)
                scores[level][0, 1, row, column] = 9.0
            found = head.predict_by_feat(scores, boxes, *_sure(outputs[2:]), batch_img_metas=metas)[0]
            assert len(found) >= 1
            torch.testing.assert_close(found.bboxes, box.expand(len(found), 4), rtol=0, atol=0.05)
            assert (found.labels == 1).all()


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _sure(factors: tuple) -> list:
    return [[torch.full_like(maps, 9.0) for maps in level_maps] for level_maps in factors]


@pytest.mark.parametrize(("head", "detector"), [("TOODHead", "tood"), ("VFNetHead", "vfnet")])
def test_heads_that_need_fat(head: str, detector: str) -> None:
    known = facts(model_config(f"{detector}/{detector}_r50_fpn_1x_coco.py"))
    assert known.head == head
    space = build_space({"slimhead": {}}, known)
    with pytest.raises(UserError, match=f"slimhead: fat must be true on {head}: it"):
        space.canonicalise({"slimhead.fat": False})
    assert space.canonicalise({"slimhead.fat": False, "slimhead.ratio": 1.0}) == {}
    assert space.canonicalise({}) == {}
    assert space.canonicalise({"slimhead.levels": [0]})["slimhead.fat"] is True
