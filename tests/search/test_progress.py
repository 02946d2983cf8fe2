"""What a running study prints."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

from analysis.record import EpochRecord, TrialRecord, TrialState
from search.progress import Progress
from search.study import load

STUDY = """
name: told
base: headway::atss_tiny
data: {digits: {train: 8, val: 4}, size: [96, 96]}
space: {pod: {}}
budget: {trials: 2, epochs: 4}
rungs: null
"""


def test_each_event_of_a_trial_of_two_phases_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "told.yaml").write_text(STUDY)
    stream = io.StringIO()
    told = Progress(load(tmp_path / "told.yaml"), 1, stream)
    record = TrialRecord(number=1, state=TrialState.RUNNING, knobs={"pod.mode": "decompose"}, folder="trials/0001")

    def epoch(record: TrialRecord, accuracy: float) -> TrialRecord:
        metrics = {"bbox_mAP": accuracy}
        curve = [*record.curve, EpochRecord(len(record.curve) + 1, metrics, 1.0)]
        return replace(record, curve=curve, metrics={**record.metrics, **metrics})

    told(record)
    told(record := epoch(record, 0.1))
    told(record := epoch(record, 0.2))
    metrics = {**record.metrics, "learned_bbox_mAP": 0.2, "decomposed_bbox_mAP": 0.19}
    told(record := replace(record, metrics=metrics, attrs={"learning_epochs": 2}))
    told(record := replace(record, metrics={**record.metrics, "gmacs": 2.0}))
    told(record := replace(record, metrics={**record.metrics, "latency_ratio": 1.02, "latency_ms": 9.0}))
    told(record := epoch(record, 0.3))
    told(replace(record, state=TrialState.COMPLETE))
    lines = [re.sub(r"\[.*?\] trial   1  ", "", line) for line in stream.getvalue().splitlines()]
    assert lines == [
        "starts: pod.mode=decompose",
        "epoch 1/4  AP 10.0 %",
        "epoch 2/4  AP 20.0 %",
        "settled: AP 20.0 % learned, AP 19.0 % settled",
        "timed: latency 1.020 x baseline = 9.0 ms",
        "epoch 3/4  AP 30.0 %",
        "COMPLETE  AP 30.0 %  latency 1.020 x baseline = 9.0 ms",
    ]
