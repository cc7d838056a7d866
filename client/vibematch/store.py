"""The truth about an index: users, their photos' vectors and attributes, in one SQLite file.

A write is acknowledged when its method returns: it was one transaction, synced to the disk. One
process writes at a time (an exclusive lock on the file ``lock`` says so); any number of others
read meanwhile.

The file is ``store.sqlite3`` in the folder of a generation (:mod:`vibematch.folder`), marked by
``application_id`` and ``user_version`` (the format). What is in it, and how damage is noticed:
:mod:`vibematch.records`. ``sequence`` grows with every change and is a time in microseconds since
1970, so that a store restored from a backup never gives out a number a second time.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import IO, Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from vibematch.attributes import Value
from vibematch.errors import (
    InputError,
    ManifestError,
    ModelMismatchError,
    StoreError,
)
from vibematch.folder import (
    FILENAME,
    lock_index,
    lock_next,
    newest_generation,
    next_folder,
    publish_generation,
    refuse_first_format,
    require_empty,
    sync_folder,
)
from vibematch.manifest import Manifest
from vibematch.records import (
    AMONG,
    PUT_PHOTO,
    PUT_USER,
    SCHEMA,
    Changes,
    Meta,
    Photo,
    Profile,
    StoredPhoto,
    User,
    UserRow,
    all_users,
    check_indexes,
    check_profile,
    checksum_of,
    damaged,
    name_of,
    photo_checksum,
    photos_of,
    read_meta,
    removed_after,
    sealed,
    updated,
    users_where,
    with_photos,
    wrapped,
)
from vibematch.vectors import Vector, unit_means

Ids: TypeAlias = Sequence[int] | npt.NDArray[np.int64]
"""Integer ids of users."""

APPLICATION_ID: Final = 0x7669_6265  # "vibe"
FORMAT: Final = 2

_PRAGMAS: Final = """
PRAGMA trusted_schema = OFF;
PRAGMA cell_size_check = ON;
PRAGMA secure_delete = ON;
PRAGMA synchronous = FULL;
PRAGMA cache_size = -512;
PRAGMA journal_size_limit = 67108864;
PRAGMA schema_version;
"""
_SCHEMA_QUERY: Final = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"

_BUSY_S: Final = 5.0
_CHECKPOINTS: Final = 50
_IDLE_CONNECTIONS: Final = 8
_WRITER_CACHE_KIB: Final = 32 * 1024
_LONGEST_VALUE: Final = 64 * 2**20
_PROFILES_PER_CHUNK: Final = 512
_USERS_PER_QUERY: Final = 2_000
_PAGES_PER_STEP: Final = 256


class ProfileStore:
    """Users, photos and attributes of one index. Use :meth:`open` or :meth:`create`.

    A store may be shared between threads; readers do not wait for writers. What a method returned
    before is what the next reads see, in whatever thread.

    Attributes:
        path: the index folder.
        folder: that of the generation, ``path / "1"`` at first.
        manifest: the model whose vectors these are.
        read_only: whether writing is refused.
        closed: whether :meth:`close` was called.
    """

    def __init__(self, path: Path, folder: Path, lock: IO[str] | None) -> None:
        self.path = path
        self.folder = folder
        self.read_only = lock is None
        self.closed = False
        self._lock_file = lock
        self._write_guard = threading.RLock()
        self._pool_guard = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._keeps_idle = _IDLE_CONNECTIONS
        self._thread = threading.local()
        self._indexes_checked = False
        self._opened_on_disk = self._on_disk()
        with _readable_errors(path):
            self._uri = _uri(folder / FILENAME, read_only=self.read_only)
            self._read_uri = self._uri.replace("?mode=rw", "?mode=ro")
            # A writer's own connection; in a reader it watches for changes.
            self._database = _connect(self._uri)
            try:
                if not self.read_only:
                    self._database.execute("PRAGMA journal_mode = WAL")
                    self._database.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
                self.manifest = _read_manifest(path, self._database)
                self._seen = self._state()
            except BaseException:
                self._database.close()
                raise

    # --- opening and closing

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether an index folder is at ``path`` (a creation cut short does not count)."""
        return newest_generation(path) is not None

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> ProfileStore:
        """Make a new, empty index for vectors of one model, and open it for writing.

        Raises:
            StoreError: something is there already, or the folder cannot be written.
            StoreLockedError: another process is making it.
        """
        require_empty(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"no index can be made at {path} ({error.strerror})") from error
        lock = lock_index(path)
        try:
            require_empty(path)  # another process may have been quicker
            unfinished = path / "1.new"
            try:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                _create_file(unfinished, manifest)
                publish_generation(unfinished, path / "1")
            except (OSError, sqlite3.Error) as error:
                raise StoreError(f"no index can be made at {path} ({error})") from error
            return cls(path, path / "1", lock)
        except BaseException:
            lock.close()
            raise

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> ProfileStore:
        """Open an existing index.

        Args:
            path: the index folder.
            read_only: take no lock and write nothing; works beside a writer and on a read-only
                disk.

        Raises:
            StoreError: no index is there, or it is damaged, foreign, or of another format.
            StoreLockedError: another process is writing to it.
        """
        if not cls.exists(path):
            refuse_first_format(path)
            raise StoreError(f"no index at {path}; make one with `vibematch add {path} PHOTOS`")
        lock = None if read_only else lock_index(path)
        try:
            return cls(path, path / str(newest_generation(path)), lock)
        except BaseException:
            if lock is not None:
                lock.close()
            raise

    @classmethod
    def open_next(cls, path: Path, manifest: Manifest) -> ProfileStore:
        """Open the generation that is to replace the present one, for writing; make it if new.

        It has a lock of its own, and nobody reads it before :meth:`publish`. What is there may be
        of another model than ``manifest``.

        Raises:
            StoreError: it cannot be written, or it is damaged.
            StoreLockedError: another process is filling it.
        """
        folder = next_folder(path)
        lock = lock_next(path, folder)
        try:
            if not (folder / FILENAME).exists():
                _create_file(folder, manifest)
            return cls(path, folder, lock)
        except (OSError, sqlite3.Error) as error:
            lock.close()
            raise StoreError(f"the index at {path} cannot be written ({error})") from error
        except BaseException:
            lock.close()
            raise

    def publish(self) -> None:
        """Close this store, which is from :meth:`open_next`, and let it answer from now on.

        The caller holds the index's lock.

        Raises:
            StoreError: the disk does not take it.
        """
        lock, self._lock_file = self._lock_file, None  # nobody else opens it before it has moved
        self.close()
        try:
            publish_generation(self.folder, self.path / self.folder.stem)
        except OSError as error:
            raise StoreError(f"the index at {self.path} cannot be written ({error})") from error
        finally:
            if lock is not None:
                lock.close()

    def reopened(self) -> ProfileStore:
        """Open the generation that answers by now.

        A writer's lock goes over to the new store; this one can only be read from then on, and
        has to be closed.

        Raises:
            StoreError: as :meth:`open` does.
        """
        with self._write_guard:
            folder = self.path / str(newest_generation(self.path))
            newest = ProfileStore(self.path, folder, self._lock_file)
            self.read_only, self._lock_file = True, None
            return newest

    def retire(self) -> None:
        """Keep no connections for reads to come; those that somebody has are closed afterwards."""
        with self._pool_guard:
            self._keeps_idle = 0
            for database in self._idle:
                database.close()
            self._idle.clear()

    def close(self) -> None:
        """Close the file and let others write; harmless when done twice."""
        with self._write_guard:
            self.closed = True
            self.retire()
            self._database.close()  # last: a writer's takes the write-ahead log along
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
                f"{offered.fingerprint[:12]}: serve the first model again, go over to the new one "
                f"with `vibematch reindex {self.path}`, or add the photos to a new index"
            )

    # --- writing

    def write(self, profiles: Iterable[Profile]) -> int:
        """Add photos and set attributes and preferences, of any number of users, at one stroke.

        It is one transaction, whatever the number. A user who is not there yet is created with
        the first photo. A photo whose ``photo_id`` the user has already replaces that one, unless
        the content is the same; one without ``photo_id`` is left out if the user has its content.

        Args:
            profiles: taken one by one; reads in between see the state before.

        Returns:
            How many photos were new or replaced.

        Raises:
            InputError: a profile cannot be stored; nothing was changed then.
            StoreError: the index is read-only, or cannot be written; nothing was changed then.
        """
        with self._writing() as transaction:
            return sum(map(transaction.write, _chunks(profiles, _PROFILES_PER_CHUNK)))

    def remove(self, user_id: str) -> bool:
        """Delete a user with all photos; returns whether there was one.

        Raises:
            StoreError: the index is read-only, or cannot be written.
        """
        with self._writing() as transaction:
            return transaction.remove(user_id)

    def remove_photo(self, user_id: str, photo_id: str) -> bool:
        """Delete one photo of a user; returns whether there was one.

        Raises:
            InputError: it is the user's last.
            StoreError: the index is read-only, or cannot be written.
        """
        with self._writing() as transaction:
            return transaction.remove_photo(user_id, photo_id)

    def compact(self) -> None:
        """Forget which users were removed, and give the space of what is gone back to the disk.

        Done in small steps, between which others may write.

        Raises:
            StoreError: the index is read-only, or cannot be written.
        """
        with self._writing() as transaction:
            transaction.forget_removals()
        before, free = math.inf, sys.maxsize
        while 0 < free < before:
            with self._write_guard, _readable_errors(self.path):
                self._database.execute(f"PRAGMA incremental_vacuum({_PAGES_PER_STEP})").fetchall()
                before, (free,) = free, self._database.execute("PRAGMA freelist_count").fetchone()
        for _ in range(_CHECKPOINTS):  # what was removed is still in the log
            if self._emptied_log():
                break
            time.sleep(_BUSY_S / _CHECKPOINTS)

    def _emptied_log(self) -> bool:
        """Empty the write-ahead log, unless somebody reads just now; returns whether it is."""
        with self._write_guard, _readable_errors(self.path):
            self._database.execute("PRAGMA busy_timeout = 0")
            busy, *_ = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._database.execute(f"PRAGMA busy_timeout = {1000 * _BUSY_S:.0f}")
            return not busy

    @contextmanager
    def _writing(self) -> Iterator[_Transaction]:
        with self._write_guard, _readable_errors(self.path):
            if self.read_only:
                raise StoreError(f"the index at {self.path} was opened read-only")
            self._database.execute("BEGIN IMMEDIATE")
            try:
                transaction = _Transaction(self)
                yield transaction
                transaction.finish()
                self._database.execute("COMMIT")
            except BaseException:
                self._database.rollback()
                raise

    # --- reading

    @property
    def sequence(self) -> int:
        """Number of the last write."""
        return self._meta().sequence

    def count_users(self) -> int:
        """How many users there are."""
        return self._meta().users

    def count_photos(self) -> int:
        """How many photos there are."""
        return self._meta().photos

    def __contains__(self, user_id: object) -> bool:
        # What is not printable can be no id, and SQLite cannot even be asked for broken text.
        return (
            isinstance(user_id, str) and user_id.isprintable() and self._user(user_id) is not None
        )

    def ids(self) -> npt.NDArray[np.int64]:
        """Ids of all users, ascending, int64, ``[number of users]``."""
        with self.reading(), self._reader() as database:
            return np.fromiter((user.id for user in all_users(database)), np.int64)

    def neighbours(self, user_id: str, count: int) -> list[str]:
        """Up to ``2 * count`` user ids, those around the place where ``user_id`` would sort."""
        with self._reader() as database:
            before = database.execute(
                "SELECT user_id FROM users WHERE user_id < ? ORDER BY user_id DESC LIMIT ?",
                (user_id, count),
            ).fetchall()
            after = database.execute(
                "SELECT user_id FROM users WHERE user_id > ? ORDER BY user_id LIMIT ?",
                (user_id, count),
            ).fetchall()
        return [name for (name,) in before + after]

    def user(self, user_id: str) -> UserRow | None:
        """All about a user but the photos, or ``None`` if there is no such user."""
        user = self._user(user_id)
        return None if user is None else user.as_row()

    def attributes(self, user_id: str) -> dict[str, Value] | None:
        """A user's attributes, or ``None`` if there is no such user."""
        user = self.user(user_id)
        return None if user is None else user.attributes

    def photos(self, user_id: str) -> list[StoredPhoto]:
        """A user's photos, in the order they were added; none if there is no such user."""
        with self.reading(), self._reader() as database:
            user = self._user(user_id)
            if user is None:
                return []
            return [photo.as_stored() for photo in photos_of(database, [user])[user.id]]

    def has_photo(self, user_id: str, content_sha256: str) -> bool:
        """Whether a user has a photo of this very content."""
        return any(photo.content_sha256 == content_sha256 for photo in self.photos(user_id))

    def users(self) -> Iterator[UserRow]:
        """All users, in the order of their ids, read as they are taken.

        They are of one state, that of the first one taken.
        """
        with self.reading(), self._reader() as database:
            for user in all_users(database):
                yield user.as_row()

    def changes(self, after: int) -> Changes:
        """What became different after a sequence number; 0 for everything.

        Everything is also what one gets for a number that is older than the last :meth:`compact`,
        or that this store has not reached yet (it was restored from a backup).
        """
        with self.reading(), self._reader() as database:
            meta = read_meta(database)
            self._check_indexes(database)
            if not meta.removals_since <= after <= meta.sequence:
                users = [user.as_row() for user in all_users(database)]
                return Changes(meta.sequence, users, None)
            # +id: by the index of revisions, not by going through all users in the order of ids
            found = users_where(database, "revision > ? ORDER BY +id", after)
            removed = removed_after(database, meta, after)
            return Changes(meta.sequence, [user.as_row() for user in found], removed)

    def user_vectors(self, ids: Ids) -> Vector:
        """One vector per user: the mean over the user's photos, scaled to unit length.

        Where photos cancel out to (nearly) nothing, the first photo speaks for the user.

        Args:
            ids: users that exist.

        Returns:
            Unit vectors, float32, ``[number of ids, embedding_dim]``, in the given order.

        Raises:
            InputError: there is no such user.
        """
        means = np.empty((len(ids), self.manifest.embedding_dim), np.float32)
        with self.reading():
            for start in range(0, len(ids), _USERS_PER_QUERY):
                some = ids[start : start + _USERS_PER_QUERY]
                vectors, positions = self._photo_vectors(some)
                starts = np.searchsorted(positions, np.arange(len(some)))
                if len(gone := np.setdiff1d(np.arange(len(some)), positions)):
                    raise InputError(
                        f"no user has the id {some[gone[0]]} in the index at {self.path}"
                    )
                means[start : start + len(some)] = unit_means(vectors, starts)
        return means

    def photo_vectors(self, ids: Ids) -> tuple[Vector, npt.NDArray[np.int64]]:
        """The vectors of all photos of users.

        Args:
            ids: users, of whom some may be gone.

        Returns:
            Unit vectors, float32, ``[number of photos, embedding_dim]``, and for each the position
            of its user in ``ids``, int64, ascending.
        """
        with self.reading():
            parts = [
                (vectors, positions + start)
                for start in range(0, len(ids), _USERS_PER_QUERY)
                for vectors, positions in [self._photo_vectors(ids[start:][:_USERS_PER_QUERY])]
            ]
        empty = np.empty((0, self.manifest.embedding_dim), np.float32), np.empty(0, np.int64)
        vectors, positions = zip(empty, *parts, strict=True)
        return np.concatenate(vectors), np.concatenate(positions)

    def profiles(self) -> Iterator[Profile]:
        """All users with all photos, in the order of their ids, read as they are taken.

        They are of one state, that of the first one taken.
        """
        with self._borrowed() as database:
            database.execute("BEGIN")
            try:
                for users in _chunks(all_users(database), _USERS_PER_QUERY):
                    photos = photos_of(database, users)
                    for user in users:
                        row = user.as_row()
                        theirs = [photo.as_stored() for photo in photos[user.id]]
                        yield Profile(user.user_id, theirs, row.attributes, row.preferences)
            finally:
                database.rollback()

    def changed(self) -> bool:
        """Whether another process has written, or switched generation, since the last call.

        Cheap enough to ask often. Where :attr:`superseded` is true, the index has to be opened
        anew (:meth:`reopened`).
        """
        with self._write_guard, _readable_errors(self.path):
            before, self._seen = self._seen, self._state()
            return before != self._seen

    @property
    def superseded(self) -> bool:
        """Whether what is open here is no longer what the index holds."""
        newest = newest_generation(self.path)
        return (newest is not None and self.path / str(newest) != self.folder) or (
            # Opened as a file that nobody writes, but somebody did.
            self._uri.endswith("immutable=1") and self._on_disk() != self._opened_on_disk
        )

    def _on_disk(self) -> list[tuple[int, int, int]]:
        """What changes about the files when they are written."""
        stats = []
        for name in (FILENAME, f"{FILENAME}-wal"):
            with suppress(OSError):
                stat = (self.folder / name).stat()
                stats.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return stats

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let several reads of this thread see one state, whatever a writer does meanwhile."""
        if self._held() is not None:
            yield
            return
        with self._borrowed() as database:
            database.execute("BEGIN")
            self._thread.database = database
            try:
                yield
            finally:
                self._thread.database = None
                database.rollback()  # nothing was written

    def _held(self) -> sqlite3.Connection | None:
        held: sqlite3.Connection | None = getattr(self._thread, "database", None)
        return held

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """The connection of this thread's :meth:`reading`, or any."""
        held = self._held()
        if held is None:
            with self._borrowed() as database:
                yield database
        else:
            with _readable_errors(self.path):
                yield held

    @contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        with _readable_errors(self.path):
            with self._pool_guard:
                if self.closed:
                    raise StoreError(f"the index at {self.path} is closed")
                database = self._idle.pop() if self._idle else _connect(self._read_uri)
            try:
                yield database
            finally:
                with self._pool_guard:
                    if self.closed or len(self._idle) >= self._keeps_idle:
                        database.close()
                    else:
                        self._idle.append(database)

    def _meta(self) -> Meta:
        with self._reader() as database:
            return read_meta(database)

    def _user(self, user_id: str) -> User | None:
        with self._reader() as database:
            found = users_where(database, "user_id = ?", user_id)
            if not found:
                self._check_indexes(database)
            return found[0] if found else None

    def _check_indexes(self, database: sqlite3.Connection) -> None:
        """Make sure, once, that what the indexes of users do not find is not there."""
        if not self._indexes_checked:
            check_indexes(database)
            self._indexes_checked = True

    def _photo_vectors(self, ids: Ids) -> tuple[Vector, npt.NDArray[np.int64]]:
        with self._reader() as database:
            names = json.dumps([int(number) for number in ids])
            users = users_where(database, f"id {AMONG}", names)
            if len(users) < len(ids):
                self._check_indexes(database)
            photos = photos_of(database, users)
        blobs: list[bytes] = []
        positions: list[int] = []
        for position, number in enumerate(ids):
            theirs = photos.get(int(number), ())
            blobs.extend(photo.vector for photo in theirs)
            positions.extend([position] * len(theirs))
        vectors = np.frombuffer(b"".join(blobs), "<f4").reshape(-1, self.manifest.embedding_dim)
        return vectors.astype(np.float32, copy=False), np.array(positions, np.int64)

    def _state(self) -> tuple[int, bool]:
        (version,) = self._database.execute("PRAGMA data_version").fetchone()
        return version, self.superseded


class _Transaction:
    """Changes to a store that become true together.

    Sums are kept up by differences, so that damage which is there stays noticeable.
    """

    def __init__(self, store: ProfileStore) -> None:
        self._store = store
        self._database = store._database
        self._before = read_meta(self._database)
        self._meta = replace(self._before)
        self._sequence = max(self._meta.sequence + 1, _now_us())

    def finish(self) -> None:
        """Note in ``meta`` what has become of the whole."""
        if self._meta != self._before:
            self._meta.sequence = self._sequence
            self._meta.put(self._database)

    def write(self, profiles: Sequence[Profile]) -> int:
        """Put some users; returns how many photos were new or replaced."""
        for profile in profiles:
            check_profile(profile, self._store.manifest.embedding_dim)
        stored = self._users(profile.user_id for profile in profiles)
        photos = photos_of(self._database, list(stored.values()))
        users = dict(stored)
        new_photos: list[Photo] = []
        for profile in profiles:
            user = users.get(profile.user_id)
            if user is None:
                if not profile.photos:
                    continue
                user = self._new_user(profile.user_id)
            theirs = photos.setdefault(user.id, [])
            added = [self._new_photo(user.id, theirs, given) for given in profile.photos]
            new_photos += (photo for photo in added if photo is not None)
            user = with_photos(user, theirs) if any(added) else user
            users[profile.user_id] = updated(user, profile)
        self._database.executemany(PUT_PHOTO, new_photos)
        self._put(stored, users)
        return len(new_photos)

    def remove(self, user_id: str) -> bool:
        """Delete a user; returns whether there was one."""
        user = self._users([user_id]).get(user_id)
        if user is None:
            return False
        self._database.execute("DELETE FROM photos WHERE user = ?", (user.id,))
        self._database.execute("DELETE FROM users WHERE id = ?", (user.id,))
        number = self._meta.removals + 1
        self._database.execute(
            "INSERT INTO removals VALUES (?, ?, ?, ?)", sealed((number, self._sequence, user.id))
        )
        self._meta.removals = number
        self._meta.users -= 1
        self._meta.users_sum = wrapped(self._meta.users_sum - checksum_of(user))
        self._meta.photos -= user.photos
        return True

    def remove_photo(self, user_id: str, photo_id: str) -> bool:
        """Delete one photo of a user; returns whether there was one."""
        stored = self._users([user_id])
        if user_id not in stored:
            return False
        user = stored[user_id]
        photos = {name_of(photo): photo for photo in photos_of(self._database, [user])[user.id]}
        gone = photos.pop(photo_id, None)
        if gone is None:
            return False
        if not photos:
            raise InputError(
                f"photo {photo_id!r} is the last one of user {user_id!r}: remove the user"
            )
        self._database.execute("DELETE FROM photos WHERE id = ?", (gone.id,))
        self._put(stored, {user_id: with_photos(user, list(photos.values()))})
        return True

    def forget_removals(self) -> None:
        """Empty the log of removals."""
        self._database.execute("DELETE FROM removals")
        meta = replace(
            self._meta,
            removals_forgotten=self._meta.removals,
            removals_since=self._meta.sequence,
        )
        meta.put(self._database)

    def _users(self, user_ids: Iterable[str]) -> dict[str, User]:
        names = set(user_ids)
        found = users_where(self._database, f"user_id {AMONG}", json.dumps(list(names)))
        if len(found) < len(names):
            self._store._check_indexes(self._database)
        return {user.user_id: user for user in found}

    def _new_user(self, user_id: str) -> User:
        self._meta.last_user += 1
        return User(self._meta.last_user, user_id, "{}", "{}", 0, 0, 0, 0)

    def _new_photo(self, user: int, theirs: list[Photo], given: StoredPhoto) -> Photo | None:
        """The photo as it is to be stored and is now among ``theirs``; ``None`` if known."""
        content = bytes.fromhex(given.content_sha256)
        name = given.photo_id or given.content_sha256
        at = next((at for at, photo in enumerate(theirs) if name_of(photo) == name), len(theirs))
        comparable = theirs[at : at + 1] if given.photo_id else theirs
        if any(photo.content == content for photo in comparable):
            return None
        if at < len(theirs):
            number = theirs[at].id
        else:
            self._meta.last_photo += 1
            number = self._meta.last_photo
        own_name = "" if name == given.content_sha256 else name
        vector = np.asarray(given.vector, "<f4").tobytes()
        fields = (number, user, own_name, content, given.path, vector)
        theirs[at : at + 1] = [Photo(*fields, photo_checksum(*fields))]
        return theirs[at]

    def _put(self, stored: Mapping[str, User], users: Mapping[str, User]) -> None:
        """Write the users that are not as they are stored, with this transaction's number."""
        rows, meta = [], self._meta
        for user_id, user in users.items():
            before = stored.get(user_id)
            if user == before:
                continue
            vectors_changed = before is None or user.photos_sum != before.photos_sum
            new = user._replace(
                revision=self._sequence,
                vector_revision=self._sequence if vectors_changed else user.vector_revision,
            )
            rows.append(sealed(new))
            meta.users_sum += rows[-1][-1]
            meta.photos += user.photos
            if before is None:
                meta.users += 1
            else:
                meta.users_sum -= checksum_of(before)
                meta.photos -= before.photos
        meta.users_sum = wrapped(meta.users_sum)
        self._database.executemany(PUT_USER, rows)


_Item = TypeVar("_Item")


def _chunks(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _create_file(folder: Path, manifest: Manifest) -> None:
    """Write an empty store; it is whole from the moment it has a name."""
    unnamed = folder / f"{FILENAME}.new"
    unnamed.unlink(missing_ok=True)
    with closing(sqlite3.connect(unnamed, isolation_level=None)) as database:
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        database.executescript(
            f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
            f"{SCHEMA}"
        )
        now = _now_us()
        Meta(manifest.to_json(), now, 0, 0, 0, 0, 0, 0, 0, removals_since=now).put(database)
        database.execute("COMMIT")
    unnamed.rename(folder / FILENAME)
    sync_folder(folder)


def _uri(file: Path, *, read_only: bool) -> str:
    """How SQLite has to be told to open a file."""
    address = file.absolute().as_uri()
    if not read_only:
        return f"{address}?mode=rw"
    try:
        _connect(f"{address}?mode=ro").close()
    except sqlite3.OperationalError:
        # WAL needs a file beside the database; where none can be made, nobody writes either.
        if file.with_name(f"{file.name}-wal").exists():
            raise
        return f"{address}?mode=ro&immutable=1"
    return f"{address}?mode=ro"


def _connect(uri: str) -> sqlite3.Connection:
    database = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_S
    )
    try:
        # A damaged length does not make us ask for all memory.
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
        database.executescript(_PRAGMAS)
    except UnicodeDecodeError as error:  # of SQLite's message, which names what it met
        database.close()
        raise damaged("its schema is") from error
    except BaseException:
        database.close()
        raise
    return database


def _read_manifest(path: Path, database: sqlite3.Connection) -> Manifest:
    if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StoreError(f"{path} is not a vibematch index; name another folder")
    written = database.execute("PRAGMA user_version").fetchone()[0]
    if written != FORMAT:
        raise StoreError(
            f"the index at {path} has format {written}; this version of vibematch reads "
            f"format {FORMAT}: upgrade vibematch"
        )
    if database.execute(_SCHEMA_QUERY).fetchall() != _expected_schema():
        raise damaged("its schema is")
    try:
        return Manifest.from_json(read_meta(database).manifest)
    except ManifestError as error:
        raise StoreError(f"the index at {path} cannot be used: {error}") from error


@cache
def _expected_schema() -> list[Any]:
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(SCHEMA)
        return database.execute(_SCHEMA_QUERY).fetchall()


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
