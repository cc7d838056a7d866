from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest
import torch

from vibematch.preprocess import Preprocessing
from vibematch_export.fused import FusedEncoder
from vibematch_export.onnx_graph import write_onnx
from vibematch_training.backbone import PROMPT, Backbone, load_backbone
from vibematch_training.features import FeatureRecipe, Pooling, pooled_features
from vibematch_training.head import ProjectionHead


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("tiny")


def _pixels(count: int, height: int, width: int) -> np.ndarray:
    shape = (count, 3, height, width)
    return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


def _head(feature_dim: int) -> ProjectionHead:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ProjectionHead(feature_dim, 32, 64).eval()


@pytest.mark.parametrize(("height", "width"), [(224, 224), (256, 192), (96, 416), (32, 32)])
@pytest.mark.parametrize("prompt", [PROMPT, "이 사람의 스타일은?"])
def test_the_fused_module_is_hugging_faces_forward(
    backbone: Backbone, height: int, width: int, prompt: str
) -> None:
    recipe = FeatureRecipe(backbone, Preprocessing(height, width), prompt)
    head, pixels = _head(backbone.feature_dim), _pixels(3, height, width)
    reference = pooled_features(pixels, recipe)
    head.standardise(reference)  # otherwise all vectors are nearly the same and hide a difference
    with torch.inference_mode():
        fused, features = FusedEncoder(recipe, head).eval()(torch.from_numpy(pixels))
        torch.testing.assert_close(fused, head(reference), atol=2e-5, rtol=0)
        torch.testing.assert_close(features, reference, atol=2e-5, rtol=0)


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_each_pooling_is_fused(backbone: Backbone, pooling: Pooling) -> None:
    recipe = FeatureRecipe(backbone, Preprocessing(64, 96), PROMPT, pooling)
    pixels = _pixels(3, 64, 96)
    with torch.inference_mode():
        _, features = FusedEncoder(recipe, _head(768)).eval()(torch.from_numpy(pixels))
    torch.testing.assert_close(features, pooled_features(pixels, recipe), atol=2e-5, rtol=0)


@pytest.mark.parametrize("pooling", [pytest.param("last", marks=pytest.mark.slow), "image"])
def test_each_pooling_survives_the_export(
    backbone: Backbone, pooling: Pooling, tmp_path: Path
) -> None:
    """``mean`` is what the exported run below has."""
    recipe = FeatureRecipe(backbone, Preprocessing(64, 96), PROMPT, pooling)
    head, pixels = _head(backbone.feature_dim), _pixels(8, 64, 96)
    reference = pooled_features(pixels, recipe)
    head.standardise(reference)
    with torch.inference_mode():
        expected = head(reference)
    graph = tmp_path / "model.onnx"
    write_onnx(FusedEncoder(recipe, head).eval(), recipe.preprocessing, graph)
    session = onnxruntime.InferenceSession(graph)
    served, features = session.run(["embedding", "features"], {"pixels": pixels})
    np.testing.assert_allclose(features, reference.numpy(), atol=2e-5)
    np.testing.assert_allclose(served, expected.numpy(), atol=5e-5)


def test_the_fused_module_computes_in_bfloat16_as_hugging_face_does(backbone: Backbone) -> None:
    half = load_backbone("tiny", torch.bfloat16, "cpu")
    recipe = FeatureRecipe(half, Preprocessing(64, 96), PROMPT)
    pixels = _pixels(3, 64, 96)
    exact = pooled_features(pixels, dataclasses.replace(recipe, backbone=backbone))
    reference = pooled_features(pixels, recipe)
    with torch.inference_mode():
        _, features = FusedEncoder(recipe, _head(half.feature_dim)).eval()(torch.from_numpy(pixels))
    assert features.dtype == torch.float32
    # rounding differs, so neither is the other; but the fused one is no farther from the truth
    assert (features - exact).norm() < 1.5 * (reference - exact).norm()


def test_deepstack_is_part_of_the_function(backbone: Backbone) -> None:
    """The comparison above would notice if the DeepStack features were dropped or moved."""
    recipe = FeatureRecipe(backbone, Preprocessing(64, 64), PROMPT)
    fused = FusedEncoder(recipe, _head(backbone.feature_dim)).eval()
    with torch.inference_mode():
        image, deepstack = fused.vision(torch.from_numpy(_pixels(1, 64, 64)))
        right = fused.decoder(image, deepstack)
        assert len(deepstack) == len(fused.vision.taps) > 1
        assert (fused.decoder(image, []) - right).abs().max() > 1e-2
        assert (fused.decoder(image, deepstack[::-1]) - right).abs().max() > 1e-2
