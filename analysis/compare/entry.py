"""What is compared, and whether it can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from analysis.labels import axis
from analysis.pareto import is_point
from analysis.record import Objective, TrialRecord, spread
from spaces.errors import UserError, choices


@dataclass(frozen=True)
class Mark:
    """What identifies a split of a data set.

    Attributes:
        path: Where it lies, or how it is made.
        fingerprint: Of its contents, ``None`` where they cannot be read any more.
    """

    path: str
    fingerprint: str | None = None

    def same(self, other: Mark) -> bool | None:
        """Whether it is the same data; ``None`` where that is not known."""
        if self.fingerprint is not None and other.fingerprint is not None:
            return self.fingerprint == other.fingerprint
        return True if self.path == other.path else None


@dataclass(frozen=True)
class Terms:
    """What a study's figures rest on, in words that are equal where it is.

    Attributes:
        validation: The data that accuracy was measured on.
        training_data: The data that was trained on.
        classes: Those that were detected, ``all`` where the study file names none.
        image: Size that images were resized into.
        base: The base config.
        training: Epochs, weights, batch and learning rate.
        input: What was timed: size, batch, post-processing.
        device: What it was timed on.
    """

    validation: Mark
    training_data: Mark
    classes: str
    image: str
    base: str
    training: str
    input: str
    device: str


@dataclass(frozen=True)
class Entry:
    """A study in a comparison.

    Attributes:
        name: What it is called; different for each.
        records: All its trials, with what is known of their confirmation.
        objectives: The study's own.
        seed: The study's.
        terms: What its figures rest on.
        kind: Equal for replicas: studies that differ in nothing but name and seed.
        warm: Whether all trainings, those of other seeds too, continue from one warm start.
    """

    name: str
    records: Sequence[TrialRecord]
    objectives: Sequence[Objective]
    seed: int
    terms: Terms
    kind: str
    warm: bool = False

    @property
    def baseline(self) -> TrialRecord:
        """Trial 0 at its own setting of the inference knobs."""
        return next(record for record in spread(self.records) if record.baseline and not record.point)


def shared(entries: Sequence[Entry]) -> tuple[tuple[Objective, ...], list[str]]:
    """Gives the objectives that all studies have, milliseconds as ratios to each one's own baseline.

    Returns:
        The objectives, and which are left out, in words.

    Raises:
        UserError: There are fewer than two, or no accuracy among them, or a study has no COMPLETE baseline.
    """
    own = [[_as_ratio(objective) for objective in entry.objectives] for entry in entries]
    common = tuple(item for item in own[0] if all(item in other for other in own))
    if len(common) < 2 or not common[0].maximize:
        told = "; ".join(f"{entry.name} has {choices(o.metric for o in entry.objectives)}" for entry in entries)
        raise UserError(f"compare: studies must share an accuracy and another objective, but {told}.")
    for entry in entries:
        baseline = next((record for record in spread(entry.records) if record.baseline), None)
        if baseline is None or not is_point(baseline, common):
            state = "absent" if baseline is None else baseline.state.value
            raise UserError(
                f"compare: each study must have a COMPLETE baseline, to which its latencies are ratios, but trial 0 "
                f"of {entry.name} is {state}."
            )
    notes = []
    for entry, mine in zip(entries, own, strict=True):
        left = [axis(item.metric).split(" (")[0] for item in mine if item not in common]
        if left:
            notes.append(f"{entry.name} also searched for {choices(left, 'and')}, which is left out here.")
    return common, notes


def remarks(entries: Sequence[Entry]) -> list[str]:
    """Says what keeps the studies' figures apart, the gravest first.

    Raises:
        UserError: They were measured on different data: nothing can be compared.
    """
    first, said = entries[0], []
    for entry in entries[1:]:
        same = first.terms.validation.same(entry.terms.validation)
        if same is False or first.terms.classes != entry.terms.classes:
            what = "validation data" if same is False else "classes"
            mine, theirs = (
                (item.terms.validation.path if same is False else item.terms.classes) for item in (first, entry)
            )
            raise UserError(
                f"compare: studies must be measured on the same {what}, but {first.name} has {mine} and {entry.name} "
                f"has {theirs}: an AP of the one says nothing about the other."
            )
        if same is None:
            said.append(
                f"Whether {first.name} and {entry.name} were measured on the same images is not known: their data lies "
                f"in different places ({first.terms.validation.path}, {entry.terms.validation.path}) and is not there "
                "any more."
            )
        if first.terms.training_data.same(entry.terms.training_data) is False:
            said.append(f"{first.name} and {entry.name} were trained on different data.")
    for name, meaning in _MEANINGS.items():
        told: dict[str, list[str]] = {}
        for entry in entries:
            told.setdefault(getattr(entry.terms, name), []).append(entry.name)
        if len(told) > 1:
            words = "; ".join(f"{value} in {choices(names, 'and')}" for value, names in told.items())
            said.append(f"{meaning}: {words}.")
    return said


_MEANINGS: Mapping[str, str] = {
    "base": "The bases differ, so a ratio of latency is to another detector in each",
    "image": "Images were resized to different sizes, which changes AP and the latency that a ratio is to",
    "input": "Latency was measured on different inputs, which changes ratios",
    "device": "Latency was measured on different devices, on which ratios differ",
    "training": "They were trained differently, baselines too",
}


def baselines(entries: Sequence[Entry], accuracy: Objective) -> str:
    """Says in what sense the studies have one baseline, and what its figures in each tell of noise."""
    terms = [entry.terms for entry in entries]
    values = [100 * entry.baseline.metrics[accuracy.metric] for entry in entries]
    each = ", ".join(f"{value:.1f} % in {entry.name}" for value, entry in zip(values, entries, strict=True))
    told = f"{axis(accuracy.metric).split(' (')[0]} of the baseline: {each}."
    same = len({(term.base, term.image) for term in terms}) == 1
    alike = same and len({term.training for term in terms}) == 1
    alike = alike and all(terms[0].training_data.same(term.training_data) is not False for term in terms)
    if not same:
        return f"No common baseline: each study's is a detector of its own, and ratios are to it. {told}"
    if not alike:
        return f"One baseline, trained differently: its AP differs by that, and by noise. {told}"
    gap = max(values) - min(values)
    if len({entry.seed for entry in entries}) == 1:
        return (
            f"One baseline, trained alike and with one seed: {gap:.1f} points between its trainings are what the "
            f"machine adds. {told}"
        )
    return (
        f"One baseline, trained alike with {len({entry.seed for entry in entries})} seeds: {gap:.1f} points between "
        f"its trainings are noise, and so may be differences of that size between designs. {told}"
    )


def _as_ratio(objective: Objective) -> Objective:
    return replace(objective, metric="latency_ratio") if objective.metric == "latency_ms" else objective
