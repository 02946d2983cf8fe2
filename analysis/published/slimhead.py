"""Tables 1 to 9 of SlimHead ("Efficient Multi-Level Learning for Dense Object Detection")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.published.table import Knobs, Row, Table, figures

TITLE = "Efficient Multi-Level Learning for Dense Object Detection (SlimHead)"
_COCO = "COCO val2017"
_GPU = "RTX 3090"
_BASELINE = (40.1, 58.2, 43.1, 37.0)
_OTHER = "another method's head or losses, which no knob makes"
_OTHER_COUNTED = f"{_OTHER}; mmdet's config is counted as it stands"


def slim(levels: str, ratio: float = 0.5, dcn: Sequence[int] = (), **more: Any) -> Knobs:
    """SlimHead's knobs, with deformable convolutions (v2) at the positions ``dcn`` of every tower."""
    knobs: dict[str, dict[str, Any]] = {"slimhead": {"levels": levels, "ratio": ratio, **more}} if ratio < 1 else {}
    return {**knobs, "dcn": {"placement": list(dcn)}} if dcn else knobs


def _gfl(number: int, label: str, values: Sequence[float], knobs: Knobs, columns: str = "AP AP50 AP75 FPS") -> Row:
    return Row(label=label, metrics=figures(columns, *values), study=f"slimhead/table{number}.yaml", knobs=knobs)


_MODES = Table(
    paper="slimhead",
    number=1,
    title="interpolation of Slim and Fat (GFL, K = 3, r = 0.5)",
    data=_COCO,
    device=_GPU,
    rows=(
        _gfl(1, "baseline", _BASELINE, {}),
        _gfl(1, "nearest", (39.7, 57.8, 42.8, 43.9), slim("K3", mode="nearest")),
        _gfl(1, "max-pool", (39.7, 58.0, 42.7, 43.2), slim("K3", mode="maxpool")),
        _gfl(1, "bilinear", (39.5, 57.8, 42.5, 43.7), slim("K3", mode="bilinear")),
    ),
)
_LEVELS = Table(
    paper="slimhead",
    number=2,
    title="level selector K (GFL, r = 0.5, DCN at the first two layers)",
    data=_COCO,
    device=_GPU,
    rows=(
        _gfl(2, "baseline", _BASELINE, {}),
        _gfl(2, "K=3", (41.4, 59.4, 44.8, 38.0), slim("K3", dcn=(0, 1))),
        _gfl(2, "K=4", (41.1, 59.2, 44.3, 40.7), slim("K4", dcn=(0, 1))),
        _gfl(2, "K=5", (40.6, 58.9, 43.7, 41.3), slim("K5", dcn=(0, 1))),
        _gfl(2, "K=6", (40.0, 58.5, 43.4, 41.3), slim("K6", dcn=(0, 1))),
        _gfl(2, "K=7", (39.6, 58.2, 42.9, 41.9), slim("K7", dcn=(0, 1))),
    ),
)
_RATIOS = {
    1.0: _BASELINE,
    0.9: (39.2, 57.7, 42.4, 38.0),
    0.8: (39.2, 57.6, 42.1, 39.9),
    0.7: (39.6, 58.0, 42.6, 40.6),
    0.6: (39.2, 57.6, 42.4, 42.2),
    0.5: (39.7, 57.8, 42.8, 43.9),
    0.4: (37.9, 56.3, 40.2, 45.1),
}
_RATIOS_DCN = {
    1.0: (42.0, 60.0, 45.6, 29.9),
    0.9: (40.9, 59.3, 44.3, 31.7),
    0.8: (40.9, 58.9, 44.2, 34.0),
    0.7: (41.0, 59.2, 44.4, 35.2),
    0.6: (40.7, 58.9, 44.1, 36.8),
    0.5: (41.4, 59.4, 44.8, 38.0),
    0.4: (39.6, 57.9, 42.3, 39.6),
}
_RATIOS_TABLE = Table(
    paper="slimhead",
    number=3,
    title="scaling ratio r (GFL, K = 3), without and with DCN at the first two layers",
    data=_COCO,
    device=_GPU,
    rows=(
        *(_gfl(3, f"r={ratio}", values, slim("K3", ratio)) for ratio, values in _RATIOS.items()),
        *(_gfl(3, f"r={ratio} DCN", values, slim("K3", ratio, (0, 1))) for ratio, values in _RATIOS_DCN.items()),
    ),
)
_SCALES = Table(
    paper="slimhead",
    number=4,
    title="objects of different scales (GFL; SlimHead with K = 3, r = 0.5, DCN at the first two layers)",
    data=_COCO,
    device=_GPU,
    rows=(
        _gfl(4, "GFL", (37.0, 40.1, 23.3, 44.4, 52.5), {}, "FPS AP AP_S AP_M AP_L"),
        _gfl(4, "SlimHead", (38.0, 41.4, 22.7, 45.4, 55.9), slim("K3", dcn=(0, 1)), "FPS AP AP_S AP_M AP_L"),
    ),
)

_HEADS = "FPS AP AP50 AP75 AP_S AP_M AP_L"


def _head(label: str, *values: float, base: str | None = None, why: str | None = None) -> Row:
    reason = why or (_OTHER_COUNTED if base else f"{_OTHER}, and not in mmdet")
    return Row(label=label, metrics=figures(_HEADS, *values), base=base and f"mmdet::{base}", reason=reason)


def _tood(label: str, *values: float, knobs: Knobs) -> Row:
    return Row(label=label, metrics=figures(_HEADS, *values), study="slimhead/table5.yaml", knobs=knobs)


_SOTA = Table(
    paper="slimhead",
    number=5,
    title="head networks (ResNet-50, 1x); SlimHead on TOOD with K = 3, r = 0.5, DCN at the first three layers",
    data=_COCO,
    device=_GPU,
    rows=(
        _head("RetinaNet", 35.9, 36.5, 55.4, 39.1, 20.4, 40.3, 48.1, base="retinanet/retinanet_r50_fpn_1x_coco.py"),
        _head(
            "FCOS", 36.9, 38.7, 57.4, 41.8, 22.9, 42.5, 50.1,
            base="fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py",
        ),
        _head("ATSS", 36.9, 39.3, 57.5, 42.8, 24.3, 43.3, 51.3, base="atss/atss_r50_fpn_1x_coco.py"),
        _head(
            "Double-Head", 1.5, 40.1, 59.4, 43.5, 22.9, 43.6, 52.9,
            base="double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py",
        ),
        _head("GFocal", 37.0, 40.1, 58.2, 43.1, 23.3, 44.4, 52.5, base="gfl/gfl_r50_fpn_1x_coco.py"),
        _head("PAA", 16.0, 40.4, 58.4, 43.9, 22.9, 44.3, 54.0, base="paa/paa_r50_fpn_1x_coco.py"),
        _head(
            "AutoAssign", 34.5, 40.4, 59.6, 43.7, 22.7, 44.1, 52.9,
            base="autoassign/autoassign_r50-caffe_fpn_1x_coco.py",
        ),
        _head("YOLOF", 29.5, 40.5, 59.8, 43.9, 23.0, 44.9, 53.8, why=f"{_OTHER}; the row's ResNet-101 has no config"),
        _head("OTA", 36.9, 40.7, 58.4, 44.3, 23.2, 45.0, 53.6),
        _head("GFocalV2", 36.6, 41.1, 58.8, 44.9, 23.5, 44.9, 53.3),
        _head("VFNet", 31.2, 41.5, 59.1, 45.2, 24.4, 45.4, 53.9, base="vfnet/vfnet_r50_fpn_1x_coco.py"),
        _head("DDQ-FCN", 36.0, 41.5, 60.9, 45.9, 25.1, 44.6, 53.1),
        _head(
            "DDOD", 36.7, 41.6, 55.9, 45.1, 23.4, 44.8, 55.3, base="ddod/ddod_r50_fpn_1x_coco.py",
            why="mmdet's config is counted as it stands; as a design of Headway it is in DDOD's table 3",
        ),
        _head("DW + box refine", 35.0, 42.1, 59.9, 45.1, 24.2, 45.3, 55.9),
        _tood("TOOD", 33.6, 42.3, 59.6, 45.9, 25.8, 45.6, 54.9, knobs={}),
        _head(
            "DyHead", 24.3, 42.6, 60.1, 46.4, 26.1, 46.8, 56.0,
            base="dyhead/atss_r50_fpn_dyhead_1x_coco.py",
        ),
        _tood("SlimHead", 34.2, 43.2, 60.4, 47.0, 24.2, 47.0, 58.5, knobs=slim("K3", dcn=(0, 1, 2))),
    ),
)  # fmt: skip

_FRCNN = "slimhead/table6.yaml"
_NO_PSC = (
    "rotated boxes: with the extra 'rotated', 'headway patch' and 'headway profile' take mmrotate's PSC configs, "
    "but trials cannot train them"
)
_DETECTORS = Table(
    paper="slimhead",
    number=6,
    title="Faster R-CNN (RPN slimmed, DCN) and PSC (P4 slimmed, DCN at the first layer)",
    data="COCO val2017; PSC: DOTA-v1.0 val",
    device=_GPU,
    rows=(
        Row(label="Faster R-CNN", metrics=figures("AP AP50 AP75 FPS", 37.4, 58.1, 40.4, 37.7), study=_FRCNN),
        Row(
            label="Faster R-CNN + SlimHead",
            metrics=figures("AP AP50 AP75 FPS", 37.8, 58.7, 41.3, 38.7),
            study=_FRCNN,
            knobs=slim("P2", dcn=(0,)),
            note='"the same settings of K = 3 and DCN": the RPN has no P3 first; its finest level, P2, is slimmed, '
            "and its one convolution deformed",
        ),
        Row(label="PSC", metrics=figures("AP AP50 AP75 FPS", 41.9, 68.2, 42.9, 31.3), reason=_NO_PSC),
        Row(label="PSC + SlimHead", metrics=figures("AP AP50 AP75 FPS", 43.1, 68.8, 43.9, 30.1), reason=_NO_PSC),
    ),
)

_VOC, _CROWD = "slimhead/table7_voc.yaml", "slimhead/table7_crowdhuman.yaml"
_SETS = Table(
    paper="slimhead",
    number=7,
    title="VOC (K = 4, DCN at the first three layers) and CrowdHuman (P4 slimmed, DCN at the first layer), TOOD",
    data="PASCAL VOC 2007 test; CrowdHuman val",
    device=_GPU,
    rows=(
        Row(label="VOC", metrics=figures("AP AP50 AP75 FPS", 56.3, 79.3, 62.0, 33), study=_VOC),
        Row(
            label="VOC + SlimHead",
            metrics=figures("AP AP50 AP75 FPS", 57.7, 80.3, 63.5, 34),
            study=_VOC,
            knobs=slim("K4", dcn=(0, 1, 2)),
            note="the paper does not say at which size VOC's images are seen; COCO's is taken",
        ),
        Row(label="CrowdHuman", metrics=figures("AP AP50 AP75 FPS", 44.0, 78.8, 43.3, 33), study=_CROWD),
        Row(
            label="CrowdHuman + SlimHead",
            metrics=figures("AP AP50 AP75 FPS", 44.6, 79.1, 44.1, 34),
            study=_CROWD,
            knobs=slim("P4", dcn=(0,)),
        ),
    ),
)

_BOX_MASK = "AP AP50 AP75 mask~AP mask~AP50 mask~AP75 FPS"
_BOX_ONLY = "Headway reports the AP of boxes; images are seen at one size, not at mmdet's several"
_INSTANCE = Table(
    paper="slimhead",
    number=8,
    title="instance segmentation (K = 4, r = 0.5, DCN at all layers)",
    data=_COCO,
    device=_GPU,
    rows=tuple(
        Row(
            label=label,
            metrics=figures(_BOX_MASK, *values),
            study=f"slimhead/table8_{name}.yaml",
            knobs=knobs,
            note=_BOX_ONLY,
        )
        for label, name, values, knobs in (
            ("BoxInst", "boxinst", (39.6, 58.5, 42.9, 31.1, 53.1, 31.7, 27.8), {}),
            ("BoxInst + SlimHead", "boxinst", (40.5, 59.1, 43.9, 31.8, 53.7, 32.6, 28.1), slim("K4", dcn=(0, 1, 2, 3))),
            ("CondInst", "condinst", (39.3, 58.3, 42.4, 35.7, 56.2, 38.1, 29.3), {}),
            (
                "CondInst + SlimHead",
                "condinst",
                (40.9, 59.6, 44.2, 36.9, 57.4, 39.5, 29.7),
                slim("K4", dcn=(0, 1, 2, 3)),
            ),
        )
    ),
)

_MEMORY = Table(
    paper="slimhead",
    number=9,
    title="GPU memory in training, 2 images (TOOD, K = 3, r = 0.5, DCN at the first three layers)",
    data=_COCO,
    device=_GPU,
    rows=tuple(
        Row(
            label=label + (" + SlimHead" if knobs else ""),
            metrics=figures("memory AP AP50 AP75 FPS", *values),
            study=f"slimhead/table9_{name}.yaml",
            knobs=knobs,
            note=note,
        )
        for label, name, note, plain, slimmed in (
            ("ResNet-18", "r18", None, (2105, 38.0, 54.6, 40.7, 47.1), (1788, 39.1, 55.4, 42.4, 47.4)),
            (
                "ResNet-50", "r50", "the rows TOOD and SlimHead of table 5",
                (3967, 42.3, 59.6, 45.9, 33.6), (3653, 43.2, 60.4, 47.0, 34.2),
            ),
            (
                "Swin-L 2x", "swin-l", "images are seen at one size, not at 480 to 960",
                (6518, 50.1, 68.8, 54.6, 6.6), (6198, 50.6, 69.3, 54.7, 6.7),
            ),
        )
        for values, knobs in ((plain, {}), (slimmed, slim("K3", dcn=(0, 1, 2))))
    ),
)  # fmt: skip

TABLES = (_MODES, _LEVELS, _RATIOS_TABLE, _SCALES, _SOTA, _DETECTORS, _SETS, _INSTANCE, _MEMORY)
