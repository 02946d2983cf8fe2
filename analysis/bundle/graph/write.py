"""Writes a graph with torch's TorchScript exporter."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from .operators import OPSET, exportable
from .outputs import Outputs

_TRACED = 2  # images: with one, exporters take the batch for a constant


def write_graph(network: Outputs, path: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Writes ``network`` with a batch of any size.

    Args:
        network: In evaluation, on the CPU.
        path: The file.
        about: Plain JSON values that go into the file's metadata.

    Returns:
        ``opset``, and ``inputs`` and ``outputs``: a list of ``name``, ``type`` and ``shape`` each, in which ``batch``
        stands for any number of images.
    """
    import onnx

    height, width = network.canvas
    example: tuple[torch.Tensor, ...] = (torch.randn(_TRACED, 3, height, width),)
    if "sizes" in network.inputs:
        example += (torch.tensor([[height, width]] * _TRACED, dtype=torch.float32),)
    axes = {name: {0: "batch"} for name in (*network.inputs, *network.names)}
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        # Every branch and number that a trace fixes follows from the canvas, which is fixed.
        warnings.simplefilter("ignore")
        stack.enter_context(torch.no_grad())
        stack.enter_context(exportable())
        torch.onnx.export(
            network,
            example,
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(network.inputs),
            output_names=list(network.names),
            dynamic_axes=axes,
        )
    model = onnx.load(path)
    shapes = _shapes(network, example)
    for value in model.graph.output:
        kind = onnx.helper.make_tensor_type_proto(value.type.tensor_type.elem_type, ["batch", *shapes[value.name]])
        value.type.CopyFrom(kind)
    model.producer_name, model.producer_version = "Headway", ""
    for key, item in about.items():
        model.metadata_props.add(key=key, value=item if isinstance(item, str) else json.dumps(item))
    onnx.checker.check_model(model, full_check=False)
    onnx.save(model, path)
    return {
        "opset": OPSET,
        "inputs": [_described(value) for value in model.graph.input],
        "outputs": [_described(value) for value in model.graph.output],
        "operators": sorted({node.op_type for node in model.graph.node}),
    }


def _shapes(network: Outputs, example: tuple[torch.Tensor, ...]) -> dict[str, list[int]]:
    """Shapes of the outputs behind the batch."""
    with torch.no_grad():
        return {name: list(out.shape[1:]) for name, out in zip(network.names, network(*example), strict=True)}


def _described(value: Any) -> dict[str, Any]:
    import onnx

    tensor = value.type.tensor_type
    return {
        "name": value.name,
        "type": onnx.TensorProto.DataType.Name(tensor.elem_type).lower(),
        "shape": [dim.dim_param or dim.dim_value for dim in tensor.shape.dim],
    }
