"""A design family: one paper's idea as knobs plus a patch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from spaces.base import BaseFacts
from spaces.errors import choices
from spaces.knob import Condition, Knob


@dataclass(frozen=True, kw_only=True)
class ExportLimit:
    """A format that some of a family's designs do not have.

    Attributes:
        format: ``onnx``, for instance.
        reason: Why, for the user.
        when: Conditions on the family's values that must all hold; empty: always.
    """

    format: str
    reason: str
    when: tuple[Condition, ...] = ()

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether a design with these values of the family, inactive knobs dropped, lacks the format."""
        return all(condition.holds(values) for condition in self.when)

    def __str__(self) -> str:
        """The reason, behind the conditions."""
        words = " and ".join(f"{condition.knob} {condition.value}" for condition in self.when)
        return f"with {words}, {self.reason}" if words else self.reason


@dataclass(frozen=True, kw_only=True)
class Family:
    """One folder under ``spaces/``, or a package of somebody else's; its ``knobs.py`` defines ``FAMILY``.

    Attributes:
        name: The folder's name; of somebody else's package that of its entry point.
        title: One line of what it does.
        paper: Title and year of the source.
        heads: Types of dense heads it works on; empty where any will do.
        box_heads: Types of box heads (of two-stage detectors) it works on; empty where it needs none.
        backbones: Types of backbones it works on; empty where any will do.
        refuses: Says why it does not work on a base whose types fit, ``None`` when it does.
        knobs: Gives the knobs for a base.
        off: The family has no effect, and is dropped from a design, when any of these holds; a tuple holds when all of
            its conditions do.
        illegal: Says why a combination of its own knob values is impossible on a base, ``None`` when it is not.
        conflicts: Families it cannot go together with, each with the reason. Naming a pair once is enough.
        clash: Says why the values of all families together (by family, its own among them) make no sense, ``None``
            when they do: for conflicts that only some values have.
        on_images: Whether the latency of a design depends on the image and on the trained weights, so that it is
            measured on the trained detector with validation images and never shared between designs.
        learns: Where all of these hold, a part of the network is learned in a first phase of the training and then
            fixed, so that cost and latency are known only after it. The family's ``patch.py`` then has ``learning``,
            ``settled`` and ``summary``, its ``modules.py`` ``Observer``, its knobs ``learn_share`` and ``transfer``.
            Empty: never.
        kept_back: Where all of these hold, the network is one for training only, and no bundle is made of it. Empty:
            never.
        export_limits: Export formats that it forbids, all its designs or some.
        package: Import path of the folder; the registry fills it in.
    """

    name: str
    title: str
    paper: str
    knobs: Callable[[BaseFacts], tuple[Knob, ...]]
    heads: tuple[str, ...] = ()
    box_heads: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    refuses: Callable[[BaseFacts], str | None] = lambda base: None
    off: tuple[Condition | tuple[Condition, ...], ...] = ()
    illegal: Callable[[Mapping[str, Any], BaseFacts], str | None] = lambda values, base: None
    conflicts: Mapping[str, str] = field(default_factory=dict)
    clash: Callable[[Mapping[str, Mapping[str, Any]], BaseFacts], str | None] = lambda design, base: None
    on_images: bool = False
    learns: tuple[Condition, ...] = ()
    kept_back: tuple[Condition, ...] = ()
    export_limits: tuple[ExportLimit, ...] = ()
    package: str = ""

    @property
    def off_settings(self) -> tuple[tuple[Condition, ...], ...]:
        """``off`` with each entry as a tuple of conditions that must all hold."""
        return tuple(entry if isinstance(entry, tuple) else (entry,) for entry in self.off)

    def refusal(self, base: BaseFacts) -> str | None:
        """Says why the family does not work on a base, ``None`` when it does."""
        if self.heads and base.head not in self.heads:
            return f"works on {choices(self.heads)}, but the base {base.detector} has {base.head}."
        if self.box_heads:
            rule = f"works on two-stage detectors with the box head {choices(self.box_heads)}"
            if base.roi is None:
                return f"{rule}, but the base {base.detector} has no RoI head."
            strange = [head for head in base.roi.heads if head not in self.box_heads]
            if strange:
                return f"{rule}, but the base {base.detector} has {strange[0]}."
        if self.backbones and (base.backbone is None or base.backbone.kind not in self.backbones):
            return f"works on the backbones {choices(self.backbones, 'and')}, but the base {base.detector} has another."
        return self.refuses(base)

    @property
    def modules(self) -> str:
        """Import path of the family's network code."""
        return f"{self.package or f'spaces.{self.name}'}.modules"
