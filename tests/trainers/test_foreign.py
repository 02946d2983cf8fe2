"""Who else uses the device of a measurement."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import psutil
import pytest

from trainers import foreign
from trainers.contract import MachineUnfit
from trainers.foreign import Cpu, Gpu, Use, Watch

BUSY = Use(7, "train.py", "1.00 cores")
SPIN = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


class Machine:
    """A device that is used as long as the list says, and a clock that runs with each wait."""

    name, seconds = "the CPU of here", 1.0

    def __init__(self, *looks: Sequence[Use] | None) -> None:
        self.looks, self.now = list(looks), 0.0

    def begin(self) -> None:
        pass

    def seen(self) -> Sequence[Use] | None:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def watch(self, *, refuse: bool = True) -> Watch:
        return Watch(self, refuse=refuse, clock=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_measurement_waits_for_quiet_and_says_that_it_was_alone() -> None:
    machine = Machine([BUSY], [BUSY], [])
    with machine.watch() as watch:
        assert machine.now == 3 * 1.0 + 2 * 4.0
    assert watch.attrs == {"speed_alone": True}


def test_who_comes_meanwhile_is_recorded() -> None:
    with Machine([], [BUSY]).watch() as watch:
        pass
    assert watch.attrs == {"speed_alone": False, "speed_beside": "pid 7 (train.py, 1.00 cores)"}


def test_a_device_that_stays_in_use_is_refused_after_two_minutes() -> None:
    machine = Machine([BUSY])
    with (
        pytest.raises(MachineUnfit, match=r"the CPU of here is used by pid 7 \(train.py, 1.00 cores\)"),
        machine.watch(),
    ):
        pytest.fail("it must not be measured")
    assert 120 <= machine.now < 130


def test_or_recorded_where_the_study_says_so() -> None:
    machine = Machine([BUSY])
    with machine.watch(refuse=False) as watch:
        assert machine.now == 1.0
    assert watch.attrs == {"speed_alone": False, "speed_beside": "pid 7 (train.py, 1.00 cores)"}


def test_where_nobody_can_know_it_goes_on_and_says_so() -> None:
    with Machine(None).watch() as watch:
        pass
    assert watch.attrs["speed_alone"] is False
    assert "NVML" in watch.attrs["speed_beside"]


@pytest.fixture
def stranger() -> Iterator[int]:
    """A busy process that is no child of this one."""
    apart = "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True"
    start = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SPIN!r}], {apart}).pid)"
    pid = int(subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True).stdout)
    yield pid
    psutil.Process(pid).kill()


def test_a_busy_process_of_another_family_is_seen(stranger: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # So low that a crowded machine gives the stranger that much.
    monkeypatch.setattr(foreign, "CORE_SHARE", 0.02)
    cpu = Cpu()
    deadline = foreign.time.monotonic() + 5
    while foreign.time.monotonic() < deadline:
        pass
    seen = {use.pid: use for use in cpu.seen()}
    assert stranger in seen
    assert "python" in seen[stranger].name
    assert os.getpid() not in seen


def test_a_gpu_is_in_foreign_use_where_another_process_computes_on_it() -> None:
    own = (os.getpid(), 500_000_000)
    assert Gpu(lambda: [own]).seen() == []
    assert Gpu(lambda: []).seen() == []
    assert Gpu(lambda: None).seen() is None
    (use,) = Gpu(lambda: [own, (2**30, 900_000_000)]).seen() or ()
    assert (use.pid, use.takes) == (2**30, "900 MB")


def test_in_a_container_whose_ids_differ_the_process_that_is_most_like_this_one_is_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(foreign, "_holds_gpu", lambda: True)
    monkeypatch.setattr(foreign, "_memory", lambda: 510_000_000)
    assert Gpu(lambda: [(2**30, 600_000_000)]).seen() == []
    (use,) = Gpu(lambda: [(2**30, 600_000_000), (2**30 + 1, 9_000_000_000)]).seen() or ()
    assert use.takes == "9000 MB"
