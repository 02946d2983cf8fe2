"""From an image file to the tensor that a graph takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from mmdet.utils import get_test_pipeline_cfg

from .outputs import Unsupported

_PASSIVE = ("LoadImageFromFile", "LoadAnnotations", "PackDetInputs")


@dataclass(frozen=True)
class Preparation:
    """How images become tensors.

    Attributes:
        frame: Height and width in px that an image is resized into.
        canvas: Height and width in px of the tensor: the frame, filled up with zeros at the right and below.
        keep_ratio: Whether the image keeps its ratio of sides; else it fills the frame.
        mean: Of each channel, in the order of the tensor, for values of 0 to 255.
        std: Deviation of each channel.
        channels: ``RGB`` or ``BGR``.
    """

    frame: tuple[int, int]
    canvas: tuple[int, int]
    keep_ratio: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: str

    def to_json(self) -> dict[str, Any]:
        """Gives it as plain JSON types, with what is fixed."""
        found = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {**found, "interpolation": "bilinear", "order": "resize, normalise, fill up", "padding": 0.0}

    def __call__(self, path: str) -> tuple[np.ndarray[Any, Any], tuple[int, int], tuple[int, int]]:
        """Reads an image.

        Returns:
            (3, H, W) in single precision, the height and width of the resized image, and those of the file's.
        """
        image = cv2.imread(path, cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"{path} cannot be read as an image")
        height, width = image.shape[:2]
        size = self.frame
        if self.keep_ratio:
            scale = min(self.frame[0] / height, self.frame[1] / width)
            size = (int(height * scale + 0.5), int(width * scale + 0.5))
        resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        if self.channels == "RGB":
            resized = resized[:, :, ::-1]
        mean, std = (np.array(values, dtype=np.float32) for values in (self.mean, self.std))
        tensor = np.zeros((3, *self.canvas), np.float32)
        tensor[:, : size[0], : size[1]] = ((resized.astype(np.float32) - mean) / std).transpose(2, 0, 1)
        return tensor, size, (height, width)


def preparation(model: Any, portrait: bool) -> Preparation:
    """Reads how a detector prepares its images.

    Args:
        model: A detector with its config.
        portrait: Whether the frame stands upright. mmdet turns it with each image, a graph has one.

    Raises:
        Unsupported: Its images are prepared in a way of its own.
    """
    steps = [step for step in get_test_pipeline_cfg(model.cfg.copy()) if step["type"] not in _PASSIVE]
    if len(steps) != 1 or steps[0]["type"] != "Resize" or "scale" not in steps[0]:
        names = ", ".join(str(step["type"]) for step in steps) or "nothing"
        raise Unsupported(f"its images are prepared by {names}, but a graph here takes images that are only resized")
    width, height = steps[0]["scale"]
    keep_ratio = bool(steps[0].get("keep_ratio", False))
    if keep_ratio:
        width, height = sorted((width, height), reverse=not portrait)
    before = model.data_preprocessor
    if not getattr(before, "_enable_normalize", False) or float(getattr(before, "pad_value", 0)) != 0:
        raise Unsupported("its images are not normalised and filled up with zeros, as a graph here expects")
    flipped = bool(before._channel_conversion)
    mean, std = (tuple(_short(value) for value in getattr(before, name).flatten().tolist()) for name in ("mean", "std"))
    divisor = before.pad_size_divisor
    canvas = tuple(-(-side // divisor) * divisor for side in (height, width))
    # mmcv reads images as BGR.
    return Preparation((height, width), canvas, keep_ratio, mean, std, "RGB" if flipped else "BGR")


def _short(value: float) -> float:
    """The shortest number that is ``value`` in single precision: 123.675 for 123.67500305."""
    return float(str(np.float32(value)))
