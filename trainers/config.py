"""The complete config of a trial: base + design patch + data + schedule.

What comes out is a flat config of plain mmdet: ``tools/train.py`` of mmdet would train it too.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config

from spaces.errors import UserError
from trainers import rotated
from trainers.contract import DataRequest, TrialRequest
from trainers.pretrained import resolve_backbone
from trainers.schedule import rescale, scaled_lr

BASES = Path(__file__).parent / "bases"

# mmengine's wrapper of an optimizer that trains in mixed precision.
AMP = "AmpOptimWrapper"

# The figures of pycocotools that are reported. With at most 100 boxes an image, AR at 300 and 1,000 equal that at 100.
FIGURES = ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l", "AR@100", "AR_s@1000", "AR_m@1000", "AR_l@1000"]

# Parts of a detector whose ``num_classes`` does not count the classes of the data set.
_OTHER_CLASSES = ("rpn_head", "backbone", "neck", "semantic_head", "data_preprocessor")


@dataclass(frozen=True)
class DataFacts:
    """What the config needs to know of the data.

    Attributes:
        train_images: Images that are trained on: those with a box of the wanted classes.
        val_images: Images of the validation split.
        val_one_size: Whether all validation images have one size, so that they can be batched without padding.
    """

    train_images: int
    val_images: int
    val_one_size: bool


def read_facts(data: DataRequest) -> DataFacts:
    """Reads the facts of a data set from its two annotation files.

    Raises:
        UserError: A file is missing or not COCO json, or there is nothing to train on.
    """
    train, val = _read_json(data.train_annotations), _read_json(data.val_annotations)
    wanted = {category["id"] for category in train["categories"] if category["name"] in data.classes}
    used = {box["image_id"] for box in train["annotations"] if box["category_id"] in wanted}
    trained = sum(image["id"] in used for image in train["images"])
    if not trained or not val["images"]:
        raise UserError(
            f"data: each split must have images, the training split with boxes of {', '.join(data.classes)}, but got "
            f"{trained} images to train on in {data.train_annotations} and {len(val['images'])} in "
            f"{data.val_annotations}."
        )
    sizes = {(image["width"], image["height"]) for image in val["images"]}
    return DataFacts(train_images=trained, val_images=len(val["images"]), val_one_size=len(sizes) == 1)


def load_base(base: str, *, trained: bool = False) -> Config:
    """Loads a base config.

    Args:
        base: ``mmdet::gfl/gfl_r50_fpn_1x_coco.py`` (shipped in mmdet), ``headway::gfl_tiny`` (shipped in
            ``trainers/bases``), ``mmrotate::rotated_fcos/rotated-fcos-le90_r50_fpn_1x_dota.py`` (where mmrotate is
            installed) or the path of a file.
        trained: Whether trials are to train it.

    Raises:
        UserError: There is no such config, or it cannot be read, or it has no detector in it; it needs mmrotate, which
            cannot be imported; or trials cannot train it.
    """
    path = _find_base(base)
    try:
        config = Config.fromfile(str(path), import_custom_modules=False)
    except Exception as error:  # a config is a Python program: anything may come out of it
        if rotated.SCOPE in str(error):
            rotated.require(base)  # a file that builds on one of mmrotate's
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"base: must be a readable mmdet config, but {base} ({path}) gives {reason}") from error
    model = config.get("model")
    if not isinstance(model, Mapping) or "type" not in model or "backbone" not in model:
        raise UserError(f"base: must hold a detector (model with type and backbone), but {base} ({path}) has none.")
    if rotated.is_rotated(config):
        rotated.prepare(config, base)
        if trained:
            rotated.refuse_training(config, base)
    return config


def trial_config(request: TrialRequest, facts: DataFacts | None = None) -> Config:
    """Makes the complete config of a trial.

    Args:
        request: The trial.
        facts: Of its data; read from the files when not given.

    Returns:
        A flat config. Its ``headway`` entry tells what was done: base, knobs, where the backbone's weights come from.

    Raises:
        UserError: The base or the data cannot be used.
    """
    from spaces import patching

    facts = facts or read_facts(request.data)
    base = load_base(request.base, trained=True)
    batch = request.batch or batch_of(base)
    model = plain(base["model"])
    set_classes(model, len(request.data.classes))
    backbone = resolve_backbone(model, request.backbone)
    schedule = _schedule(request, base, facts, batch)
    optimizer = str(schedule["optim_wrapper"]["optimizer"]["type"])
    keys = patching.optimizer_keys(model, request.knobs, optimizer)
    if keys:
        paramwise = schedule["optim_wrapper"].setdefault("paramwise_cfg", {})
        paramwise["custom_keys"] = {**paramwise.get("custom_keys", {}), **keys}
    model = patching.compute_in(patching.apply(model, request.knobs), request.dtype)

    config: dict[str, Any] = {
        "default_scope": "mmdet",
        "model": model,
        **_data(request, base, facts, batch),
        **schedule,
        **_runtime(request),
    }
    custom_imports = [
        *(base.get("custom_imports") or {}).get("imports", []),
        *patching.imports(request.knobs, request.dtype),
    ]
    if custom_imports:
        config["custom_imports"] = {"imports": custom_imports, "allow_failed_imports": False}
    if base.get("custom_hooks"):
        config["custom_hooks"] = plain(base["custom_hooks"])
    config["headway"] = {
        "base": request.base,
        "knobs": dict(request.knobs),
        "backbone": backbone,
        "trial": request.number,
    }
    # As text it is indented, and not put into PEP 8, which takes longer than to build the detector.
    return Config(config, format_python_code=False)


def batch_of(base: Config) -> int:
    """The images of a training step of a base; 2 where it does not say."""
    return int((base.get("train_dataloader") or {}).get("batch_size", 2))


def set_classes(model: dict[str, Any], count: int) -> int:
    """Sets ``num_classes`` in every head of a detector, in place, lists and nested RoI heads included.

    Returns:
        How many places were set.
    """
    places = 0
    for key, value in model.items():
        if key == "num_classes":
            model[key] = count
            places += 1
        elif isinstance(value, dict) and key not in _OTHER_CLASSES:
            places += set_classes(value, count)
        elif isinstance(value, (list, tuple)):
            places += sum(set_classes(item, count) for item in value if isinstance(item, dict))
    return places


def plain(value: Any) -> Any:
    """Copies a part of a config as dicts, lists and tuples without mmengine's classes."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    return copy.deepcopy(value)


def base_names() -> list[str]:
    """All bases that ship with mmdet, Headway and an installed mmrotate, as ``load_base`` takes them."""
    ours = [f"headway::{path.stem}" for path in BASES.glob("*.py") if path.stem != "__init__"]
    shipped = [
        f"mmdet::{path.relative_to(_mmdet_configs()).as_posix()}"
        for path in _mmdet_configs().rglob("*.py")
        if "_base_" not in path.parts
    ]
    folder = rotated.configs()
    files = folder.rglob("*.py") if folder else ()
    turned = [
        f"{rotated.SCOPE}::{path.relative_to(folder or '').as_posix()}" for path in files if "_base_" not in path.parts
    ]
    return sorted(ours) + sorted(shipped) + sorted(turned)


def _find_base(base: str) -> Path:
    package, _, name = base.rpartition("::")
    if package and (Path(name).is_absolute() or ".." in Path(name).parts):
        raise UserError(f"base: must name a config inside {package}, but got {base}; a file goes by its path alone.")
    if package == "mmdet":
        path = _mmdet_configs() / name
    elif package == "headway":
        path = BASES / (name if name.endswith(".py") else f"{name}.py")
    elif package == rotated.SCOPE:
        folder = rotated.configs()
        if folder is None:
            rotated.require(base)
        path = (folder or Path()) / name
    elif not package:
        path = Path(base).expanduser()
    else:
        raise UserError(
            "base: must start with mmdet:: or headway:: (or mmrotate::, with the extra 'rotated') or be the path of a "
            f"file, but got {base}."
        )
    if path.is_file():
        return path
    if package:
        near = get_close_matches(base, base_names(), n=3, cutoff=0.5)
    else:
        siblings = [str(item) for item in path.parent.glob("*.py")] if path.parent.is_dir() else []
        near = get_close_matches(str(path), siblings, n=3, cutoff=0.5)
    hint = f" Near to it: {', '.join(near)}." if near else " 'mmdet::' names mmdet's own configs."
    raise UserError(f"base: must be an existing config, but {base} is none.{hint}")


def _mmdet_configs() -> Path:
    """The folder of the configs inside the installed mmdet, found without importing it."""
    spec = importlib.util.find_spec("mmdet")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("base: mmdet is not installed; run 'make setup'.")
    return Path(next(iter(spec.submodule_search_locations))) / ".mim" / "configs"


def _read_json(path: str) -> dict[str, Any]:
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"data: must be a readable COCO json, but {path} gives {error}.") from error
    missing = [key for key in ("images", "annotations", "categories") if key not in value]
    if missing:
        raise UserError(f"data: a COCO json has images, annotations and categories, but {path} lacks {missing[0]}.")
    return dict(value)


def _data(request: TrialRequest, base: Config, facts: DataFacts, batch: int) -> dict[str, Any]:
    data = request.data
    mask = _with_mask(base)
    resize = {"type": "Resize", "scale": tuple(data.size), "keep_ratio": True}
    # Boxes are needed in validation as well: without them mmdet's `rescale` has no ground truth, and `ignore` no flags.
    load = {"type": "LoadAnnotations", "with_bbox": True, **({"with_mask": True} if mask else {})}
    meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    train: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}, load, resize, *_flip(base), {"type": "PackDetInputs"}]
    val: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        resize,
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs", "meta_keys": meta},
    ]
    workers: dict[str, Any] = {"num_workers": request.workers}
    if request.workers:
        # Forked workers inside Ray's threads may inherit a held lock; new ones cost seconds, so they are kept.
        workers.update(persistent_workers=True, multiprocessing_context="forkserver")

    def dataset(annotations: str, images: str, pipeline: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "type": "CocoDataset",
            "metainfo": {"classes": tuple(data.classes)},
            "ann_file": str(annotations),
            "data_prefix": {"img": str(images)},
            "pipeline": pipeline,
            # To share between processes costs a whole garbage collection a data set; with one there is nobody to share.
            "serialize_data": bool(request.workers),
            **more,
        }

    val_loader = {
        # Images of one size need no padding, and only then does a batch give each the result it gets alone.
        "batch_size": request.val_batch or (min(batch, 8) if facts.val_one_size else 1),
        **workers,
        "drop_last": False,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": dataset(data.val_annotations, data.val_images, val, test_mode=True),
    }
    evaluator = {
        "type": "CocoMetric",
        "ann_file": str(data.val_annotations),
        "metric": "bbox",
        "metric_items": list(FIGURES),
        "format_only": False,
    }
    return {
        "train_dataloader": {
            "batch_size": batch,
            **workers,
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "batch_sampler": {"type": "AspectRatioBatchSampler"},
            "dataset": dataset(
                data.train_annotations, data.train_images, train, filter_cfg={"filter_empty_gt": True, "min_size": 1}
            ),
        },
        "val_dataloader": val_loader,
        "test_dataloader": copy.deepcopy(val_loader),
        # The same figures, six to ten times as fast; what is exported needs mmdet alone.
        "val_evaluator": {**copy.deepcopy(evaluator), "type": "FasterCocoMetric"},
        "test_evaluator": copy.deepcopy(evaluator),
    }


def _pipeline(base: Config) -> list[Mapping[str, Any]]:
    """The training pipeline of a base, from inside whatever wraps its data set."""
    dataset = (base.get("train_dataloader") or {}).get("dataset") or {}
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    return list(dataset.get("pipeline") or ())


def _with_mask(base: Config) -> bool:
    """Whether the base trains with masks (CondInst, Mask R-CNN)."""
    return any(bool(step.get("with_mask")) for step in _pipeline(base))


def _flip(base: Config) -> list[dict[str, Any]]:
    """The base's own flip: where it has a pipeline without one, a mirrored object is another one (digits, letters)."""
    pipeline = _pipeline(base)
    if not pipeline:
        return [{"type": "RandomFlip", "prob": 0.5}]
    return [plain(step) for step in pipeline if step.get("type") == "RandomFlip"]


def _schedule(request: TrialRequest, base: Config, facts: DataFacts, batch: int) -> dict[str, Any]:
    iterations = -(-facts.train_images // batch)
    loop = base.get("train_cfg") or {}
    by_epoch = "max_iters" not in loop
    length = int(loop.get("max_epochs", 12) if by_epoch else loop["max_iters"])
    base_batch = int((base.get("auto_scale_lr") or {}).get("base_batch_size", 0))

    optim = plain(base.get("optim_wrapper") or {"type": "OptimWrapper"})
    optimizer = optim.setdefault("optimizer", {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4})
    optimizer["lr"] = request.lr if request.lr is not None else scaled_lr(optimizer["lr"], batch, base_batch)
    _set_dtype(optim, request)
    early = request.early_val
    return {
        "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": request.epochs, "val_interval": 1},
        "val_cfg": {"type": "ValLoop"} if early is None else {"type": "EarlyValLoop", **asdict(early)},
        "test_cfg": {"type": "TestLoop"},
        "optim_wrapper": optim,
        "param_scheduler": rescale(
            plain(base.get("param_scheduler")),
            base_length=length,
            base_by_epoch=by_epoch,
            epochs=request.epochs,
            iterations=iterations,
        ),
    }


def _set_dtype(optim: dict[str, Any], request: TrialRequest) -> None:
    """Sets what is trained in, in place.

    Raises:
        UserError: The base's optimizer wrapper knows float32 only.
    """
    given = optim.get("type", "OptimWrapper")  # a class where the base is written in Python's imports
    kind = getattr(given, "__name__", str(given)).rpartition(".")[2]
    wanted = request.train_dtype
    if kind not in ("OptimWrapper", AMP):
        if wanted is not None:
            raise UserError(
                f"training.dtype: needs a base whose optim_wrapper is OptimWrapper or {AMP}, but {request.base} has "
                f"{kind}. Choose null, the base config's own."
            )
        return
    optim["type"] = kind
    if wanted == "float32" or (wanted is None and request.device == "cpu"):
        optim["type"] = "OptimWrapper"
        for key in ("loss_scale", "dtype", "use_fsdp"):
            optim.pop(key, None)
    elif wanted is not None:
        optim.update(type=AMP, dtype=wanted)


def _runtime(request: TrialRequest) -> dict[str, Any]:
    return {
        "default_hooks": {
            "timer": {"type": "IterTimerHook"},
            "logger": {"type": "LoggerHook", "interval": 50},
            "param_scheduler": {"type": "ParamSchedulerHook"},
            "checkpoint": {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 2},
            "sampler_seed": {"type": "DistSamplerSeedHook"},
        },
        "env_cfg": {"cudnn_benchmark": False, "mp_cfg": {"opencv_num_threads": 0}, "dist_cfg": {"backend": "nccl"}},
        "visualizer": {"type": "DetLocalVisualizer", "vis_backends": []},
        "log_processor": {"type": "LogProcessor", "window_size": 50, "by_epoch": True},
        "log_level": "INFO",
        "load_from": None,
        "resume": False,
        "randomness": {"seed": request.seed},
        "work_dir": str(request.folder),
        "experiment_name": f"headway_{Path(request.folder).name}_{request.number}",
    }
