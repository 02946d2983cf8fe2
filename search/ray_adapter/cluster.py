"""Joins Ray, and says what there is."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings

import ray

from spaces.errors import UserError
from trainers.means import environment

_CONNECT_SECONDS = 5.0


def connect(address: str | None) -> None:
    """Starts Ray on this machine, or joins the cluster at ``address``.

    Raises:
        UserError: The cluster is not there.
    """
    if ray.is_initialized():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            host, _, port = (address or "").removeprefix("ray://").rpartition(":")
            if host and port.isdigit():
                # Ray itself would try for minutes.
                socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
            ray.init(
                address=address,
                include_dashboard=None if address else False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                # In place before a trial's first thread exists.
                runtime_env={"env_vars": environment()},
            )
        except (ConnectionError, ValueError, RuntimeError, OSError, OverflowError) as error:
            if address is None:
                raise
            first = str(error).splitlines()[0]
            raise UserError(f"--address: must be a running Ray cluster, but {address} gives: {first}") from error
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler prints a stack dump and aborts; what a scheduler asks to end shall end like Ctrl-C.
        signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))


def capacity() -> tuple[int, int]:
    """All CPUs and GPUs of the connected machine or cluster."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(have.get("CPU", 1)), int(have.get("GPU", 0))
