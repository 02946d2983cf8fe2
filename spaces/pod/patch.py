"""From the knobs of learned dilations to a patched config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces.pod.scales import LARGEST, summary

__all__ = ["learning", "patch", "settled", "summary"]

_DECOMPOSING = ("tolerance", "round_channels", "zero_taps")


def patch(values: Mapping[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Puts ``DilatedDetector`` around the detector; everything but the 3x3 convolutions in question stays."""
    # Types with a scope may stand in a config of another default scope than mmdet's.
    kind = "mmdet.DilatedDetector" if "." in model["type"] else "DilatedDetector"
    model["base_type"], model["type"] = model["type"], kind
    if values["mode"] == "fixed":  # section 3.2
        model["dilations"] = {
            "scales": [[path, float(d_h), float(d_w)] for path, d_h, d_w in values["scales"]],
            **{name: values[name] for name in _DECOMPOSING},
        }
    else:  # section 3.1
        model["dilations"] = {"stages": list(values["stages"]), "towers": list(values["towers"])}
        # What the scales become after they are learned; the learning network itself does not depend on it.
        plan = {name: values[name] for name in (*_DECOMPOSING, "transfer", "learn_share") if name in values}
        if plan:
            model["dilations"]["plan"] = plan
    return model


def learning(values: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the values of the network that learns the scales."""
    return {"mode": "learn", "stages": values["stages"], "towers": values["towers"]}


def settled(values: Mapping[str, Any], learned: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Gives the values of the network that the scales decide.

    Args:
        values: With mode ``decompose``.
        learned: By convolution the means ``d_h`` and ``d_w``, see ``summary``.
    """
    scales = [
        [path, *(round(min(learned[path][key], LARGEST), 6) for key in ("d_h", "d_w"))] for path in sorted(learned)
    ]
    return {"mode": "fixed", **{name: values[name] for name in _DECOMPOSING}, "scales": scales}
