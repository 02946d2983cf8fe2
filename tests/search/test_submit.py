"""Jobs on a cluster: what is shipped, and a real head with a token."""

import contextlib
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from ray._private.utils import check_version_info

from search import shipping
from search.folder import studies_root
from search.ray_adapter.cluster import connect, explain
from search.ray_adapter.jobs import check_address
from search.ray_adapter.preflight import _compare, _probe
from search.study import load
from spaces.errors import UserError
from trainers.config import load_base

ROOT = Path(__file__).parents[2]
STUDY = """
name: tiny
base: {base}
data: {{digits: {{train: 8, val: 4}}, size: [96, 96]}}
space: {{slimhead: {{}}}}
budget: {{trials: 2, epochs: 1}}
rungs: null
sampler: {{name: random}}
weights: {{from: {weights}}}
resources: {{cpus: 1}}
speed: {{pairs: 3, seconds: 0.2}}
storage: "postgresql://user:secret@db/headway"
"""


def study(folder, base="headway::gfl_tiny", weights="scratch"):
    file = folder / "mine.yaml"
    file.write_text(STUDY.format(base=base, weights=weights))
    return load(file)


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "packed"
    folder.mkdir()
    return folder


def test_packed_code_runs_by_itself(tmp_path, out):
    shipping.pack(study(tmp_path), Path("/shared/studies"), out)
    assert (out / "pyproject.toml").is_file()
    assert not list(out.rglob("__pycache__"))
    assert load(out / "study.yaml") == study(tmp_path)
    command = [sys.executable, "-c", "import search.study, spaces.space; print(search.study.__file__)"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(told.strip()) == out / "search/study/__init__.py"


def test_files_of_this_machine_go_along(tmp_path, out):
    (tmp_path / "part.py").write_text("_base_ = './whole.py'\nmodel = dict(bbox_head=dict(stacked_convs=3))\n")
    (tmp_path / "whole.py").write_text((ROOT / "trainers/bases/gfl_tiny.py").read_text())
    (tmp_path / "w.pth").write_bytes(b"weights")
    given = study(tmp_path, base="part.py", weights="w.pth")
    cargo = shipping.pack(given, Path("/shared/studies"), out)
    config, weights = cargo.files
    assert cargo.study.base == f"/shared/studies/.files/{config}"
    assert cargo.study.weights.from_ == f"/shared/studies/.files/{weights}"
    assert (out / "files" / weights).read_bytes() == b"weights"
    (tmp_path / "whole.py").unlink()
    assert load_base(str(out / "files" / config)).model.bbox_head.stacked_convs == 3
    commands = shipping.command(Path("/shared/studies"), cargo, extend=True, restarts=2)
    assert commands[1] == ("cp", f"files/{config}", f"files/{weights}", "/shared/studies/.files")
    assert commands[2][-3:] == ["--extend", "--restarts", "2"]
    assert "secret" not in str(commands)


def test_what_is_packed_twice_has_the_same_paths(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    told = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        told.append(shipping.pack(study(tmp_path, weights="w.pth"), Path("/shared/studies"), tmp_path / name).study)
    assert told[0] == told[1]


def test_what_lies_with_the_studies_stays_there(tmp_path, out):
    (tmp_path / "w.pth").write_bytes(b"weights")
    cargo = shipping.pack(study(tmp_path, weights="w.pth"), tmp_path, out)
    assert cargo.files == ()
    assert cargo.study.weights.from_ == str(tmp_path / "w.pth")


def test_own_modules(tmp_path, out):
    own = tmp_path / "own"
    with pytest.raises(UserError, match=r"--working-dir: must be a folder, but there is none at .*own"):
        shipping.pack(study(tmp_path), Path("/s"), out, own=own)
    (own / "my_heads").mkdir(parents=True)
    (own / "my_heads/__init__.py").write_text("")
    shipping.pack(study(tmp_path), Path("/s"), out, own=own)
    assert (out / "my_heads/__init__.py").is_file()
    (own / "search").mkdir()
    with pytest.raises(UserError, match="must not hold search"):
        shipping.pack(study(tmp_path), Path("/s"), out, own=own)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("10.0.0.1:8265", "did you mean http://10.0.0.1:8265"),
        ("ray://10.0.0.1:10001", "like http://HOST:8265"),
        ("auto", "like http://HOST:8265"),
        ("http://", "like http://HOST:8265"),
    ],
)
def test_addresses(address, says):
    with pytest.raises(UserError, match=says):
        check_address(address)


def test_studies_on_an_object_store(monkeypatch):
    with pytest.raises(UserError, match=r"--studies: must be a folder, but got an address \(s3://...\)"):
        studies_root("s3://key:secret@bucket/studies")
    monkeypatch.setenv("HEADWAY_STUDIES", "gs://bucket/studies")
    with pytest.raises(UserError, match=r"gs://"):
        studies_root()


def test_another_version_of_ray_is_told_whole():
    with pytest.raises(RuntimeError) as caught:
        check_version_info({"ray_version": "2.9.0", "python_version": "3.9.1"}, "10.0.0.2")
    told = explain(caught.value)
    assert told.startswith("another version of Ray or Python. The cluster was started with: Ray: 2.9.0 Python: 3.9.1")
    assert "\n" not in told


def test_a_port_where_nothing_and_where_something_else_answers():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"{address} gives: .*refused"):
            connect(address)
        held.listen()
        began = time.monotonic()
        with pytest.raises(UserError, match="no Ray head answers there"):
            connect(address)
        assert time.monotonic() - began < 60


def wanted(folder, **more):
    (folder / "marker").write_text("abc")
    nothing = {"files": {}, "folders": {}, "digits": None, "packages": ("search",), "libraries": ("ray", "no-such")}
    return {"marker": str(folder / "marker"), "text": "abc", **nothing, **more}


def test_what_a_node_lacks(tmp_path):
    look = _probe()
    here = look(wanted(tmp_path))
    assert here["lacks"] == []
    assert _compare(here, here) == []
    (tmp_path / "val.json").write_text("{}")
    files = {"data.train": (str(tmp_path / "train.json"), 9), "data.val": (str(tmp_path / "val.json"), 9)}
    there = look(wanted(tmp_path, text="other", files=files, folders={"images": str(tmp_path / "images")}))
    assert there["lacks"] == [
        f"does not share the study's folder {tmp_path} (it is another folder of the same name)",
        f"does not see data.train: {tmp_path / 'train.json'}",
        f"has another file as data.val: {tmp_path / 'val.json'}",
        f"does not see images: {tmp_path / 'images'}",
    ]
    versions = {"ray": "2.9.0", "no-such": None}
    assert _compare(here, {**here, "code": "0", "where": "/old", "libraries": versions}) == [
        f"has another version of headway, in /old; this one is in {ROOT}",
        f"has ray 2.9.0, but {here['libraries']['ray']} is needed",
    ]
    absent = look(wanted(tmp_path, packages=("no_such_package",)))
    assert _compare(here, absent) == ["cannot import headway's packages (there is no package no_such_package)"]


def test_a_node_writes_the_embedded_data_itself(tmp_path):
    digits = {"root": str(tmp_path / "cache"), "train": 2, "val": 1, "size": (64, 64), "seed": 0}
    assert _probe()(wanted(tmp_path, digits=digits))["lacks"] == []
    assert len(list(tmp_path.glob("cache/*/train/*.png"))) == 2
    (tmp_path / "file").write_text("")
    (lack,) = _probe()(wanted(tmp_path, digits={**digits, "root": str(tmp_path / "file")}))["lacks"]
    assert lack.startswith("cannot write the embedded data set: digits cache: the folder must be writable")


TWO_NODES = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from search.ray_adapter.cluster import connect
from search.ray_adapter.preflight import Needs, check_nodes
from spaces.errors import UserError

folder = Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000})
cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
connect(cluster.address)
print(check_nodes(Needs(folder)))
try:
    check_nodes(Needs(folder, {"weights.from": "/none.pth"}))
except UserError as error:
    print(error)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_every_node_is_asked(tmp_path):
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TWO_NODES, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    count, *told = done.stdout.splitlines()
    assert count == "2"
    assert [line.partition(": ")[2] for line in told[1:]] == ["does not see weights.from: /none.pth"] * 2
    assert list(tmp_path.iterdir()) == []  # the markers are gone


def free_ports(count):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


class Head:
    """A head of Ray's with token authentication."""

    def __init__(self, folder):
        self.folder = folder
        self.start()

    def start(self):
        self.port, self.dashboard, agent, client = free_ports(4)
        self.url, self.token = f"http://127.0.0.1:{self.dashboard}", secrets.token_hex(32)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.environment.pop("PYTHONPATH", None)
        options = {
            "port": self.port,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": self.dashboard,
            "dashboard-agent-listen-port": agent,
            "ray-client-server-port": client,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "num-cpus": 2,
            "object-store-memory": 200_000_000,
            "temp-dir": self.folder,
        }
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
        command += [f"--{name}={value}" for name, value in options.items()]
        self.log = self.folder / "head.log"
        environment = {**self.environment, "RAY_AUTH_MODE": "token"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def wait(self):
        deadline = time.monotonic() + 600
        while "This command will now block" not in self.log.read_text():
            if "timed out during startup" in self.log.read_text():  # Ray allows half a minute, on a busy machine too
                self.process.wait(timeout=60)
                self.start()
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.5)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{self.url}/api/version", timeout=30)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_clean_checkout_against_a_head_with_a_token(tmp_path, tmp_path_factory):
    short = tmp_path_factory.mktemp("r")  # sockets have short names
    head = Head(short)
    try:
        checkout, studies = tmp_path / "checkout", tmp_path / "studies"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(checkout)], check=True)
        file = tmp_path / "tiny.yaml"
        file.write_text(STUDY.format(base="headway::gfl_tiny", weights="scratch").replace("storage:", "# storage:"))
        head.wait()

        def headway(*words, **more):
            command = [sys.executable, "-m", "search.cli", *map(str, words)]
            environment = {**head.environment, **more}
            return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)

        def submit(*words, address=head.url, **more):
            return headway("submit", file, "--address", address, "--studies", studies, *words, **more)

        done = submit("--json")
        assert done.returncode == 0, done.stderr[-3000:]
        told = json.loads(done.stdout)
        assert (told["status"], told["exit_status"], told["study"]) == ("SUCCEEDED", 0, "tiny")
        assert "2 trials: 2 COMPLETE" in done.stderr  # the job's own log
        counted = json.loads(headway("status", "tiny", "--studies", studies, "--json").stdout)
        assert counted["states"]["COMPLETE"] == 2

        left = submit("--detach", "--json")
        assert left.returncode == 0, left.stderr
        follow = [str(Path(sys.executable).with_name("ray")), *shlex.split(json.loads(left.stdout)["follow"])[1:]]
        environment = {**head.environment, "RAY_AUTH_MODE": "token"}
        log = subprocess.run(follow, env=environment, capture_output=True, text=True, check=True)
        assert "2 trials: 2 COMPLETE" in log.stdout + log.stderr

        for expected, wrong in (
            ("the token is refused", submit(RAY_AUTH_TOKEN=secrets.token_hex(32))),
            ("wants a token and none was found", submit(RAY_AUTH_TOKEN="", HOME=str(tmp_path))),
            ("--working-dir: must be a folder, but there is none", submit("--working-dir", tmp_path / "none")),
            ("nothing answers there", submit(address=f"http://127.0.0.1:{free_ports(1)[0]}")),
            ("no web server answers there", submit(address=f"http://127.0.0.1:{head.port}")),
            ("--studies: must be an absolute folder", submit("--studies", "studies")),
        ):
            assert wrong.returncode == 2
            assert expected in wrong.stderr
            assert wrong.stderr.count("\n") == 1, wrong.stderr  # one message, nothing else

        run = ("run", file, "--studies", studies, "--address", f"127.0.0.1:{head.port}")
        for expected, wrong in (
            ("it refuses the token", headway(*run, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))),
            ("set RAY_AUTH_MODE=token", headway(*run)),
        ):
            assert (wrong.returncode, expected in wrong.stderr) == (2, True), wrong.stderr
        again = headway(*run, "--json", RAY_AUTH_MODE="token")
        assert again.returncode == 0, again.stderr[-3000:]
        assert json.loads(again.stdout)["states"]["COMPLETE"] == 2
    finally:
        head.stop()
