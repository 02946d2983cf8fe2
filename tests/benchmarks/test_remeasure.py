"""The shipped table's latencies measured anew: what is measured changes, what was trained does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.search.remeasure import FIGURES, remeasured
from spaces.errors import UserError
from trainers.replay import Table

TABLE = Path(__file__).parents[2] / "benchmarks/search/digits_table.parquet"


@pytest.fixture(scope="module")
def few() -> Table:
    """The baseline, and designs 1 to 3 of the shipped table, of which two have the same network; small images."""
    table = Table.read(TABLE)
    speed = {**table.study["speed"], "size": [64, 64], "pairs": 4, "seconds": 0.0}
    entries = tuple(entry for entry in table.entries if entry.trial <= 3)
    return replace(table, study={**table.study, "speed": speed}, entries=entries)


def test_an_architecture_is_measured_once_and_what_was_trained_stays(few: Table) -> None:
    networks = [{name: value for name, value in entry.knobs.items() if "ddod" not in name} for entry in few.entries]
    same = [(i, j) for i in range(len(networks)) for j in range(i) if networks[i] == networks[j]]
    assert same
    found = remeasured(few, 10)
    timed = [next(dict(row.metrics) for row in entry.rows if row.phase == "timed") for entry in found.entries]
    for i, j in same:
        if few.entries[j].knobs:
            assert [timed[i][name] for name in FIGURES] == [timed[j][name] for name in FIGURES]
    assert timed[0]["latency_ratio"] == 1 and timed[0]["aa_ratio"] > 0
    assert found.reference_ms > 0 and found.reference_ms != few.reference_ms
    assert all(
        figures["latency_ratio_q1"] <= figures["latency_ratio"] <= figures["latency_ratio_q3"] for figures in timed
    )
    for before, after in zip(few.entries, found.entries, strict=True):
        assert [row for row in before.rows if row.phase != "timed"] == [
            row for row in after.rows if row.phase != "timed"
        ]
        assert [(row.seconds, row.shared) for row in before.rows] == [(row.seconds, row.shared) for row in after.rows]


def test_a_table_of_another_device_is_refused(few: Table) -> None:
    other = replace(few, about={**few.about, "speed_kind": "cuda", "speed_device": "NVIDIA H100"})
    with pytest.raises(UserError, match=r"must be of a CPU, but digits_table\.parquet has latencies of NVIDIA H100"):
        remeasured(other, 10)
