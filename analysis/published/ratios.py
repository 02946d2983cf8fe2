"""Published rows as ratios to their own table's baseline, to be laid over a study of another detector and device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.published.table import Row, Table

# Printed column, Headway's metrics, and whether the figure is a rate: twice the images a second is half the latency.
_METRICS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("AP", ("bbox_mAP",), False),
    ("AP50", ("bbox_mAP_50",), False),
    ("mAP", ("bbox_mAP_50",), False),  # VOC's
    ("AP75", ("bbox_mAP_75",), False),
    ("AP_S", ("bbox_mAP_s",), False),
    ("AP_M", ("bbox_mAP_m",), False),
    ("AP_L", ("bbox_mAP_l",), False),
    ("time", ("latency_ms", "latency_ratio"), False),
    ("FPS", ("latency_ms", "latency_ratio"), True),
    ("head GMACs", ("head_gmacs",), False),
)


@dataclass(frozen=True)
class RelativeRow:
    """One published row against the baseline of its table.

    Attributes:
        paper: As in ``Table.paper``.
        where: ``table 3`` or ``figure 4``.
        label: As the table names it.
        baseline: The row that it is divided by.
        data: Data set and split.
        device: What speed was measured on, ``None`` without.
        ratios: By Headway's metric: this row's figure over the baseline's, above 0.
    """

    paper: str
    where: str
    label: str
    baseline: str
    data: str
    device: str | None
    ratios: Mapping[str, float]


def relative_rows(tables: Sequence[Table]) -> list[RelativeRow]:
    """Gives every row that its own table has a baseline for, and at least two figures of both.

    The baseline is the table's row of the same study without any knob; it is left out itself, and so is a row whose
    label and ratios stood in a table of the paper before.
    """
    found: list[RelativeRow] = []
    seen: set[tuple[str, tuple[tuple[str, float], ...]]] = set()
    for table in tables:
        bases = {row.study: row for row in reversed(table.rows) if row.study is not None and not row.knobs}
        for row in table.rows:
            base = bases.get(row.study) if row.study is not None else None
            if base is None or row is base:
                continue
            ratios = _ratios(row, base)
            key = table.paper, tuple(sorted(ratios.items()))
            if len(ratios) < 2 or key in seen:
                continue
            seen.add(key)
            where = f"{table.kind} {table.number}"
            found.append(RelativeRow(table.paper, where, row.label, base.label, table.data, table.device, ratios))
    return found


def _ratios(row: Row, base: Row) -> dict[str, float]:
    ratios: dict[str, float] = {}
    for column, metrics, rate in _METRICS:
        own, other = row.metrics.get(column), base.metrics.get(column)
        if own and other:
            ratios.update(dict.fromkeys(metrics, other / own if rate else own / other))
    return ratios
