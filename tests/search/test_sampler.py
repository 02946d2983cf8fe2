"""What samplers are told of each state, that they propose what an undisturbed study would, and their limits."""

import itertools
import math

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from analysis.record import EpochRecord, Objective, TrialRecord, TrialState
from search.proposals import Proposals, check_sampler, conditional_knobs, earlier_points
from search.sampler import Growth, History, make_sampler
from search.store import Store
from search.study import SamplerSection, parse
from spaces.base import BackboneFacts, BaseFacts
from spaces.errors import UserError
from spaces.space import build_space, design_hash

RESNET = BackboneFacts("ResNet", (3, 4, 6, 3), basic=False)
GFL = BaseFacts("GFL", "GFLHead", (8, 16, 32, 64, 128), 4, False, finer=1, tower_norm="GN", backbone=RESNET)
RETINA = BaseFacts("RetinaNet", "RetinaHead", (8, 16, 32, 64, 128), 4, True, priors=9, finer=1, backbone=RESNET)
SPACE = build_space({"slimhead": {}, "dcn": {}}, GFL)
OBJECTIVES = (Objective("bbox_mAP", "maximize"), Objective("latency_ms", "minimize"))
# Every design has the same knobs.
FIXED = build_space(
    {"slimhead": {"levels": [[0, 1]], "ratio": {"low": 0.2, "high": 0.8}, "mode": ["nearest", "bilinear"]}}, GFL
)


def make_study(**changes):
    raw = {
        "name": "sampled",
        "base": "headway::gfl_tiny",
        "data": {"digits": {}, "size": [96, 96]},
        "space": {"slimhead": {}, "dcn": {}},
        "budget": {"trials": 40, "epochs": 4},
        "sampler": {"name": "tpe", "startup": 4},
    }
    return parse({**raw, **changes}, "sampled.yaml")


def ended(number, state, curve, latency=10.0, **more):
    """A trial whose accuracies after epochs 1, 2, ... are ``curve``."""
    epochs = [EpochRecord(epoch, {"bbox_mAP": accuracy}) for epoch, accuracy in enumerate(curve, 1)]
    metrics = {"latency_ms": latency} if latency is not None else {}
    if curve:
        metrics["bbox_mAP"] = curve[-1]
    return TrialRecord(number, state, knobs={"n": number}, metrics=metrics, curve=epochs, **more)


def projected(record, complete):
    growth = Growth("bbox_mAP")
    for other in complete:
        growth.add(other)
    return growth.projected(record)


def test_a_stopped_trial_is_projected_by_the_median_growth_of_the_complete_ones():
    curves = [[0.1, 0.2, 0.3], [0.1, 0.4], [0.2, 0.3, 0.5]]
    complete = [ended(number, TrialState.COMPLETE, curve) for number, curve in enumerate(curves)]
    # From epoch 1 they grew 3, 4 and 2.5 times; from epoch 2 1.5, 1 and 5/3 times.
    assert projected(ended(9, TrialState.STOPPED, [0.05]), complete) == pytest.approx(0.15)
    assert projected(ended(9, TrialState.STOPPED, [0.05, 0.2]), complete) == pytest.approx(0.3)
    # Of an even number the mean of the middle two, 2.5 and 3.
    assert projected(ended(9, TrialState.STOPPED, [0.1]), [complete[0], complete[2]]) == pytest.approx(0.275)
    # No more than the best reached, no less than it had.
    assert projected(ended(9, TrialState.STOPPED, [0.3]), complete) == 0.5
    assert projected(ended(9, TrialState.STOPPED, [0.6]), complete) == 0.6
    # Nothing to go by: no complete trial, or none with an accuracy above 0 then.
    assert projected(ended(9, TrialState.STOPPED, [0.2]), []) == 0.2
    assert projected(ended(9, TrialState.STOPPED, [0.2]), [ended(0, TrialState.COMPLETE, [0.0, 0.4])]) == 0.2


def told(history):
    return {trial.number: trial for trial in history._study.get_trials(deepcopy=False)}


def test_what_a_sampler_is_told_of_each_state():
    history = History(OBJECTIVES)
    for number in range(6):
        history.keep(history.ask(make_sampler(SamplerSection(name="random"), 0, number)), number)
    history.end(ended(1, TrialState.STOPPED, [0.1], latency=7.0), {})
    assert told(history)[1].values == [0.1, 7.0]
    history.end(ended(0, TrialState.COMPLETE, [0.2, 0.5], latency=10.0), {"params_m <= 4": -0.5})
    history.end(ended(2, TrialState.INFEASIBLE, [], latency=30.0), {"latency_ms <= 20": 0.5})
    history.end(ended(3, TrialState.FAILED, [0.9], latency=1.0), {})
    history.end(ended(4, TrialState.STOPPED, [0.1], latency=None), {})
    # The next proposal sees the stopped trial with what the complete one has taught since: 0.1 x 2.5.
    history.drop(history.ask(make_sampler(SamplerSection(name="random"), 0, 9)))
    trials = told(history)
    states = [trials[number].state for number in range(6)]
    assert states == [OptunaState.COMPLETE, OptunaState.COMPLETE, OptunaState.PRUNED, OptunaState.FAIL,
                      OptunaState.PRUNED, OptunaState.RUNNING]  # fmt: skip
    assert [trials[number].values for number in range(6)] == [[0.5, 10.0], [0.25, 7.0], None, None, None, None]
    assert trials[2].constraints == {"latency_ms <= 20": 0.5}
    assert trials[0].constraints == {"params_m <= 4": -0.5}


def finish(store, number):
    """Ends a trial by a rule: every third is stopped, every seventh infeasible; the rest is complete."""
    store.start(number)
    accuracy = 0.2 + 0.07 * math.sin(number)
    store.update(number, {"latency_ms": 10 + 3 * math.cos(number)}, {}, 1.0)
    if number % 7 == 6:
        store.finish(number, TrialState.INFEASIBLE, reason="must hold", broken={"gmacs <= 20": 0.1 * number})
        return
    store.add_epoch(number, EpochRecord(1, {"bbox_mAP": accuracy / 2}, 1.0))
    if number % 3 == 1:
        store.finish(number, TrialState.STOPPED, reason="at epoch 1", broken={"gmacs <= 20": -0.1})
        return
    store.add_epoch(number, EpochRecord(4, {"bbox_mAP": accuracy}, 4.0))
    store.finish(number, TrialState.COMPLETE, broken={"gmacs <= 20": -0.1})


def play(folder, trials, restarts=(), space=SPACE, **changes):
    """Proposes trials two side by side; opens the store anew before the trials ``restarts``."""
    folder.mkdir(parents=True, exist_ok=True)
    store = Store.create(folder, make_study(**changes))
    store.propose_baseline(space)
    for number in range(1, trials):
        if number in restarts:
            store = Store.create(folder, make_study(**changes))
        store.propose(space)
        finish(store, number - 1)
    return [record.knobs for record in store.records()]


@pytest.mark.parametrize("name", ["tpe", "nsgaii", "random"])
def test_a_study_that_is_continued_proposes_what_an_undisturbed_one_does(tmp_path, name):
    sampler = {"name": name, "startup": 4}
    expected = play(tmp_path / "undisturbed", 14, sampler=sampler)
    assert len({design_hash(design) for design in expected}) == 14
    assert play(tmp_path / "continued", 14, restarts=(1, 2, 9, 13), sampler=sampler) == expected


def test_nsgaiii_goes_through_generations(tmp_path):
    # Its niching draws lots once a generation, anew after a restart.
    designs = play(tmp_path, 24, sampler={"name": "nsgaiii", "startup": 4})
    assert len({design_hash(design) for design in designs}) == 24
    asked = Store.create(tmp_path, make_study(sampler={"name": "nsgaiii", "startup": 4}))._told
    generations = [told[0].system.get("NSGAIIISampler:generation", 0) for told in asked.values()]
    assert generations == sorted(generations)
    assert max(generations) >= 3


def test_a_model_takes_over_after_the_startup(tmp_path):
    random = play(tmp_path / "random", 12, sampler={"name": "random"})
    tpe = play(tmp_path / "tpe", 12, sampler={"name": "tpe", "startup": 6})
    assert random[:5] == tpe[:5]
    assert random != tpe


def test_gp_proposes_where_every_design_has_the_same_knobs(tmp_path):
    sampler = {"name": "gp", "startup": 3}
    check_sampler(make_study(sampler=sampler), FIXED)
    designs = play(tmp_path / "gp", 6, space=FIXED, sampler=sampler)
    assert len({design_hash(design) for design in designs}) == 6
    assert play(tmp_path / "continued", 6, restarts=(5,), space=FIXED, sampler=sampler) == designs


def test_gp_is_refused_where_knobs_come_and_go():
    with pytest.raises(UserError) as caught:
        check_sampler(make_study(sampler={"name": "gp"}), SPACE)
    message = str(caught.value)
    assert message.startswith(
        "sampler.name: must be tpe, nsgaii, nsgaiii or random for a space whose knobs come and go"
    )
    assert "dcn.placement.cls.0" in message


def test_tpe_models_groups_only_where_knobs_come_and_go(tmp_path):
    assert conditional_knobs(FIXED) == []
    assert "slimhead.mode" in conditional_knobs(SPACE)
    section = SamplerSection(name="tpe")
    assert not make_sampler(section, 0, 0, conditional=False)._group
    assert make_sampler(section, 0, 0, conditional=True)._group
    designs = play(tmp_path / "undisturbed", 10, space=FIXED)
    assert play(tmp_path / "continued", 10, restarts=(2, 7), space=FIXED) == designs


def test_grid_tries_every_design_once(tmp_path):
    space = build_space(
        {"slimhead": {"levels": [[0], [0, 1]], "ratio": [0.5], "mode": "nearest"}, "dcn": {"placement": [["cls.0"]]}},
        GFL,
    )
    count = int(space.size())
    sampler = {"name": "grid"}
    designs = play(
        tmp_path / "grid", count, restarts=(3,), space=space, sampler=sampler, budget={"trials": 400, "epochs": 4}
    )
    assert len({design_hash(design) for design in designs}) == count == len(space.designs()) + 1
    assert {design_hash(design) for design in designs[1:]} == {design_hash(design) for design in space.designs()}
    # In an order drawn from the seed: a grid that is cut short is no corner of the space.
    assert designs[1:] != space.designs()
    store = Store.create(tmp_path / "grid", make_study(sampler=sampler, budget={"trials": 400, "epochs": 4}))
    assert store.propose(space) is None


def test_grid_is_refused_on_a_space_that_is_too_large():
    with pytest.raises(UserError, match="must be small enough to try whole, but it has"):
        check_sampler(make_study(sampler={"name": "grid"}), SPACE)


def test_the_papers_best_settings_come_first_where_the_user_wishes(tmp_path):
    sampler = {"name": "tpe", "startup": 4, "known": True}
    designs = play(tmp_path, 6, restarts=(2, 3), sampler=sampler)
    assert SPACE.known() == designs[1:4]
    slim = {"slimhead.levels": [0], "slimhead.ratio": 0.5, "slimhead.mode": "nearest", "slimhead.fat": True}
    dcn = {"dcn.placement": ["cls.0", "cls.1", "reg.0", "reg.1"], "dcn.version": 2}
    assert designs[1:4] == [dcn, slim, {**dcn, **slim}]


def test_an_earlier_study_is_told_relative_to_its_own_baseline(tmp_path):
    wide = build_space({"slimhead": {"ratio": [0.25, 0.5]}}, GFL)
    narrow = build_space({"slimhead": {"ratio": [0.5]}}, GFL)
    designs = [{}, wide.canonicalise({"slimhead.levels": [0], "slimhead.ratio": 0.5}),
               wide.canonicalise({"slimhead.levels": [1], "slimhead.ratio": 0.25}),
               wide.canonicalise({"slimhead.levels": [2], "slimhead.ratio": 0.5})]  # fmt: skip
    states = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.COMPLETE, TrialState.STOPPED]
    records = [
        TrialRecord(number, state, knobs=design, metrics={"bbox_mAP": 0.4 - 0.1 * number, "latency_ms": 20.0 - number})
        for number, (design, state) in enumerate(zip(designs, states))
    ]
    study = make_study(space={"slimhead": {"ratio": [0.5]}}, sampler={"name": "tpe", "startup": 2, "earlier": ["old"]})
    # The second has a ratio that this space lacks, the third was stopped.
    points = earlier_points(study, narrow, "old", records)
    assert [(point.design, point.relative) for point in points] == [(designs[1], (pytest.approx(0.75), 0.95))]

    store = Store.create(tmp_path, study)
    store.earlier = points
    store.propose_baseline(narrow)
    store.propose(narrow)
    finish(store, 0)
    mine = store.record(0).metrics
    expected = [0.75 * mine["bbox_mAP"], 0.95 * mine["latency_ms"]]
    for again in (store, Store.create(tmp_path, study)):
        again._proposer(narrow)
        first = told(again._proposals._history)[0]
        assert first.values == pytest.approx(expected)
        assert narrow.suggest(optuna.trial.FixedTrial(first.params)) == designs[1]
        assert len(again.records()) == 2


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "must be studies with a COMPLETE baseline, but old has none"),
        ([TrialRecord(0, TrialState.STOPPED)], "must be studies with a COMPLETE baseline, but old has none"),
        ([TrialRecord(0, TrialState.COMPLETE, metrics={"bbox_mAP": 0.2})], "the baseline of old lacks latency_ms"),
    ],
)
def test_an_earlier_study_with_nothing_to_refer_to_is_refused(records, message):
    with pytest.raises(UserError, match=message):
        earlier_points(make_study(), SPACE, "old", records)


SPACES = {
    "slimhead": ({"slimhead": {"levels": {"max_size": 2}, "ratio": [0.3, 0.5, 1.0]}}, GFL),
    "prefixes": (
        {
            "slimhead": {"levels": {"prefixes": True, "max_size": 2}, "ratio": [0.5], "mode": "nearest"},
            "dcn": {"placement": {"among": ["cls.0", "reg.0"]}},
        },
        GFL,
    ),
    "queries": ({"querydet": {"level_weights": 1.0}, "slimhead": {"levels": {"max_size": 1}, "ratio": [0.5]}}, RETINA),
    "pod": (
        {"pod": {"stages": [[3], [4]]}, "ddod": {"alpha_cls": [0.5, 0.8], "alpha_reg": 0.5, "topk": 9, "span": 2.0}},
        RETINA,
    ),
}


@pytest.mark.parametrize("name", ["slimhead", "prefixes"])
def test_all_designs_of_a_space_are_listed(name):
    """Whatever random proposals find is in the list, and the list holds nothing else."""
    space = build_space(*SPACES[name])
    listed = {design_hash(design) for design in space.designs()}
    found = set()
    history = History(OBJECTIVES)
    for stream in range(60 * len(listed)):
        trial = history.ask(make_sampler(SamplerSection(name="random"), 0, stream))
        design = space.suggest(trial)
        history.drop(trial)
        found |= {design_hash(design)} if design else set()
        if found == listed:
            break
    assert found == listed


@pytest.mark.parametrize("name", list(SPACES))
def test_a_design_is_recalled_by_the_answers_that_propose_it(name):
    spec, base = SPACES[name]
    try:
        space = build_space(spec, base)
    except UserError:
        spec = {family: {} for family in spec}
        space = build_space(spec, base)
    history = History(OBJECTIVES)
    for stream in itertools.count():
        trial = history.ask(make_sampler(SamplerSection(name="random"), 0, stream))
        try:
            design = space.suggest(trial)
        except UserError:
            continue
        if design:
            # Not always the answers that were given: two of them may mean the same.
            assert space.suggest(optuna.trial.FixedTrial(space.recall(design))) == design
        if stream > 60:
            break


def test_a_design_that_is_not_proposed_is_not_recalled():
    space = build_space({"slimhead": {"levels": [[0]], "ratio": [0.5]}}, GFL)
    full = build_space({"slimhead": {}, "dcn": {}}, GFL)
    for values in (
        {"slimhead.levels": [1]},
        {"slimhead.levels": [0], "slimhead.ratio": 0.7},
        {"dcn.placement": ["cls.0"]},
    ):
        assert space.recall(full.canonicalise(values)) is None
    assert space.recall({}) is None
    assert space.recall(full.canonicalise({"slimhead.levels": [0]})) is not None


def test_a_sampler_that_repeats_itself_gets_the_nearest_untried_design():
    space = build_space({"slimhead": {"levels": [[0], [1]], "ratio": [0.5, 0.7], "mode": "nearest"}}, GFL)
    wanted = space.canonicalise({"slimhead.levels": [0], "slimhead.ratio": 0.5})
    far = space.canonicalise({"slimhead.levels": [1], "slimhead.ratio": 0.7})
    proposals = Proposals(make_study(), space)
    tried = {design_hash(wanted)}
    found = []
    for number in (1, 2, 3):
        proposal = proposals._nearest(space.recall(wanted), number, lambda design: design_hash(design) in tried)
        tried.add(design_hash(proposal.design))
        found.append(proposal.design)
        assert space.suggest(optuna.trial.FixedTrial(proposal.asked.params)) == proposal.design
    # Two designs differ from the wanted one in one answer, the last one in two.
    assert found[2] == far
    assert proposals._nearest(space.recall(wanted), 4, lambda design: True) is None


def test_a_proposal_is_one_write_and_a_record_is_read_once(tmp_path, monkeypatch):
    """However many trials there are, a proposal writes once, and nothing is read back from the database."""
    store = Store.create(tmp_path, make_study())
    store.propose_baseline(SPACE)
    for number in range(1, 6):
        store.propose(SPACE)
        finish(store, number - 1)
    calls = []
    for name in ("get_all_trials", "get_trial", "create_new_trial", "set_trial_user_attr", "set_trial_param"):
        real = getattr(store._storage, name)
        monkeypatch.setattr(
            store._storage, name, lambda *a, _real=real, _name=name, **k: (calls.append(_name), _real(*a, **k))[1]
        )
    store.propose(SPACE)
    assert calls == ["create_new_trial"]
    store.records()
    assert calls == ["create_new_trial"]
