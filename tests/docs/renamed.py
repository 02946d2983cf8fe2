"""A data set of blood cells as a stranger would bring it: one COCO file, other file names, ids, classes and order.

    python tests/docs/renamed.py SOURCE OUT

SOURCE holds ``train.json``, ``val.json``, ``test.json`` and ``images/`` in COCO format. OUT gets ``annotations.json``
and ``photos/``, in folders by day. ``area`` and ``iscrowd`` are left out, as some labelling tools do.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

NAMES = {"WBC": "leukocyte", "RBC": "erythrocyte", "Platelets": "thrombocyte"}
DAYS = ("monday", "tuesday", "wednesday")


def make_stranger(source: Path, out: Path, seed: int = 0, most: int | None = None) -> None:
    """Writes the copy; the images of all splits are in it, in another order, or ``most`` of them."""
    draw = random.Random(seed)
    splits = [json.loads((source / f"{name}.json").read_text(encoding="utf-8")) for name in ("train", "val", "test")]
    found = [(number, image) for number, split in enumerate(splits) for image in split["images"]]
    draw.shuffle(found)
    found = found[:most]
    # Ids begin anywhere and have gaps; classes stand in another order than before.
    classes = ["Platelets", "WBC", "RBC"]
    categories = {name: 5 + 7 * index for index, name in enumerate(classes)}
    images, annotations = [], []
    new_ids: dict[tuple[int, int], int] = {}
    for index, (number, image) in enumerate(found):
        name = f"{DAYS[index % len(DAYS)]}/slide_{index // len(DAYS):03d}.jpg"
        (out / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "images" / image["file_name"], out / "photos" / name)
        new_ids[number, image["id"]] = 9000 - 3 * index
        images.append({"id": 9000 - 3 * index, "file_name": name, "width": image["width"], "height": image["height"]})
    for number, split in enumerate(splits):
        labels = {category["id"]: category["name"] for category in split["categories"]}
        annotations += [
            {
                "image_id": new_ids[number, box["image_id"]],
                "category_id": categories[labels[box["category_id"]]],
                "bbox": box["bbox"],
            }
            for box in split["annotations"]
            if (number, box["image_id"]) in new_ids
        ]
    draw.shuffle(annotations)
    annotations = [{"id": 17 + 2 * index, **box} for index, box in enumerate(annotations)]
    listed = [{"id": number, "name": NAMES[name], "supercategory": "cell"} for name, number in categories.items()]
    coco = {"info": {"description": "made by a labelling tool"}, "images": images, "annotations": annotations}
    (out / "annotations.json").write_text(json.dumps({**coco, "categories": listed}), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    make_stranger(options.source, options.out)
