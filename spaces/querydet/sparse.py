"""Convolutions at chosen sites of a map (section 3.2): by gathered rows, by masked maps, or by cropped patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from spaces.products import Matrix

# Rows that are gathered and multiplied at once: 4.7 MB with 256 channels in single precision.
TILE = 512


# Sites


@dataclass(frozen=True)
class Sites:
    """Sites of one level in a batch of images.

    Attributes:
        flat: (n,) their positions in the flattened batch of maps, ascending.
        shape: Number of images, height and width of the level's map.
        counts: How many there are in each image.
    """

    flat: Tensor
    shape: tuple[int, int, int]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def cells(self) -> Tensor:
        """(n, 3) image, row and column of each."""
        _, height, width = self.shape
        row = self.flat // width
        return torch.stack((row // height, row % height, self.flat % width), 1)

    @property
    def share(self) -> float:
        """Of the map's sites, in 0..1."""
        images, height, width = self.shape
        return len(self) / (images * height * width)

    def mask(self, values: Tensor | bool = True) -> Tensor:
        """(N, H, W) map of truths: ``values`` (n,) at the sites, false elsewhere."""
        images, height, width = self.shape
        found = torch.zeros(images * height * width, dtype=torch.bool, device=self.flat.device)
        found[self.flat] = values
        return found.view(self.shape)

    def of(self, image: int) -> slice:
        """Where those of one image are."""
        ends = list(accumulate(self.counts, initial=0))
        return slice(ends[image], ends[image + 1])


def find_sites(*masks: Tensor) -> list[Sites]:
    """The sites of (N, H, W) masks, all with one look at the device: a host waits for a GPU once."""
    counts = torch.stack([mask.flatten(1).sum(1) for mask in masks]).tolist()
    found = []
    for mask, own in zip(masks, counts):
        # The k-th site is where the running count first reaches k; unlike nonzero, that knows its size beforehand.
        order = torch.arange(1, sum(own) + 1, device=mask.device)
        found.append(Sites(torch.searchsorted(mask.flatten().cumsum(0), order), tuple(mask.shape), tuple(own)))
    return found


def key_mask(queries: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) queries to the (N, H, W) cells of the next finer map that they ask for (equation 1).

    Maps of odd size lack the last row or column of keys.
    """
    height, width = size
    keys = queries.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return F.pad(keys, (0, width - keys.shape[2], 0, height - keys.shape[1]))


def spread(mask: Tensor, context: int) -> Tensor:
    """(N, H, W) with all sites within ``context`` rows and columns of one in ``mask``."""
    return F.max_pool2d(mask[:, None].float(), 2 * context + 1, 1, context)[:, 0].bool()


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


def neighbours(sites: Sites, kernel: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """(n, kh * kw) positions of the cells that a convolution reads for each site; the map's size for those outside."""
    rows, columns = (range(-step * (side // 2), step * (side // 2) + 1, step) for side, step in zip(kernel, dilation))
    return flatten(sites.cells[:, None] + offsets(rows, columns, sites.flat.device), sites.shape)


def as_map(rows: Tensor) -> Tensor:
    """(n, C) to a view (1, C, n, 1)."""
    return rows.t()[None, :, :, None]


def as_rows(values: Tensor) -> Tensor:
    """(1, C, n, 1) to a view (n, C)."""
    return values[0, :, :, 0].t()


def take(feature: Tensor, sites: Sites) -> Tensor:
    """(N, C, H, W) to the (n, C) values at the sites, in any memory format."""
    if sites.share == 1:
        return feature.permute(0, 2, 3, 1).flatten(0, 2)
    return read(feature, sites.flat)


def read(feature: Tensor, flat: Tensor) -> Tensor:
    """(N, C, H, W), or a map that reads itself, to the (n, C) values at positions in the flattened batch of maps."""
    if not isinstance(feature, Tensor):
        return feature.read(flat)
    last = feature.permute(0, 2, 3, 1)
    if last.is_contiguous():
        return last.flatten(0, 2).index_select(0, flat)
    images, channels, height, width = feature.shape
    if images == 1:
        return feature.reshape(channels, -1).index_select(1, flat).t()
    return last[flat // (height * width), flat // width % height, flat % width]


def reach(layers: nn.Module | list[nn.Module]) -> int:
    """How far a chain of convolutions sees, in sites."""
    modules = layers if isinstance(layers, list) else [layers]
    convs = [conv for module in modules for conv in module.modules() if isinstance(conv, nn.Conv2d)]
    return sum(max(step * (side // 2) for step, side in zip(conv.dilation, conv.kernel_size)) for conv in convs)


# How they are computed: heads run as they are, and their convolutions see the chosen sites


class _Convolutions(TorchFunctionMode):
    """Takes over the convolutions that run within it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Calls ``convolve`` in the place of a convolution."""
        if func is F.conv2d:
            return self.convolve(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class Submanifold(_Convolutions):
    """Makes convolutions see the sites of a map, and zeros elsewhere (Graham and van der Maaten 2017).

    Within it, a map is (1, C, n, 1) with one row for each site. Convolutions gather the neighbourhood of each site and
    multiply it with their own dense weights; whatever else a head does to single sites works as it stands.

    Args:
        sites: The sites.
        wanted: Those of them whose predictions are asked for.
        predictors: Ids of the weights of the last convolutions, which are computed there only: their maps are
            (1, C', k, 1).
    """

    def __init__(self, sites: Sites, wanted: Sites, predictors: frozenset[int]) -> None:
        super().__init__()
        self.sites = sites
        self.wanted = wanted
        self.predictors = predictors
        self._tables: dict[tuple, Tensor] = {}
        images, height, width = sites.shape
        # Where a site's row is; outside of the sites, the row of zeros behind the last.
        self._position = torch.full((images * height * width + 1,), len(sites), device=sites.flat.device)
        self._position[sites.flat] = torch.arange(len(sites), device=sites.flat.device)

    def convolve(self, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
        """(1, C, n, 1) to (1, C', n, 1), at the wanted sites alone for a predictor."""
        kernel, dilation = _plain(weight, stride, padding, dilation, groups)
        rows = as_rows(x)
        table = self._table(kernel, dilation, id(weight) in self.predictors)
        if kernel != (1, 1):
            rows = F.pad(rows, (0, 0, 0, 1))
        elif id(weight) not in self.predictors:
            return as_map(F.linear(rows, weight[:, :, 0, 0], bias))
        return as_map(_product((rows.index_select(0, tile.flatten()) for tile in table.split(TILE)), weight, bias))

    def _table(self, kernel: tuple[int, int], dilation: tuple[int, int], predicts: bool) -> Tensor:
        """(n, kh * kw) row of each neighbour of each site."""
        key = (kernel, dilation, predicts)
        if key not in self._tables:
            sites = self.wanted if predicts else self.sites
            self._tables[key] = self._position[neighbours(sites, kernel, dilation)]
        return self._tables[key]


class Masked(_Convolutions):
    """As ``Submanifold``, by dense convolutions of maps that are zeros elsewhere: faster where most sites are chosen.

    Maps are (N, C, H, W), and overwritten with zeros where no site is.

    Args:
        mask: (N, H, W) the sites; ``None`` for all.
        wanted: Those of them whose predictions are asked for.
        predictors: Ids of the weights of the last convolutions, whose maps are (1, C', k, 1), one row for each wanted
            site.
        gathered: Whether predictors gather the wanted sites, which is faster where they are few.
        start: A map that is zeros elsewhere already, ``None`` where there is none.
    """

    def __init__(
        self,
        mask: Tensor | None,
        wanted: Sites,
        predictors: frozenset[int],
        gathered: bool,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.mask = mask
        self.start = start
        # On a GPU the host would have to wait for their number.
        self._elsewhere = None if mask is None or mask.device.type != "cpu" else (~mask).flatten().nonzero()[:, 0]
        self.wanted = wanted
        self.predictors = predictors
        self.gather = At(wanted) if gathered else None

    def convolve(self, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
        """(N, C, H, W) to (N, C', H, W), or to (1, C', k, 1) for a predictor."""
        _plain(weight, stride, padding, dilation, groups)
        if self.mask is not None and x is not self.start:
            self._clear(x)
        if id(weight) not in self.predictors:
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        if self.gather is not None:
            return self.gather.convolve(x, weight, bias, stride, padding, dilation, groups)
        return as_map(take(F.conv2d(x, weight, bias, stride, padding, dilation, groups), self.wanted))

    def _clear(self, x: Tensor) -> None:
        """Writes the zeros, in place."""
        last = x.permute(0, 2, 3, 1)
        if self._elsewhere is None or not last.is_contiguous():
            x.mul_(self.mask[:, None])
        else:
            last.flatten(0, 2).index_fill_(0, self._elsewhere, 0)


class At(_Convolutions):
    """Makes convolutions read dense maps (N, C, H, W) and write the sites alone, (1, C', n, 1).

    Args:
        sites: The sites.
    """

    def __init__(self, sites: Sites) -> None:
        super().__init__()
        self.sites = sites
        self._tables: dict[tuple, Tensor] = {}

    def convolve(self, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
        """The dense convolution's values at the sites."""
        key = _plain(weight, stride, padding, dilation, groups)
        if key not in self._tables:
            self._tables[key] = neighbours(self.sites, *key)
        return as_map(_product(self._gathered(x, self._tables[key]), weight, bias))

    def _gathered(self, x: Tensor, table: Tensor) -> Iterator[Tensor]:
        end = x.shape[0] * x.shape[2] * x.shape[3]
        if not isinstance(x, Tensor):
            # A map that reads itself computes what it reads.
            if table.numel() >= end:
                x = x.whole()
            else:
                # For which cells they are without their repetitions, the host would have to wait for a GPU.
                x, table = (read_once if table.device.type == "cpu" else read_each)(x, table, end)
            end = x.shape[0] * x.shape[2] * x.shape[3]
        for tile in table.split(TILE):
            flat = tile.flatten()
            # Zeros lie outside of the map.
            yield read(x, flat.clamp(max=end - 1)).masked_fill_((flat == end)[:, None], 0)


def read_each(x, table: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """What a table reads of a map, as a map (1, C, m, 1) and a table into that; ``end``, and m, stand for zeros."""
    cells = table.flatten()
    place = torch.arange(len(cells), device=cells.device).masked_fill_(cells == end, len(cells))
    return as_map(x.read(cells.clamp(max=end - 1)).contiguous()), place.view_as(table)


def read_once(x, table: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """As ``read_each``, but each cell is read once, in ascending order."""
    asked = torch.zeros(end + 1, dtype=torch.bool)
    asked[table] = True
    cells = asked[:end].nonzero()[:, 0]
    place = torch.full((end + 1,), len(cells))
    place[cells] = torch.arange(len(cells))
    return as_map(x.read(cells).contiguous()), place[table]


class Patchwise(_Convolutions):
    """Makes convolutions shrink the patches they run on, and keep zeros outside of the map as dense ones do.

    Args:
        inside: (b, 1, S, S) whether a site of a patch lies in the map.
    """

    def __init__(self, inside: Tensor) -> None:
        super().__init__()
        self.inside = inside

    def convolve(self, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
        """(b, C, s, s) to (b, C', s - 2 * r, s - 2 * r), where the convolution sees r sites far."""
        top, left = ((whole - side) // 2 for whole, side in zip(self.inside.shape[2:], x.shape[2:]))
        inside = self.inside[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        return F.conv2d(x * inside, weight, bias, stride, 0, dilation, groups)


def _product(tiles: Iterator[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """Tiles of (t * kh * kw, C) neighbours, site by site, to (n, C')."""
    # (C', kh * kw * C), without a copy where the weight is channels-last.
    flat = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    matrix = Matrix(flat, bias, TILE)
    found = [matrix(tile.reshape(-1, flat.shape[1])) for tile in tiles]
    return found[0] if len(found) == 1 else torch.cat(found)


def _plain(weight: Tensor, stride, padding, dilation, groups: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel and dilation of a convolution that keeps the size of a map."""
    height, width = weight.shape[2:]
    rows, columns = _pair(dilation)
    if groups != 1 or _pair(stride) != (1, 1) or _pair(padding) != (rows * (height // 2), columns * (width // 2)):
        raise NotImplementedError("sparse queries need convolutions with groups 1 and stride 1 that keep the size")
    return (height, width), (rows, columns)


def _pair(value) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
