"""A training that several processes share: what each of them reads, and what they keep the same.

All see the batches that one process alone would see, each process a part of every batch. Gradients are averaged, so the
learning rate is that of one process with the whole batch. Statistics of batch norms are those of a process's own part.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmdet.registry import DATA_SAMPLERS
from mmengine import dist
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler, Sampler

from trainers.contract import StopTrial


def share(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the parts of a trial's config that differ where several processes share its training.

    The batch of the config stays the whole one.

    Args:
        config: Of the trial, as for one process.
    """
    train = copy.deepcopy(dict(config["train_dataloader"]))
    train["batch_sampler"] = {"type": "PartOfBatches", "whole": dict(train["batch_sampler"])}
    train["sampler"] = {**train["sampler"], "type": "WholeSampler"}
    # Through the process group: the other way is files in the working directory, which the processes do not share.
    evaluator = {**config["val_evaluator"], "collect_device": "gpu"}
    return {"train_dataloader": train, "val_evaluator": evaluator}


def wrap(model: nn.Module) -> nn.Module:
    """Lets a model's gradients be averaged over all processes; all start from the weights and buffers of rank 0.

    A design may leave parts of its network out of a step (experts without an object, levels without a query), and
    which ones may differ between processes, so unused parameters are looked for.
    """
    wrapped: nn.Module = MMDistributedDataParallel(
        module=model, forward_sync_buffers=False, find_unused_parameters=True
    )
    return wrapped


@DATA_SAMPLERS.register_module(force=True)
class WholeSampler(DefaultSampler):  # type: ignore[misc]
    """mmengine's sampler as for one process alone."""

    def __init__(self, dataset: Any, shuffle: bool = True, seed: int | None = None) -> None:
        super().__init__(dataset, shuffle, seed)
        self.rank, self.world_size = 0, 1
        self.num_samples = self.total_size = len(dataset)


@DATA_SAMPLERS.register_module(force=True)
class PartOfBatches(BatchSampler):
    """This process's part of each batch that one process alone would see: the images rank, rank + size, ...

    The last batch of an epoch may not be divisible; images from its beginning are then taken twice, so that all
    processes have as many.

    Args:
        sampler: Of all images.
        batch_size: Images of the whole batch.
        whole: Config of the batch sampler that one process alone has.
    """

    def __init__(self, sampler: Sampler[int], batch_size: int, whole: Mapping[str, Any]) -> None:
        self.sampler = sampler
        self._whole = DATA_SAMPLERS.build(dict(whole), default_args={"sampler": sampler, "batch_size": batch_size})
        self._rank, self._size = dist.get_dist_info()

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._whole:
            yield part(batch, self._rank, self._size)

    def __len__(self) -> int:
        return len(self._whole)


def part(batch: list[int], rank: int, size: int) -> list[int]:
    """Gives one process's part of a batch; all parts have the same length, 1 or more."""
    length = -(-len(batch) // size)
    filled = (batch * size)[: length * size]
    return filled[rank::size]


class MeanLosses(Hook):  # type: ignore[misc]
    """Puts the mean over all processes in the place of each loss, before anyone reads it.

    So what is no number in one process is none in all, and all end at the same step.
    """

    priority = "HIGHEST"

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Averages the losses of a step."""
        if not outputs:
            return
        names = sorted(outputs)
        means = torch.stack([torch.as_tensor(outputs[name]).detach().float().mean().cpu() for name in names])
        dist.all_reduce(means, op="mean")
        outputs.update(zip(names, means, strict=True))


class SameBuffers(Hook):  # type: ignore[misc]
    """Averages the statistics of batch norms over all processes, before they are validated with and saved."""

    # After EMA's, which puts its own model in place for validation.
    priority = "LOWEST"

    def after_train_epoch(self, runner: Runner) -> None:
        """Averages those of the trained model."""
        _average(runner.model)

    def before_val_epoch(self, runner: Runner) -> None:
        """Averages those of the model that is validated."""
        _average(runner.model)


def _average(model: nn.Module) -> None:
    """Those that are frozen are equal everywhere, and a mean of three equal numbers may round."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats:
            dist.all_reduce(module.running_mean, op="mean")
            dist.all_reduce(module.running_var, op="mean")


class GoOn(Hook):  # type: ignore[misc]
    """After each report of rank 0's, tells all others that the training goes on; registered after what reports.

    Raises:
        StopTrial: In the others, where it does not.
    """

    priority = "LOWEST"

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Waits for rank 0's word."""
        if not word(True):
            raise StopTrial


def word(go_on: bool) -> bool:
    """Gives rank 0's word, in all processes."""
    value = torch.tensor([int(go_on)])
    dist.broadcast(value, src=0)
    return bool(value.item())
