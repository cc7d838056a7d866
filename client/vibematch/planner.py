"""How to answer a search: ask the graph for more than needed, or scan those who qualify.

The graph finds the nearest users among all of them, so where few qualify it has to be asked for
many. A scan compares those who qualify: all of them if they are known and few, else those in the
lists nearest to the query, in ever more lists until more change nothing. Whichever is expected to
be quicker is tried.

How many qualify *near the query* can be fewer than anywhere else: a filter may leave out the very
style that is asked for. The nearest list tells. If the graph returns too few all the same, a scan
takes over.
"""

from __future__ import annotations

import math
from typing import Final, Literal, NamedTuple

EXACT_UP_TO: Final = 2_000
"""An index of this many users is scanned: as fast as the graph there, and exact."""
COMPARED_AT_ONCE: Final = 3_000
"""So few who qualify, and are known, are all compared."""
SAMPLE: Final = 1_024
"""Users on whom a filter is tried, to estimate how many qualify."""
LEAST_SAMPLE: Final = 50
"""So few users say nothing about the others."""

_EF_SEARCH: Final = 128
_MANY_USERS: Final = 500_000
_MARGIN: Final = 2.0
_TIES: Final = 6
"""Users beyond those asked for, so that ties at the end are broken by user id."""
_WORTH_ASKING: Final = 0.25
"""Of all users: whoever wants more of them had better scan."""

# By a simulation of clustered vectors: far more lists than needed where a filter has nothing to do
# with style, and a recall of 0.99 and more where it leaves out the nearest styles.
_COMPARED_AT_LEAST: Final = 500
_COMPARED_PER_MATCH: Final = 4
_FIRST_LISTS: Final = 16
_SECOND_LISTS: Final = 64
_GROWTH: Final = 2
_ESTIMATE_MARGIN: Final = 1.2
_MANY_LISTS: Final = 128
_MOST_LISTS: Final = 1 / 8

# Microseconds, fitted to 10,000 to 200,000 users of 256 dimensions on one core (Zen 4); only their
# ratios matter. `benchmarks/search.py --only costs` prints what they should be.
_GRAPH_US: Final = 200.0
_GRAPH_US_PER_USER: Final = 0.23
_GRAPH_US_OF_FILTER: Final = 50.0
_GRAPH_US_OF_RISK: Final = 50.0  # not fitted: that of too few who are left, if none near were tried
_SCAN_US: Final = 60.0
_SCAN_US_PER_CONDITION: Final = 6.0
_SCAN_US_PER_ROW: Final = 0.0008
_SCAN_US_PER_QUALIFYING: Final = 0.016
_SCAN_US_OF_LISTS: Final = 60.0
_DIM: Final = 256
_CACHE_BYTES: Final = 16e6
_BEYOND_CACHE: Final = 0.4
_DEAREST: Final = 3.0


class Plan(NamedTuple):
    """How a search was answered, and what was expected.

    Attributes:
        strategy: what gave the answer.
        users: how many users there are.
        estimated_qualifying: how many of them were expected to qualify.
        graph_us: expected microseconds of the graph.
        scan_us: expected microseconds of a scan.
        fetched: how many users the graph was asked for, if it was asked.
        qualifying: how many users do qualify, where all were tried.
        scanned: how many of them a scan compared. If these are all, the answer is exact.
    """

    strategy: Literal["graph", "scan"]
    users: int
    estimated_qualifying: int
    graph_us: float
    scan_us: float
    fetched: int | None = None
    qualifying: int | None = None
    scanned: int | None = None

    def __str__(self) -> str:
        steps = [] if self.fetched is None else [f"asked the graph for {self.fetched:,} users"]
        if self.strategy == "scan":
            scanned = self.scanned or 0
            whole = f"about {max(self.estimated_qualifying, scanned):,}"
            if self.qualifying is not None:
                whole = f"the {self.qualifying:,}"
            steps.append(f"compared {scanned:,} of {whole} who qualify")
        graph = "no use in asking the graph"
        if math.isfinite(self.graph_us):
            graph = f"{self.graph_us:,.0f} µs by the graph"
        return (
            f"{', then '.join(steps)}; expected: {self.estimated_qualifying:,} of {self.users:,} "
            f"users qualify, {graph}, {self.scan_us:,.0f} µs by a scan"
        )


def ef_search(users: int) -> int:
    """How many users hnswlib is to keep in view during a search, at least: recall against time."""
    return _EF_SEARCH if users < _MANY_USERS else 2 * _EF_SEARCH


def compared_at_least(top_k: int) -> int:
    """How many users a scan of lists compares before it asks whether that was enough."""
    return max(_COMPARED_AT_LEAST, _COMPARED_PER_MATCH * top_k)


def first_lists(lists: int, qualifying: float, top_k: int) -> int:
    """How many lists to look into at first.

    Args:
        lists: how many there are.
        qualifying: about how many of the users in them qualify.
        top_k: how many users are asked for.
    """
    compared = _ESTIMATE_MARGIN * compared_at_least(top_k)
    return max(_FIRST_LISTS, math.ceil(compared / max(qualifying, 1.0) * lists))


def more_lists(looked_into: int) -> int:
    """Into how many lists to have looked next, all in all, after ``looked_into`` of them."""
    return max(_SECOND_LISTS, _GROWTH * looked_into)


def are_enough_lists(looked_into: int, lists: int) -> bool:
    """Whether to stop though the last look changed something, because it takes too long.

    Args:
        looked_into: how many lists were looked into.
        lists: how many there are.
    """
    return looked_into >= max(_MANY_LISTS, _MOST_LISTS * lists)


def part_looked_into(lists: int, qualifying: float, top_k: int) -> float:
    """The part of all lists, in (0, 1], that is looked into if the second look changes nothing.

    Args:
        lists: how many there are.
        qualifying: about how many of the users in them qualify.
        top_k: how many users are asked for.
    """
    return min(more_lists(first_lists(lists, qualifying, top_k)) / lists, 1.0)


def fetch_for(wanted: int, share: float) -> int:
    """How many users to ask the graph for, so that ``wanted`` are left of them.

    Args:
        wanted: how many are needed.
        share: how many of those near the query qualify, in (0, 1].
    """
    margin = 1.0 if share >= 1 else _MARGIN
    return math.ceil(margin * wanted / share) + _TIES


def graph_us(
    fetch: int, users: int, cost: float, *, is_filtered: bool, is_near_known: bool
) -> float:
    """Expected microseconds of asking the graph; infinite where it cannot be asked.

    Args:
        fetch: how many users it is asked for.
        users: how many there are.
        cost: :func:`vector_cost`.
        is_filtered: whether a filter is tried on them.
        is_near_known: whether it was tried on users near the query already.
    """
    if users <= EXACT_UP_TO or fetch > _WORTH_ASKING * users:
        return math.inf
    us = _GRAPH_US + _GRAPH_US_PER_USER * max(fetch, ef_search(users)) * cost
    if is_filtered:
        us += _GRAPH_US_OF_FILTER + _GRAPH_US_OF_RISK * (not is_near_known)
    return us


def scan_us(
    tried: float, compared: float, conditions: int, cost: float, *, by_lists: bool
) -> float:
    """Expected microseconds of a scan.

    Args:
        tried: on how many users the first condition is tried; the next ones on whom it left.
        compared: how many of these qualify.
        conditions: how many conditions there are.
        cost: :func:`vector_cost`.
        by_lists: whether these users are those of the nearest lists.
    """
    return (
        _SCAN_US
        + _SCAN_US_OF_LISTS * by_lists
        + _SCAN_US_PER_CONDITION * conditions
        + _SCAN_US_PER_ROW * tried * (conditions > 0)
        + _SCAN_US_PER_QUALIFYING * compared * cost
    )


def vector_cost(users: int, dim: int) -> float:
    """What it costs to compare a vector: 1 for 256 dimensions out of the processor's cache.

    Beyond the cache it grows with a power of the index's size, up to three times as much: fitted,
    like the microseconds.

    Args:
        users: how many there are; the more, the fewer of their vectors are in the cache.
        dim: length of a vector.
    """
    caches_full = max(4 * dim * users / _CACHE_BYTES, 1.0)
    return min(math.pow(caches_full, _BEYOND_CACHE), _DEAREST) * dim / _DIM
