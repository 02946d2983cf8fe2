"""How long the rest of a study takes."""

from __future__ import annotations

import pytest

from search.eta import Eta, clock, left_in_words


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Clock:
    return Clock()


def test_trials_side_by_side(time: Clock) -> None:
    eta = Eta(8, clock=time)
    assert eta.left() is None
    time.now += 60
    for number in (0, 1):
        eta.reached(number, 0.25)
    assert eta.left() == pytest.approx(60 / 0.5 * 7.5)
    eta.ended(0)  # at a rung: it is worth a whole one
    assert (eta.done, eta.left()) == (1, pytest.approx(60 / 1.25 * 6.75))
    time.now += 60
    eta.ended(1)
    assert eta.left() == pytest.approx(60 * 6)
    for number in range(2, 8):
        eta.ended(number)
    assert eta.left() is None  # nothing is


def test_what_an_earlier_start_did_took_no_time_here(time: Clock) -> None:
    eta = Eta(6, done=3, clock=time)
    eta.resumed(3, 0.5)
    time.now += 30
    eta.reached(3, 0.75)
    assert eta.left() is None  # a quarter of a trial says little
    time.now += 30
    eta.ended(3)
    assert eta.left() == pytest.approx(60 / 0.5 * 2)
    eta.resumed(3, 0.9)  # as it was before, not as it is


def test_a_shared_warm_start_comes_once(time: Clock) -> None:
    eta = Eta(3, clock=time)
    time.now += 1000
    eta.aside()
    time.now += 10
    eta.ended(0)
    assert eta.seconds == 1010
    assert eta.left() == pytest.approx(20)


def test_words() -> None:
    assert [clock(value) for value in (5, 65.9, 7265)] == ["0:05", "1:05", "2:01:05"]
    assert (left_in_words(None), left_in_words(65)) == ("", ", about 1:05 left")
