"""The study file: everything a user can write into it is taken or refused with one clear message."""

import copy
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.folder import write_study
from search.study import ACCURACIES, COSTS, Constraint, load, parse, parse_assignment
from spaces.errors import UserError

# The study file of docs and design.
SAMPLE = """
name: cells-gfl
base: mmdet::gfl/gfl_r50_fpn_1x_coco.py
data:
  classes: [WBC, RBC, Platelets]
  train: {annotations: data/train.json, images: data/images}
  val:   {annotations: data/val.json,   images: data/images}
  size: [640, 480]
space:
  slimhead: {}
  dcn: {placement: {max_layers: 3}}
  pod: {mode: [off, decompose]}
objectives:
  - {metric: bbox_mAP, direction: maximize}
  - {metric: latency_ms, direction: minimize}
constraints: ["params_m <= 40", "gmacs <= 220"]
budget: {trials: 64, epochs: 12, hours: 24}
rungs: {first: 1, factor: 3}
sampler: {name: tpe, startup: 12}
weights: {from: baseline}
resources: {gpus: 1, cpus: 4, workers: 1, concurrent: auto}
speed: {device: auto, size: [800, 1344], batch: 1, postprocess: true}
tracking: {uri: null, experiment: null}
storage: null
seed: 0
"""
SMALL = {
    "name": "small",
    "base": "headway::gfl_tiny",
    "data": {"digits": {}, "size": [96, 96]},
    "space": {"slimhead": {}},
}
MISSING = object()


def write(folder, text, name="study.yaml"):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def changed(key, value):
    """The small study with one key set."""
    raw = copy.deepcopy(SMALL)
    *parents, last = key.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
    if value is MISSING:
        del section[last]
    else:
        section[last] = value
    return raw


def refusal(raw):
    with pytest.raises(UserError) as caught:
        parse(raw, "small.yaml")
    return str(caught.value)


def test_the_sample_is_read_with_paths_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    study = load(write(tmp_path, SAMPLE))
    assert study.data.train.annotations == str(tmp_path / "data/train.json")
    assert study.data.val.images == str(tmp_path / "data/images")
    assert study.base == "mmdet::gfl/gfl_r50_fpn_1x_coco.py"
    assert study.data.size == (640, 480)
    assert study.speed_size == (800, 1344)
    assert study.rung_epochs == (1, 3, 9)
    assert [objective.maximize for objective in study.objective_records] == [True, False]
    assert study.space["slimhead"] == {}


def test_yaml_1_2_keeps_off_as_text_and_reads_exponents(tmp_path):
    study = load(write(tmp_path, SAMPLE + "training: {lr: 1e-3}\n"))
    assert study.space["pod"]["mode"] == ["off", "decompose"]
    assert study.training.lr == 0.001


def test_the_shared_warm_start_has_the_epochs_of_the_budget_or_its_own(tmp_path):
    study = load(write(tmp_path, SAMPLE))
    assert (study.weights.from_, study.warm_epochs) == ("baseline", study.budget.epochs)
    assert load(write(tmp_path, SAMPLE), ["weights.epochs=5"]).warm_epochs == 5
    assert load(write(tmp_path, SAMPLE), ["weights.from=scratch"]).warm_epochs is None
    assert refusal(changed("weights", {"from": "scratch", "epochs": 3})) == (
        "small.yaml: weights: must have epochs only with from: baseline, whose training they are of, "
        "but from is scratch."
    )
    assert "weights.epochs: must be greater than or equal to 1" in refusal(
        changed("weights", {"from": "baseline", "epochs": 0})
    )


def test_what_a_study_leaves_out_has_the_documented_defaults():
    study = parse(SMALL, "small.yaml")
    assert study.budget.model_dump() == {"trials": 64, "epochs": 12, "hours": None, "gpu_hours": None}
    assert [objective.metric for objective in study.objectives] == ["bbox_mAP", "latency_ms"]
    assert (study.weights.from_, study.weights.backbone, study.storage, study.seed) == ("scratch", "auto", None, 0)
    # The data's size, height first, padded to a multiple of 32.
    assert parse(changed("data.size", [320, 250]), "x").speed_size == (256, 320)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("nmae", "name"),
        ("Budget", "budget"),
        ("objectivs", "objectives"),
        ("rung", "rungs"),
        ("data.trian", "train"),
        ("data.digits.sed", "seed"),
        ("data.train.anotations", "annotations"),
        ("budget.trails", "trials"),
        ("budget.epoch", "epochs"),
        ("rungs.factr", "factor"),
        ("sampler.nam", "name"),
        ("weights.form", "from"),
        ("weights.from_", "from"),
        ("training.bach", "batch"),
        ("resources.gpu", "gpus"),
        ("speed.devise", "device"),
        ("tracking.url", "uri"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(key, near):
    message = refusal(changed(key, 1))
    section, _, last = key.rpartition(".")
    assert f"{section or 'study'}: unknown '{last}'; did you mean '{near}'? The choices are" in message


def test_an_unknown_key_of_an_objective_names_the_nearest_right_one():
    raw = changed("objectives", [{"metrik": "bbox_mAP", "direction": "maximize"}])
    assert "objectives.0: unknown 'metrik'; did you mean 'metric'?" in refusal(raw)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("name", MISSING, "name: is required."),
        ("base", MISSING, "base: is required."),
        ("data", MISSING, "data: is required."),
        ("space", MISSING, "space: is required."),
        ("data.size", MISSING, "data.size: is required."),
        ("name", "a b", "name: must be 1 to 64 letters"),
        ("name", "../up", "name: must be 1 to 64 letters"),
        ("name", "-x", "name: must be 1 to 64 letters"),
        ("name", "x" * 65, "name: must be 1 to 64 letters"),
        ("name", "", "name: must be 1 to 64 letters"),
        ("name", 5, "name: must be text, but got 5."),
        ("base", ["a"], "base: must be text, but got ['a']."),
        ("data", "digits", "data: must be a section of keys and values, but got 'digits'."),
        ("data.size", 640, "data.size: must be a list, but got 640."),
        ("data.size", "640x480", "data.size: must be a list, but got '640x480'."),
        ("data.size", [640, 480, 3], "data.size: must be a list of 2, but got [640, 480, 3]."),
        ("data.size", [640, 8], "data.size.1: must be greater than or equal to 32, but got 8."),
        ("data.size", [64.5, 64], "data.size.0: must be a whole number, but got 64.5."),
        ("data.digits", None, "data: must have both train and val, or digits."),
        ("data.train", {"annotations": "a"}, "data.train.images: is required."),
        ("data.train", {"annotations": "a", "images": "b"}, "data: must have either digits or train, val and classes"),
        ("data.digits.train", 0, "data.digits.train: must be greater than 0, but got 0."),
        ("data.classes", "WBC", "data.classes: must be a list, but got 'WBC'."),
        ("data.classes", [1], "data.classes.0: must be text, but got 1."),
        ("space", [], "space: must be a section of keys and values, but got []."),
        ("space.slimhead", [0], "space.slimhead: must be a section of keys and values, but got [0]."),
        ("objectives", "bbox_mAP", "objectives: must be a list, but got 'bbox_mAP'."),
        ("objectives", [], "objectives: must be an accuracy (bbox_mAP"),
        ("constraints", "params_m <= 4", "constraints: must be a list, but got 'params_m <= 4'."),
        ("constraints", [3], "constraints.0: must be text, but got 3."),
        ("constraints", ["params_m < 4"], "must read like 'params_m <= 40', but got 'params_m < 4'"),
        ("constraints", ["bbox_mAP >= 0.3"], "must be about a figure known before training: latency_ms,"),
        ("budget.trials", 0, "budget.trials: must be greater than or equal to 1, but got 0."),
        ("budget.trials", "8", "budget.trials: must be a whole number, but got '8'."),
        ("budget.trials", True, "budget.trials: must be a whole number, but got True."),
        ("budget.epochs", 2.5, "budget.epochs: must be a whole number, but got 2.5."),
        ("budget.hours", 0, "budget.hours: must be greater than 0, but got 0."),
        ("budget.hours", math.inf, "budget.hours: must be a finite number, but got inf."),
        ("budget.hours", math.nan, "budget.hours: must be a finite number, but got nan."),
        ("rungs", False, "rungs: must be a section of keys and values, but got False."),
        ("rungs.first", 0, "rungs.first: must be greater than 0, but got 0."),
        ("rungs.factor", 1, "rungs.factor: must be greater than or equal to 2, but got 1."),
        (
            "sampler.name",
            "TPE",
            "sampler.name: must be 'tpe', 'nsgaii', 'nsgaiii', 'gp', 'random' or 'grid', but got 'TPE'.",
        ),
        ("sampler.startup", 0, "sampler.startup: must be greater than or equal to 1, but got 0."),
        ("weights.from", 3, "weights.from: must be text, but got 3."),
        ("training.lr", 0, "training.lr: must be greater than 0, but got 0."),
        ("training.lr", "fast", "training.lr: must be a number, but got 'fast'."),
        ("training.batch", 0, "training.batch: must be greater than 0, but got 0."),
        # A choice of types is one message.
        ("resources.cpus", "many", "resources.cpus: must be 'auto' or a whole number, but got 'many'."),
        ("resources.cpus", 0, "resources.cpus: must be 'auto' or greater than 0, but got 0."),
        ("resources.gpus", -1, "resources.gpus: must be 'auto' or greater than or equal to 0, but got -1."),
        ("resources.concurrent", True, "resources.concurrent: must be 'auto' or a whole number, but got True."),
        ("resources.workers", 0, "resources.workers: must be greater than 0, but got 0."),
        ("speed.device", "gpu", "speed.device: must be 'auto', 'cpu' or 'cuda', but got 'gpu'."),
        ("speed.size", [1, 1344], "speed.size.0: must be greater than or equal to 32, but got 1."),
        ("speed.pairs", 2, "speed.pairs: must be greater than or equal to 3, but got 2."),
        ("speed.postprocess", 3, "speed.postprocess: must be true or false, but got 3."),
        ("tracking", "http://x", "tracking: must be a section of keys and values, but got 'http://x'."),
        ("storage", 5, "storage: must be text, but got 5."),
        ("seed", -1, "seed: must be greater than or equal to 0, but got -1."),
        ("seed", 2**31, "seed: must be less than 2147483648, but got 2147483648."),
    ],
)
def test_a_wrong_value_has_one_message_with_key_rule_and_value(key, value, rule):
    message = refusal(changed(key, value))
    assert message.startswith("small.yaml: ")
    assert rule in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("objectives", "rule"),
    [
        ([("bbox_map", "maximize"), ("gmacs", "minimize")], "objectives.0: unknown metric 'bbox_map'; the choices are"),
        ([("bbox_mAP", "minimize"), ("gmacs", "minimize")], "bbox_mAP must have direction maximize, but got minimize"),
        ([("bbox_mAP", "max"), ("gmacs", "minimize")], "objectives.0.direction: must be 'maximize' or 'minimize'"),
        ([("bbox_mAP", "maximize"), ("gmacs", "maximize")], "gmacs must have direction minimize, but got maximize"),
        ([("bbox_mAP", "maximize")] * 2, "must not name a metric twice"),
        ([("bbox_mAP", "maximize")], "must be an accuracy"),
        ([("gmacs", "minimize"), ("bbox_mAP", "maximize")], "first, then one or more others, but got gmacs, bbox_mAP"),
    ],
)
def test_wrong_objectives_are_refused(objectives, rule):
    raw = changed("objectives", [{"metric": metric, "direction": direction} for metric, direction in objectives])
    message = refusal(raw)
    assert rule in message
    assert len(message.splitlines()) == 1


def test_several_wrong_keys_are_told_at_once():
    raw = changed("budget", {"trials": 0, "epcohs": 3})
    raw["sampler"] = {"name": "grids"}
    message = refusal(raw)
    assert [key in message for key in ("budget.trials", "'epochs'", "sampler.name")] == [True] * 3
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must be a mapping with name, base, data and space, but got NoneType"),
        ("- a\n- b\n", "must be a mapping with name, base, data and space, but got list"),
        ("just text", "but got str"),
        ("a: [1, 2", "must be YAML"),
        ("a: 1\na: 2\n", "must be YAML"),
        ("a:\n\t- b\n", "must be YAML"),
        ("a: 1\n---\nb: 2\n", "must be YAML"),
        ("when: 2024-13-45\n", "must be YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "must be YAML"),
    ],
)
def test_a_file_that_is_no_mapping_of_yaml_is_refused_in_one_line(tmp_path, text, rule):
    with pytest.raises(UserError) as caught:
        load(write(tmp_path, text))
    assert rule in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="there is no file"):
        load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(UserError, match="must be YAML"):
        load(tmp_path / "binary.yaml")


def test_paths_of_the_file_and_of_overrides_have_different_roots(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = write(tmp_path, SAMPLE)
    study = load(
        file,
        [
            "data.train.annotations=mine.json",
            "data.val.images=~/images",
            "weights.from=start.pth",
            "base=own.py",
            "storage=sqlite:///trials.db",
        ],
    )
    assert study.data.train.annotations == str(elsewhere / "mine.json")
    assert study.data.train.images == str(tmp_path / "data/images")
    assert study.data.val.images == str(tmp_path / "home/images")
    assert study.weights.from_ == str(elsewhere / "start.pth")
    assert study.base == str(elsewhere / "own.py")
    assert study.storage == f"sqlite:///{elsewhere / 'trials.db'}"


def test_words_and_absolute_addresses_are_no_paths(tmp_path):
    study = load(write(tmp_path, SAMPLE), ["weights.backbone=none", "storage=sqlite:////var/x.db"])
    assert (study.weights.from_, study.weights.backbone, study.storage) == ("baseline", "none", "sqlite:////var/x.db")
    study = load(write(tmp_path, SAMPLE), ["storage=postgresql://h/db", "tracking.uri=http://h:5000"])
    assert (study.storage, study.tracking.uri) == ("postgresql://h/db", "http://h:5000")


def test_relative_databases_lie_beside_the_study_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    text = SAMPLE.replace("storage: null", "storage: sqlite:///trials.db").replace(
        "uri: null", "uri: 'sqlite:///mlflow.db'"
    )
    study = load(write(tmp_path, text))
    assert study.storage == f"sqlite:///{tmp_path / 'trials.db'}"
    assert study.tracking.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_the_home_of_nobody_is_refused(tmp_path):
    with pytest.raises(UserError, match="must be a path"):
        load(write(tmp_path, SAMPLE), ["weights.from=~nobody-of-this-name/x.pth"])


def test_overrides_reach_into_sections_that_are_not_there(tmp_path):
    file = write(
        tmp_path, "name: a\nbase: headway::gfl_tiny\ndata: {digits: {}, size: [96, 96]}\nspace: {slimhead: }\n"
    )
    study = load(
        file,
        [
            "budget.trials=8",
            "space.slimhead.ratio={low: 0.3}",
            "space.dcn=",
            "rungs=null",
            "constraints=['gmacs <= 1e2']",
            "data.digits.train=5",
        ],
    )
    assert study.budget.trials == 8
    assert study.space == {"slimhead": {"ratio": {"low": 0.3}}, "dcn": None}
    assert study.rungs is None
    assert study.constraints == ("gmacs <= 1e2",)
    assert study.data.digits.train == 5


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("budget.trials", "--set: must read like KEY=VALUE, but got 'budget.trials'."),
        ("=8", "--set: must read like KEY=VALUE, but got '=8'."),
        ("budget.trials=[8", "--set: the value must be YAML, but got '[8'."),
        ("budget.hours=2024-13-45", "--set: the value must be YAML, but got '2024-13-45'."),
        ("name.x=8", "--set name.x: 'name' must be a section, but it is 'cells-gfl'."),
        ("objectives.0.metric=gmacs", "'objectives' must be a section"),
        ("budget.trails=8", "budget: unknown 'trails'; did you mean 'trials'?"),
        ("budget..trials=8", "budget: unknown ''"),
        ("seed=off", "seed: must be a whole number, but got 'off'."),
    ],
)
def test_wrong_overrides_are_refused(tmp_path, override, rule):
    with pytest.raises(UserError) as caught:
        load(write(tmp_path, SAMPLE), [override])
    assert rule in str(caught.value)


def test_a_value_may_hold_equals_signs():
    assert parse_assignment("tracking.uri='http://h/?a=b'") == ("tracking.uri", "http://h/?a=b")
    assert parse_assignment("x = [0, 1]") == ("x", [0, 1])


def test_no_rungs():
    assert parse(changed("rungs", None), "x").rung_epochs == ()


@given(first=st.integers(1, 50), factor=st.integers(2, 9), epochs=st.integers(1, 10_000))
def test_rungs_are_all_products_below_the_last_epoch(first, factor, epochs):
    raw = {**SMALL, "rungs": {"first": first, "factor": factor}, "budget": {"epochs": epochs}}
    expected = [epoch for epoch in (first * factor**step for step in range(15)) if epoch < epochs]
    assert parse(raw, "x").rung_epochs == tuple(expected)


NAMES = st.sampled_from(["a", "on", "off", "null", "1e3", "2024-01-01", "ä #:", "'", "~", " x "])
RAW = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,10}", fullmatch=True),
        "base": st.just("mmdet::gfl/gfl_r50_fpn_1x_coco.py"),
        "data": st.fixed_dictionaries(
            {
                "train": st.just({"annotations": "/a.json", "images": "/a"}),
                "val": st.just({"annotations": "/b.json", "images": "/~b"}),
                "size": st.lists(st.integers(32, 4000), min_size=2, max_size=2),
            },
            optional={"classes": st.lists(NAMES, min_size=1, max_size=4)},
        ),
        "space": st.dictionaries(st.sampled_from(["slimhead", "dcn"]), st.just({"x": {"low": 0.1}}) | st.none()),
    },
    optional={
        "objectives": st.permutations(sorted(COSTS)).flatmap(
            lambda costs: st.tuples(st.sampled_from(sorted(ACCURACIES)), st.integers(1, len(costs))).map(
                lambda drawn: [
                    {"metric": drawn[0], "direction": "maximize"},
                    *({"metric": cost, "direction": "minimize"} for cost in costs[: drawn[1]]),
                ]
            )
        ),
        "constraints": st.lists(
            st.builds(
                "{} {} {!r}".format, st.sampled_from(sorted(COSTS)), st.sampled_from(["<=", ">="]), st.floats(0, 9)
            )
        ),
        "budget": st.fixed_dictionaries(
            {}, optional={"trials": st.integers(1, 99), "hours": st.none() | st.floats(0.001, 1e6)}
        ),
        "rungs": st.none() | st.fixed_dictionaries({"first": st.integers(1, 9), "factor": st.integers(2, 9)}),
        "weights": st.sampled_from(
            [{"from": "scratch"}, {"from": "baseline", "epochs": 3}, {"from": "/x.pth", "backbone": "none"}]
        ),
        "training": st.fixed_dictionaries({"lr": st.none() | st.floats(1e-9, 10)}),
        "resources": st.fixed_dictionaries({"gpus": st.sampled_from(["auto", 0, 3])}),
        "tracking": st.fixed_dictionaries({"uri": st.none() | st.just("http://h:1")}),
        "seed": st.integers(0, 2**31 - 1),
    },
)


@settings(max_examples=60, deadline=None)
@given(raw=RAW)
def test_what_is_dumped_and_written_is_read_as_the_same_study(raw, tmp_path_factory):
    study = parse(raw, "x")
    assert parse(json.loads(json.dumps(study.dump())), "x") == study
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, study)
    assert load(folder / "study.yaml") == study
    assert [path.name for path in folder.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize("text", ["params_m <= 40", "params_m<=40", "  params_m  <=  4e1 ", "params_m <= +40.0"])
def test_a_constraint_is_read(text):
    constraint = Constraint.parse(text)
    assert (constraint.metric, constraint.upper, constraint.bound) == ("params_m", True, 40.0)
    assert str(constraint) == "params_m <= 40"


@pytest.mark.parametrize(
    "text",
    ["", "params_m", "params_m <= ", "params_m == 4", "params_m < 4", "4 >= params_m", "params_m <= x",
     "params_m <= 4 M", "params_m <= nan", "params_m <= 1e999", "params_m <= 1-2", "a b <= 4"],
)  # fmt: skip
def test_what_is_no_constraint_is_refused(text):
    with pytest.raises(ValueError, match="must read like 'params_m <= 40', but got"):
        Constraint.parse(text)


def test_the_excess_is_relative_to_the_bound():
    upper, lower = Constraint.parse("gmacs <= 200"), Constraint.parse("gmacs >= 200")
    assert upper.excess({"gmacs": 250}) == pytest.approx(0.25)
    assert upper.excess({"gmacs": 150}) == pytest.approx(-0.25)
    assert lower.excess({"gmacs": 150}) == pytest.approx(0.25)
    assert upper.excess({"gmacs": 200}) == lower.excess({"gmacs": 200}) == 0
    assert upper.excess({"params_m": 1}) is None
    assert Constraint.parse("gmacs <= 0").excess({"gmacs": 3}) == 3
    assert Constraint.parse("gmacs <= -2").excess({"gmacs": -1}) == 0.5


@given(bound=st.floats(-1e9, 1e9), value=st.floats(-1e9, 1e9), upper=st.booleans())
def test_the_excess_is_above_zero_exactly_when_the_constraint_is_broken(bound, value, upper):
    excess = Constraint("gmacs", upper, bound).excess({"gmacs": value})
    broken = value > bound if upper else value < bound
    # Differences below the smallest number vanish.
    assert (excess > 0) == broken or abs(value - bound) < 1e-290


def test_every_recipe_is_a_study():
    recipes = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        assert load(recipe).dump()["name"]
