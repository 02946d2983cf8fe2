"""The config of a trial."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper

from spaces.base import dense_part
from spaces.errors import UserError
from trainers.config import (
    BASES,
    DataFacts,
    _set_dtype,
    base_names,
    load_base,
    plain,
    read_facts,
    set_classes,
    trial_config,
)
from trainers.contract import DataRequest, TrialRequest
from trainers.pretrained import resolve_backbone
from trainers.schedule import FOREVER, rescale, scaled_lr

FACTS = DataFacts(train_images=100, val_images=10, val_one_size=True)
GFL = "mmdet::gfl/gfl_r50_fpn_1x_coco.py"
DATA = DataRequest(
    train_annotations="train.json",
    train_images="train",
    val_annotations="val.json",
    val_images="val",
    classes=("cat", "dog", "eel"),
    size=(320, 240),
)


def request(**changes: Any) -> TrialRequest:
    return replace(
        TrialRequest(number=0, base="headway::gfl_tiny", knobs={}, data=DATA, folder="/tmp/t", epochs=3), **changes
    )


@pytest.mark.parametrize("path", sorted(BASES.glob("*.py")), ids=lambda path: path.stem)
def test_our_bases_are_plain_mmdet(path: Path) -> None:
    # Data, without code. Only R-FCN, which mmdet lacks, brings a module along.
    own = path.stem.startswith("rfcn")
    brings = 'custom_imports = dict(imports=["spaces.keyparts.detectors"], allow_failed_imports=False)'
    source = path.read_text()
    assert "import" not in (source.replace(brings, "") if own else source.replace("custom_imports", ""))
    model = load_base(f"headway::{path.stem}")["model"]
    assert model["backbone"]["type"] == "ResNet"
    head = model[dense_part(model)]
    strides = head.get("strides") or head["anchor_generator"]["strides"]
    assert strides[0] <= (16 if "shared_head" in model.get("roi_head", {}) or own else 8)  # an object of 8 px is a cell


def test_load_base_finds_shipped_own_and_files(tmp_path: Path) -> None:
    assert load_base(GFL)["model"]["type"] == "GFL"
    assert (
        load_base("headway::gfl_tiny")["model"]["type"] == load_base("headway::gfl_tiny.py")["model"]["type"] == "GFL"
    )
    file = tmp_path / "mine.py"
    file.write_text("model = dict(type='FCOS', backbone=dict(type='ResNet', depth=50))")
    assert load_base(str(file))["model"]["type"] == "FCOS"
    names = base_names()
    assert GFL in names and "headway::gfl_tiny" in names and not any("_base_" in name for name in names)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("mmdet::gfl/gfl_r50_fpn_1x_cocoo.py", GFL),
        ("headway::gfl_tinny", "headway::gfl_tiny"),
        ("other::x.py", "mmdet:: or headway::"),
        ("nowhere/base.py", "nowhere/base.py"),
    ],
)
def test_an_unknown_base_names_the_nearest(base: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_base(base)
    assert base in str(error.value) and said in str(error.value)


def test_a_file_path_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("")
    with pytest.raises(UserError, match=r"base\.py"):
        load_base(str(tmp_path / "bass.py"))


@pytest.mark.parametrize("text", ["model = dict(", "raise ValueError('no')", "_base_ = 'missing.py'"])
def test_an_unreadable_base_is_the_users_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(UserError, match="readable mmdet config"):
        load_base(str(tmp_path / "bad.py"))


def test_a_base_without_a_detector(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("model = dict(type='GFL')")
    with pytest.raises(UserError, match="must hold a detector"):
        load_base(str(tmp_path / "bare.py"))


def test_classes_are_set_everywhere_but_in_the_rpn() -> None:
    cascade = plain(load_base("mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py")["model"])
    assert set_classes(cascade, 3) == 3
    assert [head["num_classes"] for head in cascade["roi_head"]["bbox_head"]] == [3, 3, 3]
    assert set_classes({"rpn_head": {"num_classes": 1}, "bbox_head": {"num_classes": 80}}, 5) == 1


def test_the_config_is_complete_and_flat(tmp_path: Path) -> None:
    config = trial_config(request(batch=5, seed=7), FACTS)
    assert config.model.bbox_head.num_classes == 3
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert loader.dataset.metainfo.classes == ("cat", "dog", "eel")
        assert {"type": "Resize", "scale": (320, 240), "keep_ratio": True} in loader.dataset.pipeline
    assert config.train_dataloader.batch_size == 5
    assert config.test_evaluator.type == "CocoMetric"  # which a bundle has with mmdet alone
    assert config.val_evaluator == {**config.test_evaluator, "type": "FasterCocoMetric"}
    assert config.val_evaluator.ann_file == "val.json"
    assert config.randomness.seed == 7
    file = tmp_path / "config.py"
    file.write_text(config.pretty_text)
    again = Config.fromfile(file)
    assert again.model == config.model and again.train_dataloader == config.train_dataloader


def test_the_flip_is_the_bases_own() -> None:
    def flips(base: str) -> list[str]:
        return [step.type for step in trial_config(request(base=base), FACTS).train_dataloader.dataset.pipeline]

    assert "RandomFlip" in flips(GFL)
    assert "RandomFlip" in flips("headway::gfl_nano")
    assert "RandomFlip" not in flips("headway::gfl_tiny")  # a mirrored digit is none


def test_validation_is_batched_only_without_padding() -> None:
    assert trial_config(request(batch=4), FACTS).val_dataloader.batch_size == 4
    assert trial_config(request(batch=4), replace(FACTS, val_one_size=False)).val_dataloader.batch_size == 1


def test_the_learning_rate_follows_the_batch_unless_given() -> None:
    def lr(**changes: Any) -> float:
        return float(trial_config(request(base=GFL, **changes), FACTS).optim_wrapper.optimizer.lr)

    assert lr(batch=16) == pytest.approx(0.01)
    assert lr(batch=4) == pytest.approx(0.0025)
    assert lr(batch=4, lr=0.3) == 0.3
    assert scaled_lr(0.1, 8, None) == 0.1


MIXED = {"type": "AmpOptimWrapper", "dtype": "float16", "loss_scale": 512.0}
SINGLE = {"type": "OptimWrapper"}


@pytest.mark.parametrize(
    ("base", "asked", "device", "wanted"),
    [
        (SINGLE, None, "cuda", SINGLE),
        (SINGLE, "bfloat16", "cpu", {"type": "AmpOptimWrapper", "dtype": "bfloat16"}),
        (SINGLE, "float16", "cuda", {"type": "AmpOptimWrapper", "dtype": "float16"}),
        (MIXED, None, "cuda", MIXED),
        (MIXED, None, "cpu", SINGLE),
        (MIXED, "float32", "cuda", SINGLE),
        (MIXED, "float16", "cpu", MIXED),
        (MIXED, "bfloat16", "cuda", {**MIXED, "dtype": "bfloat16"}),
        ({**MIXED, "type": "mmengine.optim.AmpOptimWrapper"}, None, "cuda", MIXED),
    ],
)
def test_the_type_of_the_training_is_the_bases_unless_given(
    base: dict[str, Any], asked: Any, device: str, wanted: dict[str, Any], tmp_path: Path
) -> None:
    optimizer = {"type": "SGD", "lr": 0.01}
    file = tmp_path / "base.py"
    file.write_text(f"_base_ = {str(BASES / 'gfl_tiny.py')!r}\n")
    file.write_text(file.read_text() + f"optim_wrapper = {dict(base, _delete_=True, optimizer=optimizer)!r}\n")
    found = trial_config(request(base=str(file), train_dtype=asked, device=device), FACTS)["optim_wrapper"]
    assert {key: value for key, value in found.items() if key != "optimizer"} == wanted
    assert found["optimizer"]["type"] == "SGD"


def test_an_optimizer_wrapper_that_knows_one_type_only(tmp_path: Path) -> None:
    file = tmp_path / "base.py"
    file.write_text(f"_base_ = {str(BASES / 'gfl_tiny.py')!r}\noptim_wrapper = dict(type='ApexOptimWrapper')\n")
    with pytest.raises(UserError, match=r"^training.dtype: needs a base .* has ApexOptimWrapper\. Choose null"):
        trial_config(request(base=str(file), train_dtype="bfloat16"), FACTS)
    assert trial_config(request(base=str(file)), FACTS)["optim_wrapper"]["type"] == "ApexOptimWrapper"


def test_a_base_may_name_its_wrapper_by_class() -> None:
    optim: dict[str, Any] = {"type": AmpOptimWrapper, "dtype": "float16"}
    _set_dtype(optim, request(device="cuda"))
    assert optim == {"type": "AmpOptimWrapper", "dtype": "float16"}


def test_the_design_reaches_the_model() -> None:
    knobs = {"slimhead.levels": [0], "slimhead.ratio": 0.5, "slimhead.mode": "nearest"}
    plain_model = trial_config(request(), FACTS).model
    config = trial_config(request(knobs=knobs), FACTS)
    assert config.model != plain_model
    assert config.custom_imports["imports"]
    assert config.headway.knobs == knobs


def test_a_1x_schedule_keeps_its_shape() -> None:
    schedule = plain(load_base(GFL)["param_scheduler"])
    same = rescale(schedule, base_length=12, base_by_epoch=True, epochs=12, iterations=7330)
    assert (same[0]["begin"], same[0]["end"]) == (0, 500)
    assert same[1]["milestones"] == [8 * 7330, 11 * 7330] and same[1]["end"] == 12 * 7330
    short = rescale(schedule, base_length=12, base_by_epoch=True, epochs=3, iterations=100)
    assert short[0]["end"] == 30  # 10 % of all iterations
    assert short[1]["milestones"] == [200, 275]
    assert all(one["by_epoch"] is False for one in same + short)


def test_a_warm_up_is_at_most_an_epoch_and_vanishes_when_it_has_no_room() -> None:
    schedule = plain(load_base(GFL)["param_scheduler"])
    long = rescale(schedule, base_length=12, base_by_epoch=True, epochs=100, iterations=20)
    assert long[0]["end"] == 20
    tiny = rescale(schedule, base_length=12, base_by_epoch=True, epochs=2, iterations=5)
    assert [one["type"] for one in tiny] == ["MultiStepLR"]


def test_other_schedulers() -> None:
    cosine = {"type": "CosineAnnealingLR", "T_max": 6, "begin": 6, "end": 12, "by_epoch": True, "eta_min": 0.0}
    cosine["convert_to_iter_based"] = True
    (one,) = rescale(cosine, base_length=12, base_by_epoch=True, epochs=6, iterations=10)
    assert (one["T_max"], one["begin"], one["end"]) == (30, 30, 60) and "convert_to_iter_based" not in one
    (one,) = rescale(
        [{"type": "MultiStepLR", "by_epoch": False, "milestones": [60000, 80000]}],
        base_length=90000,
        base_by_epoch=False,
        epochs=9,
        iterations=10,
    )
    assert one["milestones"] == [60, 80] and one["end"] == FOREVER
    (one,) = rescale(
        {"type": "ExponentialLR", "gamma": 0.5}, base_length=1, base_by_epoch=True, epochs=1, iterations=10
    )
    assert one["gamma"] ** 10 == pytest.approx(0.5)
    assert rescale(None, base_length=1, base_by_epoch=True, epochs=1, iterations=1) == []


def test_without_pretrained_weights_nothing_stays_frozen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = trial_config(request(base=GFL), FACTS)
    backbone = config.model.backbone
    assert "init_cfg" not in backbone
    assert (backbone.frozen_stages, backbone.norm_eval) == (-1, False)
    assert "not on this machine" in config.headway.backbone
    caffe = plain(load_base("mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py")["model"])
    resolve_backbone(caffe, "auto")
    assert caffe["backbone"]["norm_cfg"]["requires_grad"] is True


def test_pretrained_weights_on_this_machine_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / "resnet50-0676ba61.pth").write_bytes(b"")
    backbone = trial_config(request(base=GFL), FACTS).model.backbone
    assert backbone.init_cfg.checkpoint == str(cache / "resnet50-0676ba61.pth")
    assert (backbone.frozen_stages, backbone.norm_eval) == (1, True)
    assert "init_cfg" not in trial_config(request(base=GFL, backbone="none"), FACTS).model.backbone


def test_a_detectors_checkpoint_as_backbone(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "detector.pth"
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}}, file)
    init = trial_config(request(base=GFL, backbone=str(file)), FACTS).model.backbone.init_cfg
    assert (init.checkpoint, init.prefix) == (str(file), "backbone.")
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="backbone: must be a checkpoint"):
        trial_config(request(base=GFL, backbone=str(file)), FACTS)
    with pytest.raises(UserError, match="auto, none or the path"):
        trial_config(request(base=GFL, backbone=str(tmp_path / "none.pth")), FACTS)


def test_facts_of_the_data(tmp_path: Path) -> None:
    images = [{"id": i, "width": 10, "height": 10, "file_name": f"{i}.png"} for i in range(3)]
    boxes = [{"id": 1, "image_id": 0, "category_id": 1}, {"id": 2, "image_id": 1, "category_id": 2}]
    value = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "x"}]}
    file = tmp_path / "a.json"
    file.write_text(json.dumps(value))
    data = replace(DATA, train_annotations=str(file), val_annotations=str(file))
    assert read_facts(data) == DataFacts(train_images=1, val_images=3, val_one_size=True)
    with pytest.raises(UserError, match="each split must have images"):
        read_facts(replace(data, classes=("none",)))
    with pytest.raises(UserError, match="readable COCO json"):
        read_facts(replace(data, val_annotations=str(tmp_path / "no.json")))
