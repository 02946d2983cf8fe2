"""A driver that dies is started again: a real child process, signals and exit statuses."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from analysis.record import TrialState
from search import supervise as module
from search.cli import End, main
from search.folder import claimed
from search.live import read_live
from search.store import Store
from search.study import load
from search.supervise import STATUS, child_command, supervise

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """A shell's background job ignores SIGINT, and so would all that these tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def script(folder: Path, *ends: str) -> list[str]:
    """A command that ends otherwise at each start: by a signal's name or with an exit status; the last one repeats."""
    (folder / "ends.json").write_text(json.dumps(ends))
    body = f"""
        import json, os, signal, sys, time
        folder = {str(folder)!r}
        with open(folder + "/starts", "a") as file:
            file.write("x")
        ends = json.load(open(folder + "/ends.json"))
        end = ends[min(os.path.getsize(folder + "/starts"), len(ends)) - 1]
        if end.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, end))
        if end == "wait":
            signal.signal(signal.SIGINT, lambda *_: sys.exit(3))
            open(folder + "/ready", "w").close()
            time.sleep(60)
        sys.exit(int(end))
    """
    return [sys.executable, "-c", textwrap.dedent(body)]


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text())


def never() -> int:
    return 0


CUT, FAILED, FAULT, WRONG = (str(STATUS[end]) for end in (End.CUT_SHORT, End.FAILED, End.FAULT, End.WRONG))


@pytest.mark.parametrize(
    ("ends", "restarts", "status", "begun"),
    [
        (["0"], 3, 0, 1),
        ([WRONG], 3, 2, 1),  # a typo
        ([FAILED], 3, 1, 1),  # the baseline failed
        (["SIGKILL", "SIGABRT", "0"], 3, 0, 3),
        (["1", "0"], 1, 0, 2),  # how Ray ends a process whose head is gone
        ([CUT, FAULT, "0"], 2, 0, 3),
        (["SIGKILL"], 2, 1, 3),  # each time
        (["SIGKILL", WRONG, "0"], 3, 0, 3),  # the head is not back yet
        (["SIGKILL", WRONG], 2, 2, 3),
        (["SIGKILL", FAILED], 3, 1, 2),
    ],
)
def test_what_is_started_again(tmp_path: Path, ends: list[str], restarts: int, status: int, begun: int) -> None:
    said: list[str] = []
    assert supervise(script(tmp_path, *ends), restarts, ended=never, say=said.append, pauses=[0.01]) == status
    assert starts(tmp_path) == begun
    assert sum("started again in" in line for line in said) == begun - 1
    assert any("not started again" in line for line in said) == (begun - 1 == restarts and status > 0)


def test_a_trial_that_ended_between_two_deaths_begins_the_count_anew(tmp_path: Path) -> None:
    said: list[str] = []
    # Before the first start, then after each death: the first three deaths have an ended trial between them.
    counts = iter([0, 1, 2, 3, 3, None, 3])
    command = script(tmp_path, "SIGKILL")
    assert supervise(command, 2, ended=lambda: next(counts), say=said.append, pauses=[0.01, 0.02]) == 1
    assert starts(tmp_path) == 5
    assert [line.partition("(")[2] for line in said] == [*["1 of 2 times in a row)"] * 3, "2 of 2 times in a row)", ""]
    assert said[0] == "the driver was killed by SIGKILL; it is started again in 0.01 s (1 of 2 times in a row)"
    assert said[-1].startswith("the driver was killed by SIGKILL; 3 times in a row without any trial ending")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_what_asks_to_end_is_passed_on_and_final(tmp_path: Path, name: str) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def ask() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), getattr(signal, name))

    threading.Thread(target=ask, daemon=True).start()
    assert supervise(script(tmp_path, "wait"), 3, ended=never, say=print, pauses=[0.01]) == 1
    assert starts(tmp_path) == 1
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_pause_ends_at_once_when_asked(tmp_path: Path) -> None:
    said: list[str] = []

    def ask() -> None:
        while not said:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=ask, daemon=True).start()
    began = time.monotonic()
    assert supervise(script(tmp_path, "SIGKILL"), 3, ended=never, say=said.append, pauses=[60.0]) == 1
    assert time.monotonic() - began < 20
    assert said[-1] == "interrupted; the same command continues"


def test_what_the_child_leaves_is_killed(tmp_path: Path) -> None:
    """Else it would write beside the next start."""
    left = tmp_path / "left"
    orphan = f"import time; time.sleep(2); open({str(left)!r}, 'w').close()"
    body = f"import os, signal, subprocess, sys; subprocess.Popen([sys.executable, '-c', {orphan!r}]); "
    command = [sys.executable, "-c", body + "os.kill(os.getpid(), signal.SIGKILL)"]
    assert supervise(command, 0, ended=never, say=print) == 1
    time.sleep(2.5)
    assert not left.exists()


STUDY = """
name: watched
base: headway::gfl_tiny
data: {digits: {train: 8, val: 4}, size: [96, 96]}
space: {slimhead: {}}
"""


def test_the_child_says_how_the_command_ended(tmp_path: Path) -> None:
    file, root = tmp_path / "watched.yaml", tmp_path / "studies"
    file.write_text(STUDY)
    ends = []
    with claimed(root / "watched"):
        # Another run holds the study; a key that does not exist.
        for settings in ([], ["--set", "budget.trails=3"]):
            command = child_command(["run", str(file), "--studies", str(root), *settings])
            ends.append(subprocess.run(command, capture_output=True, text=True, timeout=120, check=False))
    assert [end.returncode for end in ends] == [STATUS[End.WRONG]] * 2
    assert "is being run already" in ends[0].stderr
    assert "unknown 'trails'" in ends[1].stderr


def test_the_command_hands_itself_to_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "watched.yaml"
    file.write_text(STUDY)
    seen = []
    monkeypatch.setattr(module, "supervise", lambda command, restarts, **_: seen.append((command, restarts)) or 0)
    words = ["run", str(file), "--restarts", "3", "--set", "seed=1", "--json"]
    assert main(words) == 0
    assert seen == [(child_command([*words, "--restarts", "0"]), 3)]
    assert main(["run", str(file), "--restarts", "-1"]) == 2


ANALYTIC = """
name: watched
base: headway::gfl_tiny
data: {digits: {train: 8, val: 4}, size: [96, 96]}
space: {slimhead: {}, dcn: {}}
budget: {trials: 4, epochs: 3}
rungs: null
sampler: {name: random}
resources: {cpus: 1, concurrent: 2}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_that_is_killed_twice_comes_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, root = tmp_path / "watched.yaml", tmp_path / "studies"
    file.write_text(ANALYTIC)
    monkeypatch.setenv("ANALYTIC", json.dumps({"epoch_seconds": 0.5}))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")])))
    killed: list[int] = []
    over = threading.Event()

    def records() -> list:
        try:
            return Store.read(root / "watched", load(file)).records()
        except Exception:
            return []  # not there yet

    def kill() -> None:
        for epochs in (1, 5):
            while sum(len(record.curve) for record in records()) < epochs:
                if over.wait(0.3):
                    return
            pid = int((root / "watched" / ".lock").read_text().split()[0])
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            over.wait(1.0)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    said: list[str] = []
    command = [sys.executable, str(HERE / "drive.py"), str(file), str(root)]
    try:
        status = supervise(
            command,
            5,
            ended=lambda: sum(record.state.finished for record in records()),
            say=said.append,
            pauses=[0.1],
        )
    finally:
        over.set()
        thread.join()
    assert status == 0
    assert len(set(killed)) == 2
    assert sum("was killed by SIGKILL" in line for line in said) == 2
    assert [record.state for record in records()] == [TrialState.COMPLETE] * 4
    for record in records():
        trained = (root / "watched" / record.folder / "trained.log").read_text().split()
        assert trained == ["1", "2", "3"]
        assert record.attrs["nodes"]
    live = read_live(root / "watched")
    assert live is not None and live["ended"] is not None and not live["running"]
    # Each start had a Ray of its own.
    assert len({name for record in records() for name in record.attrs["nodes"]}) >= 2


TINY = """
name: watched
base: headway::gfl_nano
data: {digits: {train: 48, val: 8}, size: [96, 96]}
space: {slimhead: {}}
budget: {trials: 2, epochs: 2}
rungs: null
sampler: {name: random}
speed: {seconds: 1, pairs: 4}
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_itself(tmp_path: Path) -> None:
    file, root = tmp_path / "watched.yaml", tmp_path / "studies"
    file.write_text(TINY)
    command = [
        sys.executable,
        "-m",
        "search.cli",
        "run",
        str(file),
        "--studies",
        str(root),
        "--restarts",
        "2",
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(root.glob("watched/trials/0000/epoch_1.pth")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(int((root / "watched" / ".lock").read_text().split()[0]), signal.SIGKILL)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "the driver was killed by SIGKILL; it is started again in 5 s (1 of 2 times in a row)" in err
    assert json.loads(out)["states"]["COMPLETE"] == 2


def head(port: int, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Starts a cluster's head and waits until it is there."""
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}", "--num-cpus=2"]
    command += ["--include-dashboard=false", "--object-store-memory=100000000"]
    for _ in range(5):  # Ray allows half a minute for a start, on a busy machine too
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        while process.poll() is None:
            if "This command will now block" in log.read_text():
                return process
            time.sleep(0.3)
    raise AssertionError(log.read_text()[-3000:])


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all of its children without grace; Ray's are in sessions of their own."""
    members = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_head_of_the_cluster_goes_away_and_comes_back(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # by default 'ray start' wants tokens
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")  # else drivers wait for a minute
    file, root = tmp_path / "watched.yaml", tmp_path / "studies"
    file.write_text(TINY)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    temporary = Path(tempfile.mkdtemp(prefix="hh"))  # short, as Ray's sockets lie below it
    request.addfinalizer(lambda: shutil.rmtree(temporary, ignore_errors=True))
    cluster = head(port, temporary, tmp_path / "head.log")
    try:
        command = [sys.executable, "-m", "search.cli", "run", str(file), "--studies", str(root)]
        options = ["--address", f"127.0.0.1:{port}", "--restarts", "9", "--json"]
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            process = subprocess.Popen([*command, *options], stdout=out, stderr=err)
        while not list(root.glob("watched/trials/0000/epoch_1.pth")):
            assert process.poll() is None, (tmp_path / "err").read_text()
            time.sleep(0.05)
        kill_all(cluster)
        while "it is started again" not in (tmp_path / "err").read_text():
            assert process.poll() is None, (tmp_path / "err").read_text()
            time.sleep(0.2)
        cluster = head(port, temporary, tmp_path / "head.log")
        assert process.wait(timeout=500) == 0, (tmp_path / "err").read_text()[-3000:]
    finally:
        kill_all(cluster)
    told = (tmp_path / "err").read_text()
    assert "the driver died with exit status 1; it is started again" in told, told  # by Ray itself
    assert "Traceback" not in told
    assert json.loads((tmp_path / "out").read_text())["states"]["COMPLETE"] == 2
    for record in Store.read(root / "watched", load(file)).records():
        assert [entry.epoch for entry in record.curve] == [1, 2]
