"""Spaces: identity of designs, proposals, sizes, corners, messages."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces import patching
from spaces.base import BaseFacts
from spaces.errors import HeadwayError, UserError
from spaces.family import Family
from spaces.knob import Choice, Condition, Float, Integer, Subset
from spaces.registry import family
from spaces.space import Design, FamilySpace, Space, build_space, design_hash, full_space

optuna.logging.set_verbosity(optuna.logging.WARNING)
GFL = BaseFacts("GFL", "GFLHead", (8, 16, 32, 64, 128), 4, tower_bias=False)


def pair(base: BaseFacts = GFL) -> Space:
    """Two families that go together."""
    return build_space({"dcn": {}, "slimhead": {}}, base)


def study(seed: int) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def proposals(space: Space, count: int, seed: int = 0) -> list[Design]:
    asked = study(seed)
    return [space.suggest(asked.ask()) for _ in range(count)]


class Enumerate:
    """Walks through every answer that a sampler could give, depth first."""

    def __init__(self) -> None:
        self.plan: list[tuple[int, int]] = []  # answer, number of answers
        self.asked = 0

    def _next(self, answers: list[Any]) -> Any:
        if self.asked == len(self.plan):
            self.plan.append((0, len(answers)))
        self.asked += 1
        return answers[self.plan[self.asked - 1][0]]

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._next(list(choices))

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return self._next(list(range(low, high + 1)))

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        if low == high:
            return low
        assert step is not None
        return self._next([low + step * index for index in range(round((high - low) / step) + 1)])

    def designs(self, space: Space) -> list[Design]:
        found = []
        while True:
            self.asked = 0
            found.append(space.suggest(self))
            del self.plan[self.asked :]
            while self.plan and self.plan[-1][0] + 1 == self.plan[-1][1]:
                self.plan.pop()
            if not self.plan:
                return found
            self.plan[-1] = (self.plan[-1][0] + 1, self.plan[-1][1])


# Identity


@pytest.mark.parametrize(
    ("values", "canonical"),
    [
        ({}, {}),
        ({"slimhead.ratio": 1}, {}),
        ({"slimhead.ratio": 1.0, "slimhead.mode": "bilinear", "slimhead.levels": "K7"}, {}),
        ({"slimhead.levels": []}, {}),
        ({"slimhead.levels": [], "slimhead.ratio": 0.3}, {}),
        ({"dcn.placement": []}, {}),
        ({"dcn.placement": [], "dcn.version": 1}, {}),
        (
            {"slimhead.levels": [0]},
            {"slimhead.levels": [0], "slimhead.ratio": 0.5, "slimhead.mode": "nearest", "slimhead.fat": True},
        ),
        (
            {"slimhead.mode": "maxpool", "slimhead.levels": "P4"},
            {"slimhead.levels": [1], "slimhead.ratio": 0.5, "slimhead.mode": "maxpool", "slimhead.fat": True},
        ),
        (
            {"dcn.placement": 0, "slimhead.ratio": 1.0},
            {"dcn.placement": ["cls.0", "reg.0"], "dcn.version": 2},
        ),
    ],
)
def test_canonical(values: dict[str, Any], canonical: Design) -> None:
    design = pair().canonicalise(values)
    assert design == canonical
    assert list(design) == list(canonical)
    assert pair().canonicalise(design) == design
    assert json.loads(json.dumps(design)) == design


def test_dead_branches_have_no_identity() -> None:
    space = pair()
    same = [
        {"slimhead.levels": [2, 0], "slimhead.ratio": 0.5},
        {"slimhead.levels": ["P3", "P5"], "slimhead.mode": "nearest"},
        {"slimhead.levels": [0, 2], "dcn.placement": [], "dcn.version": 1},
        {"dcn.version": 2, "dcn.placement": (), "slimhead.levels": (0, 0, 2)},
    ]
    assert len({design_hash(space.canonicalise(values)) for values in same}) == 1
    other = space.canonicalise({"slimhead.levels": [0, 2], "slimhead.ratio": 0.55})
    assert design_hash(other) != design_hash(space.canonicalise(same[0]))


def test_hash_ignores_order_and_container() -> None:
    assert design_hash({"a": [1, 2], "b": 1}) == design_hash({"b": 1, "a": (1, 2)})
    assert len(design_hash({})) == 12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slimhed.ratio": 0.5}, "design: unknown 'slimhed'; did you mean 'slimhead'? The choices are "),
        ({"slimhead.ration": 0.5}, "design: slimhead: unknown 'ration'; did you mean 'ratio'? The choices are "),
        ({"slimhead": 0.5}, "design: slimhead: unknown ''. The choices are "),
        ({"slimhead.ratio": 1.7}, "slimhead.ratio: must lie in [0.1, 1], but got 1.7."),
        ({"slimhead.mode": "cubic"}, "slimhead.mode: must be nearest, bilinear or maxpool, but got 'cubic'."),
        # Checked even where it would be dropped.
        ({"slimhead.ratio": 1.0, "slimhead.mode": "cubic"}, "slimhead.mode: must be "),
        ({"slimhead.levels": [5]}, "slimhead.levels: must be a list of 0, 1, 2, 3 or 4 (short: P3, P4, P5, "),
        ({"dcn.placement": ["cls.4"]}, "dcn.placement: must be a list of cls.0, "),
    ],
)
def test_wrong_design(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        pair().canonicalise(values)
    assert str(error.value).startswith(message)


def test_shorthands_are_named_once() -> None:
    with pytest.raises(UserError, match=r"\(short: 0, 1, 2, 3, cls or reg\), but got 9\."):
        pair().canonicalise({"dcn.placement": [9]})


def test_version_1_needs_towers_without_bias(retina: BaseFacts) -> None:
    space = pair(retina)
    with pytest.raises(UserError, match=r"^dcn\.version: must be 2, but got 1\."):
        space.canonicalise({"dcn.placement": [0], "dcn.version": 1})
    # The family itself knows the reason, for designs that come from elsewhere.
    reason = family("dcn").illegal({"placement": ("cls.0",), "version": 1}, retina)
    assert reason is not None
    assert "RetinaHead have one" in reason
    assert family("dcn").illegal({"placement": ("cls.0",), "version": 1}, GFL) is None
    assert all(design.get("dcn.version", 2) == 2 for design in proposals(space, 60))


# Conflicts


def toy(name: str, **changes: Any) -> Family:
    """A family without a folder: one switch and one number."""
    knobs = (
        Choice(name="on", when="architecture", help="on", default=True, choices=(True, False)),
        Integer(
            name="n", when="training", help="n", default=1, low=1, high=3, active=(Condition("on", "equals", True),)
        ),
    )
    made = Family(name=name, title=name, paper=name, heads=("GFLHead",), knobs=lambda base: knobs)
    return replace(made, off=(Condition("on", "equals", False),), **changes)


def part(made: Family, always: bool = False) -> FamilySpace:
    return FamilySpace(made, made.knobs(GFL), made.knobs(GFL), always)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Space:
    made = {"a": toy("a", conflicts={"b": "both replace the towers."}), "b": toy("b"), "c": toy("c")}
    monkeypatch.setattr(patching, "families", lambda: made)
    return Space(GFL, tuple(part(item) for item in made.values()))


@pytest.mark.parametrize("values", [{"a.on": True, "b.on": True}, {"b.n": 2, "a.n": 3, "c.n": 1}])
def test_conflict(toys: Space, values: Mapping[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        toys.canonicalise(values)
    assert str(error.value) == "design: a cannot go together with b: both replace the towers."


def test_a_space_lists_the_pairs_that_it_excludes(toys: Space) -> None:
    assert toys.excluded() == [("a", "b", "both replace the towers.")]


def test_proposals_keep_families_apart_that_conflict(toys: Space) -> None:
    found = Enumerate().designs(toys)
    assert not [design for design in found if {"a.on", "b.on"} <= set(design)]
    assert [design for design in found if {"a.on", "c.on"} <= set(design)]
    assert [design for design in found if {"b.on", "c.on"} <= set(design)]


def test_families_that_conflict_cannot_both_be_always_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"a": toy("a"), "b": toy("b", conflicts={"a": "both replace the towers."})}
    monkeypatch.setattr("spaces.space.find_family", lambda name, who: made[name])
    with pytest.raises(UserError, match=r"^space: a cannot go together with b: both replace the towers\.$"):
        build_space({"a": {"always": True}, "b": {"always": True}}, GFL)


def test_a_clash_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    def clash(design: Mapping[str, Mapping[str, Any]], base: BaseFacts) -> str | None:
        return "weights the levels twice" if design.get("b", {}).get("n") == design["a"]["n"] == 2 else None

    made = {"a": toy("a", clash=clash), "b": toy("b")}
    monkeypatch.setattr(patching, "families", lambda: made)
    space = Space(GFL, tuple(part(item) for item in made.values()))
    assert space.canonicalise({"a.n": 2, "b.n": 1})
    with pytest.raises(UserError, match=r"^design: a: weights the levels twice$"):
        space.canonicalise({"a.n": 2, "b.n": 2})


def swept() -> Space:
    """A family with two inference knobs, of which one matters only where the other is above 0."""
    knobs = (
        Integer(name="n", when="training", help="n", default=1, low=1, high=3),
        Float(name="t", when="inference", help="t", default=0.2, low=0.0, high=1.0, sweep=(0.0, 0.1, 0.2)),
        Integer(
            name="c", when="inference", help="c", default=2, low=0, high=5, sweep=(1, 2),
            active=(Condition("t", "above", 0),),
        ),
    )  # fmt: skip
    family = Family(name="q", title="q", paper="q", heads=("GFLHead",), knobs=lambda base: knobs)
    return Space(GFL, (FamilySpace(family, knobs, knobs),))


def test_inference_knobs_are_swept_and_never_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    space = swept()
    monkeypatch.setattr(patching, "families", lambda: {"q": space.families[0].family})
    assert Enumerate().designs(space) == [{"q.n": n, "q.t": 0.2, "q.c": 2} for n in (1, 2, 3)]
    assert space.size() == 3
    design = space.canonicalise({"q.n": 3})
    points = space.sweep(design)
    assert points[0] == design == {"q.n": 3, "q.t": 0.2, "q.c": 2}
    settings = [(point["q.t"], point.get("q.c")) for point in points]
    assert sorted(settings[1:], key=str) == [(0.0, None), (0.1, 1), (0.1, 2), (0.2, 1)]
    assert space.sweep({}) == [{}]


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ({"low": 0.1}, (0.2, 0.1, 1.0)),
        ([0.3, 0.4], (0.3, 0.4)),
        (0.25, (0.25,)),
        ({"low": 0.1, "high": 0.15}, (0.15, 0.1)),
    ],
)
def test_narrowed_sweep(spec: Any, values: tuple[float, ...]) -> None:
    knob = Float(name="t", when="inference", help="t", default=0.2, low=0.0, high=1.0, sweep=(0.0, 0.1, 0.2))
    assert knob.narrow(spec, "t").swept() == values


def test_conflict_with_what_is_off_is_none(toys: Space) -> None:
    assert toys.canonicalise({"a.on": True, "b.on": False}) == {"a.on": True, "a.n": 1}
    assert toys.canonicalise({"a.on": False, "b.n": 2}) == {"b.on": True, "b.n": 2}


def test_corners_leave_conflicts_out(toys: Space) -> None:
    corners = toys.corners()
    assert {"a.on": True, "a.n": 3} in corners
    assert not [design for design in corners if {"a.on", "b.on"} <= set(design)]


def test_architecture_keeps_what_changes_the_network(toys: Space) -> None:
    assert toys.architecture({"a.on": True, "a.n": 3}) == {"a.on": True}


def test_unknown_family_in_a_recorded_design() -> None:
    with pytest.raises(UserError, match=r"^design: unknown 'gone'"):
        patching.apply({}, {"gone.knob": 1})


# Proposals


NARROWED = {
    "dcn": {"placement": {"max_layers": 2, "among": ["cls", "reg.0", "reg.1"], "min_size": 2}},
    "slimhead": {"levels": {"prefixes": True, "max_size": 3}, "ratio": {"low": 0.3, "high": 0.72, "step": 0.1}},
}


def test_proposals_are_canonical_and_legal() -> None:
    space = build_space(NARROWED, GFL)
    designs = proposals(space, 400)
    for design in designs:
        assert space.canonicalise(design) == design
        if "dcn.placement" in design:
            placed = design["dcn.placement"]
            assert len(placed) >= 2
            assert set(placed) <= {"cls.0", "cls.1", "cls.2", "cls.3", "reg.0", "reg.1"}
            assert max(sum(item.startswith(branch) for item in placed) for branch in ("cls", "reg")) <= 2
        if "slimhead.levels" in design:
            assert design["slimhead.levels"] in ([0], [0, 1], [0, 1, 2])
            assert design["slimhead.ratio"] in (0.3, 0.4, 0.5, 0.6, 0.7)
    seen = {tuple(design.get("dcn.placement", ())) for design in designs}
    placement = space.knobs["dcn.placement"].values()
    assert placement is not None
    assert seen == {(), *placement}
    assert {} in designs
    assert any(len(patching.split(design)) == 2 for design in designs)


def test_proposals_are_reproducible() -> None:
    space = pair()
    assert proposals(space, 20, seed=3) == proposals(space, 20, seed=3)
    assert proposals(space, 20, seed=3) != proposals(space, 20, seed=4)


def test_proposals_from_a_list_of_sets() -> None:
    space = build_space({"slimhead": {"levels": [["P3"], "K4"], "ratio": [0.5, 0.8], "mode": "nearest"}}, GFL)
    found = {json.dumps(design) for design in proposals(space, 60)}
    levels = ([0], [0, 1])
    expected = [
        {"slimhead.levels": chosen, "slimhead.ratio": ratio, "slimhead.mode": "nearest", "slimhead.fat": True}
        for chosen, ratio in itertools.product(levels, (0.5, 0.8))
    ]
    assert found == {json.dumps(design) for design in expected}


def test_tpe_learns_from_the_proposals() -> None:
    """The asked parameters keep one distribution each, which Optuna's model-based samplers need."""
    space = build_space(NARROWED, GFL)
    asked = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5)
    )
    for _ in range(25):
        trial = asked.ask()
        design = space.suggest(trial)
        asked.tell(trial, [len(design), design.get("slimhead.ratio", 1.0)])
    distributions: dict[str, Any] = {}
    for done in asked.trials:
        for name, distribution in done.distributions.items():
            assert distributions.setdefault(name, distribution) == distribution


def test_always_is_on_in_every_proposal() -> None:
    space = build_space({"dcn": {"always": True}, "slimhead": {}}, GFL)
    assert all("dcn.placement" in design for design in proposals(space, 50))
    alone = build_space({"slimhead": {"ratio": 0.5}}, GFL)
    assert all(design for design in proposals(alone, 20))


def test_a_proposal_is_quick() -> None:
    space = pair()
    started = time.perf_counter()
    proposals(space, 50)
    assert time.perf_counter() - started < 2


# Sizes


SMALL: list[dict[str, Any]] = [
    {"slimhead": {"levels": {"among": [0, 1]}, "ratio": [0.5, 1.0]}},
    {"slimhead": {"levels": {"among": [0, 1], "min_size": 0}, "ratio": {"low": 0.8}}},
    {"slimhead": {"levels": [], "ratio": 0.5}},
    {"slimhead": {"levels": "K5", "ratio": 1.0}},
    {"slimhead": {"levels": {"prefixes": True}, "ratio": {"low": 0.9}, "mode": ["nearest", "maxpool"]}},
    {"slimhead": {"levels": [["P3"], "K4", []], "ratio": [0.5, 0.7]}},
    {"dcn": {"placement": {"max_layers": 1}}},
    {"dcn": {"placement": {"among": [0, 1], "min_size": 3}}},
    {"dcn": {"placement": {"among": [0], "min_size": 0}, "version": 2, "always": True}, "slimhead": {"ratio": 0.5}},
    {
        "dcn": {"placement": {"max_size": 1}},
        "slimhead": {"levels": {"max_size": 1}, "ratio": [0.5, 1.0], "mode": ["nearest", "bilinear"]},
    },
    {
        "dcn": {"placement": {"max_size": 1}, "always": True},
        "slimhead": {"levels": {"prefixes": True}, "ratio": [0.5, 0.6], "always": True},
    },
]


@pytest.mark.parametrize("families", SMALL, ids=str)
def test_size_is_the_number_of_distinct_proposals(families: dict[str, Any]) -> None:
    space = build_space(families, GFL)
    designs = Enumerate().designs(space)
    assert space.size() == len({design_hash(design) for design in designs})


def test_size_of_the_whole_space() -> None:
    # 31 level sets, 18 ratios below 1, 3 modes; 255 placements, 2 versions; each family may be off.
    assert pair().size() == (31 * 18 * 3 + 1) * (255 * 2 + 1)


def test_size_with_a_continuous_knob() -> None:
    free = Float(name="f", when="training", help="f", default=0.5, low=0.0, high=1.0)
    gate = Choice(name="g", when="training", help="g", default=0, choices=(0, 1))
    read = replace(gate, active=(Condition("f", "below", 0.5),))
    for knobs in ((free,), (gate, free), (free, read)):
        made = replace(toy("a"), off=())
        assert Space(GFL, (FamilySpace(made, knobs, knobs),)).size() == float("inf")


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True),
    st.integers(0, 2),
    st.integers(1, 3),
    st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=1, max_size=3, unique=True),
)
def test_any_small_size(among: list[int], least: int, most: int, ratios: list[float]) -> None:
    if least > min(most, len(among)):
        return
    spec = {"levels": {"among": among, "min_size": least, "max_size": most}, "ratio": ratios, "mode": "nearest"}
    space = build_space({"slimhead": spec}, GFL)
    assert space.size() == len({design_hash(design) for design in Enumerate().designs(space)})


# Corners, building


def test_corners() -> None:
    space = pair()
    corners = space.corners()
    assert len({design_hash(design) for design in corners}) == len(corners)
    assert all(design and space.canonicalise(design) == design for design in corners)
    used = [tuple(patching.split(design)) for design in corners]
    assert set(used) == {("dcn",), ("slimhead",), ("dcn", "slimhead")}
    # Both ends of every knob, in the combination too.
    both = [design for design in corners if len(patching.split(design)) == 2]
    for found in (both, corners):
        assert {json.dumps(design.get("slimhead.levels")) for design in found} >= {"[0]", "[0, 1, 2, 3, 4]"}
        assert {len(design.get("dcn.placement", ())) for design in found} >= {1, 8}
        assert {design.get("dcn.version") for design in found} >= {1, 2}
    assert space.corners(limit=3) == corners[:3]


@pytest.mark.parametrize(
    ("families", "message"),
    [
        ({}, "space: must name at least one family; 'headway families' lists them."),
        ({"slimhaed": {}}, "space: unknown 'slimhaed'; did you mean 'slimhead'? The choices are "),
        ({"slimhead": [0]}, "space.slimhead: must be a mapping of knobs, but got [0]."),
        (
            {"slimhead": {"ratios": 1}},
            "space.slimhead: unknown 'ratios'; did you mean 'ratio'? The choices are always,",
        ),
        ({"slimhead": {"ratio": 2}}, "space.slimhead.ratio: must lie in [0.1, 1], but got 2."),
        ({"slimhead": {"ratio": {"low": 0.01}}}, "space.slimhead.ratio.low: must lie in [0.1, 1], but got 0.01."),
        ({"slimhead": {"always": 1}}, "space.slimhead.always: must be true or false, but got 1."),
        (
            {"dcn": {"placement": {"max_layer": 1}}},
            "space.dcn.placement: unknown 'max_layer'; did you mean 'max_layers'?",
        ),
    ],
)
def test_wrong_space(families: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        build_space(families, GFL)
    assert str(error.value).startswith(message)


def test_a_family_that_does_not_work_on_the_base() -> None:
    yolo = replace(GFL, detector="YOLOX", head="YOLOXHead")
    with pytest.raises(UserError) as error:
        build_space({"slimhead": {}}, yolo)
    assert str(error.value).startswith("space.slimhead: works on GFLHead, ATSSHead, RetinaHead, ")
    assert str(error.value).endswith(" or AngleBranchRetinaHead, but the base YOLOX has YOLOXHead.")
    with pytest.raises(UserError, match=r"^base: no family works on YOLOXHead of YOLOX; they work on ATSSHead, "):
        full_space(yolo)


def test_subset_helper_adds_in_order() -> None:
    knob = pair().knobs["dcn.placement"]
    assert isinstance(knob, Subset)
    tight = replace(knob, max_per_group=1)
    assert tight.widest(["cls.1"], ["cls.2", "reg.3", "reg.0"]) == ["cls.1", "reg.3"]


def test_check_built_names_the_family() -> None:
    class Model:
        bbox_head = type("GFLHead", (), {})()

    with pytest.raises(HeadwayError, match=r"^slimhead: the patched config did not take effect.*plain GFLHead"):
        patching.check_built(Model(), pair().canonicalise({"slimhead.levels": [0]}))
