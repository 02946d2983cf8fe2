"""Leaves out points that would be drawn over one another."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray


def thin(
    places: Sequence[Sequence[float]], spans: Sequence[float], cells: Sequence[int], kinds: Sequence[Hashable] = ()
) -> list[int]:
    """Keeps the first point of each kind in each cell of a grid.

    With cells of half a marker's size, what is left out lies under a marker that looks the same.

    Args:
        places: (points, axes), finite.
        spans: Length of each axis, in the places' units; an axis of length 0 has one cell.
        cells: Number of cells along each axis.
        kinds: What each point looks like; all alike where it is empty.

    Returns:
        Indices of the points that are kept, ascending.
    """
    if not len(places):
        return []
    sizes = np.array([span / count if span > 0 else np.inf for span, count in zip(spans, cells, strict=True)])
    grid: NDArray[np.int64] = np.floor(np.asarray(places, dtype=float) / sizes).astype(np.int64)
    kept: dict[Hashable, int] = {}
    for index, cell in enumerate(map(tuple, grid.tolist())):
        kept.setdefault((cell, kinds[index] if kinds else None), index)
    return sorted(kept.values())
