"""Going over to another model: beside the index in use, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vibematch.errors import (
    InputError,
    ModelChangedError,
    ModelMismatchError,
    PhotoError,
    ServerUnavailableError,
    StoreError,
    StoreLockedError,
    VibematchError,
)
from vibematch.folder import FILENAME
from vibematch.manifest import Manifest
from vibematch.records import Profile, StoredPhoto
from vibematch.reindex import Reindex, Reindexed, forget_old, photos_in, reindex
from vibematch.store import ProfileStore
from vibematch.vectors import Vector


def vector_of(content: bytes, manifest: Manifest) -> Vector:
    """What a model makes of a photo."""
    seed = hashlib.sha256(manifest.fingerprint.encode() + content).digest()
    values = np.random.default_rng(list(seed)).normal(size=manifest.embedding_dim)
    unit: Vector = (values / np.linalg.norm(values)).astype(np.float32)
    return unit


class Model:
    """An encoder that needs no server.

    Attributes:
        before_each: is called before each photo.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.encoded: list[bytes] = []
        self.before_each: Callable[[], object] = lambda: None

    def encode_each(
        self, photos: Iterable[Any], *, fingerprint: str | None = None
    ) -> Iterator[Vector | VibematchError]:
        for photo in photos:
            self.before_each()
            if fingerprint != self.manifest.fingerprint:
                yield ModelChangedError("it makes others now")
            elif photo.startswith(b"bad"):
                yield PhotoError("it is not a photo")
            else:
                self.encoded.append(photo)
                yield vector_of(photo, self.manifest)


class People:
    """An index whose photos are files, beside what has to be in it."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.index = folder / "index"
        self.manifest = manifest
        self.photos: dict[str, dict[str, bytes]] = {}
        self.attributes: dict[str, dict[str, Any]] = {}
        self._files = folder / "photos"
        self._files.mkdir()
        self._store = ProfileStore.create(self.index, manifest)

    def add(self, user_id: str, *contents: str, photo_id: str = "", **attributes: Any) -> None:
        photos = []
        for content in map(str.encode, contents):
            digest = hashlib.sha256(content).hexdigest()
            file = self._files / f"{digest}.jpg"
            file.write_bytes(content)
            vector = vector_of(content, self.manifest)
            photos.append(StoredPhoto(digest, vector, str(file), photo_id))
            self.photos.setdefault(user_id, {})[photo_id or digest] = content
        self._store.write([Profile(user_id, photos, attributes, {"age": (20, float("inf"))})])
        self.attributes[user_id] = attributes

    def remove(self, user_id: str) -> None:
        self._store.remove(user_id)
        del self.photos[user_id]

    def remove_photo(self, user_id: str, content: str) -> None:
        digest = hashlib.sha256(content.encode()).hexdigest()
        assert self._store.remove_photo(user_id, digest)
        del self.photos[user_id][digest]

    def file(self, content: str) -> Path:
        return self._files / f"{hashlib.sha256(content.encode()).hexdigest()}.jpg"

    def close(self) -> None:
        self._store.close()

    def go_on(self) -> None:
        self._store = self._store.reopened()

    def require_all(self, manifest: Manifest) -> None:
        """The index holds everybody, with this model's vectors and nothing else."""
        with_vectors = {
            user_id: {name: vector_of(content, manifest) for name, content in photos.items()}
            for user_id, photos in self.photos.items()
        }
        store = ProfileStore.open(self.index, read_only=True)
        assert store.manifest.fingerprint == manifest.fingerprint
        stored = {profile.user_id: profile for profile in store.profiles()}
        store.close()
        assert stored.keys() == with_vectors.keys()
        for user_id, vectors in with_vectors.items():
            photos = {photo.photo_id: photo for photo in stored[user_id].photos}
            assert photos.keys() == vectors.keys()
            for name, vector in vectors.items():
                assert np.array_equal(photos[name].vector, vector)
                content = self.photos[user_id][name]
                assert photos[name].content_sha256 == hashlib.sha256(content).hexdigest()
                assert photos[name].path is not None
            assert stored[user_id].attributes == self.attributes[user_id]
            assert stored[user_id].preferences == {"age": (20, float("inf"))}


@pytest.fixture
def people(tmp_path: Path, manifest: Manifest) -> Iterator[People]:
    people = People(tmp_path, manifest)
    for number in range(20):
        people.add(f"user_{number:02d}", f"photo {number}", f"other {number}", number=number)
    yield people
    people.close()


@pytest.fixture
def model(other_manifest: Manifest) -> Model:
    return Model(other_manifest)


def test_all_vectors_are_made_anew(people: People, model: Model) -> None:
    people.close()
    progress: list[tuple[int, int]] = []
    result = reindex(people.index, model, on_progress=lambda *step: progress.append(step))
    assert result == Reindexed(switched=True, users=20, photos=40, encoded=40)
    assert progress[-1] == (40, 40)
    people.require_all(model.manifest)
    assert sorted(entry.name for entry in people.index.iterdir()) == ["1", "2", "lock"]


def test_another_dimension_is_no_obstacle(people: People, other_manifest: Manifest) -> None:
    people.close()
    wider = Model(replace(other_manifest, embedding_dim=12, head="other"))
    reindex(people.index, wider)
    people.require_all(wider.manifest)


def test_an_index_that_has_the_model_is_left_alone(people: People, manifest: Manifest) -> None:
    same = Model(manifest)  # and it does not matter that somebody is writing
    assert reindex(people.index, same) == Reindexed(switched=False, users=20, photos=40)
    assert same.encoded == []
    people.require_all(manifest)


def test_old_vectors_stay_until_they_are_forgotten(
    people: People, model: Model, manifest: Manifest, other_manifest: Manifest
) -> None:
    people.close()
    reindex(people.index, model)
    reindex(people.index, Model(replace(other_manifest, head_sha256="3" * 64)))
    (people.index / "3").rename(people.index / "aside")  # by which one goes back
    people.require_all(model.manifest)
    (people.index / "aside").rename(people.index / "3")
    assert forget_old(people.index) == 2
    assert forget_old(people.index) == 0
    people.require_all(replace(other_manifest, head_sha256="3" * 64))


def test_what_is_written_meanwhile_is_there_afterwards(people: People, model: Model) -> None:
    changes: list[Callable[[], None]] = [
        lambda: people.add("user_03", "photo 3", "other 3", number=33),  # attributes only
        lambda: people.add("user_00", "new photo", number=0),
        lambda: people.remove("user_01"),
        lambda: people.remove("user_19"),
        lambda: people.remove_photo("user_02", "photo 2"),
        lambda: people.remove_photo("user_18", "photo 18"),
        lambda: people.add("someone new", "a", "b"),
        lambda: people.add("user_05", "first", photo_id="main"),
        lambda: people.add("user_05", "second", photo_id="main"),
        lambda: people.remove("user_06"),
        lambda: people.add("user_06", "came back", number=6),
        lambda: people.add("passing", "by"),
        lambda: people.remove("passing"),
        lambda: people._store.compact(),
        lambda: people.remove("user_07"),
    ]

    def change() -> None:
        if changes:
            changes.pop(0)()

    model.before_each = change
    with Reindex(people.index, model) as job:
        job.catch_up()
        assert not changes
        people.add("at the very end", "c")
        job.switch()
    assert job.result.switched
    people.require_all(model.manifest)
    people.go_on()
    people.add("after that", "d")  # the writer is still the writer
    people.photos["after that"] = {}
    with pytest.raises(StoreLockedError):
        ProfileStore.open(people.index)


def test_everything_can_change_between_two_rounds(people: People, model: Model) -> None:
    with Reindex(people.index, model) as job:
        job.catch_up()
        people.add("user_05", "first", photo_id="main", number=5)
        job.catch_up()
        people.add("user_05", "second", photo_id="main", number=5)
        people.remove_photo("user_05", "photo 5")
        job.catch_up()
        people._store.compact()
        people.remove("user_05")
        people.add("user_05", "third", number=1)
        job.switch()
    people.require_all(model.manifest)


def test_the_index_answers_meanwhile(people: People, model: Model, manifest: Manifest) -> None:
    model.before_each = lambda: people.require_all(manifest)
    with Reindex(people.index, model) as job:
        job.catch_up()
        people.require_all(manifest)
        job.switch()
    people.require_all(model.manifest)


def test_a_writer_that_stays_is_named_and_the_work_is_kept(people: People, model: Model) -> None:
    with pytest.raises(StoreLockedError, match=r"pid \d+.*All photos are encoded and kept"):
        reindex(people.index, model)
    people.add("meanwhile", "e")
    people.close()
    model.encoded.clear()
    assert reindex(people.index, model).encoded == 1
    people.require_all(model.manifest)


def test_only_one_reindexes(people: People, model: Model) -> None:
    people.close()
    with Reindex(people.index, model), pytest.raises(StoreLockedError, match="is reindexing"):
        reindex(people.index, model)
    reindex(people.index, model)
    people.require_all(model.manifest)


def test_a_server_that_goes_away_costs_nothing(
    people: People, model: Model, monkeypatch: pytest.MonkeyPatch, manifest: Manifest
) -> None:
    monkeypatch.setattr("vibematch.reindex._PHOTOS_PER_COMMIT", 8)
    people.close()
    left = iter(range(21))

    def go_away() -> None:
        if next(left, None) is None:
            raise ServerUnavailableError("gone")

    model.before_each = go_away
    with pytest.raises(ServerUnavailableError):
        reindex(people.index, model)
    people.require_all(manifest)
    model.before_each = lambda: None
    assert reindex(people.index, model).encoded == 40 - 16
    people.require_all(model.manifest)


def test_a_server_that_changes_models_is_refused(
    people: People, model: Model, manifest: Manifest
) -> None:
    people.close()

    def change() -> None:
        model.manifest = replace(model.manifest, head_sha256="9" * 64)

    model.before_each = change
    with pytest.raises(ModelChangedError):
        reindex(people.index, model)
    people.require_all(manifest)


# --- photos that are gone


def test_missing_photos_are_counted_and_named(
    people: People, model: Model, manifest: Manifest
) -> None:
    people.close()
    for number in range(7):
        people.file(f"photo {number}").unlink()
    people.file("other 3").write_bytes(b"something else")
    with pytest.raises(InputError) as raised:
        reindex(people.index, model)
    message = str(raised.value)
    for part in ("8 of 40 photos", "user_00", "cannot be read", "3 more", "--skip-missing"):
        assert part in message
    people.require_all(manifest)
    for number in range(7):
        people.file(f"photo {number}").write_bytes(b"photo %d" % number)
    people.file("other 3").write_bytes(b"other 3")
    assert reindex(people.index, model).encoded == 8  # the others are there already
    people.require_all(model.manifest)


def test_missing_photos_are_left_out_on_request(people: People, model: Model) -> None:
    people.close()
    for content in ("photo 0", "photo 1", "other 1"):
        people.file(content).unlink()
    result = reindex(people.index, model, skip_missing=True)
    assert result == Reindexed(True, 19, 37, encoded=37, left_out_users=1, left_out_photos=3)
    del people.photos["user_01"]
    del people.photos["user_00"][hashlib.sha256(b"photo 0").hexdigest()]
    people.require_all(model.manifest)


def test_an_index_is_not_emptied(people: People, model: Model, manifest: Manifest) -> None:
    people.close()
    with pytest.raises(InputError, match=r"no photo of the index at .* is left"):
        reindex(people.index, model, source=lambda *_: None, skip_missing=True)
    people.require_all(manifest)


def test_photos_that_the_model_refuses_are_missing(people: People, model: Model) -> None:
    people.add("odd", "bad photo")
    people.close()
    with pytest.raises(InputError, match=r"1 of 41 photos .* of user 'odd': it is not a photo"):
        reindex(people.index, model)


def test_a_photo_that_was_replaced_by_a_missing_one_is_not_kept(
    people: People, model: Model
) -> None:
    people.add("user_00", "first", photo_id="main", number=0)
    people.add("single", "first", photo_id="main")
    with Reindex(people.index, model, skip_missing=True) as job:
        job.catch_up()
        for user_id in ("user_00", "single"):
            people.add(user_id, "second", photo_id="main", **people.attributes[user_id])
        people.file("second").unlink()
        job.switch()
    del people.photos["user_00"]["main"], people.photos["single"]
    people.require_all(model.manifest)
    assert (job.result.left_out_users, job.result.left_out_photos) == (1, 2)


def test_photos_and_vectors_come_from_a_source(people: People, model: Model) -> None:
    people.close()
    contents = {
        (user_id, name): content
        for user_id, photos in people.photos.items()
        for name, content in photos.items()
    }

    def source(user_id: str, photo: StoredPhoto) -> bytes | Vector:
        content = contents[user_id, photo.photo_id]
        return content if user_id < "user_10" else vector_of(content, model.manifest)

    assert reindex(people.index, model, source=source).encoded == 20
    people.require_all(model.manifest)


def test_a_vector_of_no_use_is_refused(people: People, model: Model, manifest: Manifest) -> None:
    people.close()
    with pytest.raises(InputError, match="unit length"):
        reindex(people.index, model, source=lambda *_: np.zeros(8, np.float32))
    people.require_all(manifest)


def test_moved_photos_are_found_by_their_content(people: People, model: Model) -> None:
    people.close()
    moved = people.index.parent / "moved" / "deep"
    moved.mkdir(parents=True)
    for number in range(5):
        people.file(f"photo {number}").rename(moved / f"{number}.jpg")
    with pytest.raises(InputError, match="no such folder"):
        photos_in(moved / "nowhere", 1000)
    reindex(people.index, model, source=photos_in(moved.parent, 1000))
    people.require_all(model.manifest)
    with pytest.raises(InputError, match="5 of 40"):
        third = Model(replace(model.manifest, head_sha256="3" * 64))
        reindex(people.index, third, source=photos_in(people.index.parent / "photos", 1000))


# --- what an earlier run left


def test_going_over_to_yet_another_model_is_refused_or_given_up(
    people: People, model: Model, other_manifest: Manifest
) -> None:
    people.close()
    third = Model(replace(other_manifest, head_sha256="3" * 64))
    with Reindex(people.index, model) as job:
        job.catch_up()
    with pytest.raises(ModelMismatchError, match=model.manifest.fingerprint[:12]):
        reindex(people.index, third)
    assert reindex(people.index, third, restart=True).encoded == 40
    people.require_all(third.manifest)


def test_a_damaged_beginning_is_refused_or_given_up(
    people: People, model: Model, manifest: Manifest
) -> None:
    people.close()
    (people.index / "2.new").mkdir()
    (people.index / "2.new" / FILENAME).write_bytes(b"SQLite format 3\0" * 300)
    with pytest.raises(StoreError, match=r"what an earlier reindexing left .* restart=True"):
        reindex(people.index, model)
    people.require_all(manifest)
    reindex(people.index, model, restart=True)
    people.require_all(model.manifest)


KILLED = """
import sys, time
from pathlib import Path

import tests.client.test_reindex as test
import vibematch.reindex
from vibematch.manifest import Manifest

vibematch.reindex._PHOTOS_PER_COMMIT = 4
model = test.Model(Manifest.from_json(sys.stdin.read()))
print("running", flush=True)
model.before_each = lambda: time.sleep(0.001)
vibematch.reindex.reindex(Path(sys.argv[1]), model)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_and_run_again(tmp_path: Path, manifest: Manifest, kills: int) -> None:
    """The process that reindexes is killed at random; the index answers before and after."""
    people = People(tmp_path, manifest)
    for number in range(60):
        people.add(f"user_{number:02d}", f"photo {number}", f"other {number}", number=number)
    people.close()
    rng = random.Random(kills)
    current, switches = manifest, 0
    wanted = replace(manifest, head_sha256="2" * 64)
    for _ in range(kills):
        before = {entry.name for entry in people.index.iterdir()}
        _reindex_until_killed(people.index, wanted, rng.uniform(0, 0.15))
        store = ProfileStore.open(people.index, read_only=True)
        switched = store.manifest.fingerprint == wanted.fingerprint
        store.close()
        if switched:  # another model, from the start
            people.require_all(wanted)
            current, switches = wanted, switches + 1
            wanted = replace(manifest, head_sha256=f"{switches:064x}")
            assert not any(name.endswith(".new") for name in _names(people.index))
        else:
            people.require_all(current)
            assert before <= _names(people.index)
    model = Model(wanted)
    assert reindex(people.index, model).encoded == len(model.encoded)
    people.require_all(wanted)


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def _reindex_until_killed(index: Path, manifest: Manifest, after_s: float) -> None:
    pipe = subprocess.PIPE
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(index)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(manifest.to_json())
        process.stdin.close()
        process.stdout.readline()
        time.sleep(after_s)
        process.kill()
