"""Measures what the driver itself costs a trial: proposing, deciding, recording, logging, drawing.

    python benchmarks/driver/run.py search --trials 5000 --work FOLDER --out results/NAME.jsonl
    python benchmarks/driver/run.py alone --trials 5000 --out results/NAME_alone.jsonl
    python benchmarks/driver/run.py table results/NAME.jsonl [results/NAME_alone.jsonl]
    python benchmarks/driver/run.py plot results/NAME.jsonl [results/NAME_alone.jsonl] --out results/NAME.png

``search`` runs the parts of ``headway run`` as they are (conductor, store in SQLite, tracker with MLflow in SQLite,
plots, progress), all but Ray and the training: trials answer at once from a formula, in simulated time. So all the time
that passes is the driver's, and each trial gets its share of it. ``alone`` tells as many trials to a plain Optuna study
in memory, and times the same sampler on every 25th: what the library itself costs. Both leave JSON lines with wall and
CPU time; on a machine that does other work as well, the CPU time says more.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if not os.environ.get("PYTHONPATH"):
    sys.path.insert(0, str(HERE.parents[1]))

import optuna  # noqa: E402
import psutil  # noqa: E402

from analysis.record import TrialRecord  # noqa: E402
from search.conductor import Conductor, Pause  # noqa: E402
from search.sampler import make_sampler  # noqa: E402
from search.simulate import Clock, simulate  # noqa: E402
from search.study import Study, parse  # noqa: E402
from spaces.space import design_hash  # noqa: E402
from trainers.contract import DataRequest, TrialReport, TrialRequest  # noqa: E402
from trainers.replay import Step  # noqa: E402

PARTS = {
    "suggest": "the sampler, without its writes",
    "decide": "the conductor: rungs, what comes next",
    "store": "the study's database",
    "track": "a trial's run in MLflow",
    "draw": "plots and tables, now and then",
    "print": "progress lines",
}
EPOCHS = 9
Rows = Sequence[Mapping[str, Any]]
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
_AT = (10, 100, 1000, 5000)
_EVERY = 25


def study_file(trials: int, sampler: str) -> Study:
    """The study: three families on the smallest base, some 3e10 designs."""
    return parse(
        {
            "name": "driver",
            "base": "headway::gfl_tiny",
            "data": {"digits": {}, "size": [96, 96]},
            "space": {"slimhead": {}, "dcn": {}, "ddod": {}},
            "budget": {"trials": trials, "epochs": EPOCHS},
            "rungs": {"first": 1, "factor": 3},
            "sampler": {"name": sampler},
        },
        "driver.yaml",
    )


def figures(knobs: Mapping[str, Any]) -> tuple[float, float]:
    """Latency ratio and final accuracy of a design, in closed form.

    Slimming saves time, most on the finest level, and costs accuracy; deformable layers the other way round; training
    knobs have an optimum; and each design has its luck, half a point of accuracy at most.
    """
    saved = sum(0.24 * 0.6**level for level in knobs.get("slimhead.levels", ()))
    saved *= 1 - knobs.get("slimhead.ratio", 1.0) ** 2
    layers = len(knobs.get("dcn.placement", ()))
    ratio = 1 - saved + 0.03 * layers * knobs.get("dcn.version", 1) ** 0.5
    coarse = 1.0 if knobs.get("slimhead.mode") == "bilinear" else 1.3
    accuracy = 0.36 - 0.05 * coarse * saved**1.5 + 0.006 * layers
    if "ddod.assign" in knobs:
        off = abs(knobs.get("ddod.alpha_cls", 0.5) - 0.8) + abs(knobs.get("ddod.alpha_reg", 0.2) - 0.5)
        accuracy += 0.03 - 0.04 * off - 0.001 * abs(knobs.get("ddod.topk", 15) - 9)
        accuracy -= 0.004 * abs(knobs.get("ddod.span", 1.0) - 2)
    luck = int(design_hash(dict(knobs)), 16) % 1000 / 999
    return ratio, accuracy + 0.005 * (2 * luck - 1)


def steps(request: TrialRequest) -> Iterator[Step]:
    """What a detector would report, in simulated time."""
    ratio, accuracy = figures(request.knobs)
    counted = {"gmacs": 10 * ratio, "head_gmacs": 5 * ratio, "params_m": 2.0}
    yield Step(2.0, TrialReport(phase="counted", epoch=0, metrics=counted))
    if request.speed is not None:
        timed = {"latency_ratio": ratio, "latency_ratio_q1": 0.98 * ratio, "latency_ratio_q3": 1.02 * ratio}
        yield Step(5.0, TrialReport(phase="timed", epoch=0, metrics={**timed, "reference_ms": 20.0}))
    for epoch in range(1, request.epochs + 1):
        reached = accuracy * (1 - math.exp(-epoch / 3))
        sizes = {f"bbox_mAP_{name}": reached * share for name, share in (("50", 1.5), ("75", 0.9), ("s", 0.5))}
        yield Step(
            60.0, TrialReport(phase="epoch", epoch=epoch, metrics={"bbox_mAP": reached, **sizes, "loss": 1 / epoch})
        )
    attrs = {"seed": request.seed, "device": "cpu", "checkpoint": f"epoch_{EPOCHS}.pth"}
    yield Step(1.0, TrialReport(phase="done", epoch=EPOCHS, metrics={}, attrs=attrs))


class Stopwatch:
    """Gives each moment to the innermost part that is at work, in wall time and in this process's CPU time."""

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._seen = (time.perf_counter(), time.process_time())
        self.wall: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.cpu: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.calls = 0

    def _book(self) -> None:
        now = (time.perf_counter(), time.process_time())
        if self._stack:
            self.wall[self._stack[-1]] += now[0] - self._seen[0]
            self.cpu[self._stack[-1]] += now[1] - self._seen[1]
        self._seen = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Gives the time inside to ``name``."""
        self._book()
        self._stack.append(name)
        try:
            yield
        finally:
            self._book()
            self._stack.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Gives the time of each call to ``name``."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def watch(self, owner: Any, names: Iterable[str], part: str) -> None:
        """Replaces methods of an object or a class by ones that are timed."""
        for name in names:
            setattr(owner, name, self.timed(part, getattr(owner, name)))

    def count(self, owner: type, name: str) -> None:
        """Counts the calls of a method."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return method(*args, **kwargs)

        setattr(owner, name, call)

    def taken(self) -> dict[str, Any]:
        """Gives the times and the counted calls since the last call."""
        told: dict[str, Any] = {
            "wall": {k: round(v, 6) for k, v in self.wall.items()},
            "cpu": {k: round(v, 6) for k, v in self.cpu.items()},
        }
        told["calls"] = self.calls
        self.wall, self.cpu, self.calls = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0), 0
        return told


def _methods(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")]


def search(trials: int, sampler: str, work: Path, out: Path) -> None:
    """Runs a study of so many trials through the whole path, two trials side by side."""
    from optuna.storages import BaseStorage, RDBStorage

    from search import engine
    from search.progress import Progress
    from search.sampler import History
    from search.store import Store
    from search.tracking import Tracker, default_uri
    from search.tracking.courier import Pace

    study = study_file(trials, sampler)
    space = engine.prepare_space(study)
    watch = Stopwatch()
    clock = Clock()
    work.mkdir(parents=True)
    watch.watch(RDBStorage, _methods(BaseStorage), "store")
    watch.count(History, "ask")
    store = Store.create(work, study, clock=clock)
    watch.watch(store, [name for name in _methods(Store) if name not in ("create", "read", "propose")], "store")
    watch.watch(store, ["propose"], "suggest")
    tracker = Tracker.open(
        uri=default_uri(work),
        experiment=study.name,
        study=study.name,
        study_folder=work,
        params=study.dump(),
        objectives=study.objective_records,
    )
    drawn: list[float] = []
    pace = Pace()

    def plots(record: TrialRecord) -> None:
        if record.state.finished and pace.due(time.monotonic()):
            began = time.monotonic()
            _draw(drawn, tracker, store)
            pace.drew(began, time.monotonic())

    with open(os.devnull, "w") as nowhere, out.open("w", encoding="utf-8") as lines:
        conductor = _Booked(
            study,
            space,
            store,
            folder=work,
            data=DataRequest(
                train_annotations="", train_images="", val_annotations="", val_images="", classes=("a",), size=(96, 96)
            ),
            device="cpu",
            speed_device="cpu",
            threads=1,
            concurrent=2,
            clock=clock,
            listeners=(
                watch.timed("track", tracker.trial),
                watch.timed("print", Progress(study, 0, nowhere)),
                watch.timed("draw", plots),
            ),
        )
        told = {"kind": "search", "trials": trials, "sampler": study.sampler.model_dump(mode="json"), **machine()}
        print(json.dumps(told), file=lines, flush=True)
        began = time.perf_counter()
        conductor.book(watch, lines)
        simulate(conductor, steps, clock)
        with watch.part("draw"):
            engine.write_pages(work, study, store.records())
        with watch.part("track"):
            tracker.close("FINISHED")
        closing = watch.taken()
        states = [record.state.value for record in store.records()]
        end = {
            "end": {
                "seconds": round(time.perf_counter() - began, 3),
                "closing": closing["wall"],
                "drawings": len(drawn),
                "last_drawing_seconds": round(drawn[-1], 3) if drawn else None,
                "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
                "states": {state: states.count(state) for state in dict.fromkeys(states)},
            }
        }
        print(json.dumps(end), file=lines, flush=True)


def _draw(drawn: list[float], tracker: Any, store: Any) -> None:
    began = time.perf_counter()
    tracker.study(store.records())
    drawn.append(time.perf_counter() - began)


class _Booked(Conductor):
    """A conductor whose calls are timed, with a line for each trial that has ended."""

    def book(self, watch: Stopwatch, lines: Any) -> None:
        """Begins."""
        self._watch, self._lines, self._start = watch, lines, time.perf_counter()
        self._spent_on: dict[int, list[dict[str, Any]]] = {}
        self._process = psutil.Process()
        watch.taken()

    def next(self) -> TrialRequest | Pause:
        """Gives the next trial; the time goes to it, or to nobody where there is none."""
        with self._watch.part("decide"):
            request = super().next()
        taken = self._watch.taken()
        if not isinstance(request, Pause):
            self._spent_on[request.number] = [taken]
        return request

    def report(self, number: int, report: TrialReport) -> bool:
        """Takes a report."""
        with self._watch.part("decide"):
            goes_on = super().report(number, report)
        parts = self._spent_on[number]
        parts.append(self._watch.taken())
        if goes_on:
            return True
        line = {
            "trial": number,
            "state": self.store.record(number).state.value,
            "reports": len(parts) - 1,
            "asked": sum(part["calls"] for part in parts),
            "wall": _sum(part["wall"] for part in parts),
            "cpu": _sum(part["cpu"] for part in parts),
            "elapsed": round(time.perf_counter() - self._start, 3),
            "rss_mb": round(self._process.memory_info().rss / 2**20, 1),
            "written_mb": round(self._process.io_counters().write_chars / 2**20, 3),
        }
        del self._spent_on[number]
        print(json.dumps(line), file=self._lines, flush=True)
        return False


def _sum(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total = dict.fromkeys(PARTS, 0.0)
    for part in parts:
        for name, value in part.items():
            total[name] += value
    return {name: round(value, 6) for name, value in total.items()}


def alone(trials: int, sampler: str, out: Path) -> None:
    """Tells as many trials to a plain study in memory, and times a sampler of the same settings on some of them.

    The others are random, since what a proposal costs depends on how many trials there are. Each is told its values:
    so the search's sampler sees those that went to the end, and those that were stopped.
    """
    from search import engine

    study = study_file(trials, sampler)
    space = engine.prepare_space(study)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    plain = optuna.create_study(directions=[item.direction for item in study.objectives])
    timed = make_sampler(study.sampler, study.seed, 0)
    rest = make_sampler(study.sampler.model_copy(update={"name": "random"}), study.seed, 0)
    process = psutil.Process()
    with out.open("w", encoding="utf-8") as lines:
        told = {"kind": "alone", "trials": trials, "sampler": study.sampler.model_dump(mode="json"), **machine()}
        print(json.dumps(told), file=lines, flush=True)
        for number in range(trials):
            shown = number < 100 or number % _EVERY == 0
            plain.sampler = timed if shown else rest
            wall, cpu = time.perf_counter(), time.process_time()
            trial = plain.ask()
            ratio, accuracy = figures(space.suggest(trial))
            plain.tell(trial, [accuracy, 20 * ratio])
            line = {
                "trial": number,
                "wall": {"suggest": round(time.perf_counter() - wall, 6)},
                "cpu": {"suggest": round(time.process_time() - cpu, 6)},
                "rss_mb": round(process.memory_info().rss / 2**20, 1),
            }
            if shown:
                print(json.dumps(line), file=lines, flush=True)
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
        print(json.dumps({"end": {"peak_mb": peak}}), file=lines, flush=True)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "versions": {name: version(name) for name in ("optuna", "mlflow", "sqlalchemy", "matplotlib", "plotly")},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


# --- What it says ----------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Gives the head, the trials by number, and the end of a result file; of a run that goes on an empty end."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = sorted((line for line in lines[1:] if "trial" in line), key=lambda row: row["trial"])
    return lines[0], rows, next((line["end"] for line in lines if "end" in line), {})


def window(rows: Rows, at: int) -> Rows:
    """The trials before number ``at`` that stand for it: half of them, at most 100."""
    return [row for row in rows if at - min(at // 2, 100) <= row["trial"] < at]


def _mean(rows: Rows, clock: str, parts: Iterable[str] = PARTS) -> float:
    """Milliseconds a trial. The mean, since trials that are stopped and trials that go on cost unlike much."""
    return statistics.fmean(1000 * sum(row[clock].get(part, 0.0) for part in parts) for row in rows)


def table(path: Path, beside: Path | None) -> str:
    """Gives the markdown table: milliseconds a trial by part, means over the window."""
    _, rows, end = read(path)
    plain = read(beside)[1] if beside else []
    head = ["trials", "clock", *PARTS, "in all", "sampler alone", "proposals", "reports", "MB", "MB written"]
    lines = [head, ["---"] * len(head)]
    for at in [*(at for at in _AT if at < len(rows)), len(rows)]:
        some, others = window(rows, at), window(plain, at)
        for clock in ("wall", "cpu"):
            cells = [str(at), clock, *(f"{_mean(some, clock, [part]):.1f}" for part in PARTS)]
            cells += [f"{_mean(some, clock):.1f}", f"{_mean(others, clock):.1f}" if others else ""]
            cells += [f"{statistics.fmean(row[name] for row in some):.1f}" for name in ("asked", "reports")]
            cells.append(f"{max(row['rss_mb'] for row in some):.0f}")
            written = max(row["written_mb"] for row in some) - min(row["written_mb"] for row in some)
            cells.append(f"{written / max(1, len(some) - 1):.2f}")
            lines.append(cells)
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{text}\n\n{json.dumps(end)}"


def plot(path: Path, beside: Path | None, out: Path, clock: str) -> None:
    """Draws the running mean of the time a trial against the number of trials, and memory below it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _, rows, end = read(path)
    plain = [row for row in read(beside)[1] if row["trial"] < len(rows)] if beside else []
    picture = Figure(figsize=(16, 9), dpi=130)
    FigureCanvasAgg(picture)
    above, below = picture.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    step = max(1, len(rows) // 200)
    places = [at for at in range(step, len(rows) + 1, step) if at >= 10]

    def curve(of: Rows, value: Callable[[Rows], float], **look: Any) -> None:
        found = [(at, value(window(of, at))) for at in places if window(of, at)]
        above_or_below = below if look.pop("memory", False) else above
        above_or_below.plot(*zip(*found), **look)

    curve(rows, lambda some: _mean(some, clock), color="#222222", linewidth=2.4, label="in all")
    for colour, part in zip(_COLOURS, PARTS):
        curve(rows, lambda some, part=part: _mean(some, clock, [part]), color=colour, label=f"{part}: {PARTS[part]}")
    beside_look = {"color": _COLOURS[0], "linestyle": "--"}
    if plain:
        curve(plain, lambda some: _mean(some, clock), label="Optuna's sampler alone, in memory", **beside_look)
        curve(plain, lambda some: some[-1]["rss_mb"], memory=True, label="Optuna's sampler alone", **beside_look)
    curve(rows, lambda some: some[-1]["rss_mb"], memory=True, color="#222222", label="the driver")
    above.set_ylabel(f"{clock.replace('cpu', 'CPU')} ms a trial, running mean of 100")
    above.set_title(f"The driver's time a trial, {len(rows):,} trials", loc="left", weight="bold")
    below.set_ylabel("resident memory, MB")
    below.set_xlabel("trials" + (f"; peak memory {end['peak_mb']:,.0f} MB" if end else ""))
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, len(rows))
        axes.grid(color="#E4E4E4")
        # Beside the plot, where no curve can lie below it.
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    picture.tight_layout()
    picture.savefig(out)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("search", help="the whole path")
    one.add_argument("--work", type=Path, required=True, help="a new folder, outside the repository")
    one.add_argument("--out", type=Path, required=True)
    two = commands.add_parser("alone", help="the library's sampler alone")
    two.add_argument("--out", type=Path, required=True)
    for command in (one, two):
        command.add_argument("--trials", type=int, default=5000)
        command.add_argument("--sampler", default="tpe")
    for name in ("table", "plot"):
        three = commands.add_parser(name)
        three.add_argument("result", type=Path)
        three.add_argument("alone", type=Path, nargs="?")
        if name == "plot":
            three.add_argument("--out", type=Path, required=True)
            three.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    if options.command == "search":
        search(options.trials, options.sampler, options.work, options.out)
    elif options.command == "alone":
        alone(options.trials, options.sampler, options.out)
    elif options.command == "table":
        print(table(options.result, options.alone))
    else:
        plot(options.result, options.alone, options.out, options.clock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
