"""Processes that get ready for trials: which ones do, and what they do."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from search.ray_adapter import READY_BOOK, READY_LEASE, READY_TRAINER, cluster
from search.study import ResourcesSection

TRAINER = """
import fcntl, pathlib

def preload():
    with open({lease!r}) as lease:
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pathlib.Path({note!r}).write_text("held")
        else:
            pathlib.Path({note!r}).write_text("free")

def train(request, report):
    pass
"""


class Accelerators:
    def __init__(self, count: int) -> None:
        self.count = count

    def get_current_node_num_accelerators(self) -> int:
        return self.count


@pytest.mark.parametrize(
    ("resources", "trials", "gpus", "readied"),
    [
        ({}, 8, 0, True),
        ({"cpus": 1, "concurrent": 8}, 8, 0, True),
        ({}, 7, 0, False),  # one process would wait in vain
        ({"concurrent": 4}, 8, 0, False),
        ({"cpus": 2}, 8, 0, False),
        ({"workers": 2}, 8, 0, False),
        ({}, 8, 1, False),
        ({"gpus": 0}, 8, 1, True),
    ],
)
def test_processes_get_ready_where_each_cpu_has_a_trial(tmp_path, monkeypatch, resources, trials, gpus, readied):
    monkeypatch.setattr(cluster, "get_num_cpus", lambda: 8)
    monkeypatch.setattr(cluster, "get_accelerator_manager_for_resource", lambda name: Accelerators(gpus))
    found = cluster.ready(ResourcesSection(**resources), trials, "module:function", tmp_path / "lease")
    assert found == (cluster.Ready("module:function", tmp_path / "lease", 8) if readied else None)


def test_ray_waits_for_those_that_sign(tmp_path, monkeypatch):
    def sign(book: Path) -> None:
        time.sleep(0.3)
        (book / "1").touch()
        (book / "2").touch()

    begin = time.monotonic()
    with cluster.Ready("module:function", tmp_path / "lease", 2).awaited() as variables:
        assert variables["RAY_preload_python_modules"] == "search.ray_adapter.ready"
        assert variables[READY_TRAINER] == "module:function"
        assert variables[READY_LEASE] == str(tmp_path / "lease")
        book = Path(variables[READY_BOOK])
        threading.Thread(target=sign, args=[book]).start()
    assert 0.3 <= time.monotonic() - begin < cluster._READY_SECONDS
    assert not book.exists()
    monkeypatch.setattr(cluster, "_READY_SECONDS", 0.2)
    with cluster.Ready("module:function", tmp_path / "lease", 1).awaited():
        pass  # those that never come are not waited for any longer


def get_ready(folder: Path, trainer: str, book: Path | None = None) -> str:
    lease, note = folder / "lease", folder / "note"
    lease.touch()
    (folder / "noting_trainer.py").write_text(TRAINER.format(lease=str(lease), note=str(note)))
    environment = {**os.environ, "PYTHONPATH": str(folder), READY_TRAINER: trainer, READY_LEASE: str(lease)}
    environment[READY_BOOK] = str(book or folder)
    code = (
        "import search.ray_adapter.ready, sys; from search.ray_adapter.trial import imported;"
        "print(imported.cache_info().currsize, sorted({'mlflow', 'optuna', 'sqlalchemy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert (folder / str(process.pid)).exists() == (book is None)
    return out.strip()


def test_no_latency_is_measured_beside(tmp_path):
    assert get_ready(tmp_path, "noting_trainer:train") == "1 []"
    assert (tmp_path / "note").read_text() == "held"
    with (tmp_path / "lease").open() as lease:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was let go


def test_while_one_is_measured_it_does_not_wait(tmp_path):
    with (tmp_path / "lease").open("a") as lease:
        fcntl.flock(lease, fcntl.LOCK_EX)
        assert get_ready(tmp_path, "noting_trainer:train") == "1 []"


def test_a_trainer_that_cannot_be_imported_is_left_to_the_trial(tmp_path):
    assert get_ready(tmp_path, "no_such_module:train") == "0 []"


def test_one_that_comes_when_nobody_waits_any_more_gets_ready_too(tmp_path):
    assert get_ready(tmp_path, "noting_trainer:train", book=tmp_path / "gone") == "1 []"
    assert (tmp_path / "note").read_text() == "held"
