"""Runs a study's trials with Ray Tune.

A fresh ``Tuner`` over the store: Tune's own snapshots are not used, so nothing but the store has to survive. A trial
runs in a process that no other trial uses at that time, calls ``ray.tune.report`` for each of its reports and goes on
when the driver has taken it. On CPUs the process takes the next trial afterwards, unless the trial broke it: to import
what a trial needs takes seconds.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from search.conductor import Pause
from search.director import Director
from search.places import Where
from search.ray_adapter.cluster import nodes
from search.ray_adapter.desk import Desk
from search.ray_adapter.lanes import SpeedLane, placement
from search.ray_adapter.trial import FAILED, LANE, MESSAGE, UNFIT, WHERE, run_trial, set_aside
from search.resources import Resources
from trainers.contract import TrialReport

# What Tune gives its trials is for PyTorch Lightning and Ray Train. With any environment variable of its own a trial
# gets a new process though Ray has one ready; those that trials need they have from ``cluster``.
class_cache.DEFAULT_ENV_VARS.clear()
class_cache.ENV_VARS_TO_PROPAGATE.clear()

# Tune pickles searcher and scheduler; both find the one live desk here.
_desks: dict[str, Desk] = {}


def run(
    conductor: Director,
    share: Resources,
    folder: Path,
    trainer: str = "trainers.detector:train",
    *,
    lane: SpeedLane | None = None,
    say: Callable[[str], None] = lambda text: None,
    lease: Callable[[int, bool], None] = lambda number, held: None,
) -> None:
    """Runs trials until the conductor has none left.

    Args:
        conductor: Decides what runs and what stops.
        share: Resources of one trial.
        folder: For Tune's own files, which nothing reads again; removed at the end.
        trainer: ``module:function`` of a ``trainers.contract.Trainer``, imported in the trial's process.
        lane: Where latency is measured, ``None`` for beside the trainings.
        say: Takes a line for the user.
        lease: Is told which trial takes the speed lane, and which one leaves it.

    Raises:
        HeadwayError: Nothing can go on; what was begun stays as it is.
    """
    key = str(folder)
    shutil.rmtree(folder, ignore_errors=True)
    desk = _desks[key] = Desk(conductor, share, lane, nodes, say, lease)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        tuner = tune.Tuner(
            tune.with_resources(run_trial, set_aside),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=_StoreSearcher(key),
                scheduler=_StoreScheduler(key),
                # CUDA's memory and errors may outlive a trial, and so may a team's process group.
                reuse_actors=not share.gpus and share.workers == 1,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder.absolute()),
                # A trial whose process died is given again by the director, with what it has by now.
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
                log_to_file=False,
            ),
            param_space={"trainer": trainer},
        )
        tuner.fit()
    except Exception as error:
        if desk.failure is not None and desk.failure is not error:
            raise desk.failure from error  # which Tune wrapped
        raise
    finally:
        del _desks[key]
        shutil.rmtree(folder, ignore_errors=True)


def snapshot() -> dict[str, Any] | None:
    """What is under way in this process's run, see ``Desk.snapshot``; ``None`` while there is none.

    The lease's queue is ``lanes.speed``: who measures (``running``) and who waits. May be called in any thread.
    """
    return next((desk.snapshot() for desk in [*_desks.values()]), None)


class _StoreSearcher(Searcher):
    """Hands the conductor's next trial to Tune."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key

    def __reduce__(self) -> tuple[Any, ...]:
        return (_StoreSearcher, (self._key,))

    def suggest(self, trial_id: str) -> Any:
        """Called about every 0.1 s, each time with a new id; nothing is allocated before a trial is there."""
        desk = _desks[self._key]
        found = desk.next()
        if found is Pause.WAIT:
            return None
        if isinstance(found, Pause):
            return str(Searcher.FINISHED)
        request, place = found
        desk.begin(trial_id, request, place)
        placed = placement(desk.share, desk.lane, place)
        return {"request": json.dumps(request.to_json()), "placement": placed}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Takes a trial that ended without a last report; the reports themselves go to the scheduler."""
        desk = _desks[self._key]
        number = desk.ended(trial_id)
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
        desk = _desks[self._key]
        number = desk.number(trial.trial_id)
        if number is None:
            return str(FIFOScheduler.STOP)
        message = json.loads(result[MESSAGE])
        desk.conductor.placed(number, Where(**message.pop(WHERE)))
        if message["phase"] == FAILED:
            desk.conductor.died(number, message["reason"], message["traceback"])
            desk.ended(trial.trial_id)
            return str(FIFOScheduler.CONTINUE)  # it ends by itself, and its process with it
        if message["phase"] == UNFIT:
            desk.leave(trial.trial_id)
            desk.conductor.halt(message["reason"])
            return str(FIFOScheduler.STOP)
        if message["phase"] == LANE:
            desk.leave(trial.trial_id, message["lane"], message["seconds"])
            return str(FIFOScheduler.STOP)
        go_on = desk.conductor.report(number, TrialReport(**message))
        return str(FIFOScheduler.CONTINUE if go_on else FIFOScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Takes a process that died; its trial is given again by the director, or has FAILED."""
        desk = _desks[self._key]
        number = desk.ended(trial.trial_id)
        if number is None:
            return
        folder = Path(json.loads(trial.config["request"])["folder"])
        reason, whole, again = desk.deaths.add(number, trial, folder)
        if again:
            desk.conductor.interrupted(number, reason)
        else:
            desk.conductor.died(number, reason, whole)
