"""Measures how near the heads come to the speed that their arithmetic allows.

    python benchmarks/heads/run.py [--cases slim-p3,dcn*] [--parts whole] [--sizes 800x1344] [--batches 1] [--pairs 8]
    python benchmarks/heads/run.py --list
    python benchmarks/heads/report.py        # puts the tables into the documentation

Each case (``cases.py``) is a design and the base that it is compared with, as whole detectors (normalised images to
boxes) and one part of them alone. Both take turns in one process, AB BA, prepared as every trial's are; the median and
the quartiles of the paired ratios count. Beside them stand the speed-ups that multiply-adds alone and bytes alone would
allow (``trainers/traffic.py`` says what is counted), both counted in a pass on the same inputs.

What is measured is appended to ``results/MACHINE.jsonl``, whose first line describes the machine; what stands there is
not measured again, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [] if os.environ.get("PYTHONPATH") else [str(HERE.parents[1])]

import torch  # noqa: E402

from benchmarks.heads.cases import CASES, Case  # noqa: E402
from spaces.autocast import autocast  # noqa: E402
from spaces.base import facts  # noqa: E402
from spaces.errors import UserError, unknown  # noqa: E402
from spaces.space import full_space  # noqa: E402
from trainers import speed, traffic  # noqa: E402
from trainers.config import load_base  # noqa: E402
from trainers.contract import DTYPES  # noqa: E402
from trainers.detector import device_name  # noqa: E402
from trainers.means import settle  # noqa: E402
from trainers.profile import build_patched  # noqa: E402

PARTS = ("whole", "alone")
SIZES = ("800x1344", "320x320")
BATCHES = (1, 8)
# What makes two lines of one file the same measurement.
KEY = ("case", "part", "size", "batch")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement: a case, ``whole`` or ``alone``, height and width in px (``None`` where none matters), images."""

    case: Case
    part: str
    size: tuple[int, int] | None
    batch: int

    @property
    def key(self) -> dict[str, Any]:
        """What names it in the results."""
        return {
            "case": self.case.name,
            "part": self.part,
            "size": list(self.size) if self.size else None,
            "batch": self.batch,
        }

    def __str__(self) -> str:
        size = f" {self.size[0]}x{self.size[1]}" if self.size else ""
        return f"{self.case.name} {self.part}{size} batch {self.batch}"


def jobs(
    cases: Sequence[Case], parts: Sequence[str], sizes: Sequence[tuple[int, int]], batches: Sequence[int]
) -> Iterator[Job]:
    """Gives the measurements in their order: small ones first, so that something is there soon."""
    ordered = sorted(sizes, key=math.prod)
    for batch in sorted(batches):
        for size in ordered:
            for case in cases:
                for part in parts:
                    matters = part == "whole" or case.sizes_matter
                    if matters or size == ordered[0]:
                        yield Job(case=case, part=part, size=size if matters else None, batch=batch)


def measure(
    job: Job,
    *,
    device: str,
    pairs: int,
    seconds: float,
    lease: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Measures one job.

    Args:
        job: The measurement.
        device: ``cpu`` or ``cuda``.
        pairs: Least number of interleaved pairs.
        seconds: Time after which no further pair is started once ``pairs`` are there.
        lease: Path of a lock file that makes measurements exclusive on this machine.
        seed: Of weights and images.
        dtype: What both compute in: ``float32``, ``bfloat16`` or ``float16``.

    Returns:
        ``ratio`` (candidate / baseline) with ``q1`` and ``q3`` of the paired ratios and ``pairs``; ``speedup``, its
        inverse; ``ms`` and ``against_ms``; ``times``, the paired ms; ``macs`` and ``bytes`` as [candidate, baseline];
        ``bound_by_macs`` and ``bound_by_bytes``, the speed-ups that they allow; ``reached_of_macs`` and
        ``reached_of_bytes``, the shares of them that were reached; and ``notes`` of the case.
    """
    case = job.case
    torch.manual_seed(seed)
    models = [
        autocast(build_patched(case.base, design(case.base, knobs)), dtype) for knobs in (case.knobs, case.against)
    ]
    notes = case.ready(*models) if case.ready else {}
    prepared = [speed.prepare(model, device) for model in models]
    del models
    inputs = speed.placed(speed.make_inputs(job.size or (320, 320), job.batch, seed), device)

    def within() -> ExitStack:
        """Whole detectors see to their type themselves; a part of one runs within it, with the weights of that type."""
        stack = ExitStack()
        if dtype != "float32" and job.part == "alone":
            stack.enter_context(torch.autocast(device, getattr(torch, dtype)))
            for model in prepared:
                stack.enter_context(model.short.lent())
        return stack

    with torch.no_grad(), within():
        if job.part == "whole":
            passes = [speed.detector_pass(model, inputs, postprocess=True) for model in prepared]
        else:
            features = prepared[1].extract_feat(inputs)
            passes = [case.alone(model, features, inputs) for model in prepared]
    with torch.no_grad(), within():
        done = [traffic.observe(model, one) for model, one in zip(prepared, passes, strict=True)]
    times: list[float] = []
    clock = speed.clock_of(device)

    def noting(function: speed.Pass) -> float:
        times.append(clock(function))
        return times[-1]

    with speed.exclusive(lease), torch.inference_mode(), within():
        for one in passes:
            one()
        found = speed.paired(*passes, pairs=pairs, seconds=seconds, clock=noting)
    # AB BA AB BA
    rounded = [round(taken, 3) for taken in times]
    turns = [rounded[index : index + 2] for index in range(0, len(rounded), 2)]
    bounds = {name: getattr(done[1], name) / getattr(done[0], name) for name in ("macs", "bytes")}
    return {
        "ratio": found.ratio,
        "q1": found.q1,
        "q3": found.q3,
        "pairs": found.pairs,
        "speedup": 1 / found.ratio,
        "ms": statistics.median(pair[index % 2] for index, pair in enumerate(turns)),
        "against_ms": statistics.median(pair[1 - index % 2] for index, pair in enumerate(turns)),
        "macs": [work.macs for work in done],
        "bytes": [work.bytes for work in done],
        **{f"bound_by_{name}": bound for name, bound in bounds.items()},
        **{f"reached_of_{name}": 1 / found.ratio / bound for name, bound in bounds.items()},
        "notes": dict(notes),
        "times": [pair if index % 2 == 0 else pair[::-1] for index, pair in enumerate(turns)],
    }


def design(base: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the canonical design of some families' knobs on a base."""
    if not knobs:
        return {}
    known = facts(load_base(base).model.to_dict(), f"base {base}")
    return full_space(known).canonicalise(dict(knobs), base)


# --- The machine -----------------------------------------------------------------------------------------------------


def machine(device: str, threads: int, dtype: str = "float32") -> dict[str, Any]:
    """Describes what the measurements depend on."""
    import psutil

    versions = {}
    for name in ("torch", "onedl-mmcv", "onedl-mmdetection", "onedl-mmengine"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    instructions = torch.backends.cpu.get_cpu_capability()
    if torch.cpu.get_capabilities().get("amx_bf16"):
        instructions += ", AMX"
    backends = re.search(r"(?:oneDNN|MKL-DNN) v[\d.]+", torch.__config__.show())
    found = {
        "device": device,
        "name": device_name(device),
        "cpu": device_name("cpu"),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "instructions": instructions,
        "onednn": backends.group().rpartition("v")[2] if backends else "",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
        **({} if dtype == "float32" else {"dtype": dtype}),
    }
    if device == "cuda":
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def file_name(described: Mapping[str, Any]) -> str:
    """Names a machine's file after it, ``amd-epyc_2-cores_1-thread_bfloat16.jsonl``."""
    name = re.sub("[^a-z0-9]+", "-", described["name"].lower()).strip("-")
    kind = f"_{described['dtype']}" if "dtype" in described else ""
    if described["device"] == "cuda":
        return f"{name}{kind}.jsonl"
    threads = described["threads"]
    return f"{name}_{described['cores']}-cores_{threads}-thread{'s' if threads > 1 else ''}{kind}.jsonl"


def commit() -> str:
    """Names the code that was measured, with a + where it was changed since."""
    ask = ["git", "-C", str(HERE)]
    try:
        head = subprocess.run([*ask, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*ask, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


# --- Results ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Reads a results file: the machine, and the newest line of each measurement; a line cut off is left out."""
    found: dict[str, dict[str, Any]] = {}
    described = None
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "machine" in value:
            described = value["machine"]
        else:
            found[json.dumps([value[name] for name in KEY])] = value
    return described, list(found.values())


def begin(path: Path, described: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Opens a results file, new or to go on with.

    Raises:
        UserError: It is another machine's.
    """
    before, lines = read(path)
    if before is None:
        append(path, {"machine": dict(described)})
    elif before != described:
        differ = ", ".join(sorted(key for key in before | dict(described) if before.get(key) != described.get(key)))
        raise UserError(f"--out: must be this machine's, but {path} was measured with another {differ}; name another.")
    return lines


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line; what a killed run left unfinished stays a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(line, allow_nan=False).encode() + b"\n")


# --- The command line ------------------------------------------------------------------------------------------------


def chosen(patterns: str, cases: Sequence[Case] = CASES) -> list[Case]:
    """Gives the cases that comma-separated names or patterns name, in their own order.

    Raises:
        UserError: One names none.
    """
    names = [case.name for case in cases]
    for pattern in patterns.split(","):
        if not fnmatch.filter(names, pattern):
            raise unknown("--cases", pattern, names)
    return [case for case in cases if any(fnmatch.fnmatch(case.name, one) for one in patterns.split(","))]


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise UserError(f"--sizes: must read like 800x1344,320x320 (height x width in px), but got '{text}'.")
    return int(match[1]), int(match[2])


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default="*", help="names or patterns, comma-separated (default: all)")
    parser.add_argument("--parts", default="whole,alone", help="whole, alone or both (default: both)")
    parser.add_argument("--sizes", default=",".join(SIZES), help=f"height x width in px (default: {','.join(SIZES)})")
    parser.add_argument("--batches", default="1,8", help="images a pass (default: 1,8)")
    parser.add_argument("--pairs", type=int, default=8, help="least number of interleaved pairs (default: 8)")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for more pairs than these (default: 10)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="what both compute in (default: float32)")
    parser.add_argument("--lease", help="lock file to hold during each measurement")
    parser.add_argument("--out", type=Path, help="results file (default: results/MACHINE.jsonl)")
    parser.add_argument("--again", action="store_true", help="measure again what is there; the newest counts")
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    options = _arguments(words)
    if options.list:
        print("\n".join(f"{case.name:14} {case.title}" for case in CASES))
        return 0
    try:
        parts = options.parts.split(",")
        for part in parts:
            if part not in PARTS:
                raise unknown("--parts", part, PARTS)
        sizes = [_size(text) for text in options.sizes.split(",")]
        batches = [int(text) for text in options.batches.split(",")]
        wanted = list(jobs(chosen(options.cases), parts, sizes, batches))
        settle(options.threads)
        described = machine(options.device, options.threads, options.dtype)
        path = options.out or HERE / "results" / file_name(described)
        known = [{name: line[name] for name in KEY} for line in begin(path, described)]
        due = [job for job in wanted if options.again or job.key not in known]
        print(f"{path}: {len(due)} of {len(wanted)} to measure", file=sys.stderr)
        for number, job in enumerate(due, 1):
            found = measure(
                job,
                device=options.device,
                pairs=options.pairs,
                seconds=options.seconds,
                lease=options.lease,
                dtype=options.dtype,
            )
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            append(path, {**job.key, **found, "commit": commit(), "when": when})
            print(
                f"{number}/{len(due)} {job}: {found['speedup']:.3f} times as fast "
                f"({1 / found['q3']:.3f}-{1 / found['q1']:.3f}, {found['pairs']} pairs); multiply-adds allow "
                f"{found['bound_by_macs']:.3f}, bytes {found['bound_by_bytes']:.3f}",
                file=sys.stderr,
                flush=True,
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
