"""Two stacked bars for the baseline and each front member: by part of the detector, and its head by pyramid level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.explain.dress import SERIES, Drawn, dress, thin
from analysis.explain.settings import brief, varying
from analysis.record import Objective, TrialRecord
from analysis.view import view_of

Stacks = tuple[Mapping[str, float], Mapping[str, float]]
"""What a design spends by part, and its head by level."""

_MOST = 14
_LONGEST = 52  # characters of a line
_BESIDE = 4  # parts whose names fit beside those of the levels
# Beyond the eight colours that all eyes can tell apart.
_PATTERNS = ("", "/", "x", ".")


def stacked(
    trials: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    stacks_of: Callable[[TrialRecord], Stacks | None],
    *,
    axis: str,
    unit: str,
    what: str,
) -> Drawn | None:
    """Draws them in the order of the front, ``None`` where nothing is known.

    Args:
        trials: All records.
        objectives: Of the study.
        stacks_of: Gives a trial's, ``None`` where they were not kept.
        axis: Title of the axis.
        unit: Of the values.
        what: What is drawn, for those who cannot see it.
    """
    view = view_of(trials, objectives)
    known = {id(trial): stacks_of(trial) for trial in [*view.members, *([view.baseline] if view.baseline else [])]}
    members = [trial for trial in view.members if not trial.baseline and known[id(trial)]]
    shown = [*([view.baseline] if view.baseline and known[id(view.baseline)] else []), *thin(members, _MOST)]
    if not shown:
        return None
    knobs = varying(view.members)
    figure = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=("by part", "head by level")
    )
    told = ["baseline" if trial.baseline else brief(trial, knobs) for trial in shown]
    lines = [_lines(trial.label, text) for trial, text in zip(shown, told, strict=True)]
    names = ["<br>".join(parts) for parts in lines]
    found = [known[id(trial)] or ({}, {}) for trial in shown]
    for column in (0, 1):
        bars = [stacks[column] for stacks in found]
        kinds = list(dict.fromkeys(kind for bar in bars for kind, value in bar.items() if value))
        totals = [sum(bar.values()) for bar in bars]
        for index, kind in enumerate(kinds):
            values = [bar.get(kind, 0) for bar in bars]
            shares = [100 * value / total if total else 0.0 for value, total in zip(values, totals, strict=True)]
            colour, pattern = SERIES[index % len(SERIES)], _PATTERNS[index // len(SERIES) % len(_PATTERNS)]
            figure.add_trace(
                go.Bar(
                    y=names,
                    x=values,
                    orientation="h",
                    name=kind,
                    legend="legend2" if column else "legend",
                    marker={
                        "color": colour,
                        "line": {"color": "white", "width": 1},
                        **({"pattern": {"shape": pattern, "fgcolor": "white"}} if pattern else {}),
                    },
                    customdata=shares,
                    hovertemplate=f"{kind}: %{{x:.3g}} {unit}, %{{customdata:.0f}} %<extra></extra>",
                ),
                row=1,
                col=column + 1,
            )
    pitch = 16 + 15 * max(len(parts) for parts in lines)
    # A long list of parts would run into that of the levels, which then stands below it.
    parts = sum(trace.legend == "legend" for trace in figure.data)
    lower = 30 if parts > _BESIDE else 0
    dress(figure, 150 + lower + pitch * len(shown))
    room = 15 + pitch * len(shown)
    below = {"orientation": "h", "yanchor": "top", "xanchor": "left", "traceorder": "normal"}
    figure.update_layout(
        barmode="stack",
        legend={**below, "x": 0, "y": -70 / room},
        legend2={**below, "x": 0.52, "y": -(70 + lower) / room},
        margin={"b": 95 + lower},
    )
    figure.update_xaxes(title=axis)
    figure.update_yaxes(autorange="reversed")
    note = "" if len(members) <= _MOST else f"{_MOST} of the {len(members)} front members are drawn, evenly chosen."
    lacking = sum(1 for trial in view.members if not known[id(trial)])
    note += f" Of {lacking} front members the breakdown was not recorded." if lacking else ""
    return Drawn(figure, f"{what} by part and by pyramid level of {len(shown)} designs.", note.strip())


def _lines(label: str, text: str) -> list[str]:
    """A design's name beside its bar, each family on a line of its own."""
    parts = [part if len(part) <= _LONGEST else f"{part[: _LONGEST - 1]}…" for part in text.split(" · ")]
    return [f"<b>{label}</b> {parts[0]}", *parts[1:]]
