"""From the knobs of DDOD to a patched config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces.base import dense_part
from spaces.patching import add_mixin


def patch(values: Mapping[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Puts the mixin of the base's head onto it; the network stays as it is."""
    head = model[dense_part(model)]
    mixin: dict[str, Any] = {
        "type": f"Disentangled{head.get('base_type', head['type'])}",  # losses differ from head to head
        "assign": values["assign"],  # section 4.1
        "reweight": values["reweight"],  # section 4.3, table 7
    }
    # Equation 1's alphas and K; equation 3's counts and upper bound. Knobs without effect are absent.
    optional = ("alpha_cls", "alpha_reg", "topk", "cumulative", "span")
    return add_mixin(model, {**mixin, **{name: values[name] for name in optional if name in values}})
