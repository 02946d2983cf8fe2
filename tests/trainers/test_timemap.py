"""A pass cut into parts and levels, against what is known of each."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import mmdet.models  # noqa: F401  registers the detectors
import pytest
import torch

from spaces.base import facts
from spaces.space import full_space
from trainers import speed, timemap
from trainers.config import load_base
from trainers.cost import count
from trainers.profile import build_patched, profile_config
from trainers.timemap import map_time

SIZE = (128, 160)


def built(base: str, **design: Any) -> Any:
    knobs = {name.replace("_", ".", 1): value for name, value in design.items()}
    known = full_space(facts(load_base(base).model.to_dict())).canonicalise(knobs, base) if knobs else {}
    return build_patched(base, known)


def mapped(model: Any, rounds: int = 1) -> Any:
    prepared = speed.prepare(model, "cpu")
    one = speed.detector_pass(prepared, speed.make_inputs(SIZE, 1), postprocess=True)
    (found,) = map_time([(prepared, one)], device="cpu", rounds=rounds)
    return found


@pytest.mark.parametrize(
    ("base", "design"),
    [
        ("headway::gfl_nano", {}),
        ("headway::gfl_nano", {"slimhead_levels": [0], "slimhead_ratio": 0.5}),
        ("headway::gfl_nano", {"dcn_placement": ["cls.0"], "dcn_version": 2}),
        ("headway::gfl_nano", {"shallow_levels": [0, 1], "shallow_channels": 0.5}),
        ("headway::retinanet_tiny", {}),
        ("headway::fcos_tiny", {}),
    ],
)
def test_parts_and_levels_have_the_multiply_adds_that_are_counted(base: str, design: dict[str, Any]) -> None:
    model = built(base, **design)
    found, cost = mapped(model), count(model, SIZE)
    by_part: dict[str, int] = defaultdict(int)
    by_level: dict[str | None, int] = defaultdict(int)
    for one in found.stretches:
        by_part["head" if one.part in ("towers", "projections", "head") else one.part] += one.macs
        if one.part in ("towers", "projections", "head"):
            by_level[one.level] += one.macs
    assert {name: by_part[name] for name in cost.macs_parts} == cost.macs_parts
    assert by_level.pop(None, 0) == 0
    assert by_level == cost.macs_levels
    assert set(by_part) - {"head", "backbone", "neck"} <= {"decoding", "nms", "other"}


def test_a_two_stage_detector_has_its_parts() -> None:
    model = built("headway::faster_rcnn_tiny")
    found = {(one.part, one.level): one for one in mapped(model).stretches}
    cost = count(model, SIZE)
    rpn = sum(one.macs for (part, _), one in found.items() if part in ("towers", "projections"))
    assert rpn == cost.macs_parts["rpn"]
    assert {"pooling", "roi_head", "decoding", "nms", "backbone", "neck"} <= {part for part, _ in found}
    # NMS moves boxes and multiplies nothing.
    assert found["nms", None].macs == 0 and found["nms", None].ms > 0 and found["roi_head", None].macs > 0


def test_the_parts_add_up_and_the_detector_is_as_before() -> None:
    model = speed.prepare(built("headway::gfl_nano"), "cpu")
    before = {name: (set(vars(module)), len(module._forward_hooks)) for name, module in model.named_modules()}
    from mmdet.models.dense_heads import base_dense_head

    suppress = base_dense_head.batched_nms
    one = speed.detector_pass(model, speed.make_inputs(SIZE, 1), postprocess=True)
    (found,) = map_time([(model, one)], device="cpu", rounds=3)
    assert found.passes == 3
    assert found.sum_ms == pytest.approx(sum(item.ms for item in found.stretches))
    assert 0.3 * found.whole_ms < found.sum_ms < 5 * found.whole_ms
    assert sum(row["share"] for row in found.shares()) == pytest.approx(1, abs=1e-4)
    assert found.overhead > 0 and all(item.bytes >= 0 and item.ms >= 0 for item in found.stretches)
    after = {name: (set(vars(module)), len(module._forward_hooks)) for name, module in model.named_modules()}
    assert after == before and base_dense_head.batched_nms is suppress


def test_time_is_put_down_to_the_span_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(torch.nn.Module):
        """A detector whose clock is moved by its parts, 1 ms by the backbone and 5 by the neck."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.neck = torch.nn.ReLU(), torch.nn.ReLU()

        def extract_feat(self, images: torch.Tensor) -> torch.Tensor:
            return images

    clock = [0.0]
    monkeypatch.setattr(timemap.time, "perf_counter", lambda: clock[0])
    model = Slow()
    model.backbone.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 0.001))
    model.neck.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 0.005))

    def run() -> None:
        model.backbone(model.neck(torch.zeros(1)))
        clock[0] += 0.002

    (found,) = map_time([(model, run)], device="cpu", rounds=2)
    assert {one.part: round(one.ms, 6) for one in found.stretches} == {"backbone": 1.0, "neck": 5.0, "other": 2.0}
    assert (round(found.sum_ms, 6), round(found.whole_ms, 6), round(found.overhead, 6)) == (8.0, 8.0, 1.0)


def test_a_trial_keeps_shares_or_why_there_are_none() -> None:
    model = built("headway::gfl_nano")
    found = timemap.note(
        model,
        lambda prepared, device: speed.detector_pass(prepared, speed.make_inputs(SIZE, 1), postprocess=False),
        device="cpu",
    )["time"]
    assert found["passes"] == 2 and "decoding" not in {row["part"] for row in found["parts"]}
    assert {row["level"] for row in found["parts"] if row["part"] == "towers"} == set(count(model, SIZE).macs_levels)

    def broken(prepared: Any, device: str) -> Any:
        return lambda: prepared.bbox_head.nothing

    told = timemap.note(model, broken, device="cpu")
    assert "nothing" in told["time_note"] and "time" not in told


def test_a_profile_compares_by_part_and_level(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmengine.config import Config

    from trainers.profile import patched_base

    monkeypatch.setattr("trainers.profile.settle", lambda threads: None)
    known = full_space(facts(load_base("headway::gfl_nano").model.to_dict()))
    knobs = known.canonicalise({"slimhead.levels": [0], "slimhead.ratio": 0.5}, "test")
    Config.dump(patched_base("headway::gfl_nano", knobs), str(tmp_path / "slim.py"))
    found = profile_config(
        str(tmp_path / "slim.py"), against="headway::gfl_nano", size=(128, 128), latency=True, pairs=2
    )["latency"]
    rows = {(one["part"], one["level"]): one for one in found["parts"]}
    finest, next_one, *_ = found["levels"]
    assert rows["towers", finest]["bound_by_macs"] == 4 and rows["towers", next_one]["bound_by_macs"] == 1
    assert rows["head", finest]["bound_by_macs"] is None  # resizing multiplies nothing
    assert 1 < found["levels"][finest]["bound_by_macs"] < 4
    assert 1 < found["bound_by_bytes"] < 2
    assert sum(one["share"] for one in found["parts"]) == pytest.approx(1)
    assert sum(one["ms"] for one in found["parts"]) == pytest.approx(found["cut"]["sum_ms"])
    assert found["cut"]["passes"] == 1 and found["cut"]["against_whole_ms"] > 0
    alone = profile_config("headway::gfl_nano", against=None, size=(128, 128), latency=True, pairs=2)["latency"]
    assert "against_ms" not in alone["parts"][0] and alone["bound_by_bytes"] == 1
