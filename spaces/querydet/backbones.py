"""Backbones of QueryDet's table 7 that mmdet lacks."""

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

# Width 1: channels of the four maps, and units of the three stages (Ma et al. 2018, table 5).
CHANNELS = (24, 116, 232, 464)
UNITS = (4, 8, 4)


@MODELS.register_module()
class ShuffleNetV2(BaseModule):
    """ShuffleNet V2 of width 1 without its classifier (Ma et al. 2018); parameters are named as in torchvision.

    Args:
        out_indices: Maps to give, of 0 (stride 4, 24 channels), 1 (stride 8, 116), 2 (16, 232) and 3 (32, 464).
        norm_eval: Whether norms keep their statistics in training.
        init_cfg: mmengine's initialisation.
    """

    def __init__(
        self, out_indices: Sequence[int] = (0, 1, 2, 3), norm_eval: bool = False, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)
        self.out_indices = tuple(out_indices)
        self.norm_eval = norm_eval
        self.conv1 = _convolved(3, CHANNELS[0], 3, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for index, units in enumerate(UNITS):
            narrow, wide = CHANNELS[index : index + 2]
            stage = [Unit(narrow, wide, stride=2), *(Unit(wide, wide, stride=1) for _ in range(units - 1))]
            setattr(self, f"stage{index + 2}", nn.Sequential(*stage))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) to the maps of ``out_indices``, (N, C, H / stride, W / stride) each."""
        x = self.maxpool(self.conv1(x))
        maps = [x]
        for stage in (self.stage2, self.stage3, self.stage4):
            x = stage(x)
            maps.append(x)
        return tuple(maps[index] for index in self.out_indices)

    def train(self, mode: bool = True) -> "ShuffleNetV2":
        """As mmengine's, with the norms left in evaluation where ``norm_eval`` says so."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


class Unit(nn.Module):
    """A unit of ShuffleNet V2 (figure 3, c and d): half the channels pass, or two branches shrink the map; shuffled."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = out // 2
        if stride == 1:
            self.branch1 = nn.Sequential()
        else:
            self.branch1 = nn.Sequential(*_depthwise(channels, stride), *_convolved(channels, half, 1))
        inner = half if stride == 1 else channels
        self.branch2 = nn.Sequential(*_convolved(inner, half, 1), *_depthwise(half, stride), *_convolved(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        passed, turned = x.chunk(2, dim=1) if self.stride == 1 else (x, x)
        x = torch.cat((self.branch1(passed), self.branch2(turned)), dim=1)
        # Channel i of one branch comes beside channel i of the other.
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _convolved(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _depthwise(channels: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))
