"""Words what is wrong with a study file: the key, its rule, the value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from search.study.sections import Study
from spaces.errors import unknown


def problems(error: ValidationError) -> list[str]:
    """A line for each wrong key, with its rule and its value."""
    grouped: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for item in error.errors():
        grouped.setdefault(_location(item), []).append(item)
    return [_explain(location, items) for location, items in grouped.items()]


def _location(item: ErrorDetails) -> tuple[str, ...]:
    parts = [str(part) for part in item["loc"]]
    # pydantic names the members of a union as if they were keys.
    unions = ("literal[", "constrained-", "function-")
    return tuple(part for part in parts if not part.startswith(unions) and part not in ("int", "float", "str"))


# pydantic's own words are about Python's types.
_RULES: Mapping[str, str] = {
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a section of keys and values"),
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "tuple_type": "must be a list",
}


def _explain(location: tuple[str, ...], items: Sequence[ErrorDetails]) -> str:
    """Words what is wrong at one key; a choice of types has one item for each."""
    key = re.sub(r"^designs\.(\d+)", r"designs[\1]", ".".join(location))
    kinds = {item["type"] for item in items}
    if "extra_forbidden" in kinds:
        return _unknown_key(list(location))
    if "missing" in kinds:
        return f"{key}: is required."
    rules = list(dict.fromkeys(_rule(item) for item in items))
    rule = " or ".join([rules[0], *(item.removeprefix("must be ") for item in rules[1:])])
    shown = repr(items[0].get("input"))
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"{key}: {rule}." if "value_error" in kinds else f"{key}: {rule}, but got {shown}."


def _rule(item: ErrorDetails) -> str:
    if item["type"] in _RULES:
        return _RULES[item["type"]]
    if item["type"] in ("too_long", "too_short"):
        return f"must be a list of {item['ctx'].get('max_length', item['ctx'].get('min_length'))}"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"must {message.removeprefix('should ')}" if message.startswith("should ") else message


def _unknown_key(location: list[str]) -> str:
    section: Any = Study
    for part in location[:-1]:
        if part.isdigit():  # an item of a list
            continue
        field = {(info.alias or name): info for name, info in section.model_fields.items()}.get(part)
        annotations = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        nested = [item for item in annotations if isinstance(item, type) and issubclass(item, BaseModel)]
        if not nested:
            break
        section = nested[0]
    known = [info.alias or name for name, info in section.model_fields.items()]
    who = re.sub(r"^designs\.(\d+)", r"designs[\1]", ".".join(location[:-1]))
    return str(unknown(who or "study", location[-1], known))
