"""A trial in a fresh process: nothing leaks in from trials before, and it dies with whoever asked for it.

The child sends one JSON line a message over a pipe of its own, so that what libraries print cannot disturb it, and
waits after each report for the word to go on or to stop.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from spaces.errors import HeadwayError, UserError
from trainers.contract import Report, StopTrial, TrialFailed, TrialReport, TrialRequest
from trainers.means import environment, importing

_ROOT = Path(__file__).resolve().parent.parent
_PR_SET_PDEATHSIG = 1
_TAIL = 4000  # characters of the child's standard error that an error carries


def run_in_fresh_process(request: TrialRequest, report: Report) -> None:
    """Runs a trial in a process of its own; a ``Trainer`` itself.

    The child is killed when the calling thread ends, however it ends.

    Args:
        request: The trial.
        report: Called in this thread; the trial waits until it returns.

    Raises:
        TrialFailed: The trial failed, or its process died.
        UserError: The request was wrong.
        HeadwayError: The trainer failed.
        StopTrial: ``report`` raised it.
    """
    reader, writer = os.pipe()
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, **environment(request.threads), "PYTHONPATH": os.pathsep.join(paths)}
    child = subprocess.Popen(
        [sys.executable, "-m", "trainers.process", str(writer), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(writer,),
        env=env,
        text=True,
    )
    os.close(writer)
    assert child.stdin is not None and child.stderr is not None
    errors = _Tail(child.stderr)
    try:
        with os.fdopen(reader, encoding="utf-8") as messages:
            _say(child.stdin, request.to_json())
            for line in messages:
                if _handle(json.loads(line), child.stdin, report):
                    return
        child.wait()
        raise TrialFailed(f"the trial's process {_death(child.returncode)}. It last said: {errors.text() or 'nothing'}")
    finally:
        # After its last message the child has nothing left to do but to tear torch down.
        child.kill()
        child.wait()
        errors.join()
        child.stdin.close()
        child.stderr.close()


def _handle(message: dict[str, Any], answers: IO[str], report: Report) -> bool:
    """Passes on one message of the child; true when it was the last one."""
    kind, value = message["kind"], message["value"]
    if kind == "report":
        report(TrialReport(**value))
        _say(answers, "go")
        return False
    if kind == "finished":
        return True
    if kind == "failed":
        raise TrialFailed(value)
    if kind == "user":
        raise UserError(value)
    raise HeadwayError(value)


def _say(pipe: IO[str], value: Any) -> None:
    try:
        pipe.write(json.dumps(value) + "\n")
        pipe.flush()
    except BrokenPipeError:
        pass  # the child is dead; the end of its messages tells how


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (out of memory, most likely)" if name == "SIGKILL" else "")


class _Tail:
    """Reads a stream to its end in a thread and keeps the last part."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._kept = stream, ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            self._kept = (self._kept + line)[-_TAIL:]

    def join(self) -> None:
        self._thread.join(timeout=5)

    def text(self) -> str:
        self.join()
        return self._kept.strip()


def _child(descriptor: int, parent: int) -> None:
    """The other end: reads the request from standard input, runs it, writes messages."""
    _die_with(parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as messages:
        request = TrialRequest.from_json(json.loads(sys.stdin.readline()))

        def send(kind: str, value: Any) -> None:
            _say(messages, {"kind": kind, "value": value})

        def report(message: TrialReport) -> None:
            send("report", asdict(message))
            if not sys.stdin.readline():  # the parent closed its end
                raise StopTrial

        try:
            with importing():
                from trainers.detector import preload, train

                preload()
            train(request, report)
            send("finished", None)
        except StopTrial:
            pass
        except TrialFailed as error:
            send("failed", str(error))
        except UserError as error:
            send("user", str(error))
        except Exception:  # a fault of the trainer: the parent raises it with this traceback
            send("error", f"the trainer failed:\n{traceback.format_exc()}")


def _die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies (Linux)."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


if __name__ == "__main__":
    _child(int(sys.argv[1]), int(sys.argv[2]))
