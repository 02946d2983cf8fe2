"""Knobs of deformable convolutions in the towers (SlimHead table 3, DDOD section 3.3 and its table of positions)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces.base import BaseFacts
from spaces.family import Family
from spaces.knob import Choice, Condition, Knob, Subset


def knobs(base: BaseFacts) -> tuple[Knob, ...]:
    """Gives the knobs for towers as deep as those of ``base``."""
    positions = range(base.tower_convs)
    elements = tuple(f"{branch}.{position}" for branch in ("cls", "reg") for position in positions)
    both: dict[str, tuple[str, ...]] = {str(position): (f"cls.{position}", f"reg.{position}") for position in positions}
    both |= {branch: tuple(f"{branch}.{position}" for position in positions) for branch in ("cls", "reg")}
    first_two = tuple(element for element in elements if element.endswith((".0", ".1")))
    return (
        Subset(
            name="placement",
            when="architecture",
            help="tower convolutions that are deformable, cls.0 being the first of the classification branch",
            default=first_two,
            elements=elements,
            among=elements,
            shorthand=both,
        ),
        Choice(
            name="version",
            when="architecture",
            help="1: offsets (Dai et al. 2017); 2: offsets and a mask (Zhu et al. 2019)",
            default=2,
            # Version 1 cannot have a bias in mmcv, and towers without a norm have one.
            choices=(2,) if base.tower_bias else (2, 1),
            active=(Condition("placement", "nonempty"),),
        ),
    )


def illegal(values: Mapping[str, Any], base: BaseFacts) -> str | None:
    """Says why ``values`` cannot be built on ``base``."""
    if values.get("version") == 1 and base.tower_bias:
        return f"version 1 has no bias, but the tower convolutions of {base.head} have one; use version 2."
    return None


FAMILY = Family(
    name="dcn",
    title="Deformable convolutions at chosen positions of the towers",
    paper="Deformable ConvNets (v1, v2), placed as in SlimHead and DDOD",
    heads=("GFLHead", "ATSSHead", "RetinaHead", "FCOSHead"),
    knobs=knobs,
    off=(Condition("placement", "equals", ()),),
    illegal=illegal,
    export_limits={"onnx": "mmcv's deformable convolution has no ONNX form here"},
)
