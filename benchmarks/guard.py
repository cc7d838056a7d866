"""Have hot paths become slower? Each is measured against something that stays as it is.

    python benchmarks/guard.py            # 40 seconds; beside what guard.json keeps
    python benchmarks/guard.py --check    # exit code 1 if a path is slower: make bench-guard
    python benchmarks/guard.py --keep     # after a change that was meant: rewrites guard.json

What is kept is a ratio, never seconds: ours over a reference that does comparable work with other
people's code in the same turn. A path has become slower if the median ratio exceeds the kept one by
more than the kept interquartile range, but at least 15 and at most 30 %. Run it with nothing else
on the machine. Ratios differ between kinds of processor: compare with one kept on the same.
Instruction counts would need no second run, but valgrind has no AVX-512, and virtual machines
mostly have no hardware counters for ``perf``.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is loaded: searches have one thread

import argparse
import datetime
import io
import itertools
import json
import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import harness
import hnswlib
import models
import numpy as np
from harness import Bar, Column, Result, Row, Spread, Table
from PIL import Image
from search_data import LOTS, People
from search_peers import EF_CONSTRUCTION, M
from serving_load import MODEL, photos
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

from vibematch import MatchingEngine, planner
from vibematch.manifest import Manifest
from vibematch.preprocess import preprocess

KEPT: Final = Path(__file__).parent / "guard.json"
LEAST_TOLERANCE: Final = 0.15
MOST_TOLERANCE: Final = 0.3
CANVAS: Final = models.CANVAS["tiny"]
USERS: Final = 20_000
TOP_K: Final = 10
TENTH: Final = {"lot": (0, LOTS // 10 - 1)}
_CLUSTERS: Final = 20
_ADDED: Final = 10

PREPROCESS: Final = "preprocess"
ENCODE: Final = "encode round trip"
SEARCH: Final = "search"
FILTERED: Final = "search, 10 % qualify"
ADD: Final = "add"
REFERENCES: Final = {
    PREPROCESS: "Pillow: decode, resize",
    ENCODE: "preprocess and ONNX Runtime in this process",
    SEARCH: "hnswlib's knn_query with the same ef",
    FILTERED: "hnswlib's knn_query with the same ef, unfiltered",
    ADD: "SQLite: insert the same bytes, commit, sync; hnswlib: add_items",
}
"""Path → what it is measured against."""

Pair: TypeAlias = tuple[Callable[[], Any], Callable[[], Any]]


class Measured(NamedTuple):
    """One path: seconds of one call of ours and of the reference, and the ratio of a turn."""

    ours_s: Spread
    reference_s: Spread
    ratio: Spread


def main() -> None:
    """Measure, compare or keep, publish."""
    parser = harness.arguments(__doc__, "guard", models=True)
    parser.add_argument("--turns", type=int, default=60)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="exit code 1 if a path is slower")
    what.add_argument("--keep", action="store_true", help="rewrite guard.json")
    args = parser.parse_args()
    if args.backbone != "tiny":
        parser.error("guard.json keeps the ratios of the tiny backbone: leave --backbone out")
    measured = measure(args)
    if args.keep:
        KEPT.write_text(json.dumps(_kept(measured), indent=1) + "\n")
    kept = json.loads(KEPT.read_text())
    harness.publish(_result(args, measured, kept), args)
    slower = regressions(kept, {path: one.ratio for path, one in measured.items()})
    if args.check and slower:
        raise SystemExit("\n".join(slower))


# --- comparing


def tolerance(kept: Spread) -> float:
    """The share by which a median may exceed the kept one."""
    return min(max(LEAST_TOLERANCE, (kept.high - kept.low) / kept.median), MOST_TOLERANCE)


def regressions(kept: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Spread]) -> list[str]:
    """A sentence for each path that is slower than what is kept, or that nothing is kept of."""
    sentences = []
    for path, ratio in measured.items():
        if path not in kept:
            sentences.append(f"{path}: guard.json does not have it; run with --keep")
            continue
        before = Spread(*kept[path]["ratio"])
        allowed = tolerance(before)
        if ratio.median > before.median * (1 + allowed):
            sentences.append(
                f"{path}: slower, ratio {ratio}, kept {before} with a tolerance of {allowed:.0%}"
            )
    return sentences


def _kept(measured: Mapping[str, Measured]) -> dict[str, Any]:
    machine = harness.machine()
    where = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{machine['cpu']}, {machine['cores']} cores",
    }
    return {
        path: {"ratio": [float(f"{value:.4g}") for value in one.ratio], **where}
        for path, one in measured.items()
    }


def _result(
    args: argparse.Namespace, measured: Mapping[str, Measured], kept: Mapping[str, Any]
) -> Result:
    columns = [Column("ours", "ms"), Column("reference", "ms"), Column("ratio"), Column("kept")]
    columns += [Column("at most"), Column("measured against")]
    rows, bars = [], []
    for path, one in measured.items():
        before, at_most = None, None
        if path in kept:
            before = Spread(*kept[path]["ratio"])
            at_most = before.median * (1 + tolerance(before))
            met = one.ratio.median <= at_most
            bars.append(Bar(f"{path}: ratio at most {at_most:.3g}", one.ratio.median, met))
        seconds = (_ms(one.ours_s), _ms(one.reference_s))
        rows.append(Row(path, [*seconds, one.ratio, before, at_most, REFERENCES[path]], ours=True))
    return Result(
        name="guard",
        question="Have hot paths become slower?",
        setting={
            "weights": models.WEIGHTS["tiny"],
            "precision": "int8",
            "resolution": f"{CANVAS.height}x{CANVAS.width}",
            "batch": 1,
            "users": USERS,
            "turns": args.turns,
            "kept on": sorted({f"{one['date']}, {one['machine']}" for one in kept.values()}),
        },
        tables=[Table("Ratios to what stays as it is", columns, rows)],
        bars=bars,
        notes=[
            "A reference does comparable work, not the same: a ratio is to be compared with the "
            "kept one only. Both searches have one thread; adding syncs to the disk on both sides."
        ],
    )


def _ms(seconds: Spread) -> Spread:
    return Spread(*(1000 * value for value in seconds))


# --- measuring


def measure(args: argparse.Namespace) -> dict[str, Measured]:
    """Each path, in turn with its reference."""
    model = models.exported(args.work, "tiny", CANVAS, "int8")
    by_size = sorted(photos(args.seed), key=len)
    small, medium = by_size[0], by_size[-2]  # the last has 12 megapixels
    with models.served(model) as server, InferenceServerClient(server.grpc_url) as client:
        measured = {
            PREPROCESS: _measure(PREPROCESS, _preprocessing(medium), args, calls=3),
            ENCODE: _measure(ENCODE, _encoding(client, model, small), args, calls=3),
        }
    with ExitStack() as stack:  # the server is gone
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.work)))
        people = People.make(USERS, models.EMBEDDING_DIM, 1000, _CLUSTERS, args.seed)
        engine = stack.enter_context(
            MatchingEngine.open(folder / "index", manifest=Manifest.load(model))
        )
        engine.add_many(people.photos())
        engine.add_many(people.attributes())
        graph = _reference_graph(people, USERS + _ADDED * (args.turns + 1))
        for path, where in ((SEARCH, None), (FILTERED, TENTH)):
            pair = _searching(engine, graph, people, where)
            measured[path] = _measure(path, pair, args, calls=50)
        database = _reference_database(folder / "reference.sqlite")
        pair = _adding(engine, stack.enter_context(closing(database)), graph, people)
        measured[ADD] = _measure(ADD, pair, args, calls=_ADDED)
    return measured


def _measure(path: str, pair: Pair, args: argparse.Namespace, *, calls: int) -> Measured:
    """Time both, ``calls`` of them in a turn, after a first such turn that does not count."""
    contenders = {
        name: _repeated(call, calls) for name, call in zip(("ours", "reference"), pair, strict=True)
    }
    for contender in contenders.values():
        contender()
    seconds = harness.take_turns(contenders, args.turns, path, seed=args.seed)
    ours, reference = ([taken / calls for taken in seconds[name]] for name in ("ours", "reference"))
    return Measured(Spread.of(ours), Spread.of(reference), harness.ratio(ours, reference))


def _repeated(call: Callable[[], Any], times: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            call()

    return repeated


def _preprocessing(photo: bytes) -> Pair:
    def plain() -> Any:
        opened = Image.open(io.BytesIO(photo)).convert("RGB")
        return np.asarray(opened.resize((CANVAS.width, CANVAS.height), Image.Resampling.BICUBIC))

    return lambda: preprocess(photo, CANVAS), plain


def _encoding(client: InferenceServerClient, model: Path, photo: bytes) -> Pair:
    session = models.session(model)
    tensor = InferInput("photo", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
    wanted = [InferRequestedOutput("embedding")]
    return (
        lambda: client.infer(MODEL, [tensor], outputs=wanted),
        lambda: session.run(["embedding"], {"pixels": preprocess(photo, CANVAS)[None]}),
    )


def _reference_graph(people: People, capacity: int) -> Any:
    """A graph of hnswlib's own, of the same vectors and with the settings of ours."""
    users, dim = people.vectors.shape
    graph = hnswlib.Index(space="ip", dim=dim)
    graph.init_index(capacity, M=M, ef_construction=EF_CONSTRUCTION)
    graph.add_items(people.vectors)
    graph.set_ef(planner.ef_search(users))
    return graph


def _reference_database(path: Path) -> sqlite3.Connection:
    """As durable as our store."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE users (id TEXT PRIMARY KEY, vector BLOB) WITHOUT ROWID")
    return database


def _searching(engine: MatchingEngine, graph: Any, people: People, where: Any) -> Pair:
    ours, theirs = itertools.cycle(people.queries), itertools.cycle(people.queries)
    return (
        lambda: engine.search(vector=next(ours), top_k=TOP_K, where=where),
        lambda: graph.knn_query(next(theirs), TOP_K, num_threads=1),
    )


def _adding(
    engine: MatchingEngine, database: sqlite3.Connection, graph: Any, people: People
) -> Pair:
    numbers, vectors = itertools.count(USERS), itertools.cycle(people.queries)

    def ours() -> None:
        engine.add(f"new_{next(numbers)}", vectors=next(vectors)[None])

    def plain() -> None:
        number, vector = next(numbers), next(vectors)
        with database:  # commits
            database.execute("INSERT INTO users VALUES (?, ?)", (f"new_{number}", vector.tobytes()))
        graph.add_items(vector[None], [number], num_threads=1)

    return ours, plain


if __name__ == "__main__":
    main()
