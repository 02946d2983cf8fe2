"""What to try next, where to run it and when to stop it.

In Python: ``from search import Study`` (see ``search.api``). ``import search`` alone loads nothing; what an act takes
is loaded when it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.api import Bundle, Recording, Study, compare
    from spaces.errors import HeadwayError, UserError

__all__ = ["Bundle", "HeadwayError", "Recording", "Study", "UserError", "compare"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("spaces.errors" if name.endswith("Error") else "search.api"), name)
