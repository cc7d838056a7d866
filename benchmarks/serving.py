"""What our server sustains beside those that users would run with the same weights.

    python benchmarks/serving.py                    # tiny backbone: three minutes
    python benchmarks/serving.py --backbone 2b      # half an hour, 18 GB

All servers are started first. Each is awake only in its turn (``SIGSTOP`` else), so one is under
load at a time, on all cores, with the generator beside it. A closed loop finds the capacity: all
answers over the time until the last. Open loops then send photos at random moments (Poisson),
answered or not, at shares of each server's *own* capacity. Latency counts from the moment a photo
was due; what is refused, late or failed counts as never answered. Limits are multiples of the time
that FastAPI + transformers need for one photo alone, the same for everybody.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import harness
import models
import numpy as np
from harness import Axis, Bar, Column, Plot, Result, Row, Series, Spread, Table
from macs import photo_work
from serving_load import LEFT_OUT, Phase, Request, photos, prepare
from serving_measure import (
    CLOSED,
    DEADLINE_TIMES,
    DOWNSCALED,
    HTTP,
    IDLE_S,
    LIMIT_TIMES,
    ONCE,
    PLANS,
    TWICE,
    Limits,
    Measured,
    Plan,
    keeps,
    latencies,
    measure,
    open_seconds,
    percentile,
    pooled,
    start,
)
from serving_peers import servers
from serving_peers.servers import FASTAPI, Contender

from vibematch.photo_input import downscaled
from vibematch.preprocess import Preprocessing

PEER_DTYPE: Final = {"tiny": "float32", "2b": "bfloat16"}
MEMORY_2B_GB: Final = 18
OVERLOAD_BAR: Final = 0.9


def main() -> None:
    """Start the servers, measure, publish."""
    parser = harness.arguments(__doc__, "serving", models=True)
    parser.add_argument("--turns", type=int, help="of the closed loops")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended on the way
    plan = PLANS[args.backbone]
    if args.turns:
        plan = dataclasses.replace(plan, turns=(args.turns, max(1, args.turns - 1)))
    contenders = entered(args.backbone, args.work)
    with ExitStack() as running:
        found = [start(one, plan, args.seed, running) for one in contenders]
        limits = Limits.of(found)
        silent = measure(found, plan, limits, args.seed, models.CANVAS[args.backbone])
    done = result(args, [one for one in found if one not in silent], plan, limits)
    for one in silent:
        done.notes.append(f"{one.contender.label} is left out: it answered nothing under load.")
    harness.publish(done, args)


# --- who takes part


def entered(backbone: models.BackboneName, work: Path) -> list[Contender]:
    """Our server, and the peers that are installed."""
    if backbone == "2b" and (free := _free_gb()) < MEMORY_2B_GB:
        raise SystemExit(
            f"the servers need {MEMORY_2B_GB} GB of memory and {free:.0f} are free: "
            "end other programs, or use --backbone tiny"
        )
    canvas = models.CANVAS[backbone]
    int8 = models.exported(work, backbone, canvas, "int8")
    found = [Contender("vibematch int8", partial(servers.triton, int8), ours=True, overloaded=True)]
    if backbone == "tiny":
        fp32 = models.exported(work, backbone, canvas, "fp32")
        found.append(Contender("vibematch fp32", partial(servers.triton, fp32), ours=True))
    size = ("--canvas", str(canvas.height), str(canvas.width))
    torch = (*size, "--backbone", backbone, "--dtype", PEER_DTYPE[backbone])
    graph = (*size, "--graph", str(int8.resolve()))
    missing = servers.missing()
    if "FastAPI" not in missing:
        found.append(Contender(FASTAPI, partial(servers.fastapi, *torch), overloaded=True))
        found.append(Contender("FastAPI + our int8 graph", partial(servers.fastapi, *graph)))
    if "LitServe" not in missing:
        lit = partial(servers.litserve, *torch)
        found.append(Contender("LitServe + transformers", lit, overloaded=True))
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


# --- the result


def result(
    args: argparse.Namespace, found: Sequence[Measured], plan: Plan, limits: Limits
) -> Result:
    """Tables, plots and bars."""
    canvas = models.CANVAS[args.backbone]
    return Result(
        name="serving",
        question="How many photos does a server answer, how soon, and what does it cost?",
        setting={
            "weights": models.WEIGHTS[args.backbone],
            "canvas": f"{canvas.height}x{canvas.width}",
            "peers compute in": PEER_DTYPE[args.backbone],
            "GMAC of a photo": round(photo_work(args.backbone, canvas).macs / 1e9, 2),
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
            _cost_table(found),
            _sustained_table(found, plan, limits),
            _open_table(found, plan),
            _overload_table(found, plan),
            _wire_table(args.seed, canvas),
        ],
        plots=[_cdf(found, plan), _curve(found, plan)],
        bars=[*_twice_bar(found, plan, limits), _overload_bar(found[0], plan)],
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


def _latency_cell(phases: Sequence[Phase], seconds: float, share: float) -> Spread | str:
    """Milliseconds of all turns together, and the quartiles of what each turn gives."""
    whole = percentile(pooled(phases, seconds), share)
    turns = [percentile(latencies(one, seconds), share) for one in phases]
    if not all(map(math.isfinite, [whole, *turns])):
        return "not answered"
    spread = Spread.of(turns)
    low, high = min(spread.low, whole), max(spread.high, whole)
    return Spread(1000 * whole, 1000 * low, 1000 * high)


def _row(one: Measured, cells: Sequence[float | Spread | str | None], group: str = "") -> Row:
    return Row(one.contender.label, cells, one.contender.ours, group or one.contender.model)


def _capacity_table(found: Sequence[Measured], plan: Plan) -> Table:
    peer = _peer(found)
    rows = []
    for name, one in itertools.product((CLOSED, DOWNSCALED, HTTP), found):
        if name not in one.phases:
            continue
        phases = one.phases[name]
        cells = [
            Spread.of(one.capacity(name)),
            harness.ratio(one.capacity(name), peer.capacity()) if peer else None,
            Spread.of(1000 * (phase.server_cpu_per_answer or math.nan) for phase in phases),
            Spread.of(phase.generator_cpu for phase in phases),
        ]
        row = _row(one, cells)
        if name != CLOSED:  # less work, so it does not compete with the peers
            row = dataclasses.replace(row, label=f"{row.label}, {name}", group="ours otherwise")
        rows.append(row)
    return Table(
        f"Closed loop, {plan.clients} clients",
        [
            Column("answers", "photos/s", "more"),
            Column("of FastAPI", "x"),
            Column("server's CPU", "ms/answer", "less"),
            Column("generator", "cores"),
        ],
        rows,
        note="Ours: gRPC and HTTP in turn unless said otherwise. All clients share the server's "
        f"cores. Of FastAPI: of {FASTAPI}, turn by turn.",
    )


def _cost_table(found: Sequence[Measured]) -> Table:
    peer = _peer(found)
    rows = [
        _row(one, [one.mib, one.start_s, 100 * one.idle_cores, _cosine(one, peer)]) for one in found
    ]
    return Table(
        "What it takes to have it",
        [
            Column("memory", "MiB", "less"),
            Column("start", "s"),
            Column("idle CPU", "% of a core"),
            Column("cosine"),
        ],
        rows,
        note="Memory: proportional set size of all processes, the most seen. Start: from nothing "
        "to the first answer; ours warms up every batch size before, those with transformers draw "
        "random weights instead of reading them, and FastAPI + our graph imports torch, which it "
        f"does not use. Idle CPU: over {1000 * IDLE_S:.0f} ms. Cosine: of "
        f"the vectors to those of {FASTAPI}, the least of some photos.",
    )


def _peer(found: Sequence[Measured]) -> Measured | None:
    return next((one for one in found if one.contender.label == FASTAPI), None)


def _cosine(one: Measured, peer: Measured | None) -> float | None:
    if peer is None or one.contender.model != peer.contender.model:
        return None
    pairs = zip(one.vectors, peer.vectors, strict=True)
    return min(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs)


def _sustained_table(found: Sequence[Measured], plan: Plan, limits: Limits) -> Table:
    rows = []
    for one in found:
        kept = [share for share in plan.rates if keeps(one.phases[share], plan, limits)]
        if not kept:
            rows.append(_row(one, [0.0, None, None]))
            continue
        share = max(kept)
        rate = one.median_capacity() * share
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
    for share, one in itertools.product((*plan.rates, ONCE, TWICE), found):
        if share not in one.phases:
            continue
        phases, seconds = one.phases[share], open_seconds(share, plan)
        group = share if isinstance(share, str) else f"{share:g} of its own capacity"
        if one.contender.model != "same weights":
            group += f", {one.contender.model}"
        rows.append(
            _row(
                one,
                [
                    Spread.of(phase.offered for phase in phases),
                    *(_latency_cell(phases, seconds, p) for p in (0.5, 0.95, 0.99)),
                    float(sum(len(latencies(phase, seconds)) for phase in phases)),
                    Spread.of(phase.generator_cpu for phase in phases),
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
            Column("generator", "cores"),
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
        capacity = one.median_capacity()
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
    names: dict[str, Callable[[Request], bytes]] = {
        "vibematch, gRPC": lambda request: request.grpc,
        "vibematch, HTTP": lambda request: request.http,
        "photo as the body (FastAPI, LitServe)": lambda request: request.photo,
        "base64 in JSON (infinity-emb)": lambda request: request.data_uri,
    }
    kinds: list[tuple[str, list[bytes], float | None]] = [
        ("photo as it is", sent, None),
        (DOWNSCALED, small, client_ms),
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
        values = pooled(one.phases[share], plan.open_s)
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
            value = percentile(pooled(one.phases[share], plan.open_s), 0.99)
            if math.isfinite(value):
                rates.append(share * one.median_capacity())
                values.append(1000 * value)
        # a closed loop keeps all clients waiting: the end of the curve
        closed = [o.done - o.due for p in one.phases[CLOSED] for o in p.outcomes]
        rates.append(one.median_capacity())
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


def _twice_bar(found: Sequence[Measured], plan: Plan, limits: Limits) -> list[Bar]:
    by_label = {one.contender.label: one for one in found}
    peer = by_label.get(FASTAPI)
    if peer is None:
        return []
    ours = by_label["vibematch int8"]
    at_once = pooled(peer.phases[ONCE], open_seconds(ONCE, plan))
    at_twice = pooled(ours.phases[TWICE], open_seconds(TWICE, plan))
    theirs, twice = percentile(at_once, 0.99), percentile(at_twice, 0.99)
    times = harness.ratio(ours.capacity(), peer.capacity())
    return [
        Bar(
            f"at twice the throughput that {FASTAPI} sustains, p99 is no worse",
            f"p99 {twice:.3g} s of {len(at_twice)} photos against {theirs:.3g} s of "
            f"{len(at_once)}; capacity {times} times",
            met=math.isfinite(twice) and twice <= theirs,
        )
    ]


def _overload_bar(ours: Measured, plan: Plan) -> Bar:
    most = max(plan.overloads)
    (phase,) = ours.phases[most]
    share = phase.goodput / ours.median_capacity()
    return Bar(
        f"asked for {most:g} times what it can do, ours still answers {OVERLOAD_BAR:.0%} of that "
        "in time",
        f"{share:.0%}; {phase.late} answers too late",
        met=share >= OVERLOAD_BAR,
    )


def _notes(backbone: models.BackboneName) -> list[str]:
    notes = [
        "The generator runs on the same cores as the servers; the tables say how much it takes.",
        "Everybody but infinity-emb makes the same pixels (`vibematch.preprocess`) and the same "
        "vectors; ours computes in int8, the peers in the format above.",
        "FastAPI: one process, photos decoded in its threads, one forward at a time. LitServe: its "
        "dynamic batching, 8 photos, 10 ms.",
    ]
    for name, command in servers.missing().items():
        notes.append(f"{name} is not installed and left out; `{command}` brings it.")
    if backbone == "2b":
        notes.append(
            "infinity-emb cannot hold this model: it takes part with the tiny backbone only, as a "
            "CLIP of about its work."
        )
    return notes


if __name__ == "__main__":
    main()
