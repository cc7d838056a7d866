"""Search among made-up users: recall, latency, memory, beside hnswlib, FAISS, USearch and numpy.

    pip install -e '.[benchmarks]'
    python benchmarks/search.py --index build/search     # 200,000 users: 15 minutes, 4 GB of disk
    python benchmarks/search.py --users 1000000 --only recall,memory   # ours alone, 4 GB of memory
    python benchmarks/search.py --only costs             # what the planner's constants should be

Who the users are says ``search_data.py``. All is measured in one process and one thread (only the
building of indexes uses all cores); contenders are asked the same query one after the other, in an
order drawn anew each time, and each just after another query that does not count, so that the
processor's caches hold what is its own. A contender that takes long sits out after ``BUDGET_S``
seconds; the table says how many queries it answered. Everybody starts from the query and what the
filter asks, so working out who qualifies is in all figures. Ours answers with names and scores and
keeps all of it in a store on the disk as well; the others answer with row numbers and keep nothing.
``hnswlib filter`` calls a Python function that looks the row up in an array of booleans. ``numpy
scan`` multiplies everybody and picks those who qualify (``all``), or copies those first (``some``).
Memory is that of a process which opened the index from the disk and answered the queries, less
what it took with the libraries loaded.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is loaded
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import gc
import importlib
import itertools
import json
import math
import multiprocessing
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from unittest.mock import patch

import numpy as np
import search_data
import search_peers
from rich import box
from rich.console import Console
from rich.table import Table
from search_data import NO_FILTER, Case, Mask, People, Rows, Vector, row_of
from search_peers import PEERS, FaissFlat, FaissHnsw, Graph, Hnswlib, Numpy, Peer, USearch
from tqdm import tqdm

from vibematch import MatchingEngine, filters, planner
from vibematch.manifest import Manifest
from vibematch.preprocess import Preprocessing

THREADS: Final = len(os.sched_getaffinity(0))
SECTIONS: Final = ("recall", "latency", "peers", "memory")
TOP_K: Final = 10
OURS: Final = "vibematch"
BUDGET_S: Final = 10.0
RECALL_BAR: Final = 0.99
OVERHEAD_BAR: Final = 1.3
LATENCY_BAR_MS: Final = 5.0
MEMORY_BAR_BYTES: Final = 1500
_EFS: Final = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_FILTER_EFS: Final = (128, 512, 2048, 8192)
_TRIED: Final = 20
_EXPLAINED: Final = 100
_FETCHES: Final = (128, 256, 512, 1024, 2048, 4096, 8192)
_SHARES: Final = (0.001, 0.003, 0.01, 0.03, 0.07, 0.15, 0.5, 1.0)
_COST_QUERIES: Final = 30
_SIZE_FIELDS: Final = ("users", "dim", "clusters", "seed")


def main() -> None:
    """Build what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--clusters", type=int, help="styles; default: one for 1,000 users")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only",
        type=_sections,
        default=list(SECTIONS),
        metavar="SECTION,…",
        help=f"of {', '.join(SECTIONS)} (the default) and costs",
    )
    parser.add_argument("--index", type=Path, help="folder that keeps what was built")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args()
    args.clusters = args.clusters or max(2, args.users // 1000)
    with _workshop(args.index) as folder:
        report = _measure(args, folder)
    _print(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def _sections(text: str) -> list[str]:
    sections = text.split(",")
    if unknown := set(sections) - {*SECTIONS, "costs"}:
        raise argparse.ArgumentTypeError(f"there is no section {', '.join(sorted(unknown))}")
    return sections


@contextmanager
def _workshop(kept: Path | None) -> Iterator[Path]:
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
    else:
        with tempfile.TemporaryDirectory(prefix="vibematch-search-") as folder:
            yield Path(folder)


def _measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    only = args.only
    _say(f"making {args.users:,} users")
    people = People.make(args.users, args.dim, args.queries, args.clusters, args.seed)
    peers = _peers_for(only)
    built = _build(folder, people, peers, {field: getattr(args, field) for field in _SIZE_FIELDS})
    data = {"queries": args.queries, **built}
    report: dict[str, Any] = {"machine": _machine(args.users), "data": data}
    if "memory" in only:
        report["memory"] = _memory(folder, people, peers)
    with MatchingEngine.open(folder / OURS, read_only=True) as engine:
        if "recall" in only or "latency" in only:
            rivals = "latency" in only
            report["cases"] = _cases(engine, people, folder if rivals else None)
        if "peers" in only:
            report["peers"] = _peers(engine, people, folder)
        if "costs" in only:
            report["costs"] = _costs(engine, people)
    report["bars"] = [{"bar": bar, "value": value, "met": met} for bar, value, met in _bars(report)]
    return report


def _peers_for(only: Sequence[str]) -> list[type[Peer]]:
    if "peers" in only:
        return [*PEERS, Numpy]
    return [Hnswlib] if "latency" in only else []


# --- what is built


def _build(
    folder: Path, people: People, peers: Iterable[type[Peer]], size: dict[str, int]
) -> dict[str, Any]:
    """What is not there yet; says how long all of it took, when it was built."""
    note = folder / "built.json"
    built: dict[str, Any] = {**size, "seconds": {}}
    if note.exists():
        built = json.loads(note.read_text())
    if {field: built[field] for field in size} != size:
        raise SystemExit(f"{folder} was built for {built}: give another --index")
    if OURS not in built["seconds"]:
        built["seconds"] |= _build_ours(folder, people)
        built["disk_bytes_per_user"] = _bytes_under(folder / "plain") / len(people)
        note.write_text(json.dumps(built))
    for peer in peers:
        if peer.name not in built["seconds"]:
            _say(f"building {peer.name}")
            began = time.perf_counter()
            index = peer.build(people.vectors, THREADS)
            built["seconds"][peer.name] = time.perf_counter() - began
            index.save(folder / peer.name)
            note.write_text(json.dumps(built))
    return built


def _build_ours(folder: Path, people: People) -> dict[str, float]:
    """An index without attributes in ``plain``, and one with them."""
    for leftover in ("plain", OURS):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    seconds: dict[str, float] = {}
    _say(f"building {OURS}")
    manifest = _manifest(people.vectors.shape[1])
    with MatchingEngine.open(folder / "plain", manifest=manifest) as engine:
        with _timed(seconds, "store"):
            engine.add_many(people.photos())
        with _timed(seconds, OURS):  # the first search makes the index
            engine.search(vector=people.queries[0])
        with _timed(seconds, "save"):
            engine.save()
    _say("adding attributes")
    shutil.copytree(folder / "plain", folder / OURS)
    with MatchingEngine.open(folder / OURS) as engine:
        with _timed(seconds, "attributes"):
            engine.add_many(people.attributes())
        engine.save()
    with _timed(seconds, "open"), MatchingEngine.open(folder / OURS, read_only=True) as engine:
        engine.search(vector=people.queries[0])
    return seconds


def _manifest(dim: int) -> Manifest:
    return Manifest(
        embedding_dim=dim,
        preprocessing=Preprocessing(64, 64),
        prompt="",
        pooling="mean",
        backbone="none",
        backbone_sha256="0" * 64,
        head="paper",
        head_sha256="0" * 64,
        precision="fp32",
    )


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


def _bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- recall and latency


class Contender(NamedTuple):
    """Who is asked; ``ask`` takes the number of a query, ``rows`` reads what it gave."""

    name: str
    ask: Callable[[int], Any]
    rows: Callable[[Any], Rows] = lambda answer: answer


def _ours(engine: MatchingEngine, case: Case) -> Contender:
    return Contender(
        OURS,
        lambda query: engine.search(top_k=TOP_K, **case.arguments(query)),
        lambda answer: np.array([row_of(match.user_id) for match in answer], np.intp),
    )


def _rivals(folder: Path, people: People) -> Callable[[Case, Sequence[Rows]], Iterator[Contender]]:
    """Opens what is compared with; gives who is asked in a case."""
    graph = Hnswlib.load(folder / Hnswlib.name, people.vectors.shape)
    scan = Numpy(people.vectors)
    our_ef = planner.ef_search(len(people))

    def rivals(case: Case, truth: Sequence[Rows]) -> Iterator[Contender]:
        qualifies = case.mask
        if qualifies is None:
            yield _with_ef(graph, people, our_ef)
            return

        def asks(ask: Callable[[Vector, int, Mask], Rows]) -> Callable[[int], Rows]:
            return lambda query: ask(case.vector(query), TOP_K, qualifies(query))

        def filtered(ef: int) -> Contender:
            ask = asks(graph.ask_filtered)

            def ask_with_ef(query: int) -> Rows:
                graph.set_ef(ef)
                return ask(query)

            return Contender(f"hnswlib filter, ef {ef}", ask_with_ef)

        yield filtered(our_ef)
        enough = _least_ef(filtered, truth[:_TRIED], _FILTER_EFS)
        if enough != our_ef:
            yield filtered(enough)
        yield Contender("numpy scan, all", asks(scan.ask_all))
        yield Contender("numpy scan, some", asks(scan.ask_some))

    return rivals


def _least_ef(
    with_ef: Callable[[int], Contender], truth: Sequence[Rows], efs: Sequence[int]
) -> int:
    """The first that has the recall."""
    for ef in efs:
        contender = with_ef(ef)
        found = [contender.ask(query) for query in range(len(truth))]
        if search_data.recall(found, truth) >= RECALL_BAR:
            break
    return ef


def _cases(engine: MatchingEngine, people: People, folder: Path | None) -> list[dict[str, Any]]:
    """Every kind of question; with a ``folder`` the rivals in there are asked too."""
    rivals = _rivals(folder, people) if folder else lambda case, truth: ()
    rows = []
    for case in search_data.cases(people):
        truth = search_data.exact(people, case, TOP_K)
        contenders = [_ours(engine, case), *rivals(case, truth)]
        explained = range(min(len(people.queries), _EXPLAINED))
        plans = [_plan(engine, case, query) for query in explained]
        qualifying = [
            len(people) if case.mask is None else case.mask(query).sum() for query in explained
        ]
        rows.append(
            {
                "case": case.name,
                "qualifying": float(np.mean(qualifying)),
                "contenders": _take_turns(contenders, truth, case.name),
                "strategies": dict(Counter(plan.strategy for plan in plans)),
                "fetched": float(np.median([plan.fetched or 0 for plan in plans])),
                "scanned": float(np.median([plan.scanned or 0 for plan in plans])),
            }
        )
    return rows


def _plan(engine: MatchingEngine, case: Case, query: int) -> planner.Plan:
    return engine.search(top_k=TOP_K, explain=True, **case.arguments(query)).plan


def _take_turns(
    contenders: Sequence[Contender], truth: Sequence[Rows], title: str
) -> dict[str, dict[str, Any]]:
    """Ask every contender every query; one that has used up its time sits out."""
    rng = np.random.default_rng(0)
    total = len(truth)
    times: list[list[float]] = [[] for _ in contenders]
    answers: list[list[Rows]] = [[] for _ in contenders]
    gc.collect()
    for query in tqdm(range(total), title, file=sys.stderr, mininterval=5):
        for number in rng.permutation(len(contenders)):
            if sum(times[number]) > BUDGET_S:
                continue
            ask, rows = contenders[number].ask, contenders[number].rows
            ask((query + total // 2) % total)
            began = time.perf_counter()
            answer = ask(query)
            times[number].append(time.perf_counter() - began)
            answers[number].append(rows(answer))
    return {
        contender.name: {
            **_latency(np.array(taken)),
            "recall": search_data.recall(given, truth[: len(given)]),
        }
        for contender, taken, given in zip(contenders, times, answers, strict=True)
    }


def _latency(seconds: Vector) -> dict[str, Any]:
    """Milliseconds; ``fifths`` are the medians of five stretches of the run: how steady it was."""
    milliseconds = 1000 * seconds
    return {
        "queries": len(milliseconds),
        "median_ms": float(np.median(milliseconds)),
        "p99_ms": float(np.quantile(milliseconds, 0.99)),
        "max_ms": float(milliseconds.max()),
        "fifths_ms": [
            float(np.median(some)) for some in np.array_split(milliseconds, 5) if len(some)
        ],
    }


# --- beside other libraries


def _peers(engine: MatchingEngine, people: People, folder: Path) -> dict[str, Any]:
    """No filter; each graph with the least ef that has the recall."""
    case = search_data.cases(people)[0]
    truth = search_data.exact(people, case, TOP_K)
    shape = people.vectors.shape
    contenders = [_ours(engine, case)]
    graphs: tuple[type[Graph], ...] = (Hnswlib, FaissHnsw, USearch)
    for graph in graphs:
        with_ef = partial(_with_ef, graph.load(folder / graph.name, shape), people)
        contenders.append(with_ef(_least_ef(with_ef, truth, _EFS)))
    flat, numpy = FaissFlat.load(folder / FaissFlat.name, shape), Numpy(people.vectors)
    scans = [
        Contender(flat.name, lambda query: flat.ask(people.queries[query], TOP_K)),
        Contender(numpy.name, lambda query: numpy.ask(people.queries[query], TOP_K)),
    ]
    # apart from each other: a scan leaves nothing of a graph in the processor's caches
    return _take_turns(contenders, truth, "graphs") | _take_turns(scans, truth, "scans")


def _with_ef(graph: Graph, people: People, ef: int) -> Contender:
    def ask(query: int) -> Rows:
        graph.set_ef(ef)
        return graph.ask(people.queries[query], TOP_K)

    return Contender(f"{graph.name}, ef {ef}", ask)


# --- memory


class _Plain:
    """Our index without attributes, behind the calls of a peer."""

    name = "plain"

    def __init__(self, path: Path) -> None:
        self._engine = MatchingEngine.open(path, read_only=True)

    @classmethod
    def load(cls, path: Path, shape: tuple[int, ...]) -> Self:
        return cls(path)

    def ask(self, query: Vector, top_k: int) -> Any:
        return self._engine.search(vector=query, top_k=top_k)


class _WithAttributes(_Plain):
    name = OURS


def _memory(folder: Path, people: People, peers: Iterable[type[Peer]]) -> dict[str, Any]:
    """Bytes per user, each contender in a process of its own."""
    figures = {}
    contenders: list[Any] = [_Plain, _WithAttributes, *peers]
    for contender in contenders:
        _say(f"memory of {contender.name}")
        arguments = (contender, folder / contender.name, people.vectors.shape, people.queries)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            figures[contender.name] = pool.submit(_taken, *arguments).result()
    plain, with_attributes = figures.pop(_Plain.name), figures.pop(OURS)
    return {OURS: plain, f"{OURS}, attributes": with_attributes, **figures}


def _taken(contender: Any, path: Path, shape: tuple[int, ...], queries: Vector) -> dict[str, float]:
    """Bytes per user that an index took which was opened here and asked."""
    for library in ("hnswlib", "faiss", "usearch.index"):
        with suppress(ImportError):
            importlib.import_module(library)
    before = _resident()
    index = contender.load(path, shape)
    for query in queries:
        index.ask(query, TOP_K)
    gc.collect()
    return {kind: (now - before[kind]) / shape[0] for kind, now in _resident().items()}


def _resident() -> dict[str, int]:
    """Bytes of this process in memory: its own, and pages of files, which can be dropped."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        name: 1024 * int(status[field].split()[0])
        for name, field in (("anonymous", "RssAnon"), ("file", "RssFile"))
    }


# --- what the planner should expect


def _costs(engine: MatchingEngine, people: People) -> dict[str, Any]:
    """Microseconds of searches that had no choice, and the constants that fit them best."""
    scale = people.vectors.shape[1] / 256
    graph_terms, graph_us = [], []
    for fetch in _FETCHES:
        if fetch <= len(people) / 4:
            graph_terms.append([1.0, fetch * scale])
            graph_us.append(_forced_graph(engine, people, fetch))
    scan_terms, scan_us = [], []
    for share, conditions in itertools.product(_SHARES, (1, 2, 3)):
        rows, qualifying = len(people), round(share * len(people))
        compared = min(qualifying, planner.scanned_at_most(rows, qualifying))
        narrowed = qualifying > compared
        scan_terms.append([1.0, rows * (1 + conditions), rows * narrowed, compared * scale])
        scan_us.append(_forced_scan(engine, people, share, conditions))
    return {
        "graph": _fit(("_GRAPH_US", "_GRAPH_US_PER_USER"), graph_terms, graph_us),
        "scan": _fit(
            ("_SCAN_US", "_SCAN_US_PER_ROW", "_LISTS_US_PER_ROW", "_SCAN_US_PER_QUALIFYING"),
            scan_terms,
            scan_us,
        ),
    }


def _forced_graph(engine: MatchingEngine, people: People, fetch: int) -> float:
    with (
        patch.object(planner, "graph_us", lambda *_: 0.0),
        patch.object(planner, "fetch_for", lambda *_: fetch),
    ):
        return _median_us(engine, people, None)


def _forced_scan(engine: MatchingEngine, people: People, share: float, conditions: int) -> float:
    where = {
        "lot": (0, round(share * search_data.LOTS) - 1),
        "age": (0, 100),
        "gender": list(search_data.GENDERS),
    }
    with (
        patch.object(planner, "graph_us", lambda *_: math.inf),
        patch.object(filters.Columns, "narrowed", lambda *_: None),
    ):
        return _median_us(engine, people, dict(itertools.islice(where.items(), conditions)))


def _median_us(engine: MatchingEngine, people: People, where: dict[str, Any] | None) -> float:
    taken = []
    for query in people.queries[:_COST_QUERIES]:
        began = time.perf_counter()
        engine.search(vector=query, top_k=TOP_K, where=where)
        taken.append(time.perf_counter() - began)
    return 1e6 * float(np.median(taken))


def _fit(names: Sequence[str], terms: list[list[float]], measured: list[float]) -> dict[str, Any]:
    """Least squares of relative errors, no constant below 0."""
    from scipy.optimize import nnls  # here: it takes long to load

    matrix, us = np.array(terms), np.array(measured)
    constants, _ = nnls(matrix / us[:, np.newaxis], np.ones(len(us)))
    return {
        "constants": dict(zip(names, constants.tolist(), strict=True)),
        "measured": [
            {"terms": row, "us": took, "fitted_us": float(fitted)}
            for row, took, fitted in zip(terms, measured, matrix @ constants, strict=True)
        ],
    }


# --- the report


def _machine(users: int) -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    versions = {}
    for name in ("vibematch", "numpy", "hnswlib", "faiss-cpu", "usearch"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "cpu": next((line.split(": ")[1] for line in info if line.startswith("model name")), "?"),
        "cores": THREADS,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
        "M": search_peers.M,
        "ef_construction": search_peers.EF_CONSTRUCTION,
        "ef": planner.ef_search(users),
    }


def _bars(report: dict[str, Any]) -> Iterator[tuple[str, float, bool]]:
    """What is promised, what came out, and whether that will do."""
    for case in report.get("cases", []):
        ours, *rivals = case["contenders"].values()
        found, worst = ours["recall"], ours["p99_ms"]
        yield f"recall@{TOP_K} ≥ {RECALL_BAR}, {case['case']}", found, found >= RECALL_BAR
        yield f"p99 ≤ {LATENCY_BAR_MS:g} ms, {case['case']}", worst, worst <= LATENCY_BAR_MS
        equals = [rival["median_ms"] for rival in rivals if rival["recall"] >= RECALL_BAR]
        if equals:
            ratio = ours["median_ms"] / min(equals)
            bar = OVERHEAD_BAR if case["case"] == NO_FILTER else 1.0
            yield (
                f"median ≤ {bar:g}x the quickest with that recall, {case['case']}",
                ratio,
                ratio <= bar,
            )
    if "memory" in report:
        bytes_ = report["memory"][OURS]["anonymous"]
        yield f"memory ≤ {MEMORY_BAR_BYTES} B a user", bytes_, bytes_ <= MEMORY_BAR_BYTES


def _print(report: dict[str, Any]) -> None:
    machine, data = report["machine"], report["data"]
    console = Console(width=110)
    console.print(
        f"{data['users']:,} users in {data['clusters']} clusters, {data['dim']} dimensions, "
        f"{data['queries']:,} queries, seed {data['seed']}; top {TOP_K}, M {machine['M']}, "
        f"ef_construction {machine['ef_construction']}, ef {machine['ef']}"
    )
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores (load {machine['load']:.1f}), one thread; "
        f"Python {machine['python']}, {versions}"
    )
    _print_built(console, data)
    if "cases" in report:
        console.print(_cases_table(report["cases"]))
    if "peers" in report:
        table = _table(f"beside other libraries, {NO_FILTER}")
        for name, figures in report["peers"].items():
            table.add_row(*_row(name, figures))
        console.print(table)
    if "memory" in report:
        table = Table("", "anonymous", "of files", title="memory, bytes a user", box=box.SIMPLE)
        for name, figures in report["memory"].items():
            table.add_row(name, f"{figures['anonymous']:,.0f}", f"{figures['file']:,.0f}")
        console.print(table)
    for kind, fit in report.get("costs", {}).items():
        console.print(_costs_table(kind, fit))
    for bar in report["bars"]:
        console.print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['bar']}: {bar['value']:.4g}")


def _print_built(console: Console, data: dict[str, Any]) -> None:
    seconds, users = data["seconds"], data["users"]
    console.print(
        f"{OURS}: {users / seconds['store']:,.0f} vectors/s into the store, "
        f"{users / seconds['attributes']:,.0f} users/s with new attributes; snapshot written in "
        f"{seconds['save']:.1f} s; {seconds['open']:.1f} s from opening to the first answer; "
        f"{data['disk_bytes_per_user']:,.0f} bytes a user on the disk"
    )
    names = [OURS, *(peer.name for peer in PEERS if peer.name in seconds)]
    graphs = ", ".join(f"{name} {seconds[name]:.1f} s" for name in names)
    console.print(f"index built in memory on all cores: {graphs}")


def _table(title: str) -> Table:
    columns = ("", "recall", "median ms", "p99 ms", "medians of fifths", "queries")
    return Table(*columns, title=title, box=box.SIMPLE, pad_edge=False)


def _row(name: str, figures: dict[str, Any]) -> list[str]:
    return [
        name,
        f"{figures['recall']:.4f}",
        f"{figures['median_ms']:.3f}",
        f"{figures['p99_ms']:.3f}",
        f"{min(figures['fifths_ms']):.3f} to {max(figures['fifths_ms']):.3f}",
        str(figures["queries"]),
    ]


def _cases_table(cases: Iterable[dict[str, Any]]) -> Table:
    table = _table(f"recall@{TOP_K} and latency")
    for case in cases:
        table.add_section()
        table.add_row(f"{case['case']}: {case['qualifying']:,.0f} qualify", style="bold")
        for name, figures in case["contenders"].items():
            table.add_row(*_row(f"  {name}{_how(case) if name == OURS else ''}", figures))
    return table


def _how(case: dict[str, Any]) -> str:
    """What our searches did: the strategies, how many users were fetched and scanned."""
    numbers = [f"{case[kind]:,.0f} {kind}" for kind in ("fetched", "scanned") if case[kind]]
    return f" ({'/'.join(case['strategies'])}: {', '.join(numbers)})"


def _costs_table(kind: str, fit: dict[str, Any]) -> Table:
    constants = ", ".join(
        f"{name} {value:.4g} (is {getattr(planner, name):.4g})"
        for name, value in fit["constants"].items()
    )
    table = Table(
        "terms", "measured µs", "fitted µs", title=kind, caption=constants, box=box.SIMPLE
    )
    for point in fit["measured"]:
        terms = ", ".join(f"{term:,.0f}" for term in point["terms"])
        table.add_row(terms, f"{point['us']:,.0f}", f"{point['fitted_us']:,.0f}")
    return table


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
