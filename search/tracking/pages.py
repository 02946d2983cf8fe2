"""Where a study's MLflow store is, how its server is started, and the addresses of its pages. Imports no mlflow."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit

from spaces.errors import UserError, choices

# Without it a first-time visitor lands in MLflow's GenAI mode, which shows no runs.
MODE = "workflowType=machine_learning"
_PORTS = {"sqlite": 0, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_CONNECT_SECONDS = 5.0


def default_uri(study_folder: Path) -> str:
    """Gives the tracking URI of the SQLite store in the study's folder."""
    return f"sqlite:///{study_folder.resolve() / 'mlflow.db'}"


def is_database(uri: str) -> bool:
    """True for a database URI (with or without a driver, ``postgresql+psycopg2://``), False for a server's."""
    return urlsplit(uri).scheme.split("+")[0] in _PORTS


def public_uri(uri: str) -> str:
    """Gives the URI without user name, password and query, fit for messages and logs."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme else uri


def check_uri(uri: str) -> None:
    """Checks the kind of URI, and that a database server takes connections (mlflow itself would try for minutes).

    Raises:
        UserError: The URI is of no kind that works, or nothing listens at its host.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"tracking.uri: is no URI: {error}.") from error
    if not is_database(uri):
        if parts.scheme == "databricks" or uri == "databricks" or (parts.scheme in ("http", "https") and host):
            return
        kinds = choices(["http://HOST:PORT", "https://HOST", *(f"{kind}://..." for kind in _PORTS), "null"])
        raise UserError(f"tracking.uri: must be {kinds}, but got '{public_uri(uri)}'.")
    if host is None:
        return
    try:
        socket.create_connection((host, port or _PORTS[parts.scheme.split("+")[0]]), _CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"tracking.uri: no database answers at {public_uri(uri)}: {error}. Start it, mend tracking.uri, or set it "
            "to null for an SQLite store in the study's folder."
        ) from error


def ui_command(uri: str, port: int) -> list[str]:
    """Gives the command that serves the MLflow pages of a database URI on this machine only.

    To be started with ``ui_environment``. A URI with a password goes through that, as others can read command lines.

    Raises:
        ValueError: ``uri`` is a server's already, which ``page_url`` can be used with as it is.
    """
    if not is_database(uri):
        raise ValueError(f"{public_uri(uri)} is a server already")
    store = [] if urlsplit(uri).password else ["--backend-store-uri", uri]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [*command, *store]


def ui_environment(uri: str) -> dict[str, str]:
    """Gives the environment for ``ui_command``: this process's, with the store and without job execution.

    Job execution costs eight processes and five seconds at the start, and serves GenAI only.
    """
    return {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def page_url(server: str, experiment_id: str, run_id: str, artifact: str | None = "pareto.html") -> str:
    """Gives the address of a run's page, opened at one of its artifacts.

    Args:
        server: ``http://127.0.0.1:5000``; an empty text gives a link that works inside MLflow's own pages.
        experiment_id: As MLflow numbers it.
        run_id: As MLflow names it.
        artifact: Path of the artifact to show, or ``None`` for the run's overview.
    """
    page = f"#/experiments/{experiment_id}/runs/{run_id}"
    if artifact is not None:
        page += f"/artifacts/{quote(artifact)}"
    root = f"{public_uri(server).rstrip('/')}/" if server else ""
    return f"{root}{page}?{MODE}"
