"""The search index on disk, so that the next start is quick. It can always be made anew.

Two files in the folder of a generation:

``snapshot``
    one line ``vibematch-snapshot 4 SHA256``, the digest being that of all bytes behind it; one
    line of JSON (:class:`_Header`), padded with spaces so that what follows begins at a multiple
    of 64; then arrays by row, little-endian: the vectors (float32), their codes (int8) and the
    codes' scales (float32), the users' ids and the revisions of their vectors (int64; id 0 where a
    row is free), their lists (uint16); then of the lists the centroids and the limits (float32).
``snapshot.graph-SHA256``
    the graph as hnswlib saves it, named by the first half of its digest, which is in the header.

hnswlib's loader trusts its input, so it sees only bytes whose digest was right. The vectors and
their codes are mapped, not read: all processes share them, and the kernel may drop them.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from vibematch.folder import sync_folder
from vibematch.vectors import Coded, Partition, Vector, list_starts

FILENAME: Final = "snapshot"

_MAGIC: Final = "vibematch-snapshot 4"
_ALIGNMENT: Final = 64
_TRIES: Final = 3


@dataclass(frozen=True)
class _Header:
    fingerprint: str
    sequence: int
    hnswlib: str
    dim: int
    rows: int
    lists: int
    limits: int
    sorted_rows: int
    familiar: float
    code_error: float
    graph_sha256: str


@dataclass(frozen=True)
class Snapshot:
    """What a snapshot holds.

    Attributes:
        sequence: number of the last write that it knows.
        dim: length of a vector.
        vectors: by row, ``[rows, dim]``, and their codes, in blocks; read: one block, mapped.
        ids: users' ids by row, int64 ``[rows]``, 0 where a row is free.
        revisions: of their vectors, int64 ``[rows]``.
        lists: their lists, uint16 ``[rows]``.
        partition: the lists; there are none before there are many users.
        graph: hnswlib's index.
    """

    sequence: int
    dim: int
    vectors: Sequence[Coded]
    ids: npt.NDArray[np.int64]
    revisions: npt.NDArray[np.int64]
    lists: npt.NDArray[np.uint16]
    partition: Partition | None
    graph: Any


def new_graph(dim: int) -> Any:
    """An hnswlib index without a graph yet, for unit vectors."""
    import hnswlib  # here, so that commands which never search start fast

    return hnswlib.Index(space="ip", dim=dim)


def write_snapshot(folder: Path, fingerprint: str, snapshot: Snapshot) -> Coded:
    """Write a snapshot; the old one stays whole until the new one is on the disk.

    Args:
        folder: of the generation.
        fingerprint: the model's.
        snapshot: what to write.

    Returns:
        The vectors, mapped from the new file.

    Raises:
        OSError: the disk does not take it.
    """
    whole, graph = folder / f"{FILENAME}.tmp", folder / f"{FILENAME}.graph.tmp"
    vectors, partition = snapshot.vectors, snapshot.partition
    of_lists: list[Vector] = [] if partition is None else [partition.centroids, partition.limits]
    try:
        digest = _write_graph(graph, snapshot.graph)
        header = _Header(
            fingerprint=fingerprint,
            sequence=snapshot.sequence,
            hnswlib=version("hnswlib"),
            dim=snapshot.dim,
            rows=len(snapshot.ids),
            lists=0 if partition is None else len(partition),
            limits=0 if partition is None else len(partition.limits),
            sorted_rows=0 if partition is None else partition.rows,
            familiar=0.0 if partition is None else partition.familiar,
            code_error=max((block.error for block in vectors), default=0.0),
            graph_sha256=digest,
        )
        offset = _write_whole(
            whole,
            header,
            [
                *(block.vectors for block in vectors),
                *(block.codes for block in vectors),
                *(block.scales for block in vectors),
                *(snapshot.ids, snapshot.revisions, snapshot.lists),
                *of_lists,
            ],
        )
        graph.replace(_graph_path(folder, digest))
        whole.replace(folder / FILENAME)
        sync_folder(folder)
    finally:
        whole.unlink(missing_ok=True)
        graph.unlink(missing_ok=True)
    for old in folder.glob(f"{FILENAME}.graph-*"):
        if old != _graph_path(folder, digest):
            old.unlink(missing_ok=True)
    with (folder / FILENAME).open("rb") as file:
        return _read_coded(file, header, offset)


def read_snapshot(folder: Path, fingerprint: str, dim: int) -> Snapshot | None:
    """Read the snapshot, ``None`` if there is none that can be trusted.

    Args:
        folder: of the generation.
        fingerprint: the model that the vectors have to come from.
        dim: length of a vector.
    """
    for _ in range(_TRIES):  # a writer may replace both files in between
        try:
            return _read(folder, fingerprint, dim)
        except FileNotFoundError:
            continue
        except (OSError, RuntimeError, TypeError, ValueError):
            return None  # RuntimeError: hnswlib does not like its own file; the others: the header
    return None


def _read(folder: Path, fingerprint: str, dim: int) -> Snapshot | None:
    with (folder / FILENAME).open("rb") as file:
        first = file.readline(len(_MAGIC) + 100).decode(errors="replace")
        start = file.tell()
        if first != _first_line(hashlib.file_digest(file, "sha256").hexdigest()):
            return None
        file.seek(start)
        header = _Header(**json.loads(file.readline()))
        expected = (fingerprint, dim, version("hnswlib"))
        if (header.fingerprint, header.dim, header.hnswlib) != expected:
            return None
        return Snapshot(
            sequence=header.sequence,
            dim=dim,
            vectors=[_read_coded(file, header, file.tell())],
            ids=_array(file, "<i8", header.rows),
            revisions=_array(file, "<i8", header.rows),
            lists=(lists := _array(file, "<u2", header.rows)),
            partition=_read_partition(file, header, lists),
            graph=_read_graph(folder, header),
        )


def _read_partition(
    file: IO[bytes], header: _Header, lists: npt.NDArray[np.uint16]
) -> Partition | None:
    centroids = _array(file, "<f4", header.lists * header.dim).reshape(-1, header.dim)
    limits = _array(file, "<f4", header.limits)
    if not (
        0 <= header.sorted_rows <= header.rows
        and lists.max(initial=0) <= header.lists
        and _are_sorted(lists[: header.sorted_rows], header.lists)
        and 0 <= header.code_error < math.inf
        and -1.1 <= header.familiar <= 1.1
        and (header.lists == 0 or (len(limits) > 1 and (np.diff(limits) >= 0).all()))
        and np.isfinite(centroids).all()
    ):
        raise ValueError("what a scan relies on makes no sense")
    if not header.lists:
        return None
    starts = list_starts(lists[: header.sorted_rows], header.lists)
    return Partition(centroids, limits, starts, header.familiar)


def _are_sorted(lists: npt.NDArray[np.uint16], count: int) -> bool:
    numbers = lists.astype(int)
    return bool((np.diff(numbers) >= 0).all()) and numbers.max(initial=-1) < count


def _read_graph(folder: Path, header: _Header) -> Any:
    with _graph_path(folder, header.graph_sha256).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != header.graph_sha256:
            raise RuntimeError("the graph is damaged")
        file.seek(0)
        graph = new_graph(header.dim)
        graph.load_index(f"/dev/fd/{file.fileno()}", max_elements=max(header.rows, 1))
        return graph


def _require(file: IO[bytes], offset: int, size: int) -> None:
    if not 0 <= size <= os.fstat(file.fileno()).st_size - offset:
        raise ValueError("it ends too early")


def _array(file: IO[bytes], dtype: str, count: int) -> npt.NDArray[Any]:
    size = count * np.dtype(dtype).itemsize
    _require(file, file.tell(), size)
    return np.frombuffer(file.read(size), dtype)


def _read_coded(file: IO[bytes], header: _Header, offset: int) -> Coded:
    """The vectors and codes mapped, the scales read; then the file is behind them."""
    shape = (header.rows, header.dim)
    count = header.rows * header.dim
    codes_offset = offset + np.dtype("<f4").itemsize * count
    _require(file, codes_offset, count)
    # At once: a search that is the first to touch a page would wait for it, one page at a time.
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # which only Linux has
    memory = mmap.mmap(file.fileno(), codes_offset + count, flags=flags, prot=mmap.PROT_READ)
    vectors = np.frombuffer(memory, "<f4", count, offset).reshape(shape)
    codes = np.frombuffer(memory, "i1", count, codes_offset).reshape(shape)
    file.seek(codes_offset + count)
    return Coded(vectors, codes, _array(file, "<f4", header.rows), header.code_error)


def _write_graph(path: Path, graph: Any) -> str:
    graph.save_index(str(path))
    if path.stat().st_size != graph.index_file_size():  # hnswlib does not check
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _write_whole(path: Path, header: _Header, arrays: Sequence[npt.NDArray[Any]]) -> int:
    """Write the file; returns where the arrays begin."""
    text = json.dumps(dataclasses.asdict(header)).encode()
    text += b" " * (-(len(_first_line("")) + 64 + len(text) + 1) % _ALIGNMENT) + b"\n"
    parts: list[Any] = [text, *(np.ascontiguousarray(each).reshape(-1) for each in arrays)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    with path.open("wb") as file:
        file.write(_first_line(digest.hexdigest()).encode())
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    return len(_first_line("")) + 64 + len(text)


def _first_line(digest: str) -> str:
    return f"{_MAGIC} {digest}\n"


def _graph_path(folder: Path, digest: str) -> Path:
    return folder / f"{FILENAME}.graph-{digest[:32]}"
