"""Where a CPU may take oneDNN's shortcuts, and products of many tiles of rows with one matrix by it."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

# What torch's compiler calls, where torch was built with oneDNN.
_ONEDNN = torch.ops.mkldnn


class Matrix:
    """A layer's matrix that tiles of rows are multiplied with, one after the other.

    On a CPU, in float32 or bfloat16 and without gradients oneDNN computes it, for which the matrix is brought into
    oneDNN's order once; ``linear`` elsewhere, the numbers being equal to rounding. Within autocast it is brought into
    the shorter type once as well.

    Args:
        weight: (C', D).
        bias: (C',), or ``None``.
        rows: Of a tile, about.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        kind, device = weight.dtype, weight.device.type
        if torch.is_autocast_enabled(device) and kind == torch.float32 and not torch.is_grad_enabled():
            kind = torch.get_autocast_dtype(device)
        self.kind = kind
        self.bias = bias if bias is None else bias.to(kind)
        self._ordered = _past_torch(weight) and (kind == torch.float32 or (kind == torch.bfloat16 and _bfloat16()))
        weight = weight.to(kind)
        self.weight = _ONEDNN._reorder_linear_weight(weight, max(1, rows)) if self._ordered else weight

    def __call__(self, x: Tensor) -> Tensor:
        """(n, D) to (n, C')."""
        if self._ordered:
            return _ONEDNN._linear_pointwise(x.to(self.kind), self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


def by_onednn(x: Tensor) -> bool:
    """Whether oneDNN may be called past torch's own operators: nothing is differentiated, traced or cast on the way."""
    return x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and _past_torch(x)


def _past_torch(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.enabled
        and hasattr(_ONEDNN, "_linear_pointwise")
    )


def _bfloat16() -> bool:
    return hasattr(_ONEDNN, "_is_mkldnn_bf16_supported") and _ONEDNN._is_mkldnn_bf16_supported()
