"""A tiny Qwen3-VL: the real classes and checkpoint layout, a few million untrained parameters.

It stands in for Qwen3-VL-2B where no checkpoint can be downloaded: the demo and the tests. The
weights come from a fixed seed, so every machine with the same torch builds the same checkpoint.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vibematch_training.cache import cache_dir

SEED: Final = 20_25
REVISION: Final = 1
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
    vocabulary = tokenizer.get_vocab()
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
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
            "hidden_size": 192,
            "depth": 4,
            "num_heads": 4,
            "intermediate_size": 512,
            "out_hidden_size": 256,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Qwen3VLForConditionalGeneration(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(directory)


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
