"""Checkpoints in the real layout for tests: other sizes, FP8, massive activations."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vibematch_training.tiny import tiny_backbone

Weights = dict[str, torch.Tensor]
Severity = Literal["some", "everywhere"]

FP16_MAX = 65_504
BLOCK = 128

MASSIVE = (5, 100, 201)
"""Which channels of a layer are made massive."""

OUTLIER = 10.0
"""What linear layers see of them; other inputs are about 1."""

_TEXT = "model.language_model"
_VISION = "model.visual.blocks"


def write_checkpoint(
    folder: Path,
    text: dict[str, object],
    vision: dict[str, object],
    *,
    tied: bool = False,
    max_shard_size: str = "5GB",
) -> None:
    """Write a random Qwen3-VL of this geometry with the tiny checkpoint's tokenizer.

    Weights keep the variance of their input and biases and norms are no neutral elements, so that
    whatever a graph leaves out or mixes up changes the features.
    """
    tokens = AutoTokenizer.from_pretrained(tiny_backbone()).get_vocab()
    config = Qwen3VLConfig(
        text_config={"vocab_size": len(tokens), "tie_word_embeddings": tied, **text},
        vision_config=vision,
        image_token_id=tokens["<|image_pad|>"],
        video_token_id=tokens["<|video_pad|>"],
        vision_start_token_id=tokens["<|vision_start|>"],
        vision_end_token_id=tokens["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                fan_in = 1 if "embed" in name and parameter.ndim == 2 else parameter[0].numel()
                parameter.normal_(std=1 / math.sqrt(fan_in))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    copy_all_but_weights(tiny_backbone(), folder, keep=("config.json",))


def copy_all_but_weights(source: Path, target: Path, keep: Iterable[str] = ()) -> None:
    """Copy tokenizer, processor and configuration, leaving ``keep`` of the target as they are."""
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.name not in keep and "safetensors" not in path.name:
            shutil.copy(path, target)


def read_weights(folder: Path) -> Weights:
    """All tensors of a checkpoint by name."""
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def rewrite(source: Path, target: Path, change: Callable[[Weights], Weights]) -> None:
    """Write a checkpoint's copy with other weights."""
    copy_all_but_weights(source, target)
    weights = change(read_weights(source))
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, target / "model.safetensors", {"format": "pt"})


def change_config(folder: Path, **changes: object) -> None:
    """Set top-level entries of ``config.json``."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def quantise_to_fp8(
    source: Path, target: Path, *, scale_dtype: torch.dtype = torch.bfloat16
) -> Weights:
    """Write the fine-grained FP8 copy that Qwen publishes beside each checkpoint.

    Returns:
        What the quantised weights stand for, by name, computed block by block.
    """
    expected: Weights = {}

    kept = "model.visual.blocks.0.attn.qkv"

    def change(weights: Weights) -> Weights:
        written = {}
        for name, weight in weights.items():
            written[name] = weight.bfloat16()
            if weight.ndim == 2 and not any(part in name for part in ("embed", "lm_head", kept)):
                written[name], scales, expected[name] = _fp8_blocks(weight, scale_dtype)
                written[f"{name}_scale_inv"] = scales
        return written

    rewrite(source, target, change)
    change_config(
        target,
        quantization_config={
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": ["lm_head", kept],
        },
    )
    return expected


def _fp8_blocks(
    weight: torch.Tensor, scale_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    quantised = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    expected = torch.empty(weight.shape)
    starts = [range(0, side, BLOCK) for side in weight.shape]
    scales = torch.empty(len(starts[0]), len(starts[1]), dtype=scale_dtype)
    for i, row in enumerate(starts[0]):
        for j, column in enumerate(starts[1]):
            block = slice(row, row + BLOCK), slice(column, column + BLOCK)
            largest = weight[block].abs().max().clamp(min=1e-12)
            scales[i, j] = largest / 448  # the largest float8_e4m3fn
            scale = scales[i, j].item()
            quantised[block] = (weight[block] / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            expected[block] = quantised[block].float() * scale
    return quantised, scales, expected


def plant_massive_activations(source: Path, target: Path, severity: Severity = "some") -> None:
    """Write the tiny checkpoint with activations as extreme as real Qwen models' are known to be.

    ``some``: three channels of the decoder's residual stream are about 1000 times the others, and
    norms scale them so that linear layers see 10 times the others; and three units of the last
    vision block's MLP exceed float16 on any photo. The function is another that tells photos apart
    nearly as well. With that MLP kept wide and norms computed in float32, float16 and int8 follow
    it about as well as they follow the tiny checkpoint itself.

    ``everywhere``: besides, three inputs of each linear layer in both towers' blocks are a million
    times the others, and the weights that read them a million times smaller. In exact arithmetic
    the features are those of ``some``, and float32 and bfloat16 follow; but float16 overflows at
    each layer, and int8 that is scaled by the largest input or weight sees nothing else.

    Args:
        source: the tiny checkpoint.
        target: a folder for the result; created if missing.
        severity: how bad.
    """

    def change(weights: Weights) -> Weights:
        _plant_in_residual_stream(weights, factor=1000)
        _scale(weights, f"{_VISION}.1.mlp.linear_fc1", [f"{_VISION}.1.mlp.linear_fc2"], 1e5)
        if severity == "everywhere":
            _plant_in_every_input(weights, factor=1e6)
        return weights

    rewrite(source, target, change)


def _plant_in_residual_stream(weights: Weights, factor: float) -> None:
    """A large constant in a few channels.

    In trained models, too, massive activations are nearly the same for any input (Sun et al. 2024,
    "Massive Activations in Large Language Models").
    """
    channels = list(MASSIVE)
    weights[f"{_TEXT}.embed_tokens.weight"][:, channels] = factor
    weights["model.visual.merger.linear_fc2.bias"][channels] = factor
    width = weights[f"{_TEXT}.norm.weight"].numel()
    root_mean_square = factor * math.sqrt(len(channels) / width)
    for name, scale in weights.items():
        if name.startswith(_TEXT) and "norm" in name and scale.numel() == width:
            scale *= root_mean_square
            scale[channels] = OUTLIER * root_mean_square / factor


def _plant_in_every_input(weights: Weights, factor: float) -> None:
    for number in (0, 1):
        layer, block = f"{_TEXT}.layers.{number}", f"{_VISION}.{number}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        qkv = [f"{attention}.{name}_proj" for name in "qkv"]
        gated = [f"{mlp}.gate_proj", f"{mlp}.up_proj"]
        _scale(weights, f"{layer}.input_layernorm", qkv, factor)
        _scale(weights, f"{layer}.post_attention_layernorm", gated, factor)
        _scale(weights, f"{mlp}.up_proj", [f"{mlp}.down_proj"], factor)
        _scale(weights, f"{block}.norm1", [f"{block}.attn.qkv"], factor)
        _scale(weights, f"{block}.norm2", [f"{block}.mlp.linear_fc1"], factor)
        _scale(weights, f"{block}.mlp.linear_fc1", [f"{block}.mlp.linear_fc2"], factor)


def _scale(weights: Weights, writer: str, readers: list[str], factor: float) -> None:
    """Scale what some units of a layer write up, and what reads them down.

    The function stays: all between them is linear in those units, or GELU, which for such inputs
    is a rectifier.
    """
    for parameter in ("weight", "bias"):
        if f"{writer}.{parameter}" in weights:
            weights[f"{writer}.{parameter}"][list(MASSIVE)] *= factor
    for reader in readers:
        weights[f"{reader}.weight"][:, list(MASSIVE)] /= factor
