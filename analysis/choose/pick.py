"""Picks one design of a finished study: by what is wanted of it, or a trial by its number."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.choose.limits import Limit, keeping, maximized, read_limits
from analysis.choose.neighbours import Neighbour, figures, neighbours, nobody
from analysis.labels import figure
from analysis.pareto import front, is_point, values
from analysis.record import Objective, TrialRecord, TrialState, spread
from spaces.errors import UserError, choices, unknown

PICKS = ("knee", "fastest", "most_accurate", "weighted")
_LONGEST_LIST = 20


@dataclass(frozen=True)
class Choice:
    """A picked trial.

    Attributes:
        trial: It.
        why: Why it is that one, in one sentence.
        neighbours: The next designs of the front that are better in something (see ``analysis.choose.neighbours``).
        notes: What else is to be known: where nothing is better, and what of the choice is within noise.
    """

    trial: TrialRecord
    why: str
    neighbours: tuple[Neighbour, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Gives the choice as plain JSON types."""
        return {
            "trial": self.trial.number,
            "point": self.trial.label,
            "why": self.why,
            "knobs": dict(self.trial.knobs),
            "metrics": {name: value for name, value in self.trial.metrics.items() if math.isfinite(value)},
            "neighbours": [neighbour.to_json() for neighbour in self.neighbours],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """Words the choice for a person."""
        told = [neighbour.words for neighbour in self.neighbours] + list(self.notes)
        return "\n".join([_sentence(self.why), *(f"  {_sentence(text)}" for text in told)])


def choose(
    trials: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    pick: str | int,
    *,
    above: Mapping[str, float] | None = None,
    under: Mapping[str, float] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Choice:
    """Picks a COMPLETE trial.

    Args:
        trials: All records of the study.
        objectives: The study's objectives.
        pick: ``knee``, ``fastest`` (best latency of the front, or best first minimised objective where latency is
            none), ``most_accurate`` (best first maximised objective of the front), ``weighted`` (see ``weights``), or a
            trial's number, also as text; ``7.3`` is the third setting of the inference knobs of trial 7. A number may
            name any COMPLETE trial, on the front or off it.
        above: Least value by metric, in the metric's own unit: ``{"bbox_mAP": 0.4}``.
        under: Most by metric, likewise: ``{"latency_ms": 20, "params_m": 12}``. Limits take out the points that miss
            them, and the front of what is left is picked from; so a limit on a figure that is no objective may lead to
            a point off the front.
        weights: Weights by metric, 0 or more, for ``weighted``. Each figure is scaled over the points that are picked
            from, 0 for the worst of them and 1 for the best, and the largest weighted mean is taken. What has no
            weight does not count.

    Raises:
        UserError: ``pick`` is none of these, a limit or weight does not go with it or with the study's figures, no
            trial is COMPLETE or keeps the limits, or the number is not that of a COMPLETE trial.
    """
    complete = spread(trial for trial in trials if trial.state is TrialState.COMPLETE)
    number = _number(pick)
    if number is None and pick not in PICKS:
        raise UserError(f"--pick: must be {choices([*PICKS, 'a trial number'])}, but got '{pick}'.")
    if not complete:
        raise UserError(f"--pick: no trial of this study is COMPLETE{_states(trials)}, so there is nothing to pick.")
    _agree(str(pick), number, above, under, weights)
    if number is not None:
        return _described(_by_number(trials, complete, objectives, number), complete, objectives)
    measured = [trial for trial in complete if is_point(trial, objectives)]
    if not measured:
        wanted = choices(objective.metric for objective in objectives)
        raise UserError(f"--pick: no COMPLETE trial of this study has a finite figure for {wanted}.")
    limits = read_limits(measured, objectives, above, under)
    kept = keeping(measured, limits)
    members = front(kept, objectives)
    if pick == "knee":
        choice = knee(members, objectives)
    elif pick == "weighted":
        choice = _weighted(members, objectives, weights or {})
    else:
        choice = _best(members, objectives, fastest=pick == "fastest")
    if limits:
        told = f"of {len(measured)} COMPLETE points {len(kept)} have {' and '.join(map(str, limits))}, and of these"
        choice = Choice(choice.trial, f"{told} {choice.why}")
    return _described(choice, complete, objectives, limits)


def picks_of(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> dict[str, Choice]:
    """Gives what ``knee``, ``fastest`` and ``most_accurate`` pick; empty without a COMPLETE trial.

    A study without a cost has no fastest.
    """
    found = {}
    for pick in PICKS[:3]:
        try:
            found[pick] = choose(trials, objectives, pick)
        except UserError:
            continue
    return found


def knee(members: Sequence[TrialRecord], objectives: Sequence[Objective]) -> Choice:
    """Picks the knee of a front: where giving up more of one objective stops paying in the other.

    Each objective is scaled over the front to 0 (best) and 1 (worst), and the member with the least sum is taken. For
    two objectives that is the member farthest from the line through the two extremes, on the side of the ideal point
    (Das, "On characterizing the 'knee' of the Pareto curve based on normal-boundary intersection", Structural
    Optimization 18, 1999); for more it is the nearest to the ideal point in Manhattan distance. Like every such rule
    it depends on how far the front reaches.

    Where the extremes win (a front of two points, or one without a bulge) the scaled distances say nothing. Then the
    best ratio of the figures themselves decides: most accuracy for each millisecond.

    Args:
        members: A front, at least one point.
        objectives: The study's objectives.
    """
    if len(members) == 1:
        return Choice(members[0], f"trial {members[0].label} is the only point of the front")
    losses = {trial.label: sum(_scaled(trial, members, objectives)) for trial in members}
    ends = min(losses[_extreme(members, objective).label] for objective in objectives)
    best = min(members, key=lambda trial: (losses[trial.label], _age(trial)))
    if losses[best.label] < ends - 1e-9:
        return Choice(
            best,
            f"trial {best.label} is the knee: of {len(members)} points of the front it lies farthest from the line "
            f"through the extremes ({figures(best, objectives)})",
        )
    best = min(members, key=lambda trial: (_ratio(trial, objectives), _age(trial)))
    return Choice(
        best,
        f"the front of {len(members)} points has no bulge, and trial {best.label} gives the most for what it costs "
        f"({figures(best, objectives)})",
    )


def _weighted(members: Sequence[TrialRecord], objectives: Sequence[Objective], weights: Mapping[str, float]) -> Choice:
    sides = {metric: maximized(metric, objectives) for metric in weights}
    for metric, side in sides.items():
        if side is None or not all(math.isfinite(trial.metrics.get(metric, math.nan)) for trial in members):
            known = [
                name
                for name in members[0].metrics
                if maximized(name, objectives) is not None
                and all(math.isfinite(trial.metrics.get(name, math.nan)) for trial in members)
            ]
            raise unknown("--weight", metric, known)
        weight = weights[metric]
        if not math.isfinite(weight) or weight < 0:
            raise UserError(f"--weight: {metric} must be 0 or more, but got {weight:g}.")
    total = math.fsum(weights.values())
    if not total:
        raise UserError("--weight: one weight must be above 0, but all are 0.")
    axes = [Objective(metric, "maximize" if side else "minimize") for metric, side in sides.items()]
    scores = {}
    for trial in members:
        losses = zip(axes, _scaled(trial, members, axes), strict=True)
        scores[trial.label] = math.fsum(weights[axis.metric] * (1 - loss) for axis, loss in losses) / total
    best = min(members, key=lambda trial: (-scores[trial.label], _age(trial)))
    said = ", ".join(f"{metric} {weight:g}" for metric, weight in weights.items())
    return Choice(
        best,
        f"trial {best.label} has the best weighted mean, {scores[best.label]:.3f}, of {len(members)} points of the "
        f"front: weights {said}, on figures scaled over these points from 0, the worst, to 1, the best "
        f"({figures(best, objectives)})",
    )


def _described(
    choice: Choice, complete: Sequence[TrialRecord], objectives: Sequence[Objective], limits: Sequence[Limit] = ()
) -> Choice:
    """Adds the neighbours, and what of the choice is not certain."""
    trial = choice.trial
    if not is_point(trial, objectives):
        return choice
    members = front(complete, objectives)
    notes = nobody(trial, members, objectives)
    if not any(member.label == trial.label for member in members) and limits:
        notes.append("without the limits it is off the front")
    for limit in limits:
        found = (trial.confirmed or {}).get("metrics", {}).get(limit.metric)
        if found and limit.least and found["low"] is not None and found["low"] < limit.bound:
            said = f"{figure(limit.metric, found['low'])} to {figure(limit.metric, found['high'])}"
            notes.append(f"{limit} is within noise: over seeds the 95 % interval of its mean is {said}")
    return Choice(trial, choice.why, neighbours(trial, members, objectives, limits), tuple(notes))


def _agree(
    pick: str,
    number: str | None,
    above: Mapping[str, float] | None,
    under: Mapping[str, float] | None,
    weights: Mapping[str, float] | None,
) -> None:
    """Refuses limits and weights that the pick has no use for.

    Raises:
        UserError: There are some.
    """
    if number is not None and (above or under):
        option = "--above" if above else "--under"
        raise UserError(f"{option}: goes with --pick {choices(PICKS)}, but --pick {pick} names the trial itself.")
    if weights and pick != "weighted":
        raise UserError(f"--weight: goes with --pick weighted, but got --pick {pick}.")
    if pick == "weighted" and not weights:
        raise UserError("--pick: 'weighted' needs a weight for one metric or more, --weight bbox_mAP=2 for instance.")


def _best(members: Sequence[TrialRecord], objectives: Sequence[Objective], *, fastest: bool) -> Choice:
    kind = "minimized" if fastest else "maximized"
    fitting = [objective for objective in objectives if objective.maximize != fastest]
    if not fitting:
        word = PICKS[1] if fastest else PICKS[2]
        raise UserError(f"--pick: '{word}' needs a {kind} objective, but this study has none; pick the knee instead.")
    # Speed may stand behind other costs, such as parameters, in the study's list.
    fitting.sort(key=lambda objective: fastest and not objective.metric.startswith("latency"))
    best = _extreme(members, fitting[0])
    word = "fastest" if fastest else "most accurate"
    return Choice(
        best, f"trial {best.label} is the {word} of {len(members)} points of the front ({figures(best, objectives)})"
    )


def _by_number(
    trials: Sequence[TrialRecord], complete: Sequence[TrialRecord], objectives: Sequence[Objective], number: str
) -> Choice:
    known = [trial.label for trial in sorted(complete, key=_age)]
    shown = choices(known if len(known) <= _LONGEST_LIST else [*known[:_LONGEST_LIST], f"{len(known)} in all"])
    legal = f" The COMPLETE trials are {shown}."
    trial = next((trial for trial in [*complete, *trials] if trial.label == number), None)
    if trial is None:
        raise UserError(f"--pick: this study has no trial {number}.{legal}")
    if trial.state is not TrialState.COMPLETE:
        why = f" ({trial.reason})" if trial.reason else ""
        raise UserError(
            f"--pick: trial {number} is {trial.state.value}{why}, and only a COMPLETE trial can be picked.{legal}"
        )
    if not is_point(trial, objectives):
        return Choice(trial, f"trial {number} was picked by its number; it lacks a figure of the front's axes")
    where = "on" if any(member.label == number for member in front(complete, objectives)) else "off"
    return Choice(
        trial, f"trial {number} was picked by its number; it is {where} the front ({figures(trial, objectives)})"
    )


def _number(pick: str | int) -> str | None:
    """The label of the trial that is meant, ``None`` where no number is given."""
    match = re.fullmatch(r"([+-]?\d+)(?:\.(\d+))?", str(pick).strip())
    if match is None:
        return None
    number, point = int(match[1]), int(match[2] or 0)
    return f"{number}.{point}" if point else str(number)


def _age(trial: TrialRecord) -> tuple[int, int]:
    return trial.number, trial.point


def _extreme(members: Sequence[TrialRecord], objective: Objective) -> TrialRecord:
    # Members equal in this objective differ in another one, or are duplicates: then the oldest is taken.
    sign = -1 if objective.maximize else 1
    return min(members, key=lambda trial: (sign * trial.metrics[objective.metric], _age(trial)))


def _scaled(trial: TrialRecord, members: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[float]:
    result = []
    for objective in objectives:
        column = [member.metrics[objective.metric] for member in members]
        low, high = min(column), max(column)
        share = (trial.metrics[objective.metric] - low) / (high - low) if high > low else 0.0
        result.append(1 - share if objective.maximize and high > low else share)
    return result


def _ratio(trial: TrialRecord, objectives: Sequence[Objective]) -> float:
    total = 0.0
    for objective, value in zip(objectives, values(trial, objectives), strict=True):
        if value <= 0:  # no accuracy at all is never worth its time
            return math.inf
        total += -math.log(value) if objective.maximize else math.log(value)
    return total


def _states(trials: Sequence[TrialRecord]) -> str:
    counts = {state: sum(trial.state is state for trial in trials) for state in TrialState}
    said = [f"{count} {state.value}" for state, count in counts.items() if count]
    return f" ({', '.join(said)})" if said else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
