"""Knobs of QueryDet (sections 3.2 and 3.3 of the paper, its tables 3 to 6 and 9)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from spaces.base import BaseFacts
from spaces.errors import choices
from spaces.family import ExportLimit, Family
from spaces.knob import Choice, Condition, Float, Integer, Knob
from spaces.querydet.patch import SITEWISE

METHODS = ("sparse", "crop", "full")
_QUERIES = Condition("threshold", "nonempty")


def knobs(base: BaseFacts) -> tuple[Knob, ...]:
    """Gives the knobs for the pyramid of ``base``; none where no level could query a finer one."""
    doubling = all(coarse == 2 * fine for fine, coarse in pairwise(base.strides))
    starts = base.levels if base.finer else base.levels[1:]
    if not starts or not doubling:
        return ()
    return (*_architecture(base, starts), *_training(), *_inference(base))


def _architecture(base: BaseFacts, starts: tuple[str, ...]) -> tuple[Knob, ...]:
    depth = Choice(
        name="rpn_convs",
        when="architecture",
        help="3x3 convolutions of the RPN before its branches (the paper's RPN has 3)",
        default=3,
        choices=tuple(dict.fromkeys((3, base.tower_convs))),
    )
    return (
        Choice(
            name="p2",
            when="architecture",
            help="add the next finer level to the pyramid (P2 below P3)",
            default=bool(base.finer),
            choices=(True, False) if base.finer else (False,),
        ),
        Choice(
            name="start",
            when="architecture",
            help="level whose queries start the cascade; it and all coarser ones are dense",
            default="P4" if "P4" in starts else starts[min(1, len(starts) - 1)],
            choices=starts,
        ),
        *((depth,) if base.part == "rpn_head" else ()),
    )


def _training() -> tuple[Knob, ...]:
    return (
        Choice(
            name="beta",
            when="training",
            help="weights of the levels' losses: linear from 1 at the finest, the reference code's list, or none",
            default="linear",
            choices=("linear", "code", "none"),
        ),
        Float(
            name="beta_max",
            when="training",
            help="weight of the coarsest level's loss; the finest has 1",
            default=3.0,
            low=1.2,  # 1 is beta none
            high=4.0,
            step=0.2,
            active=(Condition("beta", "equals", "linear"),),
        ),
        Float(
            name="query_weight",
            when="training",
            help="weight of the query loss, a mean over each querying level's sites",
            default=10.0,
            low=1.0,
            high=20.0,
            step=1.0,
        ),
        Float(
            name="gamma",
            when="training",
            help="focusing exponent of the query head's focal loss",
            default=1.2,
            low=1.0,
            high=3.0,
            step=0.1,
        ),
        Float(
            name="alpha",
            when="training",
            help="weight of positive sites in the query head's focal loss, negative ones having 1 - alpha",
            default=0.25,
            low=0.05,
            high=0.95,
            step=0.05,
        ),
        Choice(
            name="radius",
            when="training",
            help="sites nearer to a small object's centre than this are positive: the level's scale, or the object's",
            default="level",
            choices=("level", "object"),
        ),
    )


def _inference(base: BaseFacts) -> tuple[Knob, ...]:
    methods = METHODS if exact(base) else ("full",)
    threshold = Float(
        name="threshold",
        when="inference",
        help="query score above which a site is looked at on the next finer level; 0 computes every site",
        default=0.15,
        low=0.0,
        high=0.5,
        step=0.05,
        sweep=(0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    )
    method = Choice(
        name="method",
        when="inference",
        help="how the queried sites are computed: sparse convolution, cropped patches, or the full map",
        default=methods[0],
        choices=methods,
        sweep=methods[:1],
        active=(_QUERIES,),
    )
    context = Integer(
        name="context",
        when="inference",
        help="sites around a queried one, in each direction, that the sparse convolutions see (2: a patch of 5x5)",
        default=2,
        low=0,
        high=5,
        sweep=(2,),
        active=(Condition("method", "equals", "sparse"),),
    )
    return (threshold, method, context) if exact(base) else (threshold, method)


def exact(base: BaseFacts) -> bool:
    """Whether a site's result depends on a fixed neighbourhood only, so that it can be computed alone."""
    return base.tower_norm in SITEWISE and not base.deformed


def illegal(values: Mapping[str, Any], base: BaseFacts) -> str | None:
    """Says why ``values`` cannot be built on ``base``."""
    if not values["p2"] and values["start"] == base.levels[0]:
        return (
            f"start {values['start']} has no finer level to query without p2; "
            f"set p2 to true, or start to {choices(base.levels[1:])}."
        )
    return None


def clash(design: Mapping[str, Mapping[str, Any]], base: BaseFacts) -> str | None:
    """Says why the families' values make no sense together."""
    reweight = design.get("ddod", {}).get("reweight", "none")
    beta = design["querydet"]["beta"]
    if reweight != "none" and beta != "none":
        return f"beta {beta} and ddod.reweight {reweight} both weight the levels' losses; set one of them to none."
    return None


FAMILY = Family(
    name="querydet",
    title="A finer pyramid level, computed only where coarser levels expect small objects",
    paper="QueryDet: Cascaded Sparse Query for Accelerating High-Resolution Small Object Detection (CVPR 2022)",
    heads=("RetinaHead", "FCOSHead", "RPNHead"),
    knobs=knobs,
    illegal=illegal,
    conflicts={
        "slimhead": "its towers run on shrunken maps of a level, where the queried sites do not exist",
        "shallow": "its levels take turns in one pass from the finest, queries go level by level from the coarsest",
        "dcn": "deformable convolutions read anywhere, the sparse passes only fixed 3x3 neighbourhoods",
    },
    clash=clash,
    on_images=True,
    export_limits=(
        ExportLimit(
            format="onnx",
            when=(Condition("method", "equals", "sparse"),),
            reason="its convolutions run on the sites that each image asks for and see zeros around them, which no "
            "ONNX operator does; methods full and crop, and threshold 0, have a graph of dense maps",
        ),
    ),
)
