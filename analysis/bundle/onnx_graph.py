"""The ONNX graph of a bundle: written and compared in the bundle's own process, told of in receipt and README."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.bundle.data import ValidationData, some_images
from analysis.bundle.process import Graphing, run_alone
from spaces.errors import HeadwayError, UserError, choices
from spaces.patching import split
from spaces.registry import families

NAME = "model.onnx"
KINDS = ("raw", "nms", "none")
COMPARED = 4
"""Images: the first alone, three together."""


def check_kind(kind: str) -> None:
    """Checks what a user asks for.

    Raises:
        UserError: It is none of ``KINDS``.
    """
    if kind not in KINDS:
        raise UserError(f"--onnx: must be {choices(KINDS)}, but got {kind!r}.")


def excluded_by(knobs: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By export format, the families whose knobs forbid it, with ``family``, ``knobs`` and ``reason`` each."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, values in split(knobs).items():
        for limit in families()[name].export_limits:
            if limit.holds(values):
                names = [condition.knob for condition in limit.when] or list(values)
                part = {f"{name}.{knob}": values[knob] for knob in names}
                found.setdefault(limit.format, []).append({"family": name, "knobs": part, "reason": limit.reason})
    return found


def write_onnx(folder: Path, kind: str, knobs: Mapping[str, Any], validation: ValidationData) -> dict[str, Any]:
    """Writes a bundle's graph where its design has one.

    Args:
        folder: The bundle, which holds config, code and weights.
        kind: One of ``KINDS``.
        knobs: The design.
        validation: Images to compare on.

    Returns:
        ``available``; ``asked``, the kind; ``reason`` and ``excluded_by`` where it is not; else ``file`` and what
        ``analysis.bundle.graph.entry.write`` gives.
    """
    barred = excluded_by(knobs).get("onnx", [])
    if kind == "none" or barred:
        reason = barred[0]["reason"] if barred else "it was not asked for"
        return {"available": False, "asked": kind, "reason": reason, "excluded_by": barred}
    try:
        found = run_alone(folder, onnx=_graphing(folder / NAME, "write", kind, validation), device="cpu")["onnx"]
    except HeadwayError as error:
        found = {"reason": str(error)}
        (folder / NAME).unlink(missing_ok=True)
    if "reason" in found:
        return {"available": False, "asked": kind, "excluded_by": [], **found}
    return {"available": True, "asked": kind, "file": NAME, **found}


def compared(receipt: Mapping[str, Any], folder: Path, validation: ValidationData) -> Graphing | None:
    """What ``run_alone`` needs to compare the graph of a bundle; ``None`` where it has none."""
    onnx = receipt["formats"].get("onnx", {})
    if not onnx.get("available"):
        return None
    return _graphing(folder / onnx["file"], "compare", onnx["kind"], validation)


def judge(receipt: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Gives what is wrong with a graph, and what should be noted.

    Args:
        receipt: Of the bundle.
        found: What ``analysis.bundle.graph.entry.compare`` gave.
    """
    if "reason" in found:
        return [], [f"ONNX was not compared: {found['reason']}."]
    check = found["check"]
    told = receipt["formats"]["onnx"]["check"]["runtime"]
    notes = []
    if check["runtime"] != told:
        notes.append(f"onnxruntime is {check['runtime']}, but the bundle was made with {told}.")
    if check["ok"]:
        return [], notes
    parts = [
        f"{name} by {value:.2g} ({check['limits'][name]:g} allowed)" if value is not None else f"{name} altogether"
        for name, value in check["difference"].items()
        if value is None or value > check["limits"][name]
    ]
    return [f"{NAME} differs from PyTorch on {check['image']}: {', '.join(parts)}."], notes


def words(check: Mapping[str, Any]) -> str:
    """Words the largest difference of a comparison that went well."""
    kinds: dict[float, float] = {}
    for name, value in check["difference"].items():
        limit = check["limits"][name]
        kinds[limit] = max(kinds.get(limit, 0.0), value)
    parts = ", ".join(f"{value:.1g} where {limit:g} is allowed" for limit, value in sorted(kinds.items()))
    batches = " and ".join(map(str, check["batches"]))
    return f"largest difference {parts}; {len(check['images'])} images in batches of {batches}"


def _graphing(path: Path, act: str, kind: str, validation: ValidationData) -> Graphing:
    images = validation.content["images"]
    upright = sum(image.get("height", 0) > image.get("width", 0) for image in images)
    chosen = [validation.images / image["file_name"] for image in some_images(validation.content, COMPARED)]
    return Graphing(act=act, path=path, kind=kind, images=chosen, portrait=2 * upright > len(images))
