"""Samplers, and what they are told of a study: pure Optuna, in memory.

A sampler reads trials, and the store's are not what it should read: there a STOPPED trial has no values, so that it can
never come onto a front, and every look would be a look into a database. A ``History`` is the study as a sampler is to
see it:

- COMPLETE: its objective values.
- STOPPED: its costs, which were known before training, and the accuracy that it would have reached (``Growth``). A
  sampler that knew only that it was stopped would learn nothing from three trials in four.
- INFEASIBLE: its constraints and by how much they are broken, no values. TPE ranks it behind all that are feasible;
  genetic algorithms and Gaussian processes do not look at it.
- FAILED: nothing but that it was asked for. A design is never tried twice anyway.
- RUNNING: its knobs. TPE takes it for a bad one meanwhile (constant liar), so that those side by side differ.
- Points of earlier studies come before all trials, as COMPLETE.
"""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from analysis.record import Objective, TrialRecord, TrialState
from search.study import SamplerSection


def make_sampler(section: SamplerSection, seed: int, proposals: int, *, conditional: bool = True) -> BaseSampler:
    """Builds the sampler of one proposal.

    The seed follows from the number of proposals so far, so a study that is continued proposes what an undisturbed
    one would have, and never repeats a stream.

    Args:
        section: The study file's ``sampler``; ``grid`` draws nothing and is none of these.
        seed: The study's seed.
        proposals: Proposals made before this one.
        conditional: Whether knobs come and go with others. TPE then models each group of knobs that occur together
            jointly, else each knob by itself, which found better fronts there (docs/decisions.md).
    """
    seed = (seed * 1_000_003 + proposals) % 2**31
    with warnings.catch_warnings():
        # Grouped TPE and the Gaussian process are marked experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if section.name == "tpe":
            return TPESampler(
                n_startup_trials=section.startup,
                multivariate=conditional,
                group=conditional,
                constant_liar=True,
                seed=seed,
            )
        if section.name == "gp":
            return GPSampler(n_startup_trials=section.startup, seed=seed)
        if section.name == "nsgaii":
            return NSGAIISampler(population_size=max(2, section.startup), seed=seed)
        if section.name == "nsgaiii":
            return NSGAIIISampler(population_size=max(2, section.startup), seed=seed)
        return RandomSampler(seed=seed)


class Growth:
    """How accuracy grows from each epoch to the end, learned from COMPLETE trials.

    Args:
        metric: The accuracy objective.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._ratios: dict[int, list[float]] = {}  # by epoch, ascending
        self._best: dict[int, float] = {}

    def add(self, record: TrialRecord) -> None:
        """Learns from a COMPLETE trial."""
        final = record.metrics.get(self._metric, math.nan)
        for item in record.curve:
            then = item.metrics.get(self._metric, 0.0)
            if then > 0 and math.isfinite(final):
                bisect.insort(self._ratios.setdefault(item.epoch, []), final / then)
                self._best[item.epoch] = max(final, self._best.get(item.epoch, 0.0))

    def projected(self, record: TrialRecord) -> float:
        """Gives the accuracy that a STOPPED trial would have reached with the whole budget.

        That is what it had when it stopped, grown as the COMPLETE trials have grown since that epoch (median ratio),
        but no more than the best of them reached. What it had, while no COMPLETE trial tells more.
        """
        last = record.curve[-1]
        reached = last.metrics.get(self._metric, 0.0)
        ratios = self._ratios.get(last.epoch)
        if not ratios:
            return reached
        middle = len(ratios) // 2
        median = ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2
        return max(reached, min(reached * median, self._best[last.epoch]))


@dataclass(frozen=True)
class Asked:
    """What Optuna keeps of a proposal beside the design.

    Attributes:
        params: Values by the names that were asked for.
        distributions: Of each of them.
        system: What the sampler noted for itself (a genetic algorithm's generation).
    """

    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    system: Mapping[str, Any]


class History:
    """A study as a sampler sees it, kept in memory; see the module's text."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._objectives = tuple(objectives)
        self._storage = InMemoryStorage()
        self._study = optuna.create_study(
            storage=self._storage, directions=[StudyDirection[item.direction.upper()] for item in objectives]
        )
        self._ids: dict[int, int] = {}
        self._stopped: dict[int, TrialRecord] = {}
        self._growth = Growth(self._objectives[0].metric)
        self._grown = False

    def ask(self, sampler: BaseSampler) -> optuna.Trial:
        """Begins a proposal; ``keep`` or ``drop`` ends it."""
        self._project()
        self._study.sampler = sampler
        return self._study.ask()

    def ask_fixed(self, answers: Mapping[str, Any]) -> optuna.Trial:
        """Begins a proposal whose answers are known."""
        self._study.enqueue_trial(dict(answers))
        self._study.sampler = RandomSampler(seed=0)
        return self._study.ask()

    def keep(self, trial: optuna.Trial, number: int) -> Asked:
        """Makes a proposal the trial ``number``, RUNNING from now on."""
        self._ids[number] = trial._trial_id
        frozen = self._storage.get_trial(trial._trial_id)
        return Asked(dict(frozen.params), dict(frozen.distributions), dict(frozen.system_attrs))

    def drop(self, trial: optuna.Trial) -> None:
        """Forgets a proposal."""
        self._storage.set_trial_state_values(trial._trial_id, OptunaState.FAIL)

    def add(self, record: TrialRecord, asked: Asked, broken: Mapping[str, float]) -> None:
        """Adds a trial that was proposed elsewhere, in whatever state it is."""
        self._ids[record.number] = self._new(asked)
        if record.state.finished:
            self.end(record, broken)

    def add_point(self, trial: optuna.Trial, values: Sequence[float]) -> None:
        """Makes a proposal a point of an earlier study."""
        self._storage.set_trial_state_values(trial._trial_id, OptunaState.COMPLETE, list(values))

    def end(self, record: TrialRecord, broken: Mapping[str, float]) -> None:
        """Takes the end of a trial.

        Args:
            record: The ended trial.
            broken: By how much each constraint is exceeded, for all that are known.
        """
        identity = self._ids[record.number]
        trial = optuna.Trial(self._study, identity)
        for name, excess in broken.items():
            trial.set_constraint(name, excess)
        values = None
        state = OptunaState.FAIL
        if record.state is TrialState.COMPLETE:
            state, values = OptunaState.COMPLETE, [record.metrics[item.metric] for item in self._objectives]
            self._growth.add(record)
            self._grown = True
        elif record.state is TrialState.STOPPED:
            values = self._values(record)
            state = OptunaState.COMPLETE if values else OptunaState.PRUNED
            if values:
                self._stopped[record.number] = record
        elif record.state is TrialState.INFEASIBLE:
            state = OptunaState.PRUNED
        self._storage.set_trial_state_values(identity, state, values)

    def _new(self, asked: Asked) -> int:
        template = create_trial(
            state=OptunaState.RUNNING,
            params=dict(asked.params),
            distributions=dict(asked.distributions),
            system_attrs=dict(asked.system),
        )
        return self._storage.create_new_trial(self._study._study_id, template)

    def _values(self, record: TrialRecord) -> list[float] | None:
        """The values of a STOPPED trial, ``None`` where a cost is not known before training."""
        if not record.curve:
            return None
        values = [self._growth.projected(record)]
        for item in self._objectives[1:]:
            if item.maximize:
                last = record.curve[-1].metrics.get(item.metric, math.nan)
                values.append(last)
            else:
                values.append(record.metrics.get(item.metric, math.nan))
        return values if all(math.isfinite(value) for value in values) else None

    def _project(self) -> None:
        """Projects the STOPPED trials anew when more trials are COMPLETE."""
        if not self._grown:
            return
        self._grown = False
        for number, record in self._stopped.items():
            self._storage.get_trial(self._ids[number]).values = self._values(record)
