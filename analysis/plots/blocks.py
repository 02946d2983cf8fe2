"""What is known of each convolution whose scale was learned, in order of depth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.record import TrialRecord
from spaces.pod.scales import TOWERS, decompose, depth_names, stage_of, tower_element


@dataclass(frozen=True)
class Block:
    """One convolution.

    Attributes:
        path: Its path in the detector.
        name: As in the paper's figure 6, ``conv4_6``.
        group: ``conv4``, ``cls``: the stage or the tower that it stands in.
        mean: Scale (h, w), averaged over images.
        std: Standard deviation of each over the images.
        least: Least of each.
        most: Largest of each.
        images: Images averaged over.
        low: Whole dilations (h, w) of the first channels; 0 is a kernel of 1 on that axis.
        up: Whole dilations (h, w) of the last channels.
        share_up: Share of the channels that have ``up``.
    """

    path: str
    name: str
    group: str
    mean: tuple[float, float]
    std: tuple[float, float]
    least: tuple[float, float]
    most: tuple[float, float]
    images: int
    low: tuple[int, int]
    up: tuple[int, int]
    share_up: float


def blocks_of(record: TrialRecord) -> list[Block]:
    """Reads the learned scales of a trial, the stages by depth and then the towers.

    Returns:
        Nothing before the trial has learned them.
    """
    scales: Mapping[str, Mapping[str, float]] = record.attrs.get("scales") or {}
    names = depth_names(scales)
    known = {name: record.knobs.get(f"pod.{name}") for name in ("tolerance", "round_channels")}
    options = {name: value for name, value in known.items() if value is not None}
    return [_block(path, names[path], scales[path], options) for path in sorted(scales, key=_depth)]


def _block(path: str, name: str, scale: Mapping[str, float], options: Mapping[str, Any]) -> Block:
    def pair(key: str) -> tuple[float, float]:
        return float(scale[f"{key}_h"]), float(scale[f"{key}_w"])

    channels = int(scale["channels"])
    split = decompose(*pair("d"), channels, groups=int(scale["groups"]), **options)
    stage = stage_of(path)
    element = tower_element(path)
    return Block(
        path=path,
        name=name,
        group=f"conv{stage}" if stage else element.partition(".")[0] if element else "",
        mean=pair("d"),
        std=pair("std"),
        least=pair("min"),
        most=pair("max"),
        images=int(scale["images"]),
        low=split.low,
        up=split.up,
        share_up=split.n_up / channels,
    )


def _depth(path: str) -> tuple[int, int, list[int]]:
    stage, element = stage_of(path), tower_element(path)
    numbers = [int(number) for number in re.findall(r"\d+", path)]
    if stage is not None:
        return 0, stage, numbers
    return 1, list(TOWERS).index(element.partition(".")[0]) if element else len(TOWERS), numbers
