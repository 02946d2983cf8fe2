"""The harness of the heads: what is measured, what is kept, and the tables that are made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.heads import cases, dtypes, operators, report, run
from spaces.errors import UserError
from trainers.config import load_base
from trainers.contract import DTYPES
from trainers.cost import count
from trainers.profile import build_patched

NANO = cases.Case(
    name="nano",
    title="Nano",
    base="headway::gfl_nano",
    knobs={"slimhead.levels": [0], "slimhead.ratio": 0.5},
    alone=cases.dense_head,
    asked=1.1,
)


def line(**more: Any) -> dict[str, Any]:
    figures = {"speedup": 1.25, "q1": 0.78, "q3": 0.82, "bound_by_macs": 1.3, "bound_by_bytes": 1.2, "pairs": 8}
    return {
        **run.Job(case=NANO, part="whole", size=(800, 1344), batch=1).key,
        **figures,
        "reached_of_macs": 0.96,
        **more,
    }


MACHINE = {
    "device": "cpu", "name": "Some CPU", "cores": 2, "threads": 1, "memory_gb": 8, "instructions": "AVX2",
    "torch": "2.13.0",
}  # fmt: skip


def test_every_case_can_be_built_and_counted_against_its_base() -> None:
    for case in cases.CASES:
        canonical = run.design(case.base, case.knobs)
        assert bool(canonical) == (case.name != "aa")
        assert load_base(case.base).model.type
    assert len({case.name for case in cases.CASES}) == len(cases.CASES)


def test_small_jobs_come_first_and_parts_without_a_size_once() -> None:
    box = cases.Case(name="box", title="", base="", alone=cases.box_head, sizes_matter=False)
    found = [str(job) for job in run.jobs([NANO, box], run.PARTS, [(800, 1344), (320, 320)], [8, 1])]
    assert found[:4] == [
        "nano whole 320x320 batch 1",
        "nano alone 320x320 batch 1",
        "box whole 320x320 batch 1",
        "box alone batch 1",
    ]
    assert found[4:7] == ["nano whole 800x1344 batch 1", "nano alone 800x1344 batch 1", "box whole 800x1344 batch 1"]
    assert len(found) == 14


@pytest.mark.parametrize("part", run.PARTS)
def test_a_job_is_measured_beside_its_bounds(part: str) -> None:
    job = run.Job(case=NANO, part=part, size=(64, 96), batch=2)
    found = run.measure(job, device="cpu", pairs=3, seconds=0.0)
    both = [build_patched(NANO.base, run.design(NANO.base, knobs)) for knobs in (NANO.knobs, {})]
    costs = [count(model, (64, 96)) for model in both]
    macs = [cost.macs if part == "whole" else cost.macs_parts["head"] for cost in costs]
    # Decoding has GFL's integral over its bins as a product, alike on both sides.
    integral = found["macs"][0] - 2 * macs[0]
    assert found["macs"] == [2 * value + integral for value in macs]
    assert (integral > 0) == (part == "whole") and integral < 0.05 * macs[0]
    assert (
        found["bound_by_macs"] == pytest.approx(found["macs"][1] / found["macs"][0]) and found["bound_by_macs"] > 1.05
    )
    assert found["pairs"] == len(found["times"]) == 4
    assert found["speedup"] == pytest.approx(found["reached_of_macs"] * found["bound_by_macs"])
    ratios = sorted(a / b for a, b in found["times"])
    assert ratios[0] < found["ratio"] < ratios[-1]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("part", run.PARTS)
def test_both_compute_in_the_type_that_is_asked_for(part: str) -> None:
    job = run.Job(case=NANO, part=part, size=(64, 96), batch=1)
    plain, short = (run.measure(job, device="cpu", pairs=2, seconds=0.0, dtype=dtype) for dtype in DTYPES[:2])
    assert plain["macs"] == short["macs"]
    assert all(one < 0.9 * other for one, other in zip(short["bytes"], plain["bytes"], strict=True))


def test_measurements_in_another_type_are_a_file_of_their_own() -> None:
    described = run.machine("cpu", 1, "bfloat16")
    assert run.file_name(described).endswith("_1-thread_bfloat16.jsonl")
    assert report.heading(described).endswith(", in bfloat16")
    assert run.machine("cpu", 1) == {key: value for key, value in described.items() if key != "dtype"}
    asked = replace(NANO, asked=1.5)
    one = {**line(), "size": [800, 1344], "batch": 1}
    assert "asked: 1.5" in report.row(one, asked) and "asked" not in report.row(one, asked, asked=False)


def test_a_detector_in_a_shorter_type_against_itself(tmp_path: Path) -> None:
    words = [
        "--base",
        NANO.base,
        "--size",
        "64x96",
        "--pairs",
        "2",
        "--seconds",
        "0",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    for dtype in DTYPES[1:]:
        dtypes.main([*words, "--dtype", dtype, "--out", str(tmp_path / "a.jsonl")])
    dtypes.main([*words, "--training", "--batch", "2", "--out", str(tmp_path / "a.jsonl")])
    described, lines = run.read(tmp_path / "a.jsonl")
    assert described == run.machine("cpu", 1)
    assert [one["case"] for one in lines] == [f"{NANO.base} in {dtype}" for dtype in (*DTYPES[1:], DTYPES[1])]
    assert [(one["part"], one["batch"]) for one in lines] == [("whole", 1), ("whole", 1), ("training", 2)]
    assert all(one["speedup"] == 1 / one["ratio"] and one["q1"] <= one["ratio"] <= one["q3"] for one in lines)


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def measure(job: run.Job, **_: Any) -> dict[str, Any]:
        measured.append(str(job))
        if len(measured) == 2:
            raise KeyboardInterrupt
        return {name: value for name, value in line().items() if name not in run.KEY}

    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(run, "machine", lambda device, threads, dtype: MACHINE)
    threads = str(torch.get_num_threads())
    words = ["--out", str(tmp_path / "a.jsonl"), "--cases", "aa", "--parts", "whole", "--batches", "1"]
    words += ["--threads", threads]
    with pytest.raises(KeyboardInterrupt):
        run.main(words)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"case": "aa", "part": "wh')  # killed while it wrote
    assert run.main(words) == 0
    assert measured == [f"aa whole {size} batch 1" for size in ("320x320", "800x1344", "800x1344")]
    assert run.main(words) == 0 and len(measured) == 3
    described, lines = run.read(tmp_path / "a.jsonl")
    assert described == MACHINE and [one["size"] for one in lines] == [[320, 320], [800, 1344]]
    assert run.main([*words, "--again", "--sizes", "320x320"]) == 0
    assert len(run.read(tmp_path / "a.jsonl")[1]) == 2  # the newest of each counts


def test_a_file_of_another_machine_is_refused(tmp_path: Path) -> None:
    run.begin(tmp_path / "a.jsonl", MACHINE)
    with pytest.raises(UserError, match="with another threads, torch"):
        run.begin(tmp_path / "a.jsonl", {**MACHINE, "threads": 2, "torch": "2.14.0"})


def test_wrong_words_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--cases", "slim-p4"]) == 2
    assert "slim-p3" in capsys.readouterr().err
    assert run.main(["--sizes", "800"]) == 2
    assert [case.name for case in run.chosen("dcn*,aa")] == ["aa", "dcn", "dcn-slim-p3"]


def test_the_table(tmp_path: Path) -> None:
    run.append(tmp_path / "a.jsonl", {"machine": MACHINE})
    run.append(tmp_path / "a.jsonl", line(size=[320, 320], speedup=1.0, q1=1.0, q3=1.0))
    run.append(tmp_path / "a.jsonl", line())
    run.append(tmp_path / "a.jsonl", line(part="alone", size=None))
    assert report.tables([tmp_path / "a.jsonl"], [NANO]).splitlines() == [
        "**Some CPU, 1 of 2 cores, AVX2, 8 GB, torch 2.13.0** (`a.jsonl`)",
        "",
        "Whole detectors, from normalised images to boxes:",
        "",
        *report._HEAD,
        "| Nano (asked: 1.1) | 800x1344 | 1 | **1.250** (1.220 to 1.282) | 1.300 | 1.200 | 96 % | 8 |",
        "| Nano | 320x320 | 1 | **1.000** (1.000 to 1.000) | 1.300 | 1.200 | 96 % | 8 |",
        "",
        "Parts alone:",
        "",
        *report._HEAD,
        "| Nano: head | any | 1 | **1.250** (1.220 to 1.282) | 1.300 | 1.200 | 96 % | 8 |",
    ]


def test_the_table_of_convolutions(tmp_path: Path) -> None:
    line = {"case": "dcn-2", "way": "forward", "against": "mmcv", "speedup": 4.126, "q1": 3.9, "q3": 4.257, "pairs": 8}
    (tmp_path / "a.json").write_text(json.dumps({"machine": MACHINE, "measured": [line]}))
    assert report.operators([tmp_path / "a.json"]).splitlines()[-1] == (
        "| deformable, version 2, likewise | forward | mmcv's operator | **4.13** (3.90 to 4.26) | 8 |"
    )
    assert set(report._OPERATORS) == set(operators.CASES)


def test_the_pages_show_what_was_measured() -> None:
    text = report.text()
    for page in report.PAGES:
        content = page.read_text(encoding="utf-8")
        assert report.put(content, text) == content, f"run benchmarks/heads/report.py: {page.name} is behind results/"
    with pytest.raises(ValueError, match="must have"):
        report.put("no marks", text)
