"""What a detector costs: multiply-adds, parameters and activations, by part and by pyramid level."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.ops import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2d, ModulatedDeformConv2dPack
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.dense_heads.condinst_head import CondInstMaskHead
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from spaces.errors import HeadwayError, UserError

# What a trained detector does depends on the image; these are mmdet's limits, as in published counts.
PROPOSALS = 1000
INSTANCES = 100
_PARTS = {"bbox_head": "head", "rpn_head": "rpn"}
_NOT_HEAD = ("backbone", "neck")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one image, in units of one.

    Attributes:
        macs: Multiply-adds of convolutions (plain, transposed, deformable), linear layers and other products of
            matrices; biases and norms excluded.
        macs_parts: The same by part: ``backbone``, ``neck``, ``head``; ``rpn`` and ``roi_head`` (boxes and masks) of
            two-stage detectors; ``mask_head`` of CondInst and BoxInst.
        macs_levels: Multiply-adds of the dense head (of the RPN in a two-stage detector) by the pyramid level that
            they are spent on, named by stride: ``P3`` is stride 8. Sums up to the head's; what depends on several
            levels at once, or on none, is under ``mixed``.
        params: Parameters, frozen ones included.
        params_parts: The same by part.
        activations: Elements that the counted layers write.
    """

    macs: int
    macs_parts: Mapping[str, int]
    macs_levels: Mapping[str, int]
    params: int
    params_parts: Mapping[str, int]
    activations: int

    def to_json(self) -> dict[str, Any]:
        """Gives the ``macs`` and ``params`` of ``headway profile --json``."""
        return {
            "macs": {"total": self.macs, "parts": dict(self.macs_parts), "levels": dict(self.macs_levels)},
            "params": {"total": self.params, "parts": dict(self.params_parts)},
        }

    def to_metrics(self) -> dict[str, float]:
        """Gives ``gmacs``, ``head_gmacs`` (all but backbone and neck), ``params_m`` and ``activations_m``."""
        return {
            "gmacs": self.macs / 1e9,
            "head_gmacs": _beyond_neck(self.macs_parts) / 1e9,
            "params_m": self.params / 1e6,
            "activations_m": self.activations / 1e6,
        }


def count(model: nn.Module, size: tuple[int, int]) -> Cost:
    """Counts one forward pass of a built mmdet detector, without decoding and NMS.

    The pass runs on a copy without data (the meta device); ``model`` stays as it is. Operators that need data make it
    run once more on a copy with zeros as input; deformable convolutions are never computed in either.

    The box head of a two-stage detector is counted for 1,000 proposals in each stage. Masks are counted for 100
    instances: the mask head of Mask R-CNN once for each, that of Cascade Mask R-CNN in each of its stages, and the
    dynamic convolutions of CondInst and BoxInst over the whole mask feature, which itself is counted once.

    Args:
        model: A one-stage detector with a dense head, or a two-stage one.
        size: Height and width of the input in px, padding included.

    Raises:
        UserError: The size is too small, or the detector is of a kind that cannot be counted yet.
        HeadwayError: The forward pass failed.
    """
    if len(size) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 32 for side in size):
        raise UserError(f"size: must be a height and a width of 32 px or more each, but got {size!r}.")
    _refuse(model)
    try:
        tally = _tally(_copy(model, meta=True), size, torch.device("meta"))
    except Exception:  # Whatever an operator without a meta form raises.
        try:
            tally = _tally(_copy(model, meta=False), size, next(model.parameters()).device)
        except Exception as error:
            height, width = size
            raise HeadwayError(
                f"cost: the forward pass of {type(model).__name__} at {height}x{width} failed: "
                f"{error or type(error).__name__}"
            ) from error
    params_parts = _params(model)
    return Cost(
        macs=sum(tally.parts.values()),
        macs_parts={part: tally.parts[part] for part in params_parts | tally.parts},
        macs_levels=dict(tally.levels),
        params=sum(params_parts.values()),
        params_parts=params_parts,
        activations=tally.activations,
    )


def count_predict(
    model: nn.Module, batches: Iterable[Mapping[str, Any] | tuple[Tensor, Sequence[Any]]]
) -> dict[str, float]:
    """Counts what ``model`` really does to predict on given images, for detectors whose work depends on the image.

    Everything is computed, on the device and with the weights of ``model``, which stays as it is; what runs after the
    head and is written as products of matrices (GFL's integral over its bins, say) is counted as well. The rest is as
    in ``count``: for a detector whose work does not depend on the image, the results are equal.

    Args:
        model: Any built mmdet detector.
        batches: What a data loader yields, ``{"inputs": images, "data_samples": samples}`` each, or what comes out of
            the detector's data preprocessor: pairs of a tensor (N, C, H, W) and N samples.

    Returns:
        ``gmacs`` and ``head_gmacs`` (all but backbone and neck) as means over the images, in units of 10^9.

    Raises:
        UserError: There is no image.
    """
    twin: Any = _copy(model, meta=False)
    tally = Tally()
    for name, child in twin.named_children():
        _wrap(child, tally, _PARTS.get(name, name))
    for module in twin.modules():
        if isinstance(module, (DeformConv2d, ModulatedDeformConv2d)):
            module.forward = computed(module, tally)
    device = next(model.parameters()).device
    images = 0
    for batch in batches:
        images += len(batch["inputs"] if isinstance(batch, Mapping) else batch[0])
        with torch.no_grad(), tally:
            if isinstance(batch, Mapping):
                twin.test_step(dict(batch))
            else:
                twin(batch[0].to(device), batch[1], mode="predict")
    if not images:
        raise UserError("cost: must be counted on at least one image, but got none.")
    return {
        "gmacs": sum(tally.parts.values()) / images / 1e9,
        "head_gmacs": _beyond_neck(tally.parts) / images / 1e9,
    }


def _beyond_neck(parts: Mapping[str, int]) -> int:
    return sum(macs for part, macs in parts.items() if part not in _NOT_HEAD)


def _refuse(model: nn.Module) -> None:
    name = type(model).__name__
    dense = getattr(model, "rpn_head", None) or getattr(model, "bbox_head", None)
    if not hasattr(model, "extract_feat") or not isinstance(dense, BaseDenseHead):
        raise UserError(f"model: must be a detector with a dense head or an RPN, but {name} cannot be profiled yet.")
    roi_head = getattr(model, "roi_head", None)
    if roi_head is not None and not isinstance(roi_head, (StandardRoIHead, CascadeRoIHead)):
        raise UserError(f"model: {name} cannot be profiled yet, because of its {type(roi_head).__name__}.")
    mask_head = getattr(model, "mask_head", None)
    if mask_head is not None and not isinstance(mask_head, CondInstMaskHead):
        raise UserError(f"model: {name} cannot be profiled yet, because of its {type(mask_head).__name__}.")
    # Heads derived from these two for masks (HTC, PointRend) add branches of their own.
    if getattr(roi_head, "with_mask", False) and type(roi_head) not in (StandardRoIHead, CascadeRoIHead):
        raise UserError(
            f"model: {name} cannot be profiled yet, because of the mask head in its {type(roi_head).__name__}."
        )


# Counting


class Tally(TorchFunctionMode):
    """Sums up the convolutions, linear layers and products of matrices that run while it is active.

    Every tensor computed from a level of the pyramid carries that level, whatever its size. Hence shared towers and
    maps that were shrunk on the way are put down to the right one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: Counter[str] = Counter()
        self.levels: Counter[str] = Counter()
        self.activations = 0
        self.part = "other"
        self.by_level = False
        # Ids of the weights whose products alone count, ``None`` for all.
        self.only: frozenset[int] | None = None
        self._handlers: dict[Any, Callable[..., int]] = {F.linear: _linear}
        for dimension in "123":
            self._handlers[getattr(torch, f"conv{dimension}d")] = _convolution
            self._handlers[getattr(torch, f"conv_transpose{dimension}d")] = _transposed
        if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # of spaces/products.py
            self._handlers[torch.ops.mkldnn._linear_pointwise] = _linear
        # Dynamic and sparse convolutions are written as products of matrices (TOOD's decomposition is one).
        for name in ("mm", "bmm", "matmul", "__matmul__", "addmm", "baddbmm"):
            for owner in (torch, Tensor):
                if hasattr(owner, name):
                    self._handlers[getattr(owner, name)] = _added_product if "add" in name else _product

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        levels: frozenset[str] = frozenset().union(
            *(levels_of(tensor) for tensor in _tensors((*args, *kwargs.values())))
        )
        if levels:
            self.saw(levels)
            for tensor in _tensors((out,)):
                mark(tensor, levels | levels_of(tensor))
        if func in self._handlers and (self.only is None or any(id(value) in self.only for value in args)):
            self.add(self._handlers[func](out, *args, **kwargs), out, levels)
        return out

    def saw(self, levels: frozenset[str]) -> None:
        """Learns on which levels the operator that runs works."""

    def add(self, macs: int, out: Tensor, levels: frozenset[str]) -> None:
        """Puts down one layer that wrote ``out``."""
        self.parts[self.part] += macs
        self.activations += out.numel()
        if self.by_level:
            self.levels[next(iter(levels)) if len(levels) == 1 else "mixed"] += macs

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Puts what runs inside down to ``part``."""
        outer, self.part = self.part, part
        try:
            yield
        finally:
            self.part = outer


def _convolution(out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    # (O, I / groups, kernel...): every output element takes I / groups * kernel multiply-adds.
    return out.numel() * weight[0].numel()


def _transposed(out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    # (I, O / groups, kernel...): every input element is spread over O / groups * kernel outputs.
    return input.numel() * weight[0].numel()


def _linear(out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return out.numel() * weight.shape[-1]


def _product(out: Tensor, input: Tensor, other: Tensor, *_: Any, **__: Any) -> int:
    return out.numel() * input.shape[-1]


def _added_product(out: Tensor, input: Tensor, left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    return out.numel() * left.shape[-1]


def mark(tensor: Tensor, levels: frozenset[str]) -> None:
    tensor._headway_levels = levels  # type: ignore[attr-defined]


def levels_of(tensor: Tensor) -> frozenset[str]:
    found: frozenset[str] = getattr(tensor, "_headway_levels", frozenset())
    return found


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


# Running


def _copy(model: nn.Module, meta: bool) -> nn.Module:
    """Copies the model for one forward pass, without the data of its tensors where ``meta`` is set."""
    memo: dict[int, Any] = {}
    for module in model.modules() if meta else ():
        own = (*vars(module).values(), *module._parameters.values(), *module._buffers.values())
        for tensor in own:
            if isinstance(tensor, nn.Parameter):
                memo[id(tensor)] = nn.Parameter(tensor.detach().to("meta"), requires_grad=False)
            elif isinstance(tensor, Tensor):
                memo[id(tensor)] = tensor.detach().to("meta")
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    return twin.eval()


@torch.no_grad()
def _tally(model: Any, size: tuple[int, int], device: torch.device) -> Tally:
    tally = Tally()
    for name, child in model.named_children():
        _wrap(child, tally, _PARTS.get(name, name))
    for module in model.modules():
        if isinstance(module, (DeformConv2d, ModulatedDeformConv2d)):
            module.forward = _shape_only(module, tally)
    first = next((module for module in model.backbone.modules() if isinstance(module, nn.Conv2d)), None)
    image = torch.zeros(1, first.in_channels if first else 3, *size, device=device)
    with tally:
        # A neck may put off maps that a trained detector computes in part (spaces.querydet.neck); here they are whole.
        features = tuple(
            feature.whole() if hasattr(feature, "whole") else feature for feature in model.extract_feat(image)
        )
        dense = getattr(model, "rpn_head", None) or model.bbox_head
        for name, feature in zip(level_names(dense, features, size), features, strict=True):
            mark(feature, frozenset({name}))
            tally.levels[name] = 0
        tally.by_level = True
        dense(features)
        tally.by_level = False
        if getattr(model, "mask_head", None) is not None:
            _run_dynamic_masks(model, features)
        if getattr(model, "roi_head", None) is not None:
            with tally.within("roi_head"):
                _run_roi_head(model.roi_head, features)
    return tally


def _wrap(module: nn.Module, tally: Tally, part: str) -> None:
    forward = module.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        with tally.within(part):
            return forward(*args, **kwargs)

    module.forward = counted


def _shape_only(module: Any, tally: Tally) -> Callable[..., Tensor]:
    """Gives a forward of a deformable convolution that runs its offset convolution and counts the rest."""
    packed = isinstance(module, (DeformConv2dPack, ModulatedDeformConv2dPack))

    def forward(x: Tensor, *_: Any) -> Tensor:
        if packed:
            module.conv_offset(x)
        settings = zip(module.stride, module.padding, module.dilation, module.weight.shape[2:], strict=True)
        shape = [
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, (stride, padding, dilation, kernel) in zip(x.shape[2:], settings, strict=True)
        ]
        out = x.new_zeros(x.shape[0], module.weight.shape[0], *shape)
        tally.add(_convolution(out, x, module.weight), out, levels_of(x))
        return out

    return forward


def computed(module: Any, tally: Tally) -> Callable[..., Tensor]:
    """Gives a forward of a deformable convolution that runs it and counts it, its offset convolution included.

    It counts as one convolution, by whatever products of matrices it is computed.
    """
    forward = module.forward
    offsets = getattr(module, "conv_offset", None)

    def counted(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # Those that it has now: a detector that predicts in a shorter type lends its layers others.
        only = frozenset(id(weight) for weight in ([] if offsets is None else offsets.parameters()))
        outer, tally.only = tally.only, only
        try:
            out: Tensor = forward(x, *args, **kwargs)
        finally:
            tally.only = outer
        tally.add(_convolution(out, x, module.weight), out, levels_of(x))
        return out

    return counted


def level_names(head: nn.Module, features: tuple[Tensor, ...], size: tuple[int, int]) -> list[str]:
    strides = getattr(getattr(head, "prior_generator", None), "strides", None)
    if strides is None or len(strides) != len(features):
        strides = [max(size) / max(feature.shape[2:]) for feature in features]
    widths = [stride[0] if isinstance(stride, (list, tuple)) else stride for stride in strides]
    return [f"P{round(math.log2(width))}" for width in widths]


def _run_dynamic_masks(model: Any, features: tuple[Tensor, ...]) -> None:
    first = features[0]
    instances = InstanceData(
        param_preds=first.new_zeros(INSTANCES, model.mask_head.num_params),
        points=first.new_zeros(INSTANCES, 2),
        strides=first.new_ones(INSTANCES),
    )
    model.mask_head(features, [instances])


def _run_roi_head(roi_head: Any, features: tuple[Tensor, ...]) -> None:
    boxes, masks = (features[0].new_zeros(number, 5) for number in (PROPOSALS, INSTANCES))
    extractors = [roi_head.bbox_roi_extractor, *([roi_head.mask_roi_extractor] if roi_head.with_mask else [])]
    if isinstance(roi_head, CascadeRoIHead):
        extractors = [extractor for of_stages in extractors for extractor in of_stages]
        stages: list[tuple[int, ...]] = [(stage,) for stage in range(roi_head.num_stages)]
    else:
        stages = [()]
    for extractor in extractors:
        _pool_shape_only(extractor)
    for stage in stages:
        roi_head._bbox_forward(*stage, features, boxes)
        if roi_head.with_mask:
            roi_head._mask_forward(*stage, features, masks)


def _pool_shape_only(extractor: Any) -> None:
    """Replaces RoI pooling, which counts nothing and needs data; convolutions before it (R-FCN's) still run."""
    output = extractor.roi_layers[0].output_size
    height, width = output if isinstance(output, (list, tuple)) else (output, output)
    convolved = getattr(extractor, "maps", None)

    def forward(features: tuple[Tensor, ...], rois: Tensor, *_: Any, **__: Any) -> Tensor:
        if convolved:
            convolved(features)
        return features[0].new_zeros(len(rois), extractor.out_channels, height, width)

    extractor.forward = forward


def _params(model: nn.Module) -> dict[str, int]:
    """Counts each parameter once, under the first part that has it."""
    seen: set[int] = set()
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            child = name.partition(".")[0] if "." in name else "other"
            parts[_PARTS.get(child, child)] += parameter.numel()
    return dict(parts)
