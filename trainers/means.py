"""The means that decide how fast a process computes: allocator, threads, determinism. The same for every trial."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
from collections.abc import Iterator
from pathlib import Path

# glibc's mallopt names (malloc.h), and the most that a buffer kept by its allocator may have.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_TRIM, _MMAP = 2**31 - 1, 2**30


def environment(threads: int | None = None) -> dict[str, str]:
    """Gives the environment variables with which a process that runs trials is best started.

    They do what ``keep_large_buffers`` does, before the first thread has its allocator's arena: a thread that has one
    already (those in which Ray runs functions) gains nothing from the call, and stays 1.6 times slower where large
    buffers come and go.

    Args:
        threads: CPU threads of the trial, where they are known.
    """
    values = {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(_MMAP),
        "MALLOC_TRIM_THRESHOLD_": str(_TRIM),
    }
    return values if threads is None else {**values, "OMP_NUM_THREADS": str(threads)}


def keep_large_buffers() -> bool:
    """Lets glibc keep large buffers instead of giving them back to the kernel after each use.

    By default every activation above 32 MiB is mapped and unmapped anew, and each time its pages fault in one by one:
    a GFL-R50 at 800x1344 is 1.4 times faster without that (STACK.md).

    Returns:
        False where the C library has no such settings (musl, macOS); nothing is changed then.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # One arena for threads to come: any other one gives buffers above 64 MiB back whatever the thresholds say.
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _MMAP), (_M_TRIM_THRESHOLD, _TRIM))
    done = [mallopt(name, value) for name, value in settings]
    return all(done)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Keeps Python's garbage collector from looking at what is imported meanwhile, then and later.

    torch and mmdet make millions of objects that stay: to import them takes a quarter less so, and each collection
    after a trial 0.3 s less.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def settle(threads: int) -> None:
    """Sets what a trial's arithmetic and speed depend on, whatever ran before in this process.

    Args:
        threads: CPU threads of torch; sums over threads are part of a result's last bits.
    """
    import cv2
    import torch

    keep_large_buffers()
    torch.set_num_threads(threads)
    cv2.setNumThreads(0)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # Operators without a deterministic form (deformable convolutions on CUDA) warn and go on.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class PeakMemory:
    """Peak memory from its making on, in MB (1e6 bytes)."""

    def __init__(self, device: str) -> None:
        import torch

        self._cuda = device == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            # A process that ran other trials before has their peak; Linux lets it be reset.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def megabytes(self) -> float:
        """The device's peak of allocated memory on CUDA, the process's peak of resident memory on a CPU."""
        if self._cuda:
            import torch

            return float(torch.cuda.max_memory_allocated()) / 1e6
        try:
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / 1e6
        except OSError:
            pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
