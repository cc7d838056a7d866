"""The fused module against Hugging Face's forward, for the geometries of Qwen3-VL's other sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.checkpoints import plant_massive_activations, quantise_to_fp8, write_checkpoint

from vibematch.preprocess import Preprocessing
from vibematch_export.fused import FusedEncoder
from vibematch_training.backbone import PROMPT, Backbone, load_backbone
from vibematch_training.features import FeatureRecipe, Pooling, pooled_features
from vibematch_training.head import ProjectionHead
from vibematch_training.tiny import tiny_backbone

ROPE = {
    "rope_type": "default",
    "rope_theta": 5e6,
    "mrope_section": [6, 5, 5],
    "mrope_interleaved": True,
}


def _like_4b(folder: Path) -> None:
    """Heads wider than the hidden state together (32 x 128 > 2560), tied, vision unlike text."""
    write_checkpoint(
        folder,
        {
            "hidden_size": 80,
            "intermediate_size": 304,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "rope_parameters": ROPE,
        },
        {
            "hidden_size": 64,
            "depth": 4,
            "num_heads": 4,
            "intermediate_size": 256,
            "out_hidden_size": 80,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        tied=True,
    )


def _like_8b(folder: Path) -> None:
    """Vision heads of 72, an MLP no multiple of 8, three taps, a head of its own, five files."""
    write_checkpoint(
        folder,
        {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "rope_parameters": ROPE,
        },
        {
            "hidden_size": 144,
            "depth": 5,
            "num_heads": 2,
            "intermediate_size": 538,
            "out_hidden_size": 128,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [1, 2, 3],
        },
        max_shard_size="1MB",
    )
    assert (folder / "model.safetensors.index.json").is_file()


@pytest.fixture(scope="module", params=["4b", "8b", "8b-fp8"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp(request.param)
    (_like_4b if request.param == "4b" else _like_8b)(folder)
    if request.param == "8b-fp8":
        original, folder = folder, tmp_path_factory.mktemp("fp8")
        quantise_to_fp8(original, folder)
    return load_backbone(str(folder), torch.float32, "cpu")


def _photos(height: int, width: int) -> np.ndarray:
    shape = (2, 3, height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _is_the_same(recipe: FeatureRecipe, *, share: float) -> None:
    """Features differ by less than this share of what two photos differ by."""
    pixels = _photos(recipe.preprocessing.height, recipe.preprocessing.width)
    head = ProjectionHead(recipe.backbone.feature_dim, 32, 64).eval()
    reference = pooled_features(pixels, recipe)
    with torch.inference_mode():
        _, features = FusedEncoder(recipe, head).eval()(torch.from_numpy(pixels))
    between_photos = (reference[0] - reference[1]).norm()
    assert (features - reference).norm() < share * between_photos


@pytest.mark.parametrize(
    ("height", "width", "pooling"), [(512, 384, "mean"), (448, 448, "last"), (96, 160, "image")]
)
def test_the_fused_module_is_hugging_faces_forward_for_other_sizes(
    backbone: Backbone, height: int, width: int, pooling: Pooling
) -> None:
    recipe = FeatureRecipe(backbone, Preprocessing(height, width), PROMPT, pooling)
    _is_the_same(recipe, share=1e-3)


def test_the_fused_module_follows_massive_activations(tmp_path: Path) -> None:
    for severity in ("some", "everywhere"):
        plant_massive_activations(tiny_backbone(), tmp_path / severity, severity)
        backbone = load_backbone(str(tmp_path / severity), torch.float32, "cpu")
        recipe = FeatureRecipe(backbone, Preprocessing(96, 160), PROMPT)
        _is_the_same(recipe, share=1e-3)
