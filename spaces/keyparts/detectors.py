"""R-FCN (Dai et al. 2016), which mmdet lacks, and the reduced maps that a key-part head on it takes RoIs from.

The whole head of R-FCN is convolutions on the map, so they stand in the RoI extractor of a ``StandardRoIHead``: each
RoI is pooled from score maps that are there once for each of its k x k bins, and the box head only votes.
"""

from collections.abc import Sequence

import torch
from mmcv.ops import roi_align
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor, SingleRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

# Of the box maps that all classes share, the original has four for the background and four for all objects.
AGNOSTIC_BOXES = 8


def ps_roi_pool(features: Tensor, rois: Tensor, bins: int, spatial_scale: float) -> Tensor:
    """Position-sensitive RoI average pooling: bin (i, j) of channel d averages map (d * k + i) * k + j.

    As the original's layer (PSROIPooling, in Caffe) does it: the corners of a RoI, the ends included, are rounded to
    whole px of the image, half away from zero; a RoI is at least 0.1 of a cell wide and high; its k x k bins, of equal
    size, reach outwards to whole cells, so that neighbours overlap; what lies outside the map is cut off, and a bin of
    which nothing is left is 0.

    The sums come from integral images in double precision, so the work for a RoI does not depend on its size. They need
    2 * 8 bytes for each element of ``features``.

    Args:
        features: (N, D * k * k, H, W). Gradients go to them, not to the RoIs.
        rois: (n, 5), the index of the image and x1, y1, x2, y2 in px.
        bins: k.
        spatial_scale: Cells a px: 1 / 16 at stride 16.

    Returns:
        (n, D, k, k), of the type of ``features``.
    """
    images, channels, height, width = features.shape
    rois = rois.detach().double()
    left, right = (ends[:, None] for ends in _cells(rois[:, [1, 3]], bins, spatial_scale, width))  # (n, 1, k)
    top, bottom = (ends[..., None] for ends in _cells(rois[:, [2, 4]], bins, spatial_scale, height))  # (n, k, 1)

    sums = features.double().reshape(images, channels // bins**2, bins**2, height, width).permute(0, 3, 4, 2, 1)
    sums = F.pad(sums, (0, 0, 0, 0, 1, 0, 1, 0)).cumsum(1).cumsum(2)  # (N, H + 1, W + 1, k * k, D)
    sums = sums.reshape(-1, sums.shape[-1])
    own = torch.arange(bins**2, device=rois.device).reshape(bins, bins)
    image = rois[:, 0].long()[:, None, None]

    def up_to(row: Tensor, column: Tensor) -> Tensor:
        """Sums over all cells above ``row`` and left of ``column``, (n, k, k, D), from each bin's own maps."""
        place = ((image * (height + 1) + row) * (width + 1) + column) * bins**2 + own
        return sums.index_select(0, place.flatten()).reshape(*place.shape, sums.shape[1])

    total = up_to(bottom, right) - up_to(top, right) - up_to(bottom, left) + up_to(top, left)
    area = (bottom - top) * (right - left)
    return (total / area.clamp(min=1)[..., None]).permute(0, 3, 1, 2).to(features.dtype)


def _cells(ends: Tensor, bins: int, spatial_scale: float, side: int) -> tuple[Tensor, Tensor]:
    """Ends of RoIs in px, (n, 2), to the first cell of each bin and the one behind its last, (n, k) each."""
    whole = ends.sign() * (ends.abs() + 0.5).floor()
    begin = whole[:, :1] * spatial_scale
    extent = ((whole[:, 1:] + 1) * spatial_scale - begin).clamp(min=0.1)
    # One division of what doubles hold exactly: a bin that ends at the edge of a cell does not slip beyond it.
    edges = (torch.arange(bins + 1, device=ends.device) * extent + bins * begin) / bins
    first = edges[:, :-1].floor().clamp(0, side).long()
    behind = edges[:, 1:].ceil().clamp(0, side).long()
    return first, behind.maximum(first)


def ps_roi_align(features: Tensor, rois: Tensor, bins: int, spatial_scale: float, sampling_ratio: int = 0) -> Tensor:
    """Position-sensitive RoIAlign: nothing is rounded, each bin is the mean of bilinear samples from its own maps.

    Equal to mmcv's ``RoIAlign`` (``aligned=True``) of all maps to k x k, of which only map (d * k + i) * k + j is kept
    at bin (i, j); only that is computed, by taking the maps as k * k images of D channels and each bin as a RoI.

    Args:
        features: (N, D * k * k, H, W). Gradients go to them, not to the RoIs.
        rois: (n, 5), the index of the image and x1, y1, x2, y2 in px.
        bins: k.
        spatial_scale: Cells a px: 1 / 16 at stride 16.
        sampling_ratio: Samples a bin in each direction; 0 for one a cell.

    Returns:
        (n, D, k, k).
    """
    images, channels, height, width = features.shape
    groups, number = bins**2, channels // bins**2
    # Half precision holds neither the corners of large images nor the numbers of k * k of them.
    kind = torch.promote_types(features.dtype, rois.dtype)
    maps = features.to(kind).reshape(images, number, groups, height, width).transpose(1, 2)
    maps = maps.reshape(images * groups, number, height, width).contiguous()

    rois = rois.detach().to(kind)
    step = torch.arange(bins, device=rois.device)
    x1, y1, x2, y2 = rois[:, 1:, None, None].unbind(1)  # (n, 1, 1) each
    wide, high = (x2 - x1) / bins, (y2 - y1) / bins
    left, top = x1 + wide * step, y1 + high * step[:, None]
    image = rois[:, 0, None, None] * groups + torch.arange(groups, device=rois.device).reshape(bins, bins)
    parts = torch.stack(torch.broadcast_tensors(image, left, top, left + wide, top + high), dim=-1)  # (n, k, k, 5)
    pooled = roi_align(maps, parts.reshape(-1, 5), (1, 1), spatial_scale, sampling_ratio, "avg", True)
    return pooled.reshape(-1, bins, bins, number).permute(0, 3, 1, 2).to(features.dtype)


class PositionSensitivePooling(nn.Module):
    """``ps_roi_pool`` or ``ps_roi_align`` as a layer of a RoI extractor.

    Args:
        output_size: k.
        spatial_scale: Cells a px.
        pool: ``average`` (``ps_roi_pool``) or ``align`` (``ps_roi_align``).

    Raises:
        ValueError: There is no such pooling.
    """

    def __init__(self, output_size: int, spatial_scale: float, pool: str = "average") -> None:
        super().__init__()
        if pool not in _POOLS:
            raise ValueError(f"pool: must be one of {', '.join(_POOLS)}, but got {pool!r}.")
        self.output_size = (output_size, output_size)
        self.spatial_scale = spatial_scale
        self.pool = pool

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """(N, D * k * k, H, W) and (n, 5) to (n, D, k, k)."""
        return _POOLS[self.pool](features, rois, self.output_size[0], self.spatial_scale)


_POOLS = {"average": ps_roi_pool, "align": ps_roi_align}


@MODELS.register_module()
class PositionSensitiveRoIExtractor(BaseRoIExtractor):
    """R-FCN's convolutions and its position-sensitive pooling of one map (sections 2 and 3 of its paper).

    A 1x1 convolution with ReLU reduces the map; two more give, for each of the k x k bins, a score map of every class
    and of the background, and maps of box deltas. With 7 x 7 bins, 2,048 channels in and 1,024 between, these are the
    3.55 M (VOC) and 6.56 M (COCO) weights that the key-part paper counts in its tables 3 and 4 as R-FCN's head
    ("3.5" and "6.6"), which shows that it took box maps that all classes share.

    Args:
        in_channels: C of the map.
        num_classes: Classes without the background.
        featmap_strides: Stride in px of the one map.
        mid_channels: Channels after the reduction.
        bins: k.
        pool: ``average``, the original's, or ``align``, by bilinear samples (Li et al. 2017, for instance).
        reg_class_agnostic: Whether all classes share box maps: four for the background, which nothing reads, and four
            for objects, as in the original. Else each class has four.
        init_cfg: mmengine's initialisation; the original's by default.

    Raises:
        ValueError: There is more than one stride, or no such pooling.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        featmap_strides: Sequence[int],
        mid_channels: int = 1024,
        bins: int = 7,
        pool: str = "average",
        reg_class_agnostic: bool = True,
        init_cfg: dict | Sequence[dict] | None = None,
    ) -> None:
        if len(featmap_strides) != 1:
            raise ValueError(f"featmap_strides: must be the stride of one map, but got {featmap_strides}.")
        classes, boxes = num_classes + 1, AGNOSTIC_BOXES if reg_class_agnostic else 4 * num_classes
        super().__init__(
            roi_layer={"type": PositionSensitivePooling, "output_size": bins, "pool": pool},
            out_channels=classes + boxes,
            featmap_strides=list(featmap_strides),
            init_cfg=init_cfg or {"type": "Normal", "layer": "Conv2d", "std": 0.01},
        )
        self.reduce = nn.Conv2d(in_channels, mid_channels, 1)
        self.cls_maps = nn.Conv2d(mid_channels, classes * bins**2, 1)
        self.box_maps = nn.Conv2d(mid_channels, boxes * bins**2, 1)

    def maps(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What RoIs are pooled from: one map (N, C, H, W) to one of (N, D * k * k, H, W)."""
        x = F.relu(self.reduce(feats[0]))
        return (torch.cat((self.cls_maps(x), self.box_maps(x)), dim=1),)

    def forward(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """One map (N, C, H, W) and RoIs (n, 5) in px to (n, classes + 1 + boxes, k, k)."""
        if roi_scale_factor is not None:
            rois = self.roi_rescale(rois, roi_scale_factor)
        return self.roi_layers[0](self.maps(feats)[0], rois)


@MODELS.register_module()
class RFCNBBoxHead(BBoxHead):
    """The vote of R-FCN: the mean over the k x k bins. It has no parameters.

    Args:
        num_classes: Classes without the background.
        reg_class_agnostic: As of the extractor.
        **kwargs: Of ``BBoxHead``: coder and losses.
    """

    def __init__(self, num_classes: int = 80, reg_class_agnostic: bool = True, **kwargs) -> None:
        super().__init__(num_classes=num_classes, reg_class_agnostic=reg_class_agnostic, **kwargs)
        del self.fc_cls, self.fc_reg
        self.init_cfg = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, classes + 1 + boxes, k, k) to scores (n, classes + 1) and deltas (n, 4 or 4 * classes).

        Raises:
            ValueError: The extractor gives other channels than this head reads.
        """
        votes = x.mean(dim=(2, 3))
        classes, boxes = self.num_classes + 1, AGNOSTIC_BOXES if self.reg_class_agnostic else 4 * self.num_classes
        if votes.shape[1] != classes + boxes:
            raise ValueError(
                f"RFCNBBoxHead: must be given {classes} scores and {boxes} deltas a bin, but got {votes.shape[1]} "
                f"channels; num_classes and reg_class_agnostic must be those of its RoI extractor."
            )
        # Of the shared deltas, the first four are the background's.
        deltas = votes[:, -4:] if self.reg_class_agnostic else votes[:, classes:]
        return votes[:, :classes], deltas.contiguous()  # mmdet takes views of them


@MODELS.register_module()
class ReducedRoIExtractor(SingleRoIExtractor):
    """mmdet's extractor behind a 1x1 convolution with ReLU that reduces the channels of each map.

    The key-part paper reduces R-FCN's 2,048 channels to 256 in the place of the original's 1,024 (its appendix 5.3).
    There a ReLU follows; so it does here, and the key-part head gets features that are no less than 0, as from the
    backbones and shared stages that it stands on elsewhere.

    Args:
        in_channels: C of the maps.
        out_channels: Channels of the RoIs.
        roi_layer: mmdet's config of the pooling, ``dict(type="RoIAlign", output_size=7, sampling_ratio=0)``.
        featmap_strides: Stride in px of each map.
        finest_scale: As of mmdet's extractor.
        init_cfg: mmengine's initialisation; the original R-FCN's by default.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        roi_layer: dict,
        featmap_strides: Sequence[int],
        finest_scale: int = 56,
        init_cfg: dict | Sequence[dict] | None = None,
    ) -> None:
        super().__init__(
            roi_layer=roi_layer,
            out_channels=out_channels,
            featmap_strides=list(featmap_strides),
            finest_scale=finest_scale,
            init_cfg=init_cfg or {"type": "Normal", "layer": "Conv2d", "std": 0.01},
        )
        self.reduce = nn.Conv2d(in_channels, out_channels, 1)

    def maps(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What RoIs are pooled from: maps (N, C, H, W) to as many of (N, out_channels, H, W)."""
        # mmcv's RoIAlign misreads channels-last maps on a CPU.
        return tuple(F.relu(self.reduce(x)).contiguous() for x in feats)

    def forward(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Maps (N, C, H, W) and RoIs (n, 5) in px to (n, out_channels, height, width) of the RoI layer."""
        return super().forward(self.maps(feats), rois, roi_scale_factor)
