"""The real conductor and store under random schedules with deaths: the end is that of an undisturbed run."""

import hashlib
import json
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState as OptunaState
from sqlalchemy import event
from sqlalchemy.engine import Engine

from analysis.pareto import dominates, front, hypervolume
from analysis.record import EpochRecord, TrialState
from search.conductor import Conductor, Pause
from search.storage import default_url
from search.store import Store
from search.study import parse
from spaces.base import BaseFacts
from spaces.space import build_space
from trainers.contract import DataRequest, TrialReport, TrialRequest

FACTS = BaseFacts("GFL", "GFLHead", (8, 16, 32, 64, 128), 4, False)
DATA = DataRequest(
    train_annotations="/t.json",
    train_images="/t",
    val_annotations="/v.json",
    val_images="/v",
    classes=("a",),
    size=(96, 96),
)
SPACE = build_space({"slimhead": {}, "dcn": {}}, FACTS)


class Killed(BaseException):
    """The driver's process is gone."""


class Writes:
    """Sees all that is written to any database, and kills the driver before a write."""

    def __init__(self):
        self.count, self.last, self.deadly = 0, None, None

    def live(self, last, deadly=lambda write: False):
        """A driver begins that has ``last`` writes to live, ``None`` for all it wants, and none that is ``deadly``."""
        self.count, self.last, self.deadly = 0, last, deadly

    def statement(self, connection, cursor, statement, parameters, *_):
        verb, *words = statement.split()
        if verb in ("INSERT", "UPDATE", "DELETE"):
            table = words[verb != "UPDATE"]
            told = parameters[-1] if isinstance(parameters, list) else parameters
            # What it is about, without times: the same in another life.
            about = [item for item in told if isinstance(item, int) or str(item).startswith(("headway:", '"', "{"))]
            connection.info["write"] = [table, *about]

    def commit(self, connection):
        write = connection.info.pop("write", None)
        if write is not None:
            self.count += 1
            if (self.last is not None and self.count > self.last) or self.deadly(write):
                connection.connection.rollback()  # as the database does for a process that is gone
                raise Killed

    def rollback(self, connection):
        connection.info.pop("write", None)


@contextmanager
def counted_writes():
    """Hooks into every database of this process; what dies is the process, so nothing need reach the disk."""
    writes = Writes()
    hooks = [
        ("before_cursor_execute", writes.statement),
        ("commit", writes.commit),
        ("rollback", writes.rollback),
        ("connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF")),
    ]
    for name, hook in hooks:
        event.listen(Engine, name, hook)
    try:
        yield writes
    finally:
        for name, hook in hooks:
            event.remove(Engine, name, hook)


def chance(*what):
    """A number in [0, 1) that follows from ``what`` and nothing else."""
    return int(hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12], 16) / 16**12


@dataclass(frozen=True)
class Case:
    """A study and the order in which its trials move."""

    seed: int
    sampler: str = "random"
    trials: int = 6
    epochs: int = 4
    factor: int = 2
    first: int = 1
    concurrent: int = 2
    method: str = "like_speed"
    objectives: tuple = ("latency_ms",)

    @property
    def study(self):
        costs = [{"metric": metric, "direction": "minimize"} for metric in self.objectives]
        raw = {
            "name": "scheduled",
            "base": "headway::gfl_tiny",
            "data": {"digits": {}, "size": [96, 96]},
            "space": {"slimhead": {}, "dcn": {}},
            "objectives": [{"metric": "bbox_mAP", "direction": "maximize"}, *costs],
            "constraints": ["gmacs <= 10.9"],
            "budget": {"trials": self.trials, "epochs": self.epochs},
            "rungs": {"first": self.first, "factor": self.factor, "method": self.method},
            "sampler": {"name": self.sampler, **({"startup": 2} if self.sampler == "tpe" else {})},
            "seed": self.seed,
        }
        return parse(raw, "scheduled.yaml")

    def turn(self, number, step):
        """Of the running trials the one whose next step has the lowest turn moves."""
        return chance(self.seed, "turn", number, step)


def figures(knobs):
    """Latency ratio, parameters and final accuracy of a design, and how fast it learns: curves cross."""
    slimmed = len(knobs.get("slimhead.levels", ())) * (1 - knobs.get("slimhead.ratio", 1.0))
    layers = len(knobs.get("dcn.placement", ()))
    luck = chance(knobs)
    ratio = 1 - 0.03 * slimmed + 0.02 * layers
    return ratio, 2 + 0.3 * layers, 0.40 - 0.03 * slimmed + 0.008 * layers + 0.2 * luck, 0.3 + chance(knobs, "rate")


class Process:
    """A trial's process: what a trainer reports, from its newest checkpoint."""

    def __init__(self, request, checkpoint):
        self.request = request
        timed = ["timed"] if request.speed else []
        counted = ["counted"] if timed or not checkpoint else []
        self.steps = [*counted, *timed, *range(max(checkpoint, 1), request.epochs + 1), "done"]

    def report(self, step):
        """The report of a step, or why the trial fails there."""
        knobs, number = self.request.knobs, self.request.number
        ratio, params, accuracy, rate = figures(knobs)
        if step == "counted":
            return TrialReport(phase=step, epoch=0, metrics={"gmacs": 10 * ratio, "params_m": params}, seconds=1.0)
        if step == "timed":
            times = dict.fromkeys(("latency_ratio", "latency_ratio_q1", "latency_ratio_q3"), ratio)
            return TrialReport(phase=step, epoch=0, metrics={**times, "reference_ms": 20.0}, seconds=2.0)
        if step == "done":
            return TrialReport(phase=step, epoch=self.request.epochs, metrics={}, seconds=99.0)
        fails = number > 0 and chance(knobs, "fails", step)
        if fails and fails > 0.98:
            return f"the loss is NaN at epoch {step}"
        reached = float("nan") if fails and fails > 0.96 else accuracy * (1 - 2 ** -(rate * step))
        return TrialReport(
            phase="epoch", epoch=step, metrics={"bbox_mAP": reached, "loss": 1 / step}, seconds=2.0 + step
        )


@dataclass
class World:
    """What no death of the driver takes away, and the deaths to come."""

    case: Case
    folder: Path
    writes: Writes
    deaths: list = field(default_factory=list)
    """Writes that each driver in turn has to live; the one after the last lives on."""
    chaos: int | None = None
    """Draws further deaths of drivers, those of trials' processes, and when what was reported before is said again."""
    checkpoints: dict = field(default_factory=dict)
    taken: set = field(default_factory=set)
    lost: set = field(default_factory=set)
    lives: list = field(default_factory=list)

    def run(self):
        """Runs the study to its end through all deaths."""
        deaths = iter(self.deaths)
        ended = False
        while not ended:
            self.writes.live(next(deaths, None), self.deadly)
            with suppress(Killed):
                self.drive()
                ended = True
            self.lives.append(self.writes.count)
        self.writes.live(None)
        return self

    def deadly(self, write):
        """Whether the driver dies before a write, once; most often before one that ends something."""
        if self.chaos is None or len(self.lives) > 15 or str(write) in self.lost:
            return False
        self.lost.add(str(write))
        decisive = ("rungs", "reason", "state", "finished", "reference_ms", "constraint", "trials", "trial_values")
        share = 0.2 if any(word in str(write) for word in decisive) else 0.03
        return chance(self.chaos, write) < share

    def drive(self):
        """One driver process, with the trials' processes that die with it."""
        study = self.case.study
        store = Store.create(self.folder, study)
        conductor = Conductor(
            study, SPACE, store, folder=self.folder, data=DATA, device="cpu", speed_device="cpu", threads=1,
            concurrent=self.case.concurrent,
        )  # fmt: skip
        # An epoch that is in the store has taken place, and whoever reports it again may be late.
        self.taken |= {(record.number, item.epoch) for record in store.records() for item in record.curve}
        running = {}
        while True:
            while isinstance(request := conductor.next(), TrialRequest):
                assert request.number not in running and len(running) < self.case.concurrent
                running[request.number] = self.begin(request)
            if not running:
                assert request is Pause.FINISHED
                return
            self.repeat(conductor, running)
            number = min(running, key=lambda item: self.case.turn(item, self.new_step(item, running[item])))
            self.move(conductor, running, number)

    def begin(self, request):
        return Process(request, self.checkpoints.get(request.number, 0))

    def new_step(self, number, process):
        return next(step for step in process.steps if (number, step) not in self.taken)

    def repeat(self, conductor, running):
        """Lets some processes say again what they said before their death."""
        for number in list(running):
            process = running[number]
            while (number, process.steps[0]) in self.taken and self.early(number, process.steps[0]):
                if not self.send(conductor, running, number):
                    break

    def early(self, number, step):
        """Whether a trial says something again before its turn; in some worlds nearly always, in some hardly ever."""
        return chance(self.chaos, number, step, len(self.taken)) < chance(self.chaos, "early")

    def move(self, conductor, running, number):
        """A trial's next new step, after whatever it has to say again."""
        while number in running:
            step = running[number].steps[0]
            new = (number, step) not in self.taken
            if new and isinstance(step, int):
                self.checkpoints[number] = step
            if new and self.dies(number, step, "before"):
                running[number] = self.begin(running[number].request)
                continue
            went = self.send(conductor, running, number)
            if went and new and self.dies(number, step, "after"):
                running[number] = self.begin(running[number].request)
            if new:
                return

    def dies(self, number, step, when):
        """Whether the trial's process dies here, once."""
        if self.chaos is None or (number, step, when) in self.lost:
            return False
        self.lost.add((number, step, when))
        return chance(self.chaos, number, step, when) < 0.15

    def send(self, conductor, running, number):
        process = running[number]
        step = process.steps[0]
        report = process.report(step)
        if isinstance(report, str):
            conductor.died(number, report)
            went = False
        else:
            went = conductor.report(number, report)
        self.taken.add((number, step))
        process.steps.pop(0)
        if not went:
            del running[number]
        return went

    @property
    def store(self):
        return Store.read(self.folder, self.case.study)

    @property
    def end(self):
        """All that must not depend on deaths: by trial its design, state, reason, decisions and curve."""
        return [
            (
                record.number,
                record.knobs,
                record.state.value,
                record.reason,
                dict(record.rungs),
                [(item.epoch, dict(item.metrics)) for item in record.curve],
                {name: value for name, value in record.metrics.items() if not name.startswith("loss")},
            )
            for record in self.store.records()
        ]

    @property
    def told(self):
        """What Optuna was told, by trial: state, values and knobs."""
        study = optuna.load_study(study_name="scheduled", storage=default_url(self.folder))
        trials = {trial.user_attrs.get("headway:number"): trial for trial in study.trials}
        return {
            number: (trial.state, trial.values, trial.params) for number, trial in trials.items() if number is not None
        }


@contextmanager
def world(case, deaths=(), chaos=None):
    folder = Path(tempfile.mkdtemp(prefix="headway-schedule-"))
    try:
        with counted_writes() as writes:
            made = World(case, folder, writes, list(deaths), chaos).run()
        yield made
    finally:
        shutil.rmtree(folder)


SETTINGS = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
CASES = {
    "seed": st.integers(0, 10**6),
    "trials": st.integers(4, 8),
    "epochs": st.integers(3, 9),
    "factor": st.integers(2, 3),
    "first": st.integers(1, 2),
    "concurrent": st.integers(1, 3),
    "method": st.sampled_from(["like_speed", "mo_asha"]),
    "objectives": st.sampled_from([("latency_ms",), ("latency_ms", "params_m")]),
}
DEATHS = st.lists(st.integers(0, 40), max_size=3)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_deaths_at_random_points_end_in_the_same_rungs_states_and_proposals(sampler):
    drivers = []

    @settings(SETTINGS, max_examples=3)
    @given(case=st.builds(Case, sampler=st.just(sampler), **CASES), deaths=DEATHS, chaos=st.integers(0, 10**6))
    def check(case, deaths, chaos):
        with world(case) as undisturbed, world(case, deaths, chaos) as disturbed:
            drivers.append(len(disturbed.lives))
            assert disturbed.end == undisturbed.end
            assert disturbed.told == undisturbed.told
            check_fronts(undisturbed)

    check()
    assert sum(drivers) > 2 * len(drivers)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_drivers_that_die_one_after_the_other_end_in_the_same(sampler):
    with world(Case(3, sampler, trials=7, epochs=5, concurrent=3)) as undisturbed:
        states = {record.state for record in undisturbed.store.records()}
        # No end is missing from what is compared.
        assert states == {TrialState.COMPLETE, TrialState.STOPPED, TrialState.INFEASIBLE, TrialState.FAILED}
        check_fronts(undisturbed)
        with world(undisturbed.case, [*range(5), 29, 29, 29], chaos=0) as disturbed:
            assert len(disturbed.lives) > 8
            assert disturbed.end == undisturbed.end
            assert disturbed.told == undisturbed.told


def check_fronts(world):
    """Only COMPLETE trials are on a front or have values in the store."""
    store = world.store
    records, objectives = store.records(), world.case.study.objective_records
    complete = [record for record in records if record.state is TrialState.COMPLETE]
    members = front(records, objectives)
    assert [one for one in complete if not any(dominates(other, one, objectives) for other in complete)] == sorted(
        members, key=lambda record: record.number
    )
    # However good a stopped trial looks.
    best = {"bbox_mAP": 1.0, "latency_ms": 0.01, "params_m": 0.01}
    shining = [record if record in complete else replace(record, metrics=best) for record in records]
    assert front(shining, objectives) == members
    reference = (0.0, 100.0, 10.0)[: len(objectives)]
    volumes = [hypervolume(trials, objectives, reference) for trials in (records, shining, complete, members)]
    assert volumes[0] > 0 and volumes == pytest.approx([volumes[0]] * 4)
    metrics = [objective.metric for objective in objectives]
    for record in records:
        state, values, _ = world.told[record.number]
        if record.state is TrialState.COMPLETE:
            assert (state, values) == (OptunaState.COMPLETE, [record.metrics[metric] for metric in metrics])
        else:
            expected = OptunaState.FAIL if record.state is TrialState.FAILED else OptunaState.PRUNED
            assert (state, values) == (expected, None)


def first_driver(folder, trials=3):
    """A study whose trials all run side by side, and how its drivers begin."""
    study = Case(0, trials=trials, epochs=4).study.model_copy(update={"constraints": ()})

    def again():
        return Conductor(
            study, SPACE, Store.create(folder, study), folder=folder, data=DATA, device="cpu", speed_device="cpu",
            threads=1, concurrent=trials,
        )  # fmt: skip

    return again(), again


def counted():
    return TrialReport(phase="counted", epoch=0, metrics={"gmacs": 9.0, "params_m": 2.0})


def timed():
    ratios = dict.fromkeys(("latency_ratio", "latency_ratio_q1", "latency_ratio_q3"), 1.0)
    return TrialReport(phase="timed", epoch=0, metrics={**ratios, "reference_ms": 20.0})


def epoch(accuracy):
    return TrialReport(phase="epoch", epoch=1, metrics={"bbox_mAP": accuracy})


def start_all(conductor):
    """Starts, counts and times all trials that there are to start."""
    numbers = []
    while isinstance(request := conductor.next(), TrialRequest):
        numbers.append(request.number)
        conductor.report(request.number, counted())
        conductor.report(request.number, timed())
    return numbers


def test_a_decision_that_a_kill_cut_short_rests_on_what_was_there_then(tmp_path):
    conductor, again = first_driver(tmp_path)
    assert start_all(conductor) == [0, 1, 2]
    conductor.report(0, epoch(0.1))
    # Written as the conductor does; then the driver is killed.
    conductor.store.add_epoch(1, EpochRecord(1, {"bbox_mAP": 0.2}))
    conductor = again()
    assert start_all(conductor) == [0, 1, 2]
    # The other is first to be heard, and better.
    assert conductor.report(2, epoch(0.3))
    assert conductor.report(1, epoch(0.2))
    assert conductor.store.record(1).rungs == {1: "continue: rank 1 of 2 among designs that are as fast"}


def test_a_trial_that_a_kill_kept_from_its_end_is_not_started_again(tmp_path):
    conductor, again = first_driver(tmp_path)
    start_all(conductor)
    conductor.report(0, epoch(0.3))
    conductor.store.add_epoch(1, EpochRecord(1, {"bbox_mAP": 0.2}))
    conductor.store.add_rung(1, 1, "stop: rank 2 of 2 among designs that are as fast, of which 1 go on")
    conductor = again()
    assert start_all(conductor) == [0, 2]
    record = conductor.store.record(1)
    assert record.state is TrialState.STOPPED
    assert record.reason == "at epoch 1: rank 2 of 2 among designs that are as fast, of which 1 go on"


def test_the_reference_that_lets_others_begin_is_kept_after_the_figures_of_the_baseline(tmp_path):
    with counted_writes() as writes:
        for last in range(20):  # killed after each write of the report that brings it
            writes.live(None)
            (tmp_path / str(last)).mkdir()
            conductor, _ = first_driver(tmp_path / str(last))
            conductor.next(), conductor.report(0, counted())
            writes.live(last)
            with suppress(Killed):
                assert conductor.report(0, timed())
                assert last > 2
                return
            store = Store.read(tmp_path / str(last), conductor.study)
            assert store.reference_ms is None or store.record(0).metrics["latency_ms"] == 20.0
            assert store.reference_ms is None or store.speed(conductor._speed_key({}))
    pytest.fail("the report was never taken")
