"""The facts of a GFL on P3 to P7 with towers of four convolutions."""

from __future__ import annotations

import pytest

from spaces.base import BaseFacts


@pytest.fixture
def gfl() -> BaseFacts:
    return BaseFacts("GFL", "GFLHead", (8, 16, 32, 64, 128), 4, tower_bias=False)


@pytest.fixture
def retina() -> BaseFacts:
    return BaseFacts("RetinaNet", "RetinaHead", (8, 16, 32, 64, 128), 4, tower_bias=True)
