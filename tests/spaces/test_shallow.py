"""Towers of their own for some levels, against closed forms (SlimHead, appendix A.2, figure 7)."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
from mmdet.models import data_preprocessors  # noqa: F401  registers all of mmdet's models
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from torch import nn

from spaces import patching
from spaces.base import BaseFacts, facts
from spaces.errors import UserError
from spaces.shallow.modules import depths, resized
from spaces.space import Space, build_space
from trainers.cost import Cost, count

SIZE = (800, 1344)
SITES = {"P3": 16_800, "P4": 4_200, "P5": 1_050, "P6": 273, "P7": 77}
CONV = 9 * 256 * 256
PREDICTIONS = 9 * 256 * (80 + 4 * 17)  # GFL's two, for 80 classes and 17 bins a side
SITE = 8 * CONV + PREDICTIONS
LEFT = {"shallow.levels": [0, 1], "shallow.layers": "all", "shallow.channels": 0.5}
RIGHT = {"shallow.levels": [0, 1], "shallow.layers": "gradual", "shallow.channels": 1.0}


@cache
def gfl_config() -> dict[str, Any]:
    path = Path(mmdet.__file__).parent / ".mim/configs/gfl/gfl_r50_fpn_1x_coco.py"
    model = Config.fromfile(str(path)).model.to_dict()
    model.pop("data_preprocessor")
    model["backbone"].pop("init_cfg")
    return model


def build(design: Mapping[str, Any], **head: Any) -> nn.Module:
    """A GFL with ResNet-50, or one with other settings of its head."""
    for module in patching.imports(design):
        importlib.import_module(module)
    config = copy.deepcopy(gfl_config())
    config["bbox_head"].update(head)
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(patching.apply(config, design)))


def small(design: Mapping[str, Any]) -> Any:
    """The head alone, with 16 channels in groups of 2."""
    norm = {"type": "GN", "num_groups": 8}
    return build(design, in_channels=16, feat_channels=16, num_classes=3, norm_cfg=norm).bbox_head


def maps(channels: int = 16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((10, 13), (5, 7), (3, 4), (2, 2), (1, 1))
    return tuple(torch.randn(2, channels, *size, generator=generator) for size in sizes)


@cache
def cost(key: tuple[tuple[str, Any], ...]) -> Cost:
    design = {name: list(value) if isinstance(value, tuple) else value for name, value in key}
    model = build(design)
    if design:
        patching.check_built(model, design)
    return count(model, SIZE)


def costs(design: Mapping[str, Any]) -> Cost:
    return cost(tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in design.items()))


def space(base: BaseFacts, *more: str) -> Space:
    return build_space({"shallow": {}, **{name: {} for name in more}}, base)


# What it costs


def test_left_of_figure_7() -> None:
    """256 to 128, twice 128 to 128, 128 to 256: 1.5 instead of 4 convolutions a branch, 1,280 weights of norms."""
    found, base = costs(LEFT), costs({})
    assert base.params_parts["head"] == 5_063_833
    for level, sites in SITES.items():
        assert base.macs_levels[level] == SITE * sites
        assert found.macs_levels[level] == (3 * CONV + PREDICTIONS if level in ("P3", "P4") else SITE) * sites
    assert found.macs_parts["head"] == 51_403_161_600
    assert found.params_parts["head"] - base.params_parts["head"] == 4 * (3 * CONV // 2 + 2 * (3 * 128 + 256))
    assert found.params_parts["head"] == 8_607_897


def test_right_of_figure_7() -> None:
    """Two convolutions a branch on P3, three on P4, four on the levels above."""
    found = costs(RIGHT)
    number = {"P3": 2, "P4": 3, "P5": 4, "P6": 4, "P7": 4}
    for level, sites in SITES.items():
        assert found.macs_levels[level] == (2 * number[level] * CONV + PREDICTIONS) * sites
    assert found.macs_parts["head"] == 68_743_987_200
    assert found.params_parts["head"] == 5_063_833 + 2 * (2 + 3) * (CONV + 512) == 10_967_193


def test_slimhead_costs_less_on_the_same_levels() -> None:
    found = costs({"slimhead.levels": [0, 1], "slimhead.ratio": 0.5, "slimhead.mode": "nearest"})
    assert found.macs_parts["head"] == (2 * CONV + PREDICTIONS) * 21_000 + SITE * 1_400 == 39_016_857_600
    assert found.params_parts["head"] == 5_063_833


@pytest.mark.parametrize("layers", [1, 2, 3, "all"])
@pytest.mark.parametrize("channels", [0.25, 0.75])
def test_closed_form(layers: Any, channels: float) -> None:
    """With d convolutions and a share c of the channels: 2c + (d - 2)c² full ones, and one for d = 1."""
    design = {"shallow.levels": [0], "shallow.layers": layers, "shallow.channels": channels}
    if layers == 1:
        del design["shallow.channels"]
    depth = 4 if layers == "all" else layers
    convs = 1.0 if depth == 1 else 2 * channels + (depth - 2) * channels**2
    found = costs(design)
    assert found.macs_levels["P3"] == (2 * convs * CONV + PREDICTIONS) * SITES["P3"]
    assert found.macs_levels["P4"] == SITE * SITES["P4"]
    norms = 2 * 256 * ((depth - 1) * channels + 1)
    assert found.params_parts["head"] - 5_063_833 == 2 * (convs * CONV + norms)


def test_all_levels_leave_no_shared_tower() -> None:
    """Five towers of one convolution a branch, and nothing else but predictions and scales."""
    found = costs({"shallow.levels": [0, 1, 2, 3, 4], "shallow.layers": 1})
    predictions = 5_063_833 - 8 * (CONV + 512)
    assert found.params_parts["head"] == 5 * 2 * (CONV + 512) + predictions
    assert found.macs_parts["head"] == (2 * CONV + PREDICTIONS) * sum(SITES.values())


# Which level uses which tower


@pytest.mark.parametrize(
    ("levels", "layers", "full", "expected"),
    [
        ([0, 1], "all", 4, {0: 4, 1: 4}),
        ([0, 1], 2, 4, {0: 2, 1: 2}),
        ([0, 1], "gradual", 4, {0: 2, 1: 3}),
        ([0, 1, 2], "gradual", 4, {0: 1, 1: 2, 2: 3}),
        ([0, 1, 2, 3, 4], "gradual", 4, {0: 1, 1: 1, 2: 1, 3: 2, 4: 3}),
        ([3, 1], "gradual", 4, {1: 2, 3: 3}),
        ([0, 1], "gradual", 3, {0: 1, 1: 2}),
    ],
)
def test_depths(levels: list[int], layers: Any, full: int, expected: dict[int, int]) -> None:
    assert depths(levels, layers, full) == expected


@pytest.mark.parametrize("design", [LEFT, RIGHT, {"shallow.levels": [1, 3], "shallow.layers": 1}])
def test_towers_by_level(design: Mapping[str, Any]) -> None:
    """Every level gives what its own layers, run by hand, and the shared predictions give."""
    head = small(design)
    x = maps()
    found = head(x)
    own = set(design["shallow.levels"])
    for level, (feature, scale) in enumerate(zip(x, head.scales, strict=True)):
        outputs = []
        for name, predict in (("cls_convs", head.gfl_cls), ("reg_convs", head.gfl_reg)):
            shared = [getattr(head, name)[index] for index in range(4)]
            layers = list(head.level_towers[name][f"level{level}"]) if level in own else shared
            outputs.append(predict(nn.Sequential(*layers)(feature)))
        assert torch.equal(found[0][level], outputs[0])
        assert torch.equal(found[1][level], scale(outputs[1]).float())


@pytest.mark.parametrize("design", [LEFT, RIGHT, {"shallow.levels": [0, 1, 2, 3, 4], "shallow.layers": "gradual"}])
def test_a_level_moves_only_its_own_tower(design: Mapping[str, Any]) -> None:
    head = small({"shallow.channels": 0.5, **design})
    own = {f"level{level}" for level in design["shallow.levels"]}
    for level in range(5):
        head.zero_grad()
        outputs = head(maps())
        (outputs[0][level].square().sum() + outputs[1][level].square().sum()).backward()
        moved = {name for name, parameter in head.named_parameters() if "convs" in name and parameter.grad is not None}
        mine = f"level{level}" in own and level != 4
        for name in moved:
            assert name.startswith("level_towers.") == mine, name
            assert f".level{level}." in name or not mine
        assert moved


def test_other_levels_and_names_are_the_bases() -> None:
    plain, head = small({}), small(LEFT)
    state = head.state_dict()
    assert set(plain.state_dict()) < set(state)
    added = sorted(set(state) - set(plain.state_dict()))
    assert all(name.startswith("level_towers.") for name in added)
    assert state["level_towers.cls_convs.level1.0.conv.weight"].shape == (8, 16, 3, 3)
    assert state["level_towers.cls_convs.level1.3.conv.weight"].shape == (16, 8, 3, 3)
    head.load_state_dict(plain.state_dict(), strict=False)
    for one, other in zip(plain(maps()), head(maps()), strict=True):
        assert [torch.equal(*pair) for pair in zip(one, other, strict=True)] == [False, False, True, True, True]


@pytest.mark.parametrize("levels", [[], [0, 1], [0, 1, 2, 3, 4]])
def test_nothing_reduced_is_the_base(levels: list[int]) -> None:
    importlib.import_module("spaces.shallow.modules")
    importlib.import_module("spaces.modules")
    settings = {"in_channels": 16, "feat_channels": 16, "num_classes": 3, "norm_cfg": {"type": "GN", "num_groups": 8}}
    config = copy.deepcopy(gfl_config())
    config["bbox_head"].update(settings)
    mixin = {"type": "ShallowTowers", "levels": levels, "layers": "all", "channels": 1.0}
    heads = []
    for model in (config, patching.add_mixin(copy.deepcopy(config), mixin)):
        torch.manual_seed(0)
        head = MODELS.build(ConfigDict(model)).bbox_head
        torch.manual_seed(1)
        head.init_weights()
        heads.append(head)
    plain, forced = heads
    assert list(plain.state_dict()) == list(forced.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(value, forced.state_dict()[key])
    outputs = [head(maps()) for head in heads]
    for group in zip(*outputs, strict=True):
        assert all(torch.equal(*pair) for pair in zip(*group, strict=True))
    for output in outputs:
        sum(tensor.square().sum() for group in output for tensor in group).backward()
    for one, other in zip(plain.parameters(), forced.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_shapes_are_the_bases() -> None:
    shapes = [[tensor.shape for group in small(design)(maps()) for tensor in group] for design in ({}, LEFT, RIGHT)]
    assert shapes[0] == shapes[1] == shapes[2]


def test_copies_are_independent() -> None:
    """Copies work on their own level and with their own weights."""
    head = small(LEFT)
    expected = head(maps())
    for twin in (copy.deepcopy(head), pickle_trip(head)):
        assert all(torch.equal(*pair) for group in zip(expected, twin(maps()), strict=True) for pair in zip(*group))
        with torch.no_grad():
            twin.level_towers["cls_convs"]["level0"][0].conv.weight.zero_()
        assert not torch.equal(twin(maps())[0][0], expected[0][0])
        assert torch.equal(head(maps())[0][0], expected[0][0])


def pickle_trip(head: nn.Module) -> nn.Module:
    # The composed class is made at run time, so only the towers and the switch can travel, as parts of one object.
    parts = pickle.loads(pickle.dumps((head.cls_convs, head.reg_convs, head.level_towers, head.level_switch)))
    twin = copy.deepcopy(head)
    twin.cls_convs, twin.reg_convs, twin.level_towers, twin.level_switch = parts
    return twin


def test_a_failed_pass_leaves_no_level_behind() -> None:
    head = small(LEFT)
    with pytest.raises(RuntimeError):
        head((*maps()[:2], torch.zeros(1, 5, 3, 3)))
    assert head.level_switch.level == -1


def test_levels_are_initialised_as_the_base() -> None:
    head = small(LEFT)
    head.init_weights()
    stds = [p.std().item() for name, p in head.named_parameters() if name.endswith("conv.weight")]
    assert len(stds) == 8 + 16
    assert all(abs(std - 0.01) < 0.002 for std in stds)
    assert head.level_switch.every is False


def test_groups_keep_their_size() -> None:
    layer = small({}).cls_convs[1]
    assert resized(layer, 16, 4).gn.num_groups == 2
    assert resized(layer, 16, 12).gn.num_groups == 6
    assert resized(layer, 16, 5).gn.num_groups == 5
    assert build({}).bbox_head.cls_convs[0].gn.num_groups == 32
    assert resized(build({}).bbox_head.cls_convs[0], 256, 64).gn.num_groups == 8


# Which designs there are


def test_knobs(gfl: BaseFacts, retina: BaseFacts) -> None:
    assert space(gfl).canonicalise({"shallow.levels": "K4"}) == LEFT
    assert space(gfl).canonicalise({"shallow.levels": ["P3", "P4"], "shallow.channels": 1.0}) == {}
    assert space(gfl).canonicalise({"shallow.levels": []}) == {}
    right = {"shallow.levels": "K4", "shallow.layers": "gradual", "shallow.channels": 1.0}
    assert space(retina).canonicalise(right) == RIGHT
    one = space(gfl).canonicalise({"shallow.levels": "P3", "shallow.layers": 1, "shallow.channels": 0.25})
    assert one == {"shallow.levels": [0], "shallow.layers": 1}


def test_size(gfl: BaseFacts) -> None:
    """31 sets of levels; 4 shares with all, gradual, 3 and 2 layers but one that reduces nothing; 1 layer; the base."""
    assert space(gfl).size() == 31 * (4 * 4 - 1 + 1) + 1


@pytest.mark.parametrize(
    ("design", "message"),
    [
        ({"shallow.levels": "P4", "shallow.layers": "gradual"}, "gradual needs two levels or more; for P4 alone say 3"),
        ({"shallow.layers": 4}, r"shallow\.layers: must be .*all.*gradual.*3.*2.*1, but got 4"),
        ({"shallow.channels": 0.2}, r"shallow\.channels: must lie in \[0\.25, 1\], but got 0\.2"),
        ({**LEFT, "slimhead.levels": [0]}, "cannot go together with .*: both lighten the same shallow levels"),
        (
            {"shallow.levels": "K7", "shallow.layers": 2, "dcn.placement": ["cls.0", "reg.2"]},
            r"no level has more than 2 convolutions in a tower, but dcn\.placement names reg\.2",
        ),
        ({"shallow.levels": "K7", "shallow.layers": "gradual", "dcn.placement": "3"}, "more than 3 .* cls.3, reg.3"),
    ],
)
def test_refused(gfl: BaseFacts, design: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        space(gfl, "dcn", "slimhead").canonicalise(design)


def test_a_single_convolution_cannot_be_reduced(gfl: BaseFacts) -> None:
    config = copy.deepcopy(gfl_config())
    config["bbox_head"]["stacked_convs"] = 1
    with pytest.raises(UserError, match="needs towers of 2 convolutions or more to take from, but GFLHead has 1"):
        space(facts(config)).canonicalise({"shallow.levels": [0]})


def test_deformable_positions_are_followed() -> None:
    """A level's own tower deforms the positions that it has."""
    design = {**RIGHT, "dcn.placement": ["cls.0", "cls.2", "reg.3"], "dcn.version": 1}
    model = build(design, in_channels=16, feat_channels=16, norm_cfg={"type": "GN", "num_groups": 8})
    patching.check_built(model, design)
    found = sorted(name for name, _ in model.bbox_head.named_parameters() if name.endswith("conv_offset.weight"))
    assert [name.removesuffix(".conv.conv_offset.weight") for name in found] == [
        "cls_convs.0",
        "cls_convs.2",
        "level_towers.cls_convs.level0.0",
        "level_towers.cls_convs.level1.0",
        "level_towers.cls_convs.level1.2",
        "reg_convs.3",
    ]
