"""How to answer a search: ask the graph for more than needed, or scan those who qualify.

The graph finds the nearest users among all of them, so where few qualify it has to be asked for
many; a scan looks at each user who qualifies. Whichever is expected to be quicker is tried. What
the graph returns then tells how many qualify *near the query*, which can be fewer than anywhere
else (a filter may leave out the very style that is asked for): then a scan takes over.
"""

from __future__ import annotations

import math
from typing import Final, Literal, NamedTuple

EXACT_UP_TO: Final = 2_000
"""An index of this many users is scanned: as fast as the graph there, and exact."""
SCANNED_AT_LEAST: Final = 1_000
"""So few who qualify are all compared."""
SAMPLE: Final = 1_024
"""Users on whom a filter is tried, to estimate how many qualify."""

_EF_SEARCH: Final = 128
_MANY_USERS: Final = 500_000
_SCANNED_AT_MOST: Final = 16_384
_SCANNED_SHARE_OF_USERS: Final = 1 / 12
_SCANNED_SHARE_OF_QUALIFYING: Final = 1 / 4
_MARGIN: Final = 2.0
TIES: Final = 6
"""Users beyond those asked for, so that ties at the end are broken by user id."""
_WORTH_ASKING: Final = 0.25
"""Of all users: whoever wants more of them had better scan."""

# Microseconds, fitted to 10,000 to 200,000 users of 256 dimensions on one core (Zen 4); only their
# ratios matter. `benchmarks/search.py --only costs` prints what they should be.
_GRAPH_US: Final = 150.0
_GRAPH_US_PER_USER: Final = 0.28
_SCAN_US: Final = 50.0
_SCAN_US_PER_CONDITION: Final = 12.0
_SCAN_US_PER_ROW: Final = 0.0004
_SCAN_US_PER_QUALIFYING: Final = 0.11
_LISTS_US_PER_ROW: Final = 0.0005
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
        qualifying: how many users do qualify; a graph does not tell.
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
            steps.append(f"compared {self.scanned:,} of the {self.qualifying:,} who qualify")
        graph = "too few users for the graph"
        if math.isfinite(self.graph_us):
            graph = f"{self.graph_us:,.0f} µs by the graph"
        return (
            f"{', then '.join(steps)}; expected: {self.estimated_qualifying:,} of {self.users:,} "
            f"users qualify, {graph}, {self.scan_us:,.0f} µs by a scan"
        )


def ef_search(users: int) -> int:
    """How many users hnswlib is to keep in view during a search, at least: recall against time."""
    return _EF_SEARCH if users < _MANY_USERS else 2 * _EF_SEARCH


def scanned_at_most(users: int, qualifying: int) -> int:
    """How many users a scan compares at most, those in the nearest lists.

    Args:
        users: how many there are; the more, the more of them are near.
        qualifying: how many of them qualify.
    """
    most = max(_SCANNED_AT_MOST, int(_SCANNED_SHARE_OF_USERS * users))
    return min(most, max(SCANNED_AT_LEAST, int(_SCANNED_SHARE_OF_QUALIFYING * qualifying)))


def fetch_for(wanted: int, share: float) -> int:
    """How many users to ask the graph for, so that ``wanted`` are left of them.

    Args:
        wanted: how many are needed.
        share: how many of those near the query qualify, in (0, 1].
    """
    margin = 1.0 if share >= 1 else _MARGIN
    return math.ceil(margin * wanted / share) + TIES


def graph_us(fetch: int, users: int, cost: float) -> float:
    """Expected microseconds of asking the graph; infinite where it cannot be asked.

    Args:
        fetch: how many users it is asked for.
        users: how many there are.
        cost: :func:`vector_cost`.
    """
    if users <= EXACT_UP_TO or fetch > _WORTH_ASKING * users:
        return math.inf
    return _GRAPH_US + _GRAPH_US_PER_USER * max(fetch, ef_search(users)) * cost


def scan_us(rows: int, qualifying: int, compared: int, conditions: int, cost: float) -> float:
    """Expected microseconds of a scan.

    Args:
        rows: on how many users the conditions are tried.
        qualifying: how many users meet these.
        compared: how many of those are in lists that are looked into.
        conditions: how many conditions there are.
        cost: :func:`vector_cost`.
    """
    return (
        _SCAN_US
        + (_SCAN_US_PER_CONDITION + _SCAN_US_PER_ROW * rows) * (1 + conditions)
        + _LISTS_US_PER_ROW * rows * (compared < qualifying)
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
