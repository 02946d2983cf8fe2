"""One training in several processes, without Ray."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainers.config import BASES
from trainers.contract import TeamRequest, TrialInterrupted, TrialRequest
from trainers.parallel import part
from trainers.team import Team

HERE = Path(__file__).parent
FIGURES = ("bbox_mAP", "bbox_mAP_50", "bbox_mAP_75", "bbox_AR_100")


@pytest.mark.parametrize(
    ("batch", "size", "parts"),
    [
        ([7, 3, 9, 1], 2, [[7, 9], [3, 1]]),
        ([7, 3, 9], 2, [[7, 9], [3, 7]]),
        ([7], 3, [[7], [7], [7]]),
        ([7, 3], 5, [[7], [3], [7], [3], [7]]),
    ],
)
def test_parts_of_a_batch(batch, size, parts):
    assert [part(batch, rank, size) for rank in range(size)] == parts


def test_an_address_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(TrialInterrupted, match=f"{address}, where its workers are to meet, cannot be used"):
            Team(TeamRequest(size=2, address=address), "cpu")


class Trial:
    """A training in a folder, as any number of processes."""

    def __init__(self, folder: Path, request: TrialRequest) -> None:
        folder.mkdir()
        self.folder, self.request = folder, replace(request, folder=str(folder / "trial"))
        self.reports = folder / "reports.jsonl"

    def start(self, size, *options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        processes = []
        for rank in range(size):
            team = TeamRequest(size=size, rank=rank, address=address) if size > 1 else None
            file = self.folder / f"request{rank}.json"
            file.write_text(json.dumps(replace(self.request, team=team).to_json()))
            command = [sys.executable, "-W", "ignore", str(HERE / "team_process.py"), str(file), str(self.reports)]
            with (self.folder / f"log{rank}.txt").open("a") as log:
                processes.append(subprocess.Popen([*command, *options], stdout=log, stderr=log, env=os.environ))
        return processes

    def run(self, size, *options):
        assert [process.wait(timeout=280) for process in self.start(size, *options)] == [0] * size, self.log(0)

    def log(self, rank):
        return (self.folder / f"log{rank}.txt").read_text()

    def epochs(self):
        text = self.reports.read_text() if self.reports.exists() else ""
        messages = [json.loads(line) for line in text.splitlines()]
        return [message for message in messages if message["phase"] == "epoch"]

    def checkpoint(self, epoch):
        return torch.load(self.folder / f"trial/epoch_{epoch}.pth", weights_only=True)


@pytest.fixture(scope="module")
def request_of(tmp_path_factory, digits_request):
    """Trains FCOS, whose losses are normalised by counts of all workers, with frozen statistics of batch norms."""
    folder = tmp_path_factory.mktemp("team")
    base = folder / "base.py"
    base.write_text(
        f"_base_ = [{str(BASES / 'fcos_tiny.py')!r}]\nmodel = dict(backbone=dict(norm_eval=True))\n", encoding="utf-8"
    )
    data = digits_request(folder / "digits", train=8, val=5)

    def make(**changes):
        request = TrialRequest(
            number=1, base=str(base), knobs={}, data=data, folder="", epochs=3, batch=4, seed=3, count_size=(64, 64)
        )
        return replace(request, **changes)

    return make


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_train_and_validate_as_one(request_of, tmp_path):
    alone = Trial(tmp_path / "alone", request_of())
    alone.run(1)
    assert [item["epoch"] for item in alone.epochs()] == [1, 2, 3]

    # A worker is killed after the first epoch: an error in seconds, and the checkpoint is continued.
    both, go = Trial(tmp_path / "both", request_of()), tmp_path / "go"
    first, other = both.start(2, "--hold", "1", str(go))
    try:
        deadline = time.monotonic() + 280
        while not both.epochs():
            assert time.monotonic() < deadline and first.poll() is None, both.log(0)
            time.sleep(0.1)
        other.send_signal(signal.SIGKILL)
        other.wait()
        go.touch()
        assert first.wait(timeout=60) == 3
        assert "interrupted: one of its 2 workers was lost" in both.log(0)
    finally:
        first.kill()
    both.run(2)
    assert [item["epoch"] for item in both.epochs()] == [1, 1, 2, 3]
    assert both.epochs()[1]["attrs"]["resumed"]
    assert "let go" in both.log(1)

    one, two = alone.epochs(), [both.epochs()[index] for index in (0, 2, 3)]
    print("loss of 1 and 2 workers:", [(a["metrics"]["loss"], b["metrics"]["loss"]) for a, b in zip(one, two)])
    for mine, theirs in zip(one, two):
        assert theirs["metrics"]["loss"] == pytest.approx(mine["metrics"]["loss"], rel=1e-5)
    assert list(both.checkpoint(3)["state_dict"]) == list(alone.checkpoint(3)["state_dict"])
    assert both.checkpoint(3)["meta"]["iter"] == alone.checkpoint(3)["meta"]["iter"] == 6

    # One worker goes on with what two have trained.
    (both.folder / "trial/epoch_3.pth").unlink()
    both.run(1)
    assert [item["epoch"] for item in both.epochs()] == [1, 1, 2, 3, 2, 3]
    assert both.epochs()[-1]["metrics"]["loss"] == pytest.approx(two[-1]["metrics"]["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_step_and_the_evaluation_are_equal(request_of, tmp_path):
    trained = Trial(tmp_path / "trained", request_of(epochs=8, batch=1))
    trained.run(1)
    weights = str(trained.folder / "trial/epoch_8.pth")
    same = request_of(weights=weights, lr=0.0, epochs=2, batch=8)
    alone, both = Trial(tmp_path / "alone", same), Trial(tmp_path / "both", same)
    alone.run(1, "--stop", "1")
    both.run(2, "--stop", "1")
    assert "let go" in both.log(1)
    (one,), (two,) = alone.epochs(), both.epochs()
    figures = [name for name in one["metrics"] if name.startswith("bbox_")]
    print({name: (one["metrics"][name], two["metrics"][name]) for name in figures})
    print("loss of the first step:", one["metrics"]["loss"], two["metrics"]["loss"])
    assert two["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], rel=1e-5)
    assert set(FIGURES) <= set(figures)
    assert one["metrics"]["bbox_mAP_50"] > 0
    assert {name: one["metrics"][name] for name in figures} == {name: two["metrics"][name] for name in figures}
