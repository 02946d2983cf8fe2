"""The dry run: what a study would try, what it would cost, what could not be exported."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.designs import listed
from search.engine import fill_in, prepare, prepare_space
from search.resources import divide
from search.rungs import share_of_epochs
from search.study import Constraint, Study
from spaces.patching import split, unlearned
from spaces.space import Design, Space, design_hash
from trainers.contract import TrialRequest
from trainers.data import DataReport

_CORNERS, _MANY_CORNERS = 12, 512
# By how much mixed precision must shorten an epoch; a few steps tell it no better.
_WORTH_TELLING = 1.25


@dataclass(frozen=True)
class Corner:
    """A design at the end of the knobs' ranges, or one that the study file lists, built and counted."""

    knobs: Design
    metrics: dict[str, float]
    broken: list[str]
    name: str | None = None


@dataclass(frozen=True)
class Plan:
    """What ``headway plan`` found.

    Attributes:
        space_size: Upper bound of the number of designs, ``None`` for infinitely many; exact for listed designs.
        corners: The baseline first; all designs where the study file lists them.
        seconds_per_trial: Estimated wall time of a whole trial of the baseline, from a few real training steps.
            ``None``, like ``hours_at_most`` and ``data``, while the paths of the data are still to be filled in.
        warm_seconds: Estimated wall time of the shared warm start; ``None`` without one, too.
        hours_at_most: Estimated wall time of the study if no trial were stopped at a rung.
        concurrent: Trials side by side that the estimate assumes.
        data: Report of the data check.
        excluded: Pairs of families that are never proposed together, each with the reason.
        settings: Settings of inference knobs that one training is measured at, at most.
        not_exportable: By family, the formats that its designs lack, all or some, with the reason.
        notes: What a user should know before running.
    """

    space_size: float | None
    corners: list[Corner]
    seconds_per_trial: float | None
    warm_seconds: float | None
    hours_at_most: float | None
    concurrent: int
    data: DataReport | None
    excluded: list[tuple[str, str, str]]
    settings: int
    not_exportable: dict[str, dict[str, str]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The document of ``plan --json``."""
        return {
            "space_size": self.space_size,
            "corners": [vars(corner) for corner in self.corners],
            "seconds_per_trial": self.seconds_per_trial,
            "warm_seconds": self.warm_seconds,
            "hours_at_most": self.hours_at_most,
            "concurrent": self.concurrent,
            "data": self.data.to_json() if self.data else None,
            "excluded": [{"families": [one, other], "reason": reason} for one, other, reason in self.excluded],
            "settings": self.settings,
            "not_exportable": self.not_exportable,
            "notes": self.notes,
        }

    def lines(self, study: Study) -> list[str]:
        """The text before the table of corners."""
        size = "infinitely many" if self.space_size is None else f"at most {self.space_size:,.0f}"
        rungs = ", ".join(map(str, study.rung_epochs)) or "none"
        if study.designs:
            space = f"Designs: {len(study.designs)} listed, and the baseline."
        else:
            space = f"Space: {size} designs from {', '.join(sorted(study.space))}."
        lines = [
            *(self.data.summary() if self.data else [f"Data: {fill_in(study)}"]),
            space,
            f"Budget: {study.budget.trials} trials of {study.budget.epochs} epochs; rungs after epochs: {rungs}.",
            *([f"At most {study.budget.gpu_hours:g} GPU hours."] if study.budget.gpu_hours else []),
        ]
        if study.warm_epochs is not None:
            long = "" if self.warm_seconds is None else f", about {self.warm_seconds / 60:.1f} min"
            lines.append(
                f"Warm start: the base is trained once for {study.warm_epochs} epochs{long}; every trial continues "
                "from there."
            )
        if self.seconds_per_trial is not None:
            lines.append(
                f"Time: about {self.seconds_per_trial / 60:.1f} min a trial, at most {self.hours_at_most:.2f} h in all "
                f"with {self.concurrent} side by side (fewer epochs where rungs stop trials)."
            )
        if study.rungs is not None and study.rung_epochs:
            budget = study.budget
            share = share_of_epochs(budget.trials, budget.epochs, study.rung_epochs, study.rungs.factor)
            more = "; more, the more designs differ in cost" if study.rungs.method == "like_speed" else ""
            lines.append(f"Rungs: about {100 * share:.0f} % of the epochs are trained{more}.")
        lines += [f"Never together: {one} and {other}: {why}." for one, other, why in self.excluded]
        if self.settings > 1:
            lines.append(f"Sweep: one training is measured at up to {self.settings} settings of inference knobs.")
        for family, formats in self.not_exportable.items():
            lines += [f"Export: {family} designs without {name}: {why}." for name, why in formats.items()]
        return lines + self.notes


def make_plan(study: Study) -> Plan:
    """Checks a study, builds the corners of its space and estimates its time.

    Raises:
        UserError: Whatever is wrong with the study file, the data or the base.
    """
    data, report = None, None
    if study.placeholders:
        space = prepare_space(study)
    else:
        data, report, space = prepare(study, deep=True)

    from trainers.estimate import START_SECONDS, count_design, gain_of_bfloat16, local_hardware, seconds_per_epoch
    from trainers.profile import count_patched

    share = divide(study.resources, [local_hardware()])
    designs: list[tuple[str | None, Design]] = [(None, {})]
    if study.designs:
        designs += [(named.name, named.knobs) for named in listed(study, space)]
    else:
        designs += [(None, design) for design in _corners(space)]
    seconds, warm, faster = None, None, None
    if data is None:
        classes = len(study.data.classes) if study.data.classes else None
        counted = [
            count_patched(study.base, unlearned(design), study.speed_size, classes).to_metrics()
            for _, design in designs
        ]
    else:
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
                dtype=study.speed.dtype,
                train_dtype=study.training.dtype,
                threads=share.cpus,
                count_size=study.speed_size,
            )
            counted = [count_design(request, unlearned(design)) for _, design in designs]
            whole = seconds_per_epoch(request)
            faster = gain_of_bfloat16(request, whole)
            epoch = whole / share.workers  # at best
            seconds = START_SECONDS + study.budget.epochs * epoch
            warm = None if study.warm_epochs is None else study.warm_epochs * epoch
    constraints = [Constraint.parse(text) for text in study.constraints]
    corners = []
    for (name, design), metrics in zip(designs, counted, strict=True):
        # Counted for every position; what queries leave of it is known after training.
        known = [item for item in constraints if item.metric == "params_m" or not space.on_images(design)]
        broken = [str(item) for item in known if (item.excess(metrics) or 0) > 0]
        corners.append(Corner(design, metrics, broken, name))
    size = float(len(designs)) if study.designs else space.size()
    notes = []
    if all(corner.broken for corner in corners[1:]) and len(corners) > 1:
        which = "design of the list" if study.designs else "corner of the space"
        notes.append(f"Warning: every {which} breaks a constraint.")
    if any(space.learns(design) for _, design in designs):
        notes.append(
            "Note: dilations that are learned are counted as the base's; decomposed ones cost the same or less."
        )
    if faster is not None and faster >= _WORTH_TELLING:
        notes.append(
            f"Note: epochs would be about {faster:.1f} times as fast in mixed precision (training.dtype: bfloat16)."
        )
    if "::" not in study.base:
        notes.append(f"Note: the base is a Python file and is executed: {study.base}")
    return Plan(
        space_size=None if size == float("inf") else size,
        corners=corners,
        seconds_per_trial=seconds,
        warm_seconds=warm,
        # No other trial starts before the warm start is there.
        hours_at_most=None
        if seconds is None
        else (seconds * study.budget.trials / share.concurrent + (warm or 0.0)) / 3600,
        concurrent=share.concurrent,
        data=report,
        excluded=space.excluded(),
        settings=max(len(space.sweep(design)) for _, design in designs),
        not_exportable={part.family.name: limits for part in space.families if (limits := part.export_limits())},
        notes=notes,
    )


def _corners(space: Space) -> list[Design]:
    """Some of the space's corners that differ in what they cost, from each set of families in turn."""
    groups: dict[tuple[str, ...], dict[str, Design]] = {}
    for design in space.corners(_MANY_CORNERS):
        network = space.architecture(design)
        if network or not groups:
            groups.setdefault(tuple(split(network)), {}).setdefault(design_hash(network), design)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*(group.values() for group in groups.values())))
    return list(itertools.islice(filter(None, turns), _CORNERS))
