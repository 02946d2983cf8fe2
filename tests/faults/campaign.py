"""The fault campaign: randomised runs, each a small study by the real driver into which faults are injected.

    campaign.py --runs 60 --seed 0 --jobs 1 --out results.json

Each run is checked against what must hold whatever died (``invariants``). A run that is in the file of lines beside
``--out`` already is not done again, so a campaign that was cut short goes on.

Exit status: 0 without violations, 1 with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from scenario import KINDS, Scenario, draw, possible  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = _parser().parse_args(arguments)
    kinds = possible()
    if options.kinds:
        kinds = tuple(kind for kind in kinds if kind in options.kinds)
    lines = options.out.with_suffix(".jsonl")
    lines.parent.mkdir(parents=True, exist_ok=True)
    kept = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()] if lines.exists() else []
    done = {item["index"]: item for item in kept if item["seed"] == options.seed}
    chosen = options.only or [index for index in range(options.runs) if index not in done]
    began = time.monotonic()
    with ProcessPoolExecutor(options.jobs) as pool:
        waiting = {pool.submit(_one, draw(options.seed, index, kinds), options.seed): index for index in chosen}
        for future in as_completed(waiting):
            found = future.result()
            done[found["index"]] = found
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            _tell(found, len(done), options.runs)
    told = [done[index] for index in sorted(done)]
    summary = summarise(told, seed=options.seed, seconds=time.monotonic() - began)
    options.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(table(summary))
    lacking = [kind for kind in KINDS if kind not in kinds]
    if lacking:
        print(f"not injected here: {', '.join(lacking)}")
    return 1 if summary["violations"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Injects faults into randomised small studies and checks each.")
    parser.add_argument("--runs", type=int, default=60, help="how many (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="decides all of them (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="do these runs, whether done or not")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="inject only these (default: all that can be here)")
    parser.add_argument(
        "--out", type=Path, default=HERE.parents[1] / "benchmarks/faults/results.json", help="the figures as JSON"
    )
    return parser


def _one(scenario: Scenario, seed: int) -> dict[str, Any]:
    """Does a run in a process of its own; its folder is kept where something does not hold."""
    from conduct import conduct

    folder = Path(tempfile.mkdtemp(prefix=f"headway-faults-{seed}-{scenario.index}-"))
    result = conduct(scenario, folder / "run")
    found = {"seed": seed, **result.to_json()}
    if result.violations:
        found["folder"] = str(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _tell(found: dict[str, Any], done: int, runs: int) -> None:
    what = ", ".join(found["injected"]) or "nothing came"
    states = ", ".join(f"{count} {state}" for state, count in sorted(found["states"].items()))
    print(
        f"[{done}/{runs}] run {found['index']}: {what}; {found['starts']} starts, {states}, {found['seconds']:.0f} s, "
        f"{len(found['violations'])} violations",
        flush=True,
    )
    if found["violations"]:
        print(f"  seed {found['seed']}, run {found['index']}, folder {found['folder']}")
        for line in (*found["happened"], *found["violations"]):
            print(f"    {line}", flush=True)


def summarise(runs: Sequence[dict[str, Any]], *, seed: int, seconds: float) -> dict[str, Any]:
    """Adds up the runs."""
    injected = Counter(kind for run in runs for kind in run["injected"])
    return {
        "seed": seed,
        "runs": len(runs),
        "faults": sum(injected.values()),
        "injected": {kind: injected[kind] for kind in KINDS if injected[kind]},
        "driver_starts": sum(run["starts"] for run in runs),
        "starts_on_an_overloaded_machine": sum(run["overloaded"] for run in runs),
        "trials": dict(sorted(sum((Counter(run["states"]) for run in runs), Counter()).items())),
        "compared_with_undisturbed": sum(run["compared"] for run in runs),
        "several_faults": sum(len(run["injected"]) > 1 for run in runs),
        "violations": sum(len(run["violations"]) for run in runs),
        "run_seconds": round(sum(run["seconds"] for run in runs), 1),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }


def table(summary: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [
        ("runs", summary["runs"]),
        ("  with several faults", summary["several_faults"]),
        ("  compared with an undisturbed run", summary["compared_with_undisturbed"]),
        ("driver starts", summary["driver_starts"]),
        ("  for nothing, as Ray did not come up", summary["starts_on_an_overloaded_machine"]),
        *((f"trials {state}", count) for state, count in summary["trials"].items()),
        ("faults injected", summary["faults"]),
        *((f"  {kind.replace('_', ' ')}", count) for kind, count in summary["injected"].items()),
        ("seconds of all runs", summary["run_seconds"]),
        ("violations", summary["violations"]),
    ]
    return "\n".join(f"{name:<40}{value:>8}" for name, value in rows)


if __name__ == "__main__":
    sys.exit(main())
