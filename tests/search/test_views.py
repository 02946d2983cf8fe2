"""The saved views of MLflow's charts, as far as they can be known without a browser."""

from __future__ import annotations

import json

from analysis.record import Objective
from search.tracking.views import view_key, view_state, view_url

NAMES = ("bbox_mAP", "latency_ms", "params_m")
THREE = tuple(Objective(name, "maximize" if name == "bbox_mAP" else "minimize") for name in NAMES)


def test_a_view_has_a_chart_of_each_pair() -> None:
    state = json.loads(view_state("r1", THREE, front=False))
    charts = state["compareRunCharts"]
    assert [(chart["yaxis"]["key"], chart["xaxis"]["key"]) for chart in charts] == [
        ("bbox_mAP", "latency_ms"),
        ("bbox_mAP", "params_m"),
        ("latency_ms", "params_m"),
    ]
    assert {chart["metricSectionId"] for chart in charts} == {state["compareRunSections"][0]["uuid"]}
    assert state["searchFilter"] == "tags.`mlflow.parentRunId` = 'r1'"


def test_the_front_is_a_view_of_its_own() -> None:
    state = json.loads(view_state("r1", THREE[:2], front=True))
    assert state["searchFilter"] == "tags.`mlflow.parentRunId` = 'r1' and tags.`headway.front` = 'true'"
    assert view_key("r1", front=True) != view_key("r1", front=False)
    assert f"viewStateShareKey={view_key('r1', front=True)}&" in view_url("5", "r1", front=True)
    assert view_url("5", "r1", front=True).endswith("workflowType=machine_learning")


def test_one_objective_is_drawn_over_the_compute_time() -> None:
    [chart] = json.loads(view_state("r1", THREE[:1], front=False))["compareRunCharts"]
    assert (chart["yaxis"]["key"], chart["xaxis"]["key"]) == ("bbox_mAP", "compute_hours")


def test_a_view_fits_a_tag() -> None:
    many = tuple(Objective(f"metric_number_{n}", "minimize") for n in range(6))
    assert len(view_state("f" * 32, many, front=True)) < 20_000
    assert view_state("r1", THREE, front=True) == view_state("r1", THREE, front=True)
