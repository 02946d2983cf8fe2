"""Where a pass spends its time: by part of the detector and by pyramid level of its dense head."""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from mmcv import ops
from torch import Tensor, nn

from trainers import heartbeat, speed
from trainers.cost import Tally, level_names, levels_of, mark
from trainers.traffic import Traffic, counting

PARTS = ("backbone", "neck", "towers", "projections", "head", "pooling", "roi_head", "mask_head", "decoding", "nms")
"""In the order of a pass; ``other`` is the rest. ``towers``, ``projections`` (the last convolutions, which give the
predictions) and ``head`` (what else it does: resizing, reshaping, ReLUs between) are those of the dense head, or of the
RPN of a two-stage detector; ``roi_head`` has its box heads, ``pooling`` the pooling of RoIs."""

_BY_LEVEL = ("towers", "projections", "head")
_TOWERS = re.compile(r"convs|towers?\b|^rpn_conv")
_NMS = ("batched_nms", "nms_rotated", "nms_quadri")


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What a pass does in one part, on one level.

    Attributes:
        part: One of ``PARTS`` or ``other``.
        level: ``P3`` for stride 8; ``None`` for what belongs to no level or to several.
        ms: Median time in a pass, in ms, with the overhead of what measures it.
        macs: Multiply-adds, as ``trainers.cost`` counts them.
        bytes: Bytes read and written, see ``trainers.traffic``.
    """

    part: str
    level: str | None
    ms: float
    macs: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class TimeMap:
    """A pass cut into stretches.

    Attributes:
        stretches: In the order of a pass, levels from the finest.
        sum_ms: What the stretches add up to.
        whole_ms: Median time of a pass that was not cut, in turns with those that were.
        overhead: Median of the paired ratios cut / not cut.
        passes: Passes that were cut.
    """

    stretches: Sequence[Stretch]
    sum_ms: float
    whole_ms: float
    overhead: float
    passes: int

    def shares(self) -> list[dict[str, Any]]:
        """Gives ``part``, ``level`` and ``share`` (of ``sum_ms``, 0 to 1) of each stretch, as JSON types."""
        return [
            {"part": one.part, "level": one.level, "share": round(one.ms / self.sum_ms, 6)} for one in self.stretches
        ]


def map_time(passes: Sequence[tuple[Any, speed.Pass]], *, device: str, rounds: int = 2) -> list[TimeMap]:
    """Cuts the passes of some detectors, all in turns: A whole, A cut, B whole, B cut, and then the other way round.

    Each detector runs once more before, to see which call works on which level and what it computes. Whoever holds the
    lease of ``speed.exclusive`` meanwhile keeps others out.

    Args:
        passes: Prepared detectors (``speed.prepare``) with a pass of each; they are as before afterwards.
        device: ``cpu`` or ``cuda``.
        rounds: Rounds over all of them, 1 or more.
    """
    makers = [_Cutter(model, run, device) for model, run in passes]
    with torch.inference_mode():
        for cutter in makers:
            cutter.whole()
        for turn in range(rounds):
            for cutter in makers if turn % 2 == 0 else makers[::-1]:
                heartbeat.beat()
                steps = (cutter.whole, cutter.cut)
                for step in steps if turn % 2 == 0 else steps[::-1]:
                    step()
    # The first pass that was not cut was to warm up.
    return [cutter.summed() for cutter in makers]


def note(model: Any, run: Callable[[Any, str], speed.Pass], *, device: str) -> dict[str, Any]:
    """Gives what a trial keeps of where its time goes, few passes long; they belong under its measurement's lease.

    Args:
        model: The detector on its device; left as it is, a prepared copy is timed.
        run: Makes the pass of the prepared copy on the device.
        device: ``cpu`` or ``cuda``.

    Returns:
        ``time`` with ``parts`` (see ``TimeMap.shares``), ``overhead`` and ``passes``; or ``time_note``, why there is
        none: a picture beside the trial's figures is no reason to fail it.
    """
    try:
        prepared = speed.prepare(model, device)
        (found,) = map_time([(prepared, run(prepared, device))], device=device)
    except Exception as error:  # whatever the code of a base does that is built otherwise
        return {"time_note": f"no map of the time: {type(error).__name__}: {error}"[:500]}
    return {"time": {"parts": found.shares(), "overhead": round(found.overhead, 4), "passes": found.passes}}


@dataclass
class _Seen:
    """The spans of one pass in the order in which they begin; the first is the pass itself.

    Attributes:
        parts: Of each span.
        levels: Of each, those whose maps it worked on.
        macs: Of each, without the spans inside.
        bytes: Of each, without the spans inside.
        marks: Where the pass went from span to span: when, and the span that begins or goes on there.
    """

    now: Callable[[], Any] = lambda: None
    parts: list[str] = field(default_factory=list)
    levels: list[set[str]] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    marks: list[tuple[Any, int]] = field(default_factory=list)
    stack: list[int] = field(default_factory=list)

    def enter(self, part: str) -> None:
        self.stack.append(len(self.parts))
        self.parts.append(part)
        self.levels.append(set())
        self.macs.append(0)
        self.bytes.append(0)
        self.marks.append((self.now(), self.stack[-1]))

    def leave(self) -> None:
        inner = self.stack.pop()
        if self.stack:
            self.levels[self.stack[-1]] |= self.levels[inner]
        self.marks.append((self.now(), self.stack[-1] if self.stack else -1))


class _SpanTally(Tally):
    """Puts multiply-adds and levels down to the span that runs."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self._seen = seen

    def add(self, macs: int, out: Tensor, levels: frozenset[str]) -> None:
        self._seen.macs[self._seen.stack[-1]] += macs

    def saw(self, levels: frozenset[str]) -> None:
        self._seen.levels[self._seen.stack[-1]] |= levels


class _SpanTraffic(Traffic):  # type: ignore[no-untyped-call]
    """Puts bytes down to the span that runs."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self._seen = seen

    def add(self, count: int) -> None:
        self._seen.bytes[self._seen.stack[-1]] += count


class _Cutter:
    """One detector's passes, whole and cut."""

    def __init__(self, model: Any, run: speed.Pass, device: str) -> None:
        self._model, self._run = model, run
        self._clock = speed.clock_of(device)
        self._stamp: Callable[[], Any] = _event if device == "cuda" else time.perf_counter
        self._cuda = device == "cuda"
        self._wholes: list[float] = []
        self._cuts: list[dict[int, float]] = []
        self._plan = self._planned()

    def _planned(self) -> _Seen:
        seen = _Seen()
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_names_of_levels(self._model))
            stack.enter_context(_spans(self._model, seen))
            stack.enter_context(counting(self._model, _SpanTally(seen)))
            seen.enter("other")
            with _SpanTraffic(seen):
                self._run()
            seen.leave()
        return seen

    def whole(self) -> None:
        self._wholes.append(self._clock(self._run))

    def cut(self) -> None:
        seen = _Seen(now=self._stamp)
        with _spans(self._model, seen):
            if self._cuda:
                torch.cuda.synchronize()
            seen.enter("other")
            self._run()
            seen.leave()
            if self._cuda:
                torch.cuda.synchronize()
        same = seen.parts == self._plan.parts
        if not same:
            # What the image decides was decided otherwise: known by part alone.
            self._plan.levels = [set() for _ in seen.parts]
            self._plan.parts = seen.parts
        spent: dict[int, float] = dict.fromkeys(range(len(seen.parts)), 0.0)
        for (begin, span), (end, _) in pairwise(seen.marks):
            spent[span] += begin.elapsed_time(end) if self._cuda else (end - begin) * 1e3
        self._cuts.append(spent)

    def summed(self) -> TimeMap:
        plan = self._plan
        names = [_label(part, levels) for part, levels in zip(plan.parts, plan.levels, strict=True)]
        keys = sorted(set(names), key=lambda key: (_place(key[0]), key[1] is None, len(key[1] or ""), key[1] or ""))
        by_pass = [_grouped(names, spent) for spent in self._cuts]
        macs, moved = (_grouped(names, dict(enumerate(counts))) for counts in (plan.macs, plan.bytes))
        stretches = [
            Stretch(
                part=part,
                level=level,
                ms=statistics.median(of_pass.get((part, level), 0.0) for of_pass in by_pass),
                macs=int(macs.get((part, level), 0)),
                bytes=int(moved.get((part, level), 0)),
            )
            for part, level in keys
        ]
        wholes = self._wholes[1:]
        ratios = [sum(spent.values()) / whole for spent, whole in zip(self._cuts, wholes, strict=True)]
        return TimeMap(
            stretches=stretches,
            sum_ms=sum(one.ms for one in stretches),
            whole_ms=statistics.median(wholes),
            overhead=statistics.median(ratios),
            passes=len(self._cuts),
        )


def _label(part: str, levels: set[str]) -> tuple[str, str | None]:
    return part, next(iter(levels)) if part in _BY_LEVEL and len(levels) == 1 else None


def _place(part: str) -> int:
    return PARTS.index(part) if part in PARTS else len(PARTS)


def _grouped(
    names: Sequence[tuple[str, str | None]], values: Mapping[int, float]
) -> dict[tuple[str, str | None], float]:
    found: dict[tuple[str, str | None], float] = {}
    for index, value in values.items():
        if index < len(names):
            found[names[index]] = found.get(names[index], 0.0) + value
    return found


def _event() -> Any:
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


# Where the spans are


@contextmanager
def _spans(model: Any, seen: _Seen) -> Iterator[None]:
    """Lets a detector tell ``seen`` when it enters and leaves its parts."""
    with ExitStack() as stack:
        for part, module in _modules(model):
            for handle in (
                module.register_forward_pre_hook(lambda *_, part=part: seen.enter(part)),
                module.register_forward_hook(lambda *_: seen.leave()),
            ):
                stack.callback(handle.remove)
        for part, owner, name in _methods(model):
            stack.enter_context(_replaced(owner, name, _within(seen, part, getattr(owner, name))))
        for module, name in _suppressions():
            stack.enter_context(_replaced(module, name, _within(seen, "nms", getattr(module, name))))
        yield


def _modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    for name in ("backbone", "neck", "mask_head"):
        module = getattr(model, name, None)
        if isinstance(module, nn.Module):
            yield name, module
    dense = _dense(model)
    if dense is not None:
        for path, unit in _units(dense, ""):
            yield "towers" if _TOWERS.search(path) else "projections", unit
    roi = getattr(model, "roi_head", None)
    for name, part in (("bbox_roi_extractor", "pooling"), ("mask_roi_extractor", "pooling"), ("bbox_head", "roi_head")):
        module = getattr(roi, name, None)
        yield from ((part, one) for one in (module if isinstance(module, nn.ModuleList) else [module]) if one)


def _units(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules that are called and have weights."""
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _units(child, inner)
        elif next(child.parameters(), None) is not None:
            yield inner, child


def _methods(model: Any) -> Iterator[tuple[str, Any, str]]:
    """Functions that are no modules: the dense head's prediction, its work on one level, and all decoding."""
    roi = getattr(model, "roi_head", None)
    boxes = getattr(roi, "bbox_head", None)
    owners = [(_dense(model), "head"), *((one, "") for one in (boxes if isinstance(boxes, nn.ModuleList) else [boxes]))]
    for owner, own in owners:
        for name, part in (
            ("predict", own),
            ("forward", own),
            ("forward_single", own),
            ("predict_by_feat", "decoding"),
            ("_predict_by_feat_single", "decoding"),
        ):
            if part and hasattr(owner, name):
                yield part, owner, name
    if hasattr(roi, "predict"):
        yield "roi_head", roi, "predict"


def _suppressions() -> Iterator[tuple[Any, str]]:
    """Every module that has one of mmcv's functions for NMS under its name."""
    for name in _NMS:
        function = getattr(ops, name)
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get(name) is function:
                yield module, name


def _dense(model: Any) -> Any:
    return getattr(model, "rpn_head", None) or getattr(model, "bbox_head", None)


def _within(seen: _Seen, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def cut(*args: Any, **kwargs: Any) -> Any:
        seen.enter(part)
        try:
            return function(*args, **kwargs)
        finally:
            seen.leave()

    return cut


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Puts ``value`` in the place of an attribute, and afterwards takes it away again."""
    own = vars(owner)
    missing = object()
    before = own.get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def _names_of_levels(model: Any) -> Iterator[None]:
    """Lets the pyramid's maps carry the names of their levels, as ``Tally`` follows them."""
    extract = model.extract_feat

    def marked(images: Tensor, *args: Any, **kwargs: Any) -> Any:
        features = extract(images, *args, **kwargs)
        dense = _dense(model)
        if dense is not None:
            height, width = images.shape[-2:]
            for name, feature in zip(level_names(dense, features, (height, width)), features, strict=True):
                mark(feature, frozenset({name}))
        return features

    def passed_on(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
        mark(out, levels_of(given[0]))

    # Their operators are none of torch's, so nothing is seen to come out of them.
    deformable = [
        layer for layer in model.modules() if isinstance(layer, (ops.DeformConv2d, ops.ModulatedDeformConv2d))
    ]
    with ExitStack() as stack:
        for layer in deformable:
            stack.callback(layer.register_forward_hook(passed_on).remove)
        stack.enter_context(_replaced(model, "extract_feat", marked))
        yield
