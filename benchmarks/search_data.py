"""Made-up users for ``search.py``: styles in clusters, attributes, questions, and the true answers.

Cluster centres are random unit vectors; a member is its centre plus normal noise in all directions,
made a unit vector again, so that two members of a cluster have a cosine of about 0.7 and two of
different clusters about 0. Noise in all directions is hard on a graph: everybody in a cluster is
about equally near to everybody else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from vibematch.manifest import Manifest
from vibematch.preprocess import Preprocessing
from vibematch.records import Profile, StoredPhoto

Vector: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = npt.NDArray[np.intp]
Mask: TypeAlias = npt.NDArray[np.bool_]

COSINE_IN_CLUSTER: Final = 0.7
LOTS: Final = 1000
COMMON_SHARES: Final = (0.1, 0.03, 0.01)
"""Of all users who qualify, in the filters that every run asks about."""
GENDERS: Final = ("F", "M")
_YOUNGEST: Final = 18
_OLDEST: Final = 60
_CHUNK_ROWS: Final = 8192
_CHUNK_BYTES: Final = 64 * 2**20


@dataclass(frozen=True)
class People:
    """Users by row, and those who ask.

    Attributes:
        vectors: unit vectors, ``[users, dim]``.
        style: the cluster of each.
        gender: 0 or 1; each cluster has one.
        age: years.
        wants_from: the youngest each would meet.
        wants_to: the oldest.
        lot: a number below ``LOTS`` that has nothing to do with anything.
        queries: unit vectors, ``[queries, dim]``: fresh members of the clusters.
        query_style: the cluster of each.
        askers: users who ask for themselves, ``[queries]``.
        draws: a number in [0, 1) for each query, to choose a filter by.
    """

    vectors: Vector
    style: npt.NDArray[np.int32]
    gender: npt.NDArray[np.int8]
    age: npt.NDArray[np.int32]
    wants_from: npt.NDArray[np.int32]
    wants_to: npt.NDArray[np.int32]
    lot: npt.NDArray[np.int32]
    queries: Vector
    query_style: npt.NDArray[np.int32]
    askers: Rows
    draws: npt.NDArray[np.float64]

    @classmethod
    def make(cls, users: int, dim: int, queries: int, clusters: int, seed: int) -> People:
        """The same people for the same numbers; the users do not depend on ``queries``."""
        rng, asking = (
            np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(2)
        )
        centres = _unit(rng.standard_normal((clusters, dim), np.float32))
        style = rng.integers(clusters, size=users, dtype=np.int32)
        age = rng.integers(_YOUNGEST, _OLDEST, size=users, endpoint=True, dtype=np.int32)
        query_style = asking.integers(clusters, size=queries, dtype=np.int32)
        return cls(
            vectors=_members(centres, style, rng),
            style=style,
            gender=(style % 2).astype(np.int8),
            age=age,
            wants_from=age - rng.integers(3, 10, size=users, dtype=np.int32),
            wants_to=age + rng.integers(3, 10, size=users, dtype=np.int32),
            lot=rng.integers(LOTS, size=users, dtype=np.int32),
            queries=_members(centres, query_style, asking),
            query_style=query_style,
            askers=asking.choice(users, queries, replace=queries > users),
            draws=asking.random(queries),
        )

    def __len__(self) -> int:
        return len(self.vectors)

    def photos(self) -> Iterator[Profile]:
        """Each user with a photo and nothing else."""
        for row, vector in enumerate(self.vectors):
            photo = StoredPhoto(hashlib.sha256(vector.data).hexdigest(), vector)
            yield Profile(user_id(row), [photo])

    def attributes(self) -> Iterator[Profile]:
        """Each user with attributes and preferences, and no photo."""
        columns = (self.style, self.gender, self.age, self.lot, self.wants_from, self.wants_to)
        for row, (style, gender, age, lot, wants_from, wants_to) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            yield Profile(
                user_id(row),
                attributes={"style": style, "gender": GENDERS[gender], "age": age, "lot": lot},
                preferences={"gender": GENDERS[1 - gender], "age": (wants_from, wants_to)},
            )


def made_up_manifest(dim: int) -> Manifest:
    """Of the model that would have made such vectors."""
    return Manifest(
        embedding_dim=dim,
        preprocessing=Preprocessing(64, 64),
        prompt="",
        pooling="mean",
        backbone="none",
        backbone_sha256="0" * 64,
        head="paper",
        head_sha256="0" * 64,
        precision="fp32",
    )


def user_id(row: int) -> str:
    """What the user in a row is called."""
    return f"user_{row:06d}"


def row_of(user: str) -> int:
    """The row of a user."""
    return int(user.removeprefix("user_"))


def _members(centres: Vector, style: npt.NDArray[np.int32], rng: np.random.Generator) -> Vector:
    dim = centres.shape[1]
    noise = np.sqrt((1 / COSINE_IN_CLUSTER - 1) / dim).astype(np.float32)
    members = np.empty((len(style), dim), np.float32)
    for start in range(0, len(style), _CHUNK_ROWS):
        some = style[start : start + _CHUNK_ROWS]
        around = noise * rng.standard_normal((len(some), dim), np.float32)
        members[start : start + len(some)] = _unit(centres[some] + around)
    return members


def _unit(vectors: Vector) -> Vector:
    unit: Vector = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


# --- questions


class Case(NamedTuple):
    """A kind of question, asked once for each query.

    Attributes:
        name: what the tables call it.
        vector: query number → vector that is asked about.
        mask: query number → which rows qualify, worked out anew; ``None``: all do.
        arguments: query number → what ``MatchingEngine.search`` is given.
        lots: query number → the first and the last lot that qualify, where that is the filter.
    """

    name: str
    vector: Callable[[int], Vector]
    mask: Callable[[int], Mask] | None
    arguments: Callable[[int], dict[str, Any]]
    lots: Callable[[int], tuple[int, int]] | None = None


NO_FILTER: Final = "no filter"


def simple_cases(people: People) -> list[Case]:
    """No filter, and filters that have nothing to do with style."""
    lots = [_some_lots(people, share) for share in COMMON_SHARES]
    return [unfiltered(people.queries), *lots]


def unfiltered(queries: Vector) -> Case:
    """Everybody qualifies; ``queries`` are ``[queries, dim]``."""
    return Case(
        NO_FILTER, lambda query: queries[query], None, lambda query: {"vector": queries[query]}
    )


def other_cases(people: People) -> list[Case]:
    """Filters of more, of fewer, and such as have to do with style."""
    styles = frozenset(range(int(people.style.max()) + 1))

    def other_styles(query: int) -> Mask:
        allowed = np.ones(len(styles) + 1, bool)
        allowed[people.query_style[query]] = False
        return allowed[people.style]

    def other_gender(query: int) -> int:
        return 1 - int(people.query_style[query]) % 2

    def for_each_other(query: int) -> Mask:
        asker = people.askers[query]
        age, gender = people.age[asker], people.gender[asker]
        mask: Mask = people.gender == 1 - gender
        mask &= (people.age >= people.wants_from[asker]) & (people.age <= people.wants_to[asker])
        mask &= (people.wants_from <= age) & (people.wants_to >= age)
        mask[asker] = False
        return mask

    return [
        _some_lots(people, 0.5),
        _some_lots(people, 0.001),
        _asked_by_vector(
            people,
            "other styles only",
            other_styles,
            lambda query: {"style": styles - {int(people.query_style[query])}},
        ),
        _asked_by_vector(
            people,
            "other gender only",
            lambda query: people.gender == other_gender(query),
            lambda query: {"gender": GENDERS[other_gender(query)]},
        ),
        Case(
            "mutual: gender and age",
            lambda query: people.vectors[people.askers[query]],
            for_each_other,
            lambda query: {"user_id": user_id(people.askers[query]), "mutual": True},
        ),
    ]


def _asked_by_vector(
    people: People,
    name: str,
    mask: Callable[[int], Mask],
    where: Callable[[int], dict[str, Any]],
) -> Case:
    return Case(
        name,
        lambda query: people.queries[query],
        mask,
        lambda query: {"vector": people.queries[query], "where": where(query)},
    )


def _some_lots(people: People, share: float) -> Case:
    """A range of lots, another one for each query."""
    width = round(share * LOTS)

    def lots(query: int) -> tuple[int, int]:
        first = int(people.draws[query] * (LOTS - width + 1))
        return first, first + width - 1

    def mask(query: int) -> Mask:
        first, last = lots(query)
        return (people.lot >= first) & (people.lot <= last)

    case = _asked_by_vector(people, share_name(share), mask, lambda query: {"lot": lots(query)})
    return case._replace(lots=lots)


def share_name(share: float) -> str:
    """What the tables call the case where this share of all users qualifies."""
    return f"{share:.1%} of all".replace(".0%", "%")


def exact(people: People, case: Case, top_k: int) -> list[Rows]:
    """The rows that are the true answer to each query, best first.

    Args:
        people: who is asked about.
        case: the question.
        top_k: how many are wanted; there are fewer where fewer qualify.
    """
    answers: list[Rows] = []
    total = len(people.queries)
    at_once = max(1, _CHUNK_BYTES // (4 * len(people)))
    for start in range(0, total, at_once):
        numbers = range(start, min(start + at_once, total))
        asked = np.stack([case.vector(query) for query in numbers])
        for query, scores in zip(numbers, asked @ people.vectors.T, strict=True):
            rows = None if case.mask is None else np.flatnonzero(case.mask(query))
            answers.append(best(scores if rows is None else scores[rows], rows, top_k))
    return answers


def best(scores: Vector, rows: Rows | None, top_k: int) -> Rows:
    """Those with the highest scores, best first.

    Args:
        scores: one for each of ``rows``.
        rows: whose they are; ``None`` for all rows.
        top_k: how many, at most.
    """
    if len(scores) > top_k:
        top = np.argpartition(scores, -top_k)[-top_k:]
    else:
        top = np.arange(len(scores))
    top = top[np.argsort(-scores[top])]
    return top if rows is None else rows[top]


def recall(answers: Sequence[Rows], truth: Sequence[Rows]) -> float:
    """The share of the true answers that was found."""
    found = sum(len(np.intersect1d(*pair)) for pair in zip(answers, truth, strict=True))
    return found / max(1, sum(map(len, truth)))
