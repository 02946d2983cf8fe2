"""Draws all pictures into a folder: ``draw_all(folder)``; what is newer than its sources is left alone."""

from __future__ import annotations

from pathlib import Path

from pictures import bars, operations
from pictures.look import save

SOURCES = [*Path(__file__).parent.glob("*.py"), bars.FILE, *(bars.ROOT / "benchmarks/studies").glob("bccd_pod*.json")]


def draw_all(folder: Path) -> None:
    """Draws what is missing or old."""
    folder.mkdir(parents=True, exist_ok=True)
    newest = max(source.stat().st_mtime for source in SOURCES)
    for name, picture in {**operations.PICTURES, **bars.PICTURES}.items():
        path = folder / f"{name}.svg"
        if not path.is_file() or path.stat().st_mtime < newest:
            save(picture(), path)
