"""Checks, before anything is trained, that each node of a cluster has what a trial needs."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.study import Study
from spaces.errors import HeadwayError, UserError
from trainers.contract import DataRequest

_SECONDS = 180.0  # for all nodes together; a node's first process may take long to start
_PACKAGES = ("search", "spaces", "trainers", "analysis")
_LIBRARIES = ("torch", "onedl-mmcv", "onedl-mmengine", "onedl-mmdetection", "numpy", "pycocotools", "ray")


@dataclass(frozen=True)
class Needs:
    """What every node must see.

    Attributes:
        folder: The study's folder, writable.
        files: What they are for, and their absolute paths: annotation files, weights, a base config.
        folders: Likewise for folders, of images.
        digits: Arguments of ``trainers.digits.write_digits`` where the study trains on the embedded data; a node
            without that data set writes it.
    """

    folder: Path
    files: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    digits: Mapping[str, Any] | None = None


def needs(study: Study, data: DataRequest, folder: Path) -> Needs:
    """What the trials of a study need of a node."""
    files = {"weights.from": study.weights.from_, "weights.backbone": study.weights.backbone, "base": study.base}
    files = {name: path for name, path in files.items() if os.path.isabs(path)}
    if study.data.digits is not None:
        digits = study.data.digits
        root = Path(data.train_annotations).parents[1]
        whole = {"root": str(root), "train": digits.train, "val": digits.val, "seed": digits.seed}
        return Needs(folder, files, digits={**whole, "size": study.data.size})
    files |= {"data.train.annotations": data.train_annotations, "data.val.annotations": data.val_annotations}
    return Needs(folder, files, folders={"data.train.images": data.train_images, "data.val.images": data.val_images})


def check_nodes(needs: Needs) -> int:
    """Looks from every node at what the study needs; nodes that join later are not looked at, lost ones are left out.

    Returns:
        How many nodes there are.

    Raises:
        UserError: Names each node that lacks something, and what.
        HeadwayError: A node does not answer.
    """
    look = _probe()
    alive = _alive()
    with _marked(needs.folder) as (marker, text):
        wanted = {
            "marker": str(marker),
            "text": text,
            "files": {name: (path, _size(path)) for name, path in needs.files.items()},
            "folders": dict(needs.folders),
            "digits": dict(needs.digits) if needs.digits else None,
            "packages": _PACKAGES,
            "libraries": _LIBRARIES,
        }
        here = look({**wanted, "digits": None})
        remote = ray.remote(num_cpus=0, max_retries=1)(look)
        asked = {
            node["NodeID"]: remote.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(wanted)
            for node in alive
        }
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=_SECONDS)
        lacks, silent = [], []
        still = {node["NodeID"] for node in _alive()}
        for node in alive:
            if node["NodeID"] not in still:
                continue  # lost meanwhile, so no trial will run there
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                there = ray.get(asked[node["NodeID"]], timeout=0)
            except GetTimeoutError:
                silent.append(f"{name} does not answer within {_SECONDS:g} s")
            except RayError as error:
                silent.append(f"{name}: {' '.join(str(error).split())[-300:]}")
            else:
                lacks += [f"{name}: {lack}" for lack in _compare(here, there)]
    if lacks:
        raise UserError(
            "--address: every node must have Headway and see the study's folder and data, but\n  " + "\n  ".join(lacks)
        )
    if silent:
        raise HeadwayError("the check of the cluster's nodes failed:\n  " + "\n  ".join(silent))
    return len(alive)


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[tuple[Path, str]]:
    """Puts a file into the folder that nobody else can have."""
    text = secrets.token_hex(16)
    marker = folder / f".nodes-{text[:8]}"
    marker.write_text(text, encoding="ascii")
    try:
        yield marker, text
    finally:
        marker.unlink(missing_ok=True)


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else -1


def _compare(here: Mapping[str, Any], there: Mapping[str, Any]) -> Sequence[str]:
    """What a node lacks, in words."""
    lacks = list(there["lacks"])
    if there["code"] is None:
        lacks.append(f"cannot import headway's packages ({there['why']})")
    elif there["code"] != here["code"]:
        lacks.append(f"has another version of headway, in {there['where']}; this one is in {here['where']}")
    for name, version in here["libraries"].items():
        other = there["libraries"].get(name)
        # A CPU and a CUDA build of torch differ behind the plus sign.
        if version and (other or "").partition("+")[0] != version.partition("+")[0]:
            lacks.append(f"has {name} {other}, but {version} is needed" if other else f"lacks {name} {version}")
    return lacks


def _probe() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Makes the function that looks; being local it travels whole, to nodes without Headway too."""

    def look(wanted: dict[str, Any]) -> dict[str, Any]:
        import hashlib
        import importlib.metadata
        import importlib.util
        import pathlib
        import time
        import uuid

        lacks = []
        marker = pathlib.Path(wanted["marker"])
        for _ in range(20):  # a network file system may show a new file seconds later
            if marker.is_file():
                break
            time.sleep(0.25)
        try:
            if marker.read_text(encoding="ascii") != wanted["text"]:
                raise OSError("it is another folder of the same name")
            own = marker.with_name(f"{marker.name}-{uuid.uuid4().hex[:8]}")
            own.write_text("", encoding="ascii")
            own.unlink()
        except OSError as error:
            lacks.append(f"does not share the study's folder {marker.parent} ({error.strerror or error})")
        for name, (path, size) in wanted["files"].items():
            file = pathlib.Path(path)
            if not file.is_file():
                lacks.append(f"does not see {name}: {path}")
            elif file.stat().st_size != size:
                lacks.append(f"has another file as {name}: {path}")
        lacks += [
            f"does not see {name}: {path}"
            for name, path in wanted["folders"].items()
            if not pathlib.Path(path).is_dir()
        ]
        libraries: dict[str, str | None] = {}
        for name in wanted["libraries"]:
            try:
                libraries[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                libraries[name] = None
        digest, where, why = hashlib.sha256(), "", ""
        try:
            for name in wanted["packages"]:
                spec = importlib.util.find_spec(name)
                if spec is None or not spec.submodule_search_locations:
                    raise ImportError(f"there is no package {name}")
                root = pathlib.Path(next(iter(spec.submodule_search_locations)))
                where = str(root.parent)
                for file in sorted(root.rglob("*.py")):
                    digest.update(file.relative_to(root.parent).as_posix().encode() + b"\0" + file.read_bytes())
        except (ImportError, OSError) as error:
            why = str(error) or type(error).__name__
        if wanted["digits"] and not why:
            try:
                from trainers.digits import write_digits

                root, *rest = (wanted["digits"][key] for key in ("root", "train", "val", "size", "seed"))
                train, val, size, seed = rest
                write_digits(pathlib.Path(root), train=train, val=val, size=tuple(size), seed=seed)
            except Exception as error:
                lacks.append(f"cannot write the embedded data set: {error}")
        return {
            "lacks": lacks,
            "libraries": libraries,
            "code": None if why else digest.hexdigest(),
            "where": where,
            "why": why,
        }

    return look
