"""Tables 1 to 5 of POD ("Practical Object Detection with Scale-Sensitive Network"): learned dilations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.published.table import BLOCKS, Knobs, Row, Table, figures

TITLE = "POD: Practical Object Detection with Scale-Sensitive Network"
_MINIVAL = "COCO minival"
_FULL = "AP AP50 AP75 AP_S AP_M AP_L"
# Epochs of the paper's 1x schedule. A study has those of both its trainings, and its baseline is trained as long.
_ONCE = 13


def learned(epochs: int = 2 * _ONCE, transfer: bool = False) -> Knobs:
    """FD: dilations learned for 13 of all ``epochs``, decomposed, and trained for the rest.

    Args:
        epochs: Of both trainings together.
        transfer: Whether the second one starts from the first one's weights (WT), or else as the first one did.
    """
    return {"pod": {"mode": "decompose", "learn_share": round(_ONCE / epochs, 2), "transfer": transfer}}


LEARNING: Knobs = {"pod": {"mode": "learn"}}


def _row(file: str, label: str, metrics: Mapping[str, float], knobs: Knobs, note: str | None = None) -> Row:
    return Row(label=label, metrics=metrics, study=f"pod/{file}.yaml", knobs=knobs, note=note)


_ANOTHER = "another detector"
_COUNTED = f"{_ANOTHER}; mmdet's config is counted as it stands"
_VAL = "evaluated on val2017, since test-dev's boxes are not public"


def _other(label: str, *values: float | None, base: str | None = None) -> Row:
    reason = _COUNTED if base else f"{_ANOTHER}, and not in mmdet"
    return Row(label=label, metrics=figures(_FULL, *values), base=base and f"mmdet::{base}", reason=reason)


_SOTA = Table(
    paper="pod",
    number=1,
    title="other detectors (ResNet-101 where not said)",
    data="COCO test-dev",
    rows=(
        _other("YOLOv2 (DarkNet-19)", 21.6, 44.0, 19.2, 5.0, 22.4, 35.5),
        _other("SSD-513", 31.2, 50.4, 33.3, 10.2, 34.5, 49.8),
        _other("DSSD-513", 33.2, 53.3, 35.2, 13.0, 35.4, 51.1),
        _other("RefineDet512", 36.4, 57.5, 39.5, 16.6, 39.9, 51.4),
        _row(
            "table1_retinanet", "RetinaNet", figures(_FULL, 39.1, 59.1, 42.3, 21.8, 42.7, 50.2), {},
            f"{_VAL}; trained as long as FD-WT (33 epochs), at one size",
        ),
        Row(
            label="CornerNet (Hourglass-104)",
            metrics=figures(_FULL, 40.5, 56.5, 43.1, 19.4, 42.7, 53.9),
            reason="another detector: of corners, without anchors or points at sites",
        ),
        _row(
            "table1_retinanet", "RetinaNet-FD-WT", figures(_FULL, 41.5, 62.4, 44.9, 24.5, 44.8, 52.9),
            {"pod": {"mode": "decompose", "learn_share": 0.4, "transfer": True}},
            f"{_VAL}; images are seen at one size, without RetinaNet's jitter of scales",
        ),
        _other(
            "FRCNN+++", 34.9, 55.7, 37.4, 15.6, 38.7, 50.9
        ),
        _other(
            "FRCNN w FPN", 36.2, 59.1, 39.0, 18.2, 39.0, 48.2, base="faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py"
        ),
        _other("FRCNN w TDM (Inception-ResNet-v2)", 36.8, 57.7, 39.2, 16.2, 39.8, 52.1),
        _other("Regionlets", 39.3, 59.8, None, 21.7, 43.7, 50.9),
        _other("Mask R-CNN", 38.2, 60.3, 41.7, 20.1, 41.1, 50.2, base="mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py"),
        _other("Fitness NMS", 41.8, 60.9, 44.9, 21.5, 45.0, 57.5),
        _other(
            "Cascade R-CNN", 42.8, 62.1, 46.3, 23.7, 45.5, 55.2, base="cascade_rcnn/cascade-rcnn_r101_fpn_1x_coco.py"
        ),
        _row(
            "table1_frcnn", "FRCNN-FD-WT", figures(_FULL, 42.1, 63.4, 45.7, 21.8, 45.1, 57.1), learned(transfer=True),
            _VAL,
        ),
    ),
)  # fmt: skip

# By detector, the figures of the baseline and of FD.
_LEARNT: Mapping[tuple[str, str, str], tuple[Sequence[float], Sequence[float]]] = {
    ("FRCNN", "R50-C4", "frcnn_r50-c4"): (
        (35.4, 55.6, 37.9, 18.1, 39.4, 50.3),
        (38.4, 59.3, 41.5, 19.8, 42.3, 55.3),
    ),
    ("FRCNN", "R101-C4", "frcnn_r101-c4"): (
        (38.7, 59.2, 41.5, 19.6, 43.1, 54.5),
        (40.9, 62.1, 43.9, 21.6, 45.1, 57.4),
    ),
    ("FRCNN", "R50-FPN", "frcnn_r50-fpn"): (
        (36.2, 58.6, 38.6, 21.0, 39.8, 47.2),
        (37.9, 60.6, 40.8, 22.3, 41.2, 49.6),
    ),
    ("FRCNN", "R101-FPN", "frcnn_r101-fpn"): (
        (38.6, 60.7, 41.7, 22.8, 42.8, 49.6),
        (40.1, 62.8, 43.3, 23.4, 44.6, 52.3),
    ),
    ("RetinaNet", "R50-FPN", "retinanet_r50-fpn"): (
        (36.0, 56.1, 38.6, 20.4, 40.0, 48.2),
        (37.5, 57.7, 40.2, 20.7, 41.0, 50.3),
    ),
    ("RetinaNet", "R101-FPN", "retinanet_r101-fpn"): (
        (37.5, 57.2, 40.1, 20.5, 41.8, 50.2),
        (38.8, 59.0, 41.7, 21.6, 42.9, 52.6),
    ),
}
_LONGER = (
    "the study's baseline is trained for 26 epochs, as long as FD's learning and training together; the paper's for 13"
)
_EFFECT = Table(
    paper="pod",
    number=2,
    title="decomposed dilations (FD), trained from ImageNet's weights, 1x",
    data=_MINIVAL,
    rows=tuple(
        row
        for (detector, kind, file), (plain, decomposed) in _LEARNT.items()
        for row in (
            _row(f"table2_{file}", f"{detector} {kind}", figures(_FULL, *plain), {}, _LONGER),
            _row(f"table2_{file}", f"{detector}-FD {kind}", figures(_FULL, *decomposed), learned()),
        )
    ),
)

# Mean and standard deviation over images of the dilations that were learned, h then w, in the order of BLOCKS.
_Scales = Sequence[tuple[float, float]]
_FRCNN_C4: tuple[_Scales, _Scales] = (
    ((0.88, 0.00), (1.30, 0.01), (1.39, 0.02), (8.49, 0.28), (1.34, 0.02), (3.57, 0.02)),
    ((0.95, 0.00), (1.28, 0.01), (1.41, 0.02), (9.34, 0.32), (1.20, 0.01), (3.45, 0.03)),
)
_FRCNN_C4_MINIVAL: tuple[_Scales, _Scales] = (
    ((0.88, 0.00), (1.30, 0.01), (1.39, 0.02), (8.44, 0.30), (1.34, 0.02), (3.57, 0.02)),
    ((0.95, 0.00), (1.28, 0.01), (1.41, 0.02), (9.31, 0.31), (1.20, 0.01), (3.45, 0.03)),
)
_FRCNN_FPN: tuple[_Scales, _Scales] = (
    ((0.89, 0.00), (1.19, 0.01), (0.77, 0.00), (1.41, 0.01), (0.46, 0.00), (2.81, 0.04)),
    ((0.93, 0.00), (1.15, 0.01), (0.82, 0.00), (1.39, 0.01), (0.89, 0.00), (3.68, 0.05)),
)
_RETINANET: tuple[_Scales, _Scales] = (
    ((0.94, 0.00), (1.19, 0.00), (0.80, 0.00), (1.46, 0.02), (0.65, 0.00), (1.75, 0.03)),
    ((0.98, 0.00), (1.15, 0.00), (0.85, 0.00), (1.47, 0.02), (0.91, 0.00), (1.53, 0.03)),
)


def convolution(block: str, head_from: int = 6) -> str:
    """Path of the 3x3 convolution of a block: ``R46`` is ``backbone.layer3.5.conv2``.

    Args:
        block: Stage, from 2, and place in it, from 1.
        head_from: First stage that stands in the RoI head and not in the backbone: 5 in C4 detectors.
    """
    stage, place = int(block[1]), int(block[2])
    part = "backbone" if stage < head_from else "roi_head.shared_head"
    return f"{part}.layer{stage - 1}.{place - 1}.conv2"


def fixed(scales: tuple[_Scales, _Scales], head_from: int = 6) -> Knobs:
    """The dilations of table 3, preset; blocks that it does not list keep a dilation of 1."""
    pairs = zip(BLOCKS, *scales, strict=True)
    return {"pod": {"mode": "fixed", "scales": {convolution(block, head_from): [h[0], w[0]] for block, h, w in pairs}}}


_PRESET = "its dilations preset, all other blocks at 1; those of our own are in the trials of table 2"
_SPREAD = Table(
    paper="pod",
    number=3,
    title="learned dilations and their spread over images, by block (R46: conv4_6)",
    data="COCO, the split in the label",
    rows=tuple(
        _row(
            f"table3_{file}",
            f"{label} {axis}",
            figures(
                " ".join(f"{block} {block}~+-" for block in BLOCKS),
                *(figure for pair in line for figure in pair),
            ),
            fixed(scales, head_from),
            _PRESET,
        )
        for label, file, scales, head_from in (
            ("FRCNN train R50-C4", "frcnn_r50-c4", _FRCNN_C4, 5),
            ("FRCNN minival R50-C4", "frcnn_r50-c4", _FRCNN_C4_MINIVAL, 5),
            ("FRCNN train R50-FPN", "frcnn_r50-fpn", _FRCNN_FPN, 6),
            ("RetinaNet train R50-FPN", "retinanet_r50-fpn", _RETINANET, 6),
        )
        for axis, line in zip("hw", scales, strict=True)
    ),
)

_TIMES: Mapping[tuple[str, str, str], Sequence[tuple[float, float]]] = {
    ("FRCNN", "R50-C4", "frcnn_r50-c4"): ((35.5, 158), (38.7, 269), (38.4, 159)),
    ("FRCNN", "R101-C4", "frcnn_r101-c4"): ((38.7, 171), (40.7, 281), (40.9, 172)),
    ("RetinaNet", "R50-FPN", "retinanet_r50-fpn"): ((36.0, 100), (38.0, 150), (37.5, 101)),
}
_SPEED = Table(
    paper="pod",
    number=4,
    title="learning (GSL) and decomposed (FD) network, 1x, without any optimisation for the device (which is not said)",
    data=_MINIVAL,
    rows=tuple(
        row
        for (detector, kind, file), (plain, learning, decomposed) in _TIMES.items()
        for row in (
            _row(f"table4_{file}", f"{detector} {kind}", figures("AP time", *plain), {}),
            _row(f"table4_{file}", f"{detector}-GSL {kind}", figures("AP time", *learning), LEARNING),
            _row(f"table4_{file}_fd", f"{detector}-FD {kind}", figures("AP time", *decomposed), learned()),
        )
    ),
)

_TWICE = "AP AP_S AP_M AP_L"
_TRANSFER: Mapping[tuple[str, str, str], Sequence[Sequence[float]]] = {
    ("FRCNN", "R50-C4", "frcnn_r50-c4"): (
        (37.0, 18.6, 41.3, 51.9), (39.6, 20.7, 43.6, 56.5), (40.0, 20.6, 44.1, 56.8),
    ),
    ("FRCNN", "R50-FPN", "frcnn_r50-fpn"): (
        (37.5, 22.1, 40.8, 48.4), (39.2, 23.4, 42.5, 50.7), (39.1, 23.1, 42.5, 51.0),
    ),
    ("RetinaNet", "R50-FPN", "retinanet_r50-fpn"): (
        (36.7, 19.9, 40.4, 48.4), (37.8, 21.0, 41.0, 50.7), (38.3, 21.7, 41.7, 51.1),
    ),
}  # fmt: skip
_WEIGHTS = Table(
    paper="pod",
    number=5,
    title="FD from ImageNet's weights for 2x, or from the learning network's (WT) for 1x",
    data=_MINIVAL,
    rows=tuple(
        row
        for (detector, kind, file), (plain, decomposed, transferred) in _TRANSFER.items()
        for row in (
            _row(f"table5_{file}", f"{detector} {kind}", figures(_TWICE, *plain), {}),
            _row(f"table5_{file}_fd", f"{detector}-FD {kind}", figures(_TWICE, *decomposed), learned(3 * _ONCE)),
            _row(f"table5_{file}", f"{detector}-FD-WT {kind}", figures(_TWICE, *transferred), learned(transfer=True)),
        )
    ),
)

TABLES = (_SOTA, _EFFECT, _SPREAD, _SPEED, _WEIGHTS)
