"""Who shares this style? The matching engine: an encoder, a durable store and a fast index."""

from __future__ import annotations

import difflib
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from vibematch.encoder import PhotoEncoder, PhotoLike, photo_name, read_photo, refuse_single
from vibematch.errors import (
    BadVectorError,
    InputError,
    ModelChangedError,
    PhotoError,
    ServerError,
    StoreError,
    UnknownUserError,
    VibematchError,
)
from vibematch.index import HnswIndex, Match
from vibematch.manifest import Manifest
from vibematch.photos import Photo
from vibematch.store import (
    Profile,
    ProfileStore,
    StoredPhoto,
    Value,
    Vector,
    Where,
    check_attributes,
    value_from_text,
)

_COMMIT_PHOTOS: Final = 256
_COMMIT_S: Final = 2.0
_SUGGESTIONS_FROM: Final = 500


class Rejected(NamedTuple):
    """A photo that could not be used, and why."""

    photo: str
    reason: str


@dataclass
class Added:
    """What became of photos that were to be added.

    Attributes:
        added: photos that are new in the index.
        known: photos that their user had already.
        rejected: photos that could not be used, each with the reason.
    """

    added: int = 0
    known: int = 0
    rejected: list[Rejected] = field(default_factory=list)


class _Source(NamedTuple):
    """A photo to be added: whose it is, what messages call it, and the photo."""

    user_id: str
    name: str
    photo: PhotoLike

    @property
    def path(self) -> str | None:
        """Where the photo lies, if it is a file whose name can be stored as text."""
        if not isinstance(self.photo, str | os.PathLike):
            return None
        path = str(Path(self.photo).absolute())
        try:
            path.encode()
        except UnicodeEncodeError:
            return None
        return path


class _Encoded(NamedTuple):
    user_id: str
    photo: StoredPhoto


_Attributes: TypeAlias = Mapping[str, Mapping[str, Value | None]]
"""User → attribute → new value; ``None`` takes the attribute away."""


@dataclass(frozen=True)
class IndexInfo:
    """Facts about an index.

    Attributes:
        path: its folder.
        users: number of users.
        photos: number of photos.
        embedding_dim: length of a vector.
        fingerprint: the model's, in full.
        backbone: name of the model's backbone.
        sequence: number of the last write: microseconds since 1970.
    """

    path: str
    users: int
    photos: int
    embedding_dim: int
    fingerprint: str
    backbone: str
    sequence: int


class MatchingEngine:
    """Users with photos and attributes, searchable by style. Get one from :meth:`open`.

    Every ``add`` and ``remove`` is on the disk when it returns. An engine may be shared between
    threads; one process at a time may write to an index, while others read it (``read_only=True``)
    and see each write with their next search.
    """

    def __init__(self, store: ProfileStore, encoder: PhotoEncoder | None) -> None:
        self._store = store
        self._encoder = encoder
        self._guard = threading.Lock()
        self._index: HnswIndex | None = None
        self._saved_sequence = store.sequence

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        encoder: PhotoEncoder | None = None,
        manifest: Manifest | None = None,
        read_only: bool = False,
    ) -> MatchingEngine:
        """Open an index folder; make a new one if there is none and the model is known.

        Args:
            path: the index folder.
            encoder: makes vectors of photos; without one, only vectors can be added and searched.
            manifest: the model whose vectors a new index is for, where there is no encoder.
            read_only: never write; works beside a writer.

        Raises:
            StoreError: no index is there and none can be made, or the one there cannot be used.
            StoreLockedError: another process is writing to it.
            ModelMismatchError: the index holds vectors of another model than the encoder's.
            ServerError: the encoder's server does not answer.
        """
        folder = Path(path)
        model = encoder.manifest if encoder is not None else manifest
        if model is None or read_only or ProfileStore.exists(folder):
            store = ProfileStore.open(folder, read_only=read_only)
        else:
            store = ProfileStore.create(folder, model)
        try:
            if model is not None:
                store.require_model(model)
            return cls(store, encoder)
        except BaseException:
            store.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """The model whose vectors the index holds."""
        return self._store.manifest

    # --- writing

    def add(
        self,
        user_id: str,
        photos: Iterable[PhotoLike] = (),
        *,
        vectors: npt.ArrayLike | None = None,
        attributes: Mapping[str, Value] | None = None,
    ) -> Added:
        """Add photos to a user, who is created if new, and set the user's attributes.

        Args:
            user_id: any printable text.
            photos: file bytes, paths or Pillow images. One that the user has already is left
                alone; one that cannot be used is reported and does not hinder the others.
            vectors: vectors of photos encoded elsewhere by the same model, ``[n, embedding_dim]``;
                scaled to unit length.
            attributes: name → text, number or true/false; replace the user's earlier ones.
                ``None`` leaves those as they are.

        Returns:
            How many photos were added or known, and which were rejected.

        Raises:
            PhotoError: no photo could be used; nothing was stored.
            InputError: an argument makes no sense; nothing was stored.
            ServerError: the server does not answer; nothing was stored.
            StoreError: the index cannot be written; nothing was stored.
        """
        _check_user_id(user_id)
        refuse_single(photos)
        check_attributes(attributes or {})
        usable = [] if vectors is None else self._given_photos(vectors)
        sources = [
            _Source(user_id, photo_name(index, photo), photo) for index, photo in enumerate(photos)
        ]
        result = Added()
        if sources:
            usable += [photo for _, photo in self._encode_new(sources, result)]
            self._require_same_model()
        if result.rejected and not usable and not result.known:
            reasons = "; ".join(f"{photo}: {reason}" for photo, reason in result.rejected)
            raise PhotoError(f"no photo of {user_id} can be used ({reasons})")
        if not usable and user_id not in self:
            raise InputError(f"{user_id} is not in the index yet: give at least one photo")
        result.added = self._store.write([Profile(user_id, usable, attributes)])
        result.known += len(usable) - result.added
        return result

    def add_photos(
        self,
        photos: Iterable[Photo],
        *,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Added:
        """Add the photos of many users, as :func:`vibematch.photos.read_photos` lists them.

        Generated photos are skipped. Label columns that are the same on all of a user's photos
        become the user's attributes; other attributes the user has are kept. Progress is committed
        every few seconds, and photos already in the index are not sent again: interrupt it at will
        and run it again.

        Args:
            photos: photo files with their users and labels.
            on_progress: called with the number of photos taken up and the number of all.

        Returns:
            How many photos were added or known, and which were rejected.

        Raises:
            InputError: a label cannot be stored; nothing was stored.
            ServerError: the server stopped answering; what was committed stays.
            StoreError: the index cannot be written; what was committed stays.
        """
        result = Added()
        people = []
        for photo in photos:
            if photo.generated:
                continue
            try:
                _check_user_id(photo.user_id)
            except InputError as error:  # one odd file name must not cost a whole folder
                result.rejected.append(Rejected(str(photo.path), str(error)))
            else:
                people.append(photo)
        attributes = _attributes_of(people)
        for given in attributes.values():
            check_attributes({name: label for name, label in given.items() if label is not None})
        batch: list[_Encoded] = []
        committed_s = time.monotonic()
        for encoded in self._encode_new(_sources(people, on_progress), result):
            batch.append(encoded)
            if len(batch) == _COMMIT_PHOTOS or time.monotonic() - committed_s > _COMMIT_S:
                self._commit(batch, attributes, result)
                batch, committed_s = [], time.monotonic()
        self._commit(batch, attributes, result)
        current = {user_id: self._labelled(user_id, attributes) for user_id in attributes}
        self._store.write(
            Profile(user_id, (), labels)
            for user_id, labels in current.items()
            if self._store.attributes(user_id) not in (None, labels)
        )
        return result

    def remove(self, user_id: str) -> None:
        """Delete a user with all photos and attributes.

        Raises:
            UnknownUserError: there is no such user.
            StoreError: the index cannot be written.
        """
        _check_user_id(user_id)
        if not self._store.remove(user_id):
            raise self._unknown(user_id)

    def save(self) -> None:
        """Write a snapshot of the search index, so that the next start is quick.

        Nothing depends on it: without a snapshot, the index is rebuilt from the store.

        Raises:
            StoreError: the index is read-only, or the disk does not take it.
        """
        if self._store.read_only:
            raise StoreError(f"the index at {self._store.path} was opened read-only")
        index = self._follow()
        try:
            index.save(self._store.path, self._store.manifest.fingerprint)
        except OSError as error:
            raise StoreError(
                f"the snapshot in {self._store.path} cannot be written ({error}); "
                "all users are safe in the store"
            ) from error
        self._saved_sequence = index.sequence

    def close(self) -> None:
        """Save a snapshot if anything changed, and let others write; harmless when done twice."""
        store = self._store
        try:
            if not (store.closed or store.read_only or store.sequence == self._saved_sequence):
                self.save()
        finally:
            store.close()

    # --- reading

    def search(
        self,
        user_id: str | None = None,
        top_k: int = 5,
        *,
        photo: PhotoLike | None = None,
        vector: npt.ArrayLike | None = None,
        where: Where | None = None,
        exclude: Collection[str] = (),
    ) -> list[Match]:
        """Find the users whose style is most like that of a user, a photo or a vector.

        Args:
            user_id: a user of the index, who is not among the results.
            top_k: how many users to return, at most.
            photo: a photo instead of a user.
            vector: a vector instead of a user, ``[embedding_dim]``.
            where: attribute → what it has to be: a value (``"F"``), one of a list or set
                (``["Seoul", "Busan"]``), or within a range, ends included (``(25, 35)``).
            exclude: users not to return.

        Returns:
            ``(user_id, score)`` pairs, best first, ties by user id; always
            ``min(top_k, number of users that qualify)`` of them.

        Raises:
            UnknownUserError: there is no such user.
            PhotoError: the photo cannot be used.
            InputError: an argument makes no sense.
            ServerError: a photo is to be encoded, and the server does not answer.
        """
        if sum(query is not None for query in (user_id, photo, vector)) != 1:
            raise InputError("search by one of: a user id, photo=..., or vector=...")
        if not isinstance(top_k, int) or top_k < 1:
            raise InputError(f"top_k must be a whole number of at least 1, got {top_k!r}")
        if isinstance(exclude, str):
            raise InputError(f"exclude must be a list of user ids, got the text {exclude!r}")
        among = self._store.qualifying(where) if where else None
        if user_id is not None:
            _check_user_id(user_id)
            query = self._vector_of(user_id)
            exclude = {*exclude, user_id}
        elif photo is not None:
            query = self._encode_one(photo)
        else:
            query = _unit_rows([vector], self._store.manifest.embedding_dim)[0]
        return self._follow().search(query, top_k, among=among, exclude=exclude)

    def attributes(self, user_id: str) -> dict[str, Value]:
        """A user's attributes.

        Raises:
            UnknownUserError: there is no such user.
        """
        attributes = self._store.attributes(user_id)
        if attributes is None:
            raise self._unknown(user_id)
        return attributes

    def photo_paths(self, user_id: str) -> list[Path]:
        """The files of a user's photos, as far as they were added from files.

        Raises:
            UnknownUserError: there is no such user.
        """
        if user_id not in self:
            raise self._unknown(user_id)
        return self._store.photo_paths(user_id)

    def info(self) -> IndexInfo:
        """Facts about the index: its size and its model."""
        store = self._store
        with store.reading():
            return IndexInfo(
                path=str(store.path),
                users=store.count_users(),
                photos=store.count_photos(),
                embedding_dim=store.manifest.embedding_dim,
                fingerprint=store.manifest.fingerprint,
                backbone=store.manifest.backbone,
                sequence=store.sequence,
            )

    def __len__(self) -> int:
        return self._store.count_users()

    def __bool__(self) -> bool:
        return True  # an empty index is still an index

    def __contains__(self, user_id: object) -> bool:
        return user_id in self._store

    def __enter__(self) -> MatchingEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        mode = ", read-only" if self._store.read_only else ""
        model = self._store.manifest.fingerprint[:12]
        return f"<MatchingEngine at {str(self._store.path)!r}: model {model}{mode}>"

    # --- inside

    def _follow(self) -> HnswIndex:
        """The search index, brought up to the store's present state."""
        with self._guard:
            if self._index is None:
                self._index = self._load()
            index = self._index
            with self._store.reading():
                sequence = self._store.sequence
                if index.sequence == sequence:
                    return index
                recent = self._store.revisions(after=index.sequence)
                changed = {user: rev for user, rev in recent.items() if index.revision(user) != rev}
                vectors = self._store.user_vectors(list(changed))
                new = [user for user in changed if index.revision(user) is None]
                all_there = len(index) + len(new) == self._store.count_users()
                gone = set() if all_there else index.users() - self._store.user_ids()
            # The long part: others may read and write the store meanwhile.
            for user_id in gone:
                index.delete(user_id)
            index.upsert(changed, vectors)
            index.sequence = sequence
            return index

    def _load(self) -> HnswIndex:
        manifest = self._store.manifest
        dim = manifest.embedding_dim
        index = HnswIndex.load(self._store.path, fingerprint=manifest.fingerprint, dim=dim)
        if index is None:
            return HnswIndex(dim)
        if index.sequence != self._store.sequence:
            index.sequence = 0  # compare all revisions: the store may come from a backup
        return index

    def _vector_of(self, user_id: str) -> Vector:
        vector = self._follow().vector(user_id)
        if vector is None:
            raise self._unknown(user_id)
        return vector

    def _unknown(self, user_id: str) -> UnknownUserError:
        near = self._store.neighbours(user_id, _SUGGESTIONS_FROM)
        close = difflib.get_close_matches(user_id, near)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        return UnknownUserError(f"no user {user_id!r} in the index at {self._store.path}{hint}")

    def _require_encoder(self) -> PhotoEncoder:
        if self._encoder is None:
            raise InputError(
                "this index was opened without an encoder: open it with encoder=Encoder(...), "
                "or give vectors instead of photos"
            )
        return self._encoder

    def _encode_one(self, photo: PhotoLike) -> Vector:
        (result,) = self._require_encoder().encode_each([photo])
        if isinstance(result, Exception):
            raise result
        self._require_same_model()
        return result

    def _encode_new(self, sources: Iterable[_Source], result: Added) -> Iterator[_Encoded]:
        """Encode the photos that their users do not have yet.

        The others are counted in ``result``: as known, or as rejected with the reason.
        """
        max_bytes = self._store.manifest.preprocessing.max_bytes
        sent: deque[tuple[_Source, str]] = deque()

        def unknown() -> Iterator[bytes]:
            for source in sources:
                try:
                    content = read_photo(source.photo, max_bytes)
                except PhotoError as error:
                    result.rejected.append(Rejected(source.name, str(error)))
                    continue
                digest = hashlib.sha256(content).hexdigest()
                if self._store.has_photo(source.user_id, digest):
                    result.known += 1
                    continue
                sent.append((source, digest))
                yield content

        for vector in self._require_encoder().encode_each(unknown()):
            source, digest = sent.popleft()
            if isinstance(vector, ModelChangedError):
                self._require_same_model()  # to say which model this index is of
            if isinstance(vector, ServerError) and not isinstance(vector, BadVectorError):
                raise vector  # says nothing about the photo: it can be tried again later
            if isinstance(vector, VibematchError):
                result.rejected.append(Rejected(source.name, str(vector)))
            else:
                yield _Encoded(source.user_id, StoredPhoto(digest, vector, source.path))

    def _commit(self, batch: Sequence[_Encoded], attributes: _Attributes, result: Added) -> None:
        """Store freshly encoded photos and their users' attributes in one transaction."""
        if not batch:
            return
        self._require_same_model()
        photos: dict[str, list[StoredPhoto]] = {}
        for user_id, photo in batch:
            photos.setdefault(user_id, []).append(photo)
        added = self._store.write(
            Profile(user_id, some, self._labelled(user_id, attributes))
            for user_id, some in photos.items()
        )
        result.added += added
        result.known += len(batch) - added

    def _labelled(self, user_id: str, attributes: _Attributes) -> dict[str, Value]:
        """A user's stored attributes, updated by the labels of the photos at hand."""
        stored = self._store.attributes(user_id) or {}
        merged: dict[str, Value | None] = {**stored, **attributes.get(user_id, {})}
        return {name: value for name, value in merged.items() if value is not None}

    def _require_same_model(self) -> None:
        """Ask the encoder again, as its server may have changed models since the last time."""
        self._store.require_model(self._require_encoder().manifest)

    def _given_photos(self, vectors: npt.ArrayLike) -> list[StoredPhoto]:
        rows = _unit_rows(vectors, self._store.manifest.embedding_dim)
        return [StoredPhoto(hashlib.sha256(row.tobytes()).hexdigest(), row) for row in rows]


def _sources(photos: Sequence[Photo], on_progress: Callable[[int, int], None]) -> Iterator[_Source]:
    for done, photo in enumerate(photos):
        on_progress(done, len(photos))
        yield _Source(photo.user_id, str(photo.path), photo.path)
    on_progress(len(photos), len(photos))


def _check_user_id(user_id: object) -> None:
    if not isinstance(user_id, str) or not user_id or not user_id.isprintable():
        raise InputError(f"a user id must be printable text, got {user_id!r}")


def _attributes_of(photos: Iterable[Photo]) -> dict[str, dict[str, Value | None]]:
    """User → label → its value if all of the user's photos agree on it, otherwise ``None``."""
    values: dict[str, dict[str, set[str | None]]] = {}
    photos = list(photos)
    for photo in photos:
        for name in photo.labels:
            values.setdefault(photo.user_id, {}).setdefault(name, set())
    for photo in photos:
        for name, seen in values.get(photo.user_id, {}).items():
            seen.add(photo.labels.get(name))
    return {
        user_id: {name: _agreed(labels[name]) for name in sorted(labels)}
        for user_id, labels in values.items()
    }


def _agreed(values: set[str | None]) -> Value | None:
    (value,) = values if len(values) == 1 else (None,)
    return None if value is None else value_from_text(value)


def _unit_rows(vectors: object, dim: int) -> Vector:
    """Vectors from outside, checked and scaled to unit length, float32, ``[n, dim]``."""
    try:
        rows = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"a vector must be {dim} numbers ({error})") from error
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise InputError(f"vectors must have shape [n, {dim}], got {list(rows.shape)}")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise InputError("a vector is all zeros or not finite: it has no direction")
    unit: Vector = (rows / norms).astype(np.float32)
    return unit
