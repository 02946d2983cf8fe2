"""The drawings of a study: self-contained, complete, and drawn for every size of study."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from xml.etree import ElementTree

import pytest
from matplotlib.text import Text

from analysis import pareto, plots
from analysis.labels import axis, counts, figure, short
from analysis.plots.matrix import matrix_figure, matrix_picture
from analysis.plots.pair import pair_figure
from analysis.plots.sizes import sizes_of
from analysis.plots.words import named
from analysis.record import Objective, TrialRecord, TrialState
from analysis.thin import thin
from analysis.view import view_of

TWO = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))
THREE = (*TWO, Objective("params_m", "minimize"))


def study(count: int) -> list[TrialRecord]:
    trials = []
    for number in range(count):
        ratio = 1.0 - 0.02 * number
        metrics = {
            "bbox_mAP": 0.4 - 0.001 * number**2,
            "bbox_mAP_s": 0.2,
            "latency_ms": 100 * ratio,
            "latency_ratio": ratio,
            "latency_ratio_q1": ratio - 0.01,
            "latency_ratio_q3": ratio + 0.03,
            "params_m": 32.0,
        }
        knobs = {} if number == 0 else {"slimhead.levels": [0], "slimhead.ratio": 0.5, "dcn.cls": [0, number]}
        trials.append(TrialRecord(number, TrialState.COMPLETE, knobs=knobs, metrics=metrics))
    return trials


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize("objectives", [TWO[:1], TWO, THREE])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_every_size_is_drawn(count: int, objectives: tuple[Objective, ...]) -> None:
    trials = study(count)
    picture = plots.pareto_picture(trials, objectives, title="cost $ and $")
    assert size(plots.png(picture)) == (1800, 1012)
    assert plots.pareto_figure(trials, objectives, title="cells").to_json()
    said = " ".join(text.get_text() for text in (*picture.texts, *picture.findobj(Text)))
    assert ("No trial is COMPLETE yet" in said) == (count == 0)
    assert ("One trial is COMPLETE so far" in said) == (count == 1)


def test_a_picture_is_also_an_svg_that_needs_nothing() -> None:
    drawn = plots.pareto_svg(study(5), TWO, title="cells")
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert (root.get("width"), root.get("height")) == ("864pt", "486pt")
    # A namespace and licence are named; nothing is loaded.
    assert not re.search(r"href=[\"'](?!#)", drawn)


def test_sizes_tell_the_parameters() -> None:
    trials = [
        TrialRecord(
            n, TrialState.COMPLETE, metrics={"bbox_mAP": 0.3 + n / 100, "latency_ms": 9.0 + n, "params_m": size}
        )
        for n, size in enumerate((2.0, 2.0, 3.0, 6.0))
    ]
    sizes = sizes_of(trials)
    assert sizes is not None
    assert [sizes.diameter(trial) for trial in trials] == pytest.approx([1.0, 1.0, 1.7, 2.4])
    assert sizes.told == "point size: parameters, 2.00 to 6.00 M"
    assert sizes_of(trials[:2]) is None and sizes_of([]) is None
    page = pair_figure(trials, TWO, title="cells")
    [front] = [trace for trace in page.data if trace.name == "front"]
    assert front.marker.size == pytest.approx((9.0, 9 * 1.7, 9 * 2.4))
    assert sizes.told in page.layout.title.text


def test_points_under_others_are_left_out_and_counted() -> None:
    """Of 3,000 dominated points in 25 places 25 are drawn; the front is drawn whole."""
    trials = study(4)
    for number in range(4, 3004):
        place = number % 25
        metrics = {"bbox_mAP": 0.2 + 0.01 * (place // 5), "latency_ms": 120.0 + 4 * (place % 5), "params_m": 32.0}
        trials.append(TrialRecord(number, TrialState.COMPLETE, metrics=metrics))
    told = "2,975 dominated points lie under others and are not drawn"
    page = pair_figure(trials, TWO, title="cells")
    assert {trace.name: len(trace.x) for trace in page.data if trace.name} == {
        "dominated": 25,
        "front": 3,
        "baseline": 1,
    }
    assert told in page.layout.title.text
    assert told in " ".join(text.get_text() for text in plots.pareto_picture(trials, TWO, title="cells").texts)
    matrix = matrix_figure(trials, THREE, title="cells")
    assert [len(t.x) for t in matrix.data if t.name == "dominated" and t.type == "scatter"] == [25, 5, 5]
    assert [len(t.x) for t in matrix.data if t.name == "dominated" and t.type == "scatter3d"] == [25]
    assert "up to 2,995 dominated points a plot" in matrix.layout.title.text


def test_thin_keeps_the_first_of_each_kind_in_each_cell() -> None:
    places = [(0.1, 0.1), (0.4, 0.4), (0.6, 0.1), (0.45, 0.45), (1.4, 0.1)]
    assert thin(places, (1.0, 1.0), (2, 2)) == [0, 2, 4]
    assert thin(places, (1.0, 1.0), (2, 2), kinds=["a", "b", "a", "b", "a"]) == [0, 1, 2, 4]
    assert thin(places, (0.0, 1.0), (2, 2)) == [0]
    assert thin([], (1.0, 1.0), (2, 2)) == []


def test_other_directions_are_drawn() -> None:
    objectives = (Objective("latency_ms", "minimize"), Objective("bbox_mAP", "maximize"))
    assert '"shape":"vh"' in pair_figure(study(5), objectives, title="cells").to_json().replace(" ", "")
    left, right, bottom, top = view_of(study(5), objectives).behind() or (0, 0, 0, 0)
    assert left < right
    assert bottom < top
    assert (right, bottom) == pytest.approx((40.0, 100.0))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_short_front_is_named_whole(count: int) -> None:
    members = pareto.front(study(count), TWO)
    assert named(members, TWO) == members


def test_named_designs_keep_the_ends_and_fit() -> None:
    members = pareto.front(study(60), TWO)
    chosen = named(members, TWO)
    assert chosen[0] is members[0]
    assert chosen[-1] is members[-1]
    assert 3 <= len(chosen) <= 12


def test_spread_is_in_milliseconds() -> None:
    view = view_of(study(3), TWO)
    assert view.spread(study(3)[2]) == pytest.approx((1.0, 3.0))
    assert view.spread(TrialRecord(0, TrialState.COMPLETE, metrics={"latency_ms": 3.0})) is None


# AP, latency and parameters of trials 0 to 5. Trials 1 to 3 are on the front of two pairs each; 0 and 4 are on that of
# no pair, but nothing is better than them in all three; 5 is worse than 0.
SIX = [(0.30, 100, 30), (0.35, 80, 50), (0.33, 140, 20), (0.10, 60, 25), (0.31, 101, 29), (0.30, 102, 31)]
FOUR = (*THREE, Objective("gmacs", "minimize"))


def six() -> list[TrialRecord]:
    names = ("bbox_mAP", "latency_ms", "params_m", "gmacs")
    trials = []
    for number, figures in enumerate(SIX):
        knobs = {"slimhead.ratio": 0.1 * number} if number else {}
        metrics = dict(zip(names, (*figures, 100.0 + number), strict=True))
        trials.append(TrialRecord(number, TrialState.COMPLETE, knobs=knobs, metrics=metrics))
    return [*trials, TrialRecord(6, TrialState.STOPPED, metrics={"bbox_mAP": 0.9, "latency_ms": 1.0, "params_m": 1.0})]


def spots(kind: str, *columns: int) -> list[tuple[float, ...]]:
    """Where a panel must have points, by the table above; AP in %."""
    numbers = {"front": [1, 2, 3, 4], "baseline": [0], "dominated": [5]}[kind]
    return rounded(tuple(SIX[n][c] * (100 if c == 0 else 1) for c in columns) for n in numbers)


def rounded(places: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
    return sorted(tuple(round(float(value), 6) for value in place) for place in places)


PANELS = [(0, 1), (0, 2), (1, 2)]  # vertical and horizontal objective, row by row


def test_three_objectives_are_drawn_in_pairs() -> None:
    """The front over all three is marked in every panel, and so is the baseline."""
    picture = matrix_picture(six(), THREE, title="cells")
    assert len(picture.axes) == 3
    for axes, (y, x) in zip(picture.axes, PANELS, strict=True):
        drawn = {item.get_label(): item.get_offsets() for item in axes.collections if len(item.get_offsets())}
        for kind in ("front", "baseline", "dominated"):
            assert rounded(drawn[kind]) == spots(kind, x, y)
        # All of the list have their number in every panel.
        assert sorted(text.get_text() for text in axes.texts) == ["1", "2", "3", "4"]  # 0 is the star
        assert axes.get_xlabel().startswith(axis(THREE[x].metric))
        assert axes.get_ylabel().endswith("more is better" if y == 0 else "less is better")
    # The step line is the front of the two alone.
    lines = [rounded(zip(*axes.lines[0].get_data(), strict=True)) for axes in picture.axes]
    assert lines == [[(60, 10), (80, 35)], [(20, 33), (50, 35)], [(20, 140), (25, 60)]]


def test_page_of_three_objectives_has_pairs_and_space() -> None:
    page = matrix_figure(six(), THREE, title="cells")
    for kind, name in (("front", "front over all objectives"), ("baseline", "baseline"), ("dominated", "dominated")):
        flat = [trace for trace in page.data if trace.name == name and trace.type == "scatter"]
        assert [rounded(zip(trace.x, trace.y, strict=True)) for trace in flat] == [spots(kind, x, y) for y, x in PANELS]
        [space] = [trace for trace in page.data if trace.name == name and trace.type == "scatter3d"]
        assert rounded(zip(space.x, space.y, space.z, strict=True)) == spots(kind, 1, 2, 0)
        assert [trace.showlegend for trace in flat] == [True, False, False]
    [space] = [trace for trace in page.data if trace.type == "scatter3d" and trace.mode == "lines"]
    assert len(space.x) == 3 * 5  # a stem below each of the front, the baseline among them
    [front] = [trace for trace in page.data if trace.type == "scatter3d" and trace.name == "front over all objectives"]
    assert front.hovertext[0].startswith("<b>trial 3</b>, on the front<br><b>AP 10.0 %</b><br><b>latency 60.0 ms</b>")
    assert "against the baseline: -20.0 AP, -40 % latency, -17 % parameters" in front.hovertext[0]
    assert "<i>slimhead.ratio</i> = 0.3" in front.hovertext[0]
    # The corner of each pair where both are better than the baseline.
    corners = [(shape.x1, shape.y0 if index < 2 else shape.y1) for index, shape in enumerate(page.layout.shapes)]
    assert corners == [(100, 30), (30, 30), (30, 100)]


def test_more_objectives_are_drawn_in_all_pairs() -> None:
    picture = matrix_picture(six(), FOUR, title="cells")
    labels = [(axes.get_ylabel().split(",")[0], axes.get_xlabel().split(",")[0]) for axes in picture.axes]
    names = [axis(objective.metric) for objective in FOUR]
    assert labels == [(names[y], names[x]) for y in range(4) for x in range(y + 1, 4)]
    page = matrix_figure(six(), FOUR, title="cells")
    assert len({trace.xaxis for trace in page.data if trace.type == "scatter"}) == 6


@pytest.mark.parametrize("count", [0, 1, 2])
def test_more_objectives_of_a_short_study_are_drawn(count: int) -> None:
    assert size(plots.pareto_png(six()[:count], FOUR, title="cells")) == (2700, 1518)


def test_hypervolume_is_drawn() -> None:
    rows = pareto.hypervolume_curves(study(5), TWO, (0.0, 200.0))
    assert size(plots.hypervolume_png(rows, title="cells")) == (1800, 750)
    assert size(plots.hypervolume_png([], title="cells")) == (1800, 750)


@pytest.mark.parametrize(
    ("knobs", "text"),
    [
        ({}, "baseline"),
        (
            {"slimhead.levels": [0], "slimhead.ratio": 0.5, "slimhead.mode": "max", "dcn.cls": [0, 1], "dcn.reg": []},
            "slimhead levels=0 ratio=0.5 max · dcn cls=0,1",
        ),
        ({"ddod.enable": True, "ddod.topk": 9, "pod.transfer": False}, "ddod enable topk=9 · pod no transfer"),
    ],
)
def test_short_words_a_design(knobs: dict[str, object], text: str) -> None:
    assert short(knobs) == text
    assert len(short(knobs, 12)) <= 12


def test_units() -> None:
    assert figure("bbox_mAP", 0.4134) == "AP 41.3 %"
    assert figure("bbox_mAP_50", 0.5) == "AP50 50.0 %"
    assert figure("bbox_mAP_s", float("nan")) == "AP small not measured"
    assert axis("latency_ms") == "latency (ms)"
    assert figure("my_metric", 2.0) == "my metric 2.000"
    assert counts([]) == "no trials"
