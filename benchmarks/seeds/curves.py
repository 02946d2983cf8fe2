"""Puts the same study with several seeds into one table: each point's accuracy and latency, as mean and spread.

    python benchmarks/seeds/curves.py benchmarks/studies/bccd_querydet_s*.json

Each file is what ``headway front STUDY --json`` printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(fronts: Sequence[Sequence[dict[str, Any]]], knob: str) -> str:
    """Writes a markdown table with a row for the baseline and one for each value of ``knob``.

    Args:
        fronts: One list of points a seed.
        knob: The swept knob, ``querydet.threshold`` for instance.
    """
    columns = (("bbox_mAP", 100, 1), ("bbox_mAP_s", 100, 1), ("latency_ratio", 1, 2), ("gmacs", 1, 2))
    lines = [
        f"| {knob.partition('.')[2]} | AP % | AP small % | AP small, against the base | latency x baseline | GMACs "
        "| seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    values = sorted({point["knobs"][knob] for front in fronts for point in front if knob in point["knobs"]})
    bases = [next(point for point in front if point["baseline"]) for front in fronts]
    for value in (None, *values):
        found = [
            (point, base)
            for front, base in zip(fronts, bases, strict=True)
            for point in front
            if (point["baseline"] if value is None else point["knobs"].get(knob) == value)
        ]
        points = [point for point, _ in found]
        figures = [
            spread([factor * point["metrics"][name] for point in points], digits) for name, factor, digits in columns
        ]
        gain = [100 * (point["metrics"]["bbox_mAP_s"] - base["metrics"]["bbox_mAP_s"]) for point, base in found]
        figures.insert(2, "" if value is None else spread(gain, 1, sign="+"))
        lines.append(f"| {'the base' if value is None else value} | {' | '.join(figures)} | {len(points)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Words a mean and the sample standard deviation."""
    middle = f"{statistics.fmean(values):{sign}.{digits}f}"
    return f"{middle} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else middle


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("fronts", type=Path, nargs="+", help="what 'headway front STUDY --json' printed, one a seed")
    parser.add_argument("--knob", default="querydet.threshold")
    options = parser.parse_args()
    print(table([json.loads(path.read_text(encoding="utf-8")) for path in options.fronts], options.knob))


if __name__ == "__main__":
    main()
