"""What a trial will cost, from building it and from a few real training steps."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from trainers import cost
from trainers.config import read_facts, trial_config
from trainers.contract import TrialRequest
from trainers.detector import build_model
from trainers.means import settle

# A trial's process, imports and building (STACK.md: 6.8 s for a fresh worker with torch, mmcv and mmdet).
START_SECONDS = 7.0
_STEPS = 4


def local_hardware() -> tuple[int, int]:
    """CPUs that this process may use, and GPUs."""
    return len(os.sched_getaffinity(0)), torch.cuda.device_count()


def count_design(request: TrialRequest, knobs: Mapping[str, Any]) -> dict[str, float]:
    """Builds a design on the request's base and data and counts it.

    Returns:
        ``gmacs``, ``head_gmacs``, ``params_m`` and ``activations_m``.

    Raises:
        UserError: The base or the data cannot be used.
    """
    config = trial_config(replace(request, knobs=knobs), read_facts(request.data))
    return cost.count(build_model(config, request.seed), request.count_size).to_metrics()


def seconds_per_epoch(request: TrialRequest) -> float:
    """Estimates the wall time of an epoch from a few training and validation steps after one to warm up.

    A trial takes ``START_SECONDS`` more than its epochs.

    Args:
        request: The trial; its folder is written to.
    """
    from trainers.loop import TrialRunner, seed_all

    settle(request.threads)
    facts = read_facts(request.data)
    config = trial_config(request, facts)
    model = build_model(config, request.seed, request.device)
    seed_all(request.seed)
    runner = TrialRunner(config, model, None)
    try:
        train = runner.build_dataloader(config["train_dataloader"], seed=request.seed)
        optimizer = runner.build_optim_wrapper(runner.optim_wrapper)
        model.train()
        step = _seconds(lambda data: model.train_step(data, optimizer), train)
        val = runner.build_dataloader(config["val_dataloader"])
        model.eval()
        with torch.no_grad():
            check = _seconds(model.val_step, val)
    finally:
        runner.close()
    return step * len(train) + check * len(val)


def gain_of_bfloat16(request: TrialRequest, seconds: float) -> float | None:
    """Measures how many times as fast an epoch would be in mixed precision.

    Args:
        request: The trial; its folder is written to.
        seconds: What ``seconds_per_epoch`` gave for it.

    Returns:
        ``None`` where the study says what it trains in, or the base does, where this machine does not compute in
        bfloat16, and where the base cannot.
    """
    config = trial_config(request)
    if request.train_dtype is not None or config["optim_wrapper"]["type"] != "OptimWrapper":
        return None
    if request.device == "cpu":
        able = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    if not able:
        return None
    try:
        return seconds / seconds_per_epoch(replace(request, train_dtype="bfloat16"))
    except Exception:  # of an operator that lacks the type, say; nobody asked for it
        return None


def _seconds(act: Any, loader: Any) -> float:
    """Mean time of loading a batch and acting on it; the first one only warms up."""
    batches = iter(itertools.islice(itertools.cycle(loader), _STEPS + 1))
    act(next(batches))
    begin = time.monotonic()
    for batch in batches:
        act(batch)
    return (time.monotonic() - begin) / _STEPS
