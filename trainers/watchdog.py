"""The program that watches a trial: reads its beats from standard input and kills it when they stop.

Started by ``trainers.heartbeat`` as ``python -I -S watchdog.py PARENT SECONDS NOTE REASON``, never imported by it: it
has to be small, and to work while the trial is stopped or holds its interpreter's lock.

The trial writes ``.`` for a step, ``w`` when it begins to wait for others and ``g`` when it goes on. Silence is added
up between looks, each counting for little more than it should have lasted, so that a machine that slept kills nobody.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time

_MOST_TICK, _NOTE_SECONDS = 1.0, 5.0


def watch(parent: int, seconds: float, note: str, reason: str, pipe: int = 0) -> None:
    """Watches until the trial ends, or ends it.

    Args:
        parent: Process id of the trial, which started this process.
        seconds: Most silence.
        note: File that takes the reason before the trial is killed.
        reason: What to write there.
        pipe: Where the beats come from; its end is the trial's.
    """
    tick = min(_MOST_TICK, seconds / 4)
    silent, waiting, last = 0.0, 0, time.monotonic()
    while os.getppid() == parent:
        ready = select.select([pipe], [], [], tick)[0]
        now = time.monotonic()
        silent, last = silent + min(now - last, 2 * tick), now
        if ready:
            beats = os.read(pipe, 65536)
            if not beats:
                return
            waiting += beats.count(b"w") - beats.count(b"g")
            silent = 0.0
        elif waiting and not _stopped(parent):
            silent = 0.0
        elif silent > seconds and os.getppid() == parent:
            _leave(note, reason)
            os.kill(parent, signal.SIGKILL)
            return


def _stopped(process: int) -> bool:
    """Whether a process is stopped by a signal: it does not wait for anybody then."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in "tT"
    except OSError:
        return False


def _leave(note: str, reason: str) -> None:
    """Writes the note, unless the folder's own storage is what hangs."""

    def write() -> None:
        try:
            with open(note, "w", encoding="utf-8") as file:
                file.write(reason)
        except OSError:
            pass

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(_NOTE_SECONDS)


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4])
    os._exit(0)  # the writer of the note may hang
