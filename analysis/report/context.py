"""What a report needs to know beside the records of the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.data import DataReport


@dataclass(frozen=True, kw_only=True)
class Context:
    """The study around the trials.

    Attributes:
        study: The study file as it was run, defaults filled in, without credentials.
        word: What names the study on the command line, ``cells-gfl`` or ``cells-gfl --studies /data/studies``.
        data: What is in the data set; ``None`` where it cannot be read any more.
        settings: Designs that the space allows, infinite with a continuous knob; ``None`` where that is not known.
        rungs: Epochs at which trials were compared.
        seconds_run: Run time of all starts of the search.
        reference: Reference point of the hypervolume; ``None`` for the baseline's.
    """

    study: Mapping[str, Any]
    word: str
    data: DataReport | None = None
    settings: float | None = None
    rungs: Sequence[int] = ()
    seconds_run: float | None = None
    reference: Sequence[float] | None = None

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.study["name"])
