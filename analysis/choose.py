"""Picks one design of a finished study: the knee, the fastest, the most accurate, or a trial by its number."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.labels import figure
from analysis.pareto import front, is_point, values
from analysis.record import Objective, TrialRecord, TrialState, spread
from spaces.errors import UserError, choices

PICKS = ("knee", "fastest", "most_accurate")
_LONGEST_LIST = 20


@dataclass(frozen=True)
class Choice:
    """A picked trial and, in one sentence, why it is that one."""

    trial: TrialRecord
    why: str


def choose(trials: Sequence[TrialRecord], objectives: Sequence[Objective], pick: str | int) -> Choice:
    """Picks a COMPLETE trial.

    Args:
        trials: All records of the study.
        objectives: The study's objectives.
        pick: ``knee``, ``fastest`` (best latency of the front, or best first minimised objective where latency is
            none), ``most_accurate`` (best first maximised objective of the front), or a trial's number, also as text;
            ``7.3`` is the third setting of the inference knobs of trial 7. A number may name any COMPLETE trial, on the
            front or off it.

    Raises:
        UserError: ``pick`` is none of these, no trial is COMPLETE, or the number is not that of a COMPLETE trial.
    """
    complete = spread(trial for trial in trials if trial.state is TrialState.COMPLETE)
    number = _number(pick)
    if number is None and pick not in PICKS:
        raise UserError(f"--pick: must be {choices([*PICKS, 'a trial number'])}, but got '{pick}'.")
    if not complete:
        raise UserError(f"--pick: no trial of this study is COMPLETE{_states(trials)}, so there is nothing to pick.")
    if number is not None:
        return _by_number(trials, complete, objectives, number)
    members = front(complete, objectives)
    if not members:
        wanted = choices(objective.metric for objective in objectives)
        raise UserError(f"--pick: no COMPLETE trial of this study has a finite figure for {wanted}.")
    if pick == "knee":
        return knee(members, objectives)
    return _best(members, objectives, fastest=pick == "fastest")


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
            f"through the extremes ({_figures(best, objectives)})",
        )
    best = min(members, key=lambda trial: (_ratio(trial, objectives), _age(trial)))
    return Choice(
        best,
        f"the front of {len(members)} points has no bulge, and trial {best.label} gives the most for what it costs "
        f"({_figures(best, objectives)})",
    )


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
        best, f"trial {best.label} is the {word} of {len(members)} points of the front ({_figures(best, objectives)})"
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
        trial, f"trial {number} was picked by its number; it is {where} the front ({_figures(trial, objectives)})"
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


def _figures(trial: TrialRecord, objectives: Sequence[Objective]) -> str:
    return ", ".join(figure(objective.metric, trial.metrics[objective.metric]) for objective in objectives)


def _states(trials: Sequence[TrialRecord]) -> str:
    counts = {state: sum(trial.state is state for trial in trials) for state in TrialState}
    said = [f"{count} {state.value}" for state, count in counts.items() if count]
    return f" ({', '.join(said)})" if said else ""
