"""Simulated time: exact times by hand, whose turn it is, and what becomes of trials that cannot go on."""

from pathlib import Path

import pytest

from analysis.record import TrialState
from search.conductor import Conductor
from search.simulate import Clock, simulate
from search.store import Store
from search.study import parse
from spaces.base import BaseFacts
from spaces.errors import HeadwayError
from spaces.space import build_space
from trainers.contract import DataRequest, TrialFailed, TrialReport
from trainers.replay import Step

FACTS = BaseFacts("GFL", "GFLHead", (8, 16, 32, 64, 128), 4, False)
DATA = DataRequest(
    train_annotations="", train_images="", val_annotations="", val_images="", classes=("a",), size=(96, 96)
)
# Four designs besides the baseline, each an architecture of its own.
SPACE = build_space({"slimhead": {"levels": [[0], [1]], "ratio": [0.5, 0.7], "mode": "nearest"}}, FACTS)


class Simulation:
    """A study in simulated time; ``seconds`` is by trial what counting, timing, an epoch and the end take."""

    def __init__(self, seconds, accuracy=lambda number: 0.3, workers=2, **changes):
        raw = {
            "name": "simulated",
            "base": "headway::gfl_tiny",
            "data": {"digits": {}, "size": [96, 96]},
            "space": {"slimhead": {}},
            "budget": {"trials": len(seconds), "epochs": 2},
            "rungs": None,
            "sampler": {"name": "grid"},
        }
        self.seconds, self.accuracy = seconds, accuracy
        self.clock = Clock()
        self.store = Store.in_memory(parse({**raw, **changes}, "simulated.yaml"), clock=self.clock)
        self.events = []
        self.conductor = Conductor(
            self.store.study, SPACE, self.store, folder=Path("nowhere"), data=DATA, device="cpu", speed_device="cpu",
            threads=1, concurrent=workers, listeners=(self.note,), clock=self.clock,
        )  # fmt: skip

    def note(self, record):
        self.events.append((self.clock(), record.number, record.state.value, len(record.curve)))

    def steps(self, request):
        counting, timing, epoch, end = self.seconds[request.number]
        yield Step(counting, TrialReport(phase="counted", epoch=0, metrics={"gmacs": 3.0}))
        if request.speed is not None:
            ratio = dict.fromkeys(("latency_ratio", "latency_ratio_q1", "latency_ratio_q3"), 1.0)
            yield Step(timing, TrialReport(phase="timed", epoch=0, metrics={**ratio, "reference_ms": 20.0}))
        for number in range(1, request.epochs + 1):
            accuracy = self.accuracy(request.number)
            yield Step(epoch, TrialReport(phase="epoch", epoch=number, metrics={"bbox_mAP": accuracy}))
        yield Step(end, TrialReport(phase="done", epoch=request.epochs, metrics={}))

    def run(self, steps=None):
        simulate(self.conductor, steps or self.steps, self.clock)
        return self.store.records()


THREE = [(1.0, 2.0, 10.0, 1.0), (1.0, 2.0, 5.0, 0.5), (1.0, 1.0, 2.25, 1.0)]


def test_the_times_of_three_trials_on_two_workers():
    simulation = Simulation(THREE)
    records = simulation.run()
    # Trial 1 waits for the baseline's latency, trial 2 for the place of trial 1; 23 s later two things end at once.
    assert [(record.started, record.finished) for record in records] == [(0.0, 24.0), (3.0, 16.5), (16.5, 24.0)]
    assert [record.compute_hours * 3600 for record in records] == pytest.approx([24.0, 13.5, 7.5])
    assert [[epoch.seconds for epoch in record.curve] for record in records] == [
        [13.0, 23.0],
        [8.0, 13.0],
        [4.25, 6.5],
    ]
    epochs = {event for event in simulation.events if event[3] and event[2] == "RUNNING"}
    assert sorted(epochs) == [
        *[(11.0, 1, "RUNNING", 1), (13.0, 0, "RUNNING", 1), (16.0, 1, "RUNNING", 2)],
        *[(20.75, 2, "RUNNING", 1), (23.0, 0, "RUNNING", 2), (23.0, 2, "RUNNING", 2)],
    ]
    assert simulation.clock() == 24.0 == simulation.store.seconds_run


def test_of_trials_that_end_together_the_lowest_number_is_first():
    simulation = Simulation([(1.0, 1.0, 4.0, 1.0)] * 4, workers=4)
    simulation.run()
    ends = [event[:2] for event in simulation.events if event[2] == "COMPLETE"]
    assert ends == [(11.0, 0), (13.0, 1), (13.0, 2), (13.0, 3)]
    # All of them at every moment: trial 0 is ahead by what its timing took.
    assert [event[:2] for event in simulation.events if event[3] == 1] == [(6.0, 0), (8.0, 1), (8.0, 2), (8.0, 3)]


def test_two_runs_are_the_same():
    runs = []
    for _ in range(2):
        simulation = Simulation(
            THREE + THREE[1:], rungs={"first": 1, "factor": 2}, accuracy=lambda number: 0.3 - number / 100
        )
        runs.append((simulation.run(), simulation.events))
    assert runs[0] == runs[1]


def test_a_stopped_trial_leaves_its_place_at_the_rung():
    simulation = Simulation(
        [(1.0, 1.0, 10.0, 1.0)] * 3,
        accuracy=lambda number: 0.3 - number / 100,
        workers=1,
        rungs={"first": 1, "factor": 2},
    )
    records = simulation.run()
    assert [record.state for record in records] == [TrialState.COMPLETE, TrialState.STOPPED, TrialState.STOPPED]
    assert [(record.started, record.finished) for record in records] == [(0.0, 23.0), (23.0, 35.0), (35.0, 47.0)]


def test_a_trial_that_fails_ends_at_its_last_report():
    simulation = Simulation(THREE)

    def steps(request):
        for step in simulation.steps(request):
            if request.number == 1 and step.report.epoch == 2:
                raise TrialFailed("the loss is NaN")
            yield step

    records = simulation.run(steps)
    assert (records[1].state, records[1].reason) == (TrialState.FAILED, "the loss is NaN")
    assert (records[1].finished, records[2].started) == (11.0, 11.0)


def test_a_trial_without_a_result_fails():
    simulation = Simulation(THREE)
    records = simulation.run(
        lambda request: iter(list(simulation.steps(request))[: 2 if request.number == 1 else None])
    )
    assert (records[1].state, records[1].reason) == (TrialState.FAILED, "the trial ended without a result")
    assert records[2].state is TrialState.COMPLETE


def test_the_run_ends_when_the_simulated_hours_are_spent():
    simulation = Simulation(THREE, workers=1, budget={"trials": 3, "epochs": 2, "hours": 30 / 3600})
    # Trial 0 ends at 24 s, trial 1 at 37.5 s: then the 30 s are spent.
    assert [record.finished for record in simulation.run()] == [24.0, 37.5]
    assert simulation.conductor.out_of_time


def test_a_simulation_that_cannot_go_on_says_so():
    simulation = Simulation(THREE)
    simulation.conductor.concurrent = 0
    with pytest.raises(HeadwayError, match="the conductor waits although no trial runs"):
        simulation.run()
