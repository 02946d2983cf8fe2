"""The report: sentences that the figures bear, for any study."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from analysis.record import Objective, SweepPoint, TrialRecord, TrialState
from analysis.report import Context, report_html

sys.path.insert(0, str(Path(__file__).parent))

from reported import ONE, STUDY, THREE, TWO, baseline, context, small, trial


def page(trials: Sequence[TrialRecord], objectives: Sequence[Objective] = TWO, about: Context | None = None) -> str:
    return report_html(trials, objectives, about or context())


def text(html: str) -> str:
    """What a person reads: no scripts, no tags, one blank between words."""
    bare = re.sub(r"(?s)<(script|style).*?</\1>", " ", html)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", bare)))


def heads(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


SECTIONS = ["What was searched", "What was found", "What to pick", "Why", "Refused, stopped, failed"]


def test_the_story_of_a_small_study() -> None:
    html = page(small())
    told = text(html)
    assert heads(html) == [*SECTIONS, "What not to trust", "How to go on"]
    for sentence in (
        "9 trials: 5 complete, 2 infeasible, 1 stopped, 1 failed.",
        "The baseline has AP 40.0 % and latency 40.0 ms and is not on the front.",
        "The front has 3 points. In the order of latency it begins with trial 1 (AP 30.0 % and latency 28.0 ms) and "
        "ends with trial 3 (AP 45.0 % and latency 39.6 ms).",
        "2 points of the front (2 and 3) are, as measured, nowhere worse than the baseline and better in something.",
        "Only of 2 do the quartiles of the latency lie below the baseline's.",
        "20 images with 205 boxes to train on, 20 with 153 boxes (3 small, 0 medium and 150 large) to validate on",
        "headway::gfl_tiny; every trial starts from the same initial weights.",
        "More AP and less latency; must hold: latency_ratio <= 1.2.",
        "8 trials of 3 epochs; trials were compared after epoch 1, and the weaker stopped.",
        "54.0 minutes in trials; the search ran for 10.0 minutes.",
        "Each design was trained once, with seed 7.",
        "came to a ratio of 1.010 (quartiles 0.990 to 1.030)",
        "AP of small objects rests on 3 objects",
        "1 trial left at a rung",
        "1 design failed and is missing here.",
        "2 trials broke a constraint; 12.0 minutes went into them.",
        "headway confirm cells",
    ):
        assert sentence in told, sentence
    assert "INFEASIBLE 2 latency_ratio <= 1.2 1.35 to 1.5 12.0 minutes" in told
    assert "Traceback: NaN" in told


def test_where_the_time_goes_stands_beside_the_multiply_adds() -> None:
    told = text(page(small()))
    assert "Where the multiply-adds go" in told and "Where the time goes" not in told
    spent = {"parts": [{"part": "backbone", "level": None, "share": 1.0}]}
    told = text(page([replace(one, attrs={**one.attrs, "time": spent}) for one in small()]))
    assert told.index("Where the multiply-adds go") < told.index("Where the time goes")


def test_what_was_trained_in_is_told() -> None:
    trials = [baseline()]
    assert "Trained on a CPU." in text(page(trials))
    mixed = context(study={**STUDY, "training": {"dtype": "bfloat16"}})
    assert "Trained on a CPU in mixed precision (bfloat16)." in text(page(trials, about=mixed))
    single = context(study={**STUDY, "training": {"dtype": None}})
    assert "Trained on a CPU." in text(page(trials, about=single))


def test_hypervolume_is_told_with_its_unit() -> None:
    # (80 - 28) * 0.30 + (80 - 36) * 0.12 + (80 - 39.6) * 0.03 = 22.09 ms; the baseline alone: 40 * 0.40.
    assert "up to AP 0.0 % and latency 80.0 ms is 22.09, that is 1.381 times the 16 of the baseline alone." in text(
        page(small())
    )


def test_what_to_pick_for_which_budget() -> None:
    told = text(page(small()))
    assert "latency 28.0 ms 0.700 1 AP 30.0 %" in told
    assert "latency 36.0 ms 0.900 2 AP 42.0 %" in told
    assert "latency 39.6 ms 0.990 3 AP 45.0 %" in told
    assert re.search(r"most_accurate 3 AP 45.0 % and latency 39.6 ms", told)
    assert "Trial 3 is the most accurate of 3 points of the front" in told


def test_only_the_baseline() -> None:
    html = page([baseline()])
    told = text(html)
    assert "1 trial: 1 complete." in told
    assert "is on the front" in told
    assert "The front is one point, the baseline" in told
    assert "The designs do not differ in any knob" in told
    assert "For a budget" not in told
    assert "better than the baseline" not in told


def test_no_trial_at_all() -> None:
    html = page([])
    assert "The study has no trial yet." in text(html)
    assert heads(html) == [SECTIONS[0], SECTIONS[-1]]


def test_a_study_that_has_just_begun() -> None:
    html = page([trial(0, 0.1, 1.0, TrialState.RUNNING, epochs=1, finished=None)])
    told = text(html)
    assert "The baseline is RUNNING. Without it nothing can be compared." in told
    assert "No trial is COMPLETE, so there is no front and nothing to pick." in told
    assert "headway status cells" in told
    assert "Learning curves" in told
    assert "What to pick" not in heads(html)


def test_all_failed() -> None:
    trials = [
        trial(number, state=TrialState.FAILED, reason="CUDA out of memory", traceback=f"trace {number}")
        for number in range(4)
    ]
    told = text(page(trials))
    assert "The baseline is FAILED: CUDA out of memory. Without it nothing can be compared." in told
    assert "FAILED 4 CUDA out of memory" in told
    assert "trace 0" in told
    assert "4 trials failed; 24.0 minutes went into them." in told


def test_the_baseline_failed_and_others_did_not() -> None:
    told = text(page([trial(0, state=TrialState.FAILED, reason="boom"), trial(1, 0.3, 0.7), trial(2, 0.4, 0.9)]))
    assert "The front has 2 points." in told
    assert "hypervolume" not in told.lower().replace("hypervolume by compute", "")


@pytest.mark.parametrize("objectives", [ONE, TWO, THREE, (TWO[0], Objective("gmacs", "minimize"))])
def test_any_objectives(objectives: tuple[Objective, ...]) -> None:
    html = page(small(), objectives)
    assert heads(html) == [*SECTIONS, "What not to trust", "How to go on"]
    assert ("For a budget" in text(html)) == (len(objectives) == 2)
    timed = any(objective.metric == "latency_ms" for objective in objectives)
    assert ("quartiles of the latency" in text(html)) == timed


def test_a_sweep_and_learned_designs() -> None:
    points = [
        SweepPoint(
            index, {"querydet.threshold": 0.1 * index}, {"bbox_mAP": 0.4 - 0.01 * index, "latency_ms": 30.0 - index}
        )
        for index in range(3)
    ]
    swept = trial(1, 0.4, 0.75, knobs={"querydet.threshold": 0.0}, sweep=points)
    learned = trial(2, 0.5, 0.95, knobs={"pod.mode": "decompose"}, attrs={"learning_epochs": 2})
    told = text(page([baseline(), swept, learned]))
    assert "2 points of the front (1.2 and 1.1) are further settings of inference knobs" in told
    assert "latency is measured on 16 images" in told
    assert "trial 2 settled into its form in a learning phase" in told


def confirmed(label: str, mates: Sequence[str], alike: bool) -> dict[str, Any]:
    near = [
        {"one": label, "other": mate, "alike": ["bbox_mAP"] if alike else [], "pick": None, "verdicts": {}}
        for mate in mates
    ]
    figures = {"mean": 0.4, "std": 0.012, "low": 0.37, "high": 0.43, "values": {"7": 0.4, "8": 0.41, "9": 0.39}}
    latency = {"ratio": 0.9, "q1": 0.88, "q3": 0.91, "rounds": 9, "aa": 1.0, "on_images": False}
    return {
        label: {
            "seeds": [7, 8, 9], "failed": {}, "metrics": {"bbox_mAP": figures}, "latency": latency,
            "neighbours": near, "mark": f"≈ {mates[0]}" if alike else "",
        }
    }  # fmt: skip


def test_a_confirmed_study() -> None:
    trials = small()
    for number, mates, alike in ((1, ["2"], False), (2, ["3"], True), (3, ["2"], True)):
        own = {"confirmed": confirmed(str(number), mates, alike)}
        trials[number] = replace(trials[number], attrs={**trials[number].attrs, **own})
    told = text(page(trials))
    assert "3 points, of the front or the baseline, were trained with 3 seeds." in told
    assert "The standard deviation of AP over seeds is 1.2 to 1.2 points." in told
    assert "Neighbours that cannot be told apart in something: 2 with 3." in told
    assert "Each design was trained once" not in told
    assert "headway confirm" not in told
    assert "over 3 seeds: AP 40.0 % ± 3.0 (95 %)" in told


def test_few_designs_warn_and_many_do_not() -> None:
    def designs(count: int) -> list[TrialRecord]:
        values = [(number % 5, number // 5 % 4) for number in range(count)]
        return [baseline()] + [
            trial(number, 0.1 + 0.05 * a, 0.7 + 0.05 * b, knobs={"f.a": a, "f.b": b})
            for number, (a, b) in enumerate(values, start=1)
        ]

    few = text(page(designs(30)))
    assert "AP: uncertain, 30 designs, fewer than the 60 that shares need to settle. " in few
    assert "headway run STUDY.yaml --set budget.trials=60 --extend" in few
    enough = text(page(designs(100)))
    assert "uncertain" not in enough
    learned = "of the variance over the space, as learned from 100 designs,"
    assert re.search(f"AP: {learned} f.a explains (9[89]|100) % alone", enough)
    assert re.search(f"Latency: {learned} f.b explains (9[89]|100) % alone", enough)
    none = text(page(designs(8)))
    assert "AP: what explains it cannot be said from 8 designs." in none


def test_what_is_gone_is_said_and_not_made_up() -> None:
    bare = [replace(one, attrs={}) for one in small()]
    told = text(page(bare, about=context(data=None, seconds_run=None)))
    assert "which could not be read when this page was made" in told
    assert "The breakdown by part and level was not recorded in this study." in told
    assert "rests on" not in told
    assert "the search ran" not in told


def test_nothing_of_a_study_is_markup() -> None:
    evil = "</script><script>alert(1)</script><b>&"
    trials = small()
    trials[8] = replace(trials[8], reason=evil, traceback=evil)
    trials[3] = replace(trials[3], knobs={"slimhead.mode": evil})
    trials[2] = replace(trials[2], knobs={"slimhead.mode": "plain"})
    html = page(trials, about=context(study={**STUDY, "name": evil}, word=evil))
    assert "<script>alert" not in html
    assert html.count("</script>") == html.count("<script")


def test_the_page_needs_no_other_file() -> None:
    html = page(small()).replace(get_plotlyjs(), "", 1)
    assert "plotly.js v" not in html, "plotly.js is there once"
    assert re.findall(r"""(?:src|href)=["'](?!#)""", html) == []
    assert "url(" not in html
    assert "http://" not in html
    assert "https://" not in html


def test_the_same_records_give_the_same_page() -> None:
    assert page(small()) == page(list(reversed(small())))
