"""3x3 convolutions that learn a global scale, and their fast form with fixed integer dilations."""

from collections.abc import Mapping

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from spaces.dcn.sampling import sampled_conv2d
from spaces.pod.sampling import Steps
from spaces.pod.scales import Split, decompose, stage_paths, tower_path


class GlobalScale(nn.Module):
    """Predicts one scale (d_h, d_w) for each image from the mean of its map (section 3.1).

    Weights start at zero and the bias at the base's dilation, so that training starts at the base. It is no
    ``nn.Linear``, which the initialisation of a head or a backbone would draw anew.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        like = conv.weight
        self.weight = nn.Parameter(like.new_zeros(2, conv.in_channels), requires_grad=like.requires_grad)
        self.bias = nn.Parameter(like.new_tensor(conv.dilation), requires_grad=like.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 2), at least 0."""
        # Half precision knows scales above 2 to two thousandths only. Autocast knows no meta device.
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            pooled = x.mean((2, 3), dtype=self.weight.dtype)
            return F.linear(pooled, self.weight, self.bias).clamp(min=0)


class GlobalScaleConv(nn.Conv2d):
    """A 3x3 convolution whose taps lie at (i * d_h, j * d_w) for i, j of -1, 0, 1, with a scale for each image.

    The map is read there by bilinear interpolation, zeros lying outside (section 3.1). Weight and bias are those of the
    plain convolution, under the same names, and ``scale`` is added. At the base's dilation it is the base.
    """

    scale: GlobalScale

    @classmethod
    def replace(cls, conv: nn.Conv2d) -> None:
        """Turns a plain convolution into one, in place; no random number is drawn."""
        conv.__class__ = cls
        conv.scale = GlobalScale(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W'), the size that the plain convolution gives."""
        d = self.scale(x)
        if x.is_meta or not len(x):
            return super().forward(x)
        if not d.requires_grad:
            scales = {tuple(scale) for scale in d.tolist()}
            if len(scales) == 1 and all(side >= 1 and side.is_integer() for side in min(scales)):
                dilation = tuple(int(side) for side in min(scales))
                return F.conv2d(x, self.weight, self.bias, self.stride, dilation, dilation, self.groups)
        return self._sampled(x, d)

    def _sampled(self, x: Tensor, d: Tensor) -> Tensor:
        if x.device.type == "cpu" and self.groups == 1 and not torch.onnx.is_in_onnx_export():
            kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
            weight, bias = (value if value is None else value.to(kind) for value in (self.weight, self.bias))
            return sampled_conv2d(Steps(x, self.stride), x.to(kind), weight, bias, d)
        return self._shifted(x, d)

    def _shifted(self, x: Tensor, d: Tensor) -> Tensor:
        """The same by shifted copies of the map, on any device and with groups."""
        sides = d.new_tensor(x.shape[2:])
        # Beyond the map all is zero.
        whole = d.detach().nan_to_num(0.0).floor().minimum(sides)
        fraction = (d - d.detach().floor()).to(x.dtype)
        # The steps of one group of images are the same; those of images that lie about as hardly ever differ.
        groups = sorted({(int(down), int(right)) for down, right in whole.tolist()})
        if len(groups) == 1:
            return self._product(x, groups[0], fraction)
        out = None
        for group in groups:
            index = (whole == whole.new_tensor(group)).all(1).nonzero()[:, 0]
            part = self._product(x[index], group, fraction[index])
            out = x.new_zeros(len(x), *part.shape[1:], dtype=part.dtype) if out is None else out
            out = out.index_copy(0, index, part)
        return out

    def _product(self, x: Tensor, whole: tuple[int, int], fraction: Tensor) -> Tensor:
        """The convolution of images whose scales have the same integer part."""
        down, right = (part[:, None, None, None] for part in fraction.unbind(1))
        samples = [
            sample
            # A plain format, in which nine copies are made faster than with channels last.
            for row in _three(x.contiguous(), 2, whole[0], down, self.stride[0])
            for sample in _three(row, 3, whole[1], right, self.stride[1])
        ]
        # (N, C, 9, H', W') to (N, 9C, H', W'), in the order of the weight's elements; hence groups stay groups.
        stacked = torch.stack(samples, 2).flatten(1, 2)
        out = F.conv2d(stacked, self.weight.flatten(1)[:, :, None, None], self.bias, groups=self.groups)
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return out.contiguous(memory_format=torch.channels_last) if last else out


def _three(x: Tensor, axis: int, whole: int, fraction: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Reads a map at (site - d), (site) and (site + d) along an axis, for every site that is a multiple of ``stride``.

    Args:
        x: (N, C, H, W).
        axis: 2 for rows, 3 for columns.
        whole: Integer part of d.
        fraction: (N, 1, 1, 1), d without it.
        stride: Of the convolution.
    """
    margin = whole + 1
    padded = F.pad(x, (0, 0, margin, margin) if axis == 2 else (margin, margin, 0, 0))
    length = (x.shape[axis] - 1) // stride * stride + 1

    def at(step: int) -> Tensor:
        window = padded.narrow(axis, margin + step, length)
        if stride == 1:
            return window
        return window[:, :, ::stride] if axis == 2 else window[:, :, :, ::stride]

    before = torch.lerp(at(-whole), at(-whole - 1), fraction)
    after = torch.lerp(at(whole), at(whole + 1), fraction)
    return before, at(0), after


class DecomposedConv(nn.Conv2d):
    """A 3x3 convolution whose first and last output channels have integer dilations of their own (section 3.2).

    Its weight and bias are those of the plain convolution, with the same names and shapes: weights of the base, of a
    learning network or of a checkpoint fit as they are, initialisation draws the same numbers, and norms can be folded
    in. Channels come in the base's order. A dilation of 0 uses the middle of three taps or their sum on its axis.
    """

    split: Split
    zero_taps: str

    @classmethod
    def replace(cls, conv: nn.Conv2d, split: Split, zero_taps: str = "centre") -> None:
        """Turns a plain convolution into one, in place; no random number is drawn."""
        conv.__class__ = cls
        conv.split = split
        conv.zero_taps = zero_taps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W'), the size that the plain convolution gives."""
        outs, first = [], 0
        for channels, dilation in self.split.parts:
            last = first + channels // self.groups
            outs.append(self._part(x, first, last, dilation))
            first = last
        if len(outs) == 1:
            return outs[0]
        if self.groups == 1:
            return torch.cat(outs, 1)
        return torch.cat([out.unflatten(1, (self.groups, -1)) for out in outs], 2).flatten(1, 2)

    def _part(self, x: Tensor, first: int, last: int, dilation: tuple[int, int]) -> Tensor:
        """Channels ``first`` to ``last`` of each group."""
        weight, bias = self.weight, self.bias
        if len(self.split.parts) > 1:
            weight, bias = (
                tensor if tensor is None else tensor.unflatten(0, (self.groups, -1))[:, first:last].flatten(0, 1)
                for tensor in (weight, bias)
            )
        for axis, step in zip((2, 3), dilation):
            if not step:
                weight = weight.sum(axis, keepdim=True) if self.zero_taps == "sum" else weight.narrow(axis, 1, 1)
        # A kernel of 1 has a dilation only in name.
        steps = tuple(max(step, 1) for step in dilation)
        return F.conv2d(x, weight, bias, self.stride, dilation, steps, self.groups)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        unexpected = args[3]
        super()._load_from_state_dict(state_dict, prefix, *args)
        # Weights of a learning network have scales, which are decided here.
        unexpected[:] = [name for name in unexpected if not name.startswith(f"{prefix}scale.")]

    def extra_repr(self) -> str:
        """Names the parts."""
        return f"{super().extra_repr()}, parts={self.split.parts}"


@MODELS.register_module()
def DilatedDetector(base_type: str, dilations: dict, **kwargs) -> nn.Module:  # noqa: N802
    """Builds the detector ``base_type`` and replaces 3x3 convolutions in it, in place.

    Args:
        base_type: Registered type of the base detector.
        dilations: ``stages`` (counted as the papers do) and ``towers`` (as ``cls.0``), whose convolutions learn a
            scale; or ``scales``, rows of path, d_h and d_w, which are decomposed, with ``tolerance``,
            ``round_channels`` and ``zero_taps``.
        **kwargs: Arguments of the base detector.

    Returns:
        An instance of the base detector's class, with the base's parameter names.

    Raises:
        ValueError: The detector has no such convolution, or none that can be replaced.
    """
    model = MODELS.get(base_type)(**kwargs)
    if "scales" in dilations:
        options = {name: dilations[name] for name in ("tolerance", "round_channels")}
        for path, d_h, d_w in dilations["scales"]:
            conv = _plain(model, path)
            split = decompose(d_h, d_w, conv.out_channels, groups=conv.groups, **options)
            DecomposedConv.replace(conv, split, dilations["zero_taps"])
    else:
        for path in _paths(model, dilations["stages"], dilations["towers"]):
            GlobalScaleConv.replace(_plain(model, path))
    model.dilations = dilations
    return model


def _plain(model: nn.Module, path: str) -> nn.Conv2d:
    try:
        conv = model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"pod: {type(model).__name__} has no {path}: {error}.") from error
    if type(conv) is not nn.Conv2d or conv.kernel_size != (3, 3) or conv.padding != conv.dilation:
        raise ValueError(f"pod: {path} must be a plain 3x3 convolution that keeps the size, but is {conv}.")
    return conv


def _paths(model: nn.Module, stages: list[int], towers: list[str]) -> list[str]:
    """Finds the convolutions of stages and towers in a built detector."""
    found: list[str] = []
    for stage in stages:
        shared = not hasattr(model.backbone, f"layer{stage - 1}")
        owner = getattr(getattr(model, "roi_head", None), "shared_head", None) if shared else model.backbone
        blocks = getattr(owner, f"layer{stage - 1}", None)
        if blocks is None:
            raise ValueError(f"pod: {type(model).__name__} has no stage {stage}.")
        found += stage_paths(stage, len(blocks), not hasattr(blocks[0], "conv3"), shared)
    part = "rpn_head" if getattr(model, "rpn_head", None) is not None else "bbox_head"
    for element in towers:
        single = part == "rpn_head" and isinstance(model.rpn_head.rpn_conv, nn.Conv2d)
        found.append(tower_path(element, part, 1 if single else 2))
    return found


class Observer:
    """Records the scales that each image gets in the forward passes inside ``with``.

    A convolution that runs several times for an image is averaged: over the levels of the pyramid in a tower, over the
    RoIs in a shared head. RoIs of several images in one pass cannot be told apart, so each image gets their common
    mean; one image at a time is exact.

    Args:
        model: A detector with ``GlobalScaleConv``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.convs = {path: conv for path, conv in model.named_modules() if isinstance(conv, GlobalScaleConv)}
        self._handles: list = []
        self._rows: list[dict[str, list[float]]] = []
        self._images = 0
        self._seen: dict[str, list[Tensor]] = {}

    def __enter__(self) -> "Observer":
        self._handles = [self.model.backbone.register_forward_pre_hook(self._start)]
        for path, conv in self.convs.items():
            self._handles.append(conv.scale.register_forward_hook(self._listener(path)))
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._finish()

    def rows(self) -> list[dict[str, list[float]]]:
        """Gives, for each image since the last call, [d_h, d_w] by path, in the order of the forward pass."""
        self._finish()
        rows, self._rows = self._rows, []
        return rows

    def _listener(self, path: str):
        def listen(module: nn.Module, args: tuple, scales: Tensor) -> None:
            # (N, 2), or (RoIs, 2)
            self._seen.setdefault(path, []).append(scales.detach().double().cpu())

        return listen

    def _start(self, module: nn.Module, args: tuple) -> None:
        self._finish()
        self._images = len(args[0])

    def _finish(self) -> None:
        rows: list[dict[str, list[float]]] = [{} for _ in range(self._images)]
        for path, seen in self._seen.items():
            if path.startswith("roi_head."):
                of_rois = torch.cat(seen)
                by_image = of_rois.mean(0).expand(self._images, 2) if len(of_rois) else ()
            else:
                by_image = torch.stack(seen).mean(0)
            for row, scale in zip(rows, by_image):
                row[path] = scale.tolist()
        self._rows += rows
        self._images, self._seen = 0, {}


def translate(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Gives weights of the base, or of a learning network, as those of ``model``.

    Names and shapes are the same in all three; only the scales have no place in a decomposed network.
    """
    dropped = {
        f"{path}.scale.{name}"
        for path, conv in model.named_modules()
        if isinstance(conv, DecomposedConv)
        for name in ("weight", "bias")
    }
    return {name: tensor for name, tensor in weights.items() if name not in dropped}


def mismatch(model: nn.Module, values: dict) -> str | None:
    """Says how the built ``model`` differs from the knob ``values``, ``None`` when it follows them.

    Values with mode ``decompose`` are followed by the network that learns.
    """
    learning = {path for path, conv in model.named_modules() if isinstance(conv, GlobalScaleConv)}
    decomposed = {path: conv for path, conv in model.named_modules() if isinstance(conv, DecomposedConv)}
    fixed = values["mode"] == "fixed"
    wanted = {row[0] for row in values["scales"]} if fixed else set(_paths(model, values["stages"], values["towers"]))
    if learning != (set() if fixed else wanted):
        return f"scales are learned at {sorted(learning)} instead of {[] if fixed else sorted(wanted)}"
    if set(decomposed) != (wanted if fixed else set()):
        return f"dilations are fixed at {sorted(decomposed)} instead of {sorted(wanted) if fixed else []}"
    for path, d_h, d_w in values["scales"] if fixed else ():
        conv = decomposed[path]
        split = decompose(
            d_h, d_w, conv.out_channels, values["tolerance"], values["round_channels"], groups=conv.groups
        )
        if (conv.split, conv.zero_taps) != (split, values["zero_taps"]):
            return f"{path} has {conv.split} with zero_taps {conv.zero_taps} instead of {split}"
    plan = getattr(model, "dilations", {}).get("plan", {})
    other = [name for name, value in plan.items() if values.get(name) != value]
    return f"the plan has {other[0]} {plan[other[0]]}" if other else None
