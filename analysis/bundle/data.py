"""The validation data of a bundle: what identifies it, and where it lies on this machine.

A bundle holds no path. Where its data lies is remembered in the user's cache, by what identifies the data, so that a
bundle can be verified here without naming it again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from spaces.errors import UserError
from trainers.data import leaves

_EXAMPLES = 3


@dataclass(frozen=True)
class ValidationData:
    """A validation split.

    Attributes:
        annotations: COCO json.
        images: Folder that its file names are relative to.
        fingerprint: SHA-256, in hex, over the annotation file and the names and byte sizes of its images. The place of
            the files does not enter.
        content: The annotation file's content.
    """

    annotations: Path
    images: Path
    fingerprint: str
    content: dict[str, Any]

    @property
    def count(self) -> int:
        """Images in the split."""
        return len(self.content["images"])


def read_validation(annotations: Path, images: Path, who: str = "data.val") -> ValidationData:
    """Reads and identifies a validation split.

    Raises:
        UserError: The annotations are no COCO json, or images are missing or outside of their folder.
    """
    try:
        raw = annotations.read_bytes()
        content = json.loads(raw)
        names = sorted({str(item["file_name"]) for item in content["images"]})
        content["annotations"], content["categories"]
    except OSError as error:
        raise UserError(
            f"{who}.annotations: must be a file that can be read, but {annotations} is not ({error.strerror})."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{who}.annotations: must be a COCO json, but {annotations} gives {type(error).__name__}: {error}."
        ) from error
    out = [name for name in names if leaves(name)]
    if out:
        raise UserError(f"{who}.annotations: file names must stay in the image folder, but {out[0]!r} does not.")
    digest = sha256(sha256(raw).digest())
    missing = []
    for name in names:
        try:
            digest.update(f"\0{name}\0{(images / name).stat().st_size}".encode("utf-8", "surrogatepass"))
        except OSError:
            missing.append(name)
    if missing:
        few = ", ".join(missing[:_EXAMPLES]) + (", ..." if len(missing) > _EXAMPLES else "")
        raise UserError(
            f"{who}.images: the {len(names)} images of {annotations} must be in {images}, but "
            f"{len(missing)} are missing: {few}."
        )
    return ValidationData(annotations.absolute(), images.absolute(), digest.hexdigest(), content)


def remember(data: ValidationData) -> None:
    """Notes where validation data lies on this machine; without a cache that can be written nothing is noted."""
    note = _note(data.fingerprint)
    part = note.with_name(f".{note.name}.{os.getpid()}")
    text = json.dumps({"annotations": str(data.annotations), "images": str(data.images)})
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(note)


def recall(fingerprint: str) -> tuple[Path, Path] | None:
    """Tells where validation data lies on this machine, annotations and images; ``None`` where it is not known."""
    try:
        noted = json.loads(_note(fingerprint).read_text(encoding="utf-8"))
        return Path(noted["annotations"]), Path(noted["images"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def some_images(content: dict[str, Any], count: int) -> Sequence[dict[str, Any]]:
    """Picks images with objects, spread evenly over the split; others where too few have any."""
    used = {item["image_id"] for item in content["annotations"]}
    images = sorted(content["images"], key=lambda image: image["id"] not in used)  # stable: those with objects first
    pool = images[: max(count, sum(image["id"] in used for image in images))]
    step = max(1.0, len(pool) / count)
    return [pool[int(index * step)] for index in range(min(count, len(pool)))]


def _note(fingerprint: str) -> Path:
    root = Path(os.environ.get("HEADWAY_CACHE") or "~/.cache/headway").expanduser()
    return root / "validation" / f"{Path(fingerprint).name}.json"
