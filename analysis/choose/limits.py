"""Limits that a picked design must keep: the least accuracy, the most latency, parameters or any other cost."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from analysis.record import Objective, TrialRecord
from spaces.errors import UserError, choices, unknown

_SHARES = re.compile(r"(bbox|segm)_(mAP|AR).*")
_COSTS = re.compile(r"latency_(ms|ratio\w*)|(head_)?gmacs|params_m|activations_m|peak_memory_mb")
_UNITS = {
    "latency_ms": "in ms",
    **dict.fromkeys(("latency_ratio", "latency_ratio_q1", "latency_ratio_q3"), "in multiples of the baseline's"),
    **dict.fromkeys(("gmacs", "head_gmacs"), "in 10^9 multiply-adds"),
    **dict.fromkeys(("params_m", "activations_m"), "in 10^6"),
    "peak_memory_mb": "in 10^6 bytes",
}


@dataclass(frozen=True)
class Limit:
    """One limit, which a design at the limit itself keeps.

    Attributes:
        metric: What is limited.
        bound: The limit, in the metric's own unit.
        least: True for ``above`` (at least this), False for ``under`` (at most this).
    """

    metric: str
    bound: float
    least: bool

    def short_of(self, trial: TrialRecord) -> float:
        """By how much a trial misses it, as a share of the bound: 0 when kept, infinite without a finite figure."""
        value = trial.metrics.get(self.metric, math.nan)
        if not math.isfinite(value):
            return math.inf
        return max(0.0, self.bound - value if self.least else value - self.bound) / (abs(self.bound) or 1.0)

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.least else '<='} {self.bound:g}"


def maximized(metric: str, objectives: Sequence[Objective]) -> bool | None:
    """Whether more of a metric is better; ``None`` where it is neither an objective, an accuracy nor a cost."""
    for objective in objectives:
        if objective.metric == metric:
            return objective.maximize
    if _SHARES.fullmatch(metric):
        return True
    return False if _COSTS.fullmatch(metric) else None


def read_limits(
    trials: Iterable[TrialRecord],
    objectives: Sequence[Objective],
    above: Mapping[str, float] | None,
    under: Mapping[str, float] | None,
) -> list[Limit]:
    """Checks limits against what the trials have figures of.

    Args:
        trials: Those that may be picked.
        objectives: The study's.
        above: Least value by metric, in the metric's own unit; of metrics of which more is better.
        under: Most by metric, likewise; of metrics of which less is better.

    Raises:
        UserError: A metric is unknown or belongs to the other side, or a limit cannot be one in the metric's unit.
    """
    known = {name for trial in trials for name, value in trial.metrics.items() if math.isfinite(value)}
    limits = []
    for option, given, least in (("--above", above, True), ("--under", under, False)):
        for metric, bound in (given or {}).items():
            side = maximized(metric, objectives)
            if metric in known and side is not None and side is not least:
                other = "--under" if least else "--above"
                better = "more" if side else "less"
                raise UserError(f"{option}: of {metric} {better} is better; {other} {metric}={bound:g} may be meant.")
            if metric not in known or side is None:
                raise unknown(option, metric, (name for name in known if maximized(name, objectives) is least))
            _check(option, metric, bound)
            limits.append(Limit(metric, bound, least))
    return limits


def keeping(trials: Sequence[TrialRecord], limits: Sequence[Limit]) -> list[TrialRecord]:
    """Gives the trials that keep all limits.

    Raises:
        UserError: None does; the message names the one that comes nearest.
    """
    kept = [trial for trial in trials if not any(limit.short_of(trial) for limit in limits)]
    if kept or not trials:
        return kept
    # The most that is missed in any limit decides, as a share, since limits have different units.
    near = min(trials, key=lambda trial: (max(limit.short_of(trial) for limit in limits), trial.number, trial.point))
    option = " and ".join(dict.fromkeys("--above" if limit.least else "--under" for limit in limits))
    wanted = " and ".join(map(str, limits))
    figures = choices((_exactly(limit.metric, near) for limit in limits), "and")
    units = ", ".join(dict.fromkeys(f"{limit.metric} is {_unit(limit.metric)}" for limit in limits))
    raise UserError(
        f"{option}: none of the {len(trials)} COMPLETE points has {wanted}; the nearest is trial {near.label} with "
        f"{figures} ({units})."
    )


def _check(option: str, metric: str, bound: float) -> None:
    if not math.isfinite(bound):
        raise UserError(f"{option}: {metric} must be a finite number, but got {bound:g}.")
    if _SHARES.fullmatch(metric) and not 0 <= bound <= 1:
        meant = f"; {bound:g} % is {metric}={bound / 100:g}" if 1 < bound <= 100 else ""
        raise UserError(f"{option}: {metric} is a share and must lie in [0, 1], but got {bound:g}{meant}.")
    if _COSTS.fullmatch(metric) and bound <= 0:
        raise UserError(f"{option}: {metric} must be above 0, but got {bound:g}.")


def _exactly(metric: str, trial: TrialRecord) -> str:
    value = trial.metrics.get(metric, math.nan)
    return f"{metric} {value:.6g}" if math.isfinite(value) else f"no {metric}"


def _unit(metric: str) -> str:
    return "a share, 0 to 1" if _SHARES.fullmatch(metric) else _UNITS.get(metric, "as recorded")
