"""What a trained head is worth on people it has not seen, beside the backbone alone.

Intervals are percentile bootstrap intervals (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13). Users are resampled, not photos: photos of one user are dependent
(Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import hypergeom

from vibematch.photos import Photo
from vibematch_training.dataset import class_of
from vibematch_training.evaluation.metrics import (
    RECALLS,
    FloatArray,
    IntArray,
    Retrieval,
    class_distances,
    query_means,
    retrieve,
    sampled_metrics,
)
from vibematch_training.schema import SHOT_COLUMN

RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95
MAX_CLASSES: Final = 30
"""With more classes (say, a label of one class for each user), there is nothing to see by class."""

TARGETS: Final = (
    ("recall_at_1", ">=", 0.60),
    ("recall_at_5", ">=", 0.80),
    ("intra_class_distance", "<", 0.3),
    ("inter_class_distance", ">", 0.7),
    ("separation", ">", 0.4),
)
"""Figure of the trained head, comparison, value: the paper's for retrieval, the product's for
distances."""

_COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">=": lambda value, target: value >= target,
    ">": lambda value, target: value > target,
    "<": lambda value, target: value < target,
}


@dataclass(frozen=True)
class EvaluationSet:
    """Photos of people who were not trained on, as the backbone and as the head see them.

    Attributes:
        photos: the photos, all of them labelled.
        label: what makes two photos a positive pair: a CSV column or ``user_id``.
        classes: its values.
        features: pooled backbone features, float32 ``[photos, feature_dim]``.
        embeddings: the head's vectors, float32 ``[photos, embedding_dim]``.
    """

    photos: Sequence[Photo]
    label: str
    classes: Sequence[str]
    features: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]

    @property
    def labels(self) -> list[str]:
        """The class of each photo."""
        return [str(class_of(photo, self.label)) for photo in self.photos]

    @property
    def users(self) -> list[str]:
        """The owner of each photo."""
        return [photo.user_id for photo in self.photos]

    @property
    def has_few_classes(self) -> bool:
        """Whether figures and pictures by class say something."""
        return len(self.classes) <= MAX_CLASSES

    @property
    def spaces(self) -> dict[str, npt.NDArray[np.float32]]:
        """The two sets of vectors that are compared, by the name they have in the results."""
        return {"raw_backbone": self.features, "trained_head": self.embeddings}


def evaluate(data: EvaluationSet, seed: int) -> dict[str, Any]:
    """Measure features and embeddings, with intervals.

    Args:
        data: what to measure.
        seed: of the bootstrap.

    Returns:
        A dictionary for JSON, ``None`` where a figure is undefined; docs/evaluation.md explains
        its keys.
    """
    labels, users = data.labels, data.users
    names, user = np.unique(users, return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    found = {space: retrieve(vectors, labels, users) for space, vectors in data.spaces.items()}
    everyone = np.ones((1, len(names)), dtype=np.int64)
    points: dict[str, dict[str, FloatArray]] = {}
    samples: dict[str, dict[str, FloatArray]] = {}
    for space, vectors in data.spaces.items():
        points[space] = sampled_metrics(found[space], vectors, labels, users, everyone)
        samples[space] = sampled_metrics(found[space], vectors, labels, users, draws)
    for kind in (points, samples):
        raw, trained = kind["raw_backbone"], kind["trained_head"]
        kind["difference"] = {name: trained[name] - raw[name] for name in raw}
    trained_figures = {name: float(value[0]) for name, value in points["trained_head"].items()}
    results: dict[str, Any] = _plain(
        {
            "photos": len(data.photos),
            "users": len(names),
            "queries": int((found["trained_head"].relevant > 0).sum()),
            **{space: _with_intervals(points[space], samples[space]) for space in points},
            "chance": _chance(found["trained_head"]),
            "targets": _targets(trained_figures),
            "per_class": _per_class(data, found, user, draws) if data.has_few_classes else {},
            "per_shot_type": _per_shot_type(data, found, user, draws),
            "confusion": _confusion(data, found) if data.has_few_classes else None,
            "bootstrap": {
                "method": "percentile, users resampled",
                "confidence": CONFIDENCE,
                "resamples": RESAMPLES,
                "seed": seed,
            },
        }
    )
    return results


def _with_intervals(
    points: Mapping[str, FloatArray], samples: Mapping[str, FloatArray]
) -> dict[str, Any]:
    return {
        **{name: value[0] for name, value in points.items()},
        "intervals": {name: _interval(values) for name, values in samples.items()},
    }


def _interval(samples: FloatArray) -> list[float] | None:
    """The percentile interval over the samples in which the figure is defined."""
    defined = samples[np.isfinite(samples)]
    if not len(defined):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return [float(low), float(high)]


def _chance(found: Retrieval) -> dict[str, float]:
    """Expected Recall@K of a random order: hypergeometric, for each query's own numbers."""
    queries = found.relevant > 0
    compared, relevant = found.compared[queries], found.relevant[queries]
    return {
        f"recall_at_{k}": float(
            np.mean(hypergeom.sf(0, compared, relevant, np.minimum(k, compared)))
        )
        if queries.any()
        else math.nan
        for k in RECALLS
    }


def _targets(figures: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "figure": name,
            "comparison": comparison,
            "target": target,
            "value": figures[name],
            "met": _COMPARISONS[comparison](figures[name], target),
        }
        for name, comparison, target in TARGETS
    ]


def _group(
    members: npt.NDArray[np.bool_],
    found: Mapping[str, Retrieval],
    user: IntArray,
    draws: IntArray,
) -> dict[str, Any]:
    """Figures of the photos of a group as queries; they search among all photos."""
    everyone = np.ones((1, draws.shape[1]), dtype=np.int64)
    figures: dict[str, Any] = {
        "photos": int(members.sum()),
        "users": len(np.unique(user[members])),
    }
    for space, retrieval in found.items():
        points = query_means(retrieval, user, everyone, members)
        samples = query_means(retrieval, user, draws, members)
        figures[space] = {
            **{name: points[name][0] for name in ("recall_at_1", "recall_at_5", "map_at_r")},
            "recall_at_1_interval": _interval(samples["recall_at_1"]),
        }
    return figures


def _per_class(
    data: EvaluationSet, found: Mapping[str, Retrieval], user: IntArray, draws: IntArray
) -> dict[str, Any]:
    labels = np.asarray(data.labels)
    groups = {name: _group(labels == name, found, user, draws) for name in data.classes}
    for space, vectors in data.spaces.items():
        distances = class_distances(vectors, data.labels, data.users, data.classes)
        for row, name in enumerate(data.classes):
            others = distances[row].copy()
            others[row] = np.nan
            nearest = int(np.nanargmin(others)) if np.isfinite(others).any() else None
            groups[name][space] |= {
                "intra_class_distance": distances[row, row],
                "nearest_class": None if nearest is None else data.classes[nearest],
                "nearest_class_distance": math.nan if nearest is None else others[nearest],
            }
    return groups


def _per_shot_type(
    data: EvaluationSet, found: Mapping[str, Retrieval], user: IntArray, draws: IntArray
) -> dict[str, Any]:
    shots = np.array([photo.labels.get(SHOT_COLUMN, "") for photo in data.photos])
    names = sorted(set(shots) - {""})
    return {name: _group(shots == name, found, user, draws) for name in names}


def _confusion(data: EvaluationSet, found: Mapping[str, Retrieval]) -> dict[str, Any]:
    """Class of the query (row) by class of its nearest photo (column)."""
    code = {name: number for number, name in enumerate(data.classes)}
    labels = np.array([code[label] for label in data.labels], dtype=np.int64)
    tables: dict[str, Any] = {"classes": list(data.classes)}
    for space, retrieval in found.items():
        nearest = retrieval.neighbours[:, 0]
        queries = (nearest >= 0) & (retrieval.relevant > 0)
        counts = np.zeros((len(code), len(code)), dtype=np.int64)
        np.add.at(counts, (labels[queries], labels[nearest[queries]]), 1)
        rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        tables[space] = {"counts": counts.tolist(), "rates": rates.tolist()}
    return tables


def _plain(value: Any) -> Any:
    """The value with plain Python numbers, and ``None`` for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
