"""The dry run: what a study would try, what it would cost, what could not be exported."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.engine import prepare
from search.resources import divide
from search.study import Constraint, Study
from spaces.space import Design
from trainers.contract import TrialRequest
from trainers.data import DataReport

_CORNERS = 12


@dataclass(frozen=True)
class Corner:
    """A design at the end of the knobs' ranges, built and counted."""

    knobs: Design
    metrics: dict[str, float]
    broken: list[str]


@dataclass(frozen=True)
class Plan:
    """What ``headway plan`` found.

    Attributes:
        space_size: Upper bound of the number of designs, ``None`` for infinitely many.
        corners: The baseline first.
        seconds_per_trial: Estimated wall time of a whole trial of the baseline, from a few real training steps.
        hours_at_most: Estimated wall time of the study if no trial were stopped at a rung.
        concurrent: Trials side by side that the estimate assumes.
        data: Report of the data check.
        not_exportable: By family, the formats that it forbids, with the reason.
        notes: What a user should know before running.
    """

    space_size: float | None
    corners: list[Corner]
    seconds_per_trial: float
    hours_at_most: float
    concurrent: int
    data: DataReport
    not_exportable: dict[str, dict[str, str]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The document of ``plan --json``."""
        return {
            "space_size": self.space_size,
            "corners": [vars(corner) for corner in self.corners],
            "seconds_per_trial": self.seconds_per_trial,
            "hours_at_most": self.hours_at_most,
            "concurrent": self.concurrent,
            "data": self.data.to_json(),
            "not_exportable": self.not_exportable,
            "notes": self.notes,
        }

    def lines(self, study: Study) -> list[str]:
        """The text before the table of corners."""
        size = "infinitely many" if self.space_size is None else f"at most {self.space_size:,.0f}"
        rungs = ", ".join(map(str, study.rung_epochs)) or "none"
        minutes = self.seconds_per_trial / 60
        lines = [
            *self.data.summary(),
            f"Space: {size} designs from {', '.join(sorted(study.space))}.",
            f"Budget: {study.budget.trials} trials of {study.budget.epochs} epochs; rungs after epochs: {rungs}.",
            f"Time: about {minutes:.1f} min a trial, at most {self.hours_at_most:.2f} h in all with "
            f"{self.concurrent} side by side (fewer epochs where rungs stop trials).",
        ]
        for family, formats in self.not_exportable.items():
            lines += [f"Export: with {family} there is no {name}: {why}." for name, why in formats.items()]
        return lines + self.notes


def make_plan(study: Study) -> Plan:
    """Checks a study, builds the corners of its space and estimates its time.

    Raises:
        UserError: Whatever is wrong with the study file, the data or the base.
    """
    data, report, space = prepare(study)

    from trainers.estimate import count_design, local_hardware, seconds_per_trial

    share = divide(study.resources, *local_hardware())
    with tempfile.TemporaryDirectory(prefix="headway-plan-") as folder:
        request = TrialRequest(
            number=0,
            base=study.base,
            knobs={},
            data=data,
            folder=str(Path(folder)),
            epochs=study.budget.epochs,
            batch=study.training.batch,
            lr=study.training.lr,
            weights=study.weights.from_,
            backbone=study.weights.backbone,
            seed=study.seed,
            device=share.device,
            threads=share.cpus,
            count_size=study.speed_size,
        )
        constraints = [Constraint.parse(text) for text in study.constraints]
        corners = []
        for design in [{}, *space.corners(_CORNERS)]:
            metrics = count_design(request, design)
            broken = [str(item) for item in constraints if (item.excess(metrics) or 0) > 0]
            corners.append(Corner(design, metrics, broken))
        seconds = seconds_per_trial(request)
    size = space.size()
    notes = []
    if all(corner.broken for corner in corners[1:]) and len(corners) > 1:
        notes.append("Warning: every corner of the space breaks a constraint.")
    if "::" not in study.base:
        notes.append(f"Note: the base is a Python file and is executed: {study.base}")
    return Plan(
        space_size=None if size == float("inf") else size,
        corners=corners,
        seconds_per_trial=seconds,
        hours_at_most=seconds * study.budget.trials / share.concurrent / 3600,
        concurrent=share.concurrent,
        data=report,
        not_exportable={
            part.family.name: dict(part.family.export_limits) for part in space.families if part.family.export_limits
        },
        notes=notes,
    )
