"""What the tests of real training share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainers.contract import DataRequest, TrialRequest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, digits_request: Callable[..., DataRequest]) -> DataRequest:
    """Eight scenes of digits to train on, four to validate."""
    return digits_request(tmp_path_factory.mktemp("digits"), train=8, val=4)


@pytest.fixture
def request_(data: DataRequest, tmp_path: Path) -> TrialRequest:
    """Two epochs of two steps."""
    return TrialRequest(
        number=0,
        base="headway::gfl_nano",
        knobs={},
        data=data,
        folder=str(tmp_path / "trial"),
        epochs=2,
        batch=4,
        seed=3,
        count_size=(64, 64),
    )
