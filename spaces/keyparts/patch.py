"""From the knobs of key-part box heads to a patched config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces.base import plain_type
from spaces.keyparts.knobs import POSITION_SENSITIVE

# What the head has in common with the one that it replaces: arguments of mmdet's BBoxHead.
_SHARED = (
    "with_cls", "with_reg", "roi_feat_size", "in_channels", "num_classes", "bbox_coder", "predict_box_type",
    "reg_class_agnostic", "reg_decoded_bbox", "reg_predictor_cfg", "cls_predictor_cfg", "loss_cls", "loss_bbox",
)  # fmt: skip
_SIDE = 7  # of mmdet's RoI features where a config does not say


def patch(values: Mapping[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Puts key-part heads in the place of the box heads; proposals, assignment, mask and other branches stay."""
    roi = model["roi_head"]
    if roi.get("shared_head"):
        _drop_shared_head(roi)
    stages = roi["bbox_head"]
    first = stages[0] if isinstance(stages, (list, tuple)) else stages
    if plain_type(first) == POSITION_SENSITIVE:
        _reduce_maps(roi)
    if isinstance(stages, (list, tuple)):
        roi["bbox_head"] = [_head(stage, values, index) for index, stage in enumerate(stages)]
    else:
        roi["bbox_head"] = _head(stages, values)
    return model


def _head(base: Mapping[str, Any], values: Mapping[str, Any], stage: int = 0) -> dict[str, Any]:
    settings = {key: values[key] for key in ("order", "losses", "loss_weight", "confidence") if key in values}
    return {
        "type": "mmdet.KeyPartBBoxHead" if "." in base["type"] else "KeyPartBBoxHead",
        **{key: base[key] for key in _SHARED if key in base},
        "parts": values["parts"],  # K
        "grid": values["grid"],  # L
        # One more in each stage of a cascade (appendix 5.3); none anywhere if none in the first.
        "blocks": values["blocks"] + stage if values["blocks"] else 0,
        "num_fcs": values["num_fcs"],
        "fc_channels": base.get("fc_out_channels", 1024),  # as wide as the layers that they replace
        **settings,
    }


def _drop_shared_head(roi: dict[str, Any]) -> None:
    """Takes the backbone's last stage out of the RoI head (appendix 5.3, Faster RCNN).

    The key-part head works on the maps that the stage read, at the size that the stage put out.
    """
    del roi["shared_head"]
    extractor, head = roi["bbox_roi_extractor"], roi["bbox_head"]
    head["in_channels"] = extractor["out_channels"]
    extractor["roi_layer"]["output_size"] = head.get("roi_feat_size", _SIDE)


def _reduce_maps(roi: dict[str, Any]) -> None:
    """Reduces R-FCN's map to a quarter of the channels that R-FCN does, 256, and pools plainly (appendix 5.3)."""
    extractor, head = roi["bbox_roi_extractor"], roi["bbox_head"]
    channels = max(extractor.get("mid_channels", 1024) // 4, 1)
    roi["bbox_roi_extractor"] = {
        "type": "mmdet.ReducedRoIExtractor" if "." in extractor["type"] else "ReducedRoIExtractor",
        "in_channels": extractor["in_channels"],
        "out_channels": channels,
        "featmap_strides": extractor["featmap_strides"],
        "roi_layer": {"type": "RoIAlign", "output_size": _SIDE, "sampling_ratio": 0},
    }
    head.update(in_channels=channels, roi_feat_size=_SIDE)
    head.setdefault("reg_class_agnostic", True)  # R-FCN's default, but not mmdet's
