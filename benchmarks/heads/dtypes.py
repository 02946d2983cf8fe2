"""How many times as fast a detector predicts, or trains, in a shorter type as in float32, both in turns.

    python benchmarks/heads/dtypes.py [--base mmdet::gfl/gfl_r50_fpn_1x_coco.py] [--size 800x1344] [--dtype bfloat16]
    python benchmarks/heads/dtypes.py --training [--batch 2] ...

Weights are random, images noise. Predictions go from normalised images to boxes, training steps from normalised images
with eight boxes each to updated weights (SGD with momentum); each side has the means that every trial has. A line is
added to ``dtypes/MACHINE.jsonl``, whose first line describes the machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [] if os.environ.get("PYTHONPATH") else [str(HERE.parents[1])]

import torch  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from benchmarks.heads.run import append, begin, commit, file_name, machine  # noqa: E402
from spaces.autocast import autocast  # noqa: E402
from trainers import mixed, speed  # noqa: E402
from trainers.config import AMP  # noqa: E402
from trainers.contract import DTYPES  # noqa: E402
from trainers.means import settle  # noqa: E402
from trainers.memory import channels_last  # noqa: E402
from trainers.profile import build_named  # noqa: E402


def training_pass(base: str, size: tuple[int, int], batch: int, device: str, dtype: str) -> speed.Pass:
    """Gives a training step of a base in a type."""
    from mmdet.structures import DetDataSample

    # At a rate of 0 all is done, and no weight moves.
    wrapper = {"type": AMP, "dtype": dtype} if dtype != "float32" else {"type": "OptimWrapper"}
    wrapper["optimizer"] = {"type": "SGD", "lr": 0.0, "momentum": 0.9}
    model = channels_last(build_named(base)) if device == "cpu" else build_named(base).to(device)
    model.train()
    optimizer = build_optim_wrapper(model, mixed.prepare(model, wrapper, device))
    images = speed.placed(speed.make_inputs(size, batch), device)
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(batch):
        meta = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size)
        sample = DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0)})
        corner = torch.rand(8, 2, generator=generator) * torch.tensor(size[::-1]) * 0.7
        sides = torch.tensor(size[::-1]) * (0.05 + 0.25 * torch.rand(8, 2, generator=generator))
        boxes = torch.cat((corner, corner + sides), 1)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.zeros(8, dtype=torch.long))
        samples.append(sample.to(device))

    def step() -> None:
        with optimizer.optim_context(model):
            losses = model(images, copy.deepcopy(samples), mode="loss")
        optimizer.update_params(model.parse_losses(losses)[0])

    return step


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="mmdet::gfl/gfl_r50_fpn_1x_coco.py", help="a config (default: GFL-R50)")
    parser.add_argument("--size", default="800x1344", help="height x width in px (default: 800x1344)")
    parser.add_argument("--dtype", choices=DTYPES[1:], default="bfloat16")
    parser.add_argument("--training", action="store_true", help="measure training steps in the place of predictions")
    parser.add_argument("--batch", type=int, default=1, help="images (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all)")
    parser.add_argument("--pairs", type=int, default=8, help="least number of interleaved pairs (default: 8)")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for more pairs than these (default: 10)")
    parser.add_argument("--out", type=Path, help="results file (default: dtypes/MACHINE.jsonl)")
    options = parser.parse_args(words)
    settle(options.threads)
    described = machine(options.device, options.threads)
    path = options.out or HERE / "dtypes" / file_name(described)
    begin(path, described)
    height, width = map(int, options.size.split("x"))
    if options.training:
        candidate, baseline = (
            training_pass(options.base, (height, width), options.batch, options.device, dtype)
            for dtype in (options.dtype, "float32")
        )
        for function in (candidate, baseline, candidate, baseline):
            function()
        clock = speed.clock_of(options.device)
        found = speed.paired(candidate, baseline, pairs=options.pairs, seconds=options.seconds, clock=clock)
    else:
        found = speed.measure(
            autocast(build_named(options.base), options.dtype),
            build_named(options.base),
            speed.make_inputs((height, width), options.batch),
            pairs=options.pairs,
            seconds=options.seconds,
            device=options.device,
        )
    line = {
        "case": f"{options.base} in {options.dtype}",
        "part": "training" if options.training else "whole",
        "size": [height, width],
        "batch": options.batch,
        "speedup": 1 / found.ratio,
        "ratio": found.ratio,
        "q1": found.q1,
        "q3": found.q3,
        "pairs": found.pairs,
        "ms": found.candidate_ms,
        "against_ms": found.baseline_ms,
        "commit": commit(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    append(path, line)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
