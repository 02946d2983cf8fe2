"""Detectors that compute in a shorter type, as torch's autocast decides, and decode and judge in float32."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from mmcv.ops import DeformConv2d, DeformRoIPool, ModulatedDeformConv2d, RoIAlign, RoIAlignRotated, RoIPool
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor, nn

# mmcv's operators lack bfloat16 on every device and float16 on CPUs.
_SINGLE = (RoIAlign, RoIAlignRotated, RoIPool, DeformRoIPool, DeformConv2d, ModulatedDeformConv2d)
_SHORT = (torch.bfloat16, torch.float16)
# Computed in the shorter type throughout.
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@MODELS.register_module()
def AutocastDetector(detector_type: str, dtype: str, **kwargs) -> nn.Module:  # noqa: N802
    """Builds the detector ``detector_type`` and has it predict in ``dtype``; see ``autocast``.

    Args:
        detector_type: Registered type of the detector.
        dtype: As ``autocast`` takes it.
        **kwargs: Arguments of the detector.
    """
    return autocast(MODELS.build({"type": detector_type, **kwargs}), dtype)


def autocast(model: nn.Module, dtype: str) -> nn.Module:
    """Has a detector predict in a shorter type, in place; its weights, and training, stay as they are.

    Convolutions and products run in ``dtype``, what torch deems in need of it in float32, and so does what
    ``keep_single`` names.

    Args:
        model: An mmdet detector, built.
        dtype: ``bfloat16``, ``float16``, or ``float32``, which changes nothing.

    Returns:
        ``model``.
    """
    if dtype == "float32":
        return model
    keep_single(model)
    single = {part for module in model.modules() if isinstance(module, _Single) for part in module.modules()}
    layers = []
    for module in model.modules():
        kind = type(module)
        if isinstance(module, _LAYERS) and kind.__module__.startswith(("torch.nn.", "mmcv.cnn.")):
            layers += [module] if module not in single else []
        elif kind is nn.ReLU:
            module.__class__ = _mixed(_ReLU, kind)
    model.__class__ = _mixed(_Detector, type(model))
    model.short = ShortWeights(layers, getattr(torch, dtype))
    return model


def keep_single(model: nn.Module) -> nn.Module:
    """Has a detector's parts that need float32 compute in it within autocast, in place; elsewhere nothing changes.

    These are all from the heads' outputs on, decoding and losses (at 1,344 bfloat16 knows every eighth pixel only), the
    pooling of RoIs, and mmcv's deformable convolutions.

    Args:
        model: An mmdet detector, built.

    Returns:
        ``model``.
    """
    for module in model.modules():
        kind = type(module)
        if isinstance(module, _KEPT):
            continue
        if isinstance(module, _SINGLE) and kind.__module__.startswith("mmcv."):
            module.__class__ = _mixed(_Single, kind)
        elif isinstance(module, BaseRoIExtractor):
            module.__class__ = _mixed(_Extractor, kind)
        elif hasattr(kind, "predict_by_feat"):
            module.__class__ = _mixed(_Head, kind)
    return model


@cache
def _mixed(mixin: type, kind: type) -> type:
    # mmengine initialises, and we lay out in memory, by where a class is from and what it is called.
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})


class ShortWeights:
    """Lends layers their weights in a shorter type, made once and again when the weights changed.

    Autocast by itself makes them in each pass: a quarter of the time of a GFL-R50 at 320x320 on a CPU with AMX.

    Args:
        layers: Whose ``weight`` and ``bias`` are lent.
        dtype: The type.
    """

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._layers = list(layers)
        self._made: dict[tuple[int, str], tuple[Tensor, tuple[int, int], Tensor]] = {}

    def forget(self) -> None:
        """Has them made again, whatever became of the weights: a fused optimizer leaves no trace in their versions."""
        self._made.clear()

    def make(self) -> None:
        """Has them made now, so that no pass does."""
        with torch.no_grad(), self.lent():
            pass

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Where nothing is differentiated, layers have the shorter weights within."""
        own: list[tuple[nn.Module, str, Tensor]] = []
        try:
            for index, layer in enumerate(self._layers if not torch.is_grad_enabled() else ()):
                for name in ("weight", "bias"):
                    value = layer._parameters[name]
                    if value is not None and value.dtype == torch.float32:
                        own.append((layer, name, value))
                        layer._parameters[name] = self._short(index, name, value)
            yield
        finally:
            for layer, name, value in own:
                layer._parameters[name] = value

    def _short(self, index: int, name: str, value: Tensor) -> Tensor:
        now = (0 if value.is_inference() else value._version, value.data_ptr())
        source, then, made = self._made.get((index, name), (None, now, value))
        if source is not value or then != now or made.device != value.device:
            made = value.detach().to(self.dtype)
            self._made[index, name] = (value, now, made)
        return made


class _Detector:
    """Runs the network of a detector in a shorter type where it predicts."""

    def train(self, mode: bool = True) -> nn.Module:
        """As the detector's own."""
        self.short.forget()
        return super().train(mode)

    def predict(self, batch_inputs: Tensor, *args, **kwargs):
        """As the detector's own."""
        with self._short(batch_inputs):
            return super().predict(batch_inputs, *args, **kwargs)

    def _forward(self, batch_inputs: Tensor, *args, **kwargs):
        with self._short(batch_inputs):
            return _single(super()._forward(batch_inputs, *args, **kwargs))

    @contextmanager
    def _short(self, x: Tensor) -> Iterator[None]:
        with torch.autocast(_device(x), dtype=self.short.dtype), self.short.lent():
            yield


class _Head:
    """Gives a head's outputs, decodes and judges them, in float32."""

    def forward(self, *args, **kwargs):
        """As the head's own."""
        return _single(super().forward(*args, **kwargs))

    def loss_by_feat(self, *args, **kwargs):
        """As the head's own."""
        return _in_single(super().loss_by_feat, args, kwargs)

    def loss_and_target(self, *args, **kwargs):
        """As the box head's own."""
        return _in_single(super().loss_and_target, args, kwargs)

    def predict_by_feat(self, *args, **kwargs):
        """As the head's own."""
        return _in_single(super().predict_by_feat, args, kwargs)

    def _predict_by_feat_single(self, *args, **kwargs):
        # Heads that take the sites apart themselves begin here.
        return _in_single(super()._predict_by_feat_single, args, kwargs)

    def regress_by_class(self, *args, **kwargs):
        """As the head's own: a cascade's next RoIs."""
        return _in_single(super().regress_by_class, args, kwargs)

    def deform_sampling(self, *args, **kwargs):
        """As TOOD's own, by mmcv's deformable convolution."""
        return _in_single(super().deform_sampling, args, kwargs)


class _Extractor:
    """Takes what RoIs are pooled from in float32, the type that the operators pool in."""

    def forward(self, *args, **kwargs):
        """As the extractor's own."""
        return super().forward(*_single(args), **_single(kwargs))


class _ReLU:
    """Compares short numbers of a CPU as integers of 16 bits, whose signs are theirs: five times as fast as torch's."""

    def forward(self, x: Tensor) -> Tensor:
        """The ReLU, but for NaN with its sign bit set, which gives 0."""
        if x.device.type != "cpu" or x.dtype not in _SHORT or x.requires_grad:
            return super().forward(x)
        bits = x.view(torch.int16)
        return (torch.relu_(bits) if self.inplace else torch.relu(bits)).view(x.dtype)


class _Single:
    """Computes in float32."""

    def forward(self, *args, **kwargs):
        """As the operator's own."""
        return _in_single(super().forward, args, kwargs)


_KEPT = (_Single, _Extractor, _Head)


def _in_single(function: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = _single(args), _single(kwargs)
    device = next((_device(value) for value in _tensors(args, kwargs)), "cpu")
    with torch.autocast(device, enabled=False):
        return function(*args, **kwargs)


def _single(value: Any) -> Any:
    """Copies nested tuples, lists and dicts with short tensors made float32; all else is left as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _SHORT else value
    if type(value) in (tuple, list):
        return type(value)(_single(item) for item in value)
    if type(value) is dict:
        return {key: _single(item) for key, item in value.items()}
    return value


def _tensors(*values: Any) -> Any:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(*value)
        elif isinstance(value, dict):
            yield from _tensors(*value.values())


def _device(x: Tensor) -> str:
    return "cpu" if x.is_meta else x.device.type
