"""The papers' tables as data: each row with its printed figures and the design that it is here, or why it is none."""

from __future__ import annotations

from analysis.published import ddod, keyparts, pod, querydet, slimhead
from analysis.published.table import UNITS, Row, Table

TABLES: tuple[Table, ...] = (*slimhead.TABLES, *ddod.TABLES, *querydet.TABLES, *keyparts.TABLES, *pod.TABLES)
PAPERS: dict[str, str] = {
    "slimhead": slimhead.TITLE,
    "ddod": ddod.TITLE,
    "querydet": querydet.TITLE,
    "keyparts": keyparts.TITLE,
    "pod": pod.TITLE,
}

__all__ = ["PAPERS", "TABLES", "UNITS", "Row", "Table", "tables"]


def tables(paper: str | None = None, number: int | None = None) -> list[Table]:
    """Gives the tables of one paper or of all, or those of one number."""
    return [
        table
        for table in TABLES
        if (paper is None or table.paper == paper) and (number is None or table.number == number)
    ]
