"""Trains the designs of a plan with several seeds each and tabulates them against the baseline.

    python benchmarks/seeds/run.py PLAN.yaml --work FOLDER [--parallel 2] [--only LABEL] [--keep]
    python benchmarks/seeds/run.py PLAN.yaml --table

A plan names a base, a data set, a size, epochs, seeds and designs by label; the first design is the baseline. Each
(design, seed) is one training by ``trainers.detector.train`` in a process of its own with one thread, and leaves one
small JSON file in ``results/PLAN/``. What is finished is not run again; a training that was interrupted continues from
its newest checkpoint in the work folder. All designs of a seed start from the same weights wherever names and shapes
match, and see the images in the same order, so that differences are taken within a seed.

``PYTHONPATH`` may name another checkout whose code is to be used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import queue
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if not os.environ.get("PYTHONPATH"):
    sys.path.insert(0, str(HERE.parents[1]))

from ruamel.yaml import YAML  # noqa: E402

METRICS = ("bbox_mAP", "bbox_mAP_50", "bbox_mAP_75", "bbox_mAP_s", "bbox_mAP_m", "bbox_mAP_l")
_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class Plan:
    """A plan file.

    Attributes:
        name: Its file name without the suffix.
        base: As ``TrialRequest.base``.
        data: ``train`` and ``val``, each with ``annotations`` and ``images``, relative to the plan file; with
            ``scale: [width, height]`` every image is resized into these px once and the annotations with it, areas
            included, so that COCO's size classes count in the resized px.
        size: Width and height in px that images are trained and tested at.
        epochs: Of each training; the last one's accuracy is tabulated.
        seeds: At least ``epochs`` apart, since the order of the images follows from seed + epoch.
        designs: Knobs by label; the first label is the baseline.
        compare: Metrics whose difference to the baseline is tabulated.
        sweeps: By label, named settings of inference knobs that the trained detector is measured at as well.
    """

    name: str
    base: str
    data: Mapping[str, Any]
    size: tuple[int, int]
    epochs: int
    seeds: tuple[int, ...]
    designs: Mapping[str, Mapping[str, Any]]
    compare: tuple[str, ...]
    sweeps: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @property
    def results(self) -> Path:
        """Folder of this plan's result files."""
        return HERE / "results" / self.name


@dataclass(frozen=True)
class Job:
    """One training: a label of the plan and a seed."""

    label: str
    seed: int

    @property
    def slug(self) -> str:
        """Name of its files."""
        return f"{re.sub('[^a-z0-9]+', '-', self.label.lower()).strip('-')}_s{self.seed}"


def read_plan(path: Path) -> Plan:
    """Reads a plan; paths of the data become absolute."""
    value = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    data = dict(value["data"])
    for split in ("train", "val"):
        data[split] = {key: str((path.parent / place).resolve()) for key, place in data[split].items()}
    seeds = tuple(value["seeds"])
    gaps = [later - earlier for earlier, later in zip(sorted(seeds), sorted(seeds)[1:])]
    if any(gap < value["epochs"] for gap in gaps):
        raise SystemExit(f"seeds: must be at least {value['epochs']} (the epochs) apart, but got {list(seeds)}.")
    return Plan(
        name=path.stem,
        base=value["base"],
        data=data,
        size=tuple(value["size"]),
        epochs=value["epochs"],
        seeds=seeds,
        designs={label: dict(knobs or {}) for label, knobs in value["designs"].items()},
        compare=tuple(value.get("compare", ["bbox_mAP"])),
        sweeps=value.get("sweeps", {}),
    )


# --- Running ---------------------------------------------------------------------------------------------------------


def resized(data: Mapping[str, Any], folder: Path) -> dict[str, dict[str, str]]:
    """Writes a data set with its images resized and its annotations scaled; what is there already is kept."""
    import cv2

    width, height = data["scale"]
    made: dict[str, dict[str, str]] = {}
    for split in ("train", "val"):
        target = folder / f"{split}.json"
        made[split] = {"annotations": str(target), "images": str(folder / "images")}
        if target.exists():
            continue
        content = json.loads(Path(data[split]["annotations"]).read_text(encoding="utf-8"))
        (folder / "images").mkdir(parents=True, exist_ok=True)
        factors = {}
        for image in content["images"]:
            factors[image["id"]] = (width / image["width"], height / image["height"])
            pixels = cv2.imread(str(Path(data[split]["images"]) / image["file_name"]))
            # Lossless, so that an image is compressed once.
            image.update(file_name=f"{Path(image['file_name']).stem}.png", width=width, height=height)
            cv2.imwrite(
                str(folder / "images" / image["file_name"]),
                cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA),
            )
        for box in content["annotations"]:
            x, y = factors[box["image_id"]]
            left, top, wide, high = box["bbox"]
            box["bbox"] = [left * x, top * y, wide * x, high * y]
            box["area"] *= x * y
        target.write_text(json.dumps(content), encoding="utf-8")
    return made


def make_requests(plan: Plan, jobs: Sequence[Job], work: Path) -> dict[Job, Any]:
    """Gives the trainer's request of each job, its design in canonical form."""
    from spaces.base import facts
    from spaces.space import full_space
    from trainers.config import load_base
    from trainers.contract import DataRequest, TrialRequest

    data = resized(plan.data, work / "data") if "scale" in plan.data else plan.data
    content = json.loads(Path(data["train"]["annotations"]).read_text(encoding="utf-8"))
    request = DataRequest(
        train_annotations=data["train"]["annotations"],
        train_images=data["train"]["images"],
        val_annotations=data["val"]["annotations"],
        val_images=data["val"]["images"],
        classes=tuple(category["name"] for category in content["categories"]),
        size=plan.size,
    )
    space = full_space(facts(load_base(plan.base)["model"].to_dict(), f"base {plan.base}"))
    labels = list(plan.designs)

    def sweep(label: str) -> dict[str, Any]:
        settings = plan.sweeps.get(label)
        if not settings:
            return {}
        from trainers.contract import SpeedRequest, SweepRequest

        designs = [space.canonicalise({**plan.designs[label], **knobs}, label) for knobs in settings.values()]
        # Trainings run side by side, so the speed that comes with a sweep means nothing and is measured once.
        speed = SpeedRequest(size=(plan.size[1], plan.size[0]), pairs=1, seconds=0.0)
        return {"sweep": SweepRequest(settings=dict(enumerate(designs)), speed=speed, images=1)}

    return {
        job: TrialRequest(
            number=labels.index(job.label),
            base=plan.base,
            knobs=space.canonicalise(plan.designs[job.label], job.label),
            data=request,
            folder=str(work / job.slug),
            epochs=plan.epochs,
            seed=job.seed,
            backbone="none",
            count_size=(plan.size[1], plan.size[0]),
            **sweep(job.label),
        )
        for job in jobs
    }


def key_of(job: Job, plan: Plan) -> str:
    """Names what a result stands for: a change of the plan or of the base makes it another."""
    from trainers.config import load_base

    parts = {
        "base": load_base(plan.base).to_dict(),
        "knobs": plan.designs[job.label],  # as the plan says: a knob that a family gains has the old way as default
        "seed": job.seed,
        "epochs": plan.epochs,
        "size": plan.size,
        "scale": plan.data.get("scale"),
        "data": [
            hashlib.sha256(Path(plan.data[split]["annotations"]).read_bytes()).hexdigest() for split in ("train", "val")
        ],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


_building = threading.Lock()


def start_hashes(request: Any) -> dict[str, str]:
    """Hashes the weights that a training starts from: the base's, and the design's with the base's copied in.

    Built anew as the trainer builds them, from the seed alone.
    """
    from trainers.config import read_facts, trial_config
    from trainers.detector import build_model
    from trainers.weights import copy_matching

    def digest(model: Any) -> str:
        found = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    with _building:
        known = read_facts(request.data)
        base = build_model(trial_config(replace(request, knobs={}), known), request.seed)
        design = build_model(trial_config(request, known), request.seed)
        copy_matching(base.state_dict(), design)
        return {"base": digest(base), "design": digest(design)}


def code_root() -> Path:
    """The checkout whose code trains."""
    import trainers

    return Path(trainers.__file__).resolve().parents[1]


def code_version() -> str:
    """The commit of the code that trains."""
    command = ["git", "-C", str(code_root()), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def train_one(plan: Plan, job: Job, request: Any, *, keep: bool) -> None:
    """Runs one training and writes its result file."""
    from trainers.process import run_in_fresh_process

    # The code may be pulled while a training runs, which keeps what it started with.
    begin, load, code = time.monotonic(), os.getloadavg()[0], code_version()
    epochs: dict[int, dict[str, float]] = {}
    attrs: dict[str, Any] = {}
    counted: dict[str, float] = {}
    swept: dict[str, dict[str, float]] = {}
    kept = Path(request.folder) / "epochs.json"  # A continued training repeats only its last epoch.
    if kept.exists():
        saved = json.loads(kept.read_text(encoding="utf-8"))
        epochs, attrs, counted = {int(at): row for at, row in saved[0].items()}, saved[1], saved[2]

    def report(message: Any) -> None:
        attrs.update({name: value for name, value in message.attrs.items() if name not in ("cost", "checkpoint")})
        if message.phase == "swept":
            name = list(plan.sweeps[job.label])[message.attrs["index"]]
            swept[name] = {key: round(value, 4) for key, value in message.metrics.items() if key.startswith("bbox")}
        if message.phase == "counted":
            counted.update(message.metrics)
        if message.phase == "epoch":
            epochs[message.epoch] = {name: round(float(value), 4) for name, value in message.metrics.items()}
            kept.write_text(json.dumps([epochs, attrs, counted]), encoding="utf-8")
            print(f"{job.slug}: epoch {message.epoch}, AP {message.metrics['bbox_mAP']:.3f}", flush=True)

    start = start_hashes(request)
    run_in_fresh_process(request, report)
    result = {
        "plan": plan.name,
        "label": job.label,
        "seed": job.seed,
        "base": request.base,
        "knobs": dict(request.knobs),
        "epochs": plan.epochs,
        "size": list(plan.size),
        "data_scale": plan.data.get("scale"),
        "key": key_of(job, plan),
        "code": code,
        "start_weights": {**start, "copied_from_base": attrs.get("copied_from_base")},
        "versions": attrs.get("versions"),
        "device": attrs.get("device"),
        "cost": counted,
        "train_seconds": round(attrs["train_seconds"], 1),
        "val_seconds": round(attrs["val_seconds"], 1),
        "wall_seconds": round(time.monotonic() - begin, 1),  # of the last start
        "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
        "swept": swept,
        "by_epoch": [{"epoch": at, **row} for at, row in sorted(epochs.items())],
    }
    plan.results.mkdir(parents=True, exist_ok=True)
    path = plan.results / f"{job.slug}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    if not keep:
        shutil.rmtree(request.folder)
    print(f"{job.slug}: done in {result['wall_seconds']:.0f} s", flush=True)


def finished(plan: Plan, job: Job) -> bool:
    """Whether a training has its result, of the plan as it is."""
    path = plan.results / f"{job.slug}.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["key"] == key_of(job, plan)


def run(plan: Plan, jobs: Sequence[Job], work: Path, *, parallel: int, keep: bool) -> int:
    """Runs what is not finished, ``parallel`` trainings side by side; gives the number of failures."""
    work = work.resolve()
    # A trial's process looks for code in the working directory first.
    os.chdir(code_root())
    requests = make_requests(plan, jobs, work)
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    failed: list[Job] = []

    def worker() -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                # Looked up as late as this: another machine or process may work on the same plan.
                if finished(plan, job):
                    print(f"{job.slug}: there", flush=True)
                    continue
                train_one(plan, job, requests[job], keep=keep)
            except Exception as error:
                failed.append(job)
                print(f"{job.slug}: failed: {error}", flush=True)

    # As daemons they end with this process, and each training ends with its thread.
    threads = [threading.Thread(target=worker, daemon=True) for _ in range(parallel)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(timeout=1)
    return len(failed)


# --- The table -------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> float:
    """The sample standard deviation (n - 1), NaN below two values."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> tuple[float, float]:
    """The mean of the differences within a seed, and its standard error: their standard deviation over sqrt(n)."""
    both = [values[seed] - reference[seed] for seed in sorted(set(values) & set(reference))]
    if not both:
        return math.nan, math.nan
    return statistics.fmean(both), spread(both) / math.sqrt(len(both))


def table(plan: Plan) -> str:
    """Gives the markdown table of the finished trainings: AP in points of 100, at the last epoch."""
    found = {
        label: {
            seed: json.loads(path.read_text(encoding="utf-8"))
            for seed in plan.seeds
            if (path := plan.results / f"{Job(label, seed).slug}.json").exists()
        }
        for label in plan.designs
    }
    # Of each row: its name, the results it stands on, and the accuracies by seed.
    rows = []
    for label, results in found.items():
        rows.append((label, results, {seed: result["by_epoch"][-1] for seed, result in results.items()}))
        for name in plan.sweeps.get(label, ()):
            swept = {seed: result["swept"][name] for seed, result in results.items()}
            rows.append((f"{label}, {name}", results, swept))
    baseline = rows[0][2]

    def points(row: Mapping[int, Mapping[str, float]], metric: str) -> dict[int, float]:
        return {seed: 100 * values[metric] for seed, values in row.items() if metric in values}

    head = ["design", "seeds"]
    for metric, name in zip(METRICS, _NAMES):
        head += [name, f"{name} − baseline"] if metric in plan.compare else [name]
    head += ["Mpar", "GMAC", "s"]
    lines = [head, ["---"] * len(head)]
    for name, results, row in rows:
        if not results:
            continue
        cells = [name, str(len(results))]
        for metric in METRICS:
            values = points(row, metric)
            numbers = list(values.values())
            cells.append(f"{statistics.fmean(numbers):.1f} ± {spread(numbers):.1f}" if numbers else "–")
            if metric in plan.compare:
                mean, error = paired(values, points(baseline, metric))
                cells.append("" if row is baseline else f"{mean:+.1f} ± {error:.1f}")
        one = next(iter(results.values()))
        cells.append(f"{one['cost']['params_m']:.3f}")
        cells.append(f"{one['cost']['gmacs']:.2f}")
        seconds = [result["train_seconds"] + result["val_seconds"] for result in results.values()]
        cells.append(f"{statistics.median(seconds):.0f}")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--work", type=Path, help="folder of checkpoints and resized images; outside the repository")
    parser.add_argument("--parallel", type=int, default=2, help="trainings side by side, one thread each (default 2)")
    parser.add_argument("--only", action="append", metavar="LABEL", help="run these designs only; repeatable")
    parser.add_argument("--keep", action="store_true", help="keep checkpoints and logs")
    parser.add_argument("--table", action="store_true", help="print the table of what is finished")
    parser.add_argument("--data-only", action="store_true", help="write the resized images and annotations, and end")
    options = parser.parse_args()
    plan = read_plan(options.plan)
    if options.table:
        print(table(plan))
        return 0
    if not options.work:
        parser.error("--work is needed to train")
    if options.data_only:
        for split, paths in resized(plan.data, options.work / plan.name / "data").items():
            print(f"{split}: {paths['annotations']}, images in {paths['images']}")
        return 0
    labels = options.only or list(plan.designs)
    wrong = [label for label in labels if label not in plan.designs]
    if wrong:
        parser.error(f"--only: must be one of {', '.join(plan.designs)}, but got {wrong[0]}")
    # By seed first, so that an early look compares all designs.
    jobs = [Job(label, seed) for seed in plan.seeds for label in labels]
    return 1 if run(plan, jobs, options.work / plan.name, parallel=options.parallel, keep=options.keep) else 0


if __name__ == "__main__":
    sys.exit(main())
