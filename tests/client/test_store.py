"""The store alone: what it keeps, how it changes, who may read and write."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from vibematch.attributes import check_attributes, check_where, value_from_text
from vibematch.errors import InputError, ModelMismatchError, StoreError, StoreLockedError
from vibematch.folder import FILENAME, discard_next, lock_index
from vibematch.manifest import Manifest
from vibematch.records import Changes, Profile, StoredPhoto, UserRow
from vibematch.store import ProfileStore

AXES = np.eye(8, dtype=np.float32)


def digest(content: object) -> str:
    return hashlib.sha256(str(content).encode()).hexdigest()


def photo(axis: int, path: str | None = None, photo_id: str = "") -> StoredPhoto:
    return StoredPhoto(digest(axis), AXES[axis], path, photo_id)


def names(store: ProfileStore) -> set[str]:
    return {profile.user_id for profile in store.profiles()}


def row(store: ProfileStore, user_id: str) -> UserRow:
    return next(row for row in store.changes(0).users if row.user_id == user_id)


def photo_ids(store: ProfileStore, user_id: str) -> list[str]:
    return [photo.photo_id for photo in store.photos(user_id)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "some" / "index"


@pytest.fixture
def store(folder: Path, manifest: Manifest) -> Iterator[ProfileStore]:
    opened = ProfileStore.create(folder, manifest)
    yield opened
    opened.close()


# --- what it keeps


def test_looking_for_changes_does_not_take_longer_with_more_users(store: ProfileStore) -> None:
    def steps_for_the_last_change() -> int:
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        store.write([Profile("last", [photo(7)])])
        with store.reading(), store._reader() as database:
            database.set_progress_handler(count, 1)
            assert len(store.changes(store.sequence - 1).users) == 1
            database.set_progress_handler(None, 0)
        store.remove("last")
        return steps

    store.write([Profile("first", [photo(0)])])
    store.changes(0)  # looks at all indexes, once
    few = steps_for_the_last_change()
    store.write([Profile(f"user_{number}", [photo(number % 7)]) for number in range(1000)])
    many = steps_for_the_last_change()
    assert 0 < many <= 2 * few


def test_what_was_written_is_there_after_reopening(store: ProfileStore, folder: Path) -> None:
    store.write(
        [
            Profile(
                "anna", [photo(0, "/a.jpg"), photo(1)], {"age": 29, "vip": True}, {"age": (25, 35)}
            )
        ]
    )
    store.write([Profile("ben", [photo(2, photo_id="main")])])
    before = store.changes(0)
    store.close()
    again = ProfileStore.open(folder)
    assert (again.count_users(), again.count_photos()) == (2, 3)
    assert again.changes(0) == before
    assert again.sequence == before.sequence
    assert again.attributes("anna") == {"age": 29, "vip": True}
    assert again.user("anna").preferences == {"age": (25, 35)}
    assert (again.attributes("ben"), again.user("ben").preferences) == ({}, {})
    assert (again.attributes("carl"), again.user("carl")) == (None, None)
    assert [(one.photo_id, one.path) for one in again.photos("anna")] == [
        (digest(0), "/a.jpg"),
        (digest(1), None),
    ]
    assert np.array_equal(again.photos("anna")[1].vector, AXES[1])
    assert photo_ids(again, "ben") == ["main"]
    assert again.photos("carl") == []
    assert again.ids().tolist() == [row.id for row in before.users]
    assert "anna" in again
    assert "carl" not in again
    assert 7 not in again
    again.close()


def test_a_known_photo_is_left_alone(store: ProfileStore) -> None:
    assert store.write([Profile("anna", [photo(0)])]) == 1
    before = store.sequence
    assert store.write([Profile("anna", [photo(0), photo(0, "/elsewhere.jpg")])]) == 0
    assert store.sequence == before
    assert store.write([Profile("ben", [photo(0)])]) == 1
    assert store.has_photo("anna", digest(0))
    assert not store.has_photo("anna", digest(1))
    assert not store.has_photo("nobody", digest(0))


def test_a_photo_id_names_one_photo_of_a_user(store: ProfileStore) -> None:
    assert store.write([Profile("anna", [photo(0, photo_id="main"), photo(1)])]) == 2
    assert store.write([Profile("anna", [photo(0, photo_id="main")])]) == 0  # the same
    assert store.write([Profile("anna", [photo(0)])]) == 0  # its content is there
    assert store.write([Profile("anna", [photo(1, photo_id="other")])]) == 1  # asked for by name
    before = store.sequence
    assert store.write([Profile("anna", [photo(2, photo_id="main")])]) == 1  # replaced
    assert row(store, "anna").vector_revision > before
    assert photo_ids(store, "anna") == ["main", digest(1), "other"]
    assert not store.has_photo("anna", digest(0))
    assert np.array_equal(store.photos("anna")[0].vector, AXES[2])
    assert store.count_photos() == 3


def test_the_last_of_two_photos_with_one_name_stays(store: ProfileStore) -> None:
    assert store.write([Profile("anna", [photo(n, photo_id="main") for n in range(3)])]) == 3
    assert [one.content_sha256 for one in store.photos("anna")] == [digest(2)]
    assert store.count_photos() == 1


def test_one_photo_is_removed(store: ProfileStore) -> None:
    store.write([Profile("anna", [photo(0), photo(1, photo_id="x")])])
    before = row(store, "anna")
    assert not store.remove_photo("anna", digest(7))
    assert not store.remove_photo("nobody", digest(0))
    assert row(store, "anna") == before
    assert store.remove_photo("anna", digest(0))
    assert row(store, "anna").vector_revision > before.vector_revision
    assert photo_ids(store, "anna") == ["x"]
    assert np.array_equal(store.user_vectors([before.id])[0], AXES[1])
    with pytest.raises(InputError, match="photo 'x' is the last one of user 'anna': remove the u"):
        store.remove_photo("anna", "x")
    assert (store.count_users(), store.count_photos()) == (1, 1)


def test_user_vectors_are_normalised_means_in_the_asked_order(store: ProfileStore) -> None:
    store.write([Profile("b", [photo(0), photo(1)]), Profile("a", [photo(2)])])
    ids = [row(store, "a").id, row(store, "b").id, row(store, "a").id]
    vectors = store.user_vectors(ids)
    assert np.allclose(vectors, [AXES[2], (AXES[0] + AXES[1]) / np.sqrt(2), AXES[2]])
    assert vectors.dtype == np.float32
    photos, positions = store.photo_vectors(ids)
    assert np.array_equal(photos, AXES[[2, 0, 1, 2]])
    assert positions.tolist() == [0, 1, 1, 2]
    assert store.user_vectors([]).shape == (0, 8)
    assert store.photo_vectors([])[0].shape == (0, 8)
    with pytest.raises(InputError, match="no user has the id 77"):
        store.user_vectors([77])


def test_where_photos_cancel_out_the_first_speaks(store: ProfileStore) -> None:
    store.write([Profile("a", [photo(0), StoredPhoto(digest("opposite"), -AXES[0])])])
    assert np.array_equal(store.user_vectors(store.ids())[0], AXES[0])


def test_many_users_come_back_in_the_asked_order(store: ProfileStore) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5000, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    store.write(
        Profile(f"user_{n}", [StoredPhoto(digest(n), vector)]) for n, vector in enumerate(vectors)
    )
    order = rng.permutation(5000)
    ids = store.ids()[order]
    assert np.allclose(store.user_vectors(ids), vectors[order], atol=1e-6)
    photos, positions = store.photo_vectors(ids)
    assert np.array_equal(photos, vectors[order])
    assert np.array_equal(positions, np.arange(5000))


def test_attributes_are_replaced_or_kept(store: ProfileStore) -> None:
    store.write([Profile("anna", [photo(0)], {"age": 29, "region": "Seoul"}, {"age": (20, 30)})])
    before = row(store, "anna")
    store.write([Profile("anna")])
    assert row(store, "anna") == before
    store.write([Profile("anna", (), {"region": "Seoul", "age": 29})])
    assert row(store, "anna") == before  # the same in another order
    store.write([Profile("anna", (), {"age": 30})])
    after = row(store, "anna")
    assert (after.attributes, after.preferences) == ({"age": 30}, {"age": (20, 30)})
    assert after.revision > before.revision
    assert after.vector_revision == before.vector_revision  # for those who only follow vectors
    store.write([Profile("anna", (), {}, {})])
    assert (store.attributes("anna"), store.user("anna").preferences) == ({}, {})


def test_a_user_comes_with_a_photo(store: ProfileStore) -> None:
    store.write([Profile("nobody", (), {"age": 1})])
    assert store.count_users() == 0


def test_remove_takes_the_photos_along(store: ProfileStore) -> None:
    store.write([Profile("anna", [photo(0), photo(1)]), Profile("ben", [photo(2)])])
    assert store.remove("anna")
    assert (store.count_users(), store.count_photos()) == (1, 1)
    assert not store.remove("anna")


def test_an_id_never_comes_again(store: ProfileStore, folder: Path) -> None:
    seen = set()
    for _ in range(3):
        store.write([Profile("anna", [photo(0)])])
        seen.add(row(store, "anna").id)
        store.remove("anna")
        store.compact()
        store.close()
        store = ProfileStore.open(folder)
    store.close()
    assert len(seen) == 3


def test_every_write_grows_the_sequence(store: ProfileStore) -> None:
    seen = [store.sequence]
    for axis in range(3):
        store.write([Profile("anna", [photo(axis)])])
        seen.append(store.sequence)
    store.remove_photo("anna", digest(0))
    seen.append(store.sequence)
    store.remove("anna")
    seen.append(store.sequence)
    assert seen == sorted(set(seen))


def test_what_changes_nothing_leaves_the_sequence(store: ProfileStore) -> None:
    store.write([Profile("anna", [photo(0)])])
    before = store.sequence
    store.write([Profile("anna", [photo(0)], {}, {})])
    store.remove("nobody")
    store.compact()
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
    before = store.changes(0)

    def half() -> Iterator[Profile]:
        for number in range(2000):  # more than are written together
            yield Profile(f"user_{number}", [photo(1)])
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        store.write(half())
    assert store.changes(0) == before
    assert store.count_photos() == 1


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (Profile("", [photo(0)]), "user id must be printable text"),
        (Profile("a\nb", [photo(0)]), "user id must be printable text"),
        (Profile("\ud800", [photo(0)]), "user id must be printable text"),
        (Profile("a", [StoredPhoto("digest", AXES[0])]), "of user 'a' .* must be 64 hex digits"),
        (Profile("a", [StoredPhoto("A" * 64, AXES[0])]), "must be 64 hex digits in lower case"),
        (Profile("a", [StoredPhoto("0" * 64, AXES[0, :3])]), r"shape \[8\], got \[3\]"),
        (Profile("a", [StoredPhoto("0" * 64, 2 * AXES[0])]), "unit length, got 2"),
        (Profile("a", [StoredPhoto("0" * 64, np.nan * AXES[0])]), "unit length, got nan"),
        (Profile("a", [photo(0, photo_id="\n")]), "photo id must be printable text"),
        (Profile("a", [photo(0, "\ud800")]), "path is broken text"),
        (Profile("a", [photo(0)], {"x": None}), "attribute 'x' must be text"),  # type: ignore[dict-item]
        (Profile("a", [photo(0)], {}, {"x": (3, 1)}), "upside down"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    store: ProfileStore, profile: Profile, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        store.write([Profile("anna", [photo(0)]), profile])
    assert store.count_users() == 0


def test_a_long_write_does_not_collect_profiles_in_memory(store: ProfileStore) -> None:
    alive: weakref.WeakSet[Profile] = weakref.WeakSet()
    most = 0

    class Counted(Profile):
        __hash__ = object.__hash__

    def endless() -> Iterator[Profile]:
        nonlocal most
        for number in range(5000):
            profile = Counted(f"user_{number}", [photo(number % 8)])
            alive.add(profile)
            most = max(most, len(alive))
            yield profile

    assert store.write(endless()) == 5000
    assert most < 1500


# --- against a dict

USERS = st.sampled_from(["anna", "ben", "서연", "dan"])
PHOTOS = st.builds(
    photo,
    st.integers(0, 5),
    st.sampled_from([None, "/a.jpg"]),
    st.sampled_from(["", "", "main", "second", digest(3)]),
)
PROFILES = st.builds(
    Profile,
    USERS,
    st.lists(PHOTOS, max_size=3),
    st.none()
    | st.dictionaries(st.sampled_from(["age", "vip"]), st.sampled_from([1, True, 1.0, "a"])),
    st.none()
    | st.dictionaries(st.sampled_from(["age"]), st.sampled_from([None, (1, 2), {1, "a"}])),
)


class _Model:
    """A user, as plain as can be."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}
        self.preferences: dict[str, Any] = {}
        self.photos: dict[str, StoredPhoto] = {}

    def add(self, given: StoredPhoto) -> bool:
        contents = {name: kept.content_sha256 for name, kept in self.photos.items()}
        name = given.photo_id or given.content_sha256
        if contents.get(name) == given.content_sha256:
            return False
        if not given.photo_id and given.content_sha256 in contents.values():
            return False
        self.photos[name] = replace(given, photo_id=name)
        return True


class StoreBesideDict(RuleBasedStateMachine):
    """Any sequence of operations leaves the store and its followers equal to a dict."""

    folder: Path
    manifest: Manifest

    @initialize()
    def create(self) -> None:
        self.path = self.folder / str(len(list(self.folder.iterdir())))
        self.store = ProfileStore.create(self.path, self.manifest)
        self.reader = ProfileStore.open(self.path, read_only=True)
        self.users: dict[str, _Model] = {}
        self.followed: dict[int, UserRow] = {}
        self.sequence = 0
        self.seen_ids: dict[int, str] = {}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.reader.close()

    @rule(profiles=st.lists(PROFILES, min_size=1, max_size=4))
    def write(self, profiles: list[Profile]) -> None:
        count = 0
        for profile in profiles:
            if profile.user_id not in self.users:
                if not profile.photos:
                    continue
                self.users[profile.user_id] = _Model()
            user = self.users[profile.user_id]
            count += sum([user.add(given) for given in profile.photos])
            if profile.attributes is not None:
                user.attributes = dict(profile.attributes)
            if profile.preferences is not None:
                user.preferences = dict(profile.preferences)
        assert self.store.write(profiles) == count

    @rule(user_id=USERS)
    def remove(self, user_id: str) -> None:
        assert self.store.remove(user_id) == (self.users.pop(user_id, None) is not None)

    @rule(user_id=USERS, axis=st.integers(0, 5), name=st.sampled_from(["", "main", "second"]))
    def remove_photo(self, user_id: str, axis: int, name: str) -> None:
        photo_id = name or digest(axis)
        photos = self.users[user_id].photos if user_id in self.users else {}
        if list(photos) == [photo_id]:
            with pytest.raises(InputError, match="the last one"):
                self.store.remove_photo(user_id, photo_id)
        else:
            assert self.store.remove_photo(user_id, photo_id) == (photo_id in photos)
            photos.pop(photo_id, None)

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = ProfileStore.open(self.path)

    @rule()
    def follow(self) -> None:
        """As a follower does, that may have missed any number of writes."""
        changes = self.reader.changes(self.sequence)
        self.followed.update({row.id: row for row in changes.users})
        gone = changes.removed
        if gone is None:
            gone = list(set(self.followed) - {user.id for user in changes.users})
            assert self.reader.ids().tolist() == [user.id for user in changes.users]
        for number in gone:
            self.followed.pop(number, None)
        self.sequence = changes.sequence
        assert {user.user_id: repr(user.attributes) for user in self.followed.values()} == {
            name: repr(dict(sorted(user.attributes.items()))) for name, user in self.users.items()
        }

    @invariant()
    def equal(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.count_users() == len(self.users)
        assert self.store.count_photos() == sum(len(user.photos) for user in self.users.values())
        stored = {profile.user_id: profile for profile in self.store.profiles()}
        assert stored.keys() == self.users.keys()
        for name, user in self.users.items():
            assert stored[name].attributes == user.attributes
            assert stored[name].preferences == user.preferences
            assert [*map(_comparable, stored[name].photos)] == [
                *map(_comparable, user.photos.values())
            ]
        for found in self.store.changes(0).users:
            assert self.seen_ids.setdefault(found.id, found.user_id) == found.user_id
            mean = np.sum([p.vector for p in self.users[found.user_id].photos.values()], axis=0)
            (vector,) = self.store.user_vectors([found.id])
            assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


def _comparable(photo: StoredPhoto) -> tuple[object, ...]:
    return photo.photo_id, photo.content_sha256, photo.path, photo.vector.tobytes()


@pytest.mark.parametrize(
    "examples", [20, pytest.param(1000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_store_beside_dict(tmp_path: Path, manifest: Manifest, examples: int) -> None:
    class Machine(StoreBesideDict):
        folder = tmp_path

    Machine.manifest = manifest
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=examples, stateful_step_count=30, deadline=None)
    )


# --- changes


def test_changes_tell_followers_what_is_new_and_gone(store: ProfileStore) -> None:
    store.write([Profile(name, [photo(0)]) for name in ("anna", "ben", "carl")])
    first = store.changes(0)
    assert [user.user_id for user in first.users] == ["anna", "ben", "carl"]
    assert first.removed is None
    store.write([Profile("ben", (), {"age": 30})])
    store.remove("anna")
    anna, ben, _ = first.users
    changes = store.changes(first.sequence)
    assert changes.sequence == store.sequence
    assert [(user.id, user.attributes) for user in changes.users] == [(ben.id, {"age": 30})]
    assert changes.removed == [anna.id]
    assert store.changes(changes.sequence) == Changes(changes.sequence, [], [])
    assert store.changes(changes.sequence + 10**9).removed is None  # restored from a backup
    assert len(store.changes(changes.sequence + 10**9).users) == 2


def test_compacting_forgets_who_was_removed(store: ProfileStore) -> None:
    store.write([Profile(name, [photo(0)]) for name in ("anna", "ben", "carl")])
    before = store.sequence
    store.remove("anna")
    store.compact()
    store.remove("ben")
    assert store.changes(before).removed is None
    assert [user.user_id for user in store.changes(before).users] == ["carl"]  # everybody
    assert store.changes(store.sequence - 1).removed is not None
    assert len(store.ids()) == 1


def test_vectors_of_removed_users_and_photos_are_not_in_the_files(
    store: ProfileStore, folder: Path
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    photos = [StoredPhoto(digest(n), vector) for n, vector in enumerate(vectors)]
    store.write(Profile(f"user_{n // 3}", photos[n : n + 3]) for n in range(0, 300, 3))
    store.compact()
    size = (folder / "1" / FILENAME).stat().st_size
    for n in range(0, 300, 6):
        store.remove(f"user_{n // 3}")
    store.remove_photo("user_1", digest(3))
    store.compact()
    content = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    gone = [n for n in range(300) if n % 6 < 3 or n == 3]
    assert [n for n in range(300) if vectors[n].tobytes() not in content] == gone
    store.close()
    assert (folder / "1" / FILENAME).stat().st_size < 0.9 * size


# --- values and conditions


CONDITIONS = [
    {},
    {"a": "x"},
    {"a": True},
    {"a": 1},
    {"a": 1.5},
    {"a": None},
    {"a": []},
    {"a": ["x", 1, None, False]},
    {"a": {"x", None, 2}},
    {"a": (1, 2)},
    {"a": (-0.5, float("inf"))},
    {"a": (float("-inf"), float("inf"))},
    {'a "quoted" \\ name': 1, "나이": (20, 30)},
]


@pytest.mark.parametrize("where", CONDITIONS)
def test_preferences_come_back_as_they_were(store: ProfileStore, where: Any) -> None:
    store.write([Profile("anna", [photo(0)], None, where)])
    back = store.user("anna").preferences
    assert back is not None
    assert back == where
    assert [type(condition) for condition in back.values()] == [
        type(condition) for condition in dict(sorted(where.items())).values()
    ]


def test_a_bound_beyond_all_floats_is_infinite(store: ProfileStore) -> None:
    store.write([Profile("anna", [photo(0)], None, {"a": (-(10**400), 10**5000)})])
    assert store.user("anna").preferences == {"a": (float("-inf"), float("inf"))}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"age": (1, 2, 3)}, r"range for 'age' must be \(low, high\)"),
        ({"age": ("a", "b")}, r"range for 'age' must be \(low, high\)"),
        ({"age": (None, 3)}, r"range for 'age' must be \(low, high\)"),
        ({"age": (float("nan"), 3)}, r"range for 'age' must be \(low, high\)"),
        ({"age": (30, 20)}, "upside down: 30 is above 20"),
        ({"age": [(1, 2)]}, "must be text, a number or true/false, got tuple"),
        ({"age": {"min": 3}}, "must be text, a number or true/false, got dict"),
        ({"age": b"x"}, "must be text, a number or true/false, got bytes"),
        ({"age": float("nan")}, "must be finite"),
        ({"": 1}, "name must be printable text"),
        ({3: 1}, "name must be printable text"),
        ([("age", 3)], "conditions must be a dict"),
    ],
)
def test_senseless_conditions(where: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_where(where)


@pytest.mark.parametrize(
    "attributes",
    [{"a": None}, {"a": [1]}, {"a": float("nan")}, {"a": 2**63}, {"a": "\ud800"}, {"a": "x\0y"}],
)
def test_unstorable_attributes(attributes: Any) -> None:
    with pytest.raises(InputError, match="attribute 'a'"):
        check_attributes(attributes)


def test_attributes_are_a_dict() -> None:
    with pytest.raises(InputError, match="attributes must be a dict"):
        check_attributes([("a", 1)])  # type: ignore[arg-type]


VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)
RANGES = st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)).map(sorted).map(tuple)
CONDITION = st.one_of(
    VALUES, st.none(), st.lists(st.none() | VALUES), st.sets(st.none() | VALUES), RANGES
)


@settings(max_examples=25)
@given(
    written=st.lists(
        st.tuples(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, CONDITION)), max_size=20
    )
)
def test_whatever_is_allowed_comes_back(
    tmp_path_factory: pytest.TempPathFactory, written: list[tuple[Any, Any]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "index"
    store = ProfileStore.create(path, _any_manifest())
    store.write(Profile(str(n), [photo(0)], *both) for n, both in enumerate(written))
    for n, (attributes, preferences) in enumerate(written):
        assert _typed(store.attributes(str(n))) == _typed(attributes)
        assert _typed(store.user(str(n)).preferences) == _typed(preferences)
    store.close()


def _typed(values: Any) -> dict[str, tuple[type, object]]:
    return {name: (type(value), value) for name, value in values.items()}


def _any_manifest() -> Manifest:
    from vibematch.preprocess import Preprocessing

    canvas = Preprocessing(height=64, width=96)
    return Manifest(8, canvas, "", "mean", "tiny", "0" * 64, "paper", "1" * 64, "fp32")


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


# --- folders


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"no index at .*; make one with `vibematch add .* PHOTOS`"
    ):
        ProfileStore.open(tmp_path / "nowhere")


def test_a_creation_cut_short_counts_as_no_index(folder: Path, manifest: Manifest) -> None:
    (folder / "1.new").mkdir(parents=True)
    (folder / "1.new" / FILENAME).write_bytes(b"SQLite format 3")
    (folder / "lock").touch()
    assert not ProfileStore.exists(folder)
    with pytest.raises(StoreError, match="no index at"):
        ProfileStore.open(folder)
    ProfileStore.create(folder, manifest).close()
    ProfileStore.open(folder).close()
    assert sorted(entry.name for entry in folder.iterdir()) == ["1", "lock"]


def test_an_index_is_not_made_among_other_files(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "me.jpg").touch()
    with pytest.raises(StoreError, match="holds other files and no index"):
        ProfileStore.create(tmp_path, manifest)
    with pytest.raises(StoreError, match="is a file"):
        ProfileStore.create(tmp_path / "me.jpg", manifest)
    with pytest.raises(StoreError, match="no index can be made"):
        ProfileStore.create(tmp_path / "me.jpg" / "index", manifest)


def test_an_index_is_not_made_twice(store: ProfileStore, folder: Path, manifest: Manifest) -> None:
    with pytest.raises(StoreError, match=r"there is an index at .* already"):
        ProfileStore.create(folder, manifest)


def test_another_model_is_refused_by_name(
    store: ProfileStore, manifest: Manifest, other_manifest: Manifest
) -> None:
    store.require_model(manifest)
    with pytest.raises(ModelMismatchError) as raised:
        store.require_model(other_manifest)
    for part in (manifest.fingerprint[:12], other_manifest.fingerprint[:12], "vibematch reindex"):
        assert part in str(raised.value)


# --- several at once


def test_second_writer_is_refused(store: ProfileStore, folder: Path) -> None:
    with pytest.raises(StoreLockedError, match=rf"this process \(pid {os.getpid()}\)"):
        ProfileStore.open(folder)
    store.close()
    ProfileStore.open(folder).close()


def test_a_creator_that_comes_second_is_refused(folder: Path, manifest: Manifest) -> None:
    folder.mkdir(parents=True)
    with lock_index(folder), pytest.raises(StoreLockedError, match="process"):
        ProfileStore.create(folder, manifest)
    ProfileStore.create(folder, manifest).close()


def test_of_many_creators_one_succeeds(folder: Path, manifest: Manifest) -> None:
    start = threading.Barrier(8)

    def create(number: int) -> ProfileStore | StoreError:
        start.wait()
        try:
            return ProfileStore.create(folder, manifest)
        except StoreError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(create, range(8)))
    (created,) = [result for result in results if isinstance(result, ProfileStore)]
    created.write([Profile("anna", [photo(0)])])
    assert names(created) == {"anna"}
    created.close()


def test_reader_beside_a_writer(store: ProfileStore, folder: Path) -> None:
    store.write([Profile("anna", [photo(0)])])
    reader = ProfileStore.open(folder, read_only=True)
    with reader.reading():
        assert reader.count_users() == 1
        store.write([Profile("ben", [photo(1)])])
        with reader.reading():
            assert reader.count_users() == 1  # one state per reading
    assert names(reader) == {"anna", "ben"}
    for change in (
        lambda: reader.write([Profile("carl", [photo(2)])]),
        lambda: reader.remove("anna"),
        lambda: reader.remove_photo("anna", digest(0)),
        reader.compact,
    ):
        with pytest.raises(StoreError, match="opened read-only"):
            change()
    reader.close()


def test_changed_notices_other_processes_and_only_those(store: ProfileStore, folder: Path) -> None:
    reader = ProfileStore.open(folder, read_only=True)
    assert not reader.changed()
    store.write([Profile("anna", [photo(0)])])
    assert (reader.changed(), reader.changed()) == (True, False)
    reader.count_users()
    assert not reader.changed()
    store.remove("anna")
    assert (reader.changed(), reader.changed()) == (True, False)
    assert not store.changed()
    reader.close()


def test_reads_do_not_wait_for_a_write(store: ProfileStore) -> None:
    store.write([Profile("anna", [photo(0)])])

    def slow() -> Iterator[Profile]:
        yield Profile("ben", [photo(1)])
        with ThreadPoolExecutor(1) as pool:  # another thread reads while this one writes
            assert pool.submit(names, store).result(timeout=10) == {"anna"}
        assert store.attributes("anna") == {}  # and so does this one

    store.write(slow())
    assert names(store) == {"anna", "ben"}


def test_reading_all_lets_others_write(store: ProfileStore) -> None:
    store.write([Profile("anna", [photo(0)]), Profile("ben", [photo(0)])])
    profiles = store.profiles()
    assert next(profiles).user_id == "anna"
    store.write([Profile("carl", [photo(1)])])
    assert store.count_users() == 3
    assert [profile.user_id for profile in profiles] == ["ben"]  # of the state of the first


def test_threads_share_a_store(store: ProfileStore) -> None:
    def work(worker: int) -> None:
        for number in range(30):
            user_id = f"user_{worker}_{number}"
            store.write([Profile(user_id, [photo(number % 8)], {"number": number})])
            assert store.attributes(user_id) == {"number": number}  # what it wrote itself
            with store.reading():
                assert len(store.changes(0).users) == store.count_users()
            if number % 3 == 0:
                assert store.remove(user_id)
                assert user_id not in store

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert store.count_users() == len(names(store)) == 4 * 20


FOLLOWER = """
import json, sys
from pathlib import Path
from vibematch.store import ProfileStore

store = ProfileStore.open(Path(sys.argv[1]), read_only=True)
for line in sys.stdin:
    changes = store.changes(int(line))
    users = {row.user_id: row.attributes for row in changes.users}
    print(json.dumps([store.changed(), changes.sequence, users, changes.removed]), flush=True)
"""


def test_another_process_follows(store: ProfileStore, folder: Path) -> None:
    command = [sys.executable, "-c", FOLLOWER, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        to, from_ = process.stdin, process.stdout
        assert to is not None
        assert from_ is not None

        def ask(after: int) -> Any:
            to.write(f"{after}\n")
            to.flush()
            return json.loads(from_.readline())

        _, sequence, users, _ = ask(0)
        assert users == {}
        for number in range(20):
            store.write([Profile(f"user_{number}", [photo(0)], {"number": number})])
            changed, sequence, users, removed = ask(sequence)
            assert (changed, users, removed) == (True, {f"user_{number}": {"number": number}}, [])
        gone = row(store, "user_3").id
        store.remove("user_3")
        assert ask(sequence)[2:] == [{}, [gone]]
        assert ask(store.sequence)[0] is False
        to.close()


def test_a_newer_generation_answers_when_reopened(
    store: ProfileStore, folder: Path, other_manifest: Manifest
) -> None:
    store.write([Profile("anna", [photo(0)])])
    reader = ProfileStore.open(folder, read_only=True)
    new = ProfileStore.open_next(folder, other_manifest)
    new.write([Profile("ben", [photo(1)])])
    with pytest.raises(StoreLockedError, match="is reindexing the index"):
        ProfileStore.open_next(folder, other_manifest)
    assert not reader.changed()
    with pytest.raises(StoreLockedError, match="is reindexing the index"):
        discard_next(folder)
    new.publish()
    assert (reader.changed(), reader.superseded, reader.changed()) == (True, True, False)
    assert names(reader) == {"anna"}  # until it is reopened
    newest_reader, newest = reader.reopened(), store.reopened()
    for one in (newest_reader, newest):
        assert names(one) == {"ben"}
        assert one.manifest.fingerprint == other_manifest.fingerprint
        assert (one.superseded, one.folder) == (False, folder / "2")
    newest.write([Profile("carl", [photo(2)])])
    assert newest_reader.changed()
    with pytest.raises(StoreError, match="opened read-only"):
        store.write([Profile("dan", [photo(2)])])
    store.close()
    reader.close()
    newest_reader.close()
    with pytest.raises(StoreLockedError):
        ProfileStore.open(folder)  # the lock went along
    newest.close()
    ProfileStore.open(folder).close()


READ_ONLY = """
import os, sys
from pathlib import Path
from vibematch.errors import StoreError
from vibematch.store import ProfileStore

if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
folder = Path(sys.argv[1])
store = ProfileStore.open(folder, read_only=True)
print([profile.user_id for profile in store.profiles()], store.changed(), store.superseded)
try:
    ProfileStore.open(folder)
except StoreError as error:
    print(error)
"""


def test_read_only_folder(store: ProfileStore, folder: Path) -> None:
    store.write([Profile("anna", [photo(0)])])
    store.close()
    for part in (folder, *folder.parents):
        if part.owner() == folder.owner() and part != Path("/tmp"):  # noqa: S108
            part.chmod(part.stat().st_mode | 0o555)
    for part in (folder, folder / "1"):
        part.chmod(0o555)
    (folder / "lock").chmod(0o444)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(folder)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        for part in (folder, folder / "1"):
            part.chmod(0o755)
    users, refusal = done.stdout.splitlines()
    assert users == "['anna'] False False"
    assert "cannot be written (Permission denied); open it read-only" in refusal


def test_closed_store_says_so(store: ProfileStore) -> None:
    store.write([Profile("anna", [photo(0)])])
    half_read = store.profiles()
    next(half_read)
    store.close()
    store.close()
    assert list(half_read) == []
    for use in (store.count_users, store.changed, lambda: store.remove("anna")):
        with pytest.raises(StoreError, match="is closed"):
            use()
