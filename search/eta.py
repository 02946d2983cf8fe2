"""How long a number of like pieces of work will still take, from what those done here took."""

from __future__ import annotations

import time
from collections.abc import Callable


class Eta:
    """Counts work in pieces: trials of a study, trainings of a confirmation.

    A piece is worth its share of epochs, and 1 once it has ended, however early: as many are stopped at rungs in what
    is to come as in what has been. What an earlier start had done of a piece is not counted as done here.

    Args:
        total: All pieces.
        done: Those that had ended before this start.
        clock: Gives seconds.
    """

    def __init__(self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done = total, done
        self._clock, self._began = clock, clock()
        self._aside = 0.0
        self._before: dict[int, float] = {}  # pieces that an earlier start had begun
        self._open: dict[int, float] = {}  # pieces under way, and their shares
        self._here = 0.0  # pieces done by this start

    @property
    def seconds(self) -> float:
        """Wall time of this start."""
        return self._clock() - self._began

    def resumed(self, number: int, share: float) -> None:
        """Takes what an earlier start had done of a piece, before anything else is heard of it."""
        if number not in self._open:
            self._before.setdefault(number, share)

    def reached(self, number: int, share: float) -> None:
        """Takes the share of a piece that is done, in [0, 1]."""
        self._here += share - self._known(number)
        self._open[number] = share

    def ended(self, number: int) -> None:
        """Takes the end of a piece, which comes once."""
        self._here += 1.0 - self._known(number)
        self._open.pop(number, None)
        self.done += 1

    def aside(self) -> None:
        """Says that all time until now went into something that comes once, and into no piece."""
        self._aside = self.seconds

    def left(self) -> float | None:
        """Seconds until all pieces are done, ``None`` while less than half a piece was done here and after the last."""
        if self._here < 0.5 or self.done >= self.total:
            return None
        a_piece = (self.seconds - self._aside) / self._here
        return a_piece * max(0.0, self.total - self.done - sum(self._open.values()))

    def _known(self, number: int) -> float:
        return self._open.get(number, self._before.get(number, 0.0))


def left_in_words(seconds: float | None) -> str:
    """``, about 1:05 left`` to put behind a count, nothing where it is not known."""
    return "" if seconds is None else f", about {clock(seconds)} left"


def clock(seconds: float) -> str:
    """A time in words: ``1:05`` or ``2:01:05``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
