"""Puts a study into MLflow: beside its run, at the end of a command, or later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.record import TrialRecord, TrialState
from search.folder import REPORT
from search.storage import safe_url
from search.study import Study
from search.tracking import Courier, default_uri, public_uri
from spaces.errors import HeadwayError

if TYPE_CHECKING:
    from search.tracking.courier import Told
    from search.tracking.tracker import Delivered, RunStatus, Tracker


def open_tracker(study: Study, folder: Path) -> Tracker:
    """Opens the study's run in MLflow.

    Raises:
        UserError: MLflow cannot be reached.
    """
    from search.tracking import Tracker

    return Tracker.open(
        uri=tracking_uri(study, folder),
        experiment=study.tracking.experiment or study.name,
        study=study.name,
        study_folder=folder,
        params=public(study),
        objectives=study.objective_records,
    )


def open_courier(study: Study, folder: Path, told: Told = lambda kind, reason: None) -> Courier:
    """Gives what carries a running study to MLflow."""
    return Courier(lambda: open_tracker(study, folder), public_uri(tracking_uri(study, folder)), told)


def deliver(study: Study, folder: Path, records: Sequence[TrialRecord]) -> Delivered:
    """Adds what MLflow misses of a study that is not running; what is there already stays as it is.

    Raises:
        UserError: MLflow cannot be reached.
        HeadwayError: It went away meanwhile; what was added stays.
    """
    tracker = open_tracker(study, folder)
    tracker.reconcile(records)
    if not tracker.pending:
        page = folder / REPORT
        tracker.close(run_status(records), [page] if page.exists() else [])
    if tracker.pending:
        where = public_uri(tracking_uri(study, folder))
        raise HeadwayError(f"{study.name}: MLflow at {where} fails: {tracker.failure}; the same command goes on.")
    return tracker.delivered


def run_status(records: Sequence[TrialRecord]) -> RunStatus:
    """MLflow's word for how the study stands while nobody runs it."""
    if records and records[0].state is TrialState.FAILED:
        return "FAILED"
    return "FINISHED" if all(record.state.finished for record in records) else "KILLED"


def tracking_uri(study: Study, folder: Path) -> str:
    """Where the study's MLflow is."""
    return study.tracking.uri or default_uri(folder)


def public(study: Study) -> dict[str, Any]:
    """The study file without the credentials that addresses may hold, for pages that others read."""
    told = study.dump()
    if study.storage:
        told["storage"] = safe_url(study.storage)
    if study.tracking.uri:
        told["tracking"]["uri"] = public_uri(study.tracking.uri)
    return told
