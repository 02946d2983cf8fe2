"""Knobs: legal values, narrowing, sizes, messages, JSON."""

from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.errors import UserError
from spaces.knob import Choice, Condition, Float, Integer, Knob, Number, Subset, Table, knob_from_json

LEVELS = Subset(
    name="levels",
    when="architecture",
    help="levels",
    default=(0,),
    elements=(0, 1, 2, 3),
    among=(0, 1, 2, 3),
    shorthand={"P3": (0,), "P4": (1,), "K4": (0, 1)},
)
PLACES = Subset(
    name="placement",
    when="architecture",
    help="places",
    default=("cls.0", "reg.0"),
    elements=("cls.0", "cls.1", "cls.2", "reg.0", "reg.1", "reg.2"),
    among=("cls.0", "cls.1", "cls.2", "reg.0", "reg.1", "reg.2"),
    shorthand={"0": ("cls.0", "reg.0"), "cls": ("cls.0", "cls.1", "cls.2")},
)
RATIO = Float(name="ratio", when="architecture", help="ratio", default=0.5, low=0.1, high=1.0, step=0.05)
FREE = Float(name="free", when="training", help="free", default=0.5, low=0.1, high=1.0)
COUNT = Integer(name="count", when="training", help="count", default=3, low=1, high=7)
MODE = Choice(name="mode", when="architecture", help="mode", default="a", choices=("a", "b", "c"))
MIXED = Choice(
    name="mixed", when="inference", help="mixed", default=(0, (1,)), choices=((0, (1,)), (2,), 3, True, None)
)
NEAR = Number(name="near", when="training", help="near", default=0.25, low=0.0, high=0.5, choices=(0.25,))
SCALES = Table(
    name="scales",
    when="architecture",
    help="scales",
    default=(),
    names=("layer1.conv1", "layer1.conv2", "layer2.conv1"),
    width=2,
    high=9.0,
)
KNOBS = (LEVELS, PLACES, RATIO, FREE, COUNT, MODE, MIXED, NEAR, SCALES)
TABLE = "x: must be a table of 2 numbers in [0, 9] by name ({NAME: [...]} or [[NAME, ...]]), but got "


@pytest.mark.parametrize(
    ("knob", "value", "canonical"),
    [
        (LEVELS, [2, 0, 2], (0, 2)),
        (LEVELS, 1, (1,)),
        (LEVELS, "P4", (1,)),
        (LEVELS, "K4", (0, 1)),
        (LEVELS, ["P3", 3], (0, 3)),
        (LEVELS, [], ()),
        (LEVELS, (), ()),
        (PLACES, 0, ("cls.0", "reg.0")),
        (PLACES, "0", ("cls.0", "reg.0")),
        (PLACES, ["reg.2", "cls"], ("cls.0", "cls.1", "cls.2", "reg.2")),
        (RATIO, 1, 1.0),
        (RATIO, 0.1, 0.1),
        (RATIO, 0.123, 0.123),
        (COUNT, 7, 7),
        (MODE, "b", "b"),
        (MIXED, [0, [1]], (0, (1,))),
        (MIXED, True, True),
        (MIXED, None, None),
        (NEAR, 0.1, 0.1),
        (NEAR, 0, 0.0),
        (SCALES, {}, ()),
        (SCALES, [], ()),
        (SCALES, {"layer2.conv1": [1, 2.5]}, (("layer2.conv1", 1.0, 2.5),)),
        (
            SCALES,
            [["layer2.conv1", 9, 0], ("layer1.conv2", 1, 1)],
            (("layer1.conv2", 1.0, 1.0), ("layer2.conv1", 9.0, 0.0)),
        ),
    ],
)
def test_check(knob: Knob, value: Any, canonical: Any) -> None:
    checked = knob.check(value, "who")
    assert checked == canonical
    assert type(checked) is type(canonical)


@pytest.mark.parametrize(
    ("knob", "value", "message"),
    [
        (RATIO, 1.7, "x: must lie in [0.1, 1], but got 1.7."),
        (RATIO, 0.0999, "x: must lie in [0.1, 1], but got 0.0999."),
        (RATIO, math.nan, "x: must lie in [0.1, 1], but got nan."),
        (RATIO, math.inf, "x: must lie in [0.1, 1], but got inf."),
        (RATIO, "0.5", "x: must lie in [0.1, 1], but got '0.5'."),
        (RATIO, True, "x: must lie in [0.1, 1], but got True."),
        (RATIO, None, "x: must lie in [0.1, 1], but got None."),
        (COUNT, 0, "x: must be a whole number in [1, 7], but got 0."),
        (COUNT, 3.0, "x: must be a whole number in [1, 7], but got 3.0."),
        (COUNT, True, "x: must be a whole number in [1, 7], but got True."),
        (MODE, "d", "x: must be a, b or c, but got 'd'."),
        (MIXED, 1, "x: must be [0, (1,)], [2], 3, True or None, but got 1."),
        (LEVELS, [4], "x: must be a list of 0, 1, 2 or 3 (short: P3, P4 or K4), but got 4."),
        (LEVELS, [[0]], "x: must be a list of 0, 1, 2 or 3 (short: P3, P4 or K4), but got [0]."),
        (LEVELS, [True], "x: must be a list of 0, 1, 2 or 3 (short: P3, P4 or K4), but got True."),
        (LEVELS, {"a": 1}, "x: must be a list of 0, 1, 2 or 3 (short: P3, P4 or K4), but got 'a'."),
        (LEVELS, None, "x: must be a list of 0, 1, 2 or 3 (short: P3, P4 or K4), but got None."),
        (LEVELS, 0.5, "x: must be a list of 0, 1, 2 or 3 (short: P3, P4 or K4), but got 0.5."),
        (NEAR, 0.6, "x: must lie in [0, 0.5], but got 0.6."),
        (NEAR, True, "x: must lie in [0, 0.5], but got True."),
        (SCALES, "a", TABLE + "'a'."),
        (SCALES, None, TABLE + "None."),
        (SCALES, [1, 2], TABLE + "[1, 2]."),
        (SCALES, [[]], TABLE + "[[]]."),
        (SCALES, {1: [1, 2]}, TABLE + "{1: [1, 2]}."),
        (
            SCALES,
            {"layer1.conv3": [1, 2]},
            "x: unknown 'layer1.conv3'; did you mean 'layer1.conv2'? "
            "The choices are layer1.conv1, layer1.conv2 or layer2.conv1.",
        ),
        (SCALES, {"layer1.conv1": [1]}, "x: layer1.conv1: must be 2 numbers in [0, 9], but got [1]."),
        (SCALES, {"layer1.conv1": 1}, "x: layer1.conv1: must be 2 numbers in [0, 9], but got [1]."),
        (SCALES, {"layer1.conv1": [1, -0.5]}, "x: layer1.conv1: must be 2 numbers in [0, 9], but got [1, -0.5]."),
        (SCALES, [["layer1.conv1", 1, 9.5]], "x: layer1.conv1: must be 2 numbers in [0, 9], but got [1, 9.5]."),
        (SCALES, {"layer1.conv1": [1, math.nan]}, "x: layer1.conv1: must be 2 numbers in [0, 9], but got [1, nan]."),
        (SCALES, {"layer1.conv1": [1, math.inf]}, "x: layer1.conv1: must be 2 numbers in [0, 9], but got [1, inf]."),
        (SCALES, {"layer1.conv1": [True, 1]}, "x: layer1.conv1: must be 2 numbers in [0, 9], but got [True, 1]."),
        (SCALES, {"layer1.conv1": ["1", 1]}, "x: layer1.conv1: must be 2 numbers in [0, 9], but got ['1', 1]."),
        (
            SCALES,
            [["layer1.conv1", 1, 2], ["layer1.conv1", 1, 2]],
            "x: must name each at most once, but got layer1.conv1 twice.",
        ),
    ],
)
def test_wrong_value(knob: Knob, value: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        knob.check(value, "x")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("knob", "spec", "values"),
    [
        (RATIO, 0.5, [0.5]),
        (RATIO, [0.3, 1, 0.3], [0.3, 1.0]),
        (RATIO, {"low": 0.4, "high": 0.5}, [0.4, 0.45, 0.5]),
        (RATIO, {"low": 0.33, "high": 0.5, "step": 0.1}, [0.33, 0.43]),
        (RATIO, {"low": 0.9, "step": 5}, [0.9]),
        (RATIO, {"low": 0.7, "high": 0.7}, [0.7]),
        (FREE, {"step": 0.45}, [0.1, 0.55, 1.0]),
        (COUNT, {"low": 6}, [6, 7]),
        (COUNT, [2, 4], [2, 4]),
        (COUNT, {}, [1, 2, 3, 4, 5, 6, 7]),
        (MODE, "b", ["b"]),
        (MODE, ["c", "a"], ["c", "a"]),
        (MODE, {"among": ["c"]}, ["c"]),
        (MODE, {}, ["a", "b", "c"]),
        (MIXED, [2], [(2,)]),  # one value that is a list
        (MIXED, [[2], 3], [(2,), 3]),
        (MIXED, {"among": [[0, [1]], None]}, [(0, (1,)), None]),
        (LEVELS, [0, 1], [(0, 1)]),  # one set
        (LEVELS, "K4", [(0, 1)]),
        (LEVELS, [], [()]),
        (LEVELS, [[1], [0], "K4"], [(1,), (0,), (0, 1)]),
        (LEVELS, {"among": [0, 1]}, [(0,), (1,), (0, 1)]),
        (LEVELS, {"among": "K4", "min_size": 2}, [(0, 1)]),
        (LEVELS, {"among": [3, 1], "min_size": 0}, [(), (1,), (3,), (1, 3)]),
        (LEVELS, {"prefixes": True}, [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)]),
        (LEVELS, {"prefixes": True, "among": [1, 3], "min_size": 0}, [(), (1,), (1, 3)]),
        (LEVELS, {"max_size": 1}, [(0,), (1,), (2,), (3,)]),
        (
            PLACES,
            {"max_layers": 1, "min_size": 2, "among": ["cls", "reg.1"]},
            [(f"cls.{i}", "reg.1") for i in range(3)],
        ),
        (NEAR, 0.1, [0.1]),
        (NEAR, [0, 0.5], [0.0, 0.5]),
        (NEAR, {"low": 0.1, "high": 0.3, "step": 0.1}, [0.1, 0.2, 0.3]),
        (SCALES, {"layer1.conv1": [1, 2]}, [(("layer1.conv1", 1.0, 2.0),)]),
        (SCALES, [["layer1.conv1", 1, 2]], [(("layer1.conv1", 1.0, 2.0),)]),
        (SCALES, [{"layer1.conv1": [1, 2]}, {}], [(("layer1.conv1", 1.0, 2.0),), ()]),
        (SCALES, {}, [()]),
    ],
)
def test_narrow(knob: Knob, spec: Any, values: list[Any]) -> None:
    narrow = knob.narrow(spec, "who")
    assert narrow.values() == values
    assert narrow.size() == len(values)
    assert narrow.default in values or isinstance(narrow, Float)
    assert set(narrow.extremes()) <= {*values, narrow.default} or isinstance(narrow, Float)
    assert (narrow.name, narrow.when, narrow.active) == (knob.name, knob.when, knob.active)
    for value in values:
        assert knob.check(value, "who") == value
    assert knob_from_json(json.loads(json.dumps(narrow.to_json()))) == narrow


def test_narrowing_keeps_the_default_where_it_can() -> None:
    assert RATIO.narrow([0.3, 0.5], "x").default == 0.5
    assert RATIO.narrow([0.3, 0.4], "x").default == 0.3
    assert RATIO.narrow({"low": 0.7}, "x").default == 0.7
    assert COUNT.narrow({"high": 2}, "x").default == 2
    assert LEVELS.narrow({"among": [1, 2]}, "x").default == (1,)
    assert PLACES.narrow({"max_layers": 1}, "x").default == ("cls.0", "reg.0")


@pytest.mark.parametrize(
    ("knob", "spec", "message"),
    [
        (RATIO, [], "x: must allow at least one value, but got an empty list."),
        (RATIO, [0.5, 2], "x[1]: must lie in [0.1, 1], but got 2."),
        (RATIO, {"low": 0.05}, "x.low: must lie in [0.1, 1], but got 0.05."),
        (RATIO, {"low": 0.8, "high": 0.4}, "x: low must not lie above high, but got low 0.8 and high 0.4."),
        (RATIO, {"hig": 0.4}, "x: unknown 'hig'; did you mean 'high'? The choices are high, low or step."),
        (RATIO, {"zzz": 0.4}, "x: unknown 'zzz'. The choices are high, low or step."),
        (RATIO, {1: 0.4}, "x: unknown '1'. The choices are high, low or step."),
        (RATIO, {"step": 0}, "x.step: must be a number above 0, but got 0."),
        (RATIO, {"step": math.nan}, "x.step: must be a number above 0, but got nan."),
        (RATIO, {"step": math.inf}, "x.step: must be a number above 0, but got inf."),
        (RATIO, {"step": "a"}, "x.step: must be a number above 0, but got 'a'."),
        (COUNT, {"low": 5, "high": 3}, "x: low must not lie above high, but got low 5 and high 3."),
        (MODE, {"among": "b"}, "x.among: must be a list of at least one value, but got 'b'."),
        (MODE, {"among": []}, "x.among: must be a list of at least one value, but got []."),
        (MODE, {"among": ["z"]}, "x.among[0]: must be a, b or c, but got 'z'."),
        (MODE, [], "x: must allow at least one value, but got an empty list."),
        (LEVELS, {"among": []}, "x: no set of none fits these limits."),
        (LEVELS, {"among": [0], "min_size": 2}, "x: no set of 0 fits these limits."),
        (LEVELS, {"min_size": -1}, "x.min_size: must be a whole number of 0 or more, but got -1."),
        (LEVELS, {"max_layers": True}, "x.max_layers: must be a whole number of 0 or more, but got True."),
        (LEVELS, {"prefixes": "yes"}, "x.prefixes: must be true or false, but got 'yes'."),
        (LEVELS, {"among": [9]}, "x.among: must be a list of 0, 1, 2 or 3 (short: P3, P4 or K4), but got 9."),
        (LEVELS, [[0], [9]], "x[1]: must be a list of 0, 1, 2 or 3 (short: P3, P4 or K4), but got 9."),
        (NEAR, [], "x: must allow at least one value, but got an empty list."),
        (NEAR, {"high": 0.7}, "x.high: must lie in [0, 0.5], but got 0.7."),
        (NEAR, {"among": [0.1]}, "x: unknown 'among'. The choices are high, low or step."),
        (SCALES, [{"layer1.conv1": 3}], "x[0]: layer1.conv1: must be 2 numbers in [0, 9], but got [3]."),
        (LEVELS, [[[0]]], "x[0]: must be a list of 0, 1, 2 or 3 (short: P3, P4 or K4), but got [0]."),
    ],
)
def test_wrong_narrowing(knob: Knob, spec: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        knob.narrow(spec, "x")
    assert str(error.value) == message


def test_sizes_and_ends() -> None:
    assert RATIO.size() == 19
    assert RATIO.values() == [round(0.1 + 0.05 * step, 10) for step in range(19)]
    assert RATIO.extremes() == (0.1, 1.0)
    assert FREE.size() == math.inf
    assert FREE.values() is None
    assert COUNT.extremes() == (1, 7)
    assert MODE.extremes() == ("a", "b", "c")
    # What a study does not ask for is legal, but not searched.
    assert NEAR.values() == [0.25] and NEAR.extremes() == (0.25,)
    assert NEAR.narrow({"low": 0.1}, "x").size() == math.inf
    assert SCALES.values() == [()] and SCALES.extremes() == ((),)
    assert LEVELS.size() == 15
    assert LEVELS.extremes() == ((0,), (0, 1, 2, 3))
    assert PLACES.size() == 63


def test_a_large_set_is_still_quick() -> None:
    names = tuple(f"g.{index}" for index in range(14))
    started = time.perf_counter()
    knob = Subset(name="s", when="architecture", help="s", default=names, elements=names, among=names, shorthand={})
    assert knob.narrow({"max_layers": 13}, "x").size() == 2**14 - 2
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("condition", "values", "holds"),
    [
        (Condition("a", "nonempty"), {"a": (1,)}, True),
        (Condition("a", "nonempty"), {"a": ()}, False),
        (Condition("a", "equals", 1.0), {"a": 1.0}, True),
        (Condition("a", "below", 1.0), {"a": 1.0}, False),
        (Condition("a", "below", 1.0), {"a": 0.95}, True),
        (Condition("a", "in", (1, 2)), {"a": 2}, True),
        (Condition("a", "in", (1, 2)), {"a": 3}, False),
        (Condition("a", "equals", None), {}, False),
    ],
)
def test_conditions(condition: Condition, values: dict[str, Any], holds: bool) -> None:
    assert condition.holds(values) is holds


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_json(knob: Knob) -> None:
    assert knob_from_json(json.loads(json.dumps(knob.to_json()))) == knob


scalars = st.one_of(st.integers(-9, 9), st.text(max_size=3), st.booleans(), st.none())
nested = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
conditions = st.lists(
    st.builds(Condition, st.text("abc", min_size=1), st.sampled_from(["nonempty", "equals", "below", "in"]), nested),
    max_size=2,
).map(tuple)
common = {
    "name": st.text(min_size=1, max_size=5),
    "when": st.sampled_from(["architecture", "training", "inference"]),
    "help": st.text(max_size=5),
    "active": conditions,
}
bounds = st.tuples(st.integers(-50, 50), st.integers(0, 50)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@st.composite
def knobs(draw: st.DrawFn) -> Knob:
    shared = {key: draw(value) for key, value in common.items()}
    low, high = draw(bounds)
    kind = draw(st.sampled_from(["choice", "float", "integer", "number", "subset", "table"]))
    if kind == "choice":
        values = tuple(draw(st.lists(nested, min_size=1, max_size=4)))
        return Choice(**shared, default=draw(st.sampled_from(values)), choices=values)
    if kind == "float":
        step = draw(st.none() | st.floats(0.01, 3))
        return Float(**shared, default=float(low), low=float(low), high=float(high), step=step)
    if kind == "number":
        return Number(**shared, default=float(low), low=float(low), high=float(high), choices=(float(low),))
    if kind == "table":
        names = draw(st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=4))
        knob = Table(**shared, default=(), names=tuple(names), width=draw(st.integers(1, 3)), high=float(abs(high)))
        row = st.lists(st.floats(0, knob.high), min_size=knob.width, max_size=knob.width)
        table = draw(st.dictionaries(st.sampled_from(names), row)) if names else {}
        default = knob.check(table, "t")
        return replace(knob, default=default, choices=(default,))
    if kind == "integer":
        return Integer(**shared, default=high, low=low, high=high)
    elements = tuple(draw(st.lists(st.integers(0, 9) | st.text(max_size=3), min_size=1, max_size=5, unique=True)))
    keys = st.integers(10, 20) | st.text(min_size=4, max_size=5)
    return Subset(
        **shared,
        default=elements[:1],
        elements=elements,
        among=elements,
        min_size=draw(st.integers(0, 2)),
        max_size=draw(st.integers(0, 9)),
        max_per_group=draw(st.integers(0, 9)),
        prefixes=draw(st.booleans()),
        shorthand=draw(st.dictionaries(keys, st.just(elements), max_size=2)),
    )


@given(knobs())
def test_any_knob_survives_json(knob: Knob) -> None:
    again = knob_from_json(json.loads(json.dumps(knob.to_json())))
    assert again == knob
    assert type(again) is type(knob)
    assert json.dumps(again.to_json()) == json.dumps(knob.to_json())


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(0.01, 2))
def test_float_proposals_stay_within_bounds(low: float, width: float, step: float) -> None:
    knob = Float(name="f", when="training", help="f", default=low, low=low, high=low + width, step=step)
    values = knob.values()
    assert values
    for value in values:
        assert knob.check(value, "f") == value


@given(st.data())
def test_sets_are_those_that_fit(data: st.DataObject) -> None:
    """``values`` against all subsets, filtered one by one."""
    elements = [f"{group}.{index}" for group in "ab" for index in range(3)] + ["free"]
    least, most, layers = (data.draw(st.integers(0, 4)) for _ in range(3))
    knob = Subset(
        name="s",
        when="architecture",
        help="s",
        default=(),
        elements=tuple(elements),
        among=tuple(elements),
        min_size=least,
        max_size=most,
        max_per_group=layers,
        shorthand={},
    )
    expected = {
        chosen
        for size in range(8)
        for chosen in itertools.combinations(elements, size)
        if least <= size <= most
        and all(sum(item.startswith(group) for item in chosen) <= layers for group in ("a.", "b."))
    }
    assert set(knob.values()) == expected
    assert len(knob.values()) == len(expected)
