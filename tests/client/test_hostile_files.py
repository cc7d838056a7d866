"""Damaged files, foreign files, a full disk: an error or the truth, never a wrong answer."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.client.reference import manifest_of

from vibematch.errors import StoreError
from vibematch.folder import FILENAME, LOCK_FILENAME
from vibematch.manifest import Manifest
from vibematch.records import Profile, StoredPhoto
from vibematch.store import FORMAT, ProfileStore
from vibematch.vectors import Vector

PAGE = 4096
FULL = re.compile("disk is full|disk I/O error")
NAMES = [f"user_{number:03d}" for number in range(150)]


def vector(number: int, dim: int = 8) -> Vector:
    values = np.random.default_rng(number).normal(size=dim)
    unit: Vector = (values / np.linalg.norm(values)).astype(np.float32)
    return unit


def photo(number: int, **more: Any) -> StoredPhoto:
    return StoredPhoto(hashlib.sha256(b"%d" % number).hexdigest(), vector(number), **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, module_manifest: Manifest) -> Path:
    """A closed store with all kinds of rows."""
    path = tmp_path_factory.mktemp("hostile") / "index"
    store = ProfileStore.create(path, module_manifest)
    store.write(
        Profile(
            name,
            [photo(number), photo(1000 + number, path=f"/{name}.jpg", photo_id="second")],
            {"age": number, "region": "서울", "vip": number % 2 == 0},
            {"age": (float("-inf"), 35), "region": {"Seoul", None}},
        )
        for number, name in enumerate(NAMES)
    )
    for name in NAMES[::10]:
        store.remove(name)
    store.write([Profile(NAMES[1], [photo(5000)], {"bio": "long " * 2000})])
    store.close()
    return path


@pytest.fixture(scope="module")
def module_manifest() -> Manifest:
    return manifest_of(8)


def answers(path: Path, *, read_only: bool) -> dict[str, Any]:
    """All that can be asked of a store."""
    store = ProfileStore.open(path, read_only=read_only)
    try:
        ids = store.ids().tolist()
        vectors, owners = store.photo_vectors(ids)
        sequence = store.sequence
        return {
            "users": {name: (name in store, store.attributes(name)) for name in NAMES},
            "photos": {
                name: [_comparable(photo) for photo in store.photos(name)] for name in NAMES
            },
            "profiles": [
                (one.user_id, one.attributes, one.preferences, [*map(_comparable, one.photos)])
                for one in store.profiles()
            ],
            "vectors": store.user_vectors(ids).tobytes() + vectors.tobytes() + owners.tobytes(),
            "counts": (ids, sequence, store.count_users(), store.count_photos()),
            "changes": [store.changes(0), store.changes(sequence - 1), store.changes(sequence)],
            "some changes": [
                store.changes(revision) for revision in {row[2] for row in store.changes(0).users}
            ],
            "manifest": store.manifest,
        }
    finally:
        store.close()


def _comparable(photo: StoredPhoto) -> tuple[object, ...]:
    return photo.photo_id, photo.content_sha256, photo.path, photo.vector.tobytes()


# --- ways to damage a file


def flip_bits(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 10])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def overwrite(content: bytearray, rng: random.Random) -> None:
    at, size = rng.randrange(len(content)), rng.choice([1, 2, 4, 8, 64, 512])
    content[at : at + size] = rng.randbytes(min(size, len(content) - at))


def damage_the_head_of_a_page(content: bytearray, rng: random.Random) -> None:
    page = rng.randrange(len(content) // PAGE) * PAGE
    content[page + rng.randrange(120)] = rng.randrange(256)


def zero_a_page(content: bytearray, rng: random.Random) -> None:
    page = rng.randrange(len(content) // PAGE) * PAGE
    content[page : page + PAGE] = bytes(PAGE)


def swap_pages(content: bytearray, rng: random.Random) -> None:
    one, other = (rng.randrange(len(content) // PAGE) * PAGE for _ in range(2))
    kept = content[one : one + PAGE]
    content[one : one + PAGE] = content[other : other + PAGE]
    content[other : other + PAGE] = kept


def truncate(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def write_an_older_page(content: bytearray, rng: random.Random) -> None:
    """A page that the disk never wrote: it still has an earlier state, here of another row."""
    page = rng.randrange(len(content) // PAGE) * PAGE
    cut = page + rng.randrange(100, PAGE)
    content[cut : page + PAGE] = content[cut - 64 : page + PAGE - 64]


DAMAGES: list[Callable[[bytearray, random.Random], None]] = [
    flip_bits,
    overwrite,
    damage_the_head_of_a_page,
    zero_a_page,
    swap_pages,
    truncate,
    write_an_older_page,
]


def damaged_stores_answer_truly(
    whole: Path, folder: Path, damage: Callable[[bytearray, random.Random], None], seeds: range
) -> int:
    """Damages a store in many ways; returns how often it was noticed."""
    expected = answers(whole, read_only=True)
    content = (whole / "1" / FILENAME).read_bytes()
    noticed = 0
    for seed in seeds:
        rng = random.Random(seed)
        damaged = bytearray(content)
        damage(damaged, rng)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "1").mkdir(parents=True)
        (folder / "1" / FILENAME).write_bytes(damaged)
        try:
            given = answers(folder, read_only=seed % 2 == 0)
        except StoreError:
            noticed += 1
        else:
            for what, answer in given.items():
                assert answer == expected[what], f"{damage.__name__}, seed {seed}: {what}"
    return noticed


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_an_error_or_answers_as_before(
    whole: Path, tmp_path: Path, damage: Callable[[bytearray, random.Random], None]
) -> None:
    assert damaged_stores_answer_truly(whole, tmp_path / "index", damage, range(30)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_thousands_of_damaged_files(
    whole: Path, tmp_path: Path, damage: Callable[[bytearray, random.Random], None]
) -> None:
    assert damaged_stores_answer_truly(whole, tmp_path / "index", damage, range(1000, 3000)) > 0


def test_undamaged_files_answer_alike_for_readers_and_writers(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "index"
    shutil.copytree(whole, copy)
    assert answers(copy, read_only=True) == answers(copy, read_only=False)


# --- rows that somebody else changed, by SQL


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE users SET attributes = '{}' WHERE user_id = 'user_001'",
        "UPDATE users SET user_id = 'user_999' WHERE user_id = 'user_001'",
        "UPDATE users SET revision = x'00' WHERE user_id = 'user_001'",
        "DELETE FROM users WHERE user_id = 'user_001'",
        "INSERT INTO users SELECT id + 5000, user_id || 'x', attributes, preferences, revision, "
        "vector_revision, photos, photos_sum, checksum FROM users WHERE user_id = 'user_001'",
        "UPDATE photos SET vector = zeroblob(32) WHERE id = 3",
        "UPDATE photos SET vector = 'text' WHERE id = 3",
        "UPDATE photos SET user = 3 WHERE id = 3",
        "DELETE FROM photos WHERE id = 3",
        "INSERT INTO photos SELECT id + 5000, user, photo_id, content_sha256, path, vector, "
        "checksum FROM photos WHERE id = 3",
        "UPDATE meta SET users = users + 1",
        "UPDATE meta SET manifest = replace(manifest, 'tiny', 'huge')",
        "DELETE FROM meta",
        "INSERT INTO meta SELECT * FROM meta",
        "DELETE FROM removals WHERE number = 3",
        "DELETE FROM removals WHERE number = 1",
        "UPDATE removals SET user = user + 1 WHERE number = 3",
        "CREATE TRIGGER t AFTER INSERT ON users BEGIN DELETE FROM users; END",
        "DROP INDEX users_by_revision",
    ],
)
def test_rows_changed_by_others_are_noticed(whole: Path, tmp_path: Path, statement: str) -> None:
    copy = tmp_path / "index"
    shutil.copytree(whole, copy)
    with sqlite3.connect(copy / "1" / FILENAME) as database:
        database.execute(statement)
    database.close()
    with pytest.raises(StoreError, match=r"damaged.*restore it from a backup"):
        _ask_all(copy)


def _ask_all(path: Path) -> None:
    store = ProfileStore.open(path, read_only=True)
    try:
        first = min(row.revision for row in store.changes(0).users)
        store.changes(first)  # those removed later are in the log
        list(store.profiles())
    finally:
        store.close()


def test_damage_does_not_vanish_by_later_writes(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "index"
    shutil.copytree(whole, copy)
    with sqlite3.connect(copy / "1" / FILENAME) as database:
        database.execute("DELETE FROM users WHERE user_id = 'user_003'")
    database.close()
    store = ProfileStore.open(copy)
    store.write([Profile("user_001", [photo(7777)]), Profile("new", [photo(7778)])])
    store.remove("user_002")
    with pytest.raises(StoreError, match="the table of users is damaged"):
        store.changes(0)
    store.close()


def test_compacting_ends_where_the_file_cannot_shrink(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "index"
    shutil.copytree(whole, copy)
    with sqlite3.connect(copy / "1" / FILENAME) as database:
        database.executescript("PRAGMA auto_vacuum = NONE; VACUUM")
    database.close()
    store = ProfileStore.open(copy)
    for name in NAMES[1:100:2]:
        store.remove(name)
    store.compact()
    assert store.count_users() == len(list(store.profiles()))
    store.close()


# --- foreign files


def test_foreign_database(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    with sqlite3.connect(tmp_path / "1" / FILENAME) as database:
        database.execute("CREATE TABLE notes (text)")
    database.close()
    with pytest.raises(StoreError, match="is not a vibematch index"):
        ProfileStore.open(tmp_path)


def test_no_database_at_all(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / FILENAME).write_bytes(b"My holiday diary. " * 500)
    for read_only in (True, False):
        with pytest.raises(StoreError, match="cannot be used"):
            ProfileStore.open(tmp_path, read_only=read_only)


def test_an_empty_generation(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    for read_only in (True, False):
        with pytest.raises(StoreError, match="cannot be used"):
            ProfileStore.open(tmp_path, read_only=read_only)


def test_newer_format(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "index"
    shutil.copytree(whole, copy)
    with sqlite3.connect(copy / "1" / FILENAME) as database:
        database.execute(f"PRAGMA user_version = {FORMAT + 1}")
    database.close()
    for _ in range(2):  # and a refused opening leaves no lock
        with pytest.raises(StoreError, match=f"format {FORMAT + 1}.*upgrade vibematch"):
            ProfileStore.open(copy)


def test_the_first_format(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / FILENAME).write_bytes(b"SQLite format 3\0")
    with pytest.raises(StoreError, match="older version of vibematch: make it again"):
        ProfileStore.open(tmp_path)
    with pytest.raises(StoreError, match="older version of vibematch: make it again"):
        ProfileStore.create(tmp_path, manifest)


# --- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_refuses_writes_and_loses_nothing(small_disk: Path, manifest: Manifest) -> None:
    path = small_disk / "index"
    store = ProfileStore.create(path, manifest)
    acknowledged = []
    with pytest.raises(StoreError, match=FULL):
        for number in range(100_000):
            store.write([Profile(f"user_{number}", [photo(number)], {"bio": "x" * 5000})])
            acknowledged.append(f"user_{number}")
    assert len(acknowledged) > 10
    assert [profile.user_id for profile in store.profiles()] == acknowledged
    assert store.count_users() == len(acknowledged)
    with pytest.raises(StoreError, match=FULL):
        store.write(Profile(f"more_{number}", [photo(number)]) for number in range(10_000))
    store.close()
    again = ProfileStore.open(path)
    assert [profile.user_id for profile in again.profiles()] == acknowledged
    again.close()


def test_a_full_disk_takes_no_new_index(small_disk: Path, manifest: Manifest) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2**20 - 4 * PAGE))
    with pytest.raises(StoreError, match=r"no index can be made at .*|cannot be written"):
        ProfileStore.create(small_disk / "index", manifest)
    filler.unlink()
    ProfileStore.create(small_disk / "index", manifest).close()


def test_the_lock_file_may_hold_anything(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "index"
    shutil.copytree(whole, copy)
    (copy / LOCK_FILENAME).write_bytes(b"\xff" * 1000)
    ProfileStore.open(copy).close()
