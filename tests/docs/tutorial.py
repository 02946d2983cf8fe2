"""Takes the tutorial's commands and files from its page, and gives them as they are printed.

    python tests/docs/tutorial.py SOURCE WORK

runs them on the renamed copy of SOURCE (``renamed.py``) in the new folder WORK.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/tutorial.md"
_FENCE = re.compile(
    r"^```(?P<kind>sh|\{code-block\} \w+)\n(?::caption: (?P<name>\S+)\n)?(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Step:
    """A file to be written, or commands to be given where it has no name."""

    text: str
    name: str | None = None


def steps(page: str) -> Iterator[Step]:
    """Gives the page's files (code blocks with a caption) and commands (``sh``) in their order."""
    for found in _FENCE.finditer(page):
        if found["name"] or found["kind"] == "sh":
            yield Step(found["text"], found["name"])


def commands(page: str) -> list[list[str]]:
    """Gives the words of each command of the page, those that are only shown included."""
    shown = re.findall(r"^```(?:sh)?\n(.*?)^```$", page, re.M | re.S)
    return [shlex.split(line) for text in shown for line in text.splitlines() if line.strip()]


def fill_in(text: str, image: str) -> str:
    """Puts in what the page leaves to the reader: where the checkout lies, and the name of a photograph."""
    return text.replace("/path/to/headway", str(ROOT)).replace("photos/IMAGE.jpg", image)


def follow(page: str, folder: Path, image: str) -> None:
    """Does what the page says.

    Raises:
        subprocess.CalledProcessError: A command failed.
    """
    bin_ = folder / ".bin"
    bin_.mkdir()
    # The commands of this checkout, without the need to install it.
    for name, words in (("headway", [sys.executable, "-m", "search.cli"]), ("python", [sys.executable])):
        (bin_ / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (bin_ / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment.pop("HEADWAY_STUDIES", None)
    for step in steps(page):
        if step.name:
            (folder / step.name).write_text(step.text)
            continue
        print(f"$ {step.text}", end="", flush=True)
        began = time.monotonic()
        subprocess.run(["bash", "-euc", fill_in(step.text, image)], cwd=folder, env=environment, check=True)
        print(f"({time.monotonic() - began:.0f} s)", flush=True)


def main() -> None:
    """Reads the command line."""
    from renamed import make_stranger

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, metavar="N", help="only so many photographs: quick, and finds nothing")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    make_stranger(options.source, options.work, most=options.images)
    image = sorted((options.work / "photos").rglob("*.jpg"))[0].relative_to(options.work)
    follow(PAGE.read_text(encoding="utf-8"), options.work, str(image))


if __name__ == "__main__":
    main()
