"""Where the backbone's pretrained weights come from, and what changes when there are none."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spaces.errors import UserError


def resolve_backbone(model: dict[str, Any], source: str) -> str:
    """Settles the backbone's pretrained weights, in place.

    Layers without pretrained weights must learn, so without them nothing stays frozen: neither stages nor the
    statistics and scales of the batch norms.

    Args:
        model: ``model`` part of a config.
        source: ``auto`` (keep what is on this machine already, drop the rest), ``none`` or the path of a checkpoint.

    Returns:
        What was done, in words.

    Raises:
        UserError: ``source`` is a path that does not hold weights.
    """
    backbone, parts = model["backbone"], _parts(model)
    if source not in ("auto", "none"):
        if not Path(source).is_file():
            raise UserError(f"backbone: must be auto, none or the path of a checkpoint, but {source} is no file.")
        old = next(_pretrained(backbone), {})
        prefix = old.get("prefix") or _prefix(source)
        for part, where in zip(parts, (prefix, prefix and "roi_head.shared_head."), strict=False):
            _drop(part)
            part["init_cfg"] = {"type": "Pretrained", "checkpoint": source, **({"prefix": where} if where else {})}
        return f"pretrained from {source}"
    wanted = [str(one["checkpoint"]) for one in _pretrained(backbone)]
    if not wanted:
        # Nothing is known to be missing: a base without pretrained weights is left as its author made it.
        return "as the base says, without pretrained weights"
    local = _on_this_machine(wanted[-1]) if source == "auto" else None
    if local is not None:
        for part in parts:
            for one in _pretrained(part):
                one["checkpoint"] = str(local)
        return f"pretrained from {local}"
    changed: dict[str, None] = {}
    for part in parts:
        _drop(part)
        changed.update(dict.fromkeys(_unfreeze(part)))
    why = "asked for" if source == "none" else f"{wanted[-1]} is not on this machine"
    return f"from scratch ({why}); set {', '.join(changed) or 'nothing'}"


def _parts(model: dict[str, Any]) -> list[dict[str, Any]]:
    """The backbone, and its fifth stage where that stands in the RoI head (C4 detectors)."""
    shared = (model.get("roi_head") or {}).get("shared_head")
    return [model["backbone"], *([shared] if isinstance(shared, dict) else [])]


def _pretrained(backbone: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The ``Pretrained`` entries of a backbone's ``init_cfg``."""
    init = backbone.get("init_cfg")
    for one in [init] if isinstance(init, dict) else (init or []):
        if one.get("type") == "Pretrained":
            yield one
    if backbone.get("pretrained"):
        yield {"type": "Pretrained", "checkpoint": backbone["pretrained"]}


def _drop(backbone: dict[str, Any]) -> None:
    init = backbone.pop("init_cfg", None)
    backbone.pop("pretrained", None)
    if isinstance(init, list):
        rest = [one for one in init if one.get("type") != "Pretrained"]
        if rest:
            backbone["init_cfg"] = rest
    elif init and init.get("type") != "Pretrained":
        backbone["init_cfg"] = init


def _unfreeze(backbone: dict[str, Any]) -> list[str]:
    """Lets every layer of a backbone learn, in place; gives what was set."""
    known = _arguments(str(backbone["type"]))
    changed = []
    for key, value in (("frozen_stages", -1), ("norm_eval", False)):
        if key in known or key in backbone:
            backbone[key] = value
            changed.append(f"{key}={value}")
    norm = backbone.get("norm_cfg")
    if isinstance(norm, dict) and norm.get("requires_grad") is False:
        norm["requires_grad"] = True
        changed.append("norm_cfg.requires_grad=True")
    return changed


def _arguments(type_name: str) -> set[str]:
    """All constructor arguments of a registered backbone, those of its parent classes too.

    ResNet's ``norm_eval`` is true by default, so a config that does not name it freezes the statistics as well.
    """
    import mmdet.models  # noqa: F401  (registers the backbones)
    from mmdet.registry import MODELS

    cls = MODELS.get(type_name)
    if cls is None:
        return set()
    return {
        name
        for parent in cls.__mro__
        if "__init__" in vars(parent) and parent is not object
        for name in inspect.signature(parent.__init__).parameters
    }


def _on_this_machine(checkpoint: str) -> Path | None:
    """The local file of a checkpoint's name, without asking the network."""
    if "://" not in checkpoint:
        path = Path(checkpoint).expanduser()
        return path if path.is_file() else None
    cache = Path(_torch_home()) / "hub" / "checkpoints"
    scheme, _, name = checkpoint.partition("://")
    if scheme in ("http", "https"):
        patterns = [name.rsplit("/", 1)[-1]]
    elif scheme == "torchvision":
        # The cached file is named after the hash of its content: resnet50-0676ba61.pth.
        patterns = [f"{name}-*.pth"]
    elif scheme in ("open-mmlab", "openmmlab", "mmcls"):
        patterns = [url.rsplit("/", 1)[-1] for url in _openmmlab_urls(name)]
    else:
        return None
    for pattern in patterns:
        found = sorted(cache.glob(pattern))
        if found:
            return found[0]
    return None


def _openmmlab_urls(name: str) -> list[str]:
    import mmengine

    folder = Path(str(mmengine.__file__)).parent / "hub"
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [table[name] for table in tables if isinstance(table.get(name), str)]


def _torch_home() -> str:
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return os.path.expanduser(os.environ.get("TORCH_HOME", os.path.join(cache, "torch")))


def _prefix(path: str) -> str:
    """``backbone.`` when a checkpoint is that of a whole detector.

    Raises:
        UserError: The file holds no weights.
    """
    from trainers.weights import read_weights

    names = read_weights(path, who="backbone")
    return "backbone." if any(name.startswith("backbone.") for name in names) else ""
