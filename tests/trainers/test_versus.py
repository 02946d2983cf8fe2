"""Two configs timed against each other in a process of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spaces.errors import HeadwayError
from trainers.config import load_base
from trainers.versus import VersusRequest, versus

ASKED = VersusRequest(candidate="", baseline="", size=(96, 96), rounds=6, seconds=0.5)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("versus") / "plain.py"
    path.write_text(load_base("headway::gfl_nano").pretty_text)
    return path


def test_a_deeper_tower_takes_longer(plain: Path) -> None:
    config = load_base("headway::gfl_nano")
    config.model.bbox_head.stacked_convs += 8
    deeper = plain.with_name("deeper.py")
    deeper.write_text(config.pretty_text)
    found = versus(replace(ASKED, candidate=str(deeper), baseline=str(plain)))
    assert found.ratio > 1.2 and found.q1 <= found.ratio <= found.q3
    assert 0.7 < found.aa < 1.4  # the baseline's own second build is as fast, whatever the machine does
    assert found.ratio > 1.1 * found.aa
    assert found.rounds >= 6 and found.rounds % 6 == 0  # three detectors stand at each place equally often in six
    assert found.candidate_ms > found.baseline_ms > 0
    assert found.device


def test_a_config_that_cannot_be_built(plain: Path) -> None:
    broken = plain.with_name("broken.py")
    broken.write_text("model = dict(type='NoSuchDetector')\n")
    with pytest.raises(HeadwayError, match=r"latency: .*broken\.py could not be measured: .*NoSuchDetector"):
        versus(replace(ASKED, candidate=str(broken), baseline=str(plain)))
