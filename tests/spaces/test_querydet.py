"""QueryDet against known answers: PAPERS.md's checks, brute force, dense heads."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
from mmdet.models import data_preprocessors  # noqa: F401  registers all of mmdet's models
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import spaces.modules  # noqa: F401  registers ComposedHead
from spaces import patching
from spaces.base import dense_part, facts
from spaces.errors import UserError
from spaces.querydet import modules, sparse
from spaces.querydet.modules import query_target
from spaces.querydet.neck import LaterMap, QueryFPN
from spaces.querydet.patch import patch
from spaces.querydet.sparse import At, Masked, Sites, Submanifold, as_map, as_rows, find_sites, key_mask, spread, take
from spaces.space import Design, Space, build_space
from trainers.cost import count, count_predict

MMLogger.get_instance("tests", log_level="ERROR")
CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
REAL = {
    "RetinaHead": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "FCOSHead": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "RPNHead": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
}
HEADS = tuple(REAL)
METHODS = ("sparse", "crop", "full")
EVERY = 1e-30  # a threshold that every score exceeds
ODD = (75, 101)  # P2 19x26, P3 10x13, P4 5x7, P5 3x4, P6 2x2, P7 1x1


def model_config(kind: str) -> dict[str, Any]:
    config: dict[str, Any] = Config.fromfile(str(CONFIGS / REAL[kind])).model.to_dict()
    del config["data_preprocessor"]
    return config


def small_config(kind: str, norm: dict[str, Any] | None = None) -> dict[str, Any]:
    """A real config with a head of 8 channels."""
    config = model_config(kind)
    head = config[dense_part(config)]
    head.update(in_channels=8, feat_channels=8)
    if kind != "RPNHead":
        head.update(num_classes=3, norm_cfg=norm)
    return config


def space_of(config: dict[str, Any]) -> Space:
    return build_space({"querydet": {"always": True}}, facts(config))


def design_of(config: dict[str, Any], **knobs: Any) -> Design:
    space = space_of(config)
    return space.canonicalise(
        {name: knobs.get(name.partition(".")[2], knob.default) for name, knob in space.knobs.items()}
    )


def head_of(kind: str, norm: dict[str, Any] | None = None, seed: int = 0, **knobs: Any) -> Any:
    """The dense head of a patched detector, with weights and biases that make every output of the order of one."""
    config = small_config(kind, norm)
    patched = patching.apply(config, design_of(config, **knobs))
    part = dense_part(patched)
    train, test = patched.get("train_cfg") or {}, patched["test_cfg"]
    if part == "rpn_head":
        train, test = train["rpn"], test["rpn"]
    head = MODELS.build(ConfigDict({**patched[part], "train_cfg": train or None, "test_cfg": test}))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in head.named_parameters():
        if "scales" in name:
            continue
        scale = 1.4 / math.sqrt(parameter[0].numel()) if parameter.dim() == 4 else 0.3
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return head.double().eval()


def features(head: Any, size: tuple[int, int] = ODD, images: int = 1, seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    strides = [stride[0] for stride in head.prior_generator.strides]
    sides = [[math.ceil(side / stride) for side in size] for stride in strides]
    return tuple(torch.randn(images, 8, *side, generator=generator, dtype=torch.float64) for side in sides)


def single(head: Any, x: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...]]:
    """In single precision, as mmcv's NMS wants it."""
    return head.float(), tuple(part.float() for part in x)


def samples(images: int, size: tuple[int, int] = ODD, boxes: Tensor | None = None) -> list[DetDataSample]:
    boxes = torch.zeros(0, 4) if boxes is None else boxes
    found = []
    for _ in range(images):
        sample = DetDataSample(metainfo={"img_shape": size, "pad_shape": size, "scale_factor": (1.0, 1.0)})
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.long))
        found.append(sample)
    return found


def balanced(head: Any, x: tuple[Tensor, ...], share: float = 0.2) -> float:
    """A threshold that this share of the start level's sites exceeds."""
    with torch.no_grad():
        scores = head.level(head.start, x[head.start])[1].sigmoid().flatten()
    return float(scores.quantile(1 - share))


@torch.no_grad()
def cascade(head: Any, x: tuple[Tensor, ...], **arguments: Any) -> dict[int, modules.Level]:
    for name, value in arguments.items():
        setattr(head, name, value)
    return {level.index: level for level in head.cascade(x)}


def cells(level: modules.Level) -> set[tuple[int, ...]]:
    assert level.keys is not None
    return {tuple(cell) for cell in level.keys.cells.tolist()}


# Sites


def mask_of(cells: list[tuple[int, ...]], shape: tuple[int, int, int]) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[tuple(torch.tensor(cells).T)] = True
    return mask


def test_an_interior_query_has_4_keys_and_36_sites() -> None:
    keys = key_mask(mask_of([(0, 3, 5)], (1, 10, 15)), (20, 30))
    found, sites = find_sites(keys, spread(keys, 2))
    assert found.cells.tolist() == [[0, 6, 10], [0, 6, 11], [0, 7, 10], [0, 7, 11]]
    assert len(sites) == 36
    assert {tuple(cell) for cell in sites.cells.tolist()} == {
        (0, row, column) for row in range(4, 10) for column in range(8, 14)
    }


@pytest.mark.parametrize("context", range(6))
def test_sites_are_those_within_the_context(context: int) -> None:
    shape = (3, 7, 9)
    generator = torch.Generator().manual_seed(context)
    mask = torch.rand(shape, generator=generator) < 0.04
    mask[1] = False
    keys, sites = find_sites(mask, spread(mask, context))
    assert torch.equal(keys.cells, mask.nonzero())
    expected = [
        cell
        for cell in itertools.product(*map(range, shape))
        if any(
            cell[0] == key[0] and abs(cell[1] - key[1]) <= context and abs(cell[2] - key[2]) <= context
            for key in mask.nonzero().tolist()
        )
    ]
    assert [tuple(cell) for cell in sites.cells.tolist()] == expected
    assert sites.counts == tuple(sum(cell[0] == image for cell in expected) for image in range(3))
    assert [sites.cells[sites.of(image)][:, 0].unique().tolist() for image in range(3)] == [[0], [], [2]]
    assert sites.share == pytest.approx(len(expected) / mask.numel())


@pytest.mark.parametrize("size", [(6, 10), (5, 9), (7, 11)])
def test_keys_stay_on_the_map(size: tuple[int, int]) -> None:
    """A map has at most two rows for one of the next coarser map; one that has more is not asked there."""
    queries = torch.ones(2, 3, 5, dtype=torch.bool)
    expected = torch.zeros(2, *size, dtype=torch.bool)
    expected[:, :6, :10] = True
    assert torch.equal(key_mask(queries, size), expected)


# Convolutions


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_submanifold_convolutions(kernel: int, dilation: int, share: float) -> None:
    """Equal to dense ones on a map that is zero elsewhere, layer by layer."""
    torch.manual_seed(0)
    shape, margin = (2, 11, 6), dilation * (kernel // 2)
    layers = nn.ModuleList(
        nn.Conv2d(channels, 5, kernel, padding=margin, dilation=dilation) for channels in (4, 5, 5)
    ).double()
    x = torch.randn(2, 4, 11, 6, dtype=torch.float64)
    mask = torch.rand(shape) < share
    mask[0, 0, 0] = True
    wanted_mask = mask & (torch.rand(shape) < 0.5)
    wanted_mask[0, 0, 0] = True
    sites, wanted = find_sites(mask, wanted_mask)
    predictors = frozenset({id(layers[-1].weight)})
    modes = {
        "rows": (Submanifold(sites, wanted, predictors), as_map(take(x, sites))),
        "masked": (Masked(mask, wanted, predictors, gathered=False), x * mask[:, None]),
        "masked, gathered": (Masked(mask, wanted, predictors, gathered=True), x * mask[:, None]),
    }
    with torch.no_grad():
        dense = x * mask[:, None]
        for layer in layers:
            dense = layer(dense).relu() * mask[:, None]
        expected = take(dense, wanted)
        assert expected.abs().max() > 0.01
        for mode, found in modes.values():
            with mode:
                for layer in layers:
                    found = layer(found).relu()
            torch.testing.assert_close(as_rows(found), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("images", [1, 2])
def test_convolutions_at_sites_of_a_dense_map(
    kernel: int, dilation: int, memory: torch.memory_format, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the whole map, at its borders too."""
    monkeypatch.setattr(sparse, "TILE", 7)
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 5, kernel, padding=dilation * (kernel // 2), dilation=dilation).double()
    x = torch.randn(images, 4, 11, 6, dtype=torch.float64).to(memory_format=memory)
    mask = torch.rand(images, 11, 6) < 0.4
    mask[:, 0, 0] = mask[:, -1, -1] = True
    (sites,) = find_sites(mask)
    with torch.no_grad():
        with At(sites):
            found = as_rows(layer(x))
        torch.testing.assert_close(found, take(layer(x), sites), rtol=0, atol=1e-13)


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_of("RetinaHead")
    x = features(head)
    whole = cascade(head, x, threshold=EVERY)
    monkeypatch.setattr(sparse, "TILE", 7)
    monkeypatch.setattr(modules, "PATCHES", 3)
    tiled, cropped = cascade(head, x), cascade(head, x, method="crop")
    for level in (0, 1):
        for one, other, third in zip(whole[level].outs, tiled[level].outs, cropped[level].outs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
            torch.testing.assert_close(one, third, rtol=0, atol=1e-12)


def test_convolutions_that_change_the_size_are_refused() -> None:
    sites = Sites(torch.zeros(1, dtype=torch.long), (1, 4, 4), (1,))
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    for mode in (Submanifold(sites, sites, frozenset()), Masked(mask, sites, frozenset(), gathered=True), At(sites)):
        with mode, pytest.raises(NotImplementedError):
            nn.Conv2d(2, 2, 3)(torch.zeros(1, 2, 4, 4))


# The cascade


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", ["P4", "P6"])
def test_with_every_site_queried_it_is_dense(kind: str, method: str, start: str) -> None:
    """PAPERS.md (1): a threshold that all exceed, hence all sites on all levels."""
    head = head_of(kind, start=start)
    x = features(head, images=2)
    with torch.no_grad():
        dense = head(x)
    found = cascade(head, x, threshold=EVERY, method=method, context=0)
    assert sorted(found) == list(range(len(x)))
    for index, level in found.items():
        assert (level.keys is None) == (index >= head.start)
        if level.keys is not None:
            assert len(level.keys) == len(cells(level)) == x[index][:, 0].numel()
        for out, maps in zip(level.outs, dense, strict=True):
            expected = maps[index] if level.keys is None else take(maps[index], level.keys)
            assert expected.abs().max() > 0.1
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["RetinaHead", "FCOSHead"])
def test_context_5_is_exact_and_less_is_not(kind: str) -> None:
    """PAPERS.md (2): five stacked 3x3 convolutions see 5 sites far."""
    head = head_of(kind)
    x = features(head, (160, 224), images=2)
    threshold = balanced(head, x, share=0.03)
    with torch.no_grad():
        dense = head(x)
    for context in range(6):
        level = cascade(head, x, threshold=threshold, method="sparse", context=context)[1]
        assert level.keys is not None
        assert 4 <= len(level.keys) < 0.1 * x[1][:, 0].numel()
        for out, maps in zip(level.outs, dense, strict=True):
            error = (out - take(maps[1], level.keys)).abs().max()
            assert error < 1e-12 if context == 5 else error > 1e-6, (context, error)


def test_an_rpn_sees_as_far_as_its_convolutions() -> None:
    for convs in (1, 3):
        head = head_of("RPNHead", rpn_convs=convs)
        assert head.reach() == convs
        x = features(head, (160, 224))
        threshold = balanced(head, x, share=0.03)
        with torch.no_grad():
            dense = head(x)
        for context in range(4):
            level = cascade(head, x, threshold=threshold, method="sparse", context=context)[1]
            error = max((out - take(maps[1], level.keys)).abs().max() for out, maps in zip(level.outs, dense))
            assert error < 1e-12 if context >= convs else error > 1e-6


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("size", [ODD, (160, 224), (33, 200)])
def test_crops_are_exact(kind: str, size: tuple[int, int]) -> None:
    """Patches of 11x11 around the keys, also over the borders of a map."""
    head = head_of(kind)
    assert head.reach() == (3 if kind == "RPNHead" else 5)
    x = features(head, size, images=3)
    threshold = balanced(head, x)
    crop, full = (cascade(head, x, threshold=threshold, method=method) for method in ("crop", "full"))
    assert set(crop) == set(full)
    assert 1 in crop
    for index in crop:
        for one, other in zip(crop[index].outs, full[index].outs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("context", [0, 2, 5])
def test_keys(kind: str, context: int) -> None:
    """PAPERS.md (6): P3's keys do not depend on the method, shrink with the threshold, and only there."""
    head = head_of(kind)
    x = features(head, images=2)
    thresholds = sorted(balanced(head, x, share) for share in (0.6, 0.4, 0.2, 0.1, 0.02))
    smaller: set[tuple[int, ...]] | None = None
    for threshold in thresholds:
        sparse, crop, full = (
            cascade(head, x, threshold=threshold, method=method, context=context) for method in METHODS
        )
        level = head.start - 1
        assert cells(sparse[level]) == cells(full[level]) == cells(crop[level])
        assert smaller is None or cells(full[level]) < smaller
        smaller = cells(full[level])
        if context == 5 and level:
            assert [level.index for level in sparse.values()] == [level.index for level in full.values()]
            assert all(cells(sparse[finer]) == cells(full[finer]) for finer in range(level) if finer in full)


@pytest.mark.parametrize("start", ["P3", "P4", "P5", "P6", "P7"])
@pytest.mark.parametrize("size", [ODD, (64, 96), (33, 200)])
def test_keys_by_brute_force(start: str, size: tuple[int, int]) -> None:
    """Equation 1 over dense score maps, clipped to maps of any size."""
    head = head_of("RetinaHead", start=start)
    assert head.start == int(start[1]) - 2
    x = features(head, size, images=2)
    threshold = balanced(head, x, share=0.5) if start in ("P3", "P4") else 0.3
    found = cascade(head, x, threshold=threshold, method="full")
    with torch.no_grad():
        scores = [head.query(feature).sigmoid()[:, 0] for feature in x]
    allowed = {(image, *cell) for image in range(2) for cell in itertools.product(*map(range, x[head.start].shape[2:]))}
    for index in range(head.start, 0, -1):
        height, width = x[index - 1].shape[2:]
        queries = [cell for cell in allowed if scores[index][cell] > threshold]
        allowed = {
            (image, 2 * row + i, 2 * column + j)
            for image, row, column in queries
            for i, j in itertools.product((0, 1), (0, 1))
            if 2 * row + i < height and 2 * column + j < width
        }
        assert (index - 1 in found) == bool(allowed)
        if allowed:
            assert cells(found[index - 1]) == allowed
    assert 0 in found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", HEADS)
def test_a_batch_is_its_images(kind: str, method: str) -> None:
    head = head_of(kind)
    head, x = single(head, features(head, images=3))
    x[head.start][1] -= 100  # this image has no queries, or many
    head.threshold, head.method = balanced(head, x), method
    with torch.no_grad():
        together = head.predict(x, samples(3))
        alone = [head.predict(tuple(part[index : index + 1] for part in x), samples(1))[0] for index in range(3)]
    for one, other in zip(together, alone, strict=True):
        same(one, other)
        assert len(one.bboxes)


def same(one: InstanceData, other: InstanceData) -> None:
    """Equal detections but for rounding, boxes being of the order of 100 px."""
    assert len(one.bboxes) == len(other.bboxes)
    if not len(one.bboxes):
        return
    tables = [torch.cat((part.scores[:, None], part.labels[:, None].float(), part.bboxes), 1) for part in (one, other)]
    # Rounding may swap two detections of one score, so each is compared with the nearest of the others.
    scale = tables[0].new_tensor([1000, 1000, 1, 1, 1, 1])
    nearest = torch.cdist(tables[0] * scale, tables[1] * scale).argmin(1)
    assert len(nearest.unique()) == len(nearest)
    found, expected = tables[0], tables[1][nearest]
    torch.testing.assert_close(found[:, :2], expected[:, :2], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[:, 2:], expected[:, 2:], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.4])
def test_detections_are_those_of_masked_maps(kind: str, share: float) -> None:
    """As if the results were put into maps of a large negative logit: sites that nobody queried detect nothing."""
    head = head_of(kind)
    head, x = single(head, features(head, images=2))
    threshold = balanced(head, x, share) if share else 1.0
    found = cascade(head, x, threshold=threshold, method="sparse")
    assert (set(found) == set(range(head.start, len(x)))) == (share == 0)
    with torch.no_grad():
        maps = [list(part) for part in head(x)]
        for index in range(head.start):
            kept = torch.zeros_like(maps[0][index][:, :1], dtype=torch.bool)
            if index in found:
                level = found[index]
                image, row, column = level.keys.cells.unbind(1)
                kept[image, 0, row, column] = True
                for out, values in zip(maps, level.outs, strict=True):
                    out[index].permute(0, 2, 3, 1)[image, row, column] = values
            maps[0][index] = maps[0][index].masked_fill(~kept, -1e4)
        metas = [sample.metainfo for sample in samples(2)]
        expected = head.predict_by_feat(*maps, batch_img_metas=metas)
        results = head.predict(x, samples(2))
    for one, other in zip(results, expected, strict=True):
        assert len(one.bboxes)
        # RPNs have no threshold of scores: masked sites fill up the list.
        same(one, other[other.scores > 0])


@pytest.mark.parametrize("kind", HEADS)
def test_threshold_0_is_the_base(kind: str) -> None:
    """Bit for bit, and no site is looked up."""
    head = head_of(kind, threshold=0.0)
    assert head.threshold == 0
    head, x = single(head, features(head, images=2))
    head.cascade = None
    with torch.no_grad():
        results = head.predict(x, samples(2))
        metas = [sample.metainfo for sample in samples(2)]
        expected = head.predict_by_feat(*head(x), batch_img_metas=metas)
    for one, other in zip(results, expected, strict=True):
        assert len(one.bboxes)
        for key in ("bboxes", "scores", "labels"):
            assert torch.equal(one[key], other[key])


@pytest.mark.parametrize("kind", HEADS)
def test_no_query_leaves_the_coarse_levels(kind: str) -> None:
    head = head_of(kind, start="P4")
    head, x = single(head, features(head))
    head.threshold = 1.0
    with torch.no_grad():
        results = head.predict(x, samples(1))
    changed = tuple(torch.full_like(part, 9.0) if index < head.start else part for index, part in enumerate(x))
    with torch.no_grad():
        same(results[0], head.predict(changed, samples(1))[0])


def test_an_rpn_with_one_anchor_and_one_key() -> None:
    config = small_config("RPNHead")
    config["rpn_head"]["anchor_generator"]["ratios"] = [1.0]
    patched = patching.apply(config, design_of(config))
    head = MODELS.build(ConfigDict({**patched["rpn_head"], "test_cfg": config["test_cfg"]["rpn"]})).eval()
    x = tuple(torch.randn(1, 8, side, side) for side in (5, 3, 2, 2, 2))
    keys = Sites(torch.tensor([12]), (1, 5, 5), (1,))
    with torch.no_grad():
        dense = [modules.Level(index, (2, 2), head.level(index, x[index])[0]) for index in (2, 3, 4)]
        outs = tuple(take(out, keys) for out in head.level(0, x[0])[0])
        head.cascade = lambda x: [modules.Level(0, (5, 5), outs, keys), *dense]
        assert len(head.predict(x, samples(1))[0].bboxes)


@pytest.mark.parametrize("method", ["sparse", "crop"])
def test_batch_norms_are_exact(method: str) -> None:
    """In evaluation a batch norm treats each site by itself."""
    head = head_of("FCOSHead", norm={"type": "BN"})
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    x = features(head, images=2)
    threshold = balanced(head, x)
    one = cascade(head, x, threshold=threshold, method=method, context=5)
    other = cascade(head, x, method="full")
    for index in (0, 1):
        for found, expected in zip(one[index].outs, other[index].outs, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_group_norms_allow_the_full_map_only() -> None:
    config = model_config("FCOSHead")
    assert facts(config).tower_norm == "GN"
    knobs = {knob.name: knob for knob in space_of(config).families[0].full}
    assert knobs["method"].values() == ["full"]
    assert "context" not in knobs
    with pytest.raises(UserError, match=r"querydet\.method: must be full, but got 'sparse'"):
        design_of(config, method="sparse")
    head = head_of("FCOSHead", norm={"type": "GN", "num_groups": 2})
    assert head.method == "full"
    x = features(head)
    with torch.no_grad():
        dense = head(x)
    level = cascade(head, x, threshold=balanced(head, x))[1]
    for out, maps in zip(level.outs, dense, strict=True):
        assert torch.equal(out, take(maps[1], level.keys))


@pytest.mark.parametrize("kind", HEADS)
def test_memory_format_and_precision(kind: str) -> None:
    head = head_of(kind)
    head, x = single(head, features(head, images=2))
    head.threshold = balanced(head, x)
    with torch.no_grad():
        plain = head.predict(x, samples(2))
        turned = copy.deepcopy(head).to(memory_format=torch.channels_last)
        last = turned.predict(tuple(part.to(memory_format=torch.channels_last) for part in x), samples(2))
        for one, other in zip(plain, last, strict=True):
            same(one, other)
        head, x = head.bfloat16(), tuple(part.bfloat16() for part in x)
        for method in METHODS:
            found = cascade(head, x, method=method)
            assert all(out.isfinite().all() for level in found.values() for out in level.outs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", HEADS)
def test_cuda(kind: str) -> None:
    head = head_of(kind)
    head, x = single(head, features(head, images=2))
    head.threshold = balanced(head, x)
    for method in METHODS:
        head.method = method
        with torch.no_grad():
            expected = head.predict(x, samples(2))
            device = copy.deepcopy(head).cuda()
            found = device.predict(tuple(part.cuda() for part in x), samples(2))
        for one, other in zip(found, expected, strict=True):
            same(one.cpu(), other)
        half = cascade(device.half(), tuple(part.cuda().half() for part in x))
        assert all(out.isfinite().all() for level in half.values() for out in level.outs)


# Training


def brute_target(size: tuple[int, int], stride: int, boxes: Tensor, scale: float, radius: str) -> Tensor:
    target = torch.zeros(size)
    small = [box for box in boxes.tolist() if math.sqrt((box[2] - box[0]) * (box[3] - box[1])) < scale]
    for row, column in itertools.product(*map(range, size)):
        y, x = (row + 0.5) * stride, (column + 0.5) * stride
        found = [
            (math.hypot(x - (x1 + x2) / 2, y - (y1 + y2) / 2), math.sqrt((x2 - x1) * (y2 - y1)))
            for x1, y1, x2, y2 in small
        ]
        if found:
            distance, own = min(found)
            target[row, column] = distance < (own if radius == "object" else scale)
    return target


@pytest.mark.parametrize("radius", ["level", "object"])
@pytest.mark.parametrize("stride", [8, 16])
def test_query_targets(stride: int, radius: str) -> None:
    generator = torch.Generator().manual_seed(stride)
    boxes = torch.rand(40, 4, generator=generator) * 150
    boxes[:, 2:] = boxes[:, :2] + 4 + torch.rand(40, 2, generator=generator) * 80
    for count_ in (0, 1, 3, 40):
        size = (13, 21)
        found = query_target(size, stride, boxes[:count_], 4.0 * stride, radius)
        assert torch.equal(found, brute_target(size, stride, boxes[:count_], 4.0 * stride, radius))
    assert 0 < found.mean() < 1


def test_query_target_of_one_object() -> None:
    """A 10 px object centred on the site (2, 3) of P3: sites nearer than 32 px, and none for one of 32 px."""
    box = torch.tensor([[23.0, 15.0, 33.0, 25.0]])
    target = query_target((8, 8), 8, box, 32.0, "level")
    rows, columns = torch.arange(8)[:, None], torch.arange(8)[None]
    assert torch.equal(target, ((rows - 2).square() + (columns - 3).square() < 16).float())
    assert query_target((8, 8), 8, box, 32.0, "object").sum() == 5  # nearer than 10 px: the site and its neighbours
    assert not query_target((8, 8), 8, torch.tensor([[0.0, 0.0, 32.0, 32.0]]), 32.0, "level").any()
    assert query_target((8, 8), 8, torch.tensor([[0.0, 0.0, 32.0, 31.9]]), 32.0, "level").any()


@pytest.mark.parametrize(
    ("kind", "expected"), [("RetinaHead", {1: 32, 2: 64}), ("FCOSHead", {1: 32, 2: 64}), ("RPNHead", {1: 64, 2: 128})]
)
def test_small_scales(kind: str, expected: dict[int, float]) -> None:
    """The smallest anchor of the level, or the least distance that it regresses."""
    head = head_of(kind)
    assert {level: head.small_scale(level) for level in range(1, head.start + 1)} == expected


BOXES = torch.tensor([[10.0, 12.0, 30.0, 28.0], [40.0, 20.0, 90.0, 70.0]])


def run_loss(head: Any, x: tuple[Tensor, ...], boxes: Tensor = BOXES) -> tuple[dict[str, Any], list[list[Tensor]]]:
    """The losses, and the gradients of their sum at the outputs, by kind and level."""
    kept: list[Any] = []
    handle = head.register_forward_hook(lambda module, args, outs: kept.append(outs))
    torch.manual_seed(0)  # RPNs sample
    losses = head.loss(x, samples(len(x[0]), boxes=boxes.double()))
    handle.remove()
    parts = [part for key, value in losses.items() if "query" not in key for part in aslist(value)]
    flat = [output for maps in kept[0] for output in maps]
    gradients = torch.autograd.grad(sum(parts), flat, allow_unused=True, retain_graph=True)
    count_ = len(x)
    return losses, [list(gradients[index : index + count_]) for index in range(0, len(flat), count_)]


def aslist(value: Any) -> list[Tensor]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("beta", ["linear", "code"])
def test_levels_are_weighted(kind: str, beta: str) -> None:
    heads = [head_of(kind, beta=name).train() for name in ("none", beta)]
    x = features(heads[0], images=2)
    (plain, before), (weighted, after) = (run_loss(head, x) for head in heads)
    weights = heads[1].beta
    assert len(weights) == len(x)
    for one, other in zip(before, after, strict=True):
        assert any(gradient is not None and gradient.any() for gradient in one)
        for weight, left, right in zip(weights, one, other, strict=True):
            if left is not None:
                torch.testing.assert_close(weight * left, right, rtol=1e-12, atol=0)
    for key, value in plain.items():
        if isinstance(value, list) and "query" not in key:
            for weight, left, right in zip(weights, value, weighted[key], strict=True):
                torch.testing.assert_close(weight * left, right)
    query = [weights[1:3] if beta == "linear" else [1.0, 1.0]]
    for weight, left, right in zip(*query, plain["loss_query"], weighted["loss_query"], strict=True):
        torch.testing.assert_close(weight * left, right)


def test_betas() -> None:
    """Section 4.1: linearly growing from P2 to P7."""
    linear = head_of("RetinaHead").beta
    assert linear == pytest.approx([1, 1.4, 1.8, 2.2, 2.6, 3])
    assert head_of("RetinaHead", beta_max=2.6).beta[-1] == pytest.approx(2.6)
    assert head_of("RetinaHead", beta="code").beta == [1, 1.4, 2.1, 2.5, 2.9, 3.2]
    assert head_of("RetinaHead", beta="none").beta == [1] * 6
    assert head_of("RPNHead").beta == pytest.approx([1, 1.5, 2, 2.5, 3])


@pytest.mark.parametrize("kind", HEADS)
def test_query_loss(kind: str) -> None:
    """The focal loss of section 3.3, a mean over the sites of each querying level."""
    head = head_of(kind, beta="none", query_weight=7.0, gamma=1.3, alpha=0.3, start="P5").train()
    x = features(head, images=2)
    losses, _ = run_loss(head, x)
    assert len(losses["loss_query"]) == head.start
    for level, found in enumerate(losses["loss_query"], 1):
        score = head.level(level, x[level])[1][:, 0].sigmoid()
        stride = head.prior_generator.strides[level][0]
        target = brute_target(tuple(score.shape[1:]), stride, BOXES, head.small_scale(level), "level").double()
        positive = -0.3 * (1 - score) ** 1.3 * score.log() * target
        negative = -0.7 * score**1.3 * (1 - score).log() * (1 - target)
        torch.testing.assert_close(found.double(), 7 * (positive + negative).mean(), rtol=1e-5, atol=0)
        assert target.any()


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("boxes", [BOXES, BOXES[:0]])
def test_training_leaves_nothing_behind(kind: str, boxes: Tensor) -> None:
    head = head_of(kind).train()
    x = features(head, images=2)
    losses, _ = run_loss(head, x, boxes)
    sum(part for value in losses.values() for part in aslist(value)).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert head.query_pred.weight.grad.any()
    assert head.collected is None
    with pytest.raises(AttributeError):
        head.loss(x, [None, None])
    assert head.collected is None
    again = copy.deepcopy(head).eval()
    with torch.no_grad():
        for one, other in zip(head.eval()(x), again(x), strict=True):
            assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", HEADS)
def test_forward_is_the_base_heads(kind: str) -> None:
    """All levels, densely, without the queries: what is counted and exported."""
    head = head_of(kind, **({} if kind == "RPNHead" else {"p2": False}))
    config = small_config(kind)
    part = dense_part(config)
    if kind == "RPNHead":
        config[part]["num_convs"] = 3
    base = MODELS.build(ConfigDict({**config[part], "train_cfg": None, "test_cfg": None})).double().eval()
    missing = base.load_state_dict(head.state_dict(), strict=False)
    assert not missing.missing_keys
    assert all(key.startswith("query_") for key in missing.unexpected_keys)
    x = features(head)
    with torch.no_grad():
        for one, other in zip(head(x), base(x), strict=True):
            assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", HEADS)
def test_initial_weights(kind: str) -> None:
    config = small_config(kind)
    made = []
    for _ in range(2):
        patched = patching.apply(config, design_of(config))
        head = MODELS.build(ConfigDict({**patched[dense_part(patched)], "train_cfg": None, "test_cfg": None}))
        torch.manual_seed(3)
        head.init_weights()
        made.append(head)
    one, other = (head.state_dict() for head in made)
    assert all(torch.equal(one[key], other[key]) for key in one)
    # Few sites are positive at first.
    assert made[0].query_pred.bias.sigmoid().item() == pytest.approx(0.01)
    for name, parameter in made[0].named_parameters():
        if name.startswith("query_") and parameter.dim() == 4:
            assert 0.005 < parameter.std() < 0.02, name
        elif name.startswith("query_convs"):
            assert not parameter.any()


def test_inference_knobs_touch_no_weight() -> None:
    one = head_of("RetinaHead", threshold=0.3, method="crop")
    other = head_of("RetinaHead", threshold=0.05, context=4, seed=5)
    other.load_state_dict(one.state_dict())
    assert (one.threshold, one.method, other.threshold, other.method, other.context) == (0.3, "crop", 0.05, "sparse", 4)
    config = small_config("RetinaHead")
    first, second = (design_of(config, **knobs) for knobs in ({"threshold": 0.3, "method": "crop"}, {"context": 4}))
    space = space_of(config)
    assert space.architecture(first) == space.architecture(second)
    assert space.on_images(first)


# Costs


@pytest.fixture(scope="module")
def costs() -> dict[str, Any]:
    found = {}
    for name, knobs in {"base": None, "p2": {}, "p3": {"p2": False}}.items():
        config = model_config("RetinaHead")
        patched = patching.apply(config, {} if knobs is None else design_of(config, **knobs))
        model = MODELS.build(ConfigDict(patched))
        found[name] = count(model, (800, 1344)), model
    return found


def test_costs_without_p2(costs: dict[str, Any]) -> None:
    """PAPERS.md (3): the head is 6,460,416 multiply-adds a site; P3's is 43 % of the detector (figure 2)."""
    cost = costs["base"][0]
    assert cost.macs / 1e9 == pytest.approx(250.5, abs=0.05)
    assert cost.macs_levels["P3"] == 16800 * 6_460_416
    assert 100 * cost.macs_levels["P3"] / cost.macs == pytest.approx(43.3, abs=0.05)
    coarse = sum(macs for level, macs in cost.macs_levels.items() if level != "P3")
    assert 100 * coarse / cost.macs == pytest.approx(14.4, abs=0.05)
    assert costs["p3"][0].macs == cost.macs


def test_costs_with_p2(costs: dict[str, Any]) -> None:
    """PAPERS.md (4): P2 adds 300 % to the head; P2's and P3's are 74 % of the detector."""
    cost, base = costs["p2"][0], costs["base"][0]
    assert cost.macs / 1e9 == pytest.approx(728.7, abs=0.05)
    assert cost.macs_levels["P2"] == 67200 * 6_460_416 == 3 * base.macs_parts["head"]
    assert cost.macs_parts["head"] == 4 * base.macs_parts["head"]
    fine = cost.macs_levels["P2"] + cost.macs_levels["P3"]
    assert 100 * fine / cost.macs == pytest.approx(74.5, abs=0.05)
    assert list(cost.macs_levels) == ["P2", "P3", "P4", "P5", "P6", "P7"]


def test_parameters(costs: dict[str, Any]) -> None:
    """PAPERS.md (5)."""
    query = 4 * (9 * 256 * 256 + 256) + 9 * 256 + 1
    assert query == 2_362_625
    assert costs["base"][0].params_parts["head"] == 6_463_220
    assert costs["p2"][0].params_parts["head"] == 6_463_220 + query
    head = costs["p2"][1].bbox_head
    assert sum(parameter.numel() for name, parameter in head.named_parameters() if "query" in name) == query


# Configs and knobs


def test_p2_of_retinanet(costs: dict[str, Any]) -> None:
    model = costs["p2"][1]
    generator = model.bbox_head.prior_generator
    assert [stride[0] for stride in generator.strides] == [4, 8, 16, 32, 64, 128]
    # Four times the stride, the middle of three aspects.
    assert [round(math.sqrt(float((b[3, 2] - b[3, 0]) * (b[3, 3] - b[3, 1])))) for b in generator.base_anchors] == [
        16, 32, 64, 128, 256, 512,
    ]  # fmt: skip
    assert (model.neck.start_level, model.neck.num_outs) == (0, 6)
    assert len(model.neck.lateral_convs) == 4


def test_p2_of_fcos() -> None:
    config = model_config("FCOSHead")
    head = patching.apply(config, design_of(config))["bbox_head"]
    assert head["strides"] == [4, 8, 16, 32, 64, 128]
    assert head["regress_ranges"] == [(-1, 32), (32, 64), (64, 128), (128, 256), (256, 512), (512, 1e8)]


def test_p2_where_the_config_says_little() -> None:
    """mmdet's defaults are RetinaNet's anchors; anchors given by their sizes get one of half the size."""
    config = model_config("RetinaHead")
    design = patching.split(design_of(config))["querydet"]
    bare = copy.deepcopy(config)
    del bare["bbox_head"]["anchor_generator"]
    assert patch(design, bare)["bbox_head"] == patching.apply(config, design_of(config))["bbox_head"]
    config["bbox_head"]["anchor_generator"] = {
        "type": "AnchorGenerator",
        "strides": [[8, 8], [16, 16]],
        "base_sizes": [10, 20],
        "scales": [4],
        "ratios": [1.0],
    }
    generator = patching.apply(config, design_of(config, start="P4"))["bbox_head"]["anchor_generator"]
    assert generator["strides"] == [[4, 4], [8, 8], [16, 16]]
    assert generator["base_sizes"] == [5, 10, 20]


def test_knobs_of_a_base() -> None:
    knobs = {kind: {knob.name: knob for knob in space_of(model_config(kind)).families[0].full} for kind in HEADS}
    assert knobs["RetinaHead"]["p2"].values() == [True, False]
    assert knobs["RetinaHead"]["start"].values() == ["P3", "P4", "P5", "P6", "P7"]
    assert "rpn_convs" not in knobs["RetinaHead"]
    # The RPN of Faster R-CNN has P2 already.
    assert knobs["RPNHead"]["p2"].values() == [False]
    assert knobs["RPNHead"]["start"].values() == ["P3", "P4", "P5", "P6"]
    assert knobs["RPNHead"]["rpn_convs"].values() == [3, 1]
    assert {kind: knobs[kind]["start"].default for kind in HEADS} == dict.fromkeys(HEADS, "P4")


def test_a_single_level_has_no_knobs() -> None:
    config = Config.fromfile(str(CONFIGS / "faster_rcnn" / "faster-rcnn_r50-caffe_c4-1x_coco.py")).model.to_dict()
    assert facts(config).strides == (16,)
    assert space_of(config).families[0].full == ()


def test_start_needs_a_finer_level() -> None:
    config = model_config("RetinaHead")
    design_of(config, start="P3")
    with pytest.raises(UserError, match="start P3 has no finer level to query without p2"):
        design_of(config, start="P3", p2=False)


def test_only_what_matters_is_kept() -> None:
    config = model_config("RetinaHead")
    dense = design_of(config, threshold=0, method="crop", context=5)
    assert dense["querydet.threshold"] == 0
    assert not {"querydet.method", "querydet.context"} & set(dense)
    assert "querydet.context" not in design_of(config, method="crop")
    assert "querydet.beta_max" not in design_of(config, beta="none")


def test_sweep() -> None:
    config = model_config("RetinaHead")
    swept = space_of(config).sweep(design_of(config))
    thresholds = [point["querydet.threshold"] for point in swept]
    assert thresholds[0] == 0.15
    assert sorted(thresholds) == [0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5]
    assert {point.get("querydet.method", "sparse") for point in swept} == {"sparse"}


def test_two_weightings_of_levels_clash() -> None:
    family = space_of(model_config("RetinaHead")).families[0].family
    base = facts(model_config("RetinaHead"))
    values = {"querydet": {"beta": "linear"}, "ddod": {"reweight": "interpolate"}}
    assert "both weight the levels' losses" in str(family.clash(values, base))
    assert family.clash({**values, "querydet": {"beta": "none"}}, base) is None
    assert family.clash({**values, "ddod": {"reweight": "none"}}, base) is None
    assert family.clash({"querydet": {"beta": "linear"}}, base) is None


# Light backbones


def test_mobilenet_trains_a_step() -> None:
    """Table 7: MobileNetV2 with P2."""
    config = small_config("RetinaHead")
    config["backbone"] = {"type": "MobileNetV2", "out_indices": (1, 2, 4, 6), "norm_cfg": {"type": "BN"}}
    config["neck"].update(in_channels=[24, 32, 96, 320], out_channels=8)
    design = design_of(config)
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(patching.apply(config, design)))
    model.init_weights()
    patching.check_built(model, design)
    size = (96, 128)
    given = samples(2, size, BOXES)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    images = torch.randn(2, 3, *size)
    seen = []
    for _ in range(2):
        losses = model(images, given, mode="loss")
        total = sum(part.sum() for value in losses.values() for part in aslist(value))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        seen.append(float(total))
    assert seen[1] < seen[0]
    model.eval()
    model.bbox_head.query_pred.bias.data.fill_(0)
    x = model.extract_feat(images)
    assert [tuple(part.shape[2:]) for part in x[:2]] == [(24, 32), (12, 16)]
    assert F.relu(x[0]).isfinite().all()
    with torch.no_grad():
        assert len(model(images, given, mode="predict")) == 2


# The neck


def detector_of(size: int = 8, **knobs: Any) -> tuple[Any, Any]:
    """A small detector whose neck puts its finest outputs off, and one with mmdet's neck and the same weights."""
    config = small_config("RetinaHead")
    config["backbone"] = {"type": "MobileNetV2", "out_indices": (1, 2, 4, 6), "norm_cfg": {"type": "BN"}}
    config["neck"].update(in_channels=[24, 32, 96, 320], out_channels=size, norm_cfg={"type": "BN"})
    patched = patching.apply(config, design_of(config, **knobs))
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(patched)).eval()
    for parameter in model.neck.parameters():
        parameter.data.normal_(std=0.3)
    for name, buffer in model.neck.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    for parameter in model.bbox_head.parameters():
        parameter.data.normal_(std=1.4 / math.sqrt(parameter[0].numel()) if parameter.dim() == 4 else 0.3)
    patched["neck"] = {key: value for key, value in patched["neck"].items() if key != "later"} | {"type": "FPN"}
    plain = MODELS.build(ConfigDict(patched)).eval()
    plain.load_state_dict(model.state_dict())
    return model, plain


@pytest.mark.parametrize("start", ["P4", "P7"])
@pytest.mark.parametrize("share", [0.05, 0.6])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_outputs_of_the_neck_at_sites_are_those_of_the_whole_map(
    start: str, share: float, memory: torch.memory_format
) -> None:
    model, plain = (part.to(memory_format=memory) for part in detector_of(start=start))
    assert type(model.neck) is QueryFPN and type(plain.neck).__name__ == "FPN"
    images = torch.randn(2, 3, 96, 160).to(memory_format=memory)
    given = samples(2, (96, 160))
    with torch.no_grad():
        x, expected = model.extract_feat(images), plain.extract_feat(images)
        # P5 is the last that a map of the backbone makes; the levels above it are made from it.
        assert [isinstance(part, LaterMap) for part in x] == [
            index < min(model.bbox_head.start, 3) for index in range(6)
        ]
        threshold = balanced(plain.bbox_head, expected, share)
        model.bbox_head.threshold = plain.bbox_head.threshold = threshold
        found = {level.index: level for level in model.bbox_head.cascade(x)}
        for level in plain.bbox_head.cascade(expected):
            other = found.pop(level.index)
            assert (level.keys is None) == (other.keys is None)
            assert level.keys is None or torch.equal(level.keys.flat, other.keys.flat)
            for one, two in zip(level.outs, other.outs, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
        assert not found
        for one, two in zip(model.predict(images, given), plain.predict(images, given), strict=True):
            same(one.pred_instances, two.pred_instances)
            assert len(one.pred_instances)


def test_a_map_put_off_behaves_as_the_tensor() -> None:
    """For whoever has the pyramid for something else than the cascade."""
    model, plain = detector_of()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x, expected = model.extract_feat(images), plain.extract_feat(images)
        for part, tensor in zip(x, expected, strict=True):
            assert part.shape == tensor.shape and part.dtype == tensor.dtype and part.device == tensor.device
            assert len(part) == 1
        assert torch.equal(F.relu(x[0]), F.relu(expected[0]))
        assert torch.equal(x[1].mean((2, 3)), expected[1].mean((2, 3)))
        assert torch.equal(torch.cat([x[0], expected[0]]), torch.cat([expected[0]] * 2))
        for ours, theirs in zip(model.bbox_head(x), plain.bbox_head(expected), strict=True):
            assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
        again = copy.deepcopy(model).extract_feat(images)
        for method in ("crop", "full"):
            threshold = balanced(plain.bbox_head, expected)
            one, two = (
                cascade(each.bbox_head, maps, method=method, threshold=threshold)
                for each, maps in ((model, again), (plain, expected))
            )
            for index in (0, 1):
                assert all(torch.equal(*pair) for pair in zip(one[index].outs, two[index].outs, strict=True))


def test_training_has_mmdets_neck() -> None:
    model, plain = detector_of()
    images = torch.randn(2, 3, 64, 96)
    assert all(isinstance(part, Tensor) for part in model.extract_feat(images))
    losses = [each.train()(images, samples(2, (64, 96), BOXES), mode="loss") for each in (model, plain)]
    for key, value in losses[0].items():
        for one, other in zip(aslist(value), aslist(losses[1][key]), strict=True):
            assert torch.equal(one, other)
    sum(part.sum() for value in losses[0].values() for part in aslist(value)).backward()
    assert all(parameter.grad is not None for parameter in model.neck.parameters())


def test_what_is_put_off_is_not_computed() -> None:
    """Of the neck's convolutions on P2 and P3 only what is asked for is counted, and as the neck's."""
    model, _ = detector_of(threshold=0.5)
    size = (96, 160)
    images = torch.randn(1, 3, *size)
    model.bbox_head.query_pred.weight.data.zero_()
    macs = {}
    for name, bias in (("none", -5.0), ("all", 5.0)):
        model.bbox_head.query_pred.bias.data.fill_(bias)
        macs[name] = count_predict(model, [(images, samples(1, size))])
    rest = {name: round(1e9 * (cost["gmacs"] - cost["head_gmacs"])) for name, cost in macs.items()}
    # By the 3x3 convolutions of 8 channels, and the lateral ones from the backbone's 24 and 32 channels.
    fine, coarse = (96 // 4) * (160 // 4), (96 // 8) * (160 // 8)
    assert rest["all"] - rest["none"] == (fine + coarse) * 9 * 8 * 8 + fine * 24 * 8 + coarse * 32 * 8
    # Counted on no image, the neck is dense.
    whole_ = count(model, size)
    assert whole_.macs_parts["backbone"] + whole_.macs_parts["neck"] == rest["all"]
    assert sum(whole_.macs_levels.values()) == whole_.macs_parts["head"]


@pytest.mark.parametrize(
    ("knobs", "changes", "expected"),
    [
        ({}, {}, "QueryFPN"),
        ({"start": "P3"}, {}, "QueryFPN"),
        ({"method": "full"}, {}, "FPN"),
        ({"method": "crop"}, {}, "FPN"),
        ({"threshold": 0.0}, {}, "FPN"),
        ({}, {"type": "mmdet.FPN"}, "mmdet.QueryFPN"),
        ({}, {"norm_cfg": {"type": "GN", "num_groups": 32}}, "FPN"),
        ({"p2": False}, {"type": "PAFPN"}, "PAFPN"),
    ],
)
def test_necks(knobs: dict[str, Any], changes: dict[str, Any], expected: str) -> None:
    config = model_config("RetinaHead")
    config["neck"].update(changes)
    neck = patching.apply(config, design_of(config, **knobs))["neck"]
    assert neck["type"] == expected
    assert neck.get("later") == ({"P3": 1}.get(knobs.get("start"), 2) if "Query" in expected else None)


def test_a_two_stage_detector_keeps_its_neck() -> None:
    config = model_config("RPNHead")
    assert patching.apply(config, design_of(config))["neck"]["type"] == "FPN"


# Falling back to dense maps


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("images", [1, 3])
def test_dense_where_most_sites_are_active(kind: str, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A level with many sites runs on masked maps, with its sparse form's results, and leaves the pyramid alone."""
    head = head_of(kind)
    x = features(head, images=images)
    before = [part.clone() for part in x]
    used: list[tuple[str, bool]] = []
    usual = modules.DENSE_SHARE[torch.float32]
    for name in ("Masked", "Submanifold"):
        mode = getattr(modules, name)
        monkeypatch.setattr(
            modules,
            name,
            lambda *args, mode=mode, name=name, **kwargs: (
                used.append((name, kwargs.get("gathered", True))) or mode(*args, **kwargs)
            ),
        )
    for share in (0.02, 0.3, 0.9):
        threshold = balanced(head, x, share)
        outs = {}
        for limit in (0.0, usual, 1.0):
            monkeypatch.setattr(modules, "DENSE_SHARE", {torch.float32: limit})
            outs[limit] = cascade(head, x, threshold=threshold, method="sparse")
        rows = outs.pop(1.0)
        for found in outs.values():
            assert set(found) == set(rows)
            for index, level in rows.items():
                assert level.keys is None or cells(found[index]) == cells(level)
                for one, other in zip(level.outs, found[index].outs, strict=True):
                    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert {("Masked", True), ("Masked", False), ("Submanifold", True)} == set(used)
    assert all(torch.equal(*pair) for pair in zip(x, before, strict=True))


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.8), (torch.bfloat16, 0.38)])
@pytest.mark.parametrize("within", [False, True])
def test_when_it_falls_back(dtype: torch.dtype, share: float, within: bool) -> None:
    """At the stated share of active sites, counted with their context; within autocast at that of its type."""
    head = head_of("RetinaHead").float()
    x = [part.float() for part in features(head, (160, 224))]
    if not within:
        head, x = head.to(dtype), [part.to(dtype) for part in x]
    height, width = x[0].shape[2:]
    for rows, dense in ((int(share * height), False), (int(share * height) + 1, True)):
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        mask[:, :rows] = True
        keys, sites = find_sites(mask & (torch.arange(width) == 0), mask)
        assert (sites.share > modules.DENSE_SHARE[dtype]) == dense
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=within and dtype != torch.float32)
        with torch.no_grad(), autocast, _Widths() as widths:
            head._sparse(0, x[0], mask, keys, sites)
        assert (widths.found == {width}) == dense


class _Widths(torch.overrides.TorchFunctionMode):
    """Notes the widths of the maps that convolutions get."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv2d:
            self.found.add(args[0].shape[3])
        return func(*args, **(kwargs or {}))


# Decoding


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_priors_of_chosen_sites(kind: str, dtype: torch.dtype) -> None:
    """Those of the grid, bit for bit, in the order of the keys; never in a type that does not know every pixel."""
    head = head_of(kind)
    x = features(head, images=2)
    size = tuple(x[0].shape[2:])
    mask = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)) < 0.3
    (keys,) = find_sites(mask)
    outs = (torch.zeros(len(keys), 1, dtype=dtype),)
    grid = head._priors(modules.Level(0, size, (torch.zeros(2, 1, *size, dtype=dtype),)))
    found = head._priors(modules.Level(0, size, outs, keys)).unflatten(0, (len(keys), -1))
    expected = grid.unflatten(0, (*size, -1))[keys.cells[:, 1], keys.cells[:, 2]]
    wanted = torch.promote_types(dtype, torch.float32)
    assert found.dtype == grid.dtype == wanted and torch.equal(found, expected)
    exact = head.prior_generator.single_level_grid_priors(size, level_idx=0, dtype=wanted, device="cpu")
    assert torch.equal(grid, exact)


@pytest.mark.parametrize("share", [0.01, 0.06, 0.5])
def test_the_neck_computes_each_cell_once(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbouring sites read the same cells; where that is more than the map has, all of it is computed."""
    model, _ = detector_of()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        later = model.extract_feat(torch.randn(2, 3, 96, 160, generator=generator))[0]
        images, _, height, width = later.shape
        (sites,) = find_sites(torch.rand(images, height, width, generator=generator) < share)
        asked: list[Tensor] = []
        read = later.merged.read
        monkeypatch.setattr(later.merged, "read", lambda cells: asked.append(cells) or read(cells))
        found = later.at(sites)
        near = sparse.neighbours(sites, (3, 3), (1, 1))
        inside = near[near < images * height * width].unique()
        if 9 * len(sites) < images * height * width:
            assert len(asked) == 1 and torch.equal(asked[0], inside)
        else:
            assert not asked
        torch.testing.assert_close(found, take(later.whole(), sites), rtol=1e-5, atol=1e-5)

        # As on a GPU, with repetitions.
        end, rows = images * height * width, []
        for way in (sparse.read_once, sparse.read_each):
            found, table = way(later.merged, near, end)
            rows.append(F.pad(as_rows(found), (0, 0, 0, 1))[table])
        torch.testing.assert_close(*rows, rtol=1e-5, atol=1e-5)
        assert not rows[0][near == end].any()


@pytest.mark.parametrize("size", [(96, 160), (75, 101), (33, 200)])
@pytest.mark.parametrize("upsample", [{"mode": "nearest"}, {"mode": "bilinear"}])
@pytest.mark.parametrize("images", [1, 3])
def test_merged_maps_at_places(size: tuple[int, int], upsample: dict[str, str], images: int) -> None:
    """Of maps of any size, in any order, some of them twice; after all of it was asked for, too."""
    model, plain = detector_of()
    model.neck.upsample_cfg = plain.neck.upsample_cfg = upsample
    merged: list[Tensor] = []
    for convolution in plain.neck.fpn_convs[:2]:
        convolution.register_forward_pre_hook(lambda module, args: merged.append(args[0]))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(images, 3, *size, generator=generator)
    with torch.no_grad():
        maps = model.extract_feat(inputs)[:2]
        plain.extract_feat(inputs)
        for later, expected in zip(maps, merged, strict=True):
            places = torch.randint(0, expected[:, 0].numel(), (40,), generator=generator)
            rows = expected.permute(0, 2, 3, 1).flatten(0, 2)
            for _ in range(2):
                torch.testing.assert_close(later.merged.read(places), rows[places], rtol=1e-5, atol=1e-5)
                # The same operations as mmdet's.
                assert torch.equal(later.merged.whole(), expected)
