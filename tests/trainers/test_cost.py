"""Costs against PAPERS.md, which computed them by hand, at 80 classes and 800x1344."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
from mmdet.models import data_preprocessors  # noqa: F401  registers all of mmdet's models
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import nn
from torch.nn import functional as F  # noqa: N812

from spaces import patching
from spaces.base import dense_part, facts
from spaces.errors import HeadwayError, UserError
from spaces.space import full_space
from trainers.config import load_base, plain, set_classes
from trainers.cost import Cost, Tally, count, count_predict

SIZE = (800, 1344)
SITES = {"P3": 16_800, "P4": 4_200, "P5": 1_050, "P6": 273, "P7": 77}
GFL = "gfl/gfl_r50_fpn_1x_coco.py"
P3_HALF = {"slimhead.levels": [0], "slimhead.ratio": 0.5}
TWO_DCN = {"dcn.placement": [0, 1]}


def build(path: str, design: dict[str, Any] | None = None, small: bool = False, **head: Any) -> nn.Module:
    """Builds a detector of mmdet; ``small`` gives it a ResNet-18, for checks of the head alone."""
    model = Config.fromfile(str(Path(mmdet.__file__).parent / ".mim" / "configs" / path)).model
    model.pop("data_preprocessor", None)
    if small:
        model.backbone.depth, model.neck.in_channels = 18, [64, 128, 256, 512]
    if design or head:
        plain = model.to_dict()
        plain[dense_part(plain)].update(head)
        canonical = full_space(facts(plain)).canonicalise(design or {})
        for module in patching.imports(canonical):
            importlib.import_module(module)
        model = Config({"model": patching.apply(plain, canonical)}).model
    return MODELS.build(model)


def own(name: str, classes: int, design: dict[str, Any] | None = None) -> nn.Module:
    """Builds one of our own bases."""
    base = load_base(f"headway::{name}")
    model = plain(base["model"])
    model.pop("data_preprocessor", None)
    set_classes(model, classes)
    canonical = full_space(facts(model)).canonicalise(design or {})
    for module in (*base.custom_imports["imports"], *patching.imports(canonical)):
        importlib.import_module(module)
    return MODELS.build(Config({"model": patching.apply(model, canonical)}).model)


def costs(path: str, design: dict[str, Any] | None = None) -> Cost:
    return count(build(path, design), SIZE)


@pytest.fixture(scope="module")
def gfl() -> Cost:
    return costs(GFL)


def giga(value: float) -> float:
    return round(value / 1e9, 2)


def test_gfl(gfl: Cost) -> None:
    assert giga(gfl.macs) == 217.98
    assert giga(gfl.macs_parts["backbone"]) == 87.58
    assert giga(gfl.macs_parts["head"]) == 113.33
    assert sum(gfl.macs_parts.values()) == gfl.macs
    assert round(100 * gfl.macs_parts["head"] / gfl.macs, 2) == 51.99
    assert gfl.params == 32_440_537
    assert gfl.params_parts == {"backbone": 23_508_032, "neck": 3_868_672, "head": 5_063_833}
    assert round(100 * gfl.params_parts["head"] / gfl.params, 2) == 15.61


def test_gfl_levels(gfl: Cost) -> None:
    assert gfl.macs_levels == {level: 5_059_584 * sites for level, sites in SITES.items()}
    assert sum(gfl.macs_levels.values()) == gfl.macs_parts["head"]
    shares = [round(100 * macs / gfl.macs_parts["head"], 2) for macs in gfl.macs_levels.values()]
    assert shares == [75.00, 18.75, 4.69, 1.22, 0.34]


@pytest.mark.parametrize(("ratio", "head"), [(1.0, 113.33), (0.8, 84.65), (0.5, 53.88)])
def test_slim_p3(gfl: Cost, ratio: float, head: float) -> None:
    slim = costs(GFL, {"slimhead.levels": "K3", "slimhead.ratio": ratio})
    assert giga(slim.macs_parts["head"]) == head
    assert slim.params == gfl.params
    for part in ("backbone", "neck"):
        assert slim.macs_parts[part] == gfl.macs_parts[part]
    for level in ("P4", "P5", "P6", "P7"):
        assert slim.macs_levels[level] == gfl.macs_levels[level]


def test_slim_p3_half(gfl: Cost) -> None:
    slim = costs(GFL, P3_HALF)
    assert round(100 * slim.macs_levels["P3"] / gfl.macs_levels["P3"], 2) == 30.05
    assert round(100 * slim.macs / gfl.macs, 1) == 72.7
    assert slim.activations < gfl.activations


@pytest.mark.parametrize("level", range(5))
def test_each_level_is_put_down_to_itself(gfl: Cost, level: int) -> None:
    slim = costs(GFL, {"slimhead.levels": [level], "slimhead.ratio": 0.5})
    changed = {name for name, macs in slim.macs_levels.items() if macs != gfl.macs_levels[name]}
    assert changed == {f"P{level + 3}"}


@pytest.mark.parametrize("element", ["cls.0", "reg.3"])
def test_one_deformable_layer(gfl: Cost, element: str) -> None:
    deformable = costs(GFL, {"dcn.placement": [element]})
    assert deformable.params - gfl.params == 62_235
    added = {level: deformable.macs_levels[level] - gfl.macs_levels[level] for level in SITES}
    assert added == {level: 62_208 * sites for level, sites in SITES.items()}


def test_two_deformable_layers_a_branch() -> None:
    assert giga(costs(GFL, TWO_DCN).macs_parts["head"]) == 118.91
    assert giga(costs(GFL, {**TWO_DCN, **P3_HALF}).macs_parts["head"]) == 56.32


def test_deformable_layer_without_a_mask(gfl: Cost) -> None:
    """DDOD's check 5: version 1 adds 41,490 parameters and 82,944 / 2 multiply-adds a site."""
    deformable = costs(GFL, {"dcn.placement": ["cls.0"], "dcn.version": 1})
    assert deformable.params - gfl.params == 41_490
    assert deformable.macs_levels["P3"] - gfl.macs_levels["P3"] == 41_472 * SITES["P3"]


def test_other_dense_heads() -> None:
    """DDOD's check 5 and QueryDet's checks 3 and 5."""
    atss = costs("atss/atss_r50_fpn_1x_coco.py")
    ddod = costs("ddod/ddod_r50_fpn_1x_coco.py")
    assert (atss.params_parts["head"], ddod.params_parts["head"]) == (4_918_618, 5_001_598)
    assert ddod.macs_parts["head"] - atss.macs_parts["head"] == 82_944 * sum(SITES.values())
    retina = costs("retinanet/retinanet_r50_fpn_1x_coco.py")
    assert round(retina.macs / 1e9, 1) == 250.5
    assert retina.params_parts["head"] == 6_463_220
    assert retina.macs_levels["P3"] == 6_460_416 * SITES["P3"]
    assert round(100 * retina.macs_levels["P3"] / retina.macs, 1) == 43.3
    fcos = costs("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py")
    assert list(fcos.macs_levels) == list(SITES)


def test_rpn() -> None:
    """SlimHead's check 5."""
    rpn = costs("rpn/rpn_r50_fpn_1x_coco.py")
    assert giga(rpn.macs_parts["head"]) == 53.15
    assert list(rpn.macs_levels) == ["P2", "P3", "P4", "P5", "P6"]


@pytest.mark.parametrize(
    ("path", "params", "macs"),
    [
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", 14_306_705, 1000 * (12_544 * 1024 + 1024 * 1024 + 1024 * 401)),
        (
            "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
            41_948_415,
            3000 * (12_544 * 1024 + 1024 * 1024 + 1024 * 85),
        ),
    ],
)
def test_two_stages(path: str, params: int, macs: int) -> None:
    cost = costs(path)
    assert cost.params_parts["roi_head"] == params
    assert cost.macs_parts["roi_head"] == macs
    assert giga(cost.macs_parts["rpn"]) == 53.15
    assert sum(cost.macs_levels.values()) == cost.macs_parts["rpn"]
    assert cost.to_metrics()["head_gmacs"] == pytest.approx(cost.macs_parts["rpn"] / 1e9 + macs / 1e9)


def test_c4() -> None:
    """The key-part sheet's res5 head, which is shared over the proposals."""
    cost = costs("faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py")
    assert cost.params_parts["roi_head"] == 15_786_385


@pytest.mark.parametrize("classes", [20, 80])
def test_rfcn(classes: int) -> None:
    """The whole head is convolutions on the map of stride 16, whatever the number of RoIs."""
    cost = count(own("rfcn_r50", classes), SIZE)
    assert cost.params_parts["roi_head"] == 1024 * 2049 + 49 * (classes + 9) * 1025
    assert cost.macs_parts["roi_head"] == SITES["P4"] * (2048 * 1024 + 1024 * 49 * (classes + 9))
    assert cost.macs_levels == {"P4": cost.macs_parts["rpn"]}
    assert cost.macs_parts["rpn"] == SITES["P4"] * (9 * 2048 * 512 + 512 * 15 * 5)


def test_key_parts_on_rfcn() -> None:
    """Convolutions on the map are counted once, those on its RoIs a thousand times."""
    design = {"keyparts.grid": 3, "keyparts.parts": 16, "keyparts.blocks": 2, "keyparts.num_fcs": 0}
    cost = count(own("rfcn_r50", 20, design), SIZE)
    blocks = 2 * 49 * (32 * 64 * 9 + 32 * 256)
    features = 16 * (256 + 49) + 64 * 9
    each = blocks + 49 * 256 * 16 + 9 * 256 * 64 + features * (21 + 4)
    assert cost.macs_parts["roi_head"] == SITES["P4"] * 2048 * 256 + 1000 * each


# One RoI of 14x14 in a mask head: four 3x3, the deconvolution to 28x28, the prediction of 80 classes.
MASK = 4 * 196 * 589_824 + 196 * 4 * 256 * 256 + 784 * 256 * 80


@pytest.mark.parametrize(
    ("path", "params", "macs"),
    [
        # The mask head: four 3x3 of 590,080 parameters, a deconvolution, the prediction.
        (
            "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
            14_306_705 + 4 * 590_080 + (256 * 4 + 1) * 256 + 257 * 80,
            1000 * (12_544 * 1024 + 1024 * 1024 + 1024 * 401) + 100 * MASK,
        ),
        (
            "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
            41_948_415 + 3 * (4 * 590_080 + (256 * 4 + 1) * 256 + 257 * 80),
            3000 * (12_544 * 1024 + 1024 * 1024 + 1024 * 85) + 300 * MASK,
        ),
    ],
)
def test_masks_of_regions(path: str, params: int, macs: int) -> None:
    cost = costs(path)
    assert cost.params_parts["roi_head"] == params
    assert cost.macs_parts["roi_head"] == macs


@pytest.mark.parametrize(
    ("path", "channels", "controller", "dynamic"),
    [
        # Dynamic convolutions: 8 (16) channels and two coordinates to 8 (16), again, then to one map.
        ("condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py", 8, 169, 10 * 8 + 8 * 8 + 8),
        ("boxinst/boxinst_r50_fpn_ms-90k_coco.py", 16, 593, 18 * 16 + 16 * 16 + 16),
    ],
)
def test_dynamic_masks(path: str, channels: int, controller: int, dynamic: int) -> None:
    cost = costs(path)
    feature = 256 * 9 * 128 * (SITES["P3"] + SITES["P4"] + SITES["P5"])
    feature += (4 * 128 * 9 * 128 + 128 * channels) * SITES["P3"]
    assert cost.macs_parts["mask_head"] == feature + 100 * dynamic * SITES["P3"]
    # The towers and predictions of FCOS, and the 3x3 convolution that predicts the dynamic weights.
    head = (8 * 256 + 80 + 4 + 1 + controller) * 9 * 256
    assert cost.macs_levels == {level: head * sites for level, sites in SITES.items()}
    assert cost.to_metrics()["head_gmacs"] == pytest.approx(
        (head * sum(SITES.values()) + cost.macs_parts["mask_head"]) / 1e9
    )
    assert list(cost.macs_parts) == ["backbone", "neck", "head", "mask_head"]


def test_tood() -> None:
    """PAPERS.md, SlimHead: the tower has 3,538,944 of 4,720,704 multiply-adds a site."""
    head = build("tood/tood_r50_fpn_1x_coco.py").bbox_head
    tally = Tally()
    with torch.no_grad(), tally:
        x = torch.zeros(1, 256, 5, 7)
        for layer in head.inter_convs:
            x = layer(x)
    assert sum(tally.parts.values()) == 3_538_944 * 35


@pytest.mark.parametrize(
    ("path", "head", "element"),
    [
        (GFL, {}, "reg.2"),
        ("retinanet/retinanet_r50_fpn_1x_coco.py", {}, "cls.0"),
        ("tood/tood_r50_fpn_1x_coco.py", {}, "inter.3"),
        ("tood/tood_r50_fpn_1x_coco.py", {"num_dcn": 2}, "inter.2"),
        ("vfnet/vfnet_r50_fpn_1x_coco.py", {}, "cls.2"),
        ("paa/paa_r50_fpn_1x_coco.py", {}, "cls.1"),
        ("autoassign/autoassign_r50-caffe_fpn_1x_coco.py", {}, "reg.0"),
        ("ddod/ddod_r50_fpn_1x_coco.py", {}, "reg.1"),
        ("condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py", {}, "cls.3"),
        ("boxinst/boxinst_r50_fpn_ms-90k_coco.py", {}, "reg.3"),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", {}, "rpn.0"),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", {"num_convs": 2}, "rpn.1"),
    ],
)
def test_each_deformable_layer_of_version_2(path: str, head: dict[str, Any], element: str) -> None:
    """SlimHead's check 4, on every head: 62,235 parameters and 62,208 multiply-adds a site."""
    size = (256, 320)
    plain = count(build(path, small=True, **head), size)
    deformable = count(build(path, {"dcn.placement": [element]}, small=True, **head), size)
    assert deformable.params - plain.params == 62_235
    finest = 64 * 80 if "rpn" in element else 32 * 40
    added = [deformable.macs_levels[level] - macs for level, macs in plain.macs_levels.items()]
    assert added[:3] == [62_208 * finest // 4**level for level in range(3)]
    assert deformable.macs - plain.macs == sum(added)


def test_operators_that_need_data() -> None:
    """TOOD samples by offsets inside its head, which the meta device cannot do (PAPERS.md: 4,720,704 MAC/site)."""
    cost = count(build("tood/tood_r50_fpn_1x_coco.py"), (128, 160))
    sites = {"P3": 320, "P4": 80, "P5": 20, "P6": 6, "P7": 2}
    pooled = 2 * (1536 * 32 + 32 * 6)  # layer attention on the mean of each level
    assert cost.macs_levels == {level: 4_720_704 * number + pooled for level, number in sites.items()}


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("detr/detr_r50_8xb2-150e_coco.py", "must be a detector with a dense head"),
        ("htc/htc-without-semantic_r50_fpn_1x_coco.py", "mask head in its HybridTaskCascadeRoIHead"),
        ("point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py", "mask head in its PointRendRoIHead"),
        ("yolact/yolact_r50_1xb8-55e_coco.py", "YOLACTProtonet"),
    ],
)
def test_refused(path: str, why: str) -> None:
    with pytest.raises(UserError, match=f"cannot be profiled yet.*{why}|{why}.*cannot be profiled yet"):
        costs(path)


@pytest.mark.parametrize("size", [(800,), (16, 1344), (800.0, 1344), (True, 800)])
def test_wrong_size(size: Any) -> None:
    with pytest.raises(UserError, match=r"^size: "):
        count(build(GFL), size)


def test_failing_pass_names_the_detector() -> None:
    model = build("gfl/gfl_r50_fpn_1x_coco.py")
    model.neck.forward = lambda *_: 1 / 0
    with pytest.raises(HeadwayError, match=r"^cost: the forward pass of GFL at 64x96 failed: division by zero"):
        count(model, (64, 96))


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "written"),
    [
        (nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4), (2, 8, 9, 11), 2 * 30 * 12 * 2 * 9, 2 * 30 * 12),
        (nn.Conv2d(8, 8, (1, 3), dilation=2, groups=8), (1, 8, 5, 9), 25 * 8 * 3, 25 * 8),
        (nn.Conv1d(3, 5, 3), (1, 3, 10), 8 * 5 * 9, 8 * 5),
        (nn.ConvTranspose2d(12, 6, 4, stride=2, padding=1, groups=2), (1, 12, 5, 7), 35 * 12 * 3 * 16, 140 * 6),
        (nn.Linear(6, 5), (4, 7, 6), 28 * 30, 28 * 5),
        (nn.Linear(6, 5, bias=False), (6,), 30, 5),
        (lambda x: x @ x.mT, (2, 3, 4), 2 * 9 * 4, 18),
        (lambda x: torch.bmm(x, x.transpose(1, 2)), (2, 3, 4), 2 * 9 * 4, 18),
        (lambda x: torch.addmm(x, x, x), (3, 3), 27, 9),
        (lambda x: F.relu(F.max_pool2d(x, 2)) * 2 + 1, (1, 3, 4, 4), 0, 0),
        (nn.GroupNorm(2, 8), (1, 8, 4, 4), 0, 0),
    ],
)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_known_layers(layer: Any, shape: tuple[int, ...], macs: int, written: int, device: str) -> None:
    if isinstance(layer, nn.Module):
        layer = copy.deepcopy(layer).to(device)
    tally = Tally()
    with torch.no_grad(), tally:
        layer(torch.zeros(shape, device=device))
    assert sum(tally.parts.values()) == macs
    assert tally.activations == written


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_alone(training: bool) -> None:
    model = build(GFL, {**TWO_DCN, **P3_HALF}).train(training)
    calls: list[str] = []
    model.backbone.register_forward_hook(lambda *_: calls.append("called"))
    modes = {name: module.training for name, module in model.named_modules()}
    fields = {name: sorted(vars(module)) for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    for size in (SIZE, (64, 96)):
        count(model, size)
    assert torch.equal(torch.get_rng_state(), generator)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == fields
    assert list(model.state_dict()) == list(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
        assert tensor.device == state[name].device
    assert calls == []
    assert len(model.backbone._forward_hooks) == 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_json(gfl: Cost) -> None:
    document = json.loads(json.dumps(gfl.to_json()))
    assert document == {
        "macs": {"total": gfl.macs, "parts": gfl.macs_parts, "levels": gfl.macs_levels},
        "params": {"total": gfl.params, "parts": gfl.params_parts},
    }
    assert list(document["macs"]["parts"]) == ["backbone", "neck", "head"]


def test_metrics(gfl: Cost) -> None:
    metrics = gfl.to_metrics()
    assert list(metrics) == ["gmacs", "head_gmacs", "params_m", "activations_m"]
    assert metrics["gmacs"] == gfl.macs / 1e9
    assert metrics["head_gmacs"] == gfl.macs_parts["head"] / 1e9
    assert metrics["params_m"] == 32.440537


# On real images


def loader(*sizes: tuple[int, int], batch: int = 1) -> list[dict[str, Any]]:
    """Batches of ``batch`` equal images each."""
    torch.manual_seed(0)
    batches = []
    for size in sizes:
        samples = []
        for _ in range(batch):
            shapes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size)
            samples.append(DetDataSample(metainfo={**shapes, "scale_factor": (1.0, 1.0), "img_id": 0}))
        batches.append({"inputs": torch.randn(batch, 3, *size), "data_samples": samples})
    return batches


@pytest.mark.parametrize(
    ("path", "design"),
    [
        ("retinanet/retinanet_r50_fpn_1x_coco.py", {}),
        ("retinanet/retinanet_r50_fpn_1x_coco.py", {"dcn.placement": ["cls.0", "reg.3"], "slimhead.levels": [0]}),
        ("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", {"dcn.placement": ["reg.1"], "dcn.version": 1}),
        ("vfnet/vfnet_r50_fpn_1x_coco.py", {"dcn.placement": ["cls.1"]}),
    ],
)
def test_predict_is_count(path: str, design: dict[str, Any]) -> None:
    """Nothing in these depends on the image; deformable layers run for real, and are counted as well."""
    model = build(path, design, small=True)
    wanted = count(model, (128, 160)).to_metrics()
    found = count_predict(model, loader((128, 160)))
    assert found == pytest.approx({name: wanted[name] for name in ("gmacs", "head_gmacs")}, rel=1e-12)


def test_predict_counts_what_runs() -> None:
    """No box comes out of an untrained Mask R-CNN, so no mask is computed; its proposals are fewer than 1,000."""
    model = build("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", small=True)
    seen: list[int] = []
    forward = model.roi_head.bbox_head.forward
    model.roi_head.bbox_head.forward = lambda x: seen.append(len(x)) or forward(x)
    wanted = count(model, (64, 96))
    seen.clear()
    found = count_predict(model, loader((64, 96)))
    boxes = seen[0] * (12_544 * 1024 + 1024 * 1024 + 1024 * 401)
    assert 0 < seen[0] < 1000
    assert found["head_gmacs"] == pytest.approx((wanted.macs_parts["rpn"] + boxes) / 1e9)


def test_predict_of_rfcn_is_count() -> None:
    """Its proposals cost nothing: fewer than the 1,000 that are counted make no difference."""
    model = own("rfcn_tiny", 10)
    wanted = count(model, (128, 160)).to_metrics()
    found = count_predict(model, loader((128, 160)))
    assert found == pytest.approx({name: wanted[name] for name in ("gmacs", "head_gmacs")}, rel=1e-12)


def test_predict_is_a_mean_over_images() -> None:
    model = build("retinanet/retinanet_r50_fpn_1x_coco.py", small=True)
    small, large = (count_predict(model, loader(size))["gmacs"] for size in ((64, 64), (128, 96)))
    assert count_predict(model, loader((64, 64), (128, 96)))["gmacs"] == pytest.approx((small + large) / 2)
    pairs = [*loader((64, 64), batch=3), *loader((128, 96), batch=1)]
    assert count_predict(model, pairs)["gmacs"] == pytest.approx((3 * small + large) / 4)


def test_predict_takes_what_the_preprocessor_gives() -> None:
    model = build("retinanet/retinanet_r50_fpn_1x_coco.py", small=True)
    batches = [*loader((64, 64), batch=3), *loader((128, 96))]
    pairs = [(batch["inputs"], batch["data_samples"]) for batch in batches]
    assert count_predict(model, pairs) == count_predict(model, batches)


def test_predict_needs_an_image() -> None:
    with pytest.raises(UserError, match=r"^cost: must be counted on at least one image, but got none\.$"):
        count_predict(build("retinanet/retinanet_r50_fpn_1x_coco.py", small=True), [])


def test_predict_leaves_the_model_alone() -> None:
    model = build("retinanet/retinanet_r50_fpn_1x_coco.py", TWO_DCN, small=True).train()
    fields = {name: sorted(vars(module)) for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    [batch] = loader((64, 96))
    keys = list(batch)
    count_predict(model, [batch])
    assert list(batch) == keys
    assert all(module.training for module in model.bbox_head.modules())
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == fields
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
