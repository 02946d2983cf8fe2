"""A pyramid whose finest maps are computed where they are asked for (section 3.2 applied to the neck)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from spaces.querydet.sparse import At, Sites, as_map, as_rows, read


class Deferred(ABC):
    """A map that is computed when it is used, in the place of its (N, C, H, W) tensor.

    It has that tensor's shape, type and device. Whatever else is done with it computes the tensor.
    """

    def __init__(self, shape: tuple[int, int, int, int], like: Tensor) -> None:
        self.shape, self.dtype, self.device = torch.Size(shape), like.dtype, like.device
        self._whole: Tensor | None = None

    def whole(self) -> Tensor:
        """(N, C, H, W), all of it."""
        if self._whole is None:
            self._whole = self.compute()
        return self._whole

    @abstractmethod
    def compute(self) -> Tensor:
        """As ``whole``, each time anew."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.whole(), name)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Lets torch's functions have the tensor."""
        return func(*whole(args), **{key: whole(value) for key, value in (kwargs or {}).items()})


def whole(feature: Any) -> Any:
    """The tensor that a ``Deferred`` stands for, also in lists and tuples; anything else as it is."""
    if isinstance(feature, (list, tuple)):
        return type(feature)(whole(part) for part in feature)
    return feature.whole() if isinstance(feature, Deferred) else feature


class MergedMap(Deferred):
    """What an output convolution reads: the lateral map plus the up-sampled one of the next coarser level.

    Args:
        neck: Whose map it is.
        index: Of the level, from the finest.
        source: (N, C', H, W) map of the backbone.
        coarser: (N, C, h, w) merged map of the next coarser level.
    """

    def __init__(self, neck: QueryFPN, index: int, source: Tensor, coarser: Tensor | MergedMap) -> None:
        super().__init__((len(source), coarser.shape[1], *source.shape[2:]), coarser)
        self.neck = neck
        self.lateral = neck.lateral_convs[index]
        self.source = source
        self.coarser = coarser

    def compute(self) -> Tensor:
        """As mmdet's FPN."""
        return self.lateral(self.source) + self._up(whole(self.coarser))

    def read(self, flat: Tensor) -> Tensor:
        """(n, C) values at positions in the flattened batch of maps, which may repeat."""
        images, _, height, width = self.shape
        nearest = self.neck.upsample_cfg.get("mode", "nearest") == "nearest"
        if self._whole is not None or not nearest or len(flat) >= images * height * width:
            return read(self.whole(), flat)
        rows = as_rows(self.lateral(as_map(read(self.source, flat))))
        # Which coarse site each one gets, by the up-sampling itself: maps of odd size do not double exactly.
        size = self.coarser.shape[2:]
        places = torch.arange(math.prod(size), dtype=torch.float64, device=flat.device).view(1, 1, *size)
        parents = self._up(places).long().flatten()
        parents = flat // (height * width) * math.prod(size) + parents[flat % (height * width)]
        return rows + read(self.coarser, parents)

    def _up(self, x: Tensor) -> Tensor:
        settings = self.neck.upsample_cfg
        return F.interpolate(x, **settings, **({} if "scale_factor" in settings else {"size": self.shape[2:]}))


class LaterMap(Deferred):
    """An output of the neck before its last convolution.

    Args:
        neck: Whose output it is.
        index: Of the level, from the finest.
        merged: What the convolution reads.
    """

    def __init__(self, neck: QueryFPN, index: int, merged: MergedMap) -> None:
        super().__init__(merged.shape, merged)
        self.neck = neck
        self.index = index
        self.merged = merged

    def compute(self) -> Tensor:
        """As mmdet's FPN."""
        return self.neck(self)

    def at(self, sites: Sites) -> Tensor:
        """(n, C) values at the sites, equal to those of ``whole`` but for rounding."""
        return as_rows(self.neck(self, sites))


@MODELS.register_module()
class QueryFPN(FPN):
    """mmdet's FPN, whose finest levels are computed at the sites that a query head asks for.

    In evaluation without gradients, ``forward`` gives a ``LaterMap`` for these levels. Otherwise, and in a graph that
    is traced, it is mmdet's.

    Args:
        later: Number of such levels, from the finest. A level that feeds coarser ones is not among them.
    """

    def __init__(self, *args, later: int, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.later = min(later, len(self.lateral_convs) - 1)

    def forward(
        self, inputs: tuple[Tensor, ...] | LaterMap, sites: Sites | None = None
    ) -> tuple[Tensor | LaterMap, ...] | Tensor:
        """From the backbone's maps to the pyramid, finest level first.

        A ``LaterMap`` asks through here as well, so that whoever watches the neck sees all its work: it gets its tensor
        (N, C, H, W), or its values (1, C, n, 1) at the ``sites``.
        """
        if isinstance(inputs, LaterMap):
            convolution = self.fpn_convs[inputs.index]
            if sites is None:
                return convolution(inputs.merged.whole())
            with At(sites):
                return convolution(inputs.merged)
        if self.training or torch.is_grad_enabled() or torch.jit.is_tracing():
            return super().forward(inputs)
        coarse = _Coarse(self)
        outs = list(FPN.forward(coarse, inputs))
        merged = coarse.merged
        for index in reversed(range(self.later)):
            merged = MergedMap(self, index, inputs[index + self.start_level], merged)
            outs.insert(0, LaterMap(self, index, merged))
        return tuple(outs)


class _Coarse:
    """The neck as its own ``forward`` sees it, without the levels that are computed later.

    Attributes:
        merged: The finest merged map of the others, after a pass.
    """

    merged: Tensor

    def __init__(self, neck: QueryFPN) -> None:
        self._neck = neck
        self.start_level = neck.start_level + neck.later
        self.num_outs = neck.num_outs - neck.later
        self.lateral_convs = neck.lateral_convs[neck.later :]
        self.fpn_convs = [self._finest, *neck.fpn_convs[neck.later + 1 :]]

    def _finest(self, merged: Tensor) -> Tensor:
        self.merged = merged
        return self._neck.fpn_convs[self._neck.later](merged)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._neck, name)
