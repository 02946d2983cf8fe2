"""A headless Chromium that must see no error and no host but the server, and a real MLflow server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from search.tracking import default_uri, ui_command, ui_environment

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
# What Chromium tells of its own drawing, and what MLflow's own pages ask its server for in vain.
OWN = ("GL Driver Message", "GPU stall", "WebGL", "/ajax-api/2.0/mlflow/users/current")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("Chromium is not on this machine: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[dev]'")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*QUIET, "--no-first-run"])
        yield browser
        browser.close()


@dataclass
class Watch:
    """What went wrong on the pages of a test, and which hosts were asked."""

    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def over(self, page: Any) -> None:
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._heard)
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def _heard(self, message: Any) -> None:
        told = f"{message.text} ({message.location})"
        if message.type == "error" and not any(word in told for word in OWN):
            self.errors.append(told)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def open_page(browser: Any, watch: Watch) -> Iterator[Callable[..., Any]]:
    """Opens an address in a context of its own, as a first-time user."""
    contexts = []

    def opened(address: str, width: int = 1280, height: int = 720) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        context.set_default_timeout(120_000)
        context.on("page", watch.over)  # also over those that a link opens
        page = context.new_page()
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()


@dataclass(frozen=True)
class Served:
    """A running MLflow server.

    Attributes:
        store: The tracking URI behind it.
        url: Its address.
        folder: Where its store lies.
    """

    store: str
    url: str
    folder: Path

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store, url = default_uri(folder), f"http://127.0.0.1:{port}"
    with (folder / "server.txt").open("ab") as log:
        process = subprocess.Popen(
            ui_command(store, port),
            env=ui_environment(store),
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while not answers(url):
            assert time.monotonic() < deadline and process.poll() is None, (folder / "server.txt").read_text()
            time.sleep(0.1)
        yield Served(store, url, folder)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its worker would serve on
        process.wait()


def answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(f"{url}/health", timeout=5).status == 200)
    return False


@pytest.fixture(scope="module")
def served(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture
def serve(browser: Any) -> Iterator[Callable[[Path], Served]]:
    """Serves the store in a folder."""
    with contextlib.ExitStack() as stack:
        yield lambda folder: stack.enter_context(serving(folder))
