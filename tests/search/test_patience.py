"""Waiting for a database: what is waited for, how long, and that a full disk is survived for real."""

import sqlite3
from itertools import count

import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import IntegrityError, OperationalError

from search.patience import Patience, patience_seconds, unreachable
from search.store import Store
from search.study import parse
from spaces.base import BaseFacts
from spaces.errors import CutShort, HeadwayError, UserError
from spaces.space import build_space

SPACE = build_space({"slimhead": {}, "dcn": {}}, BaseFacts("GFL", "GFLHead", (8, 16, 32, 64, 128), 4, False))
STUDY = parse(
    {
        "name": "patient",
        "base": "headway::gfl_tiny",
        "data": {"digits": {}, "size": [96, 96]},
        "space": {"slimhead": {}, "dcn": {}},
        "sampler": {"name": "random"},
    },
    "patient.yaml",
)


def of_sqlite(text):
    return OperationalError("INSERT", {}, sqlite3.OperationalError(text))


def through_optuna(error):
    raised = StorageInternalError("An exception is raised during the commit.")
    raised.__cause__ = error
    return raised


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (of_sqlite("database or disk is full"), True),
        (of_sqlite("database is locked"), True),
        (of_sqlite("disk I/O error"), True),
        (of_sqlite("no such table: trials"), False),
        (OperationalError("SELECT", {}, Exception("server closed the connection unexpectedly")), True),
        (IntegrityError("INSERT", {}, Exception("duplicate key")), False),
        (IntegrityError("INSERT", {}, Exception("gone"), connection_invalidated=True), True),
        (ValueError("too long"), False),
    ],
)
def test_what_is_waited_for(error, expected):
    assert unreachable(error) is expected
    assert unreachable(through_optuna(error)) is expected


class Time:
    """Seconds that pass while one sleeps."""

    def __init__(self, monkeypatch):
        self.now, self.pauses = 0.0, []
        monkeypatch.setattr("search.patience.time.monotonic", lambda: self.now)
        monkeypatch.setattr("search.patience.time.sleep", self.sleep)

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


def failing(times, error=None):
    calls = count()

    def attempt():
        if next(calls) < times:
            raise error or of_sqlite("database is locked")
        return "done"

    return attempt


def test_pauses_grow_and_it_is_said_once(monkeypatch):
    time, said = Time(monkeypatch), []
    patience = Patience(600, "a.db", waiting=said.append, back=said.append)
    assert patience.through(failing(9), writes=True) == "done"
    assert time.pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10])
    assert said == ["database is locked", pytest.approx(42.6)]
    assert patience.over is None


def test_the_end_of_patience_is_final(monkeypatch):
    time = Time(monkeypatch)
    patience = Patience(5, "postgresql://***@h/d")
    expected = r"postgresql://\*\*\*@h/d could not be used for 5 s: database is locked; nothing is lost"
    with pytest.raises(CutShort, match=expected):
        patience.through(failing(99), writes=False)
    assert sum(time.pauses) == pytest.approx(5)
    with pytest.raises(CutShort, match=expected):  # also when the database is there again
        patience.through(failing(0), writes=False)


def test_other_errors_are_not_waited_for(monkeypatch):
    time = Time(monkeypatch)
    with pytest.raises(ValueError, match="too long"):
        Patience(5, "a.db").through(failing(1, ValueError("too long")), writes=True)
    assert time.pauses == []


def test_the_guard_is_asked_before_writes_and_after_each_pause(monkeypatch):
    Time(monkeypatch)
    asked = []
    patience = Patience(5, "a.db", guard=lambda: asked.append(1))
    patience.through(failing(0), writes=False)
    assert len(asked) == 0
    patience.through(failing(2), writes=False)
    assert len(asked) == 2
    patience.through(failing(0), writes=True)
    assert len(asked) == 3

    def refuse():
        raise HeadwayError("another driver has it")

    patience.guard = refuse
    for _ in range(2):
        with pytest.raises(HeadwayError, match="another driver has it"):
            patience.through(failing(0), writes=True)
    assert patience.over is not None


def test_how_long(monkeypatch):
    monkeypatch.delenv("HEADWAY_STORAGE_PATIENCE", raising=False)
    assert (patience_seconds("sqlite:///x.db"), patience_seconds("postgresql://h/d")) == (60, 600)
    monkeypatch.setenv("HEADWAY_STORAGE_PATIENCE", "90")
    assert (patience_seconds("sqlite:///x.db"), patience_seconds("postgresql://h/d")) == (90, 90)
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv("HEADWAY_STORAGE_PATIENCE", wrong)
        with pytest.raises(UserError, match=r"\$HEADWAY_STORAGE_PATIENCE: must be a number of seconds"):
            patience_seconds("sqlite:///x.db")


def test_a_full_disk_under_sqlite_is_waited_for(tmp_path, monkeypatch):
    """SQLite's own limit of pages gives its own error of a full disk."""
    said = []
    store = Store.create(tmp_path, STUDY, say=said.append)
    store.propose_baseline(SPACE)

    pages = {"most": 10**6}

    @sqlalchemy.event.listens_for(store._storage.engine, "checkout")
    def limit(connection, *_):
        connection.execute(f"PRAGMA max_page_count = {pages['most']}")

    with store._storage.engine.connect() as connection:
        pages["most"] = connection.execute(sqlalchemy.text("PRAGMA page_count")).scalar()
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            pages["most"] = 10**6

    monkeypatch.setattr("search.patience.time.sleep", sleep)
    store.update(0, {"gmacs": 1.0}, {"long": "x" * 100_000}, 1.0)
    assert len(pauses) == 3
    assert "cannot be used (database or disk is full); waiting up to 60 s" in said[0]
    assert said[1].startswith("the database is there again")
    assert Store.read(tmp_path, STUDY).records() == store.records()
