"""The papers' tables as data: complete, and true to what is printed."""

import pytest

from analysis.published import PAPERS, TABLES, UNITS, Row, tables
from analysis.published.table import figures

# Rows as printed (cells for DDOD's grids of tables 1 and 5), header rows left out.
ROWS = {
    "slimhead": {1: 4, 2: 6, 3: 14, 4: 2, 5: 17, 6: 4, 7: 4, 8: 4, 9: 6},
    "ddod": {1: 9, 2: 5, 3: 6, 4: 5, 5: 16, 6: 4, 7: 6, 9: 11},
    "querydet": {1: 6, 2: 3, 3: 6, 4: 5, 5: 4, 6: 7, 7: 6, 8: 3, 9: 2},
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
}  # fmt: skip


def row(paper, number, label):
    (table,) = tables(paper, number)
    (found,) = [item for item in table.rows if item.label == label]
    return found


def test_every_table_has_all_its_rows():
    found = {paper: {table.number: len(table.rows) for table in tables(paper)} for paper in PAPERS}
    assert found == ROWS
    assert len(TABLES) == sum(map(len, ROWS.values()))
    assert [table.paper for table in tables(number=9)] == ["slimhead", "ddod", "querydet"]


@pytest.mark.parametrize("key", PRINTED, ids=lambda key: f"{key[0]}-{key[1]}")
def test_figures_are_those_of_the_paper(key):
    assert dict(row(*key).metrics) == PRINTED[key]


def test_one_row_of_every_table_is_checked():
    assert {key[:2] for key in PRINTED} == {(paper, number) for paper, rows in ROWS.items() for number in rows}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.paper}-{table.number}")
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
    ],
)
def test_a_row_that_is_printed_twice_has_the_same_figures(one, other):
    first, second = row(*one).metrics, row(*other).metrics
    shared = first.keys() & second.keys()
    assert shared and all(first[name] == second[name] for name in shared)


def test_a_row_without_study_needs_a_reason():
    with pytest.raises(ValueError, match="either a study or a reason"):
        Row(label="a", metrics={"AP": 1.0})
    with pytest.raises(ValueError, match="either a study or a reason"):
        Row(label="a", metrics={"AP": 1.0}, study="a.yaml", reason="none")


def test_figures_of_the_wrong_number_are_refused():
    assert figures("AP mask~AP FPS", 1.0, 2.0, None) == {"AP": 1.0, "mask AP": 2.0}
    with pytest.raises(ValueError, match="2 columns, but 3 figures"):
        figures("AP FPS", 1.0, 2.0, 3.0)
