"""Latency of a detector as a ratio to the baseline's, measured in pairs.

On a shared machine two times taken minutes apart differ by a factor of two, while the ratio of two passes that follow
each other stays within some per cent (STACK.md). So candidate and baseline take turns in one process, both prepared by
the same means, and the median of the paired ratios is the result.

The weights need not be trained. With random weights no box comes over the score threshold (heads start at a
probability of 0.01, thresholds are 0.05), so decoding is inside the time, but NMS has next to nothing to do, and that
on both sides alike; a two-stage detector's proposals do pass its NMS, as they do after training.
"""

from __future__ import annotations

import copy
import fcntl
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers import heartbeat
from trainers.foreign import Watch
from trainers.memory import channels_last

Pass = Callable[[], object]
Clock = Callable[[Pass], float]

MOST_PAIRS = 400


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What a paired measurement gave.

    Attributes:
        ratio: Median of the paired ratios candidate / baseline.
        q1: Their lower quartile.
        q3: Their upper quartile.
        pairs: Their number.
        candidate_ms: Median time of a candidate's pass in ms.
        baseline_ms: Median time of a baseline's pass in ms.
    """

    ratio: float
    q1: float
    q3: float
    pairs: int
    candidate_ms: float
    baseline_ms: float


def measure(
    candidate: nn.Module,
    baseline: nn.Module,
    inputs: Tensor,
    *,
    pairs: int = 7,
    seconds: float = 6.0,
    device: str = "cpu",
    postprocess: bool = True,
    warm_up: int = 2,
    lease: str | None = None,
    watch: Watch | None = None,
) -> Latency:
    """Measures a detector's latency against the baseline's.

    Args:
        candidate: An mmdet detector; left as it is, a prepared copy is timed.
        baseline: The detector to compare with.
        inputs: Normalised images, (batch, 3, height, width).
        pairs: Least number of pairs, 1 or more; an odd number is raised to the next even one.
        seconds: Time after which no further pair is started once ``pairs`` are there.
        device: ``cpu`` or ``cuda``.
        postprocess: Whether decoding and NMS are inside (mmdet's ``predict``).
        warm_up: Unmeasured passes of each.
        lease: Path of the lock file that makes measurements exclusive on this machine.
        watch: Sees to it that no foreign process uses the device.

    Raises:
        MachineUnfit: One does.
    """
    inputs = placed(inputs, device)
    passes = [detector_pass(prepare(model, device), inputs, postprocess=postprocess) for model in (candidate, baseline)]
    with exclusive(lease), watch or nullcontext(), torch.inference_mode():
        for one in passes * warm_up:
            one()
        return paired(
            passes[0], passes[1], pairs=pairs, seconds=seconds, clock=_cuda_ms if device == "cuda" else _wall_ms
        )


def measure_on_images(
    candidate: nn.Module,
    baseline: nn.Module,
    images: Sequence[tuple[Tensor, list[Any]]],
    *,
    pairs: int = 7,
    seconds: float = 6.0,
    device: str = "cpu",
    warm_up: int = 1,
    lease: str | None = None,
    watch: Watch | None = None,
) -> Latency:
    """Measures latency where it depends on the image, from normalised images to boxes.

    Args:
        candidate: A trained mmdet detector; left as it is, a prepared copy is timed.
        baseline: The detector to compare with; trained too, so that both have boxes to suppress.
        images: Batches of normalised images, (batch, 3, height, width), with their data samples.
        pairs: Least number of pairs in all; each image gets two or more.
        seconds: Time after which no further round over the images is started once ``pairs`` are there.
        device: ``cpu`` or ``cuda``.
        warm_up: Unmeasured rounds over the images.
        lease: Path of the lock file that makes measurements exclusive on this machine.
        watch: Sees to it that no foreign process uses the device.

    Returns:
        The ratio of the mean latencies over the images, each image counting with its median; the quartiles are those
        of the images' own ratios, so they show how far the latency depends on what is in the image.

    Raises:
        MachineUnfit: A foreign process uses the device.
    """
    prepared = [prepare(model, device) for model in (candidate, baseline)]
    passes = []
    for inputs, samples in images:
        inputs = placed(inputs, device)
        passes.append([_predict(model, inputs, samples) for model in prepared])
    clock = _cuda_ms if device == "cuda" else _wall_ms
    times: list[list[tuple[float, float]]] = [[] for _ in passes]
    with exclusive(lease), watch or nullcontext(), torch.inference_mode():
        for _ in range(warm_up):
            for both in passes:
                for one in both:
                    one()
        begin, rounds = time.monotonic(), 0
        while rounds * len(passes) < pairs or rounds < 2 or rounds % 2 or _more(begin, seconds, rounds * len(passes)):
            for index, (first, second) in enumerate(passes):
                # AB in one round and BA in the next.
                heartbeat.beat()
                turns = (first, second) if rounds % 2 == 0 else (second, first)
                taken = [clock(one) for one in turns]
                times[index].append((taken[0], taken[1]) if rounds % 2 == 0 else (taken[1], taken[0]))
            rounds += 1
    medians = [(statistics.median(a for a, _ in own), statistics.median(b for _, b in own)) for own in times]
    ratios = [a / b for a, b in medians]
    q1, _, q3 = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    ours, theirs = (statistics.fmean(column) for column in zip(*medians, strict=True))
    return Latency(ratio=ours / theirs, q1=q1, q3=q3, pairs=rounds * len(passes), candidate_ms=ours, baseline_ms=theirs)


def _more(begin: float, seconds: float, done: int) -> bool:
    return time.monotonic() - begin < seconds and done < MOST_PAIRS


def _predict(model: Any, inputs: Tensor, samples: list[Any]) -> Pass:
    return lambda: model.predict(inputs, samples, rescale=True)


def paired(candidate: Pass, baseline: Pass, *, pairs: int, seconds: float, clock: Clock | None = None) -> Latency:
    """Times two functions in turns, AB BA AB BA, so that a steady drift of the machine cancels out.

    Args:
        candidate: Function A.
        baseline: Function B.
        pairs: Least number of pairs; odd numbers are raised to the next even one, so that each goes first as often.
        seconds: Time after which no further two pairs are started.
        clock: Calls a function and gives the time it took in ms; wall time by default.
    """
    clock = clock or _wall_ms
    times: list[tuple[float, float]] = []
    begin = time.monotonic()
    while len(times) < pairs or (time.monotonic() - begin < seconds and len(times) < MOST_PAIRS):
        heartbeat.beat()
        first, second = clock(candidate), clock(baseline)
        times.append((first, second))
        second, first = clock(baseline), clock(candidate)
        times.append((first, second))
    ratios = [a / b for a, b in times]
    q1, median, q3 = statistics.quantiles(ratios, n=4, method="inclusive")
    return Latency(
        ratio=median,
        q1=q1,
        q3=q3,
        pairs=len(times),
        candidate_ms=statistics.median(a for a, _ in times),
        baseline_ms=statistics.median(b for _, b in times),
    )


def clock_of(device: str) -> Clock:
    """Gives the clock for a device, ``cpu`` or ``cuda``: it calls a function and gives the time that took in ms."""
    return _cuda_ms if device == "cuda" else _wall_ms


def make_inputs(size: tuple[int, int], batch: int, seed: int = 0) -> Tensor:
    """Makes normalised random images, (batch, 3, height, width), without touching torch's global generator.

    Args:
        size: Height and width in px.
        batch: Number of images.
        seed: Of the images.
    """
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def placed(inputs: Tensor, device: str) -> Tensor:
    """Puts (batch, 3, height, width) images where and how a prepared detector is given them."""
    inputs = inputs.to(device)
    return inputs.contiguous(memory_format=torch.channels_last) if device == "cpu" else inputs


def images_pass(model: Any, device: str, images: Sequence[tuple[Tensor, list[Any]]]) -> Pass:
    """Makes the function that finds the boxes of batches of normalised images, one batch after the other.

    Args:
        model: A prepared mmdet detector.
        device: ``cpu`` or ``cuda``.
        images: Batches with their data samples.
    """
    passes = [_predict(model, placed(inputs, device), samples) for inputs, samples in images]
    return lambda: [one() for one in passes]


def prepare(model: nn.Module, device: str) -> nn.Module:
    """Copies a detector and gives the copy the means that every deployed one has.

    These are evaluation mode, batch norms folded into the convolutions before them and, on a CPU, channels-last
    weights; they alone move a CPU's figures by 1.4 times, so both sides must have them. A detector that predicts in a
    shorter type has its weights in it ready.
    """
    from mmcv.cnn import fuse_conv_bn

    model = fuse_conv_bn(copy.deepcopy(model).eval()).to(device)
    model = channels_last(model) if device == "cpu" else model
    short: Any = getattr(model, "short", None)  # of spaces/autocast.py
    if short is not None:
        short.make()
    return model


def detector_pass(model: Any, inputs: Tensor, *, postprocess: bool) -> Pass:
    """Makes the function that is timed: from normalised images to boxes, or to the head's raw outputs.

    Args:
        model: A prepared mmdet detector.
        inputs: (batch, 3, height, width), on the model's device.
        postprocess: Whether decoding and NMS are inside.
    """
    samples = _samples(inputs)
    if postprocess:
        return lambda: model.predict(inputs, samples, rescale=True)
    # mmdet's name for features and raw head outputs; two-stage detectors need the samples for their proposals.
    return lambda: model._forward(inputs, samples)


@contextmanager
def exclusive(path: str | None) -> Iterator[float]:
    """Holds the machine's lease for measurements; waits for whoever has it, and gives the seconds that it waited.

    The kernel frees the lock when its holder dies, however it dies.

    Args:
        path: Lock file, made where it is missing; ``None`` for no lease.
    """
    if path is None:
        yield 0.0
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="ascii") as file:
        begin = time.monotonic()
        with heartbeat.waiting():
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield time.monotonic() - begin
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _samples(inputs: Tensor) -> list[Any]:
    from mmdet.structures import DetDataSample

    shape = tuple(inputs.shape[-2:])
    meta = {
        "img_shape": shape,
        "ori_shape": shape,
        "pad_shape": shape,
        "batch_input_shape": shape,
        "scale_factor": (1.0, 1.0),
        "img_id": 0,
    }
    return [DetDataSample(metainfo=meta) for _ in inputs]


def _wall_ms(function: Pass) -> float:
    begin = time.perf_counter()
    function()
    return (time.perf_counter() - begin) * 1e3


def _cuda_ms(function: Pass) -> float:
    # Starting from an idle device, so that nothing of the pass before is in this one's time.
    torch.cuda.synchronize()
    begin: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    function()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))
