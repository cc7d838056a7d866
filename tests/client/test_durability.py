"""What the store acknowledged survives a killed process and a lost tail of the disk's writes."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vibematch.errors import StoreError
from vibematch.folder import FILENAME
from vibematch.manifest import Manifest
from vibematch.records import Profile, StoredPhoto
from vibematch.store import ProfileStore

BULK = 1500
"""Users written at one stroke: more than are handled together."""

KINDS = {"add": 6, "label": 3, "remove": 4, "photo": 3, "bulk": 1, "compact": 1}
"""How often to do what."""

State = dict[str, tuple[dict[str, Any], tuple[str, ...]]]
"""User → attributes and photos."""


def photo(content: str) -> StoredPhoto:
    digest = hashlib.sha256(content.encode()).digest()
    values = np.frombuffer(digest, np.uint8)[:8] + 1.0
    return StoredPhoto(digest.hex(), (values / np.linalg.norm(values)).astype(np.float32))


def state_of(store: ProfileStore) -> State:
    return {
        profile.user_id: (
            dict(profile.attributes or {}),
            tuple(photo.content_sha256 for photo in profile.photos),
        )
        for profile in store.profiles()
    }


def stored_at(path: Path) -> State:
    store = ProfileStore.open(path)
    try:
        state = state_of(store)
        assert len(store.changes(0).users) == store.count_users() == len(state)
        return state
    finally:
        store.close()


def step(state: State, rng: random.Random) -> tuple[State, Callable[[ProfileStore], object]]:
    """A random operation: the state after it, and how to do it."""
    after = dict(state)
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    user_id = rng.choice([*sorted(state)[:20], f"user_{rng.randrange(40):02d}"])
    labels, photos = state.get(user_id, ({}, ()))
    number = rng.randrange(10**6)
    if kind == "add":
        new = [photo(f"{user_id} {number} {n}") for n in range(rng.randint(1, 3))]
        after[user_id] = (labels, (*photos, *(one.content_sha256 for one in new)))
        return after, lambda store: store.write([Profile(user_id, new)])
    if kind == "label" and photos:
        after[user_id] = ({"number": number}, photos)
        return after, lambda store: store.write([Profile(user_id, (), {"number": number})])
    if kind == "remove" and photos:
        del after[user_id]
        return after, lambda store: store.remove(user_id)
    if kind == "photo" and len(photos) > 1:
        gone = rng.choice(photos)
        after[user_id] = (labels, tuple(one for one in photos if one != gone))
        return after, lambda store: store.remove_photo(user_id, gone)
    if kind == "bulk":
        many = [Profile(f"bulk_{n}", [photo(f"bulk {n}")], {"n": number}) for n in range(BULK)]
        for profile in many:
            digest = profile.photos[0].content_sha256
            _, there = state.get(profile.user_id, ({}, ()))
            photos = there if digest in there else (*there, digest)
            after[profile.user_id] = ({"n": number}, photos)
        return after, lambda store: store.write(many)
    return after, lambda store: store.compact()


def write_for_ever(path: Path, seed: int) -> None:
    """Random operations; says how many are done."""
    store = ProfileStore.open(path)
    rng = random.Random(seed)
    state = state_of(store)
    for number in range(100_000):
        state, act = step(state, rng)
        act(store)
        print(number + 1, flush=True)


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_after_a_kill_there_is_what_was_acknowledged_and_nothing_by_halves(
    tmp_path: Path, manifest: Manifest, kills: int
) -> None:
    path = tmp_path / "index"
    ProfileStore.create(path, manifest).close()
    state: State = {}
    for seed in range(kills):
        done = _kill_a_writer(path, seed, after_s=random.Random(seed).uniform(0, 0.2))
        rng = random.Random(seed)
        for _ in range(done):
            state, _ = step(state, rng)
        begun, _ = step(state, rng)
        found = stored_at(path)
        assert found in (state, begun), f"seed {seed}, {done} done"
        state = found


def _kill_a_writer(path: Path, seed: int, after_s: float) -> int:
    """Let one write, kill it; returns how many operations it acknowledged."""
    command = [sys.executable, __file__, str(path), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after_s)
        process.kill()
        lines = [line for line in process.stdout if line.endswith("\n")]
    assert process.returncode == -9  # it did not end by itself
    return int(lines[-1]) if lines else 1


def test_of_a_creation_that_is_killed_there_is_all_or_nothing(
    tmp_path: Path, manifest: Manifest
) -> None:
    """Every state in which the folder can be while an index is made."""
    whole = tmp_path / "whole"
    ProfileStore.create(whole, manifest).close()
    content = (whole / "1" / FILENAME).read_bytes()
    for number, kept in enumerate([None, 0, 1, 100, 4096, len(content) - 1, len(content)]):
        path = tmp_path / str(number)
        (path / "1.new").mkdir(parents=True)
        if kept is not None:
            (path / "1.new" / f"{FILENAME}.new").write_bytes(content[:kept])
            (path / "1.new" / FILENAME).write_bytes(content[:kept])
        with pytest.raises(StoreError, match="no index at"):
            ProfileStore.open(path)
        ProfileStore.create(path, manifest).close()
        assert stored_at(path) == {}


def cuts(size: int, rng: random.Random) -> Iterator[int]:
    yield from (0, 1, 31, 32, 56, 100, size - 1, size)
    for _ in range(60):
        yield rng.randrange(size)


def test_a_lost_tail_of_the_log_takes_whole_writes_and_only_the_last(
    tmp_path: Path, manifest: Manifest
) -> None:
    """As after a power cut, on a disk that had written only a part of the log."""
    path = tmp_path / "index"
    rng = random.Random(0)
    store = ProfileStore.create(path, manifest)
    states: list[State] = [{}]
    while len(states) < 16:
        after, act = step(states[-1], rng)
        if after not in states and len(after) < BULK:
            act(store)
            states.append(after)
    folder, log = path / "1", f"{FILENAME}-wal"
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    store.close()
    reached = []
    for kept in sorted(cuts(len(files[log]), rng)):
        copy = tmp_path / "copy"
        (copy / "1").mkdir(parents=True)
        (copy / "1" / FILENAME).write_bytes(files[FILENAME])
        lost = len(files[log]) - kept
        tail = rng.choice([b"", bytes(lost), rng.randbytes(lost)])
        (copy / "1" / log).write_bytes(files[log][:kept] + tail)
        reached.append(states.index(stored_at(copy)))
        shutil.rmtree(copy)
    assert reached == sorted(reached)
    assert (reached[0], reached[-1]) == (0, 15)
    assert len(set(reached)) > 5


if __name__ == "__main__":
    write_for_ever(Path(sys.argv[1]), int(sys.argv[2]))
