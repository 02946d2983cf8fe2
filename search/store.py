"""Trial states, rungs and records in Optuna's storage. The store is the truth: a run continues from it.

Every Headway trial is one Optuna trial; its record lies in user attributes that are written before Optuna is told its
end. COMPLETE is told with values, STOPPED and INFEASIBLE as PRUNED without values (so they never reach a front, and
INFEASIBLE carries its constraints), FAILED as FAIL. What a sampler sees is another matter: ``search.sampler``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial
from pydantic import ValidationError

from analysis.record import EpochRecord, SweepPoint, TrialRecord, TrialState
from search.attributes import changes, plain, record_of
from search.events import EventLog
from search.folder import STUDY_FILE
from search.patience import Patience, PatientStorage, patience_seconds
from search.proposals import EarlierPoint, Known, Proposal, Proposals
from search.sampler import Asked
from search.storage import default_url, explained, open_storage, probe, safe_url, server
from search.study import Study, load
from spaces.errors import HeadwayError, UserError, choices
from spaces.space import Space, design_hash

_TOLD = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.INFEASIBLE: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}
_PREFIX = "headway:"
_FILE = "headway:study_file"
_SPEED = "headway:speed:"
_REFERENCE = "headway:reference_ms"
_NOTE = "headway:note:"
# What --extend lets grow.
_BUDGET = ("budget.trials", "budget.hours", "budget.gpu_hours")


class Store:
    """The trials of one study.

    One process writes; what it wrote it knows, so a record is read from the database once. A store that was opened to
    look at (``read``) looks anew at each call of ``records``.
    """

    def __init__(
        self,
        storage: BaseStorage,
        optuna_study: optuna.Study,
        study: Study,
        *,
        writes: bool = False,
        clock: Callable[[], float] = time.time,
        journal: EventLog | None = None,
    ) -> None:
        self._storage = storage
        self._optuna = optuna_study
        self._writes = writes
        self._clock = clock
        self._journal = journal
        self.study = study
        self._proposals: Proposals | None = None
        self._load()

    @classmethod
    def create(
        cls,
        folder: Path,
        study: Study,
        *,
        extend: bool = False,
        clock: Callable[[], float] = time.time,
        journal: EventLog | None = None,
        guard: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> Store:
        """Opens the store of a study for a run, creating it where there is none, and repairs what a kill left.

        Args:
            folder: The study's folder.
            study: The study file.
            extend: The budget may have grown since the last start.
            clock: Gives the Unix time of starts and ends; another one in a simulation.
            journal: Is told each change after the database took it.
            guard: Called before writes; raises where this process may not write any more (``search.study_lock``).
            say: Takes a line when the database is away, and when it is there again.

        Raises:
            UserError: The storage cannot be opened, or it holds another study under this name.
        """
        url = study.storage or default_url(folder)
        storage = open_storage(url)
        with explained(url):
            optuna_study = _open_study(storage, study)
            known = optuna_study.user_attrs.get(_FILE)
            if known is not None and not optuna_study.get_trials(deepcopy=False):
                # A start that came to nothing, for wrong resources say, binds nobody to its study file.
                optuna.delete_study(study_name=study.name, storage=storage)
                optuna_study, known = _open_study(storage, study), None
            if known is not None:
                check_unchanged(known, study, extend)
            elif optuna_study.get_trials(deepcopy=False) or optuna_study.directions != _directions(study):
                raise UserError(
                    f"storage: holds a study '{study.name}' that Headway did not make; give this one another name."
                )
            if known != study.dump():
                optuna_study.set_user_attr(_FILE, study.dump())
            _repair(storage, optuna_study, study)
            # From here on a database that goes away is waited for; before, the URL may be wrong.
            storage.patience = _patience(url, journal, guard, say)
            return cls(storage, optuna_study, study, writes=True, clock=clock, journal=journal)

    @classmethod
    def in_memory(
        cls, study: Study, *, clock: Callable[[], float] = time.time, journal: EventLog | None = None
    ) -> Store:
        """Makes a store that lives as long as the process: for simulations."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = InMemoryStorage()
        return cls(storage, _open_study(storage, study), study, writes=True, clock=clock, journal=journal)

    @classmethod
    def read(cls, folder: Path, study: Study) -> Store:
        """Opens the store of a study to look at it.

        Raises:
            UserError: There is none yet.
        """
        url = study.storage or default_url(folder)
        if study.storage is None and not (folder / "study.db").is_file():
            raise UserError(f"{study.name}: has no trials yet; 'headway run' starts it.")
        storage = open_storage(url)
        with explained(url):
            try:
                return cls(storage, optuna.load_study(storage=storage, study_name=study.name), study)
            except KeyError as error:
                raise UserError(f"{study.name}: has no trials yet; 'headway run' starts it.") from error

    def _load(self) -> None:
        self._study_attrs: dict[str, Any] = dict(self._optuna.user_attrs)
        self._ids: dict[int, int] = {}
        self._attrs: dict[int, dict[str, Any]] = {}
        self._told: dict[int, tuple[Asked, dict[str, float]]] = {}
        self._records: dict[int, TrialRecord] = {}
        self._tried: set[str] = set()
        for trial in self._optuna.get_trials(deepcopy=False):
            number = trial.user_attrs.get("headway:number")
            if number is not None:
                noted = {key: value for key, value in trial.system_attrs.items() if not key.startswith("constraints")}
                asked = Asked(trial.params, trial.distributions, noted)
                self._know(number, trial._trial_id, _unprefixed(trial.user_attrs), asked, trial.constraints)

    def _know(
        self, number: int, identity: int, attrs: Mapping[str, Any], asked: Asked, broken: Mapping[str, float]
    ) -> None:
        self._ids[number] = identity
        self._attrs[number] = dict(attrs)
        self._told[number] = asked, dict(broken)
        self._tried.add(design_hash(attrs["knobs"]))

    def records(self) -> list[TrialRecord]:
        """All trials, by number."""
        if not self._writes:
            self._load()
        return [self.record(number) for number in sorted(self._ids)]

    @property
    def count(self) -> int:
        """How many trials there are."""
        return len(self._ids)

    def record(self, number: int) -> TrialRecord:
        """One trial."""
        if number not in self._records:
            self._records[number] = record_of(self._attrs[number])
        return self._records[number]

    @property
    def failure(self) -> HeadwayError | None:
        """Why the database takes nothing any more, ``None`` while it does."""
        patience = self._storage.patience if isinstance(self._storage, PatientStorage) else None
        return None if patience is None else patience.over

    @property
    def away(self) -> tuple[float, str] | None:
        """Unix time since when the database is away and why, ``None`` while it is there."""
        patience = self._storage.patience if isinstance(self._storage, PatientStorage) else None
        return None if patience is None else patience.away

    def settle(self) -> None:
        """Makes the event log agree with the database, of which a kill or a full disk may have kept it."""
        if self._journal is not None:
            self._journal.settle(self._attrs)

    @property
    def earlier(self) -> list[EarlierPoint] | None:
        """What earlier studies told this one when it began, ``None`` before that."""
        found = self.notes("earlier").get("earlier")
        return None if found is None else [EarlierPoint(item["design"], tuple(item["relative"])) for item in found]

    @earlier.setter
    def earlier(self, points: Sequence[EarlierPoint]) -> None:
        self.note("earlier", [{"design": dict(point.design), "relative": list(point.relative)} for point in points])

    def propose_baseline(self, space: Space) -> TrialRecord:
        """Makes trial 0, the base with every family off."""
        return self._accept(self._proposer(space).baseline(), 0)

    def propose(self, space: Space) -> TrialRecord | None:
        """Makes the next trial from a design that was never tried.

        Returns:
            The PROPOSED trial, or ``None`` when nothing new was found in a bounded number of attempts.
        """
        number = len(self._ids)
        found = self._proposer(space).next(number, lambda design: design_hash(design) in self._tried)
        return None if found is None else self._accept(found, number)

    def _proposer(self, space: Space) -> Proposals:
        if self._proposals is None or self._proposals.space is not space:

            def known() -> list[Known]:
                return [Known(self.record(number), *self._told[number]) for number in sorted(self._ids)]

            self._proposals = Proposals(self.study, space, self.earlier or (), known)
        return self._proposals

    def _accept(self, proposal: Proposal, number: int) -> TrialRecord:
        fields = plain({"knobs": proposal.design, "attrs": dict(proposal.attrs)})
        attrs = changes("proposed", {"trial": number, **fields}, {})
        asked = proposal.asked
        template = create_trial(
            state=OptunaState.RUNNING,
            params=dict(asked.params),
            distributions=dict(asked.distributions),
            user_attrs={f"{_PREFIX}{key}": value for key, value in attrs.items()},
            system_attrs=dict(asked.system),
        )
        identity = self._storage.create_new_trial(self._optuna._study_id, template)
        self._know(number, identity, attrs, asked, {})
        self._log("proposed", number, fields)
        return self.record(number)

    def start(self, number: int) -> TrialRecord:
        """Marks a trial RUNNING."""
        self._change("started", number, at=self._clock())
        return self.record(number)

    def update(self, number: int, metrics: Mapping[str, float], attrs: Mapping[str, Any], seconds: float) -> None:
        """Adds figures to a trial, and its wall time so far."""
        new = {name: dict(values) for name, values in (("metrics", metrics), ("attrs", attrs)) if values}
        self._change("figures", number, **new, seconds=seconds)

    def interrupted(self, number: int, why: str) -> None:
        """Records that a trial lost its process: how often, and why the last time."""
        record = self.record(number)
        attrs = {"interruptions": record.attrs.get("interruptions", 0) + 1, "interrupted": why}
        self.update(number, {}, attrs, record.compute_hours * 3600)
        self._log("interrupted", number, {"why": why})

    def add_epoch(self, number: int, epoch: EpochRecord) -> None:
        """Records a finished epoch; the same epoch again replaces it."""
        self._change("epoch", number, epoch=epoch.epoch, metrics=dict(epoch.metrics), seconds=epoch.seconds)

    def add_point(self, number: int, point: SweepPoint) -> None:
        """Records one setting of the inference knobs on the trained detector; the same index again replaces it."""
        what = {"knobs": dict(point.knobs), "metrics": dict(point.metrics), "broken": list(point.broken)}
        self._change("point", number, index=point.index, **what)

    def add_rung(self, number: int, epoch: int, decision: str) -> None:
        """Records the decision at a rung."""
        self._change("rung", number, epoch=epoch, decision=decision)

    def finish(
        self,
        number: int,
        state: TrialState,
        *,
        reason: str | None = None,
        traceback: str | None = None,
        broken: Mapping[str, float] | None = None,
    ) -> TrialRecord:
        """Ends a trial and tells Optuna; a trial that has ended stays as it is.

        Args:
            number: The trial.
            state: A finished state.
            reason: Why, for all but COMPLETE.
            traceback: Of a FAILED trial.
            broken: By how much each constraint is exceeded, for all that are known.
        """
        record = self.record(number)
        if record.state.finished:
            return record
        told = self._told[number][1]
        fresh = {name: excess for name, excess in (broken or {}).items() if name not in told}
        if fresh:
            trial = optuna.Trial(self._optuna, self._ids[number])
            for name, excess in fresh.items():
                trial.set_constraint(name, excess)
            told.update(fresh)
        fields = plain({"state": state.value, "reason": reason, "traceback": traceback, "at": self._clock()})
        self._apply("ended", number, fields)
        record = self.record(number)
        _tell(self._storage, self._ids[number], record, self.study)
        self._log("ended", number, {**fields, "broken": told})
        if self._proposals is not None:
            self._proposals.ended(record, told)
        return record

    def speed(self, key: str) -> dict[str, float] | None:
        """The latency measured for an architecture on a device, ``None`` if it was not."""
        found = self._study_attrs.get(_SPEED + key)
        return dict(found) if found else None

    def set_speed(self, key: str, metrics: Mapping[str, float]) -> None:
        """Keeps the latency of an architecture on a device."""
        self._set_study(_SPEED + key, dict(metrics))
        self._log("speed", None, {"key": key, "metrics": dict(metrics)})

    def note(self, key: str, value: Any) -> None:
        """Keeps something with the study, of JSON types; the same key again replaces it."""
        self._set_study(_NOTE + key, value)
        self._log("noted", None, {"key": key, "value": value})

    def notes(self, prefix: str = "") -> dict[str, Any]:
        """What was noted under keys that begin with ``prefix``, by key."""
        if not self._writes:
            self._study_attrs = dict(self._optuna.user_attrs)
        found = {key[len(_NOTE) :]: value for key, value in self._study_attrs.items() if key.startswith(_NOTE)}
        return {key: value for key, value in found.items() if key.startswith(prefix)}

    @property
    def reference_ms(self) -> float | None:
        """The baseline's own latency in ms, to which all ratios refer."""
        found = self._study_attrs.get(_REFERENCE)
        return None if found is None else float(found)

    @reference_ms.setter
    def reference_ms(self, value: float) -> None:
        self._set_study(_REFERENCE, value)
        self._log("reference", None, {"ms": value})

    @property
    def seconds_run(self) -> float:
        """Run time of the command so far, over all its starts."""
        return float(self._study_attrs.get("headway:seconds", 0.0))

    @seconds_run.setter
    def seconds_run(self, value: float) -> None:
        self._set_study("headway:seconds", value)

    def _change(self, event: str, number: int, **fields: Any) -> None:
        fields = plain(fields)
        self._apply(event, number, fields)
        self._log(event, number, fields)

    def _apply(self, event: str, number: int, fields: Mapping[str, Any]) -> None:
        before = self._attrs[number]
        for key, value in changes(event, fields, before).items():
            self._storage.set_trial_user_attr(self._ids[number], f"{_PREFIX}{key}", value)
            before[key] = value
            self._records.pop(number, None)

    def _log(self, event: str, number: int | None, fields: Mapping[str, Any]) -> None:
        if self._journal is not None:
            self._journal.write(event, number, **fields)

    def _set_study(self, key: str, value: Any) -> None:
        self._optuna.set_user_attr(key, value)
        self._study_attrs[key] = plain(value)


def _patience(url: str, journal: EventLog | None, guard: Callable[[], None], say: Callable[[str], None]) -> Patience:
    seconds, name = patience_seconds(url), safe_url(url)

    def waiting(why: str) -> None:
        say(f"the database {name} cannot be used ({why}); waiting up to {seconds:g} s for it")
        if journal is not None:
            journal.write("store_waits", why=why)

    def back(after: float) -> None:
        say(f"the database is there again, after {after:.1f} s")
        if journal is not None:
            journal.write("store_back", seconds=round(after, 3))

    return Patience(seconds, name, waiting=waiting, back=back, guard=guard)


def await_database(study: Study, folder: Path, journal: EventLog, say: Callable[[str], None]) -> None:
    """Waits for the server of a study that was begun on it: a driver may start again while both are away.

    Raises:
        CutShort: It stayed away.
    """
    url, file = study.storage, folder / STUDY_FILE
    if url is None or not server(url) or not file.is_file() or load(file).storage != url:
        return
    _patience(url, journal, lambda: None, say).through(lambda: probe(url), writes=False)


@contextmanager
def plainly(store: Store) -> Iterator[None]:
    """Raises the store's own failure, into whatever it was wrapped by those whose callbacks it ended."""
    try:
        yield
    except Exception as error:
        if store.failure is not None and store.failure is not error:
            raise store.failure from error
        raise


def _unprefixed(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {key[len(_PREFIX) :]: value for key, value in attrs.items() if key.startswith(_PREFIX)}


def _tell(storage: BaseStorage, identity: int, record: TrialRecord, study: Study) -> None:
    values = None
    if record.state is TrialState.COMPLETE:
        values = [float(record.metrics[objective.metric]) for objective in study.objectives]
    storage.set_trial_state_values(identity, _TOLD[record.state], values)


def _repair(storage: BaseStorage, optuna_study: optuna.Study, study: Study) -> None:
    """Ends what a kill left between two writes: trials that are none of Headway's, ends that Optuna was not told."""
    for trial in optuna_study.get_trials(deepcopy=False):
        if trial.state is not OptunaState.RUNNING:
            continue
        if "headway:number" not in trial.user_attrs:
            storage.set_trial_user_attr(trial._trial_id, "headway:discarded", "cut short")
            storage.set_trial_state_values(trial._trial_id, OptunaState.FAIL)
            continue
        record = record_of(_unprefixed(trial.user_attrs))
        if record.state.finished:
            _tell(storage, trial._trial_id, record, study)


def _open_study(storage: BaseStorage, study: Study) -> optuna.Study:
    return optuna.create_study(
        storage=storage, study_name=study.name, directions=_directions(study), load_if_exists=True
    )


def _directions(study: Study) -> list[StudyDirection]:
    return [StudyDirection[objective.direction.upper()] for objective in study.objectives]


def check_unchanged(known: Mapping[str, Any], study: Study, extend: bool) -> None:
    """Refuses to continue a study whose file has changed.

    Args:
        known: The file as it was run, as ``Study.dump`` gave it.
        study: The file as it is.
        extend: Whether the budget may have grown (but for its epochs), and further ``designs`` been added.

    Raises:
        UserError: Shows each difference.
    """
    old, new = _flat(_filled(known)), _flat(plain(study.dump()))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    allowed = [key for key in _BUDGET if extend and _grew(old.get(key), new.get(key))]
    if extend and old.get("designs") and new.get("designs", [])[: len(old["designs"])] == old["designs"]:
        allowed.append("designs")
    refused = [key for key in changed if key not in allowed]
    if not refused:
        return
    lines = "".join(f"\n  {key}: {_shown(old, key)} -> {_shown(new, key)}" for key in refused)
    hint = f"--extend lets {choices(_BUDGET, 'and')} grow; for anything else give the study another name."
    raise UserError(f"{study.name}: was started with another study file:{lines}\n  {hint}")


def _filled(known: Mapping[str, Any]) -> Mapping[str, Any]:
    """The file as it was run, with the defaults of keys that did not exist then."""
    try:
        filled: Mapping[str, Any] = plain(Study.model_validate(known).dump())
    except ValidationError:
        return known  # the differences tell what cannot be read any more
    return filled


def _grew(old: float | None, new: float | None) -> bool:
    return new is None or (old is not None and new >= old)


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "(absent)"
    value = values[key]
    return json.dumps(safe_url(value) if key in ("storage", "tracking.uri") and value else value)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update(_flat(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat
