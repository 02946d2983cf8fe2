"""The search benchmark: known fronts, the fidelity axis, the event loop, what is kept, and what is said about it."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[2]))

from analysis.record import TrialState
from benchmarks.search import report, rivals, run
from benchmarks.search.problems import ACCURACY, OFFSET, SHAPES, AnalyticProblem, Shape, TableProblem, problem, volume
from benchmarks.search.rivals import Ended, race
from search.study import Study
from spaces.errors import UserError
from trainers.contract import TrialFailed, TrialReport, TrialRequest
from trainers.replay import Entry, Row, Step, Table

needs_syne_tune = pytest.mark.skipif(
    importlib.util.find_spec("syne_tune") is None, reason="needs syne-tune, an optional dependency of the benchmark"
)
ANALYTIC = sorted(SHAPES)


def designs(of: Shape, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, of.size))


# --- Problems --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("zdt1", lambda f1: 1 - np.sqrt(f1)),
        ("zdt2", lambda f1: 1 - f1**2),
        ("zdt3", lambda f1: 1 - np.sqrt(f1) - f1 * np.sin(10 * np.pi * f1)),
        ("zdt6", lambda f1: 1 - f1**2),
        ("dtlz2", lambda f1: np.sqrt(np.maximum(0, 1 - f1**2))),
    ],
)
def test_fronts_of_two_objectives_have_their_closed_form(name, second):
    front = SHAPES[name].front(2000)
    assert len(front) > 200
    np.testing.assert_allclose(front[:, 1], second(front[:, 0]), atol=1e-6)


def test_fronts_of_three_objectives_have_their_closed_form():
    np.testing.assert_allclose((SHAPES["dtlz2_3"].front(900) ** 2).sum(axis=1), 1)
    front = SHAPES["dtlz7_3"].front(900)
    first = front[:, :2]
    np.testing.assert_allclose(front[:, 2], 2 * (3 - (first / 2 * (1 + np.sin(3 * np.pi * first))).sum(axis=1)))


@pytest.mark.parametrize("name", ANALYTIC)
def test_no_design_dominates_the_front(name):
    shape = SHAPES[name]
    front = shape.front(2500)
    values = shape.function(designs(shape, 1000))
    for value in values:
        better = np.all(value <= front - 1e-3, axis=1)
        assert not better.any()
    assert shape.low <= values[:, -1].min() and values[:, -1].max() <= shape.high


@pytest.mark.parametrize("name", [name for name in ANALYTIC if SHAPES[name].volume is not None])
def test_hypervolumes_in_closed_form_are_those_of_the_sampled_front(name):
    shape = SHAPES[name]
    sampled = shape.sampled_volume(20_000)
    assert sampled <= shape.volume + 1e-9
    assert sampled == pytest.approx(shape.volume, rel=5e-3)


@pytest.mark.parametrize("name", ["zdt3", "dtlz7_3"])
def test_sampled_hypervolumes_have_converged(name):
    shape = SHAPES[name]
    assert shape.sampled_volume(20_000) == pytest.approx(shape.sampled_volume(80_000), rel=1e-3)


@pytest.mark.parametrize("name", ANALYTIC)
def test_the_best_hypervolume_is_that_of_the_front_as_the_search_sees_it(name):
    of = AnalyticProblem(name)
    shape = of.shape
    reached = []
    for values in shape.front(2500):
        accuracy = (shape.high - values[-1]) / (shape.high - shape.low)
        metrics = [accuracy, *(OFFSET + value for value in values[:-1])]
        reached.append({item.metric: float(value) for item, value in zip(of.objectives, metrics)})
    assert volume(reached, of) == pytest.approx(of.best, rel=0.02)
    assert volume(reached, of) <= of.best * (1 + 1e-9)


@pytest.mark.parametrize("name", ANALYTIC)
def test_training_ends_at_the_final_figure_and_early_ranks_are_imperfect(name):
    of = AnalyticProblem(name)
    shape, xs = of.shape, designs(of.shape, 1000)
    final = (shape.high - shape.function(xs)[:, -1]) / (shape.high - shape.low)
    curves = np.array([[of.accuracy(x, epoch) for epoch in (1, 3, 9)] for x in xs])
    np.testing.assert_allclose(curves[:, -1], final)
    assert (np.diff(curves, axis=1) >= 0).all()
    best = np.argsort(-final)[:100]
    assert 0.65 < spearmanr(curves[:, 0], final)[0] < 0.95
    assert 0.97 < spearmanr(curves[:, 1], final)[0] < 1
    assert abs(spearmanr(curves[best, 0], final[best])[0]) < 0.45
    assert 0.4 < spearmanr(curves[best, 1], final[best])[0] < 0.95


def test_steps_of_an_analytic_trial():
    of = problem("dtlz2_3")
    knobs = {f"x{index}": 0.25 for index in range(1, 7)}
    steps = list(of.steps(of.request(1, knobs)))
    assert [step.report.phase for step in steps] == ["counted", "timed", *["epoch"] * 9, "done"]
    assert math.fsum(step.seconds for step in steps) == pytest.approx(steps[-1].report.seconds)
    # g = 4 (1/4)^2; f1 = (1 + g) cos^2(pi/8), f2 = (1 + g) cos sin, f3 = (1 + g) sin(pi/8)
    c, s = math.cos(math.pi / 8), math.sin(math.pi / 8)
    seconds, figures = of.curve(knobs)[-1]
    assert figures["latency_ms"] == pytest.approx(0.25 + 1.25 * c * c)
    assert figures["params_m"] == pytest.approx(0.25 + 1.25 * c * s)
    assert figures[ACCURACY] == pytest.approx(1 - 1.25 * s / 2)
    assert seconds == pytest.approx(20 + 9 * 30 * (1 + figures["latency_ms"] / of.reference_ms))
    assert of.curve({})[-1][0] == of.training_seconds == 20 + 9 * 60
    untimed = TrialRequest(**{**vars(of.request(1, knobs)), "speed": None})
    assert [step.report.phase for step in of.steps(untimed)][:2] == ["counted", "epoch"]


def test_unknown_names_are_errors_that_name_the_choices():
    with pytest.raises(UserError, match="zdt1"):
        problem("zdt9")
    with pytest.raises(UserError, match="optuna_fifo"):
        rivals.rival("optuna")
    with pytest.raises(UserError, match="x7"):
        problem("zdt1").space.canonicalise({"x7": 0.1})


# --- A recorded table ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> TableProblem:
    """Six designs of a real space, with figures by arithmetic."""
    study = Study.model_validate(
        {
            "name": "small",
            "base": "headway::gfl_tiny",
            "data": {"digits": {}, "size": [64, 64]},
            "space": {"slimhead": {"levels": {"among": [0, 1]}, "ratio": [0.25, 0.5], "mode": "nearest"}},
            "budget": {"epochs": 3},
            "weights": {"from": "baseline", "epochs": 4},
        }
    )
    settings = [{}]
    for levels, ratio in itertools.product(([0], [1], [0, 1]), (0.25, 0.5)):
        settings.append({"slimhead.levels": levels, "slimhead.ratio": ratio, "slimhead.mode": "nearest"})
    from search.designs import study_space
    from spaces.base import facts
    from trainers.config import load_base

    space = study_space(study, facts(load_base(study.base, trained=True).model.to_dict(), "base"))
    settings = [space.canonicalise(knobs) for knobs in settings]
    assert len(settings) == 1 + len(space.designs())
    entries = []
    for trial, knobs in enumerate(settings):
        slimmed = len(knobs.get("slimhead.levels", ())) * (1 - knobs.get("slimhead.ratio", 1.0))
        rows = [Row(phase="warm", epoch=4, seconds=100.0)] if trial == 0 else []
        rows.append(Row(phase="counted", epoch=0, seconds=1.0, metrics={"gmacs": 1.0}))
        rows.append(Row(phase="timed", epoch=0, seconds=4.0, metrics={"latency_ratio": 1 - 0.2 * slimmed}))
        for epoch in (1, 2, 3):
            accuracy = (0.5 - 0.1 * slimmed) * epoch / 3
            rows.append(Row(phase="epoch", epoch=epoch, seconds=10.0, metrics={ACCURACY: accuracy}))
        rows.append(Row(phase="done", epoch=3))
        entries.append(Entry(trial=trial, state="COMPLETE", knobs=knobs, rows=tuple(rows)))
    made = Table(
        name="small",
        study=study.dump(),
        reference_ms=20.0,
        entries=tuple(entries),
        about={"warm": {"epochs": 4, "seconds": 100.0}},
    )
    path = tmp_path_factory.mktemp("table") / "small.parquet"
    made.write(path)
    return TableProblem("digits", path)


def test_a_table_has_its_own_reference_and_best_hypervolume(table):
    assert table.reference == (0.0, 40.0)
    # Accuracy and latency fall together by slimmed levels: every distinct design is on the front.
    slimmed = sorted({0.0, 0.5, 0.75, 1.0, 1.5})
    front = [(0.5 - 0.1 * value, 20 * (1 - 0.2 * value)) for value in slimmed]
    ends = [40.0, *(latency for _, latency in front)]
    assert table.best == pytest.approx(sum(acc * (end - ms) for (acc, ms), end in zip(front, ends)))
    assert table.training_seconds == 35
    assert table.preparation() == 100
    assert table.budget == 100 + 7 * 35


@pytest.mark.parametrize("name", ["headway", "headway_mo_asha", "headway_no_rungs", "random", "optuna_fifo"])
def test_on_a_table_everyone_pays_the_warm_start_once(table, name):
    rivals.quiet()
    trials = rivals.run(table, name, 0, 2)
    begun = [trial for trial in trials if trial.number >= 0]
    assert not any(trial.state is TrialState.FAILED for trial in begun)
    if name.startswith("headway"):
        # Trial 0 trains it; the others wait for the baseline's latency. No design twice.
        assert min(trial.began for trial in begun if trial.number) == 105
        assert len(begun) == 7
    else:
        assert min(trial.began for trial in begun) == 100
        assert trials[0].ended - trials[0].began == 100
    if name == "random":
        assert len(begun) == 6
    rows = run.history(trials, table)
    assert rows[-1][2] <= table.best * (1 + 1e-6)


@needs_syne_tune
def test_flat_spaces_have_every_parameter_and_give_designs_of_the_space(table):
    flat = rivals.flat_space(table.space)
    names = {"slimhead.levels.0", "slimhead.levels.1", "slimhead.ratio"}
    assert names <= set(flat)
    rivals.run(table, "moasha", 0, 2)


# --- The event loop --------------------------------------------------------------------------------------------------


class Script:
    """A problem whose trials take 10 s to build and then ``knobs['s']`` s an epoch, for two epochs."""

    epochs = 2
    objectives = problem("zdt1").objectives
    reference = (0.0, 10.0)
    budget = 100.0

    def request(self, number, knobs):
        return knobs

    def figures(self, report):
        return dict(report.metrics)

    def steps(self, knobs) -> Iterator[Step]:
        yield Step(10.0, TrialReport(phase="counted", epoch=0, metrics={"latency_ms": 10 - knobs["s"]}))
        for epoch in (1, 2):
            if knobs.get("fails") == epoch:
                raise TrialFailed("a NaN loss")
            yield Step(knobs["s"], TrialReport(phase="epoch", epoch=epoch, metrics={ACCURACY: epoch / 2}))
        yield Step(0.0, TrialReport(phase="done", epoch=2, metrics={}))


class Listed:
    """A searcher that tries a list, stops those that say so after epoch 1, and notes what it was told."""

    def __init__(self, *knobs):
        self.left, self.told, self.knobs = list(knobs), [], list(knobs)

    def suggest(self, number):
        if not self.left:
            return None
        knobs = self.left.pop(0)
        if knobs.get("illegal"):
            self.knobs.remove(knobs)
            raise UserError("no such design")
        return knobs

    def go_on(self, number, epoch, figures):
        return epoch == 2 or not self.knobs[number].get("stops")

    def end(self, number, figures):
        self.told.append((number, figures))


def test_event_times_by_hand():
    searcher = Listed({"s": 2.0}, {"s": 5.0, "stops": True}, {"illegal": True}, {"s": 1.0, "fails": 2}, {"s": 3.0})
    trials = race(Script(), searcher, workers=2, seconds=18.0)
    # 0: 0 to 14; 1: stopped at 15; 2 takes the place of 0 and fails at 25; 3 takes that of 1; at 25 time is over.
    assert [(trial.number, trial.state.value, trial.began, trial.ended) for trial in trials] == [
        (0, "COMPLETE", 0.0, 14.0),
        (1, "STOPPED", 0.0, 15.0),
        (2, "FAILED", 14.0, 25.0),
        (3, "COMPLETE", 15.0, 31.0),
    ]
    assert searcher.told == [
        (0, {"latency_ms": 8.0, ACCURACY: 1.0}),
        (2, None),  # the illegal one; the next design takes its number
        (1, {"latency_ms": 5.0, ACCURACY: 0.5}),
        (2, None),
        (3, {"latency_ms": 7.0, ACCURACY: 1.0}),
    ]
    rows = run.history(trials, Script())
    # At 14 both have spent 14; at 15 one of the two new ones 1 more. A stopped design counts in the last column only.
    assert rows == [
        [28.0, 14.0, 2.0, 2.0],
        [30.0, 15.0, 2.0, 3.5],
        [56.0, 31.0, 3.0, 4.0],
    ]
    # A budget ends in the middle of trials; what ends later does not count.
    short = Script()
    short.budget = 29.0
    assert run.history(trials, short) == [[28.0, 14.0, 2.0, 2.0], [29.0, 14.5, 2.0, 2.0]]


def test_no_trial_begins_after_the_time():
    trials = race(Script(), Listed(*[{"s": 1.0}] * 9), workers=3, seconds=12.0)
    assert [trial.began for trial in trials] == [0.0] * 3
    trials = race(Script(), Listed(*[{"s": 1.0}] * 9), workers=3, seconds=12.1)
    assert [trial.began for trial in trials] == [0.0] * 3 + [12.0] * 3


# --- Rivals ----------------------------------------------------------------------------------------------------------

SYNE_TUNE = [pytest.param(name, marks=needs_syne_tune) for name in ("moasha", "moasha_ranked")]


@pytest.mark.parametrize("name", ["headway", "random", "optuna_fifo", "optuna_asha", *SYNE_TUNE])
def test_a_seed_says_everything(name):
    rivals.quiet()
    of = AnalyticProblem("zdt1")
    of.budget = 12 * of.training_seconds
    one, two, other = (rivals.run(of, name, seed, 4) for seed in (3, 3, 4))
    assert one == two
    assert one != other
    assert sum(trial.ended - trial.began for trial in one) > of.budget
    assert run.history(one, of)[-1][0] <= of.budget
    stops = {trial.state for trial in one}
    assert (TrialState.STOPPED in stops) == (name not in ("random", "optuna_fifo"))
    for trial in one:
        if trial.state is TrialState.STOPPED:
            assert 0 < trial.figures[ACCURACY] < 1


def test_asha_decides_on_accuracy_and_optuna_is_told_the_stopped_trials_half_trained_values():
    rivals.quiet()
    of = AnalyticProblem("zdt1")
    searcher = rivals.OptunaRay(of, 0, asha=True)
    trials = race(of, searcher, workers=4, seconds=1500.0)
    stopped = [trial for trial in trials if trial.state is TrialState.STOPPED]
    assert stopped
    told = [trial.values for trial in searcher._search._ot_study.get_trials()]
    assert all([trial.figures[ACCURACY], trial.figures["latency_ms"]] in told for trial in stopped)


@needs_syne_tune
def test_syne_tunes_order_is_read_as_ranks_unless_mended():
    from syne_tune.optimizer.schedulers.multiobjective.multiobjective_priority import NonDominatedPriority

    values = np.array([[3.0], [1.0], [2.0]])
    assert NonDominatedPriority()(values).tolist() == [1, 2, 0]
    assert rivals._ranked()(values).tolist() == [2, 0, 1]


# --- Results ---------------------------------------------------------------------------------------------------------


def test_results_go_on_after_a_kill(tmp_path, capsys):
    words = ["--problems", "zdt1", "--rivals", "random", "--processes", "1", "--out", str(tmp_path)]
    assert run.main([*words, "--seeds", "3"]) == 0
    file = run.file_of(tmp_path, "zdt1", "random")
    whole = file.read_bytes()
    assert [line["seed"] for line in run.read(file)] == [0, 1, 2]
    # The kill came in the middle of the last line.
    file.write_bytes(whole[:-40])
    assert [line["seed"] for line in run.read(file)] == [0, 1]
    assert run.main([*words, "--seeds", "3"]) == 0
    assert "2 of 3 searches are done" in capsys.readouterr().out

    def curves(text):
        return [json.loads(line)["curve"] for line in text.splitlines()]

    assert curves(file.read_bytes()) == curves(whole)
    before = file.read_bytes()
    assert run.main([*words, "--seeds", "3"]) == 0
    assert file.read_bytes() == before
    assert run.main(["--problems", "zdt", "--out", str(tmp_path)]) == 2
    assert "zdt1" in capsys.readouterr().err


def test_report_on_curves_by_hand(tmp_path):
    """Headway reaches 96 % at 2 trainings on each seed, random search at 8 on two seeds and never on one."""
    for rival, curves in {
        "headway": [[[20.0, 5.0, 0.96, 0.96]]] * 3,
        "random": [[[40.0, 9.0, 0.6, 0.6], [80.0, 20.0, 0.96, 0.97]]] * 2 + [[[40.0, 9.0, 0.6, 0.6]]],
        "optuna_fifo": [[[10.0, 5.0, 0.4, 0.4]]] * 3,
        "optuna_asha": [[[10.0, 5.0, 0.99, 0.99]]] * 3,
    }.items():
        for seed, curve in enumerate(curves):
            line = {
                "seed": seed,
                "best": 1.0,
                "budget": 100.0,
                "training_seconds": 10.0,
                "trials": {"begun": 3, "complete": 2, "stopped": 1, "failed": 0},
                "curve": curve,
                "driver_seconds": 1.0,
                "versions": {},
            }
            run.append(run.file_of(tmp_path, "zdt1", rival), line)
    assert report.main(["--results", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "summary.json").read_text())["zdt1"]["rivals"]
    reach = found["random"]["hypervolume"]["reach"]["0.95"]
    assert reach == {"median": 8.0, "interval": [8.0, None], "reached": 2}
    against = found["random"]["hypervolume"]["against_headway"]
    assert against["levels"]["0.95"]["ratio"] == 0.25
    # Where random search never comes there its budget of 10 stands for it.
    assert against["levels"]["0.95"]["interval"] == [0.2, 0.25]
    assert not against["levels"]["0.95"]["bound"]
    never = found["optuna_fifo"]["hypervolume"]["against_headway"]["levels"]["0.95"]
    assert (never["ratio"], never["bound"]) == (0.2, True)
    ahead = found["optuna_asha"]["hypervolume"]["against_headway"]
    assert {row["verdict"] for row in ahead["budgets"] if row["compute"] >= 1} == {"ahead"}
    assert ahead["levels"]["0.99"]["ratio"] is None
    assert {row["verdict"] for row in found["optuna_fifo"]["hypervolume"]["against_headway"]["budgets"][5:]} == {
        "behind"
    }
    assert (tmp_path / "zdt1.png").read_bytes().startswith(b"\x89PNG")
    assert "OptunaSearch, ASHA" in (tmp_path / "tables.md").read_text()


def test_a_failed_trial_adds_nothing_but_compute():
    of = problem("zdt1")
    good = {ACCURACY: 1.0, "latency_ms": 0.35}
    trials = [Ended(0, TrialState.FAILED, 0.0, 5.0, good), Ended(1, TrialState.COMPLETE, 0.0, 10.0, good)]
    assert run.history(trials, of) == [[10.0, 5.0, 0.0, 0.0], [15.0, 10.0, 1.0, 1.0]]
