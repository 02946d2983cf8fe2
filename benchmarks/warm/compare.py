"""Compares a study that continues from a shared warm start with the same study from scratch: front against compute.

    headway run recipes/bccd.yaml
    headway run recipes/bccd_warm.yaml
    python benchmarks/warm/compare.py studies/bccd studies/bccd-warm [--png OUT.png] [--json]

Front quality is the hypervolume of AP (0 to 1) and latency as a ratio to the study's own baseline, so that both runs
compare whatever the machine did meanwhile. The reference point is that of the scratch study's baseline for both: AP 0
and twice its latency, a ratio of 2. Compute is the wall time of all trials that ended so far, the warm start included.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from analysis.pareto import default_reference, front, hypervolume_curves
from analysis.record import Objective, TrialRecord
from search.folder import find_study, studies_root
from search.store import Store
from search.study import Study
from spaces.errors import UserError

OBJECTIVES = (Objective("bbox_mAP", "maximize"), Objective("latency_ratio", "minimize"))
SHARES = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
# What must be the same for the two to be one study but for its weights and the epochs after them.
_SAME = ("base", "data", "space", "designs", "objectives", "constraints", "sampler", "training", "seed", "speed")


def read(word: str) -> tuple[Study, list[TrialRecord]]:
    """Reads a study: its name or its folder.

    Raises:
        UserError: There is none, or its baseline is not COMPLETE.
    """
    folder, study = find_study(word, studies_root())
    records = Store.read(folder, study).records()
    try:
        default_reference(records[0], OBJECTIVES)
    except (IndexError, ValueError) as error:
        raise UserError(f"{word}: must be a study with a COMPLETE baseline, but {error}.") from error
    return study, records


def compare(
    scratch: Sequence[TrialRecord], warm: Sequence[TrialRecord], shares: Sequence[float] = SHARES
) -> dict[str, Any]:
    """Compares the trials of two studies.

    Args:
        scratch: Of the study from scratch; its baseline gives the reference point, its end the level of 100 %.
        warm: Of the study that continues from a shared warm start.
        shares: Of the scratch study's final hypervolume, above 0.

    Returns:
        ``reference``; for ``scratch`` and ``warm`` the ``curve`` (see ``hypervolume_curves``), ``hypervolume`` and
        ``compute_hours`` at the end, ``warm_hours`` of the warm start (0 without), and the ``front`` as rows of trial,
        AP and ratio; and ``levels``: by share the hours of both until they reach it, ``None`` where they never do, and
        their ``ratio``.
    """
    reference = default_reference(scratch[0], OBJECTIVES)
    found: dict[str, Any] = {"reference": dict(zip((item.metric for item in OBJECTIVES), reference, strict=True))}
    for name, records in (("scratch", scratch), ("warm", warm)):
        curve = hypervolume_curves(records, OBJECTIVES, reference)
        found[name] = {
            "hypervolume": curve[-1]["hypervolume"],
            "compute_hours": curve[-1]["compute_hours"],
            "warm_hours": records[0].attrs.get("warm_seconds", 0.0) / 3600,
            "trials": len(records),
            "epochs": sum(len(record.curve) for record in records) + records[0].attrs.get("warm_epochs", 0),
            "front": [
                {"trial": point.label, **{item.metric: point.metrics[item.metric] for item in OBJECTIVES}}
                for point in front(records, OBJECTIVES)
            ],
            "curve": curve,
        }
    found["levels"] = [_level(found, share) for share in shares]
    return found


def _level(found: Mapping[str, Any], share: float) -> dict[str, Any]:
    wanted = share * found["scratch"]["hypervolume"]
    hours = {name: hours_until(found[name]["curve"], wanted) for name in ("scratch", "warm")}
    ratio = hours["warm"] / hours["scratch"] if hours["warm"] is not None and hours["scratch"] else None
    return {"share": share, "hypervolume": wanted, **hours, "ratio": ratio}


def hours_until(curve: Sequence[Mapping[str, Any]], wanted: float) -> float | None:
    """Gives the compute hours after which a curve has come to ``wanted``, ``None`` where it never does."""
    # The last bit of a sum differs with what is summed up.
    reached = (row["compute_hours"] for row in curve if row["hypervolume"] >= wanted * (1 - 1e-12))
    return next(reached, None)


def differences(one: Study, other: Study) -> list[str]:
    """Names the keys by which two studies differ in more than their weights and epochs."""
    mine, theirs = one.dump(), other.dump()
    found = [key for key in _SAME if mine.get(key) != theirs.get(key)]
    return found + ["budget.trials"] * (one.budget.trials != other.budget.trials)


def table(found: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table."""
    lines = ["| | from scratch | from the warm start | ratio |", "|---|---|---|---|"]
    one, other = found["scratch"], found["warm"]

    def row(words: str, mine: float | None, theirs: float | None, digits: int) -> None:
        cells = ["never" if value is None else f"{value:.{digits}f}" for value in (mine, theirs)]
        ratio = "-" if mine is None or theirs is None or not mine else f"{theirs / mine:.2f}"
        lines.append(f"| {words} | {cells[0]} | {cells[1]} | {ratio} |")

    row("hypervolume at the end", one["hypervolume"], other["hypervolume"], 4)
    row("compute hours at the end", one["compute_hours"], other["compute_hours"], 3)
    row("of them the warm start", one["warm_hours"], other["warm_hours"], 3)
    row("epochs trained", one["epochs"], other["epochs"], 0)
    for level in found["levels"]:
        row(f"hours to {level['share']:.0%} of scratch's end", level["scratch"], level["warm"], 3)
    return "\n".join(lines)


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Draws both curves."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2), dpi=150)
    for name, words, colour, style in (
        ("scratch", "from scratch", "#0072B2", "--"),
        ("warm", "from a shared warm start", "#D55E00", "-"),
    ):
        rows = found[name]["curve"]
        hours, volumes = ([0.0, *(row[key] for row in rows)] for key in ("compute_hours", "hypervolume"))
        axis.step(hours, volumes, where="post", color=colour, linestyle=style, label=words)
    end = found["scratch"]["hypervolume"]
    axis.axhline(end, color="#999999", linewidth=0.8)
    axis.annotate("scratch's end", (0, end), textcoords="offset points", xytext=(2, 3), fontsize=8, color="#555555")
    axis.set_xlabel("compute (hours of all trials that ended)")
    axis.set_ylabel("hypervolume (AP x latency ratio)")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.legend(loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scratch", help="the study from scratch: its name or folder")
    parser.add_argument("warm", help="the study from a shared warm start")
    parser.add_argument("--png", type=Path, help="where to draw both curves")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(words)
    try:
        (one, scratch), (other, warm) = read(options.scratch), read(options.warm)
        found = compare(scratch, warm)
        if options.png:
            try:
                plot(found, options.png)
            except (OSError, ValueError) as error:
                raise UserError(f"--png: must be a picture that can be written, but {options.png}: {error}.") from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found["differ"] = differences(one, other)
    if options.json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        print(table(found))
    if found["differ"]:
        print(f"The two studies also differ in: {', '.join(found['differ'])}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
