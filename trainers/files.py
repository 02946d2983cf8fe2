"""Files that are there whole or not at all, whatever ends the writing of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a temporary file beside ``path`` to write to; it takes its place at the end, or is removed again."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Writes a text file; a ``private`` one can be read by its owner alone."""
    with whole(path) as temporary:
        temporary.unlink(missing_ok=True)
        if private:
            temporary.touch(mode=0o600)
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a binary file."""
    with whole(path) as temporary:
        temporary.write_bytes(content)
