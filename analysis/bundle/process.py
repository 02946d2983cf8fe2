"""Starts the program that runs a bundle without Headway, and talks with it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spaces.errors import HeadwayError

BLOCKED = ("search", "spaces", "trainers", "analysis", "recipes", "ray", "optuna", "mlflow")
Progress = Callable[[int, int], None]

_PROGRAM = Path(__file__).with_name("alone.py")
# Imports nothing of Headway, so that its path is all that the program needs.
_LOOK = Path(__file__).parents[2] / "trainers/look.py"
_GRAPH = Path(__file__).with_name("graph")
_TAIL = 1500  # characters of its standard error that an error carries


@dataclass(frozen=True, kw_only=True)
class Looking:
    """Images to look at with a bundle, as ``trainers.look`` does.

    Attributes:
        images: Image files.
        arguments: Further arguments of ``trainers.look.look``.
        seen: Called for each image with its index, the bundle's class names, and what was seen.
    """

    images: Sequence[Path]
    arguments: Mapping[str, Any]
    seen: Callable[[int, list[str], dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Graphing:
    """An ONNX graph to write or to compare, as ``analysis.bundle.graph.entry`` does.

    Attributes:
        act: ``write`` or ``compare``.
        path: The graph's file.
        kind: ``raw`` or ``nms``.
        images: Image files to compare on.
        portrait: Whether the frame of the images stands upright.
    """

    act: str
    path: Path
    kind: str
    images: Sequence[Path]
    portrait: bool


def run_alone(
    bundle: Path,
    *,
    detect: Sequence[Path] = (),
    look: Looking | None = None,
    annotations: Path | None = None,
    images: Path | None = None,
    onnx: Graphing | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    python: Path | None = None,
) -> dict[str, Any]:
    """Loads a bundle in a fresh process in which ``BLOCKED`` cannot be imported, and runs it.

    ``PYTHONPATH``, the user's own packages and the working folder are out of that process's reach as well.

    Args:
        bundle: The bundle's folder.
        detect: Image files to detect objects in.
        look: Images to look into the network with, for pictures.
        annotations: COCO json to measure accuracy on, or ``None``.
        images: Folder of its images.
        onnx: A graph to write or to compare, after all else and on the CPU.
        device: ``cpu``, ``cuda:0``, ...; by default a GPU where there is one.
        progress: Called with the images done and their number.
        python: Interpreter of another environment, which has mmdet; by default this one.

    Returns:
        ``blocked``, ``versions``, ``packages`` (names of distributions) and ``device``; ``detections``, a mapping an
        image with ``bboxes``, ``labels`` and ``scores``, best first; ``metrics`` and the number of ``images`` when
        measured; ``onnx`` as the act gives it.

    Raises:
        HeadwayError: The bundle does not load or run; the message says in which step and why.
    """
    job = {
        "bundle": str(bundle.absolute()),
        "blocked": BLOCKED,
        "detect": [str(path.absolute()) for path in detect],
        "look": look
        and {
            "program": str(_LOOK),
            "images": [str(path.absolute()) for path in look.images],
            "arguments": dict(look.arguments),
        },
        "annotations": str(annotations.absolute()) if annotations else None,
        "images": str(images.absolute()) if images else None,
        "onnx": onnx
        and {
            "package": str(_GRAPH),
            "act": onnx.act,
            "arguments": {
                "path": str(onnx.path.absolute()),
                "kind": onnx.kind,
                "images": [str(path.absolute()) for path in onnx.images],
                "portrait": onnx.portrait,
            },
        },
        "device": device,
    }
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        tempfile.TemporaryDirectory() as cwd,
    ):
        child = subprocess.Popen(
            # Compiled code that lies in the bundle, which no receipt names, is not looked at.
            [str(python or sys.executable), "-I", "-B", "-X", f"pycache_prefix={cwd}", "-W", "ignore", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=cwd,
            text=True,
        )
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            with child.stdin, child.stdout:
                try:
                    child.stdin.write(json.dumps(job) + "\n")
                    child.stdin.flush()
                except BrokenPipeError:
                    pass  # it is dead; the end of its messages tells so
                for line in child.stdout:
                    message = json.loads(line)
                    if message["kind"] == "progress":
                        if progress:
                            progress(*message["value"])
                    elif message["kind"] == "seen":
                        if look:
                            look.seen(*message["value"])
                    elif message["kind"] == "result":
                        return dict(message["value"])
                    else:
                        raise HeadwayError(f"bundle: {message['value']}")
            child.wait()
            errors.seek(0)
            said = errors.read()[-_TAIL:].strip() or "nothing"
            raise HeadwayError(f"bundle: the process that ran it ended with status {child.returncode}: {said}")
        finally:
            # After its last message it has nothing left to do but to tear torch down.
            child.kill()
            child.wait()
