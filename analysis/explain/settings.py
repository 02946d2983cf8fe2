"""Knobs of trials as positions on an axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.labels import knob_value, short
from analysis.record import TrialRecord

LACKS = "–"
"""What stands for a knob that a design lacks."""
_MOST_LABELS = 12


def setting(record: TrialRecord, name: str) -> Any:
    """Gives a trial's value of a knob, or of a family's switch (``on``, ``off``); ``None`` where it lacks the knob."""
    if "." in name or name in record.knobs:
        return record.knobs.get(name)
    return "on" if any(knob.startswith(f"{name}.") for knob in record.knobs) else "off"


def varying(trials: Iterable[TrialRecord]) -> list[str]:
    """Names the knobs that differ between the trials other than the baseline, the switches of families first."""
    proposed = [trial for trial in trials if not trial.baseline]
    names = sorted({name for trial in proposed for name in trial.knobs})
    families = sorted({name.partition(".")[0] for name in names} - set(names))
    switches = [name for name in families if len({setting(trial, name) for trial in proposed}) > 1]
    seen: Mapping[str, set[str]] = {
        name: {repr(trial.knobs[name]) for trial in proposed if name in trial.knobs} for name in names
    }
    return [*switches, *(name for name in names if len(seen[name]) > 1)]


def brief(trial: TrialRecord, names: Sequence[str], longest: int | None = None) -> str:
    """Words a design by the knobs among ``names``, those that differ between the designs at hand."""
    told = {name: value for name, value in trial.knobs.items() if name in names}
    return short(told or trial.knobs, longest)


@dataclass(frozen=True)
class Ruler:
    """An axis of one knob.

    Attributes:
        numbers: Whether positions are the values themselves; else each value has a whole position of its own.
        labels: Text of each position where ``numbers`` is not set.
        places: Position by value, as ``repr`` writes it.
    """

    numbers: bool
    labels: Sequence[str]
    places: Mapping[str, float]

    @classmethod
    def of(cls, values: Iterable[Any]) -> Ruler:
        """Makes an axis for these values; ``None`` is a knob that is lacking, and stands first."""
        found = {repr(value): value for value in values}
        lacking = found.pop("None", found) is None
        known = list(found.values())
        ordered = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known)
        if ordered and not lacking and len(known) > _MOST_LABELS:
            return cls(True, (), {repr(value): float(value) for value in known})
        known.sort(key=(lambda value: value) if ordered else (lambda value: (_length(value), knob_value(value))))
        labels = [*([LACKS] if lacking else []), *(knob_value(value) for value in known)]
        places = {repr(value): float(index + lacking) for index, value in enumerate(known)}
        return cls(False, labels, {**places, "None": 0.0} if lacking else places)

    def place(self, value: Any) -> float:
        """Position of a value."""
        return self.places[repr(value)]


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (list, tuple)) else 0
