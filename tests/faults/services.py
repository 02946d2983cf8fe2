"""What a run stands on, and can lose: a database server, an MLflow server, a disk, a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PORTS = range(23_000, 29_000)


def free_port() -> int:
    """A port that nobody listens on now, outside the range that the system gives to clients."""
    while True:
        port = PORTS.start + secrets.randbelow(len(PORTS))
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port


def end_group(process: subprocess.Popen[Any]) -> None:
    """Kills a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Database:
    """A PostgreSQL server with a password, in a folder of its own.

    Args:
        log: Where it writes.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self.port, self.password = free_port(), f"geheim{secrets.token_hex(6)}"
        self._folder = Path(tempfile.mkdtemp(prefix="hpg"))  # a short path: it holds a socket
        # It refuses to run as root.
        self._as: list[str] = []
        if os.getuid() == 0:
            self._as = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        word = self._folder / "word"
        word.write_text(self.password, encoding="utf-8")
        if self._as:
            shutil.chown(self._folder, "nobody", "nogroup")
            shutil.chown(word, "nobody", "nogroup")
        command = ["initdb", "-D", str(self._folder / "data"), "--auth=scram-sha-256", "--username=headway"]
        subprocess.run(
            [*self._as, *command, f"--pwfile={word}", "--no-sync"], check=True, capture_output=True, cwd=self._folder
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """SQLAlchemy's, with the password."""
        return f"postgresql+psycopg://headway:{self.password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = ["postgres", "-D", str(self._folder / "data"), "-p", str(self.port), "-k", str(self._folder),
                   "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]  # fmt: skip
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [*self._as, *command], stdout=log, stderr=log, cwd=self._folder, start_new_session=True
            )
        deadline = time.monotonic() + 60
        ready = ["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the database did not start; its log is {self._log}")
            time.sleep(0.05)

    def stop(self, *, crash: bool = False) -> None:
        """Stops it, cutting all connections; or has it crash, to be recovered from its journal."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        self._process.wait(timeout=60)

    def close(self) -> None:
        """Ends it and removes its folder."""
        if self._process is not None and self._process.poll() is None:
            self.stop(crash=True)
        shutil.rmtree(self._folder, ignore_errors=True)


class MlflowServer:
    """A real ``mlflow server`` over SQLite.

    Args:
        folder: For its database, artifacts and log.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True) -> None:
        """Starts it, and waits until it answers."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{(self._folder / 'mlflow.db').absolute()}",
            "--artifacts-destination", str(self._folder / "artifacts"),
        ]  # fmt: skip
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until it answers."""
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"MLflow did not start; its log is in {self._folder}") from None
                time.sleep(0.2)

    def kill(self) -> None:
        """Kills it without grace, with its workers."""
        assert self._process is not None
        end_group(self._process)

    close = kill


class Disk:
    """A small disk that can be filled.

    Args:
        path: Where it is mounted; needs root.
        mib: Its size.
    """

    def __init__(self, path: Path, mib: int = 96) -> None:
        self.path = path
        path.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)], check=True)

    def fill(self) -> None:
        """Leaves no byte."""
        with (self.path / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        """Gives it back."""
        (self.path / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmounts it, keeping what lies on it."""
        kept = self.path.with_name(f"{self.path.name}-kept")
        shutil.copytree(self.path, kept, ignore=shutil.ignore_patterns("filler"))
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)
        self.path.rmdir()
        kept.rename(self.path)


class Nodes:
    """A Ray cluster of several nodes, in a process of its own.

    Args:
        resources: ``CPUS[:ACCELERATORS[:speed]]`` of each node, the head's first.
        environment: Of its processes.
        log: Where they write.
    """

    def __init__(self, resources: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._resources, self._environment, self._log = resources, environment, log
        self.start()

    def start(self) -> None:
        """Starts it, at an address of its own."""
        command = [sys.executable, str(HERE / "nodes.py"), *self._resources]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=dict(self._environment), start_new_session=True,
            )  # fmt: skip
        self.address, *self.ids = self._answer().split()

    def tell(self, command: str) -> str:
        """Has a command of ``nodes.py`` done; gives its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._answer()

    def kill(self) -> None:
        """Kills all of it without grace, the head too."""
        end_group(self._process)

    def close(self) -> None:
        """Ends it."""
        if self._process.poll() is None:
            with contextlib.suppress(OSError, ValueError, TimeoutError, subprocess.TimeoutExpired):
                assert self._process.stdin is not None
                self._process.stdin.write("end\n")
                self._process.stdin.close()
                self._process.wait(timeout=30)
        end_group(self._process)

    def _answer(self) -> str:
        found: list[str] = []
        assert self._process.stdout is not None
        reader = threading.Thread(target=lambda: found.append(self._process.stdout.readline()), daemon=True)
        reader.start()
        reader.join(240)
        if not found or not found[0]:
            raise TimeoutError(f"the cluster does not answer; its log is {self._log}")
        return found[0].strip()


class Lock:
    """Another process's hold on an SQLite file: nobody can read or write it.

    Args:
        path: The database.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=10, isolation_level=None)
        self._connection.execute("BEGIN EXCLUSIVE")

    def close(self) -> None:
        """Lets go."""
        self._connection.rollback()
        self._connection.close()
