"""Studies side by side: ``headway compare``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from analysis.bundle.data import read_validation
from analysis.compare import Comparison, Entry, Mark, Terms, compare
from analysis.labels import axis, scaled
from analysis.record import TrialRecord
from search import tables
from search.study import SplitSection, Study
from spaces.errors import UserError
from trainers import files

# What may differ between replicas: none of it changes what a trial gives.
_FREE = ("name", "seed", "storage", "tracking", "resources")


def compare_studies(found: Sequence[tuple[Study, Sequence[TrialRecord]]]) -> Comparison:
    """Compares studies that were run.

    Args:
        found: Of each its study file, and all its trials as ``search.confirm.confirmed`` gives them.

    Raises:
        UserError: See ``analysis.compare.compare``.
    """
    marks = list(_marks([study for study, _ in found]))
    return compare(
        [
            Entry(
                name=study.name,
                records=records,
                objectives=study.objective_records,
                seed=study.seed,
                terms=_terms(study, records, *mark),
                warm=study.warm_epochs is not None,
                kind=json.dumps({key: value for key, value in study.dump().items() if key not in _FREE}),
            )
            for (study, records), mark in zip(found, marks, strict=True)
        ]
    )


def write(comparison: Comparison, out: Path) -> tuple[Path, Path]:
    """Writes the comparison as a page and, beside it, as a picture.

    Args:
        comparison: The comparison.
        out: The page, ``.html``; the picture has its name with ``.png``.

    Raises:
        UserError: ``out`` has another ending or cannot be written.
    """
    from analysis.plots.versus import versus_html, versus_png

    if out.suffix != ".html":
        raise UserError(f"--out: must name an .html file, but got '{out}'.")
    picture = out.with_suffix(".png")
    try:
        files.write_text(out, versus_html(comparison))
        files.write_bytes(picture, versus_png(comparison))
    except OSError as error:
        raise UserError(f"--out: must be writable, but {out} gives: {error.strerror}.") from error
    return out, picture


def _marks(studies: Sequence[Study]) -> Iterator[tuple[Mark, Mark]]:
    """Identifies both splits of each; contents are read only where studies name different files."""
    apart = {split: len({_place(study, split) for study in studies}) > 1 for split in ("val", "train")}
    for study in studies:
        yield _mark(study, "val", read=apart["val"]), _mark(study, "train", read=apart["train"])


def _place(study: Study, split: str) -> str:
    section: SplitSection | None = getattr(study.data, split)
    if section is None:
        assert study.data.digits is not None
        told = study.data.digits
        width, height = study.data.size
        return f"digits (train {told.train}, val {told.val}, seed {told.seed}, {width}x{height})"
    return f"{section.annotations} with {section.images}"


def _mark(study: Study, split: str, *, read: bool) -> Mark:
    place = _place(study, split)
    section: SplitSection | None = getattr(study.data, split)
    if section is None:
        return Mark(place, place)  # drawn anew from these numbers
    if not read:
        return Mark(place)
    try:
        return Mark(place, read_validation(Path(section.annotations), Path(section.images)).fingerprint)
    except UserError:
        return Mark(place)


def _terms(study: Study, records: Sequence[TrialRecord], validation: Mark, training: Mark) -> Terms:
    attrs: Mapping[str, Any] = records[0].attrs if records else {}
    width, height = study.data.size
    tall, wide = study.speed_size
    device = attrs.get("speed_device") or attrs.get("speed_kind") or "an unknown device"
    threads = attrs.get("speed_threads")
    dtype = "" if study.speed.dtype == "float32" else f", {study.speed.dtype}"
    return Terms(
        validation=validation,
        training_data=training,
        classes=", ".join(study.data.classes) if study.data.classes else "all",
        image=f"{width}x{height}",
        base=study.base,
        training=_training(study),
        input=f"{tall}x{wide}, batch {study.speed.batch}, post-processing {'on' if study.speed.postprocess else 'off'}"
        f"{dtype}",
        device=f"{device}, {threads} thread{'s' if threads != 1 else ''}" if threads else str(device),
    )


def _training(study: Study) -> str:
    start = study.weights.from_
    if start == "baseline":
        start = f"a baseline of {study.warm_epochs} epochs"
    told = [f"{study.budget.epochs} epochs from {start}"]
    told += [f"backbone {study.weights.backbone}"] if study.weights.backbone != "auto" else []
    given = study.training.model_dump().items()
    told += [
        f"{name} {value if isinstance(value, str) else f'{value:g}'}" for name, value in given if value is not None
    ]
    return ", ".join(told)


def show(comparison: Comparison) -> None:
    """Prints a comparison."""
    console = tables.new_console()
    accuracy, *costs = comparison.objectives
    table = Table(title=f"{comparison.title}: {' and '.join(item.metric for item in comparison.objectives)}")
    for name in ("study", f"baseline {axis(accuracy.metric)}", "front", f"best {axis(accuracy.metric)}"):
        table.add_column(name, justify="left" if name == "study" else "right", no_wrap=name == "study")
    for cost in costs:
        table.add_column(f"least {axis(cost.metric)}", justify="right")
    for name in ("hypervolume", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for side in comparison.sides:
        for found in side.found:
            best = max(item.metrics[accuracy.metric] for item in found.members)
            least = [min(item.metrics[cost.metric] for item in found.members) for cost in costs]
            alone = len(side.found) == 1
            table.add_row(
                escape(found.entry.name),
                f"{scaled(accuracy.metric, found.entry.baseline.metrics[accuracy.metric]):.1f}",
                str(len(found.members)),
                f"{scaled(accuracy.metric, best):.1f}",
                *(f"{value:.3f}" for value in least),
                f"{found.volume:.4f}",
                side.reach if alone else "",
            )
        if len(side.found) > 1:
            empty = [""] * (3 + len(costs))
            table.add_row("  mean of these replicas", *empty, f"{side.volume:.4f}", side.reach)
    console.print(table)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(comparison.reference_words)
    say(comparison.baseline)
    for item in comparison.differences:
        say(f"{item.other} against {item.one}: {item.figures}: {item.verdict}.")
        say(f"  {item.coverage}")
        say(f"  {item.says}")
    if comparison.levels:
        bounds = list(comparison.levels)
        table = Table(title=f"Best {axis(accuracy.metric)} within a {axis(costs[0].metric).split(' (')[0]}")
        table.add_column("study", no_wrap=True)
        for bound in bounds:
            table.add_column(f"≤ {bound:.1f}", justify="right")
        for side in comparison.sides:
            best_within = [comparison.levels[bound][side.name] for bound in bounds]
            cells = ["-" if value is None else f"{scaled(accuracy.metric, value):.1f}" for value in best_within]
            table.add_row(escape(side.name), *cells)
        console.print(table)
    for text in comparison.remarks:
        say(f"Note: {text}")
