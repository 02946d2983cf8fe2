"""DDOD's assignments (equation 1) and weights of pyramid levels (equations 3 to 5), for four dense heads."""

from typing import NamedTuple

import torch
from mmdet.models.task_modules.prior_generators import anchor_inside_flags
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import reduce_mean
from torch import Tensor, distributed, nn

from spaces.modules import dense_head

BRANCHES = ("cls", "reg")
COUNTED = ("sum", "interpolate")
MARGIN = 0.01  # px that a centre must lie inside of an object, as in the reference code


def level_weights(scheme: str, positives: Tensor, span: float) -> Tensor:
    """Weights of pyramid levels, each in [1, span].

    Args:
        scheme: ``linear``: from 1 on the finest level to ``span`` on the coarsest, whatever the counts;
            ``sum``: span - (span - 1) n_i / Σn; ``interpolate``: span - (span - 1) (n_i - min n) / (max n - min n),
            which is equation 3 at span 2.
        positives: Positive samples n of each level, (..., L), whole numbers.
        span: Largest weight, 1 or more.

    Returns:
        (..., L) in double precision. Without any positive, ``sum`` and ``interpolate`` give ``span`` everywhere, and
        ``interpolate`` does when all counts are equal.
    """
    count = positives.double()
    if scheme == "linear":
        return torch.linspace(1, span, count.shape[-1], dtype=count.dtype, device=count.device).expand_as(count)
    if scheme == "sum":
        share = count / count.sum(-1, keepdim=True).clamp(min=1)
    else:
        least = count.amin(-1, keepdim=True)
        share = (count - least) / (count.amax(-1, keepdim=True) - least).clamp(min=1)
    return span - (span - 1) * share


class LevelBalance(nn.Module):
    """Level weights of both branches, from positives counted over all ranks.

    Args:
        levels: Levels of the pyramid.
        scheme: ``linear``, ``sum`` or ``interpolate``.
        span: Largest weight.
        cumulative: Whether the counts are of all training so far. They are buffers then, hence in checkpoints.
    """

    def __init__(self, levels: int, scheme: str, span: float, cumulative: bool) -> None:
        super().__init__()
        self.scheme = scheme
        self.span = span
        self.cumulative = cumulative and scheme in COUNTED
        if self.cumulative:
            for branch in BRANCHES:
                self.register_buffer(branch, torch.zeros(levels, dtype=torch.int64))

    def forward(self, positives: Tensor) -> Tensor:
        """Counts a batch, in training, and gives the weights with it.

        Args:
            positives: (2, L), of this rank's batch: for classification and for regression.

        Returns:
            (2, L).
        """
        if self.scheme in COUNTED and distributed.is_available() and distributed.is_initialized():
            positives = positives.clone()
            distributed.all_reduce(positives)
        if self.cumulative:
            if self.training:
                for branch, count in zip(BRANCHES, positives):
                    getattr(self, branch).add_(count)
            positives = torch.stack([getattr(self, branch) for branch in BRANCHES])
        return level_weights(self.scheme, positives, self.span)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, *args) -> None:
        """Takes a checkpoint of the base, which has no counts, as one with nothing counted yet."""
        missing: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, *args)


class QualityAssigner:
    """Assigns objects to anchors by the quality of the anchors' predictions.

    Args:
        alpha: Share of IoU in the quality, 0 to 1.
        topk: Candidates of each object on each level, those whose centres are nearest.
    """

    def __init__(self, alpha: float, topk: int) -> None:
        self.alpha = alpha
        self.topk = topk

    def quality(self, boxes: Tensor, scores: Tensor, objects: Tensor, labels: Tensor) -> Tensor:
        """Equation 1 without its spatial term: p^(1-alpha) IoU^alpha, (n, G).

        Args:
            boxes: (n, 4), predicted, in px.
            scores: (n, C), logits.
            objects: (G, 4), in px.
            labels: (G,).
        """
        return scores[:, labels].sigmoid() ** (1 - self.alpha) * bbox_overlaps(boxes, objects) ** self.alpha

    def __call__(
        self, anchors: Tensor, sizes: list[int], boxes: Tensor, scores: Tensor, objects: Tensor, labels: Tensor
    ) -> Tensor:
        """Gives (n,): the index of the object that an anchor is positive for, -1 for the background.

        Args:
            anchors: (n, 4), level by level; only their centres matter.
            sizes: Anchors of each level.
            boxes: As in ``quality``, like the rest.
        """
        if not len(objects) or not len(anchors):
            return labels.new_full((len(anchors),), -1)
        objects = objects.to(anchors.dtype)
        centers, middles = ((part[:, :2] + part[:, 2:]) / 2 for part in (anchors, objects))
        # Not by a matrix product, which rounds neighbours into ties.
        distances = torch.cdist(centers, middles, compute_mode="donot_use_mm_for_euclid_dist")
        starts = [sum(sizes[:level]) for level in range(len(sizes))]
        candidates = torch.cat(
            [
                part.topk(min(self.topk, len(part)), 0, largest=False).indices + start
                for start, part in zip(starts, distances.split(sizes))
            ]
        )  # (K, G)
        here = centers[candidates]
        inside = torch.cat((here - objects[:, :2], objects[:, 2:] - here), -1).amin(-1) > MARGIN
        everywhere = self.quality(boxes, scores, objects, labels)
        quality = everywhere.gather(0, candidates)
        # Few candidates, or equal ones in floating point, may all lie below mean plus deviation, and the better ones
        # outside: the best one inside is positive then. A single one has no deviation, which fmin passes over.
        best_inside = quality.where(inside, -1).amax(0)
        threshold = torch.fmin(quality.mean(0) + quality.std(0), best_inside)
        reached = quality.where(inside & (quality >= threshold), -1)
        best, owner = torch.full_like(everywhere, -1).scatter_(0, candidates, reached).max(1)
        return owner.where(best >= 0, -1)


class Targets(NamedTuple):
    """What one branch has to learn; each list is by level, of tensors (N, sites times anchors, ...).

    Attributes:
        labels: Class of the object; the number of classes for the background.
        weights: Weight of the label, 0 for an anchor that takes no part.
        boxes: (..., 4), the object's box in px; zeros for the background.
        average: What the losses are divided by: positives of an image, at least 1 each, averaged over ranks.
    """

    labels: list[Tensor]
    weights: list[Tensor]
    boxes: list[Tensor]
    average: float


class Disentangled:
    """Mixin for dense heads: replaces how they are trained and nothing else.

    Args:
        assign: Whether objects are assigned by quality, else as in the base.
        reweight: ``none``, ``linear``, ``sum`` or ``interpolate``.
        alpha_cls: Equation 1's alpha for the classification branch, 0 to 1.
        alpha_reg: The same for the regression branch.
        topk: Candidate sites of each object on each level.
        cumulative: Whether positives are counted over all training so far.
        span: Largest weight of a level.

    Raises:
        ValueError: The base's scores are not sigmoids.
    """

    # Closest to the base head, so that other mixins see the losses of each level.
    setup_order = 20
    # Where the labels stand in what the base's get_targets returns.
    labels_at = 0

    def setup_mixin(
        self,
        assign: bool,
        reweight: str,
        alpha_cls: float = 0.8,
        alpha_reg: float = 0.5,
        topk: int = 9,
        cumulative: bool = True,
        span: float = 2.0,
    ) -> None:
        """Adds assigners and level weights; called once after the base head is built."""
        if assign and not self.use_sigmoid_cls:
            raise ValueError("ddod.assign: must have a base with sigmoid scores, but loss_cls.use_sigmoid is False")
        # The anchors of one site have one centre, so all of them are candidates or none is.
        anchors = topk * self.prior_generator.num_base_priors[0]
        alphas = (alpha_cls, alpha_reg) if assign else ()
        self.quality_assigners = [QualityAssigner(alpha, anchors) for alpha in alphas]
        self.level_balance = None
        if reweight != "none":
            self.level_balance = LevelBalance(self.prior_generator.num_levels, reweight, span, cumulative)
        self._base_labels = None

    def get_targets(self, *args, **kwargs) -> tuple:
        """As the base head's; ``_base_losses`` sees the labels."""
        targets = super().get_targets(*args, **kwargs)
        if self._base_labels is not None:
            self._base_labels.extend(targets[self.labels_at])
        return targets

    def _base_losses(self, *outputs) -> dict[str, list[Tensor]]:
        """The base's losses with its own assignment, weighted by level."""
        self._base_labels = labels = []
        try:
            losses = super().loss_by_feat(*outputs)
        finally:
            self._base_labels = None
        return self._balanced(losses, labels, labels)

    def _balanced(self, losses: dict, cls_labels: list[Tensor], reg_labels: list[Tensor]) -> dict[str, list[Tensor]]:
        """Multiplies the losses of each level by its weight (equation 5); labels are by level."""
        if self.level_balance is None:
            return losses
        counts = [[self._positive(level).sum() for level in labels] for labels in (cls_labels, reg_labels)]
        cls_weights, reg_weights = self.level_balance(torch.stack([torch.stack(count) for count in counts]))
        return {
            name: [
                loss * weight.to(loss.dtype)
                for loss, weight in zip(levels, cls_weights if name == "loss_cls" else reg_weights)
            ]
            for name, levels in losses.items()
        }

    def _positive(self, labels: Tensor) -> Tensor:
        return (labels >= 0) & (labels < self.num_classes)

    def _grid(self, maps: list[Tensor], metas: list[dict]) -> tuple[list[Tensor], Tensor]:
        """Anchors of each level, (sites times anchors, 4), and which of all take part in each image, (N, anchors)."""
        anchors, valid = self.get_anchors([level.shape[-2:] for level in maps], metas, device=maps[0].device)
        flat = torch.cat(anchors[0])
        border = self.train_cfg["allowed_border"]
        inside = [
            anchor_inside_flags(flat, torch.cat(flags), meta["img_shape"][:2], border)
            for flags, meta in zip(valid, metas)
        ]
        return anchors[0], torch.stack(inside)

    def _decode(self, level: int, priors: Tensor, raw: Tensor) -> Tensor:
        """Boxes in px, (n, 4), from what the head predicts at the ``priors`` of a level."""
        return self.bbox_coder.decode(priors, raw)

    @torch.no_grad()
    def _assign(
        self,
        priors: list[Tensor],
        inside: Tensor,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        instances: list,
    ) -> tuple[Targets, Targets]:
        """Assigns objects to anchors for classification and for regression.

        Ignored objects (crowds) take no part: anchors on them are background, as with the bases' assigners.

        Args:
            priors: By level, boxes (n, 4) or points (n, 2).
            inside: (N, all n), which of them take part.
            cls_scores: By level, (N, anchors C, H, W).
            bbox_preds: By level, (N, anchors times the length of a prediction, H, W).
            instances: Objects of each image, with ``bboxes`` (G, 4) in px and ``labels`` (G,).
        """
        sizes = [len(level) for level in priors]
        anchors = torch.cat(priors)
        if anchors.shape[1] == 2:
            anchors = anchors.repeat(1, 2)  # a point is a box of no size
        shape = (len(BRANCHES), len(instances), len(anchors))
        labels = torch.full(shape, self.num_classes, dtype=torch.long, device=anchors.device)
        weights, boxes = anchors.new_zeros(shape), anchors.new_zeros(*shape, 4)
        average = anchors.new_zeros(len(BRANCHES))
        within = torch.stack([part.sum(1) for part in inside.split(sizes, 1)], 1).tolist()
        for image, objects in enumerate(instances):
            kept = inside[image].nonzero().squeeze(1)
            scores = [_rows(score[image : image + 1].float(), size) for score, size in zip(cls_scores, sizes)]
            predicted = [
                self._decode(level, prior, _rows(raw[image : image + 1].float(), len(prior)))
                for level, (prior, raw) in enumerate(zip(priors, bbox_preds))
            ]
            seen = (anchors[kept], within[image], torch.cat(predicted)[kept], torch.cat(scores)[kept])
            for branch, assigner in enumerate(self.quality_assigners):
                owner = assigner(*seen, objects.bboxes, objects.labels)
                found, owner = kept[owner >= 0], owner[owner >= 0]
                labels[branch, image, found] = objects.labels[owner]
                boxes[branch, image, found] = objects.bboxes[owner].to(boxes.dtype)
                weights[branch, image, kept] = 1
                weights[branch, image, found] = self._positive_weight()
                average[branch] += max(1, len(found))
        cls, reg = (
            Targets(*(part[branch].split(sizes, 1) for part in (labels, weights, boxes)), mean)
            for branch, mean in enumerate(reduce_mean(average).tolist())
        )
        return cls, reg

    def _positive_weight(self) -> float:
        given = (self.train_cfg or {}).get("pos_weight", -1)
        return given if given > 0 else 1.0

    def _classification(self, cls_scores: list[Tensor], targets: Targets) -> list[Tensor]:
        """The base's classification loss of each level."""
        return [
            self.loss_cls(_rows(score, labels.numel()), labels.flatten(), weights.flatten(), avg_factor=targets.average)
            for score, labels, weights in zip(cls_scores, targets.labels, targets.weights)
        ]

    def _regression(
        self, priors: list[Tensor], bbox_preds: list[Tensor], qualities: list[Tensor], targets: Targets
    ) -> dict[str, list[Tensor]]:
        """The base's box loss of each level, and an IoU prediction in place of centerness (section 5.1)."""
        losses: dict[str, list[Tensor]] = {"loss_bbox": [], "loss_iou": []}
        for level, (prior, raw, quality, labels, wanted) in enumerate(
            zip(priors, bbox_preds, qualities, targets.labels, targets.boxes)
        ):
            positive = self._positive(labels).flatten()
            raw = _rows(raw, labels.numel())[positive]
            quality = _rows(quality, labels.numel())[positive].squeeze(1)
            wanted = wanted.reshape(-1, 4)[positive]
            if len(raw):
                boxes = self._decode(level, prior.repeat(len(labels), 1)[positive], raw)
                overlap = bbox_overlaps(boxes.detach(), wanted, is_aligned=True).clamp(0, 1)
                losses["loss_bbox"].append(self.loss_bbox(boxes, wanted, avg_factor=targets.average))
                losses["loss_iou"].append(self.loss_centerness(quality, overlap, avg_factor=targets.average))
            else:
                losses["loss_bbox"].append(raw.sum())
                losses["loss_iou"].append(quality.sum())
        return losses


def _rows(level: Tensor, count: int) -> Tensor:
    """(N, anchors D, H, W) to (count, D), image by image, site by site, anchor by anchor."""
    return level.permute(0, 2, 3, 1).reshape(count, -1)


@MODELS.register_module()
class DisentangledRetinaHead(Disentangled):
    """For RetinaNet, with any number of anchors at a site."""

    def loss_by_feat(self, cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore=None):
        """Losses of each level, as the base head's."""
        if not self.quality_assigners:
            return self._base_losses(
                cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
            )
        priors, inside = self._grid(cls_scores, batch_img_metas)
        cls, reg = self._assign(priors, inside, cls_scores, bbox_preds, batch_gt_instances)
        losses = {"loss_cls": self._classification(cls_scores, cls), "loss_bbox": []}
        for prior, raw, labels, wanted in zip(priors, bbox_preds, reg.labels, reg.boxes):
            positive = self._positive(labels).flatten()
            raw = _rows(raw, labels.numel())[positive]
            if len(raw):
                anchors = prior.repeat(len(labels), 1)[positive]
                wanted = wanted.reshape(-1, 4)[positive]
                if self.reg_decoded_bbox:
                    raw = self.bbox_coder.decode(anchors, raw)
                else:
                    wanted = self.bbox_coder.encode(anchors, wanted)
                losses["loss_bbox"].append(self.loss_bbox(raw, wanted, avg_factor=reg.average))
            else:
                losses["loss_bbox"].append(raw.sum())
        return self._balanced(losses, cls.labels, reg.labels)


@MODELS.register_module()
class DisentangledATSSHead(Disentangled):
    """For ATSS; its centerness predicts the IoU when objects are assigned by quality."""

    labels_at = 1

    def loss_by_feat(
        self,
        cls_scores,
        bbox_preds,
        centernesses,
        batch_gt_instances,
        batch_img_metas,
        batch_gt_instances_ignore=None,
    ):
        """Losses of each level, as the base head's."""
        if not self.quality_assigners:
            return self._base_losses(
                cls_scores, bbox_preds, centernesses, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
            )
        priors, inside = self._grid(cls_scores, batch_img_metas)
        cls, reg = self._assign(priors, inside, cls_scores, bbox_preds, batch_gt_instances)
        losses = {
            "loss_cls": self._classification(cls_scores, cls),
            **self._regression(priors, bbox_preds, centernesses, reg),
        }
        return self._balanced(losses, cls.labels, reg.labels)


@MODELS.register_module()
class DisentangledGFLHead(Disentangled):
    """For GFL: quality focal loss on its classification positives, box losses on its regression positives."""

    labels_at = 1

    def _decode(self, level: int, priors: Tensor, raw: Tensor) -> Tensor:
        distances = self.integral(raw) * self.prior_generator.strides[level][0]
        return self.bbox_coder.decode(self.anchor_center(priors), distances)

    def loss_by_feat(self, cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore=None):
        """Losses of each level, as the base head's."""
        if not self.quality_assigners:
            return self._base_losses(
                cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
            )
        priors, inside = self._grid(cls_scores, batch_img_metas)
        both = self._assign(priors, inside, cls_scores, bbox_preds, batch_gt_instances)
        # The base's own losses of a level, once for each assignment.
        (loss_cls, *_), (_, loss_bbox, loss_dfl, weights) = (
            zip(
                *(
                    self.loss_by_feat_single(
                        prior.expand(len(score), -1, -1), score, raw, *level, stride, avg_factor=targets.average
                    )
                    for prior, score, raw, stride, *level in zip(
                        priors, cls_scores, bbox_preds, self.prior_generator.strides, *targets[:3]
                    )
                )
            )
            for targets in both
        )
        average = reduce_mean(sum(weights)).clamp_(min=1).item()
        losses = {
            "loss_cls": list(loss_cls),
            "loss_bbox": [loss / average for loss in loss_bbox],
            "loss_dfl": [loss / average for loss in loss_dfl],
        }
        cls, reg = both
        return self._balanced(losses, cls.labels, reg.labels)


@MODELS.register_module()
class DisentangledFCOSHead(Disentangled):
    """For FCOS, whose points are the priors; its centerness predicts the IoU when objects are assigned by quality.

    Losses are lists by level, where the base's are sums over levels.
    """

    def _unit(self, level: int) -> float:
        # What the head multiplies its distances by itself outside of training.
        return self.strides[level] if self.norm_on_bbox and self.training else 1

    def _decode(self, level: int, priors: Tensor, raw: Tensor) -> Tensor:
        return self.bbox_coder.decode(priors, raw * self._unit(level))

    def loss_by_feat(
        self,
        cls_scores,
        bbox_preds,
        centernesses,
        batch_gt_instances,
        batch_img_metas,
        batch_gt_instances_ignore=None,
    ):
        """Losses of each level; their sums without level weights and quality are the base head's."""
        points = self.prior_generator.grid_priors(
            [level.shape[-2:] for level in cls_scores], dtype=bbox_preds[0].dtype, device=bbox_preds[0].device
        )
        if self.quality_assigners:
            inside = torch.ones(
                len(cls_scores[0]), sum(map(len, points)), dtype=torch.bool, device=cls_scores[0].device
            )
            cls, reg = self._assign(points, inside, cls_scores, bbox_preds, batch_gt_instances)
            losses = {
                "loss_cls": self._classification(cls_scores, cls),
                **self._regression(points, bbox_preds, centernesses, reg),
            }
            return self._balanced(losses, cls.labels, reg.labels)
        labels, distances = self.get_targets(points, batch_gt_instances)
        return self._balanced(
            self._centerness_losses(points, cls_scores, bbox_preds, centernesses, labels, distances), labels, labels
        )

    def _centerness_losses(
        self,
        points: list[Tensor],
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        centernesses: list[Tensor],
        labels: list[Tensor],
        distances: list[Tensor],
    ) -> dict[str, list[Tensor]]:
        """The base's losses with its own targets, level by level, divided by what the base divides them by."""
        positives = [self._positive(level) for level in labels]
        wanted = [distance[positive] for distance, positive in zip(distances, positives)]
        centers = [self.centerness_target(distance) for distance in wanted]
        count = max(reduce_mean(sum(positive.sum() for positive in positives).float()), 1.0)
        total = max(reduce_mean(sum(center.sum() for center in centers)), 1e-6)
        losses: dict[str, list[Tensor]] = {"loss_cls": [], "loss_bbox": [], "loss_centerness": []}
        for level, (positive, target, center) in enumerate(zip(positives, wanted, centers)):
            score = _rows(cls_scores[level], len(positive))
            raw = _rows(bbox_preds[level], len(positive))[positive]
            quality = _rows(centernesses[level], len(positive))[positive].squeeze(1)
            losses["loss_cls"].append(self.loss_cls(score, labels[level], avg_factor=count))
            if len(raw):
                here = points[level].repeat(len(cls_scores[level]), 1)[positive]
                boxes, wanted_boxes = self.bbox_coder.decode(here, raw), self.bbox_coder.decode(here, target)
                losses["loss_bbox"].append(self.loss_bbox(boxes, wanted_boxes, weight=center, avg_factor=total))
                losses["loss_centerness"].append(self.loss_centerness(quality, center, avg_factor=count))
            else:
                losses["loss_bbox"].append(raw.sum())
                losses["loss_centerness"].append(quality.sum())
        return losses


def mismatch(model: nn.Module, values: dict) -> str | None:
    """Says how the built ``model`` differs from the knob ``values``, ``None`` when it follows them."""
    head = dense_head(model)
    if not isinstance(head, Disentangled):
        return f"the head is a plain {type(head).__name__}"
    assigners, balance = head.quality_assigners, head.level_balance
    built = {"assign": bool(assigners), "reweight": balance.scheme if balance else "none"}
    if assigners:
        built |= {"alpha_cls": assigners[0].alpha, "alpha_reg": assigners[1].alpha}
        built["topk"] = assigners[0].topk / head.prior_generator.num_base_priors[0]
    if balance:
        built["span"] = balance.span
        if balance.scheme in COUNTED:
            built["cumulative"] = balance.cumulative
    wanted = dict(values)
    if built != wanted:
        return f"the head has {built} instead of {wanted}"
    if balance and balance.cumulative and len(balance.cls) != head.prior_generator.num_levels:
        return f"it counts {len(balance.cls)} levels, but the pyramid has {head.prior_generator.num_levels}"
    return None
