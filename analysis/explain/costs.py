"""Where the multiply-adds go: by part of the detector and by pyramid level of its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.explain.dress import SERIES, Drawn, dress, thin
from analysis.explain.settings import brief, varying
from analysis.record import Objective, TrialRecord
from analysis.view import view_of

_MOST = 14
_LONGEST = 52  # characters of a line


def macs_of(trial: TrialRecord) -> Mapping[str, Any] | None:
    """Gives ``parts`` and ``levels`` of a trial's multiply-adds in units of one, ``None`` where they were not kept."""
    found: Mapping[str, Any] | None = (trial.attrs.get("cost") or {}).get("macs")
    return found


def costs_figure(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> Drawn | None:
    """Draws the multiply-adds of the baseline and of each front member as stacked bars, in the order of the front."""
    view = view_of(trials, objectives)
    members = [trial for trial in view.members if not trial.baseline and macs_of(trial)]
    shown = [*([view.baseline] if view.baseline and macs_of(view.baseline) else []), *thin(members, _MOST)]
    if not shown:
        return None
    knobs = varying(view.members)
    figure = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=("by part", "head by level")
    )
    told = ["baseline" if trial.baseline else brief(trial, knobs) for trial in shown]
    lines = [_lines(trial.label, text) for trial, text in zip(shown, told, strict=True)]
    names = ["<br>".join(parts) for parts in lines]
    for column, key in enumerate(("parts", "levels"), start=1):
        found = [macs_of(trial) or {} for trial in shown]
        kinds = list(dict.fromkeys(kind for macs in found for kind, value in macs[key].items() if value))
        for index, kind in enumerate(kinds):
            values = [macs[key].get(kind, 0) / 1e9 for macs in found]
            totals = [sum(macs[key].values()) / 1e9 for macs in found]
            shares = [100 * value / total if total else 0.0 for value, total in zip(values, totals, strict=True)]
            figure.add_trace(
                go.Bar(
                    y=names,
                    x=values,
                    orientation="h",
                    name=kind,
                    legend="legend" if column == 1 else "legend2",
                    marker={"color": SERIES[index % len(SERIES)], "line": {"color": "white", "width": 1}},
                    customdata=shares,
                    hovertemplate=f"{kind}: %{{x:.3g}} G, %{{customdata:.0f}} %<extra></extra>",
                ),
                row=1,
                col=column,
            )
    pitch = 16 + 15 * max(len(parts) for parts in lines)
    dress(figure, 150 + pitch * len(shown))
    room = 15 + pitch * len(shown)
    below = {"orientation": "h", "y": -70 / room, "yanchor": "top", "xanchor": "left", "traceorder": "normal"}
    figure.update_layout(barmode="stack", legend={**below, "x": 0}, legend2={**below, "x": 0.52}, margin={"b": 95})
    figure.update_xaxes(title="multiply-adds (G)")
    figure.update_yaxes(autorange="reversed")
    note = "" if len(members) <= _MOST else f"{_MOST} of the {len(members)} front members are drawn, evenly chosen."
    lacking = sum(1 for trial in view.members if not macs_of(trial))
    note += f" Of {lacking} front members the breakdown was not recorded." if lacking else ""
    return Drawn(figure, f"Multiply-adds by part and by pyramid level of {len(shown)} designs.", note.strip())


def _lines(label: str, text: str) -> list[str]:
    """A design's name beside its bar, each family on a line of its own."""
    parts = [part if len(part) <= _LONGEST else f"{part[: _LONGEST - 1]}…" for part in text.split(" · ")]
    return [f"<b>{label}</b> {parts[0]}", *parts[1:]]
