"""A recorded table, and searches in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.record import Objective, TrialRecord
from search.progress import say
from search.results import Results
from search.study import Study as StudyFile

if TYPE_CHECKING:
    import pandas as pd

    from trainers.replay import Table


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

        return Replay(replay_seeds(self.table, settings, seeds=seeds, workers=workers, say=say))


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
