"""The evaluator of a trial's validations gives pycocotools' figures, with which a bundle is verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainers.config import FIGURES
from trainers.loop import quiet

CLASSES = ("a", "b", "c")


def annotations(path: Path, rng: np.random.Generator, largest: float) -> dict[str, Any]:
    """Twelve images, one of them empty, with objects of all sizes up to ``largest`` px, some of them crowds."""
    objects = []
    for image in range(11):
        for _ in range(rng.integers(1, 9)):
            w, h = np.exp(rng.uniform(2, np.log(largest), 2))
            x, y = rng.uniform(0, 300, 2)
            objects.append({
                "id": len(objects) + 1, "image_id": image, "category_id": int(rng.integers(1, 4)),
                "bbox": [x, y, w, h], "area": w * h, "iscrowd": int(rng.random() < 0.1),
            })  # fmt: skip
    images = [{"id": image, "file_name": f"{image}.png", "width": 400, "height": 400} for image in range(12)]
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
    found = {"images": images, "annotations": objects, "categories": categories}
    path.write_text(json.dumps(found))
    return found


def figures(kind: str, path: Path, content: dict[str, Any], seed: int, share: float) -> dict[str, float]:
    """What an evaluator says of detections around a share of the objects, of which one in five has another class."""
    import mmdet.evaluation  # noqa: F401  (registers the metrics)
    from mmdet.registry import METRICS

    config = {"type": kind, "ann_file": str(path), "metric": "bbox", "metric_items": list(FIGURES)}
    metric = METRICS.build({**config, "format_only": False})
    metric.dataset_meta = {"classes": CLASSES}
    rng = np.random.default_rng(seed)
    for image in content["images"]:
        boxes, scores, labels = [], [], []
        for one in content["annotations"]:
            if one["image_id"] != image["id"] or rng.random() > share:
                continue
            x, y, w, h = one["bbox"]
            for _ in range(rng.integers(1, 4)):
                left, top, right, bottom = rng.normal(0, 0.1, 4) * [w, h, w, h]
                boxes.append([x + left, y + top, x + w + right, y + h + bottom])
                scores.append(round(float(rng.random()), 1))  # equal scores keep their order
                labels.append(one["category_id"] - 1 if rng.random() < 0.8 else int(rng.integers(3)))
        found = {
            "bboxes": torch.tensor(np.array(boxes, np.float32).reshape(-1, 4)),
            "scores": torch.tensor(scores),
            "labels": torch.tensor(labels, dtype=torch.long),
        }
        metric.process({}, [{"pred_instances": found, "img_id": image["id"], "ori_shape": (400, 400)}])
    return metric.evaluate(len(content["images"]))


@pytest.mark.parametrize(("largest", "share"), [(300, 1), (300, 0.3), (40, 0.8), (300, 0)])
def test_the_figures_are_those_of_pycocotools(tmp_path, largest, share):
    quiet()
    for seed in range(3):
        content = annotations(tmp_path / "val.json", np.random.default_rng(seed), largest)
        ours, theirs = (
            figures(kind, tmp_path / "val.json", content, seed, share) for kind in ("FasterCocoMetric", "CocoMetric")
        )
        assert ours == theirs
        assert bool(ours) == bool(share)
        if share:
            assert 0 < ours["coco/bbox_mAP"] < 1
            assert (ours["coco/bbox_mAP_l"] == -1) == (largest == 40)
