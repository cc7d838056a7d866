"""Who shares this style? The matching engine: an encoder, a durable store and a fast index."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias, TypeGuard, TypeVar, get_args, overload

import numpy as np
import numpy.typing as npt

from vibematch import scan
from vibematch.attributes import (
    Condition,
    Value,
    Where,
    check_attributes,
    check_where,
    value_from_text,
)
from vibematch.encoder import PhotoEncoder, PhotoLike, photo_name, read_photo, refuse_single
from vibematch.errors import (
    BadVectorError,
    InputError,
    ModelChangedError,
    ModelMismatchError,
    PhotoError,
    PhotoErrorCode,
    ServerError,
    StoreError,
    UnknownUserError,
    VibematchError,
)
from vibematch.filters import Filter
from vibematch.index import Match, Question
from vibematch.live import LiveIndex, save_first_snapshot
from vibematch.manifest import Manifest
from vibematch.photos import Photo, read_photos
from vibematch.planner import EXACT_UP_TO, Plan
from vibematch.records import Profile, StoredPhoto, UserRow, check_photo_id, check_user_id
from vibematch.reindex import NewModel, Reindex, Reindexed, Source
from vibematch.store import ProfileStore
from vibematch.vectors import Vector, unit_means

_Answer = TypeVar("_Answer")
Aggregate: TypeAlias = Literal["mean", "best_pair"]

_AGGREGATES: Final = get_args(Aggregate)
_COMMIT_PHOTOS: Final = 256
_COMMIT_PROFILES: Final = 10_000
_COMMIT_LIVE: Final = 250
_COMMIT_S: Final = 2.0
_SUGGESTIONS_FROM: Final = 500
_PAIRED_AT_LEAST: Final = 100
_PAIRED_PER_MATCH: Final = 10
_MOST: Final = 2**31
_SAME: Final = 1e-6
"""Less apart, two scores differ by rounding only."""


class Rejected(NamedTuple):
    """A photo that could not be used, why, and the :class:`PhotoError`'s code for that."""

    photo: str
    reason: str
    code: PhotoErrorCode = "unreadable"


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


class Explained(NamedTuple):
    """Matches, and how they were found."""

    matches: list[Match]
    plan: Plan


@dataclass(frozen=True)
class Recall:
    """How many of the truly nearest users searches find.

    Attributes:
        top_k: users asked for.
        queries: users asked about.
        recall: share of the exact matches that searches return, 0 to 1.
        worst: the same for the worst query.
        search_ms: median milliseconds of a search.
        exact_ms: median milliseconds of comparing all users.
    """

    top_k: int
    queries: int
    recall: float
    worst: float
    search_ms: float
    exact_ms: float


class _Query(NamedTuple):
    """What to search by: one of these."""

    user_id: str | None
    photo: PhotoLike | Sequence[PhotoLike] | None
    vector: npt.ArrayLike | None


class _Source(NamedTuple):
    """A photo to be added: whose it is, what messages call it, and the photo."""

    user_id: str
    name: str
    photo: PhotoLike
    photo_id: str = ""

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

    Every write is on the disk, and in the answers, when its method returns. An engine may be
    shared between threads; one process at a time may write to an index, while others read it
    (``read_only=True``) and follow within a second. Open it after forking, not before.
    """

    def __init__(self, store: ProfileStore, encoder: PhotoEncoder | None) -> None:
        self._live = LiveIndex(store)
        # By fingerprint, so that nobody has one model's encoder and the other's store in between.
        self._encoders = {} if encoder is None else {store.manifest.fingerprint: encoder}

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
        photos: Iterable[PhotoLike] | Mapping[str, PhotoLike] = (),
        *,
        vectors: npt.ArrayLike | None = None,
        attributes: Mapping[str, Value] | None = None,
        preferences: Where | None = None,
    ) -> Added:
        """Add photos to a user, who is created if new, and set what is known about the user.

        Args:
            user_id: any printable text.
            photos: file bytes, paths, binary files, Pillow images or arrays (uint8 ``[H, W, 3]``);
                or a mapping from photo ids of your own to them. One that the user has already is
                left alone, one with the id of an earlier photo replaces it. One that cannot be
                used is reported and does not hinder the others.
            vectors: vectors of photos encoded elsewhere by the same model, ``[n, embedding_dim]``;
                scaled to unit length.
            attributes: name → text, number or true/false; replace the user's earlier ones.
                ``None`` leaves those as they are.
            preferences: what this user wants of others, like ``where`` in :meth:`search`; replace
                the user's earlier ones. ``None`` leaves those as they are.

        Returns:
            How many photos were added or known, and which were rejected.

        Raises:
            PhotoError: no photo could be used; nothing was stored.
            InputError: an argument makes no sense; nothing was stored.
            ServerError: the server does not answer; nothing was stored.
            StoreError: the index cannot be written; nothing was stored.
        """
        check_user_id(user_id)
        check_attributes(attributes or {})
        check_where(preferences or {})
        sources = _named_sources(user_id, photos)
        model, result = self._store.manifest, Added()
        usable = [] if vectors is None else self._given_photos(vectors)
        if sources:
            usable += [photo for _, photo in self._encode_new(sources, model, result)]
        if result.rejected and not usable and not result.known:
            reasons = "; ".join(f"{each.photo}: {each.reason}" for each in result.rejected)
            code = result.rejected[0].code
            raise PhotoError(f"no photo of {user_id} can be used ({reasons})", code=code)
        if not usable and user_id not in self:
            raise InputError(f"{user_id} is not in the index yet: give at least one photo")
        with self._live.writing(model) as store:
            result.added = store.write([Profile(user_id, usable, attributes, preferences)])
        result.known += len(usable) - result.added
        return result

    def build_index(
        self,
        folder: str | os.PathLike[str],
        *,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Added:
        """Add a folder of photos, with or without a ``metadata.csv``, as :meth:`add_photos` does.

        Args:
            folder: see :mod:`vibematch.photos`.
            on_progress: called with the number of photos taken up and the number of all.

        Returns:
            How many photos were added or known, and which were rejected.

        Raises:
            InputError: the folder cannot be read, or its ``metadata.csv`` makes no sense.
            ServerError: the server stopped answering; what was committed stays.
            StoreError: the index cannot be written; what was committed stays.
        """
        return self.add_photos(read_photos(Path(folder)), on_progress=on_progress)

    def add_photos(
        self,
        photos: Iterable[Photo],
        *,
        preferences: Mapping[str, Where] | None = None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Added:
        """Add the photos of many users, as :func:`vibematch.photos.read_photos` lists them.

        Generated photos are skipped. Label columns that are the same on all of a user's photos
        become the user's attributes; other attributes the user has are kept. Progress is committed
        every few seconds, and photos already in the index are not sent again: interrupt it at will
        and run it again.

        Args:
            photos: photo files with their users and labels.
            preferences: user → what that user wants of others, of those whose preferences are to
                be set.
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
                check_user_id(photo.user_id)
            except InputError as error:  # one odd file name must not cost a whole folder
                result.rejected.append(Rejected(str(photo.path), str(error)))
            else:
                people.append(photo)
        attributes = _attributes_of(people)
        for given in attributes.values():
            check_attributes({name: label for name, label in given.items() if label is not None})
        wishes = preferences or {}
        for where in wishes.values():
            check_where(where)
        model = self._store.manifest
        batch: list[_Encoded] = []
        committed_s = time.monotonic()
        for encoded in self._encode_new(_sources(people, on_progress), model, result):
            batch.append(encoded)
            if len(batch) == _COMMIT_PHOTOS or time.monotonic() - committed_s > _COMMIT_S:
                self._commit(batch, attributes, wishes, model, result)
                batch, committed_s = [], time.monotonic()
        self._commit(batch, attributes, wishes, model, result)
        with self._live.writing() as store:
            store.write(self._outdated(attributes, wishes))
        return result

    def add_many(
        self,
        profiles: Iterable[Profile],
        *,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> int:
        """Load users whose photos were encoded elsewhere by the same model.

        Args:
            profiles: taken one by one, and committed some thousands at a time; some hundreds once
                there were searches, as those users then also enter the search index, which takes
                most of the time.
            on_progress: called with the number of users committed so far.

        Returns:
            How many photos were new or replaced.

        Raises:
            InputError: a profile cannot be stored; what was committed before stays.
            StoreError: the index cannot be written; what was committed before stays.
        """
        model = self._store.manifest
        written = done = 0
        remaining = iter(profiles)
        # An index that answers follows with each commit, and other writers wait for that.
        together = _COMMIT_LIVE if self._live.is_loaded else _COMMIT_PROFILES
        while some := list(itertools.islice(remaining, min(together, _COMMIT_PROFILES))):
            with self._live.writing(model) as store:
                written += store.write(some)
            done += len(some)
            on_progress(done)
        return written

    def remove(self, user_id: str) -> None:
        """Delete a user with all photos, attributes and preferences.

        Raises:
            UnknownUserError: there is no such user.
            StoreError: the index cannot be written.
        """
        check_user_id(user_id)
        with self._live.writing() as store:
            if not store.remove(user_id):
                raise self._unknown(user_id)

    def remove_photo(self, user_id: str, photo_id: str) -> None:
        """Delete one photo of a user.

        Args:
            user_id: whose photo it is.
            photo_id: as given to :meth:`add`, or else the SHA-256 of the file (hex).

        Raises:
            UnknownUserError: there is no such user.
            InputError: the user has no such photo, or no other.
            StoreError: the index cannot be written.
        """
        check_user_id(user_id)
        check_photo_id(photo_id)
        if user_id not in self:
            raise self._unknown(user_id)
        with self._live.writing() as store:
            if not store.remove_photo(user_id, photo_id):
                raise InputError(f"{user_id} has no photo {photo_id!r}")

    def reindex(
        self,
        encoder: NewModel,
        *,
        source: Source | None = None,
        skip_missing: bool = False,
        restart: bool = False,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Reindexed:
        """Go over to another model: encode all photos anew, while this engine goes on.

        Searches and writes of other threads wait at the end only, for about a second. What was
        encoded is kept when this is interrupted. The vectors of the former model stay on the disk
        until :func:`vibematch.reindex.forget_old`.

        Args:
            encoder: of the new model, this engine's from then on; or the new model's manifest, if
                ``source`` gives all vectors.
            source: where photos come from; by default the files they were added from.
            skip_missing: leave out photos that are gone, and users of whom none is left.
            restart: if going over to yet another model was begun, give that up.
            on_progress: called with the number of photos done and of all.

        Returns:
            What became of the index.

        Raises:
            InputError: photos are gone; nothing was switched, and what was encoded is kept.
            ModelMismatchError: going over to another model was begun, and not finished.
            ServerError: the server stopped answering; what was encoded is kept.
            StoreError: the index is read-only, or the disk does not take it.
        """
        if self._store.read_only:
            raise StoreError(f"the index at {self._store.path} was opened read-only")
        job = Reindex(
            self._store.path,
            encoder,
            source=source,
            skip_missing=skip_missing,
            restart=restart,
            on_progress=on_progress,
        )
        with job:
            if job.needed:
                job.catch_up()
                save_first_snapshot(job.store)
                job.catch_up()
                if not isinstance(encoder, Manifest):
                    self._encoders[encoder.manifest.fingerprint] = encoder
                with self._live.switching():
                    job.switch()
            return job.result

    def save(self) -> None:
        """Write a snapshot of the search index, so that the next start is quick.

        Nothing depends on it: without a snapshot, the index is made anew from the store. It is
        also written by itself, on :meth:`close` and after many changes.

        Raises:
            StoreError: the index is read-only, or the disk does not take it.
        """
        self._live.save()

    def compact(self) -> None:
        """Give back the memory and disk space of what was deleted or replaced.

        Happens by itself where a quarter of the index is free. Takes as long as making the search
        index anew; searches and writes go on meanwhile.

        Raises:
            StoreError: the index is read-only, or the disk does not take it.
        """
        self._live.compact()

    def refresh(self) -> None:
        """Follow at once what another process has written; by itself it takes up to a second.

        Raises:
            StoreError: the index cannot be read.
        """
        self._live.refresh()

    def close(self) -> None:
        """Save a snapshot if anything changed, and let others write; harmless when done twice."""
        self._live.close()

    # --- searching

    @overload
    def search(
        self,
        user_id: str | None = None,
        top_k: int = 5,
        *,
        photo: PhotoLike | Sequence[PhotoLike] | None = None,
        vector: npt.ArrayLike | None = None,
        where: Where | None = None,
        mutual: bool = False,
        exclude: Collection[str] = (),
        min_score: float | None = None,
        aggregate: Aggregate = "mean",
        explain: Literal[False] = False,
    ) -> list[Match]: ...
    @overload
    def search(
        self,
        user_id: str | None = None,
        top_k: int = 5,
        *,
        photo: PhotoLike | Sequence[PhotoLike] | None = None,
        vector: npt.ArrayLike | None = None,
        where: Where | None = None,
        mutual: bool = False,
        exclude: Collection[str] = (),
        min_score: float | None = None,
        aggregate: Aggregate = "mean",
        explain: Literal[True],
    ) -> Explained: ...
    def search(
        self,
        user_id: str | None = None,
        top_k: int = 5,
        *,
        photo: PhotoLike | Sequence[PhotoLike] | None = None,
        vector: npt.ArrayLike | None = None,
        where: Where | None = None,
        mutual: bool = False,
        exclude: Collection[str] = (),
        min_score: float | None = None,
        aggregate: Aggregate = "mean",
        explain: bool = False,
    ) -> list[Match] | Explained:
        """Find the users whose style is most like that of a user, of photos or of vectors.

        Args:
            user_id: a user of the index, who is not among the results.
            top_k: how many users to return, at most.
            photo: a photo, or a list of photos of one person, instead of a user.
            vector: a vector, ``[embedding_dim]``, or several of one person, ``[n,
                embedding_dim]``, instead of a user.
            where: attribute → what it has to be: a value (``"F"``), one of a list or set
                (``["Seoul", "Busan"]``), within a range, ends included (``(25, 35)``), or missing
                (``None``, also in a list).
            mutual: only users who fit the user's preferences and whose preferences fit the user.
            exclude: users not to return.
            min_score: the least score of a match.
            aggregate: what a score compares: ``mean``, the normalised means of both sides'
                photos; or ``best_pair``, the most similar two photos, for which as many users as
                ten times ``top_k``, and at least a hundred, are compared photo by photo.
            explain: also return how the search was done.

        Returns:
            ``(user_id, score)`` pairs, best first, ties by user id; always
            ``min(top_k, number of users that qualify)`` of them. With ``explain``, an
            :class:`Explained`.

        Raises:
            UnknownUserError: there is no such user.
            PhotoError: the photo cannot be used.
            InputError: an argument makes no sense.
            ServerError: a photo is to be encoded, and the server does not answer.
        """
        if (user_id is None) + (photo is None) + (vector is None) != 2:
            raise InputError("search by one of: a user id, photo=..., or vector=...")
        if aggregate not in _AGGREGATES:
            raise InputError(f"aggregate must be 'mean' or 'best_pair', got {aggregate!r}")
        _check_exclude(exclude)
        _check_limits(top_k, min_score)
        if user_id is not None:
            check_user_id(user_id)
            exclude = {*exclude, user_id}
        top_k, least = int(top_k), -math.inf if min_score is None else float(min_score)
        query = _Query(user_id, photo, vector)
        while True:
            store = self._store
            try:
                wanted = self._filter(user_id, where, mutual)
                ask = self._best_pairs if aggregate == "best_pair" else self._best_means
                matches, plan = ask(query, top_k, wanted, exclude, least)
            except VibematchError:
                if self._store is store:
                    raise
            else:
                if self._store is store:
                    return Explained(matches, plan) if explain else matches
            # The index went over to another model meanwhile, whose vectors are other ones.

    def search_many(
        self,
        user_ids: Iterable[str],
        top_k: int = 5,
        *,
        where: Where | None = None,
        mutual: bool = False,
        min_score: float | None = None,
    ) -> list[list[Match]]:
        """Search for many users, on all cores: for jobs that nobody waits for.

        Args:
            user_ids: whom to find matches for.
            top_k: as in :meth:`search`, like the others.
            where: the same for all.
            mutual: each user's own preferences.
            min_score: the least score of a match.

        Returns:
            What :meth:`search` returns for each user, in the given order.

        Raises:
            UnknownUserError: there is no such user.
            InputError: an argument makes no sense.
        """
        if isinstance(user_ids, str):
            raise InputError(f"user_ids must be a list of user ids, got the text {user_ids!r}")

        def search(user_id: str) -> list[Match]:
            return self.search(user_id, top_k, where=where, mutual=mutual, min_score=min_score)

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return list(threads.map(search, user_ids))

    def recall(self, top_k: int = 10, *, queries: int = 100, seed: int = 0) -> Recall:
        """Measure searches against exact ones, for users of the index drawn at random.

        Args:
            top_k: users to ask for.
            queries: users to ask about, at most.
            seed: of the draw.

        Raises:
            InputError: an argument makes no sense, or the index holds fewer than two users.
        """
        _check_limits(top_k, None)
        if not _is_whole(queries) or queries < 1:
            raise InputError(f"queries must be a whole number of at least 1, got {queries!r}")
        if not _is_whole(seed) or seed < 0:
            raise InputError(f"seed must be a whole number of at least 0, got {seed!r}")
        index = self._live.index
        users = index.users()
        if len(users) < 2:
            raise InputError("recall needs an index of at least two users")
        drawn = np.random.default_rng(seed).permutation(len(users))[:queries]
        shares, search_ms, exact_ms = [], [], []
        for user_id in (users[place] for place in drawn):
            vector = index.vector(user_id)
            if vector is None:  # removed just now
                continue
            question = Question(vector, top_k, exclude=(user_id,))
            (found, _), took_ms = _timed_ms(index.search, question)
            search_ms.append(took_ms)
            exact, took_ms = _timed_ms(index.search_exactly, question)
            exact_ms.append(took_ms)
            good = sum(match.score >= exact[-1].score - _SAME for match in found)
            shares.append(good / len(exact))
        return Recall(
            top_k,
            len(shares),
            statistics.fmean(shares),
            min(shares),
            statistics.median(search_ms),
            statistics.median(exact_ms),
        )

    # --- looking things up

    def attributes(self, user_id: str) -> dict[str, Value]:
        """A user's attributes.

        Raises:
            UnknownUserError: there is no such user.
        """
        return self._user(user_id).attributes

    def preferences(self, user_id: str) -> dict[str, Condition]:
        """What a user wants of others.

        Raises:
            UnknownUserError: there is no such user.
        """
        return self._user(user_id).preferences

    def photos(self, user_id: str) -> list[StoredPhoto]:
        """A user's photos, in the order they were added.

        Raises:
            UnknownUserError: there is no such user.
        """
        check_user_id(user_id)
        photos = self._store.photos(user_id)
        if not photos:  # nobody is without
            raise self._unknown(user_id)
        return photos

    def photo_paths(self, user_id: str) -> list[Path]:
        """The files of a user's photos, as far as they were added from files.

        Raises:
            UnknownUserError: there is no such user.
        """
        return [Path(photo.path) for photo in self.photos(user_id) if photo.path is not None]

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

    def __exit__(self, kind: object, *more: object) -> None:
        # Whoever is interrupted does not want to wait for an index that nobody has asked yet.
        self._live.close(may_load=kind is None)

    def __repr__(self) -> str:
        mode = ", read-only" if self._store.read_only else ""
        model = self._store.manifest.fingerprint[:12]
        return f"<MatchingEngine at {str(self._store.path)!r}: model {model}{mode}>"

    # --- inside

    @property
    def _store(self) -> ProfileStore:
        return self._live.store

    def _filter(self, user_id: str | None, where: Where | None, mutual: bool) -> Filter:
        check_where(where or {})
        conditions = list((where or {}).items())
        if not mutual:
            return Filter(conditions)
        if user_id is None:
            raise InputError("mutual needs a user of the index, whose preferences are known")
        about = self._live.index.about(user_id)
        if about is None:
            raise self._unknown(user_id)
        attributes, preferences = about
        return Filter([*conditions, *preferences.items()], accepted_by=attributes)

    def _best_means(
        self, query: _Query, top_k: int, wanted: Filter, exclude: Collection[str], least: float
    ) -> tuple[list[Match], Plan]:
        """Users by the mean over their photos."""
        index = self._live.index
        if query.user_id is None:
            mean = _unit_mean(self._photos_of(query))
        else:
            of_user = index.vector(query.user_id)
            if of_user is None:
                raise self._unknown(query.user_id)
            mean = of_user
        return index.search(Question(mean, top_k, wanted, exclude, least))

    def _best_pairs(
        self, query: _Query, top_k: int, wanted: Filter, exclude: Collection[str], least: float
    ) -> tuple[list[Match], Plan]:
        """Users by their most similar photo, out of those whose means are near."""
        index, photos = self._live.index, self._photos_of(query)
        every = len(index) <= EXACT_UP_TO
        count = max(len(index), 1) if every else max(_PAIRED_AT_LEAST, _PAIRED_PER_MATCH * top_k)
        near, plan = index.search(Question(_unit_mean(photos), count, wanted, exclude))
        users = {match.user_id for match in near}
        if not every and len(photos) > 1:
            for vector in photos:
                found, _ = index.search(Question(vector, count, wanted, exclude))
                users.update(match.user_id for match in found)
        matches = [
            Match(user_id, score)
            for user_id, score in self._pair_scores(photos, sorted(users))
            if score >= least - _SAME
        ]
        return sorted(matches, key=lambda match: (-match.score, match.user_id))[:top_k], plan

    def _photos_of(self, query: _Query) -> Vector:
        """The vectors to search by, ``[n, embedding_dim]``."""
        if query.user_id is not None:
            return np.stack([photo.vector for photo in self.photos(query.user_id)])
        if query.photo is not None:
            if isinstance(query.photo, Sequence) and not isinstance(query.photo, str | bytes):
                return self._encode_all(query.photo)
            return self._encode_all([query.photo])
        dim = self._store.manifest.embedding_dim
        numbers = _as_numbers(query.vector, dim)
        rows = numbers[np.newaxis] if numbers.ndim == 1 else numbers
        if not rows.size:
            raise InputError("vector must be a vector or a list of at least one")
        return _unit_rows(rows, dim)

    def _pair_scores(self, query: Vector, user_ids: Sequence[str]) -> list[tuple[str, float]]:
        index = self._live.index
        ids = {user_id: index.id_of(user_id) for user_id in user_ids}
        there = {user_id: number for user_id, number in ids.items() if number is not None}
        vectors, positions = self._store.photo_vectors(list(there.values()))
        if not len(vectors):
            return []
        # Pair by pair in double precision: equal vectors get equal scores.
        pairs = np.stack([(vectors.astype(np.float64) * each).sum(axis=1) for each in query])
        present, starts = np.unique(positions, return_index=True)  # some may be gone by now
        best = np.maximum.reduceat(pairs.max(axis=0), starts).clip(-1.0, 1.0)
        names = list(there)
        return [(names[place], score) for place, score in zip(present, best.tolist(), strict=True)]

    def _user(self, user_id: str) -> UserRow:
        check_user_id(user_id)
        user = self._store.user(user_id)
        if user is None:
            raise self._unknown(user_id)
        return user

    def _unknown(self, user_id: str) -> UnknownUserError:
        near = self._store.neighbours(user_id, _SUGGESTIONS_FROM)
        close = difflib.get_close_matches(user_id, near)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        return UnknownUserError(f"no user {user_id!r} in the index at {self._store.path}{hint}")

    def _require_encoder(self, model: Manifest) -> PhotoEncoder:
        if not self._encoders:
            raise InputError(
                "this index was opened without an encoder: open it with encoder=Encoder(...), "
                "or give vectors instead of photos"
            )
        *_, newest = self._encoders.values()
        return self._encoders.get(model.fingerprint, newest)

    def _explain_other_model(self, model: Manifest, error: ModelChangedError) -> VibematchError:
        """Say which models these are, where the encoder's is not that of the index."""
        try:
            self._store.require_model(self._require_encoder(model).manifest)
        except ModelMismatchError as mismatch:
            return mismatch
        return error

    def _encode_all(self, photos: Sequence[PhotoLike]) -> Vector:
        """The vectors of photos, all or nothing."""
        model = self._store.manifest
        encoder, vectors = self._require_encoder(model), []
        for result in encoder.encode_each(photos, fingerprint=model.fingerprint):
            if isinstance(result, ModelChangedError):
                raise self._explain_other_model(model, result)
            if isinstance(result, Exception):
                raise result
            vectors.append(result)
        if not vectors:
            raise InputError("photo must be a photo or a list of at least one")
        return np.stack(vectors)

    def _encode_new(
        self, sources: Iterable[_Source], model: Manifest, result: Added
    ) -> Iterator[_Encoded]:
        """Encode the photos that their users do not have yet.

        The others are counted in ``result``: as known, or as rejected with the reason.
        """
        max_bytes = model.preprocessing.max_bytes
        sent: deque[tuple[_Source, str]] = deque()

        def unknown() -> Iterator[bytes]:
            for source in sources:
                try:
                    content = read_photo(source.photo, max_bytes)
                except PhotoError as error:
                    result.rejected.append(Rejected(source.name, str(error), error.code))
                    continue
                digest = hashlib.sha256(content).hexdigest()
                if self._is_known(source, digest):
                    result.known += 1
                    continue
                sent.append((source, digest))
                yield content

        encoder = self._require_encoder(model)
        for vector in encoder.encode_each(unknown(), fingerprint=model.fingerprint):
            source, digest = sent.popleft()
            if isinstance(vector, ModelChangedError):
                raise self._explain_other_model(model, vector)
            if isinstance(vector, ServerError) and not isinstance(vector, BadVectorError):
                raise vector  # says nothing about the photo: it can be tried again later
            if isinstance(vector, PhotoError):
                result.rejected.append(Rejected(source.name, str(vector), vector.code))
            elif isinstance(vector, VibematchError):
                result.rejected.append(Rejected(source.name, str(vector)))
            else:
                yield _Encoded(
                    source.user_id, StoredPhoto(digest, vector, source.path, source.photo_id)
                )

    def _is_known(self, source: _Source, digest: str) -> bool:
        if not source.photo_id:
            return self._store.has_photo(source.user_id, digest)
        return any(
            (photo.photo_id, photo.content_sha256) == (source.photo_id, digest)
            for photo in self._store.photos(source.user_id)
        )

    def _commit(
        self,
        batch: Sequence[_Encoded],
        attributes: _Attributes,
        preferences: Mapping[str, Where],
        model: Manifest,
        result: Added,
    ) -> None:
        """Store freshly encoded photos and their users' attributes in one transaction."""
        if not batch:
            return
        photos: dict[str, list[StoredPhoto]] = {}
        for user_id, photo in batch:
            photos.setdefault(user_id, []).append(photo)
        with self._live.writing(model) as store:  # what is stored stays as it is meanwhile
            profiles = [
                Profile(
                    user_id,
                    some,
                    _labelled(store.attributes(user_id) or {}, attributes.get(user_id, {})),
                    preferences.get(user_id),
                )
                for user_id, some in photos.items()
            ]
            added = store.write(profiles)
        result.added += added
        result.known += len(batch) - added

    def _outdated(self, attributes: _Attributes, preferences: Mapping[str, Where]) -> list[Profile]:
        """Users of the index of whom something else is stored than is known now."""
        profiles = []
        for user_id in attributes.keys() | preferences.keys():
            user = self._store.user(user_id)
            if user is None:
                continue
            labels = _labelled(user.attributes, attributes.get(user_id, {}))
            wishes = preferences.get(user_id)
            if labels != user.attributes or wishes not in (None, user.preferences):
                profiles.append(Profile(user_id, (), labels, wishes))
        return profiles

    def _given_photos(self, vectors: npt.ArrayLike) -> list[StoredPhoto]:
        dim = self._store.manifest.embedding_dim
        rows = _unit_rows(_as_numbers(vectors, dim), dim)
        return [StoredPhoto(hashlib.sha256(row.tobytes()).hexdigest(), row) for row in rows]


def _labelled(stored: Mapping[str, Value], labels: Mapping[str, Value | None]) -> dict[str, Value]:
    """A user's stored attributes, updated by the labels of the photos at hand."""
    merged: dict[str, Value | None] = {**stored, **labels}
    return {name: value for name, value in merged.items() if value is not None}


def _sources(photos: Sequence[Photo], on_progress: Callable[[int, int], None]) -> Iterator[_Source]:
    for done, photo in enumerate(photos):
        on_progress(done, len(photos))
        yield _Source(photo.user_id, str(photo.path), photo.path)
    on_progress(len(photos), len(photos))


def _named_sources(
    user_id: str, photos: Iterable[PhotoLike] | Mapping[str, PhotoLike]
) -> list[_Source]:
    if isinstance(photos, Mapping):
        for photo_id in photos:
            check_photo_id(photo_id)
        return [
            _Source(user_id, f"photo {photo_id}", photo, photo_id)
            for photo_id, photo in photos.items()
        ]
    refuse_single(photos)
    if not isinstance(photos, Iterable):
        raise InputError(f"photos must be a list of photos, got {photos!r}")
    return [_Source(user_id, photo_name(index, photo), photo) for index, photo in enumerate(photos)]


def _check_limits(top_k: object, min_score: object) -> None:
    if not _is_whole(top_k) or not 1 <= top_k <= _MOST:
        raise InputError(f"top_k must be a whole number of at least 1, got {top_k!r}")
    if min_score is not None and not (
        isinstance(min_score, int | float | np.number) and -1 <= min_score <= 1
    ):
        raise InputError(f"min_score must be a number between -1 and 1, got {min_score!r}")


def _is_whole(number: object) -> TypeGuard[int]:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _check_exclude(exclude: object) -> None:
    if isinstance(exclude, tuple) and not exclude:  # most often
        return
    if (
        not isinstance(exclude, Collection)
        or isinstance(exclude, str | bytes)
        or not all(isinstance(user_id, str) for user_id in exclude)
    ):
        raise InputError(f"exclude must be a list of user ids, got {exclude!r}")


def _unit_mean(vectors: Vector) -> Vector:
    mean: Vector = vectors[0]
    if len(vectors) > 1:
        mean = unit_means(vectors, np.zeros(1, np.intp))[0]
    return mean


def _timed_ms(search: Callable[[Question], _Answer], question: Question) -> tuple[_Answer, float]:
    start = time.perf_counter()
    answer = search(question)
    return answer, 1000 * (time.perf_counter() - start)


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


def _as_numbers(vectors: object, dim: int) -> npt.NDArray[np.float64]:
    try:
        return np.array(vectors, dtype=np.float64, order="C")
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"a vector must be {dim} numbers ({error})") from error


def _unit_rows(rows: npt.NDArray[np.float64], dim: int) -> Vector:
    """Vectors from outside, checked and scaled to unit length, float32, ``[n, dim]``."""
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise InputError(f"vectors must have shape [n, {dim}], got {list(rows.shape)}")
    unit = np.empty(rows.shape, np.float32)
    if scan.scale(rows, unit) >= 0:
        raise InputError("a vector is all zeros or not finite: it has no direction")
    return unit
