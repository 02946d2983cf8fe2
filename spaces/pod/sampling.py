"""Where the nine taps of a 3x3 convolution read that has a scale for each image."""

import torch
from torch import Tensor

from spaces.dcn.sampling import Around, Places


class Steps(Places):
    """Given the scales (N, 2): taps at -d, 0 and d on either axis.

    At whole scales the derivative is the one towards larger scales.

    Args:
        x: (N, C, H, W).
        stride: Of rows and of columns.
    """

    def __init__(self, x: Tensor, stride: tuple[int, int]) -> None:
        super().__init__(x, (3, 3), stride, (1, 1), (1, 1))

    def part(self, given: Tensor, tile: slice) -> Tensor:
        """All of the scales."""
        return given

    def corners(self, tile: slice, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        """As the base class says."""
        (scales,) = given
        # Beyond the map all is zero.
        whole = scales.detach().nan_to_num(0.0).floor().minimum(scales.new_tensor(self.sides))
        fraction = scales - scales.detach().floor()
        own = self.image[tile]
        rows, columns = (
            _around(middle, whole[own, axis, None], fraction[own, axis, None], self.sides[axis])
            for axis, middle in ((0, self.top[tile, :, 4]), (1, self.left[None, :, 4]))
        )
        # Each axis has three taps, and the nine are their pairs, row by row.
        down = [tuple(value.repeat_interleave(3, -1) for value in pair) for pair in rows]
        right = [tuple(value.repeat(1, 1, 3) for value in pair) for pair in columns]
        return self.joined(tile, tuple(down), tuple(right))


def _around(middle: Tensor, whole: Tensor, fraction: Tensor, side: int) -> Around:
    """Gives the places before and after three taps of sites on one axis, away from the middle.

    Args:
        middle: (rows, sites), the middle tap.
        whole: (rows, 1), integer part of the scale.
        fraction: (rows, 1), the rest.
        side: Of the map.
    """
    near = torch.stack((middle - whole, middle + 0 * whole, middle + whole), -1)
    far = torch.stack((middle - whole - 1, middle + 0 * whole, middle + whole + 1), -1)
    beyond = torch.stack((fraction, 0 * fraction, fraction), -1)
    factors = tuple(share * ((place >= 0) & (place < side)) for share, place in ((1 - beyond, near), (beyond, far)))
    inside = tuple(place.clamp(0, side - 1).int() for place in (near, far))
    return factors, inside
