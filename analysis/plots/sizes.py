"""How large a point is drawn: by its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from analysis.labels import axis, figure
from analysis.record import TrialRecord

SIZE = "params_m"
"""The metric that the size of a point tells."""


@dataclass(frozen=True)
class Sizes:
    """Diameters by parameters, the smallest 1 and the largest 2.4.

    Attributes:
        low: Least parameters of the points drawn.
        high: Most.
    """

    low: float
    high: float

    def diameter(self, trial: TrialRecord) -> float:
        """The diameter; its square root grows evenly, as areas are what eyes compare."""
        value = trial.metrics.get(SIZE, math.nan)
        share = (value - self.low) / (self.high - self.low) if math.isfinite(value) else 0.0
        return 1 + 1.4 * math.sqrt(min(1.0, max(0.0, share)))

    @property
    def told(self) -> str:
        """What the legend says."""
        low = figure(SIZE, self.low).rpartition(" ")[0].rpartition(" ")[2]
        high = figure(SIZE, self.high).removeprefix(axis(SIZE).split(" (")[0]).strip()
        return f"point size: {axis(SIZE).split(' (')[0]}, {low} to {high}"


def sizes_of(trials: Iterable[TrialRecord]) -> Sizes | None:
    """Gives the sizes for these points, ``None`` where their parameters are unknown or all the same."""
    known = [trial.metrics[SIZE] for trial in trials if math.isfinite(trial.metrics.get(SIZE, math.nan))]
    if not known or max(known) - min(known) <= 1e-6 * max(known):
        return None
    return Sizes(min(known), max(known))
