"""The sentences of a report. Each is made from the figures, and left out where they do not bear it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from analysis.explain.dress import thin
from analysis.explain.settings import setting
from analysis.importance import LEAST_TRIALS
from analysis.labels import axis, counts, figure, knob_value, short
from analysis.pareto import values
from analysis.record import Objective, TrialRecord, TrialState
from analysis.report.findings import Findings, quartiles

_FEW_OBJECTS = 100
_FEW_VALUES = 12


def several(count: int, one: str, many: str | None = None) -> str:
    """Words a count, ``1 trial``, ``3 trials``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(words: Sequence[str], most: int = 10) -> str:
    """Words a list, ``a, b and c``; what is beyond ``most`` is counted."""
    words = [*words[:most], f"{len(words) - most} more"] if len(words) > most else list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def duration(hours: float) -> str:
    """Words a time."""
    for unit, size in (("hours", 1.0), ("minutes", 60.0)):
        if hours * size >= 1.95:
            return f"{hours * size:.1f} {unit}"
    return f"{hours * 3600:.0f} seconds"


def figures(trial: TrialRecord, objectives: Sequence[Objective]) -> str:
    """Words the objectives of a trial."""
    return listed([figure(o.metric, value) for o, value in zip(objectives, values(trial, objectives), strict=True)])


# In short.


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
        told.append(f"{several(found.open, 'trial has', 'trials have')} not ended: the page shows the study as it stood.")
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
        told = [f"The front is one point, {_named(only)}, with {figures(only, objectives)}."]
    else:
        first, last = front[0], front[-1]
        told = [
            f"The front has {len(front)} points. In the order of {_plain(objectives[min(1, len(objectives) - 1)])} it "
            f"begins with {_named(first)} ({figures(first, objectives)}) and ends with {_named(last)} "
            f"({figures(last, objectives)})."
        ]
    better = [member for member in found.better if not member.baseline]
    if better:
        told.append(
            f"{several(len(better), 'point')} of the front ({listed([member.label for member in better])}) "
            f"{'is' if len(better) == 1 else 'are'} as measured nowhere worse than the baseline and better in something."
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
        return [f"Its hypervolume up to {corner} is {found.volume:.4g}."]
    return [
        f"Its hypervolume up to {corner} is {found.volume:.4g}, that is {found.volume / found.alone:.3f} times "
        f"the {found.alone:.4g} of the baseline alone."
    ]


def _named(trial: TrialRecord) -> str:
    return "the baseline" if trial.baseline and not trial.point else f"trial {trial.label}"


def _plain(objective: Objective) -> str:
    return axis(objective.metric).split(" (")[0]


# What was searched.


def searched(found: Findings) -> list[tuple[str, str]]:
    """What was searched, by topic."""
    study = found.context.study
    told = [("Data", _data(found)), ("Base", _base(study)), ("Space", _space(found)), ("Aim", _aim(found))]
    told += [("Budget", _budget(found)), ("Search", _search(study)), ("Machine", _machine(found))]
    told.append(("Time", _time(found)))
    return [(topic, text) for topic, text in told if text]


def _data(found: Findings) -> str:
    report, data = found.context.data, found.context.study["data"]
    width, height = data["size"]
    fitted = f"Images are resized to fit into {width} x {height} px."
    what = "Embedded handwritten digits" if data.get("digits") else "COCO-format data"
    if report is None:
        return f"{what}, which could not be read when this page was made. {fitted}"
    sizes = listed([f"{count:,} {size}" for size, count in report.val.sizes.items()])
    return (
        f"{what}: {report.train.images:,} images with {report.train.boxes:,} boxes to train on, {report.val.images:,} "
        f"with {report.val.boxes:,} boxes ({sizes}) to validate on, of {several(len(report.classes), 'class', 'classes')} "
        f"({listed(report.classes)}). {fitted}"
    )


def _base(study: Mapping[str, Any]) -> str:
    start = study["weights"]["from"]
    said = {
        "scratch": "every trial starts from the same initial weights",
        "baseline": f"every trial continues from one training of the base of {study['weights']['epochs']} epochs",
    }.get(start, "every trial starts from the weights of a given checkpoint")
    return f"{study['base']}; {said}."


def _space(found: Findings) -> str:
    families = list(found.context.study.get("space") or {})
    if found.context.study.get("designs"):
        text = f"{several(len(found.context.study['designs']), 'design')} that the study file lists"
    else:
        text = f"{'Families' if len(families) > 1 else 'Family'} {listed(families)}"
    size = found.context.settings
    if size is not None:
        text += "; infinitely many designs" if math.isinf(size) else f"; {size:,.0f} designs at most"
    return f"{text}. The trials vary in {several(len(found.knobs), 'knob')}."


def _aim(found: Findings) -> str:
    wanted = [f"{'more' if item.maximize else 'less'} {_plain(item)}" for item in found.objectives]
    held = found.context.study.get("constraints") or []
    return f"{listed(wanted)}".capitalize().replace("ap", "AP") + (f"; must hold: {'; '.join(held)}." if held else ".")


def _budget(found: Findings) -> str:
    budget = found.context.study["budget"]
    text = f"{several(budget['trials'], 'trial')} of {several(budget['epochs'], 'epoch')}"
    for key, unit in (("hours", "hours"), ("gpu_hours", "GPU hours")):
        text += f", {budget[key]:g} {unit} at most" if budget.get(key) else ""
    rungs = found.context.rungs
    if rungs:
        return f"{text}; trials were compared after epochs {listed([str(rung) for rung in rungs])}, and the weaker stopped."
    return f"{text}; no trial was stopped early."


def _search(study: Mapping[str, Any]) -> str:
    if study.get("designs"):
        return f"No sampler; seed {study['seed']}."
    return f"Sampler {study['sampler']['name']}; seed {study['seed']}."


def _machine(found: Findings) -> str:
    def seen(name: str) -> list[str]:
        known = [str(trial.attrs[name]) for trial in found.trials if trial.attrs.get(name)]
        return list(dict.fromkeys(known))

    told = []
    if seen("device"):
        told.append(f"Trained on {listed(seen('device'))}.")
    speed = found.context.study["speed"]
    if seen("speed_device"):
        size = next((trial.attrs["count_size"] for trial in found.trials if trial.attrs.get("count_size")), None)
        shape = f" at {size[0]} x {size[1]} px (height x width)" if size else ""
        threads = seen("speed_threads")
        cores = f", {listed(threads)} thread{'s' if threads != ['1'] else ''}" if threads and "cpu" in seen("speed_kind") else ""
        told.append(
            f"Latency on {listed(seen('speed_device'))}{cores}{shape}, batch {speed['batch']}, "
            f"{'with' if speed['postprocess'] else 'without'} decoding and NMS, interleaved with the baseline."
        )
    versions = next((trial.attrs["versions"] for trial in found.trials if trial.attrs.get("versions")), {})
    if versions:
        told.append(f"{', '.join(f'{name} {number}' for name, number in versions.items())}.")
    return " ".join(told)


def _time(found: Findings) -> str:
    hours = math.fsum(trial.compute_hours for trial in found.trials)
    text = f"{duration(hours).capitalize()} in trials" if hours else ""
    if found.context.seconds_run:
        run = duration(found.context.seconds_run / 3600)
        text += f"; the search ran for {run}" if text else f"The search ran for {run}"
    return f"{text}." if text else ""


def knob_rows(found: Findings) -> list[tuple[str, str, int]]:
    """Gives each knob that varies with the values that were tried, and in how many trials it was."""
    rows = []
    proposed = [trial for trial in found.trials if not trial.baseline]
    for name in found.knobs:
        tried = {repr(value): value for trial in found.points if (value := setting(trial, name)) is not None}
        tried |= {repr(value): value for trial in proposed if (value := setting(trial, name)) is not None}
        known = list(tried.values())
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known):
            known.sort()
        else:
            known.sort(key=lambda value: (len(value) if isinstance(value, (list, tuple)) else 0, str(value)))
        if len(known) > _FEW_VALUES and isinstance(known[0], (int, float)):
            text = f"{len(known)} values from {knob_value(known[0])} to {knob_value(known[-1])}"
        else:
            text = " | ".join(knob_value(value) for value in known[:_FEW_VALUES])
            text += f" | {len(known) - _FEW_VALUES} more" if len(known) > _FEW_VALUES else ""
        rows.append((name, text, sum(setting(trial, name) is not None for trial in proposed)))
    return rows


# Why.


def why(found: Findings) -> list[str]:
    """What explains the objectives, and how far that can be relied on."""
    if not found.knobs:
        return ["The designs do not differ in any knob, so nothing can be explained by one."]
    told = []
    for item in found.importance:
        name = axis(item.metric).split(" (")[0]
        shares = [(knob, share) for knob, share in item.shares.items() if share >= 0.01]
        if not shares:
            told.append(f"{name[:1].upper()}{name[1:]}: {several(item.designs, 'design')}, too few or too alike to explain.")
            continue
        first = listed([f"{knob} ({100 * share:.0f} %)" for knob, share in shares[:3]])
        text = f"{name[:1].upper()}{name[1:]}: of the variance over the space as learned from {item.designs} designs, "
        text += f"{first} explain most alone." if len(shares) > 1 else f"{first} explains most alone."
        pairs = [(pair, share) for pair, share in item.pairs.items() if share >= 0.03]
        if pairs:
            (one, other), share = pairs[0]
            text += f" {one} and {other} together explain {100 * share:.0f} % beyond that: what one is worth depends on the other."
        if math.isfinite(item.explained):
            text += f" Designs that were held back are predicted to {100 * max(0.0, item.explained):.0f} % of their variance."
        if item.doubt:
            text += f" Not to be relied on: {item.doubt}."
        if item.sampled:
            text += f" The {item.designs} designs are a random sample of {item.sampled:,}."
        told.append(text)
    return told


# What was refused, stopped or failed.


def ended(found: Findings) -> list[str]:
    """What did not come to its end, in sentences."""
    told = []
    for state, words in (
        (TrialState.FAILED, "failed"),
        (TrialState.INFEASIBLE, "broke a constraint"),
        (TrialState.STOPPED, "were stopped at a rung"),
    ):
        count = found.states[state]
        if count:
            hours = math.fsum(ending.hours for ending in found.endings if ending.state is state)
            words = "was stopped at a rung" if count == 1 and state is TrialState.STOPPED else words
            told.append(f"{several(count, 'trial')} {words}; {duration(hours)} went into {'it' if count == 1 else 'them'}.")
    return told or ["Every trial that ended came to its end."]


# What not to trust.


def doubts(found: Findings) -> list[tuple[str, str]]:
    """What not to trust, by topic. Every entry rests on figures of this study."""
    if not found.points:
        return []
    told = [("One seed", text) for text in _seeds(found)] + [("Latency", text) for text in _latency(found)]
    told += [("Validation", text) for text in _validation(found)]
    for item in found.importance:
        if item.shares and item.doubt:
            name = axis(item.metric).split(" (")[0]
            told.append(("Importance", f"What explains {name} is uncertain: {item.doubt}."))
    stopped = found.states[TrialState.STOPPED]
    if stopped:
        told.append(
            (
                "Stopped trials",
                f"{several(stopped, 'trial')} left at a rung, judged by AP before the last epoch. One that would have "
                "come up late is not on the front.",
            )
        )
    swept = [member for member in found.front if member.point]
    if swept:
        told.append(
            (
                "Sweeps",
                f"{several(len(swept), 'point')} of the front ({listed([member.label for member in swept])}) "
                f"{'is a further setting' if len(swept) == 1 else 'are further settings'} of inference knobs on a "
                "detector that was trained once; a training that went well or badly moves all its settings. Their "
                f"latency is measured on {several(found.context.study['speed']['images'], 'image')}.",
            )
        )
    learned = [member for member in found.front if "learning_epochs" in member.attrs]
    if learned:
        told.append(
            (
                "Learned designs",
                f"{listed([f'trial {member.label}' for member in learned])} settled into its form in a learning phase; "
                "with another seed it may settle differently. Figures are those of the settled network.",
            )
        )
    if found.endings and any(ending.state is TrialState.FAILED for ending in found.endings):
        failed = found.states[TrialState.FAILED]
        told.append(("Failures", f"{several(failed, 'design')} failed and {'is' if failed == 1 else 'are'} missing here."))
    return told


def _seeds(found: Findings) -> list[str]:
    seed = found.context.study["seed"]
    again = [point for point in found.confirmed if len(point.confirmed["seeds"]) > 1] if found.confirmed else []
    if not again:
        return [
            f"Each design was trained once, with seed {seed}. How far another seed would move its AP was not measured, so "
            "a small difference in AP between two designs may be chance."
        ]
    deviations = [
        item["std"] for point in again for item in point.confirmed["metrics"].values() if item["std"] is not None
    ]
    counts_ = sorted({len(point.confirmed["seeds"]) for point in again})
    seeds = f"{counts_[0]}" if len(counts_) == 1 else f"{counts_[0]} to {counts_[-1]}"
    text = f"{several(len(again), 'point')} of the front and the baseline were trained with {seeds} seeds."
    if deviations:
        low, high = 100 * min(deviations), 100 * max(deviations)
        text += f" The standard deviation of AP over seeds is {low:.1f} to {high:.1f} points."
    alike = {
        tuple(sorted((pair["one"], pair["other"])))
        for point in again
        for pair in point.confirmed["neighbours"]
        if pair["alike"]
    }
    if alike:
        text += f" Neighbours that cannot be told apart: {listed([f'{one} and {other}' for one, other in sorted(alike)])}."
    rest = [member.label for member in found.front if member.label not in {point.label for point in again}]
    if rest:
        text += f" {listed(rest)} of the front {'was' if len(rest) == 1 else 'were'} trained once only."
    return [text]


def _latency(found: Findings) -> list[str]:
    if not any(objective.metric.startswith("latency") for objective in found.objectives):
        return []
    told = []
    base = found.baseline
    if base is not None and {"aa_ratio", "aa_ratio_q1", "aa_ratio_q3"} <= base.metrics.keys():
        middle, low, high = (base.metrics[name] for name in ("aa_ratio", "aa_ratio_q1", "aa_ratio_q3"))
        told.append(
            f"Two builds of the baseline, measured against each other, came to a ratio of {middle:.3f} (quartiles "
            f"{low:.3f} to {high:.3f}): a difference of that size is no difference."
        )
    ends = [quartiles(member) for member in found.front]
    spreads = [high - low for pair in ends if pair and (low := pair[0]) != (high := pair[1])]
    if spreads:
        told.append(f"The quartiles of a latency ratio on the front lie {statistics.median(spreads):.3f} apart (median).")
    pairs = [(one, other) for one, other in pairwise(ends) if one and other]
    overlapping = sum(one[1] > other[0] and other[1] > one[0] for one, other in pairs)
    if overlapping and len(found.objectives) > 1 and found.objectives[1].metric.startswith("latency"):
        told.append(
            f"{overlapping} of {several(len(pairs), 'pair')} of neighbours on the front have overlapping quartiles: "
            "which of the two is faster is not certain."
        )
    return [" ".join(told)] if told else []


def _validation(found: Findings) -> list[str]:
    told = []
    report = found.context.data
    count = f" of {report.val.images:,} images" if report is not None else ""
    if len(found.points) > 1:
        told.append(
            f"The front was chosen by the validation split{count}, so the figures of the best designs are somewhat too "
            "good. What is to be shipped should be measured on images that no trial has seen."
        )
    if report is not None:
        few = [
            f"{size} objects rests on {several(number, 'object')}"
            for size, number in report.val.sizes.items()
            if 0 < number < _FEW_OBJECTS
        ]
        if few:
            told.append(f"AP of {listed(few)}: a few detections move it by points.")
    return told


# How to go on.


def commands(found: Findings) -> list[tuple[str, str]]:
    """Commands to go on with, and what each is for."""
    word, study = found.context.word, found.context.study
    name = found.context.name
    told = []
    if found.open:
        told.append((f"headway status {word}", "see what has not ended; the study's run command continues it"))
    failed = [ending for ending in found.endings if ending.state is TrialState.FAILED]
    if failed:
        told.append((f"headway status {word}", "see which trials failed, and why"))
    if found.points:
        if not found.confirmed and found.baseline is not None:
            told.append((f"headway confirm {word}", "train the front again with other seeds and time it together"))
        told.append((f"headway export {word} --pick knee --out bundles/{name}", "write a design as a bundle that runs alone"))
        told.append((f"headway verify bundles/{name}", "run the bundle in a clean process and compare"))
        told.append((f"headway ui {word}", "look at each trial in MLflow"))
    items = [item for item in found.importance if item.designs and item.designs < LEAST_TRIALS]
    if items and not study.get("designs") and found.baseline is not None:
        more = max(2 * study["budget"]["trials"], LEAST_TRIALS)
        told.append(
            (f"headway run STUDY.yaml --set budget.trials={more} --extend", "let the study grow; what is known is kept")
        )
    return list(dict.fromkeys(told))


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
                "design": short(choice.trial.knobs),
                "why": "",
            },
        )
        row["pick"] = f"{row['pick']}, {word}" if row["pick"] else word
        row["why"] = row["why"] or f"{choice.why[:1].upper()}{choice.why[1:]}."
    return list(rows.values())


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
                "get": figure(accuracy.metric, member.metrics[accuracy.metric]),
                "design": short(member.knobs),
            }
        )
    return rows
