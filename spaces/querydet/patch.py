"""From the knobs of QueryDet to a patched config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from spaces.base import dense_part, plain_type
from spaces.patching import add_mixin

# Norms that treat each site of a map by itself in evaluation.
SITEWISE = (None, "BN", "BN2d", "SyncBN", "MMSyncBN")
MIXINS = {"RetinaHead": "QueryRetina", "FCOSHead": "QueryFCOS", "RPNHead": "QueryRPN"}
# configs/coco of the reference code, P2 to P7.
CODE_BETA = (1.0, 1.4, 2.1, 2.5, 2.9, 3.2)

# mmdet's defaults where a config does not say.
_RETINA_ANCHORS: Mapping[str, Any] = {
    "type": "AnchorGenerator",
    "octave_base_scale": 4,
    "scales_per_octave": 3,
    "ratios": [0.5, 1.0, 2.0],
    "strides": [8, 16, 32, 64, 128],
}
_POINT_STRIDES = (4, 8, 16, 32, 64)
_RPN_STRIDES = (4, 8, 16, 32, 64)
_RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))


def patch(values: Mapping[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Adds the finer level (section 3.1) and the query head (section 3.2); the base's layers stay."""
    head = model[dense_part(model)]
    kind = head.get("base_type", head["type"])
    if values["p2"]:
        model["neck"]["start_level"] -= 1
        model["neck"]["num_outs"] += 1
        _refine_points(head) if kind == "FCOSHead" else _refine_anchors(head)
    if "rpn_convs" in values:
        head["num_convs"] = values["rpn_convs"]
    levels = _levels(head)
    beta = _beta(values, len(levels))
    start = levels.index(values["start"])
    method = values.get("method", "full")
    if method == "sparse" and dense_part(model) == "bbox_head":
        _ask_later(model["neck"], start)
    # Equation 5 weights the query loss as well, the reference code does not.
    in_queries = beta if values["beta"] == "linear" else [1.0] * len(beta)
    return add_mixin(
        model,
        {
            "type": MIXINS[kind],
            "start": start,
            "finer": values["p2"],
            "beta": beta,
            "query_weights": [values["query_weight"] * weight for weight in in_queries[1 : start + 1]],
            "gamma": values["gamma"],
            "alpha": values["alpha"],
            "radius": values["radius"],
            # Arguments of inference: no weight depends on them.
            "threshold": values["threshold"],
            "method": method,
            "context": values.get("context", 2),
        },
    )


def _ask_later(neck: dict[str, Any], start: int) -> None:
    """Lets the neck compute its outputs below ``start`` at the sites that the head asks for.

    Boxes are pooled from whole maps, so two-stage detectors keep theirs; so do other necks than mmdet's plain FPN.
    """
    norm = neck.get("norm_cfg") or {"type": None}
    if plain_type(neck) == "FPN" and norm["type"] in SITEWISE and neck.get("conv_cfg") is None:
        neck.update(type=neck["type"].replace("FPN", "QueryFPN"), later=start)


def _refine_anchors(head: dict[str, Any]) -> None:
    generator = {**(head.get("anchor_generator") or _RETINA_ANCHORS)}
    # The scales are multiples of the stride, so the finer level's anchors are half as large.
    for key in ("strides", "base_sizes"):
        if generator.get(key):
            generator[key] = [_half(generator[key][0]), *generator[key]]
    head["anchor_generator"] = generator


def _refine_points(head: dict[str, Any]) -> None:
    strides = head.get("strides") or _POINT_STRIDES
    head["strides"] = [_half(strides[0]), *strides]
    (low, high), *rest = head.get("regress_ranges") or _RANGES
    head["regress_ranges"] = [(low, high / 2), (high / 2, high), *map(tuple, rest)]


def _half(value: Any) -> Any:
    return [_half(item) for item in value] if isinstance(value, (list, tuple)) else value // 2


def _levels(head: Mapping[str, Any]) -> list[str]:
    generator = head.get("anchor_generator") or {}
    default = {"RetinaHead": _RETINA_ANCHORS["strides"], "FCOSHead": _POINT_STRIDES, "RPNHead": _RPN_STRIDES}
    strides = generator.get("strides") or head.get("strides") or default[head.get("base_type", head["type"])]
    widths = (stride[0] if isinstance(stride, (list, tuple)) else stride for stride in strides)
    return [f"P{round(math.log2(width))}" for width in widths]


def _beta(values: Mapping[str, Any], count: int) -> list[float]:
    """Weights of the levels' losses, the finest level first."""
    if values["beta"] == "linear":
        step = (values["beta_max"] - 1) / max(count - 1, 1)
        return [1 + index * step for index in range(count)]
    if values["beta"] == "code":
        return [CODE_BETA[min(index, len(CODE_BETA) - 1)] for index in range(count)]
    return [1.0] * count
