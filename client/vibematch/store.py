"""The truth about an index: users, their photos' vectors and attributes, in one SQLite file.

A write is acknowledged when its method returns: it was one transaction, synced to the disk. One
process writes at a time (an exclusive file lock says so); any number of others read meanwhile.

The file is ``store.sqlite3`` in the index folder, marked by ``application_id`` and
``user_version`` (the format). ``sequence`` grows with every change and is a time in microseconds
since 1970, so that a store restored from a backup never gives out a number a second time.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from vibematch.errors import (
    InputError,
    ManifestError,
    ModelMismatchError,
    StoreError,
    StoreLockedError,
)
from vibematch.manifest import Manifest

Vector: TypeAlias = npt.NDArray[np.float32]
Value: TypeAlias = str | int | float | bool
"""What an attribute can be."""
Condition: TypeAlias = Value | Sequence[Value] | AbstractSet[Value] | tuple[float, float]
"""What a filter asks of an attribute: a value, one of a list or set, or a ``(low, high)`` range."""
Where: TypeAlias = Mapping[str, Condition]

FILENAME: Final = "store.sqlite3"
LOCK_FILENAME: Final = "lock"
APPLICATION_ID: Final = 0x7669_6265  # "vibe"
FORMAT: Final = 1

_SCHEMA: Final = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
CREATE TABLE meta (
    manifest TEXT NOT NULL,
    sequence INTEGER NOT NULL
);
CREATE TABLE users (
    user_id TEXT PRIMARY KEY,
    attributes TEXT NOT NULL,
    revision INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX users_by_revision ON users (revision);
CREATE TABLE photos (
    id INTEGER PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users ON DELETE CASCADE,
    content_sha256 TEXT NOT NULL,
    path TEXT,
    vector BLOB NOT NULL,
    UNIQUE (user_id, content_sha256)
);
"""
_ONE_OF: Final = "json_extract(attributes, ?) IN (SELECT value FROM json_each(?))"
_IN_RANGE: Final = "json_extract(attributes, ?) BETWEEN ? AND ?"
_USERS_PER_QUERY: Final = 10_000


@dataclass(frozen=True)
class StoredPhoto:
    """One photo as the store keeps it.

    Attributes:
        content_sha256: hex digest of the photo file, which recognises it when it comes again.
        vector: its unit vector, float32, ``[embedding_dim]``.
        path: the file, where there is one.
    """

    content_sha256: str
    vector: Vector
    path: str | None = None


@dataclass(frozen=True)
class Profile:
    """What to write about one user.

    Attributes:
        user_id: whom it is about.
        photos: photos to add to those already there.
        attributes: replace the stored ones; ``None`` leaves them as they are.
    """

    user_id: str
    photos: Sequence[StoredPhoto] = ()
    attributes: Mapping[str, Value] | None = None


class ProfileStore:
    """Users, photos and attributes of one index. Use :meth:`open` or :meth:`create`.

    Attributes:
        path: the index folder.
        manifest: the model whose vectors these are.
        read_only: whether writing is refused.
        closed: whether :meth:`close` was called.
    """

    def __init__(
        self, path: Path, database: sqlite3.Connection, lock: IO[str] | None, manifest: Manifest
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.read_only = lock is None
        self.closed = False
        self._database = database
        self._lock_file = lock
        self._guard = threading.RLock()

    # --- opening and closing

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether an index folder is at ``path`` (a creation cut short does not count)."""
        file = path / FILENAME
        return file.is_file() and file.stat().st_size > 0

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> ProfileStore:
        """Make a new, empty index for vectors of one model, and open it for writing.

        Raises:
            StoreError: something else is there, or the folder cannot be written.
            StoreLockedError: another process is making it.
        """
        _require_empty(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"no index can be made at {path} ({error.strerror})") from error
        lock = _lock(path)
        try:
            with _readable_errors(path):
                database = sqlite3.connect(path / FILENAME, isolation_level=None)
                database.executescript(f"BEGIN; {_SCHEMA}")
                database.execute("INSERT INTO meta VALUES (?, ?)", (manifest.to_json(), _now_us()))
                database.execute("COMMIT")
                database.close()
        finally:
            lock.close()
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> ProfileStore:
        """Open an existing index.

        Args:
            path: the index folder.
            read_only: take no lock and write nothing; works beside a writer and on a read-only
                disk.

        Raises:
            StoreError: no index is there, or it is damaged, foreign, or of a newer format.
            StoreLockedError: another process is writing to it.
        """
        if not cls.exists(path):
            raise StoreError(f"no index at {path}; make one with `vibematch add {path} PHOTOS`")
        lock = None if read_only else _lock(path)
        try:
            with _readable_errors(path):
                database = _connect(path / FILENAME, read_only)
                manifest = _read_manifest(path, database)
        except BaseException:
            if lock is not None:
                lock.close()
            raise
        return cls(path, database, lock, manifest)

    def close(self) -> None:
        """Close the file and let others write; harmless when done twice."""
        with self._guard:
            self.closed = True
            self._database.close()
            if self._lock_file is not None:
                self._lock_file.close()

    def require_model(self, offered: Manifest) -> None:
        """Make sure that vectors of a model belong into this index.

        Raises:
            ModelMismatchError: they come from another model.
        """
        if offered.fingerprint != self.manifest.fingerprint:
            raise ModelMismatchError(
                f"the index at {self.path} holds vectors of model "
                f"{self.manifest.fingerprint[:12]}, but the encoder makes those of "
                f"{offered.fingerprint[:12]}: serve the first model again, or add the photos to a "
                "new index"
            )

    # --- writing

    def write(self, profiles: Iterable[Profile]) -> int:
        """Add photos and set attributes, of any number of users, in one transaction.

        A user who is not there yet is created with the first photo; a photo that its user already
        has is left alone.

        Returns:
            How many photos were new.

        Raises:
            StoreError: the index is read-only, or cannot be written; nothing was changed then.
        """
        with self._writing() as sequence:
            return sum(self._write_profile(profile, sequence) for profile in profiles)

    def remove(self, user_id: str) -> bool:
        """Delete a user with all photos; returns whether there was one.

        Raises:
            StoreError: the index is read-only, or cannot be written.
        """
        with self._writing():
            return (
                self._database.execute("DELETE FROM users WHERE user_id = ?", (user_id,)).rowcount
                > 0
            )

    def _write_profile(self, profile: Profile, sequence: int) -> int:
        user_id, execute = profile.user_id, self._database.execute
        if profile.photos:
            execute("INSERT OR IGNORE INTO users VALUES (?, '{}', ?)", (user_id, sequence))
        if profile.attributes is not None:
            text = json.dumps(dict(profile.attributes), ensure_ascii=False, allow_nan=False)
            execute("UPDATE users SET attributes = ? WHERE user_id = ?", (text, user_id))
        added = sum(
            execute(
                "INSERT OR IGNORE INTO photos (user_id, content_sha256, path, vector) "
                "VALUES (?, ?, ?, ?)",
                (user_id, photo.content_sha256, photo.path, photo.vector.astype("<f4").tobytes()),
            ).rowcount
            for photo in profile.photos
        )
        if added:  # the vector changed: whoever follows the revisions has to look again
            execute("UPDATE users SET revision = ? WHERE user_id = ?", (sequence, user_id))
        return added

    # --- reading

    @property
    def sequence(self) -> int:
        """Number of the last write."""
        return int(self._one("SELECT sequence FROM meta")[0])

    def count_users(self) -> int:
        """How many users there are."""
        return int(self._one("SELECT count(*) FROM users")[0])

    def count_photos(self) -> int:
        """How many photos there are."""
        return int(self._one("SELECT count(*) FROM photos")[0])

    def __contains__(self, user_id: object) -> bool:
        if not isinstance(user_id, str):
            return False
        return bool(self._all("SELECT 1 FROM users WHERE user_id = ?", user_id))

    def user_ids(self) -> set[str]:
        """All user ids."""
        return {user_id for (user_id,) in self._all("SELECT user_id FROM users")}

    def neighbours(self, user_id: str, count: int) -> list[str]:
        """Up to ``2 * count`` user ids, those around the place where ``user_id`` would sort."""
        before = self._all(
            "SELECT user_id FROM users WHERE user_id < ? ORDER BY user_id DESC LIMIT ?",
            user_id, count,
        )  # fmt: skip
        after = self._all(
            "SELECT user_id FROM users WHERE user_id > ? ORDER BY user_id LIMIT ?", user_id, count
        )
        return [name for (name,) in before + after]

    def attributes(self, user_id: str) -> dict[str, Value] | None:
        """A user's attributes, or ``None`` if there is no such user."""
        rows = self._all("SELECT attributes FROM users WHERE user_id = ?", user_id)
        return dict(json.loads(rows[0][0])) if rows else None

    def photo_paths(self, user_id: str) -> list[Path]:
        """Files of a user's photos, in the order they were added; those without a file left out."""
        rows = self._all(
            "SELECT path FROM photos WHERE user_id = ? AND path IS NOT NULL ORDER BY id", user_id
        )
        return [Path(path) for (path,) in rows]

    def has_photo(self, user_id: str, content_sha256: str) -> bool:
        """Whether a user has this very photo."""
        return bool(
            self._all(
                "SELECT 1 FROM photos WHERE user_id = ? AND content_sha256 = ?",
                user_id, content_sha256,
            )
        )  # fmt: skip

    def qualifying(self, where: Where) -> list[str]:
        """Users whose attributes meet every condition, sorted.

        Raises:
            InputError: a condition makes no sense.
        """
        clauses, values = _filter(where)
        sql = f"SELECT user_id FROM users WHERE {clauses} ORDER BY user_id"  # noqa: S608 (fixed text)
        return [user_id for (user_id,) in self._all(sql, *values)]

    def revisions(self, *, after: int) -> dict[str, int]:
        """User → sequence number of the last change of the vector, of those changed later."""
        return dict(self._all("SELECT user_id, revision FROM users WHERE revision > ?", after))

    def user_vectors(self, user_ids: Sequence[str]) -> Vector:
        """One vector per user: the mean over the user's photos, scaled to unit length.

        Where photos cancel out to (nearly) nothing, the first photo speaks for the user.

        Args:
            user_ids: users that exist.

        Returns:
            Unit vectors, float32, ``[number of users, embedding_dim]``, in the given order.
        """
        vectors = np.empty((len(user_ids), self.manifest.embedding_dim), np.float32)
        for start in range(0, len(user_ids), _USERS_PER_QUERY):
            some = user_ids[start : start + _USERS_PER_QUERY]
            vectors[start : start + len(some)] = self._some_user_vectors(some)
        return vectors

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let several reads see one and the same state, whatever a writer does meanwhile."""
        with self._guard, _readable_errors(self.path):
            self._database.execute("BEGIN")
            try:
                yield
            finally:
                self._database.execute("COMMIT")

    def _some_user_vectors(self, user_ids: Sequence[str]) -> Vector:
        rows = self._all(
            "SELECT user_id, vector FROM photos "
            "WHERE user_id IN (SELECT value FROM json_each(?)) ORDER BY user_id, id",
            json.dumps(user_ids),
        )
        dim = self.manifest.embedding_dim
        if any(len(blob) != 4 * dim for _, blob in rows):
            raise StoreError(
                f"the index at {self.path} is damaged (a vector is not {dim} numbers long): "
                "restore it from a backup, or add the photos to a new one"
            )
        owners = np.array([user_id for user_id, _ in rows], dtype=np.object_)
        photos = np.frombuffer(b"".join(blob for _, blob in rows), "<f4").reshape(-1, dim)
        starts = np.flatnonzero(np.concatenate([[True], owners[1:] != owners[:-1]]))
        means = _unit_means(photos, starts)
        place = {owner: row for row, owner in enumerate(owners[starts])}
        return means[[place[user_id] for user_id in user_ids]]

    def _all(self, sql: str, *values: object) -> list[Any]:
        with self._guard, _readable_errors(self.path):
            return self._database.execute(sql, values).fetchall()

    def _one(self, sql: str) -> Any:
        return self._all(sql)[0]

    @contextmanager
    def _writing(self) -> Iterator[int]:
        if self.read_only:
            raise StoreError(f"the index at {self.path} was opened read-only")
        with self._guard, _readable_errors(self.path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                before = self._database.total_changes
                sequence = max(self.sequence + 1, _now_us())
                yield sequence
                if self._database.total_changes != before:
                    self._database.execute("UPDATE meta SET sequence = ?", (sequence,))
                self._database.execute("COMMIT")
            except BaseException:
                self._database.rollback()
                raise


def value_from_text(text: str) -> Value:
    """Read an attribute from a CSV cell or the command line.

    What looks like a number becomes one, ``true`` and ``false`` become what they say.
    """
    if text in {"true", "false"}:
        return text == "true"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        # "007", "1_000" and "nan" are names, not numbers.
        if str(value) == text and math.isfinite(value):
            return value
    return text


def check_attributes(attributes: Mapping[str, Value]) -> None:
    """Refuse attributes that could not be stored and found again.

    Raises:
        InputError: naming the attribute.
    """
    for name, value in attributes.items():
        _check_name(name)
        _check_value(name, value)


def _check_name(name: object) -> None:
    # Names become JSON paths, which cannot express these two characters.
    if not isinstance(name, str) or not name.isprintable() or not name or set(name) & {'"', "\\"}:
        raise InputError(
            "an attribute's name must be printable text without quotes or backslashes, got "
            f"{name!r}"
        )


def _check_value(name: str, value: object) -> None:
    if not isinstance(value, str | int | float):  # bool is an int
        raise InputError(
            f"attribute {name!r} must be text, a number or true/false, got {type(value).__name__}"
        )
    if isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
        raise InputError(f"attribute {name!r} holds broken text: {value!r}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"attribute {name!r} is too large an integer: {value}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"attribute {name!r} must be finite, got {value}")


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which no encoding can store."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _filter(where: Where) -> tuple[str, list[object]]:
    clauses, values = ["TRUE"], []
    for name, condition in where.items():
        _check_name(name)
        path = f'$."{name}"'
        if isinstance(condition, tuple):
            low, high = _checked_range(name, condition)
            clauses.append(_IN_RANGE)
            values += [path, low, high]
            continue
        choices = list(condition) if isinstance(condition, list | AbstractSet) else [condition]
        for choice in choices:
            _check_value(name, choice)
        clauses.append(_ONE_OF)
        values += [path, json.dumps(choices)]
    return " AND ".join(clauses), values


def _checked_range(name: str, bounds: tuple[object, ...]) -> tuple[float, float]:
    numbers = [bound for bound in bounds if isinstance(bound, int | float) and bound == bound]
    if len(bounds) != 2 or len(numbers) != 2:
        raise InputError(
            f"the range for {name!r} must be (low, high), two numbers (one-of is a list), got "
            f"{bounds!r}"
        )
    largest = sys.float_info.max
    low, high = (float(max(-largest, min(number, largest))) for number in numbers)
    if low > high:
        raise InputError(f"the range for {name!r} is upside down: {low} is above {high}")
    return low, high


def _unit_means(photos: Vector, starts: npt.NDArray[np.intp]) -> Vector:
    """Mean direction of each run of rows that begins at ``starts``."""
    sums = np.add.reduceat(photos.astype(np.float64), starts, axis=0)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    lost = norms[:, 0] < 1e-6
    sums[lost] = photos[starts[lost]]
    norms[lost] = np.linalg.norm(sums[lost], axis=1, keepdims=True)
    means: Vector = (sums / norms).astype(np.float32)
    return means


def _require_empty(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise StoreError(f"{path} is a file; an index is a folder: name a new one")
    ours = (FILENAME, LOCK_FILENAME)
    if any(not entry.name.startswith(ours) for entry in path.iterdir()):
        raise StoreError(f"{path} holds other files and no index; name a new folder")


def _lock(path: Path) -> IO[str]:
    try:
        file = (path / LOCK_FILENAME).open("a+", encoding="ascii")
    except OSError as error:
        raise StoreError(
            f"the index at {path} cannot be written ({error.strerror}); open it read-only"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise StoreLockedError(
            f"another process (pid {holder}) is writing to the index at {path}; "
            "wait for it, or open the index read-only"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _connect(file: Path, read_only: bool) -> sqlite3.Connection:
    uri = file.absolute().as_uri()
    mode = "ro" if read_only else "rw"
    database = sqlite3.connect(
        f"{uri}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
    )
    try:
        database.execute("PRAGMA schema_version")
    except sqlite3.OperationalError:
        # WAL needs a file beside the database; where none can be made, nobody writes either.
        if not read_only or file.with_name(f"{file.name}-wal").exists():
            raise
        database.close()
        database = sqlite3.connect(
            f"{uri}?immutable=1", uri=True, isolation_level=None, check_same_thread=False
        )
    if not read_only:
        database.execute("PRAGMA journal_mode = WAL")  # readers then never block, nor are blocked
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA synchronous = FULL")
    return database


def _read_manifest(path: Path, database: sqlite3.Connection) -> Manifest:
    if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StoreError(f"{path / FILENAME} is not a vibematch index; name another folder")
    written = database.execute("PRAGMA user_version").fetchone()[0]
    if written > FORMAT:
        raise StoreError(
            f"the index at {path} has format {written}; this version of vibematch reads up to "
            f"{FORMAT}: upgrade vibematch"
        )
    try:
        return Manifest.from_json(database.execute("SELECT manifest FROM meta").fetchone()[0])
    except (ManifestError, TypeError) as error:
        raise StoreError(f"the index at {path} is damaged ({error})") from error


@contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.ProgrammingError as error:
        raise StoreError(f"the index at {path} is closed") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"the index at {path} cannot be used ({error}): if its disk is fine and not full, "
            "restore it from a backup, or add the photos to a new one"
        ) from error


def _now_us() -> int:
    return time.time_ns() // 1000
