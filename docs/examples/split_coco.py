"""Splits a COCO file into ``train.json`` and ``val.json`` beside it, whole images at random."""

import argparse
import json
import random
from pathlib import Path


def main() -> None:
    """Reads the command line and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("annotations", type=Path, help="the COCO file")
    parser.add_argument("--val", type=float, default=0.25, help="share of the images to validate on (default: 0.25)")
    parser.add_argument("--group", help="text before which file names say what belongs together: '_' for PLATE7_03.jpg")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    coco = json.loads(options.annotations.read_text(encoding="utf-8"))
    groups: dict[str, list[dict]] = {}
    for image in coco["images"]:
        name = image["file_name"]
        groups.setdefault(name.partition(options.group)[0] if options.group else name, []).append(image)
    keys = sorted(groups)
    random.Random(options.seed).shuffle(keys)
    held_out = keys[: round(options.val * len(keys))]
    for name, chosen in (("train", keys[len(held_out) :]), ("val", held_out)):
        images = [image for key in chosen for image in groups[key]]
        ids = {image["id"] for image in images}
        # Some tools leave these two out.
        usual = ({"area": box["bbox"][2] * box["bbox"][3], "iscrowd": 0, **box} for box in coco["annotations"])
        boxes = [box for box in usual if box["image_id"] in ids]
        path = options.annotations.with_name(f"{name}.json")
        path.write_text(json.dumps({**coco, "images": images, "annotations": boxes}), encoding="utf-8")
        print(f"{path}: {len(images)} images, {len(boxes)} boxes")


if __name__ == "__main__":
    main()
