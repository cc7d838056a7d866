"""A tiny Qwen3-VL: the real classes and checkpoint layout, 14 million untrained parameters.

It stands in for Qwen3-VL-2B where no checkpoint can be downloaded: the demo and the tests. Nothing
in it is learnt. Plain random weights make an almost linear network, whose mean over an image is
little more than its mean colour; so the random draws here follow what is known of early vision:

- the patch projection holds random Gabor filters, as primary visual cortex and the first layer of
  trained networks do (Hubel & Wiesel 1962; Olshausen & Field 1996);
- position embeddings are slow waves, so that neighbouring patches know that they are neighbours;
- the first block rectifies each filter, so that texture survives averaging where signed responses
  cancel out (energy models: Adelson & Bergen 1985; scattering: Bruna & Mallat 2013);
- mergers add random conjunctions "this texture at this place"; all else is Gaussian.

The weights come from a fixed seed, so every machine with the same torch builds the same checkpoint.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vibematch_training.cache import cache_dir

SEED: Final = 0
REVISION: Final = 2
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
_FILTERS: Final = 224
_PLACES: Final = 32
"""Channels of the vision tower: so many hold filter responses, so many tell the place."""


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
            "num_hidden_layers": 3,
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
            "hidden_size": _FILTERS + _PLACES,
            "depth": 3,
            "num_heads": 4,
            "intermediate_size": 768,
            "out_hidden_size": 768,
            "patch_size": _PATCH,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def _draw_vision(tower: Any) -> None:  # a Qwen3VLVisionModel; its parts carry no types
    frames = tower.patch_embed.proj.weight.shape[2]
    filters = torch.zeros(_FILTERS + _PLACES, 3, _PATCH, _PATCH)
    for number in range(_FILTERS):
        filters[number] = 3 * _gabor(brightness=number < 4)
    # a photo is shown as equal frames: shared among them, the filter keeps its strength
    tower.patch_embed.proj.weight.copy_(filters[:, :, None].expand(-1, -1, frames, -1, -1) / frames)
    tower.patch_embed.proj.bias.zero_()
    tower.pos_embed.weight.zero_()
    tower.pos_embed.weight[:, _FILTERS:] = 2 * _slow_waves(tower.num_grid_per_side)

    for number, block in enumerate(tower.blocks):
        _gaussian(block.attn.qkv)
        _gaussian(block.attn.proj, gain=0.15)
        _draw_mlp(block.mlp, rectify=number == 0)
    _draw_merger(tower.merger, passing=_FILTERS + _PLACES, gain=1.0)
    for merger in tower.deepstack_merger_list:
        _draw_merger(merger, passing=0, gain=0.7)


def _draw_text(decoder: Any) -> None:  # a Qwen3VLTextModel
    decoder.embed_tokens.weight.normal_(std=0.5)
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.o_proj, mlp.up_proj):
            _gaussian(linear)
        _gaussian(attention.v_proj, gain=0.3)
        _gaussian(mlp.gate_proj, gain=2.0)
        _gaussian(mlp.down_proj, gain=0.7)


def _gabor(*, brightness: bool) -> torch.Tensor:
    """One random colour Gabor filter of unit norm, ``[3, 16, 16]``, without a mean.

    A few filters see brightness and colour instead, weakly: light must not drown texture.
    """
    colour = nn.functional.normalize(torch.randn(3), dim=0)
    if brightness:
        return 0.1 / _PATCH * colour[:, None, None].expand(3, _PATCH, _PATCH)
    if torch.rand(()) > 0.2:
        colour = torch.full((3,), 3**-0.5)
    axis = torch.arange(_PATCH) - (_PATCH - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle, phase = math.pi * torch.rand(()), 2 * math.pi * torch.rand(())
    wavelength = 2.5 * 4 ** torch.rand(())  # 2.5 to 10 pixels
    width = wavelength * (0.35 + 0.3 * torch.rand(()))
    centre_y, centre_x = 10 * (torch.rand(2) - 0.5)
    y, x = y - centre_y, x - centre_x
    across = x * torch.cos(angle) + y * torch.sin(angle)
    wave = torch.cos(2 * math.pi * across / wavelength + phase)
    window = torch.exp(-(x**2 + y**2) / (2 * width**2))
    grey = wave * window
    grey = grey - grey.mean()
    filtered: torch.Tensor = colour[:, None, None] * grey / grey.norm()
    return filtered


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


def _draw_mlp(mlp: Any, *, rectify: bool) -> None:
    """Fill an MLP with conjunctions, after a pair of units that rectifies each filter, if asked."""
    sharpness, strength = 3.0, 3.0
    paired = 2 * _FILTERS if rectify else 0
    for linear in (mlp.linear_fc1, mlp.linear_fc2):
        linear.weight.zero_()
        linear.bias.zero_()
    if rectify:
        each = torch.eye(_FILTERS)
        mlp.linear_fc1.weight[:paired, :_FILTERS] = sharpness * torch.cat([each, -each])
        mlp.linear_fc2.weight[:_FILTERS, :paired] = (
            strength / sharpness * torch.cat([each, each], dim=1)
        )
    units = mlp.linear_fc1.out_features - paired
    mlp.linear_fc1.weight[paired:], mlp.linear_fc1.bias[paired:] = _conjunctions(units)
    random = torch.randn(_FILTERS, units) * 0.3 / math.sqrt(units)
    mlp.linear_fc2.weight[:_FILTERS, paired:] = random


def _draw_merger(merger: Any, *, passing: int, gain: float) -> None:
    """Average the merged patches, pass some channels on and add conjunctions; then project.

    Args:
        merger: the module to fill.
        passing: so many channels are handed on as they are.
        gain: of the final projection.
    """
    channels = _FILTERS + _PLACES
    patches = merger.linear_fc1.in_features // channels
    average = torch.eye(channels).repeat(1, patches) / patches
    weight, bias = _conjunctions(merger.linear_fc1.out_features - passing)
    # the offset keeps what is passed on in the straight part of GELU
    weight = torch.cat([torch.eye(channels)[:passing], weight])
    merger.linear_fc1.weight.copy_(2 * weight @ average)
    merger.linear_fc1.bias.copy_(torch.cat([torch.ones(passing), bias]))
    _gaussian(merger.linear_fc2, gain)


def _conjunctions(units: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and biases of units that see one random filter at one random kind of place."""
    weight = torch.zeros(units, _FILTERS + _PLACES)
    rows = torch.arange(units)
    weight[rows, torch.randint(_FILTERS, (units,))] = 2 * torch.randn(units)
    weight[rows, _FILTERS + torch.randint(_PLACES, (units,))] = 2 * torch.randn(units)
    return weight, -2 * torch.rand(units)


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
