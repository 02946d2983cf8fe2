"""A box head on the key parts of an object, which it discovers itself."""

import math

import torch
from mmcv.cnn import ConvModule, Linear
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from spaces.keyparts.detectors import PositionSensitiveRoIExtractor
from spaces.products import by_onednn

ALPHA = 0.5  # of equation 4
EPSILON = 0.1
# RoIs that a core works on at once: their maps, 1.6 MB of 256 channels in single precision, stay in its cache.
TILE = 32


def normalise(confidences: Tensor, how: str) -> Tensor:
    """Squashes raw confidences for the losses and for the eye.

    Args:
        confidences: (n, K, N), one map of N sites for each part.
        how: ``tmr``, truncated maximum regularisation, max(0, c + alpha) / (max(0, c_m + alpha - 1) + 1 + epsilon)
            with the map's maximum c_m, in [0, 1) (equation 4); or a rival of table 1: ``linear``, c itself;
            ``sigmoid``; ``softmax`` over the sites of a map.
    """
    if how == "linear":
        return confidences
    if how == "sigmoid":
        return confidences.sigmoid()
    if how == "softmax":
        return confidences.softmax(-1)
    largest = confidences.amax(-1, keepdim=True)
    return F.relu(confidences + ALPHA) / (F.relu(largest + ALPHA - 1) + 1 + EPSILON)


def channels_last(x: Tensor) -> Tensor:
    """A plain (n, C, h, w) as a channels-last one, in a quarter of the time that ``contiguous`` takes on a CPU."""
    return _transposed(x.contiguous(), x.shape[1]).reshape(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)


def plain(x: Tensor) -> Tensor:
    """A channels-last (n, C, h, w) as a plain one, a new one."""
    last = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    return _transposed(last, x.shape[2] * x.shape[3]).reshape(x.shape)


def _transposed(x: Tensor, rows: int) -> Tensor:
    """(n, ...) contiguous in memory, each a matrix of some ``rows``, to (n, elements, 1, 1) of the transposed matrices.

    A shuffle of channels at a single site is a transposition of (groups, channels of a group), the only vectorised one
    that torch has for a CPU.
    """
    size = math.prod(x.shape[1:])
    return F.channel_shuffle(x.as_strided((len(x), size, 1, 1), (size, 1, size, size), x.storage_offset()), rows)


class ConcentrationBlock(nn.Module):
    """A dilated grouped 3x3 convolution to an eighth of the channels and a 1x1 one back, added to the input.

    Args:
        channels: C.
        dilation: Of the 3x3 convolution.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        narrow = max(channels // 8, 1)
        groups = math.gcd(channels, narrow, max(channels // 64, 1))
        self.narrow = ConvModule(channels, narrow, 3, padding=dilation, dilation=dilation, groups=groups)
        self.restore = ConvModule(narrow, channels, 1)

    def forward(self, x: Tensor, flat: Tensor | None = None) -> Tensor:
        """(n, C, h, w) to the same; ``flat`` is the same in the plain layout, where it is there already."""
        if not by_onednn(x):
            return x + self.restore(self.narrow(F.relu(x)))
        # The one convolution that oneDNN computes faster from the plain layout, by a third: it has groups.
        conv, out = self.narrow.conv, F.relu_(plain(x)) if flat is None else F.relu(flat)
        out = F.conv2d(out, conv.weight.contiguous(), conv.bias, 1, conv.padding, conv.dilation, conv.groups)
        return self.restore(F.relu_(out).contiguous(memory_format=torch.channels_last)).add_(x)


@MODELS.register_module()
class KeyPartBBoxHead(BBoxHead):
    """Detects by the features at K key parts, their confidence maps, and a coarse view of the whole (figure 2).

    Takes the place of any of mmdet's box heads. Its losses on key parts join those of the box head in training.

    Args:
        parts: K, key parts.
        grid: L, side of the pooled map of the global branch, at most that of the RoI map; 0 for no global branch.
        order: ``pool_first`` (equation 9) or ``reduce_first`` in the global branch.
        blocks: Concentration blocks.
        num_fcs: Fully connected layers with ReLU before the predictions.
        fc_channels: Their width.
        global_channels: Channels of the global branch; a quarter of the input's by default.
        losses: ``both``, ``discriminative`` (equation 6), ``uniqueness`` (equation 7) or ``none``.
        loss_weight: Of these losses.
        confidence: What they see of the confidence maps; see ``normalise``.
        dropout: Share of the features dropped in training.
        **kwargs: Of mmdet's ``BBoxHead``.

    Attributes:
        keep: Whether evaluation leaves the latest key parts in ``kept``, for pictures.
        kept: Of the latest n RoIs: ``points`` (n, K), row-major indices into the RoI map; ``confidences`` (n, K) there,
            normalised, in 0..1; ``activation`` (n, L, L), the global branch summed over its channels, ``None`` without
            that branch; ``size``, height and width of the RoI map.
    """

    def __init__(
        self,
        *,
        parts: int = 16,
        grid: int = 5,
        order: str = "pool_first",
        blocks: int = 2,
        num_fcs: int = 1,
        fc_channels: int = 1024,
        global_channels: int | None = None,
        losses: str = "both",
        loss_weight: float = 0.03,
        confidence: str = "tmr",
        dropout: float = 0.01,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.parts = parts
        self.grid = tuple(min(grid, side) for side in self.roi_feat_size)
        self.order = order
        self.losses = losses
        self.loss_weight = loss_weight
        self.confidence = confidence
        self.keep = False
        self.kept: dict | None = None
        self._maxima: tuple[Tensor, Tensor] | None = None

        widest = max(min(self.roi_feat_size) // 2, 1)
        self.concentration = nn.Sequential(
            *(ConcentrationBlock(self.in_channels, min(2 * index + 1, widest)) for index in range(blocks))
        )
        self.confidences = nn.Conv2d(self.in_channels, parts, 1)
        width = parts * (self.roi_feat_area + self.in_channels)
        if grid:
            reduced = global_channels or max(self.in_channels // 4, 1)
            self.reduction = ConvModule(self.in_channels, reduced, 1)
            width += reduced * self.grid[0] * self.grid[1]
        self.dropout = nn.Dropout(dropout)
        self.fcs = nn.ModuleList()
        for _ in range(num_fcs):
            self.fcs.append(nn.Linear(width, fc_channels))
            width = fc_channels
        self._rebuild_predictions(width)
        if kwargs.get("init_cfg") is None:
            # Around 0 at the start, where equation 4 is linear.
            self.init_cfg.append({"type": "Normal", "std": 0.01, "override": {"name": "confidences"}})
            uniform = {"type": "Kaiming", "mode": "fan_in", "distribution": "uniform", "override": {"name": "fcs"}}
            self.init_cfg += [uniform] if num_fcs else []

    def _rebuild_predictions(self, width: int) -> None:
        """Builds the base class's predictions again, for inputs of another width."""
        for name, kind in (("fc_cls", self.cls_predictor_cfg), ("fc_reg", self.reg_predictor_cfg)):
            layer = getattr(self, name, None)
            if layer is not None:
                setattr(self, name, MODELS.build({**kind, "in_features": width, "out_features": layer.out_features}))

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(n, C, h, w) to class scores and box deltas; n may be 0."""
        if by_onednn(x) and not self.training and not self.keep and len(x):
            return self._predict_lean(self._all_features(x, TILE * torch.get_num_threads()))
        out = self.dropout(torch.cat(self._features(x), 1))
        for layer in self.fcs:
            out = F.relu(layer(out))
        return self.fc_cls(out) if self.with_cls else None, self.fc_reg(out) if self.with_reg else None

    def _features(self, x: Tensor) -> list[Tensor]:
        """(n, C, h, w) to what the predictions read, (n, K * C), (n, K * N) and (n, C/4 * L * L)."""
        flat = x.contiguous() if by_onednn(x) else None
        if x.device.type == "cpu" and not torch.jit.is_tracing():
            # RoIs come in the plain layout, in which a CPU's convolutions and pooling take twice the time.
            x = x.contiguous(memory_format=torch.channels_last) if flat is None else channels_last(flat)
        for block in self.concentration:
            x, flat = block(x, flat), None
        confidences = self.confidences(F.relu(x)).flatten(2).contiguous()  # (n, K, N)
        points = confidences.argmax(2)  # (n, K)
        # All channels at the first part, then all at the second: in the order of the maps (section 3.3).
        parts = x.flatten(2).transpose(1, 2).gather(1, points[..., None].expand(-1, -1, x.shape[1]))  # (n, K, C)
        whole = self._global(x) if self.grid[0] else None
        self._note(confidences, points, whole)
        return [parts.flatten(1), confidences.flatten(1), *(() if whole is None else (whole.flatten(1),))]

    def _all_features(self, x: Tensor, tile: int) -> Tensor:
        """What ``_features`` gives for (n, C, h, w), joined to (n, ...), so many RoIs at a time."""
        out = None
        for start in range(0, len(x), tile):
            features = self._features(x[start : start + tile])
            if out is None:
                out = x.new_empty(len(x), sum(part.shape[1] for part in features))
            torch.cat(features, 1, out=out[start : start + tile])
        return out

    def _predict_lean(self, features: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The same on the features of all RoIs, by oneDNN's products where the layers are plain ones."""
        out = features.to_mkldnn()
        for layer in self.fcs:
            out = F.relu_(layer(out))
        predictors = (self.fc_cls if self.with_cls else None, self.fc_reg if self.with_reg else None)
        found = []
        for layer in predictors:
            if layer is None:
                found.append(None)
            elif type(layer) in (nn.Linear, Linear):
                found.append(layer(out).to_dense())
            else:
                found.append(layer(out.to_dense()))
        return found[0], found[1]

    def _global(self, x: Tensor) -> Tensor:
        """(n, C, h, w) to (n, C/4, L, L), not negative."""
        if self.order == "pool_first":
            return self.reduction(F.adaptive_avg_pool2d(x, self.grid))
        return F.adaptive_avg_pool2d(self.reduction(x), self.grid)

    def _note(self, confidences: Tensor, points: Tensor, whole: Tensor | None) -> None:
        """Leaves what the losses need in training, what pictures need in evaluation if asked, else nothing."""
        if self.training:
            if self.losses != "none":
                squashed = normalise(confidences.float(), self.confidence)
                self._maxima = squashed.amax(2), squashed.sum(1).amax(1)
        elif self.keep:
            squashed = normalise(confidences.detach().float(), self.confidence).clamp(0, 1)
            self.kept = {
                "points": points,
                "confidences": squashed.gather(2, points[..., None]).squeeze(2),
                "activation": None if whole is None else whole.detach().sum(1),
                "size": self.roi_feat_size,
            }

    def loss_and_target(self, *args, **kwargs) -> dict:
        """As the base head's, with ``loss_discriminative`` and ``loss_uniqueness`` of the latest forward pass."""
        maxima, self._maxima = self._maxima, None
        found = super().loss_and_target(*args, **kwargs)
        if maxima is not None:
            labels, label_weights = found["bbox_targets"][:2]
            found["loss_bbox"].update(self.key_part_losses(*maxima, labels, label_weights))
        return found

    def key_part_losses(
        self, maxima: Tensor, summed: Tensor, labels: Tensor, label_weights: Tensor
    ) -> dict[str, Tensor]:
        """Smooth L1 losses on normalised confidences, as means (the reference code; equations 6 and 7 are sums).

        Args:
            maxima: (n, K) maximum of each part's map, to be 1 on objects and 0 elsewhere. What lies on the wrong side
                of one half counts twice.
            summed: (n,) maximum over the sites of the parts' sum, to be 1 on objects.
            labels: (n,) classes; ``num_classes`` for background. Negative ones are ignored.
            label_weights: (n,); RoIs of weight 0 are ignored.
        """
        counted = (labels >= 0) & (label_weights > 0)
        maxima, summed = maxima[counted], summed[counted]
        target = (labels[counted] < self.num_classes).to(maxima.dtype)
        found = {}
        if self.losses in ("both", "discriminative"):
            wanted = target[:, None].expand_as(maxima)
            weight = torch.where((maxima - 0.5) * (wanted - 0.5) < 0, 1.0, 0.5)
            loss = F.smooth_l1_loss(weight * maxima, weight * wanted, beta=0.05, reduction="sum")
            found["loss_discriminative"] = self.loss_weight * loss / max(maxima.numel(), 1)
        if self.losses in ("both", "uniqueness"):
            loss = F.smooth_l1_loss(target * summed, target, beta=1.0, reduction="sum")
            found["loss_uniqueness"] = self.loss_weight * loss / max(len(summed), 1)
        return found


def mismatch(model: nn.Module, values: dict) -> str | None:
    """Says how the built ``model`` differs from the knob ``values``, ``None`` when it follows them."""
    roi = model.roi_head
    if getattr(roi, "shared_head", None) is not None:
        return f"the RoI head still has a shared {type(roi.shared_head).__name__}"
    if isinstance(roi.bbox_roi_extractor, PositionSensitiveRoIExtractor):
        return "RoIs are still pooled from position-sensitive maps"
    heads = list(roi.bbox_head) if isinstance(roi.bbox_head, nn.ModuleList) else [roi.bbox_head]
    for stage, head in enumerate(heads):
        who = f"box head {stage}" if len(heads) > 1 else "the box head"
        if not isinstance(head, KeyPartBBoxHead):
            return f"{who} is a plain {type(head).__name__}"
        built = {
            "parts": head.confidences.out_channels,
            "grid": head.grid if hasattr(head, "reduction") else (0, 0),
            "blocks": len(head.concentration),
            "num_fcs": len(head.fcs),
            **{key: getattr(head, key) for key in ("order", "losses", "loss_weight", "confidence") if key in values},
        }
        wanted = {
            **values,
            "grid": tuple(min(values["grid"], side) for side in head.roi_feat_size),
            "blocks": values["blocks"] + stage if values["blocks"] else 0,
        }
        if built != wanted:
            return f"{who} has {built} instead of {wanted}"
    return None
