"""The store over a real SQLite database: what Optuna is told, what a kill leaves, who may go on in it."""

import json
import subprocess
import sys

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from analysis.record import EpochRecord, TrialState
from search.storage import default_url, safe_url
from search.store import Store
from search.study import parse
from spaces.base import BaseFacts
from spaces.errors import UserError
from spaces.space import build_space, design_hash

FACTS = BaseFacts("GFL", "GFLHead", (8, 16, 32, 64, 128), 4, False)
SPACE = build_space({"slimhead": {}, "dcn": {}}, FACTS)
# Four designs besides the baseline.
TINY = build_space({"slimhead": {"levels": [[0], [1]], "ratio": [0.5, 0.7], "mode": "nearest"}}, FACTS)


def make_study(**changes):
    raw = {
        "name": "stored",
        "base": "headway::gfl_tiny",
        "data": {"digits": {}, "size": [96, 96]},
        "space": {"slimhead": {}, "dcn": {}},
        "constraints": ["gmacs <= 20"],
        "budget": {"trials": 8, "epochs": 4, "hours": 2},
        "sampler": {"name": "tpe", "startup": 2},
    }
    return parse({**raw, **changes}, "stored.yaml")


def open_store(folder, **changes):
    return Store.create(folder, make_study(**changes))


def complete(store, number, accuracy=0.3, latency=20.0):
    store.start(number)
    store.update(number, {"latency_ms": latency, "gmacs": 10.0}, {}, 1.0)
    store.add_epoch(number, EpochRecord(4, {"bbox_mAP": accuracy}, 1.0))
    return store.finish(number, TrialState.COMPLETE, broken={"gmacs <= 20": -0.5})


def in_optuna(folder, number=None, **changes):
    trials = optuna.load_study(study_name="stored", storage=default_url(folder)).trials
    return trials if number is None else next(t for t in trials if t.user_attrs.get("headway:number") == number)


def test_the_baseline_is_trial_0_and_empty(tmp_path):
    store = open_store(tmp_path)
    record = store.propose_baseline(SPACE)
    assert (record.number, record.state, record.knobs, record.folder) == (0, TrialState.PROPOSED, {}, "trials/0000")
    assert in_optuna(tmp_path, 0).params == {"slimhead": False, "dcn": False}
    assert [item.number for item in store.records()] == [0]


def test_a_record_comes_back_as_it_was_written(tmp_path):
    store = open_store(tmp_path)
    store.propose_baseline(SPACE)
    proposed = store.propose(SPACE)
    store.start(1)
    store.update(1, {"gmacs": 3.5}, {"seed": 7}, 10.0)
    store.update(1, {"latency_ms": 9.0}, {"versions": {"torch": "2"}}, 20.0)
    store.add_epoch(1, EpochRecord(2, {"bbox_mAP": 0.2, "loss": 1.0}, 30.0))
    store.add_epoch(1, EpochRecord(1, {"bbox_mAP": 0.1, "loss": 2.0}, 25.0))
    store.add_rung(1, 1, "continue: rank 1")
    store.add_rung(1, 2, "stop: rank 9")
    store.finish(1, TrialState.STOPPED, reason="at epoch 2: rank 9")
    for record in (store.record(1), Store.read(tmp_path, make_study()).records()[1]):
        assert record.knobs == proposed.knobs
        assert record.metrics == {"gmacs": 3.5, "latency_ms": 9.0, "bbox_mAP": 0.2, "loss": 1.0}
        assert [epoch.epoch for epoch in record.curve] == [1, 2]
        assert record.rungs == {1: "continue: rank 1", 2: "stop: rank 9"}
        assert record.attrs == {"seed": 7, "versions": {"torch": "2"}}
        assert record.compute_hours == 20 / 3600
        assert (record.state, record.reason) == (TrialState.STOPPED, "at epoch 2: rank 9")
        assert record.started <= record.finished


def test_an_epoch_written_again_replaces_the_first(tmp_path):
    store = open_store(tmp_path)
    store.propose_baseline(SPACE)
    for accuracy in (0.1, 0.2):
        store.add_epoch(0, EpochRecord(1, {"bbox_mAP": accuracy}, 1.0))
    assert [epoch.metrics for epoch in store.record(0).curve] == [{"bbox_mAP": 0.2}]


def test_figures_between_epochs_do_not_hold_the_accuracy_back(tmp_path):
    """A trial that learns its network is counted and timed after epochs, and trained on."""
    store = open_store(tmp_path)
    store.propose_baseline(SPACE)
    store.add_epoch(0, EpochRecord(1, {"bbox_mAP": 0.1}, 1.0))
    store.update(0, {"gmacs": 3.0}, {}, 2.0)
    store.add_epoch(0, EpochRecord(2, {"bbox_mAP": 0.2}, 3.0))
    store.update(0, {"latency_ms": 9.0}, {}, 4.0)
    store.add_epoch(0, EpochRecord(3, {"bbox_mAP": 0.3}, 5.0))
    assert store.record(0).metrics == {"bbox_mAP": 0.3, "gmacs": 3.0, "latency_ms": 9.0}
    store.finish(0, TrialState.COMPLETE)
    assert Store.read(tmp_path, store.study)._optuna.trials[0].values == [0.3, 9.0]


def test_optuna_is_told_each_state_and_only_complete_trials_are_best(tmp_path):
    store = open_store(tmp_path)
    store.propose_baseline(SPACE)
    for _ in range(4):
        store.propose(SPACE)
    complete(store, 0)
    store.start(1)
    # Better than the baseline in everything: were it told with values, it would be on Optuna's front.
    store.update(1, {"latency_ms": 1.0, "gmacs": 10.0}, {}, 1.0)
    store.add_epoch(1, EpochRecord(1, {"bbox_mAP": 0.9}, 1.0))
    store.finish(1, TrialState.STOPPED, reason="at epoch 1", broken={"gmacs <= 20": -0.5})
    store.start(2)
    store.update(2, {"latency_ms": 1.0, "gmacs": 30.0}, {}, 1.0)
    store.finish(2, TrialState.INFEASIBLE, reason="must hold", broken={"gmacs <= 20": 0.5})
    store.start(3)
    store.update(3, {"latency_ms": 1.0, "bbox_mAP": 0.9}, {}, 1.0)
    store.finish(3, TrialState.FAILED, reason="not a number", traceback="Traceback ...")
    store.start(4)

    states = {number: in_optuna(tmp_path, number).state for number in range(5)}
    assert states == {
        0: OptunaState.COMPLETE,
        1: OptunaState.PRUNED,
        2: OptunaState.PRUNED,
        3: OptunaState.FAIL,
        4: OptunaState.RUNNING,
    }
    assert in_optuna(tmp_path, 0).values == [0.3, 20.0]
    assert [in_optuna(tmp_path, number).values for number in (1, 2, 3)] == [None] * 3
    study = optuna.load_study(study_name="stored", storage=default_url(tmp_path))
    assert [trial.user_attrs["headway:number"] for trial in study.best_trials] == [0]
    told = optuna.Trial(study, in_optuna(tmp_path, 2)._trial_id).constraints
    assert told == {"gmacs <= 20": 0.5}
    assert optuna.Trial(study, in_optuna(tmp_path, 1)._trial_id).constraints == {"gmacs <= 20": -0.5}
    assert store.record(3).traceback == "Traceback ..."


def test_an_ended_trial_stays_as_it_is(tmp_path):
    store = open_store(tmp_path)
    store.propose_baseline(SPACE)
    first = complete(store, 0)
    assert store.finish(0, TrialState.FAILED, reason="too late") == first
    assert in_optuna(tmp_path, 0).state is OptunaState.COMPLETE


class Killed(Exception):
    """Stands for SIGKILL between two writes."""


def killed_at(store, monkeypatch, write):
    """Lets ``store`` make ``write`` writes, then breaks off the next one; the database is what a kill leaves."""
    left = {"writes": write}

    def counted(real):
        def step(*arguments, **named):
            if left["writes"] == 0:
                raise Killed
            left["writes"] -= 1
            return real(*arguments, **named)

        return step

    names = ("_create_new_trial", "_set_trial_param", "set_trial_user_attr", "set_trial_system_attr",
             "set_trial_state_values", "set_study_user_attr")  # fmt: skip
    for name in names:
        monkeypatch.setattr(store._storage, name, counted(getattr(store._storage, name)))


def every_kill(folder, monkeypatch, prepare, act, writes=3):
    """Yields the folder of a store for each moment at which ``act`` can be killed, of which there are ``writes``."""
    for write in range(60):
        place = folder / str(write)
        place.mkdir()
        store = open_store(place)
        prepare(store)
        with monkeypatch.context() as patched:
            killed_at(store, patched, write)
            try:
                act(store)
            except Killed:
                yield place
            else:
                assert write >= writes, "nothing was killed"
                return
    raise AssertionError("never came to an end")


def test_a_proposal_that_is_killed_anywhere_is_made_again(tmp_path, monkeypatch):
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    store = open_store(undisturbed)
    store.propose_baseline(SPACE)
    expected = store.propose(SPACE).knobs
    # One write: a proposal is there whole or not at all.
    for place in every_kill(tmp_path, monkeypatch, lambda s: s.propose_baseline(SPACE), lambda s: s.propose(SPACE), 1):
        again = open_store(place)
        assert [record.number for record in again.records()] == [0]
        assert again.propose(SPACE).knobs == expected
        assert len(in_optuna(place)) == 2
        assert [record.number for record in again.records()] == [0, 1]


def test_the_baseline_that_is_killed_anywhere_is_made_again(tmp_path, monkeypatch):
    for place in every_kill(tmp_path, monkeypatch, lambda s: None, lambda s: s.propose_baseline(SPACE), 1):
        again = open_store(place)
        assert again.records() == []
        assert again.propose_baseline(SPACE).number == 0
        assert sum(trial.state is OptunaState.RUNNING for trial in in_optuna(place)) == 1


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.STOPPED, TrialState.INFEASIBLE, TrialState.FAILED])
def test_an_end_that_is_killed_anywhere_happens_wholly_or_not_at_all(tmp_path, monkeypatch, state):
    def prepare(store):
        store.propose_baseline(SPACE)
        store.start(0)
        store.update(0, {"latency_ms": 20.0, "bbox_mAP": 0.3}, {}, 1.0)

    def act(store):
        reason = None if state is TrialState.COMPLETE else "why"
        store.finish(0, state, reason=reason, traceback="Traceback" if reason else None, broken={"gmacs <= 20": 0.1})

    seen = set()
    for place in every_kill(tmp_path, monkeypatch, prepare, act):
        again = open_store(place)
        record = again.record(0)
        seen.add(record.state)
        if record.state.finished:
            assert record.state is state
            assert in_optuna(place, 0).state.is_finished()
        else:
            assert (record.state, record.reason, record.traceback, record.finished) == (
                TrialState.RUNNING,
                None,
                None,
                None,
            )
            assert in_optuna(place, 0).state is OptunaState.RUNNING
            # The trial runs again, and its end is another one: nothing of the first may stick to it.
            complete(again, 0)
            assert (again.record(0).state, again.record(0).reason) == (TrialState.COMPLETE, None)
            assert again.record(0).traceback is None
    assert seen == {state, TrialState.RUNNING}


def test_opening_twice_changes_nothing(tmp_path):
    store = open_store(tmp_path)
    store.propose_baseline(SPACE)
    complete(store, 0)
    store.propose(SPACE)
    before = store.records()
    assert open_store(tmp_path).records() == before == open_store(tmp_path).records()


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_no_design_is_proposed_twice_and_a_small_space_is_exhausted(tmp_path, name):
    store = open_store(tmp_path, sampler={"name": name, "startup": 2})
    complete(store, store.propose_baseline(TINY).number)
    designs = []
    while (record := store.propose(TINY)) is not None:
        designs.append(record.knobs)
        complete(store, record.number, accuracy=0.3 + record.number / 100)
    assert len(designs) == TINY.size() == 4
    assert len({design_hash(design) for design in designs}) == 4
    assert [record.number for record in store.records()] == [0, 1, 2, 3, 4]
    # What was discarded is no trial, and is not left RUNNING.
    assert not [trial for trial in in_optuna(tmp_path) if trial.state is OptunaState.RUNNING]
    assert store.propose(TINY) is None


def run_alone(folder, kill_after=None):
    """Proposes and ends six trials; with ``kill_after`` through a new store each time."""
    folder.mkdir()
    store = open_store(folder)
    complete(store, store.propose_baseline(SPACE).number)
    for number in range(1, 7):
        if kill_after:
            store = open_store(folder)
        record = store.propose(SPACE)
        complete(store, record.number, accuracy=0.1 * number, latency=30.0 - number)
    return [record.knobs for record in store.records()]


def test_the_same_seed_and_results_propose_the_same_designs(tmp_path):
    first = run_alone(tmp_path / "first")
    assert first == run_alone(tmp_path / "second")
    assert first == run_alone(tmp_path / "continued", kill_after=True)
    assert len({design_hash(design) for design in first}) == 7


def test_another_seed_proposes_other_designs(tmp_path):
    found = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        store = open_store(folder, seed=seed)
        store.propose_baseline(SPACE)
        found.append([store.propose(SPACE).knobs for _ in range(3)])
    assert found[0] != found[1]


def test_neighbouring_seeds_do_not_share_streams(tmp_path):
    """Seed 1's first proposals are not seed 0's later ones."""
    found = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        store = open_store(folder, seed=seed, sampler={"name": "random"})
        store.propose_baseline(SPACE)
        found.append({design_hash(store.propose(SPACE).knobs) for _ in range(5)})
    assert not found[0] & found[1]


def refused(folder, extend=False, **changes):
    with pytest.raises(UserError) as caught:
        Store.create(folder, make_study(**changes), extend=extend)
    return str(caught.value)


def begun(folder):
    store = open_store(folder)
    store.propose_baseline(SPACE)
    return store


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"space": {"slimhead": {}}}, "space.dcn: {} -> (absent)"),
        ({"space": {"slimhead": {"ratio": [0.5]}, "dcn": {}}}, "space.slimhead.ratio: (absent) -> [0.5]"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"base": "headway::atss_tiny"}, 'base: "headway::gfl_tiny" -> "headway::atss_tiny"'),
        ({"rungs": None}, "rungs.factor: 3 -> (absent)"),
        ({"budget": {"trials": 9, "epochs": 4, "hours": 2}}, "budget.trials: 8 -> 9"),
        ({"budget": {"trials": 8, "epochs": 5, "hours": 2}}, "budget.epochs: 4 -> 5"),
    ],
)
def test_a_changed_study_file_is_refused_with_the_difference(tmp_path, changes, shown):
    before = begun(tmp_path).records()
    message = refused(tmp_path, **changes)
    assert f"\n  {shown}" in message
    assert "--extend" in message
    store = open_store(tmp_path)  # nothing was changed by the refusal
    assert store.records() == before


@pytest.mark.parametrize(
    ("budget", "refusal"),
    [
        ({"trials": 9, "epochs": 4, "hours": 2}, None),
        ({"trials": 9, "epochs": 4, "hours": 3}, None),
        ({"trials": 8, "epochs": 4}, None),  # hours without end
        ({"trials": 8, "epochs": 4, "hours": 2}, None),
        ({"trials": 7, "epochs": 4, "hours": 2}, "budget.trials: 8 -> 7"),
        ({"trials": 8, "epochs": 4, "hours": 1}, "budget.hours: 2.0 -> 1.0"),
        ({"trials": 9, "epochs": 5, "hours": 2}, "budget.epochs: 4 -> 5"),
    ],
)
def test_extend_lets_the_budget_grow_and_nothing_else(tmp_path, budget, refusal):
    begun(tmp_path)
    if refusal is None:
        study = make_study(budget=budget)
        Store.create(tmp_path, study, extend=True)
        Store.create(tmp_path, study)  # from then on this is the study file
    else:
        assert refusal in refused(tmp_path, extend=True, budget=budget)


def test_hours_without_end_cannot_get_one(tmp_path):
    begun_study = make_study(budget={"trials": 8, "epochs": 4})
    Store.create(tmp_path, begun_study).propose_baseline(SPACE)
    assert "budget.hours: null -> 5.0" in refused(tmp_path, extend=True, budget={"trials": 8, "epochs": 4, "hours": 5})


def test_a_start_that_came_to_nothing_binds_nobody(tmp_path):
    open_store(tmp_path)  # and its resources, say, were refused
    three = [{"metric": "bbox_mAP", "direction": "maximize"}, {"metric": "gmacs", "direction": "minimize"},
             {"metric": "params_m", "direction": "minimize"}]  # fmt: skip
    store = open_store(tmp_path, objectives=three)
    store.propose_baseline(SPACE)
    assert len(optuna.load_study(study_name="stored", storage=default_url(tmp_path)).directions) == 3


def test_a_study_of_another_program_is_left_alone(tmp_path):
    other = optuna.create_study(study_name="stored", storage=default_url(tmp_path), directions=["maximize", "minimize"])
    other.ask()
    assert "that Headway did not make" in refused(tmp_path)
    assert [trial.state for trial in in_optuna(tmp_path)] == [OptunaState.RUNNING]


def test_two_studies_share_one_database(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    one = open_store(tmp_path, storage=url)
    one.propose_baseline(SPACE)
    two = open_store(tmp_path, name="other", storage=url)
    assert two.records() == []
    two.propose_baseline(SPACE)
    two.propose(SPACE)
    assert [len(store.records()) for store in (one, two)] == [1, 2]


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "sqlite:////nowhere/at/all/x.db",
        "nodialect://h/db",
        "postgresql://user:hush-hush@127.0.0.1:9/db",
        "mysql://user:hush@hush@127.0.0.1:9/db",
        "redis://user:hush@127.0.0.1:9/0",
        "postgresql://127.0.0.1:notaport/db?password=hush",
    ],
)
def test_a_wrong_storage_is_refused_without_its_password(tmp_path, url):
    message = refused(tmp_path, storage=url)
    assert message.startswith("storage: must be an SQLAlchemy URL of a reachable database, but ")
    assert "hush" not in message
    assert len(message.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_difference_does_not_show_passwords(tmp_path):
    url = f"sqlite:///{tmp_path / 'x.db'}"
    open_store(tmp_path, storage=url, tracking={"uri": "http://user:hush@h:1"}).propose_baseline(SPACE)
    message = refused(tmp_path, storage=url, tracking={"uri": "http://user:hush2@h:2"})
    assert "tracking.uri" in message
    assert "hush" not in message


def test_safe_urls():
    assert safe_url("postgresql://user:a@b:c/d@h:5/db?password=x") == "postgresql://***@h:5/db"
    assert safe_url("sqlite:////var/x.db") == "sqlite:////var/x.db"
    assert safe_url("user:secret@h") == "the given URL"


def test_reading_makes_nothing(tmp_path):
    with pytest.raises(UserError, match="has no trials yet"):
        Store.read(tmp_path, make_study())
    assert list(tmp_path.iterdir()) == []
    url = f"sqlite:///{tmp_path / 'x.db'}"
    open_store(tmp_path, name="other", storage=url)
    with pytest.raises(UserError, match="has no trials yet"):
        Store.read(tmp_path, make_study(storage=url))


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "study.db").write_text("this is no database, whatever its name says" * 100)
    assert "storage: must be an SQLAlchemy URL" in refused(tmp_path)


def test_what_belongs_to_the_study_survives(tmp_path):
    store = open_store(tmp_path)
    assert (store.reference_ms, store.seconds_run, store.speed("a:cpu")) == (None, 0.0, None)
    store.reference_ms = 20.5
    store.seconds_run = 12.0
    store.set_speed("a:cpu", {"latency_ratio": 0.8})
    store.propose_baseline(SPACE)
    again = open_store(tmp_path)
    assert (again.reference_ms, again.seconds_run, again.speed("a:cpu")) == (20.5, 12.0, {"latency_ratio": 0.8})
    assert again.speed("a:cuda") is None


def test_records_are_json(tmp_path):
    store = begun(tmp_path)
    store.propose(SPACE)
    for trial in in_optuna(tmp_path):
        assert json.loads(json.dumps(trial.user_attrs, allow_nan=False)) == trial.user_attrs


def test_a_look_at_a_storage_that_is_being_made_does_not_break_the_run(tmp_path):
    """Each of four processes opens the same new SQLite file; Optuna alone lets some of them fail."""
    code = "import sys; from search.storage import open_storage; open_storage(sys.argv[1])"
    for attempt in range(2):
        url = f"sqlite:///{tmp_path / f'{attempt}.db'}"
        processes = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(4)]
        assert [process.wait() for process in processes] == [0, 0, 0, 0]


def test_a_study_of_before_a_key_existed_is_continued(tmp_path):
    """A later version adds keys with defaults; the study file has not changed by that."""
    begun(tmp_path)
    study = make_study()
    old = study.dump()
    del old["weights"]["epochs"], old["rungs"]["method"], old["sampler"]["known"], old["sampler"]["earlier"]
    optuna.load_study(study_name="stored", storage=default_url(tmp_path)).set_user_attr("headway:study_file", old)
    assert len(Store.create(tmp_path, study).records()) == 1
    assert "seed: 0 -> 5" in refused(tmp_path, seed=5)
