"""The papers' tables as data: complete, and true to what is printed."""

import pytest

from analysis.published import PAPERS, TABLES, UNITS, Row, pod, tables
from analysis.published.table import BLOCKS, figures

# Rows as printed (cells for DDOD's grids of tables 1 and 5), header rows left out.
ROWS = {
    "slimhead": {1: 4, 2: 6, 3: 14, 4: 2, 5: 17, 6: 4, 7: 4, 8: 4, 9: 6},
    "ddod": {1: 9, 2: 5, 3: 6, 4: 5, 5: 16, 6: 4, 7: 6, 9: 11},
    "querydet": {1: 6, 2: 3, 3: 6, 4: 5, 5: 4, 6: 7, 7: 6, 8: 3, 9: 2},
    "keyparts": {1: 4, 2: 7, 3: 8, 4: 8},
    "pod": {1: 15, 2: 12, 3: 8, 4: 9, 5: 9},
}
# One row of each table, read off the paper again.
PRINTED = {
    ("slimhead", 1, "bilinear"): {"AP": 39.5, "AP50": 57.8, "AP75": 42.5, "FPS": 43.7},
    ("slimhead", 2, "K=5"): {"AP": 40.6, "AP50": 58.9, "AP75": 43.7, "FPS": 41.3},
    ("slimhead", 3, "r=0.8 DCN"): {"AP": 40.9, "AP50": 58.9, "AP75": 44.2, "FPS": 34.0},
    ("slimhead", 4, "SlimHead"): {"FPS": 38.0, "AP": 41.4, "AP_S": 22.7, "AP_M": 45.4, "AP_L": 55.9},
    ("slimhead", 5, "DDOD"): {
        "FPS": 36.7, "AP": 41.6, "AP50": 55.9, "AP75": 45.1, "AP_S": 23.4, "AP_M": 44.8, "AP_L": 55.3,
    },
    ("slimhead", 6, "PSC + SlimHead"): {"AP": 43.1, "AP50": 68.8, "AP75": 43.9, "FPS": 30.1},
    ("slimhead", 7, "CrowdHuman"): {"AP": 44.0, "AP50": 78.8, "AP75": 43.3, "FPS": 33},
    ("slimhead", 8, "CondInst + SlimHead"): {
        "AP": 40.9, "AP50": 59.6, "AP75": 44.2, "mask AP": 36.9, "mask AP50": 57.4, "mask AP75": 39.5, "FPS": 29.7,
    },
    ("slimhead", 9, "Swin-L 2x + SlimHead"): {"memory": 6198, "AP": 50.6, "AP50": 69.3, "AP75": 54.7, "FPS": 6.7},
    ("ddod", 1, "IoU cls=0.5 reg=0.4"): {"AP": 36.5},
    ("ddod", 2, "3~1"): {"AP": 37.6, "AP50": 55.3, "AP75": 40.8, "AP_S": 22.2, "AP_M": 41.6, "AP_L": 47.0},
    ("ddod", 3, "FCOS* + DDOD"): {"AP": 41.6, "AP50": 59.7, "AP75": 45.3, "AP_S": 24.3, "AP_M": 45.0, "AP_L": 55.1},
    ("ddod", 4, "supervision"): {"AP": 40.0, "AP50": 57.9, "AP75": 43.1, "AP_S": 23.0, "AP_M": 43.6, "AP_L": 52.6},
    ("ddod", 5, "alpha cls=0.8 reg=0.6"): {"AP": 40.0},
    ("ddod", 6, "position 3"): {"AP": 40.1, "AP50": 57.9, "AP75": 43.4, "AP_S": 23.0, "AP_M": 44.6, "AP_L": 52.4},
    ("ddod", 7, "Sum-Reweight*"): {"AP": 39.8, "AP50": 57.8, "AP75": 43.1, "AP_S": 23.0, "AP_M": 43.3, "AP_L": 51.0},
    ("ddod", 9, "DDOD-Face"): {"Easy": 97.0, "Medium": 96.4, "Hard": 93.5},
    ("querydet", 1, "QueryDet CSQ (3x)"): {
        "AP": 39.34, "AP50": 59.69, "AP75": 41.98, "AP_S": 24.91, "AP_M": 42.38, "AP_L": 51.12, "FPS": 15.94,
    },
    ("querydet", 2, "QueryDet"): {
        "AP": 28.35, "AP50": 48.21, "AP75": 28.78, "AR_1": 0.51, "AR_10": 5.96, "AR_100": 36.48, "AR_500": 39.42,
        "FPS": 1.16,
    },
    ("querydet", 3, "HR"): {
        "AP": 36.10, "AP50": 56.39, "AP75": 38.17, "AP_S": 21.94, "AP_M": 39.91, "AP_L": 45.25, "FPS": 4.83,
    },
    ("querydet", 4, "P6"): {
        "AP": 37.91, "AP50": 57.98, "AP75": 40.51, "AP_S": 23.18, "AP_M": 42.02, "AP_L": 49.53, "FPS": 13.42,
    },
    ("querydet", 5, "CCQ"): {
        "AP": 38.32, "AP50": 58.75, "AP75": 40.98, "AP_S": 24.26, "AP_M": 41.97, "AP_L": 49.53, "FPS": 8.73,
    },
    ("querydet", 6, "11x11"): {
        "AP": 38.38, "AP50": 58.755, "AP75": 40.99, "AP_S": 24.33, "AP_M": 41.97, "AP_L": 49.53, "FPS": 13.11,
    },
    ("querydet", 7, "ShuffleNet V2 QD CSQ"): {
        "AP": 25.85, "AP50": 41.96, "AP75": 27.08, "AP_S": 12.81, "AP_M": 28.05, "AP_L": 36.23, "FPS": 20.02,
    },
    ("querydet", 8, "QueryDet (FCOS)"): {
        "AP": 40.05, "AP50": 58.69, "AP75": 43.46, "AP_S": 25.52, "AP_M": 43.43, "AP_L": 50.69, "FPS": 7.92,
    },
    ("querydet", 9, "CSQ"): {
        "AP": 38.20, "AP50": 58.88, "AP75": 41.50, "AP_S": 22.23, "AP_M": 41.91, "AP_L": 49.55, "FPS": 19.03,
    },
    ("keyparts", 1, "softmax"): {"mAP": 80.1},
    ("keyparts", 2, "ours w/o L_d"): {"mAP": 79.9},
    ("keyparts", 3, "Ours & Faster RCNN"): {"head params": 8.0, "head size": 31, "head GMACs": 60.3, "mAP": 80.2},
    ("keyparts", 4, "Ours & R-FCN"): {
        "head params": 3.0, "head size": 12, "head GMACs": 7.8, "AP": 28.4, "AP50": 46.0, "AP_S": 7.3, "AP_M": 30.8,
        "AP_L": 47.9,
    },
    ("pod", 1, "Regionlets"): {"AP": 39.3, "AP50": 59.8, "AP_S": 21.7, "AP_M": 43.7, "AP_L": 50.9},
    ("pod", 2, "RetinaNet-FD R101-FPN"): {
        "AP": 38.8, "AP50": 59.0, "AP75": 41.7, "AP_S": 21.6, "AP_M": 42.9, "AP_L": 52.6,
    },
    ("pod", 3, "FRCNN train R50-FPN w"): {
        "R31": 0.93, "R31 +-": 0.00, "R34": 1.15, "R34 +-": 0.01, "R41": 0.82, "R41 +-": 0.00,
        "R46": 1.39, "R46 +-": 0.01, "R51": 0.89, "R51 +-": 0.00, "R53": 3.68, "R53 +-": 0.05,
    },
    ("pod", 4, "FRCNN-GSL R101-C4"): {"AP": 40.7, "time": 281},
    ("pod", 5, "FRCNN-FD-WT R50-FPN"): {"AP": 39.1, "AP_S": 23.1, "AP_M": 42.5, "AP_L": 51.0},
}  # fmt: skip


def row(paper, number, label, kind="table"):
    (table,) = [table for table in tables(paper, number) if table.kind == kind]
    (found,) = [item for item in table.rows if item.label == label]
    return found


def test_every_table_has_all_its_rows():
    real = [table for table in TABLES if table.kind == "table"]
    found = {paper: {table.number: len(table.rows) for table in real if table.paper == paper} for paper in PAPERS}
    assert found == ROWS
    assert len(real) == sum(map(len, ROWS.values()))
    assert [table.paper for table in tables(number=9)] == ["slimhead", "ddod", "querydet"]


def test_of_figures_there_are_the_points_that_a_text_names():
    (curve,) = [table for table in TABLES if table.kind == "figure"]
    assert (curve.paper, curve.number) == ("keyparts", 4)
    assert curve in tables("keyparts", 4) and len(tables("keyparts", 4)) == 2
    assert {item.label: item.metrics["mAP"] for item in curve.rows} == {
        "baseline": 80.5,
        "K16, L5": 80.5,
        "K1, L1": 79.0,
    }


@pytest.mark.parametrize("key", PRINTED, ids=lambda key: f"{key[0]}-{key[1]}")
def test_figures_are_those_of_the_paper(key):
    assert dict(row(*key).metrics) == PRINTED[key]


def test_one_row_of_every_table_is_checked():
    assert {key[:2] for key in PRINTED} == {(paper, number) for paper, rows in ROWS.items() for number in rows}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.paper}-{table.kind}{table.number}")
def test_a_table_is_well_formed(table):
    labels = [item.label for item in table.rows]
    assert len(set(labels)) == len(labels)
    assert set(table.columns) <= set(UNITS)
    assert ("FPS" in table.columns) == (table.device is not None)
    for item in table.rows:
        assert item.metrics, item.label
        assert (item.study is None) == (item.reason is not None)
        assert item.study is None or item.base is None
        # A share is in percent; only the recall of VisDrone with one box an image is below 1.
        assert all(0.5 <= value <= 100 for name, value in item.metrics.items() if UNITS[name] == "%"), item.label


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("slimhead", 1, "nearest"), ("slimhead", 3, "r=0.5")),
        (("slimhead", 2, "K=3"), ("slimhead", 3, "r=0.5 DCN")),
        (("slimhead", 5, "TOOD"), ("slimhead", 9, "ResNet-50")),
        (("slimhead", 5, "SlimHead"), ("slimhead", 9, "ResNet-50 + SlimHead")),
        (("ddod", 3, "ATSS + DDOD"), ("ddod", 4, "all three")),
        (("ddod", 4, "assignment"), ("ddod", 5, "alpha cls=0.8 reg=0.5")),
        (("ddod", 2, "1~2"), ("ddod", 7, "Linear-Reweight")),
        (("querydet", 1, "QueryDet CSQ"), ("querydet", 5, "CSQ")),
        (("querydet", 3, "HR + RB + QH"), ("querydet", 1, "QueryDet")),
        (("keyparts", 1, "TMR"), ("keyparts", 2, "ours (halve model size: K16, L5)")),
        (("keyparts", 4, "K16, L5", "figure"), ("keyparts", 1, "TMR")),
        (("keyparts", 4, "baseline", "figure"), ("keyparts", 2, "baseline")),
        (("pod", 2, "FRCNN-FD R50-C4"), ("pod", 4, "FRCNN-FD R50-C4")),
        (("pod", 2, "FRCNN R101-C4"), ("pod", 4, "FRCNN R101-C4")),
        (("pod", 2, "FRCNN-FD R101-C4"), ("pod", 4, "FRCNN-FD R101-C4")),
        (("pod", 2, "RetinaNet R50-FPN"), ("pod", 4, "RetinaNet R50-FPN")),
        (("pod", 2, "RetinaNet-FD R50-FPN"), ("pod", 4, "RetinaNet-FD R50-FPN")),
    ],
)
def test_a_row_that_is_printed_twice_has_the_same_figures(one, other):
    first, second = row(*one).metrics, row(*other).metrics
    shared = first.keys() & second.keys()
    assert shared and all(first[name] == second[name] for name in shared)


def test_the_one_row_that_is_printed_twice_with_two_figures():
    assert row("pod", 2, "FRCNN R50-C4").metrics["AP"] == 35.4
    assert row("pod", 4, "FRCNN R50-C4").metrics["AP"] == 35.5


def test_gains_that_pods_text_states():
    """Of sections 1 and 4.2, from the rows themselves."""

    def gain(number, plain, better):
        return round(row("pod", number, better).metrics["AP"] - row("pod", number, plain).metrics["AP"], 1)

    kinds = {"FRCNN R50-C4": 3.0, "FRCNN R101-C4": 2.2, "FRCNN R50-FPN": 1.7, "FRCNN R101-FPN": 1.5}
    kinds |= {"RetinaNet R50-FPN": 1.5, "RetinaNet R101-FPN": 1.3}
    assert {name: gain(2, name, name.replace(" ", "-FD ")) for name in kinds} == kinds
    assert gain(5, "FRCNN R50-C4", "FRCNN-FD-WT R50-C4") == 3.0
    assert gain(5, "RetinaNet R50-FPN", "RetinaNet-FD-WT R50-FPN") == 1.6
    assert gain(1, "RetinaNet", "RetinaNet-FD-WT") == 2.4


def test_drops_that_the_text_on_key_parts_states():
    whole = row("keyparts", 2, "ours (halve model size: K16, L5)").metrics["mAP"]
    assert whole - row("keyparts", 2, "ours w/o L_d").metrics["mAP"] == pytest.approx(0.6)
    one = row("keyparts", 4, "K1, L1", "figure").metrics["mAP"]
    assert row("keyparts", 2, "baseline").metrics["mAP"] - one == pytest.approx(1.5)


def test_blocks_of_table_3_are_convolutions():
    assert [pod.convolution(block) for block in ("R31", "R46", "R53")] == [
        "backbone.layer2.0.conv2",
        "backbone.layer3.5.conv2",
        "backbone.layer4.2.conv2",
    ]
    assert pod.convolution("R53", head_from=5) == "roi_head.shared_head.layer4.2.conv2"
    assert pod.convolution("R46", head_from=5) == "backbone.layer3.5.conv2"


@pytest.mark.parametrize("axis", "hw")
def test_preset_dilations_are_those_of_the_row(axis):
    for item in tables("pod", 3)[0].rows:
        if item.label.endswith(f" {axis}"):
            scales = list(item.knobs["pod"]["scales"].values())
            assert [pair["hw".index(axis)] for pair in scales] == [item.metrics[block] for block in BLOCKS], item.label


def test_a_row_without_study_needs_a_reason():
    with pytest.raises(ValueError, match="either a study or a reason"):
        Row(label="a", metrics={"AP": 1.0})
    with pytest.raises(ValueError, match="either a study or a reason"):
        Row(label="a", metrics={"AP": 1.0}, study="a.yaml", reason="none")


def test_figures_of_the_wrong_number_are_refused():
    assert figures("AP mask~AP FPS", 1.0, 2.0, None) == {"AP": 1.0, "mask AP": 2.0}
    with pytest.raises(ValueError, match="2 columns, but 3 figures"):
        figures("AP FPS", 1.0, 2.0, 3.0)
