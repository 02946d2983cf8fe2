"""How to go on."""

from __future__ import annotations

from analysis.importance import LEAST_TRIALS
from analysis.record import TrialState
from analysis.report.findings import Findings


def commands(found: Findings) -> list[tuple[str, str]]:
    """Commands to go on with, and what each is for."""
    word, study = found.context.word, found.context.study
    name = found.context.name
    told = []
    if found.open:
        told.append((f"headway status {word}", "see what has not ended; the study's run command continues it"))
    failed = [ending for ending in found.endings if ending.state is TrialState.FAILED]
    if failed:
        told.append((f"headway status {word}", "see which trials failed, and why"))
    if found.points:
        if not found.confirmed and found.baseline is not None:
            told.append((f"headway confirm {word}", "train the front again with other seeds and time it together"))
        told.append(
            (f"headway export {word} --pick knee --out bundles/{name}", "write a design as a bundle that runs alone")
        )
        told.append((f"headway verify bundles/{name}", "run the bundle in a clean process and compare"))
        told.append((f"headway ui {word}", "look at each trial in MLflow"))
    items = [item for item in found.importance if item.designs and item.designs < LEAST_TRIALS]
    if items and not study.get("designs") and found.baseline is not None:
        more = max(2 * study["budget"]["trials"], LEAST_TRIALS)
        told.append(
            (f"headway run STUDY.yaml --set budget.trials={more} --extend", "let the study grow; what is known is kept")
        )
    return list(dict.fromkeys(told))
