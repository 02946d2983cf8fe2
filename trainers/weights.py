"""Weights that a trial starts from: the base's own initial ones, or those of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spaces.errors import UserError


def read_weights(path: str, who: str = "weights") -> dict[str, Tensor]:
    """Reads the weights of a checkpoint, executing nothing that is in it (``weights_only``).

    Args:
        path: A state dict, or a checkpoint with ``state_dict`` (mmengine) or ``model`` in it.
        who: Whose setting it is, for the error.

    Raises:
        UserError: The file is missing, or is no checkpoint, or would have to execute code.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        rule = "must be a checkpoint that loads with weights_only"
        raise UserError(f"{who}: {rule}, but {path} gives {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
            break
    weights = {
        str(name).removeprefix("module."): tensor
        for name, tensor in (value.items() if isinstance(value, Mapping) else ())
        if isinstance(tensor, Tensor)
    }
    if not weights:
        raise UserError(f"{who}: must be a checkpoint with weights in it, but {path} has none.")
    return weights


@torch.no_grad()
def copy_matching(weights: Mapping[str, Tensor], model: nn.Module) -> float:
    """Copies weights into a model wherever name and shape match, parameters and buffers.

    Returns:
        Share of the model's parameters that was copied, 0 to 1.
    """
    own = model.state_dict()
    copied = 0
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, tensor in own.items():
        source = weights.get(name)
        if source is not None and source.shape == tensor.shape:
            tensor.copy_(source)
            copied += parameters.get(name, 0)
    return copied / max(1, sum(parameters.values()))
