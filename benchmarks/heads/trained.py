"""Measures the inference settings of a trained design again, on validation images, as a trial does it.

    headway run recipes/bccd_querydet.yaml --studies DIR ...
    python benchmarks/heads/trained.py DIR/bccd_querydet [--trial 1] [--against 1] [--out FILE.json]

Where the work depends on the image (QueryDet), random weights ask for all sites or for none. Here each setting that the
trial swept has its trained weights; it is timed in turns with the trained baseline, and with another of the settings.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [] if os.environ.get("PYTHONPATH") else [str(HERE.parents[1])]

from mmengine.config import Config  # noqa: E402

from benchmarks.heads.run import machine  # noqa: E402
from search.folder import STUDY_FILE  # noqa: E402
from search.study import load  # noqa: E402
from spaces.errors import UserError  # noqa: E402
from trainers import cost, speed, sweep  # noqa: E402
from trainers.detector import build_model  # noqa: E402
from trainers.means import settle  # noqa: E402


def trained(folder: Path, config: Path) -> tuple[Config, Any]:
    """A config that a trial wrote, and its detector with the trial's newest weights.

    Raises:
        UserError: The trial left none.
    """
    if not config.is_file():
        raise UserError(f"study: must have {config}, which a trial writes for each setting that it sweeps.")
    read = Config.fromfile(str(config))
    weights = sweep.reference_weights(str(folder))
    if weights is None:
        raise UserError(f"study: must have trained weights, but {folder} has none.")
    model = build_model(read, 0, initialise=False)
    model.load_state_dict(weights)
    return read, model


def measure(study: Path, trial: int, against: int | None, *, images: int, pairs: int, seconds: float) -> dict[str, Any]:
    """Measures all settings of a trial.

    Args:
        study: Folder of a study.
        trial: Number of a trial that swept settings.
        against: Index of the setting that they are compared with as well, ``None`` for none.
        images: Of the validation split.
        pairs: Least number of interleaved pairs.
        seconds: Time after which no further round is started once ``pairs`` are there.

    Returns:
        By index of the setting: its ``knobs``, ``gmacs`` a pass in the mean, and ``baseline`` and ``against``, each the
        ratio of the mean latencies and the quartiles of the images' own ratios.
    """
    size = load(study / STUDY_FILE).speed_size
    own = study / f"trials/{trial:04d}"
    _, base = trained(study / "trials/0000", study / "trials/0000/config.py")
    others = {"baseline": base}
    if against is not None:
        others["against"] = trained(own, own / f"config.{against}.py")[1]
    found = {}
    for path in sorted(own.glob("config.*.py")):
        index = path.suffixes[0].removeprefix(".")
        config, model = trained(own, path)
        batches = sweep.validation_images(config, model, size, 1, images)
        line: dict[str, Any] = {"knobs": dict(config["headway"]["knobs"])}
        line["gmacs"] = round(cost.count_predict(model, batches)["gmacs"], 3)
        for name, other in others.items():
            taken = speed.measure_on_images(model, other, batches, pairs=pairs, seconds=seconds)
            line[name] = [round(value, 4) for value in (taken.ratio, taken.q1, taken.q3)]
        found[index] = line
        print(json.dumps({index: line}), flush=True)
    return found


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of a study that was run")
    parser.add_argument("--trial", type=int, default=1, help="its trial that swept settings (default: 1)")
    parser.add_argument("--against", type=int, help="index of a setting to compare with as well")
    parser.add_argument("--images", type=int, default=16, help="of the validation split (default: 16)")
    parser.add_argument("--pairs", type=int, default=32, help="least number of pairs (default: 32)")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for more pairs than these (default: 10)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--out", type=Path, help="a file for it all, with the machine")
    options = parser.parse_args()
    settle(options.threads)
    try:
        found = measure(
            options.study,
            options.trial,
            options.against,
            images=options.images,
            pairs=options.pairs,
            seconds=options.seconds,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.out:
        document = {"machine": machine("cpu", options.threads), "settings": found}
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
