"""What a trial's surroundings do to it, told from what its design does: memory, disk, data loaders, images.

Everything is told by type, error number and message, so that nothing heavy is imported here.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainers.contract import LaneNeeded, MachineUnfit, TrialFailed, TrialInterrupted, TrialRequest

_FULL = (errno.ENOSPC, errno.EDQUOT)
# torch's writer of archives tells no error number; sqlite neither.
_FULL_WORDS = ("PytorchStreamWriter failed writing", "No space left on device", "Disk quota exceeded", "disk is full")
_SHARED_MEMORY = ("unable to write to file </torch", "unable to allocate shared memory", "Bus error")
_GPU_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
               "CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED")  # fmt: skip
_MAIN_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "not enough memory: you tried to allocate")
_LOADER = re.compile(r"DataLoader worker \(pid.*\) (is killed|exited unexpectedly)")
_IN_LOADER = re.compile(r"^Caught \w+ in (DataLoader worker|pin memory thread)")
_NOTE = "memory.json"


@contextmanager
def told(request: TrialRequest) -> Iterator[None]:
    """Turns what happens around a trial into the exceptions of the contract; what it cannot tell passes as it is.

    Raises:
        MachineUnfit: The disk is full.
        TrialInterrupted: A data loader was killed, images or memory could not be had at this moment, or CUDA's memory
            did not suffice; then the next start validates with one image at a time.
        TrialFailed: CUDA's memory did not suffice again.
    """
    try:
        yield
    except (TrialInterrupted, MachineUnfit, LaneNeeded) as error:
        if isinstance(error, TrialInterrupted) and _IN_LOADER.match(str(error)):
            raise TrialInterrupted(brief(error)) from error
        raise
    except Exception as error:
        full = full_disk(error)
        if full is not None:
            raise MachineUnfit(full_words(full, Path(request.folder))) from error
        causes = [brief(one) for one in chain(error)]
        if _says(error, _GPU_MEMORY) or any(type(one).__name__ == "OutOfMemoryError" for one in chain(error)):
            _out_of_memory(request, error)
        if _says(error, _SHARED_MEMORY):
            raise TrialInterrupted(f"this machine's shared memory (/dev/shm) is full: {causes[-1]}") from error
        if any(isinstance(one, MemoryError) for one in chain(error)) or _says(error, _MAIN_MEMORY):
            raise TrialInterrupted(f"out of main memory: {causes[0]}") from error
        if any(_LOADER.search(str(one)) for one in chain(error)) or _broken_pipe(error):
            raise TrialInterrupted(f"a data loader ended: {causes[-1]}") from error
        if isinstance(error, TrialFailed) and _IN_LOADER.match(str(error)):
            raise TrialFailed(brief(error)) from error
        raise


def chain(error: BaseException) -> list[BaseException]:
    """An exception, and those that led to it, the last one raised first."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return found


def brief(error: BaseException) -> str:
    """One line of at most 400 characters; of what came out of a data loader's process, what was raised in there."""
    text = str(error)
    if _IN_LOADER.match(text):
        # A whole traceback, whose last lines that begin at the margin are the exception.
        last: str = re.findall(r"^[\w.]+(?:: .*)?$", text, re.MULTILINE)[-1]
        named, _, text = last.partition(": ")
        if isinstance(error, (TrialFailed, TrialInterrupted)):
            return text[:400]
        return f"{named.rpartition('.')[2]}: {text}"[:400]
    if not isinstance(error, (TrialFailed, TrialInterrupted)):
        text = f"{type(error).__name__}: {text}"
    return " ".join(text.split())[:400]


def full_disk(error: BaseException) -> OSError | BaseException | None:
    """The exception that tells of a full disk or an exhausted quota, among those that led to this one."""
    for one in reversed(chain(error)):
        if isinstance(one, OSError) and one.errno in _FULL:
            return one
        text = str(one)
        if any(words in text for words in _FULL_WORDS) and not any(words in text for words in _SHARED_MEMORY):
            return one
    return None


def full_words(error: BaseException, folder: Path) -> str:
    """Says which disk is full.

    Args:
        error: What ``full_disk`` gave.
        folder: Where was written, if the exception does not say.
    """
    named = error.filename if isinstance(error, OSError) and isinstance(error.filename, (str, os.PathLike)) else folder
    path = Path(named)
    whose = "the disk of the study's folder" if path.is_relative_to(folder) else "the disk"
    return f"{whose} is full ({path}): {brief(error)}"


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Turns what a full disk raises into ``MachineUnfit``."""
    try:
        yield
    except MachineUnfit:
        raise
    except Exception as error:
        full = full_disk(error)
        if full is None:
            raise
        raise MachineUnfit(full_words(full, folder)) from error


def val_batch(folder: Path) -> int | None:
    """Images a batch of validation that an earlier start of a trial left for this one, ``None`` for the usual."""
    try:
        return int(json.loads((folder / _NOTE).read_text(encoding="utf-8"))["val_batch"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def of_image(path: str, error: Exception) -> Exception:
    """Names the image that could not be made ready: its storage may be there again, its content stays as it is."""
    text = f"the image {path} cannot be used: {brief(error)}"
    passing = isinstance(error, OSError) and error.errno is not None
    return TrialInterrupted(text) if passing else TrialFailed(text)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    return any(word in str(one) for one in chain(error) for word in words)


def _broken_pipe(error: BaseException) -> bool:
    """Whether a queue between this process and a data loader's broke."""
    for one in chain(error):
        if isinstance(one, (EOFError, BrokenPipeError, ConnectionResetError)):
            frames = one.__traceback__
            while frames is not None:
                if "multiprocessing" in frames.tb_frame.f_code.co_filename:
                    return True
                frames = frames.tb_next
    return False


def _out_of_memory(request: TrialRequest, error: Exception) -> None:
    """Lets the next start validate with one image at a time; once, and where that is fewer than now."""
    text = brief(error)
    lower = "lower training.batch or data.size"
    if request.val_batch is not None:
        batch = f"a validation batch of {request.val_batch}"
        raise TrialFailed(f"CUDA out of memory twice, the second time with {batch}: {text}; {lower}.") from error
    if _usual_val_batch(request) == 1:
        raise TrialFailed(f"CUDA out of memory, and the validation batch is 1 already: {text}; {lower}.") from error
    from trainers.files import write_text

    note: Mapping[str, Any] = {"val_batch": 1, "reason": text}
    write_text(Path(request.folder) / _NOTE, json.dumps(note, indent=1) + "\n")
    raise TrialInterrupted(f"CUDA out of memory: {text}; it goes on with a validation batch of 1") from error


def _usual_val_batch(request: TrialRequest) -> int | None:
    from trainers.config import trial_config

    with suppress(Exception):  # what is wrong with the config has been said before any memory was taken
        return int(trial_config(request)["val_dataloader"]["batch_size"])
    return None
