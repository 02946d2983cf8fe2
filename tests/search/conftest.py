"""A PostgreSQL server for the tests, where there is one to start."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest


class Postgres:
    """A private server: its data lies in a folder of its own, its port is free."""

    def __init__(self, folder, bin_folder, user):
        self.folder, self._bin, self._as = folder, bin_folder, user
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        options = ["-A", "trust", "-U", "headway", "--no-sync", "--locale=C", "-E", "UTF8"]
        self._call("initdb", "-D", str(folder / "data"), *options)
        self._server = None

    def _call(self, name, *arguments):
        subprocess.run(
            [str(self._bin / name), *arguments], check=True, capture_output=True, cwd=self.folder, **self._as
        )

    def start(self):
        log = (self.folder / "log").open("ab")
        self._server = subprocess.Popen(
            [str(self._bin / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port),
             "-k", str(self.folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"],
            stdout=log, stderr=log, cwd=self.folder, **self._as,
        )  # fmt: skip
        log.close()
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                self._call("psql", *self._psql("postgres"), "-c", "SELECT 1")
                return
            assert time.monotonic() < deadline and self._server.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.1)

    def kill(self):
        """Ends the server and all its sessions without grace."""
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self._server.pid)], capture_output=True, text=True
        ).stdout
        for pid in [self._server.pid, *map(int, children.split())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.wait()

    def stop(self):
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(timeout=60)

    def sql(self, statement, database="postgres"):
        found = subprocess.run(
            [str(self._bin / "psql"), *self._psql(database), "-At", "-c", statement],
            check=True, capture_output=True, text=True, cwd=self.folder, **self._as,
        )  # fmt: skip
        return found.stdout.strip()

    def database(self):
        """The URL of a new database."""
        name = f"d{time.monotonic_ns()}"
        self.sql(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://headway:hush@127.0.0.1:{self.port}/{name}"

    def _psql(self, database):
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "headway", "-d", database, "-q"]


@pytest.fixture(scope="session")
def postgres():
    """A running server; it refuses to run as root, so there it runs as another user."""
    found = shutil.which("initdb")
    if found is None or shutil.which("psql") is None:
        pytest.skip("PostgreSQL (initdb, psql) is not on the PATH")
    pytest.importorskip("psycopg")
    # Not under tmp_path, into which another user cannot look.
    folder = Path(tempfile.mkdtemp(prefix="headway-pg-"))
    user = {}
    if os.geteuid() == 0:
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody", "nogroup")
    server = None
    try:
        server = Postgres(folder, Path(found).resolve().parent, user)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
