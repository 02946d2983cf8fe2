"""A trial's attributes: what each event sets of them, and the record that they make.

The store keeps them in the database, the event log gives them back by applying its events in order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from analysis.record import EpochRecord, SweepPoint, TrialRecord, TrialState

Attributes = Mapping[str, Any]
"""By name: ``number``, ``state``, ``knobs``, ``attrs``, ``metrics``, ``epoch:N``, ``point:INDEX``, ...; JSON types."""


def changes(event: str, fields: Mapping[str, Any], before: Attributes) -> dict[str, Any]:
    """Gives what an event sets of a trial's attributes, in the order in which it is written.

    Args:
        event: See ``search.events``; one that is not about a trial's record sets nothing.
        fields: What the event says.
        before: The trial's attributes until then.
    """
    if event == "proposed":
        made = {"knobs": fields["knobs"], "state": TrialState.PROPOSED.value, "number": fields["trial"]}
        return {**made, "attrs": fields["attrs"]} if fields.get("attrs") else made
    if event == "started":
        first = {} if "started" in before else {"started": fields["at"]}
        return {**first, "state": TrialState.RUNNING.value}
    if event == "figures":
        told = {name: {**before.get(name, {}), **fields[name]} for name in ("metrics", "attrs") if fields.get(name)}
        return {**told, "compute_hours": fields["seconds"] / 3600}
    if event == "epoch":
        return {f"epoch:{fields['epoch']}": {"metrics": fields["metrics"], "seconds": fields["seconds"]}}
    if event == "point":
        return {f"point:{fields['index']}": {name: fields[name] for name in ("knobs", "metrics", "broken")}}
    if event == "rung":
        return {"rungs": {**before.get("rungs", {}), str(fields["epoch"]): fields["decision"]}}
    if event == "ended":
        # Reasons also where there are none: a kill may have left those of an end that did not come about. The state
        # is last: with it the trial has ended.
        end = {"reason": fields["reason"], "traceback": fields["traceback"], "finished": fields["at"]}
        return {**end, "state": fields["state"]}
    return {}


def plain(value: Any) -> Any:
    """What the database, or a line of the log, will give back."""
    return json.loads(json.dumps(value))


def record_of(values: Attributes) -> TrialRecord:
    """Reads a trial's attributes."""
    epochs = {int(key[6:]): value for key, value in values.items() if key.startswith("epoch:")}
    curve = [EpochRecord(epoch, epochs[epoch]["metrics"], epochs[epoch]["seconds"]) for epoch in sorted(epochs)]
    points = {int(key[6:]): value for key, value in values.items() if key.startswith("point:")}
    sweep = [
        SweepPoint(index, points[index]["knobs"], points[index]["metrics"], points[index]["broken"])
        for index in sorted(points)
    ]
    metrics = {**(curve[-1].metrics if curve else {}), **values.get("metrics", {})}
    record = TrialRecord(
        number=values["number"],
        state=TrialState(values["state"]),
        knobs=values["knobs"],
        metrics=metrics,
        curve=curve,
        rungs={int(key): value for key, value in values.get("rungs", {}).items()},
        folder=f"trials/{values['number']:04d}",
        attrs=values.get("attrs", {}),
        sweep=sweep,
    )
    later = ["started", "compute_hours"]
    if record.state.finished:
        later += ["reason", "traceback", "finished"]
    return replace(record, **{key: values[key] for key in later if key in values})
