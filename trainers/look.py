"""Runs a detector on an image and notes what it finds on the way: detections, key parts, query probabilities.

Two programs look: a trial at its end (``trainers.pictures``), and the one that runs a bundle where nothing of Headway
can be imported (``analysis/bundle/alone.py``), which is given the path of this very file. So this file imports nothing
of Headway, and what it gives is plain data that survives JSON. ``trainers.drawing`` turns it into pictures, without
torch, in the process that asked.

Heads are known by what they offer, as a bundle's classes have names of their own: ``keep`` and ``kept``, see
``spaces.querydet.modules.QueryHead`` and ``spaces.keyparts.modules.KeyPartBBoxHead``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmcv.transforms import Compose
from torch import Tensor, nn


def look(
    model: Any, pipeline: Sequence[Any], image: str, *, score: float = 0.3, few: int = 0, objects: int = 12
) -> dict[str, Any]:
    """Runs a detector on one image file.

    Args:
        model: A detector of mmdet in evaluation, on any device.
        pipeline: Steps of its test pipeline, as configs.
        image: Path of the image.
        score: Least score of a detection that counts as found.
        few: How many of the best to take where none has that score.
        objects: Most detections whose key parts are looked at, the best first.

    Returns:
        ``size``, width and height of the image in px; ``bboxes`` (x1, y1, x2, y2 in px of the image), ``labels`` and
        ``scores`` of the detections with ``score`` or more, best first, or of the ``few`` best; ``found``, how many
        have that score, and ``best``, the highest of all scores, ``None`` without any; ``parts``, see ``_parts``; and
        ``queries``, see ``_queries``; both ``None`` for a detector without such heads.
    """
    data = Compose(pipeline)({"img_path": image, "img_id": 0})
    batch = model.data_preprocessor({"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}, False)
    dense = getattr(model, "rpn_head", None) or getattr(model, "bbox_head", None)
    with torch.no_grad():
        with _keeping(dense):
            sample = model(**batch, mode="predict")[0]
            kept = getattr(dense, "kept", None)
        instances = sample.pred_instances
        instances = instances[instances.scores.argsort(descending=True)]
        found = int((instances.scores >= score).sum())
        shown = instances[: found or few]
        best = None if not len(instances) else float(instances.scores[0])
        scale = tuple(float(side) for side in sample.get("scale_factor", (1.0, 1.0)))
        parts = _parts(model, batch["inputs"], shown.bboxes[:objects], scale)
    height, width = sample.ori_shape[:2]
    return {
        "size": [int(width), int(height)],
        "bboxes": shown.bboxes.tolist(),
        "labels": shown.labels.tolist(),
        "scores": shown.scores.tolist(),
        "found": found,
        "best": best,
        "parts": parts,
        "queries": None if kept is None else _queries(kept, scale),
    }


def _parts(model: Any, inputs: Tensor, boxes: Tensor, scale: tuple[float, ...]) -> dict[str, Any] | None:
    """Pools boxes of the image again and notes the key parts that the last box head discovers in them.

    What was detected has lost its RoIs in the suppression, and its boxes were moved since.

    Args:
        model: The detector.
        inputs: (1, 3, H, W) what the network sees.
        boxes: (n, 4) in px of the image.
        scale: Horizontal and vertical scale from the image to ``inputs``.

    Returns:
        ``points`` (n, K), row-major indices into the RoI map, ``confidences`` (n, K) in 0..1, ``size`` of the map
        (height, width), and ``activation`` (n, h, w) in 0..1 or ``None``; ``None`` without a head of key parts.
    """
    roi: Any = getattr(model, "roi_head", None)
    head: Any = getattr(roi, "bbox_head", None)
    stage: tuple[int, ...] = ()
    if isinstance(head, nn.ModuleList):
        head, stage = head[-1], (len(head) - 1,)
    if not hasattr(head, "keep"):
        return None
    size = [int(side) for side in head.roi_feat_size]
    if not len(boxes):
        return {"points": [], "confidences": [], "size": size, "activation": []}
    rois = torch.cat((boxes.new_zeros(len(boxes), 1), boxes * boxes.new_tensor(scale * 2)), 1)
    with _keeping(head):
        roi._bbox_forward(*stage, model.extract_feat(inputs), rois)
        kept = head.kept
    activation = kept.get("activation")
    return {
        "points": kept["points"].tolist(),
        "confidences": kept["confidences"].tolist(),
        "size": [int(side) for side in kept["size"]],
        "activation": None if activation is None else normalised(activation).tolist(),
    }


def normalised(maps: Tensor) -> Tensor:
    """(n, h, w) with each map stretched to 0..1; a map of one value becomes 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp(min=1e-12), torch.zeros_like(maps))


def _queries(kept: dict[str, Any], scale: tuple[float, ...]) -> dict[str, Any]:
    """Notes the query probabilities of one image.

    Returns:
        ``threshold``, and ``levels``: by name, ``P4`` first, ``probabilities`` (rows of a map, ``None`` where the
        level was not asked) and ``cell``, width and height of a cell in px of the image.
    """
    levels = {}
    for name, maps in kept["queries"].items():
        stride = kept["strides"][name]
        rows = [[value if math.isfinite(value) else None for value in row] for row in maps[0].tolist()]
        levels[name] = {"probabilities": rows, "cell": [stride / side for side in scale]}
    return {"threshold": float(kept["threshold"]), "levels": levels}


@contextmanager
def _keeping(head: Any) -> Iterator[None]:
    """Lets a head that can do so keep what it finds, and drops it afterwards."""
    if not hasattr(head, "keep"):
        yield
        return
    head.keep = True
    try:
        yield
    finally:
        head.keep, head.kept = False, None
