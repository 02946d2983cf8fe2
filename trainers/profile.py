"""Cost and latency of a config as it stands, without data or training."""

from __future__ import annotations

import os
from typing import Any

import torch
from mmengine.config import Config

from spaces import patching
from spaces.errors import HeadwayError, UserError
from trainers import cost, speed
from trainers.config import load_base, plain, set_classes
from trainers.detector import build_model
from trainers.means import settle
from trainers.pretrained import resolve_backbone

_BUILT_FROM = ("default_scope", "model", "custom_imports")


def patched_base(base: str, knobs: dict[str, Any]) -> Config:
    """Gives a base config with a design in it; data and schedule stay the base's.

    Args:
        base: As ``load_base`` takes it.
        knobs: A canonical design.

    Raises:
        UserError: The base cannot be read.
    """
    config = load_base(base)
    content = {key: plain(value) for key, value in config.items()}
    content["model"] = patching.apply(content["model"], knobs)
    imports = patching.imports(knobs)
    if imports:
        known = (content.get("custom_imports") or {}).get("imports", [])
        content["custom_imports"] = {"imports": [*known, *imports], "allow_failed_imports": False}
    return Config(content)


def count_patched(base: str, knobs: dict[str, Any], size: tuple[int, int], classes: int | None = None) -> cost.Cost:
    """Counts a base config with a design in it.

    Args:
        base: As ``load_base`` takes it.
        knobs: A canonical design; empty for the base itself.
        size: Height and width of the input in px.
        classes: Number of classes; the base's own when not given.

    Raises:
        UserError: The base cannot be read, built or counted.
    """
    config = patched_base(base, knobs)
    content = {key: plain(value) for key, value in config.items() if key in _BUILT_FROM}
    if classes is not None:
        set_classes(content["model"], classes)
    return cost.count(_built(content, base), size)


def profile_config(
    name: str, *, against: str | None, size: tuple[int, int], latency: bool, pairs: int = 10
) -> dict[str, Any]:
    """Counts a config, and times it where asked.

    Args:
        name: The config, as ``load_base`` takes it.
        against: A config to compare with.
        size: Height and width of the input in px.
        latency: Whether to measure the latency, interleaved with ``against``, or with a second build of itself.
        pairs: Least number of interleaved pairs.

    Returns:
        ``macs`` and ``params`` in units of one; ``against`` the same of the other config, with ``ratio`` (this / the
        other) of each; ``latency`` with ``ratio``, ``q1`` and ``q3`` of the paired ratios, ``pairs``, ``ms`` and
        ``against_ms``, ``speedup`` (1 / ratio) and ``bound_by_macs``, the speed-up that multiply-adds alone allow.

    Raises:
        UserError: A config cannot be read or counted.
    """
    model = build_named(name)
    counted = cost.count(model, size)
    found: dict[str, Any] = {"config": name, "size": list(size), **counted.to_json()}
    other = None
    if against is not None:
        other = build_named(against)
        base = cost.count(other, size)
        ratio = {"macs": counted.macs / base.macs, "params": counted.params / base.params}
        found["against"] = {"config": against, **base.to_json(), "ratio": ratio}
    if latency:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        settle(len(os.sched_getaffinity(0)))
        measured = speed.measure(
            model, other or build_named(name), speed.make_inputs(size, 1), pairs=pairs, seconds=0, device=device
        )
        found["latency"] = {
            "device": device,
            "ratio": measured.ratio,
            "q1": measured.q1,
            "q3": measured.q3,
            "pairs": measured.pairs,
            "ms": measured.candidate_ms,
            "against_ms": measured.baseline_ms,
            "speedup": 1 / measured.ratio,
            "bound_by_macs": 1 / found["against"]["ratio"]["macs"] if against else 1.0,
        }
    return found


def build_named(name: str) -> Any:
    """Builds the detector of a config without pretrained weights.

    Raises:
        UserError: It cannot be read or built.
    """
    config = load_base(name)
    return _built({key: plain(value) for key, value in config.items() if key in _BUILT_FROM}, name)


def build_patched(base: str, knobs: dict[str, Any]) -> Any:
    """Builds a base with a design in it, without pretrained weights.

    Args:
        base: As ``load_base`` takes it.
        knobs: A canonical design; empty for the base itself.

    Raises:
        UserError: The base cannot be read or built.
    """
    config = patched_base(base, knobs)
    return _built({key: plain(value) for key, value in config.items() if key in _BUILT_FROM}, base)


def _built(content: dict[str, Any], name: str) -> Any:
    # Weights do not change a cost, and a download must not stop a count.
    resolve_backbone(content["model"], "none")
    try:
        return build_model(Config(content), seed=0)
    except HeadwayError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"config: {name} cannot be built: {reason}") from error
