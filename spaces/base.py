"""What families need to know of a base, read from its config without building it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spaces.errors import UserError, choices


@dataclass(frozen=True)
class RoiFacts:
    """The box heads of a two-stage detector.

    Attributes:
        kind: Type of the RoI head: ``StandardRoIHead``, ``CascadeRoIHead`` or ``MaskRoIHead`` for instance.
        heads: Type of the box head of each stage; one where there are no stages.
        channels: Channels of the maps that RoIs are pooled from.
        shared: Type of the shared head between pooling and box head (``ResLayer``, the fifth stage, of C4 detectors);
            ``None`` without one.
    """

    kind: str
    heads: tuple[str, ...]
    channels: int
    shared: str | None = None


@dataclass(frozen=True)
class BackboneFacts:
    """The backbone of a base detector, where it is of ResNet's kin.

    Attributes:
        kind: Type of the backbone, ``ResNet`` for instance.
        blocks: Residual blocks of each stage from ``conv2`` on; of a C4 detector the fifth stage too, which stands in
            its RoI head.
        basic: Whether blocks are basic (two 3x3 convolutions) and not bottlenecks (one).
        deformed: Stages, counted as the papers do (3 is ``conv3``), that are deformable in the base itself.
        shared_stage: The stage that stands in the RoI head as ``shared_head``: 5 in C4 detectors, else ``None``.
    """

    kind: str
    blocks: tuple[int, ...]
    basic: bool
    deformed: tuple[int, ...] = ()
    shared_stage: int | None = None

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages, counted as the papers do: 2, 3, 4 and 5 where there are four."""
        return tuple(range(2, 2 + len(self.blocks)))


@dataclass(frozen=True)
class BaseFacts:
    """What a base detector is made of: its dense head (the RPN of a two-stage one), its box heads, its backbone.

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
        tower_norm: Type of the norm that follows each tower convolution, ``GN`` or ``BN`` for instance; ``None``
            without one. A group norm mixes the sites of a map, a batch norm in evaluation does not.
        roi: The box heads of a two-stage detector; ``None`` of a one-stage one.
        backbone: The backbone; ``None`` where it is not of ResNet's kin.
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
    tower_norm: str | None = None
    roi: RoiFacts | None = None
    backbone: BackboneFacts | None = None

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels by stride: ``P3`` is stride 8."""
        return tuple(f"P{round(math.log2(stride))}" for stride in self.strides)


def dense_part(model: Mapping[str, Any]) -> str:
    """Says where the dense head stands in a ``model`` config: the RPN of a two-stage detector, else the box head."""
    return "rpn_head" if model.get("rpn_head") else "bbox_head"


def plain_type(part: Mapping[str, Any]) -> str:
    """Type of a part of a detector without the scope that may stand before it: ``FCOS`` for ``mmdet.FCOS``."""
    return str(part.get("type", "?")).rpartition(".")[2]


def facts(model: Mapping[str, Any], who: str = "base") -> BaseFacts:
    """Reads the facts of a detector from the ``model`` part of its config.

    Raises:
        UserError: The detector has no dense head with conv towers over a pyramid, or one of a type that is not known.
    """
    detector = plain_type(model)
    part = dense_part(model)
    head = model.get(part)
    if not isinstance(head, Mapping) or "type" not in head:
        raise UserError(
            f"{who}: must be a detector with a dense head (model.bbox_head) or an RPN (model.rpn_head), "
            f"but got {detector} without one."
        )
    kind = _kind(head)
    if kind == "ComposedHead":
        raise UserError(f"{who}: is already the result of 'headway patch'; give the config that it was made from.")
    strides = _strides(head)
    if not strides:
        raise UserError(
            f"{who}: must have a dense head over a pyramid with strides, "
            f"but {kind} of {detector} names none (anchor_generator.strides or strides)."
        )
    if kind not in (*HEADS, *ROTATED):
        raise UserError(f"{who}: must have a dense head of a known type ({choices(HEADS)}), but {detector} has {kind}.")
    depth, default_depth = _DEPTH.get(kind, ("stacked_convs", 4))
    convs = int(head.get(depth, default_depth))
    if convs < 1:
        raise UserError(f"{who}: must have a dense head with conv towers, but {kind} has {convs} {depth}.")
    branches = _BRANCHES.get(kind, ("cls", "reg"))
    norm = head.get("norm_cfg", None if kind in _BARE else _GROUP_NORM)
    bias = head.get("conv_bias", kind == "AutoAssignHead" or "auto")
    return BaseFacts(
        detector=detector,
        head=kind,
        strides=strides,
        tower_convs=convs,
        tower_bias=(not norm) if bias == "auto" else bool(bias),
        branches=branches,
        part=part,
        deformed=_deformed(head, kind, branches, convs),
        priors=_priors(head),
        finer=_finer(model.get("neck")),
        tower_norm=str(norm["type"]) if norm else None,
        roi=_roi(model.get("roi_head")),
        backbone=_backbone(model),
    )


# mmdet's names and defaults where a config does not say (signatures of the heads' classes).
HEADS = (
    "GFLHead", "ATSSHead", "RetinaHead", "FCOSHead", "TOODHead", "PAAHead", "VFNetHead", "AutoAssignHead", "DDODHead",
    "CondInstBboxHead", "BoxInstBboxHead", "RPNHead",
)  # fmt: skip
# Of mmrotate, for rotated boxes.
ROTATED = ("RotatedRetinaHead", "RotatedFCOSHead", "RotatedATSSHead", "AngleBranchRetinaHead")
# Of two-stage detectors; the last one is built in spaces/keyparts.
BOX_HEADS = ("Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "ConvFCBBoxHead", "BBoxHead", "RFCNBBoxHead")
# Residual blocks of each stage by depth (constructors of mmdet's classes), and whether they are basic ones.
_RESNETS = {
    18: ((2, 2, 2, 2), True),
    34: ((3, 4, 6, 3), True),
    50: ((3, 4, 6, 3), False),
    101: ((3, 4, 23, 3), False),
    152: ((3, 8, 36, 3), False),
}
BACKBONES = ("ResNet", "ResNetV1d", "ResNeXt")
_GROUP_NORM = {"type": "GN", "num_groups": 32}
_BARE = ("RetinaHead", "RPNHead", "RotatedRetinaHead", "AngleBranchRetinaHead")
_BRANCHES = {"TOODHead": ("inter",), "RPNHead": ("rpn",)}
_DEPTH = {"RPNHead": ("num_convs", 1)}
_POINTS = {"strides": (4, 8, 16, 32, 64)}
_NINE = {"strides": (4, 8, 16, 32, 64), "ratios": (0.5, 1.0, 2.0), "scales": (8, 16, 32)}
_DEFAULT_PRIORS: Mapping[str, Mapping[str, Sequence[float]]] = {
    **dict.fromkeys(("FCOSHead", "AutoAssignHead", "CondInstBboxHead", "BoxInstBboxHead", "RotatedFCOSHead"), _POINTS),
    **dict.fromkeys(("ATSSHead", "GFLHead", "TOODHead", "PAAHead", "DDODHead", "RPNHead"), _NINE),
    "RetinaHead": {**_NINE, "strides": (8, 16, 32, 64, 128)},
    "VFNetHead": {"strides": (8, 16, 32, 64, 128)},
}


def _kind(head: Mapping[str, Any]) -> str:
    kind = plain_type(head)
    if kind == "RetinaHead" and "XYWHT" in plain_type(head.get("bbox_coder") or {}):
        # mmrotate's configs of its RetinaNet use mmdet's head, with a coder that has an angle.
        return "RotatedRetinaHead"
    return kind


def _prior_generator(head: Mapping[str, Any]) -> Mapping[str, Any]:
    if head.get("anchor_generator"):
        generator: Mapping[str, Any] = head["anchor_generator"]
        return generator
    default = _DEFAULT_PRIORS.get(_kind(head), {})
    # Heads on points name their strides themselves.
    return {"strides": head["strides"]} if head.get("strides") and default in ({}, _POINTS) else default


def _strides(head: Mapping[str, Any]) -> tuple[int, ...]:
    given = _prior_generator(head).get("strides") or ()
    return tuple(int(stride[0] if isinstance(stride, (list, tuple)) else stride) for stride in given)


def _priors(head: Mapping[str, Any]) -> int:
    generator = _prior_generator(head)
    scales = generator.get("scales") or range(int(generator.get("scales_per_octave", 1)))
    return len(generator.get("ratios", (1.0,))) * len(scales)


def _deformed(head: Mapping[str, Any], kind: str, branches: tuple[str, ...], convs: int) -> tuple[str, ...]:
    if kind == "TOODHead":
        positions: Sequence[int] = range(min(int(head.get("num_dcn", 0)), convs))
    elif kind == "DDODHead":
        positions = range(int(head.get("use_dcn", True)))
    else:
        positions = (convs - 1,) if head.get("dcn_on_last_conv") else ()
    if "DCN" in str((head.get("conv_cfg") or {}).get("type", "")):
        positions = range(convs)
    return tuple(f"{branch}.{position}" for branch in branches for position in positions)


def _finer(neck: Any) -> int:
    if not isinstance(neck, Mapping) or plain_type(neck) != "FPN":
        return 0
    return int(neck.get("start_level", 0))


def _roi(head: Any) -> RoiFacts | None:
    if not isinstance(head, Mapping) or not head.get("bbox_head"):
        return None
    stages = head["bbox_head"] if isinstance(head["bbox_head"], (list, tuple)) else [head["bbox_head"]]
    extractor = head.get("bbox_roi_extractor") or {}
    first = extractor[0] if isinstance(extractor, (list, tuple)) else extractor
    # A position-sensitive extractor reduces the maps before it pools from them; these are the maps that it takes.
    channels = first.get("in_channels", first.get("out_channels", 0))
    shared = head.get("shared_head")
    return RoiFacts(
        kind=plain_type(head),
        heads=tuple(plain_type(stage) for stage in stages),
        channels=int(channels),
        shared=plain_type(shared) if shared else None,
    )


def _backbone(model: Mapping[str, Any]) -> BackboneFacts | None:
    backbone = model.get("backbone")
    if not isinstance(backbone, Mapping) or plain_type(backbone) not in BACKBONES:
        return None
    depth = backbone.get("depth")
    if depth not in _RESNETS:
        return None
    blocks, basic = _RESNETS[depth]
    count = int(backbone.get("num_stages", 4))
    shared = (model.get("roi_head") or {}).get("shared_head") or {}
    shared_stage = int(shared.get("stage", 3)) + 2 if plain_type(shared) == "ResLayer" else None
    deformed = backbone.get("stage_with_dcn") or () if backbone.get("dcn") else ()
    return BackboneFacts(
        kind=plain_type(backbone),
        blocks=blocks[: max(count, (shared_stage or 0) - 1)],
        basic=basic,
        deformed=tuple(index + 2 for index, yes in enumerate(deformed) if yes),
        shared_stage=shared_stage,
    )
