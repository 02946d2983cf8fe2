"""A study, and its acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.record import Objective, TrialRecord
from search.api.bundle import Bundle
from search.api.recording import Recording
from search.api.told import Confirmed, Report, Status
from search.folder import STUDY_FILE, find_study, studies_root
from search.progress import say
from search.results import Results
from search.study import Study as StudyFile
from search.study import build, load
from spaces.errors import UserError

if TYPE_CHECKING:
    from analysis.export_front import Exported
    from search.engine import Outcome
    from search.plan import Plan
    from search.store import Store
    from search.tracking.registry import Registered


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


def tell_of_code(file: StudyFile) -> None:
    """Says that a config file is a program; nothing else that a study file names is executed."""
    if "::" not in file.base and Path(file.base).is_file():
        say(f"base {file.base} is a Python config: it will be executed")


def _root(studies: str | Path | None) -> Path:
    return studies_root(None if studies is None else str(studies))
