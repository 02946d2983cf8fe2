"""How figures and designs are worded wherever a person reads them: plots, tables, messages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class _Wording:
    label: str
    unit: str
    scale: float
    digits: int


_WORDINGS = {
    "latency_ms": _Wording("latency", "ms", 1, 1),
    "latency_ratio": _Wording("latency ratio", "x", 1, 3),
    "latency_ratio_q1": _Wording("its lower quartile", "x", 1, 3),
    "latency_ratio_q3": _Wording("its upper quartile", "x", 1, 3),
    "gmacs": _Wording("multiply-adds", "G", 1, 2),
    "head_gmacs": _Wording("multiply-adds of the head", "G", 1, 2),
    "params_m": _Wording("parameters", "M", 1, 2),
    "activations_m": _Wording("activations", "M", 1, 2),
    "peak_memory_mb": _Wording("peak memory", "MB", 1, 0),
}
_SIZES = {"s": "small", "m": "medium", "l": "large"}


def _wording(metric: str) -> _Wording:
    for prefix in ("learned_", "decomposed_", "learning_"):
        if metric.startswith(prefix):
            inner = _wording(metric.removeprefix(prefix))
            return replace(inner, label=f"{prefix[:-1]} {inner.label}")
    if metric.startswith("bbox_mAP"):
        rest = metric[len("bbox_mAP") :].strip("_")
        if rest.isdigit():
            return _Wording(f"AP{rest}", "%", 100, 1)
        return _Wording(f"AP {_SIZES.get(rest, rest)}".strip(), "%", 100, 1)
    return _WORDINGS.get(metric) or _Wording(metric.replace("_", " "), "", 1, 3)


def axis(metric: str) -> str:
    """Names a metric with its unit, ``latency (ms)``."""
    wording = _wording(metric)
    return f"{wording.label} ({wording.unit})" if wording.unit else wording.label


def scaled(metric: str, value: float) -> float:
    """Gives the value as it is drawn: accuracy in %, all else in its own unit."""
    return value * _wording(metric).scale


def figure(metric: str, value: float) -> str:
    """Words one figure, ``AP 41.3 %``; a value that is not finite reads ``not measured``."""
    wording = _wording(metric)
    if not math.isfinite(value):
        return f"{wording.label} not measured"
    return f"{wording.label} {value * wording.scale:,.{wording.digits}f} {wording.unit}".rstrip()


def more_is_better(metric: str) -> bool | None:
    """Which direction of a metric is better, ``None`` where that is not known."""
    if metric.startswith("bbox_"):
        return True
    return False if metric in _WORDINGS else None


def wording_of(metric: str) -> dict[str, Any]:
    """Gives how a metric is worded, as plain data: ``label``, ``unit``, ``scale`` and ``digits``."""
    return asdict(_wording(metric))


def knob_value(value: Any) -> str:
    """Words a knob's value: ``0.5``, ``0,1``, ``none`` for an empty list."""
    if isinstance(value, (list, tuple)):
        return ",".join(knob_value(item) for item in value) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short(knobs: Mapping[str, Any], longest: int | None = None) -> str:
    """Words a design in one line: ``slimhead levels=0 ratio=0.5 nearest · dcn cls=0,1``.

    Knobs are grouped by family in the order given. Words stand without their knob's name, a switch
    that is off is told as ``no fat``, and what is empty or ``None`` is left out.

    Args:
        knobs: Canonical design; empty for the baseline.
        longest: Length in characters after which the text is cut with an ellipsis.
    """
    if not knobs:
        return "baseline"
    families: dict[str, list[str]] = {}
    for name, value in knobs.items():
        family, _, knob = name.partition(".")
        words = families.setdefault(family, [])
        if value is True:
            words.append(knob or "on")
        elif value is False:
            words.append(f"no {knob}" if knob else "off")
        elif value is None or (isinstance(value, (list, tuple)) and not value):
            continue
        elif isinstance(value, str) and knob:
            words.append(value)
        else:
            words.append(f"{knob}={knob_value(value)}" if knob else knob_value(value))
    text = " · ".join(" ".join([family, *words]) for family, words in families.items())
    if longest is not None and len(text) > longest:
        return text[: longest - 1].rstrip() + "…"
    return text


def counts(states: Sequence[str]) -> str:
    """Counts trial states in words, most frequent first: ``12 complete, 3 stopped``."""
    tally = {state: states.count(state) for state in dict.fromkeys(states)}
    ordered = sorted(tally.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {state.lower()}" for state, count in ordered) or "no trials"


def dtype_of(study: Mapping[str, Any]) -> str:
    """What the detectors of a dumped study predict in; those of older versions do not say, and mean ``float32``."""
    return str((study.get("speed") or {}).get("dtype", "float32"))
