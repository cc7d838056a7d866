"""What ``search.py`` compares with: hnswlib, FAISS, USearch, numpy, each behind the same calls."""

# ruff: noqa: D102  (Peer says what the calls do)

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, Self

import numpy as np
from search_data import Mask, Rows, Vector, best

M: Final = 16
"""Links per user and level of the graphs; twice as many on the lowest."""
EF_CONSTRUCTION: Final = 200
"""Candidates in view when a user is added."""
SEED: Final = 100


class Peer(Protocol):
    """A library's index; users are numbered by row."""

    name: ClassVar[str]

    @classmethod
    def build(cls, vectors: Vector, threads: int) -> Self:
        """An index of unit vectors, ``[users, dim]``."""

    @classmethod
    def load(cls, path: Path, shape: tuple[int, ...]) -> Self:
        """What :meth:`save` wrote; ``shape`` is that of the vectors."""

    def save(self, path: Path) -> None:
        """Write all of it to a file."""

    def ask(self, query: Vector, top_k: int) -> Rows:
        """The nearest rows, best first."""


class Graph(Peer, Protocol):
    """One that can be told how long to look."""

    def set_ef(self, ef: int) -> None:
        """Candidates in view during a search."""


class Hnswlib:
    """https://github.com/nmslib/hnswlib."""

    name: ClassVar = "hnswlib"

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        graph.set_num_threads(1)

    @classmethod
    def build(cls, vectors: Vector, threads: int) -> Self:
        import hnswlib

        graph = hnswlib.Index(space="ip", dim=vectors.shape[1])
        graph.init_index(len(vectors), M=M, ef_construction=EF_CONSTRUCTION, random_seed=SEED)
        graph.add_items(vectors, np.arange(len(vectors)), num_threads=threads)
        return cls(graph)

    @classmethod
    def load(cls, path: Path, shape: tuple[int, ...]) -> Self:
        import hnswlib

        graph = hnswlib.Index(space="ip", dim=shape[1])
        graph.load_index(str(path))
        return cls(graph)

    def save(self, path: Path) -> None:
        self._graph.save_index(str(path))

    def set_ef(self, ef: int) -> None:
        self._graph.set_ef(ef)

    def ask(self, query: Vector, top_k: int) -> Rows:
        rows: Rows = self._graph.knn_query(query, k=top_k)[0][0]
        return rows

    def ask_filtered(self, query: Vector, top_k: int, mask: Mask) -> Rows:
        """With a call to Python for each label met; none where it finds fewer than wanted."""
        look_up = mask.view(np.uint8).data.__getitem__  # quicker than the array's own
        try:
            rows: Rows = self._graph.knn_query(query, k=top_k, filter=look_up)[0][0]
        except RuntimeError:
            return np.empty(0, np.intp)
        return rows


class _Faiss:
    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def load(cls, path: Path, shape: tuple[int, ...]) -> Self:
        import faiss

        return cls(faiss.read_index(str(path)))

    def save(self, path: Path) -> None:
        import faiss

        faiss.write_index(self._index, str(path))

    def ask(self, query: Vector, top_k: int) -> Rows:
        rows: Rows = self._index.search(query[np.newaxis], top_k)[1][0]
        return rows


class FaissHnsw(_Faiss):
    """``IndexHNSWFlat`` of https://github.com/facebookresearch/faiss."""

    name: ClassVar = "FAISS HNSW"

    @classmethod
    def build(cls, vectors: Vector, threads: int) -> Self:
        import faiss

        index = faiss.IndexHNSWFlat(vectors.shape[1], M, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        return cls(_filled(index, vectors, threads))

    def set_ef(self, ef: int) -> None:
        self._index.hnsw.efSearch = ef


class FaissFlat(_Faiss):
    """``IndexFlatIP``: exact, looks at everybody."""

    name: ClassVar = "FAISS flat"

    @classmethod
    def build(cls, vectors: Vector, threads: int) -> Self:
        import faiss

        return cls(_filled(faiss.IndexFlatIP(vectors.shape[1]), vectors, threads))


def _filled(index: Any, vectors: Vector, threads: int) -> Any:
    import faiss

    faiss.omp_set_num_threads(threads)
    index.add(vectors)
    faiss.omp_set_num_threads(1)
    return index


class USearch:
    """https://github.com/unum-cloud/usearch, float32 like the others."""

    name: ClassVar = "USearch"

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: Vector, threads: int) -> Self:
        index = cls._empty(vectors.shape[1])
        index.add(np.arange(len(vectors)), vectors, threads=threads)
        return cls(index)

    @classmethod
    def load(cls, path: Path, shape: tuple[int, ...]) -> Self:
        index = cls._empty(shape[1])
        index.load(str(path))
        return cls(index)

    @staticmethod
    def _empty(dim: int) -> Any:
        from usearch.index import Index

        return Index(
            ndim=dim, metric="ip", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION
        )

    def save(self, path: Path) -> None:
        self._index.save(str(path))

    def set_ef(self, ef: int) -> None:
        self._index.expansion_search = ef

    def ask(self, query: Vector, top_k: int) -> Rows:
        rows: Rows = self._index.search(query, top_k, threads=1).keys
        return rows


class Numpy:
    """No index: a product with all vectors, or with those who qualify."""

    name: ClassVar = "numpy"

    def __init__(self, vectors: Vector) -> None:
        self._vectors = vectors

    @classmethod
    def build(cls, vectors: Vector, threads: int) -> Self:
        return cls(vectors)

    @classmethod
    def load(cls, path: Path, shape: tuple[int, ...]) -> Self:
        return cls(np.load(path))

    def save(self, path: Path) -> None:
        with path.open("wb") as file:  # np.save would add an ending to the name
            np.save(file, self._vectors)

    def ask(self, query: Vector, top_k: int) -> Rows:
        return best(self._vectors @ query, None, top_k)

    def ask_all(self, query: Vector, top_k: int, mask: Mask) -> Rows:
        """A product with everybody, then those who qualify."""
        rows = np.flatnonzero(mask)
        return best((self._vectors @ query)[rows], rows, top_k)

    def ask_some(self, query: Vector, top_k: int, mask: Mask) -> Rows:
        """A product with copies of those who qualify."""
        rows = np.flatnonzero(mask)
        return best(self._vectors[rows] @ query, rows, top_k)


PEERS: Final[tuple[type[Peer], ...]] = (Hnswlib, FaissHnsw, FaissFlat, USearch)
