"""What was found, as frames and figures: the part that a study and a recorded table have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from analysis.record import Objective, TrialRecord

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from analysis.choose import Choice


class Results(ABC):
    """Trials to look at. Each call reads them anew, so what a running study adds is seen."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What plots are titled."""

    @property
    @abstractmethod
    def objectives(self) -> tuple[Objective, ...]:
        """What the front is of, in the order of the study file."""

    @abstractmethod
    def records(self) -> Sequence[TrialRecord]:
        """All trials, by number, as ``analysis`` takes them.

        Raises:
            UserError: There are none yet.
        """

    def trials(self) -> pd.DataFrame:
        """One row a trial, whatever became of it: ``analysis.frames.trials_frame``."""
        from analysis.frames import trials_frame

        return trials_frame(self.records(), self.objectives)

    def points(self) -> pd.DataFrame:
        """One row a point that was measured to its end, on the front or not: ``analysis.frames.points_frame``."""
        from analysis.frames import points_frame

        return points_frame(self.records(), self.objectives)

    def front(self) -> pd.DataFrame:
        """The rows of ``points`` that nothing dominates, ascending in the second objective."""
        from analysis.frames import points_frame

        return points_frame(self.records(), self.objectives, front_only=True)

    def epochs(self) -> pd.DataFrame:
        """One row a finished epoch of a trial: ``analysis.frames.epochs_frame``."""
        from analysis.frames import epochs_frame

        return epochs_frame(self.records())

    def sweeps(self) -> pd.DataFrame:
        """One row a setting of the inference knobs of a trial: ``analysis.frames.sweeps_frame``."""
        from analysis.frames import sweeps_frame

        return sweeps_frame(self.records(), self.objectives)

    def hypervolume(self) -> float | None:
        """What the front dominates up to the study's reference point, ``None`` while the baseline is not COMPLETE."""
        from analysis.pareto import hypervolume, reference_point

        records = self.records()
        reference = reference_point(records, self.objectives)
        return None if reference is None else hypervolume(records, self.objectives, reference)

    def plot(self) -> go.Figure:
        """The interactive front. A notebook shows it where it is the last line of a cell."""
        from analysis.plots import pareto_figure

        return pareto_figure(self.records(), self.objectives, title=self.name)

    def choose(
        self,
        pick: str | int = "knee",
        *,
        above: Mapping[str, float] | None = None,
        under: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Choice:
        """Picks a design, says why, and what its neighbours are: ``headway choose``.

        Args:
            pick: ``knee``, ``fastest``, ``most_accurate``, ``weighted`` or a trial's number.
            above: Least value by metric, ``{"bbox_mAP": 0.4}``.
            under: Most by metric, ``{"latency_ms": 20}``.
            weights: By metric, for ``weighted``.

        Raises:
            UserError: See ``analysis.choose.choose``.
        """
        from analysis.choose import choose

        return choose(self.records(), self.objectives, pick, above=above, under=under, weights=weights)
