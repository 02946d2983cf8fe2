"""Databases that hold a store: where they are by default, how they are opened, what is said when they are not there."""

from __future__ import annotations

import importlib.util
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from search.one_at_a_time import one_at_a_time
from search.patience import PatientStorage, cause
from spaces.errors import HeadwayError, UserError

_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_CONNECT_SECONDS = 5.0
# By the scheme without a driver: the drivers that are tried in turn, by the module that is imported, and the extra that
# brings the last one. SQLAlchemy would take the first one, there or not.
_DRIVERS = {
    "postgresql": ({"psycopg2": "psycopg2", "psycopg": "psycopg"}, "postgres"),
    "mysql": ({"mysqldb": "MySQLdb", "pymysql": "pymysql"}, "mysql"),
    "mariadb": ({"mysqldb": "MySQLdb", "pymysql": "pymysql"}, "mysql"),
}
# Seconds: a server that vanished is noticed, and one that does not answer is not waited for.
_LIBPQ = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_MYSQL = {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60}


def default_url(folder: Path) -> str:
    """The store of a study that names none: SQLite in its folder."""
    return f"sqlite:///{(folder / 'study.db').absolute()}"


def safe_url(url: str) -> str:
    """The URL without user, password and query, for messages."""
    if "://" not in url:
        return "the given URL"
    return re.sub(r"://.*@", "://***@", url).partition("?")[0]


def server(url: str) -> bool:
    """Whether it is a database server, and not a file."""
    return url.partition("://")[0].partition("+")[0] in _DRIVERS


def with_driver(url: str) -> str:
    """The URL with the driver that is installed here, where it names none.

    Raises:
        UserError: None is, or not the one that it names.
    """
    scheme, separator, rest = url.partition("://")
    kind, _, named = scheme.partition("+")
    if kind not in _DRIVERS:
        return url
    drivers, extra = _DRIVERS[kind]
    for driver, module in {named: drivers.get(named, named)}.items() if named else drivers.items():
        if importlib.util.find_spec(module) is not None:
            return f"{kind}+{driver}{separator}{rest}"
    raise UserError(
        f"storage: must be an SQLAlchemy URL of a reachable database, but {safe_url(url)} needs a driver that is not "
        f"installed here; pip install 'headway[{extra}]' brings one, for {kind}+{list(drivers)[-1]}://."
    )


def options(url: str) -> dict[str, Any]:
    """What SQLAlchemy's engine is given for a URL."""
    scheme = url.partition("://")[0]
    if scheme.startswith("sqlite"):
        return {"connect_args": {"timeout": 60}}
    connect = {}
    if scheme in ("postgresql+psycopg", "postgresql+psycopg2"):
        connect = {**_LIBPQ, "tcp_user_timeout": 60_000}
    elif scheme.endswith(("+pymysql", "+mysqldb")):
        connect = _MYSQL
    return {"pool_pre_ping": True, "connect_args": dict(connect)}


def open_storage(url: str) -> PatientStorage:
    """Opens Optuna's storage at an SQLAlchemy URL, making its tables where there are none.

    Raises:
        UserError: It cannot be reached or opened.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with explained(url):
        parts = make_url(url)
        if parts.host and (port := parts.port or _PORTS.get(parts.get_backend_name())):
            # Drivers wait minutes for a host that does not answer.
            socket.create_connection((parts.host, port), _CONNECT_SECONDS).close()
        there = with_driver(url)
        # Optuna makes the tables of a new storage without a lock: a ``headway status`` then would break the run.
        with one_at_a_time(url):
            return PatientStorage(there, engine_kwargs=options(there))


def probe(url: str) -> None:
    """Connects to a database and leaves it.

    Raises:
        UserError: Its driver is not installed.
        SQLAlchemyError: It cannot be reached.
    """
    there = with_driver(url)
    engine = create_engine(there, poolclass=NullPool, **{**options(there), "pool_pre_ping": False})
    with engine.connect():
        pass


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
        told = cause(error)
        password = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
        told = told.replace(password, "***") if password else told
        message = f"storage: must be an SQLAlchemy URL of a reachable database, but {safe_url(url)} gives: {told}"
        raise UserError(message) from error
    except RuntimeError as error:
        raise HeadwayError(f"storage: {safe_url(url)}: {error}") from error
