"""What is measured: a design against a base, both with random weights, and which part of them alone as well.

A family adds its case to ``CASES``. Where the work depends on the image, ``ready`` makes it what the case says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.heads.queries import asking, fine_levels
from trainers.cost import PROPOSALS
from trainers.speed import Pass

Ready = Callable[[Any, Any], Mapping[str, Any]]
Alone = Callable[[Any, tuple[Tensor, ...], Tensor], Pass]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    Attributes:
        name: Names it on the command line and in the results.
        title: Names it in the table: what is compared with what.
        base: As ``headway profile`` takes it.
        knobs: The design, as a study file may write it; empty for the base itself.
        against: The design that it is compared with, on the same base.
        part: What is measured alone, in a word of the table.
        alone: Makes the pass of that part of a prepared detector, from the baseline's pyramid and the images.
        sizes_matter: Whether the part's work depends on the size of the images.
        ready: Called with the built candidate and baseline before they are prepared, to set what decides their work;
            what it gives is kept in the result.
        asked: The speed-up that is asked of it at 800x1344 and batch 1, ``None`` for none.
    """

    name: str
    title: str
    base: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    against: Mapping[str, Any] = field(default_factory=dict)
    part: str = "head"
    alone: Alone
    sizes_matter: bool = True
    ready: Ready | None = None
    asked: float | None = None


def dense_head(model: Any, features: tuple[Tensor, ...], images: Tensor) -> Pass:
    """The dense head, or the RPN, from the pyramid to its raw outputs."""
    head = getattr(model, "rpn_head", None) or model.bbox_head
    return lambda: head(features)


def box_head(model: Any, features: tuple[Tensor, ...], images: Tensor) -> Pass:
    """The box head on 1,000 pooled RoIs an image, from their maps to scores and deltas."""
    head = model.roi_head.bbox_head
    size = model.roi_head.bbox_roi_extractor.roi_layers[0].output_size
    channels = model.roi_head.bbox_roi_extractor.out_channels
    # The extractor's result is in the plain layout on every device.
    rois = features[0].new_empty(PROPOSALS * len(images), channels, *size).normal_()
    return lambda: head(rois)


def backbone(model: Any, features: tuple[Tensor, ...], images: Tensor) -> Pass:
    """The backbone, from the images to its maps."""
    return lambda: model.backbone(images)


def _scales() -> list[list[Any]]:
    """Fractional scales for conv3 to conv5 of ResNet-50, a fifth of the channels of each with the larger dilation."""
    blocks = {2: 4, 3: 6, 4: 3}
    return [
        [f"backbone.layer{layer}.{block}.conv2", scale, scale]
        for layer, count in blocks.items()
        for block in range(count)
        for scale in [1.25 + 0.5 * (block % 2)]
    ]


_GFL = "mmdet::gfl/gfl_r50_fpn_1x_coco.py"
_RETINA = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
_ATSS = "mmdet::atss/atss_r50_fpn_1x_coco.py"
_FASTER = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
_P3 = {"slimhead.levels": [0], "slimhead.ratio": 0.5}
_K4 = {"slimhead.levels": [0, 1], "slimhead.ratio": 0.5}
_DCN = {"dcn.placement": ["cls.0", "cls.1", "reg.0", "reg.1"], "dcn.version": 2}
_POD = {"pod.mode": "fixed", "pod.scales": _scales()}
_SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 0.6, 1.0)
_HIGH = (0.6, 1.0)

CASES: tuple[Case, ...] = (
    Case(name="aa", title="GFL-R50 against itself (A/A)", base=_GFL, alone=dense_head),
    Case(name="slim-p3", title="SlimHead P3, r = 0.5, GFL-R50", base=_GFL, knobs=_P3, alone=dense_head, asked=1.306),
    Case(name="slim-p3-p4", title="SlimHead P3 and P4, r = 0.5, GFL-R50", base=_GFL, knobs=_K4, alone=dense_head),
    Case(
        name="shallow",
        title="Half the channels on P3 and P4, GFL-R50",
        base=_GFL,
        knobs={"shallow.levels": [0, 1], "shallow.layers": "all", "shallow.channels": 0.5},
        alone=dense_head,
    ),
    Case(name="dcn", title="DCNv2 in two layers of each branch, GFL-R50", base=_GFL, knobs=_DCN, alone=dense_head),
    Case(
        name="dcn-slim-p3",
        title="DCNv2 in two layers of each branch and SlimHead P3, GFL-R50",
        base=_GFL,
        knobs={**_DCN, **_P3},
        alone=dense_head,
        asked=1.2,
    ),
    Case(
        name="ddod",
        title="DDOD (DCNv1 in the first layers), ATSS-R50",
        base=_ATSS,
        knobs={"ddod.assign": True, "dcn.placement": ["cls.0", "reg.0"], "dcn.version": 1},
        alone=dense_head,
    ),
    Case(
        name="pod",
        title="POD decomposed in conv3 to conv5, Faster R-CNN R50",
        base=_FASTER,
        knobs=_POD,
        part="backbone",
        alone=backbone,
        asked=0.97,
    ),
    Case(
        name="pod-16",
        title="POD decomposed, split at multiples of 16, Faster R-CNN R50",
        base=_FASTER,
        knobs={**_POD, "pod.round_channels": 16},
        part="backbone",
        alone=backbone,
        asked=0.97,
    ),
    Case(
        name="keyparts-k16",
        title="Key parts K16 L5 against two FC layers, Faster R-CNN R50",
        base=_FASTER,
        knobs={"keyparts.parts": 16, "keyparts.grid": 5},
        part="box head, 1,000 RoIs",
        alone=box_head,
        sizes_matter=False,
    ),
    Case(
        name="keyparts-k1",
        title="Key parts K1 L1 against two FC layers, Faster R-CNN R50",
        base=_FASTER,
        knobs={"keyparts.parts": 1, "keyparts.grid": 1},
        part="box head, 1,000 RoIs",
        alone=box_head,
        sizes_matter=False,
    ),
    *(
        Case(
            name=f"querydet-{100 * share:g}",
            title=f"QueryDet at {100 * share:g} % of P2's and P3's sites against all of them, RetinaNet-R50",
            base=_RETINA,
            knobs={"querydet.threshold": 0.15},
            against={"querydet.threshold": 0.0},
            alone=fine_levels,
            ready=asking(share),
            asked=4.0 if share == 0.01 else None,
        )
        for share in _SHARES
    ),
    *(
        Case(
            name=f"querydet-method-{100 * share:g}",
            title=f"QueryDet's sparse convolutions at {100 * share:g} % of P2's and P3's sites against dense maps, "
            "RetinaNet-R50",
            base=_RETINA,
            knobs={"querydet.threshold": 0.15, "querydet.method": "sparse"},
            against={"querydet.threshold": 0.15, "querydet.method": "full"},
            alone=fine_levels,
            ready=asking(share),
            asked=0.95,
        )
        for share in _HIGH
    ),
)
