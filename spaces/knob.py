"""Knobs: one choice each, as frozen data that survives JSON."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as fields_of
from typing import Any, ClassVar, Literal

from spaces.errors import UserError, choices, unknown

Matters = Literal["architecture", "training", "inference"]
Test = Literal["nonempty", "equals", "below", "above", "in"]


@dataclass(frozen=True)
class Condition:
    """A test on another knob of the same family.

    Attributes:
        knob: Name of the other knob.
        test: ``nonempty``, ``equals``, ``below``, ``above`` or ``in``.
        value: What it is compared with; unused by ``nonempty``.
    """

    knob: str
    test: Test
    value: Any = None

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Evaluates the test; a knob without a value fails every test."""
        if self.knob not in values:
            return False
        value = values[self.knob]
        if self.test == "nonempty":
            return bool(value)
        if self.test == "equals":
            return bool(value == self.value)
        if self.test == "below":
            return bool(value < self.value)
        if self.test == "above":
            return bool(value > self.value)
        return value in self.value


@dataclass(frozen=True, kw_only=True)
class Knob(ABC):
    """What every knob has.

    Attributes:
        name: Name within its family.
        when: ``architecture`` (changes the network), ``training`` (only how it is trained) or ``inference``
            (can be changed after training).
        help: One line of meaning, with the unit.
        default: The paper's best value.
        active: All of these must hold, else the knob has no effect and is dropped from the design.
        sweep: Of an ``inference`` knob that is not narrowed: the values tried on each trained detector.
        note: Why a value that one might expect is not legal on this base: a sentence that follows the error message.
    """

    name: str
    when: Matters
    help: str
    default: Any
    active: tuple[Condition, ...] = ()
    sweep: tuple[Any, ...] = ()
    note: str = ""
    kind: ClassVar[str] = ""
    narrowing: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def legal(self) -> str:
        """Describes the legal values for an error message."""

    @abstractmethod
    def check(self, value: Any, who: str) -> Any:
        """Gives the canonical form of ``value``.

        Raises:
            UserError: The value is not legal; the message starts with ``who``.
        """

    def narrow(self, spec: Any, who: str) -> Knob:
        """Gives the knob that proposes only what ``spec`` allows: one value, a list of values, or a mapping of bounds.

        Raises:
            UserError: The specification is not understood or leaves nothing.
        """
        if isinstance(spec, Mapping):
            fields = {}
            for key, value in spec.items():
                if key not in self.narrowing:
                    raise unknown(who, str(key), self.narrowing)
                fields[self.narrowing[key]] = tuple(value) if isinstance(value, list) else value
            return self._bounded(fields, who)
        if isinstance(spec, list) and not self._is_value(spec):
            if not spec:
                raise UserError(f"{who}: must allow at least one value, but got an empty list.")
            return self._among([self.check(value, f"{who}[{index}]") for index, value in enumerate(spec)])
        return self._among([self.check(spec, who)])

    def _is_value(self, spec: list[Any]) -> bool:
        return False

    @abstractmethod
    def _bounded(self, fields: dict[str, Any], who: str) -> Knob:
        """Gives the knob with these fields narrowed."""

    def _among(self, values: Sequence[Any]) -> Choice:
        unique = tuple(dict.fromkeys(_frozen(value) for value in values))
        default = self.default if _frozen(self.default) in unique else unique[0]
        return Choice(
            name=self.name,
            when=self.when,
            help=self.help,
            default=default,
            active=self.active,
            sweep=unique if self.when == "inference" else (),
            choices=unique,
        )

    def swept(self) -> tuple[Any, ...]:
        """Gives the values to try on a trained detector, the default first."""
        return tuple(dict.fromkeys((self.default, *self.sweep)))

    @abstractmethod
    def values(self) -> list[Any] | None:
        """All values that can be proposed, ``None`` for a continuous range."""

    def size(self) -> float:
        """Counts the values that can be proposed; infinite for a continuous range."""
        values = self.values()
        return math.inf if values is None else len(values)

    @abstractmethod
    def extremes(self) -> tuple[Any, ...]:
        """Gives the values at the corners of the range, for building a space's corners before a search."""

    def to_json(self) -> dict[str, Any]:
        """Gives plain JSON types that ``knob_from_json`` reads."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Choice(Knob):
    """One of a few values without an order.

    Attributes:
        choices: The legal values.
        proposed: Those that are proposed where the user does not narrow the knob; empty for all of them. What only an
            ablation needs is legal, but not searched unasked.
    """

    choices: tuple[Any, ...]
    proposed: tuple[Any, ...] = ()
    kind: ClassVar[str] = "choice"
    narrowing: ClassVar[Mapping[str, str]] = {"among": "choices"}

    def legal(self) -> str:
        return choices(_plain(value) for value in self.choices)

    def check(self, value: Any, who: str) -> Any:
        # YAML reads a bare off as false.
        frozen = "off" if value is False and "off" in self.choices else _frozen(value)
        for choice in self.choices:
            if frozen == choice and isinstance(frozen, bool) == isinstance(choice, bool):
                return choice
        raise UserError(f"{who}: must be {self.legal()}, but got {value!r}. {self.note}".rstrip())

    def _is_value(self, spec: list[Any]) -> bool:
        return _frozen(spec) in self.choices

    def _bounded(self, fields: dict[str, Any], who: str) -> Knob:
        among = fields.get("choices", self.choices)
        if not isinstance(among, tuple) or not among:
            raise UserError(f"{who}.among: must be a list of at least one value, but got {_plain(among)!r}.")
        return self._among([self.check(value, f"{who}.among[{index}]") for index, value in enumerate(among)])

    def values(self) -> list[Any]:
        return list(self.proposed or self.choices)

    def extremes(self) -> tuple[Any, ...]:
        return self.proposed or self.choices


@dataclass(frozen=True, kw_only=True)
class Number(Choice):
    """A number in [low, high] of which only ``choices`` are proposed where the user does not narrow the knob."""

    low: float
    high: float
    kind: ClassVar[str] = "number"
    narrowing: ClassVar[Mapping[str, str]] = {"low": "low", "high": "high", "step": "step"}

    def legal(self) -> str:
        return f"[{self.low:g}, {self.high:g}]"

    def check(self, value: Any, who: str) -> float:
        return self._range().check(value, who)

    def _is_value(self, spec: list[Any]) -> bool:
        return False

    def _bounded(self, fields: dict[str, Any], who: str) -> Knob:
        return self._range()._bounded(fields, who)

    def _range(self) -> Float:
        shared = {item.name: getattr(self, item.name) for item in fields_of(Knob)}
        return Float(**shared, low=self.low, high=self.high)


@dataclass(frozen=True, kw_only=True)
class Table(Choice):
    """Numbers by name, kept as tuples (name, number, ...) sorted by name.

    Written as a mapping ``{name: [number, ...]}`` or as a list of ``[name, number, ...]``. Where the user does not
    narrow the knob, only ``choices`` are proposed.

    Attributes:
        names: The legal names; a table has some of them.
        width: Numbers of each name.
        high: Largest legal number; the smallest is 0.
    """

    choices: tuple[Any, ...] = ((),)
    names: tuple[str, ...]
    width: int
    high: float
    kind: ClassVar[str] = "table"

    def legal(self) -> str:
        numbers = "a number" if self.width == 1 else f"{self.width} numbers"
        return f"a table of {numbers} in [0, {self.high:g}] by name ({{NAME: [...]}} or [[NAME, ...]])"

    def check(self, value: Any, who: str) -> tuple[Any, ...]:
        rows = [[name, *_items(numbers)] for name, numbers in value.items()] if isinstance(value, Mapping) else value
        if not isinstance(rows, (list, tuple)) or not all(_is_row(row) for row in rows):
            raise UserError(f"{who}: must be {self.legal()}, but got {value!r}. {self.note}".rstrip())
        table: dict[str, tuple[float, ...]] = {}
        for name, *numbers in rows:
            if name not in self.names:
                raise unknown(who, name, self.names)
            if name in table:
                raise UserError(f"{who}: must name each at most once, but got {name} twice.")
            if len(numbers) != self.width or not all(map(self._fits, numbers)):
                raise UserError(
                    f"{who}: {name}: must be {self.width} numbers in [0, {self.high:g}], but got {numbers!r}."
                )
            table[name] = tuple(map(float, numbers))
        return tuple((name, *table[name]) for name in sorted(table))

    def _fits(self, number: Any) -> bool:
        return isinstance(number, (int, float)) and not isinstance(number, bool) and 0 <= number <= self.high

    def narrow(self, spec: Any, who: str) -> Knob:
        if isinstance(spec, Mapping):
            return self._among([self.check(spec, who)])
        return super().narrow(spec, who)

    def _is_value(self, spec: list[Any]) -> bool:
        return all(map(_is_row, spec))


@dataclass(frozen=True, kw_only=True)
class Float(Knob):
    """A number in [low, high]; proposals lie on a grid of ``step`` from ``low`` where one is given."""

    low: float
    high: float
    step: float | None = None
    kind: ClassVar[str] = "float"
    narrowing: ClassVar[Mapping[str, str]] = {"low": "low", "high": "high", "step": "step"}

    def legal(self) -> str:
        return f"[{self.low:g}, {self.high:g}]"

    def check(self, value: Any, who: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            raise UserError(f"{who}: must lie in {self.legal()}, but got {value!r}.")
        return float(value)

    def _bounded(self, fields: dict[str, Any], who: str) -> Knob:
        low = self.check(fields.get("low", self.low), f"{who}.low")
        high = self.check(fields.get("high", self.high), f"{who}.high")
        step = fields.get("step", self.step)
        if low > high:
            raise UserError(f"{who}: low must not lie above high, but got low {low:g} and high {high:g}.")
        number = isinstance(step, (int, float)) and not isinstance(step, bool)
        if step is not None and not (number and 0 < step < math.inf):
            raise UserError(f"{who}.step: must be a number above 0, but got {step!r}.")
        return replace(
            self,
            low=low,
            high=high,
            step=step,
            default=min(max(self.default, low), high),
            sweep=_within(self.sweep, low, high),
        )

    def values(self) -> list[float] | None:
        if self.low == self.high:
            return [self.low]
        if self.step is None:
            return None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        # Rounded for the eye (0.15, not 0.15000000000000002), but never across a bound.
        grid = (round(self.low + index * self.step, 10) for index in range(count))
        return [min(max(value, self.low), self.high) for value in grid]

    def extremes(self) -> tuple[Any, ...]:
        return (self.low,) if self.low == self.high else (self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Integer(Knob):
    """A whole number in [low, high]."""

    low: int
    high: int
    kind: ClassVar[str] = "integer"
    narrowing: ClassVar[Mapping[str, str]] = {"low": "low", "high": "high"}

    def legal(self) -> str:
        return f"a whole number in [{self.low}, {self.high}]"

    def check(self, value: Any, who: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise UserError(f"{who}: must be {self.legal()}, but got {value!r}.")
        return value

    def _bounded(self, fields: dict[str, Any], who: str) -> Knob:
        low = self.check(fields.get("low", self.low), f"{who}.low")
        high = self.check(fields.get("high", self.high), f"{who}.high")
        if low > high:
            raise UserError(f"{who}: low must not lie above high, but got low {low} and high {high}.")
        default = min(max(self.default, low), high)
        return replace(self, low=low, high=high, default=default, sweep=_within(self.sweep, low, high))

    def values(self) -> list[int]:
        return list(range(self.low, self.high + 1))

    def extremes(self) -> tuple[Any, ...]:
        return (self.low,) if self.low == self.high else (self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Subset(Knob):
    """A set of elements, kept as a tuple in the order of ``elements``.

    Proposals choose each element by a yes or no of its own, so that a sampler can learn what each one is worth.

    Attributes:
        elements: All elements. Strings ``group.position`` form groups, ``cls.0`` and ``reg.0`` for instance.
        among: Elements that may be proposed.
        min_size: Least number of elements of a proposal.
        max_size: Most elements of a proposal.
        max_per_group: Most elements of one group in a proposal.
        prefixes: Propose only the first k of ``among``, for k from ``min_size`` to ``max_size``.
        shorthand: Further spellings of a value: from a word or element to the elements it stands for.
    """

    elements: tuple[Any, ...]
    among: tuple[Any, ...]
    min_size: int = 1
    max_size: int = 1_000
    max_per_group: int = 1_000
    prefixes: bool = False
    shorthand: Mapping[Any, tuple[Any, ...]]
    kind: ClassVar[str] = "subset"
    narrowing: ClassVar[Mapping[str, str]] = {
        "among": "among",
        "min_size": "min_size",
        "max_size": "max_size",
        "max_layers": "max_per_group",
        "prefixes": "prefixes",
    }

    def legal(self) -> str:
        extra = f" (short: {choices(self.shorthand)})" if self.shorthand else ""
        return f"a list of {choices(self.elements)}{extra}"

    def check(self, value: Any, who: str) -> tuple[Any, ...]:
        if isinstance(value, str) or not isinstance(value, Iterable):
            value = [value]
        chosen: set[Any] = set()
        for item in value:
            expanded = self._expand(item)
            if expanded is None:
                raise UserError(f"{who}: must be {self.legal()}, but got {item!r}. {self.note}".rstrip())
            chosen.update(expanded)
        return tuple(element for element in self.elements if element in chosen)

    def _expand(self, item: Any) -> tuple[Any, ...] | None:
        if isinstance(item, bool) or not isinstance(item, Hashable):
            return None
        for key in (item, str(item)):
            if key in self.elements:
                return (key,)
            if key in self.shorthand:
                return tuple(self.shorthand[key])
        return None

    def _is_value(self, spec: list[Any]) -> bool:
        return not any(isinstance(item, (list, tuple)) for item in spec)

    def _bounded(self, fields: dict[str, Any], who: str) -> Knob:
        if "among" in fields:
            fields["among"] = self.check(fields["among"], f"{who}.among")
        for key, field in self.narrowing.items():
            value = fields.get(field, 0)
            if field == "prefixes":
                if not isinstance(value, bool) and value != 0:
                    raise UserError(f"{who}.prefixes: must be true or false, but got {value!r}.")
            elif field != "among" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise UserError(f"{who}.{key}: must be a whole number of 0 or more, but got {value!r}.")
        knob = replace(self, **fields)
        sets = knob.values()
        if not sets:
            raise UserError(f"{who}: no set of {choices(knob.among)} fits these limits.")
        return knob if knob.default in sets else replace(knob, default=sets[0])

    def values(self) -> list[tuple[Any, ...]]:
        most = min(self.max_size, len(self.among))
        sizes = range(self.min_size, most + 1)
        if self.prefixes:
            return [self.among[:size] for size in sizes]
        sets = itertools.chain.from_iterable(itertools.combinations(self.among, size) for size in sizes)
        return [chosen for chosen in sets if len(self.widest((), chosen)) == len(chosen)]

    def widest(self, chosen: Sequence[Any], rest: Iterable[Any]) -> list[Any]:
        """Adds to the ``chosen`` elements as many of the ``rest``, in order, as the limits allow."""
        wide = list(chosen)
        groups = Counter(map(_group, wide))
        for element in rest:
            group = _group(element)
            if len(wide) < self.max_size and (not group or groups[group] < self.max_per_group):
                wide.append(element)
                groups[group] += 1
        return wide

    def extremes(self) -> tuple[Any, ...]:
        sets = sorted(self.values(), key=len)
        return (sets[0],) if len(sets) == 1 else (sets[0], sets[-1])

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "shorthand": [[key, list(value)] for key, value in self.shorthand.items()]}


def knob_from_json(value: Mapping[str, Any]) -> Knob:
    """Reads what ``Knob.to_json`` wrote, also after a trip through JSON text."""
    fields = {key: _frozen(item) for key, item in value.items() if key != "kind"}
    fields["active"] = tuple(
        Condition(item["knob"], item["test"], _frozen(item["value"])) for item in value.get("active", ())
    )
    if "shorthand" in value:
        fields["shorthand"] = {key: tuple(items) for key, items in value["shorthand"]}
    kinds = {cls.kind: cls for cls in (Choice, Float, Integer, Number, Subset, Table)}
    return kinds[value["kind"]](**fields)


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_row(row: Any) -> bool:
    return isinstance(row, (list, tuple)) and len(row) > 0 and isinstance(row[0], str)


def _within(sweep: tuple[Any, ...], low: float, high: float) -> tuple[Any, ...]:
    """The swept values in [low, high], with the ends that the user asked for."""
    return tuple(sorted({*(value for value in sweep if low <= value <= high), low, high})) if sweep else ()


def _group(element: Any) -> str:
    return element.rpartition(".")[0] if isinstance(element, str) else ""


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
