"""Measures convolutions by themselves against the plain one and against mmcv's deformable operators.

    python benchmarks/heads/operators.py [--threads 1] [--cases dcn*] [--pairs 12]

256 to 256 channels, channels last where the form takes them, 100x168 (P3 of 800x1344) or 50x84: forward in inference
mode, and forward with backward for all inputs and weights. Each form takes turns with the plain convolution, AB BA, and
the median of the paired ratios is kept, in ``operators/MACHINE.json`` with the machine. A form's speed-up over mmcv's
is measured in pairs of its own.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [] if os.environ.get("PYTHONPATH") else [str(HERE.parents[1])]

import torch  # noqa: E402
from mmcv.ops import deform_conv2d, modulated_deform_conv2d  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.heads.run import commit, file_name, machine  # noqa: E402
from spaces.dcn.modules import DeformableConv, ModulatedDeformableConv  # noqa: E402
from spaces.dcn.sampling import deformable_conv2d  # noqa: E402
from spaces.pod.modules import DecomposedConv, GlobalScaleConv  # noqa: E402
from spaces.pod.scales import Split  # noqa: E402
from trainers.means import settle  # noqa: E402
from trainers.speed import Pass, paired  # noqa: E402

CHANNELS = 256
SCALE = (1.7, 2.9)
P3, P4 = (100, 168), (50, 84)
ONE = (1, 1)
Forms = dict[str, tuple[Callable[..., Tensor], list[Tensor]]]


def last(value: Tensor) -> Tensor:
    """Turns a tensor to channels-last."""
    return value.contiguous(memory_format=torch.channels_last)


def plain(size: tuple[int, int]) -> tuple[nn.Conv2d, Tensor]:
    """A plain convolution and its input."""
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return conv, last(torch.randn(1, CHANNELS, *size))


def deformable(version: int) -> Forms:
    """The operator, without the convolution that makes its offsets, ours and mmcv's."""
    conv, x = plain(P3)
    offset, mask = 2 * torch.randn(1, 18, *P3), torch.rand(1, 9, *P3)
    weight = conv.weight.detach()
    if version == 1:
        return {
            "ours": (
                lambda x, offset, weight: deformable_conv2d(x, offset, None, weight, None, ONE, ONE, ONE),
                [x, last(offset), weight],
            ),
            "mmcv": (
                lambda x, offset, weight: deform_conv2d(x, offset, weight, 1, 1, 1, 1, 1),
                [x.contiguous(), offset, weight.contiguous()],
            ),
            "plain": (conv, [x]),
        }
    return {
        "ours": (
            lambda x, offset, mask, weight: deformable_conv2d(x, offset, mask, weight, None, ONE, ONE, ONE),
            [x, last(offset), last(mask), weight],
        ),
        "mmcv": (
            lambda x, offset, mask, weight: modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1, 1, 1, 1),
            [x.contiguous(), offset, mask, weight.contiguous()],
        ),
        "plain": (conv, [x]),
    }


def layer(version: int) -> Forms:
    """The whole layer with its offset convolution, against the plain one."""
    conv, x = plain(P3)
    kind = {1: DeformableConv, 2: ModulatedDeformableConv}[version]
    module = kind(CHANNELS, CHANNELS, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    nn.init.normal_(module.conv_offset.weight, std=0.02)
    return {"ours": (module, [x]), "plain": (conv, [x])}


def learning() -> Forms:
    """A learned scale, against mmcv's operator with the same offsets."""
    conv, x = plain(P4)
    ours, _ = plain(P4)
    GlobalScaleConv.replace(ours)
    ours.scale.bias.data.copy_(torch.tensor(SCALE))
    taps = torch.tensor([-1.0, 0.0, 1.0])

    def by_mmcv(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        down, right = (scale[0] - 1) * taps[:, None], (scale[1] - 1) * taps
        offset = torch.stack((down.expand(3, 3), right.expand(3, 3)), -1).reshape(1, 18, 1, 1).expand(-1, -1, *P4)
        return deform_conv2d(x, offset.contiguous(), weight, 1, 1, 1, 1, 1)

    weight = conv.weight.detach().contiguous()
    return {
        "ours": (ours, [x]),
        "mmcv": (by_mmcv, [x.contiguous(), torch.tensor(SCALE), weight]),
        "plain": (conv, [x]),
    }


def decomposed(low: int) -> Forms:
    """The first ``low`` channels with the dilations below (1.7, 2.9), the others with those above."""
    conv, x = plain(P4)
    ours, _ = plain(P4)
    DecomposedConv.replace(ours, Split((1, 2), (2, 3), low, CHANNELS - low))
    return {"ours": (ours, [x]), "plain": (conv, [x])}


CASES: dict[str, Callable[[], Forms]] = {
    "dcn-1": lambda: deformable(1),
    "dcn-2": lambda: deformable(2),
    "dcn-1-layer": lambda: layer(1),
    "dcn-2-layer": lambda: layer(2),
    "pod-learning": learning,
    "pod-51+205": lambda: decomposed(51),
    "pod-48+208": lambda: decomposed(48),
    "pod-64+192": lambda: decomposed(64),
}


def passes(form: tuple[Callable[..., Tensor], list[Tensor]]) -> dict[str, Pass]:
    """Gives what is timed: forward, and forward with backward for inputs and weights."""
    function, given = form
    leaves = [value.detach().requires_grad_() for value in given]
    weights = list(function.parameters()) if isinstance(function, nn.Module) else []
    arriving = torch.ones_like(function(*given).detach())

    def forward() -> None:
        with torch.inference_mode():
            function(*given)

    def both() -> None:
        torch.autograd.grad(function(*leaves), [*leaves, *weights], arriving)

    return {"forward": forward, "forward and backward": both}


def measure(name: str, pairs: int, seconds: float) -> list[dict[str, Any]]:
    """Measures one case: the speed-up of ours over each other form."""
    forms = {form: passes(value) for form, value in CASES[name]().items()}
    ours = forms.pop("ours")
    lines = []
    for way, candidate in ours.items():
        for other, found in forms.items():
            candidate()
            found[way]()
            taken = paired(candidate, found[way], pairs=pairs, seconds=seconds)
            lines.append(
                {
                    "case": name,
                    "way": way,
                    "against": other,
                    "speedup": round(1 / taken.ratio, 4),
                    "q1": round(1 / taken.q3, 4),
                    "q3": round(1 / taken.q1, 4),
                    "pairs": taken.pairs,
                    "ms": round(taken.candidate_ms, 2),
                    "against_ms": round(taken.baseline_ms, 2),
                }
            )
            print(json.dumps(lines[-1]), flush=True)
    return lines


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default="*", help="names or patterns, comma-separated (default: all)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all)")
    parser.add_argument("--pairs", type=int, default=8, help="least number of interleaved pairs (default: 8)")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for more pairs than these (default: 4)")
    options = parser.parse_args()
    settle(options.threads)
    described = machine("cpu", options.threads)
    path = HERE / "operators" / file_name(described).replace(".jsonl", ".json")
    before = json.loads(path.read_text(encoding="utf-8"))["measured"] if path.is_file() else []
    wanted = [name for name in CASES if any(fnmatch.fnmatch(name, one) for one in options.cases.split(","))]
    lines = [line for line in before if line["case"] not in wanted]
    for name in wanted:
        lines += measure(name, options.pairs, options.seconds)
        path.parent.mkdir(exist_ok=True)
        document = {"machine": described, "commit": commit(), "measured": lines}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
