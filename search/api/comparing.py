"""Studies side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from search.api.study import Study

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from analysis.compare import Comparison


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
