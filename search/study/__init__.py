"""The study file as typed data; the one place where a user's input is checked.

- ``figures``: the metrics it may name, and bounds on those known before training.
- ``sections``: its keys, their types, defaults and rules.
- ``mistakes``: words what breaks them.
- ``loading``: reads it, with what the command line overrides.
"""

from search.study.figures import ACCURACIES, COSTS, Constraint
from search.study.loading import build, load, parse, parse_assignment
from search.study.sections import ResourcesSection, SamplerSection, SplitSection, Study

__all__ = [
    "ACCURACIES",
    "COSTS",
    "Constraint",
    "ResourcesSection",
    "SamplerSection",
    "SplitSection",
    "Study",
    "build",
    "load",
    "parse",
    "parse_assignment",
]
