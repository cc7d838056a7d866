from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vibematch.errors import InputError, ManifestError
from vibematch.preprocess import Preprocessing
from vibematch_training.features import (
    FeatureRecipe,
    extract_features,
    load_pixels,
    pooled_features,
)
from vibematch_training.graph_extractor import GraphExtractor
from vibematch_training.run import TrainedRun


@pytest.fixture(scope="module")
def recipe(trained_run: Path) -> FeatureRecipe:
    """Hugging Face's forward, as the run was trained with."""
    run = TrainedRun.load(trained_run)
    return run.recipe(run.load_backbone(torch.float32, "cpu"))


@pytest.fixture(scope="module")
def photos(sample_photos: Path) -> list[Path]:
    return sorted(sample_photos.rglob("*.jpg"))[:20]


def test_the_graph_gives_hugging_faces_features_and_its_own_embedding(
    recipe: FeatureRecipe, photos: list[Path], exported_model: Path, trained_run: Path
) -> None:
    pixels = np.stack([load_pixels(path, recipe.preprocessing) for path in photos])
    features = GraphExtractor(exported_model)(pixels)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, pooled_features(pixels, recipe), atol=1e-4, rtol=0)
    session = onnxruntime.InferenceSession(exported_model / "model.onnx")
    (embedding,) = session.run(["embedding"], {"pixels": pixels})
    with torch.inference_mode():
        projected = TrainedRun.load(trained_run).head(features).numpy()
    np.testing.assert_allclose(projected, embedding, atol=2e-5)


def test_extraction_through_the_graph_has_a_cache_of_its_own(
    recipe: FeatureRecipe, photos: list[Path], exported_model: Path, tmp_path: Path
) -> None:
    served = dataclasses.replace(recipe, graph=GraphExtractor(exported_model))
    assert served.key != recipe.key
    by_model = extract_features(photos, recipe, tmp_path, progress=False)
    by_graph = extract_features(photos, served, tmp_path, progress=False)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2
    assert by_graph.usable == by_model.usable
    torch.testing.assert_close(by_graph.vectors, by_model.vectors, atol=1e-4, rtol=0)


def test_another_graph_is_another_recipe(
    recipe: FeatureRecipe, exported_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported_model, tmp_path / "other")
    graph = onnx.load(tmp_path / "other" / "model.onnx")
    graph.producer_version += " changed"
    onnx.save(graph, tmp_path / "other" / "model.onnx")
    keys = {
        dataclasses.replace(recipe, graph=GraphExtractor(folder)).key
        for folder in (exported_model, tmp_path / "other")
    }
    assert len(keys) == 2


def test_a_graph_of_another_recipe_is_refused_and_every_difference_named(
    recipe: FeatureRecipe, exported_model: Path
) -> None:
    graph = GraphExtractor(exported_model)
    other = dataclasses.replace(
        recipe,
        backbone=dataclasses.replace(recipe.backbone, sha256="0" * 64),
        preprocessing=Preprocessing(64, 96, "contain"),
        prompt="Describe the room.",
        pooling="last",
    )
    with pytest.raises(InputError) as refused:
        dataclasses.replace(other, graph=graph)
    for named in ("backbone", "canvas '256x192', asked for '64x96'", "fit", "prompt", "pooling"):
        assert named in str(refused.value)
    with pytest.raises(InputError) as refused:
        dataclasses.replace(recipe, pooling="image", graph=graph)
    assert "pooling 'mean', asked for 'image'" in str(refused.value)
    assert "prompt" not in str(refused.value)


def test_other_caps_are_no_other_recipe(recipe: FeatureRecipe, exported_model: Path) -> None:
    tighter = dataclasses.replace(recipe.preprocessing, max_bytes=10_000)
    dataclasses.replace(recipe, preprocessing=tighter, graph=GraphExtractor(exported_model))


def test_folders_that_are_no_such_model_are_refused(exported_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not an exported model \(no model.onnx\)"):
        GraphExtractor(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ManifestError, match="cannot be read"):
        GraphExtractor(tmp_path)
    shutil.copy(exported_model / "manifest.json", tmp_path)
    with pytest.raises(InputError, match="cannot be loaded"):
        GraphExtractor(tmp_path)


def test_a_graph_without_features_asks_for_a_new_export(
    exported_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported_model, tmp_path / "old")
    graph = onnx.load(tmp_path / "old" / "model.onnx")
    del graph.graph.output[1]
    onnx.save(graph, tmp_path / "old" / "model.onnx")
    with pytest.raises(InputError, match="no output 'features'; export the model again"):
        GraphExtractor(tmp_path / "old")
