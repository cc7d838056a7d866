from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vibematch.filters
from vibematch.attributes import choices_of
from vibematch.filters import Columns, Filter, Selector, accepts
from vibematch.vectors import vector_keys

values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 2.0, "a", "b", "7"])
)
bounds = st.tuples(st.integers(-4, 4), st.integers(-4, 4)).map(lambda pair: tuple(sorted(pair)))
conditions = st.one_of(values, st.lists(values, max_size=12), bounds)
puts = st.tuples(st.integers(0, 30), values, values)


def selected(columns: Columns, wanted: Filter, rows: int) -> list[int]:
    """Those of the first rows that qualify."""
    return columns.selector(wanted).places(np.arange(rows)).tolist()


@pytest.fixture(params=[0, 4_096])
def coded_numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers with codes, and so many of them that they have none."""
    monkeypatch.setattr(vibematch.filters, "_MOST_CODED_NUMBERS", request.param)
    monkeypatch.setattr(vibematch.filters, "_SORTED_FROM", 1)
    monkeypatch.setattr(vibematch.filters, "_MOST_UNSORTED", 0.3)


@pytest.mark.usefixtures("coded_numbers")
@given(
    history=st.lists(puts | st.sampled_from(["sort", "take"]), max_size=40),
    first=conditions,
    second=conditions,
)
def test_narrowing_down_loses_nobody(history: list, first: Any, second: Any) -> None:
    columns, known = Columns(), {}
    wanted = Filter([("one", first), ("other", second)])
    for step in history:
        columns.selector(wanted)  # what is remembered of it must not outlive the step
        if step == "sort":
            columns.keep_sorted(len(known))
        elif step == "take":  # as a compaction does
            columns = columns.take(np.arange(len(known)))
        else:
            row, one, other = step
            row = min(row, len(known))  # rows come one after the other
            given_values = {"one": one, "other": other}
            known[row] = {name: value for name, value in given_values.items() if value is not None}
            columns.put(row, known[row], {})
    expected = [
        row
        for row, has in sorted(known.items())
        if accepts(first, has.get("one")) and accepts(second, has.get("other"))
    ]
    assert selected(columns, wanted, len(known)) == expected
    assert [columns.about(row)[0] for row in sorted(known)] == [known[row] for row in sorted(known)]
    few = columns.selector(wanted).few
    if few is not None:
        rows = np.unique(np.concatenate([*few.parts, np.empty(0, np.intp)])).astype(np.intp)
        assert rows[Selector(few.tests).places(rows)].tolist() == expected
        assert len(rows) <= few.size


@given(
    history=st.lists(
        st.tuples(st.integers(0, 9), st.dictionaries(st.sampled_from(["one", "two"]), conditions))
        | st.just("take"),
        max_size=20,
    )
)
def test_what_somebody_wants_is_known_again(history: list) -> None:
    columns, known = Columns(), {}
    for step in history:
        if step == "take":
            columns = columns.take(np.arange(len(known)))
        else:
            row = min(step[0], len(known))
            known[row] = step[1]
            columns.put(row, {}, step[1])
    for row, wishes in known.items():
        attributes, again = columns.about(row)
        assert (attributes, again.keys()) == ({}, wishes.keys())
        for name, wish in wishes.items():
            same = wish if isinstance(wish, tuple) else frozenset(choices_of(wish))
            assert again[name] == same


@given(
    history=st.lists(st.tuples(st.integers(0, 9), conditions | st.just("any")), max_size=20),
    value=values,
)
def test_who_is_accepted_is_asked_anew_after_each_change(history: list, value: Any) -> None:
    columns, known = Columns(), {}
    for row, wish in history:
        known[min(row, len(known))] = wish
        columns.put(min(row, len(known) - 1), {}, {} if wish == "any" else {"one": wish})
        wanted = Filter(accepted_by={} if value is None else {"one": value})
        expected = [
            row for row, wish in sorted(known.items()) if wish == "any" or accepts(wish, value)
        ]
        assert selected(columns, wanted, len(known)) == expected


def test_a_named_pair_is_a_range_and_a_list_is_none() -> None:
    columns, pair = Columns(), NamedTuple("Pair", [("low", int), ("high", int)])(18, 30)
    for row, age in enumerate((18, 25, 30)):
        columns.put(row, {"age": age}, {})
    for _ in range(2):
        assert selected(columns, Filter([("age", [18, 30])]), 3) == [0, 2]
        assert selected(columns, Filter([("age", pair)]), 3) == [0, 1, 2]


def test_no_more_than_some_conditions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = Columns()
    columns.put(0, {"n": 1.0}, {"n": (0, 1)})
    for number in range(1_000):
        assert selected(columns, Filter([("n", [number, 1])], {"n": number}), 1) == [0] * (
            number < 2
        )
    remembered = columns._attributes["n"]._compiled, columns._preferences["n"]._compiled
    assert all(0 < len(each) <= 64 for each in remembered)
    columns.put(0, {"n": 1.0}, {"n": {1.0}})
    assert selected(columns, Filter([("n", list(range(1_001)))]), 1) == [0]
    monkeypatch.setattr(vibematch.filters, "_MOST_REMEMBERED_CODES", 0)
    assert selected(columns, Filter([("n", 1)], {"n": 1}), 1) == [0]
    remembered = columns._attributes["n"]._compiled, columns._preferences["n"]._compiled
    assert not any(remembered), "they would take much"


def test_a_selective_condition_is_looked_up() -> None:
    columns = Columns()
    for row in range(10_000):
        columns.put(row, {"city": f"c{row % 500}", "age": row}, {})
    assert columns.selector(Filter([("city", "c7")])).few is None, "not yet"
    before = columns._attributes["age"]._compiled  # of a search that goes on meanwhile
    columns.keep_sorted(10_000)
    assert columns._attributes["age"]._compiled is not before
    for where, count in (
        ({"city": "c7"}, 20),
        ({"age": (10, 29)}, 20),
        ({"age": [3, 5], "city": ["c3", "c4"]}, 2),
        ({"city": "nowhere"}, 0),
        ({"city": None}, 0),
    ):
        few = columns.selector(Filter(list(where.items()))).few
        assert few is not None
        assert few.size == count
        assert len(few.tests) == len(where) - 1
    assert columns.selector(Filter([("age", (0, 9_999))])).few is None


def test_who_changed_since_the_lookup_was_made_is_found_all_the_same() -> None:
    columns = Columns()
    for row in range(10_000):
        columns.put(row, {"city": f"c{row % 500}", "age": row}, {})
    columns.keep_sorted(10_000)
    wanted, there = Filter([("city", "c7")]), set(range(7, 10_000, 500))
    columns.put(10_000, {"city": "c7"}, {})
    columns.put(10_001, {"city": "c8"}, {})
    columns.put(8, {"city": "c8", "age": 3}, {})  # of another age, in the same city
    assert found(columns, wanted) == (there | {10_000}, 0)
    columns.put(3, {"city": "c7"}, {})
    columns.put(7, {"city": "c3"}, {})
    rows, tests = found(columns, wanted)
    assert (rows >= there | {3, 10_000}, tests) == (True, 1)  # 7 is tried again


def found(columns: Columns, wanted: Filter) -> tuple[set[int], int]:
    """A few among whom are all that qualify, and how many tests they have to pass still."""
    few = columns.selector(wanted).few
    assert few is not None
    return set(np.concatenate(few.parts).tolist()), len(few.tests)


def test_room_for_users_of_whom_nothing_is_known() -> None:
    columns = Columns()
    columns.put(0, {"n": 1}, {"n": 2})
    wanted = Filter([("n", [1, None])], {"n": 2})
    assert selected(columns, wanted, 1) == [0]
    columns.make_room(5_000)
    assert selected(columns, wanted, 5_000) == list(range(5_000))


def test_an_attribute_that_always_changes_takes_no_more_memory() -> None:
    columns = Columns()
    for step in range(5_000):
        columns.put(0, {"last_seen": step, "status": f"text {step}"}, {})
    compact = columns.take(np.arange(1))
    assert len(compact._attributes["status"]._code_of) == 1
    wanted = Filter([("status", "text 4999"), ("last_seen", 4_999)])
    assert selected(compact, wanted, 1) == [0]


def test_bounds_beyond_all_numbers() -> None:
    columns = Columns()
    columns.put(0, {"n": 5}, {"n": (0, 10**400)})
    wanted = Filter([("n", (-(10**400), 2**70))], {"n": 2**62})
    assert selected(columns, wanted, 1) == [0]


@pytest.mark.usefixtures("coded_numbers")
def test_numbers_are_compared_as_float64() -> None:
    columns, neighbour = Columns(), 2**53
    columns.put(0, {"n": neighbour + 1}, {})
    for condition in (neighbour, neighbour + 1, (0, neighbour), [True, neighbour]):
        assert selected(columns, Filter([("n", condition)]), 1) == [0]
        assert accepts(condition, neighbour + 1)


def test_equal_vectors_have_equal_keys() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3_000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys = vector_keys(vectors)
    assert len(set(keys.tolist())) == 3_000
    assert np.array_equal(vector_keys(vectors[::-1]), keys[::-1])
    nearly = vectors + rng.normal(size=vectors.shape).astype(np.float32) * 1e-8
    assert np.mean(vector_keys(nearly) == keys) > 0.99
    assert 0 not in vector_keys(np.zeros((2, 64), np.float32))
