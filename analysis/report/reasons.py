"""Why the points are where they are, and what became of the trials that are none."""

from __future__ import annotations

import math

from analysis.labels import axis
from analysis.record import TrialState
from analysis.report.findings import Findings
from analysis.report.words import capital, duration, listed, several


def why(found: Findings) -> list[str]:
    """What explains the objectives, and how far that can be relied on."""
    if not found.knobs:
        return ["The designs do not differ in any knob, so nothing can be explained by one."]
    told = []
    for item in found.importance:
        name = capital(axis(item.metric).split(" (")[0])
        shares = [(knob, share) for knob, share in item.shares.items() if share >= 0.01]
        if not shares:
            told.append(f"{name}: what explains it cannot be said from {several(item.designs, 'design')}.")
            continue
        first = listed([f"{knob} explains {100 * share:.0f} %" for knob, share in shares[:3]])
        text = f"{name}: uncertain, {item.doubt}. " if item.doubt else f"{name}: "
        text += f"{'Of' if item.doubt else 'of'} the variance over the space, as learned from {item.designs} designs, "
        text += f"{first}, each alone." if len(shares) > 1 else f"{first} alone."
        pairs = [(pair, share) for pair, share in item.pairs.items() if share >= 0.03]
        if pairs:
            (one, other), share = pairs[0]
            text += f" {one} and {other} together explain {100 * share:.0f} % beyond that: what one is worth "
            text += "depends on the other."
        if math.isfinite(item.explained):
            foreseen = 100 * max(0.0, item.explained)
            text += f" Of designs that were held back, {foreseen:.0f} % of the variance is predicted."
        if item.sampled:
            text += f" The {item.designs} designs are a random sample of {item.sampled:,}."
        told.append(text)
    return told


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
            told.append(
                f"{several(count, 'trial')} {words}; {duration(hours)} went into {'it' if count == 1 else 'them'}."
            )
    return told or ["Every trial that ended came to its end."]
