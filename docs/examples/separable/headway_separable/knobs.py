"""Knobs of depthwise-separable towers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces.base import HEADS, BaseFacts
from spaces.errors import choices
from spaces.family import Family
from spaces.knob import Choice, Condition, Knob, Subset


def knobs(base: BaseFacts) -> tuple[Knob, ...]:
    """Gives the knobs for the towers of ``base``, leaving out what is deformable in the base itself."""
    elements = tuple(
        f"{branch}.{position}"
        for branch in base.branches
        for position in range(base.tower_convs)
        if f"{branch}.{position}" not in base.deformed
    )
    shorthand: dict[object, tuple[str, ...]] = {}
    for element in elements:
        for word in element.split("."):
            shorthand[word] = (*shorthand.get(word, ()), element)
    return (
        Subset(
            name="placement",
            when="architecture",
            help=f"tower convolutions that are separable, {base.branches[0]}.0 being the first of its tower",
            default=elements,
            elements=elements,
            among=elements,
            shorthand=shorthand,
        ),
        Choice(
            name="kernel",
            when="architecture",
            help="side of the depthwise kernel",
            default=3,
            choices=(3, 5),
            active=(Condition("placement", "nonempty"),),
        ),
    )


def clash(design: Mapping[str, Mapping[str, Any]], base: BaseFacts) -> str | None:
    """Says why the values of all families together make no sense."""
    own = set(design["separable"]["placement"])
    for family, knob in (("dcn", "placement"), ("pod", "towers")):
        both = sorted(own.intersection(design.get(family, {}).get(knob, ())))
        if both:
            return f"placement: {choices(both, 'and')} cannot be separable and in {family}.{knob} at once."
    return None


FAMILY = Family(
    name="separable",
    title="Depthwise-separable convolutions at chosen positions of the towers",
    paper="MobileNets (Howard et al. 2017), in the towers as in NanoDet",
    # The others have one tower, or one convolution.
    heads=tuple(head for head in HEADS if head not in ("TOODHead", "RPNHead")),
    knobs=knobs,
    off=(Condition("placement", "equals", ()),),
    conflicts={
        "querydet": "its sparse convolutions read plain 3x3 neighbourhoods",
        "shallow": "it gives some levels towers of their own, made of plain convolutions",
    },
    clash=clash,
)
