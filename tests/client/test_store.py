from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibematch.errors import InputError, ModelMismatchError, StoreError, StoreLockedError
from vibematch.manifest import Manifest
from vibematch.store import (
    FILENAME,
    FORMAT,
    Profile,
    ProfileStore,
    StoredPhoto,
    check_attributes,
    value_from_text,
)

AXES = np.eye(8, dtype=np.float32)


def photo(axis: int, path: str | None = None) -> StoredPhoto:
    return StoredPhoto(f"digest {axis}", AXES[axis], path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "some" / "index"


@pytest.fixture
def store(folder: Path, manifest: Manifest) -> Any:
    opened = ProfileStore.create(folder, manifest)
    yield opened
    opened.close()


def test_what_was_written_is_there_after_reopening(store: ProfileStore, folder: Path) -> None:
    store.write([Profile("anna", [photo(0, "/a.jpg"), photo(1)], {"age": 29, "vip": True})])
    store.write([Profile("ben", [photo(2)])])
    written = store.sequence
    store.close()
    again = ProfileStore.open(folder)
    assert again.user_ids() == {"anna", "ben"}
    assert (again.count_users(), again.count_photos(), again.sequence) == (2, 3, written)
    assert again.attributes("anna") == {"age": 29, "vip": True}
    assert again.attributes("ben") == {}
    assert again.attributes("carl") is None
    assert again.photo_paths("anna") == [Path("/a.jpg")]
    again.close()


def test_a_known_photo_is_left_alone(store: ProfileStore) -> None:
    assert store.write([Profile("anna", [photo(0)])]) == 1
    before = store.revisions(after=0)
    assert store.write([Profile("anna", [photo(0)]), Profile("ben", [photo(0)])]) == 1
    assert store.revisions(after=0)["anna"] == before["anna"]
    assert store.has_photo("anna", "digest 0")
    assert not store.has_photo("anna", "digest 1")


def test_user_vectors_are_normalised_means_in_the_asked_order(store: ProfileStore) -> None:
    store.write([Profile("b", [photo(0), photo(1)]), Profile("a", [photo(2)])])
    vectors = store.user_vectors(["b", "a"])
    assert np.allclose(vectors, [(AXES[0] + AXES[1]) / np.sqrt(2), AXES[2]])
    assert vectors.dtype == np.float32


def test_where_photos_cancel_out_the_first_speaks(store: ProfileStore) -> None:
    store.write([Profile("a", [photo(0), StoredPhoto("opposite", -AXES[0])])])
    assert np.array_equal(store.user_vectors(["a"])[0], AXES[0])


def test_attributes_are_replaced_or_kept(store: ProfileStore) -> None:
    store.write([Profile("anna", [photo(0)], {"age": 29, "region": "Seoul"})])
    revision = store.revisions(after=0)
    store.write([Profile("anna")])
    assert store.attributes("anna") == {"age": 29, "region": "Seoul"}
    store.write([Profile("anna", (), {"age": 30})])
    assert store.attributes("anna") == {"age": 30}
    assert store.revisions(after=0) == revision  # the vector is the same


def test_a_user_comes_with_a_photo(store: ProfileStore) -> None:
    store.write([Profile("nobody", (), {"age": 1})])
    assert store.count_users() == 0


def test_remove_takes_the_photos_along(store: ProfileStore) -> None:
    store.write([Profile("anna", [photo(0), photo(1)])])
    assert store.remove("anna")
    assert (store.count_users(), store.count_photos()) == (0, 0)
    assert not store.remove("anna")


def test_every_write_grows_the_sequence(store: ProfileStore) -> None:
    seen = [store.sequence]
    for axis in range(3):
        store.write([Profile("anna", [photo(axis)])])
        seen.append(store.sequence)
    store.remove("anna")
    seen.append(store.sequence)
    assert seen == sorted(set(seen))


def test_what_changes_nothing_leaves_the_sequence(store: ProfileStore) -> None:
    store.write([Profile("anna", [photo(0)])])
    before = store.sequence
    store.write([Profile("anna", [photo(0)])])
    store.remove("nobody")
    assert store.sequence == before


def test_sequence_grows_even_if_the_clock_goes_back(
    store: ProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.sequence
    monkeypatch.setattr("vibematch.store._now_us", lambda: 5)
    store.write([Profile("anna", [photo(0)])])
    assert store.sequence == before + 1


def test_a_failing_write_changes_nothing(store: ProfileStore) -> None:
    store.write([Profile("anna", [photo(0)])])
    before = store.sequence

    def half() -> Any:
        yield Profile("ben", [photo(1)])
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        store.write(half())
    assert (store.user_ids(), store.sequence) == ({"anna"}, before)


# --- filters


PEOPLE: dict[str, dict[str, Any]] = {
    "anna": {"gender": "F", "age": 29, "region": "Seoul", "vip": True},
    "ben": {"gender": "M", "age": 35, "region": "Busan"},
    "cora": {"gender": "F", "age": 35.5, "region": "서울", "vip": False},
    "dan": {"gender": "M", "age": "29"},
    "eve": {},
}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, ["anna", "ben", "cora", "dan", "eve"]),
        ({"gender": "F"}, ["anna", "cora"]),
        ({"gender": "F", "age": (29, 35)}, ["anna"]),
        ({"age": (29, 35)}, ["anna", "ben"]),
        ({"age": (29.5, float("inf"))}, ["ben", "cora"]),
        ({"age": (float("-inf"), 10**400)}, ["anna", "ben", "cora"]),
        ({"age": 29.0}, ["anna"]),
        ({"age": "29"}, ["dan"]),
        ({"region": ["Seoul", "서울"]}, ["anna", "cora"]),
        ({"region": {"Busan"}}, ["ben"]),
        ({"region": []}, []),
        ({"vip": True}, ["anna"]),
        ({"vip": False}, ["cora"]),
        ({"height": 180}, []),
    ],
)
def test_filters(store: ProfileStore, where: Any, expected: list[str]) -> None:
    store.write(Profile(name, [photo(0)], known) for name, known in PEOPLE.items())
    assert store.qualifying(where) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"age": (1, 2, 3)}, r"range for 'age' must be \(low, high\)"),
        ({"age": ("a", "b")}, r"range for 'age' must be \(low, high\)"),
        ({"age": (float("nan"), 3)}, r"range for 'age' must be \(low, high\)"),
        ({"age": (30, 20)}, "upside down: 30.0 is above 20.0"),
        ({"age": None}, "must be text, a number or true/false, got NoneType"),
        ({'a"b': 1}, "name must be printable text"),
        ({"": 1}, "name must be printable text"),
    ],
)
def test_senseless_filters(store: ProfileStore, where: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        store.qualifying(where)


@pytest.mark.parametrize(
    "attributes",
    [{"a": None}, {"a": [1]}, {"a": float("nan")}, {"a": 2**63}, {"a": "\ud800"}, {"a": "x\0y"}],
)
def test_unstorable_attributes(attributes: Any) -> None:
    with pytest.raises(InputError, match="attribute 'a'"):
        check_attributes(attributes)


names = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters='"\\'), min_size=1)
values = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)


@given(attributes=st.dictionaries(names, values, min_size=1, max_size=3))
def test_every_storable_attribute_is_found_by_its_value(attributes: dict[str, Any]) -> None:
    check_attributes(attributes)
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE users (user_id, attributes)")
    database.execute(
        "INSERT INTO users VALUES ('anna', ?)", (json.dumps(attributes, ensure_ascii=False),)
    )
    from vibematch.store import _filter

    clauses, bound = _filter(attributes)
    found = database.execute(f"SELECT user_id FROM users WHERE {clauses}", bound).fetchall()  # noqa: S608
    assert found == [("anna",)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("29", 29),
        ("-1", -1),
        ("1.5", 1.5),
        ("true", True),
        ("false", False),
        ("007", "007"),
        ("1_000", "1_000"),
        ("nan", "nan"),
        ("inf", "inf"),
        (" 1", " 1"),
        ("Street_Hip", "Street_Hip"),
        ("", ""),
    ],
)
def test_values_from_text(text: str, value: object) -> None:
    read = value_from_text(text)
    assert (read, type(read)) == (value, type(value))


# --- what can be wrong with a folder


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"no index at .*; make one with `vibematch add .* PHOTOS`"
    ):
        ProfileStore.open(tmp_path / "nowhere")


def test_creation_cut_short_counts_as_no_index(folder: Path, manifest: Manifest) -> None:
    folder.mkdir(parents=True)
    (folder / FILENAME).touch()
    (folder / "lock").touch()
    with pytest.raises(StoreError, match="no index at"):
        ProfileStore.open(folder)
    ProfileStore.create(folder, manifest).close()
    ProfileStore.open(folder).close()


def test_an_index_is_not_made_among_other_files(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "me.jpg").touch()
    with pytest.raises(StoreError, match="holds other files and no index"):
        ProfileStore.create(tmp_path, manifest)
    with pytest.raises(StoreError, match="is a file"):
        ProfileStore.create(tmp_path / "me.jpg", manifest)
    with pytest.raises(StoreError, match="no index can be made"):
        ProfileStore.create(tmp_path / "me.jpg" / "index", manifest)


def test_foreign_database(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILENAME) as database:
        database.execute("CREATE TABLE notes (text)")
    with pytest.raises(StoreError, match="is not a vibematch index"):
        ProfileStore.open(tmp_path)


def test_no_database_at_all(tmp_path: Path) -> None:
    (tmp_path / FILENAME).write_bytes(b"My holiday diary. " * 500)
    for read_only in (True, False):
        with pytest.raises(StoreError, match="cannot be used"):
            ProfileStore.open(tmp_path, read_only=read_only)


def test_newer_format(store: ProfileStore, folder: Path) -> None:
    store.close()
    with sqlite3.connect(folder / FILENAME) as database:
        database.execute(f"PRAGMA user_version = {FORMAT + 1}")
    with pytest.raises(StoreError, match=f"format {FORMAT + 1}.*upgrade vibematch"):
        ProfileStore.open(folder)


def test_damaged_pages(store: ProfileStore, folder: Path) -> None:
    store.write(Profile(f"user_{i}", [StoredPhoto(str(i), AXES[i % 8])]) for i in range(500))
    store.close()
    content = bytearray((folder / FILENAME).read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)
    (folder / FILENAME).write_bytes(content)
    with pytest.raises(StoreError, match="restore it from a backup"):
        damaged = ProfileStore.open(folder)
        damaged.user_vectors(sorted(damaged.user_ids()))


def test_vector_of_another_length(store: ProfileStore) -> None:
    store.write([Profile("anna", [StoredPhoto("x", np.ones(3, np.float32))])])
    with pytest.raises(StoreError, match="a vector is not 8 numbers long"):
        store.user_vectors(["anna"])


def test_another_model_is_refused_by_name(
    store: ProfileStore, manifest: Manifest, other_manifest: Manifest
) -> None:
    store.require_model(manifest)
    with pytest.raises(ModelMismatchError) as raised:
        store.require_model(other_manifest)
    for part in (manifest.fingerprint[:12], other_manifest.fingerprint[:12], "new index"):
        assert part in str(raised.value)


# --- several at once


def test_second_writer_is_refused(store: ProfileStore, folder: Path) -> None:
    with pytest.raises(StoreLockedError, match=rf"another process \(pid {os.getpid()}\)"):
        ProfileStore.open(folder)
    store.close()
    ProfileStore.open(folder).close()


def test_a_refused_opening_leaves_no_lock(
    store: ProfileStore, folder: Path, manifest: Manifest
) -> None:
    store.close()
    with sqlite3.connect(folder / FILENAME) as database:
        database.execute("PRAGMA user_version = 99")
    for _ in range(2):
        with pytest.raises(StoreError, match="format 99"):
            ProfileStore.open(folder)


def test_reader_beside_a_writer(store: ProfileStore, folder: Path) -> None:
    store.write([Profile("anna", [photo(0)])])
    reader = ProfileStore.open(folder, read_only=True)
    with reader.reading():
        assert reader.user_ids() == {"anna"}
        store.write([Profile("ben", [photo(1)])])
        assert reader.user_ids() == {"anna"}  # one state per reading
    assert reader.user_ids() == {"anna", "ben"}
    with pytest.raises(StoreError, match="opened read-only"):
        reader.write([Profile("carl", [photo(2)])])
    reader.close()


def test_read_only_folder(store: ProfileStore, folder: Path) -> None:
    store.write([Profile("anna", [photo(0)])])
    store.close()
    code = (
        "import os, sys\n"
        "from pathlib import Path; from vibematch.store import ProfileStore\n"
        "from vibematch.errors import StoreError\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"  # root may write anywhere
        "folder = Path(sys.argv[1])\n"
        "print(ProfileStore.open(folder, read_only=True).user_ids())\n"
        "try: ProfileStore.open(folder)\n"
        "except StoreError as error: print(error)\n"
    )
    for part in (folder, *folder.parents):
        if part.owner() == folder.owner() and part != Path("/tmp"):  # noqa: S108
            part.chmod(part.stat().st_mode | 0o555)
    folder.chmod(0o555)
    (folder / "lock").chmod(0o444)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
        )
    finally:
        folder.chmod(0o755)
    users, refusal = done.stdout.splitlines()
    assert users == "{'anna'}"
    assert "cannot be written (Permission denied); open it read-only" in refusal


def test_closed_store_says_so(store: ProfileStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.count_users()
