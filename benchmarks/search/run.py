"""Runs the benchmark: each problem, rival and seed on simulated time, in parallel processes.

    python benchmarks/search/run.py --problems zdt1 dtlz2 --rivals headway random --seeds 20

Results are one JSON-lines file a problem and rival, a line a seed, each appended whole as soon as it is there; the same
command again runs what is missing. ``report.py`` makes tables and plots of them.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic, process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import moocore
import numpy as np

from analysis.record import TrialState
from benchmarks.search import rivals
from benchmarks.search.problems import SHAPES, TABLES, Problem, problem
from benchmarks.search.rivals import LIBRARIES, RIVALS, Ended
from spaces.errors import UserError

RESULTS = Path(__file__).parent / "results"
_DIGITS = 6


@dataclass(frozen=True)
class Job:
    """One search."""

    problem: str
    rival: str
    seed: int


def file_of(folder: Path, problem_name: str, rival_name: str) -> Path:
    """Where the results of a rival on a problem lie."""
    return folder / f"{problem_name}.{rival_name}.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """Reads a file's whole lines; a last one that a kill cut short is none."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def append(path: Path, result: dict[str, Any]) -> None:
    """Adds a line in one write, in the place of what a kill has left of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        whole = path.read_bytes().rfind(b"\n") + 1
        if whole != file.tell():
            file.truncate(whole)
        file.write(json.dumps(result, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def missing(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Keeps the jobs that have no result yet."""
    done = {
        Job(job_problem, job_rival, line["seed"])
        for job_problem, job_rival in {(job.problem, job.rival) for job in jobs}
        for line in read(file_of(folder, job_problem, job_rival))
    }
    return [job for job in jobs if job not in done]


def history(trials: Sequence[Ended], of: Problem) -> list[list[float]]:
    """Gives how the hypervolume grew.

    Args:
        trials: What a search tried.
        of: The problem.

    Returns:
        Rows (compute, wall, hypervolume, hypervolume_any), one at each end of a trial that changed one of the last two
        and one at the end of the budget. Compute is the sum over all trials of the simulated seconds that each had
        spent by then, wall the simulated time. ``hypervolume`` is that of fully trained trials; ``hypervolume_any``
        counts a trial that was stopped as well, with the accuracy it had then.
    """
    maximise = [item.maximize for item in of.objectives]
    members: dict[bool, list[list[float]]] = {True: [], False: []}
    volumes = {True: 0.0, False: 0.0}
    rows: list[list[float]] = []
    now = 0.0
    for now in sorted({trial.ended for trial in trials}):
        compute = _compute(trials, now)
        if compute > of.budget:
            break
        for trial in (trial for trial in trials if trial.ended == now):
            values = [trial.figures.get(item.metric, math.nan) for item in of.objectives]
            if trial.state is TrialState.FAILED or not all(map(math.isfinite, values)):
                continue
            for whole in (True, False):
                if not whole or trial.state is TrialState.COMPLETE:
                    members[whole].append(values)
        for whole, points in members.items():
            if points:
                table = np.array(points)
                points[:] = table[moocore.is_nondominated(table, maximise=maximise)].tolist()
                found = float(moocore.hypervolume(np.array(points), ref=of.reference, maximise=maximise))
                # Rounding differs with the set that is summed up; the true value cannot fall.
                volumes[whole] = max(volumes[whole], found)
        row = [_round(value) for value in (compute, now, volumes[True], volumes[False])]
        if not rows or row[2:] != rows[-1][2:]:
            rows.append(row)
    wall = _wall(trials, of.budget)
    end = [_round(value) for value in (_compute(trials, wall), wall, volumes[True], volumes[False])]
    return rows if rows and end == rows[-1] else [*rows, end]


def _wall(trials: Sequence[Ended], budget: float) -> float:
    """Simulated time at which the compute reaches the budget; the end where it does not."""
    times = sorted({time for trial in trials for time in (trial.began, trial.ended)})
    before = 0.0
    for time in times:
        compute = _compute(trials, time)
        if compute > budget:
            running = sum(trial.began <= before < trial.ended for trial in trials)
            return before + (budget - _compute(trials, before)) / running
        before = time
    return before


def _compute(trials: Sequence[Ended], now: float) -> float:
    return sum(max(0.0, min(trial.ended, now) - trial.began) for trial in trials)


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def versions() -> dict[str, str]:
    """Gives the versions of the libraries that are installed."""
    found = {}
    for name in ("headway", *LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def search(job: Job, of: Problem, workers: int) -> dict[str, Any]:
    """Runs one search and gives its line."""
    began = process_time()
    trials = rivals.run(of, job.rival, job.seed, workers)
    curve = history(trials, of)
    begun = [trial for trial in trials if trial.number >= 0 and trial.began < curve[-1][1]]
    return {
        "seed": job.seed,
        "workers": workers,
        "best": of.best,
        "budget": of.budget,
        "training_seconds": of.training_seconds,
        "trials": {
            "begun": len(begun),
            **{
                state.value.lower(): sum(trial.state is state and trial.ended <= curve[-1][1] for trial in begun)
                for state in (TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED)
            },
        },
        "curve": curve,
        "driver_seconds": round(process_time() - began, 2),
        "versions": versions(),
    }


_problems: dict[str, Problem] = {}


def _work(asked: tuple[Job, int]) -> tuple[Job, dict[str, Any]]:
    job, workers = asked
    return job, search(job, _problems[job.problem], workers)


def results(jobs: Sequence[Job], workers: int, processes: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Runs jobs in parallel and gives each result as soon as it is there."""
    for name in dict.fromkeys(job.problem for job in jobs):
        # Before the processes are forked: each finds it there, with its known hypervolume.
        _problems[name] = problem(name)
        _ = _problems[name].best
    rivals.quiet()
    with multiprocessing.get_context("fork").Pool(min(processes, len(jobs)), maxtasksperchild=20) as pool:
        yield from pool.imap_unordered(_work, [(job, workers) for job in jobs])


def arguments() -> argparse.ArgumentParser:
    """Gives the command line."""
    tables = [name for name, file in TABLES.items() if (Path(__file__).parent / file).exists()]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=[*SHAPES, *tables], metavar="NAME")
    parser.add_argument("--rivals", nargs="+", default=list(RIVALS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=20, help="seeds 0 to N - 1 (default 20)")
    parser.add_argument("--workers", type=int, default=4, help="simulated trials side by side (default 4)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="real processes (default: all CPUs)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    options = arguments().parse_args(words)
    try:
        for name in options.problems:
            if name not in {**SHAPES, **TABLES}:
                problem(name)
        for name in options.rivals:
            rivals.rival(name)
        # By seed first, so that an early look compares all.
        jobs = [
            Job(of, rival, seed) for seed in range(options.seeds) for of in options.problems for rival in options.rivals
        ]
        left = missing(jobs, options.out)
        print(f"{len(jobs) - len(left)} of {len(jobs)} searches are done", flush=True)
        began = monotonic()
        for count, (job, result) in enumerate(results(left, options.workers, options.processes) if left else (), 1):
            append(file_of(options.out, job.problem, job.rival), result)
            minutes = (monotonic() - began) / count * (len(left) - count) / 60
            share = result["curve"][-1][2] / result["best"]
            print(
                f"[{count}/{len(left)}, about {minutes:.0f} min left] {job.problem} {job.rival} seed {job.seed}: "
                f"{share:.1%} of the best known hypervolume, {result['driver_seconds']:.0f} s",
                flush=True,
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
