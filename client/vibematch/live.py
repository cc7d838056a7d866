"""The search index of a store while it is open: loaded, kept in step, compacted, saved."""

from __future__ import annotations

import ctypes
import itertools
import logging
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np

from vibematch.errors import StoreError, VibematchError
from vibematch.index import HnswIndex
from vibematch.manifest import Manifest
from vibematch.records import UserRow
from vibematch.store import ProfileStore
from vibematch.vectors import Vector

_LOG: Final = logging.getLogger(__name__)
_POLL_S: Final = 0.2
_AFTER_FAILURE_S: Final = 5.0
_MUCH_UNSAVED: Final = 0.2
_FEW_UNSAVED: Final = 10_000
_UNKNOWN: Final = -1
_LOADED_TOGETHER: Final = 1_000


class LiveIndex:
    """A store and its search index; safe to share between threads.

    A thread of its own saves a snapshot where much has changed, and compacts the index where much
    of it is free; for a reader, it follows what the writer does.

    Args:
        store: is closed with this.

    Attributes:
        store: that of the present generation: a reader goes over to a new one by itself.
    """

    def __init__(self, store: ProfileStore) -> None:
        self.store = store
        self._read_only = store.read_only  # a writer's former store is so, too, when it goes over
        self._index: HnswIndex | None = None
        self._former: list[ProfileStore] = []
        self._loading = threading.Lock()
        self._writing = threading.RLock()
        self._starting = threading.Lock()
        self._following = threading.RLock()  # whoever makes the index follow the store
        self._maintaining = threading.RLock()  # one snapshot or compaction at a time
        self._behind = False
        self._opened_sequence = store.sequence
        self._saved_sequence = _UNKNOWN  # until the index is loaded
        self._unsaved = 0
        self._keeper = _Keeper(self)
        if store.read_only:
            self._keeper.start()

    @property
    def index(self) -> HnswIndex:
        """The index, as the store was after the last :meth:`follow`; loaded on first use.

        Raises:
            StoreError: the store is closed, or it is damaged.
        """
        index = self._index
        if self.store.closed:
            raise StoreError(f"the index at {self.store.path} is closed")
        if index is not None:
            return index
        with self._loading:
            while (index := self._index) is None:
                store = self.store
                loaded, saved_sequence = _load(store)
                with self._following:
                    if self.store is store:
                        self._index, self._saved_sequence = loaded, saved_sequence
                        self.follow()  # what was written meanwhile
            _give_memory_back()
            return index

    @property
    def is_loaded(self) -> bool:
        """Whether there is an index in memory that has to follow."""
        return self._index is not None

    @contextmanager
    def writing(self, model: Manifest | None = None) -> Iterator[ProfileStore]:
        """The store, to write to; what was written is in the index afterwards.

        Args:
            model: that of the vectors to be written, if there are any.

        Raises:
            ModelMismatchError: the index has gone over to another model meanwhile.
        """
        with self._writing:
            if self.store.superseded:  # going over was cut short
                self.adopt()
            if model is not None:
                self.store.require_model(model)
            try:
                yield self.store
            finally:  # part of it may be written
                self.follow()

    @contextmanager
    def switching(self) -> Iterator[None]:
        """Nobody writes within; afterwards, this goes over to the generation that is newest."""
        with self._writing:
            yield
            self.adopt()

    def follow(self) -> None:
        """Bring the index up to the state of the store, if it is loaded."""
        with self._following:
            if self._index is None:
                return
            try:
                self._unsaved += _follow(self._index, self.store)
            except VibematchError:  # of the store: nothing was changed
                raise
            except BaseException:  # who knows what is missing now: have it loaded anew
                self._index = None
                raise
            self._wake()

    def refresh(self) -> None:
        """Follow what another process has written, a switch to another generation included."""
        if not self._read_only:
            self.follow()
            return
        with self._following:
            self._behind = self.store.changed() or self._behind
            if self._behind:
                if self.store.superseded:
                    self.adopt()
                else:
                    self.follow()
                self._behind = False

    def adopt(self) -> None:
        """Go over to the newest generation; if the index is in use, its new one is loaded first."""
        former = self.store
        store = former.reopened()
        index, saved_sequence = None, _UNKNOWN
        try:
            if self._index is not None:
                index, saved_sequence = _load(store)
                _give_memory_back()
        finally:  # whatever happens, that is the store which has the lock now
            with self._following:
                former.retire()
                self._former.append(former)  # somebody may be reading it
                self.store, self._index, self._saved_sequence = store, index, saved_sequence
                self._opened_sequence = store.sequence
        self.follow()

    def compact(self) -> None:
        """Give back the memory and disk space of what was deleted or replaced.

        Takes as long as making the index anew; searches and writes go on meanwhile.

        Raises:
            StoreError: the index is read-only, or the disk does not take it.
        """
        with self._maintaining:
            self.store.compact()
            self._compact_index()
            self.save()

    def _compact_index(self) -> None:
        index, store = self.index, self.store
        _LOG.info("compacting the search index of %d users", len(index))
        fresh = index.compacted(self._keeper.stopping.is_set)
        if fresh is None:
            return
        _follow(fresh, store)  # the most part, while others write
        with self._following:
            if self._index is index:
                _follow(fresh, store)
                self._index = fresh

    def save(self) -> None:
        """Write a snapshot, so that the next start is quick.

        Raises:
            StoreError: the index is read-only, or the disk does not take it.
        """
        with self._maintaining:
            store, index = self.store, self.index
            if self._read_only:
                raise StoreError(f"the index at {store.path} was opened read-only")
            _save(index, store)
            self._saved_sequence, self._unsaved = index.sequence, 0

    def close(self, *, may_load: bool = True) -> None:
        """Save a snapshot if anything changed, and close the store; harmless when done twice.

        Args:
            may_load: also where the index would have to be loaded for that.
        """
        self._keeper.stop()
        store = self.store
        try:
            may_save = self.is_loaded or may_load
            if may_save and not (store.closed or store.read_only) and self._is_unsaved():
                self.save()
        finally:
            for each in (*self._former, store):
                each.close()

    def _is_unsaved(self) -> bool:
        if self._index is not None:
            return self.store.sequence != self._saved_sequence
        # A few changes are quicker made again by whoever opens it next.
        changed = len(self.store.changes(self._opened_sequence).users)
        return changed > _MUCH_UNSAVED * self.store.count_users()

    # --- the thread

    def _wake(self) -> None:
        """Have the thread look after the index, where there is something to do."""
        if self._read_only or not (self._is_much_unsaved() or self._wants_compaction()):
            return
        with self._starting:
            if not self._keeper.is_alive() and not self._keeper.stopping.is_set():
                self._keeper.start()
        self._keeper.woken.set()

    def _keep(self) -> None:
        """One round of what the thread does."""
        if self._read_only:
            self.refresh()
            return
        if self._wants_compaction():
            with self._maintaining:
                self._compact_index()
                self.save()
        elif self._is_much_unsaved():
            self.save()

    def _wants_compaction(self) -> bool:
        return self._index is not None and self._index.wants_compaction

    def _is_much_unsaved(self) -> bool:
        users = 0 if self._index is None else len(self._index)
        return self._unsaved > max(_FEW_UNSAVED, _MUCH_UNSAVED * users)


class _Keeper(threading.Thread):
    """Looks after a :class:`LiveIndex` until it is closed, or nobody uses it any more."""

    def __init__(self, live: LiveIndex) -> None:
        super().__init__(name="vibematch-keeper", daemon=True)
        self.woken = threading.Event()
        self.stopping = threading.Event()
        self._live = weakref.ref(live)
        self._every_s = _POLL_S if live.store.read_only else None
        # Also at the end of the process: Python aborts where it ends a thread that is in hnswlib.
        weakref.finalize(live, self.stop)

    def stop(self) -> None:
        """Have it stop, and wait for that."""
        self.stopping.set()
        self.woken.set()
        if self.is_alive() and self is not threading.current_thread():
            self.join()

    def run(self) -> None:
        """What the thread does."""
        while True:
            self.woken.wait(self._every_s)
            self.woken.clear()
            live = self._live()
            if live is None or self.stopping.is_set():
                return
            try:
                live._keep()
            except Exception as error:  # whatever it is, the index goes on without
                known = isinstance(error, VibematchError)
                _LOG.warning("%s", error, exc_info=not known)
                self.stopping.wait(_AFTER_FAILURE_S)
            del live


def save_first_snapshot(store: ProfileStore) -> None:
    """Make the search index of a generation that does not answer yet, for whoever opens it.

    Raises:
        StoreError: the store is damaged, or the disk does not take it.
    """
    index, _ = _load(store)
    _save(index, store)


def _load(store: ProfileStore) -> tuple[HnswIndex, int]:
    """The index of a store, and the sequence number of the snapshot that it comes from."""
    manifest = store.manifest
    dim = manifest.embedding_dim
    with store.reading():
        sequence = store.sequence
        loaded = HnswIndex.load(store.folder, manifest.fingerprint, dim, store.users())
        if loaded is not None:
            index, missing = loaded
            if len(missing) <= len(index):
                saved_sequence = index.sequence
                vectors = store.user_vectors([user.id for user in missing])
                index.update(missing, _by_id(missing, vectors), (), sequence)
                return index, saved_sequence
        index = HnswIndex.gather(dim, _with_vectors(store), sequence)
    _LOG.info("making the search index of %d users", len(index))
    index.connect()
    return index, _UNKNOWN


def _with_vectors(store: ProfileStore) -> Iterator[tuple[list[UserRow], Vector]]:
    users = store.users()
    while some := list(itertools.islice(users, _LOADED_TOGETHER)):
        yield some, store.user_vectors([user.id for user in some])


def _follow(index: HnswIndex, store: ProfileStore) -> int:
    """Bring an index up to the state of a store; returns how many users changed."""
    with store.reading():
        changes = store.changes(index.sequence)
        missing = index.without_vector(changes.users)
        vectors = store.user_vectors([user.id for user in missing])
        removed = changes.removed
        if removed is None:
            removed = np.setdiff1d(index.ids(), [user.id for user in changes.users]).tolist()
    index.update(changes.users, _by_id(missing, vectors), removed, changes.sequence)
    return len(changes.users) + len(removed)


def _save(index: HnswIndex, store: ProfileStore) -> None:
    try:
        index.save(store.folder, store.manifest.fingerprint)
    except OSError as error:
        raise StoreError(
            f"the snapshot in {store.folder} cannot be written ({error}); "
            "all users are safe in the store"
        ) from error
    _give_memory_back()


def _give_memory_back() -> None:
    """Let the kernel have what was freed: glibc keeps it, some 50 bytes for each user."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _by_id(users: Sequence[UserRow], vectors: Vector) -> dict[int, Vector]:
    return {user.id: vector for user, vector in zip(users, vectors, strict=True)}
