"""``headway compare`` on studies in their stores."""

import json

import pytest

from analysis.record import TrialState
from search import Study, UserError, compare, comparing
from search.cli import main
from search.engine import prepare_space
from search.folder import claimed, write_study
from search.store import Store

SECTIONS = {
    "base": "headway::gfl_tiny",
    "data": {"digits": {"train": 8, "val": 4}, "size": (96, 96)},
    "space": {"slimhead": {"ratio": (0.25, 0.5)}},
    "budget": {"trials": 3, "epochs": 2},
    "rungs": None,
    "sampler": {"name": "random"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("comparing")
    space = prepare_space(Study(name="any", **SECTIONS).file)

    def study(name, seed, gain, reference_ms, **changed):
        made = Study(name=name, seed=seed, studies=root, **{**SECTIONS, **changed})
        with claimed(made.folder):
            store = Store.create(made.folder, made.file)
            store.propose_baseline(space)
            for number, (accuracy, ratio) in enumerate(((0.5, 1.0), (0.3 + gain, 0.5))):
                store.start(number)
                figures = {"bbox_mAP": accuracy, "latency_ratio": ratio, "latency_ms": ratio * reference_ms}
                store.update(number, figures, {"speed_kind": "cpu"}, 9.0)
                store.finish(number, TrialState.COMPLETE)
                store.propose(space)
            write_study(made.folder, made.file)

    study("one", 0, 0.0, 20.0)
    study("one-again", 1, 0.02, 21.0)
    study("longer", 0, 0.1, 5.0, budget={"trials": 3, "epochs": 3})
    study("longer-again", 5, 0.1, 5.0, budget={"trials": 3, "epochs": 3})
    study("others", 0, 0.0, 20.0, data={"digits": {"train": 8, "val": 5}, "size": (96, 96)})
    return root


def test_what_a_training_was_is_told():
    def told(**training):
        return comparing._training(Study(name="s", **{**SECTIONS, "training": training}).file)

    assert told() == "2 epochs from scratch"
    assert told(batch=8, lr=1e-3, dtype="bfloat16") == "2 epochs from scratch, batch 8, lr 0.001, dtype bfloat16"


def test_two_studies(root, tmp_path, capsys):
    out = tmp_path / "compare.html"
    assert main(["compare", "one", "longer", "--studies", str(root), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [side["hypervolume"] for side in printed["sides"]] == pytest.approx([0.65, 0.70])
    (gap,) = printed["differences"]
    assert gap["gap"] == pytest.approx(0.05) and gap["interval"] is None and gap["one_dominated"] == 0.5
    assert printed["remarks"] == [
        "They were trained differently, baselines too: 2 epochs from scratch in one; 3 epochs from scratch in longer."
    ]
    assert printed["files"] == [str(out), str(out.with_suffix(".png"))]
    assert "longer against one" in out.read_text() and out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert main(["compare", "one", str(root / "longer"), "--studies", str(root)]) == 0
    assert "longer against one: hypervolume +0.0500 as searched" in capsys.readouterr().out


def test_studies_that_differ_in_name_and_seed_are_replicas(root):
    found = compare("one", "longer", "one-again", "longer-again", studies=root)
    assert list(found.studies()["side"]) == ["one (2 replicas)"] * 2 + ["longer (2 replicas)"] * 2
    frame = found.differences()
    row = frame.iloc[0]
    assert row["basis"] == "replicas" and row["gap"] == pytest.approx(0.045) == row["estimate"]
    assert row["low"] < 0.045 < row["high"] and frame.index.names == ["one", "other"]
    assert len(found.plot().data) > 4
    alone = compare(Study.open("one", studies=root), "one-again", studies=root)
    assert alone.differences().empty and "2 seeds: 0.0 points" in str(alone)


def test_what_cannot_be_compared(root, tmp_path, capsys):
    with pytest.raises(UserError, match=r"same validation data, but one has digits \(train 8, val 4"):
        compare("one", "others", studies=root)
    assert main(["compare", "one", "--studies", str(root)]) == 2
    assert "needs two studies or more" in capsys.readouterr().err
    assert main(["compare", "one", "two", "--studies", str(root)]) == 2
    assert "must be a study that was run" in capsys.readouterr().err
    assert main(["compare", "one", "longer", "--studies", str(root), "--out", str(tmp_path / "a.pdf")]) == 2
    assert "--out: must name an .html file" in capsys.readouterr().err


def test_data_that_moved_is_recognised_by_its_contents(tmp_path, monkeypatch):
    from search.comparing import _marks

    coco = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [], "categories": []}
    for folder, text in (("here", "a"), ("there", "a"), ("elsewhere", "bb")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_text(text)
        for split in ("train", "val"):
            (tmp_path / folder / f"{split}.json").write_text(json.dumps(coco))

    def file(folder):
        split = {name: {"annotations": tmp_path / folder / f"{name}.json", "images": tmp_path / folder} for name in
                 ("train", "val")}  # fmt: skip
        return Study(name="any", **{**SECTIONS, "data": {"size": (96, 96), **split}}).file

    here, there, elsewhere, gone = _marks([file(name) for name in ("here", "there", "elsewhere", "gone")])
    assert here[0].same(there[0]) is True and here[1].same(there[1]) is True
    assert here[0].same(elsewhere[0]) is False and here[0].same(gone[0]) is None
    # Nothing is read where all name the same files.
    assert [mark.fingerprint for mark in next(_marks([file("here"), file("here")]))] == [None, None]
