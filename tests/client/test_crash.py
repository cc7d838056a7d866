"""A writer may be killed at any moment: what it acknowledged stays, and nothing by halves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.client.fork_server import COMMITTED, DIM, KINDS, LOADED, Call, ForkServer, apply, loaded
from tests.client.reference import QUICK_DISK, People, Person, check_answer, manifest_of, unit

from vibematch.engine import MatchingEngine
from vibematch.store import ProfileStore

_DELAYS_S = (0.001, 0.005, 0.02, 0.1)


@dataclass
class Index:
    """An index folder that writers are killed over, beside what has to be in it."""

    path: Path
    people: People = field(default_factory=People)

    def kill_a_writer(self, server: ForkServer, rng: random.Random) -> Call:
        """Let one write, kill it, and see what is left; returns the call it died in."""
        favourite = rng.choice(KINDS)
        pid = server.start("write", str(self.path), rng.randrange(2**31), favourite)
        lines = server.lines()
        said = []
        if rng.random() < 0.9:  # otherwise while it opens the index
            for line in lines:
                said.append(line)
                if line.get("do") == favourite:
                    break
        time.sleep(rng.choice(_DELAYS_S) * rng.random())
        os.kill(pid, signal.SIGKILL)
        for line in lines:
            if "ended" in line:
                assert line["ended"] == -signal.SIGKILL
                break
            said.append(line)
        begun = [line for line in said if line]
        died_in = begun.pop() if said and said[-1] else {"do": "nothing"}
        for call in begun:
            apply(self.people, call)
        self._settle(died_in)
        return died_in

    def _settle(self, died_in: Call) -> None:
        """The call that was not acknowledged was done wholly, or not at all."""
        there = everyone(self.path)
        if there == self.people:
            return
        if died_in["do"] == "load":  # several transactions, each of which is there or is not
            done = sum(
                person.attributes.get("version") == died_in["version"] for person in there.values()
            )
            assert done == LOADED or done % COMMITTED == 0
            for profile, _ in zip(loaded(died_in["version"]), range(done), strict=False):
                self.people.write(profile)
        else:
            apply(self.people, died_in)
        assert there == self.people, died_in

    def check(self, rng: random.Random, *, read_only: bool) -> None:
        """The index opens, and answers as if nothing had happened."""
        with MatchingEngine.open(self.path, read_only=read_only) as engine:
            assert len(engine) == len(self.people)
            for _ in range(3):
                query = [rng.gauss(0, 1) for _ in range(DIM)]
                where: dict[str, Any] = rng.choice([{}, {"age": (1, 3)}, {"version": None}])
                found = engine.search(vector=query, where=where, top_k=7)
                check_answer(found, self.people.search(vectors=unit([query]), where=where), 7)
            if self.people:
                user = rng.choice(sorted(self.people))
                check_answer(engine.search(user, 7), self.people.search(user), 7)

    def files(self) -> list[str]:
        names = (str(path.relative_to(self.path)) for path in self.path.rglob("*"))
        return sorted(name.split("graph-")[0] for name in names)


def everyone(path: Path) -> People:
    """All that is in the store."""
    store = ProfileStore.open(path, read_only=True)
    people = People()
    for profile in store.profiles():
        people[profile.user_id] = Person(
            {photo.photo_id: (photo.content_sha256, photo.vector) for photo in profile.photos},
            dict(profile.attributes or {}),
            dict(profile.preferences or {}),
        )
    store.close()
    return people


def kill_writers(folder: Path, times: int, seed: int) -> Counter[str]:
    """Kill as many writers, one after the other; returns how many died in which call."""
    rng = random.Random(seed)
    scratch = folder / "scratch"
    scratch.mkdir()
    server = ForkServer(scratch)
    index = Index(folder / "index")
    MatchingEngine.open(index.path, manifest=manifest_of(DIM)).close()
    died_in: Counter[str] = Counter()
    most_files = 0
    for number in range(times):
        died_in[index.kill_a_writer(server, rng)["do"]] += 1
        most_files = max(most_files, len(index.files()))
        index.check(rng, read_only=number % 2 == 0)
    server.close()
    with MatchingEngine.open(index.path) as engine:
        engine.save()
    index.check(rng, read_only=False)
    assert most_files < 12
    assert index.files() == ["1", "1/snapshot", "1/snapshot.", "1/store.sqlite3", "lock"]
    assert list(scratch.iterdir()) == []
    return died_in


def test_a_killed_writer_loses_nothing() -> None:
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as folder:
        kill_writers(Path(folder), times=15, seed=1)


@pytest.mark.slow
def test_a_thousand_killed_writers_lose_nothing(tmp_path: Path) -> None:
    seed = int(time.time())
    died_in = kill_writers(tmp_path, times=1_000, seed=seed)
    print(f"\nseed {seed}: {dict(died_in.most_common())}")
    assert died_in.keys() >= {*KINDS}


# Ends while the search index is being compacted in the background, and says whether it really was.
LEAVER = """
import sys, time
import numpy as np
from tests.client.reference import manifest_of, stored
from vibematch import index
from vibematch.engine import MatchingEngine
from vibematch.records import Profile

assert index._BUILD_SLICE and index._FEW_FREE
index._BUILD_SLICE = 4
index._FEW_FREE = 100
compacted = index.HnswIndex.compacted
compacting = []

def noticed(self, *arguments):
    compacting.append(True)
    return compacted(self, *arguments)

class Large:  # takes its time to go
    def __del__(self, sleep=time.sleep):
        sleep(0.3)

large = Large()
index.HnswIndex.compacted = noticed
engine = MatchingEngine.open(sys.argv[1], manifest=manifest_of(256))
for _ in range(2):
    rows = np.random.default_rng().normal(size=(1_500, 256))
    profiles = [Profile(f"user_{n}", [stored(row, "face")]) for n, row in enumerate(rows)]
    engine.add_many(profiles)
    engine.search(vector=rows[0])
while not compacting:
    time.sleep(0.01)
time.sleep(0.1)  # by now it is in hnswlib nearly all the time
print("compacting")
"""


def test_a_process_may_end_without_closing(tmp_path: Path) -> None:
    """Python cuts its background threads off; one that is in C++ just then aborts the process."""
    ended = subprocess.run(
        [sys.executable, "-c", LEAVER, str(tmp_path / "index")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "compacting\n"), ended.stderr
    assert len(everyone(tmp_path / "index")) == 1_500
