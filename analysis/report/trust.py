"""What not to trust. Every sentence rests on figures of the study."""

from __future__ import annotations

import statistics
from itertools import pairwise

from analysis.labels import axis
from analysis.record import TrialState
from analysis.report.findings import Findings, quartiles
from analysis.report.words import listed, several

_FEW_OBJECTS = 100


def doubts(found: Findings) -> list[tuple[str, str]]:
    """What not to trust, by topic. Every entry rests on figures of this study."""
    if not found.points:
        return []
    told = [("Seeds", _seeds(found)), ("Latency", _latency(found)), ("Validation", _validation(found))]
    unsure = [
        f"What explains {axis(item.metric).split(' (')[0]} is uncertain: {item.doubt}."
        for item in found.importance
        if item.doubt and found.knobs
    ]
    told.append(("Importance", " ".join(unsure)))
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
        told.append(
            ("Failures", f"{several(failed, 'design')} failed and {'is' if failed == 1 else 'are'} missing here.")
        )
    return [(topic, text) for topic, text in told if text]


def _seeds(found: Findings) -> str:
    seed = found.context.study["seed"]
    known = [(point, point.confirmed or {}) for point in found.confirmed]
    again = {point.label: confirmed for point, confirmed in known if len(confirmed["seeds"]) > 1}
    if not again:
        return (
            f"Each design was trained once, with seed {seed}. How far another seed would move its AP was not measured, "
            "so a small difference in AP between two designs may be chance."
        )
    stds = [confirmed["metrics"].get("bbox_mAP", {}).get("std") for confirmed in again.values()]
    deviations = [value for value in stds if value is not None]
    often = sorted({len(confirmed["seeds"]) for confirmed in again.values()})
    seeds = f"{often[0]}" if len(often) == 1 else f"{often[0]} to {often[-1]}"
    text = f"{several(len(again), 'point')}, of the front or the baseline, were trained with {seeds} seeds."
    if deviations:
        low, high = 100 * min(deviations), 100 * max(deviations)
        text += f" The standard deviation of AP over seeds is {low:.1f} to {high:.1f} points."
    alike = {
        tuple(sorted((pair["one"], pair["other"])))
        for confirmed in again.values()
        for pair in confirmed["neighbours"]
        if pair["alike"]
    }
    if alike:
        pairs = listed([f"{one} with {other}" for one, other in sorted(alike)])
        text += f" Neighbours that cannot be told apart in something: {pairs}."
    rest = [member.label for member in found.front if member.label not in again]
    if rest:
        text += f" {listed(rest)} of the front {'was' if len(rest) == 1 else 'were'} trained once only."
    return text


def _latency(found: Findings) -> str:
    if not any(objective.metric.startswith("latency") for objective in found.objectives):
        return ""
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
        told.append(
            f"The quartiles of a latency ratio on the front lie {statistics.median(spreads):.3f} apart (median)."
        )
    pairs = [(one, other) for one, other in pairwise(ends) if one and other]
    overlapping = sum(one[1] > other[0] and other[1] > one[0] for one, other in pairs)
    if overlapping and len(found.objectives) > 1 and found.objectives[1].metric.startswith("latency"):
        told.append(
            f"{overlapping} of {several(len(pairs), 'pair')} of neighbours on the front have overlapping quartiles: "
            "which of the two is faster is not certain."
        )
    return " ".join(told)


def _validation(found: Findings) -> str:
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
    return " ".join(told)
