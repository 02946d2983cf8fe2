"""Settings of a trained design, measured again from what its trial left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.heads.trained import measure
from search.folder import write_study
from search.study import build
from spaces.base import facts
from spaces.errors import UserError
from spaces.space import build_space
from trainers.config import load_base
from trainers.contract import DataRequest, SweepRequest, TrialRequest
from trainers.detector import train

BASE = "headway::retinanet_tiny"
SPACE = {"querydet": {"threshold": [0.0, 0.5], "beta": ["none"]}}


def test_each_setting_beside_the_baseline_and_another(
    tmp_path: Path, digits_request: Callable[..., DataRequest]
) -> None:
    data = digits_request(tmp_path / "digits", train=4, val=3)
    folder = tmp_path / "study"
    folder.mkdir()
    write_study(folder, build({"name": "some", "base": BASE, "space": SPACE, "data": {"digits": {}, "size": [64, 64]}}))
    space = build_space({"querydet": {**SPACE["querydet"], "always": True}}, facts(load_base(BASE).model.to_dict()))
    design = space.canonicalise({name: knob.default for name, knob in space.knobs.items()})
    sweep = SweepRequest(settings=dict(enumerate(space.sweep(design))), speed=None)
    for number, knobs, swept in ((0, {}, None), (1, design, sweep)):
        request = TrialRequest(
            number=number, base=BASE, knobs=knobs, data=data, folder=str(folder / f"trials/{number:04d}"), epochs=1,
            batch=4, seed=3, count_size=(64, 64), sweep=swept,
        )  # fmt: skip
        train(request, lambda report: None)

    found = measure(folder, 1, 0, images=2, pairs=2, seconds=0.0)
    assert {index: line["knobs"]["querydet.threshold"] for index, line in found.items()} == {
        str(index): knobs["querydet.threshold"] for index, knobs in sweep.settings.items()
    }
    by_threshold = {line["knobs"]["querydet.threshold"]: line for line in found.values()}
    # An untrained query head asks for next to nothing above one half.
    assert by_threshold[0.0]["gmacs"] > by_threshold[0.5]["gmacs"] > 0
    assert all(
        len(line[name]) == 3 and min(line[name]) > 0 for line in found.values() for name in ("baseline", "against")
    )

    with pytest.raises(UserError, match=r"config\.7\.py"):
        measure(folder, 1, 7, images=2, pairs=2, seconds=0.0)
