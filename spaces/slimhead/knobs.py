"""Knobs of SlimHead (section 3.2 and tables 1 to 3 of the paper)."""

from __future__ import annotations

from spaces.base import BaseFacts
from spaces.family import Family
from spaces.knob import Choice, Condition, Float, Knob, Subset


def knobs(base: BaseFacts) -> tuple[Knob, ...]:
    """Gives the knobs for the pyramid of ``base``."""
    indices = tuple(range(len(base.strides)))
    by_name: dict[object, tuple[int, ...]] = {level: (index,) for index, level in enumerate(base.levels)}
    # The paper's K: all levels up to P_K (equation 2).
    by_prefix = {f"K{level[1:]}": indices[: index + 1] for index, level in enumerate(base.levels)}
    return (
        Subset(
            name="levels",
            when="architecture",
            help=f"pyramid levels to slim, by index from the finest ({', '.join(base.levels)})",
            default=(0,),
            elements=indices,
            among=indices,
            shorthand={**by_name, **by_prefix},
        ),
        Float(
            name="ratio",
            when="architecture",
            help="side length of a slimmed level as a share of its own",
            default=0.5,
            low=0.1,
            high=1.0,
            step=0.05,
            active=(Condition("levels", "nonempty"),),
        ),
        Choice(
            name="mode",
            when="architecture",
            help="interpolation; maxpool shrinks by adaptive max-pooling and restores by nearest",
            default="nearest",
            choices=("nearest", "bilinear", "maxpool"),
            active=(Condition("ratio", "below", 1.0),),
        ),
    )


FAMILY = Family(
    name="slimhead",
    title="Run the towers of shallow levels at reduced size, restore before the predictions",
    paper="Efficient Multi-Level Learning for Dense Object Detection (SlimHead)",
    heads=("GFLHead", "ATSSHead", "RetinaHead", "FCOSHead"),
    knobs=knobs,
    off=(Condition("levels", "equals", ()), Condition("ratio", "equals", 1.0)),
)
