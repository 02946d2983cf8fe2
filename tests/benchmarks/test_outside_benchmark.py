"""Where a study's time went, from a log whose sums are known."""

import pytest

from benchmarks.outside.measure import shares


def log():
    """Two places from 0 to 100 s: the baseline's latency is known at 20, trial 1 starts then, trial 2 after trial 1."""
    yield {"time": 0.0, "event": "noted"}
    yield {"time": 4.0, "event": "begun", "share": {"concurrent": 2}}
    for number, started, end in ((0, 6.0, 90.0), (1, 20.0, 50.0), (2, 52.0, 98.0)):
        yield {"time": started + 0.1, "event": "started", "trial": number, "at": started}
        yield {"time": started + 9, "event": "figures", "trial": number, "metrics": {"gmacs": 1.0}}
        waited = {"attrs": {"speed_waited": 1.5}} if number == 2 else {}
        yield {"time": started + 14, "event": "figures", "trial": number, "metrics": {"latency_ratio": 1.0}, **waited}
        for epoch in (1, 2):
            taken = {"train_seconds": (end - started - 20) / 2, "val_seconds": 1.0}
            yield {"time": started + 30, "event": "epoch", "trial": number, "epoch": epoch, "metrics": taken}
        yield {"time": end, "event": "ended", "trial": number, "at": end}
    yield {"time": 100.0, "event": "finished"}


def test_every_second_of_every_place_is_counted_once():
    found = shares(list(log()))
    assert (found["places"], found["trials"], found["wall"], found["whole"]) == (2, 3, 100, 200)
    assert found["start"] == 2 * 6
    assert found["baseline"] == 14
    assert found["build"] == 3 * 9
    assert found["latency"] == 3 * 5 - 1.5
    assert found["lease"] == 1.5
    assert found["training"] == (64 + 2) + (10 + 2) + (26 + 2)
    assert found["rest"] == (84 + 30 + 46) - 27 - 15 - found["training"]
    assert found["end"] == (100 - 98) + (100 - 90)
    assert found["between"] == pytest.approx(2)  # between the trials 1 and 2


def test_a_study_that_was_continued_is_refused():
    events = list(log())
    with pytest.raises(ValueError, match="run once to its end, but began 2 times"):
        shares([*events[:3], events[1], *events[3:]])


def test_the_time_of_the_command_around_it_counts_where_it_is_known():
    found, without = shares(list(log()), 104.0), shares(list(log()))
    assert (found["wall"], found["whole"], found["command"]) == (104, 208, 8)
    assert without["command"] == 0
    assert found["between"] == pytest.approx(without["between"])
    with pytest.raises(ValueError, match=r"--elapsed: must be 100\.0 s or more"):
        shares(list(log()), 99.0)
    with pytest.raises(ValueError, match="but got nan"):
        shares(list(log()), float("nan"))
