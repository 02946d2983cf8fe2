"""Where a CPU may take oneDNN's shortcuts, and products of many tiles of rows with one matrix by it."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

# What torch's compiler calls, where torch was built with oneDNN.
_ONEDNN = torch.ops.mkldnn


class Matrix:
    """A layer's matrix that tiles of rows are multiplied with, one after the other.

    On a CPU, in single precision and without gradients oneDNN computes it, for which the matrix is brought into
    oneDNN's order once; ``linear`` elsewhere, the numbers being equal to rounding.

    Args:
        weight: (C', D).
        bias: (C',), or ``None``.
        rows: Of a tile, about.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self.bias = bias
        self._ordered = by_onednn(weight)
        self.weight = _ONEDNN._reorder_linear_weight(weight, max(1, rows)) if self._ordered else weight

    def __call__(self, x: Tensor) -> Tensor:
        """(n, D) to (n, C')."""
        if self._ordered:
            return _ONEDNN._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


def by_onednn(x: Tensor) -> bool:
    """Whether oneDNN may be called past torch's own operators: nothing is differentiated, traced or cast on the way."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.enabled
        and hasattr(_ONEDNN, "_linear_pointwise")
    )
