"""Runs a bundle again where Headway does not exist, and compares it with its receipt."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from analysis.bundle.data import read_validation, recall
from analysis.bundle.latency import LatencyCheck, check_latency
from analysis.bundle.onnx_graph import compared, judge, words
from analysis.bundle.process import Progress, run_alone
from analysis.bundle.receipt import hash_files, read_receipt
from analysis.labels import dtype_of
from spaces.errors import HeadwayError, UserError

TOLERANCE = 1e-3
"""Largest difference of AP that counts as the same; CocoMetric itself rounds to 0.001."""
SHORT_TOLERANCE = 3e-3
"""The same for a detector that predicts in a shorter type, whose last bits hang on threads and memory layouts."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What ``verify_bundle`` found out.

    Attributes:
        bundle: The bundle's folder.
        trial: The trial's number.
        ok: The files are those of the receipt, and the accuracy is the same.
        reasons: Why not, when it is not.
        warnings: What differs without making it wrong: versions, other figures, further files.
        expected: AP of the receipt, 0 to 1.
        tolerance: How far AP may be from it.
        found: AP measured now, ``None`` when it did not come to that.
        images: Validation images that it was measured on.
        files: By name ``same``, ``changed``, ``missing`` or ``new``.
        metrics: All figures measured now.
        onnx: The comparison of its ONNX graph with PyTorch: ``check``, or the ``reason`` why it was not made; ``None``
            where the bundle has no graph.
        versions: What it was run with now.
        device: Where it ran.
        latency: Whether the latency ratio is the same, ``None`` when it did not come to that or was not asked for.
        blocked: Packages proved to be out of reach of the process that ran it.
        seconds: How long it took.
    """

    bundle: str
    trial: int
    ok: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    expected: float
    tolerance: float = TOLERANCE
    found: float | None = None
    images: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    onnx: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None
    latency: LatencyCheck | None = None
    blocked: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Gives the result as plain JSON types."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return value

    def __str__(self) -> str:
        """Words the result for a person."""
        lines = [f"{'Verified' if self.ok else 'NOT verified'}: {self.bundle} (trial {self.trial})"]
        same = sum(state == "same" for state in self.files.values())
        lines.append(f"  files: {same} of {len(self.files)} as in the receipt")
        if self.found is not None:
            lines.append(
                f"  AP {self.found:.4f} on {self.images} images, {self.expected:.4f} in the receipt "
                f"(difference {abs(self.found - self.expected):.4f}, {self.tolerance:g} allowed)"
            )
            if self.onnx:
                check = self.onnx.get("check")
                lines.append(
                    f"  ONNX: {words(check) if check and check['ok'] else 'differs' if check else 'not compared'}"
                )
            lines.append(f"  ran on {self.device} in {self.seconds:.0f} s, without {', '.join(self.blocked)}")
        if self.latency is not None:
            lines.append(f"  {self.latency.words}")
        lines += [f"  because: {reason}" for reason in self.reasons]
        lines += [f"  note: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def verify_bundle(
    folder: Path,
    *,
    annotations: Path | None = None,
    images: Path | None = None,
    device: str | None = None,
    latency: bool = True,
    against: Path | None = None,
    python: Path | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Checks a bundle's files, measures its accuracy in a process that has mmdet and not Headway, then its latency.

    A bundle whose files differ from the receipt is not run.

    Args:
        folder: The bundle.
        annotations: COCO json of the validation split; by default where it lay when the bundle was made here.
        images: Folder of its images; goes with ``annotations``.
        device: ``cpu``, ``cuda:0``, ...; by default a GPU where there is one.
        latency: Whether the latency ratio is measured again (see ``analysis.bundle.latency``).
        against: Bundle of the baseline, for a latency that depends on the image; by default one beside ``folder``.
        python: Interpreter of another environment to measure the accuracy with; the latency is measured with this one.
        progress: Called with the images done and their number.

    Returns:
        The result; ``ok`` is False, with the reasons, when files, accuracy or latency differ, or it does not run.

    Raises:
        UserError: There is no bundle, or no validation data, or not that of the receipt, or no such interpreter.
    """
    begin = time.monotonic()
    if python is not None and not python.is_file():
        raise UserError(f"--python: must be a Python interpreter, but there is no file {python}.")
    folder = folder.expanduser().absolute()
    receipt = read_receipt(folder)
    expected = float(receipt["metrics"]["bbox_mAP"]["value"])
    files, reasons, warnings = compare_files(receipt["files"], hash_files(folder))
    known: dict[str, Any] = {"bundle": str(folder), "trial": receipt["trial"], "expected": expected, "files": files}
    tolerance = TOLERANCE if dtype_of(receipt["study"]) == "float32" else SHORT_TOLERANCE
    known["tolerance"] = tolerance
    if reasons:
        return Verification(**known, ok=False, reasons=tuple(reasons), warnings=tuple(warnings))

    data = read_validation(*_locate(receipt, annotations, images), who="--annotations, --images")
    wanted = receipt["data"]["validation_fingerprint"]
    if data.fingerprint != wanted:
        raise UserError(
            f"--annotations, --images: must be the validation data of the receipt, which has the fingerprint "
            f"{wanted[:16]}, but {data.annotations} with the images in {data.images} has {data.fingerprint[:16]}."
        )
    graph = compared(receipt, folder, data)
    try:
        run = run_alone(
            folder,
            annotations=data.annotations,
            images=data.images,
            onnx=graph,
            device=device,
            progress=progress,
            python=python,
        )
    except HeadwayError as error:
        return Verification(**known, ok=False, reasons=(str(error),), warnings=tuple(warnings))
    found = float(run["metrics"].get("bbox_mAP", 0.0))
    if abs(found - expected) > tolerance + 1e-9:
        reasons.append(f"AP is {found:.4f}, but {expected:.4f} in the receipt; {tolerance:g} is allowed.")
    if run["images"] != receipt["data"]["validation_images"]:
        reasons.append(f"{run['images']} images were run, but {receipt['data']['validation_images']} in the receipt.")
    timed = None
    if latency:
        try:
            timed = check_latency(folder, receipt, against=against, annotations=data.annotations, images=data.images)
        except UserError:
            raise
        except HeadwayError as error:
            reasons.append(str(error))
        if timed is not None and timed.state == "differs":
            reasons.append(f"{timed.words}.")
    onnx = run.get("onnx")
    if onnx:
        wrong, noted = judge(receipt, onnx)
        reasons += wrong
        warnings += noted
    warnings += _compare_figures(receipt["metrics"], run["metrics"], tolerance)
    warnings += _compare_versions(receipt["environment"]["exported"]["versions"], run["versions"])
    return Verification(
        **known,
        ok=not reasons,
        reasons=tuple(reasons),
        warnings=tuple(warnings),
        found=found,
        images=run["images"],
        metrics=run["metrics"],
        onnx=onnx,
        versions=run["versions"],
        device=run["device"],
        latency=timed,
        blocked=tuple(run["blocked"]),
        seconds=time.monotonic() - begin,
    )


def _locate(receipt: Mapping[str, Any], annotations: Path | None, images: Path | None) -> tuple[Path, Path]:
    if (annotations is None) != (images is None):
        given, other = ("--annotations", "--images") if annotations else ("--images", "--annotations")
        raise UserError(f"{given}: must come together with {other}, but came alone.")
    if annotations is not None and images is not None:
        return annotations.expanduser(), images.expanduser()
    found = recall(str(receipt["data"]["validation_fingerprint"]))
    if found is None:
        raise UserError(
            f"--annotations, --images: must name the validation data ({receipt['data']['validation_annotations']} and "
            f"its {receipt['data']['validation_images']} images), since it is not known where it lies on this machine."
        )
    return found


def compare_files(told: Mapping[str, str], there: Mapping[str, str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Gives the state of each file, what is wrong with them, and what is merely different."""
    states = {name: "missing" if name not in there else "same" for name in told}
    states.update({name: "changed" for name in told.keys() & there.keys() if told[name] != there[name]})
    states.update(dict.fromkeys(there.keys() - told.keys(), "new"))
    reasons = [f"{name} is {state}, by its SHA-256." for name, state in states.items() if state == "changed"]
    reasons += [f"{name} is missing." for name, state in states.items() if state == "missing"]
    new = [name for name, state in states.items() if state == "new"]
    reasons += [f"{name} is code that is not in the receipt." for name in new if name.endswith((".py", ".pyc", ".so"))]
    warnings = [f"{name} is not in the receipt." for name in new if not name.endswith((".py", ".pyc", ".so"))]
    return states, reasons, warnings


def _compare_figures(told: Mapping[str, Any], found: Mapping[str, float], tolerance: float) -> list[str]:
    return [
        f"{name} is {value:.4f}, but {told[name]['value']:.4f} in the receipt."
        for name, value in found.items()
        if name != "bbox_mAP" and told.get(name, {}).get("value") is not None
        if abs(value - told[name]["value"]) > tolerance + 1e-9
    ]


def _compare_versions(told: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    return [
        f"{name} is {found.get(name, 'not there')}, but the bundle was made with {told.get(name, 'none')}."
        for name in sorted(told.keys() | found.keys())
        if told.get(name) != found.get(name)
    ]
