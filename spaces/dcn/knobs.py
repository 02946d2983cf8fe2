"""Knobs of deformable convolutions in the towers (SlimHead table 3, DDOD section 3.3 and its table of positions)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces.base import HEADS, ROTATED, BaseFacts
from spaces.errors import choices
from spaces.family import Family
from spaces.knob import Choice, Condition, Knob, Subset


def knobs(base: BaseFacts) -> tuple[Knob, ...]:
    """Gives the knobs for the towers of ``base``, leaving out what is deformable in the base itself."""
    towers = {
        branch: tuple(
            f"{branch}.{position}"
            for position in range(base.tower_convs)
            if f"{branch}.{position}" not in base.deformed
        )
        for branch in base.branches
    }
    elements = tuple(element for tower in towers.values() for element in tower)
    shorthand = {
        str(position): tuple(element for element in elements if element.endswith(f".{position}"))
        for position in range(base.tower_convs)
    }
    shorthand |= towers
    return (
        Subset(
            name="placement",
            when="architecture",
            help=f"tower convolutions that are deformable, {base.branches[0]}.0 being the first of its tower",
            default=tuple(element for tower in towers.values() for element in tower[:2]),
            elements=elements,
            among=elements,
            shorthand={word: chosen for word, chosen in shorthand.items() if chosen},
            note=f"The base itself deforms {choices(base.deformed, 'and')}." if base.deformed else "",
        ),
        Choice(
            name="version",
            when="architecture",
            help="1: offsets (Dai et al. 2017); 2: offsets and a mask (Zhu et al. 2019)",
            default=2,
            # mmcv's version 1 cannot have a bias.
            choices=(2,) if base.tower_bias else (2, 1),
            note=f"Version 1 has no bias, but {_biased(base)}." if base.tower_bias else "",
            active=(Condition("placement", "nonempty"),),
        ),
    )


def illegal(values: Mapping[str, Any], base: BaseFacts) -> str | None:
    """Says why ``values`` cannot be built on ``base``."""
    if values.get("version") == 1 and base.tower_bias:
        return f"version 1 has no bias, but {_biased(base)}; use version 2."
    return None


def _biased(base: BaseFacts) -> str:
    return f"the tower convolutions of {base.head} have one"


FAMILY = Family(
    name="dcn",
    title="Deformable convolutions at chosen positions of the towers",
    paper="Deformable ConvNets (v1, v2), placed as in SlimHead and DDOD",
    heads=(*HEADS, *ROTATED),
    knobs=knobs,
    off=(Condition("placement", "equals", ()),),
    illegal=illegal,
)
