"""Vectors that are remembered: the right one or none, whatever becomes of the file."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vibematch.errors import StoreError
from vibematch.vector_cache import APPLICATION_ID, FORMAT, VectorCache, cache_key

DIM = 16
KEYS = [cache_key("f" * 64, b"%d" % number, downscaled=False) for number in range(60)]


def vector(key: bytes) -> np.ndarray:
    """The one vector that a key may have."""
    values = np.random.default_rng(list(key)).normal(size=DIM)
    return (values / np.linalg.norm(values)).astype(np.float32)


def fill(cache: VectorCache, keys: list[bytes] = KEYS) -> None:
    for key in keys:
        cache.put(key, vector(key))


def test_keys_tell_model_photo_and_transport_apart() -> None:
    keys = {
        cache_key(fingerprint, photo, downscaled=downscaled)
        for fingerprint in ("a" * 64, "b" * 64)
        for photo in (b"", b"photo")
        for downscaled in (False, True)
    }
    assert len(keys) == 8


@given(
    size=st.integers(0, 5),
    steps=st.lists(st.tuples(st.booleans(), st.sampled_from(KEYS[:9]))),
)
def test_the_most_recently_used_are_kept(size: int, steps: list[tuple[bool, bytes]]) -> None:
    cache = VectorCache(size)
    recent: list[bytes] = []  # the last is the most recently used
    for is_put, key in steps:
        if is_put:
            cache.put(key, vector(key))
        else:
            found = cache.get(key)
            assert (found is not None) == (key in recent)
            assert found is None or np.array_equal(found, vector(key))
        if is_put or key in recent:
            recent = [*(other for other in recent if other != key), key]
            recent = recent[max(0, len(recent) - size) :]


def test_what_is_handed_out_is_the_callers_own() -> None:
    cache = VectorCache(1)
    given_vector = vector(KEYS[0])
    cache.put(KEYS[0], given_vector)
    given_vector[:] = 0
    first = cache.get(KEYS[0])
    assert first is not None
    first[:] = 0
    assert np.array_equal(cache.get(KEYS[0]), vector(KEYS[0]))  # type: ignore[arg-type]


def test_a_file_outlives_its_cache(tmp_path: Path) -> None:
    for size in (0, 3, 100):
        cache = VectorCache(size, tmp_path / "cache")
        fill(cache)
        cache.close()
        cache = VectorCache(size, tmp_path / "cache")
        for key in KEYS:
            assert np.array_equal(cache.get(key), vector(key))  # type: ignore[arg-type]
        assert cache.get(b"another") is None
        cache.close()
        cache.close()


def test_threads_share_a_cache(tmp_path: Path) -> None:
    cache = VectorCache(10, tmp_path / "cache")

    def work(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, len(KEYS), 200):
            key = KEYS[number]
            found = cache.get(key)
            assert found is None or np.array_equal(found, vector(key))
            cache.put(key, vector(key))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    cache.close()


WRITER = """
import sys
import numpy as np
from vibematch.vector_cache import VectorCache
cache = VectorCache(0, sys.argv[1])
for number in range(200):
    key = b"%s %d" % (sys.argv[2].encode(), number)
    cache.put(key, np.full(16, number, np.float32))
    cache.put(b"shared %d" % number, np.full(16, number, np.float32))
cache.close()
"""


def test_processes_write_a_new_file_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(name)], stderr=subprocess.PIPE, text=True
        )
        for name in range(3)
    ]
    for writer in writers:
        assert (writer.communicate(timeout=60)[1], writer.returncode) == ("", 0)
    cache = VectorCache(0, path)
    for name in (*range(3), "shared"):
        for number in range(200):
            found = cache.get(f"{name} {number}".encode())
            assert found is not None and (found == number).all()
    cache.close()


# --- hostile files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache file with all of :data:`KEYS`."""
    path = tmp_path_factory.mktemp("whole") / "cache"
    cache = VectorCache(0, path)
    fill(cache)
    cache.close()
    return path


damage = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(damage=damage, cut=st.floats(0, 1))
def test_a_damaged_file_gives_the_right_vector_or_none(
    damage: list[tuple[float, int]],
    cut: float,
    whole: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    damaged = bytearray(whole.read_bytes())
    for position, change in damage:
        damaged[int(position * len(damaged))] ^= change
    if cut < 0.2:
        del damaged[int(5 * cut * len(damaged)) :]
    path = tmp_path_factory.mktemp("damaged") / "cache"
    path.write_bytes(damaged)
    try:
        cache = VectorCache(0, path)
    except StoreError as error:
        assert str(path) in str(error)
        return
    for key in KEYS:
        found = cache.get(key)
        assert found is None or np.array_equal(found, vector(key))
    fill(cache, KEYS[::5])
    for key in KEYS:
        found = cache.get(key)
        assert found is None or np.array_equal(found, vector(key))
    cache.close()


def test_a_row_of_another_key_counts_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    cache = VectorCache(0, path)
    fill(cache)
    cache.close()
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM vectors WHERE key = ?", (KEYS[0],))
        database.execute("UPDATE vectors SET key = ? WHERE key = ?", (KEYS[0], KEYS[1]))
        database.execute("UPDATE vectors SET vector = 'text' WHERE key = ?", (KEYS[2],))
    database.close()
    cache = VectorCache(0, path)
    assert [cache.get(key) for key in KEYS[:3]] == [None] * 3
    assert cache.get(KEYS[3]) is not None
    cache.close()


def test_a_file_that_breaks_later_is_left_and_logged_once(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, content = tmp_path / "cache", whole.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    cache = VectorCache(2, path)
    with caplog.at_level(logging.WARNING, "vibematch"):
        assert [cache.get(key) for key in KEYS] == [None] * len(KEYS)
        fill(cache)
    assert np.array_equal(cache.get(KEYS[-1]), vector(KEYS[-1]))  # type: ignore[arg-type]
    (message,) = caplog.messages
    assert message.startswith(f"the vector cache {path} is not used any more: ")
    cache.close()


def _sql(path: Path, script: str) -> None:
    database = sqlite3.connect(path)
    database.executescript(script)
    database.close()


def test_files_that_are_no_cache_are_refused_and_left_alone(tmp_path: Path) -> None:
    foreign, newer, text = tmp_path / "foreign", tmp_path / "newer", tmp_path / "text"
    _sql(foreign, "CREATE TABLE people (name TEXT)")
    _sql(newer, f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT + 1};")
    text.write_text("all the photos that I like\n" * 200)
    for path, words in (
        (foreign, "is a database, but no vector cache: choose another cache_path"),
        (newer, f"has format {FORMAT + 1}, this version of vibematch reads {FORMAT}"),
        (text, "cannot be used .*: delete it if it is damaged"),
        (tmp_path, "cannot be used"),
        (tmp_path / "no" / "folder", "cannot be used"),
    ):
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(StoreError, match=words):
            VectorCache(10, path)
        assert before is None or path.read_bytes() == before
