from __future__ import annotations

import logging
import math
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from vibematch_export import kernels

Array = np.ndarray
ACTIVATIONS = ("", "Gelu", "GeluTanh", "SwiGLU", "Add")
SMALLEST_NORMAL = np.finfo(np.float32).tiny

needs_kernels = pytest.mark.skipif(
    shutil.which("c++") is None or "avx512_vnni" not in Path("/proc/cpuinfo").read_text(),
    reason="needs a C++ compiler and AVX-512 VNNI",
)


def _session(
    operator: str,
    inputs: list[str],
    constants: dict[str, Array] | None = None,
    *,
    fed: tuple[str, ...] = (),
    functions: tuple[onnx.FunctionProto, ...] = (),
    use_kernels: bool = True,
    threads: int = 2,
    **attributes: int | float,
) -> onnxruntime.InferenceSession:
    """A session of one node; ``inputs`` not among ``constants`` are the graph's."""
    constants = constants or {}
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"], domain="vibematch", **attributes)],
        "one node",
        [
            helper.make_tensor_value_info(
                name, onnx.TensorProto.INT8 if name in fed else onnx.TensorProto.FLOAT, None
            )
            for name in inputs
            if name not in constants
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("vibematch", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if use_kernels:
        assert kernels.register(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def _linear(
    activation: str, weight: Array, bias: Array, scale: Array | None = None, threads: int = 2
) -> onnxruntime.InferenceSession:
    constants = {"weight": weight, "bias": bias} | ({} if scale is None else {"scale": scale})
    inputs = ["x", "weight", *([] if scale is None else ["scale"]), "bias"]
    inputs += ["residual"] if activation == "Add" else []
    name = ("Linear" if scale is None else "QuantizedLinear") + activation
    return _session(name, inputs, constants, threads=threads)


def _activated(activation: str, y: Array, residual: Array | None) -> Array:
    if activation == "Gelu":
        return torch.nn.functional.gelu(torch.from_numpy(y)).numpy()
    if activation == "GeluTanh":
        return torch.nn.functional.gelu(torch.from_numpy(y), approximate="tanh").numpy()
    if activation == "SwiGLU":
        gate, up = np.split(y, 2, axis=-1)
        return torch.nn.functional.silu(torch.from_numpy(gate)).numpy() * up
    return y if residual is None else y + residual


def _quantized(x: Array) -> tuple[Array, Array]:
    """Each row's integers and its scale, as the operator is specified."""
    scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    scale = np.maximum(scale, SMALLEST_NORMAL)
    return np.rint(x * (np.float32(1) / scale)).astype(np.int64), scale


def _feed(activation: str, x: Array, columns: int, draw: np.random.Generator) -> dict[str, Array]:
    if activation != "Add":
        return {"x": x}
    return {"x": x, "residual": draw.standard_normal((*x.shape[:-1], columns), dtype=np.float32)}


shapes = given(
    rows=st.sampled_from([1, 2, 11, 12, 13, 25, 97, 213]),
    k=st.integers(1, 70) | st.sampled_from([256, 1023, 1029, 2053]),
    n=st.integers(1, 70) | st.just(129),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 2**32 - 1),
)


@needs_kernels
@settings(max_examples=40, deadline=None)
@shapes
def test_linear_is_a_float64_product(rows: int, k: int, n: int, activation: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    columns = 2 * n if activation == "SwiGLU" else n
    weight = draw.standard_normal((k, columns), dtype=np.float32) / np.float32(math.sqrt(k))
    bias = draw.standard_normal(columns, dtype=np.float32)
    feed = _feed(activation, draw.standard_normal((rows, k), dtype=np.float32), n, draw)
    (y,) = _linear(activation, weight, bias).run(None, feed)
    exact = feed["x"].astype(np.float64) @ weight + bias
    expected = _activated(activation, exact, feed.get("residual"))
    # float32 sums of k terms
    tolerance = 2e-7 * max(5, math.sqrt(k)) * max(1, np.abs(expected).max())
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance)


@needs_kernels
@settings(max_examples=40, deadline=None)
@shapes
def test_quantized_linear_is_an_integer_product(
    rows: int, k: int, n: int, activation: str, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    columns = 2 * n if activation == "SwiGLU" else n
    weight = draw.integers(-127, 128, (k, columns), dtype=np.int8)
    scale = (draw.random(columns, dtype=np.float32) + 0.5) / np.float32(73 * math.sqrt(k))
    bias = draw.standard_normal(columns, dtype=np.float32)
    feed = _feed(activation, draw.standard_normal((rows, k), dtype=np.float32), n, draw)
    (y,) = _linear(activation, weight, bias, scale).run(None, feed)
    q, s = _quantized(feed["x"])
    exact = (q @ weight.astype(np.int64)) * (s.astype(np.float64) * scale) + bias
    expected = _activated(activation, exact, feed.get("residual"))
    np.testing.assert_allclose(y, expected, rtol=0, atol=5e-7 * max(1, np.abs(expected).max()))


@needs_kernels
@pytest.mark.parametrize("k", [1, 4, 63, 64, 1030])
def test_the_integers_of_a_quantized_product_are_exact(k: int) -> None:
    draw = np.random.default_rng(k)
    weight = draw.integers(-128, 128, (k, 40), dtype=np.int8)
    x = draw.integers(-127, 128, (30, k)).astype(np.float32)
    x[:, 0] = 127  # so the scale is 1 and every sum a whole number that float32 holds
    ones, zeros = np.ones(40, np.float32), np.zeros(40, np.float32)
    (y,) = _linear("", weight, zeros, ones).run(None, {"x": x})
    np.testing.assert_array_equal(y, x.astype(np.int64) @ weight.astype(np.int64))


@needs_kernels
def test_halves_are_rounded_to_even() -> None:
    x = np.float32([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    ones, zeros = np.ones(7, np.float32), np.zeros(7, np.float32)
    (y,) = _linear("", np.eye(7, dtype=np.int8), zeros, ones).run(None, {"x": x})
    np.testing.assert_array_equal(y, [[127, 0, 2, 2, 0, -2, -2]])


@needs_kernels
def test_the_largest_possible_sums_do_not_overflow() -> None:
    k = 2**17
    weight = np.full((k, 2), 127, np.int8)
    weight[:, 1] = -127
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    (y,) = _linear("", weight, zeros, ones).run(None, {"x": np.full((1, k), 127, np.float32)})
    np.testing.assert_array_equal(y, np.float32([[k * 127 * 127, -k * 127 * 127]]))


@needs_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_stays_so_and_alone(
    activation: str, quantized: bool, bad: float
) -> None:
    draw = np.random.default_rng(0)
    columns = 64 if activation == "SwiGLU" else 32
    weight = draw.integers(1, 128, (16, columns), dtype=np.int8)
    scale = np.full(columns, 0.01, np.float32) if quantized else None
    session = _linear(
        activation,
        weight if quantized else weight.astype(np.float32),
        np.zeros(columns, np.float32),
        scale,
    )
    x = draw.standard_normal((20, 16), dtype=np.float32)
    x[7, 3] = bad
    feed = _feed(activation, x, 32, draw)
    (y,) = session.run(None, feed)
    finite = np.isfinite(y)
    assert finite[np.arange(20) != 7].all()
    if quantized or np.isnan(bad):
        assert not finite[7].any()


@needs_kernels
def test_rows_of_zeros_and_of_tiny_numbers_give_the_bias() -> None:
    draw = np.random.default_rng(0)
    weight = draw.integers(-127, 128, (50, 33), dtype=np.int8)
    bias = draw.standard_normal(33, dtype=np.float32)
    session = _linear("", weight, bias, np.ones(33, np.float32))
    x = np.zeros((3, 50), np.float32)
    x[1], x[2] = 1e-40, 1e-30
    (y,) = session.run(None, {"x": x})
    np.testing.assert_allclose(y, np.broadcast_to(bias, (3, 33)), rtol=1e-6)


@needs_kernels
@pytest.mark.parametrize(
    ("activation", "limit"), [("Gelu", 3e-7), ("GeluTanh", 3e-7), ("SwiGLU", 4e-7)]
)
def test_activations_are_accurate_over_their_whole_range(activation: str, limit: float) -> None:
    x = np.concatenate([np.linspace(-30, 30, 100_001), np.geomspace(1e-30, 1e30, 10_001)])
    x = np.concatenate([x, -x]).astype(np.float32)[:, None]
    weight = np.ones((1, 2 if activation == "SwiGLU" else 1), np.float32)
    bias = np.zeros(weight.shape[1], np.float32)
    if activation == "SwiGLU":
        weight[0, 1], bias[1] = 0, 1
    (y,) = _linear(activation, weight, bias).run(None, {"x": x})
    expected = _activated(activation, x.astype(np.float64) @ weight + bias, None)
    error = np.abs(y - expected) / np.maximum(np.abs(expected), np.minimum(np.abs(x), 1))
    assert error.max() < limit


@needs_kernels
@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (8,), (2, 3, 4, 8)])
def test_leading_dimensions_pass_through(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((8, 5), dtype=np.float32)
    x = draw.standard_normal(shape, dtype=np.float32)
    (y,) = _linear("", weight, np.zeros(5, np.float32)).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weight, rtol=0, atol=3e-6)


@needs_kernels
def test_more_rows_than_are_packed_at_a_time() -> None:
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((8, 40), dtype=np.float32)
    feed = _feed("Add", draw.standard_normal((5000, 8), dtype=np.float32), 40, draw)
    (y,) = _linear("Add", weight, np.zeros(40, np.float32)).run(None, feed)
    np.testing.assert_allclose(y, feed["x"] @ weight + feed["residual"], rtol=0, atol=1e-5)


def _attention(
    qkv: Array, cos: Array, sin: Array, heads: int, kv_heads: int, norms: Array | None
) -> Array:
    """Both attentions by their definition, in float64; with ``norms`` the decoder's."""
    x, turn, across = (torch.from_numpy(value).double() for value in (qkv, cos, sin))
    batch, length, _ = x.shape
    dim = cos.shape[1]
    q, k, v = (
        part.unflatten(-1, (-1, dim)).transpose(1, 2)
        for part in x.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
    )
    if norms is not None:
        q, k = (
            part * torch.rsqrt(part.square().mean(-1, keepdim=True) + 1e-6) * torch.from_numpy(norm)
            for part, norm in zip((q, k), norms, strict=True)
        )
    q, k = (
        part * turn + torch.cat([-part[..., dim // 2 :], part[..., : dim // 2]], -1) * across
        for part in (q, k)
    )
    k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(dim)
    if norms is not None:
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    y = scores.softmax(-1) @ v
    return y.transpose(1, 2).reshape(batch, length, heads * dim).numpy()


@needs_kernels
@pytest.mark.parametrize(("reduced", "tolerance"), [(0, 5e-6), (1, 1.5e-2)])
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 70) | st.sampled_from([213, 400]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    dim=st.sampled_from([4, 12, 36, 64, 72, 128]),
    decoder=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention_is_its_float64_definition(
    reduced: int,
    tolerance: float,
    batch: int,
    length: int,
    kv_heads: int,
    group: int,
    dim: int,
    decoder: bool,
    seed: int,
) -> None:
    draw = np.random.default_rng(seed)
    heads = kv_heads * group
    kv_heads = kv_heads if decoder else heads
    angles = draw.uniform(0, 6.28, (length, dim)).astype(np.float32)
    feed = {
        "qkv": draw.standard_normal((batch, length, (heads + 2 * kv_heads) * dim), np.float32),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
    }
    norms = None
    if decoder:
        norms = draw.uniform(0.5, 1.5, (2, dim)).astype(np.float32)
        feed |= {"q_norm": norms[0], "k_norm": norms[1]}
        more = {"num_kv_heads": kv_heads, "epsilon": 1e-6}
    session = _session(
        "DecoderAttention" if decoder else "VisionAttention",
        list(feed),
        num_heads=heads,
        reduced_precision=reduced,
        **(more if decoder else {}),
    )
    (y,) = session.run(None, feed)
    expected = _attention(feed["qkv"], feed["cos"], feed["sin"], heads, kv_heads, norms)
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


@needs_kernels
@pytest.mark.parametrize("reduced", [0, 1])
def test_attention_that_looks_at_one_key_only(reduced: int) -> None:
    length, dim = 50, 64
    qkv = np.zeros((1, length, 3 * dim), np.float32)
    qkv[0, :, 0] = 1000  # scores of thousands: only the largest may count
    qkv[0, 31, dim] = 100
    qkv[0, :, 2 * dim :] = np.arange(length, dtype=np.float32)[:, None]
    cos, sin = np.ones((length, dim), np.float32), np.zeros((length, dim), np.float32)
    feed = {"qkv": qkv, "cos": cos, "sin": sin}
    session = _session("VisionAttention", list(feed), num_heads=1, reduced_precision=reduced)
    np.testing.assert_allclose(session.run(None, feed)[0], 31, rtol=1e-6)


@needs_kernels
@pytest.mark.parametrize("reduced", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_attention_to_what_is_not_finite_is_not_finite(reduced: int, bad: float) -> None:
    draw = np.random.default_rng(0)
    qkv = draw.standard_normal((2, 40, 3 * 8), dtype=np.float32)
    qkv[1, 20, 8:] = bad  # a key and a value
    table = np.ones((40, 8), np.float32)
    feed = {"qkv": qkv, "cos": table, "sin": table}
    session = _session("VisionAttention", list(feed), num_heads=1, reduced_precision=reduced)
    (y,) = session.run(None, feed)
    assert np.isfinite(y[0]).all()
    assert not np.isfinite(y[1]).any()


@needs_kernels
def test_two_threads_share_a_session() -> None:
    draw = np.random.default_rng(0)
    weight = draw.integers(-127, 128, (300, 200), dtype=np.int8)
    session = _linear("", weight, np.zeros(200, np.float32), np.full(200, 0.01, np.float32))
    inputs = [draw.standard_normal((50 + 30 * i, 300), dtype=np.float32) for i in range(2)]
    expected = [session.run(None, {"x": x})[0] for x in inputs]
    differing: list[int] = []

    def repeat(i: int) -> None:
        for _ in range(200):
            if not np.array_equal(session.run(None, {"x": inputs[i]})[0], expected[i]):
                differing.append(i)

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differing == []


@needs_kernels
def test_the_number_of_threads_does_not_change_the_result() -> None:
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((700, 300), dtype=np.float32)
    x, bias = draw.standard_normal((300, 700), dtype=np.float32), np.zeros(300, np.float32)
    results = [_linear("Gelu", weight, bias, threads=n).run(None, {"x": x})[0] for n in (1, 2, 5)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@needs_kernels
@pytest.mark.parametrize("quantized", [False, True])
def test_a_row_gives_the_same_bits_alone_and_among_others(quantized: bool) -> None:
    draw = np.random.default_rng(0)
    weight = draw.integers(-127, 128, (2100, 40), dtype=np.int8)
    scale = np.ones(40, np.float32) if quantized else None
    weight = weight if quantized else weight.astype(np.float32)
    session = _linear("GeluTanh", weight, np.zeros(40, np.float32), scale)
    x = draw.standard_normal((600, 2100), dtype=np.float32)
    (together,) = session.run(None, {"x": x})
    alone = [session.run(None, {"x": x[i : i + 1]})[0] for i in (0, 5, 11, 300, 599)]
    np.testing.assert_array_equal(np.concatenate(alone), together[[0, 5, 11, 300, 599]])


@needs_kernels
@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [((3, 7), (5,), "must be the weight's K"), ((3, 8), (6,), r"bias must be \[N\]")],
)
def test_inputs_of_the_wrong_size_are_named(
    x: tuple[int, ...], bias: tuple[int, ...], message: str
) -> None:
    session = _linear("", np.zeros((8, 5), np.float32), np.zeros(bias, np.float32))
    with pytest.raises(InvalidArgument, match=f"Linear: .*{message}"):
        session.run(None, {"x": np.zeros(x, np.float32)})


@needs_kernels
@pytest.mark.parametrize(
    ("qkv", "table", "message"),
    [((1, 3, 25), (3, 8), "multiple of 4"), ((1, 3, 24), (2, 8), r"must be \[T, D\]")],
)
def test_attention_inputs_of_the_wrong_size_are_named(
    qkv: tuple[int, ...], table: tuple[int, ...], message: str
) -> None:
    session = _session("VisionAttention", ["qkv", "cos", "sin"], num_heads=1, reduced_precision=0)
    zeros = np.zeros(table, np.float32)
    with pytest.raises(InvalidArgument, match=message):
        session.run(None, {"qkv": np.zeros(qkv, np.float32), "cos": zeros, "sin": zeros})


@needs_kernels
def test_a_weight_that_is_not_constant_is_refused() -> None:
    with pytest.raises(Exception, match="Linear: the weight must be a constant"):
        _session("Linear", ["x", "weight", "bias"])


@needs_kernels
def test_more_terms_than_int32_can_sum_are_refused() -> None:
    ones = np.ones(1, np.float32)
    with pytest.raises(Exception, match="K above 131072"):
        _linear("", np.ones((2**17 + 1, 1), np.int8), ones, ones)


# ---- the library and the graph's own bodies


def _negated_linear() -> onnx.FunctionProto:
    """A body of ``vibematch.Linear`` that can be told from the kernel: its result is negative."""
    return helper.make_function(
        "vibematch",
        "Linear",
        ["x", "weight", "bias"],
        ["y"],
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["sum"]),
            helper.make_node("Neg", ["sum"], ["y"]),
        ],
        [helper.make_opsetid("", 18)],
    )


def _linear_with_body(*, use_kernels: bool) -> float:
    constants = {"weight": np.full((1, 1), 2, np.float32), "bias": np.zeros(1, np.float32)}
    session = _session(
        "Linear",
        ["x", *constants],
        constants,
        functions=(_negated_linear(),),
        use_kernels=use_kernels,
    )
    return session.run(None, {"x": np.ones((1, 1), np.float32)})[0].item()


def test_without_the_library_the_graphs_own_body_runs() -> None:
    assert _linear_with_body(use_kernels=False) == -2


@needs_kernels
def test_a_registered_kernel_replaces_the_body() -> None:
    assert _linear_with_body(use_kernels=True) == 2


@pytest.fixture
def fresh_library() -> Iterator[None]:
    kernels.library.cache_clear()
    yield
    kernels.library.cache_clear()


@needs_kernels
def test_the_library_is_built_once(fresh_library: None) -> None:
    first = kernels.library()
    assert first is not None
    written = first.stat().st_mtime_ns
    kernels.library.cache_clear()
    assert kernels.library() == first
    assert first.stat().st_mtime_ns == written
    assert [file.name for file in first.parent.iterdir()] == [first.name]


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_one_warning_says_what_to_install(
    compiler: str,
    fresh_library: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with caplog.at_level(logging.WARNING):
        assert not kernels.register(onnxruntime.SessionOptions())
        assert kernels.library() is None
    (record,) = caplog.records
    assert "slower" in record.message
    assert "install a C++ compiler" in record.message


@needs_kernels
@pytest.mark.slow
def test_the_source_compiles_without_warnings(tmp_path: Path) -> None:
    source = Path(kernels.__file__).with_name("kernels.cpp")
    flags = ["-O3", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["c++", *flags, str(source), "-o", str(tmp_path / "kernels.so")], check=True)
