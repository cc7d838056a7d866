"""Nearest users in memory: an HNSW graph with an exact fallback, and its snapshot on disk.

The index follows the store and can always be rebuilt from it, so a snapshot that is missing, old
or damaged costs time, never data.

Snapshot file ``snapshot``: one line ``vibematch-snapshot 1 SHA256``, the digest being that of all
bytes after the line; one line of JSON (:class:`_Header`); the users' vectors as little-endian
float32; then the graph as hnswlib saves it. hnswlib's loader trusts its input, so it sees only
bytes whose digest was right.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]

FILENAME: Final = "snapshot"
EXACT_UP_TO: Final = 2_000
"""An index of this many users is scanned: as fast as the graph there, and exact."""

_MAGIC: Final = "vibematch-snapshot 1"
_M: Final = 16
_EF_CONSTRUCTION: Final = 200
_EF_SEARCH: Final = 64
_SEED: Final = 100
_FIRST_CAPACITY: Final = 1024
_ROUNDING: Final = 1e-5
"""More than float32 rounding can move a cosine."""


class Match(NamedTuple):
    """A user and how alike the style is, as cosine similarity in [-1, 1]."""

    user_id: str
    score: float

    def __repr__(self) -> str:
        return f"({self.user_id!r}, {self.score:.4f})"


@dataclass(frozen=True)
class _Header:
    fingerprint: str
    sequence: int
    hnswlib: str
    dim: int
    users: Sequence[str | None]  # by row; None where a row is free
    revisions: Mapping[str, int]


class HnswIndex:
    """Unit vectors of users, searchable by cosine similarity; safe to share between threads.

    Each user has a row, which is also the label in the graph. A deleted user's row is marked in
    the graph and given to the next new user.

    Args:
        dim: length of a vector.

    Attributes:
        sequence: the store's sequence number up to which this index has followed it.
    """

    def __init__(self, dim: int) -> None:
        self.sequence = 0
        self._dim = dim
        self._guard = threading.Lock()
        self._rows: dict[str, int] = {}
        self._revisions: dict[str, int] = {}
        self._users: list[str | None] = []
        self._free: list[int] = []
        self._vectors = np.zeros((_FIRST_CAPACITY, dim), np.float32)
        self._graph = _new_graph(dim)
        self._graph.init_index(
            _FIRST_CAPACITY, M=_M, ef_construction=_EF_CONSTRUCTION, random_seed=_SEED
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<HnswIndex: {len(self):,} users, {self._dim} dimensions>"

    def users(self) -> set[str]:
        """All users."""
        with self._guard:
            return set(self._rows)

    def revision(self, user_id: str) -> int | None:
        """The revision a user's vector was given with, ``None`` for an unknown user."""
        return self._revisions.get(user_id)

    def vector(self, user_id: str) -> Vector | None:
        """A user's vector, ``None`` for an unknown user."""
        with self._guard:
            row = self._rows.get(user_id)
            return None if row is None else self._vectors[row].copy()

    def upsert(self, revisions: Mapping[str, int], vectors: Vector) -> None:
        """Add users or replace their vectors.

        Args:
            revisions: user → revision of the vector.
            vectors: unit vectors, float32, ``[number of users, dim]``, in the same order.
        """
        if not revisions:
            return
        with self._guard:
            rows = np.array([self._row_for(user_id) for user_id in revisions], np.intp)
            self._vectors[rows] = vectors
            self._graph.add_items(vectors, rows)
            self._revisions.update(revisions)

    def delete(self, user_id: str) -> None:
        """Forget a user; nothing happens if there is no such user."""
        with self._guard:
            row = self._rows.pop(user_id, None)
            if row is None:
                return
            del self._revisions[user_id]
            self._users[row] = None
            self._free.append(row)
            self._graph.mark_deleted(row)

    def search(
        self,
        vector: Vector,
        top_k: int,
        *,
        among: Collection[str] | None = None,
        exclude: Collection[str] = (),
    ) -> list[Match]:
        """The most similar users.

        Args:
            vector: unit vector, float32, ``[dim]``.
            top_k: how many to return, at most.
            among: users to choose from; ``None`` for all. These are scanned one by one.
            exclude: users to leave out.

        Returns:
            Exactly ``min(top_k, eligible users)`` matches, best first, ties by user id.
        """
        with self._guard:
            excluded = {self._rows[user_id] for user_id in exclude if user_id in self._rows}
            if among is not None:
                rows = {self._rows[user_id] for user_id in among if user_id in self._rows}
            elif (found := self._ask_graph(vector, top_k + len(excluded))) is not None:
                rows = found
            else:
                rows = set(self._rows.values())
            return self._rank(np.array(list(rows - excluded), np.intp), vector, top_k)

    def save(self, directory: Path, fingerprint: str) -> None:
        """Write the snapshot; the old one stays whole until the new one is on the disk.

        Args:
            directory: the index folder.
            fingerprint: the model's.

        Raises:
            OSError: the disk does not take it.
        """
        whole, graph = directory / f"{FILENAME}.tmp", directory / f"{FILENAME}.graph.tmp"
        try:
            with self._guard:
                self._write_graph(graph)
                self._write_whole(whole, graph.read_bytes(), fingerprint)
            whole.replace(directory / FILENAME)
            _sync_directory(directory)
        finally:
            for scratch in (whole, graph):
                scratch.unlink(missing_ok=True)

    @classmethod
    def load(cls, directory: Path, *, fingerprint: str, dim: int) -> HnswIndex | None:
        """Read the snapshot, ``None`` if there is none that can be trusted.

        Args:
            directory: the index folder.
            fingerprint: the model that the vectors have to come from.
            dim: length of a vector.
        """
        try:
            with (directory / FILENAME).open("rb") as file:
                first = file.readline(len(_MAGIC) + 100).decode(errors="replace")
                start = file.tell()
                if first != _first_line(hashlib.file_digest(file, "sha256").hexdigest()):
                    return None
                file.seek(start)
                header = _Header(**json.loads(file.readline()))
                expected = (fingerprint, dim, version("hnswlib"))
                if (header.fingerprint, header.dim, header.hnswlib) != expected:
                    return None
                return cls._restore(header, file)
        except (OSError, RuntimeError):  # RuntimeError: hnswlib does not like its own file
            return None

    @classmethod
    def _restore(cls, header: _Header, file: IO[bytes]) -> HnswIndex:
        index = cls(header.dim)
        count = len(header.users)
        capacity = max(_FIRST_CAPACITY, count)
        index.sequence = header.sequence
        index._users = list(header.users)
        index._rows = {user: row for row, user in enumerate(header.users) if user is not None}
        index._free = [row for row, user in enumerate(header.users) if user is None]
        index._revisions = dict(header.revisions)
        index._vectors = np.zeros((capacity, header.dim), np.float32)
        vectors = np.frombuffer(file.read(count * header.dim * 4), "<f4")
        index._vectors[:count] = vectors.reshape(count, header.dim)
        with tempfile.NamedTemporaryFile(prefix="vibematch-") as graph:
            shutil.copyfileobj(file, graph)
            graph.flush()
            index._graph = _new_graph(header.dim)
            index._graph.load_index(graph.name, max_elements=capacity)
        return index

    def _write_graph(self, path: Path) -> None:
        self._graph.save_index(str(path))
        if path.stat().st_size != self._graph.index_file_size():  # hnswlib does not check
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _write_whole(self, path: Path, graph: bytes, fingerprint: str) -> None:
        header = _Header(
            fingerprint=fingerprint,
            sequence=self.sequence,
            hnswlib=version("hnswlib"),
            dim=self._dim,
            users=self._users,
            revisions=self._revisions,
        )
        parts = (
            json.dumps(dataclasses.asdict(header)).encode() + b"\n",
            self._vectors[: len(self._users)].astype("<f4", copy=False).data,
            graph,
        )
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        with path.open("wb") as file:
            file.write(_first_line(digest.hexdigest()).encode())
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())

    def _row_for(self, user_id: str) -> int:
        if user_id in self._rows:
            return self._rows[user_id]
        if self._free:
            row = self._free.pop()
            self._users[row] = user_id
        else:
            row = len(self._users)
            self._users.append(user_id)
            self._make_room(len(self._users))
        self._rows[user_id] = row
        return row

    def _make_room(self, count: int) -> None:
        capacity = len(self._vectors)
        if count <= capacity:
            return
        self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
        self._graph.resize_index(2 * capacity)

    def _ask_graph(self, vector: Vector, count: int) -> set[int] | None:
        """Rows of the ``count`` nearest users, or ``None`` where a scan serves better."""
        if len(self._rows) <= max(EXACT_UP_TO, 4 * count):
            return None
        self._graph.set_ef(max(_EF_SEARCH, 2 * count))
        try:
            labels, _ = self._graph.knn_query(vector[np.newaxis], k=count)
        except RuntimeError:  # the graph could not reach that many users
            return None
        return {int(label) for label in labels[0]}

    def _rank(self, rows: npt.NDArray[np.intp], vector: Vector, top_k: int) -> list[Match]:
        if len(rows) > top_k:
            rough = self._vectors[rows] @ vector
            border = np.partition(rough, -top_k)[-top_k]
            rows = rows[rough >= border - _ROUNDING]
        # Row by row in double precision: equal vectors get equal scores, so ties are real ties.
        scores = (self._vectors[rows].astype(np.float64) * vector).sum(axis=1).clip(-1.0, 1.0)
        matches = [
            Match(str(self._users[row]), float(score))
            for row, score in zip(rows, scores, strict=True)
        ]
        return sorted(matches, key=lambda match: (-match.score, match.user_id))[:top_k]


def _first_line(digest: str) -> str:
    return f"{_MAGIC} {digest}\n"


def _new_graph(dim: int) -> Any:
    import hnswlib  # here, so that commands which never search start fast

    return hnswlib.Index(space="ip", dim=dim)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
