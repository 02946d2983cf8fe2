"""What a published table is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# The blocks of a ResNet whose learned dilations are printed (POD, table 3): R46 is the sixth of conv4.
BLOCKS = ("R31", "R34", "R41", "R46", "R51", "R53")

# Of all printed figures, by column. AP over IoU 0.50 to 0.95 unless a threshold is named; of boxes unless masks are.
# mAP is VOC's, at IoU 0.50. A head is all that a two-stage detector does with a RoI. A dilation's +- is the standard
# deviation over images.
UNITS: Mapping[str, str] = {
    "head params": "10^6",
    "head size": "MB",
    "head GMACs": "10^9",
    "mAP": "%",
    **dict.fromkeys(("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L"), "%"),
    **dict.fromkeys(("mask AP", "mask AP50", "mask AP75"), "%"),
    **dict.fromkeys(("AR_1", "AR_10", "AR_100", "AR_500"), "%"),
    **dict.fromkeys(("Easy", "Medium", "Hard"), "%"),
    "FPS": "images/s",
    "time": "ms",
    "memory": "MB",
    **{column: "sites" for block in BLOCKS for column in (block, f"{block} +-")},
}

Knobs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row (or cell) of a published table.

    Attributes:
        label: As the table names it.
        metrics: The printed figures by column, in ``UNITS``.
        study: The study file that trains it, below ``recipes/papers``; ``None`` when there is none.
        knobs: Its design by family, inference knobs included where the row is a setting of them; ``{}`` is the base.
        base: The base config of a row without a study that can still be counted.
        reason: Why Headway cannot express the row.
        note: How the study differs from the paper's row, or what the paper leaves open.
    """

    label: str
    metrics: Mapping[str, float]
    study: str | None = None
    knobs: Knobs = field(default_factory=dict)
    base: str | None = None
    reason: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if (self.study is None) != (self.reason is not None):
            raise ValueError(f"{self.label}: must have either a study or a reason")


@dataclass(frozen=True, kw_only=True)
class Table:
    """One published table, or the points of a figure that the text names.

    Attributes:
        paper: ``slimhead``, ``ddod``, ``querydet``, ``keyparts`` or ``pod``.
        number: As printed.
        kind: ``table`` or ``figure``; the two are numbered apart.
        title: What it compares.
        data: Data set and split of the accuracies.
        device: What ``FPS`` was measured on, ``None`` without FPS.
        rows: In the paper's order.
    """

    paper: str
    number: int
    kind: Literal["table", "figure"] = "table"
    title: str
    data: str
    device: str | None = None
    rows: Sequence[Row]

    @property
    def columns(self) -> tuple[str, ...]:
        """The printed figures, in the order of ``UNITS``."""
        present = {name for row in self.rows for name in row.metrics}
        return tuple(name for name in UNITS if name in present)


def figures(names: str, *values: float | None) -> dict[str, float]:
    """Pairs the columns ``names`` (parted by spaces) with a row's figures; ``None`` where nothing is printed."""
    columns = names.split()
    if len(columns) != len(values):
        raise ValueError(f"{len(columns)} columns, but {len(values)} figures: {values}")
    return {name.replace("~", " "): value for name, value in zip(columns, values, strict=True) if value is not None}
