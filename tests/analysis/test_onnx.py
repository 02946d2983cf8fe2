"""Graphs of every family's smallest bases: written, run by onnxruntime one image at a time and three, compared."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

from analysis.bundle.graph import entry
from analysis.bundle.graph.check import Boxes, _beyond_cuts, check_graph, outcome
from analysis.bundle.graph.images import preparation
from analysis.bundle.graph.outputs import Unsupported, outputs_of
from analysis.bundle.graph.write import write_graph
from analysis.bundle.onnx_graph import excluded_by
from analysis.bundle.onnx_readme import example
from trainers.digits import write_digits
from trainers.profile import patched_base

SIZE = (128, 96)  # width and height
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "scale": SIZE, "keep_ratio": True},
    {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
]
SLIM = {"slimhead.levels": [0, 1], "slimhead.ratio": 0.3, "slimhead.mode": "nearest", "slimhead.fat": True}
DCN = {"dcn.placement": ["cls.0", "reg.1"], "dcn.version": 2}
POD = {
    "pod.mode": "fixed", "pod.scales": [["backbone.layer4.0.conv2", 1.4, 0.0], ["backbone.layer4.1.conv1", 2.5, 1.0]],
    "pod.tolerance": 0.05, "pod.round_channels": 1, "pod.zero_taps": "sum",
}  # fmt: skip
SHALLOW = {"shallow.levels": [0, 1], "shallow.layers": 1, "shallow.channels": 0.5}
DDOD = {
    "ddod.assign": True, "ddod.alpha_cls": 0.8, "ddod.alpha_reg": 0.5, "ddod.topk": 9, "ddod.reweight": "none",
}  # fmt: skip
PARTS = {
    "keyparts.parts": 4, "keyparts.grid": 5, "keyparts.order": "pool_first", "keyparts.blocks": 2,
    "keyparts.num_fcs": 1, "keyparts.losses": "both", "keyparts.loss_weight": 0.03, "keyparts.confidence": "tmr",
}  # fmt: skip
QUERY = {
    "querydet.p2": True, "querydet.start": "P4", "querydet.beta": "none", "querydet.query_weight": 10.0,
    "querydet.gamma": 1.2, "querydet.alpha": 0.25, "querydet.radius": "level", "querydet.threshold": 0.15,
    "querydet.method": "full",
}  # fmt: skip
_SCORES = ("gfl_cls", "retina_cls", "conv_cls", "atss_cls", "tood_cls", "rpn_cls", "fc_cls", "query_pred", "cls_maps")


def detector(base: str, knobs: Mapping[str, Any]) -> Any:
    """A detector with random weights whose scores differ from each other, as after training."""
    init_default_scope("mmdet")
    config = patched_base(base, dict(knobs))
    if "Pretrained" in str(config.model.backbone.get("init_cfg")):
        config.model.backbone.init_cfg = None
    config.test_dataloader = ConfigDict(dataset={"pipeline": PIPELINE})
    for module in (config.get("custom_imports") or {}).get("imports", ()):
        importlib.import_module(module)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    logging.disable(logging.INFO)
    try:
        model.init_weights()
    finally:
        logging.disable(logging.NOTSET)
    for name, values in model.named_parameters():
        parts = name.split(".")
        if parts[-2] in _SCORES:
            torch.nn.init.normal_(values, std=0.05) if parts[-1] == "weight" else torch.nn.init.constant_(values, -1.0)
        elif parts[-2] == "conv_offset":
            torch.nn.init.normal_(values, std=0.05)
    model.cfg, model.dataset_meta = config, {"classes": [f"c{index}" for index in range(10)]}
    return model.eval()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four images: two that fill the frame, a flat one and a high one."""
    folder = tmp_path_factory.mktemp("images")
    digits = write_digits(folder, train=4, val=1, size=(256, 192))
    paths = sorted(Path(digits.train_images).iterdir())
    for path, sides in zip(paths[2:], ((256, 120), (150, 192)), strict=True):
        cv2.imwrite(str(path), cv2.imread(str(path))[: sides[1], : sides[0]])
    return [str(path) for path in paths]


def written(model: Any, kind: str, images: list[str], folder: Path) -> tuple[dict[str, Any], Path]:
    path = folder / "model.onnx"
    found = entry.write(model, str(path), kind, images, portrait=False)
    assert "reason" not in found, found
    assert found["check"]["batches"] == [1, 3]
    assert found["check"]["ok"] and found["check"]["largest"] <= 1
    assert {value["shape"][0] for value in (*found["inputs"], *found["outputs"])} == {"batch"}
    return found, path


@pytest.mark.parametrize(
    ("base", "knobs", "kind"),
    [
        ("gfl_nano", {**SLIM, **DCN}, "raw"),
        ("gfl_nano", {**POD, **SHALLOW}, "raw"),
        ("gfl_nano", {**SLIM, "slimhead.mode": "maxpool", "slimhead.fat": False}, "nms"),
        ("retinanet_tiny", QUERY, "nms"),
        ("faster_rcnn_tiny", PARTS, "nms"),
        ("cascade_rcnn_tiny", {}, "raw"),
        ("rfcn_tiny", {}, "raw"),
        pytest.param("gfl_nano", {}, "nms", marks=pytest.mark.slow),
        pytest.param("gfl_nano", {**DCN, "dcn.version": 1}, "nms", marks=pytest.mark.slow),
        pytest.param("gfl_tiny", {**SLIM, "slimhead.mode": "bilinear"}, "nms", marks=pytest.mark.slow),
        pytest.param("atss_tiny", {}, "nms", marks=pytest.mark.slow),
        pytest.param("fcos_tiny", {}, "nms", marks=pytest.mark.slow),
        pytest.param("fcos_tiny", {**QUERY, "querydet.method": "crop"}, "raw", marks=pytest.mark.slow),
        pytest.param("retinanet_tiny", DDOD, "nms", marks=pytest.mark.slow),
        pytest.param("faster_rcnn_tiny", {}, "raw", marks=pytest.mark.slow),
        pytest.param("faster_rcnn_tiny", SLIM, "nms", marks=pytest.mark.slow),
        pytest.param("faster_rcnn_c4_tiny", {}, "nms", marks=pytest.mark.slow),
        pytest.param("faster_rcnn_c4_tiny", PARTS, "raw", marks=pytest.mark.slow),
        pytest.param("cascade_rcnn_tiny", PARTS, "nms", marks=pytest.mark.slow),
        pytest.param("rfcn_tiny", PARTS, "nms", marks=pytest.mark.slow),
        *(
            pytest.param(f"mmdet::{name}/{name}_r50_fpn_1x_coco.py", knobs, kind, marks=pytest.mark.slow)
            for name, knobs, kind in (
                ("tood", {**SLIM, "slimhead.levels": [0]}, "raw"),
                ("tood", {}, "nms"),
                ("vfnet", {**SLIM, "slimhead.levels": [0]}, "nms"),
                ("paa", {}, "raw"),
            )
        ),
    ],
)
def test_graph_equals_pytorch(base: str, knobs: dict[str, Any], kind: str, images: list[str], tmp_path: Path) -> None:
    model = detector(base if "::" in base else f"headway::{base}", knobs)
    found, path = written(model, kind, images, tmp_path)
    onnx.checker.check_model(str(path))
    names = [value["name"] for value in found["outputs"]]
    if kind == "nms":
        assert names[:4] == ["boxes", "scores", "labels", "count"]
    elif "rcnn" in base or "rfcn" in base:
        assert names[:4] == ["rois", "roi_scores", "cls_score", "bbox_pred"]
    else:
        finest = "p3" if "::" in base else "p1" if "querydet.p2" in knobs else "p2"
        assert names[:2] == [f"cls_score_{finest}", f"bbox_pred_{finest}"]
    deforms = any(name.startswith("dcn") for name in knobs) or any(word in base for word in ("tood", "vfnet"))
    assert ("DeformConv" in found["operators"]) == deforms
    assert {node.domain for node in onnx.load(str(path)).graph.node} == {""}
    # A word of this machine in it would be one of a stack trace.
    assert b"/" + Path(__file__).parts[1].encode() + b"/" not in path.read_bytes()


def test_the_programs_of_the_readme_find_what_mmdet_finds(images: list[str], tmp_path: Path) -> None:
    """From image files: what mmdet's own pipeline and ``predict`` give on images that fill the frame."""
    from mmdet.apis import inference_detector

    model = detector("headway::retinanet_tiny", {})
    for kind in ("nms", "raw"):
        found, path = written(model, kind, images, tmp_path)
        program = example(found, ["one", "two", *"3456789", "ten"])
        assert program.count("PATH/TO/THIS/FOLDER/model.onnx") == program.count("PATH/TO/AN/IMAGE.jpg") == 1
        program = program.replace("PATH/TO/THIS/FOLDER/model.onnx", str(path)).replace(
            "PATH/TO/AN/IMAGE.jpg", images[0]
        )
        space: dict[str, Any] = {"print": lambda *_: None}
        exec(program, space)
        tensor, size, _ = preparation(model, portrait=False)(images[0])
        assert size == (96, 128)
        np.testing.assert_allclose(space["images"][0], tensor, atol=1e-6)
        if kind == "nms":
            count = int(space["found"]["count"][0])
            boxes, scores = (space["found"][name][0, :count] for name in ("boxes", "scores"))
            told = inference_detector(model, images[0]).pred_instances
            assert count == len(told) > 5
            np.testing.assert_allclose(scores, told.scores.numpy(), atol=1e-4)
            np.testing.assert_allclose(boxes / space["scale"], told.bboxes.numpy(), atol=1e-2)
            assert space["found"]["labels"][0, :count].tolist() == told.labels.tolist()
            assert set(space["found"]["labels"][0, count:].tolist()) <= {-1}
        else:
            with torch.no_grad():
                maps = model.bbox_head(model.extract_feat(torch.from_numpy(space["images"])))
            np.testing.assert_allclose(space["found"]["cls_score_p3"], maps[0][1].numpy(), atol=1e-3)


def test_a_wrong_graph_is_refused(images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of another network: no file is left, and a comparison later says so as well."""
    model, path = detector("headway::gfl_nano", {}), tmp_path / "model.onnx"
    prepare = preparation(model, portrait=False)
    write_graph(outputs_of(model, "raw", prepare.canvas).eval(), str(path), {})
    with torch.no_grad():
        model.bbox_head.gfl_cls.bias += 0.01
    check = entry.compare(model, str(path), "raw", images, portrait=False)["check"]
    assert not check["ok"]
    assert check["difference"]["cls_score_p2"] == pytest.approx(0.01, rel=0.01)
    assert check["difference"]["bbox_pred_p2"] < 1e-3
    assert check["largest"] == pytest.approx(10, rel=0.01)

    def write_another(network: Any, target: str, about: Any) -> dict[str, Any]:
        with torch.no_grad():
            network.head.gfl_cls.bias -= 1
            made = write_graph(network, target, about)
            network.head.gfl_cls.bias += 1
        return made

    monkeypatch.setattr(entry, "write_graph", write_another)
    found = entry.write(model, str(path), "raw", images, portrait=False)
    assert found["reason"].startswith("onnxruntime's outputs differ from PyTorch's on ")
    assert not path.exists()


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_packages(missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = entry.find_spec
    monkeypatch.setattr(entry, "find_spec", lambda name: None if name == missing else real(name))
    found = entry.write(None, str(tmp_path / "model.onnx"), "raw", [], portrait=False)
    assert found == {"reason": f"{missing} must be installed (pip install 'headway[onnx]')"}
    if missing == "onnxruntime":
        assert "is not installed" in entry.compare(None, "", "raw", [], portrait=False)["reason"]


def test_what_has_no_graph(images: list[str], tmp_path: Path) -> None:
    model = detector("headway::retinanet_tiny", {**QUERY, "querydet.method": "sparse", "querydet.context": 2})
    found = entry.write(model, str(tmp_path / "model.onnx"), "raw", images, portrait=False)
    assert found["reason"].startswith("querydet.method sparse computes only the sites")
    model = detector("headway::gfl_nano", {})
    model.bbox_head.test_cfg.nms = ConfigDict(type="soft_nms", iou_threshold=0.5)
    with pytest.raises(Unsupported, match="soft_nms"):
        outputs_of(model, "nms", (96, 128))
    assert outputs_of(model, "raw", (96, 128)).inputs == ("images",)
    model.cfg.test_dataloader.dataset.pipeline.insert(2, {"type": "Pad", "size_divisor": 64})
    with pytest.raises(Unsupported, match="prepared by Resize, Pad"):
        preparation(model, portrait=False)


def test_knobs_that_forbid_it() -> None:
    assert excluded_by({**SLIM, **DCN, **PARTS, **SHALLOW}) == {}
    assert excluded_by(QUERY) == {}
    [entry_of] = excluded_by({**QUERY, "querydet.method": "sparse"})["onnx"]
    assert (entry_of["family"], entry_of["knobs"]) == ("querydet", {"querydet.method": "sparse"})
    assert excluded_by({"pod.mode": "decompose"}) == {}


def boxes(*rows: tuple[float, float, int]) -> Boxes:
    """Squares of 10 px at (x, 0) with a score and a label."""
    table = torch.tensor([[left, 0.0, left + 10, 10.0] for left, _, _ in rows]).reshape(-1, 4)
    return Boxes(table, torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows]))


def test_what_counts_as_an_outcome_of_suppression() -> None:
    """At an IoU of 0.5, squares of 10 px suppress each other below 3.33 px."""
    nms, nothing = {"iou_threshold": 0.5}, float("inf")
    candidates = boxes((0, 0.9, 0), (2, 0.8, 0), (2, 0.8, 1), (20, 0.3, 0))

    def found(*rows: tuple[float, float, int], most: int = 100) -> tuple[float, float]:
        return outcome(boxes(*rows), candidates, candidates, nms, most, 0.05)

    whole = ((0, 0.9, 0), (2, 0.8, 1), (20, 0.3, 0))
    assert found(*whole) == (0.0, 0.0)
    assert found((0.005, 0.9, 0), (2, 0.80005, 1), (20, 0.3, 0)) == pytest.approx((0.005, 0.00005), rel=0.01)
    assert found(*whole[:2])[0] == nothing  # one is missing
    assert found(*whole[:2], most=2) == (0.0, 0.0)  # there was no room for it
    assert found(*whole, (2, 0.8, 0))[0] == nothing  # two overlap
    assert found((2, 0.8, 0), *whole[1:])[0] == nothing  # the better of two is missing
    assert found(*whole, (40, 0.5, 0))[0] == nothing  # it is no candidate
    assert found((0.02, 0.9, 0), *whole[1:])[0] == nothing
    assert found((0, 0.9002, 0), *whole[1:])[0] == nothing
    # Of two with one score, either may be kept.
    tied = boxes((0, 0.9, 0), (2, 0.9, 0))
    assert all(outcome(boxes(row), tied, tied, nms, 100, 0.05) == (0.0, 0.0) for row in ((0, 0.9, 0), (2, 0.9, 0)))
    none = boxes()
    assert outcome(none, none, none, nms, 100, 0.05) == (0.0, 0.0)
    assert outcome(none, tied, tied, nms, 100, 0.05)[0] == nothing


def test_check_names_the_image(images: list[str], tmp_path: Path) -> None:
    model = detector("headway::gfl_nano", {})
    prepare = preparation(model, portrait=False)
    network = outputs_of(model, "raw", prepare.canvas).eval()
    path = str(tmp_path / "model.onnx")
    write_graph(network, path, {"classes": ["é"]})
    check = check_graph(network, path, prepare, images)
    assert check["images"] == [Path(image).name for image in images]
    assert check["image"] in check["images"]
    assert check["runtime"] == onnxruntime.__version__
    stored = onnx.load(path)
    assert {entry_of.key for entry_of in stored.metadata_props} == {"classes"}
    assert stored.opset_import[0].version == 20


def test_upright_frames() -> None:
    model = detector("headway::gfl_nano", {})
    lying, upright = (preparation(model, portrait=portrait) for portrait in (False, True))
    assert (lying.frame, lying.canvas) == ((96, 128), (96, 128))
    assert (upright.frame, upright.canvas) == ((128, 96), (128, 96))


def test_the_worst_of_a_level_that_had_more_may_be_others() -> None:
    """The first level considered two of three; on the second nobody was left out."""
    possible = boxes((0, 0.9, 0), (20, 0.3, 0), (40, 0.3, 0), (60, 0.2, 1))
    candidates = boxes((0, 0.9, 0), (20, 0.3, 0), (60, 0.2, 1))
    assert _beyond_cuts(candidates, possible).scores.tolist() == pytest.approx([0.9, 0.2])
