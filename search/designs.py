"""The designs that a study tries: a space that a sampler draws from, or a list in the study file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search.study import Study
from spaces.base import BaseFacts
from spaces.errors import UserError
from spaces.registry import family as find_family
from spaces.space import Design, Space, build_space, design_hash


@dataclass(frozen=True)
class NamedDesign:
    """A design of the study file's ``designs``, canonical."""

    name: str
    knobs: Design


def study_space(study: Study, base: BaseFacts) -> Space:
    """Builds the space of a study. With ``designs``, it is made of the families that these name.

    Beside ``designs``, the section ``space`` can only narrow what is swept after training: all other knobs have the
    values that the designs say.

    Raises:
        UserError: Something is wrong with ``space`` or ``designs``.
    """
    if not study.designs:
        return build_space(study.space, base)
    named: dict[str, None] = {}
    for index, item in enumerate(study.designs):
        who = f"designs[{index}]"
        for name in item.knobs:
            found = find_family(name, who)
            if found.refusal(base):
                raise _prefixed(who, _refusal(name, base))
            named[name] = None
    for name, narrowed in study.space.items():
        family = find_family(name, "space")
        if name not in named:
            raise UserError(f"space.{name}: must be a family that a design names, but none of designs does.")
        if not isinstance(narrowed, Mapping):
            continue
        swept = [knob.name for knob in family.knobs(base) if knob.when == "inference"]
        fixed = [str(key) for key in narrowed if key not in swept]
        if fixed:
            can = f"only {', '.join(swept)} can be narrowed" if swept else f"{name} has none"
            raise UserError(
                f"space.{name}.{fixed[0]}: must be a knob that is swept after training, since designs say the rest; "
                f"{can}."
            )
    families = {name: study.space.get(name) for name in named}
    if not families:
        raise UserError("designs: must name at least one family; 'headway families' lists them.")
    return build_space(families, base)


def listed(study: Study, space: Space) -> list[NamedDesign]:
    """Gives the designs of the study file in canonical form, in its order.

    Raises:
        UserError: Names the design that is illegal, that is the baseline, or that was there before.
    """
    found: list[NamedDesign] = []
    trained: dict[str, int] = {}
    whole: set[str] = set()
    inference = {name for name, knob in space.knobs.items() if knob.when == "inference"}
    for index, item in enumerate(study.designs):
        who = f"designs[{index}]"
        values = _flat(item.knobs, space)
        try:
            design = space.canonicalise(values, who)
        except UserError as error:
            raise _prefixed(who, str(error)) from error
        if not design:
            raise UserError(
                f"{who}: must differ from the base, but '{item.name}' is the baseline, which is always tried first."
            )
        # Knobs that are swept need no training of their own.
        key = design_hash({name: value for name, value in design.items() if name not in inference})
        if key in trained:
            first = trained[key]
            other = f"designs[{first}] '{study.designs[first].name}'"
            if design_hash(design) in whole:
                raise UserError(f"{who}: must differ from the others, but '{item.name}' is the design of {other}.")
            swept = sorted(name for name in inference if design.get(name) != found[first].knobs.get(name))
            raise UserError(
                f"{who}: must differ in training from the others, but '{item.name}' differs from {other} in "
                f"{', '.join(swept)} only, which is swept after training: list its values under space."
            )
        trained[key] = index
        whole.add(design_hash(design))
        found.append(NamedDesign(item.name, design))
    return found


def _flat(knobs: Mapping[str, Mapping[str, Any] | None], space: Space) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in space.families:
        name = part.family.name
        if name in knobs:
            # A family without knobs is on, with its defaults.
            given = knobs[name] or {part.full[0].name: part.full[0].default}
            values.update({f"{name}.{key}": value for key, value in given.items()})
    return values


def _refusal(name: str, base: BaseFacts) -> str:
    try:
        build_space({name: None}, base, "knobs")
    except UserError as error:
        return str(error)
    raise AssertionError(name)


def _prefixed(who: str, text: str) -> UserError:
    return UserError(text if text.startswith(who) else f"{who}: {text}")
