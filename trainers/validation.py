"""Validation on a part of the split, for epochs whose accuracy only decides who goes on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.registry import LOOPS
from mmengine.runner import ValLoop


@LOOPS.register_module(force=True)
class EarlyValLoop(ValLoop):  # type: ignore[misc]
    """mmengine's validation, on some images in early epochs and on all of them in later ones.

    Args:
        runner: Of the training.
        dataloader: Config of the loader of the whole split.
        evaluator: Config of its evaluator.
        images: Most images of an early epoch, evenly chosen from the split; the same in every trial.
        epochs: Number of early epochs.

    Attributes:
        loaders: Of the whole split, and of the part of it where there is one.
    """

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any, images: int, epochs: int) -> None:
        super().__init__(runner, dataloader, evaluator)
        self._epochs = epochs
        whole: Any = self.dataloader  # type: ignore[has-type]
        self.loaders = [whole]
        if images < len(whole.dataset):
            self.loaders.append(runner.build_dataloader(part(dataloader, len(whole.dataset), images)))

    @property
    def images(self) -> int:
        """Images of the latest validation."""
        return len(self.dataloader.dataset)

    def run(self) -> dict[str, float]:
        """Validates after an epoch."""
        self.dataloader = self.loaders[-1 if self.runner.epoch <= self._epochs else 0]
        look_at(self.evaluator, self.dataloader.dataset)
        return dict(super().run())


def part(dataloader: Mapping[str, Any], count: int, images: int) -> dict[str, Any]:
    """Gives the config of a loader of some images of a split, evenly chosen.

    Args:
        dataloader: Of the whole split.
        count: Its images.
        images: How many to take; all where there are no more.
    """
    images = min(images, count)
    found = copy.deepcopy(dict(dataloader))
    found["dataset"] = {**found["dataset"], "indices": [place * count // images for place in range(images)]}
    return found


def look_at(evaluator: Evaluator, dataset: Any) -> None:
    """Has an evaluator of COCO figures count the images of a data set, and no others of its annotation file."""
    for metric in evaluator.metrics:
        metric.img_ids = [dataset.get_data_info(index)["img_id"] for index in range(len(dataset))]
