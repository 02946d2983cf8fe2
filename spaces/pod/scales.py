"""Scales of 3x3 convolutions: where they stand, how they are averaged, and what integer dilations they become."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LARGEST = 64.0
"""No scale is taken to be larger; it is beyond every map of a fifth stage (the paper's largest is 9.34)."""

# mmdet's name of each tower.
TOWERS = {"cls": "cls_convs", "reg": "reg_convs", "inter": "inter_convs", "rpn": "rpn_conv"}
# 0.95 - 1 is not within 0.05 in floating point.
_SLACK = 1e-6


@dataclass(frozen=True)
class Split:
    """What a convolution with a fractional scale becomes (section 3.2).

    Attributes:
        low: Dilation (h, w) of the first channels of each group; 0 stands for a kernel of 1 on that axis.
        up: Dilation (h, w) of the last channels of each group.
        n_low: Output channels with ``low``, over all groups.
        n_up: Output channels with ``up``, over all groups.
    """

    low: tuple[int, int]
    up: tuple[int, int]
    n_low: int
    n_up: int

    @property
    def parts(self) -> tuple[tuple[int, tuple[int, int]], ...]:
        """Channels and dilation of each part that has channels, the first channels first."""
        return tuple((count, dilation) for count, dilation in ((self.n_low, self.low), (self.n_up, self.up)) if count)

    @property
    def share(self) -> float:
        """Weights (and multiply-adds) that act, as a share of the base's; 1 where no dilation is 0."""
        taps = sum(count * (3 if down else 1) * (3 if right else 1) for count, (down, right) in self.parts)
        return taps / (9 * (self.n_low + self.n_up))


def decompose(
    d_h: float, d_w: float, channels: int, tolerance: float = 0.05, round_channels: int = 1, groups: int = 1
) -> Split:
    """Turns a fractional scale into integer dilations for parts of the output channels (section 3.2).

    The last ``alpha * channels`` channels get the dilations above, the others those below, alpha being the mean of the
    two fractions. A direction that is within ``tolerance`` of an integer gets it in both parts, and alpha is the other
    direction's fraction. Shares are taken within each group and rounded half up.

    Args:
        d_h: Scale in the direction of the rows, at least 0.
        d_w: Scale in the direction of the columns.
        channels: Output channels, a multiple of ``groups``.
        tolerance: Distance from an integer that is ignored.
        round_channels: The upper part has a multiple of this many channels, or all.
        groups: Groups of the convolution.
    """
    nearest = [math.floor(scale + 0.5) for scale in (d_h, d_w)]
    fixed = [abs(scale - whole) <= tolerance + _SLACK for scale, whole in zip((d_h, d_w), nearest)]
    low, up = (
        tuple(whole if near else bound(scale) for scale, whole, near in zip((d_h, d_w), nearest, fixed))
        for bound in (math.floor, math.ceil)
    )
    fractions = [scale - math.floor(scale) for scale, near in zip((d_h, d_w), fixed) if not near]
    alpha = sum(fractions) / len(fractions) if fractions else 0.0
    of_group = channels // groups
    step = round_channels // math.gcd(round_channels, groups)
    exact = alpha * of_group
    n_up = step * math.floor(exact / step + 0.5 + _SLACK)
    if n_up > of_group or of_group - exact < abs(n_up - exact):
        n_up = of_group
    return Split((low[0], low[1]), (up[0], up[1]), groups * (of_group - n_up), groups * n_up)


def summary(rows: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, dict[str, float]]:
    """Averages scales over images.

    Args:
        rows: Of each image, (d_h, d_w) by convolution; convolutions that an image did not reach may be missing.

    Returns:
        By convolution, in the order of the network: ``d_h`` and ``d_w`` (the means), ``std_h`` and ``std_w`` (over
        the images), ``min_h``, ``max_h``, ``min_w``, ``max_w``, and ``images``, the number averaged over.
    """
    seen: dict[str, list[Sequence[float]]] = {}
    for row in rows:
        for path, scale in row.items():
            seen.setdefault(path, []).append(scale)
    found: dict[str, dict[str, float]] = {}
    for path, scales in seen.items():
        entry: dict[str, float] = {}
        for axis, values in zip("hw", zip(*scales)):
            mean = math.fsum(values) / len(values)
            entry |= {
                f"d_{axis}": mean,
                f"std_{axis}": math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)),
                f"min_{axis}": min(values),
                f"max_{axis}": max(values),
            }
        found[path] = {**entry, "images": len(scales)}
    return found


def stage_paths(stage: int, blocks: int, basic: bool, shared: bool = False) -> tuple[str, ...]:
    """Names the 3x3 convolutions of a stage by their path in a detector.

    Args:
        stage: As the papers count: 3 is ``conv3``, mmdet's ``layer2``.
        blocks: Residual blocks of the stage.
        basic: Whether they are basic blocks, with two such convolutions, and not bottlenecks, with one.
        shared: Whether the stage stands in the RoI head and not in the backbone.
    """
    root = "roi_head.shared_head" if shared else "backbone"
    names = ("conv1", "conv2") if basic else ("conv2",)
    return tuple(f"{root}.layer{stage - 1}.{block}.{name}" for block in range(blocks) for name in names)


def tower_path(element: str, part: str, depth: int) -> str:
    """Names a tower convolution by its path in a detector.

    Args:
        element: Its position: ``cls.0``, ``reg.1``, ``inter.2``, ``rpn.0``.
        part: ``bbox_head`` or ``rpn_head``.
        depth: Convolutions of the tower; that of an RPN is no list where it has one only.
    """
    branch, _, position = element.partition(".")
    if branch == "rpn" and depth == 1:
        return f"{part}.{TOWERS[branch]}"
    return f"{part}.{TOWERS[branch]}.{position}.conv"


def tower_element(path: str) -> str | None:
    """Gives the position that ``tower_path`` names; ``None`` for a convolution that is in no tower."""
    words = path.split(".")
    branch = next((branch for branch, tower in TOWERS.items() if tower in words), None)
    return branch and f"{branch}.{next((word for word in words if word.isdigit()), '0')}"


def stage_of(path: str) -> int | None:
    """Gives the stage, counted as the papers do, that a path leads into; ``None`` for one of a tower."""
    words = path.split(".")
    layer = next((word for word in words if word.startswith("layer")), None)
    return int(layer.removeprefix("layer")) + 1 if layer and words[0] in ("backbone", "roi_head") else None


def depth_names(paths: Iterable[str]) -> dict[str, str]:
    """Gives each convolution its name in plots over the depth, as in the paper's figure 6.

    Returns:
        By path ``conv4_6`` for the sixth block of ``conv4``, ``conv4_2.1`` and ``conv4_2.2`` for the two convolutions
        of a basic block, and ``cls.0`` for one of a tower.
    """
    listed = list(paths)
    # A bottleneck's only 3x3 convolution is its second, so a first one tells a basic block.
    basic = any(stage_of(path) and path.endswith(".conv1") for path in listed)
    return {path: depth_name(path, basic) for path in listed}


def depth_name(path: str, basic: bool = False) -> str:
    """Gives one convolution its name, see ``depth_names``.

    Args:
        path: Its path in a detector.
        basic: Whether it stands in a basic block.
    """
    stage = stage_of(path)
    if stage is None:
        return tower_element(path) or path
    words = path.split(".")
    name = f"conv{stage}_{int(words[-2]) + 1}"
    return f"{name}.{words[-1].removeprefix('conv')}" if basic else name
