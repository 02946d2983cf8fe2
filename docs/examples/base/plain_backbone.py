"""A backbone that mmdet does not have: five strided 3x3 convolutions, each with a norm and a ReLU."""

from itertools import pairwise

from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn


@MODELS.register_module()
class PlainBackbone(BaseModule):
    """Maps of strides 8, 16 and 32.

    Args:
        width: Channels of the map of stride 8; those behind it have twice as many each.
    """

    def __init__(self, width: int = 32, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        channels = [3, width // 4, width // 2, width, 2 * width, 4 * width]
        norm = dict(type="BN", requires_grad=True)
        self.stages = nn.ModuleList(
            ConvModule(before, after, 3, stride=2, padding=1, norm_cfg=norm) for before, after in pairwise(channels)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) to maps (N, C, H / 8, W / 8) and so on."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps[2:])
