"""The A/A test of latency."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from search import cli
from trainers.selftest import believe, beside, neighbours, speed_selftest, summarised


def measured(ratios: Sequence[float], unpaired: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"paired": {"ratio": ratio, "q1": ratio - 0.01, "q3": ratio + 0.02, "pairs": 10}, "unpaired": other}
        for ratio, other in zip(ratios, unpaired, strict=True)
    ]


def test_what_can_be_believed_is_the_farthest_that_equal_models_came() -> None:
    row = summarised(measured([1.001, 0.9871, 1.004], [1.3, 0.8, 1.0]))
    assert (row["ratio"], row["low"], row["high"]) == (1.001, 0.9871, 1.004)
    assert (row["q1"], row["q3"]) == (pytest.approx(0.991), pytest.approx(1.021))
    assert row["unpaired"] == {"ratio": 1.0, "low": 0.8, "high": 1.3}
    assert row["believe_percent"] == 1.3
    assert summarised(measured([1.0, 1.0], [1.0, 1.0]))["believe_percent"] == 0.0
    rows = [{"believe_percent": 1.3, "beside": beside(0)}, {"believe_percent": 3.0, "beside": beside(2)}]
    assert believe(rows) == (
        "Believe differences of latency above 1.3 % with nothing beside, 3.0 % beside 2 busy cores."
    )


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # what an earlier test has left, about to be gone
        return []


def test_neighbours_are_busy_and_gone_afterwards() -> None:
    with neighbours(1):
        (child,) = [one for one in psutil.Process().children() if "getppid" in " ".join(_command(one))]
        before = child.cpu_times().user
        while child.cpu_times().user < before + 0.2:  # the test's time limit ends a neighbour that idles
            pass
    assert not child.is_running()


def test_a_model_against_itself_in_both_ways(tmp_path: Path) -> None:
    said: list[str] = []
    found = speed_selftest(
        "headway::gfl_nano",
        size=(64, 64),
        dtype="bfloat16",
        pairs=4,
        seconds=0.0,
        repeats=2,
        busy=(0,),
        say=said.append,
    )
    assert found["dtype"] == "bfloat16"
    (row,) = found["rows"]
    assert (row["busy"], row["pairs"], len(row["measurements"]), len(said)) == (0, 4, 2, 2)
    assert 0.2 < row["low"] <= row["ratio"] <= row["high"] < 5
    assert 0.2 < row["unpaired"]["ratio"] < 5
    assert found["believe"].startswith("Believe differences of latency above ")
    json.dumps(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repeats", "1"], "--repeats: must be 2 or more, but got 1."),
        (["--seconds", "0"], "--seconds: must be above 0, but got 0."),
        (["--size", "12"], "--size: must read like 800x1344"),
        (["--out", "/nowhere/x.json"], "--out: must lie in a folder that exists"),
    ],
)
def test_options_that_are_wrong(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", "speed", *options]) == 2
    assert message in capsys.readouterr().err
