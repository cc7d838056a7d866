"""Retrieval metrics and distances as the product meets them.

A photo is compared with the photos of *other users* only: finding oneself is not a match. Where the
class is the user (labels equal users), positives are the user's own photos, and only the photo
itself is left out.

Recall@K and MAP@R follow Musgrave et al., "A Metric Learning Reality Check" (2020), with the
reference set reduced as above. Photos that are equally similar to the query are ordered against the
model, those of other classes first: a collapsed embedding finds nothing, whatever the order of its
photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

RECALLS: Final = (1, 5, 10)
NEIGHBOURS: Final = 10
"""So many nearest photos are kept of each query."""

_BLOCK_PHOTOS: Final = 512


@dataclass(frozen=True)
class Retrieval:
    """What each photo finds when it is the query.

    A photo is a query only if some photo it is compared with is of its class; the figures of the
    others are NaN.

    Attributes:
        compared: how many photos it is compared with, int64 ``[photos]``.
        relevant: how many of them are of its class (R), int64 ``[photos]``.
        recall: K → 1.0 if one of the K nearest is of its class, else 0.0; float64 ``[photos]``.
        average_precision: average precision at R, float64 ``[photos]``.
        neighbours: positions of the nearest photos, nearest first, int64 ``[photos, 10]``; -1
            where there are fewer.
        similarities: their cosine similarities, float32 ``[photos, 10]``; NaN where there are
            fewer.
    """

    compared: IntArray
    relevant: IntArray
    recall: dict[int, FloatArray]
    average_precision: FloatArray
    neighbours: IntArray
    similarities: npt.NDArray[np.float32]


def unit_vectors(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scale ``[photos, dim]`` to unit length; a zero vector stays zero, alike to nothing."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = vectors / np.where(lengths > 0, lengths, 1)
    return unit


def retrieve(
    vectors: npt.NDArray[np.float32], labels: Sequence[str], users: Sequence[str]
) -> Retrieval:
    """Let every photo search among the others, by cosine similarity.

    Memory grows with the number of photos, not with its square.

    Args:
        vectors: float32, shape ``[photos, dim]``; need not be unit length.
        labels: class of each photo.
        users: owner of each photo.
    """
    unit = unit_vectors(vectors)
    _, label = np.unique(labels, return_inverse=True)
    apart = _apart(labels, users)
    count = len(unit)
    found = Retrieval(
        compared=np.zeros(count, np.int64),
        relevant=np.zeros(count, np.int64),
        recall={k: np.full(count, np.nan) for k in RECALLS},
        average_precision=np.full(count, np.nan),
        neighbours=np.full((count, NEIGHBOURS), -1, np.int64),
        similarities=np.full((count, NEIGHBOURS), np.nan, np.float32),
    )
    for start in range(0, count, _BLOCK_PHOTOS):
        block = unit[start : start + _BLOCK_PHOTOS] @ unit.T
        for query, similarity in enumerate(block, start):
            compared = apart != apart[query]
            relevant = compared & (label == label[query])
            _rank(found, query, similarity, compared, relevant)
    return found


def _apart(labels: Sequence[str], users: Sequence[str]) -> IntArray:
    """Codes by photo; photos of equal code are never compared."""
    if np.array_equal(labels, users):
        return np.arange(len(users))
    _, codes = np.unique(users, return_inverse=True)
    return codes.astype(np.int64)


def _rank(
    found: Retrieval,
    query: int,
    similarity: npt.NDArray[np.float32],
    compared: npt.NDArray[np.bool_],
    relevant: npt.NDArray[np.bool_],
) -> None:
    r = int(relevant.sum())
    found.compared[query] = compared.sum()
    found.relevant[query] = r
    if r:
        right = np.sort(similarity[relevant])[::-1]
        wrong = np.sort(similarity[compared & ~relevant])
        nth = np.arange(1, r + 1)
        ahead = len(wrong) - np.searchsorted(wrong, right, side="left")
        rank = nth + ahead  # of the nth photo of the query's class among all
        for k, recall in found.recall.items():
            recall[query] = rank[0] <= k
        found.average_precision[query] = (nth / rank)[rank <= r].sum() / r
    candidates = np.flatnonzero(compared)
    if len(candidates) > NEIGHBOURS:
        least = np.partition(similarity[candidates], -NEIGHBOURS)[-NEIGHBOURS]
        candidates = candidates[similarity[candidates] >= least]
    order = np.lexsort((relevant[candidates], -similarity[candidates]))[:NEIGHBOURS]
    nearest = candidates[order]
    found.neighbours[query, : len(nearest)] = nearest
    found.similarities[query, : len(nearest)] = similarity[nearest]


def mean_distances(
    vectors: npt.NDArray[np.float32],
    labels: Sequence[str],
    users: Sequence[str],
    draws: IntArray,
) -> tuple[FloatArray, FloatArray]:
    """Mean cosine distance (1 - cosine) within and between classes, for samples of users.

    The mean runs over all pairs of photos of equal class (intra) and of different classes (inter),
    each pair counting once; pairs of one user's photos are left out, unless the class is the user.
    In a sample in which two users were drawn a and b times, a pair of their photos counts a x b
    times, and two photos of one user a times: copies of a user are never compared.

    Args:
        vectors: float32, shape ``[photos, dim]``; need not be unit length.
        labels: class of each photo.
        users: owner of each photo.
        draws: how often each user is in each sample, ``[samples, users]``, users in the order of
            ``numpy.unique(users)``; a row of ones is the photos as they are.

    Returns:
        Intra-class and inter-class distance, float64 ``[samples]`` each; NaN without such a pair.
    """
    unit = unit_vectors(vectors).astype(np.float64)
    _, user = np.unique(users, return_inverse=True)
    _, label = np.unique(labels, return_inverse=True)
    # The sum of the cosines of all pairs is the squared length of the sum of the unit vectors: no
    # matrix of pairs is needed. One row for each user and class:
    cells, cell = np.unique(np.stack([user, label], axis=1), axis=0, return_inverse=True)
    sums = _group_sums(unit, cell.ravel(), len(cells))
    sizes = np.bincount(cell.ravel()).astype(np.float64)
    weights = draws[:, cells[:, 0]].astype(np.float64)

    by_user = _group_sums(sums, cells[:, 0], draws.shape[1])
    user_sizes = np.bincount(user, minlength=draws.shape[1]).astype(np.float64)
    own_cosines = np.square(by_user).sum(axis=1)
    everything = _squares(weights, sums, sizes)
    own = np.square(draws) @ np.stack([own_cosines, np.square(user_sizes)], axis=1)

    if np.array_equal(labels, users):
        itself = np.bincount(user, np.square(unit).sum(axis=1))
        intra = draws @ np.stack([own_cosines - itself, np.square(user_sizes) - user_sizes], axis=1)
        inter = everything - own
    else:
        own_in_class = np.stack([np.square(sums).sum(axis=1), np.square(sizes)], axis=1)
        intra = -np.square(weights) @ own_in_class
        for code in np.unique(label):
            members = cells[:, 1] == code
            intra += _squares(weights[:, members], sums[members], sizes[members])
        inter = everything - own - intra
    return _distance(intra), _distance(inter)


def _group_sums(rows: FloatArray, groups: IntArray, count: int) -> FloatArray:
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, groups, rows)
    return sums


def _squares(weights: FloatArray, sums: FloatArray, sizes: FloatArray) -> FloatArray:
    """Sum of cosines and number of the (ordered) pairs of a sample, ``[samples, 2]``."""
    cosines = np.square(weights @ sums).sum(axis=1)
    return np.stack([cosines, np.square(weights @ sizes)], axis=1)


def _distance(cosines_and_pairs: FloatArray) -> FloatArray:
    cosines, pairs = cosines_and_pairs.T
    return np.where(pairs > 0, 1 - cosines / np.where(pairs > 0, pairs, 1), np.nan)


def class_distances(
    vectors: npt.NDArray[np.float32],
    labels: Sequence[str],
    users: Sequence[str],
    classes: Sequence[str],
) -> FloatArray:
    """Mean cosine distance between the photos of two classes, for each two.

    Returns:
        float64 ``[classes, classes]``, symmetric, pairs left out as in :func:`mean_distances`; NaN
        where two classes have no pair.
    """
    unit = unit_vectors(vectors)
    apart = _apart(labels, users)
    members = [np.flatnonzero(np.asarray(labels) == name) for name in classes]
    distances = np.full((len(classes), len(classes)), np.nan)
    for row, ours in enumerate(members):
        for column, theirs in enumerate(members[: row + 1]):
            compared = apart[ours][:, None] != apart[theirs][None, :]
            if compared.any():
                cosine = (unit[ours] @ unit[theirs].T)[compared].mean(dtype=np.float64)
                distances[row, column] = distances[column, row] = 1 - cosine
    return distances


def sampled_metrics(
    retrieval: Retrieval,
    vectors: npt.NDArray[np.float32],
    labels: Sequence[str],
    users: Sequence[str],
    draws: IntArray,
) -> dict[str, FloatArray]:
    """All metrics for samples of users.

    Users are drawn as the ones who search; whom they search among stays as it is, since photos
    drawn twice would find each other. Distances follow :func:`mean_distances`.

    Args:
        retrieval: of these vectors, from :func:`retrieve`.
        vectors: float32, shape ``[photos, dim]``.
        labels: class of each photo.
        users: owner of each photo.
        draws: as for :func:`mean_distances`.

    Returns:
        Name → float64 ``[samples]``, NaN where a sample has no such query or pair; the names are
        those of :func:`retrieval_metrics`.
    """
    _, user = np.unique(users, return_inverse=True)
    every = np.ones(len(user), dtype=bool)
    figures = query_means(retrieval, user, draws, every)
    intra, inter = mean_distances(vectors, labels, users, draws)
    return {
        **figures,
        "intra_class_distance": intra,
        "inter_class_distance": inter,
        "separation": inter - intra,
    }


def query_means(
    retrieval: Retrieval, user: IntArray, draws: IntArray, members: npt.NDArray[np.bool_]
) -> dict[str, FloatArray]:
    """Mean Recall@K and MAP@R of some queries, for samples of users.

    Args:
        retrieval: what each photo found.
        user: code of each photo's owner, int64 ``[photos]``.
        draws: how often each user is in each sample, ``[samples, users]``.
        members: which photos are the queries, bool ``[photos]``.

    Returns:
        Name → float64 ``[samples]``; NaN where a sample has no such query.
    """
    per_photo = {f"recall_at_{k}": values for k, values in retrieval.recall.items()}
    per_photo["map_at_r"] = retrieval.average_precision
    queries = members & (retrieval.relevant > 0)
    owner = user[queries]
    count = draws @ np.bincount(owner, minlength=draws.shape[1])
    means = {}
    for name, values in per_photo.items():
        total = draws @ np.bincount(owner, values[queries], minlength=draws.shape[1])
        means[name] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return means


def retrieval_metrics(
    vectors: npt.NDArray[np.float32], labels: Sequence[str], users: Sequence[str]
) -> dict[str, float]:
    """Retrieval by cosine similarity, and the distances within and between classes.

    Args:
        vectors: float32, shape ``[photos, dim]``; need not be unit length.
        labels: class of each photo.
        users: owner of each photo; where they equal the labels, positives are a user's own photos.

    Returns:
        ``recall_at_1``, ``recall_at_5`` and ``recall_at_10`` (share of queries with a photo of
        their class among the K nearest) and ``map_at_r`` (mean average precision at R, where R is
        the number of photos of the query's class), each in [0, 1]; ``intra_class_distance`` and
        ``inter_class_distance`` (mean cosine distance, in [0, 2]) and ``separation`` (inter minus
        intra). NaN where nothing can be compared.
    """
    everyone = np.ones((1, len(set(users))), dtype=np.int64)
    figures = sampled_metrics(retrieve(vectors, labels, users), vectors, labels, users, everyone)
    return {name: float(values[0]) for name, values in figures.items()}
