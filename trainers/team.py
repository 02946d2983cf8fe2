"""The processes that train one trial together: how they meet, and what the others do for rank 0.

Rank 0 is the trial. It serves a ``TCPStore`` at the team's address and puts one key a training there (a trial may
train more than once: a warm start, a network that is learned first). For each training all join a process group of
their own (gloo on a CPU, NCCL on CUDA), rank 0 hands the others the config and what it continues from, and they train
beside it. They need the data set's files, and none of the trial's folder.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import psutil
import torch
from mmengine.config import Config
from torch import distributed
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from spaces.errors import HeadwayError
from trainers.contract import StopTrial, TeamRequest, TrialFailed, TrialInterrupted, TrialRequest
from trainers.means import settle

# Longer than rank 0 may be away (it counts, times, sweeps, waits for others). That someone died is seen by the
# connection, and by whoever started the processes.
_PATIENCE = timedelta(days=30)
_SECONDS_TO_TELL = 3.0
_BROKEN = "broken"


class Team:
    """Rank 0's side.

    Args:
        request: With the address that the team meets at.
        device: ``cpu`` or ``cuda``.

    Raises:
        TrialInterrupted: The address is taken.
    """

    def __init__(self, request: TeamRequest, device: str) -> None:
        self._size, self._device, self._trainings = request.size, device, 0
        host, _, port = request.address.rpartition(":")
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, int(port)))
        except OSError as error:
            listener.close()
            raise TrialInterrupted(
                f"{request.address}, where its workers are to meet, cannot be used: {error}"
            ) from error
        listener.listen()
        _use_interface(host)
        # Bound here, since the store itself would listen on all of the machine's addresses.
        self._store = TCPStore(
            host,
            int(port),
            is_master=True,
            wait_for_workers=False,
            timeout=_PATIENCE,
            master_listen_fd=listener.detach(),
        )

    @contextmanager
    def training(self, config: Config, resume: Mapping[str, Any] | None) -> Iterator[None]:
        """Has the others train beside what runs inside.

        Args:
            config: The trial's.
            resume: Content of the checkpoint to continue from.

        Raises:
            TrialFailed: The training broke in another worker; the message says how.
            TrialInterrupted: Another worker was lost.
        """
        self._store.set(f"training/{self._trainings}", "begin")
        try:
            with _group(self._store, self._trainings, 0, self._size, self._device):
                distributed.broadcast_object_list([{"config": config.to_dict(), "resume": resume}], src=0)
                try:
                    yield
                except StopTrial:
                    from trainers.parallel import word

                    word(False)  # all others wait for it
                    raise
        except Exception as error:
            if not _of_connection(error):
                raise
            raise self._lost() from error
        finally:
            self._trainings += 1

    def _lost(self) -> Exception:
        """Gives what the loss of another worker means: it broke, and told how, or it died."""
        deadline = time.monotonic() + _SECONDS_TO_TELL
        with suppress(RuntimeError):
            while time.monotonic() < deadline:
                if self._store.check([_BROKEN]):
                    return TrialFailed(self._store.get(_BROKEN).decode())
                time.sleep(0.1)
        return TrialInterrupted(f"one of its {self._size} workers was lost")

    def end(self) -> None:
        """Lets the others go."""
        self._store.set(f"training/{self._trainings}", "end")
        with suppress(RuntimeError):
            left = [f"left/{rank}" for rank in range(1, self._size)]
            self._store.wait(left, timedelta(seconds=_SECONDS_TO_TELL))


@contextmanager
def led(request: TrialRequest) -> Iterator[Team | None]:
    """Gives the team of a trial, ``None`` where it trains alone."""
    if request.team is None:
        yield None
        return
    team = Team(request.team, request.device)
    try:
        yield team
    finally:
        team.end()


def follow(request: TrialRequest) -> None:
    """Runs one of the other ranks, until rank 0 lets it go.

    Args:
        request: The trial's, with this process's rank.

    Raises:
        TrialInterrupted: Rank 0 is gone.
        TrialFailed: The training broke here; rank 0 was told.
    """
    team = request.team
    assert team is not None and team.rank > 0
    settle(request.threads)
    host, _, port = team.address.rpartition(":")
    _use_interface(host)
    number = 0
    try:
        store = TCPStore(host, int(port), is_master=False, timeout=_PATIENCE)
        while store.get(f"training/{number}") == b"begin":
            _train(request, store, number)
            number += 1
        store.set(f"left/{team.rank}", "")
    except distributed.DistError as error:
        raise TrialInterrupted(f"rank 0 is gone: {str(error).splitlines()[0][:200]}") from error


def _train(request: TrialRequest, store: Store, number: int) -> None:
    """Trains beside rank 0, to the end of the training or its break-off."""
    from trainers.detector import build_model
    from trainers.loop import Reproducible, TrialRunner, seed_all

    team = request.team
    assert team is not None
    try:
        with _group(store, number, team.rank, team.size, request.device):
            given: list[Any] = [None]
            distributed.broadcast_object_list(given, src=0)
            config = Config(given[0]["config"])
            model = build_model(config, request.seed, request.device, initialise=False)
            seed_all(request.seed)
            runner = TrialRunner(config, model, given[0]["resume"], together=True)
            try:
                runner.add_hooks([Reproducible(request.seed)])
                runner.train()
            finally:
                runner.close()
    except StopTrial:
        pass  # rank 0 knows why
    except Exception as error:
        if _of_connection(error):
            return  # rank 0 broke off, or is gone; the store tells
        reason = f"training broke in worker {team.rank}: {type(error).__name__}: {error}"
        if isinstance(error, (TrialFailed, HeadwayError)):
            reason = f"{error} (worker {team.rank})"
        store.set(_BROKEN, reason)
        raise TrialFailed(reason) from error


@contextmanager
def _group(store: Store, number: int, rank: int, size: int, device: str) -> Iterator[None]:
    """Joins the process group of a training."""
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=PrefixStore(f"group/{number}", store),
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
    )
    try:
        if device == "cuda":
            torch.cuda.set_device(0)
        yield
    finally:
        distributed.destroy_process_group()


def _of_connection(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, tells that another process could not be reached any more."""
    while error is not None:
        if isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            return True
        error = error.__cause__
    return False


def _use_interface(host: str) -> None:
    """Has gloo listen where the team meets; by itself it takes what the machine's name resolves to."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
