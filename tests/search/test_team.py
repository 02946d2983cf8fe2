"""Trials of several workers, through real Ray and real training."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from search.engine import prepare
from search.store import Store
from search.study import load
from spaces.errors import UserError

HERE = Path(__file__).parent
STUDY = """
name: teams
base: headway::fcos_tiny
data: {{digits: {{train: 16, val: 6}}, size: [64, 64]}}
space: {{slimhead: {{}}}}
budget: {{trials: 1, epochs: {epochs}}}
rungs: null
sampler: {{name: random}}
training: {{batch: {batch}}}
resources: {{cpus: 1, workers: {workers}}}
speed: {{pairs: 3, seconds: 0.1}}
"""


def write(folder, *, workers=2, batch=8, epochs=3):
    file = folder / "teams.yaml"
    file.write_text(STUDY.format(workers=workers, batch=batch, epochs=epochs))
    return file


@pytest.mark.parametrize(
    ("workers", "batch", "message"),
    [
        (3, 8, "training.batch: must be divisible by resources.workers (3), such as 6 or 9, but got 8."),
        (4, 3, "training.batch: must be divisible by resources.workers (4), such as 4, but got 3."),
        (3, "null", "training.batch: must be divisible by resources.workers (3), such as 3 or 6, but base "
         "headway::fcos_tiny has 4."),
    ],
)  # fmt: skip
def test_a_batch_that_cannot_be_divided(tmp_path, workers, batch, message):
    with pytest.raises(UserError) as caught:
        prepare(load(write(tmp_path, workers=workers, batch=batch)))
    assert str(caught.value) == message


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_survives_the_loss_of_a_worker(tmp_path):
    file, root, log = write(tmp_path), tmp_path / "studies", tmp_path / "log.txt"
    command = [sys.executable, str(HERE / "drive.py"), str(file), str(root), "trainers.detector:train"]
    with log.open("w") as out:
        driver = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ)
    try:
        deadline = time.monotonic() + 400
        while "epoch 1/3" not in log.read_text():
            assert driver.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        (worker,) = [
            process
            for process in psutil.Process(driver.pid).children(recursive=True)
            if process.is_running() and "_Worker" in " ".join(process.cmdline())
        ]
        worker.send_signal(signal.SIGKILL)
        assert driver.wait(timeout=400) == 0, log.read_text()[-3000:]
    finally:
        driver.kill()
    (record,) = Store.read(root / "teams", load(file)).records()
    assert record.state.value == "COMPLETE"
    assert [epoch.epoch for epoch in record.curve] == [1, 2, 3]
    assert record.attrs["resumed"]
    assert 0 <= record.metrics["bbox_mAP"] <= 1
    config = (root / "teams" / record.folder / "config.py").read_text()
    assert "batch_size=8" in config  # the whole batch, as one worker trains it
    print(json.dumps(dict(record.metrics)))
