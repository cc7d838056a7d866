"""From a photo's bytes to the match: how long it takes, and where each millisecond goes.

    python benchmarks/end_to_end.py                 # tiny backbone, 10,000 users: 40 seconds
    python benchmarks/end_to_end.py --backbone 2b   # 100,000 users: 15 minutes, 6 GB of memory

The product as a backend uses it: tritonserver on this machine, an ``Encoder`` over gRPC, and a
``MatchingEngine`` that holds made-up users and writes to the disk. One person is served at a time,
the ways in turn; beside them the bare graph runs in this process on the same photo's pixels, made
beforehand. No photo is sent twice, so no cache answers.

Where the time goes: a stopwatch around the client's own steps counts each instant to the innermost
step that is under way; what the client waits for the server is divided by Triton's statistics for
that request. The bars are means over the half of the requests whose whole time was nearest to the
median, because means add up. What no step accounts for is shown as ``other``.

Then sign-ups from several clients at once, each with its first search, with and without the server.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from unittest.mock import patch

import harness
import models
import numpy as np
from harness import Axis, Bar, Column, Plot, Result, Row, Series, Spread, Table
from search_data import People
from serving_load import photos
from tritonclient.grpc import InferenceServerClient

import vibematch.encoder
import vibematch.engine
from vibematch import Encoder, MatchingEngine, VibematchError
from vibematch.index import HnswIndex
from vibematch.live import LiveIndex
from vibematch.manifest import Manifest
from vibematch.preprocess import Preprocessing, preprocess
from vibematch.store import ProfileStore
from vibematch_export.repository import EMBED, ENCODER, PREPROCESS

OVERHEAD_BAR: Final = 0.03
CLIENTS: Final = 8
TIMEOUT_S: Final = 900.0
_SIZES: Final = {
    "tiny": {"canvas": 224, "users": 10_000, "turns": 100, "seconds": 1.5},
    "2b": {"canvas": 448, "users": 100_000, "turns": 25, "seconds": 60.0},
}
_LOOPS: Final = 3
_CLUSTERS: Final = 100
_FEWEST_FOR: Final = {50: 1, 95: 20, 99: 100}
"""Requests that a percentile needs."""
_STORE_S: Final = 1.0
_NEWCOMERS: Final = 5000
_SYNCS: Final = 50
_COUNTED_S: Final = 0.2
"""After which Triton has counted what it answered."""
_STEPS: Final = (PREPROCESS, EMBED, ENCODER)
_KINDS: Final = ("success", "queue", "compute_input", "compute_infer")
_NUMBERS: Final = itertools.count()

PARTS: Final = (
    *("reading, hashing", "downscaling", "network, serialisation", "queues", "decoding, fitting"),
    *("model", "rest of the server", "writing, synced", "index update", "search", "other"),
)
(READ, DOWNSCALE, NETWORK, QUEUES, DECODE, MODEL, SERVER, WRITE, INDEX, FIND, OTHER) = PARTS
_WAIT: Final = "waiting for the server"

GRAPH: Final = "bare graph"
SEARCH: Final = "photo → match"
SMALL: Final = "downscaled photo → match"
SIGN_UP: Final = "sign-up → match"
SERVED: Final = f"with the server, {CLIENTS} clients"
STORED: Final = f"vectors given, {CLIENTS} clients"
ALONE: Final = "vectors given, 1 client"

_NOTES: Final = {
    "tiny": [
        "The tiny graph takes less time than decoding a photo does, so its overhead says nothing "
        "about a real model: the bar is for 2B."
    ],
    "2b": [],
}

Photos: TypeAlias = Iterator[bytes]


def main() -> None:
    """Serve, fill an index, measure, publish."""
    parser = harness.arguments(__doc__, "end_to_end", models=True)
    parser.add_argument("--users", type=int, help="in the index at the beginning")
    parser.add_argument("--turns", type=int, help="requests of each kind, one at a time")
    parser.add_argument("--seconds", type=float, help="of each loop of sign-ups")
    args = parser.parse_args()
    for name, value in _SIZES[args.backbone].items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    if min(args.users, args.turns, args.seconds) <= 0:
        parser.error("--users, --turns and --seconds must be positive")
    canvas = Preprocessing(args.canvas, args.canvas)
    model = models.exported(args.work, args.backbone, canvas, "int8")
    with tempfile.TemporaryDirectory(dir=args.work) as workshop, models.served(model) as server:
        url = server.grpc_url
        folder = Path(workshop, "index")
        fill(folder, Manifest.load(model), args.users, args.seed)
        with (
            Encoder(url, timeout_s=TIMEOUT_S) as encoder,
            Encoder(url, timeout_s=TIMEOUT_S, downscale=True) as frugal,
            MatchingEngine.open(folder, encoder=encoder) as engine,
        ):
            some = photos(args.seed)
            requests = _one_by_one(url, engine, frugal, model, some, args.turns)
            loops = _sign_ups(engine, some, args)
            setting = _setting(args, folder, engine)
    harness.publish(_result(args, setting, requests, loops), args)


def fill(folder: Path, manifest: Manifest, users: int, seed: int) -> None:
    """Make an index of made-up users with attributes, its snapshot included."""
    people = People.make(users, manifest.embedding_dim, 1, _CLUSTERS, seed)
    with MatchingEngine.open(folder, manifest=manifest) as engine:
        engine.add_many(people.photos())
        engine.add_many(people.attributes())
        engine.save()


def unseen(some: Sequence[bytes]) -> Photos:
    """These photos in turn, for ever, each time as a file nobody has seen: bytes after its end."""
    for photo in itertools.cycle(some):
        yield photo + next(_NUMBERS).to_bytes(8, "big")


# --- one at a time


class Request(NamedTuple):
    """What one request took, in seconds: in all, and by part; the bare graph has no parts."""

    seconds: float
    parts: Mapping[str, float]


class Stopwatch:
    """Seconds by part of one thread's work.

    Each instant counts to the innermost part that is under way, so that parts never overlap and
    their sum is at most the whole.

    Attributes:
        seconds: what each part has taken so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._parts: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is done within to a part."""
        self._count()
        self._parts.append(name)
        try:
            yield
        finally:
            self._count()
            self._parts.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that counts to a part."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return wrapper

    def each(self, name: str, function: Callable[..., Iterable[Any]]) -> Callable[..., Any]:
        """A function whose results count to a part while they are drawn."""

        def wrapper(*args: Any, **kwargs: Any) -> Iterator[Any]:
            results = iter(function(*args, **kwargs))
            while True:
                with self.part(name):
                    try:
                        result = next(results)
                    except StopIteration:
                        return
                yield result

        return wrapper

    def _count(self) -> None:
        now = time.perf_counter()
        if self._parts:
            self.seconds[self._parts[-1]] += now - self._since
        self._since = now


@contextmanager
def _watched() -> Iterator[Stopwatch]:
    """A stopwatch on the steps of encoder and engine."""
    watch = Stopwatch()
    steps: tuple[tuple[Any, str, str], ...] = (
        (vibematch.engine, "read_photo", READ),
        (vibematch.encoder, "read_photo", READ),
        (vibematch.encoder, "cache_key", READ),
        (vibematch.encoder, "downscaled", DOWNSCALE),
        (ProfileStore, "write", WRITE),
        (LiveIndex, "follow", INDEX),
        (HnswIndex, "search", FIND),
    )
    with ExitStack() as stack:
        for owner, name, part in steps:
            step = watch.timed(part, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, step))
        asked = watch.each(_WAIT, Encoder.encode_each)
        stack.enter_context(patch.object(Encoder, "encode_each", asked))
        yield watch


class _Server:
    """What a request took by Triton's own account; it has nobody else to serve."""

    def __init__(self, client: InferenceServerClient) -> None:
        self._client = client
        time.sleep(_COUNTED_S)
        self._before = self._statistics()

    def last(self) -> tuple[float, dict[str, float]]:
        """Seconds of the one request since this was last asked: in all, and by part."""
        while True:  # it is counted a moment after it is answered
            after = self._statistics()
            if all(after[name]["count"] > self._before[name]["count"] for name in _STEPS):
                break
            time.sleep(0.001)
        taken = {
            name: {kind: (ns - self._before[name][kind]) / 1e9 for kind, ns in step.items()}
            for name, step in after.items()
        }
        self._before = after
        whole = taken[ENCODER]["success"]
        parts = {
            QUEUES: taken[PREPROCESS]["queue"] + taken[EMBED]["queue"],
            DECODE: taken[PREPROCESS]["compute_input"] + taken[PREPROCESS]["compute_infer"],
            MODEL: taken[EMBED]["compute_input"] + taken[EMBED]["compute_infer"],
        }
        return whole, {**parts, SERVER: whole - sum(parts.values())}

    def _statistics(self) -> dict[str, dict[str, int]]:
        """By step: how many were answered, and nanoseconds by kind.

        ``compute_output`` is left out: it goes on while the next step is at work.
        """
        return {
            each.name: {
                "count": each.inference_stats.success.count,
                **{kind: getattr(each.inference_stats, kind).ns for kind in _KINDS},
            }
            for each in self._client.get_inference_statistics().model_stats
            if each.name in _STEPS
        }


def _one_by_one(
    url: str,
    engine: MatchingEngine,
    frugal: Encoder,
    model: Path,
    some: Sequence[bytes],
    turns: int,
) -> dict[str, list[Request]]:
    """Each way on the same photo in each turn, in an order drawn anew."""
    canvas, session = engine.manifest.preprocessing, models.session(model)
    prepared = [preprocess(photo, canvas)[None] for photo in some]
    session.run(["embedding"], {"pixels": prepared[0]})
    pixels = itertools.cycle(prepared)
    requests: dict[str, list[Request]] = {name: [] for name in (GRAPH, SEARCH, SMALL, SIGN_UP)}

    def bare() -> None:
        given = next(pixels)
        began = time.perf_counter()
        session.run(["embedding"], {"pixels": given})
        seconds = time.perf_counter() - began
        requests[GRAPH].append(Request(seconds, {MODEL: seconds}))

    def search_downscaled(photo: bytes) -> None:
        (vector,) = frugal.encode_each([photo], fingerprint=engine.manifest.fingerprint)
        if isinstance(vector, VibematchError):
            raise vector
        engine.search(vector=vector)

    with InferenceServerClient(url) as client, _watched() as watch:
        ways: dict[str, Callable[[bytes], object]] = {
            SEARCH: lambda photo: engine.search(photo=photo),
            SMALL: search_downscaled,
            SIGN_UP: lambda photo: sign_up(engine, photos=[photo]),
        }
        for ask in ways.values():  # connections, the index in memory, the first of everything
            ask(some[0] + b"first")
        server = _Server(client)

        def way(name: str) -> Callable[[], None]:
            sent = unseen(some)

            def request() -> None:
                photo = next(sent)
                watch.seconds.clear()
                began = time.perf_counter()
                ways[name](photo)
                seconds = time.perf_counter() - began
                requests[name].append(Request(seconds, _parts(watch.seconds, seconds, server)))

            return request

        contenders = {GRAPH: bare, **{name: way(name) for name in ways}}
        harness.take_turns(contenders, turns, "one at a time")
    return requests


def _parts(client: Mapping[str, float], seconds: float, server: _Server) -> dict[str, float]:
    """All parts of one request, which add up to its ``seconds``."""
    parts = dict(client)
    waited = parts.pop(_WAIT)
    whole, inside = server.last()
    parts |= {**inside, NETWORK: waited - whole}
    return {**parts, OTHER: seconds - sum(parts.values())}


def sign_up(engine: MatchingEngine, **given: Any) -> None:
    """A new member with a photo or a vector, and the first search."""
    number = next(_NUMBERS)
    user_id = f"new_{number}"
    engine.add(user_id, attributes={"age": 18 + number % 40, "gender": "FM"[number % 2]}, **given)
    engine.search(user_id, 10)


# --- many at a time


class Loop(NamedTuple):
    """What a closed loop did: answers a second until the last one, and the seconds of each."""

    rate: float
    seconds: list[float]


def closed_loop(ask: Callable[[], object], clients: int, seconds: float) -> Loop:
    """Clients that each ask again as soon as they have their answer.

    Args:
        ask: asks once; called by all clients at once.
        clients: how many there are.
        seconds: how long they go on asking, each once at least; what was asked is waited for, and
            counts.
    """
    began = time.perf_counter()

    def client(_: int) -> list[float]:
        taken: list[float] = []
        asked = began
        while not taken or asked - began < seconds:
            ask()
            answered = time.perf_counter()
            taken.append(answered - asked)
            asked = answered
        return taken

    with ThreadPoolExecutor(clients) as pool:
        taken = [each for some in pool.map(client, range(clients)) for each in some]
    return Loop(len(taken) / (time.perf_counter() - began), taken)


def _sign_ups(
    engine: MatchingEngine, some: Sequence[bytes], args: argparse.Namespace
) -> dict[str, list[Loop]]:
    """Loops of sign-ups, the ways in turn."""
    dim = engine.manifest.embedding_dim
    newcomers = People.make(1, dim, _NEWCOMERS, _CLUSTERS, args.seed).queries
    sent, vectors, guard = unseen(some), itertools.cycle(newcomers), threading.Lock()

    def by_photo() -> None:
        with guard:  # generators are not for several threads
            photo = next(sent)
        sign_up(engine, photos=[photo])

    def by_vector() -> None:
        with guard:
            vector = next(vectors)
        sign_up(engine, vectors=[vector])

    loops: dict[str, list[Loop]] = {SERVED: [], STORED: [], ALONE: []}

    def loop(
        name: str, ask: Callable[[], None], clients: int, seconds: float
    ) -> Callable[[], None]:
        return lambda: loops[name].append(closed_loop(ask, clients, seconds))

    contenders = {
        SERVED: loop(SERVED, by_photo, CLIENTS, args.seconds),
        STORED: loop(STORED, by_vector, CLIENTS, _STORE_S),
        ALONE: loop(ALONE, by_vector, 1, _STORE_S),
    }
    harness.take_turns(contenders, _LOOPS, "sign-ups", seed=args.seed)
    return loops


# --- what came out


def _setting(args: argparse.Namespace, folder: Path, engine: MatchingEngine) -> dict[str, Any]:
    return {
        "weights": models.WEIGHTS[args.backbone],
        "graph": "int8, our kernels",
        "resolution": f"{args.canvas}x{args.canvas}",
        "embedding dim": engine.manifest.embedding_dim,
        "users at the beginning": args.users,
        "photos": "JPEG: 70 % 480x640, 25 % 1080x1440, 5 % 3024x4032",
        "turns, one at a time": args.turns,
        "loops of sign-ups": f"{_LOOPS} of {args.seconds:g} s (without the server {_STORE_S:g} s)",
        "durability": "each sign-up is a transaction of its own, synced to the disk",
        "one sync of 4 KiB, ms": round(_sync_ms(folder), 3),
        "threads": harness.CORES,
    }


def _sync_ms(folder: Path) -> float:
    """Median milliseconds of writing 4 KiB and syncing them: what this disk takes at the least."""
    taken = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            taken.append(1000 * (time.perf_counter() - began))
    (folder / "sync").unlink()
    return harness.median(taken)


def _result(
    args: argparse.Namespace,
    setting: dict[str, Any],
    requests: Mapping[str, Sequence[Request]],
    loops: Mapping[str, Sequence[Loop]],
) -> Result:
    parts = {name: middle_half(each) for name, each in requests.items()}
    overhead = {name: _overhead(each, requests[GRAPH]) for name, each in requests.items()}
    bars = [
        Bar(
            f"{SEARCH}: at most {OVERHEAD_BAR:.0%} over the bare graph",
            f"{overhead[SEARCH].median:.1%}",
            overhead[SEARCH].median <= OVERHEAD_BAR,
        )
    ]
    return Result(
        name="end_to_end",
        question="How long does it take from a photo's bytes to the match, and where does it go?",
        setting=setting,
        tables=[_latencies(requests, overhead), _divided(parts), _rates(loops)],
        plots=[_stacked(parts), _cdf(requests)],
        bars=bars if args.backbone == "2b" else [],
        notes=[_reading(parts[SEARCH]), *_NOTES[args.backbone]],
        figures={
            "seconds": {name: [one.seconds for one in each] for name, each in requests.items()},
            "parts_s": parts,
            "overhead": overhead,
            "sign_ups_per_s_served": harness.median(loop.rate for loop in loops[SERVED]),
            "sign_ups_per_s_store": harness.median(loop.rate for loop in loops[STORED]),
        },
    )


def middle_half(requests: Sequence[Request]) -> dict[str, float]:
    """Mean seconds of each part, over requests whose whole time is within the quartiles."""
    whole = Spread.of(request.seconds for request in requests)
    some = [request for request in requests if whole.low <= request.seconds <= whole.high]
    return {
        part: float(np.mean([request.parts.get(part, 0.0) for request in some])) for part in PARTS
    }


def _overhead(requests: Sequence[Request], graph: Sequence[Request]) -> Spread:
    """Share by which these take longer than the graph, turn by turn."""
    ratios = harness.ratio([one.seconds for one in requests], [one.seconds for one in graph])
    return Spread(*(ratio - 1 for ratio in ratios))


def _latencies(requests: Mapping[str, Sequence[Request]], overhead: Mapping[str, Spread]) -> Table:
    columns = [Column(f"p{percent}", "ms") for percent in _FEWEST_FOR]
    columns.append(Column("over the bare graph", "%"))
    rows = [
        Row(
            name,
            [
                *(_percentile([one.seconds for one in each], percent) for percent in _FEWEST_FOR),
                None if name == GRAPH else Spread(*(100 * share for share in overhead[name])),
            ],
            ours=name != GRAPH,
        )
        for name, each in requests.items()
    ]
    note = "Percentiles are left out where there were too few requests for them."
    return Table("One at a time", columns, rows, note)


def _percentile(seconds: Sequence[float], percent: int) -> float | None:
    """In milliseconds."""
    if len(seconds) < _FEWEST_FOR[percent]:
        return None
    return 1000 * float(np.percentile(seconds, percent))


def _divided(parts: Mapping[str, Mapping[str, float]]) -> Table:
    columns = [Column(name, "ms") for name in parts]
    rows = [Row(part, [1000 * each[part] for each in parts.values()]) for part in PARTS]
    rows.append(Row("in all", [1000 * sum(each.values()) for each in parts.values()]))
    return Table("Where the time goes", columns, rows, "Means of the middle half of the requests.")


def _rates(loops: Mapping[str, Sequence[Loop]]) -> Table:
    columns = [Column("sign-ups", "1/s"), Column("p50", "ms"), Column("p99", "ms")]
    rows = []
    for name, each in loops.items():
        seconds = [second for loop in each for second in loop.seconds]
        rate = Spread.of(loop.rate for loop in each)
        cells = [rate, _percentile(seconds, 50), _percentile(seconds, 99)]
        rows.append(Row(name, cells, ours=True))
    note = "A sign-up is one photo or vector, attributes, and the first search; all are durable."
    return Table("Sign-ups, several at a time", columns, rows, note)


def _stacked(parts: Mapping[str, Mapping[str, float]]) -> Plot:
    series = [
        Series(part, list(parts), [1000 * each[part] for each in parts.values()]) for part in PARTS
    ]
    return Plot("Where the time goes", "stacked", Axis(""), Axis("milliseconds"), series)


def _cdf(requests: Mapping[str, Sequence[Request]]) -> Plot:
    series = []
    for name, each in requests.items():
        taken = sorted(1000 * one.seconds for one in each)
        shares = [(place + 1) / len(taken) for place in range(len(taken))]
        series.append(Series(name, taken, shares, ours=name != GRAPH))
    axes = Axis("milliseconds", log=True), Axis("share of requests")
    return Plot("Latency, one at a time", "cdf", *axes, series)


def _reading(parts: Mapping[str, float]) -> str:
    whole = sum(parts.values())
    largest = sorted(parts, key=lambda part: -parts[part])[:3]
    named = ", ".join(f"{part} {parts[part] / whole:.1%}" for part in largest)
    return f"{SEARCH}: {named}; not accounted for: {parts[OTHER] / whole:.1%}."


if __name__ == "__main__":
    main()
