"""The users' vectors by row, and a coarse partition of them for scans that skip most of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from vibematch import scan

if TYPE_CHECKING:
    from vibematch._scan import Condition as Test
    from vibematch.filters import Mask

Vector: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = npt.NDArray[np.intp]
Scores: TypeAlias = npt.NDArray[np.floating[Any]]

ROUNDING: Final = 1e-6
"""More than rounding to float32 can move a cosine."""

_BLOCK_ROWS: Final = 8192
_GATHER_ROWS: Final = 1024
"""So many vectors are copied together at a time: they stay in the processor's cache."""

_CANCELLED: Final = 1e-6
_KEY_SEED: Final = 1
_KEY_STEPS: Final = 256
NO_ROWS: Final[Rows] = np.empty(0, np.intp)

_ROWS_PER_LIST: Final = 400
_MAX_LISTS: Final = 2048
_SAMPLE_PER_LIST: Final = 32
_ITERATIONS: Final = 6

_ASKED: Final = 256
_LIMITS: Final = 257
_LIMIT_QUANTILE: Final = 0.99
_SCORES_AT_ONCE: Final = 2**24


def unit_means(vectors: Vector, starts: npt.NDArray[np.intp]) -> Vector:
    """The mean direction of each run of vectors.

    Where vectors cancel out to (nearly) nothing, the first of them speaks for its run.

    Args:
        vectors: unit vectors, float32, ``[n, dim]``.
        starts: where the runs begin, ascending.

    Returns:
        Unit vectors, float32, ``[number of runs, dim]``.
    """
    sums = np.add.reduceat(vectors.astype(np.float64), starts, axis=0)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    lost = norms[:, 0] < _CANCELLED
    sums[lost] = vectors[starts[lost]]
    norms[lost] = np.linalg.norm(sums[lost], axis=1, keepdims=True)
    means: Vector = (sums / norms).astype(np.float32)
    return means


def vector_keys(vectors: Vector) -> npt.NDArray[np.uint32]:
    """Numbers that are equal for vectors that are equal up to rounding, and never 0.

    The same photo gets a vector of other last bits in another batch. These are multiplicative
    hashes of rounded elements; a few vectors that close round differently all the same.

    Args:
        vectors: float32, ``[n, dim]``.

    Returns:
        uint32, ``[n]``.
    """
    rng = np.random.default_rng(_KEY_SEED)
    factors = rng.integers(0, 2**63, vectors.shape[1], dtype=np.uint64) * np.uint64(2) + 1
    keys = np.empty(len(vectors), np.uint32)
    for start in range(0, len(vectors), _GATHER_ROWS):
        rounded = np.rint(vectors[start : start + _GATHER_ROWS] * _KEY_STEPS).astype(np.int64)
        mixed = (rounded.view(np.uint64) * factors).sum(axis=1)
        keys[start : start + len(rounded)] = mixed >> np.uint64(32)
    keys[keys == 0] = 1
    return keys


class Coded(NamedTuple):
    """Vectors, and codes of one byte an element, of which a scan reads a quarter as much.

    Attributes:
        vectors: float32 ``[n, dim]``.
        codes: int8 ``[n, dim]``.
        scales: float32 ``[n]``: a vector is nearly its codes times its scale.
        error: no vector is farther from that than this.
    """

    vectors: Vector
    codes: npt.NDArray[np.int8]
    scales: Vector
    error: float

    @classmethod
    def empty(cls, rows: int, dim: int) -> Coded:
        """Room for vectors, with anything in it."""
        return cls(
            np.empty((rows, dim), np.float32),
            np.empty((rows, dim), np.int8),
            np.empty(rows, np.float32),
            0.0,
        )

    @classmethod
    def of(cls, vectors: Vector) -> Coded:
        """Vectors, ``[n, dim]``, which are not copied, and their codes."""
        room = cls.empty(*vectors.shape)
        error = scan.encode(vectors, room.codes, room.scales)
        return cls(vectors, room.codes, room.scales, error)

    def part(self, rows: slice) -> Coded:
        """Some of them, not copied."""
        return Coded(self.vectors[rows], self.codes[rows], self.scales[rows], self.error)


class VectorRows:
    """Unit vectors, float32, that are appended and never changed.

    They lie in blocks, so that growing copies nothing. The first block may be a mapped file.

    Args:
        dim: length of a vector.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._blocks: list[Coded] = []
        self._starts: list[int] = []
        self._count = 0
        self._room = Coded.empty(0, dim)  # the last block, and what may come behind it

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Vector:
        block = bisect_right(self._starts, row) - 1
        vector: Vector = self._blocks[block].vectors[row - self._starts[block]]
        return vector

    def append(self, vectors: Vector) -> None:
        """Add vectors, ``[n, dim]``, behind the last row."""
        while len(vectors):
            filled = len(self._blocks[-1].vectors) if self._blocks else 0
            if filled == len(self._room.vectors):
                filled, self._room = 0, Coded.empty(_BLOCK_ROWS, self._dim)
                self._starts.append(self._count)
                self._blocks.append(self._room)
            some = vectors[: len(self._room.vectors) - filled]
            end = filled + len(some)
            new = self._room.part(slice(filled, end))
            new.vectors[:] = some
            error = max(self._room.error, scan.encode(new.vectors, new.codes, new.scales))
            self._room = self._room._replace(error=error)
            self._blocks[-1] = self._room.part(slice(end))
            self._count += len(some)
            vectors = vectors[len(some) :]

    def replace(self, coded: Coded) -> None:
        """Have other arrays hold what is there; the old memory is freed."""
        self._blocks, self._starts, self._count = [coded], [0], len(coded.vectors)
        self._room = coded

    def first_block(self) -> Coded:
        """The vectors of the first rows, all that were there when they were last replaced."""
        return self._blocks[0]

    def blocks(self) -> list[Coded]:
        """All vectors, in order."""
        return list(self._blocks)

    def take(self, rows: Rows) -> Vector:
        """Copies of the vectors in the given rows, ``[len(rows), dim]``."""
        if len(self._blocks) == 1:
            return self._blocks[0].vectors[rows]
        taken = np.empty((len(rows), self._dim), np.float32)
        block_of = np.searchsorted(self._starts, rows, "right") - 1
        for block in np.unique(block_of):
            here = block_of == block
            taken[here] = self._blocks[block].vectors[rows[here] - self._starts[block]]
        return taken

    def scores(self, rows: Rows, query: Vector) -> npt.NDArray[np.float64]:
        """Dot products of the given rows, ascending, with a vector: float64 ``[len(rows)]``.

        Equal for equal vectors, so that ties are real ties.
        """
        scores = np.empty(len(rows))
        for coded, start, part in self._parts(rows):
            scan.dots(coded.vectors, query, _counted_from(start, rows[part]), scores[part])
        return scores

    def nearest(
        self,
        query: Vector,
        tests: list[Test],
        excluded: Rows,
        count: int,
        least: float,
        among: list[npt.NDArray[Any]] | None = None,
        first: int = 0,
    ) -> Look:
        """The nearest to a vector, of all rows or of some.

        Args:
            query: unit vector, float32, ``[dim]``.
            tests: whoever passes all of them qualifies.
            excluded: rows to leave out, ascending.
            count: how many are wanted.
            least: the least score of those.
            among: rows, int32 or int64, in no order; the same one may be there more than once.
                ``None``: all.
            first: no rows below this one.
        """
        nearest = _NOBODY
        for coded, start in zip(self._blocks, self._starts, strict=True):
            if start < first:
                coded, start = coded.part(slice(first - start, None)), first
                if not len(coded.vectors):
                    continue
            look = Look.of(scan.compare(coded, start, among, query, tests, excluded, count, least))
            if look.tried:
                nearest = nearest.followed_by(look) if nearest.tried else look
        return nearest

    def _parts(self, rows: Rows) -> Iterator[tuple[Coded, int, slice]]:
        """Each block, its first row, and which of some rows, ascending, are in it."""
        if len(self._blocks) == 1:
            yield self._blocks[0], 0, slice(len(rows))
            return
        bounds = [*np.searchsorted(rows, self._starts).tolist(), len(rows)]
        for coded, start, low, high in zip(
            self._blocks, self._starts, bounds, bounds[1:], strict=False
        ):
            if low < high:
                yield coded, start, slice(low, high)


def _counted_from(start: int, rows: Rows) -> Rows:
    return rows - start if start else rows  # most rows are in the first block: no copy of them


def best_of(rows: Rows, scores: Scores, count: int) -> tuple[Rows, Scores]:
    """The rows with the best ``count`` scores, and those that tie with the last."""
    keep = scores >= least_of_best(scores, count) - ROUNDING
    return rows[keep], scores[keep]


def least_of_best(scores: Scores, count: int) -> float:
    """The last of the best ``count`` scores, if there are so many."""
    return float(np.partition(scores, -count)[-count]) if len(scores) >= count else -math.inf


class Look(NamedTuple):
    """What was found in some lists, or some rows.

    Attributes:
        rows: those that may be among the nearest, and who ties with the last of these.
        scores: theirs, float64.
        tried: how many users are in the lists that were looked into.
        compared: how many of them qualify.
        ahead: how many are in lists that were not, in which there may be somebody nearer.
        share: about how many of the nearest qualify, in (0, 1]: of 50 or more in the nearest lists,
            or of the rows.
    """

    rows: Rows
    scores: Scores
    tried: int
    compared: int
    ahead: int
    share: float

    @classmethod
    def of(cls, found: tuple[bytes, bytes, int, int, int, float]) -> Look:
        """What the compiled loops return."""
        rows, scores, tried, compared, ahead, share = found
        near, theirs = np.frombuffer(rows, np.intp), np.frombuffer(scores)
        return cls(near, theirs, tried, compared, ahead, share)

    def followed_by(self, more: Look) -> Look:
        """What was found in these and other rows."""
        rows = np.concatenate([self.rows, more.rows])
        scores = np.concatenate([self.scores, more.scores])
        tried, compared = self.tried + more.tried, self.compared + more.compared
        return Look(rows, scores, tried, compared, more.ahead, self.share)


_NOBODY: Final = Look(NO_ROWS, np.empty(0), 0, 0, 0, 1.0)


class Partition:
    """Lists of neighbouring rows around centroids, and what may be expected in them.

    The centroids are found by spherical k-means (Dhillon & Modha, "Concept Decompositions for Large
    Sparse Text Data Using Clustering", 2001). Some users are asked about, to learn how similar the
    best of all lists can be whose centroids are so similar to a vector, or less: where that is less
    than what was found already, a search can stop. So it is the vectors who say how far it goes:
    through a few lists where styles are clusters, through most lists where there are none.

    Args:
        centroids: unit vectors, float32, ``[lists, dim]``.
        limits: float32, ``[steps]``: for scores of centroids from -1 to 1 in equal steps, the score
            that nobody has in such lists, nor in those of lower scores.
        starts: where each list begins among the sorted rows, and where the last one ends,
            ``[lists + 1]``.
        familiar: whoever is less similar to a centroid is a stranger: in no list, as nothing was
            learnt about the likes of them.

    Attributes:
        rows: how many rows are sorted into lists.
    """

    def __init__(self, centroids: Vector, limits: Vector, starts: Rows, familiar: float) -> None:
        self.centroids = centroids
        self.limits = limits
        self.starts = starts
        self.familiar = familiar
        self.rows = int(starts[-1])
        self._coded = Coded.of(centroids)

    def __len__(self) -> int:
        return len(self.centroids)

    @classmethod
    def of(cls, vectors: Vector, lists: npt.NDArray[np.uint16], centroids: Vector) -> Partition:
        """Find out what may be expected in lists.

        Args:
            vectors: sorted by their lists, ``[n, dim]``.
            lists: of the vectors, ascending, ``[n]``.
            centroids: of the lists.
        """
        starts = list_starts(lists, len(centroids))
        asked = np.linspace(0, len(vectors) - 1, min(_ASKED, len(vectors))).astype(np.intp)
        limits = _limits(vectors, asked, starts, centroids)
        own = np.einsum("ij,ij->i", vectors[asked], centroids[lists[asked]])
        return cls(centroids, limits, starts, float(np.quantile(own, 1 - _LIMIT_QUANTILE)))

    def assign(self, vectors: Vector) -> npt.NDArray[np.uint16]:
        """The nearest list of each vector, ``[n]``; ``len(self)`` for strangers."""
        lists = nearest_centroids(vectors, self.centroids)
        own = np.einsum("ij,ij->i", vectors, self.centroids[lists])
        lists[own < self.familiar] = len(self)
        return lists

    def look(
        self,
        coded: Coded,
        query: Vector,
        tests: list[Test],
        excluded: Rows,
        count: int,
        least: float,
        most_tried: int,
        seen: Mask,
        among: list[npt.NDArray[Any]] | None = None,
    ) -> Look:
        """The nearest to a vector, of those in the lists nearest to it.

        Args:
            coded: the sorted rows, and perhaps more.
            query: unit vector, float32, ``[dim]``.
            tests: whoever passes all of them qualifies.
            excluded: rows to leave out, ascending.
            count: how many are wanted.
            least: the least score of those.
            most_tried: no further list is looked into after so many users.
            seen: lists that were looked into; these are added.
            among: of these rows only, as in :meth:`VectorRows.nearest`, the others are not tried.
        """
        centres = self._coded
        lists = centres.codes, centres.scales, centres.error, self.limits, self.starts, seen
        return Look.of(
            scan.look(lists, coded, among, query, tests, excluded, count, least, most_tried)
        )


def list_starts(lists: npt.NDArray[np.uint16], count: int) -> Rows:
    """Where each of ``count`` lists begins among rows sorted by them, and where the last ends."""
    starts: Rows = np.searchsorted(lists, np.arange(count + 1))
    return starts


def find_centroids(vectors: Vector, seed: int) -> Vector:
    """Centroids for unit vectors ``[n, dim]``: unit vectors, ``[lists, dim]``."""
    rng = np.random.default_rng(seed)
    lists = min(max(len(vectors) // _ROWS_PER_LIST, 1), _MAX_LISTS)
    size = min(len(vectors), _SAMPLE_PER_LIST * lists)
    sample = vectors[np.sort(rng.choice(len(vectors), size, replace=False))]
    centroids: Vector = sample[rng.choice(size, lists, replace=False)]
    for _ in range(_ITERATIONS):
        nearest = nearest_centroids(sample, centroids)
        order = np.argsort(nearest, kind="stable")
        used, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts, axis=0)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids[used] = np.divide(sums, norms, out=centroids[used], where=norms > 0)
    return centroids


def nearest_centroids(vectors: Vector, centroids: Vector) -> npt.NDArray[np.uint16]:
    """The nearest centroid of each vector, ``[n]``."""
    nearest = np.empty(len(vectors), np.uint16)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        some = vectors[start : start + _BLOCK_ROWS]
        nearest[start : start + len(some)] = (some @ centroids.T).argmax(axis=1)
    return nearest


def _limits(vectors: Vector, asked: Rows, starts: Rows, centroids: Vector) -> Vector:
    """For scores of centroids, the best score in such lists, and in those of lower scores.

    That of 99 in 100 of the users who are asked about, themselves left out.
    """
    filled = np.flatnonzero(np.diff(starts))
    steps = np.linspace(-1, 1, _LIMITS, dtype=np.float32)
    steps[-1] = np.inf  # rounding
    best = np.empty((len(asked), _LIMITS), np.float32)
    at_once = max(_SCORES_AT_ONCE // len(vectors), 1)
    for first in range(0, len(asked), at_once):
        some = asked[first : first + at_once]
        scores = vectors[some] @ vectors.T
        scores[np.arange(len(some)), some] = -1
        of_lists = np.maximum.reduceat(scores, starts[filled], axis=1)
        of_centroids = vectors[some] @ centroids[filled].T
        for place, (ours, theirs) in enumerate(zip(of_lists, of_centroids, strict=True), first):
            order = np.argsort(theirs)
            so_far = np.concatenate([[np.nan], np.maximum.accumulate(ours[order])])
            best[place] = so_far[np.searchsorted(theirs[order], steps, "right")]
    limits = np.ones(_LIMITS, np.float32)
    learnt = ~np.isnan(best).all(axis=0)
    limits[learnt] = np.nanquantile(best[:, learnt], _LIMIT_QUANTILE, axis=0, method="higher")
    limits[~learnt] = limits[learnt][0]  # nobody has so low scores; somebody who asks may
    ascending: Vector = np.maximum.accumulate(limits)
    return ascending
