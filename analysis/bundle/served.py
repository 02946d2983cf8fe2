"""A bundle as an MLflow model: what ``mlflow.pyfunc.load_model`` loads it with. Needs torch, mmcv and mmdet only.

It is copied into the model under a name with a digest of its text, never imported by Headway.
"""

from __future__ import annotations

from typing import Any


class Detector:
    """A detector behind ``predict``.

    Args:
        bundle: The bundle's folder.
    """

    def __init__(self, bundle: str) -> None:
        import torch
        from mmdet.apis import init_detector

        device = "cuda:0" if torch.cuda.is_available() else "cpu"
        self._model = init_detector(f"{bundle}/config.py", f"{bundle}/weights.pth", device=device)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Detects objects in an image.

        Args:
            model_input: Red, green and blue, (height, width, 3), uint8.
            params: ``score``, the least score of what is given back (0: everything).

        Returns:
            ``boxes`` (n, 4), x1, y1, x2, y2 in px; ``labels`` (n,), index into the classes, which the model's metadata
            has; ``scores`` (n,), best first.
        """
        import numpy
        from mmdet.apis import inference_detector

        image = numpy.asarray(model_input, dtype=numpy.uint8)
        # mmdet takes the channels as OpenCV gives them.
        found = inference_detector(self._model, numpy.ascontiguousarray(image[..., ::-1])).pred_instances.cpu()
        found = found[found.scores >= float((params or {}).get("score", 0.0))]
        found = found[found.scores.argsort(descending=True)]
        return {
            "boxes": found.bboxes.numpy().astype("float32"),
            "labels": found.labels.numpy().astype("int64"),
            "scores": found.scores.numpy().astype("float32"),
        }


def _load_pyfunc(path: str) -> Detector:
    """Loads a bundle; MLflow calls it with the folder."""
    return Detector(path)
