"""The fused module as an ONNX file, in any precision."""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    InlinePass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedOpsetsPass,
    ShapeInferencePass,
)
from onnx_ir.tensor_adapters import TorchTensor

from vibematch.preprocess import Preprocessing
from vibematch_export import operators
from vibematch_export.fused import DOMAIN, FusedEncoder, Linear, readable
from vibematch_training.graph_extractor import FEATURES_NAME, INPUT_NAME

Precision = Literal["fp32", "int8", "bf16", "fp16"]

OUTPUT_NAME: Final = "embedding"
FIRST_LAYER: Final = "vision.patches"
"""It sees raw pixels and is a thousandth of the work: float32 in every precision."""

_DTYPES: Final[Mapping[Precision, torch.dtype]] = {
    "fp32": torch.float32,
    "int8": torch.float32,  # between the layers
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_ONNX_TYPES: Final = {
    torch.float32: ir.DataType.FLOAT,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float16: ir.DataType.FLOAT16,
    torch.int8: ir.DataType.INT8,
}
_OPSETS: Final[Mapping[Precision, int]] = {
    # 23 has attention and RMS normalisation as operators, which ONNX Runtime computes faster
    "fp32": 23,
    "int8": 23,
    # GPU compilers know the spelt-out patterns best; the exporter writes them below 23
    "bf16": 22,
    "fp16": 22,
}
_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_INLINE_LIMIT_BYTES: Final = 2**28
"""Larger weights go beside the graph, where runtimes map them into memory instead of reading them;
protobuf itself ends at 2 GiB."""


@dataclass(frozen=True)
class GraphSummary:
    """What was written.

    Attributes:
        opset: version of the standard operators.
        operators: operator → number of nodes that call it.
        bytes: size of the weights.
    """

    opset: int
    operators: dict[str, int]
    bytes: int


def write_onnx(
    encoder: FusedEncoder,
    preprocessing: Preprocessing,
    path: Path,
    precision: Precision = "fp32",
    *,
    wide: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> GraphSummary:
    """Export the encoder with a dynamic batch.

    ``pixels``, uint8 ``[batch, 3, H, W]`` → ``embedding``, float32 ``[batch, dim]``, and
    ``features``, float32 ``[batch, feature_dim]``: what training would start from. Servers ask for
    the first and do not pay for the second.

    The graph is traced without the weights of the linear layers; they are converted and written
    one by one, so that no second copy of a large model is ever in memory.

    - ``fp32`` and ``int8`` call the operators of domain ``vibematch`` (for CPUs). In ``int8``
      linear layers have weights quantised per output channel and quantise their input per token.
    - ``bf16`` and ``fp16`` consist of standard operators only (for GPUs). Linear layers and
      attention compute in that format; residual sums, norms, pooling and head in float32.

    Args:
        encoder: the fused module in float32, in evaluation mode.
        preprocessing: gives the fixed canvas.
        path: the ``.onnx`` file to write; weights over 256 MiB go to ``<path>.data``.
        precision: of the linear layers.
        wide: names of linear layers to leave in float32.
        metadata: key → value, stored inside the model.
    """
    wide = {FIRST_LAYER, *wide}
    dtype, opset = _DTYPES[precision], _OPSETS[precision]
    for_cpu = dtype == torch.float32
    encoder.prepare_export(dtype, wide, operators=for_cpu)
    model = _trace(encoder, preprocessing, opset)
    _name_nodes(model.graph)
    layers = encoder.linears()
    for node in model.graph:
        if node.domain != DOMAIN:
            continue
        if node.op_type.startswith("Linear"):
            layer = layers[node.attributes["path"].as_string()]
            _attach_weights(
                node, model.graph, layer, quantized=precision == "int8" and layer.path not in wide
            )
        elif node.op_type.endswith("Attention"):
            node.attributes.add(ir.AttrInt64("reduced_precision", int(precision == "int8")))
    if for_cpu:
        _define(model, operators.functions(opset))
    else:
        _spell_out(model, opset)
    model.metadata_props.update(metadata or {})
    size = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value
    )
    ir.save(model, path, external_data=f"{path.name}.data" if size > _INLINE_LIMIT_BYTES else None)
    onnx.checker.check_model(path)
    return GraphSummary(opset, dict(Counter(node.op_type for node in model.graph)), size)


def _trace(encoder: FusedEncoder, preprocessing: Preprocessing, opset: int) -> ir.Model:
    example = torch.zeros(2, 3, preprocessing.height, preprocessing.width, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        # it would list every torchvision operator that is not installed
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        program = torch.onnx.export(
            encoder,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME, FEATURES_NAME],
            dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch", min=1, max=4096)}},
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return program.model


def _name_nodes(graph: ir.Graph) -> None:
    """Name nodes after the module they come from, and drop the exporter's traces.

    ``vision.block_07.attn.qkv`` for what is one node, ``head/Gemm`` for one of several. The traces
    are size, noise, and paths of this machine.
    """
    seen: Counter[str] = Counter()
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        # the exporter puts a made-up module around what it adds itself
        module = readable(scopes[-2]) if len(scopes) > 1 and scopes[-2][:1] != "_" else ""
        name = module if node.domain == DOMAIN else f"{module}/{node.op_type}".lstrip("/")
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    graph.metadata_props.clear()


def _attach_weights(node: ir.Node, graph: ir.Graph, layer: Linear, *, quantized: bool) -> None:
    """Give a traced linear layer its weights, computed when they are written."""
    path, dtype, width = layer.path, layer.export_dtype, layer.shape[1:]
    if quantized:
        node.op_type = f"Quantized{node.op_type}"
        added = [
            _initializer(
                graph,
                f"{path}.weight",
                layer.shape,
                torch.int8,
                lambda: quantize(layer.weight())[0],
            ),
            _initializer(graph, f"{path}.scale", width, dtype, lambda: quantize(layer.weight())[1]),
        ]
    else:
        added = [_initializer(graph, f"{path}.weight", layer.shape, dtype, layer.weight)]
    added.append(_initializer(graph, f"{path}.bias", width, dtype, layer.bias))
    states, *residual = node.inputs
    inputs = [states, *added, *residual]
    node.resize_inputs(len(inputs))
    for position, value in enumerate(inputs):
        node.replace_input_with(position, value)
    del node.attributes["path"]


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round weights to 8 bits, symmetrically and per output channel.

    Args:
        weight: float32 ``[inputs, outputs]``.

    Returns:
        int8 ``[inputs, outputs]`` in -127..127, and what one step is worth, float32 ``[outputs]``.
    """
    scale = weight.abs().amax(dim=0) / 127
    steps = weight / torch.where(scale == 0, 1, scale)
    return steps.round_().to(torch.int8), scale


def _initializer(
    graph: ir.Graph,
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    compute: Callable[[], torch.Tensor],
) -> ir.Value:
    onnx_type = _ONNX_TYPES[dtype]
    tensor = ir.LazyTensor(
        lambda: TorchTensor(compute().to(dtype).contiguous(), name=name),
        dtype=onnx_type,
        shape=ir.Shape(shape),
        name=name,
    )
    value = ir.Value(
        name=name, shape=tensor.shape, type=ir.TensorType(onnx_type), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _define(model: ir.Model, functions: Iterable[ir.Function]) -> None:
    """Add the functions to the model that it calls, and what those call."""
    for function in functions:
        model.functions[function.identifier()] = function
    model.opset_imports.update({DOMAIN: operators.VERSION, "com.microsoft": 1})
    # the first pass is written without types
    for step in (RemoveUnusedFunctionsPass(), RemoveUnusedOpsetsPass()):  # type: ignore[no-untyped-call]
        step(model)


def _spell_out(model: ir.Model, opset: int) -> None:
    """Replace each linear layer by standard operators that are named after it."""
    (pixels,) = model.graph.inputs
    (cast,) = (node for node, _ in pixels.uses() if node.op_type == "Cast")
    for user, position in list(pixels.uses()):
        if user is not cast:  # its batch size is looked up; TensorRT can do nothing else with uint8
            user.replace_input_with(position, cast.outputs[0])
    model.graph.sort()
    for node in model.graph:
        if node.domain == DOMAIN:
            body = operators.linear(node.op_type, opset, _type_of(node.inputs[1]))
            for part in body:
                part.name = f"{node.name}/{part.op_type}"
            node.overload = body.overload = str(node.name)
            model.functions[body.identifier()] = body
    for step in (
        InlinePass(),
        IdentityEliminationPass(),
        RemoveUnusedOpsetsPass(),
        ShapeInferencePass(),
    ):
        step(model)


def _type_of(value: ir.Value | None) -> ir.DataType:
    if value is None or value.dtype is None:
        raise RuntimeError("a traced value has no type")
    return value.dtype
