"""From the knobs of separable towers to a patched config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces.patching import add_mixin


def patch(values: Mapping[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Puts the ``SeparableTower`` mixin onto the dense head; everything but the named convolutions stays."""
    return add_mixin(
        model,
        {"type": "SeparableTower", "placement": list(values["placement"]), "kernel": values["kernel"]},
    )
