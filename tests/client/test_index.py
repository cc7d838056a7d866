from __future__ import annotations

import json
import math
import mmap
import threading
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vibematch.index
import vibematch.snapshot
from vibematch import planner
from vibematch.attributes import Value
from vibematch.filters import Filter
from vibematch.index import HnswIndex, Match, Question
from vibematch.records import UserRow
from vibematch.snapshot import FILENAME
from vibematch.vectors import Look, Partition

DIM = 4
Model = dict[str, np.ndarray]


def unit_rows(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def row(number: int, name: str, revision: int = 1, **attributes: Value) -> UserRow:
    return UserRow(number, name, revision, revision, dict(attributes), {})


def build(users: list[UserRow], vectors: np.ndarray) -> HnswIndex:
    index = HnswIndex.gather(vectors.shape[1], [(users, vectors)], 1)
    index.connect()
    return index


def filled(count: int, dim: int = DIM) -> tuple[HnswIndex, Model]:
    vectors = unit_rows(count, dim)
    users = [row(number + 1, f"user_{number:05d}", age=number % 100) for number in range(count)]
    return (
        build(users, vectors),
        {user.user_id: vector for user, vector in zip(users, vectors, strict=True)},
    )


def put(index: HnswIndex, users: list[UserRow], vectors: np.ndarray) -> None:
    given_vectors = {user.id: vector for user, vector in zip(users, vectors, strict=True)}
    index.update(users, given_vectors, (), index.sequence + 1)


def delete(index: HnswIndex, *user_ids: str) -> None:
    index.update([], {}, [index.id_of(user_id) for user_id in user_ids], index.sequence + 1)


def search(
    index: HnswIndex, query: np.ndarray, top_k: int, exclude: Collection[str] = (), **more: object
) -> list[Match]:
    return index.search(Question(query, top_k, exclude=exclude, **more))[0]


def names(matches: Iterable[Match]) -> list[str]:
    return [match.user_id for match in matches]


def brute_force(model: Model, query: np.ndarray, top_k: int, exclude: Collection[str] = ()) -> list:
    users = sorted(set(model) - set(exclude))
    vectors = np.array([model[name] for name in users], np.float64).reshape(-1, len(query))
    scores = (vectors * query).sum(axis=1).clip(-1, 1)  # row by row, so that ties are ties
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [Match(users[place], float(scores[place])) for place in order]


def assert_same(found: list[Match], expected: list[Match]) -> None:
    assert names(found) == names(expected)
    assert [m.score for m in found] == pytest.approx([m.score for m in expected], abs=1e-6)


def assert_as_good(found: list[Match], expected: list[Match]) -> None:
    assert [m.score for m in found] == pytest.approx([m.score for m in expected], abs=1e-6)


@pytest.fixture
def graph_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is asked wherever it can be, however quick a scan is."""
    ask_the_graph(monkeypatch)


def ask_the_graph(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(planner, "FIRST_LOOK", 0)
    patch.setattr(planner, "scan_us", lambda *_, **__: math.inf)


# A few users and directions only, so that updates, deletions and ties are frequent.
users = st.integers(0, 11)
directions = st.integers(0, 9).map(lambda seed: unit_rows(1, seed=seed)[0])
operations = st.one_of(
    st.tuples(st.just("put"), users, directions),
    st.tuples(st.just("delete"), users, st.none()),
    st.tuples(st.just("compact"), users, st.none()),
)
queries = st.tuples(directions, st.integers(1, 15), st.lists(users, max_size=5))


@pytest.mark.parametrize("exact_up_to", [0, 2_000])
@given(steps=st.lists(operations, max_size=40), query=queries)
def test_like_brute_force_after_any_history(exact_up_to: int, steps: list, query: tuple) -> None:
    index, model = HnswIndex(DIM), Model()
    for revision, (what, number, vector) in enumerate(steps):
        name = f"u{number}"
        if what == "put":
            put(index, [row(number + 1, name, revision)], vector[np.newaxis])
            model[name] = vector
        elif what == "delete" and name in model:
            delete(index, name)
            del model[name]
        elif what == "compact":
            copy = index.compacted()
            assert copy is not None
            index = copy
    vector, top_k, others = query
    exclude = [f"u{number}" for number in others]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "EXACT_UP_TO", exact_up_to)
        if not exact_up_to:
            ask_the_graph(patch)
        found = search(index, vector, top_k, exclude)
    expected = brute_force(model, vector, top_k, exclude)
    (assert_same if exact_up_to else assert_as_good)(found, expected)
    assert set(index.users()) == set(model)
    assert len(index) == len(model)


def test_match_prints_and_compares_like_a_pair() -> None:
    match = Match("user_042", 0.89)
    assert match == ("user_042", 0.89)
    assert repr(match) == "('user_042', 0.8900)"


def test_ties_are_in_the_order_of_user_ids() -> None:
    numbers = (5, 3, 9, 1, 7, 2, 8)
    index = HnswIndex(DIM)
    put(index, [row(n, f"u{n}") for n in numbers], np.repeat(unit_rows(1), len(numbers), axis=0))
    found = search(index, unit_rows(1)[0], 4)
    assert names(found) == ["u1", "u2", "u3", "u5"]
    assert len({match.score for match in found}) == 1


@pytest.mark.usefixtures("graph_first")
def test_graph_finds_what_brute_force_finds_also_after_churn() -> None:
    index, model = filled(4_000, dim=32)
    everyone = list(model)
    delete(index, *everyone[:1_500])
    for name in everyone[:1_500]:
        del model[name]
    fresh = unit_rows(2_000, dim=32, seed=1)
    changed = [row(number + 1, f"user_{number:05d}", 2) for number in range(2_000, 3_000)]
    new = [row(10_000 + number, f"new_{number:04d}", 2) for number in range(1_000)]
    put(index, changed + new, fresh)
    model.update(zip([user.user_id for user in changed + new], fresh, strict=True))
    assert index.wants_compaction
    compact = index.compacted()
    assert compact is not None
    assert not compact.wants_compaction
    for searched in (index, compact):
        hits = 0
        for query in unit_rows(100, dim=32, seed=2):
            found, plan = searched.search(Question(query, 10))
            assert plan.strategy == "graph"
            assert len(found) == 10
            hits += len(set(names(found)) & set(names(brute_force(model, query, 10))))
        assert hits >= 980  # of 1,000: random vectors are the hardest case


def test_excluded_users_do_not_cost_results() -> None:
    index, model = filled(3_000)
    query = model["user_00000"]
    best = names(search(index, query, 200))
    assert names(search(index, query, 10, exclude=best[:190])) == best[190:]


def test_more_asked_than_there_are() -> None:
    index, model = filled(2_500)
    assert len(search(index, model["user_00000"], 10_000)) == 2_500
    assert search(HnswIndex(DIM), unit_rows(1)[0], 3) == []


@pytest.mark.usefixtures("graph_first")
def test_a_graph_that_cannot_reach_enough_users_is_not_relied_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index, model = filled(2_500)

    class Unreachable:
        def knn_query(self, query: np.ndarray, k: int, num_threads: int) -> None:
            raise RuntimeError("Cannot return the results in a contiguous 2D array.")

    monkeypatch.setattr(index, "_graph", Unreachable())
    query = unit_rows(1, seed=5)[0]
    found, plan = index.search(Question(query, 7))
    assert plan.fetched is not None
    assert plan.strategy == "scan"
    assert_same(found, brute_force(model, query, 7))


def test_who_is_gone_does_not_qualify() -> None:
    """Also where rows are looked up, or are in several blocks of vectors."""
    index, model = filled(5_000)
    everyone = list(model)
    delete(index, *everyone[::3])
    moved = unit_rows(1_000, seed=3)
    put(index, [row(n + 1, everyone[n], 2, age=n % 100) for n in range(1_000)], moved)
    model.update(zip(everyone[:1_000], moved, strict=True))
    left = {name: model[name] for name in index.users()}
    assert len(left) < len(model)
    for low, high in ((0, 0), (0, 40), (0, 99)):
        theirs = {n: vector for n, vector in left.items() if low <= int(n[-5:]) % 100 <= high}
        for query in unit_rows(5, seed=6):
            question = Question(query, 20, Filter([("age", (low, high))]))
            assert_same(index.search_exactly(question), brute_force(theirs, query, 20))
            assert_same(index.search(question)[0], brute_force(theirs, query, 20))


@pytest.mark.parametrize("at_once", [True, False])
def test_a_few_in_lists_and_who_came_changed_or_went_since(
    monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    monkeypatch.setattr(planner, "COMPARED_AT_ONCE", 0)
    monkeypatch.setattr(planner, "_SOUGHT", 5_000 if at_once else 0)
    monkeypatch.setattr(planner, "FIRST_LOOK", 1_000)
    monkeypatch.setattr(planner, "graph_us", lambda *_, **__: math.inf)
    index, model = filled(6_000)  # random: all lists have to be looked into
    ages = {name: int(name[-5:]) % 100 for name in model}

    def change(numbers: Iterable[int], revision: int) -> None:
        rows = [row(n + 1, f"user_{n:05d}", revision, age=n // 7 % 100) for n in numbers]
        ages.update({user.user_id: int(user.attributes["age"]) for user in rows})
        vectors = unit_rows(len(rows), seed=revision)
        put(index, rows, vectors)
        if revision > 1:
            model.update(zip([user.user_id for user in rows], vectors, strict=True))

    change(range(0, 500, 5), 1)  # other ages only
    change(range(250, 300), 2)
    change(range(6_000, 6_050), 3)  # of whom there is more than one block of vectors now
    delete(index, *(gone := [f"user_{n:05d}" for n in range(3, 6_050, 11)]))
    for name in gone:
        del model[name]
    for age, query in zip((0, 7, 42, 57), unit_rows(4, seed=9), strict=True):
        theirs = {name: vector for name, vector in model.items() if ages[name] == age}
        exclude = names(brute_force(theirs, query, 5))[::2]
        for wanted in (age, (age, age), [age, 1_000]):
            asked = Question(query, 5, Filter([("age", wanted)]), exclude, 0.1)
            found, plan = index.search(asked)
            expected = [each for each in brute_force(theirs, query, 5, exclude) if each.score > 0.1]
            assert_same(found, expected)
            assert plan.tried > 1_000, "in lists, though it are only a few"
            assert plan.qualifying in (None, len(theirs.keys() - exclude))


# --- plans


def test_few_who_qualify_are_compared_and_many_are_asked_of_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planner, "_SCAN_US_PER_QUALIFYING", 0.1)  # or it would take more users
    index, model = filled(12_000, dim=128)  # random: nobody is near
    query = unit_rows(1, dim=128, seed=5)[0]

    def ages(low: int, high: int) -> Question:
        return Question(query, 10, Filter([("age", (low, high))]))

    many, plan = index.search(ages(0, 89))
    assert plan.strategy == "graph"
    assert plan.fetched is not None
    assert planner.FIRST_LOOK <= plan.tried < planner.FIRST_LOOK + 1_500
    assert plan.scanned == pytest.approx(0.9 * plan.tried, rel=0.1)
    assert f"nearest of 12,000 users and asked the graph for {plan.fetched}; " in str(plan)
    few, plan = index.search(ages(0, 0))
    assert (plan.strategy, plan.qualifying, plan.scanned, plan.tried) == ("scan", 120, 120, 120)
    assert "compared all 120 who qualify of 12,000 users" in str(plan)
    assert len(many) == 10
    assert all(int(name[-5:]) % 100 <= 89 for name in names(many))
    allowed = {name: vector for name, vector in model.items() if int(name[-5:]) % 100 == 0}
    assert_same(few, brute_force(allowed, query, 10))


def test_whom_a_first_look_found_is_not_lost_where_the_graph_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planner, "scan_us", lambda *_, **__: math.inf)
    index, model = filled(8_000, dim=64)
    far = unit_rows(1, dim=64, seed=77)[0]

    class Elsewhere:  # a graph that is wrong about everything
        def knn_query(self, query: np.ndarray, k: int, num_threads: int) -> tuple:
            return graph.knn_query(far, k=k)

    graph = index._graph
    monkeypatch.setattr(index, "_graph", Elsewhere())
    for name in list(model)[:20]:
        found, plan = index.search(Question(model[name], 10))
        assert plan.strategy == "graph"
        assert found[0].user_id == name
        assert len(set(names(found))) == 10


def test_a_filter_that_leaves_out_the_style_asked_for_changes_the_plan() -> None:
    centre = unit_rows(1, dim=256, seed=9)[0]
    near = centre + 0.05 * unit_rows(5_000, dim=256, seed=1)
    vectors = np.concatenate([near, unit_rows(9_000, dim=256, seed=2)]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    people = [row(n + 1, f"u{n:05d}", near=n < 5_000) for n in range(len(vectors))]
    index = build(people, vectors)
    found, plan = index.search(Question(centre, 10, Filter([("near", False)])))
    assert (plan.strategy, plan.fetched) == ("scan", None)
    assert plan.tried > planner.FIRST_LOOK
    others = zip(people[5_000:], vectors[5_000:], strict=True)
    model = {user.user_id: vector for user, vector in others}
    assert_same(found, brute_force(model, centre, 10))
    nobody = Filter([("near", False), ("age", 5)])
    found, plan = index.search(Question(centre, 10, nobody))
    assert (found, plan.graph_us, plan.qualifying) == ([], math.inf, 0)
    assert "no use in asking the graph" in str(plan)


class Styles(NamedTuple):
    """Users of a hundred styles, without a graph, which takes half a minute and is never asked."""

    index: HnswIndex
    vectors: np.ndarray
    style: np.ndarray

    def model(self, left_out: int) -> Model:
        return {
            f"u{n:05d}": vector
            for n, (vector, style) in enumerate(zip(self.vectors, self.style, strict=True))
            if style != left_out
        }


@pytest.fixture(scope="module")
def styles() -> Styles:
    rng = np.random.default_rng(0)
    style = rng.integers(100, size=40_000)
    vectors = unit_rows(100, dim=32, seed=1)[style] + 0.1 * rng.normal(size=(len(style), 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    people = [row(n + 1, f"u{n:05d}", style=int(s)) for n, s in enumerate(style)]
    index = HnswIndex.gather(32, [(people[:100], vectors[:100]), (people[100:], vectors[100:])], 1)
    return Styles(index, vectors, style)


def test_lists_are_looked_into_until_nobody_nearer_is_expected_in_more(styles: Styles) -> None:
    everybody, hits, tried = len(styles.vectors), 0, []
    for query, own in zip(styles.vectors[:30], styles.style[:30], strict=True):
        found, plan = styles.index.search(Question(query, 10))
        assert (plan.strategy, plan.graph_us, plan.qualifying) == ("scan", None, None)
        assert plan.tried < everybody / 20
        assert_same(found, styles.index.search_exactly(Question(query, 10)))
        others = [int(other) for other in range(100) if other != own]
        question = Question(query, 10, Filter([("style", others)]))
        found, plan = styles.index.search(question)
        assert plan.strategy == "scan"
        assert plan.scanned < plan.tried
        tried.append(plan.tried)
        assert f"compared {plan.scanned:,} who qualify of the {plan.tried:,} nearest" in str(plan)
        exact = styles.index.search_exactly(question)
        assert_same(exact, brute_force(styles.model(int(own)), query, 10))
        hits += len(set(names(found)) & set(names(exact)))
    assert hits >= 297
    assert np.mean(tried) < everybody / 2


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["clusters", "random", "few dimensions"])
def test_how_far_to_look_is_learnt_from_the_vectors(kind: str, share: float) -> None:
    rng = np.random.default_rng(3)
    if kind == "clusters":
        vectors = unit_rows(12, 64)[rng.integers(12, size=6_200)]
        vectors = vectors + 0.05 * rng.normal(size=(6_200, 64))
    else:
        dim = 64 if kind == "random" else 8
        vectors = np.pad(rng.normal(size=(6_200, dim)), ((0, 0), (0, 64 - dim)))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    vectors, queries = vectors[:6_000], vectors[6_000:]
    people = [row(n + 1, f"u{n:05d}", lot=n % 50) for n in range(6_000)]
    index = HnswIndex.gather(64, [(people, vectors)], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "FIRST_LOOK", 10**6)  # it is left to the vectors
        patch.setattr(planner, "COMPARED_AT_ONCE", 0)
        hits, tried = 0, []
        for query in queries:
            question = Question(query, 10, Filter([("lot", (0, 50 * share - 1))]))
            found, plan = index.search(question)
            hits += len(set(names(found)) & set(names(index.search_exactly(question))))
            tried.append(plan.tried)
    assert hits >= 0.995 * 10 * len(queries)
    if kind == "clusters":
        assert np.median(tried) < 1_500
    if kind == "random":
        assert np.median(tried) > 4_000, "or it was luck"


@pytest.mark.parametrize(
    ("few", "users", "are_compared"),
    [(150, 10_000, True), (1_000, 100_000, False), (1_000, 10**6, True), (10_000, 10**6, False)],
)
def test_a_few_are_compared_at_once_where_a_look_would_find_too_few(
    few: int, users: int, are_compared: bool
) -> None:
    assert planner.are_compared(few, 10, users) == are_compared


def test_the_graph_is_not_asked_where_the_nearest_do_not_qualify(styles: Styles) -> None:
    thought_of = 0
    for query, own in zip(styles.vectors[:30], styles.style[:30], strict=True):
        others = [int(other) for other in range(100) if other != own]
        _, plan = styles.index.search(Question(query, 10, Filter([("style", others)])))
        assert plan.fetched is None
        thought_of += plan.graph_us is not None
    assert thought_of > 20


def test_a_few_who_are_known_are_looked_for_in_the_nearest_lists(styles: Styles) -> None:
    hits = 0
    for query, own in zip(styles.vectors[:30], styles.style[:30], strict=True):
        question = Question(query, 10, Filter([("style", [*range(4), int(own)])]))
        found, plan = styles.index.search(question)
        assert plan.scanned < 1_000, "of two thousand"
        hits += len(set(names(found)) & set(names(styles.index.search_exactly(question))))
    assert hits >= 297


@pytest.mark.parametrize(("high", "is_bounded"), [(4, False), (89, True)])
def test_only_a_scan_of_many_stops_before_it_is_settled(
    styles: Styles, monkeypatch: pytest.MonkeyPatch, high: int, is_bounded: bool
) -> None:
    monkeypatch.setattr(planner, "graph_us", lambda *_, **__: math.inf)
    monkeypatch.setattr(planner, "_MOST_TRIED", 6_000)
    partition = styles.index._partition
    assert partition is not None
    monkeypatch.setattr(partition, "limits", np.ones_like(partition.limits))  # never settled
    question = Question(styles.vectors[0], 10, Filter([("style", list(range(high + 1)))]))
    found, plan = styles.index.search(question)
    assert (plan.qualifying is None) == is_bounded
    if is_bounded:
        assert 6_000 <= plan.tried < 7_000
        share = plan.scanned / plan.tried
        no_more = planner.scan_us(6_000, 6_000, share, plan.users, styles.vectors.shape[1])
        assert plan.scan_us is not None
        assert plan.scan_us < no_more, "as if it looked at everybody"
    else:
        assert_same(found, styles.index.search_exactly(question))
    monkeypatch.setattr(planner, "_COMPARED_AT_LEAST", 10_000)
    _, plan = styles.index.search(question)
    if is_bounded:
        assert plan.scanned >= 10_000


@pytest.mark.parametrize(("high", "first", "later"), [(0, 1, None), (4, 0, 1), (89, 0, 0)])
def test_nobody_but_a_few_is_tried_where_they_are_known(
    styles: Styles, monkeypatch: pytest.MonkeyPatch, high: int, first: bool, later: bool | None
) -> None:
    """At once if they are so few, or after a look at everybody in the nearest lists."""
    only_few: list[bool] = []

    def look(self: Partition, *arguments: Any) -> Look:
        only_few.append(arguments[-1] is not None)
        return look_as_ever(self, *arguments)

    look_as_ever = Partition.look
    monkeypatch.setattr(Partition, "look", look)
    laters = set()
    for query in styles.vectors[:20]:
        only_few.clear()
        question = Question(query, 10, Filter([("style", list(range(high + 1)))]))
        found, _ = styles.index.search(question)
        assert_same(found, styles.index.search_exactly(question))
        assert only_few[0] == first
        laters.update(only_few[1:])
    assert laters == (set() if later is None else {later})


def test_so_many_are_returned_as_were_asked_for_also_from_lists(styles: Styles) -> None:
    question = Question(styles.vectors[0], 5_000, Filter([("style", list(range(1, 100)))]))
    found, _ = styles.index.search(question)
    assert len(found) == len(set(names(found))) == 5_000
    everybody = Question(styles.vectors[0], 50_000, Filter([("style", list(range(1, 100)))]))
    found, plan = styles.index.search(everybody)
    assert len(found) == plan.qualifying == plan.scanned == np.count_nonzero(styles.style != 0)


@pytest.mark.parametrize("partitioned_from", [3_000, 100_000])
def test_a_filter_that_nobody_meets(monkeypatch: pytest.MonkeyPatch, partitioned_from: int) -> None:
    monkeypatch.setattr(vibematch.index, "_PARTITIONED_FROM", partitioned_from)
    people = [row(n + 1, f"u{n:05d}", city=f"c{n % 9}", n=n) for n in range(5_000)]
    vectors = unit_rows(5_000, dim=8)
    index = HnswIndex.gather(8, [(people, vectors)], 1)
    index.connect(threads=1)
    for name, condition in (("city", "nowhere"), ("n", (-5, -1)), ("n", None), ("k", 1)):
        found, plan = index.search(Question(vectors[0], 10, Filter([(name, condition)])))
        assert (found, plan.qualifying) == ([], 0)


def test_nobody_is_found_twice() -> None:
    people = [row(n + 1, f"u{n:05d}", n=2**53 if n < 20 else n) for n in range(5_000)]
    vectors = unit_rows(5_000, dim=8)
    index = build(people, vectors)
    found, plan = index.search(
        Question(vectors[0], 50, Filter([("n", [2**53, 2**53 + 1])]))  # one number as float64
    )
    assert len(set(names(found))) == len(found) == plan.qualifying == 20


def test_lists_of_users_who_are_all_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vibematch.index, "_PARTITIONED_FROM", 3_000)
    people = [row(n + 1, f"u{n:05d}") for n in range(3_000)]
    vectors = unit_rows(3_000, dim=8)
    index = HnswIndex.gather(8, [(people, vectors)], 1)
    index.connect(threads=1)
    index.update([], {}, [user.id for user in people], 2)
    for wanted in (Filter(), Filter([("age", 5)]), Filter([("age", None)])):
        found, plan = index.search(Question(vectors[0], 10, wanted))
        assert (found, plan.strategy) == ([], "scan")


def test_users_who_came_since_the_lists_were_made_are_found_in_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vibematch.index, "_PARTITIONED_FROM", 3_000)
    monkeypatch.setattr(planner, "graph_us", lambda *_, **__: float("inf"))
    vectors = unit_rows(4_500, dim=16, seed=3)
    people = [row(n + 1, f"u{n:05d}", old=n < 4_000) for n in range(len(vectors))]
    index = HnswIndex.gather(16, [(people[:4_000], vectors[:4_000])], 1)
    index.connect(threads=1)
    fresh = {user.id: vector for user, vector in zip(people, vectors, strict=True)}
    index.update(people[4_000:], {n: fresh[n] for n in range(4_001, 4_501)}, [1, 2, 3], 2)
    model = {user.user_id: fresh[user.id] for user in people[3:]}
    exclude = ["u04444", "u00044", "nobody"]
    for name in exclude:
        model.pop(name, None)
    for query in vectors[::500]:
        found, plan = index.search(Question(query, 10, Filter([("old", [True, False])]), exclude))
        assert plan.strategy == "scan"
        assert_same(found, brute_force(model, query, 10))


def test_a_style_that_nobody_had_when_the_lists_were_made_is_found() -> None:
    rng = np.random.default_rng(5)
    centres = unit_rows(20, 64)
    style = np.sort(rng.integers(19, size=6_000))
    style = np.concatenate([style, np.full(500, 19)])
    vectors = centres[style] + 0.07 * rng.normal(size=(6_500, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    people = [row(n + 1, f"u{n:05d}") for n in range(6_500)]
    index = HnswIndex.gather(64, [(people[:6_000], vectors[:6_000])], 1)
    index.connect(threads=1)
    put(index, people[6_000:], vectors[6_000:])
    assert index._partition is not None
    strangers = np.count_nonzero(index._lists[:6_500] == len(index._partition))
    assert 495 <= strangers <= 500
    familiar = unit_rows(1, 64)[0]
    put(index, [row(6_501, "one_more")], (centres[:1] + 0.01 * familiar))
    assert index._lists[6_500] < len(index._partition)
    for place in range(6_000, 6_500, 25):
        found, plan = index.search(Question(vectors[place], 10))
        assert_same(found, index.search_exactly(Question(vectors[place], 10)))
        assert plan.strategy == "scan"


@pytest.mark.parametrize("least", [-math.inf, 0.05])
def test_somebody_who_is_like_nobody_finds_who_is_nearest(least: float) -> None:
    """All users are within a cone; nothing was learnt about queries from outside."""
    rng = np.random.default_rng(8)
    axis = unit_rows(1, 32, seed=4)[0]
    vectors = 2 * axis + unit_rows(6_000, 32, seed=5)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    people = [row(n + 1, f"u{n:05d}") for n in range(6_000)]
    index = HnswIndex.gather(32, [(people, vectors)], 1)
    index.connect(threads=1)
    hits = wanted = 0
    for _ in range(20):
        query = rng.normal(size=32)
        query -= (query @ axis - 0.1) * axis
        query = (query / np.linalg.norm(query)).astype(np.float32)
        question = Question(query, 10, min_score=least)
        exact = index.search_exactly(question)
        assert exact
        hits += len(set(names(index.search(question)[0])) & set(names(exact)))
        wanted += len(exact)
    assert hits >= 0.98 * wanted


def test_the_graph_is_asked_where_there_are_no_lists_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vibematch.index, "_PARTITIONED_FROM", 10**6)
    index, model = filled(12_000, dim=256)
    found, plan = index.search(Question(model["user_00007"], 5))
    assert (plan.strategy, plan.tried) == ("graph", 0)
    assert found[0].user_id == "user_00007"


def test_the_graph_has_the_lists_side_by_side_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vibematch.index, "_PARTITIONED_FROM", 3_000)
    ask_the_graph(monkeypatch)
    vectors = unit_rows(4_000, dim=16, seed=3)
    people = [row(n + 1, f"u{n:05d}") for n in range(len(vectors))]
    index = HnswIndex.gather(16, [(people, vectors)], 1)
    assert index.connect(threads=1)
    (state,) = index._graph.__getstate__()
    memory = state["data_level0"].reshape(len(vectors), -1)
    start = state["label_offset"]
    in_memory = memory[:, start : start + 8].copy().view(np.uint64)[:, 0].astype(int)
    assert sorted(in_memory) == list(range(len(vectors)))
    skeleton, rest = in_memory[:200], in_memory[200:]
    assert (np.diff(rest) > 0).all(), "those behind are in the order of their lists"
    assert (np.diff(skeleton) < 0).sum() > 50, "those in front are in no order"
    model = {user.user_id: vector for user, vector in zip(people, vectors, strict=True)}
    hits = 0
    for query in vectors[::100]:
        found, plan = index.search(Question(query, 10))
        assert plan.strategy == "graph"
        hits += len(set(names(found)) & set(names(brute_force(model, query, 10))))
    assert hits >= 396


@pytest.mark.usefixtures("graph_first")
def test_min_score_ends_the_search_early() -> None:
    index, model = filled(3_000, dim=16)
    query = model["user_00007"]
    expected = [match for match in brute_force(model, query, 3_000) if match.score >= 0.6]
    found, _ = index.search(Question(query, 2_000, min_score=0.6))
    assert_same(found, expected)
    found, plan = index.search(Question(query, 5, min_score=1.0))
    assert found == [("user_00007", pytest.approx(1.0))]
    assert plan.strategy == "graph"


def test_a_min_score_loses_nobody_of_the_nearest_lists(styles: Styles) -> None:
    hits = wanted = 0
    for query, own in zip(styles.vectors[:30], styles.style[:30], strict=True):
        others = [int(other) for other in range(100) if other != own]
        question = Question(query, 10, Filter([("style", others)]))
        exact = styles.index.search_exactly(question)
        least = exact[4].score
        found, _ = styles.index.search(question._replace(min_score=least))
        assert all(match.score >= least - 1e-6 for match in found)
        hits += len(set(names(found)) & set(names(exact[:5])))
        wanted += 5
        assert styles.index.search_exactly(question._replace(min_score=least)) == exact[:5]
    assert hits >= 0.99 * wanted


# --- threads


def test_searches_go_on_while_users_come_and_go() -> None:
    index, model = filled(3_000, dim=16)
    stop, problems = threading.Event(), []

    def searching() -> None:
        try:
            while not stop.is_set():
                found = search(index, model["user_00000"], 5)
                assert len(found) == 5
                assert found[0] == ("user_00000", pytest.approx(1.0, abs=1e-6))
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=searching) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1, 500):
        put(index, [row(5_000 + number, f"new_{number}")], unit_rows(1, dim=16, seed=number))
        if number % 3 == 0:
            delete(index, f"user_{number:05d}")
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(index) == 3_000 + 499 - 166


# --- snapshots


def rows_of(model: Model, revision: int = 1) -> list[UserRow]:
    return [
        row(int(name[-5:]) + 1, name, revision, age=int(name[-5:]) % 100) for name in sorted(model)
    ]


def test_snapshot_round_trip(tmp_path: Path) -> None:
    index, model = filled(2_500)
    gone = [f"user_{number:05d}" for number in range(0, 200, 2)]
    delete(index, *gone)
    for name in gone:
        del model[name]
    index.save(tmp_path, "f")
    found = HnswIndex.load(tmp_path, "f", DIM, rows_of(model))
    assert found is not None
    loaded, missing = found
    assert missing == []
    assert set(loaded.users()) == set(model)
    assert loaded.without_vector(rows_of(model)) == []
    assert loaded.without_vector(rows_of(model, revision=2)[:3]) == rows_of(model, revision=2)[:3]
    few = Filter([("age", [1, 3])])
    for query in unit_rows(20, seed=3):
        assert search(loaded, query, 5) == search(index, query, 5)
        assert search(loaded, query, 5, wanted=few) == search(index, query, 5, wanted=few)
    put(loaded, [row(9_000, "new"), row(2, "user_00001", 2)], unit_rows(2, seed=4))
    more = [row(10_000 + number, f"more_{number}") for number in range(3_000)]
    put(loaded, more, unit_rows(3_000, seed=6))
    assert search(loaded, unit_rows(2, seed=4)[0], 1)[0].user_id == "new"
    assert len(loaded) == 2_400 + 3_001


@pytest.mark.parametrize("system", ["this one", "macOS"])
def test_answers_do_not_change_when_vectors_are_mapped_and_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    if system == "macOS":
        monkeypatch.delattr(mmap, "MAP_POPULATE", raising=False)
    index, model = filled(3_000, dim=16)
    before = [search(index, query, 10) for query in unit_rows(20, dim=16, seed=3)]
    index.save(tmp_path, "f")
    assert [search(index, query, 10) for query in unit_rows(20, dim=16, seed=3)] == before
    fresh = unit_rows(50, dim=16, seed=8)
    put(index, [row(9_000 + number, f"new_{number:05d}") for number in range(50)], fresh)
    model.update({f"new_{number:05d}": vector for number, vector in enumerate(fresh)})
    for query in fresh[:5]:
        assert_same(index.search_exactly(Question(query, 10)), brute_force(model, query, 10))


def test_users_who_are_gone_or_changed_since_the_snapshot_are_left_out(tmp_path: Path) -> None:
    index, model = filled(10)
    index.save(tmp_path, "f")
    now = [*rows_of(model)[2:9], row(10, "user_00009", 5), row(77, "user_00000")]
    found = HnswIndex.load(tmp_path, "f", DIM, now)
    assert found is not None
    loaded, missing = found
    assert missing == now[-2:]
    assert loaded.users() == [f"user_{number:05d}" for number in range(2, 9)]
    assert loaded.without_vector(now) == now[-2:]


def test_only_the_snapshot_is_left_behind(tmp_path: Path) -> None:
    index, _ = filled(10)
    index.save(tmp_path, "f")
    put(index, [row(99, "new")], unit_rows(1, seed=4))
    index.save(tmp_path, "f")
    graph = index._graph
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {
        FILENAME,
        f"{FILENAME}.graph",
    }
    assert len(list(tmp_path.iterdir())) == 2
    assert graph.get_current_count() == 11


def test_a_disk_that_fills_up_unnoticed_leaves_the_old_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _ = filled(10)
    index.save(tmp_path, "f")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    class Cut:  # what hnswlib does: it writes what fits and says nothing
        def save_index(self, path: str) -> None:
            Path(path).write_bytes(b"half")

        def index_file_size(self) -> int:
            return 100

    monkeypatch.setattr(index, "_graph", Cut())
    with pytest.raises(OSError, match="No space left"):
        index.save(tmp_path, "f")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def load(folder: Path, fingerprint: str = "f", dim: int = DIM) -> object:
    return HnswIndex.load(folder, fingerprint, dim, [])


def test_no_snapshot(tmp_path: Path) -> None:
    assert load(tmp_path) is None


@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), graph=st.booleans())
def test_every_flipped_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, position: float, flip: int, graph: bool
) -> None:
    folder = tmp_path_factory.mktemp("snapshot")
    filled(5)[0].save(folder, "f")
    (path,) = folder.glob(f"{FILENAME}.graph-*" if graph else FILENAME)
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= flip
    path.write_bytes(content)
    assert load(folder) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"something else", b"vibematch-snapshot 4 \n{}"])
def test_foreign_snapshot(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILENAME).write_bytes(content)
    assert load(tmp_path) is None


def test_truncated_or_missing_parts(tmp_path: Path) -> None:
    filled(5)[0].save(tmp_path, "f")
    (graph,) = tmp_path.glob(f"{FILENAME}.graph-*")
    for path in (tmp_path / FILENAME, graph):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert load(tmp_path) is None
        path.write_bytes(whole)
    assert load(tmp_path) is not None
    graph.unlink()
    assert load(tmp_path) is None


def test_snapshot_of_another_model_or_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(5)[0].save(tmp_path, "f")
    assert load(tmp_path, "g") is None
    assert load(tmp_path, dim=DIM + 1) is None
    monkeypatch.setattr(vibematch.snapshot, "version", lambda name: "0.9.0")
    assert load(tmp_path) is None


def test_a_snapshot_whose_last_users_are_gone(tmp_path: Path) -> None:
    vectors = unit_rows(2_200, dim=8)
    people = [row(n + 1, f"u{n:05d}", n=n) for n in range(2_200)]
    build(people, vectors).save(tmp_path, "f")
    loaded = HnswIndex.load(tmp_path, "f", 8, people[:1_000])
    assert loaded is not None
    found, _ = loaded[0].search(Question(vectors[0], 10, Filter([("n", (0, 4))])))
    assert sorted(names(found)) == [f"u{n:05d}" for n in range(5)]


def test_snapshot_format_is_as_documented(tmp_path: Path) -> None:
    index, model = filled(3)
    index.save(tmp_path, "f")
    whole = (tmp_path / FILENAME).read_bytes()
    first, header, _ = whole.split(b"\n", 2)
    assert first.startswith(b"vibematch-snapshot 4 ")
    start = len(first) + len(header) + 2
    assert start % 64 == 0
    assert (json.loads(header)["rows"], json.loads(header)["dim"]) == (3, DIM)
    vectors = np.frombuffer(whole[start:], "<f4", 3 * DIM).reshape(3, DIM)
    assert np.array_equal(vectors, list(model.values()))
    start += vectors.nbytes
    codes = np.frombuffer(whole[start:], "i1", 3 * DIM).reshape(3, DIM)
    start += codes.nbytes
    scales = np.frombuffer(whole[start:], "<f4", 3)
    error = np.linalg.norm(vectors - codes * scales[:, np.newaxis], axis=1).max()
    assert json.loads(header)["code_error"] == pytest.approx(error, rel=1e-5)
    assert error < 0.02
    start += scales.nbytes
    ids = np.frombuffer(whole[start:], "<i8", 3)
    assert ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("ahead", "share", "dim", "quicker"),
    [
        (2_000, 1.0, 256, "scan"),
        (150_000, 1.0, 256, "graph"),
        (150_000, 0.5, 256, "graph"),
        (20_000, 0.03, 256, "scan"),
        (150_000, 0.001, 256, "scan"),
        (10_000, 1.0, 32, "scan"),
        (20_000, 1.0, 2048, "graph"),
    ],
)
def test_the_quicker_way_is_expected_to_be_quicker(
    ahead: int, share: float, dim: int, quicker: str
) -> None:
    scan_us = planner.scan_us(ahead, share * ahead, share, 200_000, dim)
    fetch = planner.fetch_for(10, share)
    graph_us = planner.graph_us(fetch, 200_000, dim, is_filtered=share < 1)
    assert min(scan_us, graph_us) == (scan_us if quicker == "scan" else graph_us)


def test_what_a_scan_is_expected_to_take_does_not_jump() -> None:
    shares = np.linspace(0.01, 1, 100)
    us = [planner.scan_us(50_000, share * 50_000, share, 10**6, 256) for share in shares]
    assert max(abs(np.diff(us))) < 0.05 * max(us)
