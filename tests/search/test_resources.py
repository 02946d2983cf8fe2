"""How many trials, of how many workers, have room on a cluster."""

import pytest

from search.resources import Resources, divide
from search.study import ResourcesSection
from spaces.errors import UserError


@pytest.mark.parametrize(
    ("section", "nodes", "expected"),
    [
        ({}, [(8, 0)], Resources(1, 0, 8)),
        ({}, [(16, 4)], Resources(4, 1, 4)),
        ({"cpus": 3}, [(4, 0), (4, 0)], Resources(3, 0, 2)),  # 8 CPUs, but 3 of them nowhere else than 1 a node
        ({"gpus": 2}, [(16, 4)], Resources(8, 2, 2)),
        ({"concurrent": 2}, [(8, 0)], Resources(1, 0, 2)),
        # The head has CPUs only, and the GPU nodes differ.
        ({}, [(8, 0), (16, 4), (8, 4)], Resources(2, 1, 8)),
    ],
)
def test_one_worker_a_trial(section, nodes, expected):
    assert divide(ResourcesSection(**section), nodes) == expected
    assert expected.device == ("cuda" if expected.gpus else "cpu")


@pytest.mark.parametrize(
    ("section", "nodes", "expected"),
    [
        ({"workers": 2}, [(1, 0), (1, 0), (1, 0)], Resources(1, 0, 1, 2)),  # over two nodes
        ({"workers": 3, "cpus": 2}, [(4, 0), (5, 0), (3, 0)], Resources(2, 0, 1, 3)),
        ({"workers": 2, "cpus": 2}, [(4, 0), (5, 0), (3, 0)], Resources(2, 0, 2, 2)),
        ({"workers": 4}, [(64, 8), (64, 8)], Resources(8, 1, 4, 4)),
        ({"workers": 8, "concurrent": 9}, [(64, 8), (64, 8)], Resources(8, 1, 2, 8)),
    ],
)
def test_several_workers_a_trial(section, nodes, expected):
    assert divide(ResourcesSection(**section), nodes) == expected


@pytest.mark.parametrize(
    ("section", "nodes", "message"),
    [
        ({"cpus": 5}, [(4, 0), (4, 0)], "resources.cpus: must be at most 4 here, but a trial asks for 5."),
        ({"gpus": 1}, [(4, 0)], "resources.gpus: must be at most 0 here, but a trial asks for 1."),
        (
            {"gpus": 2, "workers": 2},
            [(4, 1), (4, 1)],
            "resources.gpus: must be at most 1 on one node here, but a worker asks for 2.",
        ),
        (
            {"workers": 4, "cpus": 2},
            [(4, 0), (3, 0)],
            "resources.workers: must be at most 3 here, where as many workers of 2 CPUs have room, but got 4.",
        ),
        (
            {"workers": 3},
            [(8, 2)],
            "resources.workers: must be at most 2 here, where as many workers of 4 CPUs and 1 GPUs have room, but "
            "got 3.",
        ),
    ],
)
def test_what_has_no_room(section, nodes, message):
    with pytest.raises(UserError) as caught:
        divide(ResourcesSection(**section), nodes)
    assert str(caught.value) == message
