"""How many times as fast a detector predicts in a shorter type as in float32, both in turns.

    python benchmarks/heads/dtypes.py [--base mmdet::gfl/gfl_r50_fpn_1x_coco.py] [--size 800x1344] [--dtype bfloat16]

Weights are random, images noise, from normalised images to boxes; each side has the means that every trial has. A line
is added to ``dtypes/MACHINE.jsonl``, whose first line describes the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [] if os.environ.get("PYTHONPATH") else [str(HERE.parents[1])]

import torch  # noqa: E402

from benchmarks.heads.run import append, begin, commit, file_name, machine  # noqa: E402
from spaces.autocast import autocast  # noqa: E402
from trainers import speed  # noqa: E402
from trainers.contract import DTYPES  # noqa: E402
from trainers.means import settle  # noqa: E402
from trainers.profile import build_named  # noqa: E402


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="mmdet::gfl/gfl_r50_fpn_1x_coco.py", help="a config (default: GFL-R50)")
    parser.add_argument("--size", default="800x1344", help="height x width in px (default: 800x1344)")
    parser.add_argument("--dtype", choices=DTYPES[1:], default="bfloat16")
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
    short, plain = autocast(build_named(options.base), options.dtype), build_named(options.base)
    found = speed.measure(
        short,
        plain,
        speed.make_inputs((height, width), 1),
        pairs=options.pairs,
        seconds=options.seconds,
        device=options.device,
    )
    line = {
        "case": f"{options.base} in {options.dtype}",
        "part": "whole",
        "size": [height, width],
        "batch": 1,
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
