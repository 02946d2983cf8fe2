"""Tiny detectors, one for each dense head that a family works on, and one step of training."""

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

# By the head's type: detector, head, training settings. A family for another head needs an entry here.
TINY: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
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
    "RPNHead": (
        "FasterRCNN",
        {
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [8],
                "ratios": [0.5, 1.0, 2.0],
                "strides": [4, 8, 16, 32, 64],
            },
            "bbox_coder": {**_DELTAS, "target_stds": [1.0] * 4},
            "loss_cls": _CENTERNESS,
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        {},
    ),
}

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


def base_config(head: str) -> dict[str, Any]:
    """The ``model`` part of a tiny detector with this dense head."""
    return copy.deepcopy(_two_stage(head) if head == "RPNHead" else _one_stage(head))


def _one_stage(head: str) -> dict[str, Any]:
    detector, settings, train = TINY[head]
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


def _two_stage(head: str) -> dict[str, Any]:
    detector, settings, _ = TINY[head]
    proposals = {"nms_pre": 50, "max_per_img": 20, "nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0}
    region_loss = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0}
    sampler = {"type": "RandomSampler", "num": 64, "pos_fraction": 0.5, "neg_pos_ub": -1}
    return {
        "type": detector,
        **_pyramid(),
        "rpn_head": {"type": head, "in_channels": 16, "feat_channels": 16, **settings},
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor",
                "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0},
                "out_channels": 16,
                "featmap_strides": [4, 8, 16, 32],
            },
            "bbox_head": {
                "type": "Shared2FCBBoxHead",
                "in_channels": 16,
                "fc_out_channels": 16,
                "roi_feat_size": 7,
                "num_classes": 3,
                "bbox_coder": _DELTAS,
                "reg_class_agnostic": False,
                "loss_cls": region_loss,
                "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
            },
        },
        "train_cfg": {
            "rpn": {
                "assigner": {**_MAX_IOU, "pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "min_pos_iou": 0.3},
                "sampler": {**sampler, "add_gt_as_proposals": False},
                "allowed_border": -1,
                "pos_weight": -1,
                "debug": False,
            },
            "rpn_proposal": proposals,
            "rcnn": {
                "assigner": {**_MAX_IOU, "neg_iou_thr": 0.5, "min_pos_iou": 0.5, "match_low_quality": False},
                "sampler": {**sampler, "add_gt_as_proposals": True},
                "pos_weight": -1,
                "debug": False,
            },
        },
        "test_cfg": {
            "rpn": proposals,
            "rcnn": {"score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 20},
        },
    }


def _pyramid(**neck: Any) -> dict[str, Any]:
    return {
        "backbone": {
            "type": "ResNet",
            "depth": 18,
            "base_channels": 8,
            "out_indices": (0, 1, 2, 3),
            "norm_cfg": {"type": "BN", "requires_grad": True},
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
    losses = model(*batch(boxes), mode="loss")
    parts = [part for value in losses.values() for part in (value if isinstance(value, list) else [value])]
    return torch.stack([part.sum() for part in parts]).sum()


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    """mmengine lists every weight that it initialises; TOOD and BoxInst ask how far the training is."""
    MMLogger.get_instance("tests", log_level="ERROR")
    MessageHub.get_current_instance().update_info_dict({"epoch": 0, "iter": 5000})


class Tiny:
    """What the contract tests need, as one fixture."""

    heads = tuple(TINY)
    base_config = staticmethod(base_config)
    build = staticmethod(build)
    batch = staticmethod(batch)
    total_loss: Callable[..., torch.Tensor] = staticmethod(total_loss)


@pytest.fixture
def tiny() -> type[Tiny]:
    return Tiny
