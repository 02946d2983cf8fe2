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
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
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
}


def base_config(head: str) -> dict[str, Any]:
    """The ``model`` part of a tiny detector with this dense head."""
    detector, settings, train = TINY[head]
    return copy.deepcopy(
        {
            "type": detector,
            "backbone": {
                "type": "ResNet",
                "depth": 18,
                "base_channels": 8,
                "out_indices": (0, 1, 2, 3),
                "norm_cfg": {"type": "BN", "requires_grad": True},
            },
            "neck": {
                "type": "FPN",
                "in_channels": [8, 16, 32, 64],
                "out_channels": 16,
                "start_level": 1,
                "add_extra_convs": "on_output",
                "num_outs": 5,
            },
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
            },
        }
    )


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
    given = torch.tensor([[8.0, 8.0, 40.0, 44.0], [50.0, 20.0, 98.0, 66.0]])
    samples = []
    for count in (boxes, 0):
        sample = DetDataSample(
            metainfo={"img_shape": SIZE, "pad_shape": SIZE, "batch_input_shape": SIZE, "scale_factor": (1.0, 1.0)}
        )
        sample.gt_instances = InstanceData(bboxes=given[:count], labels=torch.arange(2)[:count])
        samples.append(sample)
    return images, samples


def total_loss(model: nn.Module, boxes: int = 2) -> torch.Tensor:
    """Sum of all losses on ``batch``."""
    losses = model(*batch(boxes), mode="loss")
    parts = [part for value in losses.values() for part in (value if isinstance(value, list) else [value])]
    return torch.stack([part.sum() for part in parts]).sum()


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    """mmengine lists every weight that it initialises."""
    MMLogger.get_instance("tests", log_level="ERROR")


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
