"""What our server sustains beside those that users would run with the same weights.

    python benchmarks/serving.py                    # tiny backbone: three minutes
    python benchmarks/serving.py --backbone 2b      # half an hour, 16 GB

All servers are started first. Each is awake only in its turn (``SIGSTOP`` else), so one is under
load at a time, on all cores, with the generator beside it. A closed loop finds the capacity: all
answers over the time until the last. Open loops then send photos at random moments (Poisson),
answered or not, at shares of each server's *own* capacity. Latency counts from the moment a photo
was due; what is refused, late or wrong counts as never answered. Limits are multiples of the time
that FastAPI + transformers need for one photo alone, the same for everybody.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import harness
import models
import numpy as np
from harness import Axis, Bar, Column, Plot, Result, Row, Series, Spread, Table
from serving_load import LEFT_OUT, Load, Phase, Request, cpu_seconds, photos, prepare, run_phase
from serving_peers import servers
from serving_peers.servers import FASTAPI, Contender, Server

from vibematch.photo_input import downscaled
from vibematch.preprocess import Preprocessing

LIMIT_TIMES: Final = 10
"""One photo alone, so many times: within it lies the latency that p99 may have."""
DEADLINE_TIMES: Final = 5
"""The same for an answer that is asked for under overload."""
PATIENCE_TIMES: Final = 200
"""After so many, a photo is given up in the phases that have no deadline."""
WAIT_SHARE: Final = 1 / 3
"""Of its deadline: what ``vibematch.Encoder`` lets a photo wait at each step of ours."""
IDLE_S: Final = 1.0
MEMORY_2B_GB: Final = 16


@dataclass(frozen=True)
class Plan:
    """How long what is measured.

    Attributes:
        turns: of the closed loops, and of the open ones.
        closed_s: seconds of a closed loop.
        open_s: seconds of an open one.
        overload_s: seconds of overload.
        rates: of the open loops, in shares of a server's own capacity.
        overloads: the same, and more than it can do.
        alone: photos asked one by one.
        clients: of the closed loops.
    """

    turns: tuple[int, int]
    closed_s: float
    open_s: float
    overload_s: float
    rates: tuple[float, ...]
    overloads: tuple[float, ...]
    alone: int
    clients: int


PLANS: Final = {
    "tiny": Plan((3, 2), 1.5, 2.5, 2.5, rates=(0.5, 0.8), overloads=(2, 4), alone=5, clients=16),
    "2b": Plan((2, 1), 20, 100, 60, rates=(0.7,), overloads=(4,), alone=2, clients=8),
}
CANVAS: Final = {"tiny": Preprocessing(224, 224), "2b": Preprocessing(448, 448)}
PEER_DTYPE: Final = {"tiny": "float32", "2b": "bfloat16"}


@dataclass
class Measured:
    """All that is known of one server.

    Times are seconds. ``phases`` holds those of the closed loop by ``"closed"`` and by the name of
    a variant, and those of open loops by their share of the capacity.
    """

    contender: Contender
    server: Server
    start_s: float
    alone_s: float
    idle_cores: float
    vectors: list[servers.Vector]
    phases: dict[str | float, list[Phase]] = field(default_factory=dict)

    def capacity(self, name: str = "closed") -> list[float]:
        """Photos a second, one figure for each turn of a closed loop."""
        return [_work_rate(phase) for phase in self.phases[name]]

    @property
    def mib(self) -> float:
        """The most memory it was seen with."""
        samples = [mib for phases in self.phases.values() for p in phases for mib in p.server_mib]
        return max(samples, default=math.nan)


def main() -> None:
    """Start the servers, measure, publish."""
    parser = harness.arguments(__doc__, "serving")
    parser.add_argument(
        "--work", type=Path, default=Path("build/benchmarks/models"), help="folder of models"
    )
    parser.add_argument("--turns", type=int, help="of the closed loops")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended on the way
    plan = PLANS[args.backbone]
    if args.turns:
        plan = Plan(**{**vars(plan), "turns": (args.turns, max(1, args.turns - 1))})
    contenders = entered(args.backbone, args.work)
    with ExitStack() as running:
        found = [_start(one, plan, args.seed, running) for one in contenders]
        limits = Limits.of(found)
        measure(found, plan, limits, args.seed, CANVAS[args.backbone])
    harness.publish(result(args, found, plan, limits), args)


# --- who takes part


def entered(backbone: models.BackboneName, work: Path) -> list[Contender]:
    """Our server, and the peers that are installed."""
    if backbone == "2b" and (free := _free_gb()) < MEMORY_2B_GB:
        raise SystemExit(
            f"the servers need {MEMORY_2B_GB} GB of memory and {free:.0f} are free: "
            "end other programs, or use --backbone tiny"
        )
    canvas = CANVAS[backbone]
    int8 = models.exported(work, backbone, canvas, "int8")
    found = [Contender("vibematch int8", partial(servers.triton, int8), ours=True)]
    if backbone == "tiny":
        fp32 = models.exported(work, backbone, canvas, "fp32")
        found.append(Contender("vibematch fp32", partial(servers.triton, fp32), ours=True))
    size = ("--canvas", str(canvas.height), str(canvas.width))
    torch = (*size, "--backbone", backbone, "--dtype", PEER_DTYPE[backbone])
    graph = (*size, "--graph", str(int8.resolve()))
    missing = servers.missing()
    if "FastAPI" not in missing:
        found.append(Contender(FASTAPI, partial(servers.fastapi, *torch)))
        found.append(Contender("FastAPI + our int8 graph", partial(servers.fastapi, *graph)))
    if "LitServe" not in missing:
        found.append(Contender("LitServe + transformers", partial(servers.litserve, *torch)))
    if "infinity-emb" not in missing and backbone == "tiny":
        width, macs = servers.clip_width(backbone, canvas)
        clip = partial(servers.infinity, canvas.height, width, work / f"clip-{width}")
        label = f"infinity-emb + CLIP of {macs / 1e9:.2g} GMAC"
        found.append(Contender(label, clip, model="another model"))
    return found


def _free_gb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(line for line in lines if line.startswith("MemAvailable:"))
    return int(available.split()[1]) / 1e6


def _start(contender: Contender, plan: Plan, seed: int, running: ExitStack) -> Measured:
    """Start a server, warm it up, ask it alone, and put it to sleep."""
    print(f"starting {contender.label}", file=sys.stderr)
    small = itertools.cycle(prepare(photo) for photo in _small(photos(seed)))
    began = time.perf_counter()
    server = running.enter_context(contender.start())
    answer = server.ask(next(small), servers.START_TIMEOUT_S)
    start_s = time.perf_counter() - began
    vectors = [answer.vector] if answer.vector is not None else []
    times = []
    for _ in range(plan.alone):
        began = time.perf_counter()
        answer = server.ask(next(small), servers.START_TIMEOUT_S)
        times.append(time.perf_counter() - began)
        vectors += [answer.vector] if answer.vector is not None else []
    time.sleep(IDLE_S)  # whatever it still does after an answer
    used = cpu_seconds(server.processes())
    time.sleep(IDLE_S)
    used = cpu_seconds(server.processes()) - used
    server.signal(signal.SIGSTOP)
    return Measured(contender, server, start_s, harness.median(times), used / IDLE_S, vectors)


def _small(sent: Iterable[bytes]) -> list[bytes]:
    return [photo for photo in sent if len(photo) < 500_000]  # no 12 megapixels among them


# --- what is measured


@dataclass(frozen=True)
class Limits:
    """Seconds that answers may take, made of what one photo alone takes ``unit_s``."""

    unit_s: float

    @classmethod
    def of(cls, found: Sequence[Measured]) -> Limits:
        """By FastAPI + transformers, or the slowest of those that are there."""
        alone = {one.contender.label: one.alone_s for one in found}
        return cls(alone.get(FASTAPI, max(alone.values())))

    @property
    def p99_s(self) -> float:
        """What p99 may be for a rate to count as sustained."""
        return LIMIT_TIMES * self.unit_s

    @property
    def deadline_s(self) -> float:
        """Under overload."""
        return DEADLINE_TIMES * self.unit_s

    @property
    def patience_s(self) -> float:
        """In the other phases."""
        return PATIENCE_TIMES * self.unit_s


def measure(
    found: Sequence[Measured], plan: Plan, limits: Limits, seed: int, canvas: Preprocessing
) -> None:
    """All phases, each in turns among the servers; figures go into ``found``."""
    sent = photos(seed)
    requests = [prepare(photo) for photo in sent]
    by_label = {one.contender.label: one for one in found}
    closed = Load(plan.closed_s, limits.patience_s, None, plan.clients, seed)

    def add(one: Measured, name: str | float, load: Load, what: Sequence[Request]) -> None:
        one.phases.setdefault(name, []).append(_phase(one.server, load, what))

    loops: dict[str, Callable[[], None]] = {
        label: partial(add, one, "closed", closed, requests) for label, one in by_label.items()
    }
    if "fp32" in "".join(by_label):  # at 2b these would take minutes
        ours = found[0]
        small = [prepare(downscaled(photo, canvas)) for photo in sent]
        loops["downscaled"] = partial(add, ours, "downscaled by the client", closed, small)
        loops["http"] = lambda: ours.phases.setdefault("over HTTP", []).append(
            _phase(ours.server, closed, requests, ["http"])
        )
    harness.take_turns(loops, plan.turns[0], "closed loops", seed=seed)

    def open_load(one: Measured, share: float, seconds: float, deadline: float) -> Load:
        rate = share * harness.median(one.capacity())
        return Load(seconds, deadline, rate, seed=seed + len(one.phases.get(share, [])))

    for share in plan.rates:
        loops = {
            label: lambda one=one, share=share: add(  # type: ignore[misc]  # bound now
                one, share, open_load(one, share, plan.open_s, limits.patience_s), requests
            )
            for label, one in by_label.items()
        }
        harness.take_turns(loops, plan.turns[1], f"open, {share:g} of capacity", seed=seed)
    _twice_the_peer(by_label, plan, limits, requests, seed)

    wait_s = WAIT_SHARE * limits.deadline_s
    impatient = [prepare(photo, wait_s) for photo in sent]
    for share, one in itertools.product(plan.overloads, found):
        if not _takes_overload(one):
            continue
        print(f"overload, {share:g} of capacity: {one.contender.label}", file=sys.stderr)
        add(one, share, open_load(one, share, plan.overload_s, limits.deadline_s), impatient)
        if share != plan.overloads[-1]:
            _settle(one.server, requests, limits)


def _takes_overload(one: Measured) -> bool:
    """Each kind of server once."""
    return one.contender.label not in ("vibematch fp32", "FastAPI + our int8 graph")


def _twice_the_peer(
    by_label: Mapping[str, Measured],
    plan: Plan,
    limits: Limits,
    requests: Sequence[Request],
    seed: int,
) -> None:
    """Ours at twice the highest rate that FastAPI + transformers sustained."""
    if FASTAPI not in by_label:
        return
    ours, peer = by_label["vibematch int8"], by_label[FASTAPI]
    rate = 2 * harness.median(peer.capacity()) * _sustained_share(peer, plan, limits)
    for turn in range(plan.turns[1]):
        load = Load(plan.open_s, limits.patience_s, rate, seed=seed + turn)
        ours.phases.setdefault(TWICE, []).append(_phase(ours.server, load, requests))


TWICE: Final = "at twice the peer's rate"


def _phase(
    server: Server, load: Load, requests: Sequence[Request], protocols: Sequence[str] = ()
) -> Phase:
    urls = {name: server.urls[name] for name in protocols or server.urls}
    with server.awake():
        return asyncio.run(run_phase("", urls, list(requests), load, server.processes()))


def _settle(server: Server, requests: Sequence[Request], limits: Limits) -> None:
    """Wait until a server has worked off what it was too late for."""
    deadline = time.monotonic() + limits.patience_s
    with server.awake():
        while time.monotonic() < deadline:
            with suppress(grpc.RpcError, OSError):
                server.ask(requests[0], limits.patience_s)
                return
            time.sleep(limits.unit_s)


# --- figures


def _work_rate(phase: Phase) -> float:
    """Answers a second of a closed loop, which keeps the server at work until its last answer."""
    done = [outcome.done for outcome in phase.outcomes if outcome.status == "answered"]
    return len(done) / max(done) if done else 0.0


def latencies(phase: Phase, seconds: float) -> list[float]:
    """Of all photos after the first fifth of a phase, sorted; infinite without an answer."""
    return sorted(
        outcome.done - outcome.due if outcome.status == "answered" else math.inf
        for outcome in phase.outcomes
        if outcome.due >= LEFT_OUT * seconds
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of them do not exceed."""
    if not values:
        return math.inf
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _pooled(phases: Iterable[Phase], seconds: float) -> list[float]:
    return sorted(itertools.chain.from_iterable(latencies(one, seconds) for one in phases))


def _latency_cell(phases: Sequence[Phase], seconds: float, share: float) -> Spread | str:
    """Milliseconds of all turns together, and the quartiles of what each turn gives."""
    whole = percentile(_pooled(phases, seconds), share)
    turns = [percentile(latencies(one, seconds), share) for one in phases]
    if not all(map(math.isfinite, [whole, *turns])):
        return "not answered"
    spread = Spread.of(turns)
    low, high = min(spread.low, whole), max(spread.high, whole)
    return Spread(1000 * whole, 1000 * low, 1000 * high)


def _keeps(phases: Sequence[Phase], plan: Plan, limits: Limits) -> bool:
    return percentile(_pooled(phases, plan.open_s), 0.99) <= limits.p99_s


def _sustained_share(one: Measured, plan: Plan, limits: Limits) -> float:
    """The highest of the tried rates whose p99 is within the limit; the lowest if none is."""
    kept = [share for share in plan.rates if _keeps(one.phases[share], plan, limits)]
    return max(kept, default=min(plan.rates))


# --- the result


def result(
    args: argparse.Namespace, found: Sequence[Measured], plan: Plan, limits: Limits
) -> Result:
    """Tables, plots and bars."""
    canvas = CANVAS[args.backbone]
    return Result(
        name="serving",
        question="How many photos does a server answer, how soon, and what does it cost?",
        setting={
            "weights": models.WEIGHTS[args.backbone],
            "canvas": f"{canvas.height}x{canvas.width}",
            "peers compute in": PEER_DTYPE[args.backbone],
            "photos": "JPEG: 70 % 480x640, 25 % 1080x1440, 5 % 3024x4032",
            "threads": harness.CORES,
            "clients of the closed loop": plan.clients,
            "batch": "1 photo a request; ours and LitServe make batches of up to 8",
            "one photo alone, ms": round(1000 * limits.unit_s, 1),
            "p99 may be, ms": round(1000 * limits.p99_s),
            "deadline under overload, ms": round(1000 * limits.deadline_s),
            "turns": plan.turns,
            "seconds of a phase": [plan.closed_s, plan.open_s, plan.overload_s],
            "left out of each open phase": f"the first {LEFT_OUT:.0%}",
        },
        tables=[
            _capacity_table(found, plan),
            _sustained_table(found, plan, limits),
            _open_table(found, plan),
            _overload_table(found, plan),
            _wire_table(args.seed, canvas),
        ],
        plots=[_cdf(found, plan), _curve(found, plan)],
        bars=_bars(found, plan, limits),
        notes=_notes(args.backbone),
        packages=["fastapi", "uvicorn", "litserve", "aiohttp", "grpcio"],
        figures={
            one.contender.label: {
                str(name): [_plain(phase) for phase in phases]
                for name, phases in one.phases.items()
            }
            for one in found
        },
    )


def _plain(phase: Phase) -> dict[str, Any]:
    left_out = ("name", "outcomes", "server_mib")
    return {name: value for name, value in vars(phase).items() if name not in left_out}


def _row(one: Measured, cells: Sequence[float | Spread | str | None], group: str = "") -> Row:
    return Row(one.contender.label, cells, one.contender.ours, group or one.contender.model)


def _capacity_table(found: Sequence[Measured], plan: Plan) -> Table:
    peer = next((one for one in found if one.contender.label == FASTAPI), None)
    rows = []
    for one in found:
        for name in ("closed", "downscaled by the client", "over HTTP"):
            if name in one.phases:
                row = _row(one, _capacity_cells(one, name, peer))
                label = row.label if name == "closed" else f"{row.label}, {name}"
                rows.append(Row(label, row.cells, row.ours, row.group))
    return Table(
        f"Closed loop, {plan.clients} clients",
        [
            Column("answers", "photos/s", "more"),
            Column(f"of {FASTAPI}", "x"),
            Column("server's CPU", "ms/answer", "less"),
            Column("generator's CPU", "cores"),
            Column("memory", "MiB", "less"),
            Column("start to first answer", "s", "less"),
            Column("CPU while idle", "cores", "less"),
            Column(f"least cosine to {FASTAPI}"),
        ],
        rows,
        note="Ours: gRPC and HTTP in turn unless said otherwise. Memory: proportional set size of "
        "all processes, the most seen. Ours warms up every batch size before it is ready; "
        "the start of FastAPI + our graph includes imports of torch that it does not use. "
        "CPU while idle is measured over a second.",
    )


def _capacity_cells(
    one: Measured, name: str, peer: Measured | None
) -> list[float | Spread | str | None]:
    phases = one.phases[name]
    cells: list[float | Spread | str | None] = [
        Spread.of(one.capacity(name)),
        harness.ratio(one.capacity(name), peer.capacity()) if peer else None,
        Spread.of(1000 * (phase.server_cpu_per_answer or math.nan) for phase in phases),
        Spread.of(phase.generator_cpu for phase in phases),
    ]
    if name != "closed":
        return [*cells, None, None, None, None]
    return [*cells, one.mib, one.start_s, one.idle_cores, _cosine(one, peer)]


def _cosine(one: Measured, peer: Measured | None) -> float | None:
    if peer is None or one.contender.model != peer.contender.model:
        return None
    pairs = zip(one.vectors, peer.vectors, strict=True)
    return min(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs)


def _sustained_table(found: Sequence[Measured], plan: Plan, limits: Limits) -> Table:
    rows = []
    for one in found:
        kept = [share for share in plan.rates if _keeps(one.phases[share], plan, limits)]
        if not kept:
            rows.append(_row(one, [0.0, None, None]))
            continue
        share = max(kept)
        rate = harness.median(one.capacity()) * share
        p99 = _latency_cell(one.phases[share], plan.open_s, 0.99)
        rows.append(_row(one, [rate, share, p99]))
    return Table(
        f"Throughput at a p99 of {1000 * limits.p99_s:.0f} ms",
        [
            Column("highest rate tried", "photos/s", "more"),
            Column("of its capacity", "x"),
            Column("p99 there", "ms"),
        ],
        rows,
        note=f"The limit is {LIMIT_TIMES} times what one photo alone takes {FASTAPI}.",
    )


def _open_table(found: Sequence[Measured], plan: Plan) -> Table:
    rows = []
    for share, one in itertools.product((*plan.rates, TWICE), found):
        if share not in one.phases:
            continue
        phases = one.phases[share]
        group = share if isinstance(share, str) else f"{share:g} of its own capacity"
        if one.contender.model != "same weights":
            group += f", {one.contender.model}"
        rows.append(
            _row(
                one,
                [
                    Spread.of(phase.offered for phase in phases),
                    *(_latency_cell(phases, plan.open_s, p) for p in (0.5, 0.95, 0.99)),
                    float(sum(len(latencies(phase, plan.open_s)) for phase in phases)),
                    Spread.of(phase.generator_cpu for phase in phases),
                    Spread.of(1000 * phase.send_lag_p99 for phase in phases),
                ],
                group,
            )
        )
    return Table(
        "Open loop",
        [
            Column("offered", "photos/s"),
            Column("p50", "ms", "less"),
            Column("p95", "ms", "less"),
            Column("p99", "ms", "less"),
            Column("photos"),
            Column("generator's CPU", "cores"),
            Column("sent late by, p99", "ms"),
        ],
        rows,
        note="Of few photos, p99 is the slowest. Rates differ: each server's are shares of its "
        "own capacity.",
    )


def _overload_table(found: Sequence[Measured], plan: Plan) -> Table:
    rows = []
    for share, one in itertools.product(plan.overloads, found):
        if share not in one.phases:
            continue
        (phase,) = one.phases[share]
        group = f"{share:g} times its own capacity"
        if one.contender.model != "same weights":
            group += f", {one.contender.model}"
        capacity = harness.median(one.capacity())
        counted = phase.answered + phase.rejected + phase.late + sum(phase.errors.values())
        cells = [phase.offered, phase.goodput, phase.goodput / capacity]
        cells += [count / max(counted, 1) for count in (phase.rejected, phase.late)]
        rows.append(_row(one, cells, group))
    return Table(
        "Overload",
        [
            Column("offered", "photos/s"),
            Column("answered in time", "photos/s", "more"),
            Column("of its capacity", "x", "more"),
            Column("refused", "share"),
            Column("too late", "share"),
        ],
        rows,
        note=f"In time: within {DEADLINE_TIMES} times what one photo alone takes {FASTAPI}. Ours "
        "is told how long a photo may wait, as our client does; the peers cannot be told.",
    )


def _wire_table(seed: int, canvas: Preprocessing) -> Table:
    sent = photos(seed)
    began = time.process_time()
    small = [downscaled(photo, canvas) for photo in sent]
    client_ms = 1000 * (time.process_time() - began) / len(sent)
    names = {
        "vibematch, gRPC": lambda request: request.grpc,
        "vibematch, HTTP": lambda request: request.http,
        "photo as the body (FastAPI, LitServe)": lambda request: request.photo,
        "base64 in JSON (infinity-emb)": lambda request: request.data_uri,
    }
    kinds: list[tuple[str, list[bytes], float | None]] = [
        ("photo as it is", sent, None),
        ("downscaled by the client", small, client_ms),
    ]
    rows = []
    for group, bodies, spent in kinds:
        requests = [prepare(photo) for photo in bodies]
        for label, body in names.items():
            sizes = [len(body(request)) / 1000 for request in requests]
            ours = label.startswith("vibematch")
            cells = [sum(sizes) / len(sizes), max(sizes), spent if ours else None]
            if ours or spent is None:
                rows.append(Row(label, cells, ours, group))
    return Table(
        "Bytes on the wire, for a photo",
        [
            Column("request, mean", "kB", "less"),
            Column("request, largest", "kB", "less"),
            Column("client's CPU to downscale", "ms"),
        ],
        rows,
        note="Bodies of requests. Downscaling is an option of our client (`Encoder(downscale=True)`"
        "); nothing keeps users of other servers from doing the same by hand.",
    )


def _cdf(found: Sequence[Measured], plan: Plan) -> Plot:
    share = max(plan.rates)
    series = []
    for one in found:
        values = _pooled(one.phases[share], plan.open_s)
        finite = [1000 * value for value in values if math.isfinite(value)]
        shares = [(place + 1) / len(values) for place in range(len(finite))]
        series.append(Series(one.contender.label, finite, shares, one.contender.ours))
    return Plot(
        f"Latency at {share:g} of each server's own capacity",
        "cdf",
        Axis("ms from the moment a photo was due", log=True),
        Axis("share of photos answered"),
        series,
    )


def _curve(found: Sequence[Measured], plan: Plan) -> Plot:
    series = []
    for one in found:
        rates, values = [], []
        for share in plan.rates:
            value = percentile(_pooled(one.phases[share], plan.open_s), 0.99)
            if math.isfinite(value):
                rates.append(share * harness.median(one.capacity()))
                values.append(1000 * value)
        # a closed loop keeps all clients waiting: the end of the curve
        closed = [o.done - o.due for p in one.phases["closed"] for o in p.outcomes]
        rates.append(harness.median(one.capacity()))
        values.append(1000 * percentile(closed, 0.99))
        series.append(Series(one.contender.label, rates, values, one.contender.ours))
    return Plot(
        "Throughput against latency",
        "line",
        Axis("photos/s"),
        Axis("p99, ms", log=True),
        series,
        note=f"The last point of each line is the closed loop with {plan.clients} clients.",
    )


def _bars(found: Sequence[Measured], plan: Plan, limits: Limits) -> list[Bar]:
    by_label = {one.contender.label: one for one in found}
    peer = by_label.get(FASTAPI)
    if peer is None:
        return []
    ours = by_label["vibematch int8"]
    theirs = percentile(
        _pooled(peer.phases[_sustained_share(peer, plan, limits)], plan.open_s), 0.99
    )
    twice = percentile(_pooled(ours.phases[TWICE], plan.open_s), 0.99)
    times = harness.ratio(ours.capacity(), peer.capacity())
    return [
        Bar(
            f"at twice the throughput that {FASTAPI} sustains, p99 is no worse",
            f"p99 {1000 * twice:.0f} ms against {1000 * theirs:.0f} ms; capacity {times} times",
            met=twice <= theirs,
        )
    ]


def _notes(backbone: models.BackboneName) -> list[str]:
    notes = [
        "The generator runs on the same cores as the servers and takes what the tables say.",
        "Everybody but infinity-emb makes the same pixels (`vibematch.preprocess`) and the same "
        "vectors; ours computes in int8, the peers in the format above.",
        "FastAPI: one process, photos decoded in its threads, one forward at a time. LitServe: its "
        "dynamic batching, 8 photos, 10 ms.",
    ]
    for name, command in servers.missing().items():
        notes.append(f"{name} is not installed and left out; `{command}` brings it.")
    if backbone == "2b":
        notes.append(
            "infinity-emb takes part with the tiny backbone only: it cannot hold this one."
        )
    return notes


if __name__ == "__main__":
    main()
