"""Submits a study as a Ray job, and follows it.

Nothing secret is in what Ray shows of a job: its command line has paths alone, it has no environment variables, and
the study file, whose addresses may hold a password, travels inside the packed folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import os
import secrets
import shlex
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from search import shipping
from search.ray_adapter.cluster import TOKEN_PLACES
from search.study import Study
from spaces.errors import HeadwayError, UserError

_ANSWER_SECONDS = 15.0
_RECONNECT_SECONDS = 60.0
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
# Ray takes a cluster's address from here, whatever it is told.
_OVERRULING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@dataclass(frozen=True)
class Job:
    """A submitted job.

    Attributes:
        id: Ray's submission id.
        address: The dashboard.
    """

    id: str
    address: str

    def ray_command(self, *words: str) -> str:
        """The command that does something with this job, for people."""
        return f"ray job {' '.join(words)} --address {self.address} {self.id}"


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        status: Ray's word: SUCCEEDED, FAILED or STOPPED.
        exit_status: Of its command, where that ran.
        message: What Ray says.
    """

    status: str
    exit_status: int | None
    message: str


class Submitter:
    """A cluster that takes jobs."""

    def __init__(self, address: str) -> None:
        """Reaches the dashboard.

        Args:
            address: ``http://HOST:PORT`` of the dashboard.

        Raises:
            UserError: It is no such address, nothing answers there, or it does not take the token.
        """
        self.address = check_address(address).rstrip("/")
        headers = {"Authorization": f"Bearer {_token(self.address)}"} if self._asks_for_token() else {}
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        with self._explained(), _without(_OVERRULING):
            self._client = JobSubmissionClient(self.address, headers=headers)

    def submit(
        self, study: Study, studies: Path, *, extend: bool = False, restarts: int = 0, own: Path | None = None
    ) -> Job:
        """Packs a study and hands it in.

        Args:
            study: As ``search.study.load`` gives it.
            studies: Folder of all studies on the cluster, absolute.
            extend: The budget may have grown.
            restarts: How often a driver that dies is started again.
            own: A folder whose contents go along.

        Raises:
            UserError: What is packed is wrong or too large, or the cluster refuses it.
        """
        with tempfile.TemporaryDirectory(prefix="headway-") as scratch, self._explained():
            folder = Path(scratch)
            cargo = shipping.pack(study, studies, folder, own=own)
            size = shipping.size(folder)
            if size >= GCS_STORAGE_MAX_SIZE:
                raise UserError(
                    f"working directory: must be below {GCS_STORAGE_MAX_SIZE >> 20} MiB, which Ray takes, but has "
                    f"{size >> 20} MiB; put checkpoints into {studies} and name them there, or make --working-dir "
                    "smaller."
                )
            commands = [
                shlex.join(words) for words in shipping.command(studies, cargo, extend=extend, restarts=restarts)
            ]
            given = self._client.submit_job(
                entrypoint=" && ".join(commands),
                submission_id=f"headway-{study.name}-{secrets.token_hex(4)}",
                runtime_env={"working_dir": str(folder)},
                metadata={"study": study.name},
            )
        return Job(given, self.address)

    def follow(self, job: Job, write: Callable[[str], object]) -> Ended:
        """Hands on the job's log as it comes, until the job ends.

        Raises:
            HeadwayError: The cluster does not answer any more; the job may run on.
        """
        written = 0
        lost: float | None = None

        async def tail() -> None:
            nonlocal written, lost
            skip = written  # each connection tells the log from its beginning
            async for text in self._client.tail_job_logs(job.id):
                lost = None
                new = text[skip:]
                skip -= len(text) - len(new)
                written += len(new)
                write(new)

        while True:
            try:
                asyncio.run(tail())
                info = self._client.get_job_info(job.id)
                if info.status.is_terminal():
                    status = JobStatus(info.status).value
                    return Ended(status, info.driver_exit_code, info.message or "")
            except BrokenPipeError:
                raise  # of whoever reads the log here
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > _RECONNECT_SECONDS:
                    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                    raise HeadwayError(
                        f"{self.address}: does not answer any more ({reason}); the job may run on. "
                        f"Follow it again: {job.ray_command('logs', '--follow')}"
                    ) from error
            time.sleep(1.0)

    def _asks_for_token(self) -> bool:
        """Asks the dashboard without one, with a limit of time, which Ray's own client does not have."""
        try:
            with urllib.request.urlopen(f"{self.address}/api/version", timeout=_ANSWER_SECONDS) as answer:
                if b"ray_version" in answer.read(10_000):
                    return False
            raise _refused(
                self.address, "another server than Ray's dashboard answers there (its port is 8265 by default)"
            )
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                return True
            raise _refused(
                self.address, f"HTTP {error.code}; is this Ray's dashboard (port 8265 by default)?"
            ) from error
        except http.client.HTTPException as error:
            raise _refused(
                self.address, "no web server answers there (the dashboard's port is 8265 by default)"
            ) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise _refused(self.address, f"nothing answers there ({reason})") from error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise _refused(
                self.address, f"the token is refused; the cluster's must be in {TOKEN_PLACES}, the first of them counts"
            ) from error
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise _refused(self.address, " ".join(str(error).split())[:400]) from error


def check_address(address: str) -> str:
    """Refuses what is no dashboard's address.

    Raises:
        UserError: It is none.
    """
    parts = urlsplit(address)
    if parts.scheme in ("http", "https") and parts.hostname:
        return address
    hint = f"; did you mean http://{address}?" if "://" not in address and ":" in address else ""
    raise UserError(
        f"--address: must be the dashboard of a Ray cluster like http://HOST:8265, but got '{address}'{hint or '.'}"
    )


def _refused(address: str, reason: str) -> UserError:
    return UserError(f"--address: must be a running Ray cluster's dashboard, but {address} gives: {reason}.")


def _token(address: str) -> str:
    """Finds the token where Ray looks for it.

    Raises:
        UserError: There is none.
    """
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    for place in [Path(path)] if path else [Path.home() / ".ray/auth_token"]:
        if not token:
            try:
                token = place.expanduser().read_text(encoding="utf-8").strip()
            except OSError as error:
                if path:
                    raise UserError(
                        f"RAY_AUTH_TOKEN_PATH: must name a token file, but {path}: {error.strerror}."
                    ) from error
    if not token:
        raise _refused(address, f"it wants a token and none was found; put the cluster's into {TOKEN_PLACES}")
    return token


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    kept: Mapping[str, str] = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
