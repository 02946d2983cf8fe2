"""What a run began with, for the event log."""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import asdict
from importlib import metadata

from search.delivery import public
from search.events import EventLog
from search.resources import Resources
from search.storage import safe_url
from search.study import Study

_PACKAGES = ("headway", "torch", "ray", "optuna", "mlflow")


def begun(log: EventLog, study: Study, address: str | None, share: Resources, command: str = "run") -> None:
    """Tells the log what begins: the study file without credentials, versions, the machine, and what a trial gets."""
    # A checkout that was sent to a cluster is not installed there.
    there = {name: next(iter(metadata.distributions(name=name)), None) for name in _PACKAGES}
    versions = {name: found.version for name, found in there.items() if found}
    log.write(
        "begun",
        command=command,
        study=public(study),
        versions={"python": platform.python_version(), **versions},
        host=socket.gethostname(),
        pid=os.getpid(),
        address=safe_url(address) if address and "://" in address else address,
        share=asdict(share),
    )
