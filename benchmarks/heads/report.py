"""Puts the tables of ``results/`` and ``operators/`` into the documentation, between the two marks there.

python benchmarks/heads/report.py            # writes docs/speed.md and benchmarks/README.md
python benchmarks/heads/report.py --print    # prints them instead
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [] if os.environ.get("PYTHONPATH") else [str(ROOT)]

from benchmarks.heads.cases import CASES, Case  # noqa: E402
from benchmarks.heads.run import PARTS, read  # noqa: E402

BEGIN, END = "<!-- benchmarks/heads/report.py writes from here -->", "<!-- to here -->"
PAGES = (ROOT / "docs/speed.md", ROOT / "benchmarks/README.md")
_HEAD = (
    "| design | size | batch | times as fast (quartiles) | multiply-adds allow | bytes allow | reached | pairs |",
    "|---|---|---|---|---|---|---|---|",
)
_OPERATORS = {
    "dcn-1": "deformable, version 1, without the layer that makes its offsets",
    "dcn-2": "deformable, version 2, likewise",
    "dcn-1-layer": "the whole deformable layer, version 1",
    "dcn-2-layer": "the whole deformable layer, version 2",
    "pod-learning": "a learned scale",
    "pod-51+205": "decomposed, 51 + 205 channels",
    "pod-48+208": "decomposed, 48 + 208 channels",
    "pod-64+192": "decomposed, 64 + 192 channels",
}
_RIVALS = {"mmcv": "mmcv's operator", "plain": "the plain convolution"}


def text() -> str:
    """All that the pages show."""
    found = [tables((HERE / "results").glob("*.jsonl")), operators((HERE / "operators").glob("*.json"))]
    return "\n\n".join(filter(None, found))


def operators(files: Iterable[Path]) -> str:
    """The tables of convolutions by themselves as Markdown, one for each machine."""
    blocks = []
    for file in sorted(files):
        document = json.loads(file.read_text(encoding="utf-8"))
        rows = [
            f"| {_OPERATORS[line['case']]} | {line['way']} | {_RIVALS[line['against']]} | "
            f"**{line['speedup']:.2f}** ({line['q1']:.2f} to {line['q3']:.2f}) | {line['pairs']} |"
            for line in document["measured"]
        ]
        title = f"**Convolutions by themselves, {heading(document['machine'])}** (`{file.name}`)"
        head = "| convolution | way | against | times as fast (quartiles) | pairs |\n|---|---|---|---|---|"
        blocks.append("\n\n".join([title, "\n".join([head, *rows])]))
    return "\n\n".join(blocks)


def tables(files: Iterable[Path], cases: Sequence[Case] = CASES) -> str:
    """The tables of some results files as Markdown, for each machine the whole detectors and then their parts."""
    blocks = []
    for file in sorted(files):
        described, lines = read(file)
        if described is None or not lines:
            continue
        blocks.append(f"**{heading(described)}** (`{file.name}`)")
        for part, words in zip(PARTS, ("Whole detectors, from normalised images to boxes", "Parts alone"), strict=True):
            asked = "dtype" not in described  # of networks in float32
            rows = [row(line, case, asked) for case in cases for line in _of(lines, case, part)]
            if rows:
                blocks += [f"{words}:", "\n".join([*_HEAD, *rows])]
    return "\n\n".join(blocks)


def heading(described: Mapping[str, Any]) -> str:
    """A machine in words."""
    cores = f"{described['threads']} of {described['cores']} cores"
    what = described["name"] if described["device"] == "cuda" else f"{described['name']}, {cores}"
    speaks = f"{described['instructions']}, " if described["device"] == "cpu" else ""
    kind = f", in {described['dtype']}" if "dtype" in described else ""
    return f"{what}, {speaks}{described['memory_gb']} GB, torch {described['torch']}{kind}"


def row(line: Mapping[str, Any], case: Case, asked: bool = True) -> str:
    """One measurement as a row, with what was asked of it where ``asked`` is set."""
    title = case.title if line["part"] == "whole" else f"{case.title}: {case.part}"
    size = f"{line['size'][0]}x{line['size'][1]}" if line["size"] else "any"
    if asked and case.asked and line["part"] == "whole" and line["batch"] == 1 and line["size"] == [800, 1344]:
        title += f" (asked: {case.asked:g})"
    speedup = f"**{line['speedup']:.3f}** ({1 / line['q3']:.3f} to {1 / line['q1']:.3f})"
    bounds = f"{line['bound_by_macs']:.3f} | {line['bound_by_bytes']:.3f} | {100 * line['reached_of_macs']:.0f} %"
    return f"| {title} | {size} | {line['batch']} | {speedup} | {bounds} | {line['pairs']} |"


def _of(lines: Iterable[Mapping[str, Any]], case: Case, part: str) -> list[Mapping[str, Any]]:
    """A case's measurements, large images first, then large batches."""
    own = [line for line in lines if line["case"] == case.name and line["part"] == part]
    return sorted(own, key=lambda line: (-math.prod(line["size"] or [0]), line["batch"]))


def put(page: str, found: str) -> str:
    """Gives a page with ``found`` between its marks.

    Raises:
        ValueError: It has none.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"must have {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{found}\n{END}{after}"


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--print", action="store_true", help="print the tables and write nothing")
    options = parser.parse_args(words)
    if options.print:
        print(text())
        return 0
    for page in PAGES:
        page.write_text(put(page.read_text(encoding="utf-8"), text()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
