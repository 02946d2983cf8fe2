"""Latency of one config against another's, measured in turns by a process of its own.

It repeats what a search measured, for two configs that stand for themselves: a bundle and the baseline beside it. A
second build of the baseline takes its turns as well, since two builds of the same network differ by where their weights
come to lie in memory; a ratio that differs by less than theirs differs by nothing.

Started as ``python -m trainers.versus``: one JSON line in, one out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spaces.errors import HeadwayError
from trainers.means import environment

_ROOT = Path(__file__).resolve().parents[1]
_TAIL = 1500  # characters of the process's standard error that an error carries


@dataclass(frozen=True, kw_only=True)
class Images:
    """Where the latency depends on the image: trained detectors on images of the validation split.

    Attributes:
        weights: Checkpoint of the candidate.
        baseline_weights: Checkpoint of the baseline.
        annotations: COCO json.
        folder: Of its images.
        count: Most images.
    """

    weights: str
    baseline_weights: str
    annotations: str
    folder: str
    count: int = 16


@dataclass(frozen=True, kw_only=True)
class VersusRequest:
    """What to measure.

    Attributes:
        candidate: Config file; with ``images`` one that has ``test_dataloader``.
        baseline: Config file.
        size: Height and width of the input in px.
        batch: Images a pass.
        postprocess: Whether decoding and NMS are inside.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads.
        rounds: Least number of rounds, in each of which both and the second build are passed once.
        seconds: Time for each of the three after which no further rounds are begun.
        images: ``None`` for untrained detectors on noise.
    """

    candidate: str
    baseline: str
    size: tuple[int, int]
    batch: int = 1
    postprocess: bool = True
    device: str = "cpu"
    threads: int = 1
    rounds: int = 9
    seconds: float = 5.0
    images: Images | None = None


@dataclass(frozen=True, kw_only=True)
class Versus:
    """What was measured.

    Attributes:
        ratio: Median over the rounds of the candidate's latency divided by the baseline's.
        q1: Lower quartile.
        q3: Upper quartile.
        aa: Median of the same of the second build of the baseline.
        rounds: Their number.
        candidate_ms: Median time of a pass in ms.
        baseline_ms: That of the baseline.
        device: What it was measured on.
    """

    ratio: float
    q1: float
    q3: float
    aa: float
    rounds: int
    candidate_ms: float
    baseline_ms: float
    device: str


def versus(request: VersusRequest) -> Versus:
    """Measures in a fresh process.

    Raises:
        HeadwayError: A config cannot be built or run.
    """
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            # Compiled code that lies beside a config, which no receipt names, is not looked at, and none is left there.
            [sys.executable, "-B", "-X", f"pycache_prefix={cache}", "-W", "ignore", "-m", "trainers.versus"],
            input=json.dumps(asdict(request)) + "\n",
            env={**os.environ, **environment(request.threads), "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
        )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip()[-_TAIL:] or f"status {done.returncode}"
        raise HeadwayError(f"latency: {request.candidate} could not be measured: {said.splitlines()[-1]}")
    return Versus(**json.loads(lines[-1]))


def measure(request: VersusRequest) -> Versus:
    """Measures in this process."""
    import torch

    from trainers import speed
    from trainers.detector import device_name
    from trainers.means import settle
    from trainers.together import interleaved

    settle(request.threads)
    passes = _on_images(request) if request.images else _on_noise(request)
    with torch.inference_mode():
        for one in passes * (1 if request.images else 2):
            one()
        mine, theirs, again = interleaved(
            passes,
            rounds=request.rounds,
            seconds=request.seconds * len(passes),
            clock=speed.clock_of(request.device),
        )
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    q1, median, q3 = statistics.quantiles(ratios, n=4, method="inclusive")
    return Versus(
        ratio=median,
        q1=q1,
        q3=q3,
        aa=statistics.median(a / b for a, b in zip(again, theirs, strict=True)),
        rounds=len(ratios),
        candidate_ms=statistics.median(mine),
        baseline_ms=statistics.median(theirs),
        device=device_name(request.device),
    )


def _on_noise(request: VersusRequest) -> list[Any]:
    """Untrained, the candidate with the baseline's weights wherever name and shape match, as a trial is timed."""
    from trainers import speed
    from trainers.weights import copy_matching

    _, candidate = _build(request.candidate, request.device)
    baselines = [_build(request.baseline, request.device)[1] for _ in range(2)]
    copy_matching(baselines[0].state_dict(), candidate)
    inputs = _format(speed.make_inputs(request.size, request.batch).to(request.device), request.device)
    return [
        speed.detector_pass(speed.prepare(model, request.device), inputs, postprocess=request.postprocess)
        for model in (candidate, *baselines)
    ]


def _on_images(request: VersusRequest) -> list[Any]:
    """With their weights; a pass is one over all images."""
    from mmengine.config import Config

    from trainers import speed
    from trainers.sweep import validation_images
    from trainers.together import over_images
    from trainers.weights import read_weights

    asked = request.images
    assert asked is not None
    models, batches = [], None
    for path, weights in (
        (request.candidate, asked.weights),
        (request.baseline, asked.baseline_weights),
        (request.baseline, asked.baseline_weights),
    ):
        config, model = _build(path, request.device)
        model.load_state_dict(read_weights(weights))
        if batches is None:
            loader = config["test_dataloader"]
            loader["dataset"].update(data_root="", ann_file=asked.annotations, data_prefix={"img": asked.folder})
            validation = Config({"val_dataloader": loader})
            found = validation_images(validation, model, request.size, request.batch, asked.count)
            batches = [(_format(inputs.to(request.device), request.device), samples) for inputs, samples in found]
        models.append(model)
    return [over_images(speed.prepare(model, request.device), batches or []) for model in models]


def _build(path: str, device: str) -> tuple[Any, Any]:
    from mmengine.config import Config

    from trainers.detector import build_model

    config = Config.fromfile(path)
    return config, build_model(config, seed=0, device=device)


def _format(inputs: Any, device: str) -> Any:
    import torch

    return inputs.contiguous(memory_format=torch.channels_last) if device == "cpu" else inputs


def _request(value: Mapping[str, Any]) -> VersusRequest:
    images = value["images"]
    asked = VersusRequest(**{**value, "size": tuple(value["size"]), "images": None})
    return replace(asked, images=Images(**images)) if images else asked


def main(arguments: Sequence[str] = ()) -> None:
    """Measures what standard input asks for; what libraries print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    found = measure(_request(json.loads(sys.stdin.readline())))
    channel.write(json.dumps(asdict(found)) + "\n")
    channel.flush()


if __name__ == "__main__":
    main()
