"""Importance: functions whose shares of variance are known, and designs that lack knobs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from analysis.importance import LEAST_TRIALS, Importance, importances
from analysis.record import Objective, SweepPoint, TrialRecord, TrialState

AP = Objective("bbox_mAP", "maximize")
MS = Objective("latency_ms", "minimize")


def trial(number: int, knobs: Mapping[str, Any], ap: float, **fields: Any) -> TrialRecord:
    return TrialRecord(number, fields.pop("state", TrialState.COMPLETE), knobs, {"bbox_mAP": ap}, **fields)


def study(
    count: int, design: Callable[[np.random.Generator], dict[str, Any]], value: Callable[..., float], seed: int = 0
):
    rng = np.random.default_rng(seed)
    designs = [design(rng) for _ in range(count)]
    return [trial(number, knobs, value(knobs, rng)) for number, knobs in enumerate(designs, start=1)]


def explained(trials: list[TrialRecord]) -> Importance:
    return importances(trials, [AP])[0]


def three(rng: np.random.Generator) -> dict[str, Any]:
    return {"f.a": int(rng.integers(5)), "f.b": "xyz"[rng.integers(3)], "f.c": bool(rng.integers(2))}


def test_one_knob_explains_everything() -> None:
    found = explained(study(120, three, lambda knobs, rng: float(knobs["f.a"])))
    assert found.shares["f.a"] == pytest.approx(1, abs=0.02)
    assert found.shares["f.b"] < 0.01
    assert found.shares["f.c"] < 0.01
    assert max(found.pairs.values()) < 0.02
    assert found.explained > 0.95
    assert found.doubt is None


def additive(knobs: Mapping[str, Any], rng: np.random.Generator) -> float:
    # Each term has variance 1 over its values, so that the shares are the squares of the factors.
    terms = (
        (knobs["f.a"] - 2) / math.sqrt(2),
        ("xyz".index(knobs["f.b"]) - 1) / math.sqrt(2 / 3),
        2 * knobs["f.c"] - 1,
    )
    return sum(math.sqrt(share) * term for share, term in zip((0.6, 0.25, 0.15), terms, strict=True))


def test_shares_of_an_additive_function() -> None:
    found = explained(study(240, three, additive))
    assert list(found.shares) == ["f.a", "f.b", "f.c"]
    assert [found.shares[name] for name in found.shares] == pytest.approx([0.6, 0.25, 0.15], abs=0.03)
    assert sum(found.pairs.values()) < 0.02


def test_shares_with_noise_as_large_as_a_knob() -> None:
    found = explained(study(240, three, lambda knobs, rng: additive(knobs, rng) + 0.33 * rng.standard_normal()))
    assert [found.shares[name] for name in ("f.a", "f.b", "f.c")] == pytest.approx([0.6, 0.25, 0.15], abs=0.08)


def test_a_pair_that_matters_only_together() -> None:
    found = explained(study(200, three, lambda knobs, rng: float((knobs["f.a"] > 2) == knobs["f.c"])))
    best = next(iter(found.pairs))
    assert best == ("f.a", "f.c")
    # 2 of 5 values are above 2. With u = +-1 by a and v = +-1 by c, uv explains 1 - mean(u)^2 = 0.96 as a pair.
    assert found.pairs[best] == pytest.approx(0.96, abs=0.08)
    assert found.shares["f.c"] == pytest.approx(0.04, abs=0.04)


def test_agrees_with_optuna_where_every_design_has_every_knob() -> None:
    import optuna

    trials = study(200, three, lambda knobs, rng: additive(knobs, rng) + 0.2 * rng.standard_normal())
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {
        "f.a": optuna.distributions.IntDistribution(0, 4),
        "f.b": optuna.distributions.CategoricalDistribution(("x", "y", "z")),
        "f.c": optuna.distributions.CategoricalDistribution((False, True)),
    }
    theirs = optuna.create_study()
    theirs.add_trials(
        [
            optuna.trial.create_trial(params=dict(one.knobs), distributions=space, value=one.metrics["bbox_mAP"])
            for one in trials
        ]
    )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    expected = optuna.importance.get_param_importances(theirs, evaluator=evaluator, normalize=False)
    ours = explained(trials).shares
    assert list(ours) == sorted(expected, key=lambda name: -expected[name])
    # Optuna averages the shares of single trees, whose noise counts; ours are of the forest as a whole.
    assert [ours[name] for name in expected] == pytest.approx(list(expected.values()), abs=0.08)


def lacking(rng: np.random.Generator) -> dict[str, Any]:
    knobs = {"one.x": int(rng.integers(4))}
    return {**knobs, "two.y": int(rng.integers(4)), "two.z": int(rng.integers(4))} if rng.integers(2) else knobs


def test_being_there_is_the_switch_s_share() -> None:
    found = explained(study(200, lacking, lambda knobs, rng: 3.0 * ("two.y" in knobs)))
    assert found.shares["two"] == pytest.approx(1, abs=0.03)
    assert found.shares["two.y"] < 0.01
    assert found.shares["two.z"] < 0.01
    assert "one" not in found.shares, "a family that all designs have is no switch"
    assert ("two", "two.y") not in found.pairs


def test_a_knob_of_some_designs_has_the_share_of_its_values() -> None:
    found = explained(study(300, lacking, lambda knobs, rng: float(knobs.get("two.y", 1.5))))
    assert found.shares["two.y"] > 5 * max(share for name, share in found.shares.items() if name != "two.y")


def test_a_set_is_one_knob() -> None:
    def design(rng: np.random.Generator) -> dict[str, Any]:
        return {"f.levels": [level for level in range(4) if rng.integers(2)], "f.b": int(rng.integers(3))}

    found = explained(
        study(150, design, lambda knobs, rng: float(0 in knobs["f.levels"]) + float(3 in knobs["f.levels"]))
    )
    assert set(found.shares) == {"f.levels", "f.b"}
    assert found.shares["f.levels"] == pytest.approx(1, abs=0.03)


def test_where_the_search_went_does_not_count() -> None:
    # The value 0 of f.a was tried ten times as often; over the space both knobs explain the same.
    def design(rng: np.random.Generator) -> dict[str, Any]:
        return {"f.a": int(rng.random() < 0.09), "f.b": int(rng.integers(2))}

    found = explained(study(400, design, lambda knobs, rng: float(knobs["f.a"] + knobs["f.b"])))
    assert found.shares["f.a"] == pytest.approx(0.5, abs=0.03)
    assert found.shares["f.b"] == pytest.approx(0.5, abs=0.03)


def test_noise_alone_is_doubted() -> None:
    found = explained(study(200, three, lambda knobs, rng: rng.standard_normal()))
    assert found.explained < 0.2
    assert found.doubt is not None
    assert "held back" in found.doubt


def test_few_designs_are_doubted() -> None:
    found = explained(study(LEAST_TRIALS - 1, three, additive))
    assert found.shares
    assert found.doubt == f"{LEAST_TRIALS - 1} designs, fewer than the {LEAST_TRIALS} that shares need to settle"
    assert explained(study(LEAST_TRIALS, three, additive)).doubt is None


def test_hardly_any_designs_explain_nothing() -> None:
    assert explained([]).shares == {}
    found = explained(study(19, three, additive))
    assert found.shares == {}
    assert found.doubt is not None
    assert explained(study(20, three, additive)).shares


def test_what_does_not_vary_is_said() -> None:
    found = explained([trial(number, {"f.a": 1, "f.b": number % 2}, number % 2) for number in range(1, 41)])
    assert found.fixed == ["f.a"]
    assert found.shares == {"f.b": pytest.approx(1, abs=0.01)}
    assert explained([trial(number, {"f.a": number % 3}, 0.5) for number in range(1, 41)]).shares == {}


def test_accuracy_is_of_complete_trials_and_cost_of_all() -> None:
    trials = [trial(0, {}, 0.9)]
    for number in range(1, 61):
        state = TrialState.INFEASIBLE if number % 2 else TrialState.COMPLETE
        metrics = {"latency_ms": float(number % 4), **({} if number % 2 else {"bbox_mAP": 0.1 * (number % 4)})}
        trials.append(TrialRecord(number, state, {"f.a": number % 4}, metrics))
    ap, ms = importances(trials, [AP, MS])
    assert (ap.designs, ms.designs) == (30, 60)


def test_settings_of_a_sweep_are_designs_and_are_held_back_together() -> None:
    trials = []
    rng = np.random.default_rng(0)
    for number in range(1, 31):
        # Figures follow the training alone, in which settings cannot be told from one another by any knob.
        level = rng.standard_normal()
        points = [
            SweepPoint(index, {"f.a": int(rng.integers(3)), "f.t": 0.1 * index}, {"bbox_mAP": level})
            for index in range(4)
        ]
        trials.append(trial(number, points[0].knobs, level, sweep=points))
    found = explained(trials)
    assert found.designs == 120
    assert found.explained < 0.2, "a design must not be predicted by another setting of its own training"


def test_many_designs_are_sampled_and_it_is_said() -> None:
    found = explained(study(1500, three, additive))
    assert (found.designs, found.sampled) == (1000, 1500)
    assert found.shares["f.a"] == pytest.approx(0.6, abs=0.03)


def test_the_same_records_give_the_same_shares() -> None:
    trials = study(60, lacking, lambda knobs, rng: rng.standard_normal())
    assert explained(trials) == explained(trials)


def test_json_is_plain() -> None:
    import json

    document = explained(study(40, three, additive)).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert json.loads(json.dumps(explained([]).to_json(), allow_nan=False))["explained"] is None
