"""Networks whose outputs are what a graph gives: the raw head outputs, or detections, for a batch of any size."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from mmdet.models.dense_heads import GFLHead, RPNHead, TOODHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from torch import Tensor, nn

from .suppress import suppress

DETECTIONS = ("boxes", "scores", "labels", "count")


class Unsupported(Exception):
    """Why there is no graph; the message is for the user."""


class Outputs(nn.Module):
    """What all of them share.

    Args:
        model: A detector in evaluation.
        canvas: Height and width in px of the images.

    Attributes:
        inputs: Names of the inputs. ``images`` (B, 3, H, W), normalised; ``sizes`` (B, 2), height and width in px that
            an image fills of the canvas, from its upper left corner.
        names: Names of the outputs.
    """

    inputs: tuple[str, ...] = ("images",)
    names: tuple[str, ...] = ()

    def __init__(self, model: Any, canvas: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.canvas = canvas


class DenseMaps(Outputs):
    """The maps of a dense head, level by level: (B, C, H / stride, W / stride) each."""

    def __init__(self, model: Any, canvas: tuple[int, int]) -> None:
        super().__init__(model, canvas)
        self.head = model.bbox_head
        with torch.no_grad():
            levels, queries = head_maps(self.head, model.extract_feat(torch.zeros(1, 3, *canvas)))
        names = map_names(self.head, len(levels[0]))
        labels = level_labels(self.head)
        self.names = tuple(f"{name}_{label}" for label in labels for name in names)
        self.names += tuple(f"query_{labels[level]}" for level in queries)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Gives the maps in the order of ``names``."""
        levels, queries = head_maps(self.head, self.model.extract_feat(images))
        return (*(out for outs in levels for out in outs), *queries.values())


class DenseDetections(Outputs):
    """Detections of a dense head, as mmdet's own ``predict`` gives them but for the scale.

    ``boxes`` (B, K, 4) left, top, right, bottom in px of the canvas; ``scores`` (B, K), best first; ``labels`` (B, K),
    from 0; ``count`` (B,) detections of each image, behind which boxes and scores are 0 and labels -1.
    """

    inputs: tuple[str, ...] = ("images", "sizes")
    names = DETECTIONS

    def __init__(self, model: Any, canvas: tuple[int, int]) -> None:
        super().__init__(model, canvas)
        self.candidates = Candidates(model.bbox_head, model, canvas)
        if not self.candidates.clips:
            self.inputs = ("images",)

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Gives boxes, scores, labels and count."""
        boxes, scores, labels, _ = self.candidates(self.model.extract_feat(images), sizes)
        return best(boxes, scores, labels, self.model.bbox_head.test_cfg)


class RegionScores(Outputs):
    """What the box heads of a two-stage detector say of its proposals, K for each image.

    ``rois`` (B, K, 4) in px of the canvas; ``roi_scores`` (B, K), 0 or less where there are fewer than K; ``cls_score``
    (B, K, C + 1), the background last, a cascade's mean over its stages; ``bbox_pred`` (B, K, 4 or 4 C), deltas to
    ``rois``. A cascade refines its ``proposals`` (B, K, 4), of which the scores are, to ``rois``.
    """

    inputs = ("images", "sizes")

    def __init__(self, model: Any, canvas: tuple[int, int]) -> None:
        super().__init__(model, canvas)
        self.regions = Regions(model, canvas)
        self.names = ("rois", "roi_scores", "cls_score", "bbox_pred")
        self.names += ("proposals",) if self.regions.cascaded else ()

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Gives the outputs in the order of ``names``."""
        proposals, scores, rois, cls_score, bbox_pred = self.regions(images, sizes)
        found = (rois, scores, cls_score, bbox_pred)
        return (*found, proposals) if self.regions.cascaded else found


class RegionDetections(Outputs):
    """Detections of a two-stage detector; see ``DenseDetections``.

    Behind them ``proposals`` (B, K, 4) of the first stage and ``roi_scores`` (B, K), 0 or less where there is none.
    """

    inputs = ("images", "sizes")
    names = (*DETECTIONS, "proposals", "roi_scores")

    def __init__(self, model: Any, canvas: tuple[int, int]) -> None:
        super().__init__(model, canvas)
        self.regions = Regions(model, canvas)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Gives the outputs in the order of ``names``."""
        proposals, there, rois, cls_score, bbox_pred = self.regions(images, sizes)
        head, cfg = self.regions.heads[-1], self.model.roi_head.test_cfg
        number, classes = int(rois.shape[1]), head.num_classes
        scores = cls_score.softmax(-1)[..., :-1]  # (B, K, C)
        scores = torch.where((scores > cfg.score_thr) & (there > 0)[..., None], scores, -1.0).flatten(1)
        each = 1 if head.reg_class_agnostic else classes
        start = rois[:, :, None].expand(-1, -1, each, -1).reshape(-1, 4)
        boxes = head.bbox_coder.decode(start, bbox_pred.reshape(-1, 4), max_shape=None)
        boxes = clip(boxes.reshape(-1, number * each, 4), sizes)
        boxes = boxes.reshape(-1, number, each, 4).expand(-1, -1, classes, -1).reshape(-1, number * classes, 4)
        labels = torch.arange(classes, device=boxes.device).repeat(number).expand_as(scores)
        return (*best(boxes, scores, labels, cfg), proposals, there)


def outputs_of(model: Any, kind: str, canvas: tuple[int, int]) -> Outputs:
    """Chooses the network for a detector.

    Args:
        model: A detector in evaluation.
        kind: ``raw`` or ``nms``.
        canvas: Height and width in px of the images.

    Raises:
        Unsupported: There is none; the message says why.
    """
    predict = type(model).predict
    if predict not in (SingleStageDetector.predict, TwoStageDetector.predict):
        raise Unsupported(f"{type(model).__name__} detects in a way of its own, for which there is no graph here")
    if getattr(model, "with_mask", False) or getattr(model, "mask_head", None) is not None:
        raise Unsupported(f"{type(model).__name__} gives masks, for which there is no graph here")
    if predict is TwoStageDetector.predict:
        return RegionScores(model, canvas) if kind == "raw" else RegionDetections(model, canvas)
    return DenseMaps(model, canvas) if kind == "raw" else DenseDetections(model, canvas)


# Dense heads


def head_maps(head: Any, feats: tuple[Tensor, ...]) -> tuple[list[tuple[Tensor, ...]], dict[int, Tensor]]:
    """Runs a dense head.

    Returns:
        By level, finest first, the maps; and by index of the level the query logits (B, 1, h, w) of a QueryDet head
        with a threshold.

    Raises:
        Unsupported: A QueryDet head computes queried sites alone.
    """
    if not getattr(head, "threshold", 0) or not hasattr(head, "cascade"):
        return list(zip(*head(feats), strict=True)), {}
    if head.method == "sparse":
        raise Unsupported(
            "querydet.method sparse computes only the sites that an image asks for, with zeros around them; a graph "
            "has the dense maps of method full or crop, or of threshold 0"
        )
    pairs = [head.level(index, x) for index, x in enumerate(feats)]
    return [tuple(outs) for outs, _ in pairs], {
        level: query for level, (_, query) in enumerate(pairs) if query is not None
    }


def asked(head: Any, levels: list[tuple[Tensor, ...]], queries: dict[int, Tensor]) -> dict[int, Tensor]:
    """By index of a level the sites (B, 1, h, w) that QueryDet's cascade looks at; of the others, all."""
    found: dict[int, Tensor] = {}
    mask = torch.ones(())
    for level in sorted(queries, reverse=True):
        mask = (queries[level].sigmoid() > head.threshold) & mask.bool()
        height, width = (int(side) for side in levels[level - 1][0].shape[2:])
        # Each site asks for the four below it; maps of odd size lack the last row or column.
        mask = nn.functional.interpolate(mask.float(), scale_factor=2, mode="nearest")[:, :, :height, :width]
        found[level - 1] = mask > 0
        mask = found[level - 1]
    return found


def level_labels(head: Any) -> list[str]:
    """Names the levels, ``p3`` for a stride of 8 px."""
    powers = [math.log2(stride[0]) for stride in head.prior_generator.strides]
    whole = all(power.is_integer() for power in powers)
    return [f"p{int(power)}" if whole else f"level{index}" for index, power in enumerate(powers)]


def map_names(head: Any, count: int) -> list[str]:
    """Names the maps of a level as mmdet does: ``cls_score``, ``bbox_pred``, ``centerness``."""
    for owner in type(head).__mro__:
        method = vars(owner).get("loss_by_feat")
        names = (
            [name for name in inspect.signature(method).parameters if name not in ("self", "args", "kwargs")]
            if method
            else []
        )
        if len(names) >= count:
            return [name.removesuffix("es" if name.endswith("nesses") else "s") for name in names[:count]]
    return [f"map{index}" for index in range(count)]


class Candidates(nn.Module):
    """The boxes of a dense head that are in question, before suppression.

    Args:
        head: A dense head; of an RPN, candidates are proposals.
        model: Its detector.
        canvas: Height and width in px of the images.

    Raises:
        Unsupported: The head decodes in a way of its own.
    """

    def __init__(self, head: Any, model: Any, canvas: tuple[int, int]) -> None:
        super().__init__()
        self.head = head
        self.kind = _kind(head)
        self.clips = self.kind != "boxes"  # TOOD does not
        check_suppression(head.test_cfg)
        with torch.no_grad():
            levels, _ = head_maps(head, model.extract_feat(torch.zeros(1, 3, *canvas)))
            shapes = [tuple(outs[0].shape[2:]) for outs in levels]
            for index, priors in enumerate(head.prior_generator.grid_priors(shapes, device="cpu")):
                self.register_buffer(f"priors{index}", priors, persistent=False)

    def forward(self, feats: tuple[Tensor, ...], sizes: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gives boxes (B, N, 4), scores (B, N), -1 where there is none, classes (B, N) and levels (B, N)."""
        head = self.head
        levels, queries = head_maps(head, feats)
        wanted = asked(head, levels, queries)
        parts = [self._level(index, outs, wanted.get(index)) for index, outs in enumerate(levels)]
        boxes, scores, classes, of_level = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        if self.clips and sizes is not None:
            boxes = clip(boxes, sizes)
        least = head.test_cfg.get("min_bbox_size", -1)
        if least >= 0:
            large = (boxes[..., 2] - boxes[..., 0] > least) & (boxes[..., 3] - boxes[..., 1] > least)
            scores = torch.where(large, scores, -1.0)
        return boxes, scores, classes, of_level

    def _level(self, index: int, outs: tuple[Tensor, ...], wanted: Tensor | None) -> tuple[Tensor, ...]:
        head, cfg = self.head, self.head.test_cfg
        channels = head.cls_out_channels
        number = len(getattr(self, f"priors{index}"))
        scores = _rows(outs[0], number, channels)
        if self.kind != "boxes":
            scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1)[..., :-1]
        classes = int(scores.shape[2])
        if wanted is not None:
            here = wanted.permute(0, 2, 3, 1).expand(-1, -1, -1, head.num_base_priors).reshape(-1, number, 1)
            scores = torch.where(here, scores, -1.0)
        if self.kind != "proposals":
            scores = torch.where(scores > cfg.get("score_thr", 0), scores, -1.0)
        scores = scores.reshape(-1, number * classes)
        most = cfg.get("nms_pre", -1)
        scores, place = scores.topk(min(most, number * classes) if most > 0 else number * classes, 1)
        site, label = place // classes, place % classes
        deltas = _rows(outs[1], number, int(outs[1].shape[1]) // head.num_base_priors)
        deltas = deltas.gather(1, site[..., None].expand(-1, -1, deltas.shape[2]))
        if len(outs) == 3:
            factor = _rows(outs[2], number, 1)[..., 0].sigmoid().gather(1, site)
            scores = torch.where(scores > 0, scores * factor, -1.0)
        return self._decode(index, site, deltas), scores, label, torch.full_like(label, index)

    def _decode(self, index: int, site: Tensor, deltas: Tensor) -> Tensor:
        head = self.head
        count = int(site.shape[1])
        stride = float(head.prior_generator.strides[index][0])
        if self.kind == "boxes":
            return deltas * stride
        priors = getattr(self, f"priors{index}").index_select(0, site.reshape(-1))
        deltas = deltas.flatten(0, 1)
        if self.kind == "distribution":
            priors, deltas = head.anchor_center(priors), head.integral(deltas) * stride
        boxes: Tensor = head.bbox_coder.decode(priors, deltas, max_shape=None)
        return boxes.reshape(-1, count, 4)


def _kind(head: Any) -> str:
    kinds = {
        BaseDenseHead._predict_by_feat_single: "coder",
        GFLHead._predict_by_feat_single: "distribution",
        TOODHead._predict_by_feat_single: "boxes",
        RPNHead._predict_by_feat_single: "proposals",
    }
    kind = kinds.get(type(head)._predict_by_feat_single)
    custom = getattr(getattr(head, "loss_cls", None), "custom_cls_channels", False)
    if kind is None or custom or getattr(head.bbox_coder, "encode_size", 4) != 4:
        raise Unsupported(
            f"{type(head).__name__} decodes its outputs in a way of its own, for which there is no graph here; the raw "
            "outputs can be had"
        )
    return kind


def _rows(out: Tensor, number: int, channels: int) -> Tensor:
    """(B, A * C, h, w) to (B, h * w * A, C), in the order of the priors."""
    return out.permute(0, 2, 3, 1).reshape(-1, number, channels)


# Two stages


class Regions(nn.Module):
    """Proposals, and what the box heads say of them.

    Raises:
        Unsupported: A part of the detector works in a way of its own.
    """

    def __init__(self, model: Any, canvas: tuple[int, int]) -> None:
        super().__init__()
        roi = model.roi_head
        known = (StandardRoIHead.predict_bbox, CascadeRoIHead.predict_bbox)
        if type(roi).predict_bbox not in known or getattr(roi, "with_mask", False):
            raise Unsupported(f"{type(roi).__name__} works in a way of its own, for which there is no graph here")
        self.model = model
        self.cascaded = type(roi).predict_bbox is known[1]
        self.heads = list(roi.bbox_head) if self.cascaded else [roi.bbox_head]
        for head in self.heads:
            plain = type(head)._predict_by_feat_single is BBoxHead._predict_by_feat_single
            if not plain or head.custom_cls_channels or not head.with_reg:
                raise Unsupported(f"{type(head).__name__} works in a way of its own, for which there is no graph here")
        check_suppression(roi.test_cfg)
        self.candidates = Candidates(model.rpn_head, model, canvas)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gives proposals (B, K, 4), their scores (B, K), RoIs (B, K, 4), class scores and deltas (B, K, ...)."""
        feats = self.model.extract_feat(images)
        boxes, scores, _, levels = self.candidates(feats, sizes)
        cfg = self.model.rpn_head.test_cfg
        scores, kept = suppress(boxes, scores, levels, cfg.max_per_img, cfg.nms["iou_threshold"])
        proposals = boxes.gather(1, kept[..., None].expand(-1, -1, 4))
        proposals = torch.where((scores > 0)[..., None], proposals, 0.0)
        return (proposals, scores, *self.judge(feats, proposals, sizes))

    def judge(self, feats: tuple[Tensor, ...], proposals: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Proposals (B, K, 4) to RoIs (B, K, 4), class scores (B, K, C + 1) and deltas (B, K, 4 or 4 C)."""
        number = int(proposals.shape[1])
        image = torch.arange(proposals.shape[0], device=proposals.device).to(proposals)
        image = image[:, None, None].expand(-1, number, 1)
        rois = proposals
        scores: list[Tensor] = []
        for stage, head in enumerate(self.heads):
            found = self._head(stage, feats, torch.cat((image, rois), 2).flatten(0, 1))
            cls_score, bbox_pred = found["cls_score"], found["bbox_pred"]
            scores.append(cls_score)
            if stage < len(self.heads) - 1:
                deltas = bbox_pred
                if not head.reg_class_agnostic:
                    best_class = cls_score[:, :-1].argmax(1)[:, None, None].expand(-1, 1, 4)
                    deltas = bbox_pred.reshape(-1, head.num_classes, 4).gather(1, best_class)[:, 0]
                refined = head.bbox_coder.decode(rois.reshape(-1, 4), deltas, max_shape=None)
                rois = clip(refined.reshape(-1, number, 4), sizes)
        total = torch.stack(scores).sum(0) / len(self.heads)
        return rois, total.reshape(-1, number, total.shape[1]), bbox_pred.reshape(-1, number, bbox_pred.shape[1])

    def _head(self, stage: int, feats: tuple[Tensor, ...], rois: Tensor) -> dict[str, Tensor]:
        head = self.model.roi_head
        found: dict[str, Tensor] = (
            head._bbox_forward(stage, feats, rois) if self.cascaded else head._bbox_forward(feats, rois)
        )
        return found


# Boxes


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """(B, N, 4) into images of the sizes (B, 2), height and width."""
    return torch.minimum(boxes.clamp(min=0), sizes.flip(1).repeat(1, 2)[:, None])


def best(boxes: Tensor, scores: Tensor, labels: Tensor, cfg: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Suppresses candidates (B, N, ...) to ``DETECTIONS``."""
    agnostic = cfg.nms.get("class_agnostic", False)
    most = cfg.max_per_img if cfg.max_per_img > 0 else int(scores.shape[1])
    groups = torch.zeros_like(labels) if agnostic else labels
    scores, kept = suppress(boxes, scores, groups, most, cfg.nms["iou_threshold"])
    there = scores > 0
    boxes = torch.where(there[..., None], boxes.gather(1, kept[..., None].expand(-1, -1, 4)), 0.0)
    labels = torch.where(there, labels.gather(1, kept), -1)
    return boxes, torch.where(there, scores, 0.0), labels, there.sum(1)


def check_suppression(cfg: Any) -> None:
    """Refuses a suppression that a graph cannot have.

    Raises:
        Unsupported: It is another one.
    """
    nms = dict(cfg.get("nms") or {})
    kind = nms.pop("type", "nms")
    known = {"iou_threshold", "class_agnostic", "split_thr"}
    if kind != "nms" or "iou_threshold" not in nms or set(nms) - known:
        raise Unsupported(f"its suppression ({cfg.get('nms')}) has no form in ONNX; the raw outputs can be had")
