"""A trainer whose accuracy and latency follow from the design in closed form: the search's own parts run for real."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from trainers.contract import TrialFailed, TrialInterrupted, TrialReport
from trainers.files import write_text


def figures(knobs):
    """Latency ratio and final accuracy of a design."""
    slimmed = len(knobs.get("slimhead.levels", ())) * (1 - knobs.get("slimhead.ratio", 1.0))
    layers = len(knobs.get("dcn.placement", ()))
    return 1 - 0.12 * slimmed + 0.05 * layers, 0.40 - 0.03 * slimmed + 0.008 * layers


def preload():
    """Leaves a line with the process and the time in a file, if it is told one."""
    told = json.loads(os.environ.get("ANALYTIC", "{}")).get("preloaded")
    if told:
        with Path(told).open("a") as log:
            log.write(f"{os.getpid()} {time.time()}\n")


def train(request, report):
    """Reports like a detector; its checkpoint is a JSON file, and every trained epoch leaves a line in a log."""
    behaviour = json.loads(os.environ.get("ANALYTIC", "{}"))
    began = time.monotonic()
    folder = Path(request.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "processes").open("a") as log:
        log.write(f"{os.getpid()}\n")
    drivers = [name for name in ("optuna", "sqlalchemy", "mlflow", "ruamel") if name in sys.modules]
    began_with = {"arenas": os.environ.get("MALLOC_ARENA_MAX"), "drivers": drivers}
    (folder / "process.json").write_text(json.dumps(began_with))
    ratio, accuracy = figures(request.knobs)

    def send(phase, epoch, metrics, **attrs):
        report(TrialReport(phase=phase, epoch=epoch, metrics=metrics, seconds=time.monotonic() - began, attrs=attrs))

    if request.number == behaviour.get("crash"):
        raise RuntimeError("the analytic trainer was told to crash")
    if request.number == behaviour.get("fail"):
        raise TrialFailed("the loss is NaN at epoch 1")
    send("counted", 0, {"gmacs": 10 * ratio, "head_gmacs": 5 * ratio, "params_m": 2 + len(request.knobs) / 10})
    if request.speed is not None:
        time.sleep(behaviour.get("timing_seconds", 0))
        send(
            "timed",
            0,
            {"latency_ratio": ratio, "latency_ratio_q1": ratio, "latency_ratio_q3": ratio, "reference_ms": 20.0},
        )
    checkpoint = folder / "checkpoint.json"
    done = json.loads(checkpoint.read_text())["epoch"] if checkpoint.exists() else 0
    for epoch in range(max(done, 1), request.epochs + 1):
        if epoch > done:
            time.sleep(behaviour.get("epoch_seconds", 0))
            # Held back until the test lets the epoch begin, so that no moment is missed on a fast machine.
            while epoch > 1 and "gates" in behaviour and not Path(behaviour["gates"], str(epoch)).exists():
                time.sleep(0.05)
            with (folder / "trained.log").open("a") as log:
                log.write(f"{epoch}\n")
            write_text(checkpoint, json.dumps({"epoch": epoch}))
        died = folder / "died"
        if request.number == behaviour.get("die") and epoch == 2 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if request.number == behaviour.get("always_die") and epoch == 2:
            with (folder / "deaths").open("a") as log:
                log.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        once = folder / "stood_still"
        if epoch == 2 and request.number in [behaviour.get(word) for word in ("stop", "hang", "always_hang")]:
            with once.open("a") as log:
                log.write("x")
            first = once.read_text() == "x"
            if request.number == behaviour.get("stop") and first:
                os.kill(os.getpid(), signal.SIGSTOP)
            elif request.number == behaviour.get("always_hang") or (request.number == behaviour.get("hang") and first):
                time.sleep(600)
        if request.number == behaviour.get("interrupt") and epoch == 2 and not died.exists():
            died.touch()
            raise TrialInterrupted("a data loader ended: DataLoader worker (pid 7) is killed by signal: 9")
        nan = request.number == behaviour.get("nan") and epoch == 2
        reached = float("nan") if nan else accuracy * epoch / request.epochs
        send("epoch", epoch, {"bbox_mAP": reached, "loss": 1 / epoch})
    send("done", request.epochs, {})
