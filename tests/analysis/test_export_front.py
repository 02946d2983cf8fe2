"""A whole front as bundles: names, index, continuation, failures. What is in a bundle is tested in test_export.py."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from analysis import export_front as module
from analysis.bundle.receipt import hash_files
from analysis.export_front import Exported, bundles_in, export_front, folder_name
from analysis.record import Objective, SweepPoint, TrialRecord, TrialState
from spaces.errors import HeadwayError, UserError
from trainers.contract import DataRequest

TWO = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))
DATA = DataRequest(
    train_annotations="", train_images="", val_annotations="", val_images="", classes=("a",), size=(8, 8)
)


def trial(number: int, ap: float, ms: float, **more: Any) -> TrialRecord:
    return TrialRecord(number, TrialState.COMPLETE, metrics={"bbox_mAP": ap, "latency_ms": ms}, **more)


SLIM = {"slimhead.ratio": 0.5}
TRIALS = [
    trial(0, 0.40, 100),
    trial(1, 0.37, 60, knobs=SLIM),
    trial(2, 0.10, 50, knobs={"slimhead.ratio": 0.1}),
    trial(3, 0.2, 90, knobs={"slimhead.ratio": 0.2}),
]


class Exporter:
    """Stands for the writing of one bundle."""

    def __init__(self, *failing: str, error: BaseException | None = None) -> None:
        self.failing, self.error = failing, error or HeadwayError("its checkpoint is gone.")
        self.made: list[str] = []
        self.whys: list[str] = []

    def __call__(self, record: TrialRecord, *, out: Path, study: Any, why: str, baseline: Any, **_: Any) -> Path:
        assert baseline.number == 0
        if record.label in self.failing:
            raise self.error
        out.mkdir()
        (out / "weights.pth").write_text(record.label)
        receipt = {
            "format": 1,
            "study": {"name": study["name"]},
            "point": record.label,
            "knobs": dict(record.knobs),
            "metrics": {"bbox_mAP": {"value": record.metrics["bbox_mAP"]}},
            "data": {"validation_fingerprint": "f"},
            "environment": {"exported": {"versions": {}}},
            "files": hash_files(out),
        }
        (out / "receipt.json").write_text(json.dumps(receipt))
        self.made.append(record.label)
        self.whys.append(why)
        return out


def run(out: Path, exporter: Exporter, monkeypatch: pytest.MonkeyPatch, trials: Any = TRIALS, **more: Any) -> Any:
    monkeypatch.setattr(module, "export_bundle", exporter)
    study = {"name": more.pop("name", "cells")}
    return export_front(trials, TWO, study_folder=out, study=study, data=DATA, fingerprint=None, out=out, **more)


NAMES = ["trial-2_AP-10.0_latency-50.0ms", "trial-1_AP-37.0_latency-60.0ms", "baseline_AP-40.0_latency-100.0ms"]


def test_the_front_is_written_and_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, seen = Exporter(), []
    found = run(
        tmp_path / "out", exporter, monkeypatch, progress=lambda one, done, count: seen.append((one.point, done, count))
    )
    assert exporter.made == ["2", "1", "0"]
    assert [one.folder for one in found] == NAMES
    assert [one.state for one in found] == ["written"] * 3
    assert [one.picks for one in found] == [("fastest",), ("knee",), ("most_accurate",)]
    assert exporter.whys[1].startswith("trial 1 is the knee: of 3 points of the front")
    assert seen == [("2", 1, 3), ("1", 2, 3), ("0", 3, 3)]
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert (index["study"], index["points"]) == ("cells", 3)
    assert index["bundles"][1] == {
        "point": "1", "trial": 1, "folder": NAMES[1], "state": "written", "reason": None, "picks": ["knee"],
        "baseline": False, "on_front": True, "design": "slimhead ratio=0.5",
        "metrics": {"bbox_mAP": 0.37, "latency_ms": 60},
    }  # fmt: skip
    readme = (tmp_path / "out/README.md").read_text()
    assert "3 of 3 bundles" in readme and "| bundle | AP | latency | | design |" in readme
    assert f"| [{NAMES[1]}]({NAMES[1]}/README.md) | 37.0 % | 60.0 ms | knee | slimhead ratio=0.5 |" in readme
    assert bundles_in(tmp_path / "out") == [tmp_path / "out" / name for name in NAMES]


def test_it_continues_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, Exporter("1", error=KeyboardInterrupt()), monkeypatch)
    (out / f".{NAMES[1]}.0123abcd.part").mkdir()  # of a process that was killed
    first = (out / NAMES[0] / "receipt.json").stat().st_mtime_ns
    exporter = Exporter()
    found = run(out, exporter, monkeypatch)
    assert exporter.made == ["1", "0"]
    assert [one.state for one in found] == ["there", "written", "written"]
    assert (out / NAMES[0] / "receipt.json").stat().st_mtime_ns == first
    assert not list(out.glob("*.part")) and not list(out.glob(".*.part"))
    again = Exporter()
    assert [one.state for one in run(out, again, monkeypatch)] == ["there"] * 3 and again.made == []


@pytest.mark.parametrize(
    "error", [HeadwayError("its checkpoint is gone."), RuntimeError("a fault"), OSError(28, "full")]
)
def test_one_failure_does_not_lose_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    found = run(tmp_path / "out", Exporter("1", error=error), monkeypatch)
    assert [one.state for one in found] == ["written", "failed", "written"]
    assert str(error) in str(found[1].reason)
    readme = (tmp_path / "out/README.md").read_text()
    assert "2 of 3 bundles" in readme and f"{NAMES[1]} (failed)" in readme and "## Failed" in readme
    assert bundles_in(tmp_path / "out") == [tmp_path / "out" / NAMES[0], tmp_path / "out" / NAMES[2]]
    # What failed is tried again.
    exporter = Exporter()
    assert [one.state for one in run(tmp_path / "out", exporter, monkeypatch)] == ["there", "written", "there"]
    assert exporter.made == ["1"]


def test_a_changed_bundle_is_told_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    run(out, Exporter(), monkeypatch)
    (out / NAMES[0] / "weights.pth").write_text("mine")
    found: list[Exported] = run(out, Exporter(), monkeypatch)
    assert [one.state for one in found] == ["failed", "there", "there"]
    assert "are not those of its receipt; remove it" in str(found[0].reason)
    assert (out / NAMES[0] / "weights.pth").read_text() == "mine"


def test_places_that_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = Exporter()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("")
    with pytest.raises(UserError, match=r"--out: must be a new or empty folder, or one that the front of cells"):
        run(tmp_path / "mine", exporter, monkeypatch)
    with pytest.raises(UserError, match=r"notes\.txt is a file"):
        run(tmp_path / "mine/notes.txt", exporter, monkeypatch)
    run(tmp_path / "other", Exporter(), monkeypatch, name="other")
    with pytest.raises(UserError, match="the front of cells was exported into"):
        run(tmp_path / "other", exporter, monkeypatch)
    run(tmp_path / "held", Exporter(), monkeypatch)
    with (tmp_path / "held/.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another export writes into"):
            run(tmp_path / "held", exporter, monkeypatch)
    with pytest.raises(UserError, match="--all: no trial of this study is COMPLETE"):
        run(tmp_path / "none", exporter, monkeypatch, trials=[])
    assert exporter.made == [] and not (tmp_path / "none").exists()


def test_the_baseline_goes_along_where_latency_depends_on_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = trial(0, 0.40, 100)
    swept = [
        SweepPoint(0, {"querydet.threshold": 0.15}, {"bbox_mAP": 0.41, "latency_ms": 80}),
        SweepPoint(1, {"querydet.threshold": 0.3}, {"bbox_mAP": 0.40, "latency_ms": 70}),
    ]
    exporter = Exporter()
    found = run(tmp_path / "out", exporter, monkeypatch, trials=[base, trial(1, 0.41, 80, sweep=swept)])
    assert exporter.made == ["1.1", "1", "0"]
    assert [one.on_front for one in found] == [True, True, False]
    assert exporter.whys[2] == "trial 0 is the baseline, which the front is compared with"
    plain = Exporter()
    run(tmp_path / "plain", plain, monkeypatch, trials=[base, trial(1, 0.41, 80, knobs=SLIM)])
    assert plain.made == ["1"]


def test_names_fit_any_file_system() -> None:
    objectives = (*TWO, Objective("params_m", "minimize"), Objective("latency_ratio", "minimize"))
    big = TrialRecord(
        7,
        TrialState.COMPLETE,
        metrics={"bbox_mAP": 0.413, "latency_ms": 1234.5, "params_m": 3.312, "latency_ratio": 0.5},
        point=2,
    )
    assert folder_name(big, objectives) == "trial-7.2_AP-41.3_latency-1234.5ms_parameters-3.31M_latency-ratio-0.500x"


def test_bundles_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="must be given a folder with bundles"):
        bundles_in(tmp_path)
    run(tmp_path / "out", Exporter(), monkeypatch)
    for path in (tmp_path / "out" / NAMES[1]).iterdir():
        path.unlink()
    with pytest.raises(UserError, match=f"names the bundle {NAMES[1]}, but there is none"):
        bundles_in(tmp_path / "out")
    (tmp_path / "out/index.json").write_text("{}")
    with pytest.raises(UserError, match="must be an index, but gives KeyError"):
        bundles_in(tmp_path / "out")
