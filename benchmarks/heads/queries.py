"""Sites that QueryDet computes, chosen for a measurement; run as a script, the share at which dense maps are faster.

    python benchmarks/heads/queries.py [--size 800x1344] [--pairs 6] [--dtype bfloat16]

An untrained query head asks for all sites or for none. So the measured detector computes its query head, and asks
instead for what a perfectly trained one would: the targets of training (``query_target``, each object's own scale as
radius) for square objects of 16 to 32 px at random places, one after another until the chosen share of P2's and P3's
sites is active. Its boxes have the scores of random weights, so suppression has next to nothing to do on both sides.

The script runs the head on P2 alone, at shares up to 100 %, by gathered rows and by dense convolutions of masked maps,
interleaved. Where their ratio crosses 1 is ``spaces.querydet.modules.DENSE_SHARE``, by the type that is computed in.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [] if os.environ.get("PYTHONPATH") else [str(HERE.parents[1])]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from trainers.contract import DTYPES  # noqa: E402
from trainers.speed import Pass  # noqa: E402

# Side of the objects in px: below s_l of P3, so that P4 and P3 both ask for them.
SMALLEST, LARGEST = 16.0, 32.0
STRIDES = (8, 16)
# How far above the chosen share one may end, and how many objects are tried for that.
OVER, TRIES = 1.05, 50


class Objects:
    """Asks for what objects call for, in the place of a head's ``asks``.

    The first call of a pass is that of the start level P4, from whose size the plan for a share follows; each image of
    a batch has the same one.

    Args:
        share: Of P2's and P3's sites together that are active, in 0..1.
        context: Of the head.
        seed: Of the objects' places and sizes.
    """

    def __init__(self, share: float, context: int, seed: int = 0) -> None:
        self.share = share
        self.context = context
        self.seed = seed
        self.notes: dict[str, Any] = {}
        self._plan: tuple[Tensor, Tensor] | None = None

    def __deepcopy__(self, memo: Any) -> Objects:
        """Itself: what is timed is a copy of the detector, and the notes are to be those of its passes."""
        return self

    def __call__(self, logits: Tensor) -> Tensor:
        """(N, h, w) logits of P4, or (k,) at P3's keys, to which of them ask."""
        from spaces.querydet.sparse import key_mask

        # What the head computes for itself.
        asked = logits.float().sigmoid() > 1
        if logits.dim() == 3:
            images, height, width = logits.shape
            if self._plan is None or self._plan[0].shape != logits.shape:
                plan = self._made((height, width))
                self._plan = tuple(mask.expand(images, -1, -1).to(logits.device) for mask in plan)  # type: ignore[assignment]
            return asked | self._plan[0]
        coarse, fine = self._plan  # type: ignore[misc]
        return asked | fine[key_mask(coarse, fine.shape[1:])]

    def _made(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        height, width = size
        masks = (torch.zeros(1, height, width).bool(), torch.zeros(1, 2 * height, 2 * width).bool())
        objects, active = 0, self._active(masks)
        while _share(active) < self.share:
            for _ in range(TRIES):
                more = self._with_object(masks, generator)
                if _share(self._active(more)) <= self.share * OVER:
                    break
            masks, objects = more, objects + 1
            active = self._active(masks)
        fine, finest = _keys(masks)
        self.notes.update(
            objects=objects,
            share=_share(active),
            active={"P3": float(active[0].float().mean()), "P2": float(active[1].float().mean())},
            keys={"P3": float(fine.float().mean()), "P2": float(finest.float().mean())},
        )
        return masks

    def _with_object(self, masks: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        from spaces.querydet.modules import query_target
        from spaces.querydet.sparse import key_mask

        height, width = masks[0].shape[1:]
        centre = torch.rand(2, generator=generator) * torch.tensor([width, height]) * STRIDES[1]
        side = SMALLEST + (LARGEST - SMALLEST) * float(torch.rand(1, generator=generator))
        box = torch.cat((centre - side / 2, centre + side / 2))[None]
        coarse, fine = (
            mask | query_target(mask.shape[1:], stride, box, 4.0 * stride, "object").bool()[None]
            for mask, stride in zip(masks, STRIDES[::-1], strict=True)
        )
        # Only keys can ask.
        return coarse, fine & key_mask(coarse, fine.shape[1:])

    def _active(self, masks: tuple[Tensor, Tensor]) -> list[Tensor]:
        from spaces.querydet.sparse import spread

        return [spread(keys, self.context) for keys in _keys(masks)]


def _keys(masks: tuple[Tensor, Tensor]) -> list[Tensor]:
    from spaces.querydet.sparse import key_mask

    return [key_mask(mask, (2 * mask.shape[1], 2 * mask.shape[2])) for mask in masks]


def _share(active: list[Tensor]) -> float:
    return sum(int(mask.sum()) for mask in active) / sum(mask.numel() for mask in active)


def asking(share: float) -> Any:
    """Makes a case's ``ready``: all that query, the baseline too, ask for this share of P2's and P3's sites."""

    def ready(candidate: Any, baseline: Any) -> Mapping[str, Any]:
        asked = Objects(share, candidate.bbox_head.context)
        for model in (candidate, baseline):
            if model.bbox_head.threshold:
                model.bbox_head.asks = asked
        return asked.notes

    return ready


def fine_levels(model: Any, features: tuple[Tensor, ...], images: Tensor) -> Pass:
    """The head on the whole pyramid: by its cascade, or densely with a threshold of 0."""
    head = model.bbox_head
    return (lambda: head.cascade(features)) if head.threshold else (lambda: head(features))


def _sparse(head: Any, x: Tensor, keys: Any, share: float) -> Pass:
    """The head at ``keys`` of its finest level, by gathered rows up to a ``share`` of the map."""
    from spaces.querydet import modules

    def run() -> object:
        modules.DENSE_SHARE = dict.fromkeys(modules.DENSE_SHARE, share)
        return head._sparse(0, x, None, keys, keys)

    return run


def main() -> None:
    """Measures the break-even share, and prints it."""
    from benchmarks.heads.run import design
    from spaces.autocast import autocast
    from spaces.querydet.sparse import find_sites
    from trainers import speed
    from trainers.means import settle
    from trainers.profile import build_patched

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--size", default="800x1344")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--shares", default="20,30,40,50,60,70,80,90,100", help="of the sites, in %%")
    parser.add_argument("--lease")
    arguments = parser.parse_args()
    settle(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    base = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
    built = autocast(build_patched(base, design(base, {"querydet.threshold": 0.15})), arguments.dtype)
    model = speed.prepare(built, device)
    head = model.bbox_head
    height, width = (math.ceil(int(side) / 4) for side in arguments.size.split("x"))
    x = torch.randn(1, 256, height, width, device=device, dtype=getattr(torch, arguments.dtype))
    x = x.contiguous(memory_format=torch.channels_last)
    for percent in map(int, arguments.shares.split(",")):
        mask = torch.zeros(1, height, width, dtype=torch.bool, device=device)
        mask[:, : round(height * percent / 100)] = True
        (keys,) = find_sites(mask)

        with ExitStack() as within:
            within.enter_context(speed.exclusive(arguments.lease))
            within.enter_context(torch.inference_mode())
            if arguments.dtype != "float32":
                within.enter_context(torch.autocast(device, getattr(torch, arguments.dtype)))
                within.enter_context(model.short.lent())
            passes = {"masked": _sparse(head, x, keys, 0.0), "rows": _sparse(head, x, keys, 1.0)}
            passes["dense"] = partial(head.level, 0, x)
            found = {}
            for name, other in (("rows", "masked"), ("masked", "dense")):
                passes[name](), passes[other]()
                latency = speed.paired(
                    passes[name], passes[other], pairs=arguments.pairs, seconds=0, clock=speed.clock_of(device)
                )
                found[f"{name}/{other}"] = [round(value, 3) for value in (latency.ratio, latency.q1, latency.q3)]
        print(json.dumps({"share": percent / 100, "device": device, "dtype": arguments.dtype, **found}), flush=True)


if __name__ == "__main__":
    main()
