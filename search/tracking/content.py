"""What MLflow is to hold of a study, as plain data worked out from the records. Imports no mlflow.

All times are those of the records, never of the writing, so that the same record always gives the same content.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.confirm import flat
from analysis.pareto import Row
from analysis.plots.words import confirmation
from analysis.record import TrialRecord, TrialState

Point = tuple[str, int]  # a metric's name and its step
Values = dict[Point, tuple[float, int]]  # to its value and its time in ms

_STATUS = {
    TrialState.PROPOSED: "SCHEDULED",
    TrialState.RUNNING: "RUNNING",
    TrialState.FAILED: "FAILED",
}
_LONGEST = 5000  # of a tag or a parameter, below MLflow's 8,000 and 6,000
# Attributes that have pictures of their own.
_TOO_LONG = ("scales", "confirmed", "time")
# Of a network that was learned, and of what it was settled into before further training.
_LEARNED = ("learned_", "decomposed_", "learning_")


@dataclass(frozen=True)
class Content:
    """What the child run of a trial is to hold.

    Attributes:
        status: MLflow's word; what ended without failing is FINISHED, and the tag ``headway.state`` tells how.
        params: The knobs.
        metrics: Series over epochs and final figures.
        tags: State, reason, rung decisions, and what else is known.
    """

    status: str
    params: dict[str, str]
    metrics: Values
    tags: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of all of it: equal content has been written already."""
        series = sorted((*point, *value) for point, value in self.metrics.items())
        text = json.dumps([self.status, self.params, series, self.tags], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_of(record: TrialRecord) -> Content:
    """Works out the child run of a trial.

    Values that are not finite are left out. Final figures are there once the trial is finished; accuracy among them
    only if it is COMPLETE. Those of a network that was learned are final as soon as it is settled.
    """
    metrics: Values = {}
    for entry in () if record.point else record.curve:  # a further setting was not trained again
        stamp = milliseconds((record.started or 0.0) + entry.seconds)
        for name, value in entry.metrics.items():
            metrics[f"epoch/{name}", entry.epoch] = (float(value), stamp)
    varying = {name for item in record.sweep for name, knob in item.knobs.items() if record.knobs.get(name) != knob}
    for item in record.sweep if record.state.finished else ():
        # The settings of the inference knobs as a series, so that the trial's own run shows its curve.
        stamp = milliseconds(record.finished if record.finished is not None else record.started)
        settings = {name.rpartition(".")[2]: item.knobs[name] for name in varying if name in item.knobs}
        settings = {name: knob for name, knob in settings.items() if isinstance(knob, (int, float))}
        for name, value in {**settings, **item.metrics}.items():
            metrics[f"sweep/{name}", item.index] = (float(value), stamp)
    if record.state.finished:
        stamp = milliseconds(record.finished if record.finished is not None else record.started)
        trained = record.state is TrialState.COMPLETE
        of_epochs = set() if trained else {name for entry in record.curve for name in entry.metrics}
        for name, value in {**record.metrics, "compute_hours": record.compute_hours}.items():
            if trained or not (name in of_epochs or name.startswith("bbox_mAP")):
                metrics[name, 0] = (float(value), stamp)
    for name, value in flat(record.confirmed).items():
        # At the number of seeds, as figures change with it and MLflow's cannot be changed.
        metrics[name, len((record.confirmed or {})["seeds"])] = (value, milliseconds(record.finished))
    if "scales" in record.attrs:
        last = record.attrs.get("learning_epochs")
        seconds = next((entry.seconds for entry in record.curve if entry.epoch == last), 0.0)
        for name, value in record.metrics.items():
            if name.startswith(_LEARNED):
                metrics[name, 0] = (float(value), milliseconds((record.started or 0.0) + seconds))
    tags = {"headway.state": record.state.value}
    if record.reason:
        tags["headway.reason"] = record.reason[:_LONGEST]
    if record.rungs:
        tags["headway.rungs"] = ", ".join(f"epoch {epoch}: {word}" for epoch, word in sorted(record.rungs.items()))
    if record.folder:
        tags["headway.folder"] = record.folder
    # The scales have an artifact of their own, and would crowd out all else; what is confirmed has metrics.
    attrs = {name: value for name, value in record.attrs.items() if name.partition(".")[0] not in _TOO_LONG}
    if record.confirmed:
        tags["headway.confirmed"] = ", ".join(confirmation(record))[:_LONGEST]
    if attrs:
        tags["headway.attrs"] = json.dumps(attrs, sort_keys=True, default=str)[:_LONGEST]
    if record.traceback:
        # The end of a traceback tells most.
        tags["mlflow.note.content"] = f"```\n{record.traceback[-_LONGEST:]}\n```"
    return Content(
        status=_STATUS.get(record.state, "FINISHED"),
        params={name: as_text(value) for name, value in record.knobs.items()},
        metrics={point: value for point, value in metrics.items() if math.isfinite(value[0])},
        tags=tags,
    )


def volume_metrics(records: Sequence[TrialRecord], curves: Sequence[Row], *, final: bool) -> Values:
    """Works out the parent's ``hypervolume`` by finished trials and ``hypervolume_by_minute`` by compute minutes.

    Values that MLflow holds cannot be changed, so a minute is given only once a later one has begun, or at the end.

    Args:
        records: All trials, for the times.
        curves: ``pareto.hypervolume_curves`` of them.
        final: Whether nothing follows.
    """
    ends = sorted(record.finished or 0.0 for record in records if record.state.finished)
    metrics: Values = {}
    minutes: Values = {}
    for row, end in zip(curves, ends, strict=False):
        stamp = milliseconds(end)
        metrics["hypervolume", row["finished_trials"]] = (row["hypervolume"], stamp)
        minutes["hypervolume_by_minute", int(60 * row["compute_hours"])] = (row["hypervolume"], stamp)
    if minutes and not final:
        del minutes[max(minutes)]
    return {**metrics, **minutes}


def as_text(value: Any) -> str:
    """Writes a setting as MLflow shows it: text as it is, all else as JSON, cut where MLflow would cut or refuse it."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Writes nested settings as ``budget.trials``-like names, lists as JSON."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = as_text(value)
    return flat


def milliseconds(seconds: float | None) -> int:
    """Gives a Unix time in MLflow's unit, 0 where it is unknown."""
    return 0 if seconds is None else int(seconds * 1000)
