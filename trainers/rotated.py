"""Bases with rotated boxes: mmrotate's configs (extra ``rotated``), what they need and what they cannot do."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from mmengine.config import Config

from spaces.errors import UserError

SCOPE = "mmrotate"
_PARTS = ("backbone", "neck", "bbox_head", "rpn_head")


def is_rotated(config: Mapping[str, Any]) -> bool:
    """Whether a config is one of mmrotate's: by its default scope, or by the scope of a part of the detector."""
    model = config.get("model")
    parts = [model, *model.values()] if isinstance(model, Mapping) else []
    # A head that 'headway patch' composed names its own type second.
    types = [str(part.get(key, "")) for part in parts if isinstance(part, Mapping) for key in ("type", "base_type")]
    return config.get("default_scope") == SCOPE or any(name.startswith(f"{SCOPE}.") for name in types)


def scope(config: Mapping[str, Any]) -> str:
    """The default scope that a config's detector is built in: ``mmrotate`` or ``mmdet``."""
    return SCOPE if config.get("default_scope") == SCOPE else "mmdet"


def configs() -> Path | None:
    """The folder of the configs inside the installed mmrotate, found without importing it; ``None`` without one."""
    spec = importlib.util.find_spec(SCOPE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / ".mim" / "configs"


def require(base: str) -> None:
    """Imports all that mmrotate registers, as its registries do when they build a detector.

    Raises:
        UserError: It cannot be imported.
    """
    try:
        # It prints while it is imported, where a command may print nothing but its JSON document.
        with redirect_stdout(sys.stderr):
            importlib.import_module("mmrotate.utils").register_all_modules(init_default_scope=False)
    except Exception as error:  # it imports torchvision, which raises errors of many types where it does not fit torch
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"base: {base} needs mmrotate, which must be importable, but importing it gives {reason}. Install the "
            "extra with pip install 'headway[rotated]', with a torchvision built for the installed torch."
        ) from error


def prepare(config: Config, base: str) -> None:
    """Checks a config of mmrotate and names the scope of its detector's parts, in place.

    Families compose heads through mmdet's registry, which does not look into mmrotate's for a bare name. What is
    inside the parts is built in the config's default scope and stays as it is.

    Raises:
        UserError: mmrotate cannot be imported, or the detector has two stages.
    """
    require(base)
    model = config["model"]
    if model.get("roi_head") is not None:
        raise UserError(
            f"base: a base with rotated boxes must be a one-stage detector, but {base} is a {model['type']}, a "
            "two-stage one."
        )
    if config.get("default_scope") != SCOPE:
        return
    for part in (model, *(model[name] for name in _PARTS if model.get(name))):
        if "." not in part["type"]:
            part["type"] = f"{SCOPE}.{part['type']}"


def refuse_training(config: Mapping[str, Any], base: str) -> None:
    """Refuses what trials cannot train.

    Raises:
        UserError: The base predicts rotated boxes.
    """
    if is_rotated(config):
        raise UserError(
            f"base: must predict upright boxes to be trained in a study, but {base} predicts rotated ones: trials read "
            "COCO's boxes and measure COCO's AP, which know no angle. 'headway patch' and 'headway profile' work on "
            "it; train what 'patch' writes with mmrotate's own tools."
        )
