"""Depthwise-separable convolutions in the towers of a dense head."""

from mmdet.registry import MODELS
from torch import Tensor, nn

from spaces.modules import dense_head

TOWERS = {"cls": "cls_convs", "reg": "reg_convs"}


class SeparableConv(nn.Module):
    """A convolution of each channel by itself, then a 1x1 convolution over the channels.

    Args:
        plain: The convolution that it takes the place of.
        kernel: Side of the depthwise kernel.
    """

    def __init__(self, plain: nn.Conv2d, kernel: int) -> None:
        super().__init__()
        channels = plain.in_channels
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, plain.out_channels, 1, bias=plain.bias is not None)
        self.start()

    def start(self) -> None:
        """Draws weights as mmcv draws those of a plain convolution: for a ReLU behind it (He et al. 2015).

        A depthwise kernel of side k and deviation 1 / k keeps the variance of each channel, so the 1x1 convolution gets
        its usual deviation.
        """
        nn.init.normal_(self.depthwise.weight, std=1 / self.depthwise.kernel_size[0])
        nn.init.kaiming_normal_(self.pointwise.weight, nonlinearity="relu")
        if self.pointwise.bias is not None:
            nn.init.zeros_(self.pointwise.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H, W)."""
        return self.pointwise(self.depthwise(x))


@MODELS.register_module()
class SeparableTower:
    """Mixin for dense heads with towers of ``ConvModule``; norms and activations stay.

    Args:
        placement: Positions in the towers, from 0: ``cls.0``, ``reg.1``.
        kernel: Side of the depthwise kernels.
    """

    # Before towers are wrapped (slimhead), which is done at 10.
    setup_order = 0

    def setup_mixin(self, placement: list[str], kernel: int) -> None:
        """Replaces the convolutions; called once after the base head is built."""
        for element in placement:
            branch, _, position = element.partition(".")
            module = getattr(self, TOWERS[branch])[int(position)]
            module.conv = SeparableConv(module.conv, kernel)

    def init_weights(self) -> None:
        """As the base head's, but for the separable convolutions, whose few inputs its deviations do not fit."""
        first = not self.is_init
        super().init_weights()
        for module in self.modules() if first else ():
            if isinstance(module, SeparableConv):
                module.start()


def mismatch(model: nn.Module, values: dict) -> str | None:
    """Says how the built ``model`` differs from the knob ``values``, ``None`` when it follows them."""
    head = dense_head(model)
    found = {
        f"{branch}.{position}": module.conv.depthwise.kernel_size[0]
        for branch, tower in TOWERS.items()
        for position, module in enumerate(getattr(head, tower).children())
        if isinstance(module.conv, SeparableConv)
    }
    wanted = dict.fromkeys(values["placement"], values["kernel"])
    return None if found == wanted else f"separable kernels are {found} instead of {wanted}"
