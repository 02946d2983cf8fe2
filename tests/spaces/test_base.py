"""Facts of real mmdet configs, and of what is none."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mmdet
import pytest
from mmdet.models import data_preprocessors  # noqa: F401  registers all of mmdet's models
from mmdet.registry import MODELS
from mmengine.config import Config

from spaces.base import BaseFacts, facts
from spaces.errors import UserError, choices, unknown

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
STRIDES = (8, 16, 32, 64, 128)
REAL = {
    "gfl/gfl_r50_fpn_1x_coco.py": BaseFacts("GFL", "GFLHead", STRIDES, 4, False, finer=1),
    "atss/atss_r50_fpn_1x_coco.py": BaseFacts("ATSS", "ATSSHead", STRIDES, 4, False, finer=1),
    "retinanet/retinanet_r50_fpn_1x_coco.py": BaseFacts("RetinaNet", "RetinaHead", STRIDES, 4, True, priors=9, finer=1),
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py": BaseFacts("FCOS", "FCOSHead", STRIDES, 4, False, finer=1),
}


def model(path: str) -> dict[str, Any]:
    found: dict[str, Any] = Config.fromfile(str(CONFIGS / path)).model.to_dict()
    return found


@pytest.mark.parametrize("path", REAL)
def test_real_configs(path: str) -> None:
    assert facts(model(path)) == REAL[path]
    assert facts(model(path)).levels == ("P3", "P4", "P5", "P6", "P7")


@pytest.mark.parametrize("path", REAL)
def test_facts_are_those_of_the_built_head(path: str) -> None:
    config = model(path)
    head = MODELS.build({**config["bbox_head"], "train_cfg": config.get("train_cfg"), "test_cfg": config["test_cfg"]})
    known = facts(config)
    assert len(head.cls_convs) == len(head.reg_convs) == known.tower_convs
    assert all((layer.conv.bias is not None) == known.tower_bias for layer in (*head.cls_convs, *head.reg_convs))
    strides = head.prior_generator.strides
    assert tuple(stride[0] for stride in strides) == known.strides


@pytest.mark.parametrize(
    ("change", "bias"),
    [
        ({"norm_cfg": None}, True),
        ({"norm_cfg": {"type": "BN"}}, False),
        ({"conv_bias": True}, True),
        ({"conv_bias": False, "norm_cfg": None}, False),
    ],
)
def test_bias(change: dict[str, Any], bias: bool) -> None:
    config = model("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py")
    config["bbox_head"].update(change)
    assert facts(config).tower_bias is bias


def test_a_pyramid_with_p2() -> None:
    config = model("retinanet/retinanet_r50_fpn_1x_coco.py")
    config["bbox_head"]["anchor_generator"]["strides"] = [4, 8, [16, 16]]
    assert facts(config).levels == ("P2", "P3", "P4")


def changed(**head: Any) -> dict[str, Any]:
    config = copy.deepcopy(model("gfl/gfl_r50_fpn_1x_coco.py"))
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
        (changed(type="ComposedHead"), "base: is already the result of 'headway patch'"),
        (changed(stacked_convs=0), "base: must have a dense head with conv towers, but GFLHead has 0 stacked_convs."),
    ],
)
def test_no_base(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        facts(config)
    assert str(error.value).startswith(message)


def test_choices() -> None:
    assert choices([]) == "none"
    assert choices(["a"]) == "a"
    assert choices(["a", 2, None]) == "a, 2 or None"


def test_unknown() -> None:
    assert str(unknown("x", "modee", ["mode", "ratio"])) == (
        "x: unknown 'modee'; did you mean 'mode'? The choices are mode or ratio."
    )
    assert str(unknown("x", "qqq", ["mode", "ratio"])) == "x: unknown 'qqq'. The choices are mode or ratio."
