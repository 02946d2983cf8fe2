"""Each message that the page of troubleshooting quotes is one that the code can give."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/troubleshooting.md"
# A text of the source counts from this many letters on, and what is not a value must make up this share of a message.
LEAST, SHARE = 9, 0.4


@cache
def templates() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """The texts of the source, with gaps where values stand, and the longest constant of each."""
    found: set[tuple[str, ...]] = set()
    for package in ("search", "spaces", "trainers", "analysis"):
        for path in (ROOT / package).rglob("*.py"):
            found.update(_texts(ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(
        (max(parts, key=len), re.compile("(.*?)".join(f"({re.escape(part)})" for part in parts)))
        for parts in sorted(found)
        if max(map(len, parts)) >= LEAST
    )


def _texts(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """The constants of each text, in their order; docstrings are none."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value for part in node.values if isinstance(part, ast.Constant)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            parts = [node.value]
        else:
            continue
        if parts:
            yield tuple(one_line(str(part)) for part in parts)


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def constants(message: str) -> float:
    """The share of a message that stands in the source, as constants of texts that fit it."""
    padded = f" {one_line(message)} "
    seen: set[int] = set()
    for longest, pattern in templates():
        fit = pattern.search(padded) if longest in padded else None
        if fit:
            # Every second group is a constant, the others are values.
            for group in range(1, pattern.groups + 1, 2):
                seen.update(range(*fit.span(group)))
    letters = {index for index, letter in enumerate(padded) if letter != " "}
    return len(seen & letters) / len(letters)


def quoted(page: str) -> list[str]:
    """The messages in the page's text blocks, one a line that begins a message."""
    lines = [line for block in re.findall(r"^```text\n(.*?)^```$", page, re.M | re.S) for line in block.splitlines()]
    # What stands after dots was left out, and goes on with whatever it is.
    return [line.removesuffix("...").rstrip(", ").strip() for line in lines]


@pytest.mark.parametrize("message", quoted(PAGE.read_text(encoding="utf-8")))
def test_the_code_can_say_it(message: str) -> None:
    assert constants(message) >= SHARE


def test_there_are_some() -> None:
    assert len(quoted(PAGE.read_text(encoding="utf-8"))) >= 25


def test_the_check_can_fail() -> None:
    assert constants("headway: error: study file: must exist, but there is no file x.yaml.") >= SHARE
    assert constants("headway: error: study file: has to be there, but no x.yaml could be found.") < SHARE
