"""Facts of real mmdet configs, and of what is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mmdet
import pytest
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmdet.models import data_preprocessors  # noqa: F401  registers all of mmdet's models
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from torch import nn

from spaces.base import HEADS, BackboneFacts, BaseFacts, RoiFacts, dense_part, facts
from spaces.errors import UserError, choices, unknown

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
GFL = "gfl/gfl_r50_fpn_1x_coco.py"
STRIDES = (8, 16, 32, 64, 128)
TWO_STAGES = (4, 8, 16, 32, 64)
TOWERS = BaseFacts("", "", STRIDES, 4, False, finer=1, tower_norm="GN")
POINTS = replace(TOWERS, tower_bias=True)
TOOD = replace(TOWERS, detector="TOOD", head="TOODHead", tower_convs=6, branches=("inter",))
VFNET = replace(TOWERS, detector="VFNet", head="VFNetHead", tower_convs=3)
RPN = BaseFacts("", "RPNHead", TWO_STAGES, 1, True, branches=("rpn",), part="rpn_head", priors=3)
REAL = {
    "gfl/gfl_r50_fpn_1x_coco.py": replace(TOWERS, detector="GFL", head="GFLHead"),
    "atss/atss_r50_fpn_1x_coco.py": replace(TOWERS, detector="ATSS", head="ATSSHead"),
    "paa/paa_r50_fpn_1x_coco.py": replace(TOWERS, detector="PAA", head="PAAHead"),
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py": replace(TOWERS, detector="FCOS", head="FCOSHead"),
    "fcos/fcos_r50-dcn-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py": replace(
        POINTS, detector="FCOS", head="FCOSHead", deformed=("cls.3", "reg.3")
    ),
    "retinanet/retinanet_r50_fpn_1x_coco.py": BaseFacts("RetinaNet", "RetinaHead", STRIDES, 4, True, priors=9, finer=1),
    "tood/tood_r50_fpn_1x_coco.py": TOOD,
    "tood/tood_r50_fpn_anchor-based_1x_coco.py": TOOD,
    "tood/tood_r101-dconv-c3-c5_fpn_ms-2x_coco.py": replace(TOOD, deformed=("inter.0", "inter.1")),
    "vfnet/vfnet_r50_fpn_1x_coco.py": VFNET,
    "vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py": replace(VFNET, deformed=("cls.2", "reg.2")),
    "ddod/ddod_r50_fpn_1x_coco.py": replace(TOWERS, detector="DDOD", head="DDODHead", deformed=("cls.0", "reg.0")),
    "autoassign/autoassign_r50-caffe_fpn_1x_coco.py": replace(POINTS, detector="AutoAssign", head="AutoAssignHead"),
    "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py": replace(
        POINTS, detector="CondInst", head="CondInstBboxHead"
    ),
    "boxinst/boxinst_r50_fpn_ms-90k_coco.py": replace(POINTS, detector="BoxInst", head="BoxInstBboxHead"),
    "rpn/rpn_r50_fpn_1x_coco.py": replace(RPN, detector="RPN"),
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py": replace(RPN, detector="FasterRCNN"),
    "faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py": replace(RPN, detector="FasterRCNN", strides=(16,), priors=15),
    "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py": replace(RPN, detector="CascadeRCNN"),
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py": replace(RPN, detector="MaskRCNN"),
    "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py": replace(RPN, detector="CascadeRCNN"),
    "lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py": replace(RPN, detector="MaskRCNN"),
}
TOWER_NAMES = {"cls": "cls_convs", "reg": "reg_convs", "inter": "inter_convs", "rpn": "rpn_conv"}


def model(path: str) -> dict[str, Any]:
    found: dict[str, Any] = Config.fromfile(str(CONFIGS / path)).model.to_dict()
    return found


def backbone_of(path: str) -> BackboneFacts:
    if "_r101" in path:
        return BackboneFacts("ResNet", (3, 4, 23, 3), basic=False, deformed=(3, 4, 5))
    deformed = (3, 4, 5) if "-dcn-" in path or "mdconv-c3-c5" in path else ()
    return BackboneFacts(
        "ResNet", (3, 4, 6, 3), basic=False, deformed=deformed, shared_stage=5 if "_c4-" in path else None
    )


def roi_of(path: str) -> RoiFacts | None:
    if "_c4-" in path:
        return RoiFacts("StandardRoIHead", heads=("BBoxHead",), channels=1024, shared="ResLayer")
    if "cascade" in path:
        return RoiFacts("CascadeRoIHead", heads=("Shared2FCBBoxHead",) * 3, channels=256)
    return RoiFacts("StandardRoIHead", heads=("Shared2FCBBoxHead",), channels=256) if "rcnn" in path else None


@pytest.mark.parametrize("path", REAL)
def test_real_configs(path: str) -> None:
    assert facts(model(path)) == replace(REAL[path], backbone=backbone_of(path), roi=roi_of(path))


def test_levels() -> None:
    assert TOWERS.levels == ("P3", "P4", "P5", "P6", "P7")
    assert RPN.levels == ("P2", "P3", "P4", "P5", "P6")


def built(config: dict[str, Any]) -> nn.Module:
    settings = {"train_cfg": None, "test_cfg": config.get("test_cfg")}
    head: nn.Module = MODELS.build(ConfigDict({**config[dense_part(config)], **settings}))
    return head


def deep_rpn() -> dict[str, Any]:
    config = model("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")
    config["rpn_head"]["num_convs"] = 2
    return config


def bare(kind: str) -> dict[str, Any]:
    """A config that leaves everything to mmdet's defaults."""
    part = "rpn_head" if kind == "RPNHead" else "bbox_head"
    classes = {} if kind == "RPNHead" else {"num_classes": 3}
    return {"type": "X", part: {"type": kind, "in_channels": 256, **classes}}


CHANGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", {"norm_cfg": None}),
    ("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", {"norm_cfg": {"type": "BN"}}),
    ("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", {"conv_bias": True}),
    ("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", {"conv_bias": False, "norm_cfg": None}),
    ("autoassign/autoassign_r50-caffe_fpn_1x_coco.py", {"norm_cfg": {"type": "SyncBN"}}),
    ("retinanet/retinanet_r50_fpn_1x_coco.py", {"norm_cfg": {"type": "BN"}, "stacked_convs": 2}),
    ("retinanet/retinanet_r50_fpn_1x_coco.py", {"conv_cfg": {"type": "DCNv2"}}),
    ("tood/tood_r50_fpn_1x_coco.py", {"num_dcn": 9}),
    ("ddod/ddod_r50_fpn_1x_coco.py", {"use_dcn": False, "norm_cfg": None}),
    ("vfnet/vfnet_r50_fpn_1x_coco.py", {"strides": [4, 8, 16, 32, 64]}),
)
CONFIGURED = [
    *(pytest.param(lambda path=path: model(path), id=path) for path in REAL),
    # GFL refuses mmdet's default of nine anchors.
    *(pytest.param(lambda kind=kind: bare(kind), id=kind) for kind in HEADS if kind != "GFLHead"),
    *(pytest.param(lambda p=path, c=change: changed(p, **c), id=f"{path}-{change}") for path, change in CHANGES),
    pytest.param(deep_rpn, id="rpn with two convolutions"),
]


@pytest.mark.parametrize("config", CONFIGURED)
def test_facts_are_those_of_the_built_head(config: Callable[[], dict[str, Any]]) -> None:
    known = facts(config())
    head = built(config())
    assert type(head).__name__ == known.head
    for branch in known.branches:
        tower = getattr(head, TOWER_NAMES[branch])
        layers = [tower] if isinstance(tower, nn.Conv2d) else list(tower)
        convs = [getattr(layer, "conv", layer) for layer in layers]
        norms = [layer.norm if getattr(layer, "with_norm", False) else None for layer in layers]
        deformable = [isinstance(conv, (DeformConv2dPack, ModulatedDeformConv2dPack)) for conv in convs]
        assert len(layers) == known.tower_convs
        assert [f"{branch}.{i}" for i, found in enumerate(deformable) if found] == [
            element for element in known.deformed if element.startswith(branch)
        ]
        for conv, norm in zip(convs, norms, strict=True):
            assert (getattr(conv, "bias", None) is not None) == known.tower_bias
            expected = None if known.tower_norm is None else MODELS.get(known.tower_norm)
            assert (None if norm is None else type(norm)) == expected
    generator = head.prior_generator
    strides = [stride[0] if isinstance(stride, tuple) else stride for stride in generator.strides]
    assert tuple(strides) == known.strides
    assert set(generator.num_base_priors) == {known.priors}


def test_other_towers_are_not_there() -> None:
    """Branches name all towers of a head."""
    for path in REAL:
        head = built(model(path))
        assert {name for name in TOWER_NAMES.values() if hasattr(head, name)} == {
            TOWER_NAMES[branch] for branch in facts(model(path)).branches
        }


def test_a_pyramid_with_p2() -> None:
    config = model("retinanet/retinanet_r50_fpn_1x_coco.py")
    config["bbox_head"]["anchor_generator"]["strides"] = [4, 8, [16, 16]]
    assert facts(config).levels == ("P2", "P3", "P4")


def changed(path: str, **head: Any) -> dict[str, Any]:
    config = model(path)
    config["bbox_head"].update(head)
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {},
            "base: must be a detector with a dense head (model.bbox_head) or an RPN (model.rpn_head), "
            "but got ? without one.",
        ),
        (
            {"type": "FasterRCNN", "roi_head": {}},
            "base: must be a detector with a dense head (model.bbox_head) or an RPN (model.rpn_head), "
            "but got FasterRCNN without one.",
        ),
        (
            {"type": "DETR", "bbox_head": {"type": "DETRHead"}},
            "base: must have a dense head over a pyramid with strides",
        ),
        ({"type": "X", "bbox_head": [1]}, "base: must be a detector with a dense head"),
        (changed(GFL, type="ComposedHead"), "base: is already the result of 'headway patch'"),
        (
            changed(GFL, stacked_convs=0),
            "base: must have a dense head with conv towers, but GFLHead has 0 stacked_convs.",
        ),
        (
            {"type": "RetinaNet", "bbox_head": {"type": "GARetinaHead", "approx_anchor_generator": {}}},
            "base: must have a dense head over a pyramid with strides",
        ),
        (
            model("yolox/yolox_s_8xb8-300e_coco.py"),
            "base: must have a dense head of a known type (GFLHead, ATSSHead, RetinaHead, FCOSHead, TOODHead, PAAHead, "
            "VFNetHead, AutoAssignHead, DDODHead, CondInstBboxHead, BoxInstBboxHead or RPNHead), "
            "but YOLOX has YOLOXHead.",
        ),
        (model("ssd/ssd300_coco.py"), "base: must have a dense head of a known type"),
    ],
)
def test_no_base(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        facts(config)
    assert str(error.value).startswith(message)


def test_choices() -> None:
    assert choices(["a", "b", "c"], "and") == "a, b and c"
    assert choices([]) == "none"
    assert choices(["a"]) == "a"
    assert choices(["a", 2, None]) == "a, 2 or None"


def test_unknown() -> None:
    assert str(unknown("x", "modee", ["mode", "ratio"])) == (
        "x: unknown 'modee'; did you mean 'mode'? The choices are mode or ratio."
    )
    assert str(unknown("x", "qqq", ["mode", "ratio"])) == "x: unknown 'qqq'. The choices are mode or ratio."
