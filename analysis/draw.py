"""Draws what a bundle finds in images. The bundle runs in a process where Headway does not exist."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from analysis.bundle.process import Looking, run_alone
from analysis.bundle.receipt import hash_files, read_receipt
from analysis.verify import compare_files
from spaces.errors import HeadwayError, UserError
from trainers import drawing

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What counts as an image in a folder; a file that is named itself may end otherwise."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The pictures of one image.

    Attributes:
        image: The image file.
        detections: How many have the least score.
        best: The highest score, ``None`` without any detection.
        pictures: Files by kind, as ``trainers.drawing.draw`` names them.
    """

    image: str
    detections: int
    best: float | None
    pictures: dict[str, str]


@dataclass(frozen=True)
class Chosen:
    """Image files to draw.

    Attributes:
        images: The files.
        left: By folder how many more it has than the limit allows.
    """

    images: tuple[Path, ...]
    left: dict[str, int]


def choose_images(words: Sequence[Path], *, limit: int, out: Path) -> Chosen:
    """Finds image files.

    Args:
        words: Image files, and folders whose images are taken in the order of their names.
        limit: Most images of one folder.
        out: Where pictures are going to be written.

    Returns:
        The files, each once, all of them readable.

    Raises:
        UserError: One is not there or no image, a folder has none, or it is ``out``, whose pictures would be drawn
            the next time.
    """
    if limit < 1:
        raise UserError(f"--limit: must be 1 or more, but got {limit}.")
    found: list[Path] = []
    left = {}
    for word in words:
        word = word.expanduser()
        if word.is_dir():
            if word.resolve() == out.expanduser().resolve():
                raise UserError(f"--out: must be another folder than that of the images, but got {out}.")
            inside = sorted(path for path in word.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
            if not inside:
                raise UserError(f"IMAGE: a folder must hold images ({', '.join(SUFFIXES)}), but {word} holds none.")
            if len(inside) > limit:
                left[str(word)] = len(inside) - limit
            found += inside[:limit]
        elif word.exists():
            found.append(word)
        else:
            raise UserError(f"IMAGE: must be an image file or a folder of them, but there is no {word}.")
    unique = tuple({path.resolve(): path for path in found}.values())
    for path in unique:
        _check(path)
    return Chosen(unique, left)


def draw_bundle(
    folder: Path,
    images: Sequence[Path],
    *,
    out: Path,
    score: float = 0.3,
    objects: int = 12,
    device: str | None = None,
    progress: Callable[[int, int, Drawn | None], None] | None = None,
) -> list[Drawn]:
    """Runs a bundle in a process without Headway and draws what it finds.

    Args:
        folder: The bundle.
        images: Image files, as ``choose_images`` gives them.
        out: Folder for ``NAME.KIND.png``; made where it is missing. Pictures of earlier runs are replaced. Of images
            with one name the later ones are numbered: ``NAME-2``.
        score: Least score of a detection that is drawn, 0 to 1.
        objects: Most detections of an image whose key parts are drawn, the best first.
        device: ``cpu``, ``cuda:0``, ...; by default a GPU where there is one.
        progress: Called after each image with the images done, their number, and its pictures; and once before the
            bundle is loaded, when all arguments are found to be in order, with ``None`` for pictures.

    Raises:
        UserError: There is no bundle, it holds no detector, ``out`` cannot be written, or an argument is out of range.
        HeadwayError: The bundle does not load or run.
    """
    folder, out = folder.expanduser().absolute(), out.expanduser().absolute()
    if not 0 <= score <= 1:
        raise UserError(f"--score: must lie in [0, 1], but got {score:g}.")
    if objects < 1:
        raise UserError(f"--objects: must be 1 or more, but got {objects}.")
    receipt = read_receipt(folder)
    missing = [name for name in ("config.py", "weights.pth") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"bundle: must hold a detector (config.py and weights.pth), but {folder} has no {missing[0]}.")
    _, reasons, _ = compare_files(receipt["files"], hash_files(folder))
    if reasons:  # its code is run and its weights are loaded
        raise UserError(f"bundle: must be as 'headway export' wrote it, but in {folder} {' '.join(reasons)}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: must be a folder that can be written, but {out} gives: {error.strerror}.") from error
    stems = _stems(images)
    drawn: list[Drawn] = []

    def seen(index: int, classes: list[str], what: dict[str, Any]) -> None:
        path = images[index]
        try:
            pages = drawing.draw(drawing.open_image(path), what, classes, name=path.name, score=score)
        except ValueError as error:
            raise HeadwayError(f"draw: {error}.") from error
        try:
            files = drawing.write(pages, out, stems[index])
        except OSError as error:
            raise UserError(f"--out: must be writable, but {out} gives: {error.strerror or error}.") from error
        pictures = {kind: str(file) for kind, file in files.items()}
        drawn.append(Drawn(image=str(path), detections=what["found"], best=what["best"], pictures=pictures))
        if progress:
            progress(len(drawn), len(images), drawn[-1])

    arguments = {"score": score, "objects": objects}
    if progress:
        progress(0, len(images), None)
    run_alone(folder, look=Looking(images=images, arguments=arguments, seen=seen), device=device)
    return drawn


def _check(path: Path) -> None:
    """Reads an image as a whole, so that a damaged one is found before anything runs.

    Raises:
        UserError: It cannot be read.
    """
    try:
        drawing.open_image(path)
    except UnidentifiedImageError as error:
        raise UserError(f"IMAGE: must be an image, but {path} is none that can be read.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"IMAGE: must be an image that can be read, but {path} gives: {error}.") from error


def _stems(images: Sequence[Path]) -> list[str]:
    """A name for each image's pictures: its own without the suffix, numbered where that is taken."""
    taken: Counter[str] = Counter()
    names: list[str] = []
    for path in images:
        name = path.stem
        while name in names:
            taken[path.stem] += 1
            name = f"{path.stem}-{taken[path.stem] + 1}"
        names.append(name)
    return names
