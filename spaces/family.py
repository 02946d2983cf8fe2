"""A design family: one paper's idea as knobs plus a patch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from spaces.base import BaseFacts
from spaces.knob import Condition, Knob


@dataclass(frozen=True, kw_only=True)
class Family:
    """One folder under ``spaces/``; its ``knobs.py`` defines ``FAMILY``.

    Attributes:
        name: The folder's name.
        title: One line of what it does.
        paper: Title and year of the source.
        heads: Types of dense heads it works on.
        knobs: Gives the knobs for a base.
        off: The family has no effect, and is dropped from a design, when any of these holds; a tuple holds when all of
            its conditions do.
        illegal: Says why a combination of its own knob values is impossible on a base, ``None`` when it is not.
        conflicts: Families it cannot go together with, each with the reason. Naming a pair once is enough.
        clash: Says why the values of all families together (by family, its own among them) make no sense, ``None``
            when they do: for conflicts that only some values have.
        on_images: Whether the latency of a design depends on the image and on the trained weights, so that it is
            measured on the trained detector with validation images and never shared between designs.
        export_limits: Export formats that it forbids, each with the reason.
    """

    name: str
    title: str
    paper: str
    heads: tuple[str, ...]
    knobs: Callable[[BaseFacts], tuple[Knob, ...]]
    off: tuple[Condition | tuple[Condition, ...], ...] = ()
    illegal: Callable[[Mapping[str, Any], BaseFacts], str | None] = lambda values, base: None
    conflicts: Mapping[str, str] = field(default_factory=dict)
    clash: Callable[[Mapping[str, Mapping[str, Any]], BaseFacts], str | None] = lambda design, base: None
    on_images: bool = False
    export_limits: Mapping[str, str] = field(default_factory=dict)

    @property
    def off_settings(self) -> tuple[tuple[Condition, ...], ...]:
        """``off`` with each entry as a tuple of conditions that must all hold."""
        return tuple(entry if isinstance(entry, tuple) else (entry,) for entry in self.off)

    @property
    def modules(self) -> str:
        """Import path of the family's network code."""
        return f"spaces.{self.name}.modules"
