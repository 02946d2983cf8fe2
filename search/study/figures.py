"""The figures that a study file may name, and bounds on them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from spaces.errors import choices

# Figures that are known before training; constraints and like-speed competition rest on them.
COSTS: Mapping[str, str] = {
    "latency_ms": "latency of a pass in ms",
    "latency_ratio": "latency as a ratio to the baseline's",
    "gmacs": "multiply-adds of the detector in 10^9",
    "head_gmacs": "multiply-adds of the head in 10^9",
    "params_m": "parameters in 10^6",
    "activations_m": "activations in 10^6",
}
ACCURACIES: Mapping[str, str] = {
    "bbox_mAP": "COCO AP over IoU 0.50 to 0.95",
    "bbox_mAP_50": "AP at IoU 0.50",
    "bbox_mAP_75": "AP at IoU 0.75",
    "bbox_mAP_s": "AP of small objects",
    "bbox_mAP_m": "AP of medium objects",
    "bbox_mAP_l": "AP of large objects",
}


class Constraint:
    """A bound on a cost, ``params_m <= 40`` for instance."""

    def __init__(self, metric: str, upper: bool, bound: float) -> None:
        self.metric, self.upper, self.bound = metric, upper, bound

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Reads ``METRIC <= NUMBER`` or ``METRIC >= NUMBER``.

        Raises:
            ValueError: It is neither, or the metric is not known before training.
        """
        match = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*([-+.\deE]+)\s*", text)
        try:
            bound = float(match[3]) if match else math.nan
        except ValueError:
            bound = math.nan
        if not match or not math.isfinite(bound):
            raise ValueError(f"must read like 'params_m <= 40', but got '{text}'")
        if match[1] not in COSTS:
            raise ValueError(f"'{text}' must be about a figure known before training: {choices(COSTS)}")
        return cls(match[1], match[2] == "<=", bound)

    def excess(self, metrics: Mapping[str, float]) -> float | None:
        """By how much it is broken, as a share of the bound: above 0 when broken, ``None`` without the metric."""
        if self.metric not in metrics:
            return None
        difference = metrics[self.metric] - self.bound
        return (difference if self.upper else -difference) / (abs(self.bound) or 1.0)

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.upper else '>='} {self.bound:g}"
