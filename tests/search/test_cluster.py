"""A study on a cluster of three nodes, one of which is killed in the middle."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState as OptunaState

from analysis.record import TrialState
from search.ray_adapter.cluster import connect
from search.store import Store
from search.study import load
from spaces.errors import CutShort

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "faults"))

from services import Nodes  # noqa: E402

# Which trials there are and how they end follows from the seed alone: designs are drawn at random, what breaks the
# constraint is known before training, and of 20 trials a rung with the factor 21 stops none. So the counts of the
# states, and each trial's figures, can be compared with those of an undisturbed run.
STUDY = """
name: {name}
base: headway::gfl_nano
data: {{digits: {{train: 24, val: 8}}, size: [64, 64]}}
space: {{slimhead: {{}}, dcn: {{placement: {{max_size: 1}}}}}}
constraints: ["gmacs <= {gmacs}"]
budget: {{trials: 20, epochs: 3}}
rungs: {{first: 1, factor: 21}}
sampler: {{name: random}}
resources: {{cpus: 1, gpus: {gpus}}}
speed: {{seconds: 0.3, pairs: 3}}
"""


class Cluster:
    """Three nodes of one CPU and one logical accelerator, and a study on them."""

    def __init__(self, folder, text, trainer, **behaviour):
        # A short path: Ray's sockets lie below it. No other cluster of this machine is found from there.
        self.temporary = Path(tempfile.mkdtemp(prefix="hc"))
        self.file, self.root, self.log = folder / "study.yaml", folder / "studies", folder / "driver.log"
        self.file.write_text(text)
        self.study = load(self.file)
        self.folder, self.trainer = self.root / self.study.name, trainer
        paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "RAY_TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
            "ANALYTIC": json.dumps(behaviour),
        }
        self.nodes = Nodes(["1:1"] * 3, self.environment, folder / "nodes.log")

    def start(self, *, address=True):
        command = [sys.executable, str(HERE.parent / "faults/drive.py"), str(self.file), str(self.root), self.trainer]
        with self.log.open("a") as log:
            return subprocess.Popen(
                [*command, *([self.nodes.address] if address else [])], env=self.environment, stdout=log, stderr=log
            )

    def records(self):
        try:
            return Store.read(self.folder, self.study).records()
        except Exception:
            return []  # its tables are being made

    def kill_a_node(self, process, seconds=500):
        """Waits until a trial on a node that is not the head's is between its first and last epoch, and kills it.

        Returns:
            The node's id and the numbers of the trials that it took along.
        """
        deadline = time.monotonic() + seconds
        while True:
            assert process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            running = [record for record in self.records() if record.state is TrialState.RUNNING]
            ended = sum(record.state.finished for record in self.records())
            for number, node in enumerate(self.nodes.ids[1:], 1):
                there = [record for record in running if record.attrs.get("placed", [None])[-1] == node]
                if ended >= 6 and any(len(record.curve) == 1 for record in there):
                    self.nodes.tell(f"kill {number}")
                    return node, [record.number for record in there]
            time.sleep(0.05)

    def close(self):
        self.nodes.close()
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture
def make(request, tmp_path):
    def start(*arguments, **behaviour):
        cluster = Cluster(tmp_path, *arguments, **behaviour)
        request.addfinalizer(cluster.close)
        return cluster

    return start


def check(cluster, node, taken):
    """What holds of a study that lost a node."""
    records = cluster.records()
    trained = [record for record in records if record.state is TrialState.COMPLETE]
    assert {record.state for record in records} <= {TrialState.COMPLETE, TrialState.INFEASIBLE}
    assert len(taken) == 1  # a node has room for one
    assert len(trained) == 20
    used = Counter(place for record in records for place in record.attrs["placed"])
    assert set(used) == set(cluster.nodes.ids), used
    for record in records:  # what the study itself keeps, against what Ray told the trainer
        assert {name.rpartition("/")[2] for name in record.attrs["nodes"]} == {id[:8] for id in record.attrs["placed"]}
    continued = [record for record in trained if len(set(record.attrs["placed"])) > 1]
    assert [record.number for record in continued] == taken
    for record in continued:
        assert record.attrs["placed"][0] == node
        assert record.attrs["placed"][-1] != node
    for record in trained:
        assert [epoch.epoch for epoch in record.curve] == [1, 2, 3]
    in_optuna = Store.read(cluster.folder, cluster.study)._optuna.trials
    assert not [trial for trial in in_optuna if trial.state is OptunaState.RUNNING]
    assert "Traceback" not in cluster.log.read_text()
    return records, continued, used


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_node_is_lost_while_detectors_train(make, tmp_path):
    """Trains on CPUs, as no logical accelerator can be computed on."""
    cluster = make(STUDY.format(name="clustered", gmacs=0.0205, gpus=0), "placed_trainer:detector")
    began = time.monotonic()
    process = cluster.start()
    node, taken = cluster.kill_a_node(process)
    assert process.wait(timeout=1200) == 0, cluster.log.read_text()[-3000:]
    seconds = time.monotonic() - began
    records, continued, used = check(cluster, node, taken)
    assert any(record.attrs.get("resumed") for record in continued)
    cluster.nodes.close()

    # The same study, undisturbed, on this machine alone.
    cluster.root, cluster.folder = tmp_path / "undisturbed", tmp_path / "undisturbed/clustered"
    assert cluster.start(address=False).wait(timeout=1200) == 0, cluster.log.read_text()[-3000:]
    undisturbed = cluster.records()
    states = Counter(record.state.value for record in records)
    print(
        f"\n{dict(states)}, undisturbed {dict(Counter(record.state.value for record in undisturbed))}; {seconds:.0f} s;"
    )
    print(f"starts of trials by node {list(used.values())}; {len(continued)} went on elsewhere")
    assert states == Counter(record.state.value for record in undisturbed)
    assert states["INFEASIBLE"] > 0
    for here, there in zip(records, undisturbed, strict=True):
        assert here.knobs == there.knobs
        # A training that went on from its checkpoint gives what a whole one gives, to the last bit.
        assert [epoch.metrics.get("bbox_mAP") for epoch in here.curve] == [
            epoch.metrics.get("bbox_mAP") for epoch in there.curve
        ], here.number


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_node_is_lost_with_its_accelerator(make):
    """Each trial takes an accelerator, so one runs on each node; figures are in closed form."""
    text = STUDY.format(name="accelerated", gmacs=9, gpus=1)
    cluster = make(text, "placed_trainer:analytic", epoch_seconds=2)
    process = cluster.start()
    node, taken = cluster.kill_a_node(process)
    assert process.wait(timeout=800) == 0, cluster.log.read_text()[-3000:]
    records, _, _ = check(cluster, node, taken)
    infeasible = [record for record in records if record.state is TrialState.INFEASIBLE]
    assert infeasible
    assert all(record.metrics["gmacs"] > 9 for record in infeasible)
    for record in records:
        if record.state is TrialState.COMPLETE:
            log = cluster.folder / record.folder / "trained.log"
            trained = [int(line) for line in log.read_text().split()]
            # The epoch that was under way may have been trained on the lost node to its end, and is not lost then.
            assert trained == [1, 2, 3], record.number


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_on_this_machine_joins_no_cluster_that_happens_to_be_there(tmp_path):
    """Also none that was there: Ray keeps the address of the last one in a file."""
    temporary = Path(tempfile.mkdtemp(prefix="hc"))
    paths = [str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "RAY_TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.pop("RAY_ADDRESS", None)
    nodes = Nodes(["1"], environment, tmp_path / "nodes.log")
    program = (
        "from search.ray_adapter.cluster import connect; connect(None); "
        "import ray; print([n['NodeID'] for n in ray.nodes()])"
    )

    def own():
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=150, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    try:
        assert nodes.ids[0] not in own()
        nodes.kill()
        assert nodes.ids[0] not in own()
    finally:
        nodes.close()
        shutil.rmtree(temporary, ignore_errors=True)


def test_ray_that_does_not_start_is_told_in_one_message(monkeypatch):
    import ray

    def too_busy(**options):
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", too_busy)
    with pytest.raises(
        CutShort, match=r"^Ray does not start on this machine: The current node timed out during startup"
    ):
        connect(None)
