"""Puts the report together: sentences, tables and figures into one page that needs nothing else."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis import explain
from analysis.explain.dress import Drawn, thin
from analysis.explain.settings import brief
from analysis.importance import Importance
from analysis.labels import axis, figure, knob_value
from analysis.plots.matrix import matrix_figure
from analysis.plots.pair import pair_figure
from analysis.plots.words import confirmation
from analysis.record import Objective, TrialRecord, TrialState
from analysis.report.context import Context
from analysis.report.findings import Findings, quartiles
from analysis.report.onward import commands
from analysis.report.reasons import ended, why
from analysis.report.searched import knob_rows, searched
from analysis.report.summary import budgets, picked, summary
from analysis.report.trust import doubts
from analysis.report.words import duration, listed

_MOST_ROWS = 40
_MOST_NAMED = 30
_TRACEBACK = 3000  # its end tells most


@dataclass(frozen=True)
class Panel:
    """A figure on the page.

    Attributes:
        id: Of its element.
        says: What it shows, for those who cannot see it.
        note: What was left out of it.
        height: In px.
        json: The figure, safe inside a script element.
    """

    id: str
    says: str
    note: str
    height: int
    json: Markup


def report_html(
    trials: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    context: Context,
    *,
    importance: Sequence[Importance] | None = None,
) -> str:
    """Gives the report of a study as one HTML page that needs no network; with figures plotly.js is inside (5 MB).

    It holds for any study: of one trial or of thousands, without a COMPLETE one, with any number of objectives. What
    the records cannot tell is left out or said to be unknown.

    Args:
        trials: All records, with what confirmation knows of them.
        objectives: Of the study, at least one.
        context: What the records do not say.
        importance: What ``importances`` gives, where it is known already.
    """
    found = Findings.of(trials, objectives, context, importance)
    panels = _Panels()
    # Without a front the page has no place for what explains one.
    told = found.trials if found.front else []
    return _template().render(
        name=context.name,
        stamp=_stamp(found),
        summary=summary(found),
        searched=searched(found),
        knobs=knob_rows(found),
        front=panels.add(_front(found)),
        columns=_columns(found),
        rows=_rows(found),
        hidden=max(0, len(found.front) - _MOST_ROWS),
        growth=panels.add(explain.growth_figure(found.growth if told else [])),
        picked=picked(found),
        budgets=budgets(found),
        why=why(found),
        shares=panels.add(explain.shares_figure(found.importance if told else [])),
        surfaces=[panels.add(drawn) for drawn in _surfaces(found) if told],
        parallel=panels.add(explain.parallel_figure(told, objectives, found.knobs)),
        slices=[
            panels.add(explain.slices_figure(told, objectives, objective, found.knobs)) for objective in objectives
        ],
        sizes=panels.add(explain.sizes_figure(told, objectives)),
        costs=panels.add(explain.costs_figure(told, objectives)),
        times=panels.add(explain.times_figure(told, objectives)),
        costs_unknown=bool(found.front) and not any(explain.costs.macs_of(member) for member in found.front),
        curves=panels.add(explain.curves_figure(found.trials, objectives, context.rungs)),
        ended=ended(found),
        endings=[_ending(found, item) for item in found.endings],
        doubts=doubts(found),
        commands=commands(found),
        panels=panels.made,
        plotly=Markup(get_plotlyjs()) if panels.made else "",
    )


class _Panels:
    """Numbers the figures."""

    def __init__(self) -> None:
        self.made: list[Panel] = []

    def add(self, drawn: Drawn | None) -> Panel | None:
        if drawn is None:
            return None
        # A closing tag inside the data would end the script element.
        text = drawn.figure.to_json().replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
        panel = Panel(
            f"figure-{len(self.made) + 1}", drawn.says, drawn.note, int(drawn.figure.layout.height), Markup(text)
        )
        self.made.append(panel)
        return panel


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("analysis.report", ".")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")


def _stamp(found: Findings) -> str:
    """When the study last moved; of the records, so that the same records give the same page."""
    ends = [trial.finished for trial in found.trials if trial.finished]
    if not ends:
        return ""
    return f"last trial ended {datetime.fromtimestamp(max(ends), timezone.utc):%Y-%m-%d %H:%M} UTC"


def _front(found: Findings) -> Drawn | None:
    if not found.points:
        return None
    many = len(found.objectives) > 2
    drawn: go.Figure = (matrix_figure if many else pair_figure)(found.trials, found.objectives, title="")
    drawn.update_layout(title=None, height=760 if many else 560, font_size=14, margin={"t": 50})
    if many:
        drawn.update_layout(height=420 * (len(found.objectives) - 1))
    names = " against ".join(axis(objective.metric) for objective in found.objectives)
    return Drawn(drawn, f"{names} of {len(found.points)} designs, {len(found.front)} of them on the front.")


def _surfaces(found: Findings) -> list[Drawn]:
    """The pair that explains most of each objective beyond its knobs alone."""
    drawn = []
    for objective, item in zip(found.objectives, found.importance, strict=True):
        pair = next((pair for pair, share in item.pairs.items() if share >= 0.02), None)
        surface = explain.surface_figure(found.trials, objective, pair) if pair else None
        drawn += [surface] if surface else []
    return drawn


def _columns(found: Findings) -> list[str]:
    named = [axis(objective.metric) for objective in found.objectives]
    return [*named, *(axis(name) for name in _extra(found))]


def _extra(found: Findings) -> list[str]:
    """Costs to show beside the objectives, where they are known."""
    taken = {objective.metric for objective in found.objectives}
    names = ("bbox_mAP", "latency_ratio", "gmacs", "head_gmacs", "params_m", "peak_memory_mb")
    return [name for name in names if name not in taken and any(name in member.metrics for member in found.front)]


def _rows(found: Findings) -> list[dict[str, Any]]:
    """The front and the baseline as a table."""
    members = thin(found.front, _MOST_ROWS)
    if found.baseline is not None and not any(member.baseline and not member.point for member in members):
        members = [found.baseline, *members]
    rows = []
    for member in members:
        cells = []
        for name in [*(objective.metric for objective in found.objectives), *_extra(found)]:
            value = member.metrics.get(name)
            text = "" if value is None else _bare(name, value)
            ends = quartiles(member) if name == "latency_ratio" and not member.baseline else None
            cells.append(f"{text} ({ends[0]:.3f} to {ends[1]:.3f})" if ends else text)
        rows.append(
            {
                "trial": member.label,
                "kind": "baseline" if member.baseline and not member.point else "front",
                "cells": cells,
                "design": brief(member, found.knobs),
                "again": "; ".join(confirmation(member)),
                "knobs": [(name, knob_value(value)) for name, value in member.knobs.items()],
            }
        )
    return rows


def _bare(metric: str, value: float) -> str:
    """Words a figure without its name and unit, which head its column."""
    name, _, unit = axis(metric).partition(" (")
    return figure(metric, value).removeprefix(name).removesuffix(unit.rstrip(")")).strip()


def _ending(found: Findings, item: explain.Ending) -> dict[str, Any]:
    """A row of what did not come to its end."""
    values = "" if item.values is None else f"{item.values[0]:.4g} to {item.values[1]:.4g}"
    numbers = {trial.number: trial for trial in found.trials}
    failed = item.state is TrialState.FAILED
    traces = (numbers[number].traceback for number in item.trials) if failed else ()
    return {
        "state": item.state.value,
        "reason": item.reason,
        "count": len(item.trials),
        "range": values,
        "hours": duration(item.hours),
        "trials": listed([str(number) for number in item.trials], _MOST_NAMED),
        "traceback": next((trace[-_TRACEBACK:] for trace in traces if trace), ""),
    }
