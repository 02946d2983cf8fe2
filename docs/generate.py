"""Pages that follow from the code: the study file, the commands, the metrics, the families.

``docs/conf.py`` writes them into ``docs/generated/`` before each build, from where pages include them, so they cannot
drift from the code.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import search.cli
import search.events
from analysis.labels import axis
from search.study import ACCURACIES, COSTS, Study
from spaces.registry import families

ROOT = Path(__file__).resolve().parents[1]


def write(folder: Path) -> None:
    """Writes all pages; a file that would not change is left alone."""
    folder.mkdir(exist_ok=True)
    pages = {
        "study": study_file(),
        "commands": commands(),
        "metrics": metrics(),
        "families": family_list(),
        "events": events(),
    }
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def study_file() -> str:
    """The study file, key by key, from its pydantic models."""
    schema = Study.model_json_schema(by_alias=True)
    parts = [_section("", schema, schema["$defs"])]
    for key, prop in schema["properties"].items():
        section = _section_of(prop, schema["$defs"])
        if section is not None:
            parts.append(_section(key, section, schema["$defs"]))
    return "\n".join(parts)


def _section(key: str, schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    lines = [f"### {key}", "", _prose(schema["description"]), ""] if key else []
    lines += ["| key | legal | default | meaning |", "|---|---|---|---|"]
    for name, prop in schema["properties"].items():
        section = _section_of(prop, defs)
        full = f"{key}.{name}" if key else name
        if section is not None and key:
            # What stands one level deeper is told in its place.
            lines += [_row(f"{full}.{inner}", one, section, defs) for inner, one in section["properties"].items()]
        elif section is not None:
            kind = "a list of sections" if prop.get("type") == "array" else "a section"
            nothing = " or null" if {"type": "null"} in prop.get("anyOf", ()) else ""
            default = "" if name in schema.get("required", ()) else "see there"
            meaning = _prose(prop.get("description", section["description"]))
            lines.append(f"| [`{name}`](study-{name}) | {kind}{nothing} | {default} | {meaning} |")
        else:
            lines.append(_row(full, prop, schema, defs))
    return "\n".join([f"(study-{key})=", *lines, ""] if key else [*lines, ""])


def _row(full: str, prop: Mapping[str, Any], schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    required = full.rpartition(".")[2] in schema.get("required", ())
    default = "required" if required else f"`{json.dumps(prop.get('default'))}`"
    return f"| `{full}` | {legal(prop, defs)} | {default} | {_prose(prop.get('description', ''))} |"


def _section_of(prop: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a key holds, also as one of several or in a list."""
    for one in (prop, *prop.get("anyOf", ()), prop.get("items", {})):
        if "$ref" in one:
            found: Mapping[str, Any] = defs[one["$ref"].rpartition("/")[2]]
            return found
    return None


def legal(prop: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """Words the legal values of a JSON schema."""
    if "anyOf" in prop:
        return " or ".join(legal(one, defs) for one in prop["anyOf"])
    if "enum" in prop:
        return ", ".join(f"`{value}`" for value in prop["enum"])
    if "const" in prop:
        return f"`{prop['const']}`"
    if prop.get("type") == "array":
        if "prefixItems" in prop:
            return f"[{', '.join(legal(one, defs) for one in prop['prefixItems'])}]"
        return f"a list of {_plural(legal(prop['items'], defs))}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    word = words.get(
        prop.get("type", ""), {"null": "null", "object": "a section"}.get(prop.get("type", ""), "anything")
    )
    bounds = (
        ("minimum", "from {}"),
        ("exclusiveMinimum", "above {}"),
        ("maximum", "to {}"),
        ("exclusiveMaximum", "below {}"),
    )
    return " ".join([word, *(text.format(prop[key]) for key, text in bounds if key in prop)])


def _plural(words: str) -> str:
    return {"text": "texts", "a section": "sections"}.get(words, words)


def commands() -> str:
    """The commands with all their options, from the parser."""
    parser = search.cli._parser()
    (action,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    texts = {choice.dest: choice.help for choice in action._choices_actions}
    lines = ["| command | what it does |", "|---|---|"]
    lines += [f"| [`headway {name}`](command-{name}) | {_prose(texts[name] or '')} |" for name in action.choices]
    for name, command in action.choices.items():
        lines += ["", f"(command-{name})=", f"## headway {name}", "", f"{_sentence(texts[name] or '')}", ""]
        usage = " ".join(command.format_usage().removeprefix("usage: ").split())
        lines += ["```text", usage, "```", "", "| argument | meaning |", "|---|---|"]
        for one in command._actions:
            if not isinstance(one, argparse._HelpAction):
                lines.append(f"| {_names(one)} | {_prose(str(one.help))} |")
    return "\n".join(lines) + "\n"


def _names(action: argparse.Action) -> str:
    value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    if not action.option_strings:
        return f"`{value}`"
    takes = "" if action.nargs == 0 else f" {value}"
    return f"`{', '.join(action.option_strings)}{takes}`"


def metrics() -> str:
    """The metrics that a study file may name."""
    lines = ["| metric | shown as | what it is | better |", "|---|---|---|---|"]
    for found, better in ((ACCURACIES, "higher"), (COSTS, "lower")):
        lines += [f"| `{name}` | {axis(name)} | {_prose(text)} | {better} |" for name, text in found.items()]
    return "\n".join(lines) + "\n"


def family_list() -> str:
    """The families of this installation."""
    lines = ["| family | what it does | source |", "|---|---|---|"]
    for name, family in families().items():
        if family.package.startswith("spaces."):
            lines.append(f"| [`{name}`]({name}.md) | {_prose(family.title)} | {_prose(family.paper)} |")
    return "\n".join(lines) + "\n"


def events() -> str:
    """The event log, from its module's docstring, which is Markdown but for its double backquotes."""
    text = inspect.cleandoc(search.events.__doc__ or "")
    return text.replace("``", "`") + "\n"


def _prose(text: str) -> str:
    """One line of Markdown for a table's cell, from a docstring or a help text."""
    text = " ".join(text.split()).replace("``", "`")
    parts: Iterable[str] = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([|<*_])", r"\\\1", part) for part in parts)


def _sentence(text: str) -> str:
    words = _prose(text)
    return f"{words[:1].upper()}{words[1:]}."


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the pages into a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "generated")
    write(parser.parse_args(arguments).out)


if __name__ == "__main__":
    main()
