"""Cost and latency of a config as it stands, without data or training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from spaces import patching
from spaces.autocast import autocast
from spaces.errors import HeadwayError, UserError
from trainers import cost, speed, timemap
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
    return cost.count(build_patched(base, knobs, classes), size)


def profile_config(
    name: str,
    *,
    against: str | None,
    size: tuple[int, int],
    latency: bool,
    pairs: int = 10,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Counts a config, and times it where asked.

    Args:
        name: The config, as ``load_base`` takes it.
        against: A config to compare with.
        size: Height and width of the input in px.
        latency: Whether to measure the latency, interleaved with ``against``, or with a second build of itself.
        pairs: Least number of interleaved pairs.
        dtype: What both predict in while they are timed: ``float32``, ``bfloat16`` or ``float16``.

    Returns:
        ``macs`` and ``params`` in units of one; ``against`` the same of the other config, with ``ratio`` (this / the
        other) of each; ``latency`` with ``ratio``, ``q1`` and ``q3`` of the paired ratios, ``pairs``, ``ms`` and
        ``against_ms``, ``speedup`` (1 / ratio), and ``bound_by_macs`` and ``bound_by_bytes``, the speed-ups that
        multiply-adds alone and bytes alone allow; its ``parts`` and ``levels`` say where the time goes, see
        ``_where_time_goes``.

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
        inputs = speed.make_inputs(size, 1)
        timed, beside = (autocast(one, dtype) for one in (model, other or build_named(name)))
        measured = speed.measure(timed, beside, inputs, pairs=pairs, seconds=0, device=device)
        found["latency"] = {
            "device": device,
            "dtype": dtype,
            "ratio": measured.ratio,
            "q1": measured.q1,
            "q3": measured.q3,
            "pairs": measured.pairs,
            "ms": measured.candidate_ms,
            "against_ms": measured.baseline_ms,
            "speedup": 1 / measured.ratio,
            "bound_by_macs": 1 / found["against"]["ratio"]["macs"] if against else 1.0,
            **_where_time_goes([model, other] if other is not None else [model], inputs, device, max(1, pairs // 3)),
        }
    return found


def _where_time_goes(models: Sequence[Any], inputs: Tensor, device: str, rounds: int) -> dict[str, Any]:
    """Cuts a detector's pass into parts and levels, in turns with the passes of the one that it is compared with.

    Returns:
        ``bound_by_bytes`` of the whole; ``parts``, by part and level, and ``levels``, the dense head by level, each
        with ``ms``, ``share`` (of the sum), ``macs`` and ``bytes`` and, where there are two models, ``against_ms``,
        ``speedup``, ``bound_by_macs`` and ``bound_by_bytes`` (``None`` where there is nothing to divide); and ``cut``:
        ``sum_ms`` of the parts, ``whole_ms`` of a pass without the hooks that cut it, their ``overhead`` (a ratio) and
        ``passes``.
    """
    inputs = speed.placed(inputs, device)
    prepared = [speed.prepare(model, device) for model in models]
    passes = [(model, speed.detector_pass(model, inputs, postprocess=True)) for model in prepared]
    ours, *others = timemap.map_time(passes, device=device, rounds=rounds)
    theirs = others[0] if others else None
    by_part = [{(one.part, one.level): one for one in item.stretches} for item in (ours, *others)]
    levels = [level for level in dict.fromkeys(one.level for one in ours.stretches) if level]
    total = [sum(one.bytes for one in item.stretches) for item in (ours, *others)]
    return {
        "bound_by_bytes": total[-1] / total[0],
        "parts": [
            {
                "part": part,
                "level": level,
                **_compared([[own[part, level]] if (part, level) in own else [] for own in by_part], ours.sum_ms),
            }
            for part, level in dict.fromkeys(key for own in by_part for key in own)
        ],
        "levels": {
            level: _compared([[one for one in own.values() if one.level == level] for own in by_part], ours.sum_ms)
            for level in levels
        },
        "cut": {
            "sum_ms": ours.sum_ms,
            "whole_ms": ours.whole_ms,
            "overhead": ours.overhead,
            "passes": ours.passes,
            **({"against_sum_ms": theirs.sum_ms, "against_whole_ms": theirs.whole_ms} if theirs else {}),
        },
    }


def _compared(sides: Sequence[Sequence[timemap.Stretch]], sum_ms: float) -> dict[str, Any]:
    """Sums up the stretches of one part or level, ours and the other's."""
    sums = [{name: sum(getattr(one, name) for one in side) for name in ("ms", "macs", "bytes")} for side in sides]
    ours, theirs = sums[0], sums[-1]
    found = {**ours, "share": ours["ms"] / sum_ms}
    if len(sides) > 1:
        ratios = {"speedup": "ms", "bound_by_macs": "macs", "bound_by_bytes": "bytes"}
        found |= {"against_ms": theirs["ms"]}
        both = {key: (theirs[name], ours[name]) for key, name in ratios.items()}
        found |= {key: above / below if above and below else None for key, (above, below) in both.items()}
    return found


def build_named(name: str) -> Any:
    """Builds the detector of a config without pretrained weights.

    Raises:
        UserError: It cannot be read or built.
    """
    config = load_base(name)
    return _built({key: plain(value) for key, value in config.items() if key in _BUILT_FROM}, name)


def build_patched(base: str, knobs: Mapping[str, Any], classes: int | None = None) -> Any:
    """Builds a base with a design in it, without pretrained weights.

    Args:
        base: As ``load_base`` takes it.
        knobs: A canonical design; empty for the base itself.
        classes: Number of classes; the base's own when not given.

    Raises:
        UserError: The base cannot be read or built.
    """
    config = patched_base(base, dict(knobs))
    content = {key: plain(value) for key, value in config.items() if key in _BUILT_FROM}
    if classes is not None:
        set_classes(content["model"], classes)
    return _built(content, base)


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
