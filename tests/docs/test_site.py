"""The site builds without a warning, its links lead somewhere, and what it prints is what the code takes."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import search.cli
from search.study import Study, parse

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "generated" not in path.parts and "examples" not in path.parts)
WRITTEN = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes/papers/README.md"]


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Builds a folder of pages with the site's settings; warnings are errors."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", str(DOCS)]
    return subprocess.run([*command, str(source), str(out)], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(DOCS, out)
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_there(site: Path) -> None:
    missing = [page for page in PAGES if not (site / page.relative_to(DOCS).with_suffix(".html")).is_file()]
    assert missing == []


def test_it_asks_no_other_host(site: Path) -> None:
    """A page loads its scripts, styles and pictures from its own folder."""
    loads = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["'](?P<src>[^"']+)|<link\b[^>]*>""")
    asked = []
    for page in site.rglob("*.html"):
        for found in loads.finditer(page.read_text(encoding="utf-8")):
            address = found["src"] or found[0]
            if "//" in address.partition("?")[0] and "data:" not in address:
                asked.append(f"{page.name}: {address}")
    assert asked == []


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    links = {
        "page": "[gone](page-nowhere.md)",
        "anchor of a page": "[gone](index.md#anchor-nowhere)",
        "anchor": "[gone](#own-nowhere)",
        "class": "{py:class}`spaces.knob.class_nowhere`",
    }
    (tmp_path / "index.md").write_text("# A page\n\n" + "\n\n".join(links.values()) + "\n")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode != 0
    told = re.findall(r"(\w+[-_]nowhere)", done.stderr)
    assert {"page-nowhere", "anchor-nowhere", "own-nowhere", "class_nowhere"} <= {*told}


def fences(page: Path, *kinds: str) -> list[str]:
    """The code blocks of a page of these languages."""
    text = page.read_text(encoding="utf-8")
    return [found[2] for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if found[1] in kinds]


def commands(page: Path) -> list[str]:
    """The commands of Headway that a page prints, in one line each and without comments."""
    lines = "\n".join(fences(page, "", "sh")).replace("\\\n", " ").splitlines()
    found = (re.sub(r"\s+#.*", "", line).strip().removeprefix(".venv/bin/") for line in lines)
    return [line for line in found if line.startswith("headway ") and "  " not in line.strip()]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_are_legal(page: Path) -> None:
    for line in commands(page):
        try:
            search.cli._parser().parse_args(shlex.split(line.replace("...", ""))[1:])
        except SystemExit:
            pytest.fail(f"{page.name} prints '{line}', which the parser does not take")


def test_there_are_commands() -> None:
    assert sum(len(commands(page)) for page in WRITTEN) > 40


@pytest.mark.parametrize("page", WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_study_files_are_legal(page: Path) -> None:
    """Whole ones, and parts of one put into another."""
    split = {"annotations": "a.json", "images": "images"}
    whole = {"name": "cells", "base": "headway::gfl_tiny", "data": {"train": split, "val": split, "size": [64, 64]}}
    for text in fences(page, "yaml"):
        given: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
        parse({**whole, "space": {"slimhead": {}}, **given}, page.name)


def test_the_study_files_reference_is_whole(site: Path) -> None:
    text = (site / "reference/study.html").read_text(encoding="utf-8")
    schema = Study.model_json_schema(by_alias=True)
    for key, prop in schema["properties"].items():
        assert f">{key}<" in text
        assert prop.get("description") or "$ref" in prop, f"{key} has no description"
    for name, section in schema["$defs"].items():
        for key, prop in section["properties"].items():
            # A section inside of a section is told key by key.
            inner = r"\.\w+" if "$ref" in str(prop) else ""
            assert re.search(rf"\.{key}{inner}<", text), f"{name}.{key}"
            assert prop.get("description") or "$ref" in str(prop), f"{name}.{key} has no description"


def test_the_commands_reference_is_whole(site: Path) -> None:
    text = (site / "reference/commands.html").read_text(encoding="utf-8")
    (action,) = (one for one in search.cli._parser()._actions if isinstance(one, argparse._SubParsersAction))
    for name, command in action.choices.items():
        assert f'id="command-{name}"' in text or f'id="headway-{name}"' in text
        options = {option for one in command._actions for option in one.option_strings} - {"-h", "--help"}
        assert options <= {*re.findall(r"--[a-z-]+", text)}
