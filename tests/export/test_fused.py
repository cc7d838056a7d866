from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vibematch.errors import InputError
from vibematch.manifest import Manifest
from vibematch.preprocess import Preprocessing
from vibematch_export import export as export_module
from vibematch_export.export import export
from vibematch_export.fused import FusedEncoder
from vibematch_export.onnx_graph import write_onnx
from vibematch_export.parity import ParityError
from vibematch_training.backbone import PROMPT, Backbone, load_backbone
from vibematch_training.features import FeatureRecipe, Pooling, pooled_features
from vibematch_training.head import ProjectionHead
from vibematch_training.run import TrainedRun


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


def test_the_graph_takes_any_batch_and_a_batch_equals_its_singles(exported_model: Path) -> None:
    session = onnxruntime.InferenceSession(exported_model / "model.onnx")
    (entry,), (output, features) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.type, entry.shape) == (
        "pixels",
        "tensor(uint8)",
        ["batch", 3, 256, 192],
    )
    assert (output.name, output.type, output.shape[1]) == ("embedding", "tensor(float)", 256)
    assert (features.name, features.type, features.shape[1]) == ("features", "tensor(float)", 768)
    pixels = _pixels(8, 256, 192)
    together = session.run(None, {"pixels": pixels})[0]
    alone = np.concatenate([session.run(None, {"pixels": pixels[i : i + 1]})[0] for i in range(8)])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_no_embedding_table_and_no_trace_of_this_machine(exported_model: Path) -> None:
    model = onnx.load(exported_model / "model.onnx")
    config = json.loads((exported_model / "config.json").read_text())
    vocabulary = config["text_config"]["vocab_size"]
    assert all(vocabulary not in tensor.dims for tensor in model.graph.initializer)
    assert not any(node.metadata_props for node in model.graph.node)
    assert b"site-packages" not in (exported_model / "model.onnx").read_bytes()


def test_the_exported_folder_is_complete(exported_model: Path, trained_run: Path) -> None:
    manifest = Manifest.load(exported_model)
    assert manifest.fingerprint == Manifest.load(trained_run).fingerprint
    assert manifest.parity["photos"] == 60
    assert manifest.parity["min_cosine"] >= 0.99999
    assert {path.name for path in exported_model.iterdir()} == {
        "model.onnx",
        "manifest.json",
        "config.json",
        "preprocessor_config.json",
    }


def test_a_graph_that_strays_is_not_published(
    trained_run: Path, exported_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = (exported_model / "model.onnx").read_bytes()

    class Astray(FusedEncoder):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            image, deepstack = self.vision(pixels)
            strayed = self.decoder(image, deepstack[:-1]).mean(dim=1)
            return self.head(strayed), strayed

    monkeypatch.setattr(export_module, "FusedEncoder", Astray)
    with pytest.raises(ParityError, match="strays from the trained model: least cosine"):
        export(trained_run)
    assert (exported_model / "model.onnx").read_bytes() == published
    assert list(exported_model.parent.iterdir()) == [exported_model]


def test_a_graph_that_is_not_finite_is_not_published(
    trained_run: Path, exported_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(FusedEncoder):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            embedding, features = super().forward(pixels)
            return embedding * torch.tensor(float("nan")), features

    monkeypatch.setattr(export_module, "FusedEncoder", Broken)
    with pytest.raises(ParityError, match="not finite"):
        export(trained_run)


def test_another_canvas_is_another_model(trained_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for path in trained_run.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    model = export(copy, size=(192, 160))
    manifest = Manifest.load(model)
    assert (manifest.preprocessing.height, manifest.preprocessing.width) == (192, 160)
    assert manifest.fingerprint != Manifest.load(trained_run).fingerprint
    session = onnxruntime.InferenceSession(model / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, 192, 160]


def test_photos_that_moved_away_are_asked_for(trained_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for path in trained_run.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    config = (copy / "config.yaml").read_text()
    moved = config.replace(TrainedRun.load(copy).config.photos, str(tmp_path / "gone"))
    (copy / "config.yaml").write_text(moved)
    with pytest.raises(InputError, match="--photos"):
        export(copy)
