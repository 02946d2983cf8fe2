"""SlimHead and DCN on mmrotate's heads, and the words where mmrotate cannot be imported.

What builds a detector is skipped without mmrotate (extra ``rotated``); the rest runs everywhere.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn
from torch.nn import functional as F  # noqa: N812

from spaces import patching
from spaces.base import ROTATED, BackboneFacts, BaseFacts, facts
from spaces.errors import HeadwayError, UserError
from spaces.registry import families
from spaces.space import Design, build_space, design_hash
from trainers import rotated
from trainers.config import base_names, load_base
from trainers.profile import count_patched, patched_base, profile_config

PSC = "mmrotate::psc/rotated-fcos-hbox-le90_r50_fpn_psc-dual_1x_dota.py"
PSC_RETINA = "mmrotate::psc/rotated-retinanet-rbox-le90_r50_fpn_psc-dual_amp-1x_dota.py"
SHIPPED = {
    "mmrotate::rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py": "RotatedRetinaHead",
    "mmrotate::rotated_retinanet/rotated-retinanet-hbox-le90_r50_fpn_1x_dota.py": "RotatedRetinaHead",
    "mmrotate::rotated_fcos/rotated-fcos-le90_r50_fpn_1x_dota.py": "RotatedFCOSHead",
    "mmrotate::rotated_atss/rotated-atss-le90_r50_fpn_1x_dota.py": "RotatedATSSHead",
    PSC: "RotatedFCOSHead",
    PSC_RETINA: "AngleBranchRetinaHead",
}

# What the extra is for: both families on all four heads.
FAMILIES = ("dcn", "slimhead")
ANCHORLESS = "RotatedFCOSHead"
STRIDES = (8, 16, 32, 64, 128)
FACTS = {
    head: BaseFacts(
        detector="FCOS" if head == ANCHORLESS else "RetinaNet",
        head=head,
        strides=STRIDES,
        tower_convs=2,
        tower_bias="Retina" in head,
        priors=3 if "Retina" in head else 1,
        finer=1,
        tower_norm=None if "Retina" in head else "GN",
        backbone=BackboneFacts("ResNet", blocks=(2, 2, 2, 2), basic=True),
    )
    for head in ROTATED
}

SIZE = (72, 104)  # odd maps on every level: 9x13, 5x7, 3x4, 2x2, 1x1
MAPS = ((9, 13), (5, 7), (3, 4), (2, 2), (1, 1))

_NORM = {"type": "GN", "num_groups": 8}
_FOCAL = {"type": "mmdet.FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}
_L1 = {"type": "mmdet.L1Loss", "loss_weight": 0.2}
_CODER = {
    "type": "DeltaXYWHTRBBoxCoder",
    "angle_version": "le90",
    "norm_factor": None,
    "edge_swap": True,
    "proj_xy": True,
    "target_means": (0.0,) * 5,
    "target_stds": (1.0,) * 5,
}
_PSC = {"type": "PSCCoder", "angle_version": "le90", "dual_freq": True, "num_step": 3}


def _anchors(**more: Any) -> dict[str, Any]:
    return {
        "type": "FakeRotatedAnchorGenerator",
        "angle_version": "le90",
        "octave_base_scale": 4,
        "scales_per_octave": 1,
        "ratios": [1.0, 0.5, 2.0],
        "strides": list(STRIDES),
        **more,
    }


_IOU = {"type": "RBboxOverlaps2D"}
_MAX_IOU = {
    "assigner": {
        "type": "mmdet.MaxIoUAssigner",
        "pos_iou_thr": 0.5,
        "neg_iou_thr": 0.4,
        "min_pos_iou": 0,
        "ignore_iof_thr": -1,
        "iou_calculator": _IOU,
    },
    "sampler": {"type": "mmdet.PseudoSampler"},
}

# By the head's kind: settings of the head, settings of training.
HEADS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "RotatedRetinaHead": (
        {"anchor_generator": _anchors(), "bbox_coder": _CODER, "loss_cls": _FOCAL, "loss_bbox": _L1},
        _MAX_IOU,
    ),
    "RotatedFCOSHead": (
        {
            "norm_cfg": _NORM,
            "strides": list(STRIDES),
            "norm_on_bbox": True,
            "centerness_on_reg": True,
            "use_hbbox_loss": True,
            "scale_angle": False,
            "angle_coder": _PSC,
            "bbox_coder": {"type": "DistanceAnglePointCoder", "angle_version": "le90"},
            "loss_cls": _FOCAL,
            "loss_bbox": {"type": "mmdet.IoULoss", "loss_weight": 1.0},
            "loss_angle": _L1,
        },
        {},
    ),
    "RotatedATSSHead": (
        {
            "norm_cfg": _NORM,
            "anchor_generator": _anchors(ratios=[1.0]),
            "bbox_coder": _CODER,
            "loss_cls": _FOCAL,
            "loss_bbox": {"type": "GDLoss", "loss_type": "kld", "fun": "log1p", "tau": 1, "loss_weight": 2.0},
            "loss_centerness": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        },
        {
            "assigner": {"type": "RotatedATSSAssigner", "topk": 9, "iou_calculator": _IOU},
            "sampler": {"type": "mmdet.PseudoSampler"},
        },
    ),
    "AngleBranchRetinaHead": (
        {
            "anchor_generator": _anchors(angle_version=None),
            "bbox_coder": _CODER,
            "use_normalized_angle_feat": True,
            "angle_coder": _PSC,
            "loss_cls": _FOCAL,
            "loss_bbox": _L1,
            "loss_angle": _L1,
        },
        _MAX_IOU,
    ),
}


def tiny(head: str) -> dict[str, Any]:
    """The ``model`` part of a tiny detector with this dense head, as ``load_base`` gives it."""
    settings, train = HEADS[head]
    return copy.deepcopy(
        {
            "type": f"mmdet.{FACTS[head].detector}",
            "data_preprocessor": {"type": "mmdet.DetDataPreprocessor", "boxtype2tensor": False},
            "backbone": {
                "type": "mmdet.ResNet",
                "depth": 18,
                "base_channels": 8,
                "norm_cfg": {"type": "BN", "requires_grad": True},
            },
            "neck": {
                "type": "mmdet.FPN",
                "in_channels": [8, 16, 32, 64],
                "out_channels": 16,
                "start_level": 1,
                "add_extra_convs": "on_output",
                "num_outs": 5,
            },
            "bbox_head": {
                "type": f"mmrotate.{head}",
                "num_classes": 3,
                "in_channels": 16,
                "feat_channels": 16,
                "stacked_convs": 2,
                **settings,
            },
            "train_cfg": {**train, "allowed_border": -1, "pos_weight": -1, "debug": False},
            "test_cfg": {
                "nms_pre": 100,
                "min_bbox_size": 0,
                "score_thr": 0.0,
                "nms": {"type": "nms_rotated", "iou_threshold": 0.1},
                "max_per_img": 20,
            },
        }
    )


@pytest.fixture(scope="module")
def mmrotate() -> None:
    """Skips where mmrotate cannot be imported, with the word that users see."""
    try:
        rotated.require("test_rotated.py")
    except UserError as error:
        pytest.skip(f"rotated heads are not tested here: {error}")


def build(model: Mapping[str, Any], knobs: Design | None = None) -> Any:
    """Patches and builds a detector with seeded weights, as the trainers do."""
    from trainers.detector import build_model

    found = patching.imports(knobs or {})
    config = Config(
        {
            "default_scope": "mmrotate",
            "model": patching.apply(model, knobs or {}),
            "custom_imports": {"imports": found, "allow_failed_imports": False},
        }
    )
    return build_model(config, seed=0)


def batch(boxes: int) -> tuple[torch.Tensor, list[Any]]:
    """Two images, the first with ``boxes`` rotated objects, the second empty."""
    from mmdet.structures import DetDataSample
    from mmrotate.structures import RotatedBoxes

    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    # (x, y, w, h, angle), in px and radians
    given = torch.tensor([[24.0, 26.0, 32.0, 30.0, 0.3], [74.0, 43.0, 60.0, 28.0, -0.7]])
    meta = {"img_shape": SIZE, "pad_shape": SIZE, "batch_input_shape": SIZE, "scale_factor": (1.0, 1.0)}
    samples = []
    for count in (boxes, 0):
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(bboxes=RotatedBoxes(given[:count]), labels=torch.arange(2)[:count])
        samples.append(sample)
    return images, samples


def outputs(model: Any, images: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """What the head predicts on each level."""
    return list(zip(*model(images, None, mode="tensor")))


def space_designs(head: str, *names: str) -> list[Design]:
    space = build_space({name: {"always": True} for name in names}, FACTS[head])
    default = space.canonicalise({name: knob.default for name, knob in space.knobs.items()})
    found = [default, *space.corners(4 if len(names) == 1 else 1)]
    return list({design_hash(design): design for design in found if design}.values())


def slim(*levels: int) -> Design:
    space = build_space({"slimhead": {"always": True}}, FACTS[ANCHORLESS])
    return space.canonicalise(
        {f"slimhead.{knob.name}": knob.default for knob in space.families[0].full} | {"slimhead.levels": levels}
    )


CASES = [
    pytest.param(head, design, id=f"{head}-{'-'.join(names)}-{design_hash(design)}")
    for head in ROTATED
    for names in (*((name,) for name in FAMILIES), FAMILIES)
    for design in space_designs(head, *names)
]
COUNTED = {"dcn.placement": ("cls.0", "reg.0"), "dcn.version": 2}


# Everywhere


@pytest.mark.parametrize("head", ROTATED)
def test_facts(head: str) -> None:
    model = tiny(head)
    assert facts(model) == FACTS[head]
    # Types may be written without a scope as well.
    bare = json.loads(json.dumps(model).replace("mmdet.", "").replace("mmrotate.", ""))
    assert facts(bare) == FACTS[head]


@pytest.mark.parametrize("name", FAMILIES)
def test_family_works_on_rotated_heads(name: str) -> None:
    assert set(ROTATED) <= set(families()[name].heads)


def test_mmdets_head_with_an_angle_is_the_rotated_one() -> None:
    """mmrotate's configs of its RetinaNet name mmdet's head; families for upright boxes must not take it."""
    model = tiny("RotatedRetinaHead")
    model["bbox_head"]["type"] = "mmdet.RetinaHead"
    assert facts(model) == FACTS["RotatedRetinaHead"]
    model["bbox_head"]["bbox_coder"] = {"type": "mmdet.DeltaXYWHBBoxCoder"}
    assert facts(model).head == "RetinaHead"


@pytest.mark.parametrize("head", ROTATED)
def test_level_p4_alone_can_be_slimmed(head: str) -> None:
    """The paper slims P4 alone on PSC, which no prefix of levels says."""
    space = build_space({"slimhead": {"levels": ["P4"]}}, FACTS[head])
    assert space.knobs["slimhead.levels"].default == (1,)


def test_patch_names_scopes() -> None:
    model = patching.apply(tiny(ANCHORLESS), slim(1))
    assert (model["bbox_head"]["type"], model["bbox_head"]["base_type"]) == (
        "mmdet.ComposedHead",
        "mmrotate.RotatedFCOSHead",
    )
    twice = patching.apply(tiny(ANCHORLESS), {**slim(1), **COUNTED})
    assert len(twice["bbox_head"]["mixins"]) == 2
    with pytest.raises(UserError, match="already the result of 'headway patch'"):
        facts(twice)


def broken(folder: Path, error: str) -> Path:
    """A package named mmrotate that cannot be imported."""
    package = folder / "mmrotate"
    (package / ".mim" / "configs").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "utils.py").write_text(f"raise {error}\n")
    (package / ".mim" / "configs" / "base.py").write_text(f"default_scope = 'mmrotate'\nmodel = {tiny(ANCHORLESS)!r}\n")
    return folder


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without mmrotate."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmrotate"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mmrotate", None)


FILES = {
    "scope.py": f"default_scope = 'mmrotate'\nmodel = {tiny(ANCHORLESS)!r}\n",
    # In mmdet's scope; the head's own parts in mmrotate's.
    "types.py": f"model = {tiny('RotatedATSSHead')!r}\nmodel['bbox_head']['_scope_'] = 'mmrotate'\n",
    "builds_on.py": "_base_ = 'mmrotate::rotated_fcos/rotated-fcos-le90_r50_fpn_1x_dota.py'\n",
}


@pytest.mark.parametrize("base", [PSC, "mmrotate::none.py", *FILES])
def test_without_mmrotate_the_error_names_the_extra(base: str, without: None, tmp_path: Path) -> None:
    if base in FILES:
        (tmp_path / base).write_text(FILES[base])
        base = str(tmp_path / base)
    for load in (load_base, lambda name: profile_config(name, against=None, size=(64, 64), latency=False)):
        with pytest.raises(UserError) as caught:
            load(base)
        for word in (base, "ModuleNotFoundError", "pip install 'headway[rotated]'"):
            assert word in str(caught.value)
    assert not [name for name in base_names() if name.startswith("mmrotate")]


@pytest.mark.parametrize("command", [["profile", "{}"], ["patch", "--base", "{}", "--out", "out.py"]])
def test_a_broken_mmrotate_is_one_message(command: list[str], tmp_path: Path) -> None:
    """As users see it who have a torchvision that does not fit their torch."""
    folder = broken(tmp_path, "RuntimeError('operator torchvision::nms does not exist')")
    root = Path(patching.__file__).parents[1]
    path = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(root)!r}]; from search.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", path, *(word.format("mmrotate::base.py") for word in command)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    for word in ("mmrotate::base.py", "RuntimeError: operator torchvision::nms does not exist", "headway[rotated]"):
        assert word in done.stderr
    assert not (tmp_path / "out.py").exists()


def test_training_is_refused() -> None:
    with pytest.raises(UserError, match="must predict upright boxes to be trained in a study, but here predicts"):
        rotated.refuse_training({"default_scope": "mmrotate", "model": tiny(ANCHORLESS)}, "here")
    rotated.refuse_training({"default_scope": "mmdet", "model": {"type": "GFL"}}, "here")


# With mmrotate


@pytest.mark.usefixtures("mmrotate")
@pytest.mark.parametrize(("head", "design"), CASES)
def test_design(head: str, design: Design) -> None:
    base = tiny(head)
    before = copy.deepcopy(base)
    patched = patching.apply(base, design)
    assert base == before != patched
    assert patching.apply(base, json.loads(json.dumps(design))) == patched

    model = build(base, design)
    patching.check_built(model, design)
    for boxes in (0, 2):
        model.train()
        model.zero_grad()
        losses = model(*batch(boxes), mode="loss")
        parts = [part for value in losses.values() for part in (value if isinstance(value, list) else [value])]
        loss = torch.stack([part.sum() for part in parts]).sum()
        assert torch.isfinite(loss)
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{name} gets no gradient with {boxes} boxes"
                assert torch.isfinite(parameter.grad).all(), name
    unused = [name for name, parameter in model.bbox_head.named_parameters() if not parameter.grad.any()]
    assert not [name for name in unused if "scales" not in name], "a weight of the head has no effect"

    model.eval()
    with torch.no_grad():
        results = model(*batch(2), mode="predict")
    assert len(results) == 2
    for result in results:
        found = result.pred_instances.bboxes
        found = getattr(found, "tensor", found)
        assert found.shape[1] == 5  # rotated, as the base's
        assert len(found)
        assert torch.isfinite(found).all()


@pytest.mark.usefixtures("mmrotate")
@pytest.mark.parametrize("head", ROTATED)
@pytest.mark.parametrize("name", FAMILIES)
def test_check_built_can_fail(head: str, name: str) -> None:
    design = space_designs(head, name)[0]
    with pytest.raises(HeadwayError, match=f"^{name}: the patched config did not take effect"):
        patching.check_built(build(tiny(head)), design)


class _Resize(nn.Module):
    """One step of a tower written out: nearest-neighbour resizing to a size in px."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=self.size, mode="nearest")


@pytest.mark.usefixtures("mmrotate")
@pytest.mark.parametrize("head", ROTATED)
@pytest.mark.parametrize("index", [0, 1])
def test_slimmed_level_by_hand(head: str, index: int) -> None:
    """Equations 2 and 3 written out: every branch (class, box, angle, centerness) reads the restored towers."""
    base, slimmed = build(tiny(head)), build(tiny(head), slim(index))
    # At half the size, nearest-neighbour takes every second row from the first, whether by size or by factor.
    full = MAPS[index]
    half = (full[0] // 2, full[1] // 2)
    images, _ = batch(0)
    for model in (base, slimmed):
        model.load_state_dict(base.state_dict())
        model.eval()
    by_hand = copy.deepcopy(base)
    for name in ("cls_convs", "reg_convs"):
        tower = getattr(by_hand.bbox_head, name)
        setattr(by_hand.bbox_head, name, nn.ModuleList([_Half(half), *tower, _Resize(full)]))
    with torch.no_grad():
        plain, found, wanted = (outputs(model, images) for model in (base, slimmed, by_hand))
    names = {"RotatedFCOSHead": 4, "RotatedATSSHead": 3, "AngleBranchRetinaHead": 3, "RotatedRetinaHead": 2}
    for level, maps in enumerate(found):
        assert len(maps) == names[head]
        for prediction, of_base, of_hand in zip(maps, plain[level], wanted[level]):
            assert prediction.shape[-2:] == MAPS[level]
            if level == index:
                torch.testing.assert_close(prediction, of_hand, rtol=1e-5, atol=1e-6)
                assert not torch.equal(prediction, of_base)
            else:
                assert torch.equal(prediction, of_base)


class _Half(nn.Module):
    """Every second row and column from the first, ``size`` of them; the way to Fat of other levels is not looked at."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., ::2, ::2][..., : self.size[0], : self.size[1]]


@pytest.mark.usefixtures("mmrotate")
@pytest.mark.parametrize("head", ROTATED)
def test_memory_format_changes_nothing(head: str) -> None:
    plain = build(tiny(head), space_designs(head, *FAMILIES)[0]).to(memory_format=torch.contiguous_format).double()
    for key, parameter in plain.named_parameters():
        if "conv_offset" in key:
            nn.init.normal_(parameter, std=0.3)  # at zero, an offset could be misread unnoticed
    turned = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    images = batch(0)[0].double()
    with torch.no_grad():
        one, other = outputs(plain, images), outputs(turned, images.to(memory_format=torch.channels_last))
    for first, second in zip(one, other):
        for prediction, again in zip(first, second):
            assert torch.allclose(prediction, again, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("mmrotate")
@pytest.mark.parametrize("base", SHIPPED)
def test_shipped_bases(base: str) -> None:
    assert base in base_names()
    found = facts(load_base(base).model.to_dict())
    assert (found.head, found.strides, found.tower_convs) == (SHIPPED[base], STRIDES, 4)


@pytest.mark.usefixtures("mmrotate")
def test_cost_of_psc() -> None:
    """Rotated FCOS with PSC at 1024x1024 in closed form: P4 has 64x64 sites, 32x32 when it is slimmed by a half."""
    conv = 9 * 256
    tower, predictions = 2 * 4 * conv * 256, conv * (15 + 4 + 1 + 6)  # 15 classes of DOTA, 6 phases
    sites = [(1024 // stride) ** 2 for stride in STRIDES]
    base = count_patched(PSC, {}, (1024, 1024))
    assert list(base.macs_levels.values()) == [count * (tower + predictions) for count in sites]
    slimmed = count_patched(PSC, slim(1), (1024, 1024))
    assert slimmed.macs_levels["P4"] == 32 * 32 * tower + 64 * 64 * predictions
    assert base.macs - slimmed.macs == (64 * 64 - 32 * 32) * tower
    assert slimmed.params == base.params
    # The paper's design has a deformable first layer, too: 18 offsets and 9 masks for each of two convolutions.
    both = count_patched(PSC, {**slim(1), **COUNTED}, (1024, 1024))
    assert both.params - base.params == 2 * (27 * conv + 27)
    assert both.macs - slimmed.macs == 2 * 27 * conv * (sum(sites) - 64 * 64 + 32 * 32)


@pytest.mark.usefixtures("mmrotate")
@pytest.mark.parametrize("base", [PSC_RETINA, PSC])
def test_patched_file_is_profiled(base: str, tmp_path: Path) -> None:
    file = tmp_path / "patched.py"
    design = {**slim(1), **COUNTED}
    patched_base(base, design).dump(file)
    found = profile_config(str(file), against=base, size=(256, 256), latency=False)
    assert found["macs"]["total"] == count_patched(base, design, (256, 256)).macs
    assert found["against"]["ratio"]["params"] > 1
    assert found["macs"]["levels"]["P4"] < found["against"]["macs"]["levels"]["P4"]


@pytest.mark.usefixtures("mmrotate")
def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="must predict upright boxes to be trained in a study"):
        load_base(PSC, trained=True)
    two_stage = "mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py"
    with pytest.raises(UserError, match=r"must be a one-stage detector, but .* two-stage"):
        load_base(two_stage)
    with pytest.raises(UserError, match=r"Near to it: mmrotate::rotated_fcos/"):
        load_base("mmrotate::rotated_fcos/rotated-fcos-le90_r50_fpn_1x_dotta.py")
    with pytest.raises(UserError, match="works on GFLHead"):
        build_space({"ddod": {"always": True}}, facts(load_base(PSC).model.to_dict()))


@pytest.mark.usefixtures("mmrotate")
@pytest.mark.parametrize("name", ["scope.py", "types.py", "builds_on.py"])
def test_files(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(FILES[name])
    config = load_base(str(file))
    assert rotated.is_rotated(config)
    assert rotated.scope(config) == ("mmdet" if name == "types.py" else "mmrotate")
    assert config.model.bbox_head.type.startswith("mmrotate.")
    assert count_patched(str(file), slim(1), (128, 128)).macs < count_patched(str(file), {}, (128, 128)).macs
