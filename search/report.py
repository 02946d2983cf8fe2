"""Makes the report of a study: what its page says beside the trials is read here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from analysis.record import TrialRecord
from search.delivery import public
from search.folder import studies_root
from search.study import Study
from spaces.errors import UserError
from spaces.space import Space
from trainers import files
from trainers.data import DataReport

REPORT = "report.html"
_log = logging.getLogger("headway.report")


def report_page(
    study: Study,
    folder: Path,
    records: Sequence[TrialRecord],
    *,
    seconds_run: float,
    data: DataReport | None,
    space: Space | None,
) -> str:
    """Gives the page.

    Args:
        study: The study file.
        folder: The study's.
        records: All trials, with what confirmation knows of them.
        seconds_run: Run time of all starts.
        data: What is in the data; ``None`` where it cannot be read.
        space: What could be proposed; ``None`` where the base cannot be read.
    """
    from analysis.report import Context, report_html  # late, since it brings plotly and scikit-learn

    own = folder.parent == studies_root() and folder.name == study.name
    context = Context(
        study=public(study),
        word=study.name if own else f"{study.name} --studies {folder.parent}",
        data=data,
        settings=None if space is None or study.designs else space.size(),
        rungs=study.rung_epochs,
        seconds_run=seconds_run,
    )
    return report_html(records, study.objective_records, context)


def read_report_page(study: Study, folder: Path, records: Sequence[TrialRecord], seconds_run: float) -> str:
    """Gives the page of a study that was run some time ago; what is gone meanwhile is said to be unknown."""
    from search.engine import prepare

    data, space = None, None
    try:
        _, data, space = prepare(study)
    except UserError as error:  # the data was moved, a family was taken out: the trials still tell what they found
        _log.warning("%s: the report goes without what is in data and space: %s", study.name, error)
    return report_page(study, folder, records, seconds_run=seconds_run, data=data, space=space)


def leave_report(
    study: Study,
    folder: Path,
    records: Sequence[TrialRecord],
    *,
    seconds_run: float,
    data: DataReport | None,
    space: Space | None,
) -> Path | None:
    """Writes ``report.html`` into the study's folder at the end of a run.

    Returns:
        The file; ``None`` where it could not be made, which is logged: a search must not fail for a page about it.
    """
    try:
        page = report_page(study, folder, records, seconds_run=seconds_run, data=data, space=space)
        files.write_text(folder / REPORT, page)
    except OSError:
        raise
    except Exception as error:
        _log.debug("report", exc_info=True)
        _log.warning("%s: no report was made: %s: %s", study.name, type(error).__name__, error)
        return None
    return folder / REPORT
