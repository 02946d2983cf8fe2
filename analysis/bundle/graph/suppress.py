"""Non-maximum suppression of a batch, as ONNX's operator and, in PyTorch, as mmcv's."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.ops import nms
from torch import Tensor
from torch.autograd import Function


class Suppression(Function):
    """ONNX's NonMaxSuppression of one class a batch."""

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, most: int, iou: float) -> Any:
        """The node."""
        constants = (torch.tensor([most]), torch.tensor([iou]), torch.tensor([0.0]))
        return g.op("NonMaxSuppression", boxes, scores, *(g.op("Constant", value_t=value) for value in constants))

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, most: int, iou: float) -> Tensor:
        """Boxes (B, N, 4) and scores (B, 1, N), of which those above 0 count, to (M, 3): image, 0 and box."""
        found = []
        for image, (own, values) in enumerate(zip(boxes, scores[:, 0])):
            index = (values > 0).nonzero()[:, 0]
            if len(index):
                index = index[nms(own[index], values[index], iou)[1][:most]]
            found.append(torch.stack((torch.full_like(index, image), torch.zeros_like(index), index), 1))
        return torch.cat(found)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, most: int, iou: float) -> tuple[Tensor, Tensor]:
    """Keeps the best boxes that overlap no better one of their group, as mmcv's ``batched_nms``.

    Args:
        boxes: (B, N, 4) as left, top, right, bottom.
        scores: (B, N); a box with 0 or less is none.
        groups: (B, N) class or level.
        most: Boxes to keep an image.
        iou: Overlap above which a box is dropped.

    Returns:
        Scores (B, K), best first, and indices (B, K), with K the lesser of ``most`` and N; a score of 0 or less marks
        what is no box.
    """
    images, number = scores.shape
    real = scores > 0
    # mmcv moves the boxes of each group out of the others' way, by what the largest coordinate is.
    largest = boxes.masked_fill(~real[..., None], 0).amax((1, 2), keepdim=True)
    moved = boxes + groups.to(boxes)[..., None] * (largest + 1)
    most = min(most, int(number))
    chosen: Tensor = Suppression.apply(moved, scores[:, None], most, iou)  # type: ignore[no-untyped-call]
    place = chosen[:, 0] * number + chosen[:, 2]
    flat = scores.reshape(-1)
    kept = torch.full_like(flat, -1).scatter(0, place, flat.index_select(0, place))
    return kept.reshape(images, number).topk(most, 1)
