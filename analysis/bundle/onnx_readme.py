"""What a bundle's README says of its ONNX graph, with a program that runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from analysis.bundle.onnx_graph import NAME, words

_PREPARE = """\
import cv2, numpy as np, onnxruntime

session = onnxruntime.InferenceSession("PATH/TO/THIS/FOLDER/model.onnx")
image = cv2.imread("PATH/TO/AN/IMAGE.jpg")  # blue, green, red
height, width = image.shape[:2]
{size}
x = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR){flip}
x = ((x.astype(np.float32) - np.float32({mean})) / np.float32({std})).transpose(2, 0, 1)
images = np.zeros((1, 3, {canvas[0]}, {canvas[1]}), np.float32)
images[0, :, :h, :w] = x
"""
_FED = {
    ("images",): 'outputs = session.run(None, {"images": images})',
    ("images", "sizes"): 'outputs = session.run(None, {"images": images, "sizes": np.float32([[h, w]])})',
}
_NAMED = "found = dict(zip([output.name for output in session.get_outputs()], outputs))"
_SHOWN = {
    "raw": "for name, value in found.items():\n    print(name, value.shape)",
    "nms": """\
classes = {classes}
scale = np.float32([w / width, h / height, w / width, h / height])
for box, score, label in zip(found["boxes"][0], found["scores"][0], found["labels"][0]):
    if score >= 0.3:
        print(classes[label], round(float(score), 2), [round(float(side), 1) for side in box / scale])""",
}


def readme_lines(receipt: Mapping[str, Any]) -> list[str]:
    """The lines of a bundle's README on ONNX."""
    onnx = receipt["formats"]["onnx"]
    if not onnx["available"]:
        by = ", ".join(
            f"`{name}` {_plain(value)}" for entry in onnx["excluded_by"] for name, value in entry["knobs"].items()
        )
        return ["## ONNX", "", f"There is no `{NAME}`{f', because of {by}' if by else ''}: {onnx['reason']}.", ""]
    before = onnx["preprocessing"]
    (high, wide), frame = before["canvas"], before["frame"]
    ratio = "keeping their ratio of sides, " if before["keep_ratio"] else ""
    turned = (
        " An image that stands the other way becomes smaller than in mmdet, which turns the frame with the image."
        if before["keep_ratio"] and frame[0] != frame[1]
        else ""
    )
    names = [value["name"] for value in onnx["outputs"]]
    meaning = _MEANING["regions" if "rois" in names else onnx["kind"]]
    if any(name.startswith("query_") for name in names):
        meaning += _QUERIES
    if len(onnx["inputs"]) > 1:
        meaning += " `sizes` (batch x 2) are height and width that each image fills."
    return [
        "## ONNX",
        "",
        f"`{NAME}` (opset {onnx['opset']}) takes any number of images at once, each of {high} x {wide} px (height x "
        f"width): resized into {frame[0]} x {frame[1]}, {ratio}normalised, and filled up with zeros at the right and "
        f"below.{turned} It needs onnxruntime, NumPy and something that reads images, here OpenCV:",
        "",
        "```python",
        example(onnx, receipt["classes"]),
        "```",
        "",
        meaning,
        "",
        f"Compared with PyTorch by onnxruntime {onnx['check']['runtime']}: {words(onnx['check'])}.",
        "",
        "| output | shape | type |",
        "|---|---|---|",
        *(f"| `{out['name']}` | {' x '.join(map(str, out['shape']))} | {out['type']} |" for out in onnx["outputs"]),
        "",
    ]


_MEANING = {
    "nms": "Boxes are left, top, right, bottom in px of the canvas, best first; behind `count` detections of an image, "
    "scores are 0 and labels -1.",
    "raw": "The outputs are the head's maps by level (`p3` has a stride of 8 px), named as in mmdet, not decoded or "
    "suppressed; `headway export --onnx nms` writes a graph with both.",
    "regions": "The outputs belong to the proposals of the first stage: `rois` in px of the canvas with `roi_scores` "
    "(0 or less: there is none), the box head's `cls_score` before the softmax, the background last, and `bbox_pred`, "
    "deltas to `rois`; `headway export --onnx nms` writes a graph that decodes and suppresses.",
}
_QUERIES = (
    " The maps are dense; QueryDet's cascade looks at a site of a level only where the sigmoid of `query_*` of the "
    "next coarser one is above the threshold of `config.py`."
)


def example(onnx: Mapping[str, Any], classes: list[str]) -> str:
    """The README's program, from an image file to the outputs."""
    before = onnx["preprocessing"]
    high, wide = before["frame"]
    size = f"h, w = {high}, {wide}"
    if before["keep_ratio"]:
        size = (
            f"scale = min({high} / height, {wide} / width)\nh, w = int(height * scale + 0.5), int(width * scale + 0.5)"
        )
    prepared = _PREPARE.format(
        size=size,
        flip="[:, :, ::-1]" if before["channels"] == "RGB" else "",
        mean=before["mean"],
        std=before["std"],
        canvas=before["canvas"],
    )
    fed = _FED[tuple(value["name"] for value in onnx["inputs"])]
    shown = _SHOWN[onnx["kind"]].replace("{classes}", json.dumps(classes, ensure_ascii=False))
    return prepared + "\n".join([fed, _NAMED, shown])


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).strip('"')
