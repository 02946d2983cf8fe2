"""What ``headway selftest`` asks for and prints."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from search.study import load
from spaces.errors import UserError


def speed(options: argparse.Namespace, size: tuple[int, int] | None) -> dict[str, Any]:
    """Runs the A/A test of latency.

    Args:
        options: Of the command line.
        size: Height and width of the input in px, ``None`` for the study's, or 256x256.

    Raises:
        UserError: An option is wrong, or the base cannot be built.
    """
    for name, value, least in (
        ("pairs", options.pairs, 1),
        ("repeats", options.repeats, 2),
        ("threads", options.threads, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"--{name}: must be {least} or more, but got {value}.")
    if options.seconds is not None and options.seconds <= 0:
        raise UserError(f"--seconds: must be above 0, but got {options.seconds:g}.")
    out = Path(options.out) if options.out else None
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out: must lie in a folder that exists, but there is no {out.parent}.")
    from trainers.selftest import speed_selftest

    study = load(Path(options.study)) if options.study else None
    section = study.speed if study else None
    device = options.device or (section.device if section and section.device != "auto" else "cpu")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device: must be cpu here, since no GPU can be used, but got cuda.")
    found = speed_selftest(
        options.base or (study.base if study else "headway::gfl_tiny"),
        size=size or (study.speed_size if study else (256, 256)),
        device=device,
        dtype=options.dtype or (section.dtype if section else "float32"),
        threads=options.threads or 1,
        pairs=options.pairs or (section.pairs if section else 9),
        seconds=options.seconds or (section.seconds if section else 5.0),
        repeats=options.repeats,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def print_speed(found: Mapping[str, Any]) -> None:
    """Prints the A/A test of latency."""
    from search.tables import new_console

    console = new_console()
    height, width = found["size"]
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    dtype = "" if found["dtype"] == "float32" else f" in {found['dtype']}"
    table = Table(
        title=f"{found['base']} against itself at {height}x{width} on {found['device']}{dtype}, {threads}, "
        f"{found['repeats']} repetitions; 1 is right"
    )
    table.add_column("")
    for name in ("in turns", "min..max", "quartiles within", "one after the other", "min..max", "passes each"):
        table.add_column(name, justify="right")
    for row in found["rows"]:
        other = row["unpaired"]
        table.add_row(
            row["beside"],
            f"{row['ratio']:.4f}",
            f"{row['low']:.4f}..{row['high']:.4f}",
            f"{row['q1']:.3f}..{row['q3']:.3f}",
            f"{other['ratio']:.4f}",
            f"{other['low']:.4f}..{other['high']:.4f}",
            f"{row['pairs']:.0f}",
        )
    console.print(table)
    console.print(found["believe"], markup=False)
