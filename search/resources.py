"""How a machine's or cluster's resources are divided among trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from search.study import ResourcesSection
from spaces.errors import UserError


@dataclass(frozen=True)
class Resources:
    """What one trial gets, and how many run side by side.

    Attributes:
        cpus: CPUs of each of the trial's workers.
        gpus: GPUs of each of the trial's workers.
        concurrent: Trials side by side.
        workers: Processes that train one trial data-parallel.
    """

    cpus: int
    gpus: int
    concurrent: int
    workers: int = 1

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where a trial trains."""
        return "cuda" if self.gpus else "cpu"


def divide(section: ResourcesSection, nodes: Sequence[tuple[int, int]]) -> Resources:
    """Resolves the study file's ``resources``.

    ``auto`` is one GPU a worker where there is any, with an equal share of its node's CPUs; without GPUs it is one CPU
    a worker. A worker lies on one node, the workers of one trial may lie on several.

    Args:
        section: The study file's ``resources``.
        nodes: CPUs and GPUs of each node.

    Raises:
        UserError: One worker asks for more than any node has, or one trial for more workers than there is room for.
    """
    with_gpus = [node for node in nodes if node[1]]
    gpu = (1 if with_gpus else 0) if section.gpus == "auto" else section.gpus
    cpu = (_equal_share(with_gpus) * gpu if gpu else 1) if section.cpus == "auto" else section.cpus
    for place, name, asked in ((1, "gpus", gpu), (0, "cpus", cpu)):
        there = max((node[place] for node in nodes), default=0)
        if asked > there:
            who, where = ("a trial", "here") if section.workers == 1 else ("a worker", "on one node here")
            raise UserError(f"resources.{name}: must be at most {there} {where}, but {who} asks for {asked}.")
    room = sum(max(0, min(cpus // cpu, gpus // gpu if gpu else cpus)) for cpus, gpus in nodes)
    if room < section.workers:
        each = f"{cpu} CPUs" + (f" and {gpu} GPUs" if gpu else "")
        raise UserError(
            f"resources.workers: must be at most {room} here, where as many workers of {each} have room, but got "
            f"{section.workers}."
        )
    fit = room // section.workers
    return Resources(cpu, gpu, fit if section.concurrent == "auto" else min(fit, section.concurrent), section.workers)


def _equal_share(with_gpus: Sequence[tuple[int, int]]) -> int:
    """CPUs a GPU where they are fewest; 1 where there is no GPU."""
    return max(1, min((cpus // gpus for cpus, gpus in with_gpus), default=1))
