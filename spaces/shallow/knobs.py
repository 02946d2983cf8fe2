"""Knobs of the level-wise head designs that SlimHead is compared with (its appendix A.2, figures 7 and 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces.base import BaseFacts
from spaces.family import Family
from spaces.knob import Choice, Condition, Float, Knob, Subset

# Heads with two towers that run level by level. Not TOODHead, whose task decomposition reads the features of every
# layer of its one tower, and not RPNHead, which has one convolution.
HEADS = (
    "GFLHead", "ATSSHead", "RetinaHead", "FCOSHead", "PAAHead", "VFNetHead", "AutoAssignHead", "DDODHead",
    "CondInstBboxHead", "BoxInstBboxHead",
)  # fmt: skip


def knobs(base: BaseFacts) -> tuple[Knob, ...]:
    """Gives the knobs for the pyramid and the towers of ``base``."""
    indices = tuple(range(len(base.strides)))
    by_name: dict[object, tuple[int, ...]] = {level: (index,) for index, level in enumerate(base.levels)}
    # The K of SlimHead: all levels up to P_K.
    by_prefix = {f"K{level[1:]}": indices[: index + 1] for index, level in enumerate(base.levels)}
    full = base.tower_convs
    # With two convolutions, one fewer on each level and one on each level are the same.
    gradual = ("gradual",) if full > 2 else ()
    depths = ("all", *gradual, *range(full - 1, 0, -1))
    return (
        Subset(
            name="levels",
            when="architecture",
            help=f"pyramid levels with reduced towers, by index from the finest ({', '.join(base.levels)})",
            default=indices[:2],
            elements=indices,
            among=indices,
            shorthand={**by_name, **by_prefix},
        ),
        Choice(
            name="layers",
            when="architecture",
            help="convolutions in their towers: all, a number, or gradual (one fewer with each finer level)",
            default="all",
            choices=depths,
            active=(Condition("levels", "nonempty"),),
        ),
        Float(
            name="channels",
            when="architecture",
            help="channels between the convolutions of their towers, as a share of the base's",
            default=0.5,
            low=0.25,
            high=1.0,
            step=0.25,
            # A single convolution has nothing between: it reads the pyramid's channels and writes the predictions'.
            active=(Condition("layers", "in", tuple(depth for depth in depths if depth != 1)),),
        ),
    )


def illegal(values: Mapping[str, Any], base: BaseFacts) -> str | None:
    """Says why ``values`` cannot be built on ``base``, or are another spelling of a design."""
    full = base.tower_convs
    if full < 2:
        return f"needs towers of 2 convolutions or more to take from, but {base.head} has {full}."
    if values["layers"] == "gradual" and len(values["levels"]) == 1:
        return f"layers: gradual needs two levels or more; for {base.levels[values['levels'][0]]} alone say {full - 1}."
    return None


def clash(design: Mapping[str, Mapping[str, Any]], base: BaseFacts) -> str | None:
    """Says why the values of all families together make no sense."""
    values, placement = design["shallow"], design.get("dcn", {}).get("placement", ())
    if len(values["levels"]) < len(base.strides) or values["layers"] == "all":
        return None
    # All towers are reduced, the coarsest level's least.
    depth = base.tower_convs - 1 if values["layers"] == "gradual" else int(values["layers"])
    lost = [element for element in placement if int(element.partition(".")[2]) >= depth]
    if not lost:
        return None
    return f"no level has more than {depth} convolutions in a tower, but dcn.placement names {', '.join(lost)}."


FAMILY = Family(
    name="shallow",
    title="Fewer channels or fewer convolutions in the towers of shallow levels",
    paper="Efficient Multi-Level Learning for Dense Object Detection (SlimHead), appendix A.2",
    heads=HEADS,
    knobs=knobs,
    off=(
        Condition("levels", "equals", ()),
        (Condition("layers", "equals", "all"), Condition("channels", "equals", 1.0)),
    ),
    illegal=illegal,
    conflicts={"slimhead": "both lighten the same shallow levels; the paper compares them as alternatives (figure 8)"},
    clash=clash,
)
