"""A study's folder on disk: where it is, who may run in it, what is kept."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ruamel.yaml import YAML

from search.study import Study, load
from spaces.errors import CutShort, HeadwayError, UserError
from trainers import faults, files

STUDY_FILE = "study.yaml"
REPORT = "report.html"
LEASE = ".speed.lock"
"""Of latency measurements on one machine."""


def studies_root(given: str | None = None) -> Path:
    """The folder of all studies: ``given``, else ``$HEADWAY_STUDIES``, else ``studies`` in the working folder.

    Raises:
        UserError: It is an address of an object store.
    """
    word = given or os.environ.get("HEADWAY_STUDIES") or "studies"
    if "://" in word:
        raise UserError(
            f"--studies: must be a folder, but got an address ({word.partition('://')[0]}://...). A study rests on "
            "locks, renames and appends, which object stores do not have; take storage that all nodes share (NFS, EFS, "
            "Lustre)."
        )
    return Path(word).absolute()


def find_study(word: str, root: Path) -> tuple[Path, Study]:
    """Finds a study that was run, by its name, its folder or its study file.

    Raises:
        UserError: There is none.
    """
    path = Path(word)
    if path.is_file():
        own = path.name == STUDY_FILE and (path.parent / ".lock").exists()
        folder = path.parent.absolute() if own else root / load(path).name
    elif (path / STUDY_FILE).is_file():
        folder = path.absolute()
    else:
        folder = root / word
    if not (folder / STUDY_FILE).is_file():
        known = sorted(item.parent.name for item in root.glob(f"*/{STUDY_FILE}"))
        there = f"in {root} there are: {', '.join(known)}" if known else f"{root} holds no study yet"
        raise UserError(f"STUDY: must be a study that was run (name, folder or study file), but got '{word}'; {there}.")
    return folder, load(folder / STUDY_FILE)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it for one run; a folder that was made for nothing is removed again.

    Raises:
        UserError: It cannot be written, or another run holds it.
    """
    new = not folder.exists()
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"study folder: must be writable, but {folder} gives: {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            pid, _, host = lock.read().strip().partition(" ")
            where = f"{host} " if host not in ("", socket.gethostname()) else ""
            raise UserError(f"{folder.name}: is being run already, by {where}process {pid}.") from error
        with suppress(OSError):  # on a full disk the lock holds without its holder's name
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"{os.getpid()} {socket.gethostname()}".encode())
        try:
            yield
        except UserError:
            if new:
                shutil.rmtree(folder, ignore_errors=True)
                for parent in made[1:]:
                    _remove_empty(parent)
            raise


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Says in one message that a disk is full.

    Raises:
        CutShort: It is; the message says which.
    """
    try:
        yield
    except HeadwayError:
        raise
    except Exception as error:
        full = faults.full_disk(error)
        if full is None:
            raise
        words = faults.full_words(full, folder)
        raise CutShort(f"{folder.name}: {words}; nothing is lost, the same command continues.") from error


def write_study(folder: Path, study: Study) -> None:
    """Keeps the study file as it is run, with defaults filled in and absolute paths."""
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.dump(study.dump(), text)
    addresses = (study.storage, study.tracking.uri)
    files.write_text(folder / STUDY_FILE, text.getvalue(), private=any("@" in (url or "") for url in addresses))


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
