"""Shows a study in MLflow. Of Headway only this package imports mlflow, and only once ``Tracker`` is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search.tracking.courier import Courier, TrackingState
from search.tracking.pages import default_uri, is_database, page_url, public_uri, ui_command, ui_environment

if TYPE_CHECKING:
    from search.tracking.server import find_run
    from search.tracking.tracker import Tracker

__all__ = [
    "Courier",
    "Tracker",
    "TrackingState",
    "default_uri",
    "find_run",
    "is_database",
    "page_url",
    "public_uri",
    "ui_command",
    "ui_environment",
]


def __getattr__(name: str) -> Any:
    # mlflow takes two seconds to import, which a command that only prints a table need not wait for.
    if name == "Tracker":
        from search.tracking.tracker import Tracker

        return Tracker
    if name == "find_run":
        from search.tracking.server import find_run

        return find_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
