"""The A/A test of latency: two builds of one model, measured as candidate and baseline. Their ratio should be 1.

How far it is from 1 over repetitions, alone and beside busy cores, is how far two designs must lie apart on this
machine before their difference can be believed.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from spaces.autocast import autocast
from trainers import speed
from trainers.contract import Dtype
from trainers.means import settle
from trainers.profile import build_named

_SETTLE_SECONDS = 1.0
# Matrix products on one thread, until whoever started it is gone.
_BUSY = """
import os, sys
parent = int(sys.argv[1])
import numpy
one = numpy.random.default_rng(0).random((384, 384))
print("busy", flush=True)
while os.getppid() == parent:
    for _ in range(50):
        one @ one
"""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def speed_selftest(
    base: str,
    *,
    size: tuple[int, int],
    device: str = "cpu",
    dtype: Dtype = "float32",
    threads: int = 1,
    pairs: int = 9,
    seconds: float = 5.0,
    repeats: int = 5,
    busy: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures a model against itself, alone, beside one busy core and with all cores busy.

    Args:
        base: A config, as ``load_base`` takes it.
        size: Height and width of the input in px.
        device: ``cpu`` or ``cuda``.
        dtype: What the model predicts in.
        threads: CPU threads of the model.
        pairs: Least number of interleaved pairs of a measurement.
        seconds: Time after which no further pair of it is started.
        repeats: Measurements of a row, each with two builds of its own.
        busy: Busy cores beside each row; none, one and all by default.
        say: Takes a line for each measurement.

    Returns:
        What was asked for, and ``rows``: see ``summarised``.

    Raises:
        UserError: The base cannot be read or built.
    """
    settle(threads)
    cores = len(os.sched_getaffinity(0))
    rows = []
    for count in dict.fromkeys((0, 1, cores) if busy is None else busy):
        found = []
        with neighbours(count):
            for turn in range(repeats):
                found.append(_once(base, size, device, dtype, pairs, seconds))
                say(
                    f"{beside(count)}, {turn + 1} of {repeats}: in turns {found[-1]['paired']['ratio']:.4f}, "
                    f"one after the other {found[-1]['unpaired']:.4f}"
                )
        rows.append({"busy": count, "beside": beside(count), **summarised(found), "measurements": found})
    asked = {"base": base, "size": list(size), "device": device, "dtype": dtype, "threads": threads}
    how = {"pairs": pairs, "seconds": seconds, "repeats": repeats}
    machine = {"cores": cores, "processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    return {**asked, **how, "machine": machine, "rows": rows, "believe": believe(rows)}


def summarised(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums up the measurements of a row.

    Args:
        found: ``paired`` (a ``speed.Latency`` as a dict) and ``unpaired`` (a ratio) of each.

    Returns:
        ``ratio`` (median), ``low`` and ``high`` of the paired ratios over the repetitions, ``q1`` and ``q3`` within one
        (medians), ``unpaired`` with the same three, and ``believe_percent``: the farthest from 1 that the paired ratio
        came, in %, rounded up to a tenth.
    """
    ratios = [one["paired"]["ratio"] for one in found]
    farthest = max(abs(ratio - 1) for ratio in ratios)
    return {
        **_spread(ratios),
        "q1": statistics.median(one["paired"]["q1"] for one in found),
        "q3": statistics.median(one["paired"]["q3"] for one in found),
        "pairs": statistics.median(one["paired"]["pairs"] for one in found),
        "unpaired": _spread([one["unpaired"] for one in found]),
        "believe_percent": math.ceil(round(1000 * farthest, 6)) / 10,
    }


def believe(rows: Sequence[dict[str, Any]]) -> str:
    """Says which differences can be believed."""
    told = ", ".join(f"{row['believe_percent']:.1f} % {row['beside']}" for row in rows)
    return f"Believe differences of latency above {told}."


def beside(busy: int) -> str:
    """What ran at the same time, in words."""
    return "with nothing beside" if not busy else f"beside {busy} busy core{'s' if busy > 1 else ''}"


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keeps that many cores busy meanwhile."""
    environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
    command = [sys.executable, "-c", _BUSY, str(os.getpid())]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        time.sleep(_SETTLE_SECONDS if running else 0.0)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _once(base: str, size: tuple[int, int], device: str, dtype: Dtype, pairs: int, seconds: float) -> dict[str, Any]:
    """Measures two builds in turns, then the same number of passes one after the other."""
    models = [autocast(build_named(base), dtype) for _ in range(2)]
    inputs = speed.make_inputs(size, 1)
    latency = speed.measure(models[0], models[1], inputs, pairs=pairs, seconds=seconds, device=device)
    inputs = inputs.to(device)
    if device == "cpu":
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    clock, medians = speed.clock_of(device), []
    with torch.inference_mode():
        for model in models:
            one = speed.detector_pass(speed.prepare(model, device), inputs, postprocess=True)
            one(), one()
            medians.append(statistics.median(clock(one) for _ in range(latency.pairs)))
    return {"paired": asdict(latency), "unpaired": medians[0] / medians[1]}


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
