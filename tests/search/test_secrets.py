"""Passwords in the addresses of a study's database and of MLflow's server are found in nothing that a run leaves."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from test_tracking_server import Server  # noqa: E402

SECRETS = ("pa55-database", "pa55-mlflow")

STUDY = """
name: secrets
base: headway::gfl_tiny
data: {{digits: {{train: 4, val: 2}}, size: [96, 96]}}
space: {{slimhead: {{}}}}
budget: {{trials: 4, epochs: 2}}
rungs: null
resources: {{cpus: 1, gpus: 0}}
storage: {storage}
tracking: {{uri: {uri}}}
"""


@pytest.fixture
def server(tmp_path):
    found = Server(tmp_path)
    found.start()
    yield found
    found.kill()


def found_in(folder, but=()):
    """Files in which a password stands."""
    return [
        (path, secret)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path not in but
        for secret in SECRETS
        if secret.encode() in path.read_bytes()
    ]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_password_is_left_anywhere(postgres, server, tmp_path, request):
    database, mlflow = SECRETS
    file, root = tmp_path / "study.yaml", tmp_path / "studies"
    uri = server.url.replace("://", f"://me:{mlflow}@")
    file.write_text(STUDY.format(storage=postgres.database().replace(":hush@", f":{database}@"), uri=uri))
    temporary = Path(tempfile.mkdtemp(prefix="hs"))  # short, as Ray's sockets lie below it
    request.addfinalizer(lambda: shutil.rmtree(temporary, ignore_errors=True))
    environment = {
        **os.environ,
        "RAY_TMPDIR": str(temporary),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }

    def call(*command):
        return subprocess.run(
            [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=200
        )

    run = call(HERE / "drive.py", file, root)
    assert run.returncode == 0, run.stderr[-3000:]
    cli = ("-m", "search.cli")
    said = [run, *(call(*cli, name, "secrets", "--studies", root) for name in ("status", "front", "ui", "sync"))]
    assert [done.returncode for done in said] == [0] * 5, [done.stderr[-500:] for done in said]
    # A run that cannot reach MLflow, with a traceback; and a database that refuses.
    server.kill()
    said.append(call(*cli, "sync", "secrets", "--studies", root, "--debug"))
    wrong = file.read_text().replace("127.0.0.1", "localhost.invalid")
    file.write_text(wrong)
    said.append(call(*cli, "run", file, "--studies", tmp_path / "other", "--debug"))
    assert all(done.returncode != 0 for done in said[5:])
    for done in said:
        for secret in SECRETS:
            assert secret not in done.stdout + done.stderr, done.args

    kept = root / "secrets/study.yaml"
    assert all(secret in kept.read_text() for secret in SECRETS)  # so that the run can be continued
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert found_in(root, but=[kept]) == []
    assert found_in(tmp_path, but=[kept, file]) == []  # MLflow's database, its artifacts and its log
    assert (temporary / "ray").is_dir()
    assert found_in(temporary) == []  # Ray's logs
