"""Pictures: where things are drawn to the pixel, what is seen in real networks, and that nothing is kept unasked."""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from torch import Tensor

import spaces.keyparts.modules
import spaces.modules
import spaces.querydet.modules
from spaces import patching
from spaces.base import facts
from spaces.space import build_space
from trainers import drawing, pictures
from trainers.config import load_base, read_facts, trial_config
from trainers.contract import DataRequest, TrialRequest
from trainers.detector import build_model
from trainers.look import look, normalised

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
BOX = [10.0, 20.0, 80.0, 90.0]
SIZE = (96, 96)


def seen_of(size: tuple[int, int], boxes: list[list[float]], **more: Any) -> dict[str, Any]:
    count = len(boxes)
    scores = [0.9 - 0.1 * index for index in range(count)]
    base = {"size": list(size), "bboxes": boxes, "labels": [0] * count, "scores": scores, "found": count}
    return {**base, "best": scores[0] if scores else None, "parts": None, "queries": None, **more}


def parts_of(points: list[int], confidences: list[float], activation: Any = None) -> dict[str, Any]:
    return {"points": [points], "confidences": [confidences], "size": [7, 7], "activation": activation}


def drawn(
    kind: str, size: tuple[int, int], seen: dict[str, Any], *, scale: int = 1, ground: Any = BLACK, **more: Any
) -> np.ndarray:
    """The pixels of a picture on a ground of one colour, without its title; (height, width, 3)."""
    sides = (scale * max(size), scale * max(size))
    pages = drawing.draw(Image.new("RGB", size, ground), seen, ["a", "b"], name="x.jpg", score=0.3, sides=sides, **more)
    page = np.asarray(pages[kind])
    # The title is on white, and never in the first column; the page is at least as wide as the picture.
    top = int(np.argmax((page[:, 0] != 255).any(1)))
    return page[top : top + scale * size[1], : scale * size[0]].astype(int)


# Drawing: to the pixel


@pytest.mark.parametrize(
    ("index", "size", "place"),
    [
        (0, (7, 7), (15, 25)),
        (24, (7, 7), (45, 55)),
        (48, (7, 7), (75, 85)),
        (7, (7, 7), (15, 35)),
        (5, (2, 4), (36.25, 72.5)),
    ],
)
def test_a_cells_centre(index: int, size: tuple[int, int], place: tuple[float, float]) -> None:
    assert drawing.cell_centre(BOX, index, size) == pytest.approx(place)


@pytest.mark.parametrize("scale", [1, 4])
def test_a_part_is_a_point_of_its_colour_at_its_cells_centre(scale: int) -> None:
    seen = seen_of((100, 100), [BOX], parts=parts_of([0, 24, 48], [0.5, 0.11, 0.1]))
    pixels = drawn("parts", (100, 100), seen, scale=scale)
    first, second, third = drawing.colours(3)

    def around(x: float, y: float) -> np.ndarray:
        # One pixel beside the centre, where a large point has its number.
        return pixels[round(scale * y) + 2 - (scale == 1) * 2, round(scale * x) - scale]

    assert tuple(around(15, 25)) == first
    assert tuple(around(45, 55)) == second
    assert tuple(pixels[round(scale * 85), round(scale * 75)]) == BLACK  # 0.1 is not above 0.1
    assert not (pixels == third).all(2).any()
    # Nothing of the first part's colour is outside of its cell.
    rows, columns = (pixels == first).all(2).nonzero()
    assert rows.min() > 20 * scale and rows.max() < 30 * scale
    assert columns.min() > 10 * scale and columns.max() < 20 * scale


def test_parts_in_one_cell_share_its_point() -> None:
    seen = seen_of((100, 100), [BOX], parts=parts_of([24, 24], [0.5, 0.9]))
    pixels = drawn("parts", (100, 100), seen, scale=2)
    first, second = drawing.colours(2)
    assert tuple(pixels[110, 92]) == first  # from the top clockwise
    assert tuple(pixels[110, 87]) == second


def test_heat_is_blue_for_low_and_red_for_high() -> None:
    low, middle, high = drawing.heat(np.array([0.0, 0.5, 1.0]))
    assert low.tolist() == [49, 54, 149]
    assert middle.tolist() == [255, 255, 191]
    assert high.tolist() == [165, 0, 38]
    assert drawing.heat(np.array([[0.125]])).tolist() == [[[82.5, 113.5, 179.0]]]


def test_an_activation_fills_its_box_and_nothing_else() -> None:
    parts = parts_of([0], [0.5], activation=[[[0.0, 1.0], [0.5, 0.25]]])
    pixels = drawn("activation", (100, 100), seen_of((100, 100), [BOX], parts=parts), ground=(100, 100, 100))
    grey = 0.8 * 100
    for (x, y), value in {(20, 30): 0.0, (70, 30): 1.0, (20, 80): 0.5, (70, 80): 0.25}.items():
        wanted = 0.6 * drawing.heat(np.array(value)) + 0.4 * grey
        assert pixels[y, x] == pytest.approx(wanted, abs=0.51)
    assert pixels[5, 5].tolist() == pixels[95, 50].tolist() == [grey] * 3
    # Where the two upper cells meet: at x = 45.
    assert pixels[30, 44] == pytest.approx(pixels[30, 20])
    assert pixels[30, 45] == pytest.approx(pixels[30, 70])


def test_the_best_detections_activation_is_in_front() -> None:
    boxes = [BOX, [40.0, 40.0, 100.0, 100.0]]
    parts = {"points": [[0], [0]], "confidences": [[1.0], [1.0]], "size": [7, 7], "activation": [[[0.0]], [[1.0]]]}
    pixels = drawn("activation", (100, 100), seen_of((100, 100), boxes, parts=parts), ground=(100, 100, 100))
    assert pixels[60, 60].tolist() == pixels[30, 30].tolist()
    assert pixels[95, 95].tolist() != pixels[60, 60].tolist()


def test_a_query_map_lies_over_the_cells_of_the_image() -> None:
    """A map of stride 16 under an image that was enlarged 1.25 times: cells of 12.8 px; the last ones stick out."""
    nobody = None
    rows = [[0.0, 0.15, 1.0, 0.1], [nobody, 0.575, nobody, 0.0]]
    queries = {"threshold": 0.15, "levels": {"P4": {"probabilities": rows, "cell": [12.8, 12.8]}}}
    seen = seen_of((50, 20), [], queries=queries)
    pixels = drawn("query-P4", (50, 20), seen, ground=(100, 100, 100), scale=4)

    def at(x: float, y: float) -> Any:
        return pixels[int(4 * y), int(4 * x)]

    def warm(place: float) -> Any:
        return pytest.approx(0.6 * drawing.heat(np.array(place)) + 0.4 * 100, abs=0.51)

    assert at(6, 6) == warm(0.0)
    assert at(19, 6) == warm(0.5)  # the threshold has the middle colour
    assert at(32, 6) == warm(1.0)
    assert at(45, 6) == warm(0.1 / 0.15 / 2)
    assert at(19, 16) == warm(0.75)  # half way from the threshold to 1
    assert at(6, 16).tolist() == at(32, 16).tolist() == [35] * 3  # not computed: dark
    # Cells begin at 12.8 px: pixels of four to a px have their centres at 12.625 and 12.875.
    assert pixels[24, 50] == warm(0.0)
    assert pixels[24, 51] == warm(0.5)
    # What is above the threshold has a white rim: the third cell, not the second, which is at it.
    assert (pixels[24, 103] == 255).all() and (pixels[24, 152] == 255).all()
    assert not (pixels[:, :100] == 255).all(2)[:50].any()


def test_without_a_threshold_nothing_is_outlined() -> None:
    queries = {"threshold": 0.0, "levels": {"P4": {"probabilities": [[0.9, 0.1]], "cell": [16, 16]}}}
    pixels = drawn("query-P4", (32, 16), seen_of((32, 16), [], queries=queries), ground=(100, 100, 100))
    assert not (pixels == 255).all(2).any()
    assert pixels[8, 8] == pytest.approx(0.6 * drawing.heat(np.array(0.9)) + 40, abs=0.51)


def test_a_detections_box_is_where_it_is() -> None:
    seen = seen_of((100, 100), [[20.0, 30.0, 60.0, 80.0]])
    pixels = drawn("detections", (100, 100), seen, ground=(9, 9, 9), truth=[[70, 70, 20, 20]])
    colour = drawing.colours(1)[0]
    for x, y in ((20, 55), (60, 55), (40, 80), (50, 79)):
        assert tuple(pixels[y, x]) == colour
    assert pixels[55, 40].tolist() == [9, 9, 9]
    assert pixels[82, 40].tolist() == [9, 9, 9]
    # The annotated box is dashed in black and white.
    assert {tuple(pixel) for pixel in pixels[70, 70:91]} == {BLACK, WHITE}


def test_lines_are_thin_for_small_objects() -> None:
    for side, pen in ((10, 1), (40, 2), (90, 3)):
        pixels = drawn("detections", (200, 200), seen_of((200, 200), [[50.0, 50.0, 50.0 + side, 50.0 + side]]))
        colour = drawing.colours(1)[0]
        assert sum(tuple(pixel) == colour for pixel in pixels[50 + side // 2, 45 : 50 + side // 2]) == pen


def test_pictures_of_nothing() -> None:
    image = Image.new("RGB", (40, 40))
    parts = {"points": [], "confidences": [], "size": [7, 7], "activation": []}
    pages = drawing.draw(image, seen_of((40, 40), [], parts=parts), ["a"], name="x", score=0.3)
    assert set(pages) == {"detections"}


def test_without_a_global_branch_there_is_no_activation() -> None:
    seen = seen_of((100, 100), [BOX], parts=parts_of([0], [0.5]))
    assert set(drawing.draw(Image.new("RGB", (100, 100)), seen, ["a"], name="x")) == {"detections", "parts", "objects"}


def test_another_image_than_the_detectors() -> None:
    with pytest.raises(ValueError, match=r"x has \(40, 50\) px here, but the detector read it with \(50, 40\) px"):
        drawing.draw(Image.new("RGB", (40, 50)), seen_of((50, 40), []), ["a"], name="x")


def test_colours_differ() -> None:
    assert len(set(drawing.colours(32))) == 32
    assert drawing.colours(80)[:32] == drawing.colours(32)


@pytest.mark.parametrize(("size", "scale"), [((160, 160), 6), ((640, 480), 2), ((1000, 700), 1), ((3200, 400), 0.5)])
def test_small_images_are_enlarged_by_whole_numbers(size: tuple[int, int], scale: float) -> None:
    assert drawing.zoom(size, (960, 1600)) == scale


# Looking: real networks, scaled and padded images


def detector(base: str, seed: int = 0, **families: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """A small detector with these families and random weights that give varied predictions, and its test pipeline."""
    init_default_scope("mmdet")
    config = load_base(base).model.to_dict()
    if families:
        space = build_space({name: {"always": True} for name in families}, facts(config))
        given = {f"{name}.{knob}": value for name, knobs in families.items() for knob, value in knobs.items()}
        design = space.canonicalise({name: given.get(name, knob.default) for name, knob in space.knobs.items()})
        config = patching.apply(config, design)
    torch.manual_seed(seed)
    model = MODELS.build(Config({"model": config}).model)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if "query_pred" in name:
            parameter.data = torch.zeros(1) if parameter.dim() == 1 else 3 * torch.randn(parameter.shape)
        elif name.endswith(("retina_cls.bias", "conv_cls.bias")):
            parameter.data.fill_(-2.0)
        elif "confidences" in name and parameter.dim() == 4:
            parameter.data = torch.randn(parameter.shape)
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (128, 96), "keep_ratio": True},
        {"type": "PackDetInputs", "meta_keys": ("img_path", "ori_shape", "img_shape", "scale_factor")},
    ]
    return model.eval(), pipeline


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100x70 px, which is resized to 128x90 and padded to 128x96."""
    path = tmp_path_factory.mktemp("images") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 100, 3), dtype=np.uint8)).save(path)
    return path


ASKING = [
    ("headway::retinanet_tiny", "sparse"),
    ("headway::retinanet_tiny", "crop"),
    ("headway::retinanet_tiny", "full"),
    ("headway::fcos_tiny", "full"),
    ("headway::faster_rcnn_tiny", "sparse"),
]


def asking(base: str, method: str, threshold: float = 0.5) -> tuple[Any, Any, list[dict[str, Any]]]:
    # Five sites of context give the dense value in towers of this depth.
    knobs = {"threshold": threshold, "method": method}
    model, pipeline = detector(base, querydet={**knobs, **({"context": 5} if method == "sparse" else {})})
    return model, spaces.modules.dense_head(model), pipeline


def dense_probabilities(model: Any, head: Any, inputs: Tensor) -> dict[int, Tensor]:
    with torch.no_grad():
        x = model.extract_feat(inputs)
        return {index: head.level(index, x[index])[1][:, 0].sigmoid() for index in range(1, head.start + 1)}


@pytest.mark.parametrize(("base", "method"), ASKING)
def test_queries_are_the_heads_own_probabilities(base: str, method: str) -> None:
    model, head, _ = asking(base, method)
    inputs = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    samples = [sample_of(inputs) for _ in range(2)]
    head.keep = True
    with torch.no_grad():
        head.predict(model.extract_feat(inputs), samples)
    kept, dense = head.kept, dense_probabilities(model, head, inputs)
    assert kept["threshold"] == head.threshold
    names = list(kept["queries"])
    assert names == [f"P{level}" for level in range(int(names[0][1:]), int(names[-1][1:]) - 1, -1)]
    assert [kept["strides"][name] for name in names] == [2 ** int(name[1:]) for name in names]
    assert len(names) == head.start >= 2
    asked = None
    for name, index in zip(names, range(head.start, 0, -1)):
        found = kept["queries"][name]
        known = ~found.isnan()
        if asked is None:
            assert known.all()
        else:  # the four keys of each query of the coarser level, and no other
            wide = asked.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, : found.shape[1], : found.shape[2]]
            assert torch.equal(known, wide)
        assert torch.allclose(found[known], dense[index][known], atol=1e-5)
        asked = found > head.threshold
        assert 0.02 < asked.float().mean() < 0.98  # else this would say little


def sample_of(inputs: Tensor) -> Any:
    from mmdet.structures import DetDataSample

    size = tuple(inputs.shape[2:])
    return DetDataSample(
        metainfo={"img_shape": size, "pad_shape": size, "batch_input_shape": size, "scale_factor": (1.0, 1.0)}
    )


def test_without_a_threshold_the_dense_probabilities_are_kept() -> None:
    model, head, _ = asking("headway::retinanet_tiny", "sparse", threshold=0.0)
    inputs = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    head.keep = True
    with torch.no_grad():
        head.predict(model.extract_feat(inputs), [sample_of(inputs)])
    dense = dense_probabilities(model, head, inputs)
    assert [torch.equal(found, dense[index]) for found, index in zip(head.kept["queries"].values(), (2, 1))] == [
        True
    ] * 2


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize(("base", "method"), ASKING)
def test_keeping_changes_no_bit_and_nothing_is_kept_unasked(base: str, method: str, threshold: float) -> None:
    model, head, _ = asking(base, method, threshold)
    inputs = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    queries: list[int] = []
    level = head.query_pred.register_forward_hook(lambda *_: queries.append(1))

    def predict() -> tuple[Any, int]:
        queries.clear()
        with torch.no_grad():
            return head.predict(model.extract_feat(inputs), [sample_of(inputs)])[0], len(queries)

    assert not head.keep
    plain, asked = predict()
    assert head.kept is None
    head.keep = True
    kept, _ = predict()
    level.remove()
    assert len(plain.scores) > 0
    assert torch.equal(plain.bboxes, kept.bboxes)
    assert torch.equal(plain.scores, kept.scores)
    if not threshold:
        assert asked == 0  # the dense pass asks nobody


def test_looking_scales_queries_to_the_image_and_leaves_nothing_behind(image: Path) -> None:
    model, head, pipeline = asking("headway::retinanet_tiny", "sparse")
    seen = look(model, pipeline, str(image), score=0.0)
    assert seen["size"] == [100, 70]
    # 128 / 100 and 90 / 70 times as large in the network; 96 rows of input are padding from row 90 on.
    coarse = seen["queries"]["levels"]["P4"]
    assert coarse["cell"] == pytest.approx([16 / 1.28, 16 / (90 / 70)])
    assert np.shape(coarse["probabilities"]) == (6, 8)
    assert seen["queries"]["threshold"] == head.threshold == 0.5
    assert seen["parts"] is None
    assert not head.keep
    assert head.kept is None
    with pytest.raises(FileNotFoundError):
        look(model, pipeline, str(image.with_name("none.png")))
    assert not head.keep


def test_looking_finds_what_mmdet_finds(image: Path) -> None:
    from mmdet.apis import inference_detector

    model, pipeline = detector("headway::retinanet_tiny")
    model.cfg = Config({"test_dataloader": {"dataset": {"pipeline": pipeline}}})
    wanted = inference_detector(model, str(image)).pred_instances
    scores = wanted.scores.sort(descending=True).values.tolist()
    assert len(scores) > 10
    middle = scores[5]
    seen = look(model, pipeline, str(image), score=middle)
    assert seen["scores"] == [score for score in scores if score >= middle]
    assert (seen["found"], seen["best"]) == (len(seen["scores"]), scores[0])
    assert seen["queries"] is seen["parts"] is None
    boxes = {tuple(box) for box in wanted.bboxes.tolist()}
    assert all(tuple(box) in boxes for box in seen["bboxes"])
    none = look(model, pipeline, str(image), score=1.0, few=3)
    assert (none["found"], none["best"], none["scores"]) == (0, scores[0], scores[:3])
    assert look(model, pipeline, str(image), score=1.0)["scores"] == []


@pytest.mark.parametrize("grid", [0, 3])
def test_key_parts_are_pooled_from_the_final_boxes(image: Path, grid: int) -> None:
    model, pipeline = detector("headway::faster_rcnn_tiny", keyparts={"parts": 4, "grid": grid})
    head = model.roi_head.bbox_head
    rois: list[Tensor] = []
    maps: list[Tensor] = []
    wholes: list[Tensor] = []
    model.roi_head.bbox_roi_extractor.register_forward_hook(lambda _, inputs, __: rois.append(inputs[1]))
    head.confidences.register_forward_hook(lambda _, __, out: maps.append(out))
    if grid:
        head.reduction.register_forward_hook(lambda _, __, out: wholes.append(out))
    seen = look(model, pipeline, str(image), score=0.0, objects=5)
    parts = seen["parts"]
    assert len(parts["points"]) == 5 < len(seen["bboxes"])
    # In the network's input the image is 1.28 times as wide and 90/70 times as high.
    scale = torch.tensor([1.28, 90 / 70] * 2)
    assert torch.allclose(rois[-1][:, 1:], torch.tensor(seen["bboxes"][:5]) * scale, atol=1e-3)
    assert (rois[-1][:, 0] == 0).all()
    # The cell with the largest confidence of each map, by brute force.
    found = maps[-1]
    assert parts["points"] == [[int(one.flatten().argmax()) for one in roi] for roi in found]
    assert parts["size"] == list(found.shape[2:])
    largest = found.amax((2, 3))
    wanted = (largest + 0.5).clamp(min=0) / ((largest - 0.5).clamp(min=0) + 1.1)
    assert torch.allclose(torch.tensor(parts["confidences"]), wanted, atol=1e-5)
    if grid:
        summed = wholes[-1].sum(1)
        assert np.shape(parts["activation"]) == (5, 3, 3)
        activation = torch.tensor(parts["activation"])
        assert torch.allclose(activation, normalised(summed), atol=1e-5)
        assert activation.amax((1, 2)).tolist() == [1.0] * 5
        assert activation.amin((1, 2)).tolist() == [0.0] * 5
    else:
        assert parts["activation"] is None
    assert not head.keep
    assert head.kept is None


def test_key_parts_of_no_detections(image: Path) -> None:
    model, pipeline = detector("headway::faster_rcnn_tiny", keyparts={"parts": 4})
    seen = look(model, pipeline, str(image), score=1.0)
    assert seen["parts"]["points"] == []


def test_the_last_stage_of_a_cascade_shows_its_parts(image: Path) -> None:
    config = copy.deepcopy(load_base("headway::faster_rcnn_tiny").model.to_dict())
    roi, train = config["roi_head"], config["train_cfg"]["rcnn"]
    config["type"] = "CascadeRCNN"
    head = {**roi["bbox_head"], "reg_class_agnostic": True}
    config["roi_head"] = {
        **roi, "type": "CascadeRoIHead", "num_stages": 2, "stage_loss_weights": [1, 0.5], "bbox_head": [head, head],
    }  # fmt: skip
    config["train_cfg"]["rcnn"] = [train, train]
    space = build_space({"keyparts": {"always": True}}, facts(config))
    design = space.canonicalise({name: knob.default for name, knob in space.knobs.items()})
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(Config({"model": patching.apply(config, design)}).model).eval()
    _, pipeline = detector("headway::retinanet_tiny")
    stages: list[int] = []
    for stage, box_head in enumerate(model.roi_head.bbox_head):
        box_head.register_forward_hook(lambda *_, stage=stage: stages.append(stage))
    seen = look(model, pipeline, str(image), score=0.0, objects=2)
    assert len(seen["parts"]["points"]) == 2
    assert stages == [0, 1, 1]


def test_normalised() -> None:
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[4.0, 4.0], [4.0, 4.0]]])
    assert normalised(maps).tolist() == [[[0.0, 0.5], [0.25, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]


def test_looking_needs_nothing_of_headway() -> None:
    """The file is loaded by its path where nothing of Headway can be imported."""
    tree = ast.parse(Path(sys.modules["trainers.look"].__file__ or "").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    outside = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
    assert outside == {"torch", "mmcv"}


# The pictures of a trial


@pytest.fixture(scope="module")
def trial(
    tmp_path_factory: pytest.TempPathFactory, digits_request: Callable[..., DataRequest]
) -> tuple[Config, Any, Path]:
    folder = tmp_path_factory.mktemp("trial")
    data = digits_request(folder, train=2, val=5, size=SIZE)
    request = TrialRequest(
        number=0, base="headway::retinanet_tiny", knobs={}, data=data, folder=str(folder), epochs=1, batch=1
    )
    config = trial_config(request, read_facts(data))
    return config, build_model(config, seed=0), folder


def test_pictures_of_a_trial(trial: tuple[Config, Any, Path]) -> None:
    config, model, folder = trial
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures" / "old.png").write_bytes(b"")
    assert model.training
    names = pictures.draw(config, model, folder, images=3)
    assert model.training
    assert len(names) == 3
    assert all(name.endswith(".detections.png") for name in names)
    there = {path.name: path.read_bytes() for path in (folder / "pictures").iterdir()}
    assert sorted(there) == names
    for name in names:
        with Image.open(folder / "pictures" / name) as picture:
            assert picture.width == 7 * 96
    model.eval()
    assert pictures.note(config, model, folder, images=3) == {"pictures": names}
    assert not model.training
    assert {path.name: path.read_bytes() for path in (folder / "pictures").iterdir()} == there


def test_a_drawing_that_fails_is_a_note(trial: tuple[Config, Any, Path], tmp_path: Path) -> None:
    config, model, _ = trial
    gone = copy.deepcopy(config)
    gone["val_dataloader"]["dataset"]["data_prefix"]["img"] = str(tmp_path / "gone")
    model.train()
    found = pictures.note(gone, model, tmp_path)
    assert set(found) == {"pictures_note"}
    assert found["pictures_note"].startswith("no pictures: FileNotFoundError: ")
    assert model.training
    (tmp_path / "file").write_text("")
    assert "pictures_note" in pictures.note(config, model, tmp_path / "file")


def test_even_stretches_each_give_the_image_with_most_objects() -> None:
    counts = [1, 3, 2, 0, 5, 5, 0, 0]
    content = {
        "images": [{"id": index} for index in range(8)],
        "annotations": [{"image_id": index} for index, count in enumerate(counts) for _ in range(count)],
    }
    assert [image["id"] for image in pictures.choose(content, 4)] == [1, 2, 4, 6]
    assert [image["id"] for image in pictures.choose(content, 3)] == [1, 4, 5]
    assert [image["id"] for image in pictures.choose(content, 99)] == list(range(8))
    assert pictures.choose({"images": [], "annotations": []}, 4) == []
