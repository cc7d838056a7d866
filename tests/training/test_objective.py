"""Each objective against plain loops written from its definition."""

from __future__ import annotations

from math import exp, log

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional as F

from vibematch_training.objective import Objective

MARGIN = 0.3
TEMPERATURE = 0.1
Triplet = tuple[int, int, int]


@pytest.fixture(params=range(4))
def batch(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Four classes of different sizes; some seeds have classes that are nearly apart."""
    generator = torch.Generator().manual_seed(request.param)
    codes = torch.tensor([0] * 2 + [1] * 3 + [2] * 4 + [3] * 5)
    centres = torch.randn(4, 6, generator=generator) * request.param
    vectors = centres[codes] + torch.randn(len(codes), 6, generator=generator)
    return F.normalize(vectors, dim=1), codes


def _distances(vectors: torch.Tensor) -> npt.NDArray[np.float64]:
    rows = vectors.double().numpy()
    return 1 - rows @ rows.T


def _all_triplets(codes: torch.Tensor) -> list[Triplet]:
    count, label = len(codes), codes.tolist()
    return [
        (anchor, positive, negative)
        for anchor in range(count)
        for positive in range(count)
        for negative in range(count)
        if anchor != positive and label[anchor] == label[positive] != label[negative]
    ]


def _semi_hard(distance: npt.NDArray[np.float64], codes: torch.Tensor) -> list[Triplet]:
    return [
        (a, p, n)
        for a, p, n in _all_triplets(codes)
        if distance[a, p] < distance[a, n] <= distance[a, p] + MARGIN
    ]


def _batch_hard(distance: npt.NDArray[np.float64], codes: torch.Tensor) -> list[Triplet]:
    chosen = []
    for anchor, own in enumerate(codes.tolist()):
        same = [i for i, code in enumerate(codes.tolist()) if code == own and i != anchor]
        other = [i for i, code in enumerate(codes.tolist()) if code != own]
        farthest = max(same, key=lambda i: distance[anchor, i])
        nearest = min(other, key=lambda i: distance[anchor, i])
        chosen.append((anchor, farthest, nearest))
    return chosen


@pytest.mark.parametrize(("mining", "rule"), [("semihard", _semi_hard), ("hard", _batch_hard)])
def test_triplets(mining: str, rule: object, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    vectors, codes = batch
    distance = _distances(vectors)
    expected = rule(distance, codes)
    objective = Objective("triplet", mining, MARGIN)
    mined = zip(*(part.tolist() for part in objective._mine(vectors, codes)), strict=True)
    assert set(mined) == set(expected)

    loss, count = objective(vectors, codes)
    assert count == len(expected)
    violations = [distance[a, p] - distance[a, n] + MARGIN for a, p, n in expected]
    within = [violation for violation in violations if violation > 0]
    assert loss.item() == pytest.approx(np.mean(within) if within else 0.0, abs=1e-5)


def test_classes_that_are_apart_leave_nothing_to_mine() -> None:
    codes = torch.tensor([0, 0, 1, 1])
    vectors = torch.eye(2)[codes].requires_grad_()
    loss, count = Objective("triplet", "semihard", MARGIN)(vectors, codes)
    assert (loss.item(), count) == (0.0, 0)
    loss.backward()  # a batch without triplets is a step like any other
    assert not vectors.grad.any()


def test_supervised_contrastive(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Khosla et al. (2020), equation 2."""
    vectors, codes = batch
    similarity, label = (1 - _distances(vectors)) / TEMPERATURE, codes.tolist()
    losses = []
    for i in range(len(label)):
        others = [a for a in range(len(label)) if a != i]
        whole = sum(exp(similarity[i, a]) for a in others)
        positives = [p for p in others if label[p] == label[i]]
        losses.append(-np.mean([log(exp(similarity[i, p]) / whole) for p in positives]))
    loss, count = Objective("supcon", temperature=TEMPERATURE)(vectors, codes)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert count is None


def test_infonce(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """NT-Xent (Chen et al., 2020) over each labelled positive pair against all negatives."""
    vectors, codes = batch
    similarity, label = (1 - _distances(vectors)) / TEMPERATURE, codes.tolist()
    losses = []
    for i in range(len(label)):
        negatives = sum(exp(similarity[i, n]) for n in range(len(label)) if label[n] != label[i])
        for p in range(len(label)):
            if p != i and label[p] == label[i]:
                positive = exp(similarity[i, p])
                losses.append(-log(positive / (positive + negatives)))
    loss, count = Objective("infonce", temperature=TEMPERATURE)(vectors, codes)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert count is None


def test_multi_similarity(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Wang et al. (2019), equations 7, 8 and 10: alpha 2, beta 50, lambda 0.5, epsilon 0.1."""
    vectors, codes = batch
    similarity, label = 1 - _distances(vectors), codes.tolist()
    losses = []
    for i in range(len(label)):
        same = [k for k in range(len(label)) if k != i and label[k] == label[i]]
        other = [k for k in range(len(label)) if label[k] != label[i]]
        nearest_other = max(similarity[i, k] for k in other)
        farthest_same = min(similarity[i, k] for k in same)
        positives = [k for k in same if similarity[i, k] < nearest_other + 0.1]
        negatives = [k for k in other if similarity[i, k] > farthest_same - 0.1]
        pull = log(1 + sum(exp(-2 * (similarity[i, k] - 0.5)) for k in positives)) / 2
        push = log(1 + sum(exp(50 * (similarity[i, k] - 0.5)) for k in negatives)) / 50
        losses.append(pull + push)
    loss, count = Objective("multi_similarity")(vectors, codes)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert count is None
