"""What the engine offers beyond adding users and finding the nearest."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vibematch.live
from vibematch import MatchingEngine, Profile, StoredPhoto
from vibematch.errors import InputError, ModelMismatchError, StoreError, UnknownUserError
from vibematch.manifest import Manifest
from vibematch.reindex import forget_old
from vibematch.store import ProfileStore

AXES = np.eye(8)


def names(matches: list[Any]) -> list[str]:
    return [match.user_id for match in matches]


def photo_id(vector: np.ndarray) -> str:
    return hashlib.sha256(vector.astype(np.float32).tobytes()).hexdigest()


def wait_until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


# --- photos of one's own ids


def test_photos_with_ids_are_replaced_and_removed(engine: MatchingEngine, encoder: Any) -> None:
    added = engine.add("anna", photos={"front": b"one", "side": b"two", "bad": b"bad"})
    assert (added.added, added.rejected) == (2, [("photo bad", "not a photo", "unreadable")])
    assert engine.add("anna", photos={"front": b"one"}).known == 1
    assert engine.add("anna", photos={"front": b"three"}).added == 1
    assert [photo.photo_id for photo in engine.photos("anna")] == ["side", "front"] or [
        photo.photo_id for photo in engine.photos("anna")
    ] == ["front", "side"]
    engine.remove_photo("anna", "side")
    assert engine.search(vector=encoder.vector(b"three")) == [("anna", pytest.approx(1, abs=1e-6))]
    with pytest.raises(InputError, match="last one of user"):
        engine.remove_photo("anna", "front")
    with pytest.raises(InputError, match="anna has no photo 'back'"):
        engine.remove_photo("anna", "back")
    with pytest.raises(UnknownUserError):
        engine.remove_photo("nobody", "front")


def test_photo_ids_have_to_be_text(engine: MatchingEngine) -> None:
    for bad in ("", "a\nb", 7):
        with pytest.raises(InputError, match="photo id must be printable text"):
            engine.add("anna", photos={bad: b"one"})  # type: ignore[dict-item]


def test_a_folder_in_one_call(engine: MatchingEngine, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(photos / f"user_{number}_0.png")
    assert engine.build_index(photos).added == 3
    assert engine.build_index(photos).known == 3
    assert len(engine) == 3


def test_many_profiles_at_once(engine: MatchingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vibematch.engine._COMMIT_PROFILES", 40)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(100, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    profiles = [
        Profile(f"u{n:03d}", [StoredPhoto(f"{n:064x}", vector)], {"n": n})
        for n, vector in enumerate(vectors)
    ]
    steps: list[int] = []
    assert engine.search(vector=AXES[0]) == []  # loaded before
    assert engine.add_many(iter(profiles), on_progress=steps.append) == 100
    assert steps == [40, 80, 100]
    assert engine.search(vector=vectors[7], top_k=1) == [("u007", pytest.approx(1, abs=1e-6))]
    bad = Profile("a\nb", [StoredPhoto("0" * 64, vectors[0])])
    more = [Profile(f"v{n}", [StoredPhoto("1" * 64, vectors[n])]) for n in range(40)]
    with pytest.raises(InputError, match="printable"):
        engine.add_many([*more, bad])
    assert len(engine) == 140
    assert names(engine.search(vector=vectors[3], top_k=2)) == ["u003", "v3"]


# --- filters


@pytest.fixture
def people(engine: MatchingEngine) -> MatchingEngine:
    """Eight users, each a little further from the first axis."""
    for number, name in enumerate(("anna", "ben", "cora", "dan", "eva", "finn", "gia", "hugo")):
        attributes: dict[str, Any] = {"gender": "FM"[number % 2], "age": 22 + 4 * number}
        if number % 3:
            attributes["city"] = ("Seoul", "Busan")[number % 2]
        preferences: dict[str, Any] = {"gender": "MF"[number % 2], "age": (20, 36 + number)}
        engine.add(
            name,
            vectors=[10 * AXES[0] + number * AXES[1]],
            attributes=attributes,
            preferences=preferences,
        )
    return engine


def test_missing_values_can_be_asked_for(people: MatchingEngine) -> None:
    assert names(people.search("anna", where={"city": None})) == ["dan", "gia"]
    assert names(people.search("anna", where={"city": ["Busan", None]})) == [
        "ben", "dan", "finn", "gia", "hugo",
    ]  # fmt: skip
    assert names(people.search("anna", where={"shoe_size": None}, top_k=2)) == ["ben", "cora"]
    assert people.search("anna", where={"shoe_size": 42}) == []


def test_a_mutual_match_needs_both(people: MatchingEngine) -> None:
    # anna (22) wants men of 20 to 36: ben 26, dan 34. Both accept a woman of 22.
    assert names(people.search("anna", mutual=True)) == ["ben", "dan"]
    # eva (38) wants men of 20 to 40, but ben and dan want women of up to 37 and 39.
    assert names(people.search("eva", mutual=True)) == ["dan"]
    assert people.search("eva", mutual=True, where={"age": (0, 30)}) == []
    people.add("dan", preferences={"gender": "F", "age": (20, 37)})
    assert people.search("eva", mutual=True) == []
    people.add("dan", preferences={})
    assert names(people.search("eva", mutual=True)) == ["dan"]
    assert people.preferences("ben") == {"gender": "F", "age": (20, 37)}
    with pytest.raises(InputError, match="mutual needs a user"):
        people.search(vector=AXES[0], mutual=True)
    with pytest.raises(UnknownUserError, match="zoe"):
        people.search("zoe", mutual=True)
    with pytest.raises(InputError, match="upside down"):
        people.add("ben", preferences={"age": (3, 1)})


def test_a_search_by_means_reads_nothing_from_the_disk(
    people: MatchingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(people.search("anna", mutual=True)) == ["ben", "dan"]  # the index is loaded
    monkeypatch.setattr(ProfileStore, "_reader", None)
    assert names(people.search("anna", mutual=True)) == ["ben", "dan"]
    assert people.search("anna", where={"gender": "M"}, exclude=["ben"])
    assert people.search(vector=AXES[0])


def test_many_searches_at_once_are_like_one_by_one(people: MatchingEngine) -> None:
    users = ["anna", "hugo", "cora", "anna"]
    for arguments in ({}, {"mutual": True}, {"where": {"gender": "F"}, "min_score": 0.9}):
        together = people.search_many(users, 3, **arguments)
        assert together == [people.search(user, 3, **arguments) for user in users]
    assert people.search_many([]) == []
    with pytest.raises(UnknownUserError):
        people.search_many(["anna", "nobody"])
    with pytest.raises(InputError, match="list of user ids"):
        people.search_many("anna")


def test_min_score(people: MatchingEngine) -> None:
    scores = dict(people.search("anna", top_k=10))
    least = scores["dan"]
    assert names(people.search("anna", top_k=10, min_score=least)) == ["ben", "cora", "dan"]
    for bad in (2, "high", float("nan")):
        with pytest.raises(InputError, match="min_score must be a number between -1 and 1"):
            people.search("anna", min_score=bad)  # type: ignore[arg-type]


def test_the_plan_is_told_on_request(people: MatchingEngine) -> None:
    matches, plan = people.search("anna", where={"gender": "M"}, explain=True)
    assert matches == people.search("anna", where={"gender": "M"})
    assert (plan.strategy, plan.users, plan.qualifying) == ("scan", 8, 4)
    assert "4 who qualify" in str(plan)


# --- several photos


def test_best_pair_or_mean(engine: MatchingEngine) -> None:
    engine.add("two_styles", vectors=[AXES[0], AXES[1]])
    engine.add("between", vectors=[AXES[0] + AXES[1]])
    engine.add("near", vectors=[AXES[0] + 0.1 * AXES[2]])
    query = AXES[0]
    assert names(engine.search(vector=query)) == ["near", "between", "two_styles"]
    found = engine.search(vector=query, aggregate="best_pair")
    assert names(found) == ["two_styles", "near", "between"]
    assert found[0].score == pytest.approx(1)
    by_user = engine.search("two_styles", aggregate="best_pair", min_score=0.9)
    assert by_user == [("near", pytest.approx(1 / np.sqrt(1.01)))]
    several = engine.search(vector=[AXES[1], AXES[2]], aggregate="best_pair")
    assert names(several) == ["two_styles", "between", "near"]
    with pytest.raises(InputError, match="'mean' or 'best_pair'"):
        engine.search(vector=query, aggregate="max")  # type: ignore[call-overload]


def test_several_photos_of_one_person(engine: MatchingEngine, encoder: Any) -> None:
    engine.add("anna", photos=[b"one", b"two"])
    assert engine.search(photo=[b"one", b"two"]) == [("anna", pytest.approx(1, abs=1e-6))]
    one = encoder.vector(b"one").astype(np.float64)
    both = one + encoder.vector(b"two")
    expected = float(one @ both / np.linalg.norm(both))
    assert engine.search(photo=b"one") == [("anna", pytest.approx(expected, abs=1e-6))]
    for nothing in ([], np.empty((0, 8))):
        with pytest.raises(InputError, match="at least one"):
            engine.search(vector=nothing)
    with pytest.raises(InputError, match="at least one"):
        engine.search(photo=[])


# --- looking after itself


def test_recall_of_a_small_index_is_perfect(people: MatchingEngine) -> None:
    measured = people.recall(5, queries=4)
    assert (measured.recall, measured.worst, measured.queries) == (1.0, 1.0, 4)
    assert measured.search_ms > 0
    for arguments in ({"top_k": 0}, {"queries": 0}):
        with pytest.raises(InputError):
            people.recall(**arguments)


def test_recall_needs_two_users(engine: MatchingEngine) -> None:
    with pytest.raises(InputError, match="at least two users"):
        engine.recall()


def test_what_was_deleted_is_given_back_by_itself(
    engine: MatchingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vibematch.index._FEW_FREE", 20)
    for number in range(60):
        engine.add(f"u{number:02d}", vectors=[AXES[0] + number * AXES[1]])
    engine.search("u00")
    assert len(engine._live.index._users) == 60
    for number in range(40):
        engine.remove(f"u{number:02d}")
    wait_until(lambda: len(engine._live.index._users) < 60)
    assert len(engine.search("u50", top_k=100)) == 19


def test_a_snapshot_is_written_after_many_changes(
    engine: MatchingEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vibematch.live, "_FEW_UNSAVED", 5)
    engine.search(vector=AXES[0])
    for number in range(10):
        engine.add(f"u{number}", vectors=[AXES[number % 8]])
    wait_until(lambda: (tmp_path / "index" / "1" / "snapshot").exists())


def test_compacting_changes_no_answer(people: MatchingEngine) -> None:
    people.remove("ben")
    people.add("cora", vectors=[AXES[7]])
    before = people.search("anna", top_k=10, where={"gender": ["F", "M"]})
    people.compact()
    assert people.search("anna", top_k=10, where={"gender": ["F", "M"]}) == before
    people.add("zoe", vectors=[10 * AXES[0]])
    assert names(people.search("anna", top_k=1)) == ["zoe"]


def test_an_index_without_a_snapshot_gets_one_when_it_was_searched(
    people: MatchingEngine, tmp_path: Path
) -> None:
    people.close()
    snapshot = tmp_path / "index" / "1" / "snapshot"
    snapshot.unlink()  # as a killed writer leaves it
    with MatchingEngine.open(tmp_path / "index") as engine:
        assert engine.search("anna")
    assert snapshot.exists()


def test_a_reader_follows_by_itself(people: MatchingEngine, tmp_path: Path) -> None:
    with MatchingEngine.open(tmp_path / "index", read_only=True) as reader:
        assert names(reader.search("anna", top_k=1)) == ["ben"]
        people.remove("ben")
        wait_until(lambda: names(reader.search("anna", top_k=1)) == ["cora"])
        people.compact()  # forgets whom it removed
        people.add("zoe", vectors=[AXES[0]], attributes={"gender": "F"})
        people.add("cora", attributes={"gender": "X"})
        wait_until(lambda: names(reader.search("anna", where={"gender": "X"})) == ["cora"])
        assert len(reader.search("anna", top_k=10)) == 7
        with pytest.raises(StoreError, match="read-only"):
            reader.compact()


def test_a_closed_engine_says_so(people: MatchingEngine) -> None:
    people.search("anna")
    people.close()
    people.close()
    for use in (lambda: people.search("anna"), lambda: people.add("x", vectors=[AXES[0]])):
        with pytest.raises(StoreError, match="closed"):
            use()


def test_nobody_has_to_close(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vibematch.live, "_FEW_UNSAVED", 0)
    engine = MatchingEngine.open(tmp_path / "index", manifest=manifest)
    engine.search(vector=AXES[0])
    engine.add("anna", vectors=[AXES[0]])
    keepers = [t for t in threading.enumerate() if t.name == "vibematch-keeper"]
    assert keepers
    del engine
    for keeper in keepers:
        keeper.join(20)
        assert not keeper.is_alive()


def test_making_an_index_is_logged_and_nothing_is_printed(
    people: MatchingEngine, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="vibematch"):
        people.search("anna")
    assert "making the search index of 8 users" in caplog.text
    assert capfd.readouterr() == ("", "")


# --- another model


class OtherModel:
    """An encoder whose vectors are those of the stub, mirrored."""

    def __init__(self, encoder: Any, manifest: Manifest) -> None:
        self.manifest, self._encoder = manifest, encoder

    def encode_each(self, photos: Any, *, fingerprint: str | None = None) -> Any:
        assert fingerprint in (None, self.manifest.fingerprint)
        for photo in photos:
            yield -self._encoder.vector(photo)


def test_going_over_to_another_model_while_searching_and_writing(
    engine: MatchingEngine, encoder: Any, other_manifest: Manifest, tmp_path: Path
) -> None:
    for number in range(40):
        path = tmp_path / f"u{number:02d}_0.jpg"
        path.write_bytes(path.name.encode())
        engine.add(f"u{number:02d}", photos=[path], attributes={"n": number})
    new = OtherModel(encoder, other_manifest)
    reader = MatchingEngine.open(tmp_path / "index", read_only=True)
    assert reader.search(vector=encoder.vector(b"u07_0.jpg"), top_k=1)[0].user_id == "u07"
    stop, problems, late = threading.Event(), [], []

    def work() -> None:
        try:
            while not stop.is_set():
                assert len(engine.search("u05", top_k=3)) == 3
                name = f"late{len(late):03d}"
                (tmp_path / name).write_bytes(name.encode())
                engine.add(name, photos=[tmp_path / name])
                late.append(name)
                time.sleep(0.01)
        except ModelMismatchError:
            pass  # encoded before the switch, and not stored after it
        except BaseException as problem:
            problems.append(problem)

    worker = threading.Thread(target=work)
    worker.start()
    done = engine.reindex(new)
    stop.set()
    worker.join()
    assert problems == []
    assert done.switched
    assert engine.manifest.fingerprint == other_manifest.fingerprint
    assert len(engine) == 40 + len(late)
    for name in ("u07_0.jpg", *late[:3]):
        found = engine.search(vector=-encoder.vector(name.encode()), top_k=1)
        assert found == [(name.removesuffix("_0.jpg"), pytest.approx(1, abs=1e-6))]
    wait_until(lambda: reader.manifest.fingerprint == other_manifest.fingerprint)
    assert names(reader.search("u05")) == names(engine.search("u05"))
    reader.close()
    assert (tmp_path / "index" / "1").is_dir()
    assert forget_old(tmp_path / "index") == 1
    assert not (tmp_path / "index" / "1").exists()
    assert not engine.reindex(new).switched
    engine.add("after", vectors=[AXES[0]])
    assert "after" in names(engine.search(vector=AXES[0]))


def test_a_reader_that_was_never_searched_goes_over_too(
    engine: MatchingEngine, encoder: Any, other_manifest: Manifest, tmp_path: Path
) -> None:
    path = tmp_path / "a_0.jpg"
    path.write_bytes(b"a")
    engine.add("a", photos=[path])
    with MatchingEngine.open(tmp_path / "index", read_only=True) as reader:
        assert len(reader) == 1
        engine.reindex(OtherModel(encoder, other_manifest))
        wait_until(lambda: reader.manifest.fingerprint == other_manifest.fingerprint)
        assert names(reader.search(vector=-encoder.vector(b"a"))) == ["a"]


def test_going_over_that_is_cut_short_at_its_end_is_complete(
    engine: MatchingEngine,
    encoder: Any,
    other_manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "a_0.jpg"
    path.write_bytes(b"a")
    engine.add("a", photos=[path])
    engine.search("a")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vibematch.engine.save_first_snapshot", lambda store: None)
        patch.setattr(vibematch.live, "_load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.reindex(OtherModel(encoder, other_manifest))
    engine.add("c", vectors=[AXES[0]])
    assert engine.manifest.fingerprint == other_manifest.fingerprint
    assert names(engine.search(vector=AXES[0], top_k=1)) == ["c"]


def test_an_interrupted_change_of_the_index_is_made_good(
    people: MatchingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    people.search("anna")
    graph = people._live.index._graph

    class Interrupted:
        def add_items(self, *arguments: object, **more: object) -> None:
            graph.add_items(*arguments, **more)
            raise KeyboardInterrupt

        def __getattr__(self, name: str) -> object:
            return getattr(graph, name)

    monkeypatch.setattr(people._live.index, "_graph", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        people.add("zoe", vectors=[10 * AXES[0]])
    assert names(people.search("anna", top_k=1)) == ["zoe"]  # it was stored


@pytest.mark.parametrize("user_id", [5, "", "\ud800", None])
def test_what_can_be_no_user_id(people: MatchingEngine, user_id: Any) -> None:
    assert user_id not in people
    for look_up in (people.attributes, people.preferences, people.photos, people.photo_paths):
        with pytest.raises(InputError, match="user id must be printable text"):
            look_up(user_id)


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: engine.add_many(["anna"]),
        lambda engine: engine.add_many([Profile("u", None)]),
        lambda engine: engine.add_many([Profile("u", [StoredPhoto(5, AXES[0])])]),
        lambda engine: engine.add_many([Profile("u", [StoredPhoto("0" * 64, [1.0] * 8)])]),
        lambda engine: engine.add_many([Profile("u", [StoredPhoto("0" * 64, AXES[0], Path("x"))])]),
        lambda engine: engine.add_many([Profile("u", [StoredPhoto("0" * 64, AXES[0], None, 7)])]),
        lambda engine: engine.add_many([Profile("u", [StoredPhoto("0" * 64, AXES[0] * 1j)])]),
        lambda engine: engine.add("u", photos=None),
        lambda engine: engine.remove_photo("anna", ["x"]),
        lambda engine: engine.search("anna", exclude=None),
        lambda engine: engine.search("anna", exclude=[["ben"]]),
        lambda engine: engine.search("anna", 10**400),
        lambda engine: engine.search(vector=[10**400] * 8),
        lambda engine: engine.recall(seed=-1),
        lambda engine: engine.recall(queries=1.5),
    ],
)
def test_nonsense_is_called_so(people: MatchingEngine, call: Callable[[Any], object]) -> None:
    with pytest.raises(InputError):
        call(people)
    assert len(people) == 8


def test_numbers_of_numpy_are_numbers(people: MatchingEngine) -> None:
    found = people.search("anna", np.int64(2), min_score=np.float32(0.1))
    assert names(found) == ["ben", "cora"]


def test_connections_do_not_pile_up(people: MatchingEngine) -> None:
    together = threading.Barrier(30)

    def read() -> None:
        with people._store.reading():
            together.wait()

    threads = [threading.Thread(target=read) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(people._store._idle) <= 8


def test_a_file_with_a_number_for_a_name_is_no_generation(
    people: MatchingEngine, tmp_path: Path
) -> None:
    people.close()
    (tmp_path / "index" / "2026").write_text("notes")
    with MatchingEngine.open(tmp_path / "index") as engine:
        assert len(engine) == 8
        with pytest.raises(StoreError, match="this process"):
            MatchingEngine.open(tmp_path / "index")


def test_vectors_of_another_model_can_be_brought_along(
    people: MatchingEngine, other_manifest: Manifest
) -> None:
    done = people.reindex(other_manifest, source=lambda user_id, photo: -photo.vector)
    assert (done.switched, done.users) == (True, 8)
    assert people.search(vector=-10 * AXES[0], top_k=1) == [("anna", pytest.approx(1))]


def test_where_there_is_no_encoder_all_vectors_have_to_be_given(
    engine: MatchingEngine, other_manifest: Manifest, tmp_path: Path
) -> None:
    path = tmp_path / "a_0.jpg"
    path.write_bytes(b"a")
    engine.add("a", photos=[path])
    with pytest.raises(InputError, match="gave no vector, and there is no encoder"):
        engine.reindex(other_manifest)


def test_endless_names_and_texts_are_refused(people: MatchingEngine) -> None:
    for call in (
        lambda: people.add("x" * 1_001, vectors=[AXES[0]]),
        lambda: people.add("x", vectors=[AXES[0]], attributes={"bio": "x" * 100_001}),
        lambda: people.add("x", photos={"p" * 1_001: b"one"}),
    ):
        with pytest.raises(InputError, match="at most"):
            call()
