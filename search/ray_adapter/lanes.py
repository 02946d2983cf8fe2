"""Where each start of a trial runs: the speed lane on a node of its own, trainings on the others.

A node that was started with ``--resources='{"speed": 1}'`` is a speed node. Ray gives its ``speed`` to one placement at
a time, so whoever holds it measures alone: with every CPU of the node where latency is measured on a CPU, with a whole
GPU otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from search.resources import Resources, divide
from search.study import ResourcesSection
from spaces.errors import UserError
from trainers.contract import TrialRequest

SPEED = "speed"
HINT = "a node started with --resources='{\"speed\": 1}' measures alone"
Place = Literal["any", "speed", "away", "beside"]
_NODE_ID = "ray.io/node-id"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: Ray's id and name for it, and what it has."""

    id: str
    name: str
    cpus: int
    gpus: int
    speed: bool = False


@dataclass(frozen=True)
class SpeedLane:
    """Where latency is measured, and how many trainings run meanwhile.

    Attributes:
        node: The speed node.
        device: ``cpu`` or ``cuda``.
        cpus: CPUs that a measurement holds; all of the node's for ``cpu``.
        away: Most trainings on other nodes.
        beside: Most trainings on the speed node, on its other GPUs; 0 for ``cpu``.
        alone: Whether it is the only speed node.
    """

    node: Node
    device: str
    cpus: int
    away: int
    beside: int
    alone: bool = True

    def bundle(self) -> tuple[dict[str, float], dict[str, str]]:
        """What a measurement takes, and of which node: of any speed node that comes back where there is but one."""
        took = {"CPU": float(self.cpus), "GPU": float(self.device == "cuda"), SPEED: 1.0}
        return took, {} if self.alone else {_NODE_ID: self.node.id}

    def selector(self, place: Place) -> dict[str, str]:
        """The nodes that a training may run on."""
        return {_NODE_ID: self.node.id if place == "beside" else f"!{self.node.id}"}

    def request(self, request: TrialRequest) -> TrialRequest:
        """Gives the start of a trial that is measured: on the device that is there, and under Ray's own lease."""
        speed = None if request.speed is None else replace(request.speed, lease=None)
        sweep = request.sweep
        if sweep is not None and sweep.speed is not None:
            sweep = replace(sweep, speed=replace(sweep.speed, lease=None))
        threads = min(request.threads, self.cpus)
        return replace(request, lane="speed", device=self.device, threads=threads, speed=speed, sweep=sweep)


@dataclass(frozen=True)
class Plan:
    """How a cluster is divided.

    Attributes:
        share: What a training gets, and how many run side by side.
        speed_device: What latency is measured on.
        lane: Where it is measured, ``None`` for beside the trainings.
        told: One line about that.
    """

    share: Resources
    speed_device: str
    lane: SpeedLane | None
    told: str

    @property
    def under_way(self) -> int:
        """Most trials that are begun and not ended: one more than train where there is a lane, so it works ahead."""
        return self.share.concurrent + (self.lane is not None)


def plan(nodes: Sequence[Node], resources: ResourcesSection, device: str) -> Plan:
    """Divides a cluster among trainings and measurements.

    Args:
        nodes: Of the cluster.
        resources: The study file's ``resources``.
        device: Its ``speed.device``: ``auto`` is the speed node's GPU where there is one and trials train on GPUs.

    Raises:
        UserError: A trial asks for more than there is, or latency for a GPU that the speed node has not.
    """
    whole = divide(resources, [(node.cpus, node.gpus) for node in nodes])
    speed_nodes = sorted((node for node in nodes if node.speed), key=lambda node: node.id)
    beside = f"latency: measured beside {whole.concurrent - 1} other trainings at most, as interleaved ratios"
    if whole.concurrent == 1:
        beside = "latency: measured between trainings, as interleaved ratios"
    if not speed_nodes:
        return Plan(whole, whole.device if device == "auto" else device, None, f"{beside}; {HINT}")
    node, others = speed_nodes[0], [other for other in nodes if other.id != speed_nodes[0].id]
    if device == "auto":
        device = "cuda" if node.gpus and whole.gpus else "cpu"
    if device == "cuda" and not node.gpus:
        raise UserError(f"speed.device: must be cpu, since the speed node {node.name} has no GPU, but got cuda.")
    rest = replace(node, cpus=node.cpus - whole.cpus, gpus=node.gpus - 1) if device == "cuda" and whole.gpus else None
    left = [*others, rest] if rest else others
    try:
        share = divide(resources, [(other.cpus, other.gpus) for other in left])
    except UserError:
        share = None
    away = sum(_fit(other, share) for other in others) // share.workers if share else 0
    near = _fit(rest, share) // share.workers if share and rest else 0
    if share is None or share.device != whole.device or not away + near:
        return Plan(whole, device, None, f"{beside}: no node but the speed node {node.name} can hold a trial")
    share = replace(share, concurrent=min(share.concurrent, away + near))
    cpus = node.cpus if device == "cpu" else min(node.cpus, share.cpus)
    lane = SpeedLane(node, device, cpus, away, near, alone=len(speed_nodes) == 1)
    where = "on other nodes" if not near else "on its other GPUs" if not away else "on other nodes and its other GPUs"
    told = f"latency: measured alone on {_named(device, node)} of the speed node {node.name}; trials train {where}"
    if len(speed_nodes) > 1:
        told += f" ({len(speed_nodes)} speed nodes, the first by id is taken)"
    return Plan(share, device, lane, told)


def renewed(lane: SpeedLane, nodes: Sequence[Node]) -> SpeedLane | None:
    """Gives the lane as it is now: on another speed node where its own is gone, ``None`` while there is none."""
    fit = [node for node in nodes if node.speed and (lane.device == "cpu" or node.gpus)]
    if any(node.id == lane.node.id for node in fit):
        return lane
    if not fit:
        return None
    node = min(fit, key=lambda node: node.id)
    return replace(lane, node=node, cpus=node.cpus if lane.device == "cpu" else min(node.cpus, lane.cpus))


def _fit(node: Node, share: Resources) -> int:
    """Workers of trials that fit on a node."""
    by_gpu = [node.gpus // share.gpus] if share.gpus else []
    return max(0, min([node.cpus // share.cpus, *by_gpu]))


def _named(device: str, node: Node) -> str:
    if device == "cuda":
        return "a GPU"
    return "the CPU" if node.cpus == 1 else f"the {node.cpus} CPUs"


def placement(share: Resources, lane: SpeedLane | None, place: Place) -> dict[str, Any]:
    """What a start of a trial takes, as plain data: ``bundles`` and their ``selectors``."""
    workers = [{"CPU": share.cpus, "GPU": share.gpus}] * share.workers
    if lane is None:
        return {"bundles": workers, "selectors": None}
    if place == "speed":
        took, selector = lane.bundle()
        return {"bundles": [took], "selectors": [selector] if selector else None}
    return {"bundles": workers, "selectors": [lane.selector(place)] * share.workers}
