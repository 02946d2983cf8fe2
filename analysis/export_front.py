"""Writes the bundles of a whole front: one folder a point, and an index."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analysis.bundle.latency import on_images
from analysis.bundle.onnx_graph import check_kind
from analysis.bundle.receipt import NAME, hash_files, read_receipt
from analysis.choose import Choice, picks_of
from analysis.export import export_bundle
from analysis.labels import figure, short
from analysis.pareto import front, is_point
from analysis.record import Objective, TrialRecord, spread
from spaces.errors import HeadwayError, UserError
from trainers import files
from trainers.contract import DataRequest

INDEX = "index.json"
_LOCK = ".lock"

Progress = Callable[["Exported", int, int], None]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One point of the front.

    Attributes:
        point: Its label.
        trial: Its trial's number.
        folder: Name of its bundle's folder.
        state: ``written``, ``there`` (it was whole already) or ``failed``.
        reason: Why it failed.
        picks: What ``headway choose`` calls it: ``knee``, ``fastest``, ``most_accurate``.
        baseline: True for trial 0.
        on_front: False for a baseline that is there to be compared with.
        design: Its knobs in words.
        metrics: The figures of the study's objectives.
    """

    point: str
    trial: int
    folder: str
    state: str
    reason: str | None
    picks: tuple[str, ...]
    baseline: bool
    on_front: bool
    design: str
    metrics: Mapping[str, float]


def export_front(
    trials: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    *,
    study_folder: Path,
    study: Mapping[str, Any],
    data: DataRequest,
    fingerprint: str | None,
    out: Path,
    onnx: str = "raw",
    progress: Progress | None = None,
) -> list[Exported]:
    """Writes a bundle of each point of a study's front into ``out``, with an index for people and one for programs.

    Bundles that are there and whole stay as they are, so the same call continues one that was stopped. A point that
    cannot be bundled is noted in the index and does not keep the others. Where a member's latency depends on the image,
    the baseline is bundled too, as ``headway verify`` compares with it.

    Args:
        trials: All records of the study.
        objectives: The study's.
        study_folder: The study's folder.
        study: The dumped study file.
        data: The data set.
        fingerprint: Of the data set.
        out: A new or empty folder, or one that this study's front was exported into before.
        onnx: Outputs of the ONNX graphs: ``raw``, ``nms`` or ``none``.
        progress: Called after each point with it, how many are done and how many there are.

    Returns:
        The points in the order of the front.

    Raises:
        UserError: ``out`` is taken or cannot be written, or nothing is on the front.
    """
    check_kind(onnx)
    members = front(trials, objectives)
    if not members:
        raise UserError("--all: no trial of this study is COMPLETE with a figure for every objective.")
    base = next((trial for trial in spread(trials) if trial.baseline and not trial.point), None)
    wanted = [(member, True) for member in members]
    compared = any(on_images(member.knobs) for member in members) and not any(member.baseline for member in members)
    if compared and base is not None and is_point(base, objectives):
        wanted.append((base, False))
    picks = picks_of(trials, objectives)
    out = out.expanduser().absolute()
    name = str(study.get("name"))
    with _held(out, name):
        found: list[Exported] = []
        _write_index(out, name, objectives, found, len(wanted))  # whose folder it is, from the first moment on
        for member, on_front in wanted:
            own = tuple(pick for pick, choice in picks.items() if choice.trial.label == member.label)
            folder = out / folder_name(member, objectives)
            state, reason = "there", None
            try:
                if not _whole(folder, member, name, onnx):
                    export_bundle(
                        member,
                        study_folder=study_folder,
                        study=study,
                        data=data,
                        fingerprint=fingerprint,
                        out=folder,
                        why=_why(member, own, picks, len(members), on_front),
                        baseline=base,
                        onnx=onnx,
                    )
                    state = "written"
            except Exception as error:  # whatever it is, the other points can be had
                state, reason = (
                    "failed",
                    str(error) if isinstance(error, HeadwayError) else f"{type(error).__name__}: {error}",
                )
            found.append(
                Exported(
                    point=member.label,
                    trial=member.number,
                    folder=folder.name,
                    state=state,
                    reason=reason,
                    picks=own,
                    baseline=member.baseline,
                    on_front=on_front,
                    design=str(member.attrs.get("name") or short(member.knobs)),
                    metrics={item.metric: member.metrics[item.metric] for item in objectives},
                )
            )
            _write_index(out, name, objectives, found, len(wanted))
            if progress:
                progress(found[-1], len(found), len(wanted))
    return found


def bundles_in(folder: Path) -> list[Path]:
    """Gives the bundles in a folder, those of its index first and in its order.

    Raises:
        UserError: There are none, or one that the index names is gone.
    """
    there = sorted(path.parent for path in folder.glob(f"*/{NAME}"))
    if not there:
        raise UserError(f"--all: must be given a folder with bundles in it, but {folder} has none.")
    listed: list[str] = []
    if (folder / INDEX).is_file():
        try:
            document = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            listed = [str(item["folder"]) for item in document["bundles"] if item["state"] != "failed"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"--all: {folder / INDEX} must be an index, but gives {reason}.") from error
    gone = [name for name in listed if folder / name not in there]
    if gone:
        raise UserError(f"--all: {folder / INDEX} names the bundle {gone[0]}, but there is none of that name.")
    order = {name: place for place, name in enumerate(listed)}
    return sorted(there, key=lambda path: (order.get(path.name, len(order)), path.name))


def folder_name(trial: TrialRecord, objectives: Sequence[Objective]) -> str:
    """Names a point's folder by its trial and its figures: ``trial-7.2_AP-41.3_latency-12.4ms``."""
    parts = [f"trial-{trial.label}" if not trial.baseline else "baseline"]
    for objective in objectives:
        words = re.sub(r"[^\w.+-]+", "-", figure(objective.metric, trial.metrics[objective.metric]).replace(",", ""))
        parts.append(re.sub(r"-(ms|x|G|M|MB)$", r"\1", words.strip("-")))
    return "_".join(parts)


def _why(member: TrialRecord, own: Sequence[str], picks: Mapping[str, Choice], count: int, on_front: bool) -> str:
    if own:
        return picks[own[0]].why
    if not on_front:
        return f"trial {member.label} is the baseline, which the front is compared with"
    return f"trial {member.label} is one of the {count} points of the front"


def _whole(folder: Path, member: TrialRecord, study: str, onnx: str) -> bool:
    """Whether the bundle of this point is there.

    Raises:
        UserError: There is something else, or its files are not those of its receipt.
    """
    if not (folder / NAME).is_file():
        for part in folder.parent.glob(f".{folder.name}.*.part"):  # of an export that was killed
            shutil.rmtree(part, ignore_errors=True)
        return False
    receipt = read_receipt(folder)
    if (receipt["study"].get("name"), receipt["point"], receipt["knobs"]) != (study, member.label, dict(member.knobs)):
        raise UserError(f"--out: {folder} is the bundle of another design; remove it to have this one written.")
    told = receipt.get("formats", {}).get("onnx", {}).get("asked", onnx)
    if told != onnx:
        raise UserError(f"--onnx: {folder} was written with {told}; remove it to have it written with {onnx}.")
    if hash_files(folder) != receipt["files"]:
        raise UserError(
            f"--out: the files of {folder} are not those of its receipt; remove it to have it written again."
        )
    return True


@contextmanager
def _held(out: Path, study: str) -> Iterator[None]:
    """Makes the folder and keeps other exports out of it.

    Raises:
        UserError: It is taken, or cannot be written.
    """
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"--out: must be a folder, but {out} is a file.")
        there = [path.name for path in out.iterdir() if path.name != _LOCK] if out.is_dir() else []
        if there and _study_of(out) != study:
            raise UserError(
                f"--out: must be a new or empty folder, or one that the front of {study} was exported into, but {out} "
                "has other files in it."
            )
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / _LOCK).open("a")
    except OSError as error:
        raise UserError(f"--out: must be writable, but {out} gives: {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"--out: another export writes into {out} at the moment.") from error
        yield


def _study_of(out: Path) -> str | None:
    """Whose front was exported into a folder; ``None`` where none was."""
    try:
        name = json.loads((out / INDEX).read_text(encoding="utf-8"))["study"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(name)


def _write_index(out: Path, study: str, objectives: Sequence[Objective], found: Sequence[Exported], count: int) -> None:
    document = {
        "study": study,
        "objectives": [asdict(objective) for objective in objectives],
        "points": count,
        "bundles": [asdict(item) for item in found],
    }
    files.write_text(out / INDEX, json.dumps(document, indent=2, allow_nan=False) + "\n")
    files.write_text(out / "README.md", _readme(study, objectives, found, count))


def _readme(study: str, objectives: Sequence[Objective], found: Sequence[Exported], count: int) -> str:
    whole = sum(item.state != "failed" for item in found)
    names = [figure(item.metric, 0.0).rsplit(" 0", 1)[0] for item in objectives]
    lines = [
        f"# The front of {study}",
        "",
        f"{whole} of {count} bundles made by Headway. Each folder runs with mmdet alone (see its README.md); "
        f"`headway verify . --all` measures them again. `{INDEX}` has the same as JSON.",
        "",
        "| bundle | " + " | ".join(names) + " | | design |",
        "|---|" + "---:|" * len(names) + "---|---|",
    ]
    for item in found:
        figures = [figure(name, value).removeprefix(label) for (name, value), label in zip(item.metrics.items(), names)]
        marks = [pick.replace("_", " ") for pick in item.picks] + (["baseline"] if item.baseline else [])
        link = f"[{item.folder}]({item.folder}/README.md)" if item.state != "failed" else f"{item.folder} (failed)"
        lines.append(
            f"| {link} | {' | '.join(text.strip() for text in figures)} | {', '.join(marks)} | {item.design} |"
        )
    failed = [item for item in found if item.state == "failed"]
    if failed:
        lines += ["", "## Failed", "", *(f"- {item.folder}: {item.reason}" for item in failed)]
    return "\n".join([*lines, ""])
