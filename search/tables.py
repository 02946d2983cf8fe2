"""What commands print: tables for people, plain rows for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.labels import axis, short
from analysis.pareto import default_reference, front_rows, hypervolume
from analysis.record import TrialRecord, TrialState
from analysis.savings import Saving, savings
from search.study import Study

if TYPE_CHECKING:
    from analysis.draw import Drawn
    from analysis.export_front import Exported
    from search.plan import Plan


def rows(records: Sequence[TrialRecord], study: Study) -> list[dict[str, Any]]:
    """The points of ``front --json``: all COMPLETE trials."""
    names = {record.number: record.attrs.get("name") for record in records}
    found = [dict(row) for row in front_rows(records, study.objective_records)]
    return [{**row, "name": names[row["trial"]]} if names[row["trial"]] else row for row in found]


def summary(records: Sequence[TrialRecord], study: Study, folder: Path) -> dict[str, Any]:
    """The document of ``status --json``."""
    objectives = study.objective_records
    counts = Counter(record.state.value for record in records)
    volume = None
    if records and records[0].state is TrialState.COMPLETE:
        volume = hypervolume(records, objectives, default_reference(records[0], objectives))
    trials = [
        {
            "trial": record.number,
            "state": record.state.value,
            "knobs": dict(record.knobs),
            **({"name": record.attrs["name"]} if record.attrs.get("name") else {}),
            "epochs": len(record.curve),
            "metrics": dict(record.metrics),
            "sweep": [{**vars(point), "knobs": dict(point.knobs)} for point in record.sweep],
            "reason": record.reason,
            "hours": record.compute_hours,
        }
        for record in records
    ]
    return {
        "study": study.name,
        "folder": str(folder),
        "states": {state.value: counts.get(state.value, 0) for state in TrialState},
        "budget": study.budget.model_dump(),
        "compute_hours": sum(record.compute_hours for record in records),
        "hypervolume": volume,
        "warm": _warm(records, study),
        "saved": {saving.what: saving.to_json() for saving in saved(records, study)},
        "trials": trials,
    }


def saved(records: Sequence[TrialRecord], study: Study) -> list[Saving]:
    """What the study did not pay for."""
    return savings(records, study.objective_records, epochs=study.budget.epochs, warm_epochs=study.warm_epochs)


def print_saved(records: Sequence[TrialRecord], study: Study) -> None:
    """Prints what the study did not pay for, if anything."""
    found = saved(records, study)
    if found:
        console = new_console()
        console.print("Saved (hours are estimates, from what an epoch of the same trial took):")
        for saving in found:
            console.print(f"  {saving}", markup=False, highlight=False)


def _warm(records: Sequence[TrialRecord], study: Study) -> dict[str, Any] | None:
    """Where the shared warm start stands, ``None`` without one."""
    if study.warm_epochs is None:
        return None
    attrs, metrics = (records[0].attrs, records[0].metrics) if records else ({}, {})
    return {
        "epochs": study.warm_epochs,
        "epoch": attrs.get("warm_epoch", 0),
        "hours": attrs["warm_seconds"] / 3600 if "warm_seconds" in attrs else None,
        "bbox_mAP": metrics.get("warm_bbox_mAP"),
    }


def print_front(found: Sequence[Mapping[str, Any]], records: Sequence[TrialRecord], study: Study) -> None:
    """Prints the front, then what it rests on."""
    console = new_console()
    objectives = study.objective_records
    costs = [item.metric for item in objectives if item.metric not in ("bbox_mAP", "latency_ms")]
    table = Table(title=f"{study.name}: the front of {' and '.join(item.metric for item in objectives)}")
    for name in ("trial", "AP %", "AP small %", "latency x baseline", "quartiles", "latency ms", "GMACs", "params M"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in costs:
        table.add_column(name, justify="right")
    again = _again_columns(objectives[0].metric) if any(row.get("confirmed") for row in found) else ()
    for name in again:
        table.add_column(name, justify="right", no_wrap=name != "alike")
    table.add_column("design", overflow="fold")
    shown = [row for row in found if row["on_front"] or row["baseline"]]
    for row in shown:
        metrics = row["metrics"]
        mark = "*" if row["dominates_baseline"] else ""
        quartiles = f"{_number(metrics, 'latency_ratio_q1', 1, 3)}-{_number(metrics, 'latency_ratio_q3', 1, 3)}"
        table.add_row(
            f"{row['point']}{mark}",
            _number(metrics, "bbox_mAP", 100, 1),
            _number(metrics, "bbox_mAP_s", 100, 1),
            _number(metrics, "latency_ratio", 1, 3),
            quartiles,
            _number(metrics, "latency_ms", 1, 1),
            _number(metrics, "gmacs", 1, 3),
            _number(metrics, "params_m", 1, 3),
            *(_number(metrics, name, 1, 3) for name in costs),
            *(_again(row.get("confirmed"), objectives[0].metric) if again else ()),
            escape(_design(row)),
        )
    console.print(table)
    counts = Counter(record.state.value for record in records)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    console.print(f"{len(records)} trials: {states}. * is better than the baseline in every objective.")


def _again_columns(metric: str) -> tuple[str, ...]:
    """What a confirmation adds to a point."""
    return (f"{axis(metric).split(' (')[0]} over seeds", "latency again", "alike")


def _again(confirmed: Mapping[str, Any] | None, metric: str) -> tuple[str, ...]:
    if not confirmed:
        return ("-",) * len(_again_columns(metric))
    found = confirmed["metrics"][metric]
    mean, count = 100 * found["mean"], len(found["values"])
    reach = "" if found["high"] is None else f" ± {100 * found['high'] - mean:.1f}"
    failed = f" of {count + len(confirmed['failed'])}" if confirmed["failed"] else ""
    latency = confirmed["latency"]
    timed = f"{latency['ratio']:.3f} ({latency['q1']:.3f}-{latency['q3']:.3f})" if latency else "-"
    return (f"{mean:.1f}{reach} ({count}{failed})", timed, confirmed["mark"])


def print_confirmed(found: Mapping[str, Any], study: Study) -> None:
    """Prints what is left of the front once it was trained again and timed together."""
    console = new_console()
    metric = study.objectives[0].metric
    table = Table(title=f"{study.name}: the front, confirmed")
    accuracy, latency, alike = _again_columns(metric)
    for name in ("trial", accuracy, "as searched", latency, "as searched", alike):
        table.add_column(name, justify="right", no_wrap=name != "alike")
    table.add_column("design", overflow="fold")
    for row in found["points"]:
        metrics, again = row["metrics"], _again(row["confirmed"], metric)
        ends = (_number(metrics, f"latency_ratio_{end}", 1, 3) for end in ("q1", "q3"))
        searched = f"{_number(metrics, 'latency_ratio', 1, 3)} ({'-'.join(ends)})"
        found_then = _number(metrics, metric, 100, 1)
        table.add_row(row["point"], again[0], found_then, again[1], searched, again[2], escape(_design(row)))
    console.print(table)
    console.print(
        "Accuracy is the mean over (n) seeds ± half of its 95 % interval (Student's t); one of the seeds is the "
        "search's own. Latency is a ratio to the baseline (quartiles). ≈ marks neighbours that cannot be told apart."
    )
    for row in found["points"]:
        own = row["confirmed"]
        if own["metrics"][metric]["low"] is None:
            console.print(f"{row['point']}: fewer than 2 seeds gave a result, so there is no interval.", markup=False)
        for seed, reason in own["failed"].items():
            console.print(f"{row['point']}: seed {seed} FAILED: {reason}", markup=False)
    for pair in found["neighbours"]:
        console.print(pair["says"], markup=False)


def _design(row: Mapping[str, Any]) -> str:
    if row["baseline"]:
        return "baseline" if row["on_front"] else "baseline (not on the front)"
    return named(row, short(row["knobs"]))


def named(fields: Mapping[str, Any], design: str) -> str:
    """The design in words, after the name that the study file gives it."""
    return f"{fields['name']}: {design}" if fields.get("name") else design


def print_families(found: Sequence[Mapping[str, Any]]) -> None:
    """Prints the families and their knobs."""
    console = new_console()
    for family in found:
        table = Table(title=f"{family['name']}: {family['title']}", caption=f"{family['paper']}. {_works(family)}")
        for name in ("knob", "legal", "paper's best", "when", "meaning"):
            table.add_column(name, overflow="fold")
        for knob in family["knobs"]:
            default = knob["default"]
            default = list(default) if isinstance(default, tuple) else default
            words = (knob["name"], knob["legal"], str(default), knob["when"], knob["help"])
            table.add_row(*(escape(word) for word in words))
        console.print(table)
    console.print("Levels and positions are shown for a pyramid of P3 to P7 and towers of four convolutions.")


def _works(family: Mapping[str, Any]) -> str:
    """Says what a family needs of a base, and what its designs cannot be exported to."""
    needs = {"dense heads": family["heads"], "box heads": family["box_heads"], "backbones": family["backbones"]}
    told = [f"the {what} {', '.join(types)}" for what, types in needs.items() if types]
    lacks = [f" No {limit['format'].upper()}: {limit['reason']}." for limit in family["not_exportable"]]
    return f"Works on {'; '.join(told)}.{''.join(lacks)}"


def print_profile(found: Mapping[str, Any], config: str, against: str | None) -> None:
    """Prints a profile."""
    console = new_console()
    height, width = found["size"]
    other = found.get("against")
    table = Table(title=f"{config} at {height}x{width}" + (f", against {against}" if against else ""))
    table.add_column("part")
    for name in ("GMACs", "share", *(("against", "ratio") if other else ()), "params M", "share"):
        table.add_column(name, justify="right")
    macs, params = found["macs"], found["params"]
    lines: list[tuple[str, int, int | None, tuple[str, ...]]] = [("total", macs["total"], params["total"], ("total",))]
    lines += [(part, macs["parts"][part], params["parts"].get(part, 0), ("parts", part)) for part in macs["parts"]]
    lines += [(f"head {level}", value, None, ("levels", level)) for level, value in macs["levels"].items()]
    for name, mac, param, path in lines:
        row = [name, f"{mac / 1e9:.2f}", f"{100 * mac / macs['total']:.2f} %"]
        if other:
            there = other["macs"]
            for key in path:
                there = there.get(key, 0)
            row += [f"{there / 1e9:.2f}", f"{mac / there:.4f}" if there else "-"]
        share = f"{100 * param / params['total']:.2f} %" if param is not None else ""
        row += [f"{param / 1e6:.3f}" if param is not None else "", share]
        table.add_row(*row)
    console.print(table)
    latency = found.get("latency")
    if latency:
        dtype = "" if latency["dtype"] == "float32" else f" in {latency['dtype']}"
        console.print(
            f"Latency on {latency['device']}{dtype}: {latency['ratio']:.3f} of {against or 'itself (A/A)'} "
            f"(quartiles {latency['q1']:.3f}-{latency['q3']:.3f}, {latency['pairs']} interleaved pairs), "
            f"that is {latency['speedup']:.2f} times as fast; multiply-adds alone would allow "
            f"{latency['bound_by_macs']:.2f}, bytes alone {latency['bound_by_bytes']:.2f}. "
            f"{latency['ms']:.1f} ms against {latency['against_ms']:.1f} ms.",
            markup=False,
        )
        _print_parts(console, latency, against)


def _print_parts(console: Console, latency: Mapping[str, Any], against: str | None) -> None:
    """Prints where the time goes."""
    table = Table(title="Where the time goes" + (f", against {against}" if against else ""))
    table.add_column("part")
    names = ("against ms", "times as fast", "MACs allow", "bytes allow") if against else ()
    for name in ("ms", "share", "GMACs", "MB moved", *names):
        table.add_column(name, justify="right")
    words = {"head": "rest of the head"}
    lines = [
        (" ".join(filter(None, (words.get(one["part"], one["part"]), one["level"]))), one) for one in latency["parts"]
    ]
    lines += [(f"all of the head on {level}", one) for level, one in latency["levels"].items()]
    for index, (name, one) in enumerate(lines):
        row = [
            f"{one['ms']:.2f}",
            f"{100 * one['share']:.1f} %",
            f"{one['macs'] / 1e9:.2f}",
            f"{one['bytes'] / 1e6:.1f}",
        ]
        if against:
            ratios = (one["speedup"], one["bound_by_macs"], one["bound_by_bytes"])
            row += [f"{one['against_ms']:.2f}", *("-" if value is None else f"{value:.2f}" for value in ratios)]
        table.add_row(name, *row, end_section=index + 1 == len(latency["parts"]))
    console.print(table)
    cut = latency["cut"]
    console.print(
        f"The parts add up to {cut['sum_ms']:.1f} ms with what measuring them costs; a pass that is not cut takes "
        f"{cut['whole_ms']:.1f} ms (median ratio {cut['overhead']:.3f}, {cut['passes']} passes of each in turns).",
        markup=False,
    )


def print_published(found: Sequence[Mapping[str, Any]], legend: str) -> None:
    """Prints the papers' tables beside ours."""
    console = new_console()
    for table in found:
        where = f"{table['data']}; FPS on a {table['device']}" if table["device"] else table["data"]
        shown = Table(title=f"{table['paper']}, {table['kind']} {table['table']}: {table['title']}", caption=where)
        shown.add_column("row", overflow="fold")
        for name in table["columns"]:
            shown.add_column(name, justify="right", no_wrap=True)
        for name in ("our GMACs", "head", "params M", "our AP", "ms", "ratio"):
            shown.add_column(name, justify="right", no_wrap=True)
        shown.add_column("study, or why there is none", overflow="fold", ratio=1)
        # As many digits as the paper prints, 56.90 and not 56.9.
        printed = {name: [row["published"].get(name, 0.0) for row in table["rows"]] for name in table["columns"]}
        digits = {name: max(len(f"{value:g}".partition(".")[2]) for value in printed[name]) for name in printed}
        for row in table["rows"]:
            ours = row["ours"]
            told = [f"recipes/papers/{row['study']}" if row["study"] else row["reason"]]
            shown.add_row(
                escape(row["label"]),
                *(_number(row["published"], name, 1, digits[name]) for name in table["columns"]),
                _number(ours, "gmacs", 1, 2),
                _number(ours, "head_gmacs", 1, 2),
                _number(ours, "params_m", 1, 3),
                _number(ours, "bbox_mAP", 100, 1),
                _number(ours, "latency_ms", 1, 1),
                _number(ours, "latency_ratio", 1, 3),
                escape("; ".join(told + ([row["note"]] if row["note"] else []))),
            )
        console.print(shown)
    console.print(legend)
    rows = [row for table in found for row in table["rows"]]
    trained = sum("bbox_mAP" in row["ours"] for row in rows)
    without = sum(row["reason"] is not None for row in rows)
    some = f"{len(rows) - without} have a study, {trained} of them trained"
    console.print(f"{len(rows)} rows: {some}; {without} have none.")


def print_drawn(found: Sequence[Drawn], score: float, out: Path) -> None:
    """Prints which pictures were written."""
    console = new_console()
    table = Table(title=f"Pictures in {out}")
    table.add_column("image", overflow="fold")
    table.add_column(f"detections from {score:g}", justify="right")
    table.add_column("best score", justify="right")
    table.add_column("pictures", overflow="fold")
    for one in found:
        best = "-" if one.best is None else f"{one.best:.2f}"
        names = "\n".join(Path(file).name for file in one.pictures.values())
        table.add_row(escape(one.image), str(one.detections), best, escape(names))
    console.print(table)


def print_exported(found: Sequence[Exported], study: str, out: Path) -> None:
    """Prints which bundles of a front were written."""
    console = new_console()
    table = Table(title=f"{study}: bundles in {out}")
    for name in ("bundle", "state", "pick", "design"):
        table.add_column(name, overflow="fold")
    for one in found:
        state = one.state if one.reason is None else f"{one.state}: {one.reason}"
        table.add_row(one.folder, escape(state), ", ".join(one.picks), escape(one.design))
    console.print(table)
    console.print(f"Check them: headway verify {out} --all", markup=False, highlight=False)


def print_recorded(found: Mapping[str, Any], out: Path) -> None:
    """Prints what a table holds."""
    console = new_console()
    states = ", ".join(f"{count} {state}" for state, count in sorted(found["states"].items()))
    console.print(f"{out}: {found['designs']} designs of {found['study']}, {states}.", markup=False)
    if found["partial"]:
        console.print(f"{found['partial']} of them have a part of their curve only: a replay can go no further.")
    if found["left_out"]:
        console.print(f"{found['left_out']} trials that have not ended are left out; record again when they have.")


def print_replayed(found: Mapping[str, Any]) -> None:
    """Prints what the searches in a table came to."""
    console = new_console()
    rungs = found["rungs"]
    stopping = "no rungs" if rungs is None else ", ".join(f"{key} {value}" for key, value in rungs.items())
    table = Table(
        title=f"{found['table']}: {found['sampler']}, {stopping}; {len(found['seeds'])} seeds, "
        f"{found['workers']} trials side by side",
        caption=f"The best known hypervolume is that of all {found['designs']} designs; "
        f"together they took {found['table_hours']:.3f} hours.",
    )
    for name in ("hypervolume", "compute hours", "quartiles", "wall hours", "quartiles", "seeds that reached it"):
        table.add_column(name, justify="right", no_wrap=True)
    for target, told in found["targets"].items():
        hours = [cell for key in ("compute_hours", "wall_hours") for cell in _median(told[key], 3)]
        table.add_row(f"{target} %", *hours, f"{told['reached']}/{len(found['seeds'])}")
    console.print(table)
    for key, name, digits in (("trials_begun", "Trials begun", 0), ("stopped", "stopped at a rung", 0),
                              ("epochs_share", "share of their epochs trained", 3)):  # fmt: skip
        median, quartiles = _median(found[key], digits)
        console.print(f"{name}: {median} (quartiles {quartiles})")


def _median(spread: Mapping[str, float | None], digits: int) -> tuple[str, str]:
    """A median and its quartiles; a seed that never got there counts as later than all others."""
    told = (spread[key] for key in ("median", "q1", "q3"))
    median, low, high = ("never" if value is None else f"{value:.{digits}f}" for value in told)
    return median, f"{low}-{high}"


def print_plan(made: Plan, study: Study) -> None:
    """Prints a dry run."""
    console = new_console()
    for line in made.lines(study):
        console.print(line, markup=False)
    what = "Designs of the study file" if study.designs else "Corners of the space"
    table = Table(title=f"{what}, built and counted")
    for name in ("GMACs", "x baseline", "head GMACs", "params M", "constraints"):
        table.add_column(name, justify="right")
    table.add_column("design", overflow="fold")
    base = made.corners[0].metrics["gmacs"]
    for corner in made.corners:
        metrics = corner.metrics
        table.add_row(
            f"{metrics['gmacs']:.3f}",
            f"{metrics['gmacs'] / base:.3f}",
            f"{metrics['head_gmacs']:.3f}",
            f"{metrics['params_m']:.3f}",
            "broken: " + "; ".join(corner.broken) if corner.broken else "ok",
            escape(named(vars(corner), short(corner.knobs))),
        )
    console.print(table)


def new_console() -> Console:
    """Where results are printed."""
    console = Console()
    # A file or pipe has no width of its own; a table must not be cut there.
    return console if console.is_terminal else Console(width=180)


def _number(metrics: Mapping[str, Any], name: str, factor: float, digits: int) -> str:
    value = metrics.get(name)
    return "-" if value is None else f"{factor * value:.{digits}f}"
