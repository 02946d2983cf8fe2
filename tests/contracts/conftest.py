"""Tiny detectors, one for each dense head and each kind of box head that a family works on, and a step of training."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from mmdet.models import data_preprocessors  # noqa: F401  registers all of mmdet's models
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.structures import InstanceData
from torch import nn

import spaces.keyparts.detectors  # noqa: F401  registers R-FCN
from spaces import patching

SIZE = (72, 104)  # odd maps on every level: 9x13, 5x7, 3x4, 2x2, 1x1

_NORM = {"type": "GN", "num_groups": 8}
_ANCHORS = {
    "type": "AnchorGenerator",
    "ratios": [1.0],
    "octave_base_scale": 8,
    "scales_per_octave": 1,
    "strides": [8, 16, 32, 64, 128],
}
_DELTAS = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [0.1, 0.1, 0.2, 0.2]}
_FOCAL = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}
_CENTERNESS = {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0}
_ATSS = {"type": "ATSSAssigner", "topk": 9}
_MAX_IOU = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0, "ignore_iof_thr": -1}

_POINTS = {
    "norm_cfg": _NORM,
    "strides": [8, 16, 32, 64, 128],
    "norm_on_bbox": True,
    "centerness_on_reg": True,
    "center_sampling": True,
    "conv_bias": True,
    "loss_cls": _FOCAL,
    "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.0},
    "loss_centerness": _CENTERNESS,
}

# One-stage detectors by the head's type: detector, head, training settings. A family for another head needs an entry.
ONE_STAGE: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "GFLHead": (
        "GFL",
        {
            "norm_cfg": _NORM,
            "anchor_generator": _ANCHORS,
            "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
            "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
            "reg_max": 16,
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        },
        {"assigner": _ATSS},
    ),
    "ATSSHead": (
        "ATSS",
        {
            "norm_cfg": _NORM,
            "anchor_generator": _ANCHORS,
            "bbox_coder": _DELTAS,
            "loss_cls": _FOCAL,
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
            "loss_centerness": _CENTERNESS,
        },
        {"assigner": _ATSS},
    ),
    "RetinaHead": (
        "RetinaNet",
        {
            "anchor_generator": {**_ANCHORS, "octave_base_scale": 4, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0]},
            "bbox_coder": {**_DELTAS, "target_stds": [1.0] * 4},
            "loss_cls": _FOCAL,
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        {"assigner": _MAX_IOU, "sampler": {"type": "PseudoSampler"}},
    ),
    "FCOSHead": (
        "FCOS",
        {
            "norm_cfg": _NORM,
            "strides": [8, 16, 32, 64, 128],
            "loss_cls": _FOCAL,
            "loss_bbox": {"type": "IoULoss", "loss_weight": 1.0},
            "loss_centerness": _CENTERNESS,
        },
        {},
    ),
    "TOODHead": (
        "TOOD",
        {
            "norm_cfg": _NORM,
            "anchor_type": "anchor_free",
            "anchor_generator": _ANCHORS,
            "bbox_coder": _DELTAS,
            "initial_loss_cls": {**_FOCAL, "activated": True},
            "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "activated": True, "beta": 2.0},
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        },
        {
            "initial_epoch": 4,
            "initial_assigner": _ATSS,
            "assigner": {"type": "TaskAlignedAssigner", "topk": 13},
            "alpha": 1,
            "beta": 6,
        },
    ),
    "PAAHead": (
        "PAA",
        {
            "norm_cfg": _NORM,
            "reg_decoded_bbox": True,
            "score_voting": True,
            "topk": 9,
            "anchor_generator": _ANCHORS,
            "bbox_coder": _DELTAS,
            "loss_cls": _FOCAL,
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.3},
            "loss_centerness": {**_CENTERNESS, "loss_weight": 0.5},
        },
        {"assigner": {**_MAX_IOU, "pos_iou_thr": 0.1, "neg_iou_thr": 0.1}},
    ),
    "VFNetHead": (
        "VFNet",
        {
            "norm_cfg": _NORM,
            "strides": [8, 16, 32, 64, 128],
            "use_atss": True,
            "use_vfl": True,
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.5},
            "loss_bbox_refine": {"type": "GIoULoss", "loss_weight": 2.0},
        },
        {"assigner": _ATSS},
    ),
    "AutoAssignHead": (
        "AutoAssign",
        {"norm_cfg": _NORM, "strides": [8, 16, 32, 64, 128], "loss_bbox": {"type": "GIoULoss", "loss_weight": 5.0}},
        {},
    ),
    "DDODHead": (
        "DDOD",
        {
            "norm_cfg": _NORM,
            # mmcv's own deformable convolution refuses maps below 3x3, which P6 and P7 are here.
            "use_dcn": False,
            "anchor_generator": _ANCHORS,
            "bbox_coder": _DELTAS,
            "loss_cls": _FOCAL,
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
            "loss_iou": _CENTERNESS,
        },
        {"assigner": {**_ATSS, "alpha": 0.8}, "reg_assigner": {**_ATSS, "alpha": 0.5}},
    ),
    "CondInstBboxHead": ("CondInst", {**_POINTS, "num_params": 53}, {}),
    "BoxInstBboxHead": ("BoxInst", {**_POINTS, "num_params": 53}, {}),
}

# Detectors with an RPN, by what they have for a box head.
TWO_STAGE = ("FasterRCNN", "FasterRCNN-C4", "CascadeRCNN", "MaskRCNN", "RFCN")

_MASKS = {
    "num_layers": 3,
    "feat_channels": 4,
    "size_of_interest": 8,
    "mask_out_stride": 4,
    "mask_feature_head": {
        "in_channels": 16,
        "feat_channels": 8,
        # Only P3: mmdet adds levels whose sizes are multiples of each other, which odd maps are not.
        "start_level": 0,
        "end_level": 0,
        "out_channels": 4,
        "mask_stride": 8,
        "num_stacked_convs": 1,
        "norm_cfg": _NORM,
    },
    "loss_mask": {"type": "DiceLoss", "use_sigmoid": True, "activate": True, "eps": 5e-6, "loss_weight": 1.0},
}
MASK_HEADS: Mapping[str, dict[str, Any]] = {
    "CondInstBboxHead": {"type": "CondInstMaskHead", "max_masks_to_train": 300, **_MASKS},
    "BoxInstBboxHead": {"type": "BoxInstMaskHead", "topk_masks_per_img": 64, **_MASKS},
}


def base_config(key: str) -> dict[str, Any]:
    """The ``model`` part of a tiny detector, one of ``ONE_STAGE`` or ``TWO_STAGE``."""
    return copy.deepcopy(_one_stage(key) if key in ONE_STAGE else _VARIANTS.get(key, _faster_rcnn)())


def _one_stage(head: str) -> dict[str, Any]:
    detector, settings, train = ONE_STAGE[head]
    model = {
        "type": detector,
        **_pyramid(start_level=1, add_extra_convs="on_output"),
        "bbox_head": {
            "type": head,
            "num_classes": 3,
            "in_channels": 16,
            "feat_channels": 16,
            "stacked_convs": 2,
            **settings,
        },
        "train_cfg": {**train, "allowed_border": -1, "pos_weight": -1, "debug": False},
        "test_cfg": {
            "nms_pre": 100,
            "min_bbox_size": 0,
            "score_thr": 0.05,
            "nms": {"type": "nms", "iou_threshold": 0.6},
            "max_per_img": 20,
            **({"mask_thr": 0.5} if head in MASK_HEADS else {}),
        },
    }
    return {**model, "mask_head": MASK_HEADS[head]} if head in MASK_HEADS else model


_REGIONS = {"type": "RandomSampler", "num": 64, "pos_fraction": 0.5, "neg_pos_ub": -1}
_PROPOSALS = {"nms_pre": 50, "max_per_img": 20, "nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0}
_BOX_HEAD = {
    "num_classes": 3,
    "bbox_coder": _DELTAS,
    "reg_class_agnostic": False,
    "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
    "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
}
_TWO_FCS = {
    "type": "Shared2FCBBoxHead",
    "in_channels": 16,
    "fc_out_channels": 16,
    "roi_feat_size": 7,
    **_BOX_HEAD,
}


def _rpn(channels: int, strides: list[int], scales: list[int]) -> dict[str, Any]:
    return {
        "type": "RPNHead",
        "in_channels": channels,
        "feat_channels": 16,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": scales,
            "ratios": [0.5, 1.0, 2.0],
            "strides": strides,
        },
        "bbox_coder": {**_DELTAS, "target_stds": [1.0] * 4},
        "loss_cls": _CENTERNESS,
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }


def _extractor(size: int, channels: int, strides: list[int]) -> dict[str, Any]:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0},
        "out_channels": channels,
        "featmap_strides": strides,
    }


def _regions(iou: float, **sampler: Any) -> dict[str, Any]:
    thresholds = {"pos_iou_thr": iou, "neg_iou_thr": iou, "min_pos_iou": iou, "match_low_quality": False}
    return {
        "assigner": {**_MAX_IOU, **thresholds},
        "sampler": {**_REGIONS, "add_gt_as_proposals": True, **sampler},
        "pos_weight": -1,
        "debug": False,
    }


def _faster_rcnn() -> dict[str, Any]:
    return {
        "type": "FasterRCNN",
        **_pyramid(),
        "rpn_head": _rpn(16, [4, 8, 16, 32, 64], [8]),
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": _extractor(7, 16, [4, 8, 16, 32]),
            "bbox_head": _TWO_FCS,
        },
        "train_cfg": {
            "rpn": {
                "assigner": {**_MAX_IOU, "pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "min_pos_iou": 0.3},
                "sampler": {**_REGIONS, "add_gt_as_proposals": False},
                "allowed_border": -1,
                "pos_weight": -1,
                "debug": False,
            },
            "rpn_proposal": _PROPOSALS,
            "rcnn": _regions(0.5),
        },
        "test_cfg": {
            "rpn": _PROPOSALS,
            "rcnn": {"score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 20},
        },
    }


def _faster_rcnn_c4() -> dict[str, Any]:
    model = _faster_rcnn()
    del model["neck"]
    # mmdet's shared head has full width, hence the backbone too, and few RoIs.
    stages = {"num_stages": 3, "strides": (1, 2, 2), "dilations": (1, 1, 1), "out_indices": (2,)}
    model["backbone"].update(base_channels=64, **stages)
    model["rpn_head"] = _rpn(256, [16], [2, 4])
    model["roi_head"] = {
        "type": "StandardRoIHead",
        "shared_head": {"type": "ResLayer", "depth": 18, "stage": 3, "stride": 2},
        "bbox_roi_extractor": _extractor(14, 256, [16]),
        "bbox_head": {"type": "BBoxHead", "with_avg_pool": True, "roi_feat_size": 7, "in_channels": 512, **_BOX_HEAD},
    }
    model["train_cfg"]["rcnn"] = _regions(0.5, num=4)
    model["test_cfg"]["rpn"] = {**_PROPOSALS, "max_per_img": 3}
    return model


def _cascade_rcnn() -> dict[str, Any]:
    model = _faster_rcnn()
    model["type"] = "CascadeRCNN"
    stds = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
    agnostic = {**_TWO_FCS, "reg_class_agnostic": True}
    model["roi_head"].update(
        type="CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[{**agnostic, "bbox_coder": {**_DELTAS, "target_stds": stage}} for stage in stds],
    )
    model["train_cfg"]["rcnn"] = [_regions(iou) for iou in (0.5, 0.6, 0.7)]
    return model


def _mask_rcnn() -> dict[str, Any]:
    model = _faster_rcnn()
    model["type"] = "MaskRCNN"
    model["roi_head"].update(
        mask_roi_extractor=_extractor(14, 16, [4, 8, 16, 32]),
        mask_head={
            "type": "FCNMaskHead",
            "num_convs": 1,
            "in_channels": 16,
            "conv_out_channels": 8,
            "num_classes": 3,
            "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
        },
    )
    model["train_cfg"]["rcnn"]["mask_size"] = 28
    model["test_cfg"]["rcnn"]["mask_thr_binary"] = 0.5
    return model


def _rfcn() -> dict[str, Any]:
    model = _faster_rcnn()
    del model["neck"]
    model["backbone"].update(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), out_indices=(3,))
    model["rpn_head"] = _rpn(64, [8], [2, 4])
    model["roi_head"] = {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": {
            "type": "PositionSensitiveRoIExtractor",
            "in_channels": 64,
            "mid_channels": 32,
            "num_classes": 3,
            "bins": 3,
            "featmap_strides": [8],
        },
        "bbox_head": {"type": "RFCNBBoxHead", **_BOX_HEAD, "reg_class_agnostic": True},
    }
    return model


_VARIANTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "FasterRCNN-C4": _faster_rcnn_c4,
    "CascadeRCNN": _cascade_rcnn,
    "MaskRCNN": _mask_rcnn,
    "RFCN": _rfcn,
}


def _pyramid(**neck: Any) -> dict[str, Any]:
    return {
        "backbone": {
            "type": "ResNet",
            "depth": 18,
            "base_channels": 8,
            "out_indices": (0, 1, 2, 3),
            "norm_cfg": {"type": "BN", "requires_grad": True},
            # Else each block starts shut, and nothing in it has an effect.
            "zero_init_residual": False,
        },
        "neck": {"type": "FPN", "in_channels": [8, 16, 32, 64], "out_channels": 16, "num_outs": 5, **neck},
    }


def build(model: Mapping[str, Any], knobs: Mapping[str, Any] | None = None) -> nn.Module:
    """Patches and builds a detector with seeded weights."""
    for module in patching.imports(knobs or {}):
        importlib.import_module(module)
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(patching.apply(model, knobs or {})))


def batch(boxes: int = 2) -> tuple[torch.Tensor, list[DetDataSample]]:
    """Two images, the first with ``boxes`` objects, the second empty."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *SIZE, generator=generator)
    # The second lies about the middle of the image, where the only prior of a level of one site is.
    given = torch.tensor([[8.0, 8.0, 40.0, 44.0], [26.0, 12.0, 78.0, 60.0]])
    samples = []
    for count in (boxes, 0):
        sample = DetDataSample(
            metainfo={
                **dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), SIZE),
                "scale_factor": (1.0, 1.0),
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=given[:count],
            labels=torch.arange(2)[:count],
            masks=_box_masks(given[:count]),
            # BoxInst: which of 8 neighbours has a like colour, at a quarter of the size.
            pairwise_masks=torch.ones(count, 8, SIZE[0] // 4, SIZE[1] // 4),
        )
        samples.append(sample)
    return images, samples


def _box_masks(boxes: torch.Tensor) -> BitmapMasks:
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return BitmapMasks(masks.numpy(), *SIZE)


def total_loss(model: nn.Module, boxes: int = 2) -> torch.Tensor:
    """Sum of all losses on ``batch``."""
    device = next(model.parameters()).device
    images, samples = batch(boxes)
    losses = model(images.to(device), [sample.to(device) for sample in samples], mode="loss")
    parts = [part for value in losses.values() for part in (value if isinstance(value, list) else [value])]
    return torch.stack([part.sum() for part in parts]).sum()


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    """mmengine lists every weight that it initialises; TOOD and BoxInst ask how far the training is."""
    MMLogger.get_instance("tests", log_level="ERROR")
    MessageHub.get_current_instance().update_info_dict({"epoch": 0, "iter": 5000})


class Tiny:
    """What the contract tests need, as one fixture."""

    one_stage = tuple(ONE_STAGE)
    two_stage = TWO_STAGE
    base_config = staticmethod(base_config)
    build = staticmethod(build)
    batch = staticmethod(batch)
    total_loss: Callable[..., torch.Tensor] = staticmethod(total_loss)


@pytest.fixture
def tiny() -> type[Tiny]:
    return Tiny
