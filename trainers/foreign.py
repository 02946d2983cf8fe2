"""Sees to it that a measurement has its device alone: whether a process that is not ours uses it.

A CPU is in foreign use where one process takes ``CORE_SHARE`` of a core or more over a second; an idle desktop, a
monitoring agent and Ray's own services stay far below that. Ours are this Ray node's processes, this process and what
it was started by. A GPU is in foreign use where any other process computes on it, as NVML tells; without NVML nobody
can know, and the measurement goes on.

What runs in another container on the machine is seen on the GPU, not on the CPU.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import psutil

from trainers.contract import MachineUnfit, SpeedRequest, TrialRequest

CORE_SHARE = 0.25
PATIENCE_SECONDS = 120.0
_LOOK_SECONDS, _PAUSE_SECONDS = 1.0, 4.0


@dataclass(frozen=True)
class Use:
    """A process that uses the device: its id (0 where it cannot be told), its name and what it takes."""

    pid: int
    name: str
    takes: str

    def __str__(self) -> str:
        return f"pid {self.pid or '?'} ({self.name}, {self.takes})"


class Device(Protocol):
    """Looks who uses a device.

    Attributes:
        name: Of the device, for a message.
        seconds: How long a look must last to tell anything.
    """

    name: str
    seconds: float

    def begin(self) -> None:
        """Begins a look."""

    def seen(self) -> Sequence[Use] | None:
        """Who else used the device since; ``None`` where nobody can know."""


class Cpu:
    """The cores of this machine."""

    seconds = _LOOK_SECONDS

    def __init__(self) -> None:
        self.name = f"the CPU of {socket.gethostname()}"
        self.begin()

    def begin(self) -> None:
        """Begins a look."""
        self._began = time.monotonic()
        self._before = _cpu_seconds()
        self._ours = _ours()

    def seen(self) -> Sequence[Use]:
        """Who else used the CPU since."""
        elapsed = max(time.monotonic() - self._began, 1e-6)
        ours = self._ours | _ours()
        found = []
        for pid, (name, spent) in _cpu_seconds().items():
            cores = (spent - self._before.get(pid, (name, 0.0))[1]) / elapsed
            if pid not in ours and cores >= CORE_SHARE:
                found.append((cores, Use(pid, name, f"{cores:.2f} cores")))
        return [use for _, use in sorted(found, key=lambda item: -item[0])]


class Gpu:
    """The GPU that this process computes on (torch's device 0, whatever number it has on the machine)."""

    seconds = 0.0

    def __init__(self, listed: Callable[[], Sequence[tuple[int, int | None]] | None] | None = None) -> None:
        self.name = f"the GPU of {socket.gethostname()}"
        self._listed = listed or _on_gpu

    def begin(self) -> None:
        """NVML tells the present; there is nothing to begin."""

    def seen(self) -> Sequence[Use] | None:
        """Who else has the GPU now."""
        listed = self._listed()
        if listed is None:
            return None
        others = [(pid, taken) for pid, taken in listed if pid != os.getpid()]
        if len(others) == len(listed) and listed and _holds_gpu():
            # In a container NVML gives the ids outside of it, or this process would be among them.
            own = _memory()
            others = sorted(others, key=lambda item: abs((item[1] or 0) - own))[1:]
        return [Use(pid, _name(pid), "memory" if taken is None else f"{taken / 1e6:.0f} MB") for pid, taken in others]


class Watch:
    """A context around a measurement: waits until the device is quiet, and looks again at the end.

    Args:
        device: Who is asked; ``None`` where nobody sees to it that a measurement is alone.
        refuse: Whether a foreign process ends the wait with an error; else it is only recorded.
        clock: Gives seconds.
        sleep: Waits for seconds.
    """

    def __init__(
        self,
        device: Device | None,
        *,
        refuse: bool = True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._device, self._refuse = device, refuse
        self._clock, self._sleep = clock, sleep
        self.alone = False
        self.seen = "nobody saw to it that nothing else runs"

    def __enter__(self) -> Watch:
        """Waits for quiet.

        Raises:
            MachineUnfit: A foreign process still uses the device after ``PATIENCE_SECONDS``.
        """
        device, began = self._device, self._clock()
        if device is None:
            return self
        while True:
            device.begin()
            self._sleep(device.seconds)
            uses = device.seen()
            if not uses or not self._refuse:
                break
            if self._clock() - began >= PATIENCE_SECONDS:
                raise MachineUnfit(
                    f"{device.name} is used by {', '.join(map(str, uses[:3]))}, but latency is to be measured alone "
                    f"(waited {PATIENCE_SECONDS / 60:.0f} minutes); end that, or set speed.foreign: record"
                )
            self._sleep(_PAUSE_SECONDS)
        self._note(uses)
        device.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Looks who came meanwhile."""
        if self._device is not None and self.alone:
            self._note(self._device.seen())

    @property
    def attrs(self) -> Mapping[str, Any]:
        """What a report says: ``speed_alone`` and, where that is not so, ``speed_beside``."""
        return {"speed_alone": self.alone, **({} if self.alone else {"speed_beside": self.seen})}

    def _note(self, uses: Sequence[Use] | None) -> None:
        self.alone = uses is not None and not uses
        if uses:
            self.seen = ", ".join(map(str, uses[:3]))
        elif uses is None:
            self.seen = "unknown, since NVML does not tell who uses the GPU"


def watch(request: TrialRequest, asked: SpeedRequest) -> Watch:
    """Gives the watch for a trial's measurement: of the GPU everywhere, of the CPU where the trial has it alone."""
    refuse = asked.foreign == "refuse"
    if asked.device == "cuda":
        return Watch(Gpu(), refuse=refuse)
    return Watch(Cpu() if request.lane == "speed" else None, refuse=refuse)


def _cpu_seconds() -> dict[int, tuple[str, float]]:
    """By process id the name and the CPU time so far."""
    found = {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None:
            found[process.pid] = (process.info["name"] or "?", times.user + times.system)
    return found


def _ours() -> set[int]:
    """Ids of this Ray node's processes, of this process, its children and those that it was started by."""
    own = psutil.Process()
    found = {own.pid}
    with contextlib.suppress(psutil.Error):
        parents = own.parents()
        found |= {parent.pid for parent in parents}
        root = next((parent for parent in parents if parent.name() == "raylet"), own)
        found |= {child.pid for child in root.children(recursive=True)}
    return found


def _on_gpu() -> Sequence[tuple[int, int | None]] | None:
    """Id and memory in bytes of each process that computes on this process's GPU; ``None`` without NVML."""
    import torch

    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver: each binding raises its own
        return None
    try:
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        return [(one.pid, one.usedGpuMemory) for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    except (pynvml.NVMLError, RuntimeError, AttributeError):
        return None
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _holds_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _memory() -> int:
    """What this process takes of its GPU, in bytes, without the context's own share."""
    import torch

    return int(torch.cuda.memory_reserved())


def _name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "a process that cannot be seen from here"
