"""Finds the families: every folder of this package, by its ``knobs.py``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import spaces
from spaces.errors import HeadwayError, unknown
from spaces.family import Family

Patch = Callable[[Mapping[str, Any], dict[str, Any]], dict[str, Any]]


@cache
def families() -> Mapping[str, Family]:
    """All families by name, sorted by name.

    Raises:
        HeadwayError: A folder defines no family, or one that is not named after it (a second one of that name, say).
    """
    found: dict[str, Family] = {}
    for module in sorted(pkgutil.iter_modules(spaces.__path__), key=lambda module: module.name):
        if not module.ispkg:
            continue
        try:
            family: Family = importlib.import_module(f"spaces.{module.name}.knobs").FAMILY
        except (ModuleNotFoundError, AttributeError) as error:
            raise HeadwayError(f"spaces/{module.name}: must have a knobs.py that defines FAMILY: {error}.") from error
        if family.name != module.name:
            raise HeadwayError(f"spaces/{module.name}: the family must be named after its folder, not '{family.name}'.")
        found[family.name] = family
    return found


def family(name: str, who: str = "space") -> Family:
    """Gives one family.

    Raises:
        UserError: There is none of that name.
    """
    if name not in families():
        raise unknown(who, name, families())
    return families()[name]


def patch_of(name: str) -> Patch:
    """Gives the ``patch`` function of a family: from its knob values and a ``model`` config to a new one."""
    patch: Patch = importlib.import_module(f"spaces.{name}.patch").patch
    return patch
