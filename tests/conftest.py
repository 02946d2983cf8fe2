"""What all tests share: their order, for runs on several cores, and small data to train on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainers.contract import DataRequest
from trainers.digits import write_digits

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


@pytest.fixture(scope="session")
def digits_request() -> Callable[..., DataRequest]:
    """Writes scenes of digits into a folder, ``train`` and ``val`` of them, (height, width) in px."""

    def write(folder: Path, *, train: int, val: int, size: tuple[int, int] = (64, 64)) -> DataRequest:
        paths = write_digits(folder, train=train, val=val, size=size, seed=0)
        return DataRequest(
            train_annotations=str(paths.train_annotations),
            train_images=str(paths.train_images),
            val_annotations=str(paths.val_annotations),
            val_images=str(paths.val_images),
            classes=paths.classes,
            size=size,
        )

    return write
