from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vibematch.preprocess import Preprocessing
from vibematch_export import kernels, onnx_graph
from vibematch_export.fused import FusedEncoder, readable
from vibematch_export.half_on_cpu import emulated
from vibematch_export.onnx_graph import FIRST_LAYER, Precision, quantize, write_onnx
from vibematch_training.backbone import PROMPT, load_backbone
from vibematch_training.features import FeatureRecipe
from vibematch_training.head import ProjectionHead

CANVAS = Preprocessing(64, 96)
WIDE = "vision.block_00.mlp.fc1"


@pytest.fixture(scope="module")
def encoder() -> FusedEncoder:
    backbone = load_backbone("tiny", torch.float32, "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = ProjectionHead(backbone.feature_dim, 32, 64).eval()
    return FusedEncoder(FeatureRecipe(backbone, CANVAS, PROMPT), head).eval()


@pytest.fixture(scope="module")
def graphs(encoder: FusedEncoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One graph per precision; a layer is left wide where that means something."""
    folder = tmp_path_factory.mktemp("graphs")
    precisions: list[Precision] = ["fp32", "int8", "bf16", "fp16"]
    for precision in precisions:
        wide = () if precision == "fp32" else (WIDE,)
        path = folder / f"{precision}.onnx"
        write_onnx(encoder, CANVAS, path, precision, wide=wide, metadata={"maker": "test"})
    return {precision: folder / f"{precision}.onnx" for precision in precisions}


def _pixels(count: int = 3) -> np.ndarray:
    shape = (count, 3, CANVAS.height, CANVAS.width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _features(graph: Path, pixels: np.ndarray, *, own_kernels: bool = False) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if own_kernels:
        assert kernels.register(options)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    features: np.ndarray = session.run(["features"], {"pixels": pixels})[0]
    return features


def _exact(encoder: FusedEncoder, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        features: np.ndarray = encoder(torch.from_numpy(pixels))[1].numpy()
    return features


def _error(features: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(features - exact) / np.linalg.norm(exact))


def _weights(graph: Path) -> dict[str, int]:
    model = onnx.load(graph, load_external_data=False)
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


@pytest.mark.parametrize("own_kernels", [False, True], ids=["bodies", "kernels"])
def test_operator_bodies_and_kernels_compute_the_fused_module(
    encoder: FusedEncoder, graphs: dict[str, Path], own_kernels: bool
) -> None:
    pixels = _pixels()
    features = _features(graphs["fp32"], pixels, own_kernels=own_kernels)
    np.testing.assert_allclose(features, _exact(encoder, pixels), atol=2e-5)


def test_int8_is_the_same_function_with_and_without_our_kernels(
    encoder: FusedEncoder, graphs: dict[str, Path]
) -> None:
    pixels = _pixels()
    exact = _exact(encoder, pixels)
    plain = _features(graphs["int8"], pixels)
    ours = _features(graphs["int8"], pixels, own_kernels=True)
    assert 1e-4 < _error(plain, exact) < 0.03
    assert 1e-4 < _error(ours, exact) < 0.03


def test_products_of_bytes_cannot_overflow_on_any_cpu(graphs: dict[str, Path]) -> None:
    """Without VNNI, x86 sums unsigned times signed bytes in 16 bits; two unsigned are exact."""
    functions = onnx.load(graphs["int8"]).functions
    bodies = [body for body in functions if body.name.startswith("QuantizedLinear")]
    assert bodies
    for body in bodies:
        made = {name: node for node in body.node for name in node.output}
        (product,) = (node for node in body.node if node.op_type == "MatMulIntegerToFloat")
        for operand in product.input[:2]:
            assert made[operand].op_type == "Cast"
            assert made[operand].attribute[0].i == onnx.TensorProto.UINT8


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nodes_are_named_after_their_modules(graphs: dict[str, Path], precision: str) -> None:
    names = [node.name for node in onnx.load(graphs[precision]).graph.node]
    assert max(Counter(names).values()) == 1
    named = re.compile(r"(vision|decoder|pool|head)[\w./]*|Shape")  # Shape: the batch size
    assert [name for name in names if not named.fullmatch(name)] == []
    modules = {name.split("/")[0] for name in names}
    assert {
        "vision.patches",
        "vision.block_01.attn",
        "vision.block_01.mlp.fc1",
        "vision.deepstack_00.fc2",
        "decoder.layer_01.attn.qkv",
        "decoder.layer_01.mlp.gate_up",
        "pool",
        "head",
    } <= modules


def test_names_of_blocks_have_two_digits() -> None:
    assert readable("vision.block.7.attn.qkv") == "vision.block_07.attn.qkv"
    assert readable("head.layers.11") == "head.layers_11"


def test_graphs_for_a_cpu_are_few_operators_with_bodies(graphs: dict[str, Path]) -> None:
    model = onnx.load(graphs["fp32"])
    ours = {node.op_type for node in model.graph.node if node.domain == "vibematch"}
    assert {"Linear", "LinearSwiGLU", "VisionAttention", "DecoderAttention", "RMSNorm"} <= ours
    assert ours <= {function.name for function in model.functions}


def test_graphs_for_a_gpu_are_standard_operators_alone(graphs: dict[str, Path]) -> None:
    for precision in ("bf16", "fp16"):
        model = onnx.load(graphs[precision])
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.functions
        (pixels_user,) = (node for node in model.graph.node if "pixels" in node.input)
        assert pixels_user.op_type == "Cast"


def test_every_value_of_a_graph_for_a_gpu_has_a_type(graphs: dict[str, Path]) -> None:
    model = onnx.load(graphs["bf16"])
    typed = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    assert {name for node in model.graph.node for name in node.output} <= typed


def test_wide_layers_and_what_is_no_layer_stay_in_float32(graphs: dict[str, Path]) -> None:
    kinds = {
        "int8": onnx.TensorProto.INT8,
        "bf16": onnx.TensorProto.BFLOAT16,
        "fp16": onnx.TensorProto.FLOAT16,
    }
    for precision, narrow in kinds.items():
        weights = _weights(graphs[precision])
        layers = {name for name in weights if name.startswith(("vision", "decoder"))}
        narrowed = {name for name in layers if weights[name] == narrow}
        linear = {name for name in layers if re.search(r"(qkv|proj|out|fc\d|gate_up|down).w", name)}
        assert narrowed >= linear - {f"{WIDE}.weight"}
        for name in (f"{WIDE}.weight", f"{FIRST_LAYER}.weight", "head.layers.0.weight"):
            assert weights[name] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    ("precision", "least", "most"), [("bf16", 5e-4, 2e-2), ("fp16", 5e-5, 2e-3)]
)
def test_the_emulation_rounds_like_the_format(
    encoder: FusedEncoder, graphs: dict[str, Path], precision: str, least: float, most: float
) -> None:
    pixels = _pixels()
    folder = graphs[precision].parent
    before = sorted(folder.iterdir())
    with emulated(graphs[precision]) as graph:
        error = _error(_features(graph, pixels), _exact(encoder, pixels))
    assert least < error < most
    assert sorted(folder.iterdir()) == before


def test_the_emulation_of_float16_agrees_with_onnx_runtimes_own(graphs: dict[str, Path]) -> None:
    """It has float16 for the CPU, by way of float32, but nothing for bfloat16."""
    pixels = _pixels()
    own = _features(graphs["fp16"], pixels)
    with emulated(graphs["fp16"]) as graph:
        assert _error(_features(graph, pixels), own) < 1e-3


@pytest.mark.slow
def test_float16_overflows_unless_the_layer_is_wide(tmp_path: Path) -> None:
    backbone = load_backbone("tiny", torch.float32, "cpu")
    fc1 = backbone.model.visual.blocks[0].mlp.linear_fc1
    fc2 = backbone.model.visual.blocks[0].mlp.linear_fc2
    fc1.bias.data[0] = 1e5  # the unit is always on; what it adds is as large as before
    fc2.weight.data[:, 0] *= 1e-5
    recipe = FeatureRecipe(backbone, CANVAS, PROMPT)
    loud = FusedEncoder(recipe, ProjectionHead(backbone.feature_dim, 32, 64).eval()).eval()
    pixels = _pixels()
    mlp = ("vision.block_00.mlp.fc1", "vision.block_00.mlp.fc2")
    for wide, survives in (((), False), (mlp, True)):
        path = tmp_path / "fp16.onnx"
        write_onnx(loud, CANVAS, path, "fp16", wide=wide)
        with emulated(path) as graph:
            features = _features(graph, pixels)
        assert np.isfinite(features).all() == survives
    assert _error(features, _exact(loud, pixels)) < 2e-3


def test_metadata_travels_inside(graphs: dict[str, Path]) -> None:
    for graph in graphs.values():
        properties = onnx.load(graph, load_external_data=False).metadata_props
        assert {entry.key: entry.value for entry in properties} == {"maker": "test"}


def test_large_weights_lie_beside_the_graph(
    encoder: FusedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "_INLINE_LIMIT_BYTES", 2**20)
    graph = tmp_path / "model.onnx"
    summary = write_onnx(encoder, CANVAS, graph)
    assert graph.stat().st_size < 2**20 < summary.bytes
    assert (tmp_path / "model.onnx.data").stat().st_size >= 0.99 * summary.bytes
    pixels = _pixels()
    np.testing.assert_allclose(_features(graph, pixels), _exact(encoder, pixels), atol=2e-5)


def test_the_summary_counts_nodes(graphs: dict[str, Path], encoder: FusedEncoder) -> None:
    path = graphs["fp32"].with_name("again.onnx")
    summary = write_onnx(encoder, CANVAS, path)
    model = onnx.load(path)
    assert summary.operators == Counter(node.op_type for node in model.graph.node)
    assert summary.opset == next(e.version for e in model.opset_import if not e.domain)


def test_image_pooling_leaves_out_what_follows_the_image() -> None:
    backbone = load_backbone("tiny", torch.float32, "cpu")
    head = ProjectionHead(backbone.feature_dim, 32, 64).eval()
    recipe = FeatureRecipe(backbone, CANVAS, PROMPT, "image")
    decoder = FusedEncoder(recipe, head).decoder
    assert decoder.suffix.shape[1] == 0
    assert len(decoder.cos) == recipe.image_tokens.stop


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40), columns=st.integers(1, 9))
def test_weights_are_rounded_by_half_a_step_at_most(seed: int, rows: int, columns: int) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(rows, columns)) * 10.0 ** generator.integers(-3, 3, columns)
    weight[:, 0] = 0
    codes, scale = quantize(torch.from_numpy(weight.astype(np.float32)))
    assert codes.dtype == torch.int8
    assert codes.abs().max() <= 127
    error = np.abs(codes.numpy() * scale.numpy() - weight)
    assert (error <= scale.numpy() * 0.501).all()
    assert scale[0] == 0
    assert not codes[:, 0].any()
