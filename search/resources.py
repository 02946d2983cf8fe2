"""How a machine's or cluster's resources are divided among trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from search.study import ResourcesSection
from spaces.errors import UserError


@dataclass(frozen=True)
class Resources:
    """What one trial gets, and how many run side by side."""

    cpus: int
    gpus: int
    concurrent: int

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where a trial trains."""
        return "cuda" if self.gpus else "cpu"


def divide(section: ResourcesSection, cpus: int, gpus: int) -> Resources:
    """Resolves the study file's ``resources``.

    ``auto`` is one GPU a trial where there is any, with an equal share of the CPUs; without GPUs it is one CPU a trial.

    Args:
        section: The study file's ``resources``.
        cpus: All CPUs.
        gpus: All GPUs.

    Raises:
        UserError: One trial asks for more than there is.
    """
    gpu = (1 if gpus else 0) if section.gpus == "auto" else section.gpus
    cpu = (max(1, cpus // gpus) if gpu and gpus else 1) if section.cpus == "auto" else section.cpus
    for name, asked, there in (("cpus", cpu, cpus), ("gpus", gpu, gpus)):
        if asked > there:
            raise UserError(f"resources.{name}: must be at most {there} here, but a trial asks for {asked}.")
    fit = min(cpus // cpu, gpus // gpu if gpu else cpus)
    return Resources(cpu, gpu, fit if section.concurrent == "auto" else min(fit, section.concurrent))
