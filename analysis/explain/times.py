"""Where the time goes: by part of the detector and by pyramid level of its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.explain.dress import Drawn
from analysis.explain.stacks import Stacks, stacked
from analysis.record import Objective, TrialRecord

# Of the dense head, as the trainer names them.
_HEAD = {"towers": "towers", "projections": "projections", "head": "rest of the head"}


def time_of(trial: TrialRecord, trials: Mapping[int, TrialRecord]) -> Mapping[str, Any] | None:
    """Gives what was recorded of where a trial's time goes, ``None`` where nothing was.

    A setting of inference knobs has its own; a design whose latency was taken over from one of the same architecture
    has that one's.

    Args:
        trial: A trial, or a further point of one.
        trials: All by number.
    """
    measured = trials.get(trial.attrs.get("speed_from", trial.number), trial)
    found: Mapping[str, Any] | None = trial.attrs.get(f"time.{trial.point}")
    if found is None and not trial.point:
        found = trial.attrs.get("time") or measured.attrs.get("time")
    return found


def times_figure(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> Drawn | None:
    """Draws the latency of the baseline and of each front member as stacked bars, in the order of the front.

    The shares were measured in few passes, with hooks between the parts; they are shown of the latency that was
    measured in pairs.
    """
    numbered = {trial.number: trial for trial in trials if not trial.point}

    def stacks(trial: TrialRecord) -> Stacks | None:
        found, latency = time_of(trial, numbered), trial.metrics.get("latency_ms")
        if found is None or latency is None:
            return None
        parts: dict[str, float] = {}
        levels: dict[str, float] = {}
        for row in found["parts"]:
            name = _HEAD.get(row["part"], row["part"].replace("_", " "))
            parts[name] = parts.get(name, 0.0) + row["share"] * latency
            if row["part"] in _HEAD:
                level = row["level"] or "several"
                levels[level] = levels.get(level, 0.0) + row["share"] * latency
        return parts, levels

    drawn = stacked(trials, objectives, stacks, axis="latency (ms)", unit="ms", what="Latency")
    if drawn is None:
        return None
    note = "Shares of few passes, with what measuring them costs, of the latency that was measured in pairs."
    return replace(drawn, note=f"{note} {drawn.note}".strip())
