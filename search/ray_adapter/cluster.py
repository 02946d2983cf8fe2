"""Joins Ray, and says what there is."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings

import ray

from search.ray_adapter.lanes import SPEED, Node
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


def nodes() -> list[Node]:
    """The nodes of the connected machine or cluster that are alive."""
    found = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            have = node["Resources"]
            name = node.get("NodeManagerHostname") or node["NodeManagerAddress"]
            cpus, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
            found.append(Node(node["NodeID"], name, cpus, gpus, have.get(SPEED, 0) >= 1))
    return found
