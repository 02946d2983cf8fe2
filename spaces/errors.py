"""The errors that users see: one message that names who, the rule, the value and the choices."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


class HeadwayError(Exception):
    """The work failed for a reason that the message tells in full (exit status 1)."""


class UserError(HeadwayError):
    """The input was wrong (exit status 2)."""


class CutShort(HeadwayError):
    """The surroundings failed the work (a full disk, a database that stayed away); the same command continues it."""


def choices(values: Iterable[object], last: str = "or") -> str:
    """Formats the legal values of an error message: ``nearest, bilinear or maxpool``."""
    words = [str(value) for value in values]
    if len(words) < 2:
        return "".join(words) or "none"
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def without_credentials(text: str) -> str:
    """Takes user names and passwords out of the addresses in a text: ``http://***@host/path?password=***``."""
    text = re.sub(r"://[^\s/@'\"]+@", "://***@", text)
    return re.sub(r"([?&](?:user|password|passwd|pwd|token)=)[^&\s'\"]+", r"\1***", text)


def unknown(who: str, name: str, known: Iterable[str]) -> UserError:
    """Builds the error for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return UserError(f"{who}: unknown '{name}'{hint} The choices are {choices(names)}.")
