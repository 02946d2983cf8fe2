"""The example notebook runs as it is shipped: without outputs, each cell without an error, its figures shown."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples/notebook.ipynb"
SHOWN = "application/vnd.plotly.v1+json"


def test_it_is_kept_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.timeout(300)
def test_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = str(NOTEBOOK.parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("HEADWAY_STUDIES", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()

    def shown(part: str) -> list[nbformat.NotebookNode]:
        found: list[nbformat.NotebookNode] = next(
            cell.outputs for cell in notebook.cells if cell.cell_type == "code" and part in cell.source
        )
        return found

    (plot,) = shown("recorded.plot()")
    assert SHOWN in plot.data and any(trace.get("name") == "front" for trace in plot.data[SHOWN]["data"])
    assert SHOWN in shown("px.line(curves")[0].data and SHOWN in shown("px.line(grown")[0].data
    assert "text/html" in shown("recorded.front()[")[0].data
    assert "did you mean 'budget'?" in shown("except UserError")[0].text
    assert "is the knee" in shown('recorded.choose("knee")')[0].text
    assert shown("mine = Study(")[0].data["text/plain"] == f"Study('notebook' in {tmp_path}/notebook)"
    assert not list(tmp_path.iterdir())  # a study that is only described leaves nothing behind
