"""Nearest users in memory: an HNSW graph, the vectors themselves, and what filters ask about.

The index follows the store and can always be made anew from it. Searches share a lock and never
touch the disk; a change takes the lock for a few milliseconds at a time.

Each user has a row, which is also the label in the graph. Rows are never written twice: a user
whose vector changes gets a new row, and the old one stays free until :meth:`HnswIndex.compacted`.
hnswlib would reuse it, but at six times the time, and with a worse graph.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from vibematch import planner, scan
from vibematch.attributes import Condition, Value
from vibematch.filters import Columns, Few, Filter, Mask, Selector
from vibematch.planner import NOT_THOUGHT_OF, Expected, Plan
from vibematch.records import UserRow
from vibematch.snapshot import Snapshot, new_graph, read_snapshot, write_snapshot
from vibematch.vectors import (
    NO_ROWS,
    ROUNDING,
    Coded,
    Look,
    Partition,
    Rows,
    Scores,
    Vector,
    VectorRows,
    best_of,
    find_centroids,
    least_of_best,
    nearest_centroids,
    vector_keys,
)

Ids: TypeAlias = npt.NDArray[np.int64]

_M: Final = 16
_EF_CONSTRUCTION: Final = 200
_SEED: Final = 100
_FIRST_CAPACITY: Final = 1024
_GROWTH: Final = 1 / 8
_SLICE: Final = 16
"""Users added while searches wait; each takes about half a millisecond."""
_BUILD_SLICE: Final = 2048
_ALL_CORES: Final = -1
_PARTITIONED_FROM: Final = 4_000
_SKELETON: Final = 1 / 20
"""Of all users: those who enter a new graph first, in random order.

A graph that gets one list after the other is a worse graph, but for users who find some of every
list there already. And hnswlib keeps users in memory in the order in which they came: with the
lists together a search reads what is side by side.
"""
_MOST_TWINS: Final = 16
"""So many users with the very same vector are in the graph, half as many as each has links there.

More of them (a default avatar, a stock photo) would link to each other and to nobody else, and a
search that meets them would not get past them.
"""
_RANKED_PER_MATCH: Final = 4
"""Sorting so many by name is quicker than leaving all out but the best."""
_MOST_FREE: Final = 0.25
_FEW_FREE: Final = 1_000


class Match(NamedTuple):
    """A user and how alike the style is, as cosine similarity in [-1, 1]."""

    user_id: str
    score: float

    def __repr__(self) -> str:
        return f"({self.user_id!r}, {self.score:.4f})"


class Question(NamedTuple):
    """What a search asks.

    Attributes:
        vector: unit vector, float32, ``[dim]``.
        top_k: how many users to return, at most.
        wanted: what they have to be.
        exclude: users to leave out.
        min_score: the least score of a match, up to rounding (1e-6).
    """

    vector: Vector
    top_k: int
    wanted: Filter = Filter()
    exclude: Collection[str] = ()
    min_score: float = -math.inf


class _Search(NamedTuple):
    """A question, in rows.

    Attributes:
        vector: unit vector, float32, ``[dim]``.
        top_k: how many users to return, at most.
        least: the least score of a match.
        wanted: what they have to be.
        qualifying: tells who meets the filter, and is not gone.
        excluded: rows to leave out, ascending.
    """

    vector: Vector
    top_k: int
    least: float
    wanted: Filter
    qualifying: Selector
    excluded: Rows


class _SharedLock:
    """Many searches at a time, ``with`` it, or one change, which goes before later searches."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._condition = threading.Condition(self._mutex)
        self._searching = 0
        self._waiting = 0
        self._changing = False

    def __enter__(self) -> None:
        with self._mutex:
            if self._changing:
                self._wait_for_change()
            self._searching += 1

    def __exit__(self, *error: object) -> None:
        with self._mutex:
            self._searching -= 1
            if self._changing and not self._searching:
                self._condition.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """For one thread at a time: others have to be kept out by other means."""
        try:
            with self._condition:
                self._changing = True
                self._condition.wait_for(lambda: not self._searching)
            yield
        finally:
            with self._condition:
                self._changing = False
                self._condition.notify_all()

    def let_searches_in(self) -> None:
        """Between changes: have those go first who waited for the last one."""
        with self._condition:
            self._condition.wait_for(lambda: not self._waiting)

    def _wait_for_change(self) -> None:
        self._waiting += 1
        try:
            self._condition.wait_for(lambda: not self._changing)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._condition.notify_all()


class HnswIndex:
    """Unit vectors of users, searchable by cosine similarity; safe to share between threads.

    Args:
        dim: length of a vector.

    Attributes:
        sequence: the store's sequence number up to which this index has followed it.
    """

    def __init__(self, dim: int) -> None:
        self.sequence = 0
        self._dim = dim
        self._changing = threading.Lock()  # one change at a time; searches do not take it
        self._lock = _SharedLock()
        self._rows: dict[str, int] = {}
        self._users: list[str | None] = []
        self._ids: Ids = np.zeros(_FIRST_CAPACITY, np.int64)
        self._revisions: Ids = np.zeros(_FIRST_CAPACITY, np.int64)
        self._alive: Mask = np.zeros(_FIRST_CAPACITY, bool)
        self._lists = np.zeros(_FIRST_CAPACITY, np.uint16)
        self._keys = np.zeros(_FIRST_CAPACITY, np.uint32)  # of vectors; 0 where a row is free
        self._outside: dict[int, set[int]] = {}  # key → rows that are not in the graph
        self._partition: Partition | None = None
        self._columns = Columns()
        self._vectors = VectorRows(dim)
        self._graph = new_graph(dim)
        self._graph.init_index(
            _FIRST_CAPACITY, M=_M, ef_construction=_EF_CONSTRUCTION, random_seed=_SEED
        )
        self._graph.set_ef(planner.ef_search(0))

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, user_id: object) -> bool:
        return user_id in self._rows

    def __repr__(self) -> str:
        return f"<HnswIndex: {len(self):,} users, {self._dim} dimensions>"

    # --- what is there

    def users(self) -> list[str]:
        """All users, sorted."""
        with self._lock:
            return sorted(self._rows)

    def ids(self) -> Ids:
        """Ids of all users, in no order."""
        with self._lock:
            count = len(self._users)
            ids: Ids = self._ids[:count][self._alive[:count]]
            return ids

    def id_of(self, user_id: str) -> int | None:
        """A user's id, ``None`` for an unknown user."""
        with self._lock:
            row = self._rows.get(user_id)
            return None if row is None else int(self._ids[row])

    def vector(self, user_id: str) -> Vector | None:
        """A user's vector, ``None`` for an unknown user."""
        with self._lock:
            row = self._rows.get(user_id)
            return None if row is None else self._vectors[row].copy()

    def about(self, user_id: str) -> tuple[dict[str, Value], dict[str, Condition]] | None:
        """A user's attributes and preferences, as :meth:`Columns.about` has them."""
        with self._lock:
            row = self._rows.get(user_id)
            return None if row is None else self._columns.about(row)

    def without_vector(self, users: Sequence[UserRow]) -> list[UserRow]:
        """Those users whose present vector is not in the index."""
        return [user for user in users if self._row_of(user) is None]

    @property
    def wants_compaction(self) -> bool:
        """Whether many rows are free, or most have come since the rows were put in order."""
        rows = len(self._users)
        free = rows - len(self._rows)
        return free > max(_FEW_FREE, _MOST_FREE * rows) or (
            rows > max(_PARTITIONED_FROM, 2 * self._sorted_rows)
        )

    # --- changing it

    def update(
        self,
        users: Sequence[UserRow],
        vectors: Mapping[int, Vector],
        removed: Collection[int],
        sequence: int,
    ) -> None:
        """Follow the store: forget users, add users, replace vectors, attributes, preferences.

        Args:
            users: who changed.
            vectors: id → unit vector, float32, ``[dim]``, of those :meth:`without_vector`.
            removed: ids of users who are gone.
            sequence: number of the write up to which this follows.
        """
        with self._changing:
            self._forget(removed)
            for start in range(0, len(users), _SLICE):
                if start:
                    self._lock.let_searches_in()
                with self._lock.exclusive():
                    self._put(users[start : start + _SLICE], vectors)
            self._columns.keep_sorted(len(self._users))
            self.sequence = sequence

    @classmethod
    def gather(
        cls, dim: int, people: Iterable[tuple[Sequence[UserRow], Vector]], sequence: int
    ) -> HnswIndex:
        """A new index that lacks the graph still: have it :meth:`connect`.

        Args:
            dim: length of a vector.
            people: some users and their unit vectors, float32, ``[users, dim]``, at a time.
            sequence: number of the write up to which this follows the store.
        """
        index, parts = cls(dim), [np.empty((0, dim), np.float32)]
        names: list[str] = []
        ids: list[int] = []
        revisions: list[int] = []
        for users, vectors in people:
            for row, user in enumerate(users, start=len(names)):
                index._columns.put(row, user.attributes, user.preferences)
            names += (user.user_id for user in users)
            ids += (user.id for user in users)
            revisions += (user.vector_revision for user in users)
            parts.append(vectors)
        index._place(names, np.array(ids, int), np.array(revisions, int), np.concatenate(parts))
        index.sequence = sequence
        return index

    def compacted(self, cancelled: Callable[[], bool] = lambda: False) -> HnswIndex | None:
        """A copy without free rows, its rows in the order of their lists.

        Takes as long as building it; searches and changes go on meanwhile, and the copy has to
        follow the store from its ``sequence`` on.

        Args:
            cancelled: asked every now and then whether nobody wants the copy any more.

        Returns:
            The copy, ``None`` if it was cancelled.
        """
        copy = HnswIndex(self._dim)
        with self._changing:
            rows = np.flatnonzero(self._alive[: len(self._users)])
            users = [str(self._users[row]) for row in rows]
            ids, revisions = self._ids[rows], self._revisions[rows]
            copy.sequence = self.sequence
            copy._columns = self._columns.take(rows)
            vectors = self._vectors.take(rows)
        copy._place(users, ids, revisions, vectors)
        complete = copy.connect(1, cancelled)
        return copy if complete else None

    def _place(self, users: Sequence[str], ids: Ids, revisions: Ids, vectors: Vector) -> None:
        """Give users rows in an empty index, whose columns are there already, in given order."""
        count = len(users)
        order = np.arange(count)
        self._make_room(count)
        if count >= _PARTITIONED_FROM:
            centroids = find_centroids(vectors, _SEED)
            lists = nearest_centroids(vectors, centroids)
            order = np.argsort(lists, kind="stable")
            vectors, self._lists[:count] = vectors[order], lists[order]
            self._columns = self._columns.take(order)
            self._partition = Partition.of(vectors, lists[order], centroids)
        self._vectors.replace(Coded.of(np.ascontiguousarray(vectors)))
        self._ids[:count], self._revisions[:count] = ids[order], revisions[order]
        self._alive[:count] = True
        self._keys[:count] = vector_keys(vectors)
        self._leave_twins_out()
        self._columns.keep_sorted(count)
        names = [users[place] for place in order]
        self._users = list(names)
        self._rows = {user: row for row, user in enumerate(names)}

    @property
    def _sorted_rows(self) -> int:
        return 0 if self._partition is None else self._partition.rows

    def _leave_twins_out(self) -> None:
        """Choose who stays out of the graph, of an index that was just filled."""
        keys = self._keys[: len(self._vectors)]
        order = np.argsort(keys, kind="stable")
        _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
        for start, count in zip(starts, counts, strict=True):
            if count > _MOST_TWINS:
                rows = order[start : start + count]
                self._outside[int(keys[rows[0]])] = set(rows[_MOST_TWINS:].tolist())

    def connect(
        self, threads: int = _ALL_CORES, cancelled: Callable[[], bool] = lambda: False
    ) -> bool:
        """Put all users of a new index into its graph, for which it takes time.

        Args:
            threads: on so many cores; -1 for all.
            cancelled: asked every now and then whether nobody wants the index any more.

        Returns:
            Whether it was not cancelled.
        """
        inside = sorted(set(range(len(self._users))).difference(*self._outside.values()))
        order = np.random.default_rng(_SEED).permutation(inside)
        if self._partition is not None:  # rows are in the order of their lists
            order[round(_SKELETON * len(order)) :].sort()
        for start in range(0, len(order), _BUILD_SLICE):
            if cancelled():
                return False
            some = order[start : start + _BUILD_SLICE]
            self._graph.add_items(self._vectors.take(some), some, num_threads=threads)
        return True

    def _forget(self, removed: Collection[int]) -> None:
        if not removed:
            return
        count = len(self._users)
        rows = np.flatnonzero(np.isin(self._ids[:count], list(removed)) & self._alive[:count])
        with self._lock.exclusive():
            for row in rows:
                self._retire(int(row))

    def _retire(self, row: int) -> None:
        user_id = self._users[row]
        self._leave_graph(row)
        self._alive[row] = False
        self._ids[row] = 0
        self._users[row] = None
        if user_id is not None and self._rows.get(user_id) == row:
            del self._rows[user_id]

    def _leave_graph(self, row: int) -> None:
        key = int(self._keys[row])
        self._keys[row] = 0
        twins = self._outside.get(key, set())
        if row in twins:
            twins.remove(row)
        else:
            self._graph.mark_deleted(row)
            if twins:  # somebody has to stand for them
                heir = twins.pop()
                self._graph.add_items(self._vectors[heir][np.newaxis], [heir], num_threads=1)
        if not twins:
            self._outside.pop(key, None)

    def _enter_graph(self, vectors: Vector, first: int) -> None:
        """Put new rows into the graph, but for those that have enough twins there."""
        inside = []
        for row, key in enumerate(vector_keys(vectors), start=first):
            twins = np.count_nonzero(self._keys[:row] == key)
            self._keys[row] = key
            if twins < _MOST_TWINS:
                inside.append(row)
            else:
                self._outside.setdefault(int(key), set()).add(row)
        if inside:
            rows = np.array(inside)
            self._graph.add_items(vectors[rows - first], rows, num_threads=1)

    def _put(self, users: Sequence[UserRow], vectors: Mapping[int, Vector]) -> None:
        fresh = [user for user in users if user.id in vectors]
        if fresh:
            self._append(fresh, np.stack([vectors[user.id] for user in fresh]))
        for user in users:
            self._columns.put(self._rows[user.user_id], user.attributes, user.preferences)

    def _append(self, users: Sequence[UserRow], vectors: Vector) -> None:
        first, end = len(self._users), len(self._users) + len(users)
        self._make_room(end)
        self._enter_graph(vectors, first)
        self._vectors.append(vectors)
        self._ids[first:end] = [user.id for user in users]
        self._revisions[first:end] = [user.vector_revision for user in users]
        self._alive[first:end] = True
        if self._partition is not None:
            self._lists[first:end] = self._partition.assign(vectors)
        for row, user in enumerate(users, start=first):
            old = self._rows.get(user.user_id)
            if old is not None:
                self._retire(old)
            self._users.append(user.user_id)
            self._rows[user.user_id] = row

    def _make_room(self, count: int) -> None:
        if count > self._graph.get_max_elements():  # in steps: growing takes longer the more it is
            self._graph.resize_index(count + max(_FIRST_CAPACITY, int(_GROWTH * count)))
            self._graph.set_ef(planner.ef_search(count))
        if count > len(self._ids):
            capacity = count + max(_FIRST_CAPACITY, int(_GROWTH * count))
            for name in ("_ids", "_revisions", "_alive", "_lists", "_keys"):
                array = getattr(self, name)
                longer = np.zeros(capacity, array.dtype)
                longer[: len(array)] = array
                setattr(self, name, longer)

    def _row_of(self, user: UserRow) -> int | None:
        """The row with the user's present vector."""
        row = self._rows.get(user.user_id)
        if row is None or (self._ids[row], self._revisions[row]) != (user.id, user.vector_revision):
            return None
        return row

    # --- searching

    def search(self, question: Question) -> tuple[list[Match], Plan]:
        """The most similar users, and how they were found.

        Returns:
            ``min(top_k, users who qualify)`` matches, best first, ties by user id; the plan.
        """
        with self._lock:
            return self._search(self._in_rows(question))

    def search_exactly(self, question: Question) -> list[Match]:
        """The most similar users, found by comparing all who qualify."""
        with self._lock:
            search = self._in_rows(question)
            return self._compare_all(search)[0]

    def _in_rows(self, question: Question) -> _Search:
        wanted = question.wanted
        rows, excluded = self._rows, NO_ROWS
        if len(question.exclude):
            places = [rows[name] for name in question.exclude if name in rows]
            excluded = np.array(sorted(places), np.intp)
        everybody_lives = len(self._rows) == len(self._users)  # most often: one test fewer
        return _Search(
            question.vector,
            question.top_k,
            question.min_score - ROUNDING,
            wanted,
            self._columns.selector(wanted, None if everybody_lives else self._alive),
            excluded,
        )

    def _search(self, search: _Search) -> tuple[list[Match], Plan]:
        users, few = len(self._rows), search.qualifying.few
        if users <= planner.EXACT_UP_TO or (
            few is not None and planner.are_compared(few.size, search.top_k, users)
        ):
            return self._compare_all(search)
        seen = np.zeros(0 if self._partition is None else len(self._partition), bool)
        if few is not None and planner.are_sought(few.size, search.top_k, users):
            look = self._look(search, seen, len(self._users), few=few)
        else:
            look = self._look(search, seen, planner.FIRST_LOOK)
        expected = NOT_THOUGHT_OF
        if look.ahead:
            share = look.compared / look.tried if look.tried else look.share
            tried = min(look.ahead, self._most_tried(search))
            ahead_us = self._scan_us(tried, share * tried, share)
            few_us = math.inf
            if few is not None:
                few_us = self._scan_us(few.size, few.size * look.ahead / users, 0)
            expected = self._think_of_graph(search, look.share, min(ahead_us, few_us))
            if expected.fetched is not None:
                found = self._ask_graph(search, expected.fetched, look)
                if found is not None:
                    return found, Plan("graph", users, look.tried, look.compared, None, *expected)
            if self._partition is None:
                return self._compare_all(search, expected)
            look = self._look_on(look, search, seen, few if few_us < ahead_us else None)
        look = self._with_unsorted(look, search, seen)
        return self._scanned(look, search, look.tried == len(self._users), expected)

    def _scan_us(self, tried: float, compared: float, share: float) -> float:
        return planner.scan_us(tried, compared, share, len(self._rows), self._dim)

    def _think_of_graph(self, search: _Search, share: float, scan_us: float) -> Expected:
        """For how many users to ask the graph, if it would be quicker, and what it would take.

        Args:
            search: the question.
            share: about how many of those nearest to the query qualify, in (0, 1].
            scan_us: expected microseconds of a scan.
        """
        users, share = len(self._rows), share if search.wanted else 1.0
        fetch = planner.fetch_for(search.top_k + len(search.excluded), share)
        if search.wanted:  # costs no more, and more of them qualify
            fetch = max(fetch, min(planner.ef_search(users), users // 4))
        graph_us = planner.graph_us(fetch, users, self._dim, is_filtered=bool(search.wanted))
        return Expected(fetch if graph_us < scan_us else None, graph_us, scan_us)

    def _compare_all(
        self, search: _Search, expected: Expected = NOT_THOUGHT_OF
    ) -> tuple[list[Match], Plan]:
        look = self._nearest(search, search.qualifying.few)
        return self._scanned(look, search, True, expected)

    def _scanned(
        self, look: Look, search: _Search, is_exact: bool, expected: Expected
    ) -> tuple[list[Match], Plan]:
        qualifying = look.compared if is_exact else None
        plan = Plan("scan", len(self._rows), look.tried, look.compared, qualifying, *expected)
        return self._matches(look.rows, look.scores, search), plan

    def _nearest(self, search: _Search, few: Few | None, first: int = 0) -> Look:
        """The nearest of all rows from one on, or of a few, in no order."""
        tests, rows = search.qualifying.tests, None
        if few is not None:
            tests, rows = few.tests, few.parts
        return self._vectors.nearest(
            search.vector, tests, search.excluded, search.top_k, search.least, rows, first
        )

    def _look(
        self,
        search: _Search,
        seen: Mask,
        most_tried: int,
        least: float = -math.inf,
        few: Few | None = None,
    ) -> Look:
        """The nearest of the sorted rows, in lists that were not seen yet.

        Args:
            search: the question.
            seen: the lists that were; those that are looked into now are added.
            most_tried: no further list is looked into after so many users.
            least: the least score that is of use, if it is more than what is asked for.
            few: among whom all are who qualify; nobody else is tried.
        """
        if self._partition is None:
            share = 0.5 if search.wanted else 1.0
            return Look(NO_ROWS, np.empty(0), 0, 0, len(self._users), share)
        return self._partition.look(
            self._vectors.first_block(),
            search.vector,
            search.qualifying.tests if few is None else few.tests,
            search.excluded,
            search.top_k,
            max(least, search.least),
            most_tried,
            seen,
            None if few is None else few.parts,
        )

    def _look_on(self, look: Look, search: _Search, seen: Mask, few: Few | None) -> Look:
        """Until it is settled who is nearest, or that takes too long and enough were compared."""
        bound = self._most_tried(search)
        enough = planner.compared_at_least(search.top_k)
        while look.ahead and (look.tried < bound or look.compared < enough):
            least = least_of_best(look.scores, search.top_k)
            most = bound - look.tried if look.tried < bound else look.tried
            more = self._look(search, seen, most, least - ROUNDING, few)
            look = look.followed_by(more)
            if not more.tried:
                break
        return look

    def _most_tried(self, search: _Search) -> int:
        """After so many a scan stops; never where few are known to qualify: these take little."""
        if search.qualifying.few is not None:
            return len(self._users)
        return planner.most_tried(len(self._rows))

    def _with_unsorted(self, look: Look, search: _Search, seen: Mask) -> Look:
        """With users who came since the rows were sorted: in lists that were seen, or in none."""
        unsorted = self._lists[self._sorted_rows : len(self._users)]
        if not len(unsorted):  # most often
            return look
        rows = np.flatnonzero(np.append(seen, True)[unsorted]) + self._sorted_rows
        if not len(rows):
            return look
        few = Few([rows], search.qualifying.tests, len(rows))
        more = self._nearest(search, few, self._sorted_rows)
        return look.followed_by(more._replace(ahead=look.ahead))

    def _ask_graph(self, search: _Search, fetch: int, look: Look) -> list[Match] | None:
        """The best of the nearest users and of those found; ``None`` if too few qualify."""
        try:
            labels, distances = self._graph.knn_query(
                search.vector[np.newaxis], k=fetch, num_threads=1
            )
        except RuntimeError:  # it cannot reach that many users
            return None
        rows, scores = labels[0].astype(np.intp), 1.0 - distances[0].astype(np.float64)
        complete = scores[-1] < search.least
        if self._outside:
            rows, scores = self._with_twins(rows, scores, search.vector)
        if search.wanted:
            places = search.qualifying.places(rows)
            rows, scores = rows[places], scores[places]
        if len(search.excluded):
            keep = np.isin(rows, search.excluded, invert=True)
            rows, scores = rows[keep], scores[keep]
        if not complete and len(rows) < search.top_k:
            return None
        if len(look.rows):
            others = np.isin(rows, look.rows, invert=True)
            rows = np.concatenate([look.rows, rows[others]])
            scores = np.concatenate([look.scores, scores[others]])
        return self._matches(rows, scores, search)

    def _with_twins(self, rows: Rows, scores: Scores, vector: Vector) -> tuple[Rows, Scores]:
        """Rows of the graph, and those that they stand for."""
        keys = set(self._keys[rows].tolist()) & self._outside.keys()
        others = np.array(sorted(set().union(*(self._outside[key] for key in keys))), np.intp)
        theirs = self._vectors.scores(others, vector)
        return np.concatenate([rows, others]), np.concatenate([scores, theirs])

    def _matches(self, rows: Rows, scores: Scores, search: _Search) -> list[Match]:
        """The best of some rows whose scores are known."""
        if len(rows) > _RANKED_PER_MATCH * search.top_k:
            rows, scores = best_of(rows, scores, search.top_k)
        return scan.rank(self._users, rows, scores, search.top_k, search.least, Match)

    # --- on disk

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write the snapshot, and let go of the memory of the vectors in it, which are mapped.

        Changes wait until it is written; searches do not.

        Args:
            folder: of the generation.
            fingerprint: the model's.

        Raises:
            OSError: the disk does not take it.
        """
        with self._changing:
            count = len(self._users)
            snapshot = Snapshot(
                sequence=self.sequence,
                dim=self._dim,
                vectors=self._vectors.blocks(),
                ids=self._ids[:count],
                revisions=self._revisions[:count],
                lists=self._lists[:count],
                partition=self._partition,
                graph=self._graph,
            )
            mapped = write_snapshot(folder, fingerprint, snapshot)
            with self._lock.exclusive():
                self._vectors.replace(mapped)

    @classmethod
    def load(
        cls, folder: Path, fingerprint: str, dim: int, users: Iterable[UserRow]
    ) -> tuple[HnswIndex, list[UserRow]] | None:
        """Read the snapshot, ``None`` if there is none that can be trusted.

        Args:
            folder: of the generation.
            fingerprint: the model that the vectors have to come from.
            dim: length of a vector.
            users: all users that there are now.

        Returns:
            The index, and users whose vector it does not have, or not the present one: have the
            index :meth:`update` them.
        """
        snapshot = read_snapshot(folder, fingerprint, dim)
        if snapshot is None:
            return None
        index, count = cls(dim), len(snapshot.ids)
        index._graph = snapshot.graph
        index._graph.set_ef(planner.ef_search(count))
        index._make_room(count)
        index._ids[:count], index._revisions[:count] = snapshot.ids, snapshot.revisions
        index._lists[:count] = snapshot.lists
        index._alive[:count] = snapshot.ids != 0
        index._partition = snapshot.partition
        (vectors,) = snapshot.vectors
        index._vectors.replace(vectors)
        index._keys[:count] = vector_keys(vectors.vectors) * (snapshot.ids != 0)
        if index._graph.get_current_count() < count:
            outside = np.setdiff1d(np.flatnonzero(snapshot.ids), index._graph.get_ids_list())
            for row in outside.tolist():
                index._outside.setdefault(int(index._keys[row]), set()).add(row)
        index._users = [None] * count
        index._columns.make_room(count)
        index.sequence = snapshot.sequence
        return index, index._recognise(users)

    def _recognise(self, users: Iterable[UserRow]) -> list[UserRow]:
        """Say whose the rows of a snapshot are, and free those of nobody or of old vectors.

        Returns:
            Users without a row.
        """
        by_id = np.argsort(self._ids[: len(self._users)], kind="stable")
        ids = self._ids[by_id]
        missing = []
        for user in users:
            place = int(np.searchsorted(ids, user.id))
            row = int(by_id[place]) if place < len(ids) and ids[place] == user.id else None
            if row is None or self._revisions[row] != user.vector_revision:
                missing.append(user)
                continue
            self._users[row] = user.user_id
            self._rows[user.user_id] = row
            self._columns.put(row, user.attributes, user.preferences)
        for row in np.flatnonzero(self._alive[: len(self._users)]).tolist():
            if self._users[row] is None:
                self._retire(row)
        self._columns.keep_sorted(len(self._users))
        return missing
