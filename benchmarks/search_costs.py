"""What the planner's constants should be: searches that had no choice, and what fits them best."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any, Final
from unittest.mock import patch

import numpy as np
from harness import Column, Row, Table
from scipy.optimize import nnls
from search_data import LOTS, People

from vibematch import MatchingEngine, filters, planner

_FETCHES: Final = (128, 256, 512, 1024, 2048, 4096, 8192)
_SHARES: Final = (0.01, 0.03, 0.1, 0.5, 1.0)
_TRIED: Final = (4_000, 16_000, 64_000, 256_000)
_QUERIES: Final = 30
_TOP_K: Final = 10
_selector: Final = filters.Columns.selector
_GRAPH: Final = ("_GRAPH_US", "_GRAPH_US_PER_USER", "_GRAPH_US_OF_FILTER")
_SCAN: Final = ("_SCAN_US", "_SCAN_US_PER_ROW", "_SCAN_US_PER_QUALIFYING")


def tables(engine: MatchingEngine, people: People) -> list[Table]:
    """Microseconds of each search, measured and fitted; the constants are in the notes.

    Less those of a search that looks at nobody, as nobody is near enough.
    """
    if engine._live.index._partition is None:
        return []  # so few users are not put into lists: there is nothing to choose
    users, dim = people.vectors.shape
    cost, in_order = planner.vector_cost(users, dim), planner.vector_cost(0, dim)
    nobody_us = _median_us(engine, people, min_score=1.0)
    graph_terms, graph_us = [], []
    for fetch, filtered in itertools.product(_FETCHES, (False, True)):
        if fetch <= len(people) / 4:
            in_view = max(fetch, planner.ef_search(users))
            graph_terms.append([1.0, in_view * cost, filtered])
            graph_us.append(_forced_graph(engine, people, fetch, filtered=filtered) - nobody_us)
    scan_terms, scan_us = [], []
    for share, tried in itertools.product(_SHARES, _TRIED):
        if tried <= len(people):
            compared = share * tried * (share * in_order + (1 - share) * cost)
            scan_terms.append([1.0, tried, compared])
            scan_us.append(_forced_scan(engine, people, share, tried) - nobody_us)
    return [
        _fitted("What the graph costs", _GRAPH, graph_terms, graph_us),
        _fitted("What a scan costs", _SCAN, scan_terms, scan_us),
    ]


def _forced_graph(engine: MatchingEngine, people: People, fetch: int, *, filtered: bool) -> float:
    with (
        patch.object(planner, "FIRST_LOOK", 0),
        patch.object(planner, "scan_us", lambda *_: math.inf),
        patch.object(planner, "fetch_for", lambda *_: fetch),
        patch.object(filters.Columns, "selector", _selector_without_few),
    ):
        return _median_us(engine, people, where={"lot": (0, LOTS)} if filtered else None)


def _forced_scan(engine: MatchingEngine, people: People, share: float, tried: int) -> float:
    partition: Any = engine._live.index._partition
    with (
        patch.object(partition, "limits", np.ones_like(partition.limits)),  # nothing is settled
        patch.object(planner, "FIRST_LOOK", tried),
        patch.object(planner, "graph_us", lambda *_, **__: math.inf),
        patch.object(planner, "most_tried", lambda _: 0),
        patch.object(planner, "compared_at_least", lambda _: 0),
        patch.object(filters.Columns, "selector", _selector_without_few),
    ):
        return _median_us(engine, people, where={"lot": (0, round(share * LOTS) - 1)})


def _selector_without_few(columns: filters.Columns, *wanted: Any) -> filters.Selector:
    return _selector(columns, *wanted)._replace(few=None)


def _median_us(engine: MatchingEngine, people: People, **how: Any) -> float:
    taken = []
    for query in people.queries[:_QUERIES]:
        began = time.perf_counter()
        engine.search(vector=query, top_k=_TOP_K, **how)
        taken.append(time.perf_counter() - began)
    return 1e6 * float(np.median(taken))


def _fitted(
    title: str, names: Sequence[str], terms: list[list[float]], measured: list[float]
) -> Table:
    """Least squares of relative errors, no constant below 0."""
    matrix, us = np.array(terms), np.array(measured)
    constants, _ = nnls(matrix / us[:, np.newaxis], np.ones(len(us)))
    rows = [
        Row(", ".join(f"{term:,.0f}" for term in row), [took, float(fitted)])
        for row, took, fitted in zip(terms, measured, matrix @ constants, strict=True)
    ]
    note = "; ".join(
        f"{name} {value:.4g} (is {getattr(planner, name):.4g})"
        for name, value in zip(names, constants, strict=True)
    )
    return Table(title, [Column("measured", "µs"), Column("fitted", "µs")], rows, note)
