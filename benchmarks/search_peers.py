"""What ``search.py`` compares with that keeps an index in memory, each behind the same calls."""

# ruff: noqa: D102  (Peer says what the calls do)

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Self, TypeAlias

import numpy as np
from search_data import Case, People, Rows, Vector, best

Setting: TypeAlias = int | str
"""How an index is asked: how many candidates it keeps in view, or by what means it looks."""

M: Final = 16
"""Links per user and level of the graphs; twice as many on the lowest."""
EF_CONSTRUCTION: Final = 200
"""Candidates in view when a user is added."""
SEED: Final = 100
PROBES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)
EFS: Final = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)


class Built(NamedTuple):
    """Seconds of building on all cores.

    Attributes:
        ready_s: from vectors to an index that answers.
        index_s: of these, the index alone, where it is made by itself.
    """

    ready_s: float
    index_s: float | None = None


class Peer(ABC):
    """Who is asked, from one thread; users are numbered by row."""

    name: ClassVar[str]
    needs: ClassVar[Sequence[str]]
    """Modules without which it cannot be had."""
    durable: ClassVar[str] = "no"
    """Whether a change is on the disk when the call that made it returns."""

    @abstractmethod
    def settings(self, case: Case) -> Sequence[Setting]:
        """How it can be asked, the quickest first; none for what it cannot be asked."""

    @abstractmethod
    def ask(self, case: Case, query: int, top_k: int, setting: Setting) -> Any:
        """The nearest of those who qualify, as the library gives them."""

    def rows(self, answer: Any) -> Rows:
        """The rows in what :meth:`ask` gave, best first; fewer than asked for are allowed."""
        rows: Rows = np.asarray(answer)
        return rows

    def pids(self) -> Sequence[int]:
        """Other processes that it runs in."""
        return ()

    def close(self) -> None:  # noqa: B027  (most have nothing to end)
        """End what it started."""


class Index(Peer):
    """One that is built, and kept in files."""

    most_users: ClassVar[float] = math.inf
    """It takes too long to build with more."""

    @classmethod
    @abstractmethod
    def build(cls, path: Path, people: People, threads: int) -> Built:
        """Put all users in, in the order of their rows, and leave the index at ``path``."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path, dim: int) -> Self:
        """What :meth:`build` left; ``dim`` is the length of a vector."""


def timed(work: Callable[[], Any]) -> Built:
    """Do it, and say how long it took."""
    began = time.perf_counter()
    work()
    return Built(time.perf_counter() - began)


class Hnswlib(Index):
    """https://github.com/nmslib/hnswlib; a filter is a Python function, called per user met."""

    name = "hnswlib"
    needs = ("hnswlib",)

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        graph.set_num_threads(1)

    @classmethod
    def build(cls, path: Path, people: People, threads: int) -> Built:
        import hnswlib

        vectors = people.vectors
        graph = hnswlib.Index(space="ip", dim=vectors.shape[1])
        graph.init_index(len(vectors), M=M, ef_construction=EF_CONSTRUCTION, random_seed=SEED)
        built = timed(lambda: graph.add_items(vectors, np.arange(len(vectors)), threads))
        graph.save_index(str(path))
        return built

    @classmethod
    def open(cls, path: Path, dim: int) -> Self:
        import hnswlib

        graph = hnswlib.Index(space="ip", dim=dim)
        graph.load_index(str(path))
        return cls(graph)

    def settings(self, case: Case) -> Sequence[Setting]:
        return EFS

    def ask(self, case: Case, query: int, top_k: int, setting: Setting) -> Any:
        self._graph.set_ef(setting)
        if case.mask is None:
            return self._graph.knn_query(case.vector(query), k=top_k)[0][0]
        look_up = case.mask(query).view(np.uint8).data.__getitem__  # quicker than the array's own
        try:
            return self._graph.knn_query(case.vector(query), k=top_k, filter=look_up)[0][0]
        except RuntimeError:  # it finds fewer than wanted, and gives none of them
            return np.empty(0, np.intp)


class FaissIndex(Index):
    """One of https://github.com/facebookresearch/faiss; filtered by a bitmap."""

    needs = ("faiss",)

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    @abstractmethod
    def empty(cls, users: int, dim: int) -> Any:
        """The library's index, for so many users."""

    @abstractmethod
    def asked(self, setting: Setting, **only: Any) -> Any:
        """The library's parameters of a search; ``only`` may hold a filter."""

    @classmethod
    def build(cls, path: Path, people: People, threads: int) -> Built:
        import faiss

        index = cls.empty(*people.vectors.shape)

        def fill() -> None:
            if not index.is_trained:
                index.train(people.vectors)
            index.add(people.vectors)

        faiss.omp_set_num_threads(threads)
        built = timed(fill)
        faiss.omp_set_num_threads(1)
        faiss.write_index(index, str(path))
        return built

    @classmethod
    def open(cls, path: Path, dim: int) -> Self:
        import faiss

        return cls(faiss.read_index(str(path)))

    def ask(self, case: Case, query: int, top_k: int, setting: Setting) -> Any:
        import faiss

        only = {}
        if case.mask is not None:
            bits = np.packbits(case.mask(query), bitorder="little")
            only["sel"] = faiss.IDSelectorBitmap(bits)
        asked = self.asked(setting, **only)
        return self._index.search(case.vector(query)[np.newaxis], top_k, params=asked)[1][0]

    def rows(self, answer: Any) -> Rows:
        return _found(answer)


class FaissHnsw(FaissIndex):
    """``IndexHNSWFlat``: a graph."""

    name = "FAISS HNSW"

    @classmethod
    def empty(cls, users: int, dim: int) -> Any:
        import faiss

        index = faiss.IndexHNSWFlat(dim, M, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        return index

    def settings(self, case: Case) -> Sequence[Setting]:
        return EFS

    def asked(self, setting: Setting, **only: Any) -> Any:
        import faiss

        return faiss.SearchParametersHNSW(efSearch=setting, **only)


class FaissIvf(FaissIndex):
    """``IndexIVFFlat``: lists, of which a fixed number is looked into.

    4√n lists, the least that FAISS's "Guidelines to choose an index" name for so many vectors.
    """

    name = "FAISS IVF"

    @classmethod
    def empty(cls, users: int, dim: int) -> Any:
        import faiss

        lists = round(4 * math.sqrt(users))
        return faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)

    def settings(self, case: Case) -> Sequence[Setting]:
        return PROBES

    def asked(self, setting: Setting, **only: Any) -> Any:
        import faiss

        return faiss.SearchParametersIVF(nprobe=setting, **only)


def _found(rows: Rows) -> Rows:
    """FAISS fills up with -1 where it finds fewer."""
    found: Rows = rows[rows >= 0]
    return found


class USearch(Index):
    """https://github.com/unum-cloud/usearch, float32 like the others; Python has no filter."""

    name = "USearch"
    needs = ("usearch",)

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, path: Path, people: People, threads: int) -> Built:
        vectors = people.vectors
        index = cls._empty(vectors.shape[1])
        built = timed(lambda: index.add(np.arange(len(vectors)), vectors, threads=threads))
        index.save(str(path))
        return built

    @classmethod
    def open(cls, path: Path, dim: int) -> Self:
        index = cls._empty(dim)
        index.load(str(path))
        return cls(index)

    @staticmethod
    def _empty(dim: int) -> Any:
        from usearch.index import Index

        return Index(
            ndim=dim, metric="ip", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION
        )

    def settings(self, case: Case) -> Sequence[Setting]:
        return EFS if case.mask is None else ()

    def ask(self, case: Case, query: int, top_k: int, setting: Setting) -> Any:
        self._index.expansion_search = setting
        return self._index.search(case.vector(query), top_k, threads=1).keys


class FaissFlat(Peer):
    """FAISS's ``IndexFlatIP``: exact, compares with everybody, or with a list of rows."""

    name = "FAISS flat"
    needs = ("faiss",)

    def __init__(self, vectors: Vector) -> None:
        import faiss

        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(vectors)

    def settings(self, case: Case) -> Sequence[Setting]:
        return ("everybody",) if case.mask is None else ("who qualifies",)

    def ask(self, case: Case, query: int, top_k: int, setting: Setting) -> Any:
        import faiss

        only = {}
        if case.mask is not None:
            only["sel"] = faiss.IDSelectorArray(np.flatnonzero(case.mask(query)))
        asked = faiss.SearchParameters(**only)
        return self._index.search(case.vector(query)[np.newaxis], top_k, params=asked)[1][0]

    def rows(self, answer: Any) -> Rows:
        return _found(answer)


class Numpy(Peer):
    """A product with all vectors, or with copies of those who qualify."""

    name = "numpy"
    needs = ("numpy",)

    def __init__(self, vectors: Vector) -> None:
        self._vectors = vectors

    def settings(self, case: Case) -> Sequence[Setting]:
        return ("everybody",) if case.mask is None else ("who qualifies", "everybody")

    def ask(self, case: Case, query: int, top_k: int, setting: Setting) -> Any:
        vector, mask = case.vector(query), None if case.mask is None else case.mask(query)
        if mask is None:
            return best(self._vectors @ vector, None, top_k)
        if setting == "everybody":
            return best((self._vectors @ vector)[mask], np.flatnonzero(mask), top_k)
        return best(self._vectors[mask] @ vector, np.flatnonzero(mask), top_k)
