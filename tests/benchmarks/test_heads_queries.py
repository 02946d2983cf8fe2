"""The sites that the heads' benchmark lets QueryDet compute."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.heads.queries import Objects
from spaces.querydet.sparse import key_mask, spread


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_objects_make_the_share(share: float) -> None:
    size = (26, 44)
    objects = Objects(share, 2)
    coarse = objects(torch.zeros(2, *size))
    keys = key_mask(coarse, (52, 88))
    asked = objects(torch.zeros(int(keys.sum())))
    fine = torch.zeros(2, 52, 88, dtype=torch.bool)
    fine[keys] = asked
    finest = key_mask(fine, (104, 176))
    active = [spread(part, 2) for part in (keys, finest)]
    found = sum(int(part.sum()) for part in active) / sum(part.numel() for part in active)
    assert share <= found <= share * 1.05
    assert objects.notes["share"] == pytest.approx(found)
    assert objects.notes["active"]["P2"] == pytest.approx(float(active[1].float().mean()))
    assert copy.deepcopy(objects).notes is objects.notes  # what is timed is a copy
    assert torch.equal(coarse[0], coarse[1])
    assert torch.equal(Objects(share, 2)(torch.zeros(1, *size)), coarse[:1])
    assert not torch.equal(Objects(share, 2, seed=1)(torch.zeros(1, *size)), coarse[:1])
