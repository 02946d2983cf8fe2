"""A search space: families with their knobs, on one base."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from spaces.base import BaseFacts
from spaces.errors import UserError, choices, unknown
from spaces.family import Family
from spaces.knob import Choice, Float, Integer, Knob, Subset
from spaces.patching import split
from spaces.registry import family as find_family

Design = dict[str, Any]


class Suggester(Protocol):
    """What a sampler offers; Optuna's ``Trial`` fits."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Proposes one of ``choices``."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """Proposes a number in [low, high]."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Proposes a whole number in [low, high]."""


@dataclass(frozen=True)
class FamilySpace:
    """One family in a space.

    Attributes:
        family: The family.
        full: Its knobs on this base, as the paper allows them.
        knobs: The same, narrowed by the user; proposals come from these.
        always: The family is on in every proposal.
    """

    family: Family
    full: tuple[Knob, ...]
    knobs: tuple[Knob, ...]
    always: bool = False

    def canonical(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Drops the knobs without effect; empty when the family is off."""
        active: dict[str, Any] = {}
        for knob in self.full:
            if knob.name in values and all(condition.holds(active) for condition in knob.active):
                active[knob.name] = values[knob.name]
        return {} if self._off(active) else active

    def _off(self, active: Mapping[str, Any]) -> bool:
        return any(all(one.holds(active) for one in setting) for setting in self.family.off_settings)

    def settings(self) -> list[dict[str, Any]]:
        """Lists the settings that can be proposed with the family on; all knobs must be finite."""
        found: list[dict[str, Any]] = [{}]
        for knob in self.knobs:
            grown = []
            for chosen in found:
                if not all(condition.holds(chosen) for condition in knob.active):
                    grown.append(chosen)
                    continue
                values = [knob.default] if knob.when == "inference" else knob.values() or []
                grown += [{**chosen, knob.name: value} for value in values]
            found = grown
        return found

    def export_limits(self) -> dict[str, str]:
        """By format, which of the designs that can be proposed lack it and why."""
        knobs = {knob.name: knob for knob in self.knobs}
        found: dict[str, list[str]] = {}
        for limit in self.family.export_limits:
            tried = {condition: knobs[condition.knob].values() for condition in limit.when if condition.knob in knobs}
            if len(tried) == len(limit.when) and all(
                values is None or any(condition.holds({condition.knob: value}) for value in values)
                for condition, values in tried.items()
            ):
                found.setdefault(limit.format, []).append(str(limit))
        return {name: "; ".join(reasons) for name, reasons in found.items()}

    def count(self) -> tuple[float, bool]:
        """Counts the canonical settings that can be proposed with the family on, and says whether off is among them.

        Combinations that the family calls illegal are not left out.
        """
        conditions = [condition for setting in self.family.off_settings for condition in setting]
        conditions += [condition for knob in self.knobs for condition in knob.active]
        return self._count(0, {}, {condition.knob for condition in conditions})

    def _count(self, index: int, chosen: dict[str, Any], deciding: set[str]) -> tuple[float, bool]:
        if index == len(self.knobs):
            return (0.0, True) if self._off(chosen) else (1.0, False)
        knob = self.knobs[index]
        if knob.when == "inference" or not all(condition.holds(chosen) for condition in knob.active):
            return self._count(index + 1, chosen, deciding)
        values = knob.values()
        # Knobs that no condition reads multiply the rest; a continuous one stands for its ends.
        tried = knob.extremes() if values is None else values if knob.name in deciding else values[:1]
        counts = [self._count(index + 1, {**chosen, knob.name: value}, deciding) for value in tried]
        total = sum(on for on, _ in counts)
        if values is None or knob.name not in deciding:
            total = total and knob.size() * total
        return total, any(off for _, off in counts)


@dataclass(frozen=True)
class Space:
    """The designs that a study may try.

    Attributes:
        base: Facts of the base.
        families: The families that vary, sorted by name.
    """

    base: BaseFacts
    families: tuple[FamilySpace, ...]

    @property
    def knobs(self) -> dict[str, Knob]:
        """All narrowed knobs by ``family.knob``."""
        return {f"{part.family.name}.{knob.name}": knob for part in self.families for knob in part.knobs}

    def canonicalise(self, values: Mapping[str, Any], who: str = "design") -> Design:
        """Checks a design and gives its canonical form: defaults filled in, knobs without effect dropped.

        Two settings that differ only in a dead branch have the same canonical form; the base itself is ``{}``.

        Raises:
            UserError: An unknown family or knob, or a value that is not legal on this base.
        """
        known = {part.family.name: part for part in self.families}
        design: Design = {}
        for name in dict.fromkeys(key.partition(".")[0] for key in values):
            if name not in known:
                raise unknown(who, name, known)
        for name, part in known.items():
            given = {key.partition(".")[2]: value for key, value in values.items() if key.partition(".")[0] == name}
            if not given:
                continue
            full = {knob.name: knob for knob in part.full}
            for knob_name in given:
                if knob_name not in full:
                    raise unknown(f"{who}: {name}", knob_name, full)
            filled = {knob.name: given.get(knob.name, knob.default) for knob in part.full}
            checked = {key: full[key].check(value, f"{name}.{key}") for key, value in filled.items()}
            canonical = part.canonical(checked)
            reason = part.family.illegal(canonical, self.base) if canonical else None
            if reason:
                raise UserError(f"{who}: {name}: {reason}")
            design.update({f"{name}.{key}": _listed(value) for key, value in canonical.items()})
        present = split(design)
        for one, other in itertools.combinations(present, 2):
            reason = conflict(known[one].family, known[other].family)
            if reason:
                raise UserError(f"{who}: {one} cannot go together with {other}: {reason}")
        for name in present:
            reason = known[name].family.clash(present, self.base)
            if reason:
                raise UserError(f"{who}: {name}: {reason}")
        return design

    def suggest(self, ask: Suggester) -> Design:
        """Proposes a canonical design, asking only for the knobs that matter and are not swept after training.

        Legal by construction but for families' ``illegal`` and ``clash``; those raise ``UserError``.
        """
        values: dict[str, Any] = {}
        chosen_families: list[Family] = [part.family for part in self.families if part.always]
        for part in self.families:
            name = part.family.name
            if any(conflict(part.family, other) for other in chosen_families):
                continue
            if not part.always and len(self.families) > 1 and not ask.suggest_categorical(name, [True, False]):
                continue
            chosen: dict[str, Any] = {}
            for knob in part.knobs:
                if all(condition.holds(chosen) for condition in knob.active):
                    swept = knob.when == "inference"
                    chosen[knob.name] = knob.default if swept else _propose(knob, f"{name}.{knob.name}", ask)
            chosen_families.append(part.family)
            values.update({f"{name}.{key}": value for key, value in chosen.items()})
        return self.canonicalise(values)

    def recall(self, design: Mapping[str, Any]) -> dict[str, Any] | None:
        """Gives what a sampler would have to answer for this design to be proposed, by the names it is asked for.

        Returns:
            ``{"slimhead": True, "slimhead.levels.0": True, ...}``; ``None`` when the space does not propose the design.
        """
        answers = _Answers(design, self.knobs)
        try:
            found = self.suggest(answers)
        except (UserError, LookupError):
            return None
        wanted = {name: value for name, value in design.items() if not self._swept(name)}
        same = {name: value for name, value in found.items() if not self._swept(name)} == wanted
        return answers.given if same else None

    def known(self) -> list[Design]:
        """Gives the papers' best settings as far as the space proposes them: each family alone, then all together."""
        alone = [{f"{part.family.name}.{knob.name}": knob.default for knob in part.knobs} for part in self.families]
        together: dict[str, Any] = {}
        chosen: list[Family] = []
        for part, values in zip(self.families, alone, strict=True):
            if not any(conflict(part.family, other) for other in chosen):
                chosen.append(part.family)
                together |= values
        return [design for design in self._distinct([*alone, together]) if self.recall(design) is not None]

    def _swept(self, name: str) -> bool:
        return name in self.knobs and self.knobs[name].when == "inference"

    def designs(self, limit: int = 100_000) -> list[Design]:
        """Lists every design that can be proposed, the base left out, in a fixed order.

        Args:
            limit: Most designs to list.

        Raises:
            UserError: A knob is continuous, or there are more than ``limit``.
        """
        size = self.size()
        if size > limit:
            loose = [name for name, knob in self.knobs.items() if knob.when != "inference" and knob.values() is None]
            why = (
                f"{choices(loose)} is continuous" if loose else f"it has {size:,.0f} designs, and {limit:,} is the most"
            )
            raise UserError(f"space: must be small enough to try whole, but {why}; narrow it to lists of values.")
        options: list[list[dict[str, Any]]] = []
        for part in self.families:
            name = part.family.name
            settings = [{f"{name}.{key}": value for key, value in chosen.items()} for chosen in part.settings()]
            alone = part.always or len(self.families) == 1
            options.append(settings if alone else [{}, *settings])
        return self._distinct(
            {key: value for setting in combination for key, value in setting.items()}
            for combination in itertools.product(*options)
        )

    def size(self) -> float:
        """Counts the distinct designs that can be proposed, the base included where it can be.

        Infinite with a continuous knob; an upper bound where families have illegal combinations or conflicts.
        """
        total = 1.0
        for part in self.families:
            settings, off = part.count()
            total *= settings + (off or not (part.always or len(self.families) == 1))
        return total

    def corners(self, limit: int = 64) -> list[Design]:
        """Gives distinct designs at the ends of the knobs' ranges: the families together, then each alone, in turns.

        Args:
            limit: Most designs to give.
        """
        alone: list[list[Design]] = []
        for part in self.families:
            names = [f"{part.family.name}.{knob.name}" for knob in part.knobs]
            combos = itertools.islice(itertools.product(*(knob.extremes() for knob in part.knobs)), 4 * limit)
            alone.append(self._distinct(dict(zip(names, combo, strict=True)) for combo in combos))
        alone = [designs for designs in alone if designs]
        longest = max(map(len, alone), default=0)
        together = (
            {key: value for designs in alone for key, value in designs[index % len(designs)].items()}
            for index in range(longest)
        )
        turns = (design for row in itertools.zip_longest(*alone) for design in row if design)
        return self._distinct(itertools.chain(together, turns))[:limit]

    def _distinct(self, settings: Iterable[Mapping[str, Any]]) -> list[Design]:
        """Canonicalises; drops repetitions, illegal settings and the base."""
        found: dict[str, Design] = {}
        for values in settings:
            try:
                design = self.canonicalise(values)
            except UserError:
                continue
            if design:
                found.setdefault(design_hash(design), design)
        return list(found.values())

    def sweep(self, design: Design) -> list[Design]:
        """Gives the designs that differ from this one in inference knobs only: one training serves them all.

        The design itself comes first, whatever its own inference knobs are; where it has none, it is the only one.
        """
        swept = {name: knob for name, knob in self.knobs.items() if knob.when == "inference"}
        present = {name for name in swept if name.partition(".")[0] in split(design)}
        found = {design_hash(design): design}
        for values in itertools.product(*(swept[name].swept() for name in sorted(present))):
            setting = {**design, **dict(zip(sorted(present), values, strict=True))}
            try:
                point = self.canonicalise(setting)
            except UserError:
                continue
            if point:
                found.setdefault(design_hash(point), point)
        return list(found.values())

    def excluded(self) -> list[tuple[str, str, str]]:
        """Lists the pairs of families that are never proposed together, each with the reason."""
        pairs = itertools.combinations((part.family for part in self.families), 2)
        found = ((one.name, other.name, conflict(one, other)) for one, other in pairs)
        return [(one, other, reason) for one, other, reason in found if reason]

    def on_images(self, design: Mapping[str, Any]) -> bool:
        """Says whether the latency of a design depends on the image and on its trained weights."""
        present = split(design)
        return any(part.family.on_images for part in self.families if part.family.name in present)

    def learns(self, design: Mapping[str, Any]) -> bool:
        """Says whether a part of the network is learned and then fixed: its cost is known only after that."""
        present = split(design)
        learners = [part.family for part in self.families if part.family.learns and part.family.name in present]
        return any(all(test.holds(present[family.name]) for test in family.learns) for family in learners)

    def may_learn(self) -> bool:
        """Says whether any design that can be proposed learns a part of its network."""
        return any(
            all(test.value in (knob.values() or ()) for test in part.family.learns for knob in part.knobs
                if knob.name == test.knob)
            for part in self.families
            if part.family.learns
        )  # fmt: skip

    def architecture(self, design: Mapping[str, Any]) -> Design:
        """Keeps the knobs that change the network; designs that agree on these share cost and speed."""
        when = {f"{part.family.name}.{knob.name}": knob.when for part in self.families for knob in part.full}
        return {key: value for key, value in design.items() if when.get(key, "architecture") == "architecture"}


def build_space(families: Mapping[str, Mapping[str, Any] | None], base: BaseFacts, who: str = "space") -> Space:
    """Builds the space of a study file's ``space`` section.

    Args:
        families: From a family's name to how its knobs are narrowed; ``{}`` or ``None`` for all of them. A knob is
            narrowed to one value, a list of values or a mapping of bounds; ``always: true`` keeps a family on.
        base: Facts of the base.
        who: Name of the section in messages.

    Raises:
        UserError: An unknown family or knob, a wrong narrowing, or a family that does not work on this base.
    """
    parts = []
    for name in sorted(families):
        family = find_family(name, who)
        refusal = family.refusal(base)
        if refusal:
            raise UserError(f"{who}.{name}: {refusal}")
        full = family.knobs(base)
        narrowed = {knob.name: knob for knob in full}
        always = False
        specs = families[name] or {}
        if not isinstance(specs, Mapping):
            raise UserError(f"{who}.{name}: must be a mapping of knobs, but got {specs!r}.")
        for key, spec in specs.items():
            if key == "always":
                if not isinstance(spec, bool):
                    raise UserError(f"{who}.{name}.always: must be true or false, but got {spec!r}.")
                always = spec
            elif key in narrowed:
                narrowed[key] = narrowed[key].narrow(spec, f"{who}.{name}.{key}")
            else:
                raise unknown(f"{who}.{name}", str(key), [*narrowed, "always"])
        parts.append(FamilySpace(family, full, tuple(narrowed.values()), always))
    for one, other in itertools.combinations((part for part in parts if part.always), 2):
        reason = conflict(one.family, other.family)
        if reason:
            raise UserError(f"{who}: {one.family.name} cannot go together with {other.family.name}: {reason}")
    if not parts:
        raise UserError(f"{who}: must name at least one family; 'headway families' lists them.")
    return Space(base, tuple(parts))


def conflict(one: Family, other: Family) -> str | None:
    """Says why two families cannot go together, whichever of them names it; ``None`` when they can."""
    return one.conflicts.get(other.name) or other.conflicts.get(one.name)


def full_space(base: BaseFacts) -> Space:
    """The space of every family that works on ``base``."""
    from spaces.registry import families

    fitting = {name: None for name, family in families().items() if not family.refusal(base)}
    if not fitting:
        heads = sorted({head for family in families().values() for head in family.heads})
        raise UserError(f"base: no family works on {base.head} of {base.detector}; they work on {choices(heads)}.")
    return build_space(fitting, base)


def design_hash(design: Mapping[str, Any]) -> str:
    """Names a canonical design: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(design, sort_keys=True, default=list).encode()).hexdigest()[:12]


class _Answers:
    """A suggester that answers from a design, and notes what it was asked for."""

    def __init__(self, design: Mapping[str, Any], knobs: Mapping[str, Knob]) -> None:
        self._design, self._knobs = design, knobs
        self._present = split(design)
        self.given: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Gives the choice that the design has made.

        Raises:
            LookupError: It is none of these.
        """
        value = self._value(name)
        for choice in choices:
            if choice == value or (isinstance(value, list) and choice == json.dumps(value)):
                self.given[name] = choice
                return choice
        raise LookupError(name)

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """Gives the design's number.

        Raises:
            LookupError: It lies outside.
        """
        return self._number(name, low, high)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Gives the design's number.

        Raises:
            LookupError: It lies outside.
        """
        return int(self._number(name, low, high))

    def _number(self, name: str, low: float, high: float) -> float:
        value: float = self._value(name)
        if not low - 1e-9 <= value <= high + 1e-9:
            raise LookupError(name)
        self.given[name] = value
        return value

    def _value(self, name: str) -> Any:
        if "." not in name:
            return name in self._present
        if name in self._design:
            return self._design[name]
        knob, _, element = name.rpartition(".")
        while knob not in self._knobs:
            knob, _, rest = knob.rpartition(".")
            element = f"{rest}.{element}"
            if not knob:
                raise LookupError(name)
        chosen = self._design[knob]
        return len(chosen) if element == "first" else element in map(str, chosen)


def _propose(knob: Knob, name: str, ask: Suggester) -> Any:
    if isinstance(knob, Choice):
        # Optuna keeps categories as scalars, so lists are proposed by their index.
        values = knob.values()
        if any(isinstance(choice, tuple) for choice in values):
            labels = [json.dumps(choice) for choice in values]
            return values[labels.index(ask.suggest_categorical(name, labels))]
        return ask.suggest_categorical(name, values)
    if isinstance(knob, Integer):
        return ask.suggest_int(name, knob.low, knob.high)
    if isinstance(knob, Float):
        grid = knob.values()
        if grid is None or knob.step is None or len(grid) == 1:
            return ask.suggest_float(name, knob.low, grid[-1] if grid else knob.high)
        proposed = ask.suggest_float(name, grid[0], grid[-1], step=knob.step)
        return min(grid, key=lambda value: abs(value - proposed))
    assert isinstance(knob, Subset)
    return _propose_subset(knob, name, ask)


def _propose_subset(knob: Subset, name: str, ask: Suggester) -> tuple[Any, ...]:
    if knob.prefixes:
        most = min(knob.max_size, len(knob.among))
        return knob.among[: ask.suggest_int(f"{name}.first", knob.min_size, most)]
    chosen: list[Any] = []
    for index, element in enumerate(knob.among):
        if len(knob.widest(chosen, [element])) == len(chosen):
            continue
        # An element that is needed to reach the least size is not a choice.
        without = knob.widest(chosen, knob.among[index + 1 :])
        if len(without) < knob.min_size or ask.suggest_categorical(f"{name}.{element}", [True, False]):
            chosen.append(element)
    return tuple(chosen)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value
