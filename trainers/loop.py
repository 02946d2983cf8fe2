"""mmengine's Runner for trials: its own log file and checkpoints, randomness by seed and epoch alone."""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn

from trainers import checkpoint, faults, heartbeat, mixed, parallel
from trainers.contract import TrialFailed
from trainers.validation import EarlyValLoop

_runs = itertools.count()
# What Runner itself reads from its config; the rest is given to it as arguments. A whole config would be formatted by
# yapf, seconds each time, at the start and in every checkpoint.
_RUNNER_READS = ("model_wrapper_cfg", "activation_checkpointing", "efficient_conv_bn_eval", "compile")


class TrialRunner(Runner):  # type: ignore[misc]
    """A Runner for one trial.

    Args:
        config: The trial's config.
        model: Its built detector, on its device.
        resume: Content of the checkpoint to continue from, ``None`` to start at epoch 0.
        together: Whether all processes of the current process group share the training.
    """

    def __init__(
        self, config: Config, model: nn.Module, resume: Mapping[str, Any] | None, *, together: bool = False
    ) -> None:
        parts = parallel.share(config) if together else config
        hooks = {**config["default_hooks"], "checkpoint": None}  # EpochEnd saves
        env = {**config["env_cfg"], "mp_cfg": {"opencv_num_threads": 0, "mp_start_method": _start_method()}}
        self._checkpoint, self._together = resume, together
        device = next(model.parameters()).device.type
        super().__init__(
            model=model,
            work_dir=config["work_dir"],
            train_dataloader=parts["train_dataloader"],
            val_dataloader=config["val_dataloader"],
            train_cfg=config["train_cfg"],
            val_cfg=config["val_cfg"],
            val_evaluator=parts["val_evaluator"],
            optim_wrapper=mixed.prepare(model, config["optim_wrapper"], device),
            param_scheduler=config["param_scheduler"] or None,
            default_hooks=hooks,
            custom_hooks=config.get("custom_hooks"),
            env_cfg=env,
            log_processor=config["log_processor"],
            log_level=config["log_level"],
            visualizer={"type": "Visualizer", "vis_backends": []},
            default_scope="mmdet",
            randomness=config["randomness"],
            # mmengine keeps loggers and message hubs by name for the life of the process.
            experiment_name=f"{config['experiment_name']}_{os.getpid()}_{next(_runs)}",
            cfg=Config({key: config[key] for key in _RUNNER_READS if key in config}),
        )

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Logs everything to ``train.log`` in the trial's folder, and warnings to the console."""
        log_file = str(Path(self.work_dir) / "train.log")
        logger = super().build_logger(log_level=log_level, log_file=log_file, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
        return logger

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        """Leaves the model on the device it is on; mmengine would take a GPU wherever there is one."""
        return parallel.wrap(model) if self._together else model

    def add_hooks(self, hooks: Sequence[Hook]) -> None:
        """Registers a trial's hooks, with what several processes need around them."""
        around = ([parallel.MeanLosses(), parallel.SameBuffers()], [parallel.GoOn()]) if self._together else ([], [])
        for hook in (*around[0], *hooks, *around[1]):
            self.register_hook(hook)

    @property
    def bare_model(self) -> nn.Module:
        """The detector itself, without what averages its gradients."""
        model: nn.Module = self.model.module if self._together else self.model
        return model

    def dump_config(self) -> None:
        """Nothing: the trial's whole config is written by the trainer."""

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """Nothing: collecting it runs compilers, and the trial's record has the versions."""

    def _init_model_weights(self) -> None:
        """Nothing: the model comes with the weights that the trial starts from."""

    def load_or_resume(self) -> None:
        """Continues from the checkpoint given, exactly."""
        if self._checkpoint is None:
            return
        content, self._checkpoint = self._checkpoint, None
        self.call_hook("after_load_checkpoint", checkpoint=content)
        self.bare_model.load_state_dict(content["state_dict"])
        self.optim_wrapper.load_state_dict(content["optimizer"])
        for scheduler, state in zip(self.param_schedulers or [], content["param_schedulers"]):
            scheduler.load_state_dict(state)
        self.train_loop._epoch = content["meta"]["epoch"]
        self.train_loop._iter = content["meta"]["iter"]

    def checkpoint(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Gives everything that a continued training needs; loads with ``weights_only``."""
        content = {
            "meta": {"epoch": self.epoch, "iter": self.iter, "seed": self.seed, **meta},
            "state_dict": {name: tensor.detach().cpu() for name, tensor in self.bare_model.state_dict().items()},
            "optimizer": self.optim_wrapper.state_dict(),
            "param_schedulers": [scheduler.state_dict() for scheduler in self.param_schedulers or []],
        }
        self.call_hook("before_save_checkpoint", checkpoint=content)
        return content

    def close(self) -> None:
        """Takes this run out of mmengine's global tables and closes its log."""
        for handler in list(self.logger.handlers):
            handler.close()
            self.logger.removeHandler(handler)
        for table in (MMLogger, MessageHub, Visualizer, DefaultScope):
            table._instance_dict.pop(self.experiment_name, None)


class Reproducible(Hook):  # type: ignore[misc]
    """Makes randomness depend on the seed, the epoch and the image alone.

    So a continued training goes on as an undisturbed one would, and neither the number of loader processes nor what
    ran before in this process changes a result.
    """

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        # Shared memory: loader processes that live through all epochs must see the epoch too.
        self._epoch: torch.Tensor = torch.zeros(1, dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        self._seed = seed

    def before_train(self, runner: Runner) -> None:
        """Puts the seeding of each image at the front of the training pipeline, and has both pipelines name images."""
        runner.train_dataloader.dataset.pipeline.transforms.insert(0, _SeedImage(self._seed, self._epoch))
        val_loaders = getattr(runner.val_loop, "loaders", [runner.val_dataloader])
        for loader in (runner.train_dataloader, *val_loaders):
            loader.dataset.pipeline = _NamingPipeline(loader.dataset.pipeline)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds all generators."""
        self._epoch.fill_(runner.epoch)
        seed_all(self._seed, runner.epoch)


class _SeedImage:
    """First step of a pipeline: seeds what augments an image."""

    def __init__(self, seed: int, epoch: torch.Tensor) -> None:
        self._seed, self._epoch = seed, epoch

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        value = _mixed(self._seed, int(self._epoch), 1 + int(results["sample_idx"]))
        random.seed(value)
        np.random.seed(value)
        return results


class _NamingPipeline(Compose):  # type: ignore[misc]
    """A pipeline whose exceptions name the image."""

    def __init__(self, pipeline: Compose) -> None:
        self.transforms = pipeline.transforms

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        path = data.get("img_path")
        try:
            made: dict[str, Any] | None = super().__call__(data)
        except Exception as error:
            raise faults.of_image(str(path), error) from error
        return made


class EpochEnd(Hook):  # type: ignore[misc]
    """Watches the loss, and at the end of each epoch publishes its checkpoint and then reports.

    Args:
        folder: The trial's folder.
        mark: The request's fingerprint.
        earlier: Seconds trained and validated before this start.
        report: Called with epoch, metrics and attrs, the checkpoint being on disk.
        peak_mb: Gives the peak memory so far in MB.
    """

    # After mmengine's own hooks and EMA's, which puts the trained weights back after validation.
    priority = "LOWEST"

    def __init__(
        self,
        *,
        folder: Path,
        mark: str,
        earlier: tuple[float, float],
        report: Callable[[int, dict[str, float], dict[str, Any]], None],
        peak_mb: Callable[[], float],
    ) -> None:
        self._folder, self._mark, self._report, self._peak_mb = folder, mark, report, peak_mb
        self.train_seconds, self.val_seconds = earlier
        self._sums: dict[str, float] = {}
        self._begin = time.monotonic()
        self._epoch_seconds = 0.0

    def before_train_epoch(self, runner: Runner) -> None:
        """Starts the clock and the means of the losses."""
        self._sums, self._begin = {}, time.monotonic()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Adds up the losses.

        Raises:
            TrialFailed: One of them is not finite.
        """
        heartbeat.beat()
        for name, value in (outputs or {}).items():
            number = value.item() if isinstance(value, torch.Tensor) else float(value)
            if not math.isfinite(number):
                raise TrialFailed(
                    f"{name} became {number} in epoch {runner.epoch + 1}, iteration {batch_idx + 1} of "
                    f"{len(runner.train_dataloader)}: the training diverged; a lower learning rate may help."
                )
            self._sums[name] = self._sums.get(name, 0.0) + number

    def after_train_epoch(self, runner: Runner) -> None:
        """Stops the clock of the training.

        Raises:
            TrialFailed: A weight or a statistic is not finite: the detector would find nothing, and say so with an AP
                of 0.
        """
        self._epoch_seconds = time.monotonic() - self._begin
        self.train_seconds += self._epoch_seconds
        for name, tensor in runner.model.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise TrialFailed(
                    f"{name} is not finite after epoch {runner.epoch + 1}: the training diverged; "
                    "a lower learning rate may help."
                )

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Tells that the trial lives."""
        heartbeat.beat()

    def before_val_epoch(self, runner: Runner) -> None:
        """Starts the clock of the validation."""
        self._begin = time.monotonic()

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Publishes the epoch's checkpoint and reports.

        Raises:
            StopTrial: ``report`` raised it.
        """
        seconds = time.monotonic() - self._begin
        self.val_seconds += seconds
        figures, attrs = accuracy(metrics or {})
        if isinstance(runner.val_loop, EarlyValLoop):
            figures["val_images"] = float(runner.val_loop.images)
        iterations = len(runner.train_dataloader)
        figures.update({name: total / iterations for name, total in self._sums.items()})
        figures.update(
            lr=float(runner.optim_wrapper.get_lr()["lr"][0]) if "lr" in runner.optim_wrapper.get_lr() else 0.0,
            train_seconds=self._epoch_seconds,
            val_seconds=seconds,
            peak_memory_mb=self._peak_mb(),
        )
        meta = {
            "fingerprint": self._mark,
            "metrics": figures,
            "attrs": attrs,
            "train_seconds": self.train_seconds,
            "val_seconds": self.val_seconds,
        }
        checkpoint.publish(self._folder, runner.epoch, runner.checkpoint(meta))
        self._report(runner.epoch, figures, attrs)


def accuracy(metrics: Mapping[str, float]) -> tuple[dict[str, float], dict[str, Any]]:
    """Turns what CocoMetric gives into figures and attributes of a report.

    Args:
        metrics: ``{"coco/bbox_mAP": 0.31, "coco/bbox_AR@100": 0.4, "coco/bbox_mAP_l": -1, ...}``

    Returns:
        ``{"bbox_mAP": 0.31, "bbox_AR_100": 0.4}``: a figure of -1 has no objects to be measured on and is left out.
        Without any detection CocoMetric gives nothing; that is an AP of 0, and the attributes say why.
    """
    figures = {
        name.removeprefix("coco/").replace("@", "_"): float(value)
        for name, value in metrics.items()
        if name.startswith("coco/") and math.isfinite(value) and value >= 0
    }
    if "bbox_mAP" in figures:
        return figures, {}
    return {"bbox_mAP": 0.0}, {"note": "no box came over the score threshold in validation"}


def seed_all(*numbers: int) -> None:
    """Seeds the generators of Python, NumPy and torch from numbers that are not negative."""
    value = _mixed(*numbers)
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _start_method() -> str:
    """The way new processes are started at present: mmengine sets it by force, for the whole process."""
    import multiprocessing

    return multiprocessing.get_start_method()


def hooks_of(seed: int, end: EpochEnd) -> Sequence[Hook]:
    """The two hooks that a trial adds to its base's own."""
    return [Reproducible(seed), end]


def quiet() -> None:
    """Keeps mmengine and pycocotools from printing: standard output belongs to the command (``--json``).

    mmengine's default logger tells the origin of every weight. Redirecting standard output would do so for every
    thread of the process; instead mmengine gets a logger that warns only, and pycocotools another ``print``.
    """
    import pycocotools.coco
    import pycocotools.cocoeval

    if not MMLogger.check_instance_created("headway"):
        MMLogger.get_instance("headway", logger_name="headway", log_level="WARNING")
    for module in (pycocotools.coco, pycocotools.cocoeval):
        module.print = lambda *_args, **_kwargs: None
