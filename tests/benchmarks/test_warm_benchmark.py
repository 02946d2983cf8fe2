"""The comparison of a warm start with scratch: numbers worked out by hand, and the command over two studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.record import EpochRecord, TrialRecord, TrialState
from benchmarks.warm.compare import compare, hours_until, main, table
from search.folder import claimed, write_study
from search.store import Store
from search.study import load
from spaces.base import BaseFacts
from spaces.space import build_space


def trial(number: int, hours: float, accuracy: float, ratio: float, **more: Any) -> TrialRecord:
    return TrialRecord(
        number=number,
        state=more.pop("state", TrialState.COMPLETE),
        metrics={"bbox_mAP": accuracy, "latency_ratio": ratio},
        curve=[EpochRecord(1, {"bbox_mAP": accuracy})],
        finished=float(number),
        compute_hours=hours,
        **more,
    )


# Up to AP 0 and a ratio of 2: the baseline dominates 0.4 x 1, with the faster one 0.3 x 0.5 more.
SCRATCH = [trial(0, 1.0, 0.4, 1.0), trial(1, 1.0, 0.1, 0.5, state=TrialState.STOPPED), trial(2, 2.0, 0.3, 0.5)]
WARM = [
    trial(0, 1.5, 0.4, 1.0, attrs={"warm_seconds": 3600.0, "warm_epochs": 8}),
    trial(1, 0.25, 0.35, 0.5),
    trial(2, 0.25, 0.3, 0.9),
]


def test_by_hand() -> None:
    found = compare(SCRATCH, WARM, shares=(0.5, 0.8, 1.0))
    assert found["reference"] == {"bbox_mAP": 0.0, "latency_ratio": 2.0}
    assert [row["hypervolume"] for row in found["scratch"]["curve"]] == pytest.approx([0.4, 0.4, 0.55])
    assert found["scratch"]["compute_hours"] == 4.0
    assert found["warm"]["hypervolume"] == pytest.approx(0.4 + 0.35 * 0.5)
    assert (found["warm"]["compute_hours"], found["warm"]["warm_hours"], found["warm"]["epochs"]) == (2.0, 1.0, 11)
    assert [point["trial"] for point in found["warm"]["front"]] == ["1", "0"]
    # Half of 0.55 is there with the baseline, 0.8 of it and all of it with the faster design.
    levels = [(level["scratch"], level["warm"], level["ratio"]) for level in found["levels"]]
    assert levels == [(1.0, 1.5, 1.5), (4.0, 1.75, 0.4375), (4.0, 1.75, 0.4375)]
    assert table(found).splitlines()[-1] == "| hours to 100% of scratch's end | 4.000 | 1.750 | 0.44 |"


def test_a_level_that_is_never_reached() -> None:
    found = compare(SCRATCH, WARM[:1], shares=(1.0,))
    assert found["levels"][0]["warm"] is None and found["levels"][0]["ratio"] is None
    assert table(found).splitlines()[-1] == "| hours to 100% of scratch's end | 4.000 | never | - |"
    assert hours_until([{"compute_hours": 1.0, "hypervolume": 0.5}], 0.6) is None


STUDY = """
name: {name}
base: headway::gfl_tiny
data: {{digits: {{train: 8, val: 4}}, size: [96, 96]}}
space: {{slimhead: {{}}}}
budget: {{trials: 3, epochs: {epochs}}}
weights: {weights}
"""


def studies(root: Path) -> None:
    """Writes two studies of three trials each."""
    space = build_space({"slimhead": {}}, BaseFacts("GFL", "GFLHead", (4, 8, 16, 32), 2, False))
    for name, epochs, weights, records in (
        ("one", 8, "{from: scratch}", SCRATCH),
        ("two", 3, "{from: baseline, epochs: 8}", WARM),
    ):
        file = root / f"{name}.yaml"
        file.write_text(STUDY.format(name=name, epochs=epochs, weights=weights))
        study = load(file)
        with claimed(root / name):
            clock = iter(range(100))
            store = Store.create(root / name, study, clock=lambda clock=clock: float(next(clock)))
            for record in records:
                number = (store.propose(space) if record.number else store.propose_baseline(space)).number
                store.start(number)
                store.update(number, {**record.metrics, "latency_ms": 1.0}, record.attrs, record.compute_hours * 3600)
                store.add_epoch(number, record.curve[0])
                store.finish(number, record.state)
            write_study(root / name, study)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies(tmp_path)
    words = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert main([*words, "--json", "--png", str(tmp_path / "curves.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differ"] == []
    assert found["levels"][-1]["ratio"] == pytest.approx(0.4375)
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert main(words) == 0
    assert "| epochs trained | 3 | 11 | 3.67 |" in capsys.readouterr().out
    assert main([str(tmp_path / "none"), words[1]]) == 2
    assert "STUDY: must be a study that was run" in capsys.readouterr().err
