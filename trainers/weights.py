"""Weights that a trial starts from: the base's own initial ones, or those of a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from spaces.errors import UserError

_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextmanager
def weights_only(who: str) -> Iterator[None]:
    """Keeps libraries from executing what is in a checkpoint: mmengine unpickles whatever does not load otherwise.

    Args:
        who: Whose setting names the checkpoints, for the error.

    Raises:
        UserError: A checkpoint would have to execute code.
    """
    os.environ[_FORCED] = "1"  # read by torch at each load; nothing in this process needs it otherwise
    try:
        yield
    except UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{who}: must be checkpoints that load with weights_only, but one gives {reason}") from error


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
