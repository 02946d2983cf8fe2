"""The study file as typed data; the one place where a user's input is checked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from analysis.record import Objective
from spaces.errors import UserError, choices, unknown

# Figures that are known before training; constraints and like-speed competition rest on them.
COSTS: Mapping[str, str] = {
    "latency_ms": "latency of a pass in ms",
    "latency_ratio": "latency as a ratio to the baseline's",
    "gmacs": "multiply-adds of the detector in 10^9",
    "head_gmacs": "multiply-adds of the head in 10^9",
    "params_m": "parameters in 10^6",
    "activations_m": "activations in 10^6",
}
ACCURACIES: Mapping[str, str] = {
    "bbox_mAP": "COCO AP over IoU 0.50 to 0.95",
    "bbox_mAP_50": "AP at IoU 0.50",
    "bbox_mAP_75": "AP at IoU 0.75",
    "bbox_mAP_s": "AP of small objects",
    "bbox_mAP_m": "AP of medium objects",
    "bbox_mAP_l": "AP of large objects",
}

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


class Constraint:
    """A bound on a cost, ``params_m <= 40`` for instance."""

    def __init__(self, metric: str, upper: bool, bound: float) -> None:
        self.metric, self.upper, self.bound = metric, upper, bound

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Reads ``METRIC <= NUMBER`` or ``METRIC >= NUMBER``.

        Raises:
            ValueError: It is neither, or the metric is not known before training.
        """
        match = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*([-+.\deE]+)\s*", text)
        try:
            bound = float(match[3]) if match else math.nan
        except ValueError:
            bound = math.nan
        if not match or not math.isfinite(bound):
            raise ValueError(f"must read like 'params_m <= 40', but got '{text}'")
        if match[1] not in COSTS:
            raise ValueError(f"'{text}' must be about a figure known before training: {choices(COSTS)}")
        return cls(match[1], match[2] == "<=", bound)

    def excess(self, metrics: Mapping[str, float]) -> float | None:
        """By how much it is broken, as a share of the bound: above 0 when broken, ``None`` without the metric."""
        if self.metric not in metrics:
            return None
        difference = metrics[self.metric] - self.bound
        return (difference if self.upper else -difference) / (abs(self.bound) or 1.0)

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.upper else '>='} {self.bound:g}"


def load(path: Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Study:
    """Reads a study file; its paths are relative to its own folder, those of ``overrides`` to the working folder.

    Args:
        path: YAML 1.2.
        overrides: ``budget.trials=8`` and the like, the value being YAML; or by key, ``{"budget.trials": 8}``.

    Raises:
        UserError: Anything wrong with the file or an override.
    """
    if not path.is_file():
        raise UserError(f"study file: must exist, but there is no file {path}.")
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    # A date that does not exist is a ValueError.
    except (YAMLError, ValueError, OSError) as error:
        raise UserError(f"{path}: must be YAML: {_one_line(error)}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must be a mapping with name, base, data and space, but got {type(raw).__name__}.")
    _absolute(raw, path.resolve().parent)
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(parse_assignment, overrides)
    for key, value in pairs:
        _override(raw, key, _plain(value))
    _absolute(raw, Path.cwd())
    return parse(raw, str(path))


def build(sections: Mapping[str, Any]) -> Study:
    """Makes a study of what a study file would hold; paths are relative to the working folder.

    Args:
        sections: By key; values are plain Python ones or paths.

    Raises:
        UserError: Anything wrong with them.
    """
    raw = _plain(sections)
    _absolute(raw, Path.cwd())
    return parse(raw, "study")


def parse(raw: Mapping[str, Any], who: str) -> Study:
    """Turns a mapping into a ``Study``.

    Raises:
        UserError: Names each wrong key, its rule and its value.
    """
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        grouped: dict[tuple[str, ...], list[ErrorDetails]] = {}
        for item in error.errors():
            grouped.setdefault(_location(item), []).append(item)
        problems = [_explain(location, items) for location, items in grouped.items()]
        raise UserError(f"{who}: " + "\n  ".join(problems)) from error


def parse_value(text: str) -> Any:
    """Reads the value of ``KEY=VALUE`` on the command line as YAML.

    Raises:
        UserError: It is not YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:
        raise UserError(f"--set: the value must be YAML, but got '{text}'.") from error


def parse_assignment(text: str) -> tuple[str, Any]:
    """Splits ``KEY=VALUE``.

    Raises:
        UserError: There is no ``=`` or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set: must read like KEY=VALUE, but got '{text}'.")
    return key.strip(), parse_value(value)


def _plain(value: Any) -> Any:
    """A copy as YAML would give it: mappings and lists of words, numbers and switches."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _override(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    section: Any = raw
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise UserError(f"--set {key}: '{parent}' must be a section, but it is {section!r}.")
    section[last] = value


def _absolute(raw: dict[str, Any], root: Path) -> None:
    def fix(section: Any, key: str, keep: tuple[str, ...] = ()) -> None:
        if isinstance(section, dict) and isinstance(section.get(key), str) and section[key] not in keep:
            if section[key].startswith(PLACEHOLDER) and key in ("annotations", "images"):
                return
            section[key] = _absolute_path(section[key], root)

    data = raw.get("data")
    if isinstance(data, dict):
        for split in ("train", "val"):
            fix(data.get(split), "annotations")
            fix(data.get(split), "images")
    fix(raw.get("weights"), "from", ("scratch", "baseline"))
    fix(raw.get("weights"), "backbone", ("auto", "none"))
    sampler = raw.get("sampler")
    if isinstance(sampler, dict) and isinstance(sampler.get("earlier"), list):
        # A name is looked for among the studies, a path from here.
        sampler["earlier"] = [
            _absolute_path(word, root) if isinstance(word, str) and os.sep in word else word
            for word in sampler["earlier"]
        ]
    if isinstance(raw.get("base"), str) and "::" not in raw["base"]:
        fix(raw, "base")
    # The same command must find them again from wherever it is given.
    for section, key in ((raw, "storage"), (raw.get("tracking"), "uri")):
        if isinstance(section, dict) and isinstance(section.get(key), str):
            scheme, found, path = section[key].partition(":///")
            if found and scheme.split("+")[0] == "sqlite" and path and not path.startswith(("/", ":", "file:")):
                section[key] = f"{scheme}:///{_absolute_path(path, root)}"


def _absolute_path(text: str, root: Path) -> str:
    try:
        return os.path.normpath((root / Path(text).expanduser()).absolute())
    except RuntimeError as error:  # the ~ of a user who does not exist
        raise UserError(f"study file: '{text}' must be a path, but {str(error).rstrip('.').lower()}.") from error


def _location(item: ErrorDetails) -> tuple[str, ...]:
    parts = [str(part) for part in item["loc"]]
    # pydantic names the members of a union as if they were keys.
    unions = ("literal[", "constrained-", "function-")
    return tuple(part for part in parts if not part.startswith(unions) and part not in ("int", "float", "str"))


# pydantic's own words are about Python's types.
_RULES: Mapping[str, str] = {
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a section of keys and values"),
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "tuple_type": "must be a list",
}


def _explain(location: tuple[str, ...], items: Sequence[ErrorDetails]) -> str:
    """Words what is wrong at one key; a choice of types has one item for each."""
    key = re.sub(r"^designs\.(\d+)", r"designs[\1]", ".".join(location))
    kinds = {item["type"] for item in items}
    if "extra_forbidden" in kinds:
        return _unknown_key(list(location))
    if "missing" in kinds:
        return f"{key}: is required."
    rules = list(dict.fromkeys(_rule(item) for item in items))
    rule = " or ".join([rules[0], *(item.removeprefix("must be ") for item in rules[1:])])
    shown = repr(items[0].get("input"))
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"{key}: {rule}." if "value_error" in kinds else f"{key}: {rule}, but got {shown}."


def _rule(item: ErrorDetails) -> str:
    if item["type"] in _RULES:
        return _RULES[item["type"]]
    if item["type"] in ("too_long", "too_short"):
        return f"must be a list of {item['ctx'].get('max_length', item['ctx'].get('min_length'))}"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"must {message.removeprefix('should ')}" if message.startswith("should ") else message


def _unknown_key(location: list[str]) -> str:
    section: Any = Study
    for part in location[:-1]:
        if part.isdigit():  # an item of a list
            continue
        field = {(info.alias or name): info for name, info in section.model_fields.items()}.get(part)
        annotations = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        nested = [item for item in annotations if isinstance(item, type) and issubclass(item, BaseModel)]
        if not nested:
            break
        section = nested[0]
    known = [info.alias or name for name, info in section.model_fields.items()]
    who = re.sub(r"^designs\.(\d+)", r"designs[\1]", ".".join(location[:-1]))
    return str(unknown(who or "study", location[-1], known))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
