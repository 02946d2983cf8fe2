"""Puts bundles into MLflow's model registry, as pyfunc models beside the runs of their trials."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search.tracking.pages import public_uri
from search.tracking.server import FAILURES, find_run, find_runs, reach, reason
from spaces.errors import HeadwayError, UserError

# After search.tracking.server, which sets the environment that mlflow reads on import. It would take along the lock
# file of whatever project the working folder belongs to.
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
import mlflow.pyfunc  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip
from mlflow.models.signature import ModelSignature  # isort: skip
from mlflow.tracking import MlflowClient  # isort: skip
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec  # isort: skip

FORBIDDEN = "/:.%\"'"
_DIGEST = "headway.receipt"


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A bundle to register.

    Attributes:
        bundle: Its folder, whole.
        label: Label of its trial, whose run it comes from.
        loader: Program that loads it, with ``_load_pyfunc``.
        example: An image, (height, width, 3), red, green and blue, uint8.
        requirements: Pip requirements.
        metadata: Of the model: classes, design, figures.
        description: Of the version.
        tags: Of the version.
        aliases: That the version gets; whichever had them loses them.
    """

    bundle: Path
    label: str
    loader: Path
    example: np.ndarray[Any, Any]
    requirements: Sequence[str]
    metadata: Mapping[str, Any]
    description: str
    tags: Mapping[str, str]
    aliases: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version in the registry.

    Attributes:
        name: The model's.
        version: Its number.
        run_id: The trial's run.
        aliases: What the version goes by.
        new: False where it was there before.
    """

    name: str
    version: str
    run_id: str
    aliases: Sequence[str]
    new: bool


def check_name(name: str, who: str = "--name") -> None:
    """Checks the name of a registered model.

    Args:
        name: The name.
        who: The option that gives it, for the error.

    Raises:
        UserError: MLflow cannot take it.
    """
    wrong = [character for character in FORBIDDEN if character in name]
    if wrong or not name.strip():
        got = f"got '{name}'" if name.strip() else "it is empty"
        raise UserError(f"{who}: must be a name without {' '.join(FORBIDDEN)}, but {got}.")


def register(
    requests: Iterable[ModelRequest], *, name: str, uri: str, experiment: str, study_folder: Path
) -> list[Registered]:
    """Registers bundles as versions of one model. One that is registered already is only given its aliases.

    Args:
        requests: The bundles, all of one study.
        name: Of the registered model; made where it is new.
        uri: MLflow's.
        experiment: The study's.
        study_folder: Its folder.

    Raises:
        UserError: The name cannot be used, MLflow cannot be reached or does not know the study or a trial.
        HeadwayError: MLflow failed meanwhile.
    """
    check_name(name)
    found = find_run(uri=uri, experiment=experiment, study_folder=study_folder)
    if found is None:
        raise UserError(f"{study_folder.name}: is not in MLflow at {public_uri(uri)}; 'headway sync' puts it there.")
    client = reach(uri)
    try:
        wanted = f"tags.`mlflow.parentRunId` = '{found[1]}'"
        runs = {run.data.tags.get("headway.trial", ""): run for run in find_runs(client, found[0], wanted)}
        done = []
        for request in requests:
            run = runs.get(request.label)
            if run is None:
                raise UserError(
                    f"{study_folder.name}: trial {request.label} has no run in MLflow at {public_uri(uri)}; "
                    "'headway sync' adds it."
                )
            done.append(_register(client, request, name, str(run.info.run_id), str(run.info.artifact_uri)))
        return done
    except FAILURES as error:
        raise HeadwayError(
            f"MLflow at {public_uri(uri)} fails: {reason(error, uri)}; the same command goes on."
        ) from error


def _register(client: MlflowClient, request: ModelRequest, name: str, run_id: str, artifacts: str) -> Registered:
    _make(client, name)
    digest = hashlib.sha256((request.bundle / "receipt.json").read_bytes()).hexdigest()
    there = [item for item in client.search_model_versions(f"name = '{name}'") if item.tags.get(_DIGEST) == digest]
    if there:
        version = str(there[0].version)
    else:
        # Of its own, so that a later export of the same trial leaves an earlier version as it is.
        place = f"model-{digest[:8]}"
        with tempfile.TemporaryDirectory(prefix="headway-") as scratch:
            saved = Path(scratch) / place
            _save(request, saved)
            client.log_artifacts(run_id, str(saved), place)
        made = client.create_model_version(
            name,
            source=f"{artifacts}/{place}",
            run_id=run_id,
            tags={**request.tags, _DIGEST: digest},
            description=request.description,
        )
        version = str(made.version)
    for alias in request.aliases:
        client.set_registered_model_alias(name, alias, version)
    return Registered(name=name, version=version, run_id=run_id, aliases=tuple(request.aliases), new=not there)


def _make(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, description="Detectors found by Headway.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _save(request: ModelRequest, out: Path) -> None:
    """Writes the model: the bundle as its data, and the program that loads it."""
    text = request.loader.read_text(encoding="utf-8")
    # Models of several versions of Headway can be loaded in one process, where a module's name is one for all.
    module = f"headway_{request.loader.stem}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    with tempfile.TemporaryDirectory(prefix="headway-") as scratch:
        code = Path(scratch) / f"{module}.py"
        code.write_text(text, encoding="utf-8")
        mlflow.pyfunc.save_model(
            path=str(out),
            loader_module=module,
            data_path=str(request.bundle),
            code_paths=[str(code)],
            signature=_signature(),
            input_example=request.example,
            pip_requirements=[*request.requirements],
            metadata=dict(request.metadata),
        )


def _signature() -> ModelSignature:
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, -1, 3))]),
        outputs=Schema(
            [
                TensorSpec(np.dtype("float32"), (-1, 4), "boxes"),
                TensorSpec(np.dtype("int64"), (-1,), "labels"),
                TensorSpec(np.dtype("float32"), (-1,), "scores"),
            ]
        ),
        params=ParamSchema([ParamSpec("score", "float", 0.0)]),
    )
