"""The other workers of a trial that several processes train: actors in the trial's own placement group.

The first bundle is the trial's process, which is rank 0; each of the others has one actor. The actors are owned by the
trial's process and end with it, however it ends. It ends itself when one of them dies, and Tune starts the trial again.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from trainers.contract import TeamRequest, TrialRequest
from trainers.means import importing

# Between the death of a worker and the end of the trial's process, if its trainer has not noticed.
_GRACE_SECONDS = 20.0


@contextmanager
def gathered(request: TrialRequest, trainer: str) -> Iterator[TrialRequest]:
    """Starts the other workers of the trial whose process this is, and gives its request with the team in it.

    Args:
        request: The trial's.
        trainer: ``module:function``; the others run the module's ``follow``. A trainer without one works alone.
    """
    group = ray.util.get_current_placement_group()
    if group is None or group.bundle_count < 2:
        yield request
        return
    with importing():
        follow = getattr(importlib.import_module(trainer.partition(":")[0]), "follow", None)
    if follow is None:
        yield request
        return
    address = _address(group)
    requests = [
        replace(request, team=TeamRequest(size=group.bundle_count, rank=rank, address=address))
        for rank in range(group.bundle_count)
    ]
    actors = [_start(group, rank) for rank in range(1, group.bundle_count)]
    over = threading.Event()
    where = f"{follow.__module__}:{follow.__name__}"
    results = {
        actor.follow.remote(where, json.dumps(asked.to_json())): actor
        for actor, asked in zip(actors, requests[1:], strict=True)
    }
    threading.Thread(target=_watch, args=(results, over), daemon=True).start()
    try:
        yield requests[0]
    finally:
        over.set()
        for actor in actors:
            ray.kill(actor)


class _Worker:
    """What an actor runs."""

    def follow(self, function: str, request: str) -> None:
        """Trains beside rank 0 until that lets it go."""
        module, _, name = function.partition(":")
        with importing():
            found = importlib.import_module(module)
        getattr(found, name)(TrialRequest.from_json(json.loads(request)))


def _start(group: PlacementGroup, rank: int) -> Any:
    asked = dict(group.bundle_specs[rank])
    options = {
        "num_cpus": asked.pop("CPU", 0),
        "num_gpus": asked.pop("GPU", 0),
        "resources": asked,
        "max_restarts": 0,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=rank
        ),
    }
    return ray.remote(_Worker).options(**options).remote()


def _address(group: PlacementGroup) -> str:
    """Where the team meets: this machine's own address where all of it is here, and a port that is free now."""
    nodes = set(placement_group_table(group)["bundles_to_node_id"].values())
    host = "127.0.0.1" if len(nodes) == 1 else ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def _watch(results: dict[Any, Any], over: threading.Event) -> None:
    """Ends this process when another worker is lost; without that rank 0 might wait for it for ever."""
    left = list(results)
    while left and not over.is_set():
        done, left = ray.wait(left, num_returns=1, timeout=1.0)
        for result in done:
            try:
                ray.get(result)
            except RayTaskError:
                ray.kill(results[result])  # rank 0 was told why, and learns by the closed connection
            except RayError as error:
                print(f"a worker of the trial was lost: {error}", file=sys.stderr)
            else:
                continue
            if not over.wait(_GRACE_SECONDS):
                os.kill(os.getpid(), signal.SIGKILL)
            return
