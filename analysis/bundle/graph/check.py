"""Compares what onnxruntime makes of a graph with what PyTorch makes of the detector, on real images."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, bbox_overlaps
from mmengine.structures import InstanceData

from .images import Preparation
from .outputs import DenseMaps, Outputs, RegionScores

TOLERANCE = 1e-3
"""Largest difference of a raw output that counts as the same: absolute, or a share of what is larger than 1."""
BOX_TOLERANCE, SCORE_TOLERANCE = 1e-2, 1e-4
"""The same for a coordinate of a detection, in px of the canvas, and for its score."""
IOU_TOLERANCE = 2e-3
"""The same for an overlap: what moves by 0.01 px may overlap by more or less."""
_BATCH = 3


def check_graph(network: Outputs, path: str, prepare: Preparation, images: Sequence[str]) -> dict[str, Any]:
    """Runs a graph with the first image alone and with the others three at a time.

    Args:
        network: The network that the graph was written from, on the CPU.
        path: The graph.
        prepare: How images become tensors.
        images: Image files.

    Returns:
        ``difference`` by output, the ``largest`` of them in units of what is allowed, ``image``, the file name where
        that was, ``images`` (file names), ``batches`` (their sizes), ``ok``, ``limits`` and ``runtime``. A difference
        that is no number, as for another count of detections, is ``None``, and so is the largest one.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    groups = [images[:1], *(images[first : first + _BATCH] for first in range(1, len(images), _BATCH))]
    worst: dict[str, float] = {}
    largest, where = 0.0, Path(images[0]).name
    limits = _limits(network)
    for group in groups:
        prepared = [prepare(image) for image in group]
        tensor = torch.from_numpy(np.stack([found for found, _, _ in prepared]))
        sizes = torch.tensor([size for _, size, _ in prepared], dtype=torch.float32)
        given = dict(zip(("images", "sizes"), (tensor.numpy(), sizes.numpy()), strict=True))
        outs = session.run(list(network.names), {name: given[name] for name in network.inputs})
        found = dict(zip(network.names, map(torch.from_numpy, outs), strict=True))
        with torch.no_grad():
            differences = _compare(network, tensor, sizes, found)
        for name, values in differences.items():
            for image, value in zip(group, values, strict=True):
                worst[name] = max(worst.get(name, 0.0), value)
                if value / limits[name] > largest:
                    largest, where = value / limits[name], Path(image).name
    return {
        "difference": {name: _finite(value) for name, value in worst.items()},
        "limits": limits,
        "largest": _finite(largest),
        "image": where,
        "images": [Path(image).name for image in images],
        "batches": [len(group) for group in groups],
        "ok": largest <= 1,
        "runtime": onnxruntime.__version__,
    }


def _limits(network: Outputs) -> dict[str, float]:
    if isinstance(network, DenseMaps):
        return dict.fromkeys(network.names, TOLERANCE)
    limits = {"proposals": BOX_TOLERANCE, "roi_scores": SCORE_TOLERANCE} if hasattr(network, "regions") else {}
    if isinstance(network, RegionScores):
        refined = ("rois",) if network.regions.cascaded else ()
        return {**limits, **dict.fromkeys((*refined, "cls_score", "bbox_pred"), TOLERANCE)}
    return {**limits, "boxes": BOX_TOLERANCE, "scores": SCORE_TOLERANCE}


def _compare(
    network: Outputs, images: torch.Tensor, sizes: torch.Tensor, found: dict[str, torch.Tensor]
) -> dict[str, list[float]]:
    """By output the differences of each image."""
    if isinstance(network, DenseMaps):
        return {name: distance(found[name], out) for name, out in zip(network.names, network(images), strict=True)}
    feats, samples = network.model.extract_feat(images), _samples(sizes)
    if isinstance(network, RegionScores):
        return _compare_regions(network, feats, samples, found)
    head = network.model.bbox_head if not hasattr(network, "regions") else None
    if head is not None:
        return dict(zip(("boxes", "scores"), _of_head(head, feats, samples, _detections(found)), strict=True))
    return _compare_region_detections(network, feats, samples, found)


def _compare_regions(
    network: RegionScores, feats: Any, samples: list[DetDataSample], found: dict[str, torch.Tensor]
) -> dict[str, list[float]]:
    """Proposals with mmdet's own; what the box heads say, with mmdet's box heads on the graph's proposals."""
    roi_head = network.model.roi_head
    proposals = found.get("proposals", found["rois"])
    images, number = proposals.shape[:2]
    differences = _compare_proposals(network, feats, samples, proposals, found["roi_scores"])
    rois = bbox2roi(list(proposals))
    if network.regions.cascaded:
        metas = [sample.metainfo for sample in samples]
        refined, cls_score, bbox_pred = roi_head._refine_roi(feats, rois, metas, (number,) * images)
        own = {"rois": torch.stack([part[:, 1:] for part in refined])}
        own |= {"cls_score": torch.stack(list(cls_score)), "bbox_pred": torch.stack(list(bbox_pred))}
    else:
        results = roi_head._bbox_forward(feats, rois)
        own = {name: results[name].reshape(images, number, -1) for name in ("cls_score", "bbox_pred")}
    return {**differences, **{name: distance(found[name], out) for name, out in own.items()}}


def _compare_region_detections(
    network: Any, feats: Any, samples: list[DetDataSample], found: dict[str, torch.Tensor]
) -> dict[str, list[float]]:
    roi_head, metas = network.model.roi_head, [sample.metainfo for sample in samples]
    proposals = [
        InstanceData(bboxes=boxes[scores > 0], scores=scores[scores > 0], labels=torch.zeros(int((scores > 0).sum())))
        for boxes, scores in zip(found["proposals"], found["roi_scores"], strict=True)
    ]
    cfg = roi_head.test_cfg
    told = roi_head.predict_bbox(feats, metas, proposals, _everything(cfg), rescale=False)
    pairs = [
        outcome(one, _boxes(own), _boxes(own), cfg.nms, cfg.max_per_img, cfg.score_thr)
        for one, own in zip(_detections(found), told, strict=True)
    ]
    differences = _compare_proposals(network, feats, samples, found["proposals"], found["roi_scores"])
    return {**differences, "boxes": [box for box, _ in pairs], "scores": [score for _, score in pairs]}


def _compare_proposals(
    network: Any, feats: Any, samples: list[DetDataSample], boxes: torch.Tensor, scores: torch.Tensor
) -> dict[str, list[float]]:
    """Suppression keeps the levels apart, so a level is the label of a proposal."""
    head = network.model.rpn_head
    cfg = head.test_cfg
    head._bbox_post_process = _with_levels
    try:
        lists = _of_mmdet(head, feats, samples)
    finally:
        del head._bbox_post_process
    pairs = []
    for own, values, possible, candidates in zip(boxes, scores, *lists, strict=True):
        count = int((values > 0).sum())
        found = Boxes(own[:count], values[:count], torch.zeros(count, dtype=torch.long))
        found = found._replace(labels=torch.tensor([_nearest(one, possible) for one in zip(*found, strict=True)]))
        pairs.append(outcome(found, possible, _beyond_cuts(candidates, possible), cfg.nms, cfg.max_per_img, 0.0))
    return {"proposals": [box for box, _ in pairs], "roi_scores": [score for _, score in pairs]}


def _with_levels(results: InstanceData, cfg: Any, **_: Any) -> InstanceData:
    """In place of mmdet's post-processing of proposals: nothing is suppressed, and labels are the levels."""
    least = cfg.get("min_bbox_size", -1)
    sides = results.bboxes[:, 2:] - results.bboxes[:, :2]
    results = results[(sides > least).all(1)] if least >= 0 else results
    return InstanceData(bboxes=results.bboxes, scores=results.scores, labels=results.level_ids)


def _nearest(one: tuple[torch.Tensor, ...], possible: Boxes) -> int:
    box, score, _ = one
    apart = (possible.boxes - box).abs().amax(1) / BOX_TOLERANCE
    both = torch.maximum(apart, (possible.scores - score).abs() / SCORE_TOLERANCE)
    return int(possible.labels[both.argmin()]) if len(both) else -1


def _beyond_cuts(candidates: Boxes, possible: Boxes) -> Boxes:
    """Leaves out the worst of a level that had more than are considered: equal ones may have taken their places."""
    kept = torch.ones(len(candidates.scores), dtype=torch.bool)
    for level in set(candidates.labels.tolist()):
        here = candidates.labels == level
        if int(here.sum()) < int((possible.labels == level).sum()):
            kept &= ~here | (candidates.scores > candidates.scores[here].min() + SCORE_TOLERANCE)
    return Boxes(*(part[kept] for part in candidates))


def _of_head(
    head: Any, feats: Any, samples: list[DetDataSample], found: Sequence[Boxes]
) -> tuple[list[float], list[float]]:
    """Compares what a dense head detects with what mmdet may make of it."""
    cfg = head.test_cfg
    pairs = [
        outcome(one, possible, candidates, cfg.nms, cfg.max_per_img, cfg.get("score_thr", 0.0))
        for one, possible, candidates in zip(found, *_of_mmdet(head, feats, samples), strict=True)
    ]
    return [box for box, _ in pairs], [score for _, score in pairs]


def _of_mmdet(head: Any, feats: Any, samples: list[DetDataSample]) -> tuple[list[Boxes], list[Boxes]]:
    """All boxes of each image before suppression, and those that are good enough on their level to be considered."""
    cfg = head.test_cfg
    lists = []
    for unlimited in (True, False):
        head.test_cfg = _everything(cfg, unlimited=unlimited)
        try:
            lists.append([_boxes(found) for found in head.predict(feats, samples, rescale=False)])
        finally:
            head.test_cfg = cfg
    return lists[0], lists[1]


def _everything(cfg: Any, unlimited: bool = False) -> Any:
    """A test config that suppresses and cuts off nothing; ``unlimited`` also takes all candidates of a level."""
    changed = copy.deepcopy(cfg)
    changed.nms, changed.max_per_img = None, sys.maxsize
    if unlimited:
        changed.nms_pre = sys.maxsize
    return changed


class Boxes(NamedTuple):
    """Boxes (n, 4), scores (n,) and labels (n,)."""

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor


def outcome(found: Boxes, possible: Boxes, candidates: Boxes, nms: Any, most: int, floor: float) -> tuple[float, float]:
    """Compares detections with what suppression may make of candidates.

    Which of two boxes of one score survives is a matter of rounding, and a head that ran at reduced size gives whole
    blocks of sites one score. So it is not asked for one survivor, but for what defines suppression: each detection is
    a candidate, no two of a label overlap, and each candidate that is missing overlaps a detection that is as good.

    Args:
        found: Detections.
        possible: All boxes that can be detected.
        candidates: Those that are good enough to be considered.
        nms: Config of the suppression.
        most: Size of a full list of detections.
        floor: Least score.

    Returns:
        Largest difference of a coordinate, in px, and of a score; infinite where the rules are broken.
    """
    if nms.get("class_agnostic", False):
        found, possible, candidates = (
            part._replace(labels=torch.zeros(len(part[1]))) for part in (found, possible, candidates)
        )
    full = 0 < most <= len(found.scores)
    least = max(float(floor), float(found.scores.min()) if full else 0.0) + SCORE_TOLERANCE
    boxes = scores = 0.0
    for box, score, label in zip(*found, strict=True):
        same = possible.labels == label
        apart = (possible.boxes[same] - box).abs().amax(1) / BOX_TOLERANCE
        other = (possible.scores[same] - score).abs() / SCORE_TOLERANCE
        worse = torch.maximum(apart, other).nan_to_num(float("inf"))
        if not len(worse) or worse.min() > 1:
            if score > floor + SCORE_TOLERANCE:
                return float("inf"), float("inf")
            continue
        index = int(worse.argmin())
        boxes = max(boxes, float(apart[index]) * BOX_TOLERANCE)
        scores = max(scores, float(other[index]) * SCORE_TOLERANCE)
    iou = float(nms["iou_threshold"])
    among = bbox_overlaps(found.boxes, found.boxes).fill_diagonal_(0)
    among[found.labels[:, None] != found.labels] = 0
    ours = candidates.scores > least
    missing = Boxes(*(part[ours] for part in candidates))
    over = bbox_overlaps(missing.boxes, found.boxes) > iou - IOU_TOLERANCE
    over &= missing.labels[:, None] == found.labels
    over &= found.scores >= missing.scores[:, None] - SCORE_TOLERANCE
    if bool((among > iou + IOU_TOLERANCE).any()) or not bool(over.any(1).all()):
        return float("inf"), float("inf")
    return boxes, scores


def _detections(found: dict[str, torch.Tensor]) -> list[Boxes]:
    return [
        Boxes(*(found[name][image, : int(count)] for name in ("boxes", "scores", "labels")))
        for image, count in enumerate(found["count"])
    ]


def _boxes(instances: InstanceData) -> Boxes:
    return Boxes(instances.bboxes, instances.scores, instances.labels)


def _samples(sizes: torch.Tensor) -> list[DetDataSample]:
    metas = [tuple(int(side) for side in size) for size in sizes]
    return [
        DetDataSample(metainfo={"img_shape": meta, "ori_shape": meta, "scale_factor": (1.0, 1.0)}) for meta in metas
    ]


def distance(found: torch.Tensor, told: torch.Tensor) -> list[float]:
    """(B, ...) twice to the largest difference of each image: absolute, or a share of what is larger than 1."""
    if found.shape != told.shape:
        return [float("inf")] * len(told)
    parts = (found.double() - told.double()).abs() / told.double().abs().clamp(min=1)
    return [float(value) for value in parts.nan_to_num(float("inf")).flatten(1).amax(1)]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
