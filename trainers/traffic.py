"""What a pass really does on given inputs: multiply-adds, and bytes read and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers.cost import Tally, computed

# They read of their first argument the rows that are asked for, not all of it.
_GATHERS = ("index", "index_select", "gather", "embedding", "take", "_embedding_bag", "_embedding_bag_forward_only")
# They write of their first argument the elements that are given, not all of it.
_SCATTERS = ("index_put_", "_index_put_impl_", "scatter_", "scatter_add_", "index_add_", "index_copy_")
_MAKES_NOTHING = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a pass does.

    Attributes:
        macs: Multiply-adds that were computed, as ``trainers.cost`` counts them.
        bytes: Bytes that its operators read and write, see ``Traffic``.
    """

    macs: int
    bytes: int


def observe(model: nn.Module, run: Callable[[], object]) -> Work:
    """Counts one pass on real data.

    Args:
        model: Whose pass it is; deformable convolutions count as one convolution however they are computed.
        run: The pass; called once.
    """
    tally, traffic = Tally(), Traffic()
    with torch.no_grad(), counting(model, tally), traffic:
        run()
    return Work(macs=sum(tally.parts.values()), bytes=traffic.total)


@contextmanager
def counting(model: nn.Module, tally: Tally) -> Iterator[None]:
    """Counts the products that run inside, those of the deformable convolutions of ``model`` as such."""
    deformable = [module for module in model.modules() if isinstance(module, (DeformConv2d, ModulatedDeformConv2d))]
    for module in deformable:
        module.forward = computed(module, tally)
    try:
        with tally:
            yield
    finally:
        for module in deformable:
            del module.forward


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums up the bytes that torch's operators read and write while it is active, as if nothing stayed in a cache.

    Every operator of torch that runs (below autograd, so composed ones by their parts) reads each of its tensors once,
    weights included, and writes each of its results once; one in place does both. Views cost nothing. Expanded
    dimensions count once. What gathers reads the elements that it is asked for, and what scatters writes those that it
    is given. Compiled operators from outside of torch (mmcv's NMS, RoI pooling and deformable convolution) count with
    what they call of torch's.

    Attributes:
        total: Bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.add(_moved(func, [*tree_leaves(args), *tree_leaves(kwargs or {})], tree_leaves(out)))
        return out

    def add(self, count: int) -> None:
        """Puts down what one operator moved."""
        self.total += count


def _moved(func: Any, given: list[Any], made: list[Any]) -> int:
    name = func._schema.name.partition("::")[2]
    read = [value for value in given if isinstance(value, Tensor)]
    written = [value for value in made if isinstance(value, Tensor)]
    if name in _MAKES_NOTHING:
        return 0
    if name in _SCATTERS:
        return _bytes(read[1:]) + _bytes(read[-1:])
    if not func._schema.is_mutable:
        known = {_storage(tensor) for tensor in read}
        written = [tensor for tensor in written if _storage(tensor) not in known]
        if not written:
            return 0
    if name in _GATHERS:
        source, written = read[0], written[:1]
        rows = read[1].numel() if "embedding" in name else 0
        taken = rows * math.prod(source.shape[1:]) * source.itemsize if rows else _bytes(written)
        return taken + _bytes(read[1:]) + _bytes(written)
    return _bytes(read) + _bytes(written)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(_elements(tensor) * tensor.itemsize for tensor in tensors)


def _elements(tensor: Tensor) -> int:
    if tensor.layout is not torch.strided:  # oneDNN's own
        return tensor.numel()
    return math.prod(side for side, step in zip(tensor.shape, tensor.stride(), strict=True) if step)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else id(tensor)
