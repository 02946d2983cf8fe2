"""How a report words things."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.labels import axis, figure
from analysis.pareto import values
from analysis.record import Objective, TrialRecord


def several(count: int, one: str, many: str | None = None) -> str:
    """Words a count, ``1 trial``, ``3 trials``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(words: Sequence[str], most: int = 10) -> str:
    """Words a list, ``a, b and c``; what is beyond ``most`` is counted."""
    words = [*words[:most], f"{len(words) - most} more"] if len(words) > most else list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def duration(hours: float) -> str:
    """Words a time."""
    for unit, size in (("hours", 1.0), ("minutes", 60.0)):
        if hours * size >= 1.95:
            return f"{hours * size:.1f} {unit}"
    return f"{hours * 3600:.0f} seconds"


def figures(trial: TrialRecord, objectives: Sequence[Objective]) -> str:
    """Words the objectives of a trial."""
    return listed([figure(o.metric, value) for o, value in zip(objectives, values(trial, objectives), strict=True)])


def capital(text: str) -> str:
    """Begins a sentence."""
    return f"{text[:1].upper()}{text[1:]}"


def plain(objective: Objective) -> str:
    """Names an objective without its unit."""
    return axis(objective.metric).split(" (")[0]


def named(trial: TrialRecord) -> str:
    """Names a point."""
    return "the baseline" if trial.baseline and not trial.point else f"trial {trial.label}"
