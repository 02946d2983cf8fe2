"""Makes the report of a study: what its page says beside the trials is read here."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.record import TrialRecord
from search.delivery import public
from search.folder import REPORT, studies_root
from search.store import Store
from search.study import Study
from spaces.errors import UserError
from spaces.space import Space
from trainers import files
from trainers.data import DataReport

if TYPE_CHECKING:
    from analysis.report import Context

_log = logging.getLogger("headway.report")


def _context(study: Study, folder: Path, seconds_run: float, data: DataReport | None, space: Space | None) -> Context:
    from analysis.report import Context

    own = folder.parent == studies_root() and folder.name == study.name
    return Context(
        study=public(study),
        word=study.name if own else f"{study.name} --studies {folder.parent}",
        data=data,
        settings=None if space is None or study.designs else space.size(),
        rungs=study.rung_epochs,
        seconds_run=seconds_run,
    )


def write_report(study: Study, folder: Path, store: Store, out: Path | None = None) -> dict[str, Any]:
    """Writes the report of a study, also of one that is running or whose data is gone: what ``headway report`` does.

    Args:
        study: The study file.
        folder: The study's.
        store: The study's.
        out: The page; by default ``report.html`` in the study's folder.

    Returns:
        The document of ``report --json``: ``study``, ``report`` (the page), ``states`` (trials by state) and
        ``importance`` (what explains each objective, see ``analysis.importance``).

    Raises:
        UserError: ``out`` cannot be written.
    """
    from analysis.importance import importances
    from analysis.report import report_html
    from search.confirm import confirmed
    from search.engine import prepare

    out = (out or folder / REPORT).absolute()
    if out.suffix != ".html":
        raise UserError(f"--out: must name an .html file, but got '{out}'.")
    data, space = None, None
    try:
        _, data, space = prepare(study)
    except UserError as error:  # the data was moved, the base is another one: the trials still tell what they found
        _log.warning("%s: the report goes without what is in data and space: %s", study.name, error)
    records = confirmed(store)
    shares = importances(records, study.objective_records)
    context = _context(study, folder, store.seconds_run, data, space)
    page = report_html(records, study.objective_records, context, importance=shares)
    try:
        files.write_text(out, page)
    except OSError as error:
        raise UserError(f"--out: must be writable, but {out} gives: {error.strerror}.") from error
    return {
        "study": study.name,
        "report": str(out),
        "states": dict(Counter(record.state.value for record in records)),
        "importance": [item.to_json() for item in shares],
    }


def leave_report(
    study: Study,
    folder: Path,
    records: Sequence[TrialRecord],
    *,
    seconds_run: float,
    data: DataReport,
    space: Space,
) -> Path | None:
    """Writes ``report.html`` into the study's folder at the end of a run.

    Args:
        study: The study file.
        folder: The study's.
        records: All trials, with what confirmation knows of them.
        seconds_run: Run time of all starts.
        data: What is in the data.
        space: What could be proposed.

    Returns:
        The file; ``None`` where it could not be made, which is logged: a search must not fail for a page about it.
    """
    try:
        from analysis.report import report_html

        context = _context(study, folder, seconds_run, data, space)
        page = report_html(records, study.objective_records, context)
        files.write_text(folder / REPORT, page)
    except OSError:
        raise
    except Exception as error:
        _log.debug("report", exc_info=True)
        _log.warning("%s: no report was made: %s: %s", study.name, type(error).__name__, error)
        return None
    return folder / REPORT
