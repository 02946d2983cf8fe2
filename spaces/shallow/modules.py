"""Towers of their own, narrower or shorter, for some levels of the pyramid (SlimHead, appendix A.2)."""

import itertools
import math

from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from torch import Tensor, nn

TOWERS = ("cls_convs", "reg_convs")


class LevelSwitch:
    """Which level a head is working on.

    Attributes:
        level: Index from the finest, -1 before the first.
        every: Towers give the layers of all levels, one level after the other.
    """

    def __init__(self) -> None:
        self.level = -1
        self.every = False


class LevelTower(nn.ModuleList):
    """A conv tower that some levels replace by their own.

    Heads run a tower by iterating over it, so the iteration gives the layers of the present level. The shared layers
    are the children, hence they keep the names that they have in the base.

    Args:
        shared: Layers of the levels without a tower of their own.
        own: Towers by level; they are children of the head's ``level_towers``.
        switch: Says which level it is.
    """

    def __init__(self, shared: nn.ModuleList, own: dict[int, nn.ModuleList], switch: LevelSwitch) -> None:
        super().__init__(shared)
        self._own = own
        self._switch = switch

    def __iter__(self):
        if self._switch.every:
            return itertools.chain(super().__iter__(), *self._own.values())
        own = self._own.get(self._switch.level)
        return super().__iter__() if own is None else iter(own)


def depths(levels: list[int], layers: "int | str", full: int) -> dict[int, int]:
    """Gives the number of convolutions by level.

    Args:
        levels: Indices of the reduced levels, from the finest.
        layers: ``all``; a number; or ``gradual``: one fewer than ``full`` on the coarsest of the levels, and one fewer
            with each finer one, down to 1.
        full: Convolutions of the base's tower.
    """
    if layers == "gradual":
        return {level: max(1, full - count) for count, level in enumerate(sorted(levels, reverse=True), start=1)}
    return dict.fromkeys(sorted(levels), full if layers == "all" else int(layers))


def reduced_tower(tower: nn.ModuleList, depth: int, channels: float) -> nn.ModuleList:
    """Builds the first ``depth`` layers of ``tower`` anew, with a share of the ``channels`` between them.

    The last one gives the channels of the whole tower, which the shared predictions read.
    """
    full = tower[-1].out_channels
    between = max(1, round(full * channels))
    widths = [tower[0].in_channels, *[between] * (depth - 1), full]
    return nn.ModuleList(resized(tower[position], *pair) for position, pair in enumerate(itertools.pairwise(widths)))


def resized(module: ConvModule, inputs: int, outputs: int) -> ConvModule:
    """Builds a layer like ``module`` with other channels; groups of a group norm keep their size where it divides."""
    norm = module.norm_cfg
    if isinstance(module.norm, nn.GroupNorm):
        size = module.norm.num_channels // module.norm.num_groups
        norm = {**norm, "num_groups": outputs // math.gcd(outputs, size)}
    settings = {
        "stride": module.stride,
        "padding": module.padding,
        "dilation": module.dilation,
        "groups": module.groups,
        "bias": module.with_bias,
    }
    built = ConvModule(
        inputs,
        outputs,
        module.kernel_size,
        norm_cfg=norm,
        act_cfg=module.act_cfg,
        inplace=module.inplace,
        order=module.order,
        **settings,
    )
    if type(module.conv) is not nn.Conv2d:
        # The type says more than the config: a mixin may have made the layer deformable.
        plain = built.conv
        if hasattr(module.conv, "deform_groups"):
            settings["deform_groups"] = module.conv.deform_groups
        built.conv = type(module.conv)(inputs, outputs, module.kernel_size, **settings)
        built.conv.weight.data.copy_(plain.weight.data)
        if plain.bias is not None:
            built.conv.bias.data.copy_(plain.bias.data)
    return built


@MODELS.register_module()
class ShallowTowers:
    """Mixin for dense heads with ``cls_convs`` and ``reg_convs`` and a ``forward_single`` called level by level.

    Each reduced level has a tower of its own in both branches, under ``level_towers``. Where all levels are reduced,
    the coarsest one's takes the place (and the names) of the shared tower. Predictions, anchors, assignment and losses
    are the base head's.

    Args:
        levels: Indices of the reduced levels, from the finest.
        layers: ``all``, a number, or ``gradual``; see ``depths``.
        channels: Share of the channels between the convolutions, in (0, 1].
    """

    def setup_mixin(self, levels: list[int], layers: "int | str", channels: float) -> None:
        """Adds the towers; called once after the base head is built."""
        self.shallow = {"levels": sorted(levels), "layers": layers, "channels": channels}
        self.level_switch = LevelSwitch()
        self.level_towers = nn.ModuleDict()
        reduced = layers != "all" or channels < 1
        for name in TOWERS:
            tower = getattr(self, name)
            by_level = depths(levels, layers, len(tower)) if reduced else {}
            own = {level: reduced_tower(tower, depth, channels) for level, depth in by_level.items()}
            if len(own) == len(self.prior_generator.strides):
                tower = own.pop(max(own))
            setattr(self, name, LevelTower(tower, own, self.level_switch))
            if own:
                self.level_towers[name] = nn.ModuleDict({f"level{level}": own[level] for level in sorted(own)})

    def init_weights(self) -> None:
        """As the base head's; some (DDOD) initialise the layers that they find in their towers."""
        self.level_switch.every = True
        try:
            super().init_weights()
        finally:
            self.level_switch.every = False

    def forward(self, x: tuple[Tensor, ...], *args, **kwargs):
        """As the base head's, over the pyramid ``x``."""
        self.level_switch.level = -1
        try:
            return super().forward(x, *args, **kwargs)
        finally:
            self.level_switch.level = -1

    def forward_single(self, x: Tensor, *args, **kwargs):
        """As the base head's, on the next level."""
        self.level_switch.level += 1
        return super().forward_single(x, *args, **kwargs)


def preserve(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Gives each reduced tower the first layers of the base's trained one, and of each the first channels.

    The first channels keep their groups of a group norm, so each group computes what it did in the base. What already
    has the names and shapes of the reduced towers is left.

    Args:
        weights: By name.
        model: A detector with ``ShallowTowers``.
    """
    found = dict(weights)
    for tower in TOWERS:
        shared = f"bbox_head.{tower}"
        own = {f"bbox_head.level_towers.{tower}.level{level}" for level in getattr(model.bbox_head, tower)._own}
        for prefix in (shared, *sorted(own)):
            for name, tensor in _state(model, prefix):
                source = weights.get(shared + name.removeprefix(prefix))
                if source is None or (name in weights and weights[name].shape == tensor.shape):
                    continue
                if source.dim() == tensor.dim() and all(a >= b for a, b in zip(source.shape, tensor.shape)):
                    found[name] = source[tuple(slice(side) for side in tensor.shape)]
    return found


def _state(model: nn.Module, prefix: str) -> list[tuple[str, Tensor]]:
    """The weights below ``prefix`` that are there: a tower all of whose levels are reduced has no child of its own."""
    return [(name, tensor) for name, tensor in model.state_dict().items() if name.startswith(f"{prefix}.")]


def mismatch(model: nn.Module, values: dict) -> str | None:
    """Says how the built ``model`` differs from the knob ``values``, ``None`` when it follows them."""
    head = model.bbox_head
    built = getattr(head, "shallow", None)
    if built is None:
        return f"the head is a plain {type(head).__name__}"
    wanted = {"channels": 1.0, **values, "levels": sorted(values["levels"])}
    if built != wanted:
        return f"the head has {built} instead of {wanted}"
    for name in TOWERS:
        tower = getattr(head, name)
        if not isinstance(tower, LevelTower):
            return f"{name} was replaced after its levels had got towers of their own"
        for level, depth in depths(wanted["levels"], wanted["layers"], head.stacked_convs).items():
            layers = tower._own.get(level, tower)
            full = layers[-1].out_channels
            between = max(1, round(full * wanted["channels"]))
            found = [layer.conv.out_channels for layer in (layers[index] for index in range(len(layers)))]
            if found != [*[between] * (depth - 1), full]:
                return f"{name} of level {level} has layers of {found} channels"
            other = [index for index in range(depth) if type(layers[index].conv) is not type(tower[index].conv)]
            if other:
                return f"{name} of level {level} has convolutions of another kind at {other}"
    return None
