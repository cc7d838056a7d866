"""What an engine should answer: users in a dict, and every comparison made one by one."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vibematch.manifest import Manifest
from vibematch.preprocess import Preprocessing
from vibematch.records import Profile, StoredPhoto

TOLERANCE = 1e-6
_CANCELLED = 1e-6

Array = npt.NDArray[Any]

QUICK_DISK = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
"""Where no sync takes time, for tests that write very often (``None``: no such place)."""


def manifest_of(dim: int) -> Manifest:
    """A model that only exists on paper."""
    return Manifest(
        embedding_dim=dim,
        preprocessing=Preprocessing(height=64, width=96, max_bytes=100_000),
        prompt="Describe this person's appearance.",
        pooling="mean",
        backbone="tiny",
        backbone_sha256="0" * 64,
        head="paper",
        head_sha256="1" * 64,
        precision="fp32",
    )


@dataclass(eq=False)
class Person:
    """One user: photos by name as (digest of the content, unit vector), in order."""

    photos: dict[str, tuple[str, Array]] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    preferences: dict[str, Any] = field(default_factory=dict)

    @property
    def vectors(self) -> Array:
        return np.array([vector for _, vector in self.photos.values()])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Person) and self._comparable() == other._comparable()

    __hash__ = None  # type: ignore[assignment]

    def _comparable(self) -> object:
        photos = [(name, sha, row.tobytes()) for name, (sha, row) in self.photos.items()]
        return photos, self.attributes, self.preferences

    def same_vectors(self, other: Person) -> bool:
        return np.array_equal(self.vectors, other.vectors)


class People(dict[str, Person]):
    """All users. The methods do what the engine's methods of the same name do."""

    def write(self, profile: Profile) -> int:
        """Add photos, replace those of the same name; returns how many are new or replaced."""
        person = self.get(profile.user_id)
        if person is None:
            assert profile.photos
            person = self[profile.user_id] = Person()
        written = sum(_put(person, photo) for photo in profile.photos)
        if profile.attributes is not None:
            person.attributes = dict(profile.attributes)
        if profile.preferences is not None:
            person.preferences = dict(profile.preferences)
        return written

    def search(
        self,
        user_id: str | None = None,
        *,
        vectors: Array | None = None,
        where: Mapping[str, Any] | None = None,
        mutual: bool = False,
        exclude: Iterable[str] = (),
        aggregate: str = "mean",
    ) -> dict[str, float]:
        """The scores of all who qualify, whatever the score."""
        me = None if user_id is None else self[user_id]
        query = me.vectors if me is not None else vectors
        assert query is not None
        out = {*exclude, user_id}
        return {
            name: score(query, person.vectors, aggregate)
            for name, person in self.items()
            if name not in out
            and qualifies(where or {}, person.attributes)
            and (not mutual or (me is not None and agree(me, person)))
        }


def _put(person: Person, photo: StoredPhoto) -> bool:
    content = photo.content_sha256
    name = photo.photo_id or content
    if photo.photo_id:
        known = name in person.photos and person.photos[name][0] == content
    else:
        known = any(content == theirs for theirs, _ in person.photos.values())
    if not known:
        person.photos[name] = content, photo.vector
    return not known


def agree(one: Person, other: Person) -> bool:
    """Whether each is what the other wants."""
    return qualifies(one.preferences, other.attributes) and qualifies(
        other.preferences, one.attributes
    )


def qualifies(where: Mapping[str, Any], attributes: Mapping[str, Any]) -> bool:
    return all(meets(condition, attributes.get(name)) for name, condition in where.items())


def meets(condition: Any, value: Any) -> bool:
    """One condition, spelled out; Python's ``==`` decides what is equal, of numbers as float64."""
    if isinstance(condition, tuple):
        low, high = map(_as_float, condition)
        return isinstance(value, int | float) and low <= float(value) <= high
    if isinstance(condition, list | set | frozenset):
        return any(meets(one, value) for one in condition)
    if condition is None or value is None:
        return condition is value
    if isinstance(condition, int | float) and isinstance(value, int | float):
        return float(condition) == float(value)
    return bool(condition == value)


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def score(query: Array, candidate: Array, aggregate: str) -> float:
    """How alike two people are, given all vectors of each."""
    if aggregate == "best_pair":
        return float((query.astype(np.float64) @ candidate.astype(np.float64).T).max())
    return float(unit_mean(query) @ unit_mean(candidate))


def unit_mean(vectors: Array) -> Array:
    """The mean direction; that of the first where they cancel out."""
    mean = vectors.astype(np.float64).mean(axis=0)
    norm = np.linalg.norm(mean)
    if norm * len(vectors) < _CANCELLED:
        mean = vectors[0].astype(np.float64)
        norm = np.linalg.norm(mean)
    direction: Array = mean / norm
    return direction


def unit(vector: npt.ArrayLike) -> Array:
    values = np.asarray(vector, np.float64)
    rows: Array = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return rows.astype(np.float32)


def stored(vector: npt.ArrayLike, photo_id: str = "") -> StoredPhoto:
    """A photo known by its vector, as the engine names those that it is only given vectors of."""
    row = unit(vector)
    return StoredPhoto(hashlib.sha256(row.tobytes()).hexdigest(), row, photo_id=photo_id)


def check_answer(
    found: Sequence[tuple[str, float]],
    scores: Mapping[str, float],
    top_k: int,
    *,
    min_score: float | None = None,
) -> None:
    """An answer has to be the best ``top_k`` of all who qualify, up to rounding.

    Args:
        found: the answer.
        scores: those of all who qualify.
        top_k: how many were asked for.
        min_score: the least score that counts.
    """
    least = -2.0 if min_score is None else min_score
    surely = [score for score in scores.values() if score >= least + TOLERANCE]
    perhaps = [score for score in scores.values() if score >= least - TOLERANCE]
    assert min(top_k, len(surely)) <= len(found) <= min(top_k, len(perhaps)), (found, scores)
    names = [name for name, _ in found]
    assert len(set(names)) == len(names), found
    assert set(names) <= scores.keys(), (found, scores)
    assert list(found) == sorted(found, key=lambda match: (-match[1], match[0])), found
    for name, given in found:
        assert abs(given - scores[name]) <= TOLERANCE, (name, given, scores[name])
        assert given >= least
    if len(found) == top_k:
        missed = max((score for name, score in scores.items() if name not in names), default=-2.0)
        assert missed <= found[-1][1] + TOLERANCE, (found, scores)


def check_ties(
    found: Sequence[tuple[str, float]], scores: Mapping[str, float], people: People
) -> None:
    """Users with the very same vectors have the very same score, and the first names come first."""
    given = dict(found)
    for name, other in itertools.product(scores, given):
        if people[name].same_vectors(people[other]):
            if name in given:
                assert given[name] == given[other], (name, other, found)
            else:
                assert other < name, (name, other, found)
