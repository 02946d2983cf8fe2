"""A bundle's ``README.md``: enough to run it with plain mmdet, for someone who never heard of Headway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.bundle.onnx_readme import readme_lines
from analysis.labels import dtype_of, figure, short

CODE = """\
from mmdet.apis import inference_detector, init_detector

bundle, image = "PATH/TO/THIS/FOLDER", "PATH/TO/AN/IMAGE.jpg"
model = init_detector(f"{bundle}/config.py", f"{bundle}/weights.pth", device="cpu")
found = inference_detector(model, image).pred_instances
for box, label, score in zip(found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist()):
    if score >= 0.3:
        print(model.dataset_meta["classes"][label], round(score, 2), [round(side, 1) for side in box])
"""

_BASELINE = "- `baseline.py`: the network that the latency is compared with; only `headway verify` needs it."
_SHOWN = ("bbox_mAP", "bbox_mAP_50", "bbox_mAP_s", "latency_ms", "latency_ratio", "gmacs", "params_m")


def make_readme(receipt: Mapping[str, Any], detector: str, package: str) -> str:
    """Makes the text.

    Args:
        receipt: The bundle's receipt.
        detector: Type of the detector.
        package: Name of the package in ``heads/``; empty where there is none.
    """
    versions = receipt["environment"]["exported"]["versions"]
    metrics = {name: entry["value"] for name, entry in receipt["metrics"].items() if entry["value"] is not None}
    figures = [figure(name, metrics[name]) for name in _SHOWN if name in metrics]
    size, data = receipt["image_size"], receipt["data"]
    name = receipt["study"].get("name", "a study")
    packages = receipt["environment"]["exported"].get("packages", {})
    tried = ("python", "torch", "mmcv", "mmengine", "mmdet")
    wheels = ", ".join(f"{packages.get(key, key)} {versions[key]}" for key in tried if key in versions)
    needs = ", ".join(receipt["needs"])
    code = (
        f"- `heads/{package}/`: the network code that mmdet does not have; `config.py` finds it by itself.\n"
        if package
        else ""
    )
    lines = [
        f"# {name}, trial {receipt['trial']}: {short(receipt['knobs'])}",
        "",
        f"A trained {detector} detector for {len(receipt['classes'])} classes ({_few(receipt['classes'])}), found by a "
        f"search with Headway. Picked because: {receipt['why'].rstrip('.')}.",
        "",
        *(f"- {text}" for text in figures),
        "",
        f"Accuracy is that of {data['validation_images']} validation images, resized into "
        f"{size['width']} x {size['height']} px; latency that of the machine in `receipt.json`, which has all figures.",
        "",
        "## Run it",
        "",
        f"It needs mmdet and what mmdet needs, nothing else; it was made and tried with {wheels}."
        + (f" **This base also needs these modules of its own on `PYTHONPATH`: {needs}.**" if needs else ""),
        "",
        "```python",
        CODE.rstrip(),
        "```",
        "",
        'Boxes are x1, y1, x2, y2 in px of the image. On a GPU: `device="cuda:0"`. For folders of images and drawn '
        'results, mmdet\'s `DetInferencer(model=f"{bundle}/config.py", weights=f"{bundle}/weights.pth")` takes the '
        "same two files.",
        "",
        *_precision(dtype_of(receipt["study"])),
        *readme_lines(receipt),
        "## Put it elsewhere",
        "",
        "Copy or move the whole folder; nothing in it knows where it lies, and the working folder does not matter. "
        + (
            "Several bundles can be loaded in one process: names of modules and classes end with a digest of the code. "
            f"A config that mmengine wrote out (`Config.dump`) has lost the way to `heads/`: put that folder on "
            f"`PYTHONPATH` for it, so that `{package}` can be imported."
            if package
            else "It is an unchanged mmdet architecture, so there is no code to take along."
        ),
        "",
        "## Measure it again",
        "",
        "With Headway, in a process in which Headway's own code cannot be imported:",
        "",
        "    headway verify PATH/TO/THIS/FOLDER --annotations VAL.json --images IMAGES/",
        "",
        "Without it, with `tools/test.py` of mmdet's repository:",
        "",
        "    python tools/test.py config.py weights.pth --work-dir /tmp/test --cfg-options \\",
        "      test_dataloader.dataset.data_root= test_dataloader.dataset.ann_file=VAL.json \\",
        "      test_dataloader.dataset.data_prefix.img=IMAGES/ test_evaluator.ann_file=VAL.json",
        "",
        "## What is here",
        "",
        "- `config.py`: the mmdet config, flat. `weights.pth`: weights and class names, no optimizer; loads with "
        "`torch.load(..., weights_only=True)`.",
        f"{code}- `receipt.json`: the design, all figures with units, versions, what identifies the data, and the "
        "SHA-256 of every file.",
        "- `detections/`: detections on validation images.",
        *([_BASELINE] if (receipt.get("latency") or {}).get("baseline") else []),
        *(["- `model.onnx`: the network as a graph."] if receipt["formats"]["onnx"]["available"] else []),
        "",
    ]
    return "\n".join(lines)


def _precision(dtype: str) -> list[str]:
    """What to know of a detector that predicts in another type than it was trained in."""
    if dtype == "float32":
        return []
    return [
        f"It predicts in {dtype} (torch's autocast; boxes are decoded in float32), as its accuracy and latency were "
        f"measured: `dtype='{dtype}'` in `config.py`, which `--cfg-options model.dtype=float32` turns off. The weights "
        "are float32, and so is an ONNX graph, whose runtime decides for itself.",
        "",
    ]


def _few(classes: list[str]) -> str:
    return ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
