"""The promises of ``search.rungs``, as properties."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.plan import Plan
from search.rungs import LIKE, RungPoint, decide, epsilon_net, priority, share_of_epochs
from search.study import parse
from spaces.errors import UserError

ACCURACIES = st.floats(0, 1, allow_nan=False)
COSTS = st.floats(0.01, 1e4, allow_nan=False)
# Coarser than what counts as alike, so that there the dominance of the rung is that of the front.
STEPS = st.integers(0, 20).map(lambda step: 1.1**step)
FACTORS = st.integers(2, 6)
PATIENT = settings(deadline=None)  # a busy machine is no failure
METHODS = pytest.mark.parametrize("method", ["like_speed", "mo_asha"])


def points(least=0, most=40, costs=COSTS, objectives=(1, 1)):
    """Trials 1, 2, ... at a rung, with so many objectives of accuracy and of cost."""
    accuracies, prices = (
        st.tuples(*[kind] * count) for kind, count in zip((ACCURACIES, costs), objectives, strict=True)
    )
    drawn = st.lists(st.tuples(accuracies, prices), min_size=least, max_size=most)
    return drawn.map(lambda pairs: [RungPoint(number, *pair) for number, pair in enumerate(pairs, 1)])


OBJECTIVES = st.sampled_from([(1, 1), (1, 2), (1, 3), (2, 1)])
SEVERAL = OBJECTIVES.flatmap(lambda counts: points(least=1, objectives=counts))


def alike(*accuracies, cost=1.0):
    return [RungPoint(number, (accuracy,), (cost,)) for number, accuracy in enumerate(accuracies, 1)]


@METHODS
@PATIENT
@given(others=SEVERAL, factor=FACTORS)
def test_the_baseline_is_never_stopped(method, others, factor):
    first, *rest = others
    baseline = RungPoint(0, (0.0,) * len(first.accuracies), tuple(1e5 for _ in first.costs))
    assert decide(baseline, rest, factor, method).go_on


@METHODS
@PATIENT
@given(factor=FACTORS, data=st.data())
def test_fewer_rivals_than_factor_minus_one_stop_nobody(method, factor, data):
    point, *rivals = data.draw(points(least=1, most=factor - 1))
    assert decide(point, rivals, factor, method).go_on


@PATIENT
@given(others=points(least=1, most=1, objectives=(1, 2)), factor=FACTORS, which=st.integers(0, 1))
def test_what_costs_more_anywhere_is_no_rival(others, factor, which):
    (point,) = others
    cheap = [cost / 2 for cost in point.costs]
    cheap[which] = point.costs[which] * LIKE * 1.01
    assert decide(point, [RungPoint(100 + index, (2.0,), tuple(cheap)) for index in range(30)], factor).go_on


def dominates(other, point, tolerance):
    """At least as accurate everywhere, more somewhere, and nowhere costlier."""
    no_less = all(theirs >= mine for theirs, mine in zip(other.accuracies, point.accuracies))
    return (
        no_less
        and other.accuracies != point.accuracies
        and all(theirs <= mine * tolerance for theirs, mine in zip(other.costs, point.costs))
    )


@settings(PATIENT, max_examples=300)
@given(others=SEVERAL, factor=FACTORS)
def test_a_design_that_none_dominates_is_never_stopped_costs_within_5_percent_being_equal(others, factor):
    point, *rest = others
    dominated = any(dominates(other, point, LIKE * (1 + 1e-12)) for other in rest)
    assert dominated or decide(point, rest, factor).go_on


@settings(PATIENT, max_examples=300)
@given(others=OBJECTIVES.flatmap(lambda counts: points(1, 40, STEPS, counts)), factor=FACTORS)
def test_a_design_on_the_front_of_the_rung_is_never_stopped(others, factor):
    point, *rest = others
    assert any(dominates(other, point, 1 + 1e-12) for other in rest) or decide(point, rest, factor).go_on


def test_the_front_of_many_objectives_is_kept_where_mo_asha_thins_it():
    # Nine designs, each the smallest for its speed, accuracy rising with both: all are on the front.
    trials = [RungPoint(i, (0.1 * i,), (1.2**i, 1.3**i)) for i in range(1, 10)]
    going = {
        method: [one.number for one in trials if decide(one, [o for o in trials if o is not one], 3, method).go_on]
        for method in ("like_speed", "mo_asha")
    }
    assert going["like_speed"] == list(range(1, 10))
    # The most accurate, the one farthest from it, and the one farthest from both.
    assert going["mo_asha"] == [1, 6, 9]


@PATIENT
@given(others=points(least=2), factor=FACTORS)
def test_more_accuracy_never_hurts_and_less_of_the_others_never_does(others, factor):
    point, *rest = others
    if decide(point, rest, factor).go_on:
        assert decide(RungPoint(point.number, (point.accuracies[0] + 0.1,), point.costs), rest, factor).go_on
        worse = [RungPoint(other.number, (other.accuracies[0] / 2,), other.costs) for other in rest]
        assert decide(point, worse, factor).go_on


@METHODS
@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_of_exchangeable_trials_one_in_factor_goes_on(method, factor):
    # Of n that are alike in cost exactly ceil(n / factor) do, however many they are.
    for count in range(1, 5 * factor + 1):
        trials = alike(*(number / 100 for number in range(1, count + 1)))
        going = [
            trial.number
            for trial in trials
            if decide(trial, [other for other in trials if other is not trial], factor, method).go_on
        ]
        expected = math.ceil(count / factor) if count >= factor else count
        assert going == list(range(count - expected + 1, count + 1))


@METHODS
@pytest.mark.parametrize("factor", [2, 3])
def test_in_any_order_of_arrival_the_share_is_that_of_the_closed_form(method, factor):
    # Over all orders of n equally fast trials the i-th to come goes on with probability ceil(i / factor) / i.
    count = 6
    going = 0
    for order in itertools.permutations(range(1, count + 1)):
        trials = [RungPoint(number, (number / 10,), (1.0,)) for number in order]
        going += sum(decide(trial, trials[:index], factor, method).go_on for index, trial in enumerate(trials))
    expected = sum(1 if i < factor else math.ceil(i / factor) / i for i in range(1, count + 1))
    assert going / math.factorial(count) == pytest.approx(expected)
    # The share of one rung is exact: all train its epochs, those expected the rest.
    assert share_of_epochs(count, 10, [2], factor) == pytest.approx((count * 2 + expected * 8) / (count * 10))


@pytest.mark.parametrize("factor", [2, 3])
def test_under_mo_asha_so_it_is_for_trials_that_differ_in_cost(factor):
    count = 6
    costs = [3.0, 1.0, 2.0, 9.0, 4.0, 5.0]
    trials = [RungPoint(number, (number / 10,), (cost,)) for number, cost in enumerate(costs, 1)]
    going = [0] * count
    for order in itertools.permutations(trials):
        for index, trial in enumerate(order):
            going[index] += decide(trial, order[:index], factor, "mo_asha").go_on
    expected = [1 if i < factor else math.ceil(i / factor) / i for i in range(1, count + 1)]
    assert [passed / math.factorial(count) for passed in going] == pytest.approx(expected)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_in_a_long_run_about_one_in_factor_goes_on(factor):
    generator = random.Random(factor)
    trials = [RungPoint(n, (generator.random(),), (generator.uniform(0.5, 1),)) for n in range(1, 601)]
    late = range(200, len(trials))
    going = sum(decide(trials[index], trials[:index], factor).go_on for index in late)
    assert going / len(late) == pytest.approx(1 / factor, rel=0.2)


@METHODS
@PATIENT
@given(others=SEVERAL, factor=FACTORS, seed=st.integers(0, 9))
def test_a_decision_depends_on_the_points_alone_not_on_their_order(method, others, factor, seed):
    point, *rest = others
    shuffled = random.Random(seed).sample(rest, len(rest))
    expected = decide(point, rest, factor, method)
    assert decide(point, shuffled, factor, method) == decide(point, tuple(rest), factor, method) == expected


@settings(PATIENT, max_examples=200)
@given(others=SEVERAL, factor=FACTORS, powers=st.tuples(*[st.integers(-20, 20)] * 3))
def test_the_unit_of_a_cost_does_not_matter(others, factor, powers):
    point, *rest = (
        RungPoint(item.number, item.accuracies, tuple(cost * 2.0**power for cost, power in zip(item.costs, powers)))
        for item in others
    )
    assert decide(others[0], others[1:], factor) == decide(point, rest, factor)


@METHODS
@PATIENT
@given(accuracies=st.lists(ACCURACIES, min_size=1, max_size=9), factor=FACTORS)
def test_without_a_known_cost_all_are_rivals(method, accuracies, factor):
    point, *rest = (RungPoint(number, (accuracy,), (None,)) for number, accuracy in enumerate(accuracies, 1))
    known, *others = alike(*accuracies, cost=7.0)
    assert decide(point, rest, factor, method) == decide(known, others, factor, method)
    # Who is told its cost after training only is no rival of those who know theirs.
    assert decide(point, others, factor, method) == decide(point, [], factor, method)


def test_a_cost_that_is_not_known_yet_leaves_the_others_to_say_who_competes():
    small = [RungPoint(number, (0.9,), (None, 1.0)) for number in (1, 2, 3)]
    assert not decide(RungPoint(9, (0.5,), (None, 1.0)), small, 2).go_on
    assert decide(RungPoint(9, (0.5,), (None, 0.5)), small, 2).go_on


def test_a_cost_of_nothing_is_the_least():
    free = [RungPoint(number, (0.9,), (0.0,)) for number in (1, 2, 3)]
    assert not decide(RungPoint(9, (0.5,), (0.0,)), free, 2).go_on
    assert not decide(RungPoint(9, (0.5,), (1.0,)), free, 2).go_on
    assert decide(RungPoint(9, (0.5,), (0.0,)), alike(0.9, 0.9, 0.9), 2).go_on


def test_rivals_are_the_nearest_in_cost():
    # Eight better designs near it in cost decide, however many bad ones are much faster.
    point = RungPoint(100, (0.5,), (10.0,))
    near = [RungPoint(number, (0.9,), (9.0,)) for number in range(1, 9)]
    fast = [RungPoint(number, (0.1,), (1.0,)) for number in range(10, 60)]
    assert not decide(point, near + fast, 3).go_on
    assert decide(RungPoint(100, (0.5,), (1.0,)), near + fast, 3).go_on


def test_near_is_said_by_the_cost_that_differs_most():
    point = RungPoint(100, (0.5,), (10.0, 10.0))
    near = [RungPoint(number, (0.9,), (8.0, 8.0)) for number in range(1, 9)]
    as_fast_but_tiny = [RungPoint(number, (0.1,), (10.0, 1.0)) for number in range(10, 60)]
    assert (
        decide(point, near + as_fast_but_tiny, 3).reason
        == "rank 9 of 9 among designs that are as fast, of which 3 go on"
    )


def test_all_that_are_as_near_are_rivals():
    # Designs of one speed all count, and none for having come first.
    trials = alike(*[0.1] * 8, *[0.9] * 40)
    assert decide(RungPoint(100, (0.5,), (1.0,)), trials, 3).reason.startswith("rank 41 of 49 ")


def test_what_is_alike_in_cost_competes_and_what_is_slower_does_not():
    point = RungPoint(9, (0.5,), (1.0,))
    assert not decide(point, alike(0.9, 0.9, 0.9, cost=1.04), 2).go_on
    assert decide(point, alike(0.9, 0.9, 0.9, cost=1.06), 2).go_on


def test_a_rival_surpasses_by_every_accuracy():
    better = [RungPoint(number, (0.9, 0.5), (1.0,)) for number in (1, 2, 3)]
    assert not decide(RungPoint(9, (0.5, 0.5), (1.0,)), better, 2).go_on
    assert decide(RungPoint(9, (0.5, 0.6), (1.0,)), better, 2).go_on


def test_equals_go_on():
    trials = alike(*[0.5] * 9)
    assert all(decide(trial, [other for other in trials if other is not trial], 3).go_on for trial in trials)


def test_the_reason_tells_the_rank():
    better = alike(0.9, 0.9)
    point = RungPoint(3, (0.5,), (1.0,))
    assert decide(point, better, 2).reason == "rank 3 of 3 among designs that are as fast, of which 2 go on"
    assert decide(RungPoint(3, (0.95,), (1.0,)), better, 2).reason == "rank 1 of 3 among designs that are as fast"
    assert decide(point, better, 2, "mo_asha").reason == "rank 3 of 3 by non-dominated fronts, of which 2 go on"
    assert decide(point, better, 4, "mo_asha").reason == "fewer than 4 trials have been here"


@PATIENT
@given(others=points(least=1), factor=FACTORS)
def test_under_mo_asha_the_most_accurate_is_never_stopped(others, factor):
    point, *rest = others
    best = all(other.accuracies < point.accuracies for other in rest)
    assert not best or decide(point, rest, factor, "mo_asha").go_on


TABLES = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.tuples(*[st.integers(0, 6)] * width), min_size=1, max_size=25).map(
        lambda rows: np.array(rows, float)
    )
)


@PATIENT
@given(table=TABLES)
def test_what_is_dominated_comes_after_what_dominates_it(table):
    order = priority(table)
    assert sorted(order) == list(range(len(table)))
    left, fronts = set(order), []
    while left:  # by the definition: the front of what is left, again and again
        fronts.append(
            {i for i in left if not any((table[j] <= table[i]).all() and (table[j] < table[i]).any() for j in left)}
        )
        left -= fronts[-1]
    places = iter(order)
    assert all({next(places) for _ in front} == front for front in fronts)


@PATIENT
@given(table=TABLES)
def test_the_net_is_greedy(table):
    order = epsilon_net(table)
    assert sorted(order) == list(range(len(table)))
    assert table[order[0], 0] == table[:, 0].min()
    span = np.where(np.ptp(table, axis=0) > 0, np.ptp(table, axis=0), 1)

    def gap(row, net):
        return min(np.linalg.norm((table[row] - table[other]) / span) for other in net)

    for place in range(1, len(order)):
        net, rest = order[:place], order[place:]
        assert gap(order[place], net) == pytest.approx(max(gap(row, net) for row in rest))


def test_the_net_of_a_line_takes_its_ends_then_its_middle():
    # In milliseconds and in accuracy: the unit does not matter.
    table = np.column_stack([-np.linspace(0.1, 0.5, 5), 1000 * np.linspace(0, 1, 5)])
    assert epsilon_net(table) == [4, 0, 2, 1, 3]
    assert priority(np.vstack([table, [[-0.1, 2000.0]]])) == [4, 0, 2, 1, 3, 5]


def test_the_share_of_the_epochs():
    assert share_of_epochs(64, 12, [], 3) == 1.0
    # In the long run 1, 1/3, 1/9, 1/27 of the trials train 1, 2, 6, 3 epochs.
    assert share_of_epochs(10**6, 12, [1, 3, 9], 3) == pytest.approx((1 + 2 / 3 + 6 / 9 + 3 / 27) / 12, rel=1e-3)
    # Fewer than factor trials are never stopped.
    assert share_of_epochs(2, 12, [1, 3, 9], 3) == 1.0


@METHODS
def test_the_share_is_that_of_trials_whose_rungs_say_nothing_of_each_other(method):
    trials, epochs, rungs, factor, runs = 40, 9, (1, 3), 3, 60
    trained = 0
    for seed in range(runs):
        generator = random.Random(seed)
        seen = {epoch: [] for epoch in rungs}
        for number in range(1, trials + 1):
            end = epochs
            for epoch in rungs:
                point = RungPoint(number, (generator.random(),), (1.0,))
                go_on = decide(point, seen[epoch], factor, method).go_on
                seen[epoch].append(point)
                if not go_on:
                    end = epoch
                    break
            trained += end
    assert trained / (runs * trials * epochs) == pytest.approx(share_of_epochs(trials, epochs, rungs, factor), rel=0.03)


RAW = {
    "name": "runged",
    "base": "headway::gfl_tiny",
    "data": {"digits": {}, "size": [96, 96]},
    "space": {"slimhead": {}},
}


def test_the_study_file_names_the_rule():
    assert parse(RAW, "x").rungs.method == "like_speed"
    assert parse({**RAW, "rungs": {"method": "mo_asha"}}, "x").rungs.method == "mo_asha"
    with pytest.raises(UserError, match=r"rungs\.method: must be 'like_speed' or 'mo_asha', but got 'asha'\.$"):
        parse({**RAW, "rungs": {"method": "asha"}}, "x")


def test_the_plan_says_what_share_of_the_epochs_is_trained():
    def told(**changes):
        study = parse({**RAW, "budget": {"trials": 64, "epochs": 12}, **changes}, "x")
        plan = Plan(1.0, [], None, None, None, 1, None, [], 1, {}, [])
        return [line for line in plan.lines(study) if line.startswith("Rungs: ")]

    assert told() == ["Rungs: about 24 % of the epochs are trained; more, the more designs differ in cost."]
    assert told(rungs={"method": "mo_asha"}) == ["Rungs: about 24 % of the epochs are trained."]
    assert told(rungs=None) == told(rungs={"first": 12}) == []
