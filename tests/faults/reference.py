"""The undisturbed run: the search's own conductor and store in this process, one trial after the other."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import trainer as analytic

from analysis.record import TrialRecord
from search.conductor import Conductor
from search.engine import prepare
from search.store import Store
from search.study import Study
from trainers.contract import StopTrial, TrialFailed, TrialReport, TrialRequest


def undisturbed(study: Study, trials: dict[str, list[Any]]) -> list[TrialRecord]:
    """Runs a study without Ray and without what passes.

    Args:
        study: The study file.
        trials: What trials do to themselves; of it only what is a trial's own failure counts.
    """
    own = {number: told for number, told in trials.items() if told[0] in ("trial_raises", "nan")}
    data, _, space = prepare(study)
    with tempfile.TemporaryDirectory(prefix="hfc") as name:
        conductor = Conductor(
            study, space, Store.in_memory(study), folder=Path(name), data=data, device="cpu", speed_device="cpu",
            threads=1, concurrent=1,
        )  # fmt: skip
        while isinstance(request := conductor.next(), TrialRequest):
            _run(conductor, request, own)
        return conductor.store.records()


def _run(conductor: Conductor, request: TrialRequest, trials: dict[str, list[Any]]) -> None:
    def report(message: TrialReport) -> None:
        if not conductor.report(request.number, message):
            raise StopTrial

    try:
        analytic.play(request, report, trials, 0.0)
    except StopTrial:
        return
    except TrialFailed as error:
        conductor.died(request.number, str(error))
