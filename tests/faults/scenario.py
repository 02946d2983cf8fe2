"""What a run of the campaign is: a small study, and what happens to it; both follow from the campaign's seed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What trials do to themselves, by the word that the trainer knows.
IN_TRIAL = ("trial_raises", "nan", "loader_crash", "cuda_oom", "hung")
# What is done to them from outside.
FROM_OUTSIDE = (
    "worker_killed",
    "worker_stopped",
    "driver_killed",
    "driver_terminated",
    "second_driver",
    "node_lost",
    "head_restarted",
    "object_store_full",
    "disk_full",
    "mlflow_down",
    "mlflow_gone",
    "database_down",
    "sqlite_locked",
)
KINDS = (*IN_TRIAL, *FROM_OUTSIDE)
ON_CLUSTER = {"node_lost", "head_restarted", "object_store_full"}
WITH_SERVER = {"mlflow_down", "mlflow_gone"}
# After these a driver may end before its study is complete; after all others it must not.
ENDS_DRIVER = {"driver_killed", "driver_terminated", "head_restarted", "disk_full"}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: One of ``KINDS``.
        moment: For what comes from outside: epochs that all trials have trained together when it comes.
        delay: Seconds after that moment.
        seconds: How long it lasts, where it passes.
        trial: For what a trial does to itself: which one.
        epoch: And while it trains this one.
        variant: Chooses between two ways of the same fault.
    """

    kind: str
    moment: int = 0
    delay: float = 0.0
    seconds: float = 0.0
    trial: int = 0
    epoch: int = 0
    variant: bool = False


@dataclass(frozen=True)
class Scenario:
    """One run.

    Attributes:
        index: Its number in the campaign.
        study: The study file, without ``storage`` and ``tracking``.
        faults: What happens.
        epoch_seconds: How long an epoch takes.
        trained: Whether a real detector is trained; else accuracy follows from the design in closed form.
        database: ``sqlite`` or ``postgresql``.
    """

    index: int
    study: Mapping[str, Any]
    faults: tuple[Fault, ...]
    epoch_seconds: float
    trained: bool
    database: str

    @property
    def kinds(self) -> set[str]:
        """Kinds of its faults."""
        return {fault.kind for fault in self.faults}

    @property
    def on_cluster(self) -> bool:
        """Whether it needs several nodes."""
        return bool(self.kinds & ON_CLUSTER)

    @property
    def with_server(self) -> bool:
        """Whether MLflow is a server."""
        return bool(self.kinds & WITH_SERVER)

    @property
    def alone(self) -> bool:
        """Whether trials run one after the other, so that nothing depends on who is faster."""
        return self.study["resources"]["concurrent"] == 1


def possible() -> tuple[str, ...]:
    """The kinds that this machine can show: a full disk needs a mount of its own, a database its server."""
    import os

    lacking = set()
    if shutil.which("postgres") is None:
        lacking.add("database_down")
    if os.getuid() != 0 or shutil.which("mount") is None:
        lacking.add("disk_full")
    return tuple(kind for kind in KINDS if kind not in lacking)


def draw(seed: int, index: int, kinds: tuple[str, ...]) -> Scenario:
    """Makes a run of the campaign.

    Each kind leads in its turn, so that all come; up to two further ones join it.

    Args:
        seed: The campaign's.
        index: The run's number.
        kinds: What may happen.
    """
    chance = random.Random(f"{seed}:{index}")
    lead = kinds[index % len(kinds)]
    # What ends a driver is what most of the rest must be combined with.
    others = [*kinds, *(kind for kind in kinds if kind.startswith("driver_"))]
    chosen = [lead, *chance.choices(others, k=chance.choice((0, 1, 1, 2)))]
    if "database_down" in chosen:
        chosen = [kind for kind in chosen if kind != "sqlite_locked"]
    # One run in nine trains a detector: a clean process a trial costs some 10 s.
    trained = lead in ("worker_killed", "driver_killed", "driver_terminated") and index // len(kinds) == 0
    trials = 4 if trained else chance.randint(6, 8)
    epochs = 3 if trained else chance.choice((3, 3, 4, 6))
    alone = trained or chance.random() < 0.6
    rungs = chance.random() < 0.75
    study: dict[str, Any] = {
        "name": f"faults-{index:03d}",
        "base": "headway::gfl_nano" if trained else "headway::gfl_tiny",
        "data": {"digits": {"train": 16, "val": 4}, "size": [96, 96]},
        "space": {"slimhead": {}, "dcn": {"placement": {"max_size": 1}}} if trained else {"slimhead": {}, "dcn": {}},
        "budget": {"trials": trials, "epochs": epochs},
        "rungs": {"first": 1, "factor": chance.choice((2, 3))} if rungs else None,
        "sampler": {"name": chance.choice(("random", "tpe")), "startup": 3},
        "resources": {"cpus": 1, "concurrent": 1 if alone else 2},
        "speed": {"seconds": 0.5, "pairs": 3},
        "seed": chance.randint(0, 10_000),
    }
    if {"hung", "worker_stopped"} & set(chosen) and not trained:
        study["resources"]["heartbeat"] = 0.2
    if not trained and chance.random() < 0.3:
        study["constraints"] = ["latency_ratio <= 1.05"]
    # About what all trials train together; moments lie in its first part, so that most of them come.
    expected = trials * epochs * (0.5 if rungs else 1.0)
    faults = []
    for kind in chosen:
        faults.append(
            Fault(
                kind,
                moment=chance.randint(1, max(2, int(0.6 * expected))),
                delay=chance.uniform(0, 0.5),
                seconds=chance.uniform(2, 8),
                trial=chance.randint(1, trials - 1),
                epoch=chance.randint(1, 2),
                variant=chance.random() < 0.5,
            )
        )
    return Scenario(
        index=index,
        study=study,
        faults=tuple(_once_a_trial(faults)),
        epoch_seconds=round(chance.uniform(0.05, 0.25), 3),
        trained=trained,
        database="postgresql" if "database_down" in chosen else "sqlite",
    )


def _once_a_trial(faults: list[Fault]) -> list[Fault]:
    """Leaves one fault to each trial: what two of them in one epoch would mean depends on who is first."""
    taken: set[int] = set()
    kept = []
    for fault in faults:
        if fault.kind in IN_TRIAL:
            if fault.trial in taken:
                continue
            taken.add(fault.trial)
        kept.append(fault)
    return kept
