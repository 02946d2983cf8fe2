"""The report of a study that was run: by the command, at the end of a run, and in MLflow."""

import json
import logging

import pytest

from analysis.record import EpochRecord, TrialState
from search.cli import main
from search.engine import prepare
from search.folder import claimed, write_study
from search.report import leave_report
from search.store import Store
from search.study import load

STUDY = """
name: cells
base: headway::gfl_tiny
data: {digits: {train: 8, val: 4}, size: [96, 96]}
space: {slimhead: {levels: {among: [0]}, ratio: [0.25, 0.5], mode: nearest}}
budget: {trials: 3, epochs: 2}
sampler: {name: random}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study that was run, and its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADWAY_STUDIES", raising=False)
    (tmp_path / "cells.yaml").write_text(STUDY)
    file = load(tmp_path / "cells.yaml")
    _, data, space = prepare(file)
    folder = tmp_path / "studies/cells"
    with claimed(folder):
        store = Store.create(folder, file)
        store.propose_baseline(space)
        for number in range(3):
            store.start(number)
            store.update(number, {"latency_ms": 20.0 - number, "latency_ratio": 1 - number / 20}, {}, 9.0)
            store.add_epoch(number, EpochRecord(2, {"bbox_mAP": 0.3 - number / 50}, 8.0))
            store.finish(number, TrialState.COMPLETE)
            if number < 2:
                store.propose(space)
        write_study(folder, file)
    return file, folder, store, data, space


def test_the_command(study, capsys, tmp_path):
    assert main(["report", "cells", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    page = tmp_path / "studies/cells/report.html"
    assert found["report"] == str(page)
    assert found["states"] == {"COMPLETE": 3}
    assert [item["metric"] for item in found["importance"]] == ["bbox_mAP", "latency_ms"]
    told = page.read_text()
    assert "3 trials: 3 complete." in told
    assert "8 images with" in told
    assert "; 2 designs at most." in told
    assert "<code>headway confirm cells</code>" in told
    assert main(["report", "cells", "--out", str(tmp_path / "other.html")]) == 0
    assert capsys.readouterr().out == f"The report: {tmp_path / 'other.html'}\n"
    assert (tmp_path / "other.html").read_text() == told


@pytest.mark.parametrize("out", ["page.txt", "cells.yaml/page.html"])
def test_a_page_that_cannot_be_written(study, capsys, out):
    assert main(["report", "cells", "--out", out]) == 2
    assert "--out: must" in capsys.readouterr().err


def test_a_study_that_lies_elsewhere_names_its_folder(study, capsys, tmp_path, monkeypatch):
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    assert main(["report", str(tmp_path / "studies/cells")]) == 0
    told = (tmp_path / "studies/cells/report.html").read_text()
    assert f"headway confirm cells --studies {tmp_path / 'studies'}" in told


def test_data_that_is_gone_is_said_to_be_unknown(study, caplog, tmp_path):
    file, folder, *_ = study
    gone = {"annotations": str(tmp_path / "gone.json"), "images": str(tmp_path)}
    data = {**file.dump()["data"], "digits": None, "train": gone, "val": gone}
    write_study(folder, type(file).model_validate({**file.dump(), "data": data}))
    assert main(["report", "cells"]) == 0
    assert "could not be read when this page was made" in (folder / "report.html").read_text()
    assert "goes without" in caplog.text


def test_a_page_that_cannot_be_made_ends_no_run(study, caplog, monkeypatch):
    file, folder, store, data, space = study
    monkeypatch.setattr("analysis.report.report_html", lambda *_, **__: 1 / 0)
    with caplog.at_level(logging.WARNING):
        left = leave_report(file, folder, store.records(), seconds_run=1.0, data=data, space=space)
    assert left is None
    assert "no report was made: ZeroDivisionError" in caplog.text
    assert not (folder / "report.html").exists()


def test_it_is_an_artifact_of_the_study_s_run(study):
    from mlflow.tracking import MlflowClient

    from search.delivery import deliver, tracking_uri
    from search.tracking import find_run

    file, folder, store, data, space = study
    left = leave_report(file, folder, store.records(), seconds_run=1.0, data=data, space=space)
    deliver(file, folder, store.records())
    uri = tracking_uri(file, folder)
    _, run = find_run(uri=uri, experiment="cells", study_folder=folder)
    assert "report.html" in {item.path for item in MlflowClient(uri).list_artifacts(run)}
    copies = list((folder / "artifacts").rglob("report.html"))
    assert [path.read_text() for path in copies] == [left.read_text()]
