"""Pictures of what a trial's trained detector finds on validation images: detections, key parts, query maps.

The network is looked into by ``trainers.look`` and drawn by ``trainers.drawing``, as ``headway draw`` does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainers import faults

FOLDER = "pictures"
SCORE, FEW, OBJECTS = 0.3, 5, 12
_SIDES = (640, 800)  # px of the longer side: pictures of many trials are kept


def note(config: Mapping[str, Any], model: Any, folder: Path, images: int = 4) -> dict[str, Any]:
    """Draws pictures as ``draw`` does, and never fails a trial whose figures are there.

    Returns:
        Attributes for the trial's record: ``pictures``, file names in ``FOLDER``; or ``pictures_note``, why there are
        none.

    Raises:
        OSError: The disk is full.
    """
    try:
        return {"pictures": draw(config, model, folder, images)}
    except Exception as error:  # whatever a base's own code does with a single image
        if faults.full_disk(error) is not None:
            raise
        return {"pictures_note": f"no pictures: {type(error).__name__}: {error}"[:500]}


def draw(config: Mapping[str, Any], model: Any, folder: Path, images: int = 4) -> list[str]:
    """Draws what a detector finds on validation images, with the annotated boxes.

    Args:
        config: The trial's config.
        model: The trained detector, on its device; is in the mode it was in afterwards.
        folder: The trial's folder; pictures are written to its subfolder ``FOLDER``, in the place of earlier ones.
        images: Most images; see ``choose``.

    Returns:
        File names, ``NAME.KIND.png``, sorted.
    """
    from mmengine.registry import init_default_scope

    from trainers import drawing
    from trainers.look import look

    dataset = config["val_dataloader"]["dataset"]
    content = json.loads(Path(dataset["ann_file"]).read_text(encoding="utf-8"))
    classes = list(dataset["metainfo"]["classes"])
    known = {category["id"] for category in content["categories"] if category["name"] in classes}
    content["annotations"] = [item for item in content["annotations"] if item["category_id"] in known]
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.png"):
        old.unlink()

    init_default_scope(config.get("default_scope", "mmdet"))
    training = model.training
    model.eval()
    written: list[str] = []
    try:
        for image in choose(content, images):
            path = Path(dataset["data_prefix"]["img"]) / image["file_name"]
            seen = look(model, dataset["pipeline"], str(path), score=SCORE, few=FEW, objects=OBJECTS)
            truth = [item["bbox"] for item in content["annotations"] if item["image_id"] == image["id"]]
            pages = drawing.draw(
                drawing.open_image(path), seen, classes, name=path.name, score=SCORE, truth=truth, sides=_SIDES
            )
            written += [file.name for file in drawing.write(pages, target, f"{image['id']}-{path.stem}").values()]
    finally:
        model.train(training)
    return sorted(written)


def choose(content: Mapping[str, Any], count: int) -> Sequence[Mapping[str, Any]]:
    """Picks images of a COCO split: of each of ``count`` even stretches the one with most objects, the first of equals.

    Args:
        content: Of the annotation file.
        count: Most images; all where the split has no more.
    """
    objects = Counter(item["image_id"] for item in content["annotations"])
    split = content["images"]
    count = min(count, len(split))
    edges = [place * len(split) // count for place in range(count + 1)] if count else []
    stretches = [split[begin:end] for begin, end in pairwise(edges)]
    return [max(stretch, key=lambda image: objects[image["id"]]) for stretch in stretches]
