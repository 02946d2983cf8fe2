"""A bundle in MLflow's model registry: registered beside its trial's run, loaded back, finding the same boxes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from analysis.bundle.process import run_alone
from analysis.record import EpochRecord, TrialState
from search.api import Study
from search.cli import main
from search.delivery import deliver
from search.engine import prepare
from search.folder import claimed, write_study
from search.registering import requirements
from search.store import Store
from search.study import load
from search.tracking import default_uri
from search.tracking.registry import FORBIDDEN
from spaces.errors import UserError
from trainers.contract import SpeedRequest, TrialReport, TrialRequest
from trainers.detector import train

STUDY = """
name: cells
base: headway::gfl_nano
data: {digits: {train: 6, val: 6}, size: [96, 96]}
space: {slimhead: {}}
budget: {trials: 4, epochs: 5}
training: {batch: 1, lr: 0.002}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A study whose baseline was really trained, in MLflow, and its bundle."""
    root = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWAY_CACHE", str(root / "cache"))
        patch.chdir(root)
        (root / "cells.yaml").write_text(STUDY)
        study, folder = load(root / "cells.yaml"), root / "studies/cells"
        data, _, space = prepare(study)
        with claimed(folder):
            store = Store.create(folder, study)
            store.propose_baseline(space)
            store.start(0)
            number = store.records()[0]

            def report(message: TrialReport) -> None:
                if message.phase == "epoch":
                    store.add_epoch(0, EpochRecord(message.epoch, dict(message.metrics), message.seconds))
                elif message.phase != "done":
                    store.update(0, dict(message.metrics), dict(message.attrs), message.seconds)

            request = TrialRequest(
                number=0, base=study.base, knobs={}, data=data, folder=str(folder / number.folder), epochs=5, batch=1,
                lr=0.002, count_size=(96, 96),
                speed=SpeedRequest(size=(96, 96), batch=1, postprocess=True, device="cpu", pairs=2, seconds=0),
            )  # fmt: skip
            train(request, report)
            store.update(0, {"latency_ms": 9.0}, {}, 9.0)
            store.finish(0, TrialState.COMPLETE)
            write_study(folder, study)
            deliver(study, folder, store.records())
        assert main(["export", "cells", "--out", "bundle", "--onnx", "none"]) == 0
        yield root


def registered(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_it_is_loaded_back_and_finds_the_same_boxes(
    ran: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ran)
    monkeypatch.setenv("HEADWAY_CACHE", str(ran / "cache"))
    (one,) = registered(capsys, "register", "cells", "bundle", "--name", "cell-heads")
    assert (one["name"], one["version"], one["new"]) == ("cell-heads", "1", True)
    assert one["aliases"] == ["knee", "fastest", "most_accurate"]

    uri = default_uri(ran / "studies/cells")
    client = MlflowClient(tracking_uri=uri)
    version = client.get_model_version_by_alias("cell-heads", "knee")
    run = client.get_run(version.run_id)
    assert run.data.tags["headway.trial"] == "0"  # the source run is the trial's
    assert version.tags["headway.study"] == "cells" and version.tags["headway.picks"] == "knee, fastest, most_accurate"
    assert float(version.tags["headway.latency_ms"]) == 9.0
    assert "cells, trial 0: baseline" in str(version.description)

    monkeypatch.setattr(mlflow, "get_tracking_uri", mlflow.get_tracking_uri)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/cell-heads@most_accurate")
    finally:
        mlflow.set_tracking_uri(before)
    inputs, outputs = model.metadata.signature.inputs, model.metadata.signature.outputs
    assert [(item.type, item.shape) for item in inputs] == [(np.dtype("uint8"), (-1, -1, 3))]
    assert [item.name for item in outputs] == ["boxes", "labels", "scores"]
    assert model.metadata.metadata["classes"] == [str(digit) for digit in range(10)]

    # Lossless pictures, so that OpenCV in the bundle and PIL here see the same image; not grey, so that the order of
    # the channels shows.
    image = ran / "tinted.png"
    pixels = np.asarray(Image.open(next((ran / "cache").rglob("*.png"))).convert("RGB"))
    pixels = (pixels * np.array([1.0, 0.8, 0.5])).astype(np.uint8)
    Image.fromarray(pixels).save(image)
    (expected,) = run_alone(ran / "bundle", detect=[image], device="cpu")["detections"]
    found = model.predict(pixels)
    assert len(expected["scores"]) > 0
    np.testing.assert_allclose(found["boxes"], expected["bboxes"], atol=1e-3)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)
    assert found["labels"].tolist() == expected["labels"]
    swapped = model.predict(np.ascontiguousarray(pixels[..., ::-1]))
    assert not np.array_equal(swapped["scores"], found["scores"])
    least = float(np.median(found["scores"]))
    some = model.predict(pixels, params={"score": least})
    assert 0 < len(some["scores"]) < len(found["scores"]) and some["scores"].min() >= least
    assert len(model.predict(model.input_example)["scores"]) >= 0
    with pytest.raises(mlflow.exceptions.MlflowException, match="schema"):
        model.predict(pixels.astype("float64"))


@pytest.mark.slow
def test_the_model_needs_mmdet_and_nothing_of_headway(
    ran: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ran)
    monkeypatch.setenv("HEADWAY_CACHE", str(ran / "cache"))
    registered(capsys, "register", "cells", "bundle", "--name", "alone")
    uri = default_uri(ran / "studies/cells")
    version = MlflowClient(tracking_uri=uri).get_model_version("alone", "1")
    program = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("search", "spaces", "trainers", "analysis", "ray", "optuna"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import mlflow, numpy
model = mlflow.pyfunc.load_model({version.source!r})
print("FOUND", len(model.predict(numpy.zeros((96, 96, 3), "uint8"))["scores"]))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", program], cwd=ran, capture_output=True, text=True,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip
    assert done.returncode == 0 and "FOUND" in done.stdout, done.stderr
    needs = (Path(version.source.removeprefix("file://")) / "requirements.txt").read_text()
    receipt = json.loads((ran / "bundle/receipt.json").read_text())
    assert [line for line in requirements(receipt) if line not in needs] == []
    assert any(line.startswith("onedl-mmdetection==") or line.startswith("mmdet==") for line in requirements(receipt))
    assert "+" not in needs


@pytest.mark.slow
def test_the_same_bundle_is_one_version(
    ran: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ran)
    monkeypatch.setenv("HEADWAY_CACHE", str(ran / "cache"))
    first = registered(capsys, "register", "cells", "bundle", "--name", "twice")
    again = registered(capsys, "register", "cells", "bundle", "--name", "twice")
    assert [(one["version"], one["new"]) for one in first + again] == [("1", True), ("1", False)]
    # Another export is another version; the aliases go over to it, and the first stays as it was.
    found = registered(capsys, "export", "cells", "--all", "--out", "all", "--register", "twice", "--onnx", "none")
    assert [(one["version"], one["new"]) for one in found["registered"]] == [("2", True)]
    client = MlflowClient(tracking_uri=default_uri(ran / "studies/cells"))
    assert str(client.get_model_version_by_alias("twice", "knee").version) == "2"  # a number without a server
    sources = [Path(client.get_model_version("twice", number).source.removeprefix("file://")) for number in ("1", "2")]
    assert sources[0] != sources[1] and all((source / "MLmodel").is_file() for source in sources)


def test_what_cannot_be_registered(ran: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ran)
    monkeypatch.setenv("HEADWAY_CACHE", str(ran / "cache"))
    study = Study.open("cells")
    for name in ["", " ", *(f"a{character}b" for character in FORBIDDEN)]:
        with pytest.raises(UserError, match="--name: must be a name without"):
            study.register("bundle", name=name)
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in (ran / "bundle").iterdir():
        if path.is_file():
            (changed / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="are not those of its receipt; export it again"):
        study.register(changed, name="x")
    receipt = json.loads((changed / "receipt.json").read_text())
    receipt["study"]["name"] = "others"
    (changed / "receipt.json").write_text(json.dumps(receipt))
    with pytest.raises(UserError, match=r"must be a bundle of cells, but .* is one of others"):
        study.register(changed, name="x")
