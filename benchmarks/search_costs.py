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
from search_data import GENDERS, LOTS, People

from vibematch import MatchingEngine, filters, planner

_FETCHES: Final = (128, 256, 512, 1024, 2048, 4096, 8192)
_SHARES: Final = (0.001, 0.003, 0.01, 0.03, 0.07, 0.15, 0.5, 1.0)
_QUERIES: Final = 30
_TOP_K: Final = 10
_GRAPH: Final = ("_GRAPH_US", "_GRAPH_US_PER_USER", "_GRAPH_US_OF_FILTER")
_SCAN: Final = (
    "_SCAN_US",
    "_SCAN_US_PER_CONDITION",
    "_SCAN_US_PER_ROW",
    "_SCAN_US_OF_LISTS",
    "_SCAN_US_PER_QUALIFYING",
)


def tables(engine: MatchingEngine, people: People) -> list[Table]:
    """Microseconds of each search, measured and fitted; the constants are in the notes."""
    cost = planner.vector_cost(*people.vectors.shape)
    graph_terms, graph_us = [], []
    for fetch, filtered in itertools.product(_FETCHES, (False, True)):
        if fetch <= len(people) / 4:
            graph_terms.append([1.0, fetch * cost, filtered])
            graph_us.append(_forced_graph(engine, people, fetch, filtered=filtered))
    scan_terms, scan_us = [], []
    for share, conditions in itertools.product(_SHARES, (1, 2, 3)):
        plans, took_us = _forced_scan(engine, people, share, conditions)
        compared = float(np.mean([plan.scanned or 0 for plan in plans]))
        by_lists = float(np.mean([plan.qualifying is None for plan in plans]))
        tried = min(compared / share, len(people))
        scan_terms.append([1.0, conditions, tried, by_lists, compared * cost])
        scan_us.append(took_us)
    return [
        _fitted("What the graph costs", _GRAPH, graph_terms, graph_us),
        _fitted("What a scan costs", _SCAN, scan_terms, scan_us),
    ]


def _forced_graph(engine: MatchingEngine, people: People, fetch: int, *, filtered: bool) -> float:
    with (
        patch.object(planner, "graph_us", lambda *_, **__: 0.0),
        patch.object(planner, "fetch_for", lambda *_: fetch),
    ):
        return _median_us(engine, people, {"lot": (0, LOTS)} if filtered else None)


def _forced_scan(
    engine: MatchingEngine, people: People, share: float, conditions: int
) -> tuple[list[planner.Plan], float]:
    """How they were done, and microseconds."""
    met = {"lot": (0, round(share * LOTS) - 1), "age": (0, 100), "gender": list(GENDERS)}
    where: dict[str, Any] = dict(itertools.islice(met.items(), conditions))
    with (
        patch.object(planner, "graph_us", lambda *_, **__: math.inf),
        patch.object(filters.Columns, "narrowed", lambda *_: None),
    ):
        plans = [
            engine.search(vector=query, top_k=_TOP_K, where=where, explain=True).plan
            for query in people.queries[:_QUERIES]
        ]
        return plans, _median_us(engine, people, where)


def _median_us(engine: MatchingEngine, people: People, where: dict[str, Any] | None) -> float:
    taken = []
    for query in people.queries[:_QUERIES]:
        began = time.perf_counter()
        engine.search(vector=query, top_k=_TOP_K, where=where)
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
