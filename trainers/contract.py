"""The one border between search and training: a request goes in, reports come out while it runs.

A trainer never learns that a scheduler exists. It calls ``report``; that call returns when the trial may go on, and
raises ``StopTrial`` when it must end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, get_args

Phase = Literal["warm", "counted", "timed", "epoch", "learned", "swept", "done"]
Lane = Literal["any", "train", "speed"]
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)


class StopTrial(BaseException):
    """Raised by ``report`` when the trial is to end now; trainers let it pass."""


class TrialFailed(Exception):
    """The trial cannot give a result, for the reason in the message (a NaN loss, say)."""


class TrialInterrupted(Exception):
    """The trial's surroundings failed it, for the reason in the message (a data loader was killed, a peer died).

    It is started again from its newest checkpoint, as after the death of its process, and as often.
    """


class MachineUnfit(Exception):
    """No trial can go on here, for the reason in the message (the disk is full, say).

    The trial stays as it is, the run starts nothing further and ends, and the same command continues it.
    """


class LaneNeeded(Exception):
    """The trial must go on in another lane than its request's; it continues there from what it has left on disk.

    Args:
        lane: ``train`` or ``speed``.
    """

    def __init__(self, lane: Lane) -> None:
        super().__init__(lane)
        self.lane: Lane = lane


@dataclass(frozen=True, kw_only=True)
class TeamRequest:
    """The processes that train one trial data-parallel.

    Attributes:
        size: How many, 2 or more.
        rank: This one's; rank 0 is the trial, which counts, times, reports and saves. The others only train.
        address: ``host:port`` of rank 0, where all meet; rank 0 serves it.
    """

    size: int
    rank: int = 0
    address: str = ""


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """A data set in COCO format.

    Attributes:
        train_annotations: COCO json of the training split.
        train_images: Folder that its file names are relative to.
        val_annotations: COCO json of the validation split.
        val_images: Folder that its file names are relative to.
        classes: Class names; their order gives the labels.
        size: Width and height in px that images are resized into, keeping their aspect ratio.
    """

    train_annotations: str
    train_images: str
    val_annotations: str
    val_images: str
    classes: tuple[str, ...]
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SpeedRequest:
    """How latency is measured.

    Attributes:
        size: Height and width in px of the input.
        batch: Images a pass.
        postprocess: Whether decoding and NMS are inside.
        device: ``cpu`` or ``cuda``.
        pairs: Least number of interleaved pairs.
        seconds: Time after which no further pair is started once ``pairs`` are there.
        lease: Path of the lock file that makes measurements exclusive on this machine, or ``None``.
        foreign: What becomes of a measurement whose device a foreign process uses: ``refuse`` waits and then ends the
            run, ``record`` measures and says so.
    """

    size: tuple[int, int]
    batch: int = 1
    postprocess: bool = True
    device: str = "cpu"
    pairs: int = 7
    seconds: float = 6.0
    lease: str | None = None
    foreign: Literal["refuse", "record"] = "refuse"


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What to measure on the trained detector: one training, several settings of its inference knobs.

    Attributes:
        settings: By index, the whole design with these inference knobs. Index 0 is the trial's own design.
        speed: How latency is measured, on images of the validation split instead of noise; ``None`` for accuracy alone.
        images: Images that latency and multiply-adds are measured on, evenly chosen from the split.
        reference: Folder of the baseline's trial. Its newest checkpoint is the baseline that latency is compared with,
            so that both sides have boxes to suppress; untrained weights where there is none.
    """

    settings: Mapping[int, Mapping[str, Any]]
    speed: SpeedRequest | None
    images: int = 16
    reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class EarlyValidation:
    """Epochs that are validated on a part of the split.

    Attributes:
        images: How many, evenly chosen; all where there are no more.
        epochs: The first so many epochs.
    """

    images: int
    epochs: int


@dataclass(frozen=True, kw_only=True)
class WarmRequest:
    """The study's shared warm start: one training of the base, from which every trial continues.

    Attributes:
        folder: Absolute path of its folder; trial 0 trains it there, all others read its last checkpoint.
        epochs: Its epochs.
        seed: Of its training, ``None`` for the trial's own.
    """

    folder: str
    epochs: int
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrialRequest:
    """One trial, as plain data that survives JSON.

    Attributes:
        number: The trial's number; 0 is the baseline.
        base: ``mmdet::path/in/configs.py`` or the path of a config file.
        knobs: Canonical design, ``{"slimhead.levels": [0], ...}``; empty for the baseline.
        data: The data set.
        folder: Absolute path of the trial's own folder: config, checkpoints, log.
        epochs: Epochs of a trial that is never stopped.
        batch: Images a training step, ``None`` for the base config's.
        lr: Learning rate, ``None`` for the base config's, scaled to the batch where the base says how.
        weights: ``scratch``, ``baseline`` (the shared warm start in ``warm``) or the path of a checkpoint.
        backbone: ``auto``, ``none`` or a path: where the backbone's pretrained weights come from.
        seed: Seeds weights, data order and augmentation.
        device: ``cpu`` or ``cuda``.
        dtype: ``float32``, ``bfloat16`` or ``float16``: what the detector computes in when it predicts, so what is
            validated and timed.
        train_dtype: The same for its training: mixed precision, or ``float32``; ``None`` for the base config's, which
            is ``float32`` on a CPU.
        threads: CPU threads of this trial.
        workers: Data loader processes.
        speed: ``None`` when the latency of this architecture is known already.
        count_size: Height and width in px for which MACs are counted.
        sweep: What to measure after training, ``None`` where the design has no inference knobs.
        warm: Where the shared warm start is, ``None`` when ``weights`` is not ``baseline``.
        lane: Where this start runs: ``any`` does everything. Where a study has a speed node, what is measured is
            measured in the ``speed`` lane alone and what is trained in the ``train`` lane alone.
        team: The processes that train it, ``None`` for one.
        heartbeat: Seconds that a start may be without a step before it is killed, ``None`` for any.
        val_batch: Images a validation batch, ``None`` for the usual ones; the trainer lowers it when memory was short.
        early_val: Epochs that are validated on fewer images, ``None`` for none; their reports have ``val_images``.
    """

    number: int
    base: str
    knobs: Mapping[str, Any]
    data: DataRequest
    folder: str
    epochs: int
    batch: int | None = None
    lr: float | None = None
    weights: str = "scratch"
    backbone: str = "auto"
    seed: int = 0
    device: str = "cpu"
    dtype: Dtype = "float32"
    train_dtype: Dtype | None = None
    threads: int = 1
    workers: int = 0
    speed: SpeedRequest | None = None
    count_size: tuple[int, int] = (800, 1344)
    sweep: SweepRequest | None = None
    warm: WarmRequest | None = None
    lane: Lane = "any"
    team: TeamRequest | None = None
    heartbeat: float | None = None
    val_batch: int | None = None
    early_val: EarlyValidation | None = None

    def to_json(self) -> dict[str, Any]:
        """Gives the request as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrialRequest:
        """Reads what ``to_json`` wrote, also after a trip through JSON text."""
        data = dict(value["data"])
        data["classes"], data["size"] = tuple(data["classes"]), tuple(data["size"])
        sweep = value.get("sweep")
        if sweep is not None:
            settings = {int(index): knobs for index, knobs in sweep["settings"].items()}
            sweep = SweepRequest(**{**sweep, "settings": settings, "speed": _speed(sweep["speed"])})
        rest = {
            **value,
            "data": DataRequest(**data),
            "speed": _speed(value["speed"]),
            "count_size": tuple(value["count_size"]),
            "sweep": sweep,
            "warm": WarmRequest(**value["warm"]) if value.get("warm") else None,
            "team": TeamRequest(**value["team"]) if value.get("team") else None,
            "early_val": EarlyValidation(**value["early_val"]) if value.get("early_val") else None,
        }
        return cls(**rest)


def _speed(value: Mapping[str, Any] | None) -> Any:
    return None if value is None else SpeedRequest(**{**value, "size": tuple(value["size"])})


@dataclass(frozen=True, kw_only=True)
class TrialReport:
    """One message of a running trial.

    Attributes:
        phase: ``warm`` (of trial 0, after each epoch of the shared warm start, before all others; ``attrs`` has
            ``warm_epochs`` after its last one), ``counted`` (MACs and parameters), ``timed`` (latency; absent when the
            request has no ``speed``), ``epoch`` (after each epoch's validation, its checkpoint being on disk),
            ``swept`` (one setting of the inference knobs on the trained detector; ``attrs`` has its ``index``),
            ``done`` (the last one). Where a part of the network is learned first: ``learned`` after the first phase,
            before ``counted`` and ``timed``, which are then those of the settled network; ``attrs`` has ``scales`` and
            ``learning_epochs``.
        epoch: Finished epochs, 0 before the first.
        metrics: Figures that are new in this message, by the names of ``TrialRecord.metrics``.
        seconds: Wall time of this start of the trial so far.
        attrs: Anything else worth keeping; JSON types.
    """

    phase: Phase
    epoch: int
    metrics: Mapping[str, float]
    seconds: float = 0.0
    attrs: Mapping[str, Any] = field(default_factory=dict)


Report = Callable[[TrialReport], None]


class Trainer(Protocol):
    """Runs one trial to its end, from its newest checkpoint where there is one.

    Continuing from a checkpoint, it reports ``counted`` and ``timed`` again only if asked to time, and repeats the
    ``epoch`` report of the checkpoint it continues from, so that a decision that died with the driver is made again.

    Two functions beside it in its module are optional: ``preload()`` imports what a trial needs, called once a process,
    and ``follow(request)`` is what the other workers of a trial run (``trainers.team.follow``).
    """

    def __call__(self, request: TrialRequest, report: Report) -> None:
        """Runs the trial.

        Raises:
            TrialFailed: The trial cannot give a result; the message says why.
            TrialInterrupted: It is to be started again.
            MachineUnfit: Nothing can go on here.
            LaneNeeded: It must go on in another lane.
            StopTrial: ``report`` raised it.
        """
