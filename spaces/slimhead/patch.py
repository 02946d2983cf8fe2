"""From the knobs of SlimHead to a patched config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces.patching import add_mixin


def patch(values: Mapping[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Puts the ``SlimHead`` mixin onto the dense head (equations 2 and 3); nothing else of the base changes."""
    return add_mixin(
        model,
        {
            "type": "SlimHead",
            "levels": list(values["levels"]),  # equation 2's selector, as a set of indices
            "ratio": values["ratio"],  # r
            "mode": values["mode"],  # table 1
            "fat": values.get("fat", True),  # figure 5: the middle group is without
        },
    )
