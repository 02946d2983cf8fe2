"""Knobs of key-part box heads (sections 3.2 and 3.3, tables 1 and 2, and the settings of appendix 5.3)."""

from __future__ import annotations

from dataclasses import dataclass

from spaces.base import BOX_HEADS, BaseFacts
from spaces.errors import choices
from spaces.family import Family
from spaces.knob import Choice, Condition, Float, Knob

# RoI heads that pool, call the box head once and ask it for loss and targets, box branch by box branch.
ROI_HEADS = ("StandardRoIHead", "CascadeRoIHead", "DynamicRoIHead", "MaskScoringRoIHead", "PointRendRoIHead")
POSITION_SENSITIVE = "RFCNBBoxHead"
CONFIDENCES = ("tmr", "linear", "sigmoid", "softmax")
LOSSES = ("both", "discriminative", "uniqueness", "none")
_TRAINED = Condition("losses", "in", LOSSES[:3])


@dataclass(frozen=True)
class _Setting:
    """The paper's setting for an architecture (appendix 5.3)."""

    parts: int
    grid: int
    blocks: int = 2
    num_fcs: int = 1


def _setting(base: BaseFacts) -> _Setting:
    if base.roi and base.roi.shared:
        return _Setting(parts=4, grid=3, blocks=4)
    if base.roi and POSITION_SENSITIVE in base.roi.heads:
        return _Setting(parts=16, grid=3, num_fcs=0)
    return _Setting(parts=16, grid=5)


def knobs(base: BaseFacts) -> tuple[Knob, ...]:
    """Gives the knobs, with the defaults that the paper has for the architecture of ``base``."""
    paper = _setting(base)
    stages = " of the first stage, one more in each further one" if base.roi and len(base.roi.heads) > 1 else ""
    return (
        Choice(
            name="parts",
            when="architecture",
            help="K: key parts of an object, each a place of the RoI map with all its channels",
            default=paper.parts,
            choices=tuple(range(1, 33)),
            proposed=(1, 2, 4, 8, 16, 32),
        ),
        Choice(
            name="grid",
            when="architecture",
            help="L: side in sites of the pooled map of the global branch; 0: no global branch",
            default=paper.grid,
            choices=tuple(range(8)),
            proposed=(1, 3, 5, 7),
        ),
        Choice(
            name="order",
            when="architecture",
            help="the global branch pools, then reduces channels (equation 9), or the other way round",
            default="pool_first",
            choices=("pool_first", "reduce_first"),
            proposed=("pool_first",),
            active=(Condition("grid", "above", 0),),
        ),
        Choice(
            name="blocks",
            when="architecture",
            help=f"concentration blocks{stages}; 0: none",
            default=paper.blocks,
            choices=(0, 1, 2, 3, 4),
            proposed=(0, 2, 4),
        ),
        Choice(
            name="num_fcs",
            when="architecture",
            help="fully connected layers before the two predictions",
            default=paper.num_fcs,
            choices=(0, 1, 2),
        ),
        Choice(
            name="losses",
            when="training",
            help="losses that key parts learn from: discriminative (equation 6), uniqueness (7), both or none",
            default="both",
            choices=LOSSES,
            proposed=("both",),
        ),
        Float(
            name="loss_weight",
            when="training",
            help="weight of these losses, which are means over RoIs and parts",
            default=0.03,
            low=0.01,
            high=1.0,
            active=(_TRAINED,),
        ),
        Choice(
            name="confidence",
            when="training",
            help="what the losses see of a confidence map: truncated maximum regularisation (equation 4) or its rivals",
            default="tmr",
            choices=CONFIDENCES,
            proposed=("tmr",),
            active=(_TRAINED,),
        ),
    )


def refuses(base: BaseFacts) -> str | None:
    """Says why no key-part head can stand in the RoI head of ``base``."""
    roi = base.roi
    if roi is None:
        return None
    if roi.kind not in ROI_HEADS:
        return f"works in the RoI heads {choices(ROI_HEADS, 'and')}, but the base {base.detector} has {roi.kind}."
    if roi.shared not in (None, "ResLayer"):
        return f"replaces a shared head of type ResLayer, but the base {base.detector} has {roi.shared}."
    if roi.shared and base.detector != "FasterRCNN":
        return f"replaces the shared head, which {base.detector} needs for more than boxes; FasterRCNN does not."
    return None


FAMILY = Family(
    name="keyparts",
    title="Box heads on automatically discovered key parts",
    paper="Condensing Two-stage Detection with Automatic Object Key Part Discovery (2020)",
    box_heads=BOX_HEADS,
    knobs=knobs,
    refuses=refuses,
)
