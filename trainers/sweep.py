"""What a trained detector gives at a setting of its inference knobs: accuracy, and latency on real images."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from trainers import heartbeat
from trainers.checkpoint import checkpoints
from trainers.files import write_text
from trainers.loop import accuracy
from trainers.validation import look_at, part

Batch = tuple[Tensor, list[Any]]


class Validated:
    """The accuracies of a trained detector's settings on disk, so that another start can time them.

    Args:
        folder: The trial's.
        mark: Of the weights; what was found with others is not given.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        self._path, self._mark = folder / "validated.json", mark
        self._known: dict[str, dict[str, float]] = {}
        with contextlib.suppress(OSError, ValueError, KeyError):
            there = json.loads(self._path.read_text(encoding="utf-8"))
            if there["mark"] == mark:
                self._known = there["settings"]

    def get(self, index: int) -> dict[str, float] | None:
        """The accuracy at a setting, ``None`` where it is not known."""
        return self._known.get(str(index))

    def keep(self, index: int, accuracy: dict[str, float]) -> None:
        """Keeps the accuracy at a setting."""
        self._known[str(index)] = accuracy
        write_text(self._path, json.dumps({"mark": self._mark, "settings": self._known}))


def validate(config: Config, model: Any, images: int | None = None) -> dict[str, float]:
    """Measures a detector's accuracy on the validation split, as training does after each epoch.

    Args:
        config: The trial's config.
        model: The trained detector, on its device.
        images: Images to take, evenly chosen from the split; ``None`` for all.

    Returns:
        ``{"bbox_mAP": 0.31, ...}``; see ``trainers.loop.accuracy``.
    """
    loader = Runner.build_dataloader(copy.deepcopy(config["val_dataloader"]))
    evaluator = Evaluator(copy.deepcopy(config["val_evaluator"]))
    if images is not None:
        loader = Runner.build_dataloader(part(config["val_dataloader"], len(loader.dataset), images))
        look_at(evaluator, loader.dataset)
    evaluator.dataset_meta = loader.dataset.metainfo
    model.eval()
    with torch.no_grad():
        for data in loader:
            heartbeat.beat()
            evaluator.process(data_samples=model.val_step(data), data_batch=data)
    figures, _ = accuracy(evaluator.evaluate(len(loader.dataset)))
    return figures


def validation_images(config: Config, model: Any, size: tuple[int, int], batch: int, count: int) -> list[Batch]:
    """Loads images of the validation split for a measurement, evenly chosen, as batches of one size.

    Args:
        config: The trial's config.
        model: A detector; its preprocessor normalises.
        size: Height and width in px that the images are scaled into, keeping their aspect ratio, and padded to.
        batch: Images a batch.
        count: Most images; fewer where the split has fewer.

    Returns:
        Normalised images, (batch, 3, height, width), with their data samples.
    """
    dataset = copy.deepcopy(config["val_dataloader"]["dataset"])
    for step in dataset["pipeline"]:
        if step["type"] == "Resize":
            step["scale"] = (size[1], size[0])
    from mmdet.registry import DATASETS

    images = DATASETS.build(dataset)
    count = max(batch, min(count, len(images)) // batch * batch)
    chosen = [int(place * len(images) / count) for place in range(count)]
    batches = []
    for start in range(0, count, batch):
        packed = [images[index] for index in chosen[start : start + batch]]
        content = {key: [item[key] for item in packed] for key in ("inputs", "data_samples")}
        with torch.no_grad():
            ready = model.data_preprocessor(content, False)
        inputs = ready["inputs"]
        height, width = (max(wanted, side) for wanted, side in zip(size, inputs.shape[2:], strict=True))
        inputs = F.pad(inputs, (0, width - inputs.shape[3], 0, height - inputs.shape[2]))
        for sample in ready["data_samples"]:
            sample.set_metainfo({"batch_input_shape": (height, width), "pad_shape": (height, width)})
        batches.append((inputs, ready["data_samples"]))
    return batches


def reference_weights(folder: str | None) -> dict[str, Tensor] | None:
    """Reads the newest weights of the baseline's trial, ``None`` where there are none yet."""
    found = checkpoints(Path(folder)) if folder is not None and Path(folder).is_dir() else []
    for _, path in found:
        try:
            weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        except (OSError, RuntimeError, KeyError, EOFError, UnpicklingError):
            continue  # replaced by a newer one at this moment, or cut short
        return weights
    return None
