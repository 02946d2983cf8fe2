"""The sections of a study file as typed data, and what each must hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from analysis.record import Objective
from search.study.figures import ACCURACIES, COSTS, Constraint
from spaces.errors import choices
from trainers.contract import Dtype

# What the paths of data begin with in a study file that is made to be filled in.
PLACEHOLDER = "path/to/"

# Strict: YAML tells numbers from text and from true and false, so a "8" or a true is a mistake.
Positive = Annotated[int, Field(gt=0, strict=True)]
# A side in px: heads look at strides up to 32 and more.
Side = Annotated[int, Field(ge=32, strict=True)]


class _Section(BaseModel):
    # The text below a field is its description, which the reference of the study file prints (docs/generate.py).
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=False, allow_inf_nan=False, use_attribute_docstrings=True
    )


class SplitSection(_Section):
    """One split in COCO format."""

    annotations: str
    """COCO json, relative to the study file."""
    images: str
    """Folder that its file names are relative to, itself relative to the study file."""


class DigitsSection(_Section):
    """The embedded data set: handwritten digits in scenes (``trainers.digits``)."""

    train: Positive = 320
    """Scenes to train on."""
    val: Positive = 80
    """Scenes to validate on, with digits that no training scene has."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    """Seed of the scenes."""


class DataSection(_Section):
    """The data set: ``train`` and ``val`` of the user's own, or the embedded ``digits``."""

    train: SplitSection | None = None
    """The split that is trained on."""
    val: SplitSection | None = None
    """The split that accuracy is measured on."""
    digits: DigitsSection | None = None
    """The embedded data set instead; ``{}`` for its defaults."""
    classes: tuple[str, ...] | None = None
    """Names of the classes to detect; ``null`` for all that the annotations list."""
    size: tuple[Side, Side]
    """Width and height in px that images are resized into, keeping their aspect ratio."""

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        if self.digits is None and (self.train is None or self.val is None):
            raise ValueError("must have both train and val, or digits")
        if self.digits is not None and (self.train or self.val or self.classes):
            raise ValueError("must have either digits or train, val and classes, not both")
        return self


class ObjectiveSection(_Section):
    """One objective. The first of a study is an accuracy, one or more others follow."""

    metric: str
    """What is measured."""
    direction: Literal["maximize", "minimize"]
    """``maximize`` for accuracies, ``minimize`` for costs; written out, so that a study file says it."""

    @model_validator(mode="after")
    def _known(self) -> ObjectiveSection:
        natural = {**dict.fromkeys(ACCURACIES, "maximize"), **dict.fromkeys(COSTS, "minimize")}
        if self.metric not in natural:
            raise ValueError(f"unknown metric '{self.metric}'; the choices are {choices(natural)}")
        if natural[self.metric] != self.direction:
            raise ValueError(f"{self.metric} must have direction {natural[self.metric]}, but got {self.direction}")
        return self


class BudgetSection(_Section):
    """What may be spent. Only ``trials``, ``hours`` and ``gpu_hours`` may grow later (``--extend``)."""

    trials: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 64
    """The baseline and every design whose training begins; INFEASIBLE designs are free."""
    epochs: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 12
    """Epochs of a trial that is trained to the end."""
    hours: Annotated[float, Field(gt=0, strict=True)] | None = None
    """Run time of the command after which no further trial is started; ``null`` for no limit."""
    gpu_hours: Annotated[float, Field(gt=0, strict=True)] | None = None
    """GPU hours of all trials together: none is started that, with what runs, would need more than is left; what runs
    goes on to its end."""


class DesignSection(_Section):
    """A design that is tried as it stands."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    """Name for people."""
    knobs: dict[str, dict[str, Any] | None]
    """Knobs by family, ``{}`` for a family's defaults."""


class RungsSection(_Section):
    """Where trials are compared and the weaker ones stop; ``rungs: null`` stops nobody."""

    first: Positive = 1
    """Epoch of the first rung; the others are at ``first`` times ``factor``, times ``factor`` again, and so on."""
    factor: Annotated[int, Field(ge=2, strict=True)] = 3
    """About one trial in ``factor`` goes on."""
    method: Literal["like_speed", "mo_asha"] = "like_speed"
    """``like_speed`` compares the accuracy of designs of like cost; ``mo_asha`` ranks all designs by non-dominated
    fronts (``search.rungs``)."""
    val_images: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Images of the validation split, evenly chosen, that epochs before the last are validated on; ``null`` for all."""


class SamplerSection(_Section):
    """Who proposes."""

    name: Literal["tpe", "nsgaii", "nsgaiii", "gp", "random", "grid"] = "tpe"
    """``grid`` tries every design of a finite space once; ``gp`` needs the same knobs in every design."""
    startup: Annotated[int, Field(ge=1, strict=True)] = 12
    """Random proposals before ``tpe`` or ``gp`` takes over; the size of a generation of ``nsgaii`` and ``nsgaiii``."""
    known: Annotated[bool, Field(strict=True)] = False
    """Try the papers' best settings first."""
    earlier: tuple[str, ...] = ()
    """Studies (name or folder) whose COMPLETE designs the sampler is told, relative to their own baselines."""

    @field_validator("earlier")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"must name each study once, but got {choices(value)}")
        return value


class WeightsSection(_Section):
    """Where weights start from."""

    from_: str = Field("scratch", alias="from")
    """``scratch``, a checkpoint, or ``baseline``: the base is trained once, and every trial, the baseline among them,
    continues from there."""
    epochs: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    """Epochs of that training, with ``from: baseline`` only; ``null`` for the budget's."""
    backbone: str = "auto"
    """``auto`` takes the base's pretrained weights where they lie on this machine and goes without (and unfrozen) where
    not; ``none`` goes without; or a checkpoint."""

    @model_validator(mode="after")
    def _epochs_of_what(self) -> WeightsSection:
        if self.epochs is not None and self.from_ != "baseline":
            raise ValueError(
                f"must have epochs only with from: baseline, whose training they are of, but from is {self.from_}"
            )
        return self


class TrainingSection(_Section):
    """What of the base config's training is replaced."""

    batch: Positive | None = None
    """Images a step, of all workers together; ``null`` for the base config's."""
    lr: Annotated[float, Field(gt=0, strict=True)] | None = None
    """Learning rate; ``null`` for the base config's, scaled to the batch where the base says how."""
    dtype: Dtype | None = None
    """What detectors compute in while they train. ``bfloat16`` and ``float16`` are mixed precision: weights, their
    updates and losses stay float32; faster on GPUs and on CPUs with AMX. ``null`` for the base config's, which is
    float32 on a CPU."""


class ResourcesSection(_Section):
    """What one trial gets, and how many run side by side; ``auto`` fits this machine or cluster."""

    gpus: Literal["auto"] | Annotated[int, Field(ge=0, strict=True)] = "auto"
    """GPUs of each worker."""
    cpus: Literal["auto"] | Positive = "auto"
    """CPUs of each worker."""
    workers: Positive = 1
    """Processes that train one trial data-parallel."""
    concurrent: Literal["auto"] | Positive = "auto"
    """Trials side by side."""
    heartbeat: Annotated[float, Field(gt=0, strict=True)] | None = 30.0
    """Minutes without a step after which a trial is killed and continues from its checkpoint; ``null`` lets it hang."""


class SpeedSection(_Section):
    """How latency is measured."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What is timed; ``auto`` is a GPU where trials train on one."""
    size: tuple[Side, Side] | None = None
    """Height and width in px of the input that is timed and counted; ``null`` for the data's size, padded to a multiple
    of 32."""
    batch: Positive = 1
    """Images a pass."""
    postprocess: bool = True
    """Whether decoding and NMS are timed, too."""
    dtype: Dtype = "float32"
    """What detectors compute in when they are validated, timed and run from a bundle (torch's autocast; boxes are
    decoded in float32). What they train in is ``training.dtype``."""
    pairs: Annotated[int, Field(ge=3, strict=True)] = 9
    """Least number of interleaved pairs, design and baseline."""
    images: Positive = 16
    """Validation images that are measured where the latency depends on the image; noise is measured elsewhere."""
    seconds: Annotated[float, Field(gt=0, strict=True)] = 5.0
    """Pairs are added until a measurement has taken this long."""
    foreign: Literal["refuse", "record"] = "refuse"
    """Where a process that is not Headway's uses the device: ``refuse`` waits for two minutes and then ends the run,
    ``record`` measures and notes it."""


class TrackingSection(_Section):
    """MLflow."""

    uri: str | None = None
    """Tracking URI; ``null`` for an SQLite store in the study's folder."""
    experiment: str | None = None
    """Name of the experiment; ``null`` for the study's name."""


class Study(_Section):
    """A study file. Paths are absolute after ``load``."""

    name: str
    """Names the folder ``studies/NAME``, the MLflow experiment and the study in the store."""
    base: str
    """``mmdet::PATH`` (shipped in mmdet), ``headway::NAME`` (shipped here) or a config file, which is executed."""
    data: DataSection
    """The data set."""
    space: dict[str, dict[str, Any] | None]
    """Families that vary, by name; ``{}`` for all knobs of a family, or the knobs that are narrowed."""
    designs: tuple[DesignSection, ...] = ()
    """Exactly these are tried, in this order, instead of a sampler's proposals; ``space`` may be left out then."""
    objectives: tuple[ObjectiveSection, ...] = (
        ObjectiveSection(metric="bbox_mAP", direction="maximize"),
        ObjectiveSection(metric="latency_ms", direction="minimize"),
    )
    """What is traded off: an accuracy first, then one or more others."""
    constraints: tuple[str, ...] = ()
    """Bounds on figures known before training, ``params_m <= 40`` for instance; what breaks one is INFEASIBLE."""
    budget: BudgetSection = BudgetSection()
    """What may be spent."""
    rungs: RungsSection | None = RungsSection()
    """Where the weaker trials stop."""
    sampler: SamplerSection = SamplerSection()
    """Who proposes."""
    weights: WeightsSection = Field(default_factory=lambda: WeightsSection.model_validate({}))
    """Where weights start from."""
    training: TrainingSection = TrainingSection()
    """What of the base config's training is replaced."""
    resources: ResourcesSection = ResourcesSection()
    """What a trial gets."""
    speed: SpeedSection = SpeedSection()
    """How latency is measured."""
    tracking: TrackingSection = TrackingSection()
    """MLflow."""
    storage: str | None = None
    """SQLAlchemy URL of the store, PostgreSQL or MySQL; ``null`` for SQLite in the study's folder."""
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    """Seed of everything: proposals, initial weights, the order of the data."""

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", value):
            raise ValueError(f"must be 1 to 64 letters, digits, '-' or '_' and begin with neither sign: {value!r}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, raw: Any) -> Any:
        """Lets a list of designs stand for the space and for the number of trials."""
        designs = raw.get("designs") if isinstance(raw, Mapping) else None
        if not isinstance(designs, (list, tuple)) or not designs:
            return raw
        filled = {**raw, "space": raw.get("space") or {}, "budget": raw.get("budget") or {}}
        if isinstance(filled["budget"], Mapping):
            filled["budget"] = {"trials": 1 + len(designs), **filled["budget"]}
        return filled

    @field_validator("designs")
    @classmethod
    def _names(cls, value: tuple[DesignSection, ...]) -> tuple[DesignSection, ...]:
        names = [design.name for design in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"must have names of their own, but got {choices(twice)} twice")
        return value

    @field_validator("budget")
    @classmethod
    def _room(cls, value: BudgetSection, info: ValidationInfo) -> BudgetSection:
        designs = info.data.get("designs") or ()
        if designs and value.trials <= len(designs):
            raise ValueError(
                f"must have trials of {1 + len(designs)} or more, the baseline and {len(designs)} designs, "
                f"but got {value.trials}"
            )
        return value

    @field_validator("objectives")
    @classmethod
    def _two_kinds(cls, value: tuple[ObjectiveSection, ...]) -> tuple[ObjectiveSection, ...]:
        metrics = [objective.metric for objective in value]
        if len(set(metrics)) != len(metrics):
            raise ValueError(f"must not name a metric twice, but got {choices(metrics)}")
        if len(value) < 2 or metrics[0] not in ACCURACIES:
            raise ValueError(
                f"must be an accuracy ({choices(ACCURACIES)}) first, then one or more others, "
                f"but got {', '.join(metrics) or 'none'}"
            )
        return value

    @field_validator("constraints")
    @classmethod
    def _parsable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            Constraint.parse(text)
        return value

    @property
    def objective_records(self) -> tuple[Objective, ...]:
        """The objectives as ``analysis`` takes them."""
        return tuple(Objective(item.metric, item.direction) for item in self.objectives)

    @property
    def rung_epochs(self) -> tuple[int, ...]:
        """Epochs at which trials are compared, ascending, all before the last one."""
        if self.rungs is None:
            return ()
        steps = math.ceil(math.log(self.budget.epochs, self.rungs.factor)) + 1 if self.budget.epochs > 1 else 0
        epochs = (self.rungs.first * self.rungs.factor**step for step in range(steps))
        return tuple(epoch for epoch in epochs if epoch < self.budget.epochs)

    @property
    def warm_epochs(self) -> int | None:
        """Epochs of the shared warm start, ``None`` without one."""
        return (self.weights.epochs or self.budget.epochs) if self.weights.from_ == "baseline" else None

    @property
    def heartbeat_seconds(self) -> float | None:
        """Most silence of a trial."""
        minutes = self.resources.heartbeat
        return None if minutes is None else 60 * minutes

    @property
    def speed_size(self) -> tuple[int, int]:
        """Height and width in px of the input that is timed and counted."""
        if self.speed.size is not None:
            return self.speed.size
        width, height = self.data.size
        return (-(-height // 32) * 32, -(-width // 32) * 32)

    @property
    def placeholders(self) -> dict[str, str]:
        """Paths of the data that the user has yet to fill in (``path/to/...``), by key."""
        splits = {"train": self.data.train, "val": self.data.val}
        paths = {
            f"data.{name}.{key}": getattr(split, key)
            for name, split in splits.items()
            if split is not None
            for key in ("annotations", "images")
        }
        return {key: path for key, path in paths.items() if path.startswith(PLACEHOLDER)}

    def dump(self) -> dict[str, Any]:
        """Gives the whole file with defaults filled in, as plain JSON types."""
        told = self.model_dump(mode="json", by_alias=True)
        if not self.designs:
            del told["designs"]
        return told
