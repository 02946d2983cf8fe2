"""The real conductor over the real store, under random schedules, with deaths: the end is that of an undisturbed run."""

import hashlib
import json
import random
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState as OptunaState
from sqlalchemy import event
from sqlalchemy.engine import Engine

from analysis.pareto import dominates, front, hypervolume
from analysis.record import TrialState
from search.conductor import Conductor, Pause
from search.rungs import LIKE
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
    """Counts what is written to any database, and kills the driver before a given one."""

    def __init__(self):
        self.count, self.last = 0, None

    def live(self, last):
        """A driver begins that has ``last`` writes to live, ``None`` for all it wants."""
        self.count, self.last = 0, last

    def statement(self, connection, cursor, statement, *_):
        if statement.split(None, 1)[0] in ("INSERT", "UPDATE", "DELETE"):
            connection.info["wrote"] = True

    def commit(self, connection):
        if connection.info.pop("wrote", False):
            self.count += 1
            if self.last is not None and self.count > self.last:
                connection.connection.rollback()  # as the database does for a process that is gone
                raise Killed

    def rollback(self, connection):
        connection.info.pop("wrote", None)


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
        return TrialReport(phase="epoch", epoch=step, metrics={"bbox_mAP": reached, "loss": 1 / step}, seconds=2.0 + step)


@dataclass
class World:
    """What no death of the driver takes away, and the deaths to come."""

    case: Case
    folder: Path
    writes: Writes
    deaths: list = field(default_factory=list)
    """Writes that each driver in turn has to live; the one after the last lives on."""
    chaos: int | None = None
    """Draws which trials' processes die and when what was reported before is reported again; ``None`` for never."""
    checkpoints: dict = field(default_factory=dict)
    taken: set = field(default_factory=set)
    lost: set = field(default_factory=set)
    lives: list = field(default_factory=list)

    def run(self):
        """Runs the study to its end through all deaths; returns the store's content."""
        for last in [*self.deaths, None]:
            self.writes.live(last)
            try:
                self.drive()
                break
            except Killed:
                pass
            finally:
                self.lives.append(self.writes.count)
        self.writes.live(None)
        return self

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
            while (number, process.steps[0]) in self.taken and chance(self.chaos, len(self.taken), number, process.steps[0]) < 0.7:
                if not self.send(conductor, running, number):
                    break

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
        return {number: (trial.state, trial.values, trial.params) for number, trial in trials.items() if number is not None}


@contextmanager
def world(case, deaths=(), chaos=None):
    folder = Path(tempfile.mkdtemp(prefix="headway-schedule-"))
    try:
        with counted_writes() as writes:
            yield World(case, folder, writes, list(deaths), chaos).run()
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
DEATHS = st.lists(st.integers(0, 40), min_size=1, max_size=8)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_deaths_at_random_points_end_in_the_same_rungs_states_and_proposals(sampler):
    @settings(SETTINGS, max_examples=6)
    @given(case=st.builds(Case, sampler=st.just(sampler), **CASES), deaths=DEATHS, chaos=st.integers(0, 10**6))
    def check(case, deaths, chaos):
        with world(case) as undisturbed, world(case, deaths, chaos) as disturbed:
            assert disturbed.end == undisturbed.end
            assert disturbed.told == undisturbed.told

    check()


def driver(folder, case):
    study = case.study
    store = Store.create(folder, study)
    return Conductor(
        study, SPACE, store, folder=folder, data=DATA, device="cpu", speed_device="cpu", threads=1,
        concurrent=case.concurrent,
    )  # fmt: skip


def play(conductor, request, last):
    """A trial's reports up to an epoch."""
    process = Process(request, 0)
    for step in process.steps[: process.steps.index(last) + 1]:
        assert conductor.report(request.number, process.report(step))
