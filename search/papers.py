"""The papers' tables beside ours: what each row costs here, and what the studies that were run say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.published import UNITS, Row, Table
from analysis.record import TrialRecord, TrialState, spread
from search.designs import listed, study_space
from search.folder import STUDY_FILE, find_study
from search.store import Store
from search.study import Study, load
from spaces.base import facts
from spaces.errors import HeadwayError
from spaces.patching import unlearned
from spaces.space import Design, Space, design_hash

# Beside the packages, both in a checkout and where it is installed.
RECIPES = Path(__file__).parents[1] / "recipes/papers"
SIZE = (800, 1344)
LEGEND = (
    "The papers' figures are printed as they are. Ours: multiply-adds (one counted once) of a whole pass and of all "
    f"beyond the neck at {SIZE[0]}x{SIZE[1]}, 1333x800 padded, every site of every level computed; parameters; and, "
    "where the row's study was run, AP of boxes in % and the latency, in ms and as a ratio to its own baseline."
)
_AT_MOST = "ours: before its dilations are learned; decomposed, it has the same parameters and as many GMACs or fewer"


@dataclass
class Comparison:
    """Puts published rows beside what Headway counts and what was trained.

    Attributes:
        root: Folder of all studies.
        say: Takes a line of progress.
        recipes: Folder of the study files.
    """

    root: Path
    say: Callable[[str], None] = lambda text: None
    recipes: Path = RECIPES
    _studies: dict[str, tuple[Study, Space]] = field(default_factory=dict)
    _runs: dict[str, tuple[int, list[TrialRecord]]] = field(default_factory=dict)
    _costs: dict[tuple[str, int | None, str], dict[str, float] | str] = field(default_factory=dict)

    def table(self, table: Table) -> dict[str, Any]:
        """Gives a table as plain JSON types.

        Returns:
            ``paper``, ``table`` (its number), ``kind`` (``table`` or ``figure``), ``title``, ``data``, ``device``,
            ``columns`` with their units, and ``rows``: each with ``label``, ``published``, ``study`` (its file below
            ``recipes/papers``), ``base``, ``knobs`` (canonical), ``ours``, ``reason`` and ``note``. ``ours`` has
            ``gmacs``, ``head_gmacs`` and ``params_m``, of a two-stage detector also ``roi_gmacs`` and
            ``roi_params_m``, its RoI head's, and once it was trained what the trial measured and its ``point``; it is
            empty for a row that cannot be expressed.
        """
        rows = []
        for number, row in enumerate(table.rows, 1):
            self.say(f"{table.paper} {table.kind} {table.number}, row {number}/{len(table.rows)}: {row.label}")
            rows.append(self._row(row))
        return {
            "paper": table.paper,
            "table": table.number,
            "kind": table.kind,
            "title": table.title,
            "data": table.data,
            "device": table.device,
            "columns": {name: UNITS[name] for name in table.columns},
            "rows": rows,
        }

    def _row(self, row: Row) -> dict[str, Any]:
        found: dict[str, Any] = {
            "label": row.label,
            "published": dict(row.metrics),
            "study": row.study,
            "base": row.base,
            "knobs": None,
            "ours": {},
            "reason": row.reason,
            "note": row.note,
        }
        if row.study is not None:
            study, space = self.study(row.study)
            design = self.design(row)
            found.update(base=_short(study.base, self.recipes), knobs=design)
            classes = len(study.data.classes) if study.data.classes else None
            plain = unlearned(design)
            cost = self._cost(study.base, plain, classes, design_hash(space.architecture(plain)))
            trained, note = self._trained(study, design)
            if space.learns(design) and "gmacs" not in trained:
                note = "; ".join(filter(None, (note, _AT_MOST)))
            found["ours"] = {**(cost if isinstance(cost, Mapping) else {}), **trained}
            problems = [text for text in (row.note, cost if isinstance(cost, str) else None, note) if text]
            found["note"] = "; ".join(problems) or None
        elif row.base is not None:
            cost = self._cost(row.base, {}, None, "")
            if isinstance(cost, Mapping):
                found["ours"] = dict(cost)
            else:
                found["note"] = "; ".join(text for text in (row.note, cost) if text)
        return found

    def study(self, file: str) -> tuple[Study, Space]:
        """Reads a study file of the papers, with its space."""
        if file not in self._studies:
            from trainers.config import load_base

            study = load(self.recipes / file)
            base = facts(load_base(study.base).model.to_dict(), f"base {study.base}")
            space = study_space(study, base)
            listed(study, space)
            self._studies[file] = (study, space)
        return self._studies[file]

    def design(self, row: Row) -> Design:
        """The canonical design of a row that has a study, at its setting of the inference knobs."""
        assert row.study is not None
        _, space = self.study(row.study)
        values = {f"{family}.{knob}": value for family, knobs in row.knobs.items() for knob, value in knobs.items()}
        return space.canonicalise(values, row.label)

    def _cost(self, base: str, design: Design, classes: int | None, architecture: str) -> Mapping[str, float] | str:
        """Counts a design; says why where that fails."""
        key = (base, classes, architecture if design else design_hash({}))
        if key not in self._costs:
            from trainers.profile import count_patched

            try:
                counted = count_patched(base, design, SIZE, classes)
                figures = counted.to_metrics()
                costs = {name: figures[name] for name in ("gmacs", "head_gmacs", "params_m")}
                if "roi_head" in counted.params_parts:
                    costs["roi_gmacs"] = counted.macs_parts["roi_head"] / 1e9
                    costs["roi_params_m"] = counted.params_parts["roi_head"] / 1e6
                self._costs[key] = costs
            except HeadwayError as error:
                self._costs[key] = f"not counted: {error}"
        return self._costs[key]

    def _trained(self, study: Study, design: Design) -> tuple[dict[str, Any], str | None]:
        """What a study of that name measured for the design, and what a reader must know of it."""
        if study.name not in self._runs:
            self._runs[study.name] = (0, [])
            if (self.root / study.name / STUDY_FILE).is_file():
                folder, run = find_study(study.name, self.root)
                self._runs[study.name] = (run.budget.epochs, spread(Store.read(folder, run).records()))
        epochs, records = self._runs[study.name]
        for record in records:
            if design_hash(record.knobs) == design_hash(design):
                if record.state is not TrialState.COMPLETE:
                    return {"point": record.label}, f"trial {record.label} is {record.state.value}"
                short = epochs != study.budget.epochs
                note = f"ours: {epochs} epochs instead of {study.budget.epochs}" if short else None
                learned = "learning_epochs" in record.attrs
                kept = {
                    name: value
                    for name, value in record.metrics.items()
                    if _kept(name) or (learned and name in ("gmacs", "head_gmacs", "params_m"))
                }
                return {"point": record.label, **kept}, note
        return {}, None


def _kept(name: str) -> bool:
    return name.startswith(("bbox_", "latency_")) or name == "peak_memory_mb"


def _short(base: str, recipes: Path) -> str:
    return base if "::" in base else Path(base).relative_to(recipes).as_posix()
