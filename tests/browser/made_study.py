"""A study of any length for the browser: slimmed, deformable and queried designs."""

from __future__ import annotations

import random
from typing import Any

from analysis.record import EpochRecord, Objective, TrialRecord, TrialState

TWO = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))
THREE = (*TWO, Objective("params_m", "minimize"))


def study(count: int, seed: int = 0) -> list[TrialRecord]:
    """Slimmed, deformable and queried designs; trial 0 is the baseline, every fifth one was stopped."""
    dice = random.Random(seed)
    trials = []
    for number in range(count):
        slim, layers, query = (dice.random(), dice.randint(0, 3), dice.random() < 0.3) if number else (0.0, 0, False)
        ratio = 1 - 0.35 * slim + 0.06 * layers + 0.05 * query + (dice.gauss(0, 0.01) if number else 0)
        accuracy = 0.40 - 0.05 * slim**2 + 0.012 * layers - (abs(dice.gauss(0, 0.02)) if number else 0)
        knobs: dict[str, Any] = {"slimhead.levels": [0, 1], "slimhead.ratio": round(1 - slim, 3)} if number else {}
        knobs.update({"dcn.placement": list(range(layers))} if layers else {})
        knobs.update({"querydet.p2": True} if query else {})
        stopped = number % 5 == 4
        metrics = {
            "bbox_mAP": accuracy * (0.6 if stopped else 1),
            "latency_ms": 41 * ratio,
            "latency_ratio": ratio,
            "latency_ratio_q1": ratio - 0.012,
            "latency_ratio_q3": ratio + 0.014,
            "gmacs": 200 * ratio,
            "params_m": 32 - 2 * slim + 0.8 * layers,
        }
        trials.append(
            TrialRecord(
                number,
                TrialState.STOPPED if stopped else TrialState.COMPLETE,
                knobs=knobs,
                metrics=metrics,
                curve=[
                    EpochRecord(epoch, {"bbox_mAP": metrics["bbox_mAP"] * epoch / 3}, 60.0 * epoch)
                    for epoch in (1, 2, 3)
                ],
                reason="stopped at epoch 3" if stopped else None,
                started=1.7e9 + 60 * number,
                finished=1.7e9 + 60 * number + 300,
                compute_hours=0.1,
            )
        )
    return trials
