"""A trial's process is killed when it makes no step, and only then: real processes, limits of a second."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainers import heartbeat

_PROGRAM = """
import ctypes, os, signal, sys, time
from pathlib import Path
from trainers.heartbeat import beat, waiting, watched
with watched(Path(sys.argv[1]), 1.0):
    print("began", flush=True)
    {body}
print("ended", flush=True)
"""


def run(folder, body):
    """Runs a watched body; gives how its process ended, what it printed, and after how many seconds."""
    began = time.monotonic()
    child = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(body=body), str(folder)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return child.returncode, child.stdout.split(), time.monotonic() - began, child.stderr


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(40)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        # Holds the interpreter's lock: no thread of the process could tell.
        "ctypes.PyDLL(None).sleep(40)",
        "waiting().__enter__(); os.kill(os.getpid(), signal.SIGSTOP)",
    ],
    ids=["sleeps", "stopped", "holds the lock", "stopped while it waits"],
)
def test_a_process_without_a_step_is_killed(tmp_path, body):
    code, said, seconds, _ = run(tmp_path, body)
    assert code == -signal.SIGKILL
    assert said == ["began"]
    assert seconds < 30
    assert heartbeat.take_note(tmp_path) == "no step for 0.0167 minutes (resources.heartbeat)"
    assert heartbeat.take_note(tmp_path) is None  # told once


@pytest.mark.parametrize(
    "body",
    [
        "for _ in range(30): time.sleep(0.1); beat()",
        "with waiting(): time.sleep(3)",
        # The clock begins anew after a wait, and goes on in the outer one.
        "with waiting():\n        with waiting(): time.sleep(1.5)\n        time.sleep(1.5)\n    time.sleep(0.3)",
    ],
    ids=["steps", "waits", "waits within"],
)
def test_a_process_that_makes_steps_or_waits_lives(tmp_path, body):
    code, said, _, errors = run(tmp_path, body)
    assert (code, said) == (0, ["began", "ended"]), errors
    assert heartbeat.take_note(tmp_path) is None


def test_the_watchdog_ends_with_its_trial(tmp_path):
    before = _children()
    with heartbeat.watched(tmp_path, 60.0):
        children = _children() - before
        assert len(children) == 1
    assert not _children() & children
    # However the trial ends.
    body = "print(*Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text().split(), flush=True)"
    code, said, _, errors = run(tmp_path, f"{body}; os.kill(os.getpid(), signal.SIGKILL)")
    assert code == -signal.SIGKILL, errors
    deadline = time.monotonic() + 20
    while Path(f"/proc/{said[1]}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_nobody_watches_without_a_limit(tmp_path):
    before = _children()
    with heartbeat.watched(tmp_path, None):
        heartbeat.beat()
        with heartbeat.waiting():
            assert _children() == before


def test_beats_cost_nothing(tmp_path):
    with heartbeat.watched(tmp_path, 60.0):
        began = time.perf_counter()
        for _ in range(100_000):
            heartbeat.beat()
        assert (time.perf_counter() - began) / 100_000 < 20e-6


def test_a_watchdog_that_was_killed_disturbs_nobody(tmp_path):
    with heartbeat.watched(tmp_path, 60.0):
        for child in _children():
            os.kill(child, signal.SIGKILL)
        time.sleep(0.2)
        for _ in range(3):
            heartbeat.beat()
            with heartbeat.waiting():
                pass


def _children():
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(word) for task in tasks for word in task.read_text().split()}
