"""Which design comes next: known good ones, a list, the whole grid, or what a sampler says; none twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import optuna

from analysis.record import Objective, TrialRecord, TrialState
from search.designs import listed
from search.sampler import Asked, History, make_sampler
from search.study import SamplerSection, Study
from spaces.errors import UserError, choices
from spaces.space import Design, Space

_ATTEMPTS = 150
# A sampler may insist on what it knows to be good; later attempts are random.
_OWN_ATTEMPTS = 15
# In a space of no more designs a sampler that repeats itself is given what is nearest to its proposal.
_COUNTABLE = 5_000
_REPEATS = 3
_RANDOM = SamplerSection(name="random")


@dataclass(frozen=True)
class Proposal:
    """A design to try, with what Optuna keeps of it."""

    design: Design
    asked: Asked
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EarlierPoint:
    """A COMPLETE trial of an earlier study: its objective values as multiples of its own baseline's."""

    design: Design
    relative: tuple[float, ...]


@dataclass(frozen=True)
class Known:
    """A trial as a history takes it: its record, what was asked for it, and by how much it breaks constraints."""

    record: TrialRecord
    asked: Asked
    broken: Mapping[str, float]


def check_sampler(study: Study, space: Space) -> None:
    """Refuses a sampler that cannot search a space.

    Raises:
        UserError: ``grid`` on a space that is too large or continuous, or ``gp`` on one whose knobs come and go.
    """
    if study.designs:
        return
    if study.sampler.name == "grid":
        space.designs()
    if study.sampler.name != "gp":
        return
    come_and_go = conditional_knobs(space)
    if come_and_go:
        raise UserError(
            f"sampler.name: must be {choices(['tpe', 'nsgaii', 'nsgaiii', 'random'])} for a space whose knobs come and "
            f"go; gp needs the same knobs in every design, but not always there are {choices(come_and_go[:6])}."
        )


def conditional_knobs(space: Space) -> list[str]:
    """Lists what a sampler is asked for in some designs only, as far as 32 random ones tell."""
    found: list[set[str]] = []
    rehearsal = History((Objective("bbox_mAP", "maximize"),))
    for stream in range(32):
        trial = rehearsal.ask(make_sampler(_RANDOM, 0, stream))
        try:
            space.suggest(trial)
        except UserError:
            continue
        found.append(set(trial.params))
    names = {name for one in found for name in one}
    return sorted(name for name in names if not all(name in one for one in found))


class Proposals:
    """Proposes the designs of a study, and keeps what its sampler knows.

    Args:
        study: The study file.
        space: What may vary.
        earlier: Points of earlier studies.
        trials: What was tried before, by number.
    """

    def __init__(
        self,
        study: Study,
        space: Space,
        earlier: Sequence[EarlierPoint] = (),
        trials: Callable[[], Iterable[Known]] = list,
    ) -> None:
        self.space = space
        self._study, self._earlier, self._trials = study, earlier, trials
        self._restore()

    def baseline(self) -> Proposal:
        """Gives the base with every family off."""
        answers = {part.family.name: False for part in self.space.families if not part.always}
        return self._fixed({}, answers if len(self.space.families) > 1 else {}, 0)

    def next(self, number: int, tried: Callable[[Design], bool]) -> Proposal | None:
        """Gives the design of trial ``number``.

        Args:
            number: The trial's number; with the study's seed it decides what is random.
            tried: Whether a design was tried before.

        Returns:
            ``None`` when nothing new was found in a bounded number of attempts.
        """
        for design, attrs in self._given():
            if not tried(design):
                return self._fixed(design, self.space.recall(design), number, attrs)
        if self._study.designs:
            return None
        if self._study.sampler.name == "grid":
            return self._untried_one(number, tried)
        for attempt in range(_REPEATS if self._countable else _ATTEMPTS):
            section = self._study.sampler if attempt < _OWN_ATTEMPTS else _RANDOM
            stream = number * _ATTEMPTS + attempt
            sampler = make_sampler(section, self._study.seed, stream, conditional=self._conditional)
            trial = self._history.ask(sampler)
            try:
                design = self.space.suggest(trial)
            except UserError:
                self._history.drop(trial)
                continue
            if not tried(design):
                return Proposal(design, self._history.keep(trial, number))
            self._history.drop(trial)
            if attempt + 1 == _REPEATS and self._countable and self._study.sampler.name != "random":
                return self._nearest(trial.params, number, tried)
        return self._untried_one(number, tried) if self._countable else None

    def ended(self, record: TrialRecord, broken: Mapping[str, float]) -> None:
        """Takes the end of a trial; see ``History.end``."""
        if self._earlier and record.baseline:
            self._restore()  # relative figures have a meaning from now on
        else:
            self._history.end(record, broken)

    def _given(self) -> list[tuple[Design, Mapping[str, Any]]]:
        """What comes before any sampler: the study file's list, or the papers' best settings."""
        if self._study.designs:
            return [(named.knobs, {"name": named.name}) for named in listed(self._study, self.space)]
        if self._study.sampler.known:
            return [(design, {"known": True}) for design in self.space.known()]
        return []

    @cached_property
    def _conditional(self) -> bool:
        return bool(conditional_knobs(self.space))

    @cached_property
    def _countable(self) -> bool:
        return self.space.size() <= _COUNTABLE

    @cached_property
    def _designs(self) -> list[tuple[Design, Mapping[str, Any]]]:
        """All designs of the space with the answers that give them, in an order drawn from the seed."""
        designs: list[tuple[Design, Mapping[str, Any]]] = [
            (design, self.space.recall(design) or {}) for design in self.space.designs()
        ]
        random.Random(self._study.seed).shuffle(designs)
        return designs

    def _untried_one(self, number: int, tried: Callable[[Design], bool]) -> Proposal | None:
        """Gives one of all designs that were not tried yet."""
        found = next(((design, answers) for design, answers in self._designs if not tried(design)), None)
        return None if found is None else self._fixed(*found, number)

    def _nearest(self, params: Mapping[str, Any], number: int, tried: Callable[[Design], bool]) -> Proposal | None:
        """Gives the untried design that differs from a proposal in the fewest answers."""

        def distance(answers: Mapping[str, Any]) -> int:
            return sum(params.get(name) != answers.get(name) for name in params.keys() | answers.keys())

        left = [(design, answers) for design, answers in self._designs if not tried(design)]
        if not left:
            return None
        return self._fixed(*min(left, key=lambda item: distance(item[1])), number)

    def _fixed(
        self, design: Design, answers: Mapping[str, Any] | None, number: int, attrs: Mapping[str, Any] | None = None
    ) -> Proposal:
        """Makes a proposal of a design that no sampler drew, with the answers that give it where the space has them."""
        trial = self._answered(answers or {})
        return Proposal(design, self._history.keep(trial, number), attrs or {})

    def _answered(self, answers: Mapping[str, Any]) -> optuna.Trial:
        """Has a trial asked for its knobs, all answers being known."""
        trial = self._history.ask_fixed(answers)
        if answers:
            self.space.suggest(trial)
        return trial

    def _restore(self) -> None:
        """Builds the history anew: points of earlier studies first, then the trials by number."""
        known = sorted(self._trials(), key=lambda item: item.record.number)
        self._history = History(self._study.objective_records)
        baseline = known[0].record if known else None
        if baseline is not None and baseline.state is TrialState.COMPLETE:
            mine = [baseline.metrics[item.metric] for item in self._study.objectives]
            for point in self._earlier:
                answers = self.space.recall(point.design)
                if answers is not None:
                    values = [share * value for share, value in zip(point.relative, mine, strict=True)]
                    self._history.add_point(self._answered(answers), values)
        for item in known:
            self._history.add(item.record, item.asked, item.broken)


def earlier_points(study: Study, space: Space, name: str, records: Sequence[TrialRecord]) -> list[EarlierPoint]:
    """Gives what an earlier study can tell this one: its COMPLETE designs whose knobs this space has.

    Figures are taken relative to that study's own baseline, since its data, budget and machine may differ.

    Args:
        study: The study that begins.
        space: Its space.
        name: The earlier study's name, for the error.
        records: The earlier study's trials.

    Raises:
        UserError: The earlier study has no COMPLETE baseline to refer to, or lacks an objective's metric.
    """
    complete = [record for record in records if record.state is TrialState.COMPLETE]
    metrics = [item.metric for item in study.objectives]
    if not complete or not complete[0].baseline:
        raise UserError(f"sampler.earlier: must be studies with a COMPLETE baseline, but {name} has none.")
    lacking = [metric for metric in metrics if not complete[0].metrics.get(metric)]
    if lacking:
        raise UserError(
            f"sampler.earlier: must have this study's objectives, but the baseline of {name} lacks {lacking[0]}."
        )
    mine = [complete[0].metrics[metric] for metric in metrics]
    return [
        EarlierPoint(
            dict(record.knobs),
            tuple(record.metrics[metric] / value for metric, value in zip(metrics, mine, strict=True)),
        )
        for record in complete[1:]
        if all(metric in record.metrics for metric in metrics) and space.recall(record.knobs) is not None
    ]
