"""What a design computes with the trained weights of its base: the same, wherever that can be."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from spaces import patching
from spaces.modules import dense_head
from trainers.detector import build_model
from trainers.profile import patched_base
from trainers.weights import copy_matching

IMAGES = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(5))
ALL = {"shallow.levels": [0, 1, 2, 3]}


def build(base: str, knobs: Mapping[str, Any]) -> nn.Module:
    """A design's detector with random weights of its own, as nothing was copied yet."""
    model: nn.Module = build_model(patched_base(f"headway::{base}", knobs), seed=len(knobs)).eval()
    return model


@cache
def trained(base: str) -> dict[str, torch.Tensor]:
    """Weights as a training might leave them: no layer, bias, norm or running figure is at its initial value."""
    draw = torch.Generator().manual_seed(7)
    found = {}
    for name, tensor in build(base, {}).state_dict().items():
        if tensor.dtype is torch.int64:
            found[name] = tensor + 40
        elif tensor.dim() > 1:
            found[name] = torch.randn(tensor.shape, generator=draw) * (1.5 / tensor[0].numel()) ** 0.5
        else:
            # Around 1 what scales or is a variance, around 0 what shifts.
            around = 0.0 if name.endswith(("bias", "running_mean")) else 1.0
            found[name] = around + 0.2 * torch.rand(tensor.shape, generator=draw)
    return found


def started(base: str, knobs: Mapping[str, Any]) -> tuple[nn.Module, float]:
    """A design with the base's trained weights, and the share of its parameters that they are."""
    model = build(base, knobs)
    share = copy_matching(patching.translated(knobs, trained(base), model, trained=True), model)
    return model, share


@torch.no_grad()
def outputs(model: nn.Module) -> list[torch.Tensor]:
    """What the dense head gives, level by level, the finest first; all kinds of predictions in turn."""
    return [level for maps in dense_head(model)(model.extract_feat(IMAGES)) for level in maps]


@cache
def expected(base: str) -> list[torch.Tensor]:
    model, share = started(base, {})
    assert share == 1.0
    return outputs(model)


def distance(found: list[torch.Tensor], base: str) -> float:
    """Root mean square of the difference to the base's outputs, as a share of theirs."""
    wanted = torch.cat([level.flatten() for level in expected(base)])
    return float((torch.cat([level.flatten() for level in found]) - wanted).norm() / wanted.norm())


def dcn(version: int, *placement: str) -> dict[str, Any]:
    return {"dcn.placement": list(placement), "dcn.version": version}


TOWERS = {
    "gfl_tiny": ("cls.0", "cls.1", "reg.0"),  # with a norm
    "fcos_tiny": ("cls.0", "reg.0", "reg.1"),
    "retinanet_tiny": ("cls.0", "cls.1", "reg.1"),  # without
    "faster_rcnn_tiny": ("rpn.0",),  # with a bias and without a ConvModule
}
NORMED = ("gfl_tiny", "fcos_tiny")


@pytest.mark.parametrize("base", TOWERS)
@pytest.mark.parametrize("version", [1, 2])
def test_a_deformable_tower_starts_as_the_plain_one(base: str, version: int) -> None:
    """To rounding, since the operator sums in another order than the plain convolution."""
    if version == 1 and base not in NORMED:
        pytest.skip("version 1 has no bias, and such a design is illegal")
    model, share = started(base, dcn(version, *TOWERS[base]))
    assert distance(outputs(model), base) < 1e-5
    # All but the offsets, which start at zero.
    offsets = sum(p.numel() for name, p in model.named_parameters() if "conv_offset" in name)
    assert share == pytest.approx(1 - offsets / sum(p.numel() for p in model.parameters()))


def test_both_versions_start_as_the_same_numbers() -> None:
    """Half of a doubled weight is exact, so they round alike."""
    one, two = (outputs(started("gfl_tiny", dcn(version, "cls.0", "reg.1"))[0]) for version in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_deformable_weights_of_a_design_are_not_doubled_again() -> None:
    knobs = dcn(2, "cls.0")
    model, _ = started("gfl_tiny", knobs)
    own = model.state_dict()
    again = patching.translated(knobs, own, model, trained=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in own.items())


def test_untrained_weights_are_not_doubled() -> None:
    """What is timed has the base's own initial weights, and designs are compared with studies from scratch."""
    model = build("gfl_tiny", dcn(2, "cls.0"))
    given = patching.translated(dcn(2, "cls.0"), trained("gfl_tiny"), model)
    assert all(torch.equal(given[name], tensor) for name, tensor in trained("gfl_tiny").items())


@pytest.mark.parametrize("base", ["gfl_tiny", "fcos_tiny", "retinanet_tiny", "faster_rcnn_tiny"])
def test_a_slim_head_inherits_the_tower(base: str) -> None:
    knobs = {"slimhead.levels": [0, 1], "slimhead.ratio": 0.5, "slimhead.mode": "nearest"}
    model, share = started(base, knobs)
    assert share == 1.0
    found, wanted = outputs(model), expected(base)
    levels = len(found) // 2 if base != "fcos_tiny" else len(found) // 3
    for index, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(mine, theirs) == (index % levels > 1)
    # The nearer to 1, the nearer to the base; at 1 it is the base.
    model = build(base, {**knobs, "slimhead.ratio": 1.0})
    copy_matching(patching.translated(knobs, trained(base), model, trained=True), model)
    assert distance(outputs(model), base) == 0 < distance(found, base)


@pytest.mark.parametrize("base", ["gfl_tiny", "fcos_tiny", "retinanet_tiny"])
def test_ddod_changes_the_training_only(base: str) -> None:
    knobs = {"ddod.assign": True, "ddod.alpha_cls": 0.8, "ddod.alpha_reg": 0.5, "ddod.topk": 9}
    knobs |= {"ddod.reweight": "interpolate", "ddod.cumulative": True, "ddod.span": 2.0}
    model, share = started(base, knobs)
    assert share == 1.0
    assert distance(outputs(model), base) == 0


def query(**more: Any) -> dict[str, Any]:
    values = {"start": "P4", "beta": "none", "query_weight": 10.0, "gamma": 1.2, "alpha": 0.25, "radius": "level"}
    values |= {"threshold": 0.15, "method": "full", **more}
    return {f"querydet.{name}": value for name, value in values.items()}


@pytest.mark.parametrize("base", ["retinanet_tiny", "fcos_tiny"])
def test_a_finer_level_leaves_the_others_as_they_are(base: str) -> None:
    model, share = started(base, query(p2=True))
    found, wanted = outputs(model), expected(base)
    kinds = 3 if base == "fcos_tiny" else 2
    levels = len(found) // kinds
    assert levels == len(wanted) // kinds + 1
    for kind in range(kinds):
        for level in range(1, levels):
            assert torch.equal(found[kind * levels + level], wanted[kind * (levels - 1) + level - 1])
    # What is new: the finest level's lateral convolution, the query head, and of FCOS a scale.
    new = sum(p.numel() for name, p in model.named_parameters() if ".query_" in name or "lateral_convs.0" in name)
    assert share == pytest.approx(1 - new / sum(p.numel() for p in model.parameters()))
    assert torch.equal(model.neck.fpn_convs[0].conv.weight, trained(base)["neck.fpn_convs.0.conv.weight"])
    # Weights of such a design are of its own levels already.
    own = model.state_dict()
    again = patching.translated(query(p2=True), own, model, trained=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize("convolutions", [1, 3])
def test_more_convolutions_of_an_rpn_pass_on_what_the_first_gives(convolutions: int) -> None:
    knobs = query(p2=False, rpn_convs=convolutions)
    model, _ = started("faster_rcnn_tiny", knobs)
    # A ReLU of the stack, then the head's own: exact but for the order in which a convolution sums zeros.
    assert distance(outputs(model), "faster_rcnn_tiny") < 1e-6


PART = {"keyparts.parts": 4, "keyparts.grid": 2, "keyparts.order": "pool_first", "keyparts.blocks": 1}
PART |= {"keyparts.num_fcs": 1, "keyparts.losses": "both", "keyparts.loss_weight": 0.03, "keyparts.confidence": "tmr"}


@pytest.mark.parametrize("base", ["faster_rcnn_tiny", "faster_rcnn_c4_tiny", "cascade_rcnn_tiny", "rfcn_tiny"])
def test_a_key_part_head_inherits_the_proposals(base: str) -> None:
    model, _ = started(base, PART)
    assert distance(outputs(model), base) == 0
    own = model.state_dict()
    rest = [name for name in own if not name.startswith("roi_head.")]
    assert rest and all(torch.equal(own[name], trained(base)[name]) for name in rest)


LEARN = {"pod.mode": "learn", "pod.stages": [3, 4], "pod.towers": []}


@pytest.mark.parametrize("base", ["gfl_tiny", "faster_rcnn_tiny"])
def test_a_network_that_learns_dilations_starts_as_the_base(base: str) -> None:
    model, share = started(base, LEARN)
    assert distance(outputs(model), base) < 1e-5
    scales = sum(p.numel() for name, p in model.named_parameters() if ".scale." in name and "backbone" in name)
    assert scales and share == pytest.approx(1 - scales / sum(p.numel() for p in model.parameters()))


def test_a_decomposed_network_takes_all_of_the_base_and_is_it_at_a_dilation_of_1() -> None:
    path = "backbone.layer3.0.conv1"
    options = {"pod.mode": "fixed", "pod.tolerance": 0.05, "pod.round_channels": 1, "pod.zero_taps": "centre"}
    model, share = started("gfl_tiny", {**options, "pod.scales": [["backbone.layer2.0.conv2", 1.0, 1.0]]})
    assert share == 1.0 and distance(outputs(model), "gfl_tiny") == 0
    model, share = started("gfl_tiny", {**options, "pod.scales": [[path.replace("conv1", "conv2"), 1.4, 1.0]]})
    assert share == 1.0 and distance(outputs(model), "gfl_tiny") > 0


@pytest.mark.parametrize("base", ["gfl_tiny", "fcos_tiny", "retinanet_tiny"])
@pytest.mark.parametrize(
    "knobs",
    [
        {"shallow.levels": [0], "shallow.layers": "all", "shallow.channels": 0.5},
        {"shallow.levels": [0, 1], "shallow.layers": "all", "shallow.channels": 0.75},
        {**ALL, "shallow.layers": "all", "shallow.channels": 0.5},
    ],
)
def test_a_narrow_tower_is_the_first_channels_of_the_wide_one(base: str, knobs: dict[str, Any]) -> None:
    """Its outputs are nearer to the base's than those of a tower that starts from random weights."""
    model, share = started(base, knobs)
    assert share == 1.0
    plain = build(base, knobs)
    assert copy_matching(trained(base), plain) < 1.0
    assert distance(outputs(model), base) < distance(outputs(plain), base)


def test_the_first_channels_of_a_narrow_tower_compute_what_they_did() -> None:
    """Through the group norm as well, whose groups keep their channels."""
    knobs = {"shallow.levels": [0], "shallow.layers": "all", "shallow.channels": 0.5}
    narrow, _ = started("gfl_tiny", knobs)
    wide, _ = started("gfl_tiny", {})
    with torch.no_grad():
        x = wide.extract_feat(IMAGES)[0]
        first = wide.bbox_head.cls_convs[0](x), narrow.bbox_head.level_towers["cls_convs"]["level0"][0](x)
    torch.testing.assert_close(first[0][:, :16], first[1])


def test_a_short_tower_keeps_its_layers_and_its_weights_are_its_own() -> None:
    knobs = {"shallow.levels": [0, 1], "shallow.layers": 1}
    model, share = started("gfl_tiny", knobs)
    assert share == 1.0
    own = model.state_dict()
    for tower in ("cls_convs", "reg_convs"):
        for level in (0, 1):
            kept = own[f"bbox_head.level_towers.{tower}.level{level}.0.conv.weight"]
            assert torch.equal(kept, trained("gfl_tiny")[f"bbox_head.{tower}.0.conv.weight"])
    # Weights of such a design stay what they are.
    moved = {name: tensor + 1 if tensor.dim() else tensor for name, tensor in own.items()}
    again = patching.translated(knobs, moved, model, trained=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in moved.items())


@pytest.mark.parametrize("version", [1, 2])
def test_narrow_and_deformable_at_once(version: int) -> None:
    narrow = {"shallow.levels": [0], "shallow.layers": "all", "shallow.channels": 0.5}
    alone, _ = started("gfl_tiny", narrow)
    both, _ = started("gfl_tiny", {**narrow, **dcn(version, "cls.0", "reg.1")})
    for one, other in zip(outputs(alone), outputs(both), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
