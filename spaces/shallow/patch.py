"""From the knobs of reduced towers to a patched config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces.patching import add_mixin


def patch(values: Mapping[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Puts the ``ShallowTowers`` mixin onto the dense head (figure 7); nothing else of the base changes."""
    return add_mixin(
        model,
        {
            "type": "ShallowTowers",
            "levels": list(values["levels"]),
            "layers": values["layers"],  # figure 7 right
            "channels": values.get("channels", 1.0),  # figure 7 left; without effect on a single convolution
        },
    )
