"""Qwen3-VL-2B's exact architecture with random weights: the same work as the real one, no meaning.

There is no hub access where these benchmarks were written, and speed does not depend on weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vibematch_training.backbone import Backbone, load_backbone

NAME = "2b-random"


def random_2b(dtype: torch.dtype) -> Backbone:
    """The 2B backbone in ``dtype`` on the CPU, with the tiny backbone's tokenizer; seed 0."""
    tiny = load_backbone("tiny", dtype, "cpu")
    text: dict[str, Any] = {"vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144}
    text |= {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
    text["head_dim"] = 128
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e6}
    text["rope_parameters"] |= {"mrope_section": [24, 20, 20], "mrope_interleaved": True}
    vision: dict[str, Any] = {"hidden_size": 1024, "depth": 24, "num_heads": 16}
    vision |= {"intermediate_size": 4096, "out_hidden_size": 2048, "num_position_embeddings": 2304}
    vision["deepstack_visual_indexes"] = [5, 11, 17]
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    special = {name: getattr(tiny.model.config, name) for name in tokens}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **special)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # not .to(dtype), which would round the rotary frequencies too
        torch.set_default_dtype(dtype)
        model = Qwen3VLModel(config).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
    return dataclasses.replace(tiny, name=NAME, model=model)
