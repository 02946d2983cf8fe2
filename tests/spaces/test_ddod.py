"""DDOD's training against known answers (PAPERS.md), a brute-force assignment and mmdet's own losses."""

from __future__ import annotations

import copy
import importlib
import io
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
from mmdet.models import data_preprocessors  # noqa: F401  registers all of mmdet's models
from mmdet.models.dense_heads import DDODHead
from mmdet.models.task_modules.assigners import ATSSAssigner
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from spaces import patching
from spaces.base import facts
from spaces.ddod.modules import LevelBalance, QualityAssigner, level_weights, mismatch
from spaces.errors import UserError
from spaces.space import build_space
from trainers.cost import count

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
BASES = {
    "GFLHead": "gfl/gfl_r50_fpn_1x_coco.py",
    "ATSSHead": "atss/atss_r50_fpn_1x_coco.py",
    "RetinaHead": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "FCOSHead": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
}
HEADS = tuple(BASES)
CLASSES = 3
MAPS = ((9, 13), (5, 7), (3, 4), (2, 2), (1, 1))
SIZE = (72, 104)
STRIDES = (8, 16, 32, 64, 128)
PAPER = {
    "ddod.assign": True,
    "ddod.alpha_cls": 0.8,
    "ddod.alpha_reg": 0.5,
    "ddod.topk": 9,
    "ddod.reweight": "interpolate",
    "ddod.cumulative": True,
    "ddod.span": 2.0,
}


def base_model(head: str, **changes: Any) -> dict[str, Any]:
    """mmdet's own detector with this head, made small."""
    model = Config.fromfile(CONFIGS / BASES[head]).model.to_dict()
    model.pop("data_preprocessor")
    model["backbone"] = {"type": "ResNet", "depth": 18, "base_channels": 8, "norm_cfg": {"type": "BN"}}
    model["neck"].update(in_channels=[8, 16, 32, 64], out_channels=32)
    model["bbox_head"].update(num_classes=CLASSES, in_channels=32, feat_channels=32, stacked_convs=1, **changes)
    model["train_cfg"] = {"allowed_border": -1, "pos_weight": -1, **(model.get("train_cfg") or {})}
    return model


def build(model: dict[str, Any], design: dict[str, Any] | None = None) -> nn.Module:
    canonical = build_space({"ddod": None}, facts(model)).canonicalise(design or {})
    for module in patching.imports(canonical):
        importlib.import_module(module)
    torch.manual_seed(0)
    built = MODELS.build(ConfigDict(patching.apply(model, canonical)))
    patching.check_built(built, canonical)
    return built


def head_of(head: str, design: dict[str, Any] | None = None, **changes: Any) -> nn.Module:
    return build(base_model(head, **changes), design).bbox_head.train()


def without(*, assign: bool, reweight: str, **others: Any) -> dict[str, Any]:
    return {**PAPER, "ddod.assign": assign, "ddod.reweight": reweight, **{f"ddod.{k}": v for k, v in others.items()}}


def outputs(head: nn.Module, images: int = 3, seed: int = 0) -> list[list[Tensor]]:
    """What the head would predict, at random: boxes that overlap objects well and badly."""
    generator = torch.Generator().manual_seed(seed)
    anchors = head.prior_generator.num_base_priors[0]
    fcos = type(head).__name__.endswith("FCOSHead")
    channels = [anchors * CLASSES, anchors * 4]
    if hasattr(head, "integral"):
        channels[1] = 4 * (head.reg_max + 1)
    if hasattr(head, "loss_centerness"):
        channels.append(anchors)
    maps = []
    for index, channel in enumerate(channels):
        levels = []
        for size, stride in zip(MAPS, STRIDES):
            level = torch.randn(images, channel, *size, generator=generator)
            if index == 1 and fcos:
                unit = 1 if head.norm_on_bbox else stride
                level = unit * (1 + 3 * torch.rand(images, channel, *size, generator=generator))
            elif index == 1:
                level = (3 if hasattr(head, "integral") else 0.5) * level
            levels.append(level.requires_grad_())
        maps.append(levels)
    return maps


def objects(counts: tuple[int, ...] = (3, 0, 6), seed: int = 0, scale: float = 1.0) -> list[InstanceData]:
    generator = torch.Generator().manual_seed(100 + seed)
    found = []
    for number in counts:
        corner = torch.rand(number, 2, generator=generator) * torch.tensor([60.0, 40.0])
        side = scale * 6 + scale * torch.rand(number, 2, generator=generator) * torch.tensor([38.0, 26.0])
        labels = torch.randint(CLASSES, (number,), generator=generator)
        found.append(InstanceData(bboxes=torch.cat((corner, corner + side), 1), labels=labels))
    return found


def metas(images: int = 3, pad: tuple[int, int] = SIZE) -> list[dict[str, Any]]:
    return [{"img_shape": SIZE, "pad_shape": pad if index == 2 else SIZE} for index in range(images)]


def losses(head: nn.Module, maps: list[list[Tensor]], given: list[InstanceData]) -> dict[str, list[Tensor]]:
    return head.loss_by_feat(*maps, given, metas(len(given)), None)


def close(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    one, other = torch.as_tensor(one).double(), torch.as_tensor(other).double()
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# Level weights: check 1, equation 3 and the other rows of table 7


def weights(scheme: str, counts: list[int], span: float = 2.0) -> list[float]:
    return level_weights(scheme, torch.tensor(counts), span).tolist()


def test_interpolation() -> None:
    found = weights("interpolate", [100, 50, 20, 8, 2])
    assert [round(weight, 4) for weight in found] == [1, 1.5102, 1.8163, 1.9388, 2]
    assert [round(weight, 4) for weight in weights("interpolate", [100, 50, 20, 8, 2], 3)] == [
        1, 2.0204, 2.6327, 2.8776, 3
    ]  # fmt: skip


def test_linear() -> None:
    assert weights("linear", [7, 0, 0, 9, 1]) == [1, 1.25, 1.5, 1.75, 2]
    assert weights("linear", [0, 0, 0], 3) == [1, 2, 3]
    assert weights("linear", [5]) == [1]


def test_sum() -> None:
    assert weights("sum", [50, 25, 15, 10, 0]) == [1.5, 1.75, 1.85, 1.9, 2]
    assert weights("sum", [4, 0], 3) == [1, 3]


@pytest.mark.parametrize("counts", [[0, 0, 0], [7, 7, 7]])
def test_equal_counts(counts: list[int]) -> None:
    assert weights("interpolate", counts) == [2, 2, 2]
    assert weights("interpolate", counts, 1.5) == [1.5, 1.5, 1.5]
    assert weights("sum", [0, 0, 0], 3) == [3, 3, 3]


@pytest.mark.parametrize("scheme", ["interpolate", "sum"])
def test_bounds_and_order(scheme: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        counts = torch.randint(0, 10**12, (5,), generator=generator)
        found = level_weights(scheme, counts, 2.5)
        assert ((found >= 1) & (found <= 2.5)).all()
        assert found[counts.argsort()].diff().le(0).all()  # more positives, less weight
        if scheme == "interpolate":
            assert found[counts.argmin()] == 2.5 and found[counts.argmax()] == 1


def test_branches_are_counted_apart() -> None:
    """Check 2: a regression step after a classification step depends on the regression counts alone."""
    cls, reg = [[100, 50, 20, 8, 2], [1, 0, 0, 0, 9]], [[5, 5, 40, 1, 0], [10, 0, 0, 0, 0]]
    balance = LevelBalance(5, "interpolate", 2.0, True)
    for step in range(2):
        found = balance(torch.tensor([cls[step], reg[step]]))
        for row, counts in zip(found, (cls, reg)):
            so_far = [sum(column) for column in zip(*counts[: step + 1])]
            assert row.tolist() == weights("interpolate", so_far)
    assert balance.cls.tolist() == [101, 50, 20, 8, 11] and balance.reg.tolist() == [15, 5, 40, 1, 0]
    other = LevelBalance(5, "interpolate", 2.0, True)
    other(torch.tensor([[0, 0, 0, 0, 999], reg[0]]))
    assert torch.equal(other(torch.tensor([[7, 7, 7, 7, 7], reg[1]]))[1], found[1])


def test_counts_of_the_batch_alone() -> None:
    balance = LevelBalance(3, "interpolate", 2.0, False)
    balance(torch.tensor([[1, 2, 300], [300, 2, 1]]))
    assert balance(torch.tensor([[5, 3, 1], [1, 1, 1]])).tolist() == [[1, 1.5, 2], [2, 2, 2]]
    assert not list(balance.buffers())
    assert not list(LevelBalance(3, "linear", 2.0, True).buffers())


def test_evaluation_counts_nothing() -> None:
    balance = LevelBalance(2, "interpolate", 2.0, True)
    balance(torch.tensor([[4, 1], [4, 1]]))
    balance.eval()
    assert balance(torch.tensor([[0, 50], [0, 50]])).tolist() == [[1, 2], [1, 2]]
    assert balance.cls.tolist() == [4, 1]


RANK = """
import json, sys, torch
from torch import distributed
from spaces.ddod.modules import LevelBalance
rank, file = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
found = {}
for cumulative in (True, False):
    balance = LevelBalance(3, "interpolate", 2.0, cumulative)
    given = torch.tensor([[[10, 0, 1], [1, 1, 1]], [[0, 4, 1], [0, 3, 7]]][rank])
    weights = [balance(given).tolist() for _ in range(2)][-1]
    assert given.sum() in (14, 15)
    found[str(cumulative)] = [weights, [buffer.tolist() for buffer in balance.buffers()]]
print(json.dumps(found))
distributed.destroy_process_group()
"""


def test_counts_are_summed_over_ranks(tmp_path: Path) -> None:
    """Two processes with gloo count 14 + 15 positives."""
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    found = [json.loads(out) for out, _ in said]
    assert found[0] == found[1]
    expected = [weights("interpolate", [10, 4, 2]), weights("interpolate", [1, 4, 8])]
    assert found[0]["True"] == [expected, [[20, 8, 4], [2, 8, 16]]]
    assert found[0]["False"] == [expected, []]


# Matching quality: checks 3 and 6


def quality(score: float, overlap: float, alpha: float) -> float:
    box = torch.tensor([[0.0, 0.0, 10.0, 10 * overlap] if overlap else [50.0, 50.0, 60.0, 60.0]])
    scores = torch.tensor([[-9.0, math.log(score / (1 - score))]])
    objects = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    return round(QualityAssigner(alpha, 9).quality(box, scores, objects, torch.tensor([1])).item(), 4)


@pytest.mark.parametrize(
    ("score", "overlap", "at_8", "at_5"),
    [(0.9, 0.5, 0.5624, 0.6708), (0.5, 0.9, 0.8002, 0.6708), (0.01, 0.7, 0.2993, 0.0837)],
)
def test_quality(score: float, overlap: float, at_8: float, at_5: float) -> None:
    assert quality(score, overlap, 0.8) == at_8
    assert quality(score, overlap, 0.5) == at_5
    assert quality(score, overlap, 1.0) == overlap
    assert quality(score, overlap, 0.0) == score


def test_quality_without_overlap() -> None:
    assert quality(0.7, 0.0, 0.0) == 0.7
    assert quality(0.7, 0.0, 0.05) == 0.0


def scene(seed: int) -> tuple[Tensor, list[int], Tensor, Tensor, Tensor, Tensor]:
    """Anchors of three levels, predictions and objects at random."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [120, 30, 5]
    centers, sides = (torch.rand(sum(sizes), 2, generator=generator) for _ in range(2))
    anchors = torch.cat((100 * centers - 20 * sides, 100 * centers + 20 * sides), 1)
    boxes = anchors + 4 * torch.randn(sum(sizes), 4, generator=generator).sort(-1).values
    scores = torch.randn(sum(sizes), CLASSES, generator=generator)
    given = objects((seed % 6,), seed=seed)[0]
    return anchors, sizes, boxes, scores, given.bboxes, given.labels


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_as_mmdets_assigner(alpha: float) -> None:
    """Wherever mmdet leaves no object without a positive."""
    found = scenes = 0
    for seed in range(80):
        anchors, sizes, boxes, scores, *given = scene(seed)
        ours = QualityAssigner(alpha, 9)(anchors, sizes, boxes, scores, *given)
        theirs = ATSSAssigner(9, alpha).assign(
            InstanceData(priors=anchors, bboxes=boxes, scores=scores),
            sizes,
            InstanceData(bboxes=given[0], labels=given[1]),
        )
        if len(theirs.gt_inds.unique()) == len(given[1]) + 1:
            assert torch.equal(ours + 1, theirs.gt_inds)
            scenes += 1
            found += (ours >= 0).sum().item()
    assert scenes > 25 and found > 60


def test_equal_candidates_are_all_positive() -> None:
    """At the start every score is the same; mmdet leaves it to rounding whether any candidate is positive."""
    anchors = torch.tensor([0.0, 0.0, 8.0, 8.0]).repeat(5, 1)
    box, label = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([0])
    for score in (-4.6, -4.595, -1.3, 0.1):
        scores = torch.full((5, 1), score)
        assert QualityAssigner(0.3, 2)(anchors, [3, 2], anchors, scores, box, label).tolist().count(0) == 4


def test_the_best_of_few_candidates_is_positive() -> None:
    """Of two candidates the better one never reaches mean plus deviation; a single one has no deviation."""
    anchors = torch.tensor([0.0, 0.0, 8.0, 8.0]).repeat(2, 1)
    box, label = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([0])
    scores = torch.tensor([[0.0], [1.0]])
    assert QualityAssigner(0.5, 1)(anchors, [1, 1], anchors, scores, box, label).tolist() == [-1, 0]
    assert QualityAssigner(0.5, 1)(anchors[:1], [1], anchors[:1], scores[:1], box, label).tolist() == [0]
    moved = anchors - torch.tensor([[0.0], [20.0]])
    assert QualityAssigner(0.5, 1)(moved, [1, 1], anchors, scores, box, label).tolist() == [0, -1]
    # Its centre must lie inside nonetheless.
    assert QualityAssigner(0.5, 1)(anchors - 4, [1, 1], anchors, scores, box, label).tolist() == [-1, -1]
    assert QualityAssigner(0.5, 1)(anchors[:0], [0, 0], anchors[:0], scores[:0], box, label).tolist() == []


# The assignment by brute force


def sites(head: nn.Module) -> Iterator[tuple[int, float, float]]:
    """Level and position of each site, as mmdet places them."""
    middle = 0.5 if type(head).__name__.endswith("FCOSHead") else 0.0
    for level, ((height, width), stride) in enumerate(zip(MAPS, STRIDES)):
        for row in range(height):
            for column in range(width):
                yield level, (column + middle) * stride, (row + middle) * stride


def shapes(head: nn.Module, level: int) -> list[tuple[float, float]]:
    """Width and height of the anchors at a site."""
    if type(head).__name__.endswith("FCOSHead"):
        return [(0.0, 0.0)]
    if type(head).__name__.endswith("RetinaHead"):
        sides = [4 * STRIDES[level] * 2 ** (octave / 3) for octave in range(3)]
        return [(side / math.sqrt(ratio), side * math.sqrt(ratio)) for ratio in (0.5, 1, 2) for side in sides]
    return [(8.0 * STRIDES[level], 8.0 * STRIDES[level])]


def predicted(head: nn.Module, level: int, x: float, y: float, shape: tuple[float, float], raw: Tensor) -> list[float]:
    """The box that ``raw``, a head's output at one anchor, stands for."""
    stride = STRIDES[level]
    if hasattr(head, "integral"):
        spread = raw.view(4, -1).softmax(1) @ torch.arange(raw.numel() // 4, dtype=raw.dtype)
        left, top, right, bottom = (spread * stride).tolist()
    elif type(head).__name__.endswith("FCOSHead"):
        left, top, right, bottom = (raw * (stride if head.norm_on_bbox else 1)).tolist()
    else:
        stds = (0.1, 0.1, 0.2, 0.2) if type(head).__name__.endswith("ATSSHead") else (1, 1, 1, 1)
        dx, dy, dw, dh = (value * std for value, std in zip(raw.tolist(), stds))
        width, height = shape[0] * math.exp(dw), shape[1] * math.exp(dh)
        x, y = x + dx * shape[0], y + dy * shape[1]
        left, top, right, bottom = width / 2, height / 2, width / 2, height / 2
    return [x - left, y - top, x + right, y + bottom]


def overlap_of(one: list[float], other: list[float]) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / max(areas - width * height, 1e-6)


def brute(
    head: nn.Module, maps: list[list[Tensor]], image: int, given: InstanceData, alpha: float, topk: int, inside: Any
) -> dict[tuple[int, int], int]:
    """Which object each (site, anchor) is positive for; nothing shared with what it checks."""
    best: dict[tuple[int, int], tuple[float, int]] = {}
    all_sites = list(enumerate(sites(head)))
    starts = [next(index for index, (level, *_) in all_sites if level == number) for number in range(len(MAPS))]
    flat = [
        [level[image].permute(1, 2, 0).reshape(-1, level.shape[1]).detach().double() for level in group]
        for group in maps
    ]
    for number, (box, label) in enumerate(zip(given.bboxes.tolist(), given.labels.tolist())):
        center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates = []
        for wanted in range(len(MAPS)):
            here = [
                (math.hypot(x - center[0], y - center[1]), index, anchor, x, y)
                for index, (level, x, y) in all_sites
                if level == wanted
                for anchor in range(len(shapes(head, level)))
                if inside(level, x, y, shapes(head, level)[anchor], image)
            ]
            candidates += [(wanted, *one[1:]) for one in sorted(here)[: topk * len(shapes(head, wanted))]]
        qualities = []
        for level, index, anchor, x, y in candidates:
            anchors = len(shapes(head, level))
            scores, boxes = (part[level][index - starts[level]].view(anchors, -1)[anchor] for part in flat[:2])
            predicted_box = predicted(head, level, x, y, shapes(head, level)[anchor], boxes)
            score = 1 / (1 + math.exp(-scores[label].item()))
            qualities.append(score ** (1 - alpha) * overlap_of(predicted_box, box) ** alpha)
        if not qualities:
            continue
        inner = [
            value
            for (_, _, _, x, y), value in zip(candidates, qualities)
            if min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
        ]
        threshold = min([statistics.mean(qualities) + statistics.stdev(qualities), *sorted(inner)[-1:]])
        for (_, index, anchor, x, y), value in zip(candidates, qualities):
            within = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if value >= threshold and within and value > best.get((index, anchor), (-1.0, 0))[0]:
                best[index, anchor] = (value, number)
    return {key: number for key, (_, number) in best.items()}


def everywhere(*_: Any) -> bool:
    return True


def not_padding(level: int, x: float, y: float, shape: Any, image: int) -> bool:
    """Sites of the smaller third image, (40, 56) px, as mmdet's valid flags count them."""
    stride = STRIDES[level]
    return image != 2 or (x < math.ceil(56 / stride) * stride and y < math.ceil(40 / stride) * stride)


def within_image(level: int, x: float, y: float, shape: tuple[float, float], image: int) -> bool:
    width, height = shape
    return x - width / 2 >= -60 and y - height / 2 >= -60 and x + width / 2 < 164 and y + height / 2 < 132


@pytest.mark.parametrize(
    ("name", "topk", "changes", "inside"),
    [
        ("GFLHead", 9, {}, everywhere),
        ("ATSSHead", 9, {}, everywhere),
        ("ATSSHead", 1, {}, everywhere),
        ("ATSSHead", 9, {}, not_padding),
        ("ATSSHead", 9, {}, within_image),
        ("RetinaHead", 9, {}, everywhere),
        ("RetinaHead", 2, {}, not_padding),
        ("FCOSHead", 9, {}, everywhere),
        ("FCOSHead", 27, {"norm_on_bbox": True}, everywhere),
    ],
)
def test_assignment(name: str, topk: int, changes: dict[str, Any], inside: Any) -> None:
    head = head_of(name, {**PAPER, "ddod.topk": topk, "ddod.alpha_cls": 0.85}, **changes)
    positives, levels = 0, set()
    for seed in range(2):
        given, maps = objects(seed=seed, scale=1 + 2 * seed), outputs(head, seed=seed)
        if inside is within_image:
            head.train_cfg["allowed_border"] = 60
        if name == "FCOSHead":
            grid = head.prior_generator.grid_priors(MAPS, device="cpu")
            flags = torch.ones(3, sum(map(len, grid)), dtype=torch.bool)
        else:
            grid, flags = head._grid(maps[0], metas(pad=(40, 56) if inside is not_padding else SIZE))
        for targets, alpha in zip(head._assign(grid, flags, maps[0], maps[1], given), (0.85, 0.5)):
            labels, taking_part, boxes = (torch.cat(part, 1) for part in targets[:3])
            assert not boxes.requires_grad
            assert torch.equal(taking_part, flags.float())
            levels |= {level for level, part in enumerate(targets.labels) if (part < CLASSES).any()}
            average = 0
            for image, own in enumerate(given):
                expected = brute(head, maps, image, own, alpha, topk, inside)
                anchors = head.prior_generator.num_base_priors[0]
                wanted = torch.full_like(labels[image], CLASSES)
                for (site, anchor), number in expected.items():
                    wanted[site * anchors + anchor] = own.labels[number]
                    assert torch.equal(boxes[image, site * anchors + anchor], own.bboxes[number])
                assert torch.equal(labels[image], wanted)
                assert not boxes[image, wanted == CLASSES].any()
                positives += len(expected)
                average += max(1, len(expected))
            assert targets.average == average
    assert positives > 20
    assert len(levels) > 1


def test_one_anchor_of_several_objects() -> None:
    """The object of the higher quality gets it, and a pyramid's levels all offer candidates."""
    head = head_of("ATSSHead", PAPER)
    maps = outputs(head, images=1)
    box = objects((1,))[0].bboxes
    twins = InstanceData(bboxes=box.repeat(2, 1), labels=torch.tensor([0, 1]))
    grid, flags = head._grid(maps[0], metas(1))
    labels = torch.cat(head._assign(grid, flags, maps[0], maps[1], [twins])[0].labels, 1)[0]
    scores = torch.cat([level[0].flatten(1) for level in maps[0]], 1)
    for index in (labels < CLASSES).nonzero().squeeze(1):
        both = [brute(head, maps, 0, twins[number], 0.8, 9, everywhere) for number in (0, 1)]
        claims = [number for number in (0, 1) if (index.item(), 0) in both[number]]
        assert labels[index] == max(claims, key=lambda number: scores[number, index].item())


# Losses


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_each_loss_is_multiplied_by_its_level(name: str, assign: bool) -> None:
    given = objects()
    if assign:
        plain = head_of(name, without(assign=True, reweight="none"))
        alone = losses(plain, outputs(plain), given)
    else:
        plain = head_of(name)
        if name == "FCOSHead":  # the base sums over the levels itself
            plain = head_of(name, without(assign=False, reweight="linear"))
            plain.level_balance.span = 1.0
        alone = losses(plain, outputs(plain), given)
    heads = {scheme: head_of(name, without(assign=assign, reweight=scheme)) for scheme in ("linear", "interpolate")}
    found = {scheme: losses(head, outputs(head), given) for scheme, head in heads.items()}
    balance = heads["interpolate"].level_balance
    assert (balance.cls.sum() > 0) and (balance.reg.sum() > 0)
    assert torch.equal(balance.cls, balance.reg) is not assign
    factors = {
        "linear": [[1, 1.25, 1.5, 1.75, 2]] * 2,
        "interpolate": [weights("interpolate", counts.tolist()) for counts in (balance.cls, balance.reg)],
    }
    for scheme, (cls, reg) in factors.items():
        assert found[scheme].keys() == alone.keys()
        for key, levels in alone.items():
            assert len(found[scheme][key]) == len(levels) == 5
            expected = [loss * factor for loss, factor in zip(levels, cls if key == "loss_cls" else reg)]
            close(torch.stack(found[scheme][key]), torch.stack(expected))
            assert torch.stack(levels).sum() > 0


def test_fcos_by_level_sums_up_to_the_base() -> None:
    for changes in ({}, {"norm_on_bbox": True, "center_sampling": True, "centerness_on_reg": True}):
        base = head_of("FCOSHead", **changes)
        head = head_of("FCOSHead", without(assign=False, reweight="linear"), **changes)
        head.level_balance.span = 1.0
        for counts in ((3, 0, 6), (0, 0, 0)):
            expected, found = (losses(one, outputs(one), objects(counts)) for one in (base, head))
            assert expected.keys() == found.keys()
            for key, value in expected.items():
                close(sum(found[key]), value)


def dictated(head: nn.Module, targets: Any, boxes: list[Tensor], first: list[Any]) -> Any:
    """The base's ``get_targets``, giving targets that were made elsewhere."""
    positive = [(level < CLASSES).float()[..., None].expand(-1, -1, 4) for level in targets.labels]
    return lambda *args, **kwargs: (*first, targets.labels, targets.weights, boxes, positive, targets.average)


@pytest.mark.parametrize("name", ["RetinaHead", "GFLHead"])
def test_losses_are_the_bases_on_both_assignments(name: str) -> None:
    head, base = head_of(name, without(assign=True, reweight="none")), head_of(name)
    maps, given = outputs(head), objects()
    found = losses(head, maps, given)
    grid, flags = head._grid(maps[0], metas())
    both = head._assign(grid, flags, maps[0], maps[1], given)
    for targets, keys in zip(both, (["loss_cls"], [key for key in found if key != "loss_cls"])):
        boxes, first = targets.boxes, [[level.expand(3, -1, -1) for level in grid]]
        if name == "RetinaHead":
            first = []
            boxes = [
                base.bbox_coder.encode(prior.repeat(3, 1), level.reshape(-1, 4)).view(3, -1, 4).nan_to_num(0, 0, 0)
                for prior, level in zip(grid, boxes)
            ]
        base.get_targets = dictated(base, targets, boxes, first)
        expected = losses(base, maps, given)
        for key in keys:
            close(torch.stack(found[key]), torch.stack(expected[key]))
            assert torch.stack(found[key]).sum() > 0


def mmdets_ddod(head: nn.Module) -> DDODHead:
    """mmdet's own DDOD, for the predictions of an ATSS."""
    config = Config.fromfile(CONFIGS / "ddod/ddod_r50_fpn_1x_coco.py").model
    config.bbox_head.update(num_classes=CLASSES, train_cfg=config.train_cfg, use_dcn=False)
    return MODELS.build(config.bbox_head)


def test_atss_is_mmdets_ddod_but_for_its_bug() -> None:
    """Check 2 on losses: mmdet weights regression by the positives of both branches, we by those of regression."""
    head, plain = head_of("ATSSHead", PAPER), head_of("ATSSHead", without(assign=True, reweight="none"))
    other = mmdets_ddod(head)
    for step in range(3):
        maps, given = outputs(head, seed=step), objects(seed=step, scale=3)
        before = torch.tensor(other.cls_num_pos_samples_per_level)
        expected, found, bare = losses(other, maps, given), losses(head, maps, given), losses(plain, maps, given)
        wrong = torch.tensor(other.cls_num_pos_samples_per_level)
        own = level_weights("interpolate", head.level_balance.reg, 2.0)
        assert step == 0 or not torch.allclose(own, level_weights("interpolate", wrong, 2.0))
        for key in ("loss_bbox", "loss_iou"):
            close(torch.stack(bare[key]) * level_weights("interpolate", wrong, 2.0), torch.stack(expected[key]))
            close(torch.stack(bare[key]) * own, torch.stack(found[key]))
        if step == 0:
            assert not before.any()
            close(torch.stack(found["loss_cls"]), torch.stack(expected["loss_cls"]))
    assert (head.level_balance.cls + head.level_balance.reg).tolist() == wrong.tolist()


def test_fcos_regression_by_hand() -> None:
    head = head_of("FCOSHead", without(assign=True, reweight="none"), norm_on_bbox=True)
    maps, given = outputs(head), objects()
    found = losses(head, maps, given)
    grid = head.prior_generator.grid_priors(MAPS, device="cpu")
    _, reg = head._assign(grid, torch.ones(3, sum(map(len, grid)), dtype=torch.bool), maps[0], maps[1], given)
    for level, stride in enumerate(STRIDES):
        box_loss = iou_loss = torch.zeros(())
        for image in range(3):
            for site in (reg.labels[level][image] < CLASSES).nonzero().squeeze(1).tolist():
                x, y = grid[level][site].tolist()
                raw = maps[1][level][image].flatten(1)[:, site].tolist()
                box = [x - stride * raw[0], y - stride * raw[1], x + stride * raw[2], y + stride * raw[3]]
                overlap = overlap_of(box, reg.boxes[level][image, site].tolist())
                box_loss = box_loss - math.log(max(overlap, 1e-6))
                logits = maps[2][level][image].flatten()[site]
                iou_loss = iou_loss + F.binary_cross_entropy_with_logits(logits, torch.tensor(overlap))
        close(found["loss_bbox"][level], box_loss / reg.average, 1e-4)
        close(found["loss_iou"][level], iou_loss / reg.average, 1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_predictions_are_detached(name: str) -> None:
    """Assignments and the targets of quality send no gradient: box losses none to scores, IoU losses none to boxes."""
    head = head_of(name, PAPER)
    maps = outputs(head)
    found = losses(head, maps, objects())
    boxes = sum(sum(levels) for key, levels in found.items() if key in ("loss_bbox", "loss_dfl"))
    assert all(
        gradient is None for gradient in torch.autograd.grad(boxes, maps[0], retain_graph=True, allow_unused=True)
    )
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(boxes, maps[1], retain_graph=True))
    rest = sum(found["loss_cls"]) + sum(found.get("loss_iou", [0.0]))
    assert all(gradient is None for gradient in torch.autograd.grad(rest, maps[1], allow_unused=True))


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_no_object_at_all(name: str, assign: bool) -> None:
    head = head_of(name, without(assign=assign, reweight="interpolate"))
    maps = outputs(head)
    found = losses(head, maps, objects((0, 0, 0)))
    total = sum(sum(levels) for levels in found.values())
    assert torch.isfinite(total)
    gradients = torch.autograd.grad(total, [level for group in maps for level in group])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not head.level_balance.cls.any()
    # Nothing counted: every level has the largest weight.
    plain = head_of(name, without(assign=assign, reweight="linear"))
    plain.level_balance.span = 1.0
    close(sum(found["loss_cls"]), 2 * sum(losses(plain, outputs(plain), objects((0, 0, 0)))["loss_cls"]))


def test_nothing_is_kept_between_calls() -> None:
    for name in HEADS:
        for assign in (True, False):
            head = head_of(name, without(assign=assign, reweight="linear"))
            before = set(vars(head))
            first = losses(head, outputs(head), objects())
            assert set(vars(head)) <= before | {"_raw_positive_infos"}
            assert head._base_labels is None
            again = losses(copy.deepcopy(head), outputs(head), objects())
            assert all(torch.equal(torch.stack(first[key]), torch.stack(again[key])) for key in first)


# Counts in checkpoints


def test_counts_go_through_a_checkpoint() -> None:
    head = head_of("GFLHead", PAPER)
    losses(head, outputs(head), objects())
    counts = head.level_balance.reg.clone()
    assert counts.sum() > 0
    file = io.BytesIO()
    torch.save({"state_dict": head.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)["state_dict"]
    other = head_of("GFLHead", PAPER)
    other.load_state_dict(state, strict=True)
    assert torch.equal(other.level_balance.reg, counts) and torch.equal(other.level_balance.cls, head.level_balance.cls)
    # Training goes on as if it had not been interrupted.
    maps, given = outputs(head, seed=1), objects(seed=1)
    for one, two in zip(losses(head, maps, given).values(), losses(other, maps, given).values()):
        assert torch.equal(torch.stack(one), torch.stack(two))
    assert copy.deepcopy(head).half().level_balance.cls.dtype is torch.int64


@pytest.mark.parametrize("name", HEADS)
def test_a_checkpoint_of_the_base_loads_strictly(name: str) -> None:
    base, head = head_of(name), head_of(name, PAPER)
    counts = {"level_balance.cls", "level_balance.reg"}
    assert set(head.state_dict()) - set(base.state_dict()) == counts
    head.load_state_dict(base.state_dict(), strict=True)
    assert not head.level_balance.cls.any()
    with pytest.raises(RuntimeError, match="Missing key"):
        head.load_state_dict({key: value for key, value in base.state_dict().items() if "cls_convs" not in key})
    uncounted = head_of(name, without(assign=True, reweight="linear"))
    assert list(uncounted.state_dict()) == list(base.state_dict())


# The network is the base's


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_inference_and_cost_are_the_bases(name: str, assign: bool) -> None:
    model = base_model(name)
    base, other = build(model).eval(), build(model, {**PAPER, "ddod.assign": assign}).eval()
    other.load_state_dict(base.state_dict(), strict=True)
    nn.init.normal_(next(base.bbox_head.cls_convs.parameters()), std=0.2)
    other.load_state_dict(base.state_dict())
    images = torch.randn(2, 3, *SIZE)
    samples = [DetDataSample(metainfo={"img_shape": SIZE, "scale_factor": (1.0, 1.0)}) for _ in range(2)]
    for one in (base, other):
        one.bbox_head.test_cfg["score_thr"] = 0.0
    with torch.no_grad():
        for one, two in zip(*(found.predict(images, copy.deepcopy(samples)) for found in (base, other)), strict=True):
            assert len(one.pred_instances) > 3
            for key in ("bboxes", "scores", "labels"):
                assert torch.equal(one.pred_instances[key], two.pred_instances[key])
    assert count(base, (256, 320)).to_json() == count(other, (256, 320)).to_json()


@pytest.mark.parametrize("name", HEADS)
def test_training_lowers_the_loss(name: str) -> None:
    model = build(base_model(name), {**PAPER, "ddod.topk": 3}).train()
    model.init_weights()
    generator = torch.Generator().manual_seed(5)
    images = 0.1 * torch.randn(2, 3, *SIZE, generator=generator)
    samples = []
    for image, own in zip(images, objects((2, 3), seed=3)):
        for (x1, y1, x2, y2), label in zip(own.bboxes.int().tolist(), own.labels.tolist()):
            image[label, y1:y2, x1:x2] += 2
        samples.append(DetDataSample(metainfo={"img_shape": SIZE, "pad_shape": SIZE, "batch_input_shape": SIZE}))
        samples[-1].gt_instances = own
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    history = []
    for _ in range(25):
        parts = model.loss(images, samples)
        total = sum(sum(levels) for levels in parts.values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        history.append(total.item())
    assert sum(history[-5:]) < 0.75 * sum(history[:5])
    balance = model.bbox_head.level_balance
    assert balance.cls.sum() >= 25 and balance.reg.sum() >= 25


# Knobs


def test_only_training_differs() -> None:
    space = build_space({"ddod": None}, facts(base_model("GFLHead")))
    design = space.canonicalise({"ddod.assign": True})
    assert design == PAPER
    assert space.architecture(design) == {}
    assert {knob.when for knob in space.knobs.values()} == {"training"}


def test_canonical_designs() -> None:
    space = build_space({"ddod": None}, facts(base_model("RetinaHead")))
    assert space.canonicalise({"ddod.assign": False, "ddod.reweight": "none", "ddod.topk": 3, "ddod.span": 3}) == {}
    assert space.canonicalise({"ddod.assign": False, "ddod.topk": 3}) == {
        "ddod.assign": False, "ddod.reweight": "interpolate", "ddod.cumulative": True, "ddod.span": 2.0
    }  # fmt: skip
    linear = space.canonicalise({"ddod.reweight": "linear", "ddod.cumulative": False})
    assert "ddod.cumulative" not in linear and linear["ddod.span"] == 2.0
    assert not {"ddod.cumulative", "ddod.span"} & set(space.canonicalise({"ddod.reweight": "none"}))
    # 21 x 21 alphas, 27 counts of sites, or the base's assignment; 20 spans: linear, and two schemes counted two ways.
    assert space.size() == (21 * 21 * 27 + 1) * (1 + 5 * 20)
    with pytest.raises(UserError, match=r"^ddod\.span: must lie in \[1\.1, 3\], but got 1\.$"):
        space.canonicalise({"ddod.span": 1})


@pytest.mark.parametrize(
    "change", [{"assign": False}, {"alpha_cls": 0.75}, {"alpha_reg": 0.55}, {"topk": 8}, {"reweight": "sum"},
               {"reweight": "none"}, {"cumulative": False}, {"span": 2.1}]
)  # fmt: skip
@pytest.mark.parametrize("name", ["RetinaHead", "FCOSHead"])
def test_mismatch(name: str, change: dict[str, Any]) -> None:
    model = base_model(name)
    space = build_space({"ddod": None}, facts(model))
    values = patching.split(space.canonicalise({f"ddod.{key}": value for key, value in change.items()}))["ddod"]
    built = build(model, PAPER)
    assert "instead of" in str(mismatch(built, values))
    assert mismatch(build(model, {f"ddod.{key}": value for key, value in values.items()}), values) is None
    assert "plain" in str(mismatch(build(model), values))


def test_level_counts_must_fit_the_pyramid() -> None:
    built = build(base_model("GFLHead"), PAPER)
    built.bbox_head.level_balance = LevelBalance(4, "interpolate", 2.0, True)
    assert mismatch(built, patching.split(PAPER)["ddod"]) == "it counts 4 levels, but the pyramid has 5"


def test_softmax_scores_are_refused() -> None:
    model = base_model("RetinaHead", loss_cls={"type": "CrossEntropyLoss", "use_sigmoid": False})
    with pytest.raises(ValueError, match=r"ddod\.assign: must have a base with sigmoid scores"):
        build(model, PAPER)


def test_candidates_are_counted_in_sites() -> None:
    assert [assigner.topk for assigner in head_of("RetinaHead", PAPER).quality_assigners] == [81, 81]
    assert [assigner.topk for assigner in head_of("ATSSHead", PAPER).quality_assigners] == [9, 9]
