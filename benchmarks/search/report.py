"""Makes tables and plots of what ``run.py`` has found.

    python benchmarks/search/report.py [--results FOLDER]

Writes ``summary.json``, ``tables.md`` (printed as well) and a PNG a problem into the folder of the results.

Compute is counted in full trainings of the baseline, building and timing included. All intervals are 95 % bootstrap
intervals of medians over seeds (percentiles of 4,000 resamples, nearest rank). Ratios and differences resample both
sides with the same seeds. A seed that does not reach a level within the budget counts as infinite; where a rival's
median is infinite, its budget stands for it, and the ratio is an upper bound (``≤``).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.search.problems import SHAPES, TABLES
from benchmarks.search.rivals import RIVALS
from benchmarks.search.run import RESULTS, file_of, read

LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)
BUDGETS = 10
RESAMPLES = 4000
OURS = "headway"
# Column of a result's curve.
MEASURES = {"hypervolume": 2, "hypervolume_any": 3}

# Okabe and Ito's colours, which colour-blind readers can tell apart, and line styles beside.
_LOOKS: Mapping[str, tuple[str, Any]] = {
    "headway": ("#000000", "-"),
    "random": ("#999999", "--"),
    "optuna_fifo": ("#0072B2", "-."),
    "optuna_asha": ("#D55E00", ":"),
    "moasha": ("#009E73", (0, (4, 1, 1, 1, 1, 1))),
    "headway_mo_asha": ("#CC79A7", "--"),
    "headway_no_rungs": ("#56B4E9", "-."),
    "moasha_ranked": ("#E69F00", ":"),
}
_NAMES: Mapping[str, str] = {
    "headway": "Headway",
    "random": "random search",
    "optuna_fifo": "OptunaSearch, FIFO",
    "optuna_asha": "OptunaSearch, ASHA",
    "moasha": "Syne Tune MO-ASHA",
    "headway_mo_asha": "Headway, MO-ASHA rungs",
    "headway_no_rungs": "Headway, no rungs",
    "moasha_ranked": "Syne Tune MO-ASHA, ranks mended",
}
# Left what users can have today, right what Headway's parts contribute.
_PANELS = (
    ("headway", "random", "optuna_fifo", "optuna_asha", "moasha"),
    ("headway", "headway_mo_asha", "headway_no_rungs", "moasha_ranked"),
)


@dataclass(frozen=True)
class Searches:
    """A rival's results on a problem, by seed.

    Attributes:
        seeds: Ascending.
        compute: By seed, compute in full trainings at each change, ascending.
        shares: By measure and seed, share of the best known hypervolume at the same places.
        budget: In full trainings.
        trials: Median numbers of trials begun, complete and stopped.
        driver_seconds: Median CPU time of a search.
        versions: Of the libraries.
    """

    seeds: tuple[int, ...]
    compute: tuple[np.ndarray, ...]
    shares: Mapping[str, tuple[np.ndarray, ...]]
    budget: float
    trials: Mapping[str, float]
    driver_seconds: float
    versions: Mapping[str, str]

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> Searches:
        """Reads the lines of one file; of a seed that two runs did at once, one."""
        by_seed = {line["seed"]: line for line in lines}
        lines = [by_seed[seed] for seed in sorted(by_seed)]
        curves = [np.array(line["curve"]) for line in lines]
        unit, best = lines[0]["training_seconds"], lines[0]["best"]
        return cls(
            seeds=tuple(line["seed"] for line in lines),
            compute=tuple(curve[:, 0] / unit for curve in curves),
            shares={name: tuple(curve[:, column] / best for curve in curves) for name, column in MEASURES.items()},
            budget=lines[0]["budget"] / unit,
            trials={
                key: float(np.median([line["trials"][key] for line in lines]))
                for key in ("begun", "complete", "stopped")
            },
            driver_seconds=float(np.median([line["driver_seconds"] for line in lines])),
            versions=lines[0]["versions"],
        )

    def at(self, compute: np.ndarray, measure: str) -> np.ndarray:
        """Gives the shares that were reached with the given compute, (seeds, compute)."""
        rows = []
        for places, shares in zip(self.compute, self.shares[measure]):
            index = np.searchsorted(places, compute, side="right")
            rows.append(np.concatenate([[0.0], shares])[index])
        return np.array(rows)

    def reach(self, level: float, measure: str) -> np.ndarray:
        """Gives the compute at which each seed reaches a share, infinite where it does not within the budget."""
        found = []
        for places, shares in zip(self.compute, self.shares[measure]):
            index = int(np.argmax(shares >= level))
            reached = shares[index] >= level and places[index] <= self.budget
            found.append(places[index] if reached else math.inf)
        return np.array(found)


def resamples(seeds: int, count: int = RESAMPLES) -> np.ndarray:
    """Draws seeds with replacement, (count, seeds); always the same ones."""
    return np.random.default_rng(0).integers(0, seeds, (count, seeds))


def interval(medians: np.ndarray) -> tuple[Any, Any]:
    """Gives the 95 % interval along the first axis; nearest rank, so that infinite values do no harm."""
    low, high = np.quantile(medians, [0.025, 0.975], axis=0, method="nearest")
    return low, high


def medians(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Gives the median of each resample of (seeds, ...) values, (draws, ...)."""
    return np.sort(values[draws], axis=1)[:, _middle(len(values))].mean(axis=1)


def _middle(count: int) -> list[int]:
    return [(count - 1) // 2, count // 2]


def median(values: np.ndarray) -> Any:
    """Gives the median over the first axis; infinite as soon as one of the middle values is."""
    return np.sort(values, axis=0)[_middle(len(values))].mean(axis=0)


def ratio(ours: Any, theirs: Any, budget: float) -> Any:
    """Divides, with the rival's budget for what it never reaches; NaN where neither reaches it."""
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    neither = np.isinf(ours) & np.isinf(theirs)
    return np.where(neither, math.nan, ours / np.where(np.isinf(theirs), budget, theirs))


# --- Figures ---------------------------------------------------------------------------------------------------------


def compare(ours: Searches, theirs: Searches, measure: str) -> dict[str, Any]:
    """Compares Headway with a rival on the seeds that both have."""
    common = sorted(set(ours.seeds) & set(theirs.seeds))
    mine, other = ([side.seeds.index(seed) for seed in common] for side in (ours, theirs))
    draws = resamples(len(common))
    levels = {}
    for level in LEVELS:
        one, two = ours.reach(level, measure)[mine], theirs.reach(level, measure)[other]
        found = ratio(medians(one, draws), medians(two, draws), theirs.budget)
        found = found[~np.isnan(found)]
        low, high = interval(found) if len(found) else (math.nan, math.nan)
        levels[f"{level:g}"] = {
            "ratio": _plain(ratio(median(one), median(two), theirs.budget)),
            "interval": [_plain(low), _plain(high)],
            "bound": bool(np.isinf(median(two))),
        }
    budgets = np.geomspace(0.05, 1, BUDGETS) * ours.budget
    one, two = ours.at(budgets, measure)[mine], theirs.at(budgets, measure)[other]
    low, high = interval(medians(two, draws) - medians(one, draws))
    rows = [
        {
            "compute": _plain(budgets[index]),
            "headway": _plain(median(one)[index]),
            "rival": _plain(median(two)[index]),
            "difference": [_plain(low[index]), _plain(high[index])],
            "verdict": "ahead" if low[index] > 0 else "behind" if high[index] < 0 else "level",
        }
        for index in range(BUDGETS)
    ]
    return {"seeds": len(common), "levels": levels, "budgets": rows}


def summarise(found: Mapping[str, Mapping[str, Searches]]) -> dict[str, Any]:
    """Gives everything that tables and plots show, as plain JSON types."""
    summary: dict[str, Any] = {}
    for name, rivals in found.items():
        rows: dict[str, Any] = {}
        for rival, searches in rivals.items():
            draws = resamples(len(searches.seeds))
            row: dict[str, Any] = {
                "seeds": len(searches.seeds),
                "trials": dict(searches.trials),
                "driver_seconds": searches.driver_seconds,
                "versions": dict(searches.versions),
            }
            for measure in MEASURES:
                reach = {}
                for level in LEVELS:
                    seconds = searches.reach(level, measure)
                    low, high = interval(medians(seconds, draws))
                    reach[f"{level:g}"] = {
                        "median": _plain(median(seconds)),
                        "interval": [_plain(low), _plain(high)],
                        "reached": int(np.isfinite(seconds).sum()),
                    }
                last = searches.at(np.array([searches.budget]), measure)[:, 0]
                low, high = interval(medians(last, draws))
                final = {"median": _plain(median(last)), "interval": [_plain(low), _plain(high)]}
                row[measure] = {"reach": reach, "final": final}
                if rival != OURS and OURS in rivals:
                    row[measure]["against_headway"] = compare(rivals[OURS], searches, measure)
            rows[rival] = row
        budget = next(iter(rivals.values())).budget
        summary[name] = {"budget": _plain(budget), "rivals": rows}
    return summary


def _plain(value: Any) -> float | None:
    # JSON has neither NaN nor infinity.
    return float(f"{float(value):.5g}") if math.isfinite(value) else None


# --- Tables ----------------------------------------------------------------------------------------------------------


def tables(summary: Mapping[str, Any]) -> str:
    """Writes Markdown."""
    parts = [_verdicts(summary)]
    for name, of in summary.items():
        parts.append(f"## {name}\n\nBudget: compute of {of['budget']:.0f} full trainings.")
        for measure, words in (
            ("hypervolume", "fully trained designs count"),
            ("hypervolume_any", "stopped designs count too, with the accuracy they had"),
        ):
            parts.append(f"Full trainings' worth of compute until a share of the best known hypervolume; {words}:")
            parts.append(_reach(of["rivals"], measure))
        parts.append("Headway's compute as a multiple of the rival's:")
        parts.append(_ratios(of["rivals"]))
    return "\n\n".join(parts) + "\n"


def _verdicts(summary: Mapping[str, Any]) -> str:
    lines = [
        ["problem", "Headway's final share", "compute to 95 %, Headway / random", "Headway / OptunaSearch FIFO",
         "rivals ahead beyond the interval, at how many of 10 budgets"],
    ]  # fmt: skip
    for name, of in summary.items():
        rivals = of["rivals"]
        if OURS not in rivals:
            continue
        ahead = {
            rival: sum(item["verdict"] == "ahead" for item in row["hypervolume"]["against_headway"]["budgets"])
            for rival, row in rivals.items()
            if rival != OURS
        }
        told = ", ".join(f"{_NAMES[rival]} {count}" for rival, count in ahead.items() if count)
        final = rivals[OURS]["hypervolume"]["final"]
        cells = [name, f"{_share(final['median'])} {_span(final['interval'], _share)}"]
        for rival in ("random", "optuna_fifo"):
            cells.append(_ratio(rivals[rival], "0.95") if rival in rivals else "")
        lines.append([*cells, told or "none"])
    return "# Headway against what can be put together from the libraries\n\n" + _markdown(lines)


def _reach(rivals: Mapping[str, Any], measure: str) -> str:
    head = ["", "seeds", *(f"{level:.0%}" for level in LEVELS), "share at the end", "trials (complete)", "CPU s"]
    lines = [head]
    for rival, row in rivals.items():
        cells = [_NAMES[rival], str(row["seeds"])]
        for level in LEVELS:
            item = row[measure]["reach"][f"{level:g}"]
            if item["median"] is None:
                cells.append(f"not reached ({item['reached']} of {row['seeds']})" if item["reached"] else "not reached")
            else:
                cells.append(f"{item['median']:.1f} {_span(item['interval'], lambda value: f'{value:.1f}')}")
        final = row[measure]["final"]
        cells.append(f"{_share(final['median'])} {_span(final['interval'], _share)}")
        cells.append(f"{row['trials']['begun']:.0f} ({row['trials']['complete']:.0f})")
        lines.append([*cells, f"{row['driver_seconds']:.1f}"])
    return _markdown(lines)


def _ratios(rivals: Mapping[str, Any]) -> str:
    lines = [["Headway against", *(f"{level:.0%}" for level in LEVELS), "ahead / level / behind at 10 budgets"]]
    for rival, row in rivals.items():
        if "against_headway" not in row["hypervolume"]:
            continue
        verdicts = [item["verdict"] for item in row["hypervolume"]["against_headway"]["budgets"]]
        # Seen from Headway.
        counts = [verdicts.count(word) for word in ("behind", "level", "ahead")]
        cells = [_ratio(row, f"{level:g}") for level in LEVELS]
        lines.append([_NAMES[rival], *cells, " / ".join(map(str, counts))])
    return _markdown(lines)


def _ratio(row: Mapping[str, Any], level: str) -> str:
    against = row["hypervolume"]["against_headway"]["levels"][level]
    if against["ratio"] is None:
        return "neither" if against["bound"] else "Headway does not"
    sign = "≤ " if against["bound"] else ""
    return f"{sign}{against['ratio']:.2f} {_span(against['interval'], lambda value: f'{value:.2f}')}"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _span(ends: Sequence[float | None], words: Any) -> str:
    low, high = ("∞" if end is None else words(end) for end in ends)
    return f"[{low}, {high}]"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# --- Plots -----------------------------------------------------------------------------------------------------------


def plot(name: str, rivals: Mapping[str, Searches], path: Path) -> None:
    """Draws the median share against compute, with intervals: rivals on the left, Headway's parts on the right."""
    panels = [[rival for rival in panel if rival in rivals] for panel in _PANELS]
    budget = next(iter(rivals.values())).budget
    places = np.geomspace(2, budget, 240)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    low = 1.0
    high = max(float(np.nanmax(median(rivals[rival].at(places, "hypervolume")))) for panel in panels for rival in panel)
    for axis, panel, title in zip(axes, panels, ("what can be put together today", "Headway's parts")):
        for rival in panel:
            searches = rivals[rival]
            values = searches.at(places, "hypervolume")
            _line(axis, rival, places, values)
            low = min(low, float(np.nanmin(median(values)[places > budget / 4], initial=1.0)))
        axis.set_xscale("log")
        axis.set_xlim(2, budget)
        ticks = [tick for tick in (2, 5, 10, 20, 50, 100, 200) if tick <= budget]
        axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axis.set_xlabel("compute (full trainings of the baseline)")
        axis.set_title(title, fontsize=11)
        axis.grid(color="0.9")
        axis.legend(frameon=False, fontsize=9, loc="lower right" if high > 0.6 else "upper left")
    axes[0].set_ylabel("share of the best known hypervolume")
    # Most happens near the top; what lies below half of the worst rival's later share is start-up.
    axes[0].set_ylim(max(0.0, 0.6 * low), 1.01 if high > 0.6 else 1.5 * high)
    axes[0].yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    seeds = min(len(searches.seeds) for searches in rivals.values())
    figure.suptitle(f"{name}: medians over {seeds} seeds with 95 % intervals", fontsize=12)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(axis: Axes, rival: str, places: np.ndarray, values: np.ndarray) -> None:
    colour, style = _LOOKS[rival]
    low, high = interval(medians(values, resamples(len(values), 1000)))
    axis.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    width = 2.4 if rival == OURS else 1.8
    axis.plot(places, median(values), color=colour, linestyle=style, linewidth=width, label=_NAMES[rival])


# --- Command ---------------------------------------------------------------------------------------------------------


def load(folder: Path) -> dict[str, dict[str, Searches]]:
    """Reads all results, by problem and rival, in the order of their definition."""
    found: dict[str, dict[str, Searches]] = {}
    for name in (*SHAPES, *TABLES):
        for rival in RIVALS:
            lines = read(file_of(folder, name, rival))
            if lines:
                found.setdefault(name, {})[rival] = Searches.of(lines)
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(words)
    found = load(options.results)
    if not found:
        print(f"error: --results: must hold what run.py wrote, but {options.results} has none.", file=sys.stderr)
        return 2
    summary = summarise(found)
    text = tables(summary)
    (options.results / "summary.json").write_text(
        json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    (options.results / "tables.md").write_text(text, encoding="utf-8")
    for name, rivals in found.items():
        plot(name, rivals, options.results / f"{name}.png")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
