"""Where the multiply-adds go: by part of the detector and by pyramid level of its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.explain.dress import Drawn
from analysis.explain.stacks import Stacks, stacked
from analysis.record import Objective, TrialRecord


def macs_of(trial: TrialRecord) -> Mapping[str, Any] | None:
    """Gives ``parts`` and ``levels`` of a trial's multiply-adds in units of one, ``None`` where they were not kept."""
    found: Mapping[str, Any] | None = (trial.attrs.get("cost") or {}).get("macs")
    return found


def costs_figure(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> Drawn | None:
    """Draws the multiply-adds of the baseline and of each front member as stacked bars, in the order of the front."""
    return stacked(trials, objectives, _stacks, axis="multiply-adds (G)", unit="G", what="Multiply-adds")


def _stacks(trial: TrialRecord) -> Stacks | None:
    macs = macs_of(trial)
    if not macs:
        return None
    parts, levels = ({kind: value / 1e9 for kind, value in macs[key].items()} for key in ("parts", "levels"))
    return parts, levels
