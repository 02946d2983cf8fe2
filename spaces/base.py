"""What families need to know of a base, read from its config without building it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spaces.errors import UserError


@dataclass(frozen=True)
class BaseFacts:
    """The dense head of a base detector.

    Attributes:
        detector: Type of the detector, ``GFL`` for instance.
        head: Type of its dense head, ``GFLHead`` for instance.
        strides: Stride in px of each pyramid level that the head sees, finest first.
        tower_convs: Stacked convolutions of each of the two branches.
        tower_bias: Whether the tower convolutions have a bias (they do where no norm follows).
    """

    detector: str
    head: str
    strides: tuple[int, ...]
    tower_convs: int
    tower_bias: bool

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels by stride: ``P3`` is stride 8."""
        return tuple(f"P{round(math.log2(stride))}" for stride in self.strides)


def facts(model: Mapping[str, Any], who: str = "base") -> BaseFacts:
    """Reads the facts of a detector from the ``model`` part of its config.

    Raises:
        UserError: The detector has no dense head with conv towers over a pyramid.
    """
    detector = str(model.get("type", "?"))
    head = model.get("bbox_head")
    if not isinstance(head, Mapping) or "type" not in head:
        raise UserError(
            f"{who}: must be a one-stage detector with a dense head (model.bbox_head), but got {detector} without one."
        )
    if head["type"] == "ComposedHead":
        raise UserError(f"{who}: is already the result of 'headway patch'; give the config that it was made from.")
    strides = _strides(head)
    if not strides:
        raise UserError(
            f"{who}: must have a dense head over a pyramid with strides, "
            f"but {head['type']} of {detector} names none (anchor_generator.strides or strides)."
        )
    convs = int(head.get("stacked_convs", 4))
    if convs < 1:
        raise UserError(
            f"{who}: must have a dense head with conv towers, but {head['type']} has {convs} stacked_convs."
        )
    norm = head.get("norm_cfg", _DEFAULT_NORM.get(str(head["type"])))
    bias = head.get("conv_bias", "auto")
    return BaseFacts(
        detector=detector,
        head=str(head["type"]),
        strides=strides,
        tower_convs=convs,
        tower_bias=(norm is None) if bias == "auto" else bool(bias),
    )


# mmdet's defaults where a config does not say (signatures of GFLHead, ATSSHead and FCOSHead).
_GROUP_NORM = {"type": "GN", "num_groups": 32}
_DEFAULT_NORM: Mapping[str, Any] = {"GFLHead": _GROUP_NORM, "ATSSHead": _GROUP_NORM, "FCOSHead": _GROUP_NORM}
_DEFAULT_STRIDES: Mapping[str, Sequence[int]] = {"FCOSHead": (4, 8, 16, 32, 64)}


def _strides(head: Mapping[str, Any]) -> tuple[int, ...]:
    anchors = head.get("anchor_generator") or {}
    given = anchors.get("strides") or head.get("strides") or _DEFAULT_STRIDES.get(str(head["type"]), ())
    return tuple(int(stride[0] if isinstance(stride, (list, tuple)) else stride) for stride in given)
