"""One driver a study, where drivers on several machines share a database and no folder."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from search.storage import explained, options, with_driver
from spaces.errors import HeadwayError, UserError

_CHECK_SECONDS = 1.0
_DIE_SECONDS = 5.0


@contextmanager
def held(url: str | None, study: str) -> Iterator[Callable[[], None]]:
    """Holds a study on its database server for one run; nothing where the storage is a file (see ``folder.claimed``).

    Args:
        url: The study file's ``storage``.
        study: Its name.

    Yields:
        What raises ``HeadwayError`` once another driver holds the study, and SQLAlchemy's errors where the server
        cannot be asked.

    Raises:
        UserError: Another driver holds it, or the database cannot be reached.
    """
    kind = make_url(url).get_backend_name() if url and "://" in url else ""
    if url is None or kind not in _LOCKS:
        yield lambda: None
        return
    with explained(url):
        lock = _LOCKS[kind](with_driver(url), study)
        if not lock.take():
            raise UserError(f"{study}: is being run already, by {lock.holder()}.")
    try:
        yield lock.check
    finally:
        lock.release()


class _Lock(ABC):
    """A lock that lives as long as a connection of its own."""

    def __init__(self, url: str, study: str) -> None:
        self._study = study
        self._key = hashlib.sha256(f"headway:{study}".encode()).digest()
        # What the server shows of this connection, 63 characters at most.
        self._sign = f"headway {os.getpid()} {secrets.token_hex(3)} {socket.gethostname()}"[:63]
        # Each statement by itself: a transaction would stay open for the whole run.
        self._engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", **self._options(url))
        self._connection: Connection | None = None
        self._checked = 0.0

    def take(self) -> bool:
        """Takes the lock; returns whether nobody else has it."""
        self.release()
        self._connection = self._engine.connect()
        try:
            taken = self._try(self._connection)
        except SQLAlchemyError:
            self.release()
            raise
        self._checked = time.monotonic()
        return taken

    def check(self) -> None:
        """Sees that the lock is held, once a second; takes it again where its connection was lost.

        Raises:
            HeadwayError: Another driver has it.
        """
        if time.monotonic() - self._checked < _CHECK_SECONDS:
            return
        if self._connection is not None:
            try:
                self._connection.execute(text("SELECT 1"))
            except SQLAlchemyError:
                self.release()
            else:
                self._checked = time.monotonic()
                return
        if not self._take_again():
            self._checked = 0.0
            who = self.holder()
            self.release()
            raise HeadwayError(
                f"{self._study}: the database was lost for a while, and meanwhile the study was started by {who}; "
                "this run ends, that one goes on."
            )

    def release(self) -> None:
        """Gives the lock back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError, OSError):
                connection.close()

    def holder(self) -> str:
        """Who has the lock, as far as the server tells."""
        assert self._connection is not None
        found = self._connection.execute(text(self._holder), self._named).scalar()
        return self._told(str(found)) if found else "another process"

    def _take_again(self) -> bool:
        return self.take()

    @property
    @abstractmethod
    def _named(self) -> dict[str, object]: ...

    _holder = ""

    def _options(self, url: str) -> dict[str, object]:
        return {"connect_args": options(url).get("connect_args", {})}

    @abstractmethod
    def _try(self, connection: Connection) -> bool: ...

    @abstractmethod
    def _told(self, found: str) -> str: ...


class _PostgresLock(_Lock):
    """A session's advisory lock; the connection says whose it is."""

    _holder = (
        "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' "
        "AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND (l.classid::bigint << 32) | l.objid::bigint = :key AND l.objsubid = 1"
    )

    @property
    def _named(self) -> dict[str, object]:
        return {"key": int.from_bytes(self._key[:8], "big", signed=True)}

    def _options(self, url: str) -> dict[str, object]:
        found = super()._options(url)
        return {"connect_args": {**found["connect_args"], "application_name": self._sign}}  # type: ignore[dict-item]

    def _try(self, connection: Connection) -> bool:
        return bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), self._named).scalar())

    def _take_again(self) -> bool:
        if self.take():
            return True
        # The server may not know yet that the lost connection is dead: it is this process's own, by its sign.
        assert self._connection is not None
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :sign AND pid <> "
        self._connection.execute(text(f"{end} pg_backend_pid()"), {"sign": self._sign})
        deadline = time.monotonic() + _DIE_SECONDS
        while self.holder() == self._told(self._sign) and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._try(self._connection)

    def _told(self, found: str) -> str:
        _, pid, _, host = [*found.split(" ", 3), "", "", "", ""][:4]
        return f"{host} process {pid}"


class _MySQLLock(_Lock):
    """A named lock."""

    _holder = "SELECT host FROM information_schema.processlist WHERE id = IS_USED_LOCK(:key)"

    @property
    def _named(self) -> dict[str, object]:
        # Names are the server's, of 64 characters at most.
        database = self._engine.url.database or ""
        return {"key": f"headway:{hashlib.sha256(database.encode() + self._key).hexdigest()[:40]}"}

    def _try(self, connection: Connection) -> bool:
        return connection.execute(text("SELECT GET_LOCK(:key, 0)"), self._named).scalar() == 1

    def _told(self, found: str) -> str:
        return f"a process on {found}"


_LOCKS: dict[str, type[_Lock]] = {"postgresql": _PostgresLock, "mysql": _MySQLLock, "mariadb": _MySQLLock}
