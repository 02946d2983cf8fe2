"""What a study takes along to a cluster: Headway's code, the study file, and files that lie on this machine alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from search.folder import write_study
from search.study import Study
from spaces.errors import UserError

PACKAGES = ("search", "spaces", "trainers", "analysis", "recipes")
# Beside the studies, so that its files have the same path on each node and each time the study is submitted.
KEPT = ".files"
_FILES = "files"
_SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", ".git", ".gitignore", ".venv")


@dataclass(frozen=True)
class Cargo:
    """What was packed.

    Attributes:
        study: The study file with the paths of the cluster.
        files: Names of the files that the job puts into ``STUDIES/.files`` before it runs.
    """

    study: Study
    files: tuple[str, ...]


def pack(study: Study, studies: Path, out: Path, *, own: Path | None = None) -> Cargo:
    """Fills a folder with what the job needs.

    A base that is a file of this machine goes as one flat config, checkpoints as they are, named by their contents;
    what lies in ``studies`` stays there. Data is never packed.

    Args:
        study: As ``search.study.load`` gives it.
        studies: Folder of all studies on the cluster.
        out: An empty folder.
        own: A folder whose contents go along, for modules that a base config imports.

    Raises:
        UserError: ``own`` is no folder or hides Headway's own code; the base cannot be read.
    """
    if own is not None:
        if not own.is_dir():
            raise UserError(f"--working-dir: must be a folder, but there is none at {own}.")
        hidden = [
            name for name in (*PACKAGES, "study.yaml", _FILES) if (own / name).exists() and not _is_ours(own / name)
        ]
        if hidden:
            raise UserError(f"--working-dir: must not hold {', '.join(hidden)}, which are Headway's, but {own} does.")
        shutil.copytree(own, out, dirs_exist_ok=True, ignore=_SKIPPED)
    home = Path(__file__).parents[1]
    for name in PACKAGES:
        if (home / name).is_dir():
            shutil.copytree(home / name, out / name, dirs_exist_ok=True, ignore=_SKIPPED)
    if (home / "pyproject.toml").is_file():
        shutil.copy2(home / "pyproject.toml", out)
    told = study.dump()
    files = []
    for section, key in ((told, "base"), (told["weights"], "from"), (told["weights"], "backbone")):
        path = Path(section[key])
        if not path.is_absolute() or not path.is_file() or path.is_relative_to(studies):
            continue
        content = _flat(section[key]).encode() if key == "base" else path.read_bytes()
        name = f"{path.stem}-{sha256(content).hexdigest()[:12]}{path.suffix}"
        (out / _FILES).mkdir(exist_ok=True)
        (out / _FILES / name).write_bytes(content)
        section[key] = str(studies / KEPT / name)
        files.append(name)
    shipped = Study.model_validate(told)
    write_study(out, shipped)
    return Cargo(shipped, tuple(files))


def command(studies: Path, cargo: Cargo, *, extend: bool, restarts: int) -> Sequence[Sequence[str]]:
    """The commands of the job, in order, in the packed folder."""
    first: list[Sequence[str]] = []
    if cargo.files:
        kept = str(studies / KEPT)
        first = [("mkdir", "-p", kept), ("cp", *(f"{_FILES}/{name}" for name in cargo.files), kept)]
    run = ["python", "-m", "search.cli", "run", "study.yaml", "--address", "auto", "--studies", str(studies)]
    run += ["--extend"] if extend else []
    run += ["--restarts", str(restarts)] if restarts else []
    return [*first, run]


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(os.path.getsize(path) for path in folder.rglob("*") if path.is_file())


def _flat(base: str) -> str:
    from trainers.config import load_base  # late: mmengine

    return str(load_base(base, trained=True).pretty_text)


def _is_ours(path: Path) -> bool:
    return path.resolve() == (Path(__file__).parents[1] / path.name).resolve()
