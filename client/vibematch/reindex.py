"""Going over to another model: all vectors made anew, beside the index that answers meanwhile.

Vectors of two models cannot be compared, so they are all needed before the first can be used.
:class:`Reindex` fills the next generation of the index folder (``2.new`` beside ``1``) and
follows what is written to the present one until it has caught up; in the end the new one is
renamed, which is the moment from which it answers. Until then nothing of the present one is
touched, and afterwards it stays on the disk until :func:`forget_old`.

What was encoded is kept when the work is interrupted, and found again by its content.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from vibematch.encoder import PhotoEncoder
from vibematch.errors import (
    BadVectorError,
    InputError,
    ModelMismatchError,
    PhotoError,
    ServerError,
    StoreError,
    StoreLockedError,
    VibematchError,
)
from vibematch.folder import discard_next, generations, lock_index, newest_generation
from vibematch.live import save_first_snapshot
from vibematch.manifest import Manifest
from vibematch.photo_input import read_photo
from vibematch.records import Profile, StoredPhoto, UserRow
from vibematch.store import ProfileStore
from vibematch.vectors import Vector

NewModel: TypeAlias = PhotoEncoder | Manifest
"""What makes the new vectors; or what they are of, where the source of photos gives vectors."""
Source: TypeAlias = Callable[[str, StoredPhoto], bytes | Vector | None]
"""Where a user's photo comes from: the bytes of the file that was added, or the vector that the
new model gave it elsewhere, or ``None`` if it is gone (or a :class:`PhotoError` that says why)."""

_PHOTOS_PER_COMMIT: Final = 256
_USERS_PER_COMMIT: Final = 1024
_FEW_PHOTOS: Final = 16
"""Once so few were left to do, the rest can be done while writers wait."""
_NAMED: Final = 5


@dataclass(frozen=True)
class Reindexed:
    """What became of an index.

    Attributes:
        switched: whether it has gone over; not if it had that model already.
        users: users in it now.
        photos: photos in it now.
        encoded: photos encoded by this run; the others were there from an earlier one.
        left_out_users: users left out because all of their photos are gone.
        left_out_photos: photos left out because they are gone.
    """

    switched: bool
    users: int
    photos: int
    encoded: int = 0
    left_out_users: int = 0
    left_out_photos: int = 0


def reindex(
    path: str | os.PathLike[str],
    encoder: NewModel,
    *,
    source: Source | None = None,
    skip_missing: bool = False,
    restart: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reindexed:
    """Go over to the encoder's model, from a process that does not have the index open.

    Another process may write to the index all the time, but not at the very end.

    Args:
        path: the index folder.
        encoder: makes the vectors; or the new model's manifest, if ``source`` gives all of them.
        source: where photos come from; by default the files they were added from.
        skip_missing: leave out photos that are gone, and users of whom none is left.
        restart: if going over to yet another model was begun, give that up.
        on_progress: called with the number of photos done and of all.

    Raises:
        InputError: photos are gone; nothing was switched, and what was encoded is kept.
        ModelMismatchError: going over to another model was begun, and not finished.
        ServerError: the server stopped answering; what was encoded is kept.
        StoreLockedError: all is encoded, but another process is writing to the index; or one is
            reindexing it.
        StoreError: the index cannot be used, or the disk does not take it.
    """
    path = Path(path)
    with Reindex(
        path,
        encoder,
        source=source,
        skip_missing=skip_missing,
        restart=restart,
        on_progress=on_progress,
    ) as job:
        if job.needed:
            job.catch_up()
            save_first_snapshot(job.store)
            job.catch_up()
            try:
                lock = lock_index(path)
            except StoreLockedError as error:
                raise StoreLockedError(
                    f"{error}. All photos are encoded and kept: run `vibematch reindex {path}` "
                    "again once that process has stopped, which then takes a moment, or call "
                    "reindex() in that process"
                ) from error
            with lock:
                job.switch()
        return job.result


def photo_file(photo: StoredPhoto, max_bytes: int) -> bytes:
    """The bytes of the file that a photo was added from.

    Raises:
        PhotoError: it was added without one, or the file is gone or another one.
    """
    if photo.path is None:
        raise PhotoError("it was added without a file")
    content = read_photo(photo.path, max_bytes)
    if hashlib.sha256(content).hexdigest() != photo.content_sha256:
        raise PhotoError("the file is not the one that was added")
    return content


def photos_in(folder: str | os.PathLike[str], max_bytes: int) -> Source:
    """A source that also looks in a folder for photos that are not where they were.

    They are recognised by their content; all files of the folder are read once for that.

    Args:
        folder: is searched with its subfolders.
        max_bytes: larger files cannot be photos.

    Raises:
        InputError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder of photos: {folder}")
    files: dict[str, Path] = {}

    def source(user_id: str, photo: StoredPhoto) -> bytes:
        try:
            return photo_file(photo, max_bytes)
        except PhotoError:
            if not files:
                files.update(_by_content(folder, max_bytes))
            if photo.content_sha256 not in files:
                raise
            return read_photo(files[photo.content_sha256], max_bytes)

    return source


def _by_content(folder: Path, max_bytes: int) -> Iterator[tuple[str, Path]]:
    for file in folder.rglob("*"):
        if file.is_file() and file.stat().st_size <= max_bytes:
            yield hashlib.sha256(file.read_bytes()).hexdigest(), file


def forget_old(path: str | os.PathLike[str]) -> int:
    """Delete the generations that do not answer any more; returns how many there were.

    Raises:
        StoreError: one cannot be deleted.
    """
    path = Path(path)
    newest = newest_generation(path)
    old = [number for number in generations(path) if number != newest]
    for number in old:
        try:
            shutil.rmtree(path / str(number))
        except OSError as error:
            raise StoreError(f"{path / str(number)} cannot be deleted ({error})") from error
    return len(old)


@dataclass(frozen=True)
class _Task:
    """What a user of the new generation needs.

    Attributes:
        row: the user, as the present generation has it.
        lacking: photos whose vectors are to be made.
        stale: ``photo_id`` of photos to be replaced or removed.
        keeps_some: whether there are others.
    """

    row: UserRow
    lacking: Sequence[StoredPhoto]
    stale: Set[str]
    keeps_some: bool


class Reindex:
    """One going over to another model, for whoever controls the writing; see :func:`reindex`.

    :meth:`catch_up`, as often as one likes; then, holding the index's lock and keeping writes
    back, :meth:`switch`. A context manager.

    Args:
        path: the index folder.
        encoder: makes the vectors; or the new model's manifest, if ``source`` gives all of them.
        source: where photos come from; by default the files they were added from.
        skip_missing: leave out photos that are gone, and users of whom none is left.
        restart: if going over to yet another model was begun, give that up.
        on_progress: called with the number of photos done and of all.

    Attributes:
        needed: whether the index has another model than the encoder's; if not, there is nothing
            to catch up or to switch.
        store: the new generation while it is filled: to read, e.g. to make a search index of it.
        result: what became of the index so far.

    Raises:
        ModelMismatchError: going over to another model was begun, and not finished.
        StoreLockedError: another process is reindexing the index.
        StoreError: the index cannot be used, or the disk does not take it.
        ServerError: the encoder's server does not answer.
    """

    def __init__(
        self,
        path: Path,
        encoder: NewModel,
        *,
        source: Source | None = None,
        skip_missing: bool = False,
        restart: bool = False,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        manifest = encoder if isinstance(encoder, Manifest) else encoder.manifest
        max_bytes = manifest.preprocessing.max_bytes
        self._path = path
        self._encoder = encoder
        self._fingerprint = manifest.fingerprint
        self._source = source or (lambda user_id, photo: photo_file(photo, max_bytes))
        self._skip_missing = skip_missing
        self._on_progress = on_progress
        self._names: dict[int, str] = {}  # of users of the present generation
        self._missing: dict[str, list[str]] = {}  # user → photos that are gone, with reasons
        self._after = 0
        self._encoded = 0
        self._old = self.store = ProfileStore.open(path, read_only=True)
        self.needed = self._old.manifest.fingerprint != self._fingerprint
        try:
            self.result = Reindexed(False, self._old.count_users(), self._old.count_photos())
            if self.needed:
                self.store = self._open_next(manifest, restart=restart)
        except BaseException:
            self._old.close()
            raise

    def catch_up(self) -> None:
        """Encode what the new generation lacks, until nothing or very little is left to do.

        Raises:
            InputError: photos are gone.
            ServerError: the server stopped answering; what was encoded is kept.
            StoreError: a store cannot be used, or the disk does not take it.
        """
        while self._follow() > _FEW_PHOTOS:
            pass
        self._require_all()

    def switch(self) -> None:
        """Do the rest and let the new generation answer; the caller keeps writers away.

        A store that is open goes on reading the old one; :meth:`ProfileStore.reopened` of it gives
        the new one.

        Raises:
            InputError: photos are gone; nothing was switched.
            ServerError: the server stopped answering; nothing was switched.
            StoreError: a store cannot be used, or the disk does not take it.
        """
        self._follow()
        self._require_all()
        self.result = Reindexed(
            switched=True,
            users=self.store.count_users(),
            photos=self.store.count_photos(),
            encoded=self._encoded,
            left_out_users=self._old.count_users() - self.store.count_users(),
            left_out_photos=self._old.count_photos() - self.store.count_photos(),
        )
        self.store.publish()

    def close(self) -> None:
        """Let go of the stores; what was encoded stays there for the next time."""
        self.store.close()
        self._old.close()

    def __enter__(self) -> Reindex:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_next(self, manifest: Manifest, *, restart: bool) -> ProfileStore:
        try:
            store = ProfileStore.open_next(self._path, manifest)
            begun = store.manifest.fingerprint
            if begun == manifest.fingerprint:
                return store
            store.close()
            raise ModelMismatchError(
                f"going over to model {begun[:12]} was begun at {self._path} and is not finished: "
                "serve that model again to finish it, or give it up with restart=True (--restart)"
            )
        except StoreLockedError:
            raise
        except StoreError as error:
            if not restart and isinstance(error, ModelMismatchError):
                raise
            if not restart:
                raise StoreError(
                    f"what an earlier reindexing left at {self._path} cannot be used: give it up "
                    "with restart=True (--restart); the index itself is as it was"
                ) from error
            discard_next(self._path)
            return ProfileStore.open_next(self._path, manifest)

    def _follow(self) -> int:
        """Do what is different since the last time; returns how many photos that concerned."""
        changes = self._old.changes(self._after)
        present = {row.user_id for row in changes.users}
        if changes.removed is None:  # the users are everybody
            gone = {row.user_id for row in self.store.changes(0).users} - present
        else:
            gone = {self._names.pop(number, "") for number in changes.removed} - present
        for user_id in gone:
            self.store.remove(user_id)
            self._missing.pop(user_id, None)
        concerned = 0
        for tasks in self._batches(changes.users):
            concerned += sum(len(task.lacking) for task in tasks)
            self._do(tasks)
            self._on_progress(self._count_done(), self._old.count_photos())
        self._names.update({row.id: row.user_id for row in changes.users})
        self._after = changes.sequence
        return concerned

    def _batches(self, rows: Iterable[UserRow]) -> Iterator[list[_Task]]:
        tasks: list[_Task] = []
        photos = 0
        for row in rows:
            task = self._task(row)
            if task is None:
                continue
            tasks.append(task)
            photos += len(task.lacking)
            if photos >= _PHOTOS_PER_COMMIT or len(tasks) >= _USERS_PER_COMMIT:
                yield tasks
                tasks, photos = [], 0
        if tasks:
            yield tasks

    def _task(self, row: UserRow) -> _Task | None:
        wanted = self._old.photos(row.user_id)
        if not wanted:  # removed just now, as the next changes will tell
            return None
        there = {photo.photo_id: photo.content_sha256 for photo in self.store.photos(row.user_id)}
        lacking = [photo for photo in wanted if there.get(photo.photo_id) != photo.content_sha256]
        contents = {photo.photo_id: photo.content_sha256 for photo in wanted}
        stale = {name for name, content in there.items() if contents.get(name) != content}
        return _Task(row, lacking, stale, keeps_some=len(stale) < len(there))

    def _do(self, tasks: Sequence[_Task]) -> None:
        vectors = iter(
            self._vectors([(task.row.user_id, photo) for task in tasks for photo in task.lacking])
        )
        profiles = []
        for task in tasks:
            user_id, new, missing = task.row.user_id, [], []
            for photo in task.lacking:
                vector = next(vectors)
                if isinstance(vector, VibematchError):
                    missing.append(f"{photo.path or photo.photo_id} of user {user_id!r}: {vector}")
                else:
                    new.append(replace(photo, vector=vector))
            profiles.append(Profile(user_id, new, task.row.attributes, task.row.preferences))
            self._missing.pop(user_id, None)
            if missing:
                self._missing[user_id] = missing
        self.store.write(profiles)
        for task, profile in zip(tasks, profiles, strict=True):
            self._remove_stale(task, {photo.photo_id for photo in profile.photos})

    def _remove_stale(self, task: _Task, new: Set[str]) -> None:
        user_id = task.row.user_id
        if not (task.keeps_some or new):
            self.store.remove(user_id)
            return
        for photo_id in task.stale - new:
            self.store.remove_photo(user_id, photo_id)

    def _vectors(self, photos: Sequence[tuple[str, StoredPhoto]]) -> list[Vector | VibematchError]:
        """The new model's vectors of users' photos, or why there are none."""
        found: list[Vector | VibematchError] = []
        sent: list[int] = []

        def contents() -> Iterator[bytes]:
            for user_id, photo in photos:
                content = self._content(user_id, photo)
                if isinstance(content, bytes):
                    sent.append(len(found))
                    found.append(PhotoError("the encoder did not answer"))
                    yield content
                else:
                    found.append(content)

        for number, answer in enumerate(self._encoded_each(contents())):
            if isinstance(answer, ServerError) and not isinstance(answer, BadVectorError):
                raise answer  # says nothing about the photo: it can be tried again later
            found[sent[number]] = answer
            self._encoded += not isinstance(answer, VibematchError)
        return found

    def _encoded_each(self, contents: Iterator[bytes]) -> Iterable[Vector | VibematchError]:
        if not isinstance(self._encoder, Manifest):
            return self._encoder.encode_each(contents, fingerprint=self._fingerprint)
        nobody = "its source gave no vector, and there is no encoder"
        return (PhotoError(nobody) for _ in contents)

    def _content(self, user_id: str, photo: StoredPhoto) -> bytes | Vector | PhotoError:
        try:
            content = self._source(user_id, photo)
        except PhotoError as error:
            return error
        return PhotoError("it is gone") if content is None else content

    def _require_all(self) -> None:
        if self._missing and not self._skip_missing:
            reasons = [reason for reasons in self._missing.values() for reason in reasons]
            some = "; ".join(reasons[:_NAMED])
            more = f"; and {len(reasons) - _NAMED:,} more" if len(reasons) > _NAMED else ""
            raise InputError(
                f"{len(reasons):,} of {self._old.count_photos():,} photos cannot be encoded anew, "
                f"so nothing was switched (what was encoded is kept): {some}{more}. Say where "
                "they are (source=..., --photos), or leave them out (skip_missing=True, "
                "--skip-missing)"
            )
        if self._old.count_users() and not self.store.count_users():
            raise InputError(f"no photo of the index at {self._path} is left; nothing was switched")

    def _count_done(self) -> int:
        return self.store.count_photos() + sum(map(len, self._missing.values()))
