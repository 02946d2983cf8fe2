"""What the tests of real training share."""

from collections.abc import Callable

import pytest

from trainers.contract import DataRequest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, digits_request: Callable[..., DataRequest]) -> DataRequest:
    """Eight scenes of digits to train on, four to validate."""
    return digits_request(tmp_path_factory.mktemp("digits"), train=8, val=4)
