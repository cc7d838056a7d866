"""Multiply-adds of one photo on paper, and how many of them this machine can do in a second.

Both together give the shortest time a photo can take here, whatever the program: what an engine
takes is compared with that.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from harness import CORES
from models import config_2b
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph
from transformers import Qwen3VLConfig

from vibematch.preprocess import Preprocessing
from vibematch_export import kernels
from vibematch_export.fused import DOMAIN
from vibematch_training.backbone import PROMPT, load_backbone

Array: TypeAlias = npt.NDArray[Any]
Format: TypeAlias = Literal["int8", "bf16", "fp16", "fp32"]
BYTES: Final[Mapping[Format, int]] = {"int8": 1, "bf16": 2, "fp16": 2, "fp32": 4}
HEAD_WIDTHS: Final = (512, 256)
"""Outputs of the head's two layers: the default of training, and ``models.EMBEDDING_DIM``."""


# --- on paper


@dataclass(frozen=True)
class Linear:
    """Equal products of states ``[rows, inputs]`` with weights ``[inputs, outputs]``.

    Attributes:
        name: which layers these are.
        times: how many there are in one photo's forward.
        rows: tokens of one photo, for each of them.
        inputs: width of the states.
        outputs: width of what comes out.
    """

    name: str
    times: int
    rows: int
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        """Of all of them, biases left out."""
        return self.times * self.inputs * self.outputs

    @property
    def macs(self) -> int:
        """Multiply-adds of all of them."""
        return self.weights * self.rows

    @property
    def values(self) -> int:
        """Numbers read and written besides the weights."""
        return self.times * self.rows * (self.inputs + self.outputs)


@dataclass(frozen=True)
class Attention:
    """Equal attentions: queries times keys, then shares times values.

    Attributes:
        name: whose attention it is.
        times: layers.
        heads: of queries.
        kv_heads: of keys, and of values.
        head_dim: width of one.
        rows: tokens of one photo.
        pairs: of tokens that see each other: half as many where attention is causal.
    """

    name: str
    times: int
    heads: int
    kv_heads: int
    head_dim: int
    rows: int
    pairs: int

    @property
    def macs(self) -> int:
        """Multiply-adds of both products, in all layers."""
        return 2 * self.times * self.heads * self.head_dim * self.pairs

    @property
    def values(self) -> int:
        """Queries, keys and values read, result written; scores stay in registers and caches."""
        return self.times * self.rows * 2 * (self.heads + self.kv_heads) * self.head_dim


@dataclass(frozen=True)
class Work:
    """The matrix products of one photo's forward, by the number format they can run in.

    The least that the architecture asks for: one frame in the patch embedding, since a photo is
    shown as two equal ones, and only those pairs of tokens that causal attention keeps. Norms,
    rotations and activations are not matrix products and are not in it.

    Attributes:
        edges: patch embedding and head, float32 in every graph of ours for CPUs.
        layers: all other linear layers, which ``int8`` graphs have in 8 bits.
        attention: products of activations with each other, which have no weights.
    """

    edges: tuple[Linear, ...]
    layers: tuple[Linear, ...]
    attention: tuple[Attention, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds of one photo."""
        return sum(part.macs for part in (*self.edges, *self.layers, *self.attention))

    def least_s(self, rates: Mapping[Format, float], layers: Format, attention: Format) -> float:
        """Seconds for one photo if every product ran at the full rate of its format.

        Args:
            rates: multiply-adds per second by format.
            layers: format of the linear layers; the edges are in bf16 with bf16, else in fp32.
            attention: format of attention.
        """
        edges: Format = layers if layers in ("bf16", "fp16") else "fp32"
        return (
            _macs(self.edges) / rates[edges]
            + _macs(self.layers) / rates[layers]
            + _macs(self.attention) / rates[attention]
        )

    def weight_bytes(self, layers: Format) -> int:
        """Bytes of the weights of all linear layers; the edges' are float32."""
        edges = sum(part.weights for part in self.edges) * BYTES["fp32"]
        return edges + sum(part.weights for part in self.layers) * BYTES[layers]

    def state_bytes(self, states: Format) -> int:
        """Bytes of activations that one photo's products read and write."""
        parts = (*self.edges, *self.layers, *self.attention)
        return sum(part.values for part in parts) * BYTES[states]


def _macs(parts: tuple[Linear, ...] | tuple[Attention, ...]) -> int:
    return sum(part.macs for part in parts)


def work(config: Qwen3VLConfig, canvas: Preprocessing, prompt_tokens: int) -> Work:
    """Count one photo's multiply-adds.

    Args:
        config: the backbone's.
        canvas: height and width of the photo the model sees.
        prompt_tokens: tokens around the photo, chat template included.
    """
    vision, text = config.vision_config, config.text_config
    width, side = vision.hidden_size, vision.patch_size
    patches = (canvas.height // side) * (canvas.width // side)
    joined = vision.spatial_merge_size**2
    image_tokens = patches // joined
    tokens = image_tokens + prompt_tokens
    merging = 1 + len(vision.deepstack_visual_indexes)
    blocks, decoders = vision.depth, text.num_hidden_layers
    query = text.num_attention_heads * text.head_dim
    key_value = text.num_key_value_heads * text.head_dim
    hidden, inner = text.hidden_size, text.intermediate_size

    edges = (
        Linear("patch embedding", 1, patches, vision.in_channels * side**2, width),
        Linear("head 1", 1, 1, hidden, HEAD_WIDTHS[0]),
        Linear("head 2", 1, 1, *HEAD_WIDTHS),
    )
    layers = (
        Linear("vision qkv", blocks, patches, width, 3 * width),
        Linear("vision out", blocks, patches, width, width),
        Linear("vision mlp 1", blocks, patches, width, vision.intermediate_size),
        Linear("vision mlp 2", blocks, patches, vision.intermediate_size, width),
        Linear("mergers 1", merging, image_tokens, joined * width, joined * width),
        Linear("mergers 2", merging, image_tokens, joined * width, vision.out_hidden_size),
        Linear("decoder qkv", decoders, tokens, hidden, query + 2 * key_value),
        Linear("decoder out", decoders, tokens, query, hidden),
        Linear("decoder gate and up", decoders, tokens, hidden, 2 * inner),
        Linear("decoder down", decoders, tokens, inner, hidden),
    )
    heads = vision.num_heads
    attention = (
        Attention("vision", blocks, heads, heads, width // heads, patches, patches**2),
        Attention(
            *("decoder", decoders, text.num_attention_heads, text.num_key_value_heads),
            *(text.head_dim, tokens, math.comb(tokens + 1, 2)),
        ),
    )
    return Work(edges, layers, attention)


@functools.cache
def photo_work(backbone: Literal["tiny", "2b"], canvas: Preprocessing) -> Work:
    """The work of one photo for a backbone of ``models.py``, with the prompt of training."""
    tiny = load_backbone("tiny", torch.float32, "cpu")  # its tokenizer is that of both
    image_tokens = (canvas.height // tiny.pixels_per_token) * (
        canvas.width // tiny.pixels_per_token
    )
    prompt_tokens = len(tiny.token_ids(PROMPT, canvas.height, canvas.width)) - image_tokens
    return work(config_2b() if backbone == "2b" else tiny.model.config, canvas, prompt_tokens)


# --- on this machine

_ROWS, _INNER, _COLUMNS = 864, 2048, 6144  # the 2B decoder's MLP with 4 photos of 448x448
_TRIES: Final = 5


class Rate(NamedTuple):
    """The best of several tries.

    Attributes:
        per_s: multiply-adds or bytes per second.
        by: what was fastest.
    """

    per_s: float
    by: str


def matrix_rates() -> dict[Format, Rate]:
    """The machine's matrix rates with all cores, multiply-adds per second.

    Each is the fastest of what there is here: PyTorch's product (oneDNN's, or MKL's), ONNX
    Runtime's, and our kernels, which also scale sums, add a bias and, in ``int8``, round their
    input. ``int8`` is 8-bit products summed in 32 bits.
    """
    torch.set_num_threads(CORES)
    return {
        "int8": _fastest(_int8()),
        "bf16": _fastest({"PyTorch": _torch(torch.bfloat16)}),
        "fp32": _fastest({"PyTorch": _torch(torch.float32), **_fp32_sessions()}),
    }


def read_rate() -> Rate:
    """Bytes per second that all cores together can read from memory."""
    torch.set_num_threads(CORES)
    many = torch.ones(2**27)  # 512 MiB: far more than caches hold
    return Rate(many.nbytes / _shortest_s(many.sum), "PyTorch, sum of 512 MiB")


def _fastest(contenders: Mapping[str, Callable[[], Any]]) -> Rate:
    macs = _ROWS * _INNER * _COLUMNS
    rates = {name: macs / _shortest_s(run) for name, run in contenders.items()}
    best = max(rates, key=lambda name: rates[name])
    return Rate(rates[best], best)


def _shortest_s(run: Callable[[], Any]) -> float:
    run()
    seconds = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _torch(dtype: torch.dtype) -> Callable[[], Any]:
    left, right = torch.randn(_ROWS, _INNER).to(dtype), torch.randn(_INNER, _COLUMNS).to(dtype)
    return lambda: left @ right


def _int8() -> dict[str, Callable[[], Any]]:
    rng = np.random.default_rng(0)
    states = rng.integers(0, 256, (_ROWS, _INNER), dtype=np.uint8)
    weight = rng.integers(-127, 128, (_INNER, _COLUMNS), dtype=np.int8)
    signed = torch.from_numpy((states.astype(np.int16) - 128).astype(np.int8))
    weights = torch.from_numpy(weight)
    wide = states.astype(np.float32)
    scale_and_bias = [np.ones(_COLUMNS, np.float32), np.zeros(_COLUMNS, np.float32)]
    return {
        "PyTorch": lambda: torch._int_mm(signed, weights),
        "ONNX Runtime": _session("", "MatMulInteger", states, [weight]),
        **_ours("QuantizedLinear", wide, [weight, *scale_and_bias]),
    }


def _fp32_sessions() -> dict[str, Callable[[], Any]]:
    rng = np.random.default_rng(0)
    states = rng.standard_normal((_ROWS, _INNER), np.float32)
    weight = rng.standard_normal((_INNER, _COLUMNS), np.float32)
    bias = np.zeros(_COLUMNS, np.float32)
    return {
        "ONNX Runtime": _session("", "MatMul", states, [weight]),
        **_ours("Linear", states, [weight, bias]),
    }


def _ours(operator: str, states: Array, weights: Sequence[Array]) -> dict[str, Callable[[], Any]]:
    """Our kernel, where this CPU can run it."""
    try:
        return {"our kernel": _session(DOMAIN, operator, states, weights)}
    except InvalidGraph:  # nobody implements the operator
        return {}


def _session(
    domain: str, operator: str, states: Array, weights: Sequence[Array]
) -> Callable[[], Any]:
    """One operator in ONNX Runtime on all cores, its weights known beforehand."""
    names = [f"w{number}" for number in range(len(weights))]
    integer = operator == "MatMulInteger"
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *names], ["y"], domain=domain)],
        operator,
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(states.dtype), None)],
        [
            helper.make_tensor_value_info(
                "y", TensorProto.INT32 if integer else TensorProto.FLOAT, None
            )
        ],
        [numpy_helper.from_array(*pair) for pair in zip(weights, names, strict=True)],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    if domain == DOMAIN:
        kernels.register(options)
    made = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: made.run(None, {"x": states})
