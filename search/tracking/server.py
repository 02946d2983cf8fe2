"""Reaches MLflow, finds or creates what a study stands on there, and reads runs back."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from analysis.record import Objective
from search.one_at_a_time import one_at_a_time
from search.tracking.content import Point, flatten
from search.tracking.pages import check_uri, is_database, page_url, public_uri
from search.tracking.views import TAG, view_key, view_state, view_url
from spaces.errors import UserError
from trainers import files

# A dead server would block a client for four minutes with MLflow's own settings. All of these are read when mlflow is
# imported or used, and an operator's own values win. The last two keep mlflow from printing and from calling home.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow.entities import Param, Run, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH  # noqa: E402
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

REACH_SECONDS = 8.0
FAILURES = (MlflowException, OSError, SQLAlchemyError)  # requests' errors are OSErrors
_IDENTITY = ".mlflow-study"
_PAGE = 250  # runs


def find_run(*, uri: str, experiment: str, study_folder: Path) -> tuple[str, str] | None:
    """Finds the study's parent run without writing anything, for ``page_url``.

    Returns:
        Experiment id and run id, or ``None`` when the study has no run there.

    Raises:
        UserError: MLflow cannot be reached.
    """
    identity = study_folder / _IDENTITY
    if not identity.exists():
        return None
    client = reach(uri)
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None
        wanted = _is_parent(identity.read_text(encoding="utf-8").strip())
        runs = list(find_runs(client, found.experiment_id, wanted))
    except FAILURES as error:
        raise UserError(f"tracking.uri: {public_uri(uri)} cannot be read: {reason(error, uri)}") from error
    return (found.experiment_id, runs[0].info.run_id) if runs else None


def reach(uri: str) -> MlflowClient:
    """Gives a client whose store has answered."""
    check_uri(uri)
    _quieten()
    result: list[MlflowClient | BaseException] = []

    def ask() -> None:
        try:
            _make_whole(uri)
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
            result.append(client)
        except Exception as error:  # told to the caller below, whatever a foreign URI leads to
            result.append(error)

    # A server that accepts and never answers can only be left behind. A fresh database may take long for its tables.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(None if is_database(uri) else REACH_SECONDS)
    answer = result[0] if result else TimeoutError(f"no answer within {REACH_SECONDS:g} s")
    if isinstance(answer, MlflowClient):
        return answer
    raise UserError(
        f"tracking.uri: cannot reach MLflow at {public_uri(uri)}: {reason(answer, uri)}. Start the server, mend "
        "tracking.uri, or set it to null for an SQLite store in the study's folder."
    ) from answer


def _make_whole(uri: str) -> None:
    """Makes the store of an SQLite URI where there is none, so that it is there whole or not at all.

    MLflow makes it in some forty migrations; a kill amid these leaves a file that it never opens again. Such a file
    has no experiment yet, and is replaced.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or path.name == ":memory:" or not path.parent.is_dir():
        return
    with one_at_a_time(uri):
        if not _is_there(path):
            with files.whole(path) as temporary:
                temporary.unlink(missing_ok=True)
                store = SqlAlchemyStore(f"sqlite:///{temporary}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)  # type: ignore[no-untyped-call]
                store.engine.dispose()


def _is_there(path: Path) -> bool:
    """Whether a file is a store that was made to its end, or nothing of MLflow's, which it may tell itself."""
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(path)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "experiments" not in tables:
                return bool(tables)
            return bool(connection.execute("SELECT 1 FROM experiments LIMIT 1").fetchall())
    except sqlite3.Error:
        return True


def _quieten() -> None:
    # Making tables is told on INFO, and each retried request in a warning with its traceback's worth of text; what
    # matters of it is in our own message. Whoever asked for a level keeps it.
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name, level in (("mlflow", logging.WARNING), ("alembic", logging.WARNING), ("urllib3", logging.ERROR)):
            logging.getLogger(name).setLevel(level)


def open_experiment(client: MlflowClient, uri: str, name: str, study_folder: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        # Without a server MLflow would put artifacts below the current folder.
        artifacts = (study_folder.resolve() / "artifacts").as_uri() if is_database(uri) else None
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            # Another study may have made it a moment ago.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment: '{name}' was deleted at {public_uri(uri)}; restore it there or name another one."
        )
    return str(found.experiment_id)


def open_parent(
    client: MlflowClient, experiment_id: str, study: str, study_folder: Path, params: Mapping[str, Any]
) -> str:
    path = study_folder / _IDENTITY
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex + "\n", encoding="utf-8")
    identity = path.read_text(encoding="utf-8").strip()
    runs = list(find_runs(client, experiment_id, _is_parent(identity)))
    if runs:
        run = runs[0]
        for spare in runs[1:]:
            client.delete_run(spare.info.run_id)
        if run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")
    else:
        tags = {
            "headway.study": study,
            "headway.role": "study",
            "headway.identity": identity,
            "mlflow.source.name": "headway",
        }
        run = client.create_run(experiment_id, tags=tags, run_name=study)
    run_id = str(run.info.run_id)
    known = run.data.params
    texts = flatten(params)
    fresh = [Param(name, value) for name, value in texts.items() if name not in known]
    changed = {name: value for name, value in texts.items() if known.get(name, value) != value}
    for start in range(0, len(fresh), 100):
        client.log_batch(run_id, params=fresh[start : start + 100])
    if changed:
        client.log_batch(run_id, tags=[RunTag(f"headway.param.{name}", value) for name, value in changed.items()])
    return run_id


def lead_to(client: MlflowClient, experiment_id: str, run_id: str, study: str, objectives: Sequence[Objective]) -> None:
    """Makes the experiment's description lead to the study's plots, and saves the views that it names.

    A description shows its first line only, so all links stand there.
    """
    for front in (False, True):
        key = TAG + view_key(run_id, front=front)
        client.set_experiment_tag(experiment_id, key, view_state(run_id, objectives, front=front))
    live, best = (view_url(experiment_id, run_id, front=front) for front in (False, True))
    links = [
        f"**[Pareto plot]({page_url('', experiment_id, run_id)})** of the newest study, {study}",
        f"runs, live: [all]({live}), [the front]({best})",
        f"[table]({page_url('', experiment_id, run_id, 'front.csv')})",
    ]
    client.set_experiment_tag(experiment_id, "mlflow.note.content", " \u00b7 ".join(links))


def _is_parent(identity: str) -> str:
    return f"tags.`headway.identity` = '{identity}' and tags.`headway.role` = 'study'"


def find_runs(client: MlflowClient, experiment_id: str, wanted: str) -> Iterator[Run]:
    """Reads all runs that fit, oldest first, page by page: thousands of them at once would take hundreds of MB."""
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id], wanted, max_results=_PAGE, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def history(client: MlflowClient, run_id: str, names: Iterable[str]) -> tuple[dict[Point, float], bool]:
    """Reads every logged value of these metrics, and whether one stands there twice."""
    logged: dict[Point, float] = {}
    doubled = False
    for name in names:
        for metric in client.get_metric_history(run_id, name):
            doubled |= (name, metric.step) in logged
            logged[name, metric.step] = metric.value
    return logged, doubled


def reason(error: BaseException, uri: str) -> str:
    """Words an error in one line without credentials."""
    text = " ".join(str(error).split()) or type(error).__name__
    secret = uri.partition("://")[2].rpartition("@")[0]
    for part in (secret, secret.partition(":")[2]):
        text = text.replace(part, "***") if part else text
    return text if len(text) <= 300 else text[:297] + "..."
