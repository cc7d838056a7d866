"""Vectors of photos that were encoded before: in memory, and in a file that processes share.

The file is a convenience. One that is damaged, foreign or of a newer format is refused when it is
opened; whatever goes wrong later turns it off and is logged, and the photos are encoded anew. Every
row carries a digest over its key and its vector, so that a damaged row counts as missing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from vibematch.errors import StoreError

Vector = npt.NDArray[np.float32]

_LOG = logging.getLogger(__name__)

APPLICATION_ID: Final = 0x7669_6263  # "vibc"
FORMAT: Final = 1
_BUSY_S: Final = 5.0
_DIGEST_BYTES: Final = 16
_SCHEMA: Final = """
CREATE TABLE vectors (
    key BLOB PRIMARY KEY,
    vector BLOB NOT NULL,
    digest BLOB NOT NULL
) WITHOUT ROWID
"""


def cache_key(fingerprint: str, photo: bytes, *, downscaled: bool) -> bytes:
    """What decides about a vector: the model, the photo's bytes, and how they travelled."""
    return f"{fingerprint} {downscaled:d} {hashlib.sha256(photo).hexdigest()}".encode()


class VectorCache:
    """Key → vector: the most recently used ones in memory, all of them in the file if there is one.

    Safe to share between threads; the file, between processes.

    Args:
        size: vectors to keep in memory, at most.
        path: the file; made if it is missing. ``None``: memory only.

    Raises:
        StoreError: the file cannot be used.
    """

    def __init__(self, size: int, path: str | os.PathLike[str] | None = None) -> None:
        self._size = size
        self._recent: OrderedDict[bytes, bytes] = OrderedDict()
        self._guard = threading.Lock()
        self._file = None if path is None else _File(Path(path))

    def get(self, key: bytes) -> Vector | None:
        """The vector, float32 ``[embedding_dim]``, the caller's own; ``None`` if there is none."""
        with self._guard:
            content = self._recent.get(key)
            if content is not None:
                self._recent.move_to_end(key)
        if content is None and self._file is not None:
            content = self._file.get(key)
            if content is not None:
                self._remember(key, content)
        return None if content is None else np.frombuffer(content, "<f4").astype(np.float32)

    def put(self, key: bytes, vector: Vector) -> None:
        """Keep a vector, float32 ``[embedding_dim]``."""
        content = vector.astype("<f4").tobytes()
        self._remember(key, content)
        if self._file is not None:
            self._file.put(key, content)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _remember(self, key: bytes, content: bytes) -> None:
        with self._guard:
            self._recent[key] = content
            self._recent.move_to_end(key)
            if len(self._recent) > self._size:
                self._recent.popitem(last=False)


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._database: sqlite3.Connection | None = None
        try:
            self._database = _open(path)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"the vector cache {path} cannot be used ({error}): delete it if it is damaged, or "
                "choose another cache_path"
            ) from error

    def get(self, key: bytes) -> bytes | None:
        with self._guard:
            if self._database is None:
                return None
            try:
                row = self._database.execute(
                    "SELECT vector, digest FROM vectors WHERE key = ?", (key,)
                ).fetchone()
            except sqlite3.Error as error:
                self._give_up(error)
                return None
        if row is None or not isinstance(row[0], bytes) or row[1] != _digest(key, row[0]):
            return None
        return row[0]

    def put(self, key: bytes, content: bytes) -> None:
        with self._guard:
            if self._database is None:
                return
            try:
                self._database.execute(
                    "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)",
                    (key, content, _digest(key, content)),
                )
            except sqlite3.Error as error:
                self._give_up(error)

    def close(self) -> None:
        with self._guard:
            self._close()

    def _give_up(self, error: sqlite3.Error) -> None:
        _LOG.warning("the vector cache %s is not used any more: %s", self._path, error)
        self._close()

    def _close(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        # Nothing waits for the disk: what a power cut takes or damages is encoded again.
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cell_size_check = ON")
        database.execute("PRAGMA trusted_schema = OFF")
        _require_cache(path, database)
        database.execute("PRAGMA journal_mode = WAL")
    except BaseException:
        database.close()
        raise
    return database


def _require_cache(path: Path, database: sqlite3.Connection) -> None:
    """Make sure that a file is a cache, and make it one if it is empty."""
    database.execute("BEGIN IMMEDIATE")  # another process may be making it
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if (application, version, tables) == (0, 0, 0):
        database.execute(_SCHEMA)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {FORMAT}")
    elif application != APPLICATION_ID:
        raise StoreError(f"{path} is a database, but no vector cache: choose another cache_path")
    elif version != FORMAT:
        raise StoreError(
            f"the vector cache {path} has format {version}, this version of vibematch reads "
            f"{FORMAT}: choose another cache_path"
        )
    database.execute("COMMIT")


def _digest(key: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(key + content, digest_size=_DIGEST_BYTES).digest()
