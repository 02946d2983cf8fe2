"""Where the wall time of a study went, from its event log: training, measuring latency, and what is neither.

    time headway run benchmarks/outside/study.yaml --studies DIR
    python benchmarks/outside/measure.py DIR/outside [--elapsed SECONDS] [--out FILE.json]

The time that counts is that of the places trials run in: as many as run side by side, each from the begin of the run
to its end. Of that, *training* is what epochs took with their validations, *latency* the measurement of an
architecture, and the rest is outside: the driver and Ray starting, processes and their imports, building and counting a
design, waiting for the lease while another latency is measured, what an epoch's report waits for, drawing a trial's
pictures, and a place that waits for a trial or stays empty at the end. While the baseline is measured all other places
wait for it; that is *waiting for the baseline*. With ``--elapsed`` the *command*'s own imports before the first event
and Ray's end after the last one count as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


def shares(events: list[dict[str, Any]], elapsed: float | None = None) -> dict[str, Any]:
    """Sums up the places' time in seconds.

    Args:
        events: Of a study that was run once, from begin to end, in the order of its ``events.jsonl``.
        elapsed: Of the whole command, s; by default from the first event to the last one.

    Returns:
        ``places``, ``trials``, ``wall`` (s), and of the places' time (s): ``whole``, ``training``, ``latency``,
        ``baseline`` (others wait for its latency), ``start`` (of the driver and Ray), ``build`` (of processes and
        designs), ``lease`` (another's measurement), ``rest`` (within trials), ``end`` (places that are empty then),
        ``between`` (trials) and ``command`` (before the first event and after the last one).

    Raises:
        ValueError: The study was not run to its end, or more than once; or not within ``elapsed``.
    """
    begun = [event for event in events if event["event"] == "begun"]
    finished = [event for event in events if event["event"] == "finished"]
    if len(begun) != 1 or len(finished) != 1:
        raise ValueError(f"must be a study that was run once to its end, but began {len(begun)} times")
    places = begun[0]["share"]["concurrent"]
    first, last = events[0]["time"], finished[0]["time"]
    took = last - first
    elapsed = took if elapsed is None else elapsed
    if not elapsed >= took:  # nor NaN
        raise ValueError(f"--elapsed: must be {took:.1f} s or more, as the study took, but got {elapsed:g}")
    of: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in events:
        number, metrics = event.get("trial"), event.get("metrics") or {}
        if number is None:
            continue
        trial = of[number]
        if event["event"] == "started":
            trial["started"] = event["at"]
        elif event["event"] == "epoch":
            trial["training"] += metrics["train_seconds"] + metrics["val_seconds"]
        elif event["event"] == "figures" and "gmacs" in metrics:
            trial["counted"] = event["time"]
        elif event["event"] == "figures" and "latency_ratio" in metrics:
            trial["timed"] = event["time"]
            trial["waited"] = (event.get("attrs") or {}).get("speed_waited", 0.0)
        elif event["event"] == "ended":
            trial["ended"] = event["at"]
    trials = [trial for trial in of.values() if "ended" in trial]
    known = min(trial["timed"] for trial in trials)
    found = {"training": 0.0, "latency": 0.0, "build": 0.0, "lease": 0.0, "rest": 0.0}
    for trial in trials:
        counted = trial.get("counted", trial["started"])
        latency = max(trial.get("timed", counted) - counted, 0.0)
        build = counted - trial["started"]
        found["training"] += trial["training"]
        found["latency"] += latency - trial["waited"]
        found["lease"] += trial["waited"]
        found["build"] += build
        found["rest"] += trial["ended"] - trial["started"] - build - latency - trial["training"]
    started = min(trial["started"] for trial in trials)
    ends = sorted((trial["ended"] for trial in trials), reverse=True)[:places]
    found["start"] = places * (started - first)
    found["baseline"] = (places - 1) * (known - started)
    found["end"] = sum(last - end for end in ends)
    found["between"] = places * took - sum(found.values())
    found["command"] = places * (elapsed - took)
    return {"places": places, "trials": len(trials), "wall": elapsed, "whole": places * elapsed, **found}


def main() -> int:
    """Prints them."""
    parser = argparse.ArgumentParser(description="Where the wall time of a study went.")
    parser.add_argument("study", type=Path, help="folder of a study that was run once, to its end")
    parser.add_argument("--elapsed", type=float, metavar="SECONDS", help="of the whole command, as time(1) tells")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    asked = parser.parse_args()
    try:
        lines = (asked.study / "events.jsonl").read_text(encoding="utf-8").splitlines()
        found = shares([json.loads(line) for line in lines], asked.elapsed)
    except (OSError, ValueError) as error:
        print(f"error: {asked.study}: {error}", file=sys.stderr)
        return 2
    outside = found["whole"] - found["training"] - found["latency"]
    print(f"{found['trials']} trials, {found['places']} places, {found['wall']:.0f} s")
    for name in ("training", "latency", "start", "baseline", "build", "lease", "rest", "between", "end", "command"):
        print(f"{name:>9} {found[name]:8.1f} s {found[name] / found['whole']:7.1%}")
    print(f"  outside {outside:8.1f} s {outside / found['whole']:7.1%}")
    if asked.out:
        from trainers.detector import device_name

        content = {**found, "outside": outside, "share": outside / found["whole"], "machine": device_name("cpu")}
        asked.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main())
