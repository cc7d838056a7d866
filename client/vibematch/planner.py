"""How to answer a search: look into the lists nearest to it, and perhaps ask the graph, too.

Where very few are known to qualify, these are all compared, and where they are few, nobody else is
tried in the lists. Else a look at everybody in the nearest lists comes first. Where vectors are
clusters, as styles are, it is nearly always settled then that there is nobody nearer elsewhere. If
not, it is known into how many lists one would have to look still, and how many of those near the
query qualify: the graph, which finds the nearest of all users, has to be asked for the more of them
the fewer qualify. Whichever is expected to be quicker is done. If the graph returns too few, the
lists are looked into all the same.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final, Literal, NamedTuple

EXACT_UP_TO: Final = 2_000
"""In an index of this many users all are compared: as fast as the graph there, and exact."""
COMPARED_AT_ONCE: Final = 200
"""So few who may qualify, and are known, are all compared."""
FIRST_LOOK: Final = 4_000
"""In the nearest lists so many users are tried before anything else is thought of."""

_SOUGHT: Final = 5_000  # marking them takes time
_SOUGHT_PER_MATCH: Final = 5
_EF_SEARCH: Final = 128
_MANY_USERS: Final = 500_000
_MARGIN: Final = 2.0
_TIES: Final = 6
"""Users beyond those asked for, so that ties at the end are broken by user id."""
_WORTH_ASKING: Final = 0.25
"""Of all users: whoever wants more of them had better scan."""
_COMPARED_AT_LEAST: Final = 500
_COMPARED_PER_MATCH: Final = 4
_MOST_TRIED: Final = 50_000
_MOST_OF_ALL: Final = 1 / 16

# Microseconds, fitted to 100,000 and 200,000 users of 256 dimensions on one core (Zen 4); only
# their ratios matter. `benchmarks/search.py --only costs` prints what they should be.
_GRAPH_US: Final = 130.0
_GRAPH_US_PER_USER: Final = 0.35
_GRAPH_US_OF_FILTER: Final = 10.0
_SCAN_US: Final = 30.0
_SCAN_US_PER_ROW: Final = 0.001  # 0.0003 where the columns are in the cache
_SCAN_US_PER_QUALIFYING: Final = 0.019
_DIM: Final = 256
_CACHE_BYTES: Final = 16e6
_BEYOND_CACHE: Final = 0.4
_DEAREST: Final = 3.0


class Expected(NamedTuple):
    """What was expected of a search that a first look did not settle.

    Attributes:
        fetched: for how many users the graph is asked, if it is asked.
        graph_us: microseconds of the graph.
        scan_us: microseconds of looking on.
    """

    fetched: int | None = None
    graph_us: float | None = None
    scan_us: float | None = None


NOT_THOUGHT_OF: Final = Expected()


class Plan(NamedTuple):
    """How a search was answered.

    Attributes:
        strategy: what gave the answer, but for users whom a first look into lists found.
        users: how many users there are.
        tried: among how many of them a scan looked.
        scanned: how many of these qualify: a scan compared them.
        qualifying: how many users qualify, where all were tried. Then the answer is exact.
        fetched: how many users the graph was asked for, if it was asked.
        graph_us: expected microseconds of the graph, where it was thought of.
        scan_us: expected microseconds of looking on, where that was thought of.
    """

    strategy: Literal["graph", "scan"]
    users: int
    tried: int = 0
    scanned: int = 0
    qualifying: int | None = None
    fetched: int | None = None
    graph_us: float | None = None
    scan_us: float | None = None

    def __str__(self) -> str:
        of_all = f"of {self.users:,} users"
        steps = []
        if self.qualifying is not None:
            steps.append(f"compared all {self.scanned:,} who qualify {of_all}")
        elif self.tried:
            some = f"of the {self.tried:,} nearest {of_all}"
            steps.append(f"compared {self.scanned:,} who qualify {some}")
        if self.fetched is not None:
            in_vain = "" if self.strategy == "graph" else " in vain"
            steps.append(f"asked the graph for {self.fetched:,}{in_vain}")
        text = " and ".join(steps)
        if self.graph_us is None or self.scan_us is None:
            return text
        graph = "no use in asking the graph"
        if math.isfinite(self.graph_us):
            graph = f"{self.graph_us:,.0f} µs by the graph"
        return f"{text}; expected after a first look: {graph}, {self.scan_us:,.0f} µs by a scan"


def ef_search(users: int) -> int:
    """How many users hnswlib is to keep in view during a search, at least: recall against time."""
    return _EF_SEARCH if users < _MANY_USERS else 2 * _EF_SEARCH


def are_compared(few: int, top_k: int, users: int) -> bool:
    """Whether to compare all of a few at once, as that is quick, or a look would find too few."""
    return few <= COMPARED_AT_ONCE or few * FIRST_LOOK < top_k * users


def are_sought(few: int, top_k: int, users: int) -> bool:
    """Whether to try only a few in lists, as a first look would hardly meet enough of them."""
    return few <= _SOUGHT and few * FIRST_LOOK < _SOUGHT_PER_MATCH * top_k * users


def compared_at_least(top_k: int) -> int:
    """How many users a scan compares before it stops though it is not settled."""
    return max(_COMPARED_AT_LEAST, _COMPARED_PER_MATCH * top_k)


def fetch_for(wanted: int, share: float) -> int:
    """How many users to ask the graph for, so that ``wanted`` are left of them.

    Args:
        wanted: how many are needed.
        share: how many of those near the query qualify, in (0, 1].
    """
    margin = 1.0 if share >= 1 else _MARGIN
    return math.ceil(margin * wanted / share) + _TIES


def most_tried(users: int) -> int:
    """On how many of all users a scan tries a filter before it stops though it is not settled."""
    return max(_MOST_TRIED, round(_MOST_OF_ALL * users))


def graph_us(fetch: int, users: int, dim: int, *, is_filtered: bool) -> float:
    """Expected microseconds of asking the graph; infinite where it cannot be asked.

    Args:
        fetch: how many users it is asked for.
        users: how many there are.
        dim: length of a vector.
        is_filtered: whether a filter is tried on them.
    """
    if fetch > _WORTH_ASKING * users:
        return math.inf
    in_view = max(fetch, ef_search(users)) * vector_cost(users, dim)
    return _GRAPH_US + _GRAPH_US_PER_USER * in_view + _GRAPH_US_OF_FILTER * is_filtered


def scan_us(tried: float, compared: float, share: float, users: int, dim: int) -> float:
    """Expected microseconds of a scan.

    Args:
        tried: on how many users a filter is tried.
        compared: how many of these are compared.
        share: how many of those side by side in memory are compared; 1: it is read in order.
        users: how many there are.
        dim: length of a vector.
    """
    cost = share * vector_cost(0, dim) + (1 - share) * vector_cost(users, dim)
    return _SCAN_US + _SCAN_US_PER_ROW * tried + _SCAN_US_PER_QUALIFYING * cost * compared


@lru_cache(maxsize=16)
def vector_cost(users: int, dim: int) -> float:
    """What it costs to compare a vector: 1 for 256 dimensions that are in the processor's cache.

    Beyond the cache it grows with a power of the index's size, up to three times as much: fitted,
    like the microseconds.

    Args:
        users: how many there are; the more, the fewer of their vectors are in the cache.
        dim: length of a vector.
    """
    caches_full = max(4 * dim * users / _CACHE_BYTES, 1.0)
    return min(math.pow(caches_full, _BEYOND_CACHE), _DEAREST) * dim / _DIM
