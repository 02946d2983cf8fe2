"""What a study found, in a few sentences, and what to pick from it."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.choose import Choice
from analysis.explain.dress import thin
from analysis.explain.settings import brief
from analysis.labels import counts, figure
from analysis.record import TrialRecord
from analysis.report.findings import Findings, quartiles
from analysis.report.words import capital, figures, listed, named, plain, several


def summary(found: Findings) -> list[str]:
    """What the study found, in a few sentences."""
    said = [trial.state.value for trial in found.trials]
    if not found.trials:
        return ["The study has no trial yet."]
    told = [f"{several(len(found.trials), 'trial')}: {counts(said)}."]
    told += _baseline(found)
    if not found.points:
        return [*told, "No trial is COMPLETE, so there is no front and nothing to pick."]
    told += _front(found)
    if found.open:
        told.append(
            f"{several(found.open, 'trial has', 'trials have')} not ended: the page shows the study as it stood."
        )
    return told


def _baseline(found: Findings) -> list[str]:
    first = found.trials[0]
    if not first.baseline:
        return []
    if found.baseline is None:
        why = f": {first.reason.splitlines()[0]}" if first.reason else ""
        return [f"The baseline is {first.state.value}{why}. Without it nothing can be compared."]
    place = "is on the front" if any(member.baseline for member in found.front) else "is not on the front"
    return [f"The baseline has {figures(found.baseline, found.objectives)} and {place}."]


def _front(found: Findings) -> list[str]:
    front, objectives = found.front, found.objectives
    if len(front) == 1:
        only = front[0]
        told = [f"The front is one point, {named(only)}, with {figures(only, objectives)}."]
    else:
        first, last = front[0], front[-1]
        told = [
            f"The front has {len(front)} points. In the order of {plain(objectives[min(1, len(objectives) - 1)])} it "
            f"begins with {named(first)} ({figures(first, objectives)}) and ends with {named(last)} "
            f"({figures(last, objectives)})."
        ]
    better = [member for member in found.better if not member.baseline]
    if better:
        labels, verb = listed([member.label for member in better]), "is" if len(better) == 1 else "are"
        told.append(
            f"{several(len(better), 'point')} of the front ({labels}) {verb}, as measured, nowhere worse than the "
            "baseline and better in something."
        )
        told += _surely_faster(found, better)
    elif found.baseline is not None and len(found.points) > 1:
        told.append("No design is, as measured, better than the baseline without being worse in something.")
    told += _volume(found)
    return told


def _surely_faster(found: Findings, better: Sequence[TrialRecord]) -> list[str]:
    if not any(objective.metric.startswith("latency") for objective in found.objectives):
        return []
    apart = [member.label for member in better if (ends := quartiles(member)) and ends[1] < 1]
    if len(apart) == len(better):
        return ["The quartiles of the latency of each lie below the baseline's."]
    if not apart:
        return ["Of none of them do the quartiles of the latency lie below the baseline's: in speed they may be alike."]
    return [f"Only of {listed(apart)} do the quartiles of the latency lie below the baseline's."]


def _volume(found: Findings) -> list[str]:
    if found.volume is None or found.reference is None:
        return []
    corner = listed([figure(o.metric, value) for o, value in zip(found.objectives, found.reference, strict=True)])
    if not found.alone:
        return [f"The hypervolume of the front up to {corner} is {found.volume:.4g}."]
    return [
        f"The hypervolume of the front up to {corner} is {found.volume:.4g}, that is "
        f"{found.volume / found.alone:.3f} times the {found.alone:.4g} of the baseline alone."
    ]


def picked(found: Findings) -> list[dict[str, str]]:
    """Gives a row for each way to pick."""
    rows: dict[str, dict[str, str]] = {}
    for word, choice in found.picks.items():
        row = rows.setdefault(
            choice.trial.label,
            {
                "pick": "",
                "trial": choice.trial.label,
                "figures": figures(choice.trial, found.objectives),
                "design": brief(choice.trial, found.knobs),
                "why": "",
            },
        )
        row["pick"] = f"{row['pick']}, {word}" if row["pick"] else word
        row["why"] = row["why"] or capital(". ".join(capital(text) for text in _reasons(choice)) + ".")
    return list(rows.values())


def _reasons(choice: Choice) -> list[str]:
    return [choice.why, *(neighbour.words for neighbour in choice.neighbours), *choice.notes]


def budgets(found: Findings, most: int = 10) -> list[dict[str, str]]:
    """Gives a row for each budget: how much of the second objective may be spent, and what is best then.

    Nothing where that objective is not to be small, or there are more than two. Of a long front some rows are chosen.
    """
    if len(found.objectives) != 2 or found.objectives[1].maximize or len(found.front) < 2:
        return []
    accuracy, cost = found.objectives
    rows = []
    for member in thin(found.front, most):
        share = ""
        if found.baseline is not None and found.baseline.metrics[cost.metric] > 0:
            share = f"{member.metrics[cost.metric] / found.baseline.metrics[cost.metric]:.3f}"
        rows.append(
            {
                "spend": figure(cost.metric, member.metrics[cost.metric]),
                "share": share,
                "trial": member.label,
                "gain": figure(accuracy.metric, member.metrics[accuracy.metric]),
                "design": brief(member, found.knobs),
            }
        )
    return rows
