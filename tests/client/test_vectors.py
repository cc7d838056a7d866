from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vibematch.vectors
from vibematch.vectors import (
    Coded,
    Partition,
    VectorRows,
    best_of,
    find_centroids,
    nearest_centroids,
)

SOME = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def unit_rows(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    rows = rng.normal(size=(count, dim)) * rng.choice([0.01, 1.0], size=dim)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def in_blocks(vectors: np.ndarray, first: int) -> VectorRows:
    """So many in the first block, the others appended."""
    rows = VectorRows(vectors.shape[1])
    rows.replace(Coded.of(vectors[:first]))
    for start in range(first, len(vectors), 100):
        rows.append(vectors[start : start + 100])
    return rows


@given(SOME, st.integers(1, 70), st.integers(1, 40))
def test_no_vector_is_farther_from_its_codes_than_the_error(
    rng: np.random.Generator, dim: int, count: int
) -> None:
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    vectors[rng.random(count) < 0.1] = 0
    coded = Coded.of(vectors)
    off = vectors - coded.codes.astype(np.float64) * coded.scales[:, np.newaxis]
    assert np.linalg.norm(off, axis=1).max() == pytest.approx(coded.error, abs=1e-6)
    largest = np.abs(vectors).max(axis=1)
    assert (np.abs(off).max(axis=1) <= largest / 254 + 1e-6).all()
    assert (np.abs(coded.codes.astype(int)).max(axis=1)[largest > 0] == 127).all()


NOBODY = np.empty(0, np.intp)


def nearest(rows: VectorRows, query: np.ndarray, count: int, least: float = -np.inf) -> list[int]:
    """Those of all rows that may be among the nearest."""
    return rows.nearest(query, [], NOBODY, count, least).rows.tolist()


@given(
    SOME,
    st.integers(1, 300),
    st.integers(1, 40) | st.just(10**6),
    st.sampled_from([0, 250, 600]),
    st.floats(-1, 1) | st.none(),
)
def test_the_nearest_and_who_ties_with_them(
    rng: np.random.Generator, dim: int, count: int, in_first_block: int, floor: float | None
) -> None:
    vectors = unit_rows(rng, 600, dim)
    vectors[rng.integers(600, size=50)] = vectors[rng.integers(600, size=50)]  # twins
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vibematch.vectors, "_BLOCK_ROWS", 64)
        rows = in_blocks(vectors, in_first_block)
    query = unit_rows(rng, 1, dim)[0]
    qualifies = rng.random(600) < rng.choice([0.1, 1.0])
    excluded = np.unique(rng.integers(0, 601, rng.integers(0, 20)))
    some = rng.integers(0, 600, rng.integers(0, 900))  # in no order, and more than once
    parts = np.split(some, np.sort(rng.integers(0, len(some) + 1, rng.integers(0, 4))))
    parts = [part.astype(rng.choice(["i4", "i8"])) for part in parts]
    among = None if rng.random() < 0.2 else parts
    floor = -np.inf if floor is None else floor
    first = int(rng.choice([0, rng.integers(0, 601)]))
    look = rows.nearest(query, [(qualifies,)], excluded, count, floor, among, first)

    there = np.arange(600) if among is None else np.unique(some)
    there = there[there >= first]
    wanted = there[qualifies[there] & ~np.isin(there, excluded)]
    assert (look.tried, look.compared, look.ahead) == (len(there), len(wanted), 0)
    exact = vectors.astype(np.float64) @ query
    best = np.sort(exact[wanted])[::-1]
    least = max(best[count - 1] if len(best) >= count else -np.inf, floor)
    assert look.scores == pytest.approx(exact[look.rows], abs=1e-12)
    assert len(set(look.rows.tolist())) == len(look.rows)
    assert set(look.rows.tolist()) <= set(wanted.tolist())
    found = best_of(look.rows, look.scores, count)[0].tolist()
    assert set(wanted[exact[wanted] >= least].tolist()) <= set(found)
    assert set(found) <= set(wanted[exact[wanted] >= least - 5e-6].tolist())


@pytest.mark.parametrize("dim", [256, 4_096])
def test_a_query_that_is_nearly_an_axis_loses_nobody(dim: int) -> None:
    """Its small elements are rounded away, and decide who is nearest."""
    rng = np.random.default_rng(0)
    vectors = unit_rows(rng, 2_000, dim)
    vectors[:, 0] = 0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = 1e-4 * unit_rows(rng, 1, dim)[0]
    query[0] = 1
    query /= np.linalg.norm(query)
    near = nearest(in_blocks(vectors, 2_000), query, 10)
    best = np.argsort(-(vectors.astype(np.float64) @ query))[:10]
    assert set(best.tolist()) <= set(near)


def test_nobody_is_near_in_no_rows() -> None:
    assert nearest(VectorRows(8), np.ones(8, np.float32), 10) == []


@pytest.mark.parametrize("dim", [1, 7, 8, 63, 64, 65, 4_096, 5_900, 5_954, 20_000])
def test_sums_of_any_length_are_right(dim: int) -> None:
    vectors = np.full((3, dim), 1 / np.sqrt(dim), np.float32)
    vectors[1] *= -1
    vectors[2, ::2] *= -1
    rows, query = in_blocks(vectors, 3), vectors[0]
    exact = vectors.astype(np.float64) @ query.astype(np.float64)
    assert rows.scores(np.arange(3), query) == pytest.approx(exact, abs=1e-12)
    assert nearest(rows, query, 1) == [0]
    assert 1 in nearest(rows, -query, 1)


def test_equal_vectors_have_equal_scores_wherever_they_lie() -> None:
    rng = np.random.default_rng(0)
    vectors = np.repeat(unit_rows(rng, 1, 100), 700, axis=0)
    scores = in_blocks(vectors, 300).scores(np.arange(700), unit_rows(rng, 1, 100)[0])
    assert len(np.unique(scores)) == 1


def random_lists(rng: np.random.Generator, vectors: np.ndarray) -> Partition:
    """Any lists, also empty ones, around centroids that need not be theirs."""
    count = int(rng.choice([*rng.integers(1, 20, 3), 31, 32, 33, 64, 100]))
    limits = np.sort(rng.uniform(-1, 1, rng.integers(2, 300))).astype(np.float32)
    starts = np.sort(rng.integers(0, len(vectors) + 1, count + 1))
    return Partition(unit_rows(rng, count, vectors.shape[1]), limits, starts, 0.0)


@given(SOME, st.integers(0, 600), st.integers(1, 30), st.sampled_from([0, 1, 100, 10**6]))
def test_a_look_finds_the_nearest_in_the_nearest_lists(
    rng: np.random.Generator, users: int, count: int, most_tried: int
) -> None:
    dim = int(rng.integers(1, 40))
    vectors, query = unit_rows(rng, users, dim), unit_rows(rng, 1, dim)[0]
    coded, partition = Coded.of(vectors), random_lists(rng, vectors)
    qualifies = rng.random(users) < rng.choice([0.1, 1.0])
    excluded = np.unique(rng.integers(0, users + 1, rng.integers(0, 20)))
    least = float(rng.choice([-np.inf, -0.2, 0.5]))
    before = rng.random(len(partition)) < rng.choice([0.0, 0.5])
    seen = before.copy()
    some = None if rng.random() < 0.5 else rng.integers(0, max(users, 1), rng.integers(0, 900))
    look = partition.look(
        coded,
        query,
        [(qualifies,)],
        excluded,
        count,
        least,
        most_tried,
        seen,
        None if some is None else np.split(some, [len(some) // 2]),
    )

    sizes = np.diff(partition.starts)
    new, left = np.flatnonzero(seen & ~before), np.flatnonzero(~seen)
    assert (seen | ~before).all()
    assert look.tried == sizes[new].sum()
    inside = [np.arange(*partition.starts[[one, one + 1]]) for one in new]
    rows = np.concatenate([*inside, np.empty(0, int)]).astype(int)
    if some is not None:
        rows = rows[np.isin(rows, some)]
    rows = rows[qualifies[rows] & ~np.isin(rows, excluded)]
    assert look.compared == len(rows)

    exact = vectors.astype(np.float64) @ query.astype(np.float64)
    best = np.sort(exact[rows])[::-1]
    needed = max(least, best[count - 1] if len(best) >= count else -np.inf)
    assert look.scores == pytest.approx(exact[look.rows], abs=1e-12)
    assert len(set(look.rows.tolist())) == len(look.rows)
    assert set(rows[exact[rows] >= needed].tolist()) <= set(look.rows.tolist())
    assert set(look.rows.tolist()) <= set(rows[exact[rows] >= needed - 5e-6].tolist())

    of_lists = partition.centroids.astype(np.float64) @ query
    off = 0.03  # more than codes can be, of lists and of users
    if len(new) and len(left):
        assert of_lists[new].min() >= of_lists[left].max() - off

    def ahead(score_off: float, needed: float) -> int:
        steps = (of_lists[left] + score_off + 1) / 2 * (len(partition.limits) - 1)
        places = np.ceil(steps).astype(int).clip(0, len(partition.limits) - 1)
        return int(sizes[left][partition.limits[places] >= needed].sum())

    assert ahead(0, needed) <= look.ahead <= ahead(off, needed - off)
    order = new[np.argsort(-of_lists[new], kind="stable")]
    enough = np.searchsorted(np.cumsum(sizes[order]), 50) + 1
    inside = [np.arange(*partition.starts[[one, one + 1]]) for one in order[:enough]]
    near = np.concatenate([*inside, np.empty(0, int)]).astype(int)
    qualifying = np.count_nonzero(qualifies[near] & ~np.isin(near, excluded))
    if some is None and np.diff(-of_lists[order]).min(initial=1) > off:  # in no other order
        assert look.share == max(qualifying, 0.5) / max(len(near), 1)
    if look.tried < most_tried:
        assert look.ahead == 0, "it stops when it is settled, or was enough"


def test_what_may_be_expected_in_lists_is_what_is_there() -> None:
    rng = np.random.default_rng(0)
    vectors = unit_rows(rng, 900, 16)
    centroids = find_centroids(vectors, seed=0)
    lists = nearest_centroids(vectors, centroids)
    order = np.argsort(lists, kind="stable")
    vectors, lists = vectors[order], lists[order]
    partition = Partition.of(vectors, lists, centroids)
    assert np.diff(partition.limits).min() >= 0
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -1)
    near = vectors @ centroids.T
    for step in (20, 128, 160, 200, 256):
        below = near <= np.linspace(-1, 1, 257)[step]
        best = np.where(below[:, lists], scores, -1).max(axis=1)
        limit = partition.limits[step]
        assert np.mean(best <= limit + 1e-6) >= 0.96
        assert limit == -1 or np.mean(best <= limit - 0.1) < 1


def test_lists_of_very_few() -> None:
    vector = np.ones((1, 4), np.float32) / 2
    partition = Partition.of(vector, np.zeros(1, np.uint16), vector)
    seen = np.zeros(1, bool)
    look = partition.look(Coded.of(vector), vector[0], [], NOBODY, 3, -2, 9, seen)
    assert (look.rows.tolist(), look.tried, look.ahead) == ([0], 1, 0)
