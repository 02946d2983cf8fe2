"""Knobs of DDOD's training (sections 4.1 and 4.3 of the paper, tables 5 and 7)."""

from __future__ import annotations

from spaces.base import BaseFacts
from spaces.family import Family
from spaces.knob import Choice, Condition, Float, Integer, Knob

_ASSIGNED = (Condition("assign", "equals", True),)


def knobs(base: BaseFacts) -> tuple[Knob, ...]:
    """Gives the knobs, the same for every base."""
    alphas = {"alpha_cls": ("classification", 0.8), "alpha_reg": ("regression", 0.5)}
    return (
        Choice(
            name="assign",
            when="training",
            help="assign objects by the quality of predictions, separately for classification and regression",
            default=True,
            choices=(True, False),
        ),
        *(
            Float(
                name=name,
                when="training",
                help=f"share of IoU, against score, in the matching quality of the {branch} branch",
                default=default,
                low=0.0,
                high=1.0,
                step=0.05,
                active=_ASSIGNED,
            )
            for name, (branch, default) in alphas.items()
        ),
        Integer(
            name="topk",
            when="training",
            help="candidate sites of each object on each level, nearest first",
            default=9,
            low=1,
            high=27,
            active=_ASSIGNED,
        ),
        Choice(
            name="reweight",
            when="training",
            help="how the losses of a pyramid level are weighted: by its place (linear) or by its positives",
            default="interpolate",
            choices=("none", "linear", "sum", "interpolate"),
        ),
        Choice(
            name="cumulative",
            when="training",
            help="count positives since training began, instead of those of the batch",
            default=True,
            choices=(True, False),
            # The weights of linear are constants, so their average over time is them.
            active=(Condition("reweight", "in", ("sum", "interpolate")),),
        ),
        Float(
            name="span",
            when="training",
            help="largest weight of a level; the smallest is 1",
            default=2.0,
            low=1.1,
            high=3.0,
            step=0.1,
            active=(Condition("reweight", "in", ("linear", "sum", "interpolate")),),
        ),
    )


FAMILY = Family(
    name="ddod",
    title="Assign objects separately for classification and regression, weight losses by pyramid level",
    paper="Disentangle Your Dense Object Detector (DDOD), 2021",
    heads=("GFLHead", "ATSSHead", "RetinaHead", "FCOSHead"),
    knobs=knobs,
    off=((Condition("assign", "equals", False), Condition("reweight", "equals", "none")),),
)
