"""What stands in deploy/, checked as far as it can be without a cluster, a cloud or a container."""

import copy
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML

from search.cli import _parser

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = (ROOT / "pyproject.toml").read_text()
SCRIPTS = [DEPLOY / "setup.sh", DEPLOY / "slurm.sh", ROOT / ".ci/run"]
# Fields of KubeRay 1.6's ray.io/v1 (its API reference): what is not one of them, the API server drops or refuses.
RAY_JOB = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "rayClusterSpec", "runtimeEnvYAML",
    "shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend",
    "ttlSecondsAfterFinished",
}  # fmt: skip
RAY_CLUSTER = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs",
}  # fmt: skip
WORKERS = {
    "groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas",
    "scaleStrategy", "suspend", "template",
}  # fmt: skip


def tool(name):
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def documents(name):
    return [json.loads(json.dumps(found)) for found in YAML(typ="safe", pure=True).load_all(DEPLOY / name)]


def ray_start_options():
    """Read from the source: importing Ray's command takes half a minute."""
    source = (Path(ray.__file__).parent / "scripts/scripts.py").read_text()
    before = source[: source.index("\ndef start(")]
    return set(re.findall(r'"--([\w-]+)"', before[before.rindex("@cli.command") :]))


def started(config):
    """The options of every ``ray start`` of a launcher's file."""
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    found = re.findall(r"ray start ([^;&]*)", ";".join(commands))
    assert len(found) == 2
    return [shlex.split(text) for text in found]


def runs(words):
    """Reads ``headway ...`` or ``python -m search.cli ...`` with headway's own parser."""
    words = words[words.index("search.cli") + 1 :] if "search.cli" in words else words[words.index("headway") + 1 :]
    return _parser().parse_args(words)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    checked = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", ["ray-onprem.yaml", "ray-aws.yaml"])
def test_ray_takes_the_cluster_file(name):
    (given,) = documents(name)
    config = prepare_config(copy.deepcopy(given))
    validate_config(config)
    for words in started(given):
        assert {word.partition("=")[0].lstrip("-") for word in words} <= ray_start_options()
    workers = sum(kind.get("min_workers", 0) for kind in config["available_node_types"].values())
    assert workers == 2
    broken = copy.deepcopy(config)
    broken["available_node_types"]["other"] = {"resources": {"GPU": -1}, "node_config": {}}
    with pytest.raises(Exception, match="-1 is less than the minimum"):
        validate_config(broken)


def test_one_speed_node_on_aws():
    (config,) = documents("ray-aws.yaml")
    speedy = {name: kind for name, kind in config["available_node_types"].items() if "speed" in kind["resources"]}
    assert list(speedy) == ["speed"]
    assert speedy["speed"]["max_workers"] == 1
    assert "InstanceMarketOptions" not in speedy["speed"]["node_config"]  # a spot instance could be another machine
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_the_last_machine_of_ones_own_is_the_speed_node(tmp_path):
    (config,) = documents("ray-onprem.yaml")
    last = config["provider"]["worker_ips"][-1]
    chosen = re.search(r"case .*? esac", config["worker_start_ray_commands"][-1])[0]
    for address, own in ((last, '{"speed": 1}'), (f"{last}0", "{}"), ("10.0.0.11", "{}")):
        (tmp_path / "hostname").write_text(f"#!/bin/sh\necho '{address} 172.17.0.1 '\n")
        (tmp_path / "hostname").chmod(0o755)
        script = f'PATH={tmp_path}:$PATH; {chosen}; printf %s "$own"'
        assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout == own


def test_the_ray_job():
    claim, job = documents("kuberay-rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) <= RAY_JOB
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) <= RAY_CLUSTER
    assert f"ray[default,tune]=={cluster['rayVersion']}" in PROJECT
    assert cluster["authOptions"]["mode"] == "token"
    options = runs(shlex.split(job["spec"]["entrypoint"]))
    assert (options.command, options.address) == ("run", "auto")
    assert job["spec"]["backoffLimit"] > 0
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    for group in (head, *workers):
        assert set(group) <= WORKERS | {"headService", "serviceType", "enableIngress"}
        assert set(group["rayStartParams"]) <= ray_start_options()
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            resources = container["resources"]
            assert resources["requests"] == resources["limits"]  # else a neighbour may take what a trial counts on
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            assert Path(options.studies).is_relative_to("/shared")
            assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert Path(options.study).is_relative_to("/study")
    assert "/study" in {mount["mountPath"] for mount in head["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in workers:
        assert set(group) <= WORKERS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    (speedy,) = [group for group in workers if "resources" in group["rayStartParams"]]
    assert speedy["replicas"] == 1
    # KubeRay puts the value into a shell's command as it stands.
    (word,) = shlex.split(speedy["rayStartParams"]["resources"])
    assert json.loads(word) == {"speed": 1}


SLURM_TOOLS = {
    "scontrol": 'if [ "$1" = show ]; then printf "%s\\n" a b c; else echo "scontrol $*" >>"$CALLS"; fi',
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "hostname": "echo 10.0.0.1",
    "ray": 'echo "ray $*" >>"$CALLS"; case "$*" in *start*) exec sleep 60;; esac',
    "python": 'case "$*" in *secrets*) echo t0ken;; *) echo 3;; esac',
    "headway": 'until [ "$(grep -c "ray start" "$CALLS")" = 3 ]; do sleep 0.1; done; '
    'echo "headway $* in $HEADWAY_STUDIES, token $RAY_AUTH_TOKEN" >>"$CALLS"; '
    r'if [ -n "${SLOW:-}" ]; then trap "echo interrupted >>$CALLS; kill \$!; exit 1" TERM; sleep 60 & wait; fi; '
    'exit "${STATUS:-0}"',
}


@pytest.fixture
def slurm(tmp_path):
    """The script among stand-ins for SLURM's and Ray's commands, which note how they are called."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text(f"PATH={tmp_path}/bin:$PATH\n")
    (tmp_path / "bin").mkdir()
    for name, body in SLURM_TOOLS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    environment = {
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
        "CALLS": str(calls),
        "HEADWAY_HOME": str(tmp_path),
        "SLURM_JOB_NODELIST": "abc",
        "SLURM_JOB_ID": "30017",
    }

    def start(**more):
        command = ["bash", str(DEPLOY / "slurm.sh"), "study.yaml", "--set", "budget.trials=8"]
        return subprocess.Popen(command, env={**environment, **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    return start, calls


def test_slurm_starts_a_cluster_and_gives_back_the_status(slurm):
    start, calls = slurm
    process = start(STATUS="2")
    process.communicate(timeout=60)
    assert process.returncode == 2
    lines = calls.read_text().splitlines()
    head, *others = sorted(
        (line for line in lines if line.startswith("ray start")), key=lambda line: "--head" not in line
    )
    assert "--head --port=20017" in head
    assert ["speed" in line for line in sorted(others, key=lambda line: "speed" in line)] == [False, True]
    assert all("--address=10.0.0.1:20017" in line for line in others)
    for line in (head, *others):
        assert {word.partition("=")[0].lstrip("-") for word in shlex.split(line)[2:]} - {""} <= ray_start_options() | {
            "1}"
        }
    (command,) = [line for line in lines if line.startswith("headway")]
    assert command.endswith("/studies, token t0ken")
    options = runs(shlex.split(command.partition(" in ")[0]))
    assert (options.study, options.address, options.set) == ("study.yaml", "10.0.0.1:20017", ["budget.trials=8"])


def test_slurm_requeues_itself_before_its_time_is_up(slurm):
    start, calls = slurm
    process = start(SLOW="1")
    deadline = time.monotonic() + 60
    while "headway" not in calls.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert calls.read_text().splitlines()[-2:] == ["interrupted", "scontrol requeue 30017"]


def test_the_image_has_what_the_project_pins():
    text = (DEPLOY / "Dockerfile").read_text()
    torch = re.search(r"ARG TORCH=(\S+)", text)[1]
    assert f'"{torch}"' in PROJECT
    version = re.search(r'^version = "(.*)"', PROJECT, re.MULTILINE)[1]
    assert f"headway:{version}" in text
    for name in ("ray-aws.yaml", "kuberay-rayjob.yaml"):
        assert set(re.findall(r"headway:(\d[\w.]*)", (DEPLOY / name).read_text())) == {version}
    python = re.search(r"ENV[^#]*PYTHON=python(3\.\d+)", text, re.DOTALL)[1]
    assert python in ("3.10", "3.11", "3.12")
    for extra in re.findall(r"install --no-cache-dir (.*) \\", text)[0].split():
        assert extra.strip('"') in PROJECT
    assert "HEADWAY_TORCH=${TORCH}" in text
    assert "FORCE_CUDA=1" in text
    assert not re.search(r"https?://", text)


def test_hadolint():
    checked = subprocess.run(
        [tool("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
