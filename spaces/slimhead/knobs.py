"""Knobs of SlimHead (section 3.2 and tables 1 to 3 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces.base import ROTATED, BaseFacts
from spaces.errors import choices
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
        Choice(
            name="fat",
            when="architecture",
            help="restore the maps before the predictions; without, slimmed levels predict on a coarser grid",
            default=True,
            choices=(True, False),
            proposed=(True,),  # without, figure 5 loses 7.5 AP: an ablation, for a study that asks for it
            active=(Condition("ratio", "below", 1.0),),
        ),
    )


# Heads that need their maps at full size, and why.
NEED_FAT: Mapping[str, str] = {
    "TOODHead": "it lays out its boxes on the map that enters its tower",
    "VFNetHead": "its star-shaped convolution counts the distances to a box's sides in sites of one stride",
}
WITHOUT_FAT = (
    "GFLHead", "ATSSHead", "RetinaHead", "FCOSHead", "PAAHead", "AutoAssignHead", "DDODHead", "CondInstBboxHead",
    "BoxInstBboxHead", "RPNHead",
)  # fmt: skip


def illegal(values: Mapping[str, Any], base: BaseFacts) -> str | None:
    """Refuses ``fat: false`` on heads whose geometry would not follow."""
    if values.get("fat", True) or base.head in WITHOUT_FAT:
        return None
    reason = NEED_FAT.get(base.head, "its priors are not known to follow a coarser grid")
    return f"fat must be true on {base.head}: {reason}; false works on {choices(WITHOUT_FAT)}."


def clash(design: Mapping[str, Mapping[str, Any]], base: BaseFacts) -> str | None:
    """QueryDet takes positions on a level from those on the next coarser one, twice as far apart."""
    if "querydet" in design and not design["slimhead"].get("fat", True):
        return "fat must be true with querydet, which takes two sites of a level for one of the next coarser level."
    return None


FAMILY = Family(
    name="slimhead",
    title="Run the towers of shallow levels at reduced size, restore before the predictions",
    paper="Efficient Multi-Level Learning for Dense Object Detection (SlimHead)",
    heads=(*WITHOUT_FAT, *NEED_FAT, *ROTATED),
    knobs=knobs,
    off=(Condition("levels", "equals", ()), Condition("ratio", "equals", 1.0)),
    illegal=illegal,
    clash=clash,
)
