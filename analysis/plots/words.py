"""What is written about trials: beside a point, when pointing at it, and in the list next to a picture."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from analysis.choose import knee
from analysis.labels import axis, figure, knob_value, scaled, short
from analysis.pareto import values
from analysis.plots.look import BLUE, FAINT_INK, INK, VERMILION, plain
from analysis.record import Objective, TrialRecord
from analysis.view import View

_MOST_NAMED = 12  # designs that a picture spells out


@dataclass(frozen=True)
class Room:
    """The room for a list of designs in a picture.

    Attributes:
        left: Left edge, as a share of the picture's width.
        top: Upper edge of the first line, as a share of its height.
        line: Height of a line, as a share of its height.
        lines: Lines that fit.
        columns: Characters of a design's line that fit.
    """

    left: float
    top: float
    line: float
    lines: int
    columns: int = 41


BESIDE = Room(left=0.71, top=0.85, line=0.0225, lines=36)
"""Right of a single plot, in a picture of 12 x 6.75 inches."""


def hover(trial: TrialRecord, objectives: Sequence[Objective], baseline: TrialRecord | None, name: str) -> str:
    """Gives the text of a point of the interactive page: the trial's knobs and all its figures."""
    head = f"<b>trial {trial.label}</b>" + {"front": ", on the front", "baseline": ", the baseline"}.get(name, "")
    lines = [head, *(f"<b>{html.escape(figure(o.metric, trial.metrics[o.metric]))}</b>" for o in objectives)]
    if baseline is not None and baseline.label != trial.label:
        lines.append("against the baseline: " + ", ".join(_against(trial, baseline, o) for o in objectives))
    lines += [html.escape(line) for line in confirmation(trial)]
    lines += [f"<i>{html.escape(name)}</i> = {html.escape(knob_value(value))}" for name, value in trial.knobs.items()]
    shown = {objective.metric for objective in objectives}
    rest = ", ".join(figure(name, trial.metrics[name]) for name in sorted(trial.metrics) if name not in shown)
    return "<br>".join([*lines, *(html.escape(line) for line in textwrap.wrap(rest, 56))])


def confirmation(trial: TrialRecord) -> list[str]:
    """Says what trainings with other seeds and the common measurement of latency gave; nothing before them."""
    found = trial.confirmed
    if not found:
        return []
    lines = []
    for metric, own in found["metrics"].items():
        count = len(own["values"])
        if own["low"] is None:
            lines.append(f"over {count} seed: {figure(metric, own['mean'])}, no interval")
        else:
            reach = scaled(metric, own["high"]) - scaled(metric, own["mean"])
            lines.append(f"over {count} seeds: {figure(metric, own['mean'])} ± {reach:.1f} (95 %)")
    latency = found["latency"]
    if latency:
        quartiles = f"(quartiles {latency['q1']:.3f} to {latency['q3']:.3f})"
        lines.append(f"measured again, together: {figure('latency_ratio', latency['ratio'])} {quartiles}")
    lines += [f"seed {seed} failed: {textwrap.shorten(reason, 60)}" for seed, reason in found["failed"].items()]
    return [*lines, *([found["mark"]] if found["mark"] else [])]


def _against(trial: TrialRecord, baseline: TrialRecord, objective: Objective) -> str:
    ours, theirs = (scaled(objective.metric, t.metrics[objective.metric]) for t in (trial, baseline))
    if objective.maximize or theirs == 0:
        return f"{ours - theirs:+.1f} {axis(objective.metric).split(' (')[0]}"
    return f"{100 * (ours / theirs - 1):+.0f} % {axis(objective.metric).split(' (')[0]}"


def tags(view: View, trials: Sequence[TrialRecord], *, wide: float = 0.03, high: float = 0.045) -> list[str]:
    """Gives each trial's number, or nothing where it would run into the number of a trial before it.

    Args:
        view: The axes.
        trials: In order of importance.
        wide: Least distance of two numbers, as a share of the horizontal axis.
        high: The same of the vertical axis.
    """
    wide, high = (view.xlim[1] - view.xlim[0]) * wide, (view.ylim[1] - view.ylim[0]) * high
    taken: list[tuple[float, float]] = []
    written = []
    for x, y, trial in zip(view.xs(trials), view.ys(trials), trials, strict=True):
        free = all(abs(x - left) > wide or abs(y - low) > high for left, low in taken)
        taken += [(x, y)] if free else []
        written.append(trial.label if free else "")
    return written


def named(members: Sequence[TrialRecord], objectives: Sequence[Objective], room: Room = BESIDE) -> list[TrialRecord]:
    """Picks the members to spell out, as many as there is room for: the two ends, the knee, and evenly between."""
    best = knee(members, objectives).trial.label
    middle = next(index for index, trial in enumerate(members) if trial.label == best)
    for count in range(min(_MOST_NAMED, len(members)), 2, -1):
        step = (len(members) - 1) / (count - 1)
        picked = {round(index * step) for index in range(count)}
        if middle not in picked:
            picked.remove(min(picked - {0, len(members) - 1}, key=lambda index: abs(index - middle)))
            picked.add(middle)
        chosen = [members[index] for index in sorted(picked)]
        lines = sum(len(part) for trial in chosen for part in _entry(trial, objectives, room)) + 0.5 * len(chosen)
        if lines <= room.lines:
            return chosen
    return [members[index] for index in sorted({0, middle, len(members) - 1})]


def _entry(trial: TrialRecord, objectives: Sequence[Objective], room: Room) -> tuple[list[str], list[str]]:
    design = textwrap.wrap(plain(short(trial.knobs)), room.columns, max_lines=2, placeholder=" …")
    words = [figure(o.metric, value) for o, value in zip(objectives, values(trial, objectives), strict=True)]
    if trial.confirmed and trial.confirmed["mark"]:
        words.append(trial.confirmed["mark"].replace("≈ ", "≈\u00a0"))  # no break between the two
    return design, textwrap.wrap(plain(", ".join(words)), room.columns + 3, max_lines=2, placeholder=" …")


def write_list(
    picture: Figure, chosen: Sequence[TrialRecord], objectives: Sequence[Objective], total: int, room: Room = BESIDE
) -> None:
    """Spells out designs of the front in a picture.

    Args:
        picture: The picture.
        chosen: What ``named`` picked.
        objectives: The study's.
        total: Members of the front.
        room: Where.
    """
    left, line = room.left, room.line
    inches = picture.get_figwidth() / 12
    indent = (0.012 + 0.008 * max((len(trial.label) for trial in chosen), default=1)) / inches
    heading = "the front, fastest first" if _timed(objectives) else "the front"
    picture.text(left, room.top + 0.04 * line / BESIDE.line, heading, fontsize=11, weight="bold", color=INK)
    used = 0.0
    for trial in chosen:
        colour = VERMILION if trial.baseline else BLUE
        at = room.top - used * line
        picture.text(left, at, trial.label, va="top", fontsize=9.5, weight="bold", color=colour)
        design, figures = _entry(trial, objectives, room)
        for index, text in enumerate([*design, *figures]):
            ink = INK if index < len(design) else FAINT_INK
            picture.text(left + indent, at - index * line, text, fontsize=9.5, va="top", color=ink)
        used += len(design) + len(figures) + 0.5
    if total > len(chosen):
        text = f"and {total - len(chosen)} more, in front.csv"
        picture.text(left, room.top - used * line, text, fontsize=9.5, va="top", color=INK)


def _timed(objectives: Sequence[Objective]) -> bool:
    return len(objectives) > 1 and objectives[1].metric.startswith("latency") and not objectives[1].maximize
