"""What the cluster does at the moment, for those who look at a study."""

from __future__ import annotations

from dataclasses import dataclass

import ray
from ray._private.state import available_resources_per_node

from search.places import node_name
from search.ray_adapter.lanes import SPEED


@dataclass(frozen=True)
class NodeUse:
    """A node, and what of it is in use.

    Attributes:
        id: Ray's.
        name: ``HOST/`` and the beginning of the id.
        address: Its IP address.
        alive: Whether it answers.
        cpus: That it has.
        gpus: That it has.
        cpus_used: That are taken by trials.
        gpus_used: That are taken by trials.
        speed: Whether latency is measured there alone.
    """

    id: str
    name: str
    address: str
    alive: bool
    cpus: float = 0.0
    gpus: float = 0.0
    cpus_used: float = 0.0
    gpus_used: float = 0.0
    speed: bool = False


def view() -> list[NodeUse]:
    """All nodes of the connected machine or cluster, also those that were lost."""
    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    found = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        name = node_name(node.get("NodeManagerHostname") or node["NodeManagerAddress"], node["NodeID"])
        address, have = node["NodeManagerAddress"], node["Resources"]
        if not node["Alive"]:
            found.append(NodeUse(node["NodeID"], name, address, alive=False))
            continue
        # A node that has just come is not in this list yet.
        left = free.get(node["NodeID"], have)
        cpus, gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
        used = cpus - left.get("CPU", 0.0), gpus - left.get("GPU", 0.0)
        found.append(NodeUse(node["NodeID"], name, address, True, cpus, gpus, *used, have.get(SPEED, 0.0) >= 1))
    return found
