"""The plot in MLflow while a real search runs, under ``headway ui``'s server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.store import Store
from search.study import load
from search.tracking import default_uri, find_run, page_url

DRIVE = Path(__file__).parents[1] / "search"
STUDY = """
name: seen
base: headway::gfl_tiny
data: {digits: {train: 8, val: 4}, size: [96, 96]}
space: {slimhead: {}, dcn: {}}
budget: {trials: 12, epochs: 3}
rungs: null
sampler: {name: random}
resources: {cpus: 1, concurrent: 2}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_plot_follows_a_search(
    serve: Callable[[Path], Any], open_page: Callable[..., Any], watch: Any, tmp_path: Path
) -> None:
    file, root = tmp_path / "seen.yaml", tmp_path / "studies"
    file.write_text(STUDY)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(DRIVE), os.environ.get("PYTHONPATH", "")])),
        "ANALYTIC": json.dumps({"epoch_seconds": 6.0}),
    }
    command = [sys.executable, str(DRIVE / "drive.py"), str(file), str(root)]
    with (tmp_path / "log.txt").open("ab") as log:
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        folder = root / "seen"
        wait_for(lambda: list(folder.glob("artifacts/*/artifacts/pareto.mjs")), 300)
        found = find_run(uri=default_uri(folder), experiment="seen", study_folder=folder)
        assert found is not None
        server = serve(folder)
        page = open_page(page_url(server.url, *found))
        note = page.frame_locator("iframe.mlflow-html-iframe").locator("#note")
        note.get_by_text("live").or_(note).first.wait_for()
        first = complete(note.inner_text())
        assert first < 12
        wait_for(lambda: complete(note.inner_text()) > first, 200)
        assert driver.wait(400) == 0, (tmp_path / "log.txt").read_text()[-3000:]
        wait_for(lambda: complete(note.inner_text()) == 12, 60)
        assert "live" not in note.inner_text()  # nothing more will come
        # The page that the search leaves in its folder leads to the runs as well.
        own = open_page((folder / "pareto.html").as_uri())
        own.wait_for_selector("body[data-drawn]")
        records = Store.read(folder, load(file)).records()
        assert set(own.evaluate("() => JSON.parse(document.getElementById('data').textContent).runs.trials")) == {
            record.label for record in records
        }
        assert watch.errors == []
        assert watch.hosts <= {server.host, ""}
    finally:
        driver.kill()
        driver.wait()


def complete(note: str) -> int:
    found = re.search(r"(\d+) complete", note)
    return int(found.group(1)) if found else 0


def wait_for(reached: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.5)
