"""What a plot of two objectives shows, worked out once for the page and for the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.labels import axis, counts, scaled
from analysis.pareto import front, points, speed_order
from analysis.record import Objective, TrialRecord
from analysis.thin import thin


@dataclass(frozen=True)
class View:
    """What both drawings show.

    Attributes:
        y: Objective of the vertical axis.
        x: Objective of the horizontal axis, or ``None``: the trial's number.
        baseline: Trial 0 if it is a point.
        members: The front, ascending in x.
        faint: The other points.
        xlim: Range of the horizontal axis, as drawn.
        ylim: Range of the vertical axis, as drawn.
        note: One line below the title.
    """

    y: Objective
    x: Objective | None
    baseline: TrialRecord | None
    members: list[TrialRecord]
    faint: list[TrialRecord]
    xlim: tuple[float, float]
    ylim: tuple[float, float]
    note: str

    def xs(self, trials: Sequence[TrialRecord]) -> list[float]:
        """Horizontal positions, as drawn."""
        if self.x is None:
            return [float(trial.number) for trial in trials]
        return [scaled(self.x.metric, trial.metrics[self.x.metric]) for trial in trials]

    def ys(self, trials: Sequence[TrialRecord]) -> list[float]:
        """Vertical positions, as drawn."""
        return [scaled(self.y.metric, trial.metrics[self.y.metric]) for trial in trials]

    @property
    def xlabel(self) -> str:
        """Label of the horizontal axis, with the direction that is better."""
        if self.x is None:
            return "trial"
        return f"{axis(self.x.metric)}, {'more' if self.x.maximize else 'less'} is better"

    @property
    def ylabel(self) -> str:
        """Label of the vertical axis, with the direction that is better."""
        return f"{axis(self.y.metric)}, {'more' if self.y.maximize else 'less'} is better"

    @property
    def stepped(self) -> bool:
        """Whether there is a step line through the front; over more than two objectives it is not their boundary."""
        return self.x is not None and len(self.members) > 1

    def uncovered(self, order: Sequence[TrialRecord], cells: tuple[int, int]) -> list[TrialRecord]:
        """Keeps of points that look alike and lie in one cell of the frame the first.

        Args:
            order: Points that are drawn, what must not be lost first.
            cells: Cells along the horizontal and the vertical axis.
        """
        places = list(zip(self.xs(order), self.ys(order), strict=True))
        spans = (self.xlim[1] - self.xlim[0], self.ylim[1] - self.ylim[0])
        return [order[index] for index in thin(places, spans, cells)]

    def spread(self, trial: TrialRecord) -> tuple[float, float] | None:
        """How far the quartiles of the measured latency lie left and right of the point, in ms; ``None`` if unknown."""
        if self.x is None or self.x.metric != "latency_ms":
            return None
        names = ("latency_ratio", "latency_ratio_q1", "latency_ratio_q3")
        middle, low, high = (trial.metrics.get(name, math.nan) for name in names)
        if not all(math.isfinite(value) for value in (middle, low, high)) or middle <= 0:
            return None
        unit = trial.metrics["latency_ms"] / middle
        return max(0.0, (middle - low) * unit), max(0.0, (high - middle) * unit)

    def interval(self, trial: TrialRecord) -> tuple[float, float, float] | None:
        """Mean over seeds and the ends of its interval on the vertical axis, as drawn; ``None`` if not confirmed."""
        found = (trial.confirmed or {}).get("metrics", {}).get(self.y.metric)
        if not found or found["low"] is None:
            return None
        mean, low, high = (scaled(self.y.metric, found[name]) for name in ("mean", "low", "high"))
        return mean, low, high

    def behind(self) -> tuple[float, float, float, float] | None:
        """The corner that the baseline dominates: left, right, bottom, top, as drawn."""
        if self.baseline is None or self.x is None:
            return None
        x, y = self.xs([self.baseline])[0], self.ys([self.baseline])[0]
        far_x, far_y = 20 * (self.xlim[1] - self.xlim[0]), 20 * (self.ylim[1] - self.ylim[0])
        left, right = (x - far_x, x) if self.x.maximize else (x, x + far_x)
        bottom, top = (y - far_y, y) if self.y.maximize else (y, y + far_y)
        return left, right, bottom, top


def view_of(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> View:
    """Works out what is drawn of a study.

    Args:
        trials: All records; those that are no points are only counted.
        objectives: At least one. The front is over all of them; those beyond the second have no axis.
    """
    y, x = objectives[0], objectives[1] if len(objectives) > 1 else None
    drawn = points(trials, objectives)
    members = front(drawn, objectives)
    labels = {trial.label for trial in members}
    said = counts([trial.state.value for trial in trials])
    note = f"{said}; {len(members)} on the front" if drawn else said
    view = View(
        y=y,
        x=x,
        baseline=next((trial for trial in drawn if trial.baseline), None),
        members=members,
        faint=sorted((t for t in drawn if t.label not in labels), key=lambda t: speed_order(t, objectives)),
        xlim=(0.0, 1.0),
        ylim=(0.0, 1.0),
        note=note,
    )
    if not drawn:
        return view
    ys = view.ys(drawn)
    ends = [end for trial in drawn for end in view.interval(trial) or ()]
    # Two seeds may leave an interval ten times as long as the front is high; it is cut at the frame.
    room = max(ys) - min(ys)
    ends = [min(max(end, min(ys) - room), max(ys) + room) for end in ends] if room else ends
    told = "; black: mean over seeds and its 95 % interval" if ends else ""
    return replace(view, xlim=_range(view.xs(drawn)), ylim=_range([*ys, *ends]), note=note + told)


def _range(numbers: Sequence[float]) -> tuple[float, float]:
    low, high = min(numbers), max(numbers)
    pad = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    return low - pad, high + pad


def missing(view: View) -> str | None:
    """Says what the plot lacks when fewer than two trials are on it."""
    drawn = len(view.members) + len(view.faint)
    if drawn == 0:
        return "No trial is COMPLETE yet.\nOnly COMPLETE trials are on this plot."
    if drawn == 1:
        return "One trial is COMPLETE so far."
    return None
