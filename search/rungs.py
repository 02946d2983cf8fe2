"""Who may go on at a rung: pure functions over what was recorded there.

Asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning") among designs
of like speed. Cost and speed are known before training, so only accuracy is at stake: to reach the front, a design must
be the most accurate of all that are not slower. At a rung it therefore competes with its nearest neighbours in cost on
that side. Ranking all designs by accuracy would stop every fast one; non-dominated ranking would keep every design that
is a hair faster than the rest.

Promises: the baseline is never stopped; nobody is stopped by fewer than ``factor - 1`` rivals; a design that no rival
surpasses is never stopped, so none is that no other dominates at the rung, costs within 5 % counting as equal; a
decision depends on the points recorded at the rung so far and on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RungPoint:
    """A trial at a rung.

    Attributes:
        number: The trial's number; 0 is the baseline.
        accuracy: Its accuracy at the rung, larger is better.
        cost: Its first cost objective, above 0; ``None`` when the study has none.
    """

    number: int
    accuracy: float
    cost: float | None


@dataclass(frozen=True)
class Decision:
    """Whether a trial goes on, and why."""

    go_on: bool
    reason: str


# Costs that differ by less are alike; about the spread of a latency measured as a paired ratio.
LIKE = 1.05
# Rivals per unit of ``factor``: enough for a rank to mean something, few enough to be of like speed.
_RIVALS = 3


def decide(point: RungPoint, others: Sequence[RungPoint], factor: int) -> Decision:
    """Decides about ``point`` as it arrives at a rung.

    Its rivals are the ``3 * factor - 1`` trials nearest in cost among those at most 5 % costlier; a trial whose cost is
    known only after training (it depends on what was learned) has its like as rivals. It goes on when it
    is among the best ceil(n / factor) of the n trials made of itself and its rivals; equals go on.

    Args:
        point: The arriving trial.
        others: All other trials recorded at this rung, whatever became of them.
        factor: About one in ``factor`` goes on, 2 or more.
    """
    if point.number == 0:
        return Decision(True, "the baseline is never stopped")
    comparable = [other for other in others if (other.cost is None) == (point.cost is None)]
    not_slower = [other for other in comparable if _log_ratio(other, point) <= math.log(LIKE)]
    nearest = sorted(not_slower, key=lambda other: (abs(_log_ratio(other, point)), other.number))
    rivals = nearest[: _RIVALS * factor - 1]
    total = len(rivals) + 1
    if total < factor:
        return Decision(True, f"fewer than {factor} trials of its speed have been here")
    places = math.ceil(total / factor)
    rank = 1 + sum(rival.accuracy > point.accuracy for rival in rivals)
    told = f"rank {rank} of {total} among designs that are as fast"
    return Decision(rank <= places, told if rank <= places else f"{told}, of which {places} go on")


def _log_ratio(other: RungPoint, point: RungPoint) -> float:
    if not other.cost or not point.cost:
        return 0.0
    return math.log(other.cost / point.cost)
