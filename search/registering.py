"""Bundles of a study into MLflow's model registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from analysis.bundle.data import recall
from analysis.bundle.receipt import hash_files, read_receipt
from analysis.choose import picks_of
from analysis.labels import figure, short
from search.confirm import confirmed
from search.delivery import tracking_uri
from search.store import Store
from search.study import Study
from spaces.errors import UserError

if TYPE_CHECKING:
    from search.tracking.registry import ModelRequest, Registered

_LOADER = Path(__file__).parents[1] / "analysis/bundle/served.py"
# Of the example image: as text it takes some 200 kB in the model's folder.
_LONGEST_SIDE = 160
_NEEDS = ("torch", "mmcv", "mmengine", "mmdet", "numpy", "pycocotools")


def register_bundles(
    bundles: Sequence[Path], *, name: str, study: Study, folder: Path, store: Store
) -> list[Registered]:
    """Registers bundles of a study as versions of one model in the study's MLflow.

    A version is linked to the run of its trial. It has the figures as tags, and the aliases ``knee``, ``fastest`` and
    ``most_accurate`` where the study's front says so at this moment.

    Args:
        bundles: Their folders.
        name: Of the registered model, without ``/ : . % " '``.
        study: The study file.
        folder: The study's.
        store: The study's.

    Raises:
        UserError: A bundle is not of this study or was changed, the name cannot be used, MLflow cannot be reached.
        HeadwayError: MLflow failed meanwhile.
    """
    from search.tracking.registry import check_name, register

    check_name(name)
    records = confirmed(store)
    aliases: dict[str, list[str]] = {}
    for pick, choice in picks_of(records, study.objective_records).items():
        aliases.setdefault(choice.trial.label, []).append(pick)
    requests = [_request(bundle.expanduser().absolute(), study.name, aliases) for bundle in bundles]
    return register(
        requests,
        name=name,
        uri=tracking_uri(study, folder),
        experiment=study.tracking.experiment or study.name,
        study_folder=folder,
    )


def _request(bundle: Path, study: str, aliases: Mapping[str, Sequence[str]]) -> ModelRequest:
    from search.tracking.registry import ModelRequest

    receipt = read_receipt(bundle)
    if receipt["study"].get("name") != study:
        raise UserError(f"BUNDLE: must be a bundle of {study}, but {bundle} is one of {receipt['study'].get('name')}.")
    if hash_files(bundle) != receipt["files"]:
        raise UserError(f"BUNDLE: the files of {bundle} are not those of its receipt; export it again.")
    label = str(receipt["point"])
    metrics = {key: item["value"] for key, item in receipt["metrics"].items() if item["value"] is not None}
    told = [item["metric"] for item in receipt["study"].get("objectives", ())]
    shown = [metric for metric in dict.fromkeys([*told, "bbox_mAP", "latency_ratio", "params_m"]) if metric in metrics]
    own = tuple(aliases.get(label, ()))
    return ModelRequest(
        bundle=bundle,
        label=label,
        loader=_LOADER,
        example=_example(bundle, receipt),
        requirements=requirements(receipt),
        metadata={
            "classes": receipt["classes"],
            "input": "one image: red, green and blue, (height, width, 3), uint8",
            "output": "boxes x1, y1, x2, y2 in px, labels as index into classes, scores; best first",
            "study": study,
            "trial": label,
            "knobs": receipt["knobs"],
        },
        description=(
            f"{study}, trial {label}: {short(receipt['knobs'])}. {receipt['why'].rstrip('.')}. "
            f"{', '.join(figure(metric, metrics[metric]) for metric in shown)}."
        ),
        tags={
            "headway.study": study,
            "headway.trial": label,
            "headway.picks": ", ".join(own),
            **{f"headway.{metric}": f"{metrics[metric]:.6g}" for metric in shown},
        },
        aliases=own,
    )


def requirements(receipt: Mapping[str, Any]) -> list[str]:
    """Gives what a bundle needs as pip requirements, with the versions that it was made with.

    Args:
        receipt: Of the bundle.
    """
    made = receipt["environment"]["exported"]
    names = made.get("packages", {})
    # A build's own part of a version (+cpu) is in no registry.
    return [
        f"{names.get(name, name)}=={made['versions'][name].partition('+')[0]}"
        for name in _NEEDS
        if name in made["versions"]
    ]


def _example(bundle: Path, receipt: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """A small image: one of the validation split where that is on this machine, else a drawn one of the bundle."""
    known = recall(str(receipt["data"]["validation_fingerprint"]))
    first = _first(known[0], known[1]) if known else None
    path = first or next(iter(sorted((bundle / "detections").glob("*.jpg"))))
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        return np.asarray(small, dtype=np.uint8)


def _first(annotations: Path, images: Path) -> Path | None:
    """An image with objects, ``None`` where there is none any more."""
    from analysis.bundle.data import read_validation, some_images

    try:
        content = read_validation(annotations, images).content
    except UserError:
        return None
    return images / str(some_images(content, 1)[0]["file_name"])
