"""Who may go on at a rung: pure functions over what was recorded there.

``like_speed``, the default: asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel
Hyperparameter Tuning") among designs of like cost. Cost and speed are known before training, so only accuracy is at
stake: to reach the front, a design must be the most accurate of all that are nowhere costlier. At a rung it therefore
competes with its nearest neighbours in cost on that side. Ranking all designs by accuracy would stop every fast one;
non-dominated ranking would keep every design that is a hair faster than the rest.

``mo_asha``, for comparison: all designs of the rung in one order, by non-dominated fronts and within a front by the
greedy epsilon net (Schmucker et al. 2021, "Multi-objective Asynchronous Successive Halving").

Who comes early passes few rivals, so under ``like_speed`` a trial is judged again at each later epoch but the last, by
all that have been at its rung since; ``mo_asha`` judges once, as published.

A stopped trial stays stopped, as in ASHA's stopping variant: to resume one that later evidence favours would take its
checkpoint, which is not kept.

Promises of both:
    - The baseline is never stopped.
    - Nobody is stopped by fewer than ``factor - 1`` rivals.
    - Of exchangeable trials that are alike in cost the i-th to come goes on with probability ceil(i / factor) / i, and
      with 1 for i < ``factor``: in the long run 1 - 1 / ``factor`` stop at each rung (``share_of_epochs`` says what
      that saves). Under ``mo_asha`` this holds for any exchangeable trials, under ``like_speed`` in the long run only:
      of trials that differ in cost more go on, since the cheapest so far have no rivals.
    - A decision depends on the points recorded at the rung so far and on nothing else.

Promises of ``like_speed`` alone:
    - A design that no rival surpasses goes on. So does each that no other dominates at the rung, where costs within 5 %
      count as equal and a design dominates when it is more accurate and nowhere costlier.
    - Who costs over 5 % more, in whatever cost, stops nobody. The unit of a cost does not matter.

``mo_asha`` promises to keep the most accurate design, and no other: of a first front with more members than places it
stops those that are close to others, and a design that is a hair faster than the rest is in that front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import moocore
import numpy as np
from numpy.typing import NDArray

Method = Literal["like_speed", "mo_asha"]


@dataclass(frozen=True)
class RungPoint:
    """A trial at a rung.

    Attributes:
        number: The trial's number; 0 is the baseline.
        accuracies: Its objectives of accuracy at the rung, larger is better; one or more, the study's first one first.
        costs: Its other objectives, 0 or more, smaller is better; ``None`` for one that is known only after training.
    """

    number: int
    accuracies: tuple[float, ...]
    costs: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Decision:
    """Whether a trial goes on, and why."""

    go_on: bool
    reason: str


# Costs that differ by less are alike; about the spread of a latency measured as a paired ratio.
LIKE = 1.05
# Rivals per unit of ``factor``: enough for a rank to mean something, few enough to be of like speed.
_RIVALS = 3
_WORDS: dict[Method, tuple[str, str]] = {
    "like_speed": ("among designs that are as fast", "trials of its speed"),
    "mo_asha": ("by non-dominated fronts", "trials"),
}


def decide(point: RungPoint, others: Sequence[RungPoint], factor: int, method: Method = "like_speed") -> Decision:
    """Decides about ``point`` as it arrives at a rung.

    A trial with a cost that is known only after training (it depends on what was learned) competes with its like.

    ``like_speed``: the rivals are the ``3 * factor - 1`` trials nearest in cost, and all that are as near as the last
    of them, among those at most 5 % costlier in every cost. How near is said by the cost that differs most, as a
    ratio. A rival surpasses the trial that is nowhere less accurate and somewhere more. The trial goes on when fewer
    than ceil(n / factor) of the n made of itself and its rivals surpass it; equals go on.

    ``mo_asha``: it goes on when it is among the first ceil(n / factor) of all n trials of the rung in the order of
    ``priority``.

    Args:
        point: The arriving trial.
        others: All other trials recorded at this rung, whatever became of them.
        factor: About one in ``factor`` goes on, 2 or more.
        method: The rule.
    """
    if point.number == 0:
        return Decision(True, "the baseline is never stopped")
    trials = sorted([point, *others], key=lambda trial: trial.number)
    own = trials.index(point)
    accuracies = np.array([trial.accuracies for trial in trials])  # (trials, objectives), like costs
    costs = np.array([trial.costs for trial in trials], dtype=float)  # NaN where it is not known
    known = ~np.isnan(costs)
    comparable = (known == known[own]).all(axis=1)
    accuracies, costs = accuracies[comparable], costs[comparable][:, known[own]]
    rule = _like_speed if method == "like_speed" else _mo_asha
    rank, total = rule(int(comparable[:own].sum()), accuracies, costs, factor)
    among, kind = _WORDS[method]
    if total < factor:
        return Decision(True, f"fewer than {factor} {kind} have been here")
    places = math.ceil(total / factor)
    told = f"rank {rank} of {total} {among}"
    return Decision(rank <= places, told if rank <= places else f"{told}, of which {places} go on")


def share_of_epochs(trials: int, epochs: int, rungs: Sequence[int], factor: int) -> float:
    """Expected share of ``trials * epochs`` that is trained when trials stop as promised.

    Of n exchangeable trials that are alike in cost p(n) = sum over i <= n of ceil(i / factor) / i (1 for i < factor)
    are expected to pass a rung. With n_0 = ``trials``, n_k = p(n_(k-1)), and e_1, e_2, ... the rungs, e_0 = 0 and the
    last e the end, the share is the sum of n_k (e_(k+1) - e_k), over ``trials * epochs``. That the number which arrives
    at a second rung varies, and that the first of them had less to pass, is neglected. In the long run n_k is
    ``trials / factor**k``: with rungs 1, 3, 9 of 12 epochs and factor 3 a fifth. Under ``like_speed`` it is a lower
    bound: it grows with how much the trials differ in cost.

    Args:
        trials: All that are trained, the baseline among them, 1 or more.
        epochs: Of a trial that is never stopped.
        rungs: Epochs of the rungs, ascending, all before the last one.
        factor: About one in ``factor`` goes on, 2 or more.
    """
    arrived, trained = float(trials), 0.0
    for begin, end in zip((0, *rungs), (*rungs, epochs), strict=True):
        trained += arrived * (end - begin)
        whole = int(arrived)
        passing = [1.0 if i < factor else math.ceil(i / factor) / i for i in range(1, whole + 2)]
        arrived = sum(passing[:whole]) + (arrived - whole) * passing[whole]
    return trained / (trials * epochs)


def priority(table: NDArray[Any]) -> list[int]:
    """Orders points by non-dominated fronts, and within a front by ``epsilon_net``.

    Args:
        table: (points, objectives), all to be minimised.

    Returns:
        The rows, best first.
    """
    ranks = moocore.pareto_rank(table)
    order: list[int] = []
    for rank in range(int(ranks.max()) + 1):
        rows = np.flatnonzero(ranks == rank)
        order += [int(row) for row in rows[epsilon_net(table[rows])]]
    return order


def epsilon_net(table: NDArray[Any]) -> list[int]:
    """Orders points so that the first k are spread out, for every k.

    The first is the best in the first objective, each further one the farthest from those before it; of equals the
    first row. Objectives are scaled to their range, since their units differ.

    Args:
        table: (points, objectives), all to be minimised.

    Returns:
        The rows.
    """
    span = np.ptp(table, axis=0)
    scaled = (table - table.min(axis=0)) / np.where(span > 0, span, 1)
    order = [int(np.argmin(scaled[:, 0]))]
    nearest = np.full(len(scaled), np.inf)  # squared distance to what is in the net
    while len(order) < len(scaled):
        nearest = np.minimum(nearest, ((scaled - scaled[order[-1]]) ** 2).sum(axis=1))
        nearest[order] = -1
        order.append(int(np.argmax(nearest)))
    return order


def _like_speed(own: int, accuracies: NDArray[Any], costs: NDArray[Any], factor: int) -> tuple[int, int]:
    """Gives the rank of row ``own``, and of how many."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(costs == costs[own], 0.0, np.log(costs / costs[own]))
    rivals: NDArray[np.bool_] = np.all(ratios <= math.log(LIKE), axis=1)
    rivals[own] = False
    distances = np.abs(ratios).max(axis=1, initial=0.0)
    most = _RIVALS * factor - 1
    if rivals.sum() > most:
        rivals &= distances <= np.sort(distances[rivals])[most - 1]
    more, less = accuracies > accuracies[own], accuracies < accuracies[own]
    surpass = more.any(axis=1) & ~less.any(axis=1)
    return 1 + int(surpass[rivals].sum()), 1 + int(rivals.sum())


def _mo_asha(own: int, accuracies: NDArray[Any], costs: NDArray[Any], factor: int) -> tuple[int, int]:
    """Gives the rank of row ``own``, and of how many."""
    order = priority(np.hstack([-accuracies, costs]))
    return 1 + order.index(own), len(order)
