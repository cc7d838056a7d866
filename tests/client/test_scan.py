"""What the compiled loops make of right and wrong arguments; vectors and filters test the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibematch import Match, _scan

SOME = st.integers(0, 2**32 - 1).map(np.random.default_rng)
KINDS = st.lists(st.sampled_from(["mask", "codes", "bounds", "codes or numbers"]), max_size=4)
Condition = tuple[Any, ...]


def condition(kind: str, rng: np.random.Generator, rows: int) -> tuple[Condition, np.ndarray]:
    """Of a kind, and which rows meet it."""
    numbers = rng.integers(0, 20, rows).astype(float)
    numbers[rng.random(rows) < 0.2] = np.nan
    codes = rng.integers(0, 9, rows).astype(np.int32)
    allowed = rng.random(9) < 0.3
    if kind == "mask":
        mask = rng.random(rows) < rng.choice([0.01, 0.5, 1.0])
        return (mask,), mask
    if kind == "bounds":
        least, most = sorted(rng.integers(-1, 21, 2).tolist())
        return (numbers, least, most), (numbers >= least) & (numbers <= most)
    if kind == "codes":
        return (codes, allowed), allowed[codes]
    amounts = np.unique(rng.integers(0, 20, rng.integers(0, 6)).astype(float))
    return (codes, allowed, numbers, amounts), allowed[codes] | np.isin(numbers, amounts)


@given(SOME, KINDS, st.integers(0, 2_000))
def test_whoever_meets_all_conditions_is_selected(
    rng: np.random.Generator, kinds: list[str], rows: int
) -> None:
    made = [condition(kind, rng, rows) for kind in kinds]
    conditions = [each for each, _ in made]
    meet = np.logical_and.reduce([np.ones(rows, bool), *(mask for _, mask in made)])
    some = rng.integers(0, rows, rng.integers(0, 50)) if rows else np.empty(0, np.intp)
    places = np.empty_like(some)
    kept = _scan.select(conditions, some, places)
    assert places[:kept].tolist() == np.flatnonzero(meet[some]).tolist()
    starts = np.sort(rng.integers(0, rows + 1, 3))
    their = {"their_vectors": np.zeros((rows, 8), np.float32), "their_scales": np.ones(rows, "f4")}
    codes = np.zeros((rows, 8), np.int8)
    found, _, tried, kept, _, _ = look(
        starts=starts, tests=conditions, most=2**40, their_codes=codes, **their
    )
    expected = starts[0] + np.flatnonzero(meet[starts[0] : starts[2]])
    assert sorted(np.frombuffer(found, np.intp)) == expected.tolist()
    assert (tried, kept) == (starts[2] - starts[0], len(expected))
    named = [some[: len(some) // 2], some[len(some) // 3 :].astype(np.int32)]
    found, _, tried, kept, _, _ = look(
        starts=starts, rows=named, tests=conditions, most=2**40, their_codes=codes, **their
    )
    there = np.unique(some[(some >= starts[0]) & (some < starts[2])])
    assert sorted(np.frombuffer(found, np.intp)) == there[meet[there]].tolist()
    assert (tried, kept) == (starts[2] - starts[0], meet[there].sum())


@given(SOME, st.integers(0, 9), st.integers(1, 40), st.sampled_from([1e-150, 1e-9, 1, 1e150]))
def test_vectors_are_scaled_to_unit_length(
    rng: np.random.Generator, rows: int, dim: int, size: float
) -> None:
    numbers = size * rng.standard_normal((rows, dim))
    unit = np.empty((rows, dim), np.float32)
    assert _scan.scale(numbers, unit) == -1
    np.testing.assert_allclose(
        unit, numbers / np.linalg.norm(numbers, axis=1, keepdims=True), rtol=2e-7
    )


@pytest.mark.parametrize("wrong", [0, np.nan, np.inf, -np.inf, 1e200])
def test_what_has_no_direction_is_not_scaled(wrong: float) -> None:
    numbers = np.ones((4, 8))
    numbers[2], numbers[3] = wrong, np.nan
    assert _scan.scale(numbers, np.empty((4, 8), np.float32)) == 2


BOUND = st.sampled_from([-np.inf, -1.5, 0, 0.5, 2, 1e300, np.inf])
NAMES = st.lists(st.none() | st.text(max_size=3), min_size=1, max_size=40)
SCORES_OF = st.lists(
    st.tuples(st.integers(0, 39), st.sampled_from([-1.5, -1, 0.25, 0.5, 1, 1.5, np.nan]))
)


@given(NAMES, SCORES_OF, st.integers(0, 50), st.sampled_from([-np.inf, 0.25, 1.0]))
def test_the_best_come_first_and_ties_by_name(
    names: list[str | None], scored: list[tuple[int, float]], wanted: int, least: float
) -> None:
    rows = np.array([row % len(names) for row, _ in scored], np.intp)
    scores = np.array([score for _, score in scored], np.float64)
    cosines = [min(max(score, -1.0), 1.0) for score in scores.tolist()]
    pairs = [
        (name, cosine)
        for row, cosine in zip(rows, cosines, strict=True)
        if (name := names[row]) is not None and not np.isnan(cosine)
    ]
    best = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:wanted]
    expected = [pair for pair in best if pair[1] >= least]
    ranked = _scan.rank(names, rows, scores, wanted, least, Match)
    assert ranked == expected
    assert all(type(match) is Match for match in ranked)


def test_users_who_go_while_they_are_ranked() -> None:
    """Memory that is taken may have others clean up, and those may do anything."""
    users = [f"user {number}" for number in range(5_000)]
    expected = [f"user {number}" for number in range(5_000)]

    class Bomb:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            users.clear()

    Bomb()
    scores = np.linspace(1, -1, len(users))
    ranked = _scan.rank(users, np.arange(len(users)), scores, len(users), -1, Match)
    assert not users, "it went off"
    assert [user for user, _ in ranked] == expected


@given(st.lists(st.sampled_from([-np.inf, -1.5, 0, 1, 2, 1e300, np.inf])), BOUND, BOUND)
def test_which_of_ascending_numbers_are_within_bounds(
    numbers: list[float], low: float, high: float
) -> None:
    numbers.sort()
    first, end = _scan.span(np.array(numbers, np.float64), low, high)
    assert numbers[first:end] == [number for number in numbers if low <= number <= high]


FLOATS, CODES = np.ones((4, 8), np.float32), np.ones((4, 8), np.int8)
SCALES = np.ones(4, np.float32)
ROWS = np.arange(3)
YES = np.ones(4, bool)
NUMBERS, VALUES = np.ones(4), np.ones(4, np.int32)


@pytest.mark.parametrize("row", [-1, 4, 2**63 - 1, -(2**63)])
def test_no_memory_is_read_that_is_not_ours(row: int) -> None:
    rows = np.array([0, row, 1])
    for ask in (
        lambda: _scan.dots(FLOATS, FLOATS[0], rows, np.empty(3)),
        lambda: _scan.select([(YES,)], rows, rows.copy()),
        lambda: _scan.select([(np.ones(9, bool),), (NUMBERS, 0, 1)], rows, rows.copy()),
        lambda: compare(first=min(row, -1)),
        lambda: compare(first=max(row, 1)),
        lambda: compare(first=2**63 - 1 - 3, tests=[]),
        lambda: compare(tests=[(YES[:3],)]),
    ):
        with pytest.raises(IndexError, match="no such row"):
            ask()
    assert look(rows=[rows])[3] == 2, "the third is not here"
    with pytest.raises(IndexError, match="out of range"):
        _scan.rank(["a"] * 3, rows, np.ones(3), 1, 0, Match)
    found, *_, tried, kept, _, _ = compare(rows=[rows])
    assert (sorted(np.frombuffer(found, np.intp)), tried, kept) == ([0, 1], 2, 2), "not here"


def test_any_byte_but_zero_is_a_yes() -> None:
    mask, places = np.array([255, 0, 2], np.uint8).view(bool), np.empty(3, np.intp)
    assert _scan.select([(mask,)], ROWS, places) == 2
    assert places[:2].tolist() == [0, 2]
    assert look(starts=np.array([0, 1, 3]), tests=[(mask,)])[3] == 2


def test_codes_beyond_their_table_are_not_allowed() -> None:
    codes = np.array([-1, 2, 1, 2**31 - 1, -(2**31)], np.int32)
    rows, places = np.arange(5), np.empty(5, np.intp)
    assert _scan.select([(codes, np.ones(2, bool))], rows, places) == 1
    assert places[0] == 2


STARTS, NOBODY = np.array([0, 1, 4]), np.empty(0, np.intp)
LISTS = {
    "centres": CODES[:2].copy(),
    "scales": SCALES[:2].copy(),
    "error": 0.0,
    "limits": np.full(5, 9, np.float32),
    "starts": STARTS,
    "seen": np.zeros(2, bool),
}
USERS = {"vectors": FLOATS, "codes": CODES, "scales": SCALES, "error": 0.0}
ASKED = {
    "rows": None,
    "query": FLOATS[0],
    "tests": [(YES,)],
    "out": NOBODY,
    "count": 1,
    "least": 0,
    "most": 9,
}


def look(**changed: Any) -> Any:
    """With some arguments changed; those of the users begin with ``their_``."""
    lists, asked = ({key: changed.get(key, each) for key, each in part.items()}
                    for part in (LISTS, ASKED))  # fmt: skip
    users = {key: changed.get(f"their_{key}", each) for key, each in USERS.items()}
    lists["seen"] = lists["seen"].copy()
    return _scan.look(tuple(lists.values()), tuple(users.values()), *asked.values())


def compare(**changed: Any) -> Any:
    """With some arguments changed."""
    asked = {key: each for key, each in ASKED.items() if key != "most"}
    arguments = {"users": tuple(USERS.values()), "first": 0, **asked}
    return _scan.compare(*{key: changed.get(key, each) for key, each in arguments.items()}.values())


def test_rows_are_counted_from_the_first() -> None:
    mask = np.array([True] * 6 + [False, True] + [True] * 2)
    codes = np.arange(32, dtype=np.int8).reshape(4, 8)
    users = (codes.astype(np.float32), codes, SCALES, 0.0)
    parts = [np.array([9, 7, 3, 5], np.int32), np.array([6, 5, 4])]
    found, scores, tried, kept, _, _ = compare(
        users=users, first=4, tests=[(mask,)], rows=parts, out=np.array([4, 9]), count=9, least=-9
    )
    assert np.frombuffer(found, np.intp).tolist() == [5, 7]
    assert (tried, kept) == (4, 2)
    assert np.frombuffer(scores).tolist() == [codes[1].sum(), codes[3].sum()]
    best, *_ = compare(users=users, first=4, tests=[], rows=parts)
    assert np.frombuffer(best, np.intp).tolist() == [7], "of the four"


def test_a_look() -> None:
    rows, scores, *counts, share = look()
    assert (np.frombuffer(rows, np.intp).tolist(), counts) == ([0, 1, 2, 3], [4, 4, 0]), "all tie"
    assert share == 1
    assert np.frombuffer(scores).tolist() == [8.0] * 4


@pytest.mark.parametrize("starts", [[0, 1, 5], [-1, 1, 4], [0, 3, 2], [2**63 - 1, 0, 4]])
def test_a_look_reads_no_lists_that_are_not_there(starts: list[int]) -> None:
    with pytest.raises(IndexError, match="no such lists"):
        look(starts=np.array(starts))


@pytest.mark.parametrize("count", [5, 2**31, 2**62, 2**63 - 1])
def test_a_look_for_more_than_there_are(count: int) -> None:
    rows, _, *counts, _ = look(count=count)
    assert (sorted(np.frombuffer(rows, np.intp)), counts) == ([0, 1, 2, 3], [4, 4, 0])


def test_a_look_reads_no_limit_beyond_its_end() -> None:
    limits = np.full(2**24 + 5, -9, np.float32)
    limits[-1] = 9
    rows, _, *counts, _ = look(limits=limits[:-1])
    assert (rows, counts) == (b"", [0, 0, 0]), "nobody is good enough"


def test_a_look_reads_no_condition_beyond_its_end() -> None:
    with pytest.raises(IndexError, match="no such lists"):
        look(tests=[(YES,), (NUMBERS[:3], 0, 1)])


def with_arguments(call: Callable[..., Any], *tried: tuple[Any, ...]) -> list[Callable[[], Any]]:
    return [lambda arguments=arguments: call(*arguments) for arguments in tried]


OUT, SCORES = np.empty(3, np.intp), np.empty(3)


@pytest.mark.parametrize(
    "ask",
    [
        *with_arguments(
            _scan.dots,
            (FLOATS, FLOATS[0, :7].copy(), ROWS, SCORES),
            (FLOATS, FLOATS[0], ROWS, SCORES[:2]),
            (FLOATS.astype(np.float64), FLOATS[0], ROWS, SCORES),
            (FLOATS[0], FLOATS[0], ROWS, SCORES),
            (FLOATS, FLOATS[0], ROWS, SCORES.astype(np.float32)),
            (FLOATS.astype(np.int32), FLOATS[0], ROWS, SCORES),
            (FLOATS.astype(">f4"), FLOATS[0], ROWS, SCORES),
            (np.asfortranarray(FLOATS), FLOATS[0], ROWS, SCORES),
        ),
        *[
            lambda changed=changed: compare(**changed)
            for changed in (
                {"rows": [FLOATS]},
                {"rows": [ROWS, SCALES]},
                {"users": (FLOATS[:3], CODES, SCALES, 0.0)},
                {"users": (FLOATS, CODES[:3], SCALES, 0.0)},
                {"users": (FLOATS, CODES[:, :7].copy(), SCALES, 0.0)},
                {"users": (FLOATS, CODES, SCALES[:3], 0.0)},
                {"query": FLOATS[0, :7].copy()},
                {"out": SCALES},
                {"count": 0},
                {"tests": [()]},
            )
        ],
        *with_arguments(
            _scan.rank,
            (["a"] * 4, ROWS, SCORES[:2], 1, 0, Match),
            (["a"] * 4, SCORES, SCORES, 1, 0, Match),
            (["a"] * 4, ROWS, ROWS, 1, 0, Match),
        ),
        *with_arguments(_scan.encode, (FLOATS, CODES[:3].copy(), SCALES.copy())),
        *with_arguments(
            _scan.scale,
            (np.ones((4, 8)), FLOATS[:3].copy()),
            (np.ones((4, 7)), FLOATS.copy()),
            (FLOATS, FLOATS.copy()),
        ),
        *with_arguments(_scan.span, (VALUES, 0, 1), (FLOATS, 0, 1)),
        *with_arguments(
            _scan.select,
            ([(YES,)], ROWS, OUT[:2]),
            ([(YES,), ()], ROWS, OUT),
            ([(YES,), (VALUES, YES, NUMBERS, NUMBERS, NUMBERS)], ROWS, OUT),
            ([YES], ROWS, OUT),
            ([(NUMBERS,)], ROWS, OUT),
            ([(VALUES.astype(np.int64), YES)], ROWS, OUT),
            ([(VALUES, YES, VALUES, NUMBERS)], ROWS, OUT),
            ([(VALUES, 0, 1)], ROWS, OUT),
        ),
        *[
            lambda changed=changed: look(**changed)
            for changed in (
                {"centres": CODES},
                {"centres": CODES[:2, :7].copy()},
                {"scales": SCALES},
                {"limits": np.ones(1, np.float32)},
                {"limits": np.ones(5)},
                {"starts": np.array([0, 4])},
                {"seen": YES},
                {"their_vectors": FLOATS[:3]},
                {"their_vectors": FLOATS[:, :7].copy()},
                {"their_codes": CODES[:3]},
                {"their_codes": CODES[:, :7].copy()},
                {"their_scales": SCALES[:3]},
                {"query": FLOATS[0, :7].copy()},
                {"out": SCALES},
                {"count": 0},
                {"tests": [()]},
            )
        ],
    ],
)
def test_arrays_that_do_not_fit_are_refused(ask: Callable[[], Any]) -> None:
    message = "differ in length|another type or shape|contiguous|one to four parts"
    with pytest.raises(ValueError, match=message):
        ask()


def test_conditions_that_are_none_are_refused() -> None:
    wrong: list[Any] = [((YES,),), None, [(NUMBERS, "a", 1)], [(NUMBERS, 0, None)]]
    users: list[Any] = ["a", None, b"b"]
    for conditions in wrong:
        with pytest.raises(TypeError, match=r"real number|must be list"):
            _scan.select(conditions, ROWS, OUT)
    for ask in (compare, look):
        with pytest.raises(TypeError, match="list of arrays"):
            ask(rows=ROWS)
    with pytest.raises(TypeError, match="a user is text"):
        _scan.rank(users, ROWS, SCORES, 1, 0, Match)
    for no_match in (list, int, Match("a", 1)):
        with pytest.raises(TypeError, match=r"kind of tuple|must be type"):
            _scan.rank(["a"] * 4, ROWS, SCORES, 1, 0, no_match)


def test_nothing_is_written_that_may_not_be() -> None:
    scores, rows = np.empty(3), np.arange(3)
    scores.flags.writeable = rows.flags.writeable = False
    for ask in (
        lambda: _scan.dots(FLOATS, FLOATS[0], ROWS, scores),
        lambda: _scan.select([(YES,)], ROWS, rows),
        lambda: _scan.look(
            (*list(LISTS.values())[:-1], np.frombuffer(b"\0\0", bool)),
            tuple(USERS.values()),
            *ASKED.values(),
        ),
    ):
        with pytest.raises((ValueError, BufferError), match=r"read-only|not writable"):
            ask()
