"""Tables 1 to 9 of QueryDet ("Cascaded Sparse Query for Accelerating High-Resolution Small Object Detection")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.published.table import Knobs, Row, Table, figures

TITLE = "QueryDet: Cascaded Sparse Query for Accelerating High-Resolution Small Object Detection"
_COCO = "COCO mini-val"
_GPU = "RTX 2080 Ti"
_FULL = "AP AP50 AP75 AP_S AP_M AP_L FPS"
_RETINA = (37.46, 56.90, 39.94, 22.64, 41.48, 48.04, 13.60)
_QUERY = (38.36, 58.78, 40.99, 24.33, 41.97, 49.53, 14.88)


def query(threshold: float = 0.15, **knobs: Any) -> Knobs:
    """QueryDet with P2, queried from P4 unless ``start`` says otherwise; threshold 0 computes every site."""
    return {"querydet": {"p2": True, "start": "P4", "threshold": threshold, **knobs}}


def _row(study: str, label: str, values: Sequence[float], knobs: Knobs, note: str | None = None) -> Row:
    return Row(
        label=label, metrics=figures(_FULL, *values), study=f"querydet/{study}.yaml", knobs=knobs, note=note
    )  # fmt: skip


def _none(values: Sequence[float]) -> Row:
    return _row("table4", "No Query", values, query(0.0))


_ONE_SIZE = "images are seen at one size, not at detectron2's several"
_MAIN = Table(
    paper="querydet",
    number=1,
    title="QueryDet against RetinaNet",
    data=_COCO,
    device=_GPU,
    rows=(
        _row("table1", "RetinaNet", _RETINA, {}, _ONE_SIZE),
        _row("table1_3x", "RetinaNet (3x)", (38.76, 58.27, 41.24, 22.89, 42.53, 50.02, 13.83), {}, _ONE_SIZE),
        _row("table1", "QueryDet", (38.53, 59.11, 41.12, 24.64, 41.97, 49.53, 4.85), query(0.0)),
        _row("table1", "QueryDet CSQ", _QUERY, query()),
        _row("table1_3x", "QueryDet (3x)", (39.47, 59.93, 42.11, 25.24, 42.37, 51.12, 4.89), query(0.0)),
        _row("table1_3x", "QueryDet CSQ (3x)", (39.34, 59.69, 41.98, 24.91, 42.38, 51.12, 15.94), query()),
    ),
)

_DRONE = "AP AP50 AP75 AR_1 AR_10 AR_100 AR_500 FPS"
_VISDRONE = Table(
    paper="querydet",
    number=2,
    title="QueryDet against RetinaNet on small objects",
    data="VisDrone val",
    device=_GPU,
    rows=tuple(
        Row(
            label=label,
            metrics=figures(_DRONE, *values),
            study="querydet/table2.yaml",
            knobs=knobs,
            note="the paper does not say at which size images are seen; 1333x800 is taken",
        )
        for label, values, knobs in (
            ("RetinaNet", (26.21, 44.90, 27.10, 0.52, 5.35, 34.63, 37.21, 2.63), {}),
            ("QueryDet", (28.35, 48.21, 28.78, 0.51, 5.96, 36.48, 39.42, 1.16), query(0.0, beta_max=2.6)),
            ("QueryDet CSQ", (28.32, 48.14, 28.75, 0.51, 5.96, 36.45, 39.35, 2.75), query(beta_max=2.6)),
        )
    ),
)

# The loss re-balance alone, without a query head: the linear weights of the ddod family are the same.
_REBALANCE: Knobs = {"ddod": {"assign": False, "reweight": "linear", "span": 3.0}}
_PARTS = Table(
    paper="querydet",
    number=3,
    title="high resolution (HR), re-balanced losses (RB), query head (QH), CSQ",
    data=_COCO,
    device=_GPU,
    rows=(
        _row("table3", "RetinaNet", _RETINA, {}),
        _row("table3_hr", "HR", (36.10, 56.39, 38.17, 21.94, 39.91, 45.25, 4.83), {}),
        _row(
            "table3", "RB", (37.66, 57.57, 40.37, 22.03, 41.86, 49.10, 13.60), _REBALANCE,
            "the paper does not give beta for P3 to P7 alone; 1 to 3 is taken",
        ),
        _row("table3_hr", "HR + RB", (38.11, 58.48, 40.85, 23.06, 41.53, 49.36, 4.83), _REBALANCE),
        _row("table3", "HR + RB + QH", (38.53, 59.11, 41.12, 24.64, 41.97, 49.53, 4.85), query(0.0)),
        _row("table3", "HR + RB + QH + CSQ", _QUERY, query()),
    ),
)  # fmt: skip

_NO_QUERY = (38.53, 59.11, 41.12, 24.64, 41.97, 49.53, 4.86)
_START_NOTE = "here each start is trained with query heads down to it; the paper seems to vary it on one detector"
_STARTS = Table(
    paper="querydet",
    number=4,
    title="level at which the queries start",
    data=_COCO,
    device=_GPU,
    rows=(
        _none(_NO_QUERY),
        _row(
            "table4", "P6", (37.91, 57.98, 40.51, 23.18, 42.02, 49.53, 13.42), query(start="P6"), _START_NOTE
        ),
        _row("table4", "P5", (38.22, 58.55, 40.86, 23.65, 42.00, 49.53, 13.92), query(start="P5")),
        _row("table4", "P4", _QUERY, query(start="P4")),
        _row("table4", "P3", (38.45, 58.94, 41.07, 24.50, 41.93, 49.52, 11.51), query(start="P3")),
    ),
)  # fmt: skip

_METHODS = Table(
    paper="querydet",
    number=5,
    title="query methods: crop (CQ), complete convolution (CCQ), sparse (CSQ)",
    data=_COCO,
    device=_GPU,
    rows=(
        _row("table5", "No Query", _NO_QUERY, query(0.0)),
        _row("table5", "CQ", (38.31, 58.73, 40.98, 24.25, 41.98, 49.53, 10.49), query(method="crop")),
        _row("table5", "CCQ", (38.32, 58.75, 40.98, 24.26, 41.97, 49.53, 8.73), query(method="full")),
        _row("table5", "CSQ", _QUERY, query(method="sparse")),
    ),
)

_CONTEXTS = Table(
    paper="querydet",
    number=6,
    title="context around the queried sites",
    data=_COCO,
    device=_GPU,
    rows=(
        _row("table6", "No Query", _NO_QUERY, query(0.0)),
        *(
            _row("table6", f"{2 * context + 1}x{2 * context + 1}", values, query(method="sparse", context=context))
            for context, values in enumerate(
                (
                    (38.25, 58.60, 40.87, 23.88, 41.97, 49.53, 14.09),
                    (38.30, 58.66, 40.94, 24.14, 41.97, 49.53, 14.06),
                    (38.36, 58.72, 40.98, 24.18, 41.97, 49.53, 14.00),
                    (38.37, 58.73, 40.98, 24.30, 41.97, 49.53, 13.77),
                    (38.37, 58.73, 40.98, 24.30, 41.97, 49.53, 13.42),
                    (38.38, 58.755, 40.99, 24.33, 41.97, 49.53, 13.11),
                )
            )
        ),
    ),
)

_BACKBONES = Table(
    paper="querydet",
    number=7,
    title="light backbones; RN RetinaNet, QD QueryDet",
    data=_COCO,
    device=_GPU,
    rows=(
        _row("table7", "MobileNet V2 RN", (26.72, 43.17, 28.17, 15.27, 29.28, 34.51, 17.75), {}),
        _row("table7", "MobileNet V2 QD", (29.16, 46.20, 30.95, 16.14, 31.26, 38.66, 5.31), query(0.0)),
        _row("table7", "MobileNet V2 QD CSQ", (28.94, 45.79, 30.71, 15.74, 31.26, 38.66, 21.66), query()),
        _row("table7_shufflenet", "ShuffleNet V2 RN", (23.04, 38.32, 23.75, 12.01, 25.50, 35.16, 17.45), {}),
        _row("table7_shufflenet", "ShuffleNet V2 QD", (26.07, 42.34, 27.30, 13.20, 28.03, 36.23, 5.26), query(0.0)),
        _row("table7_shufflenet", "ShuffleNet V2 QD CSQ", (25.85, 41.96, 27.08, 12.81, 28.05, 36.23, 20.02), query()),
    ),
)

_NO_NORM = "towers without a norm: a group norm looks at the whole map, so sparse would not be dense"
_POINTS = Table(
    paper="querydet",
    number=8,
    title="FCOS",
    data=_COCO,
    device=_GPU,
    rows=(
        _row("table8", "FCOS", (38.37, 57.63, 41.03, 22.34, 41.95, 48.96, 17.06), {}, _NO_NORM),
        _row("table8", "QueryDet (FCOS)", (40.05, 58.69, 43.46, 25.52, 43.43, 50.69, 7.92), query(0.0)),
        _row("table8", "QueryDet (FCOS) CSQ", (39.49, 57.97, 42.82, 24.81, 43.45, 50.69, 14.40), query()),
    ),
)


def _proposals(threshold: float) -> Knobs:
    # The RPN has P2 already; its own branches are "trained following common practice".
    return {"querydet": {"start": "P4", "rpn_convs": 3, "beta": "none", "threshold": threshold}}


_TWO_STAGE = Table(
    paper="querydet",
    number=9,
    title="Faster R-CNN with three convolutions in the RPN; the study's baseline has one",
    data=_COCO,
    device=_GPU,
    rows=(
        _row("table9", "dense", (38.47, 59.44, 41.73, 22.98, 41.90, 49.55, 17.57), _proposals(0.0)),
        _row("table9", "CSQ", (38.20, 58.88, 41.50, 22.23, 41.91, 49.55, 19.03), _proposals(0.15)),
    ),
)

TABLES = (_MAIN, _VISDRONE, _PARTS, _STARTS, _METHODS, _CONTEXTS, _BACKBONES, _POINTS, _TWO_STAGE)
