"""Measures the latencies of a recorded table anew; what was trained stays as it is.

    OMP_NUM_THREADS=1 python benchmarks/search/remeasure.py benchmarks/search/digits_table.parquet

Each architecture is measured once, as a trial does it: untrained, against the base, in pairs, with the ``speed`` of the
table's study. All designs of an architecture get its figures. Simulated seconds stay those of the recording.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from spaces.base import facts
from spaces.errors import UserError
from spaces.space import build_space, design_hash
from trainers import speed
from trainers.config import load_base
from trainers.detector import device_name
from trainers.means import settle
from trainers.profile import build_patched
from trainers.replay import Table

FIGURES = ("latency_ratio", "latency_ratio_q1", "latency_ratio_q3", "latency_pairs", "measured_ms")


def remeasured(table: Table, classes: int, *, threads: int = 1) -> Table:
    """Gives the table with new latencies.

    Args:
        table: Recorded on a CPU.
        classes: Of its data set.
        threads: CPU threads.

    Raises:
        UserError: It was recorded on another device.
    """
    settle(threads)
    asked = table.study["speed"]
    if asked["device"] not in ("auto", "cpu") or table.about.get("speed_kind", "cpu") != "cpu":
        raise UserError(f"table: must be of a CPU, but {table.name} has latencies of {table.about['speed_device']}.")
    base_config = table.study["base"]
    space = build_space(table.study["space"], facts(load_base(base_config).model.to_dict()))
    size = tuple(asked["size"] or table.study["data"]["size"])
    inputs = speed.make_inputs(size, asked["batch"])
    base = build_patched(base_config, {}, classes)
    known: dict[str, dict[str, float]] = {}
    reference = 0.0
    entries = []
    keys = {design_hash(space.architecture(entry.knobs)) for entry in table.entries}
    for entry in sorted(table.entries, key=lambda entry: entry.trial):
        key = design_hash(space.architecture(entry.knobs))
        if key not in known:
            found = speed.measure(
                build_patched(base_config, entry.knobs, classes),
                base,
                inputs,
                pairs=asked["pairs"],
                seconds=asked["seconds"],
                postprocess=asked["postprocess"],
            )
            reference = reference or found.baseline_ms
            values = (found.ratio, found.q1, found.q3, float(found.pairs), found.candidate_ms)
            known[key] = dict(zip(FIGURES, values, strict=True))
            print(
                f"[{len(known)}/{len(keys)}] trial {entry.trial}: {found.ratio:.3f} ({found.q1:.3f}-{found.q3:.3f}, "
                f"{found.pairs} pairs), {found.candidate_ms:.1f} against {found.baseline_ms:.1f} ms",
                file=sys.stderr,
                flush=True,
            )
        fresh = known[key]
        if not entry.knobs:
            # The base against a second build of itself: 1 by definition; what was measured tells the noise.
            noise = {name.replace("latency", "aa"): value for name, value in fresh.items() if "ratio" in name}
            fresh = {**fresh, **dict.fromkeys(FIGURES[:3], 1.0), **noise}
        rows = tuple(
            replace(row, metrics={**row.metrics, **fresh}) if row.phase == "timed" else row for row in entry.rows
        )
        entries.append(replace(entry, rows=rows))
    about: dict[str, Any] = {
        **table.about,
        "remeasured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "speed_device": device_name("cpu"),
    }
    return replace(table, entries=tuple(entries), reference_ms=reference, about=about)


def main() -> int:
    """Measures, and writes the table in its place."""
    parser = argparse.ArgumentParser(description="Measures the latencies of a recorded table anew.")
    parser.add_argument("table", type=Path)
    parser.add_argument("--classes", type=int, default=10, help="of its data set (default: the embedded data's 10)")
    parser.add_argument("--out", type=Path, help="where to write it (default: in its place)")
    asked = parser.parse_args()
    try:
        remeasured(Table.read(asked.table), asked.classes).write(asked.out or asked.table)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
