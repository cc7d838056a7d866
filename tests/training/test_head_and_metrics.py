from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.preprocessing import StandardScaler

from vibematch_training.head import ProjectionHead
from vibematch_training.metrics import retrieval_metrics


def test_the_head_is_the_papers() -> None:
    head = ProjectionHead(2048, 256)
    kinds = [type(layer).__name__ for layer in head.layers]
    assert kinds == ["Linear", "LayerNorm", "GELU", "Dropout", "Linear"]
    assert head.layers[0].weight.shape == (2048, 2048)
    assert head.layers[3].p == 0.1
    assert head.layers[4].weight.shape == (256, 2048)


def test_its_vectors_have_unit_length() -> None:
    vectors = ProjectionHead(16, 8, 32).eval()(torch.randn(5, 16))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))


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


def test_saving_and_loading_changes_no_bit(tmp_path: Path) -> None:
    head = ProjectionHead(16, 8, 32).eval()
    head.standardise(torch.randn(50, 16))
    digest = head.save(tmp_path / "head.safetensors")
    loaded = ProjectionHead.load(tmp_path / "head.safetensors")
    features = torch.randn(4, 16)
    assert torch.equal(loaded(features), head(features))
    assert loaded.save(tmp_path / "again.safetensors") == digest


photo_sets = st.integers(2, 25).flatmap(
    lambda count: st.tuples(
        st.lists(st.sampled_from("abc"), min_size=count, max_size=count),
        st.lists(st.integers(0, 6), min_size=count, max_size=count),
        st.integers(0, 2**32 - 1),
    )
)


@given(photo_sets)
def test_metrics_equal_a_plain_loop(photos: tuple[list[str], list[int], int]) -> None:
    labels, owners, seed = photos
    users = [str(owner) for owner in owners]
    vectors = np.random.default_rng(seed).normal(size=(len(labels), 4)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    firsts, fives, averages = [], [], []
    for query in range(len(labels)):
        others = [other for other in range(len(labels)) if users[other] != users[query]]
        others.sort(key=lambda other: -float(unit[query] @ unit[other]))
        hits = [labels[other] == labels[query] for other in others]
        relevant = sum(hits)
        if not relevant:
            continue
        firsts.append(hits[0])
        fives.append(any(hits[:5]))
        precisions = [sum(hits[: r + 1]) / (r + 1) for r in range(relevant) if hits[r]]
        averages.append(sum(precisions) / relevant)
    ours = retrieval_metrics(vectors, labels, users)
    if not firsts:
        assert all(np.isnan(value) for value in ours.values())
        return
    assert ours["recall_at_1"] == pytest.approx(np.mean(firsts))
    assert ours["recall_at_5"] == pytest.approx(np.mean(fives))
    assert ours["map_at_r"] == pytest.approx(np.mean(averages))


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_metrics_equal_pytorch_metric_learnings_where_every_photo_has_its_own_user(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(40, 8)).astype(np.float32)
    codes = np.arange(40) % 4
    reference = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        knn_func=CustomKNN(CosineSimilarity()),
    ).get_accuracy(torch.from_numpy(vectors), torch.from_numpy(codes))
    ours = retrieval_metrics(vectors, [str(c) for c in codes], [str(i) for i in range(40)])
    assert ours["recall_at_1"] == pytest.approx(reference["precision_at_1"])
    assert ours["map_at_r"] == pytest.approx(reference["mean_average_precision_at_r"])


def test_a_users_own_photos_do_not_count() -> None:
    vectors = np.array([[1, 0], [1, 0.01], [0, 1]], np.float32)
    figures = retrieval_metrics(vectors, ["x", "x", "x"], ["ann", "ann", "bob"])
    assert figures["recall_at_1"] == 1.0  # each finds the other person, never itself
    alone = retrieval_metrics(vectors[:2], ["x", "x"], ["ann", "ann"])
    assert np.isnan(alone["recall_at_1"])
