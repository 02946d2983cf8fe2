"""The speed lane: how a cluster is divided, who waits for what, and a study on three nodes."""

import itertools
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.record import TrialState
from search.conductor import Pause
from search.ray_adapter.desk import Desk
from search.ray_adapter.lanes import Node, placement, plan, renewed
from search.store import Store
from search.study import ResourcesSection, load
from spaces.errors import HeadwayError, UserError
from trainers.contract import DataRequest, SpeedRequest, SweepRequest, TrialRequest, WarmRequest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "faults"))

from services import Nodes  # noqa: E402

FIGURES = runpy.run_path(str(HERE / "analytic_trainer.py"))["figures"]
DATA = DataRequest(
    train_annotations="/t.json", train_images="/t", val_annotations="/v.json", val_images="/v", classes=("a",),
    size=(96, 96),
)  # fmt: skip
AUTO = ResourcesSection()


def node(name, cpus, gpus=0, speed=False):
    return Node(name, name, cpus, gpus, speed)


def test_without_a_speed_node_latency_is_measured_beside_trainings_and_the_run_says_so():
    made = plan([node("a", 2), node("b", 2)], AUTO, "auto")
    assert made.lane is None
    assert made.share.concurrent == made.under_way == 4
    assert made.speed_device == "cpu"
    assert "beside 3 other trainings" in made.told
    assert "--resources='{\"speed\": 1}' measures alone" in made.told


def test_a_cpu_is_measured_with_the_whole_node_and_trainings_keep_off():
    made = plan([node("s", 4, speed=True), node("a", 2), node("b", 3)], AUTO, "auto")
    assert made.speed_device == "cpu"
    assert (made.share.cpus, made.share.concurrent, made.under_way) == (1, 5, 6)
    took = placement(made.share, made.lane, "speed")
    assert took == {"bundles": [{"CPU": 4.0, "GPU": 0.0, "speed": 1.0}], "selectors": None}
    assert placement(made.share, made.lane, "away")["selectors"] == [{"ray.io/node-id": "!s"}]


def test_a_gpu_is_measured_whole_and_trainings_use_the_others_of_its_node():
    made = plan([node("s", 16, 4, speed=True), node("b", 16, 4)], AUTO, "auto")
    assert (made.share.gpus, made.share.concurrent, made.lane.away, made.lane.beside) == (1, 7, 4, 3)
    assert placement(made.share, made.lane, "speed")["bundles"][0]["GPU"] == 1.0
    assert placement(made.share, made.lane, "beside")["selectors"] == [{"ray.io/node-id": "s"}]


def test_gpus_train_and_a_machine_without_one_is_timed():
    made = plan([node("s", 4, speed=True), node("b", 16, 2)], AUTO, "auto")
    assert (made.speed_device, made.share.device, made.share.concurrent) == ("cpu", "cuda", 2)
    assert made.lane.cpus == 4


@pytest.mark.parametrize(
    "nodes",
    [
        [node("s", 8, speed=True)],  # a CPU that also trains
        [node("s", 8, 1, speed=True)],  # the only GPU
        [node("s", 8, 1, speed=True), node("b", 8)],  # trainings need a GPU
    ],
)
def test_a_speed_node_that_alone_can_train_is_shared_and_the_run_says_so(nodes):
    made = plan(nodes, AUTO, "auto")
    assert made.lane is None
    assert "no node but the speed node s can hold a trial" in made.told


def test_a_gpu_that_the_speed_node_has_not():
    with pytest.raises(UserError, match="speed node s has no GPU, but got cuda"):
        plan([node("s", 4, speed=True), node("b", 4, 1)], AUTO, "cuda")


def test_of_several_speed_nodes_the_first_by_id():
    made = plan([node("t", 1, speed=True), node("s", 1, speed=True), node("a", 1)], AUTO, "auto")
    assert made.lane.node.id == "s"
    assert "2 speed nodes" in made.told
    assert placement(made.share, made.lane, "speed")["selectors"] == [{"ray.io/node-id": "s"}]


def test_a_speed_node_that_comes_back_under_another_id():
    lane = plan([node("s", 4, speed=True), node("a", 1)], AUTO, "auto").lane
    assert renewed(lane, [node("s", 4, speed=True)]) is lane
    assert renewed(lane, [node("a", 1)]) is None
    again = renewed(lane, [node("a", 1), node("u", 2, speed=True)])
    assert (again.node.id, again.cpus) == ("u", 2)


def request(number, **other):
    speed = other.pop("speed", SpeedRequest(size=(96, 96), lease="/lock"))
    knobs = {} if number == 0 else {"slimhead.levels": [0]}
    return TrialRequest(number=number, base="b", knobs=knobs, data=DATA, folder="/f", epochs=2, speed=speed, **other)


class Queue:
    """A director with a list of requests."""

    def __init__(self, *requests, concurrent):
        self.left, self.concurrent = list(requests), concurrent
        self.known, self.running, self.halted, self.seconds = {r.number: r for r in requests}, set(), None, {}

    def next(self):
        if len(self.running) >= self.concurrent:
            return Pause.WAIT
        if not self.left or self.halted:
            return Pause.WAIT if self.running else Pause.FINISHED
        self.running.add(self.left[0].number)
        return self.left.pop(0)

    def postponed(self, number, seconds=0.0):
        self.running.remove(number)
        self.left.insert(0, self.known[number])
        self.seconds[number] = seconds


def desk(*requests, nodes=None, clock=lambda: 0.0, concurrent=None):
    nodes = nodes or [node("s", 2, speed=True), node("a", 1), node("b", 1)]
    made = plan(nodes, AUTO, "auto")
    said = []
    director = Queue(*requests, concurrent=concurrent or made.under_way)
    here = Desk(director, made.share, made.lane, lambda: nodes, said.append, clock=clock)
    return here, director, said


def begun(here):
    """Begins the next start; its Ray trial is called by number and place."""
    request, place = here.next()
    here.begin(f"{request.number} {place}", request, place)
    return request.number, place


def timed(here, director, number):
    """Ends a measurement: the trial is to train, and its next request does not ask to time."""
    director.known[number] = replace(director.known[number], speed=None)
    here.leave(f"{number} speed", "train", 5.0)


def test_timing_works_ahead_while_trainings_fill_their_places():
    here, director, _ = desk(*(request(number) for number in range(1, 7)))
    assert begun(here) == (1, "speed")
    # Two more are under way, but one measures at a time.
    assert here.next() is Pause.WAIT
    assert here.snapshot()["lanes"]["speed"] == {
        "running": [1], "waiting": [2, 3], "places": 1, "node": "s", "there": True,
    }  # fmt: skip
    timed(here, director, 1)
    assert {begun(here), begun(here)} == {(1, "away"), (2, "speed")}
    timed(here, director, 2)
    assert {begun(here), begun(here)} == {(2, "away"), (3, "speed")}
    timed(here, director, 3)
    # Both training places are taken: the third is timed and waits, and nothing further is begun.
    assert here.next() is Pause.WAIT
    assert here.snapshot()["lanes"]["train"] == {"running": [1, 2], "waiting": [3], "places": 2}
    assert director.seconds == {1: 5.0, 2: 5.0, 3: 5.0}
    here.ended("1 away")
    director.running.remove(1)
    assert {begun(here), begun(here)} == {(3, "away"), (4, "speed")}
    assert here.snapshot()["running"] == [2, 3, 4]


def test_what_is_measured_takes_the_device_and_the_lease_of_the_lane():
    sweep = SweepRequest(settings={0: {}}, speed=SpeedRequest(size=(96, 96), lease="/lock"))
    here, _, _ = desk(request(1, threads=8, device="cuda", sweep=sweep))
    found, _ = here.next()
    assert (found.lane, found.device, found.threads) == ("speed", "cpu", 2)
    assert found.speed.lease is None
    assert found.sweep.speed.lease is None


def test_a_trial_that_trains_before_it_is_timed_starts_in_the_lane_of_trainings():
    warm = request(0, warm=WarmRequest(folder="/w", epochs=1))
    learns = replace(request(1), knobs={"pod.mode": "decompose", "pod.stages": [3], "pod.towers": False})
    for first in (warm, learns, request(2, speed=None)):
        here, _, _ = desk(first)
        found, place = here.next()
        assert (found.lane, place) == ("train", "away")
        here.begin("x", found, place)
        here.leave("x", "speed")
        assert here.next()[1] == "speed"


def test_after_a_halt_what_waits_goes_back_and_is_not_begun():
    here, director, _ = desk(*(request(number) for number in range(1, 5)))
    begun(here)
    here.next()
    director.halted = "the disk is full"
    assert here.next() is Pause.WAIT
    assert director.running == {1}
    here.ended("1 speed")
    director.running.clear()
    assert here.next() is Pause.FINISHED


def test_while_the_speed_node_is_gone_trainings_go_on_and_then_the_run_ends():
    now = [0.0]
    nodes = [node("s", 2, speed=True), node("a", 1), node("b", 1)]
    here, _, said = desk(request(1, speed=None), request(2), nodes=nodes, clock=lambda: now[0])
    gone = nodes.pop(0)
    now[0] = 10.0
    assert begun(here) == (1, "away")
    assert here.next() is Pause.WAIT
    assert said == ["latency: the speed node s is gone; trials that need it wait for one"]
    now[0] = 400.0  # a training still runs
    assert here.next() is Pause.WAIT
    nodes.append(replace(gone, id="u", name="u"))
    now[0] = 410.0
    assert begun(here) == (2, "speed")
    assert said[-1] == "latency: measured on the speed node u from now on"
    here.leave("2 speed", "speed")
    here.ended("1 away")
    nodes.pop()
    now[0] = 420.0
    assert here.next() is Pause.WAIT
    now[0] = 800.0
    with pytest.raises(HeadwayError, match="speed node u is gone, and no other has come for 5 minutes"):
        here.next()


STUDY = """
name: lanes
base: headway::gfl_tiny
data: {digits: {train: 8, val: 4}, size: [96, 96]}
designs:
  - {name: a, knobs: {slimhead: {levels: [0], ratio: 0.5}}}
  - {name: b, knobs: {slimhead: {levels: [0, 1], ratio: 0.5}}}
  - {name: c, knobs: {dcn: {placement: [cls.0]}}}
  - {name: d, knobs: {dcn: {placement: [cls.0, reg.0]}}}
budget: {epochs: 2}
rungs: null
resources: {cpus: 1}
"""


class Cluster:
    """A head, a speed node and two others, and a study on them."""

    def __init__(self, folder, **behaviour):
        self.temporary = Path(tempfile.mkdtemp(prefix="hl"))  # short, as Ray's sockets lie below it
        self.file, self.noted, self.log = folder / "lanes.yaml", folder / "noted.jsonl", folder / "driver.log"
        self.root, self.folder = folder / "studies", folder / "studies/lanes"
        self.file.write_text(STUDY)
        paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "RAY_TMPDIR": str(self.temporary),
            "LANE_LOG": str(self.noted),
            "ANALYTIC": json.dumps(behaviour),
        }
        self.nodes = Nodes(["0", "1:0:speed", "1", "1"], self.environment, folder / "nodes.log")

    def start(self):
        command = [sys.executable, str(HERE.parent / "faults/drive.py"), str(self.file), str(self.root)]
        with self.log.open("a") as log:
            return subprocess.Popen(
                [*command, "lane_trainer:train", self.nodes.address], env=self.environment, stdout=log, stderr=log
            )

    def ended(self, process):
        assert process.wait(timeout=400) == 0, self.log.read_text()[-3000:]
        return Store.read(self.folder, load(self.file)).records()

    def lines(self):
        return [json.loads(line) for line in self.noted.open()] if self.noted.exists() else []

    def wait_for(self, process, what):
        """Waits for a line of the trainer's."""
        deadline = time.monotonic() + 300
        while not any(what(line) for line in self.lines()):
            assert process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def trained(self, number):
        return [int(line) for line in (self.folder / f"trials/{number:04d}/trained.log").read_text().split()]

    def close(self):
        self.nodes.close()
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture
def make(request, tmp_path):
    def start(**behaviour):
        cluster = Cluster(tmp_path, **behaviour)
        request.addfinalizer(cluster.close)
        return cluster

    return start


def check(cluster, records, speed_nodes):
    """What holds of every such study; gives the measurements and the epochs."""
    assert [record.state for record in records] == [TrialState.COMPLETE] * 5
    timed = [line for line in cluster.lines() if line["phase"] == "timed"]
    epochs = [line for line in cluster.lines() if line["phase"] == "epoch"]
    assert {line["number"] for line in timed} == set(range(5))
    assert {line["node"] for line in timed} <= set(speed_nodes)
    assert not {line["node"] for line in epochs} & set(speed_nodes)
    # One measures at a time.
    timed.sort(key=lambda line: line["began"])
    assert all(one["ended"] <= other["began"] for one, other in itertools.pairwise(timed))
    for record in records:
        ratio, accuracy = FIGURES(record.knobs)
        assert (record.metrics["latency_ratio"], record.metrics["latency_ms"]) == (ratio, pytest.approx(20.0 * ratio))
        assert record.metrics["bbox_mAP"] == pytest.approx(accuracy)
        assert cluster.trained(record.number) == [1, 2]
        assert [epoch.epoch for epoch in record.curve] == [1, 2]
    assert "Traceback" not in cluster.log.read_text()
    return timed, epochs


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_node_measures_while_others_train(make):
    cluster = make(epoch_seconds=2, timing_seconds=1, die=2)
    timed, epochs = check(cluster, cluster.ended(cluster.start()), cluster.nodes.ids[1:2])
    assert "latency: measured alone on the CPU of the speed node" in cluster.log.read_text()
    assert len(timed) == 5  # not even the trial whose process was killed in training is timed again
    assert {line["node"] for line in epochs} == set(cluster.nodes.ids[2:])
    beside = [one for one in timed for other in epochs if other["began"] < one["ended"] < other["ended"]]
    assert beside
    leases = [event for event in map(json.loads, (cluster.folder / "events.jsonl").open()) if event["event"] == "lease"]
    assert [event["held"] for event in leases] == [True, False] * 5
    assert {event["trial"] for event in leases} == set(range(5))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_and_the_speed_node_are_killed(make):
    cluster = make(epoch_seconds=1, timing_seconds=1)
    process = cluster.start()
    cluster.wait_for(process, lambda line: line["number"] == 1 and line["phase"] == "timed")
    process.kill()
    process.wait()
    process = cluster.start()
    cluster.wait_for(process, lambda line: line["number"] == 2 and line["phase"] == "timed")
    cluster.nodes.tell("kill 1")
    another = cluster.nodes.tell("add 1:0:speed")
    records = cluster.ended(process)
    timed, _ = check(cluster, records, [cluster.nodes.ids[1], another])
    assert {line["node"] for line in timed} == {cluster.nodes.ids[1], another}
