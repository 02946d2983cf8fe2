"""Slim and Fat against known answers (PAPERS.md, SlimHead)."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from spaces.slimhead.modules import LevelSlimmer

MODES = ("nearest", "bilinear", "maxpool")


def slimmer(ratio: float, mode: str = "nearest") -> LevelSlimmer:
    made = LevelSlimmer([0], ratio, mode)
    made.next_level()
    return made


def rows(height: int, width: int = 4) -> torch.Tensor:
    """A map whose values are its row numbers."""
    return torch.arange(float(height)).view(1, 1, height, 1).repeat(1, 1, 1, width)


@pytest.mark.parametrize("size", [(4, 6), (25, 42), (13, 21), (7, 11), (2, 2)])
def test_nearest_at_half_takes_every_second(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    height, width = size[0] // 2, size[1] // 2
    # The last row and column of an odd map are dropped.
    assert torch.equal(slimmer(0.5).slim(x), x[:, :, ::2, ::2][:, :, :height, :width])


def test_fat_rows_of_an_odd_map() -> None:
    level = slimmer(0.5)
    small = level.slim(rows(25))
    assert small.shape[2] == 12
    # Fat reads the rows 0,0,0,1,1,2,2,...,11,11 of the small map, which are every second row of the large one.
    source = level.fat(rows(12))[0, 0, :, 0].tolist()
    assert source == [0, 0, 0, *(row for row in range(1, 12) for _ in range(2))]
    assert level.fat(small)[0, 0, :, 0].tolist() == [2 * row for row in source]


def test_fractional_sizes_follow_the_factor() -> None:
    x = rows(25)
    ours = slimmer(0.7).slim(x)[0, 0, :, 0]
    assert torch.equal(ours, F.interpolate(x, scale_factor=0.7, mode="nearest")[0, 0, :, 0])
    by_size = F.interpolate(x, size=[17, 4], mode="nearest")[0, 0, :, 0]
    assert len(ours) == len(by_size) == 17
    assert (ours != by_size).sum() == 5


def test_bilinear_at_half_is_the_mean_of_four() -> None:
    x = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    torch.testing.assert_close(slimmer(0.5, "bilinear").slim(x), F.avg_pool2d(x, 2), rtol=0, atol=1e-14)


def test_maxpool_is_adaptive() -> None:
    x = torch.randn(2, 3, 25, 42)
    level = slimmer(0.5, "maxpool")
    assert torch.equal(level.slim(x), F.adaptive_max_pool2d(x, (12, 21)))
    assert torch.equal(level.fat(level.slim(x)), F.interpolate(level.slim(x), size=(25, 42), mode="nearest"))


@pytest.mark.parametrize("mode", MODES)
def test_sizes(mode: str) -> None:
    for step in range(2, 21):
        ratio = round(0.05 * step, 10)
        for side in (1, 2, 3, 7, 10, 13, 25, 42, 100, 167):
            level = slimmer(ratio, mode)
            x = torch.zeros(1, 1, side, 3)
            small = level.slim(x)
            assert small.shape == (1, 1, max(1, int(side * ratio)), max(1, int(3 * ratio)))
            assert level.fat(small).shape == x.shape


@pytest.mark.parametrize("mode", MODES)
def test_ratio_one_returns_the_input(mode: str) -> None:
    x = torch.randn(1, 2, 5, 7)
    level = slimmer(1.0, mode)
    assert torch.equal(level.slim(x), x)
    assert torch.equal(level.fat(x), x)
    assert not level.active


def test_levels_are_counted_from_the_finest() -> None:
    level = LevelSlimmer([1, 3], 0.5, "nearest")
    active = []
    for _ in range(4):
        level.next_level()
        active.append(level.active)
    assert active == [False, True, False, True]
    level.start()
    assert not level.active
