"""The order of the tests, for runs on several cores."""

from __future__ import annotations

from pathlib import Path

import pytest

# A file's tests run on one core. Those that start processes and train begin, so that no core waits at the end.
LONG = (
    "analysis/test_export.py",
    "analysis/test_draw.py",
    "search/test_kill.py",
    "search/test_ray.py",
    "trainers/test_versus.py",
    "trainers/test_detector.py",
    "search/test_cli.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the long files first."""
    place = {Path(__file__).parent / name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))
