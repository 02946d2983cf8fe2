"""A pyramid whose finest maps are computed where they are asked for (section 3.2 applied to the neck)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from torch import Tensor

from spaces.querydet.sparse import At, Sites, as_rows


class LaterMap:
    """An output of the neck before its last convolution, in the place of the (N, C, H, W) tensor that this gives.

    It has that tensor's shape, type and device. Whatever else is done with it computes the tensor.

    Args:
        neck: Whose output it is.
        index: Of the level, from the finest.
        merged: (N, C, H, W) sum of the lateral map and the coarser levels, which the convolution reads.
    """

    def __init__(self, neck: QueryFPN, index: int, merged: Tensor) -> None:
        self.neck = neck
        self.index = index
        self.merged = merged
        self.shape, self.dtype, self.device = merged.shape, merged.dtype, merged.device
        self._whole: Tensor | None = None

    def whole(self) -> Tensor:
        """(N, C, H, W), all of it."""
        if self._whole is None:
            self._whole = self.neck(self)
        return self._whole

    def at(self, sites: Sites) -> Tensor:
        """(n, C) values at the sites, equal to those of ``whole`` but for rounding."""
        return as_rows(self.neck(self, sites))

    def __len__(self) -> int:
        return len(self.merged)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.whole(), name)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Lets torch's functions have the tensor."""
        return func(*whole(args), **{key: whole(value) for key, value in (kwargs or {}).items()})


def whole(feature: Any) -> Any:
    """The tensor that a ``LaterMap`` stands for, also in lists and tuples; anything else as it is."""
    if isinstance(feature, (list, tuple)):
        return type(feature)(whole(part) for part in feature)
    return feature.whole() if isinstance(feature, LaterMap) else feature


@MODELS.register_module()
class QueryFPN(FPN):
    """mmdet's FPN, whose finest levels' output convolutions run at the sites that a query head asks for.

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
                return convolution(inputs.merged)
            with At(sites):
                return convolution(inputs.merged)
        if self.training or torch.is_grad_enabled() or torch.jit.is_tracing():
            return super().forward(inputs)
        return FPN.forward(_Unfinished(self), inputs)


class _Unfinished:
    """The neck as its own ``forward`` sees it, with the finest levels' last convolutions put off."""

    def __init__(self, neck: QueryFPN) -> None:
        self._neck = neck
        self.fpn_convs = [
            partial(LaterMap, neck, index) if index < neck.later else convolution
            for index, convolution in enumerate(neck.fpn_convs)
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._neck, name)
