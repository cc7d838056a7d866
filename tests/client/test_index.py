from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vibematch.index
from vibematch.index import FILENAME, HnswIndex, Match

DIM = 4
Model = dict[str, np.ndarray]


def unit_rows(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def filled(count: int, dim: int = DIM) -> tuple[HnswIndex, Model]:
    index, rows = HnswIndex(dim), unit_rows(count, dim)
    names = [f"user_{number:05d}" for number in range(count)]
    index.upsert(dict.fromkeys(names, 1), rows)
    return index, dict(zip(names, rows, strict=True))


def brute_force(
    model: Model, query: np.ndarray, top_k: int, among: Iterable[str], exclude: Iterable[str] = ()
) -> list[Match]:
    names = sorted(set(among) & set(model) - set(exclude))
    vectors = np.array([model[name] for name in names], np.float64).reshape(-1, len(query))
    scores = (vectors * query).sum(axis=1).clip(-1, 1)  # row by row, so that ties are ties
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [Match(names[place], float(scores[place])) for place in order]


def assert_same(found: list[Match], expected: list[Match]) -> None:
    assert [match.user_id for match in found] == [match.user_id for match in expected]
    assert [match.score for match in found] == pytest.approx([match.score for match in expected])


# A few users and directions only, so that updates, deletions and ties are frequent.
users = st.sampled_from([f"u{number}" for number in range(12)])
directions = st.integers(0, 9).map(lambda seed: unit_rows(1, seed=seed)[0])
operations = st.one_of(
    st.tuples(st.just("upsert"), users, directions),
    st.tuples(st.just("delete"), users, st.none()),
)
queries = st.tuples(
    directions, st.integers(1, 15), st.none() | st.lists(users), st.lists(users, max_size=5)
)


@pytest.mark.parametrize("exact_up_to", [0, 2_000])
@given(steps=st.lists(operations, max_size=40), query=queries)
def test_like_brute_force_after_any_history(exact_up_to: int, steps: list, query: tuple) -> None:
    index, model = HnswIndex(DIM), Model()
    for revision, (what, name, vector) in enumerate(steps):
        if what == "upsert":
            index.upsert({name: revision}, vector[np.newaxis])
            model[name] = vector
        else:
            index.delete(name)
            model.pop(name, None)
    vector, top_k, among, exclude = query
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vibematch.index, "EXACT_UP_TO", exact_up_to)
        found = index.search(vector, top_k, among=among, exclude=exclude)
    expected = brute_force(model, vector, top_k, model if among is None else among, exclude)
    if exact_up_to:
        assert_same(found, expected)
    else:  # the graph may break a tie at the last place differently
        assert [m.score for m in found] == pytest.approx([m.score for m in expected])
    assert index.users() == set(model)
    assert len(index) == len(model)


def test_match_prints_and_compares_like_a_pair() -> None:
    match = Match("user_042", 0.89)
    assert match == ("user_042", 0.89)
    assert repr(match) == "('user_042', 0.8900)"


def test_ties_are_in_the_order_of_user_ids() -> None:
    index = HnswIndex(DIM)
    names = [f"u{number}" for number in (5, 3, 9, 1, 7, 2, 8)]
    index.upsert(dict.fromkeys(names, 1), np.repeat(unit_rows(1), len(names), axis=0))
    found = index.search(unit_rows(1)[0], 4)
    assert [match.user_id for match in found] == ["u1", "u2", "u3", "u5"]
    assert len({match.score for match in found}) == 1


def test_graph_finds_what_brute_force_finds_also_after_churn() -> None:
    index, model = filled(4_000, dim=32)
    names = list(model)
    for name in names[:1_500]:
        index.delete(name)
        del model[name]
    fresh = unit_rows(2_000, dim=32, seed=1)
    new = names[2_000:3_000] + [f"new_{number:04d}" for number in range(1_000)]
    index.upsert(dict.fromkeys(new, 2), fresh)
    model.update(zip(new, fresh, strict=True))
    hits = 0
    for query in unit_rows(100, dim=32, seed=2):
        found = index.search(query, 10)
        expected = brute_force(model, query, 10, model)
        assert len(found) == 10
        hits += len({match.user_id for match in found} & {match.user_id for match in expected})
    assert hits >= 970  # of 1,000: random vectors are the hardest case


def test_excluded_users_do_not_cost_results() -> None:
    index, model = filled(3_000)
    query = model["user_00000"]
    best = [match.user_id for match in index.search(query, 200)]
    found = index.search(query, 10, exclude=best[:190])
    assert [match.user_id for match in found] == best[190:]


def test_more_asked_than_there_are() -> None:
    index, model = filled(2_500)
    assert len(index.search(model["user_00000"], 10_000)) == 2_500
    assert HnswIndex(DIM).search(unit_rows(1)[0], 3) == []


def test_a_graph_that_cannot_reach_enough_users_is_scanned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index, model = filled(2_500)

    class Unreachable:
        def set_ef(self, ef: int) -> None: ...

        def knn_query(self, query: np.ndarray, k: int) -> None:
            raise RuntimeError("Cannot return the results in a contiguous 2D array.")

    monkeypatch.setattr(index, "_graph", Unreachable())
    query = unit_rows(1, seed=5)[0]
    assert_same(index.search(query, 7), brute_force(model, query, 7, model))


# --- snapshots


def test_snapshot_round_trip(tmp_path: Path) -> None:
    index, model = filled(2_500)
    for number in range(0, 200, 2):
        index.delete(f"user_{number:05d}")
        del model[f"user_{number:05d}"]
    index.sequence = 77
    index.save(tmp_path, "f")
    loaded = HnswIndex.load(tmp_path, fingerprint="f", dim=DIM)
    assert loaded is not None
    assert (loaded.sequence, loaded.users()) == (77, set(model))
    assert loaded.revision("user_00001") == 1
    for query in unit_rows(20, seed=3):
        assert_same(loaded.search(query, 5), index.search(query, 5))
    loaded.upsert({"new": 2, "user_00001": 2}, unit_rows(2, seed=4))  # rows are reused and grown
    loaded.upsert(
        dict.fromkeys((f"more_{number}" for number in range(3_000)), 3), unit_rows(3_000, seed=6)
    )
    assert loaded.search(unit_rows(2, seed=4)[0], 1)[0].user_id == "new"
    assert len(loaded) == 2_400 + 3_001


def test_no_scratch_files_are_left(tmp_path: Path) -> None:
    index, _ = filled(10)
    index.save(tmp_path, "f")
    index.save(tmp_path, "f")
    assert [path.name for path in tmp_path.iterdir()] == [FILENAME]


def test_a_disk_that_fills_up_unnoticed_leaves_the_old_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _ = filled(10)
    index.save(tmp_path, "f")
    before = (tmp_path / FILENAME).read_bytes()

    class Cut:  # what hnswlib does: it writes what fits and says nothing
        def save_index(self, path: str) -> None:
            Path(path).write_bytes(b"half")

        def index_file_size(self) -> int:
            return 100

    monkeypatch.setattr(index, "_graph", Cut())
    with pytest.raises(OSError, match="No space left"):
        index.save(tmp_path, "f")
    assert (tmp_path / FILENAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILENAME]


def test_no_snapshot(tmp_path: Path) -> None:
    assert HnswIndex.load(tmp_path, fingerprint="f", dim=DIM) is None


@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_every_flipped_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, position: float, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("snapshot")
    filled(5)[0].save(folder, "f")
    content = bytearray((folder / FILENAME).read_bytes())
    content[int(position * len(content))] ^= flip
    (folder / FILENAME).write_bytes(content)
    assert HnswIndex.load(folder, fingerprint="f", dim=DIM) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"something else", b"vibematch-snapshot 1 \n{}"])
def test_foreign_snapshot(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILENAME).write_bytes(content)
    assert HnswIndex.load(tmp_path, fingerprint="f", dim=DIM) is None


def test_truncated_snapshot(tmp_path: Path) -> None:
    filled(5)[0].save(tmp_path, "f")
    whole = (tmp_path / FILENAME).read_bytes()
    (tmp_path / FILENAME).write_bytes(whole[:-1])
    assert HnswIndex.load(tmp_path, fingerprint="f", dim=DIM) is None


def test_snapshot_of_another_model_or_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(5)[0].save(tmp_path, "f")
    assert HnswIndex.load(tmp_path, fingerprint="g", dim=DIM) is None
    assert HnswIndex.load(tmp_path, fingerprint="f", dim=DIM + 1) is None
    monkeypatch.setattr(vibematch.index, "version", lambda name: "0.9.0")
    assert HnswIndex.load(tmp_path, fingerprint="f", dim=DIM) is None


def test_snapshot_format_is_as_documented(tmp_path: Path) -> None:
    index, model = filled(3)
    index.save(tmp_path, "f")
    first, header, rest = (tmp_path / FILENAME).read_bytes().split(b"\n", 2)
    assert first.startswith(b"vibematch-snapshot 1 ")
    names = {field.name for field in dataclasses.fields(vibematch.index._Header)}
    assert set(json.loads(header)) == names
    vectors = np.frombuffer(rest, "<f4", 3 * DIM).reshape(3, DIM)
    assert np.array_equal(vectors, list(model.values()))
