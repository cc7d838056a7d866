from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vibematch.engine import MatchingEngine, Rejected
from vibematch.errors import (
    InputError,
    ModelMismatchError,
    PhotoError,
    ServerError,
    ServerUnavailableError,
    StoreError,
    StoreLockedError,
    UnknownUserError,
)
from vibematch.manifest import Manifest
from vibematch.photos import Photo
from vibematch.snapshot import FILENAME as SNAPSHOT

AXES = np.eye(8)


def two_axes(first: float, second: float) -> np.ndarray:
    return first * AXES[0] + second * AXES[1]


@pytest.fixture
def people(engine: MatchingEngine) -> MatchingEngine:
    """Four users, each a little further from the first axis."""
    for number, name in enumerate(("anna", "ben", "cora", "dan")):
        attributes = {"gender": "FM"[number % 2], "age": 25 + 5 * number}
        engine.add(name, vectors=[two_axes(10, number)], attributes=attributes)
    return engine


def names(matches: list[Any]) -> list[str]:
    return [match.user_id for match in matches]


# --- searching


def test_search_by_user_leaves_the_user_out(people: MatchingEngine) -> None:
    found = people.search("anna", top_k=2)
    assert names(found) == ["ben", "cora"]
    assert found[0].score == pytest.approx(10 / np.sqrt(101))
    assert isinstance(found[0].score, float)


def test_search_by_vector_of_any_length(people: MatchingEngine) -> None:
    assert people.search(vector=AXES[0] * 7, top_k=1) == [("anna", 1.0)]


def test_search_by_a_vector_in_any_memory(people: MatchingEngine) -> None:
    expected = people.search(vector=AXES[0])
    packed = b"?" + AXES[0].astype("<f8").tobytes()
    for vector in (
        np.frombuffer(packed, "<f8", offset=1),  # not aligned
        np.asfortranarray(np.stack([AXES[0]] * 2)),
        np.repeat(AXES[0], 2)[::2],
        AXES[0].astype(">f4"),
        AXES[0].tolist(),
    ):
        assert people.search(vector=vector) == expected


def test_search_by_photo(engine: MatchingEngine, encoder: Any) -> None:
    engine.add("anna", photos=[b"one"])
    assert people_score(engine.search(photo=b"one")) == {"anna": pytest.approx(1)}
    with pytest.raises(PhotoError, match="not a photo"):
        engine.search(photo=b"bad")


def people_score(matches: list[Any]) -> dict[str, float]:
    return dict(matches)


def test_filters_and_exclusions(people: MatchingEngine) -> None:
    assert names(people.search("anna", where={"gender": "M"})) == ["ben", "dan"]
    assert names(people.search("anna", where={"age": (25, 35)})) == ["ben", "cora"]
    assert names(people.search("anna", where={"age": [35, 40]})) == ["cora", "dan"]
    assert names(people.search("anna", exclude=["ben", "nobody"])) == ["cora", "dan"]
    assert names(people.search("anna", top_k=1, where={"gender": "M"}, exclude={"ben"})) == ["dan"]
    vector = people.photos("anna")[0].vector
    assert "ben" not in names(people.search(vector=vector, exclude=np.array(["ben", "nobody"])))
    assert people.search("anna", where={"gender": "X"}) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "search by one of"),
        ({"user_id": "anna", "photo": b"x"}, "search by one of"),
        ({"user_id": "anna", "top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
        ({"user_id": "anna", "top_k": 2.5}, "top_k must be a whole number"),
        ({"user_id": 7}, "user id must be printable text, got 7"),
        ({"user_id": ["anna"]}, "user id must be printable text"),
        ({"user_id": "anna", "exclude": "ben"}, "exclude must be a list of user ids"),
        ({"vector": [1, 2]}, r"shape \[n, 8\], got \[1, 2\]"),
        ({"vector": [0] * 8}, "no direction"),
        ({"vector": [float("nan")] * 8}, "no direction"),
        ({"vector": ["a"] * 8}, "must be 8 numbers"),
        ({"user_id": "anna", "where": {"age": (3, 1)}}, "upside down"),
        (
            {"user_id": "anna", "where": {"age": (10**5_000,)}},
            r"must be \(low, high\).*got \(inf,\)",
        ),
        ({"user_id": "anna", "where": {"age": (1, "a")}}, r"must be \(low, high\)"),
        ({"user_id": "anna", "where": {"age": (1, float("nan"))}}, r"must be \(low, high\)"),
    ],
)
def test_senseless_searches(people: MatchingEngine, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        people.search(**arguments)


def test_unknown_user_gets_a_hint(people: MatchingEngine) -> None:
    with pytest.raises(UnknownUserError, match=r"no user 'ana' in the index .*did you mean anna"):
        people.search("ana")
    with pytest.raises(UnknownUserError) as raised:
        people.remove("xxxxxx")
    assert "mean" not in str(raised.value)


# --- adding and removing


def test_adding_photos_tells_new_known_and_rejected(engine: MatchingEngine, encoder: Any) -> None:
    first = engine.add("anna", photos=[b"one", b"bad", "/no/such.jpg", b"one"])
    assert (first.added, first.known) == (1, 1)
    assert sorted(first.rejected) == [
        Rejected("photo 1", "not a photo"),
        Rejected("photo 2 (/no/such.jpg)", "the file cannot be read (No such file or directory)"),
    ]
    again = engine.add("anna", photos=[b"one", b"two"])
    assert (again.added, again.known, again.rejected) == (1, 1, [])
    assert encoder.encoded.count(b"one") == 2  # not sent again the second time
    assert (len(engine), engine.info().photos) == (1, 2)


def test_no_usable_photo_stores_nothing(engine: MatchingEngine) -> None:
    with pytest.raises(PhotoError, match=r"no photo of anna can be used \(photo 0: not a photo\)"):
        engine.add("anna", photos=[b"bad"], attributes={"age": 3})
    assert len(engine) == 0


def test_too_large_a_file_is_not_sent(engine: MatchingEngine, encoder: Any, tmp_path: Path) -> None:
    (tmp_path / "huge.jpg").write_bytes(b"x" * 100_001)
    with pytest.raises(PhotoError, match="more bytes than the limit of 100,000"):
        engine.add("anna", photos=[tmp_path / "huge.jpg"])
    assert encoder.encoded == []


def test_pillow_images_are_taken(engine: MatchingEngine, encoder: Any) -> None:
    for mode in ("RGB", "RGBA", "L", "P", "CMYK", "1", "F", "I;16"):
        engine.add(mode, photos=[Image.new(mode, (4, 4))])
    assert all(content.startswith(b"\x89PNG") for content in encoder.encoded)
    assert len(engine) == 8


def test_attributes_of_an_existing_user(people: MatchingEngine) -> None:
    people.add("anna", attributes={"age": 99})
    assert people.attributes("anna") == {"age": 99}
    people.add("anna", vectors=[AXES[3]])
    assert people.attributes("anna") == {"age": 99}


@pytest.mark.parametrize(
    ("user_id", "arguments", "message"),
    [
        ("new", {}, "new is not in the index yet"),
        ("", {"vectors": [AXES[0]]}, "user id must be printable text"),
        ("a\nb", {"vectors": [AXES[0]]}, "user id must be printable text"),
        (7, {"vectors": [AXES[0]]}, "user id must be printable text, got 7"),
        ("new", {"photos": "me.jpg"}, r"put \[ \] around a single one"),
        ("new", {"photos": b"photo"}, r"put \[ \] around a single one"),
        ("new", {"photos": [7]}, "a photo must be bytes, .*got int"),
        ("new", {"vectors": AXES[0]}, r"shape \[n, 8\], got \[8\]"),
        ("new", {"vectors": [AXES[0]], "attributes": {"age": None}}, "attribute 'age'"),
    ],
)
def test_senseless_additions_store_nothing(
    engine: MatchingEngine, user_id: Any, arguments: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        engine.add(user_id, **arguments)
    assert len(engine) == 0


def test_removed_users_are_gone(people: MatchingEngine) -> None:
    people.search("anna")
    people.remove("ben")
    assert "ben" not in people
    assert names(people.search("anna")) == ["cora", "dan"]


# --- many photos


@pytest.fixture
def folder(tmp_path: Path) -> list[Photo]:
    photos = []
    for user in ("anna", "ben"):
        for number in range(3):
            path = tmp_path / f"{user}_{number}.jpg"
            path.write_bytes(path.name.encode())
            labels = {"style": "Minimal", "age": "31", "mood": f"{user}{number}"}
            photos.append(Photo(path, user, number, labels))
    return photos


def test_add_photos(engine: MatchingEngine, folder: list[Photo], tmp_path: Path) -> None:
    (tmp_path / "ben_2.jpg").write_bytes(b"bad")
    generated = Photo(tmp_path / "gen_0.jpg", "gen_0", 0)
    missing = Photo(tmp_path / "carl_0.jpg", "carl", 0)
    progress: list[tuple[int, int]] = []
    result = engine.add_photos(
        [*folder, generated, missing], on_progress=lambda *step: progress.append(step)
    )
    assert (result.added, result.known) == (5, 0)
    assert sorted(Path(photo).name for photo, _, _ in result.rejected) == [
        "ben_2.jpg",
        "carl_0.jpg",
    ]
    assert progress[-1] == (7, 7)
    assert len(engine) == 2
    assert engine.attributes("anna") == {"age": 31, "style": "Minimal"}
    assert engine.photo_paths("ben") == [tmp_path / "ben_0.jpg", tmp_path / "ben_1.jpg"]


def test_add_photos_goes_on_where_it_stopped(
    engine: MatchingEngine, folder: list[Photo], encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vibematch.engine._COMMIT_PHOTOS", 2)
    working, calls = encoder.vector, 0

    def failing(content: bytes) -> Any:
        nonlocal calls
        calls += 1
        return working(content) if calls < 6 else ServerUnavailableError("gone")

    monkeypatch.setattr(encoder, "vector", failing)
    with pytest.raises(ServerUnavailableError):
        engine.add_photos(folder)
    assert engine.info().photos == 4
    monkeypatch.setattr(encoder, "vector", working)
    encoder.encoded.clear()
    result = engine.add_photos(folder)
    assert (result.added, result.known, len(encoder.encoded)) == (2, 4, 2)


def test_add_photos_updates_labels_without_encoding(
    engine: MatchingEngine, folder: list[Photo], encoder: Any
) -> None:
    engine.add_photos(folder)
    encoder.encoded.clear()
    changed = [Photo(photo.path, photo.user_id, photo.image_idx, {"x": "1"}) for photo in folder]
    assert engine.add_photos(changed).known == 6
    assert engine.attributes("ben")["x"] == 1
    assert encoder.encoded == []


def test_add_photos_keeps_attributes_it_knows_nothing_of(
    engine: MatchingEngine, folder: list[Photo]
) -> None:
    own = [photo for photo in folder if photo.user_id == "ben"]
    one = Photo(own[0].path, "ben", 0, {"style": "chic", "caption": "first"})
    two = Photo(folder[0].path, "ben", 1, {"style": "chic", "caption": "second"})
    engine.add_photos([one])
    engine.add("ben", attributes={"gender": "M", "age": 30, "caption": "first", "style": "chic"})
    engine.add_photos([one, two])  # the captions differ now, so the user has none
    assert engine.attributes("ben") == {"gender": "M", "age": 30, "style": "chic"}


def test_a_name_that_cannot_be_an_id_is_rejected_alone(
    engine: MatchingEngine, folder: list[Photo]
) -> None:
    engine.add_photos([])
    added = engine.add_photos([*folder, Photo(folder[0].path, "4.05\u202fPM", 0)])
    assert added.added == 6
    assert [photo for photo, _, _ in added.rejected] == [str(folder[0].path)]
    assert "user id must be printable text" in added.rejected[0].reason


def test_a_server_that_fails_is_not_taken_for_bad_photos(
    engine: MatchingEngine, folder: list[Photo], encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(photos: Any, *, fingerprint: str) -> Any:
        for _ in photos:
            yield ServerError("INTERNAL: the model is gone")

    monkeypatch.setattr(encoder, "encode_each", failing)
    with pytest.raises(ServerError, match="the model is gone"):
        engine.add_photos(folder)
    assert len(engine) == 0


# --- models


def test_another_model_is_refused(
    people: MatchingEngine, encoder: Any, other_manifest: Manifest, tmp_path: Path
) -> None:
    people.close()
    encoder.manifest = other_manifest
    with pytest.raises(ModelMismatchError, match=other_manifest.fingerprint[:12]):
        MatchingEngine.open(tmp_path / "index", encoder=encoder)
    with MatchingEngine.open(tmp_path / "index") as engine:  # and has left no lock
        assert len(engine) == 4


@pytest.mark.parametrize("way", ["add", "add_photos", "search"])
def test_a_server_that_changes_models_meanwhile_is_noticed(
    engine: MatchingEngine, encoder: Any, other_manifest: Manifest, folder: list[Photo], way: str
) -> None:
    engine.add("first", vectors=[AXES[0]])
    encoder.manifest = other_manifest
    with pytest.raises(ModelMismatchError):
        {
            "add": lambda: engine.add("anna", photos=[b"one"]),
            "add_photos": lambda: engine.add_photos(folder),
            "search": lambda: engine.search(photo=b"one"),
        }[way]()
    assert len(engine) == 1


def test_without_an_encoder(tmp_path: Path, manifest: Manifest) -> None:
    with MatchingEngine.open(tmp_path / "index", manifest=manifest) as engine:
        engine.add("anna", vectors=[AXES[0]])
        with pytest.raises(InputError, match="opened without an encoder"):
            engine.add("anna", photos=[b"one"])
        with pytest.raises(InputError, match="opened without an encoder"):
            engine.search(photo=b"one")


# --- opening, following, snapshots


def test_nothing_to_open(tmp_path: Path, encoder: Any) -> None:
    for arguments in ({}, {"encoder": encoder, "read_only": True}):
        with pytest.raises(StoreError, match="no index at"):
            MatchingEngine.open(tmp_path / "index", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_second_writer_and_many_readers(people: MatchingEngine, tmp_path: Path) -> None:
    with pytest.raises(StoreLockedError):
        MatchingEngine.open(tmp_path / "index")
    with (
        MatchingEngine.open(tmp_path / "index", read_only=True) as one,
        MatchingEngine.open(tmp_path / "index", read_only=True) as two,
    ):
        assert names(one.search("anna", 1)) == names(two.search("anna", 1)) == ["ben"]
        people.add("abby", vectors=[two_axes(100, 1)])
        one.refresh()
        two.refresh()
        assert names(one.search("anna", 1)) == names(two.search("anna", 1)) == ["abby"]
        people.remove("abby")
        one.refresh()
        assert names(one.search("anna", 1)) == ["ben"]
        for write in (one.save, lambda: one.remove("ben"), lambda: one.add("x", vectors=[AXES[0]])):
            with pytest.raises(StoreError, match="read-only"):
                write()


def test_close_writes_a_snapshot_that_spares_rebuilding(
    people: MatchingEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people.close()
    assert (tmp_path / "index" / "1" / SNAPSHOT).exists()
    monkeypatch.setattr("vibematch.index.HnswIndex.gather", None)
    with MatchingEngine.open(tmp_path / "index") as engine:
        assert names(engine.search("anna")) == ["ben", "cora", "dan"]


@pytest.mark.parametrize("damage", ["missing", "damaged", "stale", "newer", "scratch"])
def test_any_snapshot_gives_right_answers(
    people: MatchingEngine, tmp_path: Path, damage: str
) -> None:
    snapshot = tmp_path / "index" / "1" / SNAPSHOT
    people.save()
    early = snapshot.read_bytes()
    people.add("ben", vectors=[AXES[1]])
    people.add("emil", vectors=[AXES[1]])
    people.remove("cora")
    people.close()
    late = snapshot.read_bytes()
    match damage:
        case "missing":
            snapshot.unlink()
        case "damaged":
            snapshot.write_bytes(late[:-20] + b"x" * 20)
        case "stale":
            snapshot.write_bytes(early)
        case "newer":
            snapshot.write_bytes(late.replace(b"vibematch-snapshot ", b"vibematch-snapshot 9", 1))
        case "scratch":  # a save that was killed leaves its files
            (tmp_path / "index" / "1" / "snapshot.tmp").write_bytes(b"half")
    with MatchingEngine.open(tmp_path / "index") as engine:
        assert names(engine.search("anna")) == ["dan", "ben", "emil"]


def test_store_restored_from_an_older_backup(people: MatchingEngine, tmp_path: Path) -> None:
    people.close()
    store, snapshot = (
        tmp_path / "index" / "1" / "store.sqlite3",
        tmp_path / "index" / "1" / SNAPSHOT,
    )
    backup = store.read_bytes()
    with MatchingEngine.open(tmp_path / "index") as engine:
        engine.add("zoe", vectors=[AXES[0]])
        engine.add("ben", vectors=[AXES[5]] * 2)
        engine.remove("dan")
    future = snapshot.read_bytes()
    store.write_bytes(backup)
    with MatchingEngine.open(tmp_path / "index") as engine:
        engine.add("yan", vectors=[AXES[7]])
    snapshot.write_bytes(future)
    with MatchingEngine.open(tmp_path / "index") as engine:
        assert names(engine.search("anna")) == ["ben", "cora", "dan", "yan"]


def test_full_disk_for_the_snapshot_costs_no_user(
    people: MatchingEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vibematch.snapshot.os.fsync", full)
    with pytest.raises(StoreError, match=r"No space left on device.*safe in the store"):
        people.close()
    with MatchingEngine.open(tmp_path / "index", read_only=True) as engine:
        assert len(engine) == 4
    assert not any(
        path.name.startswith("snapshot") for path in (tmp_path / "index" / "1").iterdir()
    )


def test_size_membership_and_repr(people: MatchingEngine, manifest: Manifest) -> None:
    assert len(people) == 4
    assert "anna" in people
    assert "zoe" not in people
    assert 7 not in people
    assert people.manifest.fingerprint == manifest.fingerprint
    assert manifest.fingerprint[:12] in repr(people)
    assert (people.info().users, people.info().embedding_dim) == (4, 8)


def test_an_empty_engine_is_true(engine: MatchingEngine) -> None:
    assert engine


def test_threads_share_an_engine(engine: MatchingEngine) -> None:
    engine.add("anna", vectors=[AXES[0]])
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(20):
                engine.add(f"user_{number}_{step}", vectors=[two_axes(number + 1, step)])
                assert engine.search("anna", top_k=3)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(engine.search("anna", top_k=1_000)) == 80
