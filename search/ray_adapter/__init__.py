"""Runs trials with Ray; this folder alone imports ray.

A trial's process imports ``trial`` and what that needs, so nothing is imported here.

- ``cluster``: joins Ray, and says what there is.
- ``lanes``: where trainings and measurements run.
- ``desk``: what is under way, and who waits for a lane.
- ``preflight``: checks that each node of a cluster has what a trial needs.
- ``jobs``: submits a study as a Ray job, and follows it.
- ``tuner``: runs a study's trials with Ray Tune, and asks the director about each report.
- ``view``: what the cluster does at the moment.
- ``trial``: what runs in a trial's process.
- ``ready``: what a process imports that waits for a trial while Ray starts.
- ``team``: the other processes of a trial that several train.
"""

from __future__ import annotations

import os

# Of processes that get ready for trials (``ready``): their trainer, the lease of measurements, and where they sign.
READY_TRAINER, READY_LEASE, READY_BOOK = "HEADWAY_READY_TRAINER", "HEADWAY_READY_LEASE", "HEADWAY_READY_BOOK"

# Read when ray is imported, or by processes that it starts.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
# The desk limits what is under way; a start that waits for its node must not hold up one for another node.
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "4")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
