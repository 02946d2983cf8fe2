"""Trials as pandas frames: which rows, which dtypes, what is unknown."""

from __future__ import annotations

import math

import pandas as pd

from analysis.frames import epochs_frame, points_frame, sweeps_frame, trials_frame, unit
from analysis.record import EpochRecord, Objective, SweepPoint, TrialRecord, TrialState

TWO = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))
BASELINE = TrialRecord(
    0,
    TrialState.COMPLETE,
    metrics={"bbox_mAP": 0.3, "latency_ms": 100.0, "params_m": 30.0},
    curve=[EpochRecord(1, {"loss": 2.0}, 10.0), EpochRecord(2, {"loss": 1.0, "bbox_mAP": 0.3}, 20.0)],
    rungs={1: "continue: the baseline is never stopped"},
    started=0.0,
    finished=90.0,
    compute_hours=0.025,
)
SLIM = TrialRecord(
    1,
    TrialState.COMPLETE,
    knobs={"slimhead.levels": [0, 1], "slimhead.ratio": 0.5, "slimhead.fat": True, "dcn.version": 2},
    metrics={"bbox_mAP": 0.2, "latency_ms": 50.0},
    attrs={"name": "half", "confirmed": {"1": {
        "seeds": [0, 1], "mark": "≈ 0", "latency": None, "neighbours": [], "failed": {},
        "metrics": {"bbox_mAP": {"mean": 0.21, "low": 0.1, "high": 0.32, "std": 0.01, "values": {}}},
    }}},
)  # fmt: skip
WORSE = TrialRecord(
    2,
    TrialState.COMPLETE,
    knobs={"slimhead.levels": [1], "slimhead.ratio": 1},
    metrics={"bbox_mAP": 0.1, "latency_ms": 60.0},
)
FAILED = TrialRecord(3, TrialState.FAILED, knobs={"dcn.version": 1}, metrics={"bbox_mAP": math.nan}, reason="NaN loss")
SWEPT = TrialRecord(
    4,
    TrialState.COMPLETE,
    knobs={"querydet.threshold": 0.1},
    metrics={"bbox_mAP": 0.4, "latency_ms": 200.0, "params_m": 40.0},
    sweep=[
        SweepPoint(0, {"querydet.threshold": 0.1}, {"bbox_mAP": 0.4, "latency_ms": 200.0}),
        SweepPoint(1, {"querydet.threshold": 0.2}, {"bbox_mAP": 0.35, "latency_ms": 150.0}),
        SweepPoint(2, {"querydet.threshold": 0.3}, {"bbox_mAP": 0.36, "latency_ms": 999.0}, ("latency_ms <= 900",)),
    ],
)
ALL = [BASELINE, SLIM, WORSE, FAILED, SWEPT]


def test_every_trial_has_a_row_with_its_state_times_and_knobs() -> None:
    frame = trials_frame(ALL, TWO)
    assert list(frame.index) == [0, 1, 2, 3, 4] and frame.index.name == "trial"
    assert list(frame["state"]) == ["COMPLETE", "COMPLETE", "COMPLETE", "FAILED", "COMPLETE"]
    assert "INFEASIBLE" in frame["state"].cat.categories  # counted as 0 where nobody was
    assert list(frame["on_front"]) == [True, True, False, False, True]
    assert frame.loc[0, "started"] == pd.Timestamp("1970-01-01", tz="UTC") and pd.isna(frame.loc[1, "started"])
    assert (frame.loc[0, "finished"] - frame.loc[0, "started"]).total_seconds() == 90
    assert frame.loc[3, "reason"] == "NaN loss" and frame["reason"].isna().sum() == 4
    assert list(frame.columns[9:11]) == ["bbox_mAP", "latency_ms"]
    assert frame["bbox_mAP"].dtype == "float64" and math.isnan(frame.loc[3, "bbox_mAP"])
    assert frame["params_m"].sum() == 70 and frame["params_m"].isna().sum() == 3


def test_a_knob_has_the_dtype_of_its_values_and_is_empty_where_a_design_has_it_not() -> None:
    frame = trials_frame(ALL, TWO)
    assert frame["slimhead.ratio"].dtype == "float64" and frame["slimhead.ratio"].isna().sum() == 3
    assert frame["dcn.version"].dtype == "Int64" and frame["dcn.version"].sum() == 3
    assert frame["slimhead.fat"].dtype == "boolean" and frame["slimhead.fat"].isna().sum() == 4
    # Lists of one length and of several alike: hashable, so that designs can be grouped by them.
    assert frame.loc[1, "slimhead.levels"] == (0, 1) and frame.loc[2, "slimhead.levels"] == (1,)
    assert frame["slimhead.levels"].isna().sum() == 3
    assert frame.groupby("slimhead.levels")["bbox_mAP"].max().to_dict() == {(0, 1): 0.2, (1,): 0.1}


def test_points_are_those_of_the_front_command_with_settings_and_confirmations() -> None:
    frame = points_frame(ALL, TWO)
    assert list(frame.index) == ["1", "2", "0", "4.1", "4"] and frame.index.name == "point"
    assert list(frame["trial"]) == [1, 2, 0, 4, 4]
    assert list(frame["on_front"]) == [True, False, True, True, True]
    assert frame.loc["1", "confirmed_bbox_mAP_low"] == 0.1 and frame.loc["1", "alike"] == "≈ 0"
    assert math.isnan(frame.loc["4", "confirmed_bbox_mAP"]) and frame.loc["1", "name"] == "half"
    assert list(points_frame(ALL, TWO, front_only=True).index) == ["1", "0", "4.1", "4"]
    assert not any(column.startswith("confirmed") for column in points_frame([BASELINE], TWO))


def test_epochs_and_settings_have_a_row_each() -> None:
    epochs = epochs_frame(ALL)
    assert list(epochs.index) == [(0, 1), (0, 2)] and epochs.index.names == ["trial", "epoch"]
    assert epochs.loc[(0, 1), "rung"].startswith("continue") and pd.isna(epochs.loc[(0, 2), "rung"])
    assert math.isnan(epochs.loc[(0, 1), "bbox_mAP"]) and epochs.loc[(0, 2), "seconds"] == 20
    sweeps = sweeps_frame(ALL, TWO)
    assert list(sweeps.index) == [(4, 0), (4, 1), (4, 2)]
    assert list(sweeps["broken"]) == [(), (), ("latency_ms <= 900",)]
    assert list(sweeps["on_front"]) == [True, True, False]
    assert list(sweeps["params_m"]) == [40, 40, 40]  # what a setting does not change


def test_a_study_without_trials_gives_empty_frames_of_the_same_dtypes() -> None:
    for empty, full in (
        (trials_frame([], TWO), trials_frame(ALL, TWO)),
        (points_frame([], TWO), points_frame(ALL, TWO)),
        (epochs_frame([]), epochs_frame(ALL)),
        (sweeps_frame([], TWO), sweeps_frame(ALL, TWO)),
    ):
        assert len(empty) == 0 and list(empty.columns) == [name for name in full.columns if name in empty]
        assert (empty.dtypes == full.dtypes[empty.columns]).all()


def test_units_go_along() -> None:
    units = points_frame(ALL, TWO).attrs["units"]
    assert units["bbox_mAP"] == "share, 0 to 1" and units["latency_ms"] == "ms" and units["slimhead.ratio"] == ""
    assert units["confirmed_bbox_mAP_low"] == "share, 0 to 1"
    assert unit("warm_seconds") == "s" and unit("learning_latency_ratio_q1") == "x the baseline's"
