"""Detectors that predict in a shorter type and decode in float32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from spaces import patching
from spaces.autocast import autocast, keep_single
from trainers.config import load_base, plain
from trainers.detector import build_model
from trainers.memory import channels_last
from trainers.speed import placed, prepare

# oneDNN 3.12 writes past the end where it trains wide maps of 8 channels (a 1x1 convolution with stride 2).
SQUARE = (96, 96)
SHAPE = (96, 1344)  # so wide that bfloat16 knows every eighth pixel at its end only


def config(name: str = "gfl_nano") -> dict[str, Any]:
    return dict(plain(load_base(f"headway::{name}")["model"]))


def build(dtype: str = "float32", name: str = "gfl_nano") -> Any:
    content = {"model": patching.compute_in(config(name), dtype)}
    content["custom_imports"] = {"imports": patching.imports({}, dtype), "allow_failed_imports": False}
    model = build_model(Config(content), seed=0)
    with torch.no_grad():
        for parameter in model.bbox_head.parameters():
            # Far from the start, where all scores are 0.01: with boxes, and with a spread of sizes.
            if parameter.ndim == 4:
                parameter.mul_(3)
        model.bbox_head.gfl_cls.bias.zero_()
    return model.eval()


def given(shape: tuple[int, int] = SHAPE) -> tuple[Tensor, list[DetDataSample]]:
    meta = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), shape)
    samples = [DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0)})]
    images = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(1))
    return placed(images, "cpu"), samples


def test_float32_is_the_base_itself() -> None:
    assert patching.compute_in(config(), "float32") == config()
    assert patching.imports({}, "float32") == []
    model = build()
    kinds = [type(module) for module in model.modules()]
    assert autocast(model, "float32") is model
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.no_grad()
def test_the_network_computes_in_it_and_boxes_are_decoded_in_float32(dtype: str) -> None:
    plain_, short = build(), build(dtype)
    images, samples = given()
    with torch.autocast("cpu", dtype=getattr(torch, dtype)):
        wanted = plain_.bbox_head(plain_.extract_feat(images))
    # Scores as they come; GFL's distances went through a learned factor, which is float32.
    assert {out.dtype for out in wanted[0]} == {getattr(torch, dtype)}
    wanted = [[out.float() for out in maps] for maps in wanted]
    found = short(images, samples, mode="tensor")
    assert all(torch.equal(*pair) for maps in zip(found, wanted, strict=True) for pair in zip(*maps, strict=True))

    boxes = plain_.bbox_head.predict_by_feat(*wanted, batch_img_metas=[samples[0].metainfo], rescale=False)[0]
    predicted = short(images, samples, mode="predict")[0].pred_instances
    assert len(boxes) > 20
    assert torch.equal(predicted.bboxes, boxes.bboxes)
    assert torch.equal(predicted.scores, boxes.scores)
    # At the far end of the image they lie between the pixels that the short type knows.
    far = predicted.bboxes[predicted.bboxes[:, 0] > 1024, 0]
    assert (far != far.to(getattr(torch, dtype)).float()).any()


@torch.no_grad()
def test_it_is_near_float32_and_not_it() -> None:
    images, samples = given()
    ours, theirs = (build(dtype)(images, samples, mode="tensor") for dtype in ("bfloat16", "float32"))
    for one, other in zip(ours[0], theirs[0], strict=True):
        assert not torch.equal(one, other)
        # 8 bits of mantissa, over some ten layers.
        assert (one - other).norm() < 0.05 * other.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inplace", [False, True])
def test_its_relu_is_the_relu_for_every_number(dtype: torch.dtype, inplace: bool) -> None:
    model = nn.Sequential(nn.ReLU(inplace))
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    every = every[~every.isnan()]
    given = every.clone()
    found = autocast(model, "bfloat16")[0](given)
    assert torch.equal(found, torch.relu(every))
    assert torch.equal(given, found if inplace else every)
    x = every[:9].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model[0](x * 1).sum(), x)
    assert torch.equal(gradient, (every[:9] > 0).to(dtype))


@torch.no_grad()
def test_mmcvs_operators_are_handed_plain_maps() -> None:
    """A trial's detector lies in memory with channels last, which their CPU forms misread."""
    extractor = {**config("faster_rcnn_tiny")["roi_head"]["bbox_roi_extractor"]}
    pool = channels_last(keep_single(nn.Sequential(MODELS.build(extractor))))[0]
    maps = [torch.randn(1, pool.out_channels, side, side) for side in (64, 32, 16, 8)]
    rois = torch.tensor([[0, 3.0, 5.0, 40.0, 50.0], [0, 10.0, 10.0, 200.0, 180.0]])
    last = [level.contiguous(memory_format=torch.channels_last) for level in maps]
    torch.testing.assert_close(pool(last, rois), pool(maps, rois))
    layer = channels_last(autocast(nn.Sequential(ModulatedDeformConv2dPack(8, 8, 3, padding=1)), "bfloat16"))[0]
    x = torch.randn(2, 8, 9, 11)
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), layer(x))


@pytest.mark.parametrize("within", [False, True])
def test_parts_that_need_it_are_kept_in_float32(within: bool) -> None:
    """Outside of autocast all is the base's, bit for bit; within it the losses come from the outputs as they are."""
    plain_, kept = build().train(), keep_single(keep_single(build().train()))
    assert [type(module).__name__ for module in kept.modules()] == [type(part).__name__ for part in plain_.modules()]
    images, samples = given(SQUARE)
    samples[0].gt_instances = _objects()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=within):
        found = kept(images, copy.deepcopy(samples), mode="loss")
        outputs = plain_.bbox_head(plain_.extract_feat(images))
    single = [[out.float() for out in maps] for maps in outputs]
    wanted = plain_.bbox_head.loss_by_feat(*single, [samples[0].gt_instances], [samples[0].metainfo])
    for name, value in wanted.items():
        assert all(torch.equal(*pair) for pair in zip(value, found[name], strict=True))


def test_training_and_weights_are_the_bases() -> None:
    plain_, short = build().train(), build("bfloat16").train()
    state = plain_.state_dict()
    assert state.keys() == short.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in short.state_dict().items())
    images, samples = given(SQUARE)
    samples[0].gt_instances = _objects()
    losses = [model(images, copy.deepcopy(samples), mode="loss") for model in (plain_, short)]
    for name, value in losses[0].items():
        assert all(torch.equal(*pair) for pair in zip(value, losses[1][name], strict=True))


def _objects() -> Any:
    return InstanceData(bboxes=torch.tensor([[10.0, 10.0, 60.0, 70.0]]), labels=torch.tensor([0]))


@pytest.mark.parametrize("fused", [False, True])
def test_it_predicts_with_the_weights_of_now(fused: bool) -> None:
    """A fused optimizer changes weights without changing their versions."""
    model = build("bfloat16")
    images, samples = given(SQUARE)

    def predicted(other: Any) -> Tensor:
        with torch.no_grad():
            found: Tensor = other(images, samples, mode="tensor")[0][0]
        return found

    before = predicted(model)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.01, fused=fused)
    samples[0].gt_instances = _objects()
    sum(sum(parts) for parts in model(images, samples, mode="loss").values()).backward()
    optimizer.step()
    after = predicted(model.eval())
    assert not torch.equal(before, after)
    fresh = build("bfloat16")
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(after, predicted(fresh))
    # Loaded in the middle of an evaluation, and exchanged as averaged weights are.
    fresh.load_state_dict(build().state_dict())
    assert torch.equal(before, predicted(fresh))
    for mine, other in zip(
        (*fresh.parameters(), *fresh.buffers()), (*model.parameters(), *model.buffers()), strict=True
    ):
        mine.data, other.data = other.data, mine.data
    assert torch.equal(after, predicted(fresh))


@torch.no_grad()
def test_a_copy_predicts_in_it_too() -> None:
    images, samples = given()
    model = build("bfloat16")
    copied = prepare(model, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = prepare(build(), "cpu").bbox_head(prepare(build(), "cpu").extract_feat(images))
    assert torch.equal(copied(images, samples, mode="tensor")[0][0], wanted[0][0].float())
    # Names by which mmengine finds what to initialise, and reports tell what was built.
    assert [type(module).__name__ for module in model.modules()] == [type(part).__name__ for part in build().modules()]
