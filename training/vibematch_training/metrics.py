"""Retrieval metrics as the product meets them: a query's own photos are never among its results.

Recall@K and MAP@R follow Musgrave et al., "A Metric Learning Reality Check" (2020), with the
reference set reduced by the query user's own photos.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RECALLS = (1, 5)


def retrieval_metrics(
    vectors: npt.NDArray[np.float32], labels: Sequence[str], users: Sequence[str]
) -> dict[str, float]:
    """Leave-one-user-out retrieval by cosine similarity.

    Args:
        vectors: float32, shape ``[photos, dim]``; need not be unit length.
        labels: class of each photo.
        users: owner of each photo.

    Returns:
        ``recall_at_1`` and ``recall_at_5`` (share of queries with a photo of their class among
        the K nearest of other users) and ``map_at_r`` (mean average precision at R, where R is
        the number of other users' photos of the query's class), each in [0, 1]. Queries whose
        class no other user has are left out; without any other, all are NaN.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    label, user = np.asarray(labels), np.asarray(users)
    similarity = unit @ unit.T
    others = user[:, None] != user[None, :]
    relevant = (label[:, None] == label[None, :]) & others
    queries = np.flatnonzero(relevant.any(axis=1))
    if not len(queries):
        return {**{f"recall_at_{k}": float("nan") for k in RECALLS}, "map_at_r": float("nan")}
    # stable: equal similarities keep the photos' order, so reports repeat
    order = np.argsort(np.where(others, -similarity, np.inf), axis=1, kind="stable")
    hits = np.take_along_axis(relevant, order, axis=1)[queries]
    recalls = {f"recall_at_{k}": float(hits[:, :k].any(axis=1).mean()) for k in RECALLS}
    return {**recalls, "map_at_r": float(np.mean([_average_precision_at_r(row) for row in hits]))}


def _average_precision_at_r(hits: npt.NDArray[np.bool_]) -> float:
    r = int(hits.sum())
    top = hits[:r]
    precision = np.cumsum(top) / np.arange(1, r + 1)
    return float((precision * top).sum() / r)
