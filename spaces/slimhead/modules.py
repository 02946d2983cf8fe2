"""SlimHead's towers (equations 2 and 3, algorithm 1)."""

import math

import torch
from mmcv.ops import DeformConv2dPack
from mmdet.models.task_modules.prior_generators import MlvlPointGenerator
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from spaces.modules import dense_head


class LevelSlimmer:
    """Slim and Fat of one head for the level it is working on.

    Args:
        levels: Indices of the levels to slim.
        ratio: Share of the side length, in (0, 1].
        mode: ``nearest``, ``bilinear`` or ``maxpool``.
        fat: Whether maps are restored.
        least: No side is shrunk below this.
    """

    def __init__(self, levels: list[int], ratio: float, mode: str, fat: bool = True, least: int = 1) -> None:
        self.levels = frozenset(levels)
        self.ratio = ratio
        self.mode = mode
        self.restores = fat
        self.least = least
        self.sizes: dict[int, tuple[int, int]] = {}
        self.stop()

    def start(self) -> None:
        """Begins a pyramid."""
        self.sizes = {}
        self.level = -1
        self.running = True
        self._forget()

    def stop(self) -> None:
        """Ends a pyramid; its sizes are kept for the priors of maps that were not restored."""
        self.level = -1
        self.running = False
        self._forget()

    def next_level(self) -> None:
        """Moves to the next coarser level."""
        self.level += 1
        self._forget()

    def _forget(self) -> None:
        self._small = self._restored = None

    @property
    def active(self) -> bool:
        """Whether the present level is slimmed."""
        return self.level in self.levels and self.ratio != 1

    def small_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) to (floor(rH), floor(rW)), at least ``least`` but never more than it was."""
        height, width = (max(min(side, self.least), int(side * self.ratio)) for side in size)
        return height, width

    def slim(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, max(1, floor(rH)), max(1, floor(rW))); computed once for both towers."""
        if self._small is None:
            height, width = x.shape[-2:]
            self.sizes[self.level] = (height, width)
            self._small = self._shrink(x)
        return self._small

    def _shrink(self, x: Tensor) -> Tensor:
        size = self.sizes[self.level]
        small = self.small_size(size)
        if self.mode == "maxpool":
            return F.adaptive_max_pool2d(x, small)
        options = {} if self.mode == "nearest" else {"align_corners": False}
        # Without Fat, the small map covers the whole one, so that its priors do.
        if not self.restores or small != (int(size[0] * self.ratio), int(size[1] * self.ratio)):
            return F.interpolate(x, size=small, mode=self.mode, **options)
        # Algorithm 1 shrinks by the factor, which reads other source rows than the size when rH is fractional.
        return F.interpolate(x, scale_factor=self.ratio, mode=self.mode, recompute_scale_factor=False, **options)

    def fat(self, x: Tensor) -> Tensor:
        """Back to (N, C, H, W), the remembered size (the factor 1/r would miss it on odd maps).

        The same map is restored once for all who ask. Returns ``x`` where Fat is off.
        """
        if not self.restores:
            return x
        if self._restored is None or self._restored[0] is not x:
            options = {"mode": "bilinear", "align_corners": False} if self.mode == "bilinear" else {"mode": "nearest"}
            self._restored = (x, F.interpolate(x, size=self.sizes[self.level], **options))
        return self._restored[1]


class _Unlisted:
    # The slimmer has no weights and is shared, so it is kept out of a module's children.
    def _share(self, slimmer: LevelSlimmer) -> None:
        object.__setattr__(self, "_slimmer", slimmer)


class SlimTower(nn.ModuleList, _Unlisted):
    """A conv tower that runs at reduced size on the levels its head asks for.

    Heads run a tower by iterating over it, so the iteration begins with Slim and ends with Fat. Children keep their
    names, hence the state dict is the plain tower's.
    """

    def __init__(self, convs: nn.ModuleList, slimmer: LevelSlimmer) -> None:
        super().__init__(convs)
        self._share(slimmer)

    def __iter__(self):
        if not self._slimmer.active:
            return super().__iter__()
        return iter((self._slimmer.slim, *super().__iter__(), self._slimmer.fat))


class SlimInteractiveTower(SlimTower):
    """TOOD's tower, of which every layer's output is used: Slim is part of the first layer, and Fat comes later.

    ``TOODHead.forward`` iterates over it once a level, and takes the priors of the level from the map before it.
    """

    def __iter__(self):
        convs = nn.ModuleList.__iter__(self)
        if not self._slimmer.running:
            return convs
        self._slimmer.next_level()
        return iter((self._slim_first, *list(convs)[1:])) if self._slimmer.active else convs

    def _slim_first(self, x: Tensor) -> Tensor:
        return self[0](self._slimmer.slim(x))


class FatConv(nn.Conv2d, _Unlisted):
    """A convolution that restores its input first."""

    @classmethod
    def replace(cls, conv: nn.Conv2d, slimmer: LevelSlimmer) -> None:
        """Turns a plain convolution into one, in place: weights, names and initialisation stay."""
        conv.__class__ = cls
        conv._share(slimmer)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) of a slimmed level to (N, C', H, W)."""
        return super().forward(self._slimmer.fat(x) if self._slimmer.active else x)


class SlimPriors:
    """Priors that follow maps which were not restored.

    A site of the slimmed map stands for H/h x W/w sites of the base's, and its priors stand in their midst: with the
    base's priors of site i at (i + o) * stride, those of slimmed site j are at ((j + 0.5) * H/h - 0.5 + o) * stride.
    Sizes of anchors stay, and so does the stride as the unit in which heads normalise distances.

    Args:
        plain: The head's own prior generator; whatever is not defined here is asked of it.
        slimmer: Knows the sizes of the latest pyramid.
    """

    def __init__(self, plain, slimmer: LevelSlimmer) -> None:
        self.plain = plain
        self.slimmer = slimmer

    def __getattr__(self, name: str):
        if name in ("plain", "slimmer"):  # asked for while being unpickled
            raise AttributeError(name)
        return getattr(self.plain, name)

    def _sites(self, level: int, size: tuple[int, int]) -> tuple[float, float] | None:
        """(H/h, W/w) of a slimmed level, ``None`` of another."""
        full = self.slimmer.sizes.get(level)
        if full is None:
            return None
        if tuple(size) != self.slimmer.small_size(full):
            raise RuntimeError(
                f"slimhead: priors of level {level} are asked for a map of {tuple(size)}, but the latest forward pass "
                f"gave {self.slimmer.small_size(full)} of {full}."
            )
        return full[0] / size[0], full[1] / size[1]

    def grid_priors(self, featmap_sizes, *args, **kwargs) -> list[Tensor]:
        """As the generator's: priors (h * w * A, 4) or points (h * w, 2 or 4) of each level, in px."""
        return [self.single_level_grid_priors(size, level, *args, **kwargs) for level, size in enumerate(featmap_sizes)]

    def single_level_grid_priors(self, featmap_size, level_idx: int, *args, **kwargs) -> Tensor:
        """As the generator's, for one level."""
        priors = self.plain.single_level_grid_priors(featmap_size, level_idx, *args, **kwargs)
        sites = self._sites(level_idx, featmap_size)
        if sites is None:
            return priors
        moved = [
            (torch.arange(side, device=priors.device) + 0.5) * (share - 1) * stride
            for side, share, stride in zip(featmap_size, sites, reversed(self.plain.strides[level_idx]))
        ]
        down, right = torch.meshgrid(*moved, indexing="ij")  # (h, w)
        shift = torch.stack((right, down), dim=-1).reshape(-1, 1, 2)
        if priors.shape[1] == 4:
            # The last two columns are the lower right corners of anchors, but the strides of points.
            points = isinstance(self.plain, MlvlPointGenerator)
            shift = torch.cat((shift, torch.zeros_like(shift) if points else shift), dim=2)
        return (priors.reshape(len(shift), -1, priors.shape[1]) + shift.to(priors.dtype)).reshape(priors.shape)

    def valid_flags(self, featmap_sizes, pad_shape, device) -> list[Tensor]:
        """As the generator's: whether the priors of each level stand on the padded image."""
        found = self.plain.valid_flags(featmap_sizes, pad_shape, device=device)
        for level, size in enumerate(featmap_sizes):
            sites = self._sites(level, size)
            if sites is not None:
                strides = reversed(self.plain.strides[level])
                rows, columns = (
                    torch.arange(side, device=device) < math.ceil(length / (stride * share))
                    for side, length, stride, share in zip(size, pad_shape[:2], strides, sites)
                )
                flags = (rows[:, None] & columns).reshape(-1, 1)
                found[level] = flags.expand(-1, len(found[level]) // len(flags)).reshape(-1)
        return found


@MODELS.register_module()
class SlimHead:
    """Mixin for dense heads; finds the towers by their names.

    ``cls_convs`` and ``reg_convs`` (RetinaNet, FCOS and their kin): Slim before them, Fat after them. ``rpn_conv``
    (RPN): Fat before the two projections. ``inter_convs`` (TOOD): Fat before each 3x3 convolution that follows, so that
    the task decomposition and the 1x1 convolutions run at reduced size, too.

    Anchors, assignment, losses and the prediction convolutions are the base head's.

    Args:
        levels: Indices of the levels to slim, from the finest.
        ratio: Share of the side length, in (0, 1].
        mode: ``nearest``, ``bilinear`` or ``maxpool``.
        fat: Whether maps are restored; without, the outputs are smaller and the priors follow.
    """

    def setup_mixin(self, levels: list[int], ratio: float, mode: str, fat: bool = True) -> None:
        """Replaces the towers; called once after the base head is built."""
        # mmcv's deformable convolution refuses maps smaller than its kernel.
        least = 3 if any(type(module) is DeformConv2dPack for module in self.modules()) else 1
        self.slimmer = LevelSlimmer(levels, ratio, mode, fat, least)
        for name, tower in _towers(self).items():
            setattr(self, name, tower(getattr(self, name), self.slimmer))
        for conv in _restoring(self):
            FatConv.replace(conv, self.slimmer)
        if not fat:
            self.prior_generator = SlimPriors(self.prior_generator, self.slimmer)

    def forward(self, x: tuple[Tensor, ...], *args, **kwargs):
        """As the base head's, over the pyramid ``x``."""
        self.slimmer.start()
        try:
            return super().forward(x, *args, **kwargs)
        finally:
            self.slimmer.stop()

    def forward_single(self, x: Tensor, *args, **kwargs):
        """As the base head's, on the next level."""
        self.slimmer.next_level()
        if hasattr(self, "rpn_conv") and self.slimmer.active:
            x = self.slimmer.slim(x)
        return super().forward_single(x, *args, **kwargs)


def _towers(head: nn.Module) -> dict[str, type[SlimTower]]:
    kinds = {"cls_convs": SlimTower, "reg_convs": SlimTower, "inter_convs": SlimInteractiveTower}
    return {name: kind for name, kind in kinds.items() if hasattr(head, name)}


def _restoring(head: nn.Module) -> list[nn.Conv2d]:
    """The convolutions that restore their input, where Fat is not the end of a tower."""
    if hasattr(head, "rpn_conv"):
        return [head.rpn_cls, head.rpn_reg]
    if hasattr(head, "inter_convs"):
        return [head.tood_cls, head.tood_reg, head.cls_prob_module[-1], head.reg_offset_module[-1]]
    return []


def mismatch(model: nn.Module, values: dict) -> str | None:
    """Says how the built ``model`` differs from the knob ``values``, ``None`` when it follows them."""
    head = dense_head(model)
    slimmer = getattr(head, "slimmer", None)
    if slimmer is None:
        return f"the head is a plain {type(head).__name__}"
    built = {"levels": sorted(slimmer.levels), "ratio": slimmer.ratio, "mode": slimmer.mode, "fat": slimmer.restores}
    wanted = {"fat": True, **values, "levels": sorted(values["levels"])}
    if built != wanted:
        return f"the head has {built} instead of {wanted}"
    if not all(isinstance(getattr(head, name), tower) for name, tower in _towers(head).items()):
        return "a tower was replaced after it had been slimmed"
    if not all(isinstance(conv, FatConv) for conv in _restoring(head)):
        return "a prediction convolution was replaced after the head had been slimmed"
    return None
