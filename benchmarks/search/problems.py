"""What is searched: analytic problems with known fronts, and recorded tables.

Each problem looks like a detector's: costs are known before training, an accuracy is learned by it, epoch by epoch, and
an epoch takes the longer the costlier the design is.

**Objectives.** A test problem gives f_1, ..., f_M, all minimised. The first M - 1 become costs, ``0.25 + f_i``, which
are above 0; the last becomes the accuracy that the whole training reaches, ``A = (high - f_M) / (high - low)``, with
the problem's bounds of f_M. So the front is that of the literature, moved and scaled:

- ZDT1, ZDT2, ZDT3, ZDT6: E. Zitzler, K. Deb, L. Thiele, "Comparison of Multiobjective Evolutionary Algorithms:
  Empirical Results", Evolutionary Computation 8(2), 2000, with 6 variables instead of 30 or 10, as many as a detector's
  head has knobs;
- DTLZ2, DTLZ7: K. Deb, L. Thiele, M. Laumanns, E. Zitzler, "Scalable Test Problems for Evolutionary Multiobjective
  Optimization", 2005, with k = 4 and k = 3 distance variables instead of 10 and 20.

**Fidelity.** After epoch e of E a design x has the accuracy

    A_e(x) = A(x) (1 - L(x) (1/e - 1/E) / (1 - 1/E)),    L(x) = 0.2 + 0.2 sin(2 pi sum_i a_i x_i),

with a_i = 1 + frac(0.618 i). What is lacking after the first epoch is 0 to 40 % of the final accuracy, depends on
the design and not on how good it is, and is nothing after the last. Spearman's rank correlation with the last of 9
epochs is 0.68 to 0.91 after the first and 0.98 or more after the third over random designs, but at most 0.4 and 0.4
to 0.9 among the best tenth of them.

**Seconds.** Building and counting takes 5 s, timing 15 s, an epoch ``30 (1 + c / c_baseline)`` s for a design of first
cost c: part of it is data and waits for nothing else. The baseline, all variables 0.7, is on no front; it takes 60 s an
epoch.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import moocore
import numpy as np

from analysis.pareto import default_reference, hypervolume
from analysis.record import Objective, TrialRecord, TrialState
from search.study import Study
from spaces.errors import UserError, choices
from spaces.space import Design, Suggester
from trainers.contract import DataRequest, SpeedRequest, TrialReport, TrialRequest, WarmRequest
from trainers.replay import Step, Table

ACCURACY = "bbox_mAP"
EPOCHS = 9
OFFSET = 0.25
BASELINE = 0.7
BUILD_SECONDS, TIMING_SECONDS, EPOCH_SECONDS = 5.0, 15.0, 60.0
# Full trainings of the baseline that a search on an analytic problem may spend: the default of budget.trials.
TRAININGS = 64
REFERENCE_COST = OFFSET + 1.1

NO_DATA = DataRequest(
    train_annotations="", train_images="", val_annotations="", val_images="", classes=("object",), size=(64, 64)
)


class Problem(ABC):
    """Something to search.

    Attributes:
        name: How ``run.py`` calls it.
        objectives: The accuracy, maximised and learned by training, then costs, minimised and known before.
        epochs: Epochs of a whole training.
        space: What may vary; what ``search`` uses of ``spaces.space.Space``.
        reference: Reference point of the hypervolume, in the objectives' own units.
        best: The largest hypervolume that is known to be possible.
        training_seconds: Simulated seconds of one whole training of the baseline, building and timing included.
        budget: Seconds of compute that one search may spend, over all its workers.
        reference_ms: Latency of the baseline in ms.
    """

    name: str
    objectives: tuple[Objective, ...]
    epochs: int
    space: Any
    reference: tuple[float, ...]
    best: float
    training_seconds: float
    budget: float
    reference_ms: float

    @abstractmethod
    def steps(self, request: TrialRequest) -> Iterator[Step]:
        """Runs one trial on simulated time."""

    @abstractmethod
    def study(self, **changes: Any) -> Study:
        """Gives the study file for Headway, with some of its sections replaced."""

    def request(self, number: int, knobs: Mapping[str, Any]) -> TrialRequest:
        """Gives the request of a searcher that is not Headway: to train and to time."""
        speed = SpeedRequest(size=(64, 64))
        return TrialRequest(
            number=number, base="", knobs=knobs, data=NO_DATA, folder="", epochs=self.epochs, speed=speed
        )

    def preparation(self) -> float:
        """Gives the seconds of training that come before the first trial: the shared warm start, where there is one."""
        return 0.0

    def curve(self, knobs: Mapping[str, Any]) -> list[tuple[float, dict[str, float]]]:
        """Gives a design's figures after each epoch, with the simulated seconds since its start."""
        figures: dict[str, float] = {}
        points = []
        for step in self.steps(self.request(1, knobs)):
            figures.update(self.figures(step.report))
            if step.report.phase == "epoch":
                points.append((step.report.seconds, dict(figures)))
        return points

    def figures(self, report: TrialReport) -> dict[str, float]:
        """Gives a report's figures with the latency in ms, as the conductor does."""
        named = {key: value for key, value in report.metrics.items() if key != "reference_ms"}
        if "latency_ratio" in named:
            named["latency_ms"] = named["latency_ratio"] * self.reference_ms
        return named


# --- Analytic problems -----------------------------------------------------------------------------------------------


class Box:
    """Designs of d continuous knobs x1, ..., xd in [0, 1], all of which change the network; ``{}`` is the base."""

    families = ()

    def __init__(self, size: int) -> None:
        self.names = tuple(f"x{index + 1}" for index in range(size))

    def vector(self, knobs: Mapping[str, Any]) -> np.ndarray:
        """Gives a design as numbers, (d,)."""
        return np.array([knobs.get(name, BASELINE) for name in self.names])

    def suggest(self, ask: Suggester) -> Design:
        """Proposes a design."""
        return self.canonicalise({name: ask.suggest_float(name, 0.0, 1.0) for name in self.names})

    def canonicalise(self, values: Mapping[str, Any], who: str = "design") -> Design:
        """Checks a design and fills in what it leaves out; the base is ``{}``."""
        for name, value in values.items():
            if name not in self.names:
                raise UserError(f"{who}: must name {choices(self.names)}, but got {name}.")
            if not 0 <= value <= 1:
                raise UserError(f"{who}: {name} must lie in [0, 1], but got {value}.")
        full = {name: float(values.get(name, BASELINE)) for name in self.names}
        return {} if all(value == BASELINE for value in full.values()) else full

    def architecture(self, design: Mapping[str, Any]) -> Design:
        """Every knob changes the network."""
        return dict(design)

    def sweep(self, design: Design) -> list[Design]:
        """No knob can be changed after training."""
        return [design]

    def designs(self, limit: int = 100_000) -> list[Design]:
        """Raises ``UserError``: there is no end of designs."""
        raise UserError("space: must be small enough to try whole, but its knobs are continuous.")

    def recall(self, design: Mapping[str, Any]) -> dict[str, Any] | None:
        """Gives what a sampler would have to answer for this design to be proposed."""
        return {name: design[name] for name in self.names} if design else None

    def known(self) -> list[Design]:
        """No paper has best settings."""
        return []

    def size(self) -> float:
        """Counts the designs."""
        return math.inf

    def on_images(self, design: Mapping[str, Any]) -> bool:
        """No latency depends on images."""
        return False

    def learns(self, design: Mapping[str, Any]) -> bool:
        """No part of a network is learned and then fixed."""
        return False

    def may_learn(self) -> bool:
        """No part of a network is learned and then fixed."""
        return False

    @property
    def knobs(self) -> dict[str, Any]:
        """No knob of ``spaces.knob``."""
        return {}


def zdt(x: np.ndarray, second: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """ZDT1 to ZDT3: f1 = x1, g = 1 + 9 mean(x2, ...), f2 = g h(f1 / g, f1); (..., d) to (..., 2)."""
    g = 1 + 9 * x[..., 1:].mean(axis=-1)
    return np.stack([x[..., 0], g * second(x[..., 0] / g, x[..., 0])], axis=-1)


def zdt1(x: np.ndarray) -> np.ndarray:
    """Convex front f2 = 1 - sqrt(f1)."""
    return zdt(x, lambda part, f1: 1 - np.sqrt(part))


def zdt2(x: np.ndarray) -> np.ndarray:
    """Concave front f2 = 1 - f1^2."""
    return zdt(x, lambda part, f1: 1 - part**2)


def zdt3(x: np.ndarray) -> np.ndarray:
    """A front of five pieces of f2 = 1 - sqrt(f1) - f1 sin(10 pi f1)."""
    return zdt(x, lambda part, f1: 1 - np.sqrt(part) - part * np.sin(10 * np.pi * f1))


def zdt6(x: np.ndarray) -> np.ndarray:
    """Concave front f2 = 1 - f1^2 from f1 = 0.2808; designs lie unevenly, and few near it."""
    f1 = 1 - np.exp(-4 * x[..., 0]) * np.sin(6 * np.pi * x[..., 0]) ** 6
    g = 1 + 9 * x[..., 1:].mean(axis=-1) ** 0.25
    return np.stack([f1, g * (1 - (f1 / g) ** 2)], axis=-1)


def dtlz2(x: np.ndarray, objectives: int) -> np.ndarray:
    """Front: the part of the unit sphere with no negative coordinate. All costs depend on all distance variables.

    f_i = (1 + g) cos(a_1) ... cos(a_{M-i}) sin(a_{M-i+1}), a = pi x / 2, without the sine in f_1.
    """
    free = objectives - 1
    g = ((x[..., free:] - 0.5) ** 2).sum(axis=-1)
    angles = x[..., :free] * np.pi / 2
    values = []
    for index in range(objectives):
        value = (1 + g) * np.cos(angles[..., : free - index]).prod(axis=-1)
        values.append(value * np.sin(angles[..., free - index]) if index else value)
    return np.stack(values, axis=-1)


def dtlz7(x: np.ndarray, objectives: int) -> np.ndarray:
    """A front of 2^(M-1) pieces: f_i = x_i, f_M = (1 + g)(M - sum f_i (1 + sin 3 pi f_i) / (1 + g))."""
    first = x[..., : objectives - 1]
    g = 1 + 9 * x[..., objectives - 1 :].mean(axis=-1)
    h = objectives - (first * (1 + np.sin(3 * np.pi * first))).sum(axis=-1) / (1 + g)
    return np.concatenate([first, ((1 + g) * h)[..., None]], axis=-1)


@dataclass(frozen=True)
class Shape:
    """A test problem.

    Attributes:
        function: From variables (..., d) to values (..., M), minimised.
        size: d.
        objectives: M.
        optimal: Value of the distance variables (all after the first M - 1) on the front.
        low: Least value of f_M.
        high: Largest value of f_M.
        volume: Hypervolume of the front up to (1.1, ..., 1.1, high) in closed form, ``None`` where it is sampled.
    """

    function: Callable[[np.ndarray], np.ndarray]
    size: int
    objectives: int
    optimal: float
    low: float
    high: float
    volume: float | None = None

    def front(self, count: int) -> np.ndarray:
        """Samples the front densely: at most ``count`` non-dominated points, (n, M)."""
        free = self.objectives - 1
        axis = np.linspace(0, 1, round(count ** (1 / free)))
        first = np.array(list(itertools.product(axis, repeat=free)))
        rest = np.full((len(first), self.size - free), self.optimal)
        points = self.function(np.concatenate([first, rest], axis=1))
        return points[moocore.is_nondominated(points)]

    def sampled_volume(self, count: int) -> float:
        """Measures the hypervolume of the sampled front; below the true one by what lies between the points."""
        reference = [1.1] * (self.objectives - 1) + [self.high]
        return float(moocore.hypervolume(self.front(count), ref=reference))


_ZDT6_FIRST = 0.2807753191  # the least f1 of ZDT6
SHAPES: Mapping[str, Shape] = {
    "zdt1": Shape(zdt1, 6, 2, 0.0, 0.0, 10.0, 11 - 1 / 3),
    "zdt2": Shape(zdt2, 6, 2, 0.0, 0.0, 10.0, 11 - 2 / 3),
    "zdt3": Shape(zdt3, 6, 2, 0.0, -1.0, 10.0),
    "zdt6": Shape(zdt6, 6, 2, 0.0, 0.0, 10.0, 1 + 9 * (1 - _ZDT6_FIRST) + (1 - _ZDT6_FIRST**3) / 3),
    "dtlz2": Shape(lambda x: dtlz2(x, 2), 5, 2, 0.5, 0.0, 2.0, 2.2 - math.pi / 4),
    "dtlz2_3": Shape(lambda x: dtlz2(x, 3), 6, 3, 0.5, 0.0, 2.0, 2.42 - math.pi / 6),
    "dtlz7_3": Shape(lambda x: dtlz7(x, 3), 5, 3, 0.0, 0.0, 33.0),
}
_SAMPLES = 160_000
_COSTS = ("latency_ms", "params_m")


class AnalyticProblem(Problem):
    """A test problem with a fidelity axis; the module's docstring has the formulas."""

    def __init__(self, name: str) -> None:
        self.name, self.shape = name, SHAPES[name]
        self.epochs = EPOCHS
        self.space = Box(self.shape.size)
        costs = _COSTS[: self.shape.objectives - 1]
        self.objectives = (Objective(ACCURACY, "maximize"), *(Objective(cost, "minimize") for cost in costs))
        self.reference = (0.0, *(REFERENCE_COST for _ in costs))
        self.reference_ms = self.costs(self.space.vector({}))[0]
        self.training_seconds = BUILD_SECONDS + TIMING_SECONDS + self.epochs * EPOCH_SECONDS
        self.budget = TRAININGS * self.training_seconds
        self._rates = 1 + np.modf(0.618 * np.arange(1, self.shape.size + 1))[0]

    @cached_property
    def best(self) -> float:  # type: ignore[override]
        """Hypervolume of the front; scaling f_M scales it, and moving the costs does not change it."""
        volume = self.shape.volume
        if volume is None:
            volume = self.shape.sampled_volume(_SAMPLES)
        return volume / (self.shape.high - self.shape.low)

    def costs(self, x: np.ndarray) -> tuple[float, ...]:
        """Gives the costs."""
        return tuple(OFFSET + float(value) for value in self.shape.function(x)[:-1])

    def accuracy(self, x: np.ndarray, epoch: int) -> float:
        """Gives the accuracy after an epoch, 0 to 1."""
        shape = self.shape
        final = (shape.high - float(shape.function(x)[-1])) / (shape.high - shape.low)
        lag = 0.2 + 0.2 * math.sin(2 * math.pi * float(x @ self._rates))
        return final * (1 - lag * (1 / epoch - 1 / self.epochs) / (1 - 1 / self.epochs))

    def steps(self, request: TrialRequest) -> Iterator[Step]:
        """Runs one trial on simulated time."""
        x = self.space.vector(request.knobs)
        costs = self.costs(x)
        clock = 0.0

        def step(seconds: float, phase: Any, epoch: int, metrics: Mapping[str, float]) -> Step:
            nonlocal clock
            clock += seconds
            return Step(seconds, TrialReport(phase=phase, epoch=epoch, metrics=metrics, seconds=clock))

        yield step(BUILD_SECONDS, "counted", 0, dict(zip(_COSTS[1:], costs[1:])))
        if request.speed is not None:
            ratio = costs[0] / self.reference_ms
            yield step(TIMING_SECONDS, "timed", 0, {"latency_ratio": ratio, "reference_ms": self.reference_ms})
        seconds = EPOCH_SECONDS / 2 * (1 + costs[0] / self.reference_ms)
        for epoch in range(1, request.epochs + 1):
            yield step(seconds, "epoch", epoch, {ACCURACY: self.accuracy(x, epoch)})
        yield step(0.0, "done", request.epochs, {})

    def study(self, **changes: Any) -> Study:
        """Gives the study file for Headway, with some of its sections replaced."""
        sections: dict[str, Any] = {
            "name": self.name,
            "base": self.name,
            "data": {"digits": {}, "size": [64, 64]},
            "space": {},
            "objectives": [{"metric": item.metric, "direction": item.direction} for item in self.objectives],
            "budget": {"epochs": self.epochs},
        }
        return Study.model_validate({**sections, **changes})


# --- Recorded tables -------------------------------------------------------------------------------------------------


class TableProblem(Problem):
    """A recorded table of real trainings (``headway record``).

    The reference point is Headway's own: accuracy from 0, costs from twice the baseline's. The best known hypervolume
    is that of the front of the whole table. The budget is what it takes to train every design of the table once, each
    timed for itself.

    Raises:
        UserError: The table cannot be read, or it has inference knobs, of which the rivals have no notion.
    """

    def __init__(self, name: str, path: Path) -> None:
        from search.designs import study_space
        from spaces.base import facts
        from trainers.config import load_base

        self.name = name
        self.table = Table.read(path)
        if any(row.phase == "swept" for entry in self.table.entries for row in entry.rows):
            raise UserError(f"--problems: {name} must be a table without inference knobs, but {path} has some.")
        self._study = Study.model_validate(self.table.study)
        base = load_base(self._study.base, trained=True).model.to_dict()
        self.space = study_space(self._study, facts(base, f"base {self._study.base}"))
        self.epochs = self.table.epochs
        self.objectives = self._study.objective_records
        self.reference_ms = self.table.reference_ms
        whole = [(entry, self.curve(entry.knobs)[-1][1]) for entry in self.table.entries if entry.state == "COMPLETE"]
        baseline = TrialRecord(0, TrialState.COMPLETE, metrics=whole[0][1])
        self.reference = default_reference(baseline, self.objectives)
        self.best = volume([figures for _, figures in whole], self)
        self.training_seconds = self.table.entries[0].seconds - self.preparation()
        self.budget = sum(entry.seconds for entry in self.table.entries)

    def request(self, number: int, knobs: Mapping[str, Any]) -> TrialRequest:
        """Gives the request of a searcher that is not Headway: to train and to time, from the shared warm start."""
        told = self.table.about.get("warm")
        warm = WarmRequest(folder="", epochs=told["epochs"]) if told else None
        return replace(super().request(number, knobs), warm=warm)

    def preparation(self) -> float:
        """Gives the seconds of the shared warm start, which the table has with its baseline."""
        return sum(row.seconds for row in self.table.entries[0].rows if row.phase == "warm")

    def steps(self, request: TrialRequest) -> Iterator[Step]:
        """Runs one trial on simulated time."""
        return self.table.steps(request)

    def study(self, **changes: Any) -> Study:
        """Gives the study file for Headway, with some of its sections replaced."""
        dumped = self._study.dump()
        return Study.model_validate({**dumped, "name": self.name, **changes})


TABLES: Mapping[str, str] = {"digits": "digits_table.parquet"}


def problem(name: str) -> Problem:
    """Gives a problem by its name.

    Raises:
        UserError: There is none of this name.
    """
    if name in SHAPES:
        return AnalyticProblem(name)
    if name in TABLES:
        return TableProblem(name, Path(__file__).parent / TABLES[name])
    raise UserError(f"--problems: must be of {choices([*SHAPES, *TABLES])}, but got {name}.")


def volume(points: list[dict[str, float]], of: Problem) -> float:
    """Measures the hypervolume of the given figures."""
    records = [TrialRecord(index, TrialState.COMPLETE, metrics=metrics) for index, metrics in enumerate(points)]
    return hypervolume(records, of.objectives, of.reference)
