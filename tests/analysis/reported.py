"""Studies in memory, for tests of the report and its figures."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.record import EpochRecord, Objective, TrialRecord, TrialState
from analysis.report import Context
from trainers.data import DataReport, SplitReport

TWO = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))
THREE = (*TWO, Objective("params_m", "minimize"))
ONE = TWO[:1]

STUDY: Mapping[str, Any] = {
    "name": "cells",
    "base": "headway::gfl_tiny",
    "data": {"train": {}, "val": {}, "digits": None, "classes": None, "size": [320, 240]},
    "space": {"slimhead": {}},
    "objectives": [],
    "constraints": ["latency_ratio <= 1.2"],
    "budget": {"trials": 8, "epochs": 3, "hours": None, "gpu_hours": None},
    "sampler": {"name": "tpe"},
    "weights": {"from": "scratch", "epochs": None},
    "speed": {"batch": 1, "postprocess": True, "images": 16},
    "seed": 7,
}


def split(**sizes: int) -> SplitReport:
    total = sum(sizes.values())
    return SplitReport(
        images=20, annotations=total, crowd=0, images_without_boxes=0, classes={"WBC": total}, sizes=sizes
    )


def context(**fields: Any) -> Context:
    data = DataReport(
        classes=("WBC",), train=split(small=5, large=200), val=split(small=3, medium=0, large=150), findings=(),
        fingerprint="0", deep=False,
    )  # fmt: skip
    return Context(**{"study": STUDY, "word": "cells", "data": data, "rungs": (1,), "seconds_run": 600.0, **fields})


def cost(head: float) -> dict[str, Any]:
    parts = {"backbone": int(3e9), "neck": int(1e9), "head": int(head * 1e9)}
    levels = {"P3": int(0.75e9 * head), "P4": int(0.25e9 * head)}
    return {"cost": {"macs": {"total": sum(parts.values()), "parts": parts, "levels": levels}}}


def trial(
    number: int,
    ap: float | None = None,
    ratio: float | None = None,
    state: TrialState = TrialState.COMPLETE,
    knobs: Mapping[str, Any] | None = None,
    *,
    epochs: int = 3,
    **fields: Any,
) -> TrialRecord:
    """A trial whose AP grows to ``ap`` in equal steps."""
    metrics: dict[str, float] = {"params_m": 4.0 - 0.1 * number}
    if ratio is not None:
        metrics |= {"latency_ratio": ratio, "latency_ms": 40 * ratio, "gmacs": 4 + 2 * ratio}
        metrics |= {"latency_ratio_q1": ratio - 0.02, "latency_ratio_q3": ratio + 0.02}
    curve: Sequence[EpochRecord] = ()
    if ap is not None:
        figures = {"bbox_mAP": ap, "bbox_mAP_s": ap / 2, "bbox_mAP_m": -1.0, "bbox_mAP_l": ap * 1.2}
        curve = [
            EpochRecord(epoch, {name: value * epoch / epochs for name, value in figures.items()}, 10.0 * epoch)
            for epoch in range(1, epochs + 1)
        ]
        metrics |= figures
    if knobs is None:
        knobs = {} if number == 0 else {"slimhead.levels": [number % 3], "slimhead.ratio": 0.25 * (1 + number % 4)}
    attrs = {**(cost(ratio) if ratio is not None else {}), **fields.pop("attrs", {})}
    rest: dict[str, Any] = {"compute_hours": 0.1, "started": 1e9 + 60 * number, "finished": 1e9 + 60 * number + 30}
    return TrialRecord(number, state, knobs, metrics, curve, attrs=attrs, **{**rest, **fields})


def baseline() -> TrialRecord:
    record = trial(0, 0.4, 1.0, attrs={"device": "a CPU", "speed_device": "a CPU", "speed_kind": "cpu"})
    ends = {
        "latency_ratio_q1": 1.0,
        "latency_ratio_q3": 1.0,
        "aa_ratio": 1.01,
        "aa_ratio_q1": 0.99,
        "aa_ratio_q3": 1.03,
    }
    return TrialRecord(**{**vars(record), "metrics": {**record.metrics, **ends}})


def small() -> list[TrialRecord]:
    """The baseline, three that are better in something, one dominated, and one of each other end."""
    reason = "must hold: latency_ratio <= 1.2, but it is 1.35"
    return [
        baseline(),
        trial(1, 0.3, 0.7),
        trial(2, 0.42, 0.9),
        trial(3, 0.45, 0.99),
        trial(4, 0.28, 0.95),
        trial(5, None, 1.35, TrialState.INFEASIBLE, reason=reason),
        trial(6, None, 1.5, TrialState.INFEASIBLE, reason=reason.replace("1.35", "1.5")),
        trial(7, 0.1, 0.8, TrialState.STOPPED, epochs=1, reason="at epoch 1: rank 4 of 4, of which 1 go on"),
        trial(
            8, None, None, TrialState.FAILED, reason="the loss became NaN in epoch 2\nmore", traceback="Traceback: NaN"
        ),
    ]


def many(count: int, seed: int = 0, front: int = 60) -> list[TrialRecord]:
    """A study of many designs, some tens of which are on the front."""
    random_ = random.Random(seed)
    records = [baseline()]
    for number in range(1, count):
        levels = sorted(random_.sample(range(5), random_.randrange(6)))
        knobs = {
            "slimhead.levels": levels,
            "slimhead.ratio": round(random_.uniform(0.1, 1), 3),
            "slimhead.mode": random_.choice(["nearest", "bilinear", "maxpool"]),
            "ddod.alpha_cls": random_.choice([0.5, 0.8, 1.0]),
        }
        if random_.random() < 0.3:
            knobs["dcn.placement"] = sorted(random_.sample(["cls.0", "cls.1", "reg.0", "reg.1"], 2))
        ratio = 0.6 + 0.08 * (5 - len(levels)) + 0.3 * ("dcn.placement" in knobs)
        rest = random_.gauss(0, 0.02)
        state = TrialState.COMPLETE if random_.random() < 0.4 else TrialState.STOPPED
        ap = 0.1 + 0.3 * ratio**0.5 + 0.05 * knobs["slimhead.ratio"] + rest
        ratio += random_.uniform(0, 0.03) + 0.002 * (number % front)
        records.append(
            trial(
                number, ap, ratio, state, knobs, epochs=9 if state is TrialState.COMPLETE else 1 + 2 * (number % 2),
                reason=None if state is TrialState.COMPLETE else f"at epoch {1 + 2 * (number % 2)}: rank 9 of 9",
            )
        )  # fmt: skip
    return records
