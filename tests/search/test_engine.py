"""How often a run draws its plots."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from analysis.record import TrialRecord, TrialState
from search import engine


@pytest.mark.parametrize(("takes", "rests"), [(0.125, 15.0), (0.75, 15.0), (3.0, 60.0)])
def test_drawing_takes_at_most_a_twentieth(takes: float, rests: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """It rests 15 s, or 20 times as long as it took, counted from its end."""
    now = 100.0
    drawn: list[float] = []

    def draw() -> None:
        nonlocal now
        now += takes
        drawn.append(now)

    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: now))
    plots = engine._Throttled(draw)
    plots(TrialRecord(0, TrialState.RUNNING))
    assert drawn == []
    for _ in range(1000):
        plots(TrialRecord(1, TrialState.COMPLETE))
        now += 0.5
    gaps = [later - takes - earlier for earlier, later in itertools.pairwise(drawn)]
    assert len(gaps) >= 6
    assert all(rests <= gap <= rests + 0.5 for gap in gaps)
