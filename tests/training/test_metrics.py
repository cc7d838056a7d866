from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from vibematch_training.evaluation import metrics
from vibematch_training.evaluation.metrics import (
    class_distances,
    mean_distances,
    retrieval_metrics,
    retrieve,
    sampled_metrics,
)

Vectors = npt.NDArray[np.float32]


@st.composite
def photo_sets(draw: st.DrawFn) -> tuple[Vectors, list[str], list[str]]:
    """Vectors with labels and users; half of the sets are full of exact ties."""
    count = draw(st.integers(2, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        vectors = rng.normal(size=(count, 4))
    else:  # unit vectors of such vectors, and their products, are exact in floating point
        signs = rng.choice([-1.0, 1.0], size=(count, 4))
        axes = np.eye(4)[rng.integers(4, size=count)] * signs
        vectors = np.where(rng.random((count, 1)) < 0.5, signs, axes) * 2
    users = [str(user) for user in rng.integers(7, size=count)]
    labels = users if draw(st.integers(0, 3)) == 0 else list(rng.choice(list("abc"), size=count))
    return vectors.astype(np.float32), labels, users


def _comparable(labels: list[str], users: list[str], one: int, other: int) -> bool:
    return one != other if labels == users else users[one] != users[other]


@given(photo_sets())
def test_retrieval_equals_a_plain_loop(photos: tuple[Vectors, list[str], list[str]]) -> None:
    vectors, labels, users = photos
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    recalls: dict[int, list[bool]] = {1: [], 5: [], 10: []}
    averages = []
    for query in range(len(labels)):
        others = [i for i in range(len(labels)) if _comparable(labels, users, query, i)]
        others.sort(key=lambda i: (-float(unit[query] @ unit[i]), labels[i] == labels[query]))
        hits = [labels[i] == labels[query] for i in others]
        relevant = sum(hits)
        if not relevant:
            continue
        for k, recall in recalls.items():
            recall.append(any(hits[:k]))
        precisions = [sum(hits[: r + 1]) / (r + 1) for r in range(relevant) if hits[r]]
        averages.append(sum(precisions) / relevant)
    ours = retrieval_metrics(vectors, labels, users)
    if not averages:
        assert np.isnan([ours["recall_at_1"], ours["recall_at_5"], ours["map_at_r"]]).all()
        return
    for k, recall in recalls.items():
        assert ours[f"recall_at_{k}"] == pytest.approx(np.mean(recall))
    assert ours["map_at_r"] == pytest.approx(np.mean(averages))


@given(photo_sets())
def test_distances_equal_a_plain_loop(photos: tuple[Vectors, list[str], list[str]]) -> None:
    vectors, labels, users = photos
    distances = pairwise_distances(vectors.astype(np.float64), metric="cosine")
    within, between = [], []
    for one, other in itertools.combinations(range(len(labels)), 2):
        if _comparable(labels, users, one, other):
            (within if labels[one] == labels[other] else between).append(distances[one, other])
    ours = retrieval_metrics(vectors, labels, users)
    for name, expected in (("intra", within), ("inter", between)):
        if expected:
            assert ours[f"{name}_class_distance"] == pytest.approx(np.mean(expected), abs=1e-6)
        else:
            assert np.isnan(ours[f"{name}_class_distance"])
    if within and between:
        separation = np.mean(between) - np.mean(within)
        assert ours["separation"] == pytest.approx(separation, abs=1e-6)


@given(photo_sets(), st.integers(0, 2**32 - 1))
def test_a_sample_of_users_weighs_pairs_as_often_as_its_users_were_drawn(
    photos: tuple[Vectors, list[str], list[str]], seed: int
) -> None:
    vectors, labels, users = photos
    names = sorted(set(users))
    drawn = np.random.default_rng(seed).multinomial(len(names), np.ones(len(names)) / len(names))
    times = dict(zip(names, drawn, strict=True))
    distances = pairwise_distances(vectors.astype(np.float64), metric="cosine")
    sums: dict[bool, list[float]] = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for one, other in itertools.combinations(range(len(labels)), 2):
        if _comparable(labels, users, one, other):
            same_user = users[one] == users[other]
            weight = times[users[one]] * (1 if same_user else times[users[other]])
            total = sums[labels[one] == labels[other]]
            total[0] += weight * distances[one, other]
            total[1] += weight
    ours = mean_distances(vectors, labels, users, drawn[None, :])
    for value, (total, weight) in zip(ours, (sums[True], sums[False]), strict=True):
        assert value[0] == pytest.approx(
            total / weight if weight else np.nan, abs=1e-6, nan_ok=True
        )


def test_a_sample_counts_each_query_as_often_as_its_user_was_drawn() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 3)).astype(np.float32)
    labels, users = list(rng.choice(list("ab"), 40)), [str(i) for i in rng.integers(12, size=40)]
    names = sorted(set(users))
    draws = rng.multinomial(len(names), np.ones(len(names)) / len(names), size=3)
    found = retrieve(vectors, labels, users)
    ours = sampled_metrics(found, vectors, labels, users, draws)
    for sample, drawn in enumerate(draws):
        times = dict(zip(names, drawn, strict=True))
        repeated = np.repeat(np.arange(40), [times[user] for user in users])
        assert ours["recall_at_1"][sample] == pytest.approx(found.recall[1][repeated].mean())
        expected = found.average_precision[repeated].mean()
        assert ours["map_at_r"][sample] == pytest.approx(expected)


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
    labels = [f"class {code}" for code in codes]
    ours = retrieval_metrics(vectors, labels, [str(i) for i in range(40)])
    assert ours["recall_at_1"] == pytest.approx(reference["precision_at_1"])
    assert ours["map_at_r"] == pytest.approx(reference["mean_average_precision_at_r"])
    # the class is the user: other photos of the user are what is looked for
    own = retrieval_metrics(vectors, labels, labels)
    assert own["recall_at_1"] == pytest.approx(reference["precision_at_1"])
    assert own["map_at_r"] == pytest.approx(reference["mean_average_precision_at_r"])


def test_neighbours_equal_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(60, 6)).astype(np.float32)
    found = retrieve(vectors, ["x"] * 60, [str(i) for i in range(60)])
    reference = NearestNeighbors(n_neighbors=11, metric="cosine").fit(vectors)
    distances, positions = reference.kneighbors(vectors)
    np.testing.assert_array_equal(found.neighbours, positions[:, 1:])
    np.testing.assert_allclose(1 - found.similarities, distances[:, 1:], atol=1e-6)


def test_many_photos_are_compared_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(50, 6)).astype(np.float32)
    labels, users = list(rng.choice(list("abc"), 50)), [str(i // 2) for i in range(50)]
    whole = retrieve(vectors, labels, users)
    monkeypatch.setattr(metrics, "_BLOCK_PHOTOS", 7)
    parts = retrieve(vectors, labels, users)
    np.testing.assert_array_equal(whole.neighbours, parts.neighbours)
    np.testing.assert_array_equal(whole.average_precision, parts.average_precision)


def test_distances_between_classes_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    labels, users = list(rng.choice(list("abc"), 30)), [str(i) for i in rng.integers(9, size=30)]
    distances = pairwise_distances(vectors, metric="cosine")
    ours = class_distances(vectors, labels, users, ["a", "b", "c", "nobody"])
    for row, column in itertools.product(range(3), repeat=2):
        pairs = [
            distances[i, j]
            for i, j in itertools.product(range(30), repeat=2)
            if (labels[i], labels[j]) == ("abc"[row], "abc"[column]) and users[i] != users[j]
        ]
        assert ours[row, column] == pytest.approx(np.mean(pairs), abs=1e-6)
    assert np.isnan(ours[3]).all()


def test_a_users_own_photos_do_not_count() -> None:
    vectors = np.array([[1, 0], [1, 0.01], [0, 1]], np.float32)
    figures = retrieval_metrics(vectors, ["x", "x", "x"], ["ann", "ann", "bob"])
    assert figures["recall_at_1"] == 1.0  # each finds the other person, never itself
    assert figures["intra_class_distance"] == pytest.approx(1.0, abs=0.01)
    alone = retrieval_metrics(vectors[:2], ["x", "x"], ["ann", "ann"])
    assert np.isnan(alone["recall_at_1"])


def test_a_collapsed_embedding_finds_nothing() -> None:
    figures = retrieval_metrics(
        np.ones((20, 4), np.float32), ["a"] * 10 + ["b"] * 10, [str(i) for i in range(20)]
    )
    assert figures["recall_at_5"] == 0
    assert figures["map_at_r"] == 0
    assert figures["separation"] == pytest.approx(0, abs=1e-6)


def test_a_zero_vector_is_alike_to_nothing() -> None:
    vectors = np.array([[0, 0], [1, 0], [1, 0]], np.float32)
    figures = retrieval_metrics(vectors, ["a", "a", "b"], ["1", "2", "3"])
    assert figures["intra_class_distance"] == pytest.approx(1.0)
    assert np.isfinite(list(figures.values())).all()
