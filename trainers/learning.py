"""Trials that learn a part of their network first: trained, observed on the training images, then settled.

The folder of such a trial has a folder ``learning`` with the first training of its own, ``observed.jsonl`` with what
each image gave, and ``learned.json`` once the network is settled. Each is continued from where a kill left it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from spaces import patching
from trainers import checkpoint, files, heartbeat
from trainers.contract import EarlyValidation, TrialFailed, TrialRequest

FOLDER = "learning"
IMAGES = 500
"""Least number of images that a scale is averaged over (POD, section 3.3)."""
_ROWS_A_WRITE = 25


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What the first phase of a trial gave.

    Attributes:
        scales: By convolution the mean scale, its spread over the images and their number: what the family's
            ``settled`` takes; and the convolution's output ``channels`` and ``groups``.
        images: Different images that were looked at.
        metrics: ``learned_`` figures of the learning network after its training, ``decomposed_`` the same of the
            settled one with the weights transferred and before any further training; ``learning_latency_ratio`` with
            its quartiles.
    """

    scales: Mapping[str, Any]
    images: int
    metrics: Mapping[str, float]


def first_phase(request: TrialRequest) -> TrialRequest:
    """Gives the training of the learning network: its own folder, its share of the epochs, no measurements.

    Raises:
        TrialFailed: There are not epochs enough for two phases.
    """
    knobs = patching.learning(request.knobs)
    assert knobs is not None
    if request.epochs < 2:
        raise TrialFailed(
            "a network that is learned and then fine-tuned needs 2 epochs or more, but the budget has "
            f"{request.epochs}."
        )
    share = patching.learning_share(request.knobs)
    epochs = min(max(1, round(request.epochs * share)), request.epochs - 1)
    folder = str(Path(request.folder) / FOLDER)
    return replace(
        request,
        knobs=knobs,
        epochs=epochs,
        folder=folder,
        speed=None,
        sweep=None,
        early_val=_early(request, 0, epochs),
    )


def second_phase(request: TrialRequest, learned: Learned) -> TrialRequest:
    """Gives the training of the settled network: the rest of the epochs."""
    sweep = request.sweep
    if sweep is not None:
        settled = {index: patching.settled(knobs, learned.scales) for index, knobs in sweep.settings.items()}
        sweep = replace(sweep, settings=settled)
    before = first_phase(request).epochs
    return replace(
        request,
        knobs=patching.settled(request.knobs, learned.scales),
        epochs=request.epochs - before,
        sweep=sweep,
        early_val=_early(request, before, request.epochs - before),
    )


def _early(request: TrialRequest, before: int, epochs: int) -> EarlyValidation | None:
    """What of a trial's early epochs falls into a phase of it that has ``before`` epochs before it."""
    early = request.early_val
    return early and replace(early, epochs=min(max(early.epochs - before, 0), epochs))


def read(request: TrialRequest) -> Learned | None:
    """Reads what an earlier start of this trial has learned, ``None`` where it did not come to that."""
    try:
        value = json.loads((Path(request.folder) / FOLDER / "learned.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if value.pop("fingerprint", None) != checkpoint.fingerprint(request):
        return None
    return Learned(**value)


def write(request: TrialRequest, learned: Learned) -> None:
    """Keeps what was learned."""
    value = {"fingerprint": checkpoint.fingerprint(request), **vars(learned)}
    path = Path(request.folder) / FOLDER / "learned.json"
    files.write_text(path, json.dumps(value, indent=1))


def weights(request: TrialRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gives the learning network's trained weights and the ``meta`` of their checkpoint."""
    first = first_phase(request)
    found = checkpoint.newest(Path(first.folder), checkpoint.fingerprint(first))
    if found is None:
        raise TrialFailed(f"the checkpoint of the learning network is gone from {first.folder}.")
    return found[1]["state_dict"], found[1]["meta"]


def observe(request: TrialRequest, config: Config, model: Any) -> tuple[dict[str, Any], int]:
    """Averages what a trained learning network decides over images of the training split.

    Images are taken as training takes them, its flips included, in a seeded order and one at a time, so that no
    padding of a batch enters. A split with fewer than 500 images is gone through several times where flips make
    another image of each, once where they do not.

    Args:
        request: The trial.
        config: Of its first phase.
        model: The learning network with its trained weights.

    Returns:
        The scales, as in ``Learned``, and the number of different images.
    """
    from mmdet.registry import DATASETS
    from mmengine.dataset import pseudo_collate

    from trainers.loop import seed_all

    dataset = DATASETS.build(copy.deepcopy(config["train_dataloader"]["dataset"]))
    flips = any(step["type"] == "RandomFlip" for step in config["train_dataloader"]["dataset"]["pipeline"])
    order = images_to_observe(len(dataset), flips)
    path = Path(request.folder) / FOLDER / "observed.jsonl"
    mark = checkpoint.fingerprint(first_phase(request))
    rows = _read_rows(path, mark)
    model.eval()
    observer = patching.observer(request.knobs, model)
    with torch.no_grad(), observer:
        for place in range(len(rows), len(order)):
            seed_all(request.seed, 1 + place)
            heartbeat.beat()
            model.test_step(pseudo_collate([dataset[order[place]]]))
            if (place + 1) % _ROWS_A_WRITE == 0 or place + 1 == len(order):
                rows += observer.rows()
                _write_rows(path, mark, rows)
    scales = patching.summary(request.knobs, rows)
    for name, scale in scales.items():
        conv = model.get_submodule(name)
        scale |= {"channels": conv.out_channels, "groups": conv.groups}
    return scales, len(set(order))


def images_to_observe(count: int, flips: bool) -> list[int]:
    """Gives the order in which the images of a split are looked at: 500, or fewer where there are no others.

    Args:
        count: Images of the split.
        flips: Whether an image may come out mirrored, so that a second look at it tells more.
    """
    turns = -(-IMAGES // count) if flips else 1
    generator = torch.Generator().manual_seed(0)
    order = [index for _ in range(turns) for index in torch.randperm(count, generator=generator).tolist()]
    return order[:IMAGES]


def _read_rows(path: Path, mark: str) -> list[Any]:
    try:
        first, *rest = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in rest] if json.loads(first) == mark else []
    except (OSError, ValueError):
        return []


def _write_rows(path: Path, mark: str, rows: list[Any]) -> None:
    files.write_text(path, "\n".join(json.dumps(row) for row in [mark, *rows]) + "\n")
