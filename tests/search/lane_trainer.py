"""The analytic trainer with lanes: it says where and when each part of a trial ran."""

import json
import os
import time
from pathlib import Path

import ray
from analytic_trainer import train as analytic

from trainers.contract import LaneNeeded


def train(request, report):
    """Leaves a line in ``$LANE_LOG`` for each report: the trial, its phase, lane and node, and when that began."""
    node, began = ray.get_runtime_context().get_node_id(), time.time()
    if request.lane == "train" and request.speed is not None:
        raise LaneNeeded("speed")
    if request.lane == "speed" and request.speed is None:
        raise LaneNeeded("train")

    def note(message):
        nonlocal began
        line = {
            "number": request.number, "phase": message.phase, "lane": request.lane, "node": node,
            "began": began, "ended": time.time(), "epoch": message.epoch,
        }  # fmt: skip
        with Path(os.environ["LANE_LOG"]).open("a") as log:
            log.write(json.dumps(line) + "\n")
        report(message)
        began = time.time()
        if request.lane == "speed" and message.phase == "timed":
            raise LaneNeeded("train")

    analytic(request, note)
