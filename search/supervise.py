"""Runs a driver as a child process, and starts it again when it dies: ``headway run --restarts N``.

``python -m search.supervise ARGUMENTS...`` is that child: the command ``headway ARGUMENTS...``, which says by its exit
status how it ended. Status 1 is none of these, as libraries end a process with it (Ray does when its head is gone).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType

from search.cli import End, run_command

STATUS = {End.DONE: 0, End.WRONG: 2, End.FAILED: 3, End.FAULT: 70, End.CUT_SHORT: 75}
PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds before each start in a row; the last one repeats."""
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DEATH_OF_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def child_command(arguments: Sequence[str]) -> list[str]:
    """The child that runs ``headway ARGUMENTS...``."""
    return [sys.executable, "-m", "search.supervise", *arguments]


def supervise(
    command: Sequence[str],
    restarts: int,
    *,
    ended: Callable[[], int | None],
    say: Callable[[str], None],
    pauses: Sequence[float] = PAUSES,
) -> int:
    """Runs a command until it ends by itself, or dies too often.

    One that was killed, that crashed or that was cut short is started again. After that a refusal of its input (status
    2) is its surroundings' too: a cluster whose head is being restarted cannot be reached. Signals that ask to end are
    passed on, and nothing is started after them. To be called from the main thread.

    Args:
        command: To run; its exit status is read as in ``STATUS``.
        restarts: How often in a row it is started again without any trial ending in between.
        ended: Gives how many trials have ended, ``None`` where that cannot be told now.
        say: Takes a line for each start.
        pauses: Seconds before each start in a row.

    Returns:
        The exit status for whoever started this: 0, 1 or 2.
    """
    in_a_row, known, again = 0, ended() or 0, False
    with _Child() as child:
        while True:
            status = child.run(command)
            if status == STATUS[End.DONE]:
                return 0
            wrong = status == STATUS[End.WRONG]
            if child.asked or status == STATUS[End.FAILED] or (wrong and not again):
                return 2 if wrong else 1
            again = True
            now = ended() or 0
            in_a_row, known = (1 if now > known else in_a_row + 1), max(now, known)
            died = f"the driver {_death(status)}"
            if in_a_row > restarts:
                times = "once" if in_a_row == 1 else f"{in_a_row} times in a row"
                say(f"{died}; {times} without any trial ending, so it is not started again; the same command continues")
                return 2 if wrong else 1
            pause = pauses[min(in_a_row, len(pauses)) - 1]
            say(f"{died}; it is started again in {pause:g} s ({in_a_row} of {restarts} times in a row)")
            if child.asked_within(pause):
                say("interrupted; the same command continues")
                return 1


def _death(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    told = {STATUS[End.CUT_SHORT]: "was cut short", STATUS[End.FAULT]: "crashed", STATUS[End.WRONG]: "could not begin"}
    return told.get(status, f"died with exit status {status}")


class _Child:
    """Runs a command in a process group of its own, and passes on what asks this process to end.

    Attributes:
        asked: Whether something asked.
    """

    def __init__(self) -> None:
        self.asked = False
        self._process: subprocess.Popen[bytes] | None = None
        handlers = {number: signal.getsignal(number) for number in _PASSED_ON}
        # What this process was told to ignore, by nohup say, it ignores.
        self._before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
        self._wake = threading.Event()

    def __enter__(self) -> _Child:
        for number in self._before:
            signal.signal(number, self._pass_on)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """Runs it to its end; gives its exit status, below 0 for the signal that killed it.

        What it leaves of its process group is killed, so that nothing of it writes beside the next start.
        """
        # A group of its own, else Ctrl-C would reach it twice.
        self._process = subprocess.Popen(command, start_new_session=True)
        if self.asked:  # just now
            self._process.send_signal(signal.SIGINT)
        status = self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process = None
        return status

    def asked_within(self, seconds: float) -> bool:
        """Waits, and returns whether something asked to end."""
        self._wake.wait(seconds)
        return self.asked

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._wake.set()
        if self._process is not None:
            # What a driver ends well upon; a second one shall not end it the hard way.
            self._process.send_signal(signal.SIGINT if number == signal.SIGHUP else number)


def _main(arguments: Sequence[str]) -> int:
    """The child: ends with the supervisor, should that be killed."""
    ctypes.CDLL(None, use_errno=True).prctl(_DEATH_OF_PARENT, signal.SIGTERM)
    # A shell's background job inherits that it is ignored; here only what the supervisor passes on arrives.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return STATUS[run_command(arguments)]


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
