"""What ``analysis/bundle/alone.py`` calls: writes a bundle's graph, or compares one that is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from .check import check_graph
from .images import preparation
from .outputs import Unsupported, outputs_of
from .write import write_graph

_PACKAGES = ("onnx", "onnxruntime")


def write(model: Any, path: str, kind: str, images: Sequence[str], portrait: bool) -> dict[str, Any]:
    """Writes a detector's graph and compares it with the detector.

    Args:
        model: The detector, on the CPU.
        path: The file to write; there is none where the answer has a ``reason``.
        kind: ``raw`` or ``nms``.
        images: Image files to compare on.
        portrait: Whether the frame of the images stands upright.

    Returns:
        ``reason`` why there is no graph; else ``kind``, what ``write_graph`` gives, ``preprocessing``, ``dynamic`` and
        ``check``, as ``check_graph`` gives it.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        return {"reason": f"{' and '.join(missing)} must be installed (pip install 'headway[onnx]')"}
    try:
        prepare = preparation(model, portrait)
        network = outputs_of(model, kind, prepare.canvas).eval()
        classes = list(model.dataset_meta["classes"])
        about = {"classes": classes, "preprocessing": prepare.to_json(), "outputs": kind}
        written = write_graph(network, path, about)
        check = check_graph(network, path, prepare, images)
    except Unsupported as error:
        found: dict[str, Any] = {"reason": str(error)}
    except Exception as error:  # exporters and runtimes raise what they like
        words = " ".join(str(error).split())
        found = {"reason": f"it could not be written or run: {type(error).__name__}: {words[:400]}"}
    else:
        if check["ok"]:
            return {"kind": kind, **written, "preprocessing": prepare.to_json(), "dynamic": ["batch"], "check": check}
        found = {"reason": f"onnxruntime's outputs differ from PyTorch's on {check['image']}", "check": check}
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    return found


def compare(model: Any, path: str, kind: str, images: Sequence[str], portrait: bool) -> dict[str, Any]:
    """Compares a graph that is there with the detector, on the CPU.

    Returns:
        ``check``, as ``check_graph`` gives it, or the ``reason`` why there is none.
    """
    if find_spec("onnxruntime") is None:
        return {"reason": "onnxruntime is not installed (pip install 'headway[onnx]')"}
    prepare = preparation(model, portrait)
    return {"check": check_graph(outputs_of(model, kind, prepare.canvas).eval(), path, prepare, images)}
