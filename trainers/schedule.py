"""The schedule of a base, squeezed or stretched to the epochs of a trial: pure functions over config dicts."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

# What mmengine takes for "until the end of training" (its schedulers' INF).
FOREVER = int(1e9)

_WARM_UPS = ("LinearLR", "ConstantLR", "QuadraticWarmupLR", "LinearMomentum", "ConstantMomentum")
_WARM_UP_SHARE = 0.1  # of all iterations


def rescale(
    schedulers: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None,
    *,
    base_length: int,
    base_by_epoch: bool,
    epochs: int,
    iterations: int,
) -> list[dict[str, Any]]:
    """Rescales a base's parameter schedulers, all of them to iterations.

    In iterations a decay at two thirds of the training stays there, whatever the number of epochs: in whole epochs the
    two milestones of a 1x schedule fall together when 3 epochs are trained. Warm-ups are a number of steps that the
    optimizer needs, so they are capped and not scaled.

    Args:
        schedulers: ``param_scheduler`` of the base; one, many or none.
        base_length: Length of the base's training, in epochs or iterations as ``base_by_epoch`` says.
        base_by_epoch: Whether the base's training loop counts epochs.
        epochs: Epochs of the trial.
        iterations: Iterations of one epoch of the trial.

    Returns:
        Schedulers with ``by_epoch=False``. A warm-up that would have less than two iterations is left out, since
        mmengine's would then never come back to the full rate.
    """
    if schedulers is None:
        return []
    listed = [schedulers] if isinstance(schedulers, Mapping) else list(schedulers)
    total = epochs * iterations
    result = []
    for scheduler in listed:
        one = copy.deepcopy(dict(scheduler))
        # Iterations of this trial for one unit of the base's counting. Schedulers that count iterations inside a
        # training by epochs (RTMDet's warm-up) keep their own unit: the base's iterations an epoch are not known.
        by_epoch = bool(one.pop("by_epoch", True))
        one.pop("convert_to_iter_based", None)
        if _is_warm_up(one, base_length if by_epoch == base_by_epoch else FOREVER):
            unit = iterations if by_epoch else 1
            capped = min(one["end"] * unit, iterations, int(total * _WARM_UP_SHARE))
            if capped < 2:
                continue
            one.update(begin=0, end=capped)
        elif by_epoch == base_by_epoch:
            _scale(one, total / base_length, total)
        else:
            _scale(one, float(iterations) if by_epoch else 1.0, total)
        one["by_epoch"] = False
        result.append(one)
    return result


def scaled_lr(base_lr: float, batch: int, base_batch: int | None) -> float:
    """Scales a learning rate linearly with the batch; ``base_batch`` ``None`` leaves it."""
    return base_lr if not base_batch else base_lr * batch / base_batch


def _is_warm_up(scheduler: Mapping[str, Any], length: int) -> bool:
    """Whether a scheduler raises the rate at the start of a training of ``length`` units and ends before it does."""
    end = scheduler.get("end", FOREVER)
    return scheduler["type"] in _WARM_UPS and scheduler.get("begin", 0) == 0 and end < min(length, FOREVER)


def _scale(scheduler: dict[str, Any], factor: float, total: int) -> None:
    """Multiplies every length of a scheduler, in place; ``factor`` is iterations a unit."""
    begin = min(round(scheduler.get("begin", 0) * factor), max(total - 1, 0))
    end = scheduler.get("end", FOREVER)
    scheduler["begin"] = begin
    scheduler["end"] = FOREVER if end >= FOREVER else max(begin + 1, round(end * factor))
    if "milestones" in scheduler:
        scheduler["milestones"] = [max(1, round(stone * factor)) for stone in scheduler["milestones"]]
    for key in ("T_max", "step_size", "total_steps"):
        if scheduler.get(key) is not None:
            scheduler[key] = max(1, round(scheduler[key] * factor))
    if "periods" in scheduler:
        scheduler["periods"] = [max(1, round(period * factor)) for period in scheduler["periods"]]
    if scheduler["type"].startswith("Exponential"):
        # It multiplies at every step, and there are now `factor` steps for one of the base's.
        scheduler["gamma"] = math.pow(scheduler["gamma"], 1.0 / factor)
