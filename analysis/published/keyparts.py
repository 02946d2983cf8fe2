"""Tables 1 to 4 and figure 4 of key-part heads ("Condensing Two-stage Detection with ... Key Part Discovery")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.published.table import Knobs, Row, Table, figures

TITLE = "Condensing Two-stage Detection with Automatic Object Key Part Discovery"
_VOC = "PASCAL VOC 2007 test"
_COCO = "COCO val, 5,000 images"
_R50 = "FPN with a ResNet-50"


def key_parts(parts: int = 16, grid: int = 5, blocks: int = 2, num_fcs: int = 1, **more: Any) -> Knobs:
    """The head of ``parts`` key parts (the paper's K) and a global branch of ``grid`` x ``grid`` sites (its L)."""
    return {"keyparts": {"parts": parts, "grid": grid, "blocks": blocks, "num_fcs": num_fcs, **more}}


def _ablation(study: str, label: str, value: float, knobs: Knobs, note: str | None = None) -> Row:
    return Row(label=label, metrics={"mAP": value}, study=f"keyparts/{study}.yaml", knobs=knobs, note=note)


_OURS_IS_COCO = "Headway's AP is COCO's; VOC's mAP is closest to its bbox_mAP_50"
_CURVE = Table(
    paper="keyparts",
    kind="figure",
    number=4,
    title=f"parameters against mAP ({_R50}); the points that the text names, all others are only drawn",
    data=_VOC,
    rows=(
        _ablation("figure4", "baseline", 80.5, {}, _OURS_IS_COCO),
        _ablation("figure4", "K16, L5", 80.5, key_parts()),
        _ablation(
            "figure4", "K1, L1", 79.0, key_parts(1, 1),
            'the text: "waived over 96% of the original model parameters with only a deterioration of 1.5 %"',
        ),
    ),
)  # fmt: skip

_CONFIDENCES = Table(
    paper="keyparts",
    number=1,
    title=f"what squashes the confidences of key parts ({_R50}, K16, L5)",
    data=_VOC,
    rows=(
        _ablation("table1", "linear", 79.9, key_parts(confidence="linear")),
        _ablation("table1", "sigmoid", 79.8, key_parts(confidence="sigmoid")),
        _ablation("table1", "softmax", 80.1, key_parts(confidence="softmax")),
        _ablation("table1", "TMR", 80.5, key_parts(confidence="tmr")),
    ),
)

_PARTS = Table(
    paper="keyparts",
    number=2,
    title=f"each part of the head left out ({_R50})",
    data=_VOC,
    rows=(
        _ablation("table2", "baseline", 80.5, {}),
        Row(
            label="baseline pruning (halve model size)",
            metrics={"mAP": 78.9},
            reason="another method: the fully connected layers are factored by SVD after training, which no knob does",
        ),
        _ablation("table2", "ours (halve model size: K16, L5)", 80.5, key_parts()),
        _ablation("table2", "ours w/o concentration step", 80.0, key_parts(blocks=0)),
        _ablation("table2", "ours w/o global modeling", 79.8, key_parts(grid=0)),
        _ablation("table2", "ours w/o L_d", 79.9, key_parts(losses="uniqueness")),
        _ablation("table2", "ours w/o L_u", 80.2, key_parts(losses="discriminative")),
    ),
)

_HEAD = "head~params head~size head~GMACs"
_ON_VOC = f"{_HEAD} mAP"
_ON_COCO = f"{_HEAD} AP AP50 AP_S AP_M AP_L"
_ARCHITECTURES = {
    "R-FCN": ("rfcn", key_parts(16, 3, num_fcs=0)),
    "Faster RCNN": ("faster-rcnn", key_parts(4, 3, blocks=4)),
    "FPN": ("fpn", key_parts()),
    "Cascade RCNN": ("cascade-rcnn", key_parts()),
}
_POOLED = (
    "the paper's multiply-adds need channels reduced before pooling (order: reduce_first); its equation 9 pools first"
)
_FOUR = "four architectures (ResNet-101); what is printed of a head leaves out the RPN, which our head has in it"
_FIRST_TRAINED = "the paper starts all heads of its own on COCO from a backbone first trained in the original detector"
_NOTES: Mapping[int, Mapping[str, tuple[str, ...]]] = {
    3: {
        "R-FCN": (_OURS_IS_COCO,),
        "Ours & R-FCN": ("as section 5.3 describes it, this head has fewer parameters than are printed",),
        "Ours & Faster RCNN": (_POOLED,),
        "Ours & FPN": (_POOLED,),
        "Ours & Cascade RCNN": ("blocks are those of the first stage, the others have 3 and 4", _POOLED),
    },
    4: {
        "R-FCN": ('trained on train2017; the paper has "around 83,000 images for training"',),
        "Ours & R-FCN": (_FIRST_TRAINED,),
    },
}


def _architectures(number: int, columns: str, figures_of: dict[str, tuple[tuple[float, ...], ...]]) -> tuple[Row, ...]:
    """Gives two rows an architecture: as it is, and with the key-part head."""
    rows = []
    for name, lines in figures_of.items():
        file, knobs = _ARCHITECTURES[name]
        for label, values, design in ((name, lines[0], {}), (f"Ours & {name}", lines[1], knobs)):
            rows.append(
                Row(
                    label=label,
                    metrics=figures(columns, *values),
                    study=f"keyparts/table{number}_{file}.yaml",
                    knobs=design,
                    note="; ".join(_NOTES[number].get(label, ())) or None,
                )
            )
    return tuple(rows)


_VOC_TABLE = Table(
    paper="keyparts",
    number=3,
    title=_FOUR,
    data=_VOC,
    rows=_architectures(
        3,
        _ON_VOC,
        {
            "R-FCN": ((3.5, 13, 7.4, 80.5), (1.5, 5, 4.8, 80.6)),
            "Faster RCNN": ((15.2, 59, 734.0, 79.8), (8.0, 31, 60.3, 80.2)),
            "FPN": ((14.0, 54, 14.0, 81.3), (6.8, 27, 10.4, 81.5)),
            "Cascade RCNN": ((41.8, 160, 41.8, 82.1), (20.3, 78, 34.8, 82.0)),
        },
    ),
)
_COCO_TABLE = Table(
    paper="keyparts",
    number=4,
    title=_FOUR,
    data=_COCO,
    rows=_architectures(
        4,
        _ON_COCO,
        {
            "R-FCN": ((6.6, 25, 25.4, 27.6, 48.9, 8.9, 30.5, 42.0), (3.0, 12, 7.8, 28.4, 46.0, 7.3, 30.8, 47.9)),
            "Faster RCNN": (
                (15.8, 61, 733.8, 37.4, 58.7, 18.8, 41.0, 51.1),
                (8.3, 32, 60.6, 37.5, 58.7, 21.8, 41.9, 48.6),
            ),
            "FPN": ((14.3, 55, 14.3, 38.5, 60.3, 22.3, 43.0, 49.8), (7.1, 28, 10.6, 38.5, 60.4, 22.4, 42.8, 50.3)),
            "Cascade RCNN": (
                (41.9, 161, 41.9, 42.0, 60.3, 23.2, 45.9, 56.3),
                (20.5, 79, 35.0, 42.1, 61.1, 23.1, 46.0, 57.0),
            ),
        },
    ),
)

TABLES = (_CURVE, _CONFIDENCES, _PARTS, _VOC_TABLE, _COCO_TABLE)
