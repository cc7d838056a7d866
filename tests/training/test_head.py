from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from sklearn.preprocessing import StandardScaler

from vibematch.errors import InputError
from vibematch_training.head import HeadKind, ProjectionHead

KINDS = pytest.mark.parametrize("kind", get_args(HeadKind))


def _trained(kind: HeadKind) -> ProjectionHead:
    """A head whose every buffer has seen data."""
    torch.manual_seed(0)
    head = ProjectionHead(16, 8, 32, kind=kind)
    features = torch.randn(50, 16) * 3 + 7
    head.standardise(features)
    for batch in features.split(10):
        head(batch)  # in training mode: BatchNorm takes its statistics
    return head.eval()


def test_the_papers_head() -> None:
    head = ProjectionHead(2048, 256, 2048, 0.1)
    kinds = [type(layer).__name__ for layer in head.layers]
    assert kinds == ["Linear", "LayerNorm", "GELU", "Dropout", "Linear"]
    assert head.layers[0].weight.shape == (2048, 2048)
    assert head.layers[3].p == 0.1
    assert head.layers[4].weight.shape == (256, 2048)


def test_the_plans_head() -> None:
    head = ProjectionHead(2048, 128, 512, kind="plan")
    kinds = [type(layer).__name__ for layer in head.layers]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert head.layers[0].weight.shape == (512, 2048)
    assert head.layers[3].weight.shape == (128, 512)


@KINDS
def test_its_vectors_have_unit_length(kind: HeadKind) -> None:
    vectors = _trained(kind)(torch.randn(5, 16))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))


@KINDS
def test_a_photos_vector_does_not_depend_on_its_batch(kind: HeadKind) -> None:
    head, features = _trained(kind), torch.randn(6, 16)
    alone = torch.cat([head(row[None]) for row in features])
    torch.testing.assert_close(alone, head(features), atol=1e-6, rtol=0)


def test_it_standardises_as_scikit_learn_does() -> None:
    features = torch.randn(50, 16) * 3 + 7
    head = ProjectionHead(16, 8, 32)
    head.standardise(features)
    ours = (features - head.feature_mean) / head.feature_std
    np.testing.assert_allclose(ours, StandardScaler().fit_transform(features), atol=1e-5)


def test_a_channel_that_never_changes_does_no_harm() -> None:
    features = torch.randn(50, 16)
    features[:, 0] = 3.0
    head = ProjectionHead(16, 8, 32).eval()
    head.standardise(features)
    assert torch.isfinite(head(features)).all()


@KINDS
def test_saving_and_loading_changes_no_bit(kind: HeadKind, tmp_path: Path) -> None:
    head = _trained(kind)
    digest = head.save(tmp_path / "head.safetensors")
    loaded = ProjectionHead.load(tmp_path / "head.safetensors")
    features = torch.randn(4, 16)
    assert loaded.kind == kind
    assert torch.equal(loaded(features), head(features))
    assert loaded.save(tmp_path / "again.safetensors") == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.safetensors",
        "head.safetensors",
    ]


def test_a_file_that_is_no_head_is_named(tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(b"nothing of the kind")
    save_file({"weight": torch.ones(2)}, tmp_path / "other")
    for name in ("garbage", "other", "missing"):
        with pytest.raises(InputError, match=name):
            ProjectionHead.load(tmp_path / name)


@KINDS
def test_the_exported_head_is_the_trained_one(kind: HeadKind, tmp_path: Path) -> None:
    """BatchNorm is exported with the statistics of training, for any batch size."""
    head, path = _trained(kind), tmp_path / "head.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        head,
        (torch.randn(2, 16),),
        path,
        dynamo=True,
        opset_version=18,
        dynamic_shapes={"features": {0: batch}},
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 7):
        features = torch.randn(count, 16) * 3 + 7
        (served,) = session.run(None, {session.get_inputs()[0].name: features.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(served, head(features).numpy(), atol=1e-6)
