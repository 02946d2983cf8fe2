"""What a pass does, against closed forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from spaces.autocast import autocast
from trainers.profile import build_patched
from trainers.speed import detector_pass, make_inputs, prepare
from trainers.traffic import observe

NOTHING = nn.Identity()
MAP = torch.randn(1, 4, 10, 10)
ROWS = torch.randn(1000, 16)
INDEX = torch.arange(80).view(20, 4)


def test_a_convolution_reads_map_and_weights_and_writes_its_map() -> None:
    conv = nn.Conv2d(4, 8, 3, padding=1)
    found = observe(conv, lambda: conv(MAP))
    assert found.macs == 100 * 8 * 36
    assert found.bytes == 4 * (400 + 8 * 36 + 8 + 800)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: MAP.view(2, -1).t(), 0),  # views
        (lambda: torch.empty(100), 0),
        (lambda: MAP.flatten(2).transpose(1, 2).contiguous(), 2 * 1600),
        (lambda: MAP.clone().relu_(), 4 * 1600),  # in place: one read and one written
        (lambda: MAP[:, :1].expand(1, 4, 10, 10) + MAP, 1600 // 4 + 2 * 1600),
        (lambda: torch.cat((MAP, MAP)), 4 * 1600),
        (lambda: ROWS[INDEX[:, 0]], 2 * 20 * 64 + 20 * 8),  # 20 rows, not all thousand
        (lambda: ROWS.index_select(0, INDEX[:, 0].contiguous()), 2 * 20 * 64 + 20 * 8 + 2 * 20 * 8),
        (lambda: F.embedding_bag(INDEX, ROWS, mode="sum"), (80 + 20) * 64 + 80 * 8),
        (lambda: ROWS.clone().index_put_((INDEX[:, 0],), ROWS[:20]), 2 * 64000 + 2 * 20 * 64 + 20 * 8),
    ],
)
def test_bytes(run: Callable[[], Tensor], expected: int) -> None:
    # embedding_bag makes its offsets itself: some hundred bytes.
    assert observe(NOTHING, run).bytes == pytest.approx(expected, abs=400 if expected == 7040 else 0)


def test_a_deformable_convolution_counts_as_one_however_it_is_computed() -> None:
    class ByProducts(ModulatedDeformConv2dPack):
        def forward(self, x: Tensor) -> Tensor:
            self.conv_offset(x)
            columns = F.unfold(x, 3, padding=1)
            return (self.weight.flatten(1) @ columns).view(1, -1, *x.shape[2:])

    for kind in (ModulatedDeformConv2dPack, ByProducts):
        conv = kind(4, 8, 3, padding=1)
        assert observe(conv, lambda conv=conv: conv(MAP)).macs == 100 * 36 * (27 + 8)
        assert "forward" not in vars(conv)


def test_a_detector_that_predicts_in_bfloat16_does_the_same_work_on_fewer_bytes() -> None:
    knobs = {"dcn.placement": ["cls.0", "reg.0"], "dcn.version": 2}
    works = []
    for dtype in ("float32", "bfloat16"):
        model = prepare(autocast(build_patched("headway::gfl_nano", knobs), dtype), "cpu")
        run = detector_pass(model, make_inputs((96, 96), 1), postprocess=False)
        works.append(observe(model, run))
    assert works[0].macs == works[1].macs
    assert works[1].bytes < 0.8 * works[0].bytes
