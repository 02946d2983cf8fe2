"""Imports what trials need into a process that Ray has ready for them, while Ray itself still starts.

``cluster.connect`` has Ray's processes import this module once Ray may give them a trial, and waits until they have
signed. The lease of measurements is held meanwhile, so that no latency is measured beside it; while one is measured, a
process gets ready without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from search.ray_adapter import READY_BOOK, READY_LEASE, READY_TRAINER


def _get_ready() -> None:
    with open(os.environ[READY_LEASE], "a", encoding="ascii") as lease:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lease, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # one that is started later is not waited for
            Path(os.environ[READY_BOOK], str(os.getpid())).touch()
        from search.ray_adapter.trial import imported

        imported(os.environ[READY_TRAINER])


# Whatever fails here fails again in the trial that takes the process, which tells; Ray would end the process.
with contextlib.suppress(Exception):
    _get_ready()
