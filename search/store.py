"""Trial states, rungs and records in Optuna's storage. The store is the truth: a run continues from it.

Every Headway trial is one Optuna trial; its record lies in user attributes that are written before Optuna is told its
end. COMPLETE is told with values, STOPPED and INFEASIBLE as PRUNED without values (so they never reach a front, and
INFEASIBLE carries its constraints), FAILED as FAIL. Proposals that were tried before are told as FAIL and are no
trials.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import random
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from analysis.record import EpochRecord, SweepPoint, TrialRecord, TrialState
from search.designs import listed
from search.sampler import baseline_sampler, make_sampler
from search.study import SamplerSection, Study
from spaces.errors import HeadwayError, UserError
from spaces.space import Design, Space, design_hash

_TOLD = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.INFEASIBLE: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}
_FILE = "headway:study_file"
_SPEED = "headway:speed:"
_REFERENCE = "headway:reference_ms"
_ATTEMPTS = 150
_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_CONNECT_SECONDS = 5.0


def default_url(folder: Path) -> str:
    """The store of a study that names none: SQLite in its folder."""
    return f"sqlite:///{(folder / 'study.db').absolute()}"


def safe_url(url: str) -> str:
    """The URL without user, password and query, for messages."""
    if "://" not in url:
        return "the given URL"
    return re.sub(r"://.*@", "://***@", url).partition("?")[0]


class Store:
    """The trials of one study."""

    def __init__(self, storage: BaseStorage, optuna_study: optuna.Study, study: Study) -> None:
        self._storage = storage
        self._optuna = optuna_study
        self.study = study
        self._ids = {record.number: trial._trial_id for trial, record in self._pairs()}

    @classmethod
    def create(cls, folder: Path, study: Study, *, extend: bool = False) -> Store:
        """Opens the store of a study for a run, creating it where there is none, and repairs what a kill left.

        Raises:
            UserError: The storage cannot be opened, or it holds another study under this name.
        """
        storage = _open_storage(study.storage or default_url(folder))
        with _explained(study.storage or default_url(folder)):
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
            store = cls(storage, optuna_study, study)
            store._repair()
        return store

    @classmethod
    def read(cls, folder: Path, study: Study) -> Store:
        """Opens the store of a study to look at it.

        Raises:
            UserError: There is none yet.
        """
        url = study.storage or default_url(folder)
        if study.storage is None and not (folder / "study.db").is_file():
            raise UserError(f"{study.name}: has no trials yet; 'headway run' starts it.")
        storage = _open_storage(url)
        with _explained(url):
            try:
                return cls(storage, optuna.load_study(storage=storage, study_name=study.name), study)
            except KeyError as error:
                raise UserError(f"{study.name}: has no trials yet; 'headway run' starts it.") from error

    def records(self) -> list[TrialRecord]:
        """All trials, by number."""
        return sorted((record for _, record in self._pairs()), key=lambda record: record.number)

    def record(self, number: int) -> TrialRecord:
        """One trial."""
        found = _record(self._storage.get_trial(self._ids[number]))
        assert found is not None
        return found

    def propose_baseline(self, space: Space) -> TrialRecord:
        """Makes trial 0, the base with every family off."""
        self._optuna.sampler = baseline_sampler(space, self.study.seed)
        trial = self._optuna.ask()
        if len(space.families) > 1:
            for part in space.families:
                if not part.always:
                    trial.suggest_categorical(part.family.name, [True, False])
        return self._accept(trial, 0, {})

    def propose(self, space: Space) -> TrialRecord | None:
        """Makes the next trial from the sampler's first proposal, or the first listed design, that was never tried.

        Returns:
            The PROPOSED trial, or ``None`` when nothing new was found in a bounded number of proposals.
        """
        records = self.records()
        tried = {design_hash(record.knobs) for record in records}
        number = len(records)
        if self.study.designs:
            return self._propose_listed(space, tried, number)
        if self.study.sampler.name == "grid":
            return self._propose_grid(space, tried, number)
        rehearsal = optuna.create_study(directions=_directions(self.study))
        for attempt in range(_ATTEMPTS):
            # Late attempts are random: TPE may insist on what it knows to be good.
            section = self.study.sampler
            section = section if attempt < _ATTEMPTS // 10 else section.model_copy(update={"name": "random"})
            stream = number * _ATTEMPTS + attempt
            if section.name == "random":
                # It looks at no trial, so what it will say is found out without some ten commits a proposal.
                rehearsal.sampler = make_sampler(section, self.study.seed, stream)
                try:
                    if design_hash(space.suggest(rehearsal.ask())) in tried:
                        continue
                except UserError:
                    continue
            self._optuna.sampler = make_sampler(section, self.study.seed, stream)
            trial = self._optuna.ask()
            try:
                design = space.suggest(trial)
            except UserError as error:
                reason = str(error)
            else:
                if design_hash(design) not in tried:
                    return self._accept(trial, number, design)
                reason = "tried before"
            trial.set_user_attr("headway:discarded", reason)
            self._optuna.tell(trial, state=OptunaState.FAIL)
        return None

    def _propose_listed(self, space: Space, tried: set[str], number: int) -> TrialRecord | None:
        """Makes the next trial from the study file's ``designs``, in their order."""
        for named in listed(self.study, space):
            if design_hash(named.knobs) not in tried:
                self._optuna.sampler = make_sampler(SamplerSection(name="random"), self.study.seed, number)
                return self._accept(self._optuna.ask(), number, named.knobs, {"name": named.name})
        return None

    def _propose_grid(self, space: Space, tried: set[str], number: int) -> TrialRecord | None:
        """Makes the next trial from all designs of the space, in an order drawn from the seed."""
        designs = space.designs()
        random.Random(self.study.seed).shuffle(designs)
        for design in designs:
            if design_hash(design) not in tried:
                self._optuna.sampler = make_sampler(SamplerSection(name="random"), self.study.seed, number)
                return self._accept(self._optuna.ask(), number, design)
        return None

    def _accept(
        self, trial: optuna.Trial, number: int, design: Design, attrs: Mapping[str, Any] | None = None
    ) -> TrialRecord:
        trial.set_user_attr("headway:knobs", design)
        if attrs:
            trial.set_user_attr("headway:attrs", dict(attrs))
        trial.set_user_attr("headway:state", TrialState.PROPOSED.value)
        # The number makes it a trial, so it comes last.
        trial.set_user_attr("headway:number", number)
        self._ids[number] = trial._trial_id
        return self.record(number)

    def start(self, number: int) -> TrialRecord:
        """Marks a trial RUNNING."""
        record = self.record(number)
        if record.started is None:
            self._set(number, "started", time.time())
        self._set(number, "state", TrialState.RUNNING.value)
        return self.record(number)

    def update(self, number: int, metrics: Mapping[str, float], attrs: Mapping[str, Any], seconds: float) -> None:
        """Adds figures to a trial, and its wall time so far."""
        record = self.record(number)
        if metrics:
            own = self._storage.get_trial(self._ids[number]).user_attrs.get("headway:metrics", {})
            self._set(number, "metrics", {**own, **metrics})
        if attrs:
            self._set(number, "attrs", {**record.attrs, **attrs})
        self._set(number, "compute_hours", seconds / 3600)

    def add_epoch(self, number: int, epoch: EpochRecord) -> None:
        """Records a finished epoch; the same epoch again replaces it."""
        self._set(number, f"epoch:{epoch.epoch}", {"metrics": dict(epoch.metrics), "seconds": epoch.seconds})

    def add_point(self, number: int, point: SweepPoint) -> None:
        """Records one setting of the inference knobs on the trained detector; the same index again replaces it."""
        value = {"knobs": dict(point.knobs), "metrics": dict(point.metrics), "broken": list(point.broken)}
        self._set(number, f"point:{point.index}", value)

    def add_rung(self, number: int, epoch: int, decision: str) -> None:
        """Records the decision at a rung."""
        rungs = {**self.record(number).rungs, epoch: decision}
        self._set(number, "rungs", {str(key): value for key, value in rungs.items()})

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
        if broken:
            trial = optuna.Trial(self._optuna, self._ids[number])
            told = trial.constraints
            for name, excess in broken.items():
                if name not in told:
                    trial.set_constraint(name, excess)
        # Also when there is none: a kill may have left those of an end that did not come about.
        self._set(number, "reason", reason)
        self._set(number, "traceback", traceback)
        self._set(number, "finished", time.time())
        self._set(number, "state", state.value)
        self._tell(self.record(number))
        return self.record(number)

    def speed(self, key: str) -> dict[str, float] | None:
        """The latency measured for an architecture on a device, ``None`` if it was not."""
        found = self._optuna.user_attrs.get(_SPEED + key)
        return dict(found) if found else None

    def set_speed(self, key: str, metrics: Mapping[str, float]) -> None:
        """Keeps the latency of an architecture on a device."""
        self._optuna.set_user_attr(_SPEED + key, dict(metrics))

    @property
    def reference_ms(self) -> float | None:
        """The baseline's own latency in ms, to which all ratios refer."""
        found = self._optuna.user_attrs.get(_REFERENCE)
        return None if found is None else float(found)

    @reference_ms.setter
    def reference_ms(self, value: float) -> None:
        self._optuna.set_user_attr(_REFERENCE, value)

    @property
    def seconds_run(self) -> float:
        """Run time of the command so far, over all its starts."""
        return float(self._optuna.user_attrs.get("headway:seconds", 0.0))

    @seconds_run.setter
    def seconds_run(self, value: float) -> None:
        self._optuna.set_user_attr("headway:seconds", value)

    def _set(self, number: int, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._ids[number], f"headway:{key}", value)

    def _pairs(self) -> Iterator[tuple[FrozenTrial, TrialRecord]]:
        for trial in self._optuna.get_trials(deepcopy=False):
            record = _record(trial)
            if record is not None:
                yield trial, record

    def _tell(self, record: TrialRecord) -> None:
        values = None
        if record.state is TrialState.COMPLETE:
            values = [record.metrics[objective.metric] for objective in self.study.objectives]
        number = self._storage.get_trial(self._ids[record.number]).number
        self._optuna.tell(number, values, state=_TOLD[record.state])

    def _repair(self) -> None:
        """Ends what a kill left between two writes: proposals without a number, ends that Optuna was not told."""
        for trial in self._optuna.get_trials(deepcopy=False):
            if trial.state is not OptunaState.RUNNING:
                continue
            record = _record(trial)
            if record is None:
                self._storage.set_trial_user_attr(trial._trial_id, "headway:discarded", "cut short")
                self._optuna.tell(trial.number, state=OptunaState.FAIL)
            elif record.state.finished:
                self._tell(record)


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
        extend: Whether ``budget.trials`` and ``budget.hours`` may have grown, and further ``designs`` been added.

    Raises:
        UserError: Shows each difference.
    """
    old, new = _flat(known), _flat(json.loads(json.dumps(study.dump())))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    allowed = [key for key in ("budget.trials", "budget.hours") if extend and _grew(old.get(key), new.get(key))]
    if extend and old.get("designs") and new.get("designs", [])[: len(old["designs"])] == old["designs"]:
        allowed.append("designs")
    refused = [key for key in changed if key not in allowed]
    if not refused:
        return
    lines = "".join(f"\n  {key}: {_shown(old, key)} -> {_shown(new, key)}" for key in refused)
    hint = "--extend lets budget.trials and budget.hours grow; for anything else give the study another name."
    raise UserError(f"{study.name}: was started with another study file:{lines}\n  {hint}")


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


def _record(trial: FrozenTrial) -> TrialRecord | None:
    values = {key[8:]: value for key, value in trial.user_attrs.items() if key.startswith("headway:")}
    if "number" not in values:
        return None
    epochs = {int(key[6:]): value for key, value in values.items() if key.startswith("epoch:")}
    curve = [EpochRecord(epoch, epochs[epoch]["metrics"], epochs[epoch]["seconds"]) for epoch in sorted(epochs)]
    points = {int(key[6:]): value for key, value in values.items() if key.startswith("point:")}
    sweep = [
        SweepPoint(index, points[index]["knobs"], points[index]["metrics"], points[index]["broken"])
        for index in sorted(points)
    ]
    metrics = {**(curve[-1].metrics if curve else {}), **values.get("metrics", {})}
    record = TrialRecord(
        number=values["number"],
        state=TrialState(values["state"]),
        knobs=values["knobs"],
        metrics=metrics,
        curve=curve,
        rungs={int(key): value for key, value in values.get("rungs", {}).items()},
        folder=f"trials/{values['number']:04d}",
        attrs=values.get("attrs", {}),
        sweep=sweep,
    )
    later = ["started", "compute_hours"]
    if record.state.finished:
        later += ["reason", "traceback", "finished"]
    return replace(record, **{key: values[key] for key in later if key in values})


def _open_storage(url: str) -> BaseStorage:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    with _explained(url):
        parts = make_url(url)
        if parts.host and (port := parts.port or _PORTS.get(parts.get_backend_name())):
            # Drivers wait minutes for a host that does not answer.
            socket.create_connection((parts.host, port), _CONNECT_SECONDS).close()
        with _one_at_a_time(url):
            return RDBStorage(url, engine_kwargs=options)


@contextmanager
def _one_at_a_time(url: str) -> Iterator[None]:
    """Lets one process of this machine open a storage at a time.

    Optuna makes the tables of a new storage without a lock: a ``headway status`` at that moment would break the run.
    """
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"headway-{os.getuid()}-{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError, OSError) as error:
        cause = str(getattr(error, "orig", None) or error.__cause__ or error).splitlines()[0]
        password = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
        cause = cause.replace(password, "***") if password else cause
        message = f"storage: must be an SQLAlchemy URL of a reachable database, but {safe_url(url)} gives: {cause}"
        raise UserError(message) from error
    except RuntimeError as error:
        raise HeadwayError(f"storage: {safe_url(url)}: {error}") from error
