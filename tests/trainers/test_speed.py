"""Paired latency."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers import speed
from trainers.config import load_base
from trainers.means import environment, importing, keep_large_buffers
from trainers.speed import measure, paired


class Machine:
    """A machine whose speed drifts: each pass takes its work times a factor that grows by 1 % a pass."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.factor = 1.0

    def clock(self, function: Any) -> float:
        self.factor *= 1.01
        return float(function()) * self.factor

    def work(self, name: str, ms: float) -> Any:
        def run() -> float:
            self.calls.append(name)
            return ms

        return run


def test_the_order_alternates_and_drift_cancels() -> None:
    machine = Machine()
    got = paired(machine.work("A", 2.0), machine.work("B", 4.0), pairs=7, seconds=0.0, clock=machine.clock)
    assert got.pairs == 8  # an even number: each went first as often
    assert "".join(machine.calls[:8]) == "ABBAABBA"
    assert got.ratio == pytest.approx(0.5, rel=1e-3)
    assert got.q1 == pytest.approx(0.5 / 1.01) and got.q3 == pytest.approx(0.5 * 1.01)
    assert got.candidate_ms < got.baseline_ms


def test_seconds_allow_more_pairs_than_asked() -> None:
    got = paired(lambda: None, lambda: None, pairs=2, seconds=5.0, clock=lambda function: 1.0)
    assert (got.pairs, got.ratio) == (speed.MOST_PAIRS, 1.0)


def test_inputs_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    images = speed.make_inputs((32, 64), 2)
    assert images.shape == (2, 3, 32, 64)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(images, speed.make_inputs((32, 64), 2))


def test_the_lease_excludes(tmp_path: Path) -> None:
    order: list[str] = []
    path = str(tmp_path / "locks" / "speed")

    def other() -> None:
        with speed.exclusive(path) as waited:
            order.append("other" if 0.1 < waited < 5 else f"other waited {waited} s")

    with speed.exclusive(path) as waited:
        assert waited < 0.1
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(timeout=5)
    assert order == ["first", "other"]
    with speed.exclusive(None) as waited:
        assert waited == 0


def build(base: str, **head: Any) -> Any:
    import mmdet.models  # noqa: F401
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = load_base(base)["model"]
    model["bbox_head"].update(head)
    return MODELS.build(model).eval()


def test_a_prepared_detector_computes_the_same() -> None:
    model = build("headway::gfl_nano")
    for module in model.modules():  # statistics that folding must not ignore
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = speed.make_inputs((64, 64), 1)
    prepared = speed.prepare(model, "cpu")
    with torch.no_grad():
        for got, wanted in zip(prepared._forward(images)[0], model._forward(images)[0]):
            assert torch.allclose(got, wanted, atol=1e-4)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("postprocess", [True, False])
def test_a_lighter_head_is_faster(postprocess: bool, tmp_path: Path) -> None:
    heavy, light = build("headway::gfl_nano", stacked_convs=8), build("headway::gfl_nano", stacked_convs=1)
    got = measure(
        light,
        heavy,
        speed.make_inputs((160, 160), 1),
        pairs=4,
        seconds=0.0,
        postprocess=postprocess,
        lease=str(tmp_path / "lease"),
    )
    assert got.pairs == 4
    assert got.ratio < 0.9
    assert got.q1 <= got.ratio <= got.q3


@pytest.mark.parametrize("base", ["headway::atss_tiny", "headway::fcos_tiny", "headway::retinanet_tiny"])
def test_every_head_can_be_timed(base: str) -> None:
    model = build(base)
    assert measure(model, model, speed.make_inputs((64, 64), 2), pairs=2, seconds=0.0, warm_up=1).ratio > 0


def test_the_allocator_is_set_where_glibc_is() -> None:
    assert isinstance(keep_large_buffers(), bool)
    assert environment(3)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("collects", [True, False])
def test_what_is_imported_is_not_looked_at_by_the_collector(collects: bool) -> None:
    imported: list[list[bool]] = []

    def fails() -> None:
        with importing():
            imported.append([gc.isenabled()])
            raise ImportError("no such module")

    assert gc.isenabled()
    try:
        if not collects:
            gc.disable()
        with pytest.raises(ImportError):
            fails()
        assert gc.isenabled() is collects
        assert imported == [[False]]
        assert not any(found is imported[0] for found in gc.get_objects())
    finally:
        gc.unfreeze()
        gc.enable()
