"""The recipes of the papers' tables, and ``headway tables``: the papers' figures beside what is counted here."""

import importlib
import json
from dataclasses import replace

import pytest
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from analysis.published import TABLES, tables
from analysis.record import EpochRecord, SweepPoint, TrialState
from search.cli import main
from search.designs import listed
from search.folder import claimed, write_study
from search.papers import RECIPES, Comparison
from search.store import Store
from search.tables import print_published
from spaces import patching
from spaces.base import facts
from spaces.space import design_hash
from trainers.config import DataFacts, load_base, plain, set_classes, trial_config
from trainers.contract import DataRequest, TrialRequest
from trainers.learning import first_phase

FILES = sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.glob("*/*.yaml"))
ROWS = [(table, row) for table in TABLES for row in table.rows]
GFL, GFL_PARAMS = 217.9817472, 32.440537


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return Comparison(tmp_path_factory.mktemp("studies"))


def table_of(paper, number, *labels, kind="table"):
    """A table cut down to a few rows."""
    (table,) = [item for item in tables(paper, number) if item.kind == kind]
    kept = [row for row in table.rows if row.label in labels]
    assert len(kept) == len(labels)
    return replace(table, rows=kept)


def trained(design, space):
    """What is trained of a design: all but the knobs of inference."""
    inference = [name for name, knob in space.knobs.items() if knob.when == "inference"]
    return design_hash({name: value for name, value in design.items() if name not in inference})


def is_key_parts_on_voc(file):
    return file.startswith("keyparts/") and not file.startswith("keyparts/table4")


# Recipes.


def test_each_study_of_a_table_is_there_and_no_other():
    assert {row.study for _, row in ROWS if row.study} == set(FILES)
    for table, row in ROWS:
        assert row.study is None or row.study.startswith(f"{table.paper}/{table.kind}{table.number}")


@pytest.mark.parametrize("file", FILES)
def test_a_recipe_lists_exactly_the_rows_of_its_table(comparison, file):
    study, space = comparison.study(file)
    assert study.name == file.removesuffix(".yaml").replace("/", "-")
    designs = listed(study, space)
    assert study.budget.trials == 1 + len(designs)
    assert study.rung_epochs == ()
    # COCO's size, but where a paper gives another one.
    assert study.speed_size == ((608, 1024) if is_key_parts_on_voc(file) else (800, 1344))
    assert set(study.placeholders) == {
        f"data.{split}.{key}" for split in ("train", "val") for key in ("annotations", "images")
    }
    rows = [comparison.design(row) for _, row in ROWS if row.study == file]
    empty = trained({}, space)
    assert {trained(design, space) for design in rows} - {empty} == {trained(item.knobs, space) for item in designs}
    # A setting of inference knobs must be among those that are swept on the trained detector.
    points = [{}, *(point for item in designs for point in space.sweep(item.knobs))]
    assert {design_hash(design) for design in rows} <= {design_hash(point) for point in points}
    swept = {design_hash(point) for item in designs for point in space.sweep(item.knobs)}
    if any(name.startswith("querydet.") for item in designs for name in item.knobs):
        # No more detectors are measured than the table has rows, but the dense one of each training.
        assert len(swept) <= len({design_hash(design) for design in rows if design}) + len(designs)


@pytest.mark.parametrize("file", FILES)
def test_each_design_of_a_recipe_patches_its_base(comparison, file):
    study, space = comparison.study(file)
    model = plain(load_base(study.base)["model"])
    assert facts(model) == space.base
    for item in listed(study, space):
        patched = patching.apply(model, item.knobs)
        assert patched != model
        assert patching.apply(model, {}) == model


@pytest.mark.parametrize(
    ("file", "decays"),
    [
        ("slimhead/table3.yaml", [8 / 12, 11 / 12]),
        ("slimhead/table7_voc.yaml", [9 / 12]),
        ("slimhead/table7_crowdhuman.yaml", [24 / 30, 28 / 30]),
        ("slimhead/table8_condinst.yaml", [60 / 90, 80 / 90]),
        ("slimhead/table9_swin-l.yaml", [16 / 24, 22 / 24]),
        ("ddod/table4.yaml", [8 / 12, 11 / 12]),
        ("querydet/table1_3x.yaml", [9 / 12, 11 / 12]),
        ("querydet/table2.yaml", [30 / 50, 40 / 50]),
        ("keyparts/table2.yaml", [10 / 12]),
        ("keyparts/table3_rfcn.yaml", [10 / 12]),
        ("keyparts/table3_faster-rcnn.yaml", [10 / 12]),
        ("keyparts/table4_faster-rcnn.yaml", [8 / 12, 11 / 12]),
        ("pod/table4_frcnn_r101-c4.yaml", [8 / 13, 11 / 13]),
        ("pod/table5_retinanet_r50-fpn.yaml", [8 / 13, 11 / 13]),
    ],
)
def test_the_schedule_of_a_recipe_is_the_papers(comparison, file, decays):
    config = schedule(comparison.study(file)[0])
    (steps,) = [item for item in config["param_scheduler"] if item["type"] == "MultiStepLR"]
    iterations = config["train_cfg"]["max_epochs"] * 1000
    assert steps["milestones"] == pytest.approx([share * iterations for share in decays], abs=1)


def test_faces_are_trained_in_twenty_cosines(comparison):
    config = schedule(comparison.study("ddod/table9.yaml")[0])
    (cosines,) = [item for item in config["param_scheduler"] if item["type"] == "CosineRestartLR"]
    assert cosines["periods"] == [30_000] * 20
    assert config["optim_wrapper"]["optimizer"]["lr"] == pytest.approx(7.5e-3)
    assert config["model"]["bbox_head"]["loss_bbox"]["type"] == "DIoULoss"


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith(("keyparts/", "pod/"))])
def test_the_learning_rate_of_a_recipe_is_the_papers(comparison, file):
    study, _ = comparison.study(file)
    rate = schedule(study)["optim_wrapper"]["optimizer"]["lr"]
    # Both papers' are 0.00125 an image.
    assert rate == pytest.approx(0.00125 * study.training.batch)


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("pod/")])
def test_dilations_are_learned_for_13_epochs(comparison, file):
    study, space = comparison.study(file)
    for item in listed(study, space):
        if patching.learning(item.knobs) is not None:
            whole = request(study, item.knobs)
            first = first_phase(whole)
            assert first.epochs == 13
            assert whole.epochs - first.epochs == {26: 13, 33: 20, 39: 26}[study.budget.epochs]


def test_what_fd_starts_from_is_the_rows(comparison):
    for table, row in ROWS:
        if table.paper == "pod" and "-FD" in row.label:
            assert patching.transfers(comparison.design(row)) == ("-FD-WT" in row.label)


def schedule(study):
    """The whole config of the baseline's training, for a data set of 1,000 iterations an epoch."""
    facts_of_data = DataFacts(train_images=1000 * study.training.batch, val_images=8, val_one_size=False)
    return trial_config(request(study, {}), facts_of_data)


def request(study, knobs):
    data = DataRequest(
        train_annotations="t.json", train_images="t", val_annotations="v.json", val_images="v",
        classes=tuple(study.data.classes or ["a"]), size=study.data.size,
    )  # fmt: skip
    return TrialRequest(
        number=0, base=study.base, knobs=knobs, data=data, folder="f", epochs=study.budget.epochs,
        batch=study.training.batch, backbone="none", device="cuda",
    )  # fmt: skip


def test_rows_of_the_papers_own_designs_that_have_no_study():
    """What Headway cannot express among the rows of the papers' own methods: a change here is news."""
    other = ("another", "mmdet's config is counted", "a pilot", "weights that fall")
    left = [
        (table.paper, table.number, row.label) for table, row in ROWS if row.reason and not row.reason.startswith(other)
    ]
    assert left == [("slimhead", 6, "PSC"), ("slimhead", 6, "PSC + SlimHead")]


# Figures that the papers' sheets give, through the whole path.


def counted(comparison, paper, number, *labels, kind="table"):
    found = comparison.table(table_of(paper, number, *labels, kind=kind))
    return [next(row["ours"] for row in found["rows"] if row["label"] == label) for label in labels]


def test_slimhead_on_gfl(comparison):
    base, eight, half, deformed, both = counted(
        comparison, "slimhead", 3, "r=1.0", "r=0.8", "r=0.5", "r=1.0 DCN", "r=0.5 DCN"
    )
    assert base["gmacs"] == pytest.approx(GFL)
    assert base["params_m"] == pytest.approx(GFL_PARAMS)
    heads = [item["head_gmacs"] for item in (base, eight, half, deformed, both)]
    assert heads == pytest.approx([113.33, 84.65, 53.88, 118.91, 56.32], abs=0.005)
    assert half["gmacs"] / base["gmacs"] == pytest.approx(0.727, abs=0.0005)
    assert half["params_m"] == base["params_m"]
    # Two deformable layers in each of two towers.
    assert both["params_m"] - base["params_m"] == pytest.approx(4 * 62_235 / 1e6)


def test_slimhead_on_an_rpn(comparison):
    base, slim = counted(comparison, "slimhead", 6, "Faster R-CNN", "Faster R-CNN + SlimHead")
    # 23.42 G with the convolution, and the offsets on 16,800 slimmed sites of P2 and the 22,323 of P3 to P6.
    rpn = 53.1466 - 23.4192 - (16_800 + 22_323) * 62_208 / 1e9
    assert base["head_gmacs"] - slim["head_gmacs"] == pytest.approx(rpn, abs=0.001)


def test_ddod_on_atss(comparison):
    base, spatial, supervision, whole = counted(
        comparison, "ddod", 4, "none", "spatial feature", "supervision", "all three"
    )
    sites = 16_800 + 4_200 + 1_050 + 273 + 77
    assert base["params_m"] == pytest.approx(32.295322)
    assert (whole["gmacs"] - base["gmacs"]) * 1e9 == pytest.approx(82_944 * sites)
    assert (whole["params_m"] - base["params_m"]) * 1e6 == pytest.approx(2 * 41_490)
    assert spatial == whole and supervision == base


def test_querydet_on_retinanet(comparison):
    base, finer, query = counted(comparison, "querydet", 3, "RetinaNet", "HR", "HR + RB + QH")
    assert base["gmacs"] == pytest.approx(250.5, abs=0.05)
    assert finer["gmacs"] == pytest.approx(728.7, abs=0.05)
    # P2 has three times the sites of all other levels, and the head costs 6,460,416 multiply-adds on each.
    assert finer["head_gmacs"] == pytest.approx(4 * base["head_gmacs"])
    assert query["gmacs"] == pytest.approx(728.7, abs=0.05)
    assert (query["params_m"] - finer["params_m"]) * 1e6 == pytest.approx(4 * (256 * 256 * 9 + 256) + 256 * 9 + 1)


def head_params(comparison, row):
    """Parameters of all that a row's detector does with a RoI; its backbone is not built."""
    study, _ = comparison.study(row.study)
    design = comparison.design(row)
    model = patching.apply(plain(load_base(study.base)["model"]), design)
    set_classes(model, len(study.data.classes or range(80)))
    for module in (*patching.imports(design), "spaces.keyparts.detectors"):
        importlib.import_module(module)
    init_default_scope("mmdet")
    if "shared_head" in model["roi_head"]:
        model["roi_head"]["shared_head"].pop("init_cfg")
    return sum(parameter.numel() for parameter in MODELS.build(model["roi_head"]).parameters())


# The rows of R-FCN with key parts are told apart below.
@pytest.mark.parametrize(
    ("number", "row"),
    [(table.number, row) for table, row in ROWS if "head params" in row.metrics and row.label != "Ours & R-FCN"],
    ids=lambda item: getattr(item, "label", item),
)
def test_parameters_of_heads_are_the_printed_ones(comparison, number, row):
    counted, printed = head_params(comparison, row) / 1e6, row.metrics["head params"]
    if (number, row.label) == (3, "R-FCN"):
        # 1024 * (2048 + 49 * 29) weights are 3.55 M: the paper's 3.5 is cut, all others are rounded.
        assert counted == pytest.approx(3.5522, abs=0.003)
    else:
        assert round(counted, 1) == printed or (number, row.label, round(counted, 2)) == (3, "Ours & Faster RCNN", 7.95)
    # In MiB, with what a file has beside the weights.
    assert -1 < row.metrics["head size"] - counted * 4e6 / 2**20 < 1.6


def test_key_parts_on_rfcn_are_smaller_than_printed(comparison):
    """1.5 M and 3.0 M cannot be put together from appendix 5.3: a reduction to 256 channels, K = 16, L = 3, no FC."""
    for number, printed in ((3, 1.5), (4, 3.0)):
        (row,) = table_of("keyparts", number, "Ours & R-FCN").rows
        assert row.metrics["head params"] == printed
        assert head_params(comparison, row) / 1e6 < printed - 0.5


def test_key_parts_of_fpn(comparison):
    base, ours = counted(comparison, "keyparts", 3, "FPN", "Ours & FPN")
    # For 1,000 RoIs: two fully connected layers and the predictions; of the key-part head, as in PAPERS.md.
    assert (base["params_m"] - ours["params_m"]) * 1e6 == pytest.approx(13_999_205 - 6_814_453)
    assert base["head_gmacs"] - ours["head_gmacs"] == pytest.approx(13.997 - 9.958, abs=0.001)


def test_one_key_part_leaves_four_percent(comparison):
    base, one = counted(comparison, "keyparts", 4, "baseline", "K1, L1", kind="figure")
    assert (base["params_m"] - one["params_m"]) * 1e6 == pytest.approx(13_999_205 - 552_934)


def test_a_c4_detector_is_counted_without_its_weights(comparison):
    base, ours = counted(comparison, "keyparts", 3, "Faster RCNN", "Ours & Faster RCNN")
    assert (base["params_m"] - ours["params_m"]) * 1e6 == pytest.approx(15_171_685 - 7_949_161)
    # The fifth stage on 7 x 7 sites of 1,000 RoIs, 734.0 in the paper, which has more for VOC than for COCO.
    assert base["head_gmacs"] - ours["head_gmacs"] == pytest.approx(732.375 - 49.559, abs=0.001)


@pytest.mark.parametrize(
    ("plain_row", "preset_row", "saved"),
    [
        # The lower part of conv3_1 has 1x3 kernels, that of conv4_1 and conv5_1 1x1.
        (
            "RetinaNet R50-FPN",
            "RetinaNet train R50-FPN h",
            8 * 128 * 6 * 16_800 + 45 * 256 * 8 * 4_200 + 113 * 512 * 8 * 1_050,
        ),
        (
            "FRCNN R50-FPN",
            "FRCNN train R50-FPN w",
            12 * 128 * 8 * 16_800 + 52 * 256 * 8 * 4_200 + 166 * 512 * 8 * 1_050,
        ),
        # All but conv3_1 is above 1, and its 0.95 counts as 1.
        ("FRCNN R50-C4", "FRCNN train R50-C4 h", 15 * 128 * 6 * 16_800),
    ],
)
def test_preset_dilations_save_what_their_zeros_do(comparison, plain_row, preset_row, saved):
    """Channels of the lower part x inputs x missing taps x sites, for the dilations of POD's table 3."""
    (base,) = counted(comparison, "pod", 5, plain_row)
    (preset,) = counted(comparison, "pod", 3, preset_row)
    assert (base["gmacs"] - preset["gmacs"]) * 1e9 == pytest.approx(saved)
    assert base["head_gmacs"] == preset["head_gmacs"]


def test_a_detector_without_study_is_counted_and_says_why(comparison):
    found = comparison.table(table_of("slimhead", 5, "GFocal", "OTA"))["rows"]
    assert found[0]["ours"]["gmacs"] == pytest.approx(GFL)
    assert found[0]["reason"] and found[0]["study"] is None
    assert found[1]["ours"] == {} and "not in mmdet" in found[1]["reason"]


def test_a_base_that_cannot_be_counted_says_so(comparison, monkeypatch):
    one = table_of("slimhead", 5, "RetinaNet")
    broken = replace(one, rows=[replace(one.rows[0], base="mmdet::detr/detr_r50_8xb2-150e_coco.py")])
    (row,) = comparison.table(broken)["rows"]
    assert row["ours"] == {} and row["note"].startswith("not counted: ")


# What was trained.


@pytest.fixture(scope="module")
def run(comparison):
    """A study of table 1 of QueryDet that was run: the baseline, and the two settings of the design."""
    study, space = comparison.study("querydet/table1.yaml")
    folder = comparison.root / study.name
    with claimed(folder):
        store = Store.create(folder, study)
        store.propose_baseline(space)
        proposed = store.propose(space)
        for number, accuracy in ((0, 0.37), (1, 0.38)):
            store.start(number)
            store.update(number, {"latency_ms": 20.0 + number, "latency_ratio": 1 + number / 20}, {}, 9.0)
            store.add_epoch(number, EpochRecord(12, {"bbox_mAP": accuracy}, 8.0))
        for index, point in enumerate(space.sweep(dict(proposed.knobs))):
            ratio = {0.15: 0.9, 0.0: 3.0}[point["querydet.threshold"]]
            store.add_point(1, SweepPoint(index, point, {"bbox_mAP": 0.38, "latency_ratio": ratio}))
        for number in (0, 1):
            store.finish(number, TrialState.COMPLETE)
        write_study(folder, study)
    return study


def test_a_study_that_was_run_stands_beside_the_paper(comparison, run, capsys):
    chosen = table_of("querydet", 1, "RetinaNet", "QueryDet", "QueryDet CSQ", "QueryDet (3x)")
    found = Comparison(comparison.root).table(chosen)
    by_label = {row["label"]: row["ours"] for row in found["rows"]}
    assert by_label["RetinaNet"]["bbox_mAP"] == 0.37 and by_label["RetinaNet"]["point"] == "0"
    assert by_label["QueryDet"]["latency_ratio"] == 3.0 and by_label["QueryDet"]["point"].startswith("1")
    assert by_label["QueryDet CSQ"]["latency_ratio"] == 0.9 and by_label["QueryDet CSQ"]["point"] == "1"
    assert "bbox_mAP" not in by_label["QueryDet (3x)"]
    print_published([found], "the legend")
    printed = capsys.readouterr().out
    assert "38.36" in printed and "38.0" in printed and "3.000" in printed and "the legend" in printed
    assert "4 rows: 4 have a study, 3 of them trained; 0 have none." in printed


# The command.


def test_the_command_prints_one_document(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tables", "ddod", "--table", "1", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    (table,) = found["tables"]
    assert (table["paper"], table["table"], table["columns"]) == ("ddod", 1, {"AP": "%"})
    assert len(table["rows"]) == 9
    assert table["rows"][0]["published"] == {"AP": 35.0}
    assert table["rows"][0]["ours"]["gmacs"] == pytest.approx(250.5, abs=0.05)
    assert "ddod table 1, row 9/9" in captured.err
    assert not list(tmp_path.iterdir())


def test_the_command_prints_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tables", "ddod", "--table", "1"]) == 0
    printed = capsys.readouterr().out
    assert "IoU cls=0.6 reg=0.6" in printed and "250.49" in printed
    assert "9 rows: 0 have a study, 0 of them trained; 9 have none." in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tables", "slimhed"], "tables: unknown 'slimhed'; did you mean 'slimhead'?"),
        (["tables", "ddod", "--table", "8"], "--table: must be 1, 2, 3, 4, 5, 6, 7 or 9, but got 8."),
    ],
)
def test_a_wrong_table_is_refused(capsys, arguments, words):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
