"""Deformable tower layers against known answers (PAPERS.md, SlimHead's and DDOD's checks)."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmdet
import pytest
import torch
from mmcv.cnn import ConvModule
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmdet.models import data_preprocessors  # noqa: F401  registers all of mmdet's models
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from torch import nn
from torch.nn import functional as F  # noqa: N812

from spaces import patching
from spaces.base import HEADS, dense_part, facts
from spaces.dcn.modules import TYPES, deformable, make_deformable, mismatch
from spaces.errors import UserError
from spaces.registry import family
from spaces.space import Space, full_space

NORM = {"type": "GN", "num_groups": 4}


def layer(channels: int = 16, norm: bool = True) -> ConvModule:
    torch.manual_seed(0)
    return ConvModule(channels, channels, 3, padding=1, norm_cfg=NORM if norm else None)


@pytest.mark.parametrize(("version", "share"), [(1, 1.0), (2, 0.5)])
def test_start(version: int, share: float) -> None:
    module = layer()
    weight = module.conv.weight.detach().clone()
    make_deformable(module, version)
    assert type(module.conv) is TYPES[version]
    assert torch.equal(module.conv.weight, weight)
    x = torch.randn(2, 16, 9, 13)
    expected = share * F.conv2d(x, weight, padding=1)
    torch.testing.assert_close(module.conv(x), expected, rtol=1e-4, atol=1e-5)


def test_bias_is_kept() -> None:
    module = layer(norm=False)
    nn.init.normal_(module.conv.bias)
    weight, bias = module.conv.weight.detach().clone(), module.conv.bias.detach().clone()
    make_deformable(module, 2)
    x = torch.randn(1, 16, 6, 5)
    # The mask halves the product, not the bias.
    torch.testing.assert_close(module.conv(x), F.conv2d(x, 0.5 * weight, bias, padding=1), rtol=1e-4, atol=1e-5)


def test_version_2_adds_its_offset_convolution() -> None:
    module = layer(256)
    before = sum(p.numel() for p in module.parameters())
    make_deformable(module, 2)
    assert sum(p.numel() for p in module.parameters()) - before == 62_235


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 7), (5, 2)])
def test_maps_smaller_than_the_kernel(version: int, size: tuple[int, int]) -> None:
    """Equal to a larger map of zeros around the same input, offsets and all."""
    module = layer()
    make_deformable(module, version)
    nn.init.normal_(module.conv.conv_offset.weight, std=0.05)
    nn.init.normal_(module.conv.conv_offset.bias, std=0.5)
    x = torch.randn(2, 16, *size)
    small = module.conv(x)
    assert small.shape == x.shape
    large = module.conv(F.pad(x, (0, 6, 0, 6)))[:, :, : size[0], : size[1]]
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-5)


def test_version_1_refuses_a_bias() -> None:
    with pytest.raises(AssertionError):
        make_deformable(layer(norm=False), 1)


# On every head


CONFIGS = {
    "GFLHead": "gfl/gfl_r50_fpn_1x_coco.py",
    "ATSSHead": "atss/atss_r50_fpn_1x_coco.py",
    "RetinaHead": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "FCOSHead": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "TOODHead": "tood/tood_r50_fpn_1x_coco.py",
    "PAAHead": "paa/paa_r50_fpn_1x_coco.py",
    "VFNetHead": "vfnet/vfnet_r50_fpn_1x_coco.py",
    "AutoAssignHead": "autoassign/autoassign_r50-caffe_fpn_1x_coco.py",
    "DDODHead": "ddod/ddod_r50_fpn_1x_coco.py",
    "CondInstBboxHead": "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py",
    "BoxInstBboxHead": "boxinst/boxinst_r50_fpn_ms-90k_coco.py",
    "RPNHead": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
}
TOOD_DCN = "tood/tood_r101-dconv-c3-c5_fpn_ms-2x_coco.py"
VFNET_DCN = "vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py"


def config(path: str, **changes: Any) -> dict[str, Any]:
    """A real detector's config with towers of 32 channels."""
    whole = Config.fromfile(str(Path(mmdet.__file__).parent / ".mim" / "configs" / path)).model.to_dict()
    whole[dense_part(whole)].update({"in_channels": 32, "feat_channels": 32, **changes})
    found: dict[str, Any] = whole
    return found


def space(model: dict[str, Any]) -> Space:
    return full_space(facts(model))


def default_design(model: dict[str, Any]) -> dict[str, Any]:
    knobs = space(model).knobs
    return {name: knob.default for name, knob in knobs.items() if name.startswith("dcn.")}


def head_of(model: dict[str, Any], design: dict[str, Any] | None = None) -> nn.Module:
    canonical = space(model).canonicalise(design or {})
    for module in patching.imports(canonical):
        importlib.import_module(module)
    patched = patching.apply(model, canonical)
    settings = {"train_cfg": None, "test_cfg": patched.get("test_cfg")}
    torch.manual_seed(0)
    head: nn.Module = MODELS.build(ConfigDict({**patched[dense_part(patched)], **settings}))
    return head


def pyramid() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return tuple(torch.randn(1, 32, *size) for size in ((24, 40), (12, 20), (6, 10), (3, 5), (3, 3)))


def test_every_head_of_the_family_is_here() -> None:
    assert set(family("dcn").heads) >= set(HEADS) == set(CONFIGS)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("slim", [False, True])
def test_weights_after_init_are_those_of_the_base(kind: str, slim: bool) -> None:
    """mmengine's init passes deformable layers by (PAPERS.md, SlimHead): here they get the base's, number by number."""
    model = config(CONFIGS[kind])
    design = default_design(model)
    if slim and kind in family("slimhead").heads:
        design |= {"slimhead.levels": [0], "slimhead.ratio": 0.5}
    plain, changed = head_of(model), head_of(model, design)
    for module in changed.modules():
        if isinstance(module, tuple(TYPES.values())):
            nn.init.normal_(module.conv_offset.weight)
            nn.init.normal_(module.conv_offset.bias)
    for head in (plain, changed):
        torch.manual_seed(3)
        head.init_weights()
    state = changed.state_dict()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(state.pop(name), tensor), name
    assert len(state) == 2 * len(design["dcn.placement"])
    assert all("conv_offset" in name and not tensor.any() for name, tensor in state.items())


@pytest.mark.parametrize(
    ("init", "spread"),
    [
        (None, 0.01),  # mmdet's heads
        ({"type": "Normal", "layer": "Conv2d", "std": 0.3}, 0.3),
        ({"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"}, (2 / (2 * 9 * 32)) ** 0.5),
    ],
)
def test_spread_of_the_weights(init: dict[str, Any] | None, spread: float) -> None:
    model = config(CONFIGS["FCOSHead"], **({"init_cfg": init} if init else {}))
    head = head_of(model, {"dcn.placement": ["cls.0"], "dcn.version": 1})
    assert head.cls_convs[0].conv.weight.std() > 0.07  # the layer's own
    head.init_weights()
    assert type(head.cls_convs[0].conv) is TYPES[1]
    assert head.cls_convs[0].conv.weight.std().item() == pytest.approx(spread, rel=0.05)


def test_init_as_part_of_a_detector() -> None:
    """mmengine checks there that it knows every parameter."""
    model = config(CONFIGS["RPNHead"])
    model["backbone"]["init_cfg"] = None
    model["neck"]["out_channels"] = 32
    for extractor in ("bbox_head", "bbox_roi_extractor"):
        model["roi_head"][extractor].update({"in_channels": 32} if extractor == "bbox_head" else {"out_channels": 32})
    model.pop("data_preprocessor")
    design = space(model).canonicalise(default_design(model))
    detector = MODELS.build(ConfigDict(patching.apply(model, design)))
    detector.init_weights()
    assert detector.rpn_head.rpn_conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
    patching.check_built(detector, design)


@pytest.mark.parametrize("kind", ["GFLHead", "TOODHead", "VFNetHead"])
def test_version_1_starts_as_the_base(kind: str) -> None:
    """DDOD's check 4: with the same weight, the layer is the plain convolution, so the head is the base."""
    model = config(CONFIGS[kind])
    plain = head_of(model).eval()
    changed = head_of(model, {**default_design(model), "dcn.version": 1}).eval()
    for head in (plain, changed):
        torch.manual_seed(0)
        head.init_weights()
    with torch.no_grad():
        for one, other in zip(plain(pyramid()), changed(pyramid()), strict=True):
            for left, right in zip(one, other, strict=True):
                torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_mmdets_own_first_layer_starts_as_a_plain_convolution() -> None:
    """DDOD's check 4 on DDOD itself."""
    head = head_of(config(CONFIGS["DDODHead"]))
    head.init_weights()
    layer = head.cls_convs[0].conv
    x = torch.randn(1, 32, 7, 9)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, padding=1), rtol=1e-4, atol=1e-5)


def test_rpn() -> None:
    """The convolution of an RPN is a plain one with a bias, or a stack of them."""
    model = config(CONFIGS["RPNHead"])
    head = head_of(model, {"dcn.placement": ["rpn.0"]})
    head.init_weights()
    with torch.no_grad():
        x = pyramid()[0]
        wanted = F.conv2d(x, 0.5 * head.rpn_conv.weight, head.rpn_conv.bias, padding=1)
        torch.testing.assert_close(head.rpn_conv(x), wanted, rtol=1e-4, atol=1e-5)
    deep = config(CONFIGS["RPNHead"], num_convs=3)
    design = space(deep).canonicalise({"dcn.placement": [0, 2]})
    assert design["dcn.placement"] == ["rpn.0", "rpn.2"]
    head = head_of(deep, design)
    assert [type(layer.conv) for layer in head.rpn_conv] == [TYPES[2], nn.Conv2d, TYPES[2]]
    assert mismatch(SimpleNamespace(rpn_head=head), {"placement": ["rpn.0", "rpn.2"], "version": 2}) is None
    assert mismatch(SimpleNamespace(rpn_head=head), {"placement": ["rpn.0", "rpn.1"], "version": 2}) is not None


# Knobs


@pytest.mark.parametrize(
    ("path", "elements", "default"),
    [
        (CONFIGS["GFLHead"], "cls.0 cls.1 cls.2 cls.3 reg.0 reg.1 reg.2 reg.3", "cls.0 cls.1 reg.0 reg.1"),
        (CONFIGS["TOODHead"], "inter.0 inter.1 inter.2 inter.3 inter.4 inter.5", "inter.0 inter.1"),
        (CONFIGS["RPNHead"], "rpn.0", "rpn.0"),
        # What the base deforms is no element.
        (TOOD_DCN, "inter.2 inter.3 inter.4 inter.5", "inter.2 inter.3"),
        (VFNET_DCN, "cls.0 cls.1 reg.0 reg.1", "cls.0 cls.1 reg.0 reg.1"),
        (CONFIGS["DDODHead"], "cls.1 cls.2 cls.3 reg.1 reg.2 reg.3", "cls.1 cls.2 reg.1 reg.2"),
    ],
)
def test_placement(path: str, elements: str, default: str) -> None:
    placement = space(config(path)).knobs["dcn.placement"]
    assert placement.to_json()["elements"] == tuple(elements.split())
    assert placement.default == tuple(default.split())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (TOOD_DCN, "inter.0", r"but got 'inter\.0'\. The base itself deforms inter\.0 and inter\.1\.$"),
        (TOOD_DCN, 1, r"but got 1\. The base itself deforms"),
        (CONFIGS["TOODHead"], "cls.0", r"must be a list of inter\.0, .* or inter\.5 \(short: .*, but got 'cls\.0'\.$"),
        (CONFIGS["RPNHead"], "rpn.1", r"must be a list of rpn\.0 \(short: 0 or rpn\), but got 'rpn\.1'\.$"),
    ],
)
def test_positions_that_are_not_there(path: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"^dcn\.placement: .*" + message):
        space(config(path)).canonicalise({"dcn.placement": [value]})


@pytest.mark.parametrize("kind", ["RetinaHead", "AutoAssignHead", "CondInstBboxHead", "BoxInstBboxHead", "RPNHead"])
def test_version_1_is_refused_with_the_reason(kind: str) -> None:
    model = config(CONFIGS[kind])
    reason = rf"^dcn\.version: must be 2, but got 1\. Version 1 has no bias, but the .* of {kind} have one\.$"
    with pytest.raises(UserError, match=reason):
        space(model).canonicalise({**default_design(model), "dcn.version": 1})


def test_shorthand() -> None:
    tood = space(config(CONFIGS["TOODHead"]))
    assert tood.canonicalise({"dcn.placement": [0, 5]})["dcn.placement"] == ["inter.0", "inter.5"]
    assert len(tood.canonicalise({"dcn.placement": ["inter"]})["dcn.placement"]) == 6
    vfnet = space(config(VFNET_DCN))
    assert vfnet.canonicalise({"dcn.placement": ["cls"]})["dcn.placement"] == ["cls.0", "cls.1"]


def test_a_base_that_is_deformed_throughout() -> None:
    model = config(CONFIGS["RetinaHead"], conv_cfg={"type": "DCNv2"})
    found = space(model)
    assert found.knobs["dcn.placement"].default == ()
    assert found.canonicalise(default_design(model)) == {}


@pytest.mark.parametrize("path", [TOOD_DCN, VFNET_DCN, CONFIGS["DDODHead"]])
def test_what_the_base_deforms_stays(path: str) -> None:
    model = config(path)
    plain, changed = head_of(model), head_of(model, default_design(model))
    kinds = (DeformConv2dPack, ModulatedDeformConv2dPack)
    own = {name: type(module) for name, module in plain.named_modules() if isinstance(module, kinds)}
    assert len(own) == len(facts(model).deformed)
    for name, kind in own.items():
        assert type(changed.get_submodule(name)) is kind
        assert changed.get_submodule(name).deform_groups == (4 if path == TOOD_DCN else 1)
    values = {key.removeprefix("dcn."): value for key, value in default_design(model).items()}
    assert mismatch(SimpleNamespace(bbox_head=changed), values) is None
    assert mismatch(SimpleNamespace(bbox_head=changed), {**values, "version": 3 - values["version"]}) is not None
    less = {**values, "placement": values["placement"][1:]}
    assert str(mismatch(SimpleNamespace(bbox_head=changed), less)).startswith("deformable at [")
    assert str(mismatch(SimpleNamespace(bbox_head=plain), values)).startswith("deformable at [] instead of [")


def test_the_layer_keeps_the_shape_of_the_plain_one() -> None:
    plain = nn.Conv2d(8, 12, (3, 5), stride=(1, 2), padding=(1, 2), groups=4)
    layer = deformable(plain, 2)
    x = torch.randn(2, 8, 6, 9)
    wanted = F.conv2d(x, 0.5 * plain.weight, plain.bias, plain.stride, plain.padding, groups=4)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
