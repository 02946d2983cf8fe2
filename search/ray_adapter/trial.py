"""What runs in a process that Ray starts: a trial, or one call."""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import socket
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import ray
from ray import tune
from ray.exceptions import RayError, RayTaskError

from search.ray_adapter import team
from spaces.errors import HeadwayError
from trainers import faults, heartbeat
from trainers.contract import LaneNeeded, MachineUnfit, TrialFailed, TrialInterrupted, TrialReport, TrialRequest
from trainers.means import importing

if TYPE_CHECKING:  # of those who call from the driver: to import them takes each process 0.7 s
    from search.ray_adapter.lanes import SpeedLane
    from search.resources import Resources

# The key that a trial's message lies under, that of its sender in it, and the phases of messages that are no reports of
# a trainer's.
MESSAGE = "message"
WHERE = "where"
FAILED = "failed"
LANE = "lane"
UNFIT = "unfit"


def set_aside(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What Ray sets aside for a start of a trial. It goes to the trial's process with ``run_trial``."""
    placed = config["placement"]
    return tune.PlacementGroupFactory(placed["bundles"], bundle_label_selector=placed["selectors"])


def run_trial(config: dict[str, Any]) -> None:
    """The body of a trial, in a process that may run others afterwards.

    Raises:
        Spent: The trial failed; Ray gives the process no other trial then.
        TrialInterrupted: As if the process had died.
    """
    began = time.monotonic()
    request = TrialRequest.from_json(json.loads(config["request"]))

    def report(message: TrialReport) -> None:
        heartbeat.beat()
        with heartbeat.waiting():
            _send(asdict(message))

    try:
        with (
            team.gathered(request, config["trainer"]) as request,
            heartbeat.watched(Path(request.folder), request.heartbeat),
            faults.full_disk_told(Path(request.folder)),
        ):
            imported(config["trainer"])(request, report)
    except TrialFailed as error:
        _report_failure(str(error))
    except TrialInterrupted:
        raise
    except LaneNeeded as error:
        _send({"phase": LANE, "lane": error.lane, "seconds": time.monotonic() - began})
    except MachineUnfit as error:
        _send({"phase": UNFIT, "reason": str(error)})
    except Exception as error:
        _report_failure(f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
    finally:
        gc.collect()  # mmengine's runner and its hooks hold each other, and what they trained


@functools.cache
def imported(trainer: str) -> Any:
    """The trainer ``module:function``; its module's ``preload()``, if it has one, imports what it needs later."""
    module, _, function = trainer.partition(":")
    with importing():
        found = importlib.import_module(module)
        getattr(found, "preload", lambda: None)()
    return getattr(found, function)


class Spent(Exception):
    """A process in which a trial failed; the driver knows of the trial."""


def _report_failure(reason: str) -> NoReturn:
    _send({"phase": FAILED, "reason": reason, "traceback": traceback.format_exc()})
    raise Spent(reason)


def _send(message: dict[str, Any]) -> None:
    # As text, since Tune flattens nested results. Returns when the driver has decided.
    tune.report({MESSAGE: json.dumps({**message, WHERE: _where()})})


@functools.cache
def _where() -> dict[str, Any]:
    node = ray.get_runtime_context().get_node_id()
    return {"host": socket.gethostname(), "node": node, "pid": os.getpid()}


def call(function: str, argument: str, share: Resources, lane: SpeedLane | None = None) -> str:
    """Calls a function in a fresh process with the resources of one trial, or in the speed lane.

    Args:
        function: ``module:function``, from text to text.
        argument: What it is given.
        share: Resources of one trial.
        lane: Where latency is measured, for a function that does; ``None`` for anywhere.

    Raises:
        HeadwayError: It failed, or its process died.
    """
    took, selector = lane.bundle() if lane else ({"CPU": share.cpus, "GPU": share.gpus}, {})
    remote = ray.remote(max_calls=1, max_retries=0)(_call).options(
        num_cpus=took.pop("CPU"), num_gpus=took.pop("GPU"), resources=took, label_selector=selector or None
    )
    try:
        return str(ray.get(remote.remote(function, argument)))
    except RayTaskError as error:
        cause = error.cause if error.cause is not None else error
        raise HeadwayError(f"{function}: {type(cause).__name__}: {' '.join(str(cause).split())[:400]}") from error
    except RayError as error:
        raise HeadwayError(f"{function}: its process died: {' '.join(str(error).split())[:400]}") from error


def _call(function: str, argument: str) -> str:
    module, _, name = function.partition(":")
    return str(getattr(importlib.import_module(module), name)(argument))
