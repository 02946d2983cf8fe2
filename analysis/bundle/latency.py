"""The latency of a bundle against its baseline: what its receipt tells of it, and whether it is the same again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from analysis.bundle.receipt import NAME, hash_files, read_receipt
from analysis.labels import dtype_of
from analysis.record import TrialRecord
from spaces.errors import HeadwayError, UserError
from spaces.patching import split
from spaces.registry import families
from trainers.versus import Images, Versus, VersusRequest, versus

BASELINE = "baseline.py"
LEAST_NOISE = 1.02
"""Factor that two measurements of the same ratio may lie apart whatever else is known (docs/speed.md)."""
MOST_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class LatencyCheck:
    """What was found out about a bundle's latency.

    Attributes:
        state: ``agrees``, ``differs``, ``elsewhere`` (measured on another device than the search's, so it decides
            nothing) or ``unknown`` (not measured).
        words: That in a sentence.
        expected: Ratio of the receipt, ``None`` where it has none.
        found: What was measured now.
        noise: Factor that the ratios may lie apart beyond their quartiles.
    """

    state: str
    words: str
    expected: float | None = None
    found: Versus | None = None
    noise: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Gives the result as plain JSON types."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return value


def latency_section(
    record: TrialRecord, baseline: TrialRecord | None, study: Mapping[str, Any], has_config: bool
) -> dict[str, Any] | None:
    """Makes the receipt's section ``latency``: how its ratio was measured.

    Args:
        record: The trial.
        baseline: Trial 0, ``None`` where it is not known.
        study: The dumped study file.
        has_config: Whether the baseline's config is in the bundle.

    Returns:
        ``None`` where no latency was measured.
    """
    attrs, speed = record.attrs, study.get("speed") or {}
    if "latency_ratio" not in record.metrics or "speed_device" not in attrs or "count_size" not in attrs:
        return None
    reference = {} if baseline is None else baseline.attrs
    height, width = attrs["count_size"]
    return {
        "size": {"height": height, "width": width},
        "batch": speed.get("batch", 1),
        "postprocess": speed.get("postprocess", True),
        "dtype": dtype_of(study),
        "rounds": speed.get("pairs", 9),
        "seconds": speed.get("seconds", 5.0),
        "images": speed.get("images", 16) if on_images(record.knobs) else None,
        "device": attrs["speed_device"],
        "kind": attrs.get("speed_kind") or reference.get("speed_kind") or "cpu",
        "threads": attrs.get("speed_threads") or 1,
        "aa_ratio": None if baseline is None else baseline.metrics.get("aa_ratio"),
        "baseline": BASELINE if has_config else None,
    }


def on_images(knobs: Mapping[str, Any]) -> bool:
    """Whether the latency of a design depends on the image and on its trained weights."""
    return any(families()[name].on_images for name in split(knobs))


def check_latency(
    folder: Path, receipt: Mapping[str, Any], *, against: Path | None, annotations: Path, images: Path
) -> LatencyCheck:
    """Measures a bundle's latency ratio again, as the search did, and says whether it is the same.

    It is measured in turns with the baseline in one process: both untrained on noise, or, where the latency depends on
    the image, both trained on images of the validation split. The ratios agree where the ranges of their quartiles
    overlap once the receipt's is widened by what two builds of the baseline differ by, then and now, and by
    ``LEAST_NOISE`` at least. On the search's kind of device a ratio that does not agree is measured again, for longer.

    Args:
        folder: The bundle, whose files are those of its receipt.
        receipt: Its receipt.
        against: Bundle of the baseline, for a latency that depends on the image; by default one beside ``folder``.
        annotations: COCO json of the validation split.
        images: Folder of its images.

    Raises:
        UserError: ``against`` is not the baseline's bundle.
        HeadwayError: It could not be measured.
    """
    how = receipt.get("latency")
    figures = {name: (receipt["metrics"].get(name) or {}).get("value") for name in _FIGURES}
    if receipt["baseline"]:
        return LatencyCheck(state="unknown", words="latency: it is the baseline, whose ratio is 1 by definition")
    if not how or figures["latency_ratio"] is None:
        return LatencyCheck(state="unknown", words="latency: the receipt does not tell how it was measured")
    expected, low, high = (float(figures[name] or figures["latency_ratio"]) for name in _FIGURES)
    request = VersusRequest(
        candidate=str(folder / "config.py"),
        baseline=str(folder / BASELINE),
        size=(how["size"]["height"], how["size"]["width"]),
        batch=how["batch"],
        postprocess=how["postprocess"],
        device=how["kind"],
        threads=how["threads"],
        rounds=how["rounds"],
        seconds=how["seconds"],
    )
    if how["images"]:
        base = against or _beside(folder, receipt)
        if base is None:
            return LatencyCheck(
                state="unknown",
                words="latency: it depends on the image, so it is compared with the trained baseline, whose bundle is "
                "not beside this one; name it with --against",
                expected=expected,
            )
        _check_baseline(base, receipt)
        request = _with_images(request, folder, base, annotations, images, how["images"])
    elif how["baseline"] is None:
        return LatencyCheck(
            state="unknown", words="latency: the bundle has no config of the baseline", expected=expected
        )
    for turn in range(MOST_TRIES):
        found = versus(request if turn == 0 else _longer(request))
        noise = max(LEAST_NOISE, _factor(found.aa), _factor(how["aa_ratio"] or 1.0))
        agrees = low / noise <= found.q3 and found.q1 <= high * noise
        if agrees or found.device != how["device"]:
            break
    said = (
        f"latency ratio {found.ratio:.3f} now (quartiles {found.q1:.3f}-{found.q3:.3f}, {found.rounds} rounds), "
        f"{expected:.3f} ({low:.3f}-{high:.3f}) in the receipt"
    )
    said += f"; {100 * (noise - 1):.0f} % is noise: " + ("they agree" if agrees else "they differ")
    state = "agrees" if agrees else "differs"
    if found.device != how["device"]:
        state = "elsewhere"
        said += f", which decides nothing, as the search measured on {how['device']} and this is {found.device}"
    return LatencyCheck(state=state, words=said, expected=expected, found=found, noise=noise)


_FIGURES = ("latency_ratio", "latency_ratio_q1", "latency_ratio_q3")


def _factor(ratio: float) -> float:
    return math.exp(abs(math.log(ratio)))


def _longer(request: VersusRequest) -> VersusRequest:
    return replace(request, rounds=2 * request.rounds, seconds=2 * request.seconds)


def _with_images(
    request: VersusRequest, folder: Path, base: Path, annotations: Path, images: Path, count: int
) -> VersusRequest:
    asked = Images(
        weights=str(folder / "weights.pth"),
        baseline_weights=str(base / "weights.pth"),
        annotations=str(annotations),
        folder=str(images),
        count=count,
    )
    return replace(request, baseline=str(base / "config.py"), images=asked)


def _beside(folder: Path, receipt: Mapping[str, Any]) -> Path | None:
    """The baseline's bundle among the folders beside a bundle."""
    for path in sorted(folder.parent.glob(f"*/{NAME}")):
        try:
            _check_baseline(path.parent, receipt)
        except HeadwayError:
            continue
        return path.parent
    return None


def _check_baseline(base: Path, receipt: Mapping[str, Any]) -> None:
    """Refuses a bundle that is not that of the baseline of the same study.

    Raises:
        UserError: It is another one, or its files are not those of its receipt.
    """
    base = base.expanduser().absolute()
    other = read_receipt(base)
    same = other["study"].get("name") == receipt["study"].get("name") and (
        other["data"]["validation_fingerprint"] == receipt["data"]["validation_fingerprint"]
    )
    if not (other["baseline"] and same):
        raise UserError(
            f"--against: must be the bundle of the baseline of {receipt['study'].get('name')}, but {base} is of "
            f"{other['study'].get('name')}, trial {other['trial']}."
        )
    if hash_files(base) != dict(other["files"]):
        raise UserError(f"--against: the files of {base} are not those of its receipt.")
