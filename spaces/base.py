"""What families need to know of a base, read from its config without building it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spaces.errors import UserError


@dataclass(frozen=True)
class BaseFacts:
    """The dense head of a base detector: that of a one-stage detector, or the RPN of a two-stage one.

    Attributes:
        detector: Type of the detector, ``GFL`` for instance.
        head: Type of its dense head, ``GFLHead`` for instance.
        strides: Stride in px of each pyramid level that the head sees, finest first.
        tower_convs: Stacked convolutions of each tower.
        tower_bias: Whether the tower convolutions have a bias (they do where no norm follows).
        branches: The towers: ``cls`` and ``reg``; ``inter``, the one tower of TOOD; ``rpn``, the one of an RPN.
        part: Where the head stands in the ``model`` config: ``bbox_head`` or ``rpn_head``.
        deformed: Tower positions that are deformable in the base itself, as ``cls.3``.
        priors: Anchors (or points) at each site.
        finer: Levels of the backbone below the finest one of the pyramid, which the neck could add.
    """

    detector: str
    head: str
    strides: tuple[int, ...]
    tower_convs: int
    tower_bias: bool
    branches: tuple[str, ...] = ("cls", "reg")
    part: str = "bbox_head"
    deformed: tuple[str, ...] = ()
    priors: int = 1
    finer: int = 0

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels by stride: ``P3`` is stride 8."""
        return tuple(f"P{round(math.log2(stride))}" for stride in self.strides)


def dense_part(model: Mapping[str, Any]) -> str:
    """Says where the dense head stands in a ``model`` config: the RPN of a two-stage detector, else the box head."""
    return "rpn_head" if model.get("rpn_head") else "bbox_head"


def facts(model: Mapping[str, Any], who: str = "base") -> BaseFacts:
    """Reads the facts of a detector from the ``model`` part of its config.

    Raises:
        UserError: The detector has no dense head with conv towers over a pyramid.
    """
    detector = str(model.get("type", "?"))
    part = dense_part(model)
    head = model.get(part)
    if not isinstance(head, Mapping) or "type" not in head:
        raise UserError(
            f"{who}: must be a detector with a dense head (model.bbox_head) or an RPN (model.rpn_head), "
            f"but got {detector} without one."
        )
    if head["type"] == "ComposedHead":
        raise UserError(f"{who}: is already the result of 'headway patch'; give the config that it was made from.")
    kind = str(head["type"])
    strides = _strides(head)
    if not strides:
        raise UserError(
            f"{who}: must have a dense head over a pyramid with strides, "
            f"but {kind} of {detector} names none (anchor_generator.strides or strides)."
        )
    depth, default_depth = _DEPTH.get(kind, ("stacked_convs", 4))
    convs = int(head.get(depth, default_depth))
    if convs < 1:
        raise UserError(f"{who}: must have a dense head with conv towers, but {kind} has {convs} {depth}.")
    branches = _BRANCHES.get(kind, ("cls", "reg"))
    norm = head.get("norm_cfg", _GROUP_NORM if kind in _NORMED else None)
    bias = head.get("conv_bias", "auto")
    return BaseFacts(
        detector=detector,
        head=kind,
        strides=strides,
        tower_convs=convs,
        tower_bias=(norm is None) if bias == "auto" else bool(bias),
        branches=branches,
        part=part,
        deformed=_deformed(head, kind, branches, convs),
        priors=_priors(head),
        finer=_finer(model.get("neck")),
    )


# mmdet's names and defaults where a config does not say (signatures of the heads' classes).
_GROUP_NORM = {"type": "GN", "num_groups": 32}
_NORMED = {
    "GFLHead", "ATSSHead", "FCOSHead", "PAAHead", "VFNetHead", "TOODHead", "DDODHead",
    "AutoAssignHead", "CondInstBboxHead", "BoxInstBboxHead",
}  # fmt: skip
_BRANCHES = {"TOODHead": ("inter",), "RPNHead": ("rpn",)}
_DEPTH = {"RPNHead": ("num_convs", 1)}
_POINTS = (4, 8, 16, 32, 64)
_DEFAULT_STRIDES: Mapping[str, Sequence[int]] = {
    "FCOSHead": _POINTS, "AutoAssignHead": _POINTS, "CondInstBboxHead": _POINTS, "BoxInstBboxHead": _POINTS,
    "VFNetHead": _POINTS, "RPNHead": _POINTS, "RetinaHead": (8, 16, 32, 64, 128),
}  # fmt: skip


def _strides(head: Mapping[str, Any]) -> tuple[int, ...]:
    anchors = head.get("anchor_generator") or {}
    given = anchors.get("strides") or head.get("strides") or _DEFAULT_STRIDES.get(str(head["type"]), ())
    return tuple(int(stride[0] if isinstance(stride, (list, tuple)) else stride) for stride in given)


def _priors(head: Mapping[str, Any]) -> int:
    anchors = head.get("anchor_generator") or {}
    scales = anchors.get("scales") or range(int(anchors.get("scales_per_octave", 1)))
    return len(anchors.get("ratios", (1.0,))) * len(scales)


def _deformed(head: Mapping[str, Any], kind: str, branches: tuple[str, ...], convs: int) -> tuple[str, ...]:
    if kind == "TOODHead":
        positions: Sequence[int] = range(int(head.get("num_dcn", 0)))
    elif kind == "DDODHead":
        positions = range(int(head.get("use_dcn", True)))
    else:
        positions = (convs - 1,) if head.get("dcn_on_last_conv") else ()
    if "DCN" in str((head.get("conv_cfg") or {}).get("type", "")):
        positions = range(convs)
    return tuple(f"{branch}.{position}" for branch in branches for position in positions)


def _finer(neck: Any) -> int:
    if not isinstance(neck, Mapping) or neck.get("type") != "FPN":
        return 0
    return int(neck.get("start_level", 0))
