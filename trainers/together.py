"""Latency of many detectors, measured in one interleaved run of one process.

Ratios that a search measures pair by pair, hours apart, are each fair to the baseline; between two designs they carry
the noise of both occasions. Here every round passes once through all detectors, so a round gives each of them a ratio
to the baseline of that same round, and each two of them a ratio to one another.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from spaces import patching
from trainers import speed, sweep
from trainers.config import read_facts, trial_config
from trainers.contract import SpeedRequest, TrialFailed, TrialRequest
from trainers.detector import build_model
from trainers.foreign import watch
from trainers.means import settle
from trainers.weights import copy_matching

MOST_DETECTORS = 12
"""In memory at once, the baseline's two builds among them."""
MOST_ROUNDS = 100
_BASE, _AGAIN = "", "again"  # no label of a member


@dataclass(frozen=True, kw_only=True)
class Member:
    """One detector to measure.

    Attributes:
        label: Names it in the result.
        knobs: The network's design; where a part was learned, what it was settled into.
        folder: Of the trial whose newest checkpoint holds its weights, for a design whose latency depends on the image;
            ``None`` for one that is timed untrained on noise.
    """

    label: str
    knobs: Mapping[str, Any]
    folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class TogetherRequest:
    """What to measure, as plain data that survives JSON.

    Attributes:
        baseline: The baseline's trial: base, data, seed, threads. Its newest checkpoint is what trained detectors are
            compared with, untrained weights where there is none.
        members: Without the baseline, in the order of the front: neighbours are measured in one run where they can be.
        speed: How latency is measured; ``pairs`` is the least number of rounds, ``seconds`` the time for one detector.
        images: Of the validation split, for designs whose latency depends on the image.
    """

    baseline: TrialRequest
    members: Sequence[Member]
    speed: SpeedRequest
    images: int = 16

    def to_json(self) -> dict[str, Any]:
        """Gives the request as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TogetherRequest:
        """Reads what ``to_json`` wrote, also after a trip through JSON text."""
        how = value["speed"]
        return cls(
            baseline=TrialRequest.from_json(value["baseline"]),
            members=[Member(**member) for member in value["members"]],
            speed=SpeedRequest(**{**how, "size": tuple(how["size"])}),
            images=value["images"],
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One interleaved run.

    Attributes:
        on_images: Whether trained detectors ran on images, or untrained ones on noise.
        ratios: By label the latency of each round divided by the baseline's of that round.
        aa: The same of a second build of the baseline.
        baseline_ms: Median time of the baseline's pass in ms.
    """

    on_images: bool
    ratios: Mapping[str, Sequence[float]]
    aa: Sequence[float]
    baseline_ms: float


def measure_json(request: str) -> str:
    """Measures what a request in JSON text asks for; gives a list of ``Run`` as JSON text."""
    return json.dumps([asdict(run) for run in measure(TogetherRequest.from_json(json.loads(request)))])


def measure(request: TogetherRequest) -> list[Run]:
    """Measures all members.

    A run has at most ``MOST_DETECTORS``, so a long front takes several, each with the baseline in it. So do designs
    whose latency depends on the image, as what they are compared with is the trained baseline on images.

    Raises:
        TrialFailed: The trained weights of a member are gone.
        MachineUnfit: A foreign process uses the device.
    """
    settle(request.baseline.threads)
    runs = []
    for on_images in (False, True):
        members = [member for member in request.members if (member.folder is not None) == on_images]
        for group in groups(members, MOST_DETECTORS - 2):
            runs.append(_on_images(request, group) if on_images else _on_noise(request, group))
    # The baseline is measured against itself though it is alone.
    return runs or [_on_noise(request, [])]


def groups(members: Sequence[Member], most: int) -> list[Sequence[Member]]:
    """Cuts a list into as few parts as there must be, of like length and at most ``most``."""
    count = -(-len(members) // most)
    edges = [round(index * len(members) / count) for index in range(count + 1)] if count else [0]
    return [members[low:high] for low, high in pairwise(edges)]


def order(count: int, turn: int) -> list[int]:
    """Gives the order of a round: a row of a Williams design (1949).

    In ``count`` rounds, twice as many for an odd number, each detector stands once (twice) at every place, so a steady
    drift of the machine cancels out, and comes equally often after every other one, so what a pass leaves in the caches
    does too.

    Args:
        count: Detectors.
        turn: The round, from 0.
    """
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]
    if count % 2 and turn // count % 2:
        zigzag.reverse()
    return [(place + turn) % count for place in zigzag]


def interleaved(
    passes: Sequence[speed.Pass],
    *,
    rounds: int,
    seconds: float,
    clock: speed.Clock,
    now: Callable[[], float] = time.monotonic,
) -> list[list[float]]:
    """Times functions in turns, once each a round, see ``order``.

    Args:
        passes: 2 or more.
        rounds: Least number of rounds; raised until each function stood at every place equally often.
        seconds: Time for all after which no further such set of rounds is begun.
        clock: Calls a function and gives the time it took in ms.
        now: Gives seconds.

    Returns:
        Of each function its time in every round, in ms.
    """
    count = len(passes)
    whole = count if count % 2 == 0 else 2 * count
    times: list[list[float]] = [[] for _ in passes]
    begin, turn = now(), 0
    while turn < rounds or (now() - begin < seconds and turn + whole <= MOST_ROUNDS):
        for _ in range(whole):
            for index in order(count, turn):
                times[index].append(clock(passes[index]))
            turn += 1
    return times


def _on_noise(request: TogetherRequest, members: Sequence[Member]) -> Run:
    """Untrained but for the base's weights wherever name and shape match, as a trial is timed."""
    how, base = request.speed, _build(request, {})
    inputs = _format(speed.make_inputs(how.size, how.batch).to(how.device), how.device)
    passes = {}
    for label, knobs in (*_baselines(), *((member.label, member.knobs) for member in members)):
        model = base if label == _BASE else _build(request, knobs)
        copy_matching(patching.translated(knobs, base.state_dict(), model), model)
        prepared = speed.prepare(model, how.device)
        passes[label] = speed.detector_pass(prepared, inputs, postprocess=how.postprocess)
    return _run(request, passes, on_images=False)


def _on_images(request: TogetherRequest, members: Sequence[Member]) -> Run:
    """With the weights of the study's own training; a pass is one over all images."""
    how, images = request.speed, None
    passes: dict[str, speed.Pass] = {}
    trained = sweep.reference_weights(request.baseline.folder)
    for label, knobs in (*_baselines(), *((member.label, member.knobs) for member in members)):
        model = _build(request, knobs)
        weights = trained
        if label not in (_BASE, _AGAIN):
            folder = next(member.folder for member in members if member.label == label)
            weights = sweep.reference_weights(folder)
            if weights is None:
                raise TrialFailed(f"the trained weights of {label} are gone from {folder}.")
        if weights is not None:
            model.load_state_dict(weights)
        if images is None:
            config = trial_config(replace(request.baseline, knobs={}), read_facts(request.baseline.data))
            images = [
                (_format(inputs.to(how.device), how.device), samples)
                for inputs, samples in sweep.validation_images(config, model, how.size, how.batch, request.images)
            ]
        passes[label] = over_images(speed.prepare(model, how.device), images)
    return _run(request, passes, on_images=True)


def over_images(model: Any, images: Sequence[sweep.Batch]) -> speed.Pass:
    def one() -> None:
        for inputs, samples in images:
            model.predict(inputs, samples, rescale=True)

    return one


def _run(request: TogetherRequest, passes: Mapping[str, speed.Pass], *, on_images: bool) -> Run:
    how = request.speed
    with speed.exclusive(how.lease), watch(request.baseline, how), torch.inference_mode():
        for one in [*passes.values()] * (1 if on_images else 2):
            one()
        found = interleaved(
            list(passes.values()),
            rounds=how.pairs,
            seconds=how.seconds * len(passes),
            clock=speed.clock_of(how.device),
        )
    times = dict(zip(passes, found, strict=True))
    # Five digits, as no clock gives more: the rounds are kept with the study.
    ratios = {
        label: [float(f"{mine / theirs:.5g}") for mine, theirs in zip(own, times[_BASE], strict=True)]
        for label, own in times.items()
    }
    aa = ratios.pop(_AGAIN)
    del ratios[_BASE]
    return Run(on_images=on_images, ratios=ratios, aa=aa, baseline_ms=statistics.median(times[_BASE]))


def _baselines() -> list[tuple[str, Mapping[str, Any]]]:
    return [(_BASE, {}), (_AGAIN, {})]


def _build(request: TogetherRequest, knobs: Mapping[str, Any]) -> Any:
    trial = replace(request.baseline, knobs=knobs)
    model = build_model(trial_config(trial, read_facts(trial.data)), trial.seed, request.speed.device)
    patching.check_built(model, knobs)
    return model


def _format(inputs: torch.Tensor, device: str) -> torch.Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if device == "cpu" else inputs
