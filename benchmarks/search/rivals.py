"""Who searches: Headway, and what a user can put together from the libraries, all on simulated time.

Each rival runs through its own library's classes, set up as that library's documentation recommends, with the same
number of workers. It pays the same simulated seconds as Headway for building, timing and each epoch; one that does not
know that a design, or its architecture, was there before pays again. Nobody but Headway trains the baseline. Nobody
knows the budget.

| rival | who proposes | who stops |
|---|---|---|
| ``headway`` | Headway's default: TPE told of stopped trials | rungs among designs of like speed |
| ``headway_mo_asha`` | the same | non-dominated ranking with an epsilon net |
| ``headway_no_rungs`` | the same | nobody |
| ``random`` | Optuna's ``RandomSampler``, no design twice | nobody |
| ``optuna_fifo`` | Ray's ``OptunaSearch`` with its default sampler, lists of metrics and modes | nobody (FIFO) |
| ``optuna_asha`` | the same | Ray's ``ASHAScheduler`` on accuracy |
| ``moasha`` | Syne Tune's ``MOASHA``: random | the same object: non-dominated sort with an epsilon net |
| ``moasha_ranked`` | the same | the same, with ranks where the library has an order (see ``_ranked``) |
"""

from __future__ import annotations

import contextlib
import heapq
import json
import logging
import math
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna

from analysis.record import TrialState
from benchmarks.search.problems import ACCURACY, NO_DATA, Problem
from search.conductor import Conductor
from search.simulate import Clock, simulate
from search.store import Store
from spaces.errors import UserError, choices
from spaces.space import Design, design_hash
from trainers.contract import TrialFailed, TrialReport
from trainers.replay import Step

# As Headway's default rungs: after epochs 1, 3, 9, ...
GRACE, FACTOR = 1, 3
# Proposals in a row that cannot be trained until a rival is given up.
_ATTEMPTS = 2000
# Draws in a row that random search had before until it looks for what is left.
_DRAWS = 50


@dataclass(frozen=True)
class Ended:
    """A trial that ended.

    Attributes:
        number: In the order of their beginnings.
        state: COMPLETE, STOPPED or FAILED.
        began: Simulated seconds since the start of the search.
        ended: The same.
        figures: Its figures when it ended; without an accuracy if it had no epoch.
    """

    number: int
    state: TrialState
    began: float
    ended: float
    figures: Mapping[str, float]


class Searcher(Protocol):
    """A rival as ``race`` drives it."""

    def suggest(self, number: int) -> Design | None:
        """Gives the design of a new trial, ``None`` when there is none left.

        Raises:
            UserError: The proposal is no legal design; the rival is asked again.
        """

    def go_on(self, number: int, epoch: int, figures: Mapping[str, float]) -> bool:
        """Takes an epoch's figures and says whether the trial goes on."""

    def end(self, number: int, figures: Mapping[str, float] | None) -> None:
        """Takes the last figures of a trial that ended, ``None`` if it failed."""


def race(problem: Problem, searcher: Searcher, *, workers: int, seconds: float) -> list[Ended]:
    """Runs a searcher on simulated time: discrete events, as ``search.simulate`` does for Headway.

    At each event the trial whose step ends first reports, of several at the same moment the one with the lowest number.

    Args:
        problem: What is searched.
        searcher: Who searches.
        workers: Trials side by side.
        seconds: Simulated time after which no trial begins.

    Returns:
        The trials in the order in which they ended.
    """
    events: list[tuple[float, int, TrialReport]] = []
    running: dict[int, tuple[float, Iterator[Step]]] = {}
    figures: dict[int, dict[str, float]] = {}
    ended: list[Ended] = []
    now, count, left = 0.0, 0, True

    def finish(number: int, state: TrialState) -> None:
        began, _ = running.pop(number)
        searcher.end(number, None if state is TrialState.FAILED else figures[number])
        ended.append(Ended(number, state, began, now, figures.pop(number)))

    def advance(number: int) -> None:
        try:
            step = next(running[number][1])
        except (TrialFailed, StopIteration):
            finish(number, TrialState.FAILED)
        else:
            heapq.heappush(events, (now + step.seconds, number, step.report))

    while True:
        while left and len(running) < workers and now < seconds:
            knobs = _legal(searcher, count)
            left = knobs is not None
            if knobs is not None:
                running[count] = now, problem.steps(problem.request(count + 1, knobs))
                figures[count] = {}
                count += 1
                advance(count - 1)
        if not events:
            return ended
        now, number, report = heapq.heappop(events)
        figures[number].update(problem.figures(report))
        if report.phase == "done":
            # A scheduler that stops at the last epoch has stopped nothing.
            finish(number, TrialState.COMPLETE)
        elif report.phase == "epoch" and not searcher.go_on(number, report.epoch, figures[number]):
            finish(number, TrialState.COMPLETE if report.epoch == problem.epochs else TrialState.STOPPED)
        else:
            advance(number)


def _legal(searcher: Searcher, number: int) -> Design | None:
    for _ in range(_ATTEMPTS):
        try:
            return searcher.suggest(number)
        except UserError:
            searcher.end(number, None)
    return None


# --- Random search ---------------------------------------------------------------------------------------------------


class RandomSearch:
    """Random designs, each trained to the end, none twice; the last ones of a finite space in random order."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self._space, self._seed = problem.space, seed
        self._study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        self._tried: set[str] = set()

    def suggest(self, number: int) -> Design | None:
        """Draws until a design is new."""
        for _ in range(_DRAWS):
            trial = self._study.ask()
            with contextlib.suppress(UserError):
                design: Design = self._space.suggest(trial)
                if design_hash(design) not in self._tried:
                    return self._new(design)
        if math.isinf(self._space.size()):
            return None
        left = [design for design in self._space.designs() if design_hash(design) not in self._tried]
        return self._new(random.Random(self._seed).choice(left)) if left else None

    def _new(self, design: Design) -> Design:
        self._tried.add(design_hash(design))
        return design

    def go_on(self, number: int, epoch: int, figures: Mapping[str, float]) -> bool:
        """Never stops a trial."""
        return True

    def end(self, number: int, figures: Mapping[str, float] | None) -> None:
        """Learns nothing."""


# --- Ray Tune --------------------------------------------------------------------------------------------------------

_DESIGN = "design"


class OptunaRay:
    """Ray's ``OptunaSearch``, with FIFO or with ``ASHAScheduler``, called in the order of Ray's own controller.

    The space is a define-by-run function, the only way to conditional knobs. It hands the canonical design to the
    trainable as a constant. ASHA takes one metric: accuracy. ``training_iteration`` is the epoch.
    """

    def __init__(self, problem: Problem, seed: int, *, asha: bool) -> None:
        from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
        from ray.tune.search.optuna import OptunaSearch

        def space(trial: Any) -> dict[str, Any]:
            return {_DESIGN: json.dumps(problem.space.suggest(trial))}

        self._search = OptunaSearch(
            space,
            metric=[item.metric for item in problem.objectives],
            mode=["max" if item.maximize else "min" for item in problem.objectives],
            seed=seed,
        )
        self._scheduler: Any = FIFOScheduler()
        if asha:
            self._scheduler = ASHAScheduler(
                metric=ACCURACY, mode="max", max_t=problem.epochs, grace_period=GRACE, reduction_factor=FACTOR
            )
        self._trials: dict[int, _RayTrial] = {}
        self._attempts = 0

    def suggest(self, number: int) -> Design | None:
        """Asks the search algorithm."""
        self._attempts += 1
        trial = _RayTrial(f"{number}-{self._attempts}")
        self._trials[number] = trial
        config = self._search.suggest(trial.trial_id)
        self._scheduler.on_trial_add(None, trial)
        return dict(json.loads(config[_DESIGN]))

    def go_on(self, number: int, epoch: int, figures: Mapping[str, float]) -> bool:
        """Asks the scheduler."""
        trial = self._trials[number]
        result = {**figures, "training_iteration": epoch}
        trial.last_result = result
        if self._scheduler.on_trial_result(None, trial, result) == self._scheduler.STOP:
            return False
        self._search.on_trial_result(trial.trial_id, result)
        return True

    def end(self, number: int, figures: Mapping[str, float] | None) -> None:
        """Tells both; the scheduler first."""
        trial = self._trials.pop(number)
        if figures is None:
            self._search.on_trial_complete(trial.trial_id, error=True)
            return
        self._scheduler.on_trial_complete(None, trial, trial.last_result)
        self._search.on_trial_complete(trial.trial_id, result=trial.last_result)


class _RayTrial:
    """What the search algorithm and the schedulers read of a ``ray.tune.experiment.Trial``."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id
        self.last_result: dict[str, Any] = {}


# --- Syne Tune -------------------------------------------------------------------------------------------------------


class SyneTune:
    """Syne Tune's ``MOASHA``, called in the order of its own tuner.

    Its spaces are flat: every parameter that any design asks for is drawn for each, and those that the design does not
    ask for are dropped. All metrics are minimised, accuracy as ``1 - accuracy``.
    """

    def __init__(self, problem: Problem, seed: int, *, ranked: bool) -> None:
        from syne_tune.backend.trial_status import Trial
        from syne_tune.optimizer.scheduler import SchedulerDecision
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        self._problem, self._trial, self._stop = problem, Trial, SchedulerDecision.STOP
        # MOASHA draws configurations from numpy's global stream, whatever its random_seed.
        np.random.seed(seed)
        self._scheduler = MOASHA(
            flat_space(problem.space),
            metrics=[item.metric for item in problem.objectives],
            do_minimize=True,
            time_attr="epoch",
            max_t=problem.epochs,
            grace_period=GRACE,
            reduction_factor=FACTOR,
            random_seed=seed,
            multiobjective_priority=_ranked() if ranked else None,
        )
        self._trials: dict[int, Any] = {}
        self._results: dict[int, dict[str, Any]] = {}

    def suggest(self, number: int) -> Design | None:
        """Asks the scheduler, which proposes and stops."""
        config = self._scheduler.suggest().config
        design: Design = self._problem.space.suggest(Drawn(config))
        self._trials[number] = self._trial(number, config, datetime.fromtimestamp(0, timezone.utc))
        self._scheduler.on_trial_add(self._trials[number])
        return design

    def go_on(self, number: int, epoch: int, figures: Mapping[str, float]) -> bool:
        """Asks the scheduler."""
        result: dict[str, Any] = {"epoch": epoch}
        for item in self._problem.objectives:
            result[item.metric] = 1 - figures[item.metric] if item.maximize else figures[item.metric]
        self._results[number] = result
        if self._scheduler.on_trial_result(self._trials[number], result) == self._stop:
            self._scheduler.on_trial_remove(self._trials.pop(number))
            return False
        return True

    def end(self, number: int, figures: Mapping[str, float] | None) -> None:
        """Tells the scheduler of a trial that it has not stopped itself."""
        trial = self._trials.pop(number, None)
        if trial is None:
            return
        if figures is None:
            self._scheduler.on_trial_error(trial)
        else:
            self._scheduler.on_trial_complete(trial, self._results[number])


def _ranked() -> Any:
    """Gives Syne Tune's default priority with each element's rank.

    ``NonDominatedPriority`` (0.16.0) gives the order of the elements, where its caller reads the element's rank: for
    one objective (3, 1, 2) it gives (1, 2, 0), so the best counts as the worst.
    """
    from syne_tune.optimizer.schedulers.multiobjective.multiobjective_priority import NonDominatedPriority

    class Ranked(NonDominatedPriority):
        def priority_unsafe(self, objectives: np.ndarray) -> np.ndarray:
            return np.argsort(super().priority_unsafe(objectives))

    return Ranked()


class Drawn:
    """A suggester that answers from a flat configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Gives what was drawn."""
        return self._config[name]

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """Gives what was drawn."""
        return float(self._config[name])

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Gives what was drawn."""
        return int(self._config[name])


def flat_space(space: Any, samples: int = 500) -> dict[str, Any]:
    """Gives a space as Syne Tune's domains by parameter: all that ``samples`` random designs ask for."""
    from syne_tune import config_space

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for _ in range(samples):
        trial = study.ask()
        with contextlib.suppress(UserError):
            space.suggest(trial)
        found.update(trial.distributions)
    flat: dict[str, Any] = {}
    for name, distribution in sorted(found.items()):
        if isinstance(distribution, optuna.distributions.CategoricalDistribution):
            flat[name] = config_space.choice(list(distribution.choices))
        elif isinstance(distribution, optuna.distributions.IntDistribution):
            flat[name] = config_space.randint(distribution.low, distribution.high)
        elif isinstance(distribution, optuna.distributions.FloatDistribution):
            low, high, step = distribution.low, distribution.high, distribution.step
            if step is None:
                flat[name] = config_space.uniform(low, high)
            else:
                flat[name] = config_space.choice(
                    [low + step * place for place in range(round((high - low) / step) + 1)]
                )
    return flat


# --- Headway ---------------------------------------------------------------------------------------------------------


def headway(problem: Problem, seed: int, *, workers: int, seconds: float, rungs: Any) -> list[Ended]:
    """Runs Headway itself: its conductor, store, sampler and rungs.

    Args:
        problem: What is searched.
        seed: The study's seed.
        workers: Trials side by side.
        seconds: Simulated time after which no trial begins.
        rungs: The study file's section.
    """
    budget = {"trials": 100_000, "epochs": problem.epochs, "hours": seconds / 3600}
    study = problem.study(budget=budget, rungs=rungs, sampler={}, seed=seed)
    clock = Clock()
    store = Store.in_memory(study, clock=clock)
    conductor = Conductor(
        study,
        problem.space,
        store,
        folder=Path("/nowhere"),
        data=NO_DATA,
        device="cpu",
        speed_device="cpu",
        threads=1,
        concurrent=workers,
        clock=clock,
    )
    simulate(conductor, problem.steps, clock)
    ended = [
        Ended(record.number, record.state, record.started or 0.0, record.finished or 0.0, dict(record.metrics))
        for record in store.records()
    ]
    return sorted(ended, key=lambda trial: (trial.ended, trial.number))


# --- All of them -----------------------------------------------------------------------------------------------------

Rival = Callable[[Problem, int, int, float], list[Ended]]


def _raced(make: Callable[[Problem, int], Searcher]) -> Rival:
    def run(problem: Problem, seed: int, workers: int, seconds: float) -> list[Ended]:
        return race(problem, make(problem, seed), workers=workers, seconds=seconds)

    return run


def _headway(rungs: Any) -> Rival:
    def run(problem: Problem, seed: int, workers: int, seconds: float) -> list[Ended]:
        return headway(problem, seed, workers=workers, seconds=seconds, rungs=rungs)

    return run


RIVALS: Mapping[str, Rival] = {
    "headway": _headway({}),
    "headway_mo_asha": _headway({"method": "mo_asha"}),
    "headway_no_rungs": _headway(None),
    "random": _raced(RandomSearch),
    "optuna_fifo": _raced(lambda problem, seed: OptunaRay(problem, seed, asha=False)),
    "optuna_asha": _raced(lambda problem, seed: OptunaRay(problem, seed, asha=True)),
    "moasha": _raced(lambda problem, seed: SyneTune(problem, seed, ranked=False)),
    "moasha_ranked": _raced(lambda problem, seed: SyneTune(problem, seed, ranked=True)),
}
# Packages that a rival's figures depend on.
LIBRARIES = ("optuna", "ray", "syne-tune", "numpy", "moocore")


def rival(name: str) -> Rival:
    """Gives a rival by its name.

    Raises:
        UserError: There is none of this name, or its library is not installed.
    """
    if name not in RIVALS:
        raise UserError(f"--rivals: must be of {choices(RIVALS)}, but got {name}.")
    if name.startswith("moasha"):
        try:
            import syne_tune  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"--rivals: {name} needs syne-tune; benchmarks/search/README.md says how to install it."
            ) from error
    return RIVALS[name]


def quiet() -> None:
    """Silences what the libraries tell at every trial."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    # Of OptunaSearch, on a machine with more to do.
    warnings.filterwarnings("ignore", message="Define-by-run function")


def run(problem: Problem, name: str, seed: int, workers: int) -> list[Ended]:
    """Runs one search until it has spent the problem's budget of compute, and somewhat longer.

    All wait for the shared warm start, and pay for it. Headway's trial 0 trains it; for the others it is a trial of
    number -1 that failed.
    """
    warm = problem.preparation()
    seconds = problem.budget / workers + problem.training_seconds
    if name.startswith("headway"):
        return rival(name)(problem, seed, workers, warm + seconds)
    ended = rival(name)(problem, seed, workers, seconds)
    if not warm:
        return ended
    later = [Ended(item.number, item.state, item.began + warm, item.ended + warm, item.figures) for item in ended]
    return [Ended(-1, TrialState.FAILED, 0.0, warm, {}), *later]
