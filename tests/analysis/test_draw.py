"""``headway draw``: a bundle that was really exported, run without Headway, its pictures looked into."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.bundle.drawing import draw
from analysis.bundle.process import BLOCKED, Looking, run_alone
from analysis.bundle.receipt import hash_files
from analysis.draw import choose_images, draw_bundle
from analysis.export import export_bundle
from analysis.record import TrialRecord, TrialState
from search.cli import main
from spaces.base import facts
from spaces.errors import UserError
from spaces.space import build_space
from trainers import drawing
from trainers.config import load_base
from trainers.contract import DataRequest, TrialReport, TrialRequest
from trainers.detector import train

SIZE = (96, 96)
BASE = "headway::faster_rcnn_tiny"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def data(home: Path, digits_request: Callable[..., DataRequest]) -> DataRequest:
    return digits_request(home / "data", train=4, val=3, size=SIZE)


def export(home: Path, data: DataRequest, name: str, knobs: dict[str, Any]) -> Path:
    """Trains for one epoch and exports."""
    figures: dict[str, float] = {}
    attrs: dict[str, Any] = {}

    def report(message: TrialReport) -> None:
        figures.update(message.metrics)
        attrs.update(message.attrs)

    request = TrialRequest(
        number=1, base=BASE, knobs=knobs, data=data, folder=str(home / name), epochs=1, batch=2, count_size=SIZE
    )
    train(request, report)
    record = TrialRecord(1, TrialState.COMPLETE, knobs=knobs, metrics=figures, folder=name, attrs=attrs)
    return export_bundle(
        record,
        study_folder=home,
        study={"name": "digits"},
        data=data,
        onnx="none",
        fingerprint=None,
        out=home / f"{name} bundle",
        why="",
    )


@pytest.fixture(scope="module")
def bundle(home: Path, data: DataRequest) -> Path:
    """Key parts in the box head, queries in the RPN."""
    space = build_space(
        {"keyparts": {"always": True}, "querydet": {"always": True}}, facts(load_base(BASE).model.to_dict())
    )
    wanted = {"keyparts.parts": 5, "keyparts.grid": 3, "querydet.threshold": 0.01, "querydet.method": "sparse"}
    knobs = space.canonicalise({name: wanted.get(name, knob.default) for name, knob in space.knobs.items()})
    return export(home, data, "both", dict(knobs))


@pytest.fixture(scope="module")
def plain(home: Path, data: DataRequest) -> Path:
    return export(home, data, "plain", {})


@pytest.fixture(scope="module")
def photos(home: Path, data: DataRequest) -> Path:
    """A digit scene as it is, turned with a note in its EXIF, in grey, and with transparency; and a text."""
    folder = home / "photos"
    folder.mkdir()
    scene = Image.open(sorted(Path(data.val_images).iterdir())[0]).convert("RGB").resize((90, 60))
    scene.save(folder / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees: 60 wide and 90 high
    scene.save(folder / "b.jpg", exif=turned)
    scene.convert("L").save(folder / "c.png")
    scene.convert("RGBA").save(folder / "d.PNG")
    (folder / "notes.txt").write_text("no image")
    return folder


def command(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["draw", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(scope="module")
def drawn(bundle: Path, photos: Path, home: Path) -> tuple[dict[str, Any], str]:
    """All of the folder, by the command, with every detection."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(
            ["draw", str(bundle), str(photos), "--out", str(home / "out"), "--score", "0", "--objects", "4", "--json"]
        )
    assert status == 0, err.getvalue()
    return json.loads(out.getvalue()), err.getvalue()


def test_every_kind_of_every_image(drawn: tuple[dict[str, Any], str], home: Path, photos: Path) -> None:
    found, said = drawn
    assert (found["out"], found["score"]) == (str(home / "out"), 0.0)
    assert [Path(one["image"]).name for one in found["images"]] == ["a.png", "b.jpg", "c.png", "d.PNG"]
    names = set()
    for one in found["images"]:
        assert one["detections"] > 4
        assert 0 < one["best"] <= 1
        kinds = list(one["pictures"])
        assert kinds[:4] == ["detections", "parts", "activation", "objects"]
        assert kinds[4:] == ["query-P4", "query-P3"]
        for kind, file in one["pictures"].items():
            assert Path(file).name == f"{Path(one['image']).stem}.{kind}.png"
            names.add(Path(file).name)
            with Image.open(file) as picture:
                picture.load()
                assert picture.format == "PNG"
    assert names == {path.name for path in (home / "out").iterdir()}
    assert [line for line in said.splitlines() if line.startswith("[")][-1].startswith(f"[4/4] {photos / 'd.PNG'}: ")


def test_a_turned_image_is_drawn_upright(drawn: tuple[dict[str, Any], str]) -> None:
    """The detector and the drawing both turn it: 60 px wide and 90 px high, enlarged eleven times."""
    with Image.open(drawn[0]["images"][1]["pictures"]["detections"]) as page:
        assert page.width == 11 * 60
        assert page.height > 11 * 90


def test_the_boxes_are_those_of_the_bundle(bundle: Path, photos: Path, home: Path) -> None:
    """What is drawn lies where plain mmdet finds it: the box of the best detection, to the pixel."""
    image = photos / "a.png"
    told: list[dict[str, Any]] = []
    looking = Looking(images=[image], arguments={"score": 0.0}, seen=lambda *what: told.append(what[2]))
    run = run_alone(bundle, detect=[image], look=looking, device="cpu")
    assert set(run["blocked"]) == set(BLOCKED)
    wanted, [seen] = run["detections"][0], told
    assert seen["bboxes"] == wanted["bboxes"]
    assert seen["scores"] == wanted["scores"]
    [one] = draw_bundle(bundle, [image], out=home / "one", score=wanted["scores"][0], device="cpu")
    assert one.detections >= 1
    with Image.open(one.pictures["detections"]) as page:
        pixels = np.asarray(page)
    top = int(np.argmax((pixels[:, 0] != 255).any(1)))
    scale = drawing.zoom((90, 60), (960, 1600))
    assert scale == 11
    x1, y1, x2, y2 = (scale * side for side in wanted["bboxes"][0])
    colour = drawing.colours(10)[wanted["labels"][0]]
    row, columns = top + round((y1 + y2) / 2), (round(x1) + 1, round(x2) - 1)
    assert [tuple(pixels[row, min(column, 11 * 90 - 1)]) for column in columns] == [colour] * 2


def test_a_plain_detector_has_detections_only(
    plain: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = command(capsys, plain, photos / "a.png", "--out", tmp_path / "new" / "out", "--score", 1)
    assert status == 0, err
    assert [path.name for path in (tmp_path / "new" / "out").iterdir()] == ["a.detections.png"]
    assert "a.detections.png" in out
    assert "[1/1]" in err
    assert "[1/1]" not in out


def test_nothing_above_the_threshold(bundle: Path, photos: Path, tmp_path: Path) -> None:
    [one] = draw_bundle(bundle, [photos / "a.png"], out=tmp_path, score=1.0)
    assert one.detections == 0
    assert one.best is not None and 0 < one.best < 1
    assert list(one.pictures) == ["detections", "query-P4", "query-P3"]


@pytest.mark.slow
def test_images_of_one_name_do_not_overwrite_each_other(plain: Path, photos: Path, tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("1/a.png", "2/a.jpg")]
    for other in others:
        other.parent.mkdir()
        Image.open(photos / "a.png").save(other)
    found = draw_bundle(plain, [photos / "a.png", *others], out=tmp_path / "out")
    assert [Path(one.pictures["detections"]).name for one in found] == [
        "a.detections.png", "a-2.detections.png", "a-3.detections.png",
    ]  # fmt: skip
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_the_limit_of_a_folder(photos: Path, tmp_path: Path) -> None:
    found = choose_images([photos / "c.png", photos], limit=2, out=tmp_path)
    assert [path.name for path in found.images] == ["c.png", "a.png", "b.jpg"]
    assert found.left == {str(photos): 2}
    assert choose_images([photos, photos / "a.png"], limit=9, out=tmp_path).left == {}


# Wrong input


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("the bundle was run")


WRONG = {
    "no bundle": (["nowhere", "photos/a.png"], "has no receipt.json"),
    "no image": (["bundle", "photos/none.png"], "IMAGE: must be an image file or a folder of them, but there is no"),
    "a text": (["bundle", "photos/a.png", "photos/notes.txt"], "notes.txt is none that can be read"),
    "a damaged image": (["bundle", "damaged.png"], "IMAGE: must be an image that can be read, but"),
    "a folder without images": (["bundle", "empty"], "must hold images (.bmp, .jpeg"),
    "no weights": (["hollow", "photos/a.png"], "must hold a detector (config.py and weights.pth), but"),
    "score": (["bundle", "photos/a.png", "--score", "30"], "--score: must lie in [0, 1], but got 30."),
    "no number": (["bundle", "photos/a.png", "--score", "nan"], "--score: must lie in [0, 1], but got nan."),
    "limit": (["bundle", "photos", "--limit", "0"], "--limit: must be 1 or more, but got 0."),
    "objects": (["bundle", "photos", "--objects", "0"], "--objects: must be 1 or more, but got 0."),
    "out is a file": (["bundle", "photos", "--out", "damaged.png"], "--out: must be a folder that can be written"),
    "out is the images": (["bundle", "photos", "--out", "photos"], "--out: must be another folder than that of"),
}


@pytest.fixture(scope="module")
def place(bundle: Path, photos: Path, home: Path) -> Path:
    place = home / "place"
    place.mkdir()
    (place / "photos").symlink_to(photos)
    (place / "bundle").symlink_to(bundle)
    (place / "empty").mkdir()
    shutil.copytree(bundle, place / "hollow", ignore=shutil.ignore_patterns("weights.pth"))
    (place / "damaged.png").write_bytes((photos / "a.png").read_bytes()[:600])
    return place


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_is_one_error_with_status_2(
    case: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("analysis.draw.run_alone", never)
    words, wanted = WRONG[case]
    before = sorted(place.rglob("*"))
    status, out, err = command(capsys, *words, "--json")
    assert status == 2
    assert err.startswith("headway: error: ")
    assert err.count("\n") == 1
    assert wanted in err
    assert out == ""
    assert sorted(place.rglob("*")) == before


def test_a_bundle_that_does_not_run_is_a_failure(
    plain: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(plain, tmp_path / "broken"))
    content = torch.load(broken / "weights.pth", weights_only=True)
    content["state_dict"].pop(next(iter(content["state_dict"])))
    torch.save(content, broken / "weights.pth")
    receipt = json.loads((broken / "receipt.json").read_text())
    receipt["files"] = hash_files(broken)
    (broken / "receipt.json").write_text(json.dumps(receipt))
    status, out, err = command(capsys, broken, photos / "a.png", "--out", tmp_path / "out", "--json")
    assert status == 1
    assert out == ""
    assert "1 weights do not fit the network" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("config.py", "config.py is changed, by its SHA-256."),
        ("weights.pth", "weights.pth is changed, by its SHA-256."),
        ("heads/more.py", "heads/more.py is code that is not in the receipt."),
    ],
)
def test_a_changed_bundle_is_refused_before_it_is_run(
    plain: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    changed, trace = Path(shutil.copytree(plain, tmp_path / "changed")), tmp_path / "executed"
    (changed / name).parent.mkdir(exist_ok=True)
    with (changed / name).open("a") as file:
        file.write(f"\nimport os\nos.mkdir({str(trace)!r})\n")
    status, out, err = command(capsys, changed, photos / "a.png", "--out", tmp_path / "out", "--json")
    assert (status, out) == (2, "")
    assert "bundle: must be as 'headway export' wrote it, but in " in err and reason in err
    assert not trace.exists()


@pytest.mark.slow
def test_a_full_disk_is_told(plain: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drawing, "write", full)
    with pytest.raises(UserError, match=r"--out: must be writable, but .* gives: No space left on device\."):
        draw_bundle(plain, [photos / "a.png"], out=tmp_path)


def test_the_pictures_of_a_bundle(photos: Path, tmp_path: Path) -> None:
    """Those above 0.3; without any, the best five."""
    boxes = [[10.0 * index, 10.0, 10.0 * index + 8, 30.0] for index in range(8)]
    image = drawing.open_image(photos / "a.png")
    for top, sure, count in ((0.9, 3, 3), (0.25, 0, 5)):
        found = {"bboxes": boxes, "labels": [0] * 8, "scores": [top, top, top, *[0.2] * 5]}
        draw(photos / "a.png", found, [[1, 2, 3, 4]], ("digit",), tmp_path / "x.jpg")
        seen = {"size": [90, 60], **{key: value[:count] for key, value in found.items()}, "found": sure, "best": top}
        pages = drawing.draw(image, seen, ["digit"], name="a.png", truth=[[1, 2, 3, 4]], sides=(640, 1600))
        pages["detections"].save(tmp_path / "wanted.jpg", quality=90)
        assert (tmp_path / "x.jpg").read_bytes() == (tmp_path / "wanted.jpg").read_bytes()
