"""Signs of life of a trial: a process that makes no step for too long is killed, whatever holds it up.

A trial's process is watched by one of its own (``trainers.watchdog``), which works while the trial is stopped or holds
its interpreter's lock. ``beat`` may be called anywhere and as often as one likes; where nobody watches it does nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NOTE = "hung.txt"
_PROGRAM = Path(__file__).with_name("watchdog.py")


class _Pulse:
    """The trial's end of the pipe."""

    def __init__(self, pipe: int, rest: float) -> None:
        self._pipe, self._rest, self._owner = pipe, rest, os.getpid()
        self._next = 0.0

    def step(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._rest
            self.send(b".")

    def send(self, sign: bytes) -> None:
        if os.getpid() == self._owner:  # a fork has no steps of its own
            with suppress(BlockingIOError, BrokenPipeError):  # the watchdog is stopped, or was killed
                os.write(self._pipe, sign)


_pulse: _Pulse | None = None


def beat() -> None:
    """Tells that the trial has made a step; at most once a second is anything written."""
    if _pulse is not None:
        _pulse.step()


@contextmanager
def waiting() -> Iterator[None]:
    """Stops the clock while the trial waits for others: for the driver's answer, or its turn to measure."""
    pulse = _pulse
    if pulse is None:
        yield
        return
    pulse.send(b"w")
    try:
        yield
    finally:
        pulse.send(b"g")


@contextmanager
def watched(folder: Path, seconds: float | None) -> Iterator[None]:
    """Has this process killed when it makes no step for too long.

    Args:
        folder: Takes the note that says so; ``take_note`` reads it.
        seconds: Most silence; ``None`` for any.
    """
    global _pulse
    if seconds is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOTE).unlink(missing_ok=True)
    arguments = [str(os.getpid()), str(seconds), str(folder / NOTE), _reason(seconds)]
    watchdog = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_PROGRAM), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C at a terminal is not for it
    )
    assert watchdog.stdin is not None
    pipe = watchdog.stdin.fileno()
    os.set_blocking(pipe, False)
    before, _pulse = _pulse, _Pulse(pipe, min(1.0, seconds / 8))
    try:
        yield
    finally:
        _pulse = before
        watchdog.kill()
        watchdog.wait()
        watchdog.stdin.close()


def take_note(folder: Path) -> str | None:
    """Gives the reason why a trial's last process was killed for its silence, once; ``None`` where it was not."""
    note = folder / NOTE
    try:
        text = note.read_text(encoding="utf-8").strip()
        note.unlink()
    except OSError:
        return None
    return text or None


def _reason(seconds: float) -> str:
    minutes = seconds / 60
    return f"no step for {minutes:.3g} minute{'' if minutes == 1 else 's'} (resources.heartbeat)"
