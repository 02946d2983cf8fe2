"""Joins Ray, and says what there is."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.grpc_utils import init_grpc_channel
from ray._private.utils import get_num_cpus
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

from search.ray_adapter import READY_BOOK, READY_LEASE, READY_TRAINER
from search.ray_adapter.lanes import SPEED, Node
from search.resources import divide
from search.study import ResourcesSection
from spaces.errors import CutShort, UserError
from trainers.means import environment

# A process takes its next trial once the one before, stopped at a report, has come to its end; a reset that waits in
# vain counts as a death.
_REUSE = {"TUNE_FUNCTION_THREAD_TIMEOUT_S": "60"}
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 15.0
_READY_SECONDS = 10.0
_IDLE_MS = 24 * 3600 * 1000
_NOT_JOINED = (ConnectionError, ValueError, RuntimeError, OSError, OverflowError, AuthenticationError)

TOKEN_PLACES = "RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"


def connect(address: str | None, ready: Ready | None = None) -> None:
    """Starts Ray on this machine, or joins the cluster at ``address``.

    Args:
        address: ``HOST:PORT`` of a head, ``auto`` for the cluster that this process is a job of, ``None`` for this
            machine.
        ready: Which processes of this machine's own Ray get ready for trials; not those of a cluster.

    Raises:
        CutShort: Ray does not start on this machine.
        UserError: The cluster is not there, does not take the token, or runs another Ray or Python.
    """
    if ray.is_initialized():
        return
    _knock(address)
    # Ray itself would join whatever cluster was started on this machine before, running or not.
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    local = where == "local"
    # In place before a trial's first thread exists.
    variables = {**environment(), **_REUSE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with ExitStack() as stack:
                own = stack.enter_context(ready.awaited()) if ready and local else {}
                if local:
                    # An environment of the job's own is none of those processes that Ray has ready.
                    stack.enter_context(_inherited({**variables, **own}))
                ray.init(
                    address=where,
                    include_dashboard=None if address else False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    runtime_env=None if local else {"env_vars": variables},
                )
        except Exception as error:
            if address is None:
                raise CutShort(f"Ray does not start on this machine: {explain(error)}") from error
            if not isinstance(error, _NOT_JOINED):
                raise
            raise _refused(address, explain(error)) from error
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler prints a stack dump and aborts; what a scheduler asks to end shall end like Ctrl-C.
        signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # What a script starts in the background ignores Ctrl-C, and would ignore this, too.
            signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Ready:
    """Processes that get ready for trials while this machine's Ray starts.

    Attributes:
        trainer: ``module:function`` of the trials' trainer.
        lease: The lock file of measurements.
        count: How many there will be.
    """

    trainer: str
    lease: Path
    count: int

    @contextmanager
    def awaited(self) -> Iterator[dict[str, str]]:
        """Gives Ray's environment variables, and at the end waits until all processes may be given a trial.

        Before that Ray would start further ones.
        """
        with tempfile.TemporaryDirectory(prefix="headway-") as book:
            yield {
                "RAY_preload_python_modules": "search.ray_adapter.ready",
                # Or Ray ends one that waits while the CPU of its trial is taken already, and starts another.
                "RAY_idle_worker_killing_time_threshold_ms": str(_IDLE_MS),
                READY_TRAINER: self.trainer,
                READY_LEASE: str(self.lease),
                READY_BOOK: book,
            }
            until = time.monotonic() + _READY_SECONDS
            while len(os.listdir(book)) < self.count and time.monotonic() < until:
                time.sleep(0.02)


def ready(section: ResourcesSection, trials: int, trainer: str, lease: Path) -> Ready | None:
    """Says which processes of this machine's Ray shall get ready for trials.

    Args:
        section: The study file's ``resources``. Where a trial takes more than a CPU, Ray may give it another process
            than one that is ready, and on GPUs what is imported must not look at the device before a trial has one.
        trials: How many there will be, at most.
        trainer: ``module:function`` of their trainer.
        lease: The lock file of measurements.

    Returns:
        One for each CPU, or ``None``.

    Raises:
        UserError: A trial asks for more than there is.
    """
    gpus = get_accelerator_manager_for_resource("GPU")
    cpus = int(get_num_cpus())
    share = divide(section, [(cpus, gpus.get_current_node_num_accelerators() if gpus else 0)])
    one_each = not share.gpus and share.workers == 1 and share.concurrent == cpus <= trials
    return Ready(trainer, lease, cpus) if one_each else None


@contextmanager
def _inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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


def explain(error: BaseException) -> str:
    """One line of what Ray says; of versions that differ all of it."""
    text = str(error)
    if isinstance(error, AuthenticationError):
        return f"no token was found; put the cluster's into {TOKEN_PLACES}"
    if "ersion mismatch" in text:
        words = " ".join(text[text.index("ersion mismatch") + len("ersion mismatch") :].split()).strip(": ")
        return f"another version of Ray or Python. {words}"
    return text.splitlines()[0] if text else type(error).__name__


def _refused(address: str, reason: str) -> UserError:
    return UserError(f"--address: must be a running Ray cluster, but {address} gives: {reason}")


def _knock(address: str | None) -> None:
    """Asks the head for its name once, since Ray itself would try for minutes and warn of each try.

    Raises:
        UserError: There is none, or it does not take this process's token.
    """
    host, _, port = (address or "").rpartition(":")
    if address is None or not host or "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _refused(address, str(error)) from error
    try:
        with init_grpc_channel(address) as channel:
            messages: Any = gcs_service_pb2
            gcs: Any = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
            gcs.GetClusterId(messages.GetClusterIdRequest(), timeout=_ANSWER_SECONDS)
    except AuthenticationError as error:
        raise _refused(address, explain(error)) from error
    except grpc.RpcError as error:
        raise _refused(address, _answer(error)) from error


def _answer(error: Any) -> str:
    if error.code() == grpc.StatusCode.UNAUTHENTICATED:
        mode = os.environ.get("RAY_AUTH_MODE", "")
        if mode.lower() != "token":
            return f"it wants a token; set RAY_AUTH_MODE=token and put the token into {TOKEN_PLACES}"
        return f"it refuses the token; the cluster's must be in {TOKEN_PLACES}, the first of them counts"
    return "no Ray head answers there (its port is the one of 'ray start --head --port', 6379 by default)"
