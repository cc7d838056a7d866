"""The operators of domain ``vibematch``, spelt out in standard ONNX.

An exported graph calls them as model-local functions. ONNX Runtime inlines the bodies below, unless
:mod:`vibematch_export.kernels` is registered: then it runs those instead.

Sources: rotary embeddings in the rotate-half form (RoFormer, Su et al.), RMSNorm (Zhang and
Sennrich), SwiGLU (Shazeer), all as transformers computes them for Qwen3-VL.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast, get_args

import onnx
import onnx.parser
import onnx_ir as ir

from vibematch_export.fused import DOMAIN, Epilogue

VERSION: Final = 1
"""Of the domain; raised when an operator changes its meaning."""

_EPILOGUES: Final[dict[Epilogue, str]] = {
    "": "y = Identity (z)",
    "Gelu": "y = Gelu (z)",
    "GeluTanh": 'y = Gelu <approximate = "tanh"> (z)',
    "SwiGLU": """gate, up = Split <axis = -1, num_outputs = 2> (z)
  opened = Sigmoid (gate)
  silu = Mul (gate, opened)
  y = Mul (silu, up)""",
    "Add": """wide = Cast <to = 1> (z)
  y = Add (residual, wide)""",
}

_LINEAR: Final = """
Linear{name} (x, weight, bias{residual}) => (y) {{
  narrow = Cast <to = {code}> (x)
  product = MatMul (narrow, weight)
  z = Add (product, bias)
  {epilogue}
}}"""

# Each row is quantised by itself, symmetrically. Adding 0 * sum makes the scale of a row that has a
# value that is not finite not finite either, which a maximum alone may not. Weights are made
# unsigned: on x86 without VNNI, products of unsigned and signed bytes are summed in 16 bits, which
# overflow.
_QUANTIZED_LINEAR: Final = """
QuantizedLinear{name} (x, weight, scale, bias{residual}) => (y) {{
  last = Constant <value = int64[1] {{-1}}> ()
  steps = Constant <value = float {{127.0}}> ()
  zero = Constant <value = float {{0.0}}> ()
  one = Constant <value = float {{1.0}}> ()
  middle = Constant <value = float {{128.0}}> ()
  middle_code = Constant <value = uint8 {{128}}> ()
  magnitude = Abs (x)
  largest = ReduceMax <keepdims = 1> (magnitude, last)
  total = ReduceSum <keepdims = 1> (magnitude, last)
  nothing = Mul (total, zero)
  range = Add (largest, nothing)
  row_scale = Div (range, steps)
  is_zero = Equal (row_scale, zero)
  divisor = Where (is_zero, one, row_scale)
  steps_per_one = Reciprocal (divisor)
  scaled = Mul (x, steps_per_one)
  rounded = Round (scaled)
  shifted = Add (rounded, middle)
  codes = Cast <to = 2> (shifted)
  signed = Cast <to = 6> (weight)
  offset = Constant <value = int32 {{128}}> ()
  raised = Add (signed, offset)
  unsigned = Cast <to = 2> (raised)
  sums = com.microsoft.MatMulIntegerToFloat (codes, unsigned, one, scale, middle_code, middle_code)
  product = Mul (sums, row_scale)
  z = Add (product, bias)
  {epilogue}
}}"""

_RMS_NORM: Final = """
RMSNorm <epsilon> (x, weight) => (y) {
  y = RMSNormalization <axis = -1, epsilon: float = @epsilon> (x, weight)
}"""

_ROTARY: Final = """
Rotary (x, cos, sin) => (y) {
  front, back = Split <axis = -1, num_outputs = 2> (x)
  negative = Neg (back)
  turned = Concat <axis = -1> (negative, front)
  direct = Mul (x, cos)
  crossed = Mul (turned, sin)
  y = Add (direct, crossed)
}"""

_VISION_ATTENTION: Final = """
VisionAttention <num_heads, reduced_precision> (qkv, cos, sin) => (y) {
  heads = Constant <value_int: int = @num_heads> ()
  one = Constant <value = int64[1] {1}> ()
  same = Constant <value = int64[2] {0, 0}> ()
  rest = Constant <value = int64[1] {-1}> ()
  flat = Constant <value = int64[3] {0, 0, -1}> ()
  three = Constant <value = int64[1] {3}> ()
  count = Reshape (heads, one)
  counts = Concat <axis = 0> (count, count, count)
  all = Mul (count, three)
  by_head = Concat <axis = 0> (same, all, rest)
  apart = Reshape (qkv, by_head)
  headed = Transpose <perm = [0, 2, 1, 3]> (apart)
  q, k, v = Split <axis = 1> (headed, counts)
  query = vibematch.Rotary (q, cos, sin)
  key = vibematch.Rotary (k, cos, sin)
  mixed = Attention (query, key, v)
  joined = Transpose <perm = [0, 2, 1, 3]> (mixed)
  y = Reshape (joined, flat)
}"""

_DECODER_ATTENTION: Final = """
DecoderAttention <num_heads, num_kv_heads, epsilon, reduced_precision>
(qkv, cos, sin, q_norm, k_norm) => (y) {
  heads = Constant <value_int: int = @num_heads> ()
  kv_heads = Constant <value_int: int = @num_kv_heads> ()
  one = Constant <value = int64[1] {1}> ()
  same = Constant <value = int64[2] {0, 0}> ()
  rest = Constant <value = int64[1] {-1}> ()
  flat = Constant <value = int64[3] {0, 0, -1}> ()
  count = Reshape (heads, one)
  kv_count = Reshape (kv_heads, one)
  counts = Concat <axis = 0> (count, kv_count, kv_count)
  all = ReduceSum <keepdims = 1> (counts)
  by_head = Concat <axis = 0> (same, all, rest)
  apart = Reshape (qkv, by_head)
  headed = Transpose <perm = [0, 2, 1, 3]> (apart)
  q, k, v = Split <axis = 1> (headed, counts)
  q_normal = RMSNormalization <axis = -1, epsilon: float = @epsilon> (q, q_norm)
  k_normal = RMSNormalization <axis = -1, epsilon: float = @epsilon> (k, k_norm)
  query = vibematch.Rotary (q_normal, cos, sin)
  key = vibematch.Rotary (k_normal, cos, sin)
  mixed = Attention <is_causal = 1> (query, key, v)
  joined = Transpose <perm = [0, 2, 1, 3]> (mixed)
  y = Reshape (joined, flat)
}"""


def functions(opset: int) -> Iterable[ir.Function]:
    """The bodies of all operators, for float32 activations.

    Args:
        opset: of the standard operators, at least 23.
    """
    for epilogue in get_args(Epilogue):
        yield linear(f"Linear{epilogue}", opset, ir.DataType.FLOAT)
        yield _linear(_QUANTIZED_LINEAR, epilogue, opset)
    for body in (_RMS_NORM, _ROTARY, _VISION_ATTENTION, _DECODER_ATTENTION):
        yield _parse(body, opset)


def linear(operator: str, opset: int, number_format: ir.DataType) -> ir.Function:
    """The body of a linear layer.

    Args:
        operator: ``Linear`` and an epilogue.
        opset: of the standard operators, at least 20.
        number_format: of weight and bias, in which it multiplies; its input is cast to it.
    """
    return _linear(_LINEAR, operator.removeprefix("Linear"), opset, code=int(number_format))


def _linear(template: str, epilogue: str, opset: int, **filled: int) -> ir.Function:
    body = template.format(
        name=epilogue,
        residual=", residual" if epilogue == "Add" else "",
        epilogue=_EPILOGUES[cast(Epilogue, epilogue)],
        **filled,
    )
    return _parse(body, opset)


def _parse(body: str, opset: int) -> ir.Function:
    imports = f'"" : {opset}, "com.microsoft" : 1, "{DOMAIN}" : {VERSION}'
    text = f'<domain: "{DOMAIN}", opset_import: [{imports}]> {body}'
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))
