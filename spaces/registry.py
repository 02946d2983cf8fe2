"""Finds the families: every folder of this package, and what other packages offer, by its ``knobs.py``."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import spaces
from spaces.errors import HeadwayError, unknown
from spaces.family import Family

Patch = Callable[[Mapping[str, Any], dict[str, Any]], dict[str, Any]]

GROUP = "headway.families"
"""Entry points of this group name packages with a family each: ``separable = "headway_separable"``."""


@cache
def families() -> Mapping[str, Family]:
    """All families by name, sorted by name.

    Raises:
        HeadwayError: A folder or package defines no family, or one that is not named after it (a second one of that
            name, say), or two have the same name.
    """
    found: dict[str, Family] = {}
    for module in sorted(pkgutil.iter_modules(spaces.__path__), key=lambda module: module.name):
        if module.ispkg:
            rule = "the family must be named after its folder"
            found[module.name] = _read(f"spaces.{module.name}", module.name, f"spaces/{module.name}", rule)
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        maker = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an installed package"
        who = f"family {entry.name} of {maker}"
        if entry.name in found:
            raise HeadwayError(f"{who}: must have a name of its own, but {found[entry.name].package} has this one.")
        rule = f"the family must be named as its entry point in {GROUP}"
        found[entry.name] = _read(entry.value, entry.name, who, rule)
    return dict(sorted(found.items()))


def _read(package: str, name: str, who: str, rule: str) -> Family:
    """Reads the family of a package.

    Raises:
        HeadwayError: It has none, or one of another name.
    """
    try:
        family: Family = importlib.import_module(f"{package}.knobs").FAMILY
    except (ImportError, AttributeError) as error:
        raise HeadwayError(f"{who}: must have a knobs.py that defines FAMILY: {error}.") from error
    if family.name != name:
        raise HeadwayError(f"{who}: {rule}, not '{family.name}'.")
    return replace(family, package=package)


def family(name: str, who: str = "space") -> Family:
    """Gives one family.

    Raises:
        UserError: There is none of that name.
    """
    if name not in families():
        raise unknown(who, name, families())
    return families()[name]


def patch_module(name: str) -> ModuleType:
    """Gives the ``patch.py`` of a family."""
    return importlib.import_module(f"{families()[name].package}.patch")


def patch_of(name: str) -> Patch:
    """Gives the ``patch`` function of a family: from its knob values and a ``model`` config to a new one."""
    patch: Patch = patch_module(name).patch
    return patch


def packages() -> frozenset[str]:
    """Top-level packages with network code of families, ``spaces`` among them."""
    return frozenset({"spaces", *(found.package.partition(".")[0] for found in families().values())})
