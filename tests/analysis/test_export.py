"""Bundles of two trials that were really trained: written, loaded by plain mmdet, measured again, tampered with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from analysis import export
from analysis.bundle import alone
from analysis.bundle.config import bundle_config, detector_type, read_trial_config
from analysis.bundle.data import read_validation, recall, some_images
from analysis.bundle.heads import Heads, copy_heads
from analysis.bundle.onnx_graph import check_kind, judge
from analysis.bundle.process import BLOCKED
from analysis.bundle.receipt import unit
from analysis.export import export_bundle
from analysis.record import EpochRecord, TrialRecord, TrialState
from analysis.verify import verify_bundle
from spaces.errors import HeadwayError, UserError
from spaces.registry import families
from trainers.contract import DataRequest, Dtype, SpeedRequest, TrialReport, TrialRequest
from trainers.digits import write_digits

SLIM = {
    "dcn.placement": ["cls.0"],
    "dcn.version": 2,
    "slimhead.levels": [0],
    "slimhead.ratio": 0.5,
    "slimhead.mode": "nearest",
}
SECRET = "postgresql://searcher:hunter2@db.example/headway"


@dataclass(frozen=True)
class Trained:
    """A study of two trials: the baseline and a slim, deformable one."""

    folder: Path
    study: dict[str, Any]
    data: DataRequest
    records: list[TrialRecord]

    def export(self, number: int, out: Path, onnx: str = "none", **changes: Any) -> Path:
        return export_bundle(
            replace(self.records[number], **changes),
            study_folder=self.folder,
            study=self.study,
            data=self.data,
            fingerprint="f" * 64,
            out=out,
            why="trial 1 is the knee: AP 20.0 %, latency 9.0 ms",
            baseline=self.records[0],
            onnx=onnx,
        )


def train(
    folder: Path, number: int, knobs: dict[str, Any], data: DataRequest, epochs: int, dtype: Dtype = "float32"
) -> TrialRecord:
    from trainers.detector import train as run

    metrics: dict[str, float] = {"latency_ms": 9.0, "latency_ratio": 0.8}
    attrs: dict[str, Any] = {}
    curve = []

    def report(message: TrialReport) -> None:
        metrics.update(message.metrics)
        attrs.update(message.attrs)
        if message.phase == "epoch":
            curve.append(EpochRecord(message.epoch, dict(message.metrics)))

    # No scaling of the rate and single images: a few seconds of training must give an AP that is worth comparing.
    request = TrialRequest(
        number=number,
        base="headway::gfl_nano",
        knobs=knobs,
        data=data,
        folder=str(folder / f"trials/{number}"),
        epochs=epochs,
        batch=1,
        lr=0.002,
        count_size=(96, 96),
        dtype=dtype,
        speed=SpeedRequest(size=(96, 96), batch=1, postprocess=True, device="cpu", pairs=8, seconds=1.0),
    )
    run(request, report)
    return TrialRecord(
        number,
        TrialState.COMPLETE,
        knobs=knobs,
        metrics=metrics,
        curve=curve,
        folder=f"trials/{number}",
        attrs=attrs,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module", autouse=True)
def cache(home: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWAY_CACHE", str(home / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield home / "cache"


@pytest.fixture(scope="module")
def trained(home: Path, cache: Path) -> Trained:
    digits = write_digits(home / "data", train=6, val=2, size=(96, 96))
    # Measured on what it is trained on: six images are learned by heart in seconds.
    data = DataRequest(
        train_annotations=str(digits.train_annotations),
        train_images=str(digits.train_images),
        val_annotations=str(digits.train_annotations),
        val_images=str(digits.train_images),
        classes=digits.classes,
        size=(96, 96),
    )
    study = {
        "name": "digits-gfl",
        "base": str(home / "bases" / "mine.py"),
        "data": {"train": {"annotations": data.train_annotations}},
        "storage": SECRET,
        "tracking": {"uri": SECRET},
        "speed": {"device": "cpu"},
        "seed": 0,
    }
    records = [train(home / "study", 0, {}, data, 7), train(home / "study", 1, SLIM, data, 7)]
    return Trained(home / "study", study, data, records)


@pytest.fixture(scope="module")
def slim(trained: Trained, home: Path) -> Path:
    # A name that would break out of a string in config.py.
    return trained.export(1, home / "out" / 'it\'s a "slim" one', onnx="nms")


@pytest.fixture(scope="module")
def baseline(trained: Trained, home: Path) -> Path:
    return trained.export(0, home / "out" / "baseline")


@pytest.fixture(scope="module")
def receipt(slim: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((slim / "receipt.json").read_text())
    return value


@pytest.fixture(scope="module")
def short(trained: Trained, home: Path) -> Path:
    """The same design in a study whose detectors predict in bfloat16."""
    folder = home / "short-study"
    records = [train(folder, number, knobs, trained.data, 2, "bfloat16") for number, knobs in enumerate(({}, SLIM))]
    study = {**trained.study, "speed": {"device": "cpu", "dtype": "bfloat16"}}
    return Trained(folder, study, trained.data, records).export(1, home / "out" / "short", onnx="nms")


# --- What is in it ---------------------------------------------------------------------------------------------------


def test_contents(slim: Path, receipt: dict[str, Any], trained: Trained) -> None:
    files = {path.relative_to(slim).as_posix() for path in slim.rglob("*") if path.is_file()}
    package = next((slim / "heads").iterdir()).name
    assert re.fullmatch(r"heads_[0-9a-f]{8}", package)
    names = ("__init__", "modules", "products", "dcn", "dcn_sampling", "slimhead")
    code = {f"heads/{package}/{name}.py" for name in names}
    pictures = {f"detections/{number}.jpg" for number in (1, 2, 3)}
    text = {"config.py", "baseline.py", "README.md", "receipt.json"}
    assert files == {"weights.pth", "model.onnx"} | text | code | pictures
    assert set(receipt["files"]) == files - {"receipt.json"}
    assert [path.name for path in slim.parent.iterdir() if path.name.startswith(".")] == []


def test_baseline_needs_no_heads(baseline: Path) -> None:
    assert not (baseline / "heads").exists()
    text = (baseline / "config.py").read_text()
    assert "custom_imports" not in text
    assert "import sys" not in text
    assert "heads/" not in (baseline / "README.md").read_text()
    # It is what the others are compared with.
    assert not (baseline / "baseline.py").exists()
    assert "baseline.py" not in (baseline / "README.md").read_text()


def test_receipt(receipt: dict[str, Any], trained: Trained) -> None:
    record = trained.records[1]
    assert (receipt["trial"], receipt["baseline"], receipt["state"]) == (1, False, "COMPLETE")
    assert receipt["knobs"] == SLIM
    assert {name: entry["value"] for name, entry in receipt["metrics"].items()} == record.metrics
    assert receipt["metrics"]["latency_ms"] == {"value": 9.0, "unit": "ms"}
    assert receipt["metrics"]["bbox_mAP"]["unit"] == "share, 0 to 1"
    assert receipt["image_size"] == {"width": 96, "height": 96}
    assert receipt["data"]["validation_images"] == 6
    assert receipt["data"]["fingerprint"] == "f" * 64
    assert (receipt["seed"], receipt["epochs"]) == (0, 7)
    assert receipt["environment"]["exported"]["versions"]["torch"] == torch.__version__
    onnx = receipt["formats"]["onnx"]
    assert (onnx["available"], onnx["file"], onnx["kind"]) == (True, "model.onnx", "nms")
    assert [value["name"] for value in onnx["outputs"]] == ["boxes", "scores", "labels", "count"]
    assert onnx["inputs"][0] == {"name": "images", "type": "float", "shape": ["batch", 3, 96, 96]}
    assert (onnx["preprocessing"]["channels"], onnx["preprocessing"]["canvas"]) == ("RGB", [96, 96])
    assert onnx["check"]["ok"] and len(onnx["check"]["images"]) == 4


def test_a_bundle_without_onnx(baseline: Path) -> None:
    formats = json.loads((baseline / "receipt.json").read_text())["formats"]
    assert formats["onnx"] == {
        "available": False,
        "asked": "none",
        "reason": "it was not asked for",
        "excluded_by": [],
    }
    assert not (baseline / "model.onnx").exists()
    assert "There is no `model.onnx`: it was not asked for." in (baseline / "README.md").read_text()


def test_every_figure_has_a_unit(trained: Trained) -> None:
    assert [name for name in trained.records[1].metrics if not unit(name)] == []


def test_nothing_of_this_machine(slim: Path, baseline: Path, home: Path, trained: Trained) -> None:
    words = [str(home), str(Path(sys.prefix)), str(Path.home()), "hunter2", "db.example", str(Path.cwd())]
    for file in [*slim.rglob("*"), *baseline.rglob("*")]:
        content = file.read_bytes() if file.is_file() else b""
        assert [word for word in words if word.encode() in content] == [], file
    assert json.loads((slim / "receipt.json").read_text())["study"]["base"] == "mine.py"


def test_weights_only(slim: Path, trained: Trained) -> None:
    content = torch.load(slim / "weights.pth", weights_only=True)
    assert set(content) == {"meta", "state_dict"}
    assert set(content["meta"]) == {"dataset_meta"}
    assert content["meta"]["dataset_meta"]["classes"] == trained.data.classes
    trial = torch.load(trained.records[1].attrs["checkpoint"], weights_only=True)["state_dict"]
    assert {name: torch.equal(value, trial[name]) for name, value in content["state_dict"].items()} == dict.fromkeys(
        trial, True
    )


def test_pictures_are_images(slim: Path) -> None:
    for number in (1, 2, 3):
        with Image.open(slim / "detections" / f"{number}.jpg") as image:
            image.load()
            assert min(image.size) >= 600


# --- Does it run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slim", "baseline"])
def test_round_trip(name: str, request: pytest.FixtureRequest, trained: Trained) -> None:
    bundle = request.getfixturevalue(name)
    steps: list[tuple[int, int]] = []
    found = verify_bundle(bundle, device="cpu", progress=lambda done, of: steps.append((done, of)))
    assert found.latency is not None
    assert found.latency.state == ("agrees" if name == "slim" else "unknown"), found.latency.words
    assert found.reasons == ()
    assert found.ok
    assert found.expected > 0.02  # else the comparison would say little
    assert found.found == pytest.approx(found.expected, abs=1e-3)
    assert found.images == 6
    assert steps[-1] == (6, 6)
    assert set(found.blocked) == set(BLOCKED) >= {"search", "spaces", "trainers", "analysis", "ray", "optuna", "mlflow"}
    assert found.warnings == ()
    if name == "slim":
        assert found.onnx is not None and found.onnx["check"]["batches"] == [1, 3]
        assert "ONNX: largest difference" in str(found)
    else:
        assert found.onnx is None
    assert json.loads(json.dumps(found.to_json())) == found.to_json()
    assert str(found).startswith("Verified")


def test_a_detector_that_predicts_in_bfloat16_goes_out_so(short: Path, slim: Path) -> None:
    config, base = ((short / name).read_text() for name in ("config.py", "baseline.py"))
    for text in (config, base):
        assert "dtype='bfloat16'" in text and "detector_type='GFL'" in text and "spaces" not in text
    assert "dtype" not in (slim / "config.py").read_text()
    told = json.loads((short / "receipt.json").read_text())
    assert told["latency"]["dtype"] == "bfloat16"
    assert told["formats"]["onnx"]["check"]["ok"]  # in float32, as the text says
    text = (short / "README.md").read_text()
    assert "A trained GFL detector" in text and "predicts in bfloat16" in text

    # Where Headway does not exist it predicts so, too.
    found = verify_bundle(short, device="cpu")
    assert found.ok, found.reasons
    assert (found.tolerance, found.to_json()["tolerance"]) == (0.003, 0.003)
    assert found.latency is not None and found.latency.found is not None


def test_of_a_trial_of_two_phases_the_settled_network_goes_out(trained: Trained, home: Path) -> None:
    learned = {
        "pod.mode": "decompose", "pod.stages": [4], "pod.towers": [], "pod.tolerance": 0.0, "pod.round_channels": 1,
        "pod.zero_taps": "centre", "pod.transfer": True, "pod.learn_share": 0.5,
    }  # fmt: skip
    record = train(home / "study", 2, learned, trained.data, 4)
    bundle = replace(trained, records=[*trained.records, record]).export(2, home / "out" / "settled")
    text = (bundle / "config.py").read_text()
    assert "scales" in text and "'stages'" not in text
    found = verify_bundle(bundle, device="cpu", latency=False)
    assert found.latency is None
    assert found.reasons == () and found.expected == record.curve[-1].metrics["bbox_mAP"]


def test_a_network_that_learns_its_dilations_never_goes_out(trained: Trained, tmp_path: Path) -> None:
    learning = {"pod.mode": "learn", "pod.stages": [4], "pod.towers": []}
    with pytest.raises(UserError, match=r"trial 1 has pod\.mode learn, whose network is for training only"):
        trained.export(1, tmp_path / "out", knobs=learning)
    assert not (tmp_path / "out").exists()


_BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}: raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
"""


def without_headway(program: str, folder: Path) -> str:
    """Runs a program in a folder of its own, without Headway."""
    program = _BLOCKER.format(blocked=BLOCKED) + program
    run = [sys.executable, "-I", "-W", "ignore", "-c", program]
    done = subprocess.run(run, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_and_two_bundles_in_one_process(slim: Path, baseline: Path, trained: Trained, tmp_path: Path) -> None:
    """The README's own lines; then a bundle of other code, the baseline, and both config files once more."""
    moved = tmp_path / "moved elsewhere"
    shutil.copytree(slim, moved)
    code = re.search(r"```python\n(.*?)```", (moved / "README.md").read_text(), re.S)
    assert code is not None
    image = next(Path(trained.data.val_images).iterdir())
    program = code[1].replace("PATH/TO/THIS/FOLDER", str(moved)).replace("PATH/TO/AN/IMAGE.jpg", str(image))
    assert program.count(str(moved)) == program.count(str(image)) == 1
    # Of another version of Headway: the same names, other code.
    other = tmp_path / "other"
    shutil.copytree(slim, other)
    package = next((other / "heads").iterdir())
    package.rename(package.with_name("heads_00000000"))
    for path in [other / "config.py", *(other / "heads").rglob("*.py")]:
        text = path.read_text().replace(package.name[6:], "00000000")
        path.write_text(
            text.replace("self.levels = frozenset(levels)", "self.levels, self.other = frozenset(levels), 1")
        )
    program += f"""
from mmdet.apis import DetInferencer
first, heads = model, []
for bundle in ({str(other)!r}, {str(baseline)!r}, {str(slim)!r}):
    model = init_detector(bundle + "/config.py", bundle + "/weights.pth", device="cpu")
    inference_detector(model, image)
    heads.append((type(model.bbox_head).__name__, hasattr(getattr(model.bbox_head, "slimmer", None), "other")))
inferencer = DetInferencer(bundle + "/config.py", weights=bundle + "/weights.pth", device="cpu", show_progress=False)
scores = inferencer(image)["predictions"][0]["scores"]
same = all(abs(a - b) < 1e-4 for a, b in zip(sorted(scores), sorted(found.scores.tolist())))
print("RESULT", [same, len(scores) == len(found), heads, type(first.bbox_head).__mro__[1].__module__])
"""
    told = without_headway(program, tmp_path).strip().splitlines()[-1]
    composed = "DeformableTower_SlimHead_GFLHead"
    heads = [(composed, True), ("GFLHead", False), (composed, False)]
    assert told == f"RESULT {[True, True, heads, package.name + '.dcn']}"


def test_beside_headway_itself(slim: Path) -> None:
    """In this process the checkout's own classes of the same names are registered."""
    from mmdet.apis import init_detector
    from mmdet.registry import MODELS

    import spaces.dcn.modules
    import spaces.slimhead.modules  # noqa: F401

    theirs = MODELS.get("SlimHead")
    model = init_detector(str(slim / "config.py"), str(slim / "weights.pth"), device="cpu")
    assert not isinstance(model.bbox_head, theirs)
    assert MODELS.get("SlimHead") is theirs


# --- What verify refuses ---------------------------------------------------------------------------------------------


@pytest.fixture
def copy(slim: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(slim, tmp_path / "copy"))


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("a bundle with wrong files was run")


@pytest.mark.parametrize(
    "name", ["weights.pth", "model.onnx", "config.py", "README.md", "detections/1.jpg", "heads/*/slimhead.py"]
)
def test_tampering_is_found_before_anything_runs(copy: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.verify.run_alone", never)
    path = next(copy.glob(name))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    found = verify_bundle(copy)
    shown = path.relative_to(copy).as_posix()
    assert not found.ok
    assert found.reasons == (f"{shown} is changed, by its SHA-256.",)
    assert found.files[shown] == "changed"
    assert "NOT verified" in str(found)


def test_onnx_that_differs_or_cannot_be_compared(receipt: dict[str, Any]) -> None:
    check = receipt["formats"]["onnx"]["check"]
    assert judge(receipt, {"check": check}) == ([], [])
    wrong = {**check, "ok": False, "difference": {"boxes": 0.5, "scores": None}, "image": "a.jpg", "runtime": "0.1"}
    reasons, notes = judge(receipt, {"check": wrong})
    assert reasons == ["model.onnx differs from PyTorch on a.jpg: boxes by 0.5 (0.01 allowed), scores altogether."]
    assert notes == [f"onnxruntime is 0.1, but the bundle was made with {check['runtime']}."]
    assert judge(receipt, {"reason": "onnxruntime is not installed"}) == (
        [],
        ["ONNX was not compared: onnxruntime is not installed."],
    )


def test_missing_and_new_files(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.verify.run_alone", never)
    package = next((copy / "heads").iterdir())
    (copy / "weights.pth").unlink()
    (package / "more.py").write_text("")
    (copy / "notes.txt").write_text("")
    found = verify_bundle(copy)
    assert len(found.reasons) == 2
    assert "weights.pth is missing" in found.reasons[0]
    assert "more.py is code" in found.reasons[1]
    assert found.warnings == ("notes.txt is not in the receipt.",)


def test_what_python_leaves_behind_is_no_change(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"metrics": {"bbox_mAP": 0.9, "bbox_mAP_50": 0.9}, "images": 6, "versions": {"torch": "9"}}
    monkeypatch.setattr("analysis.verify.run_alone", lambda *_, **__: {**answer, "blocked": [], "device": "cpu"})
    cache = next((copy / "heads").iterdir()) / "__pycache__"
    cache.mkdir()
    (cache / "dcn.pyc").write_bytes(b"")
    found = verify_bundle(copy)
    assert "__pycache__" not in "".join(found.files)
    # Another accuracy is a failure with a reason, not an exception; other versions and figures are told.
    assert not found.ok
    assert "AP is 0.9000, but" in found.reasons[0]
    assert any("torch is 9, but the bundle was made with" in warning for warning in found.warnings)
    assert any("bbox_mAP_50 is 0.9000" in warning for warning in found.warnings)


def test_weights_that_do_not_fit(copy: Path, trained: Trained) -> None:
    """mmdet itself would only print a warning."""
    content = torch.load(copy / "weights.pth", weights_only=True)
    removed = next(iter(content["state_dict"]))
    del content["state_dict"][removed]
    torch.save(content, copy / "weights.pth")
    with pytest.raises(RuntimeError, match=f"1 weights do not fit the network, {removed} for instance"):
        alone.load(str(copy), "cpu")


def test_other_data(copy: Path, trained: Trained, home: Path) -> None:
    other = write_digits(home / "data", train=2, val=2, size=(96, 96))
    with pytest.raises(UserError, match=r"has the fingerprint [0-9a-f]{16}, but .* has [0-9a-f]{16}\.") as caught:
        verify_bundle(copy, annotations=other.val_annotations, images=other.val_images)
    wanted = json.loads((copy / "receipt.json").read_text())["data"]["validation_fingerprint"]
    assert wanted[:16] in str(caught.value)
    with pytest.raises(UserError, match="must come together"):
        verify_bundle(copy, annotations=other.val_annotations)
    with pytest.raises(UserError, match="must be a file that can be read"):
        verify_bundle(copy, annotations=home / "no.json", images=home)
    with pytest.raises(UserError, match=r"6 images of .* must be in .* but 6 are missing"):
        verify_bundle(copy, annotations=Path(trained.data.val_annotations), images=home)


def test_data_that_nobody_knows(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"--annotations, --images: must name the validation data \(train.json"):
        verify_bundle(copy)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no receipt\.json"):
        verify_bundle(tmp_path / "none")
    (tmp_path / "receipt.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match="must have a receipt that can be read"):
        verify_bundle(tmp_path)
    (tmp_path / "receipt.json").write_text('{"format": 7}')
    with pytest.raises(UserError, match="must have format 1"):
        verify_bundle(tmp_path)


# --- What export refuses ---------------------------------------------------------------------------------------------


def test_existing_folder(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "run_alone", never)
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match=r"--out: must be a new or empty folder, but .* is a folder with files"):
        trained.export(1, tmp_path)
    with pytest.raises(UserError, match=r"kept\.txt is a file"):
        trained.export(1, tmp_path / "kept.txt")
    with pytest.raises(UserError, match="--out: must be"):
        trained.export(1, tmp_path / "kept.txt" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a place where not even root can write")
def test_unwritable_folder(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "run_alone", never)
    with pytest.raises(UserError, match="--out: must be writable, but /proc/headway/out gives"):
        trained.export(1, Path("/proc/headway/out"))


@pytest.mark.parametrize("error", [RuntimeError("half way"), KeyboardInterrupt(), HeadwayError("does not load")])
@pytest.mark.parametrize("where", ["_draw", "make_readme", "hash_files"])
def test_nothing_half_written(
    error: BaseException, where: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        assert list(tmp_path.rglob("config.py"))  # it is under way
        raise error

    monkeypatch.setattr(export, "_draw", lambda *_: {"versions": {"torch": "2"}, "packages": {}})
    monkeypatch.setattr(export, where, fail)
    with pytest.raises(type(error)):
        trained.export(1, tmp_path / "deep" / "er" / "out")
    assert list(tmp_path.iterdir()) == []


def test_empty_folder_is_taken_over(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_draw", lambda *_: {"versions": {"torch": "2"}, "packages": {}})
    (tmp_path / "out").mkdir()
    assert (trained.export(0, tmp_path / "out") / "receipt.json").is_file()


@pytest.mark.parametrize("state", [state for state in TrialState if state is not TrialState.COMPLETE])
def test_only_complete_trials(trained: Trained, tmp_path: Path, state: TrialState) -> None:
    with pytest.raises(UserError, match=f"must be a COMPLETE trial, but trial 1 is {state.value} \\(because\\)"):
        trained.export(1, tmp_path / "out", state=state, reason="because")


def test_checkpoint_gone_or_wrong(trained: Trained, tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "study" / "trials" / "1"
    shutil.copytree(trained.folder / "trials" / "1", folder)
    moved = replace(trained, folder=tmp_path / "study")
    attrs = {**trained.records[1].attrs, "checkpoint": "/gone/epoch_7.pth"}
    with pytest.raises(HeadwayError, match=r"has AP 0.9000, but .* is of one with"):
        moved.export(1, out, attrs=attrs, metrics={"bbox_mAP": 0.9})
    with pytest.raises(HeadwayError, match="has no accuracy"):
        moved.export(1, out, attrs=attrs, metrics={})
    (folder / "epoch_7.pth").unlink()
    with pytest.raises(HeadwayError, match=r"was trained for 7 epochs, but .*epoch_6.pth is of epoch 6"):
        moved.export(1, out, attrs=attrs)
    (folder / "epoch_6.pth").write_bytes(b"damaged")
    with pytest.raises(HeadwayError, match="cannot be read"):
        moved.export(1, out, attrs=attrs)
    (folder / "epoch_6.pth").unlink()
    with pytest.raises(HeadwayError, match="trial 1 has no checkpoint any more"):
        moved.export(1, out, attrs=attrs)
    (folder / "config.py").unlink()
    with pytest.raises(HeadwayError, match=r"the trial's config .* cannot be read"):
        moved.export(1, out, attrs=attrs)
    assert not out.exists()


def test_onnx_must_be_known() -> None:
    with pytest.raises(UserError, match="--onnx: must be raw, nms or none, but got 'all'"):
        check_kind("all")


def test_validation_data_gone(trained: Trained, tmp_path: Path) -> None:
    gone = replace(trained, data=replace(trained.data, val_images=str(tmp_path / "none")))
    with pytest.raises(UserError, match=r"data\.val\.images: the 6 images"):
        gone.export(1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- The parts -------------------------------------------------------------------------------------------------------


def test_every_family_can_be_bundled() -> None:
    for name, family in families().items():
        heads = copy_heads(["spaces.modules", family.modules])
        assert set(heads.files) >= {"__init__.py", "modules.py", f"{name}.py"}
        for text in heads.files.values():
            assert "import spaces" not in text
            assert "from spaces" not in text


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """Makes modules ``spaces.NAME`` for a test."""
    import spaces

    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(spaces, "__path__", [*spaces.__path__, str(folder)])


def test_code_is_renamed_and_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(
        tmp_path,
        monkeypatch,
        first='"""é"""\nfrom spaces.second import (\n    a,\n    B)\n@HOOKS.register_module("Hé")\nclass C:\n'
        '    kind, other, text = dict(type="B"), "Bx", f"B {a}"\n',
        second="import torch\nfrom .third import x\na = x\n@MODELS.register_module()\nclass B: ...\n",
        third="x = 1\n",
    )
    heads = copy_heads(["spaces.first"])
    tag = heads.package[6:]
    assert set(heads.files) == {"__init__.py", "first.py", "second.py", "third.py"}
    assert heads.names == {"B": f"B_{tag}", "Hé": f"Hé_{tag}"}
    first, second = heads.files["first.py"], heads.files["second.py"]
    assert "from .second import (\n    a,\n    B)\n" in first
    assert f"@HOOKS.register_module(name='Hé_{tag}', force=True)" in first
    assert f'dict(type=\'B_{tag}\'), "Bx", f"B {{a}}"' in first
    assert "from .third import x" in second
    compile(first, "first", "exec")
    # Any change of the code is another name.
    (tmp_path / "third.py").write_text("x = 2\n")
    assert copy_heads(["spaces.first"]).package != heads.package
    assert heads.rename({"type": "B", "base_type": "GFLHead", "name": "B", "of": [{"type": "B"}]}) == {
        "type": f"B_{tag}",
        "base_type": "GFLHead",
        "name": "B",
        "of": [{"type": f"B_{tag}"}],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sklearn.svm", "line 1 imports sklearn.svm; a bundle may need mmcv"),
        ("\nfrom trainers import cost", "line 2 imports trainers"),
        ("import spaces.knob", "imports spaces.knob"),
        ("from spaces import patching", "imports spaces;"),
        ("MODELS.register_module(module=int)", "registers a class other than by a decorator"),
        ("@MODELS.register_module(name=['A', 'B'])\nclass A: ...", "under something else than one name"),
    ],
)
def test_code_that_cannot_go(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, monkeypatch, odd=text)
    with pytest.raises(HeadwayError, match=re.escape(message)):
        copy_heads(["spaces.odd"])
    with pytest.raises(HeadwayError, match=r"spaces\.nothing must be a module"):
        copy_heads(["spaces.nothing"])


def config(**model: Any) -> dict[str, Any]:
    loader = {"dataset": {"type": "CocoDataset", "ann_file": "/a/val.json"}, "num_workers": 4}
    loader.update(persistent_workers=True, multiprocessing_context="forkserver")
    return {
        "model": {"type": "GFL", **model},
        "test_dataloader": loader,
        "test_evaluator": {"type": "CocoMetric", "ann_file": "/a/val.json"},
        "work_dir": "/a/trial",
    }


def written(value: dict[str, Any], folder: Path) -> dict[str, Any]:
    (folder / "config.py").write_text(bundle_config(value, Heads("", {}, {}), ("a", "b"), "val.json", "images"))
    return read_trial_config(folder / "config.py")


def test_config_keeps_values_and_drops_the_machine(tmp_path: Path) -> None:
    odd = {
        "a-b": (1,),
        "class": None,
        "inf": float("inf"),
        "t": ((1.5, "it's"), [True, []], ()),
        "long": ["x" * 60] * 3,
    }
    pretrained = {"type": "Pretrained", "checkpoint": "/root/.cache/resnet.pth"}
    value = config(
        odd=odd,
        backbone={"init_cfg": pretrained, "pretrained": "/x.pth"},
        neck={"init_cfg": [pretrained, {"type": "Xavier"}]},
    )
    found = written(value, tmp_path)
    assert found["model"]["odd"] == odd
    assert found["model"]["backbone"] == {"init_cfg": None, "pretrained": None}
    assert found["model"]["neck"] == {"init_cfg": [{"type": "Xavier"}]}
    assert found["test_dataloader"]["dataset"]["ann_file"] == "val.json"
    assert found["test_dataloader"]["dataset"]["data_root"] == "data/"
    assert found["test_dataloader"]["dataset"]["metainfo"]["classes"] == ("a", "b")
    assert "multiprocessing_context" not in found["test_dataloader"]
    assert found["test_evaluator"]["ann_file"] == "data/val.json"
    assert "work_dir" not in found


def test_a_detector_is_called_what_mmdet_calls_it() -> None:
    for model in ({}, {"base_type": "GFL"}, {"detector_type": "GFL"}, {"base_type": "GFL", "detector_type": "Dilated"}):
        assert detector_type({"model": {"type": "Wrapped" if model else "GFL", **model}}) == "GFL"


def test_config_with_modules_of_the_base(tmp_path: Path) -> None:
    value = {**config(), "custom_imports": {"imports": ["projects.mine", "spaces.modules"]}}
    assert written(value, tmp_path)["custom_imports"]["imports"] == ["projects.mine"]


def test_config_that_cannot_go(tmp_path: Path) -> None:
    with pytest.raises(HeadwayError, match=r"model\.text of the trial's config names a file of this one: /data/e\.npy"):
        written(config(text="/data/e.npy"), tmp_path)
    with pytest.raises(HeadwayError, match=r"model\.kind must be a plain value"):
        written(config(kind=int), tmp_path)
    (tmp_path / "empty.py").write_text("model = 1")
    with pytest.raises(HeadwayError, match="must have test_dataloader"):
        read_trial_config(tmp_path / "empty.py")


def test_fingerprint(tmp_path: Path) -> None:
    def write(folder: Path, pixels: bytes, boxes: int = 0) -> str:
        folder.mkdir()
        content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{}] * boxes, "categories": []}
        (folder / "val.json").write_text(json.dumps(content))
        (folder / "a.jpg").write_bytes(pixels)
        return read_validation(folder / "val.json", folder).fingerprint

    first = write(tmp_path / "1", b"123")
    assert write(tmp_path / "2", b"456") == first  # names and sizes count, and the place does not
    assert len({first, write(tmp_path / "3", b"4567"), write(tmp_path / "4", b"123", boxes=1)}) == 3
    (tmp_path / "val.json").write_text("[]")
    with pytest.raises(UserError, match="must be a COCO json"):
        read_validation(tmp_path / "val.json", tmp_path)


def test_remembered_data(slim: Path, receipt: dict[str, Any], trained: Trained) -> None:
    found = recall(receipt["data"]["validation_fingerprint"])
    assert found == (Path(trained.data.val_annotations), Path(trained.data.val_images))
    assert recall("0" * 64) is None


def test_pictures_show_images_with_objects() -> None:
    images = [{"id": number} for number in range(10)]
    used = [{"image_id": number} for number in (1, 4, 5, 6, 8, 9)]
    assert [image["id"] for image in some_images({"images": images, "annotations": used}, 3)] == [1, 5, 8]
    assert [image["id"] for image in some_images({"images": images, "annotations": used[:1]}, 3)] == [1, 0, 2]
    assert [image["id"] for image in some_images({"images": images[:2], "annotations": []}, 3)] == [0, 1]
