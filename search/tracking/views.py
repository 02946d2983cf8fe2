"""Saved views of MLflow's own charts, which are live: a scatter of the trials' runs. Imports no mlflow.

Their format is undocumented, that of MLflow 3.17's pages (``ExperimentPageUIState`` and its search facets). Where
another version does not understand one, it says so and shows the runs as a table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from analysis.labels import axis
from analysis.record import Objective
from search.tracking.pages import MODE

TAG = "mlflow.sharedViewState."
_SHOWN = 100  # runs that MLflow draws at most


def view_key(run_id: str, *, front: bool) -> str:
    """Gives the key of a study's view: of all its trials, or of its front only."""
    return f"headway-{run_id}{'-front' if front else ''}"


def view_url(experiment_id: str, run_id: str, *, front: bool) -> str:
    """Gives the address of a view within MLflow's own pages."""
    key = view_key(run_id, front=front)
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={key}&compareRunsMode=CHART&{MODE}"


def view_state(run_id: str, objectives: Sequence[Objective], *, front: bool) -> str:
    """Gives what the tag ``TAG + view_key(...)`` of an experiment is to hold: a scatter of every pair of objectives.

    The first objective of a pair is the vertical axis. With one objective it is drawn over the compute time.

    Args:
        run_id: The study's run.
        objectives: Of the study.
        front: Whether only runs on the front are shown.
    """
    names = [objective.metric for objective in objectives]
    pairs = list(combinations(names, 2)) or [(names[0], "compute_hours")]
    section = _name(run_id, "front")
    wanted = f"tags.`mlflow.parentRunId` = '{run_id}'"
    state: dict[str, Any] = {
        "searchFilter": f"{wanted} and tags.`headway.front` = 'true'" if front else wanted,
        # By a metric: sorted by time, MLflow would hide the trials' runs below the study's.
        "orderByKey": f"metrics.`{names[0]}`",
        "orderByAsc": not objectives[0].maximize,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [f"metrics.`{name}`" for name in names],
        "runsHiddenMode": "SHOW_ALL",
        # A click on a point leads nowhere; the names in the list beside the chart are links to the runs.
        "runListHidden": False,
        "viewMaximized": False,
        "groupBy": None,
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunSections": [
            _section(section, "The front" if front else "The trials", shown=True, columns=min(2, len(pairs))),
            # MLflow adds a chart of each metric to these two.
            _section(_name(run_id, "model"), "Model metrics", shown=False),
            _section(_name(run_id, "system"), "System metrics", shown=False),
        ],
        "compareRunCharts": [_scatter(_name(run_id, f"{y} {x}"), section, y, x) for y, x in pairs],
    }
    return json.dumps(state)


def _section(uuid: str, name: str, *, shown: bool, columns: int = 3) -> dict[str, Any]:
    flags = {"isReordered": False, "deleted": False, "isGenerated": not shown}
    return {"uuid": uuid, "name": name, "display": shown, "columns": columns, "cardHeight": 440, **flags}


def _scatter(uuid: str, section: str, y: str, x: str) -> dict[str, Any]:
    return {
        "type": "SCATTER",
        "uuid": uuid,
        "metricSectionId": section,
        "displayName": f"{axis(y)} against {axis(x)}",
        "runsCountToCompare": _SHOWN,
        "deleted": False,
        "isGenerated": False,
        "xaxis": {"key": x, "type": "METRIC"},
        "yaxis": {"key": y, "type": "METRIC"},
    }


def _name(run_id: str, what: str) -> str:
    return str(uuid5(NAMESPACE_URL, f"headway/{run_id}/{what}"))
