"""Knobs of learned dilations (sections 3.1 to 3.3 of POD, its tables 2 to 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces.base import BACKBONES, BaseFacts
from spaces.errors import choices
from spaces.family import Family
from spaces.knob import Choice, Condition, Knob, Number, Subset, Table
from spaces.pod.scales import LARGEST, stage_of, stage_paths, tower_element, tower_path

_LEARNED = (Condition("mode", "in", ("decompose", "learn")),)
_DECOMPOSED = (Condition("mode", "in", ("decompose", "fixed")),)
_BOTH = (Condition("mode", "equals", "decompose"),)


def knobs(base: BaseFacts) -> tuple[Knob, ...]:
    """Gives the knobs for the backbone and the towers of ``base``, leaving out what the base itself deforms."""
    return (
        Choice(
            name="mode",
            when="architecture",
            help="learn scales and keep them (learn), or then decompose them; or decompose given ones (fixed)",
            default="decompose",
            choices=("decompose", "learn", "fixed", "off"),
            # The learning network is slower than the base, and given scales are for who has some.
            proposed=("decompose",),
        ),
        _stages(base),
        _towers(base),
        Number(
            name="tolerance",
            when="architecture",
            help="a scale nearer to an integer than this becomes that integer",
            default=0.05,
            low=0.0,
            high=0.5,
            choices=(0.05,),
            active=_DECOMPOSED,
        ),
        Choice(
            name="round_channels",
            when="architecture",
            help="split channels at a multiple of this; 16 is what vector instructions like",
            default=1,
            choices=(1, 16),
            active=_DECOMPOSED,
        ),
        Choice(
            name="zero_taps",
            when="architecture",
            help="what a dilation of 0 leaves of three taps: the one in the middle, or their sum (which is exact)",
            default="centre",
            choices=("centre", "sum"),
            proposed=("centre",),
            active=_DECOMPOSED,
        ),
        Table(
            name="scales",
            when="architecture",
            help="scales [d_h, d_w] by convolution; those left out keep the base's dilation",
            default=(),
            names=paths(base),
            width=2,
            high=LARGEST,
            active=(Condition("mode", "equals", "fixed"),),
        ),
        Choice(
            name="transfer",
            when="training",
            help="start the decomposed network from the learning network's weights",
            default=True,
            choices=(True, False),
            proposed=(True,),
            active=_BOTH,
        ),
        Number(
            name="learn_share",
            when="training",
            help="share of the epochs in which the scales are learned",
            default=0.5,
            low=0.05,
            high=0.95,
            choices=(0.5,),
            active=_BOTH,
        ),
    )


def _stages(base: BaseFacts) -> Subset:
    elements = _free_stages(base)
    default = tuple(stage for stage in elements if stage >= 3)
    deformed = [f"conv{stage}" for stage in base.backbone.deformed] if base.backbone else []
    return Subset(
        name="stages",
        when="architecture",
        help="stages of the backbone whose 3x3 convolutions learn a scale, as the papers count: 3 is conv3",
        default=default,
        elements=elements,
        among=default,  # in conv2 "it is meaningless" (section 3.1)
        min_size=min(1, len(default)),
        shorthand={f"conv{stage}": (stage,) for stage in elements},
        note=f"The base itself deforms {choices(deformed, 'and')}." if deformed else "",
        active=_LEARNED,
    )


def _towers(base: BaseFacts) -> Subset:
    elements = _free_towers(base)
    shorthand: dict[Any, tuple[str, ...]] = {}
    for element in elements:
        for word in element.split("."):
            shorthand[word] = (*shorthand.get(word, ()), element)
    return Subset(
        name="towers",
        when="architecture",
        help=f"tower convolutions that learn a scale, {base.branches[0]}.0 being the first of its tower",
        default=(),
        elements=elements,
        among=(),  # the paper has backbones only
        min_size=0,
        shorthand=shorthand,
        note=f"The base itself deforms {choices(base.deformed, 'and')}." if base.deformed else "",
        active=_LEARNED,
    )


def _free_stages(base: BaseFacts) -> tuple[int, ...]:
    backbone = base.backbone
    return tuple(stage for stage in backbone.stages if stage not in backbone.deformed) if backbone else ()


def _free_towers(base: BaseFacts) -> tuple[str, ...]:
    every = (f"{branch}.{position}" for branch in base.branches for position in range(base.tower_convs))
    return tuple(element for element in every if element not in base.deformed)


def paths(base: BaseFacts) -> tuple[str, ...]:
    """Names the convolutions that may have a scale, by their path in the detector: backbone first, in its order."""
    found: list[str] = []
    if base.backbone is not None:
        for stage in _free_stages(base):
            blocks, shared = base.backbone.blocks[stage - 2], stage == base.backbone.shared_stage
            found += stage_paths(stage, blocks, base.backbone.basic, shared)
    found += (tower_path(element, base.part, base.tower_convs) for element in _free_towers(base))
    return tuple(found)


def illegal(values: Mapping[str, Any], base: BaseFacts) -> str | None:
    """Says what ``values`` lack."""
    if values["mode"] == "fixed" and not values["scales"]:
        return "scales: must name at least one convolution with mode fixed; mode decompose learns them."
    return None


def clash(design: Mapping[str, Mapping[str, Any]], base: BaseFacts) -> str | None:
    """Says why the families' values make no sense together."""
    values = design["pod"]
    who = "scales" if values["mode"] == "fixed" else "towers"
    given = [path for path, *_ in values.get("scales", ())]
    towers = [*values.get("towers", ()), *filter(None, map(tower_element, given))]
    deformed = [element for element in towers if element in design.get("dcn", {}).get("placement", ())]
    if deformed:
        return f"{who}: {choices(deformed, 'and')} cannot be deformable (dcn.placement) and dilated at once."
    if towers and "querydet" in design:
        return (
            f"{who}: must leave the towers out with querydet, whose sparse convolutions read fixed 3x3 neighbourhoods."
        )
    if towers and "shallow" in design:
        return f"{who}: must leave the towers out with shallow, which gives some levels towers of their own."
    stage = base.backbone.shared_stage if base.backbone else None
    if "keyparts" in design and stage is not None:
        if stage in values.get("stages", ()):
            return f"stages: must leave out {stage} with keyparts, whose heads take the place of conv{stage}."
        if stage in map(stage_of, given):
            return f"scales: must leave out conv{stage} with keyparts, whose heads take its place."
    return None


FAMILY = Family(
    name="pod",
    title="Dilations of 3x3 convolutions, learned and then decomposed into fixed integers",
    paper="POD: Practical Object Detection with Scale-Sensitive Network (ICCV 2019)",
    backbones=BACKBONES,
    knobs=knobs,
    off=(
        Condition("mode", "equals", "off"),
        (Condition("stages", "equals", ()), Condition("towers", "equals", ())),
    ),
    illegal=illegal,
    clash=clash,
    kept_back=(Condition("mode", "equals", "learn"),),
    learns=_BOTH,
)
