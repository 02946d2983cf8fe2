"""The conductor, driven by hand over a real store: what becomes of each trial, report by report."""

import contextlib
import json
import math
from dataclasses import replace

import pytest

from analysis.record import EpochRecord, TrialState, spread
from search.conductor import Conductor, Pause
from search.store import Store
from search.study import parse
from spaces.base import BackboneFacts, BaseFacts
from spaces.knob import Float
from spaces.space import Space, build_space
from trainers.contract import DataRequest, TrialReport, TrialRequest

FACTS = BaseFacts("GFL", "GFLHead", (8, 16, 32, 64, 128), 4, False)
DATA = DataRequest(
    train_annotations="/t.json",
    train_images="/t",
    val_annotations="/v.json",
    val_images="/v",
    classes=("a",),
    size=(96, 96),
)
SPACE = build_space({"slimhead": {}, "dcn": {}}, FACTS)


def training_knobs():
    """A space of one architecture: its only free knob matters to training."""
    (part,) = build_space({"dcn": {"placement": [[0]], "version": 2, "always": True}}, FACTS).families
    rate = Float(name="rate", when="training", help="of offsets", default=0.1, low=0.1, high=1.0)
    return Space(FACTS, (replace(part, full=(*part.full, rate), knobs=(*part.knobs, rate)),))


class Play:
    """One driver process over a study's folder; ``again`` is the next one after a kill."""

    def __init__(self, folder, space=SPACE, concurrent=1, **changes):
        raw = {
            "name": "played",
            "base": "headway::gfl_tiny",
            "data": {"digits": {}, "size": [96, 96]},
            "space": {"slimhead": {}, "dcn": {}},
            "budget": {"trials": 4, "epochs": 4},
            "rungs": {"first": 1, "factor": 2},
            "sampler": {"name": "random"},
        }
        self.options = (folder, space, concurrent)
        self.changes = changes
        self.store = Store.create(folder, parse({**raw, **changes}, "played.yaml"))
        self.told = []
        self.conductor = Conductor(
            self.store.study, space, self.store, folder=folder, data=DATA, device="cpu", speed_device="cpu", threads=1,
            concurrent=concurrent, listeners=(self.told.append,),
        )  # fmt: skip

    def again(self):
        folder, space, concurrent = self.options
        return Play(folder, space, concurrent, **self.changes)

    def next(self):
        return self.conductor.next()

    def send(self, number, phase, epoch=0, seconds=1.0, **metrics):
        report = TrialReport(phase=phase, epoch=epoch, metrics=metrics, seconds=seconds, attrs={})
        return self.conductor.report(number, report)

    def counted(self, number, gmacs=10.0):
        return self.send(number, "counted", gmacs=gmacs, params_m=2.0)

    def timed(self, number, ratio=1.0, reference=20.0):
        return self.send(number, "timed", latency_ratio=ratio, latency_ratio_q1=ratio, latency_ratio_q3=ratio,
                         reference_ms=reference)  # fmt: skip

    def epoch(self, number, epoch, accuracy=0.3, **metrics):
        return self.send(number, "epoch", epoch, bbox_mAP=accuracy, **metrics)

    def train(self, number, accuracy=0.3, ratio=1.0, start=1, known=False):
        """Plays a trial to its end or until it is stopped."""
        went = self.counted(number) and (known or self.timed(number, ratio))
        epoch = start
        while went and epoch <= 4:
            went = self.epoch(number, epoch, accuracy)
            epoch += 1
        return went and self.send(number, "done", 4)

    def baseline(self):
        assert self.next().number == 0
        self.train(0)

    def state(self, number):
        return self.store.record(number).state


@pytest.fixture
def play(tmp_path):
    return Play(tmp_path)


def test_a_study_from_its_first_trial_to_its_last(play):
    request = play.next()
    assert (request.number, request.knobs, request.epochs, request.seed) == (0, {}, 4, 0)
    assert request.speed.size == request.count_size == (96, 96)
    assert play.state(0) is TrialState.RUNNING
    play.train(0)
    for number in (1, 2, 3):
        assert play.next().number == number
        play.train(number, accuracy=0.3 + number / 100)
    assert play.next() is Pause.FINISHED
    assert [record.state for record in play.store.records()] == [TrialState.COMPLETE] * 4
    assert play.told[-1].state is TrialState.COMPLETE
    assert next(record.state for record in play.told if record.number == 0) is TrialState.RUNNING
    assert play.again().next() is Pause.FINISHED


def test_nothing_is_proposed_before_the_baseline_is_timed(tmp_path):
    play = Play(tmp_path, concurrent=4)
    assert play.next().number == 0
    assert play.next() is Pause.WAIT
    play.counted(0)
    assert play.next() is Pause.WAIT
    play.timed(0)
    assert play.next().number == 1


def test_no_more_than_concurrent_run_side_by_side(tmp_path):
    play = Play(tmp_path, concurrent=2)
    play.next(), play.counted(0), play.timed(0)
    assert play.next().number == 1
    assert play.next() is Pause.WAIT
    play.train(1)
    assert play.next().number == 2
    assert play.next() is Pause.WAIT
    play.conductor.died(2, "gone")
    assert play.next().number == 3
    play.train(0)
    assert play.next() is Pause.WAIT  # the budget is spent, trial 3 still runs
    play.train(3)
    assert play.next() is Pause.FINISHED


def test_milliseconds_are_the_ratio_times_the_baselines_latency(play):
    play.next(), play.counted(0), play.timed(0, 1.0, reference=20.0)
    play.train(0)
    play.next(), play.counted(1)
    play.timed(1, ratio=0.8, reference=33.0)  # the machine is busier now; the ratio is what is compared
    metrics = play.store.record(1).metrics
    assert (metrics["latency_ratio"], metrics["latency_ms"]) == (0.8, pytest.approx(16.0))
    assert "reference_ms" not in metrics
    assert play.store.reference_ms == 20.0


def test_a_broken_count_ends_a_trial_before_timing_and_costs_no_budget(tmp_path):
    play = Play(tmp_path, constraints=["gmacs <= 20"], budget={"trials": 2, "epochs": 4})
    play.baseline()
    for number in (1, 2, 3):
        assert play.next().number == number
        assert not play.counted(number, gmacs=30)
        record = play.store.record(number)
        assert record.state is TrialState.INFEASIBLE
        assert record.reason == "must hold: gmacs <= 20, but it is 30"
        assert record.curve == []
    assert play.next().number == 4
    play.train(4)
    assert play.next() is Pause.FINISHED


def test_a_broken_latency_ends_a_trial_before_training(tmp_path):
    play = Play(tmp_path, constraints=["latency_ms <= 18", "latency_ratio >= 0.5"])
    play.baseline()  # it breaks the first one, and may
    assert play.state(0) is TrialState.COMPLETE
    play.next()
    assert play.counted(1)
    assert not play.timed(1, 0.95)
    assert play.store.record(1).reason == "must hold: latency_ms <= 18, but it is 19"
    play.next()
    assert play.counted(2)
    assert not play.timed(2, 0.4)
    assert play.state(2) is TrialState.INFEASIBLE
    play.next()
    assert play.counted(3)
    assert play.timed(3, 0.85)


def test_a_space_of_infeasible_designs_comes_to_an_end(tmp_path):
    play = Play(tmp_path, constraints=["gmacs <= 20"], budget={"trials": 2, "epochs": 4})
    play.baseline()
    count = 0
    while play.next() is not Pause.FINISHED:
        count += 1
        play.counted(count, gmacs=30)
    assert count == 20


@pytest.mark.parametrize("phase", ["counted", "timed", "epoch", "done"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_fails_the_trial_with_the_reason(play, phase, value):
    play.baseline()
    play.next()
    assert not play.send(1, phase, 2, bbox_mAP=value, gmacs=3.0)
    record = play.store.record(1)
    assert record.state is TrialState.FAILED
    assert record.reason == f"not a number: bbox_mAP = {value} (epoch 2)"
    assert "bbox_mAP" not in record.metrics
    assert play.next().number == 2


def test_a_missing_objective_fails_the_trial_with_the_reason(tmp_path):
    objectives = [{"metric": "bbox_mAP_s", "direction": "maximize"}, {"metric": "latency_ms", "direction": "minimize"}]
    play = Play(tmp_path, objectives=objectives)
    play.next()
    play.train(0)
    assert play.state(0) is TrialState.FAILED
    assert "the objective bbox_mAP_s has no value" in play.store.record(0).reason
    assert "no object of that size" in play.store.record(0).reason
    assert play.conductor.baseline_failure == play.store.record(0).reason


def test_a_failed_baseline_ends_the_study(tmp_path):
    play = Play(tmp_path, concurrent=2)
    play.next(), play.counted(0), play.timed(0)
    assert play.next().number == 1
    play.conductor.died(0, "out of memory", "Traceback")
    assert play.next() is Pause.WAIT  # for trial 1
    play.train(1)
    assert play.next() is Pause.FINISHED
    assert play.conductor.baseline_failure == "out of memory"
    assert play.again().next() is Pause.FINISHED


def test_a_trial_that_died_is_failed_once(play):
    play.baseline()
    play.next()
    play.conductor.died(1, "first", "Traceback 1")
    play.conductor.died(1, "second", "Traceback 2")
    assert not play.epoch(1, 1)
    record = play.store.record(1)
    assert (record.state, record.reason, record.traceback) == (TrialState.FAILED, "first", "Traceback 1")


def test_a_weak_trial_is_stopped_and_the_decision_stays(tmp_path):
    play = Play(tmp_path)
    play.baseline()
    play.next(), play.counted(1), play.timed(1)
    assert not play.epoch(1, 1, accuracy=0.1)
    record = play.store.record(1)
    assert record.state is TrialState.STOPPED
    assert record.rungs == {1: "stop: rank 2 of 2 among designs that are as fast, of which 1 go on"}
    assert record.reason == "at epoch 1: rank 2 of 2 among designs that are as fast, of which 1 go on"
    assert not play.epoch(1, 2)
    assert len(play.store.record(1).curve) == 1


def early_and_late(folder, **changes):
    """Trial 1 passes the rung with no rival but the baseline, which it beats; then come two better ones, as fast."""
    folder.mkdir(exist_ok=True)
    play = Play(
        folder,
        concurrent=3,
        rungs={"first": 1, "factor": 2, **changes.pop("rungs", {})},
        budget={"trials": 6, "epochs": 4},
        **changes,
    )
    play.baseline()
    for number in (1, 2, 3):
        play.next(), play.counted(number), play.timed(number, 0.9)
    assert play.epoch(1, 1, accuracy=0.2)
    assert play.epoch(2, 1, accuracy=0.5)
    assert play.epoch(3, 1, accuracy=0.6)
    return play


def test_who_came_early_is_judged_again_by_those_who_came_since(tmp_path):
    play = early_and_late(tmp_path)
    # It must be at the rung of epoch 2 to be judged there; at epoch 3 that is the last one passed.
    assert play.epoch(2, 2, accuracy=0.5)
    assert play.epoch(3, 2, accuracy=0.6)
    assert not play.epoch(1, 2, accuracy=0.2)
    play = early_and_late(tmp_path / "later", rungs={"first": 1, "factor": 3})
    assert play.epoch(1, 2, accuracy=0.2) is False
    record = play.store.record(1)
    assert record.state is TrialState.STOPPED
    assert record.rungs[1].startswith("continue: ")
    assert record.rungs[2] == (
        "stop: rank 3 of 3 among designs that are as fast, of which 1 go on, by now, at the rung of epoch 1"
    )
    assert record.reason.startswith("at epoch 2: rank 3 of 3")
    # Neither the best nor the baseline, nor anyone at the last epoch.
    assert play.epoch(3, 2, accuracy=0.1)
    assert play.store.record(3).rungs[2].startswith("continue: rank 1 of 3")


def test_nobody_is_judged_again_at_the_last_epoch_or_under_mo_asha(tmp_path):
    play = early_and_late(tmp_path, rungs={"first": 1, "factor": 4, "method": "mo_asha"})
    for epoch in (2, 3, 4):
        assert play.epoch(1, epoch, accuracy=0.2)
    assert list(play.store.record(1).rungs) == [1]
    (tmp_path / "last").mkdir()
    play = Play(tmp_path / "last", concurrent=3, rungs={"first": 3, "factor": 2})
    play.baseline()
    for number in (1, 2):
        play.next(), play.counted(number), play.timed(number, 0.9)
        for epoch in (1, 2):
            assert play.epoch(number, epoch, accuracy=0.1 * number)
    assert play.epoch(1, 3, accuracy=0.2) and play.epoch(2, 3, accuracy=0.5)
    assert play.epoch(1, 4, accuracy=0.2)
    assert list(play.store.record(1).rungs) == [3]


def test_a_second_judgement_that_a_kill_cut_short_is_made_first(tmp_path):
    play = early_and_late(tmp_path, rungs={"first": 1, "factor": 3})
    play.store.add_epoch(1, EpochRecord(2, {"bbox_mAP": 0.2}, 2.0))
    play = play.again()
    assert play.state(1) is TrialState.STOPPED
    assert [play.next().number, play.next().number] == [2, 3]


def test_a_recorded_decision_is_obeyed_after_a_kill(tmp_path):
    play = Play(tmp_path, concurrent=3)
    play.baseline()
    play.next(), play.counted(1), play.timed(1, 0.9)
    play.next(), play.counted(2), play.timed(2, 0.9)
    assert play.epoch(1, 1, accuracy=0.2)
    # Killed after the decision was written and before the trial was ended.
    play.store.add_rung(2, 1, "stop: for a reason of its own")
    play = play.again()
    assert [play.next().number, play.next().number] == [1, 2]
    assert not play.epoch(2, 1, accuracy=0.9)
    assert play.state(2) is TrialState.STOPPED
    # And one that went on goes on, though better ones have come by.
    play.next(), play.counted(3), play.timed(3, 0.9)
    assert play.epoch(3, 1, accuracy=0.8)
    assert play.epoch(1, 1, accuracy=0.2)
    assert play.store.record(1).rungs[1].startswith("continue: ")


def test_a_repeated_epoch_changes_nothing(play):
    play.baseline()
    play.next(), play.counted(1), play.timed(1)
    assert play.epoch(1, 1, 0.5)
    before = play.store.record(1)
    assert play.epoch(1, 1, 0.5)
    assert play.store.record(1) == before


def test_what_a_kill_left_runs_first_and_under_its_number(tmp_path):
    play = Play(tmp_path, concurrent=2)
    play.baseline()
    designs = [play.next().knobs, play.next().knobs]
    play.counted(1), play.timed(1), play.epoch(1, 1)
    play.store.propose(SPACE)  # and killed before its start
    play = play.again()
    requests = [play.next(), play.next()]
    assert [request.number for request in requests] == [1, 2]
    assert [request.knobs for request in requests] == designs
    assert [request.speed is None for request in requests] == [True, False]
    assert play.next() is Pause.WAIT
    play.train(1, known=True)
    assert play.next().number == 3
    play.train(2), play.train(3)
    assert play.next() is Pause.FINISHED
    assert len(play.store.records()) == 4


def test_the_time_of_all_starts_is_counted(play):
    play.next()
    play.send(0, "counted", seconds=10, gmacs=1.0)
    play.send(0, "counted", seconds=4, gmacs=1.0)  # Ray started its process again
    play.send(0, "epoch", 1, seconds=9, bbox_mAP=0.1)
    assert play.store.record(0).compute_hours == pytest.approx(19 / 3600)
    play = play.again()
    play.next()
    play.send(0, "epoch", 1, seconds=5, bbox_mAP=0.1)
    assert play.store.record(0).compute_hours == pytest.approx(24 / 3600)


def test_one_architecture_is_timed_once(tmp_path):
    play = Play(tmp_path, training_knobs())
    play.baseline()
    assert play.next().speed is not None
    play.train(1, ratio=0.8)
    request = play.next()
    assert request.speed is None
    assert play.counted(2)
    assert play.store.record(2).metrics["latency_ms"] == pytest.approx(16.0)
    assert play.store.record(2).metrics["latency_ratio_q1"] == 0.8
    play.train(2, known=True, accuracy=0.4)
    assert play.state(2) is TrialState.COMPLETE


def test_a_known_latency_reaches_a_trial_that_never_says_counted(tmp_path):
    """A trainer that continues from a checkpoint and is not asked to time sends neither counted nor timed."""
    play = Play(tmp_path, training_knobs(), concurrent=2)
    play.baseline()
    # Both begin before either is timed; then the driver is killed while the second waits for its turn.
    assert play.next().speed is not None
    assert play.next().speed is not None
    play.counted(1), play.timed(1, 0.8)
    play = play.again()
    requests = [play.next(), play.next()]
    assert [request.speed for request in requests] == [None, None]
    for number in (1, 2):
        for epoch in range(1, 5):
            play.epoch(number, epoch)
        play.send(number, "done", 4)
        assert play.state(number) is TrialState.COMPLETE
        assert play.store.record(number).metrics["latency_ms"] == pytest.approx(16.0)


class Killed(Exception):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("write", range(8))
def test_a_kill_anywhere_in_a_timing_loses_no_latency(tmp_path, monkeypatch, write):
    play = Play(tmp_path, constraints=["latency_ms <= 18"])
    play.baseline()
    play.next(), play.counted(1)
    left = [write]

    def broken(real):
        def step(*arguments, **named):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*arguments, **named)

        return step

    with monkeypatch.context() as patched:
        for name in ("set_trial_user_attr", "set_study_user_attr", "set_trial_state_values", "set_trial_system_attr"):
            patched.setattr(play.store._storage, name, broken(getattr(play.store._storage, name)))
        with contextlib.suppress(Killed):
            play.timed(1, 0.95 if write % 2 else 0.8)
    play = play.again()
    request = play.next()
    if play.store.record(1).state is TrialState.INFEASIBLE:
        assert write % 2
        assert request.number == 2
        return
    assert request.number == 1
    if request.speed is not None and not play.timed(1, 0.95 if write % 2 else 0.8):
        assert play.state(1) is TrialState.INFEASIBLE
        return
    # By the contract nothing but epochs need come now.
    assert play.store.record(1).metrics["latency_ms"] == pytest.approx(16.0)
    for epoch in range(1, 5):
        play.epoch(1, epoch, 0.5)
    play.send(1, "done", 4)
    assert play.state(1) is TrialState.COMPLETE


def test_a_constraint_that_a_kill_kept_from_ending_the_trial_ends_it_before_its_next_start(tmp_path):
    play = Play(tmp_path, constraints=["gmacs <= 20"])
    play.baseline()
    play.next()
    play.store.update(1, {"gmacs": 30.0}, {}, 1.0)
    play = play.again()
    assert play.next().number == 2
    assert play.state(1) is TrialState.INFEASIBLE


def test_the_baseline_that_was_killed_before_its_latency_was_known_is_timed_again(tmp_path):
    play = Play(tmp_path)
    play.next(), play.counted(0)
    play = play.again()
    assert play.next().speed is not None
    play.store.reference_ms = 20.0  # killed right behind it
    play = play.again()
    assert play.next().speed is not None
    play.counted(0), play.timed(0, 1.0, reference=25.0)
    assert play.store.record(0).metrics["latency_ms"] == 20.0


def test_an_exhausted_space_ends_the_study_and_is_searched_once(tmp_path):
    tiny = build_space({"slimhead": {"levels": [[0]], "ratio": [0.5], "mode": "nearest"}}, FACTS)
    play = Play(tmp_path, tiny, concurrent=2, budget={"trials": 9, "epochs": 4})
    play.baseline()
    assert play.next().number == 1
    assert play.next() is Pause.WAIT
    assert play.conductor.exhausted
    tried = len(play.store._optuna.trials)
    for _ in range(20):  # Ray asks ten times a second
        assert play.next() is Pause.WAIT
    assert len(play.store._optuna.trials) == tried
    play.train(1)
    assert play.next() is Pause.FINISHED


def test_after_the_hours_nothing_is_started_and_what_runs_goes_on(tmp_path):
    play = Play(tmp_path, concurrent=2, budget={"trials": 9, "epochs": 4, "hours": 1})
    play.baseline()
    play.next()
    play.store.seconds_run = 3600.0  # another start of the command took them
    play = play.again()
    assert play.next().number == 1
    assert play.next() is Pause.WAIT
    assert play.conductor.out_of_time
    play.train(1)
    assert play.next() is Pause.FINISHED
    assert len(play.store.records()) == 2


def test_the_run_time_of_all_starts_is_kept(play):
    play.next()
    play.store.seconds_run = 0.0
    play.counted(0)
    first = play.store.seconds_run
    assert 0 < first < 60
    again = play.again()
    again.next()
    again.counted(0)
    assert again.store.seconds_run >= first


def test_reports_of_an_ended_trial_are_refused(play):
    play.baseline()
    before = play.store.record(0)
    assert not play.epoch(0, 4, 0.9)
    assert not play.send(0, "done", 4, bbox_mAP=0.9)
    assert play.store.record(0) == before


def test_the_kind_of_device_is_kept(play):
    from search.engine import check_speed_device
    from spaces.errors import UserError

    play.baseline()
    records = play.store.records()
    check_speed_device(play.store, records, "cpu")
    with pytest.raises(UserError, match=r"speed\.device: must stay cpu"):
        check_speed_device(play.store, records, "cuda")


def sweeping_space(on_images=True):
    """A space whose designs have a threshold that is swept after training."""
    (part,) = build_space({"dcn": {"placement": [[0], [1], [0, 1]], "version": 2, "always": True}}, FACTS).families
    swept = Float(
        name="threshold", when="inference", help="of scores", default=0.2, low=0.0, high=1.0, sweep=(0.1, 0.2, 0.3)
    )
    family = replace(part.family, on_images=on_images)
    return Space(FACTS, (replace(part, family=family, full=(*part.full, swept), knobs=(*part.knobs, swept)),))


def sweep(play, number, index, accuracy, ratio):
    metrics = {"bbox_mAP": accuracy, "latency_ratio": ratio, "gmacs": 10 * ratio}
    attrs = {"index": index, "images": 16, "time": {"passes": index + 1}}
    report = TrialReport(phase="swept", epoch=4, metrics=metrics, attrs=attrs)
    return play.conductor.report(number, report)


def test_one_training_gives_a_point_for_each_setting(tmp_path):
    play = Play(tmp_path, sweeping_space())
    play.baseline()
    request = play.next()
    assert request.speed is None  # the latency depends on what will be learned
    assert request.knobs["dcn.threshold"] == 0.2
    assert {index: knobs["dcn.threshold"] for index, knobs in request.sweep.settings.items()} == {
        0: 0.2,
        1: 0.1,
        2: 0.3,
    }
    assert request.sweep.reference.endswith("trials/0000")
    assert play.counted(1, gmacs=99)
    assert all(play.epoch(1, epoch) for epoch in (1, 2, 3, 4))
    assert sweep(play, 1, 0, 0.40, 0.5)
    assert sweep(play, 1, 1, 0.45, 0.8)

    # Killed here, the next process asks for what is missing only.
    play = play.again()
    request = play.next()
    assert (request.number, list(request.sweep.settings)) == (1, [2])
    assert TrialRequest.from_json(json.loads(json.dumps(request.to_json()))) == request
    assert sweep(play, 1, 2, 0.30, 0.4)
    play.send(1, "done", 4)
    record = play.store.record(1)
    assert record.state is TrialState.COMPLETE
    assert [point.metrics["latency_ms"] for point in record.sweep] == pytest.approx([10.0, 16.0, 8.0])
    # The trial's own figures are those of its own setting, measured on images.
    assert (record.metrics["bbox_mAP"], record.metrics["latency_ratio"], record.metrics["gmacs"]) == (0.40, 0.5, 5.0)
    assert [item.label for item in spread([record])] == ["1", "1.1", "1.2"]
    assert [record.attrs[f"time.{index}"]["passes"] for index in (0, 1, 2)] == [1, 2, 3]
    assert record.attrs["images"] == 16 and "time" not in record.attrs
    # Another design of the same network has other weights, so nothing is shared.
    assert play.next().sweep is not None


def test_settings_that_break_a_constraint_are_no_points(tmp_path):
    play = Play(tmp_path, sweeping_space(), constraints=["gmacs <= 6", "params_m <= 3"])
    play.baseline()
    for number, ratios in ((1, (0.8, 0.5, 0.7)), (2, (0.8, 0.7, 0.9))):
        assert play.next().number == number
        assert play.counted(number, gmacs=99)  # the dense figure binds nobody
        assert all(play.epoch(number, epoch) for epoch in (1, 2, 3, 4))
        for index, ratio in enumerate(ratios):
            assert sweep(play, number, index, 0.4, ratio)
        play.send(number, "done", 4)
    assert [item.label for item in spread([play.store.record(1)])] == ["1.1"]
    assert play.state(2) is TrialState.INFEASIBLE
    assert play.store.record(2).reason == "must hold at some setting of its inference knobs: gmacs <= 6"
    play.next()
    assert not play.send(3, "counted", gmacs=9.0, params_m=4.0)
    assert play.state(3) is TrialState.INFEASIBLE


def test_a_design_without_inference_knobs_is_not_swept(play):
    play.baseline()
    assert play.next().sweep is None


def test_training_knobs_share_one_measurement_with_the_baseline(tmp_path):
    play = Play(tmp_path, build_space({"ddod": {"always": True}}, FACTS), budget={"trials": 6, "epochs": 4})
    play.next(), play.counted(0), play.timed(0, 1.0, reference=20.0)
    play.train(0, known=True)
    designs = []
    for number in range(1, 6):
        request = play.next()
        designs.append(request.knobs)
        assert request.speed is None
        metrics = play.store.record(number).metrics
        assert (metrics["latency_ratio"], metrics["latency_ms"]) == (1.0, 20.0)
        play.train(number, known=True)
    assert len({json.dumps(design, sort_keys=True) for design in designs}) == 5


LEARNED = replace(FACTS, backbone=BackboneFacts("ResNet", (2, 2, 2, 2), basic=True))
POD = {"stages": [[4, 5]], "transfer": [True, False], "learn_share": [0.25, 0.5], "always": True}


def learn(play, number, epochs=2):
    """The first phase of a trial, and its report."""
    assert all(play.epoch(number, epoch) for epoch in range(1, epochs + 1))
    attrs = {"learning_epochs": epochs, "scales": {"backbone.layer2.0.conv1": {"d_h": 1.5, "d_w": 1.5}}}
    report = TrialReport(phase="learned", epoch=epochs, metrics={"decomposed_bbox_mAP": 0.2}, attrs=attrs)
    return play.conductor.report(number, report)


def test_what_a_learned_network_costs_is_judged_when_it_is_known(tmp_path):
    play = Play(tmp_path, build_space({"pod": POD}, LEARNED), constraints=["gmacs <= 12"], rungs=None)
    play.baseline()
    assert play.next().speed is not None
    assert learn(play, 1)
    assert play.state(1) is TrialState.RUNNING and "gmacs" not in play.store.record(1).metrics
    assert not play.counted(1, gmacs=13.0)
    assert play.state(1) is TrialState.INFEASIBLE
    assert play.store.record(1).metrics["decomposed_bbox_mAP"] == 0.2

    play.next()
    assert learn(play, 2) and play.counted(2, gmacs=9.0) and play.timed(2, 0.9)
    assert play.epoch(2, 3) and play.epoch(2, 4) and not play.send(2, "done", 4)
    assert play.state(2) is TrialState.COMPLETE
    assert [item.epoch for item in play.store.record(2).curve] == [1, 2, 3, 4]


def test_a_learned_network_shares_its_latency_with_nobody(tmp_path):
    play = Play(tmp_path, build_space({"pod": POD}, LEARNED), rungs=None)
    play.baseline()
    first = play.next()
    assert learn(play, 1) and play.counted(1) and play.timed(1, 0.9)
    # Killed after it was timed, it is not timed again.
    play = play.again()
    assert play.next().speed is None
    assert play.store.record(1).metrics["latency_ratio"] == 0.9
    assert play.epoch(1, 3) and play.epoch(1, 4)
    play.send(1, "done", 4)
    # Of the same architecture knobs, but with scales of its own.
    second = play.next()
    assert play.conductor.space.architecture(first.knobs) == play.conductor.space.architecture(second.knobs)
    assert second.speed is not None and "latency_ratio" not in play.store.record(2).metrics


def test_while_it_learns_a_network_competes_with_those_that_learn(tmp_path):
    play = Play(tmp_path, build_space({"pod": POD}, LEARNED), concurrent=2)
    play.baseline()
    play.next()
    # The baseline is better, but what this one will cost nobody knows: it has no rival yet.
    assert play.epoch(1, 1, accuracy=0.2)
    assert play.store.record(1).rungs[1] == "continue: fewer than 2 trials of its speed have been here"
    assert learn(play, 1) and play.counted(1) and play.timed(1, 0.5)
    play.next()
    # The first one's cost is known by now; at this rung it was not.
    assert not play.epoch(2, 1, accuracy=0.1)
    assert play.store.record(2).rungs[1].startswith("stop: rank 2 of 2")


def test_a_network_that_learns_needs_two_epochs(tmp_path):
    from search.engine import prepare_space
    from spaces.errors import UserError

    raw = {"name": "one", "base": "headway::gfl_tiny", "budget": {"trials": 2, "epochs": 1}}
    raw["data"] = {"digits": {}, "size": [96, 96]}
    with pytest.raises(UserError, match=r"^budget\.epochs: must be 2 or more, .* but got 1\.$"):
        prepare_space(parse({**raw, "space": {"pod": {}}}, "one.yaml"))
    with pytest.raises(UserError, match=r"^budget\.epochs: must be 2 or more"):
        prepare_space(parse({**raw, "designs": [{"name": "pod", "knobs": {"pod": {}}}]}, "one.yaml"))
    assert prepare_space(parse({**raw, "space": {"pod": {"mode": "learn"}}}, "one.yaml")).may_learn() is False


def warmed(tmp_path, **more):
    return Play(tmp_path, weights={"from": "baseline", "epochs": 3}, **more)


def warm(play, epoch, seconds=1.0, **metrics):
    attrs = {"warm_epochs": 3} if epoch == 3 else {}
    metrics = {"bbox_mAP": epoch / 10, "loss": 1.0, **metrics}
    report = TrialReport(phase="warm", epoch=epoch, metrics=metrics, seconds=seconds, attrs=attrs)
    return play.conductor.report(0, report)


def test_nothing_starts_before_the_shared_warm_start_is_there(tmp_path):
    play = warmed(tmp_path, concurrent=3)
    request = play.next()
    assert (request.number, request.weights, request.epochs) == (0, "baseline", 4)
    assert (request.warm.folder, request.warm.epochs) == (str(tmp_path / "warm"), 3)
    for epoch in (1, 2, 3):
        assert warm(play, epoch)
        assert play.next() is Pause.WAIT
    play.counted(0)
    assert play.next() is Pause.WAIT
    play.timed(0)
    assert play.next().warm == request.warm
    assert play.store.record(0).metrics["warm_bbox_mAP"] == pytest.approx(0.3)
    assert "warm_loss" not in play.store.record(0).metrics and "bbox_mAP" not in play.store.record(0).metrics


def test_the_epochs_of_the_warm_start_are_the_budgets_unless_said(tmp_path):
    assert Play(tmp_path, weights={"from": "baseline"}).next().warm.epochs == 4


def test_without_a_warm_start_none_is_asked_for(play):
    assert play.next().warm is None


def test_after_a_kill_all_wait_until_the_warm_start_was_found_again(tmp_path):
    play = warmed(tmp_path, concurrent=3)
    play.next(), warm(play, 1)
    play = play.again()
    assert play.next().number == 0
    assert play.next() is Pause.WAIT
    warm(play, 1), warm(play, 2), warm(play, 3), play.counted(0), play.timed(0)
    assert play.next().number == 1
    play.counted(1)
    # Killed when the speed was known and other trials ran: the checkpoint may be gone or damaged by now.
    play = play.again()
    assert play.next().number == 0
    assert play.next() is Pause.WAIT
    assert warm(play, 1) and play.next() is Pause.WAIT  # it is trained once more
    assert warm(play, 2) and warm(play, 3)
    assert [play.next().number, play.next().number] == [1, 2]


def test_once_the_baseline_has_ended_nobody_waits(tmp_path):
    play = warmed(tmp_path, concurrent=2)
    play.next(), warm(play, 3)
    play.train(0)
    assert play.next().number == 1
    play = play.again()
    assert [play.next().number, play.next().number] == [1, 2]


def test_a_trainer_that_continues_the_baseline_itself_has_the_warm_start(tmp_path):
    play = warmed(tmp_path, concurrent=2)
    play.next(), warm(play, 3), play.counted(0), play.timed(0), play.epoch(0, 1)
    play = play.again()
    assert play.next().number == 0 and play.next() is Pause.WAIT
    play.epoch(0, 1)
    assert play.next().number == 1


def test_the_time_of_the_warm_start_is_of_all_its_starts_and_of_no_more(tmp_path):
    play = warmed(tmp_path)
    play.next(), warm(play, 1, seconds=10.0)
    play = play.again()
    play.next(), warm(play, 1, seconds=2.0), warm(play, 2, seconds=12.0), warm(play, 3, seconds=22.0)
    assert play.store.record(0).attrs["warm_seconds"] == pytest.approx(32)
    play.send(0, "epoch", 1, seconds=50.0, bbox_mAP=0.1)
    # Its last report is repeated by a later start; what the trial itself took since is not of the warm start.
    play = play.again()
    play.next(), warm(play, 3, seconds=1.0)
    record = play.store.record(0)
    assert record.attrs["warm_seconds"] == pytest.approx(32)
    assert record.compute_hours == pytest.approx(61 / 3600)


def test_a_warm_start_that_is_no_number_fails_the_baseline(tmp_path):
    play = warmed(tmp_path, concurrent=2)
    play.next()
    assert not warm(play, 2, bbox_mAP=math.nan)
    assert play.conductor.baseline_failure == "not a number: bbox_mAP = nan (epoch 2 of the shared warm start)"
    assert play.next() is Pause.FINISHED


def test_a_baseline_that_fails_in_its_warm_start_ends_the_study_though_others_had_begun(tmp_path):
    play = warmed(tmp_path, concurrent=2)
    play.next(), warm(play, 3), play.counted(0), play.timed(0)
    assert play.next().number == 1
    play = play.again()
    assert play.next().number == 0 and play.next() is Pause.WAIT
    play.conductor.died(0, "in the shared warm start: the loss became nan")
    assert play.next() is Pause.FINISHED


def test_who_measured_a_latency_is_told(tmp_path):
    play = Play(tmp_path, training_knobs())
    play.baseline()
    play.next(), play.train(1, ratio=0.8)
    play.next(), play.train(2, known=True)
    records = play.store.records()
    assert [record.attrs.get("speed_from") for record in records] == [None, None, 1]
    assert "measured_by" not in records[2].metrics
    # A trial that was killed after its own measurement has it from nobody.
    play.next(), play.train(3, known=True)
    assert play.store.record(3).attrs["speed_from"] == 1
