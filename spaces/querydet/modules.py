"""QueryDet's query head, its targets and losses (section 3.3), and the cascade at inference (section 3.2)."""

import math
import re
from dataclasses import dataclass

import torch
from mmcv.cnn import ConvModule
from mmdet.models.losses import FocalLoss
from mmdet.registry import MODELS
from mmdet.structures.bbox import get_box_tensor
from mmengine.model import bias_init_with_prob, normal_init
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from spaces.modules import dense_head
from spaces.querydet.neck import LaterMap, whole
from spaces.querydet.sparse import (
    Masked,
    Patchwise,
    Sites,
    Submanifold,
    as_map,
    as_rows,
    find_sites,
    flatten,
    key_mask,
    offsets,
    reach,
    spread,
    take,
)

# Patches that are cropped and convolved at once.
PATCHES = 128

# Share of a level's sites above which dense convolutions of masked maps take less time than gathered rows, by type.
# Measured on CPUs (benchmarks/heads/queries.py), shorter types on one with AMX; not measured on CUDA.
DENSE_SHARE = {torch.float32: 0.8, torch.bfloat16: 0.38, torch.float16: 0.38}


def dense_share(x: Tensor | LaterMap) -> float:
    """``DENSE_SHARE`` of the type that convolutions of ``x`` are computed in."""
    within = torch.is_autocast_enabled(x.device.type)
    kind = torch.get_autocast_dtype(x.device.type) if within else x.dtype
    return DENSE_SHARE.get(kind, DENSE_SHARE[torch.float32])


# What the query head learns


def query_target(size: tuple[int, int], stride: int, boxes: Tensor, scale: float, radius: str) -> Tensor:
    """The sites that should query (equations 2 and 3).

    Args:
        size: Height and width of the map.
        stride: Of the map, in px.
        boxes: (n, 4) objects of an image as left, top, right, bottom in px.
        scale: Objects are small below it: square root of the area, in px.
        radius: ``level``: sites nearer than ``scale`` to the centre of a small object are positive; ``object``: sites
            nearer than the nearest small object's own scale.

    Returns:
        (height, width) of ones and zeros.
    """
    height, width = size
    boxes = boxes.float()
    sides = boxes[:, 2:] - boxes[:, :2]
    scales = sides.prod(1).clamp(min=0).sqrt()
    small = scales < scale
    if not small.any():
        return boxes.new_zeros(size)
    centres = (boxes[:, :2] + sides / 2)[small]
    y, x = ((torch.arange(side, device=boxes.device) + 0.5) * stride for side in (height, width))
    sites = torch.stack((x.repeat(height), y.repeat_interleave(width)), 1)
    distance, nearest = torch.cdist(sites, centres, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    within = scales[small][nearest] if radius == "object" else scale
    return (distance < within).float().view(size)


# The head


class QueryHead:
    """What the mixins for the three dense heads share.

    ``forward`` is the base head's: all levels, densely. Losses get their level weights and the query loss; ``predict``
    runs the cascade.

    Attributes:
        keep: Whether ``predict`` keeps the query probabilities, for pictures; off by default, and then nothing is kept
            and nothing computed for it.
        kept: Of the last ``predict``: ``queries`` (by level, ``P4`` first, (N, H, W) probabilities with NaN where the
            cascade did not ask), ``strides`` (px, by level) and ``threshold``.
    """

    keep = False
    kept: dict | None = None

    # The last convolutions, and how many maps they give for a level.
    predictors: tuple[str, ...] = ()
    outputs = 2
    least_priors = 1

    def setup_mixin(
        self,
        start: int,
        finer: bool,
        beta: list[float],
        query_weights: list[float],
        gamma: float,
        alpha: float,
        radius: str,
        threshold: float,
        method: str,
        context: int,
    ) -> None:
        """Adds the query head; called once after the base head is built.

        Args:
            start: Index of the level that starts the cascade, 1 or more from the finest.
            finer: Whether the pyramid got a finer level than the base's.
            beta: Weight of each level's losses.
            query_weights: Weight of the query loss of the levels that query, from index 1 to ``start``.
            gamma: Exponent of the query head's focal loss.
            alpha: Weight of its positive sites.
            radius: ``level`` or ``object``, see ``query_target``.
            threshold: Score above which a site queries, in [0, 1); 0 computes every level densely.
            method: ``sparse``, ``crop`` or ``full``.
            context: Sites around a key that the sparse convolutions see.
        """
        self.start = start
        self.finer = finer
        self.beta = beta
        self.query_weights = query_weights
        self.radius = radius
        self.threshold = threshold
        self.method = method
        self.context = context
        self.loss_query = FocalLoss(gamma=gamma, alpha=alpha)
        self.collected: list[Tensor] | None = None
        self._add_query_layers()

    def _add_query_layers(self) -> None:
        """Section 3.2: four convolutions beside the towers, without a norm, and a prediction."""
        self.query_convs = nn.ModuleList(
            ConvModule(self.feat_channels if index else self.in_channels, self.feat_channels, 3, padding=1)
            for index in range(4)
        )
        self.query_pred = nn.Conv2d(self.feat_channels, 1, 3, padding=1)
        for layer in getattr(self, "query_convs", ()):
            normal_init(layer.conv, std=0.01)
        self._init_prediction()

    def init_weights(self) -> None:
        """As the base head, whose rule for convolutions holds for the query tower too; few sites are positive at first.

        RetinaNet's rule (standard deviation 0.01) is for 256 channels. A narrow base that starts its towers otherwise
        needs the same for its queries, or their signal fades.
        """
        super().init_weights()
        self._init_prediction()

    def _init_prediction(self) -> None:
        normal_init(self.query_pred, std=0.01, bias=bias_init_with_prob(0.01))

    # Training

    def loss(self, *args, **kwargs) -> dict:
        """As the base head's, with the weights of the levels and ``loss_query``."""
        with _Collecting(self):
            return super().loss(*args, **kwargs)

    def loss_and_predict(self, *args, **kwargs) -> tuple:
        """As the base head's, with the weights of the levels and ``loss_query``; the predictions are dense."""
        with _Collecting(self):
            return super().loss_and_predict(*args, **kwargs)

    def forward(self, x: tuple[Tensor, ...], *args, **kwargs) -> tuple[list[Tensor], ...]:
        """As the base head's, over the pyramid ``x``."""
        x = whole(x)
        outs = super().forward(x, *args, **kwargs)
        if self.collected is not None:
            self._collect(x)
            # A level's losses depend on its own outputs only, so that weighting their gradients weights the losses,
            # also those that heads sum up over the levels.
            for maps in outs:
                for weight, output in zip(self.beta, maps):
                    if weight != 1 and output.requires_grad:
                        output.register_hook(lambda gradient, weight=weight: gradient * weight)
        return outs

    def _collect(self, x: tuple[Tensor, ...]) -> None:
        self.collected = [self.query(feature) for feature in x[1 : self.start + 1]]

    def query(self, x: Tensor) -> Tensor:
        """(N, C, H, W) of one level to its (N, 1, H, W) query logits."""
        for layer in self.query_convs:
            x = layer(x)
        return self.query_pred(x)

    def loss_by_feat(self, *args, **kwargs) -> dict:
        """As the base head's; within ``loss`` with the weights of the levels and ``loss_query``."""
        losses = super().loss_by_feat(*args, **kwargs)
        if self.collected is None:
            return losses
        for name, value in losses.items():
            if isinstance(value, list) and len(value) == len(self.beta):
                # The gradient has its weight from the outputs.
                losses[name] = [part + (weight - 1) * part.detach() for weight, part in zip(self.beta, value)]
        instances = args[self.outputs] if len(args) > self.outputs else kwargs["batch_gt_instances"]
        losses["loss_query"] = self._query_losses([get_box_tensor(objects.bboxes) for objects in instances])
        return losses

    def _query_losses(self, boxes: list[Tensor]) -> list[Tensor]:
        """Focal losses of the querying levels, means over the sites, weighted."""
        losses = []
        for level, (logits, weight) in enumerate(zip(self.collected, self.query_weights), 1):
            stride = self.prior_generator.strides[level][0]
            size = tuple(logits.shape[2:])
            scale = self.small_scale(level)
            targets = torch.stack([query_target(size, stride, found, scale, self.radius) for found in boxes])
            losses.append(weight * self.loss_query(logits.float().reshape(-1, 1), targets.reshape(-1, 1)))
        return losses

    def small_scale(self, level: int) -> float:
        """The scale s_l in px below which objects are small: the smallest anchor of the level."""
        generator = self.prior_generator
        return float(generator.base_sizes[level]) * float(generator.scales.min())

    # Inference

    def predict(self, x: tuple[Tensor, ...], batch_data_samples: list, rescale: bool = False) -> list:
        """As the base head's, from the levels that ``cascade`` computes; densely with a threshold of 0."""
        if not self.threshold:
            if self.keep:
                self._keep_none(x)
                for index in range(1, self.start + 1):
                    self._keep(index, self.level(index, x[index])[1])
            return super().predict(x, batch_data_samples, rescale=rescale)
        levels = self.cascade(x)
        priors = [self._priors(level) for level in levels]
        results = []
        for image, sample in enumerate(batch_data_samples):
            parts = (self._of_image(*pair, image) for pair in zip(levels, priors))
            found = [part for part in parts if part is not None]
            maps = [list(part) for part in zip(*(outs for outs, _ in found))]
            factors = maps[2] if self.outputs == 3 else [None] * len(found)
            results.append(
                self._predict_by_feat_single(
                    cls_score_list=maps[0],
                    bbox_pred_list=maps[1],
                    score_factor_list=factors,
                    mlvl_priors=[chosen for _, chosen in found],
                    img_meta=sample.metainfo,
                    cfg=self.test_cfg,
                    rescale=rescale,
                )
            )
        return results

    def cascade(self, x: tuple[Tensor, ...]) -> list["Level"]:
        """Computes the start level and the coarser ones densely, and the finer ones at the sites that are queried.

        Args:
            x: The pyramid, finest first, (N, C, H, W) each.

        Returns:
            The levels, finest first; those that nobody queried are left out.
        """
        dense = range(self.start + 1, len(x))
        levels = [Level(index, tuple(x[index].shape[2:]), self.level(index, x[index])[0]) for index in dense]
        outs, logits = self.level(self.start, x[self.start])
        levels.insert(0, Level(self.start, tuple(x[self.start].shape[2:]), outs))
        queries = self.asks(logits[:, 0])
        if self.keep:
            self._keep_none(x)
            self._keep(self.start, logits)
        for index in reversed(range(self.start)):
            size = tuple(x[index].shape[2:])
            masks = [key_mask(queries, size)]
            if self.method == "sparse":
                masks.append(spread(masks[0], self.context))
            # The one place of a level where the host waits for a GPU.
            keys, *around = find_sites(*masks)
            if not len(keys):
                break
            outs, scores = getattr(self, f"_{self.method}")(index, x[index], queries, keys, *around)
            levels.insert(0, Level(index, size, outs, keys))
            if index:
                queries = keys.mask(self.asks(scores[:, 0]))
                if self.keep:
                    self._keep(index, scores, keys)
        return levels

    def asks(self, logits: Tensor) -> Tensor:
        """Which query logits ask for the sites below theirs."""
        return logits.float().sigmoid() > self.threshold

    def _keep_none(self, x: tuple[Tensor, ...]) -> None:
        """Starts to keep: no level has asked yet."""
        strides = {index: self.prior_generator.strides[index][0] for index in range(self.start, 0, -1)}
        start = x[self.start]
        maps = {index: start.new_full((len(start), *x[index].shape[2:]), torch.nan) for index in strides}
        self.kept = {
            "queries": {_level_name(strides[index]): maps[index].float() for index in strides},
            "strides": {_level_name(stride): stride for stride in strides.values()},
            "threshold": self.threshold,
        }

    def _keep(self, index: int, logits: Tensor, keys: Sites | None = None) -> None:
        """Keeps the probabilities of a level from its (N, 1, H, W) query logits, or (k, 1) at its keys."""
        kept = self.kept["queries"][_level_name(self.prior_generator.strides[index][0])]
        found = logits.detach()[:, 0].float().sigmoid()
        if keys is None:
            kept[:] = found
        else:
            kept[keys.cells.unbind(1)] = found

    def level(self, index: int, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The outputs of one level, and its query logits where it may query."""
        return self.forward_single(x)[: self.outputs], self.query(x) if 0 < index <= self.start else None

    def _sparse(
        self, index: int, x: Tensor | LaterMap, queries: Tensor, keys: Sites, sites: Sites
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """(k, C') outputs and (k, 1) query logits at the keys, by submanifold convolutions of the sites (CSQ)."""
        layers = (getattr(self, name) for name in (*self.predictors, "query_pred"))
        predictors = frozenset(id(layer.weight) for layer in layers)
        most = dense_share(x)
        if sites.share > most:
            mask = sites.mask() if sites.share < 1 else None
            # Zeros are written into maps, and others may still read this one.
            start = whole(x) if mask is None else whole(x) * mask[:, None]
            mode = Masked(mask, keys, predictors, gathered=keys.share <= most, start=start)
        else:
            mode = Submanifold(sites, keys, predictors)
            start = as_map(x.at(sites) if isinstance(x, LaterMap) else take(x, sites))
        with mode:
            outs, scores = self.level(index, start)
        return tuple(as_rows(out) for out in outs), None if scores is None else as_rows(scores)

    def _crop(
        self, index: int, x: Tensor | LaterMap, queries: Tensor, keys: Sites
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """As ``_sparse``, by dense convolutions on a patch around the keys of each query (CQ)."""
        x = whole(x)
        margin = self.reach()
        (asking,) = find_sites(queries)
        corners = asking.cells * asking.cells.new_tensor([1, 2, 2])
        window = range(-margin, margin + 2)
        side = len(window)
        parts = []
        for some in corners.split(PATCHES):
            near = some[:, None] + offsets(window, window, x.device)
            inside = (flatten(near, keys.shape) < math.prod(keys.shape)).reshape(-1, 1, side, side)
            limit = near.new_tensor([len(x), *x.shape[2:]]) - 1
            image, row, column = near.clamp(min=0).minimum(limit).unbind(-1)
            patches = x.permute(0, 2, 3, 1)[image, row, column].view(-1, side, side, x.shape[1]).permute(0, 3, 1, 2)
            with Patchwise(inside.to(x.dtype)):
                outs, scores = self.level(index, patches)
            parts.append([_middle(out) for out in (*outs, *(() if scores is None else (scores,)))])
        # Keys go row by row over the whole map, patches query by query; cells outside of the map come last.
        cells = corners[:, None] + offsets(range(2), range(2), x.device)
        order = flatten(cells, keys.shape).flatten().argsort(stable=True)[: len(keys)]
        found = [torch.cat(part)[order] for part in zip(*parts)]
        return tuple(found[: self.outputs]), found[self.outputs] if len(found) > self.outputs else None

    def _full(
        self, index: int, x: Tensor | LaterMap, queries: Tensor, keys: Sites
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """As ``_sparse``, from the dense maps of the level (CCQ)."""
        outs, scores = self.level(index, whole(x))
        return tuple(take(out, keys) for out in outs), None if scores is None else take(scores, keys)

    def reach(self) -> int:
        """How far a prediction of this head sees, in sites."""
        towers = [list(tower) for tower in (self.cls_convs, self.reg_convs)]
        ends = max(reach(getattr(self, name)) for name in self.predictors)
        return max(*(reach(tower) + ends for tower in towers), reach([*self.query_convs, self.query_pred]))

    def _priors(self, level: "Level") -> Tensor:
        """(sites * priors, 4) anchors, or (sites, 2) points, of the sites that a level computed."""
        generator, first = self.prior_generator, level.outs[0]
        # In pixels, of which shorter types know every eighth only at the far end of an image.
        kind = torch.promote_types(first.dtype, torch.float32)
        chosen = {"level_idx": level.index, "dtype": kind, "device": first.device}
        if level.keys is None:
            return generator.single_level_grid_priors(level.size, **chosen)
        # All sites have the priors of the first, moved; the grid of a fine level is larger than all else here.
        corner = generator.single_level_grid_priors((1, 1), **chosen)
        across, down = generator.strides[level.index]
        _, row, column = level.keys.cells.unbind(1)
        moved = torch.stack((column * across, row * down), 1).to(corner.dtype).repeat(1, corner.shape[1] // 2)
        return (corner + moved[:, None]).flatten(0, 1)

    def _of_image(self, level: "Level", priors: Tensor, image: int) -> tuple[list[Tensor], Tensor] | None:
        """One image's (C', m, 1) maps of a level with their priors, ``None`` where nobody queried it."""
        if level.keys is None:
            return [out[image].detach() for out in level.outs], priors
        mine = level.keys.of(image)
        count = self.num_base_priors
        outs, priors = [out[mine].detach() for out in level.outs], priors.unflatten(0, (-1, count))[mine]
        if not len(priors):
            return None
        if len(priors) * count < self.least_priors:
            outs, priors = [out.repeat(self.least_priors, 1) for out in outs], priors.repeat(self.least_priors, 1, 1)
        return [out.t()[:, :, None] for out in outs], priors.flatten(0, 1)


@dataclass(frozen=True)
class Level:
    """What the cascade computed of a level.

    Attributes:
        index: Of the level, from the finest.
        size: Height and width of its map.
        outs: Predictions, (N, C', H, W) maps each; of a queried level, (k, C') values at its keys.
        keys: The keys of a queried level.
    """

    index: int
    size: tuple[int, int]
    outs: tuple[Tensor, ...]
    keys: Sites | None = None


class _Collecting:
    """Keeps the query logits of ``forward`` for ``loss_by_feat``, and no longer."""

    def __init__(self, head: QueryHead) -> None:
        self.head = head

    def __enter__(self) -> None:
        self.head.collected = []

    def __exit__(self, *_) -> None:
        self.head.collected = None


def _level_name(stride: int) -> str:
    """``P4`` for a stride of 16 px."""
    return f"P{round(math.log2(stride))}"


def _middle(patches: Tensor) -> Tensor:
    """(b, C', s, t) to the (4 * b, C') values in the middle 2x2, row by row; s and t are even."""
    top, left = (side // 2 - 1 for side in patches.shape[2:])
    return patches[:, :, top : top + 2, left : left + 2].permute(0, 2, 3, 1).reshape(-1, patches.shape[1])


@MODELS.register_module()
class QueryRetina(QueryHead):
    """QueryDet on ``RetinaHead``."""

    predictors = ("retina_cls", "retina_reg")


@MODELS.register_module()
class QueryFCOS(QueryHead):
    """QueryDet on ``FCOSHead``."""

    predictors = ("conv_cls", "conv_reg", "conv_centerness")
    outputs = 3

    def small_scale(self, level: int) -> float:
        """The scale s_l in px below which objects are small: the least distance that the level regresses."""
        return float(self.regress_ranges[level][0])

    def level(self, index: int, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The outputs of one level, and its query logits where it may query."""
        outs = self.forward_single(x, self.scales[index], self.strides[index])
        return outs, self.query(x) if 0 < index <= self.start else None


@MODELS.register_module()
class QueryRPN(QueryHead):
    """QueryDet on ``RPNHead``: the query is a third prediction of its one tower (section 4.4)."""

    predictors = ("rpn_cls", "rpn_reg")
    # mmdet's RPN stumbles over a level with a single one; NMS drops the copy.
    least_priors = 2

    def _add_query_layers(self) -> None:
        self.query_pred = nn.Conv2d(self.feat_channels, 1, 1)
        self._init_prediction()

    def _collect(self, x: tuple[Tensor, ...]) -> None:
        # The finest level queries nothing.
        self.collected = self.collected[1 : self.start + 1]

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As the base head's, on one level."""
        feature = F.relu(self.rpn_conv(x))
        if self.collected is not None:
            self.collected.append(self.query_pred(feature))
        return self.rpn_cls(feature), self.rpn_reg(feature)

    def level(self, index: int, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The outputs of one level, and its query logits where it may query."""
        with _Collecting(self):
            outs = self.forward_single(x)
            scores = self.collected[0]
        return outs, scores if 0 < index <= self.start else None

    def reach(self) -> int:
        """How far a prediction of this head sees, in sites."""
        return reach(self.rpn_conv)


def preserve(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Gives the base's trained weights to the same levels of a pyramid with one more, and to the same RPN with more
    convolutions: these levels, and that RPN, then compute what the base does.

    The new level starts with the convolution after the sum (and FCOS's scale) of the level above it; what brings the
    backbone's map to it is new. The convolutions that an RPN has more pass their input on.

    Args:
        weights: By name.
        model: A detector with a ``QueryHead``.
    """
    found = dict(weights)
    head = dense_head(model)
    laterals = {name.split(".")[2] for name in weights if name.startswith("neck.lateral_convs.")}
    if head.finer and len(laterals) == len(model.neck.lateral_convs) - 1:
        for name, tensor in weights.items():
            if match := re.fullmatch(r"(neck\.lateral_convs|neck\.fpn_convs|bbox_head\.scales)\.(\d+)(\..+)", name):
                if match[2] == "0" and match[1] == "neck.lateral_convs":
                    del found[name]
                found[f"{match[1]}.{int(match[2]) + 1}{match[3]}"] = tensor
    if "rpn_head.rpn_conv.weight" in weights and isinstance(getattr(head, "rpn_conv", None), nn.Sequential):
        for part, fill in (("weight", nn.init.dirac_), ("bias", nn.init.zeros_)):
            for index, layer in enumerate(head.rpn_conv):
                # Behind a ReLU nothing is below 0, so another ReLU changes nothing.
                passing = fill(torch.empty_like(getattr(layer.conv, part)))
                source = passing if index else weights[f"rpn_head.rpn_conv.{part}"]
                found[f"rpn_head.rpn_conv.{index}.conv.{part}"] = source
    return found


def mismatch(model: nn.Module, values: dict) -> str | None:
    """Says how the built ``model`` differs from the knob ``values``, ``None`` when it follows them."""
    head = getattr(model, "rpn_head", None) or model.bbox_head
    if not isinstance(head, QueryHead):
        return f"the head is a plain {type(head).__name__}"
    strides = [stride[0] for stride in head.prior_generator.strides]
    built = {"p2": head.finer, "start": _level_name(strides[head.start])}
    if "rpn_convs" in values:
        built["rpn_convs"] = head.num_convs
    wanted = {name: values[name] for name in built}
    if built != wanted:
        return f"the head has {built} instead of {wanted}"
    if len(strides) != model.neck.num_outs:
        return f"the neck gives {model.neck.num_outs} levels, the head works on {len(strides)}"
    if len(head.query_weights) != head.start:
        return f"{len(head.query_weights)} levels learn to query instead of {head.start}"
    return None
