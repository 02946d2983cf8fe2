"""What is told about bundles that were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from search.exporting import without_onnx


def bundle(folder: Path, **onnx: Any) -> Path:
    folder.mkdir()
    receipt = {
        "format": 1,
        "metrics": {"bbox_mAP": {"value": 0.5}},
        "files": {},
        "data": {"validation_fingerprint": "f"},
        "environment": {"exported": {"versions": {}}},
        "formats": {"onnx": onnx},
    }
    (folder / "receipt.json").write_text(json.dumps(receipt))
    return folder


def test_a_graph_that_was_asked_for_and_is_not_there(tmp_path: Path) -> None:
    bundles = [
        bundle(tmp_path / "with", available=True, asked="raw"),
        bundle(tmp_path / "unasked", available=False, asked="none", reason="it was not asked for"),
        bundle(tmp_path / "without", available=False, asked="nms", reason="no"),
    ]
    assert without_onnx(bundles) == [{"bundle": str(tmp_path / "without"), "reason": "no"}]
