"""The budget in GPU hours: exact figures by hand, and that nothing which runs is cut."""

from dataclasses import replace
from pathlib import Path

import pytest

from analysis.record import EpochRecord, TrialRecord, TrialState
from search.conductor import Conductor
from search.engine import check_gpu_hours
from search.gpu_hours import room
from search.resources import Resources
from search.simulate import Clock, simulate
from search.store import Store
from search.study import parse
from spaces.base import BaseFacts
from spaces.errors import UserError
from spaces.space import build_space
from trainers.contract import DataRequest, TrialReport
from trainers.replay import Step

FACTS = BaseFacts("GFL", "GFLHead", (8, 16, 32, 64, 128), 4, False)
SPACE = build_space({"slimhead": {"levels": [[0], [1]], "ratio": [0.5, 0.7], "mode": "nearest"}}, FACTS)
DATA = DataRequest(
    train_annotations="", train_images="", val_annotations="", val_images="", classes=("a",), size=(96, 96)
)
HOUR = 3600.0


def make_study(gpu_hours, **changes):
    raw = {
        "name": "budgeted",
        "base": "headway::gfl_tiny",
        "data": {"digits": {}, "size": [96, 96]},
        "space": {"slimhead": {}},
        "budget": {"trials": 5, "epochs": 2, "gpu_hours": gpu_hours},
        "rungs": None,
        "sampler": {"name": "grid"},
    }
    return parse({**raw, **changes}, "budgeted.yaml")


def steps(request):
    """A trial takes three hours: half an hour before the first of two epochs, half an hour after the last."""
    yield Step(0.0, TrialReport(phase="counted", epoch=0, metrics={"gmacs": 3.0}))
    if request.speed is not None:
        ratio = dict.fromkeys(("latency_ratio", "latency_ratio_q1", "latency_ratio_q3"), 1.0)
        yield Step(0.0, TrialReport(phase="timed", epoch=0, metrics={**ratio, "reference_ms": 20.0}))
    for epoch, hours in ((1, 1.5), (2, 1.0)):
        accuracy = 0.3 - request.number / 100
        yield Step(hours * HOUR, TrialReport(phase="epoch", epoch=epoch, metrics={"bbox_mAP": accuracy}))
    yield Step(0.5 * HOUR, TrialReport(phase="done", epoch=2, metrics={}))


def searched(gpu_hours, *, concurrent=1, gpus=1, **changes):
    clock = Clock()
    store = Store.in_memory(make_study(gpu_hours, **changes), clock=clock)
    conductor = Conductor(
        store.study, SPACE, store, folder=Path("nowhere"), data=DATA, device="cuda", speed_device="cuda", threads=1,
        concurrent=concurrent, gpus=gpus, clock=clock,
    )  # fmt: skip
    simulate(conductor, steps, clock)
    return conductor, store.records()


@pytest.mark.parametrize(("budget", "count"), [(2.0, 1), (5.9, 1), (6.0, 2), (8.99, 2), (9.0, 3), (14.9, 4)])
def test_no_trial_is_started_that_would_not_fit(budget, count):
    conductor, records = searched(budget)
    assert [record.state for record in records] == [TrialState.COMPLETE] * count
    assert sum(record.compute_hours for record in records) == 3.0 * count
    assert str(conductor.out_of_gpu_hours) == (
        f"of the {budget:g} GPU hours of the budget {3 * count} are spent, and one more trial would need about 3"
    )


def test_a_budget_that_is_not_reached_says_nothing():
    conductor, records = searched(15.0)
    assert len(records) == 5
    assert conductor.out_of_gpu_hours is None


def test_all_gpus_of_a_trial_count():
    conductor, records = searched(24.0, gpus=4)
    assert len(records) == 2
    assert str(conductor.out_of_gpu_hours).startswith("of the 24 GPU hours of the budget 24 are spent")


def test_what_runs_is_counted_with_what_it_still_needs():
    _, records = searched(11.0, concurrent=2)
    # At 1.5 h trial 0 has an epoch of 1.5 h, so a trial is taken to need 3 h: two fit into 11, and at 3 h, where trial
    # 1 has 1.5 h to go, a third. At 4.5 h trials 0 and 1 have taken 6, trial 2 has taken 1.5 and needs 1.5: no fourth.
    assert [(record.started / HOUR, record.finished / HOUR) for record in records] == [(0, 3), (1.5, 4.5), (3, 6)]


def test_before_anything_is_known_nothing_runs_beside_the_baseline():
    _, records = searched(100.0, concurrent=5)
    assert [record.started / HOUR for record in records] == [0, 1.5, 1.5, 1.5, 1.5]


def test_a_trial_that_is_stopped_leaves_room():
    _, records = searched(10.0, rungs={"first": 1, "factor": 2})
    assert [record.state.value for record in records] == ["COMPLETE", "STOPPED", "STOPPED", "STOPPED"]
    assert [record.compute_hours for record in records] == [3.0, 1.5, 1.5, 1.5]  # and 3 more would make 10.5


def trial(number, state, hours, *seconds, **attrs):
    curve = [EpochRecord(epoch, {}, value * HOUR) for epoch, value in enumerate(seconds, 1)]
    return TrialRecord(number, state, compute_hours=hours, curve=curve, attrs=attrs)


def test_the_shared_warm_start_is_spent_once():
    """The baseline took 5 h, 2 of them for all: another one needs 3."""
    baseline = trial(0, TrialState.COMPLETE, 5.0, 3.5, 4.5, warm_seconds=2 * HOUR)
    found = room([baseline], {}, epochs=2, gpus=1, budget=8.0)
    assert (found.spent, found.promised, found.needed) == (5.0, 0.0, 3.0)
    assert found.enough(alone=True)
    assert not replace(found, budget=7.99).enough(alone=True)


def test_a_trial_that_is_slower_than_all_before_is_given_what_its_epochs_say():
    done = trial(0, TrialState.COMPLETE, 3.0, 1.0, 2.0, 3.0)
    slow = trial(1, TrialState.RUNNING, 4.0, 2.0, 4.0)  # two hours an epoch: six in all
    found = room([done, slow], {1: 4.5}, epochs=3, gpus=2, budget=100.0)
    assert (found.spent, found.promised, found.needed) == (15.0, 3.0, 6.0)


def test_a_trial_that_a_kill_left_keeps_its_share():
    left = trial(1, TrialState.RUNNING, 1.0)
    found = room([trial(0, TrialState.COMPLETE, 3.0, 3.0), left], {}, epochs=1, gpus=1, budget=8.9)
    assert (found.spent, found.promised, found.needed) == (4.0, 2.0, 3.0)
    assert not found.enough(alone=False)


def test_without_a_gpu_it_is_refused():
    with pytest.raises(UserError, match=r"^budget\.gpu_hours: must be null where trials use no GPU, but got 5"):
        check_gpu_hours(make_study(5.0), Resources(1, 0, 2))
    check_gpu_hours(make_study(5.0), Resources(1, 1, 2))
    check_gpu_hours(make_study(None), Resources(1, 0, 2))


@pytest.mark.parametrize("value", [0, -1.0, "5", True])
def test_it_must_be_hours(value):
    with pytest.raises(UserError, match=r"budget\.gpu_hours"):
        make_study(value)


def test_extend_lets_it_grow(tmp_path):
    Store.create(tmp_path, make_study(5.0)).propose_baseline(SPACE)
    with pytest.raises(UserError, match=r"budget\.gpu_hours: 5\.0 -> 6\.0"):
        Store.create(tmp_path, make_study(6.0))
    with pytest.raises(UserError, match=r"budget\.gpu_hours: 5\.0 -> 4\.0"):
        Store.create(tmp_path, make_study(4.0), extend=True)
    Store.create(tmp_path, make_study(6.0), extend=True)
    Store.create(tmp_path, make_study(6.0))
