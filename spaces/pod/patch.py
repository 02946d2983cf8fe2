"""From the knobs of learned dilations to a patched config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces.base import BaseFacts
from spaces.pod.knobs import paths
from spaces.pod.scales import LARGEST, stage_of, summary, tower_element

__all__ = ["learning", "optimizer_keys", "patch", "settled", "summary"]

# Share of the learning rate that scales get from optimizers of Adam's kin.
_ADAPTIVE = 0.1
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


def optimizer_keys(values: Mapping[str, Any], base: BaseFacts, adaptive: bool) -> dict[str, dict[str, float]]:
    """Gives what the optimizer must know of the scales: the entries of ``paramwise_cfg.custom_keys``.

    A scale is a sum over hundreds of channels, all of which Adam moves by the full rate at every step, however small
    the gradient: in a hundred steps of a short training that alone takes it to 0 or beyond the map. With SGD, which the
    paper uses, steps shrink with the gradient. Decay would draw the scale to 0.

    Args:
        values: Knob values with mode ``learn`` or ``decompose``.
        base: Facts of the base.
        adaptive: Whether the optimizer is of Adam's kin.
    """
    if values["mode"] == "fixed":
        return {}
    stages, towers = values["stages"], values["towers"]
    learned = [path for path in paths(base) if stage_of(path) in stages or tower_element(path) in towers]
    # By full path, since mmengine takes the longest key that fits, and bases have some for the whole backbone.
    return {f"{path}.scale.": {"lr_mult": _ADAPTIVE if adaptive else 1.0, "decay_mult": 0.0} for path in learned}


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
