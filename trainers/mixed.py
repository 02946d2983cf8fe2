"""Mixed-precision training on a CPU, where mmengine's own refuses to start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from spaces.autocast import keep_single
from trainers.config import AMP


def prepare(model: nn.Module, optim_wrapper: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Makes a detector and its optimizer's config ready to train in the type that the config says.

    Args:
        model: The detector; changed in place where it trains in mixed precision, see ``spaces.autocast.keep_single``.
        optim_wrapper: Of a trial's config.
        device: ``cpu`` or ``cuda``.

    Returns:
        The config to build.
    """
    if optim_wrapper.get("type") != AMP:
        return dict(optim_wrapper)
    keep_single(model)
    return {**optim_wrapper, "type": "CPUAmpOptimWrapper"} if device == "cpu" else dict(optim_wrapper)


@OPTIM_WRAPPERS.register_module(force=True)
class CPUAmpOptimWrapper(AmpOptimWrapper):  # type: ignore[misc]
    """mmengine's ``AmpOptimWrapper`` on a CPU: forward passes within autocast, weights and their updates in float32.

    Args:
        dtype: ``bfloat16`` or ``float16``.
        loss_scale: As mmengine's; for ``float16`` alone, since gradients of ``bfloat16`` do not underflow.
        **kwargs: Of mmengine's ``OptimWrapper``.
    """

    def __init__(
        self, dtype: str = "bfloat16", loss_scale: str | float | Mapping[str, Any] = "dynamic", **kwargs: Any
    ) -> None:
        OptimWrapper.__init__(self, **kwargs)
        self.cast_dtype = getattr(torch, dtype)
        self._scale_update_param = loss_scale if isinstance(loss_scale, (int, float)) else None
        options = {} if isinstance(loss_scale, str) else loss_scale
        if not isinstance(options, Mapping):
            options = {"init_scale": float(options)}
        self.loss_scaler = torch.amp.GradScaler("cpu", enabled=dtype == "float16", **options)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """As mmengine's."""
        with OptimWrapper.optim_context(self, model), torch.autocast("cpu", dtype=self.cast_dtype):
            yield
