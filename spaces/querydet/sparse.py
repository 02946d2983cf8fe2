"""Convolutions at chosen sites of a map alone (section 3.2): by gathered rows, or by cropped patches."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

# Rows that are gathered and multiplied at once: 38 MB with 256 channels in single precision.
TILE = 4096


@dataclass(frozen=True)
class Sites:
    """Sites of one level in a batch of images.

    Attributes:
        cells: (n, 3) image, row and column of each, those of one image together.
        shape: Number of images, height and width of the level's map.
    """

    cells: Tensor
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def flat(self) -> Tensor:
        """(n,) position of each in the flattened batch of maps."""
        return flatten(self.cells, self.shape)

    def of(self, image: int) -> Tensor:
        """(m,) indices of the sites in one image."""
        return (self.cells[:, 0] == image).nonzero()[:, 0]


def flatten(cells: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(..., 3) image, row and column to (...) positions in the flattened batch; its size for cells outside of a map."""
    images, height, width = shape
    image, row, column = cells.unbind(-1)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return torch.where(inside, (image * height + row) * width + column, images * height * width)


def offsets(rows: range, columns: range, device: torch.device) -> Tensor:
    """(len(rows) * len(columns), 3) steps to the cells of a window, row by row; the image stays."""
    steps = [(0, row, column) for row in rows for column in columns]
    return torch.tensor(steps, dtype=torch.long, device=device)


def key_cells(queries: Tensor) -> Tensor:
    """(m, 3) queries to their (m, 4, 3) cells on the next finer map (equation 1), which may lie outside of it."""
    scale = queries.new_tensor([1, 2, 2])
    return (queries * scale)[:, None] + offsets(range(2), range(2), queries.device)


def inside_map(cells: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(..., 3) cells to (...) whether the map has them: maps of odd size lack the last row or column of keys."""
    return (cells[..., 1] < shape[1]) & (cells[..., 2] < shape[2])


def context_sites(keys: Sites, context: int) -> Sites:
    """The keys and all sites of the map within ``context`` rows and columns of one."""
    images, height, width = keys.shape
    around = range(-context, context + 1)
    near = keys.cells[:, None] + offsets(around, around, keys.cells.device)
    active = torch.zeros(images * height * width + 1, dtype=torch.bool, device=near.device)
    active[flatten(near, keys.shape)] = True
    flat = active[:-1].nonzero()[:, 0]
    row = flat // width
    return Sites(torch.stack((row // height, row % height, flat % width), 1), keys.shape)


# How they are computed: heads run as they are, on maps that hold nothing but the sites


class Submanifold(TorchFunctionMode):
    """Makes convolutions see the sites of a map, and zeros elsewhere (Graham and van der Maaten 2017).

    Within it, a map is (1, C, n, 1) with one row for each site. Convolutions gather the neighbourhood of each site and
    multiply it with their own dense weights; whatever else a head does to single sites works as it stands.

    Args:
        sites: The sites.
        wanted: (k,) indices of the sites whose predictions are asked for.
        predictors: Ids of the weights of the last convolutions, which are computed there only: their maps are
            (1, C', k, 1).
    """

    def __init__(self, sites: Sites, wanted: Tensor, predictors: frozenset[int]) -> None:
        super().__init__()
        self.sites = sites
        self.wanted = wanted
        self.predictors = predictors
        self._tables: dict[tuple[int, ...], Tensor] = {}
        images, height, width = sites.shape
        # Where a site's row is; outside of the sites, the row of zeros behind the last.
        self._position = torch.full((images * height * width + 1,), len(sites), device=sites.cells.device)
        self._position[sites.flat] = torch.arange(len(sites), device=sites.cells.device)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Takes over the convolutions."""
        if func is F.conv2d:
            return self._convolve(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _convolve(self, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
        kernel = tuple(weight.shape[2:])
        dilation = _pair(dilation)
        same = tuple(step * (side // 2) for step, side in zip(dilation, kernel))
        if groups != 1 or _pair(stride) != (1, 1) or _pair(padding) != same:
            raise NotImplementedError("sparse queries need convolutions with groups 1 and stride 1 that keep the size")
        rows = x[0, :, :, 0].t()
        only = self.wanted if id(weight) in self.predictors else None
        if kernel == (1, 1):
            out = F.linear(rows if only is None else rows[only], weight[:, :, 0, 0], bias)
        else:
            table = self._table(kernel, dilation)
            table = table if only is None else table[only]
            # (C', kh * kw * C), without a copy where the weight is channels-last.
            matrix = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
            padded = F.pad(rows, (0, 0, 0, 1))
            tiles = [
                F.linear(padded.index_select(0, tile.reshape(-1)).view(len(tile), -1), matrix, bias)
                for tile in table.split(TILE)
            ]
            out = tiles[0] if len(tiles) == 1 else torch.cat(tiles)
        return as_map(out)

    def _table(self, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
        """(n, kh * kw) row of each neighbour of each site."""
        key = (*kernel, *dilation)
        if key not in self._tables:
            rows, columns = (
                range(-step * (side // 2), step * (side // 2) + 1, step) for side, step in zip(kernel, dilation)
            )
            near = self.sites.cells[:, None] + offsets(rows, columns, self.sites.cells.device)
            self._tables[key] = self._position[flatten(near, self.sites.shape)]
        return self._tables[key]


class Patchwise(TorchFunctionMode):
    """Makes convolutions shrink the patches they run on, and keep zeros outside of the map as dense ones do.

    Args:
        inside: (b, 1, S, S) whether a site of a patch lies in the map.
    """

    def __init__(self, inside: Tensor) -> None:
        super().__init__()
        self.inside = inside

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Takes over the convolutions."""
        if func is F.conv2d:
            return self._convolve(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _convolve(self, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
        top, left = ((whole - side) // 2 for whole, side in zip(self.inside.shape[2:], x.shape[2:]))
        inside = self.inside[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        return F.conv2d(x * inside, weight, bias, stride, 0, dilation, groups)


def as_map(rows: Tensor) -> Tensor:
    """(n, C) to a view (1, C, n, 1)."""
    return rows.t()[None, :, :, None]


def take(feature: Tensor, sites: Sites) -> Tensor:
    """(N, C, H, W) to the (n, C) values at the sites, in any memory format."""
    image, row, column = sites.cells.unbind(1)
    return feature.permute(0, 2, 3, 1)[image, row, column]


def reach(layers: nn.Module | list[nn.Module]) -> int:
    """How far a chain of convolutions sees, in sites."""
    modules = layers if isinstance(layers, list) else [layers]
    convs = [conv for module in modules for conv in module.modules() if isinstance(conv, nn.Conv2d)]
    return sum(max(step * (side // 2) for step, side in zip(conv.dilation, conv.kernel_size)) for conv in convs)


def _pair(value) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
