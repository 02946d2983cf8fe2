"""A database that goes away and comes back: each call waits for it, and is done once."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from spaces.errors import CutShort, HeadwayError, UserError

PATIENCE = "HEADWAY_STORAGE_PATIENCE"
"""Environment variable: seconds after which a database that does not come back ends the run."""
_SERVER_SECONDS, _FILE_SECONDS = 600.0, 60.0
_PAUSES = (0.2, 10.0)  # seconds: the first, and the longest
# What SQLite says of a file that may be usable later; a table that is not there, say, is another matter.
_FILE_TROUBLES = ("locked", "busy", "disk is full", "disk i/o error", "unable to open database file")
T = TypeVar("T")


def patience_seconds(url: str) -> float:
    """How long a run waits for its database: 10 minutes for a server, 1 for a file, or ``$HEADWAY_STORAGE_PATIENCE``.

    Raises:
        UserError: The variable is no number of 0 or more.
    """
    given = os.environ.get(PATIENCE)
    if not given:
        return _FILE_SECONDS if url.startswith("sqlite") else _SERVER_SECONDS
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise UserError(f"${PATIENCE}: must be a number of seconds, 0 or more, but got '{given}'.")
    return seconds


def unreachable(error: BaseException) -> bool:
    """Whether an error, or one behind it, says that the database cannot be used now and may be later."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DBAPIError):
            if type(seen.orig).__module__.startswith("sqlite3"):
                told = str(seen.orig).lower()
                if isinstance(seen, OperationalError) and any(trouble in told for trouble in _FILE_TROUBLES):
                    return True
            elif isinstance(seen, (OperationalError, InterfaceError)) or seen.connection_invalidated:
                return True
        seen = seen.__cause__ or seen.__context__
    return False


class Patience:
    """Tries again while a database is away.

    Args:
        seconds: How long.
        name: Of the database, without credentials.
        waiting: Called once when it goes away, with why.
        back: Called when it is there again, with the seconds that it was away.
        guard: Called before each write; raises ``HeadwayError`` where this process may not write any more.

    Attributes:
        away: Unix time since when the database is away and why, ``None`` while it is there.
    """

    def __init__(
        self,
        seconds: float,
        name: str,
        *,
        waiting: Callable[[str], None] = lambda why: None,
        back: Callable[[float], None] = lambda seconds: None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self._seconds, self._name = seconds, name
        self._waiting, self._back, self.guard = waiting, back, guard
        self.over: HeadwayError | None = None
        self.away: tuple[float, str] | None = None

    def through(self, attempt: Callable[[], T], *, writes: bool) -> T:
        """Calls ``attempt`` until the database has taken it.

        Raises:
            CutShort: The database stayed away. From then on always.
            HeadwayError: This process may not write any more. From then on always.
        """
        if self.over is not None:
            raise self.over
        since: float | None = None
        pause = _PAUSES[0]
        while True:
            began = time.monotonic()
            try:
                if writes or since is not None:
                    self.guard()
                result = attempt()
            except HeadwayError as error:
                self.over = error
                raise
            except Exception as error:
                if not unreachable(error):
                    raise
                if since is None:
                    since = began
                    self.away = time.time(), cause(error)
                    self._waiting(cause(error))
                left = since + self._seconds - time.monotonic()
                if left <= 0:
                    self.over = CutShort(
                        f"storage: {self._name} could not be used for {self._seconds:g} s: {cause(error)}; "
                        "nothing is lost, the same command continues."
                    )
                    raise self.over from error
                time.sleep(min(pause, left))
                pause = min(2 * pause, _PAUSES[1])
            else:
                if since is not None:
                    self.away = None
                    self._back(time.monotonic() - since)
                return result


def cause(error: BaseException) -> str:
    """The first line of what the database itself said."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, DBAPIError):
        seen = seen.__cause__
    told = seen.orig if isinstance(seen, DBAPIError) else error.__cause__ or error
    return (str(told).strip() or type(told).__name__).splitlines()[0]


class PatientStorage(RDBStorage):
    """Optuna's storage, whose calls go through ``patience`` once it is set.

    What is tried again is done once, also where the database took it and its answer was lost.
    """

    def __init__(self, url: str, *, engine_kwargs: dict[str, Any]) -> None:
        self.patience: Patience | None = None
        self._within = threading.local()
        super().__init__(url, engine_kwargs=engine_kwargs)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        self._within.tries = 0
        created = super()._create_new_trial
        return self._patiently(lambda: created(study_id, template_trial), writes=True)

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        # Also called by Optuna's own attempts. The session holds the study's row: whoever was before us is through.
        self._within.tries += 1
        if self._within.tries > 1 and template_trial is not None:
            if self.patience is not None:
                self.patience.guard()
            there = _same_number(study_id, template_trial, session)
            if there is not None:
                return there
        return super()._get_prepared_new_trial(study_id, template_trial, session)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        tries = 0
        told = super().set_trial_state_values

        def attempt() -> bool:
            nonlocal tries
            tries += 1
            try:
                return told(trial_id, state, values)
            except UpdateFinishedTrialError:
                there = self.get_trial(trial_id)
                if tries > 1 and there.state is state and (values is None or there.values == list(values)):
                    return True
                raise

        return self._patiently(attempt, writes=True)

    def _patiently(self, attempt: Callable[[], T], *, writes: bool) -> T:
        if self.patience is None or getattr(self._within, "call", False):
            return attempt()
        self._within.call = True
        try:
            return self.patience.through(attempt, writes=writes)
        finally:
            self._within.call = False


def _same_number(study_id: int, template: FrozenTrial, session: Session) -> models.TrialModel | None:
    """Finds the row of a trial of Headway's number."""
    attribute = models.TrialUserAttributeModel
    number = template.user_attrs.get("headway:number")
    found: models.TrialModel | None = (
        session.query(models.TrialModel)
        .join(attribute)
        .filter(models.TrialModel.study_id == study_id)
        .filter(attribute.key == "headway:number", attribute.value_json == str(number))
        .one_or_none()
    )
    return found


def _patient(name: str, *, writes: bool) -> Callable[..., Any]:
    real = getattr(RDBStorage, name)

    @functools.wraps(real)
    def call(self: PatientStorage, *arguments: Any, **named: Any) -> Any:
        return self._patiently(lambda: real(self, *arguments, **named), writes=writes)

    return call


# Each of them does the same when it is done twice.
for _name in (
    "create_new_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "set_trial_user_attr",
    "set_trial_system_attr",
):
    setattr(PatientStorage, _name, _patient(_name, writes=True))
for _name in (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial",
    "get_all_trials",
    "_get_trials",
):
    setattr(PatientStorage, _name, _patient(_name, writes=False))
