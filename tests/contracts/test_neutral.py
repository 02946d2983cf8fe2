"""A neutral setting is the base, bit for bit."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import nn

from spaces import patching
from spaces.base import ROTATED, facts
from spaces.modules import dense_head
from spaces.slimhead.knobs import FAMILY

HEADS = tuple(head for head in FAMILY.heads if head not in ROTATED)
MODES = ("nearest", "bilinear", "maxpool")


def forced(base: dict[str, Any], levels: list[int], ratio: float, mode: str) -> nn.Module:
    """Builds with the mixin in place, which a canonical design at ratio 1 would never have."""
    importlib.import_module("spaces.modules")
    importlib.import_module("spaces.slimhead.modules")
    model = patching.apply(base, {})
    patching.add_mixin(model, {"type": "SlimHead", "levels": levels, "ratio": ratio, "mode": mode})
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(model))


def same_state(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def flat(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [tensor for item in value for tensor in flat(item)]


def same_pass(one: nn.Module, other: nn.Module, tiny: Any) -> bool:
    images, _ = tiny.batch()
    outputs = []
    for model in (one, other):
        model.eval()
        with torch.no_grad():
            tensors = flat(dense_head(model)(model.extract_feat(images)))
        model.train()
        model.zero_grad()
        torch.manual_seed(3)  # RPNs draw samples
        loss = tiny.total_loss(model)
        loss.backward()
        outputs.append([*tensors, loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    return len(outputs[0]) == len(outputs[1]) and all(torch.equal(*pair) for pair in zip(*outputs, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", HEADS)
def test_ratio_one_is_the_base(head: str, mode: str, tiny: Any) -> None:
    base = tiny.base_config(head)
    plain, slim = tiny.build(base), forced(base, [0, 1, 2, 3, 4], 1.0, mode)
    assert same_state(plain, slim)
    for model in (plain, slim):
        torch.manual_seed(7)
        model.init_weights()
    assert same_state(plain, slim)
    assert same_pass(plain, slim, tiny)


@pytest.mark.parametrize("head", HEADS)
def test_no_level_is_the_base(head: str, tiny: Any) -> None:
    base = tiny.base_config(head)
    assert same_pass(tiny.build(base), forced(base, [], 0.5, "nearest"), tiny)


@pytest.mark.parametrize("head", HEADS)
def test_slimming_keeps_weights_and_other_levels(head: str, tiny: Any) -> None:
    """The state dict is the base's, and a level that is not selected is computed as before."""
    base = tiny.base_config(head)
    plain, slim = tiny.build(base).eval(), forced(base, [0, 2], 0.5, "nearest").eval()
    assert same_state(plain, slim)
    with torch.no_grad():
        features = plain.extract_feat(tiny.batch()[0])
        pairs = [
            list(zip(*maps, strict=True))
            for maps in zip(dense_head(plain)(features), dense_head(slim)(features), strict=True)
        ]
    for maps in pairs:
        for level, (one, other) in enumerate(maps):
            assert one.shape == other.shape
            assert torch.equal(one, other) == (level not in (0, 2)), f"level {level}"


@pytest.mark.parametrize("head", HEADS)
def test_shapes_do_not_depend_on_the_ratio(head: str, tiny: Any) -> None:
    """PAPERS.md, SlimHead's check 6."""
    base = tiny.base_config(head)
    plain, slim = tiny.build(base).eval(), forced(base, [0, 1, 2, 3, 4], 0.5, "nearest").eval()
    slimmer = dense_head(slim).slimmer
    with torch.no_grad():
        for size in ((72, 104), (75, 101), (33, 200)) if head == "GFLHead" else ((75, 101),):
            features = plain.extract_feat(torch.zeros(1, 3, *size))
            expected = [tensor.shape for tensor in flat(dense_head(plain)(features))]
            for slimmer.ratio in (0.1, 0.35, 0.5, 0.7, 0.95):
                for slimmer.mode in MODES:
                    assert [tensor.shape for tensor in flat(dense_head(slim)(features))] == expected


@pytest.mark.parametrize("head", HEADS)
def test_everything_on_trains_a_step(head: str, tiny: Any) -> None:
    base = tiny.base_config(head)
    known = facts(base)
    design = {
        "dcn.placement": [f"{branch}.{layer}" for branch in known.branches for layer in range(known.tower_convs)],
        "dcn.version": 2,
        "slimhead.levels": [0, 1, 2, 3, 4],
        "slimhead.ratio": 0.4,
        "slimhead.mode": "bilinear",
    }
    model = tiny.build(base, design)
    patching.check_built(model, design)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {name: parameter.clone() for name, parameter in dense_head(model).named_parameters()}
    torch.manual_seed(3)  # RPNs draw samples
    loss = tiny.total_loss(model)
    loss.backward()
    optimiser.step()
    after = dict(dense_head(model).named_parameters())
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert {name for name in before if "scales" not in name} <= moved
    torch.manual_seed(3)
    assert tiny.total_loss(model) < loss
