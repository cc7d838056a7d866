"""A tiny Qwen3-VL: the real classes and checkpoint layout, 11 million untrained parameters.

It stands in for Qwen3-VL-2B where no checkpoint can be downloaded: the demo and the tests. Nothing
in it is learnt. Plain random weights make an almost linear network, whose mean over an image is
little more than its mean colour; so the random draws here follow what is known of early vision:

- the patch projection is a cosine transform that weighs each coefficient by its frequency, which
  undoes the 1/f amplitude spectrum of natural images (Field 1987);
- the first block's MLP sees each patch through random Gabor filters at many places of it, rectifies
  them and averages those of one orientation and wavelength: texture, wherever in the patch it is
  (simple and complex cells, Hubel & Wiesel 1962; energy models, Adelson & Bergen 1985);
- position embeddings are slow waves, so that neighbouring patches know that they are neighbours;
  and since they are the constant part of every patch, normalisation leaves faint ones faint;
- mergers add random conjunctions "these textures at this kind of place"; all else is Gaussian.

The weights come from a fixed seed, so every machine with the same torch builds the same checkpoint.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vibematch_training.cache import cache_dir

SEED: Final = 0
REVISION: Final = 3
"""Part of the cache folder's name: bump it when the checkpoint changes."""

SPECIAL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_VOCABULARY_SIZE: Final = 512
_CORPUS: Final = (
    "Describe this person's appearance.",
    "user assistant system",
    "A young woman with long wavy hair wears an oversized hoodie in front of a cafe.",
    "A man in a navy suit and a striped tie stands in a bright office.",
    "She takes a mirror selfie in running tights and a cropped top at the gym.",
)
_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_PATCH: Final = 16
_LUMINANCE: Final = 146
_CHROMA: Final = 7
_BASIS: Final = _LUMINANCE + 2 * _CHROMA
_KINDS: Final = 64
_PLACES: Final = 32
_CHANNELS: Final = _BASIS + _KINDS + _PLACES
"""Channels of the vision tower: cosine coefficients of brightness and of two colour axes, texture
energies of so many kinds, and waves that tell the place."""

_ORIENTATIONS: Final = 8
_WAVELENGTHS_PIXELS: Final = (2.6, 3.4, 4.5, 6.0, 8.0, 10.5)
_FILTERS_PER_KIND: Final = 24
_COLOUR_AXES: Final = ((1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (1.0, 1.0, -2.0))
"""Brightness, red against green, yellow against blue."""


def tiny_backbone() -> Path:
    """The tiny checkpoint's folder, written on first use.

    Returns:
        A folder in the layout ``from_pretrained`` reads.
    """
    folder = cache_dir("backbones") / f"tiny-{REVISION}"
    if not folder.exists():
        partial = Path(tempfile.mkdtemp(dir=folder.parent))
        write_tiny_backbone(partial)
        try:
            partial.rename(folder)
        except OSError:  # another process was first; both wrote the same bytes
            shutil.rmtree(partial)
    return folder


def write_tiny_backbone(directory: Path) -> None:
    """Write the tiny checkpoint: weights, configuration, tokenizer and image processor.

    Args:
        directory: an existing folder.
    """
    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        model = Qwen3VLForConditionalGeneration(_config(tokenizer))
        _draw_vision(model.model.visual)
        _draw_text(model.model.language_model)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    Qwen2VLImageProcessorPil(
        patch_size=_PATCH, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(directory)


def _config(tokenizer: Qwen2Tokenizer) -> Qwen3VLConfig:
    vocabulary = tokenizer.get_vocab()
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 768,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [12, 10, 10],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "hidden_size": _CHANNELS,
            "depth": 2,
            "num_heads": 4,
            "intermediate_size": _KINDS * _FILTERS_PER_KIND,
            "out_hidden_size": 768,
            "patch_size": _PATCH,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def _draw_vision(tower: Any) -> None:  # a Qwen3VLVisionModel; its parts carry no types
    coefficients, projection = _cosine_basis()
    frames = tower.patch_embed.proj.weight.shape[2]
    tower.patch_embed.proj.weight.zero_()
    # a photo is shown as equal frames: shared among them, a filter keeps its strength
    tower.patch_embed.proj.weight[:_BASIS] = 0.6 / frames * projection[:, :, None]
    tower.patch_embed.proj.bias.zero_()
    tower.pos_embed.weight.zero_()
    tower.pos_embed.weight[:, -_PLACES:] = _slow_waves(tower.num_grid_per_side)

    first, *others = tower.blocks
    _gaussian(first.attn.qkv)
    _gaussian(first.attn.proj, gain=0.05)  # patches hardly mix before their texture is seen
    _draw_texture_energies(first.mlp, coefficients)
    for block in others:
        _gaussian(block.attn.qkv)
        _gaussian(block.attn.proj, gain=0.15)
        _gaussian(block.mlp.linear_fc1, gain=2.0)
        _gaussian(block.mlp.linear_fc2, gain=0.3)
    _draw_merger(tower.merger, gain=1.0)
    for merger in tower.deepstack_merger_list:
        _draw_merger(merger, gain=0.7)


def _draw_text(decoder: Any) -> None:  # a Qwen3VLTextModel
    decoder.embed_tokens.weight.normal_(std=0.5)
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.o_proj, mlp.up_proj):
            _gaussian(linear)
        _gaussian(attention.v_proj, gain=0.3)
        _gaussian(mlp.gate_proj, gain=2.0)
        _gaussian(mlp.down_proj, gain=0.7)


@dataclass(frozen=True)
class _Coefficient:
    """One channel of the patch projection: a frequency of one colour axis and its weight."""

    axis: int
    row: int
    column: int
    weight: float


def _cosine_basis() -> tuple[list[_Coefficient], torch.Tensor]:
    """The lowest frequencies of each colour axis, and their filters ``[_BASIS, 3, 16, 16]``.

    Brightness has no mean: light must not drown texture. Colour has, faintly.
    """
    frequencies = sorted(
        itertools.product(range(_PATCH), range(_PATCH)), key=lambda at: (math.hypot(*at), at)
    )
    chosen = [(0, at) for at in frequencies[1 : 1 + _LUMINANCE]]
    chosen += [(axis, at) for axis in (1, 2) for at in frequencies[:_CHROMA]]
    coefficients = [
        _Coefficient(axis, row, column, max(math.hypot(row, column) / (_PATCH / 2), 0.02))
        for axis, (row, column) in chosen
    ]
    waves, axes = _cosines(), nn.functional.normalize(torch.tensor(_COLOUR_AXES))
    filters = [
        c.weight * axes[c.axis][:, None, None] * torch.outer(waves[c.row], waves[c.column])
        for c in coefficients
    ]
    return coefficients, torch.stack(filters)


def _cosines() -> torch.Tensor:
    """The orthonormal discrete cosine transform (DCT-II) of a line of 16 pixels, ``[16, 16]``."""
    place, frequency = torch.arange(_PATCH), torch.arange(_PATCH)[:, None]
    waves = torch.cos(math.pi * (place + 0.5) * frequency / _PATCH) * math.sqrt(2 / _PATCH)
    waves[0] /= math.sqrt(2)
    return waves


def _slow_waves(side: int) -> torch.Tensor:
    """Plane waves of up to one period over the image, ``[side * side, places]``, of unit power."""
    axis = torch.linspace(0, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    waves = []
    for _ in range(_PLACES):
        frequency_y, frequency_x = torch.rand(()), 1.2 * (torch.rand(()) - 0.5)
        cycles = frequency_y * y + frequency_x * x + torch.rand(())
        waves.append(math.sqrt(2) * torch.cos(2 * math.pi * cycles).flatten())
    return torch.stack(waves, dim=1)


def _draw_texture_energies(mlp: Any, coefficients: list[_Coefficient]) -> None:
    """Rectify Gabor filters at random places of the patch and average those of one kind."""
    sharpness, gain = 8.0, 12.0  # GELU bends near 0 only: sharp inputs are rectified
    for linear in (mlp.linear_fc1, mlp.linear_fc2):
        linear.weight.zero_()
        linear.bias.zero_()
    axes = torch.tensor([c.axis for c in coefficients])
    rows = torch.tensor([c.row for c in coefficients])
    columns = torch.tensor([c.column for c in coefficients])
    weights = torch.tensor([c.weight for c in coefficients])
    waves = _cosines()
    for kind, (axis, wavelength, angle) in enumerate(_kinds()):
        units = slice(kind * _FILTERS_PER_KIND, (kind + 1) * _FILTERS_PER_KIND)
        for unit in range(units.start, units.stop):
            spectrum = waves @ _gabor(wavelength, angle) @ waves.T
            seen = spectrum[rows, columns] / weights * (axes == axis)
            mlp.linear_fc1.weight[unit, :_BASIS] = sharpness * seen / seen.norm()
        mlp.linear_fc2.weight[_BASIS + kind, units] = gain / sharpness / _FILTERS_PER_KIND


def _kinds() -> list[tuple[int, float, float]]:
    """Colour axis, wavelength in pixels and angle in radians of each kind of texture."""
    brightness = [
        (0, wavelength, math.pi * number / _ORIENTATIONS)
        for wavelength in _WAVELENGTHS_PIXELS
        for number in range(_ORIENTATIONS)
    ]
    colour = [
        (axis, wavelength, math.pi * number / 4)
        for wavelength in (8.0, 14.0)
        for number in range(4)
        for axis in (1, 2)
    ]
    return brightness + colour


def _gabor(wavelength: float, angle: float) -> torch.Tensor:
    """A Gabor filter of random phase and place in the patch, ``[16, 16]``; lengths in pixels."""
    width = 0.7 * wavelength
    room = max(0.0, (_PATCH - 1) / 2 - 1.3 * width)
    centre_y, centre_x = room * (2 * torch.rand(2) - 1)
    phase = 2 * math.pi * torch.rand(())
    axis = torch.arange(_PATCH) - (_PATCH - 1) / 2
    y, x = torch.meshgrid(axis - centre_y, axis - centre_x, indexing="ij")
    across = x * math.cos(angle) + y * math.sin(angle)
    window = torch.exp(-(x**2 + y**2) / (2 * width**2))
    return torch.cos(2 * math.pi * across / wavelength + phase) * window


def _draw_merger(merger: Any, *, gain: float) -> None:
    """Average the merged patches, see random textures at random kinds of place, and project.

    Args:
        merger: the module to fill.
        gain: of the final projection.
    """
    units = merger.linear_fc1.out_features
    patches = merger.linear_fc1.in_features // _CHANNELS
    textures = torch.randn(units, _KINDS) / math.sqrt(_KINDS)
    weight = torch.zeros(units, _CHANNELS)
    # contrasts between kinds: how much texture there is in all says little
    weight[:, _BASIS:-_PLACES] = textures - textures.mean(dim=1, keepdim=True)
    weight[:, -_PLACES:] = 1.5 / math.sqrt(_PLACES) * torch.randn(units, _PLACES)
    merger.linear_fc1.weight.copy_(weight @ torch.eye(_CHANNELS).repeat(1, patches) / patches)
    merger.linear_fc1.bias.normal_()
    _gaussian(merger.linear_fc2, gain)


def _gaussian(linear: nn.Linear, gain: float = 1.0) -> None:
    """Draw weights that keep the variance of their input, times ``gain`` squared; no bias."""
    linear.weight.normal_(std=gain / math.sqrt(linear.in_features))
    if linear.bias is not None:
        linear.bias.zero_()


def _tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer of Qwen's kind, trained on a handful of sentences."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    return Qwen2Tokenizer(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        chat_template=_CHAT_TEMPLATE,
    )
