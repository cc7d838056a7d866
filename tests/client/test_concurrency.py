"""Threads and processes that search while others write see each acknowledged write."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.client.fork_server import DIM, ForkServer
from tests.client.reference import Array, check_answer, manifest_of, stored, unit

from vibematch import index
from vibematch.engine import MatchingEngine
from vibematch.records import Profile

_ROUNDING = 1e-5
_COLOURS = ("red", "green", "blue")
_TOP_K = 10


@dataclass
class Version:
    """What a user is from some moment on."""

    vector: Array
    colour: str
    begun_s: float
    acknowledged_s: float = math.inf


@dataclass
class Life:
    """A user, from the first write to the removal."""

    versions: list[Version] = field(default_factory=list)
    removal_begun_s: float = math.inf
    removed_s: float = math.inf

    def may_be(self, score: float, query: Array, colour: str | None, since: float) -> bool:
        """Whether a search that took from ``since`` until now may have found this user so."""
        if self.removed_s <= since:
            return False
        versions = list(self.versions)
        known = [n for n, version in enumerate(versions) if version.acknowledged_s <= since]
        return any(
            abs(float(version.vector @ query) - score) < _ROUNDING
            and colour in (None, version.colour)
            for version in versions[known[-1] if known else 0 :]
        )

    def has_to_be_there(self, since: float) -> bool:
        return self.versions[0].acknowledged_s <= since and self.removal_begun_s > time.monotonic()


class Town:
    """An engine that some threads search while one writes."""

    def __init__(self, engine: MatchingEngine, dim: int, seed: int) -> None:
        self.engine = engine
        self.lives: dict[str, Life] = {}
        self.alive: list[str] = []
        self.latencies_s: dict[str, list[float]] = {}
        self.searches = 0
        self.over = threading.Event()
        self._dim = dim
        self._rng = np.random.default_rng(seed)

    # --- writing, by one thread

    def write(self, user_ids: list[str], what: str) -> None:
        """Add users, or give them another vector and another colour."""
        rows = unit(self._rng.normal(size=(len(user_ids), self._dim)))
        colours = self._rng.choice(_COLOURS, len(user_ids)).tolist()
        profiles = [
            Profile(user_id, [stored(row, "face")], {"colour": colour, "name": user_id})
            for user_id, row, colour in zip(user_ids, rows, colours, strict=True)
        ]
        begun_s = time.monotonic()
        versions = [
            Version(row, colour, begun_s) for row, colour in zip(rows, colours, strict=True)
        ]
        for user_id, version in zip(user_ids, versions, strict=True):
            self.lives.setdefault(user_id, Life()).versions.append(version)
        self._timed(what, self.engine.add_many, profiles)
        for version in versions:
            version.acknowledged_s = time.monotonic()

    def add(self, count: int = 1) -> None:
        user_ids = [f"user_{len(self.lives) + number:06d}" for number in range(count)]
        self.write(user_ids, "add" if count == 1 else f"add {count}")
        self.alive += user_ids

    def remove(self) -> None:
        user_id = self.alive.pop(int(self._rng.integers(len(self.alive))))
        life = self.lives[user_id]
        life.removal_begun_s = time.monotonic()
        self._timed("remove", self.engine.remove, user_id)
        life.removed_s = time.monotonic()

    def anything(self) -> None:
        match self._rng.integers(10):
            case 0 | 1 | 2:
                self.add()
            case 3 | 4 | 5:
                self.remove()
            case _:
                self.write([self.alive[int(self._rng.integers(len(self.alive)))]], "replace")

    def _timed(self, what: str, call: Callable[[Any], object], argument: Any) -> None:
        began_s = time.perf_counter()
        call(argument)
        self.latencies_s.setdefault(what, []).append(time.perf_counter() - began_s)

    # --- searching, by many

    def search_until_over(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not self.over.is_set():
            user_id = self.alive[int(rng.integers(len(self.alive) - 1))]
            self._search_near(user_id, rng)
            self._search_for(user_id)
            self._search_by_pairs(user_id)
            self.searches += 3

    def _search_near(self, user_id: str, rng: np.random.Generator) -> None:
        """Whoever is found near a former or present vector of a user is so, and is there."""
        versions = self.lives[user_id].versions
        query = versions[int(rng.integers(len(versions)))].vector
        colour = None if rng.random() < 0.5 else str(rng.choice(_COLOURS))
        since = time.monotonic()
        where = {} if colour is None else {"colour": colour}
        found = self.engine.search(vector=query, top_k=_TOP_K, where=where)
        assert len(found) == _TOP_K
        assert found == sorted(found, key=lambda match: (-match.score, match.user_id))
        for name, score in found:
            assert self.lives[name].may_be(score, query, colour, since), (name, score)

    def _search_for(self, user_id: str) -> None:
        """A user who is there is found by name."""
        life = self.lives[user_id]
        query = life.versions[-1].vector
        since = time.monotonic()
        found = self.engine.search(vector=query, where={"name": user_id})
        for name, score in found:
            assert name == user_id
            assert life.may_be(score, query, None, since), (name, score)
        assert found or not life.has_to_be_there(since), user_id

    def _search_by_pairs(self, user_id: str) -> None:
        """The same, where photos are read from the store."""
        query = self.lives[user_id].versions[-1].vector
        since = time.monotonic()
        found = self.engine.search(vector=query, top_k=3, aggregate="best_pair")
        assert len(found) == 3
        for name, score in found:
            assert self.lives[name].may_be(score, query, None, since), (name, score)

    # --- both

    def live(self, *, readers: int, write: Callable[[], None], until: Callable[[], bool]) -> None:
        """Search with some threads while this one writes."""
        with ThreadPoolExecutor(readers) as pool:
            searching = [pool.submit(self.search_until_over, seed) for seed in range(readers)]
            try:
                while not until() and not any(each.done() for each in searching):
                    write()
            finally:
                self.over.set()
        for each in searching:
            each.result()

    def check(self) -> None:
        """In the end, answers are those of a loop over all who are left."""
        assert len(self.engine) == len(self.alive)
        for query in unit(self._rng.normal(size=(3, self._dim))):
            scores = {
                name: float(self.lives[name].versions[-1].vector @ query) for name in self.alive
            }
            found = self.engine.search(vector=query, where={"colour": list(_COLOURS)}, top_k=1_000)
            check_answer(found[:_TOP_K], scores, _TOP_K)

    def report(self) -> str:
        figures: dict[str, Any] = {"searches": self.searches, "users": len(self.alive)}
        for what, latencies_s in self.latencies_s.items():
            p50, p99, worst = 1_000 * np.percentile(latencies_s, [50, 99, 100])
            figures[what] = {
                "count": len(latencies_s),
                "p50_ms": round(p50, 2),
                "p99_ms": round(p99, 2),
                "max_ms": round(worst, 2),
            }
        return json.dumps(figures)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[MatchingEngine]:
    with MatchingEngine.open(tmp_path / "index", manifest=manifest_of(DIM)) as opened:
        yield opened


def test_searches_see_each_write_once_it_is_acknowledged(engine: MatchingEngine) -> None:
    town = Town(engine, DIM, seed=1)
    town.add(2_500)
    end_s = time.monotonic() + 1
    town.live(readers=4, write=town.anything, until=lambda: time.monotonic() > end_s)
    town.check()


@pytest.mark.slow
def test_searches_see_each_write_for_half_a_minute(tmp_path: Path) -> None:
    with MatchingEngine.open(tmp_path / "index", manifest=manifest_of(64)) as engine:
        town = Town(engine, 64, seed=2)
        town.add(20_000)
        engine.save()
        end_s = time.monotonic() + 30
        town.live(readers=4, write=town.anything, until=lambda: time.monotonic() > end_s)
        print(f"\n4 readers and 1 writer: {town.report()}")
        town.check()


def test_searches_while_the_index_grows(engine: MatchingEngine) -> None:
    town = Town(engine, DIM, seed=3)
    town.add(50)
    town.live(readers=2, write=lambda: town.add(400), until=lambda: len(engine) > 2_400)
    town.check()


@pytest.mark.parametrize("chore", ["save", "compact"])
def test_searches_and_writes_go_on_during(engine: MatchingEngine, chore: str) -> None:
    town = Town(engine, DIM, seed=4)
    town.add(2_100)
    times = iter(range(2))

    def keep_house() -> None:
        for _ in times:
            getattr(engine, chore)()

    house_keeper = ThreadPoolExecutor(1)
    kept = house_keeper.submit(keep_house)
    town.live(readers=2, write=town.anything, until=kept.done)
    kept.result()
    town.check()


def test_replacing_everybody_again_and_again_leaves_nothing_behind(
    engine: MatchingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many rows are free that the index is compacted in the background."""
    monkeypatch.setattr(index, "_FEW_FREE", 200)
    town = Town(engine, DIM, seed=5)
    town.add(300)
    rounds = iter(range(3))
    town.live(
        readers=2,
        write=lambda: town.write(town.alive, "replace all"),
        until=lambda: next(rounds, None) is None,
    )
    town.check()


def test_processes_that_only_read_follow_the_writer(engine: MatchingEngine, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    servers = [ForkServer(tmp_path / "scratch") for _ in range(2)]
    engine.add("anna", vectors=[np.eye(DIM)[0]])
    followers = []
    for server in servers:
        server.start("follow", str(engine.info().path), 30.0)
        followers.append(server.lines())

    def wait_for(expected: dict[str, float]) -> None:
        for follower in followers:
            for said in follower:
                assert "ended" not in said, f"never saw {expected}"
                if {name: round(score, 4) for name, score in said["found"]} == expected:
                    break

    wait_for({"anna": 1.0})
    engine.add("ben", vectors=[np.eye(DIM)[0]])
    wait_for({"anna": 1.0, "ben": 1.0})
    engine.add("anna", vectors=[np.eye(DIM)[1]])
    wait_for({"anna": 0.7071, "ben": 1.0})
    engine.remove("ben")
    wait_for({"anna": 0.7071})
    engine.add("ben", vectors=[np.eye(DIM)[1]])  # another ben
    engine.compact()
    wait_for({"anna": 0.7071, "ben": 0.0})
    engine.add("stop", vectors=[np.eye(DIM)[2]])
    for server in servers:
        server.close()


def test_a_reader_that_slept_through_a_compaction_knows_everyone(
    engine: MatchingEngine, tmp_path: Path
) -> None:
    engine.add("anna", vectors=[np.eye(DIM)[0]])
    engine.add("ben", vectors=[np.eye(DIM)[1]])
    with MatchingEngine.open(tmp_path / "index", read_only=True) as reader:
        assert len(reader.search(vector=np.eye(DIM)[0])) == 2
        engine.add("cora", vectors=[np.eye(DIM)[2]])
        engine.remove("ben")
        engine.compact()
        reader.refresh()
        found = reader.search(vector=np.eye(DIM)[0])
        assert [name for name, _ in found] == ["anna", "cora"]
