"""SlimHead's towers (equations 2 and 3, algorithm 1)."""

from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

TOWERS = ("cls_convs", "reg_convs")


class SlimTower(nn.ModuleList):
    """A conv tower that runs at reduced size on the levels its head asks for.

    Heads run a tower by iterating over it, so the iteration begins with Slim and ends with Fat. Children keep their
    names, hence the state dict is the plain tower's.
    """

    def __init__(self, convs: nn.ModuleList, slim: "LevelSlimmer") -> None:
        super().__init__(convs)
        # Kept out of the children: it has no weights, and both towers share it.
        object.__setattr__(self, "_slim", slim)

    def __iter__(self):
        if not self._slim.active:
            return super().__iter__()
        return iter((self._slim.slim, *super().__iter__(), self._slim.fat))


class LevelSlimmer:
    """Slim and Fat of one head for the level it is working on.

    Args:
        levels: Indices of the levels to slim.
        ratio: Share of the side length, in (0, 1].
        mode: ``nearest``, ``bilinear`` or ``maxpool``.
    """

    def __init__(self, levels: list[int], ratio: float, mode: str) -> None:
        self.levels = frozenset(levels)
        self.ratio = ratio
        self.mode = mode
        self.start()

    def start(self) -> None:
        """Begins a pyramid."""
        self.level = -1
        self.small = None

    def next_level(self) -> None:
        """Moves to the next coarser level."""
        self.level += 1
        self.small = None

    @property
    def active(self) -> bool:
        """Whether the present level is slimmed."""
        return self.level in self.levels and self.ratio != 1

    def slim(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, max(1, floor(rH)), max(1, floor(rW))); computed once for both towers."""
        if self.small is None:
            self.size = x.shape[-2:]
            self.small = self._shrink(x)
        return self.small

    def _shrink(self, x: Tensor) -> Tensor:
        height, width = self.size
        small = [max(1, int(height * self.ratio)), max(1, int(width * self.ratio))]
        if self.mode == "maxpool":
            return F.adaptive_max_pool2d(x, small)
        options = {} if self.mode == "nearest" else {"align_corners": False}
        if small != [int(height * self.ratio), int(width * self.ratio)]:
            return F.interpolate(x, size=small, mode=self.mode, **options)
        # Algorithm 1 shrinks by the factor, which reads other source rows than the size when rH is fractional.
        return F.interpolate(x, scale_factor=self.ratio, mode=self.mode, recompute_scale_factor=False, **options)

    def fat(self, x: Tensor) -> Tensor:
        """Back to (N, C, H, W), the remembered size (the factor 1/r would miss it on odd maps)."""
        if self.mode == "bilinear":
            return F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        return F.interpolate(x, size=self.size, mode="nearest")


@MODELS.register_module()
class SlimHead:
    """Mixin for dense heads with ``cls_convs`` and ``reg_convs`` and a ``forward_single`` called level by level.

    Anchors, assignment, losses and the prediction convolutions are the base head's.

    Args:
        levels: Indices of the levels to slim, from the finest.
        ratio: Share of the side length, in (0, 1].
        mode: ``nearest``, ``bilinear`` or ``maxpool``.
    """

    def setup_mixin(self, levels: list[int], ratio: float, mode: str) -> None:
        """Replaces the towers; called once after the base head is built."""
        self.slimmer = LevelSlimmer(levels, ratio, mode)
        for name in TOWERS:
            setattr(self, name, SlimTower(getattr(self, name), self.slimmer))

    def forward(self, x: tuple[Tensor, ...], *args, **kwargs):
        """As the base head's, over the pyramid ``x``."""
        self.slimmer.start()
        try:
            return super().forward(x, *args, **kwargs)
        finally:
            self.slimmer.start()

    def forward_single(self, x: Tensor, *args, **kwargs):
        """As the base head's, on the next level."""
        self.slimmer.next_level()
        return super().forward_single(x, *args, **kwargs)


def mismatch(model: nn.Module, values: dict) -> str | None:
    """Says how the built ``model`` differs from the knob ``values``, ``None`` when it follows them."""
    slimmer = getattr(model.bbox_head, "slimmer", None)
    if slimmer is None:
        return f"the head is a plain {type(model.bbox_head).__name__}"
    built = {"levels": sorted(slimmer.levels), "ratio": slimmer.ratio, "mode": slimmer.mode}
    wanted = {**values, "levels": sorted(values["levels"])}
    if built != wanted:
        return f"the head has {built} instead of {wanted}"
    if not all(isinstance(getattr(model.bbox_head, name), SlimTower) for name in TOWERS):
        return "a tower was replaced after it had been slimmed"
    return None
