"""Imports what trials need into a process that Ray has ready for them, while Ray itself still starts.

``cluster.connect`` has Ray's processes import this module, before they run anything. It holds the lease of measurements
meanwhile, so that no latency is measured beside it; while one is measured, a process gets ready without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from search.ray_adapter import READY_LEASE, READY_TRAINER
from search.ray_adapter.trial import imported

# Whatever fails here fails again in the trial that takes the process, which tells; Ray would end the process.
with contextlib.suppress(Exception), open(os.environ[READY_LEASE], "a", encoding="ascii") as _lease:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(_lease, fcntl.LOCK_SH | fcntl.LOCK_NB)
    imported(os.environ[READY_TRAINER])
