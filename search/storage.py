"""Databases that hold a store: where they are by default, how they are opened, what is said when they are not there."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from spaces.errors import HeadwayError, UserError

_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_CONNECT_SECONDS = 5.0


def default_url(folder: Path) -> str:
    """The store of a study that names none: SQLite in its folder."""
    return f"sqlite:///{(folder / 'study.db').absolute()}"


def safe_url(url: str) -> str:
    """The URL without user, password and query, for messages."""
    if "://" not in url:
        return "the given URL"
    return re.sub(r"://.*@", "://***@", url).partition("?")[0]


def open_storage(url: str) -> BaseStorage:
    """Opens Optuna's storage at an SQLAlchemy URL, making its tables where there are none.

    Raises:
        UserError: It cannot be reached or opened.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    with explained(url):
        parts = make_url(url)
        if parts.host and (port := parts.port or _PORTS.get(parts.get_backend_name())):
            # Drivers wait minutes for a host that does not answer.
            socket.create_connection((parts.host, port), _CONNECT_SECONDS).close()
        with _one_at_a_time(url):
            return RDBStorage(url, engine_kwargs=options)


@contextmanager
def _one_at_a_time(url: str) -> Iterator[None]:
    """Lets one process of this machine open a storage at a time.

    Optuna makes the tables of a new storage without a lock: a ``headway status`` at that moment would break the run.
    """
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"headway-{os.getuid()}-{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns what databases raise into one message without credentials.

    Raises:
        UserError: The database cannot be reached or used.
        HeadwayError: Optuna refuses it.
    """
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError, OSError) as error:
        cause = str(getattr(error, "orig", None) or error.__cause__ or error).splitlines()[0]
        password = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
        cause = cause.replace(password, "***") if password else cause
        message = f"storage: must be an SQLAlchemy URL of a reachable database, but {safe_url(url)} gives: {cause}"
        raise UserError(message) from error
    except RuntimeError as error:
        raise HeadwayError(f"storage: {safe_url(url)}: {error}") from error
