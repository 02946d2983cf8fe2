"""Runs trials with Ray; this folder alone imports ray.

- ``cluster``: joins Ray, and says what there is.
- ``tuner``: runs a study's trials with Ray Tune, and asks the director about each report.
- ``view``: what the cluster does at the moment.
- ``trial``: what runs in a trial's process.
"""

from __future__ import annotations

import os

# Read when ray is imported, or by processes that it starts.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from search.ray_adapter.cluster import capacity, connect
from search.ray_adapter.trial import call
from search.ray_adapter.tuner import run
from search.ray_adapter.view import view

__all__ = ["call", "capacity", "connect", "run", "view"]
