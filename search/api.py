"""Headway in Python, for notebooks and programs: the same acts as the commands, with typed results and pandas frames.

>>> from search import Study
>>> study = Study.open("bccd")
>>> study.front()[["bbox_mAP", "latency_ratio"]]
>>> study.plot()
>>> study.export("bundles/bccd", pick="knee").verify()

Whatever is wrong with the input raises the ``UserError`` that the command would print. Progress goes to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.record import Objective, TrialRecord
from search.folder import STUDY_FILE, find_study, studies_root
from search.results import Results
from search.study import Study as StudyFile
from search.study import build, load
from spaces.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from analysis.compare import Comparison
    from analysis.export_front import Exported
    from analysis.verify import Verification
    from search.engine import Outcome
    from search.plan import Plan
    from search.store import Store
    from search.tracking.registry import Registered
    from trainers.replay import Table


class Study(Results):
    """A study: its file, and what a search of it has found so far.

    Made from the keys of a study file, with paths relative to the working folder:

    >>> Study(name="cells", base="mmdet::gfl/gfl_r50_fpn_1x_coco.py", data={...}, space={"slimhead": {}})

    Args:
        studies: Folder of all studies; by default ``$HEADWAY_STUDIES`` or ``studies``.
        sections: Keys of the study file.

    Attributes:
        file: The checked study file; of a study that was opened the one that it was run with.
        folder: The study's folder, which need not exist yet.

    Raises:
        UserError: Names each wrong key, its rule and its value.
    """

    def __init__(self, *, studies: str | Path | None = None, **sections: Any) -> None:
        self._take(build(sections), _root(studies))

    def _take(self, file: StudyFile, root: Path, folder: Path | None = None) -> None:
        self.file = file
        self.folder = folder or root / file.name

    @classmethod
    def load(
        cls,
        path: str | Path,
        settings: Sequence[str] | Mapping[str, Any] = (),
        *,
        studies: str | Path | None = None,
    ) -> Study:
        """Reads and checks a study file.

        Args:
            path: YAML; its paths are relative to its own folder.
            settings: What differs from it: ``{"budget.trials": 8}``, or ``["budget.trials=8"]`` as for ``--set``.
            studies: Folder of all studies.

        Raises:
            UserError: Anything wrong with them.
        """
        study = cls.__new__(cls)
        study._take(load(Path(path), settings), _root(studies))
        return study

    @classmethod
    def open(cls, study: str | Path, *, studies: str | Path | None = None) -> Study:
        """Finds a study that was run, or that is being run, by its name, its folder or its study file.

        Raises:
            UserError: There is none.
        """
        root = _root(studies)
        folder, file = find_study(str(study), root)
        found = cls.__new__(cls)
        found._take(file, root, folder)
        return found

    def __repr__(self) -> str:
        return f"Study({self.name!r} in {self.folder})"

    @property
    def name(self) -> str:
        """Its name, and that of its folder."""
        return self.file.name

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What the front is of, in the order of the study file."""
        return self.file.objective_records

    def store(self) -> Store:
        """Opens the study's store to look at it.

        Raises:
            UserError: It has no trials yet.
        """
        from search.store import Store

        return Store.read(self.folder, self._as_run())

    def _as_run(self) -> StudyFile:
        file = self.folder / STUDY_FILE
        if not file.is_file():
            raise UserError(f"{self.name}: has no trials yet; 'headway run' starts it.")
        return load(file)

    def records(self) -> list[TrialRecord]:
        """All trials, by number, with what a confirmation knows of them."""
        from search.confirm import confirmed

        return confirmed(self.store())

    def plan(self) -> Plan:
        """Checks data and base, builds the corners of the space and estimates the time: ``headway plan``.

        Raises:
            UserError: Whatever is wrong with the study, its data or its base.
        """
        from search.plan import make_plan

        tell_of_code(self.file)
        return make_plan(self.file)

    def run(
        self, *, address: str | None = None, extend: bool = False, trainer: str = "trainers.detector:train"
    ) -> Outcome:
        """Starts the study or continues it: ``headway run``. An interrupt ends it, and the next call continues.

        Args:
            address: A running Ray cluster, ``None`` for this machine.
            extend: Whether the budget may have grown since the last start.
            trainer: ``module:function`` of the trials' trainer, see ``trainers.contract``.

        Raises:
            UserError: The input is wrong; nothing is left behind.
            HeadwayError: The baseline failed, or no trial can go on here.
        """
        from search import engine

        tell_of_code(self.file)
        return engine.run(self.file, self.folder.parent, address=address, extend=extend, trainer=trainer)

    def status(self) -> Status:
        """Where it stands: ``headway status``."""
        from search.status import read_status

        store = self.store()
        document, _ = read_status(self.folder, store.study, store)
        return Status.of(document)

    def confirm(
        self, *, seeds: int = 3, address: str | None = None, trainer: str = "trainers.detector:train"
    ) -> Confirmed:
        """Trains the front again with other seeds and times it together: ``headway confirm``, which it continues.

        What it found is in the ``confirmed_...`` columns of ``front`` and ``points``, and in the plot.

        Args:
            seeds: How many each point shall have, the study's own among them; 2 or more.
            address: A running Ray cluster, ``None`` for this machine.
            trainer: ``module:function`` of the trainings' trainer.

        Raises:
            UserError: The input is wrong, or there is nothing to confirm.
            HeadwayError: The latencies could not be measured, or no training can go on here.
        """
        from search.confirm import confirm

        outcome, document = confirm(self._as_run(), self.folder, seeds=seeds, address=address, trainer=trainer)
        says = tuple(pair["says"] for pair in document["neighbours"])
        return Confirmed(outcome.finished, says, document)

    def report(self, out: str | Path | None = None) -> Report:
        """Writes the page that tells the study's story: ``headway report``.

        Args:
            out: The page; by default ``report.html`` in the study's folder.

        Raises:
            UserError: ``out`` cannot be written.
        """
        from search.report import write_report

        store = self.store()
        document = write_report(store.study, self.folder, store, Path(out) if out else None)
        return Report(Path(document["report"]), document)

    def record(self, out: str | Path) -> Recording:
        """Makes a table of the study, in which others can be replayed: ``headway record``.

        Args:
            out: The file, ``.parquet``.

        Raises:
            UserError: ``out`` has another ending or cannot be written, or the baseline is not COMPLETE.
        """
        from search.recording import record

        store = self.store()
        return Recording(out, record(store.study, store, Path(out)))

    def export(
        self,
        out: str | Path,
        pick: str | int = "knee",
        *,
        above: Mapping[str, float] | None = None,
        under: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
        onnx: str = "raw",
    ) -> Bundle:
        """Writes a design as a bundle that runs without Headway: ``headway export``.

        Args:
            out: The bundle's folder, new or empty.
            pick: See ``choose``, and so ``above``, ``under`` and ``weights``.
            above: Least value by metric.
            under: Most by metric.
            weights: By metric, for ``weighted``.
            onnx: Outputs of its ONNX graph: ``raw``, ``nms`` or ``none``.

        Raises:
            UserError: Nothing can be picked so, or ``out`` is taken.
            HeadwayError: The design cannot be bundled.
        """
        from search.exporting import export_choice

        choice = self.choose(pick, above=above, under=under, weights=weights)
        folder = export_choice(
            choice, self.records(), study=self._as_run(), folder=self.folder, out=Path(out), onnx=onnx
        )
        return Bundle(folder, choice.trial.label, choice.why)

    def export_front(self, out: str | Path, *, onnx: str = "raw") -> list[Exported]:
        """Writes the whole front as bundles, or goes on with it: ``headway export --all``.

        Args:
            out: Folder of all bundles.
            onnx: Outputs of their ONNX graphs: ``raw``, ``nms`` or ``none``.

        Raises:
            UserError: ``out`` is taken, or nothing is on the front.
        """
        from search.exporting import export_whole_front

        study = self._as_run()
        return export_whole_front(self.store(), study=study, folder=self.folder, out=Path(out), onnx=onnx)

    def register(self, *bundles: str | Path, name: str) -> list[Registered]:
        """Puts bundles of the study into MLflow's model registry: ``headway register``.

        Args:
            bundles: Their folders.
            name: Of the registered model; each bundle becomes a version of it.

        Raises:
            UserError: See ``search.registering.register_bundles``.
        """
        from search.registering import register_bundles

        folders = [Path(bundle) for bundle in bundles]
        return register_bundles(folders, name=name, study=self._as_run(), folder=self.folder, store=self.store())


@dataclass(frozen=True)
class Status:
    """Where a study stands.

    Attributes:
        running: Whether a run of it is under way.
        states: Trials by state.
        trials: Those that count for the budget.
        budget: ``budget.trials``.
        hours: Run time over all starts.
        compute_hours: Time in trials.
        seconds_left: Estimate of a running study, ``None`` where there is none.
        hypervolume: Of the front, ``None`` before the baseline is COMPLETE.
        failures: Why trials FAILED, with their numbers, the most frequent first.
        document: All of ``headway status --json``.
    """

    running: bool
    states: Mapping[str, int]
    trials: int
    budget: int
    hours: float
    compute_hours: float
    seconds_left: float | None
    hypervolume: float | None
    failures: tuple[tuple[str, tuple[int, ...]], ...]
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Status:
        """Reads the document of ``status --json``."""
        return cls(
            running=document["running"],
            states={state: count for state, count in document["states"].items() if count},
            trials=document["used"]["trials"],
            budget=document["budget"]["trials"],
            hours=document["used"]["hours"],
            compute_hours=document["compute_hours"],
            seconds_left=document["seconds_left"],
            hypervolume=document["hypervolume"],
            failures=tuple((item["reason"], tuple(item["trials"])) for item in document["failures"]),
            document=document,
        )


@dataclass(frozen=True)
class Confirmed:
    """What a confirmation left behind.

    Attributes:
        finished: Whether nothing is missing; else it was interrupted.
        says: What of each pair of neighbours on the front can be told apart, in words.
        document: All of ``headway confirm --json``.
    """

    finished: bool
    says: tuple[str, ...]
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Report:
    """A report on disk.

    Attributes:
        path: The page.
        document: All of ``headway report --json``, importances among it.
    """

    path: Path
    document: Mapping[str, Any] = field(repr=False)


class Recording(Results):
    """A recorded table: trials of a study that was run, to look at and to search in without training.

    Args:
        path: What ``Study.record`` or ``headway record`` wrote.

    Raises:
        UserError: There is no such table, or it cannot be read.
    """

    def __init__(self, path: str | Path, table: Table | None = None) -> None:
        from trainers.replay import Table

        self.path = Path(path)
        self.table = table or Table.read(self.path)

    def __repr__(self) -> str:
        return f"Recording({len(self.table.entries)} designs of {self.table.study['name']!r} in {self.path})"

    @property
    def name(self) -> str:
        """The recorded study's."""
        return str(self.table.study["name"])

    @cached_property
    def file(self) -> StudyFile:
        """The study file that was recorded."""
        from search.study import parse

        return parse(self.table.study, self.table.name)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What the front is of."""
        return self.file.objective_records

    @cached_property
    def _records(self) -> list[TrialRecord]:
        from search.engine import prepare_space
        from search.recording import table_records

        return table_records(self.table, self.file, prepare_space(self.file))

    def records(self) -> list[TrialRecord]:
        """The recorded trials, by number."""
        return self._records

    def replay(self, *, seeds: int = 20, workers: int = 4, **settings: Any) -> Replay:
        """Searches in the table in simulated time, once a seed: ``headway replay``.

        Args:
            seeds: Searches, with seeds 0 to ``seeds`` - 1.
            workers: Trials side by side.
            settings: ``sampler``, ``rungs``, ``first``, ``factor``, ``trials``: see ``search.replay.replay_study``.

        Raises:
            UserError: A setting is illegal.
        """
        from search.replay import replay_seeds

        return Replay(replay_seeds(self.table, settings, seeds=seeds, workers=workers, say=_say))


@dataclass(frozen=True)
class Replay:
    """What searches in a table came to.

    Attributes:
        document: All of ``headway replay --out``.
    """

    document: Mapping[str, Any] = field(repr=False)

    @property
    def best_hypervolume(self) -> float:
        """Of all recorded designs."""
        return float(self.document["best_hypervolume"])

    def targets(self) -> pd.DataFrame:
        """Hours until a share of the best hypervolume was reached, median and quartiles over the seeds.

        Returns:
            Indexed by ``target`` (in %): ``reached`` (seeds that did), ``compute_hours`` and ``wall_hours`` with
            ``_q1`` and ``_q3``; infinite where a seed that never got there is at that place.
        """
        import pandas as pd

        rows = {}
        for target, told in self.document["targets"].items():
            row: dict[str, float] = {"reached": told["reached"]}
            for key in ("compute_hours", "wall_hours"):
                for name, place in ((key, "median"), (f"{key}_q1", "q1"), (f"{key}_q3", "q3")):
                    row[name] = float("inf") if told[key][place] is None else told[key][place]
            rows[int(target)] = row
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("target")
        frame.attrs["units"] = {name: "" if name == "reached" else "h" for name in frame}
        return frame.astype({"reached": "int64"})

    def curves(self) -> pd.DataFrame:
        """How the hypervolume grew in each search.

        Returns:
            Indexed by ``seed`` and ``trials`` (that had ended): ``compute_hours``, ``wall_hours``, ``hypervolume``, and
            ``share`` of the best one.
        """
        import pandas as pd

        rows = [{"seed": run["seed"], **row} for run in self.document["runs"] for row in run["curve"]]
        frame = pd.DataFrame(rows).set_index(["seed", "trials"])
        frame["share"] = frame["hypervolume"] / self.best_hypervolume
        frame.attrs["units"] = {"compute_hours": "h", "wall_hours": "h", "hypervolume": "", "share": "0 to 1"}
        return frame


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        folder: Its folder.
        trial: Label of the trial, where it was just exported.
        why: Why that one, in one sentence.
    """

    folder: str | Path
    trial: str = ""
    why: str = ""

    def verify(
        self,
        *,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        latency: bool = True,
        against: str | Path | None = None,
    ) -> Verification:
        """Runs it again in a clean process and compares with its receipt: ``headway verify``.

        Args:
            annotations: Of the validation split; by default those that it was searched with.
            images: Their folder; goes with ``annotations``.
            latency: Whether the latency ratio is measured again.
            against: The baseline's bundle, where the latency depends on the image; by default one beside it.

        Raises:
            UserError: There is no bundle, or no validation data, or it is not the data of the receipt.
        """
        from analysis.verify import verify_bundle

        return verify_bundle(
            Path(self.folder),
            annotations=Path(annotations) if annotations else None,
            images=Path(images) if images else None,
            latency=latency,
            against=Path(against) if against else None,
        )


@dataclass(frozen=True)
class Compared:
    """Studies side by side.

    Attributes:
        comparison: What was found, see ``analysis.compare.Comparison``.
    """

    comparison: Comparison = field(repr=False)

    def __str__(self) -> str:
        told = [f"{item.other} against {item.one}: {item.figures}" for item in self.comparison.differences]
        return "\n".join([*told, self.comparison.baseline, *self.comparison.remarks])

    def plot(self) -> go.Figure:
        """The interactive plot of all fronts."""
        from analysis.plots.versus import versus_figure

        return versus_figure(self.comparison)

    def studies(self) -> pd.DataFrame:
        """One row a study.

        Returns:
            Indexed by ``study``: ``side`` (the same for replicas), ``seed``, ``baseline`` (its accuracy, 0 to 1),
            ``front`` (points) and ``hypervolume``.
        """
        import pandas as pd

        metric = self.comparison.objectives[0].metric
        rows = {
            found.entry.name: {
                "side": side.name,
                "seed": found.entry.seed,
                "baseline": found.entry.baseline.metrics[metric],
                "front": len(found.members),
                "hypervolume": found.volume,
            }
            for side in self.comparison.sides
            for found in side.found
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("study")

    def differences(self) -> pd.DataFrame:
        """One row a pair of sides.

        Returns:
            Indexed by ``one`` and ``other``: ``gap`` (hypervolume of ``other`` less that of ``one``, as searched);
            ``estimate``, ``low`` and ``high`` (95 % interval) and ``basis`` (``replicas`` or ``seeds``), empty where no
            interval can be given; ``one_dominated`` and ``other_dominated`` (shares of the fronts).
        """
        import pandas as pd

        rows = [
            {
                "one": item.one,
                "other": item.other,
                "gap": item.gap,
                "estimate": item.interval.middle if item.interval else float("nan"),
                "low": item.interval.low if item.interval else float("nan"),
                "high": item.interval.high if item.interval else float("nan"),
                "basis": item.basis,
                "one_dominated": item.one_dominated,
                "other_dominated": item.other_dominated,
            }
            for item in self.comparison.differences
        ]
        columns = ["one", "other", "gap", "estimate", "low", "high", "basis", "one_dominated", "other_dominated"]
        return pd.DataFrame(rows, columns=columns).set_index(["one", "other"])

    def write(self, out: str | Path) -> tuple[Path, Path]:
        """Writes the page, and the picture beside it: ``headway compare --out``.

        Raises:
            UserError: ``out`` is no ``.html`` file, or cannot be written.
        """
        from search.comparing import write

        return write(self.comparison, Path(out))


def compare(*those: Study | str | Path, studies: str | Path | None = None) -> Compared:
    """Puts two or more studies side by side: ``headway compare``.

    Args:
        those: Studies, or their names, folders or study files.
        studies: Folder of all studies, for names.

    Raises:
        UserError: One was not run, or they cannot be compared; it says why.
    """
    from search.comparing import compare_studies

    opened = [item if isinstance(item, Study) else Study.open(item, studies=studies) for item in those]
    return Compared(compare_studies([(item.file, item.records()) for item in opened]))


def tell_of_code(file: StudyFile) -> None:
    """Says that a config file is a program; nothing else that a study file names is executed."""
    if "::" not in file.base and Path(file.base).is_file():
        _say(f"base {file.base} is a Python config: it will be executed")


def _root(studies: str | Path | None) -> Path:
    return studies_root(None if studies is None else str(studies))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
