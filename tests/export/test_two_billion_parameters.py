"""The exact Qwen3-VL-2B architecture, with random weights: 15 GB of memory, about 5 minutes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vibematch.preprocess import Preprocessing
from vibematch_export.fused import FusedEncoder
from vibematch_export.onnx_graph import write_onnx
from vibematch_training.backbone import PROMPT, load_backbone
from vibematch_training.features import FeatureRecipe, pooled_features
from vibematch_training.head import ProjectionHead


def _two_billion(special: dict[str, int]) -> Qwen3VLModel:
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "hidden_size": 1024,
            "depth": 24,
            "num_heads": 16,
            "intermediate_size": 4096,
            "out_hidden_size": 2048,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        image_token_id=special["<|image_pad|>"],
        video_token_id=special["<|video_pad|>"],
        vision_start_token_id=special["<|vision_start|>"],
        vision_end_token_id=special["<|vision_end|>"],
    )
    torch.manual_seed(0)
    return Qwen3VLModel(config).eval().requires_grad_(False)


@pytest.mark.slow
def test_the_fused_graph_of_the_2b_architecture(tmp_path: Path) -> None:
    tiny = load_backbone("tiny")  # for its tokenizer and image processor
    backbone = dataclasses.replace(tiny, model=_two_billion(tiny.tokenizer.get_vocab()))
    assert sum(weights.numel() for weights in backbone.model.parameters()) == 2_127_532_032
    recipe = FeatureRecipe(backbone, Preprocessing(448, 448), PROMPT)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 448, 448), dtype=np.uint8)
    features = pooled_features(pixels, recipe)
    head = ProjectionHead(backbone.feature_dim, 256).eval()
    # centred close to this photo, so that the head magnifies any difference
    head.feature_mean.copy_(0.9 * features[0])
    head.feature_std.fill_(0.1 * float(features.std()))
    fused = FusedEncoder(recipe, head).eval()
    with torch.inference_mode():
        expected = head(features).numpy()
        embedding, _ = fused(torch.from_numpy(pixels))
        np.testing.assert_allclose(embedding.numpy(), expected, atol=2e-5)
    graph = tmp_path / "model.onnx"
    write_onnx(fused, recipe.preprocessing, graph)
    assert graph.stat().st_size < 10e6 < 7e9 < (tmp_path / "model.onnx.data").stat().st_size
    del fused, backbone, recipe
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (served,) = session.run(["embedding"], {"pixels": pixels})
    np.testing.assert_allclose(served, expected, atol=2e-5)
