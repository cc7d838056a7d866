"""Weights of fine-grained FP8 checkpoints (``Qwen/Qwen3-VL-*-FP8``), as ordinary numbers again.

The layout is the one transformers loads into its ``FP8Linear``: beside ``X.weight``, float8_e4m3fn
of shape ``[rows, columns]``, lies ``X.weight_scale_inv`` with one factor for each block of
``weight_block_size`` (128 x 128), shape ``[ceil(rows / 128), ceil(columns / 128)]``; the last
blocks are smaller where 128 does not divide. Modules that were not converted have no such factors.

transformers' own ``dequantize`` is not used: it needs one more package (accelerate), and it takes
all blocks for equally large, so it refuses a weight of 4304 rows (the larger vision towers') and
misreads one of 192 rows as blocks of 96.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from vibematch.errors import InputError

_SCALE: Final = "_scale_inv"
_FLOAT8: Final = torch.float8_e4m3fn


def dequantised_weights(
    folder: Path, quantization: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Read a fine-grained FP8 checkpoint without its language-model head.

    Products are computed in float32 and then rounded to ``dtype``. Memory holds little besides the
    result.

    Args:
        folder: the checkpoint, one safetensors file or several with an index.
        quantization: ``quantization_config`` of its configuration.
        dtype: number format of the result.

    Returns:
        Tensor name in the checkpoint → weight.

    Raises:
        InputError: the checkpoint is quantised in another way, or weights and factors do not
            belong together; the message continues the sentence "<checkpoint> ...".
    """
    method, block = quantization.get("quant_method"), quantization.get("weight_block_size")
    if method != "fp8" or not block:
        raise InputError(
            f"is quantised by {method!r} with blocks {block}, and only 'fp8' with a "
            "weight_block_size can be read back: give the checkpoint it was made from"
        )
    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(path, "pt")) for path in _shards(folder)]
        file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        weights = {}
        for name, file in file_of.items():
            if name.endswith(_SCALE) or name.startswith("lm_head."):
                continue
            weight, scale = file.get_tensor(name), name + _SCALE
            if scale in file_of:
                factors = file_of[scale].get_tensor(scale)
                weights[name] = _dequantise(name, weight, factors, block, dtype)
            elif weight.dtype == _FLOAT8:
                raise InputError(f"has no {scale} for its FP8 weight: fetch it again")
            else:
                weights[name] = weight.to(dtype)
    return weights


def _shards(folder: Path) -> list[Path]:
    """The checkpoint's weight files, found as transformers finds them."""
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if single.is_file() or not index.is_file():
        return [single]
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / name for name in sorted(set(names))]


def _dequantise(
    name: str,
    weight: torch.Tensor,
    factors: torch.Tensor,
    block: tuple[int, int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """``[rows, columns]``: each block of the weight times its factor."""
    (rows, columns), (high, wide) = weight.shape, block
    grid = (-(-rows // high), -(-columns // wide))
    if weight.dtype != _FLOAT8 or factors.shape != grid or not factors.is_floating_point():
        raise InputError(
            f"has FP8 factors that do not fit {name}: {factors.dtype} {list(factors.shape)} for "
            f"{weight.dtype} {list(weight.shape)} in blocks of {high} x {wide}"
        )
    product = torch.empty(weight.shape, dtype=dtype)
    for start, row_of_blocks in zip(range(0, rows, high), factors.float(), strict=True):
        part = slice(start, start + high)
        product[part] = weight[part].float() * row_of_blocks.repeat_interleave(wide)[:columns]
    return product
