"""Runs trials with Ray Tune; the only importer of ray.

A fresh ``Tuner`` over the store: Tune's own snapshots are not used, so nothing but the store has to survive. Each
trial has a process of its own, calls ``ray.tune.report`` for each of its reports and goes on when the driver has taken
it.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import signal
import socket
import threading
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from search.conductor import Pause
from search.director import Director
from search.resources import Resources
from spaces.errors import HeadwayError, UserError
from trainers.contract import TrialFailed, TrialReport, TrialRequest
from trainers.means import environment

_LOST_PROCESSES = 2
_CONNECT_SECONDS = 5.0
_FAILED = "failed"
_MESSAGE = "message"

# Tune pickles searcher and scheduler; both find the one live conductor here.
_conductors: dict[str, _Desk] = {}


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


def run(conductor: Director, share: Resources, folder: Path, trainer: str = "trainers.detector:train") -> None:
    """Runs trials until the conductor has none left.

    Args:
        conductor: Decides what runs and what stops.
        share: Resources of one trial.
        folder: For Tune's own files, which nothing reads again; removed at the end.
        trainer: ``module:function`` of a ``trainers.contract.Trainer``, imported in the trial's process.
    """
    key = str(folder)
    shutil.rmtree(folder, ignore_errors=True)
    _conductors[key] = _Desk(conductor)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        tuner = tune.Tuner(
            tune.with_resources(_run_trial, {"cpu": share.cpus, "gpu": share.gpus}),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=_StoreSearcher(key),
                scheduler=_StoreScheduler(key),
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder.absolute()),
                failure_config=tune.FailureConfig(max_failures=_LOST_PROCESSES),
                verbose=0,
                log_to_file=False,
            ),
            param_space={"trainer": trainer},
        )
        tuner.fit()
    finally:
        del _conductors[key]
        shutil.rmtree(folder, ignore_errors=True)


def call(function: str, argument: str, share: Resources) -> str:
    """Calls a function in a fresh process with the resources of one trial.

    Args:
        function: ``module:function``, from text to text.
        argument: What it is given.
        share: Resources of one trial.

    Raises:
        HeadwayError: It failed, or its process died.
    """
    remote = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_calls=1, max_retries=0)(_call)
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


class _Desk:
    """The conductor, and which Ray trial runs which trial of the study."""

    def __init__(self, conductor: Director) -> None:
        self.conductor = conductor
        self.numbers: dict[str, int] = {}


class _StoreSearcher(Searcher):
    """Hands the conductor's next trial to Tune."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key

    def __reduce__(self) -> tuple[Any, ...]:
        return (_StoreSearcher, (self._key,))

    def suggest(self, trial_id: str) -> Any:
        """Called about every 0.1 s, each time with a new id; nothing is allocated before a trial is there."""
        desk = _conductors[self._key]
        request = desk.conductor.next()
        if request is Pause.WAIT:
            return None
        if isinstance(request, Pause):
            return str(Searcher.FINISHED)
        desk.numbers[trial_id] = request.number
        return {"request": json.dumps(request.to_json())}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Takes a trial that ended without a last report; the reports themselves go to the scheduler."""
        desk = _conductors[self._key]
        number = desk.numbers.pop(trial_id, None)
        if number is not None:
            desk.conductor.died(number, "the trial's process ended without a result")

    def save(self, checkpoint_path: str) -> None:
        """The store is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """The store is the only state."""


class _StoreScheduler(FIFOScheduler):
    """Gives each report to the conductor, and its answer to Tune."""

    def __init__(self, key: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._key = key

    def __reduce__(self) -> tuple[Any, ...]:
        return (_StoreScheduler, (self._key,))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decides whether the trial goes on."""
        desk = _conductors[self._key]
        number = desk.numbers.get(trial.trial_id)
        if number is None:
            return str(FIFOScheduler.STOP)
        message = json.loads(result[_MESSAGE])
        if message["phase"] == _FAILED:
            desk.conductor.died(number, message["reason"], message["traceback"])
            return str(FIFOScheduler.STOP)
        go_on = desk.conductor.report(number, TrialReport(**message))
        return str(FIFOScheduler.CONTINUE if go_on else FIFOScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Takes a process that died more often than it is restarted; Tune tells of each death here."""
        desk = _conductors[self._key]
        number = desk.numbers.get(trial.trial_id)
        if number is not None and not trial.should_recover():
            error = _last_error(trial)
            first = " ".join(error.split())[:400]
            desk.conductor.died(number, f"the trial's process died {_LOST_PROCESSES + 1} times: {first}", error)


def _last_error(trial: Any) -> str:
    # The driver's own file; what trial.get_error reads is copied from it later.
    try:
        text = Path(trial.error_file).read_text(encoding="utf-8")
    except OSError:
        return "Ray does not say why"
    return text.rpartition("Failure # ")[2].partition("\n")[2].strip()


def _run_trial(config: dict[str, Any]) -> None:
    """The body of a trial's process."""
    request = TrialRequest.from_json(json.loads(config["request"]))

    def report(message: TrialReport) -> None:
        _send(asdict(message))

    try:
        module, _, function = config["trainer"].partition(":")
        getattr(importlib.import_module(module), function)(request, report)
    except TrialFailed as error:
        _report_failure(str(error))
    except Exception as error:
        _report_failure(f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")


def _report_failure(reason: str) -> None:
    _send({"phase": _FAILED, "reason": reason, "traceback": traceback.format_exc()})


def _send(message: dict[str, Any]) -> None:
    # As text, since Tune flattens nested results. Returns when the driver has decided.
    tune.report({_MESSAGE: json.dumps(message)})
