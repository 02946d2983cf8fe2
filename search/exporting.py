"""Bundles of a study's designs: one that was chosen, or the whole front; and verifying them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from analysis.bundle.receipt import read_receipt
from analysis.choose import Choice
from analysis.export import export_bundle
from analysis.export_front import Exported, bundles_in, export_front
from analysis.record import TrialRecord
from analysis.verify import verify_bundle
from search.confirm import confirmed
from search.engine import prepare
from search.store import Store
from search.study import Study
from spaces.errors import UserError


def export_choice(
    choice: Choice, records: Sequence[TrialRecord], *, study: Study, folder: Path, out: Path, onnx: str = "raw"
) -> Path:
    """Writes the bundle of a chosen trial; see ``analysis.export.export_bundle``.

    Args:
        choice: Of ``analysis.choose``.
        records: All trials.
        study: The study file as it was run.
        folder: The study's.
        out: The bundle's, new or empty.
        onnx: Outputs of its ONNX graph: ``raw``, ``nms`` or ``none``.
    """
    data, report, _ = prepare(study)
    return export_bundle(
        choice.trial,
        study_folder=folder,
        study=study.dump(),
        data=data,
        fingerprint=report.fingerprint,
        out=out,
        why=choice.why,
        baseline=next((record for record in records if record.baseline), None),
        onnx=onnx,
    )


def export_whole_front(store: Store, *, study: Study, folder: Path, out: Path, onnx: str = "raw") -> list[Exported]:
    """Writes a bundle of each point of the front, or goes on with it, and tells of each on standard error.

    Args:
        store: The study's.
        study: The study file as it was run.
        folder: The study's.
        out: Folder of all bundles; see ``analysis.export_front``.
        onnx: Outputs of their ONNX graphs: ``raw``, ``nms`` or ``none``.
    """
    data, report, _ = prepare(study)
    begin = time.monotonic()

    def progress(one: Exported, done: int, count: int) -> None:
        left = (time.monotonic() - begin) / done * (count - done)
        reason = f": {one.reason}" if one.reason else ""
        end = f", {left:.0f} s left" if done < count else ""
        print(f"[{done}/{count}] {one.folder} {one.state}{reason}{end}", file=sys.stderr, flush=True)

    return export_front(
        confirmed(store),
        study.objective_records,
        study_folder=folder,
        study=study.dump(),
        data=data,
        fingerprint=report.fingerprint,
        out=out,
        onnx=onnx,
        progress=progress,
    )


def without_onnx(bundles: Sequence[Path]) -> list[dict[str, str]]:
    """Tells for which bundles a graph was asked for and is not there: ``bundle`` and ``reason``."""
    graphs = [(bundle, read_receipt(bundle)["formats"]["onnx"]) for bundle in bundles]
    return [
        {"bundle": str(bundle), "reason": graph["reason"]}
        for bundle, graph in graphs
        if not graph["available"] and graph.get("asked") != "none"
    ]


def verified(options: argparse.Namespace, say: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Verifies the bundles that ``headway verify`` names; see ``analysis.verify``.

    Of several, one that cannot be verified does not keep the others.

    Args:
        options: The command's.
        say: Takes the words on each bundle.

    Returns:
        For each what ``Verification.to_json`` gives; ``bundle``, ``ok`` and ``reasons`` where it did not come to that.

    Raises:
        UserError: An option is wrong.
    """
    folders = [Path(folder) for folder in options.bundles]
    if options.all:
        folders = [bundle for folder in folders for bundle in bundles_in(folder)]
    several = options.all or len(folders) > 1
    documents: list[dict[str, Any]] = []
    for number, folder in enumerate(folders, 1):
        if several:
            print(f"[{number}/{len(folders)}] {folder}", file=sys.stderr, flush=True)
        try:
            one = verify_bundle(
                folder,
                annotations=Path(options.annotations) if options.annotations else None,
                images=Path(options.images) if options.images else None,
                latency=not options.no_latency,
                against=Path(options.against) if options.against else None,
                python=Path(options.python).absolute() if options.python else None,
            )
        except UserError as error:
            if not several:
                raise
            documents.append({"bundle": str(folder.absolute()), "ok": False, "reasons": [str(error)]})
            words = f"NOT verified: {folder}\n  because: {error}"
        else:
            documents.append(one.to_json())
            words = str(one)
        if say:
            say(words)
    return documents
