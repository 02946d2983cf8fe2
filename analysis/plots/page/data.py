"""What the interactive page knows of a study, as plain JSON types; ``front.js`` draws it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

from analysis.labels import counts, knob_value, more_is_better, wording_of
from analysis.pareto import finish_order, front_times, is_point
from analysis.plots.matrix import matrix_figure
from analysis.plots.sizes import SIZE
from analysis.plots.words import confirmation
from analysis.published import TABLES
from analysis.published.ratios import relative_rows
from analysis.record import Objective, TrialRecord, spread

_FIRST = ("bbox_mAP", "latency_ms", "latency_ratio", "gmacs", "head_gmacs", "params_m")
_UNSHOWN = ("latency_pairs", "measured_ms")  # of no use beside the figures that were made of them


@dataclass(frozen=True)
class Runs:
    """Where the study's runs are in MLflow.

    Attributes:
        experiment: MLflow's id of the experiment.
        run: MLflow's id of the study's run, of which the page is an artifact.
        trials: MLflow's id of each trial's run, by label.
        server: ``http://host:port``, or "" where the store is a database that any server may show.
        live: Whether the study is still written, so that a page within MLflow asks for news.
    """

    experiment: str
    run: str
    trials: Mapping[str, str] = field(default_factory=dict)
    server: str = ""
    live: bool = False


def page_data(
    trials: Sequence[TrialRecord], objectives: Sequence[Objective], *, title: str, runs: Runs | None = None
) -> dict[str, Any]:
    """Gives what is drawn: a column a figure, a row a point.

    Every trial has a row, a COMPLETE one with a sweep one for each setting; numbers have six digits. With three
    objectives or more ``matrix`` is the plotly figure of all pairs.

    Args:
        trials: All records of the study.
        objectives: At least one.
        title: Plain text.
        runs: Where the trials are in MLflow, if they are.
    """
    rows = spread(trials)
    done = finish_order(trials)
    ranks = {trial.number: rank for rank, trial in enumerate(done, start=1)}
    times = front_times(trials, objectives)
    designs = ["" if row.baseline else " + ".join(families(row)) for row in rows]
    common = [name for name, _ in Counter(filter(None, designs)).most_common()]
    metrics = _metrics(rows, objectives)
    figures = {name: [_six(row.metrics.get(name, math.nan)) for row in rows] for name in metrics}
    known = {objective.metric: objective.maximize for objective in objectives}
    better = {name: known.get(name, more_is_better(name)) for name in metrics}
    data = {
        "title": title,
        "counts": counts([trial.state.value for trial in trials]),
        "objectives": [{"metric": o.metric, "maximize": o.maximize} for o in objectives],
        "size": SIZE,
        "metrics": {name: {**wording_of(name), "more": better[name]} for name in metrics},
        "axes": [name for name in metrics if name in known or better[name] is not None],
        "designs": common,
        "finished": {
            "hours": [_six(hours) for hours in accumulate(trial.compute_hours for trial in done)],
            "ended": [None if trial.finished is None else round(trial.finished) for trial in done],
        },
        "points": {
            "label": [row.label for row in rows],
            "state": [row.state.value for row in rows],
            "valid": [int(is_point(row, objectives)) for row in rows],
            "design": [common.index(name) if name else -1 for name in designs],
            "at": [ranks.get(row.number) for row in rows],
            "came": [times[row.label][0] if row.label in times else None for row in rows],
            "left": [times[row.label][1] if row.label in times else None for row in rows],
            "metrics": figures,
        },
        "knobs": _knobs(rows),
        "reasons": {index: row.reason[:200] for index, row in enumerate(rows) if row.reason and not row.point},
        "confirmed": {index: _confirmed(row) for index, row in enumerate(rows) if row.confirmed},
        "published": [asdict(row) for row in relative_rows(TABLES)],
        "runs": None if runs is None else asdict(runs),
    }
    if len(objectives) > 2:
        data["matrix"] = json.loads(str(matrix_figure(trials, objectives, title="").to_json()))
    return data


def families(trial: TrialRecord) -> list[str]:
    """The families whose knobs a design has, in the order of its knobs."""
    return list(dict.fromkeys(name.partition(".")[0] for name in trial.knobs))


def _metrics(rows: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[str]:
    """All figures that the points have: the objectives, what matters most, and the others by name."""
    present = {name for row in rows for name in row.metrics if name not in _UNSHOWN}
    first = [*(objective.metric for objective in objectives), *(name for name in _FIRST if name in present)]
    return list(dict.fromkeys([*first, *sorted(present)]))


def _knobs(rows: Sequence[TrialRecord]) -> dict[str, dict[str, Any]]:
    """By knob the ``values`` as words, and which of them each point ``has``; -1 where the knob is not active."""
    table: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        for name, value in row.knobs.items():
            knob = table.setdefault(name, {"values": {}, "has": [-1] * len(rows)})
            words = knob["values"]
            knob["has"][index] = words.setdefault(knob_value(value), len(words))
    return {name: {"values": list(knob["values"]), "has": knob["has"]} for name, knob in table.items()}


def _confirmed(row: TrialRecord) -> dict[str, Any]:
    found = row.confirmed or {}
    intervals = {
        name: [_six(own["mean"]), _six(own["low"]), _six(own["high"])]
        for name, own in found["metrics"].items()
        if own["low"] is not None
    }
    return {"lines": confirmation(row), "intervals": intervals}


def _six(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
