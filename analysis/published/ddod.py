"""Tables 1 to 7 and 9 of DDOD ("Disentangle Your Dense Object Detector"); table 8 compares with other detectors."""

from __future__ import annotations

from typing import Any

from analysis.published.table import Knobs, Row, Table, figures

TITLE = "Disentangle Your Dense Object Detector (DDOD)"
_COCO = "COCO minival"
_FULL = "AP AP50 AP75 AP_S AP_M AP_L"
_ATSS = (39.4, 56.6, 42.6, 23.9, 42.5, 49.6)

# The three parts of DDOD, each alone.
_SPATIAL: Knobs = {"dcn": {"placement": [0], "version": 1}}


def _training(**knobs: Any) -> Knobs:
    return {"ddod": knobs}


def _assign(alpha_cls: float, alpha_reg: float) -> Knobs:
    return _training(assign=True, alpha_cls=alpha_cls, alpha_reg=alpha_reg, reweight="none")


def _reweight(kind: str, **more: Any) -> Knobs:
    return _training(assign=False, reweight=kind, **more)


def _whole(version: int) -> Knobs:
    both = _training(assign=True, alpha_cls=0.8, alpha_reg=0.5, reweight="interpolate", cumulative=True)
    return {**both, "dcn": {"placement": [0], "version": version}}


def _row(number: int | str, label: str, values: tuple[float, ...], knobs: Knobs, note: str | None = None) -> Row:
    return Row(label=label, metrics=figures(_FULL, *values), study=f"ddod/table{number}.yaml", knobs=knobs, note=note)


_THRESHOLDS = {
    0.4: {0.4: 35.0, 0.5: 35.3, 0.6: 33.2},
    0.5: {0.4: 36.5, 0.5: 36.1, 0.6: 35.3},
    0.6: {0.4: 34.6, 0.5: 35.2, 0.6: 35.1},
}
_PILOT = Table(
    paper="ddod",
    number=1,
    title="IoU thresholds of classification and regression (RetinaNet)",
    data=_COCO,
    rows=tuple(
        Row(
            label=f"IoU cls={cls} reg={reg}",
            metrics={"AP": value},
            base="mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
            reason="a pilot: thresholds of IoU for each branch, where the ddod family assigns by matching quality",
        )
        for cls, line in _THRESHOLDS.items()
        for reg, value in line.items()
    ),
)

_FALLING = "weights that fall towards P7: linear of the ddod family rises, from 1 to span"
_LEVELS = Table(
    paper="ddod",
    number=2,
    title="loss weights from P3 to P7 (ATSS)",
    data=_COCO,
    rows=(
        _row(2, "1~1", _ATSS, {}),
        _row(2, "1~2", (39.8, 57.8, 42.9, 22.9, 43.5, 51.8), _reweight("linear", span=2.0)),
        _row(2, "1~3", (39.4, 56.7, 42.9, 21.6, 43.1, 52.0), _reweight("linear", span=3.0)),
        Row(label="2~1", metrics=figures(_FULL, 38.7, 56.6, 42.1, 23.2, 42.7, 48.3), reason=_FALLING),
        Row(label="3~1", metrics=figures(_FULL, 37.6, 55.3, 40.8, 22.2, 41.6, 47.0), reason=_FALLING),
    ),
)

_BIASED = "the towers have a bias, which mmcv's DCN v1 cannot have: v2"
_DETECTORS = Table(
    paper="ddod",
    number=3,
    title="DDOD on three detectors",
    data=_COCO,
    rows=(
        _row("3_retinanet", "RetinaNet", (36.5, 55.4, 39.1, 20.4, 40.3, 48.1), {}),
        _row(
            "3_retinanet",
            "RetinaNet + DDOD",
            (38.5, 58.1, 41.2, 20.7, 41.4, 51.6),
            _whole(2),
            _BIASED,
        ),
        _row("3_fcos", "FCOS*", (39.2, 57.3, 42.4, 22.7, 43.1, 51.5), {}),
        _row("3_fcos", "FCOS* + DDOD", (41.6, 59.7, 45.3, 24.3, 45.0, 55.1), _whole(2), _BIASED),
        _row("3_atss", "ATSS", _ATSS, {}),
        _row("3_atss", "ATSS + DDOD", (41.6, 59.9, 45.2, 23.9, 44.9, 54.4), _whole(1)),
    ),
)

_PARTS = Table(
    paper="ddod",
    number=4,
    title="each part of DDOD (ATSS)",
    data=_COCO,
    rows=(
        _row(4, "none", _ATSS, {}),
        _row(4, "assignment", (40.4, 58.9, 43.8, 24.1, 43.9, 51.4), _assign(0.8, 0.5)),
        _row(4, "spatial feature", (40.6, 58.6, 44.1, 24.0, 44.1, 52.5), _SPATIAL),
        _row(
            4, "supervision", (40.0, 57.9, 43.1, 23.0, 43.6, 52.6), _reweight("interpolate", cumulative=True)
        ),
        _row(4, "all three", (41.6, 59.9, 45.2, 23.9, 44.9, 54.4), _whole(1)),
    ),
)  # fmt: skip

_ALPHAS = {
    0.5: {0.5: 39.4, 0.6: 39.3, 0.7: 39.0, 0.8: 39.0},
    0.6: {0.5: 39.6, 0.6: 39.4, 0.7: 39.5, 0.8: 39.5},
    0.7: {0.5: 39.9, 0.6: 40.1, 0.7: 39.7, 0.8: 39.6},
    0.8: {0.5: 40.4, 0.6: 40.0, 0.7: 40.0, 0.8: 39.9},
}
_ASSIGNMENT = Table(
    paper="ddod",
    number=5,
    title="alpha of classification and regression (ATSS, assignment alone)",
    data=_COCO,
    rows=tuple(
        Row(
            label=f"alpha cls={cls} reg={reg}",
            metrics={"AP": value},
            study="ddod/table5.yaml",
            knobs=_assign(cls, reg),
        )
        for cls, line in _ALPHAS.items()
        for reg, value in line.items()
    ),
)

_POSITIONS = Table(
    paper="ddod",
    number=6,
    title="position of the deformable convolution in both towers (ATSS)",
    data=_COCO,
    rows=tuple(
        _row(6, f"position {position + 1}", values, {"dcn": {"placement": [position], "version": 1}})
        for position, values in enumerate(
            (
                (40.6, 58.4, 44.3, 23.6, 44.3, 52.4),
                (40.3, 58.5, 44.1, 23.9, 44.0, 52.4),
                (40.1, 57.9, 43.4, 23.0, 44.6, 52.4),
                (40.1, 57.9, 43.1, 23.0, 44.6, 52.6),
            )
        )
    ),
)

_CONSTANT = "constants average to themselves: the design of Linear-Reweight"
_REWEIGHTS = Table(
    paper="ddod",
    number=7,
    title="re-weighting of levels (ATSS); * counts positives over all iterations",
    data=_COCO,
    rows=(
        _row(7, "Sum-Reweight", (39.7, 57.5, 43.2, 22.6, 43.3, 52.1), _reweight("sum", cumulative=False)),
        _row(7, "Sum-Reweight*", (39.8, 57.8, 43.1, 23.0, 43.3, 51.0), _reweight("sum", cumulative=True)),
        _row(7, "Linear-Reweight", (39.8, 57.8, 42.9, 22.9, 43.5, 51.8), _reweight("linear")),
        _row(7, "Linear-Reweight*", (39.8, 57.7, 42.9, 23.0, 43.5, 52.0), _reweight("linear"), _CONSTANT),
        _row(7, "Linear-Interpolate", (39.8, 57.9, 43.1, 23.1, 43.2, 51.1), _reweight("interpolate", cumulative=False)),
        _row(7, "Linear-Interpolate*", (40.0, 57.9, 43.4, 22.9, 43.6, 52.6), _reweight("interpolate", cumulative=True)),
    ),
)

_FACES = {
    "PyramidBox (VGG-16)": (96.1, 95.0, 88.9),
    "PyramidBox++ (VGG-16)": (96.7, 95.9, 91.2),
    "AlnoFace (ResNet-152)": (97.0, 96.1, 91.8),
    "RetinaFace (ResNet-152)": (96.9, 96.1, 91.8),
    "RefineFace (ResNet-152)": (97.2, 96.2, 92.0),
    "DSFD (ResNet-152)": (96.6, 95.7, 90.4),
    "ASFD-D6 (ResNet-152)": (97.2, 96.5, 92.5),
    "HAMBox (ResNet-50)": (97.0, 96.4, 93.3),
    "TinaFace (ResNet-50)": (97.0, 96.3, 93.4),
}
_NO_SSH = "without the SSH module, which mmdet does not have; Headway's AP is COCO's, not WIDER FACE's"
_WIDER = Table(
    paper="ddod",
    number=9,
    title="faces (ATSS with DCN, SSH module and DIoU loss; ResNet-50)",
    data="WIDER FACE val",
    rows=(
        *(
            Row(label=label, metrics=figures("Easy Medium Hard", *values), reason="another detector, of faces")
            for label, values in _FACES.items()
        ),
        Row(
            label="ATSS", metrics=figures("Easy Medium Hard", 96.4, 95.8, 93.0), study="ddod/table9.yaml", note=_NO_SSH
        ),
        Row(
            label="DDOD-Face",
            metrics=figures("Easy Medium Hard", 97.0, 96.4, 93.5),
            study="ddod/table9.yaml",
            knobs=_whole(1),
            note=_NO_SSH,
        ),
    ),
)

TABLES = (_PILOT, _LEVELS, _DETECTORS, _PARTS, _ASSIGNMENT, _POSITIONS, _REWEIGHTS, _WIDER)
