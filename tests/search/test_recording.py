"""A table made of a study: where its seconds come from, what is left out, and that a replay gives the study again."""

import json
from dataclasses import replace

import pytest

from analysis.record import EpochRecord, SweepPoint, TrialRecord, TrialState
from search.cli import main
from search.conductor import Conductor
from search.engine import prepare_space
from search.folder import claimed, write_study
from search.recording import make_table, table_records
from search.replay import Run, curve, replay, replay_study, search
from search.simulate import Clock, simulate
from search.store import Store
from search.study import parse
from spaces.base import BaseFacts
from spaces.errors import UserError
from spaces.space import build_space, design_hash
from trainers.contract import DataRequest, TrialReport
from trainers.replay import Step, Table

FACTS = BaseFacts("GFL", "GFLHead", (8, 16, 32, 64, 128), 4, False)
DATA = DataRequest(
    train_annotations="", train_images="", val_annotations="", val_images="", classes=("a",), size=(96, 96)
)
# Two architectures beside the base's, each with three settings that matter to training only; 12 designs but one.
FAMILIES = {
    "slimhead": {"levels": [[0]], "ratio": [0.5], "mode": "nearest"},
    "ddod": {"assign": True, "alpha_cls": [0.5, 1.0], "alpha_reg": 0.5, "topk": 9, "reweight": "none"},
}
SPACE = build_space(FAMILIES, FACTS)
LATENCY = {"latency_ratio": 0.9, "latency_ratio_q1": 0.88, "latency_ratio_q3": 0.93, "latency_pairs": 25.0}


def make_study(**changes):
    raw = {
        "name": "recorded",
        "base": "headway::gfl_tiny",
        "data": {"digits": {"train": 8, "val": 4}, "size": [96, 96]},
        "space": FAMILIES,
        "budget": {"trials": 6, "epochs": 3},
        "rungs": None,
        "sampler": {"name": "grid"},
        "speed": {"seconds": 4.0},
    }
    return parse({**raw, **changes}, "recorded.yaml")


def epoch(number, seconds, accuracy=0.3):
    """An epoch that trained 6 s and validated 2 s."""
    metrics = {"bbox_mAP": accuracy * number / 3, "train_seconds": 6.0, "val_seconds": 2.0}
    return EpochRecord(number, metrics, seconds)


def record(number, begin, *, state=TrialState.COMPLETE, epochs=3, timed=True, reason=None, end=1.0, **changes):
    """A trial whose first epoch began after ``begin`` seconds and whose others took 10 s."""
    found = [epoch(item, begin + 8 + 10 * (item - 1)) for item in range(1, epochs + 1)]
    metrics = {**(found[-1].metrics if found else {}), "gmacs": 3.0, "params_m": 2.0, **LATENCY, "latency_ms": 18.0}
    made = TrialRecord(
        number=number,
        state=state,
        knobs={"ddod.alpha_cls": number / 10} if number else {},
        metrics=metrics,
        curve=found,
        reason=reason,
        compute_hours=((found[-1].seconds if found else begin) + end) / 3600,
        attrs={"speed_kind": "cpu", "versions": {"torch": "2"}} if timed else {},
    )
    return replace(made, **changes)


WARM = {
    "warm_epoch": 5,
    "warm_epochs": 5,
    "warm_seconds": 100.0,
    "warm_metrics": {"bbox_mAP": 0.05},
    "speed_kind": "cpu",
    "device": "a CPU",
}


def seconds(table, trial):
    found = next(entry for entry in table.entries if entry.trial == trial)
    return [(row.phase, row.epoch, pytest.approx(row.seconds)) for row in found.rows]


def row(table, trial, phase):
    return next(row for entry in table.entries if entry.trial == trial for row in entry.rows if row.phase == phase)


def test_counting_and_timing_are_told_apart_by_those_that_were_not_timed():
    records = [
        record(0, 112.0, attrs=WARM),
        record(1, 9.0),
        record(2, 3.0, timed=False),
        record(3, 2.0, timed=False),
        record(4, 4.0, timed=False),
        record(5, 10.0),
    ]
    table = make_table(make_study(), records, 20.0, "t")
    # Building and counting take 3 s in the median; what is more in trials 0, 1 and 5 is timing: 9, 6 and 7 s.
    epochs = [("epoch", 1, 8.0), ("epoch", 2, 10.0), ("epoch", 3, 10.0), ("done", 3, 1.0)]
    assert seconds(table, 0) == [("warm", 5, 100.0), ("counted", 0, 3.0), ("timed", 0, 9.0), *epochs]
    assert seconds(table, 1) == [("counted", 0, 3.0), ("timed", 0, 6.0), *epochs]
    assert seconds(table, 2) == [("counted", 0, 3.0), ("timed", 0, 7.0), *epochs]
    assert seconds(table, 3) == [("counted", 0, 2.0), ("timed", 0, 7.0), *epochs]
    assert [row(table, trial, "timed").shared for trial in range(6)] == [False, False, True, True, True, False]
    assert table.about["warm"] == {"epochs": 5, "seconds": 100.0} and table.about["device"] == "a CPU"


def test_where_all_were_timed_timing_takes_what_the_study_says():
    table = make_table(make_study(), [record(0, 10.0), record(1, 3.0)], 20.0, "t")
    assert seconds(table, 0)[:2] == [("counted", 0, 6.0), ("timed", 0, 4.0)]
    assert seconds(table, 1)[:2] == [("counted", 0, 0.0), ("timed", 0, 3.0)]


def test_each_row_has_what_its_report_had():
    table = make_table(make_study(), [record(0, 112.0, attrs=WARM), record(1, 9.0)], 20.0, "t")
    assert row(table, 0, "warm").metrics == {"bbox_mAP": 0.05}
    assert row(table, 1, "counted").metrics == {"gmacs": 3.0, "params_m": 2.0}
    assert row(table, 1, "timed").metrics == LATENCY
    assert row(table, 1, "epoch").metrics == epoch(1, 0.0).metrics
    assert row(table, 1, "done").metrics == {}


def test_only_trials_that_have_ended_are_recorded():
    records = [
        record(0, 9.0),
        record(1, 9.0, epochs=1, state=TrialState.STOPPED, reason="at epoch 1", end=0.0),
        record(2, 9.0, epochs=2, state=TrialState.FAILED, reason="the loss is NaN", end=0.0),
        record(3, 9.0, epochs=0, state=TrialState.INFEASIBLE, reason="must hold", end=0.0),
        record(4, 9.0, epochs=0, state=TrialState.FAILED, reason="no build", metrics={}, attrs={}, end=0.0),
        record(5, 9.0, epochs=2, state=TrialState.RUNNING),
        record(6, 0.0, epochs=0, state=TrialState.PROPOSED),
    ]
    table = make_table(make_study(), records, 20.0, "t")
    assert [(entry.trial, entry.state, entry.reason, entry.epochs) for entry in table.entries] == [
        (0, "COMPLETE", None, 3),
        (1, "STOPPED", "at epoch 1", 1),
        (2, "FAILED", "the loss is NaN", 2),
        (3, "INFEASIBLE", "must hold", 0),
        (4, "FAILED", "no build", 0),
    ]
    assert table.about["states"] == {"COMPLETE": 1, "STOPPED": 1, "FAILED": 2, "INFEASIBLE": 1}
    assert (table.about["left_out"], table.about["partial"]) == (2, 2)
    assert [seconds(table, trial)[-1][:2] for trial in range(1, 4)] == [("epoch", 1), ("epoch", 2), ("timed", 0)]
    # A design that failed before anything was known is there with its time, so that a replay knows it.
    assert seconds(table, 4) == [("counted", 0, 9.0)]


def test_a_sweep_keeps_what_was_counted_before_it():
    points = [
        SweepPoint(index, {}, {"bbox_mAP": 0.2 + index / 10, "gmacs": 1.5, "head_gmacs": 1.0, **LATENCY})
        for index in range(2)
    ]
    cost = {"macs": {"total": 4_000_000_000, "parts": {"backbone": 500_000_000, "bbox_head": 3_500_000_000}}}
    swept = record(1, 3.0, timed=False, end=9.0, sweep=points, attrs={"cost": cost})
    # The record has the figures of setting 0 where the sweep measured again.
    swept = replace(swept, metrics={**swept.metrics, **points[0].metrics})
    table = make_table(make_study(), [record(0, 9.0), swept], 20.0, "t")
    assert row(table, 1, "counted").metrics == {"gmacs": 4.0, "head_gmacs": 3.5, "params_m": 2.0}
    assert seconds(table, 1)[-3:] == [("swept", 3, 4.5), ("swept", 3, 4.5), ("done", 3, 0.0)]
    found = [row for row in table.entries[1].rows if row.phase == "swept"]
    assert [(row.point, row.metrics) for row in found] == [(point.index, point.metrics) for point in points]
    assert not any(row.phase == "timed" for row in table.entries[1].rows)


def test_a_learned_network_is_counted_where_it_was():
    learned = record(1, 0.0, attrs={"learning_epochs": 1, "speed_kind": "cpu"})
    learned = replace(
        learned,
        metrics={**learned.metrics, "learned_bbox_mAP": 0.1, "learning_latency_ratio": 1.2},
        # 8 s trained and validated, 12 s observed, settled and timed; then 8 s and 10 s.
        curve=[epoch(1, 9.0), epoch(2, 29.0), epoch(3, 39.0)],
        compute_hours=40 / 3600,
    )
    table = make_table(make_study(), [record(0, 9.0), learned], 20.0, "t")
    assert seconds(table, 1) == [
        *[("epoch", 1, 9.0), ("learned", 1, 12.0), ("counted", 0, 0.0), ("timed", 0, 0.0)],
        *[("epoch", 2, 8.0), ("epoch", 3, 10.0), ("done", 3, 1.0)],
    ]
    assert row(table, 1, "learned").metrics == {"learned_bbox_mAP": 0.1, "learning_latency_ratio": 1.2}


@pytest.mark.parametrize(
    ("records", "reference", "state"),
    [
        ([], 20.0, "not there yet"),
        ([record(0, 9.0, state=TrialState.RUNNING), record(1, 9.0)], 20.0, "RUNNING"),
        ([record(0, 9.0, state=TrialState.FAILED)], 20.0, "FAILED"),
    ],
)
def test_a_study_without_a_baseline_is_no_table(records, reference, state):
    with pytest.raises(
        UserError, match=f"recorded: must have a COMPLETE baseline to be recorded, but trial 0 is {state}"
    ):
        make_table(make_study(), records, reference, "t")


def figures(knobs):
    """Latency ratio and final accuracy of a design."""
    slim = "slimhead.ratio" in knobs
    return (0.8 if slim else 1.0), 0.30 - 0.04 * slim + 0.05 * knobs.get("ddod.alpha_cls", 0.0)


def steps(request):
    """A trainer in closed form: counting 1 s, timing 2 s, epochs of 8 to 10 s, the end half a second."""
    ratio, accuracy = figures(request.knobs)
    cost = {"gmacs": 3 * ratio, "params_m": 2.0}
    yield Step(1.0, TrialReport(phase="counted", epoch=0, metrics=cost, attrs={"device": "a CPU"}))
    if request.speed is not None:
        quartiles = {"latency_ratio": ratio, "latency_ratio_q1": ratio - 0.01, "latency_ratio_q3": ratio + 0.01}
        yield Step(2.0, TrialReport(phase="timed", epoch=0, metrics={**quartiles, "reference_ms": 20.0}))
    for number in range(1, request.epochs + 1):
        metrics = {"bbox_mAP": accuracy * number / request.epochs, "train_seconds": 6.0 + number, "val_seconds": 1.0}
        yield Step(7.0 + number, TrialReport(phase="epoch", epoch=number, metrics=metrics))
    yield Step(0.5, TrialReport(phase="done", epoch=request.epochs, metrics={}))


def run_study(folder, study, space, workers=2):
    """Runs a study on the closed form, over a store on disk."""
    clock = Clock()
    store = Store.create(folder, study, clock=clock)
    conductor = Conductor(
        study, space, store, folder=folder, data=DATA, device="cpu", speed_device="cpu", threads=1, concurrent=workers,
        clock=clock,
    )  # fmt: skip
    simulate(conductor, steps, clock)
    return store


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A study of the closed form, and its table by way of the disk."""
    folder = tmp_path_factory.mktemp("recorded")
    study = make_study()
    store = run_study(folder, study, SPACE)
    make_table(study, store.records(), store.reference_ms, "t.parquet").write(folder / "t.parquet")
    return store, Table.read(folder / "t.parquet")


def test_a_replay_with_the_same_settings_is_the_study_again(recorded):
    store, table = recorded
    records = store.records()
    assert len(records) == 6 and {record.state for record in records} == {TrialState.COMPLETE}
    # Two architectures, each timed once.
    assert sorted(entry.rows[1].shared for entry in table.entries) == [False] * 2 + [True] * 4
    study = replay_study(table, sampler="grid", rungs="none")
    again = search(table, study, SPACE, workers=2)
    for old, new in zip(records, again, strict=True):
        assert (old.number, old.state, old.knobs, old.metrics) == (new.number, new.state, new.knobs, new.metrics)
        assert [(item.epoch, item.metrics) for item in old.curve] == [(item.epoch, item.metrics) for item in new.curve]
        assert [item.seconds for item in old.curve] == pytest.approx([item.seconds for item in new.curve])
        assert (old.started, old.finished) == pytest.approx((new.started, new.finished))


def test_the_records_of_a_table_are_those_of_the_study(recorded):
    store, table = recorded
    for old, new in zip(store.records(), table_records(table, make_study(), SPACE), strict=True):
        assert (old.knobs, old.state, old.metrics) == (new.knobs, new.state, new.metrics)
        assert old.compute_hours == pytest.approx(new.compute_hours)


def test_a_design_that_was_not_recorded_fails_in_a_replay(recorded):
    _, table = recorded
    lost = table.entries[3]
    part = replace(table, entries=tuple(entry for entry in table.entries if entry is not lost))
    records = search(part, replay_study(part, sampler="grid", rungs="none", trials=6), SPACE, workers=1)
    failed = [record for record in records if record.state is TrialState.FAILED]
    assert [design_hash(record.knobs) for record in failed] == [design_hash(lost.knobs)]
    assert failed[0].reason == f"t.parquet has no recording of the design {json.dumps(dict(failed[0].knobs))}"


def test_compute_counts_the_trials_that_still_run():
    objectives = make_study().objective_records

    def ended(number, started, finished, state=TrialState.COMPLETE, accuracy=0.3, latency=20.0):
        metrics = {"bbox_mAP": accuracy, "latency_ms": latency}
        return TrialRecord(number=number, state=state, metrics=metrics, started=started, finished=finished)

    rows = curve(
        [
            ended(0, 0.0, 7200.0),
            ended(1, 0.0, 3600.0, TrialState.STOPPED, accuracy=0.9),
            ended(2, 3600.0, 9000.0, accuracy=0.2, latency=10.0),
        ],
        objectives,
        (0.0, 40.0),
    )
    assert rows == [
        {"trials": 1, "compute_hours": 2.0, "wall_hours": 1.0, "hypervolume": 0.0},
        {"trials": 2, "compute_hours": 4.0, "wall_hours": 2.0, "hypervolume": pytest.approx(0.3 * 20)},
        {"trials": 3, "compute_hours": 4.5, "wall_hours": 2.5, "hypervolume": pytest.approx(0.3 * 20 + 0.2 * 10)},
    ]
    found = Run(seed=0, curve=rows, begun=3, states={}, epochs_share=1.0)
    assert [found.reached(volume) for volume in (0.0, 6.0, 7.9, 8.1)] == [2.0, 4.0, 4.5, float("inf")]
    assert found.reached(7.9, "wall_hours") == 2.5


def test_what_replays_come_to(recorded):
    _, table = recorded
    lines = []
    studies = [replay_study(table, sampler="grid", rungs="none", seed=seed) for seed in range(3)]
    found = replay(table, studies, SPACE, workers=1, say=lines.append)
    # The baseline: 0.30 at 20 ms; the best beside it: 0.35 at 20 ms and 0.31 at 16 ms. The reference is 0 and 40 ms.
    assert found["best_hypervolume"] == pytest.approx(0.35 * 20 + 0.31 * 4)
    assert found["reference"] == [0.0, 40.0]
    assert found["targets"]["80"]["compute_hours"]["median"] < found["targets"]["99"]["compute_hours"]["median"]
    assert found["targets"]["99"]["reached"] == 3 and found["trials_begun"] == {"median": 6, "q1": 6, "q3": 6}
    assert found["stopped"]["median"] == 0 and found["epochs_share"]["median"] == 1.0
    # One worker: wall time is compute time. The whole study took what its trials did.
    ends = [run["curve"][-1] for run in found["runs"]]
    assert [end["wall_hours"] for end in ends] == pytest.approx([end["compute_hours"] for end in ends])
    assert ends[0]["compute_hours"] == pytest.approx((6 * (1 + 8 + 9 + 10 + 0.5) + 2 * 2) / 3600)
    assert len(lines) == 3 and lines[0].startswith("seed 0 (1/3): 6 trials (6 COMPLETE), 95 % after ")


def test_what_is_never_reached_has_no_hours(recorded):
    _, table = recorded
    studies = [replay_study(table, sampler="grid", rungs="none", trials=1, seed=seed) for seed in range(2)]
    found = replay(table, studies, SPACE, workers=1)
    assert found["targets"]["99"] == {
        "compute_hours": {"median": None, "q1": None, "q3": None},
        "wall_hours": {"median": None, "q1": None, "q3": None},
        "reached": 0,
    }
    assert found["targets"]["50"]["compute_hours"]["median"] == pytest.approx(30.5 / 3600)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "tpee"}, "replay of t: sampler.name: must be"),
        ({"rungs": "asha"}, "--rungs: must be like_speed, mo_asha or none, but got 'asha'"),
        ({"rungs": "none", "first": 1}, "--rungs: must not be none where --first or --factor is given"),
        ({"factor": 1}, "replay of t: rungs.factor: must be"),
        ({"trials": 0}, "replay of t: budget.trials: must be"),
    ],
)
def test_wrong_settings_of_a_replay(settings, message):
    table = make_table(make_study(), [record(0, 9.0)], 20.0, "t")
    with pytest.raises(UserError, match=message):
        replay_study(table, **settings)


def test_a_study_that_lists_its_designs_has_nothing_to_search():
    designs = [{"name": "slim", "knobs": {"slimhead": {}}}]
    study = make_study(designs=designs, space={}, budget={"epochs": 3}, sampler={})
    table = make_table(study, [record(0, 9.0)], 20.0, "t")
    with pytest.raises(UserError, match="t: lists its designs, so there is nothing for a sampler to choose"):
        replay_study(table)


def test_a_replay_searches_by_its_own_settings():
    recorded = make_study(storage="sqlite:////tmp/s.db", tracking={"uri": "http://me:secret@host"})
    table = make_table(recorded, [record(0, 9.0), record(1, 9.0)], 20.0, "t")
    assert "secret" not in json.dumps(table.study)
    study = replay_study(table, sampler="random", rungs="mo_asha", first=2, factor=4, seed=7)
    assert (study.storage, study.tracking.uri, study.seed, study.budget.trials) == (None, None, 7, 2)
    assert (study.sampler.name, study.rungs.model_dump(exclude_none=True)) == (
        "random",
        {"method": "mo_asha", "first": 2, "factor": 4},
    )
    assert replay_study(table).sampler.name == "tpe" and replay_study(table).rungs == make_study(rungs={}).rungs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of the closed form in a folder, as a user has it."""
    root = tmp_path_factory.mktemp("recording")
    study = make_study()
    with claimed(root / "recorded"):
        run_study(root / "recorded", study, prepare_space(study))
        write_study(root / "recorded", study)
    return root


def test_the_commands(made, capsys, monkeypatch):
    monkeypatch.chdir(made)
    assert main(["record", "recorded", "--studies", ".", "--out", "t.parquet", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["designs"], told["states"], told["left_out"], told["partial"]) == (6, {"COMPLETE": 6}, 0, 0)
    asked = ["replay", "t.parquet", "--seeds", "2", "--workers", "2", "--sampler", "random", "--rungs", "none"]
    assert main([*asked, "--out", "r.json", "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["targets"]["99"]["reached"] == 2 and told["sampler"] == "random" and "runs" not in told
    assert len(printed.err.splitlines()) == 2
    written = json.loads((made / "r.json").read_text())
    assert {key: value for key, value in written.items() if key != "runs"} == told
    assert [len(run["curve"]) for run in written["runs"]] == [6, 6]


def test_the_commands_for_a_person(made, capsys, monkeypatch):
    monkeypatch.chdir(made)
    assert main(["record", "recorded", "--studies", ".", "--out", "p.parquet"]) == 0
    assert "p.parquet: 6 designs of recorded, 6 COMPLETE." in capsys.readouterr().out
    assert main(["replay", "p.parquet", "--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert "tpe, first 1, factor 3, method like_speed; 1 seeds" in out and "99 %" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["record", "recorded", "--studies", ".", "--out", "t.csv"],
            "--out: must name a .parquet file, but got 't.csv'",
        ),
        (
            ["record", "recorded", "--studies", ".", "--out", "gone/t.parquet"],
            "table: must be writable, but gone/t.par",
        ),
        (["record", "nothing", "--studies", ".", "--out", "t.parquet"], "STUDY: must be a study that was run"),
        (["replay", "gone.parquet"], "table: must be a file that 'headway record' wrote, but there is no file gone"),
        (["replay", "t.parquet", "--seeds", "0"], "--seeds: must be 1 or more, but got 0"),
        (["replay", "t.parquet", "--workers", "-1"], "--workers: must be 1 or more, but got -1"),
    ],
)
def test_wrong_commands(made, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(made)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out and "Traceback" not in printed.err
