"""The picture of learned scales: every convolution in order of depth, its spread, and what it was decomposed into."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from matplotlib.container import ErrorbarContainer

from analysis.plots import scales_json, scales_png
from analysis.plots.blocks import blocks_of
from analysis.plots.scales import scales_picture
from analysis.record import TrialRecord, TrialState


def entry(d_h: float, d_w: float, std_h: float, std_w: float) -> dict[str, float]:
    return {
        "d_h": d_h, "std_h": std_h, "min_h": d_h - 2 * std_h, "max_h": d_h + 2 * std_h,
        "d_w": d_w, "std_w": std_w, "min_w": d_w - 2 * std_w, "max_w": d_w + 2 * std_w,
        "images": 500, "channels": 1000, "groups": 1,
    }  # fmt: skip


# Out of order, as a store may give them back; scales of the paper's table 3 and of its section 3.2.
SCALES = {
    "bbox_head.reg_convs.0.conv": entry(1.0, 1.03, 0.01, 0.02),
    "bbox_head.cls_convs.1.conv": entry(2.02, 1.7, 0.1, 0.2),
    "bbox_head.cls_convs.0.conv": entry(1.75, 1.53, 0.03, 0.04),
    "backbone.layer3.10.conv2": entry(1.7, 2.9, 0.05, 0.06),
    "backbone.layer3.9.conv2": entry(8.49, 9.34, 0.28, 0.32),
    "backbone.layer2.0.conv2": entry(0.88, 0.95, 0.0, 0.0),
    "roi_head.shared_head.layer4.0.conv2": entry(0.65, 0.91, 0.01, 0.01),
}
NAMES = ["conv3_1", "conv4_10", "conv4_11", "conv5_1", "cls.0", "cls.1", "reg.0"]
METRICS = {"bbox_mAP": 0.384, "learned_bbox_mAP": 0.387, "decomposed_bbox_mAP": 0.361, "learning_latency_ratio": 1.7}


def trial(scales: dict[str, Any] = SCALES, state: TrialState = TrialState.COMPLETE) -> TrialRecord:
    knobs = {"pod.mode": "decompose", "pod.tolerance": 0.05}
    attrs = {"scales": scales, "scale_images": 500, "learning_epochs": 6, "seed": 0}
    return TrialRecord(7, state, knobs=knobs, metrics=METRICS, attrs=attrs)


def test_blocks_stand_in_order_of_depth() -> None:
    blocks = blocks_of(trial())
    assert [block.name for block in blocks] == NAMES
    assert [block.group for block in blocks] == ["conv3", "conv4", "conv4", "conv5", "cls", "cls", "reg"]
    assert blocks_of(TrialRecord(0, TrialState.COMPLETE)) == []


def test_blocks_tell_what_they_were_decomposed_into() -> None:
    found = {block.name: (block.low, block.up, round(block.share_up, 4)) for block in blocks_of(trial())}
    assert found["conv4_11"] == ((1, 2), (2, 3), 0.8)  # section 3.2: 20 % and 80 % of the channels
    assert found["cls.1"] == ((2, 1), (2, 2), 0.7)
    assert found["conv3_1"] == ((0, 1), (1, 1), 0.88)
    assert found["reg.0"] == ((1, 1), (1, 1), 0.0)
    loose = trial()
    loose = TrialRecord(7, loose.state, knobs={"pod.tolerance": 0.1}, attrs=loose.attrs)
    assert blocks_of(loose)[2].up == (2, 3)
    assert blocks_of(loose)[2].low == (1, 3)  # 2.9 is near 3 now


def test_error_bars_are_the_spread_over_the_images() -> None:
    [axes] = scales_picture(trial(), title="cells").axes
    drawn = [item for item in axes.containers if isinstance(item, ErrorbarContainer)]
    # One series a direction and a stage, so that no line joins two stages.
    assert len(drawn) == 2 * 5
    blocks = blocks_of(trial())
    for side, letter in enumerate("hw"):
        series = drawn[5 * side : 5 * side + 5]
        heights = [y for item in series for y in item.lines[0].get_ydata()]
        assert heights == [SCALES[block.path][f"d_{letter}"] for block in blocks]
        bars = [segment for item in series for segment in item.lines[2][0].get_segments()]
        lengths = [top - bottom for (_, bottom), (_, top) in bars]
        assert lengths == pytest.approx([2 * SCALES[block.path][f"std_{letter}"] for block in blocks])
    places = [x for item in drawn[:5] for x in item.lines[0].get_xdata()]
    assert places == sorted(places)


def test_dilations_and_ranges_are_drawn() -> None:
    [axes] = scales_picture(trial(), title="cells").axes
    lines = [segment for item in axes.collections for segment in item.get_segments()]
    across = [line for line in lines if line[0][1] == line[1][1] and line[0][0] != line[1][0]]
    # Of conv4_10 (8, 9) and (9, 10): 8 and 9 for the height, 9 and 10 for the width.
    assert sorted(line[0][1] for line in across if line[0][1] > 3) == [8, 9, 9, 10]
    # Both directions of reg.0 have one dilation, and the height of cls.1; all others have two.
    assert len(across) == 14 * 2 - 3 - 1  # conv3_1 is within 0.05 of 1 in width
    ranges = {(round(low, 9), round(high, 9)) for (_, low), (_, high) in lines}
    assert {(7.93, 9.05), (8.7, 9.98)} <= ranges


def test_names_say_the_decomposition() -> None:
    [axes] = scales_picture(trial(), title="cells").axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert [label.split("\n")[0] for label in labels] == NAMES
    assert labels[5] == "cls.1\n2x1 30 %\n2x2 70 %"
    assert labels[6] == "reg.0\n1x1 100 %"
    stages = [text.get_text() for text in axes.texts]
    assert stages == ["conv3", "conv4", "conv5", "classification", "regression"]


@pytest.mark.parametrize("count", [1, 4, 30])
def test_every_depth_is_drawn(count: int) -> None:
    scales = {f"backbone.layer3.{index}.conv2": entry(1.5, 1.5, 0.1, 0.1) for index in range(count)}
    picture = scales_picture(trial(scales), title="cells $ and $")
    assert len(picture.axes[0].get_xticklabels()) == count
    assert scales_png(trial(scales), title="cells").startswith(b"\x89PNG\r\n\x1a\n")
    # Names lie inside the picture.
    picture.canvas.draw()
    boxes = [label.get_window_extent() for label in picture.axes[0].get_xticklabels()]
    assert all(box.y0 > 0 and box.x0 > 0 for box in boxes)
    assert all(before.x1 <= box.x0 + 1 for before, box in pairwise(boxes))


def test_figures_of_both_phases_are_said() -> None:
    said = [text.get_text() for text in scales_picture(trial(), title="cells").texts]
    assert "AP 38.7 % with learned scales, 36.1 % once decomposed, 38.4 % after fine-tuning; " in said[2]
    said = [text.get_text() for text in scales_picture(trial(state=TrialState.RUNNING), title="cells").texts]
    assert "fine-tuning" not in said[2]


def test_looks_at_few_images_are_told() -> None:
    few = replace(trial(), attrs={**trial().attrs, "scale_images": 205})
    said = [text.get_text() for text in scales_picture(few, title="cells").texts]
    assert "the mean over 500 looks at 205 images" in said[1]


def test_shares_are_those_of_whole_channels() -> None:
    scales = {"backbone.layer3.10.conv2": {**entry(1.7, 2.9, 0.05, 0.06), "channels": 256}}
    (block,) = blocks_of(trial(scales))
    assert block.share_up == 205 / 256  # figure 3 of the paper
    rounded = replace(trial(scales), knobs={"pod.tolerance": 0.05, "pod.round_channels": 16})
    assert blocks_of(rounded)[0].share_up == 208 / 256


def test_json_holds_what_is_drawn() -> None:
    document = json.loads(scales_json(trial()))
    assert [item["name"] for item in document["convolutions"]] == NAMES
    assert document["convolutions"][1]["mean"] == [8.49, 9.34]
    assert document["convolutions"][1]["std"] == [0.28, 0.32]
    assert document["images"] == 500
    assert document["metrics"]["decomposed_bbox_mAP"] == 0.361


def test_a_trial_without_scales_is_refused() -> None:
    with pytest.raises(ValueError, match="trial 0 has learned no scales"):
        scales_png(TrialRecord(0, TrialState.COMPLETE), title="cells")
