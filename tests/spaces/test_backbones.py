"""ShuffleNet V2 against what is published of it, and as a base of QueryDet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmdet.models import data_preprocessors  # noqa: F401  registers all of mmdet's models
from mmdet.registry import MODELS
from mmengine.utils import import_modules_from_strings
from torch import nn

from spaces.base import facts
from spaces.querydet.backbones import ShuffleNetV2
from spaces.space import build_space
from trainers.config import load_base
from trainers.cost import count
from trainers.profile import patched_base

BASE = Path(__file__).parents[2] / "recipes/papers/bases/retinanet_shufflenet-v2_fpn_1x_coco.py"


def test_published_parameters_and_multiply_adds() -> None:
    backbone = ShuffleNetV2()
    # torchvision's shufflenet_v2_x1_0 has 2,278,604 parameters: with a last 1x1 convolution, its norm and a classifier.
    last, classifier = 464 * 1024 + 2 * 1024, 1024 * 1000 + 1000
    assert sum(parameter.numel() for parameter in backbone.parameters()) + last + classifier == 2_278_604

    # 146 million at 224x224 with those two (table 5 of its paper).
    macs = []

    def add(module: nn.Conv2d, args: object, out: torch.Tensor) -> None:
        macs.append(out.numel() * module.weight[0].numel())

    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    maps = backbone(torch.zeros(1, 3, 224, 224))
    assert [tuple(x.shape[1:]) for x in maps] == [(24, 56, 56), (116, 28, 28), (232, 14, 14), (464, 7, 7)]
    assert round((sum(macs) + 464 * 1024 * 49 + 1024 * 1000) / 1e6) == pytest.approx(146, abs=1)


def test_shuffle_mixes_the_two_branches() -> None:
    unit = ShuffleNetV2().stage2[1].eval()
    x = torch.randn(1, 116, 5, 5)
    with torch.no_grad():
        out = unit(x)
    torch.testing.assert_close(out[:, 0::2], x[:, :58])  # the half that passes lies at the even places
    torch.testing.assert_close(out[:, 1::2], unit.branch2(x[:, 58:]))


def test_norms_can_stay_as_they_are() -> None:
    norms = [module for module in ShuffleNetV2(norm_eval=True).train().modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert all(m.training for m in ShuffleNetV2().train().modules())


def test_it_carries_querydet() -> None:
    base = load_base(str(BASE))
    known = facts(base.model.to_dict())
    design = build_space({"querydet": {}}, known).canonicalise({"querydet.p2": True})
    config = patched_base(str(BASE), design)
    assert "spaces.querydet.backbones" in config.custom_imports["imports"]
    import_modules_from_strings(**config.custom_imports)
    model = MODELS.build(config.model)
    assert len(model.neck.fpn_convs) == 6
    assert model.neck.lateral_convs[0].conv.in_channels == 24
    cost = count(model, (128, 160))
    assert list(cost.macs_levels) == ["P2", "P3", "P4", "P5", "P6", "P7"]
    assert cost.macs_levels["P2"] == 4 * cost.macs_levels["P3"]
