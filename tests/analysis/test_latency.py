"""Whether a bundle's latency ratio is the same again: the decision. The measuring is tested in test_versus.py."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.bundle import latency
from analysis.bundle.latency import check_latency, latency_section
from analysis.bundle.receipt import hash_files
from analysis.record import TrialRecord, TrialState
from spaces.errors import UserError
from trainers.versus import Versus, VersusRequest

CPU = "A fast CPU"
NOW = Versus(ratio=0.80, q1=0.79, q3=0.81, aa=1.0, rounds=9, candidate_ms=8.0, baseline_ms=10.0, device=CPU)
STUDY = {"name": "cells", "speed": {"batch": 2, "postprocess": False, "pairs": 11, "seconds": 3.0, "images": 5}}


def record(number: int = 1, **knobs: Any) -> TrialRecord:
    ratio = {"latency_ratio": 0.80, "latency_ratio_q1": 0.78, "latency_ratio_q3": 0.82}
    attrs = {"speed_device": CPU, "speed_threads": 3, "speed_kind": "cpu", "count_size": [96, 128]}
    return TrialRecord(number, TrialState.COMPLETE, knobs=knobs, metrics=ratio, attrs=attrs)


BASE = TrialRecord(0, TrialState.COMPLETE, metrics={"aa_ratio": 0.99}, attrs={"speed_kind": "cpu"})


def receipt(**changes: Any) -> dict[str, Any]:
    trial = record()
    return {
        "format": 1,
        "study": {"name": "cells"},
        "trial": 1,
        "point": "1",
        "baseline": False,
        "metrics": {"bbox_mAP": {"value": 0.3}, **{name: {"value": value} for name, value in trial.metrics.items()}},
        "data": {"validation_fingerprint": "f"},
        "environment": {"exported": {"versions": {}}},
        "latency": latency_section(trial, BASE, STUDY, has_config=True),
        **changes,
    }


class Measured:
    """Gives measurements in turn, and keeps what was asked for."""

    def __init__(self, *found: Versus) -> None:
        self.left, self.asked = list(found), []  # type: tuple[list[Versus], list[VersusRequest]]

    def __call__(self, request: VersusRequest) -> Versus:
        self.asked.append(request)
        return self.left.pop(0)


def check(
    monkeypatch: pytest.MonkeyPatch, *found: Versus, told: Any = None, folder: Path = Path("/b"), **more: Any
) -> Any:
    measured = Measured(*found)
    monkeypatch.setattr(latency, "versus", measured)
    more = {"against": None, **more}
    result = check_latency(folder, told or receipt(), annotations=Path("v.json"), images=Path("i"), **more)
    assert not measured.left
    return result, measured.asked


def test_the_receipt_tells_how_it_was_measured() -> None:
    assert latency_section(record(), BASE, STUDY, has_config=True) == {
        "size": {"height": 96, "width": 128}, "batch": 2, "postprocess": False, "dtype": "float32", "rounds": 11,
        "seconds": 3.0,
        "images": None, "device": CPU, "kind": "cpu", "threads": 3, "aa_ratio": 0.99, "baseline": "baseline.py",
    }  # fmt: skip
    on_images = latency_section(record(**{"querydet.threshold": 0.15}), BASE, STUDY, has_config=False)
    assert on_images is not None and (on_images["images"], on_images["baseline"]) == (5, None)
    assert latency_section(replace(record(), attrs={}), BASE, STUDY, has_config=True) is None


def test_it_is_measured_as_the_search_did(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = check(monkeypatch, NOW)
    assert asked == [
        VersusRequest(
            candidate="/b/config.py", baseline="/b/baseline.py", size=(96, 128), batch=2, postprocess=False,
            device="cpu", threads=3, rounds=11, seconds=3.0,
        )
    ]  # fmt: skip
    assert (found.state, found.expected, found.noise) == ("agrees", 0.80, 1.02)
    assert "0.800 now (quartiles 0.790-0.810, 9 rounds), 0.800 (0.780-0.820) in the receipt" in found.words
    assert found.words.endswith("2 % is noise: they agree")
    assert found.to_json()["found"]["aa"] == 1.0


# The receipt's quartiles are 0.78 to 0.82; the least noise widens them to 0.765 and 0.836.
@pytest.mark.parametrize(
    ("now", "state"),
    [
        (replace(NOW, ratio=0.85, q1=0.835, q3=0.87), "agrees"),
        (replace(NOW, ratio=0.85, q1=0.838, q3=0.87), "differs"),
        (replace(NOW, ratio=0.76, q1=0.75, q3=0.766), "agrees"),
        (replace(NOW, ratio=0.76, q1=0.75, q3=0.763), "differs"),
        # Two builds of the baseline differ by a tenth, in either direction: to 0.709 and 0.902.
        (replace(NOW, ratio=0.91, q1=0.90, q3=0.92, aa=1.1), "agrees"),
        (replace(NOW, ratio=0.91, q1=0.90, q3=0.92, aa=1 / 1.1), "agrees"),
        (replace(NOW, ratio=0.92, q1=0.91, q3=0.93, aa=1.1), "differs"),
    ],
)
def test_what_is_within_noise(monkeypatch: pytest.MonkeyPatch, now: Versus, state: str) -> None:
    found, asked = check(monkeypatch, *[now] * (1 if state == "agrees" else 3))
    assert found.state == state
    assert ("they agree" if state == "agrees" else "they differ") in found.words
    # What differs is measured again, for longer.
    assert [request.seconds for request in asked] == [3.0, 6.0, 6.0][: len(asked)]


def test_noise_of_the_search_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = replace(NOW, ratio=0.91, q1=0.90, q3=0.92)
    told = receipt()
    told["latency"]["aa_ratio"] = 0.9
    assert check(monkeypatch, now, told=told)[0].state == "agrees"


def test_a_second_measurement_can_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = check(monkeypatch, replace(NOW, ratio=1.2, q1=1.1, q3=1.3), NOW)
    assert found.state == "agrees" and len(asked) == 2


def test_elsewhere_it_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = replace(NOW, ratio=1.2, q1=1.1, q3=1.3, device="Another CPU")
    found, asked = check(monkeypatch, slow)
    assert found.state == "elsewhere" and len(asked) == 1
    assert found.words.endswith("decides nothing, as the search measured on A fast CPU and this is Another CPU")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"baseline": True}, "it is the baseline, whose ratio is 1 by definition"),
        ({"latency": None}, "does not tell how it was measured"),
        ({"metrics": {}}, "does not tell how it was measured"),
    ],
)
def test_what_is_not_measured(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str) -> None:
    found, _ = check(monkeypatch, told=receipt(**changes))
    assert found.state == "unknown" and said in found.words


def bundle(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights.pth").write_text(folder.name)
    (folder / "receipt.json").write_text(json.dumps({**receipt(), "files": hash_files(folder), **changes}))
    return folder


def test_on_images_it_is_compared_with_the_trained_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = latency_section(record(**{"querydet.threshold": 0.15}), BASE, STUDY, has_config=False)
    told = receipt(latency=swept)
    own = bundle(tmp_path / "all/trial-1", latency=swept)
    found, _ = check(monkeypatch, told=told, folder=own)
    assert found.state == "unknown" and "name it with --against" in found.words
    base = bundle(tmp_path / "all/base", baseline=True, trial=0)
    bundle(tmp_path / "all/aaa", baseline=True, study={"name": "others"})
    found, (asked,) = check(monkeypatch, NOW, told=told, folder=own)
    assert found.state == "agrees"
    assert asked.baseline == str(base / "config.py") and asked.images is not None
    assert asked.images.baseline_weights == str(base / "weights.pth") and asked.images.count == 5
    assert (asked.images.annotations, asked.images.folder) == ("v.json", "i")
    # Named, wherever it lies; and refused when it is another or was changed.
    elsewhere = Path(shutil.move(base, tmp_path / "elsewhere"))
    assert check(monkeypatch, NOW, told=told, folder=own, against=elsewhere)[0].state == "agrees"
    with pytest.raises(UserError, match=r"--against: must be the bundle of the baseline of cells, but .* trial 1"):
        check(monkeypatch, told=told, folder=own, against=own)
    (elsewhere / "weights.pth").write_text("other")
    with pytest.raises(UserError, match="are not those of its receipt"):
        check(monkeypatch, told=told, folder=own, against=elsewhere)
