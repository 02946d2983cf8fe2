"""What the tests of real training share."""

import pytest

from trainers.contract import DataRequest
from trainers.digits import write_digits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataRequest:
    """Eight scenes of digits to train on, four to validate."""
    paths = write_digits(tmp_path_factory.mktemp("digits"), train=8, val=4, size=(64, 64), seed=0)
    return DataRequest(
        train_annotations=str(paths.train_annotations),
        train_images=str(paths.train_images),
        val_annotations=str(paths.val_annotations),
        val_images=str(paths.val_images),
        classes=paths.classes,
        size=(64, 64),
    )
