"""The users' vectors by row, and a coarse partition of them for scans that skip most of them."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = npt.NDArray[np.intp]

_BLOCK_ROWS: Final = 8192
_GATHER_ROWS: Final = 1024
"""So many vectors are copied together at a time: they stay in the processor's cache."""
_DENSE: Final = 0.5
"""From this share of a stretch on, all of it is multiplied: reading in order beats gathering."""

_CANCELLED: Final = 1e-6
_KEY_SEED: Final = 1
_KEY_STEPS: Final = 256

_ROWS_PER_LIST: Final = 400
_MAX_LISTS: Final = 2048
_SAMPLE_PER_LIST: Final = 32
_ITERATIONS: Final = 6


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


class VectorRows:
    """Unit vectors, float32, that are appended and never changed.

    They lie in blocks, so that growing copies nothing. The first block may be a mapped file.

    Args:
        dim: length of a vector.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._blocks: list[Vector] = []
        self._starts: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Vector:
        block = bisect_right(self._starts, row) - 1
        vector: Vector = self._blocks[block][row - self._starts[block]]
        return vector

    def append(self, vectors: Vector) -> None:
        """Add vectors, ``[n, dim]``, behind the last row."""
        while len(vectors):
            end = self._starts[-1] + len(self._blocks[-1]) if self._blocks else 0
            if self._count == end:
                self._starts.append(end)
                self._blocks.append(np.empty((_BLOCK_ROWS, self._dim), np.float32))
                end += _BLOCK_ROWS
            some = vectors[: end - self._count]
            place = self._count - self._starts[-1]
            self._blocks[-1][place : place + len(some)] = some
            self._count += len(some)
            vectors = vectors[len(some) :]

    def replace(self, vectors: Vector) -> None:
        """Have another array, ``[len(self), dim]``, hold what is there; the old memory is freed."""
        self._blocks, self._starts, self._count = [vectors], [0], len(vectors)

    def blocks(self) -> list[Vector]:
        """All vectors, in order."""
        ends = [*self._starts[1:], self._count]
        return [
            block[: end - start]
            for block, start, end in zip(self._blocks, self._starts, ends, strict=True)
        ]

    def take(self, rows: Rows) -> Vector:
        """Copies of the vectors in the given rows, ``[len(rows), dim]``."""
        if len(self._blocks) == 1:
            return self._blocks[0][rows]
        taken = np.empty((len(rows), self._dim), np.float32)
        block_of = np.searchsorted(self._starts, rows, "right") - 1
        for block in np.unique(block_of):
            here = block_of == block
            taken[here] = self._blocks[block][rows[here] - self._starts[block]]
        return taken

    def scores(self, rows: Rows, query: Vector) -> Vector:
        """Dot products of the given rows, in ascending order, with a vector: ``[len(rows)]``."""
        scores = np.empty(len(rows), np.float32)
        bounds = [*np.searchsorted(rows, self._starts), len(rows)]
        for block, start, low, high in zip(
            self._blocks, self._starts, bounds[:-1], bounds[1:], strict=True
        ):
            if low < high:
                _scores(block, rows[low:high] - start, query, scores[low:high])
        return scores


def _scores(block: Vector, rows: Rows, query: Vector, out: Vector) -> None:
    for start in range(0, len(rows), _GATHER_ROWS):
        some = rows[start : start + _GATHER_ROWS]
        first, end = some[0], some[-1] + 1
        if len(some) >= _DENSE * (end - first):
            scores = (block[first:end] @ query)[some - first]
        else:
            scores = block[some] @ query
        out[start : start + len(some)] = scores


class Partition:
    """Vectors sorted into lists around centroids, by spherical k-means.

    Dhillon & Modha, "Concept Decompositions for Large Sparse Text Data Using Clustering", 2001.

    Args:
        centroids: unit vectors, float32, ``[lists, dim]``.
    """

    def __init__(self, centroids: Vector) -> None:
        self.centroids = centroids

    def __len__(self) -> int:
        return len(self.centroids)

    @classmethod
    def of(cls, vectors: Vector, seed: int) -> Partition:
        """Find centroids for unit vectors, ``[n, dim]``."""
        rng = np.random.default_rng(seed)
        lists = min(max(len(vectors) // _ROWS_PER_LIST, 1), _MAX_LISTS)
        size = min(len(vectors), _SAMPLE_PER_LIST * lists)
        sample = vectors[np.sort(rng.choice(len(vectors), size, replace=False))]
        partition = cls(sample[rng.choice(size, lists, replace=False)])
        for _ in range(_ITERATIONS):
            nearest = partition.assign(sample)
            order = np.argsort(nearest, kind="stable")
            used, starts = np.unique(nearest[order], return_index=True)
            sums = np.add.reduceat(sample[order], starts, axis=0)
            norms = np.linalg.norm(sums, axis=1, keepdims=True)
            centroids = partition.centroids.copy()
            centroids[used] = np.divide(sums, norms, out=centroids[used], where=norms > 0)
            partition = cls(centroids)
        return partition

    def assign(self, vectors: Vector) -> npt.NDArray[np.uint16]:
        """The nearest list of each vector, ``[n]``."""
        nearest = np.empty(len(vectors), np.uint16)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            some = vectors[start : start + _BLOCK_ROWS]
            nearest[start : start + len(some)] = (some @ self.centroids.T).argmax(axis=1)
        return nearest

    def nearest_holding(
        self, query: Vector, lists: npt.NDArray[np.uint16], count: int
    ) -> npt.NDArray[np.bool_]:
        """Which lists to look into, the nearest ones, for at least ``count`` of some rows.

        Args:
            query: what they have to be near to.
            lists: the list of each row.
            count: how many of these rows are wanted.

        Returns:
            Booleans, one for each list.
        """
        order = np.argsort(-(self.centroids @ query))
        held = np.cumsum(np.bincount(lists, minlength=len(self))[order])
        chosen = np.zeros(len(self), bool)
        chosen[order[: np.searchsorted(held, count) + 1]] = True
        return chosen
