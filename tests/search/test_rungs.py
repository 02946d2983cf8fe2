"""The promises of ``search.rungs``, as properties."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.rungs import LIKE, RungPoint, decide

ACCURACIES = st.floats(0, 1, allow_nan=False)
COSTS = st.floats(0.01, 1e4, allow_nan=False)
FACTORS = st.integers(2, 6)


def points(least=0, most=40, costs=COSTS):
    """Trials 1, 2, ... at a rung."""
    drawn = st.lists(st.tuples(ACCURACIES, costs), min_size=least, max_size=most)
    return drawn.map(lambda pairs: [RungPoint(number, *pair) for number, pair in enumerate(pairs, 1)])


@given(others=points(), accuracy=ACCURACIES, cost=COSTS, factor=FACTORS)
def test_the_baseline_is_never_stopped(others, accuracy, cost, factor):
    assert decide(RungPoint(0, accuracy, cost), others, factor).go_on


@given(factor=FACTORS, data=st.data())
def test_fewer_rivals_than_factor_minus_one_stop_nobody(factor, data):
    point, *rivals = data.draw(points(least=1, most=factor - 1))
    assert decide(point, rivals, factor).go_on
    # However many slower designs there are: they are no rivals.
    slower = [RungPoint(100 + index, 1.0, point.cost * LIKE * 1.01) for index in range(30)]
    assert decide(point, rivals + slower, factor).go_on


@given(others=points(least=1), factor=FACTORS)
def test_a_design_that_no_rival_surpasses_is_never_stopped(others, factor):
    point, *rest = others
    surpassed = any(other.accuracy > point.accuracy and other.cost <= point.cost * LIKE * (1 + 1e-12) for other in rest)
    assert surpassed or decide(point, rest, factor).go_on


@given(others=points(least=1, costs=st.integers(0, 20).map(lambda step: 1.1**step)), factor=FACTORS)
def test_a_design_that_no_other_dominates_is_never_stopped(others, factor):
    # On a grid coarser than what counts as alike, this is the dominance of the front.
    point, *rest = others
    dominated = any(other.accuracy > point.accuracy and other.cost <= point.cost for other in rest)
    assert dominated or decide(point, rest, factor).go_on


@given(others=points(least=2), factor=FACTORS)
def test_more_accuracy_never_hurts_and_less_of_the_others_never_does(others, factor):
    point, *rest = others
    if decide(point, rest, factor).go_on:
        assert decide(RungPoint(point.number, point.accuracy + 0.1, point.cost), rest, factor).go_on
        worse = [RungPoint(other.number, other.accuracy / 2, other.cost) for other in rest]
        assert decide(point, worse, factor).go_on


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_of_exchangeable_trials_one_in_factor_goes_on(factor):
    # Up to the 3 x factor that compete at once, exactly ceil(n / factor) of n do.
    for count in range(1, 3 * factor + 1):
        trials = [RungPoint(number, number / 100, 1.0) for number in range(1, count + 1)]
        going = [
            trial.number
            for trial in trials
            if decide(trial, [other for other in trials if other is not trial], factor).go_on
        ]
        expected = math.ceil(count / factor) if count >= factor else count
        assert going == list(range(count - expected + 1, count + 1))


@pytest.mark.parametrize("factor", [2, 3])
def test_in_any_order_of_arrival_the_share_is_that_of_the_closed_form(factor):
    # Over all orders of n equally fast trials the i-th to come goes on with probability ceil(i / factor) / i.
    count = 6
    going = 0
    for order in itertools.permutations(range(1, count + 1)):
        trials = [RungPoint(number, number / 10, 1.0) for number in order]
        going += sum(decide(trial, trials[:index], factor).go_on for index, trial in enumerate(trials))
    expected = sum(1 if i < factor else math.ceil(i / factor) / i for i in range(1, count + 1))
    assert going / math.factorial(count) == pytest.approx(expected)


def test_in_a_long_run_about_one_in_factor_goes_on():
    for factor in (2, 3, 4):
        generator = random.Random(factor)
        trials = [RungPoint(number, generator.random(), generator.uniform(0.5, 1)) for number in range(1, 2001)]
        going = sum(decide(trial, trials[:index], factor).go_on for index, trial in enumerate(trials))
        assert going / len(trials) == pytest.approx(1 / factor, rel=0.1)


@given(others=points(least=1), factor=FACTORS, seed=st.integers(0, 9))
def test_a_decision_depends_on_the_points_alone_not_on_their_order(others, factor, seed):
    point, *rest = others
    shuffled = random.Random(seed).sample(rest, len(rest))
    assert decide(point, rest, factor) == decide(point, shuffled, factor) == decide(point, tuple(rest), factor)


@settings(max_examples=200)
@given(others=points(least=1), factor=FACTORS, power=st.integers(-20, 20))
def test_the_unit_of_cost_does_not_matter(others, factor, power):
    point, *rest = (RungPoint(item.number, item.accuracy, item.cost * 2.0**power) for item in others)
    assert decide(others[0], others[1:], factor) == decide(point, rest, factor)


@given(accuracies=st.lists(ACCURACIES, min_size=1, max_size=9), factor=FACTORS)
def test_without_a_cost_all_are_rivals(accuracies, factor):
    point, *rest = (RungPoint(number, accuracy, None) for number, accuracy in enumerate(accuracies, 1))
    alike = [RungPoint(item.number, item.accuracy, 7.0) for item in rest]
    assert decide(point, rest, factor) == decide(RungPoint(1, point.accuracy, 7.0), alike, factor)
    # Who is told its cost after training only is no rival of those who know theirs.
    assert decide(point, alike, factor) == decide(point, [], factor)


def test_rivals_are_the_nearest_in_cost():
    # Eight better designs near it in cost decide, however many bad ones are much faster.
    point = RungPoint(100, 0.5, 10.0)
    near = [RungPoint(number, 0.9, 9.0) for number in range(1, 9)]
    fast = [RungPoint(number, 0.1, 1.0) for number in range(10, 60)]
    assert not decide(point, near + fast, 3).go_on
    assert decide(RungPoint(100, 0.5, 1.0), near + fast, 3).go_on


def test_what_is_alike_in_cost_competes_and_what_is_slower_does_not():
    better = [RungPoint(number, 0.9, 1.04) for number in range(1, 4)]
    slower = [RungPoint(number, 0.9, 1.06) for number in range(1, 4)]
    assert not decide(RungPoint(9, 0.5, 1.0), better, 2).go_on
    assert decide(RungPoint(9, 0.5, 1.0), slower, 2).go_on


def test_equals_go_on():
    trials = [RungPoint(number, 0.5, 1.0) for number in range(1, 10)]
    assert all(decide(trial, [other for other in trials if other is not trial], 3).go_on for trial in trials)


def test_the_reason_tells_the_rank():
    better = [RungPoint(number, 0.9, 1.0) for number in (1, 2)]
    decision = decide(RungPoint(3, 0.5, 1.0), better, 2)
    assert decision.reason == "rank 3 of 3 among designs that are as fast, of which 2 go on"
    assert decide(RungPoint(3, 0.95, 1.0), better, 2).reason == "rank 1 of 3 among designs that are as fast"
